//! How clients reach simulated nodes: by lines that delay, lose and hold back what is said, and
//! that end with the life of the node at the other end.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use trilog_jepsen::kafka::{Line, World};
use trilog_raft::testkit::SimClock;
use trilog_server::kafka::Kafka;
use trilog_storage::env::Clock;

/// How often somebody who waits for a node to be reached again looks.
const LOOK: Duration = Duration::from_millis(20);
/// Of so many messages one is lost, with its line.
const LOST: u32 = 400;
/// Of so many one is late, perhaps by more than anybody waits for.
const LATE: u32 = 150;

/// All lines of a simulation.
#[derive(Debug)]
pub(crate) struct Links {
    inner: Mutex<Inner>,
    /// The right time.
    clock: SimClock,
}

#[derive(Debug)]
struct Inner {
    doors: BTreeMap<u32, Door>,
    /// Nodes whose lines hold everything back.
    cut: BTreeSet<u32>,
    /// Nothing is lost or late any more.
    sound: bool,
    rng: SmallRng,
}

/// Where a node is entered for as long as it lives.
#[derive(Clone, Debug)]
struct Door {
    kafka: Kafka,
    life: CancellationToken,
}

impl Links {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            inner: Mutex::new(Inner {
                doors: BTreeMap::new(),
                cut: BTreeSet::new(),
                sound: true,
                rng: SmallRng::seed_from_u64(seed),
            }),
            clock: SimClock::default(),
        }
    }

    pub(crate) fn is_open(&self, node: u32) -> bool {
        self.inner.lock().doors.contains_key(&node)
    }

    pub(crate) fn open(&self, node: u32, kafka: Kafka) {
        let life = CancellationToken::new();
        let door = Door { kafka, life };
        self.inner.lock().doors.insert(node, door);
    }

    /// The node is dead: what it was asked it does not answer.
    pub(crate) fn shut(&self, node: u32) {
        if let Some(door) = self.inner.lock().doors.remove(&node) {
            door.life.cancel();
        }
    }

    /// Clients do not reach a node, nor it them.
    pub(crate) fn cut(&self, node: u32) {
        self.inner.lock().cut.insert(node);
    }

    pub(crate) fn heal(&self) {
        self.inner.lock().cut.clear();
    }

    /// Whether every message arrives, and soon, from now on.
    pub(crate) fn be_sound(&self, sound: bool) {
        self.inner.lock().sound = sound;
    }

    /// A message goes to a node or comes from it; an error if it gets lost.
    async fn carry(&self, node: u32) -> io::Result<()> {
        let (lost, time) = {
            let mut inner = self.inner.lock();
            let trouble = !inner.sound;
            let lost = trouble && inner.rng.random_ratio(1, LOST);
            let late = trouble && inner.rng.random_ratio(1, LATE);
            let most = if late { 5_000_000 } else { 2_000 };
            (lost, inner.rng.random_range(50..most))
        };
        sleep(Duration::from_micros(time)).await;
        if lost {
            return Err(io::ErrorKind::ConnectionReset.into());
        }
        while self.inner.lock().cut.contains(&node) {
            sleep(LOOK).await;
        }
        Ok(())
    }

    async fn answer(&self, node: u32, door: Door, request: Bytes) -> io::Result<Bytes> {
        self.carry(node).await?;
        let answering = Box::pin(door.kafka.answer(&request));
        let answered = door.life.run_until_cancelled(answering).await;
        let answer = answered.ok_or(io::ErrorKind::ConnectionReset)?;
        let answer = answer.ok_or(io::ErrorKind::UnexpectedEof)?;
        self.carry(node).await?;
        Ok(answer)
    }
}

/// The links as clients have them.
#[derive(Clone, Debug)]
pub(crate) struct Reach(pub(crate) Arc<Links>);

impl World for Reach {
    fn connect(&self, node: u32) -> BoxFuture<'_, io::Result<Box<dyn Line>>> {
        async move {
            self.0.carry(node).await?;
            let door = self.0.inner.lock().doors.get(&node).cloned();
            let door = door.ok_or(io::ErrorKind::ConnectionRefused)?;
            let links = Arc::clone(&self.0);
            let line: Box<dyn Line> = Box::new(Connection { links, node, door });
            Ok(line)
        }
        .boxed()
    }

    fn now_millis(&self) -> i64 {
        self.0.clock.now().as_millis()
    }
}

#[derive(Debug)]
struct Connection {
    links: Arc<Links>,
    node: u32,
    door: Door,
}

impl Line for Connection {
    /// What is on its way goes on when nobody waits for its answer any more.
    fn exchange(&mut self, request: Bytes) -> BoxFuture<'_, io::Result<Bytes>> {
        let (links, node, door) = (Arc::clone(&self.links), self.node, self.door.clone());
        let exchange = tokio::spawn(async move { links.answer(node, door, request).await });
        async move { exchange.await.map_err(io::Error::other)? }.boxed()
    }
}
