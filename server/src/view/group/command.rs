//! What changes the groups of an internal partition: the commands in its entries, and the values
//! that commands and stored state have in common.
//!
//! Each command is whole in itself: it says what is to be, not how that differs from what was, so
//! that one which was never appended does no harm to those after it.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;

/// One change of the groups of a partition.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct GroupCommand {
    #[prost(oneof = "GroupAction", tags = "1, 2, 3, 4, 5, 6, 7")]
    pub action: Option<GroupAction>,
}

#[derive(Clone, PartialEq, Eq, Hash, prost::Oneof)]
pub enum GroupAction {
    /// The members of a group, in place of those before.
    #[prost(message, tag = "1")]
    PutMembers(PutMembers),
    #[prost(message, tag = "2")]
    CommitOffsets(CommitOffsets),
    #[prost(message, tag = "3")]
    DeleteOffsets(DeleteOffsets),
    /// A group and its offsets.
    #[prost(message, tag = "4")]
    DeleteGroup(DeleteGroup),
    /// What is past its time of a group without members.
    #[prost(message, tag = "5")]
    ExpireOffsets(ExpireOffsets),
    /// A producer's transaction has ended: its offsets count, or never did.
    #[prost(message, tag = "6")]
    EndTransaction(EndTransaction),
    /// The members of a group of consumers whom the coordinator assigns to, in place of those
    /// before. Feature level 3.
    #[prost(message, tag = "7")]
    PutConsumers(PutConsumers),
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct PutMembers {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(message, required, tag = "2")]
    pub membership: Membership,
}

/// Who is in a group, as of its last completed rebalance.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Membership {
    /// What kind of clients they are, in their own words; empty for none yet.
    #[prost(string, tag = "1")]
    pub protocol_type: String,
    #[prost(int32, tag = "2")]
    pub generation: i32,
    /// The assignment strategy they agreed on; empty without members.
    #[prost(string, tag = "3")]
    pub protocol: String,
    /// The member that assigns; empty without members.
    #[prost(string, tag = "4")]
    pub leader: String,
    #[prost(message, repeated, tag = "5")]
    pub members: Vec<MemberRecord>,
}

/// One member.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct MemberRecord {
    #[prost(string, tag = "1")]
    pub id: String,
    /// The name that outlives the member's restarts; empty for none.
    #[prost(string, tag = "2")]
    pub instance: String,
    #[prost(string, tag = "3")]
    pub client_id: String,
    #[prost(string, tag = "4")]
    pub client_host: String,
    #[prost(uint64, tag = "5")]
    pub session_timeout_ms: u64,
    #[prost(uint64, tag = "6")]
    pub rebalance_timeout_ms: u64,
    /// What it said under the agreed protocol; opaque.
    #[prost(bytes = "bytes", tag = "7")]
    pub subscription: Bytes,
    /// What it was given; opaque.
    #[prost(bytes = "bytes", tag = "8")]
    pub assignment: Bytes,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct PutConsumers {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(message, required, tag = "2")]
    pub consumers: Consumers,
}

/// A group of consumers whom the coordinator assigns to (KIP-848).
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Consumers {
    /// Rises with every change of members, of what they want, or of the topics they want.
    #[prost(int32, tag = "1")]
    pub epoch: i32,
    /// The assignor of the targets.
    #[prost(string, tag = "2")]
    pub assignor: String,
    /// The topics and their partitions that the targets are of.
    #[prost(message, repeated, tag = "3")]
    pub topics: Vec<TopicSize>,
    #[prost(message, repeated, tag = "4")]
    pub members: Vec<ConsumerRecord>,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct TopicSize {
    #[prost(bytes = "bytes", tag = "1")]
    pub topic_id: Bytes,
    #[prost(uint32, tag = "2")]
    pub partitions: u32,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ConsumerRecord {
    #[prost(string, tag = "1")]
    pub id: String,
    /// The name that outlives the member's restarts; empty for none.
    #[prost(string, tag = "2")]
    pub instance: String,
    #[prost(string, tag = "3")]
    pub rack: String,
    #[prost(string, tag = "4")]
    pub client_id: String,
    #[prost(string, tag = "5")]
    pub client_host: String,
    #[prost(string, repeated, tag = "6")]
    pub topics: Vec<String>,
    /// Topics it wants beside those named; empty for none.
    #[prost(string, tag = "7")]
    pub regex: String,
    /// The assignor it asked for; empty if it leaves that to others.
    #[prost(string, tag = "8")]
    pub assignor: String,
    #[prost(uint64, tag = "9")]
    pub rebalance_timeout_ms: u64,
    /// -2 of a named member that is about to come back.
    #[prost(sint32, tag = "10")]
    pub epoch: i32,
    #[prost(sint32, tag = "11")]
    pub previous_epoch: i32,
    /// What it may read.
    #[prost(message, repeated, tag = "12")]
    pub assigned: Vec<TopicParts>,
    /// What it was told to give up and has not yet.
    #[prost(message, repeated, tag = "13")]
    pub revoking: Vec<TopicParts>,
    /// What it is to read once others have given it up.
    #[prost(message, repeated, tag = "14")]
    pub target: Vec<TopicParts>,
    /// Who it is, and from where, if it has a pattern; empty where nobody is asked.
    #[prost(string, tag = "15")]
    pub principal: String,
    #[prost(string, tag = "16")]
    pub host: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct TopicParts {
    #[prost(bytes = "bytes", tag = "1")]
    pub topic_id: Bytes,
    #[prost(uint32, repeated, tag = "2")]
    pub partitions: Vec<u32>,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct CommitOffsets {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(message, repeated, tag = "2")]
    pub offsets: Vec<OffsetEntry>,
    /// Set if they count only once this producer's transaction commits.
    #[prost(message, optional, tag = "3")]
    pub transaction: Option<ProducerRef>,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct ProducerRef {
    #[prost(sint64, tag = "1")]
    pub producer_id: i64,
    #[prost(int32, tag = "2")]
    pub epoch: i32,
    /// The number of its transaction, as far as it is known; the last one that ended where this
    /// stands for what is remembered.
    #[prost(uint64, tag = "3")]
    pub transaction: u64,
}

/// One group offset.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct OffsetEntry {
    #[prost(string, tag = "1")]
    pub topic: String,
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    #[prost(sint64, tag = "3")]
    pub offset: i64,
    /// -1 if the client named none.
    #[prost(sint32, tag = "4")]
    pub leader_epoch: i32,
    /// The client's note.
    #[prost(string, tag = "5")]
    pub metadata: String,
    /// Which topic of that name was meant; empty if unknown.
    #[prost(bytes = "bytes", tag = "6")]
    pub topic_id: Bytes,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct DeleteOffsets {
    #[prost(string, tag = "1")]
    pub group: String,
    #[prost(message, repeated, tag = "2")]
    pub partitions: Vec<PartitionName>,
}

#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Message)]
pub struct PartitionName {
    #[prost(string, tag = "1")]
    pub topic: String,
    #[prost(uint32, tag = "2")]
    pub partition: u32,
    /// Set if only the offset of this topic of that name is meant.
    #[prost(bytes = "bytes", tag = "3")]
    pub topic_id: Bytes,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct DeleteGroup {
    #[prost(string, tag = "1")]
    pub group: String,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct ExpireOffsets {
    #[prost(string, tag = "1")]
    pub group: String,
    /// In nanoseconds: what was last used at or before this is over.
    #[prost(uint64, tag = "2")]
    pub before: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash, Message)]
pub struct EndTransaction {
    #[prost(message, required, tag = "1")]
    pub producer: ProducerRef,
    #[prost(bool, tag = "2")]
    pub commit: bool,
}

impl From<GroupAction> for GroupCommand {
    fn from(action: GroupAction) -> Self {
        Self {
            action: Some(action),
        }
    }
}

/// The whole state, as stored and as sent to a replica that is far behind.
#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct StoredGroups {
    #[prost(message, repeated, tag = "1")]
    pub(super) groups: Vec<StoredGroup>,
    #[prost(message, repeated, tag = "2")]
    pub(super) producers: Vec<StoredProducer>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct StoredGroup {
    #[prost(string, tag = "1")]
    pub(super) name: String,
    #[prost(message, required, tag = "2")]
    pub(super) membership: Membership,
    #[prost(uint64, tag = "3")]
    pub(super) since: u64,
    #[prost(message, repeated, tag = "4")]
    pub(super) offsets: Vec<StoredOffset>,
    #[prost(message, repeated, tag = "5")]
    pub(super) pending: Vec<StoredPending>,
    #[prost(message, optional, tag = "6")]
    pub(super) consumers: Option<Consumers>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct StoredOffset {
    #[prost(message, required, tag = "1")]
    pub(super) entry: OffsetEntry,
    #[prost(uint64, tag = "2")]
    pub(super) time: u64,
    #[prost(uint64, tag = "3")]
    pub(super) index: u64,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct StoredPending {
    #[prost(message, required, tag = "1")]
    pub(super) producer: ProducerRef,
    #[prost(message, repeated, tag = "2")]
    pub(super) offsets: Vec<StoredOffset>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub(super) struct StoredProducer {
    #[prost(message, required, tag = "1")]
    pub(super) producer: ProducerRef,
    #[prost(uint64, tag = "2")]
    pub(super) time: u64,
}

/// Offsets by topic and partition.
pub type Offsets = BTreeMap<String, BTreeMap<u32, super::GroupOffset>>;
