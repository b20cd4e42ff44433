//! Before a message of a call is taken in, its length is claimed from the node's memory for
//! requests.
//!
//! ```text
//! connection ─ body ─> Gated ── whole messages, as memory is granted ──> tonic, handler
//! ```
//!
//! A body is passed on message by message. What comes after a message is only read when the
//! handler asks for it: the message before is then done with, or its batch is counted among the
//! appends on their way, and its claim goes back before the next is asked for. A call that has one
//! message and one answer keeps the claim until it is answered. While a body waits, its sender's
//! flow-control window runs full, and that is all it holds.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::FutureExt;
use futures::future::BoxFuture;
use http_body::{Body as _, Frame};
use parking_lot::Mutex;
use tokio::time::{Instant, Sleep, sleep};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use trilog_wire::v1::{Error, ErrorCode};

use super::door::Door;
use crate::listen::{Crowded, RequestClaim, RequestMemory};

/// Before each message: whether it is compressed, and its length.
const HEADER: usize = 5;
/// How long a message may take to arrive once its memory is claimed, or it would be held for
/// nothing.
const ARRIVAL: Duration = Duration::from_secs(30);
/// What one pause of the sender counts for at most: it may have been the handler's.
const PAUSE: Duration = Duration::from_secs(5);

/// A service whose messages claim memory.
#[derive(Clone, Debug)]
pub(super) struct Gate<S> {
    inner: S,
    memory: RequestMemory,
    /// The longest message that the service takes.
    message_max: usize,
    door: Door,
}

impl<S> Gate<S> {
    pub(super) fn new(inner: S, memory: RequestMemory, message_max: usize, door: Door) -> Self {
        Self {
            inner,
            memory,
            message_max,
            door,
        }
    }
}

impl<S: NamedService> NamedService for Gate<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Gate<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S: Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = S::Response;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<S::Response, Infallible>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let kept = Arc::<Mutex<Kept>>::default();
        let request = request.map(|body| {
            Body::new(Gated {
                body,
                memory: self.memory.clone(),
                message_max: self.message_max,
                kept: Arc::clone(&kept),
                rest: Bytes::new(),
                passing: 0,
                claim: None,
                claiming: None,
                patience: ARRIVAL,
                pause: None,
            })
        });
        if !self.door.is_open() {
            // The one that is ready goes along, and another takes its place.
            let next = self.inner.clone();
            let mut inner = std::mem::replace(&mut self.inner, next);
            let (door, mut request) = (self.door.clone(), request);
            return async move {
                if let Err(status) = door.admit(&mut request).await {
                    return Ok(status.into_http());
                }
                let answer = inner.call(request).await;
                *kept.lock() = Kept::Answered;
                answer
            }
            .boxed();
        }
        let answering = self.inner.call(request);
        async move {
            let answer = answering.await;
            *kept.lock() = Kept::Answered;
            answer
        }
        .boxed()
    }
}

/// The claim of the first message of a call, until the call is answered.
#[derive(Debug, Default)]
enum Kept {
    #[default]
    Nothing,
    Claim {
        _claim: RequestClaim,
    },
    Answered,
}

/// The body of a request.
struct Gated {
    body: Body,
    memory: RequestMemory,
    message_max: usize,
    kept: Arc<Mutex<Kept>>,
    /// What came and is not passed on yet: less than a frame of the connection.
    rest: Bytes,
    /// Bytes still to pass on of what is claimed.
    passing: usize,
    claim: Option<RequestClaim>,
    claiming: Option<BoxFuture<'static, Result<RequestClaim, Crowded>>>,
    /// What the sender has left to send the message in.
    patience: Duration,
    /// Since when nothing comes, and when that is too long.
    pause: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl fmt::Debug for Gated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gated")
            .field("passing", &self.passing)
            .finish_non_exhaustive()
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, Status>>>;

impl http_body::Body for Gated {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Polled {
        let this = &mut *self;
        loop {
            if this.passing > 0 && !this.rest.is_empty() {
                let len = this.passing.min(this.rest.len());
                this.passing -= len;
                return Poll::Ready(Some(Ok(Frame::data(this.rest.split_to(len)))));
            }
            if this.passing == 0 {
                this.release();
                if this.rest.len() >= HEADER {
                    match this.poll_claim(cx) {
                        Poll::Pending => return Poll::Pending,
                        Poll::Ready(Ok(())) => continue,
                        Poll::Ready(Err(status)) => return Poll::Ready(Some(Err(status))),
                    }
                }
            }
            match this.poll_body(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => this.take_in(data),
                    Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
                },
                // A message cut short is the reader's to complain of.
                Poll::Ready(None) if !this.rest.is_empty() => this.passing = this.rest.len(),
                other => return other,
            }
        }
    }
}

impl Gated {
    /// The messages passed on are done with.
    fn release(&mut self) {
        let Some(claim) = self.claim.take() else {
            return;
        };
        let mut kept = self.kept.lock();
        if matches!(*kept, Kept::Nothing) {
            *kept = Kept::Claim { _claim: claim };
        }
    }

    /// Claims memory for the message at the front, and for those behind it that are here already.
    fn poll_claim(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Status>> {
        let whole = whole_messages(&self.rest);
        let first = message_len(&self.rest).unwrap_or(HEADER);
        if first - HEADER > self.message_max {
            // The reader refuses it by its header.
            self.passing = HEADER;
            return Poll::Ready(Ok(()));
        }
        let len = whole.max(first);
        let claiming = self.claiming.get_or_insert_with(|| {
            let memory = self.memory.clone();
            async move { memory.claim(len).await }.boxed()
        });
        let claimed = std::task::ready!(claiming.as_mut().poll(cx));
        self.claiming = None;
        self.claim = Some(claimed.map_err(crowded)?);
        self.passing = len;
        self.patience = ARRIVAL;
        Poll::Ready(Ok(()))
    }

    /// What comes next; an error if a message that is claimed is too long in coming.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Polled {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Pending if self.claim.is_some() => {
                let patience = self.patience;
                let (_, end) = self
                    .pause
                    .get_or_insert_with(|| (Instant::now(), Box::pin(sleep(patience))));
                std::task::ready!(end.as_mut().poll(cx));
                Poll::Ready(Some(Err(late())))
            }
            Poll::Pending => Poll::Pending,
            ready @ Poll::Ready(_) => {
                if let Some((since, _)) = self.pause.take() {
                    let pause = since.elapsed().min(PAUSE);
                    self.patience = self.patience.saturating_sub(pause);
                }
                ready
            }
        }
    }

    fn take_in(&mut self, data: Bytes) {
        if self.rest.is_empty() {
            self.rest = data;
            return;
        }
        // The beginning of a header, and what follows it.
        let mut joined = BytesMut::with_capacity(self.rest.len() + data.len());
        joined.extend_from_slice(&self.rest);
        joined.extend_from_slice(&data);
        self.rest = joined.freeze();
    }
}

/// The length of the message at the front, header included.
fn message_len(bytes: &[u8]) -> Option<usize> {
    let (_, after) = bytes.split_first()?;
    let len = after.first_chunk::<4>()?;
    usize::try_from(u32::from_be_bytes(*len))
        .ok()?
        .checked_add(HEADER)
}

/// Bytes of the messages at the front that are here whole.
fn whole_messages(bytes: &[u8]) -> usize {
    let mut end = 0;
    while let Some(len) = bytes.get(end..).and_then(message_len)
        && let Some(next) = end.checked_add(len)
        && next <= bytes.len()
    {
        end = next;
    }
    end
}

fn crowded(error: Crowded) -> Status {
    Error::new(ErrorCode::Overloaded, error.to_string())
        .with_hint("try again; limits.request_memory is its size")
        .into()
}

fn late() -> Status {
    let seconds = ARRIVAL.as_secs();
    let text = format!("the message did not arrive whole within {seconds} s");
    Error::new(ErrorCode::Overloaded, text).into()
}

#[cfg(test)]
mod tests;
