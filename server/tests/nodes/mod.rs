//! A cluster of real node processes on free loopback ports, for tests to kill and restart.

#![allow(dead_code, reason = "each test file uses a part of it")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use tokio::time::Instant;
use trilog_client::proto::StatusResponse;
use trilog_client::{Admin, Client, ClientConfig, Credentials};
use trilog_jepsen::cluster::{Node, Place, Ports};

const BINARY: &str = env!("CARGO_BIN_EXE_trilog");
const PATIENCE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(50);

/// The nodes; dropping them ends them. They are numbered from zero here, and from one in the
/// cluster.
pub(crate) struct Nodes {
    dir: tempfile::TempDir,
    members: Vec<Node>,
    /// Who calls the nodes, where they ask.
    caller: Option<(String, String)>,
    _ports: Ports,
}

impl Nodes {
    /// Starts a cluster and waits until every node of it serves.
    pub(crate) async fn start(count: usize) -> Self {
        Self::start_with(count, "").await
    }

    /// As [`Nodes::start`], with more lines in the section on storage.
    pub(crate) async fn start_with(count: usize, storage: &str) -> Self {
        let mut all = Self::prepare(count, count, storage);
        all.restart_all();
        all.await_ready().await;
        all
    }

    /// As [`Nodes::start_with`], a cluster that asks who calls it: this user, by this password.
    pub(crate) async fn start_as(count: usize, more: &str, user: &str, password: &str) -> Self {
        let mut all = Self::prepare(count, count, more);
        all.caller = Some((user.to_owned(), password.to_owned()));
        all.restart_all();
        all.await_ready().await;
        all
    }

    /// Starts the first of `most` nodes, a cluster of one that the others can join.
    pub(crate) async fn start_first_of(most: usize) -> Self {
        let mut all = Self::prepare(most, 1, "");
        all.restart(0);
        all.await_ready().await;
        all
    }

    /// Nodes that are yet to be started. The first `seeds` of them found the cluster, and know
    /// only each other; the others are told of all.
    fn prepare(count: usize, seeds: usize, storage: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ports = Ports::claim().expect("every block of ports is taken");
        let first = |node: usize| ports.first() + 4 * u16::try_from(node).unwrap();
        let peers: Vec<String> = (0..count)
            .map(|node| format!("127.0.0.1:{}", first(node) + 1))
            .collect();
        let write = |node: usize| {
            let known = if node < seeds { seeds } else { count };
            let place = Place::new(u32::try_from(node).unwrap() + 1, first(node));
            let settings = format!("wal_file_size = \"16MiB\"\nwal_files = 8\n{storage}");
            let binary = Path::new(BINARY);
            Node::prepare(binary, dir.path(), place, &peers[..known], &settings).unwrap()
        };
        let nodes = (0..count).map(write).collect();
        Self {
            dir,
            members: nodes,
            caller: None,
            _ports: ports,
        }
    }

    pub(crate) fn addresses(&self) -> Vec<String> {
        self.members
            .iter()
            .map(|node| format!("127.0.0.1:{}", node.place.grpc))
            .collect()
    }

    pub(crate) fn address(&self, node: usize) -> String {
        format!("127.0.0.1:{}", self.members[node].place.grpc)
    }

    /// Where a node listens: gRPC, peers, HTTP, Kafka.
    pub(crate) fn ports(&self, node: usize) -> [u16; 4] {
        let grpc = self.members[node].place.grpc;
        [grpc, grpc + 1, grpc + 2, grpc + 3]
    }

    pub(crate) fn kafka_port(&self, node: usize) -> u16 {
        self.members[node].place.grpc + 3
    }

    pub(crate) fn config(&self, node: usize) -> &Path {
        self.members[node].config()
    }

    /// Waits until one node serves, and leads everything, whatever the others do.
    pub(crate) async fn await_alone(&self, node: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status_of(node).await;
            if status
                .as_ref()
                .is_ok_and(|status| status.leaderless_partitions == 0)
            {
                return;
            }
            assert!(Instant::now() < deadline, "{status:?}{}", self.logs());
            tokio::time::sleep(POLL).await;
        }
    }

    /// As `kill -9` does.
    pub(crate) fn kill(&mut self, node: usize) {
        assert!(self.members[node].is_started());
        self.members[node].kill().unwrap();
        self.members[node].bury().unwrap();
    }

    pub(crate) fn kill_all(&mut self) {
        for node in &mut self.members {
            assert!(node.is_started());
            node.kill().unwrap();
        }
        for node in &mut self.members {
            node.bury().unwrap();
        }
    }

    pub(crate) fn restart(&mut self, node: usize) {
        self.members[node].spawn(&[]).unwrap();
    }

    pub(crate) fn restart_all(&mut self) {
        for node in &mut self.members {
            node.spawn(&[]).unwrap();
        }
    }

    /// Starts a node as the one that takes the place of its lost self.
    pub(crate) fn restart_as_replacement(&mut self, node: usize) {
        self.members[node].spawn(&["--replace"]).unwrap();
    }

    /// Ends one node in order.
    pub(crate) fn stop_one(&mut self, node: usize) {
        self.members[node].close();
        reap(&mut self.members[node]);
    }

    pub(crate) fn data(&self, node: usize) -> &Path {
        self.members[node].data()
    }

    /// Loses a stopped node's disk.
    pub(crate) fn wipe(&self, node: usize) {
        self.members[node].wipe().unwrap();
    }

    /// Waits until a node that may not serve has ended by itself, as a failure.
    pub(crate) async fn await_end(&mut self, node: usize) {
        let ended = self.members[node].await_end(PATIENCE).await.unwrap();
        assert!(!ended.expect("the node goes on").success());
    }

    /// What a node has said so far.
    pub(crate) fn log(&self, node: usize) -> String {
        std::fs::read_to_string(self.members[node].log()).unwrap_or_default()
    }

    /// Runs a command of the binary to its end.
    pub(crate) fn trilog(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(BINARY);
        command
            .args(arguments)
            .env_remove("TRILOG_CONFIG")
            .env("TRILOG_SERVER", self.addresses().join(","));
        if let Some((user, password)) = &self.caller {
            command
                .env("TRILOG_USER", user)
                .env("TRILOG_PASSWORD", password);
        }
        command.output().unwrap()
    }

    /// Runs a command that must succeed; what it printed.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        let output = self.trilog(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {errors}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command until it succeeds: for what is refused while the cluster is on its way.
    pub(crate) async fn run_until_done(&self, arguments: &[&str]) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let output = self.trilog(arguments);
            if output.status.success() {
                return String::from_utf8(output.stdout).unwrap();
            }
            let errors = String::from_utf8_lossy(&output.stderr);
            assert!(
                Instant::now() < deadline,
                "{arguments:?}: {errors}{}",
                self.logs()
            );
            tokio::time::sleep(POLL).await;
        }
    }

    /// What one node says of the cluster, if it answers.
    pub(crate) async fn status_of(&self, node: usize) -> Result<StatusResponse, String> {
        let address = [format!("127.0.0.1:{}", self.members[node].place.grpc)];
        let asked = async { self.connect(address).await?.admin().status().await };
        let answered = tokio::time::timeout(Duration::from_secs(2), asked).await;
        answered
            .map_err(|_| "no answer".to_owned())?
            .map_err(|error| error.to_string())
    }

    async fn connect(&self, address: [String; 1]) -> Result<Client, trilog_client::Error> {
        let caller = self.caller.as_ref();
        let credentials = caller.map(|(user, password)| Credentials::new(user, password));
        Client::connect_with(ClientConfig {
            seeds: address.to_vec(),
            credentials,
            ..ClientConfig::default()
        })
        .await
    }

    /// A page of a node's HTTP port, whatever its status.
    pub(crate) fn page(&self, node: usize, path: &str) -> String {
        use std::io::{Read, Write};
        let mut stream =
            std::net::TcpStream::connect(("127.0.0.1", self.members[node].place.http)).unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    /// Waits until every partition of a topic has `replicas` replicas, all of them alive, and
    /// none of them on the way, and the cluster has as many members as nodes are running.
    pub(crate) async fn await_placed(&mut self, admin: &Admin, topic: &str, replicas: usize) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let running = self.members.iter().filter(|node| node.is_started());
            let running = running.count();
            let state = placed(admin, topic, replicas, running).await;
            let Err(state) = state else { break };
            assert!(
                Instant::now() < deadline,
                "not placed as it should be: {state}{}",
                self.logs()
            );
            tokio::time::sleep(POLL).await;
        }
        self.await_ready().await;
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
        for node in &mut self.members {
            if let Some(status) = node.ended().unwrap() {
                panic!("a node ended by itself ({status}):\n{}", self.logs());
            }
        }
        let running = self.members.iter().filter(|node| node.is_started()).count();
        for node in self.members.iter().filter(|node| node.is_started()) {
            let address = [format!("127.0.0.1:{}", node.place.grpc)];
            let client = self
                .connect(address)
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

    /// Ends every running node in order.
    pub(crate) fn stop(&mut self) {
        for node in &mut self.members {
            node.close();
        }
        for node in &mut self.members {
            reap(node);
        }
    }

    /// `trilog log verify` finds nothing wrong in the stopped nodes' directories.
    pub(crate) fn verify_logs(&self) {
        for node in self.members.iter().filter(|node| node.data().exists()) {
            let verified = Command::new(BINARY)
                .args(["log", "verify"])
                .arg(node.data())
                .output()
                .unwrap();
            let text = String::from_utf8_lossy(&verified.stdout);
            let errors = String::from_utf8_lossy(&verified.stderr);
            assert!(verified.status.success(), "{text}\n{errors}");
        }
    }

    fn logs(&self) -> String {
        let mut all = format!("\n(logs under {})", self.dir.path().display());
        for node in &self.members {
            let (log, tail) = (node.log().display(), node.last_words(15));
            write!(all, "\n== {log}\n{tail}").unwrap();
        }
        all
    }
}

/// Waits for a node that was told to stop, which must be in order.
fn reap(node: &mut Node) {
    if let Some(status) = node.reap().unwrap() {
        assert!(status.success(), "a node did not stop in order: {status}");
    }
}

/// Whether a topic is spread as it should be over the nodes that run, and nothing moves.
async fn placed(admin: &Admin, topic: &str, replicas: usize, running: usize) -> Result<(), String> {
    let status = admin.status().await.map_err(|error| error.to_string())?;
    let alive = status.nodes.iter().filter(|node| node.alive).count();
    if alive != running || status.moving_replicas > 0 {
        let moving = status.moving_replicas;
        return Err(format!("{alive} of {running} alive, {moving} moving"));
    }
    let topic = admin.describe_topic(topic).await;
    for place in topic.map_err(|error| error.to_string())?.partitions {
        if place.leader == 0 || place.live.len() != replicas || place.replicas.len() != replicas {
            return Err(format!("{place:?}"));
        }
    }
    Ok(())
}
