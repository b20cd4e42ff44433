//! The frames of a rewritten segment, one after the other, and what follows from them.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use trilog_model::{EntryId, GroupId, Offset, Timestamp};

use super::index::SparseIndex;
use super::segment::{Extent, HEADER_LEN, Segment, SegmentHeader};
use super::tip::{Tip, next_time};
use crate::frame::{BATCH_PREFIX_LEN, Frame, FrameHeader, FrameKind};

/// Bytes that make a write.
const RUN_BYTES: u64 = 1 << 20;

/// A segment that may take the place of others, whole and durable under a name of its own.
#[derive(Debug)]
pub(crate) struct Rewritten {
    /// Neighbours, the oldest first.
    pub(crate) of: Vec<Arc<Segment>>,
    pub(crate) path: PathBuf,
    pub(crate) header: SegmentHeader,
    pub(crate) extent: Extent,
    pub(crate) index: SparseIndex,
}

/// Entries of which nothing is left, as far as they can share a frame.
#[derive(Clone, Copy, Debug)]
struct Hole {
    first: EntryId,
    further: u64,
    base_offset: Offset,
    record_count: u32,
    next_time: Timestamp,
}

impl Hole {
    fn of(header: &FrameHeader) -> Self {
        Self {
            first: header.id(),
            further: header.further,
            base_offset: header.base_offset,
            record_count: header.record_count,
            next_time: next_time(header),
        }
    }

    /// The hole and the next entries as one, if they can be.
    fn with(self, header: &FrameHeader) -> Option<Self> {
        let record_count = self.record_count.checked_add(header.record_count)?;
        (self.first.term == header.term).then_some(Self {
            further: self.further + header.further + 1,
            record_count,
            next_time: next_time(header),
            ..self
        })
    }
}

/// The frame that stands for entries of which nothing is left. Its own time is the latest with
/// which the next entry's earliest time stays what it was; it is never earlier than that of the
/// first of them, for each entry takes a nanosecond at least, and one for each record. Where they
/// are cut inside, nobody knows that earliest time, and a later one stands for it.
pub(crate) fn removed(
    group: GroupId,
    (first, further): (EntryId, u64),
    (base_offset, record_count): (Offset, u32),
    next_time: Timestamp,
) -> Frame {
    let mut frame = Frame::bare(FrameKind::Removed, group, first, Bytes::new());
    let places = u64::from(record_count.max(1));
    frame.header.further = further;
    frame.header.base_offset = base_offset;
    frame.header.record_count = record_count;
    frame.header.append_time = Timestamp(next_time.nanos().saturating_sub(places));
    frame
}

/// See the module's text.
pub(crate) struct Rewriter {
    group: GroupId,
    extent: Extent,
    index: SparseIndex,
    hole: Option<Hole>,
    bufs: Vec<Bytes>,
    /// Where the buffers go.
    pos: u64,
}

impl Rewriter {
    pub(crate) fn new(header: SegmentHeader) -> Self {
        Self {
            group: header.group,
            extent: Extent {
                bytes: HEADER_LEN,
                tip: header.tip_before(),
                last_time: header.base_time,
                record_time: i64::MIN,
            },
            index: SparseIndex::new(i64::MIN),
            hole: None,
            bufs: vec![header.encode()],
            pos: 0,
        }
    }

    /// The frame stays as it is.
    pub(crate) fn keep(&mut self, frame: &Frame) {
        self.close_hole();
        self.put(frame);
    }

    /// Only `records` of the frame's stay, as a batch of their own.
    pub(crate) fn replace(&mut self, mut frame: Frame, records: Bytes) {
        let crc = crc32c::crc32c(records.get(BATCH_PREFIX_LEN..).unwrap_or_default());
        frame.header.records_len = u32::try_from(records.len()).unwrap_or(u32::MAX);
        frame.header.records_crc = crc;
        frame.records = records;
        self.keep(&frame);
    }

    /// Nothing of the frame stays.
    pub(crate) fn remove(&mut self, header: &FrameHeader) {
        let joined = self.hole.and_then(|hole| hole.with(header));
        if joined.is_none() {
            self.close_hole();
        }
        self.hole = Some(joined.unwrap_or_else(|| Hole::of(header)));
    }

    fn close_hole(&mut self) {
        if let Some(hole) = self.hole.take() {
            let frame = removed(
                self.group,
                (hole.first, hole.further),
                (hole.base_offset, hole.record_count),
                hole.next_time,
            );
            self.put(&frame);
        }
    }

    fn put(&mut self, frame: &Frame) {
        self.index.add(frame, self.extent.bytes);
        self.extent.add(frame);
        frame.push_slices(&mut self.bufs);
    }

    /// What is to be written next and where, if there is enough of it; with `all`, whatever there
    /// is.
    pub(crate) fn run(&mut self, all: bool) -> Option<(u64, Vec<Bytes>)> {
        if all {
            self.close_hole();
        }
        let due = all || self.extent.bytes - self.pos >= RUN_BYTES;
        (due && !self.bufs.is_empty()).then(|| {
            let pos = std::mem::replace(&mut self.pos, self.extent.bytes);
            (pos, std::mem::take(&mut self.bufs))
        })
    }

    /// How far the segment reaches, and its index.
    pub(crate) fn finish(self) -> (Extent, SparseIndex) {
        (self.extent, self.index)
    }
}

/// The part of a frame of removed entries that begins at `tip`, inside it.
pub(crate) fn cut_front(header: &FrameHeader, tip: &Tip) -> Option<Frame> {
    let inside = header.kind == FrameKind::Removed
        && (header.index < tip.next_index && tip.next_index < header.next_index());
    let gone = tip
        .next_offset
        .get()
        .checked_sub(header.base_offset.get())?;
    let left = u64::from(header.record_count).checked_sub(gone)?;
    let left = u32::try_from(left).ok()?;
    let first = EntryId {
        term: header.term,
        index: tip.next_index,
    };
    let further = header
        .last_id()
        .index
        .get()
        .checked_sub(first.index.get())?;
    let place = (tip.next_offset, left);
    inside.then(|| removed(header.group, (first, further), place, next_time(header)))
}

/// The part of a frame of removed entries that ends at `end`, inside it or where it does itself.
pub(crate) fn cut_back(header: &FrameHeader, end: &Tip) -> Option<Frame> {
    let inside = header.kind == FrameKind::Removed
        && (header.index < end.next_index && end.next_index <= header.next_index());
    let left = end
        .next_offset
        .get()
        .checked_sub(header.base_offset.get())?;
    let left = u32::try_from(left).ok()?;
    let further = end.next_index.get().checked_sub(header.index.get() + 1)?;
    let place = (header.base_offset, left);
    let fits = inside && left <= header.record_count;
    fits.then(|| removed(header.group, (header.id(), further), place, end.next_time))
}
