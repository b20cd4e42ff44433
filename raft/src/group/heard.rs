//! Whether a leader that was not heard may be called silent.
//!
//! Its messages may be late for reasons that are no fault of its: a node whose processor or disk is
//! busy is slow to send them, to take them in and to get round to them. The pulses between nodes
//! need next to nothing of either, and who counts them does so by the time that its own process has
//! run. So as long as the leader's process is heard, its replicas stand for no election and grant
//! none, within bounds: a replica may fail while its node lives.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use trilog_model::ReplicaId;

use super::Status;
use crate::transport::heartbeat::{HeartbeatHub, RunClock, RunTime};

/// What a replica knows of its leader's messages.
#[derive(Debug)]
pub(crate) struct Heard {
    status: Arc<Status>,
    hub: HeartbeatHub,
    clock: RunClock,
    /// When the last message of a leader was taken, if any was since the replica was opened.
    last: Mutex<Option<RunTime>>,
    /// How long a leader is excused.
    patience: Duration,
}

impl Heard {
    pub(crate) fn new(status: Arc<Status>, hub: HeartbeatHub, patience: Duration) -> Arc<Self> {
        let clock = hub.run_clock();
        Arc::new(Self {
            status,
            hub,
            clock,
            last: Mutex::default(),
            patience,
        })
    }

    /// A message of the leader was taken.
    pub(super) fn note(&self) {
        *self.last.lock() = Some(self.clock.now());
    }

    /// Whether the leader, who is somebody else than `candidate`, is likely to be there though
    /// nothing is heard of it.
    pub(super) fn excuses_leader(&self, candidate: ReplicaId) -> bool {
        let leader = self.status.leadership_now().leader;
        let Some(leader) = leader.filter(|leader| *leader != candidate) else {
            return false;
        };
        let Some(last) = *self.last.lock() else {
            return false;
        };
        leader != self.status.replica
            && !self.hub.has_passed(self.patience, last)
            && self.hub.lives_since(leader.node(), last)
    }
}
