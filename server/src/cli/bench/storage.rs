//! The storage engine without a network: the write-ahead log alone, with segments, and with many
//! logs at once.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use trilog_model::batch::{BatchBuilder, BatchHeader, Compression};
use trilog_model::{EntryId, GroupId, LogIndex, NodeId, ReplicaId};
use trilog_storage::bench::{self, Measured, Round};
use trilog_storage::env::{Entropy, SystemClock};
use trilog_storage::fatal::FatalSink;
use trilog_storage::frame::{Frame, FrameKind};
use trilog_storage::io::Backend;
use trilog_storage::log::{Appending, GroupLog, Pressure, StoreConfig};
use trilog_storage::store::Store;
use trilog_storage::wal::{Room, Wal, WalConfig, WalStart, WalWriting};

use super::Setting;
use super::report::{Figure, Report};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const WRITERS: u64 = 64;
const WRITE_BYTES: usize = 64 << 10;

/// Processor time of this process, user and system.
pub(super) fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default()
}

/// What the device takes: 1 MiB writes past the page cache, eight in flight.
pub(super) async fn raw_write(setting: &Setting) -> anyhow::Result<Measured> {
    let (dir, bytes) = (setting.dir.clone(), setting.scaled(2 * GIB));
    let measured = tokio::task::spawn_blocking(move || bench::direct_write(&dir, bytes)).await?;
    measured.context("measuring the bare device with O_DIRECT")
}

/// A batch of records of 1 KiB, near `bytes` in all.
fn batch(bytes: usize) -> anyhow::Result<Bytes> {
    let mut builder = BatchBuilder::new(Compression::None);
    let record = vec![b'x'; bytes.min(1024) - 80];
    while builder.uncompressed_len() + record.len() + 80 <= bytes {
        builder.push(1_700_000_000_000, None, Some(&record), &[])?;
    }
    Ok(builder.build()?)
}

/// An entry that carries `records`, as a leader would append it.
fn entry(group: GroupId, index: u64, records: &Bytes) -> anyhow::Result<Frame> {
    let header = BatchHeader::parse(records)?;
    let mut frame = Frame::bare(FrameKind::Data, group, EntryId::new(1, index), Bytes::new());
    frame.header.records_crc = header.crc;
    frame.header.records_len = u32::try_from(records.len())?;
    frame.header.record_count = u32::try_from(header.record_count)?;
    frame.records = records.clone();
    Ok(frame)
}

/// The write-ahead log alone.
pub(super) async fn wal(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    for backend in &setting.backends {
        let dir = setting.fresh("wal")?;
        let config = WalConfig::new(dir);
        // Every file once, so that what is measured writes into files that are there.
        let warm = config.file_bytes * u64::from(config.files);
        let opened = Wal::open(
            backend,
            config,
            Entropy::from_os(),
            WalStart::Beginning,
            FatalSink::new(),
        );
        let (wal, _) = opened.await?;
        let wal = Arc::new(wal);
        write_all(&wal, warm).await?;
        let raw = raw_write(setting).await?;
        let before = wal.status().writing;
        let (begun, cpu) = (Instant::now(), cpu_time());
        let bytes = setting.scaled(8 * GIB);
        write_all(&wal, bytes).await?;
        let (elapsed, cpu) = (begun.elapsed(), cpu_time().saturating_sub(cpu));
        let after = wal.status().writing;
        if let Some(wal) = Arc::into_inner(wal) {
            wal.close().await;
        }
        let speed = megabytes(bytes) / elapsed.as_secs_f64();
        let (name, raw) = (backend.name(), raw.megabytes_per_second());
        let figure = Figure::new("wal, 64 writers x 64 KiB", speed, "MB/s").on(name);
        let rounds = after.rounds - before.rounds;
        let frames = after.frames - before.frames;
        report.add(
            figure
                .beside("raw write", raw)
                .at_least_share(0.85)
                .note(format!("{frames} frames in {rounds} rounds")),
        )?;
        let per_gb = cpu.as_secs_f64() / (megabytes(bytes) / 1e3);
        report.add(
            Figure::new("wal, processor", per_gb, "s/GB")
                .on(name)
                .at_most(0.30),
        )?;
        report.add(copies(&before, &after).on(name))?;
    }
    Ok(())
}

/// Copies of each payload byte between the codec's output and the write.
fn copies(before: &WalWriting, after: &WalWriting) -> Figure {
    let delta = |pick: fn(&WalWriting) -> u64| pick(after).saturating_sub(pick(before));
    let gathered = delta(|writing| writing.payload_bytes_gathered);
    let large = delta(|writing| writing.payload_bytes_large_copied);
    let shared = delta(|writing| writing.payload_bytes_shared);
    let all = (gathered + large + shared).max(1);
    let copied = as_f64(gathered + large) / as_f64(all);
    Figure::new("wal, copies per payload byte", copied, "").at_most(0.0)
}

/// Writes `bytes` with all writers, each waiting for its last write to be durable.
async fn write_all(wal: &Arc<Wal>, bytes: u64) -> anyhow::Result<()> {
    let left = Arc::new(AtomicU64::new(bytes / WRITE_BYTES as u64));
    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        let (wal, left) = (Arc::clone(wal), Arc::clone(&left));
        let payload = Bytes::from(vec![b'x'; WRITE_BYTES]);
        let id = EntryId::new(1, writer);
        let frame = Frame::bare(FrameKind::Data, GroupId(writer + 2), id, payload);
        writers.spawn(async move {
            while take(&left) {
                let (done, written) = oneshot::channel();
                let done = Box::new(move |outcome| drop(done.send(outcome)));
                wal.submit(vec![frame.clone()], Room::Common, done);
                let position = written.await.context("the log is gone")??;
                wal.release(position.file);
            }
            anyhow::Ok(())
        });
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    Ok(())
}

fn take(left: &AtomicU64) -> bool {
    let taken = left.try_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
        left.checked_sub(1)
    });
    taken.is_ok()
}

async fn open(config: StoreConfig, backend: &Backend) -> anyhow::Result<Store> {
    let clock = Arc::new(SystemClock);
    let opened = Store::open(config, backend.clone(), clock, Entropy::from_os()).await;
    Ok(opened?.0)
}

async fn groups(store: &Store, count: u64) -> anyhow::Result<Vec<GroupLog>> {
    let mut groups = Vec::new();
    for group in 0..count {
        let replica = ReplicaId::new(NodeId(1), 1);
        groups.push(store.create_group(GroupId(group + 2), replica).await?);
    }
    Ok(groups)
}

/// Appends to one log until nothing is left to append, `window` at a time; commits what is
/// durable.
async fn append_all(
    log: GroupLog,
    records: Bytes,
    window: usize,
    left: Arc<AtomicU64>,
    mut pressure: watch::Receiver<Pressure>,
) -> anyhow::Result<()> {
    let mut index = log.state().last.map_or(0, |last| last.index.next().get());
    let mut pending = VecDeque::new();
    loop {
        let more = take(&left);
        while pending.len() >= window || (!more && !pending.is_empty()) {
            let Some((index, durable)) = pending.pop_front() else {
                break;
            };
            let durable: oneshot::Receiver<_> = durable;
            durable.await.context("the store is gone")??;
            log.commit(LogIndex(index));
        }
        if !more {
            return Ok(());
        }
        pressure.wait_for(|pressure| !pressure.any()).await?;
        let (done, durable) = oneshot::channel();
        let frame = entry(log.group(), index, &records)?;
        let done = Box::new(move |outcome| drop(done.send(outcome)));
        log.append(vec![frame], Appending::Assign, done)?;
        pending.push_back((index, durable));
        index += 1;
    }
}

/// Runs [`append_all`] on every log at once, `count` appends in all.
async fn append_everywhere(
    store: &Store,
    logs: &[GroupLog],
    records: &Bytes,
    window: usize,
    count: u64,
) -> anyhow::Result<()> {
    let left = Arc::new(AtomicU64::new(count));
    let mut writers = JoinSet::new();
    for log in logs {
        let (log, left) = (log.clone(), Arc::clone(&left));
        writers.spawn(append_all(
            log,
            records.clone(),
            window,
            left,
            store.pressure(),
        ));
    }
    while let Some(ended) = writers.join_next().await {
        ended??;
    }
    Ok(())
}

/// Write-ahead log and segments together, for longer than memory can hide the second.
pub(super) async fn store(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    for backend in &setting.backends {
        let dir = setting.fresh("store")?;
        let config = StoreConfig::new(dir);
        let warm = config.wal_file_bytes * u64::from(config.wal_files);
        let records = batch(WRITE_BYTES)?;
        let store = open(config, backend).await?;
        let logs = groups(&store, 16).await?;
        let size = records.len() as u64;
        append_everywhere(&store, &logs, &records, 8, warm / size).await?;
        let raw = raw_write(setting).await?;
        let (begun, cpu) = (Instant::now(), cpu_time());
        let bytes = setting.scaled(8 * GIB);
        append_everywhere(&store, &logs, &records, 8, bytes / size).await?;
        // Until the last byte is in its segment, and synced.
        drop(logs);
        store.close().await?;
        let (elapsed, cpu) = (begun.elapsed(), cpu_time().saturating_sub(cpu));
        let speed = megabytes(bytes) / elapsed.as_secs_f64();
        let (name, raw) = (backend.name(), raw.megabytes_per_second());
        let figure = Figure::new("wal and segments, 16 logs x 64 KiB", speed, "MB/s").on(name);
        report.add(figure.beside("raw write", raw).at_least_share(0.42))?;
        let per_gb = cpu.as_secs_f64() / (megabytes(bytes) / 1e3);
        report.add(
            Figure::new("wal and segments, processor", per_gb, "s/GB")
                .on(name)
                .at_most(0.60),
        )?;
    }
    Ok(())
}

/// Many logs that each wait for their last append.
pub(super) async fn logs(setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    for backend in &setting.backends {
        for count in [64, 1000] {
            many(setting, report, backend, count).await?;
        }
    }
    Ok(())
}

async fn many(
    setting: &Setting,
    report: &mut Report,
    backend: &Backend,
    count: u64,
) -> anyhow::Result<()> {
    let dir = setting.fresh("logs")?;
    let records = batch(4096)?;
    let config = StoreConfig::new(dir);
    // Every file once, in the short form, too: a log that is still being made writes twice as much.
    let warm = config.wal_file_bytes * u64::from(config.wal_files);
    let store = open(config, backend).await?;
    let logs = groups(&store, count).await?;
    let size = records.len() as u64;
    append_everywhere(&store, &logs, &records, 1, warm / size).await?;
    let appends = setting.scaled(GIB).max(256 * MIB) / size;
    let written = |store: &Store| store.stats().wal.unwrap_or_default().writing;
    let before = written(&store);
    let begun = Instant::now();
    append_everywhere(&store, &logs, &records, 1, appends).await?;
    let elapsed = begun.elapsed();
    let after = written(&store);
    drop(logs);
    store.close().await?;

    let rounds = (after.rounds - before.rounds).max(1);
    let slices = ((after.frames - before.frames) / rounds).max(1);
    let bare = bare_rounds(&setting.dir, slices, rounds).await?;
    let speed = as_f64(appends) / elapsed.as_secs_f64();
    let bare = bare.operations_per_second() * as_f64(slices);
    let figure = Figure::new(format!("{count} logs, appends of 4 KiB"), speed, "/s");
    report.add(
        figure
            .on(backend.name())
            .beside("bare gathered rounds", bare)
            .at_least_share(0.70)
            .note(format!("{slices} appends to a round")),
    )
}

/// A loop that writes and syncs rounds of the same shape into one file, and does nothing else.
async fn bare_rounds(dir: &Path, slices: u64, rounds: u64) -> anyhow::Result<Measured> {
    let dir = dir.to_owned();
    let round = Round {
        slices: usize::try_from(slices)?,
        slice_bytes: 4096,
    };
    let count = u32::try_from(rounds.min(20_000))?;
    let measured =
        tokio::task::spawn_blocking(move || bench::gathered_rounds(&dir, round, count)).await?;
    measured.context("measuring bare rounds")
}

pub(super) fn megabytes(bytes: u64) -> f64 {
    as_f64(bytes) / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "figures for people to read")]
pub(super) fn as_f64(count: u64) -> f64 {
    count as f64
}
