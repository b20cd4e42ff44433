//! Which records of a partition belong to transactions, and what became of those: what a reader
//! of committed records needs to know.
//!
//! ```text
//!            batch of a transaction                       marker (takes one offset)
//! nothing ---------------------------> open (first offset) --------+--> committed: forgotten
//!                                                                  +--> aborted: in the index
//! ```
//!
//! A producer has at most one transaction open in a partition. The coordinator numbers the
//! transactions of a producer, so a marker that comes again, however late, ends nothing that it is
//! not meant for. A batch that opens a transaction has to have been shown to be in it: whoever
//! appends it asked the coordinator, and no marker of the producer has come since before that.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use prost::Message;
use trilog_model::Offset;

use super::command::Marker;
use super::producers::Publisher;

/// Transactions of one partition that are open, or were aborted and are still in the log, at
/// most. Beyond that none is opened: an index that forgot one would pass its records off as
/// committed.
pub const MAX_TRANSACTIONS: usize = 200_000;

/// A transaction that is open here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Open {
    pub epoch: i16,
    pub first_offset: Offset,
}

/// A transaction that was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aborted {
    pub producer_id: i64,
    pub first_offset: Offset,
    /// Its marker's.
    pub last_offset: Offset,
    /// The last stable offset once it was over: what ended later began there or behind it.
    stable: Offset,
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
    /// In the order of their markers.
    aborted: VecDeque<Aborted>,
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
    pub(super) fn opened(&mut self, producer_id: i64, epoch: i16, first_offset: Offset) {
        let open = Open {
            epoch,
            first_offset,
        };
        self.open.insert(producer_id, open);
        self.by_first.insert((first_offset, producer_id));
    }

    /// Folds a committed marker.
    pub(super) fn ended(&mut self, marker: &Marker, offset: Offset) {
        let id = marker.producer_id;
        let mark = Mark {
            coordinator_epoch: marker.coordinator_epoch,
            transaction: marker.transaction,
            offset,
        };
        self.marks.insert(id, mark);
        let Some(open) = self.open.remove(&id) else {
            return;
        };
        self.by_first.remove(&(open.first_offset, id));
        if !marker.commit {
            let behind = Offset(offset.get().saturating_add(1));
            self.aborted.push_back(Aborted {
                producer_id: id,
                first_offset: open.first_offset,
                last_offset: offset,
                stable: self.first_open().unwrap_or(behind),
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

    /// The log begins here now.
    pub(super) fn trim(&mut self, log_start: Offset) {
        while self
            .aborted
            .front()
            .is_some_and(|first| first.last_offset < log_start)
        {
            self.aborted.pop_front();
        }
    }

    /// The transactions that were aborted and have records or markers from `from` to before `to`,
    /// which is at or before the last stable offset, by their markers.
    pub fn aborted(&self, from: Offset, to: Offset) -> impl Iterator<Item = Aborted> {
        let begin = self.aborted.partition_point(|one| one.last_offset < from);
        let mut done = false;
        let each = self.aborted.range(begin..).take_while(move |one| {
            let go_on = !done;
            done = one.stable >= to;
            go_on
        });
        each.filter(move |one| one.first_offset < to).copied()
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
        });
        let aborted = self.aborted.iter().map(|one| StoredAborted {
            producer_id: one.producer_id,
            first_offset: one.first_offset.get(),
            last_offset: one.last_offset.get(),
            stable: one.stable.get(),
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
            let epoch = i16::try_from(open.epoch).ok()?;
            restored.opened(open.producer_id, epoch, Offset(open.first_offset));
        }
        for one in &stored.aborted {
            restored.aborted.push_back(Aborted {
                producer_id: one.producer_id,
                first_offset: Offset(one.first_offset),
                last_offset: Offset(one.last_offset),
                stable: Offset(one.stable),
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
    open: Option<i16>,
    /// Transaction, coordinator's epoch and entry of a marker in this drain.
    marked: Option<(u64, i32, usize)>,
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
            open: self.applied.open(producer_id).map(|open| open.epoch),
            marked: None,
        })
    }

    /// Judges a batch of a producer; `shown` is where the log ended, as applied, before the
    /// coordinator was asked, and said yes.
    pub fn judge(
        &self,
        batch: &Publisher,
        transactional: bool,
        shown: Option<Offset>,
    ) -> Result<(), Unfit> {
        let Changed { open, marked } = self.now(batch.producer_id);
        match (transactional, open) {
            (false, None) => Ok(()),
            (false, Some(_)) => Err(Unfit::Outside),
            (true, Some(epoch)) if epoch == batch.epoch => Ok(()),
            (true, Some(_)) => Err(Unfit::NotShown),
            (true, None) => {
                let unmarked = |since| self.applied.is_unmarked_since(batch.producer_id, since);
                if marked.is_some() || !shown.is_some_and(unmarked) {
                    return Err(Unfit::NotShown);
                }
                let all = self.applied.open.len() + self.applied.aborted.len() + self.opened;
                if all < MAX_TRANSACTIONS {
                    Ok(())
                } else {
                    Err(Unfit::Full)
                }
            }
        }
    }

    /// Remembers an accepted batch of a transaction; true if it is its first.
    pub fn accept(&mut self, batch: &Publisher) -> bool {
        let now = self.now(batch.producer_id);
        let first = now.open.is_none();
        self.opened += usize::from(first);
        let changed = Changed {
            open: Some(batch.epoch),
            ..now
        };
        self.changed.insert(batch.producer_id, changed);
        first
    }

    #[must_use]
    pub fn judge_marker(&self, marker: &Marker) -> MarkerVerdict {
        let applied = self.applied.mark(marker.producer_id);
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
        match applied {
            Some(mark) if marker.transaction <= mark.transaction => {
                MarkerVerdict::Done(mark.offset)
            }
            Some(mark) if marker.coordinator_epoch < mark.coordinator_epoch => MarkerVerdict::Stale,
            Some(_) | None => MarkerVerdict::Append,
        }
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
}

#[derive(Clone, PartialEq, Eq, Message)]
struct StoredAborted {
    #[prost(sint64, tag = "1")]
    producer_id: i64,
    #[prost(uint64, tag = "2")]
    first_offset: u64,
    #[prost(uint64, tag = "3")]
    last_offset: u64,
    #[prost(uint64, tag = "4")]
    stable: u64,
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
