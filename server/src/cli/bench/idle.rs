//! What a thousand partitions cost while nobody uses them.

use std::time::Duration;

use super::Setting;
use super::cluster::Cluster;
use super::report::{Figure, Report};

pub(super) async fn idle(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let partitions: u32 = if setting.quick { 100 } else { 1000 };
    let cluster = Cluster::start(setting, 3, &[]).await?;
    let (settle, watch) = (Duration::from_secs(20), Duration::from_secs(20));
    let bare = cluster.usage().await?;
    cluster.topic("idle", partitions, 3).await?;
    tokio::time::sleep(settle).await;
    let before = cluster.usage().await?;
    tokio::time::sleep(watch).await;
    let after = cluster.usage().await?;
    cluster.stop().await;

    let share = (after.cpu_seconds - before.cpu_seconds) / 3.0 / watch.as_secs_f64() * 100.0;
    let name = format!("{partitions} idle partitions x 3, per node");
    report.add(Figure::new(&name, share, "% of cpu").at_most(5.0))?;
    let grown = (after.memory_bytes - bare.memory_bytes).max(0.0);
    let each = grown / f64::from(partitions * 3) / 1024.0;
    report.add(Figure::new("memory of an idle replica", each, "KiB").at_most(200.0))
}
