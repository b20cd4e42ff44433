//! Produce: every batch takes its place in its partition's queue in the order of the connection;
//! commits are waited for together, and later requests do not wait for them.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use tokio::time::Instant;
use trilog_model::batch::BatchHeader;
use trilog_wire::kafka::{
    ErrorCode, ProducePartition, ProduceRequest, Produced, ProducedTopic, Request, StrBytes,
    produce_answer,
};

use super::Begun;
use crate::kafka::conn::{Ended, Outcome};
use crate::kafka::errors;
use crate::kafka::errors::Refusal;
use crate::kafka::session::{Session, Target};
use crate::meter::ApiMeter;
use crate::partition::{AppendError, Ticket};

/// The longest a producer may ask an append to be waited for.
const MAX_PATIENCE: Duration = Duration::from_mins(5);

/// A batch that has its place in the queue, or was refused one.
struct Queued {
    index: i32,
    outcome: Result<Appending, Refused>,
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
    let refusal = refusal(&produce);
    let mut topics = Vec::with_capacity(produce.topics.len());
    for topic in produce.topics {
        let mut queued = Vec::with_capacity(topic.partitions.len());
        for batch in topic.partitions {
            let index = batch.index;
            let outcome = match &refusal {
                Some(refusal) => Err(refusal.clone().into()),
                None => enqueue(session, &topic.name, batch).await,
            };
            queued.push(Queued { index, outcome });
        }
        topics.push((topic.name, queued));
    }
    let meter = session.meter(&request);
    let acks = produce.acks;
    // Batches are counted by the partitions that have them.
    let request = request.without_body();
    Begun::Later(settle(request, acks, topics, deadline, meter).boxed())
}

/// What refuses every batch of the request.
fn refusal(produce: &ProduceRequest) -> Option<Refusal> {
    if !(-1..=1).contains(&produce.acks) {
        return Some((ErrorCode::InvalidRequiredAcks, None));
    }
    // There are no transactions: nobody can have begun one.
    let transactional = produce.transactional_id.is_some();
    transactional.then_some((ErrorCode::InvalidTxnState, None))
}

fn patience(timeout_ms: i32) -> Duration {
    let millis = u64::try_from(timeout_ms).unwrap_or(0);
    Duration::from_millis(millis).min(MAX_PATIENCE)
}

async fn enqueue(
    session: &mut Session,
    topic: &str,
    batch: ProducePartition,
) -> Result<Appending, Refused> {
    let target = session
        .led(topic, batch.index)
        .map_err(|code| Refused::from((code, None)))?;
    let records = batch.records.ok_or_else(|| {
        let text = "the request holds no record batch".to_owned();
        Refused::from((ErrorCode::InvalidRecord, Some(text)))
    })?;
    let (count, bytes) = (count_records(&records)?, records.len() as u64);
    let ticket = target.partition.enqueue(records, None).await;
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
    if header.attributes.is_transactional() {
        let text = "there is no transaction for the batch to be part of".to_owned();
        return Err((ErrorCode::InvalidTxnState, Some(text)));
    }
    Ok(u64::try_from(header.record_count).unwrap_or(0))
}

/// Waits for the commits, and answers if an answer is wanted.
async fn settle(
    request: Request,
    acks: i16,
    topics: Vec<(StrBytes, Vec<Queued>)>,
    deadline: Instant,
    meter: Option<ApiMeter>,
) -> Outcome {
    let mut failed = false;
    let mut answered = Vec::with_capacity(topics.len());
    for (name, queued) in topics {
        let mut partitions = Vec::with_capacity(queued.len());
        for Queued { index, outcome } in queued {
            let produced = match outcome {
                Ok(appending) => appended(index, appending, deadline).await,
                Err(refusal) => refusal.produced(index),
            };
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
        _ => Outcome::Answer(produce_answer(&request, &answered)),
    }
}

async fn appended(index: i32, appending: Appending, deadline: Instant) -> Produced {
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
            }
        }
        Err(error) => Refused::from(&error).produced(index),
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
        }
    }
}
