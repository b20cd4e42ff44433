//! What a group's entries mean is not known here: a [`View`] folds them.

use bytes::Bytes;
use trilog_model::GroupId;
use trilog_storage::frame::FrameHeader;
use trilog_storage::kv::{Kv, WriteBatch};

/// A committed data entry, as a view sees it.
#[derive(Clone, Copy, Debug)]
pub struct Committed<'a> {
    pub header: &'a FrameHeader,
    /// The record batch, or empty. Its first bytes may be the producer's: the header decides base
    /// offset and leader epoch.
    pub records: &'a Bytes,
    /// The view's command, or empty.
    pub command: &'a Bytes,
}

/// Where a view's state survives a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Home {
    /// In the key-value store, written with every entry by the batch that `apply` fills.
    Kv,
    /// In memory; now and then all of it is written as one checkpoint, and entries after that are
    /// folded again. Such a view leaves the batch empty.
    Checkpoint,
}

/// The fold of one group's committed entries, the same on every replica.
///
/// Pure but for the batch: no clock, no chance, no I/O; whatever it depends on arrives in entries.
pub trait View: Send + 'static {
    /// Folds the next data entry and answers its proposer. What a [`Home::Kv`] view keeps goes
    /// into `batch`, which is written whole, together with the entry's identity.
    fn apply(&mut self, entry: &Committed<'_>, batch: &mut WriteBatch) -> Bytes;

    /// The whole state, for a checkpoint or for a replica that is behind the log start.
    fn snapshot(&self) -> Bytes;

    /// Replaces the state by one that [`View::snapshot`] made. A [`Home::Kv`] view also writes all
    /// of it to `batch`, which has removed what the group had before.
    fn restore(&mut self, state: &[u8], batch: &mut WriteBatch) -> Result<(), ViewError>;

    /// A digest of the state, equal on replicas that folded the same entries.
    fn hash(&self) -> u64;

    /// Where the state lives between restarts.
    fn home(&self) -> Home {
        Home::Checkpoint
    }

    /// Reads the state back after a restart; only called on [`Home::Kv`] views.
    fn load(&mut self, kv: &Kv, group: GroupId) -> Result<(), ViewError> {
        let _ = (kv, group);
        Ok(())
    }
}

/// Why a state cannot be read back.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ViewError {
    /// The replica has to be placed anew.
    #[error("the view's state is unreadable: {0}")]
    Unreadable(String),
    /// It is whole, and a newer build reads it.
    #[error("the view's state is of a newer build: {0}")]
    Newer(String),
}
