//! `trilog server`: run one node until it is told to stop.

use std::io::{self, Read};
use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use super::config::{SettingArgs, load};
use super::{log, logging};
use crate::boot;

#[derive(Debug, Args)]
pub(super) struct ServerArgs {
    /// The configuration file; without one, the defaults
    #[arg(short, long, value_name = "FILE", env = "TRILOG_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    settings: SettingArgs,
    /// Stop when standard input closes, as it does when the parent process is gone
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

pub(super) async fn run(args: ServerArgs) -> anyhow::Result<()> {
    let loaded = load(args.config, &args.settings)?;
    logging::start(&loaded.config.log)?;
    // Held until the process ends: two nodes on one directory would destroy it.
    let _lock = log::lock(&loaded.config.node.data_dir, true)?;
    let stop = CancellationToken::new();
    let signals = tokio::spawn(stop_on_signal(
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
        stop.clone(),
    ));
    if args.stop_with_stdin {
        stop_with_stdin(stop.clone())?;
    }
    #[cfg(feature = "planted")]
    tracing::error!(
        bug = ?trilog_storage::planted::chosen(),
        "THIS BUILD IS WRONG ON PURPOSE: it has planted bugs, and must hold nobody's data"
    );
    info!(node = loaded.config.node.id, data_dir = %loaded.config.node.data_dir.display(), "starting");
    let outcome = boot::run(loaded.config, stop).await;
    signals.abort();
    outcome
}

async fn stop_on_signal(
    mut terminate: tokio::signal::unix::Signal,
    mut interrupt: tokio::signal::unix::Signal,
    stop: CancellationToken,
) {
    let name = tokio::select! {
        biased;
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    info!(signal = name, "stopping");
    stop.cancel();
}

/// A thread of its own: reading standard input cannot be cancelled, and the process does not wait
/// for this thread when it ends.
fn stop_with_stdin(stop: CancellationToken) -> io::Result<()> {
    std::thread::Builder::new()
        .name("stdin".to_owned())
        .spawn(move || {
            let mut byte = [0; 64];
            let mut stdin = io::stdin().lock();
            while matches!(stdin.read(&mut byte), Ok(1..)) {}
            info!("standard input closed, stopping");
            stop.cancel();
        })?;
    Ok(())
}
