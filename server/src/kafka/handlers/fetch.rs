//! Fetch: what is committed from an offset on, or a wait until there is enough of it.
//!
//! Partitions are named by the request, or remembered in a session with what was told of them.
//! Requests of one session take turns, in the order they came in.

mod reading;

use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};
use tokio::time::Instant;
use trilog_wire::kafka::{
    ErrorCode, FetchRequest, Fetched, ForgottenTopic, Request, TopicRef, fetch_answer,
};

use super::Begun;
use crate::kafka::Kafka;
use crate::kafka::conn::Outcome;
use crate::kafka::fetch_sessions::{FetchSession, Part, Shareable};
use crate::kafka::hints;
use crate::kafka::session::{Place, Session};
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
    /// What the request itself holds while it waits.
    _waiting: Option<OwnedSemaphorePermit>,
}

pub(super) fn begin(session: &mut Session, request: Request) -> Begun {
    let mut asked = match FetchRequest::decode(&request) {
        Ok(asked) => asked,
        Err(error) => return Begun::Done(Outcome::Close(error.into())),
    };
    let Some(turn) = turn(session, &request, &mut asked) else {
        let code = ErrorCode::FetchSessionIdNotFound;
        return Begun::Done(refused(session, &request, code));
    };
    let mut parts = Vec::new();
    for topic in &asked.topics {
        for from in &topic.partitions {
            let place = session.place(&topic.topic, from.index);
            parts.push(Part::new(topic.topic.clone(), *from, place));
        }
    }
    let inner = &session.kafka.inner;
    let waiting = request.body.len() + parts.len() * size_of::<Part<Place>>();
    let waiting = u32::try_from(waiting).unwrap_or(u32::MAX);
    let waiting = Arc::clone(&inner.fetches)
        .try_acquire_many_owned(waiting)
        .ok();
    let wait = match &waiting {
        Some(_) => u64::try_from(asked.max_wait_ms).unwrap_or(0),
        // There is no room for it to stay.
        None => 0,
    };
    let reading = Reading {
        version: request.version,
        max_bytes: bounded(asked.max_bytes, MAX_BYTES),
        min_bytes: bounded(asked.min_bytes, MAX_BYTES),
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
        _waiting: waiting,
    };
    Begun::Later(fetch.answer().boxed())
}

/// What a request is of its session; none, if there is no such session.
fn turn(session: &Session, request: &Request, asked: &mut FetchRequest) -> Option<Turn> {
    let (id, epoch) = (asked.session_id, asked.session_epoch);
    if matches!(epoch, FIRST | LAST) {
        // Whatever it had is over.
        session.fetches.close(id);
        let remember = epoch == FIRST && request.version >= SESSIONS_SINCE;
        return Some(Turn::Whole { remember });
    }
    let found: Shareable<Place> = session.fetches.find(id)?;
    let mut lock = found.lock_owned().boxed();
    // Its place in the queue is taken now, in the order of the connection.
    let lock = match (&mut lock).now_or_never() {
        Some(guard) => std::future::ready(guard).boxed(),
        None => lock,
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
            reading,
            _waiting,
        } = self;
        match turn {
            Turn::Whole { remember } => {
                let pass = reading.read(parts.iter()).await;
                let id = if remember {
                    let by_id = request.version >= IDS_SINCE;
                    let (sessions, now) = (&kafka.inner.sessions, Instant::now());
                    sessions.create(owner, by_id, parts, &pass.partitions, now)
                } else {
                    0
                };
                sent(&kafka, &request, id, pass)
            }
            Turn::Next {
                lock,
                epoch,
                forgotten,
            } => {
                let mut session = lock.await;
                let due = advance(&kafka, &mut session, &request, epoch, (parts, forgotten));
                if let Err(code) = due {
                    let answer = fetch_answer(&request, Fetched::refused(code.code()));
                    return Outcome::Answer(answer);
                }
                let request = request.without_body();
                let pass = reading.read(session.parts.iter()).await;
                session.tell(&pass.partitions);
                // Without partitions it has ended.
                let id = match session.parts.len() {
                    0 => 0,
                    _ => session.id(),
                };
                sent(&kafka, &request, id, pass)
            }
        }
    }
}

/// Takes a session on to its next request, and looks again for what may have moved.
fn advance(
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
    session.advance(epoch, by_id, changed, forgotten)?;
    if !kafka.inner.sessions.touch(session, Instant::now()) {
        return Err(ErrorCode::FetchSessionIdNotFound);
    }
    let version = *kafka.inner.cluster.changes().borrow();
    for part in session.parts.iter_mut() {
        let topic: &TopicRef = &part.topic;
        part.place.refresh(kafka, topic, part.from.index, version);
    }
    Ok(())
}

/// The answer with what was read, which counts as sent.
fn sent(kafka: &Kafka, request: &Request, session_id: i32, pass: Pass) -> Outcome {
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
    Outcome::Records(fetch_answer(request, fetched), pass.room)
}
