//! What was read against what was sent: lost, seen twice, never seen, seen too early, or seen
//! though it should not exist.

use super::anomaly::{Detail, Findings, Kind, Weight};
use super::intake::{NONE, Ops, Outcome, small};
use super::logs::Logs;

pub(super) fn check(ops: &Ops, logs: &Logs, findings: &mut Findings) {
    for key in 0..small(ops.keys.len()) {
        inconsistent(ops, logs, key, findings);
        lost(ops, logs, key, findings);
    }
    duplicates(ops, logs, findings);
    unseen(ops, logs, findings);
    polls(ops, logs, findings);
}

/// An offset with more than one value.
fn inconsistent(ops: &Ops, logs: &Logs, key: u32, findings: &mut Findings) {
    let live: Vec<usize> = logs
        .of_key(key)
        .filter(|number| logs.entries[*number].is_live())
        .collect();
    for group in live.chunk_by(|a, b| logs.entries[*a].rank == logs.entries[*b].rank) {
        if group.len() < 2 {
            continue;
        }
        findings.error(Kind::InconsistentOffsets, || {
            let offset = logs.entries[group[0]].offset;
            let mut detail = Detail::new(String::new()).key(ops, key).at(offset);
            for number in group {
                let evidence = logs.evidence(ops, small(*number));
                detail = detail.value(logs.entries[*number].value).op(ops, evidence);
            }
            detail.message = format!("offset {offset} holds the values {:?}", detail.values);
            detail
        });
    }
}

/// Below something that was read, everything that must have committed must have been read, too.
fn lost(ops: &Ops, logs: &Logs, key: u32, findings: &mut Findings) {
    let first = |number: usize| {
        let send = logs.entries[number].send;
        let held = (send != NONE).then(|| logs.held(send)).flatten();
        held.map_or(number, |(first, _)| first as usize)
    };
    let read = logs.of_key(key).filter(|n| logs.entries[*n].is_read());
    let Some(bound) = read.map(first).max_by_key(|n| logs.entries[*n].rank) else {
        return;
    };
    for number in logs.of_key(key) {
        let entry = &logs.entries[number];
        if entry.send == NONE || !entry.is_live() || logs.read[entry.send as usize] {
            continue;
        }
        let sent = &ops.sends[entry.send as usize];
        let last = logs
            .held(entry.send)
            .is_some_and(|(_, last)| last as usize == number);
        if last && entry.rank <= logs.entries[bound].rank && logs.must[sent.op as usize] {
            findings.error(Kind::LostWrite, || {
                let beyond = logs.entries[bound].offset;
                Detail::new(format!(
                    "value {} at offset {} was never read, though offset {beyond} was",
                    entry.value, entry.offset
                ))
                .key(ops, key)
                .at(entry.offset)
                .at(beyond)
                .value(entry.value)
                .op(ops, Some(sent.op))
                .op(ops, logs.reader(ops, small(bound)))
            });
        }
    }
}

/// A value at more than one offset.
fn duplicates(ops: &Ops, logs: &Logs, findings: &mut Findings) {
    let weight = Weight::allowed_if(!ops.header.idempotence);
    for (nth, sent) in ops.sends.iter().enumerate() {
        let Some((first, last)) = logs.held(small(nth)) else {
            continue;
        };
        if first == last {
            continue;
        }
        findings.add(Kind::Duplicate, weight, || {
            let (one, other) = (logs.entry(first).offset, logs.entry(last).offset);
            Detail::new(format!(
                "value {} is at offset {one} and at offset {other}",
                sent.value
            ))
            .key(ops, sent.key)
            .at(one)
            .at(other)
            .value(sent.value)
            .op(ops, Some(sent.op))
            .op(ops, logs.evidence(ops, first))
            .op(ops, logs.evidence(ops, last))
        });
    }
}

/// Sent, and not read by anybody to the end. While not everything was read back, that is no error.
fn unseen(ops: &Ops, logs: &Logs, findings: &mut Findings) {
    let weight = Weight::allowed_if(!ops.done);
    for (nth, sent) in ops.sends.iter().enumerate() {
        if logs.read[nth] || ops.row(sent.op).outcome != Outcome::Ok {
            continue;
        }
        findings.add(Kind::Unseen, weight, || {
            let mut detail = Detail::new(format!(
                "value {} was acknowledged and read by nobody to the end",
                sent.value
            ));
            detail.offsets.extend(sent.offset);
            detail
                .key(ops, sent.key)
                .value(sent.value)
                .op(ops, Some(sent.op))
        });
    }
}

/// Values that a poll should not have returned.
fn polls(ops: &Ops, logs: &Logs, findings: &mut Findings) {
    // What is wrong with an entry whoever reads it.
    let failed = |send: u32| {
        let sent = ops.sends.get(send as usize);
        sent.is_some_and(|sent| ops.row(sent.op).outcome == Outcome::Fail)
    };
    let unsound: Vec<Option<Kind>> = logs
        .entries
        .iter()
        .map(|entry| match entry.send {
            NONE => Some(Kind::UnwrittenRead),
            send if failed(send) => Some(Kind::AbortedRead),
            _ => None,
        })
        .collect();
    // Who asked for what is not committed gets it.
    let weight = |kind| {
        let asked = !ops.header.read_committed && kind != Kind::UnwrittenRead;
        Weight::allowed_if(asked)
    };
    for (op, row) in ops.rows.iter().enumerate() {
        for run in ops.runs_of(row) {
            for number in logs.of_run(run) {
                let entry = logs.entry(*number);
                let own =
                    !row.sends.is_empty() && row.sends.range().contains(&(entry.send as usize));
                let kind = match unsound[*number as usize] {
                    _ if own => Kind::PrecommittedRead,
                    Some(Kind::AbortedRead) if row.outcome != Outcome::Ok => continue,
                    Some(kind) => kind,
                    None => continue,
                };
                findings.add(kind, weight(kind), || {
                    read_detail(ops, kind, (run.key, entry.offset, entry.value))
                        .op(ops, Some(small(op)))
                        .op(ops, ops.sends.get(entry.send as usize).map(|sent| sent.op))
                });
            }
        }
    }
}

fn read_detail(ops: &Ops, kind: Kind, (key, offset, value): (u32, u64, u64)) -> Detail {
    let what = match kind {
        Kind::PrecommittedRead => "was read by the very operation that sent it",
        Kind::AbortedRead => "was read though its send failed",
        _ => "was read and never sent",
    };
    Detail::new(format!("value {value} at offset {offset} {what}"))
        .key(ops, key)
        .at(offset)
        .value(value)
}
