//! What a coordinator answers when it does not do what it was asked, one row per code that a
//! dialect has for it.

use trilog_model::NodeId;

use crate::cluster::NotLed;

/// See the module's text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    #[error("this node does not coordinate the group")]
    NotCoordinator { node: Option<NodeId> },
    #[error("the coordinator is about to take over; try again")]
    Loading,
    /// Nothing was changed; try again later.
    #[error("the group has no coordinator that could do this now: {0}")]
    Unavailable(&'static str),
    /// It may yet be done.
    #[error("the outcome is unknown: the coordinator moved or no majority answered in time")]
    Unknown,
    #[error("the group id is invalid")]
    InvalidGroupId,
    #[error("the request is invalid: {0}")]
    InvalidRequest(&'static str),
    #[error("the group does not know the member")]
    UnknownMember,
    #[error("the generation is not the group's present one")]
    IllegalGeneration,
    #[error("the group's members do not share the protocol")]
    InconsistentProtocol,
    #[error("the session timeout is out of bounds")]
    InvalidSessionTimeout,
    #[error("the group is rebalancing")]
    RebalanceInProgress,
    /// The member is to join again under this id, which is kept for it.
    #[error("the member is to join under the id it was given")]
    MemberIdRequired { member: String },
    #[error("another member has taken over the instance id")]
    FencedInstance,
    #[error("the group has as many members as it may")]
    GroupFull,
    #[error("the group is not empty")]
    NotEmpty,
    #[error("there is no such group")]
    UnknownGroup,
    #[error("the offset's metadata is too long")]
    MetadataTooLarge,
    #[error("the commit is too large")]
    CommitTooLarge,
    #[error("the assignment is too large")]
    AssignmentTooLarge,
    #[error("a member of the group subscribes to the topic")]
    SubscribedToTopic,
    #[error("a transaction that is open may change the offset")]
    Unstable,
    #[error("there is no such topic or partition")]
    UnknownTopic,
    #[error("a newer incarnation of the producer has written")]
    ProducerFenced,
    /// The consumer is to give up everything and join again.
    #[error("the member epoch is not the member's present one")]
    FencedEpoch,
    #[error("the member epoch of the request is not the member's present one")]
    StaleEpoch,
    #[error("another member still bears the instance id")]
    UnreleasedInstance,
    #[error("the coordinator has no such assignor")]
    UnsupportedAssignor,
    #[error("the regular expression is invalid")]
    InvalidRegex,
    /// Not all nodes can follow yet.
    #[error("the cluster's feature level is too low: trilog cluster upgrade raises it")]
    LevelTooLow,
}

impl From<NotLed> for GroupError {
    fn from(not_led: NotLed) -> Self {
        match not_led {
            NotLed::Here { leader } => Self::NotCoordinator { node: leader },
            NotLed::Yet => Self::Loading,
        }
    }
}
