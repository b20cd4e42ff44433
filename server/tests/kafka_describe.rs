//! What tools ask to show a cluster: topics a page at a time.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod kafka_conn;
mod nodes;

use kafka_conn::{KafkaConn, text};
use kafka_protocol::messages::describe_topic_partitions_request::{Cursor, TopicRequest};
use kafka_protocol::messages::{
    ApiKey, DescribeTopicPartitionsRequest, DescribeTopicPartitionsResponse, TopicName,
};
use nodes::Nodes;

const UNKNOWN_TOPIC: i16 = 3;
const INVALID_TOPIC: i16 = 17;
const INVALID_REQUEST: i16 = 42;

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
