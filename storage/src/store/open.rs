//! Opening a data directory: checkpoint, write-ahead log, groups, workers; and setting a damaged
//! directory aside.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot};
use trilog_model::{GroupId, ReplicaId};

use super::{Inner, Store};
use crate::env::{Clock, Entropy};
use crate::fatal::FatalSink;
use crate::io::{Backend, Io, IoFile, IoJob, OpenMode};
use crate::log::{
    CLEAN_QUEUE, Checkpoint, CheckpointError, CleanJob, FillJob, FillTask, KeeperJob, Progress,
    ReadPool, Recovered, Recovery, SEGMENTS, SaveError, ScrubJob, Shared, Stage, StoreConfig,
    StoreError, WAL, checkpoint_file,
};
use crate::wal::{Wal, WalError, WalScanSummary};

/// What follows the dot in the name of something set aside, before a number.
const DAMAGED: &str = "damaged-";

/// What opening a data directory found.
#[derive(Clone, Debug, Default)]
pub struct OpenReport {
    /// The groups that were recovered.
    pub groups: Vec<(GroupId, ReplicaId)>,
    /// The directory was found damaged where it counts. It was set aside, and the store is empty.
    pub step_aside: bool,
    /// Replicas that were set aside, now or ever: they must rejoin under new incarnations, and
    /// [`Store::create_group`] refuses the old ones.
    pub stepped_aside: Vec<(GroupId, ReplicaId)>,
    /// What was damaged.
    pub damage: Option<String>,
    /// Bytes read to recover.
    pub bytes_read: u64,
    /// Whether the write-ahead log ended in a write that was never completed.
    pub torn_tail: bool,
    /// Folders of groups that nothing speaks of; they are left alone.
    pub orphans: Vec<PathBuf>,
}

/// Damage for which every group of the directory must rejoin.
#[derive(Debug)]
struct Damage {
    what: String,
    groups: Vec<(GroupId, ReplicaId)>,
}

/// Why a directory did not open.
enum Failure {
    Damaged(Damage),
    Refused(StoreError),
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Refused(error)
    }
}

impl Store {
    /// Opens a data directory and recovers its logs. A damaged one is set aside, see
    /// [`OpenReport::step_aside`]; one that a newer version wrote is refused.
    pub async fn open(
        config: StoreConfig,
        backend: Backend,
        clock: Arc<dyn Clock>,
        entropy: Entropy,
    ) -> Result<(Self, OpenReport), StoreError> {
        let opening = Opening {
            config,
            backend,
            clock,
            entropy,
        };
        let damage = match opening.attempt().await {
            Ok(opened) => return Ok(opened),
            Err(Failure::Refused(error)) => return Err(error),
            Err(Failure::Damaged(damage)) => damage,
        };
        tracing::error!(
            what = damage.what,
            "the data directory is damaged and set aside"
        );
        let mut barred = damage.groups;
        barred.extend(&opening.config.residents);
        opening.set_aside(barred).await?;
        match opening.attempt().await {
            Ok((store, report)) => {
                let report = OpenReport {
                    step_aside: true,
                    damage: Some(damage.what),
                    ..report
                };
                Ok((store, report))
            }
            Err(Failure::Refused(error)) => Err(error),
            Err(Failure::Damaged(again)) => {
                Err(StoreError::corrupt(&opening.config.dir, again.what))
            }
        }
    }
}

struct Opening {
    config: StoreConfig,
    backend: Backend,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
}

impl Opening {
    async fn attempt(&self) -> Result<(Store, OpenReport), Failure> {
        let found = self.survey().await?;
        let fatal = FatalSink::new();
        let recovery = Arc::new(Mutex::new(Recovery::new(found.checkpoint)));
        let (wal, summary) = self.open_wal(&recovery, &fatal).await?;
        let recovery = recovery.lock().take();
        let (known, aside) = (recovery.known(), recovery.stepping_aside());
        let recovered = recovery.finish();
        let recovered = match recovered {
            Ok(recovered) => recovered,
            Err(wrong) => {
                wal.close().await;
                return Err(Failure::Damaged(Damage {
                    what: wrong.to_string(),
                    groups: aside,
                }));
            }
        };
        let orphans = found
            .folders
            .into_iter()
            .filter(|(id, _)| !known.contains(id) && !recovered.doomed.contains(id));
        let report = OpenReport {
            orphans: orphans.map(|(_, path)| path).collect(),
            groups: known.clone(),
            stepped_aside: recovered.barred.iter().copied().collect(),
            bytes_read: found.bytes + summary.bytes_read,
            torn_tail: summary.torn_tail.is_some(),
            ..OpenReport::default()
        };
        Ok((self.start(wal, recovered, fatal), report))
    }

    async fn survey(&self) -> Result<Found, Failure> {
        let (answer, wait) = oneshot::channel();
        let dir = self.config.dir.clone();
        let job = self.backend.spawn("survey", Survey { dir, answer });
        let found = wait.await;
        job.join().await;
        found.unwrap_or(Err(Failure::Refused(StoreError::Closed)))
    }

    async fn open_wal(
        &self,
        recovery: &Arc<Mutex<Recovery>>,
        fatal: &FatalSink,
    ) -> Result<(Wal, WalScanSummary), Failure> {
        let start = recovery.lock().start();
        let sink = Arc::clone(recovery);
        let opened = Wal::open_visiting(
            &self.backend,
            self.config.wal(),
            self.entropy.clone(),
            start,
            fatal.clone(),
            move |position, frame| sink.lock().visit(position, frame),
        );
        Box::pin(opened).await.map_err(|error| match error {
            WalError::Corrupt { .. } => Failure::Damaged(Damage {
                what: error.to_string(),
                groups: recovery.lock().stepping_aside(),
            }),
            other => Failure::Refused(other.into()),
        })
    }

    fn start(&self, wal: Wal, recovered: Recovered, fatal: FatalSink) -> Store {
        let config = self.config.clone();
        let (reads, mut jobs) = ReadPool::start(&self.backend, config.read_workers);
        let (stage, staging) = Stage::start(&self.backend);
        jobs.push(staging);
        let workers = config.fill_workers.max(1);
        let (fills, inboxes): (Vec<_>, Vec<_>) =
            (0..workers).map(|_| mpsc::unbounded_channel()).unzip();
        let progress = Progress::recovered(recovered.start, &recovered.positions);
        let clock = Arc::clone(&self.clock);
        let wal = (wal, progress);
        let files = (reads, stage);
        let (cleans, wanted) = mpsc::channel(CLEAN_QUEUE);
        let workers = (fills, cleans);
        let shared = Shared::new(config, clock, files, workers, wal, recovered.barred, fatal);
        let shared = Arc::new(shared);
        for (group, replica) in &recovered.doomed {
            shared.doomed.lock().insert((*group, *replica));
            shared.send_fill(*group, FillTask::Remove(*group, *replica));
        }
        for group in recovered.groups {
            let group = group.restore(&shared);
            shared.send_fill(group.id, FillTask::Sweep(Arc::clone(&group)));
            shared.groups.lock().insert(group.id, group);
        }
        for (n, inbox) in inboxes.into_iter().enumerate() {
            let shared = Arc::clone(&shared);
            let job = FillJob { inbox, shared };
            jobs.push(self.backend.spawn(&format!("fill-{n}"), job));
        }
        let (scrub, stop) = oneshot::channel();
        if self.config.scrub_bytes_per_second > 0 {
            let job = ScrubJob::new(Arc::clone(&shared), stop);
            jobs.push(self.backend.spawn("scrub", job));
        }
        let (clean, stop) = oneshot::channel();
        let job = CleanJob {
            shared: Arc::clone(&shared),
            inbox: wanted,
            stop,
            entropy: Entropy::from_seed(self.entropy.next_u64()),
        };
        jobs.push(self.backend.spawn("clean", job));
        let (keeper, inbox) = mpsc::unbounded_channel();
        let job = KeeperJob {
            inbox,
            shared: Arc::clone(&shared),
        };
        jobs.push(self.backend.spawn("keeper", job));
        Store(Arc::new(Inner {
            shared,
            keeper,
            scrub: Mutex::new(Some(scrub)),
            clean: Mutex::new(Some(clean)),
            jobs: Mutex::new(jobs),
        }))
    }

    async fn set_aside(&self, barred: Vec<(GroupId, ReplicaId)>) -> Result<(), StoreError> {
        let (answer, wait) = oneshot::channel();
        let job = SetAside {
            dir: self.config.dir.clone(),
            barred,
            answer,
        };
        let job = self.backend.spawn("set-aside", job);
        let done = wait.await;
        job.join().await;
        let done = done.map_err(|_| StoreError::Closed)?;
        done.map_err(|error| StoreError::io("set aside", &self.config.dir, error))
    }
}

/// What a look at the directory found.
struct Found {
    checkpoint: Checkpoint,
    bytes: u64,
    folders: Vec<((GroupId, ReplicaId), PathBuf)>,
}

/// Reads the checkpoint, or makes the first one in an empty directory.
struct Survey {
    dir: PathBuf,
    answer: oneshot::Sender<Result<Found, Failure>>,
}

impl IoJob for Survey {
    async fn run<I: Io>(self, io: I) {
        let found = survey(&io, &self.dir).await;
        // Nobody waits any more only if the opening itself was abandoned.
        let _ = self.answer.send(found);
    }
}

async fn survey<I: Io>(io: &I, dir: &Path) -> Result<Found, Failure> {
    let path = checkpoint_file::path(dir);
    let refuse = |what| move |error| Failure::Refused(StoreError::io(what, dir, error));
    io.create_dir_all(dir).await.map_err(refuse("make"))?;
    let folders = folders(io, &dir.join(SEGMENTS))
        .await
        .map_err(refuse("list"))?;
    checkpoint_file::mend(io, dir)
        .await
        .map_err(refuse("mend the checkpoint of"))?;
    let bytes = checkpoint_file::load(io, dir)
        .await
        .map_err(refuse("read the checkpoint of"))?;
    let Some(bytes) = bytes else {
        let wal = list(io, &dir.join(WAL)).await.map_err(refuse("list"))?;
        if !wal.is_empty() || !folders.is_empty() {
            let what = format!("{} is missing", path.display());
            return Err(damaged(io, dir, what).await);
        }
        let first = Checkpoint::empty();
        let saved = checkpoint_file::save(io, dir, first.encode()).await;
        saved.map_err(|error| refuse("write a checkpoint in")(error.into_inner()))?;
        return Ok(Found {
            checkpoint: first,
            bytes: 0,
            folders,
        });
    };
    // A process that was killed may have replaced it without making its name durable. What the
    // new one frees is used again from here on, so the old one must never come back.
    io.sync_dir(dir).await.map_err(refuse("sync"))?;
    let len = bytes.len() as u64;
    match Checkpoint::decode(&bytes) {
        Ok(checkpoint) => Ok(Found {
            checkpoint,
            bytes: len,
            folders,
        }),
        Err(CheckpointError::Damaged) => {
            let what = format!("{} is damaged", path.display());
            Err(damaged(io, dir, what).await)
        }
        Err(CheckpointError::Version(version)) => {
            Err(Failure::Refused(StoreError::Version { path, version }))
        }
    }
}

/// A directory whose checkpoint does not say who is in it: the folders do, those set aside too,
/// for setting aside may have been cut short.
async fn damaged<I: Io>(io: &I, dir: &Path, what: String) -> Failure {
    let mut groups = Vec::new();
    for name in list(io, dir).await.unwrap_or_default() {
        let text = name.to_str().unwrap_or_default();
        let aside = text
            .strip_prefix(SEGMENTS)
            .and_then(|rest| rest.strip_prefix('.'));
        if text == SEGMENTS || aside.is_some_and(|rest| rest.starts_with(DAMAGED)) {
            let found = folders(io, &dir.join(&name)).await.unwrap_or_default();
            groups.extend(found.into_iter().map(|(id, _)| id));
        }
    }
    Failure::Damaged(Damage { what, groups })
}

/// The names in a folder, none if it is not there.
async fn list<I: Io>(io: &I, dir: &Path) -> io::Result<Vec<PathBuf>> {
    match io.list(dir).await {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed,
    }
}

async fn folders<I: Io>(io: &I, dir: &Path) -> io::Result<Vec<((GroupId, ReplicaId), PathBuf)>> {
    let names = list(io, dir).await?;
    let parsed = names.into_iter().filter_map(|name| {
        let id = StoreConfig::parse_group_dir(&name)?;
        Some((id, dir.join(name)))
    });
    Ok(parsed.collect())
}

/// Renames everything of a damaged store, so that nothing of it is used or deleted, and leaves a
/// checkpoint that bars its replicas for ever.
struct SetAside {
    dir: PathBuf,
    barred: Vec<(GroupId, ReplicaId)>,
    answer: oneshot::Sender<io::Result<()>>,
}

impl IoJob for SetAside {
    async fn run<I: Io>(self, io: I) {
        let done = set_aside(&io, &self.dir, self.barred).await;
        let _ = self.answer.send(done);
    }
}

/// Replaces the checkpoint last: until then a restart finds the damage again.
async fn set_aside<I: Io>(io: &I, dir: &Path, barred: Vec<(GroupId, ReplicaId)>) -> io::Result<()> {
    checkpoint_file::mend(io, dir).await?;
    let names = io.list(dir).await?;
    let aside = |name: &str, n: usize| PathBuf::from(format!("{name}.{DAMAGED}{n}"));
    let ours = [WAL, SEGMENTS, checkpoint_file::NAME];
    let taken = |n: &usize| ours.iter().any(|name| names.contains(&aside(name, *n)));
    let n = (0..names.len()).find(|n| !taken(n)).unwrap_or(names.len());
    for name in [WAL, SEGMENTS] {
        if names.contains(&PathBuf::from(name)) {
            let from = dir.join(name);
            io.rename(&from, &dir.join(aside(name, n))).await?;
        }
    }
    if let Some(old) = checkpoint_file::load(io, dir).await? {
        let copy = dir.join(aside(checkpoint_file::NAME, n));
        let copy = io.open(&copy, OpenMode::Create).await?;
        copy.write_durable_at(vec![old], 0).await?;
    }
    io.sync_dir(dir).await?;
    let fresh = Checkpoint {
        barred,
        ..Checkpoint::empty()
    };
    let saved = checkpoint_file::save(io, dir, fresh.encode()).await;
    saved.map_err(SaveError::into_inner)
}
