//! Whatever comes in on the ports of a node, it answers with an error or not at all: it neither
//! ends nor panics, its memory stays bounded, and it goes on serving.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod nodes;
mod raw;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use bytes::Bytes;
use nodes::Nodes;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use raw::Raw;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use trilog_client::proto::{CreateTopicRequest, DeleteTopicRequest, PublishRequest};
use trilog_model::batch::{BatchBuilder, Compression};
use trilog_wire::error::Outcome;
use trilog_wire::v1::fetch_client::FetchClient;
use trilog_wire::v1::producer_client::ProducerClient;
use trilog_wire::v1::topics_client::TopicsClient;
use trilog_wire::v1::{ErrorCode, FetchRequest, ProduceRequest, Start, start};

const SEED: u64 = 7;
/// What the node may need beyond what it had, in bytes.
const MEMORY: f64 = 96e6;
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Says something to a port and listens for a moment; whatever comes back is all right.
fn say(port: u16, bytes: &[u8]) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_millis(20)))
        .unwrap();
    stream
        .set_write_timeout(Some(Duration::from_secs(1)))
        .unwrap();
    // Refused half-way is refused, too.
    let _ = stream.write_all(bytes);
    let _ = stream.read(&mut [0; 4096]);
}

fn noise(rng: &mut SmallRng, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    rng.fill_bytes(&mut bytes);
    bytes
}

/// An HTTP/2 frame that says it is so long.
fn frame(kind: u8, flags: u8, len: u32, body: &[u8]) -> Vec<u8> {
    let mut out = len.to_be_bytes()[1..].to_vec();
    out.extend([kind, flags, 0, 0, 0, 1]);
    out.extend(body);
    out
}

fn shout_at(ports: &[u16], rng: &mut SmallRng) {
    let mut words: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        b"POST /metrics HTTP/1.1\r\nContent-Length: 999999999999\r\n\r\nx".to_vec(),
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\nx".to_vec(),
        b"GET /%00%ff/../../etc/passwd HTTP/1.1\r\nHost: \xff\r\n\r\n".to_vec(),
        [&b"GET / HTTP/1.1\r\nX: "[..], &vec![b'a'; 2 << 20]].concat(),
        // A TLS greeting, and one of this system's own headers that lies.
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        [&b"TLF1"[..], &[0xff; 76]].concat(),
        [PREFACE, &frame(0, 0, 0x00ff_ffff, &[0; 1024])].concat(),
        [PREFACE, &frame(1, 4, 0x00ff_ffff, &[0x82; 4096])].concat(),
        [PREFACE, &frame(4, 0, 6, &[0, 4, 0xff, 0xff, 0xff, 0xff])].concat(),
        [PREFACE, &frame(9, 0, 100, &[0; 100])].concat(),
    ];
    // Calls begun and given up at once, many times over.
    let resets: Vec<u8> = (0..2000)
        .flat_map(|_| [frame(1, 5, 1, &[0x82]), frame(3, 0, 4, &[0; 4])].concat())
        .collect();
    words.push([PREFACE, &frame(4, 0, 0, &[]), &resets].concat());
    for _ in 0..12 {
        let len = rng.random_range(1..100_000);
        words.push(noise(rng, len));
        words.push([PREFACE, &noise(rng, 2_000)].concat());
    }
    for port in ports {
        for word in &words {
            say(*port, word);
        }
    }
}

/// Messages that are none, to every call that changes or reads something.
async fn mumble(channel: &Channel, rng: &mut SmallRng) {
    let paths = [
        "/trilog.v1.Topics/Create",
        "/trilog.v1.Topics/Describe",
        "/trilog.v1.Producer/Publish",
        "/trilog.v1.Offsets/Resolve",
        "/trilog.v1.Cluster/Move",
        "/trilog.v1.Nothing/Here",
    ];
    for path in paths {
        for _ in 0..20 {
            let len = rng.random_range(1..2_000);
            let body = Bytes::from(noise(rng, len));
            let mut grpc = tonic::client::Grpc::new(channel.clone());
            grpc.ready().await.unwrap();
            let path = path.parse().unwrap();
            let answer = grpc.unary(Request::new(body), path, Raw).await;
            // A random message that happens to be one may be answered.
            if let Err(status) = answer {
                assert_ne!(status.code(), Code::Unknown, "{status:?}");
            }
        }
    }
}

fn refused<T: std::fmt::Debug>(what: &str, answer: Result<T, Status>) {
    let status = answer.expect_err(what);
    assert!(!status.message().is_empty(), "{what}: {status:?}");
    assert_ne!(status.code(), Code::Internal, "{what}: {status:?}");
    assert_ne!(status.code(), Code::Unknown, "{what}: {status:?}");
}

async fn ask_nonsense(channel: &Channel) {
    let mut topics = TopicsClient::new(channel.clone());
    let long = "a".repeat(300);
    for name in ["", "..", "a/b", "a\0b", "ä", " ", &long] {
        let request = CreateTopicRequest {
            name: name.to_owned(),
            ..CreateTopicRequest::default()
        };
        refused(name, topics.create(request).await);
    }
    let huge = |partitions, replication| CreateTopicRequest {
        name: "huge".to_owned(),
        partitions,
        replication,
        ..CreateTopicRequest::default()
    };
    refused("partitions", topics.create(huge(u32::MAX, 1)).await);
    refused("replication", topics.create(huge(1, u32::MAX)).await);
    let config = (0..1_000).map(|nth| (format!("key.{nth}"), "x".repeat(50)));
    let odd = CreateTopicRequest {
        config: config.collect(),
        ..huge(1, 1)
    };
    refused("settings", topics.create(odd).await);

    let mut producer = ProducerClient::new(channel.clone());
    let publish = |value: usize, partition| PublishRequest {
        topic: "good".to_owned(),
        partition,
        value: Some(vec![0; value].into()),
        ..PublishRequest::default()
    };
    refused(
        "partition",
        producer.publish(publish(1, Some(u32::MAX))).await,
    );
    refused(
        "a large value",
        producer.publish(publish(1_050_000, None)).await,
    );
    refused(
        "a huge value",
        producer.publish(publish(32 << 20, None)).await,
    );

    let mut fetch = FetchClient::new(channel.clone());
    let from = |at| FetchRequest {
        topic: "good".to_owned(),
        start: Some(Start { at }),
        max_bytes: u32::MAX,
        max_wait_ms: u32::MAX,
        ..FetchRequest::default()
    };
    refused("no start", fetch.fetch(from(None)).await);
    let beyond = from(Some(start::At::Offset(u64::MAX)));
    let mut stream = fetch.fetch(beyond).await.unwrap().into_inner();
    let said = stream.message().await.unwrap().unwrap().error.unwrap();
    assert_eq!(said.code(), ErrorCode::OffsetOutOfRange);
    let mut other = from(Some(start::At::Offset(0)));
    other.topic_id = Some(Bytes::from_static(b"short"));
    refused("no topic id", fetch.fetch(other.clone()).await);
    other.topic_id = Some(Bytes::from_static(&[3; 16]));
    refused("another topic", fetch.fetch(other).await);
}

/// Batches that are none: each is refused by itself, and the stream goes on.
async fn produce_nonsense(channel: &Channel, rng: &mut SmallRng) {
    let mut requests = Vec::new();
    for request_id in 0..200 {
        let len = rng.random_range(0..20_000);
        requests.push(ProduceRequest {
            request_id,
            topic: "good".to_owned(),
            batch: noise(rng, len).into(),
            ..ProduceRequest::default()
        });
    }
    let mut producer = ProducerClient::new(channel.clone());
    let answers = producer.produce(futures::stream::iter(requests)).await;
    let mut answers = answers.unwrap().into_inner();
    let mut count = 0;
    while let Some(answer) = answers.message().await.unwrap() {
        let error = answer.error.expect("noise is no batch");
        assert!(!error.message.is_empty());
        count += 1;
    }
    assert_eq!(count, 200);
}

/// A topic that is deleted and created anew under its name takes nothing that was meant for the
/// old one, and gives nothing to who means that.
async fn mean_a_topic_that_is_gone(channel: &Channel) {
    let mut topics = TopicsClient::new(channel.clone());
    let request = || CreateTopicRequest {
        name: "again".to_owned(),
        partitions: 1,
        ..CreateTopicRequest::default()
    };
    let created = topics.create(request()).await.unwrap().into_inner();
    let old = created.topic.unwrap().id;
    let name = "again".to_owned();
    topics.delete(DeleteTopicRequest { name }).await.unwrap();
    let created = topics.create(request()).await.unwrap().into_inner();
    let new = created.topic.unwrap().id;
    assert_ne!(old, new);

    let mut batch = BatchBuilder::new(Compression::None);
    batch.push(1, None, Some(b"x"), &[]).unwrap();
    let batch = batch.build().unwrap();
    let produce = |request_id, topic_id: &Bytes| ProduceRequest {
        request_id,
        topic: "again".to_owned(),
        batch: batch.clone(),
        topic_id: Some(topic_id.clone()),
        ..ProduceRequest::default()
    };
    let mut producer = ProducerClient::new(channel.clone());
    // The leader may take a moment to open its replica of the new topic.
    let accepted = loop {
        let requests = futures::stream::iter([produce(1, &old), produce(2, &new)]);
        let mut answers = producer.produce(requests).await.unwrap().into_inner();
        let mut accepted = Vec::new();
        while let Some(answer) = answers.message().await.unwrap() {
            match (answer.request_id, answer.error) {
                (1, Some(error)) => assert_eq!(error.code(), ErrorCode::TopicReplaced),
                (_, None) => accepted.push(answer.request_id),
                (_, Some(error)) => assert_eq!(error.outcome(), Outcome::Retry, "{error:?}"),
            }
        }
        if !accepted.is_empty() {
            break accepted;
        }
    };
    assert_eq!(accepted, [2]);
    let mut fetch = FetchClient::new(channel.clone());
    let request = FetchRequest {
        topic: "again".to_owned(),
        start: Some(Start {
            at: Some(start::At::Offset(0)),
        }),
        topic_id: Some(old),
        ..FetchRequest::default()
    };
    refused("the old topic", fetch.fetch(request).await);
}

fn memory(nodes: &Nodes) -> f64 {
    let metrics = nodes.page(0, "/metrics");
    let line = metrics
        .lines()
        .find(|line| line.starts_with("process_resident_memory_bytes"));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_comes_in_harms_a_node() {
    let mut nodes = Nodes::start(1).await;
    nodes.run(&["topic", "create", "good"]);
    nodes.run(&["produce", "good", "before"]);
    let before = memory(&nodes);
    let mut rng = SmallRng::seed_from_u64(SEED);
    eprintln!("seed {SEED}");

    shout_at(&nodes.ports(0), &mut rng);
    let address = format!("http://{}", nodes.address(0));
    let channel = Channel::from_shared(address)
        .unwrap()
        .connect()
        .await
        .unwrap();
    mumble(&channel, &mut rng).await;
    ask_nonsense(&channel).await;
    produce_nonsense(&channel, &mut rng).await;
    mean_a_topic_that_is_gone(&channel).await;

    nodes.run(&["produce", "good", "after"]);
    let read = nodes.run(&["consume", "good", "-o", "start", "-e"]);
    assert_eq!(read, "before\nafter\n");
    let grown = memory(&nodes) - before;
    assert!(grown < MEMORY, "memory grew by {grown} bytes");
    nodes.await_ready().await;
    let log = nodes.log(0);
    assert!(!log.contains("panicked"), "{log}");
    nodes.stop();
    nodes.verify_logs();
}
