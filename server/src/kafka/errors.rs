//! What goes wrong inside, as Kafka says it: every inner error has its code here.

use trilog_model::batch::BatchError;
use trilog_wire::kafka::ErrorCode;

use trilog_raft::controller::ControllerError;

use crate::cluster::{LookupError, ProposeError, ReassignError};
use crate::group::GroupError;
use crate::partition::{AppendError, ReadError, RecordFault};
use crate::transaction::TransactionError;

/// Codes say too little of some refusals; what is said to people beside them.
pub(super) type Refusal = (ErrorCode, Option<String>);

/// The first version of Produce that knows of transactions that are to be given up.
const ABORTABLE_SINCE: i16 = 11;

pub(super) fn append(error: &AppendError) -> Refusal {
    let code = match error {
        AppendError::NotLeader { .. } | AppendError::Closed => ErrorCode::NotLeaderOrFollower,
        // It may yet be committed: a producer that tries again must be idempotent to be sure.
        AppendError::Unknown => ErrorCode::RequestTimedOut,
        AppendError::Invalid(error) => batch(*error),
        AppendError::Records(bad) => match bad.fault {
            RecordFault::NoKey => ErrorCode::InvalidRecord,
            RecordFault::Time => ErrorCode::InvalidTimestamp,
        },
        AppendError::TooLarge { .. } | AppendError::TooMany { .. } => ErrorCode::MessageTooLarge,
        AppendError::OutOfOrder { .. } => ErrorCode::OutOfOrderSequenceNumber,
        AppendError::Fenced { .. } => ErrorCode::InvalidProducerEpoch,
        AppendError::NotInTransaction | AppendError::InTransaction => ErrorCode::InvalidTxnState,
        AppendError::StaleCoordinator => ErrorCode::TransactionCoordinatorFenced,
        AppendError::OffsetMismatch { .. } => ErrorCode::InvalidRequest,
        AppendError::Busy(_) | AppendError::DiskFull => ErrorCode::KafkaStorageError,
        // As a broker says of its own topics.
        AppendError::Internal => ErrorCode::InvalidTopicException,
    };
    (code, Some(error.to_string()))
}

pub(super) fn batch(error: BatchError) -> ErrorCode {
    match error {
        BatchError::Crc | BatchError::Incomplete | BatchError::Length(_) | BatchError::Records => {
            ErrorCode::CorruptMessage
        }
        BatchError::AppendTime => ErrorCode::InvalidTimestamp,
        BatchError::Codec(_) => ErrorCode::UnsupportedCompressionType,
        BatchError::Magic(_)
        | BatchError::Trailing(_)
        | BatchError::BaseOffset(_)
        | BatchError::Empty(_)
        | BatchError::Count { .. }
        | BatchError::Control
        | BatchError::Sequence(_) => ErrorCode::InvalidRecord,
    }
}

pub(super) fn read(error: &ReadError) -> ErrorCode {
    match error {
        ReadError::NotLeader { .. } => ErrorCode::NotLeaderOrFollower,
        ReadError::OutOfRange { .. } => ErrorCode::OffsetOutOfRange,
        // Another replica may serve it: its client looks for the leader again.
        ReadError::Damaged(_) | ReadError::Unavailable(_) => ErrorCode::KafkaStorageError,
    }
}

pub(super) fn lookup(error: &LookupError) -> ErrorCode {
    match error {
        LookupError::UnknownTopic(_)
        | LookupError::UnknownPartition { .. }
        | LookupError::Replaced(_) => ErrorCode::UnknownTopicOrPartition,
        LookupError::Elsewhere { .. } => ErrorCode::NotLeaderOrFollower,
        LookupError::Doubtful(_) => ErrorCode::LeaderNotAvailable,
    }
}

pub(super) fn propose(error: &ProposeError) -> Refusal {
    let code = match error {
        ProposeError::Refused(refusal) => controller(refusal),
        ProposeError::NoLeader => ErrorCode::NotController,
        ProposeError::Unknown => ErrorCode::RequestTimedOut,
    };
    (code, Some(error.to_string()))
}

/// The refusal of a change that says which nodes are to hold replicas: one that is not there
/// makes an assignment wrong.
pub(super) fn assignment(refusal: Refusal) -> Refusal {
    match refusal {
        (ErrorCode::BrokerIdNotRegistered, text) => (ErrorCode::InvalidReplicaAssignment, text),
        refusal => refusal,
    }
}

pub(super) fn reassign(error: &ReassignError) -> Refusal {
    let code = match error {
        ReassignError::Lookup(error) => lookup(error),
        ReassignError::NotInProgress => ErrorCode::NoReassignmentInProgress,
        ReassignError::Replication { .. } => ErrorCode::InvalidReplicationFactor,
        ReassignError::Level { .. } => ErrorCode::UnsupportedVersion,
        ReassignError::Propose(error) => return assignment(propose(error)),
    };
    (code, Some(error.to_string()))
}

fn controller(error: &ControllerError) -> ErrorCode {
    match error {
        ControllerError::Malformed { .. }
        | ControllerError::InvalidNode { .. }
        | ControllerError::InvalidAcl { .. }
        | ControllerError::UnknownGroup { .. } => ErrorCode::InvalidRequest,
        ControllerError::LevelNotActive { .. } | ControllerError::LevelNotSupported { .. } => {
            ErrorCode::UnsupportedVersion
        }
        ControllerError::NotBootstrapped {}
        | ControllerError::AlreadyBootstrapped {}
        | ControllerError::ForeignCluster { .. } => ErrorCode::NotController,
        ControllerError::UnknownNode { .. } => ErrorCode::BrokerIdNotRegistered,
        ControllerError::NodeIdTaken { .. } => ErrorCode::DuplicateBrokerRegistration,
        ControllerError::NodeHoldsReplicas { .. }
        | ControllerError::TopicProtected { .. }
        | ControllerError::LastNode { .. }
        | ControllerError::LastCopies { .. } => ErrorCode::PolicyViolation,
        ControllerError::InvalidTopicName { .. } | ControllerError::TopicCollides { .. } => {
            ErrorCode::InvalidTopicException
        }
        ControllerError::TopicExists { .. } => ErrorCode::TopicAlreadyExists,
        ControllerError::UnknownTopic { .. } => ErrorCode::UnknownTopicOrPartition,
        ControllerError::InvalidPartitions { .. } => ErrorCode::InvalidPartitions,
        ControllerError::InvalidReplication { .. } | ControllerError::NotEnoughNodes { .. } => {
            ErrorCode::InvalidReplicationFactor
        }
        ControllerError::InvalidAssignment { .. } => ErrorCode::InvalidReplicaAssignment,
        ControllerError::UnknownConfig { .. } | ControllerError::InvalidConfig { .. } => {
            ErrorCode::InvalidConfig
        }
        ControllerError::StaleGeneration { .. } | ControllerError::NotSettled { .. } => {
            ErrorCode::InvalidUpdateVersion
        }
        ControllerError::InvalidUser { .. } => ErrorCode::UnacceptableCredential,
        ControllerError::UserExists { .. } => ErrorCode::DuplicateResource,
        ControllerError::UnknownUser { .. } => ErrorCode::ResourceNotFound,
        ControllerError::Exhausted { .. } | ControllerError::Other { .. } => {
            ErrorCode::UnknownServerError
        }
    }
}

pub(super) fn group(error: &GroupError) -> ErrorCode {
    match error {
        GroupError::NotCoordinator { .. } => ErrorCode::NotCoordinator,
        GroupError::Loading => ErrorCode::CoordinatorLoadInProgress,
        GroupError::Unavailable(_) => ErrorCode::CoordinatorNotAvailable,
        GroupError::Unknown => ErrorCode::RequestTimedOut,
        GroupError::InvalidGroupId => ErrorCode::InvalidGroupId,
        GroupError::InvalidRequest(_) => ErrorCode::InvalidRequest,
        GroupError::UnknownMember => ErrorCode::UnknownMemberId,
        GroupError::IllegalGeneration => ErrorCode::IllegalGeneration,
        GroupError::InconsistentProtocol => ErrorCode::InconsistentGroupProtocol,
        GroupError::InvalidSessionTimeout => ErrorCode::InvalidSessionTimeout,
        GroupError::RebalanceInProgress => ErrorCode::RebalanceInProgress,
        GroupError::MemberIdRequired { .. } => ErrorCode::MemberIdRequired,
        GroupError::FencedInstance => ErrorCode::FencedInstanceId,
        GroupError::GroupFull => ErrorCode::GroupMaxSizeReached,
        GroupError::NotEmpty => ErrorCode::NonEmptyGroup,
        GroupError::UnknownGroup => ErrorCode::GroupIdNotFound,
        GroupError::MetadataTooLarge => ErrorCode::OffsetMetadataTooLarge,
        GroupError::CommitTooLarge => ErrorCode::InvalidCommitOffsetSize,
        GroupError::AssignmentTooLarge => ErrorCode::UnknownServerError,
        GroupError::SubscribedToTopic => ErrorCode::GroupSubscribedToTopic,
        GroupError::Unstable => ErrorCode::UnstableOffsetCommit,
        GroupError::UnknownTopic => ErrorCode::UnknownTopicOrPartition,
        GroupError::ProducerFenced => ErrorCode::InvalidProducerEpoch,
        GroupError::FencedEpoch => ErrorCode::FencedMemberEpoch,
        GroupError::StaleEpoch => ErrorCode::StaleMemberEpoch,
        GroupError::UnreleasedInstance => ErrorCode::UnreleasedInstanceId,
        GroupError::UnsupportedAssignor => ErrorCode::UnsupportedAssignor,
        GroupError::InvalidRegex => ErrorCode::InvalidRegularExpression,
        GroupError::LevelTooLow => ErrorCode::UnsupportedVersion,
    }
}

/// As [`group`], to a member that joins or syncs: it may do so again whatever became of it, and
/// clients do not expect a time-out there.
pub(super) fn membership(error: &GroupError) -> ErrorCode {
    match group(error) {
        ErrorCode::RequestTimedOut => ErrorCode::CoordinatorNotAvailable,
        code => code,
    }
}

pub(super) fn transaction(error: &TransactionError) -> ErrorCode {
    match error {
        TransactionError::NotCoordinator { .. } => ErrorCode::NotCoordinator,
        TransactionError::Loading => ErrorCode::CoordinatorLoadInProgress,
        // Each step may be asked for again, so an unknown outcome is no harm.
        TransactionError::Unavailable(_) | TransactionError::Unknown => {
            ErrorCode::CoordinatorNotAvailable
        }
        TransactionError::InvalidId | TransactionError::TooManyPartitions => {
            ErrorCode::InvalidRequest
        }
        TransactionError::InvalidTimeout => ErrorCode::InvalidTransactionTimeout,
        TransactionError::UnknownProducer => ErrorCode::InvalidProducerIdMapping,
        TransactionError::Fenced => ErrorCode::ProducerFenced,
        TransactionError::Concurrent => ErrorCode::ConcurrentTransactions,
        TransactionError::InvalidState => ErrorCode::InvalidTxnState,
        TransactionError::UnknownId => ErrorCode::TransactionalIdNotFound,
        TransactionError::TooManyIds => ErrorCode::PolicyViolation,
    }
}

/// As [`transaction`], to clients of a version that may not know that a producer can be fenced.
pub(super) fn transaction_since(error: &TransactionError, version: i16, since: i16) -> ErrorCode {
    match transaction(error) {
        ErrorCode::ProducerFenced if version < since => ErrorCode::InvalidProducerEpoch,
        code => code,
    }
}

/// Why a batch was not shown to be in its transaction, in codes that all versions of Produce know:
/// what may pass is one after which every client tries the same again.
pub(super) fn not_shown(error: &TransactionError) -> Refusal {
    let code = match transaction(error) {
        ErrorCode::NotCoordinator
        | ErrorCode::CoordinatorLoadInProgress
        | ErrorCode::CoordinatorNotAvailable
        | ErrorCode::ConcurrentTransactions => ErrorCode::NotEnoughReplicas,
        ErrorCode::ProducerFenced => ErrorCode::InvalidProducerEpoch,
        code => code,
    };
    (code, Some(error.to_string()))
}

/// As [`not_shown`], in a version of Produce: those since 11 have a word for what can be put right by
/// giving up the transaction, as at a broker; before, their producer had to be given up.
pub(super) fn not_shown_in(error: &TransactionError, version: i16) -> Refusal {
    match not_shown(error) {
        (ErrorCode::InvalidTxnState, text) if version >= ABORTABLE_SINCE => {
            (ErrorCode::TransactionAbortable, text)
        }
        refusal => refusal,
    }
}

/// As [`not_shown`], of offsets.
pub(super) fn not_shown_offsets(error: &TransactionError) -> ErrorCode {
    match not_shown(error).0 {
        ErrorCode::NotEnoughReplicas => ErrorCode::CoordinatorLoadInProgress,
        code => code,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_coordinator_of_transactions_says_is_what_a_broker_would() {
        // In general, to a client that knows no fencing, to a produce, to a commit of offsets.
        let rows = [
            (
                TransactionError::NotCoordinator { node: None },
                [16, 16, 19, 14],
            ),
            (TransactionError::Loading, [14, 14, 19, 14]),
            (TransactionError::Unavailable(""), [15, 15, 19, 14]),
            (TransactionError::Unknown, [15, 15, 19, 14]),
            (TransactionError::InvalidId, [42, 42, 42, 42]),
            (TransactionError::InvalidTimeout, [50, 50, 50, 50]),
            (TransactionError::UnknownProducer, [49, 49, 49, 49]),
            (TransactionError::Fenced, [90, 47, 47, 47]),
            (TransactionError::Concurrent, [51, 51, 19, 14]),
            (TransactionError::InvalidState, [48, 48, 48, 48]),
            (TransactionError::TooManyPartitions, [42, 42, 42, 42]),
            (TransactionError::UnknownId, [105, 105, 105, 105]),
            (TransactionError::TooManyIds, [44, 44, 44, 44]),
        ];
        for (error, codes) in rows {
            let told = [
                transaction(&error),
                transaction_since(&error, 1, 2),
                not_shown(&error).0,
                not_shown_offsets(&error),
            ];
            assert_eq!(told.map(|code| code.code()), codes, "{error:?}");
            assert_eq!(not_shown_in(&error, 10), not_shown(&error));
            let abortable = if codes[2] == 48 { 120 } else { codes[2] };
            assert_eq!(not_shown_in(&error, 11).0.code(), abortable, "{error:?}");
            assert_eq!(transaction_since(&error, 2, 2), transaction(&error));
        }
    }

    #[test]
    fn why_a_partition_is_not_moved_is_said_as_a_controller_would() {
        let refused = |error| ReassignError::Propose(ProposeError::Refused(error));
        let unknown = LookupError::UnknownTopic(String::new());
        let rows = [
            (ReassignError::Lookup(unknown), 3),
            (ReassignError::NotInProgress, 85),
            (ReassignError::Replication { from: 3, to: 2 }, 38),
            (ReassignError::Level { active: 3 }, 35),
            (ReassignError::Propose(ProposeError::NoLeader), 41),
            (ReassignError::Propose(ProposeError::Unknown), 7),
            (
                refused(ControllerError::UnknownNode {
                    node: trilog_model::NodeId(9),
                }),
                39,
            ),
            (
                refused(ControllerError::InvalidAssignment {
                    reason: String::new(),
                }),
                39,
            ),
            (
                refused(ControllerError::StaleGeneration {
                    group: 2,
                    given: 1,
                    current: 2,
                }),
                95,
            ),
        ];
        for (error, code) in rows {
            assert_eq!(reassign(&error).0.code(), code, "{error:?}");
        }
    }

    #[test]
    fn what_a_coordinator_says_is_what_a_broker_would() {
        let rows = [
            (GroupError::NotCoordinator { node: None }, 16),
            (GroupError::Loading, 14),
            (GroupError::Unavailable(""), 15),
            (GroupError::Unknown, 7),
            (GroupError::InvalidGroupId, 24),
            (GroupError::InvalidRequest(""), 42),
            (GroupError::UnknownMember, 25),
            (GroupError::IllegalGeneration, 22),
            (GroupError::InconsistentProtocol, 23),
            (GroupError::InvalidSessionTimeout, 26),
            (GroupError::RebalanceInProgress, 27),
            (
                GroupError::MemberIdRequired {
                    member: String::new(),
                },
                79,
            ),
            (GroupError::FencedInstance, 82),
            (GroupError::GroupFull, 81),
            (GroupError::NotEmpty, 68),
            (GroupError::UnknownGroup, 69),
            (GroupError::MetadataTooLarge, 12),
            (GroupError::CommitTooLarge, 28),
            (GroupError::AssignmentTooLarge, -1),
            (GroupError::SubscribedToTopic, 86),
            (GroupError::Unstable, 88),
            (GroupError::UnknownTopic, 3),
            (GroupError::ProducerFenced, 47),
            (GroupError::FencedEpoch, 110),
            (GroupError::StaleEpoch, 113),
            (GroupError::UnreleasedInstance, 111),
            (GroupError::UnsupportedAssignor, 112),
            (GroupError::InvalidRegex, 128),
            (GroupError::LevelTooLow, 35),
        ];
        for (error, code) in rows {
            assert_eq!(group(&error).code(), code, "{error:?}");
            let to_member = if code == 7 { 15 } else { code };
            assert_eq!(membership(&error).code(), to_member, "{error:?}");
        }
    }
}
