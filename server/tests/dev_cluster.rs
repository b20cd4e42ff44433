//! `trilog dev` from two terminals: start, kill, restart, stop, and the data kept.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};

fn trilog(data: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trilog"));
    command.args(arguments).arg("--data").arg(data);
    command
}

fn run(data: &Path, arguments: &[&str]) -> Output {
    trilog(data, arguments).output().unwrap()
}

/// A running `trilog dev`, killed if a test fails before it stops it.
struct Cluster {
    child: Child,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Cluster {
    /// Starts three nodes and waits until they serve.
    fn start(data: &Path, arguments: &[&str]) -> Self {
        let base = free_block();
        let base = base.to_string();
        let mut all = vec!["dev", "--base-port", &base];
        all.extend(arguments);
        let mut child = trilog(data, &all).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines
            .next()
            .expect("it says that the nodes are up")
            .unwrap();
        assert!(first.starts_with("3 nodes are up"), "{first}");
        // Whoever closes the pipe makes it fail on its last words.
        std::thread::spawn(move || lines.count());
        Self { child }
    }

    fn wait(mut self) {
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}

/// The first of thirty ports that nobody has, nor another test of this process looks at.
fn free_block() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let own = u16::try_from(std::process::id() % 500).unwrap();
    loop {
        let nth = (own + NEXT.fetch_add(1, Ordering::Relaxed)) % 500;
        let base = 12_000 + nth * 30;
        if (0..30).all(|port| free(base + port)) {
            return base;
        }
    }
}

fn states(data: &Path) -> Vec<(bool, Option<u64>)> {
    let output = run(data, &["dev", "status", "-o", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let nodes = status["nodes"].as_array().unwrap();
    nodes
        .iter()
        .map(|node| (node["ready"].as_bool().unwrap(), node["pid"].as_u64()))
        .collect()
}

fn message(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn a_cluster_is_killed_restarted_and_stopped_from_another_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    let cluster = Cluster::start(data, &[]);
    let before = states(data);
    assert!(before.iter().all(|(ready, _)| *ready), "{before:?}");

    let second = run(data, &["dev"]);
    assert!(
        message(&second).contains("in use by another"),
        "{}",
        message(&second)
    );

    assert!(run(data, &["dev", "kill", "2"]).status.success());
    assert_eq!(states(data)[1], (false, None));
    let again = run(data, &["dev", "kill", "2"]);
    assert_eq!(again.status.code(), Some(1));
    assert!(
        message(&again).contains("node 2 is not running"),
        "{}",
        message(&again)
    );
    let wrong = run(data, &["dev", "kill", "9"]);
    assert!(
        message(&wrong).contains("there is no node 9"),
        "{}",
        message(&wrong)
    );

    assert!(run(data, &["dev", "restart", "2"]).status.success());
    assert!(states(data)[1].0, "it serves again");
    assert!(run(data, &["dev", "stop"]).status.success());
    cluster.wait();

    let stopped = run(data, &["dev", "status"]);
    assert!(
        message(&stopped).contains("no `trilog dev` is running"),
        "{}",
        message(&stopped)
    );
    assert!(data.join("node-2/data").exists(), "the data stays");
}

#[test]
fn the_nodes_stop_when_their_supervisor_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path();
    let cluster = Cluster::start(data, &[]);
    let pids: Vec<u64> = states(data)
        .into_iter()
        .filter_map(|(_, pid)| pid)
        .collect();
    assert_eq!(pids.len(), 3);
    // SIGKILL: it can tell its children nothing.
    drop(cluster);
    let deadline = std::time::Duration::from_secs(30);
    let alive = || {
        pids.iter()
            .any(|pid| Path::new(&format!("/proc/{pid}/exe")).exists())
    };
    let (done, waited) = std::sync::mpsc::channel::<()>();
    let mut left = deadline;
    let step = std::time::Duration::from_millis(10);
    while alive() && !left.is_zero() {
        let _ = waited.recv_timeout(step);
        left = left.saturating_sub(step);
    }
    drop(done);
    assert!(!alive(), "nodes of a killed supervisor are still there");
}
