//! One small record at a time: what a lone device waits for its acknowledgement.

use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use tokio::time::{Instant, MissedTickBehavior};
use trilog_client::{Producer, ProducerConfig, Record};
use trilog_storage::bench;

use super::Setting;
use super::cluster::Cluster;
use super::produce::{histogram, note};
use super::report::{Figure, Report};
use super::storage::as_f64;

const TOPIC: &str = "lone";

/// Sends `count` records, one each `period`; returns the times to their answers. In a task, as a
/// program would: the thread that blocks on the runtime is woken through the kernel, twice.
async fn paced(
    producer: &Producer,
    period: Duration,
    count: u32,
) -> anyhow::Result<Histogram<u64>> {
    tokio::spawn(send_paced(producer.clone(), period, count)).await?
}

async fn send_paced(
    producer: Producer,
    period: Duration,
    count: u32,
) -> anyhow::Result<Histogram<u64>> {
    let mut times = histogram()?;
    let mut pace = tokio::time::interval(period);
    pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
    pace.tick().await;
    for _ in 0..count {
        pace.tick().await;
        let since = Instant::now();
        producer
            .send(TOPIC, Record::new(vec![b'x'; 100]))
            .await?
            .await?;
        note(&mut times, since);
    }
    Ok(times)
}

pub(super) async fn lone(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    for backend in &setting.backends {
        let io = format!("storage.io={}", backend.name());
        // Quiesce soon, so that many wakings are seen in a short time.
        let cluster = Cluster::start(setting, 3, &[&io, "raft.quiesce_after=1s"]).await?;
        cluster.topic(TOPIC, 1, 3).await?;
        let producer = cluster.client.producer_with(ProducerConfig {
            linger: Duration::ZERO,
            ..ProducerConfig::default()
        });
        paced(&producer, Duration::from_millis(100), 20).await?;
        let dir = setting.dir.clone();
        let bare = tokio::task::spawn_blocking(move || bench::synced_writes(&dir, 4096, 200));
        let bare = bare.await?.context("measuring bare synced writes")?;
        let dir = setting.dir.clone();
        let paced_bare = tokio::task::spawn_blocking(move || {
            bench::paced_writes(&dir, 4096, 30, Duration::from_millis(100))
        });
        let paced_bare = paced_bare.await?.context("measuring bare synced writes")?;
        let count = if setting.quick { 50 } else { 300 };
        let awake = paced(&producer, Duration::from_millis(100), count).await?;
        let woken = paced(&producer, Duration::from_secs(3), count / 15).await?;
        cluster.stop().await;

        let name = backend.name();
        let bare = as_f64(u64::try_from(bare.p50.as_micros()).unwrap_or(u64::MAX));
        let p50 = as_f64(awake.value_at_quantile(0.5));
        report.add(
            Figure::new("lone 100 B, ten a second, p50", p50, "us")
                .on(name)
                .beside("bare write and sync", bare)
                .at_most(2.0 * bare + 300.0)
                .note(format!(
                    "p99 {} us; the bare write at the same pace: {} us",
                    awake.value_at_quantile(0.99),
                    paced_bare.p50.as_micros()
                )),
        )?;
        let added = as_f64(woken.value_at_quantile(0.5)) - p50;
        report.add(
            Figure::new("waking an idle partition adds", added, "us")
                .on(name)
                .at_most(500.0),
        )?;
    }
    Ok(())
}
