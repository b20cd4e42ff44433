//! The native client against real nodes.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod nodes;

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use nodes::Nodes;
use tokio::time::timeout;
use trilog_client::proto::{CreateTopicRequest, ErrorCode, PublishRequest};
use trilog_client::{
    Client, Compression, ConsumedRecord, Delivery, Error, ProducerConfig, Record, StartAt,
    Timestamp, partition_of_key,
};

const PATIENCE: Duration = Duration::from_mins(2);

async fn create(client: &Client, name: &str, partitions: u32, replication: u32) {
    let request = CreateTopicRequest {
        name: name.to_owned(),
        partitions,
        replication,
        ..CreateTopicRequest::default()
    };
    let created = client.admin().create_topic(request).await.unwrap();
    assert!(created.created);
    client.admin().await_leaders(name).await.unwrap();
}

fn number(record: &ConsumedRecord) -> u64 {
    let value = record.value.as_deref().unwrap();
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

async fn read_all(client: &Client, topic: &str, start: StartAt) -> Vec<ConsumedRecord> {
    let consumer = client.consumer(topic).start(start).follow(false);
    let reading = async { consumer.open().await?.try_collect().await };
    timeout(PATIENCE, reading).await.unwrap().unwrap()
}

/// Batches of ten records a second apart, numbered from zero, in partition 0.
async fn write_series(client: &Client, topic: &str, records: u64) {
    let producer = client.producer_with(ProducerConfig {
        linger: Duration::from_mins(10),
        ..ProducerConfig::default()
    });
    for number in 0..records {
        let record = Record::new(number.to_string())
            .at_partition(0)
            .at_time(i64::try_from(number).unwrap() * 1_000);
        drop(producer.send(topic, record).await.unwrap());
        if number % 10 == 9 {
            producer.flush().await;
        }
    }
    producer.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_node_takes_and_gives_records_from_any_start() {
    let nodes = Nodes::start(1).await;
    let client = nodes.client().await;
    create(&client, "series", 1, 1).await;
    write_series(&client, "series", 100).await;
    let all = read_all(&client, "series", StartAt::Earliest).await;
    let fortieth = all[40].append_time;
    assert!(
        all.windows(2)
            .all(|pair| pair[0].append_time <= pair[1].append_time)
    );
    for (start, first) in [
        (StartAt::Earliest, 0),
        (StartAt::Latest, 100),
        (StartAt::Offset(37), 37),
        (StartAt::Offset(100), 100),
        (StartAt::Last(3), 97),
        (StartAt::RecordTime(54_999), 55),
        (StartAt::RecordTime(1 << 40), 100),
        (StartAt::AppendTime(fortieth), 40),
        (StartAt::AppendTime(Timestamp(fortieth.nanos() + 1)), 50),
    ] {
        let found = read_all(&client, "series", start).await;
        let found: Vec<u64> = found.iter().map(number).collect();
        assert_eq!(found, (first..100).collect::<Vec<_>>(), "{start:?}");
    }
    nodes.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_come_back_as_they_were_sent_in_every_codec() {
    let nodes = Nodes::start(1).await;
    let client = nodes.client().await;
    create(&client, "mixed", 3, 1).await;
    let mut sent = Vec::new();
    for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
        let producer = client.producer_with(ProducerConfig {
            compression,
            ..ProducerConfig::default()
        });
        let mut deliveries = Vec::new();
        for number in 0..300 {
            let record = Record {
                key: Some(format!("key {number}").into()),
                value: (number % 7 != 0).then(|| vec![b'v'; number * 10].into()),
                timestamp_ms: Some(i64::try_from(number).unwrap()),
                ..Record::default()
            };
            let record = record.with_header("h", "1").with_header("h", "2");
            sent.push(record.clone());
            deliveries.push(producer.send("mixed", record).await.unwrap());
        }
        for delivery in deliveries {
            delivery.await.unwrap();
        }
    }
    let found = read_all(&client, "mixed", StartAt::Earliest).await;
    assert_eq!(found.len(), sent.len());
    for partition in 0..3 {
        let belongs =
            |record: &&Record| partition_of_key(record.key.as_deref().unwrap(), 3) == partition;
        let expected = sent.iter().filter(belongs);
        let found = found.iter().filter(|record| record.partition == partition);
        for ((offset, expected), found) in (0_u64..).zip(expected).zip(found) {
            assert_eq!(found.offset, offset);
            assert_eq!((&found.key, &found.value), (&expected.key, &expected.value));
            assert_eq!(found.headers, expected.headers);
            assert_eq!(Some(found.timestamp_ms), expected.timestamp_ms);
        }
    }
    nodes.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_refused_says_why() {
    let nodes = Nodes::start(1).await;
    let client = nodes.client().await;
    let admin = client.admin();
    create(&client, "t", 1, 1).await;
    let request = |name: &str, replication| CreateTopicRequest {
        name: name.to_owned(),
        partitions: 1,
        replication,
        ..CreateTopicRequest::default()
    };
    for (request, code) in [
        (request("t", 1), ErrorCode::TopicExists),
        (request("no spaces", 1), ErrorCode::InvalidTopic),
        (request("wide", 3), ErrorCode::NotEnoughNodes),
    ] {
        let error = admin.create_topic(request).await.unwrap_err();
        assert_eq!(error.code(), Some(code), "{error}");
    }
    let error = client.producer().send("none", Record::new("v")).await;
    assert_eq!(error.unwrap_err().code(), Some(ErrorCode::UnknownTopic));

    let producer = client.producer_with(ProducerConfig {
        batch_bytes: 8 << 20,
        max_record_bytes: 8 << 20,
        ..ProducerConfig::default()
    });
    let large = producer.send("t", Record::new(vec![0; 2 << 20])).await;
    let error = large.unwrap().await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    let small = producer.send("t", Record::new("v")).await.unwrap();
    assert_eq!(small.await.unwrap().offset, 0, "the producer goes on");

    let beyond = client.consumer("t").start(StartAt::Offset(2));
    let error = beyond.open().await.unwrap().next().await.unwrap();
    let code = error.unwrap_err().code();
    assert_eq!(code, Some(ErrorCode::OffsetOutOfRange));
    nodes.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_topic_goes_and_comes_back_as_another() {
    let nodes = Nodes::start(1).await;
    let client = nodes.client().await;
    create(&client, "t", 2, 1).await;
    let publish = PublishRequest {
        topic: "t".to_owned(),
        partition: Some(1),
        value: Some("once".into()),
        ..PublishRequest::default()
    };
    let published = client.admin().publish(publish).await.unwrap();
    assert_eq!((published.partition, published.offset), (1, 0));
    let first = client.admin().describe_topic("t").await.unwrap();
    client.admin().delete_topic("t").await.unwrap();
    assert!(client.admin().list_topics(false).await.unwrap().is_empty());

    let fresh = nodes.client().await;
    create(&fresh, "t", 1, 1).await;
    let second = fresh.admin().describe_topic("t").await.unwrap();
    assert_ne!(first.id, second.id);
    assert!(read_all(&fresh, "t", StartAt::Earliest).await.is_empty());
    nodes.stop().await;
}

/// What was acknowledged is there, once, in order; returns how many there are.
fn check(acknowledged: &[(u64, u32, u64)], found: &[ConsumedRecord]) -> usize {
    let mut stored: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    for record in found {
        let partition = stored.entry(record.partition).or_default();
        partition.push((record.offset, number(record)));
    }
    for (partition, records) in &stored {
        let rising = |pair: &[(u64, u64)]| pair[0].0 < pair[1].0 && pair[0].1 < pair[1].1;
        let rises = records.windows(2).all(rising);
        assert!(rises, "partition {partition}: repeated or out of order");
    }
    for (number, partition, offset) in acknowledged {
        let records = &stored[partition];
        assert!(records.contains(&(*offset, *number)), "{number} is lost");
    }
    found.len()
}

/// Writes numbered records to two partitions until `done` ends, then says where each went.
async fn write_until(
    client: &Client,
    topic: &str,
    done: impl Future<Output = ()>,
) -> Vec<(u64, u32, u64)> {
    let producer = client.producer_with(ProducerConfig {
        linger: Duration::ZERO,
        batch_bytes: 2_000,
        memory_bytes: 100_000,
        max_record_bytes: 2_000,
        ..ProducerConfig::default()
    });
    let mut deliveries: Vec<(u64, Delivery)> = Vec::new();
    let mut done = std::pin::pin!(done);
    for number in 0_u64.. {
        let record = Record::new(number.to_string());
        let record = record.at_partition(u32::try_from(number % 2).unwrap());
        tokio::select! {
            biased;
            () = &mut done => break,
            delivery = producer.send(topic, record) => deliveries.push((number, delivery.unwrap())),
        }
        // However long it takes, what was written is read back and compared.
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    producer.close().await;
    let mut places = Vec::new();
    for (number, delivery) in deliveries {
        match delivery.await {
            Ok(place) => places.push((number, place.partition, place.offset)),
            Err(error) => assert!(matches!(error, Error::UnknownOutcome(_)), "{error:?}"),
        }
    }
    places
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leaders_handed_around_lose_duplicate_and_reorder_nothing() {
    let nodes = Nodes::start(3).await;
    let client = nodes.client().await;
    create(&client, "t", 2, 3).await;
    let consumer = client.consumer("t").start(StartAt::Earliest);
    let following = consumer.open().await.unwrap();
    let moving = async {
        for round in 0..12_u32 {
            let to = round % 3 + 1;
            for partition in 0..2 {
                // Refused where that node leads already, or is not ready to.
                let _ = client.admin().transfer("t", partition, to).await;
            }
            client.admin().await_leaders("t").await.unwrap();
        }
    };
    let writing = write_until(&client, "t", moving);
    let acknowledged = timeout(PATIENCE, writing).await.unwrap();
    assert!(acknowledged.len() > 100, "only {}", acknowledged.len());
    let found = read_all(&client, "t", StartAt::Earliest).await;
    let count = check(&acknowledged, &found);
    let followed = following.take(count).try_collect::<Vec<_>>();
    let followed = timeout(PATIENCE, followed).await.unwrap().unwrap();
    assert_eq!(check(&acknowledged, &followed), count);
    nodes.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_hands_over_and_loses_nothing() {
    let mut nodes = Nodes::start(3).await;
    let client = nodes.client().await;
    create(&client, "t", 2, 3).await;
    let stopping = async {
        nodes.stop_one(0).await;
        client.admin().await_leaders("t").await.unwrap();
        // Something after the change, in both partitions.
        for partition in 0..2 {
            let record = Record::new(u64::MAX.to_string()).at_partition(partition);
            let producer = client.producer();
            producer.send("t", record).await.unwrap().await.unwrap();
        }
    };
    let writing = write_until(&client, "t", stopping);
    let acknowledged = timeout(PATIENCE, writing).await.unwrap();
    assert!(acknowledged.len() > 100, "only {}", acknowledged.len());
    let mut found = read_all(&client, "t", StartAt::Earliest).await;
    let all = found.len();
    found.retain(|record| number(record) != u64::MAX);
    assert_eq!(all - found.len(), 2);
    check(&acknowledged, &found);
    nodes.stop().await;
}
