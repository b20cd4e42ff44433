//! The vocabulary of peer traffic: lanes, kinds, targets, what a handler gets, how a call fails.

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::Instant;
use trilog_model::{GroupId, NodeId, ReplicaId};

use super::stream::{StreamReceiver, StreamSender};

/// A refusal says no more than this.
const MAX_REFUSAL_TEXT: usize = 512;

/// Which of the links to a peer carries a message. Order holds within a lane (for [`Lane::Append`]
/// within a group), never between lanes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// Votes, heartbeats and other small messages that must not queue behind payload.
    Control,
    /// Replication. Two links; a group always uses the same one.
    Append,
    /// Catch-up, segment copies, everything that may be slow.
    Bulk,
    /// Interest and live messages between nodes.
    Live,
}

/// What a call or a stream is about; each range belongs to the module that registered for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Kind(pub u16);

impl Kind {
    /// Kinds below this are introductions: all that a node without a cluster id may call.
    pub const FIRST_CLUSTERED: u16 = 16;
    /// The heartbeat hub's stream.
    pub const HEARTBEAT: Self = Self(16);
    /// The first kind of the Raft layer, which owns 32..64; the server owns those from 64.
    pub const FIRST_RAFT: u16 = 32;
    /// The first kind of the server's own.
    pub const FIRST_SERVER: u16 = 64;

    /// Whether a node that belongs to no cluster yet may call this.
    #[must_use]
    pub const fn is_introduction(self) -> bool {
        self.0 < Self::FIRST_CLUSTERED
    }
}

/// Which replicas a message passes between. Zero throughout for messages between whole nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Route {
    pub group: GroupId,
    pub from: ReplicaId,
    pub to: ReplicaId,
}

/// Where a call or a stream goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    pub node: NodeId,
    pub lane: Lane,
    pub kind: Kind,
    pub route: Route,
}

/// Serves what peers ask of this node.
pub trait PeerHandler: Send + Sync + 'static {
    /// Answers one call. Must not block; the future is polled once on the link's own task before
    /// it gets a task of its own.
    ///
    /// # Cancel safety
    /// The future is dropped at the call's deadline and when the link breaks: work that must
    /// finish belongs in a task of the handler's own.
    fn on_call(&self, call: PeerCall) -> BoxFuture<'static, Result<Vec<Bytes>, Refusal>>;

    /// Takes over a stream a peer opened. Must not block: it hands the stream to a task.
    fn on_stream(&self, stream: PeerStream);
}

/// A call from a peer.
#[derive(Clone, Debug)]
pub struct PeerCall {
    pub peer: NodeId,
    pub lane: Lane,
    pub kind: Kind,
    pub route: Route,
    pub payload: Bytes,
    /// When the caller stops waiting.
    pub deadline: Instant,
}

/// A stream a peer opened: its requests arrive in order at `receiver`, responses leave in order
/// through `sender`.
#[derive(Debug)]
pub struct PeerStream {
    pub peer: NodeId,
    pub lane: Lane,
    pub kind: Kind,
    pub route: Route,
    pub sender: StreamSender,
    pub receiver: StreamReceiver,
}

impl PeerStream {
    /// Ends the stream with a reason, which the peer gets as [`PeerError::Refused`].
    pub fn refuse(self, refusal: &Refusal) {
        self.receiver.refuse(refusal);
    }
}

/// Why a peer that was reached did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the node holds no such group")]
    UnknownGroup,
    #[error("the message names another replica than the one held")]
    WrongReplica,
    #[error("the node is busy")]
    Busy,
    #[error("nothing on the node serves this kind, or not yet")]
    Unserved,
    #[error("the node belongs to no cluster, or the caller does not")]
    Unclustered,
    #[error("the node is stopping")]
    Stopping,
    #[error("{0}")]
    Failed(String),
}

/// Why a call or a stream failed on this side.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Nothing was sent: there is no link, and none can be had now.
    #[error("node {node} is unreachable: {reason}")]
    Unreachable { node: NodeId, reason: String },
    /// The link broke. Whatever was in flight may or may not have been received.
    #[error("the link to node {node} broke: {reason}")]
    Broken { node: NodeId, reason: String },
    /// No answer in time. The call may or may not have been carried out.
    #[error("the call timed out")]
    Timeout,
    /// The peer was reached and declined.
    #[error("refused: {0}")]
    Refused(Refusal),
    #[error("a message of {len} bytes exceeds the limit of {max}")]
    TooLarge { len: usize, max: usize },
    /// This side, or the peer's receiver, closed the stream or the transport. A call in flight may
    /// or may not have been carried out.
    #[error("closed")]
    Closed,
}

impl Refusal {
    /// The code and text a refusal has on the wire. Codes are never reused; zero is none.
    pub(super) fn to_wire(&self) -> (u16, Bytes) {
        match self {
            Self::UnknownGroup => (1, Bytes::new()),
            Self::WrongReplica => (2, Bytes::new()),
            Self::Busy => (3, Bytes::new()),
            Self::Unserved => (4, Bytes::new()),
            Self::Unclustered => (5, Bytes::new()),
            Self::Stopping => (6, Bytes::new()),
            Self::Failed(text) => {
                let mut end = text.len().min(MAX_REFUSAL_TEXT);
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                (7, Bytes::copy_from_slice(&text.as_bytes()[..end]))
            }
        }
    }

    /// Reads a refusal; `None` for code zero.
    pub(super) fn from_wire(code: u16, text: &[u8]) -> Option<Self> {
        Some(match code {
            0 => return None,
            1 => Self::UnknownGroup,
            2 => Self::WrongReplica,
            3 => Self::Busy,
            4 => Self::Unserved,
            5 => Self::Unclustered,
            6 => Self::Stopping,
            7 => {
                let text = text.get(..MAX_REFUSAL_TEXT).unwrap_or(text);
                Self::Failed(String::from_utf8_lossy(text).into_owned())
            }
            newer => Self::Failed(format!("refusal code {newer} of a newer version")),
        })
    }
}
