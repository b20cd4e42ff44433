//! Which nodes are heard.
//!
//! Time is counted in ticks of this process, not read from a clock: a process that was stopped
//! for a while, or that is slow, gets to read what arrived meanwhile before it declares anyone
//! dead. What else judges by silence counts in the same ticks.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use trilog_model::NodeId;

use super::{Hub, WakeReason};

/// Ticks in a node's time-out.
pub(super) const PATIENCE: u32 = 10;

/// A point in the time that this process has run, in ticks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RunTime(u64);

impl RunTime {
    pub(super) fn ticks_since(self, earlier: Self) -> u32 {
        u32::try_from(self.0.saturating_sub(earlier.0)).unwrap_or(u32::MAX)
    }
}

/// Ticks of this process, for those who note when something happened.
#[derive(Clone, Debug, Default)]
pub(crate) struct RunClock(Arc<AtomicU64>);

impl RunClock {
    pub(crate) fn now(&self) -> RunTime {
        RunTime(self.0.load(Ordering::Relaxed))
    }
}

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
    /// Ticks since it was heard, or since it is looked for.
    silent_ticks: u32,
    /// Whether it ever was.
    was_heard: bool,
    /// When the process that it is now was heard first.
    since: RunTime,
    /// Its stream of pulses ended, as it does with its process; nothing was heard of it since.
    cut_off: bool,
    shown: watch::Sender<NodeLife>,
}

#[derive(Debug, Default)]
pub(super) struct Lives {
    lives: Mutex<BTreeMap<NodeId, Life>>,
    clock: RunClock,
}

impl Lives {
    pub(super) fn watch(&self, node: NodeId) -> watch::Receiver<NodeLife> {
        self.lives.lock().entry(node).or_default().shown.subscribe()
    }

    pub(super) fn clock(&self) -> &RunClock {
        &self.clock
    }

    /// Whether the process of a node that was there at `since` still is, as far as is known.
    pub(super) fn lives_since(&self, node: NodeId, since: RunTime) -> bool {
        let lives = self.lives.lock();
        lives.get(&node).is_some_and(|life| {
            let alive = matches!(*life.shown.borrow(), NodeLife::Alive { .. });
            alive && !life.cut_off && life.since <= since
        })
    }

    /// Whether half of a node's time-out is left.
    pub(super) fn hears(&self, node: NodeId) -> bool {
        let lives = self.lives.lock();
        lives.get(&node).is_some_and(|life| {
            let alive = matches!(*life.shown.borrow(), NodeLife::Alive { .. });
            alive && life.silent_ticks <= PATIENCE / 2
        })
    }

    /// Whether a node was heard in the last so many ticks, whatever is thought of it now.
    pub(super) fn heard_within(&self, node: NodeId, ticks: u32) -> bool {
        let lives = self.lives.lock();
        let life = lives.get(&node);
        life.is_some_and(|life| life.was_heard && life.silent_ticks <= ticks)
    }

    /// A pulse of a node arrived. True if an earlier process of that node was known.
    pub(super) fn heard(&self, node: NodeId, boot: u64) -> bool {
        let mut lives = self.lives.lock();
        let life = lives.entry(node).or_default();
        life.silent_ticks = 0;
        life.was_heard = true;
        life.cut_off = false;
        let now = NodeLife::Alive { boot };
        let before = *life.shown.borrow();
        if before != now {
            life.since = self.clock.now();
            life.shown.send_replace(now);
        }
        matches!(before, NodeLife::Alive { boot: known } if known != boot)
    }

    /// A node's process has ended. True if that is news.
    fn lost(&self, node: NodeId) -> bool {
        let mut lives = self.lives.lock();
        let life = lives.entry(node).or_default();
        let news = *life.shown.borrow() != NodeLife::Dead;
        if news {
            life.shown.send_replace(NodeLife::Dead);
        }
        news
    }

    /// What a node sent its pulses on is gone.
    pub(super) fn cut_off(&self, node: NodeId) {
        self.lives.lock().entry(node).or_default().cut_off = true;
    }

    /// Counts a tick; returns who died by it.
    fn tick(&self) -> Vec<NodeId> {
        let mut died = Vec::new();
        self.clock.0.fetch_add(1, Ordering::Relaxed);
        for (node, life) in &mut *self.lives.lock() {
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
        let period = self.config.run_tick();
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
