//! Transactions in a partition: batches and markers on their way in, and on the way out only what
//! is settled.
//!
//! What is settled ends at the last stable offset. Before it there are records of transactions
//! that were committed, of ones that were aborted, and control records; a reader of batches gets
//! them all with a list of what was aborted, any other only the first.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use trilog_model::batch::{BatchHeader, ProducerState, marker};
use trilog_model::{Offset, Timestamp};
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
        let stable = self.stable_offset();
        let mut fetched = if from < stable {
            self.read(from, max_bytes).await?
        } else {
            self.bounds(from)?
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
        Ok(Settled {
            fetched,
            next,
            stable,
            aborted,
        })
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
    /// Only what counts: no control records, and nothing of transactions that were aborted.
    #[must_use]
    pub fn committed(mut self) -> Self {
        let mut aborted: BTreeMap<i64, Vec<Aborted>> = BTreeMap::new();
        for one in &self.aborted {
            aborted.entry(one.producer_id).or_default().push(*one);
        }
        self.fetched.frames.retain(|frame| {
            let Ok(header) = BatchHeader::parse(&frame.records) else {
                // Whoever takes it apart says what is wrong with it.
                return true;
            };
            let at = frame.header.base_offset;
            let within = |one: &Aborted| one.first_offset <= at && at <= one.last_offset;
            let undone = header.attributes.is_transactional()
                && aborted
                    .get(&header.producer_id)
                    .is_some_and(|all| all.iter().any(within));
            !header.attributes.is_control() && !undone
        });
        self
    }
}
