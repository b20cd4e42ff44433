//! Feature levels: what keeps releases N and N+1 from reading one command differently.
//!
//! Every build knows the levels it can follow; the cluster has one active level, raised by a
//! command once every node can follow it. A command names the level it needs. What lies above
//! the active level is refused, by builds that know it and by builds that do not, alike.
//!
//! What applying a command of a level does, placement included, is frozen: a change of outcome
//! takes a new level.

/// The level every build follows.
pub const BASE_LEVEL: u32 = 1;

/// From here on there are internal topics, and their names are the system's.
pub const INTERNAL_LEVEL: u32 = 2;

/// From here on logs of groups hold consumers that the coordinator assigns to.
pub const CONSUMERS_LEVEL: u32 = 3;

/// From here on logs are compacted by key.
pub const COMPACTION_LEVEL: u32 = 3;

/// From here on partitions know transactions.
pub const TRANSACTION_LEVEL: u32 = 3;

/// From here on an operator's word on where a partition's replicas are, and how many, counts until
/// there is a newer one.
pub const PLACEMENT_LEVEL: u32 = 4;

/// From here on the cluster has users and rights.
pub const ACCESS_LEVEL: u32 = 4;

/// From here on the controller knows quotas of clients.
pub const QUOTA_LEVEL: u32 = 4;

/// From here on what all replicas of a compacted log are clean of includes the records of aborted
/// transactions, which are forgotten by that.
pub const ABORTED_LEVEL: u32 = 4;

/// The newest level this build can follow.
pub const BUILD_LEVEL: u32 = ACCESS_LEVEL;

/// The levels a build can follow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LevelRange {
    pub min: u32,
    pub max: u32,
}

impl LevelRange {
    /// What this build can follow.
    pub const BUILD: Self = Self {
        min: BASE_LEVEL,
        max: BUILD_LEVEL,
    };

    #[must_use]
    pub const fn contains(self, level: u32) -> bool {
        self.min <= level && level <= self.max
    }
}
