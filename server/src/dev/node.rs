//! One node's process: a task that owns the child, so that it is always waited for and never
//! killed by a number that meanwhile belongs to somebody else.

use std::io;
use std::path::PathBuf;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

/// How long a node may take to stop before it is killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// Why a node is not running.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Down {
    /// It was not started yet.
    New,
    /// It was asked to stop, and did.
    Stopped,
    /// It was killed, by request or because it would not stop.
    Killed,
    /// It ended by itself; how, in words.
    Died(String),
}

/// Whether a node runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeState {
    Up { pid: u32 },
    Down(Down),
}

/// What to run, and where.
#[derive(Clone, Debug)]
pub(super) struct Program {
    pub(super) binary: PathBuf,
    pub(super) arguments: Vec<String>,
    /// Prefixes of environment variables that it must not inherit.
    pub(super) without: &'static [&'static str],
}

#[derive(Clone, Copy, Debug)]
enum Order {
    Stop,
    Kill,
}

/// A node's process, present or past.
#[derive(Debug)]
pub struct NodeProcess {
    orders: mpsc::Sender<Order>,
    state: watch::Receiver<NodeState>,
    task: JoinHandle<()>,
}

impl NodeProcess {
    /// Starts the program, its output going to `log`.
    pub(super) fn start(program: &Program, log: std::fs::File) -> io::Result<Self> {
        let mut command = Command::new(&program.binary);
        command
            .args(&program.arguments)
            // The child stops when this pipe closes, so it never outlives the supervisor.
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            // Ctrl-C is for the supervisor, which stops its nodes in order.
            .process_group(0)
            .kill_on_drop(true);
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy();
            if program
                .without
                .iter()
                .any(|prefix| text.starts_with(prefix))
            {
                command.env_remove(&name);
            }
        }
        let child = command.spawn()?;
        let pid = child.id().unwrap_or_default();
        let (orders, incoming) = mpsc::channel(4);
        let (set_state, state) = watch::channel(NodeState::Up { pid });
        let task = tokio::spawn(async move {
            let down = tend(child, incoming).await;
            set_state.send_replace(NodeState::Down(down));
        });
        Ok(Self {
            orders,
            state,
            task,
        })
    }

    pub fn state(&self) -> NodeState {
        self.state.borrow().clone()
    }

    pub fn is_up(&self) -> bool {
        matches!(*self.state.borrow(), NodeState::Up { .. })
    }

    /// Ends when the process has.
    pub async fn down(&self) -> Down {
        let mut state = self.state.clone();
        loop {
            if let NodeState::Down(down) = &*state.borrow_and_update() {
                return down.clone();
            }
            if state.changed().await.is_err() {
                return Down::Killed;
            }
        }
    }

    /// Asks it to stop, and waits; one that does not is killed.
    pub async fn stop(&self) -> Down {
        self.order(Order::Stop).await
    }

    /// Kills it as a power cut would.
    pub async fn kill(&self) -> Down {
        self.order(Order::Kill).await
    }

    async fn order(&self, order: Order) -> Down {
        // A task that is gone has already told how its process ended.
        let _ = self.orders.send(order).await;
        self.down().await
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // The child is killed with the task that owns it.
        self.task.abort();
    }
}

async fn tend(mut child: Child, mut orders: mpsc::Receiver<Order>) -> Down {
    // Held, not used: its closing is the child's signal that the supervisor is gone.
    let _stdin = child.stdin.take();
    let order = tokio::select! {
        biased;
        status = child.wait() => return Down::Died(describe(status)),
        order = orders.recv() => order,
    };
    if matches!(order, Some(Order::Stop)) {
        terminate(&child);
        let stopped = tokio::select! {
            biased;
            status = child.wait() => Some(status),
            Some(Order::Kill) = orders.recv() => None,
            () = tokio::time::sleep(STOP_TIMEOUT) => None,
        };
        match stopped {
            Some(Ok(status)) if status.success() => return Down::Stopped,
            Some(status) => return Down::Died(describe(status)),
            None => {}
        }
    }
    match child.kill().await {
        Ok(()) => Down::Killed,
        Err(error) => Down::Died(error.to_string()),
    }
}

/// Sends SIGTERM. The child is not yet waited for, so its number is still its own.
fn terminate(child: &Child) {
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid.and_then(Pid::from_raw) {
        // It may have ended meanwhile, which waiting for it shows.
        let _ = kill_process(pid, Signal::TERM);
    }
}

fn describe(status: io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A shell script as a node.
    fn start(script: &str) -> NodeProcess {
        let program = Program {
            binary: "/bin/sh".into(),
            arguments: vec!["-c".to_owned(), script.to_owned()],
            without: &["TRILOG_NODE_"],
        };
        let log = tempfile::tempfile().unwrap();
        NodeProcess::start(&program, log).unwrap()
    }

    #[tokio::test]
    async fn a_node_that_ends_says_how() {
        let node = start("exit 3");
        assert_eq!(node.down().await, Down::Died("exit status: 3".to_owned()));
        assert!(!node.is_up());
        assert_eq!(node.kill().await, Down::Died("exit status: 3".to_owned()));
    }

    #[tokio::test]
    async fn a_node_is_stopped_or_killed_on_request() {
        let node = start("trap 'exit 0' TERM; while :; do sleep 0.01; done");
        assert!(node.is_up());
        assert!(matches!(node.stop().await, Down::Stopped | Down::Died(_)));
        let node = start("cat");
        assert_eq!(node.kill().await, Down::Killed);
    }
}
