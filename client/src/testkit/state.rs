//! What all nodes of the fake cluster know: topics, records, and what is to go wrong.

use std::collections::BTreeMap;

use bytes::Bytes;
use rand::Rng;
use rand::rngs::SmallRng;
use trilog_model::batch::BatchHeader;
use trilog_wire::v1::{self, Error, ErrorCode};

use super::partition::{Partition, StoredBatch};

/// How often, in a thousand, each thing goes wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// A produce request is refused although the node leads.
    pub refuse: u32,
    /// The same, for want of room on its disk.
    pub disk_full: u32,
    /// A batch is appended, and then its stream breaks before the answer.
    pub lose_answer: u32,
    /// A stream breaks before a batch is appended.
    pub break_stream: u32,
    /// A batch is answered as of unknown outcome: appended or not.
    pub unsure: u32,
    /// The leader moves to another node.
    pub move_leader: u32,
    /// A fetch stream breaks after a response.
    pub break_fetch: u32,
}

impl Faults {
    pub fn all(rate: u32) -> Self {
        Self {
            refuse: rate,
            disk_full: rate,
            lose_answer: rate,
            break_stream: rate,
            unsure: rate,
            move_leader: rate,
            break_fetch: rate,
        }
    }
}

#[derive(Debug)]
pub(super) struct Topic {
    pub(super) id: Bytes,
    pub(super) partitions: Vec<Partition>,
}

#[derive(Debug)]
pub(super) struct State {
    pub(super) addresses: Vec<String>,
    pub(super) topics: BTreeMap<String, Topic>,
    pub(super) faults: Faults,
    pub(super) rng: SmallRng,
    pub(super) next_producer_id: i64,
    pub(super) time: u64,
    /// Batches refused, lost or broken so far.
    pub(super) injected: u64,
}

impl State {
    pub(super) fn create(&mut self, name: &str, partitions: u32) {
        self.time += 1;
        let nodes = u32::try_from(self.addresses.len()).expect("few");
        let partition = |place: u32| Partition {
            leader: place % nodes + 1,
            term: 1,
            log_start: 0,
            batches: Vec::new(),
            producers: BTreeMap::new(),
        };
        let topic = Topic {
            id: Bytes::from(self.time.to_be_bytes().repeat(2)),
            partitions: (0..partitions).map(partition).collect(),
        };
        self.topics.insert(name.to_owned(), topic);
    }

    pub(super) fn strikes(&mut self, rate: u32) -> bool {
        let strikes = self.rng.random_range(0..1_000) < rate;
        self.injected += u64::from(strikes);
        strikes
    }

    pub(super) fn partition(
        &mut self,
        topic: &str,
        partition: u32,
    ) -> Result<&mut Partition, Error> {
        let known = self.topics.get_mut(topic);
        let topic = known.ok_or_else(|| Error::new(ErrorCode::UnknownTopic, "no such topic"))?;
        let place = usize::try_from(partition).expect("64 bits");
        let known = topic.partitions.get_mut(place);
        known.ok_or_else(|| Error::new(ErrorCode::UnknownPartition, "no such partition"))
    }

    pub(super) fn led_by(
        &mut self,
        node: u32,
        topic: &str,
        number: u32,
    ) -> Result<&mut Partition, Error> {
        let addresses = self.addresses.clone();
        let partition = self.partition(topic, number)?;
        if partition.leader == node {
            return Ok(partition);
        }
        let mut error = Error::new(ErrorCode::NotLeader, "another node leads");
        // Some nodes know who, some do not.
        if partition.term % 2 == 0 && partition.leader != 0 {
            let place = usize::try_from(partition.leader).expect("64 bits") - 1;
            error = error.with_leader(v1::Leader {
                node: partition.leader,
                address: addresses[place].clone(),
                term: partition.term,
            });
        }
        Err(error)
    }

    pub(super) fn append(
        &mut self,
        topic: &str,
        partition: u32,
        batch: Bytes,
    ) -> Result<(u64, u64), Error> {
        let header = BatchHeader::validate(&batch)
            .map_err(|error| Error::new(ErrorCode::CorruptBatch, error.to_string()))?;
        self.time += 1_000_000;
        let append_time = self.time;
        let partition = self.partition(topic, partition)?;
        let next = partition.high_watermark();
        if header.is_idempotent()
            && let Some(first_place) = partition.judge(&header, next)?
        {
            return Ok((first_place, append_time));
        }
        let count = u64::try_from(header.record_count).expect("validated");
        partition.batches.push(StoredBatch {
            bytes: batch,
            base_offset: next,
            next_offset: next + count,
            append_time,
            max_timestamp: header.max_timestamp,
        });
        Ok((next, append_time))
    }

    pub(super) fn move_leader(&mut self, topic: &str, partition: u32) {
        let nodes = u32::try_from(self.addresses.len()).expect("few");
        let node = self.rng.random_range(1..=nodes);
        if let Ok(partition) = self.partition(topic, partition) {
            partition.leader = node;
            partition.term += 1;
        }
    }
}

impl State {
    pub(super) fn describe(&self, name: &str) -> v1::DescribedTopic {
        let result = match self.topics.get(name) {
            None => v1::described_topic::Result::Error(
                Error::new(ErrorCode::UnknownTopic, format!("no topic '{name}'"))
                    .with_hint("create it first"),
            ),
            Some(topic) => {
                let partition = |(number, partition): (u32, &Partition)| v1::PartitionDescription {
                    partition: number,
                    leader: partition.leader,
                    term: partition.term,
                    ..v1::PartitionDescription::default()
                };
                v1::described_topic::Result::Topic(v1::TopicDescription {
                    name: name.to_owned(),
                    id: topic.id.clone(),
                    partitions: (0..).zip(&topic.partitions).map(partition).collect(),
                    ..v1::TopicDescription::default()
                })
            }
        };
        v1::DescribedTopic {
            name: name.to_owned(),
            result: Some(result),
        }
    }
}
