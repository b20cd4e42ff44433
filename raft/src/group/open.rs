//! Opening a replica: where its view stands, and what of its log it may call applied.
//!
//! openraft applies entries that this disk does not hold durably yet, for the other replicas
//! do. After a power loss the view, flushed on its own, can therefore know more than the log. To
//! openraft that would look like a log with a hole, and it would cut the whole log. So what is
//! reported as applied is what the log can vouch for:
//!
//! ```text
//! the log has the entry the view stands at     -> that entry
//! it ends before, or has another one there     -> the last entry known as committed to the log
//! ```
//!
//! In the second case the durable tail itself may be an entry that never committed, so the tail
//! is no answer. Entries between the two positions come again and are not folded again.

use std::sync::Arc;

use parking_lot::Mutex;
use trilog_model::{EntryId, GroupId, LogIndex};
use trilog_storage::kv::{Kv, KvError, WriteBatch};
use trilog_storage::log::{GroupLog, LogState, ReadError, StoreError};

use super::checkpoint::Checkpoints;
use super::descriptor::Base;
use super::memberships::Memberships;
use super::state_machine::{Starts, StateMachine, Tail};
use super::status::Status;
use crate::codec::CodecError;
use crate::view::{Home, View, ViewError};

/// Why a replica cannot be opened. Nothing of it was changed.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The view's state is gone or older than the log start, so it cannot be folded again: the
    /// replica has to be placed anew, under another incarnation.
    #[error("group {group}: the log starts after {start}, but the view's state stands at {view:?}")]
    ViewLost {
        group: GroupId,
        start: EntryId,
        view: Option<EntryId>,
    },
    #[error(transparent)]
    View(#[from] ViewError),
    #[error("what the key-value store keeps for the group is unreadable")]
    Codec(#[from] CodecError),
    #[error(transparent)]
    Kv(#[from] KvError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("group {0} is open already")]
    IsOpen(GroupId),
    #[error("group {group} is held as replica {held}, not {asked}")]
    OtherReplica {
        group: GroupId,
        held: trilog_model::ReplicaId,
        asked: trilog_model::ReplicaId,
    },
    #[error("the node is stopping")]
    Stopping,
    #[error("group {group} does not start: {reason}")]
    Raft { group: GroupId, reason: String },
    /// The same, and segments of its log are damaged.
    #[error("group {group} does not start on a damaged log: {reason}")]
    Damaged { group: GroupId, reason: String },
}

impl OpenError {
    /// Whether the view's state is lost, so that only a new replica can take this one's place. Not
    /// if it is whole and only this build too old to read it.
    #[must_use]
    pub fn is_loss(&self) -> bool {
        match self {
            Self::ViewLost { .. } => true,
            Self::View(error) => matches!(error, ViewError::Unreadable(_)),
            Self::Codec(error) => !error.is_newer(),
            _ => false,
        }
    }

    /// Whether entries are damaged here that the view has yet to fold, or that have to be read
    /// before the group can start.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        let damaged_read = matches!(self, Self::Read(ReadError::Damaged { .. }));
        damaged_read || matches!(self, Self::Damaged { .. })
    }

    /// openraft did not start over this log.
    pub(super) fn of_start(log: &GroupLog, error: &impl std::fmt::Display) -> Self {
        let (group, reason) = (log.group(), error.to_string());
        let damaged = log.gaps().iter().any(|gap| gap.first.is_some());
        if damaged {
            Self::Damaged { group, reason }
        } else {
            Self::Raft { group, reason }
        }
    }
}

/// Brings a view and the log together.
pub(super) async fn open(
    log: GroupLog,
    kv: Kv,
    status: Arc<Status>,
    view: Arc<Mutex<dyn View>>,
    starts: Starts,
) -> Result<StateMachine, OpenError> {
    let group = log.group();
    let checkpoints = Checkpoints::new(group);
    let folded = kv.applied(group);
    let home = view.lock().home();
    if folded.is_some() {
        load(&mut *view.lock(), home, &kv, group, &checkpoints)?;
    }
    let state = log.state();
    let base = state.log_start.clone().map(Base::of).transpose()?;
    if let Some(start) = state.log_start.as_ref().map(|start| start.purged)
        && folded.is_none_or(|folded| folded.index < start.index)
    {
        return Err(OpenError::ViewLost {
            group,
            start,
            view: folded,
        });
    }
    let applied = match vouched(&log, &state, folded) {
        None => Tail::default(),
        Some(index) => tail_after(&log, &state, index).await?,
    };
    let mut memberships = match folded {
        Some(_) => checkpoints.memberships(&kv)?,
        None => Memberships::default(),
    };
    if let Some(base) = &base {
        memberships.forget_below(base.start.purged.index);
    }
    if let Some(id) = applied.id {
        status.applied(id, applied.next_offset);
    }
    Ok(StateMachine {
        log,
        kv,
        status,
        view,
        home,
        starts,
        applied,
        folded,
        memberships,
        checkpoints,
        base: Arc::new(Mutex::new(base)),
    })
}

fn load(
    view: &mut dyn View,
    home: Home,
    kv: &Kv,
    group: GroupId,
    checkpoints: &Checkpoints,
) -> Result<(), OpenError> {
    match home {
        Home::Kv => view.load(kv, group)?,
        Home::Checkpoint => {
            let state = checkpoints
                .state(kv)?
                .ok_or_else(|| ViewError::Unreadable("it has no checkpoint".to_owned()))?;
            // The batch is for views that live in the store; this one has nothing to put there.
            view.restore(&state, &mut WriteBatch::default())?;
        }
    }
    Ok(())
}

/// The last entry this replica may call applied: see the module's table.
fn vouched(log: &GroupLog, state: &LogState, folded: Option<EntryId>) -> Option<LogIndex> {
    let folded = folded?;
    let start = state.log_start.as_ref().map(|start| start.purged.index);
    let held = log.term_of(folded.index) == Some(folded.term);
    if held || start == Some(folded.index) {
        return Some(folded.index);
    }
    let known = state.committed.map(|committed| committed.min(folded.index));
    known.max(start)
}

async fn tail_after(log: &GroupLog, state: &LogState, index: LogIndex) -> Result<Tail, OpenError> {
    if let Some(start) = state.log_start.as_ref().filter(|s| s.purged.index >= index) {
        return Ok(Tail::at(start));
    }
    // A view usually stands where its log ends: then nothing is read, and nothing can be damaged.
    if let Some(end) = log.end_of(index) {
        return Ok(Tail {
            id: Some(end.entry),
            next_offset: end.next_offset,
            next_time: end.next_time,
        });
    }
    let frames = log.read(index, index.next(), 1).await?;
    Ok(frames
        .first()
        .map_or_else(Tail::default, |frame| Tail::after(&frame.header)))
}
