//! The keeper: makes checkpoints so that write-ahead log files can be used again, and sees to it
//! that nothing waits for ever: old committed entries are filled, old uncommitted ones logged
//! again.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{self, Instant};

use super::budget::Lack;
use super::checkpoint::{Checkpoint, GroupRecord, SegmentRecord};
use super::checkpoint_file::{self, SaveError};
use super::fill::{self, FillTask};
use super::group::{Group, GroupState, Life};
use super::rewrites::Mark;
use super::shared::Shared;
use super::types::StoreError;
use crate::io::{Io, IoJob};
use crate::wal::{Room, WalPosition, WalPressure, WalStart};

/// Bytes of entries logged again as one unit.
const RELOG_BYTES: usize = 1 << 20;

/// What the keeper is asked.
#[derive(Debug)]
pub(crate) enum KeeperTask {
    /// Fill everything committed and make a checkpoint.
    Checkpoint(oneshot::Sender<Result<(), StoreError>>),
    Stop,
}

#[derive(Debug)]
pub(crate) struct KeeperJob {
    pub(crate) inbox: mpsc::UnboundedReceiver<KeeperTask>,
    pub(crate) shared: Arc<Shared>,
}

impl IoJob for KeeperJob {
    async fn run<I: Io>(mut self, io: I) {
        let keeper = Keeper {
            io,
            shared: Arc::clone(&self.shared),
        };
        let pace = self.shared.config.fill_age;
        let mut tick = Instant::now() + pace;
        let mut pressure = keeper.watch_pressure();
        keeper.keep_spare().await;
        keeper.look().await;
        loop {
            tokio::select! {
                biased;
                task = self.inbox.recv() => match task {
                    Some(KeeperTask::Checkpoint(done)) => {
                        let _ = done.send(keeper.settle().await);
                    }
                    Some(KeeperTask::Stop) | None => return,
                },
                () = self.shared.budget.tightened() => keeper.relieve(),
                () = self.shared.bell.notified() => keeper.look().await,
                Some(()) = changed(&mut pressure) => keeper.look().await,
                () = time::sleep_until(tick) => {
                    keeper.tick();
                    keeper.look().await;
                    tick = Instant::now() + pace;
                }
            }
        }
    }
}

struct Keeper<I: Io> {
    io: I,
    shared: Arc<Shared>,
}

impl<I: Io> Keeper<I> {
    fn groups(&self) -> Vec<Arc<Group>> {
        self.shared.groups.lock().values().cloned().collect()
    }

    async fn keep_spare(&self) {
        let dir = &self.shared.config.dir;
        if let Err(error) = checkpoint_file::keep_spare(&self.io, dir).await {
            tracing::warn!(%error, "no room is kept for a checkpoint on a full disk");
        }
    }

    fn tick(&self) {
        let mut waiting = false;
        for group in self.groups() {
            group.tick();
            // Somebody may have read what the last checkpoint left without a place.
            group.delete_retired();
            waiting |= group.state.lock().has_to_fill();
        }
        if !waiting && self.shared.budget.lacks(Lack::Segments) {
            // What found no room is gone, so no write will ever say that there is some.
            self.shared.budget.report_room(Lack::Segments, true);
        }
    }

    /// Memory for entries outside segments is short: groups with less than a run fill, too.
    fn relieve(&self) {
        for group in self.groups() {
            group.relieve();
        }
    }

    fn watch_pressure(&self) -> Option<watch::Receiver<WalPressure>> {
        let wal = self.shared.wal().ok()?;
        Some(wal.wal().watch_pressure())
    }

    fn is_full(&self) -> bool {
        let pressure = self.watch_pressure();
        pressure.is_some_and(|pressure| *pressure.borrow() == WalPressure::Full)
    }

    /// Makes a checkpoint if the write-ahead log has grown enough since the last one.
    async fn look(&self) {
        self.report();
        let unsaved = self.shared.take_unsaved();
        // One that found no room is tried again until it does, or nothing would say that it may.
        if unsaved || self.shared.budget.lacks(Lack::Checkpoint) {
            let made = self.checkpoint(true).await;
            if unsaved && !matches!(made, Ok(Made::Yes)) {
                self.shared.keep_unsaved();
            }
            if let Err(error) = made {
                tracing::warn!(%error, "no checkpoint was made");
            }
        }
        if !self.is_due() {
            return;
        }
        if let Err(error) = self.advance().await {
            tracing::warn!(%error, "no checkpoint was made");
        }
        self.report();
    }

    fn report(&self) {
        let full = self.is_full();
        self.shared
            .budget
            .report(|pressure| pressure.wal_low = full);
    }

    fn is_due(&self) -> bool {
        let full = self.is_full();
        let progress = self.shared.progress.lock();
        let begun = match progress.start {
            WalStart::Beginning => progress.firsts.keys().next().copied(),
            WalStart::At(position) => Some(position.file),
        };
        match (begun, progress.last) {
            (Some(begun), Some(last)) => {
                full || last.file - begun >= self.shared.config.checkpoint_files()
            }
            _ => false,
        }
    }

    /// Frees what can be freed of the write-ahead log. What cannot go to a segment yet is logged
    /// again, the oldest file first, each freed before the next is begun: the entries of one
    /// file fit the file that is kept for this.
    async fn advance(&self) -> Result<(), StoreError> {
        let Some(last) = self.shared.progress.lock().last else {
            return Ok(());
        };
        self.flush(last.file).await?;
        self.checkpoint(false).await?;
        let age = if self.is_full() {
            if !self.shared.budget.is_carried() {
                // Files would go round and round, and the reserve with them.
                return Ok(());
            }
            0
        } else {
            self.shared.config.relog_files()
        };
        let stale = last.file.saturating_sub(age);
        let mut before = None;
        while let Some(oldest) = self.oldest().filter(|oldest| *oldest < stale)
            && before != Some(oldest)
        {
            if self.is_cutting() {
                // No checkpoint before that is durable, and nothing is freed without one.
                if self.is_full() {
                    self.shared.wal()?.wal().lend();
                }
                return Ok(());
            }
            self.relog(oldest + 1).await?;
            self.checkpoint(false).await?;
            before = Some(oldest);
        }
        Ok(())
    }

    /// Fills everything committed and makes a checkpoint.
    async fn settle(&self) -> Result<(), StoreError> {
        self.flush(u64::MAX).await?;
        if self.checkpoint(true).await? == Made::Cutting {
            self.shared.keep_unsaved();
        }
        Ok(())
    }

    /// Whether some log was cut and that is not durable yet.
    fn is_cutting(&self) -> bool {
        let mut groups = self.groups().into_iter();
        groups.any(|group| group.state.lock().cuts.is_open())
    }

    /// The oldest write-ahead log file that an entry needs.
    fn oldest(&self) -> Option<u64> {
        let groups = self.groups().into_iter();
        groups
            .filter_map(|group| group.state.lock().runs.oldest())
            .min()
    }

    /// Has every committed entry of files before `goal` made durable in segments.
    async fn flush(&self, goal: u64) -> Result<(), StoreError> {
        let workers = self.shared.fill_workers();
        let mut shares: BTreeMap<u64, Vec<Arc<Group>>> = BTreeMap::new();
        for group in self.groups() {
            if group.needs_before(goal) {
                let worker = group.id.get() % workers.len() as u64;
                shares.entry(worker).or_default().push(group);
            }
        }
        let mut waits = Vec::new();
        for groups in shares.into_values() {
            let Some(id) = groups.first().map(|group| group.id) else {
                continue;
            };
            let (done, wait) = oneshot::channel();
            self.shared.send_fill(id, FillTask::Flush { groups, done });
            waits.push(wait);
        }
        for wait in waits {
            wait.await.map_err(|_| StoreError::Closed)?;
        }
        Ok(())
    }

    /// Logs again what stands in files before `stale`.
    async fn relog(&self, stale: u64) -> Result<(), StoreError> {
        let mut waits = Vec::new();
        for group in self.groups() {
            waits.extend(group.relog(stale)?);
        }
        if waits.is_empty() {
            // A truncation or a removal came first, or they are not durable in a segment yet.
            self.flush(stale).await?;
        }
        for wait in waits {
            wait.await.unwrap_or(Err(StoreError::Closed))?;
        }
        Ok(())
    }

    /// Writes a checkpoint and lets go of the files it does not need. Without `always`, only if
    /// that frees any.
    async fn checkpoint(&self, always: bool) -> Result<Made, StoreError> {
        if let Some(failure) = self.shared.failure() {
            return Err(failure);
        }
        let Some((checkpoint, marks)) = self.capture() else {
            return Ok(Made::Cutting);
        };
        if !always && checkpoint.start == self.shared.progress.lock().start {
            return Ok(Made::Needless);
        }
        let dir = &self.shared.config.dir;
        let saved = checkpoint_file::save(&self.io, dir, checkpoint.encode()).await;
        self.judge(saved)?;
        for (group, mark) in marks {
            group.rewrites_saved(mark);
        }
        let mut progress = self.shared.progress.lock();
        progress.start = checkpoint.start;
        if let WalStart::At(start) = checkpoint.start {
            progress.firsts = progress.firsts.split_off(&start.file);
            drop(progress);
            if let Ok(wal) = self.shared.wal() {
                wal.wal().release(start.file);
            }
        }
        Ok(Made::Yes)
    }

    fn judge(&self, saved: Result<(), SaveError>) -> Result<(), StoreError> {
        let path = checkpoint_file::path(&self.shared.config.dir);
        let (error, fatal) = match saved {
            Ok(()) => {
                self.shared.budget.report_room(Lack::Checkpoint, true);
                return Ok(());
            }
            Err(SaveError::Write(error)) => (error, false),
            Err(SaveError::Sync(error)) => (error, true),
        };
        if !fatal && fill::is_full(&error) {
            self.shared.budget.report_room(Lack::Checkpoint, false);
            return Err(StoreError::io("write", &path, error));
        }
        let copy = io::Error::new(error.kind(), error.to_string());
        self.shared.fail("write a checkpoint", copy);
        Err(StoreError::io("write", &path, error))
    }

    /// Everything as it stands; `None` if a log is just being cut. The place in the
    /// write-ahead log is read first: what is captured after it only knows more.
    fn capture(&self) -> Option<(Checkpoint, Marks)> {
        let (last, firsts, old) = {
            let progress = self.shared.progress.lock();
            (progress.last, progress.firsts.clone(), progress.start)
        };
        let mut groups = Vec::new();
        let mut marks = Vec::new();
        let mut oldest: Option<u64> = None;
        for group in self.groups() {
            let state = group.state.lock();
            if state.cuts.is_open() {
                return None;
            }
            let Some(created) = state.created.filter(|_| state.life != Life::Gone) else {
                continue;
            };
            if let Some(file) = state.runs.oldest() {
                oldest = Some(oldest.map_or(file, |oldest| oldest.min(file)));
            }
            groups.push(state.record(&group, created));
            let mark = state.rewrites.mark();
            drop(state);
            marks.push((group, mark));
        }
        let doomed = self.shared.doomed.lock().iter().copied().collect();
        let start = start_at(last, oldest, &firsts).unwrap_or(old);
        let checkpoint = Checkpoint {
            start,
            groups,
            doomed,
            barred: self.shared.barred.iter().copied().collect(),
        };
        Some((checkpoint, marks))
    }
}

/// Where recovery must start if the last unit completed at `last` and entries are needed from
/// file `oldest` on.
fn start_at(
    last: Option<WalPosition>,
    oldest: Option<u64>,
    firsts: &BTreeMap<u64, WalPosition>,
) -> Option<WalStart> {
    let last = last?;
    let needed = oldest.filter(|file| *file <= last.file);
    let at = match needed {
        Some(file) => *firsts.get(&file)?,
        None => last,
    };
    Some(WalStart::At(at))
}

impl GroupState {
    /// Whether committed entries wait for a segment.
    fn has_to_fill(&self) -> bool {
        self.segments.filled().next_index < self.fillable()
    }

    /// The group as a checkpoint keeps it.
    fn record(&self, group: &Group, created: WalPosition) -> GroupRecord {
        let tip = self.segments.synced();
        let mut segments = Vec::new();
        for link in &self.segments.links {
            let Some(synced) = link.synced else { break };
            segments.push(SegmentRecord {
                base_index: link.segment.header.base_index,
                base_offset: link.segment.header.base_offset,
                base_time: link.segment.header.base_time,
                bytes: synced.bytes,
                tip: synced.tip,
                last_time: synced.last_time,
                record_time: synced.record_time,
                sealed: link.sealed,
                generation: link.segment.generation,
            });
            if synced != link.extent {
                break;
            }
        }
        let terms = self.terms.iter().filter(|term| term.index < tip.next_index);
        GroupRecord {
            group: group.id,
            replica: group.replica,
            created,
            vote: self.settled.vote,
            committed: self.fillable(),
            log_start: self.settled.log_start.clone(),
            tip,
            terms: terms.copied().collect(),
            segments,
            clean: self.rewrites.clean,
        }
    }
}

impl Group {
    /// Whether the group has entries in write-ahead log files before `file`.
    fn needs_before(&self, file: u64) -> bool {
        let state = self.state.lock();
        state.runs.oldest().is_some_and(|oldest| oldest < file)
    }

    /// Logs again the entries that stand in files before `stale`. They keep their place in the
    /// chain: recovery sorts them in.
    fn relog(self: &Arc<Self>, stale: u64) -> Result<Vec<Written>, StoreError> {
        let wal = self.shared.wal()?;
        let state = self.state.lock();
        let mut waits = Vec::new();
        let Some((from, to)) = state.runs.older_than(stale) else {
            return Ok(waits);
        };
        let mut from = from.max(state.segments.filled().next_index);
        let generation = state.cuts.generation();
        while let Some(frames) = state.resident.frames(from, to, RELOG_BYTES)
            && let Some(last) = frames.last().map(|last| last.header.index)
            && state.life == Life::Here
        {
            let end = last.next();
            let (sender, receiver) = oneshot::channel();
            let group = Arc::clone(self);
            wal.submit(&self.shared, frames, Room::Relog, move |result| {
                let result = result.map(|at| group.appended(generation, from, end, at));
                let _ = sender.send(result);
            });
            waits.push(receiver);
            from = end;
        }
        Ok(waits)
    }
}

/// What became of a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Made {
    Yes,
    /// It would free nothing.
    Needless,
    /// Some log was cut and that is not durable yet: whoever needs it has to ask again.
    Cutting,
}

/// What a checkpoint says of each group's rewriting.
type Marks = Vec<(Arc<Group>, Mark)>;

/// The outcome of a unit that was submitted.
type Written = oneshot::Receiver<Result<(), StoreError>>;

/// Waits for the pressure to change; `None` if it never will.
async fn changed(pressure: &mut Option<watch::Receiver<WalPressure>>) -> Option<()> {
    let outcome = pressure.as_mut()?.changed().await;
    if outcome.is_err() {
        *pressure = None;
    }
    outcome.ok()
}
