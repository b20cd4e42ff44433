//! Three nodes of one process over real TCP and real disks: proposals per second of one group,
//! what waking a group adds to a proposal, and what a thousand idle groups cost.
//!
//! `cargo bench -p trilog-raft --bench group [-- propose|wake|idle]`, on a machine that does nothing
//! else; the client tasks share the cores with all three nodes.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails, fails loudly")]

use std::collections::BTreeSet;
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use trilog_model::{GroupId, NodeId, ReplicaId};
use trilog_raft::transport::{ClusterId, Transport, TransportConfig};
use trilog_raft::{
    Applied, Committed, Group, KV_FAMILY, Node, Proposal, RaftConfig, View, ViewError,
};
use trilog_storage::env::{Entropy, SystemClock};
use trilog_storage::io::{Backend, Choice};
use trilog_storage::kv::{Kv, WriteBatch};
use trilog_storage::log::StoreConfig;
use trilog_storage::store::Store;

const GROUP: GroupId = GroupId(1_000_000);
const RUN: Duration = Duration::from_secs(5);
const IDLE_GROUPS: u64 = 1_000;
const WAKES: usize = 40;
/// Proposals of one drain at most.
const DRAIN: usize = 256;

/// A view that only counts.
#[derive(Debug, Default)]
struct Count(u64);

impl View for Count {
    fn apply(&mut self, _: &Committed<'_>, _: &mut WriteBatch) -> Bytes {
        self.0 += 1;
        Bytes::new()
    }

    fn snapshot(&self) -> Bytes {
        Bytes::copy_from_slice(&self.0.to_le_bytes())
    }

    fn restore(&mut self, state: &[u8], _: &mut WriteBatch) -> Result<(), ViewError> {
        let state = state.try_into();
        self.0 = u64::from_le_bytes(state.map_err(|_| ViewError::Unreadable("length".to_owned()))?);
        Ok(())
    }

    fn hash(&self) -> u64 {
        self.0
    }
}

struct Cluster {
    nodes: Vec<Node>,
    _dirs: Vec<tempfile::TempDir>,
}

impl Cluster {
    async fn start(config: &RaftConfig) -> Self {
        let mut nodes = Vec::new();
        let mut dirs = Vec::new();
        let mut transports: Vec<Transport> = Vec::new();
        for number in 1..=3 {
            let transport = TransportConfig::new(NodeId(number), Some(ClusterId([1; 16])));
            let entropy = Entropy::from_os();
            let transport = Transport::tcp(transport, "127.0.0.1:0", entropy.clone()).await;
            let transport = transport.unwrap();
            let dir = tempfile::tempdir().unwrap();
            let backend = Backend::probe(Choice::Auto, dir.path()).unwrap().backend;
            let store = StoreConfig::dev(dir.path().join("data"));
            let clock = Arc::new(SystemClock);
            let store = Store::open(store, backend, clock.clone(), entropy.clone()).await;
            let (store, _) = store.unwrap();
            let kv = Kv::memory(&[KV_FAMILY]);
            let node = Node::start(config, store, kv, transport.clone(), clock, &entropy);
            nodes.push(node.unwrap());
            dirs.push(dir);
            transports.push(transport);
        }
        for transport in &transports {
            for peer in transports
                .iter()
                .filter(|peer| peer.node() != transport.node())
            {
                transport.book().set(peer.node(), peer.address());
            }
        }
        Self { nodes, _dirs: dirs }
    }

    async fn open(&self, group: GroupId) -> Vec<Group<Count>> {
        let mut replicas = Vec::new();
        for node in &self.nodes {
            let replica = ReplicaId::new(node.id(), 1);
            let opened = node.open_group(group, replica, Count::default()).await;
            replicas.push(opened.unwrap());
        }
        let voters: BTreeSet<ReplicaId> = replicas.iter().map(Group::replica).collect();
        replicas[0].found(&voters).await.unwrap();
        replicas
    }
}

async fn leader(replicas: &[Group<Count>]) -> Group<Count> {
    let watches = replicas.iter().map(|replica| {
        let mut leadership = replica.leadership();
        Box::pin(async move {
            let ready = leadership.wait_for(|now| now.ready).await;
            ready.unwrap();
            replica.clone()
        })
    });
    futures::future::select_all(watches).await.0
}

/// A record batch of this many bytes in all, good enough for the log.
fn batch(len: usize) -> Bytes {
    let body = vec![7; len - 21];
    let mut out = BytesMut::with_capacity(len);
    out.put_u64(0);
    out.put_u32(u32::try_from(len - 12).unwrap());
    out.put_u32(0);
    out.put_u8(2);
    out.put_u32(crc32c::crc32c(&body));
    out.put_slice(&body);
    out.freeze()
}

fn proposal(len: usize) -> Proposal {
    Proposal {
        records: batch(len),
        record_count: 1,
        command: Bytes::new(),
    }
}

type Queued = (Proposal, oneshot::Sender<Applied>);

/// One drain in flight at a time: what queued meanwhile goes together.
async fn drain(group: Group<Count>, mut queue: mpsc::Receiver<Queued>) {
    let term = group.leadership().borrow().term;
    let mut waiting = Vec::with_capacity(DRAIN);
    while queue.recv_many(&mut waiting, DRAIN).await > 0 {
        let (proposals, answers): (Vec<_>, Vec<_>) = waiting.drain(..).unzip();
        let applied = group.propose(proposals, term).await.unwrap();
        for (answer, applied) in answers.into_iter().zip(applied) {
            // The client of a run that is over does not wait any more.
            let _ = answer.send(applied);
        }
    }
}

async fn propose(out: &mut impl Write) {
    let cluster = Cluster::start(&RaftConfig::default()).await;
    let replicas = cluster.open(GROUP).await;
    let leader = leader(&replicas).await;
    for (tasks, len) in [(1, 100), (256, 100), (16, 64 << 10)] {
        for drained in [false, true] {
            let figures = closed_loop(&leader, tasks, len, drained).await;
            let way = if drained { "drained" } else { "each its own" };
            writeln!(out, "{tasks:>4} tasks x {len:>6} B, {way:<12}: {figures}").unwrap();
        }
    }
}

async fn closed_loop(leader: &Group<Count>, tasks: usize, len: usize, drained: bool) -> String {
    let over = Arc::new(AtomicBool::new(false));
    let (queue, queued) = mpsc::channel::<Queued>(4_096);
    let drainer = tokio::spawn(drain(leader.clone(), queued));
    let term = leader.leadership().borrow().term;
    let cpu = cpu_seconds();
    let start = Instant::now();
    let clients = (0..tasks).map(|_| {
        let (over, queue, leader) = (Arc::clone(&over), queue.clone(), leader.clone());
        let proposal = proposal(len);
        tokio::spawn(async move {
            let mut latencies = Vec::new();
            while !over.load(Ordering::Relaxed) {
                let asked = Instant::now();
                if drained {
                    let (answer, answered) = oneshot::channel();
                    queue.send((proposal.clone(), answer)).await.unwrap();
                    answered.await.unwrap();
                } else {
                    leader.propose(vec![proposal.clone()], term).await.unwrap();
                }
                latencies.push(asked.elapsed());
            }
            latencies
        })
    });
    let clients: Vec<_> = clients.collect();
    tokio::time::sleep(RUN).await;
    over.store(true, Ordering::Relaxed);
    let mut latencies = Vec::new();
    for client in clients {
        latencies.extend(client.await.unwrap());
    }
    let elapsed = start.elapsed().as_secs_f64();
    let cpu = cpu_seconds() - cpu;
    drop(queue);
    drainer.await.unwrap();
    latencies.sort_unstable();
    let count = latencies.len();
    let at = |share: usize| latencies[(count - 1) * share / 100];
    #[expect(clippy::cast_precision_loss, reason = "a figure to read")]
    let count = count as f64;
    format!(
        "{:>8.0}/s  p50 {:?}  p99 {:?}  {:.1} us CPU each",
        count / elapsed,
        at(50),
        at(99),
        cpu * 1e6 / count
    )
}

/// What it costs a lone proposal that its group rests.
async fn wake(out: &mut impl Write) {
    let config = RaftConfig {
        quiesce_after: Some(Duration::from_millis(200)),
        ..RaftConfig::default()
    };
    let cluster = Cluster::start(&config).await;
    let replicas = cluster.open(GROUP).await;
    let leader = leader(&replicas).await;
    let term = leader.leadership().borrow().term;
    let (mut awake, mut waking) = (Vec::new(), Vec::new());
    for _ in 0..WAKES {
        while !replicas.iter().all(Group::rests) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        for latencies in [&mut waking, &mut awake] {
            let asked = Instant::now();
            leader.propose(vec![proposal(100)], term).await.unwrap();
            latencies.push(asked.elapsed());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    for (what, mut latencies) in [("awake", awake), ("resting", waking)] {
        latencies.sort_unstable();
        let at = |share: usize| latencies[(latencies.len() - 1) * share / 100];
        let (median, most) = (at(50), at(90));
        writeln!(out, "lone 100 B, {what:<7}: p50 {median:?}  p90 {most:?}").unwrap();
    }
}

async fn idle(out: &mut impl Write) {
    let config = RaftConfig::default();
    let cluster = Cluster::start(&config).await;
    let before = resident_kib();
    let start = Instant::now();
    let mut groups = Vec::new();
    for number in 0..IDLE_GROUPS {
        groups.push(cluster.open(GroupId(number + 2)).await);
    }
    for replicas in &groups {
        leader(replicas).await;
    }
    let started = start.elapsed();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let per_replica = (resident_kib() - before) / (IDLE_GROUPS * 3);
    writeln!(
        out,
        "{IDLE_GROUPS} groups x 3: led after {started:?}, {per_replica} KiB/replica"
    )
    .unwrap();
    for wait in [3, 20] {
        tokio::time::sleep(Duration::from_secs(wait)).await;
        let cpu = cpu_seconds();
        tokio::time::sleep(RUN).await;
        let share = (cpu_seconds() - cpu) / RUN.as_secs_f64() * 100.0;
        writeln!(out, "idle for {wait:>2} s and more: {share:.1}% of a core").unwrap();
    }
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// User and system time of this process, in ticks of a hundredth of a second.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit_once(") ").unwrap().1;
    let ticks = fields.split(' ').skip(11).take(2);
    ticks.map(|tick| tick.parse::<f64>().unwrap()).sum::<f64>() / 100.0
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let mut out = std::io::stdout();
    let which = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    runtime.block_on(async {
        let wanted = |part: &str| which.as_deref().is_none_or(|which| which == part);
        if wanted("propose") {
            propose(&mut out).await;
        }
        if wanted("wake") {
            wake(&mut out).await;
        }
        if wanted("idle") {
            idle(&mut out).await;
        }
    });
    // Closing thousands of groups one by one is no part of the figures.
    std::process::exit(0);
}
