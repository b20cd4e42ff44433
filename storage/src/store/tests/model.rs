//! The log against a plain list: what a group must hold after any crash.
//!
//! Everything a caller does to a group is an [`Op`]. The write-ahead log keeps a group's order, so
//! after a power loss the group must be what some number of its ops make of it, counted from the
//! first, and no fewer than were acknowledged.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use trilog_model::Offset;

use super::*;
use crate::log::{LogStart, ReadError, Vote};

/// Something done to a group.
#[derive(Clone, Debug)]
pub(super) enum Op {
    Append(Vec<Frame>),
    Vote(Vote),
    Cut(u64),
    Start { start: LogStart, emptied: bool },
}

/// What a number of ops make.
#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    pub(super) entries: BTreeMap<u64, Frame>,
    pub(super) vote: Option<Vote>,
    pub(super) start: Option<LogStart>,
    pub(super) next: u64,
    pub(super) next_offset: u64,
}

impl Content {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Append(frames) => frames.iter().for_each(|frame| self.push(frame)),
            Op::Vote(vote) => self.vote = Some(*vote),
            Op::Cut(end) => {
                self.entries.split_off(end);
                self.next = *end;
                let last = self.entries.last_key_value();
                let before = self
                    .start
                    .as_ref()
                    .map_or(0, |start| start.next_offset.get());
                self.next_offset =
                    last.map_or(before, |(_, frame)| frame.header.next_offset().get());
            }
            Op::Start { start, emptied } => {
                if *emptied {
                    self.entries.clear();
                    self.next = start.purged.index.get() + 1;
                    self.next_offset = start.next_offset.get();
                }
                self.start = Some(start.clone());
            }
        }
    }

    fn push(&mut self, frame: &Frame) {
        self.next = frame.header.index.get() + 1;
        self.next_offset = frame.header.next_offset().get();
        self.entries.insert(frame.header.index.get(), frame.clone());
    }

    pub(super) fn last(&self) -> Option<EntryId> {
        let below = self.start.as_ref().map(|start| start.purged);
        let last = self.next.checked_sub(1)?;
        let entry = self.entries.get(&last).map(|frame| frame.header.id());
        entry.or(below)
    }

    /// Whether an entry lies below the log start and may be gone.
    fn may_lack(&self, frame: &Frame) -> bool {
        self.start.as_ref().is_some_and(|start| {
            frame.header.next_offset() <= start.data_start
                && frame.header.index <= start.purged.index
        })
    }

    fn data_start(&self) -> u64 {
        self.start
            .as_ref()
            .map_or(0, |start| start.data_start.get())
    }
}

/// One group of the model.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) replica: ReplicaId,
    base: Content,
    ops: Vec<Op>,
    /// How many of `ops` are acknowledged.
    acked: usize,
    pub(super) now: Content,
    pub(super) committed: u64,
    /// Whether its creation is acknowledged, and its removal not begun.
    pub(super) sure: bool,
}

impl Group {
    pub(super) fn new(replica: ReplicaId) -> Self {
        Self {
            replica,
            base: Content::default(),
            ops: Vec::new(),
            acked: 0,
            now: Content::default(),
            committed: 0,
            sure: false,
        }
    }

    /// Notes an op; its number goes to [`Group::acknowledge`].
    pub(super) fn submit(&mut self, op: Op) -> usize {
        self.now.apply(&op);
        self.ops.push(op);
        self.ops.len()
    }

    pub(super) fn acknowledge(&mut self, op: usize) {
        // Waiters hear of it in any order, but no op is durable before those that came before.
        self.acked = self.acked.max(op);
    }

    /// What the group may be, least first.
    fn candidates(&self) -> Vec<Content> {
        let mut content = self.base.clone();
        self.ops[..self.acked]
            .iter()
            .for_each(|op| content.apply(op));
        let mut all = vec![content.clone()];
        for op in &self.ops[self.acked..] {
            if let Op::Append(frames) = op {
                for frame in frames {
                    content.push(frame);
                    all.push(content.clone());
                }
            } else {
                content.apply(op);
                all.push(content.clone());
            }
        }
        all
    }

    /// Goes on from what recovery came up with.
    fn settle(&mut self, content: Content, committed: u64) {
        self.base = content.clone();
        self.now = content;
        self.ops.clear();
        self.acked = 0;
        self.sure = true;
        self.committed = committed;
    }
}

/// Every group of a store.
pub(super) type Model = BTreeMap<GroupId, Group>;
pub(super) type SharedModel = Arc<Mutex<Model>>;

/// Compares a reopened store with the model, which goes on from what it found.
pub(super) async fn check_recovered(store: &Store, model: &mut Model) {
    let found = store.groups();
    model.retain(|id, group| group.sure || found.contains(id));
    assert_eq!(found, model.keys().copied().collect::<Vec<_>>());
    for (id, group) in model {
        let log = store.group(*id).unwrap();
        assert_eq!(log.replica(), group.replica);
        let state = log.state();
        let seen = observe(&log).await;
        let mut candidates = group.candidates().into_iter();
        let found = candidates.find(|content| fits(content, &state, &seen));
        let Some(content) = found else {
            let ends: Vec<_> = group
                .candidates()
                .iter()
                .map(|c| {
                    (
                        c.next,
                        c.vote.map(|v| v.term),
                        c.start.as_ref().map(|s| s.purged),
                    )
                })
                .collect();
            panic!("group {id}: found {state:?}, may be one of {ends:?}");
        };
        let committed = state.committed.map_or(0, |index| index.get() + 1);
        assert!(
            committed
                <= group.committed.max(
                    content
                        .start
                        .as_ref()
                        .map_or(0, |s| s.purged.index.get() + 1)
                ),
            "a commit nobody made"
        );
        group.settle(content, committed);
        check_terms(&log, &group.now);
    }
}

/// Every entry that can be read.
async fn observe(log: &GroupLog) -> BTreeMap<u64, Vec<u8>> {
    let first = match log.read(LogIndex(0), LogIndex(u64::MAX), 1).await {
        Err(ReadError::BelowStart { index, .. }) => index.get(),
        Ok(_) => 0,
        Err(error) => panic!("{error}"),
    };
    let frames = read_all(log, first, 10_000).await;
    let pairs = frames
        .iter()
        .map(|frame| (frame.header.index.get(), image(frame)));
    pairs.collect()
}

fn fits(content: &Content, state: &crate::log::LogState, seen: &BTreeMap<u64, Vec<u8>>) -> bool {
    let notes = state.vote == content.vote && state.log_start == content.start;
    let end = state.last == content.last() && state.next_offset.get() == content.next_offset;
    notes && end && holds(content, seen)
}

/// Whether exactly the content's entries were seen, but for some that readers may not see.
fn holds(content: &Content, seen: &BTreeMap<u64, Vec<u8>>) -> bool {
    let all_known = seen.iter().all(|(index, bytes)| {
        let entry = content.entries.get(index);
        entry.is_some_and(|frame| image(frame) == *bytes)
    });
    let all_seen = content
        .entries
        .iter()
        .all(|(index, frame)| content.may_lack(frame) || seen.contains_key(index));
    all_known && all_seen
}

fn check_terms(log: &GroupLog, content: &Content) {
    let starts = log.term_starts();
    assert!(starts.windows(2).all(|pair| pair[0].term < pair[1].term));
    for (index, frame) in &content.entries {
        if let Some(term) = log.term_of(LogIndex(*index)) {
            assert_eq!(term, frame.header.term, "term of entry {index}");
        } else {
            assert!(frame.header.next_offset().get() <= content.data_start());
        }
    }
}

/// Compares every way to read with the list.
pub(super) async fn check_reads(log: &GroupLog, content: &Content, probe: u64) {
    let first = content
        .entries
        .iter()
        .find(|(_, frame)| !content.may_lack(frame));
    let Some((&first, _)) = first else {
        return;
    };
    let from = first + probe % (content.next - first);
    let max_bytes = usize::try_from(probe % 5_000).unwrap();
    let frames = log
        .read(LogIndex(from), LogIndex(content.next), max_bytes)
        .await
        .unwrap();
    assert!(!frames.is_empty());
    for (index, frame) in (from..).zip(&frames) {
        assert_eq!(image(frame), image(&content.entries[&index]));
    }
    let target = &content.entries[&from].header;
    let up_to = LogIndex(content.next - 1);
    let data_start = Offset(content.data_start());
    let middle = target.base_offset.plus(u64::from(target.record_count) / 2);
    check_offsets(log, content, (middle.max(data_start), up_to), max_bytes).await;
    let readable = || {
        let entries = content.entries.range(first..).map(|(_, frame)| frame);
        entries.filter(|frame| {
            frame.header.record_count > 0 && frame.header.next_offset() > data_start
        })
    };
    let expected = readable().find(|frame| frame.header.append_time >= target.append_time);
    let expected = expected.map(|frame| frame.header.base_offset.max(data_start));
    let found = log.find_append_time(target.append_time, up_to).await;
    assert_eq!(found.unwrap(), expected, "append time");
    let millis = i64::try_from(from * 10).unwrap();
    let reaches = |frame: &&Frame| {
        let time = frame.records.get(35..43);
        time.is_some_and(|time| i64::from_be_bytes(time.try_into().unwrap()) >= millis)
    };
    let expected = readable()
        .find(reaches)
        .map(|frame| frame.header.base_offset);
    let found = log.find_record_time(millis, up_to).await;
    if !log.is_whole() {
        // What is not here yet may have it.
        assert!(
            matches!(found, Err(ReadError::BelowStart { .. })),
            "{found:?}"
        );
        return;
    }
    let found = found.unwrap().map(|(offset, _)| offset);
    assert_eq!(found, expected, "record time");
}

async fn check_offsets(
    log: &GroupLog,
    content: &Content,
    (from, up_to): (Offset, LogIndex),
    max_bytes: usize,
) {
    let frames = log.read_offsets(from, up_to, max_bytes).await.unwrap();
    let expected = content
        .entries
        .values()
        .filter(|frame| frame.header.next_offset() > from && frame.header.record_count > 0);
    let expected: Vec<_> = expected.collect();
    assert_eq!(frames.is_empty(), expected.is_empty());
    for (frame, expected) in frames.iter().zip(expected) {
        assert_eq!(image(frame), image(expected));
    }
}
