//! Going on with what is left after a majority was lost for ever.
//!
//! The nodes that are not there are removed, and the cluster gets another id. So whatever of them
//! should come back after all belongs to a cluster that is no more: it can neither vote nor lead,
//! and its data directory is refused and kept. A node with an empty directory joins as any other
//! does, with replicas that have never been before.

use std::collections::BTreeSet;
use std::sync::Arc;

use trilog_model::{GroupId, NodeId, ReplicaId, Timestamp};

use super::super::cluster_map::{AcceptedLoss, Node, NodeState, Partition, Replica, Standing};
use super::super::command::AcceptLoss;
use super::super::ids::ClusterId;
use super::super::reply::{ControllerError, Outcome, Reply};
use super::assignment::MAX_CONTROLLER_VOTERS;
use super::{ControllerState, malformed};

impl ControllerState {
    pub(super) fn accept_loss(&mut self, command: &AcceptLoss) -> Outcome {
        let cluster = ClusterId::from_wire(&command.cluster)
            .map_err(|_| malformed("the cluster id is invalid"))?;
        let Some(before) = self.tables.cluster else {
            return Err(ControllerError::NotBootstrapped {});
        };
        if before == cluster {
            // Done by another survivor's command.
            return Ok(Reply::Done);
        }
        let left: BTreeSet<NodeId> = command.survivors.iter().copied().map(NodeId).collect();
        for node in &left {
            self.node(*node)?;
        }
        if left.is_empty() {
            return Err(malformed("nobody is left"));
        }
        let groups: Vec<GroupId> = std::iter::once(GroupId::CONTROLLER)
            .chain(self.groups.keys().copied())
            .collect();
        for group in groups {
            let partition = Partition::clone(self.partition(group)?);
            self.put_partition(reduced(partition, &left));
        }
        let nodes = self.forget_all_but(&left);
        let at = Timestamp(command.at);
        Arc::make_mut(&mut self.tables.losses).push(AcceptedLoss {
            at,
            nodes,
            cluster: before,
        });
        self.tables.cluster = Some(cluster);
        self.touch();
        Ok(Reply::Done)
    }

    /// Removes every other node; answers which those were.
    fn forget_all_but(&mut self, left: &BTreeSet<NodeId>) -> Vec<NodeId> {
        let nodes = Arc::make_mut(&mut self.tables.nodes);
        let lost = |node: &&mut Arc<Node>| node.is_member() && !left.contains(&node.id);
        let lost: Vec<NodeId> = nodes
            .values_mut()
            .filter(lost)
            .map(|node| {
                Arc::make_mut(node).state = NodeState::Removed;
                node.id
            })
            .collect();
        for node in &lost {
            Arc::make_mut(&mut self.tables.retired).remove(node);
            Arc::make_mut(&mut self.tables.silent).remove(node);
        }
        lost
    }
}

/// The voters that a group goes on with; none if all that it had is gone. The survivors write
/// these into the group's own log, so this and the command must agree.
#[must_use]
pub fn remaining_voters(partition: &Partition, left: &BTreeSet<NodeId>) -> Vec<ReplicaId> {
    let mut voters = partition.left_on(left);
    if partition.group == GroupId::CONTROLLER {
        voters.truncate(MAX_CONTROLLER_VOTERS);
    }
    voters
}

fn reduced(mut partition: Partition, left: &BTreeSet<NodeId>) -> Partition {
    let voters = remaining_voters(&partition, left);
    let Some(first) = voters.first() else {
        for replica in &mut partition.replicas {
            replica.lost = true;
        }
        partition.generation += 1;
        return partition;
    };
    let first = first.node();
    // Beyond its voters, the controller's survivors go on following it.
    let follow = |replica: &Replica| {
        partition.group == GroupId::CONTROLLER
            && left.contains(&replica.id.node())
            && !replica.lost
            && replica.is_wanted()
            && !voters.contains(&replica.id)
    };
    let followers = partition.replicas.iter().filter(|r| follow(r)).copied();
    let replicas = voters.iter().map(|id| Replica {
        id: *id,
        settled: Standing::Voter,
        target: Standing::Voter,
        lost: false,
    });
    let replicas: Vec<Replica> = replicas.chain(followers).collect();
    let stays = voters.iter().any(|id| id.node() == partition.preferred);
    Partition {
        generation: partition.generation + 1,
        replicas,
        preferred: if stays { partition.preferred } else { first },
        pinned: false,
        ..partition
    }
}
