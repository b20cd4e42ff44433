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

#![allow(dead_code, reason = "what carries the traffic lands next")]

mod book;
mod frame;
mod handle;
mod limits;
mod link;
mod outbox;
mod peer;
mod registry;
mod stats;
mod stream;

pub use book::AddressBook;
pub use frame::{COVERED, FrameDecoder, FrameError, FrameHeader, HEADER_LEN, Op};
pub use handle::{ClusterId, Transport};
pub use limits::{Limits, Timings};
pub use peer::{Kind, Lane, PeerCall, PeerError, PeerHandler, PeerStream, Refusal, Route, Target};
pub use stats::TransportStats;
pub use stream::{Lease, StreamReceiver, StreamSender};
