//! Which nodes have not been heard from for long, as the controller's leader sees it.
//!
//! Placement avoids them and clients may be told. A node is silent only after a while, so that a
//! leader that has just begun to listen suspects nobody, and heard again at once.

use std::collections::{BTreeMap, BTreeSet};

use trilog_model::NodeId;

use super::cluster_map::ClusterMap;
use super::command::{Command, ReportSilent};

/// Observations in a row that have to miss a node.
const PATIENCE: u32 = 5;

/// What one leader has observed so far; begin anew with each leadership.
#[derive(Clone, Debug, Default)]
pub struct Silence {
    missed: BTreeMap<NodeId, u32>,
}

impl Silence {
    /// Takes in who answers now, about once a second; the report to propose if the map is to
    /// change.
    pub fn observe(&mut self, map: &ClusterMap, reachable: &BTreeSet<NodeId>) -> Option<Command> {
        let absent = map.nodes().filter(|node| !reachable.contains(&node.id));
        self.missed = absent
            .map(|node| {
                let before = self.missed.get(&node.id).copied().unwrap_or(0);
                (node.id, before.saturating_add(1))
            })
            .collect();
        let silent = |node: &NodeId| match self.missed.get(node) {
            None => false,
            Some(missed) => *missed >= PATIENCE || map.is_silent(*node),
        };
        let ids: Vec<NodeId> = map.nodes().map(|node| node.id).collect();
        if ids.iter().all(|node| silent(node) == map.is_silent(*node)) {
            return None;
        }
        let nodes = ids.into_iter().filter(silent).map(NodeId::get).collect();
        Some(Command::ReportSilent(ReportSilent { nodes }))
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{cluster, done};
    use super::*;

    fn nodes(ids: &[u32]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    #[test]
    fn a_node_is_silent_after_a_while_and_heard_at_once() {
        let mut state = cluster(3);
        let mut silence = Silence::default();
        for _ in 1..PATIENCE {
            assert_eq!(silence.observe(&state.map(), &nodes(&[1, 3])), None);
        }
        let report = silence.observe(&state.map(), &nodes(&[1, 3])).unwrap();
        done(&mut state, &report);
        assert!(state.map().is_silent(NodeId(2)));
        assert_eq!(silence.observe(&state.map(), &nodes(&[1, 3])), None);
        let report = silence.observe(&state.map(), &nodes(&[1, 2, 3])).unwrap();
        done(&mut state, &report);
        assert!(!state.map().is_silent(NodeId(2)));
    }

    #[test]
    fn a_new_leader_suspects_nobody_new_but_leaves_the_silent_silent() {
        let mut state = cluster(3);
        let known = Command::ReportSilent(ReportSilent { nodes: vec![3] });
        done(&mut state, &known);
        let mut silence = Silence::default();
        assert_eq!(silence.observe(&state.map(), &nodes(&[1])), None);
        let report = silence.observe(&state.map(), &nodes(&[1, 3])).unwrap();
        done(&mut state, &report);
        assert!(!state.map().is_silent(NodeId(3)));
    }
}
