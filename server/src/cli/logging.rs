//! Log lines of a running node, on standard error: readable on a terminal, JSON elsewhere.

use std::io::{self, IsTerminal};

use anyhow::{Context, anyhow};
use tracing_subscriber::EnvFilter;

use crate::config::{Log, LogFormat};

/// Below our own events, what libraries say of their inner life; a level asked for by name wins.
const QUIETED: &str = "openraft=error,h2=warn,tonic=warn,hyper=warn";

/// Begins logging; works once in a process.
pub(super) fn start(config: &Log) -> anyhow::Result<()> {
    let filter = EnvFilter::builder()
        .parse(format!("{QUIETED},{}", config.level))
        .with_context(|| format!("log.level is {:?}, which names no level", config.level))?;
    let terminal = io::stderr().is_terminal();
    let lines = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(terminal);
    let started = match (config.format, terminal) {
        (LogFormat::Json, _) | (LogFormat::Auto, false) => {
            lines.json().flatten_event(true).try_init()
        }
        (LogFormat::Text, _) | (LogFormat::Auto, true) => lines.try_init(),
    };
    started.map_err(|error| anyhow!("logging cannot start: {error}"))
}
