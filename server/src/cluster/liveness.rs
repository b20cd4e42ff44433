//! Which nodes are heard from. Groups that rest are the Raft layer's; here only nodes count.

use std::sync::Arc;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use trilog_model::{GroupId, NodeId};
use trilog_raft::transport::Transport;
use trilog_raft::transport::heartbeat::{
    Beat, BeatHandler, ClockOffset, HeartbeatConfig, HeartbeatHub, NodeLife, Vouch, WakeReason,
};
use trilog_storage::env::{Clock, Entropy};

/// The pulses of this node; cheap to clone.
#[derive(Clone, Debug)]
pub struct Liveness(HeartbeatHub);

impl Liveness {
    /// Starts pulses to every node of the transport's address book.
    #[must_use]
    pub fn start(transport: &Transport, clock: Arc<dyn Clock>, entropy: &Entropy) -> Self {
        let config = HeartbeatConfig::default();
        Self(HeartbeatHub::start(
            transport.clone(),
            config,
            clock,
            entropy,
            Arc::new(NodesOnly),
        ))
    }

    #[must_use]
    pub fn is_alive(&self, node: NodeId) -> bool {
        matches!(*self.0.node_alive(node).borrow(), NodeLife::Alive { .. })
    }

    /// How a node's wall clock differs from this one's, while it is heard.
    #[must_use]
    pub fn clock_offset(&self, node: NodeId) -> Option<ClockOffset> {
        self.0.clock_offset(node)
    }

    pub async fn stop(&self) {
        self.0.stop().await;
    }
}

/// No group's heartbeats travel with these pulses.
#[derive(Debug)]
struct NodesOnly;

impl BeatHandler for NodesOnly {
    fn on_beat(&self, _: Beat) -> BoxFuture<'static, Option<Bytes>> {
        async { None }.boxed()
    }

    fn on_vouch(&self, _: &Vouch) -> bool {
        false
    }

    fn on_wake(&self, _: GroupId, _: WakeReason) {}
}
