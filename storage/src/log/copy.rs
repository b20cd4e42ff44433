//! Copies of what other replicas hold: what a log lacks, and how it takes that in.
//!
//! A log lacks what stands in segments that were found damaged, and, after its start was moved
//! by a descriptor, what lies between the data start S and its first segment. Either comes as a
//! stretch of frames, is written beside the log under a name of its own, and becomes part of it
//! only whole, verified and durable:
//!
//! ```text
//! frames ──verify: group, chain, checksums──> <base>.copy ──sum, sync──> rename, sync folder
//!                                                                   ──> the log
//! ```
//!
//! What a sender has compacted is as good: it holds the same offsets, and its bytes may differ. Only
//! what is known of its cleanness then ends where the stretch begins.
//!
//! Below the first segment a log grows downwards, the newest stretch first: so it has no hole at
//! any time, serves what it has, and goes on after a restart where the last checkpoint ends.

use std::io;
use std::mem;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;
use trilog_model::{LogIndex, Offset, Timestamp};

use super::fill::{FillTask, is_full};
use super::group::{Group, GroupLog, GroupState, Life};
use super::index::SparseIndex;
use super::memory::record_time;
use super::reader::is_closed;
use super::rewriter::{cut_back, cut_front};
use super::segment::{self, Extent, HEADER_LEN, IndexSlot, Segment, SegmentHeader};
use super::tip::Tip;
use super::types::{LogStart, StoreError, TermStart};
use crate::frame::{Frame, FrameHeader, FrameKind};

/// Bytes of one stretch from below the log's first segment: many times what a segment has.
const STRETCH_MAX: u64 = 8 << 30;

/// A part of a log that this replica lacks, and another may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// Where it begins; `None` if wherever a stretch begins that ends at `end` will do.
    pub first: Option<LogIndex>,
    /// The entry behind its last one.
    pub end: LogIndex,
}

/// What a sender says of all it sent, and a receiver compares.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CopySum {
    pub bytes: u64,
    /// CRC-32C of all frames.
    pub crc: u32,
}

impl CopySum {
    pub fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.crc = crc32c::crc32c_append(self.crc, bytes);
    }
}

/// Why a copy came to nothing. The log is as it was.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CopyError {
    /// What was sent is not what the log lacks.
    #[error("the copy is damaged: {0}")]
    Damaged(String),
    #[error("the log changed meanwhile and does not lack that any more")]
    Superseded,
    #[error("another copy to this log is on its way")]
    Busy,
    #[error("there is no room on the disk")]
    Full,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What becomes of a stretch when it is whole.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    /// It goes before the log's first segment.
    Below { era: u64 },
    /// It takes the place of a damaged segment.
    Of(Arc<Segment>, Extent),
}

/// A stretch on disk that is not part of the log yet.
#[derive(Debug)]
pub(crate) struct Staged {
    pub(crate) place: Place,
    /// Its own file, under the name of a copy.
    pub(crate) path: PathBuf,
    pub(crate) header: SegmentHeader,
    pub(crate) extent: Extent,
    pub(crate) index: SparseIndex,
    pub(crate) terms: Vec<TermStart>,
}

impl GroupState {
    /// Whether readers may see offsets that this replica does not hold.
    pub(crate) fn is_short(&self) -> bool {
        let held = self.segments.data_start(None);
        let start = self.log_start.as_ref();
        start.is_some_and(|start| start.data_start < held)
    }

    /// Whether the log starts where it is said to start, durably.
    fn is_settled(&self) -> bool {
        self.life == Life::Here
            && !self.cuts.is_emptying()
            && self.emptied_files.is_empty()
            && self.settled.log_start == self.log_start
    }

    fn place(&self, gap: Gap) -> Option<Place> {
        let Some(first) = gap.first else {
            let fits = self.is_settled() && self.is_short();
            let fits = fits && self.segments.first_index() == gap.end;
            let era = self.segments.era();
            return fits.then_some(Place::Below { era });
        };
        let link = self.segments.find(first)?;
        let fits = link.segment.is_damaged()
            && link.segment.header.base_index == first
            && link.extent.tip.next_index == gap.end;
        fits.then(|| Place::Of(Arc::clone(&link.segment), link.extent))
    }

    /// Whether a staged stretch still has its place, and joins what stands there; then, which
    /// content of its name it is. One that may differ from what a checkpoint says of the name
    /// takes another.
    pub(crate) fn takes(&self, staged: &Staged) -> Result<u32, CopyError> {
        let tip = &staged.extent.tip;
        let placed = match &staged.place {
            Place::Below { era } => {
                self.is_settled()
                    && self.is_short()
                    && self.segments.era() == *era
                    && self.segments.first_index() == tip.next_index
            }
            Place::Of(segment, _) => {
                self.life == Life::Here && self.segments.position(segment).is_some()
            }
        };
        if !placed {
            return Err(CopyError::Superseded);
        }
        // The sender's history is another one.
        if matches!(staged.place, Place::Below { .. }) && !self.joins(tip) {
            return Err(damaged("it does not join what stands behind it"));
        }
        Ok(match &staged.place {
            Place::Below { .. } => 0,
            Place::Of(segment, extent) => {
                let same = *extent == staged.extent && segment.header == staged.header;
                let other = !(same && self.rewrites.clean == Offset(0));
                segment.generation.saturating_add(u32::from(other))
            }
        })
    }

    /// Where a stretch for this place has to end.
    fn end_of_place(&self, place: &Place, gap: Gap) -> Tip {
        let starts_at = |start: &&LogStart| start.purged.index.next() == gap.end;
        let start = self.log_start.as_ref().filter(starts_at);
        let front = self.segments.links.front();
        match place {
            Place::Of(_, extent) => extent.tip,
            Place::Below { .. } => Tip {
                last: None,
                next_index: gap.end,
                next_offset: self.segments.data_start(None),
                next_time: match (start, front) {
                    (Some(start), _) => start.next_time,
                    (None, Some(link)) => link.segment.header.base_time,
                    (None, None) => Timestamp(0),
                },
            },
        }
    }

    /// Whether the log's first entry continues a chain that ends at `tip`.
    fn joins(&self, tip: &Tip) -> bool {
        let first = self.segments.first_index();
        let starts_at_x = self
            .log_start
            .as_ref()
            .filter(|start| start.purged.index.next() == first);
        let follows = match starts_at_x {
            Some(start) => tip.last == Some(start.purged) && tip.next_time <= start.next_time,
            None => self
                .term_of(first)
                .is_some_and(|term| tip.last.is_none_or(|last| last.term <= term)),
        };
        let front = self.segments.links.front();
        let in_time = front.is_none_or(|link| tip.next_time <= link.segment.header.base_time);
        follows && in_time && tip.next_offset == self.segments.data_start(None)
    }

    /// Makes a stretch part of the log.
    pub(crate) fn adopt(&mut self, staged: Staged, segment: Arc<Segment>) {
        self.rewrites.arrived(staged.header.base_offset);
        match staged.place {
            Place::Below { .. } => {
                self.segments.prepend(segment, staged.extent);
                let last = staged.terms.last().map(|start| start.term);
                // The term that spans the seam began earlier than was known.
                let known = self.terms.drain(..);
                let later: Vec<_> = known.filter(|start| Some(start.term) > last).collect();
                self.terms = staged.terms;
                self.terms.extend(later);
            }
            Place::Of(damaged, _) => self.segments.replace(&damaged, segment, staged.extent),
        }
    }
}

impl GroupLog {
    /// What this replica lacks, the newest first.
    #[must_use]
    pub fn gaps(&self) -> Vec<Gap> {
        let state = self.0.state.lock();
        let damaged = state.segments.links.iter().rev();
        let damaged = damaged.filter(|link| link.segment.is_damaged());
        let mut gaps: Vec<Gap> = damaged
            .map(|link| Gap {
                first: Some(link.segment.header.base_index),
                end: link.extent.tip.next_index,
            })
            .collect();
        if state.is_short() && state.is_settled() {
            let end = state.segments.first_index();
            gaps.push(Gap { first: None, end });
        }
        gaps
    }

    /// Whether this replica holds everything from the data start on.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        let state = self.0.state.lock();
        !state.is_short()
            && !state
                .segments
                .links
                .iter()
                .any(|link| link.segment.is_damaged())
    }

    /// Where a stretch begins that ends before `end`, is as long as one segment at most, and is
    /// committed here; `None` if this log does not hold the entry before `end`.
    #[must_use]
    pub fn stretch_before(&self, end: LogIndex) -> Option<LogIndex> {
        let state = self.0.state.lock();
        let last = LogIndex(end.get().checked_sub(1)?);
        if end > state.committed || last < state.segments.first_index() {
            return None;
        }
        match state.segments.find(last) {
            Some(link) => Some(link.segment.header.base_index),
            None => Some(state.segments.filled().next_index),
        }
    }

    /// Begins to take in a part that [`GroupLog::gaps`] named. One at a time.
    pub async fn receive(&self, gap: Gap) -> Result<Incoming, CopyError> {
        let group = &self.0;
        let (place, end) = {
            let mut state = group.state.lock();
            let place = state.place(gap).ok_or(CopyError::Superseded)?;
            if mem::replace(&mut state.receiving, true) {
                return Err(CopyError::Busy);
            }
            let end = state.end_of_place(&place, gap);
            (place, end)
        };
        let incoming = Incoming {
            group: Arc::clone(group),
            gap,
            place,
            end,
            sum: CopySum::default(),
            build: None,
        };
        let (done, wait) = oneshot::channel();
        let folder = FillTask::Folder(Arc::clone(group), done);
        group.shared.send_fill(group.id, folder);
        wait.await.unwrap_or(Err(StoreError::Closed.into()))?;
        Ok(incoming)
    }
}

/// A stretch that is coming in. Dropping it leaves the log as it was.
#[derive(Debug)]
pub struct Incoming {
    group: Arc<Group>,
    gap: Gap,
    place: Place,
    /// Where it has to end, as far as that is known before.
    end: Tip,
    sum: CopySum,
    build: Option<Build>,
}

/// What has come in so far.
#[derive(Debug)]
struct Build {
    path: PathBuf,
    header: SegmentHeader,
    extent: Extent,
    /// What the next frame has to follow.
    chain: Tip,
    index: SparseIndex,
    terms: Vec<TermStart>,
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.group.state.lock().receiving = false;
        if let Some(build) = &self.build {
            self.group.shared.stage.discard(&build.path);
        }
    }
}

fn damaged(why: impl std::fmt::Display) -> CopyError {
    CopyError::Damaged(why.to_string())
}

impl Incoming {
    /// Takes the next piece: whole frames that follow those before.
    pub async fn push(&mut self, piece: Bytes) -> Result<(), CopyError> {
        self.sum.add(&piece);
        let mut rest = piece;
        let mut bufs = Vec::new();
        let mut from = None;
        while !rest.is_empty() {
            let frame = Frame::decode(&mut rest).map_err(damaged)?;
            let frame = self.fit(frame)?;
            let build = match &mut self.build {
                Some(build) => build,
                build @ None => {
                    let header = first_header(&self.group, &self.place, self.gap, &frame.header)?;
                    bufs.push(header.encode());
                    from = Some(0);
                    build.insert(Build::new(&self.group, header))
                }
            };
            from.get_or_insert(build.extent.bytes);
            build.take(&self.group, &frame, self.gap.end)?;
            frame.push_slices(&mut bufs);
        }
        let (Some(from), Some(build)) = (from, &self.build) else {
            return Ok(());
        };
        if build.extent.bytes > STRETCH_MAX {
            return Err(damaged("it is too long"));
        }
        let written = self.group.shared.stage.write(&build.path, from, bufs).await;
        written.map_err(|error| self.failed("write a copy to", error))
    }

    /// The part of a frame that belongs here: entries of which nothing is left may share a frame
    /// with others that lie outside.
    fn fit(&self, frame: Frame) -> Result<Frame, CopyError> {
        if frame.header.kind != FrameKind::Removed {
            return Ok(frame);
        }
        let outside = || damaged("entries that were removed do not fit their place");
        let tip = match (&self.build, &self.place) {
            (Some(build), _) => Some(build.extent.tip),
            (None, Place::Of(segment, _)) => Some(segment.header.tip_before()),
            (None, Place::Below { .. }) => None,
        };
        let mut frame = frame;
        if let Some(tip) = tip.filter(|tip| frame.header.index < tip.next_index) {
            frame = cut_front(&frame.header, &tip).ok_or_else(outside)?;
        }
        if frame.header.next_index() >= self.end.next_index {
            frame = cut_back(&frame.header, &self.end).ok_or_else(outside)?;
        }
        Ok(frame)
    }

    /// Whether what came so far is what the sender says it sent so far.
    pub fn compare(&self, sum: CopySum) -> Result<(), CopyError> {
        if sum == self.sum {
            Ok(())
        } else {
            Err(damaged("it is not what was sent"))
        }
    }

    /// All has come: compares it with what the sender says it sent, and makes it part of the
    /// log. Durable on return; a stretch below the first segment is known to a restart once the
    /// next checkpoint is made, which follows by itself.
    pub async fn finish(mut self, sum: CopySum) -> Result<(), CopyError> {
        self.compare(sum)?;
        let build = self.build.as_ref().ok_or_else(|| damaged("it is empty"))?;
        let complete = match &self.place {
            Place::Below { .. } => build.extent.tip.next_index == self.gap.end,
            // What was compacted, here or there, has another length, and may say of its end only
            // that it was no later.
            Place::Of(_, extent) => {
                let (found, known) = (&build.extent.tip, &extent.tip);
                found.is_at(known) && found.next_time <= known.next_time
            }
        };
        if !complete {
            return Err(damaged("it ends elsewhere"));
        }
        let synced = self.group.shared.stage.finish(&build.path).await;
        if let Err(error) = synced {
            if !is_closed(&error) {
                let copy = io::Error::new(error.kind(), error.to_string());
                self.group.shared.fail("sync a copy", copy);
            }
            return Err(self.failed("sync", error));
        }
        let Some(build) = self.build.take() else {
            return Err(CopyError::Superseded);
        };
        let staged = Staged {
            place: self.place.clone(),
            path: build.path,
            header: build.header,
            extent: build.extent,
            index: build.index,
            terms: build.terms,
        };
        let (done, wait) = oneshot::channel();
        let group = &self.group;
        let adopt = FillTask::Adopt(Arc::clone(group), Box::new(staged), done);
        group.shared.send_fill(group.id, adopt);
        wait.await.unwrap_or(Err(StoreError::Closed.into()))
    }

    fn failed(&self, what: &'static str, error: io::Error) -> CopyError {
        copy_error(what, &self.group, error)
    }
}

/// Sorts the failures of file operations on a copy.
pub(crate) fn copy_error(what: &'static str, group: &Group, error: io::Error) -> CopyError {
    if is_closed(&error) {
        CopyError::Store(StoreError::Closed)
    } else if is_full(&error) {
        CopyError::Full
    } else {
        CopyError::Store(StoreError::io(what, &group.dir, error))
    }
}

/// The header of the segment that begins with this frame, if it may.
fn first_header(
    group: &Group,
    place: &Place,
    gap: Gap,
    frame: &FrameHeader,
) -> Result<SegmentHeader, CopyError> {
    let header = SegmentHeader {
        group: group.id,
        replica: group.replica,
        base_index: frame.index,
        base_offset: frame.base_offset,
        base_time: frame.append_time,
    };
    let expected = match place {
        Place::Below { .. } => (frame.index < gap.end).then_some(header),
        // One that stands for several may begin earlier; the chain is checked once it is cut.
        Place::Of(segment, _) if frame.kind == FrameKind::Removed => Some(segment.header),
        Place::Of(segment, _) => {
            let known = &segment.header;
            let place = |header: &SegmentHeader| (header.base_index, header.base_offset);
            let fits = place(known) == place(&header) && header.base_time <= known.base_time;
            fits.then_some(header)
        }
    };
    if let Some(header) = expected {
        Ok(header)
    } else {
        Err(damaged(format_args!("it begins with entry {}", frame.id())))
    }
}

impl Build {
    fn new(group: &Group, header: SegmentHeader) -> Self {
        let segment = group.dir.join(segment::file_name(header.base_index, 0));
        Self {
            path: segment::copy_path(&segment),
            header,
            chain: header.tip_before(),
            extent: Extent {
                bytes: HEADER_LEN,
                tip: header.tip_before(),
                last_time: header.base_time,
                record_time: i64::MIN,
            },
            index: SparseIndex::new(i64::MIN),
            terms: Vec::new(),
        }
    }

    /// Notes a frame, whose checksums hold, if it continues the chain.
    fn take(&mut self, group: &Group, frame: &Frame, end: LogIndex) -> Result<(), CopyError> {
        let header = &frame.header;
        let ours =
            header.group == group.id && header.kind.is_stored() && header.next_index() <= end;
        if !ours || self.chain.check(header).is_err() {
            return Err(damaged(format_args!(
                "entry {} does not follow",
                header.id()
            )));
        }
        if self
            .extent
            .tip
            .last
            .is_none_or(|last| last.term < header.term)
        {
            self.terms.push(TermStart {
                term: header.term,
                index: header.index,
                offset: header.base_offset,
            });
        }
        self.index.add(frame, self.extent.bytes);
        self.extent.add(frame);
        self.chain = self.chain.past(header);
        Ok(())
    }
}

impl Staged {
    /// The segment it will be.
    pub(crate) fn segment(&self, group: &Group, generation: u32) -> Segment {
        let index = IndexSlot::Here(self.index.clone());
        Segment::new(&group.dir, self.header, generation, index)
    }
}

impl Extent {
    /// Grows by a frame.
    pub(crate) fn add(&mut self, frame: &Frame) {
        self.bytes += frame.header.frame_len() as u64;
        self.tip = Tip::after(&frame.header);
        self.last_time = frame.header.append_time;
        if let Some(time) = record_time(frame) {
            self.record_time = self.record_time.max(time);
        }
    }
}
