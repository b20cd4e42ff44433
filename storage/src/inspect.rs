//! A stopped node's log, read and checked without changing anything.
//!
//! Runs what a restart would run, over an [`Io`] that ignores writes: the checkpoint, the recovery
//! of the write-ahead log, the chains of every group. Beyond that it reads each segment whole,
//! which a restart does not.

mod read_only;
mod segments;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;
use trilog_model::{EntryId, GroupId, LogIndex, Offset, ReplicaId};

use crate::frame::Frame;
use crate::io::{Backend, Io, IoJob};
use crate::log::{
    Checkpoint, GroupRecord, LogStart, RecoveredGroup, Recovery, SegmentRecord, Vote, WAL,
    checkpoint_file,
};
use crate::wal::{Wal, WalError, WalPosition};
use read_only::ReadOnly;

/// Where a frame was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Wal(WalPosition),
    Segment { path: PathBuf, pos: u64 },
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wal(WalPosition { file, round }) => write!(f, "wal {file}:{round}"),
            Self::Segment { path, pos } => {
                let name = path.file_stem().unwrap_or_default().to_string_lossy();
                let base = name.trim_start_matches('0');
                let base = if base.is_empty() { "0" } else { base };
                write!(f, "seg {base}:{pos}")
            }
        }
    }
}

/// Something that is not as it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    pub path: PathBuf,
    pub what: String,
    /// Whether a restart would set the whole directory aside, rather than one segment.
    pub grave: bool,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.what)
    }
}

/// One group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupFound {
    pub group: GroupId,
    pub replica: ReplicaId,
    pub vote: Option<Vote>,
    pub log_start: Option<LogStart>,
    /// Where the entries begin that are still there.
    pub first_index: LogIndex,
    pub last: Option<EntryId>,
    pub next_offset: Offset,
    /// Entries in the write-ahead log alone.
    pub entries_in_wal: u64,
    pub segments: u64,
    pub segment_bytes: u64,
}

/// What a directory holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inspection {
    pub groups: Vec<GroupFound>,
    pub damage: Vec<Damage>,
    /// Segments that were found damaged and set aside, replaced since or not.
    pub set_aside: Vec<PathBuf>,
    /// Segments that were on their way from another replica; a restart deletes them.
    pub copies: Vec<PathBuf>,
    /// Frames that were read, with their checksums verified.
    pub frames: u64,
    pub bytes_read: u64,
    pub wal_rounds: u64,
    /// Where the write-ahead log ends in a write that was never completed, nor acknowledged.
    pub torn_tail: Option<WalPosition>,
}

/// Why a directory could not be inspected at all.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    #[error("there is no log in {}", .0.display())]
    NoLog(PathBuf),
    #[error("{what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{0}")]
    Newer(String),
    #[error("the I/O thread ended")]
    Ended,
}

/// Told of each frame as it is read: segments first, by group, then the write-ahead log.
pub type Visitor = Box<dyn FnMut(&Place, &Frame) + Send>;

/// Reads everything in the data directory `dir`, which no process may have open.
pub async fn inspect(
    backend: &Backend,
    dir: &Path,
    visit: Visitor,
) -> Result<Inspection, InspectError> {
    let (answer, wait) = oneshot::channel();
    let job = Inspector {
        dir: dir.to_owned(),
        visit,
        answer,
    };
    let job = backend.spawn("inspect", job);
    let found = wait.await;
    job.join().await;
    found.unwrap_or(Err(InspectError::Ended))
}

struct Inspector {
    dir: PathBuf,
    visit: Visitor,
    answer: oneshot::Sender<Result<Inspection, InspectError>>,
}

impl IoJob for Inspector {
    async fn run<I: Io>(self, io: I) {
        let found = all(&ReadOnly(io), &self.dir, self.visit).await;
        // Nobody waits any more only if the inspection itself was abandoned.
        let _ = self.answer.send(found);
    }
}

/// What one inspection is collecting.
struct Collecting {
    found: Inspection,
    /// Damaged segments of the checkpoint: some may have been given up since.
    suspects: Vec<Suspect>,
    visit: Visitor,
}

/// A segment that is not as the checkpoint says.
struct Suspect {
    group: GroupId,
    replica: ReplicaId,
    segment: SegmentRecord,
    damage: Damage,
}

impl Suspect {
    /// Whether the segment is still part of a log.
    fn is_held(&self, groups: &[RecoveredGroup]) -> bool {
        groups.iter().any(|group| {
            let (record, _) = group.parts();
            (record.group, record.replica) == (self.group, self.replica)
                && record.held().any(|held| held == &self.segment)
        })
    }
}

impl Collecting {
    fn frame(&mut self, place: &Place, frame: &Frame) {
        self.found.frames += 1;
        (self.visit)(place, frame);
    }

    fn damaged(&mut self, path: &Path, what: impl fmt::Display, grave: bool) {
        self.found.damage.push(Damage {
            path: path.to_owned(),
            what: what.to_string(),
            grave,
        });
    }

    /// Settles which of the suspects are damage.
    fn judge(&mut self, is_damage: impl Fn(&Suspect) -> bool) {
        let suspects = std::mem::take(&mut self.suspects).into_iter();
        let damaged = suspects.filter(is_damage).map(|suspect| suspect.damage);
        self.found.damage.extend(damaged);
    }
}

async fn all<I: Io>(io: &I, dir: &Path, visit: Visitor) -> Result<Inspection, InspectError> {
    let mut collecting = Collecting {
        found: Inspection::default(),
        suspects: Vec::new(),
        visit,
    };
    let path = checkpoint_file::path(dir);
    let bytes = checkpoint_file::load(io, dir)
        .await
        .map_err(|source| InspectError::Io {
            what: "reading",
            path: path.clone(),
            source,
        })?;
    let Some(bytes) = bytes else {
        return Err(InspectError::NoLog(dir.to_owned()));
    };
    collecting.found.bytes_read += bytes.len() as u64;
    let checkpoint = match Checkpoint::decode(&bytes) {
        Ok(checkpoint) => checkpoint,
        Err(crate::log::CheckpointError::Damaged) => {
            collecting.damaged(&path, "the checkpoint is damaged", true);
            return Ok(collecting.found);
        }
        Err(error @ crate::log::CheckpointError::Version(_)) => {
            return Err(InspectError::Newer(error.to_string()));
        }
    };
    for record in &checkpoint.groups {
        segments::read(io, dir, record, &mut collecting).await;
    }
    write_ahead_log(io, dir, checkpoint, collecting).await
}

/// Recovers the write-ahead log as a restart would, and checks that it fits the checkpoint.
async fn write_ahead_log<I: Io>(
    io: &I,
    dir: &Path,
    checkpoint: Checkpoint,
    collecting: Collecting,
) -> Result<Inspection, InspectError> {
    let folder = dir.join(WAL);
    let recovery = Recovery::new(checkpoint);
    let start = recovery.start();
    let shared = Arc::new(Mutex::new((recovery, collecting)));
    let sink = Arc::clone(&shared);
    let visit = move |position, frame: Frame| {
        let (recovery, collecting) = &mut *sink.lock();
        collecting.frame(&Place::Wal(position), &frame);
        recovery.visit(position, frame);
    };
    let read = Wal::read(io, folder.clone(), start, visit).await;
    let Some((recovery, mut collecting)) = Arc::into_inner(shared).map(Mutex::into_inner) else {
        return Err(InspectError::Ended);
    };
    match read {
        Ok(summary) => {
            collecting.found.bytes_read += summary.bytes_read;
            collecting.found.wal_rounds = summary.rounds;
            collecting.found.torn_tail = summary.torn_tail.map(|torn| WalPosition {
                file: torn.file,
                round: torn.round,
            });
        }
        Err(error @ (WalError::Version(_) | WalError::UnknownFrame(_))) => {
            return Err(InspectError::Newer(error.to_string()));
        }
        Err(error) => {
            collecting.damaged(&folder, error, true);
            collecting.judge(|_| true);
            return Ok(collecting.found);
        }
    }
    match recovery.finish() {
        Ok(recovered) => {
            collecting.judge(|suspect| suspect.is_held(&recovered.groups));
            let groups = recovered.groups.iter().map(|group| {
                let (record, behind) = group.parts();
                describe(record, behind)
            });
            collecting.found.groups = groups.collect();
        }
        Err(wrong) => {
            collecting.damaged(&folder, wrong, true);
            collecting.judge(|_| true);
        }
    }
    Ok(collecting.found)
}

fn describe<'a>(record: &GroupRecord, behind: impl Iterator<Item = &'a Frame>) -> GroupFound {
    let mut found = GroupFound {
        group: record.group,
        replica: record.replica,
        vote: record.vote,
        log_start: record.log_start.clone(),
        first_index: record
            .held()
            .next()
            .map_or(record.tip.next_index, |first| first.base_index),
        last: record.tip.last,
        next_offset: record.tip.next_offset,
        entries_in_wal: 0,
        segments: record.held().count() as u64,
        segment_bytes: record.held().map(|segment| segment.bytes).sum(),
    };
    for frame in behind {
        found.entries_in_wal += 1;
        found.last = Some(frame.header.id());
        found.next_offset = frame.header.next_offset();
    }
    found
}

#[cfg(test)]
mod tests;
