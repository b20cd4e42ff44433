//! Where replicas are to be, and what their leaders and holders report.

use std::collections::BTreeSet;
use std::sync::Arc;

use trilog_model::{GroupId, NodeId, ReplicaId, Term};

use super::super::cluster_map::{GroupPlace, Partition, Replica, Replication, Standing, Topic};
use super::super::command::{AssignReplicas, PreferLeader, ReportSettled};
use super::super::level::PLACEMENT_LEVEL;
use super::super::reply::{ControllerError, Outcome, Reply};
use super::topics::invalid_assignment;
use super::{ControllerState, sorted};

/// Voters the controller group has at most.
pub(super) const MAX_CONTROLLER_VOTERS: usize = 5;

/// Who decided where a group is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Origin {
    Plan,
    Operator,
}

impl ControllerState {
    pub(super) fn assign_replicas(&mut self, command: &AssignReplicas, origin: Origin) -> Outcome {
        let group = GroupId(command.group);
        let current = self.partition(group)?;
        check_generation(current, command.generation)?;
        let current = Partition::clone(current);
        let voters: Vec<NodeId> = command.voters.iter().copied().map(NodeId).collect();
        let learners = self.read_learners(group, command, &voters)?;
        self.check_voter_set(&voters)?;
        let preferred = NodeId(command.preferred);
        if !voters.contains(&preferred) {
            return Err(invalid_assignment("the preferred leader is no voter"));
        }
        if command.back {
            check_way_back(&current, &voters, origin)?;
        }
        let newcomers = voters
            .iter()
            .chain(&learners)
            .filter(|node| reusable(&current, **node).is_none());
        let mut wanted = 0;
        for node in newcomers {
            wanted += 1;
            if group != GroupId::CONTROLLER && !self.node(*node)?.is_active() {
                return Err(invalid_assignment(&format!("node {node} is draining")));
            }
        }
        self.reserve(0, wanted)?;
        let mut next = Partition {
            preferred,
            pinned: origin == Origin::Operator || self.stays_pinned(&current, preferred),
            ..self.retarget(&current, &voters, &learners)
        };
        if origin == Origin::Operator {
            next.asked = self.asked(&current, voters.len(), command.back);
        }
        if next != current {
            next.generation += u64::from(next.replicas != current.replicas);
            self.put_partition(next);
            self.touch();
        }
        Ok(Reply::Done)
    }

    /// Whether a plan leaves an operator's word on who should lead as it is. Nodes that leave have
    /// others in their places, and that is all that a plan says.
    fn stays_pinned(&self, current: &Partition, preferred: NodeId) -> bool {
        let placed = current.pinned && current.preferred == preferred;
        placed && self.tables.level >= PLACEMENT_LEVEL
    }

    /// The number of replicas that an operator asks for by giving a partition so many voters. As
    /// many as it was to have say nothing new, and the way back takes back what was said.
    fn asked(&self, current: &Partition, voters: usize, back: bool) -> Option<u32> {
        self.topic_of(current.group)?;
        if self.tables.level < PLACEMENT_LEVEL || back {
            return None;
        }
        if voters == current.voter_nodes().count() {
            return current.asked;
        }
        Some(u32::try_from(voters).unwrap_or(u32::MAX))
    }

    /// What an operator has asked for is there: it is the partition's own, unless its topic has as
    /// many, and the topic's once it is that of all its partitions.
    fn keep_replication(&mut self, group: GroupId, asked: u32) {
        let Some(topic) = self.topic_of(group) else {
            return;
        };
        let own = Some(asked).filter(|asked| *asked != self.replication_now(topic.replication));
        if let Ok(partition) = self.partition(group) {
            let mut partition = Partition::clone(partition);
            (partition.replication, partition.asked) = (own, None);
            self.put_partition(partition);
        }
        self.agree_on_replication(group);
    }

    /// Where an operator has given every partition of a topic as many replicas, that is what the
    /// topic has.
    fn agree_on_replication(&mut self, group: GroupId) {
        let Some(topic) = self.topic_of(group) else {
            return;
        };
        // What each is to have: one that has yet to grow has fewer, and nobody asked for that. What
        // is asked for and on its way may be taken back.
        let of_topic = self.replication_now(topic.replication);
        let wanted = |p: &Arc<Partition>| p.replication.unwrap_or(of_topic);
        let Some(count) = topic.partitions.first().map(wanted) else {
            return;
        };
        let spoken = topic.partitions.iter().any(|p| p.replication.is_some());
        if !spoken || !topic.partitions.iter().all(|p| wanted(p) == count) {
            return;
        }
        let as_now = of_topic == count;
        let mut topic = Topic::clone(topic);
        if !as_now {
            topic.replication = Replication::Fixed(count);
        }
        for partition in &mut topic.partitions {
            Arc::make_mut(partition).replication = None;
        }
        Arc::make_mut(&mut self.tables.topics).insert(topic.id, Arc::new(topic));
    }

    fn topic_of(&self, group: GroupId) -> Option<&Arc<Topic>> {
        match self.groups.get(&group)? {
            GroupPlace::Controller => None,
            GroupPlace::Partition { topic, .. } => self.tables.topics.get(topic),
        }
    }

    fn read_learners(
        &self,
        group: GroupId,
        command: &AssignReplicas,
        voters: &[NodeId],
    ) -> Result<Vec<NodeId>, ControllerError> {
        if group == GroupId::CONTROLLER {
            if !command.learners.is_empty() {
                return Err(invalid_assignment(
                    "the controller's learners are all other nodes",
                ));
            }
            if voters.len() > MAX_CONTROLLER_VOTERS {
                return Err(invalid_assignment(&format!(
                    "the controller has at most {MAX_CONTROLLER_VOTERS} voters"
                )));
            }
            let members = self.tables.nodes.values().filter(|node| node.is_member());
            return Ok(members
                .map(|node| node.id)
                .filter(|node| !voters.contains(node))
                .collect());
        }
        let learners: Vec<NodeId> = command.learners.iter().copied().map(NodeId).collect();
        let distinct: BTreeSet<&NodeId> = learners.iter().chain(voters).collect();
        if distinct.len() != learners.len() + voters.len() {
            return Err(invalid_assignment("a node is named twice"));
        }
        Ok(learners)
    }

    /// The partition with these nodes as its target. Replicas that are there keep their data and
    /// identity; what is no longer wanted stays listed until the leader reports it gone.
    fn retarget(
        &mut self,
        current: &Partition,
        voters: &[NodeId],
        learners: &[NodeId],
    ) -> Partition {
        let mut replicas = Vec::new();
        let wanted = voters
            .iter()
            .map(|node| (*node, Standing::Voter))
            .chain(learners.iter().map(|node| (*node, Standing::Learner)));
        for (node, target) in wanted {
            let replica = reusable(current, node).copied();
            let replica = replica.unwrap_or_else(|| Replica {
                id: self.new_replica(node),
                settled: Standing::Absent,
                target,
                lost: false,
            });
            replicas.push(Replica { target, ..replica });
        }
        let kept: BTreeSet<ReplicaId> = replicas.iter().map(|replica| replica.id).collect();
        let leaving = current.replicas.iter().filter(|r| !kept.contains(&r.id));
        replicas.extend(leaving.map(|replica| Replica {
            target: Standing::Absent,
            ..*replica
        }));
        Partition {
            replicas,
            ..current.clone()
        }
    }

    pub(super) fn report_settled(&mut self, command: &ReportSettled) -> Outcome {
        let group = GroupId(command.group);
        let current = self.partition(group)?;
        check_generation(current, command.generation)?;
        let targets = |standing| current.target_set(standing).iter().map(|id| id.0).collect();
        let agrees = sorted(command.voters.clone()) == sorted(targets(Standing::Voter))
            && sorted(command.learners.clone()) == sorted(targets(Standing::Learner))
            && Term(command.term) >= current.term;
        if !agrees {
            return Err(ControllerError::NotSettled { group: group.get() });
        }
        if current.is_settled() {
            return Ok(Reply::Done);
        }
        let mut settled = Partition::clone(current);
        settled.term = Term(command.term);
        // What was decided while it was on its way, such as to take it back, is too late now.
        settled.generation += u64::from(self.tables.level >= PLACEMENT_LEVEL);
        let asked = settled.asked;
        let (wanted, gone): (Vec<Replica>, Vec<Replica>) =
            settled.replicas.iter().partition(|r| r.is_wanted());
        settled.replicas = wanted
            .into_iter()
            .map(|replica| Replica {
                settled: replica.target,
                ..replica
            })
            .collect();
        self.put_partition(settled);
        if let Some(asked) = asked {
            self.keep_replication(group, asked);
        }
        for replica in gone.iter().filter(|replica| !replica.lost) {
            self.retire(group, replica.id);
        }
        self.touch();
        Ok(Reply::Done)
    }

    pub(super) fn prefer_leader(&mut self, command: PreferLeader, origin: Origin) -> Outcome {
        let group = GroupId(command.group);
        let node = NodeId(command.node);
        let current = self.partition(group)?;
        if !current.voter_nodes().any(|voter| voter == node) {
            return Err(invalid_assignment("the preferred leader is no voter"));
        }
        let next = Partition {
            preferred: node,
            pinned: origin == Origin::Operator,
            ..Partition::clone(current)
        };
        if next != **current {
            self.put_partition(next);
            self.touch();
        }
        Ok(Reply::Done)
    }
}

/// Whether a command that takes back what is on its way names the voters from before it.
fn check_way_back(
    current: &Partition,
    voters: &[NodeId],
    origin: Origin,
) -> Result<(), ControllerError> {
    let before: BTreeSet<NodeId> = current.before_reassignment().into_iter().collect();
    let back = current.reassignment().is_some() && before == voters.iter().copied().collect();
    if back && origin == Origin::Operator {
        return Ok(());
    }
    Err(invalid_assignment("those are not the replicas from before"))
}

fn check_generation(partition: &Partition, given: u64) -> Result<(), ControllerError> {
    if partition.generation == given {
        return Ok(());
    }
    Err(ControllerError::StaleGeneration {
        group: partition.group.get(),
        given,
        current: partition.generation,
    })
}

/// The replica on `node` that can be kept: the newest one, unless its data is given up.
fn reusable(partition: &Partition, node: NodeId) -> Option<&Replica> {
    partition
        .replicas
        .iter()
        .filter(|replica| replica.id.node() == node && !replica.lost)
        .max_by_key(|replica| replica.id)
}
