//! What changes the transactions of an internal partition, and the values that commands and stored
//! state have in common.

use prost::Message;

/// One change of the transactions of a partition.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct TransactionCommand {
    #[prost(oneof = "TransactionAction", tags = "1, 2")]
    pub action: Option<TransactionAction>,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Oneof)]
pub enum TransactionAction {
    /// What is known of a transactional id from now on.
    #[prost(message, tag = "1")]
    Put(Put),
    /// An id that has not been used for long.
    #[prost(message, tag = "2")]
    Forget(Forget),
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Put {
    #[prost(string, tag = "1")]
    pub id: String,
    #[prost(message, required, tag = "2")]
    pub transaction: Transaction,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Forget {
    #[prost(string, tag = "1")]
    pub id: String,
    /// In nanoseconds: only if nothing has happened to it since.
    #[prost(uint64, tag = "2")]
    pub before: u64,
}

/// What is known of a transactional id.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Transaction {
    #[prost(sint64, tag = "1")]
    pub producer_id: i64,
    #[prost(int32, tag = "2")]
    pub epoch: i32,
    /// What the producer was before its last change that it asked for itself, so that it may ask
    /// again; -1: nothing.
    #[prost(sint64, tag = "3")]
    pub last_producer_id: i64,
    #[prost(sint32, tag = "4")]
    pub last_epoch: i32,
    #[prost(uint64, tag = "5")]
    pub timeout_ms: u64,
    #[prost(enumeration = "Phase", tag = "6")]
    pub phase: i32,
    /// Of the present transaction, or the last one, of this producer id: each has a higher one than
    /// those before it.
    #[prost(uint64, tag = "7")]
    pub number: u64,
    /// The groups of the partitions in it, in order.
    #[prost(uint64, repeated, tag = "8")]
    pub partitions: Vec<u64>,
}

/// How far a transaction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Phase {
    Empty = 0,
    Ongoing = 1,
    PrepareCommit = 2,
    PrepareAbort = 3,
    CompleteCommit = 4,
    CompleteAbort = 5,
}

impl Phase {
    pub const ALL: [Self; 6] = [
        Self::Empty,
        Self::Ongoing,
        Self::PrepareCommit,
        Self::PrepareAbort,
        Self::CompleteCommit,
        Self::CompleteAbort,
    ];

    /// In Kafka's words.
    #[must_use]
    pub const fn as_kafka(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::Ongoing => "Ongoing",
            Self::PrepareCommit => "PrepareCommit",
            Self::PrepareAbort => "PrepareAbort",
            Self::CompleteCommit => "CompleteCommit",
            Self::CompleteAbort => "CompleteAbort",
        }
    }

    /// Decided, and not yet written everywhere.
    #[must_use]
    pub const fn is_ending(self) -> bool {
        matches!(self, Self::PrepareCommit | Self::PrepareAbort)
    }
}

impl From<TransactionAction> for TransactionCommand {
    fn from(action: TransactionAction) -> Self {
        Self {
            action: Some(action),
        }
    }
}

/// The whole state, as stored and as sent to a replica that is far behind.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct StoredTransactions {
    #[prost(message, repeated, tag = "1")]
    pub(super) all: Vec<StoredTransaction>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct StoredTransaction {
    #[prost(string, tag = "1")]
    pub(super) id: String,
    #[prost(message, required, tag = "2")]
    pub(super) transaction: Transaction,
    #[prost(uint64, tag = "3")]
    pub(super) started: u64,
    #[prost(uint64, tag = "4")]
    pub(super) updated: u64,
}
