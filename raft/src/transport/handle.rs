//! The handle everyone else uses: calls, streams and the address book of one node.

use std::fmt;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::broadcast;
use tokio::time::Instant;
use trilog_model::NodeId;
use trilog_storage::env::Entropy;

use super::book::AddressBook;
use super::endpoint::{Endpoint, TransportConfig};
use super::net::Net;
use super::peer::{Kind, PeerError, PeerHandler, Target};
use super::stats::TransportStats;
use super::stream::{StreamReceiver, StreamSender};
use super::tcp::TcpNet;

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

/// A node's links to its peers, over TCP or a simulated network; cheap to clone.
#[derive(Clone, Debug)]
pub struct Transport {
    endpoint: Arc<Endpoint>,
}

impl Transport {
    /// Listens for peers at `address` (port 0 takes a free one) and connects over TCP.
    ///
    /// The transport's tasks live until [`Transport::close`] or [`Transport::abort`].
    pub async fn tcp(config: TransportConfig, address: &str, entropy: Entropy) -> io::Result<Self> {
        let net = TcpNet::bind(address).await?;
        Ok(Self::over(config, Box::new(net), entropy))
    }

    pub(super) fn over(config: TransportConfig, net: Box<dyn Net>, entropy: Entropy) -> Self {
        Self {
            endpoint: Endpoint::start(config, net, entropy),
        }
    }

    #[cfg(any(test, feature = "sim"))]
    pub(super) fn endpoint(&self) -> std::sync::Weak<Endpoint> {
        Arc::downgrade(&self.endpoint)
    }

    /// Where this node listens.
    pub fn address(&self) -> String {
        self.endpoint.net.address()
    }

    /// This node.
    pub fn node(&self) -> NodeId {
        self.endpoint.identity().node
    }

    /// Where the other nodes are; edits take effect at once.
    pub fn book(&self) -> &AddressBook {
        &self.endpoint.book
    }

    /// Nodes whose process ended, from now on: nobody listens where one did, and no link from
    /// there is open. A node that is cut off, or whose machine stopped, is not among them. Whoever
    /// lags misses some.
    pub(crate) fn lost_nodes(&self) -> broadcast::Receiver<NodeId> {
        self.endpoint.lost_nodes()
    }

    /// From now on this node belongs to a cluster: for one that started without.
    pub fn join_cluster(&self, cluster: ClusterId) {
        self.endpoint.join_cluster(cluster);
    }

    /// Serves a range of kinds from now on. Kinds nobody serves are refused as
    /// [`Unserved`](super::Refusal::Unserved).
    pub fn register(&self, kinds: Range<u16>, handler: Arc<dyn PeerHandler>) {
        self.endpoint.register(kinds, handler);
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
        self.endpoint.call(target, payload, deadline).await
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
        self.endpoint
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
        self.endpoint.open_stream(target, deadline).await
    }

    /// Counters since the start.
    pub fn stats(&self) -> TransportStats {
        self.endpoint.counters.snapshot()
    }

    /// Stops serving and calling, writes what is queued (bounded in time), closes every link.
    pub async fn close(&self) {
        self.endpoint.close().await;
    }

    /// Drops every link at once, as a crash would.
    pub fn abort(&self) {
        self.endpoint.end();
    }
}
