//! Compaction: rewriting closed segments so that of each key the newest record is left.
//!
//! One pass at a time, at a bounded rate, on a thread of its own:
//!
//! ```text
//! read what is new ──> newest offset of each key ──> go through all of it ──> rewrite what
//!                       (bounded: else only as                                 would shrink,
//!                        far as it fits)                                       switch, checkpoint
//! ```
//!
//! Only entries at or below X are touched: consensus asks for none of them. What is left keeps its
//! offset, its time and its bytes; what is gone leaves a [`FrameKind::Removed`] frame, so the chain
//! of entries stays whole and is checked wherever frames are. Nothing changes before a new file is
//! whole and durable.
//!
//! A deletion marker may go once no replica holds an older record of its key, which its caller
//! says ([`CleanPlan::markers_before`]) and not this module: replicas are cleaned apart and copy
//! from each other. What this build cannot read stays: it neither supersedes nor is superseded,
//! and a marker behind it stays, too, for it may hide what the marker deleted.
//!
//! What became of transactions the caller says, too ([`AbortedSet`]), who folds the log: below the
//! end of the plan every one is over. A batch of one that was aborted goes whole, without being
//! read, and supersedes nothing; one that was committed is judged as if there were no
//! transactions. The marker that ended a transaction goes by the rule for deletion markers:
//!
//! * Of an aborted one, for it tells readers where the records end that they have to skip. Before it
//!   may go, no replica holds such a record any more.
//! * Of a committed one, for no other reason than that both may go then: no reader needs it, and
//!   what it told the partition stands in the view's state, which is durable beyond X.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{self, Instant};
use trilog_model::batch::{BatchHeader, Record, Retained, retain};
use trilog_model::{AbortedSet, GroupId, Offset, ReplicaId, Timestamp};

use super::fill::{FillTask, is_full};
use super::group::{Group, GroupLog, GroupState, Life};
use super::key_map::KeyMap;
use super::pace::Pace;
use super::read::Scan;
use super::rewrites::Cleanness;
use super::segment::{self, Extent, SegmentHeader};
use super::segments::Link;
use super::shared::Shared;
use super::types::{ReadError, StoreError};
use crate::env::Entropy;
use crate::frame::{Frame, FrameKind};
use crate::io::{Io, IoFile, IoJob, OpenMode};

use super::rewriter::{Rewriter, Rewritten};

/// Passes that wait; callers beyond wait themselves.
pub(crate) const QUEUE: usize = 4;
/// The most one batch may decompress to; one that holds more stays as it is.
const MAX_DECODED: usize = 64 << 20;
/// A batch of more records stays as it is. Not a matter of configuration: replicas must agree on
/// what is left alone.
pub const MAX_RECORDS: i32 = 1 << 20;
/// How long a log rests whose pass found no room on the disk; doubled up to the second.
const PAUSE_MIN: Duration = Duration::from_mins(1);
const PAUSE_MAX: Duration = Duration::from_hours(1);
/// A segment is rewritten for what is not a record if that is this part of it.
const WORTH: u64 = 8;

/// The number of the rules by which records are judged. Whatever changes which records are left
/// alone (a bound above, a codec, what is done with transactions) needs another one: how far a log
/// is clean means something only together with it. By the old rules a marker may be all that hides
/// a record which was left alone, and by the new ones nobody would look at that record again.
pub const RULES: u32 = 2;

/// What a pass may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CleanPlan {
    /// Only segments whose records all lie below it, so that a record follows them. No transaction
    /// is open that has a record below it.
    pub end: Offset,
    /// Only segments whose last entry was appended then or before.
    pub appended_by: Timestamp,
    /// Deletion markers below it may go: no replica holds an older record of their keys. So may
    /// markers of transactions: no replica holds a record of an aborted one.
    pub markers_before: Offset,
}

/// What a pass did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CleanReport {
    /// Bytes of the segments that were gone through, and of what is left of them.
    pub bytes_before: u64,
    pub bytes_after: u64,
    /// Bytes of new segments.
    pub written: u64,
    /// Records that are gone.
    pub removed: u64,
    /// Deletion markers and markers of transactions that are left.
    pub markers: u64,
    /// Those below it could go: no more than the plan allowed, and less where something came in
    /// from elsewhere.
    pub markers_before: Offset,
    /// The keys did not fit: another pass goes on from here.
    pub partial: bool,
}

/// What of a log may be cleaned now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleanable {
    /// Below it no record is left that a later one below it supersedes, and none of an aborted
    /// transaction.
    pub clean: Offset,
    /// Bytes of segments that were cleaned before.
    pub clean_bytes: u64,
    /// Bytes of those that were not.
    pub dirty_bytes: u64,
    /// When the first entry of what was not cleaned was appended.
    pub dirty_since: Option<Timestamp>,
    /// The last entry of all that could be cleaned if X were no obstacle.
    pub last: Option<trilog_model::LogIndex>,
}

/// Why a pass ended early. The log is whole, and cleaned as far as the pass came.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CleanError {
    #[error("the log changed meanwhile")]
    Superseded,
    #[error("a part of the log has to come from another replica first")]
    Short,
    #[error("there is no room on the disk")]
    Full,
    #[error("what was written does not end where the log does")]
    Diverged,
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A pass somebody wants.
#[derive(Debug)]
pub(crate) struct CleanTask {
    group: Arc<Group>,
    plan: CleanPlan,
    aborted: AbortedSet,
    done: oneshot::Sender<Result<CleanReport, CleanError>>,
}

impl GroupState {
    /// The segments that a plan allows, the oldest first. Without X unless `beyond_x`.
    fn allowed(&self, plan: &CleanPlan, beyond_x: bool) -> Vec<Link> {
        let x = self.settled.log_start.as_ref();
        let x = x.map(|start| start.purged.index.next()).unwrap_or_default();
        let links = self.segments.links.iter();
        let allowed = links.take_while(|link| {
            let tip = &link.extent.tip;
            link.sealed
                && link.synced == Some(link.extent)
                && !link.segment.is_damaged()
                && tip.next_offset < plan.end
                && link.extent.last_time <= plan.appended_by
                && (beyond_x || tip.next_index <= x)
        });
        allowed.cloned().collect()
    }
}

impl GroupLog {
    /// What a pass with this plan would find.
    #[must_use]
    pub fn cleanable(&self, plan: &CleanPlan) -> Cleanable {
        let state = self.0.state.lock();
        let mut found = Cleanable {
            clean: state.rewrites.clean,
            ..Cleanable::default()
        };
        for link in state.allowed(plan, false) {
            if link.extent.tip.next_offset <= state.rewrites.clean {
                found.clean_bytes += link.extent.bytes;
            } else {
                found.dirty_bytes += link.extent.bytes;
                let since = link.segment.header.base_time;
                found.dirty_since.get_or_insert(since);
            }
        }
        let all = state.allowed(plan, true);
        let last = all.last().and_then(|link| link.extent.tip.last);
        found.last = last.map(|last| last.index);
        found
    }

    /// Has the log cleaned as far as the plan allows, when its turn comes. `aborted` has all
    /// transactions with records below the end of the plan that were aborted, but for those of which
    /// nothing is left: what is not in it counts.
    pub async fn clean(
        &self,
        plan: CleanPlan,
        aborted: AbortedSet,
    ) -> Result<CleanReport, CleanError> {
        let (done, wait) = oneshot::channel();
        let task = CleanTask {
            group: Arc::clone(&self.0),
            plan,
            aborted,
            done,
        };
        let closed = || CleanError::Store(StoreError::Closed);
        let sent = self.0.shared.cleans.send(task).await;
        sent.map_err(|_| closed())?;
        wait.await.unwrap_or_else(|_| Err(closed()))
    }

    /// What this replica can say of how clean its log is.
    #[must_use]
    pub fn cleanness(&self) -> Cleanness {
        self.0.state.lock().cleanness()
    }
}

#[derive(Debug)]
pub(crate) struct CleanJob {
    pub(crate) shared: Arc<Shared>,
    pub(crate) inbox: mpsc::Receiver<CleanTask>,
    /// The store is closing when its other end is dropped.
    pub(crate) stop: oneshot::Receiver<()>,
    pub(crate) entropy: Entropy,
}

impl IoJob for CleanJob {
    async fn run<I: Io>(mut self, io: I) {
        let rate = self.shared.config.compaction_bytes_per_second;
        let mut cleaner = Cleaner {
            io,
            pace: Pace::new(rate),
            refused: BTreeMap::new(),
            shared: self.shared,
            stop: self.stop,
            entropy: self.entropy,
        };
        loop {
            let task = tokio::select! {
                biased;
                _ = &mut cleaner.stop => return,
                task = self.inbox.recv() => task,
            };
            let Some(task) = task else { return };
            let outcome = cleaner.turn(&task.group, task.plan, task.aborted).await;
            let stopped = matches!(outcome, Err(CleanError::Store(StoreError::Closed)));
            // Whoever asked may have lost interest.
            let _ = task.done.send(outcome);
            if stopped {
                return;
            }
        }
    }
}

struct Cleaner<I: Io> {
    io: I,
    pace: Pace,
    refused: BTreeMap<(GroupId, ReplicaId), Refused>,
    shared: Arc<Shared>,
    stop: oneshot::Receiver<()>,
    entropy: Entropy,
}

/// What decides over records in one pass.
struct Rules {
    map: KeyMap,
    aborted: AbortedSet,
    /// The map knows the records below it.
    end: Offset,
    markers_before: Offset,
}

/// One segment, as the pass found it.
struct Part {
    link: Link,
    /// Whether something that may hide older records lies before it.
    veiled: bool,
    shrinks: bool,
}

/// What becomes of a frame.
enum Fate {
    Keep,
    Remove,
    Replace(Bytes),
}

impl<I: Io> Cleaner<I> {
    /// A pass, unless the last one found no room a moment ago: it would read all of the log to find
    /// none again.
    async fn turn(
        &mut self,
        group: &Arc<Group>,
        plan: CleanPlan,
        aborted: AbortedSet,
    ) -> Result<CleanReport, CleanError> {
        let id = (group.id, group.replica);
        let refused = self.refused.get(&id).copied();
        if refused.is_some_and(|refused| Instant::now() < refused.until) {
            return Err(CleanError::Full);
        }
        let outcome = self.pass(group, plan, aborted).await;
        if matches!(outcome, Err(CleanError::Full)) {
            self.refused.insert(id, Refused::again(refused));
        } else {
            self.refused.remove(&id);
        }
        outcome
    }

    async fn pass(
        &mut self,
        group: &Arc<Group>,
        plan: CleanPlan,
        aborted: AbortedSet,
    ) -> Result<CleanReport, CleanError> {
        // Its turn in the fill worker's queue comes after what a crash left is deleted.
        let (done, wait) = oneshot::channel();
        self.shared.send_fill(group.id, FillTask::Settle(done));
        wait.await.map_err(|_| StoreError::Closed)?;
        let (links, clean, arrivals) = {
            let state = group.state.lock();
            if state.life != Life::Here {
                return Err(CleanError::Superseded);
            }
            if state.is_short() {
                return Err(CleanError::Short);
            }
            let links = state.allowed(&plan, false);
            (links, state.rewrites.clean, state.rewrites.arrivals())
        };
        let mut report = CleanReport::default();
        let secret = (self.entropy.next_u64(), self.entropy.next_u64());
        let rules = Rules {
            map: KeyMap::new(secret, self.shared.config.compaction_memory),
            aborted,
            end: clean,
            // Where something came in from elsewhere the markers wait for the next pass.
            markers_before: plan.markers_before.min(clean),
        };
        let rules = self.read_keys(group, &links, rules, &mut report).await?;
        report.markers_before = rules.markers_before;
        let parts = self.judge(group, links, &rules, &mut report).await?;
        let mut fits = true;
        for run in runs(parts, group.rolling().bytes) {
            fits &= self.shrink(group, &run, &rules, &mut report).await?;
        }
        if !fits {
            return Err(CleanError::Full);
        }
        let mut state = group.state.lock();
        if state.rewrites.arrivals() != arrivals {
            return Err(CleanError::Superseded);
        }
        state.rewrites.cleaned(rules.end);
        drop(state);
        self.shared.copied();
        Ok(report)
    }

    /// Notes the newest offset of each key among what is not clean, as far as there is room.
    async fn read_keys(
        &mut self,
        group: &Arc<Group>,
        links: &[Link],
        mut rules: Rules,
        report: &mut CleanReport,
    ) -> Result<Rules, CleanError> {
        let clean = rules.end;
        for link in links {
            if link.extent.tip.next_offset <= clean {
                continue;
            }
            let mut scan = Scan::whole(group, link);
            while let Some(frame) = scan.next_frame().await? {
                let header = frame.header;
                if header.next_offset() > clean && !rules.note(&frame, clean) {
                    report.partial = true;
                    return Ok(rules);
                }
                rules.end = rules.end.max(header.next_offset());
                self.pause(header.frame_len()).await?;
            }
        }
        Ok(rules)
    }

    /// Goes through the segments that have anything to lose.
    async fn judge(
        &mut self,
        group: &Arc<Group>,
        links: Vec<Link>,
        rules: &Rules,
        report: &mut CleanReport,
    ) -> Result<Vec<Part>, CleanError> {
        let mut parts = Vec::with_capacity(links.len());
        let mut veil = false;
        let reach = rules.end.max(rules.markers_before);
        for link in links {
            if link.segment.header.base_offset >= reach {
                break;
            }
            let mut part = Part {
                veiled: veil,
                shrinks: false,
                link,
            };
            let mut spare = 0;
            let mut scan = Scan::whole(group, &part.link);
            while let Some(frame) = scan.next_frame().await? {
                let removed = report.removed;
                match rules.fate(&frame, &mut veil, report) {
                    Fate::Keep => {}
                    Fate::Remove if frame.header.kind == FrameKind::Removed => {}
                    Fate::Remove | Fate::Replace(_) => spare += frame.header.frame_len() as u64,
                }
                part.shrinks |= report.removed > removed;
                self.pause(frame.header.frame_len()).await?;
            }
            drop(scan);
            report.bytes_before += part.link.extent.bytes;
            part.shrinks |= spare * WORTH > part.link.extent.bytes;
            parts.push(part);
        }
        Ok(parts)
    }

    /// Writes what is left of neighbours as one segment, if there is anything to gain; where the
    /// disk has no room for that, each of them that shrinks by itself. False if it has no room for
    /// one that does.
    async fn shrink(
        &mut self,
        group: &Arc<Group>,
        run: &[Part],
        rules: &Rules,
        report: &mut CleanReport,
    ) -> Result<bool, CleanError> {
        let shrinks = run.iter().any(|part| part.shrinks);
        if !shrinks && run.len() == 1 {
            report.bytes_after += bytes_of(run);
            return Ok(true);
        }
        if self.has_room(bytes_of(run)).await {
            self.rewrite(group, run, rules, report).await?;
            return Ok(true);
        }
        let mut fits = true;
        for part in run {
            let alone = std::slice::from_ref(part);
            if part.shrinks && self.has_room(bytes_of(alone)).await {
                self.rewrite(group, alone, rules, report).await?;
            } else {
                fits &= !part.shrinks;
                report.bytes_after += bytes_of(alone);
            }
        }
        Ok(fits)
    }

    /// Whether so many bytes can be written beside what is there, and leave everybody else room.
    async fn has_room(&self, bytes: u64) -> bool {
        let config = &self.shared.config;
        let reserve = config.segment_bytes + config.wal_file_bytes;
        let free = self.io.free_bytes(&config.dir).await;
        // One that cannot say is not held against it: then a write will tell.
        !self.shared.budget.lacks_any() && free.map_or(true, |free| free >= bytes + reserve)
    }

    /// Writes one segment in the place of several, or of one.
    async fn rewrite(
        &mut self,
        group: &Arc<Group>,
        run: &[Part],
        rules: &Rules,
        report: &mut CleanReport,
    ) -> Result<(), CleanError> {
        let (Some(first), Some(last)) = (run.first(), run.last()) else {
            return Ok(());
        };
        let header = first.link.segment.header;
        let end = last.link.extent;
        let path = segment::clean_path(&group.dir.join(segment::file_name(header.base_index, 0)));
        let made = self.write(group, run, rules, header, &path).await;
        let (extent, index) = match made {
            Ok(made) => made,
            Err(error) => {
                // What cannot be deleted now is deleted at the next start.
                let _ = self.io.remove_file(&path).await;
                return Err(error);
            }
        };
        if extent.tip != end.tip {
            let _ = self.io.remove_file(&path).await;
            return Err(CleanError::Diverged);
        }
        report.written += extent.bytes;
        report.bytes_after += extent.bytes;
        let rewritten = Rewritten {
            of: run
                .iter()
                .map(|part| Arc::clone(&part.link.segment))
                .collect(),
            path,
            header,
            extent,
            index,
        };
        let (done, wait) = oneshot::channel();
        let switch = FillTask::Switch(Arc::clone(group), Box::new(rewritten), done);
        self.shared.send_fill(group.id, switch);
        wait.await.unwrap_or(Err(StoreError::Closed.into()))
    }

    /// The new file, durable but for its name.
    async fn write(
        &mut self,
        group: &Arc<Group>,
        run: &[Part],
        rules: &Rules,
        header: SegmentHeader,
        path: &std::path::Path,
    ) -> Result<(Extent, super::index::SparseIndex), CleanError> {
        let failed = |error| sort(group, path, error);
        match self.io.remove_file(path).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            Ok(()) | Err(_) => {}
        }
        let file = self.io.open(path, OpenMode::Create).await.map_err(failed)?;
        let mut rewriter = Rewriter::new(header);
        // Counted by whoever went through it before.
        let mut uncounted = CleanReport::default();
        for part in run {
            let mut veil = part.veiled;
            let mut scan = Scan::whole(group, &part.link);
            while let Some(frame) = scan.next_frame().await? {
                self.pause(frame.header.frame_len() * 2).await?;
                match rules.fate(&frame, &mut veil, &mut uncounted) {
                    Fate::Keep => rewriter.keep(&frame),
                    Fate::Remove => rewriter.remove(&frame.header),
                    Fate::Replace(records) => rewriter.replace(frame, records),
                }
                if let Some((pos, bufs)) = rewriter.run(false) {
                    file.write_uncached_at(bufs, pos).await.map_err(failed)?;
                }
            }
        }
        if let Some((pos, bufs)) = rewriter.run(true) {
            file.write_uncached_at(bufs, pos).await.map_err(failed)?;
        }
        if let Err(error) = file.sync_data().await {
            let copy = io::Error::new(error.kind(), error.to_string());
            self.shared.fail("sync a rewritten segment", copy);
            return Err(failed(error));
        }
        Ok(rewriter.finish())
    }

    /// Takes the time that so many bytes take at the configured rate.
    async fn pause(&mut self, bytes: usize) -> Result<(), StoreError> {
        self.shared
            .compacted
            .fetch_add(bytes as u64, Ordering::Relaxed);
        let Some(until) = self.pace.spend(bytes as u64) else {
            // So that a pass that need not wait still ends with its store.
            tokio::task::yield_now().await;
            return match self.stop.try_recv() {
                Err(oneshot::error::TryRecvError::Empty) => Ok(()),
                _ => Err(StoreError::Closed),
            };
        };
        tokio::select! {
            biased;
            _ = &mut self.stop => Err(StoreError::Closed),
            () = time::sleep_until(until) => Ok(()),
        }
    }
}

/// A log whose last pass found no room on the disk.
#[derive(Clone, Copy, Debug)]
struct Refused {
    /// No pass before.
    until: Instant,
    pause: Duration,
}

impl Refused {
    /// After another refusal behind the last one.
    fn again(last: Option<Self>) -> Self {
        let pause = last.map_or(PAUSE_MIN, |last| (last.pause * 2).min(PAUSE_MAX));
        let until = Instant::now() + pause;
        Self { until, pause }
    }
}

fn bytes_of(run: &[Part]) -> u64 {
    run.iter().map(|part| part.link.extent.bytes).sum()
}

/// Sorts the failures of file operations.
pub(super) fn sort(group: &Group, path: &std::path::Path, error: io::Error) -> CleanError {
    if is_full(&error) {
        CleanError::Full
    } else {
        tracing::warn!(group = %group.id, path = %path.display(), %error, "cannot rewrite");
        CleanError::Store(StoreError::io("rewrite", path, error))
    }
}

/// Neighbours that fit one segment together, even if nothing of them goes.
fn runs(parts: Vec<Part>, most: u64) -> Vec<Vec<Part>> {
    let mut runs: Vec<Vec<Part>> = Vec::new();
    let mut bytes = 0;
    for part in parts {
        let own = part.link.extent.bytes;
        match runs.last_mut() {
            Some(run) if bytes + own <= most => {
                bytes += own;
                run.push(part);
            }
            _ => {
                bytes = own;
                runs.push(vec![part]);
            }
        }
    }
    runs
}

/// What a frame's records are.
enum Kind {
    /// The end of a transaction.
    TransactionMarker,
    /// Of a transaction that was aborted.
    Aborted,
    /// Of a producer whose records count, or of a transaction that was committed.
    Counting(BatchHeader),
    /// Whatever is left alone.
    Opaque,
}

fn offset_of(frame: &Frame, record: &Record<'_>) -> Offset {
    let delta = u64::from(record.offset_delta.unsigned_abs());
    frame.header.base_offset.plus(delta)
}

impl Rules {
    fn kind(&self, frame: &Frame) -> Kind {
        let Ok(header) = BatchHeader::parse(&frame.records) else {
            return Kind::Opaque;
        };
        let (producer, offset) = (header.producer_id, frame.header.base_offset);
        if header.attributes.is_control() {
            Kind::TransactionMarker
        } else if header.attributes.is_transactional() && self.aborted.holds(producer, offset) {
            Kind::Aborted
        } else if header.record_count <= MAX_RECORDS {
            Kind::Counting(header)
        } else {
            Kind::Opaque
        }
    }

    /// Notes the keys of a frame from `clean` on; false if there is no room for them.
    fn note(&mut self, frame: &Frame, clean: Offset) -> bool {
        if !frame.header.has_records() {
            return true;
        }
        let Kind::Counting(batch) = self.kind(frame) else {
            return true;
        };
        let Ok(records) = batch.records(&frame.records, MAX_DECODED) else {
            return true;
        };
        // Unreadable in part is unreadable: it must supersede nothing.
        if records.iter().any(|record| record.is_err()) {
            return true;
        }
        if !self
            .map
            .has_room(usize::try_from(batch.record_count).unwrap_or(usize::MAX))
        {
            return false;
        }
        for record in records.iter().flatten() {
            let offset = offset_of(frame, &record);
            if let Some(key) = record.key.filter(|_| offset >= clean) {
                self.map.note(key, offset);
            }
        }
        true
    }

    fn fate(&self, frame: &Frame, veil: &mut bool, report: &mut CleanReport) -> Fate {
        if !frame.header.has_records() {
            return Fate::Remove;
        }
        let records = u64::from(frame.header.record_count);
        let batch = match self.kind(frame) {
            Kind::TransactionMarker if frame.header.base_offset < self.markers_before => {
                report.removed += records;
                return Fate::Remove;
            }
            Kind::TransactionMarker => {
                report.markers += records;
                return Fate::Keep;
            }
            Kind::Aborted => {
                report.removed += records;
                return Fate::Remove;
            }
            Kind::Opaque => {
                *veil = true;
                return Fate::Keep;
            }
            Kind::Counting(batch) => batch,
        };
        let (mut removed, mut markers) = (0, 0);
        let retained = retain(&batch, &frame.records, MAX_DECODED, |record| {
            let kept = self.keeps(record, offset_of(frame, record), *veil);
            removed += u64::from(!kept);
            markers += u64::from(kept && record.value.is_none());
            kept
        });
        let Ok(retained) = retained else {
            *veil = true;
            return Fate::Keep;
        };
        report.removed += removed;
        report.markers += markers;
        match retained {
            Retained::All => Fate::Keep,
            Retained::Nothing => Fate::Remove,
            Retained::Some(records) => Fate::Replace(records),
        }
    }

    fn keeps(&self, record: &Record<'_>, offset: Offset, veil: bool) -> bool {
        // What has no key is nobody's older version.
        let Some(key) = record.key else { return true };
        let superseded = offset < self.end && self.map.supersedes(key, offset);
        let spent = record.value.is_none() && offset < self.markers_before && !veil;
        !superseded && !spent
    }
}
