//! The groups of a node: opens and closes them, and hands each what its peers send.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use openraft::rt::AsyncRuntime;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::TaskTrackerToken;
use trilog_model::{GroupId, NodeId, ReplicaId};
use trilog_storage::env::{Clock, Entropy};
use trilog_storage::kv::{Kv, KvError};
use trilog_storage::log::StoreError;
use trilog_storage::store::Store;

use crate::config::{RaftConfig, RaftConfigError};
use crate::group::{Alarm, COPY, Copies, Group, OpenError, Parts, Replica, Throttle};
use crate::idle::{self, Groups, Sleepers};
use crate::restore;
use crate::room::{self, Room};
use crate::runtime::Runtime;
use crate::transport::heartbeat::{HeartbeatConfig, HeartbeatHub, Vouch};
use crate::transport::{Kind, PeerCall, PeerHandler, PeerStream, Refusal, Route, Transport};
use crate::view::View;

/// One open group, with its handle in the type its owner opened it as.
#[derive(Debug)]
pub(crate) struct Open {
    pub(crate) replica: Replica,
    handle: Box<dyn Any + Send + Sync>,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) parts: Parts,
    pub(crate) store: Store,
    pub(crate) groups: Mutex<BTreeMap<GroupId, Open>>,
    /// Groups that somebody opens, closes or deletes, and how many do: none is opened twice, or
    /// on a log that is still in use. Locked before `groups`.
    claimed: Mutex<BTreeMap<GroupId, usize>>,
    stopping: AtomicBool,
    /// No replica here stands for election.
    abstaining: AtomicBool,
    stop: CancellationToken,
    /// Ends copies from and to this node, with the node at the latest.
    restoring: CancellationToken,
    tasks: TaskTracker,
    misdirected: AtomicU64,
    /// Who has groups that do not open here, as the cluster map says.
    pub(crate) named: Mutex<BTreeMap<GroupId, BTreeSet<ReplicaId>>>,
}

/// The groups of a node; clones share them.
#[derive(Clone, Debug)]
pub struct Node(Arc<Inner>);

/// Counters of a node's groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeStats {
    pub groups: usize,
    pub leading: usize,
    /// Groups whose timers are off, because nothing happens in them.
    pub resting: usize,
    /// Messages dropped because they named a replica that is not the one held here.
    pub misdirected: u64,
    /// Elections that replicas of this node stood in.
    pub elections: u64,
    /// Entries that the furthest voter or learner of a group led here is behind.
    pub follower_lag_max: u64,
}

impl Node {
    /// Starts with no group open, and serves Raft's kinds and the heartbeats of nodes on the
    /// transport from now on.
    pub fn start(
        config: &RaftConfig,
        store: Store,
        kv: Kv,
        transport: Transport,
        clock: Arc<dyn Clock>,
        entropy: &Entropy,
    ) -> Result<Self, RaftConfigError> {
        let openraft = Arc::new(config.to_openraft()?);
        let alarm: Arc<Alarm> = Arc::default();
        let throttle = Arc::new(Throttle::new(config.catch_up_bytes_per_second));
        let restoring = CancellationToken::new();
        let inner = Arc::new_cyclic(|groups| {
            let pulses = HeartbeatConfig::default();
            let sleepers = Arc::new(Sleepers(Weak::clone(groups)));
            let hub = HeartbeatHub::start(transport.clone(), pulses, clock, entropy, sleepers);
            Inner {
                parts: Parts {
                    config: openraft,
                    append_bytes: config.append_bytes,
                    failover: config.failover(),
                    patience: config.patience(),
                    kv,
                    copies: Copies::new(transport.clone(), Arc::clone(&throttle)),
                    transport,
                    hub,
                    alarm: Arc::clone(&alarm),
                    elections: Arc::default(),
                    throttle,
                    room: Arc::default(),
                },
                store,
                groups: Mutex::default(),
                claimed: Mutex::default(),
                stopping: AtomicBool::new(false),
                abstaining: AtomicBool::new(false),
                stop: CancellationToken::new(),
                restoring: restoring.clone(),
                tasks: TaskTracker::new(),
                misdirected: AtomicU64::new(0),
                named: Mutex::default(),
            }
        });
        let node = Self(inner);
        node.watch_idle(alarm, config.quiesce_after);
        let kinds = Kind::FIRST_RAFT..Kind::FIRST_SERVER;
        let handler = Arc::new(Handler(Arc::downgrade(&node.0)));
        node.0.parts.transport.register(kinds, handler);
        let restorer = restore::run(Arc::downgrade(&node.0), restoring);
        node.0.tasks.spawn(restorer);
        node.watch_room();
        Ok(node)
    }

    /// Starts the watch over idle groups; it ends with the node.
    fn watch_idle(&self, alarm: Arc<Alarm>, quiesce_after: Option<Duration>) {
        let watch = idle::watch(Arc::downgrade(&self.0), alarm, quiesce_after);
        let stopped = self.0.stop.clone();
        let watch = async move {
            // It ends early only with the node.
            let _ = stopped.run_until_cancelled(watch).await;
        };
        drop(Runtime::spawn(self.0.tasks.track_future(watch)));
    }

    /// Starts the watch over the disk's room; it ends with the node.
    fn watch_room(&self) {
        let room: Arc<Room> = Arc::clone(&self.0.parts.room);
        let watch = room::keep(Arc::downgrade(&self.0), self.0.store.pressure(), room);
        let stopped = self.0.stop.clone();
        self.0.tasks.spawn(async move {
            // It ends early only with the store.
            let _ = stopped.run_until_cancelled(watch).await;
        });
    }

    pub fn id(&self) -> NodeId {
        self.0.parts.transport.node()
    }

    /// The pulses between this node and the others.
    pub fn heartbeats(&self) -> &HeartbeatHub {
        &self.0.parts.hub
    }

    pub fn store(&self) -> &Store {
        &self.0.store
    }

    pub fn kv(&self) -> &Kv {
        &self.0.parts.kv
    }

    /// Says who has a group that does not open here because its log is damaged: they are asked for
    /// what is missing, beside the members that the replica remembers. One that was killed before
    /// its view was ever written remembers none.
    pub fn name_members(&self, group: GroupId, members: BTreeSet<ReplicaId>) {
        self.0.named.lock().insert(group, members);
    }

    /// Opens a group, creating its log if there is none. The view must be new: what it had before
    /// a restart is given back to it.
    pub async fn open_group<V: View>(
        &self,
        group: GroupId,
        replica: ReplicaId,
        view: V,
    ) -> Result<Group<V>, OpenError> {
        let _claim = self.claim(group)?;
        let log = match self.0.store.group(group) {
            Some(log) => log,
            None => self.0.store.create_group(group, replica).await?,
        };
        if log.replica() != replica {
            return Err(OpenError::OtherReplica {
                group,
                held: log.replica(),
                asked: replica,
            });
        }
        let handle = Group::open(&self.0.parts, log, view).await?;
        let open = Open {
            replica: handle.replica_handle().clone(),
            handle: Box::new(handle.clone()),
        };
        let replica = open.replica.clone();
        self.0.named.lock().remove(&group);
        if self.0.insert(group, open) {
            return Ok(handle);
        }
        // The node has closed what it had open.
        if let Err(error) = replica.close().await {
            tracing::warn!(%group, %error, "a group did not stop in order");
        }
        Err(OpenError::Stopping)
    }

    fn claim(&self, group: GroupId) -> Result<Claim, OpenError> {
        if self.0.stopping.load(Ordering::Acquire) {
            return Err(OpenError::Stopping);
        }
        let mut claimed = self.0.claimed.lock();
        if self.0.groups.lock().contains_key(&group) || claimed.contains_key(&group) {
            return Err(OpenError::IsOpen(group));
        }
        Ok(Claim::new(&self.0, &mut claimed, group))
    }

    /// The handle of an open group, if it was opened with this view.
    pub fn group<V: View>(&self, group: GroupId) -> Option<Group<V>> {
        let groups = self.0.groups.lock();
        groups.get(&group)?.handle.downcast_ref().cloned()
    }

    /// Every open group, in order.
    pub fn groups(&self) -> Vec<GroupId> {
        self.0.groups.lock().keys().copied().collect()
    }

    pub fn stats(&self) -> NodeStats {
        let groups = self.0.groups.lock();
        let leads = |open: &&Open| {
            let status = &open.replica.status;
            status.leadership_now().leader == Some(status.replica)
        };
        NodeStats {
            groups: groups.len(),
            leading: groups.values().filter(leads).count(),
            resting: groups.values().filter(|open| open.replica.rests()).count(),
            misdirected: self.0.misdirected.load(Ordering::Relaxed),
            elections: self.0.parts.elections.load(Ordering::Relaxed),
            follower_lag_max: groups
                .values()
                .filter(leads)
                .map(|open| open.replica.lag_max())
                .max()
                .unwrap_or(0),
        }
    }

    /// Stops a group's tasks; its log and its view's state stay. True if it was open.
    pub async fn close_group(&self, group: GroupId) -> bool {
        let (open, _claim) = {
            let mut claimed = self.0.claimed.lock();
            let Some(open) = self.0.groups.lock().remove(&group) else {
                return false;
            };
            (open, Claim::new(&self.0, &mut claimed, group))
        };
        if let Err(error) = open.replica.close().await {
            tracing::warn!(%group, %error, "a group did not stop in order");
        }
        true
    }

    /// Removes a closed group for good, its log and what its view kept; durable on return.
    pub async fn delete_group(&self, group: GroupId) -> Result<(), DeleteError> {
        let _claim = self.claim(group).map_err(|_| DeleteError::Open(group))?;
        self.0.named.lock().remove(&group);
        match self.0.store.remove_group(group).await {
            Ok(()) | Err(StoreError::NoSuchGroup(_)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.0.parts.kv.remove_group(group)?)
    }

    fn replicas(&self) -> Vec<Replica> {
        let groups = self.0.groups.lock();
        groups.values().map(|open| open.replica.clone()).collect()
    }

    /// From now on no replica here stands for election, nor takes leadership when it is handed
    /// over; or they do again. Those that lead go on until they resign.
    pub fn abstain(&self, yes: bool) {
        let groups = self.0.groups.lock();
        self.0.abstaining.store(yes, Ordering::Release);
        for open in groups.values() {
            open.replica.abstain(yes);
        }
    }

    /// Hands leadership of every group led here to another replica where one is caught up.
    pub async fn resign(&self) {
        let replicas = self.replicas();
        join_all(replicas.iter().map(Replica::resign)).await;
    }

    /// Hands leadership of every group to another replica where one is caught up, then stops all
    /// groups. The store stays open, and the node is heard until its heartbeats are stopped.
    pub async fn shutdown(&self) {
        self.0.stopping.store(true, Ordering::Release);
        self.0.restoring.cancel();
        self.resign().await;
        let groups = std::mem::take(&mut *self.0.groups.lock());
        let closing = groups.into_iter().map(|(group, open)| async move {
            if let Err(error) = open.replica.close().await {
                tracing::warn!(%group, %error, "a group did not stop in order");
            }
        });
        join_all(closing).await;
        self.0.stop.cancel();
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }
}

#[cfg(any(test, feature = "sim"))]
impl Node {
    /// Ends what the node does for its peers where it stands, as the end of its process does.
    pub(crate) fn abort(&self) {
        self.0.restoring.cancel();
        self.0.stop.cancel();
        for replica in self.replicas() {
            replica.abort();
        }
        self.heartbeats().abort();
    }
}

/// Why a group's data is still there.
#[derive(Debug, thiserror::Error)]
pub enum DeleteError {
    #[error("group {0} is open, or the node is stopping")]
    Open(GroupId),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Kv(#[from] KvError),
}

/// A group that is being opened, closed or deleted. The node does not end before it is over.
struct Claim {
    inner: Arc<Inner>,
    group: GroupId,
    _running: TaskTrackerToken,
}

impl Claim {
    fn new(inner: &Arc<Inner>, claimed: &mut BTreeMap<GroupId, usize>, group: GroupId) -> Self {
        *claimed.entry(group).or_default() += 1;
        Self {
            inner: Arc::clone(inner),
            group,
            _running: inner.tasks.token(),
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut claimed = self.inner.claimed.lock();
        if let Some(count) = claimed.get_mut(&self.group) {
            *count -= 1;
            if *count == 0 {
                claimed.remove(&self.group);
            }
        }
    }
}

impl Inner {
    /// Takes a replica in, unless the node is stopping: then what is open is closed already, or is
    /// about to be.
    fn insert(&self, group: GroupId, open: Open) -> bool {
        let mut groups = self.groups.lock();
        if self.stopping.load(Ordering::Acquire) {
            return false;
        }
        if self.abstaining.load(Ordering::Acquire) {
            open.replica.abstain(true);
        }
        groups.insert(group, open);
        true
    }

    /// Serves a copy of a log, of one whose group is not open too: that may be for damage of its
    /// own, and what it holds be all that another lacks.
    fn on_copy(&self, stream: PeerStream) {
        let log = self.store.group(stream.route.group);
        let Some(log) = log.filter(|log| log.replica() == stream.route.to) else {
            return stream.refuse(&Refusal::UnknownGroup);
        };
        let (copies, stop) = (self.parts.copies.clone(), self.restoring.clone());
        self.tasks.spawn(async move {
            stop.run_until_cancelled(copies.serve(&log, stream)).await;
        });
    }

    /// The replica a message is for, if it is the one held here.
    fn addressed(&self, route: &Route) -> Result<Replica, Refusal> {
        if self.stopping.load(Ordering::Acquire) {
            return Err(Refusal::Stopping);
        }
        let groups = self.groups.lock();
        let open = groups.get(&route.group).ok_or(Refusal::UnknownGroup)?;
        if open.replica.status.replica != route.to {
            self.misdirected.fetch_add(1, Ordering::Relaxed);
            return Err(Refusal::WrongReplica);
        }
        Ok(open.replica.clone())
    }
}

impl Drop for Inner {
    /// A node that is gone is not heard any more.
    fn drop(&mut self) {
        self.restoring.cancel();
        self.parts.hub.abort();
    }
}

impl Groups for Inner {
    fn replica(&self, group: GroupId) -> Option<Replica> {
        let groups = self.groups.lock();
        Some(groups.get(&group)?.replica.clone())
    }

    fn replicas(&self) -> Vec<Replica> {
        let groups = self.groups.lock();
        groups.values().map(|open| open.replica.clone()).collect()
    }

    fn vouched(&self, vouch: &Vouch) -> Option<Replica> {
        self.addressed(&vouch.route).ok()
    }
}

/// What the transport holds of a node: it must not keep it alive.
#[derive(Debug)]
struct Handler(Weak<Inner>);

impl PeerHandler for Handler {
    fn on_call(&self, call: PeerCall) -> BoxFuture<'static, Result<Vec<Bytes>, Refusal>> {
        let inner = self.0.upgrade();
        async move {
            let inner = inner.ok_or(Refusal::Stopping)?;
            if call.route.from.node() != call.peer {
                inner.misdirected.fetch_add(1, Ordering::Relaxed);
                return Err(Refusal::WrongReplica);
            }
            let replica = inner.addressed(&call.route)?;
            drop(inner);
            replica.on_call(call).await
        }
        .boxed()
    }

    fn on_stream(&self, stream: PeerStream) {
        let Some(inner) = self.0.upgrade() else {
            return stream.refuse(&Refusal::Stopping);
        };
        if stream.kind == COPY {
            return inner.on_copy(stream);
        }
        match inner.addressed(&stream.route) {
            Ok(replica) => {
                inner
                    .tasks
                    .spawn(async move { replica.on_stream(stream).await });
            }
            Err(refusal) => stream.refuse(&refusal),
        }
    }
}
