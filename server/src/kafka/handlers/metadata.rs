//! Metadata: which nodes there are, which topics, and who leads what. Asking for a topic that is
//! not there makes it, where the cluster allows that.

use std::sync::Arc;
use std::time::Duration;

use trilog_model::NodeId;
use trilog_raft::controller::commands::{Command, CreateTopic, Purpose, TopicKind};
use trilog_raft::controller::{
    CLUSTER_RESOURCE, ClusterMap, ControllerError, Operation, Partition as Place, ResourceKind,
    Topic, TopicId,
};
use trilog_wire::kafka::messages::metadata_response::{
    MetadataResponseBroker, MetadataResponsePartition, MetadataResponseTopic,
};
use trilog_wire::kafka::messages::{BrokerId, MetadataRequest, MetadataResponse, TopicName};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Uuid, Writer, decode};

use super::text;
use crate::cluster::ProposeError;
use crate::kafka::conn::Ended;
use crate::kafka::session::Session;

/// What the client may do to the cluster, if it may see it.
pub(super) fn cluster_operations(session: &Session) -> i32 {
    let map = session.kafka.inner.cluster.map();
    let rights = session.rights(&map);
    if rights.may_cluster(Operation::Describe) {
        rights.operations(ResourceKind::Cluster, CLUSTER_RESOURCE)
    } else {
        0
    }
}

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: MetadataRequest = decode(request)?;
    let create = asked.allow_auto_topic_creation;
    let all = match &asked.topics {
        None => true,
        Some(topics) => request.version == 0 && topics.is_empty(),
    };
    let map = session.kafka.inner.cluster.map();
    let mut topics = Vec::new();
    if all {
        let rights = session.rights(&map);
        let shown = map.topics_by_name();
        let shown = shown.filter(|topic| rights.may_topic(Operation::Describe, &topic.name));
        topics.extend(shown.map(|topic| describe(session, topic)));
    }
    for wanted in asked.topics.unwrap_or_default() {
        let found = match (&wanted.name, wanted.topic_id.is_nil()) {
            (Some(name), true) => by_name(session, name, create).await,
            (_, false) => by_id(session, wanted.topic_id),
            (None, true) => Err(ErrorCode::InvalidRequest),
        };
        topics.push(found.unwrap_or_else(|code| {
            session.count_error(request, code.code());
            MetadataResponseTopic::default()
                .with_error_code(code.code())
                .with_name(wanted.name)
                .with_topic_id(wanted.topic_id)
        }));
    }
    if asked.include_topic_authorized_operations {
        for topic in topics.iter_mut().filter(|topic| topic.error_code == 0) {
            let name = topic.name.as_ref().map_or("", |name| name);
            let rights = session.rights(&map);
            topic.topic_authorized_operations = rights.operations(ResourceKind::Topic, name);
        }
    }
    let mut response = MetadataResponse::default()
        .with_brokers(brokers(session))
        .with_controller_id(controller(session))
        .with_topics(topics);
    if request.version >= 2 {
        response.cluster_id = map.cluster().map(|id| text(id.to_string()));
    }
    if asked.include_cluster_authorized_operations {
        response.cluster_authorized_operations = cluster_operations(session);
    }
    Ok(Writer::message(request, &response)?)
}

async fn by_name(
    session: &Session,
    name: &TopicName,
    create: bool,
) -> Result<MetadataResponseTopic, ErrorCode> {
    session.check_topic(Operation::Describe, name)?;
    let cluster = &session.kafka.inner.cluster;
    if let Ok(topic) = cluster.current_topic(name).await {
        return Ok(describe(session, &topic));
    }
    if create && cluster.map().config().auto_create_topics() {
        session
            .check_cluster(Operation::Create)
            .or_else(|_| session.check_topic(Operation::Create, name))?;
        make(session, name).await?;
        // Its leader is about to be elected.
        return Err(ErrorCode::LeaderNotAvailable);
    }
    Err(ErrorCode::UnknownTopicOrPartition)
}

async fn make(session: &Session, name: &TopicName) -> Result<(), ErrorCode> {
    let inner = &session.kafka.inner;
    let command = Command::CreateTopic(CreateTopic {
        id: TopicId::random(&inner.entropy).to_wire(),
        name: name.to_string(),
        partitions: 0,
        replication: 0,
        configs: Vec::new(),
        assignments: Vec::new(),
        kind: TopicKind::User.into(),
    });
    match inner.cluster.propose(&command).await {
        // Somebody else was faster.
        Ok(_) | Err(ProposeError::Refused(ControllerError::TopicExists { .. })) => Ok(()),
        Err(ProposeError::Refused(
            ControllerError::InvalidTopicName { .. } | ControllerError::TopicCollides { .. },
        )) => Err(ErrorCode::InvalidTopicException),
        Err(_) => Err(ErrorCode::UnknownTopicOrPartition),
    }
}

fn by_id(session: &Session, id: Uuid) -> Result<MetadataResponseTopic, ErrorCode> {
    let map = session.kafka.inner.cluster.map();
    let topic = TopicId::from_bytes(id.into_bytes())
        .ok()
        .and_then(|id| map.topic(id).cloned());
    let topic = topic.ok_or(ErrorCode::UnknownTopicId)?;
    // An id is no secret, and the name is not told.
    session.check_topic(Operation::Describe, &topic.name)?;
    Ok(describe(session, &topic))
}

fn describe(session: &Session, topic: &Arc<Topic>) -> MetadataResponseTopic {
    let partitions = topic.partitions.iter().zip(0..);
    MetadataResponseTopic::default()
        .with_name(Some(TopicName(text(&*topic.name))))
        .with_topic_id(Uuid::from_bytes(*topic.id.as_bytes()))
        .with_is_internal(topic.kind == TopicKind::Internal)
        .with_partitions(
            partitions
                .map(|(place, index)| describe_partition(session, place, index))
                .collect(),
        )
}

/// A partition with its leader and its replicas.
pub(super) fn describe_partition(
    session: &Session,
    place: &Place,
    index: i32,
) -> MetadataResponsePartition {
    let cluster = &session.kafka.inner.cluster;
    let leader = cluster
        .leader(place.group)
        .filter(|leader| cluster.is_alive(*leader));
    let replicas = place.shown();
    let (alive, offline): (Vec<NodeId>, Vec<NodeId>) =
        replicas.iter().partition(|node| cluster.is_alive(**node));
    let voting = place.in_sync();
    // A leader may have got its vote a moment ago, and nobody have heard of it yet.
    let in_sync = |node: &NodeId| voting.contains(node) || leader == Some(*node);
    let in_sync = alive.into_iter().filter(in_sync);
    let code = match leader {
        Some(_) => 0,
        None => ErrorCode::LeaderNotAvailable.code(),
    };
    let term = cluster.term(place.group).get();
    // A node that holds no replica does not know the epoch.
    let epoch = match term {
        0 => -1,
        term => i32::try_from(term).unwrap_or(i32::MAX),
    };
    MetadataResponsePartition::default()
        .with_error_code(code)
        .with_partition_index(index)
        .with_leader_id(leader.map_or(BrokerId(-1), broker_id))
        .with_leader_epoch(epoch)
        .with_replica_nodes(replicas.into_iter().map(broker_id).collect())
        .with_isr_nodes(in_sync.map(broker_id).collect())
        .with_offline_replicas(offline.into_iter().map(broker_id).collect())
}

pub(super) fn broker_id(node: NodeId) -> BrokerId {
    BrokerId(i32::try_from(node.get()).unwrap_or(i32::MAX))
}

/// A node that clients can be sent to.
pub(super) struct Broker {
    pub(super) node: NodeId,
    pub(super) host: String,
    pub(super) port: i32,
    pub(super) rack: Option<String>,
}

/// How long a node that is not heard is still told of, as by a broker (`broker.session.timeout.ms`):
/// what it led moves at once, but clients give up all they have of a broker that is not told of, and
/// librdkafka (2.16) may wait for ever for one that comes back meanwhile.
const TOLD_FOR: Duration = Duration::from_secs(9);

/// The nodes that are alive, or were a moment ago, and have a Kafka address; this one in any case.
pub(super) fn live_brokers(session: &Session) -> Vec<Broker> {
    let cluster = &session.kafka.inner.cluster;
    let map = cluster.map();
    let told = map.nodes();
    let told = told.filter(|node| cluster.was_alive_within(node.id, TOLD_FOR));
    let brokers = told.filter_map(|node| {
        let (host, port) = address(session, &map, node.id)?;
        Some(Broker {
            node: node.id,
            host,
            port,
            rack: node.rack.clone(),
        })
    });
    brokers.collect()
}

/// Where clients find a node.
pub(super) fn address(session: &Session, map: &ClusterMap, node: NodeId) -> Option<(String, i32)> {
    if let Some(endpoint) = map.node(node)?.endpoint(Purpose::Kafka) {
        let host = endpoint.host.trim_matches(['[', ']']).to_owned();
        return Some((host, i32::try_from(endpoint.port).ok()?));
    }
    // It has yet to register; whoever asks here has found it already.
    let here = session
        .local
        .filter(|_| node == session.kafka.inner.cluster.node())?;
    Some((here.ip().to_string(), i32::from(here.port())))
}

fn brokers(session: &Session) -> Vec<MetadataResponseBroker> {
    let brokers = live_brokers(session).into_iter().map(|broker| {
        MetadataResponseBroker::default()
            .with_node_id(broker_id(broker.node))
            .with_host(text(broker.host))
            .with_port(broker.port)
            .with_rack(broker.rack.map(text))
    });
    brokers.collect()
}

/// The node to send changes to: any takes them, so one that is alive.
pub(super) fn controller(session: &Session) -> BrokerId {
    let cluster = &session.kafka.inner.cluster;
    let leader = cluster.controller().leader();
    let alive = leader.filter(|node| cluster.is_alive(*node));
    broker_id(alive.unwrap_or_else(|| cluster.node()))
}
