//! Connections to all nodes, and who leads what.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::{
    ApiKey, FindCoordinatorRequest, FindCoordinatorResponse, MetadataRequest, MetadataResponse,
    TopicName,
};
use kafka_protocol::protocol::{Decodable, Encodable};
use tokio::time::{Instant, sleep};

use super::conn::{Complaints, Conn, Fault, text};
use super::world::World;
use crate::history::Key;

/// How long a connection may take to come up.
const CONNECT: Duration = Duration::from_secs(1);
/// What a question that changes nothing may take.
const QUESTION: Duration = Duration::from_secs(2);
/// Between attempts.
pub(super) const PAUSE: Duration = Duration::from_millis(40);

/// Where a node's Kafka port is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    pub number: u32,
    pub address: SocketAddr,
}

/// How often each node, by its number less one, has been started. Counted up before a start, when
/// the life before is surely over.
pub type Lives = Arc<[AtomicU32]>;

/// What a node said of a high watermark.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    pub key: Key,
    pub node: u32,
    pub boot: u32,
    pub high_watermark: u64,
    pub began: Instant,
}

/// A client of one topic, whose partitions are the keys.
#[derive(Debug)]
pub struct Client {
    pub(super) topic: TopicName,
    nodes: Vec<Node>,
    /// Where the nodes are, if they are no processes.
    world: Option<Arc<dyn World>>,
    lives: Lives,
    conns: BTreeMap<u32, Conn>,
    leaders: BTreeMap<Key, u32>,
    /// Which node is asked next what any of them knows.
    next: usize,
    /// What nodes said of high watermarks, until somebody takes it.
    pub seen: Vec<Seen>,
    pub(super) complaints: Complaints,
}

impl Client {
    pub fn new(topic: &str, nodes: Vec<Node>, lives: Lives, first: usize) -> Self {
        Self {
            topic: TopicName(text(topic)),
            nodes,
            world: None,
            lives,
            conns: BTreeMap::new(),
            leaders: BTreeMap::new(),
            next: first,
            seen: Vec::new(),
            complaints: Complaints::default(),
        }
    }

    /// Tells there what no node may say.
    #[must_use]
    pub fn complaining_to(mut self, complaints: &Complaints) -> Self {
        self.complaints = complaints.clone();
        self
    }

    /// Goes by the nodes' numbers, in that world, if it is in one.
    #[must_use]
    pub fn within(mut self, world: Option<Arc<dyn World>>) -> Self {
        self.world = world;
        self
    }

    /// What time records are said to be of, in milliseconds since 1970.
    pub(super) fn now_millis(&self) -> i64 {
        let world = self.world.as_ref();
        world.map_or_else(now_millis, |world| world.now_millis())
    }

    fn life(&self, node: u32) -> Option<u32> {
        let place = usize::try_from(node).ok()?.checked_sub(1)?;
        Some(self.lives.get(place)?.load(Ordering::SeqCst))
    }

    async fn conn(&mut self, node: u32) -> Result<&mut Conn, Fault> {
        if !self.conns.contains_key(&node) {
            let place = self.nodes.iter().find(|place| place.number == node);
            let address = place
                .ok_or_else(|| Fault::Not(format!("there is no node {node}")))?
                .address;
            let before = self.life(node);
            let mut conn = match &self.world {
                None => Conn::open(address, CONNECT).await?,
                Some(world) => Conn::open_in(&**world, node, CONNECT).await?,
            };
            conn.boot = before.filter(|before| self.life(node) == Some(*before));
            self.conns.insert(node, conn);
        }
        let conn = self.conns.get_mut(&node);
        conn.ok_or_else(|| Fault::Not("the connection is gone".to_owned()))
    }

    /// Which life of a node its connection leads to, if there is one and it is known.
    pub(super) fn boot(&self, node: u32) -> Option<u32> {
        self.conns.get(&node)?.boot
    }

    /// Asks one node; after an error its connection is given up.
    pub(super) async fn ask<M: Encodable, R: Decodable>(
        &mut self,
        node: u32,
        key: ApiKey,
        version: i16,
        message: &M,
        patience: Duration,
    ) -> Result<R, Fault> {
        let conn = self.conn(node).await?;
        let answer = conn.ask(key, version, message, patience).await;
        if answer.is_err()
            && let Some(conn) = self.conns.remove(&node)
            && conn.is_absurd
        {
            let complaint = format!("node {node} answered {key:?} {version} with no such answer");
            self.complaints.tell(complaint);
        }
        answer
    }

    /// Any node, another one each time.
    pub(super) fn any(&mut self) -> u32 {
        self.next = (self.next + 1) % self.nodes.len().max(1);
        self.nodes.get(self.next).map_or(0, |node| node.number)
    }

    pub fn nodes(&self) -> impl Iterator<Item = u32> {
        self.nodes.iter().map(|node| node.number)
    }

    /// Who leads a key as far as is known.
    pub(super) fn leader(&self, key: Key) -> Option<u32> {
        self.leaders.get(&key).copied()
    }

    /// Forgets who leads a key, so that it is asked for.
    pub(super) fn doubt(&mut self, key: Key) {
        self.leaders.remove(&key);
    }

    /// Asks some node who leads what.
    pub async fn refresh(&mut self) -> Result<(), Fault> {
        let node = self.any();
        let topic = MetadataRequestTopic::default().with_name(Some(self.topic.clone()));
        let request = MetadataRequest::default()
            .with_topics(Some(vec![topic]))
            .with_allow_auto_topic_creation(false);
        let answer: MetadataResponse = self
            .ask(node, ApiKey::Metadata, 9, &request, QUESTION)
            .await?;
        for partition in answer.topics.iter().flat_map(|topic| &topic.partitions) {
            let (Ok(key), Ok(leader)) = (
                u32::try_from(partition.partition_index),
                u32::try_from(partition.leader_id.0),
            ) else {
                continue;
            };
            self.leaders.insert(Key(key), leader);
        }
        Ok(())
    }

    /// Who leads a key, asked for until somebody knows or time is up.
    pub(super) async fn find_leader(&mut self, key: Key, deadline: Instant) -> Result<u32, Fault> {
        loop {
            if let Some(leader) = self.leader(key) {
                return Ok(leader);
            }
            let asked = self.refresh().await;
            if self.leader(key).is_none() {
                if Instant::now() >= deadline {
                    let why = asked
                        .err()
                        .map_or("nobody leads".to_owned(), |f| f.text().to_owned());
                    return Err(Fault::Not(why));
                }
                sleep(PAUSE).await;
            }
        }
    }

    /// Who coordinates a group (`kind` 0) or a transactional id (1).
    pub(super) async fn coordinator(
        &mut self,
        name: &str,
        kind: i8,
        deadline: Instant,
    ) -> Result<u32, Fault> {
        loop {
            let node = self.any();
            let request = FindCoordinatorRequest::default()
                .with_key(text(name))
                .with_key_type(kind);
            let found: Result<FindCoordinatorResponse, Fault> = self
                .ask(node, ApiKey::FindCoordinator, 3, &request, QUESTION)
                .await;
            let why = match found {
                Ok(found) if found.error_code == 0 => {
                    return u32::try_from(found.node_id.0)
                        .map_err(|_| Fault::Not("a coordinator without a number".to_owned()));
                }
                Ok(found) => format!("no coordinator: {}", found.error_code),
                Err(fault) => fault.text().to_owned(),
            };
            if Instant::now() >= deadline {
                return Err(Fault::Not(why));
            }
            sleep(PAUSE).await;
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "records bear the time of day, which the run does not depend on"
)]
fn now_millis() -> i64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |now| i64::try_from(now.as_millis()).unwrap_or(i64::MAX))
}
