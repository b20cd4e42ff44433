//! What goes wrong inside, as Kafka says it: every inner error has its code here.

use trilog_model::batch::BatchError;
use trilog_wire::kafka::ErrorCode;

use trilog_raft::controller::ControllerError;

use crate::cluster::{LookupError, ProposeError};
use crate::group::GroupError;
use crate::partition::{AppendError, ReadError, RecordFault};

/// Codes say too little of some refusals; what is said to people beside them.
pub(super) type Refusal = (ErrorCode, Option<String>);

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
        AppendError::TooLarge { .. } => ErrorCode::MessageTooLarge,
        AppendError::OutOfOrder { .. } => ErrorCode::OutOfOrderSequenceNumber,
        AppendError::Fenced { .. } => ErrorCode::InvalidProducerEpoch,
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

fn controller(error: &ControllerError) -> ErrorCode {
    match error {
        ControllerError::Malformed { .. }
        | ControllerError::InvalidNode { .. }
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

#[cfg(test)]
mod tests {
    use super::*;

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
