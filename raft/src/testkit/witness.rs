//! The view of simulated groups: a [`Tally`] that reports every entry it folds.

use bytes::{Buf, Bytes};
use trilog_model::NodeId;
use trilog_storage::kv::WriteBatch;

use super::{Checks, Tally};
use crate::view::{Committed, View, ViewError};

/// Folds like a [`Tally`] and has each entry checked against the other replicas'.
#[derive(Clone, Debug)]
pub struct Witness {
    pub tally: Tally,
    node: NodeId,
    checks: Checks,
}

impl Witness {
    #[must_use]
    pub fn new(node: NodeId, checks: Checks) -> Self {
        Self {
            tally: Tally::default(),
            node,
            checks,
        }
    }
}

impl View for Witness {
    fn apply(&mut self, entry: &Committed<'_>, batch: &mut WriteBatch) -> Bytes {
        let command = (&entry.command[..]).try_get_u64_le().unwrap_or_default();
        self.checks.applied(self.node, entry, command);
        self.tally.apply(entry, batch)
    }

    fn snapshot(&self) -> Bytes {
        self.tally.snapshot()
    }

    fn restore(&mut self, state: &[u8], batch: &mut WriteBatch) -> Result<(), ViewError> {
        self.tally.restore(state, batch)
    }

    fn hash(&self) -> u64 {
        self.tally.hash()
    }
}
