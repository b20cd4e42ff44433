//! Consuming: what is in memory, and what is only on disk.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Context;
use futures::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;
use trilog_client::{Client, StartAt};

use super::Setting;
use super::cluster::Cluster;
use super::kafka;
use super::produce::fill;
use super::report::{Figure, Report};
use super::storage::{as_f64, megabytes};

const TOPIC: &str = "bench";
const PARTITIONS: u32 = 8;
const MIB: u64 = 1 << 20;

/// Reads the topic from its start to its end; returns bytes of values.
async fn drain(client: &Client) -> anyhow::Result<u64> {
    let consumer = client
        .consumer(TOPIC)
        .start(StartAt::Earliest)
        .follow(false);
    let mut records = consumer.open().await?;
    let mut bytes = 0;
    while let Some(record) = records.next().await {
        bytes += record?.value.map_or(0, |value| value.len() as u64);
    }
    Ok(bytes)
}

pub(super) async fn tail(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let cluster = Cluster::start(setting, 3, &["storage.cache_size=1GiB"]).await?;
    cluster.topic(TOPIC, PARTITIONS, 3).await?;
    fill(&cluster.client, setting.scaled(512 * MIB)).await?;
    let loopback = loopback(setting.scaled(4096 * MIB)).await?;
    drain(&cluster.client).await?;
    let begun = Instant::now();
    let bytes = drain(&cluster.client).await?;
    let speed = megabytes(bytes) / begun.elapsed().as_secs_f64();
    let figure = Figure::new("tail consume, 1 consumer", speed, "MB/s");
    report.add(
        figure
            .beside("loopback stream", loopback)
            .at_least_share(0.70),
    )?;
    let fetched = tail_by_kafka(&cluster, loopback, report).await;
    cluster.stop().await;
    fetched
}

/// The same through Kafka's port, from one node after the other, and what of it was copied on the
/// way from the cache to the socket.
async fn tail_by_kafka(
    cluster: &Cluster,
    loopback: f64,
    report: &mut Report,
) -> anyhow::Result<()> {
    let before = cluster.payload().await?;
    let (begun, mut bytes) = (Instant::now(), 0);
    for place in &cluster.dev.layout().places {
        bytes += kafka::drain(place.kafka_addr(), TOPIC, PARTITIONS).await?;
    }
    let speed = megabytes(bytes) / begun.elapsed().as_secs_f64();
    let after = cluster.payload().await?;
    let figure = Figure::new("tail fetch by Kafka's protocol", speed, "MB/s");
    report.add(figure.beside("loopback stream", loopback))?;
    let (shared, copied) = (after.shared - before.shared, after.copied - before.copied);
    let all = (shared + copied).max(1.0);
    report.add(
        Figure::new("tail fetch, copies per payload byte", copied / all, "")
            .at_most(0.0)
            .note(format!("of {:.0} MB in fetch answers", all / 1e6)),
    )
}

/// What a TCP stream of 64 KiB writes carries on this machine, in MB/s.
async fn loopback(bytes: u64) -> anyhow::Result<f64> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut sender = TcpStream::connect(listener.local_addr()?).await?;
    let (mut receiver, _) = listener.accept().await?;
    let writer = tokio::spawn(async move {
        let block = vec![b'x'; 64 << 10];
        for _ in 0..bytes / block.len() as u64 {
            sender.write_all(&block).await?;
        }
        sender.shutdown().await
    });
    let begun = Instant::now();
    let mut buffer = vec![0; 64 << 10];
    let mut received = 0;
    loop {
        match receiver.read(&mut buffer).await? {
            0 => break,
            length => received += length as u64,
        }
    }
    writer.await??;
    Ok(megabytes(received) / begun.elapsed().as_secs_f64())
}

pub(super) async fn cold(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    let cluster = Cluster::start(setting, 1, &[]).await?;
    cluster.topic(TOPIC, 8, 1).await?;
    let data = cluster.dev.layout().data.clone();
    fill(&cluster.client, setting.scaled(4096 * MIB)).await?;
    cluster.stop().await;

    let how = forget(&data).await?;
    let folder = data.clone();
    let raw = tokio::task::spawn_blocking(move || read_raw(&folder)).await??;
    forget(&data).await?;
    let cluster = Cluster::open(setting, data, 1, &[]).await?;
    let begun = Instant::now();
    let bytes = drain(&cluster.client).await?;
    let speed = megabytes(bytes) / begun.elapsed().as_secs_f64();
    cluster.stop().await;
    let figure = Figure::new("cold replay, 1 consumer", speed, "MB/s");
    report.add(
        figure
            .beside("raw read", raw)
            .at_least_share(0.85)
            .note(how),
    )
}

/// Makes the kernel forget what it holds of the files: all of its cache as root, else only theirs.
async fn forget(folder: &Path) -> anyhow::Result<&'static str> {
    let folder = folder.to_owned();
    tokio::task::spawn_blocking(move || {
        let files = segments(&folder)?;
        for path in &files {
            File::open(path)?.sync_all()?;
        }
        if fs::write("/proc/sys/vm/drop_caches", "1").is_ok() {
            return Ok("all of the page cache was dropped");
        }
        for path in &files {
            let file = File::open(path)?;
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
        }
        Ok("without root: the kernel was asked to forget the files, no more")
    })
    .await?
}

/// Every segment file below a folder.
fn segments(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("{}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|ending| ending == "seg") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Reads the same files from front to back, 1 MiB at a time; MB/s.
fn read_raw(folder: &Path) -> anyhow::Result<f64> {
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0_u64;
    let begun = Instant::now();
    for path in segments(folder)? {
        let mut file = File::open(path)?;
        loop {
            match file.read(&mut buffer)? {
                0 => break,
                length => bytes += length as u64,
            }
        }
    }
    Ok(as_f64(bytes) / 1e6 / begun.elapsed().as_secs_f64())
}
