//! `trilog-jepsen`: judges histories, and makes valid ones.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand, ValueEnum};
use trilog_jepsen::check::{Anomaly, Checker, Kind, Slice, Tally, Validity, Verdict};
use trilog_jepsen::generate::{Plan, generate};
use trilog_jepsen::history::json::{self, Reader};
use trilog_jepsen::history::{Event, Header};

/// Checks what clients of a log saw while it was mistreated.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
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
            Ok(ExitCode::from(match verdict.validity {
                Validity::Valid => 0,
                Validity::Invalid => 1,
                Validity::Unknown => 3,
            }))
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

fn text(
    out: &mut impl Write,
    file: &Path,
    header: &Header,
    verdict: &Verdict,
    slice: &Slice,
) -> io::Result<()> {
    let counts = &verdict.counts;
    let bold = |text: &str| {
        if io::stdout().is_terminal() {
            format!("\x1b[1m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    };
    let validity = bold(&verdict.validity.to_string().to_uppercase());
    writeln!(out, "{validity}  {}", file.display())?;
    writeln!(
        out,
        "{} operations ({} ok, {} fail, {} info) on {} keys, {} values sent, {} records polled",
        counts.operations,
        counts.ok,
        counts.fail,
        counts.info,
        counts.keys,
        counts.sent,
        counts.polled
    )?;
    let lag = &verdict.realtime_lag;
    writeln!(
        out,
        "realtime lag p50 {} ms, p99 {} ms, worst {} ms",
        millis(lag.p50_ns),
        millis(lag.p99_ns),
        millis(lag.worst_ns)
    )?;
    if verdict.validity == Validity::Unknown {
        writeln!(
            out,
            "not everything was read back, so what is missing is not known"
        )?;
    }
    if !verdict.tally.is_empty() {
        writeln!(
            out,
            "\n{:<22} {:>10} {:>10}",
            "anomaly", "errors", "permitted"
        )?;
    }
    for (kind, Tally { errors, allowed }) in &verdict.tally {
        writeln!(out, "{kind:<22} {errors:>10} {allowed:>10}")?;
    }
    for anomaly in &verdict.anomalies {
        describe(out, header, anomaly, slice, &bold(anomaly.kind.name()))?;
    }
    Ok(())
}

fn millis(ns: u64) -> String {
    format!("{}.{:03}", ns / 1_000_000, ns / 1_000 % 1_000)
}

fn describe(
    out: &mut impl Write,
    header: &Header,
    anomaly: &Anomaly,
    slice: &Slice,
    kind: &str,
) -> io::Result<()> {
    let permitted = if anomaly.allowed { " (permitted)" } else { "" };
    write!(out, "\n{kind}{permitted}")?;
    if let Some(key) = anomaly.key {
        let name = header.keys.get(key.0 as usize);
        let name = name.map_or(String::new(), |name| format!(" ({name})"));
        write!(out, " in key {}{name}", key.0)?;
    }
    writeln!(out, ": {}", anomaly.message)?;
    for event in slice.events(anomaly) {
        writeln!(out, "    {}", json::line(&event)?)?;
    }
    Ok(())
}

/// The verdict, with the slice of each anomaly.
#[derive(Debug, serde::Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    verdict: &'a Verdict,
    /// For each anomaly, the events that prove it.
    slices: Vec<Proof>,
}

#[derive(Debug, serde::Serialize)]
struct Proof {
    kind: Kind,
    events: Vec<serde_json::Value>,
}

fn as_json(out: &mut impl Write, verdict: &Verdict, slice: &Slice) -> io::Result<()> {
    let proof = |anomaly: &Anomaly| -> io::Result<Proof> {
        let lines = slice.events(anomaly);
        let lines = lines
            .iter()
            .map(|event| serde_json::from_str(&json::line(event)?));
        Ok(Proof {
            kind: anomaly.kind,
            events: lines.collect::<Result<_, _>>()?,
        })
    };
    let slices = verdict.anomalies.iter().map(proof);
    let slices = slices.collect::<io::Result<_>>()?;
    serde_json::to_writer_pretty(&mut *out, &Report { verdict, slices })?;
    writeln!(out)
}
