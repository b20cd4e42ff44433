//! Memory over all groups: what is pinned, what is cached, and who gives way first.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::sync::watch;
use trilog_model::LogIndex;

use super::group::Group;

/// Why a node should refuse produce and withhold replication credit for now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pressure {
    /// More bytes are outside segments than the budget allows.
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

/// Frames of one group that may leave memory.
#[derive(Debug)]
struct Cached {
    group: Weak<Group>,
    end: LogIndex,
}

/// The counters of one store.
#[derive(Debug)]
pub(crate) struct Budget {
    pinned_limit: u64,
    cached_limit: u64,
    pinned: AtomicU64,
    cached: AtomicU64,
    order: Mutex<VecDeque<Cached>>,
    pressure: watch::Sender<Pressure>,
}

impl Budget {
    pub(crate) fn new(pinned_limit: u64, cached_limit: u64) -> Self {
        Self {
            pinned_limit,
            cached_limit,
            pinned: AtomicU64::new(0),
            cached: AtomicU64::new(0),
            order: Mutex::new(VecDeque::new()),
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

    /// Whether so much is pinned that filling should not wait for whole runs.
    pub(crate) fn is_tight(&self) -> bool {
        self.pinned() >= self.pinned_limit / 4 * 3
    }

    pub(crate) fn pin(&self, bytes: u64) {
        let pinned = self.pinned.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if pinned >= self.pinned_limit {
            self.report(|pressure| pressure.pinned = true);
        }
    }

    pub(crate) fn unpin(&self, bytes: u64) {
        let pinned = self.pinned.fetch_sub(bytes, Ordering::Relaxed) - bytes;
        if pinned < self.pinned_limit / 8 * 7 {
            self.report(|pressure| pressure.pinned = false);
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
