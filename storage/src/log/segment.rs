//! Segment files: whole frames of committed entries behind a small header, named by the index of
//! their first entry.
//!
//! ```text
//!   0 magic "TLSG"     4 version u8    5 zero [3]
//!   8 group u64       16 replica u64   24 base index u64   32 base offset u64
//!  40 base append time ns u64          48 zero [12]        60 CRC-32C of bytes 0..60
//!  64 frames, one after the other
//! ```
//!
//! Integers are little-endian. Where a segment ends is said by the checkpoint: what stands
//! beyond that in the file is a write that was never completed.
//!
//! Two more names stand beside a segment. `<base>.damaged-N` is a segment that was found damaged
//! and set aside; while a replacement is missing, so is `<base>.seg`, and that is how a restart
//! knows. `<base>.copy` is one on its way here from another replica, `<base>.clean` one that is
//! being rewritten; a restart deletes both.
//!
//! A segment that takes the place of others, having been rewritten, is named `<base>-<n>.seg`, for
//! a name stands for one content as long as a checkpoint may say so.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use trilog_model::{GroupId, LogIndex, Offset, ReplicaId, Timestamp};

use super::index::SparseIndex;
use super::tip::Tip;

/// The version this build writes and the newest it reads.
pub(crate) const VERSION: u8 = 1;
/// Bytes of a segment's header.
pub(crate) const HEADER_LEN: u64 = HEADER_BYTES as u64;
pub(crate) const HEADER_BYTES: usize = 64;
const MAGIC: u32 = u32::from_le_bytes(*b"TLSG");
const CRC_AT: usize = 60;
const SUFFIX: &str = ".seg";
const COPY_SUFFIX: &str = "copy";
const CLEAN_SUFFIX: &str = "clean";
const ASIDE_SUFFIX: &str = "damaged-";

/// The first bytes of a segment file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub(crate) group: GroupId,
    pub(crate) replica: ReplicaId,
    pub(crate) base_index: LogIndex,
    pub(crate) base_offset: Offset,
    pub(crate) base_time: Timestamp,
}

/// Why bytes are not a segment header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SegmentError {
    #[error("the segment header is damaged")]
    Damaged,
    #[error("segment format version {0} is newer than this build reads (up to {VERSION})")]
    Version(u8),
}

impl SegmentHeader {
    /// Where the chain stands before its first frame.
    pub(crate) fn tip_before(&self) -> Tip {
        Tip {
            last: None,
            next_index: self.base_index,
            next_offset: self.base_offset,
            next_time: self.base_time,
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(CRC_AT + 4);
        out.put_u32_le(MAGIC);
        out.put_u8(VERSION);
        out.put_bytes(0, 3);
        out.put_u64_le(self.group.get());
        out.put_u64_le(self.replica.0);
        out.put_u64_le(self.base_index.get());
        out.put_u64_le(self.base_offset.get());
        out.put_u64_le(self.base_time.nanos());
        out.put_bytes(0, CRC_AT - out.len());
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        out.freeze()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, SegmentError> {
        let header = bytes.get(..CRC_AT + 4).ok_or(SegmentError::Damaged)?;
        let mut buf = header;
        let magic = buf.get_u32_le();
        let version = buf.get_u8();
        buf.advance(3);
        if magic != MAGIC || crc32c::crc32c(&header[..CRC_AT]) != (&header[CRC_AT..]).get_u32_le() {
            return Err(SegmentError::Damaged);
        }
        if version > VERSION {
            return Err(SegmentError::Version(version));
        }
        Ok(Self {
            group: GroupId(buf.get_u64_le()),
            replica: ReplicaId(buf.get_u64_le()),
            base_index: LogIndex(buf.get_u64_le()),
            base_offset: Offset(buf.get_u64_le()),
            base_time: Timestamp(buf.get_u64_le()),
        })
    }
}

/// The file name of the segment that begins at `base`, the `generation`th of its content.
pub(crate) fn file_name(base: LogIndex, generation: u32) -> String {
    match generation {
        0 => format!("{base:020}{SUFFIX}"),
        _ => format!("{base:020}-{generation}{SUFFIX}"),
    }
}

/// The base index in a segment's file name.
pub(crate) fn parse_file_name(name: &Path) -> Option<LogIndex> {
    let stem = name.to_str()?.strip_suffix(SUFFIX)?;
    let (digits, generation) = match stem.split_once('-') {
        Some((digits, generation)) => (digits, generation),
        None => (stem, "1"),
    };
    let numbers = [digits, generation];
    let plain = numbers
        .iter()
        .all(|number| number.bytes().all(|byte| byte.is_ascii_digit()));
    let known = plain && digits.len() == 20 && generation.parse::<u32>().is_ok_and(|n| n > 0);
    known.then(|| digits.parse().ok().map(LogIndex)).flatten()
}

/// Where a segment is put together that is copied from another replica.
pub(crate) fn copy_path(segment: &Path) -> PathBuf {
    segment.with_extension(COPY_SUFFIX)
}

/// Where a segment is put together that takes the place of `segment`.
pub(crate) fn clean_path(segment: &Path) -> PathBuf {
    segment.with_extension(CLEAN_SUFFIX)
}

/// Whether a file is a segment that is not whole yet: copied from elsewhere, or rewritten.
pub(crate) fn is_copy(name: &Path) -> bool {
    let base = name.with_extension("seg");
    name.extension()
        .is_some_and(|kind| kind == COPY_SUFFIX || kind == CLEAN_SUFFIX)
        && base
            .file_name()
            .map(Path::new)
            .and_then(parse_file_name)
            .is_some()
}

/// The `n`th name of a damaged segment that is set aside.
pub(crate) fn aside_path(segment: &Path, n: u32) -> PathBuf {
    segment.with_extension(format!("{ASIDE_SUFFIX}{n}"))
}

/// The base index of a damaged segment that was set aside under this name.
pub(crate) fn parse_aside_name(name: &Path) -> Option<LogIndex> {
    let kind = name.extension()?.to_str()?;
    let number = kind.strip_prefix(ASIDE_SUFFIX)?;
    number.parse::<u32>().ok()?;
    parse_file_name(Path::new(name.with_extension("seg").file_name()?))
}

/// The file of the index beside a segment.
pub(crate) fn index_path(segment: &Path) -> PathBuf {
    segment.with_extension("idx")
}

/// How far a segment reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Extent {
    /// Bytes of the file, header included.
    pub(crate) bytes: u64,
    /// Behind the last entry.
    pub(crate) tip: Tip,
    /// The append time of the last entry.
    pub(crate) last_time: Timestamp,
    /// The greatest record time, or the least possible number.
    pub(crate) record_time: i64,
}

/// One segment file, shared between the group, the workers and readers.
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) path: PathBuf,
    pub(crate) header: SegmentHeader,
    /// How often a segment that begins here was replaced by one of another content.
    pub(crate) generation: u32,
    pub(crate) index: Mutex<IndexSlot>,
    damaged: AtomicBool,
}

/// What is in memory of a segment's index.
#[derive(Debug)]
pub(crate) enum IndexSlot {
    /// Nothing, or nothing any more: read it or rebuild it.
    Absent,
    /// It grows with the segment; it may begin behind the segment's start.
    Here(SparseIndex),
}

impl Segment {
    pub(crate) fn new(
        dir: &Path,
        header: SegmentHeader,
        generation: u32,
        index: IndexSlot,
    ) -> Self {
        Self {
            path: dir.join(file_name(header.base_index, generation)),
            header,
            generation,
            index: Mutex::new(index),
            damaged: AtomicBool::new(false),
        }
    }

    /// Takes the segment out of service: its bytes are not what was written.
    pub(crate) fn quarantine(&self) -> bool {
        !self.damaged.swap(true, Ordering::Relaxed)
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_survives_the_round_trip_and_no_flip_goes_unseen() {
        let header = SegmentHeader {
            group: GroupId(5),
            replica: ReplicaId(77),
            base_index: LogIndex(1_000),
            base_offset: Offset(5_000),
            base_time: Timestamp(123),
        };
        let bytes = header.encode();
        assert_eq!(bytes.len() as u64, HEADER_LEN);
        assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(SegmentHeader::decode(&damaged), Err(SegmentError::Damaged));
        }
    }

    #[test]
    fn file_names_sort_by_index_and_foreign_names_are_ignored() {
        for (generation, name) in [
            (0, "00000000000000000042.seg"),
            (1, "00000000000000000042-1.seg"),
            (70, "00000000000000000042-70.seg"),
        ] {
            assert_eq!(file_name(LogIndex(42), generation), name);
            assert_eq!(parse_file_name(Path::new(name)), Some(LogIndex(42)));
        }
        for foreign in [
            "42.seg",
            "00000000000000000042-.seg",
            "00000000000000000042-0.seg",
            "00000000000000000042--1.seg",
            "00000000000000000042-1-1.seg",
            "00000000000000000042.idx",
            "+0000000000000000042.seg",
        ] {
            assert_eq!(parse_file_name(Path::new(foreign)), None);
        }
    }

    #[test]
    fn files_set_aside_and_copies_are_told_from_segments() {
        let segment = Path::new("/p/00000000000000000042.seg");
        let aside = aside_path(segment, 3);
        assert_eq!(aside, Path::new("/p/00000000000000000042.damaged-3"));
        assert_eq!(parse_aside_name(&aside), Some(LogIndex(42)));
        assert!(is_copy(&copy_path(segment)) && is_copy(&clean_path(segment)));
        let second = Path::new("/p/00000000000000000042-2.seg");
        assert_eq!(parse_aside_name(&aside_path(second, 1)), Some(LogIndex(42)));
        assert!(is_copy(&clean_path(second)));
        for foreign in ["42.damaged-1", "00000000000000000042.damaged-x", "x.copy"] {
            assert_eq!(parse_aside_name(Path::new(foreign)), None);
            assert!(!is_copy(Path::new(foreign)));
        }
        assert_eq!(parse_aside_name(segment), None);
        assert!(!is_copy(segment));
    }
}
