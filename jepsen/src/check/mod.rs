//! Judges histories: takes the events in and says what is wrong with them.
//!
//! ```text
//! intake ──> logs ──> reads, order, scans, cycles, lag     what clients saw
//!    └──────────────> cluster                              what the cluster said of itself
//! ```
//!
//! The definitions are those of Jepsen's Kafka workload, and some of our own; `docs/history.md`
//! lists them. Each finding names the events that prove it. Memory is bounded by the history: a
//! record that was polled a hundred times stands in the log once.

mod anomaly;
mod blind;
mod cluster;
mod cycles;
mod intake;
mod lag;
mod logs;
mod order;
mod reads;
mod scans;
mod slice;

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

pub use anomaly::{Anomaly, Kind, Tally};
pub use blind::Blind;
pub use lag::{Lag, Worst};
pub use slice::{Slice, trim};

use crate::history::{Event, Header, Key};
use anomaly::Findings;
use intake::{Intake, Ops, Outcome};
use logs::Logs;

/// Examples that are described of each kind of anomaly; all are counted.
const EXAMPLES: usize = 8;

/// Why something is no history, so that nothing can be said of it.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Malformed {
    #[error("event {index} stands where {expected} should")]
    Index { index: u64, expected: u64 },
    #[error("event {index} is earlier than the one before it")]
    Time { index: u64 },
    #[error("event {index}: process {process} begins something while it does something else")]
    Busy { index: u64, process: u32 },
    #[error("event {index}: process {process} goes on after an unknown outcome")]
    Retired { index: u64, process: u32 },
    #[error("event {index}: process {process} ends what it did not begin")]
    Uninvoked { index: u64, process: u32 },
    #[error("event {index}: process {process} ends something else than it began")]
    Other { index: u64, process: u32 },
    #[error("event {index}: process {process} ends with other sends than it began with")]
    OtherSends { index: u64, process: u32 },
    #[error("event {index}: value {value} is sent to key {} again", key.0)]
    SentTwice { index: u64, key: Key, value: u64 },
    #[error("event {index}: offsets of no group")]
    NoGroup { index: u64 },
    #[error("event {index}: the history is too large")]
    TooLarge { index: u64 },
}

/// What a history proves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Validity {
    Valid,
    Invalid,
    /// Nothing is wrong, but not everything was read back, so much could be.
    Unknown,
}

impl fmt::Display for Validity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Valid => "valid",
            Self::Invalid => "invalid",
            Self::Unknown => "unknown",
        })
    }
}

/// How much there was to judge.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    pub events: u64,
    pub operations: u64,
    pub ok: u64,
    pub fail: u64,
    pub info: u64,
    pub keys: u64,
    pub sent: u64,
    /// Records that polls returned.
    pub polled: u64,
}

/// What was found in a history.
#[derive(Debug, Clone, Serialize)]
pub struct Verdict {
    pub validity: Validity,
    pub counts: Counts,
    pub tally: BTreeMap<Kind, Tally>,
    pub realtime_lag: Lag,
    /// What there was nothing to be judged by.
    pub not_judged: Vec<Blind>,
    /// The first ones of each kind.
    pub anomalies: Vec<Anomaly>,
}

impl Verdict {
    pub fn errors(&self) -> u64 {
        self.tally.values().map(|tally| tally.errors).sum()
    }
}

/// Takes a history in, event by event.
#[derive(Debug)]
pub struct Checker {
    intake: Intake,
    examples: usize,
}

impl Checker {
    pub fn new(header: Header) -> Self {
        Self {
            intake: Intake::new(header),
            examples: EXAMPLES,
        }
    }

    /// Describes so many anomalies of each kind.
    #[must_use]
    pub fn examples(mut self, examples: usize) -> Self {
        self.examples = examples;
        self
    }

    pub fn push(&mut self, event: Event) -> Result<(), Malformed> {
        self.intake.push(event)
    }

    pub fn finish(self) -> Result<Verdict, Malformed> {
        let ops = self.intake.finish()?;
        let logs = Logs::build(&ops)?;
        let mut findings = Findings::new(self.examples);
        reads::check(&ops, &logs, &mut findings);
        order::check(&ops, &logs, &mut findings);
        scans::check(&ops, &logs, &mut findings);
        cycles::check(&ops, &logs, &mut findings);
        cluster::check(&ops, &mut findings);
        let realtime_lag = lag::measure(&ops, &logs);
        let errors = findings.tally.values().any(|tally| tally.errors > 0);
        findings
            .examples
            .sort_by_key(|anomaly| (anomaly.allowed, anomaly.kind));
        Ok(Verdict {
            validity: match (errors, ops.done) {
                (true, _) => Validity::Invalid,
                (false, true) => Validity::Valid,
                (false, false) => Validity::Unknown,
            },
            counts: counts(&ops),
            tally: findings.tally,
            realtime_lag,
            not_judged: blind::find(&ops),
            anomalies: findings.examples,
        })
    }
}

/// Judges a history that is in memory.
pub fn check(header: &Header, events: &[Event]) -> Result<Verdict, Malformed> {
    let mut checker = Checker::new(header.clone());
    for event in events {
        checker.push(event.clone())?;
    }
    checker.finish()
}

fn counts(ops: &Ops) -> Counts {
    let of = |outcome| ops.rows.iter().filter(|row| row.outcome == outcome).count() as u64;
    Counts {
        events: ops.events.into(),
        operations: ops.rows.len() as u64,
        ok: of(Outcome::Ok),
        fail: of(Outcome::Fail),
        info: of(Outcome::Info),
        keys: ops.keys.len() as u64,
        sent: ops.sends.len() as u64,
        polled: ops.records.len() as u64,
    }
}
