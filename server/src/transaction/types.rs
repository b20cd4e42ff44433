//! Questions to a coordinator of transactions and its answers, as any dialect may put them.

use std::collections::BTreeMap;
use std::time::Duration;

use trilog_model::{GroupId, Offset, Timestamp};

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
    pub producer: Identity,
    pub phase: Phase,
    /// Partitions in the present transaction.
    pub partitions: usize,
    /// When the present transaction, or the last one, began.
    pub started: Timestamp,
}

impl Listing {
    /// What it takes in an answer, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        const FIXED: usize = 64;
        self.id.len() + FIXED
    }
}

/// How many transactional ids there are in each phase, and since when the oldest transaction is open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    pub phases: BTreeMap<Phase, usize>,
    pub oldest_open: Option<Timestamp>,
}

/// Ids that were looked at together.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    pub listed: Vec<Listing>,
    /// The last one that was looked at, if there are more.
    pub last: Option<String>,
}

/// What a producer has open in a partition is to end there, whatever its coordinator says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EndOpen {
    pub producer: Identity,
    /// As of the producer's last marker there, or a later one.
    pub coordinator_epoch: i32,
    pub commit: bool,
    /// Only what begins here, if that is said.
    pub begins: Option<Offset>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub listing: Listing,
    pub timeout: Duration,
    /// When the present transaction began, if there is one.
    pub started: Option<Timestamp>,
    pub partitions: Vec<GroupId>,
}
