//! Producer ids, handed out from a block that the controller gave to this node alone.

use std::ops::Range;

use parking_lot::Mutex;
use trilog_raft::controller::Reply;
use trilog_raft::controller::commands::{AllocateProducerIds, Command};

use super::{Cluster, ProposeError};

/// What is left of this node's block. A restart forgets it: ids are plenty, and never reused.
#[derive(Debug, Default)]
pub(super) struct ProducerIds(Mutex<Range<u64>>);

impl ProducerIds {
    pub(super) async fn next(&self, cluster: &Cluster) -> Result<i64, ProposeError> {
        if let Some(id) = self.0.lock().next() {
            return Ok(id.cast_signed());
        }
        let command = Command::AllocateProducerIds(AllocateProducerIds {
            node: cluster.node().get(),
        });
        let Reply::ProducerIds { first, count } = cluster.propose(&command).await? else {
            return Err(ProposeError::Unknown);
        };
        // Two callers may each have got a block: the later one's rest is kept, both are theirs.
        *self.0.lock() = first + 1..first + count;
        Ok(first.cast_signed())
    }
}
