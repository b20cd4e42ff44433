//! `trilog dev` from two terminals: start, kill, restart, stop, and the data kept.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use support::{Cluster, stderr};

/// Whether each node serves, and its process.
fn states(cluster: &Cluster) -> Vec<(bool, Option<u64>)> {
    let status = cluster.dev(&["status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let nodes = status["nodes"].as_array().unwrap();
    nodes
        .iter()
        .map(|node| (node["ready"].as_bool().unwrap(), node["pid"].as_u64()))
        .collect()
}

#[test]
fn a_cluster_is_killed_restarted_and_stopped_from_another_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    let cluster = Cluster::start(data);
    let before = states(&cluster);
    assert!(before.iter().all(|(ready, _)| *ready), "{before:?}");

    let refused = |arguments: &[&str], expected: &str| {
        let output = cluster.dev_output(arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains(expected), "{}", stderr(&output));
    };
    refused(&[], "in use by another");
    cluster.dev(&["kill", "2"]);
    assert_eq!(states(&cluster)[1], (false, None));
    refused(&["kill", "2"], "node 2 is not running");
    refused(&["kill", "9"], "there is no node 9");
    cluster.dev(&["restart", "2"]);
    assert!(states(&cluster)[1].0, "it serves again");
    cluster.stop();

    let stopped = support::trilog(&["dev", "status", "--data", data.to_str().unwrap()]);
    assert!(
        stderr(&stopped).contains("no `trilog dev` is running"),
        "{}",
        stderr(&stopped)
    );
    assert!(data.join("node-2/data").exists(), "the data stays");
}

/// The seeds are right, what every node remembers of the others is not.
#[test]
fn nodes_that_all_come_back_at_other_addresses_find_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path());
    cluster.run(&["topic", "create", "moved", "--partitions", "2"]);
    cluster.run(&["produce", "moved", "before"]);
    let cluster = cluster.start_elsewhere();
    assert!(states(&cluster).iter().all(|(ready, _)| *ready));
    cluster.run(&["produce", "moved", "after"]);
    let read = cluster.run(&["consume", "moved", "-o", "start", "-n", "2"]);
    assert!(read.contains("before") && read.contains("after"), "{read}");
    cluster.stop();
}

#[test]
fn the_nodes_stop_when_their_supervisor_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path());
    let pids: Vec<u64> = states(&cluster)
        .into_iter()
        .filter_map(|(_, pid)| pid)
        .collect();
    assert_eq!(pids.len(), 3);
    // SIGKILL: it can tell its children nothing.
    drop(cluster);
    let alive = || {
        pids.iter()
            .any(|pid| Path::new(&format!("/proc/{pid}/exe")).exists())
    };
    // A node may take as long as its shutdown does.
    let (_never, wait) = mpsc::channel::<()>();
    let step = Duration::from_millis(20);
    let mut left = Duration::from_mins(1);
    while alive() && !left.is_zero() {
        let _ = wait.recv_timeout(step);
        left = left.saturating_sub(step);
    }
    assert!(!alive(), "nodes of a killed supervisor are still there");
}
