//! What replicas of a partition hold: this one on its disk, the others as their leader knows it.

use trilog_model::{LogIndex, NodeId, Offset};

use super::Partition;

impl Partition {
    /// Bytes it takes here: of its segments, and of what is not in one yet.
    #[must_use]
    pub fn stored_bytes(&self) -> u64 {
        self.files().0 + self.inner.group.log().unfilled_bytes()
    }

    /// Where the log of this replica ends, committed or not.
    #[must_use]
    pub fn log_end(&self) -> Offset {
        self.inner.group.log().state().next_offset
    }

    /// Whether the replica on a node is known to hold all records before `offset`. Only the leader
    /// knows, and nobody is asked: a group that rests goes on resting.
    #[must_use]
    pub fn is_held_by(&self, node: NodeId, offset: Offset) -> bool {
        let group = &self.inner.group;
        let found = group.matched().into_iter();
        let matched = found
            .filter(|(replica, _)| replica.node() == node)
            .filter_map(|(_, matched)| matched)
            .max();
        let Some(matched) = matched else {
            return false;
        };
        if group.high_watermark().borrow().applied <= Some(matched) {
            return true;
        }
        let next = LogIndex(matched.get() + 1);
        let last = group.log().headers(matched, next);
        let last = last.and_then(|headers| headers.last().copied());
        last.is_some_and(|last| last.next_offset() >= offset)
    }
}
