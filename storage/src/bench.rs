//! What the bare disk does, measured in the same run as the engine so that a benchmark can report
//! ratios: absolute figures of a shared machine say little.
//!
//! Every file is filled with zeros first, as the write-ahead log's are, and removed at the end.
//! All but [`backend_rounds`] block; run them off the runtime.

use std::fs::{self, File};
use std::io::{self, IoSlice, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use rustix::fs::OFlags;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::io::{Backend, Io, IoFile, IoJob, OpenMode};

const MIB: usize = 1 << 20;
/// What O_DIRECT asks of memory and positions, at most.
const ALIGN: usize = 4096;
/// Writes in flight in [`direct_write`].
const DEPTH: u64 = 8;
/// The file that the loops of synced writes go round in.
const LOOP_BYTES: u64 = 64 << 20;

/// One measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Measured {
    pub operations: u64,
    pub bytes: u64,
    pub elapsed: Duration,
    /// Processor time of the whole process meanwhile, user and system.
    pub cpu: Duration,
    /// Time of one operation; zero where operations overlap.
    pub p50: Duration,
    pub p99: Duration,
}

impl Measured {
    #[must_use]
    pub fn operations_per_second(&self) -> f64 {
        per(self.operations, self.elapsed.as_secs_f64())
    }

    #[must_use]
    pub fn megabytes_per_second(&self) -> f64 {
        per(self.bytes, self.elapsed.as_secs_f64()) / 1e6
    }

    #[must_use]
    pub fn cpu_seconds_per_gigabyte(&self) -> f64 {
        1e9 / per(self.bytes, self.cpu.as_secs_f64())
    }
}

/// Shape of a gathered write that is made durable as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    pub slices: usize,
    pub slice_bytes: usize,
}

impl Round {
    fn bytes(self) -> u64 {
        (self.slices * self.slice_bytes) as u64
    }

    fn bufs(self) -> Vec<Bytes> {
        let data = Bytes::from(vec![0x5a; self.slice_bytes]);
        vec![data; self.slices]
    }

    /// Where the next round begins.
    fn after(self, pos: u64) -> u64 {
        let next = pos + self.bytes();
        if next + self.bytes() > LOOP_BYTES {
            0
        } else {
            next
        }
    }
}

/// Sequential O_DIRECT writes of 1 MiB, eight in flight, `total` bytes in all.
pub fn direct_write(dir: &Path, total: u64) -> io::Result<Measured> {
    let scratch = Scratch::filled(dir, total)?;
    let mut options = File::options();
    let direct = OFlags::DIRECT.bits().cast_signed();
    let file = options.write(true).custom_flags(direct).open(&scratch.0)?;
    let blocks = total / MIB as u64;
    let watch = Watch::start();
    let lane = |first: u64| -> io::Result<()> {
        let memory = vec![0x5a; MIB + ALIGN];
        let from = memory.as_ptr().align_offset(ALIGN);
        for block in (first..blocks).step_by(usize::try_from(DEPTH).unwrap_or(1)) {
            file.write_all_at(&memory[from..from + MIB], block * MIB as u64)?;
        }
        Ok(())
    };
    thread::scope(|scope| {
        let lane = &lane;
        let lanes: Vec<_> = (0..DEPTH).map(|n| scope.spawn(move || lane(n))).collect();
        let panicked = |_| io::Error::other("a writer panicked");
        let mut ended = lanes.into_iter().map(thread::ScopedJoinHandle::join);
        ended.try_for_each(|end| end.map_err(panicked)?)
    })?;
    file.sync_data()?;
    Ok(watch.stop(blocks, blocks * MIB as u64, &mut []))
}

/// `count` times a write of `block_bytes` followed by a sync, one after the other: the least that
/// a durable append can take.
pub fn synced_writes(dir: &Path, block_bytes: usize, count: u32) -> io::Result<Measured> {
    paced_writes(dir, block_bytes, count, Duration::ZERO)
}

/// As [`synced_writes`], with a rest before each write: what one takes that finds the device and
/// the processor asleep.
pub fn paced_writes(
    dir: &Path,
    block_bytes: usize,
    count: u32,
    rest: Duration,
) -> io::Result<Measured> {
    let round = Round {
        slices: 1,
        slice_bytes: block_bytes,
    };
    rounds(dir, round, count, rest)
}

/// `count` rounds, each a gathered write and a sync, round and round in one file: the most that a
/// shared log can do with rounds of this shape.
pub fn gathered_rounds(dir: &Path, round: Round, count: u32) -> io::Result<Measured> {
    rounds(dir, round, count, Duration::ZERO)
}

fn rounds(dir: &Path, round: Round, count: u32, rest: Duration) -> io::Result<Measured> {
    let scratch = Scratch::filled(dir, LOOP_BYTES)?;
    let file = File::options().write(true).open(&scratch.0)?;
    let bufs = round.bufs();
    let mut times = Vec::with_capacity(count as usize);
    let mut pos = 0;
    let watch = Watch::start();
    for _ in 0..count {
        if !rest.is_zero() {
            thread::park_timeout(rest);
        }
        let begun = Instant::now();
        let mut slices: Vec<IoSlice<'_>> = bufs.iter().map(|buf| IoSlice::new(buf)).collect();
        let (mut left, mut at) = (&mut slices[..], pos);
        while !left.is_empty() {
            let batch = &left[..left.len().min(1024)];
            let written = rustix::io::pwritev(&file, batch, at)?;
            at += written as u64;
            IoSlice::advance_slices(&mut left, written);
        }
        file.sync_data()?;
        times.push(begun.elapsed());
        pos = round.after(pos);
    }
    let bytes = u64::from(count) * round.bytes();
    Ok(watch.stop(u64::from(count), bytes, &mut times))
}

/// As [`gathered_rounds`], but as a job of a back-end, by `write_durable_at`.
pub async fn backend_rounds(
    backend: &Backend,
    dir: &Path,
    round: Round,
    count: u32,
) -> io::Result<Measured> {
    let scratch = Scratch(dir.join(".bench-rounds"));
    let path = scratch.0.clone();
    let (report, outcome) = oneshot::channel();
    let job = RoundsJob {
        path,
        round,
        count,
        report,
    };
    backend.spawn("bench", job).join().await;
    let lost = |_| io::Error::other("the job ended without a result");
    outcome.await.map_err(lost)?
}

struct RoundsJob {
    path: PathBuf,
    round: Round,
    count: u32,
    report: oneshot::Sender<io::Result<Measured>>,
}

impl IoJob for RoundsJob {
    async fn run<I: Io>(self, io: I) {
        let result = rounds_job(io, &self).await;
        let _ = self.report.send(result);
    }
}

async fn rounds_job<I: Io>(io: I, job: &RoundsJob) -> io::Result<Measured> {
    let file = io.open(&job.path, OpenMode::Create).await?;
    let zeros = Bytes::from(vec![0; MIB]);
    for block in 0..LOOP_BYTES / MIB as u64 {
        file.write_all_at(vec![zeros.clone()], block * MIB as u64)
            .await?;
    }
    file.sync_data().await?;
    let bufs = job.round.bufs();
    let mut times = Vec::with_capacity(job.count as usize);
    let mut pos = 0;
    let watch = Watch::start();
    for _ in 0..job.count {
        let begun = Instant::now();
        file.write_durable_at(bufs.clone(), pos).await?;
        times.push(begun.elapsed());
        pos = job.round.after(pos);
    }
    let count = u64::from(job.count);
    Ok(watch.stop(count, count * job.round.bytes(), &mut times))
}

/// A file that is there for one measurement.
struct Scratch(PathBuf);

impl Scratch {
    fn filled(dir: &Path, len: u64) -> io::Result<Self> {
        let scratch = Self(dir.join(".bench-scratch"));
        let mut file = File::create(&scratch.0)?;
        let zeros = vec![0; MIB];
        for _ in 0..len.div_ceil(MIB as u64) {
            file.write_all(&zeros)?;
        }
        file.sync_all()?;
        Ok(scratch)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Left behind at worst; the next measurement overwrites it.
        let _ = fs::remove_file(&self.0);
    }
}

/// Measures time and processor time from its start to its stop.
pub(crate) struct Watch {
    begun: Instant,
    cpu: Duration,
}

impl Watch {
    pub(crate) fn start() -> Self {
        Self {
            begun: Instant::now(),
            cpu: cpu_time(),
        }
    }

    pub(crate) fn stop(self, operations: u64, bytes: u64, times: &mut [Duration]) -> Measured {
        let elapsed = self.begun.elapsed();
        let cpu = cpu_time().saturating_sub(self.cpu);
        times.sort_unstable();
        let at = |percent: usize| {
            let place = times.len() * percent / 100;
            times.get(place).copied().unwrap_or_default()
        };
        Measured {
            operations,
            bytes,
            elapsed,
            cpu,
            p50: at(50),
            p99: at(99),
        }
    }
}

fn cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a rate needs no more than 52 bits"
)]
fn per(count: u64, seconds: f64) -> f64 {
    count as f64 / seconds.max(1e-9)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: Round = Round {
        slices: 3,
        slice_bytes: 4096,
    };

    #[tokio::test]
    async fn every_baseline_measures_something_and_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path();
        let all = [
            gathered_rounds(path, SMALL, 5).unwrap(),
            synced_writes(path, 12_288, 5).unwrap(),
            backend_rounds(&Backend::Threads, path, SMALL, 5)
                .await
                .unwrap(),
        ];
        for measured in all {
            assert_eq!((measured.operations, measured.bytes), (5, 61_440));
            assert!(measured.p99 >= measured.p50 && measured.p50 > Duration::ZERO);
            assert!(measured.operations_per_second() > 0.0);
        }
        // Not every file system takes O_DIRECT.
        if let Ok(measured) = direct_write(path, 16 << 20) {
            assert_eq!(measured.bytes, 16 << 20);
            assert!(measured.megabytes_per_second() > 0.0);
        }
        assert_eq!(fs::read_dir(path).unwrap().count(), 0);
    }
}
