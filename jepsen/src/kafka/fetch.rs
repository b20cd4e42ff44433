//! Reading: what stands in keys from given offsets on, of committed transactions alone, from
//! leaders or from followers that a leader sent to.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::fetch_response::{AbortedTransaction, PartitionData};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::{
    ApiKey, BrokerId, FetchRequest, FetchResponse, ListOffsetsRequest, ListOffsetsResponse,
};
use kafka_protocol::protocol::StrBytes;
use tokio::time::{Instant, sleep};
use trilog_model::batch::BatchHeader;

use super::client::{Client, PAUSE, Seen};
use super::code;
use super::conn::{Fault, text};
use super::produce::{REQUEST, value_of};
use crate::history::{Key, Record};

/// How much of one key comes at a time.
const KEY_BYTES: i32 = 96 << 10;
/// How much memory a batch may take when it is read.
const BATCH_BYTES: usize = 16 << 20;

/// What came of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fetched {
    pub records: Vec<Record>,
    /// Where to go on.
    pub next: u64,
}

/// Which replicas somebody reads from who is in a rack; none is the leader.
pub(super) type Preferred = BTreeMap<Key, u32>;

impl Client {
    /// Reads on from each of these offsets, from whoever has them. A key that cannot be read now
    /// is left out. `wait` is how long a node may wait for something to come.
    pub async fn fetch(
        &mut self,
        from: &BTreeMap<Key, u64>,
        rack: Option<&str>,
        preferred: &mut BTreeMap<Key, u32>,
        wait: Duration,
    ) -> Result<BTreeMap<Key, Fetched>, Fault> {
        let mut by_node: BTreeMap<u32, BTreeMap<Key, u64>> = BTreeMap::new();
        if from.keys().any(|key| self.leader(*key).is_none()) {
            let _ = self.refresh().await;
        }
        for (key, offset) in from {
            let node = preferred.get(key).copied().or_else(|| self.leader(*key));
            if let Some(node) = node {
                by_node.entry(node).or_default().insert(*key, *offset);
            }
        }
        let mut fetched = BTreeMap::new();
        for (node, from) in by_node {
            let began = Instant::now();
            let request = self.request(&from, rack, wait);
            let answer: Result<FetchResponse, Fault> = self
                .ask(node, ApiKey::Fetch, 12, &request, wait + REQUEST)
                .await;
            let Ok(answer) = answer else {
                for key in from.keys() {
                    self.doubt(*key);
                    preferred.remove(key);
                }
                continue;
            };
            let boot = self.boot(node);
            for part in answer.responses.iter().flat_map(|topic| &topic.partitions) {
                let Ok(key) = u32::try_from(part.partition_index).map(Key) else {
                    continue;
                };
                let Some(offset) = from.get(&key) else {
                    continue;
                };
                if self.take(key, part, preferred)? {
                    let settled = settled(part, *offset)?;
                    fetched.insert(key, settled);
                    if let (Some(boot), Ok(high_watermark)) =
                        (boot, u64::try_from(part.high_watermark))
                    {
                        self.seen.push(Seen {
                            key,
                            node,
                            boot,
                            high_watermark,
                            began,
                        });
                    }
                }
            }
        }
        Ok(fetched)
    }

    fn request(
        &self,
        from: &BTreeMap<Key, u64>,
        rack: Option<&str>,
        wait: Duration,
    ) -> FetchRequest {
        let partitions = from.iter().map(|(key, offset)| {
            FetchPartition::default()
                .with_partition(key.0.cast_signed())
                .with_fetch_offset(offset.cast_signed())
                .with_current_leader_epoch(-1)
                .with_partition_max_bytes(KEY_BYTES)
        });
        let topic = FetchTopic::default()
            .with_topic(self.topic.clone())
            .with_partitions(partitions.collect());
        FetchRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_max_wait_ms(i32::try_from(wait.as_millis()).unwrap_or(i32::MAX))
            .with_min_bytes(1)
            .with_max_bytes(1 << 20)
            .with_isolation_level(1)
            .with_session_id(0)
            .with_session_epoch(-1)
            .with_topics(vec![topic])
            .with_rack_id(rack.map_or(StrBytes::default(), text))
    }

    /// Whether an answer has something to say of a key; otherwise where to ask next is noted.
    fn take(
        &mut self,
        key: Key,
        part: &PartitionData,
        preferred: &mut Preferred,
    ) -> Result<bool, Fault> {
        match part.error_code {
            0 => {}
            code::OFFSET_OUT_OF_RANGE => {
                preferred.remove(&key);
                return Err(Fault::Not(format!("key {} has no such offset", key.0)));
            }
            _ => {
                self.doubt(key);
                preferred.remove(&key);
                return Ok(false);
            }
        }
        if let Ok(node) = u32::try_from(part.preferred_read_replica.0) {
            preferred.insert(key, node);
            return Ok(false);
        }
        Ok(true)
    }

    /// Where each of these keys ends: what readers of committed transactions see of it, and all.
    pub async fn ends(
        &mut self,
        keys: &[Key],
        deadline: Instant,
    ) -> Result<BTreeMap<Key, (u64, u64)>, Fault> {
        let mut ends = BTreeMap::new();
        for key in keys {
            let (mut stable, mut all) = (None, None);
            for (isolation, end) in [(1, &mut stable), (0, &mut all)] {
                *end = Some(self.end(*key, isolation, deadline).await?);
            }
            if let (Some(stable), Some(all)) = (stable, all) {
                ends.insert(*key, (stable, all));
            }
        }
        Ok(ends)
    }

    /// Where a key ends for readers of this isolation.
    pub async fn end(&mut self, key: Key, isolation: i8, deadline: Instant) -> Result<u64, Fault> {
        let partition = ListOffsetsPartition::default()
            .with_partition_index(key.0.cast_signed())
            .with_timestamp(-1);
        let asked = ListOffsetsTopic::default()
            .with_name(self.topic.clone())
            .with_partitions(vec![partition]);
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_isolation_level(isolation)
            .with_topics(vec![asked]);
        loop {
            let leader = self.find_leader(key, deadline).await?;
            let answer: Result<ListOffsetsResponse, Fault> = self
                .ask(leader, ApiKey::ListOffsets, 5, &request, REQUEST)
                .await;
            let why = match answer {
                Ok(answer) => {
                    let mut told = answer.topics.iter().flat_map(|topic| &topic.partitions);
                    match told.next() {
                        Some(told) if told.error_code == 0 => {
                            return Ok(u64::try_from(told.offset).unwrap_or(0));
                        }
                        told => format!("ListOffsets: {:?}", told.map(|told| told.error_code)),
                    }
                }
                Err(fault) => fault.text().to_owned(),
            };
            if Instant::now() >= deadline {
                return Err(Fault::Not(why));
            }
            self.doubt(key);
            sleep(PAUSE).await;
        }
    }
}

/// The records of what was fetched that count, as a stock consumer finds them.
fn settled(part: &PartitionData, from: u64) -> Result<Fetched, Fault> {
    let mut fetched = Fetched {
        records: Vec::new(),
        next: from,
    };
    let mut aborted: Vec<AbortedTransaction> =
        part.aborted_transactions.clone().unwrap_or_default();
    aborted.sort_by_key(|one| std::cmp::Reverse(one.first_offset));
    let mut aborting: BTreeSet<i64> = BTreeSet::new();
    let mut rest = part.records.clone().unwrap_or_default();
    while !rest.is_empty() {
        // The last batch may be there in part.
        let Ok(header) = BatchHeader::parse(&rest) else {
            break;
        };
        if header.batch_len() > rest.len() {
            break;
        }
        let batch = rest.split_to(header.batch_len());
        header.check_crc(&batch).map_err(|error| damaged(&error))?;
        let last = header.base_offset + i64::from(header.last_offset_delta);
        while let Some(one) = aborted.pop_if(|one| one.first_offset <= last) {
            aborting.insert(one.producer_id.0);
        }
        let next = u64::try_from(last + 1).unwrap_or(0);
        let transactional = header.attributes.is_transactional();
        if header.attributes.is_control() {
            // A marker ends what is aborted; the next transaction may be another matter.
            aborting.remove(&header.producer_id);
        } else if !(transactional && aborting.contains(&header.producer_id)) && next > from {
            collect(&header, &batch, from, &mut fetched.records)?;
        }
        fetched.next = fetched.next.max(next);
    }
    Ok(fetched)
}

fn collect(
    header: &BatchHeader,
    batch: &Bytes,
    from: u64,
    out: &mut Vec<Record>,
) -> Result<(), Fault> {
    let records = header
        .records(batch, BATCH_BYTES)
        .map_err(|error| damaged(&error))?;
    for record in &records {
        let record = record.map_err(|error| damaged(&error))?;
        let offset = header.base_offset + i64::from(record.offset_delta);
        let offset = u64::try_from(offset).unwrap_or(0);
        if offset >= from {
            let value = value_of(record.value);
            out.push(Record { offset, value });
        }
    }
    Ok(())
}

fn damaged(error: &dyn std::error::Error) -> Fault {
    Fault::Not(format!("what was fetched is damaged: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kafka::payload;
    use kafka_protocol::messages::ProducerId;
    use trilog_model::batch::{BatchBuilder, Compression, ProducerState};

    /// A batch of one value of a producer's transaction, where it lies in the log.
    fn batch(offset: i64, producer: i64, value: u64) -> Vec<u8> {
        let mut batch = BatchBuilder::new(Compression::None);
        batch.set_transactional().set_producer(ProducerState {
            id: producer,
            epoch: 0,
            sequence: 0,
        });
        batch.push(1, None, Some(&payload(value)), &[]).unwrap();
        placed(&batch.build().unwrap(), offset)
    }

    fn placed(batch: &[u8], offset: i64) -> Vec<u8> {
        let mut bytes = batch.to_vec();
        bytes[..8].copy_from_slice(&offset.to_be_bytes());
        bytes
    }

    #[test]
    fn what_was_aborted_is_left_out_and_what_comes_after_is_not() {
        let mut control = BatchBuilder::new(Compression::None);
        control
            .set_transactional()
            .set_control()
            .set_producer(ProducerState {
                id: 7,
                epoch: 0,
                sequence: -1,
            });
        control
            .push(1, Some(&[0, 0, 0, 0]), Some(&[0, 0, 0, 0, 0, 0]), &[])
            .unwrap();
        let control = control.build().unwrap();
        let log = [
            batch(10, 7, 1),
            batch(11, 8, 2),
            placed(&control, 12),
            batch(13, 7, 3),
        ];
        let mut bytes = log.concat();
        bytes.extend(&batch(14, 9, 4)[..30]);
        let part = PartitionData::default()
            .with_records(Some(bytes.into()))
            .with_aborted_transactions(Some(vec![
                AbortedTransaction::default()
                    .with_producer_id(ProducerId(7))
                    .with_first_offset(10),
            ]));
        let found = settled(&part, 10).unwrap();
        let kept: Vec<_> = found.records.iter().map(|r| (r.offset, r.value)).collect();
        assert_eq!(kept, [(11, 2), (13, 3)]);
        assert_eq!(found.next, 14);
        assert_eq!(settled(&part, 12).unwrap().records.len(), 1);
    }
}
