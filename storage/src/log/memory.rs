//! The part of a log that is in memory: a contiguous run of frames up to its end.
//!
//! The back of it is pinned (not yet in a segment), the front is the tail cache (in a segment
//! already, kept for readers and dropped when the budget asks). Frames share their payload with
//! the socket buffers they came in; bytes are counted by their length on disk.

use std::collections::VecDeque;

use trilog_model::{LogIndex, Offset, Timestamp};

use crate::frame::{BATCH_PREFIX_LEN, Frame, FrameHeader};

#[derive(Debug)]
struct Slot {
    frame: Frame,
    /// Bytes of all frames ever pushed, up to and including this one.
    total: u64,
    /// The greatest record time of all frames ever pushed, up to and including this one.
    record_time: i64,
}

/// A contiguous suffix of a log.
#[derive(Debug, Default)]
pub(crate) struct Resident {
    slots: VecDeque<Slot>,
    first: LogIndex,
    /// Bytes of all frames ever pushed and not cut off again.
    total: u64,
}

impl Resident {
    /// An empty suffix that continues at `next`.
    pub(crate) fn starting_at(next: LogIndex) -> Self {
        Self {
            slots: VecDeque::new(),
            first: next,
            total: 0,
        }
    }

    pub(crate) fn first(&self) -> LogIndex {
        self.first
    }

    /// The index after the last frame.
    pub(crate) fn end(&self) -> LogIndex {
        LogIndex(self.first.get() + self.slots.len() as u64)
    }

    /// Adds the frame that follows; the caller has checked its index.
    pub(crate) fn push(&mut self, frame: Frame) {
        debug_assert_eq!(frame.header.index, self.end());
        self.total += frame.header.frame_len() as u64;
        let before = self.slots.back().map_or(i64::MIN, |slot| slot.record_time);
        let record_time = record_time(&frame).map_or(before, |time| time.max(before));
        self.slots.push_back(Slot {
            frame,
            total: self.total,
            record_time,
        });
    }

    /// Drops everything from `end` on.
    pub(crate) fn cut(&mut self, end: LogIndex) {
        while self.end() > end && self.slots.pop_back().is_some() {}
        self.total = self.slots.back().map_or(0, |slot| slot.total);
    }

    /// Drops frames below `end` from the front, giving their memory back.
    pub(crate) fn evict(&mut self, end: LogIndex) {
        while self.first < end && self.slots.pop_front().is_some() {
            self.first = self.first.next();
        }
        if self.slots.len() * 4 < self.slots.capacity() {
            self.slots.shrink_to(self.slots.len() * 2);
        }
    }

    /// Bytes of the frames in `from..to`, as far as they are here.
    pub(crate) fn bytes(&self, from: LogIndex, to: LogIndex) -> u64 {
        self.total_before(to)
            .saturating_sub(self.total_before(from))
    }

    fn total_before(&self, index: LogIndex) -> u64 {
        let Some(front) = self.slots.front() else {
            return 0;
        };
        match self.position(index.min(self.end())) {
            None | Some(0) => front.total - front.frame.header.frame_len() as u64,
            Some(at) => self.slots[at - 1].total,
        }
    }

    fn position(&self, index: LogIndex) -> Option<usize> {
        usize::try_from(index.get().checked_sub(self.first.get())?).ok()
    }

    pub(crate) fn get(&self, index: LogIndex) -> Option<&Frame> {
        let slot = self.slots.get(self.position(index)?)?;
        Some(&slot.frame)
    }

    /// The frames of `from..to` up to `max_bytes`, at least one; `None` if `from` is not here.
    pub(crate) fn frames(
        &self,
        from: LogIndex,
        to: LogIndex,
        max_bytes: usize,
    ) -> Option<Vec<Frame>> {
        let start = self.position(from)?;
        if from >= to.min(self.end()) {
            return (from <= self.end()).then(Vec::new);
        }
        let stop = self.position(to.min(self.end()))?;
        let limit = self.total_before(from).saturating_add(max_bytes as u64);
        // One after the other: looking for the last would go through frames nobody has asked for.
        let within = self.slots.range(start..stop).enumerate();
        let within = within.take_while(|(nth, slot)| *nth == 0 || slot.total <= limit);
        Some(within.map(|(_, slot)| slot.frame.clone()).collect())
    }

    /// The headers of `from..to`; `None` unless all of them are here.
    pub(crate) fn headers(&self, from: LogIndex, to: LogIndex) -> Option<Vec<FrameHeader>> {
        if to > self.end() {
            return None;
        }
        let range = self.position(from)?..self.position(to)?;
        (range.start <= range.end).then(|| {
            self.slots
                .range(range)
                .map(|slot| slot.frame.header)
                .collect()
        })
    }

    /// The first frame whose records reach beyond `from`; the end if there is none. `None` if the
    /// answer may lie before what is here.
    pub(crate) fn find_offset(&self, from: Offset) -> Option<LogIndex> {
        let front = self.slots.front()?;
        if from < front.frame.header.base_offset {
            return None;
        }
        Some(self.find(|slot| slot.frame.header.next_offset() <= from))
    }

    /// The first frame in `start..` with an append time of at least `time`.
    pub(crate) fn find_append_time(&self, start: LogIndex, time: Timestamp) -> LogIndex {
        self.find(|slot| slot.frame.header.append_time < time)
            .max(start)
    }

    /// The first frame in `start..` whose greatest record time is at least `time`.
    pub(crate) fn find_record_time(&self, start: LogIndex, time: i64) -> LogIndex {
        let found = self.find(|slot| slot.record_time < time);
        if found >= start {
            return found;
        }
        // The running maximum was reached before `start`: look at each frame's own.
        let from = self.position(start).unwrap_or(0).min(self.slots.len());
        let after = self
            .slots
            .range(from..)
            .position(|slot| record_time(&slot.frame).is_some_and(|own| own >= time));
        after.map_or(self.end(), |skip| LogIndex(start.get() + skip as u64))
    }

    /// The first frame for which `before` is false, which must be so for all that follow.
    fn find(&self, before: impl Fn(&Slot) -> bool) -> LogIndex {
        LogIndex(self.first.get() + self.slots.partition_point(before) as u64)
    }
}

/// The greatest record time of a frame's batch, in milliseconds: bytes 35 to 43 of a v2 batch.
pub(crate) fn record_time(frame: &Frame) -> Option<i64> {
    const MAX_TIMESTAMP_AT: usize = 35;
    const { assert!(MAX_TIMESTAMP_AT >= BATCH_PREFIX_LEN) };
    let bytes = frame.records.get(MAX_TIMESTAMP_AT..MAX_TIMESTAMP_AT + 8)?;
    Some(i64::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use trilog_model::{EntryId, GroupId};

    use super::*;
    use crate::frame::FrameKind;

    /// Entry `index` with one record of `len` command bytes and append time `index * 10`.
    fn frame(index: u64, len: usize) -> Frame {
        let id = EntryId::new(1, index);
        let command = Bytes::from(vec![0; len]);
        let mut frame = Frame::bare(FrameKind::Data, GroupId(1), id, command);
        frame.header.base_offset = Offset(index);
        frame.header.record_count = 1;
        frame.header.append_time = Timestamp(index * 10);
        frame
    }

    fn resident(indexes: std::ops::Range<u64>) -> Resident {
        let mut resident = Resident::starting_at(LogIndex(indexes.start));
        for index in indexes {
            resident.push(frame(index, 20));
        }
        resident
    }

    fn indexes(frames: &[Frame]) -> Vec<u64> {
        frames
            .iter()
            .map(|frame| frame.header.index.get())
            .collect()
    }

    #[test]
    fn reads_stop_at_the_byte_limit_but_yield_at_least_one_frame() {
        let resident = resident(5..15);
        let read = |from, to, max| resident.frames(LogIndex(from), LogIndex(to), max);
        assert_eq!(
            indexes(&read(5, 15, 1_000_000).unwrap()),
            (5..15).collect::<Vec<_>>()
        );
        assert_eq!(indexes(&read(7, 15, 0).unwrap()), [7]);
        assert_eq!(indexes(&read(7, 15, 299).unwrap()), [7, 8]);
        assert_eq!(indexes(&read(7, 15, 300).unwrap()), [7, 8, 9]);
        assert_eq!(indexes(&read(7, 9, 300).unwrap()), [7, 8]);
        assert!(read(4, 9, 300).is_none());
        assert_eq!(read(15, 20, 300), Some(Vec::new()));
        assert!(read(16, 20, 300).is_none());
    }

    #[test]
    fn byte_counts_survive_eviction_and_cuts() {
        let mut resident = resident(0..10);
        assert_eq!(resident.bytes(LogIndex(0), LogIndex(10)), 1_000);
        resident.evict(LogIndex(4));
        assert_eq!(resident.first(), LogIndex(4));
        assert_eq!(resident.bytes(LogIndex(0), LogIndex(10)), 600);
        assert_eq!(resident.bytes(LogIndex(6), LogIndex(8)), 200);
        resident.cut(LogIndex(8));
        assert_eq!(resident.end(), LogIndex(8));
        assert_eq!(resident.bytes(LogIndex(4), LogIndex(99)), 400);
        resident.cut(LogIndex(4));
        assert_eq!(resident.bytes(LogIndex(0), LogIndex(99)), 0);
        resident.push(frame(4, 20));
        assert_eq!(resident.bytes(LogIndex(4), LogIndex(5)), 100);
    }

    #[test]
    fn offsets_and_times_find_their_frame() {
        let resident = resident(5..15);
        assert_eq!(resident.find_offset(Offset(4)), None);
        assert_eq!(resident.find_offset(Offset(9)), Some(LogIndex(9)));
        assert_eq!(resident.find_offset(Offset(99)), Some(LogIndex(15)));
        let at = |time| resident.find_append_time(LogIndex(5), Timestamp(time));
        assert_eq!(at(0), LogIndex(5));
        assert_eq!(at(61), LogIndex(7));
        assert_eq!(at(999), LogIndex(15));
    }

    #[test]
    fn headers_are_all_or_nothing() {
        let resident = resident(5..15);
        assert_eq!(resident.headers(LogIndex(6), LogIndex(9)).unwrap().len(), 3);
        assert!(resident.headers(LogIndex(4), LogIndex(9)).is_none());
        assert!(resident.headers(LogIndex(9), LogIndex(16)).is_none());
        assert_eq!(resident.headers(LogIndex(9), LogIndex(9)), Some(Vec::new()));
    }
}
