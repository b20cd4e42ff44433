//! How many files there are by now, and whether more are wanted: what ties the entries that only
//! the write-ahead log holds to what it can carry. A log that could not grow to its full size,
//! for want of room on the disk, must not be promised more than the files it has.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;

/// Shared by the log and whoever bounds what it has to carry.
#[derive(Debug, Default)]
pub(crate) struct Growth {
    files: AtomicU64,
    wanted: AtomicBool,
    /// Rung for whoever waits for files.
    grown: Notify,
    /// Rung for whoever makes them.
    wish: Notify,
}

impl Growth {
    /// Files that hold frames or are ready to.
    pub(crate) fn files(&self) -> u64 {
        self.files.load(Ordering::Relaxed)
    }

    /// Asks for one more file than are kept ready anyway.
    pub(crate) fn want(&self) {
        if !self.wanted.swap(true, Ordering::Relaxed) {
            self.wish.notify_one();
        }
    }

    /// Waits until the number of files may have risen. Must be enabled before it is looked at.
    pub(crate) fn grown(&self) -> tokio::sync::futures::Notified<'_> {
        self.grown.notified()
    }

    pub(super) fn set_files(&self, files: usize) {
        let files = files as u64;
        if self.files.swap(files, Ordering::Relaxed) < files {
            self.grown.notify_waiters();
        }
    }

    pub(super) fn is_wanted(&self) -> bool {
        self.wanted.load(Ordering::Relaxed)
    }

    /// What was wanted is there; whoever needs more asks again.
    pub(super) fn is_met(&self) {
        self.wanted.store(false, Ordering::Relaxed);
    }

    /// Waits for [`Self::want`].
    pub(super) async fn wanted(&self) {
        self.wish.notified().await;
    }
}
