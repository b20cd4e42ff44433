//! What a coordinator of transactions answers when it does not do what it was asked, one row per
//! code that a dialect has for it.

use trilog_model::NodeId;

use crate::cluster::NotLed;
use crate::partition::{AppendError, ReadError};
use crate::view::transaction::machine::Refused;

/// See the module's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransactionError {
    #[error("this node does not coordinate the transactional id")]
    NotCoordinator { node: Option<NodeId> },
    #[error("the coordinator is about to take over; try again")]
    Loading,
    /// Nothing was changed; try again later.
    #[error("the transactional id has no coordinator that could do this now: {0}")]
    Unavailable(&'static str),
    /// It may yet be done.
    #[error("the outcome is unknown: the coordinator moved or no majority answered in time")]
    Unknown,
    #[error("the transactional id is invalid")]
    InvalidId,
    #[error("the time-out is out of bounds")]
    InvalidTimeout,
    #[error("the transactional id is not this producer's")]
    UnknownProducer,
    #[error("another producer has taken the transactional id over")]
    Fenced,
    /// Ask again in a moment.
    #[error("the last step of the transactional id is not over yet")]
    Concurrent,
    #[error("the transaction is not in a state in which this can be asked")]
    InvalidState,
    #[error("a transaction cannot have so many partitions")]
    TooManyPartitions,
    #[error("the coordinator knows no such transactional id")]
    UnknownId,
    /// Fewer are to be asked for.
    #[error("there are more transactional ids than one answer may list")]
    TooManyIds,
}

impl From<Refused> for TransactionError {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::UnknownProducer => Self::UnknownProducer,
            Refused::Fenced => Self::Fenced,
            Refused::Concurrent => Self::Concurrent,
            Refused::InvalidState => Self::InvalidState,
            Refused::TooManyPartitions => Self::TooManyPartitions,
        }
    }
}

impl From<NotLed> for TransactionError {
    fn from(not_led: NotLed) -> Self {
        match not_led {
            NotLed::Here { leader } => Self::NotCoordinator { node: leader },
            NotLed::Yet => Self::Loading,
        }
    }
}

impl From<AppendError> for TransactionError {
    fn from(error: AppendError) -> Self {
        match error {
            AppendError::NotLeader { leader } => Self::NotCoordinator { node: leader },
            AppendError::Unknown => Self::Unknown,
            AppendError::Busy(reason) => Self::Unavailable(reason),
            AppendError::DiskFull => Self::Unavailable("the disk is full"),
            AppendError::Closed => Self::NotCoordinator { node: None },
            AppendError::TooLarge { .. }
            | AppendError::TooMany { .. }
            | AppendError::Invalid(_)
            | AppendError::Records(_)
            | AppendError::OutOfOrder { .. }
            | AppendError::Fenced { .. }
            | AppendError::NotInTransaction
            | AppendError::InTransaction
            | AppendError::StaleCoordinator
            | AppendError::OffsetMismatch { .. }
            | AppendError::Internal => Self::Unavailable("its log does not take the command"),
        }
    }
}

impl From<ReadError> for TransactionError {
    fn from(error: ReadError) -> Self {
        let node = match error {
            ReadError::NotLeader { leader } => leader,
            ReadError::OutOfRange { .. } | ReadError::Damaged(_) | ReadError::Unavailable(_) => {
                None
            }
        };
        Self::NotCoordinator { node }
    }
}
