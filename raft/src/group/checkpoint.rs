//! What this layer itself keeps in the key-value store, per group: the memberships since the log
//! start and, for views that live in memory, their checkpoint. Written only in one batch with the
//! identity of the entry it stands for.

use std::collections::BTreeSet;

use bytes::Bytes;
use trilog_model::{GroupId, LogIndex, ReplicaId};
use trilog_storage::kv::{Family, Kv, WriteBatch};

use super::memberships::Memberships;
use super::open::OpenError;

/// The family of this layer's own keys; whoever opens the store names it.
pub const KV_FAMILY: Family = Family("raft");

const MEMBERSHIPS: &[u8] = b"memberships";
const STATE: &[u8] = b"view";

/// Entries folded before the next checkpoint is worth its cost.
const ENTRIES_MIN: u64 = 4_096;
/// What folding an entry again costs beside its command, in bytes of checkpoint written.
const ENTRY_COST: u64 = 64;
/// How many times its own size may be folded again after a restart.
const REPLAY_FACTOR: u64 = 4;

/// When a group's next checkpoint is due.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    group: GroupId,
    entries: u64,
    bytes: u64,
    last_len: u64,
}

impl Checkpoints {
    pub(crate) fn new(group: GroupId) -> Self {
        Self {
            group,
            entries: 0,
            bytes: 0,
            last_len: 0,
        }
    }

    /// An entry with a command of this length was folded.
    pub(crate) fn folded(&mut self, command: usize) {
        self.entries += 1;
        self.bytes += command as u64;
    }

    pub(crate) fn is_due(&self) -> bool {
        self.entries >= ENTRIES_MIN
            && self.bytes + self.entries * ENTRY_COST >= self.last_len * REPLAY_FACTOR
    }

    pub(crate) fn put_state(&mut self, batch: &mut WriteBatch, state: &Bytes) {
        self.entries = 0;
        self.bytes = 0;
        self.last_len = state.len() as u64;
        batch.put(KV_FAMILY, STATE, state.clone());
    }

    /// The memberships as of what the store has applied; none in a store that has nothing.
    pub(crate) fn memberships(&self, kv: &Kv) -> Result<Memberships, OpenError> {
        let stored = kv.get(self.group, KV_FAMILY, MEMBERSHIPS)?;
        match stored {
            None => Ok(Memberships::default()),
            Some(bytes) => Ok(Memberships::decode(bytes)?),
        }
    }

    pub(crate) fn state(&self, kv: &Kv) -> Result<Option<Bytes>, OpenError> {
        Ok(kv.get(self.group, KV_FAMILY, STATE)?)
    }
}

/// The members of a group as of its last checkpoint, for when it is not open; none if that cannot
/// be read.
pub(crate) fn remembered_members(kv: &Kv, group: GroupId) -> BTreeSet<ReplicaId> {
    let memberships = Checkpoints::new(group).memberships(kv).unwrap_or_default();
    let newest = memberships.at(Some(LogIndex(u64::MAX)));
    let members = newest.nodes().map(|(id, ())| ReplicaId(*id));
    members.collect()
}

/// Memberships change rarely and are written only then, or with a checkpoint.
pub(crate) fn put_memberships(batch: &mut WriteBatch, memberships: &Memberships) {
    batch.put(KV_FAMILY, MEMBERSHIPS, memberships.encode());
}
