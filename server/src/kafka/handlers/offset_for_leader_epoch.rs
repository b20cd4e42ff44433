//! OffsetForLeaderEpoch: where an epoch's records end, for readers that check, after a change of
//! leader, whether what they have read is still there.

use trilog_model::Term;
use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::offset_for_leader_epoch_request::OffsetForLeaderPartition;
use trilog_wire::kafka::messages::offset_for_leader_epoch_response::{
    EpochEndOffset, OffsetForLeaderTopicResult,
};
use trilog_wire::kafka::messages::{OffsetForLeaderEpochRequest, OffsetForLeaderEpochResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use crate::kafka::conn::Ended;
use crate::kafka::session::{Session, leader_epoch};

/// No epoch and no offset.
const UNDEFINED: i32 = -1;

pub(super) fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: OffsetForLeaderEpochRequest = decode(request)?;
    let mut response = OffsetForLeaderEpochResponse::default();
    for topic in asked.topics {
        let mut answered = OffsetForLeaderTopicResult::default().with_topic(topic.topic.clone());
        for partition in &topic.partitions {
            let found = find(session, &topic.topic, partition).unwrap_or_else(|code| {
                session.count_error(request, code.code());
                undefined().with_error_code(code.code())
            });
            answered
                .partitions
                .push(found.with_partition(partition.partition));
        }
        response.topics.push(answered);
    }
    Ok(Writer::message(request, &response)?)
}

fn undefined() -> EpochEndOffset {
    EpochEndOffset::default()
        .with_leader_epoch(UNDEFINED)
        .with_end_offset(i64::from(UNDEFINED))
}

fn find(
    session: &mut Session,
    topic: &str,
    asked: &OffsetForLeaderPartition,
) -> Result<EpochEndOffset, ErrorCode> {
    session
        .check_often(Operation::Describe, topic)
        .or_else(|code| {
            session
                .check_cluster(Operation::ClusterAction)
                .map_err(|_| code)
        })?;
    // Followers do not answer, for they may not know yet what their leader does.
    let target = session.led_at(topic, asked.partition, asked.current_leader_epoch)?;
    let partition = target.partition;
    let current = leader_epoch(&partition);
    let Ok(wanted) = u64::try_from(asked.leader_epoch) else {
        return Ok(undefined());
    };
    // An epoch that has yet to come has no end.
    if asked.leader_epoch > current {
        return Ok(undefined());
    }
    let end = match partition.epoch_end(Term(wanted)) {
        Some((term, end)) => EpochEndOffset::default()
            .with_leader_epoch(i32::try_from(term.get()).unwrap_or(i32::MAX))
            .with_end_offset(end.get().cast_signed()),
        None => undefined(),
    };
    Ok(end)
}
