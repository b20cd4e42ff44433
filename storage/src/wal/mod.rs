//! The write-ahead log: one per data directory, shared by every group, and the only thing that
//! is synced before an acknowledgement.
//!
//! It owns the files `NN.wal` of its folder. It sees frames as opaque, but for the group whose
//! order they belong to, and knows nothing of what a vote or a truncation means.
//!
//! ```text
//! submit ──> queue ──> writer job: gather ──> one write + sync ──> done, in order (many at
//!                         │  ▲                (a round)            once: by the teller job)
//!                  begins │  │ ready files
//!                         ▼  │
//!                        pool  <── release (a checkpoint holds it all)
//!                            ▲
//!                            └── filler job: zero-fills new files up to the limit
//! ```
//!
//! What queued during one sync makes up the next round, so a sync serves every group that had
//! something to write. Rounds are strictly one after the other: round n is written when round
//! n - 1 is durable, and says so. Recovery (`scan`) therefore tells a torn tail, which is cut,
//! from damage to something that was durable, which is corruption.

mod answers;
pub mod bench;
mod error;
mod filler;
mod format;
mod growth;
mod places;
mod planted;
mod pool;
mod queue;
mod round;
mod scan;
mod status;
mod survey;
#[cfg(test)]
mod tests;
mod writer;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{oneshot, watch};

use crate::env::Entropy;
use crate::fatal::FatalSink;
use crate::frame::Frame;
use crate::histogram::Histogram;
use crate::io::{Backend, Io, IoJob, JobHandle};
use answers::{Answers, Teller};
use filler::Filler;
use format::{BLOCK, BLOCK_BYTES, HEADER_LEN};
use pool::Pool;
use queue::{Queue, Unit};
use scan::{Recovered, Visit};
use writer::Writer;

pub use error::{Damage, WalError};
pub(crate) use growth::Growth;
pub use places::{FilePlaces, RoundPlace, places};
pub use queue::Room;
pub use status::{WalPosition, WalPressure, WalStages, WalStatus, WalWriting};

/// Where the log lives and how large it may become.
#[derive(Clone, Debug)]
pub struct WalConfig {
    /// The log's own folder; made if it is not there.
    pub dir: PathBuf,
    /// The length of a file, a multiple of 4 KiB.
    pub file_bytes: u64,
    /// The most files. Files beyond a number that was lowered stay in use.
    pub files: u32,
    /// The most bytes of one round, but for a single frame that is larger; a multiple of 4 KiB.
    pub max_round_bytes: usize,
}

impl WalConfig {
    /// 16 files of 64 MiB, rounds of 4 MiB.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            file_bytes: 64 << 20,
            files: 16,
            max_round_bytes: 4 << 20,
        }
    }

    /// The largest frame that a file takes: one round, beside the header and a seal.
    #[must_use]
    pub fn max_frame_bytes(&self) -> usize {
        let usable = usize::try_from(self.file_bytes).unwrap_or(usize::MAX);
        usable.saturating_sub(2 * BLOCK + HEADER_LEN)
    }

    fn validate(&self) -> Result<(), WalError> {
        let round = self.max_round_bytes as u64;
        let whole_blocks = |bytes: u64| bytes != 0 && bytes.is_multiple_of(BLOCK_BYTES);
        let reason = if self.files < 4 {
            "there must be at least 4 files"
        } else if !whole_blocks(self.file_bytes) || !whole_blocks(round) {
            "sizes must be multiples of 4 KiB"
        } else if self.file_bytes > u64::from(u32::MAX) {
            "a file must be smaller than 4 GiB"
        } else if self.file_bytes < round + 2 * BLOCK_BYTES {
            "a file must hold a header, a round and a seal"
        } else {
            return Ok(());
        };
        Err(WalError::Config(reason))
    }
}

/// From where the log is recovered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WalStart {
    /// There is no checkpoint: from the first file ever, if there is any.
    Beginning,
    /// From this round on. The round before it was durable, and its file is not released.
    At(WalPosition),
}

/// Told once, on a thread of the log's, when a unit is durable or never will be: must be quick.
/// The position is that of the unit's first frame.
pub type WalDone = Box<dyn FnOnce(Result<WalPosition, WalError>) + Send>;

/// What was recovered.
#[derive(Debug, Default)]
pub struct WalScan {
    /// In the order of writing.
    pub frames: Vec<(WalPosition, Frame)>,
    pub summary: WalScanSummary,
}

/// What a recovery came across, besides the frames.
#[derive(Clone, Copy, Debug, Default)]
pub struct WalScanSummary {
    /// The end of the log, where something was cut that had never been acknowledged.
    pub torn_tail: Option<TornTail>,
    /// Whole rounds in the files that were read.
    pub rounds: u64,
    pub bytes_read: u64,
}

/// Where a torn tail was cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    pub file: u64,
    pub pos: u64,
    /// The round that was not whole.
    pub round: u64,
}

/// The write-ahead log of one data directory. Dropped, it drains as when closed, unattended.
pub struct Wal {
    shared: Arc<Shared>,
    max_frame_bytes: usize,
    writer: Option<JobHandle>,
    filler: Option<JobHandle>,
    teller: Option<JobHandle>,
}

impl Wal {
    /// Recovers what is there from `start`, then writes on in a new file under a fresh
    /// signature. Every frame it returns has been made durable again.
    pub async fn open(
        backend: &Backend,
        config: WalConfig,
        entropy: Entropy,
        start: WalStart,
        fatal: FatalSink,
    ) -> Result<(Self, WalScan), WalError> {
        let frames = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&frames);
        let visit = move |position, frame| sink.lock().push((position, frame));
        let opened = Self::open_visiting(backend, config, entropy, start, fatal, visit).await;
        let (wal, summary) = opened?;
        let frames = std::mem::take(&mut *frames.lock());
        Ok((wal, WalScan { frames, summary }))
    }

    /// As [`Self::open`], but hands each frame to `visit`, on the I/O thread, as it is read. What
    /// was visited counts for nothing if the opening fails.
    pub async fn open_visiting(
        backend: &Backend,
        config: WalConfig,
        entropy: Entropy,
        start: WalStart,
        fatal: FatalSink,
        visit: impl FnMut(WalPosition, Frame) + Send + 'static,
    ) -> Result<(Self, WalScanSummary), WalError> {
        config.validate()?;
        let shared = Arc::new(Shared::new());
        let (opened, answer) = oneshot::channel();
        let job = WalJob {
            config: config.clone(),
            shared: Arc::clone(&shared),
            entropy,
            fatal: fatal.clone(),
            start,
            visit: Box::new(visit),
            opened,
        };
        let writer = backend.spawn("wal", job);
        // No answer at all: the simulated machine lost its power.
        let summary = answer.await.unwrap_or(Err(WalError::Closed))?;
        let max_frame_bytes = config.max_frame_bytes();
        let job = Filler {
            config,
            shared: Arc::clone(&shared),
            fatal,
        };
        let filler = backend.spawn("wal-fill", job);
        let job = Teller {
            shared: Arc::clone(&shared),
        };
        // It has no files, so it needs no ring, and is woken sooner without one.
        let beside = match backend {
            Backend::Uring => &Backend::Threads,
            other => other,
        };
        let teller = beside.spawn("wal-tell", job);
        let wal = Self {
            shared,
            max_frame_bytes,
            writer: Some(writer),
            filler: Some(filler),
            teller: Some(teller),
        };
        Ok((wal, summary))
    }

    /// Reads what [`Self::open_visiting`] would recover, through an `io` that ignores writes.
    pub(crate) async fn read<I: Io>(
        io: &I,
        dir: PathBuf,
        start: WalStart,
        visit: impl FnMut(WalPosition, Frame) + Send + 'static,
    ) -> Result<WalScanSummary, WalError> {
        let mut visit: Visit = Box::new(visit);
        let found = scan::scan(io, &WalConfig::new(dir), start, &mut visit).await?;
        Ok(WalScanSummary {
            torn_tail: found.torn_tail,
            rounds: found.rounds,
            bytes_read: found.bytes_read,
        })
    }

    /// Queues frames as one unit and returns at once; `done` is told when all are durable.
    ///
    /// Units are written, and told, in the order of submission, one exception apart: while no
    /// file is free, those with more [`Room`] overtake others. A unit larger than a round
    /// is not atomic over a crash: a part from its front may survive. A unit that was overtaken
    /// half-written is written again from its front. Units must be far smaller than the log.
    pub fn submit(&self, frames: Vec<Frame>, room: Room, done: WalDone) {
        if let Err(error) = frames.iter().try_for_each(|frame| self.check(frame)) {
            done(Err(error));
            return;
        }
        self.shared.queue.push(Unit::new(frames, room, done));
    }

    pub(crate) fn check(&self, frame: &Frame) -> Result<(), WalError> {
        let header = &frame.header;
        if frame.records.len() != header.records_len as usize
            || frame.command.len() != header.command_len as usize
            || (1..crate::frame::BATCH_PREFIX_LEN).contains(&frame.records.len())
        {
            return Err(WalError::Malformed);
        }
        let (bytes, limit) = (header.frame_len(), self.max_frame_bytes);
        if bytes > limit {
            return Err(WalError::TooLarge { bytes, limit });
        }
        Ok(())
    }

    /// Bytes of frames submitted and not yet answered.
    pub fn queued_bytes(&self) -> u64 {
        self.shared.queue.bytes()
    }

    pub fn status(&self) -> WalStatus {
        let mut status = WalStatus::default();
        self.shared.pool.describe(&mut status);
        status.queued_bytes = self.queued_bytes();
        status.syncs = self.shared.syncs.snapshot();
        let progress = self.shared.progress.lock();
        status.durable_round = progress.durable_round;
        status.writing = progress.writing;
        status
    }

    pub fn watch_pressure(&self) -> watch::Receiver<WalPressure> {
        self.shared.pool.watch()
    }

    /// The files there are, and a way to ask for more.
    pub(crate) fn growth(&self) -> Arc<Growth> {
        Arc::clone(self.shared.pool.growth())
    }

    /// Lets reserved units use the last file, until some file is released: for when what is logged
    /// again would free nothing before they are durable.
    pub(crate) fn lend(&self) {
        self.shared.pool.lend();
        self.shared.queue.ring();
    }

    /// Files before number `before_file` may be used again: a durable checkpoint no longer
    /// starts in them. The newest file is never released.
    pub fn release(&self, before_file: u64) {
        if self.shared.pool.release(before_file) {
            self.shared.queue.ring();
        }
    }

    /// Writes what is queued and ends. Units for which there is no room are told so.
    pub async fn close(mut self) {
        self.shared.queue.close();
        let jobs = [&mut self.writer, &mut self.filler, &mut self.teller];
        for job in jobs.into_iter().filter_map(Option::take) {
            job.join().await;
        }
    }
}

impl Drop for Wal {
    fn drop(&mut self) {
        self.shared.queue.close();
    }
}

impl fmt::Debug for Wal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wal")
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

/// What the handle, the writer and the filler have in common.
#[derive(Debug)]
struct Shared {
    queue: Queue,
    answers: Answers,
    pool: Pool,
    progress: Mutex<Progress>,
    /// How long each durable write took.
    syncs: Histogram,
}

#[derive(Debug, Default)]
struct Progress {
    durable_round: u64,
    writing: WalWriting,
}

impl Shared {
    fn new() -> Self {
        Self {
            queue: Queue::default(),
            answers: Answers::default(),
            pool: Pool::new(),
            progress: Mutex::default(),
            syncs: Histogram::default(),
        }
    }

    fn publish(&self, durable_round: u64, writing: &WalWriting) {
        let mut progress = self.progress.lock();
        progress.durable_round = durable_round;
        progress.writing = *writing;
    }
}

/// Recovers the log and then writes it.
struct WalJob {
    config: WalConfig,
    shared: Arc<Shared>,
    entropy: Entropy,
    fatal: FatalSink,
    start: WalStart,
    visit: Visit,
    opened: oneshot::Sender<Result<WalScanSummary, WalError>>,
}

impl WalJob {
    async fn recover<I: Io>(&mut self, io: &I) -> Result<Recovered, WalError> {
        let dir = &self.config.dir;
        let made = io.create_dir_all(dir).await;
        made.map_err(WalError::io("make", dir))?;
        scan::scan(io, &self.config, self.start, &mut self.visit).await
    }
}

impl IoJob for WalJob {
    async fn run<I: Io>(mut self, io: I) {
        let recovered = match Box::pin(self.recover(&io)).await {
            Ok(recovered) => recovered,
            Err(error) => {
                // Nobody waits any more only if the opening itself was abandoned.
                let _ = self.opened.send(Err(error));
                return;
            }
        };
        let Recovered {
            tail,
            slots,
            seal_due,
            torn_tail,
            rounds,
            bytes_read,
        } = recovered;
        self.shared.pool.install(slots);
        let writer = Writer::new(
            io,
            self.config,
            self.shared,
            self.entropy.fork(),
            self.fatal,
            (tail, seal_due),
        );
        drop(self.visit);
        let summary = WalScanSummary {
            torn_tail,
            rounds,
            bytes_read,
        };
        if self.opened.send(Ok(summary)).is_ok() {
            Box::pin(writer.run()).await;
        }
    }
}
