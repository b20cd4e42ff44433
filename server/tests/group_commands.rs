//! Consumer groups from the command line, through a cluster that loses the node that coordinates
//! one.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use serde_json::Value;
use support::{Cluster, stderr, stdout};

fn json(cluster: &Cluster, arguments: &[&str]) -> Value {
    let said = cluster.run(&[arguments, &["-o", "json"]].concat());
    serde_json::from_str(&said).unwrap()
}

/// What a command that must fail complains of.
fn complaint(cluster: &Cluster, arguments: &[&str]) -> String {
    let output = cluster.output(arguments);
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    stderr(&output)
}

/// Offsets of a group by partition of its one topic.
fn offsets(cluster: &Cluster, group: &str) -> Vec<u64> {
    let described = json(cluster, &["group", "describe", group]);
    let partitions = described["partitions"].as_array().unwrap();
    let offsets = partitions.iter().map(|place| place["offset"].as_u64());
    offsets.map(Option::unwrap).collect()
}

fn reset(cluster: &Cluster, arguments: &[&str]) -> String {
    cluster.run(&[&["group", "reset", "readers"], arguments].concat())
}

#[test]
fn groups_are_listed_described_reset_and_deleted_whoever_coordinates_them() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path());
    assert_eq!(
        json(&cluster, &["group", "ls"])["groups"],
        serde_json::json!([])
    );
    let nobody = complaint(&cluster, &["group", "describe", "readers"]);
    assert!(nobody.contains("there is no group 'readers'"), "{nobody}");

    cluster.run(&["topic", "create", "orders", "-p", "2"]);
    for partition in ["0", "1"] {
        cluster.run(&["produce", "orders", "-p", partition, "a", "b", "c", "d"]);
    }
    let planned = reset(&cluster, &["-t", "orders", "--to-latest"]);
    assert!(planned.contains("--execute does it"), "{planned}");
    let nobody = complaint(&cluster, &["group", "describe", "readers"]);
    assert!(nobody.contains("there is no group"), "nothing was done");
    let done = reset(&cluster, &["-t", "orders", "--to-latest", "--execute"]);
    assert!(done.contains("set for readers"), "{done}");
    assert_eq!(offsets(&cluster, "readers"), [4, 4]);

    moves_by_every_rule(&cluster);
    what_is_wrong_is_said(&cluster);
    survives_its_coordinator(&cluster);

    let deleted = cluster.run(&["group", "delete", "readers", "-t", "orders:1"]);
    assert_eq!(deleted, "deleted the offset of readers in orders/1\n");
    assert_eq!(offsets(&cluster, "readers").len(), 1);
    cluster.run(&["group", "delete", "readers"]);
    let nobody = complaint(&cluster, &["group", "delete", "readers"]);
    assert!(nobody.contains("there is no group"), "{nobody}");
    assert_eq!(
        json(&cluster, &["group", "ls"])["groups"],
        serde_json::json!([])
    );
    cluster.stop();
}

fn moves_by_every_rule(cluster: &Cluster) {
    let table: [(&[&str], [u64; 2]); 9] = [
        (&["--to", "-1"], [3, 3]),
        (&["--shift-by", "-2"], [1, 1]),
        (&["--to-earliest"], [0, 0]),
        (&["--to", "@now"], [4, 4]),
        (&["--to", "@-1h"], [0, 0]),
        (&["--to-offset", "99"], [4, 4]),
        (&["--by-duration", "PT1H"], [0, 0]),
        (&["--to-current"], [0, 0]),
        (&["--to-offset", "2"], [2, 2]),
    ];
    for (to, expected) in table {
        reset(cluster, &[&["--all-topics", "--execute"], to].concat());
        assert_eq!(offsets(cluster, "readers"), expected, "{to:?}");
    }
    reset(cluster, &["-t", "orders:1", "--to", "3", "--execute"]);
    assert_eq!(offsets(cluster, "readers"), [2, 3]);
    let lag = json(cluster, &["group", "lag"]);
    assert_eq!(lag["groups"][0]["group"], "readers");
    assert_eq!(lag["groups"][0]["lag"], 3);
    let lag = cluster.run(&["group", "lag", "readers"]);
    assert!(lag.contains("readers: 3 records behind"), "{lag}");
    let listed = cluster.run(&["group", "ls"]);
    assert!(listed.contains("readers  Empty  0"), "{listed}");
}

fn what_is_wrong_is_said(cluster: &Cluster) {
    let base = ["group", "reset", "readers"];
    let table: [(&[&str], &str); 4] = [
        (&["-t", "nothing", "--to-latest"], "no topic 'nothing'"),
        (&["-t", "orders:7", "--to-latest"], "no partition 7"),
        (&["-t", "orders", "--to", "@soon"], "is no time"),
        (&["-t", "orders"], "required"),
    ];
    for (arguments, expected) in table {
        let output = cluster.output(&[&base[..], arguments].concat());
        assert!(!output.status.success());
        let said = stderr(&output);
        assert!(said.contains(expected), "{arguments:?}: {said}");
    }
    let nowhere = ["group", "reset", "others", "--all-topics", "--to-latest"];
    let said = complaint(cluster, &nowhere);
    assert!(said.contains("say which topics are meant"), "{said}");
    let said = complaint(
        cluster,
        &[
            "group",
            "reset",
            "others",
            "-t",
            "orders",
            "--shift-by",
            "1",
        ],
    );
    assert!(said.contains("no offset in orders/0"), "{said}");
    let said = complaint(cluster, &["group", "delete", "readers", "-t", "nothing"]);
    assert!(said.contains("no offsets there"), "{said}");
    assert_eq!(offsets(cluster, "readers"), [2, 3], "nothing has changed");
}

fn survives_its_coordinator(cluster: &Cluster) {
    let described = json(cluster, &["group", "describe", "readers"]);
    let coordinator = described["coordinator"].as_u64().unwrap().to_string();
    cluster.dev(&["kill", &coordinator]);
    assert_eq!(offsets(cluster, "readers"), [2, 3]);
    reset(cluster, &["-t", "orders:0", "--to-latest", "--execute"]);
    let listed = json(cluster, &["group", "ls"]);
    assert_eq!(listed["groups"][0]["group"], "readers", "{listed}");
    cluster.dev(&["restart", &coordinator]);
    assert_eq!(offsets(cluster, "readers"), [4, 3]);
}
