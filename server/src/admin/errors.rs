//! What goes wrong inside, as the native API says it: every inner error has its code here.

use trilog_model::batch::BatchError;
use trilog_model::{GroupId, NodeId};
use trilog_raft::controller::{ControllerError, TopicId};
use trilog_wire::v1::{Error, ErrorCode, Leader};

use crate::cluster::{Cluster, LookupError, ProposeError, ProxyError};
use crate::group::{DescribedMember, GroupError, ResetError};
use crate::partition::{AppendError, ReadError};
use crate::transaction::TransactionError;

/// What a metric calls the error.
pub(super) fn reason(error: &Error) -> String {
    let reason = error.code().as_str_name();
    let reason = reason.strip_prefix("ERROR_CODE_").unwrap_or(reason);
    reason.to_lowercase()
}

/// Where to go for a partition that this node does not lead.
pub(super) fn not_leader(cluster: &Cluster, leader: Option<NodeId>) -> Error {
    let Some(node) = leader else {
        return Error::new(
            ErrorCode::NoLeader,
            "the partition has no leader at present",
        )
        .with_hint("an election takes about a second; try again");
    };
    let address = cluster.grpc_address(node).unwrap_or_default();
    Error::new(
        ErrorCode::NotLeader,
        format!("node {node} leads the partition"),
    )
    .with_leader(Leader {
        node: node.get(),
        address,
        term: 0,
    })
}

pub(super) fn append(cluster: &Cluster, error: &AppendError) -> Error {
    let code = match error {
        AppendError::NotLeader { leader } => return not_leader(cluster, *leader),
        AppendError::Unknown => ErrorCode::UnknownOutcome,
        AppendError::Invalid(BatchError::Crc) => ErrorCode::CorruptBatch,
        AppendError::Invalid(_) | AppendError::Records(_) => ErrorCode::InvalidRecord,
        AppendError::TooLarge { .. } | AppendError::TooMany { .. } => ErrorCode::TooLarge,
        AppendError::OutOfOrder { .. } => ErrorCode::OutOfOrderSequence,
        AppendError::Fenced { .. } => ErrorCode::ProducerFenced,
        AppendError::NotInTransaction => return transactional(),
        AppendError::OffsetMismatch { .. }
        | AppendError::InTransaction
        | AppendError::StaleCoordinator
        | AppendError::Internal => ErrorCode::PolicyViolation,
        AppendError::Busy(_) => ErrorCode::Overloaded,
        AppendError::DiskFull => return disk_full(),
        AppendError::Closed => ErrorCode::ShuttingDown,
    };
    Error::new(code, error.to_string())
}

fn transactional() -> Error {
    let text = "the batch says that it is part of a transaction";
    Error::new(ErrorCode::InvalidRecord, text)
        .with_hint("transactions are begun by Kafka clients; send it without the transactional bit")
}

fn disk_full() -> Error {
    Error::new(ErrorCode::DiskFull, AppendError::DiskFull.to_string()).with_hint(
        "free space there (/health/ready of each node names the full ones), add a disk or \
         shorten the retention of topics; records are taken again by themselves, and reads go on",
    )
}

pub(super) fn append_anywhere(cluster: &Cluster, error: &ProxyError) -> Error {
    match error {
        ProxyError::Lookup(error) => lookup(cluster, error),
        ProxyError::Append(error) => append(cluster, error),
        ProxyError::Refused(_) => Error::new(ErrorCode::InvalidRecord, error.to_string()),
    }
}

pub(super) fn read(cluster: &Cluster, group: GroupId, error: &ReadError) -> Error {
    let code = match error {
        ReadError::NotLeader { leader } => return not_leader(cluster, *leader),
        ReadError::OutOfRange { .. } => ErrorCode::OffsetOutOfRange,
        ReadError::Damaged(what) => return damaged(cluster, group, what),
        ReadError::Unavailable(_) => ErrorCode::Overloaded,
    };
    Error::new(code, error.to_string())
}

/// Damage that another replica's copy will take the place of passes; else it is for people.
fn damaged(cluster: &Cluster, group: GroupId, what: &str) -> Error {
    let (map, node) = (cluster.map(), cluster.node());
    let place = map.topics().find_map(|topic| {
        let mut partitions = topic.partitions.iter();
        let index = partitions.position(|partition| partition.group == group)?;
        Some(format!("{}/{index}", topic.name))
    });
    let place = place.unwrap_or_else(|| format!("group {group}"));
    let text = format!("{place} is damaged on node {node} and not served there: {what}");
    let others = map.group(group).is_some_and(|place| {
        let mut replicas = place.replicas.iter();
        replicas.any(|replica| replica.id.node() != node)
    });
    if others {
        return Error::new(ErrorCode::Damaged, text)
            .with_hint("another replica's copy takes its place; try again");
    }
    Error::new(ErrorCode::DataLost, text).with_hint(
        "no other replica has it: read on behind it, stop the node and put the file back from a \
         backup (trilog log verify names it), or trim it away with the topic's retention",
    )
}

pub(super) fn lookup(cluster: &Cluster, error: &LookupError) -> Error {
    match error {
        LookupError::UnknownTopic(name) => Error::new(
            ErrorCode::UnknownTopic,
            format!("there is no topic '{name}'"),
        )
        .with_hint(format!("create it with: trilog topic create {name}")),
        LookupError::UnknownPartition { .. } => {
            Error::new(ErrorCode::UnknownPartition, error.to_string())
        }
        LookupError::Elsewhere { leader } => not_leader(cluster, *leader),
        LookupError::Replaced(_) => Error::new(ErrorCode::TopicReplaced, error.to_string())
            .with_hint("describe it, and begin anew with the topic that now has the name"),
        LookupError::Doubtful(_) => Error::new(ErrorCode::NoLeader, error.to_string()),
    }
}

/// The topic that a request means, if it names one.
pub(super) fn topic_id(id: Option<&[u8]>) -> Result<Option<TopicId>, Error> {
    let read = |id| {
        TopicId::from_wire(id)
            .map_err(|error| Error::new(ErrorCode::InvalidRequest, format!("topic_id: {error}")))
    };
    id.map(read).transpose()
}

/// Members of an active group that an error names; the rest are counted.
const NAMED: usize = 8;

pub(super) fn group(cluster: &Cluster, group: &str, error: &GroupError) -> Error {
    let code = match error {
        GroupError::NotCoordinator { node } => {
            return not_coordinator(cluster, &format!("group '{group}'"), *node);
        }
        GroupError::Loading => ErrorCode::NoLeader,
        GroupError::Unavailable(_) | GroupError::RebalanceInProgress | GroupError::GroupFull => {
            ErrorCode::Overloaded
        }
        GroupError::Unknown => ErrorCode::UnknownOutcome,
        GroupError::UnknownGroup => {
            return Error::new(
                ErrorCode::UnknownGroup,
                format!("there is no group '{group}'"),
            )
            .with_hint("trilog group ls shows those there are");
        }
        GroupError::NotEmpty => return active(group, &[]),
        GroupError::SubscribedToTopic => ErrorCode::GroupActive,
        GroupError::UnknownTopic => ErrorCode::UnknownTopic,
        GroupError::MetadataTooLarge
        | GroupError::CommitTooLarge
        | GroupError::AssignmentTooLarge => ErrorCode::TooLarge,
        GroupError::ProducerFenced => ErrorCode::ProducerFenced,
        GroupError::Unstable => ErrorCode::Conflict,
        GroupError::InvalidGroupId
        | GroupError::InvalidRequest(_)
        | GroupError::UnknownMember
        | GroupError::IllegalGeneration
        | GroupError::InconsistentProtocol
        | GroupError::InvalidSessionTimeout
        | GroupError::MemberIdRequired { .. }
        | GroupError::FencedInstance
        | GroupError::FencedEpoch
        | GroupError::StaleEpoch
        | GroupError::UnreleasedInstance
        | GroupError::UnsupportedAssignor
        | GroupError::InvalidRegex => ErrorCode::InvalidRequest,
        GroupError::LevelTooLow => ErrorCode::Unsupported,
    };
    Error::new(code, error.to_string())
}

/// What goes wrong with what a coordinator of transactions holds.
pub(super) fn transaction(cluster: &Cluster, what: &str, error: &TransactionError) -> Error {
    let code = match error {
        TransactionError::NotCoordinator { node } => return not_coordinator(cluster, what, *node),
        TransactionError::Loading => ErrorCode::NoLeader,
        TransactionError::Unavailable(_) => ErrorCode::Overloaded,
        TransactionError::Unknown => ErrorCode::UnknownOutcome,
        TransactionError::Concurrent => ErrorCode::Conflict,
        TransactionError::Fenced => ErrorCode::ProducerFenced,
        TransactionError::TooManyIds => ErrorCode::TooLarge,
        TransactionError::InvalidState => {
            let text = format!("{what} has no transaction that is open");
            return Error::new(ErrorCode::InvalidRequest, text);
        }
        TransactionError::UnknownId => {
            let text = format!("there is no {what}");
            return Error::new(ErrorCode::InvalidRequest, text)
                .with_hint("trilog txn ls shows those there are");
        }
        TransactionError::InvalidId
        | TransactionError::InvalidTimeout
        | TransactionError::UnknownProducer
        | TransactionError::TooManyPartitions => ErrorCode::InvalidRequest,
    };
    Error::new(code, error.to_string())
}

fn not_coordinator(cluster: &Cluster, what: &str, node: Option<NodeId>) -> Error {
    let Some(node) = node else {
        let text = format!("{what} has no coordinator at present");
        return Error::new(ErrorCode::NoLeader, text)
            .with_hint("an election takes about a second; try again");
    };
    let text = format!("node {node} coordinates {what}");
    let leader = Leader {
        node: node.get(),
        address: cluster.grpc_address(node).unwrap_or_default(),
        term: 0,
    };
    Error::new(ErrorCode::NotLeader, text).with_leader(leader)
}

/// Members that are there would go on from where they are.
pub(super) fn active(group: &str, members: &[DescribedMember]) -> Error {
    let named = members.iter().take(NAMED).map(|member| {
        let name = member.instance.as_ref().unwrap_or(&member.client_id);
        format!("{name} at {}", member.client_host)
    });
    let mut named: Vec<String> = named.collect();
    if members.len() > NAMED {
        named.push(format!("{} more", members.len() - NAMED));
    }
    let who = if named.is_empty() {
        String::new()
    } else {
        format!(": {}", named.join(", "))
    };
    let text = format!("group '{group}' has members who are active{who}");
    Error::new(ErrorCode::GroupActive, text).with_hint(
        "stop them first; one that died is let go once its session is over \
         (trilog group describe shows who is left)",
    )
}

pub(super) fn reset(cluster: &Cluster, name: &str, error: &ResetError) -> Error {
    let code = match error {
        ResetError::Group(error) => return group(cluster, name, error),
        ResetError::Active(members) => return active(name, members),
        ResetError::UnknownTopic(topic) => {
            return lookup(cluster, &LookupError::UnknownTopic(topic.clone()));
        }
        ResetError::UnknownPartition { .. } => ErrorCode::UnknownPartition,
        ResetError::NoOffsets | ResetError::NoOffset { .. } => ErrorCode::InvalidRequest,
        ResetError::Unlocated { .. } => ErrorCode::NoLeader,
    };
    Error::new(code, error.to_string())
}

pub(super) fn propose(error: &ProposeError) -> Error {
    let code = match error {
        ProposeError::Refused(refusal) => return controller(refusal),
        ProposeError::NoLeader => ErrorCode::NoLeader,
        ProposeError::Unknown => ErrorCode::UnknownOutcome,
    };
    Error::new(code, error.to_string())
}

fn controller(error: &ControllerError) -> Error {
    let code = match error {
        ControllerError::Malformed { .. }
        | ControllerError::InvalidPartitions { .. }
        | ControllerError::InvalidReplication { .. }
        | ControllerError::InvalidAssignment { .. }
        | ControllerError::InvalidNode { .. }
        | ControllerError::UnknownGroup { .. } => ErrorCode::InvalidRequest,
        ControllerError::LevelNotActive { .. } | ControllerError::LevelNotSupported { .. } => {
            ErrorCode::Unsupported
        }
        ControllerError::NotBootstrapped {} => ErrorCode::NoLeader,
        ControllerError::AlreadyBootstrapped {} | ControllerError::ForeignCluster { .. } => {
            ErrorCode::ClusterMismatch
        }
        ControllerError::InvalidUser { .. } | ControllerError::InvalidAcl { .. } => {
            ErrorCode::InvalidRequest
        }
        ControllerError::UserExists { .. } => ErrorCode::UserExists,
        ControllerError::UnknownUser { .. } => ErrorCode::UnknownUser,
        ControllerError::UnknownNode { .. } => ErrorCode::UnknownNode,
        ControllerError::NodeIdTaken { .. } => ErrorCode::NodeExists,
        ControllerError::NodeHoldsReplicas { .. }
        | ControllerError::TopicProtected { .. }
        | ControllerError::LastNode { .. }
        | ControllerError::LastCopies { .. } => ErrorCode::PolicyViolation,
        ControllerError::InvalidTopicName { .. } | ControllerError::TopicCollides { .. } => {
            ErrorCode::InvalidTopic
        }
        ControllerError::TopicExists { .. } => ErrorCode::TopicExists,
        ControllerError::UnknownTopic { .. } => ErrorCode::UnknownTopic,
        ControllerError::NotEnoughNodes { .. } => ErrorCode::NotEnoughNodes,
        ControllerError::UnknownConfig { .. } | ControllerError::InvalidConfig { .. } => {
            ErrorCode::InvalidConfig
        }
        ControllerError::StaleGeneration { .. } | ControllerError::NotSettled { .. } => {
            ErrorCode::Conflict
        }
        ControllerError::Exhausted { .. } | ControllerError::Other { .. } => ErrorCode::Internal,
    };
    Error::new(code, error.to_string())
}
