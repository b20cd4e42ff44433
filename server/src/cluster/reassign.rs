//! Other replicas for a partition, as an operator lists them, and the way back for as long as they
//! are on theirs. Decided on this node's map; the controller refuses what was decided on an older
//! state than its own, and it is decided anew.

use trilog_model::NodeId;
use trilog_raft::controller::commands::{AssignReplicas, Command};
use trilog_raft::controller::{ControllerError, Partition as Place, Standing};

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
            let command = decide(&place, to, any_replication)?;
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
) -> Result<Command, ReassignError> {
    let voters = match to {
        Destination::Nodes(nodes) => {
            let from = place.assigned().len();
            if !any_replication && nodes.len() != from {
                let to = nodes.len();
                return Err(ReassignError::Replication { from, to });
            }
            nodes.clone()
        }
        Destination::Back => {
            place.reassignment().ok_or(ReassignError::NotInProgress)?;
            place.before_reassignment()
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
    }))
}
