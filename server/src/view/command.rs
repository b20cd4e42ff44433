//! The commands a partition's views understand: the `Command` part of a log entry.
//!
//! Protobuf, so that a newer minor may add to it; a command this build does not know must have
//! been held back by the feature gate, so meeting one stops the replica rather than letting it
//! drift from the others.

use bytes::Bytes;
use prost::Message;
use trilog_model::Offset;

use super::group::GroupCommand;
use super::transaction::TransactionCommand;

/// One command of a partition.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct PartitionCommand {
    #[prost(oneof = "Action", tags = "1, 2, 3, 10, 11, 12, 20")]
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
    /// A producer's transaction has ended. Its entry also holds the control batch that says so to
    /// readers.
    #[prost(message, tag = "10")]
    Marker(Marker),
    /// Of partitions that hold transactions.
    #[prost(message, tag = "11")]
    Transaction(TransactionCommand),
    /// The batch beside it is the first of its producer's transaction in the partition.
    #[prost(message, tag = "12")]
    Opened(Opened),
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

/// Every replica's log is clean below the offset.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Clean {
    #[prost(uint64, tag = "1")]
    pub offset: u64,
    /// The number of the rules by which they were cleaned.
    #[prost(uint32, tag = "2")]
    pub rules: u32,
}

/// Whose transaction begins in a partition.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Opened {
    #[prost(sint64, tag = "1")]
    pub producer_id: i64,
    #[prost(int32, tag = "2")]
    pub epoch: i32,
    /// The number of the transaction among those of its producer; zero if it is not known.
    #[prost(uint64, tag = "3")]
    pub transaction: u64,
}

/// The end of one transaction of a producer in a partition.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct Marker {
    #[prost(sint64, tag = "1")]
    pub producer_id: i64,
    /// The producer's epoch from now on: a lower one is fenced.
    #[prost(int32, tag = "2")]
    pub epoch: i32,
    #[prost(int32, tag = "3")]
    pub coordinator_epoch: i32,
    /// The number of the transaction among those of its producer.
    #[prost(uint64, tag = "4")]
    pub transaction: u64,
    #[prost(bool, tag = "5")]
    pub commit: bool,
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
    pub fn clean(offset: Offset, rules: u32) -> Self {
        Self {
            action: Some(Action::Clean(Clean {
                offset: offset.get(),
                rules,
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
    pub fn transaction(command: TransactionCommand) -> Self {
        Self {
            action: Some(Action::Transaction(command)),
        }
    }

    #[must_use]
    pub fn opened(producer_id: i64, epoch: i16, transaction: u64) -> Self {
        Self {
            action: Some(Action::Opened(Opened {
                producer_id,
                epoch: i32::from(epoch),
                transaction,
            })),
        }
    }

    #[must_use]
    pub fn marker(marker: Marker) -> Self {
        Self {
            action: Some(Action::Marker(marker)),
        }
    }

    #[must_use]
    pub fn encoded(&self) -> Bytes {
        self.encode_to_vec().into()
    }
}
