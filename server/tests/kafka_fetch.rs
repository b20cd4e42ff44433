//! Fetches as clients of every version make them: sessions, in which only what is new is told, and
//! reads from followers. And what a node says of its disk.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod kafka_conn;
mod nodes;

use std::time::Duration;

use bytes::Bytes;
use kafka_conn::{KafkaConn, text};
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::describe_log_dirs_request::DescribableLogDirTopic;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic, ForgottenTopic};
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_response::MetadataResponseTopic;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiKey, BrokerId, DeleteRecordsRequest, DeleteRecordsResponse, DescribeLogDirsRequest,
    DescribeLogDirsResponse, FetchRequest, FetchResponse, FindCoordinatorRequest,
    FindCoordinatorResponse, ListOffsetsRequest, ListOffsetsResponse, MetadataRequest,
    MetadataResponse, ProduceRequest, ProduceResponse, TopicName,
};
use nodes::Nodes;
use tokio::time::Instant;
use trilog_model::batch::{BatchBuilder, Compression};
use trilog_wire::kafka::Uuid;

const TOPIC: &str = "orders";
const PARTITIONS: i32 = 4;
const UNKNOWN_SESSION: i16 = 70;
const WRONG_EPOCH: i16 = 71;
/// Long enough for whatever is on its way, and not so long that a test takes long that sees
/// nothing come.
const SHORT_WAIT: i32 = 200;
const LONG_WAIT: i32 = 30_000;

async fn start(settings: &str) -> Nodes {
    let mut nodes = Nodes::start_with(1, settings).await;
    let partitions = PARTITIONS.to_string();
    nodes.run(&["topic", "create", TOPIC, "--partitions", &partitions]);
    nodes.await_ready().await;
    nodes
}

fn batch(value: &[u8]) -> Bytes {
    let mut batch = BatchBuilder::new(Compression::None);
    batch.push(1, None, Some(value), &[]).unwrap();
    batch.build().unwrap()
}

/// Appends a record; its offset.
async fn produce(conn: &mut KafkaConn, topic: &str, index: i32, value: &[u8]) -> i64 {
    let partition = PartitionProduceData::default()
        .with_index(index)
        .with_records(Some(batch(value)));
    let topic = TopicProduceData::default()
        .with_name(TopicName(text(topic)))
        .with_partition_data(vec![partition]);
    let request = ProduceRequest::default()
        .with_acks(-1)
        .with_timeout_ms(10_000)
        .with_topic_data(vec![topic]);
    let answer: ProduceResponse = conn.ask(ApiKey::Produce, 7, &request).await;
    let answered = &answer.responses[0].partition_responses[0];
    assert_eq!(answered.error_code, 0);
    answered.base_offset
}

/// A request that reads partitions of one topic from these offsets.
fn request(topic: &str, from: &[(i32, i64)], max_wait: i32) -> FetchRequest {
    let partitions = from.iter().map(|(index, offset)| {
        FetchPartition::default()
            .with_partition(*index)
            .with_fetch_offset(*offset)
            .with_current_leader_epoch(-1)
            .with_partition_max_bytes(1 << 20)
    });
    let topic = FetchTopic::default()
        .with_topic(TopicName(text(topic)))
        .with_partitions(partitions.collect());
    let topics = if from.is_empty() { vec![] } else { vec![topic] };
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(max_wait)
        .with_min_bytes(1)
        .with_max_bytes(1 << 20)
        .with_topics(topics)
}

/// A consumer that keeps a session.
struct Consumer {
    conn: KafkaConn,
    version: i16,
    topic_id: Uuid,
    id: i32,
    epoch: i32,
}

/// What was told: partition, code, high watermark, log start, records' bytes.
type Told = (i32, i16, i64, i64, usize);

impl Consumer {
    async fn open(port: u16, version: i16) -> Self {
        let mut conn = KafkaConn::open(port).await;
        Self {
            topic_id: topic_id(&mut conn).await,
            conn,
            version,
            id: 0,
            epoch: 0,
        }
    }

    async fn fetch(&mut self, request: FetchRequest) -> Vec<Told> {
        let answer = self.ask(request).await;
        assert_eq!(answer.error_code, 0);
        self.id = answer.session_id;
        self.epoch += 1;
        told(&answer)
    }

    async fn ask(&mut self, request: FetchRequest) -> FetchResponse {
        let mut request = request
            .with_session_id(self.id)
            .with_session_epoch(self.epoch);
        by_version(&mut request, self.version, self.topic_id);
        self.conn.ask(ApiKey::Fetch, self.version, &request).await
    }
}

/// Names topics as the version does.
fn by_version(request: &mut FetchRequest, version: i16, id: Uuid) {
    if version < 13 {
        return;
    }
    for topic in &mut request.topics {
        (topic.topic, topic.topic_id) = (TopicName::default(), id);
    }
    for topic in &mut request.forgotten_topics_data {
        (topic.topic, topic.topic_id) = (TopicName::default(), id);
    }
}

/// The id of the topic.
async fn topic_id(conn: &mut KafkaConn) -> Uuid {
    let request = MetadataRequest::default().with_topics(None);
    let answer: MetadataResponse = conn.ask(ApiKey::Metadata, 13, &request).await;
    assert_eq!(answer.error_code, 0);
    let named = |topic: &&MetadataResponseTopic| **topic.name.as_ref().unwrap() == *TOPIC;
    answer.topics.iter().find(named).unwrap().topic_id
}

fn told(answer: &FetchResponse) -> Vec<Told> {
    let partitions = answer.responses.iter().flat_map(|topic| &topic.partitions);
    let told = partitions.map(|one| {
        let records = one.records.as_ref().map_or(0, Bytes::len);
        let (end, start) = (one.high_watermark, one.log_start_offset);
        (one.partition_index, one.error_code, end, start, records)
    });
    told.collect()
}

fn all_from_zero() -> Vec<(i32, i64)> {
    (0..PARTITIONS).map(|index| (index, 0)).collect()
}

fn forget(indexes: &[i32]) -> Vec<ForgottenTopic> {
    let gone = ForgottenTopic::default()
        .with_topic(TopicName(text(TOPIC)))
        .with_partitions(indexes.to_vec());
    vec![gone]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_told_only_what_is_new() {
    let mut nodes = start("").await;
    let port = nodes.kafka_port(0);
    let mut producer = KafkaConn::open(port).await;
    let mut start = 0;
    for version in 7..=17 {
        start = read_news(&mut producer, port, version, start).await;
    }
    nodes.stop();
    nodes.verify_logs();
}

/// One consumer's history, from wherever the one before has left the topic; where partition 2
/// starts then.
async fn read_news(producer: &mut KafkaConn, port: u16, version: i16, start: i64) -> i64 {
    let mut consumer = Consumer::open(port, version).await;
    let nothing = || request(TOPIC, &[], SHORT_WAIT);
    let starts = [(0, 0), (1, 0), (2, start), (3, 0)];
    let first = consumer.fetch(request(TOPIC, &starts, 0)).await;
    let order: Vec<i32> = first.iter().map(|told| told.0).collect();
    assert_eq!(order, [0, 1, 2, 3], "{version}");
    assert!(consumer.id > 0);
    // Where it is at the end of all of them, nothing is told.
    let ends: Vec<_> = first.iter().map(|told| (told.0, told.2)).collect();
    let caught_up = consumer.fetch(request(TOPIC, &ends, SHORT_WAIT)).await;
    assert_eq!(caught_up, [], "{version}");
    let asked = Instant::now();
    assert_eq!(consumer.fetch(nothing()).await, []);
    assert!(asked.elapsed() >= Duration::from_millis(100), "it waits");
    // Records of one, though the request does not name it.
    let offset = produce(producer, TOPIC, 2, b"new").await;
    let size = batch(b"new").len();
    let news = consumer.fetch(request(TOPIC, &[], LONG_WAIT)).await;
    let start = first[2].3;
    assert_eq!(news, [(2, 0, offset + 1, start, size)], "{version}");
    // It says nothing of it, so it is told again.
    assert_eq!(consumer.fetch(nothing()).await, news);
    let from = [(2, offset + 1)];
    let read = consumer.fetch(request(TOPIC, &from, SHORT_WAIT)).await;
    assert_eq!(read, [], "{version}");
    // A new log start is told without records.
    delete_before(producer, 2, offset + 1).await;
    let news = consumer.fetch(nothing()).await;
    assert_eq!(news, [(2, 0, offset + 1, offset + 1, 0)], "{version}");
    // An error comes each time, and its end is told.
    let beyond = request(TOPIC, &[(1, 1 << 40)], SHORT_WAIT);
    let failed = consumer.fetch(beyond).await;
    assert_eq!(failed, [(1, 1, -1, -1, 0)], "{version}");
    assert_eq!(consumer.fetch(nothing()).await, failed);
    let (_, _, end, start, _) = first[1];
    let back = request(TOPIC, &[(1, end)], SHORT_WAIT);
    assert_eq!(consumer.fetch(back).await, [(1, 0, end, start, 0)]);
    // What is forgotten is not read any more; without anything the session is over.
    let less = nothing().with_forgotten_topics_data(forget(&[2, 7]));
    assert_eq!(consumer.fetch(less).await, []);
    produce(producer, TOPIC, 2, b"unread").await;
    assert_eq!(consumer.fetch(nothing()).await, []);
    let none = request(TOPIC, &[], LONG_WAIT).with_forgotten_topics_data(forget(&[0, 1, 3]));
    assert_eq!(consumer.fetch(none).await, []);
    assert_eq!(consumer.id, 0);
    offset + 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_version_finds_offsets_and_coordinators() {
    let mut nodes = start("").await;
    let mut conn = KafkaConn::open(nodes.kafka_port(0)).await;
    for value in [b"one", b"two", b"six"] {
        produce(&mut conn, TOPIC, 0, value).await;
    }
    delete_before(&mut conn, 0, 1).await;
    for version in 1..=10 {
        // The end, the start, where what is here starts, and the last that is elsewhere.
        for (timestamp, since, expected) in [(-1, 1, 3), (-2, 1, 1), (-4, 8, 1), (-5, 9, -1)] {
            let partition = ListOffsetsPartition::default().with_timestamp(timestamp);
            let topic = ListOffsetsTopic::default()
                .with_name(TopicName(text(TOPIC)))
                .with_partitions(vec![partition]);
            let request = ListOffsetsRequest::default().with_topics(vec![topic]);
            let answer: ListOffsetsResponse =
                conn.ask(ApiKey::ListOffsets, version, &request).await;
            let found = &answer.topics[0].partitions[0];
            let says = (found.error_code, found.offset, found.timestamp);
            let expected = if version < since {
                (35, -1, -1)
            } else {
                (0, expected, -1)
            };
            assert_eq!(says, expected, "{version} {timestamp}");
        }
    }
    let deadline = Instant::now() + Duration::from_secs(30);
    for version in 4..=6 {
        let ask = |kind| {
            FindCoordinatorRequest::default()
                .with_key_type(kind)
                .with_coordinator_keys(vec![text("group")])
        };
        let key = ApiKey::FindCoordinator;
        loop {
            let found: FindCoordinatorResponse = conn.ask(key, version, &ask(0)).await;
            let found = &found.coordinators[0];
            if found.error_code == 0 {
                assert_eq!(found.node_id.0, 1);
                break;
            }
            assert!(Instant::now() < deadline, "{found:?}");
        }
        // Of what there is none here.
        let none: FindCoordinatorResponse = conn.ask(key, version, &ask(2)).await;
        assert_eq!(none.coordinators[0].error_code, 42, "{version}");
    }
    nodes.stop();
}

async fn delete_before(conn: &mut KafkaConn, index: i32, offset: i64) {
    let partition = DeleteRecordsPartition::default()
        .with_partition_index(index)
        .with_offset(offset);
    let topic = DeleteRecordsTopic::default()
        .with_name(TopicName(text(TOPIC)))
        .with_partitions(vec![partition]);
    let request = DeleteRecordsRequest::default()
        .with_timeout_ms(10_000)
        .with_topics(vec![topic]);
    let answer: DeleteRecordsResponse = conn.ask(ApiKey::DeleteRecords, 2, &request).await;
    assert_eq!(answer.topics[0].partitions[0].error_code, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_a_session_take_turns_and_who_is_wrong_is_told_so() {
    let mut nodes = start("").await;
    let port = nodes.kafka_port(0);
    let mut producer = KafkaConn::open(port).await;
    let mut consumer = Consumer::open(port, 12).await;
    let first = consumer.fetch(request(TOPIC, &all_from_zero(), 0)).await;
    assert_eq!(first.len(), 4);
    // Two at once: the second waits for the first, and only for its own news then.
    let (id, epoch) = (consumer.id, consumer.epoch);
    for (epoch, from) in [(epoch, vec![]), (epoch + 1, vec![(0, 1)])] {
        let next = request(TOPIC, &from, LONG_WAIT)
            .with_session_id(id)
            .with_session_epoch(epoch);
        consumer.conn.send(ApiKey::Fetch, 12, &next).await;
    }
    assert!(consumer.conn.is_silent(Duration::from_millis(100)).await);
    let one = produce(&mut producer, TOPIC, 0, b"one").await;
    let answer: FetchResponse = consumer.conn.receive(ApiKey::Fetch, 12).await;
    assert_eq!((answer.error_code, answer.session_id), (0, id));
    assert_eq!(told(&answer).len(), 1);
    assert!(consumer.conn.is_silent(Duration::from_millis(100)).await);
    produce(&mut producer, TOPIC, 0, b"two").await;
    let answer: FetchResponse = consumer.conn.receive(ApiKey::Fetch, 12).await;
    assert_eq!((told(&answer)[0].0, told(&answer)[0].2), (0, one + 2));
    consumer.epoch += 2;
    // What has records is read last the next time: each has its turn when only one batch fits.
    let from = [(0, 0), (3, 0)];
    produce(&mut producer, TOPIC, 3, b"three").await;
    for index in [3, 0, 3, 0] {
        let one = request(TOPIC, &from, LONG_WAIT).with_max_bytes(1);
        let told = consumer.fetch(one).await;
        let given: Vec<_> = told.iter().filter(|told| told.4 > 0).collect();
        assert_eq!((given.len(), given[0].0), (1, index), "{told:?}");
    }
    refuse_sessions(&mut consumer, port).await;
    nodes.stop();
    nodes.verify_logs();
}

async fn refuse_sessions(consumer: &mut Consumer, port: u16) {
    let whole = || request(TOPIC, &all_from_zero(), 0);
    let (id, due) = (consumer.id, consumer.epoch);
    let mut other = Consumer::open(port, 12).await;
    for (session, epoch, code) in [
        (id, due + 1, WRONG_EPOCH),
        (id, due - 1, WRONG_EPOCH),
        (id, i32::MAX, WRONG_EPOCH),
        (id, i32::MIN, WRONG_EPOCH),
        (id ^ 1, due, UNKNOWN_SESSION),
        (0, due, UNKNOWN_SESSION),
        (-id, due, UNKNOWN_SESSION),
    ] {
        (consumer.id, consumer.epoch) = (session, epoch);
        let answer = consumer.ask(whole()).await;
        let says = (answer.error_code, answer.session_id, answer.responses.len());
        assert_eq!(says, (code, 0, 0), "{session} {epoch}");
    }
    // It began with names.
    (consumer.id, consumer.epoch, consumer.version) = (id, due, 13);
    assert_eq!(consumer.ask(whole()).await.error_code, 106);
    consumer.version = 12;
    // Another connection can neither use nor end it.
    (other.id, other.epoch) = (id, due);
    assert_eq!(other.ask(whole()).await.error_code, UNKNOWN_SESSION);
    other.epoch = -1;
    assert_eq!(told(&other.ask(whole()).await).len(), 4);
    (consumer.id, consumer.epoch) = (id, due);
    let answer = consumer.ask(whole()).await;
    assert_eq!((answer.error_code, answer.session_id), (0, id));
    // One that wants none ends what it had; so does one that wants another.
    consumer.epoch = -1;
    let answer = consumer.ask(whole()).await;
    assert_eq!((answer.error_code, answer.session_id), (0, 0));
    consumer.epoch = due + 1;
    assert_eq!(consumer.ask(whole()).await.error_code, UNKNOWN_SESSION);
    (consumer.id, consumer.epoch) = (0, 0);
    let second = consumer.ask(whole()).await.session_id;
    consumer.id = second;
    let third = consumer.ask(whole()).await.session_id;
    assert!(second > 0 && third > 0 && second != third);
    consumer.epoch = 1;
    assert_eq!(consumer.ask(whole()).await.error_code, UNKNOWN_SESSION);
    consumer.id = third;
    assert_eq!(consumer.ask(whole()).await.error_code, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_are_few_and_end_with_their_connections() {
    let mut nodes = start("[kafka]\nfetch_sessions = 2").await;
    let port = nodes.kafka_port(0);
    let whole = || request(TOPIC, &all_from_zero(), 0);
    let mut first = Consumer::open(port, 11).await;
    let mut second = Consumer::open(port, 11).await;
    let mut third = Consumer::open(port, 11).await;
    for consumer in [&mut first, &mut second, &mut third] {
        assert_eq!(consumer.fetch(whole()).await.len(), 4);
    }
    assert!(first.id > 0 && second.id > 0);
    assert_eq!(third.id, 0, "there is no room for a third");
    drop(first);
    // Until the node has seen that the first one went.
    let deadline = Instant::now() + Duration::from_secs(30);
    while third.id == 0 {
        assert!(Instant::now() < deadline, "the place is not given on");
        third.epoch = 0;
        assert_eq!(third.fetch(whole()).await.len(), 4);
    }
    let nothing = || request(TOPIC, &[], 0);
    assert_eq!(third.fetch(nothing()).await, []);
    assert_eq!(second.fetch(nothing()).await, []);
    nodes.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_no_room_to_wait_for_its_turn_begins_anew() {
    let settings = "[limits]\nbatch_size = \"64KiB\"\n\
                    [kafka]\nrequest_size = \"64KiB\"\nmemory = \"1MiB\"";
    let mut nodes = start(settings).await;
    let port = nodes.kafka_port(0);
    let mut producer = KafkaConn::open(port).await;
    let mut consumer = Consumer::open(port, 12).await;
    consumer.fetch(request(TOPIC, &all_from_zero(), 0)).await;
    // An eighth of the memory is for fetches that wait, and one takes most of it.
    let many: Vec<_> = (100..220).map(|index| (index, 0)).collect();
    for epoch in 1..=3 {
        let next = request(TOPIC, &many, LONG_WAIT)
            .with_session_id(consumer.id)
            .with_session_epoch(epoch);
        consumer.conn.send(ApiKey::Fetch, 12, &next).await;
    }
    // Those behind it are not answered before it.
    assert!(consumer.conn.is_silent(Duration::from_millis(100)).await);
    produce(&mut producer, TOPIC, 0, b"one").await;
    let answer: FetchResponse = consumer.conn.receive(ApiKey::Fetch, 12).await;
    assert_eq!((answer.error_code, answer.session_id), (0, consumer.id));
    assert_eq!(told(&answer).iter().filter(|told| told.4 > 0).count(), 1);
    for _ in 0..2 {
        let answer: FetchResponse = consumer.conn.receive(ApiKey::Fetch, 12).await;
        let says = (answer.error_code, answer.session_id, answer.responses.len());
        assert_eq!(says, (UNKNOWN_SESSION, 0, 0));
    }
    nodes.stop();
}

/// Requests that no buffer between the two ends has room for the answers of.
const UNREAD: usize = 64;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_is_read_from_only_as_fast_as_its_reader_takes_it() {
    let mut nodes = start("").await;
    let port = nodes.kafka_port(0);
    let mut producer = KafkaConn::open(port).await;
    let mut consumer = Consumer::open(port, 12).await;
    // Each answer says that nothing of this exists, with a long name each time.
    let mut first = request(TOPIC, &[(0, 0)], 0);
    for index in 0..4_000 {
        let name = format!("{}{}", "x".repeat(248), index % 2);
        let none = FetchPartition::default()
            .with_partition(index)
            .with_current_leader_epoch(-1)
            .with_partition_max_bytes(1 << 20);
        let none = FetchTopic::default()
            .with_topic(TopicName(text(&name)))
            .with_partitions(vec![none]);
        first.topics.push(none);
    }
    let told = consumer.fetch(first).await;
    assert_eq!(told.len(), 4_001);
    assert!(consumer.id > 0);
    for epoch in (1..).take(UNREAD) {
        let next = request(TOPIC, &[], 0)
            .with_session_id(consumer.id)
            .with_session_epoch(epoch);
        consumer.conn.send(ApiKey::Fetch, 12, &next).await;
    }
    // Whoever asks on another connection is answered, and what it asks for comes to pass.
    let offset = produce(&mut producer, TOPIC, 0, b"late").await;
    let mut rows = Vec::new();
    for _ in 0..UNREAD {
        let answer: FetchResponse = consumer.conn.receive(ApiKey::Fetch, 12).await;
        rows = self::told(&answer);
        assert!(rows.len() >= 4_000, "{}", rows.len());
    }
    // The last was not made before there was room for it, and so shows what came meanwhile.
    assert!(rows.iter().any(|told| told.1 == 0 && told.2 == offset + 1));
    nodes.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_wants_nothing_at_least_is_answered_at_once() {
    let mut nodes = start("").await;
    let mut consumer = Consumer::open(nodes.kafka_port(0), 12).await;
    consumer.fetch(request(TOPIC, &all_from_zero(), 0)).await;
    let asked = Instant::now();
    let nothing = request(TOPIC, &[], 10 * LONG_WAIT).with_min_bytes(0);
    assert_eq!(consumer.fetch(nothing).await, []);
    assert!(asked.elapsed() < Duration::from_secs(30));
    nodes.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_that_goes_and_comes_back_is_told_in_the_session() {
    let mut nodes = start("").await;
    let port = nodes.kafka_port(0);
    let mut producer = KafkaConn::open(port).await;
    produce(&mut producer, TOPIC, 0, b"old").await;
    let mut consumer = Consumer::open(port, 12).await;
    let first = consumer.fetch(request(TOPIC, &[(0, 1)], 0)).await;
    assert_eq!(first, [(0, 0, 1, 0, 0)]);
    nodes.run(&["topic", "delete", TOPIC]);
    let deadline = Instant::now() + Duration::from_secs(30);
    let mut codes = Vec::new();
    loop {
        assert!(Instant::now() < deadline, "{codes:?}");
        match consumer.fetch(request(TOPIC, &[], SHORT_WAIT)).await[..] {
            [] => {}
            [(0, 3, -1, -1, 0)] => break,
            [(0, code, ..)] => codes.push(code),
            ref other => panic!("{other:?}"),
        }
    }
    nodes.run(&["topic", "create", TOPIC, "--partitions", "1"]);
    let from = request(TOPIC, &[(0, 0)], SHORT_WAIT);
    let mut told = consumer.fetch(from).await;
    while told != [(0, 0, 0, 0, 0)] {
        assert!(Instant::now() < deadline, "{told:?}");
        told = consumer.fetch(request(TOPIC, &[], SHORT_WAIT)).await;
    }
    nodes.stop();
}

/// A request of the version with racks: where it comes from, and the leader epoch it believes in.
fn from_rack(rack: &str, offset: i64, epoch: i32, max_wait: i32) -> FetchRequest {
    let mut request = request(TOPIC, &[(0, offset)], max_wait).with_rack_id(text(rack));
    request.topics[0].partitions[0].current_leader_epoch = epoch;
    request.with_session_epoch(-1)
}

/// The answer of the one partition: told, the node to read from, the records.
async fn ask_one(conn: &mut KafkaConn, request: &FetchRequest) -> (Told, i32, Option<Bytes>) {
    let answer: FetchResponse = conn.ask(ApiKey::Fetch, 11, request).await;
    assert_eq!(answer.error_code, 0);
    let partition = &answer.responses[0].partitions[0];
    let elsewhere = partition.preferred_read_replica.0;
    (told(&answer)[0], elsewhere, partition.records.clone())
}

/// The leader of the partition, and its epoch.
async fn leader(conn: &mut KafkaConn) -> (i32, i32) {
    let answer: MetadataResponse = conn
        .ask(
            ApiKey::Metadata,
            9,
            &MetadataRequest::default().with_topics(None),
        )
        .await;
    let topic = answer.topics.iter().find(|topic| {
        let name = topic.name.as_ref().unwrap();
        **name == *TOPIC
    });
    let partition = &topic.unwrap().partitions[0];
    (partition.leader_id.0, partition.leader_epoch)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_says_where_it_is_reads_from_the_replica_there() {
    let mut nodes = Nodes::start(3).await;
    let create = [
        "topic",
        "create",
        TOPIC,
        "--partitions",
        "1",
        "--replication",
        "3",
    ];
    nodes.run(&create);
    nodes.await_ready().await;
    let port = |nodes: &Nodes, id: i32| nodes.kafka_port(usize::try_from(id - 1).unwrap());
    let mut anyone = KafkaConn::open(nodes.kafka_port(0)).await;
    let (lead, epoch) = leader(&mut anyone).await;
    let near = lead % 3 + 1;
    let mut at_leader = KafkaConn::open(port(&nodes, lead)).await;
    let mut at_follower = KafkaConn::open(port(&nodes, near)).await;
    for value in [b"one", b"two"] {
        produce(&mut at_leader, TOPIC, 0, value).await;
    }
    let rack = format!("rack-{near}");
    // The leader sends its reader on, with nothing else, once it knows that the other holds it.
    let deadline = Instant::now() + Duration::from_secs(30);
    let sent_on = from_rack(&rack, 2, epoch, SHORT_WAIT);
    while ask_one(&mut at_leader, &sent_on).await.1 != near {
        assert!(Instant::now() < deadline, "nobody is sent on");
    }
    tell_leaders(&mut at_follower, (lead, epoch), port(&nodes, lead)).await;
    tell_leaders_of_writers(&mut at_follower, (lead, epoch), port(&nodes, lead)).await;
    let (told, elsewhere, _) = ask_one(&mut at_leader, &from_rack(&rack, 0, epoch, 0)).await;
    assert_eq!((told, elsewhere), ((0, 0, 2, 0, 0), near));
    let own = format!("rack-{lead}");
    let (_, _, all) = ask_one(&mut at_leader, &from_rack(&own, 0, epoch, 0)).await;
    let all = all.unwrap();
    assert_eq!(all.len(), 2 * batch(b"one").len());
    for rack in ["", "rack-9"] {
        let (told, elsewhere, records) =
            ask_one(&mut at_leader, &from_rack(rack, 0, epoch, 0)).await;
        assert_eq!(
            (told.1, elsewhere, records.as_ref()),
            (0, -1, Some(&all)),
            "{rack}"
        );
    }
    read_at_a_follower(&mut at_follower, &mut at_leader, (&rack, epoch), &all).await;
    nodes.stop();
    nodes.verify_logs();
}

/// Who asks a follower that it was not sent to is told where the leader is, from version 16 on; who
/// names a topic that is not there, that it is not.
async fn tell_leaders(follower: &mut KafkaConn, (lead, epoch): (i32, i32), port: u16) {
    let id = topic_id(follower).await;
    for version in 4..=17 {
        let mut asked = request(TOPIC, &[(0, 0)], 0).with_session_epoch(-1);
        by_version(&mut asked, version, id);
        let answer: FetchResponse = follower.ask(ApiKey::Fetch, version, &asked).await;
        let partition = &answer.responses[0].partitions[0];
        assert_eq!(partition.error_code, 6, "{version}");
        let leader = &partition.current_leader;
        let ends = &answer.node_endpoints;
        if version < 16 {
            assert_eq!((leader.leader_id.0, ends.len()), (-1, 0), "{version}");
        } else {
            assert_eq!((leader.leader_id.0, leader.leader_epoch), (lead, epoch));
            assert_eq!((ends.len(), ends[0].node_id.0), (1, lead));
            assert_eq!(
                (&*ends[0].host, ends[0].port),
                ("127.0.0.1", i32::from(port))
            );
        }
        if version >= 13 {
            for id in [Uuid::nil(), Uuid::from_u128(7)] {
                by_version(&mut asked, version, id);
                let answer: FetchResponse = follower.ask(ApiKey::Fetch, version, &asked).await;
                let topic = &answer.responses[0];
                assert_eq!((topic.topic_id, topic.partitions[0].error_code), (id, 100));
            }
        }
    }
}

/// As [`tell_leaders`], of whoever would write at a follower, from version 10 on.
async fn tell_leaders_of_writers(follower: &mut KafkaConn, (lead, epoch): (i32, i32), port: u16) {
    for version in 3..=11 {
        let partition = PartitionProduceData::default().with_records(Some(batch(b"astray")));
        let topic = TopicProduceData::default()
            .with_name(TopicName(text(TOPIC)))
            .with_partition_data(vec![partition]);
        let asked = ProduceRequest::default()
            .with_acks(-1)
            .with_timeout_ms(10_000)
            .with_topic_data(vec![topic]);
        let answer: ProduceResponse = follower.ask(ApiKey::Produce, version, &asked).await;
        let partition = &answer.responses[0].partition_responses[0];
        assert_eq!(partition.error_code, 6, "{version}");
        let leader = &partition.current_leader;
        let ends = &answer.node_endpoints;
        if version < 10 {
            assert_eq!((leader.leader_id.0, ends.len()), (-1, 0), "{version}");
        } else {
            assert_eq!((leader.leader_id.0, leader.leader_epoch), (lead, epoch));
            assert_eq!((ends.len(), ends[0].node_id.0), (1, lead));
            assert_eq!(
                (&*ends[0].host, ends[0].port),
                ("127.0.0.1", i32::from(port))
            );
        }
    }
}

async fn read_at_a_follower(
    follower: &mut KafkaConn,
    leader: &mut KafkaConn,
    (rack, epoch): (&str, i32),
    all: &Bytes,
) {
    // It learns with a heartbeat at the latest what is committed, and never says more.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let (told, elsewhere, records) = ask_one(follower, &from_rack(rack, 0, epoch, 0)).await;
        assert_eq!((told.1, elsewhere), (0, -1));
        if told.2 == 2 {
            assert_eq!(records.as_ref(), Some(all));
            break;
        }
        assert!(Instant::now() < deadline, "{told:?}");
    }
    for (rack, offset, epoch, code) in [
        ("", 0, epoch, 6),
        ("rack-9", 0, epoch, 0),
        (rack, 0, -1, 0),
        (rack, 0, epoch - 1, 74),
        (rack, 0, epoch + 1, 75),
        (rack, 3, epoch, 78),
        (rack, 1 << 40, epoch, 78),
        (rack, -1, epoch, 1),
    ] {
        let (told, ..) = ask_one(follower, &from_rack(rack, offset, epoch, 0)).await;
        assert_eq!(told.1, code, "{rack} {offset} {epoch}");
    }
    // It waits for what comes, as a leader does.
    let waiting = from_rack(rack, 2, epoch, LONG_WAIT);
    follower.send(ApiKey::Fetch, 11, &waiting).await;
    assert!(follower.is_silent(Duration::from_millis(200)).await);
    produce(leader, TOPIC, 0, b"three").await;
    let answer: FetchResponse = follower.receive(ApiKey::Fetch, 11).await;
    assert_eq!(told(&answer), [(0, 0, 3, 0, batch(b"three").len())]);
    // What is trimmed is out of range there, too.
    delete_before(leader, 0, 2).await;
    loop {
        let (told, ..) = ask_one(follower, &from_rack(rack, 0, epoch, 0)).await;
        if told.1 == 1 {
            break;
        }
        assert!(told.1 == 0 && Instant::now() < deadline, "{told:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_says_what_its_partitions_take_on_its_disk() {
    let mut nodes = start("").await;
    let mut conn = KafkaConn::open(nodes.kafka_port(0)).await;
    let value = vec![7; 100_000];
    for _ in 0..20 {
        produce(&mut conn, TOPIC, 1, &value).await;
    }
    let some = |topic: &str, indexes: &[i32]| {
        DescribableLogDirTopic::default()
            .with_topic(TopicName(text(topic)))
            .with_partitions(indexes.to_vec())
    };
    for version in 1..=4 {
        let all = describe(&mut conn, version, None).await;
        let indexes: Vec<i32> = all.iter().map(|(index, _)| *index).collect();
        assert_eq!(indexes, [0, 1, 2, 3], "{version}");
        // The half that is in no segment yet counts as well.
        let least = i64::try_from(20 * value.len()).unwrap();
        assert!((least..2 * least).contains(&all[1].1), "{version}: {all:?}");
        assert!(all[0].1 < 10_000, "{version}: {all:?}");
        let topics = vec![
            some(TOPIC, &[1, 1, 9, -1]),
            some("no-such", &[0]),
            some(TOPIC, &[3]),
        ];
        let two = describe(&mut conn, version, Some(topics)).await;
        assert_eq!(two, [all[1], all[3]], "{version}");
        assert_eq!(describe(&mut conn, version, Some(vec![])).await, []);
    }
    nodes.stop();
}

/// Partitions of the topic and their bytes, as the one directory is described.
async fn describe(
    conn: &mut KafkaConn,
    version: i16,
    topics: Option<Vec<DescribableLogDirTopic>>,
) -> Vec<(i32, i64)> {
    let request = DescribeLogDirsRequest::default().with_topics(topics);
    let answer: DescribeLogDirsResponse =
        conn.ask(ApiKey::DescribeLogDirs, version, &request).await;
    let [dir] = &answer.results[..] else {
        panic!("{answer:?}");
    };
    assert_eq!((answer.error_code, dir.error_code), (0, 0));
    assert!(std::path::Path::new(&*dir.log_dir).is_absolute());
    if version >= 4 {
        assert!(
            dir.total_bytes >= dir.usable_bytes && dir.usable_bytes > 0,
            "{dir:?}"
        );
    }
    let orders = dir.topics.iter().filter(|topic| **topic.name == *TOPIC);
    let partitions = orders.flat_map(|topic| &topic.partitions);
    let described = partitions.map(|one| {
        assert!(one.offset_lag == 0 && !one.is_future_key);
        (one.partition_index, one.partition_size)
    });
    described.collect()
}
