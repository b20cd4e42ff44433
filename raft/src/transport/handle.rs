//! The handle everyone else uses: calls, streams and the address book of one node.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::time::Instant;
use trilog_model::NodeId;

use super::book::AddressBook;
use super::peer::{Kind, PeerError, PeerHandler, Target};
use super::stats::TransportStats;
use super::stream::{StreamReceiver, StreamSender};

/// Which cluster a node belongs to. Checked on every link; nodes of another are refused.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub [u8; 16]);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What carries a [`Transport`]'s traffic.
pub(super) trait Carrier: Send + Sync + fmt::Debug {
    fn node(&self) -> NodeId;
    fn join_cluster(&self, cluster: ClusterId);
    fn register(&self, kinds: Range<u16>, handler: Arc<dyn PeerHandler>);
    fn call(
        &self,
        target: Target,
        payload: Vec<Bytes>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<Bytes, PeerError>>;
    fn introduce(
        &self,
        address: String,
        kind: Kind,
        payload: Vec<Bytes>,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<(NodeId, Bytes), PeerError>>;
    fn open_stream(
        &self,
        target: Target,
        deadline: Instant,
    ) -> BoxFuture<'_, Result<(StreamSender, StreamReceiver), PeerError>>;
    fn stats(&self) -> TransportStats;
    fn close(&self) -> BoxFuture<'_, ()>;
    fn abort(&self);
}

/// A node's links to its peers, over TCP or a simulated network; cheap to clone.
#[derive(Clone, Debug)]
pub struct Transport {
    carrier: Arc<dyn Carrier>,
    book: AddressBook,
}

impl Transport {
    pub(super) fn new(carrier: Arc<dyn Carrier>, book: AddressBook) -> Self {
        Self { carrier, book }
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.carrier.node()
    }

    /// Where the other nodes are; edits take effect at once.
    pub const fn book(&self) -> &AddressBook {
        &self.book
    }

    /// From now on this node belongs to a cluster: for one that started without.
    pub fn join_cluster(&self, cluster: ClusterId) {
        self.carrier.join_cluster(cluster);
    }

    /// Serves a range of kinds from now on. Kinds nobody serves are refused as
    /// [`Unserved`](super::Refusal::Unserved).
    pub fn register(&self, kinds: Range<u16>, handler: Arc<dyn PeerHandler>) {
        self.carrier.register(kinds, handler);
    }

    /// Calls a peer and waits for its answer, connecting first if need be.
    ///
    /// # Cancel safety
    /// Dropping the future forgets the call; the peer may still carry it out.
    pub async fn call(
        &self,
        target: Target,
        payload: Vec<Bytes>,
        timeout: Duration,
    ) -> Result<Bytes, PeerError> {
        let deadline = Instant::now() + timeout;
        self.carrier.call(target, payload, deadline).await
    }

    /// Calls whoever listens at an address, over a connection of its own: how a node without a
    /// cluster finds one. Returns who answered.
    pub async fn introduce(
        &self,
        address: impl Into<String>,
        kind: Kind,
        payload: Vec<Bytes>,
        timeout: Duration,
    ) -> Result<(NodeId, Bytes), PeerError> {
        let deadline = Instant::now() + timeout;
        self.carrier
            .introduce(address.into(), kind, payload, deadline)
            .await
    }

    /// Opens a stream to a peer, connecting first if need be. Does not wait for the peer to take
    /// it: a refusal arrives on the halves.
    pub async fn open_stream(
        &self,
        target: Target,
        timeout: Duration,
    ) -> Result<(StreamSender, StreamReceiver), PeerError> {
        let deadline = Instant::now() + timeout;
        self.carrier.open_stream(target, deadline).await
    }

    /// Counters since the start.
    pub fn stats(&self) -> TransportStats {
        self.carrier.stats()
    }

    /// Stops serving and calling, writes what is queued (bounded in time), closes every link.
    pub async fn close(&self) {
        self.carrier.close().await;
    }

    /// Drops every link at once, as a crash would.
    pub fn abort(&self) {
        self.carrier.abort();
    }
}
