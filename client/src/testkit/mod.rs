//! A cluster of in-process nodes which keep their records in memory, judge producers as real
//! leaders do, and misbehave when told to: they refuse, forget to answer, break streams, move
//! leaders, and append what they received on a broken stream after all.
//!
//! For tests and examples, here and in programs that use the client; it panics where a test would.

mod node;
mod partition;
mod services;
mod state;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::SmallRng;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use trilog_model::batch::BatchHeader;
use trilog_wire::v1::cluster_server::ClusterServer;
use trilog_wire::v1::fetch_server::FetchServer;
use trilog_wire::v1::offsets_server::OffsetsServer;
use trilog_wire::v1::producer_server::ProducerServer;
use trilog_wire::v1::topics_server::TopicsServer;

use self::node::Node;
pub use self::state::Faults;
use self::state::State;

#[derive(Debug)]
/// The cluster; dropping it ends its nodes.
pub struct FakeCluster {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    appended: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeCluster {
    /// As many nodes, and topics with so many partitions, led in turn.
    pub async fn start(nodes: u32, topics: &[(&str, u32)]) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..nodes {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.expect("a free port"));
        }
        let address = |listener: &TcpListener| listener.local_addr().expect("bound").to_string();
        let state = State {
            addresses: listeners.iter().map(address).collect(),
            topics: BTreeMap::new(),
            faults: Faults::default(),
            rng: SmallRng::seed_from_u64(1),
            next_producer_id: 1,
            time: 1_700_000_000_000_000_000,
            injected: 0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            appended: Notify::new(),
        });
        for (name, partitions) in topics {
            shared.lock().create(name, *partitions);
        }
        let serve = |(node, listener): (u32, TcpListener)| {
            let node = Node {
                id: node,
                shared: Arc::clone(&shared),
            };
            tokio::spawn(async move {
                let server = Server::builder()
                    .add_service(TopicsServer::new(node.clone()))
                    .add_service(ProducerServer::new(node.clone()))
                    .add_service(FetchServer::new(node.clone()))
                    .add_service(OffsetsServer::new(node.clone()))
                    .add_service(ClusterServer::new(node))
                    .serve_with_incoming(TcpIncoming::from(listener));
                server.await.expect("serves until it is dropped");
            })
        };
        let tasks = (1..).zip(listeners).map(serve).collect();
        Self { shared, tasks }
    }

    pub fn addresses(&self) -> Vec<String> {
        self.shared.lock().addresses.clone()
    }

    pub fn set_faults(&self, faults: Faults, seed: u64) {
        let mut state = self.shared.lock();
        state.faults = faults;
        state.rng = SmallRng::seed_from_u64(seed);
    }

    pub fn injected(&self) -> u64 {
        self.shared.lock().injected
    }

    pub fn set_leader(&self, topic: &str, partition: usize, node: u32) {
        let mut state = self.shared.lock();
        let partition = &mut state.topics.get_mut(topic).expect("known").partitions[partition];
        partition.leader = node;
        partition.term += 1;
        drop(state);
        self.shared.appended.notify_waiters();
    }

    pub fn leader(&self, topic: &str, partition: usize) -> u32 {
        self.shared.lock().topics[topic].partitions[partition].leader
    }

    /// Replaces a topic by another of the same name.
    pub fn create_anew(&self, topic: &str, partitions: u32) {
        self.shared.lock().create(topic, partitions);
        self.shared.appended.notify_waiters();
    }

    /// Trims a partition's log.
    pub fn set_log_start(&self, topic: &str, partition: usize, offset: u64) {
        let mut state = self.shared.lock();
        state.topics.get_mut(topic).expect("known").partitions[partition].log_start = offset;
    }

    /// Makes a hole of so many offsets at a partition's end, as removals do.
    pub fn skip_offsets(&self, topic: &str, partition: usize, offsets: u64) {
        let mut state = self.shared.lock();
        let partition = &mut state.topics.get_mut(topic).expect("known").partitions[partition];
        let last = partition.batches.last_mut().expect("not empty");
        last.next_offset += offsets;
    }

    /// Flips a bit of a stored batch.
    pub fn damage(&self, topic: &str, partition: usize, batch: usize) {
        let mut state = self.shared.lock();
        let partition = &mut state.topics.get_mut(topic).expect("known").partitions[partition];
        let stored = &mut partition.batches[batch];
        let mut bytes = stored.bytes.to_vec();
        *bytes.last_mut().expect("not empty") ^= 1;
        stored.bytes = bytes.into();
    }

    /// The values of a partition, in order, with their offsets.
    pub fn values(&self, topic: &str, partition: usize) -> Vec<(u64, Bytes)> {
        let state = self.shared.lock();
        let mut values = Vec::new();
        for batch in &state.topics[topic].partitions[partition].batches {
            let header = BatchHeader::parse(&batch.bytes).expect("validated");
            let records = header.records(&batch.bytes, 1 << 30).expect("validated");
            for (offset, record) in (batch.base_offset..).zip(records.iter()) {
                let value = record.expect("validated").value.unwrap_or_default();
                values.push((offset, Bytes::copy_from_slice(value)));
            }
        }
        values
    }

    /// Batches of a partition.
    pub fn batch_count(&self, topic: &str, partition: usize) -> usize {
        self.shared.lock().topics[topic].partitions[partition]
            .batches
            .len()
    }

    /// Ends a node: its connections break and nobody answers there any more.
    pub fn stop_node(&self, node: usize) {
        self.tasks[node - 1].abort();
    }
}

impl Drop for FakeCluster {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}
