//! Which nodes are heard from. Groups that rest are the Raft layer's; here only nodes count.

use std::time::Duration;

use trilog_model::NodeId;
use trilog_raft::transport::heartbeat::{ClockOffset, HeartbeatHub, NodeLife};

/// The pulses of this node; cheap to clone.
#[derive(Clone, Debug)]
pub struct Liveness(HeartbeatHub);

impl Liveness {
    /// As the pulses of this node's groups tell.
    #[must_use]
    pub fn new(pulses: HeartbeatHub) -> Self {
        Self(pulses)
    }

    #[must_use]
    pub fn is_alive(&self, node: NodeId) -> bool {
        matches!(*self.0.node_alive(node).borrow(), NodeLife::Alive { .. })
    }

    /// Whether a node was heard in so much of the time that this one has run, be it dead by now.
    #[must_use]
    pub fn heard_within(&self, node: NodeId, time: Duration) -> bool {
        self.0.heard_within(node, time)
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
