//! Which records belong to transactions that were aborted. A log does not tell by itself where such
//! a record stands, only later, so whoever folds it says so to those who go through it.

use crate::Offset;

/// A transaction that was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aborted {
    pub producer_id: i64,
    pub first_offset: Offset,
    /// Its marker's.
    pub last_offset: Offset,
}

/// Many of them, to be asked about batches.
#[derive(Clone, Debug, Default)]
pub struct AbortedSet {
    /// By producer and first offset. Those of one producer do not overlap: it has one transaction
    /// open at a time.
    sorted: Vec<Aborted>,
}

impl AbortedSet {
    /// The one that a batch belongs to which is part of a transaction of this producer, and begins
    /// at this offset.
    #[must_use]
    pub fn find(&self, producer_id: i64, offset: Offset) -> Option<Aborted> {
        let place = (producer_id, offset);
        let begun = |one: &Aborted| (one.producer_id, one.first_offset) <= place;
        let begun = self.sorted.partition_point(begun);
        let last = self.sorted.get(begun.checked_sub(1)?).copied()?;
        (last.producer_id == producer_id && offset <= last.last_offset).then_some(last)
    }

    /// Whether there is one that it belongs to.
    #[must_use]
    pub fn holds(&self, producer_id: i64, offset: Offset) -> bool {
        self.find(producer_id, offset).is_some()
    }
}

impl FromIterator<Aborted> for AbortedSet {
    fn from_iter<I: IntoIterator<Item = Aborted>>(all: I) -> Self {
        let mut sorted: Vec<Aborted> = all.into_iter().collect();
        sorted.sort_unstable_by_key(|one| (one.producer_id, one.first_offset));
        Self { sorted }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_belongs_to_the_transaction_that_is_open_around_it() {
        let one = |producer_id, first, last| Aborted {
            producer_id,
            first_offset: Offset(first),
            last_offset: Offset(last),
        };
        // In the order of their markers, as they are known.
        let all = [one(7, 3, 5), one(9, 0, 8), one(7, 10, 12), one(-1, 6, 20)];
        let set: AbortedSet = all.into_iter().collect();
        for (producer, offset, held) in [
            (7, 2, false),
            (7, 3, true),
            (7, 5, true),
            (7, 6, false),
            (7, 9, false),
            (7, 12, true),
            (7, 13, false),
            (8, 4, false),
            (9, 0, true),
            (9, 8, true),
            (9, 9, false),
            (10, 4, false),
            (-1, 20, true),
            (-2, 20, false),
        ] {
            assert_eq!(
                set.holds(producer, Offset(offset)),
                held,
                "{producer} {offset}"
            );
        }
        assert!(!AbortedSet::default().holds(7, Offset(3)));
    }
}
