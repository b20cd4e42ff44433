//! OffsetDelete: a group forgets how far it has read of partitions that it does not read.

use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::offset_delete_response::{
    OffsetDeleteResponsePartition, OffsetDeleteResponseTopic,
};
use trilog_wire::kafka::messages::{OffsetDeleteRequest, OffsetDeleteResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use super::are_few;
use crate::group::GroupError;
use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: OffsetDeleteRequest = decode(request)?;
    let mut response = OffsetDeleteResponse::default();
    match session.check_group(Operation::Delete, &asked.group_id) {
        Ok(()) => match delete(session, &asked).await {
            Ok(topics) => response.topics = topics,
            Err(error) => response.error_code = errors::group(&error).code(),
        },
        Err(code) => response.error_code = code.code(),
    }
    session.count_error(request, response.error_code);
    for partition in response.topics.iter().flat_map(|topic| &topic.partitions) {
        session.count_error(request, partition.error_code);
    }
    Ok(Writer::message(request, &response)?)
}

async fn delete(
    session: &Session,
    asked: &OffsetDeleteRequest,
) -> Result<Vec<OffsetDeleteResponseTopic>, GroupError> {
    let topics = asked.topics.iter();
    if !are_few(topics.map(|topic| (topic.name.len(), topic.partitions.len()))) {
        return Err(GroupError::InvalidRequest("it names too many partitions"));
    }
    let known: Vec<(String, u32)> = asked
        .topics
        .iter()
        .flat_map(|topic| {
            // Asked once, however many partitions are named.
            let may = session.check_topic(Operation::Read, &topic.name).is_ok();
            let each = topic.partitions.iter().filter(move |_| may);
            let known = each.filter_map(|each| known(session, &topic.name, each.partition_index));
            known.map(|index| (topic.name.to_string(), index))
        })
        .collect();
    // In order: one for each that is known.
    let mut known = known.into_iter().peekable();
    let deleting: Vec<(String, u32)> = known.clone().collect();
    let groups = &session.kafka.inner.groups;
    // Nothing that could be deleted is nothing to ask the coordinator for, as at a broker.
    let deleted = if deleting.is_empty() && !asked.topics.is_empty() {
        Vec::new()
    } else {
        groups.delete_offsets(&asked.group_id, deleting).await?
    };
    let mut deleted = deleted.into_iter();
    let topics = asked.topics.iter().map(|topic| {
        let refused = session.check_topic(Operation::Read, &topic.name).err();
        let partitions = topic.partitions.iter().map(|partition| {
            let index = partition.partition_index;
            let this = known.next_if(|(name, known)| {
                **name == **topic.name && i32::try_from(*known) == Ok(index)
            });
            let outcome = this.and_then(|_| deleted.next());
            let code = match outcome {
                Some(Ok(())) => 0,
                Some(Err(error)) => errors::group(&error).code(),
                None => refused.unwrap_or(ErrorCode::UnknownTopicOrPartition).code(),
            };
            OffsetDeleteResponsePartition::default()
                .with_partition_index(index)
                .with_error_code(code)
        });
        OffsetDeleteResponseTopic::default()
            .with_name(topic.name.clone())
            .with_partitions(partitions.collect())
    });
    Ok(topics.collect())
}

/// The number of a partition, if there is one.
fn known(session: &Session, topic: &str, index: i32) -> Option<u32> {
    let map = session.kafka.inner.cluster.map();
    let partitions = map.topic_named(topic)?.partitions.len();
    let index = u32::try_from(index).ok()?;
    (usize::try_from(index).ok()? < partitions).then_some(index)
}
