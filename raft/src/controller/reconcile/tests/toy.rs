//! A toy cluster: groups as counters, nodes that crash, maps that are old, reports that are late,
//! doubled or lost. Under any interleaving nothing unsafe is planned, and once the trouble ends
//! everything comes to where the map wants it.

use proptest::prelude::*;
use trilog_model::Timestamp;

use super::super::super::balance::plan_balance;
use super::super::super::command::{
    AlterTopic, AssignReplicas, Assignment, ConfigChange, CreateTopic, DeleteTopic, PreferLeader,
    ReplaceNode, SetClusterConfig,
};
use super::super::super::fixtures::registration;
use super::*;

const LAG: u64 = 10;

fn limits() -> Limits {
    Limits {
        opens: 3,
        closes: 3,
        transfers: 3,
        catch_ups: 2,
        caught_up_lag: LAG,
    }
}

#[derive(Clone, Debug)]
struct Change {
    voters: BTreeSet<ReplicaId>,
    demoted: BTreeSet<ReplicaId>,
    /// The length of a log that holds it.
    at: u64,
    /// Whose caller makes its final step.
    term: u64,
}

/// One Raft group, with its log as a length.
#[derive(Clone, Debug, Default)]
struct ToyGroup {
    formed: bool,
    voters: BTreeSet<ReplicaId>,
    learners: BTreeSet<ReplicaId>,
    /// A joint change on its way.
    pending: Option<Change>,
    leader: Option<ReplicaId>,
    term: u64,
    matched: BTreeMap<ReplicaId, u64>,
    committed: u64,
}

impl ToyGroup {
    fn has_majority(&self, able: impl Fn(ReplicaId) -> bool) -> bool {
        let majority =
            |set: &BTreeSet<ReplicaId>| set.iter().filter(|id| able(**id)).count() * 2 > set.len();
        majority(&self.voters)
            && self
                .pending
                .as_ref()
                .is_none_or(|change| majority(&change.voters))
    }

    fn members(&self) -> BTreeSet<ReplicaId> {
        let pending = self.pending.iter().flat_map(|change| &change.voters);
        let all = self.voters.iter().chain(&self.learners).chain(pending);
        all.copied().collect()
    }

    /// The joint step is committed, and who would make the final one is gone.
    fn is_half_done(&self) -> bool {
        let committed = |change: &Change| {
            change.term != self.term && self.has_majority(|id| self.length(id) >= change.at)
        };
        self.pending.as_ref().is_some_and(committed)
    }

    /// Makes the final step. `retain` keeps who loses the vote.
    fn finish(&mut self, retain: bool) {
        let Some(change) = self.pending.take() else {
            return;
        };
        let old = std::mem::replace(&mut self.voters, change.voters);
        let left = old.difference(&self.voters).copied();
        let left = left.filter(|id| retain || change.demoted.contains(id));
        self.learners.extend(left);
        self.learners = self.learners.difference(&self.voters).copied().collect();
        self.leader = self.leader.filter(|id| self.voters.contains(id));
    }

    fn length(&self, id: ReplicaId) -> u64 {
        self.matched.get(&id).copied().unwrap_or(0)
    }

    fn advance_commit(&mut self) {
        let Some(leader) = self.leader else {
            return;
        };
        let mut lengths: Vec<u64> = self.matched.values().copied().collect();
        lengths.sort_unstable();
        for length in lengths {
            let holds = |id| self.length(id) >= length;
            if length > self.committed && length <= self.length(leader) && self.has_majority(holds)
            {
                self.committed = length;
            }
        }
    }
}

struct ToyNode {
    identity: u8,
    up: bool,
    map: ClusterMap,
    /// Maps from before, which it may see again when it starts.
    seen: Vec<ClusterMap>,
    /// Read from the controller since it started.
    current: Option<u64>,
    local: BTreeMap<GroupId, ReplicaId>,
    /// Of those, the ones that run: none after a start.
    running: BTreeSet<GroupId>,
    /// Per led group: the term and the version read in it.
    confirmed: BTreeMap<GroupId, (u64, u64)>,
}

impl ToyNode {
    fn learn(&mut self, map: ClusterMap) {
        self.seen.push(std::mem::replace(&mut self.map, map));
    }

    /// Stops, or starts again and folds the controller's log from somewhere in the past.
    fn toggle(&mut self, draw: usize) {
        self.up = !self.up;
        self.running.clear();
        self.current = None;
        if let Some(before) = self.seen.get(draw % self.seen.len().max(1)) {
            self.map = before.clone();
        }
    }

    fn runs(&self, group: GroupId) -> bool {
        self.up && self.running.contains(&group)
    }
}

pub(super) struct World {
    state: ControllerState,
    /// Proposals on their way to the controller.
    net: Vec<Command>,
    nodes: BTreeMap<NodeId, ToyNode>,
    groups: BTreeMap<GroupId, ToyGroup>,
    /// Replicas whose data is gone.
    gone: BTreeSet<ReplicaId>,
    topics: u32,
    identities: u8,
}

impl World {
    fn new(nodes: u8) -> Self {
        let mut world = Self {
            state: cluster(nodes),
            net: Vec::new(),
            nodes: BTreeMap::new(),
            groups: BTreeMap::new(),
            gone: BTreeSet::new(),
            topics: 0,
            identities: nodes,
        };
        for node in 1..=nodes {
            world.add_node(node, node);
        }
        world
    }

    fn add_node(&mut self, node: u8, identity: u8) {
        let toy = ToyNode {
            identity,
            up: true,
            map: self.state.map(),
            seen: Vec::new(),
            current: None,
            local: BTreeMap::new(),
            running: BTreeSet::new(),
            confirmed: BTreeMap::new(),
        };
        self.nodes.insert(NodeId(node.into()), toy);
    }

    fn runs(&self, group: GroupId, replica: ReplicaId) -> bool {
        self.nodes
            .get(&replica.node())
            .is_some_and(|node| node.runs(group) && node.local.get(&group) == Some(&replica))
    }

    /// What the controller says to a command; refusals are part of life here.
    fn deliver(&mut self, command: &Command) {
        drop(self.state.carry_out(command, Timestamp(1)));
    }

    fn local(&self, id: NodeId) -> Vec<LocalGroup> {
        let node = &self.nodes[&id];
        node.local
            .iter()
            .map(|(group, replica)| LocalGroup {
                group: *group,
                replica: *replica,
                role: self.role(*group, *replica, node),
            })
            .collect()
    }

    fn role(&self, id: GroupId, replica: ReplicaId, node: &ToyNode) -> LocalRole {
        if !node.runs(id) {
            return LocalRole::Stopped;
        }
        let Some(group) = self.groups.get(&id) else {
            return LocalRole::Follower;
        };
        if group.leader != Some(replica) {
            return LocalRole::Follower;
        }
        let confirmed = node.confirmed.get(&id);
        let progress = group.members().into_iter().map(|member| {
            let progress = Progress {
                lag: group.length(replica).saturating_sub(group.length(member)),
                reachable: self.runs(id, member),
            };
            (member, progress)
        });
        LocalRole::Leader(LeaderView {
            term: Term(group.term),
            confirmed: confirmed
                .filter(|(term, _)| *term == group.term)
                .map(|(_, version)| *version),
            voters: group.voters.clone(),
            learners: group.learners.clone(),
            changing: group.pending.is_some(),
            half_done: group.is_half_done(),
            progress: progress.collect(),
            unfit: BTreeSet::new(),
        })
    }

    /// One round of a node with the map it has; carries out the first `most` actions.
    fn reconcile(&mut self, id: NodeId, most: usize) -> usize {
        let node = &self.nodes[&id];
        if !node.up {
            return 0;
        }
        let me = Myself {
            node: id,
            identity: NodeIdentity::from_bytes([node.identity; 16]).unwrap(),
            confirmed: node.current,
        };
        let Ok(plan) = plan_node(&node.map, me, &self.local(id), &limits()) else {
            return 0;
        };
        let count = plan.actions.len();
        for action in plan.actions.into_iter().take(most) {
            self.carry_out(id, action);
        }
        count
    }

    fn carry_out(&mut self, id: NodeId, action: Action) {
        match action {
            Action::CloseGroup { group, replica } => self.close(id, group, replica),
            Action::OpenGroup {
                group,
                replica,
                kind,
            } => self.open(id, group, replica, kind),
            Action::ConfirmMap => self.confirm(id),
            Action::Report(command) => self.net.push(command),
            Action::AddLearner { group, replica } => self.as_leader(id, group, |group, _| {
                group.learners.insert(replica);
            }),
            Action::RemoveLearner { group, replica } => self.as_leader(id, group, |group, _| {
                group.learners.remove(&replica);
            }),
            Action::ChangeVoters {
                group,
                voters,
                demoted,
            } => self.as_leader(id, group, |group, leader| {
                let most = group.length(leader);
                let caught_up = |id: &&ReplicaId| group.length(**id) + LAG >= most;
                let count = voters.iter().filter(caught_up).count();
                assert!(count * 2 > voters.len(), "below a caught-up quorum");
                let at = most + 1;
                group.matched.insert(leader, at);
                group.pending = Some(Change {
                    voters,
                    demoted,
                    at,
                    term: group.term,
                });
            }),
            Action::FinishChange { group } => self.as_leader(id, group, |group, _| {
                assert!(group.is_half_done(), "a change that others make");
                group.finish(true);
            }),
            Action::TransferLeader { group, to } => {
                let runs = self.runs(group, to);
                self.as_leader(id, group, |group, leader| {
                    assert!(group.voters.contains(&to), "a leader without a vote");
                    if runs && group.length(to) == group.length(leader) {
                        group.leader = Some(to);
                        group.term += 1;
                    }
                });
            }
        }
    }

    fn as_leader(
        &mut self,
        id: NodeId,
        group: GroupId,
        act: impl FnOnce(&mut ToyGroup, ReplicaId),
    ) {
        let replica = self.nodes[&id].local.get(&group).copied();
        let Some(group) = self.groups.get_mut(&group) else {
            return;
        };
        if let Some(replica) = replica.filter(|id| group.leader == Some(*id)) {
            act(group, replica);
        }
    }

    fn open(&mut self, id: NodeId, group: GroupId, replica: ReplicaId, kind: OpenKind) {
        assert_eq!(replica.node(), id);
        assert!(!self.gone.contains(&replica), "a deleted replica came back");
        let node = self.nodes.get_mut(&id).unwrap();
        let before = node.local.insert(group, replica);
        assert!(
            before.is_none_or(|before| before == replica),
            "two replicas in one place"
        );
        assert!(node.running.insert(group), "opened twice");
        let toy = self.groups.entry(group).or_default();
        toy.matched.entry(replica).or_insert(0);
        if let OpenKind::Found(founding) = kind {
            assert!(founding.contains(&replica));
            if !toy.formed {
                toy.voters = founding;
            }
        }
    }

    fn close(&mut self, id: NodeId, group: GroupId, replica: ReplicaId) {
        let node = self.nodes.get_mut(&id).unwrap();
        assert_eq!(node.local.remove(&group), Some(replica));
        node.running.remove(&group);
        self.gone.insert(replica);
        let alive = self.state.map().group(group).is_some();
        let toy = self.groups.get_mut(&group).unwrap();
        let votes = toy.voters.contains(&replica)
            || toy
                .pending
                .iter()
                .any(|change| change.voters.contains(&replica));
        assert!(!alive || !votes, "a voter of a living group was deleted");
        toy.matched.remove(&replica);
    }

    fn confirm(&mut self, id: NodeId) {
        let map = self.state.map();
        let version = map.version();
        let groups = &self.groups;
        let node = self.nodes.get_mut(&id).unwrap();
        node.learn(map);
        node.current = Some(version);
        for (group, replica) in &node.local {
            let toy = groups.get(group);
            if let Some(toy) = toy.filter(|toy| toy.leader == Some(*replica)) {
                node.confirmed.insert(*group, (toy.term, version));
            }
        }
    }

    /// A group lives on for a moment: form, lose a leader, finish a change, elect, append.
    fn live(&mut self, id: GroupId, entries: u64) {
        let Some(mut group) = self.groups.remove(&id) else {
            return;
        };
        let runs = |replica| self.runs(id, replica);
        if !group.formed && group.has_majority(runs) {
            group.formed = true;
        }
        if group.leader.is_some_and(|leader| !runs(leader)) {
            group.leader = None;
        }
        if group.formed && group.has_majority(runs) {
            if group.leader.is_none() {
                elect(&mut group, &runs);
            }
            if let Some(leader) = group.leader {
                finish_change(&mut group, leader);
                *group.matched.entry(leader).or_default() += entries;
            }
        }
        group.advance_commit();
        self.groups.insert(id, group);
    }

    /// A member gets what its leader has.
    fn replicate(&mut self, id: GroupId, member: ReplicaId) {
        if !self.runs(id, member) {
            return;
        }
        let Some(group) = self.groups.get_mut(&id) else {
            return;
        };
        let Some(leader) = group.leader else {
            return;
        };
        if group.members().contains(&member) {
            let length = group.length(leader);
            group.matched.insert(member, length);
            group.advance_commit();
        }
    }

    /// Whether every group keeps an intact majority without `node`'s disk.
    fn can_lose(&self, node: NodeId) -> bool {
        let intact = |id: ReplicaId| id.node() != node && !self.gone.contains(&id);
        let formed = self.groups.values().all(|group| group.has_majority(intact));
        let founding = self.state.map().groups().all(|partition| {
            let left = partition.founding.iter().filter(|id| intact(**id)).count();
            self.groups.get(&partition.group).is_some_and(|g| g.formed)
                || left * 2 > partition.founding.len()
        });
        formed && founding
    }

    fn lose_disk(&mut self, id: NodeId) {
        let Some(node) = self.state.map().node(id).cloned() else {
            return;
        };
        if !node.is_member() || !self.can_lose(id) {
            return;
        }
        self.identities += 1;
        let byte = u8::try_from(id.get()).unwrap();
        let map = self.state.map();
        let of_map = map.groups().flat_map(|partition| {
            let here = partition.replicas.iter().filter(|r| r.id.node() == id);
            here.map(|replica| (partition.group, replica.id))
        });
        let toy = self.nodes.get_mut(&id).unwrap();
        let local = std::mem::take(&mut toy.local);
        for (group, replica) in of_map.chain(local) {
            self.gone.insert(replica);
            if let Some(toy) = self.groups.get_mut(&group) {
                toy.matched.remove(&replica);
                toy.leader = toy.leader.filter(|leader| *leader != replica);
            }
        }
        self.add_node(byte, self.identities);
        let replace = ReplaceNode {
            node: registration(id.get(), self.identities, ""),
            old_identity: node.identity.to_wire(),
        };
        self.state
            .carry_out(&Command::ReplaceNode(replace), Timestamp(1))
            .unwrap();
    }
}

/// The longest log among a majority that runs wins, and must hold all that was committed.
fn elect(group: &mut ToyGroup, runs: &impl Fn(ReplicaId) -> bool) {
    let best = group
        .voters
        .iter()
        .filter(|id| runs(**id))
        .max_by_key(|id| group.length(**id))
        .copied();
    let Some(best) = best else {
        return;
    };
    let length = group.length(best);
    assert!(length >= group.committed, "committed entries were lost");
    group.term += 1;
    group.leader = Some(best);
    for matched in group.matched.values_mut() {
        *matched = (*matched).min(length);
    }
}

/// A change is made once a majority of both sets holds it, if the leader that began it still
/// leads, and undone by a leader without it.
fn finish_change(group: &mut ToyGroup, leader: ReplicaId) {
    let Some(change) = group.pending.clone() else {
        return;
    };
    if group.length(leader) < change.at {
        group.pending = None;
    } else if !group.is_half_done() && group.has_majority(|id| group.length(id) >= change.at) {
        group.finish(false);
    }
}

/// One thing that happens, with what chance drew for it.
#[derive(Clone, Copy, Debug)]
struct Event {
    kind: u8,
    a: u32,
    b: u32,
}

impl World {
    fn pick_node(&self, draw: u32) -> NodeId {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        ids[draw as usize % ids.len()]
    }

    fn pick_group(&self, draw: u32) -> GroupId {
        let map = self.state.map();
        let ids: Vec<GroupId> = map.groups().map(|partition| partition.group).collect();
        ids[draw as usize % ids.len()]
    }

    fn happen(&mut self, event: Event) {
        let Event { kind, a, b } = event;
        match kind {
            0..=9 => {
                let node = self.pick_node(a);
                self.reconcile(node, b as usize % 5 + 1);
            }
            10..=13 => {
                let node = self.pick_node(a);
                let map = self.state.map();
                self.nodes.get_mut(&node).unwrap().learn(map);
            }
            14..=18 => self.live(self.pick_group(a), u64::from(b % 30)),
            19..=22 => {
                let group = self.pick_group(a);
                let members = self.groups.get(&group).map(ToyGroup::members);
                let members: Vec<ReplicaId> = members.into_iter().flatten().collect();
                if let Some(member) = members.get(b as usize % members.len().max(1)) {
                    self.replicate(group, *member);
                }
            }
            23..=26 if !self.net.is_empty() => {
                let command = self.net[a as usize % self.net.len()].clone();
                if b % 3 > 0 {
                    let at = a as usize % self.net.len();
                    self.net.remove(at);
                }
                if b % 7 > 0 {
                    self.deliver(&command);
                }
            }
            27 => {
                let node = self.pick_node(a);
                let node = self.nodes.get_mut(&node).unwrap();
                node.toggle(b as usize);
            }
            28 => {
                let group = self.pick_group(a);
                if let Some(group) = self.groups.get_mut(&group) {
                    group.leader = None;
                }
            }
            _ => self.administer(kind, a, b),
        }
    }

    fn administer(&mut self, kind: u8, a: u32, b: u32) {
        let node = NodeRef {
            node: self.pick_node(a).get(),
        };
        let group = self.pick_group(a);
        match kind {
            29 => {
                self.topics += 1;
                let name = format!("t{}", b % 4);
                let command = create(self.topics, &name, a % 3 + 1, b % 4);
                self.deliver(&command);
            }
            30 => self.deliver(&Command::DrainNode(node)),
            31 => self.deliver(&Command::ResumeNode(node)),
            32 => self.lose_disk(NodeId(node.node)),
            33 => {
                let up = |node: &NodeId| self.nodes[node].up;
                let reachable = self.nodes.keys().copied().filter(up).collect();
                for command in plan_balance(&self.state.map(), &reachable).commands {
                    self.net.push(command);
                }
            }
            34 => {
                let named = self
                    .state
                    .map()
                    .topic_named(&format!("t{}", b % 4))
                    .cloned();
                if let Some(topic) = named {
                    let id = topic.id.to_wire();
                    self.deliver(&match a % 3 {
                        0 => Command::DeleteTopic(DeleteTopic { id }),
                        _ => Command::AlterTopic(AlterTopic {
                            id,
                            replication: a % 4,
                            ..AlterTopic::default()
                        }),
                    });
                }
            }
            35 | 36 => {
                let count = u32::try_from(self.nodes.len()).unwrap();
                let voters: Vec<u32> = (0..=b % 3).map(|at| (b + at) % count + 1).collect();
                let command = AssignReplicas {
                    group: group.get(),
                    generation: partition(&self.state, group.get()).generation,
                    preferred: voters[0],
                    voters,
                    learners: Vec::new(),
                    back: false,
                };
                self.deliver(&Command::AssignReplicas(command));
            }
            _ => self.deliver(&Command::PreferLeader(PreferLeader {
                group: group.get(),
                node: b % 5 + 1,
            })),
        }
    }

    /// The trouble ends: everyone is up and hears everything; rounds until nothing is left to do.
    fn heal(&mut self) {
        let ids: Vec<NodeId> = self.nodes.keys().copied().collect();
        for id in &ids {
            self.nodes.get_mut(id).unwrap().up = true;
        }
        let mut quiet = 0;
        for _ in 0..300 {
            let everyone = ids.iter().copied().collect();
            let plan = plan_balance(&self.state.map(), &everyone);
            self.net.extend(plan.commands.iter().cloned());
            let mut busy = !self.net.is_empty();
            for command in std::mem::take(&mut self.net) {
                self.deliver(&command);
            }
            for id in &ids {
                self.nodes.get_mut(id).unwrap().map = self.state.map();
                busy |= self.reconcile(*id, usize::MAX) > 0;
            }
            let groups: Vec<GroupId> = self.groups.keys().copied().collect();
            for group in groups {
                self.live(group, 1);
                for member in self.groups[&group].members() {
                    self.replicate(group, member);
                }
            }
            // A round may only wait for what the groups did after it.
            quiet = if busy { 0 } else { quiet + 1 };
            if quiet == 3 {
                return;
            }
        }
        panic!("the cluster does not come to rest");
    }

    fn check_rest(&self) {
        let map = self.state.map();
        for partition in map.groups() {
            assert!(partition.is_settled(), "{partition:?}");
            let group = &self.groups[&partition.group];
            assert_eq!(group.voters, partition.target_set(Standing::Voter));
            assert_eq!(group.learners, partition.target_set(Standing::Learner));
            let leader = group.leader.expect("a leader").node();
            let preferred_stays = map.node(partition.preferred).unwrap().is_active();
            assert!(leader == partition.preferred || !preferred_stays);
        }
        for (id, node) in &self.nodes {
            assert!(map.retired(*id).is_none(), "{id} still has to close");
            let due: BTreeMap<GroupId, ReplicaId> = map
                .groups()
                .filter_map(|p| p.wanted_on(*id).map(|replica| (p.group, replica.id)))
                .collect();
            assert_eq!(node.local, due, "node {id}");
        }
    }
}

#[test]
fn a_new_leader_with_an_old_map_does_not_undo_what_a_late_report_is_about_to_settle() {
    let mut world = World::new(4);
    let mut topic = CreateTopic {
        id: NodeIdentity::from_bytes([5; 16]).unwrap().to_wire(),
        name: "a".into(),
        ..CreateTopic::default()
    };
    topic.assignments.push(Assignment {
        nodes: vec![1, 2, 3],
    });
    world.deliver(&Command::CreateTopic(topic));
    for key in ["trilog.balance.replicas", "trilog.balance.leaders"] {
        world.deliver(&Command::SetClusterConfig(SetClusterConfig {
            configs: vec![ConfigChange::set(key, "false")],
        }));
    }
    world.heal();
    let (one, two, group) = (NodeId(1), NodeId(2), GroupId(2));
    assert_eq!(world.groups[&group].leader.unwrap().node(), one);

    // The leader carries out a move; its report is on its way.
    world.deliver(&assign(&world.state.clone(), 2, &[1, 2, 4]));
    for node in [one, NodeId(4)] {
        world.nodes.get_mut(&node).unwrap().map = world.state.map();
    }
    for _ in 0..6 {
        world.reconcile(NodeId(4), 9);
        world.reconcile(one, 9);
        world.live(group, 1);
        for member in world.groups[&group].members() {
            world.replicate(group, member);
        }
    }
    let moved = world.groups[&group].voters.clone();
    assert!(moved.iter().any(|id| id.node() == NodeId(4)));
    assert!(!world.net.is_empty() && !partition(&world.state, 2).is_settled());

    // Its successor has not heard of the move.
    let successor = world.nodes[&two].local[&group];
    let toy = world.groups.get_mut(&group).unwrap();
    toy.leader = Some(successor);
    toy.term += 1;
    for _ in 0..6 {
        world.reconcile(two, 9);
        world.live(group, 1);
        for member in world.groups[&group].members() {
            world.replicate(group, member);
        }
    }
    assert_eq!(world.groups[&group].voters, moved);
    world.heal();
    world.check_rest();
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = (0u8..38, any::<u32>(), any::<u32>());
    prop::collection::vec(event.prop_map(|(kind, a, b)| Event { kind, a, b }), 0..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_trouble_is_safe_and_ends_where_the_map_wants_it(nodes in 1u8..6, events in events()) {
        let mut world = World::new(nodes);
        for event in events {
            world.happen(event);
        }
        world.heal();
        world.check_rest();
    }
}
