//! Questions to a coordinator of transactions and its answers, as any dialect may put them.

use std::time::Duration;

use trilog_model::{GroupId, Timestamp};

use crate::view::transaction::Phase;
use crate::view::transaction::machine::Identity;

/// Bounds and times, the same on all nodes.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Partitions of the internal topic, where this node is the one that creates it.
    pub partitions: u32,
    /// The longest time-out a producer may ask for.
    pub timeout_max: Duration,
    /// How long an id is kept that nobody uses.
    pub id_expiration: Duration,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BeginRequest {
    pub id: String,
    /// How long a transaction may take before it is aborted.
    pub timeout: Duration,
    /// What the producer was, if it goes on after an error.
    pub expected: Option<Identity>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddRequest {
    pub id: String,
    pub producer: Identity,
    pub partitions: Vec<GroupId>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndRequest {
    pub id: String,
    pub producer: Identity,
    pub commit: bool,
}

/// Are these partitions in the producer's transaction?
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyRequest {
    pub id: String,
    pub producer: Identity,
    pub partitions: Vec<GroupId>,
}

/// The transaction that was asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub transaction: u64,
    /// For each partition whether it is in it.
    pub within: Vec<bool>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub id: String,
    pub producer_id: i64,
    pub phase: Phase,
    /// When the present transaction, or the last one, began.
    pub started: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub id: String,
    pub producer: Identity,
    pub phase: Phase,
    pub timeout: Duration,
    /// When the present transaction began, if there is one.
    pub started: Option<Timestamp>,
    pub partitions: Vec<GroupId>,
}
