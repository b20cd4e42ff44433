//! Fetch: what is committed from an offset on, or a wait until there is enough of it.
//!
//! Partitions are named by the request, or remembered in a session with what was told of them.
//! Requests of one session take turns, in the order they came in.

mod payload;
mod reading;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, Semaphore};
use tokio::task::unconstrained;
use tokio::time::Instant;
use trilog_wire::kafka::{
    ErrorCode, FetchRequest, Fetched, FetchedPartition, ForgottenTopic, Request, TopicRef,
    fetch_answer,
};

use super::{Begun, count_refusal};
use crate::kafka::Kafka;
use crate::kafka::conn::Outcome;
use crate::kafka::fetch_sessions::{FetchSession, Part, Shareable};
use crate::kafka::hints;
use crate::kafka::quota::{Bound, Judged};
use crate::kafka::session::{Place, Session};
pub(in crate::kafka) use payload::Payload;
use reading::{Pass, Reading};

/// The most records of one answer, in bytes, unless a single batch is larger.
const MAX_BYTES: usize = 55 << 20;
const MAX_WAIT: Duration = Duration::from_mins(5);
/// The first version that knows sessions.
const SESSIONS_SINCE: i16 = 7;
/// The first version that names topics by their ids.
const IDS_SINCE: i16 = 13;
/// The isolation level of readers of transactions that are over.
const READ_COMMITTED: i8 = 1;
/// Epochs of a request that names all its partitions: one that begins a session, and one that
/// wants none.
const FIRST: i32 = 0;
const LAST: i32 = -1;
/// What a partition takes while its fetch waits, beside what is known of it, in bytes.
const WATCH_COST: usize = 512;

/// What the request is of a session.
enum Turn {
    /// All it reads, and whether that is to be remembered.
    Whole { remember: bool },
    /// What is different from the one before.
    Next {
        lock: BoxFuture<'static, OwnedMutexGuard<FetchSession<Place>>>,
        epoch: i32,
        forgotten: Vec<ForgottenTopic>,
    },
}

/// A fetch whose turn among its connection's requests is over.
struct Fetch {
    kafka: Kafka,
    owner: u64,
    request: Request,
    turn: Turn,
    parts: Vec<Part<Place>>,
    reading: Reading,
    /// What bounds the reader, if anything does.
    bound: Option<Arc<Bound>>,
    /// What the request itself holds while it waits; without, it does not wait.
    waiting: Option<OwnedSemaphorePermit>,
}

pub(super) fn begin(session: &mut Session, request: Request, bound: Option<Arc<Bound>>) -> Begun {
    let mut asked = match FetchRequest::decode(&request) {
        Ok(asked) => asked,
        Err(error) => return Begun::Done(Outcome::Close(error.into())),
    };
    let inner = Arc::clone(&session.kafka.inner);
    let count: usize = asked
        .topics
        .iter()
        .map(|topic| topic.partitions.len())
        .sum();
    let each = size_of::<Part<Place>>() + WATCH_COST;
    let waiting = claim(&inner.fetches, request.body.len() + count * each);
    let Some(turn) = turn(session, &request, &mut asked, waiting.is_some()) else {
        let code = ErrorCode::FetchSessionIdNotFound;
        return Begun::Done(refused(session, &request, code));
    };
    let mut parts = Vec::with_capacity(count);
    for topic in &asked.topics {
        for from in &topic.partitions {
            let place = session.place(&topic.topic, from.index);
            parts.push(Part::new(topic.topic.clone(), *from, place));
        }
    }
    let most = bound.as_ref().map_or(MAX_BYTES, |bound| bound.at_once());
    let most = most.min(MAX_BYTES);
    let wait = match &waiting {
        Some(_) => u64::try_from(asked.max_wait_ms).unwrap_or(0),
        // There is no room for it to stay.
        None => 0,
    };
    let reading = Reading {
        version: request.version,
        max_bytes: bounded(asked.max_bytes, most),
        min_bytes: bounded(asked.min_bytes, most),
        deadline: Instant::now() + Duration::from_millis(wait).min(MAX_WAIT),
        committed: asked.isolation_level == READ_COMMITTED,
        rack: asked.rack.take(),
        cluster: inner.cluster.clone(),
        budget: Arc::clone(&inner.fetched),
    };
    let fetch = Fetch {
        kafka: session.kafka.clone(),
        owner: session.fetches.number(),
        request,
        turn,
        parts,
        reading,
        bound,
        waiting,
    };
    Begun::Later(fetch.answer().boxed())
}

/// Room for so many bytes among fetches that wait, if there is any.
fn claim(fetches: &Arc<Semaphore>, bytes: usize) -> Option<OwnedSemaphorePermit> {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    Arc::clone(fetches).try_acquire_many_owned(bytes).ok()
}

/// What a request is of its session; none, if there is no such session, or it has to wait for the
/// one before and may not: its client then begins anew.
fn turn(
    session: &Session,
    request: &Request,
    asked: &mut FetchRequest,
    may_wait: bool,
) -> Option<Turn> {
    let (id, epoch) = (asked.session_id, asked.session_epoch);
    if matches!(epoch, FIRST | LAST) {
        // Whatever it had is over.
        session.fetches.close(id);
        let remember = epoch == FIRST && request.version >= SESSIONS_SINCE;
        return Some(Turn::Whole { remember });
    }
    let found: Shareable<Place> = session.fetches.find(id)?;
    let mut lock = unconstrained(found.lock_owned()).boxed();
    // Its place in the queue is taken now, in the order of the connection, however long the task
    // has run.
    let lock = match (&mut lock).now_or_never() {
        Some(guard) => std::future::ready(guard).boxed(),
        None if may_wait => lock,
        None => {
            session.fetches.close(id);
            return None;
        }
    };
    Some(Turn::Next {
        lock,
        epoch,
        forgotten: std::mem::take(&mut asked.forgotten),
    })
}

fn refused(session: &Session, request: &Request, code: ErrorCode) -> Outcome {
    session.count_error(request, code.code());
    Outcome::Answer(fetch_answer(request, Fetched::refused(code.code())))
}

fn bounded(asked: i32, most: usize) -> usize {
    usize::try_from(asked).unwrap_or(0).min(most)
}

impl Fetch {
    async fn answer(self) -> Outcome {
        let Self {
            kafka,
            owner,
            request,
            turn,
            parts,
            mut reading,
            bound,
            waiting,
        } = self;
        let bound = bound.as_deref();
        match turn {
            Turn::Whole { remember } => {
                let pass = reading.read(parts.iter()).await;
                let judged = judged(bound, &pass);
                if judged.withheld {
                    return nothing(&request, 0, bound, &judged);
                }
                let id = if remember {
                    let by_id = request.version >= IDS_SINCE;
                    let (sessions, now) = (&kafka.inner.sessions, Instant::now());
                    sessions.create(owner, by_id, parts, &pass.partitions, now)
                } else {
                    0
                };
                held(bound, &judged, sent(&kafka, &request, id, pass, None))
            }
            Turn::Next {
                lock,
                epoch,
                forgotten,
            } => {
                let mut session = lock.await;
                let named = parts.len();
                let due = go_on(&kafka, &mut session, &request, epoch, (parts, forgotten));
                if let Err(code) = due {
                    let meter = kafka.inner.api_meters.get(request.api.place());
                    count_refusal(meter, code.code());
                    let answer = fetch_answer(&request, Fetched::refused(code.code()));
                    return Outcome::Answer(answer);
                }
                let request = request.without_body();
                // All of the session is watched, not only what the request names.
                let others = session.parts.len().saturating_sub(named);
                let watched = claim(&kafka.inner.fetches, others * WATCH_COST);
                if waiting.is_none() || watched.is_none() {
                    reading.deadline = Instant::now();
                }
                let pass = reading.read(session.parts.iter()).await;
                // Without partitions it has ended.
                let id = match session.parts.len() {
                    0 => 0,
                    _ => session.id(),
                };
                let judged = judged(bound, &pass);
                if judged.withheld {
                    return nothing(&request, id, bound, &judged);
                }
                session.tell(&pass.partitions);
                let answer = sent(&kafka, &request, id, pass, Some(session));
                held(bound, &judged, answer)
            }
        }
    }
}

/// Whether the reader may have what was read, by its quotas.
fn judged(bound: Option<&Bound>, pass: &Pass) -> Judged {
    let read = || pass.partitions.iter().map(FetchedPartition::bytes).sum();
    bound.map_or_else(Judged::default, |bound| bound.judge_fetch(read()))
}

fn held(bound: Option<&Bound>, judged: &Judged, outcome: Outcome) -> Outcome {
    match bound {
        Some(bound) => bound.fetched(judged, outcome),
        None => outcome,
    }
}

/// The answer to a reader that is to have nothing now: no partitions, and no word of a new session.
fn nothing(request: &Request, session_id: i32, bound: Option<&Bound>, judged: &Judged) -> Outcome {
    let fetched = Fetched {
        session_id,
        ..Fetched::default()
    };
    let answer = fetch_answer(request, fetched);
    held(bound, judged, Outcome::Answer(answer))
}

/// Takes a session on to its next request, and looks again for what may have moved.
fn go_on(
    kafka: &Kafka,
    session: &mut FetchSession<Place>,
    request: &Request,
    epoch: i32,
    (changed, forgotten): (Vec<Part<Place>>, Vec<ForgottenTopic>),
) -> Result<(), ErrorCode> {
    let forgotten = forgotten.iter().flat_map(|gone| {
        let each = gone.partitions.iter();
        each.map(|index| (gone.topic.clone(), *index))
    });
    let by_id = request.version >= IDS_SINCE;
    let sessions = &kafka.inner.sessions;
    let now = Instant::now();
    sessions.go_on(session, (epoch, by_id), changed, forgotten, now)?;
    let version = *kafka.inner.cluster.changes().borrow();
    for part in session.parts.iter_mut() {
        let topic: &TopicRef = &part.topic;
        part.place.refresh(kafka, topic, part.from.index, version);
    }
    Ok(())
}

/// The answer with what was read, which counts as sent.
fn sent(
    kafka: &Kafka,
    request: &Request,
    session_id: i32,
    pass: Pass,
    session: Option<OwnedMutexGuard<FetchSession<Place>>>,
) -> Outcome {
    for (meter, records, bytes) in pass.sent {
        meter.left(records, bytes);
    }
    let leaders = pass.partitions.iter();
    let leaders = leaders.filter_map(|partition| partition.current_leader);
    let fetched = Fetched {
        error_code: 0,
        session_id,
        endpoints: hints::endpoints(&kafka.inner.cluster, leaders),
        partitions: pass.partitions,
    };
    let read = payload::places(&fetched.partitions);
    let answer = fetch_answer(request, fetched);
    kafka.inner.payload.count(&read, &answer);
    Outcome::Records(answer, (pass.room, session))
}
