//! The write-ahead log against the bare disk, in one run.
//!
//! `cargo bench -p trilog-storage --bench wal [-- FOLDER]`, on a machine that does nothing else.
//! Short runs of the log and of its baselines alternate, and the median of each figure counts:
//! on a shared machine only ratios of neighbours mean anything.

#![expect(clippy::unwrap_used, reason = "a benchmark that fails, fails loudly")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use trilog_storage::bench::{self, Measured, Round};
use trilog_storage::io::{Backend, Choice};
use trilog_storage::wal::WalConfig;
use trilog_storage::wal::bench::{Bench, Load, Outcome};

const MIB: u64 = 1 << 20;
const ROUNDS: usize = 9;
/// Small, for filling the file leaves its pages in the kernel's cache in the place of others'.
const RAW_BYTES: u64 = 512 * MIB;

const LOADS: [Load; 4] = [
    Load {
        submitters: 64,
        payload_bytes: 64 << 10,
        total_bytes: 1024 * MIB,
    },
    Load {
        submitters: 64,
        payload_bytes: 4 << 10,
        total_bytes: 128 * MIB,
    },
    Load {
        submitters: 1_000,
        payload_bytes: 4 << 10,
        total_bytes: 512 * MIB,
    },
    Load {
        submitters: 1,
        payload_bytes: 4 << 10,
        total_bytes: 4 * MIB,
    },
];

fn say(line: std::fmt::Arguments<'_>) {
    let mut out = std::io::stdout();
    writeln!(out, "{line}").unwrap();
}

fn median(figures: impl Iterator<Item = f64>) -> f64 {
    let mut figures: Vec<f64> = figures.collect();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// The bare loop that gathers as many payloads into a round as there are submitters.
fn bare(dir: &Path, load: Load) -> Measured {
    let round = Round {
        slices: load.submitters as usize,
        slice_bytes: load.payload_bytes,
    };
    let bytes = u64::from(load.submitters) * load.payload_bytes as u64;
    let count = u32::try_from(load.total_bytes / bytes).unwrap();
    bench::gathered_rounds(dir, round, count).unwrap()
}

/// One run of the log between its baselines.
struct Sample {
    log: Outcome,
    bare: Measured,
    raw: Measured,
}

fn show(load: Load, samples: &[Sample]) {
    let of = |pick: &dyn Fn(&Sample) -> f64| median(samples.iter().map(pick));
    let stage = |pick: &dyn Fn(&Outcome) -> Duration| {
        let rounds = |s: &Sample| s.log.writing.rounds.max(1);
        let of_one = |s: &Sample| pick(&s.log) / u32::try_from(rounds(s)).unwrap();
        of(&|s| of_one(s).as_secs_f64() * 1e6)
    };
    let speed = |measured: &Measured| measured.megabytes_per_second();
    let frames = samples.iter().map(|s| s.log.writing.frames).sum::<u64>();
    let rounds = samples.iter().map(|s| s.log.writing.rounds).sum::<u64>();
    let copied = |s: &Sample| s.log.writing.payload_bytes_large_copied;
    say(format_args!(
        "{} x {} KiB: {:.0} MB/s, {:.0}/s, {:.2} CPU-s/GB (bare {:.2}); {:.2} of raw, {:.2} of \
         bare; p50 {:.0} us (bare round {:.0}), p99 {:.0} us; {} frames a round; a round's us: \
         queued {:.0}, gather {:.0}, write {:.0}, complete {:.0}; large payload bytes copied {}",
        load.submitters,
        load.payload_bytes >> 10,
        of(&|s| speed(&s.log.measured)),
        of(&|s| s.log.measured.operations_per_second()),
        of(&|s| s.log.measured.cpu_seconds_per_gigabyte()),
        of(&|s| s.bare.cpu_seconds_per_gigabyte()),
        of(&|s| speed(&s.log.measured) / speed(&s.raw)),
        of(&|s| speed(&s.log.measured) / speed(&s.bare)),
        of(&|s| s.log.measured.p50.as_secs_f64() * 1e6),
        of(&|s| s.bare.p50.as_secs_f64() * 1e6),
        of(&|s| s.log.measured.p99.as_secs_f64() * 1e6),
        frames / rounds.max(1),
        stage(&|o| o.writing.stages.queued),
        stage(&|o| o.writing.stages.gather),
        stage(&|o| o.writing.stages.write),
        stage(&|o| o.writing.stages.complete),
        samples.iter().map(copied).sum::<u64>(),
    ));
}

async fn measure(backend: &Backend, dir: &Path, rounds: usize) {
    let config = WalConfig::new(dir.join("wal"));
    let log = Bench::open(backend, config).await.unwrap();
    for load in LOADS {
        let mut samples = Vec::new();
        let raw = bench::direct_write(dir, RAW_BYTES).unwrap();
        for _ in 0..rounds {
            let bare = bare(dir, load);
            let log = log.run(load).await.unwrap();
            samples.push(Sample { log, bare, raw });
        }
        say(format_args!(
            "{}: raw {:.0} MB/s",
            backend.name(),
            raw.megabytes_per_second()
        ));
        show(load, &samples);
    }
    log.close().await;
}

#[tokio::main]
async fn main() {
    let named = std::env::args().nth(1).filter(|arg| !arg.starts_with('-'));
    let parent = named.map_or_else(|| PathBuf::from("."), PathBuf::from);
    let rounds = std::env::var("TRILOG_ROUNDS").map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    for (name, choice) in [("threads", Choice::Threads), ("uring", Choice::Uring)] {
        let dir = tempfile::tempdir_in(&parent).unwrap();
        match Backend::probe(choice, dir.path()) {
            Ok(probe) => measure(&probe.backend, dir.path(), rounds).await,
            Err(error) => say(format_args!("{name}: skipped: {error}")),
        }
    }
}
