//! Groups in which the coordinator assigns (KIP-848) on whole simulated nodes: consumers that join,
//! work and die while coordinators crash, are cut off and hand over, and requests and replies are
//! lost. No replica ever holds a partition of two, no epoch and no acknowledged offset goes back,
//! and after the faults all consumers read everything between them.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each test file uses a part of it")]
mod machines;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use machines::Machines;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};
use trilog_model::{NodeId, ReplicaId};
use trilog_raft::controller::commands::{Command, CreateTopic, TopicKind};
use trilog_raft::controller::{InternalTopic, TopicId};
use trilog_raft::testkit::{block_on, seeds};
use trilog_server::group::{
    CommitRequest, ConsumerBeat, Coordinator, FetchRequest, Given, GroupError, MemberRef,
    OffsetCommit,
};
use trilog_server::partition::Partition;
use trilog_storage::env::Entropy;

const TOPIC: &str = "orders";
const PARTITIONS: u32 = 6;
const GROUP: &str = "readers";
const SESSION: Duration = Duration::from_secs(6);
const BEAT: Duration = Duration::from_millis(500);

/// The coordinators of the nodes that are up.
type Nodes = Rc<RefCell<BTreeMap<u32, Coordinator>>>;
type Owned = BTreeSet<(TopicId, u32)>;

#[derive(Default)]
struct Ledger {
    seed: u64,
    /// The highest offset of a partition that the group was told is committed.
    acked: BTreeMap<u32, i64>,
    /// What each consumer reads.
    reads: BTreeMap<u32, Owned>,
    /// How often a consumer had to give up a partition.
    given_up: BTreeMap<u32, usize>,
}

struct Consumer {
    number: u32,
    nodes: Nodes,
    ledger: Rc<RefCell<Ledger>>,
    rng: SmallRng,
    /// Of requests, and as many of replies.
    loss: f64,
    alive: Rc<Cell<bool>>,
    given: Option<Given>,
    owned: Owned,
    offsets: BTreeMap<u32, i64>,
    /// What it last said that it reads; none after an error: then it says everything.
    said: Option<Owned>,
}

impl Consumer {
    async fn run(mut self) {
        while self.alive.get() {
            if let Some(coordinator) = self.locate().await {
                self.beat(&coordinator).await;
                self.read(&coordinator).await;
            }
            sleep(BEAT).await;
        }
    }

    async fn locate(&mut self) -> Option<Coordinator> {
        let asked = {
            let nodes = self.nodes.borrow();
            let nth = self.rng.random_range(0..nodes.len().max(1));
            nodes.values().nth(nth).cloned()?
        };
        let located = timeout(Duration::from_secs(3), asked.locate(GROUP)).await;
        let node = located.ok()?.ok()?;
        self.nodes.borrow().get(&node.get()).cloned()
    }

    /// None: the request or its answer was lost.
    async fn attempt<T>(
        &mut self,
        request: impl Future<Output = Result<T, GroupError>>,
    ) -> Option<Result<T, GroupError>> {
        if self.rng.random_bool(self.loss) {
            sleep(Duration::from_millis(200)).await;
            return None;
        }
        let answer = timeout(Duration::from_secs(5), request).await;
        answer.ok().filter(|_| !self.rng.random_bool(self.loss))
    }

    /// As clients do, it says what it reads when that has changed.
    fn says(&mut self) -> ConsumerBeat {
        let said = self.said.replace(self.owned.clone());
        let all = self.given.is_none() || said.is_none();
        let same = said.is_some_and(|said| said == self.owned);
        ConsumerBeat {
            group: GROUP.to_owned(),
            member: format!("consumer-{}", self.number),
            epoch: self.given.as_ref().map_or(0, |given| given.epoch),
            client_id: format!("client-{}", self.number),
            client_host: "/127.0.0.1".to_owned(),
            rebalance_timeout: all.then_some(Duration::from_secs(10)),
            topics: all.then(|| vec![TOPIC.to_owned()]),
            owned: (all || !same).then(|| self.owned.clone()),
            ..ConsumerBeat::default()
        }
    }

    async fn beat(&mut self, coordinator: &Coordinator) {
        let said = self.says();
        match self.attempt(coordinator.consumer_heartbeat(said)).await {
            Some(Ok(given)) => self.hear(given),
            Some(Err(GroupError::FencedEpoch | GroupError::UnknownMember)) => {
                self.owned.clear();
                self.offsets.clear();
                self.given = None;
                self.said = None;
            }
            Some(Err(_)) | None => self.said = None,
        }
        let mut ledger = self.ledger.borrow_mut();
        ledger.reads.insert(self.number, self.owned.clone());
    }

    fn hear(&mut self, given: Given) {
        if let Some(assigned) = &given.assigned {
            let assigned: Owned = assigned.iter().copied().collect();
            let lost = self.owned.difference(&assigned).count();
            *self
                .ledger
                .borrow_mut()
                .given_up
                .entry(self.number)
                .or_default() += lost;
            self.offsets
                .retain(|index, _| assigned.iter().any(|part| part.1 == *index));
            self.owned = assigned;
        }
        self.given = Some(given);
    }

    /// Goes on from what is committed, one record of each partition at a time.
    async fn read(&mut self, coordinator: &Coordinator) {
        let Some(given) = self.given.clone() else {
            return;
        };
        let new = self.owned.iter().map(|part| part.1);
        let new: Vec<u32> = new
            .filter(|index| !self.offsets.contains_key(index))
            .collect();
        if !new.is_empty() {
            let request = FetchRequest {
                group: GROUP.to_owned(),
                partitions: Some(new.iter().map(|index| (TOPIC.to_owned(), *index)).collect()),
                require_stable: false,
            };
            let (member, asked) = (&given.member, request.partitions.as_deref());
            if coordinator
                .check_member(GROUP, member, given.epoch, asked)
                .is_err()
            {
                return;
            }
            let Some(Ok(fetched)) = self.attempt(coordinator.fetch(request)).await else {
                return;
            };
            for offset in fetched {
                let at = offset.committed.unwrap().map_or(0, |found| found.offset);
                self.offsets.insert(offset.partition, at);
            }
        }
        let next: BTreeMap<u32, i64> = self.offsets.iter().map(|(p, o)| (*p, o + 1)).collect();
        let offsets = next.iter().map(|(index, offset)| OffsetCommit {
            topic: TOPIC.to_owned(),
            partition: *index,
            offset: *offset,
            leader_epoch: -1,
            metadata: String::new(),
        });
        let request = CommitRequest {
            member: MemberRef {
                group: GROUP.to_owned(),
                generation: given.epoch,
                member: given.member,
                instance: None,
            },
            offsets: offsets.collect(),
        };
        if request.offsets.is_empty() {
            return;
        }
        if let Some(Ok(_)) = self.attempt(coordinator.commit(request)).await {
            let mut ledger = self.ledger.borrow_mut();
            for (index, offset) in &next {
                let acked = ledger.acked.entry(*index).or_default();
                *acked = (*acked).max(*offset);
            }
            drop(ledger);
            self.offsets = next;
        }
    }
}

/// A cluster with a topic, and consumers at work.
struct Stage {
    all: Machines,
    nodes: Nodes,
    ledger: Rc<RefCell<Ledger>>,
    rng: SmallRng,
    lives: BTreeMap<u32, Rc<Cell<bool>>>,
    /// The highest epoch seen on each node since it started.
    epochs: RefCell<BTreeMap<u32, i32>>,
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
            rng: SmallRng::seed_from_u64(seed),
            lives: BTreeMap::new(),
            epochs: RefCell::default(),
        };
        stage.refresh();
        stage
    }

    /// Consumers find the nodes that are up, and no others.
    fn refresh(&self) {
        let mut nodes = self.nodes.borrow_mut();
        nodes.clear();
        for number in 1..=3 {
            let coordinator = self.all.with(number, |server| server.coordinator().clone());
            nodes.extend(coordinator.map(|coordinator| (number, coordinator)));
        }
    }

    fn enter(&mut self, number: u32, loss: f64) {
        let alive = Rc::new(Cell::new(true));
        self.lives.insert(number, Rc::clone(&alive));
        let consumer = Consumer {
            number,
            nodes: Rc::clone(&self.nodes),
            ledger: Rc::clone(&self.ledger),
            rng: SmallRng::seed_from_u64(self.rng.random()),
            loss,
            alive,
            given: None,
            owned: Owned::new(),
            offsets: BTreeMap::new(),
            said: None,
        };
        spawn_local(consumer.run());
    }

    /// It dies without a word.
    fn kill(&mut self, number: u32) {
        self.lives.remove(&number).unwrap().set(false);
        self.ledger.borrow_mut().reads.remove(&number);
    }

    async fn run(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.all.run(Duration::from_millis(100)).await;
            self.refresh();
            self.look();
        }
    }

    /// What every replica holds must make sense at any time.
    fn look(&self) {
        let seed = self.ledger.borrow().seed;
        for node in 1..=3 {
            for partition in self.internal(node) {
                let held = partition.with_state(|state| {
                    let consumers = state.groups()?.get(GROUP)?.consumers()?;
                    let members = consumers.members.iter();
                    let parts = members.flat_map(|m| m.assigned.iter().chain(&m.revoking));
                    let parts = parts.flat_map(|parts| parts.partitions.clone());
                    Some((consumers.epoch, parts.collect::<Vec<u32>>()))
                });
                let Some((epoch, parts)) = held else {
                    continue;
                };
                let each: BTreeSet<u32> = parts.iter().copied().collect();
                assert_eq!(parts.len(), each.len(), "seed {seed}: {parts:?} are held");
                let mut epochs = self.epochs.borrow_mut();
                let seen = epochs.entry(node).or_default();
                assert!(epoch >= *seen, "seed {seed}: epoch {epoch} after {seen}");
                *seen = epoch;
            }
        }
    }

    fn internal(&self, node: u32) -> Vec<Partition> {
        let held = self.all.with(node, |server| {
            let cluster = server.cluster();
            let topic = cluster.internal_topic(InternalTopic::Groups)?;
            let each = (0..).zip(&topic.partitions);
            let held = each.filter_map(|(index, _)| cluster.partition_of(&topic, index).ok());
            Some(held.collect::<Vec<_>>())
        });
        held.flatten().unwrap_or_default()
    }

    /// Until those that live read everything, each partition once.
    async fn until_whole(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        loop {
            let whole = {
                let ledger = self.ledger.borrow();
                let living = ledger.reads.keys().copied().eq(self.lives.keys().copied());
                let reads: Vec<u32> = ledger.reads.values().flatten().map(|part| part.1).collect();
                let each: BTreeSet<u32> = reads.iter().copied().collect();
                let all = usize::try_from(PARTITIONS).unwrap();
                living && reads.len() == all && each.len() == all
            };
            if whole {
                return;
            }
            assert!(
                Instant::now() < deadline,
                "seed {}: {:?}",
                self.ledger.borrow().seed,
                self.ledger.borrow().reads
            );
            self.run(Duration::from_millis(100)).await;
        }
    }

    async fn disturb(&mut self) {
        let node = self.rng.random_range(1..=3);
        let time = Duration::from_millis(self.rng.random_range(300..4_000));
        match self.rng.random_range(0..3) {
            0 => {
                self.all.kill(node);
                self.epochs.borrow_mut().remove(&node);
                self.refresh();
                self.run(time).await;
                self.all.boot(node).await;
            }
            1 => {
                self.all.net.isolate(NodeId(node));
                self.run(time).await;
                self.all.net.heal_all();
            }
            _ => self.hand_over(NodeId(node)).await,
        }
        let pause = self.rng.random_range(200..3_000);
        self.run(Duration::from_millis(pause)).await;
    }

    /// Every partition of groups is to be led by this node.
    async fn hand_over(&self, to: NodeId) {
        for from in (1..=3).filter(|from| *from != to.get()) {
            for partition in self.internal(from) {
                let group = partition.group();
                let mut replicas = group.voters().into_iter();
                let heir: Option<ReplicaId> = replicas.find(|replica| replica.node() == to);
                if let Some(heir) = heir.filter(|_| partition.leader().1) {
                    drop(group.transfer_leader(heir).await);
                }
            }
        }
    }

    /// Everything that was acknowledged is there.
    fn check(&self) {
        let ledger = self.ledger.borrow();
        let held = self.internal(1);
        for (index, acked) in &ledger.acked {
            let found = held.iter().find_map(|partition| {
                partition.with_state(|state| {
                    let group = state.groups()?.get(GROUP)?;
                    Some(group.offset(TOPIC, *index)?.offset)
                })
            });
            assert!(
                found.is_some_and(|found| found >= *acked),
                "seed {}: {index}: {acked} was acknowledged, {found:?} is there",
                ledger.seed
            );
        }
        let acked: i64 = ledger.acked.values().sum();
        assert!(acked > 50, "seed {}: only {acked} commits", ledger.seed);
    }
}

fn simulate(seed: u64) {
    block_on(async move {
        let mut stage = Stage::start(seed).await;
        for number in 0..3 {
            stage.enter(number, 0.04);
        }
        stage.until_whole(Duration::from_mins(1)).await;
        for round in 0..6 {
            stage.disturb().await;
            match round {
                1 => stage.enter(3, 0.04),
                3 => stage.kill(1),
                _ => {}
            }
        }
        stage.all.net.heal_all();
        for number in 1..=3 {
            if !stage.all.serves(number) {
                stage.all.until("a restart", |all| all.serves(number)).await;
            }
        }
        stage.until_whole(Duration::from_mins(1)).await;
        stage.run(Duration::from_secs(3)).await;
        for life in stage.lives.values() {
            life.set(false);
        }
        stage.run(Duration::from_secs(10)).await;
        stage.check();
    });
}

#[test]
fn consumers_keep_what_is_theirs_whatever_becomes_of_coordinators_and_replies() {
    for seed in seeds(3) {
        simulate(seed);
    }
}

/// One of three dies. The others take over what it had, and give up nothing, not for a moment.
#[test]
fn who_is_not_affected_by_a_death_never_stops() {
    for seed in seeds(2) {
        block_on(async move {
            let mut stage = Stage::start(seed).await;
            for number in 0..3 {
                stage.enter(number, 0.0);
            }
            stage.until_whole(Duration::from_mins(1)).await;
            stage.run(Duration::from_secs(5)).await;
            stage.kill(1);
            let before = stage.ledger.borrow().given_up.clone();
            let began = Instant::now();
            stage.until_whole(Duration::from_secs(30)).await;
            let most = SESSION + BEAT * 4 + Duration::from_secs(1);
            let took = began.elapsed();
            assert!(took <= most, "seed {seed}: {took:?}");
            assert_eq!(stage.ledger.borrow().given_up, before, "seed {seed}");
        });
    }
}

/// Consumers that the test speaks for itself.
struct Desk {
    stage: Stage,
    coordinator: Coordinator,
    place: u32,
}

impl Desk {
    async fn start(seed: u64) -> Self {
        let stage = Stage::start(seed).await;
        let settled = |all: &Machines| {
            let map = all.with(1, |server| server.cluster().map()).unwrap();
            map.groups().all(|group| group.voter_nodes().count() == 3)
        };
        stage.all.until("three voters everywhere", settled).await;
        // Leaders come to rest where they belong.
        stage.run(Duration::from_secs(20)).await;
        Self::with(stage).await
    }

    async fn with(stage: Stage) -> Self {
        let seed = stage.ledger.borrow().seed;
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let nodes = stage.nodes.borrow().clone();
            if let Ok(place) = nodes[&1].locate(GROUP).await
                && let Some(coordinator) = nodes.get(&place.get())
            {
                // Other errors are those of a coordinator that is there.
                let told = coordinator.describe_consumers(GROUP);
                if told == Err(GroupError::UnknownGroup) {
                    let (coordinator, place) = (coordinator.clone(), place.get());
                    return Self {
                        stage,
                        coordinator,
                        place,
                    };
                }
            }
            assert!(Instant::now() < deadline, "seed {seed}: no coordinator");
            stage.run(Duration::from_millis(200)).await;
        }
    }

    fn join(member: &str) -> ConsumerBeat {
        ConsumerBeat {
            group: GROUP.to_owned(),
            member: member.to_owned(),
            rebalance_timeout: Some(Duration::from_secs(10)),
            topics: Some(vec![TOPIC.to_owned()]),
            owned: Some(Owned::new()),
            ..ConsumerBeat::default()
        }
    }

    fn next(given: &Given) -> ConsumerBeat {
        ConsumerBeat {
            group: GROUP.to_owned(),
            member: given.member.clone(),
            epoch: given.epoch,
            ..ConsumerBeat::default()
        }
    }

    /// What the log of the group's partition holds at its coordinator.
    fn log(&self) -> (u64, BTreeSet<String>) {
        let index = self.coordinator.partition_of(GROUP).unwrap();
        let held = self.stage.internal(self.place);
        let partition = &held[usize::try_from(index).unwrap()];
        let members = partition.with_state(|state| {
            let consumers = state.groups()?.get(GROUP)?.consumers()?;
            Some(consumers.members.iter().map(|m| m.id.clone()).collect())
        });
        let last = partition.group().log().state().last;
        let end = last.map_or(0, |last| last.index.get());
        (end, members.unwrap_or_default())
    }
}

/// Says nothing new many times; false if the coordinator moved meanwhile.
async fn writes_nothing(desk: &Desk) -> bool {
    let say = async |beat| match desk.coordinator.consumer_heartbeat(beat).await {
        Err(GroupError::NotCoordinator { .. } | GroupError::Loading) => None,
        told => Some(told.unwrap()),
    };
    let Some(given) = say(Desk::join("m")).await else {
        return false;
    };
    let before = desk.log();
    for nth in 0..50 {
        let mut beat = Desk::next(&given);
        if nth % 5 == 0 {
            // As after an error.
            beat = ConsumerBeat {
                epoch: given.epoch,
                owned: Some(given.assigned.iter().flatten().copied().collect()),
                ..Desk::join("m")
            };
        }
        let Some(told) = say(beat).await else {
            return false;
        };
        assert_eq!(told.epoch, given.epoch);
        desk.stage.run(Duration::from_millis(100)).await;
    }
    assert_eq!(desk.log(), before);
    true
}

#[test]
fn a_heartbeat_that_changes_nothing_writes_nothing() {
    block_on(async {
        let mut desk = Desk::start(5).await;
        let deadline = Instant::now() + Duration::from_mins(2);
        while !writes_nothing(&desk).await {
            assert!(Instant::now() < deadline, "the coordinator never rests");
            desk.stage.run(Duration::from_secs(1)).await;
            desk = Desk::with(desk.stage).await;
        }
    });
}

/// A group is deleted while what its last member did is on its way, and made anew: what becomes of
/// the old one says nothing about the new one.
#[test]
fn a_group_that_was_deleted_and_made_anew_is_told_only_what_is_committed() {
    block_on(async {
        let mut desk = Desk::start(6).await;
        let deadline = Instant::now() + Duration::from_mins(2);
        while let Err(error) = delete_and_make_anew(&desk).await {
            let moved = matches!(error, GroupError::NotCoordinator { .. });
            assert!(moved || error == GroupError::Loading, "{error}");
            assert!(Instant::now() < deadline, "the coordinator never rests");
            // Sessions end, so that it begins as the first time.
            desk.stage.run(SESSION + Duration::from_secs(1)).await;
            desk = Desk::with(desk.stage).await;
        }
        let all: BTreeSet<String> = ["d".to_owned(), "e".to_owned()].into();
        assert_eq!(desk.log().1, all, "it was told, so it is committed");
    });
}

/// An error if the coordinator moves meanwhile.
async fn delete_and_make_anew(desk: &Desk) -> Result<(), GroupError> {
    let coordinator = &desk.coordinator;
    let mut given = coordinator.consumer_heartbeat(Desk::join("a")).await?;
    for other in ["b", "c"] {
        // The group comes to a high version.
        let joined = coordinator.consumer_heartbeat(Desk::join(other)).await?;
        let leaves = ConsumerBeat {
            epoch: -1,
            ..Desk::next(&joined)
        };
        coordinator.consumer_heartbeat(leaves).await?;
    }
    given.epoch = -1;
    let (left, deleted, joined) = tokio::join!(
        biased;
        coordinator.consumer_heartbeat(Desk::next(&given)),
        coordinator.delete(GROUP),
        coordinator.consumer_heartbeat(Desk::join("d")),
    );
    left.and(joined)?;
    deleted?;
    coordinator.consumer_heartbeat(Desk::join("e")).await?;
    Ok(())
}
