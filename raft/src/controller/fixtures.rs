//! What the tests of the controller begin with.

use bytes::Bytes;
use trilog_model::{GroupId, NodeId, Timestamp};

use super::cluster_map::{Partition, Standing};
use super::command::{
    AssignReplicas, Bootstrap, Command, CreateTopic, Endpoint, Purpose, RegisterNode,
    ReportSettled, TopicKind,
};
use super::ids::{ClusterId, NodeIdentity, TopicId};
use super::reply::{ControllerError, Outcome, Reply, decode_outcome};
use super::state::ControllerState;

pub(super) const NOW: Timestamp = Timestamp(1_000);

pub(super) fn registration(node: u32, identity: u8, rack: &str) -> RegisterNode {
    RegisterNode {
        node,
        identity: NodeIdentity::from_bytes([identity; 16]).unwrap().to_wire(),
        rack: rack.into(),
        endpoints: vec![Endpoint::new(Purpose::Peer, "localhost", 7401)],
        min_level: 1,
        max_level: 1,
        version: "0.1.0".into(),
        cluster: Bytes::new(),
        asks: None,
    }
}

pub(super) fn topic_id(number: u32) -> TopicId {
    let mut bytes = [1; 16];
    bytes[..4].copy_from_slice(&number.to_be_bytes());
    TopicId::from_bytes(bytes).unwrap()
}

pub(super) fn create(number: u32, name: &str, partitions: u32, replication: u32) -> Command {
    Command::CreateTopic(CreateTopic {
        id: topic_id(number).to_wire(),
        name: name.into(),
        partitions,
        replication,
        configs: vec![],
        assignments: vec![],
        kind: TopicKind::User.into(),
    })
}

/// A cluster of `nodes` nodes without racks, identities equal to ids.
pub(super) fn cluster(nodes: u8) -> ControllerState {
    cluster_at(nodes, 1)
}

/// As [`cluster`], at a feature level.
pub(super) fn cluster_at(nodes: u8, level: u32) -> ControllerState {
    let mut state = ControllerState::new();
    let registration = |node: u8| RegisterNode {
        max_level: level,
        ..registration(node.into(), node, "")
    };
    let bootstrap = Bootstrap {
        cluster: ClusterId::from_bytes([9; 16]).unwrap().to_wire(),
        node: registration(1),
        level,
    };
    done(&mut state, &Command::Bootstrap(bootstrap));
    for node in 2..=nodes {
        let register = registration(node);
        done(&mut state, &Command::RegisterNode(register));
    }
    state
}

/// Applies through bytes, as the log does.
pub(super) fn apply(state: &mut ControllerState, command: &Command) -> Outcome {
    decode_outcome(&state.apply(&command.to_bytes(), NOW))
}

pub(super) fn done(state: &mut ControllerState, command: &Command) -> Reply {
    apply(state, command).unwrap()
}

pub(super) fn refused(state: &mut ControllerState, command: &Command) -> ControllerError {
    let before = state.snapshot();
    let refusal = apply(state, command).unwrap_err();
    assert_eq!(state.snapshot(), before, "a refusal changed the state");
    refusal
}

pub(super) fn partition(state: &ControllerState, group: u64) -> Partition {
    Partition::clone(state.map().group(GroupId(group)).unwrap())
}

pub(super) fn voters(partition: &Partition) -> Vec<u32> {
    partition.voter_nodes().map(NodeId::get).collect()
}

pub(super) fn assign(state: &ControllerState, group: u64, voters: &[u32]) -> Command {
    Command::AssignReplicas(AssignReplicas {
        group,
        generation: partition(state, group).generation,
        voters: voters.to_vec(),
        learners: vec![],
        preferred: voters[0],
        back: false,
    })
}

pub(super) fn settle(state: &ControllerState, group: u64) -> Command {
    let partition = partition(state, group);
    let set = |standing| partition.targets(standing).map(|r| r.id.0).collect();
    Command::ReportSettled(ReportSettled {
        group,
        generation: partition.generation,
        term: partition.term.get(),
        voters: set(Standing::Voter),
        learners: set(Standing::Learner),
    })
}
