//! A data partition's state as the Raft layer drives it.

use std::sync::Arc;

use bytes::Bytes;
use trilog_raft::{Committed, View, ViewError};
use trilog_storage::kv::WriteBatch;

use super::ViewKind;
use super::partition_state::{PartitionState, SharedState};

/// Replays committed entries into the state it shares with the partition's admission.
#[derive(Debug, Default)]
pub struct PartitionView {
    state: SharedState,
}

impl PartitionView {
    /// An empty data partition's view, and the state it will keep.
    #[must_use]
    pub fn new() -> (Self, SharedState) {
        Self::of(ViewKind::Records)
    }

    /// An empty partition's view of this kind, and the state it will keep.
    #[must_use]
    pub fn of(kind: ViewKind) -> (Self, SharedState) {
        let state = SharedState::new(PartitionState::of(kind).into());
        (
            Self {
                state: Arc::clone(&state),
            },
            state,
        )
    }
}

impl View for PartitionView {
    fn apply(&mut self, entry: &Committed<'_>, _: &mut WriteBatch) -> Bytes {
        let mut state = self.state.lock();
        if let Err(error) = state.replay(entry.header, entry.records, entry.command) {
            // Admission and the feature gate keep such entries out of the log. A replica that
            // skipped one would drift from the others in silence; one that stops is noticed.
            panic!(
                "group {} entry {}: {error}",
                entry.header.group,
                entry.header.id()
            );
        }
        Bytes::new()
    }

    fn snapshot(&self) -> Bytes {
        self.state.lock().snapshot().into()
    }

    fn restore(&mut self, state: &[u8], _: &mut WriteBatch) -> Result<(), ViewError> {
        let restored = PartitionState::restore(state)
            .map_err(|error| ViewError::Unreadable(error.to_string()))?;
        let mut state = self.state.lock();
        if restored.kind() != state.kind() {
            let text = "it is of another kind of partition".to_owned();
            return Err(ViewError::Unreadable(text));
        }
        *state = restored;
        Ok(())
    }

    fn hash(&self) -> u64 {
        self.state.lock().hash()
    }
}
