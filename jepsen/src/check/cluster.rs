//! What a cluster said of itself: offsets of groups, high watermarks, terms, replicas, tiers.

use std::collections::{BTreeMap, HashMap};

use super::anomaly::{Detail, Findings, Kind};
use super::intake::{Access, NONE, Ops, Outcome, small};
use crate::history::{Function, Note};

pub(super) fn check(ops: &Ops, findings: &mut Findings) {
    groups(ops, findings);
    terms(ops, findings);
    high_watermarks(ops, findings);
    replicas(ops, findings);
    boundaries(ops, findings);
}

/// A change of a group's offset. It took effect somewhere between `began` and `ended`.
#[derive(Debug, Clone, Copy)]
struct Change {
    began: u32,
    /// [`NONE`] if that may still be to come.
    ended: u32,
    offset: u64,
    op: u32,
    acknowledged: bool,
}

/// An offset of a group below one that was acknowledged, which no other change explains.
fn groups(ops: &Ops, findings: &mut Findings) {
    let mut places: BTreeMap<(u32, u32), Vec<Access>> = BTreeMap::new();
    for access in &ops.accesses {
        places
            .entry((access.group, access.key))
            .or_default()
            .push(*access);
    }
    for accesses in places.values() {
        group_place(ops, accesses, findings);
    }
}

fn group_place(ops: &Ops, accesses: &[Access], findings: &mut Findings) {
    let of = |access: &Access| ops.row(access.op);
    let is_read = |access: &&Access| of(access).f == Function::Committed;
    let mut changes: Vec<Change> = Vec::new();
    for access in accesses.iter().filter(|access| !is_read(access)) {
        let row = of(access);
        let acknowledged = match row.outcome {
            Outcome::Fail => continue,
            outcome => outcome == Outcome::Ok,
        };
        changes.push(Change {
            began: row.invoked,
            ended: if acknowledged { row.completed } else { NONE },
            offset: access.offset,
            op: access.op,
            acknowledged,
        });
    }
    changes.sort_by_key(|change| change.ended);
    let mut latest: HashMap<u64, u32> = HashMap::new();
    let mut by_begin = changes.clone();
    by_begin.sort_by_key(|change| change.began);
    let mut began = by_begin.into_iter().peekable();
    let mut reads: Vec<&Access> = accesses.iter().filter(is_read).collect();
    reads.retain(|access| of(access).outcome == Outcome::Ok);
    reads.sort_by_key(|access| of(access).completed);
    for read in reads {
        let row = of(read);
        // Until when each offset may at the latest have been set, by what had begun by then.
        while let Some(change) = began.next_if(|change| change.began < row.completed) {
            let until = latest.entry(change.offset).or_default();
            *until = change.ended.max(*until);
        }
        let until = latest.get(&read.offset).copied();
        let before = changes.partition_point(|change| change.ended < row.invoked);
        let superseding = changes[..before]
            .iter()
            .rev()
            .take_while(|change| until.is_none_or(|until| change.ended > until))
            .filter(|change| change.acknowledged && until.is_none_or(|until| change.began > until))
            .find(|change| change.offset > read.offset);
        if let Some(change) = superseding {
            findings.error(Kind::GroupRegress, || {
                let group = &ops.groups[read.group as usize];
                Detail::new(format!(
                    "group {group} is at offset {} after {} was acknowledged",
                    read.offset, change.offset
                ))
                .key(ops, read.key)
                .at(read.offset)
                .at(change.offset)
                .op(ops, Some(change.op))
                .op(ops, Some(read.op))
            });
        }
    }
}

/// An acknowledgement of an older leader after one of a newer: sent later, or at a higher offset.
fn terms(ops: &Ops, findings: &mut Findings) {
    let mut keys: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for (nth, sent) in ops.sends.iter().enumerate() {
        if sent.offset.is_some() && sent.term.is_some() {
            keys.entry(sent.key).or_default().push(small(nth));
        }
    }
    for sends in keys.values_mut() {
        let sent = |nth: u32| &ops.sends[nth as usize];
        // (place, term, send) of each acknowledgement that raised the term.
        let mut raised: Vec<(u32, u64, u32)> = Vec::new();
        for nth in sends.iter().copied() {
            let completed = ops.row(sent(nth).op).completed;
            let term = sent(nth).term.unwrap_or(0);
            if raised.last().is_none_or(|(_, highest, _)| term > *highest) {
                raised.push((completed, term, nth));
            }
        }
        let mut stale: BTreeMap<u32, u32> = BTreeMap::new();
        for nth in sends.iter().copied() {
            let invoked = ops.row(sent(nth).op).invoked;
            let before = raised.partition_point(|(place, ..)| *place < invoked);
            if let Some((_, term, newer)) = raised[..before].last()
                && sent(nth).term.is_some_and(|own| own < *term)
            {
                stale.insert(nth, *newer);
            }
        }
        sends.sort_by_key(|nth| sent(*nth).offset);
        let mut newest: Option<u32> = None;
        for nth in sends.iter().copied() {
            match newest {
                Some(newer) if sent(nth).term < sent(newer).term => {
                    stale.entry(nth).or_insert(newer);
                }
                _ => newest = Some(nth),
            }
        }
        for (nth, newer) in stale {
            findings.error(Kind::StaleLeaderAck, || stale_detail(ops, nth, newer));
        }
    }
}

fn stale_detail(ops: &Ops, nth: u32, newer: u32) -> Detail {
    let (old, new) = (&ops.sends[nth as usize], &ops.sends[newer as usize]);
    let mut detail = Detail::new(format!(
        "value {} was acknowledged in term {}, after value {} in term {}",
        old.value,
        old.term.unwrap_or(0),
        new.value,
        new.term.unwrap_or(0)
    ))
    .key(ops, old.key)
    .value(old.value)
    .value(new.value)
    .op(ops, Some(old.op))
    .op(ops, Some(new.op));
    detail
        .offsets
        .extend([old.offset, new.offset].into_iter().flatten());
    detail
}

/// That a key was committed up to `high_watermark` was known from `time` on.
#[derive(Debug, Clone, Copy)]
struct Known {
    time: u64,
    high_watermark: u64,
    /// The note, or the operation whose acknowledgement says so.
    note: Option<u32>,
    op: Option<u32>,
}

/// What was known before somebody asked: the highest, by the time at which it was known.
#[derive(Debug, Default)]
struct Rising(Vec<Known>);

impl Rising {
    /// Keeps what raised it; `all` is in the order of time.
    fn of(mut all: Vec<Known>) -> Self {
        all.sort_by_key(|known| known.time);
        let mut highest = None;
        all.retain(|known| {
            let raises = highest.is_none_or(|highest| known.high_watermark > highest);
            highest = highest.max(Some(known.high_watermark));
            raises
        });
        Self(all)
    }

    fn before(&self, time: u64) -> Option<&Known> {
        self.0[..self.0.partition_point(|known| known.time < time)].last()
    }
}

/// A high watermark below one that was known when it was asked for: of the same life of a node;
/// or, where it was said by a proven leader, of any such, or of an acknowledgement.
fn high_watermarks(ops: &Ops, findings: &mut Findings) {
    let mut lives: BTreeMap<_, Vec<Known>> = BTreeMap::new();
    let mut leaders: BTreeMap<_, Vec<Known>> = BTreeMap::new();
    for (place, time, note) in &ops.notes {
        let Note::HighWatermark {
            key,
            node,
            boot,
            high_watermark,
            linearizable,
            ..
        } = note
        else {
            continue;
        };
        let known = Known {
            time: *time,
            high_watermark: *high_watermark,
            note: Some(*place),
            op: None,
        };
        lives.entry((*key, *node, *boot)).or_default().push(known);
        if *linearizable {
            leaders.entry(*key).or_default().push(known);
        }
    }
    if lives.is_empty() {
        return;
    }
    for sent in &ops.sends {
        let row = ops.row(sent.op);
        if let (Some(offset), Outcome::Ok) = (sent.offset, row.outcome) {
            let key = ops.keys[sent.key as usize];
            leaders.entry(key).or_default().push(Known {
                time: row.complete_time,
                high_watermark: offset.saturating_add(1),
                note: None,
                op: Some(sent.op),
            });
        }
    }
    let rising = |known: Vec<Known>| Rising::of(known);
    let lives: BTreeMap<_, _> = lives.into_iter().map(|(k, v)| (k, rising(v))).collect();
    let leaders: BTreeMap<_, _> = leaders.into_iter().map(|(k, v)| (k, rising(v))).collect();
    for (place, _, note) in &ops.notes {
        if let Note::HighWatermark {
            key,
            node,
            boot,
            linearizable,
            ..
        } = note
        {
            let life = lives.get(&(*key, *node, *boot));
            let leader = leaders.get(key).filter(|_| *linearizable);
            high_watermark(ops, *place, note, life.into_iter().chain(leader), findings);
        }
    }
}

fn high_watermark<'a>(
    ops: &Ops,
    place: u32,
    note: &Note,
    known: impl Iterator<Item = &'a Rising>,
    findings: &mut Findings,
) {
    let Note::HighWatermark {
        key,
        node,
        high_watermark,
        began,
        ..
    } = note
    else {
        return;
    };
    let known = known.filter_map(|rising| rising.before(*began));
    let Some(known) = known.max_by_key(|known| known.high_watermark) else {
        return;
    };
    if known.high_watermark > *high_watermark {
        findings.error(Kind::HwRegress, || {
            let mut detail = Detail::new(format!(
                "node {node} says that {high_watermark} is committed, after {} was",
                known.high_watermark
            ))
            .at(*high_watermark)
            .at(known.high_watermark)
            .op(ops, known.op)
            .note(place);
            detail.key = Some(*key);
            detail.events.extend(known.note.map(u64::from));
            detail
        });
    }
}

/// Replicas that differ where both have committed records.
fn replicas(ops: &Ops, findings: &mut Findings) {
    let mut sums: BTreeMap<_, (u32, u32, &str)> = BTreeMap::new();
    for (place, _, note) in &ops.notes {
        let Note::Replica {
            key,
            node,
            from,
            upto,
            checksum,
        } = note
        else {
            continue;
        };
        let (other_place, other, sum) = *sums
            .entry((*key, *from, *upto))
            .or_insert((*place, *node, checksum));
        if sum != checksum {
            findings.error(Kind::ReplicaDivergence, || {
                let mut detail = Detail::new(format!(
                    "nodes {other} and {node} hold other records in {from}..{upto}"
                ))
                .at(*from)
                .at(*upto)
                .note(other_place)
                .note(*place);
                detail.key = Some(*key);
                detail
            });
        }
    }
}

/// A tiered part that does not end where the local one begins.
fn boundaries(ops: &Ops, findings: &mut Findings) {
    for (place, _, note) in &ops.notes {
        let Note::Boundary {
            key,
            node,
            tiered_end: Some(tiered_end),
            local_start,
        } = note
        else {
            continue;
        };
        if tiered_end.checked_add(1) != Some(*local_start) {
            findings.error(Kind::BoundaryGap, || {
                let mut detail = Detail::new(format!(
                    "node {node} has tiered offsets up to {tiered_end}, and local ones from \
                     {local_start}"
                ))
                .at(*tiered_end)
                .at(*local_start)
                .note(*place);
                detail.key = Some(*key);
                detail
            });
        }
    }
}
