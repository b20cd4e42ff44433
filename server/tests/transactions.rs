//! Transactions on whole simulated nodes: producers that write to several partitions and commit
//! offsets of a group with them, rivals that take their ids over, transactions that are abandoned,
//! while coordinators and leaders crash, are cut off and hand over, and requests and replies are
//! lost. A transaction counts as a whole or not at all, once, and none stays open.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod kafka_conn;
#[expect(dead_code, reason = "each test file uses a part of it")]
mod machines;

#[path = "transactions/step_tests.rs"]
mod step_tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use machines::Machines;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};
use trilog_model::batch::{BatchBuilder, BatchHeader, Compression, ProducerState};
use trilog_model::{NodeId, Offset, ReplicaId};
use trilog_raft::controller::commands::{Command, CreateTopic, TopicKind};
use trilog_raft::controller::{InternalTopic, TopicId};
use trilog_raft::testkit::{block_on, seeds};
use trilog_server::cluster::Cluster;
use trilog_server::group::{
    Coordinator as Groups, FetchRequest, MemberRef, OffsetCommit, TransactionCommit,
};
use trilog_server::partition::{AppendError, Partition};
use trilog_server::transaction::{
    AddRequest, BeginRequest, Coordinator, EndRequest, Identity, TransactionError,
};
use trilog_storage::env::Entropy;

const TOPIC: &str = "orders";
const PARTITIONS: u32 = 4;
const GROUP: &str = "workers";
const IDS: [&str; 3] = ["alpha", "beta", "gamma"];
const TIMEOUT: Duration = Duration::from_secs(4);

/// A node that is up, as clients reach it.
#[derive(Clone)]
struct Node {
    cluster: Cluster,
    groups: Groups,
    transactions: Coordinator,
}

type Nodes = Rc<RefCell<BTreeMap<u32, Node>>>;

/// What a producer was told of its transaction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Committed,
    Aborted,
    /// The answer never came: all of it counts, or nothing.
    Unknown,
}

/// One transaction as its producer knows it.
#[derive(Clone, Debug)]
struct Told {
    id: &'static str,
    fate: Fate,
    /// Records that were acknowledged, by partition.
    records: Vec<(u32, String)>,
    /// The offset that it committed for its id's partition of the group.
    offset: Option<i64>,
}

#[derive(Default)]
struct Ledger {
    seed: u64,
    told: Vec<Told>,
    numbers: BTreeMap<&'static str, i64>,
}

/// One producer.
struct Client {
    id: &'static str,
    place: u32,
    nodes: Nodes,
    ledger: Rc<RefCell<Ledger>>,
    rng: SmallRng,
    /// Of requests, and as many of replies.
    loss: f64,
    alive: Rc<Cell<bool>>,
    sequences: BTreeMap<u32, i32>,
}

/// Why a producer has to begin anew.
struct Broken;

impl Client {
    async fn run(mut self) {
        while self.alive.get() {
            let Some(producer) = self.begin().await else {
                return;
            };
            self.sequences.clear();
            while self.alive.get() {
                let pause = self.rng.random_range(5..60);
                sleep(Duration::from_millis(pause)).await;
                if self.transact(producer).await.is_err() {
                    break;
                }
            }
        }
    }

    /// One attempt; either way may be lost.
    async fn attempt<T>(
        &mut self,
        request: impl Future<Output = Result<T, TransactionError>>,
    ) -> Result<T, TransactionError> {
        if self.rng.random_bool(self.loss) {
            sleep(Duration::from_millis(100)).await;
            return Err(TransactionError::Unknown);
        }
        let answer = timeout(Duration::from_secs(8), request).await;
        match answer {
            Ok(answer) if !self.rng.random_bool(self.loss) => answer,
            Ok(_) | Err(_) => Err(TransactionError::Unknown),
        }
    }

    async fn coordinator(&mut self) -> Option<Node> {
        let asked = {
            let nodes = self.nodes.borrow();
            let nth = self.rng.random_range(0..nodes.len().max(1));
            nodes.values().nth(nth).cloned()?
        };
        let located = timeout(Duration::from_secs(3), asked.transactions.locate(self.id)).await;
        let node = located.ok()?.ok()?;
        self.nodes.borrow().get(&node.get()).cloned()
    }

    /// Asks until there is an answer that lasts.
    async fn ask<T, F: Future<Output = Result<T, TransactionError>>>(
        &mut self,
        request: impl Fn(Coordinator) -> F,
    ) -> Result<T, TransactionError> {
        let deadline = Instant::now() + Duration::from_mins(2);
        while Instant::now() < deadline {
            if let Some(node) = self.coordinator().await {
                let answer = self.attempt(request(node.transactions)).await;
                match answer {
                    Err(
                        TransactionError::NotCoordinator { .. }
                        | TransactionError::Loading
                        | TransactionError::Unavailable(_)
                        | TransactionError::Concurrent
                        | TransactionError::Unknown,
                    ) => {}
                    answer => return answer,
                }
            }
            sleep(Duration::from_millis(40)).await;
        }
        panic!(
            "seed {}: {} gets no answer",
            self.ledger.borrow().seed,
            self.id
        );
    }

    async fn begin(&mut self) -> Option<Identity> {
        let request = BeginRequest {
            id: self.id.to_owned(),
            timeout: TIMEOUT,
            expected: None,
        };
        let begun = self.ask(|coordinator| {
            let request = request.clone();
            async move { coordinator.begin(request).await }
        });
        begun.await.ok()
    }

    async fn transact(&mut self, producer: Identity) -> Result<(), Broken> {
        let mut told = Told {
            id: self.id,
            fate: Fate::Unknown,
            records: Vec::new(),
            offset: None,
        };
        let number = {
            let mut ledger = self.ledger.borrow_mut();
            let number = ledger.numbers.entry(self.id).or_default();
            *number += 1;
            *number
        };
        let written = self.write(producer, number, &mut told).await;
        if written.is_ok() && self.rng.random_bool(0.05) {
            // It dies here, and comes back as another much later.
            told.fate = Fate::Aborted;
            self.ledger.borrow_mut().told.push(told);
            let pause = self.rng.random_range(1_000..9_000);
            sleep(Duration::from_millis(pause)).await;
            return Err(Broken);
        }
        let commit = written.is_ok() && self.rng.random_bool(0.7);
        let request = EndRequest {
            id: self.id.to_owned(),
            producer,
            commit,
        };
        let ended = self.ask(|coordinator| {
            let request = request.clone();
            async move { coordinator.end(request).await }
        });
        let ended = ended.await;
        told.fate = match (&ended, commit) {
            (Ok(()), true) => Fate::Committed,
            (_, false) => Fate::Aborted,
            // Another has taken over, and aborted it unless it was committed before.
            (Err(_), true) => Fate::Unknown,
        };
        self.ledger.borrow_mut().told.push(told);
        // After an abort for an error nobody knows which sequence comes next.
        if written.is_ok() && ended.is_ok() {
            Ok(())
        } else {
            Err(Broken)
        }
    }

    async fn write(
        &mut self,
        producer: Identity,
        number: i64,
        told: &mut Told,
    ) -> Result<(), Broken> {
        let all: Vec<u32> = (0..PARTITIONS).collect();
        let count = self.rng.random_range(1..=3);
        let chosen: Vec<u32> = all.choose_multiple(&mut self.rng, count).copied().collect();
        let groups = {
            let nodes = self.nodes.borrow();
            let node = nodes.values().next().cloned().ok_or(Broken)?;
            let topic = node.cluster.topic(TOPIC).map_err(|_| Broken)?;
            let groups = chosen
                .iter()
                .map(|index| topic.partitions[*index as usize].group);
            groups.collect::<Vec<_>>()
        };
        let request = AddRequest {
            id: self.id.to_owned(),
            producer,
            partitions: groups,
        };
        let added = self.ask(|coordinator| {
            let request = request.clone();
            async move { coordinator.add(request).await }
        });
        added.await.map_err(|_| Broken)?;
        for round in 0..self.rng.random_range(1..=3) {
            for partition in &chosen {
                let record = format!(
                    "{}/{number}/{partition}/{round}/{}",
                    self.id, producer.epoch
                );
                self.append(producer, *partition, &record).await?;
                told.records.push((*partition, record));
            }
        }
        if self.rng.random_bool(0.5) {
            self.commit_offset(producer, number).await?;
            told.offset = Some(number);
        }
        Ok(())
    }

    fn leader(&self, index: u32) -> Option<(Node, Partition)> {
        let nodes = self.nodes.borrow();
        let led = nodes.values().filter_map(|node| {
            let partition = node.cluster.partition(TOPIC, index).ok()?;
            partition.leader().1.then(|| (node.clone(), partition))
        });
        led.max_by_key(|(_, partition)| partition.term())
    }

    /// Appends one record as the Kafka port does; tries again until it is told how it went.
    async fn append(&mut self, producer: Identity, index: u32, record: &str) -> Result<(), Broken> {
        let sequence = self.sequences.get(&index).copied().unwrap_or(0);
        let mut batch = BatchBuilder::new(Compression::None);
        batch.set_transactional().set_producer(ProducerState {
            id: producer.producer_id,
            epoch: producer.epoch,
            sequence,
        });
        batch.push(5, None, Some(record.as_bytes()), &[]).unwrap();
        let batch = batch.build().unwrap();
        for _ in 0..40 {
            if let Some((node, partition)) = self.leader(index) {
                let (id, batch) = (self.id, batch.clone());
                let appending = async {
                    let shown = node.transactions.show(id, producer, &[&partition]).await;
                    let shown = shown.into_iter().next().unwrap()?;
                    let appending = async {
                        let ticket = partition.enqueue_in_transaction(batch, shown).await?;
                        ticket.committed().await
                    };
                    Ok(appending.await)
                };
                match self.attempt(appending).await {
                    Ok(Ok(_)) => {
                        self.sequences.insert(index, sequence + 1);
                        return Ok(());
                    }
                    Ok(Err(
                        AppendError::Fenced { .. }
                        | AppendError::NotInTransaction
                        | AppendError::OutOfOrder { .. },
                    ))
                    | Err(
                        TransactionError::Fenced
                        | TransactionError::InvalidState
                        | TransactionError::UnknownProducer,
                    ) => return Err(Broken),
                    Ok(Err(_)) | Err(_) => {}
                }
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err(Broken)
    }

    /// Commits the group's offset for this producer's partition within the transaction.
    async fn commit_offset(&mut self, producer: Identity, number: i64) -> Result<(), Broken> {
        let id = self.id;
        let added = self.ask(|coordinator| async move {
            coordinator.add_group(id.to_owned(), producer, GROUP).await
        });
        added.await.map_err(|_| Broken)?;
        for _ in 0..40 {
            let place = self.place;
            let nodes: Vec<Node> = self.nodes.borrow().values().cloned().collect();
            let asked = nodes.choose(&mut self.rng).cloned().ok_or(Broken)?;
            let committing = async {
                let node = asked.groups.locate(GROUP).await;
                let node = node.map_err(|_| TransactionError::Unknown)?;
                let node = nodes.iter().find(|up| up.cluster.node() == node);
                let node = node.ok_or(TransactionError::Unknown)?;
                let shown = node
                    .transactions
                    .verify_group(id.to_owned(), producer, GROUP);
                let transaction = shown.await?;
                let request = TransactionCommit {
                    member: MemberRef {
                        group: GROUP.to_owned(),
                        generation: -1,
                        member: String::new(),
                        instance: None,
                    },
                    producer_id: producer.producer_id,
                    epoch: producer.epoch,
                    transaction,
                    offsets: vec![OffsetCommit {
                        topic: TOPIC.to_owned(),
                        partition: place,
                        offset: number,
                        leader_epoch: -1,
                        metadata: String::new(),
                    }],
                };
                let committed = node.groups.commit_in_transaction(request).await;
                committed.map_err(|_| TransactionError::Unknown)
            };
            match self.attempt(committing).await {
                Ok(_) => return Ok(()),
                Err(
                    TransactionError::Fenced
                    | TransactionError::InvalidState
                    | TransactionError::UnknownProducer,
                ) => return Err(Broken),
                Err(_) => {}
            }
            sleep(Duration::from_millis(50)).await;
        }
        Err(Broken)
    }
}

/// What a reader of committed records has seen of a partition, from its beginning on.
#[derive(Default)]
struct Seen {
    next: u64,
    records: Vec<(u64, String)>,
}

/// Reads a partition for a while, wherever it is led.
async fn read(nodes: Nodes, index: u32, seen: Rc<RefCell<Seen>>, alive: Rc<Cell<bool>>) {
    while alive.get() {
        sleep(Duration::from_millis(100)).await;
        let led = {
            let nodes = nodes.borrow();
            let led = nodes.values().filter_map(|node| {
                let partition = node.cluster.partition(TOPIC, index).ok()?;
                partition.leader().1.then_some(partition)
            });
            led.max_by_key(Partition::term)
        };
        let Some(partition) = led else {
            continue;
        };
        let from = Offset(seen.borrow().next);
        let reading = partition.read_stable(from, 1 << 16);
        if let Ok(Ok(settled)) = timeout(Duration::from_secs(2), reading).await {
            let next = settled.next.get();
            let mut seen = seen.borrow_mut();
            for frame in settled.committed().fetched.frames {
                let offset = frame.header.base_offset.get();
                seen.records.push((offset, text(&frame.records)));
            }
            seen.next = next;
        }
    }
}

fn text(records: &Bytes) -> String {
    let header = BatchHeader::parse(records).unwrap();
    let records = header.records(records, 1 << 20).unwrap();
    let record = records.iter().next().unwrap().unwrap();
    String::from_utf8(record.value.unwrap().to_vec()).unwrap()
}

struct Stage {
    all: Machines,
    nodes: Nodes,
    ledger: Rc<RefCell<Ledger>>,
    seen: Vec<Rc<RefCell<Seen>>>,
    alive: Rc<Cell<bool>>,
    reading: Rc<Cell<bool>>,
    rng: SmallRng,
}

impl Stage {
    async fn start(seed: u64) -> Self {
        let all = Machines::start(seed, 3).await;
        let command = Command::CreateTopic(CreateTopic {
            id: TopicId::random(&Entropy::from_seed(seed)).to_wire(),
            name: TOPIC.to_owned(),
            partitions: PARTITIONS,
            replication: 3,
            configs: Vec::new(),
            assignments: Vec::new(),
            kind: TopicKind::User.into(),
        });
        let cluster = all.with(1, |server| server.cluster().clone()).unwrap();
        cluster.propose(&command).await.unwrap();
        let stage = Self {
            all,
            nodes: Nodes::default(),
            ledger: Rc::new(RefCell::new(Ledger {
                seed,
                ..Ledger::default()
            })),
            seen: (0..PARTITIONS).map(|_| Rc::default()).collect(),
            alive: Rc::new(Cell::new(true)),
            reading: Rc::new(Cell::new(true)),
            rng: SmallRng::seed_from_u64(seed),
        };
        stage.refresh();
        for (index, seen) in (0..).zip(&stage.seen) {
            let (nodes, seen) = (Rc::clone(&stage.nodes), Rc::clone(seen));
            spawn_local(read(nodes, index, seen, Rc::clone(&stage.reading)));
        }
        stage
    }

    /// Clients find the nodes that are up, and no others.
    fn refresh(&self) {
        let mut nodes = self.nodes.borrow_mut();
        nodes.clear();
        for number in 1..=3 {
            let node = self.all.with(number, |server| Node {
                cluster: server.cluster().clone(),
                groups: server.coordinator().clone(),
                transactions: server.transactions().clone(),
            });
            nodes.extend(node.map(|node| (number, node)));
        }
    }

    fn enter(&mut self, id: &'static str, loss: f64) {
        let place = IDS.iter().position(|one| *one == id).unwrap();
        let client = Client {
            id,
            place: u32::try_from(place).unwrap(),
            nodes: Rc::clone(&self.nodes),
            ledger: Rc::clone(&self.ledger),
            rng: SmallRng::seed_from_u64(self.rng.random()),
            loss,
            alive: Rc::clone(&self.alive),
            sequences: BTreeMap::new(),
        };
        spawn_local(client.run());
    }

    async fn run(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.all.run(Duration::from_millis(100)).await;
            self.refresh();
        }
    }

    /// One fault, and later its end.
    async fn disturb(&mut self) {
        let node = self.rng.random_range(1..=3);
        let time = Duration::from_millis(self.rng.random_range(300..5_000));
        match self.rng.random_range(0..100) {
            0..40 => {
                self.all.kill(node);
                self.refresh();
                self.run(time).await;
                self.all.boot(node).await;
            }
            40..70 => {
                self.all.net.isolate(NodeId(node));
                self.run(time).await;
                self.all.net.heal_all();
            }
            _ => self.hand_over(NodeId(node)).await,
        }
        let pause = self.rng.random_range(200..2_500);
        self.run(Duration::from_millis(pause)).await;
    }

    /// Every partition is to be led by this node, those of the system included.
    async fn hand_over(&self, to: NodeId) {
        for from in (1..=3).filter(|from| *from != to.get()) {
            let held = self
                .all
                .with(from, |server| server.cluster().partitions().all());
            for (_, partition) in held.unwrap_or_default() {
                let group = partition.group();
                if partition.leader().1 {
                    let heir = group.voters().into_iter().find(|one| one.node() == to);
                    let heir: Option<ReplicaId> = heir;
                    if let Some(heir) = heir {
                        drop(group.transfer_leader(heir).await);
                    }
                }
            }
        }
    }

    fn partition(&self, node: u32, index: u32) -> Option<Partition> {
        let held = self
            .all
            .with(node, |server| server.cluster().partition(TOPIC, index).ok());
        held.flatten()
    }

    /// Waits until nothing is open anywhere, and replicas are alike.
    async fn until_settled(&self) {
        let hash = |p: &Partition| p.group().with_view(trilog_raft::View::hash);
        let settled = || {
            let data = (0..PARTITIONS).all(|index| {
                let held: Vec<_> = (1..=3).filter_map(|n| self.partition(n, index)).collect();
                let hashes: BTreeSet<u64> = held.iter().map(hash).collect();
                let stable = |p: &Partition| p.stable_offset() == p.watch().borrow().offset;
                held.len() == 3 && hashes.len() == 1 && held.iter().all(stable)
            });
            data && [InternalTopic::Groups, InternalTopic::Transactions]
                .iter()
                .all(|which| {
                    let nodes = self.nodes.borrow();
                    let topic = nodes[&1].cluster.internal_topic(*which);
                    topic.is_none_or(|topic| {
                        (0..).zip(&topic.partitions).all(|(index, _)| {
                            let held = nodes
                                .values()
                                .filter_map(|node| node.cluster.partition_of(&topic, index).ok());
                            let hashes: BTreeSet<u64> = held.map(|held| hash(&held)).collect();
                            hashes.len() == 1
                        })
                    })
                })
        };
        let deadline = Instant::now() + Duration::from_mins(2);
        while !settled() {
            let open = (0..PARTITIONS).map(|index| {
                let held = self.partition(1, index);
                held.map(|p| (p.stable_offset(), p.watch().borrow().offset))
            });
            assert!(
                Instant::now() < deadline,
                "seed {}: something stays open or differs: {:?}",
                self.ledger.borrow().seed,
                open.collect::<Vec<_>>()
            );
            self.run(Duration::from_millis(200)).await;
        }
    }

    /// What counts in a partition, as this node's replica has it, by the records' texts.
    async fn committed(&self, node: u32, index: u32) -> Vec<(u64, String)> {
        let partition = self.partition(node, index).unwrap();
        let (mut found, mut next) = (Vec::new(), Offset(0));
        loop {
            let settled = partition.read_stable(next, 1 << 20).await.unwrap();
            if settled.next == next {
                return found;
            }
            next = settled.next;
            for frame in settled.committed().fetched.frames {
                found.push((frame.header.base_offset.get(), text(&frame.records)));
            }
        }
    }

    async fn check(&self) {
        let seed = self.ledger.borrow().seed;
        let mut counts: Vec<BTreeSet<String>> = Vec::new();
        for index in 0..PARTITIONS {
            let found = self.committed(1, index).await;
            for node in [2, 3] {
                assert_eq!(self.committed(node, index).await, found, "seed {seed}");
            }
            let seen = self.seen[index as usize].borrow();
            assert_eq!(
                seen.records, found,
                "seed {seed}: a reader saw something else of {index}"
            );
            let texts: BTreeSet<String> = found.iter().map(|(_, text)| text.clone()).collect();
            assert_eq!(texts.len(), found.len(), "seed {seed}: twice in {index}");
            counts.push(texts);
        }
        let unknown_committed = self.check_fates(seed, &counts);
        self.check_offsets(&unknown_committed).await;
    }

    /// Every transaction counts as its producer was told; returns those of which it was told
    /// nothing, and which do.
    fn check_fates(&self, seed: u64, counts: &[BTreeSet<String>]) -> BTreeSet<usize> {
        let ledger = self.ledger.borrow();
        let has = |(index, record): &(u32, String)| counts[*index as usize].contains(record);
        let mut unknown_committed = BTreeSet::new();
        for (at, told) in ledger.told.iter().enumerate() {
            let there = told.records.iter().filter(|record| has(record)).count();
            let whole = there == told.records.len() && there > 0;
            match told.fate {
                Fate::Committed => assert!(whole, "seed {seed}: lost or torn: {told:?}"),
                Fate::Aborted => assert_eq!(there, 0, "seed {seed}: aborted: {told:?}"),
                Fate::Unknown => {
                    assert!(whole || there == 0, "seed {seed}: torn: {told:?}");
                    if whole {
                        unknown_committed.insert(at);
                    }
                }
            }
        }
        unknown_committed
    }

    /// The group's offset of each producer is that of its last transaction that counts.
    async fn check_offsets(&self, unknown_committed: &BTreeSet<usize>) {
        let (nodes, seed) = (self.nodes.borrow().clone(), self.ledger.borrow().seed);
        let place = nodes[&1].groups.locate(GROUP).await.unwrap();
        let request = FetchRequest {
            group: GROUP.to_owned(),
            partitions: None,
            require_stable: true,
        };
        let fetched = nodes[&place.get()].groups.fetch(request).await.unwrap();
        let found: BTreeMap<u32, i64> = fetched
            .into_iter()
            .map(|one| (one.partition, one.committed.unwrap().unwrap().offset))
            .collect();
        let ledger = self.ledger.borrow();
        for (place, id) in (0..).zip(IDS) {
            let each = ledger.told.iter().enumerate();
            let counted = each.filter(|(at, told)| {
                let counts = told.fate == Fate::Committed || unknown_committed.contains(at);
                told.id == id && counts
            });
            let last = counted.filter_map(|(_, told)| told.offset).max();
            assert_eq!(found.get(&place).copied(), last, "seed {seed}: {id}");
        }
    }
}

fn simulate(seed: u64) {
    block_on(async move {
        let mut stage = Stage::start(seed).await;
        for id in IDS {
            stage.enter(id, 0.03);
        }
        stage.run(Duration::from_secs(5)).await;
        for round in 0..6 {
            stage.disturb().await;
            if round == 2 || round == 4 {
                // Another producer comes under the same id.
                stage.enter(IDS[0], 0.03);
            }
        }
        stage.all.net.heal_all();
        for number in 1..=3 {
            if !stage.all.serves(number) {
                stage.all.until("a restart", |all| all.serves(number)).await;
            }
        }
        stage.refresh();
        stage.run(Duration::from_secs(5)).await;
        stage.alive.set(false);
        // Longer than the last answers and the time-out of whatever was left open.
        stage.run(Duration::from_secs(16)).await;
        stage.until_settled().await;
        stage.run(Duration::from_secs(2)).await;
        stage.reading.set(false);
        stage.check().await;
        let ledger = stage.ledger.borrow();
        let committed = ledger
            .told
            .iter()
            .filter(|told| told.fate == Fate::Committed);
        let committed = committed.count();
        assert!(committed > 30, "seed {seed}: only {committed} commits");
    });
}

#[test]
fn transactions_are_whole_whatever_becomes_of_coordinators_leaders_and_replies() {
    for seed in seeds(2) {
        simulate(seed);
    }
}
