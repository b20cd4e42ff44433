//! One connection: requests in, answers out in the order of the requests.
//!
//! ```text
//! read -> begin (in order: a produce takes its places in the partitions' queues) -> wait, many at
//! once (commits, long polls) -> answers in request order, all that are ready in one vectored write
//! ```
//!
//! One task does it all. It does not read on while the connection has too much unanswered, is over a
//! quota or waits for a group to rebalance, and it ends a connection whose peer does not take its answers.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use bytes::{Buf, Bytes};
use futures::future::BoxFuture;
use futures::stream::FuturesOrdered;
use futures::{FutureExt, StreamExt};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::AsyncWriteExt;
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trilog_wire::kafka::messages::ApiKey;
use trilog_wire::kafka::{
    Answer, FrameError, LENGTH_BYTES, Malformed, Opened, Request, Unanswerable,
};

use super::fetch_sessions::FetchSession;
use super::handlers;
use super::input::{Arrived, Input};
use super::pace::Pace;
use super::sasl;
use super::session::{Place, Session, is_secure};
use super::strangers::Stranger;
use super::{Kafka, handlers::Begun};
use crate::listen::{Connection, Crowded, RequestClaim};

/// Requests of one connection that may be unanswered.
const MAX_PIPELINED: usize = 1024;
/// Slices of one vectored write.
const MAX_SLICES: usize = 256;
/// How long a client may take for its answers, and the rate beyond which it gets longer.
const WRITE_PATIENCE: Duration = Duration::from_secs(30);
const SLOWEST_BYTES_PER_SECOND: u64 = 64 << 10;
/// For how long nothing is read from a client that is over a quota, whatever it was told: after that
/// its next request shows whether it still is, and that somebody is there.
const MUTED_AT_MOST: Duration = Duration::from_mins(10);
/// How long a last word may take.
const FAREWELL: Duration = Duration::from_secs(1);
/// When a silent peer is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_mins(1);

/// Why a connection was ended from this side, or broke.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error(transparent)]
    Crowded(#[from] Crowded),
    #[error("nothing came in time")]
    Silent,
    #[error("it was closed inside a request")]
    Torn,
    #[error("its answers were not taken in time")]
    Unread,
    #[error("the node stops")]
    Stopped,
    #[error("it asked for something before it said who it is")]
    Stranger,
    #[error("it failed to prove who it is")]
    Unauthenticated,
    #[error("it may not ask this")]
    Forbidden,
    #[error("it did not prove again in time who it is")]
    Expired,
    #[error("too many others came after it who are not known, either")]
    Displaced,
    #[error("its user was removed")]
    Removed,
    #[error("a produce without acknowledgement failed")]
    Unacknowledged,
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error(transparent)]
    Malformed(#[from] Malformed),
    #[error(transparent)]
    Unanswerable(#[from] Unanswerable),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// What becomes of a request.
#[derive(Debug)]
pub(super) enum Outcome {
    Answer(Answer),
    /// An answer with records.
    Records(Answer, Held),
    /// An answer to a client that is over a quota: nothing more is read from it for a while.
    Throttled {
        answer: Answer,
        held: Held,
        pause: Duration,
    },
    /// There is nothing to say, as with a produce that wants no acknowledgement.
    Silence,
    /// An answer, and the end.
    Last(Answer, Ended),
    Close(Ended),
}

/// What an answer with records holds until it is sent: room for them in the node's budget, and
/// the session it tells of, if it is of one. There is one answer of a session at a time, so all
/// that wait for a slow reader are no more than sessions may be, however short the requests.
pub(super) type Held = (
    Vec<OwnedSemaphorePermit>,
    Option<OwnedMutexGuard<FetchSession<Place>>>,
);

impl From<Result<Answer, Ended>> for Outcome {
    fn from(answer: Result<Answer, Ended>) -> Self {
        match answer {
            Ok(answer) => Self::Answer(answer),
            Err(ended) => Self::Close(ended),
        }
    }
}

/// An outcome, and what is freed and counted when it is sent.
struct Done {
    outcome: Outcome,
    receipt: Receipt,
}

struct Receipt {
    /// None once the request's memory was given back.
    room: Option<RequestClaim>,
    /// What it counts against the connection until it is answered.
    bytes: usize,
    since: Instant,
    /// Its place in the table of apis; none for one that could not be read.
    api: Option<usize>,
}

/// A request whose turn is not over.
struct Beginning {
    future: BoxFuture<'static, (Session, Begun)>,
    receipt: Receipt,
}

/// Serves a connection until either side ends it, or the node stops.
pub(super) async fn serve(
    kafka: Kafka,
    connection: Connection,
    stranger: Option<Stranger>,
    stop: &CancellationToken,
) -> Result<(), Ended> {
    let mut serving = Serving::new(kafka, connection, stranger)?;
    let served = stop.run_until_cancelled(Box::pin(serving.run())).await;
    if serving.input.connection.is_encrypted() {
        // So that nobody can make a connection that is cut off look like one that was closed.
        drop(tokio::time::timeout(FAREWELL, serving.input.connection.shutdown()).await);
    }
    served.unwrap_or(Err(Ended::Stopped))
}

/// One request without a connection.
pub(super) async fn answer(kafka: Kafka, message: &Bytes) -> Result<Option<Bytes>, Ended> {
    let answer = match Request::open(message)? {
        Opened::VersionsUnsupported { correlation_id } => {
            handlers::versions_unsupported(correlation_id)?
        }
        Opened::Request(request) => {
            let mut session = Session::new(kafka, None, None);
            let outcome = match handlers::begin(&mut session, request).await {
                Begun::Done(outcome) => outcome,
                Begun::Later(outcome) | Begun::Alone(outcome) => outcome.await,
            };
            match outcome {
                Outcome::Answer(answer)
                | Outcome::Records(answer, _)
                | Outcome::Throttled { answer, .. }
                | Outcome::Last(answer, _) => answer,
                Outcome::Silence => return Ok(None),
                Outcome::Close(ended) => return Err(ended),
            }
        }
    };
    let whole = answer.0.concat();
    let body = whole.get(LENGTH_BYTES..).unwrap_or_default();
    Ok(Some(Bytes::copy_from_slice(body)))
}

struct Serving {
    kafka: Kafka,
    input: Input,
    /// Here unless a request is being begun with it.
    session: Option<Session>,
    /// When the connection began.
    since: Instant,
    /// It was not known yet who the client is, when last looked.
    stranger: bool,
    /// Its place among those, where anybody is asked.
    place: Option<Stranger>,
    beginning: Option<Beginning>,
    waiting: FuturesOrdered<BoxFuture<'static, Done>>,
    /// The last of those is one that later requests wait for.
    alone: bool,
    /// The client is over a quota, or would have more than it takes.
    held_until: Option<Instant>,
    /// Its software rests when it has more than it takes.
    rests: bool,
    pace: Pace,
    unanswered_bytes: usize,
    output: VecDeque<Bytes>,
}

impl Serving {
    /// In a box, as what it does is: a task, of which there is one for each connection, would have room
    /// for each place that holds them on their way.
    fn new(
        kafka: Kafka,
        connection: Connection,
        stranger: Option<Stranger>,
    ) -> Result<Box<Self>, Ended> {
        let keepalive = TcpKeepalive::new().with_time(KEEPALIVE);
        SockRef::from(connection.stream()).set_tcp_keepalive(&keepalive)?;
        let local = connection.stream().local_addr().ok();
        let peer = connection.stream().peer_addr().ok();
        let limits = kafka.inner.limits;
        let memory = kafka.inner.requests.clone();
        let mut session = Session::new(kafka.clone(), local, peer);
        session.secure = is_secure(peer, connection.is_encrypted());
        let mut serving = Box::new(Self {
            input: Input::new(connection, limits.request_bytes, memory),
            session: None,
            since: Instant::now(),
            stranger: true,
            place: stranger,
            beginning: None,
            waiting: FuturesOrdered::new(),
            alone: false,
            held_until: None,
            rests: false,
            pace: Pace::default(),
            unanswered_bytes: 0,
            output: VecDeque::new(),
            kafka,
        });
        serving.take_back(session);
        Ok(serving)
    }

    async fn run(&mut self) -> Result<(), Ended> {
        let mut open = true;
        while open || self.beginning.is_some() || !self.waiting.is_empty() {
            // A request that has memory is taken in all the same: it would keep it from others, or
            // its place before them, for as long as the pause is. It counts like any other.
            let held = self.held_until.is_some() && !self.input.holds_memory();
            let quiet = self.alone || held;
            let reading = open
                && self.beginning.is_none()
                && !quiet
                && self.waiting.len() < MAX_PIPELINED
                && self.unanswered_bytes < self.kafka.inner.limits.inflight_bytes;
            tokio::select! {
                biased;
                Some(done) = self.waiting.next(), if !self.waiting.is_empty() => {
                    self.send_ready(done).await?;
                }
                (session, begun) = poll_beginning(&mut self.beginning) => {
                    self.take_back(session);
                    if let Some(Beginning { receipt, .. }) = self.beginning.take() {
                        self.await_outcome(begun, receipt);
                    }
                }
                () = until(self.held_until) => {
                    self.held_until = None;
                    self.input.resume();
                }
                heard = listen(&mut self.input, reading), if open && (reading || quiet) => {
                    match heard? {
                        Some(arrived) => self.begin(arrived)?,
                        None if self.alone => return Ok(()),
                        None => open = false,
                    }
                }
            }
        }
        Ok(())
    }

    /// Starts on a request. The first step is taken at once: most are finished with it, or have
    /// their places in the queues.
    fn begin(&mut self, arrived: Arrived) -> Result<(), Ended> {
        let Arrived { message, room } = arrived;
        let bytes = room.bytes();
        self.unanswered_bytes += bytes;
        let since = Instant::now();
        if self.stranger && self.session.as_ref().is_some_and(|s| s.login.is_raw()) {
            let receipt = Receipt {
                room: Some(room),
                bytes,
                since,
                api: None,
            };
            return self.begin_with(receipt, |mut session| {
                async move {
                    let outcome = sasl::token(&mut session, message).await;
                    (session, Begun::Done(outcome))
                }
                .boxed()
            });
        }
        let request = match Request::open(&message)? {
            Opened::Request(request) => request,
            Opened::VersionsUnsupported { correlation_id } => {
                let answer = handlers::versions_unsupported(correlation_id)?;
                let receipt = Receipt {
                    room: Some(room),
                    bytes,
                    since,
                    api: None,
                };
                self.await_outcome(Begun::Done(Outcome::Answer(answer)), receipt);
                return Ok(());
            }
        };
        if request.api.key == ApiKey::Fetch {
            self.pace.asked(since);
        }
        let receipt = Receipt {
            room: Some(room),
            bytes,
            since,
            api: Some(request.api.place()),
        };
        self.begin_with(receipt, |mut session| {
            Box::pin(async move {
                let begun = handlers::begin(&mut session, request).await;
                (session, begun)
            })
        })
    }

    fn begin_with(
        &mut self,
        receipt: Receipt,
        begin: impl FnOnce(Session) -> BoxFuture<'static, (Session, Begun)>,
    ) -> Result<(), Ended> {
        let Some(session) = self.session.take() else {
            return Err(Ended::Stopped);
        };
        let mut beginning = begin(session);
        match (&mut beginning).now_or_never() {
            Some((session, begun)) => {
                self.take_back(session);
                self.await_outcome(begun, receipt);
            }
            None => {
                self.beginning = Some(Beginning {
                    future: beginning,
                    receipt,
                });
            }
        }
        Ok(())
    }

    /// The request is begun. As long as it is not known who the client is, little is taken from it.
    fn take_back(&mut self, mut session: Session) {
        self.rests = session.rests;
        if let Some(pause) = session.pause.take() {
            self.mute(pause);
        }
        if self.stranger {
            self.stranger = session.login.is_stranger();
            let (limit, until) = if self.stranger {
                let until = self.since + sasl::STRANGER_PATIENCE;
                (sasl::STRANGER_BYTES, Some(until))
            } else {
                self.place = None;
                (self.kafka.inner.limits.request_bytes, None)
            };
            self.input.expect(limit, session.login.is_raw(), until);
        }
        self.session = Some(session);
    }

    fn await_outcome(&mut self, begun: Begun, mut receipt: Receipt) {
        let waiting = match begun {
            Begun::Done(outcome) => futures::future::ready(Done { outcome, receipt }).boxed(),
            Begun::Later(outcome) => {
                receipt.room = None;
                outcome.map(|outcome| Done { outcome, receipt }).boxed()
            }
            Begun::Alone(outcome) => {
                self.alone = true;
                receipt.room = None;
                outcome.map(|outcome| Done { outcome, receipt }).boxed()
            }
        };
        self.waiting.push_back(waiting);
    }

    /// Sends this answer and those behind it that are ready, too.
    async fn send_ready(&mut self, first: Done) -> Result<(), Ended> {
        let (mut receipts, mut records) = (Vec::new(), Vec::new());
        let mut fetched = None;
        let mut next = Some(first);
        while let Some(Done { outcome, receipt }) = next {
            match outcome {
                Outcome::Answer(answer) => self.output.extend(answer.0),
                Outcome::Records(answer, held) => {
                    let bytes: usize = answer.0.iter().map(Bytes::len).sum();
                    fetched = Some(fetched.unwrap_or(0) + bytes as u64);
                    self.output.extend(answer.0);
                    records.push(held);
                }
                Outcome::Throttled {
                    answer,
                    held,
                    pause,
                } => {
                    self.output.extend(answer.0);
                    records.push(held);
                    self.mute(pause);
                }
                Outcome::Silence => {}
                Outcome::Last(answer, ended) => {
                    self.output.extend(answer.0);
                    self.write_out().await?;
                    return Err(ended);
                }
                Outcome::Close(ended) => {
                    self.write_out().await?;
                    return Err(ended);
                }
            }
            receipts.push(receipt);
            next = if self.output.len() < MAX_SLICES {
                self.waiting.next().now_or_never().flatten()
            } else {
                None
            };
        }
        self.write_out().await?;
        drop(records);
        self.keep_pace(fetched);
        if self.alone && self.waiting.is_empty() {
            self.alone = false;
            self.input.resume();
        }
        for receipt in receipts {
            self.unanswered_bytes -= receipt.bytes;
            if let Some(meter) = receipt
                .api
                .and_then(|api| self.kafka.inner.api_meters.get(api))
            {
                meter.answered(receipt.since);
            }
        }
        self.input.touch();
        Ok(())
    }

    /// So much was sent of records, if any was.
    fn keep_pace(&mut self, fetched: Option<u64>) {
        let bytes = fetched.filter(|_| self.rests);
        if let Some(pause) = bytes.and_then(|bytes| self.pace.sent(bytes, Instant::now())) {
            self.kafka.inner.throttled.paced(pause);
            self.hold(pause);
        }
    }

    /// Reads nothing more for so long of a client that is over a quota.
    fn mute(&mut self, pause: Duration) {
        self.pace.interrupted();
        self.hold(pause);
    }

    /// Reads nothing more for so long.
    fn hold(&mut self, pause: Duration) {
        let until = Instant::now() + pause.min(MUTED_AT_MOST);
        self.held_until = Some(self.held_until.map_or(until, |other| other.max(until)));
    }

    async fn write_out(&mut self) -> Result<(), Ended> {
        write_in_time(&mut self.input.connection, &mut self.output).await
    }
}

/// Writes answers to a client that takes them at no less than the slowest rate.
async fn write_in_time(
    connection: &mut Connection,
    output: &mut VecDeque<Bytes>,
) -> Result<(), Ended> {
    let bytes: usize = output.iter().map(Bytes::len).sum();
    let longer = bytes as u64 / SLOWEST_BYTES_PER_SECOND;
    let patience = WRITE_PATIENCE + Duration::from_secs(longer);
    tokio::time::timeout(patience, write_all(connection, output))
        .await
        .map_err(|_| Ended::Unread)?
}

/// The next request; while none is to be read, whether the client has gone.
async fn listen(input: &mut Input, reading: bool) -> Result<Option<Arrived>, Ended> {
    if reading {
        return input.next().await;
    }
    input.hung_up().await;
    Ok(None)
}

/// Ends at a time; never, where there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

async fn poll_beginning(beginning: &mut Option<Beginning>) -> (Session, Begun) {
    match beginning {
        Some(beginning) => (&mut beginning.future).await,
        None => std::future::pending().await,
    }
}

async fn write_all(connection: &mut Connection, output: &mut VecDeque<Bytes>) -> Result<(), Ended> {
    while !output.is_empty() {
        let mut slices = [io::IoSlice::new(&[]); MAX_SLICES];
        let mut used = 0;
        for (slot, bytes) in slices.iter_mut().zip(output.iter()) {
            *slot = io::IoSlice::new(bytes);
            used += 1;
        }
        let slices = slices.get(..used).unwrap_or(&[]);
        let mut written = connection.write_vectored(slices).await?;
        if written == 0 {
            return Err(Ended::Io(io::ErrorKind::WriteZero.into()));
        }
        while let Some(front) = output.front_mut() {
            if front.len() > written {
                front.advance(written);
                break;
            }
            written -= front.len();
            output.pop_front();
        }
    }
    // What TLS may still hold of it.
    connection.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::listen::{Bounds, Listener};

    #[tokio::test(start_paused = true)]
    async fn who_does_not_take_its_answers_is_let_go() {
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut client = TcpStream::connect(socket.local_addr().unwrap())
            .await
            .unwrap();
        let (mut connection, _) = Listener::new(socket, Bounds::new(1)).next().await;
        // It has said something: it is not for its silence that it goes.
        client.write_all(b"!").await.unwrap();
        connection.read_u8().await.unwrap();
        let began = Instant::now();
        let answer = Bytes::from(vec![0; 64 << 20]);
        let mut output = VecDeque::from([answer.clone(), answer]);
        let written = write_in_time(&mut connection, &mut output).await;
        assert!(matches!(written, Err(Ended::Unread)), "{written:?}");
        let most = WRITE_PATIENCE + Duration::from_secs((128 << 20) / SLOWEST_BYTES_PER_SECOND);
        assert!(began.elapsed() <= most + Duration::from_secs(1));
        assert!(!output.is_empty());
    }
}
