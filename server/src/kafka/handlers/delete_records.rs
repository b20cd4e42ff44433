//! DeleteRecords: moves the log start of partitions led here.

use trilog_model::Offset;
use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::delete_records_response::{
    DeleteRecordsPartitionResult, DeleteRecordsTopicResult,
};
use trilog_wire::kafka::messages::{DeleteRecordsRequest, DeleteRecordsResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;

/// Everything that can be read now.
const TO_THE_END: i64 = -1;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: DeleteRecordsRequest = decode(request)?;
    let mut response = DeleteRecordsResponse::default();
    for topic in asked.topics {
        let mut answered = DeleteRecordsTopicResult::default().with_name(topic.name.clone());
        for partition in topic.partitions {
            let index = partition.partition_index;
            let mut result = DeleteRecordsPartitionResult::default().with_partition_index(index);
            match delete(session, &topic.name, index, partition.offset).await {
                Ok(start) => result.low_watermark = start.get().cast_signed(),
                Err(code) => {
                    session.count_error(request, code.code());
                    result.low_watermark = -1;
                    result.error_code = code.code();
                }
            }
            answered.partitions.push(result);
        }
        response.topics.push(answered);
    }
    Ok(Writer::message(request, &response)?)
}

async fn delete(
    session: &mut Session,
    topic: &str,
    index: i32,
    before: i64,
) -> Result<Offset, ErrorCode> {
    session.check_topic(Operation::Delete, topic)?;
    let partition = session.led(topic, index)?.partition;
    let end = partition.watch().borrow().offset;
    let before = match before {
        TO_THE_END => end,
        offset => u64::try_from(offset)
            .map(Offset)
            .ok()
            .filter(|offset| *offset <= end)
            .ok_or(ErrorCode::OffsetOutOfRange)?,
    };
    let start = partition.delete_before(before).await;
    start.map_err(|error| errors::append(&error).0)
}
