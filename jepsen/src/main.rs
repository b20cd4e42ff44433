//! `trilog-jepsen`: mistreats clusters, judges histories, and makes valid ones.

mod words;

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use trilog_jepsen::campaign::{self, Aim};
use trilog_jepsen::check::{Anomaly, Checker, Slice, Validity, Verdict};
use trilog_jepsen::cluster::Medium;
use trilog_jepsen::cluster::spaces::{self, Right};
use trilog_jepsen::generate::{Plan, generate};
use trilog_jepsen::history::json::{self, Reader};
use trilog_jepsen::history::{Event, Header};
use trilog_jepsen::nemesis::Fault;
use trilog_jepsen::report::{Summary, figures, found, page, summarize};
use trilog_jepsen::run::{self, Options, Outcome};
use words::{as_json, proofs, text};

/// Checks what clients of a log saw while it was mistreated.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs a cluster of real nodes, mistreats it while clients work, and judges what they saw.
    ///
    /// Ends as `check` does; with 1 also if a node died by itself or files are not as they should
    /// be, with 3 also if not everything could be looked at.
    Run(RunArgs),
    /// Runs many short histories with one aim, and says what they prove together.
    ///
    /// Ends with 0 if as much as was to be shown was shown, 1 at the first that is not valid, 2 if
    /// one could not be made, and 3 if less was shown. What proves nothing counts as nothing. Of
    /// valid runs the reports are kept.
    Campaign(CampaignArgs),
    /// Says how nodes can be connected on this machine.
    Network,
    /// Says whether somebody can be heard at an address; how `network` finds out.
    #[command(hide = true)]
    Knock { address: SocketAddr },
    /// Judges a history.
    ///
    /// Ends with 0 if it is valid, 1 if it is not, 2 if it cannot be judged, and 3 if nothing is
    /// wrong with it but not everything was read back in the end.
    Check {
        /// The history, as lines of JSON.
        file: PathBuf,
        /// How the verdict is written.
        #[arg(short, long, value_enum, default_value = "text")]
        output: Output,
        /// Anomalies to describe of each kind; all are counted.
        #[arg(long, default_value_t = 8)]
        examples: usize,
        /// Describe what Kafka's isolation permits, too.
        #[arg(long)]
        allowed: bool,
    },
    /// Says what the report of a run has found, a line each, for scripts.
    Found {
        /// `report.json` of a run.
        report: PathBuf,
    },
    /// Makes a valid history, to measure and to try things out with.
    Generate {
        /// Where to write it.
        file: PathBuf,
        #[arg(long, default_value_t = 0)]
        seed: u64,
        /// Operations before everything is read back.
        #[arg(long, default_value_t = 100_000)]
        operations: usize,
    },
}

#[derive(Debug, clap::Args)]
struct RunArgs {
    #[command(flatten)]
    base: BaseArgs,
    /// How long clients work, in seconds.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Kinds of faults, with commas, which all have to happen; `none`, or `all` that this machine
    /// can do. Without them the usual ones, as far as it can.
    #[arg(long)]
    faults: Option<String>,
    /// Every fault comes alone and strikes one node if it can, when everything is whole.
    #[arg(long)]
    calm: bool,
}

#[derive(Debug, clap::Args)]
struct CampaignArgs {
    #[arg(value_enum)]
    aim: AimArg,
    #[command(flatten)]
    base: BaseArgs,
    /// How much is to be shown: histories; with `leader-kill` kills of leaders, with
    /// `rolling-restart` those.
    #[arg(long, default_value_t = 100)]
    count: u64,
    /// No history begins after so many minutes.
    #[arg(long, default_value_t = 240)]
    minutes: u64,
    /// A table that a line with the verdict is added to.
    #[arg(long)]
    proof: Option<PathBuf>,
    /// What that line says was tried.
    #[arg(long, default_value = "-")]
    commit: String,
}

/// What all runs of real nodes are told.
#[derive(Debug, clap::Args)]
struct BaseArgs {
    /// The `trilog` binary whose nodes are run; without it the one beside this program.
    #[arg(long)]
    trilog: Option<PathBuf>,
    /// An older one that nodes begin with, and that `upgrade` replaces.
    #[arg(long)]
    older: Option<PathBuf>,
    /// Where the history and what the nodes write goes; without it a directory that is removed
    /// unless something is wrong. What an earlier run left in it is removed.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Without one it is drawn, and said.
    #[arg(long)]
    seed: Option<u64>,
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=6))]
    nodes: u32,
    /// How nodes reach one another.
    #[arg(long, value_enum, default_value = "auto")]
    network: NetworkArg,
    /// Operations at most.
    #[arg(long, default_value_t = 1_000_000)]
    operations: u64,
    /// Clients; 8, or 32 with `--dense`.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: Option<u32>,
    /// A Python that has `confluent_kafka`, for stock clients among the workers.
    #[arg(long)]
    python: Option<PathBuf>,
    /// A kcat, for more of them; without it the one that is installed, if there is one.
    #[arg(long)]
    kcat: Option<PathBuf>,
    /// Partitions of the topic; 4, or 8 with `--dense`.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    keys: Option<u32>,
    /// What a client rests after an operation at most, in milliseconds; 10, or 1 with `--dense`.
    #[arg(long)]
    pace: Option<u64>,
    /// Several times as many operations in the same time: what happens at once is what goes wrong.
    #[arg(long)]
    dense: bool,
}

/// How many clients there are, on how many keys, and how many milliseconds they rest at most, where
/// nothing else is asked for.
const LOAD: (u32, u32, u64) = (8, 4, 10);
const DENSE: (u32, u32, u64) = (32, 8, 1);

/// Of so many runs of a campaign that prove nothing it is kept what nodes wrote, which is large.
const UNKNOWN_KEPT: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum NetworkArg {
    /// By wires between name spaces of their own, where that can be had, and else through ports.
    Auto,
    /// Through ports of this program.
    Ports,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum AimArg {
    /// All nodes lose power at once.
    PowerLoss,
    /// Files of one node are damaged.
    Corruption,
    /// Leaders are killed, and it is measured how long they are missed.
    LeaderKill,
    /// All nodes are restarted in order, and it is measured how long clients stand still.
    RollingRestart,
    /// Two kinds of faults in each history, until all pairs have come.
    Mixes,
}

impl From<AimArg> for Aim {
    fn from(aim: AimArg) -> Self {
        match aim {
            AimArg::PowerLoss => Self::PowerLoss,
            AimArg::Corruption => Self::Corruption,
            AimArg::LeaderKill => Self::LeaderKill,
            AimArg::RollingRestart => Self::RollingRestart,
            AimArg::Mixes => Self::Mixes,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

fn main() -> ExitCode {
    match run(Args::parse().command) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => run_cluster(args),
        Command::Campaign(args) => carry_out(args),
        Command::Network => network(),
        Command::Knock { address } => knock(address),
        Command::Check {
            file,
            output,
            examples,
            allowed,
        } => {
            let (header, mut verdict) = judge(&file, examples)?;
            if !allowed {
                verdict.anomalies.retain(|anomaly| !anomaly.allowed);
            }
            let slice = slice(&file, &verdict.anomalies)?;
            let mut out = BufWriter::new(io::stdout().lock());
            match output {
                Output::Text => text(&mut out, &file, &header, &verdict, &slice),
                Output::Json => as_json(&mut out, &verdict, &slice),
            }
            .and_then(|()| out.flush())
            .context("cannot write the verdict")?;
            Ok(exit_code(verdict.validity))
        }
        Command::Found { report } => {
            for line in read_report(&report)? {
                say(&line);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Generate {
            file,
            seed,
            operations,
        } => {
            write_history(&file, &Plan::long(seed, operations))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn exit_code(validity: Validity) -> ExitCode {
    ExitCode::from(match validity {
        Validity::Valid => 0,
        Validity::Invalid => 1,
        Validity::Unknown => 3,
    })
}

/// What strikes if nothing was asked for.
const USUAL: [Fault; 7] = [
    Fault::Kill,
    Fault::Pause,
    Fault::Isolate,
    Fault::CutOneWay,
    Fault::Partial,
    Fault::Bandwidth,
    Fault::Transfer,
];

/// The kinds of faults that were asked for, and whether by their names.
fn faults(text: Option<&str>) -> anyhow::Result<(Vec<Fault>, bool)> {
    let names = match text {
        None => return Ok((USUAL.to_vec(), false)),
        Some("none") => return Ok((Vec::new(), false)),
        Some("all") => return Ok((Fault::ALL.to_vec(), false)),
        Some(names) => names.split(','),
    };
    let faults =
        names.map(|name| Fault::named(name).with_context(|| format!("{name} is no fault")));
    Ok((faults.collect::<anyhow::Result<_>>()?, true))
}

fn beside_this_program(name: &str) -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find this program")?;
    let path = own.with_file_name(name);
    anyhow::ensure!(
        path.exists(),
        "{} is not there; give --trilog",
        path.display()
    );
    Ok(path)
}

/// A program that is installed.
fn installed(name: &str) -> Option<PathBuf> {
    let places = std::env::var_os("PATH")?;
    let mut places = std::env::split_paths(&places).map(|place| place.join(name));
    places.find(|path| path.is_file())
}

/// How nodes are to reach one another. Where that is by wires, this program is run again to be in
/// a place where it may draw them.
fn medium(network: NetworkArg) -> Medium {
    match (network, spaces::entered()) {
        (NetworkArg::Ports, _) => Medium::Ports(Vec::new()),
        (NetworkArg::Auto, Some(right)) => Medium::Spaces(right),
        (NetworkArg::Auto, None) => Medium::Ports(spaces::enter()),
    }
}

/// What runs have in common; and whether their directory is to be kept.
fn base(args: BaseArgs) -> anyhow::Result<(Options, bool)> {
    // First of all, for what comes after it is done twice.
    let medium = medium(args.network);
    let trilog = match args.trilog {
        Some(trilog) => trilog,
        None => beside_this_program("trilog")?,
    };
    let kept = args.dir.is_some();
    let (workers, keys, pace) = if args.dense { DENSE } else { LOAD };
    let dir = match args.dir {
        Some(dir) => dir,
        None => tempfile::Builder::new()
            .prefix("trilog-chaos-")
            .tempdir()?
            .keep(),
    };
    let options = Options {
        trilog,
        older: args.older,
        dir,
        seed: args.seed.unwrap_or_else(|| rand::random_range(0..1 << 32)),
        nodes: args.nodes,
        medium,
        length: Duration::ZERO,
        operations: args.operations,
        workers: args.workers.unwrap_or(workers),
        python: args.python,
        kcat: args.kcat.or_else(|| installed("kcat")),
        keys: args.keys.unwrap_or(keys),
        pace: Duration::from_millis(args.pace.unwrap_or(pace)),
        faults: Vec::new(),
        by_name: false,
        calm: false,
    };
    Ok((options, kept))
}

/// Carries this out until it is over or this program is told to stop.
fn until_told<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let done = runtime.block_on(async {
        tokio::select! {
            biased;
            told = told_to_stop() => Err(told),
            done = work => done,
        }
    });
    runtime.shutdown_timeout(Duration::from_secs(5));
    done
}

fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}

fn run_cluster(args: RunArgs) -> anyhow::Result<ExitCode> {
    let (faults, by_name) = faults(args.faults.as_deref())?;
    let (base, kept) = base(args.base)?;
    let options = Options {
        length: Duration::from_secs(args.seconds),
        faults,
        by_name,
        calm: args.calm,
        ..base
    };
    let outcome = until_told(run::run(&options, &mut say));
    let dir = options.dir.clone();
    let outcome = outcome.with_context(|| format!("seed {}, {}", options.seed, dir.display()))?;
    let validity = outcome.validity();
    conclude(&options, &outcome)?;
    if validity == Validity::Valid {
        // What nodes wrote is of interest only if something is wrong with it.
        let written = if kept { dir.join("nodes") } else { dir };
        std::fs::remove_dir_all(&written).context("removing what the run wrote")?;
    }
    Ok(exit_code(validity))
}

fn carry_out(args: CampaignArgs) -> anyhow::Result<ExitCode> {
    let (base, kept) = base(args.base)?;
    let plan = campaign::Plan {
        aim: args.aim.into(),
        base,
        count: args.count,
        limit: Duration::from_mins(args.minutes),
    };
    let mut found = campaign::Found::default();
    let mut unknown = 0;
    let mut keep = |options: &Options, outcome: &Outcome| {
        unknown += u32::from(outcome.validity() == Validity::Unknown);
        keep_report(options, outcome, unknown <= UNKNOWN_KEPT)
    };
    let carried_out = until_told(campaign::carry_out(&plan, &mut found, &mut say, &mut keep));
    // What was shown before it was broken off was shown.
    if found.runs > 0 {
        let broken = carried_out.as_ref().err();
        let broken = broken.map(|error| format!("{error:#}"));
        let row = found.row(&plan, &args.commit, broken.as_deref());
        say(&row);
        if let Some(table) = &args.proof {
            campaign::add_row(table, &row)
                .with_context(|| format!("cannot write to {}", table.display()))?;
        }
    }
    carried_out.with_context(|| {
        let at = found.going.map(|seed| format!("seed {seed}, "));
        format!("{}{}", at.unwrap_or_default(), plan.base.dir.display())
    })?;
    let validity = found.validity(&plan);
    if validity == Validity::Valid && found.unknown.is_empty() && !kept {
        std::fs::remove_dir_all(&plan.base.dir).context("removing reports")?;
    }
    Ok(exit_code(validity))
}

/// Writes the report of one run of many, and throws away what is large if nothing is wrong. Of
/// what proves nothing the history is kept, and with `nodes` what nodes wrote.
fn keep_report(options: &Options, outcome: &Outcome, nodes: bool) -> anyhow::Result<Summary> {
    let (_, summary) = report(options, outcome)?;
    let validity = outcome.validity();
    if validity == Validity::Valid || validity == Validity::Unknown && !nodes {
        std::fs::remove_dir_all(options.dir.join("nodes"))?;
    }
    if validity == Validity::Valid {
        std::fs::remove_file(&outcome.history)?;
    }
    Ok(summary)
}

/// Says how nodes can be connected here. In a name space of this program's own: tries it out.
fn network() -> anyhow::Result<ExitCode> {
    if spaces::entered().is_some() {
        spaces::try_out()?;
        return Ok(ExitCode::SUCCESS);
    }
    for right in Right::ALL {
        match spaces::probe(right) {
            Ok(()) => say(&format!("{right}: yes")),
            Err(why) => say(&format!("{right}: no, {why}")),
        }
    }
    say("ports: yes");
    Ok(ExitCode::SUCCESS)
}

fn knock(address: SocketAddr) -> anyhow::Result<ExitCode> {
    let heard = until_told(async { Ok(spaces::knock(address).await?) })?;
    say(&heard.to_string());
    Ok(ExitCode::SUCCESS)
}

/// Waits until somebody wants this program to end. Then what it runs has to end with it, and what
/// it mounted be unmounted.
async fn told_to_stop() -> anyhow::Error {
    use tokio::signal::unix::{SignalKind, signal};
    let told = async {
        let mut terminated = signal(SignalKind::terminate())?;
        let mut interrupted = signal(SignalKind::interrupt())?;
        let mut hung_up = signal(SignalKind::hangup())?;
        tokio::select! {
            biased;
            _ = terminated.recv() => {}
            _ = interrupted.recv() => {}
            _ = hung_up.recv() => {}
        }
        io::Result::Ok(())
    };
    match told.await {
        Ok(()) => anyhow::anyhow!("told to stop"),
        Err(error) => anyhow::Error::new(error).context("cannot wait for signals"),
    }
}

/// The report of a run, and what stands in it: what is wrong, and figures.
fn report(options: &Options, outcome: &Outcome) -> anyhow::Result<(Judged, Summary)> {
    let mut verdict = outcome.verdict.clone();
    verdict.anomalies.retain(|anomaly| !anomaly.allowed);
    let header = open(&outcome.history)?.header().clone();
    let slice = slice(&outcome.history, &verdict.anomalies)?;
    let summary = write_report(options, outcome, &header, &verdict, &slice)?;
    let judged = Judged {
        header,
        verdict,
        slice,
    };
    Ok((judged, summary))
}

/// A history's header, what is wrong with it, and what proves that.
struct Judged {
    header: Header,
    verdict: Verdict,
    slice: Slice,
}

/// What a run came to, for people and for programs.
fn conclude(options: &Options, outcome: &Outcome) -> anyhow::Result<()> {
    let (judged, summary) = report(options, outcome)?;
    let mut out = BufWriter::new(io::stdout().lock());
    for (fault, count) in run::tally(&outcome.done) {
        writeln!(out, "ran {count:>3} x {fault}")?;
    }
    for skipped in &outcome.skipped {
        writeln!(out, "SKIPPED {}: {}", skipped.fault, skipped.why)?;
    }
    for line in figures(&summary) {
        writeln!(out, "{line}")?;
    }
    writeln!(out, "took {}", outcome.phases)?;
    let Judged {
        header,
        verdict,
        slice,
    } = &judged;
    text(&mut out, &outcome.history, header, verdict, slice)?;
    for failure in &outcome.failures {
        writeln!(out, "FAILED: {failure}")?;
    }
    for gap in &outcome.gaps {
        writeln!(out, "NOT SEEN: {gap}")?;
    }
    for note in &outcome.notes {
        writeln!(out, "{note}")?;
    }
    writeln!(out, "{} (seed {})", outcome.validity(), options.seed)?;
    out.flush().context("cannot write the verdict")
}

/// `report.html` and `report.json` beside the history.
fn write_report(
    options: &Options,
    outcome: &Outcome,
    header: &Header,
    verdict: &Verdict,
    slice: &Slice,
) -> anyhow::Result<Summary> {
    let mut failed = None;
    let events = open(&outcome.history)?.map_while(|event| match event {
        Ok(event) => Some(event),
        Err(error) => {
            failed = Some(error);
            None
        }
    });
    let summary = summarize(events);
    if let Some(error) = failed {
        return Err(error).context("reading the history for its report");
    }
    let done = outcome.done.iter();
    let done: Vec<String> = done
        .map(|one| format!("{} {:?} {}", one.fault, one.nodes, one.what))
        .collect();
    let skipped = outcome.skipped.iter();
    let skipped: Vec<String> = skipped
        .map(|one| format!("{}: {}", one.fault, one.why))
        .collect();
    let told = [
        ("How nodes were connected", vec![options.medium.about()]),
        ("Figures", figures(&summary)),
        ("How long it took", vec![outcome.phases.to_string()]),
        ("Failures", outcome.failures.clone()),
        ("What could not be looked at", outcome.gaps.clone()),
        ("What was looked at", outcome.notes.clone()),
        ("Faults that were carried out", done.clone()),
        ("Faults that did not come", skipped.clone()),
        (
            "The schedule",
            outcome.schedule.iter().map(ToString::to_string).collect(),
        ),
    ];
    let validity = outcome.validity().to_string();
    let html = page(header, &validity, verdict, slice, &summary, &told);
    let write = |name: &str, text: String| {
        let path = options.dir.join(name);
        std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    };
    write("report.html", html)?;
    let mut tally: Vec<(String, usize)> = Vec::new();
    for (fault, count) in run::tally(&outcome.done) {
        tally.push((fault.name().to_owned(), count));
    }
    let json = serde_json::json!({
        "seed": options.seed,
        "nodes": options.nodes,
        "network": options.medium.about(),
        "seconds": options.length.as_secs(),
        "workers": options.workers,
        "keys": options.keys,
        "pace_ms": options.pace.as_millis(),
        "validity": validity,
        "faults_run": tally.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "faults": done,
        "faults_skipped": skipped,
        "failures": outcome.failures,
        "gaps": outcome.gaps,
        "looked_at": outcome.notes,
        "verdict": verdict,
        "slices": proofs(verdict, slice)?,
        "summary": summary,
    });
    write("report.json", serde_json::to_string_pretty(&json)?)?;
    Ok(summary)
}

/// What a report has found, line by line.
fn read_report(file: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let report = serde_json::from_slice(&text).ok();
    let lines = report.and_then(|report| found(&report));
    lines.with_context(|| format!("{} is no report", file.display()))
}

fn open(file: &Path) -> anyhow::Result<Reader<BufReader<File>>> {
    let input = File::open(file).with_context(|| format!("cannot open {}", file.display()))?;
    let input = BufReader::with_capacity(1 << 20, input);
    Reader::new(input).with_context(|| format!("{} is no history", file.display()))
}

fn judge(file: &Path, examples: usize) -> anyhow::Result<(Header, Verdict)> {
    let reader = open(file)?;
    let header = reader.header().clone();
    let mut checker = Checker::new(header.clone()).examples(examples);
    for event in reader {
        checker.push(event?)?;
    }
    Ok((header, checker.finish()?))
}

/// Goes through the history once more for the events that prove something, if there are any.
fn slice(file: &Path, anomalies: &[Anomaly]) -> anyhow::Result<Slice> {
    let mut slice = Slice::of(anomalies);
    if !slice.is_empty() {
        for event in open(file)? {
            slice.see(&event?);
        }
    }
    Ok(slice)
}

fn write_history(file: &Path, plan: &Plan) -> anyhow::Result<()> {
    let out = File::create(file).with_context(|| format!("cannot create {}", file.display()))?;
    let mut out = BufWriter::with_capacity(1 << 20, out);
    let mut written = json::write_header(&mut out, &plan.header());
    generate(plan, &mut |event: Event| {
        if written.is_ok() {
            written = json::write_event(&mut out, &event);
        }
    });
    written
        .and_then(|()| out.flush())
        .with_context(|| format!("cannot write {}", file.display()))
}
