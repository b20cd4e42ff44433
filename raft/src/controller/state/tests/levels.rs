//! Releases N and N+1 beside one another: both fold one log, whoever leads, until the level that
//! only the newer one knows is activated.

use proptest::prelude::*;

use super::super::super::command::Bootstrap;
use super::super::super::command::{ActivateLevel, Command, NodeRef, RegisterNode};
use super::super::super::fixtures::{NOW, create, registration};
use super::super::super::ids::ClusterId;
use super::super::super::reply::decode_outcome;
use super::super::{ControllerError, ControllerState};

const NODES: u32 = 5;

/// What may happen to a cluster that is being upgraded.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The node is started with the older or the newer build.
    Start {
        node: u32,
        newer: bool,
    },
    Drain(u32),
    Remove(u32),
    CreateTopic(u32),
    /// An operator asks for the level.
    Activate,
}

fn step() -> impl Strategy<Value = Step> {
    let node = 1..=NODES;
    prop_oneof![
        6 => (node.clone(), any::<bool>()).prop_map(|(node, newer)| Step::Start { node, newer }),
        1 => node.clone().prop_map(Step::Drain),
        1 => node.prop_map(Step::Remove),
        2 => (0..20_u32).prop_map(Step::CreateTopic),
        3 => Just(Step::Activate),
    ]
}

fn running(node: u32, newer: bool) -> RegisterNode {
    RegisterNode {
        max_level: if newer { 2 } else { 1 },
        ..registration(node, u8::try_from(node).unwrap(), "")
    }
}

fn command(step: Step) -> Command {
    match step {
        Step::Start { node, newer } => Command::RegisterNode(running(node, newer)),
        Step::Drain(node) => Command::DrainNode(NodeRef { node }),
        Step::Remove(node) => Command::RemoveNode(NodeRef { node }),
        Step::CreateTopic(nth) => create(nth, &format!("topic-{nth}"), 2, 1),
        Step::Activate => Command::ActivateLevel(ActivateLevel { level: 2 }),
    }
}

/// A state as one build folds it.
fn build(level: u32) -> ControllerState {
    let mut state = ControllerState::new();
    state.build_level = level;
    let bootstrap = Command::Bootstrap(Bootstrap {
        cluster: ClusterId::from_bytes([9; 16]).unwrap().to_wire(),
        node: running(1, false),
        level: 1,
    });
    decode_outcome(&state.apply(&bootstrap.to_bytes(), NOW)).unwrap();
    state
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn two_builds_agree_until_the_older_one_must_stop(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        let (mut older, mut newer) = (build(1), build(2));
        for step in steps {
            let bytes = command(step).to_bytes();
            let outcome = newer.apply(&bytes, NOW);
            if older.unsupported_level().is_none() {
                prop_assert_eq!(older.apply(&bytes, NOW), outcome.clone());
                prop_assert_eq!(older.snapshot(), newer.snapshot());
            }
            let map = newer.map();
            for node in map.nodes() {
                prop_assert!(node.levels.contains(map.level()), "{node:?} at {}", map.level());
            }
            // Raised only while every member can follow, and then the older build knows that it
            // must stop, and is refused where it is started again.
            if map.level() == 2 {
                prop_assert_eq!(older.unsupported_level(), Some(2));
                let back = Command::RegisterNode(running(1, false)).to_bytes();
                let refusal = decode_outcome(&newer.clone().apply(&back, NOW));
                let refused = matches!(
                    refusal,
                    Err(ControllerError::LevelNotSupported { .. } | ControllerError::InvalidNode { .. })
                );
                prop_assert!(refused, "{refusal:?}");
                let started = ControllerState {
                    build_level: 1,
                    ..ControllerState::new()
                };
                prop_assert!(started.restored(&newer.snapshot()).is_err());
            }
        }
    }
}
