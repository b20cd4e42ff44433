//! What can be done to a stopped node's groups when the majority of their replicas is gone for
//! ever: seeing what the logs hold, and making those that are left their only members.
//!
//! A new membership is written straight into the log, as an entry that no leader proposed. Several
//! survivors do so apart from each other, so the entry has to keep Raft's promises by itself:
//!
//! - Its term is the last entry's plus a fixed stride. So of two survivors the one whose log was
//!   further ahead still is, and is the one to lead; and the same place in both logs gets the same
//!   term only if the logs agree up to there.
//! - It holds nothing but what follows from the log before it, so in logs that agree it is the
//!   same byte for byte.
//! - The stride leaves every term far behind that a leader of the lost majority may have reached.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use trilog_model::{EntryId, LogIndex, Offset, ReplicaId, Term, Timestamp};
use trilog_storage::frame::{Frame, FrameKind};
use trilog_storage::kv::{Kv, WriteBatch};
use trilog_storage::log::{AppendError, Appending, GroupLog, ReadError, StoreError, Vote};

use super::checkpoint::{Checkpoints, KV_FAMILY};
use super::descriptor::Base;
use super::open::{self, OpenError};
use super::state_machine::{Starts, Tail};
use super::status::Status;
use crate::codec::{CodecError, decode_membership, encode_membership};
use crate::types::Membership;
use crate::view::{Committed, View};

/// Terms that are skipped: more than elections of one group will ever need.
const STRIDE: u64 = 1 << 16;
const READ_BYTES: usize = 4 << 20;

/// Why a stopped node's group cannot be recovered. Nothing of it was changed.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Append(#[from] AppendError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error("a membership in the log is unreadable")]
    Codec(#[from] CodecError),
    /// Its last entries went with a power loss, its view already knew them, and the log no longer
    /// begins at its beginning: their effects can neither be kept nor taken back.
    #[error("the view stands at {view}, beyond the end of the log at {last:?}")]
    ViewAhead {
        view: EntryId,
        last: Option<EntryId>,
    },
    #[error("the vote is of term {vote}, which leaves no room after the last entry's {last}")]
    Term { vote: Term, last: Term },
}

/// What a stopped replica holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    pub replica: ReplicaId,
    /// The offset that the next record would have had.
    pub next_offset: Offset,
    /// The last entry.
    pub last: Option<EntryId>,
    /// The last entry that is known here to be committed; later ones may be, too.
    pub committed: Option<LogIndex>,
    /// Whose majority committed the last entries; during a change, of the old and the new set.
    pub voters: BTreeSet<ReplicaId>,
}

/// What a group's log and view hold, read from their files.
pub async fn held(log: &GroupLog, kv: &Kv) -> Result<Held, RecoverError> {
    let members = members(log, &usable(log, kv)?).await?;
    // Behind which a recovery writes.
    End::of(log).await?;
    let state = log.state();
    let voters = members.get_joint_config().iter().flatten();
    Ok(Held {
        replica: log.replica(),
        next_offset: state.next_offset,
        last: state.last,
        committed: state.committed,
        voters: voters.copied().map(ReplicaId).collect(),
    })
}

/// The view as of the last entry, committed or not.
pub async fn fold<V: View>(log: &GroupLog, kv: &Kv, view: V) -> Result<V, RecoverError> {
    let kv = usable(log, kv)?;
    let view = Arc::new(Mutex::new(view));
    let shared: Arc<Mutex<dyn View>> = Arc::clone(&view) as Arc<Mutex<dyn View>>;
    let status = Status::new(log.group(), log.replica(), log.state().vote, Arc::default());
    let machine = open::open(log.clone(), kv, status, shared, Starts::default()).await?;
    let folded = machine.folded.map(|folded| folded.index);
    drop(machine);
    let mut walk = Walk::after(log, folded);
    while let Some(frames) = walk.next().await? {
        let mut view = view.lock();
        for frame in frames.iter().filter(|f| f.header.kind == FrameKind::Data) {
            let entry = Committed {
                header: &frame.header,
                records: &frame.records,
                command: &frame.command,
            };
            view.apply(&entry, &mut WriteBatch::default());
        }
    }
    let view = Arc::into_inner(view).ok_or(StoreError::Closed)?;
    Ok(view.into_inner())
}

/// Makes `voters` the only members of the group, if they are not; durable on return. Then appends
/// a command for the view, if there is one. Doing so again changes nothing more, but for the
/// command, which the caller knows to be there already or not.
pub async fn reduce(
    log: &GroupLog,
    kv: &Kv,
    voters: &BTreeSet<ReplicaId>,
    command: Option<Bytes>,
) -> Result<bool, RecoverError> {
    let known = usable(log, kv)?;
    // Before anything else, and in a repeated attempt again: the first may have died before this
    // was durable. The view is folded anew from the log, which it must not outrun.
    if is_ahead(log, kv) {
        kv.remove_group(log.group()).map_err(OpenError::from)?;
        kv.flush().await.map_err(OpenError::from)?;
    }
    let wanted: BTreeSet<u64> = voters.iter().map(|voter| voter.0).collect();
    let wanted = Membership::new_with_defaults(vec![wanted], []);
    let end = End::of(log).await?;
    let done = match &command {
        // Written by an earlier attempt that came no further.
        Some(_) => end.is_membership(&wanted)?,
        None => members(log, &known).await? == wanted,
    };
    if done && command.is_none() {
        return Ok(false);
    }
    let last = end.tail.id.map_or(Term(0), |last| last.term);
    let term = if done {
        last
    } else {
        Term(last.get() + STRIDE)
    };
    let vote = log.state().vote.map_or(Term(0), |vote| vote.term);
    if vote > term {
        return Err(RecoverError::Term { vote, last });
    }
    let mut added = Additions::after(log, &end.tail, term);
    if !done {
        added.push(FrameKind::Membership, encode_membership(&wanted));
    }
    if let Some(command) = command {
        added.push(FrameKind::Data, command);
    }
    let vote = Vote {
        term,
        node: log.replica(),
        committed: false,
    };
    log.save_vote(vote).await?;
    let (durable, wait) = oneshot::channel();
    let done = Box::new(move |result| drop(durable.send(result)));
    log.append(added.frames, Appending::Assert, done)?;
    wait.await.map_err(|_| StoreError::Closed)??;
    Ok(true)
}

/// Whether the view knows entries that the log has lost: they were committed by others, and a
/// power loss took them from this disk before they were synced.
fn is_ahead(log: &GroupLog, kv: &Kv) -> bool {
    let Some(view) = kv.applied(log.group()) else {
        return false;
    };
    let start = log.state().log_start.map(|start| start.purged);
    start != Some(view) && log.term_of(view.index) != Some(view.term)
}

/// The view's state as far as it may be used: none at all if it is ahead of the log, which can
/// then be folded from its beginning, if it still has that.
fn usable(log: &GroupLog, kv: &Kv) -> Result<Kv, RecoverError> {
    if !is_ahead(log, kv) {
        return Ok(kv.clone());
    }
    let state = log.state();
    match (kv.applied(log.group()), state.log_start) {
        (Some(view), Some(_)) => {
            let last = state.last;
            Err(RecoverError::ViewAhead { view, last })
        }
        _ => Ok(Kv::memory(&[KV_FAMILY])),
    }
}

/// The members in force at the end of the log.
async fn members(log: &GroupLog, kv: &Kv) -> Result<Membership, RecoverError> {
    let state = log.state();
    let applied = kv.applied(log.group());
    let known = Checkpoints::new(log.group()).memberships(kv)?;
    let known = known.at(applied.map(|applied| applied.index));
    let mut members = known.membership().clone();
    if applied.is_none()
        && let Some(start) = state.log_start
    {
        members = Base::of(start)?.membership.membership().clone();
    }
    let mut walk = Walk::after(log, applied.map(|applied| applied.index));
    while let Some(frames) = walk.next().await? {
        for frame in frames {
            if frame.header.kind == FrameKind::Membership {
                members = decode_membership(&frame.command)?;
            }
        }
    }
    Ok(members)
}

/// The entries of a log after one of them, a few at a time.
struct Walk<'a> {
    log: &'a GroupLog,
    next: LogIndex,
}

impl<'a> Walk<'a> {
    fn after(log: &'a GroupLog, index: Option<LogIndex>) -> Self {
        let start = log.state().log_start.map(|start| start.purged.index);
        let next = index.max(start).map_or(LogIndex(0), LogIndex::next);
        Self { log, next }
    }

    async fn next(&mut self) -> Result<Option<Vec<Frame>>, RecoverError> {
        let end = self
            .log
            .state()
            .last
            .map_or(LogIndex(0), |last| last.index.next());
        if self.next >= end {
            return Ok(None);
        }
        let frames = self.log.read(self.next, end, READ_BYTES).await?;
        self.next = LogIndex(self.next.get() + frames.len() as u64);
        Ok(Some(frames).filter(|frames| !frames.is_empty()))
    }
}

/// The last entry, and the place behind it.
struct End {
    frame: Option<Frame>,
    tail: Tail,
}

impl End {
    async fn of(log: &GroupLog) -> Result<Self, RecoverError> {
        let state = log.state();
        let start = state.log_start.as_ref().map(|start| start.purged.index);
        let own = state
            .last
            .filter(|last| start.is_none_or(|start| start < last.index));
        let frame = match own {
            None => None,
            Some(last) => log.read(last.index, last.index.next(), 1).await?.pop(),
        };
        let tail = match (&frame, &state.log_start) {
            (Some(frame), _) => Tail::after(&frame.header),
            (None, Some(start)) => Tail::at(start),
            (None, None) => Tail::default(),
        };
        Ok(Self { frame, tail })
    }

    fn is_membership(&self, wanted: &Membership) -> Result<bool, CodecError> {
        let membership = self.frame.as_ref();
        let membership = membership.filter(|frame| frame.header.kind == FrameKind::Membership);
        membership.map_or(Ok(false), |frame| {
            Ok(decode_membership(&frame.command)? == *wanted)
        })
    }
}

/// Entries without records that follow from the place they are put in, and from nothing else.
struct Additions<'a> {
    log: &'a GroupLog,
    next: LogIndex,
    term: Term,
    offset: Offset,
    time: Timestamp,
    frames: Vec<Frame>,
}

impl<'a> Additions<'a> {
    fn after(log: &'a GroupLog, tail: &Tail, term: Term) -> Self {
        Self {
            log,
            next: tail.id.map_or(LogIndex(0), |id| id.index.next()),
            term,
            offset: tail.next_offset,
            time: tail.next_time,
            frames: Vec::new(),
        }
    }

    fn push(&mut self, kind: FrameKind, command: Bytes) {
        let id = EntryId {
            term: self.term,
            index: self.next,
        };
        let mut frame = Frame::bare(kind, self.log.group(), id, command);
        frame.header.base_offset = self.offset;
        frame.header.append_time = self.time;
        let tail = Tail::after(&frame.header);
        self.next = self.next.next();
        self.time = tail.next_time;
        self.frames.push(frame);
    }
}
