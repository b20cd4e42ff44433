//! The sparse index of one segment: where in the file to begin looking for an index, an offset or
//! a time. Kept in memory while the segment grows, written beside it when it is sealed, and
//! rebuilt by a scan whenever it is missing or damaged.
//!
//! ```text
//!   0 magic "TLIX"     4 version u8    5 zero [3]
//!   8 group u64       16 base index u64
//!  24 segment bytes it covers u64     32 entries u64
//!  40 entries, each: index u64, base offset u64, append time u64, record time i64, position u64
//!  .. CRC-32C of all before it
//! ```
//!
//! An entry describes the frame at its position; its record time is the greatest of all frames
//! *before* it in the segment. Integers are little-endian.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use trilog_model::{GroupId, LogIndex, Offset, Timestamp};

use super::memory::record_time;
use crate::frame::{Frame, FrameHeader};

/// The version this build writes and the newest it reads.
pub(crate) const VERSION: u8 = 1;
/// Bytes of segment between two entries.
const SPACING: u64 = 32 * 1024;
const MAGIC: u32 = u32::from_le_bytes(*b"TLIX");
const HEAD_LEN: usize = 40;
const ENTRY_LEN: usize = 40;
const CRC_LEN: usize = 4;

/// A frame that is easy to find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct IndexEntry {
    pub(crate) index: LogIndex,
    pub(crate) base_offset: Offset,
    pub(crate) append_time: Timestamp,
    pub(crate) record_time_before: i64,
    pub(crate) pos: u64,
}

/// Why bytes are not an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IndexError {
    Damaged,
    Version(u8),
}

/// The index of a segment, or of its part from the first entry on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SparseIndex {
    entries: Vec<IndexEntry>,
    /// The greatest record time of every frame added or skipped so far.
    record_time: i64,
}

impl SparseIndex {
    /// An index that begins behind frames whose greatest record time is `record_time`.
    pub(crate) fn new(record_time: i64) -> Self {
        Self {
            entries: Vec::new(),
            record_time,
        }
    }

    /// Takes notice of the next frame, which stands at `pos`.
    pub(crate) fn add(&mut self, frame: &Frame, pos: u64) {
        self.note(&frame.header, record_time(frame), pos);
    }

    /// As [`SparseIndex::add`], for a frame of which only this much is at hand.
    pub(crate) fn note(&mut self, header: &FrameHeader, record_time: Option<i64>, pos: u64) {
        let due = self
            .entries
            .last()
            .is_none_or(|last| pos - last.pos >= SPACING);
        if due {
            self.entries.push(IndexEntry {
                index: header.index,
                base_offset: header.base_offset,
                append_time: header.append_time,
                record_time_before: self.record_time,
                pos,
            });
        }
        self.record_time = record_time.map_or(self.record_time, |own| own.max(self.record_time));
    }

    /// The position from which frames are indexed.
    pub(crate) fn covers_from(&self) -> u64 {
        self.entries.first().map_or(u64::MAX, |entry| entry.pos)
    }

    /// Puts the index of what stands before in front.
    pub(crate) fn prepend(&mut self, earlier: &Self) {
        let from = self.covers_from();
        let before = earlier.entries.iter().filter(|entry| entry.pos < from);
        let mut entries: Vec<_> = before.copied().collect();
        entries.append(&mut self.entries);
        self.entries = entries;
    }

    /// Whether both lead to the same places.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.entries == other.entries
    }

    pub(crate) fn memory(&self) -> usize {
        self.entries.capacity() * size_of::<IndexEntry>()
    }

    /// Where to begin to find entry `index`, or `None` if it lies before what is indexed.
    pub(crate) fn seek_index(&self, index: LogIndex) -> Option<u64> {
        self.seek(|entry| entry.index <= index)
    }

    /// Where to begin to find the frame that holds or follows `offset`.
    pub(crate) fn seek_offset(&self, offset: Offset) -> Option<u64> {
        self.seek(|entry| entry.base_offset <= offset)
    }

    /// Where to begin to find the first frame appended at or after `time`.
    pub(crate) fn seek_append_time(&self, time: Timestamp) -> Option<u64> {
        self.seek(|entry| entry.append_time <= time)
    }

    /// Where to begin to find the first frame whose greatest record time is `time` or later.
    pub(crate) fn seek_record_time(&self, time: i64) -> Option<u64> {
        self.seek(|entry| entry.record_time_before < time)
    }

    fn seek(&self, at_or_before: impl Fn(&IndexEntry) -> bool) -> Option<u64> {
        let after = self.entries.partition_point(at_or_before);
        Some(self.entries.get(after.checked_sub(1)?)?.pos)
    }

    /// The index as a file.
    pub(crate) fn encode(&self, group: GroupId, base: LogIndex, segment_bytes: u64) -> Bytes {
        let len = HEAD_LEN + self.entries.len() * ENTRY_LEN + CRC_LEN;
        let mut out = BytesMut::with_capacity(len);
        out.put_u32_le(MAGIC);
        out.put_u8(VERSION);
        out.put_bytes(0, 3);
        out.put_u64_le(group.get());
        out.put_u64_le(base.get());
        out.put_u64_le(segment_bytes);
        out.put_u64_le(self.entries.len() as u64);
        for entry in &self.entries {
            out.put_u64_le(entry.index.get());
            out.put_u64_le(entry.base_offset.get());
            out.put_u64_le(entry.append_time.nanos());
            out.put_i64_le(entry.record_time_before);
            out.put_u64_le(entry.pos);
        }
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        out.freeze()
    }

    /// Reads the index file of the segment of `group` that begins at `base` and is
    /// `segment_bytes` long.
    pub(crate) fn decode(
        bytes: &[u8],
        group: GroupId,
        base: LogIndex,
        segment_bytes: u64,
    ) -> Result<Self, IndexError> {
        let split = bytes
            .len()
            .checked_sub(CRC_LEN)
            .ok_or(IndexError::Damaged)?;
        let (mut body, mut crc) = bytes.split_at(split);
        if body.len() < HEAD_LEN || crc32c::crc32c(body) != crc.get_u32_le() {
            return Err(IndexError::Damaged);
        }
        let magic = body.get_u32_le();
        let version = body.get_u8();
        body.advance(3);
        if magic == MAGIC && version > VERSION {
            return Err(IndexError::Version(version));
        }
        let identity = [body.get_u64_le(), body.get_u64_le(), body.get_u64_le()];
        let count = body.get_u64_le();
        if magic != MAGIC
            || identity != [group.get(), base.get(), segment_bytes]
            || Some(body.len() as u64) != count.checked_mul(ENTRY_LEN as u64)
        {
            return Err(IndexError::Damaged);
        }
        let mut index = Self::new(i64::MIN);
        while body.has_remaining() {
            index.entries.push(IndexEntry {
                index: LogIndex(body.get_u64_le()),
                base_offset: Offset(body.get_u64_le()),
                append_time: Timestamp(body.get_u64_le()),
                record_time_before: body.get_i64_le(),
                pos: body.get_u64_le(),
            });
        }
        Ok(index)
    }
}

#[cfg(test)]
mod tests {
    use trilog_model::EntryId;

    use super::*;
    use crate::frame::FrameKind;

    /// Ten frames, 20 KiB apart, two offsets and 100 ns each; record times 0, 50, 20, 50, 40, ...
    fn sample() -> SparseIndex {
        let mut index = SparseIndex::new(i64::MIN);
        for n in 0..10u64 {
            let id = EntryId::new(1, 100 + n);
            let mut frame = Frame::bare(FrameKind::Data, GroupId(3), id, Bytes::new());
            frame.header.base_offset = Offset(1_000 + 2 * n);
            frame.header.append_time = Timestamp(100 * n);
            let time = if n % 2 == 1 { 50 } else { 10 * n.cast_signed() };
            index.note(&frame.header, Some(time), pos_of(n));
        }
        index
    }

    fn pos_of(frame: u64) -> u64 {
        64 + frame * 20 * 1024
    }

    #[test]
    fn seeks_land_at_or_before_their_frame() {
        let index = sample();
        assert_eq!(index.entries.len(), 5, "every second frame is indexed");
        assert_eq!(index.seek_index(LogIndex(99)), None);
        assert_eq!(index.seek_index(LogIndex(101)), Some(pos_of(0)));
        assert_eq!(index.seek_index(LogIndex(102)), Some(pos_of(2)));
        assert_eq!(index.seek_offset(Offset(1_005)), Some(pos_of(2)));
        assert_eq!(index.seek_append_time(Timestamp(399)), Some(pos_of(2)));
        assert_eq!(index.seek_append_time(Timestamp(401)), Some(pos_of(4)));
        assert_eq!(index.seek_record_time(50), Some(pos_of(0)));
        assert_eq!(index.seek_record_time(60), Some(pos_of(6)));
        assert_eq!(index.seek_record_time(99), Some(pos_of(8)));
    }

    #[test]
    fn an_index_survives_the_round_trip() {
        let index = sample();
        let bytes = index.encode(GroupId(3), LogIndex(100), 4_096);
        let back = SparseIndex::decode(&bytes, GroupId(3), LogIndex(100), 4_096).unwrap();
        assert_eq!(back.entries, index.entries);
    }

    #[test]
    fn every_truncation_flip_and_foreign_segment_is_found() {
        let bytes = sample().encode(GroupId(3), LogIndex(100), 4_096);
        let decode = |bytes: &[u8]| SparseIndex::decode(bytes, GroupId(3), LogIndex(100), 4_096);
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err());
        }
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(decode(&damaged), Err(IndexError::Damaged), "bit {bit}");
        }
        let foreign = SparseIndex::decode(&bytes, GroupId(4), LogIndex(100), 4_096);
        assert_eq!(foreign, Err(IndexError::Damaged));
    }

    #[test]
    fn an_index_that_began_late_takes_what_stands_before() {
        let whole = sample();
        let mut late = SparseIndex::new(50);
        late.entries = whole.entries[3..].to_vec();
        assert_eq!(late.seek_index(LogIndex(103)), None);
        late.prepend(&whole);
        assert_eq!(late.entries, whole.entries);
    }
}
