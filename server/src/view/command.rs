//! The commands a partition's views understand: the `Command` part of a log entry.
//!
//! Protobuf, so that a newer minor may add to it; a command this build does not know must have
//! been held back by the feature gate, so meeting one stops the replica rather than letting it
//! drift from the others.

use bytes::Bytes;
use prost::Message;
use trilog_model::Offset;

use super::group::GroupCommand;

/// One command of a partition.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct PartitionCommand {
    #[prost(oneof = "Action", tags = "1, 2, 3, 20")]
    pub action: Option<Action>,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Oneof)]
pub enum Action {
    /// Records before the offset are no longer served. A lower offset than today's is no change.
    #[prost(message, tag = "1")]
    Trim(Trim),
    /// Nothing but its own append time, which moves partition time on.
    #[prost(message, tag = "2")]
    Tick(Tick),
    /// Of partitions that hold groups.
    #[prost(message, tag = "3")]
    Group(GroupCommand),
    /// Every replica's log is clean below the offset. From feature level 3 on.
    #[prost(message, tag = "20")]
    Clean(Clean),
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Trim {
    /// The new first offset served.
    #[prost(uint64, tag = "1")]
    pub data_start: u64,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Tick {}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Clean {
    #[prost(uint64, tag = "1")]
    pub offset: u64,
}

impl PartitionCommand {
    #[must_use]
    pub fn trim(data_start: Offset) -> Self {
        Self {
            action: Some(Action::Trim(Trim {
                data_start: data_start.get(),
            })),
        }
    }

    #[must_use]
    pub fn tick() -> Self {
        Self {
            action: Some(Action::Tick(Tick {})),
        }
    }

    #[must_use]
    pub fn clean(offset: Offset) -> Self {
        Self {
            action: Some(Action::Clean(Clean {
                offset: offset.get(),
            })),
        }
    }

    #[must_use]
    pub fn group(command: GroupCommand) -> Self {
        Self {
            action: Some(Action::Group(command)),
        }
    }

    #[must_use]
    pub fn encoded(&self) -> Bytes {
        self.encode_to_vec().into()
    }
}
