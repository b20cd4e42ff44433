//! How far all replicas of a group have cleaned their logs, as one of them can know it.

use std::collections::{BTreeMap, BTreeSet};

use trilog_model::{Offset, ReplicaId};
use trilog_storage::log::Cleanness;

use super::{Group, Replica};
use crate::view::View;

impl<V: View> Group<V> {
    /// How far the logs of all members are clean, for good: below it none of them holds a record
    /// that a later one below it supersedes, and none will copy one from another. Only the leader
    /// can tell, for it knows who the members are; `None` if some member cannot say.
    ///
    /// Everyone is asked twice. Whatever less clean was on its way to one member while the others
    /// were still being asked has come in by the second time, which that member then says, or it
    /// still lacks what it waits for. What is copied after the first round comes from members that
    /// were clean by then.
    pub async fn clean_everywhere(&self) -> Option<Offset> {
        let replica = self.replica_handle();
        let members = replica.members_and_leader().0;
        let first = replica.cleanness_of(&members).await?;
        let second = replica.cleanness_of(&members).await?;
        if replica.members_and_leader().0 != members {
            return None;
        }
        let still = |(member, early): (&ReplicaId, &Cleanness)| {
            let late = second.get(member)?;
            let undisturbed = late.arrivals == early.arrivals;
            undisturbed.then_some(early.clean.min(late.clean))
        };
        let clean: Option<Vec<Offset>> = first.iter().map(still).collect();
        clean?.into_iter().min()
    }
}

impl Replica {
    async fn cleanness_of(
        &self,
        members: &BTreeSet<ReplicaId>,
    ) -> Option<BTreeMap<ReplicaId, Cleanness>> {
        let mut all = BTreeMap::new();
        for member in members {
            let cleanness = if *member == self.status.replica {
                self.log.cleanness()
            } else {
                let held = self.copies.holding(&self.log, *member).await;
                held.ok()??.cleanness?
            };
            all.insert(*member, cleanness);
        }
        Some(all)
    }
}
