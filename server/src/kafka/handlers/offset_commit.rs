//! OffsetCommit: how far a group, or somebody without one, has read.
//!
//! The time to keep the offsets that old versions state is not heeded: a group's offsets are kept
//! for the cluster's time once it is empty (KIP-211).

use trilog_wire::kafka::messages::offset_commit_response::{
    OffsetCommitResponsePartition, OffsetCommitResponseTopic,
};
use trilog_wire::kafka::messages::{OffsetCommitRequest, OffsetCommitResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use super::{are_few, offset_commit};
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
    let committed = commit(session, &asked).await;
    let mut outcomes = committed.as_deref().unwrap_or_default().iter();
    let mut response = OffsetCommitResponse::default();
    for topic in &asked.topics {
        let mut answered = OffsetCommitResponseTopic::default().with_name(topic.name.clone());
        for partition in &topic.partitions {
            let code = match &committed {
                // A client that knows no member epochs.
                Err(GroupError::StaleEpoch) if request.version < MEMBER_EPOCH_SINCE => {
                    ErrorCode::IllegalGeneration.code()
                }
                Err(error) => errors::group(error).code(),
                Ok(_) => match outcomes.next() {
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

async fn commit(session: &Session, asked: &OffsetCommitRequest) -> Result<Outcomes, GroupError> {
    let topics = asked.topics.iter();
    if !are_few(topics.map(|topic| (topic.name.len(), topic.partitions.len()))) {
        return Err(GroupError::CommitTooLarge);
    }
    let each = asked.topics.iter().flat_map(|topic| {
        let each = topic.partitions.iter();
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
    session.kafka.inner.groups.commit(request).await
}
