//! Torn transactions: a reader of committed records that began at the start of every key must see
//! a transaction whole. That it could have seen a part that it lacks follows from offsets, or from
//! a later record it did see: when any value of a transaction has been read, the transaction was
//! decided, so all of its records stand in the log before whatever is sent from then on, and a
//! reader of committed records does not pass them while they are undecided.

use std::collections::HashMap;

use super::anomaly::{Detail, Findings, Kind};
use super::intake::{NONE, Ops, Outcome, Row, small};
use super::logs::Logs;
use crate::history::Function;

/// A process that reads its keys from the start.
#[derive(Debug, Default)]
struct Scan {
    /// By key: how far it is.
    keys: HashMap<u32, Reach>,
    /// The operations whose sends it has seen.
    sends: Vec<u32>,
    last_op: u32,
}

#[derive(Debug, Clone, Copy)]
struct Reach {
    lowest: u64,
    highest: u64,
    /// Where in the history the latest send that it saw was invoked.
    sent: u32,
    /// That send.
    latest: u32,
}

pub(super) fn check(ops: &Ops, logs: &Logs, findings: &mut Findings) {
    if !ops.header.read_committed {
        return;
    }
    let mut torn = Torn {
        ops,
        logs,
        first_seen: first_seen(ops, logs),
        stamps: vec![0; ops.sends.len()],
        stamp: 0,
    };
    let mut scans: HashMap<u32, Scan> = HashMap::new();
    for (op, row) in ops.rows.iter().enumerate() {
        if matches!(row.f, Function::Assign | Function::Subscribe) {
            if row.outcome == Outcome::Fail {
                continue;
            }
            if let Some(scan) = scans.remove(&row.process) {
                torn.judge(&scan, findings);
            }
            if row.f == Function::Assign && row.seek_to_beginning {
                scans.insert(row.process, Scan::default());
            }
        } else if let Some(scan) = scans.get_mut(&row.process) {
            scan.read(ops, logs, row);
            scan.last_op = small(op);
        }
    }
    let mut scans: Vec<(u32, Scan)> = scans.into_iter().collect();
    scans.sort_by_key(|(process, _)| *process);
    for (_, scan) in &scans {
        torn.judge(scan, findings);
    }
}

/// For each operation, where in the history one of its values had first been read.
fn first_seen(ops: &Ops, logs: &Logs) -> Vec<u32> {
    let mut first = vec![NONE; ops.rows.len()];
    for row in ops.rows.iter().filter(|row| row.outcome == Outcome::Ok) {
        for run in ops.runs_of(row) {
            for number in logs.of_run(run) {
                if let Some(sent) = ops.sends.get(logs.entry(*number).send as usize) {
                    let seen = &mut first[sent.op as usize];
                    *seen = row.completed.min(*seen);
                }
            }
        }
    }
    first
}

impl Scan {
    fn read(&mut self, ops: &Ops, logs: &Logs, row: &Row) {
        for run in ops.runs_of(row) {
            for number in logs.of_run(run) {
                let entry = logs.entry(*number);
                let reach = self.keys.entry(run.key).or_insert(Reach {
                    lowest: entry.offset,
                    highest: entry.offset,
                    sent: 0,
                    latest: NONE,
                });
                reach.lowest = reach.lowest.min(entry.offset);
                reach.highest = reach.highest.max(entry.offset);
                let Some(sent) = ops.sends.get(entry.send as usize) else {
                    continue;
                };
                let invoked = ops.row(sent.op).invoked;
                if invoked > reach.sent {
                    reach.sent = invoked;
                    reach.latest = entry.send;
                }
                self.sends.push(entry.send);
            }
        }
    }
}

struct Torn<'a> {
    ops: &'a Ops,
    logs: &'a Logs,
    first_seen: Vec<u32>,
    /// For each send, the last scan that saw it.
    stamps: Vec<u32>,
    stamp: u32,
}

impl Torn<'_> {
    fn judge(&mut self, scan: &Scan, findings: &mut Findings) {
        self.stamp += 1;
        for send in &scan.sends {
            self.stamps[*send as usize] = self.stamp;
        }
        for send in &scan.sends {
            let row = self.ops.row(self.ops.sends[*send as usize].op);
            if row.sends.len() < 2 || row.outcome == Outcome::Fail {
                continue;
            }
            // Each operation is judged once, at the first of its sends that the scan saw.
            let mut seen = row.sends.range().filter(|nth| self.saw(*nth));
            if seen.next() != Some(*send as usize) {
                continue;
            }
            let missing = row
                .sends
                .range()
                .find(|nth| !self.saw(*nth) && self.passed(scan, *nth));
            if let Some(missing) = missing {
                findings.error(Kind::TornTxn, || self.detail(scan, *send as usize, missing));
            }
        }
    }

    fn saw(&self, nth: usize) -> bool {
        self.stamps[nth] == self.stamp
    }

    /// Whether a scan would have had to see a send.
    fn passed(&self, scan: &Scan, nth: usize) -> bool {
        let sent = &self.ops.sends[nth];
        let Some(reach) = scan.keys.get(&sent.key) else {
            return false;
        };
        let held = self.logs.held(small(nth));
        let offset = held.map(|(first, _)| self.logs.entry(first).offset);
        match offset.or(sent.offset) {
            Some(offset) => reach.lowest <= offset && offset < reach.highest,
            None => reach.sent > self.first_seen[sent.op as usize],
        }
    }

    fn detail(&self, scan: &Scan, seen: usize, missing: usize) -> Detail {
        let (ops, missed) = (self.ops, &self.ops.sends[missing]);
        let reach = &scan.keys[&missed.key];
        let mut detail = Detail::new(format!(
            "process {} saw value {} of a transaction and passed value {} of it",
            ops.row(scan.last_op).process,
            ops.sends[seen].value,
            missed.value
        ))
        .key(ops, missed.key)
        .at(reach.highest)
        .value(ops.sends[seen].value)
        .value(missed.value)
        .op(ops, Some(missed.op))
        .op(ops, Some(scan.last_op));
        detail.offsets.extend(missed.offset);
        match ops.sends.get(reach.latest as usize) {
            Some(latest) if missed.offset.is_none() => detail.op(ops, Some(latest.op)),
            _ => detail,
        }
    }
}
