//! How far all replicas of a compacted partition were clean, and since when: what decides which
//! deletion markers may go.

use std::time::Duration;

use prost::Message;
use trilog_model::{Offset, Timestamp};

/// Steps that are remembered; of more, the oldest two become the later one.
const STEPS: usize = 64;

/// Offsets that rise, each with the time at which every replica was clean below it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleanness {
    /// The number of the rules by which they were cleaned: by others they mean nothing.
    rules: u32,
    steps: Vec<(Offset, Timestamp)>,
}

impl Cleanness {
    /// Every replica is clean below `offset` by these rules, as of `time`.
    pub fn reach(&mut self, rules: u32, offset: Offset, time: Timestamp) {
        if rules != self.rules {
            *self = Self {
                rules,
                steps: Vec::new(),
            };
        }
        if offset <= self.end(rules) {
            return;
        }
        if self.steps.len() >= STEPS {
            // What lies below the first then counts from the second on: later, never earlier.
            self.steps.remove(0);
        }
        self.steps.push((offset, time));
    }

    fn by(&self, rules: u32) -> &[(Offset, Timestamp)] {
        if rules == self.rules {
            &self.steps
        } else {
            &[]
        }
    }

    /// The last of them, by these rules.
    #[must_use]
    pub fn end(&self, rules: u32) -> Offset {
        let last = self.by(rules).last();
        last.map_or(Offset(0), |(offset, _)| *offset)
    }

    /// Below which offset markers have been kept for long enough, by these rules.
    #[must_use]
    pub fn markers_before(&self, rules: u32, kept: Duration, now: Timestamp) -> Offset {
        let kept = u64::try_from(kept.as_nanos()).unwrap_or(u64::MAX);
        let due = |since: Timestamp| since.nanos().saturating_add(kept) < now.nanos();
        let steps = self.by(rules);
        let reached = steps.partition_point(|(_, since)| due(*since));
        let last = reached.checked_sub(1).and_then(|last| steps.get(last));
        last.map_or(Offset(0), |(offset, _)| *offset)
    }

    pub(super) fn stored(&self) -> StoredCleanness {
        let steps = self.steps.iter();
        StoredCleanness {
            rules: self.rules,
            steps: steps
                .map(|(offset, since)| StoredStep {
                    offset: offset.get(),
                    since: since.nanos(),
                })
                .collect(),
        }
    }

    pub(super) fn restore(stored: &StoredCleanness) -> Self {
        let mut restored = Self {
            rules: stored.rules,
            steps: Vec::new(),
        };
        for step in &stored.steps {
            restored.reach(stored.rules, Offset(step.offset), Timestamp(step.since));
        }
        restored
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct StoredCleanness {
    #[prost(uint32, tag = "1")]
    rules: u32,
    #[prost(message, repeated, tag = "2")]
    steps: Vec<StoredStep>,
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
            clean.reach(1, Offset(offset), Timestamp(time));
        }
        assert_eq!(clean.end(1), Offset(30));
        for (now, before) in [(0, 0), (150, 0), (151, 10), (250, 10), (251, 20), (999, 30)] {
            let found = clean.markers_before(1, Duration::from_nanos(50), Timestamp(now));
            assert_eq!(found, Offset(before), "at {now}");
        }
        assert_eq!(Cleanness::restore(&clean.stored()), clean);
    }

    #[test]
    fn what_was_clean_by_other_rules_is_not_clean() {
        let mut clean = Cleanness::default();
        clean.reach(1, Offset(10), Timestamp(100));
        let late = Timestamp(1_000);
        assert_eq!(clean.end(2), Offset(0));
        assert_eq!(clean.markers_before(2, Duration::ZERO, late), Offset(0));
        clean.reach(2, Offset(5), Timestamp(200));
        assert_eq!((clean.end(1), clean.end(2)), (Offset(0), Offset(5)));
        assert_eq!(clean.markers_before(1, Duration::ZERO, late), Offset(0));
        assert_eq!(clean.markers_before(2, Duration::ZERO, late), Offset(5));
        assert_eq!(Cleanness::restore(&clean.stored()), clean);
    }

    #[test]
    fn what_is_forgotten_makes_markers_stay_longer() {
        let mut clean = Cleanness::default();
        for step in 1..=STEPS as u64 + 5 {
            clean.reach(1, Offset(step), Timestamp(step));
        }
        assert_eq!(clean.steps.len(), STEPS);
        let found = clean.markers_before(1, Duration::ZERO, Timestamp(4));
        assert_eq!(found, Offset(0), "it counts from a later step now");
        let found = clean.markers_before(1, Duration::ZERO, Timestamp(7));
        assert_eq!(found, Offset(6));
    }
}
