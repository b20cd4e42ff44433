//! What the log's callers see: votes, log starts, state, and the typed errors.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use trilog_model::{EntryId, GroupId, LogIndex, Offset, ReplicaId, Term, Timestamp};

use crate::fatal::Fatal;
use crate::wal::WalError;

/// A replica's vote, as consensus hands it down; storage only keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vote {
    pub term: Term,
    pub node: ReplicaId,
    pub committed: bool,
}

impl Vote {
    /// Votes of a replica only rise.
    pub(crate) fn rank(&self) -> (Term, bool) {
        (self.term, self.committed)
    }
}

/// Where a group's log begins: the purge point X of consensus and the data start S, which may lie
/// below it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogStart {
    /// X: the last entry consensus no longer asks for.
    pub purged: EntryId,
    /// The offset that follows X.
    pub next_offset: Offset,
    /// The earliest append time of what follows X: beyond all of X's records. Zero if unknown.
    pub next_time: Timestamp,
    /// S: the first offset that readers may still see.
    pub data_start: Offset,
    /// Opaque to storage: membership, term starts, whatever consensus needs with X.
    pub meta: Bytes,
}

/// The first entry of a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermStart {
    pub term: Term,
    pub index: LogIndex,
    /// The offset of the first record at or after that entry.
    pub offset: Offset,
}

/// One look at a group's log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogState {
    pub log_start: Option<LogStart>,
    /// The last entry; the log start's X when no entry follows it.
    pub last: Option<EntryId>,
    /// The offset the next record gets.
    pub next_offset: Offset,
    /// The first offset this replica can serve.
    pub data_start: Offset,
    pub vote: Option<Vote>,
    /// Entries up to here survive a power loss.
    pub durable: Option<LogIndex>,
    /// Entries up to here are known to be committed; persisted lazily.
    pub committed: Option<LogIndex>,
    /// Entries up to here stand in segments.
    pub filled: Option<LogIndex>,
}

/// Who decides base offsets and append times.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Appending {
    /// The leader: the log assigns group, base offset and append time.
    Assign,
    /// A follower: the frames carry them and must match what this log would assign.
    Assert,
}

/// Runs once the appended entries are durable, in the order of the appends.
pub type AppendDone = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// The place behind an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndOf {
    pub entry: EntryId,
    pub next_offset: Offset,
    /// The earliest append time of the next entry.
    pub next_time: Timestamp,
}

/// Why an append was refused. Nothing of it was stored.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendError {
    #[error("entry {found} does not follow: the log continues at index {expected}")]
    Gap { expected: LogIndex, found: LogIndex },
    #[error("entry {found} has a lower term than its predecessor's {previous}")]
    TermRegressed { previous: Term, found: EntryId },
    #[error("entry {id} diverges: base offset {found} instead of {expected}")]
    Diverged {
        id: EntryId,
        expected: Offset,
        found: Offset,
    },
    #[error("entry {id} diverges: append time {found} lies before {earliest}")]
    TimeDiverged {
        id: EntryId,
        earliest: Timestamp,
        found: Timestamp,
    },
    #[error("entry {id} is no log entry of group {group}")]
    Foreign { id: EntryId, group: GroupId },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a read could not be served.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the log begins at index {index} and offset {offset}")]
    BelowStart { index: LogIndex, offset: Offset },
    #[error("entries {first} to {last} are damaged and quarantined")]
    Damaged { first: LogIndex, last: LogIndex },
    #[error("reading {path}")]
    Io {
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("the store is closed")]
    Closed,
}

/// Why the store cannot do something.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The process must exit: what is on disk is no longer known.
    #[error(transparent)]
    Fatal(#[from] Fatal),
    #[error("the store is closed")]
    Closed,
    #[error("group {group} exists with replica {replica}")]
    GroupExists { group: GroupId, replica: ReplicaId },
    /// The replica's data on this node was damaged and set aside: only a new incarnation may
    /// join.
    #[error("replica {replica} of group {group} stepped aside and cannot come back")]
    Barred { group: GroupId, replica: ReplicaId },
    #[error("group {0} does not exist")]
    NoSuchGroup(GroupId),
    #[error("cutting after {last:?} would remove committed entries of group {group}")]
    BelowCommitted {
        group: GroupId,
        last: Option<LogIndex>,
    },
    #[error("{path} is damaged: {what}")]
    Corrupt { path: PathBuf, what: String },
    #[error("{path} has format version {version}, newer than this build reads")]
    Version { path: PathBuf, version: u8 },
    /// The write-ahead log refuses or failed.
    #[error(transparent)]
    Wal(WalError),
    #[error("cannot {what} {path}")]
    Io {
        what: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
}

impl From<WalError> for StoreError {
    fn from(error: WalError) -> Self {
        match error {
            WalError::Fatal(fatal) => Self::Fatal(fatal),
            WalError::Closed => Self::Closed,
            other => Self::Wal(other),
        }
    }
}

impl StoreError {
    pub(crate) fn io(what: &'static str, path: &std::path::Path, source: io::Error) -> Self {
        Self::Io {
            what,
            path: path.to_path_buf(),
            source: Arc::new(source),
        }
    }

    pub(crate) fn corrupt(path: &std::path::Path, what: impl fmt::Display) -> Self {
        Self::Corrupt {
            path: path.to_path_buf(),
            what: what.to_string(),
        }
    }
}
