//! A simulated network: byte streams between nodes of one process, under a seed and tokio's
//! paused time, with faults.
//!
//! It replaces only what carries bytes. Handshake, frames, credits, reconnecting and liveness are
//! the very code that runs over TCP, so a simulation meets their behaviour and their bugs. Bytes
//! of one connection arrive in order and whole, or the connection breaks, as TCP has it; between
//! connections, and so between lanes, order is up to latency and jitter.
//!
//! The trace hash covers every connect, write, delivery and fault with its time: one seed run
//! twice gives one trace.

mod conn;
mod world;

use std::fmt;
use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use parking_lot::Mutex;
use tokio::sync::Notify;
use trilog_model::NodeId;
use trilog_storage::env::Entropy;

use self::conn::SimConn;
use self::world::{Side, World};
use super::endpoint::{Endpoint, TransportConfig};
use super::handle::Transport;
use super::net::{BoxConn, Net};

/// How bytes travel from one node to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Path {
    pub latency: Duration,
    /// Up to this much is added to each write's latency.
    pub jitter: Duration,
    /// Bytes per second; `None` for no limit.
    pub bandwidth: Option<u64>,
}

impl Default for Path {
    fn default() -> Self {
        Self {
            latency: Duration::from_millis(1),
            jitter: Duration::from_millis(1),
            bandwidth: None,
        }
    }
}

/// How a node goes down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// The process ends; its machine tells the peers.
    Process,
    /// The machine vanishes; peers hear nothing until it is back.
    Machine,
}

/// What a simulation has done so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trace {
    pub hash: u64,
    pub events: u64,
}

/// The network of one simulation; cheap to clone.
#[derive(Clone)]
pub struct SimNet {
    world: Arc<Mutex<World>>,
    /// Whenever cuts, hosts or backlogs change.
    changed: Arc<Notify>,
}

impl fmt::Debug for SimNet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimNet")
            .field("trace", &self.trace())
            .finish_non_exhaustive()
    }
}

impl SimNet {
    /// A network without nodes. Runs inside a tokio runtime, best with its time paused.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            world: Arc::new(Mutex::new(World::new(seed))),
            changed: Arc::default(),
        }
    }

    /// Starts a node's transport; also restarts one that crashed.
    #[must_use]
    pub fn transport(&self, config: TransportConfig) -> Transport {
        let node = config.node;
        let (incarnation, seed) = self.world.lock().start_host(node);
        self.changed.notify_waiters();
        let net = SimHost {
            net: self.clone(),
            node,
            incarnation,
        };
        let transport = Transport::over(config, Box::new(net), Entropy::from_seed(seed));
        self.world.lock().own(node, transport.endpoint());
        transport
    }

    /// The address under which a node listens that was never moved.
    #[must_use]
    pub fn address(node: NodeId) -> String {
        Self::address_at(node, 0)
    }

    /// The address of a node at one of its places.
    #[must_use]
    pub fn address_at(node: NodeId, place: u32) -> String {
        if place == 0 {
            format!("sim:{node}")
        } else {
            format!("sim:{node}:{place}")
        }
    }

    /// Gives a node that is down another address: nobody is at the former one any more.
    pub fn relocate(&self, node: NodeId, place: u32) {
        self.world.lock().relocate(node, place);
    }

    /// Sets how bytes travel where nothing else is said.
    pub fn set_default_path(&self, path: Path) {
        self.world.lock().default_path = path;
    }

    /// Sets how bytes travel from one node to another.
    pub fn set_path(&self, from: NodeId, to: NodeId, path: Path) {
        self.world.lock().set_path(from, to, path);
    }

    /// Nothing passes from one node to another any more, the other way all does.
    pub fn cut(&self, from: NodeId, to: NodeId) {
        self.world.lock().cut(from, to);
    }

    /// What was held back passes again.
    pub fn heal(&self, from: NodeId, to: NodeId) {
        self.world.lock().heal(from, to);
        self.changed.notify_waiters();
    }

    /// Cuts a node off from every other, both ways.
    pub fn isolate(&self, node: NodeId) {
        let mut world = self.world.lock();
        for other in world.nodes() {
            if other != node {
                world.cut(node, other);
                world.cut(other, node);
            }
        }
    }

    /// As [`SimNet::isolate`], but by something that refuses what it does not let pass, such as a
    /// firewall: to every other it looks as if nobody listened at the node any more.
    pub fn reject(&self, node: NodeId) {
        let mut world = self.world.lock();
        for other in world.nodes() {
            if other != node {
                world.reject(node, other);
            }
        }
    }

    /// Cuts the nodes of different sides off from each other. Nodes on no side reach all: so
    /// `[[1], [2]]` with a node 3 is a partial partition.
    pub fn partition(&self, sides: &[&[NodeId]]) {
        let mut world = self.world.lock();
        for (place, side) in sides.iter().enumerate() {
            for other in sides.iter().skip(place + 1) {
                for (&a, &b) in side.iter().flat_map(|a| other.iter().map(move |b| (a, b))) {
                    world.cut(a, b);
                    world.cut(b, a);
                }
            }
        }
    }

    /// Removes every cut, and whatever refuses.
    pub fn heal_all(&self) {
        let mut world = self.world.lock();
        world.admit_all();
        for (from, to) in world.cuts() {
            world.heal(from, to);
        }
        drop(world);
        self.changed.notify_waiters();
    }

    /// Breaks every connection between two nodes; what is in flight arrives in part.
    pub fn reset_links(&self, a: NodeId, b: NodeId) {
        self.world.lock().reset_between(a, b);
    }

    /// Ends a node's transport as a crash would. [`SimNet::transport`] starts it again.
    pub fn crash(&self, node: NodeId, how: Crash) {
        let endpoint = self.world.lock().crash(node, how);
        self.changed.notify_waiters();
        if let Some(endpoint) = endpoint.and_then(|endpoint| endpoint.upgrade()) {
            endpoint.end();
        }
    }

    /// What happened so far.
    #[must_use]
    pub fn trace(&self) -> Trace {
        self.world.lock().trace()
    }
}

/// One node's access to the simulated network, for one life of the node.
#[derive(Debug)]
struct SimHost {
    net: SimNet,
    node: NodeId,
    incarnation: u64,
}

type Owner = Weak<Endpoint>;

impl Net for SimHost {
    fn connect(&self, address: String) -> BoxFuture<'static, io::Result<BoxConn>> {
        let (net, from) = (self.net.clone(), self.node);
        Box::pin(async move {
            let (to, place) = parse(&address)?;
            let there = net.world.lock().travel(from, to);
            tokio::time::sleep(there).await;
            loop {
                let changed = net.changed.notified();
                if net.world.lock().reaches_both_ways(from, to) {
                    break;
                }
                changed.await;
            }
            let connected = net.world.lock().connect(from, to, place);
            let conn =
                connected.map(|id| SimConn::new(Arc::clone(&net.world), id, Side::Initiator));
            net.changed.notify_waiters();
            let back = net.world.lock().travel(to, from);
            tokio::time::sleep(back).await;
            conn.map(|conn| Box::new(conn) as BoxConn)
                .ok_or_else(|| io::ErrorKind::ConnectionRefused.into())
        })
    }

    fn accept(&self) -> BoxFuture<'_, io::Result<(BoxConn, String)>> {
        Box::pin(async move {
            loop {
                let changed = self.net.changed.notified();
                let next = self.net.world.lock().accept(self.node, self.incarnation);
                if let Some((id, from)) = next {
                    let world = Arc::clone(&self.net.world);
                    let conn = SimConn::new(world, id, Side::Acceptor);
                    let place = self.net.world.lock().place(from);
                    return Ok((Box::new(conn) as BoxConn, SimNet::address_at(from, place)));
                }
                changed.await;
            }
        })
    }

    fn address(&self) -> String {
        let place = self.net.world.lock().place(self.node);
        SimNet::address_at(self.node, place)
    }
}

fn parse(address: &str) -> io::Result<(NodeId, u32)> {
    let parsed = address.strip_prefix("sim:").and_then(|name| {
        let (node, place) = name.split_once(':').unwrap_or((name, "0"));
        Some((NodeId(node.parse().ok()?), place.parse().ok()?))
    });
    parsed.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a simulated address"))
}

#[cfg(test)]
mod tests;
