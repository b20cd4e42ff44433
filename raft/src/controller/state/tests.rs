use std::collections::BTreeSet;

use proptest::prelude::*;

use super::super::cluster_map::{NodeState, Replication, Standing};
use super::super::command::{
    ActivateLevel, AllocateProducerIds, AlterTopic, Assignment, ConfigChange, ConfigEntry,
    CreateTopic, DeleteTopic, NodeRef, PreferLeader, Purpose, RegisterNode, ReplaceNode,
    ReplicaRef, ReportClosed, ReportSilent, SetClusterConfig, StepAside, TopicKind,
};
use super::super::fixtures::{
    assign, cluster, cluster_at, create, done, partition, refused, registration, settle, topic_id,
    voters,
};
use super::super::ids::{NodeIdentity, TopicId};
use super::super::internal::InternalTopic;
use super::super::level::INTERNAL_LEVEL;
use super::super::reply::decode_outcome;
use super::*;

#[test]
fn nothing_happens_before_the_cluster_is_initialized() {
    let mut state = ControllerState::new();
    let refusal = refused(&mut state, &create(1, "a", 1, 1));
    assert_eq!(refusal, ControllerError::NotBootstrapped {});
}

#[test]
fn the_first_node_leads_the_controller_alone_and_the_next_follow_without_a_vote() {
    let mut state = cluster(1);
    let Reply::Registered {
        controller_replica,
        controller_nodes,
        ..
    } = done(&mut state, &Command::RegisterNode(registration(2, 2, "")))
    else {
        panic!("not registered");
    };
    assert_eq!(controller_replica, ReplicaId::new(NodeId(2), 2));
    assert_eq!(controller_nodes, [NodeId(1)]);
    let controller = state.map().controller().clone();
    assert_eq!(controller.founding, [ReplicaId::new(NodeId(1), 1)]);
    assert_eq!(
        controller.target_set(Standing::Learner),
        BTreeSet::from([controller_replica])
    );
    let settled = settle(&state, 1);
    done(&mut state, &settled);
    assert!(state.map().controller().is_settled());
}

#[test]
fn a_node_that_starts_again_keeps_its_replica_and_may_change_its_address() {
    let mut state = cluster(2);
    let mut again = registration(2, 2, "");
    let version = state.map().version();
    let before = done(&mut state, &Command::RegisterNode(again.clone()));
    assert_eq!(state.map().version(), version, "nothing changed");
    again.endpoints[0].port = 7500;
    assert_eq!(done(&mut state, &Command::RegisterNode(again)), before);
    let map = state.map();
    let node = map.node(NodeId(2)).unwrap();
    assert_eq!(node.endpoint(Purpose::Peer).unwrap().port, 7500);
    assert!(map.version() > version);
}

#[test]
fn registrations_that_cannot_be_right_are_refused() {
    let mut state = cluster(2);
    let good = registration(3, 3, "");
    let with = |edit: fn(&mut RegisterNode)| {
        let mut bad = good.clone();
        edit(&mut bad);
        Command::RegisterNode(bad)
    };
    for bad in [
        with(|r| r.node = 0),
        with(|r| r.node = 2),
        with(|r| r.identity = Bytes::from_static(&[2; 16])),
        with(|r| r.identity = Bytes::from_static(&[2; 5])),
        with(|r| r.cluster = Bytes::from_static(&[8; 16])),
        with(|r| r.min_level = 2),
        with(|r| r.max_level = 0),
        with(|r| r.endpoints[0].port = 0),
        with(|r| r.endpoints[0].port = 70_000),
        with(|r| r.endpoints[0].purpose = 99),
        with(|r| r.endpoints[0].host.clear()),
        with(|r| r.endpoints.extend(r.endpoints.clone())),
        with(|r| r.rack = "x".repeat(300)),
    ] {
        refused(&mut state, &bad);
    }
    done(&mut state, &Command::RegisterNode(good));
}

#[test]
fn a_topic_is_placed_on_all_nodes_with_leaders_spread() {
    let mut state = cluster(3);
    let reply = done(&mut state, &create(1, "orders", 6, 3));
    assert_eq!(
        reply,
        Reply::TopicCreated {
            id: topic_id(1),
            partitions: 6,
            replication: 3
        }
    );
    let map = state.map();
    let topic = map.topic_named("orders").unwrap();
    let leaders: Vec<u32> = topic.partitions.iter().map(|p| p.preferred.get()).collect();
    for node in 1..=3 {
        assert_eq!(leaders.iter().filter(|leader| **leader == node).count(), 2);
    }
    for (index, partition) in (0..).zip(&topic.partitions) {
        assert!(partition.is_settled());
        assert_eq!(
            map.place(partition.group),
            Some(GroupPlace::Partition {
                topic: topic.id,
                index
            })
        );
        assert_eq!(map.group(partition.group), Some(partition));
    }
    assert_eq!(map.topics().count(), 1);
    assert_eq!(map.groups().count(), 7);
}

#[test]
fn creating_a_topic_twice_is_one_topic_and_another_of_its_name_is_refused() {
    let mut state = cluster(1);
    let first = done(&mut state, &create(1, "a.b", 2, 1));
    let snapshot = state.snapshot();
    assert_eq!(done(&mut state, &create(1, "a.b", 2, 1)), first);
    assert_eq!(state.snapshot(), snapshot);
    assert_eq!(
        refused(&mut state, &create(2, "a.b", 2, 1)),
        ControllerError::TopicExists { name: "a.b".into() }
    );
    assert_eq!(
        refused(&mut state, &create(2, "a_b", 2, 1)),
        ControllerError::TopicCollides {
            name: "a_b".into(),
            other: "a.b".into()
        }
    );
    refused(&mut state, &create(1, "other", 2, 1));
}

#[test]
fn replication_beyond_the_nodes_is_refused_with_both_numbers() {
    let mut state = cluster(2);
    assert_eq!(
        refused(&mut state, &create(1, "a", 1, 3)),
        ControllerError::NotEnoughNodes {
            wanted: 3,
            available: 2
        }
    );
    refused(&mut state, &create(1, "a", MAX_PARTITIONS + 1, 1));
    refused(&mut state, &create(1, "a", 1, MAX_VOTERS + 1));
    refused(&mut state, &create(1, "a/b", 1, 1));
}

#[test]
fn default_replication_is_odd_and_grows_with_the_cluster() {
    for (nodes, replication) in [(1, 1), (2, 1), (3, 3), (5, 3)] {
        let mut state = cluster(nodes);
        done(&mut state, &create(1, "a", 0, 0));
        let map = state.map();
        let topic = map.topic_named("a").unwrap();
        assert_eq!(topic.replication, Replication::Default);
        assert_eq!(topic.partitions.len(), 1);
        assert_eq!(topic.partitions[0].voter_nodes().count(), replication);
        assert_eq!(map.wanted_replication(topic) as usize, replication);
    }
}

#[test]
fn a_silent_node_gets_nothing_new_while_others_can_have_it() {
    let mut state = cluster(3);
    let report = |nodes: &[u32]| {
        Command::ReportSilent(ReportSilent {
            nodes: nodes.to_vec(),
        })
    };
    done(&mut state, &report(&[2, 99]));
    assert!(state.map().is_silent(NodeId(2)) && !state.map().is_silent(NodeId(99)));
    done(&mut state, &create(1, "a", 6, 2));
    done(&mut state, &create(2, "b", 6, 3));
    let map = state.map();
    let leads = |p: &Arc<Partition>| p.preferred == NodeId(2);
    let holds = |p: &Arc<Partition>| p.wanted_on(NodeId(2)).is_some();
    assert!(!map.topic_named("a").unwrap().partitions.iter().any(holds));
    assert!(map.topic_named("b").unwrap().partitions.iter().all(holds));
    assert!(!map.topic_named("b").unwrap().partitions.iter().any(leads));
    done(&mut state, &Command::RegisterNode(registration(2, 2, "")));
    assert!(!state.map().is_silent(NodeId(2)));
}

#[test]
fn explicit_assignments_are_followed_and_checked() {
    let mut state = cluster(3);
    let with = |sets: &[&[u32]]| {
        Command::CreateTopic(CreateTopic {
            id: topic_id(1).to_wire(),
            name: "a".into(),
            assignments: sets
                .iter()
                .map(|set| Assignment {
                    nodes: set.to_vec(),
                })
                .collect(),
            ..CreateTopic::default()
        })
    };
    refused(&mut state, &with(&[&[1, 1]]));
    refused(&mut state, &with(&[&[1, 4]]));
    refused(&mut state, &with(&[&[1, 2], &[1]]));
    refused(&mut state, &with(&[&[]]));
    done(&mut state, &with(&[&[2, 1], &[3, 2]]));
    let map = state.map();
    let topic = map.topic_named("a").unwrap();
    assert_eq!(voters(&topic.partitions[0]), [2, 1]);
    assert_eq!(topic.partitions[1].preferred, NodeId(3));
    assert_eq!(topic.replication, Replication::Fixed(2));
}

#[test]
fn topics_take_known_configurations_and_suggest_names_for_others() {
    let mut state = cluster(1);
    let with = |key: &str, value: &str| {
        Command::CreateTopic(CreateTopic {
            id: topic_id(1).to_wire(),
            name: "a".into(),
            configs: vec![ConfigEntry {
                key: key.into(),
                value: value.into(),
            }],
            ..CreateTopic::default()
        })
    };
    assert_eq!(
        refused(&mut state, &with("retention.m", "1")),
        ControllerError::UnknownConfig {
            key: "retention.m".into(),
            nearest: Some("retention.ms".into())
        }
    );
    assert!(matches!(
        refused(&mut state, &with("retention.ms", "soon")),
        ControllerError::InvalidConfig { .. }
    ));
    done(&mut state, &with("retention.ms", "60000"));
    let alter = |changes| {
        Command::AlterTopic(AlterTopic {
            id: topic_id(1).to_wire(),
            configs: changes,
            ..AlterTopic::default()
        })
    };
    done(
        &mut state,
        &alter(vec![
            ConfigChange::delete("retention.ms"),
            ConfigChange::set("max.message.bytes", "2000"),
        ]),
    );
    let map = state.map();
    let config = map.topic_config(map.topic_named("a").unwrap());
    assert_eq!(config.retention_ms, Some(604_800_000));
    assert_eq!(config.max_message_bytes, 2_000);
    refused(&mut state, &alter(vec![ConfigChange::set("colour", "red")]));
}

#[test]
fn cluster_settings_become_topics_defaults() {
    let mut state = cluster(1);
    done(&mut state, &create(1, "a", 1, 1));
    let set = |key: &str, value: &str| {
        Command::SetClusterConfig(SetClusterConfig {
            configs: vec![ConfigChange::set(key, value)],
        })
    };
    done(&mut state, &set("log.retention.ms", "77"));
    done(&mut state, &set("num.partitions", "4"));
    refused(&mut state, &set("num.partition", "4"));
    refused(&mut state, &set("num.partitions", "0"));
    done(&mut state, &create(2, "b", 0, 1));
    let map = state.map();
    let topic = map.topic_named("b").unwrap();
    assert_eq!(topic.partitions.len(), 4);
    assert_eq!(map.topic_config(topic).retention_ms, Some(77));
}

#[test]
fn partitions_are_only_ever_added() {
    let mut state = cluster(3);
    done(&mut state, &create(1, "a", 2, 2));
    let grow = |partitions| {
        Command::AlterTopic(AlterTopic {
            id: topic_id(1).to_wire(),
            partitions,
            ..AlterTopic::default()
        })
    };
    refused(&mut state, &grow(1));
    refused(&mut state, &grow(2));
    let before = state.map();
    done(&mut state, &grow(5));
    let map = state.map();
    let (old, new) = (
        before.topic_named("a").unwrap(),
        map.topic_named("a").unwrap(),
    );
    assert_eq!(new.partitions.len(), 5);
    assert_eq!(old.partitions[..], new.partitions[..2]);
    assert_eq!(new.partitions[4].voter_nodes().count(), 2);
    assert_eq!(before.topic_named("a").unwrap().partitions.len(), 2);
}

#[test]
fn a_deleted_topic_is_closed_by_its_nodes_and_its_groups_never_come_back() {
    let mut state = cluster(2);
    done(&mut state, &create(1, "a", 2, 2));
    let groups: BTreeSet<GroupId> = state.groups.keys().copied().collect();
    let delete = Command::DeleteTopic(DeleteTopic {
        id: topic_id(1).to_wire(),
    });
    done(&mut state, &delete);
    assert!(matches!(
        refused(&mut state, &delete),
        ControllerError::UnknownTopic { .. }
    ));
    let retired = state.map().retired(NodeId(1)).unwrap().clone();
    assert_eq!(retired.len(), 2);
    done(&mut state, &create(2, "a", 2, 2));
    assert!(state.groups.keys().all(|group| !groups.contains(group)));
    let closed = Command::ReportClosed(ReportClosed {
        node: 1,
        identity: Bytes::from_static(&[1; 16]),
        replicas: retired
            .iter()
            .map(|(group, replica)| ReplicaRef {
                group: group.get(),
                replica: replica.0,
            })
            .collect(),
    });
    done(&mut state, &closed);
    assert!(state.map().retired(NodeId(1)).is_none());
    assert_eq!(state.map().retired(NodeId(2)).unwrap().len(), 2);
}

#[test]
fn topics_of_the_system_cannot_be_deleted() {
    let mut state = cluster(1);
    let Command::CreateTopic(mut topic) = create(1, "mqtt", 8, 1) else {
        unreachable!()
    };
    topic.kind = TopicKind::BuiltIn.into();
    done(&mut state, &Command::CreateTopic(topic));
    let refusal = refused(
        &mut state,
        &Command::DeleteTopic(DeleteTopic {
            id: topic_id(1).to_wire(),
        }),
    );
    assert_eq!(
        refusal,
        ControllerError::TopicProtected {
            name: "mqtt".into()
        }
    );
}

#[test]
fn internal_topics_belong_to_the_system() {
    let mut state = cluster_at(2, INTERNAL_LEVEL);
    let name = InternalTopic::Groups.name();
    let Command::CreateTopic(theirs) = create(1, name, 16, 0) else {
        unreachable!()
    };
    let ours = CreateTopic {
        kind: TopicKind::Internal.into(),
        ..theirs.clone()
    };
    let strange = CreateTopic {
        name: "orders".into(),
        ..ours.clone()
    };
    for refused_topic in [theirs, strange] {
        let refusal = refused(&mut state, &Command::CreateTopic(refused_topic));
        assert!(
            matches!(refusal, ControllerError::InvalidTopicName { .. }),
            "{refusal:?}"
        );
    }
    done(&mut state, &Command::CreateTopic(ours.clone()));
    let more = AlterTopic {
        id: topic_id(1).to_wire(),
        configs: vec![],
        partitions: 17,
        assignments: vec![],
        replication: 0,
    };
    let refusal = refused(&mut state, &Command::AlterTopic(more));
    assert!(matches!(refusal, ControllerError::InvalidPartitions { .. }));
    let delete = DeleteTopic {
        id: topic_id(1).to_wire(),
    };
    let refusal = refused(&mut state, &Command::DeleteTopic(delete));
    assert!(matches!(refusal, ControllerError::TopicProtected { .. }));

    let mut older = cluster(1);
    let refusal = refused(&mut older, &Command::CreateTopic(ours));
    assert!(matches!(refusal, ControllerError::LevelNotActive { .. }));
    done(&mut older, &create(1, name, 1, 1));
}

#[test]
fn a_move_is_done_when_the_leader_reports_exactly_the_assigned_set() {
    let mut state = cluster(4);
    done(&mut state, &create(1, "a", 1, 3));
    let old = partition(&state, 2);
    let staying: Vec<u32> = voters(&old)[..2].to_vec();
    let leaving = voters(&old)[2];
    let coming = (1..=4).find(|node| !voters(&old).contains(node)).unwrap();
    let target = [staying[0], staying[1], coming];
    let command = assign(&state, 2, &target);
    done(&mut state, &command);
    refused(&mut state, &command);
    let moving = partition(&state, 2);
    assert_eq!(voters(&moving), target);
    assert!(!moving.is_settled());
    assert_eq!(moving.replicas.len(), 4);
    assert_eq!(
        moving.replica(old.replicas[0].id).unwrap().id,
        old.replicas[0].id
    );

    let Command::ReportSettled(good) = settle(&state, 2) else {
        unreachable!()
    };
    let mut partial = good.clone();
    partial.voters.pop();
    refused(&mut state, &Command::ReportSettled(partial));
    let mut stale = good.clone();
    stale.generation -= 1;
    refused(&mut state, &Command::ReportSettled(stale));
    done(&mut state, &Command::ReportSettled(good));
    let settled = partition(&state, 2);
    assert!(settled.is_settled());
    assert_eq!(settled.replicas.len(), 3);
    let retired = state.map().retired(NodeId(leaving)).unwrap().clone();
    assert_eq!(retired, BTreeSet::from([(GroupId(2), old.replicas[2].id)]));
}

#[test]
fn a_move_that_is_taken_back_keeps_replicas_and_a_returning_one_is_new() {
    let mut state = cluster(2);
    let set: &[&[u32]] = &[&[1]];
    let Command::CreateTopic(mut topic) = create(1, "a", 0, 0) else {
        unreachable!()
    };
    topic.assignments = set
        .iter()
        .map(|nodes| Assignment {
            nodes: nodes.to_vec(),
        })
        .collect();
    done(&mut state, &Command::CreateTopic(topic));
    let first = partition(&state, 2).replicas[0].id;
    let away = assign(&state, 2, &[2]);
    done(&mut state, &away);
    let joining = partition(&state, 2).wanted_on(NodeId(2)).unwrap().id;
    let back = assign(&state, 2, &[1]);
    done(&mut state, &back);
    assert_eq!(partition(&state, 2).wanted_on(NodeId(1)).unwrap().id, first);
    let again = assign(&state, 2, &[1, 2]);
    done(&mut state, &again);
    assert_eq!(
        partition(&state, 2).wanted_on(NodeId(2)).unwrap().id,
        joining,
        "it was never closed, so it goes on"
    );
    let away_again = assign(&state, 2, &[1]);
    done(&mut state, &away_again);
    let report = settle(&state, 2);
    done(&mut state, &report);
    let anew = assign(&state, 2, &[1, 2]);
    done(&mut state, &anew);
    assert!(partition(&state, 2).wanted_on(NodeId(2)).unwrap().id > joining);
}

#[test]
fn a_replica_whose_joining_is_called_off_is_still_told_to_close() {
    let mut state = cluster(2);
    done(&mut state, &create(1, "a", 1, 1));
    let here = partition(&state, 2).preferred.get();
    let joining = assign(&state, 2, &[here, 3 - here]);
    done(&mut state, &joining);
    let joiner = partition(&state, 2).wanted_on(NodeId(3 - here)).unwrap().id;
    let called_off = assign(&state, 2, &[here]);
    done(&mut state, &called_off);
    assert!(!partition(&state, 2).is_settled());
    let report = settle(&state, 2);
    done(&mut state, &report);
    assert!(partition(&state, 2).is_settled());
    let retired = state.map().retired(joiner.node()).unwrap().clone();
    assert_eq!(retired, BTreeSet::from([(GroupId(2), joiner)]));
}

#[test]
fn leaders_are_preferred_among_voters_only() {
    let mut state = cluster(3);
    done(&mut state, &create(1, "a", 1, 2));
    let set = voters(&partition(&state, 2));
    let outside = (1..=3).find(|node| !set.contains(node)).unwrap();
    let prefer = |node| Command::PreferLeader(PreferLeader { group: 2, node });
    refused(&mut state, &prefer(outside));
    done(&mut state, &prefer(set[1]));
    assert_eq!(partition(&state, 2).preferred, NodeId(set[1]));
}

#[test]
fn a_replaced_node_gets_new_replicas_for_all_it_held() {
    let mut state = cluster(3);
    done(&mut state, &create(1, "a", 2, 3));
    let replace = |old: u8| {
        Command::ReplaceNode(ReplaceNode {
            node: registration(3, 33, ""),
            old_identity: NodeIdentity::from_bytes([old; 16]).unwrap().to_wire(),
        })
    };
    refused(&mut state, &replace(2));
    let before = partition(&state, 2);
    let Reply::Registered { stranded, .. } = done(&mut state, &replace(3)) else {
        panic!("not registered");
    };
    assert!(stranded.is_empty());
    let after = partition(&state, 2);
    let old = before.wanted_on(NodeId(3)).unwrap().id;
    let new = after.wanted_on(NodeId(3)).unwrap().id;
    assert!(new > old);
    assert!(after.replica(old).unwrap().lost);
    assert_eq!(after.voter_nodes().count(), 3);
    let snapshot = state.snapshot();
    done(&mut state, &replace(3));
    assert_eq!(state.snapshot(), snapshot, "replacing twice is once");
    refused(&mut state, &Command::RegisterNode(registration(3, 3, "")));
}

/// `node` gives up its replica of a group.
fn aside(state: &ControllerState, node: u8, group: u64) -> Command {
    let held = partition(state, group);
    let replica = held.wanted_on(NodeId(node.into())).unwrap().id;
    Command::StepAside(StepAside {
        node: node.into(),
        identity: identity(node),
        replicas: vec![ReplicaRef {
            group,
            replica: replica.0,
        }],
    })
}

fn identity(node: u8) -> Bytes {
    Bytes::copy_from_slice(&[node; 16])
}

#[test]
fn a_replica_without_which_no_majority_is_intact_is_not_given_up() {
    let mut state = cluster(3);
    done(&mut state, &create(1, "a", 1, 1));
    done(&mut state, &create(2, "b", 1, 3));
    let keeper = u8::try_from(partition(&state, 2).preferred.get()).unwrap();
    let alone = aside(&state, keeper, 2);
    let snapshot = state.snapshot();
    let error = refused(&mut state, &alone);
    assert!(
        matches!(error, ControllerError::LastCopies { group: 2, .. }),
        "{error:?}"
    );
    assert_eq!(state.snapshot(), snapshot);
    assert!(state.map().retired(NodeId(keeper.into())).is_none());

    // One of three goes; the next only when its successor has a vote.
    let first = aside(&state, 1, 3);
    done(&mut state, &first);
    let second = aside(&state, 2, 3);
    let error = refused(&mut state, &second);
    assert!(
        matches!(error, ControllerError::LastCopies { group: 3, .. }),
        "{error:?}"
    );
    let report = settle(&state, 3);
    done(&mut state, &report);
    done(&mut state, &second);
    let snapshot = state.snapshot();
    done(&mut state, &second);
    assert_eq!(state.snapshot(), snapshot, "stepping aside twice is once");
}

#[test]
fn groups_without_an_intact_majority_are_named() {
    let mut state = cluster(3);
    done(&mut state, &create(1, "a", 3, 1));
    let alone: Vec<GroupId> = state
        .map()
        .groups()
        .filter(|p| p.group != GroupId::CONTROLLER && p.preferred == NodeId(2))
        .map(|p| p.group)
        .collect();
    // The disk is gone, whatever was on it alone.
    let replace = Command::ReplaceNode(ReplaceNode {
        node: registration(2, 22, ""),
        old_identity: identity(2),
    });
    let Reply::Registered { stranded, .. } = done(&mut state, &replace) else {
        panic!("not registered");
    };
    assert_eq!(stranded, alone);
}

#[test]
fn a_node_leaves_only_when_it_is_drained_and_empty() {
    let mut state = cluster(2);
    done(&mut state, &create(1, "a", 1, 2));
    let node = |node| NodeRef { node };
    refused(&mut state, &Command::RemoveNode(node(2)));
    done(&mut state, &Command::DrainNode(node(2)));
    assert_eq!(
        refused(&mut state, &Command::DrainNode(node(1))),
        ControllerError::LastNode { node: NodeId(1) }
    );
    assert_eq!(
        refused(&mut state, &Command::RemoveNode(node(2))),
        ControllerError::NodeHoldsReplicas {
            node: NodeId(2),
            replicas: 1
        }
    );
    let off = assign(&state, 2, &[1]);
    done(&mut state, &off);
    refused(&mut state, &Command::RemoveNode(node(2)));
    let report = settle(&state, 2);
    done(&mut state, &report);
    done(&mut state, &Command::RemoveNode(node(2)));
    assert!(matches!(
        refused(&mut state, &Command::DrainNode(node(2))),
        ControllerError::UnknownNode { .. }
    ));
    let map = state.map();
    assert_eq!(map.node(NodeId(2)).unwrap().state, NodeState::Removed);
    assert_eq!(map.nodes().count(), 1);
    refused(&mut state, &Command::RegisterNode(registration(2, 2, "")));
    done(&mut state, &Command::RegisterNode(registration(2, 22, "")));
}

#[test]
fn the_controller_keeps_all_nodes_and_at_most_five_voters() {
    let mut state = cluster(7);
    let five = assign(&state, 1, &[1, 2, 3, 4, 5]);
    done(&mut state, &five);
    let controller = state.map().controller().clone();
    assert_eq!(voters(&controller), [1, 2, 3, 4, 5]);
    assert_eq!(controller.target_set(Standing::Learner).len(), 2);
    let six = assign(&state, 1, &[1, 2, 3, 4, 5, 6]);
    refused(&mut state, &six);
    let fewer = assign(&state, 1, &[2, 3, 4]);
    done(&mut state, &fewer);
    assert_eq!(
        state.map().controller().target_set(Standing::Learner).len(),
        4
    );
}

#[test]
fn producer_ids_come_in_blocks_and_never_twice() {
    let mut state = cluster(2);
    let mut seen = BTreeSet::new();
    for node in [1, 2, 1] {
        let ask = Command::AllocateProducerIds(AllocateProducerIds { node });
        let Reply::ProducerIds { first, count } = done(&mut state, &ask) else {
            panic!("no ids");
        };
        assert!((first..first + count).all(|id| seen.insert(id)));
    }
    refused(
        &mut state,
        &Command::AllocateProducerIds(AllocateProducerIds { node: 9 }),
    );
}

#[test]
fn a_level_is_activated_when_every_node_follows_it() {
    let mut state = cluster(1);
    state.build_level = 2;
    let activate = Command::ActivateLevel(ActivateLevel { level: 2 });
    assert!(matches!(
        refused(&mut state, &activate),
        ControllerError::LevelNotSupported { .. }
    ));
    let mut newer = registration(1, 1, "");
    newer.max_level = 2;
    done(&mut state, &Command::RegisterNode(newer));
    done(&mut state, &activate);
    assert_eq!(state.map().level(), 2);
    assert_eq!(state.unsupported_level(), None);
    refused(&mut state, &Command::RegisterNode(registration(2, 2, "")));
    let older = ControllerState {
        build_level: 1,
        ..ControllerState::new()
    };
    assert!(matches!(
        older.restored(&state.snapshot()),
        Err(RestoreError::Level {
            active: 2,
            build: 1
        })
    ));
    state.build_level = 1;
    assert_eq!(state.unsupported_level(), Some(2));
}

#[test]
fn damaged_snapshots_are_refused_and_change_nothing() {
    let mut state = cluster(3);
    done(&mut state, &create(1, "a", 2, 3));
    let whole = state.snapshot();
    let hash = state.hash();
    for len in 0..whole.len() {
        drop(state.restore(&whole[..len]));
    }
    for bit in 0..whole.len() * 8 {
        let mut damaged = whole.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        drop(ControllerState::from_snapshot(&damaged));
    }
    state.restore(&whole).unwrap();
    assert_eq!(state.hash(), hash);
    assert!(state.restore(b"").is_err());
    assert_eq!(state.hash(), hash);
}

mod access;
mod by_hand;
mod levels;
mod loss;
mod random;
