//! Ordered key-value state of views, group by group: never payloads, and never the truth.
//!
//! The log is the truth, so nothing here has a write-ahead log of its own. Each batch of a
//! group's changes carries the last entry they follow from, and survives a crash with it or not
//! at all; a flush makes everything so far durable at once. A group replays its log from
//! [`Kv::flushed`] and must not purge beyond it. Two engines with one meaning: RocksDB (cargo
//! feature `rocksdb`) and a tree in memory for simulation and tests.
//!
//! ```text
//! family "default":  "format"            -> version
//!                    "applied" group u64 -> term u64, index u64
//! other families:    group u64 ++ key    -> value           (integers big-endian)
//! ```

mod batch;
mod memory;
#[cfg(feature = "rocksdb")]
mod rocks;
#[cfg(feature = "rocksdb")]
mod room;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
#[cfg(feature = "rocksdb")]
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, BufMut, Bytes};
use parking_lot::Mutex;
use thiserror::Error;
use trilog_model::{EntryId, GroupId, LogIndex, Term};

pub use batch::WriteBatch;
pub use memory::MemoryKv;

use batch::{Change, Op};
use memory::MemoryEngine;

/// The version this build writes, and the newest it reads.
const FORMAT: u8 = 1;
const FORMAT_KEY: &[u8] = b"format";
const APPLIED_PREFIX: &[u8] = b"applied";

/// A named set of keys, with an order and a life of its own: one kind of view state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Family(pub &'static str);

impl Family {
    /// Where the store keeps its own books; not for callers.
    const META: Self = Self("default");
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// How much memory the RocksDB engine takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvConfig {
    /// Blocks, indexes and filters of all families together.
    pub cache_bytes: usize,
    /// Unflushed changes of all families together, before a background flush begins.
    pub write_buffer_bytes: usize,
    /// Open files.
    pub files_max: u16,
}

impl Default for KvConfig {
    fn default() -> Self {
        Self {
            cache_bytes: 32 << 20,
            write_buffer_bytes: 32 << 20,
            files_max: 256,
        }
    }
}

#[derive(Debug, Error)]
pub enum KvError {
    #[error("format version {found} is newer than this build reads ({FORMAT})")]
    Version { found: u8 },
    #[error("the store has data but no format version: not one of ours, or damaged")]
    NotOurs,
    #[error("family {0} was not named when the store was opened")]
    UnknownFamily(Family),
    #[error("group {group} would go back from entry {have} to {given}")]
    Backwards {
        group: GroupId,
        have: EntryId,
        given: EntryId,
    },
    #[error("the record of group {group:?} is damaged")]
    Damaged { group: Option<GroupId> },
    /// The engine failed; its state is unknown until it is opened again.
    #[error("key-value engine: {0}")]
    Engine(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// A key-value store. Clones are the same store.
#[derive(Clone, Debug)]
pub struct Kv {
    engine: Engine,
    groups: Arc<Mutex<BTreeMap<GroupId, Marks>>>,
}

#[derive(Clone, Debug)]
enum Engine {
    Memory(Arc<MemoryEngine>),
    #[cfg(feature = "rocksdb")]
    Rocks(Arc<rocks::RocksEngine>),
}

/// How far a group has come.
#[derive(Clone, Copy, Debug)]
struct Marks {
    applied: EntryId,
    /// What survives a crash for certain.
    flushed: Option<EntryId>,
}

impl Kv {
    /// Opens the RocksDB store in `dir`, making it if there is none. `families` are those this
    /// build uses; others found there are kept. One that was open before opens on a full disk, too.
    #[cfg(feature = "rocksdb")]
    pub async fn open_rocks(
        dir: &Path,
        families: &[Family],
        config: KvConfig,
    ) -> Result<Self, KvError> {
        let (dir, families) = (dir.to_owned(), families.to_vec());
        let open = move || {
            let engine = match rocks::RocksEngine::open(&dir, &families, config) {
                Err(error) if room::was_lacking(&error) && room::give_up(&dir) => {
                    tracing::warn!(
                        "the disk is full: the view state is opened with the room kept for it"
                    );
                    rocks::RocksEngine::open(&dir, &families, config)?
                }
                opened => opened?,
            };
            room::keep(&dir);
            let blank = engine.is_empty()?;
            Self::open(Engine::Rocks(Arc::new(engine)), blank)
        };
        tokio::task::spawn_blocking(open).await.map_err(engine)?
    }

    /// A store in memory; see [`MemoryKv`] for one that can crash.
    #[must_use]
    pub fn memory(families: &[Family]) -> Self {
        MemoryKv::new(families).kv()
    }

    /// `blank` tells that the engine holds nothing at all.
    fn open(engine: Engine, blank: bool) -> Result<Self, KvError> {
        match engine.get(Family::META, FORMAT_KEY)?.as_deref() {
            Some([version]) if *version <= FORMAT => {}
            Some([version, ..]) => return Err(KvError::Version { found: *version }),
            Some([]) => return Err(KvError::Damaged { group: None }),
            None if blank => engine.write_meta(FORMAT_KEY, &[FORMAT])?,
            None => return Err(KvError::NotOurs),
        }
        let groups = Arc::new(Mutex::new(recorded_groups(&engine)?));
        Ok(Self { engine, groups })
    }

    /// Applies a group's changes together with `applied`, the last entry they follow from:
    /// readable on return, and after a crash all there or all gone.
    ///
    /// Touches memory only, but for the rare wait while a full write buffer is flushed.
    pub fn write(
        &self,
        group: GroupId,
        applied: EntryId,
        batch: WriteBatch,
    ) -> Result<(), KvError> {
        if let Some(have) = self.applied(group)
            && applied.index < have.index
        {
            return Err(KvError::Backwards {
                group,
                have,
                given: applied,
            });
        }
        let record = Op::put(applied_key(group), encode(applied));
        self.engine.apply(group, batch.changes, &record)?;
        let mut groups = self.groups.lock();
        let fresh = Marks {
            applied,
            flushed: None,
        };
        groups.entry(group).or_insert(fresh).applied = applied;
        Ok(())
    }

    /// The value of a key of the group.
    pub fn get(
        &self,
        group: GroupId,
        family: Family,
        key: &[u8],
    ) -> Result<Option<Bytes>, KvError> {
        self.engine.get(family, &stored_key(group, key))
    }

    /// At most `limit` keys of the group that begin with `prefix`, in order, with their values;
    /// of those at or after `from` where it is given (a whole key, prefix included).
    pub fn scan(
        &self,
        group: GroupId,
        family: Family,
        prefix: &[u8],
        from: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, KvError> {
        let prefix = stored_key(group, prefix);
        let from = from.map_or_else(|| prefix.clone(), |from| stored_key(group, from));
        let mut found = self.engine.scan(family, &prefix, &from, limit)?;
        for (key, _) in &mut found {
            key.advance(size_of::<u64>());
        }
        Ok(found)
    }

    /// Makes everything written so far durable, in all families and groups at once.
    pub async fn flush(&self) -> Result<(), KvError> {
        let before: Vec<(GroupId, EntryId)> = {
            let groups = self.groups.lock();
            groups
                .iter()
                .map(|(group, m)| (*group, m.applied))
                .collect()
        };
        self.engine.flush().await?;
        let mut groups = self.groups.lock();
        for (group, applied) in before {
            // A group may have been removed meanwhile.
            if let Some(marks) = groups.get_mut(&group) {
                marks.flushed = marks.flushed.max(Some(applied));
            }
        }
        Ok(())
    }

    /// Deletes all there is of a group. As durable as any other write.
    pub fn remove_group(&self, group: GroupId) -> Result<(), KvError> {
        let forget = Op::delete(applied_key(group));
        self.engine.apply(group, vec![Change::Clear], &forget)?;
        self.groups.lock().remove(&group);
        Ok(())
    }

    /// The groups that have state here, in order.
    #[must_use]
    pub fn groups(&self) -> Vec<GroupId> {
        self.groups.lock().keys().copied().collect()
    }

    /// The last entry whose changes are here.
    #[must_use]
    pub fn applied(&self, group: GroupId) -> Option<EntryId> {
        self.groups.lock().get(&group).map(|marks| marks.applied)
    }

    /// The last entry whose changes survive a crash for certain: the log is needed beyond it.
    #[must_use]
    pub fn flushed(&self, group: GroupId) -> Option<EntryId> {
        self.groups.lock().get(&group)?.flushed
    }

    /// Flushes and, if this is the last handle, closes.
    pub async fn close(self) -> Result<(), KvError> {
        self.flush().await?;
        match self.engine {
            Engine::Memory(_) => Ok(()),
            #[cfg(feature = "rocksdb")]
            Engine::Rocks(rocks) => tokio::task::spawn_blocking(move || drop(rocks))
                .await
                .map_err(engine),
        }
    }
}

impl Engine {
    fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        match self {
            Self::Memory(memory) => memory.get(family, key),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(rocks) => rocks.get(family, key),
        }
    }

    fn scan(
        &self,
        family: Family,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, KvError> {
        match self {
            Self::Memory(memory) => memory.scan(family, prefix, from, limit),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(rocks) => rocks.scan(family, prefix, from, limit),
        }
    }

    /// All of it or nothing; `record` goes to the store's own books.
    fn apply(&self, group: GroupId, changes: Vec<Change>, record: &Op) -> Result<(), KvError> {
        match self {
            Self::Memory(memory) => memory.apply(group, changes, record),
            #[cfg(feature = "rocksdb")]
            Self::Rocks(rocks) => rocks.apply(group, &changes, record),
        }
    }

    fn write_meta(&self, key: &'static [u8], value: &[u8]) -> Result<(), KvError> {
        let record = Op::put(Bytes::from_static(key), Bytes::copy_from_slice(value));
        self.apply(GroupId(0), Vec::new(), &record)
    }

    fn flush(&self) -> impl Future<Output = Result<(), KvError>> + Send + use<> {
        let engine = self.clone();
        async move {
            match engine {
                Self::Memory(memory) => {
                    memory.flush();
                    Ok(())
                }
                #[cfg(feature = "rocksdb")]
                Self::Rocks(rocks) => tokio::task::spawn_blocking(move || rocks.flush())
                    .await
                    .map_err(self::engine)?,
            }
        }
    }
}

/// What the store's own books say after opening: everything found is durable.
fn recorded_groups(engine: &Engine) -> Result<BTreeMap<GroupId, Marks>, KvError> {
    let records = engine.scan(Family::META, APPLIED_PREFIX, APPLIED_PREFIX, usize::MAX)?;
    let mut groups = BTreeMap::new();
    for (key, value) in records {
        let damaged = KvError::Damaged { group: None };
        let mut number = key.get(APPLIED_PREFIX.len()..).ok_or(damaged)?;
        let group = number.try_get_u64().map(GroupId);
        let group = group.map_err(|_| KvError::Damaged { group: None })?;
        let applied = decode(&value).ok_or(KvError::Damaged { group: Some(group) })?;
        let flushed = Some(applied);
        groups.insert(group, Marks { applied, flushed });
    }
    Ok(groups)
}

fn applied_key(group: GroupId) -> Bytes {
    [APPLIED_PREFIX, &group.get().to_be_bytes()].concat().into()
}

fn stored_key(group: GroupId, key: &[u8]) -> Vec<u8> {
    [&group.get().to_be_bytes(), key].concat()
}

fn encode(id: EntryId) -> Bytes {
    let mut out = Vec::with_capacity(2 * size_of::<u64>());
    out.put_u64(id.term.get());
    out.put_u64(id.index.get());
    out.into()
}

fn decode(mut value: &[u8]) -> Option<EntryId> {
    let term = Term(value.try_get_u64().ok()?);
    let index = LogIndex(value.try_get_u64().ok()?);
    value.is_empty().then_some(EntryId { term, index })
}

#[cfg(feature = "rocksdb")]
fn engine(error: impl std::error::Error + Send + Sync + 'static) -> KvError {
    KvError::Engine(Box::new(error))
}
