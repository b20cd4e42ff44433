//! openraft's own storage suite over the real store on a simulated disk.

use std::fmt::Debug;
use std::io;
use std::ops::{RangeBounds, RangeInclusive};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::{OptionalSend, StorageError};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use trilog_model::{EntryId, GroupId, LogIndex, NodeId, Offset, ReplicaId, Timestamp};
use trilog_storage::env::Entropy;
use trilog_storage::io::sim::{self, SimConfig, SimDisk};
use trilog_storage::kv::Kv;
use trilog_storage::log::{GroupLog, LogStart, StoreConfig};
use trilog_storage::store::Store;

use crate::group::log_store::{LogStore, PlannedStart, RepairPatience};
use crate::group::state_machine::{Starts, StateMachine, TrimTarget};
use crate::group::{Status, open};
use crate::testkit::{SimClock, Tally};
use crate::types::{Entry, LogId, RaftVote, TypeConfig, entry_id};

/// The suite's tests use the log in ways consensus never does: they start it in the middle and
/// purge what no state machine ever saw. This makes the log starts such calls stand for.
#[derive(Clone, Debug)]
struct SuiteLog {
    inner: LogStore,
    log: GroupLog,
    planned: PlannedStart,
}

impl SuiteLog {
    fn start_after(&self, purged: EntryId) -> LogStart {
        LogStart {
            purged,
            next_offset: self.log.state().next_offset,
            next_time: Timestamp(0),
            data_start: self.log.state().data_start,
            meta: bytes::Bytes::new(),
        }
    }
}

impl RaftLogReader<TypeConfig> for SuiteLog {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        self.inner.try_get_log_entries(range).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        self.inner.read_vote().await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        self.inner.limited_get_log_entries(start, end).await
    }

    async fn get_key_log_ids(&mut self, range: RangeInclusive<LogId>) -> io::Result<Vec<LogId>> {
        self.inner.get_key_log_ids(range).await
    }
}

impl RaftLogStorage<TypeConfig> for SuiteLog {
    type LogReader = LogStore;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        self.inner.get_log_state().await
    }

    async fn get_log_reader(&mut self) -> LogStore {
        self.inner.get_log_reader().await
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        self.inner.save_vote(vote).await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        self.inner.save_committed(committed).await
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        self.inner.read_committed().await
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries: Vec<Entry> = entries.into_iter().collect();
        if let Some(first) = entries.first().map(Entry::entry_id)
            && self.log.state().last.is_none()
            && let Some(before) = first.index.get().checked_sub(1)
        {
            let start = self.start_after(EntryId::new(0, before));
            self.log
                .set_log_start(start)
                .await
                .map_err(io::Error::other)?;
        }
        self.inner.append(entries, callback).await
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        self.inner.truncate_after(last).await
    }

    async fn purge(&mut self, id: LogId) -> io::Result<()> {
        self.planned.lock().add(self.start_after(entry_id(&id)));
        self.inner.purge(id).await
    }
}

struct Builder {
    built: AtomicU64,
}

impl StoreBuilder<TypeConfig, SuiteLog, StateMachine, (Store, SimDisk)> for Builder {
    async fn build(
        &self,
    ) -> Result<((Store, SimDisk), SuiteLog, StateMachine), StorageError<TypeConfig>> {
        let seed = self.built.fetch_add(1, Ordering::Relaxed);
        let disk = SimDisk::with_config(seed, SimConfig::instant());
        let config = StoreConfig::dev(PathBuf::from("/data"));
        let clock = Arc::new(SimClock::default());
        let opened = Store::open(config, disk.backend(), clock, Entropy::from_seed(seed)).await;
        let (store, _) = opened.unwrap();
        let replica = ReplicaId::new(NodeId(1), 1);
        let log = store.create_group(GroupId(9), replica).await.unwrap();
        let status = Status::new(GroupId(9), replica, None, Arc::default());
        let starts = Starts::default();
        // The suite expects a snapshot of everything that is applied.
        *starts.wanted.lock() = Some(TrimTarget {
            purged: LogIndex(u64::MAX),
            data_start: Offset(0),
        });
        let view = Arc::new(Mutex::new(Tally::default()));
        let machine = open::open(
            log.clone(),
            Kv::memory(&[crate::KV_FAMILY]),
            Arc::clone(&status),
            view,
            starts.clone(),
        );
        let machine = machine.await.unwrap();
        let patience = RepairPatience::new(CancellationToken::new());
        let inner = LogStore::new(
            log.clone(),
            status,
            Arc::clone(&starts.planned),
            1 << 20,
            patience,
        );
        let suite = SuiteLog {
            inner,
            log,
            planned: starts.planned,
        };
        Ok(((store, disk), suite, machine))
    }
}

#[test]
fn the_storage_suite_of_openraft_passes() {
    sim::block_on(async {
        let builder = Builder {
            built: AtomicU64::new(1),
        };
        Suite::test_all(builder).await.unwrap();
    });
}

#[test]
fn key_log_ids_come_from_term_starts_alone() {
    sim::block_on(async {
        let builder = Builder {
            built: AtomicU64::new(100),
        };
        let (_guard, mut log, _) = builder.build().await.unwrap();
        for (term, index) in [(0, 0), (1, 1), (1, 2), (4, 3)] {
            let entry = openraft::testing::blank_ent::<TypeConfig>(term, 1, index);
            log.append([entry], IOFlushed::noop()).await.unwrap();
        }
        let first = crate::types::log_id(EntryId::new(1, 1));
        let last = crate::types::log_id(EntryId::new(4, 3));
        let ids = log.get_key_log_ids(first..=last).await.unwrap();
        let ids: Vec<EntryId> = ids.iter().map(entry_id).collect();
        assert_eq!(ids, [EntryId::new(1, 2), EntryId::new(4, 3)]);
        assert_eq!(log.log.state().last.map(|id| id.index), Some(LogIndex(3)));
    });
}
