//! The newest epoch of each producer that committed offsets in transactions here, so that one
//! whose transaction was ended by others cannot open it again.

use std::collections::{BTreeMap, BTreeSet};

use trilog_model::Timestamp;

/// The most producers remembered; beyond it the longest idle is forgotten.
const MAX_PRODUCERS: usize = 100_000;
/// A producer idle for so long is forgotten, as by data partitions.
const EXPIRY_NANOS: u64 = 24 * 3_600 * 1_000_000_000;

/// See the module's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Epochs {
    by_id: BTreeMap<i64, (i32, Timestamp)>,
    by_time: BTreeSet<(Timestamp, i64)>,
}

impl Epochs {
    pub(super) fn is_fenced(&self, producer_id: i64, epoch: i32) -> bool {
        let known = self.by_id.get(&producer_id);
        known.is_some_and(|(newest, _)| epoch < *newest)
    }

    pub(super) fn see(&mut self, producer_id: i64, epoch: i32, time: Timestamp) {
        let before = self.by_id.get(&producer_id).copied();
        if let Some((_, old)) = before {
            self.by_time.remove(&(old, producer_id));
        }
        let (newest, last) = before.unwrap_or((epoch, time));
        let (epoch, time) = (newest.max(epoch), last.max(time));
        self.by_id.insert(producer_id, (epoch, time));
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

    pub(super) fn iter(&self) -> impl Iterator<Item = (i64, i32, Timestamp)> {
        self.by_id
            .iter()
            .map(|(id, (epoch, time))| (*id, *epoch, *time))
    }
}
