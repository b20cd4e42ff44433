//! The store of one data directory: its write-ahead log and the logs of its groups.
//!
//! ```text
//! checkpoint        what recovery starts from
//! wal/NN.wal        the write-ahead log, all groups together
//! p/<group>@<replica>/<base index>.seg, .idx
//!                   committed entries of one group
//! p/<group>@<replica>/<base index>.damaged-N, .copy
//!                   a damaged segment set aside, one on its way from another replica
//! *.damaged-N       what was set aside when the directory turned out to be damaged
//! ```

mod open;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};
use trilog_model::{GroupId, ReplicaId};

use crate::fatal::Fatal;
use crate::histogram::Durations;
use crate::io::JobHandle;
use crate::log::{
    FillTask, Group, GroupLog, GroupState, KeeperTask, Pressure, Shared, StoreError, Tip,
};
use crate::wal::WalStatus;

pub use open::OpenReport;

/// A data directory, open. Clones share it.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    keeper: mpsc::UnboundedSender<KeeperTask>,
    /// Dropping it ends the scrub.
    scrub: Mutex<Option<oneshot::Sender<()>>>,
    /// Dropping it ends compaction.
    clean: Mutex<Option<oneshot::Sender<()>>>,
    jobs: Mutex<Vec<JobHandle>>,
}

/// Counters of a store.
#[derive(Clone, Debug, Default)]
pub struct StoreStats {
    pub groups: usize,
    /// Bytes of entries in no segment yet.
    pub pinned_bytes: u64,
    /// The most there may be of them.
    pub pinned_limit: u64,
    /// Bytes of entries kept in memory for readers.
    pub cached_bytes: u64,
    /// Reads served from memory.
    pub cache_hits: u64,
    /// Reads that went to files.
    pub cache_misses: u64,
    /// How long each append took to be durable here.
    pub appends: Durations,
    /// Segments found damaged and not replaced yet.
    pub quarantined: usize,
    /// Groups of which something between the data start and the end is missing.
    pub short_groups: usize,
    /// Bytes the background scrub has read since the start.
    pub scrubbed_bytes: u64,
    /// Bytes that compaction has read and written since the start.
    pub compacted_bytes: u64,
    /// The write-ahead log's own counters; none once it is closed.
    pub wal: Option<WalStatus>,
}

impl Store {
    /// Every group of the directory, in order.
    pub fn groups(&self) -> Vec<GroupId> {
        self.0.shared.groups.lock().keys().copied().collect()
    }

    pub fn group(&self, group: GroupId) -> Option<GroupLog> {
        let found = self.0.shared.groups.lock().get(&group).cloned();
        found.map(GroupLog)
    }

    /// Creates a group; durable on return. The same group and replica again is the same log.
    pub async fn create_group(
        &self,
        group: GroupId,
        replica: ReplicaId,
    ) -> Result<GroupLog, StoreError> {
        if self.0.shared.barred.contains(&(group, replica)) {
            return Err(StoreError::Barred { group, replica });
        }
        let log = {
            let shared = &self.0.shared;
            let mut groups = shared.groups.lock();
            let log = groups.entry(group).or_insert_with(|| {
                Arc::new(Group {
                    id: group,
                    replica,
                    dir: shared.config.group_dir(group, replica),
                    shared: Arc::clone(shared),
                    state: Mutex::new(GroupState::new(Tip::default())),
                })
            });
            Arc::clone(log)
        };
        if log.replica != replica {
            return Err(StoreError::GroupExists {
                group,
                replica: log.replica,
            });
        }
        log.create().await?;
        Ok(GroupLog(log))
    }

    /// Removes a group and its data; durable before anything is deleted.
    pub async fn remove_group(&self, group: GroupId) -> Result<(), StoreError> {
        let found = self.0.shared.groups.lock().get(&group).cloned();
        let log = found.ok_or(StoreError::NoSuchGroup(group))?;
        log.remove().await?;
        self.0.shared.groups.lock().remove(&group);
        Ok(())
    }

    /// Set once the store failed for good: the process must exit.
    pub fn fatal(&self) -> watch::Receiver<Option<Fatal>> {
        self.0.shared.watch_fatal()
    }

    /// Why produce should be refused and replication credit withheld, if it should.
    pub fn pressure(&self) -> watch::Receiver<Pressure> {
        self.0.shared.budget.watch()
    }

    /// Changes when some log lacks what another replica may hold: see [`GroupLog::gaps`].
    pub fn wants(&self) -> watch::Receiver<u64> {
        self.0.shared.watch_wants()
    }

    pub fn stats(&self) -> StoreStats {
        let shared = &self.0.shared;
        let groups: Vec<_> = shared
            .groups
            .lock()
            .values()
            .cloned()
            .map(GroupLog)
            .collect();
        let gaps = groups.iter().map(GroupLog::gaps);
        let (mut quarantined, mut short_groups) = (0, 0);
        for gaps in gaps {
            let damaged = gaps.iter().filter(|gap| gap.first.is_some()).count();
            quarantined += damaged;
            short_groups += usize::from(damaged < gaps.len());
        }
        StoreStats {
            groups: groups.len(),
            quarantined,
            short_groups,
            compacted_bytes: shared.compacted.load(Ordering::Relaxed),
            scrubbed_bytes: shared.scrubbed.load(Ordering::Relaxed),
            pinned_bytes: shared.budget.pinned(),
            pinned_limit: shared.budget.pinned_limit(),
            cached_bytes: shared.budget.cached(),
            cache_hits: shared.cache_hits.get(),
            cache_misses: shared.cache_misses.get(),
            appends: shared.appends.snapshot(),
            wal: shared.wal().ok().map(|wal| wal.wal().status()),
        }
    }

    /// Moves everything committed into segments and makes a checkpoint. While a truncation is not
    /// durable none is made; the keeper makes it up with its next look.
    pub async fn checkpoint(&self) -> Result<(), StoreError> {
        let (done, wait) = oneshot::channel();
        let asked = self.0.keeper.send(KeeperTask::Checkpoint(done));
        asked.map_err(|_| StoreError::Closed)?;
        wait.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Drains what is under way, makes a checkpoint and stops all workers. Logs of this store
    /// refuse everything from then on.
    pub async fn close(self) -> Result<(), StoreError> {
        let shared = &self.0.shared;
        if let Some(wal) = shared.take_wal() {
            wal.close().await;
        }
        let outcome = match shared.failure() {
            Some(failure) => Err(failure),
            None => self.checkpoint().await,
        };
        self.0.stop();
        shared.reads.stop().await;
        shared.stage.stop().await;
        let jobs = std::mem::take(&mut *self.0.jobs.lock());
        for job in jobs {
            job.join().await;
        }
        shared.groups.lock().clear();
        outcome
    }
}

impl Inner {
    fn stop(&self) {
        // Whoever is gone already needs no telling.
        let _ = self.keeper.send(KeeperTask::Stop);
        drop(self.scrub.lock().take());
        drop(self.clean.lock().take());
        for worker in self.shared.fill_workers() {
            let _ = worker.send(FillTask::Stop);
        }
    }
}

impl Drop for Inner {
    /// An abandoned store leaves no threads behind; what is not in a checkpoint is in the
    /// write-ahead log.
    fn drop(&mut self) {
        self.stop();
        self.shared.reads.stop_unattended();
        self.shared.stage.stop_unattended();
        self.shared.take_wal();
        self.shared.groups.lock().clear();
    }
}

#[cfg(test)]
mod tests;
