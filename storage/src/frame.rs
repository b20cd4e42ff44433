//! The frame: one log entry as it stands in the write-ahead log, in segments and on peer links.
//!
//! ```text
//!   0 magic "TLF1"      4 version u8    5 kind u8      6 flags u16
//!   8 group u64        16 index u64    24 term u64
//!  32 base offset u64  40 append time ns u64           48 record count u32
//!  52 records length u32               56 records CRC u32
//!  60 command length u32               64 command CRC u32
//!  68 further entries u64              76 CRC-32C of bytes 0..76
//!  80 records, then command
//! ```
//!
//! `further entries` is zero but in a [`FrameKind::Removed`], which stands for entries of one term
//! that compaction left nothing of: from `index` on, one and so many more. Its record count says
//! how many offsets they took, its append time is the latest that keeps the chain whole.
//!
//! Integers are little-endian. `records` is exactly one Kafka v2 record batch with base offset
//! and leader epoch patched in. Its CRC-32C is the batch's own (over byte 21 onwards), which the
//! producer computed and the edge verified, so a frame costs no second pass over the payload;
//! the 21 bytes before it are all derived from this header and leave only freshly made.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use trilog_model::{EntryId, GroupId, LogIndex, Offset, Term, Timestamp};

/// Bytes of an encoded header.
pub const HEADER_LEN: usize = 80;
/// The start of a v2 record batch that its own CRC does not cover: base offset, length, leader
/// epoch, magic, CRC.
pub const BATCH_PREFIX_LEN: usize = 21;
/// The version this build writes and the newest it reads.
pub const VERSION: u8 = 1;

/// Beyond what an index, a term, an offset, a time or a round ever reaches, and so low that adding
/// a few such numbers does not overflow: what is read from a disk or a peer is held against it.
pub(crate) const NUMBER_MAX: u64 = 1 << 62;

const MAGIC: u32 = u32::from_le_bytes(*b"TLF1");
const CRC_AT: usize = 76;

/// What a frame is. The numbers are on disk: never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Raft's own empty entry, with which a leader opens its term.
    Blank = 1,
    /// Records, a view's command, or both.
    Data = 2,
    /// A Raft membership; the command part carries it, opaque to storage.
    Membership = 3,
    /// Only in segments and copies of them: entries of which nothing is left. They keep their
    /// places and their offsets.
    Removed = 4,
    /// Only in the write-ahead log: the group's vote; the command part carries it.
    Vote = 16,
    /// Only in the write-ahead log: entries after `index` are gone; flag bit 0: all are.
    Truncate = 17,
    /// Only in the write-ahead log: a new log start; the command part carries it.
    LogStart = 18,
    /// Only in the write-ahead log: the group exists, with the replica id in the command part.
    GroupCreated = 19,
    /// Only in the write-ahead log: the group is gone for ever.
    GroupRemoved = 20,
    /// Only in the write-ahead log, a hint: entries up to `index` are committed.
    Committed = 21,
    /// Reserved: a payload that was written to a side file instead.
    Pointer = 32,
}

impl FrameKind {
    fn from_u8(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Blank,
            2 => Self::Data,
            3 => Self::Membership,
            4 => Self::Removed,
            16 => Self::Vote,
            17 => Self::Truncate,
            18 => Self::LogStart,
            19 => Self::GroupCreated,
            20 => Self::GroupRemoved,
            21 => Self::Committed,
            32 => Self::Pointer,
            _ => return None,
        })
    }

    /// Whether the frame is a log entry, and not a note of the write-ahead log about its group.
    #[must_use]
    pub const fn is_entry(self) -> bool {
        matches!(self, Self::Blank | Self::Data | Self::Membership)
    }

    /// Whether the frame may stand in a segment.
    #[must_use]
    pub const fn is_stored(self) -> bool {
        self.is_entry() || matches!(self, Self::Removed)
    }
}

/// Everything about a frame but its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    pub kind: FrameKind,
    pub flags: u16,
    pub group: GroupId,
    pub index: LogIndex,
    pub term: Term,
    /// The offset of the first record, or, where there is none, of the next record to come.
    pub base_offset: Offset,
    pub append_time: Timestamp,
    pub record_count: u32,
    pub records_len: u32,
    pub records_crc: u32,
    pub command_len: u32,
    pub command_crc: u32,
    /// Entries it stands for beside the one at `index`.
    pub further: u64,
}

impl FrameHeader {
    #[must_use]
    pub const fn id(&self) -> EntryId {
        EntryId {
            term: self.term,
            index: self.index,
        }
    }

    /// The last entry it stands for.
    #[must_use]
    pub const fn last_id(&self) -> EntryId {
        EntryId {
            term: self.term,
            index: LogIndex(self.index.get() + self.further),
        }
    }

    /// The entry that follows.
    #[must_use]
    pub const fn next_index(&self) -> LogIndex {
        LogIndex(self.index.get() + self.further + 1)
    }

    /// Whether there are records for readers in it.
    #[must_use]
    pub fn has_records(&self) -> bool {
        self.record_count > 0 && self.kind != FrameKind::Removed
    }

    /// The offset after the last record of this entry.
    #[must_use]
    pub const fn next_offset(&self) -> Offset {
        self.base_offset.plus(self.record_count as u64)
    }

    /// Bytes of the whole encoded frame.
    #[must_use]
    pub const fn frame_len(&self) -> usize {
        HEADER_LEN + self.records_len as usize + self.command_len as usize
    }

    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let mut buf = &mut out[..];
        buf.put_u32_le(MAGIC);
        buf.put_u8(VERSION);
        buf.put_u8(self.kind as u8);
        buf.put_u16_le(self.flags);
        buf.put_u64_le(self.group.get());
        buf.put_u64_le(self.index.get());
        buf.put_u64_le(self.term.get());
        buf.put_u64_le(self.base_offset.get());
        buf.put_u64_le(self.append_time.nanos());
        buf.put_u32_le(self.record_count);
        buf.put_u32_le(self.records_len);
        buf.put_u32_le(self.records_crc);
        buf.put_u32_le(self.command_len);
        buf.put_u32_le(self.command_crc);
        buf.put_u64_le(self.further);
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads and verifies the header at the start of `bytes`.
    pub fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        let header = bytes.get(..HEADER_LEN).ok_or(FrameError::Incomplete)?;
        let mut buf = header;
        if buf.get_u32_le() != MAGIC {
            return Err(FrameError::NotAFrame);
        }
        let stored = (&header[CRC_AT..]).get_u32_le();
        if crc32c::crc32c(&header[..CRC_AT]) != stored {
            return Err(FrameError::HeaderCrc);
        }
        let version = buf.get_u8();
        if version > VERSION {
            return Err(FrameError::Version(version));
        }
        let kind = buf.get_u8();
        let kind = FrameKind::from_u8(kind).ok_or(FrameError::Kind(kind))?;
        let header = Self {
            kind,
            flags: buf.get_u16_le(),
            group: GroupId(buf.get_u64_le()),
            index: LogIndex(buf.get_u64_le()),
            term: Term(buf.get_u64_le()),
            base_offset: Offset(buf.get_u64_le()),
            append_time: Timestamp(buf.get_u64_le()),
            record_count: buf.get_u32_le(),
            records_len: buf.get_u32_le(),
            records_crc: buf.get_u32_le(),
            command_len: buf.get_u32_le(),
            command_crc: buf.get_u32_le(),
            further: buf.get_u64_le(),
        };
        let numbers = [
            header.further,
            header.index.get(),
            header.term.get(),
            header.base_offset.get(),
            header.append_time.nanos(),
        ];
        let alone = kind == FrameKind::Removed || header.further == 0;
        if !alone || numbers.iter().any(|number| *number > NUMBER_MAX) {
            return Err(FrameError::Implausible);
        }
        Ok(header)
    }

    /// The first bytes of the record batch as they stand on disk and go to readers: the
    /// producer's, with this entry's base offset and term.
    #[must_use]
    pub fn batch_prefix(&self) -> [u8; BATCH_PREFIX_LEN] {
        let mut out = [0; BATCH_PREFIX_LEN];
        let mut buf = &mut out[..];
        buf.put_u64(self.base_offset.get());
        buf.put_u32(self.records_len.saturating_sub(12));
        // Kafka's leader epoch has 31 bits; the raft layer refuses terms beyond them.
        buf.put_u32(u32::try_from(self.term.get()).unwrap_or(u32::MAX));
        buf.put_u8(2);
        buf.put_u32(self.records_crc);
        out
    }
}

/// One log entry: header and payload.
///
/// `records` may be the producer's own bytes, prefix unpatched, or bytes read back from disk,
/// where it is patched; what leaves always has the prefix of [`FrameHeader::batch_prefix`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub header: FrameHeader,
    pub records: Bytes,
    pub command: Bytes,
}

impl Frame {
    /// A frame without records; `command` may be empty.
    #[must_use]
    pub fn bare(kind: FrameKind, group: GroupId, id: EntryId, command: Bytes) -> Self {
        let header = FrameHeader {
            kind,
            flags: 0,
            group,
            index: id.index,
            term: id.term,
            base_offset: Offset(0),
            append_time: Timestamp(0),
            record_count: 0,
            records_len: 0,
            records_crc: 0,
            command_len: u32::try_from(command.len()).unwrap_or(u32::MAX),
            command_crc: crc32c::crc32c(&command),
            further: 0,
        };
        Self {
            header,
            records: Bytes::new(),
            command,
        }
    }

    /// The frame as slices for a vectored write, appended to `out`. The payload is shared, not
    /// copied: only the header and the batch prefix are fresh bytes.
    pub fn push_slices(&self, out: &mut Vec<Bytes>) {
        if self.records.len() < BATCH_PREFIX_LEN {
            out.push(Bytes::copy_from_slice(&self.header.encode()));
        } else {
            let mut head = BytesMut::with_capacity(HEADER_LEN + BATCH_PREFIX_LEN);
            head.put_slice(&self.header.encode());
            head.put_slice(&self.header.batch_prefix());
            out.push(head.freeze());
            out.push(self.records.slice(BATCH_PREFIX_LEN..));
        }
        if !self.command.is_empty() {
            out.push(self.command.clone());
        }
    }

    /// The record batch as readers get it: fresh prefix, shared body. Empty without records.
    #[must_use]
    pub fn batch_slices(&self) -> Option<([u8; BATCH_PREFIX_LEN], Bytes)> {
        (self.records.len() >= BATCH_PREFIX_LEN).then(|| {
            (
                self.header.batch_prefix(),
                self.records.slice(BATCH_PREFIX_LEN..),
            )
        })
    }

    /// Cuts the frame at the start of `bytes`, advancing them, and verifies header and payload.
    /// Never allocates: payload stays a slice of `bytes`. On error `bytes` is unchanged.
    pub fn decode(bytes: &mut Bytes) -> Result<Self, FrameError> {
        let header = FrameHeader::decode(bytes)?;
        if bytes.len() < header.frame_len() {
            return Err(FrameError::Incomplete);
        }
        let records_end = HEADER_LEN + header.records_len as usize;
        let records = bytes.slice(HEADER_LEN..records_end);
        let command = bytes.slice(records_end..header.frame_len());
        let frame = Self {
            header,
            records,
            command,
        };
        frame.verify()?;
        bytes.advance(header.frame_len());
        Ok(frame)
    }

    /// Checks the payload against the header's lengths and checksums, the one full pass.
    pub fn verify(&self) -> Result<(), FrameError> {
        let header = &self.header;
        if self.records.len() != header.records_len as usize
            || self.command.len() != header.command_len as usize
        {
            return Err(FrameError::PayloadLength);
        }
        if header.records_len != 0 {
            let body = self
                .records
                .get(BATCH_PREFIX_LEN..)
                .ok_or(FrameError::PayloadLength)?;
            if crc32c::crc32c(body) != header.records_crc {
                return Err(FrameError::RecordsCrc);
            }
        }
        if crc32c::crc32c(&self.command) != header.command_crc {
            return Err(FrameError::CommandCrc);
        }
        Ok(())
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("the bytes end before the frame does")]
    Incomplete,
    #[error("no frame starts here")]
    NotAFrame,
    #[error("the frame header's checksum does not match")]
    HeaderCrc,
    #[error("frame format version {0} is newer than this build reads (up to {VERSION})")]
    Version(u8),
    #[error("frame kind {0} is unknown to this build")]
    Kind(u8),
    #[error("the frame header's numbers are beyond what a log ever reaches")]
    Implausible,
    #[error("the payload's length differs from the header's")]
    PayloadLength,
    #[error("the record batch's checksum does not match")]
    RecordsCrc,
    #[error("the command's checksum does not match")]
    CommandCrc,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A data frame over `records` (any bytes long enough) and `command`.
    fn data_frame(records: &'static [u8], command: &'static [u8]) -> Frame {
        let mut frame = Frame::bare(
            FrameKind::Data,
            GroupId(5),
            EntryId::new(3, 9),
            command.into(),
        );
        frame.header.base_offset = Offset(1_000);
        frame.header.record_count = 2;
        frame.header.records_len = u32::try_from(records.len()).unwrap();
        frame.header.records_crc = crc32c::crc32c(&records[BATCH_PREFIX_LEN..]);
        frame.records = Bytes::from_static(records);
        frame
    }

    fn encoded(frame: &Frame) -> Bytes {
        let mut slices = Vec::new();
        frame.push_slices(&mut slices);
        slices.concat().into()
    }

    #[test]
    fn a_frame_survives_the_round_trip_with_its_prefix_patched() {
        let frame = data_frame(&[7; 100], b"facts");
        let mut bytes = encoded(&frame);
        let back = Frame::decode(&mut bytes).unwrap();
        assert!(bytes.is_empty());
        assert_eq!(back.header, frame.header);
        assert_eq!(back.command, frame.command);
        assert_eq!(
            back.records[..BATCH_PREFIX_LEN],
            frame.header.batch_prefix()
        );
        assert_eq!(
            back.records[BATCH_PREFIX_LEN..],
            frame.records[BATCH_PREFIX_LEN..]
        );
        assert_eq!(back.records[..8], 1_000u64.to_be_bytes());
        assert_eq!(back.records[12..16], 3u32.to_be_bytes());
    }

    #[test]
    fn the_payload_is_shared_and_not_copied() {
        let frame = data_frame(&[7; 100], b"facts");
        let mut slices = Vec::new();
        frame.push_slices(&mut slices);
        assert_eq!(
            slices[1].as_ptr(),
            frame.records[BATCH_PREFIX_LEN..].as_ptr()
        );
        assert_eq!(slices[2].as_ptr(), frame.command.as_ptr());
    }

    #[test]
    fn every_truncation_is_incomplete_and_every_flip_is_found() {
        let whole = encoded(&data_frame(&[7; 64], b"facts"));
        for len in 0..whole.len() {
            assert_eq!(
                Frame::decode(&mut whole.slice(..len)),
                Err(FrameError::Incomplete)
            );
        }
        for bit in 0..whole.len() * 8 {
            // The prefix is derived from the header, not trusted, so a flip there is harmless.
            if (HEADER_LEN..HEADER_LEN + BATCH_PREFIX_LEN).contains(&(bit / 8)) {
                continue;
            }
            let mut damaged = whole.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Frame::decode(&mut damaged.into()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn numbers_that_would_overflow_are_refused() {
        let frame = data_frame(&[7; 64], b"");
        let changes: [fn(&mut FrameHeader); 4] = [
            |header| header.index = LogIndex(u64::MAX),
            |header| header.term = Term(u64::MAX),
            |header| header.base_offset = Offset(u64::MAX),
            |header| header.append_time = Timestamp(u64::MAX),
        ];
        for change in changes {
            let mut header = frame.header;
            change(&mut header);
            let refused = FrameHeader::decode(&header.encode());
            assert_eq!(refused, Err(FrameError::Implausible));
        }
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let mut bytes = encoded(&data_frame(&[7; 64], b"")).to_vec();
        bytes[4] = VERSION + 1;
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        bytes[CRC_AT..HEADER_LEN].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(
            Frame::decode(&mut bytes.into()),
            Err(FrameError::Version(2))
        );
    }
}
