//! What happens to the nodes while clients work: one thing after another, drawn from the seed, and
//! in the end all of it undone.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;
use trilog_jepsen::history::{Key, Note};
use trilog_jepsen::workload::{Stage, TOPIC};
use trilog_model::{NodeId, ReplicaId};
use trilog_raft::testkit::SimClock;
use trilog_server::access::{Access, Settings as AccessSettings};
use trilog_server::boot::Server;
use trilog_server::kafka::{Kafka, Limits, Parts};
use trilog_server::listen::RequestMemory;
use trilog_server::partition::Partition;
use trilog_storage::env::Entropy;
use trilog_storage::io::sim::{SimConfig, SyncFailure};

use super::links::Links;
use super::machines::Machines;
use super::{KEYS, NODES};

/// How often it is looked at who is up and who leads.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Kill,
    KillLeader,
    /// All nodes lose their power, some of them in the middle of slow syncs.
    PowerLoss,
    /// One node is not heard by the others, perhaps nor by clients.
    Isolate,
    IsolateLeader,
    CutOneWay,
    SlowDisk,
    StallDisk,
    /// A sync fails after its write, of which the process ends.
    FailSync,
    JumpClock,
    Transfer,
}

const ALL: [Fault; 11] = [
    Fault::Kill,
    Fault::KillLeader,
    Fault::PowerLoss,
    Fault::Isolate,
    Fault::IsolateLeader,
    Fault::CutOneWay,
    Fault::SlowDisk,
    Fault::StallDisk,
    Fault::FailSync,
    Fault::JumpClock,
    Fault::Transfer,
];

/// A cluster in trouble.
pub(crate) struct Trouble {
    pub(crate) all: Machines,
    links: Arc<Links>,
    stage: Arc<Stage>,
    seed: u64,
    rng: SmallRng,
    /// The newest leader of each key that was written down.
    leaders: Vec<Option<(u32, u64)>>,
}

impl Trouble {
    pub(crate) fn new(all: Machines, links: Arc<Links>, stage: &Arc<Stage>, seed: u64) -> Self {
        let keys = usize::try_from(KEYS).unwrap();
        Self {
            all,
            links,
            stage: Arc::clone(stage),
            seed,
            rng: SmallRng::seed_from_u64(seed.rotate_left(32)),
            leaders: vec![None; keys],
        }
    }

    fn pause(&mut self, from: u64, upto: u64) -> Duration {
        Duration::from_millis(self.rng.random_range(from..upto))
    }

    /// So many faults, each with its end.
    pub(crate) async fn strike(&mut self, count: u32) {
        self.links.be_sound(false);
        for _ in 0..count {
            let pause = self.pause(300, 2_000);
            self.run(pause).await;
            let fault = *ALL.choose(&mut self.rng).unwrap();
            let key = Key(self.rng.random_range(0..KEYS));
            let leader = self.leader(key);
            let any = self.rng.random_range(1..=NODES);
            let node = match fault {
                Fault::KillLeader | Fault::IsolateLeader | Fault::Transfer => {
                    leader.map_or(any, |(node, _)| node)
                }
                _ => any,
            };
            if std::env::var_os("TRILOG_TRACE").is_some() {
                eprintln!("seed {}: {fault:?} of node {node}", self.seed);
            }
            let (name, nodes) = (format!("{fault:?}"), vec![node]);
            self.stage.recorder.note(Note::FaultBegin {
                fault: name.clone(),
                nodes: nodes.clone(),
            });
            self.suffer(fault, node).await;
            self.stage
                .recorder
                .note(Note::FaultEnd { fault: name, nodes });
        }
    }

    async fn suffer(&mut self, fault: Fault, node: u32) {
        let while_it_lasts = self.pause(200, 4_000);
        let id = NodeId(node);
        match fault {
            Fault::Kill | Fault::KillLeader => {
                self.kill(node);
                self.run(while_it_lasts).await;
            }
            Fault::PowerLoss => self.lose_power().await,
            Fault::Isolate | Fault::IsolateLeader => {
                self.all.net.isolate(id);
                if self.rng.random() {
                    self.links.cut(node);
                }
                self.run(while_it_lasts).await;
            }
            Fault::CutOneWay => {
                self.all.net.cut(id, NodeId(node % NODES + 1));
                self.run(while_it_lasts).await;
            }
            Fault::SlowDisk => {
                self.slow(node);
                self.run(while_it_lasts).await;
                self.mend(node);
            }
            Fault::StallDisk => {
                self.all.machine(node).disk.stall(while_it_lasts / 2);
                self.run(while_it_lasts).await;
            }
            Fault::FailSync => {
                let disk = &self.all.machine(node).disk;
                disk.fail_sync(None, SyncFailure::Drop);
                self.run(while_it_lasts).await;
                self.mend(node);
            }
            Fault::JumpClock => {
                let ahead = self.rng.random_range(-300_000_000..300_000_000);
                self.all.machine(node).clock.set_offset_nanos(ahead);
            }
            Fault::Transfer => self.hand_over(node % NODES + 1).await,
        }
        self.all.net.heal_all();
        self.links.heal();
        self.boot_all().await;
    }

    fn kill(&mut self, node: u32) {
        self.links.shut(node);
        self.all.kill(node);
    }

    fn slow(&mut self, node: u32) {
        let most = self.pause(5, 80);
        let disk = &self.all.machine(node).disk;
        disk.configure(|disk| disk.latency_max = most);
    }

    fn mend(&self, node: u32) {
        let disk = &self.all.machine(node).disk;
        disk.mend();
        disk.configure(|disk| *disk = SimConfig::default());
    }

    async fn lose_power(&mut self) {
        for node in 1..=NODES {
            if self.rng.random() {
                self.slow(node);
            }
        }
        let time = self.pause(50, 1_000);
        self.run(time).await;
        for node in 1..=NODES {
            self.links.shut(node);
            self.all.power_loss(node);
        }
        for node in 1..=NODES {
            self.mend(node);
        }
    }

    /// Every partition, those of the system among them, is to be led by this node.
    async fn hand_over(&self, to: u32) {
        for from in (1..=NODES).filter(|from| *from != to) {
            let held = self
                .all
                .with(from, |server| server.cluster().partitions().all());
            for (_, partition) in held.unwrap_or_default() {
                let group = partition.group();
                let voters = group.voters().into_iter();
                let heir: Option<ReplicaId> =
                    voters.into_iter().find(|voter| voter.node() == NodeId(to));
                if let (true, Some(heir)) = (partition.leader().1, heir) {
                    drop(group.transfer_leader(heir).await);
                }
            }
        }
    }

    async fn boot_all(&mut self) {
        for node in 1..=NODES {
            if !self.all.is_up(node) {
                let place = usize::try_from(node).unwrap() - 1;
                self.stage.lives[place].fetch_add(1, Ordering::SeqCst);
                self.all.boot(node).await;
            }
        }
    }

    /// Lets time pass. Whose storage failed ends; clients find who serves; who leads is written down.
    pub(crate) async fn run(&mut self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.all.run(LOOK.min(end - Instant::now())).await;
            self.look();
        }
    }

    fn look(&mut self) {
        for node in 1..=NODES {
            let failed = self
                .all
                .with(node, |server| server.fatal().borrow().is_some());
            match failed {
                Some(true) => self.kill(node),
                Some(false) if !self.links.is_open(node) => {
                    let clock = Arc::clone(&self.all.machine(node).clock);
                    let kafka = self.all.with(node, |server| kafka(server, clock));
                    self.links.open(node, kafka.unwrap());
                }
                Some(false) | None => {}
            }
        }
        for key in (0..KEYS).map(Key) {
            self.note_leader(key);
        }
    }

    fn note_leader(&mut self, key: Key) {
        let now = self.leader(key);
        let before = &mut self.leaders[usize::try_from(key.0).unwrap()];
        if let Some((node, term)) = now
            && before.is_none_or(|(_, before)| before < term)
        {
            *before = now;
            self.stage.recorder.note(Note::Leader { key, node, term });
        }
    }

    /// Who leads a key, and in which term.
    fn leader(&self, key: Key) -> Option<(u32, u64)> {
        let led = (1..=NODES).filter_map(|node| {
            let partition = self.partition(node, key)?;
            let (_, leads) = partition.leader();
            leads.then(|| (node, partition.term().get()))
        });
        led.max_by_key(|(_, term)| *term)
    }

    pub(crate) fn partition(&self, node: u32, key: Key) -> Option<Partition> {
        let held = self
            .all
            .with(node, |server| server.cluster().partition(TOPIC, key.0).ok());
        held.flatten()
    }

    /// Undoes everything, and waits until all nodes serve and every key is led.
    pub(crate) async fn heal(&mut self) {
        self.all.net.heal_all();
        self.links.heal();
        self.links.be_sound(true);
        for node in 1..=NODES {
            self.mend(node);
            self.all.machine(node).clock.set_offset_nanos(0);
        }
        self.boot_all().await;
        self.until("nodes that serve", |trouble| {
            let serve = (1..=NODES).all(|node| trouble.all.serves(node));
            serve && (0..KEYS).all(|key| trouble.leader(Key(key)).is_some())
        })
        .await;
    }

    /// Lets time pass until something holds.
    pub(crate) async fn until(&mut self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + Duration::from_mins(3);
        while !holds(self) {
            let refusals: Vec<_> = (1..=NODES).map(|node| self.all.refusal(node)).collect();
            let seed = self.seed;
            assert!(
                Instant::now() < end,
                "seed {seed}: {what} did not come: {refusals:?}"
            );
            self.run(LOOK).await;
        }
    }
}

/// The Kafka dialect of a node, without its port.
fn kafka(server: &Server, clock: Arc<SimClock>) -> Kafka {
    let limits = Limits {
        connections: 100,
        request_bytes: 1 << 20,
        inflight_bytes: 1 << 20,
        memory: 16 << 20,
        fetch_sessions: 1,
        fetch_session_memory: 1 << 20,
    };
    let parts = Parts {
        cluster: server.cluster().clone(),
        groups: server.coordinator().clone(),
        transactions: server.transactions().clone(),
        access: Access::new(AccessSettings {
            required: false,
            super_users: Vec::new(),
            allow_unruled: false,
            session_lifetime: Duration::ZERO,
        }),
        clock,
        entropy: Entropy::from_seed(1),
        requests: RequestMemory::new(16 << 20),
        data_dir: "/node".into(),
    };
    Kafka::new(parts, limits)
}
