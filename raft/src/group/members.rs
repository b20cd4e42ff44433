//! The members of a group, and changing them.

use std::collections::BTreeSet;

use openraft::ChangeMembers;
use openraft::rt::WatchReceiver;
use trilog_model::ReplicaId;

use super::{Group, MembershipError};
use crate::types::LogId;
use crate::view::View;

/// Who belongs to a group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    /// During a change, those of the old and of the new set.
    pub voters: BTreeSet<ReplicaId>,
    pub learners: BTreeSet<ReplicaId>,
    /// This is not the last word: the change that led here is joint, or not yet applied.
    pub changing: bool,
    /// Of a change, the joint step is applied and the final one is in no log yet. Whoever makes a
    /// change makes both; if it is gone, nobody else does.
    pub half_done: bool,
}

impl<V: View> Group<V> {
    /// The members as this replica's log has them. Unless `changing`, they are committed.
    pub fn members(&self) -> Members {
        let metrics = self.replica.raft.metrics();
        let stored = metrics.borrow_watched().membership_config.clone();
        let applied = self.replica.status.high_watermark().borrow().applied;
        let at = stored.log_id().as_ref().map(LogId::index);
        let membership = stored.membership();
        let joint = membership.get_joint_config().len() > 1;
        let applied = at <= applied.map(trilog_model::LogIndex::get);
        Members {
            voters: membership.voter_ids().map(ReplicaId).collect(),
            learners: membership.learner_ids().map(ReplicaId).collect(),
            changing: joint || !applied,
            half_done: joint && applied,
        }
    }

    /// Adds a replica that only follows, and returns once that is committed.
    pub async fn add_learner(&self, learner: ReplicaId) -> Result<(), MembershipError> {
        let _busy = self.replica.rouse().await;
        let added = self.replica.raft.add_learner(learner.0, (), false).await;
        added.map(drop).map_err(MembershipError::from_change)
    }

    /// Changes who votes, by a joint step and a final one. New voters have to be learners
    /// already; of those left out, `demoted` stay as learners and the rest are removed.
    pub async fn change_voters(
        &self,
        to: &BTreeSet<ReplicaId>,
        demoted: &BTreeSet<ReplicaId>,
    ) -> Result<(), MembershipError> {
        let _busy = self.replica.rouse().await;
        let voters = self.voters();
        for joining in to.difference(&voters) {
            self.check_whole(*joining).await?;
        }
        let removed: BTreeSet<ReplicaId> = voters
            .difference(to)
            .filter(|id| !demoted.contains(id))
            .copied()
            .collect();
        let ids: BTreeSet<u64> = to.iter().map(|voter| voter.0).collect();
        let retain = !demoted.is_empty();
        let changed = self.replica.raft.change_membership(ids, retain).await;
        changed.map_err(MembershipError::from_change)?;
        if retain && !removed.is_empty() {
            return self.remove_learners(&removed).await;
        }
        Ok(())
    }

    /// Makes the final step of a change whose maker is gone: it gave up waiting, or stopped between
    /// the steps. Voters that the change leaves out stay as learners.
    pub async fn finish_change(&self) -> Result<(), MembershipError> {
        let _busy = self.replica.rouse().await;
        if !self.members().half_done {
            return Ok(());
        }
        let change = ChangeMembers::AddVoterIds(BTreeSet::new());
        let changed = self.replica.raft.change_membership(change, true).await;
        changed.map(drop).map_err(MembershipError::from_change)
    }

    /// A replica that votes counts as one that holds the data; one that still copies it does not.
    async fn check_whole(&self, joining: ReplicaId) -> Result<(), MembershipError> {
        let replica = &self.replica;
        let whole = if joining == replica.status.replica {
            Some(replica.log.is_whole())
        } else {
            let asked = replica.copies.is_whole(&replica.log, joining).await;
            asked.map_err(|_| MembershipError::NotWhole(joining))?
        };
        // A version that does not know the question has no copies to wait for either.
        match whole {
            Some(false) => Err(MembershipError::NotWhole(joining)),
            Some(true) | None => Ok(()),
        }
    }

    /// Removes replicas that do not vote.
    pub async fn remove_learners(
        &self,
        learners: &BTreeSet<ReplicaId>,
    ) -> Result<(), MembershipError> {
        let _busy = self.replica.rouse().await;
        let ids = learners.iter().map(|learner| learner.0).collect();
        let change = ChangeMembers::RemoveNodes(ids);
        let changed = self.replica.raft.change_membership(change, false).await;
        changed.map(drop).map_err(MembershipError::from_change)
    }
}
