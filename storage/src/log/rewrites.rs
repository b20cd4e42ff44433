//! What a log knows of its own rewriting: how far it is clean, and which segments were replaced
//! and still have files.
//!
//! A restart goes by the last checkpoint, so the file of a replaced segment stays until a
//! checkpoint names the one in its place, and until nobody reads it any more:
//!
//! ```text
//! switched in memory ──> in a checkpoint ──> nobody reads it ──> deleted
//!        └─ a restart here finds the old file, and deletes the new one
//! ```

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use trilog_model::{Offset, Timestamp};

use super::fill::FillTask;
use super::group::{Group, GroupState};
use super::segment::Segment;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Rewrites {
    /// Below it no record is left that a later one below it supersedes, and none of an aborted
    /// transaction.
    pub(crate) clean: Offset,
    /// The same as a restart would know it.
    settled_clean: Offset,
    /// Another with each segment that came from elsewhere, and with each start.
    arrivals: u64,
    /// Replaced segments by the order of their replacement.
    retired: VecDeque<(u64, Arc<Segment>)>,
    /// Of the next one to be replaced.
    next: u64,
    /// Those before it are in no checkpoint any more.
    settled: u64,
}

/// What a checkpoint holds of it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Mark {
    clean: Offset,
    retired: u64,
}

/// What a replica can say of its log's cleanness. Two equal ones mean that nothing came in between
/// that may be less clean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cleanness {
    /// Below it no record is left that a later one below it supersedes, nor one of an aborted
    /// transaction, whatever happens.
    pub clean: Offset,
    /// Another after anything came in from elsewhere.
    pub arrivals: u64,
}

impl Rewrites {
    /// As a restart at `now` finds it.
    pub(crate) fn recovered(clean: Offset, now: Timestamp) -> Self {
        Self {
            clean,
            settled_clean: clean,
            arrivals: now.nanos(),
            ..Self::default()
        }
    }

    /// Everything below `end` was cleaned.
    pub(crate) fn cleaned(&mut self, end: Offset) {
        self.clean = self.clean.max(end);
    }

    /// Records from `base` on came from elsewhere: how clean they are is not known.
    pub(crate) fn arrived(&mut self, base: Offset) {
        self.arrivals = self.arrivals.wrapping_add(1);
        self.clean = self.clean.min(base);
        self.settled_clean = self.settled_clean.min(base);
    }

    pub(crate) fn arrivals(&self) -> u64 {
        self.arrivals
    }

    /// A segment is part of the log no more; its file may be deleted some day.
    pub(crate) fn retire(&mut self, segment: Arc<Segment>) {
        self.retired.push_back((self.next, segment));
        self.next += 1;
    }

    /// The log is emptied: the files that are still there.
    pub(crate) fn reset(&mut self) -> Vec<PathBuf> {
        let retired = std::mem::take(&mut self.retired).into_iter();
        let files = retired.map(|(_, segment)| segment.path.clone()).collect();
        self.arrived(Offset(0));
        files
    }

    pub(crate) fn mark(&self) -> Mark {
        Mark {
            clean: self.clean,
            retired: self.next,
        }
    }

    fn saved(&mut self, mark: Mark) {
        self.settled_clean = mark.clean.min(self.clean);
        self.settled = self.settled.max(mark.retired);
    }

    /// Takes out what no checkpoint names and nobody reads.
    fn unused(&mut self) -> Vec<PathBuf> {
        let settled = self.settled;
        let mut unused = Vec::new();
        self.retired.retain(|(number, segment)| {
            let used = *number >= settled || Arc::strong_count(segment) > 1;
            if !used {
                unused.push(segment.path.clone());
            }
            used
        });
        unused
    }
}

impl GroupState {
    /// What this replica can say; nothing is clean while something is lacking.
    pub(crate) fn cleanness(&self) -> Cleanness {
        let lacking = self.is_short() || self.receiving || self.has_damage();
        Cleanness {
            clean: if lacking {
                Offset(0)
            } else {
                self.rewrites.settled_clean
            },
            arrivals: self.rewrites.arrivals,
        }
    }

    pub(crate) fn has_damage(&self) -> bool {
        let mut links = self.segments.links.iter();
        links.any(|link| link.segment.is_damaged())
    }
}

impl Group {
    /// A checkpoint that says so is durable.
    pub(crate) fn rewrites_saved(self: &Arc<Self>, mark: Mark) {
        self.state.lock().rewrites.saved(mark);
        self.delete_retired();
    }

    /// Has the files deleted that nobody needs.
    pub(crate) fn delete_retired(self: &Arc<Self>) {
        let unused = self.state.lock().rewrites.unused();
        if !unused.is_empty() {
            let task = FillTask::Drop(Arc::clone(self), unused);
            self.shared.send_fill(self.id, task);
        }
    }
}
