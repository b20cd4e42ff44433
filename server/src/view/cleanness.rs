//! How far all replicas of a compacted partition were clean, and since when: what decides which
//! markers may go, and which aborted transactions may be forgotten.
//!
//! A marker that goes too early on one replica does no harm once that replica cleans again: only one
//! that knows of a step lets go of markers, and by then it knows, too, who the members were that
//! were asked. To forget a transaction is another matter. A replica that does not know of the step
//! yet may take a record of it from somebody who was no member any more and was not asked, and
//! nobody could tell then that it does not count. So that waits for a later step, which all replicas
//! made having folded the first: whatever is clean behind the place of a step knows the step.

use std::time::Duration;

use prost::Message;
use trilog_model::{Offset, Timestamp};

/// By the rules of this number and later ones no record of an aborted transaction is left in what
/// is clean.
const RULES_FOR_ABORTED: u32 = 2;
/// Steps that are remembered; of more, the oldest two become the later one.
const STEPS: usize = 64;

/// Every replica was clean below an offset.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Step {
    pub offset: Offset,
    /// When that was written down.
    pub since: Timestamp,
    /// Where the log ended there: whoever has more has the step.
    pub place: Offset,
}

/// Steps to offsets that rise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cleanness {
    /// The number of the rules by which they were cleaned: by others they mean nothing.
    rules: u32,
    steps: Vec<Step>,
}

impl Cleanness {
    /// A step by these rules.
    pub fn reach(&mut self, rules: u32, step: Step) {
        if rules != self.rules {
            *self = Self {
                rules,
                steps: Vec::new(),
            };
        }
        if step.offset <= self.end(rules) {
            return;
        }
        if self.steps.len() >= STEPS {
            // What lies below the first then counts from the second on: later, never earlier.
            self.steps.remove(0);
        }
        self.steps.push(step);
    }

    fn by(&self, rules: u32) -> &[Step] {
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
        last.map_or(Offset(0), |step| step.offset)
    }

    /// Below which offset no replica holds a record of an aborted transaction, nor will get one
    /// from anywhere.
    #[must_use]
    pub fn forgotten(&self) -> Offset {
        let end = self.end(self.rules);
        let known = self.steps.partition_point(|step| step.place < end);
        let last = known.checked_sub(1).and_then(|last| self.steps.get(last));
        let last = last.filter(|_| self.rules >= RULES_FOR_ABORTED);
        last.map_or(Offset(0), |step| step.offset)
    }

    /// Below which offset markers have been kept for long enough, by these rules.
    #[must_use]
    pub fn markers_before(&self, rules: u32, kept: Duration, now: Timestamp) -> Offset {
        let kept = u64::try_from(kept.as_nanos()).unwrap_or(u64::MAX);
        let due = |since: Timestamp| since.nanos().saturating_add(kept) < now.nanos();
        let steps = self.by(rules);
        let reached = steps.partition_point(|step| due(step.since));
        let last = reached.checked_sub(1).and_then(|last| steps.get(last));
        last.map_or(Offset(0), |step| step.offset)
    }

    pub(super) fn stored(&self) -> StoredCleanness {
        let steps = self.steps.iter();
        StoredCleanness {
            rules: self.rules,
            steps: steps
                .map(|step| StoredStep {
                    offset: step.offset.get(),
                    since: step.since.nanos(),
                    place: step.place.get(),
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
            let step = Step {
                offset: Offset(step.offset),
                since: Timestamp(step.since),
                place: Offset(step.place),
            };
            restored.reach(stored.rules, step);
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
    #[prost(uint64, tag = "3")]
    place: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(offset: u64, since: u64) -> Step {
        Step {
            offset: Offset(offset),
            since: Timestamp(since),
            place: Offset(offset + 5),
        }
    }

    #[test]
    fn what_was_aborted_is_forgotten_once_all_know_the_step_that_says_it_is_gone() {
        let mut clean = Cleanness::default();
        for (offset, forgotten) in [(10, 0), (15, 0), (16, 10), (17, 10), (21, 15), (90, 21)] {
            clean.reach(2, step(offset, offset));
            assert_eq!(clean.forgotten(), Offset(forgotten), "at {offset}");
            assert_eq!(Cleanness::restore(&clean.stored()), clean);
        }
        // By the rules before nothing was known of transactions.
        let mut clean = Cleanness::default();
        clean.reach(1, step(10, 1));
        clean.reach(1, step(90, 2));
        assert_eq!(clean.forgotten(), Offset(0));
    }

    #[test]
    fn markers_go_where_all_were_clean_for_long_enough() {
        let mut clean = Cleanness::default();
        for (offset, time) in [(10, 100), (20, 200), (20, 300), (15, 300), (30, 400)] {
            clean.reach(1, step(offset, time));
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
        clean.reach(1, step(10, 100));
        let late = Timestamp(1_000);
        assert_eq!(clean.end(2), Offset(0));
        assert_eq!(clean.markers_before(2, Duration::ZERO, late), Offset(0));
        clean.reach(2, step(5, 200));
        assert_eq!((clean.end(1), clean.end(2)), (Offset(0), Offset(5)));
        assert_eq!(clean.markers_before(1, Duration::ZERO, late), Offset(0));
        assert_eq!(clean.markers_before(2, Duration::ZERO, late), Offset(5));
        assert_eq!(Cleanness::restore(&clean.stored()), clean);
    }

    #[test]
    fn what_is_forgotten_makes_markers_stay_longer() {
        let mut clean = Cleanness::default();
        for at in 1..=STEPS as u64 + 5 {
            clean.reach(1, step(at, at));
        }
        assert_eq!(clean.steps.len(), STEPS);
        let found = clean.markers_before(1, Duration::ZERO, Timestamp(4));
        assert_eq!(found, Offset(0), "it counts from a later step now");
        let found = clean.markers_before(1, Duration::ZERO, Timestamp(7));
        assert_eq!(found, Offset(6));
    }
}
