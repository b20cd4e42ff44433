//! The groups of one internal partition: members as of the last completed rebalance, and
//! committed offsets.
//!
//! ```text
//! coordinator (leader memory) --handle--> commands --committed--> replay (every replica)
//! ```
//!
//! Only what must survive the coordinator is here. Who is about to join, and who was heard from
//! when, is the coordinator's own and dies with its leadership. Pure: time is that of the entry.

pub mod command;
mod producers;
mod state;
#[cfg(test)]
mod tests;

use trilog_model::{LogIndex, Timestamp};

pub use command::{Consumers, GroupAction, GroupCommand, Membership, OffsetEntry, Offsets};
pub use state::{Group, GroupOffset, Groups};

/// Groups in one partition at most.
pub const MAX_GROUPS: usize = 10_000;
/// Offsets of one group at most, those of open transactions included.
pub const MAX_OFFSETS: usize = 100_000;
/// What the groups of one partition may take as stored, more or less; memory is a small multiple.
pub const MAX_STATE_BYTES: usize = 64 << 20;
/// What one group may take of that with its offsets.
pub const MAX_GROUP_BYTES: usize = MAX_STATE_BYTES / 4;
/// The longest command: an entry has to fit a message between nodes.
pub const MAX_COMMAND_BYTES: usize = 4 << 20;
/// The longest name of a group, a member or a client, in bytes.
pub const MAX_NAME: usize = 1_024;

/// When and where an entry was appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    pub index: LogIndex,
    pub time: Timestamp,
}

/// Why a command may not be appended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("there is no room for more groups in the partition")]
    TooManyGroups,
    #[error("the group has as many offsets as it may")]
    TooManyOffsets,
    #[error("the groups of the partition take all the room they may")]
    NoRoom,
    #[error("it is too large for one entry")]
    TooLarge,
    #[error("a newer incarnation of the producer has written")]
    Fenced,
    #[error("the name is too long")]
    NameTooLong,
}
