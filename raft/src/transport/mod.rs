//! Links between nodes: calls and streams of all groups over a few framed connections per peer.
//!
//! Owns framing, handshake, credit, reconnecting, liveness. Knows groups and replicas only as
//! labels on messages and never looks into a payload. The same code runs over TCP and over the
//! simulated network, which differ only in how bytes travel.
//!
//! ```text
//!   call, open_stream ─> link of (peer, lane) ─> outbox => writer task => connection
//!   connection => reader task ─> handler | waiting call | queue of a stream
//! ```

mod book;
mod connector;
mod drive;
mod endpoint;
mod frame;
mod handle;
mod handshake;
pub mod heartbeat;
mod limits;
mod link;
mod net;
mod outbox;
mod peer;
mod reader;
mod registry;
mod service;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
mod stats;
mod stream;
mod tcp;
mod writer;

pub use book::AddressBook;
pub use endpoint::TransportConfig;
pub use frame::{COVERED, FrameDecoder, FrameError, FrameHeader, HEADER_LEN, Op};
pub use handle::{ClusterId, Transport};
pub use handshake::HandshakeError;
pub use limits::{Limits, Timings};
pub use peer::{Kind, Lane, PeerCall, PeerError, PeerHandler, PeerStream, Refusal, Route, Target};
pub use stats::TransportStats;
pub use stream::{Lease, StreamReceiver, StreamSender};

#[cfg(test)]
mod tests;
