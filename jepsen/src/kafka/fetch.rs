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
use trilog_model::batch::{BatchError, BatchHeader};

use super::client::{Client, PAUSE, Seen};
use super::code;
use super::conn::{Fault, text};
use super::produce::{REQUEST, value_of};
use crate::history::{Key, Record};

/// How much of one key comes at a time.
const KEY_BYTES: i32 = 96 << 10;
/// Of readers of all that is committed by replicas, and of transactions that are committed.
pub const UNCOMMITTED: i8 = 0;
const COMMITTED: i8 = 1;
/// How much memory a batch may take when it is read.
const BATCH_BYTES: usize = 16 << 20;

/// What came of one key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Fetched {
    pub records: Vec<Record>,
    /// Where to go on.
    pub next: u64,
    /// Why what came then is not what was written. In its place the last of the records has a value
    /// that nobody sends: a node must not serve such a thing, whoever finds out in the end.
    pub damaged: Option<String>,
}

impl Fetched {
    fn damage(&mut self, error: &dyn std::error::Error) {
        let after = self.records.last().map_or(0, |last| last.offset + 1);
        self.records.push(Record {
            offset: self.next.max(after),
            value: value_of(None),
        });
        self.damaged = Some(format!("what was fetched is damaged: {error}"));
    }
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
            for part in answer.responses.iter().flat_map(|topic| &topic.partitions) {
                let Ok(key) = u32::try_from(part.partition_index).map(Key) else {
                    continue;
                };
                let Some(offset) = from.get(&key) else {
                    continue;
                };
                if self.take(key, part, preferred)? {
                    fetched.insert(key, settled(part, *offset));
                    if let Ok(high_watermark) = u64::try_from(part.high_watermark) {
                        self.saw(key, node, high_watermark, began);
                    }
                }
            }
        }
        Ok(fetched)
    }

    /// Keeps what a node said, if it is known in which of its lives.
    fn saw(&mut self, key: Key, node: u32, high_watermark: u64, began: Instant) {
        self.seen.extend(self.boot(node).map(|boot| Seen {
            key,
            node,
            boot,
            high_watermark,
            began,
        }));
    }

    /// How far a key is committed as one replica knows it, whoever leads; an error if it does not
    /// hold all before `from`, or does not serve.
    pub async fn replica_end(&mut self, node: u32, key: Key, from: u64) -> Result<u64, Fault> {
        // Followers serve those who say where they are.
        let request = self.request(&[(key, from)].into(), Some("elsewhere"), Duration::ZERO);
        let answer: Result<FetchResponse, Fault> =
            self.ask(node, ApiKey::Fetch, 12, &request, REQUEST).await;
        let answer = answer.map_err(Fault::certain)?;
        let mut parts = answer.responses.iter().flat_map(|topic| &topic.partitions);
        match parts.next() {
            Some(part) if part.error_code == 0 => u64::try_from(part.high_watermark)
                .map_err(|_| Fault::Not("no high watermark".to_owned())),
            part => {
                let code = part.map_or(answer.error_code, |part| part.error_code);
                Err(Fault::Not(format!("Fetch: {code}")))
            }
        }
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
            .with_isolation_level(COMMITTED)
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
            for (isolation, end) in [(COMMITTED, &mut stable), (UNCOMMITTED, &mut all)] {
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
            let began = Instant::now();
            let answer: Result<ListOffsetsResponse, Fault> = self
                .ask(leader, ApiKey::ListOffsets, 5, &request, REQUEST)
                .await;
            let why = match answer {
                Ok(answer) => {
                    let mut told = answer.topics.iter().flat_map(|topic| &topic.partitions);
                    match told.next() {
                        Some(told) if told.error_code == 0 => {
                            let end = u64::try_from(told.offset).unwrap_or(0);
                            if isolation == UNCOMMITTED {
                                self.saw(key, leader, end, began);
                            }
                            return Ok(end);
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

/// The records of what was fetched that count, as a stock consumer finds them, up to what is damaged.
fn settled(part: &PartitionData, from: u64) -> Fetched {
    let mut fetched = Fetched {
        next: from,
        ..Fetched::default()
    };
    let mut aborted: Vec<AbortedTransaction> =
        part.aborted_transactions.clone().unwrap_or_default();
    aborted.sort_by_key(|one| std::cmp::Reverse(one.first_offset));
    let mut aborting: BTreeSet<i64> = BTreeSet::new();
    let mut rest = part.records.clone().unwrap_or_default();
    while !rest.is_empty() {
        let header = match BatchHeader::parse(&rest) {
            Ok(header) if header.batch_len() <= rest.len() => header,
            // The last batch may be there in part, and even its header.
            Ok(_) | Err(BatchError::Incomplete) => break,
            Err(error) => {
                fetched.damage(&error);
                break;
            }
        };
        let batch = rest.split_to(header.batch_len());
        if let Err(error) = header.check_crc(&batch) {
            fetched.damage(&error);
            break;
        }
        // Where it lies is not under its checksum.
        let last = header
            .base_offset
            .saturating_add(header.last_offset_delta.into());
        while let Some(one) = aborted.pop_if(|one| one.first_offset <= last) {
            aborting.insert(one.producer_id.0);
        }
        let next = u64::try_from(last.saturating_add(1)).unwrap_or(0);
        let transactional = header.attributes.is_transactional();
        if header.attributes.is_control() {
            // A marker ends what is aborted; the next transaction may be another matter.
            aborting.remove(&header.producer_id);
        } else if !(transactional && aborting.contains(&header.producer_id))
            && next > from
            && let Err(error) = collect(&header, &batch, from, &mut fetched.records)
        {
            fetched.damage(&*error);
            break;
        }
        fetched.next = fetched.next.max(next);
    }
    fetched
}

fn collect(
    header: &BatchHeader,
    batch: &Bytes,
    from: u64,
    out: &mut Vec<Record>,
) -> Result<(), Box<dyn std::error::Error>> {
    let records = header.records(batch, BATCH_BYTES)?;
    for record in &records {
        let record = record?;
        let offset = header
            .base_offset
            .saturating_add(record.offset_delta.into());
        let offset = u64::try_from(offset).unwrap_or(0);
        if offset >= from {
            let value = value_of(record.value);
            out.push(Record { offset, value });
        }
    }
    Ok(())
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
        let found = settled(&part, 10);
        let kept: Vec<_> = found.records.iter().map(|r| (r.offset, r.value)).collect();
        assert_eq!(kept, [(11, 2), (13, 3)]);
        assert_eq!((found.next, found.damaged), (14, None));
        assert_eq!(settled(&part, 12).records.len(), 1);
    }

    #[test]
    fn what_is_cut_off_is_not_there_yet_and_what_is_whole_and_wrong_is_nobodys() {
        let log = [batch(10, 7, 1), batch(11, 7, 2)];
        let (one, all) = (log[0].len(), log.concat());
        let read = |bytes: &[u8]| {
            let bytes = bytes::Bytes::copy_from_slice(bytes);
            settled(&PartitionData::default().with_records(Some(bytes)), 10)
        };
        // An answer may end anywhere.
        for cut in 0..all.len() {
            let found = read(&all[..cut]);
            assert_eq!(found.damaged, None, "{cut}");
            assert_eq!(found.records.len(), usize::from(cut >= one), "{cut}");
        }
        assert_eq!(read(&all).records.len(), 2);
        // Neither where a batch lies nor its term is under its checksum, and a length that is wrong
        // may look like that of a batch that is cut off.
        for at in 16..all.len() - one {
            let mut bad = all.clone();
            bad[one + at] ^= 0x10;
            let found = read(&bad);
            assert!(found.damaged.is_some(), "{at}");
            let nobodys = Record {
                offset: 11,
                value: value_of(None),
            };
            assert_eq!(found.records[1..], [nobodys], "{at}");
            // It is read again, by whoever goes on.
            assert_eq!(found.next, 11, "{at}");
        }
    }
}
