//! Producing to three nodes: as much as goes through, and as many as go through.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::anyhow;
use bytes::Bytes;
use hdrhistogram::Histogram;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use trilog_client::{Client, Delivery, Producer, ProducerConfig, Record};

use super::Setting;
use super::cluster::Cluster;
use super::report::{Figure, Report};
use super::storage::{as_f64, megabytes, raw_write};

const TOPIC: &str = "bench";
const GIB: u64 = 1 << 30;
const PRODUCERS: u32 = 8;
const RECORD_BYTES: usize = 1024;

/// Latencies in microseconds, up to a minute.
pub(super) fn histogram() -> anyhow::Result<Histogram<u64>> {
    Ok(Histogram::new_with_bounds(1, 60_000_000, 3)?)
}

pub(super) fn note(histogram: &mut Histogram<u64>, since: Instant) {
    let micros = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
    histogram.saturating_record(micros);
}

/// Sends records of 1 KiB until `left` is used up; returns the times from sending to answer.
async fn produce(
    producer: Producer,
    partition: u32,
    left: Arc<AtomicU64>,
) -> anyhow::Result<Histogram<u64>> {
    let (sent, mut answers) = mpsc::channel::<(Instant, Delivery)>(64 << 10);
    let collect = async {
        let mut times = histogram()?;
        while let Some((since, delivery)) = answers.recv().await {
            delivery.await?;
            note(&mut times, since);
        }
        anyhow::Ok(times)
    };
    // The producer outlives its last answer: dropped earlier, it would give up what waits.
    let producer = &producer;
    let send = async move {
        let value = Bytes::from(vec![b'x'; RECORD_BYTES]);
        let take = || {
            let taken = left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
                left.checked_sub(1)
            });
            taken.is_ok()
        };
        while take() {
            let record = Record::new(value.clone()).at_partition(partition);
            let delivery = producer.send(TOPIC, record).await?;
            if sent.send((Instant::now(), delivery)).await.is_err() {
                break;
            }
        }
        anyhow::Ok(())
    };
    let (times, ()) = tokio::try_join!(collect, send)?;
    Ok(times)
}

fn producer(client: &Client) -> Producer {
    client.producer_with(ProducerConfig {
        batch_bytes: 64 << 10,
        memory_bytes: 4 << 20,
        delivery_timeout: Duration::from_mins(5),
        ..ProducerConfig::default()
    })
}

/// Runs all producers at once, `bytes` in all.
pub(super) async fn fill(client: &Client, bytes: u64) -> anyhow::Result<Histogram<u64>> {
    let left = Arc::new(AtomicU64::new(bytes / RECORD_BYTES as u64));
    let mut producers = JoinSet::new();
    for partition in 0..PRODUCERS {
        producers.spawn(produce(producer(client), partition, Arc::clone(&left)));
    }
    let mut times = histogram()?;
    while let Some(ended) = producers.join_next().await {
        times.add(ended??).map_err(|error| anyhow!("{error}"))?;
    }
    Ok(times)
}

/// Nodes that take as much as goes through, each record on all of them.
pub(super) struct Nodes {
    pub(super) count: u32,
    pub(super) title: &'static str,
    /// Of the raw write, what they and their clients should reach on one machine.
    pub(super) share: f64,
}

pub(super) const THREE: Nodes = Nodes {
    count: 3,
    title: "three nodes, 8 producers, 1 KiB",
    share: 0.12,
};
pub(super) const ONE: Nodes = Nodes {
    count: 1,
    title: "one node, 8 producers, 1 KiB",
    share: 0.40,
};

pub(super) async fn throughput(
    nodes: &Nodes,
    setting: &Setting,
    report: &mut Report,
) -> anyhow::Result<()> {
    for backend in &setting.backends {
        let io = format!("storage.io={}", backend.name());
        let cluster = Cluster::start(setting, nodes.count, &[&io]).await?;
        cluster.topic(TOPIC, PRODUCERS, nodes.count).await?;
        fill(&cluster.client, setting.scaled(GIB)).await?;
        let raw = raw_write(setting).await?;
        let before = cluster.usage().await?;
        let begun = Instant::now();
        let bytes = setting.scaled(8 * GIB);
        let times = fill(&cluster.client, bytes).await?;
        let seconds = begun.elapsed().as_secs_f64();
        let after = cluster.usage().await?;
        cluster.stop().await;

        let name = backend.name();
        let figure = Figure::new(nodes.title, megabytes(bytes) / seconds, "MB/s");
        report.add(
            figure
                .on(name)
                .beside("raw write", raw.megabytes_per_second())
                .at_least_share(nodes.share),
        )?;
        report.add(quantile("ack, p50", &times, 0.50).on(name))?;
        report.add(quantile("ack, p99", &times, 0.99).on(name))?;
        let cpu = (after.cpu_seconds - before.cpu_seconds) / f64::from(nodes.count);
        let cpu = cpu / (megabytes(bytes) / 1e3);
        report.add(Figure::new("processor, per node", cpu, "s/GB").on(name))?;
    }
    Ok(())
}

/// A quantile in milliseconds.
fn quantile(name: &str, times: &Histogram<u64>, quantile: f64) -> Figure {
    let micros = times.value_at_quantile(quantile);
    Figure::new(name, as_f64(micros) / 1e3, "ms")
}

/// Many small records, each of whose senders waits for its answer.
pub(super) async fn small(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    const TASKS: u64 = 256;
    let cluster = Cluster::start(setting, 3, &[]).await?;
    cluster.topic(TOPIC, 1, 3).await?;
    let producer = cluster.client.producer_with(ProducerConfig {
        linger: Duration::ZERO,
        ..ProducerConfig::default()
    });
    let mut speed = 0.0;
    let mut times = histogram()?;
    // The first round warms up.
    for seconds in [2, if setting.quick { 3 } else { 15 }] {
        let (begun, until) = (
            Instant::now(),
            Instant::now() + Duration::from_secs(seconds),
        );
        let mut tasks = JoinSet::new();
        for _ in 0..TASKS {
            let producer = producer.clone();
            tasks.spawn(async move {
                let value = Bytes::from(vec![b'x'; 100]);
                let mut times = histogram()?;
                while Instant::now() < until {
                    let since = Instant::now();
                    producer
                        .send(TOPIC, Record::new(value.clone()))
                        .await?
                        .await?;
                    note(&mut times, since);
                }
                anyhow::Ok(times)
            });
        }
        times.reset();
        while let Some(ended) = tasks.join_next().await {
            times.add(ended??).map_err(|error| anyhow!("{error}"))?;
        }
        speed = as_f64(times.len()) / begun.elapsed().as_secs_f64();
    }
    cluster.stop().await;
    report.add(
        Figure::new("100 B, 256 tasks waiting, 1 partition", speed, "/s")
            .at_least(150_000.0)
            .note(format!(
                "half of them answered in {} us",
                times.value_at_quantile(0.5)
            )),
    )
}
