use super::super::command::NodeRef;
use super::super::fixtures::{assign, cluster, create, done, partition, settle};
use super::super::state::ControllerState;
use super::*;

mod toy;

fn myself(node: u32) -> Myself {
    let byte = u8::try_from(node).unwrap();
    Myself {
        node: NodeId(node),
        identity: NodeIdentity::from_bytes([byte; 16]).unwrap(),
        confirmed: Some(0),
    }
}

fn plan(state: &ControllerState, node: u32, local: &[LocalGroup]) -> Vec<Action> {
    plan_node(&state.map(), myself(node), local, &Limits::default())
        .unwrap()
        .actions
}

/// `node` leads `group` with its members as they were before the last assignment.
fn leading(state: &ControllerState, node: u32, group: u64) -> LocalGroup {
    let partition = partition(state, group);
    let settled = |standing| {
        partition
            .replicas
            .iter()
            .filter(|replica| replica.settled == standing)
            .map(|replica| replica.id)
            .collect()
    };
    let voters: BTreeSet<ReplicaId> = settled(Standing::Voter);
    let replica = *voters.iter().find(|id| id.node().get() == node).unwrap();
    let fresh = Progress {
        lag: 0,
        reachable: true,
    };
    LocalGroup {
        group: GroupId(group),
        replica,
        role: LocalRole::Leader(LeaderView {
            term: Term(1),
            confirmed: Some(state.map().version()),
            progress: partition.replicas.iter().map(|r| (r.id, fresh)).collect(),
            voters,
            learners: settled(Standing::Learner),
            changing: false,
            half_done: false,
            unfit: BTreeSet::new(),
        }),
    }
}

fn view(local: &mut LocalGroup) -> &mut LeaderView {
    match &mut local.role {
        LocalRole::Leader(view) => view,
        LocalRole::Follower | LocalRole::Stopped | LocalRole::PutOff => panic!("no leader"),
    }
}

/// Actions about `group` only.
fn about(actions: Vec<Action>, wanted: u64) -> Vec<Action> {
    let group_of = |action: &Action| match action {
        Action::CloseGroup { group, .. }
        | Action::OpenGroup { group, .. }
        | Action::AddLearner { group, .. }
        | Action::RemoveLearner { group, .. }
        | Action::ChangeVoters { group, .. }
        | Action::FinishChange { group }
        | Action::TransferLeader { group, .. } => *group,
        Action::Report(Command::ReportSettled(report)) => GroupId(report.group),
        Action::ConfirmMap | Action::Report(_) => GroupId(wanted),
    };
    actions
        .into_iter()
        .filter(|action| group_of(action) == GroupId(wanted))
        .collect()
}

#[test]
fn founders_open_a_new_topics_groups_with_the_same_voters() {
    let mut state = cluster(3);
    done(&mut state, &create(1, "a", 1, 3));
    let founding: BTreeSet<ReplicaId> = partition(&state, 2).founding.into_iter().collect();
    for node in 1..=3 {
        let replica = *founding.iter().find(|id| id.node().get() == node).unwrap();
        assert_eq!(
            about(plan(&state, node, &[]), 2),
            [Action::OpenGroup {
                group: GroupId(2),
                replica,
                kind: OpenKind::Found(founding.clone())
            }]
        );
    }
}

/// A map from before this node's process began may be from before it closed the very replica.
#[test]
fn a_replica_begins_on_an_empty_log_only_by_a_map_that_is_known_to_be_current() {
    let mut state = cluster(1);
    done(&mut state, &create(1, "a", 1, 1));
    let map = state.map();
    let replica = partition(&state, 2).founding[0];
    let held = |role| LocalGroup {
        group: GroupId(2),
        replica,
        role,
    };
    let opens = |confirmed: Option<u64>, local: &[LocalGroup]| {
        let me = Myself {
            confirmed,
            ..myself(1)
        };
        let plan = plan_node(&map, me, local, &Limits::default()).unwrap();
        let opens =
            |action: &Action| matches!(action, Action::OpenGroup { group, .. } if group.get() == 2);
        let confirms = plan.actions.contains(&Action::ConfirmMap);
        (plan.actions.iter().any(opens), confirms)
    };
    for confirmed in [None, Some(map.version() + 1)] {
        assert_eq!(opens(confirmed, &[]), (false, true));
        // What is there has not been closed.
        assert!(opens(confirmed, &[held(LocalRole::Stopped)]).0);
    }
    assert_eq!(opens(Some(map.version()), &[]), (true, false));
}

#[test]
fn who_is_no_member_is_told_so() {
    let mut state = cluster(2);
    let estranged = |state: &ControllerState, me| {
        plan_node(&state.map(), me, &[], &Limits::default()).unwrap_err()
    };
    assert_eq!(estranged(&state, myself(7)), Estranged::Unregistered);
    let other = Myself {
        node: NodeId(2),
        ..myself(1)
    };
    assert_eq!(estranged(&state, other), Estranged::Replaced);
    done(&mut state, &Command::DrainNode(NodeRef { node: 2 }));
    done(&mut state, &Command::RemoveNode(NodeRef { node: 2 }));
    assert_eq!(estranged(&state, myself(2)), Estranged::Removed);
}

#[test]
fn a_group_the_map_does_not_know_is_kept_and_named() {
    let state = cluster(1);
    let stranger = LocalGroup {
        group: GroupId(77),
        replica: ReplicaId::new(NodeId(1), 99),
        role: LocalRole::Follower,
    };
    let plan = plan_node(&state.map(), myself(1), &[stranger], &Limits::default()).unwrap();
    assert_eq!(plan.unexplained, [GroupId(77)]);
    assert!(about(plan.actions, 77).is_empty());
}

#[test]
fn a_move_goes_from_learner_to_joint_change_to_report() {
    let mut state = cluster(4);
    done(&mut state, &create(1, "a", 1, 3));
    let old = partition(&state, 2);
    let keep: Vec<u32> = old.voter_nodes().take(2).map(NodeId::get).collect();
    let gone = old.replicas[2].id;
    let fresh = (1..=4)
        .find(|node| old.wanted_on(NodeId(*node)).is_none())
        .unwrap();
    let mut leader = leading(&state, keep[0], 2);
    let moving = assign(&state, 2, &[keep[0], keep[1], fresh]);
    done(&mut state, &moving);
    let joiner = partition(&state, 2).wanted_on(NodeId(fresh)).unwrap().id;
    let step = |state: &ControllerState, leader: &LocalGroup| {
        about(plan(state, keep[0], std::slice::from_ref(leader)), 2)
    };

    view(&mut leader).confirmed = None;
    assert_eq!(step(&state, &leader), [Action::ConfirmMap]);
    view(&mut leader).confirmed = Some(state.map().version());
    let group = GroupId(2);
    let add = Action::AddLearner {
        group,
        replica: joiner,
    };
    assert_eq!(step(&state, &leader), [add]);

    view(&mut leader).learners.insert(joiner);
    let behind = Progress {
        lag: 1_000,
        reachable: true,
    };
    view(&mut leader).progress.insert(joiner, behind);
    assert_eq!(step(&state, &leader), []);
    view(&mut leader).progress.get_mut(&joiner).unwrap().lag = 3;
    let target = partition(&state, 2).target_set(Standing::Voter);
    let change = Action::ChangeVoters {
        group,
        voters: target.clone(),
        demoted: BTreeSet::new(),
    };
    assert_eq!(step(&state, &leader), [change]);
    view(&mut leader).changing = true;
    assert_eq!(step(&state, &leader), []);

    *view(&mut leader) = LeaderView {
        voters: target,
        learners: BTreeSet::new(),
        changing: false,
        ..view(&mut leader).clone()
    };
    let [Action::Report(report)] = &step(&state, &leader)[..] else {
        panic!("no report");
    };
    done(&mut state, report);
    assert!(partition(&state, 2).is_settled());
    let closer = LocalGroup {
        group,
        replica: gone,
        role: LocalRole::Follower,
    };
    let close = Action::CloseGroup {
        group,
        replica: gone,
    };
    assert_eq!(
        about(plan(&state, gone.node().get(), &[closer]), 2),
        [close]
    );
    let [Action::Report(report)] = &about(plan(&state, gone.node().get(), &[]), 2)[..] else {
        panic!("no report");
    };
    done(&mut state, report);
    assert!(about(plan(&state, gone.node().get(), &[]), 2).is_empty());
}

#[test]
fn a_change_whose_maker_is_gone_is_finished_by_any_map() {
    let mut state = cluster(4);
    done(&mut state, &create(1, "a", 1, 3));
    let node = partition(&state, 2).preferred.get();
    let mut leader = leading(&state, node, 2);
    let group = GroupId(2);
    let finish = [Action::FinishChange { group }];
    *view(&mut leader) = LeaderView {
        changing: true,
        half_done: true,
        confirmed: None,
        ..view(&mut leader).clone()
    };
    assert_eq!(about(plan(&state, node, &[leader.clone()]), 2), finish);
    // Whatever else is due comes after it.
    let moving = assign(&state, 2, &[node]);
    done(&mut state, &moving);
    assert_eq!(about(plan(&state, node, &[leader]), 2), finish);
}

#[test]
fn voters_are_not_dropped_below_a_caught_up_majority() {
    let mut state = cluster(3);
    done(&mut state, &create(1, "a", 1, 3));
    let nodes: Vec<u32> = partition(&state, 2)
        .voter_nodes()
        .map(NodeId::get)
        .collect();
    let mut leader = leading(&state, nodes[0], 2);
    let fewer = assign(&state, 2, &[nodes[0], nodes[1]]);
    done(&mut state, &fewer);
    view(&mut leader).confirmed = Some(state.map().version());
    let kept = partition(&state, 2).wanted_on(NodeId(nodes[1])).unwrap().id;
    let step =
        |leader: &LocalGroup| about(plan(&state, nodes[0], std::slice::from_ref(leader)), 2).len();
    assert_eq!(step(&leader), 1);
    view(&mut leader).progress.get_mut(&kept).unwrap().reachable = false;
    assert_eq!(step(&leader), 0);
    view(&mut leader).progress.insert(
        kept,
        Progress {
            lag: 1_000_000,
            reachable: true,
        },
    );
    assert_eq!(step(&leader), 0);
}

#[test]
fn a_leader_that_is_to_go_hands_over_before_it_goes() {
    let mut state = cluster(2);
    done(&mut state, &create(1, "a", 1, 1));
    let here = partition(&state, 2).preferred.get();
    let there = 3 - here;
    let mut leader = leading(&state, here, 2);
    let moving = assign(&state, 2, &[there]);
    done(&mut state, &moving);
    let joiner = partition(&state, 2).wanted_on(NodeId(there)).unwrap().id;
    let me = leader.replica;
    *view(&mut leader) = LeaderView {
        confirmed: Some(state.map().version()),
        learners: BTreeSet::from([joiner]),
        progress: BTreeMap::from([(
            joiner,
            Progress {
                lag: 0,
                reachable: true,
            },
        )]),
        ..view(&mut leader).clone()
    };
    let group = GroupId(2);
    assert_eq!(
        about(plan(&state, here, std::slice::from_ref(&leader)), 2),
        [Action::ChangeVoters {
            group,
            voters: BTreeSet::from([me, joiner]),
            demoted: BTreeSet::new()
        }]
    );
    view(&mut leader).voters.insert(joiner);
    view(&mut leader).learners.clear();
    assert_eq!(
        about(plan(&state, here, &[leader]), 2),
        [Action::TransferLeader { group, to: joiner }]
    );
}

#[test]
fn leadership_goes_to_the_preferred_voter_and_away_from_a_draining_node() {
    let mut state = cluster(3);
    done(&mut state, &create(1, "a", 1, 3));
    let partition = partition(&state, 2);
    let preferred = partition.replicas[0].id;
    let other = partition.replicas[1].id.node().get();
    let leader = leading(&state, other, 2);
    let to_preferred = Action::TransferLeader {
        group: GroupId(2),
        to: preferred,
    };
    assert_eq!(
        about(plan(&state, other, std::slice::from_ref(&leader)), 2),
        [to_preferred]
    );
    let drained = preferred.node().get();
    done(&mut state, &Command::DrainNode(NodeRef { node: drained }));
    assert_eq!(about(plan(&state, other, &[leader]), 2), []);
    let leader = leading(&state, drained, 2);
    let [Action::TransferLeader { to, .. }] = about(plan(&state, drained, &[leader]), 2)[..] else {
        panic!("a draining node keeps leading");
    };
    assert_ne!(to, preferred);
}

#[test]
fn the_controller_takes_in_learners_and_demotes_voters() {
    let mut state = cluster(3);
    let mut leader = leading(&state, 1, 1);
    let learners = partition(&state, 1).target_set(Standing::Learner);
    assert_eq!(plan(&state, 1, std::slice::from_ref(&leader)).len(), 2);
    view(&mut leader).learners = learners;
    let report = settle(&state, 1);
    assert_eq!(
        plan(&state, 1, std::slice::from_ref(&leader)),
        [Action::Report(match report {
            Command::ReportSettled(report) => {
                Command::ReportSettled(ReportSettled { term: 1, ..report })
            }
            other => other,
        })]
    );
    let report = settle(&state, 1);
    done(&mut state, &report);
    let three = assign(&state, 1, &[1, 2, 3]);
    done(&mut state, &three);
    let report = settle(&state, 1);
    done(&mut state, &report);
    let one = assign(&state, 1, &[1]);
    done(&mut state, &one);
    let leader = leading(&state, 1, 1);
    let demoted = partition(&state, 1).target_set(Standing::Learner);
    assert_eq!(demoted.len(), 2);
    assert_eq!(
        plan(&state, 1, &[leader]),
        [Action::ChangeVoters {
            group: GroupId::CONTROLLER,
            voters: partition(&state, 1).target_set(Standing::Voter),
            demoted
        }]
    );
}

#[test]
fn after_a_start_what_is_on_disk_is_opened_or_deleted() {
    let mut state = cluster(1);
    done(&mut state, &create(1, "a", 2, 1));
    let stopped = |group: u64, state: &ControllerState| LocalGroup {
        group: GroupId(group),
        replica: partition(state, group).replicas[0].id,
        role: LocalRole::Stopped,
    };
    let kept = stopped(2, &state);
    let deleted = LocalGroup {
        group: GroupId(2),
        replica: kept.replica,
        role: LocalRole::Stopped,
    };
    assert!(matches!(
        about(plan(&state, 1, &[kept]), 2)[..],
        [Action::OpenGroup { .. }]
    ));
    let id = state.map().topic_named("a").unwrap().id.to_wire();
    done(
        &mut state,
        &Command::DeleteTopic(super::super::command::DeleteTopic { id }),
    );
    let actions = plan(&state, 1, &[deleted]);
    assert!(matches!(
        about(actions, 2)[..],
        [Action::CloseGroup { .. }, Action::Report(_)]
    ));
}

#[test]
fn a_voter_whose_coming_was_called_off_runs_until_it_is_let_go() {
    let mut state = cluster(2);
    done(&mut state, &create(1, "a", 1, 1));
    let here = partition(&state, 2).preferred.get();
    let there = 3 - here;
    let both = assign(&state, 2, &[here, there]);
    done(&mut state, &both);
    let joiner = partition(&state, 2).wanted_on(NodeId(there)).unwrap().id;
    let one = assign(&state, 2, &[here]);
    done(&mut state, &one);
    assert_eq!(
        about(plan(&state, there, &[]), 2),
        [Action::OpenGroup {
            group: GroupId(2),
            replica: joiner,
            kind: OpenKind::Join
        }]
    );
}

#[test]
fn a_round_sets_only_so_much_in_motion() {
    let mut state = cluster(1);
    done(&mut state, &create(1, "a", 9, 1));
    let limits = Limits {
        opens: 2,
        ..Limits::default()
    };
    let held = leading(&state, 1, 1);
    let plan = plan_node(&state.map(), myself(1), &[held], &limits).unwrap();
    assert_eq!(plan.actions.len(), 2);
}
