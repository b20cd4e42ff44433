//! A history as checkers go through it: operations whole, in flat arrays, in the order of their
//! completion. Takes events one by one and refuses what is no history.

use std::collections::{HashMap, HashSet};
use std::ops::Range;

use super::Malformed;
use crate::history::{Event, Function, Header, Key, Mop, Note, Op, Record, Stage, What};

/// No number: of an operation that never completed, of an entry that nobody knows.
pub(super) const NONE: u32 = u32::MAX;

/// A place in one of the arrays. There is no history of four billion of anything.
pub(super) fn small(place: usize) -> u32 {
    u32::try_from(place).expect("intake bounds the number of records")
}

/// A stretch of one of the arrays.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Span {
    from: u32,
    to: u32,
}

impl Span {
    fn since(from: usize, to: usize) -> Self {
        Self {
            from: small(from),
            to: small(to),
        }
    }

    pub(super) fn range(self) -> Range<usize> {
        self.from as usize..self.to as usize
    }

    pub(super) fn is_empty(self) -> bool {
        self.from == self.to
    }

    pub(super) fn len(self) -> usize {
        self.range().len()
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    Ok,
    Fail,
    Info,
}

/// An operation, from its invocation to what became of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub(super) process: u32,
    pub(super) f: Function,
    pub(super) outcome: Outcome,
    pub(super) seek_to_beginning: bool,
    /// Places in the history. `completed` is [`NONE`] if it never was.
    pub(super) invoked: u32,
    pub(super) completed: u32,
    pub(super) invoke_time: u64,
    pub(super) complete_time: u64,
    pub(super) sends: Span,
    pub(super) runs: Span,
    /// Of `assigned`.
    pub(super) keys: Span,
}

impl Row {
    /// Whether `other` surely began after this one had ended.
    pub(super) fn precedes(&self, other: &Self) -> bool {
        self.outcome != Outcome::Info && self.completed < other.invoked
    }

    pub(super) fn events(&self) -> impl Iterator<Item = u64> {
        [self.invoked, self.completed]
            .into_iter()
            .filter(|place| *place != NONE)
            .map(u64::from)
    }
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    pub(super) op: u32,
    pub(super) key: u32,
    pub(super) value: u64,
    pub(super) offset: Option<u64>,
    pub(super) term: Option<u64>,
}

/// What one poll returned of one key.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) key: u32,
    pub(super) records: Span,
}

/// What an operation did to the offset of a group, or saw of it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    pub(super) op: u32,
    pub(super) group: u32,
    pub(super) key: u32,
    pub(super) offset: u64,
}

/// The operations of a history.
#[derive(Debug, Default)]
pub(super) struct Ops {
    pub(super) header: Header,
    pub(super) events: u32,
    pub(super) rows: Vec<Row>,
    pub(super) sends: Vec<Sent>,
    pub(super) runs: Vec<Run>,
    pub(super) records: Vec<Record>,
    /// Keys are numbered in the order of their first appearance.
    pub(super) keys: Vec<Key>,
    pub(super) assigned: Vec<u32>,
    /// Keys that came or went while an operation ran.
    pub(super) rebalanced: HashMap<u32, Vec<u32>>,
    pub(super) groups: Vec<String>,
    pub(super) accesses: Vec<Access>,
    /// With the place in the history and the time.
    pub(super) notes: Vec<(u32, u64, Note)>,
    /// Whether everything was read back in the end.
    pub(super) done: bool,
}

impl Ops {
    pub(super) fn runs_of(&self, row: &Row) -> &[Run] {
        &self.runs[row.runs.range()]
    }

    pub(super) fn sends_of(&self, row: &Row) -> &[Sent] {
        &self.sends[row.sends.range()]
    }

    pub(super) fn row(&self, op: u32) -> &Row {
        &self.rows[op as usize]
    }

    pub(super) fn rebalanced(&self, op: u32, key: u32) -> bool {
        self.rebalanced
            .get(&op)
            .is_some_and(|keys| keys.contains(&key))
    }
}

#[derive(Debug)]
struct Open {
    place: u32,
    time: u64,
    op: Op,
}

/// Takes a history in.
#[derive(Debug)]
pub(super) struct Intake {
    ops: Ops,
    time: u64,
    open: HashMap<u32, Open>,
    retired: HashSet<u32>,
    keys: HashMap<Key, u32>,
    groups: HashMap<String, u32>,
}

impl Intake {
    pub(super) fn new(header: Header) -> Self {
        Self {
            ops: Ops {
                header,
                ..Ops::default()
            },
            time: 0,
            open: HashMap::new(),
            retired: HashSet::new(),
            keys: HashMap::new(),
            groups: HashMap::new(),
        }
    }

    pub(super) fn push(&mut self, event: Event) -> Result<(), Malformed> {
        let index = event.index;
        if index != u64::from(self.ops.events) {
            return Err(Malformed::Index {
                index,
                expected: self.ops.events.into(),
            });
        }
        if event.time < self.time {
            return Err(Malformed::Time { index });
        }
        // Every place in every array must have a number below `NONE`.
        if self.ops.records.len().max(self.ops.sends.len()) > (NONE / 2) as usize {
            return Err(Malformed::TooLarge { index });
        }
        let place = self.ops.events;
        self.ops.events += 1;
        self.time = event.time;
        match event.what {
            What::Op(op) => self.op(place, event.time, op),
            What::Note(note) => {
                self.ops.done |= note == Note::Done;
                self.ops.notes.push((place, event.time, note));
                Ok(())
            }
        }
    }

    fn op(&mut self, place: u32, time: u64, op: Op) -> Result<(), Malformed> {
        let index = u64::from(place);
        let process = op.process;
        if op.stage == Stage::Invoke {
            if self.retired.contains(&process) {
                return Err(Malformed::Retired { index, process });
            }
            let open = Open { place, time, op };
            return match self.open.insert(process, open) {
                Some(_) => Err(Malformed::Busy { index, process }),
                None => Ok(()),
            };
        }
        let open = self.open.remove(&process);
        let open = open.ok_or(Malformed::Uninvoked { index, process })?;
        if open.op.f != op.f {
            return Err(Malformed::Other { index, process });
        }
        let outcome = match op.stage {
            Stage::Ok => Outcome::Ok,
            Stage::Fail => Outcome::Fail,
            Stage::Info | Stage::Invoke => Outcome::Info,
        };
        if outcome == Outcome::Info {
            self.retired.insert(process);
        }
        let mops = if op.mops.is_empty() {
            &open.op.mops
        } else if sent(&op.mops).eq(sent(&open.op.mops)) {
            &op.mops
        } else {
            return Err(Malformed::OtherSends { index, process });
        };
        self.row(&open, Some((place, time, &op)), outcome, mops)
    }

    fn row(
        &mut self,
        open: &Open,
        completion: Option<(u32, u64, &Op)>,
        outcome: Outcome,
        mops: &[Mop],
    ) -> Result<(), Malformed> {
        let nth = small(self.ops.rows.len());
        let (completed, complete_time, last) = completion.unwrap_or((NONE, u64::MAX, &open.op));
        let (sends, runs) = self.mops(nth, mops);
        let keys = if last.keys.is_empty() {
            &open.op.keys
        } else {
            &last.keys
        };
        let keys = self.assigned(keys);
        self.rebalances(nth, last);
        let offsets = if last.offsets.is_empty() && outcome != Outcome::Fail {
            &open.op
        } else {
            last
        };
        self.accesses(nth, offsets, u64::from(open.place))?;
        self.ops.rows.push(Row {
            process: open.op.process,
            f: open.op.f,
            outcome,
            seek_to_beginning: open.op.seek_to_beginning || last.seek_to_beginning,
            invoked: open.place,
            completed,
            invoke_time: open.time,
            complete_time,
            sends,
            runs,
            keys,
        });
        Ok(())
    }

    fn mops(&mut self, op: u32, mops: &[Mop]) -> (Span, Span) {
        let (sends, runs) = (self.ops.sends.len(), self.ops.runs.len());
        for mop in mops {
            match mop {
                Mop::Send {
                    key,
                    value,
                    offset,
                    term,
                } => {
                    let key = self.key(*key);
                    self.ops.sends.push(Sent {
                        op,
                        key,
                        value: *value,
                        offset: *offset,
                        term: *term,
                    });
                }
                Mop::Poll(polled) => {
                    for (key, records) in polled {
                        let key = self.key(*key);
                        let from = self.ops.records.len();
                        self.ops.records.extend_from_slice(records);
                        let records = Span::since(from, self.ops.records.len());
                        self.ops.runs.push(Run { key, records });
                    }
                }
            }
        }
        (
            Span::since(sends, self.ops.sends.len()),
            Span::since(runs, self.ops.runs.len()),
        )
    }

    fn key(&mut self, key: Key) -> u32 {
        *self.keys.entry(key).or_insert_with(|| {
            self.ops.keys.push(key);
            small(self.ops.keys.len() - 1)
        })
    }

    fn assigned(&mut self, keys: &[Key]) -> Span {
        let from = self.ops.assigned.len();
        for key in keys {
            let key = self.key(*key);
            self.ops.assigned.push(key);
        }
        Span::since(from, self.ops.assigned.len())
    }

    fn rebalances(&mut self, nth: u32, op: &Op) {
        if op.rebalance_log.is_empty() {
            return;
        }
        let keys = op
            .rebalance_log
            .iter()
            .flat_map(|rebalance| &rebalance.keys);
        let keys = keys.map(|key| self.key(*key)).collect();
        self.ops.rebalanced.insert(nth, keys);
    }

    fn accesses(&mut self, nth: u32, op: &Op, index: u64) -> Result<(), Malformed> {
        if op.offsets.is_empty() {
            return Ok(());
        }
        let Some(group) = &op.group else {
            return Err(Malformed::NoGroup { index });
        };
        let next = small(self.groups.len());
        let group = *self.groups.entry(group.clone()).or_insert_with(|| {
            self.ops.groups.push(group.clone());
            next
        });
        for (key, offset) in &op.offsets {
            let key = self.key(*key);
            self.ops.accesses.push(Access {
                op: nth,
                group,
                key,
                offset: *offset,
            });
        }
        Ok(())
    }

    /// The whole history; what is still on its way has an unknown outcome.
    pub(super) fn finish(mut self) -> Result<Ops, Malformed> {
        let mut open: Vec<Open> = std::mem::take(&mut self.open).into_values().collect();
        open.sort_by_key(|open| open.place);
        for open in open {
            self.row(&open, None, Outcome::Info, &open.op.mops)?;
        }
        Ok(self.ops)
    }
}

fn sent(mops: &[Mop]) -> impl Iterator<Item = (Key, u64)> {
    mops.iter().filter_map(|mop| match mop {
        Mop::Send { key, value, .. } => Some((*key, *value)),
        Mop::Poll(_) => None,
    })
}
