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

/// How often a lone record comes.
const OFTEN: Duration = Duration::from_millis(100);
/// How often one comes where a group may have gone to sleep between two, after `ASLEEP_AFTER`.
const SELDOM: Duration = Duration::from_secs(2);
const ASLEEP_AFTER: &str = "raft.quiesce_after=1s";
const NEVER_ASLEEP: &str = "raft.quiesce_after=1h";

pub(super) async fn lone(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    for backend in &setting.backends {
        let name = backend.name();
        let count = if setting.quick { 60 } else { 300 };
        let seldom = count / 10;
        let (cluster, producer) = lone_producer(setting, name, NEVER_ASLEEP).await?;
        let bare = Bare::measured(setting, count / 5).await?;
        let often = paced(&producer, OFTEN, count).await?;
        let awake = paced(&producer, SELDOM, seldom).await?;
        cluster.stop().await;
        let (cluster, producer) = lone_producer(setting, name, ASLEEP_AFTER).await?;
        let woken = paced(&producer, SELDOM, seldom).await?;
        cluster.stop().await;

        let p50 = median(&often);
        report.add(
            Figure::new("lone 100 B, ten a second, p50", p50, "us")
                .on(name)
                .beside("bare write and sync as often", bare.paced)
                .at_most(2.0 * bare.paced + 300.0)
                .note(format!("p99 {} us", often.value_at_quantile(0.99)))
                .note(format!(
                    "the bare write and sync without a pause: {} us",
                    bare.unpaced
                )),
        )?;
        let (awake, woken) = (median(&awake), median(&woken));
        report.add(
            Figure::new("waking an idle partition adds", woken - awake, "us")
                .on(name)
                .at_most(500.0)
                .note(format!(
                    "every two seconds, p50: {awake} us awake, {woken} us asleep"
                )),
        )?;
    }
    Ok(())
}

/// A cluster with a partition that was just written to, and who writes to it without lingering.
async fn lone_producer(
    setting: &Setting,
    io: &str,
    sleep: &str,
) -> anyhow::Result<(Cluster, Producer)> {
    let io = format!("storage.io={io}");
    let cluster = Cluster::start(setting, 3, &[&io, sleep]).await?;
    cluster.topic(TOPIC, 1, 3).await?;
    let producer = cluster.client.producer_with(ProducerConfig {
        linger: Duration::ZERO,
        ..ProducerConfig::default()
    });
    paced(&producer, OFTEN, 20).await?;
    Ok((cluster, producer))
}

/// What the disk takes for one bare write and sync of 4 KiB: medians, in microseconds. At rest it
/// takes several times as long as in a loop, so a record that comes alone is held against the former.
struct Bare {
    paced: f64,
    unpaced: f64,
}

impl Bare {
    async fn measured(setting: &Setting, paced: u32) -> anyhow::Result<Self> {
        let dir = setting.dir.clone();
        let measured = move || -> std::io::Result<_> {
            let unpaced = bench::synced_writes(&dir, 4096, 200)?;
            Ok((bench::paced_writes(&dir, 4096, paced, OFTEN)?, unpaced))
        };
        let (paced, unpaced) = tokio::task::spawn_blocking(measured)
            .await?
            .context("measuring bare synced writes")?;
        let micros = |time: Duration| as_f64(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        Ok(Self {
            paced: micros(paced.p50),
            unpaced: micros(unpaced.p50),
        })
    }
}

fn median(times: &Histogram<u64>) -> f64 {
    as_f64(times.value_at_quantile(0.5))
}
