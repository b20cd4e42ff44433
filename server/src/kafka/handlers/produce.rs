//! Produce: every batch takes its place in its partition's queue in the order of the connection;
//! commits are waited for together, and later requests do not wait for them.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tokio::time::Instant;
use trilog_model::batch::BatchHeader;
use trilog_raft::controller::Operation;
use trilog_wire::kafka::{
    CurrentLeader, ErrorCode, PRODUCE_HINTS_SINCE, ProducePartition, ProduceRequest, Produced,
    ProducedTopic, Request, StrBytes, produce_answer,
};

use super::Begun;
use crate::cluster::Cluster;
use crate::kafka::conn::{Ended, Outcome};
use crate::kafka::errors;
use crate::kafka::errors::Refusal;
use crate::kafka::hints;
use crate::kafka::session::{Session, Target};
use crate::meter::ApiMeter;
use crate::partition::{AppendError, Partition, Ticket};
use crate::transaction::{Identity, Inclusion};

/// The longest a producer may ask an append to be waited for.
const MAX_PATIENCE: Duration = Duration::from_mins(5);

/// A batch that has its place in the queue, or was refused one.
struct Queued {
    index: i32,
    outcome: Result<Appending, Refused>,
    /// Who leads, if this node does not, and its client understands that.
    leader: Option<CurrentLeader>,
}

/// Why a batch is not taken, and which of its records are to blame, if any are.
#[derive(Clone)]
struct Refused {
    refusal: Refusal,
    records: Vec<(i32, String)>,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        Self {
            refusal,
            records: Vec::new(),
        }
    }
}

impl From<&AppendError> for Refused {
    fn from(error: &AppendError) -> Self {
        let records = match error {
            AppendError::Records(bad) => {
                let named = bad.named.iter();
                named.map(|bad| (bad.place, bad.why.clone())).collect()
            }
            _ => Vec::new(),
        };
        Self {
            refusal: errors::append(error),
            records,
        }
    }
}

/// The partitions that batches of transactions were shown to be for, with what they need to be
/// taken there, by their places in the request. Looked up once: another partition, which may have
/// taken the name meanwhile, was not asked about.
type Shown = BTreeMap<(usize, usize), Result<Found, Refusal>>;

/// A partition, and what a batch of a transaction needs to be taken there.
type Found = (Target, Option<Inclusion>);

struct Appending {
    ticket: Ticket,
    target: Target,
    records: u64,
    bytes: u64,
}

pub(super) async fn begin(session: &mut Session, request: Request) -> Begun {
    let produce = match ProduceRequest::decode(&request) {
        Ok(produce) => produce,
        Err(error) => return Begun::Done(Outcome::Close(error.into())),
    };
    let deadline = Instant::now() + patience(produce.timeout_ms);
    let refusal = refusal(&produce).or_else(|| forbidden(session, &produce));
    let mut shown = match refusal {
        Some(_) => Shown::new(),
        None => show(session, &produce, request.version).await,
    };
    let hinting = request.version >= PRODUCE_HINTS_SINCE;
    let mut topics = Vec::with_capacity(produce.topics.len());
    for (nth, topic) in produce.topics.into_iter().enumerate() {
        let mut queued = Vec::with_capacity(topic.partitions.len());
        for (place, batch) in topic.partitions.into_iter().enumerate() {
            let index = batch.index;
            let shown = shown.remove(&(nth, place));
            let outcome = match &refusal {
                Some(refusal) => Err(refusal.clone().into()),
                None => enqueue(session, &topic.name, batch, shown).await,
            };
            let leader = match &outcome {
                Err(refused) if hinting => led_by(session, &topic.name, index, refused),
                _ => None,
            };
            queued.push(Queued {
                index,
                outcome,
                leader,
            });
        }
        topics.push((topic.name, queued));
    }
    let meter = session.meter(&request);
    let acks = produce.acks;
    // Batches are counted by the partitions that have them.
    let request = request.without_body();
    let cluster = session.kafka.inner.cluster.clone();
    Begun::Later(settle(request, acks, topics, deadline, (cluster, meter)).boxed())
}

/// What refuses every batch of the request.
fn refusal(produce: &ProduceRequest) -> Option<Refusal> {
    let known = (-1..=1).contains(&produce.acks);
    (!known).then_some((ErrorCode::InvalidRequiredAcks, None))
}

/// As [`refusal`], where there is a transaction that the client may not write in.
fn forbidden(session: &Session, produce: &ProduceRequest) -> Option<Refusal> {
    if session.is_open() {
        return None;
    }
    let batches = produce.topics.iter().flat_map(|topic| &topic.partitions);
    let mut records = batches.filter_map(|batch| batch.records.as_ref());
    if !records.any(|batch| transactional(batch).is_some()) {
        return None;
    }
    let id = produce.transactional_id.as_deref()?;
    let checked = session.check_transaction(Operation::Write, id);
    checked.err().map(|code| (code, None))
}

/// Finds out whether the partitions that batches of a transaction are for are in it: later
/// requests of the connection wait meanwhile, so that their order stays.
async fn show(session: &mut Session, produce: &ProduceRequest, version: i16) -> Shown {
    let mut shown = Shown::new();
    let mut asked = Vec::new();
    let mut producer = None;
    for (nth, topic) in produce.topics.iter().enumerate() {
        for (place, batch) in topic.partitions.iter().enumerate() {
            let Some(identity) = batch.records.as_ref().and_then(transactional) else {
                continue;
            };
            if produce.transactional_id.is_none() {
                let code = ErrorCode::TransactionalIdAuthorizationFailed;
                shown.insert((nth, place), Err((code, None)));
            } else if *producer.get_or_insert(identity) != identity {
                let text = "its batches are of several producers".to_owned();
                shown.insert((nth, place), Err((ErrorCode::InvalidRecord, Some(text))));
            } else {
                let checked = session.check_often(Operation::Write, &topic.name);
                match checked.and_then(|()| session.led(&topic.name, batch.index)) {
                    Ok(target) => asked.push(((nth, place), target)),
                    Err(code) => drop(shown.insert((nth, place), Err((code, None)))),
                }
            }
        }
    }
    if let (Some(id), Some(producer)) = (&produce.transactional_id, producer) {
        let partitions: Vec<&Partition> =
            asked.iter().map(|(_, target)| &target.partition).collect();
        let transactions = &session.kafka.inner.transactions;
        let told = transactions.show(id, producer, &partitions).await;
        for ((place, target), told) in asked.into_iter().zip(told) {
            let found = told.map(|since| (target, since));
            shown.insert(
                place,
                found.map_err(|error| errors::not_shown_in(&error, version)),
            );
        }
    }
    shown
}

/// The producer of a batch that says that it is part of a transaction.
fn transactional(batch: &Bytes) -> Option<Identity> {
    let header = BatchHeader::parse(batch).ok()?;
    header.attributes.is_transactional().then_some(Identity {
        producer_id: header.producer_id,
        epoch: header.producer_epoch,
    })
}

fn patience(timeout_ms: i32) -> Duration {
    let millis = u64::try_from(timeout_ms).unwrap_or(0);
    Duration::from_millis(millis).min(MAX_PATIENCE)
}

async fn enqueue(
    session: &mut Session,
    topic: &str,
    batch: ProducePartition,
    shown: Option<Result<Found, Refusal>>,
) -> Result<Appending, Refused> {
    let (target, since) = if let Some((target, since)) = shown.transpose()? {
        (target, Some(since))
    } else {
        let checked = session.check_often(Operation::Write, topic);
        let target = checked.and_then(|()| session.led(topic, batch.index));
        (target.map_err(|code| (code, None))?, None)
    };
    let records = batch.records.ok_or_else(|| {
        let text = "the request holds no record batch".to_owned();
        Refused::from((ErrorCode::InvalidRecord, Some(text)))
    })?;
    let (count, bytes) = (count_records(&records)?, records.len() as u64);
    let ticket = match since {
        Some(since) => {
            let partition = &target.partition;
            partition.enqueue_in_transaction(records, since).await
        }
        None => target.partition.enqueue(records, None).await,
    };
    let ticket = ticket.map_err(|error| Refused::from(&error))?;
    Ok(Appending {
        ticket,
        target,
        records: count,
        bytes,
    })
}

fn count_records(batch: &Bytes) -> Result<u64, Refusal> {
    let header = BatchHeader::parse(batch);
    let header = header.map_err(|error| errors::append(&AppendError::Invalid(error)))?;
    Ok(u64::try_from(header.record_count).unwrap_or(0))
}

/// Waits for the commits, and answers if an answer is wanted.
async fn settle(
    request: Request,
    acks: i16,
    topics: Vec<(StrBytes, Vec<Queued>)>,
    deadline: Instant,
    (cluster, meter): (Cluster, Option<ApiMeter>),
) -> Outcome {
    let mut failed = false;
    let mut leaders = Vec::new();
    let mut answered = Vec::with_capacity(topics.len());
    for (name, queued) in topics {
        let mut partitions = Vec::with_capacity(queued.len());
        for Queued {
            index,
            outcome,
            leader,
        } in queued
        {
            let mut produced = match outcome {
                Ok(appending) => {
                    let hints = (request.version >= PRODUCE_HINTS_SINCE).then_some(&cluster);
                    appended(index, appending, deadline, hints).await
                }
                Err(refusal) => refusal.produced(index),
            };
            produced.current_leader = produced.current_leader.or(leader);
            leaders.extend(produced.current_leader);
            if produced.error_code != 0 {
                failed = true;
                super::count_refusal(meter.as_ref(), produced.error_code);
            }
            partitions.push(produced);
        }
        answered.push(ProducedTopic { name, partitions });
    }
    match acks {
        // Closing is all that a producer without acknowledgements can be told by.
        0 if failed => Outcome::Close(Ended::Unacknowledged),
        0 => Outcome::Silence,
        _ => {
            let endpoints = hints::endpoints(&cluster, leaders.into_iter());
            Outcome::Answer(produce_answer(&request, &answered, &endpoints))
        }
    }
}

/// Who leads, where a batch was refused because this node does not, and there is a replica here
/// that knows.
fn led_by(
    session: &mut Session,
    topic: &str,
    index: i32,
    refused: &Refused,
) -> Option<CurrentLeader> {
    if refused.refusal.0 != ErrorCode::NotLeaderOrFollower {
        return None;
    }
    let target = session.replica(topic, index).ok()?;
    hints::leader(&session.kafka.inner.cluster, &target.partition)
}

async fn appended(
    index: i32,
    appending: Appending,
    deadline: Instant,
    hints: Option<&Cluster>,
) -> Produced {
    let committed = tokio::time::timeout_at(deadline, appending.ticket.committed()).await;
    match committed.unwrap_or(Err(AppendError::Unknown)) {
        Ok(appended) => {
            let Target { partition, meter } = &appending.target;
            meter.came(appending.records, appending.bytes);
            Produced {
                index,
                error_code: 0,
                base_offset: appended.base_offset.get().cast_signed(),
                append_time_ms: appended.stamped.unwrap_or(-1),
                log_start: partition.log_start().get().cast_signed(),
                error_message: None,
                record_errors: Vec::new(),
                current_leader: None,
            }
        }
        Err(error) => {
            let moved = matches!(error, AppendError::NotLeader { .. } | AppendError::Closed);
            let leader = hints.filter(|_| moved);
            let partition = &appending.target.partition;
            Produced {
                current_leader: leader.and_then(|cluster| hints::leader(cluster, partition)),
                ..Refused::from(&error).produced(index)
            }
        }
    }
}

impl Refused {
    fn produced(self, index: i32) -> Produced {
        let (code, message) = self.refusal;
        Produced {
            index,
            error_code: code.code(),
            base_offset: -1,
            append_time_ms: -1,
            log_start: -1,
            error_message: message,
            record_errors: self.records,
            current_leader: None,
        }
    }
}
