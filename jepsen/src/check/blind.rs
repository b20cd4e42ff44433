//! Checks that a history gives nothing to look at: they find nothing, whatever happened, and that has
//! to be said.

use std::collections::BTreeSet;
use std::fmt;

use serde::Serialize;

use super::anomaly::Kind;
use super::intake::{Ops, Outcome};
use crate::history::{Function, Note};

/// What was not judged, and what of it was missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Blind {
    pub kind: Kind,
    pub lacks: &'static str,
}

impl fmt::Display for Blind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind.name(), self.lacks)
    }
}

pub(super) fn find(ops: &Ops) -> Vec<Blind> {
    let seen = Seen::of(ops);
    let all = [
        (
            seen.transaction,
            Kind::TornTxn,
            "no transaction of several sends was acknowledged",
        ),
        (
            seen.offset,
            Kind::GroupRegress,
            "nobody was told an offset of a group after one was committed",
        ),
        (
            seen.high_watermark,
            Kind::HwRegress,
            "nobody said how far keys are committed",
        ),
        (
            seen.proven,
            Kind::HwRegress,
            "no proven leader said how far keys are committed, to be held against what was \
             acknowledged",
        ),
        (
            seen.term,
            Kind::StaleLeaderAck,
            "no acknowledgement bears a term",
        ),
        (
            seen.replicas,
            Kind::ReplicaDivergence,
            "no two replicas of a key were compared",
        ),
        (seen.tier, Kind::BoundaryGap, "nothing was tiered"),
    ];
    let blind = all.into_iter().filter(|(seen, ..)| !seen);
    blind
        .map(|(_, kind, lacks)| Blind { kind, lacks })
        .collect()
}

/// What there was to look at.
#[derive(Debug, Default)]
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is another thing that may be there"
)]
struct Seen {
    transaction: bool,
    offset: bool,
    high_watermark: bool,
    proven: bool,
    term: bool,
    replicas: bool,
    tier: bool,
}

impl Seen {
    fn of(ops: &Ops) -> Self {
        let ok = |op: u32| ops.row(op).outcome == Outcome::Ok;
        let mut seen = Self {
            transaction: ops
                .rows
                .iter()
                .any(|row| row.outcome == Outcome::Ok && row.sends.len() > 1),
            term: ops
                .sends
                .iter()
                .any(|sent| ok(sent.op) && sent.offset.is_some() && sent.term.is_some()),
            ..Self::default()
        };
        let mut changed: BTreeSet<(u32, u32)> = BTreeSet::new();
        for access in ops.accesses.iter().filter(|access| ok(access.op)) {
            let place = (access.group, access.key);
            if ops.row(access.op).f == Function::Committed {
                seen.offset |= changed.contains(&place);
            } else {
                changed.insert(place);
            }
        }
        let mut compared = BTreeSet::new();
        for (_, _, note) in &ops.notes {
            match note {
                Note::HighWatermark { linearizable, .. } => {
                    seen.high_watermark = true;
                    seen.proven |= linearizable;
                }
                Note::Replica {
                    key, from, upto, ..
                } => seen.replicas |= !compared.insert((*key, *from, *upto)),
                Note::Boundary { tiered_end, .. } => seen.tier |= tiered_end.is_some(),
                Note::Leader { .. }
                | Note::FaultBegin { .. }
                | Note::FaultEnd { .. }
                | Note::Final
                | Note::Done => {}
            }
        }
        seen
    }
}
