//! Where a log continues: what the next entry must be to belong to it.

use trilog_model::{EntryId, LogIndex, Offset, Timestamp};

use super::types::LogStart;
use crate::frame::{FrameHeader, FrameKind};

/// The end of a chain of entries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tip {
    /// The last entry, or the one the log start stands for.
    pub(crate) last: Option<EntryId>,
    pub(crate) next_index: LogIndex,
    pub(crate) next_offset: Offset,
    /// The earliest append time of the next entry.
    pub(crate) next_time: Timestamp,
}

/// How an entry fails to continue a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Break {
    Index,
    Term,
    Offset,
    Time,
}

impl Tip {
    /// The tip behind an entry.
    pub(crate) fn after(header: &FrameHeader) -> Self {
        Self {
            last: Some(header.last_id()),
            next_index: header.next_index(),
            next_offset: header.next_offset(),
            next_time: next_time(header),
        }
    }

    /// The tip behind a frame that continues a chain of stored ones. The time of entries of which
    /// nothing is left is not known exactly where they were cut, at the end of a replica's
    /// segment: it is never too early, and so bounds nothing behind it.
    pub(crate) fn past(&self, header: &FrameHeader) -> Self {
        let after = Self::after(header);
        if header.kind != FrameKind::Removed {
            return after;
        }
        // A segment that begins with such entries has its own earliest time from them.
        let known = self.last.map_or(Timestamp(0), |_| self.next_time);
        Self {
            next_time: known,
            ..after
        }
    }

    /// Whether both are the same place. What they say of time may differ, as above.
    pub(crate) fn is_at(&self, other: &Self) -> bool {
        let place = |tip: &Self| (tip.last, tip.next_index, tip.next_offset);
        place(self) == place(other)
    }

    /// The tip of a log emptied by `start`.
    pub(crate) fn at_start(start: &LogStart) -> Self {
        Self {
            last: Some(start.purged),
            next_index: start.purged.index.next(),
            next_offset: start.next_offset,
            next_time: start.next_time,
        }
    }

    /// Whether none of its numbers exceeds `most`.
    pub(crate) fn is_within(&self, most: u64) -> bool {
        let last = self
            .last
            .map_or([0, 0], |last| [last.term.get(), last.index.get()]);
        let next = [
            self.next_index.get(),
            self.next_offset.get(),
            self.next_time.nanos(),
        ];
        last.iter().chain(&next).all(|number| *number <= most)
    }

    /// Whether the entry, or what is left of several, continues the chain.
    pub(crate) fn check(&self, header: &FrameHeader) -> Result<(), Break> {
        if header.index != self.next_index {
            Err(Break::Index)
        } else if self.last.is_some_and(|last| header.term < last.term) {
            Err(Break::Term)
        } else if header.base_offset != self.next_offset {
            Err(Break::Offset)
        } else if header.append_time < self.next_time && header.kind != FrameKind::Removed {
            Err(Break::Time)
        } else {
            Ok(())
        }
    }
}

/// The first nanosecond no record of this entry has: records sit one by one from its append time.
pub(crate) fn next_time(header: &FrameHeader) -> Timestamp {
    let places = u64::from(header.record_count.max(1));
    Timestamp(header.append_time.nanos().saturating_add(places))
}
