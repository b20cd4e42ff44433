//! ListOffsets: what a time, or a word for one, means as an offset now.

use trilog_model::Offset;
use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::list_offsets_request::ListOffsetsPartition;
use trilog_wire::kafka::messages::list_offsets_response::{
    ListOffsetsPartitionResponse, ListOffsetsTopicResponse,
};
use trilog_wire::kafka::messages::{ListOffsetsRequest, ListOffsetsResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::{Session, leader_epoch};
use crate::partition::Dated;

/// The isolation level of readers of transactions that are over.
const READ_COMMITTED: i8 = 1;
/// The end of what can be read.
const LATEST: i64 = -1;
/// The log start.
const EARLIEST: i64 = -2;
/// Where what is on this node's disk begins: all of it is.
const EARLIEST_LOCAL: i64 = -4;
/// The last record that is in other storage: none is.
const LATEST_TIERED: i64 = -5;
/// The first record with the latest time of all.
const MAX_TIMESTAMP: i64 = -3;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: ListOffsetsRequest = decode(request)?;
    let committed = asked.isolation_level == READ_COMMITTED;
    let mut response = ListOffsetsResponse::default();
    for topic in asked.topics {
        let mut answered = ListOffsetsTopicResponse::default().with_name(topic.name.clone());
        for partition in &topic.partitions {
            let index = partition.partition_index;
            let found = find(session, &topic.name, partition, committed, request.version).await;
            let found = found.unwrap_or_else(|code| {
                session.count_error(request, code.code());
                ListOffsetsPartitionResponse::default()
                    .with_error_code(code.code())
                    .with_timestamp(-1)
                    .with_offset(-1)
            });
            answered.partitions.push(found.with_partition_index(index));
        }
        response.topics.push(answered);
    }
    Ok(Writer::message(request, &response)?)
}

async fn find(
    session: &mut Session,
    topic: &str,
    asked: &ListOffsetsPartition,
    committed: bool,
    version: i16,
) -> Result<ListOffsetsPartitionResponse, ErrorCode> {
    session.check_often(Operation::Describe, topic)?;
    let target = session.led_at(topic, asked.partition_index, asked.current_leader_epoch)?;
    let partition = target.partition;
    let undated = |offset: Offset| {
        Some(Dated {
            offset,
            timestamp: -1,
        })
    };
    let found = match asked.timestamp {
        LATEST if committed => Ok(undated(partition.stable_offset())),
        LATEST => Ok(undated(partition.watch().borrow().offset)),
        EARLIEST => Ok(undated(partition.log_start())),
        EARLIEST_LOCAL if version >= 8 => Ok(undated(partition.log_start())),
        LATEST_TIERED if version >= 9 => Ok(None),
        MAX_TIMESTAMP if version >= 7 => partition.latest().await,
        millis if millis < 0 => return Err(ErrorCode::UnsupportedVersion),
        millis => partition.first_since(millis).await,
    };
    let mut found = found.map_err(|error| errors::read(&error))?;
    let bounds = [EARLIEST, EARLIEST_LOCAL, LATEST];
    if committed && !bounds.contains(&asked.timestamp) {
        // What is not settled cannot be read yet.
        let stable = partition.stable_offset();
        found = found.filter(|found| found.offset < stable);
    }
    let answer = ListOffsetsPartitionResponse::default();
    Ok(match found {
        Some(Dated { offset, timestamp }) => {
            let epoch = match version {
                4.. => leader_epoch(&partition),
                _ => -1,
            };
            answer
                .with_timestamp(timestamp)
                .with_offset(offset.get().cast_signed())
                .with_leader_epoch(epoch)
        }
        // No record is as late.
        None => answer.with_timestamp(-1).with_offset(-1),
    })
}
