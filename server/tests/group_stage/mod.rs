//! A simulated cluster with a topic and members of groups at work, and what they were told, which
//! must fit together.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::task::spawn_local;
use tokio::time::{Instant, sleep, timeout};
use trilog_model::{NodeId, ReplicaId};
use trilog_raft::controller::commands::{Command, CreateTopic, TopicKind};
use trilog_raft::controller::{InternalTopic, TopicId};
use trilog_server::group::{
    CommitRequest, Coordinator, FetchRequest, GroupError, JoinRequest, Joined, MemberRef,
    OffsetCommit, Protocol, SyncRequest,
};
use trilog_storage::env::Entropy;

use crate::machines::Machines;

pub(crate) const TOPIC: &str = "orders";
pub(crate) const PARTITIONS: u32 = 6;
pub(crate) const SESSION: Duration = Duration::from_secs(6);
pub(crate) const HEARTBEAT: Duration = Duration::from_millis(500);
pub(crate) const GROUPS: [&str; 2] = ["alpha", "beta"];

/// The coordinators of the nodes that are up.
pub(crate) type Nodes = Rc<RefCell<BTreeMap<u32, Coordinator>>>;

/// What the members were told, which must fit together.
#[derive(Default)]
pub(crate) struct Ledger {
    pub(crate) seed: u64,
    /// The highest offset of a partition that a group was told is committed.
    pub(crate) acked: BTreeMap<(&'static str, u32), i64>,
    /// Who was given a partition in a generation.
    pub(crate) given: BTreeMap<(&'static str, i32, u32), String>,
    /// What each member holds now, in which generation.
    pub(crate) holds: BTreeMap<(&'static str, u32), (i32, BTreeSet<u32>)>,
}

impl Ledger {
    fn given(&mut self, group: &'static str, generation: i32, member: &str, parts: &BTreeSet<u32>) {
        for part in parts {
            let place = (group, generation, *part);
            let first = self.given.entry(place).or_insert_with(|| member.to_owned());
            assert_eq!(
                first, member,
                "seed {}: two have {part} of {group} in generation {generation}",
                self.seed
            );
        }
    }

    /// Whether these members hold all partitions between them, each once, in one generation.
    fn is_whole(&self, group: &'static str, members: &BTreeSet<u32>) -> bool {
        let held: Vec<_> = self
            .holds
            .iter()
            .filter(|((of, _), _)| *of == group)
            .collect();
        let generations: BTreeSet<i32> = held.iter().map(|(_, (n, _))| *n).collect();
        let who: BTreeSet<u32> = held.iter().map(|((_, who), _)| *who).collect();
        let parts: Vec<u32> = held
            .iter()
            .flat_map(|(_, (_, parts))| parts.clone())
            .collect();
        let each: BTreeSet<u32> = parts.iter().copied().collect();
        generations.len() == 1
            && who == *members
            && parts.len() == each.len()
            && each.len() == usize::try_from(PARTITIONS).unwrap()
    }
}

/// One member of a group.
struct Client {
    group: &'static str,
    number: u32,
    id: String,
    nodes: Nodes,
    ledger: Rc<RefCell<Ledger>>,
    rng: SmallRng,
    /// Of requests, and as many of replies.
    loss: f64,
    alive: Rc<Cell<bool>>,
}

/// How an attempt ended.
enum Told<T> {
    Answer(Result<T, GroupError>),
    Nothing,
}

impl Client {
    async fn run(mut self) {
        while self.alive.get() {
            let pause = self.rng.random_range(20..100);
            sleep(Duration::from_millis(pause)).await;
            let Some(coordinator) = self.locate().await else {
                continue;
            };
            let Some(joined) = self.join(&coordinator).await else {
                continue;
            };
            let Some(parts) = self.sync(&coordinator, &joined).await else {
                continue;
            };
            self.work(coordinator, joined.generation, parts).await;
            let me = (self.group, self.number);
            self.ledger.borrow_mut().holds.remove(&me);
        }
    }

    async fn locate(&mut self) -> Option<Coordinator> {
        let asked = {
            let nodes = self.nodes.borrow();
            let nth = self.rng.random_range(0..nodes.len().max(1));
            nodes.values().nth(nth).cloned()?
        };
        let located = timeout(Duration::from_secs(3), asked.locate(self.group)).await;
        let node = located.ok()?.ok()?;
        self.nodes.borrow().get(&node.get()).cloned()
    }

    async fn attempt<T>(
        &mut self,
        request: impl Future<Output = Result<T, GroupError>>,
    ) -> Told<T> {
        if self.rng.random_bool(self.loss) {
            sleep(Duration::from_millis(200)).await;
            return Told::Nothing;
        }
        let answer = timeout(Duration::from_secs(20), request).await;
        match answer {
            Ok(answer) if !self.rng.random_bool(self.loss) => Told::Answer(answer),
            Ok(_) | Err(_) => Told::Nothing,
        }
    }

    async fn join(&mut self, coordinator: &Coordinator) -> Option<Joined> {
        let request = JoinRequest {
            group: self.group.to_owned(),
            member: self.id.clone(),
            instance: None,
            client_id: format!("client-{}", self.number),
            client_host: "/127.0.0.1".to_owned(),
            session_timeout: SESSION,
            rebalance_timeout: Duration::from_secs(10),
            protocol_type: "consumer".to_owned(),
            protocols: vec![Protocol {
                name: "range".to_owned(),
                metadata: Bytes::from_static(b"\0\x01\0\0\0\x01\0\x06orders\0\0\0\0"),
            }],
            require_known_member: true,
            can_skip_assignment: true,
        };
        match self.attempt(coordinator.join(request)).await {
            Told::Answer(Ok(joined)) => {
                self.id.clone_from(&joined.member);
                Some(joined)
            }
            Told::Answer(Err(GroupError::MemberIdRequired { member })) => {
                self.id = member;
                None
            }
            Told::Answer(Err(GroupError::UnknownMember)) => {
                self.id.clear();
                None
            }
            Told::Answer(Err(_)) | Told::Nothing => None,
        }
    }

    async fn sync(&mut self, coordinator: &Coordinator, joined: &Joined) -> Option<BTreeSet<u32>> {
        let count = u32::try_from(joined.members.len()).unwrap();
        let assignments = (0..).zip(&joined.members).map(|(nth, member)| {
            let parts = (0..PARTITIONS).filter(|part| part % count == nth);
            let parts: Vec<u8> = parts.map(|part| u8::try_from(part).unwrap()).collect();
            (member.member.clone(), Bytes::from(parts))
        });
        let request = SyncRequest {
            member: self.reference(joined.generation),
            protocol_type: Some("consumer".to_owned()),
            protocol: Some("range".to_owned()),
            assignments: assignments.collect(),
        };
        match self.attempt(coordinator.sync(request)).await {
            Told::Answer(Ok(synced)) => {
                let parts: BTreeSet<u32> =
                    synced.assignment.iter().copied().map(u32::from).collect();
                let mut ledger = self.ledger.borrow_mut();
                ledger.given(self.group, joined.generation, &self.id, &parts);
                let me = (self.group, self.number);
                ledger.holds.insert(me, (joined.generation, parts.clone()));
                Some(parts)
            }
            Told::Answer(Err(GroupError::UnknownMember)) => {
                self.id.clear();
                None
            }
            Told::Answer(Err(_)) | Told::Nothing => None,
        }
    }

    fn reference(&self, generation: i32) -> MemberRef {
        MemberRef {
            group: self.group.to_owned(),
            generation,
            member: self.id.clone(),
            instance: None,
        }
    }

    /// Heartbeats and commits until the group rebalances.
    async fn work(&mut self, mut coordinator: Coordinator, generation: i32, parts: BTreeSet<u32>) {
        let mut offsets: Option<BTreeMap<u32, i64>> = None;
        while self.alive.get() {
            sleep(HEARTBEAT).await;
            if offsets.is_none() {
                offsets = self.fetch(&coordinator, &parts).await;
            }
            if let Some(offsets) = &mut offsets {
                for offset in offsets.values_mut() {
                    *offset += 1;
                }
                self.commit(&coordinator, generation, offsets).await;
            }
            let beat = self.reference(generation);
            let told = self.attempt(async { coordinator.heartbeat(&beat) }).await;
            match told {
                Told::Answer(Ok(())) | Told::Nothing => {}
                Told::Answer(Err(GroupError::UnknownMember)) => {
                    self.id.clear();
                    return;
                }
                Told::Answer(Err(
                    GroupError::RebalanceInProgress | GroupError::IllegalGeneration,
                )) => return,
                Told::Answer(Err(_)) => {
                    if let Some(other) = self.locate().await {
                        coordinator = other;
                    }
                }
            }
        }
    }

    async fn fetch(
        &mut self,
        coordinator: &Coordinator,
        parts: &BTreeSet<u32>,
    ) -> Option<BTreeMap<u32, i64>> {
        let floor = self.ledger.borrow().acked.clone();
        let request = FetchRequest {
            group: self.group.to_owned(),
            partitions: Some(parts.iter().map(|part| (TOPIC.to_owned(), *part)).collect()),
            require_stable: true,
        };
        let Told::Answer(Ok(fetched)) = self.attempt(coordinator.fetch(request)).await else {
            return None;
        };
        let mut offsets = BTreeMap::new();
        for found in fetched {
            let offset = found.committed.unwrap().map_or(0, |found| found.offset);
            let least = floor.get(&(self.group, found.partition)).copied();
            assert!(
                least.unwrap_or(0) <= offset,
                "seed {}: {} of {} was {least:?} and is {offset}",
                self.ledger.borrow().seed,
                found.partition,
                self.group
            );
            offsets.insert(found.partition, offset);
        }
        Some(offsets)
    }

    async fn commit(
        &mut self,
        coordinator: &Coordinator,
        generation: i32,
        offsets: &BTreeMap<u32, i64>,
    ) {
        let each = offsets.iter().map(|(part, offset)| OffsetCommit {
            topic: TOPIC.to_owned(),
            partition: *part,
            offset: *offset,
            leader_epoch: -1,
            metadata: format!("by {}", self.number),
        });
        let request = CommitRequest {
            member: self.reference(generation),
            offsets: each.collect(),
        };
        let Told::Answer(Ok(outcomes)) = self.attempt(coordinator.commit(request)).await else {
            return;
        };
        for ((part, offset), outcome) in offsets.iter().zip(outcomes) {
            if outcome.is_ok() {
                let mut ledger = self.ledger.borrow_mut();
                let acked = ledger.acked.entry((self.group, *part)).or_default();
                *acked = (*acked).max(*offset);
            }
        }
    }
}

/// A cluster with a topic, and members at work.
pub(crate) struct Stage {
    pub(crate) all: Machines,
    pub(crate) nodes: Nodes,
    pub(crate) ledger: Rc<RefCell<Ledger>>,
    pub(crate) rng: SmallRng,
    pub(crate) lives: BTreeMap<(&'static str, u32), Rc<Cell<bool>>>,
}

impl Stage {
    pub(crate) async fn start(seed: u64) -> Self {
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
        };
        stage.refresh();
        stage
    }

    /// The node that coordinates `group`, as `asked` sees it, once that is not `gone`.
    pub(crate) async fn coordinator_of(
        &mut self,
        group: &str,
        asked: u32,
        gone: Option<u32>,
    ) -> u32 {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let asked = self.nodes.borrow()[&asked].clone();
            match asked.locate(group).await {
                Ok(place) if Some(place.get()) != gone => return place.get(),
                outcome => assert!(Instant::now() < deadline, "no coordinator: {outcome:?}"),
            }
            self.run(Duration::from_millis(200)).await;
        }
    }

    /// Members find the nodes that are up, and no others.
    pub(crate) fn refresh(&self) {
        let mut nodes = self.nodes.borrow_mut();
        nodes.clear();
        for number in 1..=3 {
            let coordinator = self.all.with(number, |server| server.coordinator().clone());
            if let Some(coordinator) = coordinator {
                nodes.insert(number, coordinator);
            }
        }
    }

    pub(crate) fn enter(&mut self, group: &'static str, number: u32, loss: f64) {
        let alive = Rc::new(Cell::new(true));
        self.lives.insert((group, number), Rc::clone(&alive));
        let client = Client {
            group,
            number,
            id: String::new(),
            nodes: Rc::clone(&self.nodes),
            ledger: Rc::clone(&self.ledger),
            rng: SmallRng::seed_from_u64(self.rng.random()),
            loss,
            alive,
        };
        spawn_local(client.run());
    }

    pub(crate) async fn run(&self, time: Duration) {
        let end = Instant::now() + time;
        while Instant::now() < end {
            self.all.run(Duration::from_millis(100)).await;
            self.refresh();
        }
    }

    /// Until all members of every group hold its partitions between them.
    pub(crate) async fn until_whole(&self, patience: Duration) -> Duration {
        let began = Instant::now();
        loop {
            let whole = GROUPS.iter().all(|group| {
                let alive = self.lives.iter();
                let alive = alive.filter(|((of, _), life)| of == group && life.get());
                let members: BTreeSet<u32> = alive.map(|((_, number), _)| *number).collect();
                members.is_empty() || self.ledger.borrow().is_whole(group, &members)
            });
            if whole {
                return began.elapsed();
            }
            let ledger = self.ledger.borrow();
            assert!(
                began.elapsed() < patience,
                "seed {}: members do not come together: {:?}",
                ledger.seed,
                ledger.holds
            );
            drop(ledger);
            self.run(Duration::from_millis(100)).await;
        }
    }

    /// One fault, and later its end.
    pub(crate) async fn disturb(&mut self) {
        let node = self.rng.random_range(1..=3);
        let time = Duration::from_millis(self.rng.random_range(300..6_000));
        let which = self.rng.random_range(0..100);
        match which {
            0..35 => {
                self.all.kill(node);
                self.refresh();
                self.run(time).await;
                self.all.boot(node).await;
            }
            35..70 => {
                self.all.net.isolate(NodeId(node));
                self.run(time).await;
                self.all.net.heal_all();
            }
            70..80 => {
                let ahead = self.rng.random_range(-300_000_000..300_000_000);
                self.all.machine(node).clock.set_offset_nanos(ahead);
            }
            _ => self.hand_over(NodeId(node)).await,
        }
        let pause = self.rng.random_range(200..3_000);
        self.run(Duration::from_millis(pause)).await;
    }

    /// Every partition of groups is to be led by this node.
    pub(crate) async fn hand_over(&self, to: NodeId) {
        for from in (1..=3).filter(|from| *from != to.get()) {
            for partition in self.internal(from) {
                let group = partition.group();
                if partition.leader().1 {
                    let replicas = group.voters().into_iter();
                    let heir: Option<ReplicaId> = replicas.into_iter().find(|r| r.node() == to);
                    if let Some(heir) = heir {
                        drop(group.transfer_leader(heir).await);
                    }
                }
            }
        }
    }

    pub(crate) fn internal(&self, node: u32) -> Vec<trilog_server::partition::Partition> {
        let held = self.all.with(node, |server| {
            let cluster = server.cluster();
            let topic = cluster.internal_topic(InternalTopic::Groups)?;
            let each = (0..).zip(&topic.partitions);
            let held = each.filter_map(|(index, _)| cluster.partition_of(&topic, index).ok());
            Some(held.collect::<Vec<_>>())
        });
        held.flatten().unwrap_or_default()
    }

    /// Replicas come to the same state, and it has all that was acknowledged.
    pub(crate) async fn check(&self) {
        let hashes = |node: u32| -> Vec<u64> {
            let held = self.internal(node);
            let hash = |p: &trilog_server::partition::Partition| {
                p.group().with_view(trilog_raft::View::hash)
            };
            held.iter().map(hash).collect()
        };
        let deadline = Instant::now() + Duration::from_mins(1);
        while hashes(1).is_empty() || hashes(1) != hashes(2) || hashes(2) != hashes(3) {
            assert!(
                Instant::now() < deadline,
                "seed {}: replicas differ",
                self.ledger.borrow().seed
            );
            self.run(Duration::from_millis(100)).await;
        }
        let ledger = self.ledger.borrow();
        let held = self.internal(1);
        for ((group, part), acked) in &ledger.acked {
            let found = held.iter().find_map(|partition| {
                partition.with_state(|state| {
                    let group = state.groups()?.get(group)?;
                    Some(group.offset(TOPIC, *part)?.offset)
                })
            });
            assert!(
                found.is_some_and(|found| found >= *acked),
                "seed {}: {group} {part}: {acked} was acknowledged, {found:?} is there",
                ledger.seed
            );
        }
    }

    pub(crate) fn stop(&self) {
        for life in self.lives.values() {
            life.set(false);
        }
    }
}
