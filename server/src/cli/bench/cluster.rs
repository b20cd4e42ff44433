//! A development cluster to measure, and what its nodes say of themselves.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::time::Instant;
use trilog_client::Client;
use trilog_client::proto::CreateTopicRequest;

use super::Setting;
use crate::cli::scrape::Scrape;
use crate::dev::{Dev, DevOptions};

/// How long a cluster may take to be whole again.
const PATIENCE: Duration = Duration::from_mins(2);

/// Bytes of records on their way to consumers: as they are in memory, and as copies of that.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Payload {
    pub(super) shared: f64,
    pub(super) copied: f64,
}

#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) dev: Dev,
    pub(super) client: Client,
}

/// What the processes of a cluster have used.
#[derive(Clone, Copy, Debug)]
pub(super) struct Usage {
    /// Of all nodes together.
    pub(super) cpu_seconds: f64,
    /// Of all nodes together.
    pub(super) memory_bytes: f64,
}

impl Cluster {
    /// Starts an empty cluster. `settings` are keys of the configuration.
    pub(super) async fn start(
        setting: &Setting,
        nodes: u32,
        settings: &[&str],
    ) -> anyhow::Result<Self> {
        let data = setting.fresh("cluster")?;
        Self::open(setting, data, nodes, settings).await
    }

    /// Starts a cluster on what is in its directory.
    pub(super) async fn open(
        setting: &Setting,
        data: PathBuf,
        nodes: u32,
        settings: &[&str],
    ) -> anyhow::Result<Self> {
        // The sizes of a server; what `trilog dev` makes smaller is for a crowded machine.
        let server = [
            "storage.wal_file_size=64MiB",
            "storage.wal_files=16",
            "log.level=warn",
        ];
        let settings = server.iter().chain(settings);
        let dev = Dev::start(DevOptions {
            data,
            nodes: Some(nodes),
            base_port: Some(setting.base_port),
            clean: false,
            binary: std::env::current_exe().context("finding this program's own file")?,
            settings: settings.map(|text| (*text).to_owned()).collect(),
        });
        let dev = dev.await?;
        let client = Client::connect(dev.layout().servers()).await?;
        Ok(Self { dev, client })
    }

    pub(super) async fn topic(
        &self,
        name: &str,
        partitions: u32,
        replication: u32,
    ) -> anyhow::Result<()> {
        let request = CreateTopicRequest {
            name: name.to_owned(),
            partitions,
            replication,
            ..CreateTopicRequest::default()
        };
        let admin = self.client.admin();
        admin.create_topic(request).await?;
        admin.await_leaders(name).await?;
        Ok(())
    }

    /// The node that leads a partition.
    pub(super) async fn leader(&self, topic: &str, partition: u32) -> anyhow::Result<u32> {
        let described = self.client.admin().describe_topic(topic).await?;
        let mut partitions = described.partitions.iter();
        let found = partitions.find(|candidate| candidate.partition == partition);
        let leader = found.map(|partition| partition.leader);
        leader
            .filter(|leader| *leader != 0)
            .context("nobody leads the partition")
    }

    /// Waits until every partition has all its replicas.
    pub(super) async fn await_whole(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.client.admin().status().await?;
            let ailing = status.under_replicated_partitions + status.leaderless_partitions;
            if ailing == 0 && status.nodes.iter().all(|node| node.alive) {
                return Ok(());
            }
            if Instant::now() >= deadline {
                bail!(
                    "{ailing} partitions are not whole after {} s",
                    PATIENCE.as_secs()
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What was handed to consumers' connections, by all nodes together.
    pub(super) async fn payload(&self) -> anyhow::Result<Payload> {
        let mut payload = Payload::default();
        for place in &self.dev.layout().places {
            let scrape = Scrape::of(place.http_addr()).await?;
            let of = |state| scrape.sum_of("trilog_payload_bytes_out_total", "state", state);
            payload.shared += of("shared");
            payload.copied += of("copied");
        }
        Ok(payload)
    }

    pub(super) async fn usage(&self) -> anyhow::Result<Usage> {
        let mut usage = Usage {
            cpu_seconds: 0.0,
            memory_bytes: 0.0,
        };
        for place in &self.dev.layout().places {
            let scrape = Scrape::of(place.http_addr()).await?;
            let value = |name| {
                scrape
                    .sum(name)
                    .with_context(|| format!("{name} is not shown"))
            };
            usage.cpu_seconds += value("process_cpu_seconds_total")?;
            usage.memory_bytes += value("process_resident_memory_bytes")?;
        }
        Ok(usage)
    }

    pub(super) async fn stop(self) {
        self.dev.stop().await;
    }
}
