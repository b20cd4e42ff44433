//! The liveness of nodes, and what a node vouches for while its groups rest.
//!
//! ```text
//!   leader:   vouch(group) ─┐ 10 ms
//!             vouch(group) ─┴─> pulse ── stream ──> on_vouch: agree, or refuse ──> answer
//!   silence of a node, its restart, a digest that differs, a withdrawal ─> on_wake
//! ```
//!
//! Every node sends each peer a pulse per interval even when there is nothing to say. A quiesced
//! group is covered by its leader's node: the leader vouches for (group, term, leader) once, and
//! each pulse carries the count and digest of everything vouched. Whatever makes that doubtful
//! wakes the group on both sides; Raft decides what follows. The heartbeats of groups that are
//! awake travel as calls: one that waits for others to share its message would wake a resting
//! group too slowly.

mod inbound;
mod ledger;
mod liveness;
mod outbound;
mod wire;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trilog_model::{GroupId, NodeId, Term};
use trilog_storage::env::{Clock, Entropy};

use self::inbound::Inbound;
use self::outbound::Outbound;
use super::handle::Transport;
use super::peer::{Kind, PeerCall, PeerError, PeerHandler, PeerStream, Refusal, Route};

pub use self::liveness::NodeLife;
pub(crate) use self::liveness::{RunClock, RunTime};

/// When pulses are sent and when a node counts as dead.
#[derive(Clone, Copy, Debug)]
pub struct HeartbeatConfig {
    /// How long a word may wait for others to share its message.
    pub tick: Duration,
    /// A node sends a pulse at least this often.
    pub interval: Duration,
    /// A node that is not heard for this long is dead.
    pub timeout: Duration,
}

impl Default for HeartbeatConfig {
    fn default() -> Self {
        Self {
            tick: Duration::from_millis(10),
            interval: Duration::from_millis(100),
            timeout: Duration::from_millis(500),
        }
    }
}

impl HeartbeatConfig {
    /// What a tick of a process's own time is.
    fn run_tick(&self) -> Duration {
        (self.timeout / liveness::PATIENCE).max(Duration::from_millis(1))
    }
}

/// A leader's word for a resting group: `route.from` leads `route.group` in `term`, and
/// `route.to` follows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vouch {
    pub term: Term,
    pub route: Route,
}

/// How another node's wall clock differs from ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClockOffset {
    /// How far it is ahead; negative when behind.
    pub ahead_nanos: i64,
    /// The true difference lies within this of it.
    pub uncertainty: Duration,
}

/// Why a resting group must look for itself again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WakeReason {
    /// The other node is not heard any more.
    NodeDead(NodeId),
    /// The other node is another process than the one that vouched.
    NodeRestarted(NodeId),
    /// The leader withdrew its word.
    Withdrawn,
    /// A follower does not, or no longer, agree.
    Refused(NodeId),
    /// The two sides do not have the same groups on record.
    Mismatch,
}

/// What the Raft layer does for the hub. No method may block.
pub trait VouchHandler: Send + Sync + 'static {
    /// A leader vouches for its group. True if the follower here agrees, and rests from now on.
    fn on_vouch(&self, vouch: &Vouch) -> bool;

    /// A node's process has ended.
    fn on_lost(&self, node: NodeId);

    /// A resting group, on either side, must wake. May be called for one that never rested.
    fn on_wake(&self, group: GroupId, reason: WakeReason);
}

/// One node's heartbeats to and from all others; cheap to clone.
#[derive(Clone, Debug)]
pub struct HeartbeatHub {
    hub: Arc<Hub>,
}

pub(super) struct Hub {
    transport: Transport,
    config: HeartbeatConfig,
    clock: Arc<dyn Clock>,
    handler: Arc<dyn VouchHandler>,
    /// Tells this process from its predecessors.
    boot: u64,
    outbound: Mutex<BTreeMap<NodeId, Arc<Outbound>>>,
    inbound: Mutex<BTreeMap<NodeId, Arc<Inbound>>>,
    lives: liveness::Lives,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hub")
            .field("node", &self.transport.node())
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

impl HeartbeatHub {
    /// Starts pulses to every node in the transport's address book, and serves theirs. Lives
    /// until [`HeartbeatHub::stop`].
    pub fn start(
        transport: Transport,
        config: HeartbeatConfig,
        clock: Arc<dyn Clock>,
        entropy: &Entropy,
        handler: Arc<dyn VouchHandler>,
    ) -> Self {
        let hub = Arc::new(Hub {
            boot: entropy.next_u64(),
            transport,
            config,
            clock,
            handler,
            outbound: Mutex::default(),
            inbound: Mutex::default(),
            lives: liveness::Lives::default(),
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        let serving = Arc::new(Serving(Arc::clone(&hub)));
        hub.transport
            .register(Kind::HEARTBEAT.0..Kind::HEARTBEAT.0 + 1, serving);
        let running = Arc::clone(&hub);
        hub.spawn(async move { running.follow_book().await });
        let running = Arc::clone(&hub);
        hub.spawn(async move { running.watch_lives().await });
        let running = Arc::clone(&hub);
        hub.spawn(async move { running.watch_lost().await });
        Self { hub }
    }

    /// Vouches for a resting group to one follower; resolves when that follower agreed. From then
    /// until [`HeartbeatHub::withdraw`], or an `on_wake`, the node's pulses cover the group. After
    /// an error nothing is vouched for to that follower.
    ///
    /// # Cancel safety
    /// Not safe: when dropped, the group must be withdrawn.
    pub async fn vouch(&self, vouch: Vouch, timeout: Duration) -> Result<(), PeerError> {
        let outbound = self.hub.outbound(vouch.route.to.node())?;
        let agreed = tokio::time::timeout(timeout, outbound.vouch(vouch))
            .await
            .unwrap_or(Err(PeerError::Timeout));
        if agreed.is_err() {
            outbound.withdraw(vouch.route.group);
        }
        agreed
    }

    /// The leader no longer vouches for a group: its followers wake.
    pub fn withdraw(&self, group: GroupId) {
        let outbound: Vec<_> = self.hub.outbound.lock().values().cloned().collect();
        for outbound in outbound {
            outbound.withdraw(group);
        }
    }

    /// A follower no longer agrees with what its leader vouches for: the leader wakes.
    pub fn refuse(&self, group: GroupId) {
        let inbound: Vec<_> = self.hub.inbound.lock().values().cloned().collect();
        for inbound in inbound {
            inbound.refuse(group);
        }
    }

    /// Whether a node is heard, and what is known of its clock.
    pub fn node_alive(&self, node: NodeId) -> watch::Receiver<NodeLife> {
        self.hub.lives.watch(node)
    }

    /// Whether a node was heard lately: well within the time after which it counts as dead.
    pub fn hears(&self, node: NodeId) -> bool {
        self.hub.lives.hears(node)
    }

    /// Whether a node was heard in so much of this process's time, be it dead by now.
    pub fn heard_within(&self, node: NodeId, time: Duration) -> bool {
        let ticks = time.as_nanos() / self.hub.config.run_tick().as_nanos().max(1);
        let ticks = u32::try_from(ticks).unwrap_or(u32::MAX);
        self.hub.lives.heard_within(node, ticks)
    }

    /// Counts the time that this process has run.
    pub(crate) fn run_clock(&self) -> RunClock {
        self.hub.lives.clock().clone()
    }

    /// Whether at least so much of its time has passed since then.
    pub(crate) fn has_passed(&self, time: Duration, since: RunTime) -> bool {
        let passed = self.hub.lives.clock().now().ticks_since(since);
        self.hub.config.run_tick().saturating_mul(passed) >= time
    }

    /// Whether the process of a node that was there at `since` still is: what it sends its pulses on
    /// is there, and it is not silent for long enough to be called dead.
    pub(crate) fn lives_since(&self, node: NodeId, since: RunTime) -> bool {
        self.hub.lives.lives_since(node, since)
    }

    /// How a node's wall clock differs from ours, as of its last answer; `None` while it is not
    /// heard.
    pub fn clock_offset(&self, node: NodeId) -> Option<ClockOffset> {
        self.hub.outbound(node).ok()?.clock_offset()
    }

    /// Ends all pulses where they stand, and waits for nothing.
    pub(crate) fn abort(&self) {
        self.hub.stop.cancel();
    }

    /// Ends all pulses. Peers will find this node dead.
    pub async fn stop(&self) {
        self.abort();
        self.hub.tasks.close();
        self.hub.tasks.wait().await;
    }
}

impl Hub {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
    }

    fn outbound(&self, node: NodeId) -> Result<Arc<Outbound>, PeerError> {
        let known = self.outbound.lock().get(&node).cloned();
        known.ok_or_else(|| PeerError::Unreachable {
            node,
            reason: "its address is not known".into(),
        })
    }

    /// Keeps one outbound side per node in the address book.
    async fn follow_book(self: Arc<Self>) {
        let mut edits = self.transport.book().watch();
        loop {
            edits.borrow_and_update();
            let mut wanted = self.transport.book().nodes();
            wanted.retain(|node| *node != self.transport.node());
            {
                let mut outbound = self.outbound.lock();
                outbound.retain(|node, gone| {
                    let keep = wanted.contains(node);
                    if !keep {
                        gone.stop();
                    }
                    keep
                });
                for node in wanted {
                    outbound.entry(node).or_insert_with(|| {
                        let peer = Arc::new(Outbound::new(node));
                        let (running, hub) = (Arc::clone(&peer), Arc::clone(&self));
                        self.spawn(async move { running.run(&hub).await });
                        peer
                    });
                }
            }
            if edits.changed().await.is_err() {
                return;
            }
        }
    }
}

/// The hub as the transport's handler of its kind.
struct Serving(Arc<Hub>);

impl PeerHandler for Serving {
    fn on_call(&self, _: PeerCall) -> BoxFuture<'static, Result<Vec<Bytes>, Refusal>> {
        Box::pin(std::future::ready(Err(Refusal::Unserved)))
    }

    fn on_stream(&self, stream: PeerStream) {
        let hub = Arc::clone(&self.0);
        let inbound = Arc::clone(
            hub.inbound
                .lock()
                .entry(stream.peer)
                .or_insert_with(|| Arc::new(Inbound::new(stream.peer))),
        );
        let running = Arc::clone(&self.0);
        hub.spawn(async move { inbound.serve(&running, stream).await });
    }
}

#[cfg(test)]
mod swarm;
#[cfg(test)]
mod tests;
