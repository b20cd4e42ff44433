//! The partitions this node holds replicas of, by Raft group.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use trilog_model::GroupId;

use super::Partition;

/// A shared table; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Partitions {
    by_group: Arc<RwLock<BTreeMap<GroupId, Partition>>>,
}

impl Partitions {
    #[must_use]
    pub fn get(&self, group: GroupId) -> Option<Partition> {
        self.by_group.read().get(&group).cloned()
    }

    pub fn insert(&self, group: GroupId, partition: Partition) {
        self.by_group.write().insert(group, partition);
    }

    pub fn remove(&self, group: GroupId) -> Option<Partition> {
        self.by_group.write().remove(&group)
    }

    /// All of them, in the order of their groups.
    #[must_use]
    pub fn all(&self) -> Vec<(GroupId, Partition)> {
        let by_group = self.by_group.read();
        by_group
            .iter()
            .map(|(group, partition)| (*group, partition.clone()))
            .collect()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.by_group.read().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_group.read().is_empty()
    }
}
