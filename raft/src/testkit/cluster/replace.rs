//! A node that comes back without its view state.

use std::collections::BTreeSet;

use trilog_model::{GroupId, NodeId, ReplicaId};
use trilog_storage::kv::MemoryKv;

use super::Cluster;
use crate::KV_FAMILY;
use crate::group::MembershipError;

impl Cluster {
    /// Starts a node that is down and has lost what it kept of its views. Where the log still
    /// begins at its beginning, they are folded again; else its replica cannot come back, and one
    /// of a new incarnation takes its place, as the controller would have it. Returns why it did
    /// not vote at once.
    pub async fn boot_without_views(
        &mut self,
        node: NodeId,
        group: GroupId,
    ) -> Vec<MembershipError> {
        let mut refusals = Vec::new();
        let Some(host) = self.hosts.get_mut(&node) else {
            return refusals;
        };
        assert!(host.up.is_none(), "node {node} runs");
        host.kv = MemoryKv::new(&[KV_FAMILY]);
        let Some(mut replicas) = self.groups.remove(&group) else {
            return refusals;
        };
        self.boot(node).await;
        let Some(registry) = self.node(node).cloned() else {
            return refusals;
        };
        let log = registry.store().group(group);
        let starts_late = log.is_some_and(|log| log.state().log_start.is_some());
        if starts_late {
            let deleted = registry.delete_group(group).await;
            deleted.unwrap_or_else(|error| panic!("node {node}: {error}"));
            let incarnation = replicas[&node].incarnation() + 1;
            replicas.insert(node, ReplicaId::new(node, incarnation));
        }
        self.groups.insert(group, replicas.clone());
        self.open(node, group).await;
        if starts_late {
            let voters = replicas.values().copied().collect();
            refusals = self.seat(group, replicas[&node], voters).await;
        }
        refusals
    }

    /// Has `new` join a group until `voters` are its voters.
    async fn seat(
        &self,
        group: GroupId,
        new: ReplicaId,
        voters: BTreeSet<ReplicaId>,
    ) -> Vec<MembershipError> {
        let mut refusals = Vec::new();
        loop {
            let leader = self.await_leader(group).await;
            let Some(leader) = self.group(leader, group).cloned() else {
                continue;
            };
            let wanted = voters.clone();
            // Refused while it is copying, or another change is under way: asked again.
            let changing = tokio::spawn(async move {
                leader.add_learner(new).await?;
                leader.change_voters(&wanted, &BTreeSet::new()).await
            });
            while !changing.is_finished() {
                self.run(super::STEP).await;
            }
            match changing.await {
                Ok(Ok(())) => return refusals,
                Ok(Err(refusal)) => refusals.push(refusal),
                Err(error) => panic!("{error}"),
            }
        }
    }
}
