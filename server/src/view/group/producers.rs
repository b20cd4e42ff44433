//! The newest epoch and the last ended transaction of each producer that committed offsets in
//! transactions here, so that one whose transaction was ended cannot open it again, and an end
//! that comes twice ends nothing else.

use std::collections::{BTreeMap, BTreeSet};

use trilog_model::Timestamp;

use super::command::ProducerRef;

/// The most producers remembered; beyond it the longest idle is forgotten.
const MAX_PRODUCERS: usize = 100_000;
/// A producer idle for so long is forgotten, as by data partitions.
const EXPIRY_NANOS: u64 = 24 * 3_600 * 1_000_000_000;

/// See the module's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Epochs {
    by_id: BTreeMap<i64, Newest>,
    by_time: BTreeSet<(Timestamp, i64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Newest {
    epoch: i32,
    /// The last transaction that ended; zero is none.
    ended: u64,
    time: Timestamp,
}

impl Epochs {
    /// Whether what the producer does now can only be about a transaction that is over.
    pub(super) fn is_over(&self, producer: &ProducerRef) -> bool {
        let known = self.by_id.get(&producer.producer_id);
        known.is_some_and(|newest| {
            let numbered = producer.transaction > 0;
            producer.epoch < newest.epoch || (numbered && producer.transaction <= newest.ended)
        })
    }

    pub(super) fn newest(&self, producer_id: i64) -> Option<i32> {
        self.by_id.get(&producer_id).map(|newest| newest.epoch)
    }

    /// The transaction named has ended.
    pub(super) fn end(&mut self, producer: &ProducerRef) {
        if let Some(newest) = self.by_id.get_mut(&producer.producer_id) {
            newest.ended = newest.ended.max(producer.transaction);
        }
    }

    pub(super) fn see(&mut self, producer_id: i64, epoch: i32, time: Timestamp) {
        let before = self.by_id.get(&producer_id).copied();
        if let Some(before) = before {
            self.by_time.remove(&(before.time, producer_id));
        }
        let before = before.unwrap_or(Newest {
            epoch,
            ended: 0,
            time,
        });
        let time = before.time.max(time);
        let newest = Newest {
            epoch: before.epoch.max(epoch),
            time,
            ..before
        };
        self.by_id.insert(producer_id, newest);
        self.by_time.insert((time, producer_id));
        self.forget(time, producer_id);
    }

    fn forget(&mut self, now: Timestamp, keep: i64) {
        while let Some(&(last, id)) = self.by_time.first() {
            let expired = last.nanos().saturating_add(EXPIRY_NANOS) < now.nanos();
            if id == keep || !(expired || self.by_id.len() > MAX_PRODUCERS) {
                break;
            }
            self.by_time.pop_first();
            self.by_id.remove(&id);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (ProducerRef, Timestamp)> {
        self.by_id.iter().map(|(id, newest)| {
            let producer = ProducerRef {
                producer_id: *id,
                epoch: newest.epoch,
                transaction: newest.ended,
            };
            (producer, newest.time)
        })
    }
}
