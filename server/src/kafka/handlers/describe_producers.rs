//! DescribeProducers: who writes to a partition, and whose transaction is open there. Any replica
//! tells what it knows of that, as at a broker: tools may ask all that a node holds.

use std::collections::BTreeSet;

use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::describe_producers_response::{
    PartitionResponse, ProducerState, TopicResponse,
};
use trilog_wire::kafka::messages::{
    DescribeProducersRequest, DescribeProducersResponse, ProducerId,
};
use trilog_wire::kafka::{Answer, Request, Writer, decode};

use crate::kafka::conn::Ended;
use crate::kafka::session::Session;
use crate::partition::ActiveProducer;

/// Producers of one answer at most; the partitions after them answer as if they had none.
const MAX_PRODUCERS: usize = 200_000;

pub(super) fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: DescribeProducersRequest = decode(request)?;
    let mut response = DescribeProducersResponse::default();
    let mut left = MAX_PRODUCERS;
    // Each once: a short request would have a very long answer otherwise.
    let mut seen = BTreeSet::new();
    for topic in asked.topics {
        let mut answered = TopicResponse::default().with_name(topic.name.clone());
        for index in topic.partition_indexes {
            if !seen.insert((topic.name.clone(), index)) {
                continue;
            }
            let answer = PartitionResponse::default().with_partition_index(index);
            let checked = session.check_topic(Operation::Read, &topic.name);
            let answer = match checked.and_then(|()| session.replica(&topic.name, index)) {
                Ok(target) => {
                    let producers = target.partition.producers(left);
                    left -= producers.len();
                    answer.with_active_producers(producers.iter().map(described).collect())
                }
                Err(code) => {
                    session.count_error(request, code.code());
                    answer.with_error_code(code.code())
                }
            };
            answered.partitions.push(answer);
        }
        response.topics.push(answered);
    }
    Ok(Writer::message(request, &response)?)
}

fn described(producer: &ActiveProducer) -> ProducerState {
    let start = producer
        .open_since
        .map_or(-1, |first| first.get().cast_signed());
    ProducerState::default()
        .with_producer_id(ProducerId(producer.producer_id))
        .with_producer_epoch(i32::from(producer.epoch))
        .with_last_sequence(producer.last_sequence.unwrap_or(-1))
        .with_last_timestamp(producer.last_time.as_millis())
        .with_coordinator_epoch(producer.coordinator_epoch.unwrap_or(-1))
        .with_current_txn_start_offset(start)
}
