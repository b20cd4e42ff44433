//! How far all replicas of a compacted partition were clean, and since when: what decides which
//! deletion markers may go.

use std::time::Duration;

use prost::Message;
use trilog_model::{Offset, Timestamp};

/// Steps that are remembered; of more, the oldest two become the later one.
const STEPS: usize = 64;

/// Offsets that rise, each with the time at which every replica was clean below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleanness(Vec<(Offset, Timestamp)>);

impl Cleanness {
    /// Every replica is clean below `offset`, as of `time`.
    pub fn reach(&mut self, offset: Offset, time: Timestamp) {
        if offset <= self.end() {
            return;
        }
        if self.0.len() >= STEPS {
            // What lies below the first then counts from the second on: later, never earlier.
            self.0.remove(0);
        }
        self.0.push((offset, time));
    }

    /// The last of them.
    #[must_use]
    pub fn end(&self) -> Offset {
        self.0.last().map_or(Offset(0), |(offset, _)| *offset)
    }

    /// Below which offset markers have been kept for long enough.
    #[must_use]
    pub fn markers_before(&self, kept: Duration, now: Timestamp) -> Offset {
        let kept = u64::try_from(kept.as_nanos()).unwrap_or(u64::MAX);
        let due = |since: Timestamp| since.nanos().saturating_add(kept) < now.nanos();
        let reached = self.0.partition_point(|(_, since)| due(*since));
        let last = reached.checked_sub(1).and_then(|last| self.0.get(last));
        last.map_or(Offset(0), |(offset, _)| *offset)
    }

    pub(super) fn stored(&self) -> Vec<StoredStep> {
        let steps = self.0.iter();
        steps
            .map(|(offset, since)| StoredStep {
                offset: offset.get(),
                since: since.nanos(),
            })
            .collect()
    }

    pub(super) fn restore(steps: &[StoredStep]) -> Self {
        let mut restored = Self::default();
        for step in steps {
            restored.reach(Offset(step.offset), Timestamp(step.since));
        }
        restored
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct StoredStep {
    #[prost(uint64, tag = "1")]
    offset: u64,
    #[prost(uint64, tag = "2")]
    since: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markers_go_where_all_were_clean_for_long_enough() {
        let mut clean = Cleanness::default();
        for (offset, time) in [(10, 100), (20, 200), (20, 300), (15, 300), (30, 400)] {
            clean.reach(Offset(offset), Timestamp(time));
        }
        assert_eq!(clean.end(), Offset(30));
        for (now, before) in [(0, 0), (150, 0), (151, 10), (250, 10), (251, 20), (999, 30)] {
            let found = clean.markers_before(Duration::from_nanos(50), Timestamp(now));
            assert_eq!(found, Offset(before), "at {now}");
        }
        assert_eq!(Cleanness::restore(&clean.stored()), clean);
    }

    #[test]
    fn what_is_forgotten_makes_markers_stay_longer() {
        let mut clean = Cleanness::default();
        for step in 1..=STEPS as u64 + 5 {
            clean.reach(Offset(step), Timestamp(step));
        }
        assert_eq!(clean.0.len(), STEPS);
        let found = clean.markers_before(Duration::ZERO, Timestamp(4));
        assert_eq!(found, Offset(0), "it counts from a later step now");
        let found = clean.markers_before(Duration::ZERO, Timestamp(7));
        assert_eq!(found, Offset(6));
    }
}
