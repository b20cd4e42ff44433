//! A node that comes back without what it had: its view state, its files, or all of its disk.

use std::collections::BTreeSet;
use std::path::Path;

use trilog_model::{GroupId, NodeId, ReplicaId};
use trilog_storage::io::sim::SimDisk;
use trilog_storage::kv::MemoryKv;
use trilog_storage::store::OpenReport;

use super::Cluster;
use crate::group::MembershipError;
use crate::{KV_FAMILY, Node};

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

    /// Says that a node's files were harmed.
    pub fn mark_damaged(&mut self, node: NodeId) {
        if let Some(host) = self.hosts.get_mut(&node) {
            host.damaged = true;
        }
    }

    /// The nodes whose files were harmed since everything was last found whole.
    #[must_use]
    pub fn damaged(&self) -> Vec<NodeId> {
        let damaged = self.hosts.iter().filter(|(_, host)| host.damaged);
        damaged.map(|(node, _)| *node).collect()
    }

    /// As [`Cluster::wipe`], of a node that shall have other replicas in the place of those.
    pub fn destroy(&mut self, node: NodeId) {
        for (group, placed) in &self.groups {
            if let Some(replica) = placed.get(&node) {
                self.lost.insert((*group, *replica));
            }
        }
        self.wipe(node);
        self.mark_damaged(node);
    }

    /// Takes in what opening a store found: replicas that were set aside come back as others.
    ///
    /// # Panics
    /// If a disk that nobody harmed is said to be damaged.
    pub(super) fn step_aside(&mut self, node: NodeId, report: &OpenReport) {
        let lost = self.groups.iter().filter_map(|(group, placed)| {
            let held = (*group, *placed.get(&node)?);
            (report.step_aside || report.stepped_aside.contains(&held)).then_some(held)
        });
        let lost: Vec<_> = lost.collect();
        let Some(host) = self.hosts.get_mut(&node) else {
            return;
        };
        if lost.is_empty() && !report.step_aside {
            return;
        }
        let seed = self.config.seed;
        assert!(
            host.damaged,
            "seed {seed}: node {node} found its disk damaged: {report:?}"
        );
        // Views go with the logs they were folded from.
        host.kv = MemoryKv::new(&[KV_FAMILY]);
        for (group, replica) in lost {
            if let Some(placed) = self.groups.get_mut(&group) {
                placed.remove(&node);
            }
            self.lost.insert((group, replica));
        }
    }

    /// Names the members of a group to a node whose damaged log does not open, as the controller
    /// does.
    pub(super) fn tell_members(&self, node: &Node, group: GroupId) {
        let named = self.hosts.get(&node.id()).is_some_and(|host| host.damaged);
        if let (true, Some(placed)) = (named, self.groups.get(&group)) {
            node.name_members(group, placed.values().copied().collect());
        }
    }

    /// Puts a new replica in the place of each that damage took, as the controller would.
    pub(super) async fn replace_lost(&mut self) {
        for (group, lost) in std::mem::take(&mut self.lost) {
            let new = ReplicaId::new(lost.node(), lost.incarnation() + 1);
            self.open_replica(group, new).await;
            let voters = self.groups[&group].values().copied().collect();
            self.seat(group, new, voters).await;
            self.replaced += 1;
        }
    }

    /// How many replicas came in the place of those that damage took.
    #[must_use]
    pub fn replaced(&self) -> usize {
        self.replaced
    }

    /// How many segments lie set aside as damaged.
    #[must_use]
    pub fn set_aside(&self) -> usize {
        let disks = self.hosts.values().map(|host| &host.disk);
        let files = disks.flat_map(SimDisk::files);
        let aside = |path: &Path| {
            let kind = path.extension().map(|kind| kind.to_string_lossy());
            kind.is_some_and(|kind| kind.starts_with("damaged-"))
        };
        files.filter(|(path, _)| aside(path)).count()
    }

    /// Waits until nothing of a group is missing or damaged anywhere and its voters are those
    /// that were placed; then nobody counts as damaged any more.
    pub async fn await_whole(&mut self, group: GroupId) {
        let placed: BTreeSet<ReplicaId> = self.groups[&group].values().copied().collect();
        self.until("every replica is whole", |cluster| {
            let replicas = cluster.replicas(group);
            let whole = replicas
                .iter()
                .all(|replica| replica.log().is_whole() && replica.voters() == placed);
            let quarantined = cluster.nodes().into_iter();
            let quarantined = quarantined.map(|node| cluster.store_stats(node).quarantined);
            whole && replicas.len() == placed.len() && quarantined.sum::<usize>() == 0
        })
        .await;
        for host in self.hosts.values_mut() {
            host.damaged = false;
        }
    }
}
