//! Numbered records written while a cluster is ill-treated, and the check of what became of them.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::StreamExt;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use trilog_client::proto::CreateTopicRequest;
use trilog_client::{Client, Record, StartAt};

pub(crate) const PARTITIONS: u32 = 4;
/// A writer that is stopped goes on until it was told of so many.
const ENOUGH: usize = 100;
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// What one writer was told is committed: per partition, offsets by the number it wrote.
pub(crate) type Acknowledged = BTreeMap<u32, BTreeMap<u64, u64>>;

/// Creates a topic; zero replicas are as many as the cluster has nodes for.
pub(crate) async fn create(client: &Client, topic: &str, replication: u32) {
    let request = CreateTopicRequest {
        name: topic.to_owned(),
        partitions: PARTITIONS,
        replication,
        ..CreateTopicRequest::default()
    };
    client.admin().create_topic(request).await.unwrap();
    client.admin().await_leaders(topic).await.unwrap();
}

/// A writer that goes on until it is stopped.
pub(crate) struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Acknowledged>,
}

impl Writer {
    pub(crate) fn start(client: &Client, topic: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let task = tokio::spawn(write(client.clone(), topic, Arc::clone(&stop)));
        Self { stop, task }
    }

    /// What it was told is committed, once that is enough to say something.
    pub(crate) async fn stop(self) -> Acknowledged {
        self.stop.store(true, Ordering::Relaxed);
        timeout(PATIENCE, self.task).await.unwrap().unwrap()
    }
}

async fn write(client: Client, topic: &'static str, stop: Arc<AtomicBool>) -> Acknowledged {
    let producer = client.producer();
    let mut acknowledged = Acknowledged::new();
    let mut waiting = Vec::new();
    let mut number = 0_u64;
    let enough = |told: &Acknowledged| told.values().map(BTreeMap::len).sum::<usize>() > ENOUGH;
    while !stop.load(Ordering::Relaxed) || !enough(&acknowledged) {
        let partition = u32::try_from(number).unwrap_or(0) % PARTITIONS;
        let record = Record::new(number.to_be_bytes().to_vec()).at_partition(partition);
        if let Ok(delivery) = producer.send(topic, record).await {
            waiting.push((number, delivery));
        }
        number += 1;
        if waiting.len() >= 64 {
            collect(&mut waiting, &mut acknowledged).await;
        }
    }
    collect(&mut waiting, &mut acknowledged).await;
    acknowledged
}

async fn collect(
    waiting: &mut Vec<(u64, trilog_client::Delivery)>,
    acknowledged: &mut Acknowledged,
) {
    for (number, delivery) in waiting.drain(..) {
        // A failed delivery is an outcome too: it then simply counts as not acknowledged.
        if let Ok(place) = delivery.await {
            acknowledged
                .entry(place.partition)
                .or_default()
                .insert(number, place.offset);
        }
    }
}

/// Everything there is: per partition, numbers by offset.
async fn read_all(client: &Client, topic: &str) -> BTreeMap<u32, Vec<(u64, u64)>> {
    let consumer = client
        .consumer(topic)
        .start(StartAt::Earliest)
        .follow(false);
    let mut records = consumer.open().await.unwrap();
    let mut found: BTreeMap<u32, Vec<(u64, u64)>> = BTreeMap::new();
    while let Some(record) = records.next().await {
        let record = record.unwrap();
        let number = u64::from_be_bytes(record.value.unwrap().as_ref().try_into().unwrap());
        found
            .entry(record.partition)
            .or_default()
            .push((record.offset, number));
    }
    found
}

/// Every acknowledged number stands at its offset; nothing stands twice; numbers rise.
pub(crate) async fn check(client: &Client, topic: &str, acknowledged: &Acknowledged) {
    let found = timeout(PATIENCE, read_all(client, topic)).await.unwrap();
    for (partition, records) in &found {
        for pair in records.windows(2) {
            assert!(
                pair[0].0 < pair[1].0,
                "partition {partition}: offsets {pair:?}"
            );
            assert!(
                pair[0].1 < pair[1].1,
                "partition {partition}: order or a repeat: {pair:?}"
            );
        }
    }
    for (partition, numbers) in acknowledged {
        let stored: BTreeMap<u64, u64> = found
            .get(partition)
            .into_iter()
            .flatten()
            .map(|(at, number)| (*number, *at))
            .collect();
        for (number, offset) in numbers {
            assert_eq!(
                stored.get(number),
                Some(offset),
                "partition {partition}, record {number}"
            );
        }
    }
}

/// Waits until a record written from now on is acknowledged in every partition.
pub(crate) async fn await_writes(client: &Client, topic: &str) {
    let deadline = Instant::now() + PATIENCE;
    let producer = client.producer();
    for partition in 0..PARTITIONS {
        loop {
            let record = Record::new(u64::MAX.to_be_bytes().to_vec()).at_partition(partition);
            if let Ok(delivery) = producer.send(topic, record).await
                && delivery.await.is_ok()
            {
                break;
            }
            assert!(
                Instant::now() < deadline,
                "partition {partition} takes no writes"
            );
        }
    }
}
