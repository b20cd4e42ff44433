//! Verdicts as they are written, for people and for programs: what was counted, what is wrong, and the
//! events that prove it.

use std::io::{self, IsTerminal, Write};
use std::path::Path;

use trilog_jepsen::check::{Anomaly, Kind, Slice, Tally, Validity, Verdict};
use trilog_jepsen::history::{Header, json};

pub(crate) fn text(
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
    for blind in &verdict.not_judged {
        writeln!(out, "not judged, {blind}")?;
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
pub(crate) struct Proof {
    kind: Kind,
    events: Vec<serde_json::Value>,
}

pub(crate) fn as_json(out: &mut impl Write, verdict: &Verdict, slice: &Slice) -> io::Result<()> {
    let slices = proofs(verdict, slice)?;
    serde_json::to_writer_pretty(&mut *out, &Report { verdict, slices })?;
    writeln!(out)
}

/// For each anomaly what proves it.
pub(crate) fn proofs(verdict: &Verdict, slice: &Slice) -> io::Result<Vec<Proof>> {
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
    verdict.anomalies.iter().map(proof).collect()
}
