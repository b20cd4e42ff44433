//! DescribeQuorum: how far the replicas of the controller's log are. To Kafka's clients that is the
//! only partition of the topic `__cluster_metadata`, and its offsets count Raft's entries.

use std::collections::BTreeSet;

use trilog_model::NodeId;
use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::describe_quorum_response::{
    Listener, Node, PartitionData, ReplicaState, TopicData,
};
use trilog_wire::kafka::messages::{
    BrokerId, DescribeQuorumRequest, DescribeQuorumResponse, TopicName,
};
use trilog_wire::kafka::{Answer, ErrorCode, Request, StrBytes, Writer, decode};

use super::metadata::{address, broker_id};
use super::text;
use crate::cluster::{Held, Quorum};
use crate::kafka::conn::Ended;
use crate::kafka::session::Session;

const TOPIC: &str = "__cluster_metadata";
/// What is not known, of offsets as of times: nobody keeps when a replica fetched last.
const UNKNOWN: i64 = -1;
/// As a broker calls where its controller listens; here any node takes what is for it.
const LISTENER: &str = "CONTROLLER";

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: DescribeQuorumRequest = decode(request)?;
    let mut response = DescribeQuorumResponse::default();
    if let Err(code) = session.check_cluster(Operation::Describe) {
        session.count_error(request, code.code());
        response.error_code = code.code();
        return Ok(Writer::message(request, &response)?);
    }
    if !is_of_the_controller(&asked) {
        let topics = asked.topics.into_iter().map(unknown);
        response.topics = topics.collect();
        return Ok(Writer::message(request, &response)?);
    }
    let quorum = session.kafka.inner.cluster.controller().quorum().await;
    let partition = match &quorum {
        Some(quorum) => described(quorum),
        None => PartitionData::default()
            .with_leader_id(BrokerId(-1))
            .with_error_code(ErrorCode::NotLeaderOrFollower.code()),
    };
    session.count_error(request, partition.error_code);
    if request.version >= 2 {
        response.nodes = quorum.map_or_else(Vec::new, |quorum| nodes(session, &quorum));
    }
    let topic = TopicData::default()
        .with_topic_name(TopicName(StrBytes::from_static_str(TOPIC)))
        .with_partitions(vec![partition]);
    response.topics = vec![topic];
    Ok(Writer::message(request, &response)?)
}

/// Whether the one partition that there is is asked about, and no other.
fn is_of_the_controller(asked: &DescribeQuorumRequest) -> bool {
    let mut partitions = asked.topics.iter().flat_map(|topic| {
        let indexes = topic.partitions.iter();
        indexes.map(|partition| (&**topic.topic_name, partition.partition_index))
    });
    partitions.next() == Some((TOPIC, 0)) && partitions.next().is_none()
}

fn unknown(topic: trilog_wire::kafka::messages::describe_quorum_request::TopicData) -> TopicData {
    let partitions = topic.partitions.iter().map(|partition| {
        PartitionData::default()
            .with_partition_index(partition.partition_index)
            .with_error_code(ErrorCode::UnknownTopicOrPartition.code())
    });
    TopicData::default()
        .with_topic_name(topic.topic_name)
        .with_partitions(partitions.collect())
}

fn described(quorum: &Quorum) -> PartitionData {
    let of = |votes| {
        let replicas = quorum.replicas.iter();
        let replicas = replicas.filter(move |held| held.votes == votes);
        replicas.map(state).collect()
    };
    PartitionData::default()
        .with_leader_id(broker_id(quorum.leader))
        .with_leader_epoch(i32::try_from(quorum.term.get()).unwrap_or(i32::MAX))
        .with_high_watermark(offset(quorum.committed))
        .with_current_voters(of(true))
        .with_observers(of(false))
}

fn state(held: &Held) -> ReplicaState {
    ReplicaState::default()
        .with_replica_id(broker_id(held.node))
        .with_log_end_offset(held.entries.map_or(UNKNOWN, offset))
        .with_last_fetch_timestamp(UNKNOWN)
        .with_last_caught_up_timestamp(UNKNOWN)
}

fn offset(entries: u64) -> i64 {
    i64::try_from(entries).unwrap_or(i64::MAX)
}

/// Where the voters are found.
fn nodes(session: &Session, quorum: &Quorum) -> Vec<Node> {
    let map = session.kafka.inner.cluster.map();
    let voters = quorum.replicas.iter().filter(|held| held.votes);
    let voters: BTreeSet<NodeId> = voters.map(|held| held.node).collect();
    let nodes = voters.into_iter().map(|node| {
        let listener = address(session, &map, node).map(|(host, port)| {
            Listener::default()
                .with_name(StrBytes::from_static_str(LISTENER))
                .with_host(text(host))
                .with_port(u16::try_from(port).unwrap_or(0))
        });
        Node::default()
            .with_node_id(broker_id(node))
            .with_listeners(listener.into_iter().collect())
    });
    nodes.collect()
}
