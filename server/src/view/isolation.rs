//! Which records of a partition belong to transactions, and what became of those: what a reader
//! of committed records needs to know.
//!
//! ```text
//!            batch of a transaction                       marker (takes one offset)
//! nothing ---------------------------> open (first offset) --------+--> committed: forgotten
//!                                                                  +--> aborted: in the index
//! ```
//!
//! One that was aborted leaves the index when the log begins behind it, or when no replica holds a
//! record of it any more.
//!
//! A producer has at most one transaction open in a partition. The coordinator numbers the
//! transactions of a producer, so a marker that comes again, however late, ends nothing that it is
//! not meant for. A batch that opens a transaction has to have been shown to be in it: whoever
//! appends it asked the coordinator, and no marker of the producer has come since before that.
//!
//! Numbers only rise, but for a coordinator that lost its newest entries for good: what is open here
//! may then have a number that was over before. So a marker ends whatever is open with its number
//! or a lower one, however it stands to the last marker.

mod aborted;

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;
use trilog_model::Offset;

use super::command::Marker;
use super::producers::Publisher;
use aborted::AbortedIndex;
pub use trilog_model::Aborted;

/// Transactions of one partition that are open, or were aborted and may still be in a log, at
/// most. Beyond that none is opened: an index that forgot one would pass its records off as
/// committed.
pub const MAX_TRANSACTIONS: usize = 200_000;
/// From here on somebody should look after it.
pub const MANY_TRANSACTIONS: usize = MAX_TRANSACTIONS / 2;

/// What shows that a partition is in a producer's transaction: the coordinator says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inclusion {
    /// Where the log ended, as applied, before it was asked.
    pub since: Offset,
    /// Which transaction of the producer.
    pub transaction: u64,
}

/// A transaction that is open here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    pub epoch: i16,
    /// Its number among the producer's; zero if it is not known.
    pub transaction: u64,
    pub first_offset: Offset,
}

/// The newest marker of a producer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mark {
    pub coordinator_epoch: i32,
    pub transaction: u64,
    pub offset: Offset,
}

/// See the module's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    open: BTreeMap<i64, Open>,
    by_first: BTreeSet<(Offset, i64)>,
    aborted: AbortedIndex,
    marks: BTreeMap<i64, Mark>,
    /// Behind the marker of every producer that was forgotten.
    forgotten: Offset,
}

impl Isolation {
    /// Whether there never was a transaction.
    #[must_use]
    pub fn is_untouched(&self) -> bool {
        *self == Self::default()
    }

    /// A producer's open transaction.
    #[must_use]
    pub fn open(&self, producer_id: i64) -> Option<Open> {
        self.open.get(&producer_id).copied()
    }

    /// A producer's newest marker.
    #[must_use]
    pub fn mark(&self, producer_id: i64) -> Option<Mark> {
        self.marks.get(&producer_id).copied()
    }

    /// Where the first transaction that is open begins.
    #[must_use]
    pub fn first_open(&self) -> Option<Offset> {
        self.by_first.first().map(|(first, _)| *first)
    }

    /// Folds the first committed batch of a transaction. Those after it change nothing.
    pub(super) fn opened(&mut self, producer_id: i64, open: Open) {
        self.open.insert(producer_id, open);
        self.by_first.insert((open.first_offset, producer_id));
    }

    /// Folds a committed marker.
    pub(super) fn ended(&mut self, marker: &Marker, offset: Offset) {
        let id = marker.producer_id;
        let mut mark = Mark {
            coordinator_epoch: marker.coordinator_epoch,
            transaction: marker.transaction,
            offset,
        };
        if let Some(last) = self.mark(id) {
            mark.coordinator_epoch = mark.coordinator_epoch.max(last.coordinator_epoch);
            mark.transaction = mark.transaction.max(last.transaction);
        }
        self.marks.insert(id, mark);
        let Some(open) = self.open.remove(&id) else {
            return;
        };
        self.by_first.remove(&(open.first_offset, id));
        if !marker.commit {
            self.aborted.push(Aborted {
                producer_id: id,
                first_offset: open.first_offset,
                last_offset: offset,
            });
        }
    }

    /// The producers have long been idle, and have nothing open.
    pub(super) fn forget(&mut self, producers: &[i64]) {
        for id in producers {
            if let Some(mark) = self.marks.remove(id) {
                let behind = Offset(mark.offset.get().saturating_add(1));
                self.forgotten = self.forgotten.max(behind);
            }
        }
    }

    /// Of those that were over before `start` no record is left, or none that is served.
    pub(super) fn trim(&mut self, start: Offset) {
        self.aborted.trim(start);
    }

    /// All that were aborted and have to be remembered.
    pub fn all_aborted(&self) -> impl Iterator<Item = Aborted> {
        self.aborted.iter().copied()
    }

    /// Transactions that are open or have to be remembered as aborted.
    #[must_use]
    pub fn count(&self) -> usize {
        self.open.len() + self.aborted.len()
    }

    /// The transactions that were aborted and have records or markers from `from` to before `to`,
    /// which is at or before the last stable offset, by their markers.
    pub fn aborted(&self, from: Offset, to: Offset) -> impl Iterator<Item = Aborted> {
        self.aborted.within(from, to)
    }

    /// Whether no marker of the producer stands at or behind `since`.
    fn is_unmarked_since(&self, producer_id: i64, since: Offset) -> bool {
        match self.marks.get(&producer_id) {
            Some(mark) => mark.offset < since,
            None => self.forgotten <= since,
        }
    }

    pub(super) fn stored(&self) -> StoredIsolation {
        let open = self.open.iter().map(|(id, open)| StoredOpen {
            producer_id: *id,
            epoch: i32::from(open.epoch),
            first_offset: open.first_offset.get(),
            transaction: open.transaction,
        });
        let aborted = self.aborted.iter().map(|one| StoredAborted {
            producer_id: one.producer_id,
            first_offset: one.first_offset.get(),
            last_offset: one.last_offset.get(),
        });
        let marks = self.marks.iter().map(|(id, mark)| StoredMark {
            producer_id: *id,
            coordinator_epoch: mark.coordinator_epoch,
            transaction: mark.transaction,
            offset: mark.offset.get(),
        });
        StoredIsolation {
            open: open.collect(),
            aborted: aborted.collect(),
            marks: marks.collect(),
            forgotten: self.forgotten.get(),
        }
    }

    /// Reads what [`Isolation::stored`] wrote; `None` if it is not that.
    pub(super) fn restore(stored: &StoredIsolation) -> Option<Self> {
        let mut restored = Self {
            forgotten: Offset(stored.forgotten),
            ..Self::default()
        };
        for open in &stored.open {
            let value = Open {
                epoch: i16::try_from(open.epoch).ok()?,
                transaction: open.transaction,
                first_offset: Offset(open.first_offset),
            };
            restored.opened(open.producer_id, value);
        }
        for one in &stored.aborted {
            restored.aborted.push(Aborted {
                producer_id: one.producer_id,
                first_offset: Offset(one.first_offset),
                last_offset: Offset(one.last_offset),
            });
        }
        for mark in &stored.marks {
            let value = Mark {
                coordinator_epoch: mark.coordinator_epoch,
                transaction: mark.transaction,
                offset: Offset(mark.offset),
            };
            restored.marks.insert(mark.producer_id, value);
        }
        Some(restored)
    }

    /// The producers with a transaction open.
    pub fn open_producers(&self) -> impl Iterator<Item = i64> {
        self.open.keys().copied()
    }

    /// The transactions that are open, by their producers.
    pub fn all_open(&self) -> impl Iterator<Item = (i64, Open)> {
        self.open.iter().map(|(id, open)| (*id, *open))
    }
}

/// Why a batch is not taken, as far as transactions go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfit {
    /// Nothing shows that the partition is in the producer's transaction.
    NotShown,
    /// The producer has a transaction open here, and this is not part of it.
    Outside,
    /// There are as many transactions as there may be.
    Full,
}

/// The answer to "may this marker be appended?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MarkerVerdict {
    Append,
    /// The transaction was ended here before, by the marker at this offset or a later one.
    Done(Offset),
    /// Entry number so-and-so of this drain ends it.
    Pending(usize),
    /// A later coordinator has written.
    Stale,
    /// The very transaction that it is to end is not open.
    NotOpen,
}

/// Who ends a transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ender {
    /// The coordinator, which has decided the one of that number.
    Coordinator,
    /// Somebody who ends whatever is open, if anything is, or only what begins at an offset.
    Operator { begins: Option<Offset> },
}

/// A drain's own write set over the applied transactions.
#[derive(Debug)]
pub struct Drain<'a> {
    applied: &'a Isolation,
    changed: BTreeMap<i64, Changed>,
    opened: usize,
}

#[derive(Clone, Copy, Debug, Default)]
struct Changed {
    open: Option<OpenNow>,
    /// Transaction, coordinator's epoch and entry of a marker in this drain.
    marked: Option<(u64, i32, usize)>,
}

#[derive(Clone, Copy, Debug)]
struct OpenNow {
    epoch: i16,
    transaction: u64,
    /// None if it was opened in this drain.
    first_offset: Option<Offset>,
}

impl From<Open> for OpenNow {
    fn from(open: Open) -> Self {
        Self {
            epoch: open.epoch,
            transaction: open.transaction,
            first_offset: Some(open.first_offset),
        }
    }
}

impl<'a> Drain<'a> {
    #[must_use]
    pub fn over(applied: &'a Isolation) -> Self {
        Self {
            applied,
            changed: BTreeMap::new(),
            opened: 0,
        }
    }

    fn now(&self, producer_id: i64) -> Changed {
        let changed = self.changed.get(&producer_id).copied();
        changed.unwrap_or_else(|| Changed {
            open: self.applied.open(producer_id).map(OpenNow::from),
            marked: None,
        })
    }

    /// Judges a batch of a producer; `shown` is what the coordinator said of it, if it was asked.
    pub fn judge(
        &self,
        batch: &Publisher,
        transactional: bool,
        shown: Option<Inclusion>,
    ) -> Result<(), Unfit> {
        let Changed { open, marked } = self.now(batch.producer_id);
        match (transactional, open) {
            (false, None) => Ok(()),
            (false, Some(_)) => Err(Unfit::Outside),
            (true, Some(open)) if open.epoch == batch.epoch => Ok(()),
            (true, Some(_)) => Err(Unfit::NotShown),
            (true, None) => {
                let id = batch.producer_id;
                let unmarked = |shown: Inclusion| self.applied.is_unmarked_since(id, shown.since);
                if marked.is_some() || !shown.is_some_and(unmarked) {
                    return Err(Unfit::NotShown);
                }
                if self.applied.count() + self.opened < MAX_TRANSACTIONS {
                    Ok(())
                } else {
                    Err(Unfit::Full)
                }
            }
        }
    }

    /// Remembers an accepted batch of a transaction; its number if this is the first.
    pub fn accept(&mut self, batch: &Publisher, shown: Option<Inclusion>) -> Option<u64> {
        let now = self.now(batch.producer_id);
        if now.open.is_some() {
            return None;
        }
        let transaction = shown.map_or(0, |shown| shown.transaction);
        self.opened += 1;
        let open = OpenNow {
            epoch: batch.epoch,
            transaction,
            first_offset: None,
        };
        let changed = Changed {
            open: Some(open),
            ..now
        };
        self.changed.insert(batch.producer_id, changed);
        Some(transaction)
    }

    /// Judges the marker of a coordinator.
    #[must_use]
    pub fn judge_marker(&self, marker: &Marker) -> MarkerVerdict {
        let pending = self.now(marker.producer_id).marked;
        if let Some((transaction, coordinator_epoch, slot)) = pending {
            return if marker.transaction <= transaction {
                MarkerVerdict::Pending(slot)
            } else if marker.coordinator_epoch < coordinator_epoch {
                MarkerVerdict::Stale
            } else {
                MarkerVerdict::Append
            };
        }
        match self.applied.mark(marker.producer_id) {
            Some(mark) if marker.transaction <= mark.transaction && !self.ends(marker) => {
                MarkerVerdict::Done(mark.offset)
            }
            Some(mark) if marker.coordinator_epoch < mark.coordinator_epoch => MarkerVerdict::Stale,
            Some(_) | None => MarkerVerdict::Append,
        }
    }

    /// Whether what is open of the marker's producer has its number or a lower one: it has to end
    /// then. Of what has no number nothing is known.
    #[must_use]
    pub fn ends(&self, marker: &Marker) -> bool {
        let open = self.now(marker.producer_id).open;
        open.is_some_and(|open| (1..=marker.transaction).contains(&open.transaction))
    }

    /// Judges the marker of somebody who only knows the producer, by Kafka's rules. It gets the
    /// number of what it ends.
    #[must_use]
    pub fn judge_operators(&self, marker: &mut Marker, begins: Option<Offset>) -> MarkerVerdict {
        let Changed { open, marked } = self.now(marker.producer_id);
        if begins.is_some() && open.and_then(|open| open.first_offset) != begins {
            return MarkerVerdict::NotOpen;
        }
        let mark = self.applied.mark(marker.producer_id);
        let mark = mark.map(|mark| (mark.transaction, mark.coordinator_epoch));
        let pending = marked.map(|(transaction, epoch, _)| (transaction, epoch));
        let (last, coordinator_epoch) = pending.or(mark).unwrap_or((0, i32::MIN));
        if marker.coordinator_epoch < coordinator_epoch {
            return MarkerVerdict::Stale;
        }
        marker.transaction = open.map_or(last, |open| open.transaction.max(last));
        MarkerVerdict::Append
    }

    /// Remembers an accepted marker as the drain's entry number `slot`.
    pub fn accept_marker(&mut self, marker: &Marker, slot: usize) {
        let changed = Changed {
            open: None,
            marked: Some((marker.transaction, marker.coordinator_epoch, slot)),
        };
        self.changed.insert(marker.producer_id, changed);
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct StoredIsolation {
    #[prost(message, repeated, tag = "1")]
    open: Vec<StoredOpen>,
    #[prost(message, repeated, tag = "2")]
    aborted: Vec<StoredAborted>,
    #[prost(message, repeated, tag = "3")]
    marks: Vec<StoredMark>,
    #[prost(uint64, tag = "4")]
    forgotten: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct StoredOpen {
    #[prost(sint64, tag = "1")]
    producer_id: i64,
    #[prost(int32, tag = "2")]
    epoch: i32,
    #[prost(uint64, tag = "3")]
    first_offset: u64,
    #[prost(uint64, tag = "4")]
    transaction: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct StoredAborted {
    #[prost(sint64, tag = "1")]
    producer_id: i64,
    #[prost(uint64, tag = "2")]
    first_offset: u64,
    #[prost(uint64, tag = "3")]
    last_offset: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct StoredMark {
    #[prost(sint64, tag = "1")]
    producer_id: i64,
    #[prost(int32, tag = "2")]
    coordinator_epoch: i32,
    #[prost(uint64, tag = "3")]
    transaction: u64,
    #[prost(uint64, tag = "4")]
    offset: u64,
}

#[cfg(test)]
mod tests;
