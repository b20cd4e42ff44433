//! What an operator says of a partition's replicas counts until there is a newer word.

use trilog_model::NodeId;

use super::super::super::balance::plan_balance;
use super::super::super::cluster_map::{Partition, Replication};
use super::super::super::command::{
    AlterTopic, AssignReplicas, Assignment, Command, CreateTopic, NodeRef, RegisterNode, TopicKind,
};
use super::super::super::fixtures::{
    assign, cluster_at, create, done, partition, refused, registration, settle, topic_id, voters,
};
use super::super::super::level::PLACEMENT_LEVEL;
use super::super::super::reply::ControllerError;
use super::super::ControllerState;

/// Groups of the first topic's partitions.
const FIRST: u64 = 2;
const SECOND: u64 = 3;

/// What an operator says of a group's voters, not done yet.
fn word(state: &ControllerState, group: u64, voters: &[u32]) -> AssignReplicas {
    match assign(state, group, voters) {
        Command::AssignReplicas(word) => word,
        other => panic!("{other:?}"),
    }
}

fn begin_by_hand(state: &mut ControllerState, group: u64, voters: &[u32]) {
    let command = Command::AssignByHand(word(state, group, voters));
    done(state, &command);
}

fn by_hand(state: &mut ControllerState, group: u64, voters: &[u32]) {
    begin_by_hand(state, group, voters);
    reached(state, group);
}

/// The way back from what is on its way.
fn back(state: &ControllerState, group: u64) -> Command {
    let before = partition(state, group).before_reassignment();
    let before: Vec<u32> = before.into_iter().map(NodeId::get).collect();
    Command::AssignByHand(AssignReplicas {
        back: true,
        ..word(state, group, &before)
    })
}

/// Takes back what is on its way.
fn cancel(state: &mut ControllerState, group: u64) {
    let command = back(state, group);
    done(state, &command);
    reached(state, group);
}

fn reached(state: &mut ControllerState, group: u64) {
    let report = settle(state, group);
    done(state, &report);
}

/// How many voters each partition has once nothing is left to plan.
fn at_rest(state: &mut ControllerState) -> Vec<usize> {
    loop {
        let map = state.map();
        let everyone = map.nodes().map(|node| node.id).collect();
        let plan = plan_balance(&map, &everyone);
        if plan.commands.is_empty() {
            let topics = map.topics();
            let all = topics.flat_map(|topic| topic.partitions.iter());
            return all.map(|p| p.voter_nodes().count()).collect();
        }
        for command in &plan.commands {
            done(state, command);
            if let Command::AssignReplicas(moved) = command {
                reached(state, moved.group);
            }
        }
    }
}

fn replication(state: &ControllerState) -> Replication {
    state.map().topic(topic_id(1)).unwrap().replication
}

fn own(state: &ControllerState, group: u64) -> Option<u32> {
    partition(state, group).replication
}

#[test]
fn a_number_of_replicas_given_to_one_partition_stays_its_own() {
    let mut state = cluster_at(3, PLACEMENT_LEVEL);
    done(&mut state, &create(1, "a", 2, 3));
    at_rest(&mut state);
    by_hand(&mut state, FIRST, &[3, 1]);
    assert_eq!(own(&state, FIRST), Some(2));
    assert_eq!(at_rest(&mut state), [2, 3]);
    assert_eq!(replication(&state), Replication::Fixed(3));
    assert_eq!(
        ControllerState::from_snapshot(&state.snapshot())
            .unwrap()
            .snapshot(),
        state.snapshot()
    );
    // Of the topic as a whole, the newest word counts.
    let alter = Command::AlterTopic(AlterTopic {
        id: topic_id(1).to_wire(),
        replication: 3,
        ..AlterTopic::default()
    });
    done(&mut state, &alter);
    assert_eq!(own(&state, FIRST), None);
    assert_eq!(at_rest(&mut state), [3, 3]);
}

#[test]
fn a_number_given_to_every_partition_is_the_topics() {
    let mut state = cluster_at(3, PLACEMENT_LEVEL);
    done(&mut state, &create(1, "a", 2, 3));
    by_hand(&mut state, FIRST, &[3, 1]);
    by_hand(&mut state, SECOND, &[2, 3]);
    assert_eq!(replication(&state), Replication::Fixed(2));
    assert_eq!((own(&state, FIRST), own(&state, SECOND)), (None, None));
    assert_eq!(at_rest(&mut state), [2, 2]);
    // Up again, one after the other.
    by_hand(&mut state, FIRST, &[1, 2, 3]);
    assert_eq!(at_rest(&mut state), [3, 2]);
    by_hand(&mut state, SECOND, &[1, 2, 3]);
    assert_eq!(replication(&state), Replication::Fixed(3));
}

#[test]
fn a_move_of_a_partition_that_is_yet_to_grow_does_not_keep_it_small() {
    let mut state = cluster_at(1, PLACEMENT_LEVEL);
    done(&mut state, &create(1, "a", 1, 0));
    let mut grown = cluster_at(3, PLACEMENT_LEVEL);
    done(&mut grown, &create(1, "a", 1, 0));
    by_hand(&mut grown, FIRST, &[2]);
    assert_eq!(own(&grown, FIRST), None, "its topic has one partition");
    assert_eq!(replication(&grown), Replication::Fixed(1));
    // As many as before says nothing about how many there are to be.
    by_hand(&mut state, FIRST, &[1]);
    assert_eq!(own(&state, FIRST), None);
    assert_eq!(replication(&state), Replication::Default);
}

#[test]
fn who_is_to_lead_once_it_has_come_is_not_given_up_meanwhile() {
    let mut state = cluster_at(4, PLACEMENT_LEVEL);
    done(&mut state, &create(1, "a", 1, 3));
    begin_by_hand(&mut state, FIRST, &[4, 1, 2]);
    let map = state.map();
    let everyone = map.nodes().map(|node| node.id).collect();
    assert_eq!(plan_balance(&map, &everyone).commands, []);
}

#[test]
fn a_placement_given_at_creation_is_left_alone_by_evening_out() {
    let sets = |nodes: &[u32]| Assignment {
        nodes: nodes.to_vec(),
    };
    for (level, pinned) in [(PLACEMENT_LEVEL - 1, false), (PLACEMENT_LEVEL, true)] {
        let mut state = cluster_at(3, level);
        let command = Command::CreateTopic(CreateTopic {
            id: topic_id(1).to_wire(),
            name: "a".into(),
            assignments: vec![sets(&[1, 2]), sets(&[1, 3])],
            kind: TopicKind::User.into(),
            ..CreateTopic::default()
        });
        done(&mut state, &command);
        let both = [FIRST, SECOND].map(|group| partition(&state, group).pinned);
        assert_eq!(both, [pinned; 2], "level {level}");
        at_rest(&mut state);
        let leads: Vec<u32> = [FIRST, SECOND]
            .map(|group| partition(&state, group).preferred.get())
            .to_vec();
        assert_eq!(leads == [1, 1], pinned, "level {level}");
        let more = Command::AlterTopic(AlterTopic {
            id: topic_id(1).to_wire(),
            partitions: 3,
            assignments: vec![sets(&[1, 2])],
            ..AlterTopic::default()
        });
        done(&mut state, &more);
        let added: Partition = partition(&state, SECOND + 1);
        assert_eq!((added.pinned, voters(&added)), (pinned, vec![1, 2]));
    }
}

/// One node with a topic of the default's replication; two more nodes have just joined.
fn joined_by_two(partitions: u32) -> ControllerState {
    let mut state = cluster_at(1, PLACEMENT_LEVEL);
    done(&mut state, &create(1, "a", partitions, 0));
    for node in [2, 3] {
        let node = RegisterNode {
            max_level: PLACEMENT_LEVEL,
            ..registration(node, u8::try_from(node).unwrap(), "")
        };
        done(&mut state, &Command::RegisterNode(node));
    }
    state
}

fn move_by_plan(state: &mut ControllerState, group: u64, voters: &[u32]) {
    let plan = assign(state, group, voters);
    done(state, &plan);
}

#[test]
fn a_partition_that_waits_to_grow_does_not_agree_with_one_that_was_made_small() {
    let mut state = joined_by_two(2);
    move_by_plan(&mut state, FIRST, &[1, 2, 3]);
    reached(&mut state, FIRST);
    by_hand(&mut state, FIRST, &[1]);
    assert_eq!(own(&state, FIRST), Some(1));
    assert_eq!(replication(&state), Replication::Default);
    assert_eq!(at_rest(&mut state), [1, 3]);
}

#[test]
fn a_plan_does_not_overrule_what_an_operator_said_of_a_topic() {
    let mut state = cluster_at(3, PLACEMENT_LEVEL);
    done(&mut state, &create(1, "a", 2, 1));
    let alter = Command::AlterTopic(AlterTopic {
        id: topic_id(1).to_wire(),
        replication: 3,
        ..AlterTopic::default()
    });
    done(&mut state, &alter);
    move_by_plan(&mut state, FIRST, &[1, 2, 3]);
    reached(&mut state, FIRST);
    by_hand(&mut state, FIRST, &[1, 2]);
    assert_eq!(own(&state, FIRST), Some(2));
    // One node is silent, so the other grows as far as it can.
    let map = state.map();
    let answer = [1, 2].map(NodeId).into_iter().collect();
    for command in plan_balance(&map, &answer).commands {
        done(&mut state, &command);
    }
    reached(&mut state, SECOND);
    assert_eq!(voters(&partition(&state, SECOND)).len(), 2);
    assert_eq!(replication(&state), Replication::Fixed(3));
    assert_eq!(own(&state, FIRST), Some(2));
    assert_eq!(at_rest(&mut state), [2, 3]);
}

#[test]
fn a_move_that_is_taken_back_says_nothing_of_how_many_replicas_there_are_to_be() {
    // The cluster's own growth.
    let mut state = joined_by_two(1);
    move_by_plan(&mut state, FIRST, &[1, 2, 3]);
    cancel(&mut state, FIRST);
    assert_eq!(own(&state, FIRST), None);
    assert_eq!(replication(&state), Replication::Default);
    assert_eq!(at_rest(&mut state), [3]);
    // An operator's, to fewer: the topic is what it was before.
    begin_by_hand(&mut state, FIRST, &[1, 2]);
    assert_eq!(partition(&state, FIRST).own_replication(), Some(2));
    cancel(&mut state, FIRST);
    assert_eq!(replication(&state), Replication::Default);
    assert_eq!(at_rest(&mut state), [3]);
    // What was said and done before stays, and what is on its way is kept in a snapshot.
    by_hand(&mut state, FIRST, &[1, 2]);
    begin_by_hand(&mut state, FIRST, &[3]);
    let mut state = ControllerState::from_snapshot(&state.snapshot()).unwrap();
    assert_eq!(partition(&state, FIRST).own_replication(), Some(1));
    cancel(&mut state, FIRST);
    assert_eq!(replication(&state), Replication::Fixed(2));
    assert_eq!(at_rest(&mut state), [2]);
    // The same replicas, named instead of taken back, are a word.
    begin_by_hand(&mut state, FIRST, &[1, 2, 3]);
    by_hand(&mut state, FIRST, &[1]);
    assert_eq!(at_rest(&mut state), [1]);
}

#[test]
fn what_is_still_on_its_way_is_not_agreed_on() {
    let mut state = cluster_at(3, PLACEMENT_LEVEL);
    done(&mut state, &create(1, "a", 2, 3));
    begin_by_hand(&mut state, SECOND, &[1, 2]);
    by_hand(&mut state, FIRST, &[1, 2]);
    assert_eq!(replication(&state), Replication::Fixed(3));
    cancel(&mut state, SECOND);
    assert_eq!(at_rest(&mut state), [2, 3]);
    by_hand(&mut state, SECOND, &[1, 2]);
    assert_eq!(replication(&state), Replication::Fixed(2));
}

#[test]
fn what_has_arrived_is_not_taken_back() {
    let mut state = cluster_at(4, PLACEMENT_LEVEL);
    done(&mut state, &create(1, "a", 1, 3));
    by_hand(&mut state, FIRST, &[1, 2, 3]);
    begin_by_hand(&mut state, FIRST, &[1, 2, 4]);
    let late = back(&state, FIRST);
    reached(&mut state, FIRST);
    let refusal = refused(&mut state, &late);
    assert!(
        matches!(refusal, ControllerError::StaleGeneration { .. }),
        "{refusal:?}"
    );
    // Nor is there a way back to anywhere else, or for a plan.
    begin_by_hand(&mut state, FIRST, &[1, 2, 3]);
    let elsewhere = AssignReplicas {
        back: true,
        ..word(&state, FIRST, &[1, 3, 4])
    };
    let Command::AssignByHand(planned) = back(&state, FIRST) else {
        unreachable!()
    };
    for command in [
        Command::AssignByHand(elsewhere),
        Command::AssignReplicas(planned),
    ] {
        let refusal = refused(&mut state, &command);
        assert!(
            matches!(refusal, ControllerError::InvalidAssignment { .. }),
            "{refusal:?}"
        );
    }
    cancel(&mut state, FIRST);
    assert_eq!(voters(&partition(&state, FIRST)), [1, 2, 4]);
}

#[test]
fn a_node_that_leaves_takes_no_more_of_an_operators_word_than_its_replica() {
    let mut state = cluster_at(4, PLACEMENT_LEVEL);
    done(&mut state, &create(1, "a", 4, 3));
    by_hand(&mut state, FIRST, &[3, 1, 2]);
    done(&mut state, &Command::DrainNode(NodeRef { node: 2 }));
    at_rest(&mut state);
    let there = partition(&state, FIRST);
    assert_eq!((there.pinned, there.preferred), (true, NodeId(3)));
    assert_eq!(there.assigned(), [3, 1, 4].map(NodeId));
}
