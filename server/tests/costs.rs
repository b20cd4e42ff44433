//! What a record costs on its way in and out, kept from rising unseen: allocations, and reads and
//! writes that the kernel is asked for, for 1,000 records, of three nodes together.
//!
//! The nodes run in this process, so that its allocator sees all they do, and do their file I/O by
//! threads, for what io_uring does no kernel counts. The client sends bytes that were made before
//! and reads into a buffer that it has: it adds next to nothing.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod counting;
mod kafka_conn;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use counting::{Counting, Counts};
use kafka_conn::{framed, text};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{ApiKey, BrokerId, FetchRequest, ProduceRequest, TopicName};
use trilog_client::Client;
use trilog_client::proto::CreateTopicRequest;
use trilog_jepsen::cluster::Ports;
use trilog_model::batch::{BatchBuilder, Compression};
use trilog_server::boot::{Listeners, Server};
use trilog_server::config::{Sources, load};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const TOPIC: &str = "costs";
const NODES: u16 = 3;
/// Of a batch, as a producer of small records makes them.
const RECORDS: u32 = 100;
const RECORD_BYTES: usize = 100;
const BATCHES: u32 = 500;
/// What connections and logs allocate once is behind them by then.
const WARMING: u32 = 200;
/// The least of so many attempts is the cost; the rest is what else happened meanwhile.
const ATTEMPTS: usize = 3;

/// What 1,000 records may cost at most: measured, and a third more, for what else nodes do the longer
/// the slower a machine is.
struct Bound {
    allocations: f64,
    calls: f64,
}

const PRODUCE: Bound = Bound {
    allocations: 2_200.0,
    calls: 210.0,
};
const FETCH: Bound = Bound {
    allocations: 280.0,
    calls: 14.0,
};

/// The ports of a node, counted from zero.
fn port(ports: &Ports, node: u16, which: u16) -> u16 {
    ports.first() + 4 * node + which
}

const GRPC: u16 = 0;
const PEER: u16 = 1;
const KAFKA: u16 = 3;

async fn start(ports: &Ports, node: u16, dir: &Path) -> Server {
    let local = |which| format!("127.0.0.1:{}", port(ports, node, which));
    let seeds: Vec<String> = (0..NODES)
        .map(|node| format!("127.0.0.1:{}", port(ports, node, PEER)))
        .collect();
    let data = dir.join(node.to_string());
    let settings = [
        ("node.id", (node + 1).to_string()),
        ("node.data_dir", data.display().to_string()),
        ("cluster.seeds", seeds.join(",")),
        ("listen.grpc", local(GRPC)),
        ("listen.peer", local(PEER)),
        ("listen.http", local(2)),
        ("listen.kafka", local(KAFKA)),
        ("storage.io", "threads".to_owned()),
        ("storage.wal_file_size", "16MiB".to_owned()),
        ("storage.wal_files", "8".to_owned()),
    ];
    let flags = settings.map(|(key, value)| ("--set".to_owned(), key.to_owned(), value));
    let sources = Sources {
        flags: flags.to_vec(),
        ..Sources::default()
    };
    let config = load(&sources).unwrap().config;
    let listeners = Listeners::bind(&config).await.unwrap();
    Server::start(&config, listeners).await.unwrap()
}

/// Makes the topic; the Kafka port of its leader.
async fn prepare(ports: &Ports) -> u16 {
    let servers = (0..NODES).map(|node| format!("127.0.0.1:{}", port(ports, node, GRPC)));
    let client = Client::connect(servers.collect::<Vec<_>>()).await.unwrap();
    let request = CreateTopicRequest {
        name: TOPIC.to_owned(),
        partitions: 1,
        replication: u32::from(NODES),
        ..CreateTopicRequest::default()
    };
    client.admin().create_topic(request).await.unwrap();
    client.admin().await_leaders(TOPIC).await.unwrap();
    let described = client.admin().describe_topic(TOPIC).await.unwrap();
    let leader = described.partitions[0].leader;
    port(ports, u16::try_from(leader).unwrap() - 1, KAFKA)
}

fn produce_request() -> Bytes {
    let mut batch = BatchBuilder::new(Compression::None);
    for _ in 0..RECORDS {
        batch
            .push(1, None, Some(&[b'x'; RECORD_BYTES]), &[])
            .unwrap();
    }
    let partition = PartitionProduceData::default()
        .with_index(0)
        .with_records(Some(batch.build().unwrap()));
    let topic = TopicProduceData::default()
        .with_name(TopicName(text(TOPIC)))
        .with_partition_data(vec![partition]);
    let request = ProduceRequest::default()
        .with_acks(-1)
        .with_timeout_ms(10_000)
        .with_topic_data(vec![topic]);
    framed(ApiKey::Produce, 9, 1, &request)
}

/// Asks for one batch: the bytes allowed are fewer than it has.
fn fetch_request() -> Bytes {
    let partition = FetchPartition::default()
        .with_partition(0)
        .with_fetch_offset(0)
        .with_partition_max_bytes(1);
    let topic = FetchTopic::default()
        .with_topic(TopicName(text(TOPIC)))
        .with_partitions(vec![partition]);
    let request = FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(1_000)
        .with_min_bytes(1)
        .with_max_bytes(1 << 20)
        .with_topics(vec![topic]);
    framed(ApiKey::Fetch, 12, 1, &request)
}

/// A client that waits for each answer, which has to have at least so many bytes.
struct Asking {
    stream: TcpStream,
    answer: Vec<u8>,
}

impl Asking {
    fn open(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_nodelay(true).unwrap();
        let patience = Some(Duration::from_secs(30));
        stream.set_read_timeout(patience).unwrap();
        let answer = vec![0; 1 << 20];
        Self { stream, answer }
    }

    fn ask(&mut self, request: &[u8], least: usize, times: u32) {
        for _ in 0..times {
            self.stream.write_all(request).unwrap();
            let mut len = [0; 4];
            self.stream.read_exact(&mut len).unwrap();
            let len = usize::try_from(u32::from_be_bytes(len)).unwrap();
            self.stream.read_exact(&mut self.answer[..len]).unwrap();
            assert!(len >= least, "an answer of {len} bytes");
        }
    }

    /// The least that 1,000 records cost: allocations, and calls where they are counted.
    fn cost(&mut self, request: &[u8], least: usize) -> (f64, Option<f64>) {
        self.ask(request, least, WARMING);
        let thousands = f64::from(BATCHES * RECORDS) / 1e3;
        let mut all = Vec::new();
        for _ in 0..ATTEMPTS {
            let before = Counts::now();
            self.ask(request, least, BATCHES);
            let after = Counts::now();
            let each =
                |now: u64, then: u64| f64::from(u32::try_from(now - then).unwrap()) / thousands;
            let calls = after.calls.zip(before.calls);
            all.push((
                each(after.allocations, before.allocations),
                calls.map(|(now, then)| each(now, then)),
            ));
        }
        let calls = all.iter().filter_map(|(_, calls)| *calls);
        let allocations = all.iter().map(|(allocations, _)| *allocations);
        (allocations.fold(f64::MAX, f64::min), calls.reduce(f64::min))
    }
}

/// What is wrong with a cost, if anything is.
fn excess(what: &str, (allocations, calls): (f64, Option<f64>), bound: &Bound) -> Option<String> {
    let calls = calls.unwrap_or_else(|| {
        eprintln!("SKIPPED: this kernel does not count the calls of a process");
        0.0
    });
    let said = format!(
        "{what}: for 1,000 records {allocations:.0} allocations of at most {:.0}, {calls:.0} reads \
         and writes of at most {:.0}",
        bound.allocations, bound.calls
    );
    eprintln!("{said}");
    (allocations > bound.allocations || calls > bound.calls).then_some(said)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_record_costs_no_more_allocations_and_calls_than_it_did() {
    let dir = tempfile::tempdir().unwrap();
    let ports = Ports::claim().expect("every block of ports is taken");
    let starting = (0..NODES).map(|node| start(&ports, node, dir.path()));
    let nodes = futures::future::join_all(starting).await;
    let leader = prepare(&ports).await;
    let measuring = tokio::task::spawn_blocking(move || {
        let mut client = Asking::open(leader);
        let produced = client.cost(&produce_request(), 20);
        let batch = usize::try_from(RECORDS).unwrap() * RECORD_BYTES;
        (produced, client.cost(&fetch_request(), batch))
    });
    let (produced, fetched) = measuring.await.unwrap();
    for node in nodes {
        node.stop(Duration::from_secs(10)).await;
    }
    let excess = [
        excess("produce", produced, &PRODUCE),
        excess("fetch", fetched, &FETCH),
    ];
    assert_eq!(excess, [None, None]);
}
