//! Puts a node together from its configuration and runs it; the only module that sees all others.

use anyhow::Context;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::http::{Health, Http, Metrics, ProcessSource};

/// Runs a node until `stop`, then hands over, writes out and returns.
pub async fn run(config: Config, stop: CancellationToken) -> anyhow::Result<()> {
    let http = Http::bind(config.listen.http)
        .await
        .with_context(|| format!("listening for HTTP on {}", config.listen.http))?;
    let metrics = Metrics::install(config.node.id)?;
    metrics.register(ProcessSource::new(&config.node.data_dir));
    let health = Health::default();
    health.must_be_ready("http", || Ok(()));
    http.serve(metrics, health, stop).await?;
    Ok(())
}
