//! Ways of spoiling a valid history: at least one for each kind of anomaly.

#![expect(clippy::ptr_arg, reason = "all mutators have one signature")]

mod cluster;

use rand::SeedableRng;
use std::cmp::Ordering;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use trilog_jepsen::check::Kind;
use trilog_jepsen::history::{Event, Function, Key, Mop, Note, Op, Record, Stage, What};

use cluster::{diverge, gap, group_regress, hw_below_ack, hw_below_itself, offset_gone, stale_ack};

pub(crate) struct Mutator {
    pub(crate) kind: Kind,
    pub(crate) what: &'static str,
    /// Whether what it plants is permitted, and must be found all the same.
    pub(crate) allowed: bool,
    /// Whether it wants a history without transactions.
    pub(crate) plain: bool,
    /// Spoils a history, if it has a place for that.
    pub(crate) spoil: fn(&mut Vec<Event>, u64) -> Option<()>,
}

const fn error(
    kind: Kind,
    what: &'static str,
    spoil: fn(&mut Vec<Event>, u64) -> Option<()>,
) -> Mutator {
    Mutator {
        kind,
        what,
        allowed: false,
        plain: false,
        spoil,
    }
}

const fn permitted(
    kind: Kind,
    what: &'static str,
    spoil: fn(&mut Vec<Event>, u64) -> Option<()>,
) -> Mutator {
    Mutator {
        kind,
        what,
        allowed: true,
        plain: true,
        spoil,
    }
}

pub(crate) const ALL: &[Mutator] = &[
    error(Kind::InconsistentOffsets, "another value", other_value),
    error(Kind::Duplicate, "a value again", again),
    error(Kind::LostWrite, "hidden from all polls", lose),
    error(Kind::Unseen, "the end hidden from all polls", hide_end),
    error(Kind::AbortedRead, "a send that failed", fail_send),
    error(Kind::UnwrittenRead, "a value of nobody", foreign),
    error(
        Kind::UnwrittenRead,
        "a value of nobody in a poll that failed for it",
        |e, _| damaged(e),
    ),
    error(Kind::PrecommittedRead, "its own send", own_send),
    error(Kind::IntPollSkip, "a record left out", inner_skip),
    error(
        Kind::IntNonmonotonicPoll,
        "two records exchanged",
        inner_swap,
    ),
    error(Kind::PollSkip, "the first record left out", outer_skip),
    error(Kind::NonmonotonicPoll, "the last record again", outer_again),
    permitted(Kind::IntSendSkip, "a send between two", send_skip),
    error(
        Kind::IntNonmonotonicSend,
        "offsets exchanged",
        inner_send_swap,
    ),
    error(Kind::NonmonotonicSend, "offsets exchanged", outer_send_swap),
    permitted(Kind::G0, "two crossed transactions", |e, _| {
        g0(e, [900, 901], false)
    }),
    permitted(Kind::G0Process, "a later one below", |e, _| {
        g0(e, [900, 900], true)
    }),
    permitted(Kind::G0Realtime, "a later one below", |e, _| {
        g0(e, [900, 901], true)
    }),
    permitted(Kind::G1c, "a reader below", g1c_with_ww),
    error(Kind::G1c, "each read the other", |e, _| g1c(e)),
    error(Kind::G1cProcess, "read, then sent", |e, _| foreseen(e, 900)),
    error(Kind::G1cRealtime, "read, then sent by another", |e, _| {
        foreseen(e, 901)
    }),
    error(Kind::TornTxn, "a record left out of one scan", tear),
    error(
        Kind::TornTxn,
        "a record that nobody knows the offset of",
        tear_unknown,
    ),
    error(Kind::GroupRegress, "an older offset", |e, _| {
        group_regress(e)
    }),
    error(Kind::GroupRegress, "an offset that is gone", |e, seed| {
        offset_gone(e, seed, false)
    }),
    error(
        Kind::GroupRegress,
        "an offset that is gone in the end",
        |e, seed| offset_gone(e, seed, true),
    ),
    error(Kind::HwRegress, "below what was acknowledged", hw_below_ack),
    error(Kind::HwRegress, "below what the node said", |e, _| {
        hw_below_itself(e)
    }),
    error(
        Kind::StaleLeaderAck,
        "an early ack of a later term",
        stale_ack,
    ),
    error(Kind::ReplicaDivergence, "another checksum", diverge),
    error(Kind::BoundaryGap, "a record between", gap),
];

/// What an event has in it that checkers have to cope with.
pub(crate) fn traits(event: &Event) -> Vec<&'static str> {
    let What::Op(op) = &event.what else {
        return Vec::new();
    };
    let polled = op
        .mops
        .iter()
        .any(|mop| matches!(mop, Mop::Poll(runs) if !runs.is_empty()));
    let txn = op.f == Function::Txn;
    let all = [
        ("rebalance", !op.rebalance_log.is_empty() && polled),
        ("info with results", op.stage == Stage::Info && polled),
        (
            "info without results",
            op.stage == Stage::Info && txn && op.mops.is_empty(),
        ),
        ("failed transaction", op.stage == Stage::Fail && txn),
        ("transaction", op.stage == Stage::Ok && txn && polled),
        ("crash", op.f == Function::Crash),
        ("assign", op.f == Function::Assign),
        ("subscribe", op.f == Function::Subscribe),
        ("seek", op.seek_to_beginning),
        (
            "group offsets",
            op.stage == Stage::Ok && !op.offsets.is_empty() && polled,
        ),
        (
            "group offsets that may be committed",
            op.stage == Stage::Info && !op.offsets.is_empty() && txn,
        ),
        (
            "a group at the start",
            op.stage == Stage::Ok
                && op.f == Function::Committed
                && op.offsets.iter().any(|(_, offset)| *offset == 0),
        ),
    ];
    all.into_iter()
        .filter(|(_, has)| *has)
        .map(|(what, _)| what)
        .collect()
}

/// Makes indexes and times follow the events' places again.
pub(crate) fn renumber(events: &mut [Event]) {
    let mut time = 0;
    for (nth, event) in events.iter_mut().enumerate() {
        event.index = nth as u64;
        time = event.time.max(time + 1);
        event.time = time;
    }
}

fn op(event: &Event) -> Option<&Op> {
    match &event.what {
        What::Op(op) => Some(op),
        What::Note(_) => None,
    }
}

fn op_mut(event: &mut Event) -> &mut Op {
    match &mut event.what {
        What::Op(op) => op,
        What::Note(_) => panic!("no operation"),
    }
}

/// Where a record was polled.
#[derive(Clone, Copy)]
struct At {
    event: usize,
    mop: usize,
    run: usize,
    record: usize,
    key: Key,
    read: Record,
}

fn polls(events: &[Event], stage: Stage) -> Vec<At> {
    let mut found = Vec::new();
    for (event, of) in events.iter().enumerate() {
        let Some(op) = op(of).filter(|op| op.stage == stage) else {
            continue;
        };
        for (mop, step) in op.mops.iter().enumerate() {
            let Mop::Poll(runs) = step else { continue };
            for (run, (key, records)) in runs.iter().enumerate() {
                for (record, read) in records.iter().enumerate() {
                    found.push(At {
                        event,
                        mop,
                        run,
                        record,
                        key: *key,
                        read: *read,
                    });
                }
            }
        }
    }
    found
}

fn records<'a>(events: &'a mut [Event], at: &At) -> &'a mut Vec<Record> {
    match &mut op_mut(&mut events[at.event]).mops[at.mop] {
        Mop::Poll(runs) => &mut runs[at.run].1,
        Mop::Send { .. } => panic!("no poll"),
    }
}

/// How many records a poll returned of a key at once.
fn length(events: &[Event], at: &At) -> usize {
    match &op(&events[at.event]).map(|op| &op.mops[at.mop]) {
        Some(Mop::Poll(runs)) => runs[at.run].1.len(),
        _ => 0,
    }
}

/// An acknowledged send.
#[derive(Clone, Copy)]
struct Ack {
    event: usize,
    mop: usize,
    process: u32,
    key: Key,
    value: u64,
    offset: u64,
}

fn acks(events: &[Event]) -> Vec<Ack> {
    let mut found = Vec::new();
    for (event, of) in events.iter().enumerate() {
        let Some(op) = op(of).filter(|op| op.stage == Stage::Ok) else {
            continue;
        };
        for (mop, step) in op.mops.iter().enumerate() {
            if let Mop::Send {
                key,
                value,
                offset: Some(offset),
                ..
            } = step
            {
                found.push(Ack {
                    event,
                    mop,
                    process: op.process,
                    key: *key,
                    value: *value,
                    offset: *offset,
                });
            }
        }
    }
    found
}

fn set_offset(events: &mut [Event], ack: &Ack, to: u64) {
    if let Mop::Send { offset, .. } = &mut op_mut(&mut events[ack.event]).mops[ack.mop] {
        *offset = Some(to);
    }
}

fn any<T: Copy>(of: &[T], seed: u64) -> Option<T> {
    of.choose(&mut SmallRng::seed_from_u64(seed)).copied()
}

/// Takes records out of all polls.
fn hide(events: &mut [Event], hidden: impl Fn(Key, Record) -> bool) {
    for event in events {
        let What::Op(op) = &mut event.what else {
            continue;
        };
        for mop in &mut op.mops {
            if let Mop::Poll(runs) = mop {
                for (key, records) in runs.iter_mut() {
                    records.retain(|record| !hidden(*key, *record));
                }
            }
        }
    }
}

fn other_value(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    let acks = acks(events);
    let known = |at: &At| {
        acks.iter()
            .any(|ack| ack.key == at.key && ack.offset == at.read.offset)
    };
    let polls: Vec<At> = polls(events, Stage::Ok).into_iter().filter(known).collect();
    let at = any(&polls, seed)?;
    let other = acks
        .iter()
        .find(|ack| ack.key == at.key && ack.value != at.read.value)?;
    records(events, &at)[at.record].value = other.value;
    Some(())
}

fn again(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    let polls = polls(events, Stage::Ok);
    let at = any(&polls, seed)?;
    let end = polls
        .iter()
        .filter(|other| other.key == at.key)
        .map(|other| other.read.offset);
    let offset = end.max()? + 10;
    let value = at.read.value;
    records(events, &at).push(Record { offset, value });
    Some(())
}

fn lose(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    let polls = polls(events, Stage::Ok);
    let mut acks = acks(events);
    acks.retain(|ack| {
        let beyond = |at: &At| at.key == ack.key && at.read.offset > ack.offset;
        polls.iter().any(beyond)
    });
    let lost = any(&acks, seed)?;
    hide(events, |key, record| {
        key == lost.key && record.value == lost.value
    });
    Some(())
}

fn hide_end(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    let from = any(&acks(events), seed)?;
    hide(events, |key, record| {
        key == from.key && record.offset >= from.offset
    });
    Some(())
}

fn fail_send(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    let read = polls(events, Stage::Ok);
    let mut acks = acks(events);
    acks.retain(|ack| {
        read.iter()
            .any(|at| at.key == ack.key && at.read.value == ack.value)
    });
    let ack = any(&acks, seed)?;
    op_mut(&mut events[ack.event]).stage = Stage::Fail;
    Some(())
}

fn foreign(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    let at = any(&polls(events, Stage::Ok), seed)?;
    records(events, &at)[at.record].value = 1 << 40;
    Some(())
}

/// A client was given what it could not take for anything that was written, and said so.
fn damaged(events: &mut Vec<Event>) -> Option<()> {
    let nobodys = Record {
        offset: 3,
        value: 1 << 62,
    };
    let polled = [Mop::Poll(vec![(A, vec![nobodys])])];
    let halves = [Stage::Invoke, Stage::Fail];
    let planted = halves.map(|stage| What::Op(half(stage, 900, Function::Poll, &polled)));
    plant(events, planted.to_vec())
}

fn own_send(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    let ack = any(&acks(events), seed)?;
    let record = Record {
        offset: ack.offset,
        value: ack.value,
    };
    let mops = &mut op_mut(&mut events[ack.event]).mops;
    mops.push(Mop::Poll(vec![(ack.key, vec![record])]));
    Some(())
}

/// Polls of operations that no rebalance touched.
fn steady(events: &[Event]) -> Vec<At> {
    let mut polls = polls(events, Stage::Ok);
    polls.retain(|at| op(&events[at.event]).unwrap().rebalance_log.is_empty());
    polls
}

fn inner_skip(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    let mut polls = steady(events);
    let acks = acks(events);
    polls.retain(|at| {
        let known = acks
            .iter()
            .any(|ack| ack.key == at.key && ack.offset == at.read.offset);
        known && at.record > 0 && at.record + 1 < length(events, at)
    });
    let at = any(&polls, seed)?;
    records(events, &at).remove(at.record);
    Some(())
}

fn inner_swap(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    let mut polls = steady(events);
    polls.retain(|at| at.record > 0);
    let at = any(&polls, seed)?;
    records(events, &at).swap(at.record - 1, at.record);
    Some(())
}

/// Pairs of runs of a key in neighbouring polls of a process that was assigned its keys.
fn neighbours(events: &[Event]) -> Vec<(At, At)> {
    let polls = polls(events, Stage::Ok);
    let mut pairs = Vec::new();
    for last in &polls {
        let process = op(&events[last.event]).unwrap().process;
        let later = |event: &usize| {
            let other = op(&events[*event]).filter(|op| op.process == process);
            other.is_some_and(|op| op.stage != Stage::Invoke)
        };
        let Some(next) = (last.event + 1..events.len()).find(later) else {
            continue;
        };
        // The final phase assigns, and every poll of it follows the one before.
        let is_final = events[..last.event]
            .iter()
            .any(|e| e.what == What::Note(Note::Final));
        let first = |at: &&At| at.event == next && at.key == last.key && at.record == 0;
        if let (true, Some(first)) = (is_final, polls.iter().find(first)) {
            pairs.push((*last, *first));
        }
    }
    // Of each run, its last record.
    let mut ends: Vec<(At, At)> = Vec::new();
    for pair in pairs {
        match ends.last_mut() {
            Some(end) if end.0.event == pair.0.event && end.0.key == pair.0.key => *end = pair,
            _ => ends.push(pair),
        }
    }
    ends
}

fn outer_skip(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    let mut pairs = neighbours(events);
    pairs.retain(|(_, first)| length(events, first) > 1);
    let (_, first) = any(&pairs, seed)?;
    records(events, &first).remove(0);
    Some(())
}

fn outer_again(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    let (last, first) = any(&neighbours(events), seed)?;
    records(events, &first).insert(0, last.read);
    Some(())
}

fn inner_send_swap(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    swap_offsets(events, seed, |one, other| one.event == other.event)
}

fn outer_send_swap(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    let acks = acks(events);
    let between = |one: &Ack, other: &Ack| {
        let mut between = acks.iter();
        between.any(|ack| {
            ack.process == one.process
                && ack.key == one.key
                && ack.event >= one.event
                && ack.event <= other.event
                && ack.value != one.value
                && ack.value != other.value
        })
    };
    swap_offsets(events, seed, |one, other| {
        one.process == other.process && one.event < other.event && !between(one, other)
    })
}

fn swap_offsets(events: &mut [Event], seed: u64, pair: impl Fn(&Ack, &Ack) -> bool) -> Option<()> {
    let acks = acks(events);
    let pairs = acks
        .iter()
        .flat_map(|one| acks.iter().map(move |other| (*one, *other)));
    let same = |(one, other): &(Ack, Ack)| {
        one.key == other.key && one.offset < other.offset && pair(one, other)
    };
    let pairs: Vec<(Ack, Ack)> = pairs.filter(same).collect();
    let (one, other) = any(&pairs, seed)?;
    set_offset(events, &one, other.offset);
    set_offset(events, &other, one.offset);
    Some(())
}

/// Keys of their own for what is planted.
const A: Key = Key(1000);
const B: Key = Key(1001);

fn sent(key: Key, offset: u64) -> Mop {
    Mop::Send {
        key,
        value: 100 + offset,
        offset: Some(offset),
        term: None,
    }
}

fn read(key: Key, offsets: &[u64]) -> Mop {
    let records = offsets.iter().map(|offset| Record {
        offset: *offset,
        value: 100 + offset,
    });
    Mop::Poll(vec![(key, records.collect())])
}

fn half(stage: Stage, process: u32, f: Function, mops: &[Mop]) -> Op {
    let mops = mops.iter().cloned().map(|mop| match mop {
        Mop::Send { key, value, .. } if stage == Stage::Invoke => Mop::Send {
            key,
            value,
            offset: None,
            term: None,
        },
        Mop::Poll(_) if stage == Stage::Invoke => Mop::Poll(Vec::new()),
        mop => mop,
    });
    Op {
        mops: mops.collect(),
        ..Op::new(stage, process, f)
    }
}

/// Takes a record out of the middle of what a poll returned, if this is one.
pub(crate) fn loses_a_record(event: &mut Event) -> bool {
    let What::Op(op) = &mut event.what else {
        return false;
    };
    let steady = op.stage == Stage::Ok && op.f == Function::Poll && op.rebalance_log.is_empty();
    let mut runs = op.mops.iter_mut().filter(|_| steady);
    let run = runs.find_map(|mop| match mop {
        Mop::Poll(runs) => runs.iter_mut().find(|(_, records)| records.len() > 2),
        Mop::Send { .. } => None,
    });
    run.is_some_and(|(_, records)| records.drain(1..2).count() == 1)
}

/// Takes something out of a history, and what cannot be judged without it.
pub(crate) type Stripped = (fn(&mut Vec<Event>), &'static [Kind]);

pub(crate) const STRIPPED: &[Stripped] = &[
    (
        |events| events.retain(|event| matches!(event.what, What::Op(_))),
        &[
            Kind::HwRegress,
            Kind::HwRegress,
            Kind::ReplicaDivergence,
            Kind::BoundaryGap,
        ],
    ),
    (
        |events| {
            each_note(events, |note| {
                if let Note::HighWatermark { linearizable, .. } = note {
                    *linearizable = false;
                }
            });
        },
        &[Kind::HwRegress],
    ),
    (
        |events| {
            each_op(events, |op| {
                for mop in &mut op.mops {
                    if let Mop::Send { term, .. } = mop {
                        *term = None;
                    }
                }
            });
        },
        &[Kind::StaleLeaderAck],
    ),
    (
        |events| {
            each_op(events, |op| {
                if op.f == Function::Committed {
                    op.stage = match op.stage {
                        Stage::Ok => Stage::Fail,
                        stage => stage,
                    };
                    op.offsets.clear();
                }
            });
        },
        &[Kind::GroupRegress],
    ),
];

fn each_note(events: &mut [Event], change: fn(&mut Note)) {
    for event in events {
        if let What::Note(note) = &mut event.what {
            change(note);
        }
    }
}

fn each_op(events: &mut [Event], change: fn(&mut Op)) {
    for event in events {
        if let What::Op(op) = &mut event.what {
            change(op);
        }
    }
}

/// Puts events where the final phase begins.
fn plant(events: &mut Vec<Event>, planted: Vec<What>) -> Option<()> {
    let at = events
        .iter()
        .position(|event| event.what == What::Note(Note::Final))?;
    let time = events[at].time;
    let planted = planted.into_iter().map(|what| Event {
        index: 0,
        time,
        what,
    });
    events.splice(at..at, planted);
    Some(())
}

/// Operations that all run at the same time.
fn together(ops: &[(u32, &[Mop])]) -> Vec<What> {
    let halves = |stage| {
        let all = ops.iter();
        all.map(move |(process, mops)| What::Op(half(stage, *process, Function::Txn, mops)))
    };
    halves(Stage::Invoke).chain(halves(Stage::Ok)).collect()
}

/// One after the other.
fn in_turn(ops: &[(u32, &[Mop])]) -> Vec<What> {
    ops.iter().flat_map(|op| together(&[*op])).collect()
}

fn send_skip(events: &mut Vec<Event>, _: u64) -> Option<()> {
    plant(
        events,
        together(&[(900, &[sent(A, 0), sent(A, 2)]), (901, &[sent(A, 1)])]),
    )
}

fn g0(events: &mut Vec<Event>, [one, other]: [u32; 2], later: bool) -> Option<()> {
    let planted = if later {
        in_turn(&[(one, &[sent(A, 1)]), (other, &[sent(A, 0)])])
    } else {
        together(&[
            (one, &[sent(A, 0), sent(B, 1)]),
            (other, &[sent(A, 1), sent(B, 0)]),
        ])
    };
    plant(events, planted)
}

fn g1c(events: &mut Vec<Event>) -> Option<()> {
    plant(
        events,
        together(&[
            (900, &[sent(A, 0), read(B, &[0])]),
            (901, &[sent(B, 0), read(A, &[0])]),
        ]),
    )
}

fn g1c_with_ww(events: &mut Vec<Event>, _: u64) -> Option<()> {
    plant(
        events,
        together(&[
            (900, &[sent(A, 0), read(B, &[0])]),
            (901, &[sent(A, 1), sent(B, 0)]),
        ]),
    )
}

/// A value that is read before its send was begun.
fn foreseen(events: &mut Vec<Event>, sender: u32) -> Option<()> {
    plant(
        events,
        in_turn(&[(900, &[read(A, &[0])]), (sender, &[sent(A, 0)])]),
    )
}

fn tear(events: &mut Vec<Event>, seed: u64) -> Option<()> {
    let end = events
        .iter()
        .position(|event| event.what == What::Note(Note::Final))?;
    let polls = polls(events, Stage::Ok);
    let mut acks = acks(events);
    let several = |ack: &Ack| acks_of(&op(&events[ack.event]).unwrap().mops) > 1;
    acks.retain(|ack| several(ack));
    let process = |at: &At| op(&events[at.event]).unwrap().process;
    let torn = |at: &&At| {
        let own = |ack: &&Ack| ack.key == at.key && ack.value == at.read.value;
        // What lies below all that a scan saw may have been deleted by age.
        let scan = polls
            .iter()
            .filter(|o| process(o) == process(at) && o.key == at.key);
        let around = [Ordering::Less, Ordering::Greater];
        at.event > end
            && acks.iter().any(|ack| own(&ack))
            && around.iter().all(|side| {
                scan.clone()
                    .any(|o| o.read.offset.cmp(&at.read.offset) == *side)
            })
    };
    let places: Vec<At> = polls.iter().filter(torn).copied().collect();
    let at = any(&places, seed)?;
    records(events, &at).remove(at.record);
    Some(())
}

fn acks_of(mops: &[Mop]) -> usize {
    mops.iter()
        .filter(|mop| matches!(mop, Mop::Send { .. }))
        .count()
}

/// A transaction of unknown outcome: one of its values is read, then another process sends behind
/// the other value, and a scan sees that without the value itself.
fn tear_unknown(events: &mut Vec<Event>, _: u64) -> Option<()> {
    let mut planted = Vec::new();
    let unknown = half(Stage::Invoke, 900, Function::Txn, &[sent(A, 0), sent(B, 0)]);
    planted.push(What::Op(unknown));
    planted.push(What::Op(Op::new(Stage::Info, 900, Function::Txn)));
    planted.extend(in_turn(&[(901, &[read(A, &[0])]), (901, &[sent(B, 5)])]));
    for stage in [Stage::Invoke, Stage::Ok] {
        planted.push(What::Op(Op {
            keys: vec![A, B],
            seek_to_beginning: true,
            ..Op::new(stage, 902, Function::Assign)
        }));
    }
    planted.extend(in_turn(&[(902, &[read(A, &[0]), read(B, &[5])])]));
    plant(events, planted)
}
