//! What tools ask to show a cluster: topics a page at a time, the quorum, features, and what can be
//! configured.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod kafka_conn;
mod nodes;

use std::time::Duration;

use kafka_conn::{KafkaConn, text};
use kafka_protocol::messages::describe_producers_request::TopicRequest as ProducersOf;
use kafka_protocol::messages::describe_quorum_request::{PartitionData, TopicData};
use kafka_protocol::messages::describe_quorum_response::ReplicaState;
use kafka_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use kafka_protocol::messages::update_features_request::FeatureUpdateKey;
use kafka_protocol::messages::{
    ApiKey, DescribeProducersRequest, DescribeProducersResponse, DescribeQuorumRequest,
    DescribeQuorumResponse, DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse,
    ListConfigResourcesRequest, ListConfigResourcesResponse, TopicName, UpdateFeaturesRequest,
    UpdateFeaturesResponse,
};
use nodes::Nodes;
use tokio::time::{Instant, sleep};

const UNKNOWN_TOPIC: i16 = 3;
const INVALID_TOPIC: i16 = 17;
const INVALID_REQUEST: i16 = 42;
const UNSUPPORTED_VERSION: i16 = 35;
const INVALID_UPDATE_VERSION: i16 = 95;
const METADATA: &str = "__cluster_metadata";
const PATIENCE: Duration = Duration::from_secs(30);

fn name(topic: &str) -> TopicName {
    TopicName(text(topic))
}

/// What of a topic comes next, and from which partition on.
type At<'a> = (&'a str, i32);

/// Topics with their codes and the partitions told of, and where to go on.
async fn page(
    conn: &mut KafkaConn,
    topics: &[&str],
    limit: i32,
    cursor: Option<At<'_>>,
) -> (Vec<(String, i16, Vec<i32>)>, Option<(String, i32)>) {
    let topics = topics
        .iter()
        .map(|topic| TopicRequest::default().with_name(name(topic)));
    let cursor = cursor.map(|(topic, index)| {
        Cursor::default()
            .with_topic_name(name(topic))
            .with_partition_index(index)
    });
    let request = DescribeTopicPartitionsRequest::default()
        .with_topics(topics.collect())
        .with_response_partition_limit(limit)
        .with_cursor(cursor);
    let key = ApiKey::DescribeTopicPartitions;
    let answer: DescribeTopicPartitionsResponse = conn.ask(key, 0, &request).await;
    let rows = answer.topics.iter().map(|topic| {
        assert_eq!(topic.topic_id.is_nil(), topic.error_code != 0, "{topic:?}");
        let partitions = topic.partitions.iter().map(|partition| {
            assert_eq!(partition.error_code, 0, "{partition:?}");
            assert_eq!(partition.replica_nodes.len(), 1, "{partition:?}");
            partition.partition_index
        });
        let name = topic.name.as_ref().unwrap().to_string();
        (name, topic.error_code, partitions.collect())
    });
    let next = answer.next_cursor.map(|next| {
        let topic = next.topic_name.to_string();
        (topic, next.partition_index)
    });
    (rows.collect(), next)
}

fn row(topic: &str, code: i16, partitions: std::ops::Range<i32>) -> (String, i16, Vec<i32>) {
    (topic.to_owned(), code, partitions.collect())
}

fn next(topic: &str, index: i32) -> (String, i32) {
    (topic.to_owned(), index)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn topics_are_described_a_page_at_a_time() {
    let mut nodes = Nodes::start(1).await;
    for (topic, partitions) in [("a", "3"), ("b", "2"), ("c", "1")] {
        nodes.run(&["topic", "create", topic, "--partitions", partitions]);
    }
    let mut conn = KafkaConn::open(nodes.kafka_port(0)).await;
    let abc = ["c", "a", "b", "a"];

    // All at once, by name, each once.
    let (rows, end) = page(&mut conn, &abc, 2_000, None).await;
    assert_eq!(
        rows,
        [row("a", 0, 0..3), row("b", 0, 0..2), row("c", 0, 0..1)]
    );
    assert_eq!(end, None);
    // A page ends inside a topic, or between two.
    let (rows, end) = page(&mut conn, &abc, 2, None).await;
    assert_eq!((rows, end), (vec![row("a", 0, 0..2)], Some(next("a", 2))));
    let (rows, end) = page(&mut conn, &abc, 2, Some(("a", 2))).await;
    let expected = vec![row("a", 0, 2..3), row("b", 0, 0..1)];
    assert_eq!((rows, end), (expected, Some(next("b", 1))));
    let (rows, end) = page(&mut conn, &abc, 1, Some(("b", 1))).await;
    assert_eq!((rows, end), (vec![row("b", 0, 1..2)], Some(next("c", 0))));
    let (rows, end) = page(&mut conn, &abc, 1, Some(("c", 0))).await;
    assert_eq!((rows, end), (vec![row("c", 0, 0..1)], None));
    // At least one partition; beyond the last one there is nothing.
    let (rows, end) = page(&mut conn, &["a"], 0, None).await;
    assert_eq!((rows, end), (vec![row("a", 0, 0..1)], Some(next("a", 1))));
    let (rows, end) = page(&mut conn, &["a"], 5, Some(("a", i32::MAX))).await;
    assert_eq!((rows, end), (vec![row("a", 0, 0..0)], None));

    // Those that are not there, or cannot be.
    let (rows, end) = page(&mut conn, &["zzz", "a", "a b"], 9, None).await;
    let expected = vec![
        row("a", 0, 0..3),
        row("a b", INVALID_TOPIC, 0..0),
        row("zzz", UNKNOWN_TOPIC, 0..0),
    ];
    assert_eq!((rows, end), (expected, None));
    // What is gone on with is one of those asked for, and has no partition below zero.
    for cursor in [("b", 0), ("a", -1)] {
        let (rows, end) = page(&mut conn, &["a", "c"], 9, Some(cursor)).await;
        let expected = vec![
            row("a", INVALID_REQUEST, 0..0),
            row("c", INVALID_REQUEST, 0..0),
        ];
        assert_eq!((rows, end), (expected, None), "{cursor:?}");
    }

    // Everything there is, which is more than these: internal topics are among it.
    let mut all = Vec::new();
    let mut at: Option<(String, i32)> = None;
    loop {
        let cursor = at.as_ref().map(|(topic, index)| (topic.as_str(), *index));
        let (rows, end) = page(&mut conn, &[], 1, cursor).await;
        let told = rows.iter().flat_map(|(topic, _, partitions)| {
            let each = partitions.iter();
            each.map(|index| (topic.clone(), *index))
        });
        all.extend(told);
        let Some(end) = end else { break };
        assert!(at.is_none_or(|at| at < end), "it does not go on: {end:?}");
        at = Some(end);
    }
    assert!(all.is_sorted_by(|a, b| a < b), "{all:?}");
    let ours = all.iter().filter(|(topic, _)| topic.len() == 1);
    assert_eq!(ours.count(), 6);
    nodes.stop();
}

async fn quorum(
    conn: &mut KafkaConn,
    version: i16,
    topic: &str,
    partition: i32,
) -> DescribeQuorumResponse {
    let partition = PartitionData::default().with_partition_index(partition);
    let topic = TopicData::default()
        .with_topic_name(name(topic))
        .with_partitions(vec![partition]);
    let request = DescribeQuorumRequest::default().with_topics(vec![topic]);
    let key = ApiKey::DescribeQuorum;
    let answer: DescribeQuorumResponse = conn.ask(key, version, &request).await;
    assert_eq!(answer.error_code, 0);
    answer
}

fn ids(states: &[ReplicaState]) -> Vec<i32> {
    let mut ids: Vec<i32> = states.iter().map(|state| state.replica_id.0).collect();
    ids.sort_unstable();
    ids
}

/// Waits until a node tells who writes to a partition of which it has a replica, leading or not.
async fn await_producers(conn: &mut KafkaConn, topic: &str) {
    let topic = ProducersOf::default()
        .with_name(name(topic))
        .with_partition_indexes(vec![0]);
    let request = DescribeProducersRequest::default().with_topics(vec![topic]);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let key = ApiKey::DescribeProducers;
        let answer: DescribeProducersResponse = conn.ask(key, 0, &request).await;
        let row = &answer.topics[0].partitions[0];
        if row.error_code == 0 {
            assert_eq!(row.active_producers, []);
            return;
        }
        assert!(Instant::now() < deadline, "{row:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// Each node tells the same of the controller, whichever of them leads it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_quorum_is_described_by_every_node() {
    let mut nodes = Nodes::start(3).await;
    nodes.run(&["topic", "create", "a"]);
    let mut leaders = Vec::new();
    for (node, version) in [(0, 0), (1, 1), (2, 2)] {
        let mut conn = KafkaConn::open(nodes.kafka_port(node)).await;
        let deadline = Instant::now() + PATIENCE;
        // Until the last entries are known to be everywhere.
        let told = loop {
            let told = quorum(&mut conn, version, METADATA, 0).await;
            let partition = &told.topics[0].partitions[0];
            let voters = &partition.current_voters;
            let end = partition.high_watermark;
            let level = voters.iter().all(|voter| voter.log_end_offset == end);
            if partition.error_code == 0 && level && voters.len() == 3 {
                break told;
            }
            assert!(Instant::now() < deadline, "{told:?}");
            sleep(Duration::from_millis(20)).await;
        };
        let partition = &told.topics[0].partitions[0];
        assert_eq!(ids(&partition.current_voters), [1, 2, 3]);
        assert_eq!(partition.observers, []);
        assert!(partition.leader_epoch > 0 && partition.high_watermark > 0);
        leaders.push(partition.leader_id.0);
        if version == 2 {
            let listeners = told.nodes.iter().map(|node| node.listeners[0].port);
            let ports = (0..3).map(|node| nodes.kafka_port(node));
            assert!(listeners.eq(ports), "{:?}", told.nodes);
        }
        for (topic, partition) in [(METADATA, 1), ("a", 0)] {
            let told = quorum(&mut conn, version, topic, partition).await;
            let row = &told.topics[0].partitions[0];
            assert_eq!(
                (row.partition_index, row.error_code),
                (partition, UNKNOWN_TOPIC)
            );
        }
    }
    for node in 0..3 {
        let mut conn = KafkaConn::open(nodes.kafka_port(node)).await;
        await_producers(&mut conn, "a").await;
    }
    assert!(
        leaders.iter().all(|leader| *leader == leaders[0]),
        "{leaders:?}"
    );
    nodes.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn features_and_what_can_be_configured_are_told_in_every_version() {
    let mut nodes = Nodes::start(1).await;
    nodes.run(&["topic", "create", "a"]);
    let mut conn = KafkaConn::open(nodes.kafka_port(0)).await;
    for version in 0..=2 {
        for (feature, level, code) in [
            ("group.version", 1, 0),
            ("group.version", 0, INVALID_UPDATE_VERSION),
            ("metadata.version", 27, INVALID_UPDATE_VERSION),
        ] {
            let update = FeatureUpdateKey::default()
                .with_feature(text(feature))
                .with_max_version_level(level);
            let request = UpdateFeaturesRequest::default()
                .with_timeout_ms(1_000)
                .with_feature_updates(vec![update]);
            let key = ApiKey::UpdateFeatures;
            let answer: UpdateFeaturesResponse = conn.ask(key, version, &request).await;
            assert_eq!(answer.error_code, code, "{feature} {level} {version}");
            assert_eq!(answer.error_message.is_some(), code != 0);
            let rows = usize::from(code == 0 && version < 2);
            assert_eq!(answer.results.len(), rows, "{version}");
        }
    }
    for (version, kinds, code, expected) in [
        (0, vec![], 0, vec![]),
        (1, vec![2], 0, vec![(2, "a")]),
        (1, vec![4], 0, vec![(4, "1")]),
        (1, vec![8, 16, 32], 0, vec![]),
        (1, vec![2, 3], UNSUPPORTED_VERSION, vec![]),
        (1, vec![], 0, vec![(2, "a"), (4, "1")]),
    ] {
        let request = ListConfigResourcesRequest::default().with_resource_types(kinds);
        let key = ApiKey::ListConfigResources;
        let answer: ListConfigResourcesResponse = conn.ask(key, version, &request).await;
        assert_eq!(answer.error_code, code);
        let told = answer.config_resources.iter();
        let told = told.map(|told| (told.resource_type, &*told.resource_name));
        // The system's own topics are among them.
        let told: Vec<(i8, &str)> = told.filter(|(_, name)| name.len() == 1).collect();
        assert_eq!(told, expected, "{version}");
    }
    nodes.stop();
}
