//! Sending values: one record each, by an idempotent producer, tried again until its fate is known
//! or time is up.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiKey, InitProducerIdRequest, InitProducerIdResponse, ProduceRequest, ProduceResponse,
    ProducerId, TransactionalId,
};
use tokio::time::{Instant, sleep};
use trilog_model::batch::{BatchBuilder, Compression, ProducerState};

use super::client::{Client, PAUSE};
use super::code;
use super::conn::{Fault, text};
use crate::history::Key;

/// How long one request may take.
pub(super) const REQUEST: Duration = Duration::from_secs(3);
/// What follows a value of a record at most.
const PADDING_MAX: u64 = 1_200;

/// Who a producer is, and where it stands in each key.
#[derive(Debug, Clone)]
pub struct Identity {
    pub id: i64,
    pub epoch: i16,
    pub sequences: BTreeMap<Key, i32>,
}

/// A record's bytes: the value, and what follows from it, hard to compress and of any length.
pub fn payload(value: u64) -> Bytes {
    let mut state = value.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let words = next() % (PADDING_MAX / 8);
    let mut bytes = BytesMut::new();
    bytes.put_u64(value);
    for _ in 0..words {
        bytes.put_u64(next());
    }
    bytes.freeze()
}

/// The value that a record's bytes are of. Bytes that are of none are given a value that nobody
/// sends, so that checkers tell that it was never written.
pub fn value_of(bytes: Option<&[u8]>) -> u64 {
    const NOBODYS: u64 = 1 << 62;
    let first = bytes.and_then(|bytes| bytes.first_chunk());
    let value = first.map(|first| u64::from_be_bytes(*first));
    match (value, bytes) {
        (Some(value), Some(bytes)) if payload(value) == bytes => value,
        _ => NOBODYS | value.unwrap_or(0),
    }
}

/// A value on its way, and the time that its record bears.
struct Sent {
    key: Key,
    value: u64,
    at: i64,
}

/// What one attempt to append came to.
enum Attempt {
    Done(u64),
    /// Not appended; another node may lead.
    Elsewhere(String),
    /// Perhaps appended.
    Unknown(String),
    /// Not appended, and never will be.
    Refused(String),
}

impl Client {
    /// Becomes a producer; with a transactional id the one that owns it.
    pub async fn init_producer(
        &mut self,
        transactional: Option<&str>,
        txn_timeout: Duration,
        deadline: Instant,
    ) -> Result<Identity, Fault> {
        let timeout = i32::try_from(txn_timeout.as_millis()).unwrap_or(i32::MAX);
        let request = InitProducerIdRequest::default()
            .with_transactional_id(transactional.map(|id| TransactionalId(text(id))))
            .with_transaction_timeout_ms(timeout)
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1);
        loop {
            let node = match transactional {
                Some(id) => self.coordinator(id, 1, deadline).await?,
                None => self.any(),
            };
            let answer: Result<InitProducerIdResponse, Fault> = self
                .ask(node, ApiKey::InitProducerId, 4, &request, REQUEST)
                .await;
            let why = match answer {
                Ok(answer) if answer.error_code == 0 => {
                    return Ok(Identity {
                        id: answer.producer_id.0,
                        epoch: answer.producer_epoch,
                        sequences: BTreeMap::new(),
                    });
                }
                Ok(answer) => format!("InitProducerId: {}", answer.error_code),
                Err(fault) => fault.text().to_owned(),
            };
            if Instant::now() >= deadline {
                return Err(Fault::Not(why));
            }
            sleep(PAUSE).await;
        }
    }

    /// Appends a value; its offset. What is unknown may still be appended later; the sequence is
    /// used up only when it was.
    pub async fn send(
        &mut self,
        identity: &mut Identity,
        transactional: Option<&str>,
        (key, value): (Key, u64),
        deadline: Instant,
    ) -> Result<u64, Fault> {
        let sequence = identity.sequences.get(&key).copied().unwrap_or(0);
        let producer = ProducerState {
            id: identity.id,
            epoch: identity.epoch,
            sequence,
        };
        let sent = Sent {
            key,
            value,
            at: self.now_millis(),
        };
        let request = produce(&self.topic, transactional, &sent, producer)?;
        let mut unknown = None;
        loop {
            let leader = self.find_leader(key, deadline).await;
            let attempt = match leader {
                Ok(leader) => self.append(leader, key, &request).await,
                Err(fault) => Attempt::Elsewhere(fault.text().to_owned()),
            };
            let why = match attempt {
                Attempt::Done(offset) => {
                    identity
                        .sequences
                        .insert(key, sequence.wrapping_add(1) & i32::MAX);
                    return Ok(offset);
                }
                // What an earlier attempt did is not undone by this.
                Attempt::Refused(why) => return Err(fate(unknown, why)),
                Attempt::Elsewhere(why) => why,
                Attempt::Unknown(why) => {
                    unknown = Some(why.clone());
                    why
                }
            };
            if Instant::now() >= deadline {
                return Err(fate(unknown, why));
            }
            self.doubt(key);
            sleep(PAUSE).await;
        }
    }

    async fn append(&mut self, leader: u32, key: Key, request: &ProduceRequest) -> Attempt {
        let answer: Result<ProduceResponse, Fault> =
            self.ask(leader, ApiKey::Produce, 9, request, REQUEST).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(Fault::Not(why)) => return Attempt::Elsewhere(why),
            Err(Fault::Unknown(why)) => return Attempt::Unknown(why),
        };
        let mut told = answer
            .responses
            .iter()
            .flat_map(|topic| &topic.partition_responses);
        let Some(told) = told.find(|told| u32::try_from(told.index) == Ok(key.0)) else {
            return Attempt::Unknown("the answer left the partition out".to_owned());
        };
        let why = format!("Produce: {}", told.error_code);
        match told.error_code {
            0 => u64::try_from(told.base_offset).map_or_else(
                |_| Attempt::Unknown("acknowledged without an offset".to_owned()),
                Attempt::Done,
            ),
            code::UNKNOWN_TOPIC_OR_PARTITION
            | code::LEADER_NOT_AVAILABLE
            | code::NOT_LEADER_OR_FOLLOWER
            | code::COORDINATOR_LOAD_IN_PROGRESS
            | code::COORDINATOR_NOT_AVAILABLE
            | code::NOT_COORDINATOR
            | code::CONCURRENT_TRANSACTIONS
            | code::KAFKA_STORAGE_ERROR => Attempt::Elsewhere(why),
            code::REQUEST_TIMED_OUT | code::NOT_ENOUGH_REPLICAS_AFTER_APPEND => {
                Attempt::Unknown(why)
            }
            // A producer that does not know what became of something is used no more, so this one
            // is in sequence: what the key knew of it is lost.
            code::OUT_OF_ORDER_SEQUENCE_NUMBER | code::UNKNOWN_PRODUCER_ID => {
                let key = key.0;
                self.complaints.tell(format!(
                    "node {leader} has lost where a producer stood in key {key} ({why})"
                ));
                Attempt::Refused(why)
            }
            _ => Attempt::Refused(why),
        }
    }
}

/// What is known after the last attempt, if an earlier one may have succeeded.
fn fate(unknown: Option<String>, why: String) -> Fault {
    match unknown {
        Some(before) => Fault::Unknown(format!("{why}, after {before}")),
        None => Fault::Not(why),
    }
}

fn produce(
    topic: &kafka_protocol::messages::TopicName,
    transactional: Option<&str>,
    sent: &Sent,
    producer: ProducerState,
) -> Result<ProduceRequest, Fault> {
    let mut batch = BatchBuilder::new(Compression::None);
    batch.set_producer(producer);
    if transactional.is_some() {
        batch.set_transactional();
    }
    let unbuilt = |error: trilog_model::batch::BuildError| Fault::Not(error.to_string());
    batch
        .push(sent.at, None, Some(&payload(sent.value)), &[])
        .map_err(unbuilt)?;
    let records = batch.build().map_err(unbuilt)?;
    let partition = PartitionProduceData::default()
        .with_index(sent.key.0.cast_signed())
        .with_records(Some(records));
    let topic = TopicProduceData::default()
        .with_name(topic.clone())
        .with_partition_data(vec![partition]);
    Ok(ProduceRequest::default()
        .with_transactional_id(transactional.map(|id| TransactionalId(text(id))))
        .with_acks(-1)
        .with_timeout_ms(i32::try_from(REQUEST.as_millis()).unwrap_or(i32::MAX))
        .with_topic_data(vec![topic]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_back_and_what_was_changed_is_nobodys() {
        for value in (0..2_000).chain([u64::MAX >> 3]) {
            let bytes = payload(value);
            assert_eq!(value_of(Some(&bytes)), value);
            let mut bad = bytes.to_vec();
            let place = usize::try_from(value).unwrap() % bad.len();
            bad[place] ^= 0x10;
            assert_ne!(value_of(Some(&bad)), value);
            assert!(value_of(Some(&bad)) >= 1 << 62);
        }
        assert!(value_of(None) >= 1 << 62);
    }
}
