//! What waits to be written to one link: frames in order, gathered by the writer in batches.
//!
//! The queue itself has no limit because everything that enters it is limited before: stream
//! messages by credits, calls and their answers by slots, credits by being merged per stream.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::{Notify, OwnedSemaphorePermit};

use super::frame::{FrameHeader, HEADER_LEN, Op};

/// A frame ready to be written.
#[derive(Debug)]
pub(super) struct OutFrame {
    pub(super) header: [u8; HEADER_LEN],
    pub(super) payload: Vec<Bytes>,
    /// A slot that is free again once the frame is written.
    pub(super) slot: Option<OwnedSemaphorePermit>,
}

impl OutFrame {
    pub(super) fn new(header: &FrameHeader, payload: Vec<Bytes>) -> Self {
        Self {
            header: header.over(&payload).encode(),
            payload,
            slot: None,
        }
    }

    pub(super) fn bare(op: Op, id: u64) -> Self {
        Self {
            header: FrameHeader::bare(op, id).encode(),
            payload: Vec::new(),
            slot: None,
        }
    }

    pub(super) fn len(&self) -> usize {
        HEADER_LEN + self.payload.iter().map(Bytes::len).sum::<usize>()
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Open,
    /// Takes nothing new; what is queued still leaves.
    Finishing,
    Closed,
}

#[derive(Debug, Default)]
struct Queue {
    frames: VecDeque<OutFrame>,
    bytes: usize,
    /// Credits owed per stream, merged until the writer takes them.
    credits: BTreeMap<u64, u32>,
    state: State,
}

/// The queue between those who send on a link and its writer task.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    queue: Mutex<Queue>,
    filled: Notify,
    drained: Notify,
}

impl Outbox {
    /// Queues a frame; false once the link closes.
    pub(super) fn push(&self, frame: OutFrame) -> bool {
        let mut queue = self.queue.lock();
        if queue.state != State::Open {
            return false;
        }
        let was_empty = queue.frames.is_empty() && queue.credits.is_empty();
        queue.bytes += frame.len();
        queue.frames.push_back(frame);
        drop(queue);
        if was_empty {
            self.filled.notify_one();
        }
        true
    }

    /// Queues the return of credit for a stream.
    pub(super) fn push_credit(&self, stream: u64, bytes: u32) {
        let mut queue = self.queue.lock();
        if queue.state != State::Open {
            return;
        }
        let was_empty = queue.frames.is_empty() && queue.credits.is_empty();
        let owed = queue.credits.entry(stream).or_default();
        *owed = owed.saturating_add(bytes);
        drop(queue);
        if was_empty {
            self.filled.notify_one();
        }
    }

    /// Waits until fewer than `limit` bytes are queued, or the link is closed.
    pub(super) async fn wait_below(&self, limit: usize) {
        loop {
            let drained = self.drained.notified();
            {
                let queue = self.queue.lock();
                if queue.state == State::Closed || queue.bytes < limit {
                    return;
                }
            }
            drained.await;
        }
    }

    /// Moves everything that is ready to the back of `batch`. Waits for the first frame; false
    /// once nothing more will come.
    ///
    /// # Cancel safety
    /// Nothing is taken unless it completes.
    pub(super) async fn take(&self, batch: &mut VecDeque<OutFrame>) -> bool {
        loop {
            if self.take_ready(batch) {
                return true;
            }
            if self.queue.lock().state != State::Open {
                return false;
            }
            self.filled.notified().await;
        }
    }

    /// As [`Outbox::take`], without waiting; false when nothing was ready.
    pub(super) fn take_ready(&self, batch: &mut VecDeque<OutFrame>) -> bool {
        let mut queue = self.queue.lock();
        if queue.frames.is_empty() && queue.credits.is_empty() {
            return false;
        }
        for (stream, bytes) in std::mem::take(&mut queue.credits) {
            let header = FrameHeader {
                argument: bytes,
                ..FrameHeader::bare(Op::Credit, stream)
            };
            batch.push_back(OutFrame::new(&header, Vec::new()));
        }
        if batch.is_empty() {
            std::mem::swap(&mut queue.frames, batch);
        } else {
            batch.append(&mut queue.frames);
        }
        queue.bytes = 0;
        drop(queue);
        self.drained.notify_waiters();
        true
    }

    /// Queues a last frame; the writer ends after it.
    pub(super) fn finish(&self, last: OutFrame) {
        self.push(last);
        let mut queue = self.queue.lock();
        if queue.state == State::Open {
            queue.state = State::Finishing;
        }
        drop(queue);
        self.filled.notify_one();
    }

    /// Refuses and drops everything from now on.
    pub(super) fn close(&self) {
        let mut queue = self.queue.lock();
        queue.state = State::Closed;
        queue.bytes = 0;
        let dropped = std::mem::take(&mut queue.frames);
        queue.credits.clear();
        drop(queue);
        drop(dropped);
        self.filled.notify_one();
        self.drained.notify_waiters();
    }
}
