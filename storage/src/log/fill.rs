//! The fill workers: they move committed entries from memory into segments, sync them in the
//! background, seal full segments and delete what the log start left behind.
//!
//! A group belongs to one worker, so its files have one writer. A write that fails for want of
//! room is tried again later; any other failed write, and every failed sync, ends the process.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};
use trilog_model::{GroupId, ReplicaId};

use super::budget::Lack;
use super::compaction::CleanError;
use super::copy::{CopyError, Staged};
use super::group::Group;
use super::rewriter::Rewritten;
use super::segment::{self, Extent, HEADER_LEN, IndexSlot, Segment, SegmentHeader};
use super::shared::Shared;
use crate::frame::Frame;
use crate::io::{Io, IoFile, IoJob, OpenMode};

/// Files one worker keeps open.
const OPEN_FILES: usize = 512;
/// A file with this much unsynced is synced without being asked.
const SYNC_BYTES: u64 = 32 << 20;

/// What a fill worker is asked.
#[derive(Debug)]
pub(crate) enum FillTask {
    /// Fill a group that has a run ready.
    Fill(Arc<Group>),
    /// Fill all that is committed of these groups and make it durable.
    Flush {
        groups: Vec<Arc<Group>>,
        done: oneshot::Sender<()>,
    },
    /// Delete segments.
    Delete(Vec<PathBuf>),
    /// Delete what a crash left in a group's folder, and see which segments are not there.
    Sweep(Arc<Group>),
    /// Move the file of a damaged segment out of the way.
    SetAside(Arc<Group>, Arc<Segment>),
    /// Have a group's folder there, for a copy.
    Folder(Arc<Group>, oneshot::Sender<Result<(), CopyError>>),
    /// Make a copy part of the log.
    Adopt(
        Arc<Group>,
        Box<Staged>,
        oneshot::Sender<Result<(), CopyError>>,
    ),
    /// Say when all that was asked before is done.
    Settle(oneshot::Sender<()>),
    /// Put a rewritten segment in the place of others.
    Switch(
        Arc<Group>,
        Box<Rewritten>,
        oneshot::Sender<Result<(), CleanError>>,
    ),
    /// Delete segments that were replaced.
    Drop(Arc<Group>, Vec<PathBuf>),
    /// Delete the folder of a removed group.
    Remove(GroupId, ReplicaId),
    Stop,
}

/// Frames to write to a segment.
#[derive(Debug)]
pub(crate) struct FillRun {
    pub(crate) segment: Arc<Segment>,
    /// What the segment holds before.
    pub(crate) extent: Extent,
    pub(crate) frames: Vec<Frame>,
    pub(crate) era: u64,
}

/// What to do next for a group.
#[derive(Debug)]
pub(crate) enum FillStep {
    Idle,
    Write(FillRun),
    /// The active segment is full: make it durable and start another.
    Seal(Arc<Segment>, Extent, u64),
}

#[derive(Debug)]
pub(crate) struct FillJob {
    pub(crate) inbox: mpsc::UnboundedReceiver<FillTask>,
    pub(crate) shared: Arc<Shared>,
}

impl IoJob for FillJob {
    async fn run<I: Io>(mut self, io: I) {
        let mut worker = Worker {
            io,
            shared: self.shared,
            open: BTreeMap::new(),
            clock: 0,
        };
        let mut ready = VecDeque::new();
        loop {
            let task = match self.inbox.try_recv() {
                Ok(task) => task,
                Err(_) => match ready.pop_front() {
                    Some(group) => {
                        if worker.turn(&group).await {
                            ready.push_back(group);
                        }
                        continue;
                    }
                    None => match self.inbox.recv().await {
                        Some(task) => task,
                        None => return,
                    },
                },
            };
            match task {
                FillTask::Fill(group) => ready.push_back(group),
                FillTask::Flush { groups, done } => {
                    worker.flush(&groups).await;
                    let _ = done.send(());
                }
                FillTask::Delete(paths) => worker.delete(&paths).await,
                FillTask::Sweep(group) => worker.sweep(&group).await,
                FillTask::SetAside(group, segment) => worker.set_aside(&group, &segment).await,
                FillTask::Folder(group, done) => {
                    let _ = done.send(worker.folder(&group).await);
                }
                FillTask::Adopt(group, staged, done) => {
                    let _ = done.send(worker.adopt(&group, *staged).await);
                }
                FillTask::Settle(done) => {
                    let _ = done.send(());
                }
                FillTask::Switch(group, rewritten, done) => {
                    let _ = done.send(worker.switch(&group, *rewritten).await);
                }
                FillTask::Drop(group, paths) => worker.drop_retired(&group, &paths).await,
                FillTask::Remove(group, replica) => worker.remove(group, replica).await,
                FillTask::Stop => return,
            }
        }
    }
}

/// The active segment of a group, open for writing.
struct OpenFile<F> {
    segment: Arc<Segment>,
    file: F,
    /// What is written and not synced.
    unsynced: Option<Unsynced>,
    /// Whether the file's name may be lost in a power loss.
    name_unsynced: bool,
    used: u64,
}

#[derive(Clone, Copy, Debug)]
struct Unsynced {
    bytes: u64,
    extent: Extent,
}

pub(super) struct Worker<I: Io> {
    pub(super) io: I,
    pub(super) shared: Arc<Shared>,
    open: BTreeMap<GroupId, OpenFile<I::File>>,
    clock: u64,
}

/// Why a step was not taken. All but a full disk have been reported by then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stuck;

impl<I: Io> Worker<I> {
    /// One step for a group that queued up; whether it wants another.
    async fn turn(&mut self, group: &Arc<Group>) -> bool {
        let step = group.next_fill(false);
        if matches!(step, FillStep::Idle) {
            return false;
        }
        if self.step(group, step).await.is_err() {
            group.stop_filling();
            return false;
        }
        true
    }

    async fn step(&mut self, group: &Arc<Group>, step: FillStep) -> Result<(), Stuck> {
        self.check_alive()?;
        match step {
            FillStep::Idle => Ok(()),
            FillStep::Write(run) => self.write(group, run).await,
            FillStep::Seal(segment, extent, era) => self.seal(group, &segment, extent, era).await,
        }
    }

    async fn flush(&mut self, groups: &[Arc<Group>]) {
        for group in groups {
            loop {
                let step = group.next_fill(true);
                if matches!(step, FillStep::Idle) || self.step(group, step).await.is_err() {
                    break;
                }
            }
        }
        for group in groups {
            if self.sync(group).await.is_err() {
                return;
            }
        }
    }

    async fn write(&mut self, group: &Arc<Group>, run: FillRun) -> Result<(), Stuck> {
        let fresh = run.extent.bytes == HEADER_LEN
            && run.extent.tip.next_index == run.segment.header.base_index;
        let opened = self.open_for(group, &run, fresh).await?;
        if !opened {
            return Ok(());
        }
        let mut slices = Vec::with_capacity(run.frames.len() * 2 + 1);
        let mut pos = run.extent.bytes;
        if fresh {
            slices.push(run.segment.header.encode());
            pos = 0;
        }
        for frame in &run.frames {
            frame.push_slices(&mut slices);
        }
        let Some(open) = self.open.get_mut(&group.id) else {
            return Err(Stuck);
        };
        let written = open.file.write_uncached_at(slices, pos).await;
        self.check("write to a segment", written)?;
        let Some(extent) = group.filled(run) else {
            // The log was emptied meanwhile and its files are going, or the segment is damaged.
            self.open.remove(&group.id);
            return Ok(());
        };
        let Some(open) = self.open.get_mut(&group.id) else {
            return Err(Stuck);
        };
        let before = open
            .unsynced
            .map_or(pos, |unsynced| unsynced.extent.bytes - unsynced.bytes);
        let bytes = extent.bytes - before;
        open.unsynced = Some(Unsynced { bytes, extent });
        if bytes >= SYNC_BYTES {
            self.sync(group).await?;
        }
        Ok(())
    }

    /// Has the run's segment open; `false` if it cannot be continued and another must be begun.
    async fn open_for(
        &mut self,
        group: &Arc<Group>,
        run: &FillRun,
        fresh: bool,
    ) -> Result<bool, Stuck> {
        self.clock += 1;
        if let Some(open) = self.open.get_mut(&group.id) {
            if Arc::ptr_eq(&open.segment, &run.segment) {
                open.used = self.clock;
                return Ok(true);
            }
            self.sync(group).await?;
            self.open.remove(&group.id);
        }
        self.make_room().await?;
        let path = &run.segment.path;
        let opened = if fresh {
            self.create(&group.dir, path).await
        } else {
            self.resume(&run.segment, run.extent.bytes).await
        };
        let file = match opened {
            Ok(Some(file)) => file,
            Ok(None) => {
                group.quarantine(&run.segment, &"it is not what the checkpoint says");
                return Ok(false);
            }
            Err(error) => {
                self.check("open a segment", Err(error))?;
                return Err(Stuck);
            }
        };
        let open = OpenFile {
            segment: Arc::clone(&run.segment),
            file,
            unsynced: None,
            name_unsynced: fresh,
            used: self.clock,
        };
        self.open.insert(group.id, open);
        Ok(true)
    }

    async fn create(&self, dir: &Path, path: &Path) -> io::Result<Option<I::File>> {
        match self.io.open(path, OpenMode::Create).await {
            Ok(file) => return Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Left by a crash before it was part of the log.
                let file = self.io.open(path, OpenMode::Write).await?;
                file.set_len(0).await?;
                return Ok(Some(file));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.io.create_dir_all(dir).await?;
        if let Some(parent) = dir.parent() {
            self.io.sync_dir(parent).await?;
        }
        self.io.open(path, OpenMode::Create).await.map(Some)
    }

    /// Opens a segment that a checkpoint knows, without what a crash left behind its end; `None`
    /// if it is not what the checkpoint says.
    async fn resume(&self, segment: &Segment, bytes: u64) -> io::Result<Option<I::File>> {
        let file = match self.io.open(&segment.path, OpenMode::Write).await {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let len = file.len().await?;
        let header = file.read_at(0, segment::HEADER_BYTES).await;
        let header = header
            .ok()
            .and_then(|bytes| SegmentHeader::decode(&bytes).ok());
        if len < bytes || header != Some(segment.header) {
            return Ok(None);
        }
        if len > bytes {
            file.set_len(bytes).await?;
        }
        Ok(Some(file))
    }

    /// Makes what is written of a group's active segment durable.
    async fn sync(&mut self, group: &Arc<Group>) -> Result<(), Stuck> {
        self.check_alive()?;
        let Some(open) = self.open.get_mut(&group.id) else {
            return Ok(());
        };
        let Some(unsynced) = open.unsynced else {
            return Ok(());
        };
        let synced = open.file.sync_data().await;
        if synced.is_ok() && open.name_unsynced {
            let named = self.io.sync_dir(&group.dir).await;
            self.check_sync("sync a segment's folder", named)?;
        }
        self.check_sync("sync a segment", synced)?;
        if let Some(open) = self.open.get_mut(&group.id) {
            open.name_unsynced = false;
            open.unsynced = None;
            group.synced(&open.segment, unsynced.extent);
        }
        Ok(())
    }

    async fn seal(
        &mut self,
        group: &Arc<Group>,
        segment: &Arc<Segment>,
        extent: Extent,
        era: u64,
    ) -> Result<(), Stuck> {
        self.sync(group).await?;
        self.open.remove(&group.id);
        let index = match &*segment.index.lock() {
            IndexSlot::Here(index) if index.covers_from() == HEADER_LEN => {
                let header = &segment.header;
                Some(index.encode(header.group, header.base_index, extent.bytes))
            }
            IndexSlot::Here(_) | IndexSlot::Absent => None,
        };
        if let Some(index) = index {
            // Never synced: an index that is lost or damaged is built again from its segment.
            let written = self
                .write_index(&segment::index_path(&segment.path), index)
                .await;
            self.check("write a segment's index", written)?;
        }
        group.sealed(segment, era);
        Ok(())
    }

    pub(super) async fn write_index(&self, path: &Path, index: Bytes) -> io::Result<()> {
        let file = match self.io.open(path, OpenMode::Create).await {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let file = self.io.open(path, OpenMode::Write).await?;
                file.set_len(0).await?;
                file
            }
            opened => opened?,
        };
        file.write_all_at(vec![index], 0).await
    }

    /// Closes the file that was used least recently if too many are open.
    async fn make_room(&mut self) -> Result<(), Stuck> {
        if self.open.len() < OPEN_FILES {
            return Ok(());
        }
        let oldest = self.open.iter().min_by_key(|(_, open)| open.used);
        let Some(id) = oldest.map(|(id, _)| *id) else {
            return Ok(());
        };
        let group = self.shared.groups.lock().get(&id).cloned();
        if let Some(group) = group {
            self.sync(&group).await?;
        }
        self.open.remove(&id);
        Ok(())
    }

    pub(super) async fn delete(&mut self, paths: &[PathBuf]) {
        for path in paths {
            self.open.retain(|_, open| open.segment.path != *path);
            self.shared.reads.forget(path).await;
            self.delete_file(path).await;
            self.delete_file(&segment::index_path(path)).await;
        }
    }

    /// Lets go of a segment's file.
    pub(super) fn close(&mut self, group: &Group, segment: &Arc<Segment>) {
        let open = self.open.get(&group.id);
        if open.is_some_and(|open| Arc::ptr_eq(&open.segment, segment)) {
            self.open.remove(&group.id);
        }
    }

    pub(super) async fn delete_file(&self, path: &Path) {
        match self.io.remove_file(path).await {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // It stays until the next start sweeps the folder.
            Err(error) => tracing::warn!(path = %path.display(), %error, "cannot delete"),
        }
    }

    async fn sweep(&mut self, group: &Arc<Group>) {
        let names = match self.io.list(&group.dir).await {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return,
            names => names.unwrap_or_default(),
        };
        let here: BTreeSet<PathBuf> = names.iter().map(|name| group.dir.join(name)).collect();
        group.miss(|path| here.contains(path));
        for name in names {
            let path = group.dir.join(name);
            if group.is_leftover(&path) || group.is_past(&path) {
                self.delete_file(&path).await;
            }
        }
    }

    async fn remove(&mut self, group: GroupId, replica: ReplicaId) {
        self.open
            .retain(|id, open| *id != group || open.segment.header.replica != replica);
        let dir = self.shared.config.group_dir(group, replica);
        let removed = self.io.remove_dir_all(&dir).await;
        let durable = match (removed, dir.parent()) {
            (Ok(()), Some(parent)) => self.io.sync_dir(parent).await,
            (removed, _) => removed,
        };
        match durable {
            Ok(()) => {
                self.shared.doomed.lock().remove(&(group, replica));
            }
            // It stays among the doomed and is deleted at the next start.
            Err(error) => tracing::warn!(path = %dir.display(), %error, "cannot delete"),
        }
    }

    /// Nothing is tried again once the store failed: the kernel calls pages clean that a failed
    /// sync lost, and a second sync would report them durable.
    fn check_alive(&self) -> Result<(), Stuck> {
        self.shared.failure().map_or(Ok(()), |_| Err(Stuck))
    }

    /// Sorts failures: a full disk passes, the rest is fatal.
    fn check<T>(&self, what: &'static str, result: io::Result<T>) -> Result<T, Stuck> {
        match result {
            Ok(value) => {
                self.shared.budget.report_room(Lack::Segments, true);
                Ok(value)
            }
            Err(error) if is_full(&error) => {
                self.shared.budget.report_room(Lack::Segments, false);
                Err(Stuck)
            }
            Err(error) => {
                self.shared.fail(what, error);
                Err(Stuck)
            }
        }
    }

    /// A failed sync is fatal whatever the reason: what it lost is not known.
    pub(super) fn check_sync<T>(
        &self,
        what: &'static str,
        result: io::Result<T>,
    ) -> Result<T, Stuck> {
        result.map_err(|error| {
            self.shared.fail(what, error);
            Stuck
        })
    }
}

/// Whether an operation failed for want of room.
pub(crate) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}
