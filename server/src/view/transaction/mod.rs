//! The transactions of one internal partition, by transactional id: who the producer is, which
//! partitions are in its transaction, and how far that has come.
//!
//! ```text
//!                 add                 end                    every marker is written
//! Empty --------------> Ongoing ---------------> Prepare... -------------------------> Complete...
//!   ^                      | time is over, or a           the decision: whoever          |   |
//!   |                      v new producer comes           coordinates goes on with it    |   |
//!   |                   PrepareAbort, one epoch on                                       |   |
//!   +----------------------------- init: one epoch on <----------------------------------+   |
//!                                            add: the next transaction <---------------------+
//! ```
//!
//! `machine` judges, on the leader, by what is applied; a command says what is to be as a whole.
//! Pure: time is that of the entry.

pub mod command;
pub mod machine;
mod state;
#[cfg(test)]
mod tests;

use trilog_model::Timestamp;

pub use command::{Phase, Transaction, TransactionAction, TransactionCommand};
pub use state::{Known, Transactions};

/// Transactional ids in one partition at most.
pub const MAX_IDS: usize = 100_000;
/// What they may take as stored, more or less.
pub const MAX_STATE_BYTES: usize = 64 << 20;
/// Partitions in one transaction at most.
pub const MAX_PARTITIONS: usize = 10_000;
/// The longest transactional id, in bytes.
pub const MAX_NAME: usize = 1_024;

/// When an entry was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub time: Timestamp,
}
