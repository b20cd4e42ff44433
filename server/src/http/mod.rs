//! The HTTP port: metrics for Prometheus, health for whoever restarts nodes.
//!
//! Owns the metric registry and the routes. Must not know raft, storage or any dialect: the parts
//! of a node register metric sources and health checks here. A client gets one of a fixed number
//! of connections, for a fixed time, whatever it does with it.

mod bounded;
mod catalogue;
mod health;
mod process;
mod registry;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use bounded::bounded;
pub use catalogue::{CATALOGUE, Kind, Metric};
pub use health::{Health, Reason, Report};
pub use process::ProcessSource;
pub use registry::{MetricSource, Metrics, MetricsError, Observed, Sample};

/// The exposition format of Prometheus, in text.
const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How long a stop waits for answers under way.
const DRAIN: Duration = Duration::from_secs(2);

const INDEX: &str = "trilog\n\n/metrics\n/health/live\n/health/ready\n";

/// The bound HTTP port, before it answers.
#[derive(Debug)]
pub struct Http {
    listener: TcpListener,
}

#[derive(Clone, Debug)]
struct Shared {
    metrics: Metrics,
    health: Health,
}

impl Http {
    pub async fn bind(address: SocketAddr) -> io::Result<Self> {
        Ok(Self {
            listener: TcpListener::bind(address).await?,
        })
    }

    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Answers until `stop`, and keeps the registry's own house meanwhile.
    pub async fn serve(
        self,
        metrics: Metrics,
        health: Health,
        stop: CancellationToken,
    ) -> io::Result<()> {
        let routes = routes(Shared {
            metrics: metrics.clone(),
            health,
        });
        let serving = axum::serve(bounded(self.listener), routes)
            .with_graceful_shutdown(stop.clone().cancelled_owned());
        let late = async {
            stop.cancelled().await;
            tokio::time::sleep(DRAIN).await;
        };
        tokio::select! {
            biased;
            served = async { serving.await } => served,
            () = late => Ok(()),
            () = metrics.upkeep() => Ok(()),
        }
    }
}

fn routes(shared: Shared) -> Router {
    Router::new()
        .route("/", get(async || INDEX))
        .route("/metrics", get(scrape))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .fallback(async || (StatusCode::NOT_FOUND, INDEX))
        .with_state(shared)
}

async fn scrape(State(shared): State<Shared>) -> Response {
    let text = shared.metrics.render();
    ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response()
}

async fn live(State(shared): State<Shared>) -> Response {
    answer(shared.health.live())
}

async fn ready(State(shared): State<Shared>) -> Response {
    answer(shared.health.ready())
}

fn answer(report: Report) -> Response {
    let status = if report.ok {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, Json(report)).into_response()
}

#[cfg(test)]
mod tests;
