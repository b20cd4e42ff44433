//! A cluster of real node processes on free loopback ports, for tests to kill and restart.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fmt::Write as _;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;
use trilog_client::Client;

const BINARY: &str = env!("CARGO_BIN_EXE_trilog");
const PATIENCE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(50);

/// The nodes; dropping them ends them.
pub(crate) struct Nodes {
    dir: tempfile::TempDir,
    nodes: Vec<Node>,
}

struct Node {
    config: PathBuf,
    data: PathBuf,
    log: PathBuf,
    grpc: u16,
    process: Option<Child>,
}

impl Nodes {
    /// Starts a cluster and waits until every node of it serves.
    pub(crate) async fn start(count: usize) -> Self {
        Self::start_with(count, "").await
    }

    /// As [`Nodes::start`], with more lines in the section on storage.
    pub(crate) async fn start_with(count: usize, storage: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ports = free_ports(count * 3);
        let peers: Vec<String> = (0..count)
            .map(|node| format!("\"127.0.0.1:{}\"", ports[node * 3 + 1]))
            .collect();
        let nodes = (0..count)
            .map(|node| {
                let (ports, peers) = (&ports[node * 3..], peers.join(", "));
                Node::write(dir.path(), node, ports, &peers, storage)
            })
            .collect();
        let mut all = Self { dir, nodes };
        all.restart_all();
        all.await_ready().await;
        all
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.nodes
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.grpc))
            .collect()
    }

    /// A node's data directory.
    pub(crate) fn data(&self, node: usize) -> &Path {
        &self.nodes[node].data
    }

    /// As `kill -9` does.
    pub(crate) fn kill(&mut self, node: usize) {
        let mut process = self.nodes[node].process.take().unwrap();
        process.kill().unwrap();
        process.wait().unwrap();
    }

    pub(crate) fn kill_all(&mut self) {
        for node in &mut self.nodes {
            node.process.as_mut().unwrap().kill().unwrap();
        }
        for node in &mut self.nodes {
            node.process.take().unwrap().wait().unwrap();
        }
    }

    pub(crate) fn restart(&mut self, node: usize) {
        self.nodes[node].spawn();
    }

    pub(crate) fn restart_all(&mut self) {
        for node in &mut self.nodes {
            node.spawn();
        }
    }

    /// Waits until every running node is heard by the others, and every partition has a leader.
    pub(crate) async fn await_ready(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        let mut last = String::new();
        while let Err(state) = self.check_ready().await {
            last.clear();
            write!(last, "{state}").unwrap();
            assert!(
                Instant::now() < deadline,
                "the cluster is not ready: {last}{}",
                self.logs()
            );
            tokio::time::sleep(POLL).await;
        }
    }

    async fn check_ready(&mut self) -> Result<(), String> {
        for node in &mut self.nodes {
            let Some(process) = &mut node.process else {
                continue;
            };
            if let Some(status) = process.try_wait().unwrap() {
                panic!("a node ended by itself ({status}):\n{}", self.logs());
            }
        }
        let running = self
            .nodes
            .iter()
            .filter(|node| node.process.is_some())
            .count();
        for node in self.nodes.iter().filter(|node| node.process.is_some()) {
            let address = [format!("127.0.0.1:{}", node.grpc)];
            let client = Client::connect(address)
                .await
                .map_err(|error| error.to_string())?;
            let status = client
                .admin()
                .status()
                .await
                .map_err(|error| error.to_string())?;
            let alive = status.nodes.iter().filter(|node| node.alive).count();
            if alive < running || status.leaderless_partitions > 0 {
                let leaderless = status.leaderless_partitions;
                return Err(format!(
                    "{alive} of {running} alive, {leaderless} leaderless"
                ));
            }
        }
        Ok(())
    }

    /// Ends every node in order.
    pub(crate) fn stop(&mut self) {
        for node in &mut self.nodes {
            // Closing standard input is the order to stop.
            drop(node.process.as_mut().unwrap().stdin.take());
        }
        for node in &mut self.nodes {
            let status = node.process.take().unwrap().wait().unwrap();
            assert!(status.success(), "a node did not stop in order: {status}");
        }
    }

    /// `trilog log verify` finds nothing wrong in the stopped nodes' directories.
    pub(crate) fn verify_logs(&self) {
        for node in &self.nodes {
            let verified = Command::new(BINARY)
                .args(["log", "verify"])
                .arg(&node.data)
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&verified.stdout);
            let errors = String::from_utf8_lossy(&verified.stderr);
            assert!(verified.status.success(), "{text}\n{errors}");
        }
    }

    fn logs(&self) -> String {
        let mut all = format!("\n(logs under {})", self.dir.path().display());
        for node in &self.nodes {
            let text = std::fs::read_to_string(&node.log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            let tail = lines[lines.len().saturating_sub(15)..].join("\n");
            write!(all, "\n== {}\n{tail}", node.log.display()).unwrap();
        }
        all
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut process) = node.process.take() {
                let _gone = process.kill();
                let _reaped = process.wait();
            }
        }
    }
}

impl Node {
    fn write(dir: &Path, node: usize, ports: &[u16], seeds: &str, storage: &str) -> Self {
        let home = dir.join(format!("node-{}", node + 1));
        std::fs::create_dir_all(&home).unwrap();
        let data = home.join("data");
        let text = format!(
            "[node]\nid = {}\ndata_dir = \"{}\"\n[cluster]\nseeds = [{seeds}]\n[listen]\n\
             grpc = \"127.0.0.1:{}\"\npeer = \"127.0.0.1:{}\"\nhttp = \"127.0.0.1:{}\"\n\
             [storage]\nwal_file_size = \"16MiB\"\nwal_files = 8\n{storage}\n",
            node + 1,
            data.display(),
            ports[0],
            ports[1],
            ports[2],
        );
        let config = home.join("trilog.toml");
        std::fs::write(&config, text).unwrap();
        Self {
            config,
            data,
            log: home.join("log"),
            grpc: ports[0],
            process: None,
        }
    }

    fn spawn(&mut self) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(&self.log)
            .unwrap();
        let process = Command::new(BINARY)
            .args(["server", "--stop-with-stdin", "-c"])
            .arg(&self.config)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.process = Some(process);
    }
}

/// Ports nobody has now. All are held until all are found, so that none comes twice.
fn free_ports(count: usize) -> Vec<u16> {
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
        .collect();
    held.iter()
        .map(|listener| listener.local_addr().unwrap().port())
        .collect()
}
