//! Real processes: a segment that went bad on one node is found, set aside and replaced from
//! another node, byte for byte, while the cluster serves.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod nodes;

use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use nodes::Nodes;
use tokio::time::Instant;
use trilog_client::proto::{CreateTopicRequest, ErrorCode};
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
    create(client, 3).await;
    produce(client, 0, RECORDS).await;
}

async fn create(client: &Client, replication: u32) {
    let request = CreateTopicRequest {
        name: TOPIC.to_owned(),
        partitions: 1,
        replication,
        ..CreateTopicRequest::default()
    };
    client.admin().create_topic(request).await.unwrap();
    client.admin().await_leaders(TOPIC).await.unwrap();
}

async fn produce(client: &Client, from: u64, to: u64) {
    let producer = client.producer();
    for first in (from..to).step_by(100) {
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

/// The largest segment file: that of the only topic.
fn largest_segment(data: &Path) -> PathBuf {
    let groups = std::fs::read_dir(data.join("p")).unwrap();
    let files = groups.flat_map(|group| std::fs::read_dir(group.unwrap().path()).unwrap());
    let paths = files.map(|file| file.unwrap().path());
    let segments = paths.filter(|path| path.extension().is_some_and(|kind| kind == "seg"));
    let len = |path: &PathBuf| std::fs::metadata(path).unwrap().len();
    segments.max_by_key(len).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_that_nobody_has_a_copy_of_is_told_and_holds_up_nothing_else() {
    let mut nodes = Nodes::start(1).await;
    let client = Client::connect(nodes.addresses()).await.unwrap();
    create(&client, 1).await;
    produce(&client, 0, 100).await;
    drop(client);
    nodes.stop();
    // The segment that still grows.
    let path = largest_segment(nodes.data(0));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[200_000] ^= 0x10;
    std::fs::write(&path, &bytes).unwrap();

    nodes.restart_all();
    nodes.await_ready().await;
    let client = Client::connect(nodes.addresses()).await.unwrap();
    client.admin().await_leaders(TOPIC).await.unwrap();
    let consumer = client.consumer(TOPIC).start(StartAt::Earliest);
    let mut records = consumer.follow(false).open().await.unwrap();
    let error = loop {
        match records.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("damaged records were left out without a word"),
        }
    };
    assert_eq!(error.code(), Some(ErrorCode::DataLost), "{error}");
    let text = error.to_string();
    for told in ["orders/0", "from 0 to before ", "no other replica"] {
        assert!(text.contains(told), "{told}: {text}");
    }

    produce(&client, 100, 200).await;
    let consumer = client.consumer(TOPIC).start(StartAt::Offset(100));
    let mut records = consumer.follow(false).open().await.unwrap();
    for number in 100..200 {
        let record = records.next().await.unwrap().unwrap();
        assert_eq!(record.value.unwrap().as_ref(), value(number));
    }

    let metrics = nodes.page(0, "/metrics");
    let quarantined = metrics
        .lines()
        .find(|line| line.starts_with("trilog_segments_quarantined"));
    assert!(
        quarantined.is_some_and(|line| line.ends_with(" 1")),
        "{quarantined:?}"
    );
    let health = nodes.page(0, "/health/ready");
    assert!(
        health.contains("orders/0 from offset 0 to before "),
        "{health}"
    );
    drop(client);
    nodes.stop();
    let data = nodes.data(0).to_str().unwrap();
    let verified = nodes.trilog(&["log", "verify", data]);
    let said = String::from_utf8_lossy(&verified.stdout);
    assert!(said.contains("damaged"), "{said}");
}
