//! A simulated disk under a seed: tears, loses, reorders, corrupts, fails, fills up and dawdles.
//!
//! One [`SimDisk`] is the disk of one node. Its jobs run as local tasks, so it is made inside a
//! `LocalSet` ([`block_on`] provides one, on a runtime whose time is simulated). Nothing in it
//! depends on real time or on threads: the same seed and the same jobs give the same
//! [`SimDisk::trace_hash`].
//!
//! ```text
//! SimDisk::new(seed) -> jobs run -> crash(PowerLoss::Any) -> reopen() -> jobs run -> ...
//!                          |
//!                          +-> fork() -> SimImage -> power_loss(.., seed) -> SimDisk
//! ```
//!
//! A write takes effect in the page cache when it is issued, a sync when it completes, and covers
//! the writes that had completed when it was issued. Names (created, renamed, removed) are
//! durable after `sync_dir` on their folder and not before, whatever was synced of the file.
//! [`explore::explore`] is the ready-made test that crashes at every operation.
//!
//! After [`SimDisk::crash`] or [`SimDisk::kill`] the jobs of that opening are gone, and an
//! operation that still refers to it never completes.

mod config;
mod content;
pub mod explore;
mod fate;
mod names;
mod ops;
#[cfg(test)]
mod planted;
mod state;
mod tasks;
#[cfg(test)]
mod tests;
mod trace;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;

pub use config::{SimConfig, SyncFailure};
pub use fate::PowerLoss;

use super::backend::JobHandle;
use super::{Backend, IoJob};
use state::State;
use tasks::Tasks;

/// Called with the disk after each operation is issued.
type Observer = Box<dyn FnMut(&SimDisk) + Send>;

/// One opening of a simulated disk. Clones are the same opening.
#[derive(Clone)]
pub struct SimDisk {
    platter: Arc<Platter>,
    incarnation: u64,
    tasks: Tasks,
}

/// What outlives an opening.
struct Platter {
    state: Mutex<State>,
    observer: Mutex<Option<Observer>>,
    halted: watch::Sender<bool>,
    /// The folder whose files are stuck.
    held: watch::Sender<Option<PathBuf>>,
}

impl SimDisk {
    /// An empty, sound disk of ordinary speed.
    ///
    /// # Panics
    /// Outside a `LocalSet`, as all that open a disk.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self::with_config(seed, SimConfig::default())
    }

    #[must_use]
    pub fn with_config(seed: u64, config: SimConfig) -> Self {
        Self::open(State::new(seed, config))
    }

    fn open(state: State) -> Self {
        let incarnation = state.incarnation;
        let platter = Platter {
            state: Mutex::new(state),
            observer: Mutex::new(None),
            halted: watch::channel(false).0,
            held: watch::channel(None).0,
        };
        Self {
            platter: Arc::new(platter),
            incarnation,
            tasks: Tasks::start(),
        }
    }

    /// The back-end that runs jobs on this opening.
    #[must_use]
    pub fn backend(&self) -> Backend {
        Backend::Sim(self.clone())
    }

    pub(super) fn spawn<J: IoJob>(&self, job: J) -> JobHandle {
        let io = ops::SimIo::new(self.clone());
        self.tasks.spawn(move || Box::pin(job.run(io)))
    }

    /// Pulls the plug: what was not synced meets its fate and every job is gone.
    pub fn crash(&self, loss: PowerLoss) {
        self.end(|state| state.power_loss(loss));
    }

    /// Kills the process: every job is gone, everything written stays, synced or not.
    pub fn kill(&self) {
        self.end(State::kill);
    }

    fn end(&self, how: impl FnOnce(&mut State)) {
        self.tasks.abort_all();
        *self.platter.observer.lock() = None;
        let mut state = self.platter.state.lock();
        if state.incarnation == self.incarnation {
            how(&mut state);
        }
    }

    /// Opens the same disk again; an opening that still ran is killed first.
    #[must_use]
    pub fn reopen(&self) -> Self {
        self.kill();
        let mut state = self.platter.state.lock();
        state.halt_at = None;
        let incarnation = state.incarnation;
        drop(state);
        self.platter.halted.send_replace(false);
        self.let_go();
        Self {
            platter: Arc::clone(&self.platter),
            incarnation,
            tasks: Tasks::start(),
        }
    }

    /// A copy of the disk at this instant, with all that is unsynced.
    #[must_use]
    pub fn fork(&self) -> SimImage {
        SimImage(self.platter.state.lock().clone())
    }

    /// The hash over every operation so far, its bytes and its outcome.
    #[must_use]
    pub fn trace_hash(&self) -> u64 {
        self.platter.state.lock().trace.hash()
    }

    /// Operations issued so far, over all openings.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.platter.state.lock().stamp
    }

    /// Lets the operation numbered `number` (see [`SimDisk::operations`]; the next one is the
    /// present count plus one) begin and never complete, and none after it begin.
    pub fn halt_at(&self, number: u64) {
        self.platter.state.lock().halt_at = Some(number);
    }

    /// Waits until the disk has come to its [`SimDisk::halt_at`].
    pub async fn halted(&self) {
        let mut halted = self.platter.halted.subscribe();
        // The sender lives as long as `self`.
        let _ = halted.wait_for(|halted| *halted).await;
    }

    /// Calls `observer` after each operation is issued, until this opening ends: the place to
    /// [`SimDisk::fork`] for a test that crashes at every point.
    pub fn observe(&self, observer: impl FnMut(&Self) + Send + 'static) {
        *self.platter.observer.lock() = Some(Box::new(observer));
    }

    /// Changes speed, room or chance faults from now on.
    pub fn configure(&self, change: impl FnOnce(&mut SimConfig)) {
        change(&mut self.platter.state.lock().config);
    }

    /// Whatever is issued before `duration` is over completes only after it.
    pub fn stall(&self, duration: Duration) {
        self.platter.state.lock().stalled_until = Some(Instant::now() + duration);
    }

    /// Lets no write or sync of the files under `dir` complete until [`Self::let_go`].
    pub fn hold(&self, dir: &Path) {
        self.platter.held.send_replace(Some(dir.to_owned()));
    }

    /// Lets everything held complete.
    pub fn let_go(&self) {
        self.platter.held.send_replace(None);
    }

    /// Makes the next sync fail: of the file or folder at `path`, or whichever comes first.
    pub fn fail_sync(&self, path: Option<&Path>, failure: SyncFailure) {
        self.platter.state.lock().fail_sync(path, failure);
    }

    /// Makes the next write fail, partly done: to the file at `path`, or whichever comes first.
    pub fn fail_write(&self, path: Option<&Path>) {
        self.platter.state.lock().fail_write(path);
    }

    /// Makes reads that touch this range of a file fail until it is written again.
    pub fn fail_reads(&self, path: &Path, range: Range<u64>) {
        self.platter.state.lock().fail_reads(path, range);
    }

    /// Makes the next read of a file return another place's bytes.
    pub fn misdirect_read(&self, path: &Path) {
        self.misdirect_read_after(path, 0);
    }

    /// The same for the read of the file that follows the next `reads` ones.
    pub fn misdirect_read_after(&self, path: &Path, reads: u64) {
        self.platter.state.lock().misdirect_read(path, reads);
    }

    /// Whether a read is still to be misdirected.
    #[must_use]
    pub fn is_to_misdirect(&self) -> bool {
        self.platter.state.lock().is_to_misdirect()
    }

    /// Forgets the failures that were to come, by plan or by chance, and has room again. What is
    /// stored stays as it is.
    pub fn mend(&self) {
        self.platter.state.lock().mend();
    }

    /// Whether nothing makes a write or a sync fail, but a lack of room.
    #[must_use]
    pub fn is_sound(&self) -> bool {
        self.platter.state.lock().is_sound()
    }

    /// Inverts one stored bit.
    pub fn flip_bit(&self, path: &Path, pos: u64, bit: u8) {
        self.platter.state.lock().flip_bit(path, pos, bit);
    }

    /// The files and their lengths, by path.
    #[must_use]
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        self.platter.state.lock().files()
    }

    /// A whole file as the page cache has it, past all faults.
    #[must_use]
    pub fn read(&self, path: &Path) -> Option<Vec<u8>> {
        self.platter.state.lock().raw_read(path)
    }

    /// Puts a file there, durable, in the place of one that may have been there.
    pub fn write(&self, path: &Path, data: &[u8]) {
        self.platter.state.lock().raw_write(path, data);
    }

    /// Takes a file away, durably.
    pub fn remove(&self, path: &Path) {
        self.platter.state.lock().raw_remove(path);
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk")
            .field("incarnation", &self.incarnation)
            .finish_non_exhaustive()
    }
}

/// A disk as it was at one instant. Cheap to make, to keep and to clone.
#[derive(Clone, Debug)]
pub struct SimImage(State);

impl SimImage {
    /// The disk after a power loss at that instant, opened again. The seed decides what survives
    /// and drives the disk from there.
    #[must_use]
    pub fn power_loss(&self, loss: PowerLoss, seed: u64) -> SimDisk {
        let mut state = self.0.fork(seed);
        state.power_loss(loss);
        SimDisk::open(state)
    }

    /// The disk as the next process finds it if this one was killed at that instant.
    #[must_use]
    pub fn kill(&self, seed: u64) -> SimDisk {
        let mut state = self.0.fork(seed);
        state.kill();
        SimDisk::open(state)
    }

    /// The files and their lengths, by path.
    #[must_use]
    pub fn files(&self) -> Vec<(PathBuf, u64)> {
        self.0.files()
    }

    /// A whole file as the page cache had it.
    #[must_use]
    pub fn read(&self, path: &Path) -> Option<Vec<u8>> {
        self.0.raw_read(path)
    }
}

/// Runs a simulation to its end on one thread, with time that jumps ahead when all wait.
pub fn block_on<F: Future>(simulation: F) -> F::Output {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build();
    let runtime = super::backend::require("start a simulation", runtime);
    tokio::task::LocalSet::new().block_on(&runtime, simulation)
}
