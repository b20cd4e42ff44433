//! The consumer against nodes that break streams, move leaders, trim and damage.

#![expect(clippy::unwrap_used, reason = "what fails in a test fails the test")]

use std::time::Duration;

use futures::{FutureExt, StreamExt, TryStreamExt};
use trilog_client::proto::ErrorCode;
use trilog_client::testkit::{FakeCluster, Faults};
use trilog_client::{
    BackoffConfig, Client, ClientConfig, ConsumedRecord, ConsumerConfig, Error, OutOfRange,
    ProducerConfig, Record, StartAt, Timestamp,
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

/// Writes records `from..to` to partition 0 in batches of ten, one second apart.
async fn write(client: &Client, from: u64, to: u64) {
    let producer = client.producer_with(ProducerConfig {
        linger: Duration::from_mins(10),
        ..ProducerConfig::default()
    });
    for number in from..to {
        let record = Record::new(number.to_string())
            .at_partition(0)
            .at_time(i64::try_from(number).unwrap() * 1_000);
        drop(producer.send("t", record).await.unwrap());
        if number % 10 == 9 {
            producer.flush().await;
        }
    }
    producer.close().await;
}

fn number(record: &ConsumedRecord) -> u64 {
    let value = record.value.as_deref().unwrap();
    std::str::from_utf8(value).unwrap().parse().unwrap()
}

async fn read(client: &Client, start: StartAt) -> Result<Vec<u64>, Error> {
    let consumer = client.consumer("t").start(start).follow(false);
    let records: Vec<_> = consumer.open().await?.try_collect().await?;
    Ok(records.iter().map(number).collect())
}

#[tokio::test]
async fn every_start_gives_exactly_the_records_from_there_on() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let client = client(&cluster).await;
    write(&client, 0, 100).await;
    let consumer = client.consumer("t").start(StartAt::Offset(40)).open().await;
    let fortieth = consumer.unwrap().next().await.unwrap().unwrap();
    let beyond = Timestamp(fortieth.append_time.nanos() + 1);
    for (start, first) in [
        (StartAt::Earliest, 0),
        (StartAt::Latest, 100),
        (StartAt::Offset(0), 0),
        (StartAt::Offset(37), 37),
        (StartAt::Offset(100), 100),
        (StartAt::Last(3), 97),
        (StartAt::Last(1_000), 0),
        (StartAt::RecordTime(54_999), 55),
        (StartAt::RecordTime(1 << 40), 100),
        (StartAt::AppendTime(fortieth.append_time), 40),
        (StartAt::AppendTime(beyond), 50),
    ] {
        let expected: Vec<u64> = (first..100).collect();
        assert_eq!(read(&client, start).await.unwrap(), expected, "{start:?}");
    }
}

#[tokio::test]
async fn a_follower_sees_what_comes_later() {
    let cluster = FakeCluster::start(2, &[("t", 1)]).await;
    let client = client(&cluster).await;
    write(&client, 0, 10).await;
    let mut consumer = client.consumer("t").open().await.unwrap();
    assert!(consumer.next().now_or_never().is_none());
    write(&client, 10, 20).await;
    for expected in 10..20 {
        let record = consumer.next().await.unwrap().unwrap();
        assert_eq!((record.offset, number(&record)), (expected, expected));
        assert_eq!(
            record.timestamp_ms,
            i64::try_from(expected).unwrap() * 1_000
        );
    }
}

#[tokio::test]
async fn broken_streams_and_wandering_leaders_lose_and_repeat_nothing() {
    const RECORDS: u64 = 600;
    for seed in 0..4 {
        let cluster = FakeCluster::start(3, &[("t", 3)]).await;
        let faults = Faults {
            break_fetch: 150,
            move_leader: 50,
            ..Faults::default()
        };
        cluster.set_faults(faults, seed);
        let client = client(&cluster).await;
        let config = ConsumerConfig {
            max_bytes: 300,
            ..ConsumerConfig::default()
        };
        let consumer = client.consumer("t").start(StartAt::Earliest);
        let mut consumer = consumer.config(config).open().await.unwrap();
        let producing = async {
            let producer = client.producer_with(ProducerConfig {
                linger: Duration::ZERO,
                batch_bytes: 100,
                ..ProducerConfig::default()
            });
            for number in 0..RECORDS {
                let partition = u32::try_from(number % 3).unwrap();
                let record = Record::new(number.to_string()).at_partition(partition);
                drop(producer.send("t", record).await.unwrap());
            }
            producer.close().await;
        };
        let consuming = async {
            let mut next = [0_u64; 3];
            for _ in 0..RECORDS {
                let record = consumer.next().await.unwrap().unwrap();
                let partition = u64::from(record.partition);
                let nth = &mut next[usize::try_from(partition).unwrap()];
                assert_eq!(record.offset, *nth, "seed {seed}");
                assert_eq!(number(&record), *nth * 3 + partition);
                *nth += 1;
            }
        };
        let both = async { tokio::join!(producing, consuming) };
        tokio::time::timeout(DEADLINE, both).await.unwrap();
        assert!(cluster.injected() > 10, "the faults were real");
    }
}

#[tokio::test]
async fn the_end_of_a_bounded_read_is_where_it_was_at_first() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let client = client(&cluster).await;
    write(&client, 0, 30).await;
    let config = ConsumerConfig {
        follow: false,
        max_bytes: 1,
        ..ConsumerConfig::default()
    };
    let consumer = client.consumer("t").start(StartAt::Earliest).config(config);
    let mut consumer = consumer.open().await.unwrap();
    let first = consumer.next().await.unwrap().unwrap();
    assert_eq!(number(&first), 0);
    write(&client, 30, 60).await;
    // The stream breaks, and the next one begins with a later end.
    cluster.set_leader("t", 0, 0);
    cluster.set_leader("t", 0, 1);
    let rest: Vec<_> = consumer.try_collect().await.unwrap();
    assert_eq!(
        rest.iter().map(number).collect::<Vec<_>>(),
        (1..30).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn removed_offsets_are_stepped_over() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let client = client(&cluster).await;
    write(&client, 0, 10).await;
    cluster.skip_offsets("t", 0, 5);
    write(&client, 10, 20).await;
    let consumer = client.consumer("t").start(StartAt::Earliest).follow(false);
    let records: Vec<_> = consumer.open().await.unwrap().try_collect().await.unwrap();
    let offsets: Vec<_> = records.iter().map(|record| record.offset).collect();
    assert_eq!(offsets, (0..10).chain(15..25).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_trimmed_start_is_an_error_unless_told_otherwise() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let client = client(&cluster).await;
    write(&client, 0, 50).await;
    cluster.set_log_start("t", 0, 20);
    let error = read(&client, StartAt::Offset(3)).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::OffsetOutOfRange));
    for (out_of_range, first) in [(OutOfRange::Earliest, 20), (OutOfRange::Latest, 50)] {
        let config = ConsumerConfig {
            follow: false,
            out_of_range,
            ..ConsumerConfig::default()
        };
        let consumer = client
            .consumer("t")
            .start(StartAt::Offset(3))
            .config(config);
        let records: Vec<_> = consumer.open().await.unwrap().try_collect().await.unwrap();
        let numbers: Vec<_> = records.iter().map(number).collect();
        assert_eq!(numbers, (first..50).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn damaged_records_are_reported_and_not_given_out() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let client = client(&cluster).await;
    write(&client, 0, 30).await;
    cluster.damage("t", 0, 1);
    let consumer = client.consumer("t").start(StartAt::Earliest).follow(false);
    let records: Vec<_> = consumer.open().await.unwrap().collect().await;
    assert_eq!(
        records.iter().flatten().map(number).collect::<Vec<_>>(),
        (0..10).collect::<Vec<_>>()
    );
    let Some(Err(Error::Damaged { offset, .. })) = records.last() else {
        panic!("{:?}", records.last());
    };
    assert_eq!(*offset, 10);
}

#[tokio::test]
async fn a_silent_stream_is_kept_alive_by_empty_responses() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let client = client(&cluster).await;
    let config = ConsumerConfig {
        max_wait: Duration::from_millis(5),
        ..ConsumerConfig::default()
    };
    let consumer = client.consumer("t").config(config);
    let mut consumer = consumer.open().await.unwrap();
    let idle = tokio::time::timeout(Duration::from_millis(60), consumer.next());
    assert!(idle.await.is_err(), "nothing comes, and nothing ends");
    write(&client, 0, 1).await;
    assert_eq!(number(&consumer.next().await.unwrap().unwrap()), 0);
}

#[tokio::test]
async fn partitions_can_be_picked() {
    let cluster = FakeCluster::start(2, &[("t", 3)]).await;
    let client = client(&cluster).await;
    let producer = client.producer();
    for partition in 0..3 {
        let record = Record::new(partition.to_string()).at_partition(partition);
        producer.send("t", record).await.unwrap().await.unwrap();
    }
    let consumer = client
        .consumer("t")
        .partitions([0, 2])
        .start(StartAt::Earliest);
    let records: Vec<_> = consumer
        .follow(false)
        .open()
        .await
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    let mut numbers: Vec<_> = records.iter().map(number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 2]);
    let error = client
        .consumer("t")
        .partitions([3])
        .open()
        .await
        .unwrap_err();
    assert!(matches!(error, Error::NoSuchPartition { .. }), "{error:?}");
}

#[tokio::test]
async fn keys_headers_and_tombstones_come_back_as_they_were_sent() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let client = client(&cluster).await;
    let record = Record {
        key: Some("k".into()),
        timestamp_ms: Some(77),
        headers: vec![("h".into(), None)],
        ..Record::default()
    };
    let record = record.with_header("h", "1").with_header("h", "2");
    let headers = record.headers.clone();
    let producer = client.producer();
    producer.send("t", record).await.unwrap().await.unwrap();
    let consumer = client.consumer("t").start(StartAt::Earliest);
    let read = consumer
        .open()
        .await
        .unwrap()
        .next()
        .await
        .unwrap()
        .unwrap();
    assert_eq!(read.key.as_deref(), Some(&b"k"[..]));
    assert_eq!(read.value, None);
    assert_eq!(read.timestamp_ms, 77);
    assert_eq!(read.headers, headers);
}

#[tokio::test]
async fn a_topic_created_anew_is_not_taken_for_the_old_one() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let client = client(&cluster).await;
    write(&client, 0, 10).await;
    let consumer = client.consumer("t").start(StartAt::Earliest);
    let mut consumer = consumer.open().await.unwrap();
    for _ in 0..10 {
        consumer.next().await.unwrap().unwrap();
    }
    cluster.create_anew("t", 1);
    let error = consumer.next().await.unwrap().unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::TopicReplaced));
    assert!(consumer.next().await.is_none());
}

/// The stream of somebody who writes meanwhile, say.
#[tokio::test]
async fn a_consumer_that_is_not_polled_holds_up_nobody_else() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let client = client(&cluster).await;
    let consumer = client.consumer("t").start(StartAt::Earliest);
    let mut opening = Box::pin(consumer.open());
    assert!(opening.as_mut().now_or_never().is_none(), "asks");
    let producer = client.producer();
    let sending = async { producer.send("t", Record::new("1")).await?.await };
    let sent = tokio::time::timeout(DEADLINE / 2, sending).await;
    assert_eq!(
        sent.expect("the producer waits for the consumer")
            .unwrap()
            .offset,
        0
    );
    let mut records = opening.await.unwrap();
    assert_eq!(number(&records.next().await.unwrap().unwrap()), 1);
}
