//! Memory over all groups: what is pinned, what is cached, and who gives way first.
//!
//! ```text
//! 0 ──────────────── 3/4 ────────── 7/8 ─────────── limit
//!   filled in runs    │ filled at once │ reserved share: what lets a full node recover, and
//!                     │                │ the first entries of a group that has none here
//! ```
//!
//! The limit is what was configured, or three eighths of the write-ahead log's files where there
//! are fewer of them yet, or no room for more: what no segment holds is logged again and again
//! until one does, and must never fill the log.
//!
//! Whoever is about to bring entries in claims their bytes first. Claimed and pinned bytes
//! together stay within the limit, but for the last claim: one for more than an eighth of the
//! limit is granted as soon as an eighth is free, lest it wait for ever.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use trilog_model::LogIndex;

use super::group::Group;
use crate::wal::Growth;

/// Why a node should refuse produce and withhold replication credit for now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// The common share of the memory for entries outside segments is used up. Groups that have
    /// little there may still get some.
    pub pinned: bool,
    /// The write-ahead log runs out of free files.
    pub wal_low: bool,
    /// A write found no room on the disk.
    pub disk_full: bool,
}

impl Pressure {
    /// Whether anything holds produce back.
    #[must_use]
    pub fn any(self) -> bool {
        self.pinned || self.wal_low || self.disk_full
    }
}

/// What found no room on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lack {
    Segments,
    /// It may be written where segments cannot grow, and says nothing about them.
    Checkpoint,
}

/// Frames of one group that may leave memory.
#[derive(Debug)]
struct Cached {
    group: Weak<Group>,
    end: LogIndex,
}

/// Which part of the pinned budget entries may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// Records.
    Common,
    /// All of it: for what lets a full node recover, such as trims.
    Reserved,
}

/// Memory promised to entries that are on their way into a log. Given back when they stand
/// there, and count as pinned, or when dropped.
#[derive(Debug)]
pub struct Claim {
    budget: Arc<Budget>,
    bytes: AtomicU64,
}

impl Claim {
    /// The entries stand in the log, or never will.
    pub fn settle(&self) {
        let bytes = self.bytes.swap(0, Ordering::Relaxed);
        if bytes > 0 {
            *self.budget.claimed.lock() -= bytes;
            self.budget.room.notify_waiters();
        }
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.settle();
    }
}

/// What the write-ahead log can carry.
#[derive(Debug)]
pub(crate) struct Carried {
    growth: Arc<Growth>,
    file_bytes: u64,
}

impl Carried {
    pub(crate) fn new(growth: Arc<Growth>, file_bytes: u64) -> Self {
        Self { growth, file_bytes }
    }

    fn bytes(&self) -> u64 {
        carried(self.file_bytes, self.growth.files())
    }
}

/// Bytes of entries in no segment that so many files of the write-ahead log can carry: they are
/// all logged again once while the files fill up.
pub(crate) fn carried(file_bytes: u64, files: u64) -> u64 {
    (file_bytes * files) / 8 * 3
}

/// The counters of one store.
#[derive(Debug)]
pub(crate) struct Budget {
    /// The most that was configured.
    pinned_limit: u64,
    carried: Option<Carried>,
    cached_limit: u64,
    pinned: AtomicU64,
    claimed: Mutex<u64>,
    /// Rung when claims may succeed that failed before.
    room: Notify,
    /// Rung when so much is pinned that filling should not wait for whole runs.
    tight: Notify,
    cached: AtomicU64,
    order: Mutex<VecDeque<Cached>>,
    /// What the last write of each kind found, by [`Lack`].
    lacking: [AtomicBool; 2],
    pressure: watch::Sender<Pressure>,
}

impl Budget {
    pub(crate) fn new(pinned_limit: u64, cached_limit: u64, carried: Option<Carried>) -> Self {
        Self {
            pinned_limit,
            carried,
            cached_limit,
            pinned: AtomicU64::new(0),
            claimed: Mutex::new(0),
            room: Notify::new(),
            tight: Notify::new(),
            cached: AtomicU64::new(0),
            order: Mutex::new(VecDeque::new()),
            lacking: Default::default(),
            pressure: watch::Sender::new(Pressure::default()),
        }
    }

    pub(crate) fn pinned(&self) -> u64 {
        self.pinned.load(Ordering::Relaxed)
    }

    pub(crate) fn cached(&self) -> u64 {
        self.cached.load(Ordering::Relaxed)
    }

    pub(crate) fn watch(&self) -> watch::Receiver<Pressure> {
        self.pressure.subscribe()
    }

    pub(crate) fn pinned_limit(&self) -> u64 {
        self.pinned_limit
    }

    /// The limit of now.
    fn limit(&self) -> u64 {
        let carried = self.carried.as_ref().map(Carried::bytes);
        carried.map_or(self.pinned_limit, |carried| carried.min(self.pinned_limit))
    }

    fn tight_from(&self) -> u64 {
        self.limit() / 4 * 3
    }

    fn common_limit(&self) -> u64 {
        self.limit() / 8 * 7
    }

    /// Asks for more of a write-ahead log that is what limits.
    fn want_files(&self) {
        if let Some(carried) = &self.carried
            && carried.bytes() < self.pinned_limit
        {
            carried.growth.want();
        }
    }

    /// Whether logging again what is pinned frees files of the write-ahead log: it does while that
    /// is less than half of them. Only who appends without a claim gets beyond.
    pub(crate) fn is_carried(&self) -> bool {
        let carried = self.carried.as_ref();
        carried
            .is_none_or(|carried| self.pinned() <= carried.file_bytes * carried.growth.files() / 2)
    }

    /// Whether so much is pinned that filling should not wait for whole runs.
    pub(crate) fn is_tight(&self) -> bool {
        self.pinned() >= self.tight_from()
    }

    /// Waits until the budget becomes tight.
    ///
    /// # Cancel safety
    /// Safe: a ring while nobody waits is kept.
    pub(crate) async fn tightened(&self) {
        self.tight.notified().await;
    }

    pub(crate) fn pin(&self, bytes: u64) {
        let before = self.pinned.fetch_add(bytes, Ordering::Relaxed);
        let pinned = before + bytes;
        if before < self.tight_from() && pinned >= self.tight_from() {
            self.tight.notify_one();
            self.want_files();
        }
        if pinned >= self.common_limit() {
            self.report(|pressure| pressure.pinned = true);
        }
    }

    pub(crate) fn unpin(&self, bytes: u64) {
        let pinned = self.pinned.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        if pinned < self.tight_from() {
            self.report(|pressure| pressure.pinned = false);
        }
        self.room.notify_waiters();
    }

    /// Promises memory to entries of `bytes`, if there is any now.
    pub(crate) fn try_claim(self: &Arc<Self>, bytes: u64, share: Share) -> Option<Claim> {
        let limit = match share {
            Share::Common => self.common_limit(),
            Share::Reserved => self.limit(),
        };
        let mut claimed = self.claimed.lock();
        let needed = bytes.min(self.limit() / 8);
        if *claimed + self.pinned() + needed > limit {
            drop(claimed);
            self.want_files();
            return None;
        }
        *claimed += bytes;
        Some(Claim {
            budget: Arc::clone(self),
            bytes: AtomicU64::new(bytes),
        })
    }

    /// Waits until the write-ahead log has more files than when this was first polled.
    async fn grown(&self) {
        match &self.carried {
            Some(carried) => carried.growth.grown().await,
            None => std::future::pending().await,
        }
    }

    /// Calls `attempt` until it yields something, each time after memory was given back
    /// or the limit rose.
    pub(crate) async fn when_room<T>(&self, attempt: impl Fn() -> Option<T>) -> T {
        loop {
            let mut freed = std::pin::pin!(self.room.notified());
            freed.as_mut().enable();
            let mut grown = std::pin::pin!(self.grown());
            if futures::poll!(grown.as_mut()).is_ready() {
                continue;
            }
            if let Some(value) = attempt() {
                return value;
            }
            tokio::select! {
                () = freed => {}
                () = grown => {}
            }
        }
    }

    pub(crate) fn uncache(&self, bytes: u64) {
        self.cached.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Changes the pressure; watchers hear of it only if it differs.
    pub(crate) fn report(&self, change: impl FnOnce(&mut Pressure)) {
        self.pressure.send_if_modified(|pressure| {
            let before = *pressure;
            change(pressure);
            *pressure != before
        });
    }

    /// Whether the last write of this kind found no room.
    pub(crate) fn lacks(&self, what: Lack) -> bool {
        let [segments, checkpoint] = &self.lacking;
        match what {
            Lack::Segments => segments.load(Ordering::Relaxed),
            Lack::Checkpoint => checkpoint.load(Ordering::Relaxed),
        }
    }

    /// Whether the last write of any kind found no room.
    pub(crate) fn lacks_any(&self) -> bool {
        self.lacks(Lack::Segments) || self.lacks(Lack::Checkpoint)
    }

    /// A write found room on the disk, or none.
    pub(crate) fn report_room(&self, what: Lack, found: bool) {
        self.report(|pressure| {
            let [segments, checkpoint] = &self.lacking;
            let mine = match what {
                Lack::Segments => segments,
                Lack::Checkpoint => checkpoint,
            };
            mine.store(!found, Ordering::Relaxed);
            pressure.disk_full =
                segments.load(Ordering::Relaxed) || checkpoint.load(Ordering::Relaxed);
        });
    }

    /// Frames up to `end` of a group moved from pinned to cached. Evicts the oldest over budget;
    /// the caller holds no group's lock.
    pub(crate) fn cache(&self, group: &Arc<Group>, end: LogIndex, bytes: u64) {
        self.cached.fetch_add(bytes, Ordering::Relaxed);
        self.order.lock().push_back(Cached {
            group: Arc::downgrade(group),
            end,
        });
        self.unpin(bytes);
        while self.cached() > self.cached_limit {
            let Some(oldest) = self.order.lock().pop_front() else {
                return;
            };
            if let Some(group) = oldest.group.upgrade() {
                group.evict(oldest.end);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn budget() -> Arc<Budget> {
        Arc::new(Budget::new(800, 0, None))
    }

    #[test]
    fn claims_and_pinned_bytes_stay_within_the_limit_together() {
        let budget = budget();
        let first = budget.try_claim(300, Share::Common).unwrap();
        budget.pin(300);
        first.settle();
        let second = budget.try_claim(400, Share::Common).unwrap();
        assert!(budget.try_claim(1, Share::Common).is_none());
        let reserved = budget.try_claim(100, Share::Reserved).unwrap();
        assert!(budget.try_claim(1, Share::Reserved).is_none());
        drop((second, reserved));
        assert!(budget.try_claim(400, Share::Common).is_some());
    }

    #[test]
    fn an_entry_larger_than_the_budget_passes_once_filling_has_made_room() {
        let budget = budget();
        let huge = budget.try_claim(5_000, Share::Common).unwrap();
        assert!(budget.try_claim(1, Share::Reserved).is_none());
        drop(huge);
        budget.pin(601);
        assert!(budget.is_tight());
        assert!(budget.try_claim(5_000, Share::Common).is_none());
        budget.unpin(1);
        assert!(budget.try_claim(5_000, Share::Common).is_some());
    }

    #[test]
    fn a_claim_is_settled_once() {
        let budget = budget();
        let claim = budget.try_claim(300, Share::Common).unwrap();
        claim.settle();
        claim.settle();
        drop(claim);
        assert_eq!(*budget.claimed.lock(), 0);
    }

    #[test]
    fn whoever_waits_for_room_gets_it_when_a_segment_took_entries() {
        let budget = budget();
        budget.pin(700);
        let waiting = budget.when_room(|| budget.try_claim(100, Share::Common));
        let mut waiting = std::pin::pin!(waiting);
        assert!(waiting.as_mut().now_or_never().is_none());
        assert!(budget.watch().borrow().pinned);
        budget.unpin(150);
        assert!(waiting.as_mut().now_or_never().is_some());
        assert!(!budget.watch().borrow().pinned);
    }
}
