//! The drawings of a report, as SVG: operations and latencies over time, with faults behind them
//! and who led below.

use std::fmt::Write as _;

use super::summary::{Second, Summary};

const WIDTH: f64 = 1100.0;
const LEFT: f64 = 70.0;
const HEIGHT: f64 = 150.0;
/// One row of the lines below: of a fault or of a key.
const ROW: f64 = 16.0;
const COLORS: [&str; 6] = [
    "#2a6f97", "#e07a1f", "#3a8f4d", "#8a4fa3", "#b5384d", "#6b6b2a",
];

/// A line's name and color, and what it shows of each second.
type Shown = (&'static str, &'static str, fn(&Second) -> u64);

/// From a time to a place.
#[derive(Clone, Copy)]
struct Scale {
    end: f64,
}

impl Scale {
    fn x(self, seconds: f64) -> f64 {
        LEFT + seconds / self.end.max(1.0) * (WIDTH - LEFT - 10.0)
    }

    fn of_ns(self, ns: u64) -> f64 {
        self.x(seconds(ns))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a place on a drawing")]
fn seconds(ns: u64) -> f64 {
    ns as f64 / 1e9
}

#[expect(clippy::cast_precision_loss, reason = "a place on a drawing")]
fn number(count: u64) -> f64 {
    count as f64
}

fn open(out: &mut String, height: f64) {
    let _ = write!(
        out,
        "<svg viewBox=\"0 0 {WIDTH} {height}\" width=\"100%\" font-size=\"11\" \
         font-family=\"sans-serif\">"
    );
}

fn faults_behind(out: &mut String, summary: &Summary, scale: Scale) {
    for fault in &summary.faults {
        let (from, to) = (scale.of_ns(fault.from_ns), scale.of_ns(fault.to_ns));
        let width = (to - from).max(1.5);
        let _ = write!(
            out,
            "<rect x=\"{from:.1}\" y=\"0\" width=\"{width:.1}\" height=\"{HEIGHT}\" \
             fill=\"#b5384d\" opacity=\"0.12\"><title>{} {:?}</title></rect>",
            escape(&fault.fault),
            fault.nodes
        );
    }
    if let Some(end) = summary.final_ns {
        let x = scale.of_ns(end);
        let _ = write!(
            out,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{HEIGHT}\" stroke=\"#3a8f4d\" \
             stroke-dasharray=\"4 3\"/>"
        );
    }
}

fn line(out: &mut String, points: impl Iterator<Item = (f64, f64)>, color: &str, name: &str) {
    let mut path = String::new();
    for (x, y) in points {
        let command = if path.is_empty() { 'M' } else { 'L' };
        let _ = write!(path, "{command}{x:.1} {y:.1}");
    }
    let _ = write!(
        out,
        "<path d=\"{path}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"1.3\">\
         <title>{name}</title></path>"
    );
}

/// A word of the legend; where the next one goes.
fn legend(out: &mut String, x: f64, color: &str, name: &str) -> f64 {
    let _ = write!(
        out,
        "<text x=\"{x:.0}\" y=\"{:.0}\" fill=\"{color}\">{name}</text>",
        HEIGHT + 14.0
    );
    x + 9.0 * number(name.len() as u64)
}

fn axis(out: &mut String, y: f64, text: &str) {
    let _ = write!(
        out,
        "<line x1=\"{LEFT}\" x2=\"{WIDTH}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#ddd\"/>\
         <text x=\"{:.0}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#666\">{text}</text>",
        LEFT - 6.0,
        y + 4.0
    );
}

fn scale(summary: &Summary) -> Scale {
    Scale {
        end: seconds(summary.end_ns),
    }
}

/// Operations a second, by how they ended.
pub(super) fn availability(summary: &Summary) -> String {
    let scale = scale(summary);
    let most = summary
        .seconds
        .iter()
        .map(|second| second.ok.max(second.fail).max(second.info));
    let most = most.max().unwrap_or(1).max(1);
    let y = |count: u64| HEIGHT - number(count) / number(most) * (HEIGHT - 10.0);
    let mut out = String::new();
    open(&mut out, HEIGHT + 20.0);
    faults_behind(&mut out, summary, scale);
    axis(&mut out, y(0), "0");
    axis(&mut out, y(most), &format!("{most}/s"));
    let mut at = LEFT;
    let kinds: [Shown; 3] = [
        ("ok", COLORS[0], |second| second.ok),
        ("fail", COLORS[1], |second| second.fail),
        ("info", COLORS[3], |second| second.info),
    ];
    for (name, color, of) in kinds {
        let points = summary.seconds.iter();
        let points = points.map(|second| (scale.x(number(second.at) + 0.5), y(of(second))));
        line(&mut out, points, color, name);
        at = legend(&mut out, at, color, name) + 12.0;
    }
    out.push_str("</svg>");
    out
}

/// How long acknowledged writes took, on a logarithmic scale.
pub(super) fn latency(summary: &Summary) -> String {
    let scale = scale(summary);
    // From 0.1 ms to 100 s.
    let y = |us: u64| {
        let decades = (number(us.max(100)) / 100.0).log10() / 6.0;
        HEIGHT - decades.min(1.0) * (HEIGHT - 10.0)
    };
    let mut out = String::new();
    open(&mut out, HEIGHT + 20.0);
    faults_behind(&mut out, summary, scale);
    let marks = [
        (1_000, "1 ms"),
        (10_000, "10 ms"),
        (100_000, "100 ms"),
        (1_000_000, "1 s"),
    ];
    for (us, text) in marks.into_iter().chain([(10_000_000, "10 s")]) {
        axis(&mut out, y(us), text);
    }
    let mut at = LEFT;
    let kinds: [Shown; 3] = [
        ("p50", COLORS[2], |second| second.latency_p50_us),
        ("p99", COLORS[0], |second| second.latency_p99_us),
        ("max", COLORS[4], |second| second.latency_max_us),
    ];
    for (name, color, of) in kinds {
        let acknowledged = summary.seconds.iter().filter(|second| of(second) > 0);
        let points = acknowledged.map(|second| (scale.x(number(second.at) + 0.5), y(of(second))));
        line(&mut out, points, color, name);
        at = legend(&mut out, at, color, name) + 12.0;
    }
    out.push_str("</svg>");
    out
}

/// A row for each fault, and one for each key with who led it.
pub(super) fn timeline(summary: &Summary) -> String {
    let scale = scale(summary);
    let mut names: Vec<&str> = summary
        .faults
        .iter()
        .map(|fault| fault.fault.as_str())
        .collect();
    names.sort_unstable();
    names.dedup();
    let mut keys: Vec<u32> = summary.leaders.iter().map(|leader| leader.key).collect();
    keys.sort_unstable();
    keys.dedup();
    let rows = number((names.len() + keys.len()) as u64);
    let mut out = String::new();
    open(&mut out, rows * ROW + 24.0);
    let mut y = 4.0;
    for name in names {
        label(&mut out, y, &escape(name));
        for fault in summary.faults.iter().filter(|fault| fault.fault == name) {
            let (from, to) = (scale.of_ns(fault.from_ns), scale.of_ns(fault.to_ns));
            bar(
                &mut out,
                (from, to),
                y,
                COLORS[4],
                &format!("{:?}", fault.nodes),
            );
        }
        y += ROW;
    }
    for key in keys {
        label(&mut out, y, &format!("key {key}"));
        let leaders: Vec<_> = summary
            .leaders
            .iter()
            .filter(|one| one.key == key)
            .collect();
        for (nth, one) in leaders.iter().enumerate() {
            let to = leaders
                .get(nth + 1)
                .map_or(summary.end_ns, |next| next.from_ns);
            let color = COLORS[one.node as usize % COLORS.len()];
            let ends = (scale.of_ns(one.from_ns), scale.of_ns(to));
            bar(
                &mut out,
                ends,
                y,
                color,
                &format!("node {} in term {}", one.node, one.term),
            );
        }
        y += ROW;
    }
    let end = seconds(summary.end_ns);
    for tenth in 0..=10_u32 {
        let at = end * f64::from(tenth) / 10.0;
        let _ = write!(
            out,
            "<text x=\"{:.0}\" y=\"{:.0}\" fill=\"#666\" text-anchor=\"middle\">{at:.0} s</text>",
            scale.x(at),
            y + 12.0
        );
    }
    out.push_str("</svg>");
    out
}

fn label(out: &mut String, y: f64, text: &str) {
    let (x, y) = (LEFT - 6.0, y + 11.0);
    let _ = write!(
        out,
        "<text x=\"{x}\" y=\"{y}\" text-anchor=\"end\" fill=\"#444\">{text}</text>"
    );
}

fn bar(out: &mut String, (from, to): (f64, f64), y: f64, color: &str, title: &str) {
    let (width, height) = ((to - from).max(1.5), ROW - 4.0);
    let _ = write!(
        out,
        "<rect x=\"{from:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{height}\" \
         fill=\"{color}\" opacity=\"0.75\"><title>{title}</title></rect>"
    );
}

/// Text as it may stand in a page.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}
