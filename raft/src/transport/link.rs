//! One live link: the state shared by its reader, its writer and everyone who uses it.
//!
//! The initiator calls and opens streams, the acceptor serves them; two nodes that both call each
//! other have a link each way. A link never heals: when it breaks, every call and stream on it
//! fails with the same reason, and a new link starts empty.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, SemaphorePermit, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trilog_model::NodeId;

use super::frame::{FrameHeader, Op};
use super::limits::Limits;
use super::outbox::{OutFrame, Outbox};
use super::peer::{Kind, PeerError, Refusal, Route};
use super::stream::{Stream, StreamReceiver, StreamSender, link_cost};

type Answer = Result<Bytes, PeerError>;

#[derive(Debug)]
pub(super) struct Link {
    peer: NodeId,
    ours: Limits,
    theirs: Limits,
    outbox: Outbox,
    /// Room the peer has granted for the payload of calls, answers and streams together.
    room: Semaphore,
    /// What of that room we have used and it has not granted back.
    outstanding: AtomicU32,
    /// What the peer has used of our window and we have not granted back.
    used: AtomicU32,
    /// What was consumed and is not granted back yet.
    owed: AtomicU32,
    call_slots: Semaphore,
    calls: Mutex<BTreeMap<u64, oneshot::Sender<Answer>>>,
    streams: Mutex<BTreeMap<u64, Arc<Stream>>>,
    next_id: AtomicU64,
    broken: OnceLock<PeerError>,
    /// One side has said that it starts nothing new here.
    draining: AtomicBool,
    /// Something arrived, or was written, since whoever watches the link last looked.
    pub(super) heard: AtomicBool,
    pub(super) wrote: AtomicBool,
    stop: CancellationToken,
}

impl Link {
    pub(super) fn new(peer: NodeId, ours: Limits, theirs: Limits) -> Arc<Self> {
        Arc::new(Self {
            peer,
            ours,
            theirs,
            outbox: Outbox::default(),
            room: Semaphore::new(theirs.link_window as usize),
            outstanding: AtomicU32::new(0),
            used: AtomicU32::new(0),
            owed: AtomicU32::new(0),
            call_slots: Semaphore::new(theirs.max_calls as usize),
            calls: Mutex::default(),
            streams: Mutex::default(),
            next_id: AtomicU64::new(1),
            broken: OnceLock::new(),
            draining: AtomicBool::new(false),
            heard: AtomicBool::new(true),
            wrote: AtomicBool::new(true),
            stop: CancellationToken::new(),
        })
    }

    pub(super) const fn peer(&self) -> NodeId {
        self.peer
    }

    pub(super) const fn our_limits(&self) -> &Limits {
        &self.ours
    }

    pub(super) const fn their_limits(&self) -> &Limits {
        &self.theirs
    }

    pub(super) const fn outbox(&self) -> &Outbox {
        &self.outbox
    }

    /// Cancelled when the link is over.
    pub(super) const fn stop(&self) -> &CancellationToken {
        &self.stop
    }

    /// Whether calls and streams may still start here.
    pub(super) fn is_open(&self) -> bool {
        self.broken.get().is_none() && !self.draining.load(Ordering::Relaxed)
    }

    /// Nothing new starts on this link; what is in progress may finish.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }

    /// Says goodbye and lets the writer end once it wrote what is queued.
    pub(super) fn finish(&self) {
        self.drain();
        self.outbox.finish(OutFrame::bare(Op::Goodbye, 0));
    }

    pub(super) fn push(&self, frame: OutFrame) {
        self.outbox.push(frame);
    }

    /// Ends the link; everything on it fails with `why`, of which the first counts.
    pub(super) fn fail(&self, why: PeerError) {
        if self.broken.set(why).is_err() {
            return;
        }
        let why = self.why();
        self.outbox.close();
        self.room.close();
        self.call_slots.close();
        let calls = std::mem::take(&mut *self.calls.lock());
        for answer in calls.into_values() {
            // The caller may have timed out.
            let _ = answer.send(Err(why.clone()));
        }
        let streams = std::mem::take(&mut *self.streams.lock());
        for stream in streams.into_values() {
            stream.fail(&why);
        }
        self.stop.cancel();
    }

    pub(super) fn why(&self) -> PeerError {
        self.broken.get().cloned().unwrap_or(PeerError::Closed)
    }

    pub(super) fn check_len(&self, payload: &[Bytes]) -> Result<usize, PeerError> {
        let len = payload.iter().map(Bytes::len).sum();
        let max = self.theirs.max_payload as usize;
        if len > max {
            return Err(PeerError::TooLarge { len, max });
        }
        Ok(len)
    }

    /// Waits for room in the link's window for a payload of `len` bytes.
    pub(super) async fn reserve(&self, len: usize) -> Result<Reserved<'_>, PeerError> {
        let cost = link_cost(len);
        match self.room.acquire_many(cost).await {
            Ok(permit) => Ok(Reserved {
                link: self,
                permit,
                cost,
            }),
            Err(_) => Err(self.why()),
        }
    }

    /// As [`Link::reserve`], but only if there is room now.
    pub(super) fn try_reserve(&self, len: usize) -> Option<Reserved<'_>> {
        let cost = link_cost(len);
        let permit = self.room.try_acquire_many(cost).ok()?;
        Some(Reserved {
            link: self,
            permit,
            cost,
        })
    }

    /// Calls the peer and waits for the answer until the deadline.
    pub(super) async fn call(
        &self,
        kind: Kind,
        route: Route,
        payload: Vec<Bytes>,
        deadline: Instant,
    ) -> Answer {
        let len = self.check_len(&payload)?;
        let unsent = |_| self.unreachable("the link is saturated");
        let acquired = async {
            let slot = self.call_slots.acquire().await.map_err(|_| self.why())?;
            Ok::<_, PeerError>((slot, self.reserve(len).await?))
        };
        let (_slot, room) = tokio::time::timeout_at(deadline, acquired)
            .await
            .map_err(unsent)??;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let (answer, answered) = oneshot::channel();
        self.calls.lock().insert(id, answer);
        let _forget = ForgetCall { link: self, id };
        let millis = deadline.duration_since(Instant::now()).as_millis();
        let header = FrameHeader {
            code: kind.0,
            route,
            argument: u32::try_from(millis).unwrap_or(u32::MAX).max(1),
            ..FrameHeader::bare(Op::Call, id)
        };
        room.send(&header, payload)?;
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(_)) => Err(self.why()),
            Err(_) => Err(PeerError::Timeout),
        }
    }

    /// An answer arrived. Its call may be long forgotten.
    pub(super) fn on_answer(&self, id: u64, answer: Answer) {
        if let Some(waiting) = self.calls.lock().remove(&id) {
            let _ = waiting.send(answer);
        }
    }

    /// Opens a stream; the peer's refusal, if any, arrives on its halves.
    pub(super) fn open(
        self: &Arc<Self>,
        kind: Kind,
        route: Route,
    ) -> Result<(StreamSender, StreamReceiver), PeerError> {
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        let stream = Stream::new(id, Arc::clone(self));
        {
            let mut streams = self.streams.lock();
            if streams.len() >= self.theirs.max_streams as usize {
                return Err(PeerError::Refused(Refusal::Busy));
            }
            streams.insert(id, Arc::clone(&stream));
        }
        let header = FrameHeader {
            code: kind.0,
            route,
            ..FrameHeader::bare(Op::Open, id)
        };
        if !self.outbox.push(OutFrame::new(&header, Vec::new())) {
            self.forget_stream(id);
            return Err(self.why());
        }
        Ok(stream.halves())
    }

    /// The peer opened a stream; an error is its breach of our limits.
    pub(super) fn on_open(self: &Arc<Self>, id: u64) -> Result<Arc<Stream>, &'static str> {
        let mut streams = self.streams.lock();
        if streams.len() >= self.ours.max_streams as usize {
            return Err("more streams than allowed");
        }
        if streams.contains_key(&id) {
            return Err("a stream opened twice");
        }
        let stream = Stream::new(id, Arc::clone(self));
        streams.insert(id, Arc::clone(&stream));
        Ok(stream)
    }

    pub(super) fn stream(&self, id: u64) -> Option<Arc<Stream>> {
        self.streams.lock().get(&id).cloned()
    }

    pub(super) fn forget_stream(&self, id: u64) {
        self.streams.lock().remove(&id);
    }

    /// Payload of `len` bytes arrived; an error is the peer's breach of the link's window.
    pub(super) fn on_payload(&self, len: usize) -> Result<(), &'static str> {
        let cost = link_cost(len);
        let used = self.used.fetch_add(cost, Ordering::Relaxed);
        if used.saturating_add(cost) > self.ours.link_window {
            return Err("more data on a link than was granted");
        }
        Ok(())
    }

    /// That much of the link's window was consumed: grants it back, in steps of a quarter.
    pub(super) fn consumed(&self, cost: u32) {
        let owed = self.owed.fetch_add(cost, Ordering::Relaxed) + cost;
        if owed < self.ours.link_window / 4 {
            return;
        }
        let grant = self.owed.swap(0, Ordering::Relaxed);
        if grant > 0 {
            self.used.fetch_sub(grant, Ordering::Relaxed);
            self.outbox.push_credit(0, grant);
        }
    }

    pub(super) fn grant_stream(&self, id: u64, bytes: u32) {
        self.outbox.push_credit(id, bytes);
    }

    /// The peer granted room; an error is more than it can have.
    pub(super) fn on_credit(&self, id: u64, bytes: u32) -> Result<(), &'static str> {
        if id != 0 {
            // The stream may be over: then its room is of no use.
            return self
                .stream(id)
                .map_or(Ok(()), |stream| stream.on_credit(bytes));
        }
        self.outstanding
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |outstanding| {
                outstanding.checked_sub(bytes)
            })
            .map_err(|_| "more credit for a link than it used")?;
        self.room.add_permits(bytes as usize);
        Ok(())
    }

    pub(super) fn broken(&self, reason: &str) -> PeerError {
        PeerError::Broken {
            node: self.peer,
            reason: reason.to_owned(),
        }
    }

    pub(super) fn unreachable(&self, reason: &str) -> PeerError {
        PeerError::Unreachable {
            node: self.peer,
            reason: reason.to_owned(),
        }
    }
}

/// Room in a link's window for one payload.
#[derive(Debug)]
pub(super) struct Reserved<'a> {
    link: &'a Link,
    permit: SemaphorePermit<'a>,
    cost: u32,
}

impl Reserved<'_> {
    /// Spends the room on a frame.
    pub(super) fn send(self, header: &FrameHeader, payload: Vec<Bytes>) -> Result<(), PeerError> {
        self.send_frame(OutFrame::new(header, payload))
    }

    /// As [`Reserved::send`], for a frame made before.
    pub(super) fn send_frame(self, frame: OutFrame) -> Result<(), PeerError> {
        self.link
            .outstanding
            .fetch_add(self.cost, Ordering::Relaxed);
        self.permit.forget();
        if self.link.outbox.push(frame) {
            Ok(())
        } else {
            Err(self.link.why())
        }
    }
}

struct ForgetCall<'a> {
    link: &'a Link,
    id: u64,
}

impl Drop for ForgetCall<'_> {
    fn drop(&mut self) {
        self.link.calls.lock().remove(&self.id);
    }
}
