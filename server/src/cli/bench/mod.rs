//! `trilog bench`: how fast it is, each figure beside what the same machine does without it.
//!
//! Absolute figures of a shared machine say little, so every figure comes with a baseline measured
//! just before it, and most targets are ratios of the two.

mod cluster;
mod consume;
mod faults;
mod idle;
mod kafka;
mod latency;
mod produce;
mod report;
mod storage;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use clap::Args;
use trilog_storage::io::{Backend, Choice};

use super::output;
use crate::config::nearest;
use report::Report;

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    /// Which figures; all if none is named
    figures: Vec<String>,
    /// List the figures
    #[arg(long)]
    list: bool,
    /// A tenth of the data or less: for a first look, not for comparisons
    #[arg(long)]
    quick: bool,
    /// Where the data goes; removed afterwards
    #[arg(long, value_name = "DIR", default_value = "trilog-data/bench")]
    dir: PathBuf,
    /// auto, uring or threads [default: both, where both work]
    #[arg(long, value_name = "BACK-END")]
    io: Option<String>,
    /// One JSON document instead of lines
    #[arg(long)]
    json: bool,
    /// First of the ports of the clusters
    #[arg(long, value_name = "PORT", default_value_t = 18_400)]
    base_port: u16,
}

/// One thing that can be measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bench {
    Wal,
    Store,
    Logs,
    Produce,
    Single,
    Lone,
    Small,
    Tail,
    Cold,
    Idle,
    Failover,
    Restart,
}

const ALL: [(Bench, &str, &str); 12] = [
    (
        Bench::Wal,
        "wal",
        "the write-ahead log alone: 64 writers of 64 KiB",
    ),
    (
        Bench::Store,
        "store",
        "write-ahead log and segments, past the memory budget",
    ),
    (Bench::Logs, "logs", "64 and 1,000 logs, appends of 4 KiB"),
    (
        Bench::Produce,
        "produce",
        "three nodes, 8 producers, records of 1 KiB",
    ),
    (
        Bench::Single,
        "single",
        "one node, 8 producers, records of 1 KiB",
    ),
    (
        Bench::Lone,
        "lone",
        "one small record at a time, ten a second; waking an idle partition",
    ),
    (
        Bench::Small,
        "small",
        "records of 100 B, 256 tasks that each wait for their answer",
    ),
    (
        Bench::Tail,
        "tail",
        "one consumer, records that are in memory",
    ),
    (
        Bench::Cold,
        "cold",
        "one consumer, records that are on disk only",
    ),
    (Bench::Idle, "idle", "1,000 partitions that nobody uses"),
    (
        Bench::Failover,
        "failover",
        "from the death of a leader to the next acknowledgement",
    ),
    (
        Bench::Restart,
        "restart",
        "from a kill to serving again, with 4 GiB of log",
    ),
];

impl FromStr for Bench {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        if let Some((bench, ..)) = ALL.iter().find(|(_, name, _)| *name == text) {
            return Ok(*bench);
        }
        match nearest(text, ALL.iter().map(|(_, name, _)| *name)) {
            Some(near) => bail!("there is no figure {text:?}; did you mean {near}?"),
            None => bail!("there is no figure {text:?}; `trilog bench --list` lists them"),
        }
    }
}

/// What every figure is measured with.
#[derive(Debug)]
struct Setting {
    /// A directory of this run alone.
    dir: PathBuf,
    quick: bool,
    backends: Vec<Backend>,
    base_port: u16,
}

impl Setting {
    /// `full`, or a fraction of it for a quick look.
    fn scaled(&self, full: u64) -> u64 {
        if self.quick { full / 16 } else { full }
    }

    /// An empty directory for one figure.
    fn fresh(&self, name: &str) -> anyhow::Result<PathBuf> {
        let dir = self.dir.join(name);
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }
}

pub(super) async fn run(args: BenchArgs) -> anyhow::Result<()> {
    if args.list {
        let rows = ALL
            .iter()
            .map(|(_, name, what)| vec![(*name).to_owned(), (*what).to_owned()]);
        return Ok(output::table(&["figure", "what"], rows.collect())?);
    }
    let benches: Vec<Bench> = if args.figures.is_empty() {
        ALL.iter().map(|(bench, ..)| *bench).collect()
    } else {
        let named = args.figures.iter().map(|name| name.parse());
        named.collect::<anyhow::Result<_>>()?
    };
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: its figures mean nothing");
    }
    let dir = args.dir.join(format!("run-{}", std::process::id()));
    std::fs::create_dir_all(&dir).with_context(|| format!("{}", dir.display()))?;
    let dir = dir.canonicalize()?;
    let setting = Setting {
        backends: backends(args.io.as_deref(), &dir)?,
        dir,
        quick: args.quick,
        base_port: args.base_port,
    };
    let mut report = Report::begin(args.json);
    let mut outcome = Ok(());
    for bench in benches {
        outcome = measure(bench, &setting, &mut report).await;
        if outcome.is_err() {
            break;
        }
    }
    // What is left behind is said where it matters: a run that failed.
    if let Err(error) = std::fs::remove_dir_all(&setting.dir) {
        eprintln!("{} is left behind: {error}", setting.dir.display());
    }
    report.end()?;
    outcome
}

async fn measure(bench: Bench, setting: &Setting, report: &mut Report) -> anyhow::Result<()> {
    match bench {
        Bench::Wal => storage::wal(setting, report).await,
        Bench::Store => storage::store(setting, report).await,
        Bench::Logs => storage::logs(setting, report).await,
        Bench::Produce => produce::throughput(&produce::THREE, setting, report).await,
        Bench::Single => produce::throughput(&produce::ONE, setting, report).await,
        Bench::Lone => latency::lone(setting, report).await,
        Bench::Small => produce::small(setting, report).await,
        Bench::Tail => consume::tail(setting, report).await,
        Bench::Cold => consume::cold(setting, report).await,
        Bench::Idle => idle::idle(setting, report).await,
        Bench::Failover => faults::failover(setting, report).await,
        Bench::Restart => faults::restart(setting, report).await,
    }
}

/// The back-ends to measure: the one asked for, or all that work here.
fn backends(io: Option<&str>, dir: &Path) -> anyhow::Result<Vec<Backend>> {
    if let Some(io) = io {
        let choice: Choice = io.parse().context("--io")?;
        return Ok(vec![Backend::probe(choice, dir)?.backend]);
    }
    let mut found = vec![Backend::Threads];
    match Backend::probe(Choice::Uring, dir) {
        Ok(probe) => found.insert(0, probe.backend),
        Err(error) => eprintln!("io_uring is left out: {error}"),
    }
    Ok(found)
}
