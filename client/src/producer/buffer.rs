//! The records of one partition that are not under way yet: the batch being filled, and full ones
//! waiting for their turn.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::FutureExt;
use futures::future::Shared;
use tokio::sync::{Notify, OwnedSemaphorePermit, oneshot};
use tokio::time::Instant;
use trilog_model::Timestamp;
use trilog_model::batch::{BatchBuilder, Header};

use crate::config::ProducerConfig;
use crate::error::Error;

/// Most room made for a batch before there are records to fill it, in bytes.
const MAX_ROOM: usize = 256 << 10;

/// Where a batch came to lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct BatchPlace {
    pub(super) partition: u32,
    pub(super) base_offset: u64,
    pub(super) append_time: Timestamp,
}

/// The fate of a batch, which all its records share.
pub(super) type Fate = Shared<oneshot::Receiver<Result<BatchPlace, Error>>>;

/// A record's place in the log, once it is committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordPlace {
    pub partition: u32,
    pub offset: u64,
    /// When the leader appended its batch.
    pub append_time: Timestamp,
}

/// Resolves when a record's fate is known. Dropping it changes nothing for the record.
#[derive(Clone, Debug)]
#[must_use = "only the resolved delivery tells whether the record was committed"]
pub struct Delivery {
    fate: Fate,
    place_in_batch: u64,
}

impl Future for Delivery {
    type Output = Result<RecordPlace, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let place_in_batch = self.place_in_batch;
        self.fate.poll_unpin(cx).map(|fate| {
            let batch = fate.unwrap_or(Err(Error::Closed))?;
            Ok(RecordPlace {
                partition: batch.partition,
                offset: batch.base_offset.saturating_add(place_in_batch),
                append_time: batch.append_time,
            })
        })
    }
}

/// A batch that takes no more records.
#[derive(Debug)]
pub(super) struct Sealed {
    pub(super) builder: BatchBuilder,
    /// When its first record gives up waiting.
    pub(super) deadline: Instant,
    pub(super) done: oneshot::Sender<Result<BatchPlace, Error>>,
    /// The memory it fills, given back when it is dropped.
    pub(super) memory: OwnedSemaphorePermit,
    pub(super) number: u64,
}

#[derive(Debug)]
struct Open {
    sealed: Sealed,
    fate: Fate,
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    open: Option<Open>,
    sealed: VecDeque<Sealed>,
    /// Batches whose fate is open, by number, for `flush`.
    unresolved: BTreeMap<u64, Fate>,
    next_number: u64,
    /// Room for the next batch, by what the last one came to: it then need not move as it grows.
    room: usize,
    /// The open batch is not to wait for more.
    hurry: bool,
    closed: bool,
}

/// One partition's buffer, filled by `send` and emptied by the partition's lane.
#[derive(Debug)]
pub(super) struct Buffer {
    config: ProducerConfig,
    state: Mutex<State>,
    changed: Notify,
}

/// A record on its way into a batch.
#[derive(Clone, Copy, Debug)]
pub(super) struct Encoding<'a> {
    pub(super) timestamp: i64,
    pub(super) key: Option<&'a [u8]>,
    pub(super) value: Option<&'a [u8]>,
    pub(super) headers: &'a [Header<'a>],
    /// At most this many bytes in the batch.
    pub(super) bound: usize,
}

impl Buffer {
    pub(super) fn new(config: ProducerConfig) -> Self {
        Self {
            config,
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// Adds a record behind all others.
    pub(super) fn push(
        &self,
        record: &Encoding<'_>,
        memory: OwnedSemaphorePermit,
    ) -> Result<Delivery, Error> {
        let mut state = self.lock();
        if state.closed {
            return Err(Error::Closed);
        }
        let full = |open: &mut Open| {
            open.sealed.builder.uncompressed_len() + record.bound > self.config.batch_bytes
        };
        if let Some(open) = state.open.take_if(full) {
            state.room = self.config.batch_bytes.min(MAX_ROOM);
            state.sealed.push_back(open.sealed);
            self.changed.notify_one();
        }
        let Some(open) = state.open.as_mut() else {
            let mut open = Open::new(&self.config, state.next_number, memory, state.room);
            let delivery = open.push(record)?;
            state.next_number += 1;
            state
                .unresolved
                .insert(open.sealed.number, open.fate.clone());
            state.open = Some(open);
            self.changed.notify_one();
            return Ok(delivery);
        };
        let delivery = open.push(record)?;
        open.sealed.memory.merge(memory);
        Ok(delivery)
    }

    /// The next batch to send: a full one, or one that has waited long enough. `None` when the
    /// buffer is closed and empty.
    ///
    /// # Cancel safety
    ///
    /// Nothing is taken out unless this returns.
    pub(super) async fn next(&self) -> Option<Sealed> {
        loop {
            let changed = self.changed.notified();
            let ripe_at = {
                let mut state = self.lock();
                if let Some(sealed) = state.take_ripe(self.config.linger) {
                    return Some(sealed);
                }
                if state.closed {
                    return None;
                }
                state
                    .open
                    .as_ref()
                    .map(|open| open.since + self.config.linger)
            };
            match ripe_at {
                None => changed.await,
                Some(ripe_at) => {
                    // Whichever comes first: it is ripe, it is full, or somebody is in a hurry.
                    let _ = tokio::time::timeout_at(ripe_at, changed).await;
                }
            }
        }
    }

    /// Forgets a batch whose fate is told.
    pub(super) fn resolved(&self, number: u64) {
        let mut state = self.lock();
        state.unresolved.remove(&number);
        if state.unresolved.is_empty() {
            state.hurry = false;
        }
    }

    /// Sends what there is without waiting for more; the fates to wait for.
    pub(super) fn flush(&self) -> Vec<Fate> {
        let mut state = self.lock();
        state.hurry = !state.unresolved.is_empty();
        self.changed.notify_one();
        state.unresolved.values().cloned().collect()
    }

    /// Takes no more records; those it has are still sent.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn take_ripe(&mut self, linger: Duration) -> Option<Sealed> {
        if let Some(sealed) = self.sealed.pop_front() {
            return Some(sealed);
        }
        let hurry = self.hurry || self.closed;
        let ripe = |open: &mut Open| hurry || open.since.elapsed() >= linger;
        let open = self.open.take_if(ripe)?;
        self.room = open.sealed.builder.uncompressed_len().min(MAX_ROOM);
        Some(open.sealed)
    }
}

impl Open {
    fn new(
        config: &ProducerConfig,
        number: u64,
        memory: OwnedSemaphorePermit,
        room: usize,
    ) -> Self {
        let (done, fate) = oneshot::channel();
        let now = Instant::now();
        Self {
            sealed: Sealed {
                builder: BatchBuilder::with_capacity(config.compression, room),
                deadline: now + config.delivery_timeout,
                done,
                memory,
                number,
            },
            fate: fate.shared(),
            since: now,
        }
    }

    fn push(&mut self, record: &Encoding<'_>) -> Result<Delivery, Error> {
        let builder = &mut self.sealed.builder;
        let place_in_batch = u64::from(builder.record_count().unsigned_abs());
        builder.push(record.timestamp, record.key, record.value, record.headers)?;
        Ok(Delivery {
            fate: self.fate.clone(),
            place_in_batch,
        })
    }
}
