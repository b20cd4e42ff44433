//! The engine in memory: ordered maps, a remembered flush, and a crash that falls back to it.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use trilog_model::GroupId;

use super::batch::{Change, Op};
use super::{Engine, Family, Kv, KvError, stored_key};

/// Shared until written, so that a flush costs nothing.
type Keys = Arc<BTreeMap<Bytes, Bytes>>;
type Families = BTreeMap<Family, Keys>;

#[derive(Debug)]
pub(super) struct MemoryEngine {
    state: Mutex<Flushable>,
}

#[derive(Clone, Debug)]
struct Flushable {
    now: Families,
    flushed: Families,
}

/// A store in memory of which a test holds the power switch.
#[derive(Clone, Debug)]
pub struct MemoryKv {
    engine: Arc<MemoryEngine>,
    kv: Kv,
}

impl MemoryKv {
    #[must_use]
    pub fn new(families: &[Family]) -> Self {
        let names = families.iter().copied().chain([Family::META]);
        let empty: Families = names.map(|family| (family, Keys::default())).collect();
        let (now, flushed) = (empty.clone(), empty);
        Self::open(Flushable { now, flushed })
    }

    /// The store to hand to what is tested.
    #[must_use]
    pub fn kv(&self) -> Kv {
        self.kv.clone()
    }

    /// The store as it is found after a crash: what was flushed, and nothing since. Handles of
    /// the old one go on, unheard.
    #[must_use]
    pub fn crash(&self) -> Self {
        let state = self.engine.state.lock();
        let flushed = state.flushed.clone();
        drop(state);
        Self::open(Flushable {
            now: flushed.clone(),
            flushed,
        })
    }

    /// As [`MemoryKv::crash`], just after a background flush that nobody asked for: everything
    /// written is found. RocksDB may do so at any time.
    #[must_use]
    pub fn crash_after_background_flush(&self) -> Self {
        self.engine.flush();
        self.crash()
    }

    fn open(state: Flushable) -> Self {
        let state = Mutex::new(state);
        let engine = Arc::new(MemoryEngine { state });
        // A store that has been in use has its format on record, and is not asked.
        let opened = Kv::open(Engine::Memory(Arc::clone(&engine)), true);
        // Only what this engine wrote itself can be in it, so the books are in order.
        let kv = opened.unwrap_or_else(|error| unreachable!("in memory: {error}"));
        Self { engine, kv }
    }
}

impl MemoryEngine {
    pub(super) fn get(&self, family: Family, key: &[u8]) -> Result<Option<Bytes>, KvError> {
        let state = self.state.lock();
        let keys = state.now.get(&family);
        let keys = keys.ok_or(KvError::UnknownFamily(family))?;
        Ok(keys.get(key).cloned())
    }

    pub(super) fn scan(
        &self,
        family: Family,
        prefix: &[u8],
        from: &[u8],
        limit: usize,
    ) -> Result<Vec<(Bytes, Bytes)>, KvError> {
        let state = self.state.lock();
        let keys = state.now.get(&family);
        let keys = keys.ok_or(KvError::UnknownFamily(family))?;
        let start = Bound::Included(from.max(prefix));
        let found = keys.range::<[u8], _>((start, Bound::Unbounded));
        let found = found.take_while(|(key, _)| key.starts_with(prefix));
        let cloned = found.map(|(key, value)| (key.clone(), value.clone()));
        Ok(cloned.take(limit).collect())
    }

    pub(super) fn apply(
        &self,
        group: GroupId,
        changes: Vec<Change>,
        record: &Op,
    ) -> Result<(), KvError> {
        let mut state = self.state.lock();
        let unknown = changes.iter().find_map(|change| match change {
            Change::One(family, _) if !state.now.contains_key(family) => Some(*family),
            Change::One(..) | Change::Clear => None,
        });
        if let Some(family) = unknown {
            return Err(KvError::UnknownFamily(family));
        }
        for change in changes {
            match change {
                Change::One(family, op) => {
                    let key = Bytes::from(stored_key(group, &op.key));
                    apply_one(&mut state.now, family, key, op.value);
                }
                Change::Clear => clear(&mut state.now, group),
            }
        }
        let Op { key, value } = record.clone();
        apply_one(&mut state.now, Family::META, key, value);
        Ok(())
    }

    pub(super) fn flush(&self) {
        let mut state = self.state.lock();
        state.flushed = state.now.clone();
    }
}

fn apply_one(families: &mut Families, family: Family, key: Bytes, value: Option<Bytes>) {
    let keys = Arc::make_mut(families.entry(family).or_default());
    match value {
        Some(value) => keys.insert(key, value),
        None => keys.remove(&key),
    };
}

fn clear(families: &mut Families, group: GroupId) {
    let prefix = stored_key(group, &[]);
    for (family, keys) in families {
        let theirs = keys
            .range::<[u8], _>((Bound::Included(&prefix[..]), Bound::Unbounded))
            .next();
        if *family != Family::META && theirs.is_some_and(|(key, _)| key.starts_with(&prefix)) {
            Arc::make_mut(keys).retain(|key, _| !key.starts_with(&prefix));
        }
    }
}
