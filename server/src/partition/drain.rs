//! Admission: one drain in flight per partition.
//!
//! What queued while the last drain was on its way is judged, in order, against the applied state
//! plus what this drain has already accepted, and proposed as one, under the term it was judged
//! in. Nothing is rejected later, at apply; a duplicate is answered with its original offset,
//! after the original has committed. A drain whose outcome is unknown ends this leadership's
//! admission: the next drain starts only once the leader of some term is ready again, when the
//! applied state says what became of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use trilog_model::batch::{BatchHeader, stamp_append_time};
use trilog_model::{Offset, ReplicaId, Term, Timestamp};
use trilog_raft::{Leadership, Proposal, ProposeError};
use trilog_storage::env::Clock;

use super::{AppendError, Appended, Group};
use crate::view::isolation::{self, Ender, Inclusion, MarkerVerdict, Unfit};
use crate::view::producers::{self, Place, Publisher, Verdict};
use crate::view::{Marker, PartitionCommand, PartitionState, SharedState};

/// Requests that may wait for a drain in one partition; their bytes are bounded apart.
const QUEUE_LEN: usize = 16_384;
/// The most entries in one drain; Raft merges about as many.
const MAX_ENTRIES: usize = 4096;
/// How long a leader may take to prove that it is one, before it says that it is none.
const PROOF_PATIENCE: Duration = Duration::from_secs(5);
/// A drain closes once it holds so much, so that one round of replication stays short.
const MAX_BYTES: usize = 4 << 20;

/// What somebody wants appended.
pub(super) struct Request {
    pub(super) work: Work,
    pub(super) reply: oneshot::Sender<Result<Appended, AppendError>>,
    /// Held until the answer, so that bytes in flight stay bounded.
    pub(super) _permits: Option<OwnedSemaphorePermit>,
}

pub(super) enum Work {
    Batch {
        bytes: Bytes,
        records: u32,
        publisher: Option<Publisher>,
        transactional: bool,
        /// What showed that the partition is in the batch's transaction.
        shown: Option<Inclusion>,
        /// Append only if this is the next offset.
        expect: Option<Offset>,
        /// Its records get the time of their append.
        stamp: bool,
    },
    /// The end of a transaction, and the control batch that tells readers.
    Marker {
        marker: Marker,
        ender: Ender,
        batch: Bytes,
    },
    Command {
        encoded: Bytes,
        /// The term it was judged in, if whoever judged it remembers more than is applied: in
        /// another one it is refused.
        term: Option<Term>,
    },
}

impl Request {
    fn bytes(&self) -> usize {
        match &self.work {
            Work::Batch { bytes, .. } | Work::Marker { batch: bytes, .. } => bytes.len(),
            Work::Command { encoded, .. } => encoded.len(),
        }
    }

    /// The time its records got, if they got that of their append.
    fn stamped(&self, millis: i64) -> Option<i64> {
        matches!(self.work, Work::Batch { stamp: true, .. }).then_some(millis)
    }

    fn answer(self, outcome: Result<Appended, AppendError>) {
        // The asker may have gone: its answer then matters to nobody.
        drop(self.reply.send(outcome));
    }
}

/// The queue of a replica's appends, and the task that looks after it, from the first append on: a
/// follower has neither, and most replicas are followers.
#[derive(Debug, Default)]
pub(super) struct Admission(Mutex<Stage>);

#[derive(Debug, Default)]
enum Stage {
    #[default]
    Unused,
    Running {
        queue: mpsc::Sender<Request>,
        drain: JoinHandle<()>,
    },
    Closed,
}

impl Admission {
    /// The queue; `begin` makes the task of a new one.
    pub(super) fn queue<F>(
        &self,
        begin: impl FnOnce(mpsc::Receiver<Request>) -> F,
    ) -> Result<mpsc::Sender<Request>, AppendError>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let mut stage = self.0.lock();
        match &*stage {
            Stage::Running { queue, .. } => Ok(queue.clone()),
            Stage::Closed => Err(AppendError::Closed),
            Stage::Unused => {
                let (queue, requests) = mpsc::channel(QUEUE_LEN);
                let drain = tokio::spawn(begin(requests));
                *stage = Stage::Running {
                    queue: queue.clone(),
                    drain,
                };
                Ok(queue)
            }
        }
    }

    /// What is queued is answered as closed, and so is whatever comes.
    pub(super) fn close(&self) {
        if let Stage::Running { drain, .. } = std::mem::replace(&mut *self.0.lock(), Stage::Closed)
        {
            drain.abort();
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        match &*self.0.lock() {
            Stage::Unused => false,
            Stage::Running { queue, .. } => queue.is_closed(),
            Stage::Closed => true,
        }
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.close();
    }
}

/// Runs until the queue closes.
pub(super) async fn run(
    group: Group,
    state: SharedState,
    clock: Arc<dyn Clock>,
    mut queue: mpsc::Receiver<Request>,
) {
    let mut leadership = group.leadership();
    let commits = metrics::histogram!("trilog_commit_duration_seconds");
    let mut requests = Vec::new();
    #[cfg(feature = "planted")]
    let mut led = None;
    while next_requests(&mut queue, &mut requests).await {
        let Some(term) = ready_term(&mut leadership) else {
            refuse_all(&mut requests, &leadership);
            continue;
        };
        let (admitted, time) = {
            #[cfg(feature = "planted")]
            forget_window(&state, term, &mut led);
            let applied = state.lock();
            let admitted = admit(&applied, term, requests.drain(..));
            // Partition time only rises, and so do these times.
            (admitted, clock.now().max(applied.time()).as_millis())
        };
        let Admitted {
            proposals,
            waiting,
            refused,
        } = admitted;
        let had_any = !proposals.is_empty();
        let outcome = if proposals.is_empty() {
            Ok(())
        } else {
            let begun = Instant::now();
            let appended = append(&group, (proposals, waiting), term, time).await;
            if appended.is_ok() {
                commits.record(begun.elapsed());
            }
            appended
        };
        if !refused.is_empty() {
            // What was committed after it was judged proves as much as a round.
            let proven = outcome.is_ok() && (had_any || leads(&group).await);
            refuse(refused, proven, &leadership);
        }
        if outcome == Err(AppendError::Unknown) {
            await_other_term(&mut leadership, term).await;
        }
    }
}

/// Appends what was admitted and answers whoever waits for it; an error is the answer of all.
async fn append(
    group: &Group,
    (mut proposals, waiting): (Vec<Proposal>, Vec<(usize, Request)>),
    term: Term,
    time: i64,
) -> Result<(), AppendError> {
    stamp(&mut proposals, &waiting, time);
    match group.propose(proposals, term).await {
        Ok(applied) => {
            for (slot, request) in waiting {
                let place = applied.get(slot).map(|entry| Appended {
                    base_offset: entry.base_offset,
                    append_time: entry.append_time,
                    duplicate: false,
                    stamped: request.stamped(time),
                });
                request.answer(place.ok_or(AppendError::Unknown));
            }
            Ok(())
        }
        Err(error) => {
            let answer = append_error(&error);
            for (_, request) in waiting {
                request.answer(Err(answer.clone()));
            }
            Err(answer)
        }
    }
}

/// Whether this replica leads: one that was replaced, and has not heard of it, does not know what
/// was appended since.
async fn leads(group: &Group) -> bool {
    let proof = tokio::time::timeout(PROOF_PATIENCE, group.read_index()).await;
    proof.is_ok_and(|proof| proof.is_ok())
}

/// Answers what was refused: with why, if it is `proven` that nobody else knew better.
fn refuse(
    refused: Vec<(Request, AppendError)>,
    proven: bool,
    leadership: &watch::Receiver<Leadership>,
) {
    let leader = leadership.borrow().leader.map(ReplicaId::node);
    for (request, why) in refused {
        request.answer(Err(if proven {
            why
        } else {
            AppendError::NotLeader { leader }
        }));
    }
}

/// Gives the records that are to have it the time of their append. Their bodies are copied for
/// it: the time lies under the batch's checksum.
fn stamp(proposals: &mut [Proposal], waiting: &[(usize, Request)], millis: i64) {
    for (slot, request) in waiting {
        let Work::Batch { stamp: true, .. } = &request.work else {
            continue;
        };
        // A repeat in the same drain waits for a batch that has its stamp already.
        let proposal = proposals.get_mut(*slot);
        if let Some(proposal) = proposal.filter(|proposal| !has_append_time(&proposal.records)) {
            proposal.records = stamp_append_time(&proposal.records, millis);
        }
    }
}

fn has_append_time(batch: &Bytes) -> bool {
    BatchHeader::parse(batch).is_ok_and(|header| header.attributes.is_append_time())
}

/// Waits for at least one request and takes what else is there, within a drain's bounds.
async fn next_requests(queue: &mut mpsc::Receiver<Request>, out: &mut Vec<Request>) -> bool {
    let Some(first) = queue.recv().await else {
        return false;
    };
    let mut bytes = first.bytes();
    out.push(first);
    while out.len() < MAX_ENTRIES && bytes < MAX_BYTES {
        let Ok(request) = queue.try_recv() else { break };
        bytes += request.bytes();
        out.push(request);
    }
    true
}

/// The bug of a window that is not replicated: a new leader knows nothing of it.
#[cfg(feature = "planted")]
fn forget_window(state: &SharedState, term: Term, led: &mut Option<Term>) {
    use trilog_storage::planted::{self, Bug};
    if led.replace(term) != Some(term) && planted::has(Bug::WindowNotReplicated) {
        state.lock().forget_producers();
    }
}

fn ready_term(leadership: &mut watch::Receiver<Leadership>) -> Option<Term> {
    let now = leadership.borrow_and_update();
    now.ready.then_some(now.term)
}

fn refuse_all(requests: &mut Vec<Request>, leadership: &watch::Receiver<Leadership>) {
    let leader = leadership.borrow().leader.map(ReplicaId::node);
    for request in requests.drain(..) {
        request.answer(Err(AppendError::NotLeader { leader }));
    }
}

/// Admission in a term whose drain may or may not have been committed would judge against a
/// state that does not know; a later term's leader has applied everything before its own blank.
async fn await_other_term(leadership: &mut watch::Receiver<Leadership>, term: Term) {
    // An error means that the group is closed; the queue then closes too.
    let _closed = leadership
        .wait_for(|now| now.term != term || !now.ready)
        .await
        .is_err();
}

/// What became of the requests of a drain.
struct Admitted {
    proposals: Vec<Proposal>,
    /// Whoever waits for which of the proposals.
    waiting: Vec<(usize, Request)>,
    refused: Vec<(Request, AppendError)>,
}

/// Judges the requests in order: repeats of committed batches are answered at once, refusals once
/// it is proven that this replica still leads, and the rest waits for the proposal it stands in.
fn admit(applied: &PartitionState, now: Term, requests: impl Iterator<Item = Request>) -> Admitted {
    let mut admitted = Admitted {
        proposals: Vec::new(),
        waiting: Vec::new(),
        refused: Vec::new(),
    };
    let mut judge = Judge {
        now,
        producers: producers::Drain::over(applied.producers()),
        isolation: isolation::Drain::over(applied.isolation()),
        next: applied.next_offset(),
    };
    for request in requests {
        let slot = admitted.proposals.len();
        match judge.judge(&request.work, slot) {
            Judged::Append(proposal) => {
                judge.next = judge.next.plus(u64::from(proposal.record_count));
                admitted.proposals.push(proposal);
                admitted.waiting.push((slot, request));
            }
            Judged::Await(slot) => admitted.waiting.push((slot, request)),
            Judged::Repeat(original) => request.answer(Ok(original)),
            Judged::Refused(why) => admitted.refused.push((request, why)),
        }
    }
    admitted
}

enum Judged {
    Append(Proposal),
    /// The same batch is already entry number so-and-so of this drain.
    Await(usize),
    /// It was committed before.
    Repeat(Appended),
    Refused(AppendError),
}

/// What a drain is judged by: the applied state, and its own write set over it.
struct Judge<'a> {
    now: Term,
    producers: producers::Drain<'a>,
    isolation: isolation::Drain<'a>,
    next: Offset,
}

impl Judge<'_> {
    fn judge(&mut self, work: &Work, slot: usize) -> Judged {
        match work {
            Work::Command { term, .. } if term.is_some_and(|term| term != self.now) => {
                Judged::Refused(AppendError::NotLeader { leader: None })
            }
            Work::Command { encoded, .. } => Judged::Append(Proposal {
                records: Bytes::new(),
                record_count: 0,
                command: encoded.clone(),
            }),
            Work::Marker {
                marker,
                ender,
                batch,
            } => self.judge_marker(*marker, *ender, batch, slot),
            Work::Batch {
                bytes,
                records,
                publisher,
                transactional,
                shown,
                expect,
                stamp,
            } => {
                // A repeat is recognised before any condition is checked: its first try has
                // changed the very offset that it expects, and may have been its transaction's
                // last.
                let judged = publisher.as_ref().map(|batch| self.producers.judge(batch));
                if let Some(judged) = judged.and_then(|judged| answer(judged, *stamp)) {
                    return judged;
                }
                if let Some(batch) = publisher
                    && let Err(unfit) = self.isolation.judge(batch, *transactional, *shown)
                {
                    return Judged::Refused(unfit.into());
                }
                if expect.is_some_and(|expected| expected != self.next) {
                    return Judged::Refused(AppendError::OffsetMismatch { next: self.next });
                }
                let mut command = Bytes::new();
                if let Some(batch) = publisher {
                    self.producers.accept(batch, slot);
                    if *transactional && let Some(number) = self.isolation.accept(batch, *shown) {
                        let id = batch.producer_id;
                        command = PartitionCommand::opened(id, batch.epoch, number).encoded();
                    }
                }
                Judged::Append(Proposal {
                    records: bytes.clone(),
                    record_count: *records,
                    command,
                })
            }
        }
    }

    fn judge_marker(
        &mut self,
        mut marker: Marker,
        ender: Ender,
        batch: &Bytes,
        slot: usize,
    ) -> Judged {
        let (id, epoch) = (marker.producer_id, i16::try_from(marker.epoch));
        let Ok(epoch) = epoch else {
            return Judged::Refused(AppendError::StaleCoordinator);
        };
        let verdict = match ender {
            Ender::Coordinator => self.isolation.judge_marker(&marker),
            Ender::Operator { begins } => self.isolation.judge_operators(&mut marker, begins),
        };
        match verdict {
            MarkerVerdict::Pending(original) => return Judged::Await(original),
            MarkerVerdict::Done(base_offset) => {
                return Judged::Repeat(Appended {
                    base_offset,
                    append_time: Timestamp(0),
                    duplicate: true,
                    stamped: None,
                });
            }
            MarkerVerdict::Stale => return Judged::Refused(AppendError::StaleCoordinator),
            MarkerVerdict::NotOpen => return Judged::Refused(AppendError::NotInTransaction),
            MarkerVerdict::Append => {}
        }
        // What a coordinator has decided ends whoever has written since: it may have lost the epoch.
        let decided = ender == Ender::Coordinator && self.isolation.ends(&marker);
        if let Some(judged) = answer(self.producers.judge_epoch(id, epoch), false)
            && !decided
        {
            return judged;
        }
        self.producers.accept_marker(id, epoch);
        self.isolation.accept_marker(&marker, slot);
        Judged::Append(Proposal {
            records: batch.clone(),
            record_count: 1,
            command: PartitionCommand::marker(marker).encoded(),
        })
    }
}

/// What becomes of a batch at once, if it is not to be appended.
fn answer(verdict: Verdict, stamp: bool) -> Option<Judged> {
    match verdict {
        Verdict::Accept => None,
        Verdict::Duplicate(Place::Pending(original)) => Some(Judged::Await(original)),
        Verdict::Duplicate(Place::Committed {
            base_offset,
            append_time,
        }) => Some(Judged::Repeat(Appended {
            base_offset,
            append_time,
            duplicate: true,
            stamped: stamp.then(|| append_time.as_millis()),
        })),
        Verdict::OutOfOrder { expected } => {
            Some(Judged::Refused(AppendError::OutOfOrder { expected }))
        }
        Verdict::Fenced { current_epoch } => {
            Some(Judged::Refused(AppendError::Fenced { current_epoch }))
        }
    }
}

impl From<Unfit> for AppendError {
    fn from(unfit: Unfit) -> Self {
        match unfit {
            Unfit::NotShown => Self::NotInTransaction,
            Unfit::Outside => Self::InTransaction,
            Unfit::Full => Self::Busy("the partition has as many transactions as it may"),
        }
    }
}

fn append_error(error: &ProposeError) -> AppendError {
    match error {
        ProposeError::NotLeader { leader } => AppendError::NotLeader {
            leader: leader.map(ReplicaId::node),
        },
        ProposeError::Fenced | ProposeError::NoQuorum => AppendError::NotLeader { leader: None },
        ProposeError::Full => AppendError::Busy("too much is waiting to be replicated"),
        ProposeError::DiskFull => AppendError::DiskFull,
        ProposeError::Invalid { len, max } => AppendError::TooLarge {
            size: *len,
            limit: *max,
        },
        ProposeError::Unknown => AppendError::Unknown,
        ProposeError::Stopped => AppendError::Closed,
    }
}
