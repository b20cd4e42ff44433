//! TxnOffsetCommit: offsets of a group that count once the producer's transaction commits. That
//! the group is in it is asked of its coordinator first, as for a batch.

use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::txn_offset_commit_response::{
    TxnOffsetCommitResponsePartition, TxnOffsetCommitResponseTopic,
};
use trilog_wire::kafka::messages::{TxnOffsetCommitRequest, TxnOffsetCommitResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use super::{are_few, may_be, offset_commit};
use crate::group::{GroupError, MemberRef, TransactionCommit};
use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;
use crate::transaction::Identity;

/// One code for each offset, in order.
type Codes = Vec<Option<ErrorCode>>;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: TxnOffsetCommitRequest = decode(request)?;
    let refused: Vec<Option<ErrorCode>> = asked
        .topics
        .iter()
        .map(|topic| session.check_topic(Operation::Read, &topic.name).err())
        .collect();
    let allowed = session
        .check_transaction(Operation::Write, &asked.transactional_id)
        .and_then(|()| session.check_group(Operation::Read, &asked.group_id));
    let committed = match allowed {
        Ok(()) => commit(session, &asked, &refused).await,
        Err(code) => Err(code),
    };
    let mut codes = committed.as_deref().unwrap_or_default().iter();
    let mut response = TxnOffsetCommitResponse::default();
    for (topic, refused) in asked.topics.iter().zip(&refused) {
        let mut answered = TxnOffsetCommitResponseTopic::default().with_name(topic.name.clone());
        for partition in &topic.partitions {
            let code = match &committed {
                Err(code) => Some(*code),
                Ok(_) if refused.is_none() && !may_be(partition.partition_index) => {
                    Some(ErrorCode::UnknownTopicOrPartition)
                }
                Ok(_) if refused.is_some() => *refused,
                Ok(_) => codes
                    .next()
                    .copied()
                    .unwrap_or(Some(ErrorCode::UnknownServerError)),
            };
            let code = code.map_or(0, |code| code.code());
            session.count_error(request, code);
            let answer = TxnOffsetCommitResponsePartition::default()
                .with_partition_index(partition.partition_index)
                .with_error_code(code);
            answered.partitions.push(answer);
        }
        response.topics.push(answered);
    }
    Ok(Writer::message(request, &response)?)
}

/// Commits what is not refused; a code for each offset of those topics, in order.
async fn commit(
    session: &Session,
    asked: &TxnOffsetCommitRequest,
    refused_topics: &[Option<ErrorCode>],
) -> Result<Codes, ErrorCode> {
    let topics = asked.topics.iter();
    if !are_few(topics.map(|topic| (topic.name.len(), topic.partitions.len()))) {
        return Err(ErrorCode::InvalidCommitOffsetSize);
    }
    let producer = Identity {
        producer_id: asked.producer_id.0,
        epoch: asked.producer_epoch,
    };
    let inner = &session.kafka.inner;
    let id = asked.transactional_id.to_string();
    let shown = inner
        .transactions
        .verify_group(id, producer, &asked.group_id);
    let transaction = shown
        .await
        .map_err(|error| errors::not_shown_offsets(&error))?;
    let allowed = asked.topics.iter().zip(refused_topics);
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
    let request = TransactionCommit {
        member: MemberRef {
            group: asked.group_id.to_string(),
            generation: asked.generation_id,
            member: asked.member_id.to_string(),
            instance: instance.map(ToString::to_string),
        },
        producer_id: producer.producer_id,
        epoch: producer.epoch,
        transaction,
        offsets: each.collect(),
    };
    let committed = inner.groups.commit_in_transaction(request).await;
    let outcomes = committed.map_err(|error| refused(&error))?;
    let codes = outcomes
        .into_iter()
        .map(|outcome| outcome.err().map(|error| refused(&error)));
    Ok(codes.collect())
}

/// The code of a refusal. Producers end on codes that only consumers know, and begin anew on that of
/// an old generation.
fn refused(error: &GroupError) -> ErrorCode {
    match error {
        GroupError::StaleEpoch | GroupError::FencedEpoch => ErrorCode::IllegalGeneration,
        error => errors::group(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Java's producer does with a code: it looks for the coordinator again, tries again, or
    /// aborts and goes on. After any other it is of no more use.
    #[test]
    fn what_may_happen_to_a_member_does_not_end_its_producer() {
        let passing = [
            GroupError::NotCoordinator { node: None },
            GroupError::Loading,
            GroupError::Unavailable(""),
            GroupError::Unknown,
            GroupError::UnknownMember,
            GroupError::IllegalGeneration,
            GroupError::StaleEpoch,
            GroupError::FencedEpoch,
            GroupError::FencedInstance,
            GroupError::UnknownTopic,
        ];
        for error in passing {
            let code = refused(&error).code();
            assert!(
                [15, 16, 7, 14, 3, 25, 22, 82].contains(&code),
                "{error:?}: {code}"
            );
        }
        for error in [GroupError::ProducerFenced, GroupError::MetadataTooLarge] {
            assert_eq!(refused(&error), errors::group(&error), "{error:?}");
        }
    }
}
