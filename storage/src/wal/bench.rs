//! How fast the log takes durable frames from many submitters, each of which waits for its last
//! one. To be held against the bare disk ([`crate::bench`]), measured in the same run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::Instant;
use trilog_model::{EntryId, GroupId};

use super::{Room, Wal, WalConfig, WalError, WalStart, WalWriting};
use crate::bench::{Measured, Watch};
use crate::env::Entropy;
use crate::fatal::FatalSink;
use crate::frame::{BATCH_PREFIX_LEN, Frame, FrameKind};
use crate::io::Backend;

/// A shape of load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// How many wait at the same time, each with a group of its own.
    pub submitters: u32,
    /// Bytes of a record batch; at least those of its head.
    pub payload_bytes: usize,
    /// Payload bytes in all.
    pub total_bytes: u64,
}

/// What a load came to.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Operations are units of one frame, bytes those of the payload.
    pub measured: Measured,
    /// What the writer did for it.
    pub writing: WalWriting,
}

/// An open log that has used each of its files once, so that what is measured is the steady
/// state.
#[derive(Debug)]
pub struct Bench {
    wal: Arc<Wal>,
}

impl Bench {
    /// Opens a new log; `config.dir` must not hold one.
    pub async fn open(backend: &Backend, config: WalConfig) -> Result<Self, WalError> {
        let warm = Load {
            submitters: 16,
            payload_bytes: 256 << 10,
            total_bytes: config.file_bytes * u64::from(config.files),
        };
        let (entropy, start) = (Entropy::from_os(), WalStart::Beginning);
        let (wal, _) = Wal::open(backend, config, entropy, start, FatalSink::new()).await?;
        let bench = Self { wal: Arc::new(wal) };
        // Twice: files are made in the background while the first ones are used again.
        bench.run(warm).await?;
        bench.run(warm).await?;
        Ok(bench)
    }

    pub async fn run(&self, load: Load) -> Result<Outcome, WalError> {
        let payload = load.payload_bytes.max(BATCH_PREFIX_LEN);
        let left = Arc::new(AtomicU64::new(load.total_bytes / payload as u64));
        let before = self.wal.status().writing;
        let watch = Watch::start();
        let mut tasks = JoinSet::new();
        for submitter in 0..load.submitters {
            let wal = Arc::clone(&self.wal);
            let frame = frame(u64::from(submitter) + 2, payload);
            tasks.spawn(submitter_of(wal, frame, Arc::clone(&left)));
        }
        let mut times = Vec::new();
        while let Some(ended) = tasks.join_next().await {
            // A task ends early only with the runtime.
            times.extend(ended.unwrap_or(Err(WalError::Closed))?);
        }
        let units = times.len() as u64;
        let measured = watch.stop(units, units * payload as u64, &mut times);
        let writing = self.wal.status().writing.since(&before);
        Ok(Outcome { measured, writing })
    }

    pub async fn close(self) {
        if let Some(wal) = Arc::into_inner(self.wal) {
            wal.close().await;
        }
    }
}

/// Submits a frame again and again until none is left; the time that each took.
async fn submitter_of(
    wal: Arc<Wal>,
    frame: Frame,
    left: Arc<AtomicU64>,
) -> Result<Vec<Duration>, WalError> {
    let mut times = Vec::new();
    let mut file = 0;
    let take = |left: u64| left.checked_sub(1);
    while left
        .try_update(Ordering::Relaxed, Ordering::Relaxed, take)
        .is_ok()
    {
        let begun = Instant::now();
        let (told, answer) = oneshot::channel();
        wal.submit(
            vec![frame.clone()],
            Room::Common,
            Box::new(move |result| drop(told.send(result))),
        );
        let position = answer.await.unwrap_or(Err(WalError::Closed))?;
        times.push(begun.elapsed());
        if position.file > file {
            file = position.file;
            wal.release(file);
        }
    }
    Ok(times)
}

/// A frame with a record batch of `len` bytes.
fn frame(group: u64, len: usize) -> Frame {
    let records = Bytes::from(vec![0x5a; len]);
    let id = EntryId::new(1, 1);
    let mut frame = Frame::bare(FrameKind::Data, GroupId(group), id, Bytes::new());
    frame.header.record_count = 1;
    frame.header.records_len = u32::try_from(len).unwrap_or(u32::MAX);
    frame.header.records_crc = crc32c::crc32c(&records[BATCH_PREFIX_LEN..]);
    frame.records = records;
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_load_is_written_and_measured() {
        let dir = tempfile::tempdir().unwrap();
        let config = WalConfig {
            file_bytes: 1 << 20,
            max_round_bytes: 256 << 10,
            files: 4,
            ..WalConfig::new(dir.path().join("wal"))
        };
        let bench = Bench::open(&Backend::Threads, config).await.unwrap();
        for (submitters, payload_bytes) in [(8, 300), (3, 20_000)] {
            let load = Load {
                submitters,
                payload_bytes,
                total_bytes: 60_000,
            };
            let Outcome { measured, writing } = bench.run(load).await.unwrap();
            let units = 60_000 / payload_bytes as u64;
            assert_eq!((measured.operations, measured.bytes), (units, 60_000));
            assert_eq!(writing.frames, units);
            assert!(writing.rounds > 0 && writing.syncs >= writing.rounds);
            let body = units * (payload_bytes - BATCH_PREFIX_LEN) as u64;
            let copied = writing.payload_bytes_gathered;
            let shared = writing.payload_bytes_shared;
            assert_eq!(
                (copied + shared, writing.payload_bytes_large_copied),
                (body, 0)
            );
            assert_eq!(copied == 0, payload_bytes > 4096);
        }
        bench.close().await;
    }
}
