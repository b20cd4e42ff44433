//! What an operator says of a partition's replicas counts until there is a newer word.

use super::super::super::balance::plan_balance;
use super::super::super::cluster_map::{Partition, Replication};
use super::super::super::command::{
    AlterTopic, AssignReplicas, Assignment, Command, CreateTopic, TopicKind,
};
use super::super::super::fixtures::{
    cluster_at, create, done, partition, settle, topic_id, voters,
};
use super::super::super::level::PLACEMENT_LEVEL;
use super::super::ControllerState;

/// Groups of the first topic's partitions.
const FIRST: u64 = 2;
const SECOND: u64 = 3;

fn by_hand(state: &mut ControllerState, group: u64, voters: &[u32]) {
    let command = Command::AssignByHand(AssignReplicas {
        group,
        generation: partition(state, group).generation,
        voters: voters.to_vec(),
        learners: vec![],
        preferred: voters[0],
    });
    done(state, &command);
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
                let report = settle(state, moved.group);
                done(state, &report);
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
    let command = Command::AssignByHand(AssignReplicas {
        group: FIRST,
        generation: partition(&state, FIRST).generation,
        voters: vec![4, 1, 2],
        learners: vec![],
        preferred: 4,
    });
    done(&mut state, &command);
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
