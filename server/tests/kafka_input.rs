//! What a Kafka broker answers to requests it cannot serve, and what becomes of those who send
//! what is no request: one code, or the end of the connection, and never more memory than they
//! have filled themselves.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod kafka_conn;
mod nodes;

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_conn::{KafkaConn, framed, text};
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, BrokerId, FetchRequest, FetchResponse,
    ListOffsetsRequest, ListOffsetsResponse, MetadataRequest, OffsetForLeaderEpochRequest,
    OffsetForLeaderEpochResponse, ProduceRequest, ProduceResponse, TopicName,
};
use nodes::Nodes;
use rustix::process::{Resource, getrlimit};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use trilog_client::proto::CreateTopicRequest;
use trilog_model::batch::{BatchBuilder, Compression};
use trilog_wire::v1::topics_client::TopicsClient;

const TOPIC: &str = "orders";
const PATIENCE: Duration = Duration::from_secs(30);
/// Connections that say nothing after their first request.
const IDLE: u32 = 5_000;
/// What each may cost the node, in bytes.
const IDLE_COST: f64 = 32e3;

fn batch(value: &[u8]) -> Bytes {
    let mut batch = BatchBuilder::new(Compression::None);
    batch.push(1, None, Some(value), &[]).unwrap();
    batch.build().unwrap()
}

/// The code that a produce of these bytes is answered with.
async fn produce(conn: &mut KafkaConn, topic: &str, index: i32, acks: i16, batch: Bytes) -> i16 {
    let partition = PartitionProduceData::default()
        .with_index(index)
        .with_records(Some(batch));
    let topic = TopicProduceData::default()
        .with_name(TopicName(text(topic)))
        .with_partition_data(vec![partition]);
    let request = ProduceRequest::default()
        .with_acks(acks)
        .with_timeout_ms(10_000)
        .with_topic_data(vec![topic]);
    let answer: ProduceResponse = conn.ask(ApiKey::Produce, 7, &request).await;
    answer.responses[0].partition_responses[0].error_code
}

fn fetch_request(topic: &str, index: i32, offset: i64, epoch: i32) -> FetchRequest {
    let partition = FetchPartition::default()
        .with_partition(index)
        .with_fetch_offset(offset)
        .with_current_leader_epoch(epoch)
        .with_partition_max_bytes(1 << 20);
    let topic = FetchTopic::default()
        .with_topic(TopicName(text(topic)))
        .with_partitions(vec![partition]);
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(100)
        .with_min_bytes(1)
        .with_max_bytes(1 << 20)
        .with_topics(vec![topic])
}

async fn fetch(conn: &mut KafkaConn, topic: &str, index: i32, offset: i64, epoch: i32) -> i16 {
    let request = fetch_request(topic, index, offset, epoch);
    let answer: FetchResponse = conn.ask(ApiKey::Fetch, 11, &request).await;
    assert_eq!(answer.error_code, 0);
    answer.responses[0].partitions[0].error_code
}

async fn list_offsets(conn: &mut KafkaConn, topic: &str, timestamp: i64, epoch: i32) -> i16 {
    let partition = ListOffsetsPartition::default()
        .with_timestamp(timestamp)
        .with_current_leader_epoch(epoch);
    let topic = ListOffsetsTopic::default()
        .with_name(TopicName(text(topic)))
        .with_partitions(vec![partition]);
    let request = ListOffsetsRequest::default().with_topics(vec![topic]);
    let answer: ListOffsetsResponse = conn.ask(ApiKey::ListOffsets, 5, &request).await;
    answer.topics[0].partitions[0].error_code
}

async fn epoch_end(conn: &mut KafkaConn, topic: &str, epoch: i32) -> i16 {
    let partition = OffsetForLeaderPartition::default()
        .with_current_leader_epoch(epoch)
        .with_leader_epoch(1);
    let topic = OffsetForLeaderTopic::default()
        .with_topic(TopicName(text(topic)))
        .with_partitions(vec![partition]);
    let request = OffsetForLeaderEpochRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_topics(vec![topic]);
    let key = ApiKey::OffsetForLeaderEpoch;
    let answer: OffsetForLeaderEpochResponse = conn.ask(key, 4, &request).await;
    answer.topics[0].partitions[0].error_code
}

/// A good produce is taken, and read: the node serves.
async fn serves(conn: &mut KafkaConn) {
    assert_eq!(produce(conn, TOPIC, 0, -1, batch(b"good")).await, 0);
    assert_eq!(fetch(conn, TOPIC, 0, 0, -1).await, 0);
}

async fn start(settings: &str) -> Nodes {
    let nodes = Nodes::start_with(1, settings).await;
    nodes.run(&["topic", "create", TOPIC, "--partitions", "2"]);
    nodes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_served_is_answered_as_a_broker_answers_it() {
    let mut nodes = start("").await;
    let mut conn = KafkaConn::open(nodes.kafka_port(0)).await;
    serves(&mut conn).await;

    refuse_batches(&mut conn).await;
    refuse_reads(&mut conn).await;
    tell_versions(&mut conn).await;
    serves(&mut conn).await;
    nodes.stop();
    nodes.verify_logs();
}

async fn refuse_batches(conn: &mut KafkaConn) {
    let good = batch(b"good");
    let changed = |at: usize, to: u8| {
        let mut batch = good.to_vec();
        batch[at] = to;
        Bytes::from(batch)
    };
    let batches = [
        ("no-such", 0, -1, good.clone(), 3),
        (TOPIC, 99, -1, good.clone(), 3),
        (TOPIC, -1, -1, good.clone(), 3),
        (TOPIC, 0, 5, good.clone(), 21),
        (TOPIC, 0, -1, batch(&vec![7; 2 << 20]), 10),
        // The magic byte, one of the checksum, the length, and one byte of a batch.
        (TOPIC, 0, -1, changed(16, 1), 87),
        (TOPIC, 0, -1, changed(17, !good[17]), 2),
        (TOPIC, 0, -1, changed(11, good[11] + 1), 2),
        (TOPIC, 0, 1, good.slice(..1), 2),
        (TOPIC, 0, -1, [&good[..], &good[..]].concat().into(), 87),
    ];
    for (nth, (topic, index, acks, batch, code)) in batches.into_iter().enumerate() {
        let answered = produce(conn, topic, index, acks, batch).await;
        assert_eq!(answered, code, "batch {nth}");
    }
}

async fn refuse_reads(conn: &mut KafkaConn) {
    for (topic, index, offset, epoch, code) in [
        ("no-such", 0, 0, -1, 3),
        (TOPIC, 99, 0, -1, 3),
        (TOPIC, 0, 1_000, -1, 1),
        (TOPIC, 0, -1, -1, 1),
        (TOPIC, 0, 0, 0, 74),
        (TOPIC, 0, 0, 9_999, 75),
    ] {
        let answered = fetch(conn, topic, index, offset, epoch).await;
        assert_eq!(answered, code, "{topic} {index} {offset} {epoch}");
    }
    for (session, epoch, code) in [(0, 7, 70), (77, 1, 70), (77, -2, 70)] {
        let request = fetch_request(TOPIC, 0, 0, -1)
            .with_session_id(session)
            .with_session_epoch(epoch);
        let answer: FetchResponse = conn.ask(ApiKey::Fetch, 11, &request).await;
        assert_eq!((answer.error_code, answer.responses.len()), (code, 0));
    }
    for (topic, timestamp, epoch, code) in [
        ("no-such", -1, -1, 3),
        (TOPIC, -1, 0, 74),
        (TOPIC, -1, 9_999, 75),
        (TOPIC, -9, -1, 35),
        (TOPIC, -2, -1, 0),
    ] {
        let answered = list_offsets(conn, topic, timestamp, epoch).await;
        assert_eq!(answered, code, "{topic} {timestamp} {epoch}");
    }
    for (topic, epoch, code) in [("no-such", -1, 3), (TOPIC, 0, 74), (TOPIC, 9_999, 75)] {
        assert_eq!(epoch_end(conn, topic, epoch).await, code);
    }
}

/// A version of ApiVersions that is not there is told which are, in the oldest form.
async fn tell_versions(conn: &mut KafkaConn) {
    let versions = ApiVersionsRequest::default()
        .with_client_software_name(text("test"))
        .with_client_software_version(text("1"));
    let mut newest = framed(ApiKey::ApiVersions, 4, 5, &versions).to_vec();
    newest[6..8].copy_from_slice(&99_i16.to_be_bytes());
    conn.say(&newest).await;
    let answer: ApiVersionsResponse = conn.receive(ApiKey::ApiVersions, 0).await;
    assert_eq!(answer.error_code, 35);
    let ranges = answer.api_keys.iter();
    let ranges: Vec<_> = ranges
        .map(|api| (api.api_key, api.min_version, api.max_version))
        .collect();
    assert_eq!(ranges, [(18, 0, 4)]);
}

/// A request of this key and version with nothing in it.
fn bare(key: i16, version: i16) -> Vec<u8> {
    let mut out = BytesMut::new();
    out.put_u32(10);
    out.put_i16(key);
    out.put_i16(version);
    out.put_i32(1);
    out.put_i16(-1);
    out.to_vec()
}

fn metric(nodes: &Nodes, name: &str) -> f64 {
    let metrics = nodes.page(0, "/metrics");
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix(name)?.rsplit(' ').next());
    value.unwrap().parse().unwrap()
}

fn resident(nodes: &Nodes) -> f64 {
    metric(nodes, "process_resident_memory_bytes")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_request_ends_its_connection_and_nothing_else() {
    let mut nodes = start("").await;
    let port = nodes.kafka_port(0);
    let mut conn = KafkaConn::open(port).await;
    serves(&mut conn).await;
    let metadata = framed(ApiKey::Metadata, 4, 1, &MetadataRequest::default());
    let many = |count: u32| {
        let mut request = metadata[..4].to_vec();
        let header = metadata.len() - 5;
        request.extend(&metadata[4..header]);
        request.extend(count.to_be_bytes());
        request.push(1);
        request
    };
    let ended: [(&str, Vec<u8>); 16] = [
        ("a negative length", (-1_i32).to_be_bytes().to_vec()),
        ("no length", 0_i32.to_be_bytes().to_vec()),
        ("a length too short", 7_i32.to_be_bytes().to_vec()),
        ("the largest length", i32::MAX.to_be_bytes().to_vec()),
        (
            "a length too large",
            ((32_i32 << 20) + 1).to_be_bytes().to_vec(),
        ),
        ("an old produce", bare(0, 2)),
        ("a produce to come", bare(0, 99)),
        ("an old fetch", bare(1, 3)),
        ("a negative version", bare(3, -1)),
        ("a request among brokers", bare(4, 0)),
        ("an unknown key", bare(999, 0)),
        ("a negative key", bare(-1, 0)),
        ("an empty body", bare(11, 5)),
        ("more topics than bytes", many(u32::MAX / 2)),
        ("topics that are not there", many(2)),
        (
            "another protocol",
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec(),
        ),
    ];
    for (why, bytes) in &ended {
        let mut conn = KafkaConn::open(port).await;
        conn.say(bytes).await;
        conn.await_end(why).await;
    }
    // Cut off at any place.
    for len in 1..metadata.len() {
        let mut conn = KafkaConn::open(port).await;
        conn.say(&metadata[..len]).await;
        conn.finish().await;
        conn.await_end("cut off").await;
    }
    // A good request before the bad one is answered.
    let mut last = KafkaConn::open(port).await;
    serves(&mut last).await;
    last.say(&bare(999, 0)).await;
    last.await_end("after a good one").await;

    // Many that state a large request and send none of it get next to nothing.
    let before = resident(&nodes);
    let mut strangers = Vec::new();
    for _ in 0..500 {
        let mut stranger = KafkaConn::open(port).await;
        stranger.say(&(32_i32 << 20).to_be_bytes()).await;
        strangers.push(stranger);
    }
    serves(&mut conn).await;
    let each = (resident(&nodes) - before) / 500.0;
    assert!(each < 64e3, "each takes {each} bytes");
    drop(strangers);
    serves(&mut conn).await;
    assert!(!nodes.log(0).contains("panicked"));
    nodes.stop();
    nodes.verify_logs();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kafka_clients_and_native_ones_share_the_memory_for_requests() {
    let mut nodes = start("[limits]\nrequest_memory = \"2MiB\"\n").await;
    let mut conn = KafkaConn::open(nodes.kafka_port(0)).await;
    serves(&mut conn).await;
    // It has been heard, so it gets all that it says it needs, which is all there is.
    conn.say(&(3_i32 << 20).to_be_bytes()).await;
    let deadline = Instant::now() + PATIENCE;
    while metric(&nodes, "trilog_request_memory_bytes") < 2e6 {
        assert!(Instant::now() < deadline, "it claims nothing");
        sleep(Duration::from_millis(50)).await;
    }
    let mut other = KafkaConn::open(nodes.kafka_port(0)).await;
    other
        .send(ApiKey::Metadata, 4, &MetadataRequest::default())
        .await;
    let address = format!("http://{}", nodes.address(0));
    let channel = Channel::from_shared(address).unwrap().connect().await;
    let mut topics = TopicsClient::new(channel.unwrap());
    let create = CreateTopicRequest {
        name: "waits".to_owned(),
        partitions: 1,
        ..CreateTopicRequest::default()
    };
    let asked = timeout(Duration::from_millis(300), topics.create(create.clone())).await;
    assert!(asked.is_err(), "{asked:?}");
    assert!(other.is_silent(Duration::from_millis(100)).await);
    // It goes, and everybody is served.
    drop(conn);
    serves_again(&mut other).await;
    topics.create(create).await.unwrap();
    nodes.stop();
}

/// The request that had to wait is answered, and others are.
async fn serves_again(conn: &mut KafkaConn) {
    let _: kafka_protocol::messages::MetadataResponse = conn.receive(ApiKey::Metadata, 4).await;
    serves(conn).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_connections_cost_little_and_break_nothing() {
    // The test's own, and the node's with its files.
    let allowed = getrlimit(Resource::Nofile).current;
    let needed = u64::from(IDLE) + 1_000;
    if allowed.is_some_and(|allowed| allowed < needed) {
        eprintln!("SKIPPED: {IDLE} connections need {needed} open files, {allowed:?} are allowed");
        return;
    }
    let mut nodes = start("").await;
    let port = nodes.kafka_port(0);
    let mut busy = KafkaConn::open(port).await;
    serves(&mut busy).await;
    let before = resident(&nodes);
    let mut idle = Vec::new();
    for _ in 0..IDLE {
        let mut conn = KafkaConn::open(port).await;
        let versions = ApiVersionsRequest::default();
        let answer: ApiVersionsResponse = conn.ask(ApiKey::ApiVersions, 0, &versions).await;
        assert_eq!(answer.error_code, 0);
        idle.push(conn);
    }
    serves(&mut busy).await;
    let each = (resident(&nodes) - before) / f64::from(IDLE);
    eprintln!("each of {IDLE} idle connections takes {each:.0} bytes");
    assert!(each < IDLE_COST, "each takes {each:.0} bytes");
    // They are served still.
    for conn in idle.iter_mut().step_by(500) {
        serves(conn).await;
    }
    drop(idle);
    serves(&mut busy).await;
    nodes.stop();
    nodes.verify_logs();
}
