//! Reading a log, by index or by offset: memory first, then segments.
//!
//! Bytes from disk are verified frame by frame before anyone sees them. A segment that fails is
//! quarantined; its range is refused from then on and can be refetched from another replica.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use trilog_model::{LogIndex, Offset};

use super::group::{Group, GroupLog, GroupState};
use super::index::SparseIndex;
use super::memory::record_time;
use super::reader::{ReadPool, is_closed};
use super::segment::{self, Extent, HEADER_LEN, IndexSlot, Segment};
use super::segments::Link;
use super::types::ReadError;
use crate::frame::{Frame, FrameError, FrameHeader, HEADER_LEN as FRAME_HEADER_LEN};

/// The least and the most one read takes from disk, but for a single frame that is larger.
const CHUNK_MIN: usize = 64 * 1024;
const CHUNK_MAX: usize = 1 << 20;
/// Bytes before a frame's place that a sparse index may make us read.
const SLACK: usize = 32 * 1024;

impl GroupState {
    pub(super) fn below_start(&self) -> ReadError {
        ReadError::BelowStart {
            index: self.segments.first_index(),
            offset: self.segments.data_start(self.log_start.as_ref()),
        }
    }
}

/// Where a search goes on.
enum Found {
    /// The answer is in memory.
    Here(Vec<Frame>),
    /// The answer begins in this segment.
    In(Link),
}

impl GroupLog {
    /// Entries `from..to` up to `max_bytes`, at least one if there is any; they follow one
    /// another without gaps.
    pub async fn read(
        &self,
        from: LogIndex,
        to: LogIndex,
        max_bytes: usize,
    ) -> Result<Vec<Frame>, ReadError> {
        let link = {
            let state = self.0.state.lock();
            let to = to.min(state.tip.next_index);
            if from >= to {
                return Ok(Vec::new());
            }
            if let Some(frames) = state.resident.frames(from, to, max_bytes) {
                self.0.shared.cache_hits.add_one();
                return Ok(frames);
            }
            let link = state.segments.find(from).cloned();
            link.ok_or_else(|| state.below_start())?
        };
        self.0.shared.cache_misses.add_one();
        let pos = self.0.seek(&link, |index| index.seek_index(from)).await?;
        let mut scan = Scan::new(&self.0, &link, pos);
        let before = |header: &FrameHeader| header.index <= from;
        scan.begin(max_bytes, before).await?;
        scan.collect(max_bytes, |header| match header.index {
            _ if header.next_index() <= from => Take::Skip,
            index if index >= to => Take::Stop,
            _ => Take::Keep,
        })
        .await
    }

    /// The entries with records that hold or follow offset `from`, up to entry `up_to` and
    /// `max_bytes`; the first one even if it is larger.
    pub async fn read_offsets(
        &self,
        from: Offset,
        up_to: LogIndex,
        max_bytes: usize,
    ) -> Result<Vec<Frame>, ReadError> {
        let mut link = match self.0.find_offset(from, up_to, max_bytes)? {
            Found::Here(frames) => {
                if !frames.is_empty() {
                    self.0.shared.cache_hits.add_one();
                }
                return Ok(frames);
            }
            Found::In(link) => link,
        };
        self.0.shared.cache_misses.add_one();
        loop {
            let pos = self.0.seek(&link, |index| index.seek_offset(from)).await?;
            let mut scan = Scan::new(&self.0, &link, pos);
            let before = |header: &FrameHeader| header.base_offset <= from;
            scan.begin(max_bytes, before).await?;
            let frames = scan
                .collect(max_bytes, |header| match header {
                    header if header.index > up_to => Take::Stop,
                    header if header.next_offset() <= from || !header.has_records() => Take::Skip,
                    _ => Take::Keep,
                })
                .await?;
            let next = link.extent.tip.next_index;
            if !frames.is_empty() || next > up_to {
                return Ok(frames);
            }
            // The rest of that segment has no records.
            link = match self.0.after(next, up_to, max_bytes)? {
                Found::Here(frames) => return Ok(frames),
                Found::In(link) => link,
            };
        }
    }
}

impl GroupState {
    /// The frames with records of memory from `start` on.
    fn resident_records(&self, start: LogIndex, up_to: LogIndex, max_bytes: usize) -> Vec<Frame> {
        let mut at = start;
        loop {
            let frames = self.resident.frames(at, up_to.next(), max_bytes);
            let mut frames = frames.unwrap_or_default();
            let Some(last) = frames.last().map(|frame| frame.header.index) else {
                return frames;
            };
            frames.retain(|frame| frame.header.has_records());
            if !frames.is_empty() {
                return frames;
            }
            at = last.next();
        }
    }
}

impl Group {
    fn find_offset(
        &self,
        from: Offset,
        up_to: LogIndex,
        max_bytes: usize,
    ) -> Result<Found, ReadError> {
        let state = self.state.lock();
        if from >= state.tip.next_offset {
            return Ok(Found::Here(Vec::new()));
        }
        if from < state.segments.data_start(state.log_start.as_ref()) {
            return Err(state.below_start());
        }
        if let Some(start) = state.resident.find_offset(from) {
            let frames = state.resident_records(start, up_to, max_bytes);
            return Ok(Found::Here(frames));
        }
        let links = &state.segments.links;
        let at = links.partition_point(|link| link.extent.tip.next_offset <= from);
        let link = links.get(at).cloned();
        link.map(Found::In).ok_or_else(|| state.below_start())
    }

    /// Where entry `index` is, which an earlier segment ended at.
    fn after(
        &self,
        index: LogIndex,
        up_to: LogIndex,
        max_bytes: usize,
    ) -> Result<Found, ReadError> {
        let state = self.state.lock();
        if index >= state.resident.first() {
            let frames = state.resident_records(index, up_to, max_bytes);
            return Ok(Found::Here(frames));
        }
        let link = state.segments.find(index).cloned();
        link.map(Found::In).ok_or_else(|| state.below_start())
    }

    /// Asks a segment's index, reading or rebuilding it if it is not in memory.
    pub(super) async fn seek(
        self: &Arc<Self>,
        link: &Link,
        ask: impl Fn(&SparseIndex) -> Option<u64>,
    ) -> Result<u64, ReadError> {
        let segment = &link.segment;
        if let IndexSlot::Here(index) = &*segment.index.lock()
            && let Some(pos) = ask(index)
        {
            return Ok(pos);
        }
        let whole = self.load_index(link).await?;
        let pos = ask(&whole).unwrap_or(HEADER_LEN);
        let mut slot = segment.index.lock();
        match &mut *slot {
            IndexSlot::Here(index) => index.prepend(&whole),
            IndexSlot::Absent => *slot = IndexSlot::Here(whole),
        }
        drop(slot);
        if link.sealed {
            self.shared.indexes.keep(segment);
        }
        Ok(pos)
    }

    async fn load_index(self: &Arc<Self>, link: &Link) -> Result<SparseIndex, ReadError> {
        let header = &link.segment.header;
        if link.sealed {
            let path = segment::index_path(&link.segment.path);
            let extent = link.extent.bytes;
            if let Ok(bytes) = self.shared.reads.read_whole(&path).await
                && let Ok(index) =
                    SparseIndex::decode(&bytes, header.group, header.base_index, extent)
            {
                return Ok(index);
            }
        }
        Scan::new(self, link, HEADER_LEN).build_index().await
    }
}

/// Bytes to read from disk at once for an answer of `max_bytes`.
fn chunk_bytes(max_bytes: usize) -> usize {
    max_bytes.saturating_add(SLACK).clamp(CHUNK_MIN, CHUNK_MAX)
}

/// What to do with a frame that was come across.
enum Take {
    Skip,
    Keep,
    Stop,
}

/// A walk over the frames of one segment, as far as it was written when the walk began.
pub(super) struct Scan<'a> {
    group: &'a Arc<Group>,
    segment: &'a Arc<Segment>,
    extent: Extent,
    /// Where `chunk` begins.
    pos: u64,
    chunk: Bytes,
    /// The index the next frame must have, once one was seen.
    next: Option<LogIndex>,
}

impl<'a> Scan<'a> {
    pub(super) fn new(group: &'a Arc<Group>, link: &'a Link, pos: u64) -> Self {
        Self {
            group,
            segment: &link.segment,
            extent: link.extent,
            pos,
            chunk: Bytes::new(),
            next: (pos == HEADER_LEN).then_some(link.segment.header.base_index),
        }
    }

    /// Over all of it.
    pub(super) fn whole(group: &'a Arc<Group>, link: &'a Link) -> Self {
        Self::new(group, link, HEADER_LEN)
    }

    /// The next frame, verified; `None` at the end.
    pub(super) async fn next_frame(&mut self) -> Result<Option<Frame>, ReadError> {
        match self.header(CHUNK_MAX).await? {
            Some(header) => self.frame(&header).await.map(Some),
            None => Ok(None),
        }
    }

    fn reads(&self) -> &ReadPool {
        &self.group.shared.reads
    }

    /// Looks at the first frame, which an index says is `expected`: a read that went astray may
    /// have come upon whole frames of another place. A segment's own first is known anyway.
    async fn begin(
        &mut self,
        max_bytes: usize,
        expected: impl Fn(&FrameHeader) -> bool,
    ) -> Result<(), ReadError> {
        let known = self.pos == HEADER_LEN;
        match self.header(chunk_bytes(max_bytes)).await? {
            Some(header) if !known && !expected(&header) => {
                Err(self.damaged("another frame stands there"))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The frames that `choose` keeps, verified, up to `max_bytes` and at least one.
    async fn collect(
        &mut self,
        max_bytes: usize,
        choose: impl Fn(&FrameHeader) -> Take,
    ) -> Result<Vec<Frame>, ReadError> {
        let want = chunk_bytes(max_bytes);
        let mut frames = Vec::new();
        let mut bytes = 0;
        while let Some(header) = self.header(want).await? {
            match choose(&header) {
                Take::Stop => break,
                Take::Skip => self.skip(&header),
                Take::Keep => {
                    bytes += header.frame_len();
                    if bytes > max_bytes && !frames.is_empty() {
                        break;
                    }
                    frames.push(self.frame(&header).await?);
                }
            }
        }
        Ok(frames)
    }

    /// The first frame up to `up_to` that `matches`, by its header and greatest record time.
    pub(super) async fn find(
        &mut self,
        up_to: LogIndex,
        matches: impl Fn(&FrameHeader, Option<i64>) -> bool,
    ) -> Result<Option<FrameHeader>, ReadError> {
        while let Some(header) = self.header(CHUNK_MIN).await? {
            if header.index > up_to {
                break;
            }
            let frame = self.frame(&header).await?;
            if matches(&header, record_time(&frame)) {
                return Ok(Some(header));
            }
        }
        Ok(None)
    }

    async fn build_index(&mut self) -> Result<SparseIndex, ReadError> {
        let mut index = SparseIndex::new(i64::MIN);
        while let Some(header) = self.header(CHUNK_MAX).await? {
            let pos = self.pos;
            let frame = self.frame(&header).await?;
            index.add(&frame, pos);
        }
        Ok(index)
    }

    /// The header of the frame at the present place; `None` at the end of the segment.
    async fn header(&mut self, want: usize) -> Result<Option<FrameHeader>, ReadError> {
        if self.pos >= self.extent.bytes {
            return Ok(None);
        }
        if self.chunk.len() < FRAME_HEADER_LEN {
            self.fetch(want.max(FRAME_HEADER_LEN)).await?;
        }
        let header = FrameHeader::decode(&self.chunk);
        let header = header.map_err(|error| self.undecodable(error))?;
        let ours = header.group == self.group.id && header.kind.is_stored();
        let follows = self.next.is_none_or(|next| next == header.index);
        let within = header.next_index() <= self.extent.tip.next_index
            && header.index >= self.segment.header.base_index
            && self.pos + header.frame_len() as u64 <= self.extent.bytes;
        if ours && follows && within {
            Ok(Some(header))
        } else {
            Err(self.damaged("another frame stands there"))
        }
    }

    fn skip(&mut self, header: &FrameHeader) {
        let len = header.frame_len();
        self.chunk.advance(len.min(self.chunk.len()));
        self.pos += len as u64;
        self.next = Some(header.next_index());
    }

    /// The whole frame at the present place, verified.
    async fn frame(&mut self, header: &FrameHeader) -> Result<Frame, ReadError> {
        let len = header.frame_len();
        if self.chunk.len() < len {
            self.fetch(len.max(CHUNK_MIN)).await?;
        }
        let frame = Frame::decode(&mut self.chunk);
        let frame = frame.map_err(|error| self.undecodable(error))?;
        self.pos += len as u64;
        self.next = Some(header.next_index());
        Ok(frame)
    }

    /// Reads a chunk from the present place.
    async fn fetch(&mut self, want: usize) -> Result<(), ReadError> {
        if self.segment.is_damaged() {
            return Err(self.damaged("it was before"));
        }
        let left = usize::try_from(self.extent.bytes - self.pos).unwrap_or(want);
        let len = want.min(left);
        match self.reads().read(&self.segment.path, self.pos, len).await {
            Ok(chunk) if chunk.len() == len => {
                self.chunk = chunk;
                Ok(())
            }
            Ok(_) => Err(self.damaged("it is too short")),
            Err(error) if is_closed(&error) => Err(ReadError::Closed),
            Err(error) => Err(self.unreadable(error)),
        }
    }

    /// Sorts out why a file cannot be read: trimmed meanwhile, or damaged.
    fn unreadable(&self, error: io::Error) -> ReadError {
        let state = self.group.state.lock();
        if self.segment.header.base_index < state.segments.first_index() {
            return state.below_start();
        }
        drop(state);
        match error.kind() {
            // What the kernel says of a bad sector, and of a file that is gone.
            io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => self.damaged(error),
            _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                self.damaged(error)
            }
            _ => ReadError::Io {
                path: self.segment.path.clone(),
                source: Arc::new(error),
            },
        }
    }

    /// Sorts out why bytes are no frame: damaged, or whole and of a newer version, which must not
    /// be set aside.
    fn undecodable(&self, error: FrameError) -> ReadError {
        match error {
            FrameError::Version(_) | FrameError::Kind(_) => ReadError::Io {
                path: self.segment.path.clone(),
                source: Arc::new(io::Error::other(error)),
            },
            error => self.damaged(error),
        }
    }

    fn damaged(&self, why: impl fmt::Display) -> ReadError {
        self.group
            .quarantine(self.segment, &format_args!("at {}: {why}", self.pos));
        let end = self.extent.tip.next_index.get();
        ReadError::Damaged {
            first: self.segment.header.base_index,
            last: LogIndex(end.saturating_sub(1)),
        }
    }
}
