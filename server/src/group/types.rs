//! Questions to a coordinator and its answers, as any dialect may put them.

use std::time::Duration;

use bytes::Bytes;

/// Bounds and times, the same on all nodes.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Partitions of the internal topic, where this node is the one that creates it.
    pub partitions: u32,
    pub initial_rebalance_delay: Duration,
    pub session_timeout_min: Duration,
    pub session_timeout_max: Duration,
    pub members_max: usize,
    pub offset_retention: Duration,
    pub offset_metadata_max: usize,
}

/// A strategy a member supports, and what it says under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Protocol {
    pub name: String,
    pub metadata: Bytes,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinRequest {
    pub group: String,
    /// Empty: it has no id yet.
    pub member: String,
    /// A name that outlives the member's restarts.
    pub instance: Option<String>,
    pub client_id: String,
    pub client_host: String,
    pub session_timeout: Duration,
    pub rebalance_timeout: Duration,
    pub protocol_type: String,
    /// In order of preference.
    pub protocols: Vec<Protocol>,
    /// A member without id is given one first and joins with its second request, so that an
    /// answer that is lost leaves no member behind.
    pub require_known_member: bool,
    /// The member understands being told not to assign although it leads.
    pub can_skip_assignment: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Joined {
    pub generation: i32,
    pub protocol_type: String,
    pub protocol: String,
    pub leader: String,
    pub member: String,
    pub skip_assignment: bool,
    /// Only for the leader.
    pub members: Vec<JoinedMember>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JoinedMember {
    pub member: String,
    pub instance: Option<String>,
    pub metadata: Bytes,
}

/// Who asks, and as of which generation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberRef {
    pub group: String,
    /// -1 outside a group.
    pub generation: i32,
    pub member: String,
    pub instance: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SyncRequest {
    pub member: MemberRef,
    pub protocol_type: Option<String>,
    pub protocol: Option<String>,
    /// From the leader: each member's.
    pub assignments: Vec<(String, Bytes)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Synced {
    pub protocol_type: String,
    pub protocol: String,
    pub assignment: Bytes,
}

/// Who leaves: by member id, or by instance id if that is empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leaving {
    pub member: String,
    pub instance: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommitRequest {
    pub member: MemberRef,
    pub offsets: Vec<OffsetCommit>,
}

/// Offsets that count once a producer's transaction commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TransactionCommit {
    pub member: MemberRef,
    pub producer_id: i64,
    pub epoch: i16,
    pub offsets: Vec<OffsetCommit>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OffsetCommit {
    pub topic: String,
    pub partition: u32,
    pub offset: i64,
    /// -1: none.
    pub leader_epoch: i32,
    pub metadata: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    pub group: String,
    /// None: all there are.
    pub partitions: Option<Vec<(String, u32)>>,
    /// Rather none than one that an open transaction may change.
    pub require_stable: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedOffset {
    pub topic: String,
    pub partition: u32,
    pub committed: Result<Option<Committed>, super::GroupError>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub offset: i64,
    pub leader_epoch: i32,
    pub metadata: String,
}

/// Where a group is in its life, in Kafka's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GroupState {
    Empty,
    PreparingRebalance,
    CompletingRebalance,
    Stable,
}

impl GroupState {
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Stable => "Stable",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub group: String,
    /// Empty for one that only holds offsets.
    pub protocol_type: String,
    pub state: GroupState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub group: String,
    pub state: GroupState,
    pub protocol_type: String,
    /// Only of a stable group.
    pub protocol: String,
    pub generation: i32,
    pub members: Vec<DescribedMember>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedMember {
    pub member: String,
    pub instance: Option<String>,
    pub client_id: String,
    pub client_host: String,
    /// Both only of a stable group.
    pub metadata: Bytes,
    pub assignment: Bytes,
}
