//! The page: what was done, what came of it, and what proves that.

use std::fmt::Write as _;

use super::plot::{availability, escape, latency, timeline};
use super::summary::Summary;
use crate::check::{Anomaly, Slice, Tally, Verdict};
use crate::history::{Header, json};

const STYLE: &str = "body{font:15px/1.45 sans-serif;max-width:1140px;margin:2em auto;padding:0 1em;\
color:#222}h1{font-size:1.5em}h2{font-size:1.15em;margin-top:1.8em}table{border-collapse:collapse}\
td,th{padding:.15em .9em .15em 0;text-align:left;vertical-align:top}pre{background:#f6f6f4;\
padding:.7em;overflow-x:auto;font-size:12px}.valid{color:#2c7a3f}.invalid{color:#b5384d}\
.unknown{color:#b06a00}";

/// One page of HTML. `told` are further lines of the harness: a heading, and what stands under it.
pub fn page(
    header: &Header,
    validity: &str,
    verdict: &Verdict,
    slice: &Slice,
    summary: &Summary,
    told: &[(&str, Vec<String>)],
) -> String {
    let mut out = String::new();
    let title = match header.seed {
        Some(seed) => format!("seed {seed}"),
        None => "a history".to_owned(),
    };
    let _ = write!(
        out,
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{title}: {validity}</title>\
         <style>{STYLE}</style><h1>{title}: <span class=\"{validity}\">{validity}</span></h1>\
         <p>{}</p>",
        escape(&header.about)
    );
    counts(&mut out, verdict, summary);
    for (heading, draw) in [
        ("Operations", availability as fn(&Summary) -> String),
        ("Latency of acknowledged writes", latency),
        ("Faults, and who led", timeline),
    ] {
        let _ = write!(out, "<h2>{heading}</h2>{}", draw(summary));
    }
    for (heading, lines) in told.iter().filter(|(_, lines)| !lines.is_empty()) {
        let lines: Vec<String> = lines.iter().map(|line| escape(line)).collect();
        let _ = write!(out, "<h2>{heading}</h2><pre>{}</pre>", lines.join("\n"));
    }
    anomalies(&mut out, header, verdict, slice);
    out.push_str("</html>\n");
    out
}

fn counts(out: &mut String, verdict: &Verdict, summary: &Summary) {
    let counts = &verdict.counts;
    let _ = write!(
        out,
        "<table><tr><th>operations<td>{} ({} ok, {} fail, {} info)<tr><th>values sent<td>{}\
         <tr><th>records polled<td>{}<tr><th>realtime lag p99<td>{} ms\
         <tr><th>longest time without an acknowledgement<td>{} ms</table>",
        counts.operations,
        counts.ok,
        counts.fail,
        counts.info,
        counts.sent,
        counts.polled,
        verdict.realtime_lag.p99_ns / 1_000_000,
        summary.longest_stall_ms
    );
    out.push_str("<table><tr><th>what ended how<th>times");
    for (name, count) in &summary.operations {
        let _ = write!(out, "<tr><td>{}<td>{count}", escape(name));
    }
    out.push_str("</table>");
    if !summary.errors.is_empty() {
        out.push_str("<details><summary>what clients were told</summary><table>");
        for (error, count) in &summary.errors {
            let _ = write!(out, "<tr><td>{count}<td>{}", escape(error));
        }
        out.push_str("</table></details>");
    }
}

fn anomalies(out: &mut String, header: &Header, verdict: &Verdict, slice: &Slice) {
    out.push_str("<h2>Anomalies</h2><table><tr><th>anomaly<th>errors<th>permitted");
    for (kind, Tally { errors, allowed }) in &verdict.tally {
        let _ = write!(out, "<tr><td>{kind}<td>{errors}<td>{allowed}");
    }
    out.push_str("</table>");
    if !verdict.not_judged.is_empty() {
        out.push_str("<p>Not judged, for want of anything to judge by:<ul>");
        for blind in &verdict.not_judged {
            let _ = write!(out, "<li>{}", escape(&blind.to_string()));
        }
        out.push_str("</ul>");
    }
    for anomaly in verdict.anomalies.iter().filter(|anomaly| !anomaly.allowed) {
        one(out, header, anomaly, slice);
    }
}

fn one(out: &mut String, header: &Header, anomaly: &Anomaly, slice: &Slice) {
    let key = anomaly.key.and_then(|key| header.keys.get(key.0 as usize));
    let key = key.map_or(String::new(), |key| format!(" in {}", escape(key)));
    let _ = write!(
        out,
        "<h3>{}{key}</h3><p>{}</p><pre>",
        anomaly.kind.name(),
        escape(&anomaly.message)
    );
    for event in slice.events(anomaly) {
        let line = json::line(&event).unwrap_or_default();
        let _ = writeln!(out, "{}", escape(&line));
    }
    out.push_str("</pre>");
}
