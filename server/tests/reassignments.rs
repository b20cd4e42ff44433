//! Replicas reassigned by an operator on whole simulated nodes: to any nodes, in any order and
//! number, again before the last move is done, and back, while nodes crash and are cut off and
//! leaders change. Nothing acknowledged is lost, no term has two leaders, and in the end the
//! replicas are where the last word put them.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each test file uses a part of it")]
mod machines;

use std::time::Duration;

use machines::Machines;
use rand::rngs::SmallRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{Rng, SeedableRng};
use tokio::time::timeout;
use trilog_model::NodeId;
use trilog_raft::testkit::{block_on, seeds};
use trilog_server::cluster::{Cluster, Destination, ReassignError};
use trilog_server::partition::Appended;

const TOPIC: &str = "orders";
const NODES: u32 = 5;
const ROUNDS: u32 = 24;

/// What became of what was asked for.
#[derive(Debug, Default)]
struct Tally {
    moves: u32,
    cancels: u32,
    /// Nothing was on its way.
    in_vain: u32,
    crashes: u32,
    cuts: u32,
}

struct Trouble {
    all: Machines,
    rng: SmallRng,
    down: Vec<u32>,
    cut: Vec<u32>,
    next: u32,
    places: Vec<(u32, Appended)>,
    tally: Tally,
}

impl Trouble {
    async fn start(seed: u64) -> Self {
        let all = Machines::start(seed, NODES).await;
        all.create(TOPIC, 3).await;
        Self {
            all,
            rng: SmallRng::seed_from_u64(seed),
            down: Vec::new(),
            cut: Vec::new(),
            next: 0,
            places: Vec::new(),
            tally: Tally::default(),
        }
    }

    /// Nodes in any order, at least one.
    fn any_nodes(&mut self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = (1..=NODES).map(NodeId).collect();
        nodes.shuffle(&mut self.rng);
        let count = self.rng.random_range(1..=4);
        nodes.truncate(count);
        nodes
    }

    /// A node to ask.
    fn cluster(&mut self) -> Option<Cluster> {
        let up: Vec<u32> = (1..=NODES).filter(|node| self.all.serves(*node)).collect();
        let node = up.choose(&mut self.rng)?;
        self.all.with(*node, |server| server.cluster().clone())
    }

    async fn reassign(&mut self, to: &Destination) {
        let Some(cluster) = self.cluster() else {
            return;
        };
        let asked = cluster.reassign(TOPIC, 0, to, true);
        // A node that is cut off does not know what came of it.
        let told = timeout(Duration::from_secs(3), asked).await;
        match (to, told) {
            (Destination::Nodes(_), Ok(Ok(()))) => self.tally.moves += 1,
            (Destination::Back, Ok(Ok(()))) => self.tally.cancels += 1,
            (Destination::Back, Ok(Err(ReassignError::NotInProgress))) => self.tally.in_vain += 1,
            _ => {}
        }
    }

    async fn crash(&mut self) {
        if let Some(node) = self.down.pop() {
            self.all.boot(node).await;
        } else {
            let node = self.rng.random_range(1..=NODES);
            self.all.kill(node);
            self.down.push(node);
            self.tally.crashes += 1;
        }
    }

    fn cut(&mut self) {
        if self.cut.pop().is_some() {
            self.all.net.heal_all();
        } else {
            let node = self.rng.random_range(1..=NODES);
            self.all.net.isolate(NodeId(node));
            self.cut.push(node);
            self.tally.cuts += 1;
        }
    }

    /// Appends a few records, where somebody takes them.
    async fn write(&mut self) {
        for _ in 0..4 {
            let number = self.next;
            self.next += 1;
            if let Ok(appended) = self.all.append(TOPIC, number).await {
                self.places.push((number, appended));
            }
        }
    }

    async fn round(&mut self) {
        match self.rng.random_range(0..8) {
            0..3 => {
                let nodes = self.any_nodes();
                self.reassign(&Destination::Nodes(nodes)).await;
            }
            3..5 => self.reassign(&Destination::Back).await,
            5..7 => self.crash().await,
            _ => self.cut(),
        }
        self.write().await;
        let pause = self.rng.random_range(0..1_500);
        self.all.run(Duration::from_millis(pause)).await;
    }

    /// Ends all trouble, says a last word, and sees it come true and stay so.
    async fn end(mut self, seed: u64) -> Tally {
        self.all.net.heal_all();
        for node in std::mem::take(&mut self.down) {
            self.all.boot(node).await;
        }
        let serve = |all: &Machines| (1..=NODES).all(|node| all.serves(node));
        self.all.until("all nodes", serve).await;
        let last = self.any_nodes();
        let cluster = self.all.with(1, |server| server.cluster().clone()).unwrap();
        let to = Destination::Nodes(last.clone());
        while cluster.reassign(TOPIC, 0, &to, true).await.is_err() {
            self.all.run(Duration::from_millis(100)).await;
        }
        let there = |all: &Machines| {
            let place = all.with(1, |server| server.cluster().place(TOPIC, 0).unwrap());
            let place = place.unwrap();
            let led = all.leader(TOPIC).map(|(node, _)| NodeId(node));
            place.is_settled() && place.shown() == last && led == last.first().copied()
        };
        self.all.until("the last word", there).await;
        self.write().await;
        self.all.run(Duration::from_secs(5)).await;
        assert!(there(&self.all), "seed {seed}: it did not stay at {last:?}");
        assert!(!self.places.is_empty(), "seed {seed}: nothing was written");
        for node in last {
            self.all.check(node.get(), TOPIC, &self.places).await;
        }
        self.tally
    }
}

#[test]
fn replicas_end_where_the_last_word_put_them_with_all_that_was_acknowledged() {
    let mut total = Tally::default();
    for seed in seeds(6) {
        block_on(async {
            let mut trouble = Trouble::start(seed).await;
            for _ in 0..ROUNDS {
                trouble.round().await;
            }
            let tally = trouble.end(seed).await;
            total.moves += tally.moves;
            total.cancels += tally.cancels;
            total.in_vain += tally.in_vain;
            total.crashes += tally.crashes;
            total.cuts += tally.cuts;
        });
    }
    eprintln!("{total:?}");
    // Each kind of thing did happen.
    let least = [total.moves, total.cancels, total.crashes, total.cuts];
    assert!(least.iter().all(|count| *count > 0), "{total:?}");
}
