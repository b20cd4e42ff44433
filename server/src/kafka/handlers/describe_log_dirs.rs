//! DescribeLogDirs: what the partitions of this node take on its disk, and what room there is.

use std::collections::{BTreeMap, BTreeSet};

use trilog_model::GroupId;
use trilog_raft::controller::{Operation, Topic};
use trilog_wire::kafka::messages::describe_log_dirs_response::{
    DescribeLogDirsPartition, DescribeLogDirsResult, DescribeLogDirsTopic,
};
use trilog_wire::kafka::messages::{DescribeLogDirsRequest, DescribeLogDirsResponse, TopicName};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::session::Session;

/// The first version that has a code for all of it; before, whoever may not ask is shown nothing.
const CODE_SINCE: i16 = 3;
/// Where it is not known.
const UNKNOWN: i64 = -1;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: DescribeLogDirsRequest = decode(request)?;
    if let Err(code) = session.check_cluster(Operation::Describe) {
        session.count_error(request, code.code());
        let mut response = DescribeLogDirsResponse::default();
        if request.version >= CODE_SINCE {
            response.error_code = code.code();
        }
        return Ok(Writer::message(request, &response)?);
    }
    let wanted = asked.topics.map(|topics| {
        let mut wanted: BTreeMap<String, BTreeSet<i32>> = BTreeMap::new();
        for topic in topics {
            let indexes = wanted.entry(topic.topic.to_string()).or_default();
            indexes.extend(topic.partitions);
        }
        wanted
    });
    let map = session.kafka.inner.cluster.map();
    let mut topics = Vec::new();
    for topic in map.topics_by_name() {
        let indexes = match &wanted {
            None => None,
            Some(wanted) => match wanted.get(&*topic.name) {
                Some(indexes) => Some(indexes),
                None => continue,
            },
        };
        // What is not here is not told, as by a broker.
        let partitions = held(session, topic, indexes);
        if !partitions.is_empty() {
            let name = TopicName(text(&*topic.name));
            let topic = DescribeLogDirsTopic::default().with_name(name);
            topics.push(topic.with_partitions(partitions));
        }
    }
    let dir = &session.kafka.inner.data_dir;
    let mut result = DescribeLogDirsResult::default()
        .with_log_dir(text(dir.to_string_lossy()))
        .with_topics(topics)
        .with_total_bytes(UNKNOWN)
        .with_usable_bytes(UNKNOWN);
    // A disk that hangs holds up nobody else.
    let asked = dir.clone();
    let space = tokio::task::spawn_blocking(move || rustix::fs::statvfs(asked));
    match space.await {
        Ok(Ok(space)) => {
            result.total_bytes = bytes(space.f_blocks.saturating_mul(space.f_frsize));
            result.usable_bytes = bytes(space.f_bavail.saturating_mul(space.f_frsize));
        }
        Ok(Err(_)) | Err(_) => result.error_code = ErrorCode::KafkaStorageError.code(),
    }
    let response = DescribeLogDirsResponse::default().with_results(vec![result]);
    Ok(Writer::message(request, &response)?)
}

/// The partitions of a topic that this node holds, and that are asked for.
fn held(
    session: &Session,
    topic: &Topic,
    indexes: Option<&BTreeSet<i32>>,
) -> Vec<DescribeLogDirsPartition> {
    let partitions = session.kafka.inner.cluster.partitions();
    let size = |group: GroupId| Some(partitions.get(group)?.stored_bytes());
    let places = topic.partitions.iter().zip(0..);
    let asked = places.filter(|(_, index)| indexes.is_none_or(|all| all.contains(index)));
    let described = asked.filter_map(|(place, index)| {
        // It is never behind what it serves: what is not committed is no part of its log.
        let described = DescribeLogDirsPartition::default().with_partition_index(index);
        Some(described.with_partition_size(bytes(size(place.group)?)))
    });
    described.collect()
}

fn bytes(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}
