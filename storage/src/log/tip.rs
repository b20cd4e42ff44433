//! Where a log continues: what the next entry must be to belong to it.

use trilog_model::{EntryId, LogIndex, Offset, Timestamp};

use super::types::LogStart;
use crate::frame::FrameHeader;

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

    /// Whether the entry continues the chain.
    pub(crate) fn check(&self, header: &FrameHeader) -> Result<(), Break> {
        if header.index != self.next_index {
            Err(Break::Index)
        } else if self.last.is_some_and(|last| header.term < last.term) {
            Err(Break::Term)
        } else if header.base_offset != self.next_offset {
            Err(Break::Offset)
        } else if header.append_time < self.next_time {
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
