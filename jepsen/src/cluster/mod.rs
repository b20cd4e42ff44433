//! A cluster of real node processes on free ports of this machine.
//!
//! ```text
//! Cluster ──> Node        a process and its files, one of each
//!    ├─────> Network      what passes between them, and how: Links or Spaces
//!    └─────> Disk         file systems of their own, where the machine can
//! ```
//!
//! Owns the processes; it knows nothing of why they are started or killed.

pub mod disk;
mod keeper;
mod links;
mod network;
mod node;
mod ports;
mod sockets;
pub mod spaces;
mod ways;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use trilog_client::proto::StatusResponse;
use trilog_client::{Client, ClientConfig};

pub use disk::Disk;
use keeper::Keeper;
pub use links::Links;
pub use network::{Medium, Network};
#[cfg(test)]
pub(crate) use node::shell_program;
pub use node::{Node, Place, verify};
pub use ports::Ports;
pub use ways::{Pair, Way};

use crate::kafka::{self, Lives};

/// Ports of one node, the one for other nodes to reach it through included.
const STRIDE: u16 = 5;
/// Of a node's own, with room for some hundred thousand records.
const DISK_BYTES: u64 = 320 << 20;
/// How long one question to one node may take.
const QUESTION: Duration = Duration::from_secs(2);
const POLL: Duration = Duration::from_millis(100);
/// Small, so that files are closed, recycled and copied within a run.
const SETTINGS: &str = "wal_file_size = \"4MiB\"\nwal_files = 8\nsegment_size = \"1MiB\"\n\
                        fill_size = \"64KiB\"\nscrub_rate = \"16MiB\"\n\
                        [groups]\npartitions = 4\ninitial_rebalance_delay = \"0s\"\n\
                        [transactions]\npartitions = 4\n[log]\nformat = \"text\"\n";

/// What is wrong with a cluster.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    #[error("no block of ports is free")]
    Ports,
    #[error("{what}")]
    Io {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("node {number} ended as soon as it was started ({how})")]
    Ended { number: u32, how: String },
    #[error("the cluster is not {what} after {} s: {state}", waited.as_secs())]
    Late {
        what: &'static str,
        waited: Duration,
        state: String,
    },
}

/// Names the step that an error belongs to.
pub fn while_doing(what: &'static str) -> impl Fn(io::Error) -> ClusterError {
    move |source| ClusterError::Io { what, source }
}

/// An error if that was waited for long enough.
fn late(began: Instant, patience: Duration, state: String) -> Result<(), ClusterError> {
    let waited = began.elapsed();
    if waited < patience {
        return Ok(());
    }
    let what = "whole";
    Err(ClusterError::Late {
        what,
        waited,
        state,
    })
}

/// What killing nodes came to.
#[derive(Debug, Default)]
pub struct Killed {
    /// How many were running.
    pub count: usize,
    /// Who had ended by itself before, and how.
    pub before: Vec<(u32, ExitStatus)>,
}

/// The nodes; dropping them ends them.
#[derive(Debug)]
pub struct Cluster {
    pub nodes: Vec<Node>,
    pub network: Network,
    /// By node, where they have disks of their own. Dropped after the nodes.
    pub disks: BTreeMap<u32, Disk>,
    /// The program that is to replace the one that nodes run, if there is one.
    pub newer: Option<PathBuf>,
    lives: Lives,
    _ports: Ports,
    /// Dropped after the disks.
    _keeper: Option<Keeper>,
}

impl Cluster {
    /// So many nodes under `dir`, yet to be started. They reach each other through links that can
    /// be made bad, and have disks of their own if `own_disks`.
    pub async fn prepare(
        binary: &Path,
        dir: &Path,
        count: u32,
        seed: u64,
        medium: &Medium,
        own_disks: bool,
    ) -> Result<Self, ClusterError> {
        let ready = medium.make_ready();
        ready.map_err(while_doing("entering a network"))?;
        let ports = Ports::claim().ok_or(ClusterError::Ports)?;
        let mut places = Vec::new();
        for number in 1..=count {
            let nth = u16::try_from(number - 1).map_err(|_| ClusterError::Ports)?;
            places.push(Place::new(number, ports.first() + STRIDE * nth));
        }
        let network = Network::lay(medium, &mut places, seed)
            .await
            .map_err(while_doing("laying out a network"))?;
        let seeds: Vec<String> = places.iter().map(Place::reached_at).collect();
        let mut keeper = if own_disks {
            Some(Keeper::start().map_err(while_doing("starting a shell"))?)
        } else {
            None
        };
        let mut disks = BTreeMap::new();
        let mut nodes = Vec::new();
        for place in places {
            if let Some(keeper) = &mut keeper {
                let image = dir.join(format!("disk-{}.img", place.number));
                let at = Node::disk_of(dir, &place);
                let kept = keeper.keep(&at);
                kept.map_err(while_doing("having a disk looked after"))?;
                let disk = Disk::make(&image, &at, DISK_BYTES);
                disks.insert(place.number, disk.map_err(while_doing("making a disk"))?);
            }
            let space = network.space(place.number);
            let node = Node::prepare(binary, dir, place, &seeds, SETTINGS);
            let mut node = node.map_err(while_doing("writing a configuration"))?;
            node.lives_in(space);
            nodes.push(node);
        }
        Ok(Self {
            lives: (0..count).map(|_| AtomicU32::new(0)).collect(),
            nodes,
            network,
            disks,
            newer: None,
            _ports: ports,
            _keeper: keeper,
        })
    }

    pub fn lives(&self) -> Lives {
        Arc::clone(&self.lives)
    }

    /// Where clients of the native API go.
    pub fn addresses(&self) -> Vec<String> {
        let nodes = self.nodes.iter();
        nodes
            .map(|node| node.place.grpc_address().to_string())
            .collect()
    }

    pub fn kafka_nodes(&self) -> Vec<kafka::Node> {
        let nodes = self.nodes.iter().map(|node| kafka::Node {
            number: node.place.number,
            address: node.place.kafka_address(),
        });
        nodes.collect()
    }

    pub fn numbers(&self) -> Vec<u32> {
        self.nodes.iter().map(|node| node.place.number).collect()
    }

    pub fn node(&mut self, number: u32) -> Option<&mut Node> {
        self.nodes
            .iter_mut()
            .find(|node| node.place.number == number)
    }

    /// Starts a node that is not running.
    pub fn boot(&mut self, number: u32, arguments: &[&str]) -> Result<(), ClusterError> {
        let place = usize::try_from(number)
            .ok()
            .and_then(|number| number.checked_sub(1));
        let Some(node) = self
            .nodes
            .iter_mut()
            .find(|node| node.place.number == number)
        else {
            return Ok(());
        };
        if node.is_started() {
            return Ok(());
        }
        if let Some(life) = place.and_then(|place| self.lives.get(place)) {
            life.fetch_add(1, Ordering::SeqCst);
        }
        node.spawn(arguments)
            .map_err(while_doing("starting a node"))?;
        if let Some(pid) = node.pid() {
            self.network.is_process(number, pid);
        }
        Ok(())
    }

    pub fn boot_all(&mut self) -> Result<(), ClusterError> {
        for number in self.numbers() {
            if self.node(number).is_some_and(|node| !node.is_started()) {
                self.boot(number, &[])?;
            }
        }
        Ok(())
    }

    /// As `kill -9`, all of these at once.
    pub fn kill(&mut self, numbers: &[u32]) -> Result<Killed, ClusterError> {
        self.shoot(numbers)?;
        self.bury(numbers)
    }

    /// Has the kernel kill all of these, and does not wait for it.
    pub fn shoot(&mut self, numbers: &[u32]) -> Result<(), ClusterError> {
        for number in numbers {
            if let Some(node) = self.node(*number) {
                node.kill().map_err(while_doing("killing a node"))?;
            }
        }
        Ok(())
    }

    /// Waits for the ends of nodes that were shot.
    pub fn bury(&mut self, numbers: &[u32]) -> Result<Killed, ClusterError> {
        let mut killed = Killed::default();
        for number in numbers {
            let Some(node) = self.node(*number).filter(|node| node.is_started()) else {
                continue;
            };
            let before = node.bury().map_err(while_doing("waiting for a node"))?;
            killed.count += usize::from(before.is_none());
            killed.before.extend(before.map(|status| (*number, status)));
            self.network.is_gone(*number);
        }
        Ok(killed)
    }

    /// Has the disks of these, where they have some, stand still. What touches them waits.
    pub fn freeze(&self, numbers: &[u32]) -> Result<(), ClusterError> {
        let disks = numbers.iter().filter_map(|number| self.disks.get(number));
        for disk in disks {
            disk.freeze().map_err(while_doing("having a disk stall"))?;
        }
        Ok(())
    }

    /// Has disks go on.
    pub fn thaw(&self, numbers: &[u32]) -> Result<(), ClusterError> {
        let disks = numbers.iter().filter_map(|number| self.disks.get(number));
        for disk in disks {
            disk.thaw().map_err(while_doing("having a disk go on"))?;
        }
        Ok(())
    }

    /// Nodes that have ended although nobody asked them to, with how they ended.
    pub fn ended(&mut self) -> Result<Vec<(u32, ExitStatus)>, ClusterError> {
        let mut ended = Vec::new();
        for node in &mut self.nodes {
            if let Some(status) = node.ended().map_err(while_doing("looking at a node"))? {
                self.network.is_gone(node.place.number);
                ended.push((node.place.number, status));
            }
        }
        Ok(ended)
    }

    /// What one node says of the cluster.
    pub async fn status_of(&self, number: u32) -> Result<StatusResponse, String> {
        let node = self.nodes.iter().find(|node| node.place.number == number);
        let node = node.ok_or_else(|| format!("there is no node {number}"))?;
        let config = ClientConfig {
            seeds: vec![node.place.grpc_address().to_string()],
            connect_timeout: QUESTION,
            call_timeout: QUESTION,
            attempt_timeout: QUESTION,
            ..ClientConfig::default()
        };
        let asked = async { Client::connect_with(config).await?.admin().status().await };
        let answered = tokio::time::timeout(QUESTION, asked).await;
        answered
            .map_err(|_| format!("node {number} does not answer"))?
            .map_err(|error| error.to_string())
    }

    /// Waits until every node hears all others, every partition has a leader, and no replica is
    /// missing or on its way.
    pub async fn await_settled(&self, patience: Duration) -> Result<(), ClusterError> {
        let began = Instant::now();
        loop {
            let Err(state) = self.check_settled().await else {
                return Ok(());
            };
            late(began, patience, state)?;
            sleep(POLL).await;
        }
    }

    /// The same of nodes that were just started for the first time: whoever ends then would not fare
    /// better the next time.
    pub async fn await_start(&mut self, patience: Duration) -> Result<(), ClusterError> {
        let began = Instant::now();
        loop {
            if let Some((number, how)) = self.ended()?.pop() {
                let how = how.to_string();
                return Err(ClusterError::Ended { number, how });
            }
            let Err(state) = self.check_settled().await else {
                return Ok(());
            };
            late(began, patience, state)?;
            sleep(POLL).await;
        }
    }

    /// Whether every node hears all others, every partition has a leader, and no replica is missing
    /// or on its way; what is missing, if not.
    ///
    /// # Cancel safety
    ///
    /// It only asks.
    pub async fn check_settled(&self) -> Result<(), String> {
        for node in &self.nodes {
            let number = node.place.number;
            let status = self.status_of(number).await?;
            let alive = status.nodes.iter().filter(|node| node.alive).count();
            let (leaderless, missing, moving) = (
                status.leaderless_partitions,
                status.under_replicated_partitions,
                status.moving_replicas,
            );
            if alive < self.nodes.len() || leaderless + missing + moving > 0 {
                return Err(format!(
                    "node {number} says {alive} alive, {leaderless} leaderless, {missing} \
                     under-replicated, {moving} moving"
                ));
            }
        }
        Ok(())
    }

    /// What every node said last, for people.
    pub fn last_words(&self) -> String {
        let words = self
            .nodes
            .iter()
            .map(|node| format!("== {}\n{}\n", node.log().display(), node.last_words(15)));
        words.collect()
    }

    pub fn data_dirs(&self) -> Vec<(u32, PathBuf)> {
        let nodes = self.nodes.iter();
        nodes
            .map(|node| (node.place.number, node.data().to_owned()))
            .collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // A process that waits for a disk which stands still does not end, and would be waited for.
        for disk in self.disks.values() {
            let _going = disk.thaw();
        }
    }
}
