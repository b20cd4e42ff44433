//! What the leader of the controller does unasked: grow, drain, spread, and even out.
//!
//! Planning is pure and looks only at the map and at who answers. Its results are ordinary
//! commands that name the generation they were decided on, so a plan from an old map is refused
//! and builds that plan differently never disagree about what was decided. Each round plans a
//! bounded number of moves; rounds follow one another until one comes out empty.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trilog_model::{GroupId, NodeId};

use super::cluster_map::{
    ClusterMap, Partition, Replica, Replication, Standing, Topic, grown_replication,
};
use super::command::{AssignReplicas, Command, PreferLeader};
use super::placement::{Candidate, LeaderChoice, Load, even_leaders, racks_covered, replacement};
use super::state::loads_of;

/// Changes of preferred leaders planned in one round at most: so many because their nodes leave,
/// and so many to even out.
const MAX_LEADER_CHANGES: usize = 64;

/// Pairs of nodes looked at for one evening move at most.
const MAX_PAIRS: usize = 64;

type Loads = BTreeMap<NodeId, Load>;

/// One round's decisions.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BalancePlan {
    /// To be proposed, in order.
    pub commands: Vec<Command>,
    /// Groups that should move and for which no node is left.
    pub blocked: Vec<GroupId>,
}

/// One replica on its way to an even spread.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaMove {
    pub group: GroupId,
    pub from: NodeId,
    pub to: NodeId,
    /// To be proposed.
    pub command: Command,
}

/// Plans as many moves of replicas as may be started now, for an operator who asks for an even
/// spread, whether or not the controller evens out unasked.
#[must_use]
pub fn plan_moves(map: &ClusterMap, reachable: &BTreeSet<NodeId>) -> Vec<ReplicaMove> {
    let mut planner = Planner::new(map, reachable);
    planner.spread_replicas();
    let moves = planner.moves.into_iter().zip(planner.plan.commands);
    let moves = moves.map(|((group, from, to), command)| ReplicaMove {
        group,
        from,
        to,
        command,
    });
    moves.collect()
}

/// Plans one round. New replicas go only to nodes in `reachable`.
#[must_use]
pub fn plan_balance(map: &ClusterMap, reachable: &BTreeSet<NodeId>) -> BalancePlan {
    if map.cluster().is_none() {
        return BalancePlan::default();
    }
    let mut planner = Planner::new(map, reachable);
    planner.controller_voters();
    for topic in map.topics() {
        planner.mend_topic(topic);
    }
    if map.config().balance_replicas() && planner.touched.is_empty() {
        planner.spread_replicas();
    }
    planner.leaders();
    planner.plan
}

/// How many replicas a partition is to have.
#[derive(Clone, Copy)]
struct Wanted {
    count: usize,
    /// Somebody asked for so many; else it is the cluster's default, which nothing shrinks to.
    fixed: bool,
}

impl Wanted {
    fn of(topic: &Topic, partition: &Partition, of_topic: u32) -> Self {
        let own = partition.own_replication();
        Self {
            count: usize::try_from(own.unwrap_or(of_topic)).unwrap_or(1),
            fixed: own.is_some() || matches!(topic.replication, Replication::Fixed(_)),
        }
    }
}

struct Planner<'a> {
    map: &'a ClusterMap,
    /// Active nodes that answer: where new replicas may go.
    racks: BTreeMap<NodeId, Option<String>>,
    loads: Loads,
    /// Moves that may still be started.
    budget: usize,
    /// Groups this round gives a new assignment.
    touched: BTreeSet<GroupId>,
    /// Those that even out, as group, node and new node.
    moves: Vec<(GroupId, NodeId, NodeId)>,
    plan: BalancePlan,
}

impl<'a> Planner<'a> {
    fn new(map: &'a ClusterMap, reachable: &BTreeSet<NodeId>) -> Self {
        let partitions = || map.topics().flat_map(|topic| &topic.partitions);
        let moving = partitions().filter(|p| !p.is_settled()).count();
        let most = usize::try_from(map.config().max_moves()).unwrap_or(usize::MAX);
        Self {
            map,
            racks: map
                .active_nodes()
                .filter(|node| reachable.contains(&node.id))
                .map(|node| (node.id, node.rack.clone()))
                .collect(),
            loads: loads_of(partitions().map(Arc::as_ref)),
            budget: most.saturating_sub(moving),
            touched: BTreeSet::new(),
            moves: Vec::new(),
            plan: BalancePlan::default(),
        }
    }

    fn is_active(&self, node: NodeId) -> bool {
        self.map.node(node).is_some_and(|node| node.is_active())
    }

    /// Nodes that may get a replica of the topic that is so spread, and those in `present`, for
    /// their racks.
    fn candidates(&self, topic: &Loads, present: &[NodeId]) -> Vec<Candidate> {
        let load = |loads: &Loads, id| loads.get(&id).copied().unwrap_or_default();
        let mut nodes: BTreeMap<NodeId, Option<String>> = self.racks.clone();
        for node in present {
            nodes.entry(*node).or_insert_with(|| self.rack(*node));
        }
        nodes
            .into_iter()
            .map(|(node, rack)| Candidate {
                node,
                rack,
                silent: false,
                total: load(&self.loads, node),
                topic: load(topic, node),
            })
            .collect()
    }

    fn rack(&self, node: NodeId) -> Option<String> {
        self.map.node(node).and_then(|node| node.rack.clone())
    }

    /// Grows the controller group with the cluster, 1, 3, 5 voters, and replaces voters on nodes
    /// that leave. A new voter is chosen among those that already follow.
    fn controller_voters(&mut self) {
        let controller = Arc::clone(self.map.controller());
        let voting = |r: &&Replica| (r.settled == Standing::Voter) != (r.target == Standing::Voter);
        if controller.replicas.iter().filter(voting).count() > 0 {
            return;
        }
        let current: Vec<NodeId> = controller.voter_nodes().collect();
        let wanted = self.wanted_controller_voters(current.len());
        let (mut voters, leaving): (Vec<NodeId>, Vec<NodeId>) =
            current.iter().partition(|node| self.is_active(**node));
        let follows = |node: NodeId| {
            controller
                .wanted_on(node)
                .is_some_and(|replica| replica.settled == Standing::Learner)
        };
        while voters.len() < wanted {
            let mut candidates = self.candidates(&BTreeMap::new(), &voters);
            candidates.retain(|c| voters.contains(&c.node) || follows(c.node));
            let Some(next) = replacement(&candidates, &voters) else {
                break;
            };
            voters.push(next);
        }
        let missing = wanted.saturating_sub(voters.len()).min(leaving.len());
        if missing > 0 {
            voters.extend(&leaving[..missing]);
            self.plan.blocked.push(controller.group);
        }
        if voters.len() < wanted || voters.is_empty() {
            return;
        }
        voters.sort_by_key(|node| (*node != controller.preferred, *node));
        voters.truncate(wanted);
        if !same_nodes(&voters, &current) {
            self.plan
                .commands
                .push(assign(&controller, &voters, voters[0]));
        }
    }

    /// 1, 3 or 5, as many as there are nodes for; but what has three voters keeps three.
    fn wanted_controller_voters(&self, current: usize) -> usize {
        let most = self.map.config().controller_voters();
        let active = u32::try_from(self.map.active_nodes().count()).unwrap_or(u32::MAX);
        let most_kept = usize::try_from(most.min(3)).unwrap_or(1);
        usize::try_from(grown_replication(active, most))
            .unwrap_or(1)
            .max(current.min(most_kept))
    }

    /// Gives a topic's partitions the replicas they should have: none on nodes that leave, as
    /// many as wanted.
    fn mend_topic(&mut self, topic: &Topic) {
        let of_topic = self.map.wanted_replication(topic);
        let mut spread: Option<Loads> = None;
        for partition in &topic.partitions {
            let wanted = Wanted::of(topic, partition, of_topic);
            let stuck = self.is_stuck(partition);
            let due = (partition.is_settled() && self.budget > 0) || stuck;
            if !due || !self.needs_mending(partition, wanted) {
                continue;
            }
            let spread =
                spread.get_or_insert_with(|| loads_of(topic.partitions.iter().map(Arc::as_ref)));
            let current: Vec<NodeId> = partition.voter_nodes().collect();
            let voters = self.mended(partition, wanted, spread);
            if !same_nodes(&voters, &current) {
                for node in voters.iter().filter(|node| !current.contains(node)) {
                    spread.entry(*node).or_default().replicas += 1;
                }
                self.reassign(partition, &voters);
            }
        }
    }

    /// Whether a move waits for a node that has begun to leave.
    fn is_stuck(&self, partition: &Partition) -> bool {
        partition.replicas.iter().any(|replica| {
            replica.is_wanted()
                && replica.settled == Standing::Absent
                && !self.is_active(replica.id.node())
        })
    }

    fn needs_mending(&self, partition: &Partition, wanted: Wanted) -> bool {
        if partition.is_dead() {
            return false;
        }
        let voters = partition.voter_nodes().count();
        let leaving = partition.voter_nodes().any(|node| !self.is_active(node));
        leaving || voters < wanted.count || (wanted.fixed && voters > wanted.count)
    }

    fn mended(&mut self, partition: &Partition, wanted: Wanted, spread: &Loads) -> Vec<NodeId> {
        let mut voters: Vec<NodeId> = partition.voter_nodes().collect();
        if wanted.fixed {
            self.drop_surplus(&mut voters, wanted.count, partition.preferred);
        }
        let replaced = self.replace_leaving(partition, &mut voters, spread);
        let added = self.add_missing(partition, &mut voters, wanted, spread);
        if !replaced || !added {
            self.plan.blocked.push(partition.group);
        }
        voters
    }

    /// Drops replicas down to `wanted`: those on leaving nodes first, the preferred leader last,
    /// else the most loaded.
    fn drop_surplus(&self, voters: &mut Vec<NodeId>, wanted: usize, preferred: NodeId) {
        while voters.len() > wanted.max(1) {
            let load = |node: NodeId| self.loads.get(&node).map_or(0, |load| load.replicas);
            let covered = |without: NodeId| {
                let rest: Vec<_> = voters
                    .iter()
                    .filter(|node| **node != without)
                    .map(|node| self.rack(*node))
                    .collect();
                racks_covered(rest.iter().map(Option::as_deref))
            };
            let drop = voters
                .iter()
                .copied()
                .max_by_key(|node| {
                    (
                        !self.is_active(*node),
                        *node != preferred,
                        covered(*node),
                        load(*node),
                        *node,
                    )
                })
                .unwrap_or(preferred);
            voters.retain(|node| *node != drop);
        }
    }

    /// Puts other nodes in the places of those that leave; whether all could be.
    fn replace_leaving(
        &self,
        partition: &Partition,
        voters: &mut [NodeId],
        spread: &Loads,
    ) -> bool {
        let mut complete = true;
        for place in 0..voters.len() {
            if self.is_active(voters[place]) {
                continue;
            }
            let mut rest = voters.to_vec();
            rest.remove(place);
            match self.free_node(partition, &rest, spread) {
                Some(node) => voters[place] = node,
                None => complete = false,
            }
        }
        complete
    }

    /// Adds nodes up to `wanted`; whether there were enough. Default replication grows in one
    /// step or not at all, since an even number of voters survives no more than one fewer.
    fn add_missing(
        &self,
        partition: &Partition,
        voters: &mut Vec<NodeId>,
        wanted: Wanted,
        spread: &Loads,
    ) -> bool {
        let before = voters.len();
        while voters.len() < wanted.count {
            let Some(node) = self.free_node(partition, voters, spread) else {
                if !wanted.fixed {
                    voters.truncate(before);
                }
                return false;
            };
            voters.push(node);
        }
        true
    }

    /// The best node to join `rest`.
    fn free_node(&self, partition: &Partition, rest: &[NodeId], spread: &Loads) -> Option<NodeId> {
        let learners: BTreeSet<NodeId> = partition
            .targets(Standing::Learner)
            .map(|replica| replica.id.node())
            .collect();
        let mut candidates = self.candidates(spread, rest);
        candidates.retain(|c| {
            rest.contains(&c.node) || (self.is_active(c.node) && !learners.contains(&c.node))
        });
        replacement(&candidates, rest)
    }

    fn reassign(&mut self, partition: &Partition, voters: &[NodeId]) {
        for node in partition.voter_nodes() {
            if let Some(load) = self.loads.get_mut(&node) {
                load.replicas = load.replicas.saturating_sub(1);
            }
        }
        for node in voters {
            self.loads.entry(*node).or_default().replicas += 1;
        }
        let preferred = if voters.contains(&partition.preferred) {
            partition.preferred
        } else {
            self.least_leading(voters).unwrap_or(partition.preferred)
        };
        if preferred != partition.preferred {
            if let Some(load) = self.loads.get_mut(&partition.preferred) {
                load.leaders = load.leaders.saturating_sub(1);
            }
            self.loads.entry(preferred).or_default().leaders += 1;
        }
        self.touched.insert(partition.group);
        self.budget = self.budget.saturating_sub(1);
        self.plan
            .commands
            .push(assign(partition, voters, preferred));
    }

    /// Spreads replicas over racks, then evenly over nodes. A move of the first kind covers one
    /// more rack, and one of the second covers no fewer and brings counts closer, so this ends.
    fn spread_replicas(&mut self) {
        for topic in self.map.topics() {
            for partition in &topic.partitions {
                if self.budget > 0
                    && partition.is_settled()
                    && !partition.pinned
                    && !partition.is_dead()
                    && !self.touched.contains(&partition.group)
                    && let Some((from, to)) = self.rack_move(partition)
                {
                    self.begin(partition, from, to);
                }
            }
        }
        self.even_replicas();
    }

    /// From a rack that holds two replicas to the emptiest node of one that holds none.
    fn rack_move(&self, partition: &Partition) -> Option<(NodeId, NodeId)> {
        let voters: Vec<NodeId> = partition.voter_nodes().collect();
        let racks: Vec<Option<String>> = voters.iter().map(|node| self.rack(*node)).collect();
        let uses = |rack: &Option<String>| racks.iter().filter(|other| *other == rack).count();
        let count = |node: NodeId| self.loads.get(&node).map_or(0, |load| load.replicas);
        let crowded = voters.iter().zip(&racks).filter(|(node, rack)| {
            rack.is_some() && uses(rack) > 1 && **node != partition.preferred
        });
        let from = crowded
            .map(|(node, _)| *node)
            .max_by_key(|node| (count(*node), *node))?;
        let holds = |node: &NodeId| partition.replicas.iter().any(|r| r.id.node() == *node);
        let free = self
            .racks
            .iter()
            .filter(|(node, rack)| !holds(node) && (rack.is_none() || uses(rack) == 0));
        let to = free
            .map(|(node, _)| *node)
            .min_by_key(|node| (count(*node), *node))?;
        Some((from, to))
    }

    fn begin(&mut self, partition: &Partition, from: NodeId, to: NodeId) {
        let voters: Vec<NodeId> = partition
            .voter_nodes()
            .map(|node| if node == from { to } else { node })
            .collect();
        self.moves.push((partition.group, from, to));
        self.reassign(partition, &voters);
    }

    /// Moves replicas from the fullest nodes to the emptiest, as long as they differ by two and
    /// no rack spread is lost.
    fn even_replicas(&mut self) {
        let mut held: BTreeMap<NodeId, Vec<(usize, &'a Arc<Partition>)>> = BTreeMap::new();
        let mut spreads = Vec::new();
        for (number, topic) in self.map.topics().enumerate() {
            spreads.push(loads_of(topic.partitions.iter().map(Arc::as_ref)));
            for partition in topic
                .partitions
                .iter()
                .filter(|p| p.is_settled() && !p.is_dead())
            {
                if partition.pinned {
                    continue;
                }
                for node in partition.voter_nodes() {
                    held.entry(node).or_default().push((number, partition));
                }
            }
        }
        while self.budget > 0 {
            let Some((partition, from, to)) = self.evening_move(&held, &spreads) else {
                return;
            };
            self.begin(partition, from, to);
        }
    }

    /// The best move between the two nodes furthest apart that allow any.
    fn evening_move(
        &self,
        held: &BTreeMap<NodeId, Vec<(usize, &'a Arc<Partition>)>>,
        spreads: &[Loads],
    ) -> Option<(&'a Arc<Partition>, NodeId, NodeId)> {
        let count = |node: &NodeId| self.loads.get(node).map_or(0, |load| load.replicas);
        let mut nodes: Vec<NodeId> = self.racks.keys().copied().collect();
        nodes.sort_by_key(|node| (count(node), *node));
        let pairs = nodes
            .iter()
            .rev()
            .flat_map(|from| nodes.iter().map(move |to| (*from, *to)))
            .filter(|(from, to)| count(to) + 2 <= count(from))
            .take(MAX_PAIRS);
        for (from, to) in pairs {
            // Of the topic that crowds `from` most, compared to `to`.
            let crowding = |topic: usize| {
                let on = |node| spreads[topic].get(&node).map_or(0, |load| load.replicas);
                on(from).saturating_sub(on(to))
            };
            let best = held
                .get(&from)
                .into_iter()
                .flatten()
                .filter(|(_, partition)| self.may_move(partition, from, to))
                .max_by_key(|(topic, partition)| {
                    (crowding(*topic), std::cmp::Reverse(partition.group))
                });
            if let Some((_, partition)) = best {
                return Some((partition, from, to));
            }
        }
        None
    }

    fn may_move(&self, partition: &Partition, from: NodeId, to: NodeId) -> bool {
        if self.touched.contains(&partition.group)
            || partition.replicas.iter().any(|r| r.id.node() == to)
        {
            return false;
        }
        let spread = |moved: bool| {
            let racks: Vec<Option<String>> = partition
                .voter_nodes()
                .map(|node| self.rack(if moved && node == from { to } else { node }))
                .collect();
            racks_covered(racks.iter().map(Option::as_deref))
        };
        spread(true) >= spread(false)
    }

    /// Prefers leaders on nodes that stay, and spreads them evenly, per topic and in all.
    fn leaders(&mut self) {
        let mut choices = Vec::new();
        let mut partitions = Vec::new();
        let mut homeless = 0;
        for (number, topic) in self.map.topics().enumerate() {
            for partition in &topic.partitions {
                if self.touched.contains(&partition.group) {
                    continue;
                }
                let choice = self.leader_choice(partition);
                if choice.leader != partition.preferred {
                    homeless += 1;
                }
                let due = choice.leader == partition.preferred || homeless <= MAX_LEADER_CHANGES;
                if due && !choice.options.is_empty() {
                    choices.push(choice);
                    partitions.push((number, partition));
                }
            }
        }
        if self.map.config().balance_leaders() {
            spread_leaders(&mut choices, &partitions, self.racks.keys().copied());
        }
        for (choice, (_, partition)) in choices.iter().zip(&partitions) {
            if choice.leader != partition.preferred {
                self.plan.commands.push(Command::PreferLeader(PreferLeader {
                    group: partition.group.get(),
                    node: choice.leader.get(),
                }));
            }
        }
    }

    /// Who should lead before anything is evened out, and who else could.
    fn leader_choice(&mut self, partition: &Partition) -> LeaderChoice {
        let mut options = self.leader_options(partition);
        let mut leader = partition.preferred;
        // Whom an operator prefers may be on its way there.
        let comes = partition.voter_nodes().any(|node| node == leader) && self.is_active(leader);
        if partition.pinned && comes {
            options = vec![leader];
        } else if !options.contains(&leader) {
            leader = self.least_leading(&options).unwrap_or(leader);
            self.loads.entry(leader).or_default().leaders += 1;
        }
        LeaderChoice { leader, options }
    }

    /// The nodes that could lead a partition now: voters for good, on nodes that stay.
    fn leader_options(&self, partition: &Partition) -> Vec<NodeId> {
        partition
            .targets(Standing::Voter)
            .filter(|replica| replica.settled == Standing::Voter)
            .map(|replica| replica.id.node())
            .filter(|node| self.is_active(*node))
            .collect()
    }

    fn least_leading(&self, options: &[NodeId]) -> Option<NodeId> {
        let leads = |node: &NodeId| self.loads.get(node).map_or(0, |load| load.leaders);
        options
            .iter()
            .copied()
            .min_by_key(|node| (leads(node), *node))
    }
}

/// Evens leaders out within each topic, then over all where that keeps each topic as even. Each
/// change lowers the one measure or else the other, so rounds of this end.
fn spread_leaders(
    choices: &mut [LeaderChoice],
    partitions: &[(usize, &Arc<Partition>)],
    nodes: impl Iterator<Item = NodeId>,
) {
    let nodes: BTreeMap<NodeId, u64> = nodes.map(|node| (node, 0)).collect();
    let mut left = MAX_LEADER_CHANGES;
    let mut start = 0;
    while start < choices.len() && left > 0 {
        let same_topic = |p: &&(usize, &Arc<Partition>)| p.0 == partitions[start].0;
        let end = start + partitions[start..].iter().take_while(same_topic).count();
        let of_topic = &mut choices[start..end];
        let counts = tally(of_topic, &nodes);
        let moved = even_leaders(of_topic, counts, left, |_, _, _| true);
        left = left.saturating_sub(moved.len());
        for (at, leader) in moved {
            of_topic[at].leader = leader;
        }
        start = end;
    }
    while left > 0 {
        let mut of_topic: BTreeMap<(usize, NodeId), u64> = BTreeMap::new();
        for (choice, (topic, _)) in choices.iter().zip(partitions) {
            *of_topic.entry((*topic, choice.leader)).or_default() += 1;
        }
        let leads = |at: usize, node| of_topic.get(&(partitions[at].0, node)).unwrap_or(&0);
        // One chain at a time, since each shifts what the next is judged by.
        let moved = even_leaders(choices, tally(choices, &nodes), 1, |at, from, to| {
            leads(at, from) > leads(at, to)
        });
        if moved.is_empty() {
            return;
        }
        left = left.saturating_sub(moved.len());
        for (at, leader) in moved {
            choices[at].leader = leader;
        }
    }
}

fn tally(choices: &[LeaderChoice], nodes: &BTreeMap<NodeId, u64>) -> BTreeMap<NodeId, u64> {
    let mut counts = nodes.clone();
    for choice in choices {
        *counts.entry(choice.leader).or_default() += 1;
    }
    counts
}

fn same_nodes(a: &[NodeId], b: &[NodeId]) -> bool {
    let set = |nodes: &[NodeId]| nodes.iter().copied().collect::<BTreeSet<_>>();
    set(a) == set(b)
}

fn assign(partition: &Partition, voters: &[NodeId], preferred: NodeId) -> Command {
    let learners = if partition.group == GroupId::CONTROLLER {
        Vec::new()
    } else {
        partition
            .targets(Standing::Learner)
            .map(|replica| replica.id.node().get())
            .filter(|node| !voters.contains(&NodeId(*node)))
            .collect()
    };
    Command::AssignReplicas(AssignReplicas {
        group: partition.group.get(),
        generation: partition.generation,
        voters: voters.iter().map(|node| node.get()).collect(),
        learners,
        preferred: preferred.get(),
        back: false,
    })
}

#[cfg(test)]
mod tests;
