//! Transactions in a partition: batches and markers on their way in, and on the way out only what
//! is settled.
//!
//! What is settled ends at the last stable offset. Before it there are records of transactions
//! that were committed, of ones that were aborted, and control records; a reader of batches gets
//! them all with a list of what was aborted, any other only the first.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use trilog_model::batch::{BatchHeader, ProducerState, marker};
use trilog_model::{AbortedSet, Offset, Timestamp};
use trilog_storage::frame::Frame;
use trilog_storage::planted::{self, Bug};

use super::drain::Work;
use super::{AppendError, Appended, Fetched, Partition, ReadError, Ticket, Times, publisher};
use crate::view::isolation::{Ender, Inclusion, MANY_TRANSACTIONS, MAX_TRANSACTIONS, Open};
use crate::view::producers::Window;
use crate::view::{Aborted, Marker, PartitionState, ViewKind};

/// What a producer's next batch of a transaction needs here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Its transaction is open.
    Open,
    /// The coordinator is to be asked whether the partition is in it. What it says holds unless
    /// it was ended behind this offset.
    Unknown(Offset),
}

/// What is settled from an offset on.
#[derive(Clone, Debug)]
pub struct Settled {
    pub fetched: Fetched,
    /// Where the next read goes on.
    pub next: Offset,
    /// What is settled ends here.
    pub stable: Offset,
    /// Whose records before `next` do not count, though they are there.
    pub aborted: Vec<Aborted>,
}

/// Somebody who writes to a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveProducer {
    pub producer_id: i64,
    pub epoch: i16,
    pub last_sequence: Option<i32>,
    pub last_time: Timestamp,
    /// Of its last marker.
    pub coordinator_epoch: Option<i32>,
    /// Where its open transaction begins.
    pub open_since: Option<Offset>,
}

/// A transaction that is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenTransaction {
    pub producer_id: i64,
    pub epoch: i16,
    pub first_offset: Offset,
    /// When the producer last wrote.
    pub last_time: Timestamp,
    /// Of the producer's last marker.
    pub coordinator_epoch: Option<i32>,
}

fn open_transaction(state: &PartitionState, producer_id: i64, open: Open) -> OpenTransaction {
    let isolation = state.isolation();
    let window = state.producers().get(producer_id);
    OpenTransaction {
        producer_id,
        epoch: open.epoch,
        first_offset: open.first_offset,
        last_time: window.map_or(Timestamp(0), Window::last_time),
        coordinator_epoch: isolation
            .mark(producer_id)
            .map(|mark| mark.coordinator_epoch),
    }
}

impl Partition {
    /// Who has written lately, in order of their ids, no more than `most`.
    #[must_use]
    pub fn producers(&self, most: usize) -> Vec<ActiveProducer> {
        self.with_state(|state| {
            let isolation = state.isolation();
            let each = state.producers().iter().take(most);
            let each = each.map(|(producer_id, window)| ActiveProducer {
                producer_id,
                epoch: window.epoch(),
                last_sequence: window.last_sequence(),
                last_time: window.last_time(),
                coordinator_epoch: isolation
                    .mark(producer_id)
                    .map(|mark| mark.coordinator_epoch),
                open_since: isolation.open(producer_id).map(|open| open.first_offset),
            });
            each.collect()
        })
    }

    /// What a producer has open here.
    #[must_use]
    pub fn open_transaction(&self, producer_id: i64) -> Option<OpenTransaction> {
        self.with_state(|state| {
            let open = state.isolation().open(producer_id)?;
            Some(open_transaction(state, producer_id, open))
        })
    }

    /// What is open here, by producer, no more than `most`: of those that last wrote at a time that
    /// is wanted.
    #[must_use]
    pub fn open_transactions(
        &self,
        most: usize,
        wanted: impl Fn(Timestamp) -> bool,
    ) -> Vec<OpenTransaction> {
        self.with_state(|state| {
            let each = state.isolation().all_open();
            let each = each.map(|(id, open)| open_transaction(state, id, open));
            each.filter(|open| wanted(open.last_time))
                .take(most)
                .collect()
        })
    }

    /// How many records wait for the end of a transaction, and how many transactions are to be
    /// remembered.
    #[must_use]
    pub fn unsettled(&self) -> (u64, usize) {
        let committed = self.watch().borrow().offset;
        self.with_state(|state| {
            let stable = state.stable_offset().min(committed);
            let behind = committed.get().saturating_sub(stable.get());
            (behind, state.isolation().count())
        })
    }

    /// Says so once when transactions to be remembered become many.
    pub(super) fn warn_of_transactions(&self) {
        let (_, count) = self.unsettled();
        let many = count >= MANY_TRANSACTIONS;
        let said = self.inner.warned.swap(many, Ordering::Relaxed);
        if many && !said {
            tracing::warn!(
                group = %self.inner.group.id(),
                count,
                most = MAX_TRANSACTIONS,
                "a partition has to remember many aborted transactions; it takes no more of them at \
                 the bound: delete records, or give the topic a retention"
            );
        }
    }

    /// Whether the producer's transaction is open here.
    #[must_use]
    pub fn standing(&self, producer_id: i64, epoch: i16) -> Standing {
        self.with_state(|state| match state.isolation().open(producer_id) {
            Some(open) if open.epoch == epoch => Standing::Open,
            Some(_) | None => Standing::Unknown(state.next_offset()),
        })
    }

    /// As [`Partition::enqueue`], for a batch of a transaction. Unless that is open here, `shown`
    /// is what the coordinator said of it, and what [`Partition::standing`] gave before that.
    pub async fn enqueue_in_transaction(
        &self,
        bytes: Bytes,
        shown: Option<Inclusion>,
    ) -> Result<Ticket, AppendError> {
        let header = self.check(&bytes)?;
        let transactional = header.attributes.is_transactional();
        let publisher = publisher(&header);
        if transactional && publisher.is_none() {
            return Err(AppendError::NotInTransaction);
        }
        let rules = self.inner.limits.borrow().rules;
        let now = self.inner.intake.clock.now();
        rules.check(&header, &bytes, now).await?;
        self.submit(Work::Batch {
            bytes,
            records: header.record_count.unsigned_abs(),
            publisher,
            transactional,
            shown,
            expect: None,
            stamp: rules.times == Times::Appended,
        })
        .await
    }

    /// Ends a producer's transaction here, once: what it wrote counts from now on, or never will.
    /// `millis` is the time that the control record bears.
    pub async fn end_transaction(
        &self,
        ended: Marker,
        ender: Ender,
        millis: i64,
    ) -> Result<Appended, AppendError> {
        if self.inner.kind != ViewKind::Records {
            return Err(AppendError::Internal);
        }
        let producer = ProducerState {
            id: ended.producer_id,
            epoch: i16::try_from(ended.epoch).map_err(|_| AppendError::StaleCoordinator)?,
            sequence: -1,
        };
        let batch = marker(producer, ended.commit, ended.coordinator_epoch, millis);
        let batch = batch.map_err(|_| AppendError::Closed)?;
        let work = Work::Marker {
            marker: ended,
            ender,
            batch,
        };
        self.submit(work).await?.committed().await
    }

    /// Where what is settled ends.
    #[must_use]
    pub fn stable_offset(&self) -> Offset {
        let committed = self.readable().offset;
        if planted::has(Bug::ServesUncommitted) && !self.leader().1 {
            return committed;
        }
        self.with_state(|state| state.stable_offset().min(committed))
    }

    /// What is settled from `from` on, as it is stored. Beyond what is settled there is nothing.
    pub async fn read_stable(&self, from: Offset, max_bytes: usize) -> Result<Settled, ReadError> {
        loop {
            let known = self.with_state(PartitionState::forgotten);
            let settled = self.read_settled(from, max_bytes).await?;
            // What was forgotten meanwhile was gone by then, but maybe not when it was read.
            let forgotten = self.with_state(PartitionState::forgotten);
            if forgotten <= from || forgotten == known {
                return Ok(settled);
            }
        }
    }

    async fn read_settled(&self, from: Offset, max_bytes: usize) -> Result<Settled, ReadError> {
        let stable = self.stable_offset();
        let mut fetched = if from < stable {
            self.read(from, max_bytes).await?
        } else {
            self.bounds(from).await?
        };
        // Transactions begin with their batches, so none lies on both sides.
        let settled = |frame: &Frame| frame.header.base_offset < stable;
        let end = fetched.frames.partition_point(settled);
        // Where what was read ends behind what is settled, or nothing was found, compaction has left
        // nothing in between: a reader goes on from there.
        let all = end < fetched.frames.len() || fetched.frames.is_empty();
        fetched.frames.truncate(end);
        let last = fetched.frames.last();
        let next = match last {
            _ if all => stable.max(from),
            last => last.map_or(from, |last| last.header.next_offset()),
        };
        let (log_start, aborted) = self.with_state(|state| {
            let aborted = state.aborted(from, next);
            (state.log_start(), aborted)
        });
        if from < log_start {
            // What is known of transactions is trimmed with the log.
            return Err(ReadError::OutOfRange {
                asked: from,
                start: log_start,
                end: fetched.high_watermark,
            });
        }
        let mut settled = Settled {
            fetched,
            next,
            stable,
            aborted,
        };
        settled.tell_only_what_ends();
        Ok(settled)
    }

    /// Waits until what is settled passes `offset`, or the time is over.
    pub async fn wait_stable_past(&self, offset: Offset, patience: Duration) {
        let mut watch = self.watch();
        let passed = watch.wait_for(|now| {
            let stable = self.with_state(PartitionState::stable_offset);
            stable.min(now.offset) > offset
        });
        // Either outcome is an answer: the caller reads what there is.
        drop(tokio::time::timeout(patience, passed).await);
    }
}

impl Settled {
    /// A reader that is told of an aborted transaction skips what its producer wrote up to the
    /// marker, so it must not be told of one whose marker compaction took: it would skip what was
    /// committed afterwards. Of such a transaction nothing is left either, so nobody needs to know
    /// of it. Where something came back all the same, the answer ends with the transaction, and its
    /// reader begins the next one anew.
    fn tell_only_what_ends(&mut self) {
        if self.aborted.is_empty() {
            return;
        }
        let frames = &mut self.fetched.frames;
        let of = |frame: &Frame| Some((BatchHeader::parse(&frame.records).ok()?, frame.header));
        let markers: BTreeSet<Offset> = frames
            .iter()
            .filter_map(of)
            .filter(|(batch, _)| batch.attributes.is_control())
            .map(|(_, header)| header.base_offset)
            .collect();
        let ends =
            |one: &Aborted| one.last_offset >= self.next || markers.contains(&one.last_offset);
        let (mut told, endless): (Vec<_>, Vec<_>) = self.aborted.iter().copied().partition(ends);
        let endless: AbortedSet = endless.into_iter().collect();
        let mut last = None;
        for (batch, header) in frames.iter().filter_map(of) {
            if last.is_some_and(|last| header.base_offset > last) {
                break;
            }
            let data = batch.attributes.is_transactional() && !batch.attributes.is_control();
            let found = endless.find(batch.producer_id, header.base_offset);
            if let Some(found) = found.filter(|_| data) {
                last = Some(last.unwrap_or(found.last_offset).min(found.last_offset));
                if !told.contains(&found) {
                    told.push(found);
                }
            }
        }
        if let Some(last) = last {
            let end = frames.partition_point(|frame| frame.header.base_offset <= last);
            frames.truncate(end);
            self.next = frames
                .last()
                .map_or(self.next, |frame| frame.header.next_offset());
        }
        self.aborted = told;
    }

    /// Only what counts: no control records, and nothing of transactions that were aborted.
    #[must_use]
    pub fn committed(mut self) -> Self {
        let aborted: AbortedSet = self.aborted.iter().copied().collect();
        self.fetched.frames.retain(|frame| {
            let Ok(header) = BatchHeader::parse(&frame.records) else {
                // Whoever takes it apart says what is wrong with it.
                return true;
            };
            let at = frame.header.base_offset;
            let undone =
                header.attributes.is_transactional() && aborted.holds(header.producer_id, at);
            !header.attributes.is_control() && !undone
        });
        self
    }
}

#[cfg(test)]
mod tests {
    use trilog_model::batch::{BatchBuilder, Compression};
    use trilog_model::{EntryId, GroupId};
    use trilog_storage::frame::FrameKind;

    use super::*;

    const ABORT: bool = false;

    fn frame(offset: u64, records: Bytes) -> Frame {
        let id = EntryId::new(1, offset);
        let mut frame = Frame::bare(FrameKind::Data, GroupId(2), id, Bytes::new());
        frame.records = records;
        frame.header.record_count = 1;
        frame.header.base_offset = Offset(offset);
        frame
    }

    fn producer(id: i64, sequence: i32) -> ProducerState {
        ProducerState {
            id,
            epoch: 0,
            sequence,
        }
    }

    fn data(offset: u64, id: i64) -> Frame {
        let mut batch = BatchBuilder::new(Compression::None);
        batch.set_transactional().set_producer(producer(id, 0));
        batch.push(5, Some(b"key"), Some(b"value"), &[]).unwrap();
        frame(offset, batch.build().unwrap())
    }

    fn end(offset: u64, id: i64) -> Frame {
        frame(offset, marker(producer(id, -1), ABORT, 1, 5).unwrap())
    }

    /// What is left of an answer up to `next`: offsets of batches, first offsets of transactions,
    /// and where the next begins.
    fn told(frames: &[Frame], aborted: &[(i64, u64, u64)], next: u64) -> (Vec<u64>, Vec<u64>, u64) {
        let aborted = aborted.iter().map(|(producer_id, first, last)| Aborted {
            producer_id: *producer_id,
            first_offset: Offset(*first),
            last_offset: Offset(*last),
        });
        let mut settled = Settled {
            fetched: Fetched {
                frames: frames.to_vec(),
                high_watermark: Offset(99),
                log_start: Offset(0),
            },
            next: Offset(next),
            stable: Offset(99),
            aborted: aborted.collect(),
        };
        settled.tell_only_what_ends();
        let frames = settled.fetched.frames.iter();
        let bases = frames.map(|frame| frame.header.base_offset.get()).collect();
        let firsts = settled.aborted.iter().map(|one| one.first_offset.get());
        (bases, firsts.collect(), settled.next.get())
    }

    #[test]
    fn a_reader_is_told_of_aborted_transactions_that_it_sees_end() {
        let whole = [data(3, 7), data(4, 9), end(5, 7), data(6, 7)];
        // The other one goes on behind the answer.
        let both = [(7, 3, 5), (9, 4, 20)];
        let all = vec![3, 4, 5, 6];
        assert_eq!(told(&whole, &both, 7), (all, vec![3, 4], 7));
        // The records are gone, the marker is not yet.
        let marked = [data(4, 9), end(5, 7), data(6, 7)];
        assert_eq!(told(&marked, &both, 7), (vec![4, 5, 6], vec![3, 4], 7));
    }

    #[test]
    fn a_reader_is_not_told_of_one_whose_marker_is_gone_or_it_would_skip_what_follows() {
        let left = [data(2, 9), data(6, 7), end(8, 7)];
        let aborted = [(7, 3, 5), (7, 6, 8)];
        assert_eq!(told(&left, &aborted, 9), (vec![2, 6, 8], vec![6], 9));
        // A marker of another one does not end it.
        let left = [data(2, 9), end(5, 9), data(6, 7)];
        assert_eq!(told(&left, &[(7, 3, 4)], 7), (vec![2, 5, 6], vec![], 7));
    }

    #[test]
    fn what_came_back_of_one_whose_marker_is_gone_is_skipped_and_nothing_else() {
        let left = [data(2, 9), data(3, 7), data(4, 8), data(6, 7), data(7, 8)];
        let aborted = [(7, 3, 5), (8, 4, 6)];
        assert_eq!(told(&left, &aborted, 9), (vec![2, 3, 4], vec![3, 4], 5));
        let rest = &left[3..];
        assert_eq!(told(rest, &aborted, 9), (vec![6, 7], vec![], 9));
    }
}
