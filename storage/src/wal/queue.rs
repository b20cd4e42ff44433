//! What was submitted and is not taken yet: filled from any thread, emptied by the writer.

use std::collections::VecDeque;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{WalDone, WalError, WalPosition};
use crate::frame::Frame;

/// How far a unit may go where files run out, the least first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Room {
    /// Not into the reserve.
    Common,
    /// Into the file kept for notes: for what lets a full log recover, such as votes,
    /// truncations and log starts. Takes what its groups submitted before it along.
    Reserved,
    /// Into the last file: for entries that are in the log already and are logged again so that
    /// older files can be freed. Their order does not matter.
    Relog,
}

impl Room {
    pub(super) const ALL: [Self; 3] = [Self::Common, Self::Reserved, Self::Relog];
}

/// Frames submitted together, and who is told when they are durable.
pub(super) struct Unit {
    pub(super) frames: Vec<Frame>,
    /// How many of `frames` are laid out in rounds already.
    pub(super) placed: usize,
    /// Where the first frame went.
    pub(super) position: Option<WalPosition>,
    pub(super) room: Room,
    bytes: u64,
    done: WalDone,
}

impl Unit {
    pub(super) fn new(frames: Vec<Frame>, room: Room, done: WalDone) -> Self {
        let bytes = frames.iter().map(|f| f.header.frame_len() as u64).sum();
        Self {
            frames,
            placed: 0,
            position: None,
            room,
            bytes,
            done,
        }
    }

    /// Forgets where frames were placed.
    pub(super) fn replace(&mut self) {
        self.placed = 0;
        self.position = None;
    }

    pub(super) fn is_placed(&self) -> bool {
        self.placed == self.frames.len()
    }
}

impl fmt::Debug for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Unit")
            .field("frames", &self.frames.len())
            .field("placed", &self.placed)
            .field("room", &self.room)
            .finish_non_exhaustive()
    }
}

/// The queue, and the bell that wakes the writer.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    /// Bytes of all units not yet answered, the writer's included.
    bytes: AtomicU64,
    bell: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    units: VecDeque<Unit>,
    /// When the oldest of `units` came.
    since: Option<Instant>,
    closed: bool,
}

/// What a look into the queue found.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// When the oldest unit came, if any did.
    pub(super) since: Option<Instant>,
    /// Whether nothing more will come.
    pub(super) closed: bool,
}

impl Queue {
    /// Adds a unit. Rings only for the first, since the writer takes all there is.
    pub(super) fn push(&self, unit: Unit) {
        self.bytes.fetch_add(unit.bytes, Ordering::Relaxed);
        let mut waiting = self.waiting.lock();
        let first = waiting.units.is_empty();
        if first {
            waiting.since = Some(Instant::now());
        }
        waiting.units.push_back(unit);
        drop(waiting);
        if first {
            self.bell.notify_one();
        }
    }

    /// Moves everything behind what `into` holds.
    pub(super) fn take(&self, into: &mut VecDeque<Unit>) -> Taken {
        let mut waiting = self.waiting.lock();
        if into.is_empty() {
            std::mem::swap(&mut waiting.units, into);
        } else {
            into.append(&mut waiting.units);
        }
        Taken {
            since: waiting.since.take(),
            closed: waiting.closed,
        }
    }

    /// Answers a unit, wherever it got to.
    pub(super) fn answer(&self, unit: Unit, result: Result<WalPosition, WalError>) {
        self.bytes.fetch_sub(unit.bytes, Ordering::Relaxed);
        (unit.done)(result);
    }

    pub(super) fn close(&self) {
        self.waiting.lock().closed = true;
        self.ring();
    }

    /// Wakes the writer: something it may be waiting for has changed.
    pub(super) fn ring(&self) {
        self.bell.notify_one();
    }

    /// Waits for the bell; a ring while nobody waits is kept.
    pub(super) async fn heard(&self) {
        self.bell.notified().await;
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}
