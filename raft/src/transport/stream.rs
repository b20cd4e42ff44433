//! Streams: ordered messages both ways between two nodes over one link, bounded by byte credits.
//!
//! ```text
//!   sender ──window of this stream──window of the link──> outbox => writer
//!   reader => queue of this stream ──> receiver ──credit when consumed──> outbox
//! ```
//!
//! A message leaves only when the receiving side has granted room for it, so a receiver that
//! stops consuming holds its sender, never memory. Messages arrive in order and without gaps
//! until the stream ends or fails; a link that breaks fails every stream on it.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};

use super::frame::{FrameHeader, Op};
use super::link::Link;
use super::outbox::OutFrame;
use super::peer::{PeerError, Refusal};

/// What every message costs beside its payload, so that empty ones are bounded too.
const MESSAGE_COST: usize = 256;

/// What a message costs of a link's window.
pub(super) fn link_cost(len: usize) -> u32 {
    u32::try_from(len.saturating_add(MESSAGE_COST)).unwrap_or(u32::MAX)
}

/// What a message costs of its stream's window: never more than half of it, so that a message
/// larger than the window can still pass.
fn stream_cost(len: usize, window: u32) -> u32 {
    link_cost(len).min(window / 2)
}

/// How the incoming half of a stream ended.
#[derive(Clone, Debug)]
enum Ending {
    Finished,
    Failed(PeerError),
}

#[derive(Debug, Default)]
struct State {
    /// Messages that arrived and were not consumed.
    queue: VecDeque<Bytes>,
    /// What of our own window the peer has used and we have not granted back.
    used: u32,
    /// What was consumed and is not granted back yet.
    owed: u32,
    waker: Option<Waker>,
    ending: Option<Ending>,
    /// Why sending is over, once it is.
    send_failure: Option<PeerError>,
    /// What of the peer's window we have used and it has not granted back.
    outstanding: u32,
    sending: bool,
    receiving: bool,
}

/// One stream, shared by its two halves here and the link that feeds it.
#[derive(Debug)]
pub(super) struct Stream {
    id: u64,
    link: Arc<Link>,
    /// Room the peer has granted.
    room: Semaphore,
    send_over: Notify,
    state: Mutex<State>,
}

impl Stream {
    pub(super) fn new(id: u64, link: Arc<Link>) -> Arc<Self> {
        Arc::new(Self {
            id,
            room: Semaphore::new(link.their_limits().stream_window as usize),
            send_over: Notify::new(),
            link,
            state: Mutex::new(State {
                sending: true,
                receiving: true,
                ..State::default()
            }),
        })
    }

    pub(super) fn halves(self: &Arc<Self>) -> (StreamSender, StreamReceiver) {
        (
            StreamSender(Arc::clone(self)),
            StreamReceiver(Arc::clone(self)),
        )
    }

    /// A message arrived. An error is the peer's breach of its credit.
    pub(super) fn on_data(&self, payload: Bytes) -> Result<(), &'static str> {
        let window = self.link.our_limits().stream_window;
        let len = payload.len();
        let mut state = self.state.lock();
        if state.ending.is_some() {
            return Err("data after the end of a stream");
        }
        if !state.receiving {
            drop(state);
            self.link.consumed(link_cost(len));
            return Ok(());
        }
        state.used = state.used.saturating_add(stream_cost(len, window));
        if state.used > window {
            return Err("more data on a stream than was granted");
        }
        state.queue.push_back(payload);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Ok(())
    }

    /// The peer finished sending. True when the stream is over both ways.
    pub(super) fn on_end(&self) -> bool {
        self.end(Ending::Finished)
    }

    /// The peer's receiver wants no more. True when the stream is over both ways.
    pub(super) fn on_reset(&self, why: PeerError) -> bool {
        self.stop_sending(&why);
        if matches!(why, PeerError::Refused(_)) {
            self.end(Ending::Failed(why));
        }
        self.is_over()
    }

    /// The peer granted room. An error is more than it can have.
    pub(super) fn on_credit(&self, bytes: u32) -> Result<(), &'static str> {
        let mut state = self.state.lock();
        state.outstanding = state
            .outstanding
            .checked_sub(bytes)
            .ok_or("more credit for a stream than it used")?;
        drop(state);
        self.room.add_permits(bytes as usize);
        Ok(())
    }

    /// The link broke, or this side gave up.
    pub(super) fn fail(&self, why: &PeerError) {
        self.stop_sending(why);
        self.end(Ending::Failed(why.clone()));
    }

    fn stop_sending(&self, why: &PeerError) {
        let mut state = self.state.lock();
        state.send_failure.get_or_insert_with(|| why.clone());
        state.sending = false;
        drop(state);
        self.room.close();
        self.send_over.notify_waiters();
    }

    fn end(&self, ending: Ending) -> bool {
        let mut state = self.state.lock();
        state.ending.get_or_insert(ending);
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.is_over()
    }

    fn is_over(&self) -> bool {
        let state = self.state.lock();
        !state.sending && (!state.receiving || state.ending.is_some())
    }

    fn send_error(&self) -> PeerError {
        let state = self.state.lock();
        state.send_failure.clone().unwrap_or(PeerError::Closed)
    }

    fn finish_sending(&self) {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.sending) {
            return;
        }
        state.send_failure.get_or_insert(PeerError::Closed);
        drop(state);
        self.link.push(OutFrame::bare(Op::End, self.id));
        self.forget_if_over();
    }

    fn stop_receiving(&self, refusal: Option<&Refusal>) {
        let mut state = self.state.lock();
        if !std::mem::take(&mut state.receiving) {
            return;
        }
        let unread = std::mem::take(&mut state.queue);
        let ended = state.ending.is_some();
        state.waker = None;
        drop(state);
        for message in unread {
            self.link.consumed(link_cost(message.len()));
        }
        if !ended {
            self.link.push(refusal_frame(Op::Reset, self.id, refusal));
        }
        self.forget_if_over();
    }

    fn forget_if_over(&self) {
        if self.is_over() {
            self.link.forget_stream(self.id);
        }
    }

    /// A message of this length was consumed: grants its room back, in steps of a quarter window.
    fn consumed(&self, len: usize) {
        let window = self.link.our_limits().stream_window;
        let mut state = self.state.lock();
        state.owed += stream_cost(len, window);
        let grant = if state.owed >= window / 4 {
            std::mem::take(&mut state.owed)
        } else {
            0
        };
        state.used -= grant;
        drop(state);
        if grant > 0 {
            self.link.grant_stream(self.id, grant);
        }
        self.link.consumed(link_cost(len));
    }

    fn poll_message(&self, cx: &Context<'_>) -> Poll<Result<Option<Bytes>, PeerError>> {
        let mut state = self.state.lock();
        if let Some(message) = state.queue.pop_front() {
            return Poll::Ready(Ok(Some(message)));
        }
        match &state.ending {
            Some(Ending::Finished) => Poll::Ready(Ok(None)),
            Some(Ending::Failed(why)) => Poll::Ready(Err(why.clone())),
            None => {
                if !state
                    .waker
                    .as_ref()
                    .is_some_and(|w| w.will_wake(cx.waker()))
                {
                    state.waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }
}

/// A refusal, or plain disinterest, as a frame.
pub(super) fn refusal_frame(op: Op, id: u64, refusal: Option<&Refusal>) -> OutFrame {
    let (code, text) = refusal.map_or((0, Bytes::new()), Refusal::to_wire);
    let header = FrameHeader {
        code,
        ..FrameHeader::bare(op, id)
    };
    let payload = if text.is_empty() {
        Vec::new()
    } else {
        vec![text]
    };
    OutFrame::new(&header, payload)
}

/// The outgoing half of a stream. Dropping it finishes the half: the peer reads what was sent,
/// then the end.
#[derive(Debug)]
pub struct StreamSender(Arc<Stream>);

impl StreamSender {
    /// Sends one message, its slices shared and not copied, once the receiver has room for it.
    /// Success means queued in order, not received.
    ///
    /// # Cancel safety
    /// A send that did not complete sent nothing.
    pub async fn send(&mut self, payload: Vec<Bytes>) -> Result<(), PeerError> {
        let stream = &*self.0;
        let len = stream.link.check_len(&payload)?;
        let window = stream.link.their_limits().stream_window;
        let cost = stream_cost(len, window);
        let own = stream
            .room
            .acquire_many(cost)
            .await
            .map_err(|_| stream.send_error())?;
        let sending = stream.link.reserve(len).await?;
        {
            let mut state = stream.state.lock();
            if let Some(why) = &state.send_failure {
                return Err(why.clone());
            }
            state.outstanding += cost;
        }
        own.forget();
        sending.send(&FrameHeader::bare(Op::Data, stream.id), payload)
    }

    /// Resolves when the peer wants no more or the link broke.
    pub async fn closed(&self) {
        let over = self.0.send_over.notified();
        if self.0.state.lock().sending {
            over.await;
        }
    }
}

impl Drop for StreamSender {
    fn drop(&mut self) {
        self.0.finish_sending();
    }
}

/// The incoming half of a stream. Dropping it tells the peer to stop sending.
#[derive(Debug)]
pub struct StreamReceiver(Arc<Stream>);

impl StreamReceiver {
    /// The next message; `None` after the peer finished, an error after the stream failed. What
    /// arrived before either is delivered first.
    ///
    /// # Cancel safety
    /// Safe: a message is either returned or kept.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, PeerError> {
        std::future::poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// As [`StreamReceiver::recv`].
    pub fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, PeerError>> {
        let polled = self.0.poll_message(cx);
        if let Poll::Ready(Ok(Some(message))) = &polled {
            self.0.consumed(message.len());
        }
        polled
    }

    /// As [`StreamReceiver::recv`], but the message counts against the sender's credit until the
    /// lease is dropped: for receivers that queue what they took.
    ///
    /// # Cancel safety
    /// As [`StreamReceiver::recv`].
    pub async fn recv_leased(&mut self) -> Result<Option<(Bytes, Lease)>, PeerError> {
        let message = std::future::poll_fn(|cx| self.0.poll_message(cx)).await?;
        Ok(message.map(|bytes| {
            let lease = Lease {
                stream: Arc::clone(&self.0),
                len: bytes.len(),
            };
            (bytes, lease)
        }))
    }

    /// Ends the stream with a reason, which the peer's halves report.
    pub fn refuse(self, refusal: &Refusal) {
        self.0.stop_receiving(Some(refusal));
    }
}

impl Drop for StreamReceiver {
    fn drop(&mut self) {
        self.0.stop_receiving(None);
    }
}

impl futures::Stream for StreamReceiver {
    type Item = Result<Bytes, PeerError>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().poll_recv(cx).map(Result::transpose)
    }
}

/// A consumed message's claim on the sender's credit; dropping it grants the room back.
#[derive(Debug)]
pub struct Lease {
    stream: Arc<Stream>,
    len: usize,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.stream.consumed(self.len);
    }
}
