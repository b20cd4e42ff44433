//! Questions to a coordinator and its answers, as any dialect may put them.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use trilog_model::Offset;
use trilog_raft::controller::TopicId;

use super::GroupError;
use super::consumer::viewer_len;
use crate::access::Identity;
use crate::partition::Start;

/// Bounds and times, the same on all nodes.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Partitions of the internal topic, where this node is the one that creates it.
    pub partitions: u32,
    pub initial_rebalance_delay: Duration,
    pub session_timeout_min: Duration,
    pub session_timeout_max: Duration,
    pub members_max: usize,
    /// How long a consumer that the coordinator assigns to may be silent, and how often it speaks.
    pub consumer_session: Duration,
    pub consumer_heartbeat: Duration,
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
    /// The number of the transaction that the group's partition was shown to be in.
    pub transaction: u64,
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
    pub committed: Result<Option<Committed>, GroupError>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Committed {
    pub offset: i64,
    pub leader_epoch: i32,
    pub metadata: String,
}

/// Where a group stands in one partition.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub topic: String,
    pub partition: u32,
    pub committed: Option<Committed>,
    /// What the partition holds; none where its leader did not say.
    pub bounds: Option<(Offset, Offset)>,
    /// Who reads it, by place in the list of members.
    pub member: Option<usize>,
}

impl Place {
    /// Records between what is committed and the end.
    #[must_use]
    pub fn lag(&self) -> Option<u64> {
        let committed = u64::try_from(self.committed.as_ref()?.offset).ok()?;
        let (_, end) = self.bounds?;
        Some(end.get().saturating_sub(committed))
    }
}

/// What a consumer says to the coordinator that assigns to it (KIP-848). None: as before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConsumerBeat {
    pub group: String,
    /// Chosen by the consumer.
    pub member: String,
    /// 0 joins, -1 leaves, -2 leaves to return under its instance id.
    pub epoch: i32,
    pub instance: Option<String>,
    pub rack: Option<String>,
    pub client_id: String,
    pub client_host: String,
    /// Who says it; none where nobody is asked.
    pub viewer: Option<Arc<Identity>>,
    pub rebalance_timeout: Option<Duration>,
    pub topics: Option<Vec<String>>,
    /// Empty: none any more.
    pub regex: Option<String>,
    pub assignor: Option<String>,
    /// What it reads now.
    pub owned: Option<BTreeSet<(TopicId, u32)>>,
}

impl ConsumerBeat {
    /// Whether it says everything, as after an error.
    pub(super) fn is_full(&self) -> bool {
        let wishes = self.topics.is_some() || self.regex.is_some();
        self.rebalance_timeout.is_some() && wishes && self.owned.is_some()
    }

    /// What it says of itself, in bytes.
    pub(super) fn names(&self) -> usize {
        let whose = [&self.instance, &self.rack].into_iter().flatten();
        let own = [&self.member, &self.client_id, &self.client_host];
        let own: usize = own.into_iter().chain(whose).map(String::len).sum();
        own + self.viewer.as_deref().map_or(0, viewer_len)
    }
}

/// What a consumer is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Given {
    pub member: String,
    pub epoch: i32,
    /// How soon it is to speak again.
    pub heartbeat: Duration,
    /// What it is to read from now on, and nothing else; none: as before.
    pub assigned: Option<Vec<(TopicId, u32)>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumerDescription {
    pub group: String,
    pub state: GroupState,
    pub epoch: i32,
    pub assignor: &'static str,
    pub members: Vec<DescribedConsumer>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescribedConsumer {
    pub member: String,
    pub instance: Option<String>,
    pub rack: Option<String>,
    pub epoch: i32,
    pub client_id: String,
    pub client_host: String,
    pub topics: Vec<String>,
    pub regex: Option<String>,
    pub assigned: Vec<(TopicId, u32)>,
    pub target: Vec<(TopicId, u32)>,
}

/// Where a group's offsets are to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResetTo {
    /// An offset outside the partition means its nearer end.
    Start(Start),
    /// So many records before the end.
    Last(u64),
    /// So many records on, or back.
    Shift(i64),
    /// Where it is, within what there still is.
    Current,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResetRequest {
    pub group: String,
    /// Topics, and which partitions of them; none of these means all there are, and no topic all
    /// that the group has offsets of.
    pub topics: Vec<(String, Vec<u32>)>,
    pub to: ResetTo,
    /// Else only what would be done is said.
    pub execute: bool,
}

/// One offset that was or would be set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reset {
    pub topic: String,
    pub partition: u32,
    pub before: Option<i64>,
    pub after: Offset,
    pub bounds: (Offset, Offset),
}

/// Why no offset was set.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResetError {
    #[error(transparent)]
    Group(#[from] GroupError),
    /// Members would go on from where they are.
    #[error("the group has members")]
    Active(Vec<DescribedMember>),
    #[error("there is no topic '{0}'")]
    UnknownTopic(String),
    #[error("topic '{topic}' has {count} partitions; there is no partition {partition}")]
    UnknownPartition {
        topic: String,
        partition: u32,
        count: usize,
    },
    #[error("the group has no offsets: say which topics are meant")]
    NoOffsets,
    #[error("the group has no offset in {topic}/{partition} to move from")]
    NoOffset { topic: String, partition: u32 },
    #[error("the leader of {topic}/{partition} does not say where it begins and ends")]
    Unlocated { topic: String, partition: u32 },
}

/// Where a group is in its life, in Kafka's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GroupState {
    Empty,
    PreparingRebalance,
    CompletingRebalance,
    /// Of consumers that the coordinator assigns to: some have yet to give up or to take.
    Reconciling,
    Stable,
}

/// Who assigns in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GroupKind {
    /// One of the members.
    Classic,
    /// The coordinator (KIP-848).
    Consumer,
}

impl GroupKind {
    /// As Kafka's tools name it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Consumer => "consumer",
        }
    }
}

impl GroupState {
    pub const ALL: [Self; 5] = [
        Self::Empty,
        Self::PreparingRebalance,
        Self::CompletingRebalance,
        Self::Reconciling,
        Self::Stable,
    ];

    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "Empty",
            Self::PreparingRebalance => "PreparingRebalance",
            Self::CompletingRebalance => "CompletingRebalance",
            Self::Reconciling => "Reconciling",
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
    pub kind: GroupKind,
    pub members: usize,
}

/// The groups of the partitions that a node leads, and which those are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Listed {
    /// By id.
    pub groups: Vec<Listing>,
    /// Partitions of the internal topic.
    pub partitions: Vec<u32>,
    /// How many there are in all.
    pub count: u32,
    /// Of one or more partitions this node is about to take over.
    pub loading: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Description {
    pub group: String,
    pub kind: GroupKind,
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
