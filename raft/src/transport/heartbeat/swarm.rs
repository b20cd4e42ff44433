//! Resting groups under swarms of faults: nobody rests for long on a leader that is not heard,
//! and once the faults end both sides agree on who rests.

use std::cell::Cell;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::super::sim::{Crash, SimNet, Trace};
use super::super::tests::{A, B, C};
use super::tests::{Node, node, vouch};
use super::*;

const NODES: [NodeId; 3] = [A, B, C];
const GROUPS: u64 = 12;
const FAULTS_FOR: Duration = Duration::from_secs(20);
/// How long a follower may rest on a leader it cannot hear: the time-out and what the last
/// pulses were under way.
const PATIENCE: Duration = Duration::from_millis(900);

struct Swarm {
    net: SimNet,
    seed: u64,
    nodes: Mutex<BTreeMap<NodeId, Arc<Node>>>,
    /// Since when a node can hear another; absent while it can.
    deaf_since: Mutex<BTreeMap<(NodeId, NodeId), Instant>>,
    starts: Cell<u64>,
    /// Leaders say nothing new any more.
    settling: Cell<bool>,
    over: Cell<bool>,
}

/// Group `g` is led by one node and followed by another, the same throughout.
fn roles(group: u64) -> (NodeId, NodeId) {
    let leader = usize::try_from(group % 3).unwrap();
    let follower = usize::try_from((group + 1 + group / 3 % 2) % 3).unwrap();
    (NODES[leader], NODES[follower])
}

impl Swarm {
    fn node(&self, id: NodeId) -> Arc<Node> {
        Arc::clone(&self.nodes.lock()[&id])
    }

    fn start(&self, id: NodeId) {
        self.starts.set(self.starts.get() + 10);
        let started = node(&self.net, id, self.seed + self.starts.get());
        self.nodes.lock().insert(id, Arc::new(started));
    }

    fn deafen(&self, from: NodeId, to: NodeId) {
        let mut deaf = self.deaf_since.lock();
        deaf.entry((from, to)).or_insert_with(Instant::now);
    }

    /// The leader's side of a group: vouches, holds its word a while, sometimes withdraws it.
    async fn lead(&self, group: u64, mut random: SmallRng) {
        let (leader, follower) = roles(group);
        while !self.settling.get() {
            let node = self.node(leader);
            let timeout = Duration::from_millis(300);
            // A refusal or a lost node is no failure here: it tries again.
            let _ = node
                .hub
                .vouch(vouch(leader, follower, group), timeout)
                .await;
            tokio::time::sleep(Duration::from_millis(random.random_range(50..3_000))).await;
            if random.random_bool(0.3) {
                node.hub.withdraw(GroupId(group));
            }
        }
    }

    async fn faults(&self, mut random: SmallRng) {
        let end = Instant::now() + FAULTS_FOR;
        while Instant::now() < end {
            let a = NODES[random.random_range(0..3)];
            let b = NODES[random.random_range(0..3)];
            match random.random_range(0..5) {
                0 => {
                    self.net.cut(a, b);
                    self.deafen(a, b);
                }
                1 => {
                    self.net.isolate(a);
                    for other in NODES {
                        self.deafen(a, other);
                        self.deafen(other, a);
                    }
                }
                2 => self.net.reset_links(a, b),
                3 => {
                    self.crash(a, &mut random).await;
                }
                _ => {
                    let group = GroupId(random.random_range(0..GROUPS));
                    let node = self.node(a);
                    node.groups.wake(group);
                    node.hub.refuse(group);
                }
            }
            tokio::time::sleep(Duration::from_millis(random.random_range(20..1_500))).await;
            if random.random_bool(0.5) {
                self.heal();
            }
        }
        self.heal();
    }

    async fn crash(&self, id: NodeId, random: &mut SmallRng) {
        let how = if random.random_bool(0.5) {
            Crash::Machine
        } else {
            Crash::Process
        };
        self.net.crash(id, how);
        for other in NODES {
            self.deafen(id, other);
        }
        // The crashed hub's tasks are as dead as its node.
        let node = self.node(id);
        node.hub.stop().await;
        node.groups.forget();
        tokio::time::sleep(Duration::from_millis(random.random_range(0..2_000))).await;
        self.start(id);
        for other in NODES {
            self.deaf_since.lock().remove(&(id, other));
        }
    }

    fn heal(&self) {
        self.net.heal_all();
        self.deaf_since.lock().clear();
    }

    /// Nobody rests on a leader it has not heard for longer than its patience.
    async fn watch(&self) {
        while !self.over.get() {
            for group in 0..GROUPS {
                let (leader, follower) = roles(group);
                let deaf = self.deaf_since.lock().get(&(leader, follower)).copied();
                let resting = self.node(follower).groups.rests(GroupId(group));
                if let Some(since) = deaf {
                    assert!(
                        !resting || since.elapsed() < PATIENCE,
                        "group {group} rests on node {leader}, not heard for {:?}",
                        since.elapsed()
                    );
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// With the faults over, leaders vouch once more and both sides agree.
    async fn settle(&self) {
        self.settling.set(true);
        tokio::time::sleep(Duration::from_secs(6)).await;
        for group in 0..GROUPS {
            let (leader, follower) = roles(group);
            let word = vouch(leader, follower, group);
            let agreed = self
                .node(leader)
                .hub
                .vouch(word, Duration::from_secs(1))
                .await;
            assert_eq!(agreed, Ok(()), "group {group}");
        }
        self.over.set(true);
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

async fn swarm(seed: u64) -> Trace {
    let swarm = Swarm {
        net: SimNet::new(seed),
        seed,
        nodes: Mutex::default(),
        deaf_since: Mutex::default(),
        starts: Cell::new(0),
        settling: Cell::new(false),
        over: Cell::new(false),
    };
    for id in NODES {
        swarm.start(id);
    }
    let random = |stream: u64| SmallRng::seed_from_u64(seed * 1_000 + stream);
    let leading = (0..GROUPS).map(|group| swarm.lead(group, random(group)));
    let faults = async {
        swarm.faults(random(99)).await;
        swarm.settle().await;
    };
    tokio::join!(futures::future::join_all(leading), faults, swarm.watch());
    swarm.net.trace()
}

fn run(seed: u64) -> Trace {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(swarm(seed))
}

#[test]
fn nobody_rests_on_a_lost_leader_under_swarms_of_faults() {
    let seeds = std::env::var("TRILOG_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok());
    for seed in 0..seeds.unwrap_or(5) {
        let outcome = std::panic::catch_unwind(|| run(seed));
        outcome.unwrap_or_else(|_| panic!("seed {seed}"));
    }
}

#[test]
fn a_swarm_over_resting_groups_repeats_under_its_seed() {
    assert_eq!(run(77), run(77));
}
