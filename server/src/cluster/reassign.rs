//! Other replicas for a partition, as an operator lists them, and the way back for as long as they
//! are on theirs. Decided on this node's map; the controller refuses what was decided on an older
//! state than its own, and it is decided anew.

use trilog_model::NodeId;
use trilog_raft::controller::commands::{AssignReplicas, Command};
use trilog_raft::controller::{ControllerError, PLACEMENT_LEVEL, Partition as Place, Standing};

use super::{Cluster, LookupError, ProposeError};

/// How often a decision is made anew because the partition has moved on.
const TRIES: u32 = 5;

/// Where a partition's replicas are to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// On these nodes, the one that should lead first.
    Nodes(Vec<NodeId>),
    /// Where they were before what is on its way.
    Back,
}

/// Why a partition stays as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReassignError {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error("no reassignment of the partition is in progress")]
    NotInProgress,
    #[error("the replication factor is changed from {from} to {to}")]
    Replication { from: usize, to: usize },
    /// The cluster would not remember it, and make the number again what it was.
    #[error(
        "to change the number of replicas needs feature level {PLACEMENT_LEVEL}, the active \
         level is {active}: see `trilog cluster upgrade`"
    )]
    Level { active: u32 },
    #[error(transparent)]
    Propose(#[from] ProposeError),
}

impl Cluster {
    /// Has a partition move to other replicas. Answered once that is decided: moving takes longer.
    pub async fn reassign(
        &self,
        topic: &str,
        index: u32,
        to: &Destination,
        any_replication: bool,
    ) -> Result<(), ReassignError> {
        let mut tries = 1;
        loop {
            let place = self.place(topic, index)?;
            let command = decide(&place, to, any_replication, self.map().level())?;
            match self.propose(&command).await {
                Err(ProposeError::Refused(ControllerError::StaleGeneration { .. }))
                    if tries < TRIES =>
                {
                    tries += 1;
                    self.is_current().await;
                }
                outcome => return Ok(outcome.map(drop)?),
            }
        }
    }
}

fn decide(
    place: &Place,
    to: &Destination,
    any_replication: bool,
    level: u32,
) -> Result<Command, ReassignError> {
    let (voters, back) = match to {
        Destination::Nodes(nodes) => {
            let (from, to) = (place.assigned().len(), nodes.len());
            if !any_replication && from != to {
                return Err(ReassignError::Replication { from, to });
            }
            if from != to && level < PLACEMENT_LEVEL {
                return Err(ReassignError::Level { active: level });
            }
            (nodes.clone(), false)
        }
        Destination::Back => {
            place.reassignment().ok_or(ReassignError::NotInProgress)?;
            (place.before_reassignment(), level >= PLACEMENT_LEVEL)
        }
    };
    let learners = place.targets(Standing::Learner);
    let learners = learners.map(|replica| replica.id.node());
    Ok(Command::AssignByHand(AssignReplicas {
        group: place.group.get(),
        generation: place.generation,
        learners: learners
            .filter(|node| !voters.contains(node))
            .map(NodeId::get)
            .collect(),
        // A set without nodes is refused by the controller.
        preferred: voters.first().map_or(0, |node| node.get()),
        voters: voters.into_iter().map(NodeId::get).collect(),
        back,
    }))
}

#[cfg(test)]
mod tests {
    use trilog_model::{GroupId, ReplicaId, Term};
    use trilog_raft::controller::Replica;

    use super::*;

    /// A partition with these voters, and one more on its way.
    fn growing(voters: &[u32], coming: u32) -> Place {
        let replica = |node: u32, settled| Replica {
            id: ReplicaId::new(NodeId(node), 1),
            settled,
            target: Standing::Voter,
            lost: false,
        };
        let there = voters.iter().map(|node| replica(*node, Standing::Voter));
        let replicas: Vec<Replica> = there.chain([replica(coming, Standing::Absent)]).collect();
        Place {
            group: GroupId(2),
            generation: 7,
            founding: Vec::new(),
            replicas,
            preferred: NodeId(1),
            pinned: false,
            replication: None,
            asked: None,
            term: Term(1),
        }
    }

    #[test]
    fn a_number_that_the_cluster_could_not_remember_is_refused() {
        let place = growing(&[1, 2], 3);
        let to = |nodes: &[u32]| Destination::Nodes(nodes.iter().copied().map(NodeId).collect());
        let old = PLACEMENT_LEVEL - 1;
        let refused = decide(&place, &to(&[1, 2]), true, old);
        assert_eq!(refused, Err(ReassignError::Level { active: old }));
        assert!(decide(&place, &to(&[1, 2]), true, PLACEMENT_LEVEL).is_ok());
        assert!(decide(&place, &to(&[3, 2, 1]), true, old).is_ok());
        // What a client did not mean to change is said first.
        let refused = decide(&place, &to(&[1, 2]), false, old);
        assert_eq!(refused, Err(ReassignError::Replication { from: 3, to: 2 }));
    }

    #[test]
    fn the_way_back_is_named_as_such_where_that_is_known() {
        let place = growing(&[1, 2], 3);
        for (level, back) in [(PLACEMENT_LEVEL - 1, false), (PLACEMENT_LEVEL, true)] {
            let decided = decide(&place, &Destination::Back, true, level);
            let Ok(Command::AssignByHand(command)) = decided else {
                panic!("{decided:?}");
            };
            assert_eq!((command.back, command.voters), (back, vec![1, 2]));
            assert_eq!(command.generation, 7);
        }
    }
}
