//! Whether polls and sends follow the log: within an operation, and from one operation of a
//! process to the next.

use std::collections::{BTreeMap, HashMap};

use super::anomaly::{Detail, Findings, Kind, Weight};
use super::intake::{Ops, Outcome, Row, Run, small};
use super::logs::Logs;
use crate::history::Function;

/// How a process came by its keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Mode {
    /// What the client asked for is what it reads, one record after the other.
    #[default]
    Assigned,
    /// The group may move keys away and back at any time.
    Subscribed,
}

/// What a process read last.
#[derive(Debug, Default)]
struct Reader {
    mode: Mode,
    /// By key: the entry, and the operation that returned it.
    last: BTreeMap<u32, (u32, u32)>,
}

pub(super) fn check(ops: &Ops, logs: &Logs, findings: &mut Findings) {
    polls(ops, logs, findings);
    sends(ops, logs, findings);
}

fn polls(ops: &Ops, logs: &Logs, findings: &mut Findings) {
    let mut readers: HashMap<u32, Reader> = HashMap::new();
    let mut inside: Vec<(u32, u32)> = Vec::new();
    for (op, row) in ops.rows.iter().enumerate() {
        let op = small(op);
        if matches!(row.f, Function::Assign | Function::Subscribe) {
            reassign(ops, row, readers.entry(row.process).or_default());
            continue;
        }
        if row.runs.is_empty() {
            continue;
        }
        let reader = readers.entry(row.process).or_default();
        inside.clear();
        for run in ops.runs_of(row) {
            poll(&Poll { ops, logs, op, run }, reader, &mut inside, findings);
        }
        if row.outcome == Outcome::Ok {
            let last = inside.iter().map(|(key, entry)| (*key, (*entry, op)));
            reader.last.extend(last);
        }
    }
}

/// A new assignment replaces the old one: keys that stay go on where they were, unless they were
/// sought or come from a group, which keeps places of its own.
fn reassign(ops: &Ops, row: &Row, reader: &mut Reader) {
    if row.outcome != Outcome::Ok {
        return;
    }
    let mode = match row.f {
        Function::Subscribe => Mode::Subscribed,
        _ => Mode::Assigned,
    };
    if row.seek_to_beginning || mode != reader.mode {
        reader.last.clear();
    }
    let keys = &ops.assigned[row.keys.range()];
    reader.last.retain(|key, _| keys.contains(key));
    reader.mode = mode;
}

struct Poll<'a> {
    ops: &'a Ops,
    logs: &'a Logs,
    op: u32,
    run: &'a Run,
}

fn poll(poll: &Poll, reader: &Reader, inside: &mut Vec<(u32, u32)>, findings: &mut Findings) {
    let numbers = poll.logs.of_run(poll.run);
    let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
        return;
    };
    let key = poll.run.key;
    let before = inside.iter_mut().find(|(there, _)| *there == key);
    let before_number = before.as_ref().map(|(_, number)| *number);
    match before {
        Some((_, number)) => *number = *last,
        None => inside.push((key, *last)),
    }
    match before_number {
        Some(number) => poll.within(number, *first, findings),
        None => {
            if let Some((number, op)) = reader.last.get(&key) {
                poll.across(reader.mode, (*number, *op), *first, findings);
            }
        }
    }
    for pair in numbers.windows(2) {
        // By far the most common case: the next entry, at the next offset.
        if poll.logs.entry(pair[0]).rank + 1 != poll.logs.entry(pair[1]).rank {
            poll.within(pair[0], pair[1], findings);
        }
    }
}

impl Poll<'_> {
    fn delta(&self, from: u32, to: u32) -> i64 {
        i64::from(self.logs.entry(to).rank) - i64::from(self.logs.entry(from).rank)
    }

    fn within(&self, from: u32, to: u32, findings: &mut Findings) {
        let kind = match self.delta(from, to) {
            1 => return,
            2.. => Kind::IntPollSkip,
            _ => Kind::IntNonmonotonicPoll,
        };
        if !self.ops.rebalanced(self.op, self.run.key) {
            findings.error(kind, || self.detail(from, to, None));
        }
    }

    fn across(&self, mode: Mode, last: (u32, u32), to: u32, findings: &mut Findings) {
        let (from, op) = last;
        let kind = match self.delta(from, to) {
            1 => return,
            2.. => Kind::PollSkip,
            _ => Kind::NonmonotonicPoll,
        };
        let weight = Weight::allowed_if(mode == Mode::Subscribed);
        findings.add(kind, weight, || self.detail(from, to, Some(op)));
    }

    fn detail(&self, from: u32, to: u32, last: Option<u32>) -> Detail {
        let (ops, logs) = (self.ops, self.logs);
        let (before, after) = (logs.entry(from), logs.entry(to));
        let key = self.run.key;
        let skipped = skipped(logs, key, before.rank, after.rank);
        let mut detail = Detail::new(format!(
            "process {} read offset {} after offset {}",
            ops.row(self.op).process,
            after.offset,
            before.offset
        ))
        .key(ops, key)
        .at(before.offset)
        .at(after.offset)
        .op(ops, last)
        .op(ops, Some(self.op));
        if let Some(number) = skipped {
            let missed = logs.entry(number);
            let passed = format!(", past value {} at {}", missed.value, missed.offset);
            detail.message.push_str(&passed);
            detail = detail
                .at(missed.offset)
                .value(missed.value)
                .op(ops, logs.evidence(ops, number));
        }
        detail
    }
}

/// The first entry of a key between two ranks.
fn skipped(logs: &Logs, key: u32, from: u32, to: u32) -> Option<u32> {
    let mut numbers = logs.of_key(key);
    let between = |number: &usize| {
        let entry = &logs.entries[*number];
        entry.is_live() && entry.rank > from && entry.rank < to
    };
    numbers.find(between).map(small)
}

fn sends(ops: &Ops, logs: &Logs, findings: &mut Findings) {
    // By process and key: the last send.
    let mut last: HashMap<u32, BTreeMap<u32, u32>> = HashMap::new();
    let mut inside: Vec<(u32, u32)> = Vec::new();
    for row in &ops.rows {
        if row.sends.is_empty() || row.outcome == Outcome::Fail {
            continue;
        }
        let last = last.entry(row.process).or_default();
        inside.clear();
        for nth in row.sends.range() {
            let (send, key) = (small(nth), ops.sends[nth].key);
            if let Some((_, before)) = inside.iter_mut().find(|(there, _)| *there == key) {
                send_pair(ops, logs, (*before, send), findings);
                *before = send;
                continue;
            }
            if let Some(before) = last.get(&key) {
                send_pair(ops, logs, (*before, send), findings);
            }
            inside.push((key, send));
        }
        last.extend(inside.iter().copied());
    }
}

fn send_pair(ops: &Ops, logs: &Logs, (from, to): (u32, u32), findings: &mut Findings) {
    let (Some(before), Some(after)) = (logs.place(from), logs.place(to)) else {
        return;
    };
    let (before, after) = (logs.entry(before), logs.entry(after));
    let delta = i64::from(after.rank) - i64::from(before.rank);
    let (one, other) = (&ops.sends[from as usize], &ops.sends[to as usize]);
    let within = one.op == other.op;
    let (kind, weight) = match delta {
        // Others may send in between; between operations that is not even worth counting.
        2.. if within => (Kind::IntSendSkip, Weight::Allowed),
        1.. => return,
        _ if within => (Kind::IntNonmonotonicSend, Weight::Error),
        _ => (Kind::NonmonotonicSend, Weight::Error),
    };
    findings.add(kind, weight, || {
        Detail::new(format!(
            "value {} is at offset {}, sent after value {} at offset {}",
            other.value, after.offset, one.value, before.offset
        ))
        .key(ops, one.key)
        .at(before.offset)
        .at(after.offset)
        .value(one.value)
        .value(other.value)
        .op(ops, Some(one.op))
        .op(ops, Some(other.op))
    });
}
