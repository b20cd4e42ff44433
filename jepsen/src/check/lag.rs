//! Realtime lag, a figure: for how long, at least, what a process has of a key had not been the
//! latest when it began to poll.

use std::collections::{BTreeMap, HashMap};

use serde::Serialize;

use super::intake::{Ops, Outcome, Row, small};
use super::logs::Logs;
use crate::history::{Function, Key};

/// How far polls lagged behind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Lag {
    /// Each is one key of one poll.
    pub measured: u64,
    pub p50_ns: u64,
    pub p99_ns: u64,
    pub worst_ns: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub worst: Option<Worst>,
}

/// Where the lag was worst.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Worst {
    pub process: u32,
    pub key: Key,
    pub time_ns: u64,
    pub event: u64,
}

/// The first buckets are single nanoseconds, then there are eight for each power of two.
const BUCKETS: usize = 64 * 8;

fn bucket(ns: u64) -> usize {
    if ns < 8 {
        return usize::try_from(ns).unwrap_or(0);
    }
    let power = ns.ilog2();
    let eighth = usize::try_from((ns >> (power - 3)) & 7).unwrap_or(0);
    (power as usize - 2) * 8 + eighth
}

/// The upper end of a bucket.
fn ceiling(bucket: usize) -> u64 {
    if bucket < 8 {
        return bucket as u64;
    }
    let (power, eighth) = (bucket / 8 + 2, (bucket % 8) as u64);
    ((8 + eighth) << (power - 3)) + ((1 << (power - 3)) - 1)
}

/// For each key: that an offset exists, and the earliest time at which that was known, both rising.
type Known = Vec<Vec<(u64, u64)>>;

pub(super) fn measure(ops: &Ops, logs: &Logs) -> Lag {
    let known = known(ops, logs);
    let mut places: HashMap<u32, BTreeMap<u32, Option<u64>>> = HashMap::new();
    let mut counts = vec![0_u64; BUCKETS];
    let mut lag = Lag::default();
    for (op, row) in ops.rows.iter().enumerate() {
        if row.outcome != Outcome::Ok {
            continue;
        }
        match row.f {
            Function::Assign | Function::Subscribe => {
                let place = places.entry(row.process).or_default();
                reassign(ops, row, place);
            }
            Function::Poll | Function::Txn => {
                let place = places.entry(row.process).or_default();
                // What a rebalance moved may be read by others from now on.
                for key in ops.rebalanced.get(&small(op)).into_iter().flatten() {
                    place.remove(key);
                }
                advance(ops, row, place);
                for (key, offset) in place.iter() {
                    let ns = behind(&known[*key as usize], *offset, row.invoke_time);
                    counts[bucket(ns)] += 1;
                    lag.measured += 1;
                    if ns > lag.worst_ns {
                        lag.worst_ns = ns;
                        lag.worst = Some(Worst {
                            process: row.process,
                            key: ops.keys[*key as usize],
                            time_ns: row.invoke_time,
                            event: row.invoked.into(),
                        });
                    }
                }
            }
            _ => {}
        }
    }
    lag.p50_ns = quantile(&counts, lag.measured, 50).min(lag.worst_ns);
    lag.p99_ns = quantile(&counts, lag.measured, 99).min(lag.worst_ns);
    lag
}

fn quantile(counts: &[u64], measured: u64, percent: u64) -> u64 {
    let mut left = (measured * percent).div_ceil(100);
    for (bucket, count) in counts.iter().enumerate() {
        if *count >= left {
            return ceiling(bucket);
        }
        left -= count;
    }
    0
}

/// A key that is new, or sought, is read from its start; a group's keys show when they are polled.
fn reassign(ops: &Ops, row: &Row, place: &mut BTreeMap<u32, Option<u64>>) {
    let before = std::mem::take(place);
    if row.f == Function::Assign {
        for key in &ops.assigned[row.keys.range()] {
            let kept = before.get(key).copied().flatten();
            place.insert(*key, kept.filter(|_| !row.seek_to_beginning));
        }
    }
}

fn advance(ops: &Ops, row: &Row, place: &mut BTreeMap<u32, Option<u64>>) {
    for run in ops.runs_of(row) {
        let offsets = ops.records[run.records.range()].iter().map(|r| r.offset);
        let highest = offsets.max();
        let there = place.entry(run.key).or_default();
        *there = (*there).max(highest);
    }
    // What it sent itself counts as known to it, too.
    for sent in ops.sends_of(row) {
        if let Some(there) = place.get_mut(&sent.key) {
            *there = (*there).max(sent.offset);
        }
    }
}

fn known(ops: &Ops, logs: &Logs) -> Known {
    let mut known: Known = vec![Vec::new(); ops.keys.len()];
    let mut know = |key: u32, offset: u64, time: u64| {
        let rising = &mut known[key as usize];
        if rising.last().is_none_or(|(highest, _)| offset > *highest) {
            rising.push((offset, time));
        }
    };
    for (op, row) in ops.rows.iter().enumerate() {
        for run in ops.runs_of(row) {
            if let Some(last) = ops.records[run.records.range()].last() {
                know(run.key, last.offset, row.complete_time);
            }
        }
        for sent in ops.sends_of(row).iter().filter(|_| logs.must[op]) {
            if let Some(offset) = sent.offset {
                know(sent.key, offset, row.complete_time);
            }
        }
    }
    known
}

/// For how long something beyond `offset` had been known.
fn behind(known: &[(u64, u64)], offset: Option<u64>, now: u64) -> u64 {
    let next = match offset {
        Some(offset) => known.partition_point(|(there, _)| *there <= offset),
        None => 0,
    };
    known
        .get(next)
        .map_or(0, |(_, time)| now.saturating_sub(*time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_ends_at_most_an_eighth_above_what_is_in_it() {
        for ns in (0..5_000).chain([1 << 20, (1 << 40) + 12_345, u64::MAX]) {
            let end = ceiling(bucket(ns));
            assert!(end >= ns, "{ns} is not below {end}");
            assert!(end - ns <= ns / 8, "{end} is too far above {ns}");
        }
    }
}
