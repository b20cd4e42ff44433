//! Nodes with simulated disks, clocks and links, each a process that can be killed, lose its
//! power and be started again.

mod failing;
mod replace;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use trilog_model::{GroupId, NodeId, ReplicaId};
use trilog_storage::env::{Clock, Entropy};
use trilog_storage::fatal::Fatal;
use trilog_storage::io::sim::{PowerLoss, SimConfig, SimDisk};
use trilog_storage::kv::{Kv, MemoryKv};
use trilog_storage::log::StoreConfig;
use trilog_storage::store::{Store, StoreStats};

use super::{Checks, Owner, SimClock, Witness};
use crate::config::RaftConfig;
use crate::group::{Group, Leadership, OpenError};
use crate::node::Node;
use crate::transport::sim::{Crash, Path, SimNet};
use crate::transport::{ClusterId, Transport, TransportConfig};
use crate::{KV_FAMILY, runtime};

/// How often the checks look at the replicas.
const STEP: Duration = Duration::from_millis(5);
/// How long anything that must happen may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// What a simulation is made of.
#[derive(Clone, Debug)]
pub struct ClusterConfig {
    pub seed: u64,
    pub nodes: u32,
    pub raft: RaftConfig,
    pub disk: SimConfig,
    pub path: Path,
    /// Shapes a node's store, given its folder.
    pub store: fn(PathBuf) -> StoreConfig,
}

impl ClusterConfig {
    /// Three nodes with small stores, so that files fill and roll while a test runs. Whether idle
    /// groups rest, and how soon, depends on the seed.
    #[must_use]
    pub fn three(seed: u64) -> Self {
        let quiesce_after = match seed % 3 {
            0 => None,
            1 => Some(Duration::from_millis(150)),
            _ => Some(Duration::from_millis(600)),
        };
        Self {
            seed,
            nodes: 3,
            raft: RaftConfig {
                quiesce_after,
                ..RaftConfig::default()
            },
            disk: SimConfig::default(),
            path: Path::default(),
            store: small_store,
        }
    }
}

/// A store whose files are small.
#[must_use]
pub fn small_store(dir: PathBuf) -> StoreConfig {
    StoreConfig {
        wal_file_bytes: 256 << 10,
        wal_files: 6,
        wal_round_bytes: 64 << 10,
        pinned_bytes: 512 << 10,
        cache_bytes: 64 << 10,
        segment_bytes: 128 << 10,
        fill_bytes: 8 << 10,
        fill_workers: 1,
        read_workers: 1,
        scrub_bytes_per_second: 0,
        ..StoreConfig::dev(dir)
    }
}

/// One machine.
#[derive(Debug)]
struct Host {
    disk: SimDisk,
    kv: MemoryKv,
    clock: Arc<SimClock>,
    lives: u64,
    /// Somebody harmed its files, and nobody has shown yet that all is well again.
    damaged: bool,
    up: Option<Process>,
}

impl Host {
    /// What runs here. A process whose disk failed does not: all that it still does is end.
    fn running(&self) -> Option<&Process> {
        self.up.as_ref().filter(|process| !process.has_failed())
    }
}

/// One life of a node.
#[derive(Clone, Debug)]
struct Process {
    node: Node,
    transport: Transport,
    owner: Owner,
    groups: BTreeMap<GroupId, Group<Witness>>,
    fatal: watch::Receiver<Option<Fatal>>,
    /// It failed and was ended.
    ended: Arc<AtomicBool>,
}

impl Process {
    fn has_failed(&self) -> bool {
        self.fatal.borrow().is_some()
    }
}

/// A cluster of simulated nodes.
#[derive(Debug)]
pub struct Cluster {
    config: ClusterConfig,
    pub net: SimNet,
    pub checks: Checks,
    hosts: BTreeMap<NodeId, Host>,
    /// The groups every node shall hold, with the incarnation of each replica.
    groups: BTreeMap<GroupId, BTreeMap<NodeId, ReplicaId>>,
    /// Replicas that damage took from nodes which shall have another one each.
    lost: BTreeSet<(GroupId, ReplicaId)>,
    /// How many have come so far.
    replaced: usize,
    /// Draws what a scenario decides by chance.
    pub entropy: Entropy,
}

impl Cluster {
    /// Starts all nodes, without any group.
    pub async fn start(config: ClusterConfig) -> Self {
        runtime::seed_thread(config.seed);
        let entropy = Entropy::from_seed(config.seed);
        let net = SimNet::new(entropy.next_u64());
        net.set_default_path(config.path);
        let mut cluster = Self {
            hosts: BTreeMap::new(),
            groups: BTreeMap::new(),
            lost: BTreeSet::new(),
            replaced: 0,
            checks: Checks::default(),
            net,
            entropy,
            config,
        };
        for number in 1..=cluster.config.nodes {
            let host = Host {
                disk: SimDisk::with_config(cluster.entropy.next_u64(), cluster.config.disk.clone()),
                kv: MemoryKv::new(&[KV_FAMILY]),
                clock: Arc::default(),
                lives: 0,
                damaged: false,
                up: None,
            };
            cluster.hosts.insert(NodeId(number), host);
            cluster.boot(NodeId(number)).await;
        }
        cluster
    }

    /// Every machine, up or not.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.hosts.keys().copied().collect()
    }

    /// The nodes that run.
    #[must_use]
    pub fn up(&self) -> Vec<NodeId> {
        let up = self
            .hosts
            .iter()
            .filter(|(_, host)| host.running().is_some());
        up.map(|(node, _)| *node).collect()
    }

    /// A node's disk, to break it.
    #[must_use]
    pub fn disk(&self, node: NodeId) -> &SimDisk {
        &self.hosts[&node].disk
    }

    /// A node's disk is as fast as all were at first.
    pub fn restore_speed(&self, node: NodeId) {
        let first = &self.config.disk;
        self.disk(node).configure(|disk| {
            disk.latency_min = first.latency_min;
            disk.latency_max = first.latency_max;
        });
    }

    #[must_use]
    pub fn clock(&self, node: NodeId) -> &SimClock {
        &self.hosts[&node].clock
    }

    /// The running node's registry of groups.
    #[must_use]
    pub fn node(&self, node: NodeId) -> Option<&Node> {
        self.hosts[&node].running().map(|process| &process.node)
    }

    /// A running node's replica of a group.
    #[must_use]
    pub fn group(&self, node: NodeId, group: GroupId) -> Option<&Group<Witness>> {
        self.hosts[&node].running()?.groups.get(&group)
    }

    /// What a running node's store has in memory.
    #[must_use]
    pub fn store_stats(&self, node: NodeId) -> StoreStats {
        let up = self.node(node);
        up.map_or_else(StoreStats::default, |up| up.store().stats())
    }

    /// Every running replica of a group.
    #[must_use]
    pub fn replicas(&self, group: GroupId) -> Vec<Group<Witness>> {
        let up = self.hosts.values().filter_map(Host::running);
        up.filter_map(|process| process.groups.get(&group).cloned())
            .collect()
    }

    /// Places a group on all nodes and founds it with all of them as voters.
    pub async fn create_group(&mut self, group: GroupId) {
        let nodes = self.nodes();
        self.place(group, &nodes, &nodes).await;
    }

    /// Places a group on all nodes and founds it with some of them as voters.
    pub async fn create_group_with(&mut self, group: GroupId, founders: &[NodeId]) {
        let nodes = self.nodes();
        self.place(group, &nodes, founders).await;
    }

    /// Places a group on some nodes and founds it with all of these as voters.
    pub async fn place_group(&mut self, group: GroupId, nodes: &[NodeId]) {
        self.place(group, nodes, nodes).await;
    }

    async fn place(&mut self, group: GroupId, nodes: &[NodeId], founders: &[NodeId]) {
        let replicas: BTreeMap<NodeId, ReplicaId> = nodes
            .iter()
            .map(|node| (*node, ReplicaId::new(*node, 1)))
            .collect();
        self.groups.insert(group, replicas.clone());
        for node in nodes {
            self.open(*node, group).await;
        }
        let voters: BTreeSet<ReplicaId> = founders.iter().map(|node| replicas[node]).collect();
        for node in founders {
            let Some(replica) = self.group(*node, group) else {
                continue;
            };
            // Whoever heard of another's candidacy first is founded by it.
            let _ = replica.found(&voters).await;
        }
    }

    async fn open(&mut self, node: NodeId, group: GroupId) {
        let Some(process) = self.hosts[&node].running().cloned() else {
            return;
        };
        let Some(replica) = self.groups[&group].get(&node).copied() else {
            return;
        };
        let view = Witness::new(node, self.checks.clone());
        let opening = process.node.open_group(group, replica, view);
        let opened = process.owner.scope(opening).await;
        if process.has_failed() {
            return;
        }
        let log = process.node.store().group(group);
        let damaged = log.is_some_and(|log| log.gaps().iter().any(|gap| gap.first.is_some()));
        if damaged && opened.as_ref().is_err_and(OpenError::is_damage) {
            // It opens when another replica's copy has taken the place of what is damaged.
            self.tell_members(&process.node, group);
            return;
        }
        let opened = opened.unwrap_or_else(|error| panic!("node {node} cannot open: {error}"));
        let host = self.hosts.get_mut(&node);
        if let Some(process) = host.and_then(|host| host.up.as_mut()) {
            process.groups.insert(group, opened);
        }
    }

    /// Opens another replica of a group on a node, empty unless it was here before.
    pub async fn open_replica(&mut self, group: GroupId, replica: ReplicaId) {
        let node = replica.node();
        let placed = self.groups.entry(group).or_default();
        placed.insert(node, replica);
        self.open(node, group).await;
    }

    /// Closes a node's replica of a group and deletes what it held.
    pub async fn delete_replica(&mut self, group: GroupId, node: NodeId) {
        if let Some(placed) = self.groups.get_mut(&group) {
            placed.remove(&node);
        }
        let host = self.hosts.get_mut(&node);
        let Some(process) = host.and_then(|host| host.up.as_mut()) else {
            return;
        };
        process.groups.remove(&group);
        let running = process.node.clone();
        running.close_group(group).await;
        let deleted = running.delete_group(group).await;
        deleted.unwrap_or_else(|error| panic!("node {node} cannot delete: {error}"));
        self.checks.closed(node, group);
    }

    /// Kills a node and puts an empty disk in the place of its own. Its replicas are gone.
    pub fn wipe(&mut self, node: NodeId) {
        self.kill(node);
        let (seed, disk) = (self.entropy.next_u64(), self.config.disk.clone());
        if let Some(host) = self.hosts.get_mut(&node) {
            host.disk = SimDisk::with_config(seed, disk);
            host.kv = MemoryKv::new(&[KV_FAMILY]);
            host.lives = 0;
        }
        for placed in self.groups.values_mut() {
            placed.remove(&node);
        }
    }

    /// A running node's links.
    #[must_use]
    pub fn transport(&self, node: NodeId) -> Option<&Transport> {
        self.hosts[&node].running().map(|up| &up.transport)
    }

    /// Ends one replica of a group in a node that goes on living.
    pub async fn close(&mut self, node: NodeId, group: GroupId) {
        let host = self.hosts.get_mut(&node);
        let Some(process) = host.and_then(|host| host.up.as_mut()) else {
            return;
        };
        process.groups.remove(&group);
        let running = process.node.clone();
        running.close_group(group).await;
        self.checks.closed(node, group);
    }

    /// Starts a node that is down, on what its disk holds. It stays down if that fails meanwhile.
    pub async fn boot(&mut self, node: NodeId) {
        self.bury(node);
        let owner = Owner::default();
        let Some(store) = self.open_store(node, &owner).await else {
            return;
        };
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        let transport = self
            .net
            .transport(TransportConfig::new(node, Some(ClusterId([7; 16]))));
        let peers = (1..=self.config.nodes).map(NodeId);
        for peer in peers.filter(|peer| *peer != node) {
            transport.book().set(peer, SimNet::address(peer));
        }
        let kv = host.kv.kv();
        let entropy = Entropy::from_seed(self.entropy.next_u64());
        let clock: Arc<dyn Clock> = Arc::<SimClock>::clone(&host.clock);
        let (raft, links) = (&self.config.raft, transport.clone());
        let fatal = store.fatal();
        let starting = async { Node::start(raft, store, kv, links, clock, &entropy) };
        let started = owner.scope(starting).await;
        let process = Process {
            node: started.unwrap_or_else(|error| panic!("{error}")),
            transport,
            owner,
            groups: BTreeMap::new(),
            fatal,
            ended: Arc::default(),
        };
        host.up = Some(process);
        let groups: Vec<GroupId> = self.groups.keys().copied().collect();
        for group in groups {
            self.open(node, group).await;
        }
    }

    /// Ends a node's process where it stands. What it wrote stays on its disk.
    pub fn kill(&mut self, node: NodeId) {
        self.end(node, Crash::Process, SimDisk::kill);
    }

    /// Pulls a node's plug: what its disk had not synced meets its fate.
    pub fn power_loss(&mut self, node: NodeId) {
        self.end(node, Crash::Machine, |disk| disk.crash(PowerLoss::Any));
    }

    fn end(&mut self, node: NodeId, how: Crash, disk: impl FnOnce(&SimDisk)) {
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        let Some(process) = host.up.take() else {
            return;
        };
        process.owner.abort_all();
        process.node.abort();
        self.net.crash(node, how);
        disk(&host.disk);
        // The engine's memory goes with the process; a flush it began on its own may have ended.
        host.kv = if self.entropy.next_u64().is_multiple_of(2) {
            host.kv.crash()
        } else {
            host.kv.crash_after_background_flush()
        };
        self.checks.stopped(node);
    }

    /// Stops a node in order: leadership handed over, everything drained. Should its disk fail
    /// meanwhile, it ends where it stands.
    pub async fn stop(&mut self, node: NodeId) {
        let Some(process) = self.hosts.get_mut(&node).and_then(|host| host.up.take()) else {
            return;
        };
        // Not by waiting on the channel, which wakes its waiters in an order that no seed decides.
        let failed = async {
            while !process.has_failed() {
                tokio::time::sleep(STEP).await;
            }
        };
        tokio::select! {
            biased;
            () = process.stop() => {}
            () = failed => {}
        }
        let failed = process.has_failed();
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        if failed {
            host.up = Some(process);
            return self.kill(node);
        }
        drop(process);
        let flushed = host.kv.kv().flush().await;
        flushed.unwrap_or_else(|error| panic!("{error}"));
        self.net.crash(node, Crash::Process);
        self.checks.stopped(node);
    }

    /// Loses a node that is down for ever.
    pub fn lose(&mut self, node: NodeId) {
        let host = self.hosts.remove(&node);
        assert!(
            host.is_none_or(|host| host.up.is_none()),
            "node {node} runs"
        );
        for placed in self.groups.values_mut() {
            placed.remove(&node);
        }
    }

    /// Opens the files of a node that is down, for whoever repairs them, and closes them in order.
    pub async fn offline(&mut self, node: NodeId, repair: impl AsyncFnOnce(&Store, &Kv)) {
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        assert!(host.up.is_none(), "node {node} runs");
        host.disk = host.disk.reopen();
        let opening = Store::open(
            (self.config.store)(PathBuf::from("/data")),
            host.disk.backend(),
            host.clock.clone(),
            Entropy::from_seed(self.entropy.next_u64()),
        );
        let (store, report) = opening.await.unwrap_or_else(|error| panic!("{error}"));
        assert!(!report.step_aside, "node {node} found its disk damaged");
        let kv = host.kv.kv();
        repair(&store, &kv).await;
        let flushed = kv.flush().await;
        flushed.unwrap_or_else(|error| panic!("{error}"));
        let closed = store.close().await;
        closed.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Who leads a group and is ready, as far as the running replicas know: the highest term.
    #[must_use]
    pub fn leader(&self, group: GroupId) -> Option<(NodeId, Leadership)> {
        let leaders = self.hosts.iter().filter_map(|(node, host)| {
            let replica = host.running()?.groups.get(&group)?;
            let now = *replica.leadership().borrow();
            now.ready.then_some((*node, now))
        });
        leaders.max_by_key(|(_, now)| now.term)
    }

    /// Lets time pass, looking at every replica as it does.
    pub async fn run(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            tokio::time::sleep(STEP).await;
            self.look();
        }
    }

    /// Checks what must hold at every moment.
    pub fn look(&self) {
        for (node, host) in &self.hosts {
            let Some(process) = &host.up else { continue };
            if process.has_failed() {
                self.end_failed(*node, host, process);
                continue;
            }
            for (group, replica) in &process.groups {
                let leadership = *replica.leadership().borrow();
                let high_watermark = *replica.high_watermark().borrow();
                self.checks
                    .observe(*node, *group, leadership, high_watermark);
                replica.replica_handle().check_positions();
            }
        }
    }

    /// Lets time pass until something holds; panics if it takes too long.
    pub async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(self) {
            assert!(
                Instant::now() < end,
                "seed {}: {what} did not happen in {PATIENCE:?}",
                self.config.seed
            );
            self.run(STEP).await;
        }
    }

    /// Waits for a ready leader and returns its node.
    pub async fn await_leader(&self, group: GroupId) -> NodeId {
        self.until("an election", |cluster| cluster.leader(group).is_some())
            .await;
        self.leader(group).map_or(NodeId(0), |(node, _)| node)
    }

    /// Whether every running replica of a group rests.
    #[must_use]
    pub fn rests(&self, group: GroupId) -> bool {
        let replicas = self.replicas(group);
        !replicas.is_empty() && replicas.iter().all(Group::rests)
    }

    /// Waits until every running replica of a group rests.
    pub async fn await_rest(&self, group: GroupId) {
        self.until("rest", |cluster| cluster.rests(group)).await;
    }

    /// Frames that the running nodes have sent each other so far.
    #[must_use]
    pub fn frames(&self) -> u64 {
        let up = self.hosts.values().filter_map(Host::running);
        up.map(|process| process.transport.stats().frames_out).sum()
    }

    /// Opens what was closed, or did not open for damage, if it can be by now. Whether everything
    /// is open.
    pub async fn open_all(&mut self) -> bool {
        let mut all = true;
        for node in self.up() {
            let placed = self.groups.iter().filter(|(_, on)| on.contains_key(&node));
            for group in placed.map(|(group, _)| *group).collect::<Vec<_>>() {
                if self.group(node, group).is_none() {
                    self.open(node, group).await;
                    all &= self.group(node, group).is_some();
                }
            }
        }
        all
    }

    /// Removes every fault and starts every node; what damage took is replaced.
    pub async fn heal(&mut self) {
        self.net.heal_all();
        for node in self.nodes() {
            let disk = self.config.disk.clone();
            self.hosts[&node].disk.mend();
            self.hosts[&node].disk.configure(|config| *config = disk);
            if self.hosts[&node].running().is_none() {
                self.boot(node).await;
            }
        }
        let end = Instant::now() + PATIENCE;
        while !self.open_all().await {
            let seed = self.config.seed;
            assert!(Instant::now() < end, "seed {seed}: not every replica opens");
            self.run(STEP * 10).await;
        }
        self.replace_lost().await;
    }

    /// Waits until every node is up and has applied the same entries; then compares the replicas'
    /// state, their logs byte for byte, and every client's outcome with it.
    pub async fn converge(&self, group: GroupId) {
        self.await_leader(group).await;
        let members = self.groups[&group].len();
        self.until("convergence", |cluster| {
            let replicas = cluster.replicas(group);
            let ends: BTreeSet<_> = replicas
                .iter()
                .map(|replica| {
                    let last = replica.log().state().last.map(|id| id.index);
                    (last, replica.high_watermark().borrow().applied)
                })
                .collect();
            let one_end = ends.len() == 1 && ends.iter().all(|(last, applied)| last == applied);
            replicas.len() == members && one_end
        })
        .await;
        super::compare::replicas(&self.replicas(group)).await;
        for replica in self.replicas(group) {
            let folded = replica.with_view(|view| view.tally.commands.clone());
            self.checks.judge(group, &folded);
        }
    }

    /// A digest of everything that happened: equal for two runs of one seed.
    #[must_use]
    pub fn trace(&self) -> u64 {
        let mut digest = self.net.trace().hash;
        for host in self.hosts.values() {
            digest = digest.rotate_left(13) ^ host.disk.trace_hash();
        }
        digest
    }
}
