//! Faults: how long a dead leader is missed, and how long a killed node takes to come back.

use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;
use trilog_client::{Producer, ProducerConfig, Record};
use trilog_storage::env::{Clock, SystemClock};

use super::Setting;
use super::cluster::Cluster;
use super::produce::fill;
use super::report::{Figure, Report};

const TOPIC: &str = "bench";
const GIB: u64 = 1 << 30;

/// Kills the leader of a partition that is being written to; returns how long it was until a
/// record appended after its death was acknowledged.
async fn outage(cluster: &Cluster, producer: &Producer) -> anyhow::Result<Duration> {
    let leader = cluster.leader(TOPIC, 0).await?;
    let write = async || -> anyhow::Result<u64> {
        let place = producer.send(TOPIC, Record::new("x")).await?.await?;
        Ok(place.append_time.nanos())
    };
    write().await?;
    let (since, wall) = (Instant::now(), SystemClock.now().nanos());
    let killed = cluster.dev.kill(leader);
    let acknowledged = async {
        while write().await? <= wall {
            if since.elapsed() > Duration::from_mins(1) {
                bail!("nothing was acknowledged for a minute");
            }
        }
        Ok(since.elapsed())
    };
    let (killed, took) = tokio::join!(killed, acknowledged);
    killed?;
    let took = took?;
    cluster.dev.restart(leader).await?;
    cluster.await_whole().await?;
    Ok(took)
}

pub(super) async fn failover(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let kills = if setting.quick { 5 } else { 20 };
    let cluster = Cluster::start(setting, 3, &[]).await?;
    cluster.topic(TOPIC, 1, 3).await?;
    let producer = cluster.client.producer_with(ProducerConfig {
        linger: Duration::ZERO,
        ..ProducerConfig::default()
    });
    let mut times = Vec::new();
    for _ in 0..kills {
        times.push(outage(&cluster, &producer).await?.as_secs_f64());
    }
    cluster.stop().await;
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).copied().unwrap_or_default();
    let longest = times.last().copied().unwrap_or_default();
    report.add(Figure::new(format!("failover, p50 of {kills} kills"), median, "s").at_most(1.0))?;
    report.add(Figure::new("failover, longest", longest, "s").at_most(2.5))
}

pub(super) async fn restart(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let cluster = Cluster::start(setting, 1, &[]).await?;
    cluster.topic(TOPIC, 8, 1).await?;
    fill(&cluster.client, setting.scaled(4 * GIB)).await?;
    cluster.dev.kill(1).await?;
    let begun = Instant::now();
    cluster.dev.restart(1).await?;
    let seconds = begun.elapsed().as_secs_f64();
    cluster.client.admin().await_leaders(TOPIC).await?;
    cluster.stop().await;
    let name = if setting.quick {
        "unclean restart, 256 MiB of log"
    } else {
        "unclean restart, 4 GiB of log"
    };
    report.add(Figure::new(name, seconds, "s").at_most(2.0))
}
