//! What applying a command answers: a typed reply or a typed refusal, and their bytes.

use bytes::Bytes;
use prost::Message;
use trilog_model::{GroupId, NodeId, ReplicaId};

use super::ids::{ClusterId, TopicId};

/// What a command that was carried out answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Done, or already so.
    Done,
    /// The node is a member.
    Registered {
        cluster: ClusterId,
        /// The node's replica of the controller group, which it now opens.
        controller_replica: ReplicaId,
        /// Who else is in the controller group, to reach its leader through.
        controller_nodes: Vec<NodeId>,
        /// The active feature level.
        level: u32,
        /// Groups that lose their last intact replica with what the node gave up: only
        /// `recover --accept-loss` brings them back.
        stranded: Vec<GroupId>,
    },
    /// The topic exists now, with this many partitions on this many nodes each.
    TopicCreated {
        id: TopicId,
        partitions: u32,
        replication: u32,
    },
    /// A block of producer ids that is the asking node's alone.
    ProducerIds { first: u64, count: u64 },
}

macro_rules! refusals {
    ($( $(#[doc = $doc:literal])* $code:literal ( $($text:tt)* )
        $name:ident { $( $field:ident : $kind:ident in $slot:ident ),* } )*) => {
        /// Why a command was refused. Nothing changed.
        #[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
        pub enum ControllerError {
            $( $(#[doc = $doc])* #[error($($text)*)] $name { $( $field: refusals!(@type $kind) ),* }, )*
            /// A refusal that this build does not know, from a newer one.
            #[error("{text}")]
            Other { code: u32, text: String },
        }

        impl ControllerError {
            /// The refusal's number on the wire: never reused.
            #[must_use]
            pub fn code(&self) -> u32 {
                match self {
                    $( Self::$name { .. } => $code, )*
                    Self::Other { code, .. } => *code,
                }
            }

            fn to_message(&self) -> ErrorMessage {
                let mut message = ErrorMessage {
                    code: self.code(),
                    text: self.to_string(),
                    ..ErrorMessage::default()
                };
                match self {
                    $( Self::$name { $( $field ),* } => {
                        $( message.$slot = refusals!(@put $kind $field); )*
                    } )*
                    Self::Other { .. } => {}
                }
                message
            }

            fn from_message(message: ErrorMessage) -> Self {
                match message.code {
                    $( $code => Self::$name {
                        $( $field: refusals!(@take $kind message.$slot) ),*
                    }, )*
                    code => Self::Other { code, text: message.text },
                }
            }
        }
    };
    (@type text) => { String };
    (@type maybe) => { Option<String> };
    (@type number) => { u64 };
    (@type level) => { u32 };
    (@type node) => { NodeId };
    (@put text $field:ident) => { $field.clone() };
    (@put maybe $field:ident) => { $field.clone().unwrap_or_default() };
    (@put number $field:ident) => { *$field };
    (@put level $field:ident) => { u64::from(*$field) };
    (@put node $field:ident) => { u64::from($field.get()) };
    (@take text $value:expr) => { $value };
    (@take maybe $value:expr) => { Some($value).filter(|text| !text.is_empty()) };
    (@take number $value:expr) => { $value };
    (@take level $value:expr) => { u32::try_from($value).unwrap_or(u32::MAX) };
    (@take node $value:expr) => { NodeId(u32::try_from($value).unwrap_or(0)) };
}

refusals! {
    /// The entry cannot be read, or holds what it must not.
    1 ("the command is malformed: {reason}")
    Malformed { reason: text in first }
    2 ("the command needs feature level {needs}, the active level is {active}")
    LevelNotActive { needs: level in number, active: level in limit }
    3 ("the cluster has not been initialized")
    NotBootstrapped {}
    4 ("the cluster has already been initialized")
    AlreadyBootstrapped {}
    5 ("the node belongs to cluster {theirs}, this is cluster {ours}")
    ForeignCluster { theirs: text in first, ours: text in second }
    6 ("node {node} is not registered")
    UnknownNode { node: node in number }
    7 ("node id {node} is taken by a node with identity {identity}; if that node's disk is lost, start this one with --replace (cluster.replace = true)")
    NodeIdTaken { node: node in number, identity: text in first }
    8 ("node {node}: {reason}")
    InvalidNode { node: node in number, reason: text in first }
    9 ("node {node} cannot leave: it still holds {replicas} replicas; drain it first")
    NodeHoldsReplicas { node: node in number, replicas: number in limit }
    10 ("the build of node {node} follows feature levels {min} to {max}, which leaves out level {level}: run one on it that does")
    LevelNotSupported { node: node in number, min: level in limit, max: level in third, level: level in fourth }
    11 ("topic name '{name}' is invalid: {reason}")
    InvalidTopicName { name: text in first, reason: text in second }
    12 ("topic '{name}' already exists")
    TopicExists { name: text in first }
    13 ("topic '{name}' collides with topic '{other}': '.' and '_' count as the same")
    TopicCollides { name: text in first, other: text in second }
    14 ("there is no such topic: {topic}")
    UnknownTopic { topic: text in first }
    15 ("topic '{name}' belongs to the system and cannot be deleted")
    TopicProtected { name: text in first }
    16 ("invalid number of partitions: {reason}")
    InvalidPartitions { reason: text in first }
    17 ("invalid replication: {reason}")
    InvalidReplication { reason: text in first }
    18 ("replication {wanted} needs {wanted} active nodes, there are {available}")
    NotEnoughNodes { wanted: level in number, available: level in limit }
    19 ("unknown configuration key '{key}'{}", hint(.nearest.as_deref()))
    UnknownConfig { key: text in first, nearest: maybe in second }
    20 ("invalid value '{value}' for {key}: {reason}")
    InvalidConfig { key: text in first, value: text in second, reason: text in more }
    21 ("invalid assignment: {reason}")
    InvalidAssignment { reason: text in first }
    22 ("there is no group {group}")
    UnknownGroup { group: number in number }
    /// The decision or report is about an older state; look again and decide anew.
    23 ("group {group} has moved on: generation {current}, not {given}")
    StaleGeneration { group: number in number, given: number in limit, current: number in third }
    24 ("the reported members of group {group} are not the assigned ones")
    NotSettled { group: number in number }
    25 ("out of {what}")
    Exhausted { what: text in first }
    26 ("node {node} is the last active one")
    LastNode { node: node in number }
    /// Giving a replica up deletes its log, which may hold what no other has.
    27 ("group {group} has no intact majority without replica {replica}: what that one holds is kept")
    LastCopies { group: number in number, replica: number in limit }
    40 ("user '{name}' is invalid: {reason}")
    InvalidUser { name: text in first, reason: text in second }
    41 ("user '{name}' already exists")
    UserExists { name: text in first }
    42 ("there is no user '{name}', or not with this mechanism")
    UnknownUser { name: text in first }
    43 ("the rule is invalid: {reason}")
    InvalidAcl { reason: text in first }
}

fn hint(nearest: Option<&str>) -> String {
    nearest.map_or_else(String::new, |name| format!("; did you mean '{name}'?"))
}

#[derive(Clone, PartialEq, Message)]
struct ErrorMessage {
    #[prost(uint32, tag = "1")]
    code: u32,
    /// The whole refusal in words, for a reader that does not know the code.
    #[prost(string, tag = "2")]
    text: String,
    #[prost(string, tag = "3")]
    first: String,
    #[prost(string, tag = "4")]
    second: String,
    #[prost(string, tag = "5")]
    more: String,
    #[prost(uint64, tag = "6")]
    number: u64,
    #[prost(uint64, tag = "7")]
    limit: u64,
    #[prost(uint64, tag = "8")]
    third: u64,
    #[prost(uint64, tag = "9")]
    fourth: u64,
}

#[derive(Clone, PartialEq, Message)]
struct OutcomeMessage {
    #[prost(oneof = "OutcomeKind", tags = "1, 2, 3, 4, 5")]
    kind: Option<OutcomeKind>,
}

#[derive(Clone, PartialEq, prost::Oneof)]
enum OutcomeKind {
    #[prost(message, tag = "1")]
    Error(ErrorMessage),
    #[prost(message, tag = "2")]
    Done(DoneMessage),
    #[prost(message, tag = "3")]
    Registered(RegisteredMessage),
    #[prost(message, tag = "4")]
    TopicCreated(TopicCreatedMessage),
    #[prost(message, tag = "5")]
    ProducerIds(ProducerIdsMessage),
}

#[derive(Clone, Copy, PartialEq, Message)]
struct DoneMessage {}

#[derive(Clone, PartialEq, Message)]
struct RegisteredMessage {
    #[prost(bytes = "bytes", tag = "1")]
    cluster: Bytes,
    #[prost(uint64, tag = "2")]
    controller_replica: u64,
    #[prost(uint32, repeated, tag = "3")]
    controller_nodes: Vec<u32>,
    #[prost(uint32, tag = "4")]
    level: u32,
    #[prost(uint64, repeated, tag = "5")]
    stranded: Vec<u64>,
}

#[derive(Clone, PartialEq, Message)]
struct TopicCreatedMessage {
    #[prost(bytes = "bytes", tag = "1")]
    id: Bytes,
    #[prost(uint32, tag = "2")]
    partitions: u32,
    #[prost(uint32, tag = "3")]
    replication: u32,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ProducerIdsMessage {
    #[prost(uint64, tag = "1")]
    first: u64,
    #[prost(uint64, tag = "2")]
    count: u64,
}

/// What applying a command came to.
pub type Outcome = Result<Reply, ControllerError>;

/// The bytes of an outcome, as the log's apply answers them.
#[must_use]
pub fn encode_outcome(outcome: &Outcome) -> Bytes {
    let kind = match outcome {
        Err(error) => OutcomeKind::Error(error.to_message()),
        Ok(Reply::Done) => OutcomeKind::Done(DoneMessage {}),
        Ok(Reply::Registered {
            cluster,
            controller_replica,
            controller_nodes,
            level,
            stranded,
        }) => OutcomeKind::Registered(RegisteredMessage {
            cluster: cluster.to_wire(),
            controller_replica: controller_replica.0,
            controller_nodes: controller_nodes.iter().map(|node| node.get()).collect(),
            level: *level,
            stranded: stranded.iter().map(|group| group.get()).collect(),
        }),
        Ok(Reply::TopicCreated {
            id,
            partitions,
            replication,
        }) => OutcomeKind::TopicCreated(TopicCreatedMessage {
            id: id.to_wire(),
            partitions: *partitions,
            replication: *replication,
        }),
        Ok(Reply::ProducerIds { first, count }) => OutcomeKind::ProducerIds(ProducerIdsMessage {
            first: *first,
            count: *count,
        }),
    };
    OutcomeMessage { kind: Some(kind) }.encode_to_vec().into()
}

/// Reads [`encode_outcome`]'s bytes. What cannot be read is a refusal in itself.
pub fn decode_outcome(bytes: &[u8]) -> Outcome {
    let unreadable = || ControllerError::Other {
        code: 0,
        text: "the controller's answer cannot be read".to_owned(),
    };
    let message = OutcomeMessage::decode(bytes).map_err(|_| unreadable())?;
    match message.kind.ok_or_else(unreadable)? {
        OutcomeKind::Error(error) => Err(ControllerError::from_message(error)),
        OutcomeKind::Done(_) => Ok(Reply::Done),
        OutcomeKind::Registered(message) => Ok(Reply::Registered {
            cluster: ClusterId::from_wire(&message.cluster).map_err(|_| unreadable())?,
            controller_replica: ReplicaId(message.controller_replica),
            controller_nodes: message.controller_nodes.into_iter().map(NodeId).collect(),
            level: message.level,
            stranded: message.stranded.into_iter().map(GroupId).collect(),
        }),
        OutcomeKind::TopicCreated(message) => Ok(Reply::TopicCreated {
            id: TopicId::from_wire(&message.id).map_err(|_| unreadable())?,
            partitions: message.partitions,
            replication: message.replication,
        }),
        OutcomeKind::ProducerIds(message) => Ok(Reply::ProducerIds {
            first: message.first,
            count: message.count,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(outcome: &Outcome) {
        assert_eq!(&decode_outcome(&encode_outcome(outcome)), outcome);
    }

    #[test]
    fn every_kind_of_outcome_survives_the_round_trip() {
        check(&Ok(Reply::Done));
        check(&Ok(Reply::Registered {
            cluster: ClusterId::from_bytes([1; 16]).unwrap(),
            controller_replica: ReplicaId::new(NodeId(2), 9),
            controller_nodes: vec![NodeId(1), NodeId(2)],
            level: 1,
            stranded: vec![GroupId(7)],
        }));
        check(&Ok(Reply::TopicCreated {
            id: TopicId::from_bytes([2; 16]).unwrap(),
            partitions: 8,
            replication: 3,
        }));
        check(&Ok(Reply::ProducerIds {
            first: 1_000,
            count: 1_000,
        }));
        check(&Err(ControllerError::NotBootstrapped {}));
        check(&Err(ControllerError::NotEnoughNodes {
            wanted: 3,
            available: 1,
        }));
        check(&Err(ControllerError::LevelNotSupported {
            node: NodeId(3),
            min: 1,
            max: 2,
            level: 3,
        }));
        check(&Err(ControllerError::UnknownConfig {
            key: "retention.m".into(),
            nearest: Some("retention.ms".into()),
        }));
        check(&Err(ControllerError::InvalidConfig {
            key: "a".into(),
            value: "b".into(),
            reason: "c".into(),
        }));
    }

    #[test]
    fn a_refusal_of_a_newer_build_keeps_its_words() {
        let message = OutcomeMessage {
            kind: Some(OutcomeKind::Error(ErrorMessage {
                code: 9_999,
                text: "the moon is in the wrong phase".into(),
                ..ErrorMessage::default()
            })),
        };
        let refusal = decode_outcome(&message.encode_to_vec()).unwrap_err();
        assert_eq!(refusal.to_string(), "the moon is in the wrong phase");
        assert!(decode_outcome(b"\xff").is_err());
    }

    #[test]
    fn refusals_say_what_is_wrong_and_what_was_meant() {
        let unknown = ControllerError::UnknownConfig {
            key: "retention.m".into(),
            nearest: Some("retention.ms".into()),
        };
        assert_eq!(
            unknown.to_string(),
            "unknown configuration key 'retention.m'; did you mean 'retention.ms'?"
        );
        let few = ControllerError::NotEnoughNodes {
            wanted: 3,
            available: 2,
        };
        assert_eq!(
            few.to_string(),
            "replication 3 needs 3 active nodes, there are 2"
        );
    }
}
