//! How far all replicas of a compacted partition were clean, and since when: what decides which
//! markers may go, and which aborted transactions may be forgotten.
//!
//! A marker that goes too early on one replica does no harm once that replica cleans again: only one
//! that knows of a step lets go of markers, and by then it knows, too, who the members were that
//! were asked. To forget a transaction is another matter. A replica that does not know of the step
//! yet may take a record of it from somebody who was no member any more and was not asked, and
//! nobody could tell then that it does not count. So that waits for a later step, which all replicas
//! made having folded the first: whatever is clean behind the place of a step knows the step.
//!
//! Either wait may be long, and steps are made as often as segments are cleaned. So of more than are
//! remembered neighbours become one, the later, and where they do their distance grows with their
//! age: were it the oldest two each time, none would ever come to the end of its wait.

use std::time::Duration;

use prost::Message;
use trilog_model::{Offset, Timestamp};

/// By the rules of this number and later ones no record of an aborted transaction is left in what
/// is clean.
const RULES_FOR_ABORTED: u32 = 2;
/// Steps that are remembered: from one made a moment ago to one made a year ago each is older than
/// the next by a third, so what waits for a day waits for some hours more.
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
    /// See [`Cleanness::forgotten`]: what was forgotten stays so, whichever steps are left.
    forgotten: Offset,
}

impl Cleanness {
    /// A step by these rules.
    pub fn reach(&mut self, rules: u32, step: Step) {
        if rules != self.rules {
            self.rules = rules;
            self.steps.clear();
        }
        if step.offset <= self.end(rules) {
            return;
        }
        if self.steps.len() >= STEPS {
            self.thin_out(step.since);
        }
        self.steps.push(step);
        self.forgotten = self.forgotten.max(self.known_to_all());
    }

    /// Lets go of the step whose neighbours are closest to each other, for their age. What lies below
    /// it then counts from the one behind it on: later, never earlier. The first one stays: without
    /// one before it nobody could tell how long what lies below it has waited already.
    fn thin_out(&mut self, now: Timestamp) {
        let wide = |around: &[Step]| {
            let nanos = |at: usize| around.get(at).map_or(0, |step| step.since.nanos());
            let gap = nanos(2).saturating_sub(nanos(0));
            let age = now.nanos().saturating_sub(nanos(0)).max(1);
            (u128::from(gap), u128::from(age))
        };
        let gaps = self.steps.windows(3).map(wide).enumerate();
        let least = gaps.min_by(|(_, one), (_, other)| (one.0 * other.1).cmp(&(other.0 * one.1)));
        if let Some((before, _)) = least {
            self.steps.remove(before + 1);
        }
    }

    /// The last step that whoever is clean as far as all are knows of.
    fn known_to_all(&self) -> Offset {
        let end = self.end(self.rules);
        let known = self.steps.partition_point(|step| step.place < end);
        let last = known.checked_sub(1).and_then(|last| self.steps.get(last));
        let last = last.filter(|_| self.rules >= RULES_FOR_ABORTED);
        last.map_or(Offset(0), |step| step.offset)
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
        self.forgotten
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
            forgotten: self.forgotten.get(),
        }
    }

    pub(super) fn restore(stored: &StoredCleanness) -> Self {
        let mut restored = Self {
            rules: stored.rules,
            steps: Vec::new(),
            forgotten: Offset(stored.forgotten),
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
    #[prost(uint64, tag = "3")]
    forgotten: u64,
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
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

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

    /// Whatever is let go of, nothing comes to pass before it would if all steps were remembered.
    #[test]
    fn steps_that_are_let_go_of_make_what_waits_for_them_wait_longer_and_never_shorter() {
        for seed in 0..20 {
            let rng = &mut SmallRng::seed_from_u64(seed);
            let (mut clean, mut all) = (Cleanness::default(), Vec::new());
            let mut next = step(1, 1);
            let ahead = rng.random_range(1..2_000);
            for _ in 0..1_000 {
                next.offset = next.offset.plus(rng.random_range(1..20));
                next.place = next.place.max(next.offset.plus(rng.random_range(0..ahead)));
                let pause = [1, 100, 10_000][rng.random_range(0..3)];
                next.since = Timestamp(next.since.nanos() + rng.random_range(0..=pause));
                let before = clean.forgotten();
                clean.reach(2, next);
                all.push(next);
                assert!(clean.forgotten() >= before, "seed {seed}: it comes back");
                let last = |holds: &dyn Fn(&&Step) -> bool| {
                    let found = all.iter().rfind(holds);
                    found.map_or(Offset(0), |step| step.offset)
                };
                let forgotten = last(&|step| step.place < next.offset);
                assert!(clean.forgotten() <= forgotten, "seed {seed}");
                let kept = rng.random_range(0..100_000);
                let due = last(&|step| step.since.nanos() + kept < next.since.nanos());
                let found = clean.markers_before(2, Duration::from_nanos(kept), next.since);
                assert!(found <= due, "seed {seed}");
                assert_eq!(clean.end(2), next.offset);
            }
            assert_eq!(clean.steps.len(), STEPS);
            assert_eq!(Cleanness::restore(&clean.stored()), clean);
        }
    }

    /// Markers that are kept for a day, on a topic that is cleaned every ten seconds.
    #[test]
    fn markers_go_however_often_steps_are_made() {
        let (pause, kept) = (10, 24 * 3_600);
        let mut clean = Cleanness::default();
        for at in 1..=7 * kept / pause {
            let now = at * pause;
            clean.reach(2, step(at, now));
            if now > 2 * kept {
                let kept = Duration::from_nanos(kept);
                let before = clean.markers_before(2, kept, Timestamp(now));
                let waited = now - before.get() * pause;
                assert!(waited < 32 * 3_600, "{waited} s at {now} s");
            }
        }
    }

    /// Cleaning is a day behind what is written, for records are spared that long.
    #[test]
    fn transactions_are_forgotten_however_many_steps_the_end_of_the_log_is_ahead() {
        let mut clean = Cleanness::default();
        let ahead = 10_000;
        for at in 1..=8 * ahead {
            let step = Step {
                place: Offset(at + ahead),
                ..step(at, at)
            };
            clean.reach(2, step);
            let forgotten = clean.forgotten();
            assert!(
                at <= 3 * ahead || at - forgotten.get() < ahead * 4 / 3,
                "{forgotten} at {at}"
            );
        }
    }
}
