//! A cluster of real processes for the tests of the command line.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use trilog_jepsen::cluster::Ports;

/// Runs the binary to its end.
pub(crate) fn trilog(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_trilog"))
        .args(arguments)
        .env_remove("TRILOG_CONFIG")
        .env_remove("TRILOG_SERVER")
        .output()
        .unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// A running `trilog dev`, killed if a test fails before it stops it.
pub(crate) struct Cluster {
    child: Child,
    data: PathBuf,
    server: String,
    ports: Option<Ports>,
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Cluster {
    /// Starts three nodes and waits until they serve.
    pub(crate) fn start(data: &Path) -> Self {
        Self::start_at(data, Ports::claim().expect("every block of ports is taken"))
    }

    fn start_at(data: &Path, ports: Ports) -> Self {
        let base = ports.first();
        let mut child = Command::new(env!("CARGO_BIN_EXE_trilog"))
            .args(["dev", "--base-port", &base.to_string(), "--data"])
            .arg(data)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().and_then(Result::ok).unwrap_or_default();
        if !first.starts_with("3 nodes are up") {
            let _ = child.kill();
            let output = child.wait_with_output().unwrap();
            panic!("it did not start: {first}{}", stderr(&output));
        }
        // Whoever closes the pipe makes it fail on its last words.
        std::thread::spawn(move || lines.count());
        Self {
            child,
            data: data.to_owned(),
            server: (0..3)
                .map(|nth| format!("127.0.0.1:{}", base + 10 * nth))
                .collect::<Vec<_>>()
                .join(","),
            ports: Some(ports),
        }
    }

    /// Where one node, numbered from one, is reached.
    pub(crate) fn address(&self, node: usize) -> &str {
        self.server.split(',').nth(node - 1).unwrap()
    }

    /// Runs a command against the cluster.
    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        Command::new(env!("CARGO_BIN_EXE_trilog"))
            .args(arguments)
            .env_remove("TRILOG_CONFIG")
            .env("TRILOG_SERVER", &self.server)
            .output()
            .unwrap()
    }

    /// Runs a command that must succeed; what it printed.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
        stdout(&output)
    }

    /// `trilog dev ...`, from another terminal, so to speak.
    pub(crate) fn dev_output(&self, arguments: &[&str]) -> Output {
        let data = self.data.to_str().unwrap();
        let mut all = vec!["dev"];
        all.extend(arguments);
        all.extend(["--data", data]);
        trilog(&all)
    }

    pub(crate) fn dev(&self, arguments: &[&str]) -> String {
        let output = self.dev_output(arguments);
        assert!(
            output.status.success(),
            "{arguments:?}: {}",
            stderr(&output)
        );
        stdout(&output)
    }

    /// Where the nodes serve gRPC.
    pub(crate) fn addresses(&self) -> Vec<String> {
        self.server.split(',').map(str::to_owned).collect()
    }

    /// Where the nodes serve HTTP.
    pub(crate) fn http_ports(&self) -> impl Iterator<Item = u16> {
        let base = self.ports.as_ref().map_or(0, Ports::first);
        (0..3).map(move |nth| base + 10 * nth + 2)
    }

    pub(crate) fn node_dir(&self, node: u32) -> PathBuf {
        self.data.join(format!("node-{node}"))
    }

    /// Stops it from another terminal, and waits until it has ended by itself.
    pub(crate) fn stop(mut self) {
        self.end();
    }

    /// Stops it and starts it again where it was.
    pub(crate) fn start_again(mut self) -> Self {
        self.end();
        let ports = self.ports.take();
        Self::start_at(&self.data, ports.unwrap())
    }

    /// Stops it and starts it again on the same data, at other ports.
    pub(crate) fn start_elsewhere(mut self) -> Self {
        self.end();
        // The old ports stay taken until the new ones are.
        let _old = self.ports.take();
        Self::start_at(
            &self.data,
            Ports::claim().expect("every block of ports is taken"),
        )
    }

    fn end(&mut self) {
        self.dev(&["stop"]);
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{status}");
    }
}
