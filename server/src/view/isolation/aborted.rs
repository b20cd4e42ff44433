//! The transactions that were aborted and have something in the log, in the order of their markers.
//!
//! A reader asks for those that overlap a stretch of offsets. Their markers are in order, their
//! first offsets are not: one that was open for long ends behind many that began after it. So the
//! least first offset of every few hundred is kept beside them, and whole blocks are passed over.

use std::collections::VecDeque;
use std::ops::Range;

use trilog_model::{Aborted, Offset};

/// Transactions that share one least first offset.
const BLOCK: usize = 256;

/// See the module's text.
#[derive(Clone, Debug, Default)]
pub(super) struct AbortedIndex {
    all: VecDeque<Aborted>,
    /// The least first offset of each block; of the first one also of those that are gone.
    least: VecDeque<Offset>,
    /// How many of the first block are gone.
    gone: usize,
}

/// Blocks begin where they may.
impl PartialEq for AbortedIndex {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl Eq for AbortedIndex {}

impl AbortedIndex {
    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Aborted> {
        self.all.iter()
    }

    /// One whose marker stands behind all others.
    pub(super) fn push(&mut self, one: Aborted) {
        let begins_block = (self.gone + self.all.len()).is_multiple_of(BLOCK);
        match self.least.back_mut() {
            Some(least) if !begins_block => *least = one.first_offset.min(*least),
            Some(_) | None => self.least.push_back(one.first_offset),
        }
        self.all.push_back(one);
    }

    /// Forgets those that are over before `start`.
    pub(super) fn trim(&mut self, start: Offset) {
        let over = |one: &Aborted| one.last_offset < start;
        while self.all.front().is_some_and(over) {
            self.all.pop_front();
            self.gone += 1;
            if self.gone == BLOCK || self.all.is_empty() {
                self.gone = 0;
                self.least.pop_front();
            }
        }
    }

    /// Those that have records or markers from `from` to before `to`, by their markers.
    pub(super) fn within(&self, from: Offset, to: Offset) -> impl Iterator<Item = Aborted> {
        let ranges = self.worth_a_look(from, to);
        let each = ranges.flat_map(|range| self.all.range(range));
        each.filter(move |one| one.first_offset < to).copied()
    }

    /// Where such may stand: the rest need not be looked at.
    fn worth_a_look(&self, from: Offset, to: Offset) -> impl Iterator<Item = Range<usize>> {
        let begin = self.all.partition_point(|one| one.last_offset < from);
        let first_block = (self.gone + begin) / BLOCK;
        let blocks = self.least.iter().enumerate().skip(first_block);
        let blocks = blocks.filter(move |(_, least)| **least < to);
        blocks.map(move |(nth, _)| {
            let start = (nth * BLOCK).saturating_sub(self.gone);
            let end = ((nth + 1) * BLOCK - self.gone).min(self.all.len());
            start.max(begin)..end
        })
    }
}

#[cfg(test)]
mod tests {
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    use super::*;

    /// Whatever is asked, in whichever order transactions began, before and after trims: what a
    /// plain look at all of them finds, without looking at more than a block for each found.
    #[test]
    fn what_overlaps_is_found_without_looking_at_the_rest() {
        for seed in 0..40 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let (mut index, mut plain) = (AbortedIndex::default(), Vec::new());
            let long = rng.random_range(1..400);
            for at in 1..3_000_u64 {
                let back = match rng.random_range(0..long) {
                    0 => rng.random_range(0..at),
                    _ => rng.random_range(0..at.min(5)),
                };
                let one = Aborted {
                    producer_id: 7,
                    first_offset: Offset(at - 1 - back.min(at - 1)),
                    last_offset: Offset(at),
                };
                index.push(one);
                plain.push(one);
                if rng.random_bool(0.001) {
                    let start = Offset(rng.random_range(0..=at + 1));
                    index.trim(start);
                    plain.retain(|one| one.last_offset >= start);
                }
            }
            assert_eq!(index.len(), plain.len());
            for _ in 0..200 {
                let from = Offset(rng.random_range(0..3_100));
                let to = Offset(from.get() + rng.random_range(0..50));
                let overlaps = |one: &&Aborted| one.last_offset >= from && one.first_offset < to;
                let expected: Vec<Aborted> = plain.iter().filter(overlaps).copied().collect();
                let found: Vec<Aborted> = index.within(from, to).collect();
                assert_eq!(found, expected, "seed {seed}: {from}..{to}");
                let looked: usize = index.worth_a_look(from, to).map(|range| range.len()).sum();
                // Of two blocks the least may be of one that is gone, or ended before.
                let bound = BLOCK * (found.len() + 2);
                assert!(looked <= bound, "seed {seed}: {from}..{to}: {looked}");
            }
        }
    }

    #[test]
    fn an_emptied_index_begins_anew() {
        let mut index = AbortedIndex::default();
        for round in 0..3_u64 {
            for at in 0..300 {
                let at = Offset(round * 1_000 + at);
                index.push(Aborted {
                    producer_id: 1,
                    first_offset: at,
                    last_offset: at,
                });
            }
            let behind = Offset(round * 1_000 + 300);
            assert_eq!(index.within(Offset(0), behind).count(), 300);
            index.trim(behind);
            assert_eq!((index.len(), index.least.len()), (0, 0));
        }
    }
}
