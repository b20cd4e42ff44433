//! Real processes: a segment that went bad on one node is found, set aside and replaced from
//! another node, byte for byte, while the cluster serves.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod nodes;

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use nodes::Nodes;
use tokio::time::Instant;
use trilog_client::proto::CreateTopicRequest;
use trilog_client::{Client, Record, StartAt};

const TOPIC: &str = "orders";
const RECORDS: u64 = 2_000;
const PATIENCE: Duration = Duration::from_mins(1);

/// Bytes of one record, different for each and hard to compress.
fn value(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let words = (0..512).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    });
    words.flat_map(u64::to_be_bytes).collect()
}

async fn fill(client: &Client) {
    let request = CreateTopicRequest {
        name: TOPIC.to_owned(),
        partitions: 1,
        replication: 3,
        ..CreateTopicRequest::default()
    };
    client.admin().create_topic(request).await.unwrap();
    client.admin().await_leaders(TOPIC).await.unwrap();
    let producer = client.producer();
    for first in (0..RECORDS).step_by(100) {
        let mut waiting = Vec::new();
        for number in first..first + 100 {
            let record = Record::new(value(number)).at_partition(0);
            waiting.push(producer.send(TOPIC, record).await.unwrap());
        }
        for delivery in waiting {
            delivery.await.unwrap();
        }
    }
}

async fn check(client: &Client) {
    let consumer = client
        .consumer(TOPIC)
        .start(StartAt::Earliest)
        .follow(false);
    let mut records = consumer.open().await.unwrap();
    let mut number = 0;
    while let Some(record) = records.next().await {
        assert_eq!(record.unwrap().value.unwrap().as_ref(), value(number));
        number += 1;
    }
    assert_eq!(number, RECORDS);
}

/// The segments of all groups in a data directory that are as large as one that was closed.
fn closed_segments(data: &Path) -> Vec<PathBuf> {
    let groups = std::fs::read_dir(data.join("p")).unwrap();
    let files = groups.flat_map(|group| std::fs::read_dir(group.unwrap().path()).unwrap());
    let paths = files.map(|file| file.unwrap().path());
    let closed = |path: &PathBuf| {
        let large = std::fs::metadata(path).unwrap().len() >= 1 << 20;
        large && path.extension().is_some_and(|kind| kind == "seg")
    };
    let mut closed: Vec<PathBuf> = paths.filter(closed).collect();
    closed.sort();
    closed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_segment_that_went_bad_is_replaced_from_another_node() {
    let storage = "segment_size = \"1MiB\"\nscrub_rate = \"64MiB\"";
    let mut nodes = Nodes::start_with(3, storage).await;
    fill(&Client::connect(nodes.addresses()).await.unwrap()).await;
    nodes.stop();
    let segments = closed_segments(nodes.data(0));
    assert!(segments.len() > 3, "{segments:?}");
    let path = &segments[1];
    let whole = std::fs::read(path).unwrap();
    let mut bad = whole.clone();
    bad[500_000] ^= 0x10;
    std::fs::write(path, &bad).unwrap();

    nodes.restart_all();
    nodes.await_ready().await;
    let client = Client::connect(nodes.addresses()).await.unwrap();
    check(&client).await;
    let aside = path.with_extension("damaged-1");
    let deadline = Instant::now() + PATIENCE;
    while !aside.exists() || std::fs::read(path).ok().as_ref() != Some(&whole) {
        assert!(
            Instant::now() < deadline,
            "{} is not replaced",
            path.display()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(std::fs::read(&aside).unwrap(), bad, "what was bad is kept");
    check(&client).await;
    nodes.stop();
    nodes.verify_logs();
}
