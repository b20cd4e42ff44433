//! Partitions as dialects see them: append, propose, read, watch, locate.
//!
//! Owns admission and the translation between offsets and the log. Knows no dialect, socket or
//! file; below it are the Raft group and its log.

mod compaction;
mod drain;
mod epochs;
mod error;
mod registry;
mod replicas;
mod retention;
mod rules;
mod stable;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use trilog_model::batch::BatchHeader;
use trilog_model::{LogIndex, NodeId, Offset, ReplicaId, Term, Timestamp};
use trilog_raft::{HighWatermark, Leadership};
use trilog_storage::env::Clock;
use trilog_storage::frame::Frame;
use trilog_storage::log::{Pressure, Retention, Rolling};
use trilog_storage::planted::{self, Bug};

pub use compaction::{Compaction, keep as keep_compaction};
pub use epochs::Dated;
pub use error::{AppendError, ReadError};
pub use registry::Partitions;
pub use retention::keep as keep_retention;
pub use rules::{BadRecord, BadRecords, RecordFault, RecordRules, Times};
pub use stable::{ActiveProducer, OpenTransaction, Settled, Standing};

use crate::view::producers::Publisher;
use crate::view::{PartitionCommand, PartitionState, PartitionView, SharedState, ViewKind};
use compaction::Swept;
use drain::{Admission, Request, Work};

/// The Raft group under a partition.
pub type Group = trilog_raft::Group<PartitionView>;

/// How long an append waits for storage to catch up before it is refused.
const ROOM_PATIENCE: Duration = Duration::from_secs(5);

/// How long those who look after partitions wait for a commit. One that cannot commit, for want of
/// a quorum, must not hold up the others.
const UPKEEP_PATIENCE: Duration = Duration::from_secs(5);

/// How long a leader may take to apply what it knows to be committed.
const CONFIRM_PATIENCE: Duration = Duration::from_secs(5);

/// The most one batch may decompress to, in bytes.
const MAX_DECODED: usize = 64 << 20;

/// Where an acknowledged batch is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    pub base_offset: Offset,
    pub append_time: Timestamp,
    /// The batch had been appended before; these are the original's.
    pub duplicate: bool,
    /// The time all its records have, in milliseconds, where they have that of their append.
    pub stamped: Option<i64>,
}

/// A place in a partition, as readers name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    Offset(Offset),
    Earliest,
    /// Where what is settled ends: the next record to be committed, or the first of a transaction
    /// that is open.
    Latest,
    /// The first record whose own timestamp is this or later, in milliseconds.
    RecordTime(i64),
    /// The first record appended at this time or later.
    AppendTime(Timestamp),
}

/// Committed records, as whole batches.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// In order; the first one may begin before the offset asked for.
    pub frames: Vec<Frame>,
    pub high_watermark: Offset,
    pub log_start: Offset,
}

/// Bounds of one partition's admission.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest record batch taken, in bytes.
    pub max_batch_bytes: usize,
    /// What is kept, where the topic deletes at all.
    pub retention: Retention,
    /// What is asked of records.
    pub rules: RecordRules,
    /// How it is compacted, where it is.
    pub compaction: Option<Compaction>,
    /// When segments end, if earlier than the node's own limits say.
    pub rolling: Option<Rolling>,
}

/// What all appends of a node share.
#[derive(Clone, Debug)]
pub struct Intake {
    /// Bytes of appends waiting or on their way.
    pub in_flight: Arc<Semaphore>,
    /// Whether storage can take more.
    pub pressure: watch::Receiver<Pressure>,
    /// What records' times are held against, and stamped with.
    pub clock: Arc<dyn Clock>,
}

impl Intake {
    /// Waits while storage catches up, within bounds; a full disk refuses at once. Memory is
    /// claimed by the drain, for each partition apart: one that cannot commit, and so gives none
    /// back, does not hold up the others here.
    async fn await_room(&self) -> Result<(), AppendError> {
        let mut pressure = self.pressure.clone();
        let eased = pressure.wait_for(|now| now.disk_full || !now.wal_low);
        match tokio::time::timeout(ROOM_PATIENCE, eased).await {
            Ok(Ok(now)) if now.disk_full => Err(AppendError::DiskFull),
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err(AppendError::Closed),
            Err(_) => Err(AppendError::Busy(
                "the log is written faster than segments are",
            )),
        }
    }
}

/// A replica of a partition on this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Partition {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    group: Group,
    state: SharedState,
    admission: Admission,
    intake: Intake,
    limits: watch::Sender<Limits>,
    kind: ViewKind,
    swept: Mutex<Swept>,
    /// It was said that there are many transactions to remember.
    warned: AtomicBool,
    /// The last of its own commands of which nobody knows what became.
    upkeep: Mutex<Option<Ticket>>,
}

impl Inner {
    fn queue(&self) -> Result<mpsc::Sender<Request>, AppendError> {
        self.admission.queue(|requests| {
            let clock = Arc::clone(&self.intake.clock);
            drain::run(self.group.clone(), Arc::clone(&self.state), clock, requests)
        })
    }
}

impl Partition {
    /// Takes over a group whose view keeps `state`.
    #[must_use]
    pub fn new(group: Group, state: SharedState, intake: Intake, limits: Limits) -> Self {
        let limits = watch::Sender::new(limits);
        let kind = state.lock().kind();
        let inner = Inner {
            group,
            state,
            admission: Admission::default(),
            intake,
            limits,
            kind,
            swept: Mutex::default(),
            warned: AtomicBool::new(false),
            upkeep: Mutex::default(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Queues one record batch, exactly as the producer sent it, and returns once it has its
    /// place in the queue; batches are appended in the order of these returns. The ticket
    /// resolves when the batch is committed, or will not be.
    ///
    /// # Cancel safety
    ///
    /// Dropped before it returns, nothing is appended. A dropped ticket cancels nothing.
    pub async fn enqueue(
        &self,
        bytes: Bytes,
        expect: Option<Offset>,
    ) -> Result<Ticket, AppendError> {
        let header = self.check(&bytes)?;
        if header.attributes.is_transactional() {
            return Err(AppendError::NotInTransaction);
        }
        let rules = self.inner.limits.borrow().rules;
        let now = self.inner.intake.clock.now();
        rules.check(&header, &bytes, now).await?;
        self.submit(Work::Batch {
            bytes,
            records: header.record_count.unsigned_abs(),
            publisher: publisher(&header),
            transactional: false,
            shown: None,
            expect,
            stamp: rules.times == Times::Appended,
        })
        .await
    }

    /// Appends one record batch and waits for its commit.
    pub async fn append(&self, bytes: Bytes) -> Result<Appended, AppendError> {
        self.enqueue(bytes, None).await?.committed().await
    }

    /// Proposes a command of the partition's own views and waits for its commit.
    pub async fn propose(&self, command: PartitionCommand) -> Result<Appended, AppendError> {
        let work = Work::Command {
            encoded: command.encoded(),
            term: None,
        };
        self.submit(work).await?.committed().await
    }

    /// Queues a command that was judged in `term`, in the order of these calls, or refuses it at
    /// once. For a coordinator, which judges by more than what is applied: in another term the
    /// command is not appended.
    pub fn try_propose(
        &self,
        command: &PartitionCommand,
        term: Term,
    ) -> Result<Ticket, AppendError> {
        let (reply, answer) = oneshot::channel();
        let request = Request {
            work: Work::Command {
                encoded: command.encoded(),
                term: Some(term),
            },
            reply,
            _permits: None,
        };
        match self.inner.queue()?.try_send(request) {
            Ok(()) => Ok(Ticket(answer)),
            Err(mpsc::error::TrySendError::Full(_)) => {
                Err(AppendError::Busy("too much is waiting to be judged"))
            }
            Err(mpsc::error::TrySendError::Closed(_)) => Err(AppendError::Closed),
        }
    }

    /// Proposes a command that the partition's upkeep asks for, judged in `term`, and waits for its
    /// commit a while. Refused or lost, it is proposed again at the next look; while nobody knows
    /// what became of the last one, no other joins it in the queue. Whenever it is committed, it
    /// says what was true.
    async fn keep_up(&self, command: &PartitionCommand, term: Term) {
        let last = self.inner.upkeep.lock().take();
        if let Some(mut last) = last
            && last.is_pending()
        {
            *self.inner.upkeep.lock() = Some(last);
            return;
        }
        let Ok(mut ticket) = self.try_propose(command, term) else {
            return;
        };
        let committed = tokio::time::timeout(UPKEEP_PATIENCE, &mut ticket.0).await;
        if committed.is_err() {
            *self.inner.upkeep.lock() = Some(ticket);
        }
    }

    /// Waits until what is applied here is all that was acknowledged before the call, and proves
    /// that this replica leads: then it may be read as current.
    pub async fn confirm(&self) -> Result<(), ReadError> {
        let confirming = async {
            let index = self.inner.group.read_index().await.map_err(|_| {
                let (leader, _) = self.leader();
                ReadError::NotLeader { leader }
            })?;
            let mut watch = self.watch();
            let applied = watch.wait_for(|now| now.applied >= Some(index)).await;
            let closed = |_| ReadError::Unavailable("it is being closed".to_owned());
            applied.map(drop).map_err(closed)
        };
        let late = || ReadError::Unavailable("it has not caught up".to_owned());
        let confirmed = tokio::time::timeout(CONFIRM_PATIENCE, confirming).await;
        confirmed.unwrap_or_else(|_| Err(late()))
    }

    /// Looks at the replicated state; briefly, for nothing is applied meanwhile.
    pub fn with_state<T>(&self, look: impl FnOnce(&PartitionState) -> T) -> T {
        look(&self.inner.state.lock())
    }

    /// What its entries mean.
    #[must_use]
    pub fn kind(&self) -> ViewKind {
        self.inner.kind
    }

    fn check(&self, bytes: &Bytes) -> Result<BatchHeader, AppendError> {
        if self.inner.kind != ViewKind::Records {
            return Err(AppendError::Internal);
        }
        let limit = self.inner.limits.borrow().max_batch_bytes;
        if bytes.len() > limit {
            return Err(AppendError::TooLarge {
                size: bytes.len(),
                limit,
            });
        }
        BatchHeader::validate(bytes).map_err(AppendError::Invalid)
    }

    async fn submit(&self, work: Work) -> Result<Ticket, AppendError> {
        let inner = &self.inner;
        let leadership = *inner.group.leadership().borrow();
        if !leadership.ready {
            return Err(AppendError::NotLeader {
                leader: leader_node(&leadership),
            });
        }
        let permits = match &work {
            Work::Command { .. } | Work::Marker { .. } => None,
            Work::Batch { bytes, .. } => {
                inner.intake.await_room().await?;
                let bytes = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
                let budget = Arc::clone(&inner.intake.in_flight);
                Some(
                    budget
                        .acquire_many_owned(bytes)
                        .await
                        .map_err(|_| AppendError::Closed)?,
                )
            }
        };
        let (reply, answer) = oneshot::channel();
        let request = Request {
            work,
            reply,
            _permits: permits,
        };
        inner
            .queue()?
            .send(request)
            .await
            .map_err(|_| AppendError::Closed)?;
        Ok(Ticket(answer))
    }

    /// Where the log begins and ends, for a reader at `from`, which must lie within; no records.
    pub async fn bounds(&self, from: Offset) -> Result<Fetched, ReadError> {
        let (high_watermark, log_start) = self.within(from).await?;
        Ok(Fetched {
            frames: Vec::new(),
            high_watermark: high_watermark.offset,
            log_start,
        })
    }

    /// Up to where and from where this replica may be read, by who is at `from`, which must lie
    /// within. That it lies beyond the end is told only by who is proven to lead: a reader may have
    /// come from who took its place, and would go back to the end that this one knows.
    async fn within(&self, from: Offset) -> Result<(HighWatermark, Offset), ReadError> {
        let mut end = self.readable();
        if from > end.offset {
            self.confirm().await?;
            end = self.readable();
        }
        let start = self.log_start();
        if from < start || from > end.offset {
            return Err(ReadError::OutOfRange {
                asked: from,
                start,
                end: end.offset,
            });
        }
        Ok((end, start))
    }

    /// Up to where this replica may be read.
    fn readable(&self) -> HighWatermark {
        let log = self.inner.group.log();
        if planted::has(Bug::ServesUncommitted) && !self.leader().1 {
            let state = log.state();
            return HighWatermark {
                applied: state.last.map(|last| last.index),
                offset: state.next_offset,
            };
        }
        *self.inner.group.high_watermark().borrow()
    }

    /// Committed records from `from` on, at least one batch if there is one, whatever its size.
    pub async fn read(&self, from: Offset, max_bytes: usize) -> Result<Fetched, ReadError> {
        let (high_watermark, log_start) = self.within(from).await?;
        let frames = match high_watermark.applied {
            Some(applied) if from < high_watermark.offset => {
                let log = self.inner.group.log();
                log.read_offsets(from, applied, max_bytes)
                    .await
                    .map_err(|error| self.read_error(&error))?
            }
            _ => Vec::new(),
        };
        Ok(Fetched {
            frames,
            high_watermark: high_watermark.offset,
            log_start,
        })
    }

    /// The offset a starting point means now. A time after the last record means the end.
    pub async fn locate(&self, start: Start) -> Result<Offset, ReadError> {
        let end = *self.inner.group.high_watermark().borrow();
        let found = match (start, end.applied) {
            (Start::Offset(offset), _) => return Ok(offset),
            (Start::Earliest, _) => Some(self.log_start()),
            (Start::Latest, _) | (_, None) => None,
            (Start::AppendTime(time), Some(applied)) => {
                let log = self.inner.group.log();
                log.find_append_time(time, applied)
                    .await
                    .map_err(|error| self.read_error(&error))?
            }
            (Start::RecordTime(millis), Some(applied)) => self.find_record(millis, applied).await?,
        };
        let latest = || self.with_state(|state| state.stable_offset().min(end.offset));
        Ok(found.unwrap_or_else(latest).max(self.log_start()))
    }

    /// The first record at `millis` or later: the index names the batch, its records the rest.
    async fn find_record(
        &self,
        millis: i64,
        applied: LogIndex,
    ) -> Result<Option<Offset>, ReadError> {
        let log = self.inner.group.log();
        let found = log
            .find_record_time(millis, applied)
            .await
            .map_err(|error| self.read_error(&error))?;
        let Some((base, _)) = found else {
            return Ok(None);
        };
        let frames = log
            .read_offsets(base, applied, 1)
            .await
            .map_err(|error| self.read_error(&error))?;
        let Some(frame) = frames.into_iter().next() else {
            return Ok(Some(base));
        };
        match tokio::task::spawn_blocking(move || first_at(&frame, millis)).await {
            Ok(offset) => offset.map(Some),
            Err(error) => Err(ReadError::Unavailable(error.to_string())),
        }
    }

    /// The first offset served.
    #[must_use]
    pub fn log_start(&self) -> Offset {
        self.inner.state.lock().log_start()
    }

    /// Moves with each commit applied here.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<HighWatermark> {
        self.inner.group.high_watermark()
    }

    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.inner.group.leadership()
    }

    /// The leading node as this one knows it, and whether that is itself, ready.
    #[must_use]
    pub fn leader(&self) -> (Option<NodeId>, bool) {
        let leadership = *self.inner.group.leadership().borrow();
        (leader_node(&leadership), leadership.ready)
    }

    /// The leading node as this one knows it, and in which term.
    #[must_use]
    pub fn leader_and_term(&self) -> (Option<NodeId>, Term) {
        let leadership = *self.inner.group.leadership().borrow();
        (leader_node(&leadership), leadership.term)
    }

    /// Offsets, half open, of what is damaged on this node and not served.
    #[must_use]
    pub fn damaged(&self) -> Vec<(Offset, Offset)> {
        let log = self.inner.group.log();
        let firsts: Vec<LogIndex> = log.gaps().iter().filter_map(|gap| gap.first).collect();
        let segments = log.segments();
        let damaged = segments
            .iter()
            .filter(|segment| firsts.contains(&segment.base_index));
        damaged
            .map(|segment| (segment.base_offset, segment.next_offset))
            .collect()
    }

    fn read_error(&self, error: &trilog_storage::log::ReadError) -> ReadError {
        let trilog_storage::log::ReadError::Damaged { first, .. } = error else {
            return ReadError::Unavailable(error.to_string());
        };
        let segments = self.inner.group.log().segments();
        let held = segments.iter().find(|held| held.base_index == *first);
        ReadError::Damaged(held.map_or_else(
            || error.to_string(),
            |held| {
                let (start, end) = (held.base_offset, held.next_offset);
                format!("offsets from {start} to before {end}")
            },
        ))
    }

    /// Waits until the high watermark passes `offset`, or the time is over.
    pub async fn wait_past(&self, offset: Offset, patience: Duration) {
        let mut watch = self.watch();
        let passed = watch.wait_for(|now| now.offset > offset);
        // Either outcome is an answer: the caller reads what there is.
        drop(tokio::time::timeout(patience, passed).await);
    }

    /// Bytes and number of the segment files that hold it here.
    #[must_use]
    pub fn files(&self) -> (u64, usize) {
        let segments = self.inner.group.log().segments();
        (
            segments.iter().map(|segment| segment.bytes).sum(),
            segments.len(),
        )
    }

    /// The term of the leader this replica knows, or its own newest.
    #[must_use]
    pub fn term(&self) -> Term {
        self.inner.group.leadership().borrow().term
    }

    /// Whether the replica was closed: it then answers nothing any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.inner.admission.is_closed()
    }

    /// Ends admission; what is queued is answered as closed. The group itself is closed apart.
    pub fn close(&self) {
        self.inner.admission.close();
    }

    #[must_use]
    pub fn group(&self) -> &Group {
        &self.inner.group
    }

    pub fn set_limits(&self, limits: Limits) {
        if let Some(rolling) = limits.rolling {
            self.inner.group.log().set_rolling(rolling);
        }
        self.inner.limits.send_replace(limits);
    }
}

/// The first record of a batch at `millis` or later. A batch that cannot be decoded here (a codec
/// of a later version) is itself the answer: its reader decodes it anyway.
fn first_at(frame: &Frame, millis: i64) -> Result<Offset, ReadError> {
    let first = frame.header.base_offset;
    let damaged = |error: &dyn std::fmt::Display| ReadError::Damaged(error.to_string());
    let header = BatchHeader::parse(&frame.records).map_err(|error| damaged(&error))?;
    let Ok(records) = header.records(&frame.records, MAX_DECODED) else {
        return Ok(first);
    };
    for record in &records {
        let record = record.map_err(|error| damaged(&error))?;
        if record.timestamp >= millis {
            return Ok(first.plus(u64::from(record.offset_delta.unsigned_abs())));
        }
    }
    Ok(frame.header.next_offset())
}

/// Who sent a batch, if its producer says so.
fn publisher(header: &BatchHeader) -> Option<Publisher> {
    header.is_idempotent().then_some(Publisher {
        producer_id: header.producer_id,
        epoch: header.producer_epoch,
        first_sequence: header.base_sequence,
        records: header.record_count,
    })
}

fn leader_node(leadership: &Leadership) -> Option<NodeId> {
    leadership.leader.map(ReplicaId::node)
}

/// An append on its way.
#[derive(Debug)]
pub struct Ticket(oneshot::Receiver<Result<Appended, AppendError>>);

impl Ticket {
    fn is_pending(&mut self) -> bool {
        matches!(self.0.try_recv(), Err(oneshot::error::TryRecvError::Empty))
    }

    /// Waits for the commit. A partition closed meanwhile leaves the outcome unknown.
    pub async fn committed(self) -> Result<Appended, AppendError> {
        self.0.await.unwrap_or(Err(AppendError::Unknown))
    }
}
