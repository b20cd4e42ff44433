//! OffsetCommit: how far a group, or somebody without one, has read.
//!
//! The time to keep the offsets that old versions state is not heeded: a group's offsets are kept
//! for the cluster's time once it is empty (KIP-211).

use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use trilog_wire::kafka::messages::{OffsetCommitRequest, OffsetCommitResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use super::{are_few, may_be, offset_commit};
use crate::group::{CommitRequest, GroupError, MemberRef};
use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;

/// From here on a generation may be the epoch of a consumer that the coordinator assigns to.
const MEMBER_EPOCH_SINCE: i16 = 9;

/// One outcome for each offset, in order.
type Outcomes = Vec<Result<(), GroupError>>;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: OffsetCommitRequest = decode(request)?;
    let refused: Vec<Option<ErrorCode>> = asked
        .topics
        .iter()
        .map(|topic| session.check_topic(Operation::Read, &topic.name).err())
        .collect();
    let group = session.check_group(Operation::Read, &asked.group_id);
    let committed = match group {
        Ok(()) => commit(session, &asked, &refused).await,
        Err(_) => Ok(Vec::new()),
    };
    let mut outcomes = committed.as_deref().unwrap_or_default().iter();
    let mut response = OffsetCommitResponse::default();
    for (topic, refused) in asked.topics.iter().zip(&refused) {
        let refused = group.err().or(*refused);
        let mut answered = OffsetCommitResponseTopic::default().with_name(topic.name.clone());
        for partition in &topic.partitions {
            let code = match (&committed, refused) {
                (_, Some(code)) => code.code(),
                _ if !may_be(partition.partition_index) => {
                    ErrorCode::UnknownTopicOrPartition.code()
                }
                // A client that knows no member epochs.
                (Err(GroupError::StaleEpoch), None) if request.version < MEMBER_EPOCH_SINCE => {
                    ErrorCode::IllegalGeneration.code()
                }
                (Err(error), None) => errors::group(error).code(),
                (Ok(_), None) => match outcomes.next() {
                    Some(Ok(())) => 0,
                    Some(Err(error)) => errors::group(error).code(),
                    None => ErrorCode::UnknownServerError.code(),
                },
            };
            session.count_error(request, code);
            let answer = OffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code);
            answered.partitions.push(answer);
        }
        response.topics.push(answered);
    }
    Ok(Writer::message(request, &response)?)
}

/// Commits what is not refused; an outcome for each offset of those topics that may be, in order.
async fn commit(
    session: &Session,
    asked: &OffsetCommitRequest,
    refused: &[Option<ErrorCode>],
) -> Result<Outcomes, GroupError> {
    let topics = asked.topics.iter();
    if !are_few(topics.map(|topic| (topic.name.len(), topic.partitions.len()))) {
        return Err(GroupError::CommitTooLarge);
    }
    let allowed = asked.topics.iter().zip(refused);
    let allowed = allowed.filter(|(_, refused)| refused.is_none());
    let each = allowed.flat_map(|(topic, _)| {
        let each = topic.partitions.iter();
        let each = each.filter(|partition| may_be(partition.partition_index));
        each.map(|partition| {
            let place = (partition.committed_offset, partition.committed_leader_epoch);
            let metadata = partition.committed_metadata.as_ref();
            offset_commit(&topic.name, partition.partition_index, place, metadata)
        })
    });
    let instance = asked.group_instance_id.as_ref();
    let request = CommitRequest {
        member: MemberRef {
            group: asked.group_id.to_string(),
            generation: asked.generation_id_or_member_epoch,
            member: asked.member_id.to_string(),
            instance: instance.map(ToString::to_string),
        },
        offsets: each.collect(),
    };
    if request.offsets.is_empty() && !asked.topics.is_empty() {
        return Ok(Vec::new());
    }
    session.kafka.inner.groups.commit(request).await
}
