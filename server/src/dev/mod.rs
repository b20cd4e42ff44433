//! A cluster on this machine, for trying things out: processes of this same binary, each with its
//! own data directory and ports, looked after by one supervisor.
//!
//! The supervisor owns its children: it alone starts, kills and stops them, and if it dies itself,
//! they see their standard input close and stop. Another terminal reaches it through a socket in
//! the data directory. Prints nothing: the command line does.

mod control;
mod layout;
mod node;
mod probe;
mod supervisor;

pub use control::{Answer, Control, Request, call};
pub use layout::{Layout, Place};
pub use node::{Down, NodeProcess, NodeState};
pub use probe::{Page, ProbeError, get};
pub use supervisor::{Dev, DevOptions, NodeStatus};

use std::io;
use std::path::PathBuf;

/// What can go wrong around a development cluster.
#[derive(Debug, thiserror::Error)]
pub enum DevError {
    #[error("{what}: {path}", path = .path.display())]
    File {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is in use by another `trilog dev`", .0.display())]
    InUse(PathBuf),
    #[error("no `trilog dev` is running on {}; start it with `trilog dev --data {}`", .0.display(), .0.display())]
    NotRunning(PathBuf),
    #[error("{} was made for {there} nodes; give --nodes {there} or more, or --clean", .data.display())]
    FewerNodes { data: PathBuf, there: u32 },
    #[error("a development cluster has 1 to 9 nodes, not {0}")]
    NodeCount(u32),
    #[error("the ports from {0} on do not fit below 65536")]
    PortRange(u16),
    #[error("port {port} of node {node} is taken; choose others with --base-port 17400")]
    PortTaken {
        node: u32,
        port: u16,
        source: io::Error,
    },
    #[error("there is no node {0}")]
    NoSuchNode(u32),
    #[error("node {0} is not running")]
    NotUp(u32),
    #[error("node {0} is running already")]
    AlreadyUp(u32),
    #[error("node {node} cannot be started")]
    Spawn { node: u32, source: io::Error },
    #[error("node {node} {status}; the end of {log}:\n{tail}", log = .log.display())]
    Died {
        node: u32,
        status: String,
        log: PathBuf,
        tail: String,
    },
    #[error("node {node} was not ready in {seconds} s: {reason}; its log is {log}", log = .log.display())]
    NotReady {
        node: u32,
        seconds: u64,
        reason: String,
        log: PathBuf,
    },
    #[error("the supervisor is stopping")]
    Stopping,
    #[error("the supervisor did not answer")]
    Control(#[source] io::Error),
    /// What the supervisor said.
    #[error("{0}")]
    Refused(String),
}
