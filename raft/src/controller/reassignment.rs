//! A partition's replicas as an operator lists them, in order, and what of them is on its way.
//!
//! ```text
//! shown     the voters that are to be, who should lead first, then those whose vote ends
//! in sync   of these, who has a vote
//! ```

use std::collections::BTreeSet;

use trilog_model::NodeId;

use super::cluster_map::{Partition, Standing};

/// Voters on their way to a partition, or from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reassignment {
    pub adding: Vec<NodeId>,
    pub removing: Vec<NodeId>,
}

impl Partition {
    /// The nodes that are to hold voters, the one that should lead first.
    #[must_use]
    pub fn assigned(&self) -> Vec<NodeId> {
        let mut nodes: Vec<NodeId> = self.voter_nodes().collect();
        nodes.sort_by_key(|node| *node != self.preferred);
        nodes
    }

    /// All nodes that hold voters or are to, in order.
    #[must_use]
    pub fn shown(&self) -> Vec<NodeId> {
        let mut nodes = self.assigned();
        nodes.extend(self.removing(&nodes));
        nodes
    }

    /// The nodes whose replicas vote and have what was acknowledged.
    #[must_use]
    pub fn in_sync(&self) -> BTreeSet<NodeId> {
        let voting = self.replicas.iter();
        let voting = voting.filter(|replica| replica.settled == Standing::Voter && !replica.lost);
        voting.map(|replica| replica.id.node()).collect()
    }

    /// What is on its way. A replica that takes the place of a lost one on the same node is not:
    /// the node has been in the set all along.
    #[must_use]
    pub fn reassignment(&self) -> Option<Reassignment> {
        let assigned = self.assigned();
        let held = self.voted_nodes();
        let adding: Vec<NodeId> = assigned
            .iter()
            .copied()
            .filter(|node| !held.contains(node))
            .collect();
        let removing = self.removing(&assigned);
        let moving = !adding.is_empty() || !removing.is_empty();
        moving.then_some(Reassignment { adding, removing })
    }

    /// The nodes from before what is on its way.
    #[must_use]
    pub fn before_reassignment(&self) -> Vec<NodeId> {
        let held = self.voted_nodes();
        let mut nodes = self.shown();
        nodes.retain(|node| held.contains(node));
        nodes
    }

    /// The nodes that have a vote by the last report, whether or not its replica is lost since.
    fn voted_nodes(&self) -> BTreeSet<NodeId> {
        let voted = self.replicas.iter();
        let voted = voted.filter(|replica| replica.settled == Standing::Voter);
        voted.map(|replica| replica.id.node()).collect()
    }

    fn removing(&self, assigned: &[NodeId]) -> Vec<NodeId> {
        let mut nodes = Vec::new();
        for replica in &self.replicas {
            let node = replica.id.node();
            if replica.settled == Standing::Voter
                && !assigned.contains(&node)
                && !nodes.contains(&node)
            {
                nodes.push(node);
            }
        }
        nodes
    }
}

#[cfg(test)]
mod tests {
    use super::super::command::{Command, ReplicaRef, StepAside};
    use super::super::fixtures::{assign, cluster, create, done, partition, settle};
    use super::*;

    fn nodes(nodes: &[u32]) -> Vec<NodeId> {
        nodes.iter().copied().map(NodeId).collect()
    }

    fn reassignment(adding: &[u32], removing: &[u32]) -> Reassignment {
        Reassignment {
            adding: nodes(adding),
            removing: nodes(removing),
        }
    }

    /// The first group that is not the controller's.
    const GROUP: u64 = 2;

    #[test]
    fn a_reassignment_shows_who_comes_and_who_goes_until_it_is_settled() {
        let mut state = cluster(4);
        done(&mut state, &create(1, "a", 1, 3));
        let first = assign(&state, GROUP, &[1, 2, 3]);
        done(&mut state, &first);
        let report = settle(&state, GROUP);
        done(&mut state, &report);
        assert_eq!(partition(&state, GROUP).reassignment(), None);

        let next = assign(&state, GROUP, &[4, 3, 1]);
        done(&mut state, &next);
        let moving = partition(&state, GROUP);
        assert_eq!(moving.reassignment(), Some(reassignment(&[4], &[2])));
        assert_eq!(moving.shown(), nodes(&[4, 3, 1, 2]));
        assert_eq!(moving.in_sync(), nodes(&[1, 2, 3]).into_iter().collect());
        assert_eq!(moving.before_reassignment(), nodes(&[3, 1, 2]));

        let report = settle(&state, GROUP);
        done(&mut state, &report);
        let there = partition(&state, GROUP);
        assert_eq!(there.reassignment(), None);
        assert_eq!(there.shown(), nodes(&[4, 3, 1]));
    }

    #[test]
    fn who_should_lead_is_shown_first() {
        let mut state = cluster(3);
        done(&mut state, &create(1, "a", 1, 3));
        for order in [[1, 2, 3], [2, 3, 1], [3, 1, 2]] {
            let next = assign(&state, GROUP, &order);
            done(&mut state, &next);
            let there = partition(&state, GROUP);
            assert_eq!(there.shown(), nodes(&order));
            assert_eq!(there.reassignment(), None, "an order is no move");
        }
    }

    #[test]
    fn a_replica_that_replaces_a_lost_one_on_its_node_is_no_reassignment() {
        let mut state = cluster(3);
        done(&mut state, &create(1, "a", 1, 3));
        let lost = *partition(&state, GROUP).wanted_on(NodeId(2)).unwrap();
        let node = state.map().node(NodeId(2)).unwrap().identity.to_wire();
        let aside = Command::StepAside(StepAside {
            node: 2,
            identity: node,
            replicas: vec![ReplicaRef {
                group: GROUP,
                replica: lost.id.0,
            }],
        });
        done(&mut state, &aside);
        let mending = partition(&state, GROUP);
        assert!(!mending.is_settled());
        assert_eq!(mending.reassignment(), None);
        assert!(mending.shown().contains(&NodeId(2)));
        assert!(!mending.in_sync().contains(&NodeId(2)));
    }
}
