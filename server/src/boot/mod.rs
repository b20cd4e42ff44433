//! Puts a node together from its configuration and runs it; the only module that sees all others.

mod assemble;
mod first_admin;
mod ground;
mod joining;
pub mod recover;
mod sources;

use anyhow::{Context, bail};
use tokio_util::sync::CancellationToken;
use trilog_raft::controller::BUILD_LEVEL;

pub use assemble::{Listeners, Server};
pub use ground::{Footing, Ground, Surroundings, make_private};

use crate::config::Config;
use crate::http::{Health, Http, Metrics, ProcessSource};

/// Runs a node until `stop`, then hands over, writes out and returns.
///
/// Fails at once when storage can no longer be trusted (a failed sync): the process must end, for
/// what it would acknowledge from here on might be lost.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let http = Http::bind(config.listen.http)
        .await
        .with_context(|| format!("listening for HTTP on {}", config.listen.http))?;
    let metrics = Metrics::install(config.node.id)?;
    metrics.register(ProcessSource::new(&config.node.data_dir));
    let health = Health::default();
    let serving = tokio::spawn(http.serve(metrics.clone(), health.clone(), stop.clone()));

    let listeners = Listeners::bind(&config).await?;
    let starting = Server::start(&config, listeners);
    let server = match stop.run_until_cancelled(starting).await {
        None => return Ok(()),
        Some(started) => started?,
    };
    server.observe(&metrics, &health);
    let mut fatal = server.fatal();
    let failure = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        level = server.outgrown() => bail!(
            "the cluster's feature level is {level}, and this build follows up to {BUILD_LEVEL}: \
             install the newer one again"
        ),
        failed = fatal.wait_for(Option::is_some) => failed.ok().and_then(|failed| failed.clone()),
    };
    if let Some(failure) = failure {
        // No hand-over, no last write: whatever is in memory may differ from what is on disk.
        bail!("storage failed, the node stops so that nothing is acknowledged in vain: {failure}");
    }
    server.stop(config.node.shutdown_timeout.get()).await;
    serving.await??;
    Ok(())
}
