//! One node's end of every link: accepts, connects, and finds the link a message takes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, broadcast};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use trilog_model::{GroupId, NodeId};
use trilog_storage::env::Entropy;

use super::book::AddressBook;
use super::connector::Connector;
use super::drive::drive;
use super::handle::ClusterId;
use super::handshake::{self, Greeting, HandshakeError, Identity};
use super::limits::{Limits, Timings};
use super::link::Link;
use super::net::{BoxConn, Net};
use super::peer::{Kind, Lane, PeerError, PeerHandler, Refusal, Route, Target};
use super::registry::Registry;
use super::service::Service;
use super::stats::{Counters, count};
use super::stream::{StreamReceiver, StreamSender};

/// After telling of a refused connection, others are only told at debug level for so long.
const REFUSAL_SILENCE: Duration = Duration::from_secs(10);
/// Reports of lost nodes that wait for those who listen; what they miss, silence tells them later.
const MAX_LOST: usize = 64;

/// What a transport needs to know of its node.
#[derive(Clone, Debug)]
pub struct TransportConfig {
    pub node: NodeId,
    /// `None` for a node that has yet to join one; it can only be introduced.
    pub cluster: Option<ClusterId>,
    pub limits: Limits,
    pub timings: Timings,
    /// Connections accepted at once, and of those how many may still be in their handshake.
    pub max_accepted: usize,
    pub max_handshakes: usize,
}

impl TransportConfig {
    /// A node of a cluster, with default limits and timings.
    #[must_use]
    pub fn new(node: NodeId, cluster: Option<ClusterId>) -> Self {
        Self {
            node,
            cluster,
            limits: Limits::default(),
            timings: Timings::default(),
            max_accepted: 1_024,
            max_handshakes: 64,
        }
    }
}

impl Lane {
    /// Which of the links to a peer carries a group's messages of this lane.
    pub(super) const fn link(self, group: GroupId) -> u8 {
        match self {
            Self::Control => 0,
            // Consecutive groups alternate; the multiplication keeps strides from all falling
            // on one link.
            Self::Append => 1 + (group.get().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 63) as u8,
            Self::Bulk => 3,
            Self::Live => 4,
        }
    }

    /// The lane of a link.
    pub(super) const fn of_link(link: u8) -> Self {
        match link {
            0 => Self::Control,
            1 | 2 => Self::Append,
            3 => Self::Bulk,
            _ => Self::Live,
        }
    }
}

/// Shared by every task of one node's transport.
#[derive(Debug)]
pub(super) struct Endpoint {
    config: TransportConfig,
    cluster: Mutex<Option<ClusterId>>,
    boot: u64,
    pub(super) entropy: Entropy,
    pub(super) net: Box<dyn Net>,
    pub(super) book: AddressBook,
    pub(super) counters: Arc<Counters>,
    registry: Arc<Registry>,
    connectors: Mutex<BTreeMap<(NodeId, u8), Arc<Connector>>>,
    /// Accepted links by peer and number: a new one replaces the old, which must be a dead half.
    accepted: Mutex<BTreeMap<(NodeId, u8), Arc<Link>>>,
    /// Every link, for closing.
    links: Mutex<BTreeMap<u64, Running>>,
    next_link: AtomicU64,
    told_refusal: Mutex<Option<Instant>>,
    /// Nodes whose process ended, as it happens.
    lost: broadcast::Sender<NodeId>,
    accept_slots: Arc<Semaphore>,
    handshake_slots: Arc<Semaphore>,
    /// Cancelled first: nothing new starts.
    closing: CancellationToken,
    /// Cancelled last: everything ends.
    over: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Clone, Debug)]
struct Running {
    link: Arc<Link>,
    service: Option<Arc<Service>>,
}

impl Endpoint {
    pub(super) fn start(config: TransportConfig, net: Box<dyn Net>, entropy: Entropy) -> Arc<Self> {
        let endpoint = Arc::new(Self {
            cluster: Mutex::new(config.cluster),
            boot: entropy.next_u64(),
            entropy,
            net,
            book: AddressBook::new(),
            counters: Arc::default(),
            registry: Arc::default(),
            connectors: Mutex::default(),
            accepted: Mutex::default(),
            links: Mutex::default(),
            next_link: AtomicU64::new(0),
            told_refusal: Mutex::default(),
            lost: broadcast::Sender::new(MAX_LOST),
            accept_slots: Arc::new(Semaphore::new(config.max_accepted)),
            handshake_slots: Arc::new(Semaphore::new(config.max_handshakes)),
            closing: CancellationToken::new(),
            over: CancellationToken::new(),
            tasks: TaskTracker::new(),
            config,
        });
        let listening = Arc::clone(&endpoint);
        endpoint.spawn(async move { listening.listen().await });
        endpoint
    }

    pub(super) const fn timings(&self) -> &Timings {
        &self.config.timings
    }

    pub(super) const fn closing(&self) -> &CancellationToken {
        &self.closing
    }

    pub(super) fn identity(&self) -> Identity {
        Identity {
            node: self.config.node,
            cluster: *self.cluster.lock(),
            boot: self.boot,
            limits: self.config.limits,
        }
    }

    /// Runs a task until the transport is over.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let over = self.over.clone();
        self.tasks.spawn(async move {
            tokio::select! {
                biased;
                () = over.cancelled() => {}
                () = task => {}
            }
        });
    }

    /// Nodes whose process ended, from now on. Whoever lags misses some.
    pub(super) fn lost_nodes(&self) -> broadcast::Receiver<NodeId> {
        self.lost.subscribe()
    }

    /// Nobody listens at a node's address any more, where somebody did. Its process has ended,
    /// unless it still reaches us by a link of its own: then something between us refuses.
    /// False if it does, or may for a moment.
    pub(super) fn lost_node(&self, node: NodeId) -> bool {
        let reaches_us = {
            let accepted = self.accepted.lock();
            let mut links = accepted.range((node, 0)..=(node, u8::MAX));
            links.any(|(_, link)| link.is_open())
        };
        if !reaches_us {
            // Nobody has to listen.
            let _ = self.lost.send(node);
        }
        !reaches_us
    }

    /// Runs a link to its end.
    pub(super) async fn run(&self, link: Arc<Link>, conn: BoxConn, service: Option<Arc<Service>>) {
        let number = self.next_link.fetch_add(1, Ordering::Relaxed);
        let running = Running {
            link: Arc::clone(&link),
            service: service.clone(),
        };
        self.links.lock().insert(number, running);
        let counters = Arc::clone(&self.counters);
        drive(link, conn, service, self.config.timings, counters).await;
        self.links.lock().remove(&number);
    }

    /// Connects and shakes hands.
    pub(super) async fn dial(
        &self,
        address: String,
        greeting: Greeting,
    ) -> Result<(BoxConn, Identity), HandshakeError> {
        let timings = &self.config.timings;
        let connecting = tokio::time::timeout(timings.connect, self.net.connect(address));
        let mut conn = connecting.await.map_err(|_| {
            std::io::Error::new(std::io::ErrorKind::TimedOut, "no connection in time")
        })??;
        let shaking = handshake::initiate(&mut conn, &greeting);
        let peer = tokio::time::timeout(timings.handshake, shaking)
            .await
            .map_err(|_| HandshakeError::Deadline)??;
        Ok((conn, peer))
    }

    async fn listen(self: Arc<Self>) {
        loop {
            let accepted = tokio::select! {
                biased;
                () = self.closing.cancelled() => return,
                accepted = self.net.accept() => accepted,
            };
            match accepted {
                Ok((conn, from)) => self.admit(conn, from),
                Err(error) => {
                    // Out of descriptors, most likely: pausing lets some come free.
                    tracing::warn!(%error, "cannot accept peer connections");
                    tokio::time::sleep(self.config.timings.backoff_max).await;
                }
            }
        }
    }

    /// Gives a connection a task, if there are slots; else drops it.
    fn admit(self: &Arc<Self>, conn: BoxConn, from: String) {
        let slot = Arc::clone(&self.accept_slots).try_acquire_owned();
        let handshake_slot = Arc::clone(&self.handshake_slots).try_acquire_owned();
        let (Ok(slot), Ok(handshake_slot)) = (slot, handshake_slot) else {
            count(&self.counters.handshake_failures, 1);
            tracing::warn!(from, "too many peer connections, one dropped");
            return;
        };
        let endpoint = Arc::clone(self);
        self.spawn(async move {
            let _slot = slot;
            match endpoint.welcome(conn).await {
                Ok((conn, greeting)) => {
                    drop(handshake_slot);
                    endpoint.serve(conn, &greeting).await;
                }
                Err(error) => {
                    count(&endpoint.counters.handshake_failures, 1);
                    endpoint.tell_refusal(&from, &error);
                }
            }
        });
    }

    /// Whoever is refused tries again and again: one line in a while is enough.
    fn tell_refusal(&self, from: &str, error: &HandshakeError) {
        let now = Instant::now();
        let mut told = self.told_refusal.lock();
        if told.is_none_or(|told| now.duration_since(told) >= REFUSAL_SILENCE) {
            *told = Some(now);
            tracing::warn!(from, %error, "peer connection refused");
        } else {
            tracing::debug!(from, %error, "peer connection refused");
        }
    }

    async fn welcome(&self, mut conn: BoxConn) -> Result<(BoxConn, Greeting), HandshakeError> {
        let identity = self.identity();
        let admit = |_: &Greeting| {
            if self.closing.is_cancelled() {
                Err(HandshakeError::Stopping)
            } else {
                Ok(())
            }
        };
        let shaking = handshake::accept(&mut conn, &identity, admit);
        let greeting = tokio::time::timeout(self.config.timings.handshake, shaking)
            .await
            .map_err(|_| HandshakeError::Deadline)??;
        Ok((conn, greeting))
    }

    async fn serve(&self, conn: BoxConn, greeting: &Greeting) {
        count(&self.counters.accepts, 1);
        let peer = greeting.from;
        let link = Link::new(peer.node, self.config.limits, peer.limits);
        let service = Service::new(
            Arc::clone(&link),
            Lane::of_link(greeting.lane),
            greeting.introduction,
            Arc::clone(&self.registry),
            Arc::clone(&self.counters),
        );
        if greeting.introduction {
            self.run(link, conn, Some(service)).await;
            return;
        }
        for ((node, _), connector) in &*self.connectors.lock() {
            if *node == peer.node {
                connector.kick();
            }
        }
        let key = (peer.node, greeting.lane);
        let replaced = self.accepted.lock().insert(key, Arc::clone(&link));
        if let Some(old) = replaced {
            old.fail(old.broken("the peer connected anew"));
        }
        self.run(Arc::clone(&link), conn, Some(service)).await;
        let mut accepted = self.accepted.lock();
        if accepted
            .get(&key)
            .is_some_and(|now| Arc::ptr_eq(now, &link))
        {
            accepted.remove(&key);
        }
    }

    /// The link a message takes, connecting if need be.
    async fn link(
        self: &Arc<Self>,
        node: NodeId,
        number: u8,
        deadline: Instant,
    ) -> Result<Arc<Link>, PeerError> {
        let connector = {
            let mut connectors = self.connectors.lock();
            if self.closing.is_cancelled() {
                return Err(PeerError::Closed);
            }
            let known = connectors.get(&(node, number)).cloned();
            if let Some(known) = known {
                known
            } else if self.book.get(node).is_none() {
                // Only known nodes get a task.
                return Err(PeerError::Unreachable {
                    node,
                    reason: "its address is not known".into(),
                });
            } else {
                let connector = Connector::start(self, node, number);
                connectors.insert((node, number), Arc::clone(&connector));
                connector
            }
        };
        connector.link(deadline).await
    }

    pub(super) fn join_cluster(&self, cluster: ClusterId) {
        *self.cluster.lock() = Some(cluster);
    }

    pub(super) fn register(&self, kinds: Range<u16>, handler: Arc<dyn PeerHandler>) {
        self.registry.register(kinds, handler);
    }

    pub(super) async fn call(
        self: &Arc<Self>,
        target: Target,
        payload: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<Bytes, PeerError> {
        let number = target.lane.link(target.route.group);
        let link = self.link(target.node, number, deadline).await?;
        count(&self.counters.calls, 1);
        let answer = link
            .call(target.kind, target.route, payload, deadline)
            .await;
        if answer == Err(PeerError::Timeout) {
            count(&self.counters.call_timeouts, 1);
        }
        answer
    }

    pub(super) async fn open_stream(
        self: &Arc<Self>,
        target: Target,
        deadline: Instant,
    ) -> Result<(StreamSender, StreamReceiver), PeerError> {
        let number = target.lane.link(target.route.group);
        let link = self.link(target.node, number, deadline).await?;
        link.open(target.kind, target.route)
    }

    pub(super) async fn introduce(
        self: &Arc<Self>,
        address: String,
        kind: Kind,
        payload: Vec<Bytes>,
        deadline: Instant,
    ) -> Result<(NodeId, Bytes), PeerError> {
        let unreachable = |reason: String| PeerError::Unreachable {
            node: NodeId(0),
            reason: format!("{address}: {reason}"),
        };
        if !kind.is_introduction() {
            return Err(PeerError::Refused(Refusal::Unclustered));
        }
        let greeting = Greeting::new(self.identity(), NodeId(0), 0, true);
        let dialling = self.dial(address.clone(), greeting);
        let (conn, peer) = tokio::time::timeout_at(deadline, dialling)
            .await
            .map_err(|_| unreachable("no connection in time".into()))?
            .map_err(|error| unreachable(error.to_string()))?;
        let link = Link::new(peer.node, self.config.limits, peer.limits);
        let (running, endpoint) = (Arc::clone(&link), Arc::clone(self));
        self.spawn(async move { endpoint.run(running, conn, None).await });
        let answer = link.call(kind, Route::default(), payload, deadline).await;
        link.finish();
        answer.map(|answer| (peer.node, answer))
    }

    pub(super) async fn close(&self) {
        self.closing.cancel();
        let links: Vec<Running> = self.links.lock().values().cloned().collect();
        for running in &links {
            running.link.drain();
        }
        let draining = async {
            for running in &links {
                if let Some(service) = &running.service {
                    service.drained().await;
                }
                running.link.finish();
            }
            for running in &links {
                running.link.stop().cancelled().await;
            }
        };
        // Whoever does not read in time loses what it did not read.
        let _ = tokio::time::timeout(self.config.timings.linger, draining).await;
        self.end();
        self.tasks.wait().await;
    }

    pub(super) fn end(&self) {
        self.closing.cancel();
        self.over.cancel();
        self.tasks.close();
        self.registry.clear();
        self.connectors.lock().clear();
    }
}
