//! A group's side of filling: what is ready for a segment, and what became of it.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use trilog_model::LogIndex;

use super::config::StoreConfig;
use super::fill::{FillRun, FillStep, FillTask};
use super::group::{Group, GroupLog, GroupState, Life};
use super::segment::{self, Extent, IndexSlot, Segment, SegmentHeader};
use crate::frame::FrameHeader;

/// Bytes written to a segment in one go.
const RUN_BYTES: usize = 4 << 20;

/// When a segment is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rolling {
    pub bytes: u64,
    /// The append time it may span.
    pub age: Duration,
}

impl GroupLog {
    /// Ends segments earlier than the store's own limits say.
    pub fn set_rolling(&self, rolling: Rolling) {
        self.0.state.lock().rolling = Some(rolling);
    }
}

impl GroupState {
    /// The limits in force.
    fn rolling(&self, config: &StoreConfig) -> Rolling {
        let asked = self.rolling.as_ref();
        let (bytes, age) = (config.segment_bytes, config.segment_age);
        Rolling {
            bytes: asked.map_or(bytes, |asked| asked.bytes.min(bytes)),
            age: asked.map_or(age, |asked| asked.age.min(age)),
        }
    }

    /// Where committed and durable entries end, which segments may take.
    pub(crate) fn fillable(&self) -> LogIndex {
        self.committed.min(self.durable)
    }

    /// Bytes that segments may take and do not have.
    fn ready_bytes(&self) -> u64 {
        let from = self.segments.filled().next_index;
        self.resident.bytes(from, self.fillable())
    }

    /// The segment the next run goes to, begun if there is none; `None` if the active one must
    /// be sealed first.
    fn target(&mut self, group: &Group, first: &FrameHeader) -> Option<(Arc<Segment>, Extent)> {
        let rolling = self.rolling(&group.shared.config);
        let age = u64::try_from(rolling.age.as_nanos()).unwrap_or(u64::MAX);
        if let Some(active) = self.segments.active() {
            let base_time = active.segment.header.base_time;
            let span = first.append_time.nanos().saturating_sub(base_time.nanos());
            let full = active.extent.bytes >= rolling.bytes || span >= age;
            return (!full).then(|| (Arc::clone(&active.segment), active.extent));
        }
        let header = SegmentHeader {
            group: group.id,
            replica: group.replica,
            base_index: first.index,
            base_offset: first.base_offset,
            base_time: first.append_time,
        };
        let begun = self.segments.begin(&group.dir, header);
        Some((Arc::clone(&begun.segment), begun.extent))
    }
}

impl Group {
    /// When its segments are full.
    pub(crate) fn rolling(&self) -> Rolling {
        self.state.lock().rolling(&self.shared.config)
    }

    /// Hands the group to its fill worker if it has a run for it.
    pub(crate) fn queue_fill(self: &Arc<Self>, state: &mut GroupState) {
        let worth = if self.shared.budget.is_tight() {
            1
        } else {
            self.shared.config.fill_bytes
        };
        if !state.fill_queued && state.ready_bytes() >= worth {
            self.force_fill(state);
        }
    }

    /// Hands the group to its fill worker, however little there is.
    fn force_fill(self: &Arc<Self>, state: &mut GroupState) {
        state.fill_queued = true;
        self.shared
            .send_fill(self.id, FillTask::Fill(Arc::clone(self)));
    }

    /// Has everything filled that is ready: memory is short.
    pub(crate) fn relieve(self: &Arc<Self>) {
        let mut state = self.state.lock();
        if state.life != Life::Gone {
            self.queue_fill(&mut state);
        }
    }

    /// Called at even intervals: what has been ready since the last call is filled now.
    pub(crate) fn tick(self: &Arc<Self>) {
        let mut state = self.state.lock();
        let filled = state.segments.filled().next_index;
        let ready = filled < state.fillable() && state.life != Life::Gone;
        if ready && !state.fill_queued && state.seen_filled == filled {
            state.fill_forced = true;
            self.force_fill(&mut state);
        }
        state.seen_filled = filled;
    }

    /// The next step of the fill worker. `all` takes what is less than a run, too.
    pub(crate) fn next_fill(&self, all: bool) -> FillStep {
        let mut state = self.state.lock();
        let (from, to) = (state.segments.filled().next_index, state.fillable());
        let ready = state.ready_bytes();
        let worth = all
            || state.fill_forced
            || ready >= self.shared.config.fill_bytes
            || self.shared.budget.is_tight();
        if from >= to || !worth || state.life == Life::Gone {
            state.fill_queued = false;
            state.fill_forced = false;
            return FillStep::Idle;
        }
        let Some(first) = state.resident.get(from).map(|frame| frame.header) else {
            state.fill_queued = false;
            return FillStep::Idle;
        };
        let era = state.segments.era();
        let Some((segment, extent)) = state.target(self, &first) else {
            return match state.segments.active() {
                Some(active) => FillStep::Seal(Arc::clone(&active.segment), active.extent, era),
                None => FillStep::Idle,
            };
        };
        let rolling = state.rolling(&self.shared.config);
        let room = rolling.bytes.saturating_sub(extent.bytes);
        let room = usize::try_from(room).unwrap_or(RUN_BYTES).min(RUN_BYTES);
        let frames = state.resident.frames(from, to, room).unwrap_or_default();
        FillStep::Write(FillRun {
            segment,
            extent,
            frames,
            era,
        })
    }

    /// A step failed; the next tick tries again.
    pub(crate) fn stop_filling(&self) {
        let mut state = self.state.lock();
        state.fill_queued = false;
        state.fill_forced = false;
    }

    /// The run is written: its frames are in the segment and may leave memory. Returns how far
    /// the segment reaches now, or `None` if the log was emptied or the segment was found damaged
    /// meanwhile: then they still have to go to another.
    pub(crate) fn filled(self: &Arc<Self>, run: FillRun) -> Option<Extent> {
        let mut extent = run.extent;
        let start = extent.bytes;
        let mut state = self.state.lock();
        let current = state.segments.active();
        let active = current.is_some_and(|active| Arc::ptr_eq(&active.segment, &run.segment));
        if state.segments.era() != run.era || !active {
            return None;
        }
        {
            let mut slot = run.segment.index.lock();
            for frame in &run.frames {
                if let IndexSlot::Here(index) = &mut *slot {
                    index.add(frame, extent.bytes);
                }
                extent.add(frame);
            }
        }
        state.segments.grow(extent);
        drop(state);
        drop(run.frames);
        self.shared
            .budget
            .cache(self, extent.tip.next_index, extent.bytes - start);
        Some(extent)
    }

    /// A segment is durable up to `extent`: the write-ahead log may forget those entries.
    pub(crate) fn synced(&self, segment: &Arc<Segment>, extent: Extent) {
        let mut state = self.state.lock();
        state.segments.mark_synced(segment, extent);
        let synced = state.segments.synced().next_index;
        state.runs.release(synced);
    }

    /// The active segment is complete.
    pub(crate) fn sealed(&self, segment: &Arc<Segment>, era: u64) {
        let mut state = self.state.lock();
        if state.segments.era() == era
            && let Some(active) = state.segments.active()
            && Arc::ptr_eq(&active.segment, segment)
        {
            active.sealed = true;
        }
        drop(state);
        self.shared.indexes.keep(segment);
    }

    /// Takes a segment out of service and, if it is the active one, ends it. Its file is set aside
    /// by the fill worker, and whoever restores data is told. Nothing happens to one that is no
    /// part of the log any more: under its name may stand another.
    pub(crate) fn quarantine(self: &Arc<Self>, segment: &Arc<Segment>, why: &dyn fmt::Display) {
        let mut state = self.state.lock();
        if state.segments.position(segment).is_none() || !segment.quarantine() {
            return;
        }
        tracing::error!(
            path = %segment.path.display(),
            group = %self.id,
            %why,
            "a segment is damaged and quarantined"
        );
        if let Some(active) = state.segments.active()
            && Arc::ptr_eq(&active.segment, segment)
        {
            active.sealed = true;
        }
        drop(state);
        let task = FillTask::SetAside(Arc::clone(self), Arc::clone(segment));
        self.shared.send_fill(self.id, task);
    }

    /// The file of a damaged segment is out of the way.
    pub(crate) fn set_aside(&self, segment: &Arc<Segment>) {
        let mut state = self.state.lock();
        state.segments.give_up(segment);
        let synced = state.segments.synced().next_index;
        state.runs.release(synced);
        drop(state);
        self.shared.want();
    }

    /// Takes note of segments whose files are not there: they were set aside in an earlier life,
    /// or lost.
    pub(crate) fn miss(self: &Arc<Self>, here: impl Fn(&Path) -> bool) {
        let missing: Vec<Arc<Segment>> = {
            let state = self.state.lock();
            let links = state.segments.links.iter();
            let missing = links.filter(|link| !here(&link.segment.path));
            missing.map(|link| Arc::clone(&link.segment)).collect()
        };
        for segment in missing {
            self.quarantine(&segment, &"its file is not there");
        }
    }

    /// Whether a file in the group's folder is a segment set aside from a range that the log does
    /// not hold any more.
    pub(crate) fn is_past(&self, path: &Path) -> bool {
        let state = self.state.lock();
        let first = state.segments.first_index();
        let past = segment::parse_aside_name(path).is_some_and(|base| base < first);
        past && !state.is_short()
    }

    /// Whether a file in the group's folder is a segment or index that is not part of the log.
    pub(crate) fn is_leftover(&self, path: &Path) -> bool {
        if segment::is_copy(path) {
            return true;
        }
        let segment = path.with_extension("seg");
        let ours = matches!(path.extension(), Some(kind) if kind == "seg" || kind == "idx");
        let named = segment.file_name().map(Path::new);
        if !ours || named.and_then(segment::parse_file_name).is_none() {
            return false;
        }
        let state = self.state.lock();
        let mut links = state.segments.links.iter();
        let link = links.find(|link| link.segment.path == segment);
        // An index beside a segment that still grows is of a life before a crash.
        link.is_none_or(|link| !link.sealed && path != segment)
    }

    /// Deletes the segments that lie below the log start.
    pub(crate) fn purge(&self, state: &mut GroupState) {
        let mut gone = std::mem::take(&mut state.emptied_files);
        if let Some(start) = &state.settled.log_start {
            gone.extend(state.segments.purge(start));
        }
        if gone.is_empty() {
            return;
        }
        let first = state.segments.first_index();
        let covering = state.terms.partition_point(|term| term.index <= first);
        state.terms.drain(..covering.saturating_sub(1));
        self.shared.send_fill(self.id, FillTask::Delete(gone));
    }
}
