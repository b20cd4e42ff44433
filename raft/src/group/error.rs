//! Why a group does not do what it is asked.

use openraft::errors::{
    ChangeMembershipError, ClientWriteError, Fatal, ForwardToLeader, InitializeError,
    LinearizableReadError, RaftError,
};
use trilog_model::{LogIndex, ReplicaId};
use trilog_storage::log::StoreError;

use crate::types::TypeConfig;

/// Why a proposal was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Nothing was appended.
    #[error("this replica does not lead its group; the leader may be {leader:?}")]
    NotLeader { leader: Option<ReplicaId> },
    /// Nothing was appended: the term in which the proposal was judged is over.
    #[error("the proposal belongs to another term")]
    Fenced,
    /// Nothing was appended: this leader cannot reach a majority now.
    #[error("the group has no quorum")]
    NoQuorum,
    /// Nothing was appended: too much waits already.
    #[error("too many bytes wait to be committed")]
    Full,
    /// Nothing was appended: this leader's disk has no room for records.
    #[error("the disk is full")]
    DiskFull,
    /// Nothing was appended: no log could hold it.
    #[error("a proposal of {len} bytes, or one without a valid batch; the most is {max}")]
    Invalid { len: usize, max: usize },
    /// It may have been committed, may yet be, or may never be.
    #[error("the outcome is unknown")]
    Unknown,
    /// Nothing was appended: the replica has stopped.
    #[error("the replica has stopped")]
    Stopped,
}

/// Why a linearizable read is not possible here and now.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("this replica does not lead its group; the leader may be {leader:?}")]
    NotLeader { leader: Option<ReplicaId> },
    #[error("the group has no quorum")]
    NoQuorum,
    #[error("the replica has stopped")]
    Stopped,
}

impl ReadError {
    pub(crate) fn from_raft(
        error: RaftError<TypeConfig, LinearizableReadError<TypeConfig>>,
    ) -> Self {
        match error {
            RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)) => {
                Self::NotLeader {
                    leader: leader_of(&forward),
                }
            }
            RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)) => Self::NoQuorum,
            RaftError::Fatal(_) => Self::Stopped,
        }
    }
}

/// Why membership or leadership did not change.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    #[error("this replica does not lead its group; the leader may be {leader:?}")]
    NotLeader { leader: Option<ReplicaId> },
    #[error("another change is under way")]
    InProgress,
    #[error("replica {0} is no learner of the group yet")]
    NotALearner(ReplicaId),
    /// It follows, but does not hold all that lies before what it was sent as entries.
    #[error("replica {0} is still copying the log's data, or cannot be asked")]
    NotWhole(ReplicaId),
    #[error("the group would have no voters")]
    Empty,
    #[error("the group has been founded")]
    Founded,
    #[error("leadership did not pass to replica {to}")]
    NotTransferred { to: ReplicaId },
    #[error("the outcome is unknown")]
    Unknown,
    #[error("{0}")]
    Refused(String),
    #[error("the replica has stopped")]
    Stopped,
}

impl MembershipError {
    pub(crate) fn stopped(_: Fatal<TypeConfig>) -> Self {
        Self::Stopped
    }

    pub(crate) fn from_change(error: RaftError<TypeConfig, ClientWriteError<TypeConfig>>) -> Self {
        let error = match error {
            RaftError::APIError(error) => error,
            RaftError::Fatal(_) => return Self::Stopped,
        };
        match error {
            ClientWriteError::ForwardToLeader(forward) => Self::NotLeader {
                leader: leader_of(&forward),
            },
            ClientWriteError::LogEntryDiscarded(_) => Self::Unknown,
            ClientWriteError::PreconditionFailed(error) => Self::Refused(error.to_string()),
            ClientWriteError::ChangeMembershipError(error) => match error {
                ChangeMembershipError::InProgress(_)
                | ChangeMembershipError::UncommittedLeaderLog(_) => Self::InProgress,
                ChangeMembershipError::EmptyMembership(_) => Self::Empty,
                ChangeMembershipError::LearnerNotFound(missing) => {
                    Self::NotALearner(ReplicaId(missing.node_id))
                }
                ChangeMembershipError::UnsupportedMembershipTransition(_)
                | ChangeMembershipError::NodeMetadataChanged(_) => Self::Refused(error.to_string()),
            },
        }
    }

    pub(crate) fn from_initialize(
        error: RaftError<TypeConfig, InitializeError<TypeConfig>>,
    ) -> Self {
        match error {
            RaftError::APIError(InitializeError::NotAllowed(_)) => Self::Founded,
            RaftError::APIError(error @ InitializeError::NotInMembers(_)) => {
                Self::Refused(error.to_string())
            }
            RaftError::Fatal(_) => Self::Stopped,
        }
    }
}

/// Why a log start did not move.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TrimError {
    #[error("nothing is applied yet")]
    NothingApplied,
    /// The log would begin behind data that is still served, and a voter left behind there might
    /// be the last to have it.
    #[error("replica {voter} is not known to hold the data up to entry {purged}")]
    NotHeld { voter: ReplicaId, purged: LogIndex },
    #[error("the replica has stopped")]
    Stopped,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A replica that did not stop in order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the replica did not stop in order: {0}")]
pub struct StopError(pub(crate) String);

pub(crate) fn leader_of(forward: &ForwardToLeader<TypeConfig>) -> Option<ReplicaId> {
    forward.leader_id.map(ReplicaId)
}
