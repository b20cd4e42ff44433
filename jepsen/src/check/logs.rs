//! Each key's log as the history shows it: which values were seen at which offset, who sent them,
//! and whether a consumer was given them.
//!
//! An entry is an offset with one value. Its rank counts the offsets below it that hold anything,
//! for a log has holes (control records, what was aborted) that are no gaps. Entries come from all
//! polls, even of operations that failed, for consumers are only ever given what is safe; and from
//! sends with a known offset whose operation must have committed: it is ok, or of unknown outcome
//! and one of its values was read.

use super::Malformed;
use super::intake::{NONE, Ops, Outcome, Run, small};

/// Seen by a poll.
const POLLED: u8 = 1;
/// Seen by a poll that was ok.
const READ: u8 = 2;
/// Acknowledged to an operation that was ok.
const SENT: u8 = 4;
/// Acknowledged to an operation whose outcome is unknown.
const PERHAPS: u8 = 8;

#[derive(Debug, Clone, Copy)]
pub(super) struct Entry {
    pub(super) offset: u64,
    pub(super) value: u64,
    /// Who sent the value, or [`NONE`].
    pub(super) send: u32,
    /// [`NONE`] if it turned out not to belong to the log.
    pub(super) rank: u32,
    flags: u8,
}

impl Entry {
    pub(super) fn is_read(&self) -> bool {
        self.flags & READ != 0
    }

    pub(super) fn is_live(&self) -> bool {
        self.rank != NONE
    }
}

#[derive(Debug)]
pub(super) struct Logs {
    /// Of all keys, each sorted by offset and value.
    pub(super) entries: Vec<Entry>,
    /// Where each key's entries begin, and the end.
    bases: Vec<u32>,
    /// For each record of `Ops::records`, its entry.
    pub(super) of_record: Vec<u32>,
    /// For each send, the entry it was acknowledged at, or [`NONE`].
    of_send: Vec<u32>,
    /// For each send, the lowest and the highest entry that holds its value.
    held: Vec<(u32, u32)>,
    /// For each send, whether a poll that was ok returned it.
    pub(super) read: Vec<bool>,
    /// For each operation, whether it must have committed.
    pub(super) must: Vec<bool>,
}

impl Logs {
    pub(super) fn build(ops: &Ops) -> Result<Self, Malformed> {
        let writers = Writers::of(ops)?;
        let (entries, bases) = gather(ops);
        let mut logs = Self {
            of_record: Vec::new(),
            of_send: vec![NONE; ops.sends.len()],
            held: vec![(NONE, NONE); ops.sends.len()],
            read: vec![false; ops.sends.len()],
            must: Vec::new(),
            entries,
            bases,
        };
        logs.attribute(&writers);
        logs.resolve(ops);
        logs.decide(ops);
        logs.rank();
        Ok(logs)
    }

    /// The numbers of a key's entries.
    pub(super) fn of_key(&self, key: u32) -> std::ops::Range<usize> {
        let key = key as usize;
        self.bases[key] as usize..self.bases[key + 1] as usize
    }

    pub(super) fn entry(&self, number: u32) -> &Entry {
        &self.entries[number as usize]
    }

    /// The entries that one poll returned, by number.
    pub(super) fn of_run(&self, run: &Run) -> &[u32] {
        &self.of_record[run.records.range()]
    }

    /// Where the value of a send stands: where it was acknowledged, else the last place it was
    /// seen at.
    pub(super) fn place(&self, send: u32) -> Option<u32> {
        let own = self.of_send[send as usize];
        if own != NONE && self.entry(own).is_live() {
            return Some(own);
        }
        self.held(send).map(|(_, last)| last)
    }

    /// The first and last entry that hold the value of a send.
    pub(super) fn held(&self, send: u32) -> Option<(u32, u32)> {
        Some(self.held[send as usize]).filter(|(first, _)| *first != NONE)
    }

    /// An operation that shows that an entry is there: its writer, or the first reader of it.
    pub(super) fn evidence(&self, ops: &Ops, number: u32) -> Option<u32> {
        let send = self.entry(number).send;
        if send != NONE && self.of_send[send as usize] == number {
            return Some(ops.sends[send as usize].op);
        }
        self.reader(ops, number)
    }

    /// The first operation whose poll returned an entry, an ok one if there is any.
    pub(super) fn reader(&self, ops: &Ops, number: u32) -> Option<u32> {
        let reads = |row: &super::intake::Row| {
            let runs = ops.runs_of(row).iter();
            let mut numbers = runs.flat_map(|run| &self.of_record[run.records.range()]);
            numbers.any(|read| *read == number)
        };
        let ok = |row: &super::intake::Row| row.outcome == Outcome::Ok;
        let found = ops.rows.iter().position(|row| ok(row) && reads(row));
        let found = found.or_else(|| ops.rows.iter().position(reads));
        found.map(small)
    }

    fn attribute(&mut self, writers: &Writers) {
        for key in 0..small(self.bases.len() - 1) {
            let mut cursor = 0;
            for number in self.of_key(key) {
                let entry = &mut self.entries[number];
                entry.send = writers.find(key, entry.value, &mut cursor);
            }
        }
    }

    /// The number of the entry of a key that holds a value at an offset; it is there.
    fn find(&self, key: u32, offset: u64, value: u64, expected: u32) -> u32 {
        let range = self.of_key(key);
        let is = |entry: &Entry| entry.offset == offset && entry.value == value;
        if range.contains(&(expected as usize)) && is(self.entry(expected)) {
            return expected;
        }
        let base = range.start;
        let entries = &self.entries[range];
        let at = entries.partition_point(|entry| (entry.offset, entry.value) < (offset, value));
        debug_assert!(is(&entries[at]), "every record was gathered");
        small(base + at)
    }

    /// Finds the entry of each record and each acknowledgement, and who was read.
    fn resolve(&mut self, ops: &Ops) {
        self.of_record = Vec::with_capacity(ops.records.len());
        for row in &ops.rows {
            let flags = if row.outcome == Outcome::Ok {
                POLLED | READ
            } else {
                POLLED
            };
            for run in ops.runs_of(row) {
                let mut expected = NONE;
                for record in &ops.records[run.records.range()] {
                    let number = self.find(run.key, record.offset, record.value, expected);
                    self.of_record.push(number);
                    expected = number + 1;
                    self.entries[number as usize].flags |= flags;
                }
            }
        }
        for (nth, sent) in ops.sends.iter().enumerate() {
            if let Some(offset) = sent.offset
                && ops.row(sent.op).outcome != Outcome::Fail
            {
                self.of_send[nth] = self.find(sent.key, offset, sent.value, NONE);
            }
        }
        for entry in &self.entries {
            if entry.is_read() && entry.send != NONE {
                self.read[entry.send as usize] = true;
            }
        }
    }

    /// Which operations must have committed.
    fn decide(&mut self, ops: &Ops) {
        let must = ops.rows.iter().map(|row| match row.outcome {
            Outcome::Ok => true,
            Outcome::Fail => false,
            Outcome::Info => self.read[row.sends.range()].iter().any(|read| *read),
        });
        self.must = must.collect();
        for entry in &mut self.entries {
            let perhaps = entry.flags == PERHAPS;
            let sender = ops.sends.get(entry.send as usize);
            if perhaps && sender.is_none_or(|sent| !self.must[sent.op as usize]) {
                entry.flags = 0;
            }
        }
    }

    fn rank(&mut self) {
        for key in 0..small(self.bases.len() - 1) {
            let mut last: Option<(u64, u32)> = None;
            for number in self.of_key(key) {
                let entry = &mut self.entries[number];
                if entry.flags == 0 {
                    continue;
                }
                entry.rank = match last {
                    None => 0,
                    Some((offset, rank)) if offset == entry.offset => rank,
                    Some((_, rank)) => rank + 1,
                };
                last = Some((entry.offset, entry.rank));
                if entry.send != NONE {
                    let (first, last) = &mut self.held[entry.send as usize];
                    *last = small(number);
                    if *first == NONE {
                        *first = small(number);
                    }
                }
            }
        }
    }
}

/// What is known of one offset of one key, while it is gathered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Seen {
    offset: u64,
    value: u64,
    flags: u8,
}

/// The sightings of one key, each kept once.
#[derive(Debug, Default)]
struct Gathering {
    seen: Vec<Seen>,
    /// How many there may be before repeated ones are taken out.
    compact_at: usize,
}

impl Gathering {
    fn push(&mut self, offset: u64, value: u64, flags: u8) {
        self.seen.push(Seen {
            offset,
            value,
            flags,
        });
        if self.seen.len() > self.compact_at.max(1 << 16) {
            self.compact();
            self.compact_at = self.seen.len() * 2;
        }
    }

    /// Polls return runs in ascending order, which is what the stable sort is quick at.
    fn compact(&mut self) {
        self.seen.sort_by_key(|seen| (seen.offset, seen.value));
        self.seen.dedup_by(|next, kept| {
            let same = (next.offset, next.value) == (kept.offset, kept.value);
            if same {
                kept.flags |= next.flags;
            }
            same
        });
    }
}

fn gather(ops: &Ops) -> (Vec<Entry>, Vec<u32>) {
    let mut keys: Vec<Gathering> = Vec::new();
    keys.resize_with(ops.keys.len(), Gathering::default);
    for run in &ops.runs {
        let gathering = &mut keys[run.key as usize];
        for record in &ops.records[run.records.range()] {
            gathering.push(record.offset, record.value, POLLED);
        }
    }
    for sent in &ops.sends {
        let flags = match ops.row(sent.op).outcome {
            Outcome::Ok => SENT,
            Outcome::Info => PERHAPS,
            Outcome::Fail => continue,
        };
        if let Some(offset) = sent.offset {
            keys[sent.key as usize].push(offset, sent.value, flags);
        }
    }
    let mut entries = Vec::new();
    let mut bases = vec![0];
    for mut gathering in keys {
        gathering.compact();
        entries.extend(gathering.seen.into_iter().map(|seen| Entry {
            offset: seen.offset,
            value: seen.value,
            send: NONE,
            rank: NONE,
            flags: seen.flags,
        }));
        bases.push(small(entries.len()));
    }
    (entries, bases)
}

/// Who sent which value, by key, sorted by value.
#[derive(Debug)]
struct Writers(Vec<Vec<(u64, u32)>>);

impl Writers {
    fn of(ops: &Ops) -> Result<Self, Malformed> {
        let mut keys = vec![Vec::new(); ops.keys.len()];
        for (nth, sent) in ops.sends.iter().enumerate() {
            keys[sent.key as usize].push((sent.value, small(nth)));
        }
        for (key, values) in keys.iter_mut().enumerate() {
            values.sort_unstable();
            if let Some(twice) = values.windows(2).find(|pair| pair[0].0 == pair[1].0) {
                let again = &ops.sends[twice[1].1 as usize];
                return Err(Malformed::SentTwice {
                    index: ops.row(again.op).invoked.into(),
                    key: ops.keys[key],
                    value: again.value,
                });
            }
        }
        Ok(Self(keys))
    }

    /// Values are mostly looked up in the order they were sent in: behind `cursor`, first.
    fn find(&self, key: u32, value: u64, cursor: &mut usize) -> u32 {
        let values = &self.0[key as usize];
        if values.get(*cursor).is_none_or(|(there, _)| *there != value) {
            *cursor = values.partition_point(|(there, _)| *there < value);
        }
        match values.get(*cursor) {
            Some((there, send)) if *there == value => {
                *cursor += 1;
                *send
            }
            _ => NONE,
        }
    }
}
