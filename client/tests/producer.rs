//! The producer against nodes that keep what they are given and misbehave on request.

#![expect(clippy::unwrap_used, reason = "what fails in a test fails the test")]

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use trilog_client::proto::ErrorCode;
use trilog_client::testkit::{FakeCluster, Faults};
use trilog_client::{
    BackoffConfig, Client, ClientConfig, Compression, Error, ProducerConfig, Record,
    partition_of_key,
};

const DEADLINE: Duration = Duration::from_mins(1);

async fn client(cluster: &FakeCluster) -> Client {
    let config = ClientConfig {
        seeds: cluster.addresses(),
        backoff: BackoffConfig {
            min: Duration::from_millis(1),
            max: Duration::from_millis(5),
        },
        seed: Some(1),
        ..ClientConfig::default()
    };
    Client::connect_with(config).await.unwrap()
}

/// Batches of a few small records, so that many are under way.
fn small_batches() -> ProducerConfig {
    ProducerConfig {
        linger: Duration::ZERO,
        batch_bytes: 400,
        ..ProducerConfig::default()
    }
}

fn text(value: &Bytes) -> &str {
    std::str::from_utf8(value).unwrap()
}

/// Sends numbered records through a misbehaving cluster and compares what it kept with them.
async fn survive(seed: u64, faults: Faults, compression: Compression) {
    const PARTITIONS: u32 = 3;
    const RECORDS: u64 = 1_500;
    let cluster = FakeCluster::start(3, &[("t", PARTITIONS)]).await;
    cluster.set_faults(faults, seed);
    let producer = client(&cluster).await.producer_with(ProducerConfig {
        compression,
        ..small_batches()
    });
    let mut deliveries = Vec::new();
    for number in 0..RECORDS {
        let partition = u32::try_from(number % u64::from(PARTITIONS)).unwrap();
        let record = Record::new(number.to_string()).at_partition(partition);
        deliveries.push((number, producer.send("t", record).await.unwrap()));
    }
    producer.close().await;

    let kept: Vec<_> = (0..3)
        .map(|partition| cluster.values("t", partition))
        .collect();
    for (number, delivery) in deliveries {
        let place = delivery.await.unwrap();
        let partition = usize::try_from(place.partition).unwrap();
        let nth = usize::try_from(number / u64::from(PARTITIONS)).unwrap();
        let (offset, value) = &kept[partition][nth];
        assert_eq!((text(value), *offset), (&*number.to_string(), place.offset));
    }
    let total: usize = kept.iter().map(Vec::len).sum();
    assert_eq!(total, usize::try_from(RECORDS).unwrap(), "seed {seed}");
    assert!(cluster.injected() > 10, "the faults were real");
}

#[tokio::test]
async fn nothing_is_lost_duplicated_or_reordered_whatever_goes_wrong() {
    for seed in 0..6 {
        let run = survive(seed, Faults::all(60), Compression::None);
        tokio::time::timeout(DEADLINE, run).await.unwrap();
    }
}

#[tokio::test]
async fn lost_answers_alone_duplicate_nothing() {
    let faults = Faults {
        lose_answer: 200,
        unsure: 100,
        ..Faults::default()
    };
    for (seed, compression) in [(1, Compression::Lz4), (2, Compression::Zstd)] {
        let run = survive(seed, faults, compression);
        tokio::time::timeout(DEADLINE, run).await.unwrap();
    }
}

#[tokio::test]
async fn a_leader_that_wanders_reorders_nothing() {
    let faults = Faults {
        move_leader: 200,
        refuse: 100,
        ..Faults::default()
    };
    let run = survive(3, faults, Compression::None);
    tokio::time::timeout(DEADLINE, run).await.unwrap();
}

#[tokio::test]
async fn a_key_has_the_partition_that_javas_client_would_choose() {
    let cluster = FakeCluster::start(2, &[("t", 7)]).await;
    let producer = client(&cluster).await.producer();
    for key in ["", "a", "orders", "some longer key"] {
        let record = Record::new("v").with_key(key);
        let place = producer.send("t", record).await.unwrap().await.unwrap();
        assert_eq!(place.partition, partition_of_key(key.as_bytes(), 7));
    }
}

#[tokio::test]
async fn records_gather_in_batches_while_they_linger() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let producer = client(&cluster).await.producer_with(ProducerConfig {
        linger: Duration::from_mins(10),
        ..ProducerConfig::default()
    });
    let mut deliveries = Vec::new();
    for number in 0..500 {
        let record = Record::new(format!("{number}"));
        deliveries.push(producer.send("t", record).await.unwrap());
    }
    producer.flush().await;
    assert_eq!(cluster.batch_count("t", 0), 1);
    for (number, delivery) in (0..).zip(deliveries) {
        assert_eq!(delivery.await.unwrap().offset, number);
    }
}

#[tokio::test]
async fn full_memory_makes_send_wait_until_something_is_answered() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    cluster.set_leader("t", 0, 0);
    let producer = client(&cluster).await.producer_with(ProducerConfig {
        memory_bytes: 10_000,
        max_record_bytes: 5_000,
        ..small_batches()
    });
    let record = || Record::new(vec![b'x'; 1_000]);
    let mut deliveries = Vec::new();
    let waiting = loop {
        let mut send = Box::pin(producer.send("t", record()));
        match send.as_mut().now_or_never() {
            Some(delivery) => deliveries.push(delivery.unwrap()),
            None if deliveries.is_empty() => deliveries.push(send.await.unwrap()),
            None => break send,
        }
    };
    assert!((5..10).contains(&deliveries.len()), "{}", deliveries.len());
    cluster.set_leader("t", 0, 1);
    deliveries.push(waiting.await.unwrap());
    for (number, delivery) in (0..).zip(deliveries) {
        assert_eq!(delivery.await.unwrap().offset, number);
    }
}

#[tokio::test]
async fn a_record_that_cannot_be_sent_in_time_was_certainly_not_written() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    cluster.set_leader("t", 0, 0);
    let producer = client(&cluster).await.producer_with(ProducerConfig {
        delivery_timeout: Duration::from_millis(50),
        ..small_batches()
    });
    let delivery = producer.send("t", Record::new("v")).await.unwrap();
    let error = delivery.await.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    assert!(!error.may_have_happened());

    cluster.set_leader("t", 0, 1);
    let delivery = producer.send("t", Record::new("w")).await.unwrap();
    assert_eq!(delivery.await.unwrap().offset, 0, "the lane goes on");
}

#[tokio::test]
async fn a_full_disk_is_tried_again_in_the_time_allowed_and_then_told() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let full = Faults {
        disk_full: 1_000,
        ..Faults::default()
    };
    cluster.set_faults(full, 1);
    let producer = client(&cluster).await.producer_with(ProducerConfig {
        delivery_timeout: Duration::from_millis(50),
        ..small_batches()
    });
    let delivery = producer.send("t", Record::new("v")).await.unwrap();
    let error = delivery.await.unwrap_err();
    assert!(matches!(error, Error::Timeout(_)), "{error:?}");
    assert!(error.to_string().contains("the disk is full"), "{error}");

    let producer = client(&cluster).await.producer_with(small_batches());
    let delivery = producer.send("t", Record::new("w")).await.unwrap();
    cluster.set_faults(Faults::default(), 1);
    assert_eq!(delivery.await.unwrap().offset, 0, "there is room again");
}

#[tokio::test]
async fn what_stays_unknown_is_said_to_be_unknown() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let faults = Faults {
        unsure: 1_000,
        ..Faults::default()
    };
    cluster.set_faults(faults, 1);
    let producer = client(&cluster).await.producer_with(ProducerConfig {
        delivery_timeout: Duration::from_millis(50),
        ..small_batches()
    });
    let delivery = producer.send("t", Record::new("v")).await.unwrap();
    let error = delivery.await.unwrap_err();
    assert!(matches!(error, Error::UnknownOutcome(_)), "{error:?}");
    assert!(cluster.values("t", 0).len() <= 1);
}

#[tokio::test]
async fn what_can_never_be_written_is_refused_at_once() {
    let cluster = FakeCluster::start(1, &[("t", 2)]).await;
    let producer = client(&cluster).await.producer();
    let huge = Record::new(vec![0; 1_000_001]);
    let error = producer.send("t", huge).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");

    // Within this producer's own limit, beyond that of the nodes.
    let config = ProducerConfig {
        max_record_bytes: 8 << 20,
        ..ProducerConfig::default()
    };
    let daring = client(&cluster).await.producer_with(config);
    let huge = Record::new(vec![0; 2 << 20]).at_partition(0);
    let delivery = daring.send("t", huge).await.unwrap();
    let error = delivery.await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { .. }), "{error:?}");
    let small = Record::new("v").at_partition(0);
    let delivery = daring.send("t", small).await.unwrap();
    assert_eq!(delivery.await.unwrap().offset, 0, "the lane goes on");

    let error = producer.send("none", Record::new("v")).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic));
    assert_eq!(error.to_string(), "no topic 'none' (create it first)");

    let record = Record::new("v").at_partition(2);
    let error = producer.send("t", record).await.unwrap_err();
    assert!(matches!(error, Error::NoSuchPartition { .. }), "{error:?}");
}

#[tokio::test]
async fn a_deleted_topic_fails_its_records_and_no_others() {
    let cluster = FakeCluster::start(1, &[("gone", 1), ("t", 1)]).await;
    let client = client(&cluster).await;
    let producer = client.producer_with(small_batches());
    let delivery = producer.send("gone", Record::new("1")).await.unwrap();
    delivery.await.unwrap();
    client.admin().delete_topic("gone").await.unwrap();
    let delivery = producer.send("gone", Record::new("2")).await.unwrap();
    let error = delivery.await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic), "{error:?}");
    let delivery = producer.send("t", Record::new("3")).await.unwrap();
    assert_eq!(delivery.await.unwrap().offset, 0);
}

#[tokio::test]
async fn records_never_cross_into_a_topic_created_anew_under_the_name() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let client = client(&cluster).await;
    let producer = client.producer_with(small_batches());
    let delivery = producer.send("t", Record::new("old")).await.unwrap();
    assert_eq!(delivery.await.unwrap().offset, 0);
    cluster.create_anew("t", 1);
    // Accepted for the topic that was, as far as this client knows.
    let delivery = producer.send("t", Record::new("late")).await.unwrap();
    let error = delivery.await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::TopicReplaced), "{error:?}");
    // From then on it knows better.
    let delivery = producer.send("t", Record::new("new")).await.unwrap();
    assert_eq!(delivery.await.unwrap().offset, 0);
    producer.close().await;
    let values = cluster.values("t", 0);
    assert_eq!(values.len(), 1);
    assert_eq!(text(&values[0].1), "new");
}

#[tokio::test]
async fn the_death_of_a_leader_is_survived() {
    let cluster = FakeCluster::start(3, &[("t", 1)]).await;
    let producer = client(&cluster).await.producer_with(small_batches());
    let first = producer.send("t", Record::new("1")).await.unwrap();
    first.await.unwrap();
    cluster.stop_node(1);
    let second = producer.send("t", Record::new("2")).await.unwrap();
    cluster.set_leader("t", 0, 2);
    let second = tokio::time::timeout(DEADLINE, second).await.unwrap();
    assert_eq!(second.unwrap().offset, 1);
}

#[tokio::test]
async fn a_closed_producer_accepts_nothing_and_a_dropped_one_tells_so() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let client = client(&cluster).await;
    let producer = client.producer();
    let clone = producer.clone();
    let delivery = producer.send("t", Record::new("1")).await.unwrap();
    producer.close().await;
    assert_eq!(delivery.await.unwrap().offset, 0);
    let error = clone.send("t", Record::new("2")).await.unwrap_err();
    assert_eq!(error, Error::Closed);

    cluster.set_leader("t", 0, 0);
    let producer = client.producer();
    let delivery = producer.send("t", Record::new("3")).await.unwrap();
    drop(producer);
    assert_eq!(delivery.await.unwrap_err(), Error::Closed);
}
