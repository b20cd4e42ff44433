//! What all groups of a store share: the write-ahead log, the workers, the budgets.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::{Notify, mpsc, watch};
use trilog_model::{GroupId, ReplicaId};

use super::budget::{Budget, Carried};
use super::compaction::CleanTask;
use super::config::StoreConfig;
use super::fill::FillTask;
use super::group::Group;
use super::index_cache::IndexCache;
use super::reader::ReadPool;
use super::stage::Stage;
use super::types::StoreError;
use crate::env::Clock;
use crate::fatal::{Fatal, FatalSink};
use crate::frame::Frame;
use crate::histogram::{Counter, Histogram};
use crate::wal::{Room, Wal, WalError, WalPosition, WalStart};

/// The store as its groups see it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: StoreConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) budget: Arc<Budget>,
    pub(crate) reads: ReadPool,
    pub(crate) stage: Stage,
    pub(crate) indexes: IndexCache,
    pub(crate) groups: Mutex<BTreeMap<GroupId, Arc<Group>>>,
    /// Removed for good, files not deleted yet.
    pub(crate) doomed: Mutex<BTreeSet<(GroupId, ReplicaId)>>,
    /// Replicas that must never come back here.
    pub(crate) barred: BTreeSet<(GroupId, ReplicaId)>,
    pub(crate) progress: Mutex<Progress>,
    /// Bytes the scrub has read.
    pub(crate) scrubbed: AtomicU64,
    /// Something came in that a restart knows only from a checkpoint.
    unsaved: AtomicBool,
    /// Grows when a log lacks something that another replica may hold.
    wants: watch::Sender<u64>,
    /// Rung when the keeper should look whether the log needs a checkpoint.
    pub(crate) bell: Notify,
    /// From each append to its durability here.
    pub(crate) appends: Histogram,
    /// Reads served from memory, and from files.
    pub(crate) cache_hits: Counter,
    pub(crate) cache_misses: Counter,
    /// Bytes that compaction has read and written.
    pub(crate) compacted: AtomicU64,
    pub(crate) cleans: mpsc::Sender<CleanTask>,
    fills: Vec<mpsc::UnboundedSender<FillTask>>,
    wal: RwLock<Option<Wal>>,
    fatal: FatalSink,
    failed: watch::Receiver<Option<Fatal>>,
}

/// How far the write-ahead log got, as its completions tell.
#[derive(Debug)]
pub(crate) struct Progress {
    /// The position of the last completed unit.
    pub(crate) last: Option<WalPosition>,
    /// The first unit seen in each file that is not released.
    pub(crate) firsts: BTreeMap<u64, WalPosition>,
    /// Where recovery would start now.
    pub(crate) start: WalStart,
}

impl Progress {
    /// What recovery from `start` on came across, by the first and last position in each file.
    pub(crate) fn recovered(start: WalStart, positions: &[WalPosition]) -> Self {
        let mut progress = Self {
            last: None,
            firsts: BTreeMap::new(),
            start,
        };
        for position in positions {
            progress.complete(*position);
        }
        progress
    }

    /// Notices a completed unit; whether it is the first in its file.
    pub(crate) fn complete(&mut self, position: WalPosition) -> bool {
        let newer = self.last.is_none_or(|last| last.file < position.file);
        self.last = self.last.max(Some(position));
        if newer {
            self.firsts.entry(position.file).or_insert(position);
        }
        newer
    }
}

impl Shared {
    pub(crate) fn new(
        config: StoreConfig,
        clock: Arc<dyn Clock>,
        (reads, stage): (ReadPool, Stage),
        (fills, cleans): (
            Vec<mpsc::UnboundedSender<FillTask>>,
            mpsc::Sender<CleanTask>,
        ),
        (wal, progress): (Wal, Progress),
        barred: BTreeSet<(GroupId, ReplicaId)>,
        fatal: FatalSink,
    ) -> Self {
        let carried = Carried::new(wal.growth(), config.wal_file_bytes);
        Self {
            budget: Arc::new(Budget::new(
                config.pinned_budget(),
                config.cache_bytes,
                Some(carried),
            )),
            config,
            clock,
            reads,
            stage,
            indexes: IndexCache::default(),
            groups: Mutex::default(),
            doomed: Mutex::default(),
            barred,
            progress: Mutex::new(progress),
            scrubbed: AtomicU64::new(0),
            compacted: AtomicU64::new(0),
            cleans,
            unsaved: AtomicBool::new(false),
            wants: watch::Sender::new(0),
            bell: Notify::new(),
            appends: Histogram::default(),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            fills,
            wal: RwLock::new(Some(wal)),
            failed: fatal.watch(),
            fatal,
        }
    }

    /// The write-ahead log, unless the store failed or is closed. Taken before a group's lock,
    /// once per operation.
    pub(crate) fn wal(&self) -> Result<WalGuard<'_>, StoreError> {
        if let Some(fatal) = &*self.failed.borrow() {
            return Err(StoreError::Fatal(fatal.clone()));
        }
        let wal = RwLockReadGuard::try_map(self.wal.read(), Option::as_ref);
        wal.map(WalGuard).map_err(|_| StoreError::Closed)
    }

    /// Closes the write-ahead log to everyone.
    pub(crate) fn take_wal(&self) -> Option<Wal> {
        self.wal.write().take()
    }

    pub(crate) fn fail(&self, what: &'static str, error: std::io::Error) {
        self.fatal.fire(Fatal {
            what,
            source: Arc::new(error),
        });
    }

    pub(crate) fn watch_fatal(&self) -> watch::Receiver<Option<Fatal>> {
        self.failed.clone()
    }

    /// The failure that ended the store, if one has.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.failed.borrow().clone().map(StoreError::Fatal)
    }

    /// A log lacks something.
    pub(crate) fn want(&self) {
        self.wants.send_modify(|count| *count += 1);
    }

    pub(crate) fn watch_wants(&self) -> watch::Receiver<u64> {
        self.wants.subscribe()
    }

    /// Something came in: it shall be in a checkpoint soon, not to be copied again.
    pub(crate) fn copied(&self) {
        self.unsaved.store(true, Ordering::Relaxed);
        self.bell.notify_one();
    }

    /// What came in is in no checkpoint yet.
    pub(crate) fn keep_unsaved(&self) {
        self.unsaved.store(true, Ordering::Relaxed);
    }

    /// Whether something came in since this was asked last.
    pub(crate) fn take_unsaved(&self) -> bool {
        self.unsaved.swap(false, Ordering::Relaxed)
    }

    /// Hands a task to the fill worker of a group.
    pub(crate) fn send_fill(&self, group: GroupId, task: FillTask) {
        let workers = self.fills.len() as u64;
        let at = usize::try_from(group.get() % workers.max(1)).unwrap_or(0);
        if let Some(worker) = self.fills.get(at) {
            // A worker that is gone went with the store, or with the simulated machine.
            let _ = worker.send(task);
        }
    }

    pub(crate) fn fill_workers(&self) -> &[mpsc::UnboundedSender<FillTask>] {
        &self.fills
    }

    /// A unit was completed.
    fn completed(&self, position: WalPosition) {
        let new_file = self.progress.lock().complete(position);
        if new_file {
            self.bell.notify_one();
        }
    }
}

/// The open write-ahead log.
#[derive(Debug)]
pub(crate) struct WalGuard<'a>(parking_lot::MappedRwLockReadGuard<'a, Wal>);

impl WalGuard<'_> {
    /// Submits frames that [`WalGuard::admits`] passed; `done` runs when they are durable.
    pub(crate) fn submit(
        &self,
        shared: &Arc<Shared>,
        frames: Vec<Frame>,
        room: Room,
        done: impl FnOnce(Result<WalPosition, StoreError>) + Send + 'static,
    ) {
        let shared = Arc::clone(shared);
        let done = Box::new(move |result: Result<WalPosition, WalError>| {
            if let Ok(position) = result {
                shared.completed(position);
            }
            done(result.map_err(StoreError::from));
        });
        self.0.submit(frames, room, done);
    }

    /// Whether a frame can be written at all. Checked before anything changes: a refusal would
    /// otherwise come back while the group is locked.
    pub(crate) fn admits(&self, frame: &Frame) -> Result<(), StoreError> {
        self.0.check(frame).map_err(StoreError::from)
    }

    pub(crate) fn wal(&self) -> &Wal {
        &self.0
    }
}
