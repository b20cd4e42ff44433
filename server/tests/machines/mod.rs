//! A cluster of whole nodes in one process: what `trilog server` runs, on simulated disks, clocks
//! and links, under a seed. Only the file `node.json` and its like are on a real disk.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use trilog_model::batch::{BatchBuilder, Compression};
use trilog_model::{GroupId, NodeId, Offset, ReplicaId, Term};
use trilog_raft::KV_FAMILY;
use trilog_raft::controller::commands::{Command, CreateTopic, TopicKind};
use trilog_raft::controller::{ClusterId, TopicId};
use trilog_raft::testkit::{SimClock, seed_thread};
use trilog_raft::transport::Transport;
use trilog_raft::transport::sim::{Crash, SimNet};
use trilog_server::boot::{Footing, Ground, Server, Surroundings};
use trilog_server::cluster::Identity;
use trilog_server::config::{ByteSize, Config, Duration as Span};
use trilog_server::partition::{AppendError, Appended, Partition};
use trilog_storage::env::Entropy;
use trilog_storage::io::sim::{PowerLoss, SimDisk};
use trilog_storage::kv::MemoryKv;
use trilog_storage::log::StoreConfig;
use trilog_storage::store::Store;

/// How long, in simulated time, anything that must happen may take.
const PATIENCE: Duration = Duration::from_mins(3);
const STEP: Duration = Duration::from_millis(20);

/// One machine and the node on it.
pub(crate) struct Machine {
    pub(crate) disk: SimDisk,
    pub(crate) clock: Arc<SimClock>,
    kv: MemoryKv,
    /// Part of its address.
    place: u32,
    lives: u32,
    life: Option<Life>,
}

/// One life of a node.
struct Life {
    start: JoinHandle<()>,
    transport: Transport,
    outcome: Outcome,
}

/// What came of a start: nothing yet, a node that serves, or why there is none.
type Outcome = Arc<Mutex<Option<Result<Server, String>>>>;

/// A term of a group of a cluster.
type Reign = (Option<ClusterId>, GroupId, Term);

pub(crate) struct Machines {
    seed: u64,
    pub(crate) net: SimNet,
    entropy: Entropy,
    dir: tempfile::TempDir,
    pub(crate) seeds: Vec<String>,
    by_number: BTreeMap<u32, Machine>,
    /// Who led which group of which cluster in which term, over all of the run.
    leaders: Mutex<BTreeMap<Reign, ReplicaId>>,
}

impl Machines {
    /// Starts nodes that are one another's seeds and waits until each serves.
    pub(crate) async fn start(seed: u64, count: u32) -> Self {
        let all = Self::begin(seed, count).await;
        all.until("a start", |all| (1..=count).all(|n| all.serves(n)))
            .await;
        all
    }

    /// Starts nodes that are one another's seeds.
    pub(crate) async fn begin(seed: u64, count: u32) -> Self {
        seed_thread(seed);
        let entropy = Entropy::from_seed(seed);
        let mut all = Self {
            seed,
            net: SimNet::new(entropy.next_u64()),
            entropy,
            dir: tempfile::tempdir().unwrap(),
            seeds: (1..=count).map(|n| SimNet::address(NodeId(n))).collect(),
            by_number: BTreeMap::new(),
            leaders: Mutex::default(),
        };
        for number in 1..=count {
            all.add(number);
            all.boot(number).await;
        }
        all
    }

    /// Puts up a machine with an empty disk.
    pub(crate) fn add(&mut self, number: u32) {
        let machine = Machine {
            disk: SimDisk::new(self.entropy.next_u64()),
            clock: Arc::default(),
            kv: MemoryKv::new(&[KV_FAMILY]),
            place: 0,
            lives: 0,
            life: None,
        };
        self.by_number.insert(number, machine);
    }

    pub(crate) fn data_dir(&self, number: u32) -> PathBuf {
        self.dir.path().join(format!("node-{number}"))
    }

    pub(crate) fn machine(&self, number: u32) -> &Machine {
        &self.by_number[&number]
    }

    pub(crate) fn config(&self, number: u32) -> Config {
        let mut config = Config::default();
        config.node.id = number;
        config.node.data_dir = self.data_dir(number);
        config.node.rack = Some(format!("rack-{number}"));
        config.cluster.seeds.clone_from(&self.seeds);
        let place = self
            .by_number
            .get(&number)
            .map_or(0, |machine| machine.place);
        config.advertise.peer = Some(SimNet::address_at(NodeId(number), place));
        config.groups.partitions = 2;
        config.transactions.partitions = 2;
        config.groups.initial_rebalance_delay = Span::from_millis(500);
        config.groups.session_timeout_min = Span::from_secs(1);
        config.groups.consumer_session_timeout = Span::from_secs(6);
        config.groups.consumer_heartbeat_interval = Span::from_millis(500);
        config.storage.wal_file_size = ByteSize::kib(256);
        config.storage.wal_files = 6;
        config.storage.pinned_size = ByteSize::kib(512);
        config.storage.cache_size = ByteSize::kib(128);
        config.storage.segment_size = ByteSize::kib(128);
        config.storage.fill_size = ByteSize::kib(8);
        config
    }

    pub(crate) async fn boot(&mut self, number: u32) {
        let config = self.config(number);
        self.boot_with(number, config).await;
    }

    /// Starts a node that is down. It may take until others are up that it serves, or says why
    /// it does not.
    pub(crate) async fn boot_with(&mut self, number: u32, config: Config) {
        let entropy = Entropy::from_seed(self.entropy.next_u64());
        let machine = self.by_number.get_mut(&number).unwrap();
        machine.lives += 1;
        if machine.lives > 1 {
            machine.disk = machine.disk.reopen();
        }
        let surroundings = Surroundings {
            backend: machine.disk.backend(),
            clock: machine.clock.clone(),
            entropy,
        };
        let dir = config.node.data_dir.clone();
        let footing = Footing::find(&config, surroundings).await.unwrap();
        if self
            .identity(number)
            .is_some_and(|id| id.replaces().is_some())
        {
            // Set aside with the log.
            self.by_number.get_mut(&number).unwrap().kv = MemoryKv::new(&[KV_FAMILY]);
        }
        let transport = self.net.transport(footing.transport_config());
        let machine = self.by_number.get_mut(&number).unwrap();
        let ground = Ground::new(footing, machine.kv.kv(), transport.clone(), &dir);
        let outcome = Outcome::default();
        let told = Arc::clone(&outcome);
        let start = tokio::spawn(async move {
            let started = Server::start_on(&config, ground).await;
            let started = started.map_err(|error| format!("{error:#}"));
            *told.lock() = Some(started);
        });
        machine.life = Some(Life {
            start,
            transport,
            outcome,
        });
    }

    /// Ends a node's process where it stands.
    pub(crate) fn kill(&mut self, number: u32) {
        self.end(number, Crash::Process, SimDisk::kill);
    }

    /// Pulls a node's plug: what its disk had not synced meets its fate.
    pub(crate) fn power_loss(&mut self, number: u32) {
        self.end(number, Crash::Machine, |disk| disk.crash(PowerLoss::Any));
    }

    fn end(&mut self, number: u32, how: Crash, disk: impl FnOnce(&SimDisk)) {
        let machine = self.by_number.get_mut(&number).unwrap();
        let Some(life) = machine.life.take() else {
            return;
        };
        life.start.abort();
        life.transport.abort();
        disk(&machine.disk);
        machine.kv = machine.kv.crash();
        self.net.crash(NodeId(number), how);
    }

    /// Kills a node and gives its machine another address, which the seeds of whoever starts from
    /// now on name.
    pub(crate) fn relocate(&mut self, number: u32) {
        self.kill(number);
        let node = NodeId(number);
        self.net.relocate(node, 1);
        let machine = self.by_number.get_mut(&number).unwrap();
        machine.place = 1;
        let before = SimNet::address(node);
        for seed in self.seeds.iter_mut().filter(|seed| **seed == before) {
            *seed = SimNet::address_at(node, 1);
        }
    }

    /// Stops a node that serves, in order.
    pub(crate) async fn stop(&mut self, number: u32) {
        let machine = self.by_number.get_mut(&number).unwrap();
        let life = machine.life.take().unwrap();
        let server = life.outcome.lock().take().unwrap().unwrap();
        server.stop(Duration::from_secs(30)).await;
        self.net.crash(NodeId(number), Crash::Process);
    }

    /// Kills a node and gives it an empty disk.
    pub(crate) fn wipe(&mut self, number: u32) {
        self.kill(number);
        std::fs::remove_dir_all(self.data_dir(number)).unwrap();
        self.add(number);
    }

    /// Takes from a node that is down what it keeps beside its log.
    pub(crate) fn lose_views(&mut self, number: u32) {
        let machine = self.by_number.get_mut(&number).unwrap();
        machine.kv = MemoryKv::new(&[KV_FAMILY]);
    }

    /// Kills a node and counts the records that its disk holds, of all topics.
    pub(crate) async fn stored_records(&mut self, number: u32) -> u64 {
        self.kill(number);
        let config = self.config(number);
        let machine = self.by_number.get_mut(&number).unwrap();
        machine.disk = machine.disk.reopen();
        let file = config.storage.wal_file_size.get();
        let store = StoreConfig {
            wal_file_bytes: file,
            wal_round_bytes: usize::try_from(file).unwrap() / 4,
            wal_files: config.storage.wal_files,
            ..StoreConfig::dev(config.node.data_dir)
        };
        let (backend, clock) = (machine.disk.backend(), machine.clock.clone());
        let opened = Store::open(store, backend, clock, Entropy::from_seed(0)).await;
        let (store, _) = opened.unwrap();
        let groups = store.groups().into_iter();
        let logs = groups.filter_map(|group| store.group(group));
        logs.map(|log| log.state().next_offset.get()).sum()
    }

    /// Whether there is a process on a machine, serving or not.
    pub(crate) fn is_up(&self, number: u32) -> bool {
        self.machine(number).life.is_some()
    }

    pub(crate) fn serves(&self, number: u32) -> bool {
        self.with(number, |_| ()).is_some()
    }

    /// Why a node's start failed, if it did.
    pub(crate) fn refusal(&self, number: u32) -> Option<String> {
        let life = self.by_number[&number].life.as_ref()?;
        life.outcome.lock().as_ref()?.as_ref().err().cloned()
    }

    /// Looks at a node that serves.
    pub(crate) fn with<T>(&self, number: u32, look: impl FnOnce(&Server) -> T) -> Option<T> {
        let life = self.by_number.get(&number)?.life.as_ref()?;
        let outcome = life.outcome.lock();
        outcome.as_ref()?.as_ref().ok().map(look)
    }

    pub(crate) fn identity(&self, number: u32) -> Option<Identity> {
        Identity::load(&self.data_dir(number), NodeId(number)).unwrap()
    }

    /// A node's replica of the first partition of a topic.
    pub(crate) fn partition(&self, number: u32, topic: &str) -> Option<Partition> {
        self.with(number, |server| server.cluster().partition(topic, 0).ok())?
    }

    /// The node that leads the first partition of a topic and may admit.
    pub(crate) fn leader(&self, topic: &str) -> Option<(u32, Partition)> {
        let numbers = self.by_number.keys();
        let led = numbers.filter_map(|number| {
            let partition = self.partition(*number, topic)?;
            partition.leader().1.then_some((*number, partition))
        });
        led.max_by_key(|(_, partition)| partition.term())
    }

    /// Creates a topic of one partition and waits until it is led.
    pub(crate) async fn create(&self, topic: &str, replication: u32) {
        let command = Command::CreateTopic(CreateTopic {
            id: TopicId::random(&self.entropy).to_wire(),
            name: topic.to_owned(),
            partitions: 1,
            replication,
            configs: Vec::new(),
            assignments: Vec::new(),
            kind: TopicKind::User.into(),
        });
        let cluster = self.with(1, |server| server.cluster().clone()).unwrap();
        cluster.propose(&command).await.unwrap();
        self.until("a led topic", |all| all.leader(topic).is_some())
            .await;
    }

    /// Appends numbered records `from..to`, one batch each, wherever the leader is; returns where
    /// they are. What has no outcome is appended again: numbers may repeat, never lack.
    pub(crate) async fn produce(&self, topic: &str, from: u32, to: u32) -> Vec<(u32, Appended)> {
        let mut places = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        for number in from..to {
            loop {
                assert!(Instant::now() < deadline, "seed {}: no appends", self.seed);
                if let Ok(appended) = self.append(topic, number).await {
                    places.push((number, appended));
                    break;
                }
                self.run(STEP).await;
            }
        }
        places
    }

    /// Appends one numbered record, if somebody leads.
    pub(crate) async fn append(&self, topic: &str, number: u32) -> Result<Appended, AppendError> {
        let nobody = AppendError::NotLeader { leader: None };
        let (_, partition) = self.leader(topic).ok_or(nobody)?;
        let mut batch = BatchBuilder::new(Compression::None);
        let value = number.to_string();
        batch.push(5, None, Some(value.as_bytes()), &[]).unwrap();
        let appending = partition.append(batch.build().unwrap());
        let appended = timeout(Duration::from_secs(2), appending).await;
        appended.unwrap_or(Err(AppendError::Unknown))
    }

    /// Lets time pass, and checks as it does that no term has two leaders.
    pub(crate) async fn run(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            sleep(STEP).await;
            self.look();
        }
    }

    fn look(&self) {
        for number in self.by_number.keys() {
            let seen = self.with(*number, |server| {
                let controller = server.cluster().controller().group();
                let controller = (GroupId::CONTROLLER, *controller.leadership().borrow());
                let partitions = server.cluster().partitions().all().into_iter();
                let partitions = partitions.map(|(id, held)| (id, *held.leadership().borrow()));
                let cluster = server.cluster().map().cluster();
                let all = partitions.chain([controller]);
                all.map(|(group, now)| (cluster, group, now))
                    .collect::<Vec<_>>()
            });
            for (cluster, group, now) in seen.into_iter().flatten() {
                if let Some(leader) = now.leader {
                    let mut leaders = self.leaders.lock();
                    let term = (cluster, group, now.term);
                    let first = *leaders.entry(term).or_insert(leader);
                    let seed = self.seed;
                    assert_eq!(first, leader, "seed {seed}: {group} in {:?}", now.term);
                }
            }
        }
    }

    /// Lets time pass until something holds.
    pub(crate) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !holds(self) {
            let refusals = self.by_number.keys().filter_map(|n| self.refusal(*n));
            assert!(
                Instant::now() < end,
                "seed {}: {what} did not happen; refused: {:?}",
                self.seed,
                refusals.collect::<Vec<_>>()
            );
            self.run(STEP).await;
        }
    }

    /// Waits until a node's replica holds all that the leader's does, then finds every record,
    /// from the first on, where its producer was told it is.
    pub(crate) async fn check(&self, number: u32, topic: &str, places: &[(u32, Appended)]) {
        self.until("a replica that has caught up", |all| {
            let leader = all.leader(topic).map(|(_, led)| *led.watch().borrow());
            let here = all.partition(number, topic).map(|p| *p.watch().borrow());
            here.is_some() && here == leader
        })
        .await;
        let partition = self.partition(number, topic).unwrap();
        let mut found = BTreeMap::new();
        let first = places.first();
        let mut next = first.map_or(Offset(0), |(_, place)| place.base_offset);
        loop {
            let fetched = partition.read(next, 1 << 20).await.unwrap();
            let Some(last) = fetched.frames.last() else {
                break;
            };
            next = last.header.next_offset();
            for frame in fetched.frames {
                found.insert(frame.header.base_offset, frame.records);
            }
        }
        for (record, place) in places {
            let records = found.get(&place.base_offset);
            let value = record.to_string();
            let holds = records.is_some_and(|batch| {
                batch
                    .windows(value.len())
                    .any(|window| window == value.as_bytes())
            });
            assert!(holds, "seed {}: node {number} lacks {record}", self.seed);
        }
    }
}
