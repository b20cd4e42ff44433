//! What can be wrong with a history, and what was found to be.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use super::intake::{Ops, Row};
use crate::history::Key;

/// The anomalies of `docs/history.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    InconsistentOffsets,
    Duplicate,
    LostWrite,
    Unseen,
    /// G1a.
    AbortedRead,
    /// A value that nobody sent.
    UnwrittenRead,
    PrecommittedRead,
    IntPollSkip,
    IntNonmonotonicPoll,
    PollSkip,
    NonmonotonicPoll,
    IntSendSkip,
    IntNonmonotonicSend,
    NonmonotonicSend,
    G0,
    G0Process,
    G0Realtime,
    G1c,
    G1cProcess,
    G1cRealtime,
    TornTxn,
    GroupRegress,
    HwRegress,
    StaleLeaderAck,
    ReplicaDivergence,
    BoundaryGap,
}

impl Kind {
    pub const ALL: [Self; 26] = [
        Self::InconsistentOffsets,
        Self::Duplicate,
        Self::LostWrite,
        Self::Unseen,
        Self::AbortedRead,
        Self::UnwrittenRead,
        Self::PrecommittedRead,
        Self::IntPollSkip,
        Self::IntNonmonotonicPoll,
        Self::PollSkip,
        Self::NonmonotonicPoll,
        Self::IntSendSkip,
        Self::IntNonmonotonicSend,
        Self::NonmonotonicSend,
        Self::G0,
        Self::G0Process,
        Self::G0Realtime,
        Self::G1c,
        Self::G1cProcess,
        Self::G1cRealtime,
        Self::TornTxn,
        Self::GroupRegress,
        Self::HwRegress,
        Self::StaleLeaderAck,
        Self::ReplicaDivergence,
        Self::BoundaryGap,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::InconsistentOffsets => "inconsistent-offsets",
            Self::Duplicate => "duplicate",
            Self::LostWrite => "lost-write",
            Self::Unseen => "unseen",
            Self::AbortedRead => "aborted-read",
            Self::UnwrittenRead => "unwritten-read",
            Self::PrecommittedRead => "precommitted-read",
            Self::IntPollSkip => "int-poll-skip",
            Self::IntNonmonotonicPoll => "int-nonmonotonic-poll",
            Self::PollSkip => "poll-skip",
            Self::NonmonotonicPoll => "nonmonotonic-poll",
            Self::IntSendSkip => "int-send-skip",
            Self::IntNonmonotonicSend => "int-nonmonotonic-send",
            Self::NonmonotonicSend => "nonmonotonic-send",
            Self::G0 => "G0",
            Self::G0Process => "G0-process",
            Self::G0Realtime => "G0-realtime",
            Self::G1c => "G1c",
            Self::G1cProcess => "G1c-process",
            Self::G1cRealtime => "G1c-realtime",
            Self::TornTxn => "torn-txn",
            Self::GroupRegress => "group-regress",
            Self::HwRegress => "hw-regress",
            Self::StaleLeaderAck => "stale-leader-ack",
            Self::ReplicaDivergence => "replica-divergence",
            Self::BoundaryGap => "boundary-gap",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl Serialize for Kind {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// How often something was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Tally {
    pub errors: u64,
    /// What Kafka's isolation permits.
    pub allowed: u64,
}

/// One anomaly, with the events that prove it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Anomaly {
    pub kind: Kind,
    /// Permitted by Kafka's isolation, hence no error.
    pub allowed: bool,
    pub message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key: Option<Key>,
    /// What of that key it is about.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub offsets: Vec<u64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<u64>,
    /// The events that prove it, by index.
    pub events: Vec<u64>,
}

/// The part of an anomaly that only its checker knows.
#[derive(Debug, Default)]
pub(super) struct Detail {
    pub(super) message: String,
    pub(super) key: Option<Key>,
    pub(super) offsets: Vec<u64>,
    pub(super) values: Vec<u64>,
    pub(super) events: Vec<u64>,
}

impl Detail {
    pub(super) fn new(message: String) -> Self {
        Self {
            message,
            ..Self::default()
        }
    }

    pub(super) fn key(mut self, ops: &Ops, key: u32) -> Self {
        self.key = Some(ops.keys[key as usize]);
        self
    }

    pub(super) fn at(mut self, offset: u64) -> Self {
        self.offsets.push(offset);
        self
    }

    pub(super) fn value(mut self, value: u64) -> Self {
        self.values.push(value);
        self
    }

    pub(super) fn row(mut self, row: &Row) -> Self {
        self.events.extend(row.events());
        self
    }

    pub(super) fn op(self, ops: &Ops, op: Option<u32>) -> Self {
        match op {
            Some(op) => self.row(ops.row(op)),
            None => self,
        }
    }

    pub(super) fn note(mut self, place: u32) -> Self {
        self.events.push(place.into());
        self
    }
}

/// Whether a find is an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    Error,
    Allowed,
}

impl Weight {
    pub(super) fn allowed_if(allowed: bool) -> Self {
        if allowed { Self::Allowed } else { Self::Error }
    }
}

/// What all checkers found: everything counted, and examples.
#[derive(Debug)]
pub(super) struct Findings {
    examples_per_kind: usize,
    pub(super) tally: BTreeMap<Kind, Tally>,
    pub(super) examples: Vec<Anomaly>,
}

impl Findings {
    pub(super) fn new(examples_per_kind: usize) -> Self {
        Self {
            examples_per_kind,
            tally: BTreeMap::new(),
            examples: Vec::new(),
        }
    }

    /// Counts one, and has it described if there are few of its kind yet.
    pub(super) fn add(&mut self, kind: Kind, weight: Weight, detail: impl FnOnce() -> Detail) {
        let tally = self.tally.entry(kind).or_default();
        let count = match weight {
            Weight::Error => &mut tally.errors,
            Weight::Allowed => &mut tally.allowed,
        };
        *count += 1;
        if usize::try_from(*count).unwrap_or(usize::MAX) > self.examples_per_kind {
            return;
        }
        let mut detail = detail();
        detail.events.sort_unstable();
        detail.events.dedup();
        self.examples.push(Anomaly {
            kind,
            allowed: weight == Weight::Allowed,
            message: detail.message,
            key: detail.key,
            offsets: detail.offsets,
            values: detail.values,
            events: detail.events,
        });
    }

    pub(super) fn error(&mut self, kind: Kind, detail: impl FnOnce() -> Detail) {
        self.add(kind, Weight::Error, detail);
    }
}
