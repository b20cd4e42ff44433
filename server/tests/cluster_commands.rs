//! Topics and records from the command line, through a cluster that loses a node.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use support::{Cluster, stderr, stdout};

#[test]
fn records_go_in_come_back_from_anywhere_and_survive_a_killed_leader() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path());

    let created = cluster.run(&["topic", "create", "orders", "-p", "2", "--retention", "7d"]);
    assert_eq!(created, "created orders: 2 partitions, 3 replicas each\n");
    let again = cluster.output(&["topic", "create", "orders"]);
    assert_eq!(again.status.code(), Some(1), "{}", stdout(&again));
    assert!(cluster.run(&["topic", "ls"]).contains("orders"));

    let places = cluster.run(&["produce", "orders", "-p", "1", "one", "two", "three"]);
    assert_eq!(places, "orders/1@0\norders/1@1\norders/1@2\n");
    let all = ["consume", "orders", "-e", "-f", r"%p@%o %s\n", "-o"];
    let from = |position: &str| {
        let mut arguments = all.to_vec();
        arguments.push(position);
        cluster.run(&arguments)
    };
    assert_eq!(from("start"), "1@0 one\n1@1 two\n1@2 three\n");
    assert_eq!(from("-1"), "1@2 three\n");
    assert_eq!(from("@-10m"), from("start"));
    assert_eq!(from("@now"), "");
    assert_eq!(
        cluster.run(&["consume", "orders", "-o", "start", "-n", "2"]),
        "one\ntwo\n"
    );

    let described = cluster.run(&["topic", "describe", "orders", "-o", "json"]);
    let described: serde_json::Value = serde_json::from_str(&described).unwrap();
    assert_eq!(described["config"]["retention.ms"]["value"], "604800000");
    assert_eq!(described["partitions"][1]["end"], 3);
    let leader = described["partitions"][1]["leader"]
        .as_u64()
        .unwrap()
        .to_string();

    cluster.dev(&["kill", &leader]);
    assert_eq!(
        cluster.run(&["produce", "orders", "-p", "1", "four"]),
        "orders/1@3\n"
    );
    assert_eq!(from("start"), "1@0 one\n1@1 two\n1@2 three\n1@3 four\n");
    let status = cluster.run(&["cluster", "status"]);
    assert!(
        status.contains(&format!("node {leader} is down")),
        "{status}"
    );
    cluster.dev(&["restart", &leader]);

    cluster.run(&["topic", "create", "copy", "-p", "1"]);
    cluster.run(&["replay", "orders", "--from", "-2", "--to", "copy"]);
    assert_eq!(
        cluster.run(&["consume", "copy", "-o", "start", "-e"]),
        "three\nfour\n"
    );
    cluster.run(&["topic", "delete", "copy"]);
    let gone = cluster.output(&["topic", "describe", "copy"]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(stderr(&gone).contains("copy"), "{}", stderr(&gone));

    let running = cluster.output(&["log", "verify", cluster.node_dir(1).to_str().unwrap()]);
    assert!(
        stderr(&running).contains("in use by a running node"),
        "{}",
        stderr(&running)
    );
    let node_dirs = [1, 2, 3].map(|node| cluster.node_dir(node));
    cluster.stop();
    for node_dir in node_dirs {
        let verified = support::trilog(&["log", "verify", node_dir.to_str().unwrap()]);
        let text = stdout(&verified);
        assert!(verified.status.success(), "{text}{}", stderr(&verified));
        assert!(text.contains("everything is as it was written"), "{text}");
    }
}

#[test]
fn a_cluster_that_is_not_there_is_an_error_that_says_so() {
    let output = support::trilog(&["topic", "ls", "-s", "127.0.0.1:1"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        stderr(&output).contains("cannot be reached"),
        "{}",
        stderr(&output)
    );
}
