//! The handshake: both sides say who they are before anything else passes.
//!
//! The initiator sends a greeting, the acceptor answers with one of the same form; either then
//! closes or keeps the link. Greetings have a fixed size, so a stranger costs a few dozen bytes.
//!
//! ```text
//!   0 magic u32             4 oldest version u16      6 newest version u16
//!   8 cluster [u8; 16], zero for none
//!  24 from node u32        28 to node u32, zero for whoever listens
//!  32 boot u64             40 lane, or verdict, u8   41 flags u8   42 reserved u16
//!  44 largest payload u32  48 stream window u32      52 link window u32
//!  56 streams u32          60 calls u32
//!  64 reserved             76 CRC-32C of bytes 0..76
//! ```

use bytes::{Buf, BufMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use trilog_model::NodeId;

use super::handle::ClusterId;
use super::limits::Limits;

/// Bytes of a greeting.
pub(super) const GREETING_LEN: usize = 80;
/// The version of everything that follows the handshake: newest spoken, and oldest.
pub(super) const VERSION: u16 = 1;
const OLDEST_VERSION: u16 = 1;

const HELLO: u32 = u32::from_le_bytes(*b"TLPH");
const WELCOME: u32 = u32::from_le_bytes(*b"TLPW");
const CRC_AT: usize = 76;
const FLAG_INTRODUCTION: u8 = 1;
/// How many links there are to a peer: control, two of append, bulk, live.
pub(super) const LINKS: u8 = 5;

/// Who a node is, as it says in greetings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) node: NodeId,
    pub(super) cluster: Option<ClusterId>,
    /// Drawn anew at each start.
    pub(super) boot: u64,
    pub(super) limits: Limits,
}

/// What one side says first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Greeting {
    pub(super) oldest: u16,
    pub(super) newest: u16,
    pub(super) from: Identity,
    /// Whom the sender believes to reach; zero for whoever listens.
    pub(super) to: NodeId,
    /// Which of the links to a peer this is; in an answer, the verdict.
    pub(super) lane: u8,
    /// A single call outside any cluster's links, restricted to introductions.
    pub(super) introduction: bool,
}

impl Greeting {
    /// A greeting to `to`.
    #[must_use]
    pub(super) const fn new(from: Identity, to: NodeId, lane: u8, introduction: bool) -> Self {
        Self {
            oldest: OLDEST_VERSION,
            newest: VERSION,
            from,
            to,
            lane,
            introduction,
        }
    }

    fn encode(&self, magic: u32) -> [u8; GREETING_LEN] {
        let mut out = [0; GREETING_LEN];
        let mut buf = &mut out[..];
        let limits = &self.from.limits;
        buf.put_u32_le(magic);
        buf.put_u16_le(self.oldest);
        buf.put_u16_le(self.newest);
        buf.put_slice(&self.from.cluster.map_or([0; 16], |cluster| cluster.0));
        buf.put_u32_le(self.from.node.get());
        buf.put_u32_le(self.to.get());
        buf.put_u64_le(self.from.boot);
        buf.put_u8(self.lane);
        buf.put_u8(if self.introduction {
            FLAG_INTRODUCTION
        } else {
            0
        });
        buf.put_u16_le(0);
        buf.put_u32_le(limits.max_payload);
        buf.put_u32_le(limits.stream_window);
        buf.put_u32_le(limits.link_window);
        buf.put_u32_le(limits.max_streams);
        buf.put_u32_le(limits.max_calls);
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    fn decode(bytes: &[u8; GREETING_LEN], magic: u32) -> Result<Self, HandshakeError> {
        let mut buf = &bytes[..];
        if buf.get_u32_le() != magic {
            return Err(HandshakeError::NotAPeer);
        }
        if crc32c::crc32c(&bytes[..CRC_AT]) != (&bytes[CRC_AT..]).get_u32_le() {
            return Err(HandshakeError::Damaged);
        }
        let oldest = buf.get_u16_le();
        let newest = buf.get_u16_le();
        let mut cluster = [0; 16];
        buf.copy_to_slice(&mut cluster);
        let node = NodeId(buf.get_u32_le());
        let to = NodeId(buf.get_u32_le());
        let boot = buf.get_u64_le();
        let lane = buf.get_u8();
        let flags = buf.get_u8();
        buf.advance(2);
        Ok(Self {
            oldest,
            newest,
            from: Identity {
                node,
                cluster: (cluster != [0; 16]).then_some(ClusterId(cluster)),
                boot,
                limits: Limits {
                    max_payload: buf.get_u32_le(),
                    stream_window: buf.get_u32_le(),
                    link_window: buf.get_u32_le(),
                    max_streams: buf.get_u32_le(),
                    max_calls: buf.get_u32_le(),
                },
            },
            to,
            lane,
            introduction: flags & FLAG_INTRODUCTION != 0,
        })
    }

    /// Whether the one who got this greeting may keep the link.
    fn judge(&self, us: &Identity) -> Result<(), HandshakeError> {
        if self.oldest > VERSION || self.newest < OLDEST_VERSION {
            return Err(HandshakeError::Version {
                oldest: self.oldest,
                newest: self.newest,
            });
        }
        if let (Some(ours), Some(theirs)) = (us.cluster, self.from.cluster)
            && ours != theirs
        {
            return Err(HandshakeError::ForeignCluster { ours, theirs });
        }
        if !self.introduction && (us.cluster.is_none() || self.from.cluster.is_none()) {
            return Err(HandshakeError::Unclustered);
        }
        if self.to != NodeId(0) && self.to != us.node {
            return Err(HandshakeError::WrongNode {
                wanted: self.to,
                found: us.node,
            });
        }
        if self.from.node == us.node {
            return Err(HandshakeError::SameNode(us.node));
        }
        if !self.from.limits.is_sound() {
            return Err(HandshakeError::Limits);
        }
        Ok(())
    }
}

/// The initiator's side: greets, and returns who answered.
pub(super) async fn initiate<S>(
    conn: &mut S,
    greeting: &Greeting,
) -> Result<Identity, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    conn.write_all(&greeting.encode(HELLO)).await?;
    conn.flush().await?;
    let mut bytes = [0; GREETING_LEN];
    conn.read_exact(&mut bytes).await?;
    let answer = Greeting::decode(&bytes, WELCOME)?;
    if answer.lane != 0 {
        return Err(HandshakeError::from_verdict(&answer, greeting));
    }
    answer.judge(&greeting.from)?;
    if greeting.to != NodeId(0) && answer.from.node != greeting.to {
        return Err(HandshakeError::WrongNode {
            wanted: greeting.to,
            found: answer.from.node,
        });
    }
    Ok(answer.from)
}

/// The acceptor's side: hears a greeting and answers it; `admit` may refuse further.
pub(super) async fn accept<S>(
    conn: &mut S,
    us: &Identity,
    admit: impl FnOnce(&Greeting) -> Result<(), HandshakeError>,
) -> Result<Greeting, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut bytes = [0; GREETING_LEN];
    // The magic alone first: whoever is not a peer gets no answer, and is not waited for.
    conn.read_exact(&mut bytes[..4]).await?;
    if bytes[..4] != HELLO.to_le_bytes() {
        return Err(HandshakeError::NotAPeer);
    }
    conn.read_exact(&mut bytes[4..]).await?;
    let greeting = Greeting::decode(&bytes, HELLO)?;
    let lane_known = if greeting.lane < LINKS {
        Ok(())
    } else {
        Err(HandshakeError::Lane(greeting.lane))
    };
    let verdict = lane_known
        .and_then(|()| greeting.judge(us))
        .and_then(|()| admit(&greeting));
    let code = verdict.as_ref().map_or_else(HandshakeError::code, |()| 0);
    let answer = Greeting::new(*us, greeting.from.node, code, greeting.introduction);
    conn.write_all(&answer.encode(WELCOME)).await?;
    conn.flush().await?;
    verdict.map(|()| greeting)
}

/// Why two nodes do not talk.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    #[error("whoever is there does not speak the peer protocol")]
    NotAPeer,
    #[error("the greeting is damaged")]
    Damaged,
    #[error(
        "the peer speaks protocol versions {oldest} to {newest}, this node {OLDEST_VERSION} to {VERSION}"
    )]
    Version { oldest: u16, newest: u16 },
    #[error("the peer belongs to cluster {theirs}, this node to {ours}")]
    ForeignCluster { ours: ClusterId, theirs: ClusterId },
    #[error("node {found} answers where node {wanted} was expected")]
    WrongNode { wanted: NodeId, found: NodeId },
    #[error("the peer also calls itself node {0}")]
    SameNode(NodeId),
    #[error("lane {0} is unknown")]
    Lane(u8),
    #[error("one of the two belongs to no cluster yet")]
    Unclustered,
    #[error("the peer's limits cannot work")]
    Limits,
    #[error("the peer is stopping")]
    Stopping,
    #[error("the peer has too many connections")]
    Crowded,
    #[error("the peer refused with verdict {0} of a newer version")]
    Other(u8),
    #[error("no handshake in time")]
    Deadline,
    #[error("the connection failed in the handshake: {0}")]
    Io(#[from] std::io::Error),
}

impl HandshakeError {
    /// The verdict on the wire; never reused.
    fn code(&self) -> u8 {
        match self {
            Self::NotAPeer | Self::Damaged | Self::Deadline | Self::Io(_) => 255,
            Self::Version { .. } => 1,
            Self::ForeignCluster { .. } => 2,
            Self::WrongNode { .. } => 3,
            Self::SameNode(_) => 4,
            Self::Lane(_) => 5,
            Self::Unclustered => 6,
            Self::Limits => 7,
            Self::Stopping => 8,
            Self::Crowded => 9,
            Self::Other(code) => *code,
        }
    }

    /// The acceptor's verdict as the initiator reports it.
    fn from_verdict(answer: &Greeting, sent: &Greeting) -> Self {
        match (answer.lane, sent.from.cluster, answer.from.cluster) {
            (1, ..) => Self::Version {
                oldest: answer.oldest,
                newest: answer.newest,
            },
            (2, Some(ours), Some(theirs)) => Self::ForeignCluster { ours, theirs },
            (3, ..) => Self::WrongNode {
                wanted: sent.to,
                found: answer.from.node,
            },
            (4, ..) => Self::SameNode(sent.from.node),
            (5, ..) => Self::Lane(sent.lane),
            (6, ..) => Self::Unclustered,
            (7, ..) => Self::Limits,
            (8, ..) => Self::Stopping,
            (9, ..) => Self::Crowded,
            (code, ..) => Self::Other(code),
        }
    }
}

#[cfg(test)]
mod tests;
