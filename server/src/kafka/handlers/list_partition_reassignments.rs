//! ListPartitionReassignments: replicas on their way from one node to another, whoever asked for
//! that: an operator, or the cluster by itself.

use trilog_raft::controller::{Operation, Partition as Place, Topic};
use trilog_wire::kafka::messages::list_partition_reassignments_response::{
    OngoingPartitionReassignment, OngoingTopicReassignment,
};
use trilog_wire::kafka::messages::{
    ListPartitionReassignmentsRequest, ListPartitionReassignmentsResponse, TopicName,
};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use super::metadata::broker_id;
use super::{are_few, text};
use crate::kafka::conn::Ended;
use crate::kafka::session::Session;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: ListPartitionReassignmentsRequest = decode(request)?;
    let mut response = ListPartitionReassignmentsResponse::default().with_error_message(None);
    let named = asked.topics.iter().flatten();
    let few = are_few(named.map(|topic| (topic.name.len(), topic.partition_indexes.len())));
    let allowed = session.check_cluster(Operation::Describe);
    let refused = match few {
        _ if allowed.is_err() => allowed.err(),
        false => Some(ErrorCode::InvalidRequest),
        // What has just begun is not left out.
        true if !session.kafka.inner.cluster.is_current().await => Some(ErrorCode::NotController),
        true => None,
    };
    if let Some(code) = refused {
        session.count_error(request, code.code());
        response.error_code = code.code();
        return Ok(Writer::message(request, &response)?);
    }
    let map = session.kafka.inner.cluster.map();
    let add = |topic: &Topic, partitions: Vec<_>| {
        let name = TopicName(text(&*topic.name));
        let moving = OngoingTopicReassignment::default().with_name(name);
        (!partitions.is_empty()).then(|| moving.with_partitions(partitions))
    };
    response.topics = match asked.topics {
        None => {
            let topics = map.topics_by_name();
            let moving = topics.filter_map(|topic| {
                let places = (0..).zip(&topic.partitions);
                let moving = places.filter_map(|(index, place)| moving(index, place));
                add(topic, moving.collect())
            });
            moving.collect()
        }
        Some(topics) => {
            let moving = topics.into_iter().filter_map(|asked| {
                let topic = map.topic_named(&asked.name)?;
                let moving = asked.partition_indexes.into_iter().filter_map(|index| {
                    let at = usize::try_from(index).ok()?;
                    moving(index, topic.partitions.get(at)?)
                });
                add(topic, moving.collect())
            });
            moving.collect()
        }
    };
    Ok(Writer::message(request, &response)?)
}

/// What comes and goes of one partition, if anything does.
fn moving(index: i32, place: &Place) -> Option<OngoingPartitionReassignment> {
    let moving = place.reassignment()?;
    let brokers = |nodes: Vec<_>| nodes.into_iter().map(broker_id).collect();
    let ongoing = OngoingPartitionReassignment::default()
        .with_partition_index(index)
        .with_replicas(brokers(place.shown()))
        .with_adding_replicas(brokers(moving.adding))
        .with_removing_replicas(brokers(moving.removing));
    Some(ongoing)
}
