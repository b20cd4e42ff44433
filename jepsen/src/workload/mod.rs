//! Clients at work: each worker is one process of the history after another, and does what its
//! seed says, one operation at a time.
//!
//! ```text
//! worker ──> hand ──> kafka, native, stock, kcat      what is done │ by which client
//!    └─────> recorder                           what is written down of it
//! ```
//!
//! Owns what is done and what is said of it; it knows nothing of faults. An operation that fails
//! for certain is a `fail`; one that may have happened is an `info`, after which another process
//! goes on with a new client.

mod auditor;
mod hand;
mod kafka_hand;
mod kcat_hand;
mod level;
mod native_hand;
mod recorder;
mod stock_hand;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

pub use auditor::Auditor;
pub use hand::Kind;
pub use level::{Held, await_level, placement};
pub use recorder::Recorder;
pub use worker::{Scan, Worker};

use crate::history::{Key, Mop, Note, Op};
use crate::kafka::{Client, Complaints, Lives, Node, Seen, World};

/// The topic whose partitions are the keys.
pub const TOPIC: &str = "chaos";
/// The group that subscribers are in.
pub const GROUP: &str = "readers";

/// What all workers of a run have in common.
#[derive(Debug)]
pub struct Stage {
    pub recorder: Recorder,
    pub keys: u32,
    /// Kafka ports.
    pub nodes: Vec<Node>,
    /// gRPC addresses.
    pub seeds: Vec<String>,
    /// Where the nodes are, if they are no processes: Kafka's clients alone get there.
    pub world: Option<Arc<dyn World>>,
    pub lives: Lives,
    /// What nodes said that they may not say.
    pub complaints: Complaints,
    /// A Python that has `confluent_kafka`, if stock clients are to work, too.
    pub python: Option<PathBuf>,
    /// A kcat, if it is to be among the clients.
    pub kcat: Option<PathBuf>,
    /// When an open transaction is aborted that nobody ends.
    pub txn_timeout: Duration,
    /// How long a client tries one thing.
    pub patience: Duration,
    /// What a worker rests after an operation at most.
    pub pace: Duration,
    /// Operations that may still begin.
    pub budget: AtomicU64,
    values: Vec<AtomicU64>,
    processes: AtomicU32,
    /// By kind of client, in their order: values that were acknowledged, and records read.
    work: [(AtomicU64, AtomicU64); Kind::ALL.len()],
}

/// What a run is made of, as far as its clients are concerned.
#[derive(Debug, Clone)]
pub struct Load {
    pub keys: u32,
    /// See [`Stage::world`].
    pub world: Option<Arc<dyn World>>,
    pub python: Option<PathBuf>,
    pub kcat: Option<PathBuf>,
    pub operations: u64,
    pub pace: Duration,
    pub patience: Duration,
    pub txn_timeout: Duration,
}

impl Stage {
    pub fn new(
        recorder: Recorder,
        load: &Load,
        nodes: Vec<Node>,
        seeds: Vec<String>,
        lives: Lives,
    ) -> Arc<Self> {
        Arc::new(Self {
            recorder,
            keys: load.keys,
            nodes,
            seeds,
            world: load.world.clone(),
            lives,
            complaints: Complaints::default(),
            python: load.python.clone(),
            kcat: load.kcat.clone(),
            txn_timeout: load.txn_timeout,
            patience: load.patience,
            pace: load.pace,
            budget: AtomicU64::new(load.operations),
            values: (0..load.keys).map(|_| AtomicU64::new(0)).collect(),
            processes: AtomicU32::new(0),
            work: <[_; Kind::ALL.len()]>::default(),
        })
    }

    /// A client of Kafka's protocol that asks this one of the nodes first.
    pub fn kafka_client(&self, first: usize) -> Client {
        let lives = Arc::clone(&self.lives);
        Client::new(TOPIC, self.nodes.clone(), lives, first)
            .within(self.world.clone())
            .complaining_to(&self.complaints)
    }

    /// Writes down what a node said of a high watermark, perhaps as a proven leader.
    pub fn note_high_watermark(&self, seen: &Seen, linearizable: bool) {
        self.recorder.note(Note::HighWatermark {
            key: seen.key,
            node: seen.node,
            boot: seen.boot,
            high_watermark: seen.high_watermark,
            began: self.recorder.nanos(seen.began),
            linearizable,
        });
    }

    /// Counts what an operation achieved.
    fn achieved(&self, kind: Kind, op: &Op) {
        let Some((acknowledged, read)) = self.work.get(kind.place()) else {
            return;
        };
        for mop in &op.mops {
            match mop {
                Mop::Send { .. } => {
                    acknowledged.fetch_add(1, Ordering::Relaxed);
                }
                Mop::Poll(runs) => {
                    let count: usize = runs.iter().map(|(_, records)| records.len()).sum();
                    read.fetch_add(count as u64, Ordering::Relaxed);
                }
            }
        }
    }

    /// Which of these kinds of clients achieved nothing of what they are there for. A history of
    /// clients to whom nothing happened is valid, and proves nothing.
    pub fn idle(&self, kinds: &[Kind]) -> Vec<String> {
        let mut idle = Vec::new();
        for kind in kinds {
            let Some((acknowledged, read)) = self.work.get(kind.place()) else {
                continue;
            };
            for (count, what) in [(acknowledged, "acknowledged"), (read, "read")] {
                if count.load(Ordering::Relaxed) == 0 {
                    idle.push(format!("{} clients had nothing {what}", kind.name()));
                }
            }
        }
        idle
    }

    /// A value that nobody has sent to this key.
    fn value(&self, key: Key) -> u64 {
        let values = usize::try_from(key.0)
            .ok()
            .and_then(|key| self.values.get(key));
        values.map_or(0, |value| value.fetch_add(1, Ordering::Relaxed))
    }

    fn process(&self) -> u32 {
        self.processes.fetch_add(1, Ordering::Relaxed)
    }

    /// Takes an operation out of the budget, if one is left.
    fn may_begin(&self) -> bool {
        let less = |left: u64| left.checked_sub(1);
        let taken = self
            .budget
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        taken.is_ok()
    }

    /// Kafka ports as stock clients are told them.
    fn servers(&self) -> String {
        let nodes = self.nodes.iter();
        let servers: Vec<String> = nodes.map(|node| node.address.to_string()).collect();
        servers.join(",")
    }

    pub fn all_keys(&self) -> Vec<Key> {
        (0..self.keys).map(Key).collect()
    }
}
