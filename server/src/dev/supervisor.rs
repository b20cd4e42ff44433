//! The supervisor: starts the nodes of a layout, waits until they serve, and carries out what
//! this terminal or another asks for.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::control::{Answer, Control, Request};
use super::node::{Down, NodeProcess, NodeState, Program};
use super::{DevError, Layout, Place, probe};

/// How long a node may take until it serves: elections, and recovery of what a crash left.
const READY_TIMEOUT: Duration = Duration::from_mins(1);
/// How long a restart waits for that: with too few nodes up, it would be for ever.
const RESTART_TIMEOUT: Duration = Duration::from_secs(10);
const PROBE_EVERY: Duration = Duration::from_millis(25);
const PROBE_TIMEOUT: Duration = Duration::from_secs(2);
/// How much of a dead node's log is shown.
const TAIL_LINES: usize = 12;
const TAIL_BYTES: u64 = 16 << 10;

/// What to run.
#[derive(Clone, Debug)]
pub struct DevOptions {
    pub data: PathBuf,
    /// How many nodes; what is there, or three.
    pub nodes: Option<u32>,
    /// Where their ports begin; what they had, or the usual ones.
    pub base_port: Option<u16>,
    /// Whether to begin with nothing.
    pub clean: bool,
    /// The program to run as `trilog server`; normally this one.
    pub binary: PathBuf,
    /// Configuration of every node, as `section.key=value`.
    pub settings: Vec<String>,
}

/// One node as it is now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeStatus {
    pub node: u32,
    pub grpc: String,
    pub http: String,
    pub pid: Option<u32>,
    pub ready: bool,
    /// In words: `ready`, why it is not ready, or how it ended.
    pub state: String,
}

/// A running development cluster.
#[derive(Debug)]
pub struct Dev {
    layout: Layout,
    options: DevOptions,
    nodes: Mutex<BTreeMap<u32, NodeProcess>>,
    control: Control,
    /// Locked for as long as it is open.
    _lock: fs::File,
}

impl Dev {
    /// Starts every node; returns when all serve.
    pub async fn start(options: DevOptions) -> Result<Self, DevError> {
        let lock = lock(&options.data)?;
        if options.clean {
            Layout::clean(&options.data)?;
        }
        let layout = Layout::plan(&options.data, options.nodes, options.base_port)?;
        layout.check_ports()?;
        layout.save()?;
        let control = Control::listen(&layout.data)?;
        let dev = Self {
            layout,
            options,
            nodes: Mutex::default(),
            control,
            _lock: lock,
        };
        let started = dev.start_all().await;
        if let Err(error) = started {
            dev.stop().await;
            return Err(error);
        }
        Ok(dev)
    }

    async fn start_all(&self) -> Result<(), DevError> {
        for place in &self.layout.places {
            self.spawn(place).await?;
        }
        for place in &self.layout.places {
            self.await_ready(place, READY_TIMEOUT).await?;
        }
        Ok(())
    }

    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    async fn spawn(&self, place: &Place) -> Result<(), DevError> {
        let node = place.node;
        let mut nodes = self.nodes.lock().await;
        if nodes.get(&node).is_some_and(NodeProcess::is_up) {
            return Err(DevError::AlreadyUp(node));
        }
        self.layout.prepare(place)?;
        let config = self.layout.config_path(node);
        let mut arguments = vec![
            "server".to_owned(),
            "--config".to_owned(),
            config.to_string_lossy().into_owned(),
            "--stop-with-stdin".to_owned(),
        ];
        for setting in &self.options.settings {
            arguments.extend(["--set".to_owned(), setting.clone()]);
        }
        let program = Program {
            binary: self.options.binary.clone(),
            arguments,
            without: &Layout::OWN_SECTIONS,
        };
        let spawn_error = |source| DevError::Spawn { node, source };
        let log = self.layout.open_log(node).map_err(spawn_error)?;
        let process = NodeProcess::start(&program, log).map_err(spawn_error)?;
        nodes.insert(node, process);
        Ok(())
    }

    /// Waits until the node says that it serves; fails at once when it ends instead.
    async fn await_ready(&self, place: &Place, within: Duration) -> Result<(), DevError> {
        let node = place.node;
        let deadline = Instant::now() + within;
        loop {
            let state = self.state(node).await;
            if let NodeState::Down(down) = state {
                return Err(self.died(node, &down));
            }
            let reason = match readiness(place).await {
                Ok(()) => return Ok(()),
                Err(reason) => reason,
            };
            if Instant::now() >= deadline {
                return Err(DevError::NotReady {
                    node,
                    seconds: within.as_secs(),
                    reason,
                    log: self.layout.log_path(node),
                });
            }
            tokio::time::sleep(PROBE_EVERY).await;
        }
    }

    async fn state(&self, node: u32) -> NodeState {
        let nodes = self.nodes.lock().await;
        let process = nodes.get(&node);
        process.map_or(NodeState::Down(Down::New), NodeProcess::state)
    }

    fn died(&self, node: u32, down: &Down) -> DevError {
        let log = self.layout.log_path(node);
        DevError::Died {
            node,
            status: describe(down),
            tail: tail(&log),
            log,
        }
    }

    /// Kills a node as a power cut would.
    pub async fn kill(&self, node: u32) -> Result<(), DevError> {
        self.layout.place(node)?;
        let nodes = self.nodes.lock().await;
        match nodes.get(&node).filter(|process| process.is_up()) {
            Some(process) => {
                process.kill().await;
                Ok(())
            }
            None => Err(DevError::NotUp(node)),
        }
    }

    /// Starts a node that is down, or stops and starts one that is up; returns when it serves, or
    /// runs without serving for a while because the others it needs are down.
    pub async fn restart(&self, node: u32) -> Result<(), DevError> {
        let place = self.layout.place(node)?;
        {
            let nodes = self.nodes.lock().await;
            if let Some(process) = nodes.get(&node).filter(|process| process.is_up()) {
                process.stop().await;
            }
        }
        self.spawn(place).await?;
        match self.await_ready(place, RESTART_TIMEOUT).await {
            Err(DevError::NotReady { .. }) => Ok(()),
            outcome => outcome,
        }
    }

    /// Every node as it is now.
    pub async fn status(&self) -> Vec<NodeStatus> {
        let mut all = Vec::new();
        for place in &self.layout.places {
            let state = self.state(place.node).await;
            let (pid, ready, state) = match state {
                NodeState::Down(down) => (None, false, describe(&down)),
                NodeState::Up { pid } => match readiness(place).await {
                    Ok(()) => (Some(pid), true, "ready".to_owned()),
                    Err(reason) => (Some(pid), false, reason),
                },
            };
            all.push(NodeStatus {
                node: place.node,
                grpc: place.grpc_addr().to_string(),
                http: place.http_addr().to_string(),
                pid,
                ready,
                state,
            });
        }
        all
    }

    /// Answers other terminals, one at a time, until one of them asks to stop. `seen` is told of
    /// each request that was carried out.
    ///
    /// # Cancel safety
    ///
    /// A request under way is dropped, and its caller sees the connection close.
    pub async fn serve(&self, mut seen: impl FnMut(&Request)) {
        loop {
            let Some((request, reply)) = self.control.next().await else {
                continue;
            };
            let outcome = match &request {
                Request::Kill { node } => self.kill(*node).await.map(|()| Vec::new()),
                Request::Restart { node } => self.restart(*node).await.map(|()| Vec::new()),
                Request::Status => Ok(self.status().await),
                Request::Stop => {
                    self.stop_nodes().await;
                    Ok(Vec::new())
                }
            };
            let answer = match outcome {
                Ok(nodes) => {
                    seen(&request);
                    Answer::Done { nodes }
                }
                Err(error) => Answer::Failed {
                    message: error.to_string(),
                },
            };
            reply.send(&answer).await;
            if request == Request::Stop {
                return;
            }
        }
    }

    /// Ends when a node that runs now has ended, unasked or not: which, and how.
    pub async fn next_exit(&self) -> (u32, Down) {
        loop {
            for (node, process) in &*self.nodes.lock().await {
                if let NodeState::Down(down @ Down::Died(_)) = process.state() {
                    return (*node, down);
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Forgets how a node ended, once that has been reported.
    pub async fn forget(&self, node: u32) {
        let mut nodes = self.nodes.lock().await;
        if nodes.get(&node).is_some_and(|process| !process.is_up()) {
            nodes.remove(&node);
        }
    }

    async fn stop_nodes(&self) {
        let nodes = self.nodes.lock().await;
        // All at once: a cluster that goes down as a whole has nobody to hand over to.
        futures::future::join_all(nodes.values().map(NodeProcess::stop)).await;
    }

    /// Stops every node and waits for it; the data stays.
    pub async fn stop(self) {
        self.stop_nodes().await;
    }
}

/// Whether the node serves; if not, why.
async fn readiness(place: &Place) -> Result<(), String> {
    let page = probe::get(place.http_addr(), "/health/ready", PROBE_TIMEOUT)
        .await
        .map_err(|error| format!("its HTTP port gives {error}"))?;
    if page.status == 200 {
        return Ok(());
    }
    let report: serde_json::Value = serde_json::from_str(&page.body).unwrap_or_default();
    let reasons = report["reasons"].as_array().cloned().unwrap_or_default();
    let reasons: Vec<&str> = reasons
        .iter()
        .filter_map(|reason| reason["reason"].as_str())
        .collect();
    Err(reasons.join("; "))
}

fn describe(down: &Down) -> String {
    match down {
        Down::New => "not started".to_owned(),
        Down::Stopped => "stopped".to_owned(),
        Down::Killed => "killed".to_owned(),
        Down::Died(how) => format!("ended by itself: {how}"),
    }
}

/// Takes the directory for this supervisor alone.
fn lock(data: &Path) -> Result<fs::File, DevError> {
    let path = data.join("dev.lock");
    let open = || -> io::Result<fs::File> {
        fs::create_dir_all(data)?;
        fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
    };
    let file = open().map_err(|source| DevError::File {
        what: "the data directory cannot be used",
        path: path.clone(),
        source,
    })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(_) => Err(DevError::InUse(data.to_owned())),
    }
}

/// The last lines of a log.
fn tail(path: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> io::Result<Vec<u8>> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(TAIL_LINES);
    lines[from..].join("\n")
}
