//! Quotas of Kafka's clients: set, described and taken back in every version of the requests, and
//! held to on the wire.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod kafka_conn;
mod nodes;

use std::ops::Range;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use kafka_conn::{KafkaConn, framed_by, text};
use kafka_protocol::messages::alter_client_quotas_request::{
    EntityData as Half, EntryData as Entry, OpData,
};
use kafka_protocol::messages::describe_client_quotas_request::ComponentData;
use kafka_protocol::messages::fetch_request::{FetchPartition, FetchTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    AlterClientQuotasRequest, AlterClientQuotasResponse, ApiKey, ApiVersionsRequest,
    ApiVersionsResponse, DescribeClientQuotasRequest, DescribeClientQuotasResponse, FetchRequest,
    FetchResponse, MetadataRequest, MetadataResponse, ProduceRequest, ProduceResponse, TopicName,
};
use nodes::Nodes;
use tokio::time::{Instant, sleep};
use trilog_model::batch::{BatchBuilder, Compression};

const TOPIC: &str = "orders";
const PASSWORD: &str = "correct-horse-battery";
/// Of which ten seconds are there at once.
const RATE: f64 = 100_000.0;
/// Two of these are two seconds too much.
const BYTES: usize = 600_000;
const PATIENCE: Duration = Duration::from_secs(30);
const PRODUCER: &str = "producer_byte_rate";
const CONSUMER: &str = "consumer_byte_rate";
const TIME: &str = "request_percentage";
const NO_CLUSTER: i16 = 31;

/// A kind of entity and a name; without one, the default.
type Whom<'a> = (&'a str, Option<&'a str>);

fn op(key: &str, value: Option<f64>) -> OpData {
    OpData::default()
        .with_key(text(key))
        .with_value(value.unwrap_or_default())
        .with_remove(value.is_none())
}

fn entry(whom: &[Whom<'_>], ops: Vec<OpData>) -> Entry {
    let halves = whom.iter().map(|(kind, name)| {
        Half::default()
            .with_entity_type(text(kind))
            .with_entity_name(name.map(text))
    });
    Entry::default().with_entity(halves.collect()).with_ops(ops)
}

async fn alter(
    conn: &mut KafkaConn,
    version: i16,
    entries: Vec<Entry>,
    validate: bool,
) -> Vec<i16> {
    let request = AlterClientQuotasRequest::default()
        .with_entries(entries)
        .with_validate_only(validate);
    let key = ApiKey::AlterClientQuotas;
    let answer: AlterClientQuotasResponse = conn.ask(key, version, &request).await;
    let rows = answer.entries.into_iter();
    rows.map(|row| row.error_code).collect()
}

async fn set(
    conn: &mut KafkaConn,
    version: i16,
    whom: &[Whom<'_>],
    key: &str,
    value: Option<f64>,
) -> i16 {
    let entries = vec![entry(whom, vec![op(key, value)])];
    alter(conn, version, entries, false).await[0]
}

async fn bound(conn: &mut KafkaConn, whom: &[Whom<'_>], key: &str, value: Option<f64>) {
    assert_eq!(set(conn, 1, whom, key, value).await, 0, "{whom:?} {key}");
}

/// Kind of entity, kind of match, and what is matched.
type Component = (&'static str, i8, Option<&'static str>);

/// Entities as `kind=name` with their rates as `key=value`.
async fn described(
    conn: &mut KafkaConn,
    version: i16,
    components: &[Component],
    strict: bool,
) -> Result<Vec<String>, i16> {
    let components = components.iter().map(|(kind, how, name)| {
        ComponentData::default()
            .with_entity_type(text(kind))
            .with_match_type(*how)
            .with_match(name.map(text))
    });
    let request = DescribeClientQuotasRequest::default()
        .with_components(components.collect())
        .with_strict(strict);
    let key = ApiKey::DescribeClientQuotas;
    let answer: DescribeClientQuotasResponse = conn.ask(key, version, &request).await;
    let Some(entries) = answer.entries else {
        assert_ne!(answer.error_code, 0);
        return Err(answer.error_code);
    };
    let rows = entries.into_iter().map(|entry| {
        let halves = entry.entity.iter().map(|half| {
            let name = half.entity_name.as_deref().unwrap_or("*");
            format!("{}={name}", &*half.entity_type)
        });
        let values = entry.values.iter();
        let values = values.map(|value| format!("{}={}", &*value.key, value.value));
        halves.chain(values).collect::<Vec<_>>().join(" ")
    });
    Ok(rows.collect())
}

async fn check_settings(conn: &mut KafkaConn, version: i16) {
    let app: &[Whom<'_>] = &[("client-id", Some("app"))];
    let both: &[Whom<'_>] = &[("user", Some("ann")), ("client-id", None)];
    let users: &[Whom<'_>] = &[("user", None)];
    assert_eq!(set(conn, version, app, PRODUCER, Some(1024.0)).await, 0);
    let ops = vec![op(CONSUMER, Some(2e9)), op(TIME, Some(12.5))];
    assert_eq!(
        alter(conn, version, vec![entry(both, ops)], false).await,
        [0]
    );
    assert_eq!(set(conn, version, users, PRODUCER, Some(7.0)).await, 0);
    // What is not there is taken back without a word, whatever it is called.
    assert_eq!(set(conn, version, users, "no_such_rate", None).await, 0);

    let of_app = "client-id=app producer_byte_rate=1024";
    let of_both = "user=ann client-id=* consumer_byte_rate=2000000000 request_percentage=12.5";
    let of_users = "user=* producer_byte_rate=7";
    let rows: [(&[Component], bool, &[&str]); 9] = [
        (&[], false, &[of_app, of_users, of_both]),
        (&[], true, &[]),
        (&[("client-id", 0, Some("app"))], true, &[of_app]),
        (&[("client-id", 0, Some("b"))], false, &[]),
        (&[("client-id", 2, None)], true, &[of_app]),
        (&[("client-id", 2, None)], false, &[of_app, of_both]),
        (&[("user", 1, None)], false, &[of_users]),
        (
            &[("user", 0, Some("ann")), ("client-id", 1, None)],
            true,
            &[of_both],
        ),
        (&[("ip", 2, None)], false, &[]),
    ];
    for (components, strict, expected) in rows {
        let told = described(conn, version, components, strict).await.unwrap();
        assert_eq!(told, expected, "{components:?} {strict}");
    }
    check_filters(conn, version).await;
    for (whom, key) in [
        (app, PRODUCER),
        (both, CONSUMER),
        (both, TIME),
        (users, PRODUCER),
    ] {
        assert_eq!(set(conn, version, whom, key, None).await, 0);
    }
    assert_eq!(described(conn, version, &[], false).await, Ok(vec![]));
}

async fn check_filters(conn: &mut KafkaConn, version: i16) {
    let wrong: [(&[Component], i16); 7] = [
        (&[("", 2, None)], 42),
        (&[("host", 2, None)], 35),
        (&[("user", 0, None)], 42),
        (&[("user", 1, Some("ann"))], 42),
        (&[("user", 3, None)], 42),
        (&[("user", 2, None), ("user", 1, None)], 42),
        (&[("user", 2, None), ("ip", 2, None)], 42),
    ];
    for (components, code) in wrong {
        let told = described(conn, version, components, false).await;
        assert_eq!(told, Err(code), "{components:?}");
    }
}

async fn check_refusals(conn: &mut KafkaConn, version: i16) {
    let app: &[Whom<'_>] = &[("client-id", Some("app"))];
    let rows: [(&[Whom<'_>], &str, f64); 10] = [
        (app, "controller_mutation_rate", 5.0),
        (app, "connection_creation_rate", 5.0),
        (app, "no_such_rate", 5.0),
        (app, PRODUCER, 0.5),
        (app, PRODUCER, -1.0),
        (app, TIME, f64::NAN),
        (&[], PRODUCER, 5.0),
        (&[("ip", Some("127.0.0.1"))], PRODUCER, 5.0),
        (&[("client-id", Some(""))], PRODUCER, 5.0),
        (&[("user", None), ("user", Some("a"))], PRODUCER, 5.0),
    ];
    for (whom, key, value) in rows {
        let told = set(conn, version, whom, key, Some(value)).await;
        assert_eq!(told, 42, "{whom:?} {key} {value}");
    }
    let twice = vec![op(PRODUCER, Some(5.0)), op(PRODUCER, Some(6.0))];
    let told = alter(conn, version, vec![entry(app, twice)], false).await;
    assert_eq!(told, [42]);
    let five = || entry(app, vec![op(PRODUCER, Some(5.0))]);
    assert_eq!(alter(conn, version, vec![five()], true).await, [0]);
    assert_eq!(described(conn, version, &[], false).await, Ok(vec![]));
    let told = alter(conn, version, vec![five(), five()], false).await;
    assert_eq!(told, [0, 42]);
    assert_eq!(set(conn, version, app, PRODUCER, None).await, 0);
}

fn produce(bytes: usize, acks: i16) -> ProduceRequest {
    let mut batch = BatchBuilder::new(Compression::None);
    batch.push(5, None, Some(&vec![7; bytes]), &[]).unwrap();
    let partition = PartitionProduceData::default()
        .with_index(0)
        .with_records(Some(batch.build().unwrap()));
    let topic = TopicProduceData::default()
        .with_name(TopicName(text(TOPIC)))
        .with_partition_data(vec![partition]);
    ProduceRequest::default()
        .with_acks(acks)
        .with_timeout_ms(10_000)
        .with_topic_data(vec![topic])
}

fn told(throttle_time_ms: i32) -> Duration {
    Duration::from_millis(u64::try_from(throttle_time_ms).unwrap())
}

/// Writes so many bytes: for how long the client is held back. Waits for a leader first.
async fn write(conn: &mut KafkaConn, version: i16, bytes: usize) -> Duration {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = produce(bytes, -1);
        let answer: ProduceResponse = conn.ask(ApiKey::Produce, version, &request).await;
        match answer.responses[0].partition_responses[0].error_code {
            0 => return told(answer.throttle_time_ms),
            6 => assert!(Instant::now() < deadline, "nobody leads"),
            other => panic!("{other}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

fn fetch(offset: i64, wait: Duration) -> FetchRequest {
    let partition = FetchPartition::default()
        .with_partition(0)
        .with_fetch_offset(offset)
        .with_partition_max_bytes(50 << 20);
    let topic = FetchTopic::default()
        .with_topic(TopicName(text(TOPIC)))
        .with_partitions(vec![partition]);
    FetchRequest::default()
        .with_max_wait_ms(i32::try_from(wait.as_millis()).unwrap())
        .with_min_bytes(1)
        .with_max_bytes(50 << 20)
        .with_topics(vec![topic])
}

/// Reads from an offset on: the bytes, and for how long the client is held back.
async fn read(conn: &mut KafkaConn, version: i16, offset: i64) -> (usize, Duration) {
    let request = fetch(offset, Duration::from_secs(1));
    let request = request.with_session_epoch(if version < 7 { -1 } else { 0 });
    let answer: FetchResponse = conn.ask(ApiKey::Fetch, version, &request).await;
    let held = told(answer.throttle_time_ms);
    let Some(topic) = answer.responses.first() else {
        // Who gets nothing now begins no session, either.
        assert_eq!((answer.error_code, answer.session_id), (0, 0));
        assert!(!held.is_zero());
        return (0, held);
    };
    let records = topic.partitions[0].records.as_ref();
    (records.map_or(0, bytes::Bytes::len), held)
}

/// Asks something small, which a client that is held back is answered only afterwards.
async fn ping(conn: &mut KafkaConn) {
    let _: ApiVersionsResponse = conn
        .ask(ApiKey::ApiVersions, 0, &ApiVersionsRequest::default())
        .await;
}

/// That a client which was told of a pause is not heard for as long; since when it may have been.
async fn check_unheard(
    conn: &mut KafkaConn,
    other: &mut KafkaConn,
    held: Duration,
    since: Instant,
) {
    // It is this connection that is not heard.
    ping(other).await;
    ping(conn).await;
    let unheard = since.elapsed();
    assert!(unheard >= held, "{unheard:?} of {held:?}");
}

/// Two seconds too much, if hardly any time is between the first and the last of it: a part of a
/// second that is, and the requests' own bytes, count, too.
fn about_two_seconds() -> Range<Duration> {
    Duration::from_secs(1)..Duration::from_millis(2_100)
}

/// The number at the end of the first line of the metrics that has these in it.
fn metric(nodes: &Nodes, parts: &[&str]) -> Option<f64> {
    let page = nodes.page(0, "/metrics");
    let line = page
        .lines()
        .find(|line| parts.iter().all(|part| line.contains(part)))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_are_set_described_and_refused_in_every_version() {
    let mut nodes = Nodes::start(1).await;
    let mut conn = KafkaConn::open(nodes.kafka_port(0)).await;
    for version in 0..=1 {
        check_settings(&mut conn, version).await;
        check_refusals(&mut conn, version).await;
    }
    // They are as durable as anything the controller knows.
    let app: &[Whom<'_>] = &[("client-id", Some("app"))];
    bound(&mut conn, app, PRODUCER, Some(9.0)).await;
    nodes.kill(0);
    nodes.restart(0);
    nodes.await_ready().await;
    let mut conn = KafkaConn::open(nodes.kafka_port(0)).await;
    let told = described(&mut conn, 1, &[], false).await.unwrap();
    assert_eq!(told, ["client-id=app producer_byte_rate=9"]);
    nodes.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_writes_more_than_it_may_is_told_so_at_once_and_then_not_heard_for_as_long() {
    let mut nodes = Nodes::start(1).await;
    nodes.run(&["topic", "create", TOPIC]);
    let port = nodes.kafka_port(0);
    let mut operator = KafkaConn::open(port).await;
    let mut writer = KafkaConn::open_named(port, "writer").await;
    assert_eq!(write(&mut writer, 9, BYTES).await, Duration::ZERO);
    let all: &[Whom<'_>] = &[("client-id", None)];
    bound(&mut operator, all, PRODUCER, Some(RATE)).await;

    assert_eq!(write(&mut writer, 3, BYTES).await, Duration::ZERO);
    let since = Instant::now();
    let held = write(&mut writer, 9, BYTES).await;
    assert!(about_two_seconds().contains(&held), "{held:?}");
    check_unheard(&mut writer, &mut operator, held, since).await;
    let counted = [
        "trilog_throttle_duration_seconds_count",
        "reason=\"produce\"",
    ];
    assert_eq!(metric(&nodes, &counted), Some(1.0));

    // Each client id has a share of its own, and so has one whose writes are not acknowledged.
    let mut silent = KafkaConn::open_named(port, "silent").await;
    assert_eq!(write(&mut silent, 9, BYTES).await, Duration::ZERO);
    let began = Instant::now();
    silent.send(ApiKey::Produce, 9, &produce(BYTES, 0)).await;
    ping(&mut silent).await;
    assert!(began.elapsed() > about_two_seconds().start);

    // Where there is a nearer quota, it is the one that counts.
    let near: &[Whom<'_>] = &[("user", Some("ANONYMOUS")), ("client-id", Some("near"))];
    bound(&mut operator, near, PRODUCER, Some(1e9)).await;
    let mut client = KafkaConn::open_named(port, "near").await;
    for _ in 0..3 {
        assert_eq!(write(&mut client, 9, BYTES).await, Duration::ZERO);
    }
    // One that is held back and goes is let go.
    bound(&mut operator, near, PRODUCER, Some(1.0)).await;
    let held = write(&mut client, 9, BYTES).await;
    assert!(held > Duration::from_hours(1), "{held:?}");
    drop((client, writer, silent));
    let deadline = Instant::now() + PATIENCE;
    let alone = ["trilog_connections{", "dialect=\"kafka\""];
    while metric(&nodes, &alone) != Some(1.0) {
        assert!(Instant::now() < deadline, "one is still there");
        sleep(Duration::from_millis(20)).await;
    }
    nodes.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_reads_more_than_it_may_gets_nothing_for_now() {
    let mut nodes = Nodes::start(1).await;
    nodes.run(&["topic", "create", TOPIC]);
    let port = nodes.kafka_port(0);
    let mut operator = KafkaConn::open(port).await;
    let mut reader = KafkaConn::open_named(port, "reader").await;
    for _ in 0..3 {
        assert_eq!(write(&mut reader, 9, BYTES).await, Duration::ZERO);
    }
    let whom: &[Whom<'_>] = &[("client-id", Some("reader"))];
    bound(&mut operator, whom, CONSUMER, Some(RATE)).await;
    let (bytes, held) = read(&mut reader, 12, 0).await;
    assert!((BYTES..2 * BYTES).contains(&bytes), "one batch: {bytes}");
    assert_eq!(held, Duration::ZERO);
    let since = Instant::now();
    let (bytes, held) = read(&mut reader, 12, 1).await;
    assert_eq!(bytes, 0);
    assert!(about_two_seconds().contains(&held), "{held:?}");
    check_unheard(&mut reader, &mut operator, held, since).await;
    // What it did not get did not count: it is as far over as before.
    let (bytes, again) = read(&mut reader, 4, 1).await;
    assert_eq!(bytes, 0);
    assert!(about_two_seconds().contains(&again), "{again:?}");

    bound(&mut operator, whom, CONSUMER, None).await;
    let (bytes, held) = read(&mut reader, 12, 0).await;
    assert!(bytes >= 3 * BYTES, "{bytes}");
    assert_eq!(held, Duration::ZERO);

    // One batch is more than is allowed for at once: its reader waits afterwards.
    let mut other = KafkaConn::open_named(port, "other").await;
    let whom: &[Whom<'_>] = &[("user", None), ("client-id", Some("other"))];
    bound(&mut operator, whom, CONSUMER, Some(RATE / 2.0)).await;
    let since = Instant::now();
    let (bytes, held) = read(&mut other, 12, 1).await;
    assert!((BYTES..2 * BYTES).contains(&bytes), "one batch: {bytes}");
    assert!(about_two_seconds().contains(&held), "{held:?}");
    // Nor is there a way round by other connections of the same client.
    let mut more = KafkaConn::open_named(port, "other").await;
    let (bytes, still) = read(&mut more, 12, 1).await;
    assert_eq!(bytes, 0);
    assert!(!still.is_zero());
    check_unheard(&mut other, &mut operator, held, since).await;
    let counted = ["trilog_throttle_duration_seconds_count", "reason=\"fetch\""];
    assert_eq!(metric(&nodes, &counted), Some(4.0));
    nodes.stop();
}

/// A client of librdkafka, whose application takes what it has at the end of each rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_rests_when_given_too_much_is_given_less_at_once() {
    const REST: Duration = Duration::from_secs(1);
    let mut nodes = Nodes::start(1).await;
    nodes.run(&["topic", "create", TOPIC]);
    let port = nodes.kafka_port(0);
    let mut writer = KafkaConn::open(port).await;
    for _ in 0..3 {
        assert_eq!(write(&mut writer, 9, BYTES).await, Duration::ZERO);
    }
    let paced = ["trilog_throttle_duration_seconds_count", "reason=\"pace\""];
    for (software, rests) in [("apache-kafka-java", false), ("librdkafka", true)] {
        let mut reader = KafkaConn::open(port).await;
        let said = ApiVersionsRequest::default()
            .with_client_software_name(text(software))
            .with_client_software_version(text("2.0.2"));
        let _: ApiVersionsResponse = reader.ask(ApiKey::ApiVersions, 3, &said).await;
        for _ in 0..3 {
            let (bytes, _) = read(&mut reader, 12, 0).await;
            assert!(bytes >= 3 * BYTES, "{bytes}");
            sleep(REST).await;
        }
        let counted = metric(&nodes, &paced).unwrap_or_default();
        assert_eq!(counted > 0.0, rests, "{software}: {counted}");
    }
    nodes.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_held_back_inside_a_request_is_heard_to_its_end() {
    let mut nodes = Nodes::start(1).await;
    nodes.run(&["topic", "create", TOPIC]);
    let port = nodes.kafka_port(0);
    let mut operator = KafkaConn::open(port).await;
    let mut client = KafkaConn::open_named(port, "both").await;
    assert_eq!(write(&mut client, 9, BYTES).await, Duration::ZERO);
    let whom: &[Whom<'_>] = &[("client-id", Some("both"))];
    bound(&mut operator, whom, CONSUMER, Some(1.0)).await;
    let mut first = KafkaConn::open_named(port, "both").await;
    let (_, held) = read(&mut first, 12, 0).await;
    assert!(held > Duration::from_hours(1), "{held:?}");

    // Over its bound already: it is told so once it has waited for more than there is, and is in the
    // middle of another request then.
    client
        .send(ApiKey::Fetch, 4, &fetch(1, Duration::from_secs(1)))
        .await;
    let request = framed_by("both", ApiKey::Produce, 9, 7, &produce(BYTES, -1));
    let (begun, rest) = request.split_at(request.len() / 2);
    client.say(begun).await;
    let answer: FetchResponse = client.receive(ApiKey::Fetch, 4).await;
    assert!(told(answer.throttle_time_ms) > Duration::from_hours(1));
    client.say(rest).await;
    let answer: ProduceResponse = client.receive(ApiKey::Produce, 9).await;
    let row = &answer.responses[0].partition_responses[0];
    assert_eq!(row.error_code, 0);
    // But nothing behind it is.
    let ping = framed_by(
        "both",
        ApiKey::ApiVersions,
        0,
        8,
        &ApiVersionsRequest::default(),
    );
    client.say(&ping).await;
    assert!(client.is_silent(Duration::from_secs(1)).await);
    nodes.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_keeps_threads_busy_is_held_back_by_a_second_at_most() {
    let mut nodes = Nodes::start(1).await;
    nodes.run(&["topic", "create", TOPIC]);
    let port = nodes.kafka_port(0);
    let mut operator = KafkaConn::open(port).await;
    let mut busy = KafkaConn::open_named(port, "busy").await;
    assert_eq!(write(&mut busy, 9, 10).await, Duration::ZERO);
    let whom: &[Whom<'_>] = &[("client-id", Some("busy"))];
    // Whatever it takes is too much.
    bound(&mut operator, whom, TIME, Some(1e-9)).await;
    let (second, since) = (Duration::from_secs(1), Instant::now());
    let answer: MetadataResponse = busy
        .ask(ApiKey::Metadata, 9, &MetadataRequest::default())
        .await;
    assert_eq!(told(answer.throttle_time_ms), second);
    check_unheard(&mut busy, &mut operator, second, since).await;
    assert_eq!(write(&mut busy, 9, 10).await, second);
    assert_eq!(read(&mut busy, 12, 0).await, (0, second));
    // An answer that has no room to say so is followed by a pause all the same.
    ping(&mut busy).await;
    ping(&mut busy).await;
    assert!(since.elapsed() >= 5 * second);

    bound(&mut operator, whom, TIME, Some(10_000.0)).await;
    let answer: MetadataResponse = busy
        .ask(ApiKey::Metadata, 9, &MetadataRequest::default())
        .await;
    assert_eq!(told(answer.throttle_time_ms), Duration::ZERO);
    let counted = [
        "trilog_throttle_duration_seconds_count",
        "reason=\"request\"",
    ];
    assert_eq!(metric(&nodes, &counted), Some(6.0));
    nodes.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_user_is_held_to_its_quota_whatever_its_client_id_and_may_not_change_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("admin");
    std::fs::write(&file, format!("admin:{PASSWORD}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let access = format!(
        "[access]\nauthentication = \"required\"\nsuper_users = [\"admin\", \"alice\"]\nadmin_file = \"{}\"\n",
        file.display()
    );
    let mut nodes = Nodes::start_as(1, &access, "admin", PASSWORD).await;
    let file = dir.path().join("password");
    std::fs::write(&file, PASSWORD).unwrap();
    let file = file.to_str().unwrap();
    for user in ["alice", "bob"] {
        nodes.run(&["user", "add", user, "--password-file", file]);
    }
    nodes.run(&["topic", "create", TOPIC]);
    let port = nodes.kafka_port(0);
    let mut admin = KafkaConn::open_as(port, "admin", PASSWORD).await;
    let mut alice = KafkaConn::open_as(port, "alice", PASSWORD).await;
    let mut bob = KafkaConn::open_as(port, "bob", PASSWORD).await;
    let of_alice: &[Whom<'_>] = &[("user", Some("alice"))];
    assert_eq!(
        set(&mut bob, 1, of_alice, PRODUCER, Some(RATE)).await,
        NO_CLUSTER
    );
    let told = described(&mut bob, 1, &[], false).await;
    assert_eq!(told, Err(NO_CLUSTER));

    bound(&mut admin, of_alice, PRODUCER, Some(RATE)).await;
    // A quota of those who are not known is not that of anybody who is.
    let nobody: &[Whom<'_>] = &[("user", Some("ANONYMOUS"))];
    bound(&mut admin, nobody, PRODUCER, Some(1.0)).await;
    for _ in 0..3 {
        assert_eq!(write(&mut admin, 9, BYTES).await, Duration::ZERO);
    }
    assert_eq!(write(&mut alice, 9, BYTES).await, Duration::ZERO);
    let mut other = KafkaConn::open_named(port, "other").await;
    let let_in = other.log_in("SCRAM-SHA-256", "alice", PASSWORD).await;
    assert_eq!(let_in.0, 0);
    let held = write(&mut other, 9, BYTES).await;
    assert!(about_two_seconds().contains(&held), "{held:?}");
    nodes.stop();
}
