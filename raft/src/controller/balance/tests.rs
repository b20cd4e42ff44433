use proptest::prelude::*;

use super::super::command::{ConfigChange, NodeRef, SetClusterConfig};
use super::super::fixtures::{
    apply, assign, cluster, create, done, partition, registration, settle, voters,
};
use super::super::state::ControllerState;
use super::*;

fn everyone(state: &ControllerState) -> BTreeSet<NodeId> {
    state.map().nodes().map(|node| node.id).collect()
}

/// Every group's leader reaches its target.
fn settle_all(state: &mut ControllerState) {
    let moving: Vec<u64> = state
        .map()
        .groups()
        .filter(|partition| !partition.is_settled())
        .map(|partition| partition.group.get())
        .collect();
    for group in moving {
        let report = settle(state, group);
        done(state, &report);
    }
}

/// Rounds of planning and moving until a round comes out empty; what stayed blocked.
fn balance(state: &mut ControllerState) -> Vec<GroupId> {
    for _ in 0..400 {
        let plan = plan_balance(&state.map(), &everyone(state));
        assert_eq!(plan, plan_balance(&state.map(), &everyone(state)));
        let moving = state.map().topics().flat_map(|t| &t.partitions).count();
        let most = state.map().config().max_moves() as usize;
        let moves = |c: &&Command| matches!(c, Command::AssignReplicas(a) if a.group != 1);
        assert!(plan.commands.iter().filter(moves).count() <= most.min(moving));
        if plan.commands.is_empty() && state.map().groups().all(|p| p.is_settled()) {
            return plan.blocked;
        }
        for command in &plan.commands {
            done(state, command);
        }
        settle_all(state);
    }
    panic!("planning does not come to rest");
}

/// Per active node: (replicas, leaders).
fn counts(state: &ControllerState) -> BTreeMap<NodeId, (u64, u64)> {
    let map = state.map();
    let mut counts: BTreeMap<NodeId, (u64, u64)> =
        map.active_nodes().map(|node| (node.id, (0, 0))).collect();
    for partition in map.topics().flat_map(|topic| &topic.partitions) {
        for node in partition.voter_nodes() {
            counts.entry(node).or_default().0 += 1;
        }
        counts.entry(partition.preferred).or_default().1 += 1;
    }
    counts
}

fn spread(values: impl Iterator<Item = u64> + Clone) -> u64 {
    values.clone().max().unwrap_or(0) - values.min().unwrap_or(0)
}

fn join(state: &mut ControllerState, node: u8) {
    done(
        state,
        &Command::RegisterNode(registration(node.into(), node, "")),
    );
}

#[test]
fn one_node_grows_to_three_and_five_with_its_topics_and_the_controller() {
    let mut state = cluster(1);
    done(&mut state, &create(1, "a", 6, 0));
    for (nodes, replication, controllers) in [(2, 1, 1), (3, 3, 3), (4, 3, 3), (5, 3, 5), (6, 3, 5)]
    {
        join(&mut state, nodes);
        assert!(balance(&mut state).is_empty());
        let map = state.map();
        for partition in &map.topic_named("a").unwrap().partitions {
            assert_eq!(partition.voter_nodes().count(), replication);
        }
        assert_eq!(map.controller().voter_nodes().count(), controllers);
        assert_eq!(
            map.controller().replicas.len(),
            usize::from(nodes),
            "every node follows the controller"
        );
        let counts = counts(&state);
        assert!(spread(counts.values().map(|c| c.0)) <= 1, "{counts:?}");
        assert!(spread(counts.values().map(|c| c.1)) <= 1, "{counts:?}");
    }
}

#[test]
fn a_drained_node_ends_empty_and_can_be_removed() {
    let mut state = cluster(4);
    for number in 0..10 {
        done(&mut state, &create(number, &format!("t{number}"), 3, 3));
    }
    balance(&mut state);
    let node = NodeRef { node: 2 };
    done(&mut state, &Command::DrainNode(node));
    assert!(balance(&mut state).is_empty());
    assert_eq!(counts(&state).get(&NodeId(2)), None);
    done(&mut state, &Command::RemoveNode(node));
    balance(&mut state);
    assert_eq!(state.map().controller().replicas.len(), 3);
}

#[test]
fn a_round_has_so_many_commands_and_no_more() {
    let mut state = cluster(4);
    done(&mut state, &create(1, "a", 600, 3));
    balance(&mut state);
    done(&mut state, &Command::DrainNode(NodeRef { node: 1 }));
    let plan = plan_balance(&state.map(), &everyone(&state));
    let (moves, leaders): (Vec<_>, Vec<_>) = plan
        .commands
        .iter()
        .partition(|command| matches!(command, Command::AssignReplicas(_)));
    assert_eq!(moves.len(), 16 + 1, "the limit, and the controller");
    assert!((64..=136).contains(&leaders.len()), "{}", leaders.len());
    assert!(balance(&mut state).is_empty());
}

#[test]
fn a_drain_that_would_cost_copies_is_blocked_and_says_so() {
    let mut state = cluster(3);
    done(&mut state, &create(1, "a", 2, 3));
    balance(&mut state);
    done(&mut state, &Command::DrainNode(NodeRef { node: 3 }));
    let blocked = balance(&mut state);
    assert_eq!(blocked.len(), 3, "two partitions and the controller");
    assert_eq!(voters(&partition(&state, 2)).len(), 3);
    assert_eq!(state.map().controller().voter_nodes().count(), 3);
    for partition in &state.map().topic_named("a").unwrap().partitions {
        assert_ne!(partition.preferred, NodeId(3), "but it need not lead");
    }
    join(&mut state, 4);
    assert!(balance(&mut state).is_empty());
    done(&mut state, &Command::RemoveNode(NodeRef { node: 3 }));
}

#[test]
fn draining_one_of_five_leaves_three_controllers() {
    let mut state = cluster(5);
    balance(&mut state);
    done(&mut state, &Command::DrainNode(NodeRef { node: 1 }));
    assert!(balance(&mut state).is_empty());
    let controller = state.map().controller().clone();
    assert_eq!(controller.voter_nodes().count(), 3);
    assert!(!controller.voter_nodes().any(|node| node == NodeId(1)));
}

#[test]
fn nothing_goes_to_a_node_that_does_not_answer() {
    let mut state = cluster(3);
    done(&mut state, &create(1, "a", 4, 2));
    balance(&mut state);
    join(&mut state, 4);
    settle_all(&mut state);
    let reachable = (1..=3).map(NodeId).collect();
    let plan = plan_balance(&state.map(), &reachable);
    let to_four = |command: &Command| match command {
        Command::AssignReplicas(assign) => assign.voters.contains(&4),
        _ => false,
    };
    assert!(!plan.commands.iter().any(to_four));
    let plan = plan_balance(&state.map(), &everyone(&state));
    assert!(plan.commands.iter().any(to_four));
}

#[test]
fn a_move_to_a_node_that_begins_to_leave_is_turned_elsewhere() {
    let mut state = cluster(5);
    done(&mut state, &create(1, "a", 1, 3));
    balance(&mut state);
    let set = voters(&partition(&state, 2));
    let fresh = (1..=5).find(|node| !set.contains(node)).unwrap();
    let moving = assign(&state, 2, &[set[0], set[1], fresh]);
    done(&mut state, &moving);
    done(&mut state, &Command::DrainNode(NodeRef { node: fresh }));
    let plan = plan_balance(&state.map(), &everyone(&state));
    for command in &plan.commands {
        done(&mut state, command);
    }
    assert!(!voters(&partition(&state, 2)).contains(&fresh));
    settle_all(&mut state);
    assert!(balance(&mut state).is_empty());
}

#[test]
fn replication_of_a_topic_is_changed_by_moving_replicas() {
    let mut state = cluster(3);
    done(&mut state, &create(1, "a", 3, 1));
    for replication in [3, 2, 1] {
        let id = state.map().topic_named("a").unwrap().id.to_wire();
        let alter = super::super::command::AlterTopic {
            id,
            replication,
            ..Default::default()
        };
        done(&mut state, &Command::AlterTopic(alter));
        assert!(balance(&mut state).is_empty());
        for partition in &state.map().topic_named("a").unwrap().partitions {
            assert_eq!(partition.voter_nodes().count(), replication as usize);
        }
    }
}

#[test]
fn what_an_operator_placed_stays_where_it_is() {
    let mut state = cluster(3);
    done(&mut state, &create(1, "a", 6, 1));
    let groups: Vec<u64> = (2..8).collect();
    for group in &groups {
        let Command::AssignReplicas(by_hand) = assign(&state, *group, &[2]) else {
            unreachable!()
        };
        done(&mut state, &Command::AssignByHand(by_hand));
    }
    settle_all(&mut state);
    balance(&mut state);
    assert_eq!(counts(&state)[&NodeId(2)], (6, 6));
    for group in &groups {
        let plain = assign(&state, *group, &[2]);
        done(&mut state, &plain);
    }
    balance(&mut state);
    assert_eq!(counts(&state)[&NodeId(2)], (2, 2));
}

#[test]
fn a_leader_chosen_by_an_operator_leads_until_balancing_is_asked_for() {
    let mut state = cluster(3);
    done(&mut state, &create(1, "a", 3, 3));
    balance(&mut state);
    for group in 2..5 {
        let by_hand = PreferLeader { group, node: 3 };
        done(&mut state, &Command::PreferByHand(by_hand));
    }
    balance(&mut state);
    assert_eq!(counts(&state)[&NodeId(3)].1, 3);
    done(&mut state, &Command::DrainNode(NodeRef { node: 3 }));
    balance(&mut state);
    assert_eq!(counts(&state).get(&NodeId(3)).map_or(0, |c| c.1), 0);
}

#[test]
fn an_operator_who_asks_gets_an_even_spread_over_racks_and_nodes() {
    let mut state = cluster(3);
    let off = SetClusterConfig {
        configs: vec![
            ConfigChange::set("trilog.balance.replicas", "false"),
            ConfigChange::set("trilog.moves.max", "2"),
        ],
    };
    done(&mut state, &Command::SetClusterConfig(off));
    done(&mut state, &create(1, "a", 12, 2));
    // All in one rack until now; then two more racks come, of which nobody knows anything.
    for node in 1..=3 {
        done(
            &mut state,
            &Command::RegisterNode(registration(node, u8::try_from(node).unwrap(), "x")),
        );
    }
    for (node, rack) in [(4, "y"), (5, "z")] {
        done(
            &mut state,
            &Command::RegisterNode(registration(node, u8::try_from(node).unwrap(), rack)),
        );
    }
    let mut rounds = 0;
    loop {
        let moves = plan_moves(&state.map(), &everyone(&state));
        assert!(moves.len() <= 2, "no more at once than may be: {moves:?}");
        let groups: BTreeSet<GroupId> = moves.iter().map(|planned| planned.group).collect();
        assert_eq!(
            groups.len(),
            moves.len(),
            "one move per partition at a time"
        );
        if moves.is_empty() {
            break;
        }
        for planned in moves {
            done(&mut state, &planned.command);
        }
        assert!(
            plan_moves(&state.map(), &everyone(&state)).is_empty(),
            "those are under way"
        );
        settle_all(&mut state);
        rounds += 1;
        assert!(rounds < 100, "it does not come to rest");
    }
    let map = state.map();
    for partition in map.topics().flat_map(|topic| &topic.partitions) {
        let racks = partition
            .voter_nodes()
            .map(|node| map.node(node).unwrap().rack.clone());
        let racks: BTreeSet<_> = racks.collect();
        assert_eq!(racks.len(), 2, "{partition:?}");
    }
    // Twelve replicas outside rack x, twelve in it: no more can be had without losing a rack.
    let counts = counts(&state);
    assert!(
        counts
            .values()
            .all(|(replicas, _)| (4..=6).contains(replicas)),
        "{counts:?}"
    );
}

#[test]
fn balancing_can_be_switched_off() {
    let mut state = cluster(2);
    done(&mut state, &create(1, "a", 8, 1));
    for key in ["trilog.balance.replicas", "trilog.balance.leaders"] {
        let set = SetClusterConfig {
            configs: vec![ConfigChange::set(key, "false")],
        };
        done(&mut state, &Command::SetClusterConfig(set));
    }
    join(&mut state, 3);
    settle_all(&mut state);
    balance(&mut state);
    assert_eq!(counts(&state)[&NodeId(3)], (0, 0));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_cluster_comes_to_rest_spread_and_even(
        racks in prop::collection::vec(0u8..4, 3..8),
        topics in prop::collection::vec((1u32..9, 0u32..4), 1..8),
        drained in prop::collection::btree_set(1u32..8, 0..3),
        late in 0usize..3,
        without_racks in any::<bool>(),
    ) {
        let mut state = cluster(1);
        let rack = |rack: u8| if without_racks { String::new() } else { format!("r{rack}") };
        let register = |state: &mut ControllerState, at: usize| {
            let id = u8::try_from(at + 1).unwrap();
            done(
                state,
                &Command::RegisterNode(registration(id.into(), id, &rack(racks[at]))),
            );
        };
        let early = racks.len() - late.min(racks.len() - 1);
        for at in 0..early {
            register(&mut state, at);
        }
        for (number, (partitions, replication)) in (0..).zip(&topics) {
            // Some ask for more replicas than there are nodes, and are refused.
            drop(apply(&mut state, &create(number, &format!("t{number}"), *partitions, *replication)));
        }
        for at in early..racks.len() {
            register(&mut state, at);
        }
        for node in &drained {
            drop(apply(&mut state, &Command::DrainNode(NodeRef { node: *node })));
        }
        let blocked = balance(&mut state);
        let map = state.map();
        for topic in map.topics() {
            for partition in &topic.partitions {
                let leaves = |node| map.node(node).is_none_or(|node| !node.is_active());
                prop_assert!(
                    blocked.contains(&partition.group) || !partition.voter_nodes().any(leaves)
                );
                prop_assert!(
                    !leaves(partition.preferred) || partition.voter_nodes().all(leaves)
                );
                let wanted = map.wanted_replication(topic) as usize;
                prop_assert!(
                    blocked.contains(&partition.group) || partition.voter_nodes().count() >= wanted
                );
            }
        }
        let counts = counts(&state);
        if without_racks && blocked.is_empty() {
            let active: Vec<u64> = map.active_nodes().map(|node| counts[&node.id].0).collect();
            prop_assert!(spread(active.iter().copied()) <= 1, "{counts:?}");
        }
        prop_assert!(map.controller().voter_nodes().count() % 2 == 1);
    }
}
