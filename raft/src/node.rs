//! The groups of a node: opens and closes them, and hands each what its peers send.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trilog_model::{GroupId, NodeId, ReplicaId};
use trilog_storage::kv::{Kv, KvError};
use trilog_storage::log::StoreError;
use trilog_storage::store::Store;

use crate::config::{RaftConfig, RaftConfigError};
use crate::group::{COPY, Copies, Group, OpenError, Parts, Replica, Throttle};
use crate::restore;
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
    /// Groups being opened, so that none is opened twice.
    opening: Mutex<std::collections::BTreeSet<GroupId>>,
    stopping: AtomicBool,
    /// Ends copies from and to this node, with the node at the latest.
    restoring: CancellationToken,
    tasks: TaskTracker,
    misdirected: AtomicU64,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.restoring.cancel();
    }
}

/// The groups of a node; clones share them.
#[derive(Clone, Debug)]
pub struct Node(Arc<Inner>);

/// Counters of a node's groups.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeStats {
    pub groups: usize,
    pub leading: usize,
    /// Messages dropped because they named a replica that is not the one held here.
    pub misdirected: u64,
}

impl Node {
    /// Starts with no group open and serves Raft's kinds on the transport from now on.
    pub fn start(
        config: &RaftConfig,
        store: Store,
        kv: Kv,
        transport: Transport,
    ) -> Result<Self, RaftConfigError> {
        let throttle = Arc::new(Throttle::new(config.catch_up_bytes_per_second));
        let parts = Parts {
            config: Arc::new(config.to_openraft()?),
            append_bytes: config.append_bytes,
            failover: config.failover(),
            kv,
            copies: Copies::new(transport.clone(), throttle),
            transport,
        };
        let restoring = CancellationToken::new();
        let node = Self(Arc::new(Inner {
            parts,
            store,
            groups: Mutex::default(),
            opening: Mutex::default(),
            stopping: AtomicBool::new(false),
            restoring: restoring.clone(),
            tasks: TaskTracker::new(),
            misdirected: AtomicU64::new(0),
        }));
        let kinds = Kind::FIRST_RAFT..Kind::FIRST_SERVER;
        let handler = Arc::new(Handler(Arc::downgrade(&node.0)));
        node.0.parts.transport.register(kinds, handler);
        let restorer = restore::run(Arc::downgrade(&node.0), restoring);
        node.0.tasks.spawn(restorer);
        Ok(node)
    }

    pub fn id(&self) -> NodeId {
        self.0.parts.transport.node()
    }

    pub fn store(&self) -> &Store {
        &self.0.store
    }

    pub fn kv(&self) -> &Kv {
        &self.0.parts.kv
    }

    /// Opens a group, creating its log if there is none. The view must be new: what it had before
    /// a restart is given back to it.
    pub async fn open_group<V: View>(
        &self,
        group: GroupId,
        replica: ReplicaId,
        view: V,
    ) -> Result<Group<V>, OpenError> {
        let _opening = self.claim(group)?;
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
        self.0.groups.lock().insert(group, open);
        Ok(handle)
    }

    fn claim(&self, group: GroupId) -> Result<Claim, OpenError> {
        if self.0.stopping.load(Ordering::Acquire) {
            return Err(OpenError::Stopping);
        }
        let mut opening = self.0.opening.lock();
        if self.0.groups.lock().contains_key(&group) || !opening.insert(group) {
            return Err(OpenError::IsOpen(group));
        }
        Ok(Claim {
            inner: Arc::clone(&self.0),
            group,
        })
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
            misdirected: self.0.misdirected.load(Ordering::Relaxed),
        }
    }

    /// Stops a group's tasks; its log and its view's state stay. True if it was open.
    pub async fn close_group(&self, group: GroupId) -> bool {
        let open = self.0.groups.lock().remove(&group);
        let Some(open) = open else { return false };
        if let Err(error) = open.replica.close().await {
            tracing::warn!(%group, %error, "a group did not stop in order");
        }
        true
    }

    /// Removes a closed group for good, its log and what its view kept; durable on return.
    pub async fn delete_group(&self, group: GroupId) -> Result<(), DeleteError> {
        let _claim = self.claim(group).map_err(|_| DeleteError::Open(group))?;
        match self.0.store.remove_group(group).await {
            Ok(()) | Err(StoreError::NoSuchGroup(_)) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(self.0.parts.kv.remove_group(group)?)
    }

    /// Hands leadership of every group to another replica where one is caught up, then stops all
    /// groups. The store stays open.
    pub async fn shutdown(&self) {
        self.0.stopping.store(true, Ordering::Release);
        self.0.restoring.cancel();
        let replicas: Vec<Replica> = {
            let groups = self.0.groups.lock();
            groups.values().map(|open| open.replica.clone()).collect()
        };
        join_all(replicas.iter().map(Replica::resign)).await;
        let groups = std::mem::take(&mut *self.0.groups.lock());
        let closing = groups.into_iter().map(|(group, open)| async move {
            if let Err(error) = open.replica.close().await {
                tracing::warn!(%group, %error, "a group did not stop in order");
            }
        });
        join_all(closing).await;
        self.0.tasks.close();
        self.0.tasks.wait().await;
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

/// A group that is being opened.
struct Claim {
    inner: Arc<Inner>,
    group: GroupId,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.inner.opening.lock().remove(&self.group);
    }
}

impl Inner {
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

/// What the transport holds of a node: it must not keep it alive.
#[derive(Debug)]
struct Handler(std::sync::Weak<Inner>);

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
            replica.on_call(call.kind, call.payload).await
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
