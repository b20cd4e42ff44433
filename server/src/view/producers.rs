//! The window of recent batches of each idempotent producer, which makes a retry harmless.
//!
//! Kafka's rules (`ProducerStateEntry`): per producer and partition the last five batches are
//! kept; an exact repeat of one is answered with its original offset; the next sequence must
//! follow the last; a higher epoch starts again at zero; a lower one is fenced. An unknown
//! producer may start anywhere. The window is part of the replicated state, so it survives
//! failover, and a leader judges against it plus the drain it is putting together.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use trilog_model::batch::sequence_after;
use trilog_model::{Offset, Timestamp};

/// How many batches of a producer are remembered, as in Kafka: clients keep at most five in
/// flight.
pub const WINDOW: usize = 5;
/// A producer idle for so long (of partition time) is forgotten.
pub const EXPIRY_NANOS: u64 = 24 * 3_600 * 1_000_000_000;
/// The most producers one partition remembers; beyond it the longest idle is forgotten.
pub const MAX_PRODUCERS: usize = 100_000;

/// Who sent a batch, and its place in that producer's sequence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Publisher {
    pub producer_id: i64,
    pub epoch: i16,
    pub first_sequence: i32,
    /// Records in the batch, at least one.
    pub records: i32,
}

impl Publisher {
    /// The sequence of the last record; sequences wrap from `i32::MAX` to zero.
    #[must_use]
    pub fn last_sequence(&self) -> i32 {
        sequence_after(self.first_sequence, self.records - 1)
    }
}

/// Where a remembered batch stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Committed and applied.
    Committed {
        base_offset: Offset,
        append_time: Timestamp,
    },
    /// In the drain now being put together, as its entry of this number.
    Pending(usize),
}

/// The answer to "may this batch be appended?".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Accept,
    /// The very batch is already there: answer with its place, append nothing.
    Duplicate(Place),
    /// A batch before this one is missing, or this one is too old to be remembered.
    OutOfOrder {
        expected: i32,
    },
    /// A newer incarnation of the producer has written.
    Fenced {
        current_epoch: i16,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Remembered {
    first_sequence: i32,
    last_sequence: i32,
    place: Place,
}

/// One producer's window.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    epoch: i16,
    last_time: Timestamp,
    batches: VecDeque<Remembered>,
}

impl Window {
    fn judge(&self, batch: &Publisher) -> Verdict {
        if batch.epoch < self.epoch {
            return Verdict::Fenced {
                current_epoch: self.epoch,
            };
        }
        if batch.epoch > self.epoch {
            return if batch.first_sequence == 0 {
                Verdict::Accept
            } else {
                Verdict::OutOfOrder { expected: 0 }
            };
        }
        let repeat = self.batches.iter().find(|seen| {
            seen.first_sequence == batch.first_sequence
                && seen.last_sequence == batch.last_sequence()
        });
        if let Some(seen) = repeat {
            return Verdict::Duplicate(seen.place);
        }
        let expected = self
            .batches
            .back()
            .map_or(0, |last| sequence_after(last.last_sequence, 1));
        if batch.first_sequence == expected {
            Verdict::Accept
        } else {
            Verdict::OutOfOrder { expected }
        }
    }

    /// A higher epoch begins anew.
    fn raise(&mut self, epoch: i16) {
        if epoch > self.epoch {
            self.epoch = epoch;
            self.batches.clear();
        }
    }

    fn remember(&mut self, batch: &Publisher, place: Place) {
        self.raise(batch.epoch);
        if self.batches.len() == WINDOW {
            self.batches.pop_front();
        }
        self.batches.push_back(Remembered {
            first_sequence: batch.first_sequence,
            last_sequence: batch.last_sequence(),
            place,
        });
        if let Place::Committed { append_time, .. } = place {
            self.last_time = self.last_time.max(append_time);
        }
    }

    fn empty(epoch: i16) -> Self {
        Self {
            epoch,
            last_time: Timestamp(0),
            batches: VecDeque::new(),
        }
    }

    #[must_use]
    pub fn epoch(&self) -> i16 {
        self.epoch
    }

    /// When it last wrote.
    #[must_use]
    pub fn last_time(&self) -> Timestamp {
        self.last_time
    }

    /// The sequence of its last record, if a batch is remembered.
    #[must_use]
    pub fn last_sequence(&self) -> Option<i32> {
        self.batches.back().map(|batch| batch.last_sequence)
    }

    /// As stored: epoch, last time, then each committed batch. Big-endian, fixed width.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(10 + self.batches.len() * 24);
        out.extend_from_slice(&self.epoch.to_be_bytes());
        out.extend_from_slice(&self.last_time.nanos().to_be_bytes());
        for seen in &self.batches {
            if let Place::Committed {
                base_offset,
                append_time,
            } = seen.place
            {
                out.extend_from_slice(&seen.first_sequence.to_be_bytes());
                out.extend_from_slice(&seen.last_sequence.to_be_bytes());
                out.extend_from_slice(&base_offset.get().to_be_bytes());
                out.extend_from_slice(&append_time.nanos().to_be_bytes());
            }
        }
        out
    }

    /// Reads what [`Window::encode`] wrote; `None` if it is not that.
    #[must_use]
    pub fn decode(mut bytes: &[u8]) -> Option<Self> {
        let epoch = i16::from_be_bytes(take(&mut bytes)?);
        let last_time = Timestamp(u64::from_be_bytes(take(&mut bytes)?));
        let mut batches = VecDeque::new();
        while !bytes.is_empty() {
            if batches.len() == WINDOW {
                return None;
            }
            batches.push_back(Remembered {
                first_sequence: i32::from_be_bytes(take(&mut bytes)?),
                last_sequence: i32::from_be_bytes(take(&mut bytes)?),
                place: Place::Committed {
                    base_offset: Offset(u64::from_be_bytes(take(&mut bytes)?)),
                    append_time: Timestamp(u64::from_be_bytes(take(&mut bytes)?)),
                },
            });
        }
        Some(Self {
            epoch,
            last_time,
            batches,
        })
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

/// What replaying one batch changed, for the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The producer whose window is new.
    pub updated: i64,
    /// Producers forgotten on the way.
    pub forgotten: Vec<i64>,
}

/// Every producer's window in one partition, as of the applied entries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Producers {
    windows: BTreeMap<i64, Window>,
    /// The same producers by how long they have been idle, so that forgetting is cheap; without
    /// those that are held.
    by_time: BTreeSet<(Timestamp, i64)>,
    /// Those that are not forgotten, however idle.
    held: BTreeSet<i64>,
}

impl Producers {
    /// Folds one committed batch. Called on every replica in log order.
    pub fn replay(&mut self, batch: &Publisher, offset: Offset, time: Timestamp) -> Change {
        let id = batch.producer_id;
        let window = self
            .windows
            .entry(id)
            .or_insert_with(|| Window::empty(batch.epoch));
        self.by_time.remove(&(window.last_time, id));
        window.remember(
            batch,
            Place::Committed {
                base_offset: offset,
                append_time: time,
            },
        );
        let last_time = window.last_time;
        self.list(id, last_time);
        Change {
            updated: id,
            forgotten: self.forget_idle(time, id),
        }
    }

    /// Folds one committed marker of a producer's transaction: an epoch below its own is fenced
    /// from now on.
    pub fn mark(&mut self, id: i64, epoch: i16, time: Timestamp) -> Change {
        let window = self
            .windows
            .entry(id)
            .or_insert_with(|| Window::empty(epoch));
        self.by_time.remove(&(window.last_time, id));
        window.raise(epoch);
        window.last_time = window.last_time.max(time);
        let last_time = window.last_time;
        self.list(id, last_time);
        Change {
            updated: id,
            forgotten: self.forget_idle(time, id),
        }
    }

    /// Keeps a producer from being forgotten.
    pub fn hold(&mut self, id: i64) {
        self.held.insert(id);
        if let Some(window) = self.windows.get(&id) {
            self.by_time.remove(&(window.last_time, id));
        }
    }

    /// The producer may be forgotten again.
    pub fn release(&mut self, id: i64) {
        self.held.remove(&id);
        if let Some(window) = self.windows.get(&id) {
            self.by_time.insert((window.last_time, id));
        }
    }

    fn list(&mut self, id: i64, last_time: Timestamp) {
        if !self.held.contains(&id) {
            self.by_time.insert((last_time, id));
        }
    }

    fn forget_idle(&mut self, now: Timestamp, keep: i64) -> Vec<i64> {
        let mut forgotten = Vec::new();
        while let Some(&(last, id)) = self.by_time.first() {
            let expired = last.nanos().saturating_add(EXPIRY_NANOS) < now.nanos();
            if id == keep || !(expired || self.windows.len() > MAX_PRODUCERS) {
                break;
            }
            self.by_time.pop_first();
            self.windows.remove(&id);
            forgotten.push(id);
        }
        forgotten
    }

    /// One producer's window, if it is remembered.
    #[must_use]
    pub fn get(&self, producer_id: i64) -> Option<&Window> {
        self.windows.get(&producer_id)
    }

    /// Puts a stored window back.
    pub fn restore(&mut self, producer_id: i64, window: Window) {
        if let Some(old) = self.windows.get(&producer_id) {
            self.by_time.remove(&(old.last_time, producer_id));
        }
        self.list(producer_id, window.last_time);
        self.windows.insert(producer_id, window);
    }

    pub fn iter(&self) -> impl Iterator<Item = (i64, &Window)> {
        self.windows.iter().map(|(id, window)| (*id, window))
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.windows.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.windows.is_empty()
    }
}

/// A drain's own write set over the applied windows: judges each batch as if those accepted
/// before it were already there.
#[derive(Debug)]
pub struct Drain<'a> {
    applied: &'a Producers,
    changed: BTreeMap<i64, Window>,
}

impl<'a> Drain<'a> {
    #[must_use]
    pub fn over(applied: &'a Producers) -> Self {
        Self {
            applied,
            changed: BTreeMap::new(),
        }
    }

    /// Judges a batch; accepting it is a step of its own, for other conditions may refuse it.
    #[must_use]
    pub fn judge(&self, batch: &Publisher) -> Verdict {
        self.window(batch.producer_id)
            .map_or(Verdict::Accept, |window| window.judge(batch))
    }

    /// Remembers an accepted batch as the drain's entry number `slot`.
    pub fn accept(&mut self, batch: &Publisher, slot: usize) {
        let mut window = self
            .window(batch.producer_id)
            .cloned()
            .unwrap_or_else(|| Window::empty(batch.epoch));
        window.remember(batch, Place::Pending(slot));
        self.changed.insert(batch.producer_id, window);
    }

    /// Judges a marker by its epoch alone: a higher one that has written or marked is an error.
    #[must_use]
    pub fn judge_epoch(&self, producer_id: i64, epoch: i16) -> Verdict {
        match self.window(producer_id) {
            Some(window) if epoch < window.epoch => Verdict::Fenced {
                current_epoch: window.epoch,
            },
            Some(_) | None => Verdict::Accept,
        }
    }

    /// Remembers an accepted marker.
    pub fn accept_marker(&mut self, producer_id: i64, epoch: i16) {
        let window = self.window(producer_id).cloned();
        let mut window = window.unwrap_or_else(|| Window::empty(epoch));
        window.raise(epoch);
        self.changed.insert(producer_id, window);
    }

    fn window(&self, producer_id: i64) -> Option<&Window> {
        self.changed
            .get(&producer_id)
            .or_else(|| self.applied.get(producer_id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(epoch: i16, first_sequence: i32, records: i32) -> Publisher {
        Publisher {
            producer_id: 7,
            epoch,
            first_sequence,
            records,
        }
    }

    /// Replays batches of ten records, sequences from zero, offsets from 100.
    fn producers_after(batches: i32) -> Producers {
        let mut producers = Producers::default();
        for (n, place) in (0..batches).zip(0..) {
            let (offset, time) = (Offset(100 + place * 10), Timestamp(1_000 + place));
            producers.replay(&batch(0, n * 10, 10), offset, time);
        }
        producers
    }

    fn judge(producers: &Producers, batch: &Publisher) -> Verdict {
        Drain::over(producers).judge(batch)
    }

    #[test]
    fn a_repeat_is_answered_with_the_original_offset() {
        let producers = producers_after(3);
        let place = Place::Committed {
            base_offset: Offset(110),
            append_time: Timestamp(1_001),
        };
        assert_eq!(
            judge(&producers, &batch(0, 10, 10)),
            Verdict::Duplicate(place)
        );
    }

    #[test]
    fn only_the_last_five_batches_are_remembered() {
        let producers = producers_after(6);
        assert_eq!(
            judge(&producers, &batch(0, 0, 10)),
            Verdict::OutOfOrder { expected: 60 }
        );
        assert!(matches!(
            judge(&producers, &batch(0, 10, 10)),
            Verdict::Duplicate(_)
        ));
    }

    #[test]
    fn sequences_must_follow_and_epochs_must_not_go_back() {
        let producers = producers_after(2);
        let cases = [
            (batch(0, 20, 5), Verdict::Accept),
            (batch(0, 21, 5), Verdict::OutOfOrder { expected: 20 }),
            (batch(0, 10, 9), Verdict::OutOfOrder { expected: 20 }),
            (batch(1, 0, 5), Verdict::Accept),
            (batch(1, 20, 5), Verdict::OutOfOrder { expected: 0 }),
        ];
        for (batch, expected) in cases {
            assert_eq!(judge(&producers, &batch), expected, "{batch:?}");
        }
        let mut newer = producers;
        newer.replay(&batch(1, 0, 1), Offset(120), Timestamp(2_000));
        assert_eq!(
            judge(&newer, &batch(0, 20, 5)),
            Verdict::Fenced { current_epoch: 1 }
        );
    }

    #[test]
    fn an_unknown_producer_may_start_anywhere() {
        assert_eq!(
            judge(&Producers::default(), &batch(3, 42, 1)),
            Verdict::Accept
        );
    }

    #[test]
    fn sequences_wrap_to_zero() {
        let mut producers = Producers::default();
        producers.replay(&batch(0, i32::MAX - 1, 2), Offset(0), Timestamp(1));
        assert_eq!(judge(&producers, &batch(0, 0, 1)), Verdict::Accept);
        assert_eq!(batch(0, i32::MAX, 2).last_sequence(), 0);
    }

    #[test]
    fn a_drain_sees_its_own_batches() {
        let producers = producers_after(1);
        let mut drain = Drain::over(&producers);
        for (slot, first_sequence) in [10, 20].into_iter().enumerate() {
            let next = batch(0, first_sequence, 10);
            assert_eq!(drain.judge(&next), Verdict::Accept);
            drain.accept(&next, slot);
        }
        assert_eq!(
            drain.judge(&batch(0, 10, 10)),
            Verdict::Duplicate(Place::Pending(0))
        );
        assert_eq!(
            drain.judge(&batch(0, 40, 10)),
            Verdict::OutOfOrder { expected: 30 }
        );
    }

    #[test]
    fn idle_producers_are_forgotten_by_partition_time() {
        let mut producers = producers_after(1);
        let other = Publisher {
            producer_id: 8,
            ..batch(0, 0, 1)
        };
        let later = Timestamp(1_000 + EXPIRY_NANOS + 1);
        let change = producers.replay(&other, Offset(110), later);
        assert_eq!(
            change,
            Change {
                updated: 8,
                forgotten: vec![7]
            }
        );
        assert_eq!(judge(&producers, &batch(0, 99, 1)), Verdict::Accept);
    }

    #[test]
    fn a_stored_window_comes_back_the_same() {
        let producers = producers_after(4);
        let window = producers.get(7).unwrap();
        assert_eq!(Window::decode(&window.encode()).as_ref(), Some(window));
        assert_eq!(Window::decode(&window.encode()[..17]), None);
    }
}
