//! What can go wrong with a partition, in the terms dialects translate to their own codes.

use trilog_model::batch::BatchError;
use trilog_model::{NodeId, Offset};

use super::rules::BadRecords;

/// Why an append was not acknowledged.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AppendError {
    /// Nothing was appended; the leader, if known, is named.
    #[error("this node does not lead the partition{}", leader_hint(*.leader))]
    NotLeader { leader: Option<NodeId> },
    /// The outcome is unknown: the batch may yet be committed. Only an idempotent retry is safe.
    #[error("the outcome is unknown: leadership moved or no majority answered in time")]
    Unknown,
    #[error("the batch is refused: {0}")]
    Invalid(BatchError),
    /// Records of it break the topic's rules; nothing of the batch was appended.
    #[error("{0}")]
    Records(BadRecords),
    #[error("the batch has {size} bytes; the topic takes at most {limit}")]
    TooLarge { size: usize, limit: usize },
    #[error("the batch has {records} records; a compacted topic takes at most {limit} at once")]
    TooMany { records: u32, limit: u32 },
    #[error("out of order: the producer's next sequence is {expected}")]
    OutOfOrder { expected: i32 },
    #[error("the producer was fenced: epoch {current_epoch} has written since")]
    Fenced { current_epoch: i16 },
    #[error("the batch is part of no transaction that the partition is known to be in")]
    NotInTransaction,
    #[error("the producer has a transaction open in the partition, which the batch is no part of")]
    InTransaction,
    /// Of a marker: a later coordinator has written.
    #[error("another coordinator has taken the producer's transactions over")]
    StaleCoordinator,
    #[error("the next offset is {next}, not the one expected")]
    OffsetMismatch { next: Offset },
    /// Nothing was appended; try again later.
    #[error("the node takes no writes now: {0}")]
    Busy(&'static str),
    #[error("the topic is the system's own and takes no records")]
    Internal,
    /// Nothing was appended; there is room again when somebody makes some.
    #[error("the disk of the node that leads the partition is full: it takes no records")]
    DiskFull,
    #[error("the partition is being closed")]
    Closed,
}

fn leader_hint(leader: Option<NodeId>) -> String {
    leader.map_or_else(String::new, |node| format!("; node {node} does"))
}

/// Why a read gave nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    #[error("this node does not lead the partition{}", leader_hint(*.leader))]
    NotLeader { leader: Option<NodeId> },
    #[error("offset {asked} is outside the log, which holds {start} to {end}")]
    OutOfRange {
        asked: Offset,
        start: Offset,
        end: Offset,
    },
    #[error("stored data is damaged: {0}")]
    Damaged(String),
    #[error("the data cannot be read now: {0}")]
    Unavailable(String),
}
