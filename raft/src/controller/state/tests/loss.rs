//! Going on with what is left.

use std::collections::BTreeSet;

use bytes::Bytes;
use trilog_model::{GroupId, NodeId};

use super::super::super::cluster_map::{Replica, Standing};
use super::super::super::command::{AcceptLoss, Command};
use super::super::super::fixtures::{
    assign, cluster, create, done, partition, refused, registration, settle, voters,
};
use super::super::super::ids::ClusterId;
use super::super::super::reply::ControllerError;
use super::super::{ControllerState, remaining_voters};

const CONTROLLER: u64 = GroupId::CONTROLLER.get();
const OLD: [u8; 16] = [9; 16];
const NEW: [u8; 16] = [8; 16];

fn accept(survivors: &[u32]) -> Command {
    Command::AcceptLoss(AcceptLoss {
        cluster: Bytes::copy_from_slice(&NEW),
        survivors: survivors.to_vec(),
        at: 7,
    })
}

/// Three nodes, all of them voters of the controller; topic a on all, topic b on the first alone.
fn three() -> ControllerState {
    let mut state = cluster(3);
    let grow = assign(&state, CONTROLLER, &[1, 2, 3]);
    done(&mut state, &grow);
    let grown = settle(&state, CONTROLLER);
    done(&mut state, &grown);
    done(&mut state, &create(1, "a", 1, 3));
    done(&mut state, &create(2, "b", 1, 1));
    let b = group_of(&state, "b");
    if voters(&partition(&state, b)) != [1] {
        let to_first = assign(&state, b, &[1]);
        done(&mut state, &to_first);
        let there = settle(&state, b);
        done(&mut state, &there);
    }
    state
}

fn group_of(state: &ControllerState, topic: &str) -> u64 {
    let map = state.map();
    map.topic_named(topic).unwrap().partitions[0].group.get()
}

#[test]
fn the_survivors_are_all_that_is_left_and_keep_their_replicas() {
    let mut state = three();
    let a = group_of(&state, "a");
    let before = partition(&state, a);
    let left = BTreeSet::from([NodeId(3)]);
    let expected = remaining_voters(&before, &left);
    done(&mut state, &accept(&[3]));
    let map = state.map();
    assert_eq!(map.cluster(), Some(ClusterId::from_bytes(NEW).unwrap()));
    assert_eq!(
        map.nodes().map(|node| node.id).collect::<Vec<_>>(),
        [NodeId(3)]
    );
    for group in [CONTROLLER, a] {
        let partition = partition(&state, group);
        assert_eq!(voters(&partition), [3]);
        assert!(partition.is_settled(), "{partition:?}");
        assert_eq!(partition.preferred, NodeId(3));
    }
    let after = partition(&state, a);
    assert_eq!(
        after.replicas.iter().map(|r| r.id).collect::<Vec<_>>(),
        expected
    );
    assert!(after.generation > before.generation);
    let loss = &map.losses()[0];
    assert_eq!(loss.nodes, [NodeId(1), NodeId(2)]);
    assert_eq!(loss.cluster, ClusterId::from_bytes(OLD).unwrap());
}

#[test]
fn what_no_survivor_holds_is_dead_and_can_be_deleted() {
    let mut state = three();
    let b = group_of(&state, "b");
    done(&mut state, &accept(&[2, 3]));
    assert!(partition(&state, b).is_dead());
    let map = state.map();
    let reachable = BTreeSet::from([NodeId(2), NodeId(3)]);
    let plan = super::super::super::balance::plan_balance(&map, &reachable);
    let moved =
        |command: &Command| matches!(command, Command::AssignReplicas(assign) if assign.group == b);
    assert!(!plan.commands.iter().any(moved), "{plan:?}");
    let id = map.topic_named("b").unwrap().id;
    done(
        &mut state,
        &Command::DeleteTopic(super::super::super::command::DeleteTopic { id: id.to_wire() }),
    );
    assert!(state.map().group(GroupId(b)).is_none());
}

#[test]
fn a_lost_node_comes_back_only_as_somebody_new() {
    let mut state = three();
    done(&mut state, &accept(&[3]));
    let mut late = registration(1, 1, "");
    assert!(matches!(
        refused(&mut state, &Command::RegisterNode(late.clone())),
        ControllerError::InvalidNode { .. }
    ));
    late.cluster = Bytes::copy_from_slice(&OLD);
    assert!(matches!(
        refused(&mut state, &Command::RegisterNode(late)),
        ControllerError::ForeignCluster { .. }
    ));
    let before: Vec<Replica> = partition(&state, CONTROLLER).replicas;
    done(&mut state, &Command::RegisterNode(registration(1, 21, "")));
    let controller = partition(&state, CONTROLLER);
    let new = controller.wanted_on(NodeId(1)).unwrap();
    assert_eq!(new.target, Standing::Learner);
    assert!(
        before
            .iter()
            .all(|replica| replica.id < new.id || replica.id.node() != NodeId(1))
    );
}

#[test]
fn it_is_done_once_survives_a_snapshot_and_needs_members() {
    let mut state = three();
    refused(&mut state, &accept(&[]));
    refused(&mut state, &accept(&[3, 4]));
    done(&mut state, &accept(&[3]));
    let hash = state.hash();
    done(&mut state, &accept(&[3]));
    assert_eq!(state.hash(), hash, "another survivor says the same");
    let back = ControllerState::from_snapshot(&state.snapshot()).unwrap();
    assert_eq!(back.hash(), hash);
    assert_eq!(back.map().losses(), state.map().losses());
}

#[test]
fn a_controller_of_many_survivors_keeps_a_bounded_number_of_voters() {
    let mut state = cluster(9);
    let grow = assign(&state, CONTROLLER, &[1, 2, 3, 4, 5]);
    done(&mut state, &grow);
    let grown = settle(&state, CONTROLLER);
    done(&mut state, &grown);
    done(&mut state, &accept(&[4, 5, 6, 7, 8, 9]));
    let controller = partition(&state, CONTROLLER);
    assert_eq!(voters(&controller).len(), 5);
    assert_eq!(
        voters(&controller)[..2],
        [4, 5],
        "those that voted before, first"
    );
    assert_eq!(controller.targets(Standing::Learner).count(), 1);
}
