//! The serving side of one link: finds the handler of a call or stream and sends its answer.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use super::frame::{FrameHeader, Op};
use super::link::Link;
use super::outbox::OutFrame;
use super::peer::{Kind, Lane, PeerCall, PeerHandler, PeerStream, Refusal};
use super::registry::Registry;
use super::stats::{Counters, count};
use super::stream::{link_cost, refusal_frame};

type Answer = Result<Vec<Bytes>, Refusal>;

/// What an acceptor does for the peer at the other end of one link.
#[derive(Debug)]
pub(super) struct Service {
    link: Arc<Link>,
    lane: Lane,
    /// The peer may only introduce itself.
    introduction: bool,
    registry: Arc<Registry>,
    slots: Arc<Semaphore>,
    /// Calls in progress.
    calls: TaskTracker,
    counters: Arc<Counters>,
}

impl Service {
    pub(super) fn new(
        link: Arc<Link>,
        lane: Lane,
        introduction: bool,
        registry: Arc<Registry>,
        counters: Arc<Counters>,
    ) -> Arc<Self> {
        let slots = link.our_limits().max_calls as usize;
        Arc::new(Self {
            link,
            lane,
            introduction,
            registry,
            slots: Arc::new(Semaphore::new(slots)),
            calls: TaskTracker::new(),
            counters,
        })
    }

    pub(super) const fn is_introduction(&self) -> bool {
        self.introduction
    }

    /// Waits for the calls in progress.
    pub(super) async fn drained(&self) {
        self.calls.close();
        self.calls.wait().await;
    }

    fn handler(&self, kind: Kind) -> Result<Arc<dyn PeerHandler>, Refusal> {
        if self.introduction && !kind.is_introduction() {
            return Err(Refusal::Unclustered);
        }
        if !self.link.is_open() {
            return Err(Refusal::Stopping);
        }
        self.registry.find(kind).ok_or(Refusal::Unserved)
    }

    pub(super) fn on_call(self: &Arc<Self>, header: &FrameHeader, payload: Bytes) {
        let len = payload.len();
        let admitted = self.handler(Kind(header.code)).and_then(|handler| {
            let slot = Arc::clone(&self.slots).try_acquire_owned();
            slot.map(|slot| (handler, slot)).map_err(|_| {
                count(&self.counters.busy_refusals, 1);
                Refusal::Busy
            })
        });
        let (handler, slot) = match admitted {
            Ok(admitted) => admitted,
            Err(refusal) => {
                self.link.consumed(link_cost(len));
                self.link
                    .push(refusal_frame(Op::Refused, header.id, Some(&refusal)));
                return;
            }
        };
        let mut call = Call {
            service: Arc::clone(self),
            id: header.id,
            len,
            slot: Some(slot),
        };
        let deadline = Instant::now() + Duration::from_millis(header.argument.into());
        let mut answering = handler.on_call(PeerCall {
            peer: self.link.peer(),
            lane: self.lane,
            kind: Kind(header.code),
            route: header.route,
            payload,
            deadline,
        });
        // Most calls are answered from memory: those cost no task.
        let mut no_waker = Context::from_waker(Waker::noop());
        match Pin::new(&mut answering).poll(&mut no_waker) {
            Poll::Ready(answer) => {
                if let Err((answer, back)) = call.answer_now(answer) {
                    call = back;
                    self.spawn(call, Box::pin(std::future::ready(answer)), deadline);
                }
            }
            Poll::Pending => self.spawn(call, answering, deadline),
        }
    }

    fn spawn(&self, call: Call, answering: BoxFuture<'static, Answer>, deadline: Instant) {
        let link = Arc::clone(&self.link);
        self.calls.spawn(async move {
            let finish = async {
                // Nobody waits for an answer past the deadline.
                if let Ok(answer) = tokio::time::timeout_at(deadline, answering).await {
                    call.answer(answer).await;
                }
            };
            tokio::select! {
                biased;
                () = link.stop().cancelled() => {}
                () = finish => {}
            }
        });
    }

    pub(super) fn on_open(&self, header: &FrameHeader) -> Result<(), &'static str> {
        let stream = self.link.on_open(header.id)?;
        let (sender, receiver) = stream.halves();
        count(&self.counters.streams_opened, 1);
        let stream = PeerStream {
            peer: self.link.peer(),
            lane: self.lane,
            kind: Kind(header.code),
            route: header.route,
            sender,
            receiver,
        };
        match self.handler(stream.kind) {
            Ok(handler) => handler.on_stream(stream),
            Err(refusal) => stream.refuse(&refusal),
        }
        Ok(())
    }
}

/// A call being answered. However it ends, its room in the link's window is granted back.
struct Call {
    service: Arc<Service>,
    id: u64,
    len: usize,
    slot: Option<OwnedSemaphorePermit>,
}

impl Call {
    /// Answers if the link has room for it now; gives everything back otherwise.
    fn answer_now(self, answer: Answer) -> Result<(), (Answer, Self)> {
        match answer {
            Ok(payload) => match self.service.link.check_len(&payload) {
                Ok(len) => {
                    let service = Arc::clone(&self.service);
                    let Some(room) = service.link.try_reserve(len) else {
                        return Err((Ok(payload), self));
                    };
                    // The link may break at any time; then nobody waits.
                    let _ = room.send_frame(self.into_frame(payload));
                }
                Err(error) => self.refuse(&Refusal::Failed(error.to_string())),
            },
            Err(refusal) => self.refuse(&refusal),
        }
        Ok(())
    }

    async fn answer(self, answer: Answer) {
        let Err((Ok(payload), call)) = self.answer_now(answer) else {
            return;
        };
        let service = Arc::clone(&call.service);
        let len = payload.iter().map(Bytes::len).sum();
        if let Ok(room) = service.link.reserve(len).await {
            let _ = room.send_frame(call.into_frame(payload));
        }
    }

    fn refuse(self, refusal: &Refusal) {
        let service = Arc::clone(&self.service);
        let frame = refusal_frame(Op::Refused, self.id, Some(refusal));
        service.link.push(self.attach(frame));
    }

    fn into_frame(self, payload: Vec<Bytes>) -> OutFrame {
        let header = FrameHeader::bare(Op::Reply, self.id);
        self.attach(OutFrame::new(&header, payload))
    }

    /// The frame holds the call's slot until it is written.
    fn attach(mut self, mut frame: OutFrame) -> OutFrame {
        frame.slot = self.slot.take();
        frame
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        self.service.link.consumed(link_cost(self.len));
    }
}
