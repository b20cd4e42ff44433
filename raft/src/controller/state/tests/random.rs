//! Random commands: determinism, snapshots, and what must hold after every one of them.

use super::*;

/// A command as chance draws it; resolved against the state it meets, so that most apply.
#[derive(Clone, Debug)]
enum Draw {
    Register {
        node: u8,
        rack: u8,
    },
    Replace {
        node: u8,
        identity: u8,
    },
    StepAside {
        node: u8,
        pick: usize,
    },
    Drain(u8),
    Resume(u8),
    Remove(u8),
    Create {
        number: u8,
        partitions: u8,
        replication: u8,
    },
    Grow {
        number: u8,
        partitions: u8,
    },
    Delete(u8),
    Assign {
        pick: usize,
        nodes: Vec<u8>,
    },
    Settle {
        pick: usize,
    },
    Closed {
        node: u8,
    },
    Prefer {
        pick: usize,
        node: u8,
    },
    ProducerIds(u8),
    Silent(Vec<u8>),
    Noise(Vec<u8>),
}

fn draw() -> impl Strategy<Value = Draw> {
    let node = 1u8..7;
    prop_oneof![
        3 => (node.clone(), 0u8..3).prop_map(|(node, rack)| Draw::Register { node, rack }),
        1 => (node.clone(), 50u8..60).prop_map(|(node, identity)| Draw::Replace { node, identity }),
        1 => (node.clone(), any::<usize>()).prop_map(|(node, pick)| Draw::StepAside { node, pick }),
        1 => node.clone().prop_map(Draw::Drain),
        1 => node.clone().prop_map(Draw::Resume),
        1 => node.clone().prop_map(Draw::Remove),
        4 => (0u8..6, 0u8..6, 0u8..5).prop_map(|(number, partitions, replication)| Draw::Create {
            number,
            partitions,
            replication
        }),
        1 => (0u8..6, 1u8..9).prop_map(|(number, partitions)| Draw::Grow { number, partitions }),
        1 => (0u8..6).prop_map(Draw::Delete),
        5 => (any::<usize>(), prop::collection::vec(node.clone(), 1..5))
            .prop_map(|(pick, nodes)| Draw::Assign { pick, nodes }),
        4 => any::<usize>().prop_map(|pick| Draw::Settle { pick }),
        2 => node.clone().prop_map(|node| Draw::Closed { node }),
        1 => (any::<usize>(), node.clone()).prop_map(|(pick, node)| Draw::Prefer { pick, node }),
        1 => node.clone().prop_map(Draw::ProducerIds),
        1 => prop::collection::vec(node, 0..3).prop_map(Draw::Silent),
        1 => prop::collection::vec(any::<u8>(), 0..40).prop_map(Draw::Noise),
    ]
}

fn pick_group(state: &ControllerState, pick: usize) -> u64 {
    let groups: Vec<u64> = state.map().groups().map(|p| p.group.get()).collect();
    groups[pick % groups.len()]
}

fn identity_of(state: &ControllerState, node: u8) -> Bytes {
    state
        .map()
        .node(NodeId(node.into()))
        .map_or_else(Bytes::new, |node| node.identity.to_wire())
}

fn refs<'a>(replicas: impl Iterator<Item = &'a (GroupId, ReplicaId)>) -> Vec<ReplicaRef> {
    replicas
        .map(|(group, replica)| ReplicaRef {
            group: group.get(),
            replica: replica.0,
        })
        .collect()
}

fn resolve_node(state: &ControllerState, draw: &Draw) -> Option<Command> {
    let by_id = |node: &u8| NodeRef {
        node: (*node).into(),
    };
    Some(match draw {
        Draw::Register { node, rack } => {
            let mut register = registration((*node).into(), *node, &format!("r{rack}"));
            if state.map().node(NodeId((*node).into())).is_some() {
                register.identity = identity_of(state, *node);
            }
            Command::RegisterNode(register)
        }
        Draw::Replace { node, identity } => Command::ReplaceNode(ReplaceNode {
            node: registration((*node).into(), *identity, ""),
            old_identity: identity_of(state, *node),
        }),
        Draw::StepAside { node, pick } => {
            let held = state.live_replicas(NodeId((*node).into()));
            let skip = pick.checked_rem(held.len()).unwrap_or(0);
            Command::StepAside(StepAside {
                node: (*node).into(),
                identity: identity_of(state, *node),
                replicas: refs(held.iter().skip(skip)),
            })
        }
        Draw::Drain(node) => Command::DrainNode(by_id(node)),
        Draw::Resume(node) => Command::ResumeNode(by_id(node)),
        Draw::Remove(node) => Command::RemoveNode(by_id(node)),
        Draw::Closed { node } => {
            let map = state.map();
            let retired = map.retired(NodeId((*node).into()));
            Command::ReportClosed(ReportClosed {
                node: (*node).into(),
                identity: identity_of(state, *node),
                replicas: refs(retired.into_iter().flatten()),
            })
        }
        Draw::Silent(nodes) => Command::ReportSilent(ReportSilent {
            nodes: nodes.iter().map(|node| (*node).into()).collect(),
        }),
        Draw::ProducerIds(node) => Command::AllocateProducerIds(AllocateProducerIds {
            node: (*node).into(),
        }),
        _ => return None,
    })
}

fn resolve(state: &ControllerState, draw: &Draw, step: u32) -> Vec<u8> {
    let map = state.map();
    let named = |number: &u8| {
        map.topic_named(&format!("topic-{number}"))
            .map_or_else(Bytes::new, |topic| topic.id.to_wire())
    };
    let command = match draw {
        Draw::Create {
            number,
            partitions,
            replication,
        } => create(
            step + 1,
            &format!("topic-{number}"),
            (*partitions).into(),
            (*replication).into(),
        ),
        Draw::Grow { number, partitions } => Command::AlterTopic(AlterTopic {
            id: named(number),
            partitions: (*partitions).into(),
            ..AlterTopic::default()
        }),
        Draw::Delete(number) => Command::DeleteTopic(DeleteTopic { id: named(number) }),
        Draw::Assign { pick, nodes } => {
            let nodes: Vec<u32> = nodes.iter().map(|node| (*node).into()).collect();
            assign(state, pick_group(state, *pick), &nodes)
        }
        Draw::Settle { pick } => settle(state, pick_group(state, *pick)),
        Draw::Prefer { pick, node } => Command::PreferLeader(PreferLeader {
            group: pick_group(state, *pick),
            node: (*node).into(),
        }),
        Draw::Noise(bytes) => return bytes.clone(),
        other => resolve_node(state, other).unwrap(),
    };
    command.to_bytes().to_vec()
}

/// What has ever been, to see that nothing comes back.
#[derive(Default)]
struct History {
    groups: BTreeMap<GroupId, TopicId>,
    replicas: BTreeMap<ReplicaId, GroupId>,
    version: u64,
}

impl History {
    fn check(&mut self, state: &ControllerState) {
        let map = state.map();
        assert!(map.version() >= self.version);
        self.version = map.version();
        for topic in map.topics() {
            for partition in &topic.partitions {
                let owner = self.groups.entry(partition.group).or_insert(topic.id);
                assert_eq!(*owner, topic.id, "a group id was used again");
            }
        }
        for partition in map.groups() {
            check_partition(partition);
            for replica in &partition.replicas {
                let group = self.replicas.entry(replica.id).or_insert(partition.group);
                assert_eq!(*group, partition.group, "an incarnation was used again");
            }
        }
        let partitions = map.topics().flat_map(|topic| &topic.partitions);
        assert_eq!(loads_of(partitions.map(Arc::as_ref)), state.loads);
        check_holders(state);
    }
}

fn check_partition(partition: &Partition) {
    let nodes: Vec<NodeId> = partition
        .replicas
        .iter()
        .filter(|replica| replica.is_wanted())
        .map(|replica| replica.id.node())
        .collect();
    let distinct: BTreeSet<&NodeId> = nodes.iter().collect();
    assert_eq!(distinct.len(), nodes.len(), "two wanted replicas on a node");
    assert!(partition.targets(Standing::Voter).count() > 0, "no voters");
    assert!(
        partition
            .voter_nodes()
            .any(|node| node == partition.preferred),
        "the preferred leader is no voter: {partition:?}"
    );
    let lost_and_wanted = partition.replicas.iter().any(|r| r.lost && r.is_wanted());
    assert!(!lost_and_wanted, "a lost replica is wanted");
}

/// Every wanted replica lies on a member; every member follows the controller.
fn check_holders(state: &ControllerState) {
    let map = state.map();
    let members: BTreeSet<NodeId> = map.nodes().map(|node| node.id).collect();
    for partition in map.groups() {
        for replica in partition.replicas.iter().filter(|r| r.is_wanted()) {
            assert!(members.contains(&replica.id.node()), "{partition:?}");
        }
    }
    for member in &members {
        assert!(map.controller().wanted_on(*member).is_some());
    }
    for (node, retired) in state.tables.retired.iter() {
        assert!(members.contains(node));
        for (group, replica) in retired.iter() {
            assert_eq!(replica.node(), *node);
            let wanted = map
                .group(*group)
                .and_then(|partition| partition.replica(*replica))
                .is_some_and(|replica| replica.is_wanted() || !replica.lost);
            assert!(!wanted, "a retired replica is still in use");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn the_same_commands_give_the_same_state_and_its_rules_hold(
        draws in prop::collection::vec(draw(), 1..70),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut state = cluster(2);
        let mut twin = cluster(2);
        let mut history = History::default();
        let cut = cut.index(draws.len());
        for (step, draw) in (0..).zip(&draws) {
            let bytes = resolve(&state, draw, step);
            let time = Timestamp(u64::from(step));
            let before = state.hash();
            let reply = state.apply(&bytes, time);
            if decode_outcome(&reply).is_err() {
                prop_assert_eq!(state.hash(), before, "a refusal changed the state");
            }
            prop_assert_eq!(twin.apply(&bytes, time), reply);
            if step as usize == cut {
                twin = ControllerState::from_snapshot(&twin.snapshot()).unwrap();
            }
            prop_assert_eq!(twin.hash(), state.hash());
            history.check(&state);
        }
        prop_assert_eq!(twin.map(), state.map());
    }
}

#[test]
fn what_commands_do_at_level_1_is_frozen() {
    // A change of this number means that builds of one level disagree: give the change a level.
    let mut seed = 11u64;
    let mut pick = |bound: u64| -> u64 {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % bound
    };
    let mut state = cluster(6);
    for step in 0..400 {
        let node = u8::try_from(pick(6) + 1).unwrap();
        let number = u8::try_from(pick(12)).unwrap();
        let small = u8::try_from(pick(9)).unwrap();
        let draw = match pick(8) {
            0 => Draw::Register {
                node,
                rack: small % 3,
            },
            1 => Draw::Drain(node),
            2 => Draw::Resume(node),
            3 => Draw::Delete(number),
            4 => Draw::Grow {
                number,
                partitions: small,
            },
            5 => Draw::Settle { pick: step },
            _ => Draw::Create {
                number,
                partitions: small,
                replication: small % 5,
            },
        };
        let step = u32::try_from(step).unwrap();
        let bytes = resolve(&state, &draw, step);
        state.apply(&bytes, Timestamp(step.into()));
    }
    assert_eq!(state.hash(), 0x490b_3816_4380_85b4);
}
