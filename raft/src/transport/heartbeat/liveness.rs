//! Which nodes are heard.
//!
//! Time is counted in ticks of this process, not read from a clock: a process that was stopped
//! for a while gets to read what arrived meanwhile before it declares anyone dead.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use trilog_model::NodeId;

use super::{Hub, WakeReason};

/// Ticks in a node's time-out.
const PATIENCE: u32 = 10;

/// What is known of a node's life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NodeLife {
    /// Never heard since this process started, and not yet missed.
    #[default]
    Unknown,
    Alive {
        /// Differs for each process of that node.
        boot: u64,
    },
    Dead,
}

#[derive(Debug, Default)]
struct Life {
    silent_ticks: u32,
    shown: watch::Sender<NodeLife>,
}

#[derive(Debug, Default)]
pub(super) struct Lives(Mutex<BTreeMap<NodeId, Life>>);

impl Lives {
    pub(super) fn watch(&self, node: NodeId) -> watch::Receiver<NodeLife> {
        self.0.lock().entry(node).or_default().shown.subscribe()
    }

    /// Whether half of a node's time-out is left.
    pub(super) fn hears(&self, node: NodeId) -> bool {
        let lives = self.0.lock();
        lives.get(&node).is_some_and(|life| {
            let alive = matches!(*life.shown.borrow(), NodeLife::Alive { .. });
            alive && life.silent_ticks <= PATIENCE / 2
        })
    }

    /// A pulse of a node arrived. True if an earlier process of that node was known.
    pub(super) fn heard(&self, node: NodeId, boot: u64) -> bool {
        let mut lives = self.0.lock();
        let life = lives.entry(node).or_default();
        life.silent_ticks = 0;
        let now = NodeLife::Alive { boot };
        let before = *life.shown.borrow();
        if before != now {
            life.shown.send_replace(now);
        }
        matches!(before, NodeLife::Alive { boot: known } if known != boot)
    }

    /// A node's process has ended. True if that is news.
    fn lost(&self, node: NodeId) -> bool {
        let mut lives = self.0.lock();
        let life = lives.entry(node).or_default();
        let news = *life.shown.borrow() != NodeLife::Dead;
        if news {
            life.shown.send_replace(NodeLife::Dead);
        }
        news
    }

    /// Counts a tick; returns who died by it.
    fn tick(&self) -> Vec<NodeId> {
        let mut died = Vec::new();
        for (node, life) in &mut *self.0.lock() {
            life.silent_ticks = life.silent_ticks.saturating_add(1);
            if life.silent_ticks > PATIENCE && *life.shown.borrow() != NodeLife::Dead {
                life.shown.send_replace(NodeLife::Dead);
                died.push(*node);
            }
        }
        died
    }
}

impl Hub {
    pub(super) async fn watch_lives(self: Arc<Self>) {
        let period = (self.config.timeout / PATIENCE).max(Duration::from_millis(1));
        let mut ticks = tokio::time::interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            for node in self.lives.tick() {
                tracing::info!(%node, "node is not heard any more");
                self.node_died(node);
            }
        }
    }

    /// Takes the transport's word for nodes whose process ended, long before they are missed.
    pub(super) async fn watch_lost(self: Arc<Self>) {
        let mut lost = self.transport.lost_nodes();
        loop {
            match lost.recv().await {
                Ok(node) => {
                    if self.lives.lost(node) {
                        tracing::info!(%node, "node is gone: nobody listens there any more");
                        self.handler.on_lost(node);
                        self.node_died(node);
                    }
                }
                // Those are dead by silence a little later.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return,
            }
        }
    }

    /// Wakes every group that rests on a node's word, or whose follower there does.
    fn node_died(&self, node: NodeId) {
        let reason = WakeReason::NodeDead(node);
        let inbound = self.inbound.lock().get(&node).cloned();
        let outbound = self.outbound.lock().get(&node).cloned();
        let vouched_to_us = inbound.map_or_else(Vec::new, |inbound| inbound.forget());
        let vouched_by_us = outbound.map_or_else(Vec::new, |outbound| outbound.forget());
        for group in vouched_to_us.into_iter().chain(vouched_by_us) {
            self.handler.on_wake(group, reason);
        }
    }
}
