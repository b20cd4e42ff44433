//! The commands of the controller, as messages, and the strict way to read them.
//!
//! ```text
//! Envelope { level, body }     body = one encoded CommandBody, opened only if the level is active
//! ```
//!
//! Protobuf readers skip what they do not know. A state machine must not: two builds would apply
//! the same entry differently. So a body is accepted only if it encodes back to the very same
//! bytes, and only if nothing in it needs a level above the one its envelope names.
//!
//! Tags are never reused. Tag 7 of `CreateTopic` and tag 5 of `AlterTopic` are set aside for
//! subject bindings.

use std::fmt;

use bytes::Bytes;
use prost::Message;

use super::access::{Acl, Credential, Mechanism};
use super::level::{ACCESS_LEVEL, BASE_LEVEL, INTERNAL_LEVEL, PLACEMENT_LEVEL, QUOTA_LEVEL};
use super::quota::QuotaKey;

/// The longest command that is read, in bytes.
pub const MAX_COMMAND_BYTES: usize = 1 << 20;

/// Why bytes are not a command that may be applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CommandError {
    #[error("the command needs feature level {needs}, the active level is {active}")]
    Level { needs: u32, active: u32 },
    #[error("the command is malformed: {0}")]
    Malformed(&'static str),
}

#[derive(Clone, PartialEq, Message)]
struct Envelope {
    #[prost(uint32, tag = "1")]
    level: u32,
    #[prost(bytes = "bytes", tag = "2")]
    body: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct CommandBody {
    #[prost(
        oneof = "Command",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 25, 26"
    )]
    command: Option<Command>,
}

/// One change of the cluster's metadata.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Command {
    /// The first command of a cluster.
    #[prost(message, tag = "1")]
    Bootstrap(Bootstrap),
    /// A node joins, or tells on start where it is now and what it can follow.
    #[prost(message, tag = "2")]
    RegisterNode(RegisterNode),
    /// A node lost its disk and comes back under a new identity.
    #[prost(message, tag = "3")]
    ReplaceNode(ReplaceNode),
    /// A node's data directory is damaged: its replicas give up their votes and rejoin.
    #[prost(message, tag = "4")]
    StepAside(StepAside),
    /// No new replicas for this node; what it holds moves away.
    #[prost(message, tag = "5")]
    DrainNode(NodeRef),
    /// Ends a drain.
    #[prost(message, tag = "6")]
    ResumeNode(NodeRef),
    /// A drained node leaves the cluster.
    #[prost(message, tag = "7")]
    RemoveNode(NodeRef),
    #[prost(message, tag = "8")]
    CreateTopic(CreateTopic),
    #[prost(message, tag = "9")]
    AlterTopic(AlterTopic),
    #[prost(message, tag = "10")]
    DeleteTopic(DeleteTopic),
    /// A new set of replicas for a group; the group's leader then works towards it.
    #[prost(message, tag = "11")]
    AssignReplicas(AssignReplicas),
    /// A group's leader has reached the assigned set.
    #[prost(message, tag = "12")]
    ReportSettled(ReportSettled),
    /// A node no longer holds replicas that were taken from it.
    #[prost(message, tag = "13")]
    ReportClosed(ReportClosed),
    /// Which voter should lead a group when it can.
    #[prost(message, tag = "14")]
    PreferLeader(PreferLeader),
    #[prost(message, tag = "15")]
    SetClusterConfig(SetClusterConfig),
    #[prost(message, tag = "16")]
    ActivateLevel(ActivateLevel),
    #[prost(message, tag = "17")]
    AllocateProducerIds(AllocateProducerIds),
    /// As `AssignReplicas`, by an operator: balancing then leaves the group alone until one of
    /// the two plain commands names it again; from `PLACEMENT_LEVEL` on until another leader is
    /// preferred.
    #[prost(message, tag = "18")]
    AssignByHand(AssignReplicas),
    /// As `PreferLeader`, by an operator, with the same consequence.
    #[prost(message, tag = "19")]
    PreferByHand(PreferLeader),
    /// Which nodes the controller's leader has not heard from for some time.
    #[prost(message, tag = "20")]
    ReportSilent(ReportSilent),
    /// A majority is lost for ever, and the cluster goes on with what is left. Nobody proposes
    /// this: `trilog recover` writes it into the log of a stopped node.
    #[prost(message, tag = "21")]
    AcceptLoss(AcceptLoss),
    /// How much some clients may move.
    #[prost(message, tag = "22")]
    AlterQuota(AlterQuota),
    /// A user comes, changes or goes.
    #[prost(message, tag = "25")]
    AlterUser(AlterUser),
    /// Rules are added and taken away.
    #[prost(message, tag = "26")]
    AlterAcls(AlterAcls),
}

#[derive(Clone, PartialEq, Message)]
pub struct Bootstrap {
    /// A `ClusterId`.
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster: Bytes,
    /// The first node, which has formed the controller group alone, as replica incarnation 1.
    #[prost(message, required, tag = "2")]
    pub node: RegisterNode,
    /// The level to begin with.
    #[prost(uint32, tag = "3")]
    pub level: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct RegisterNode {
    #[prost(uint32, tag = "1")]
    pub node: u32,
    /// A `NodeIdentity`.
    #[prost(bytes = "bytes", tag = "2")]
    pub identity: Bytes,
    /// Empty: none.
    #[prost(string, tag = "3")]
    pub rack: String,
    #[prost(message, repeated, tag = "4")]
    pub endpoints: Vec<Endpoint>,
    #[prost(uint32, tag = "5")]
    pub min_level: u32,
    #[prost(uint32, tag = "6")]
    pub max_level: u32,
    /// The build, for people.
    #[prost(string, tag = "7")]
    pub version: String,
    /// The cluster the node believes in, where it has been in one already; else empty.
    #[prost(bytes = "bytes", tag = "8")]
    pub cluster: Bytes,
    /// Whether it asks clients who they are: from `ACCESS_LEVEL` on; older builds do not say.
    #[prost(bool, optional, tag = "9")]
    pub asks: Option<bool>,
}

/// Where a node is reached for one purpose, as clients or peers are told.
#[derive(Clone, PartialEq, Eq, Hash, Message)]
pub struct Endpoint {
    #[prost(enumeration = "Purpose", tag = "1")]
    pub purpose: i32,
    #[prost(string, tag = "2")]
    pub host: String,
    #[prost(uint32, tag = "3")]
    pub port: u32,
}

impl Endpoint {
    #[must_use]
    pub fn new(purpose: Purpose, host: &str, port: u16) -> Self {
        Self {
            purpose: purpose.into(),
            host: host.to_owned(),
            port: u32::from(port),
        }
    }
}

/// What an endpoint serves. The numbers are on disk: never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, prost::Enumeration)]
#[repr(i32)]
pub enum Purpose {
    Unset = 0,
    Peer = 1,
    Grpc = 2,
    Http = 3,
    Kafka = 4,
    Nats = 5,
    Mqtt = 6,
    MqttWebsocket = 7,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReplaceNode {
    /// The node as it is now, with its new identity.
    #[prost(message, required, tag = "1")]
    pub node: RegisterNode,
    /// The identity that is gone, so that only the one that was meant is replaced.
    #[prost(bytes = "bytes", tag = "2")]
    pub old_identity: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub struct StepAside {
    #[prost(uint32, tag = "1")]
    pub node: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub identity: Bytes,
    /// The groups whose replicas are damaged; the node's replicas in others are untouched.
    #[prost(message, repeated, tag = "3")]
    pub replicas: Vec<ReplicaRef>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ReplicaRef {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// A `ReplicaId`.
    #[prost(uint64, tag = "2")]
    pub replica: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct NodeRef {
    #[prost(uint32, tag = "1")]
    pub node: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct CreateTopic {
    /// A `TopicId`, drawn by the proposer.
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    #[prost(string, tag = "2")]
    pub name: String,
    /// Zero: the cluster's default.
    #[prost(uint32, tag = "3")]
    pub partitions: u32,
    /// Zero: the cluster's default, as far as there are nodes, and growing with them.
    #[prost(uint32, tag = "4")]
    pub replication: u32,
    #[prost(message, repeated, tag = "5")]
    pub configs: Vec<ConfigEntry>,
    /// Empty: the controller places. Else one per partition; `partitions` and `replication` are
    /// then zero.
    #[prost(message, repeated, tag = "6")]
    pub assignments: Vec<Assignment>,
    #[prost(enumeration = "TopicKind", tag = "8")]
    pub kind: i32,
}

/// Who a topic belongs to. The numbers are on disk: never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum TopicKind {
    /// A user's.
    User = 0,
    /// Built in and visible; cannot be deleted.
    BuiltIn = 1,
    /// A view's own log; hidden from the dialects' outbound subjects, cannot be deleted.
    Internal = 2,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct ConfigEntry {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// The nodes of one partition, the preferred leader first.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct Assignment {
    #[prost(uint32, repeated, tag = "1")]
    pub nodes: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AlterTopic {
    /// A `TopicId`.
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
    #[prost(message, repeated, tag = "2")]
    pub configs: Vec<ConfigChange>,
    /// The new number of partitions; zero: as it is.
    #[prost(uint32, tag = "3")]
    pub partitions: u32,
    /// Empty: the controller places. Else one per added partition.
    #[prost(message, repeated, tag = "4")]
    pub assignments: Vec<Assignment>,
    /// The new replication; zero: as it is. The balancer then moves replicas.
    #[prost(uint32, tag = "6")]
    pub replication: u32,
}

/// One step of an incremental change.
#[derive(Clone, PartialEq, Eq, Message)]
pub struct ConfigChange {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(enumeration = "ConfigOp", tag = "2")]
    pub op: i32,
    #[prost(string, tag = "3")]
    pub value: String,
}

impl ConfigChange {
    #[must_use]
    pub fn set(key: &str, value: &str) -> Self {
        Self {
            key: key.to_owned(),
            op: ConfigOp::Set.into(),
            value: value.to_owned(),
        }
    }

    #[must_use]
    pub fn delete(key: &str) -> Self {
        Self {
            key: key.to_owned(),
            op: ConfigOp::Delete.into(),
            value: String::new(),
        }
    }
}

/// Kafka's incremental operations, with Kafka's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum ConfigOp {
    Set = 0,
    /// Back to the default.
    Delete = 1,
    /// Lists only.
    Append = 2,
    /// Lists only.
    Subtract = 3,
}

#[derive(Clone, PartialEq, Message)]
pub struct DeleteTopic {
    /// A `TopicId`.
    #[prost(bytes = "bytes", tag = "1")]
    pub id: Bytes,
}

#[derive(Clone, PartialEq, Message)]
pub struct AssignReplicas {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The generation this was decided on; another one refuses it.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// Nodes, in order of preference.
    #[prost(uint32, repeated, tag = "3")]
    pub voters: Vec<u32>,
    /// Nodes that follow without a vote. For the controller group: derived, left empty.
    #[prost(uint32, repeated, tag = "4")]
    pub learners: Vec<u32>,
    /// One of the voters.
    #[prost(uint32, tag = "5")]
    pub preferred: u32,
    /// By hand only: the voters are those from before what is on its way, which is taken back, and
    /// so say nothing of how many there are to be.
    #[prost(bool, tag = "6")]
    pub back: bool,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReportSettled {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    /// The generation of the assignment that was reached.
    #[prost(uint64, tag = "2")]
    pub generation: u64,
    /// The term of the leader that says so.
    #[prost(uint64, tag = "3")]
    pub term: u64,
    /// `ReplicaId`s of the committed membership.
    #[prost(uint64, repeated, tag = "4")]
    pub voters: Vec<u64>,
    #[prost(uint64, repeated, tag = "5")]
    pub learners: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReportClosed {
    #[prost(uint32, tag = "1")]
    pub node: u32,
    #[prost(bytes = "bytes", tag = "2")]
    pub identity: Bytes,
    #[prost(message, repeated, tag = "3")]
    pub replicas: Vec<ReplicaRef>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct PreferLeader {
    #[prost(uint64, tag = "1")]
    pub group: u64,
    #[prost(uint32, tag = "2")]
    pub node: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct ReportSilent {
    /// All of them; what is not named is heard from.
    #[prost(uint32, repeated, tag = "1")]
    pub nodes: Vec<u32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AcceptLoss {
    /// The `ClusterId` from now on: nodes that were not there belong to the cluster that was.
    #[prost(bytes = "bytes", tag = "1")]
    pub cluster: Bytes,
    /// The nodes that are left.
    #[prost(uint32, repeated, tag = "2")]
    pub survivors: Vec<u32>,
    /// When the operator decided so, in nanoseconds since the epoch.
    #[prost(uint64, tag = "3")]
    pub at: u64,
}

#[derive(Clone, PartialEq, Message)]
pub struct SetClusterConfig {
    #[prost(message, repeated, tag = "1")]
    pub configs: Vec<ConfigChange>,
}

#[derive(Clone, Copy, PartialEq, Eq, Message)]
pub struct ActivateLevel {
    #[prost(uint32, tag = "1")]
    pub level: u32,
}

#[derive(Clone, PartialEq, Message)]
pub struct AllocateProducerIds {
    #[prost(uint32, tag = "1")]
    pub node: u32,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub struct AlterUser {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(enumeration = "Expect", tag = "2")]
    pub expect: i32,
    /// In place of those of the same mechanisms.
    #[prost(message, repeated, tag = "3")]
    pub set: Vec<Credential>,
    /// Taken from the user first; one who has none left is no user any more.
    #[prost(enumeration = "Mechanism", repeated, tag = "4")]
    pub remove: Vec<i32>,
    /// Drawn by the proposer, or empty; the first one stays the cluster's.
    #[prost(bytes = "bytes", tag = "5")]
    pub secret: Bytes,
}

/// Without the secret.
impl fmt::Debug for AlterUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AlterUser")
            .field("name", &self.name)
            .field("expect", &self.expect)
            .field("set", &self.set)
            .field("remove", &self.remove)
            .finish_non_exhaustive()
    }
}

/// Whether the user of a command is to be there. The numbers are on disk: never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Expect {
    Any = 0,
    New = 1,
    Present = 2,
}

#[derive(Clone, PartialEq, Message)]
pub struct AlterAcls {
    #[prost(message, repeated, tag = "1")]
    pub add: Vec<Acl>,
    /// Taken away before others are added.
    #[prost(message, repeated, tag = "2")]
    pub remove: Vec<Acl>,
}

#[derive(Clone, PartialEq, Message)]
pub struct AlterQuota {
    /// None: whoever it is.
    #[prost(message, optional, tag = "1")]
    pub user: Option<QuotaClient>,
    /// None: whatever it calls itself.
    #[prost(message, optional, tag = "2")]
    pub client: Option<QuotaClient>,
    #[prost(message, repeated, tag = "3")]
    pub changes: Vec<QuotaChange>,
}

#[derive(Clone, PartialEq, Eq, Message)]
pub struct QuotaClient {
    /// None: all that have no quota of their own.
    #[prost(string, optional, tag = "1")]
    pub name: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct QuotaChange {
    #[prost(enumeration = "QuotaKey", tag = "1")]
    pub key: i32,
    /// Zero takes the bound back.
    #[prost(double, tag = "2")]
    pub limit: f64,
}

impl Command {
    /// The level everything in this command needs.
    #[must_use]
    pub fn level(&self) -> u32 {
        match self {
            Self::CreateTopic(topic) if topic.kind == i32::from(TopicKind::Internal) => {
                INTERNAL_LEVEL
            }
            Self::AlterUser(_) | Self::AlterAcls(_) => ACCESS_LEVEL,
            Self::AssignReplicas(moved) | Self::AssignByHand(moved) if moved.back => {
                PLACEMENT_LEVEL
            }
            Self::AlterQuota(_) => QUOTA_LEVEL,
            Self::RegisterNode(node) | Self::ReplaceNode(ReplaceNode { node, .. })
                if node.asks.is_some() =>
            {
                ACCESS_LEVEL
            }
            Self::Bootstrap(_)
            | Self::RegisterNode(_)
            | Self::ReplaceNode(_)
            | Self::StepAside(_)
            | Self::DrainNode(_)
            | Self::ResumeNode(_)
            | Self::RemoveNode(_)
            | Self::CreateTopic(_)
            | Self::AlterTopic(_)
            | Self::DeleteTopic(_)
            | Self::AssignReplicas(_)
            | Self::ReportSettled(_)
            | Self::ReportClosed(_)
            | Self::PreferLeader(_)
            | Self::SetClusterConfig(_)
            | Self::ActivateLevel(_)
            | Self::AllocateProducerIds(_)
            | Self::AssignByHand(_)
            | Self::PreferByHand(_)
            | Self::ReportSilent(_)
            | Self::AcceptLoss(_) => BASE_LEVEL,
        }
    }

    /// The bytes to propose.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        let body = CommandBody {
            command: Some(self.clone()),
        };
        Envelope {
            level: self.level(),
            body: body.encode_to_vec().into(),
        }
        .encode_to_vec()
        .into()
    }

    /// Reads a proposed command under the cluster's active level.
    pub fn from_bytes(bytes: &[u8], active: u32) -> Result<Self, CommandError> {
        if bytes.len() > MAX_COMMAND_BYTES {
            return Err(CommandError::Malformed("longer than any command may be"));
        }
        let envelope =
            Envelope::decode(bytes).map_err(|_| CommandError::Malformed("not an envelope"))?;
        if envelope.level > active {
            return Err(CommandError::Level {
                needs: envelope.level,
                active,
            });
        }
        if envelope.encode_to_vec() != bytes {
            return Err(CommandError::Malformed("the envelope has unknown parts"));
        }
        let body = CommandBody::decode(envelope.body.clone())
            .map_err(|_| CommandError::Malformed("not a command"))?;
        if body.encode_to_vec() != envelope.body {
            return Err(CommandError::Malformed("the command has unknown parts"));
        }
        let command = body
            .command
            .ok_or(CommandError::Malformed("the command is empty"))?;
        // Builds that had users before this was a matter of levels said `asks` under the base level, in
        // logs that are still there.
        let by_active = matches!(command, Command::RegisterNode(_) | Command::ReplaceNode(_));
        let allowed = if by_active { active } else { envelope.level };
        if command.level() > allowed {
            return Err(CommandError::Malformed(
                "the command needs a level above the one it names",
            ));
        }
        Ok(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Command {
        Command::CreateTopic(CreateTopic {
            id: Bytes::from_static(&[7; 16]),
            name: "orders".into(),
            partitions: 3,
            replication: 1,
            configs: vec![ConfigEntry {
                key: "retention.ms".into(),
                value: "-1".into(),
            }],
            assignments: vec![],
            kind: TopicKind::User.into(),
        })
    }

    #[test]
    fn a_command_survives_the_round_trip() {
        let command = sample();
        assert_eq!(
            Command::from_bytes(&command.to_bytes(), BASE_LEVEL),
            Ok(command)
        );
    }

    #[test]
    fn the_bytes_of_a_command_are_what_they_always_were() {
        let expected = b"\x08\x01\x12\x34\x42\x32\x0a\x10\x07\x07\x07\x07\x07\x07\x07\x07\
            \x07\x07\x07\x07\x07\x07\x07\x07\x12\x06orders\x18\x03\x20\x01\
            \x2a\x12\x0a\x0cretention.ms\x12\x02-1";
        assert_eq!(sample().to_bytes(), expected[..]);
    }

    #[test]
    fn a_command_above_the_active_level_is_refused_unread() {
        let bytes = Envelope {
            level: 9,
            body: Bytes::from_static(b"\xff\xff"),
        }
        .encode_to_vec();
        assert_eq!(
            Command::from_bytes(&bytes, 8),
            Err(CommandError::Level {
                needs: 9,
                active: 8
            })
        );
    }

    #[test]
    fn that_a_node_asks_who_its_clients_are_is_said_from_the_level_of_users_on() {
        let node = |asks| RegisterNode {
            node: 3,
            asks,
            ..RegisterNode::default()
        };
        let replace = |asks| {
            Command::ReplaceNode(ReplaceNode {
                node: node(asks),
                old_identity: Bytes::new(),
            })
        };
        for asks in [false, true] {
            for command in [Command::RegisterNode(node(Some(asks))), replace(Some(asks))] {
                let (bytes, level) = (command.to_bytes(), ACCESS_LEVEL);
                // A build that knows nothing of it refuses it by its level, too.
                let refusal = CommandError::Level {
                    needs: level,
                    active: level - 1,
                };
                assert_eq!(Command::from_bytes(&bytes, level - 1), Err(refusal));
                assert_eq!(Command::from_bytes(&bytes, level), Ok(command.clone()));
                // As in logs that are older than this rule.
                let mut older = Envelope::decode(&*bytes).unwrap();
                older.level = BASE_LEVEL;
                let older = older.encode_to_vec();
                assert!(Command::from_bytes(&older, level - 1).is_err());
                assert_eq!(Command::from_bytes(&older, level), Ok(command));
            }
        }
        for command in [Command::RegisterNode(node(None)), replace(None)] {
            assert_eq!(
                Command::from_bytes(&command.to_bytes(), BASE_LEVEL),
                Ok(command)
            );
        }
    }

    #[test]
    fn unknown_commands_and_unknown_fields_are_refused_and_not_skipped() {
        // A newer build's command: field 100 of the body, an empty message.
        let unknown = Envelope {
            level: BASE_LEVEL,
            body: Bytes::from_static(&[0xa2, 0x06, 0x00]),
        };
        assert!(matches!(
            Command::from_bytes(&unknown.encode_to_vec(), BASE_LEVEL),
            Err(CommandError::Malformed(_))
        ));
        // A newer build's field 50, a varint, inside a known command.
        let mut inner = NodeRef { node: 3 }.encode_to_vec();
        inner.extend([0x90, 0x03, 0x01]);
        let mut body = vec![5 << 3 | 2, u8::try_from(inner.len()).unwrap()];
        body.extend(inner);
        let extended = Envelope {
            level: BASE_LEVEL,
            body: body.into(),
        };
        assert_eq!(
            Command::from_bytes(&extended.encode_to_vec(), BASE_LEVEL),
            Err(CommandError::Malformed("the command has unknown parts"))
        );
        let mut tail = sample().to_bytes().to_vec();
        tail.extend([0x98, 0x06, 0x01]);
        assert_eq!(
            Command::from_bytes(&tail, BASE_LEVEL),
            Err(CommandError::Malformed("the envelope has unknown parts"))
        );
    }

    #[test]
    fn truncations_and_noise_never_panic() {
        let whole = sample().to_bytes();
        for len in 0..whole.len() {
            assert!(Command::from_bytes(&whole[..len], BASE_LEVEL).is_err());
        }
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            drop(Command::from_bytes(&damaged, BASE_LEVEL));
        }
        assert!(Command::from_bytes(&vec![0; MAX_COMMAND_BYTES + 1], BASE_LEVEL).is_err());
    }
}
