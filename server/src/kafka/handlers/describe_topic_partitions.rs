//! DescribeTopicPartitions (KIP-966): what topics are made of, by name, so many partitions at a time;
//! a cursor says where the next request goes on.

use std::collections::BTreeSet;

use trilog_raft::controller::commands::TopicKind;
use trilog_raft::controller::{ClusterMap, Operation, ResourceKind, Topic, check_topic_name};
use trilog_wire::kafka::messages::describe_topic_partitions_request::Cursor;
use trilog_wire::kafka::messages::describe_topic_partitions_response::{
    Cursor as NextCursor, DescribeTopicPartitionsResponsePartition as Described,
    DescribeTopicPartitionsResponseTopic as DescribedTopic,
};
use trilog_wire::kafka::messages::metadata_response::MetadataResponsePartition;
use trilog_wire::kafka::messages::{
    DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse, TopicName,
};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Uuid, Writer, decode};

use super::metadata::describe_partition;
use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::session::Session;

/// Partitions of one answer at most, as `max.request.partition.size.limit` of a broker.
const MAX_PARTITIONS: usize = 2_000;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: DescribeTopicPartitionsRequest = decode(request)?;
    let response = match Wanted::read(&asked) {
        Ok(wanted) => described(session, &wanted).await,
        Err(code) => {
            let topics = asked.topics.into_iter();
            let refused = topics.map(|topic| refused(topic.name, code));
            DescribeTopicPartitionsResponse::default().with_topics(refused.collect())
        }
    };
    for topic in &response.topics {
        session.count_error(request, topic.error_code);
    }
    Ok(Writer::message(request, &response)?)
}

/// What is to be described.
struct Wanted<'a> {
    /// In order; none: all that there are.
    names: Option<BTreeSet<&'a str>>,
    cursor: Option<&'a Cursor>,
    partitions: usize,
}

impl<'a> Wanted<'a> {
    fn read(asked: &'a DescribeTopicPartitionsRequest) -> Result<Self, ErrorCode> {
        let cursor = asked.cursor.as_ref();
        let after = |name: &&str| cursor.is_none_or(|cursor| **name >= **cursor.topic_name);
        let names = asked.topics.iter().map(|topic| &**topic.name);
        let names = (!asked.topics.is_empty()).then(|| names.filter(after).collect());
        let limit = usize::try_from(asked.response_partition_limit).unwrap_or(0);
        let wanted = Self {
            names,
            cursor,
            partitions: limit.clamp(1, MAX_PARTITIONS),
        };
        // What is gone on with must be among what is asked for.
        let goes_on = |cursor: &Cursor| {
            let names = wanted.names.as_ref();
            cursor.partition_index >= 0
                && names.is_none_or(|names| names.contains(&**cursor.topic_name))
        };
        if cursor.is_some_and(|cursor| !goes_on(cursor)) {
            return Err(ErrorCode::InvalidRequest);
        }
        Ok(wanted)
    }

    /// The partition to begin a topic with.
    fn first(&self, topic: &str) -> usize {
        let cursor = self.cursor.filter(|cursor| &**cursor.topic_name == topic);
        cursor.map_or(0, |cursor| {
            usize::try_from(cursor.partition_index).unwrap_or(0)
        })
    }
}

async fn described(session: &Session, wanted: &Wanted<'_>) -> DescribeTopicPartitionsResponse {
    let cluster = &session.kafka.inner.cluster;
    let mut map = cluster.map();
    let mut named = wanted.names.iter().flatten();
    if named.any(|name| map.topic_named(name).is_none()) {
        // What was just made through another node is told of.
        cluster.is_current().await;
        map = cluster.map();
    }
    let mut telling = Telling {
        session,
        map: &map,
        left: wanted.partitions,
        response: DescribeTopicPartitionsResponse::default(),
    };
    let Some(names) = &wanted.names else {
        let from = wanted.cursor.map_or("", |cursor| &cursor.topic_name);
        let all = map.topics_by_name().filter(|topic| &*topic.name >= from);
        let rights = session.rights(&map);
        let shown = all.filter(|topic| rights.may_topic(Operation::Describe, &topic.name));
        for topic in shown {
            if telling.tell(topic, wanted.first(&topic.name)) {
                break;
            }
        }
        return telling.response;
    };
    let mut forbidden = Vec::new();
    for name in names {
        if let Err(code) = session.check_topic(Operation::Describe, name) {
            forbidden.push(refused(TopicName(text(*name)), code));
            continue;
        }
        let over = match map.topic_named(name) {
            Some(topic) => telling.tell(topic, wanted.first(name)),
            None => telling.tell_unknown(name),
        };
        if over {
            break;
        }
    }
    telling.response.topics.append(&mut forbidden);
    telling.response
}

/// An answer that is being put together.
struct Telling<'a> {
    session: &'a Session,
    map: &'a ClusterMap,
    /// Partitions that there is room for.
    left: usize,
    response: DescribeTopicPartitionsResponse,
}

impl Telling<'_> {
    /// Tells of a topic, from a partition on; whether that is the end.
    fn tell(&mut self, topic: &Topic, first: usize) -> bool {
        if self.is_full(&topic.name) {
            return true;
        }
        let all = topic.partitions.iter().enumerate().skip(first);
        let partitions: Vec<Described> = all
            .take(self.left)
            .map(|(index, place)| {
                let index = i32::try_from(index).unwrap_or(i32::MAX);
                of_partition(describe_partition(self.session, place, index))
            })
            .collect();
        let told = partitions.len();
        self.left -= told;
        self.response.topics.push(
            self.row(&topic.name)
                .with_topic_id(Uuid::from_bytes(*topic.id.as_bytes()))
                .with_is_internal(topic.kind == TopicKind::Internal)
                .with_partitions(partitions),
        );
        let next = first.saturating_add(told);
        if next < topic.partitions.len() {
            self.go_on_with(&topic.name, next);
            return true;
        }
        false
    }

    fn tell_unknown(&mut self, name: &str) -> bool {
        if self.is_full(name) {
            return true;
        }
        let code = match check_topic_name(name) {
            Ok(()) => ErrorCode::UnknownTopicOrPartition,
            Err(_) => ErrorCode::InvalidTopicException,
        };
        let row = self.row(name).with_error_code(code.code());
        self.response.topics.push(row);
        false
    }

    /// Whether there is no room for this topic, with which the next request then begins.
    fn is_full(&mut self, name: &str) -> bool {
        if self.left == 0 {
            self.go_on_with(name, 0);
        }
        self.left == 0
    }

    fn go_on_with(&mut self, topic: &str, partition: usize) {
        let cursor = NextCursor::default()
            .with_topic_name(TopicName(text(topic)))
            .with_partition_index(i32::try_from(partition).unwrap_or(i32::MAX));
        self.response.next_cursor = Some(cursor);
    }

    fn row(&self, name: &str) -> DescribedTopic {
        let rights = self.session.rights(self.map);
        DescribedTopic::default()
            .with_name(Some(TopicName(text(name))))
            .with_topic_authorized_operations(rights.operations(ResourceKind::Topic, name))
    }
}

fn refused(name: TopicName, code: ErrorCode) -> DescribedTopic {
    DescribedTopic::default()
        .with_name(Some(name))
        .with_error_code(code.code())
}

/// A partition as Metadata describes it. That it has no leader is no error here, and a node that
/// has no vote can never lead, so none is eligible besides those that are in sync.
fn of_partition(partition: MetadataResponsePartition) -> Described {
    Described::default()
        .with_partition_index(partition.partition_index)
        .with_leader_id(partition.leader_id)
        .with_leader_epoch(partition.leader_epoch)
        .with_replica_nodes(partition.replica_nodes)
        .with_isr_nodes(partition.isr_nodes)
        .with_eligible_leader_replicas(Some(Vec::new()))
        .with_last_known_elr(Some(Vec::new()))
        .with_offline_replicas(partition.offline_replicas)
}
