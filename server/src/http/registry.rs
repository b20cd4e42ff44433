//! The metric registry: one recorder for the process, rendered when it is scraped.
//!
//! Counters and histograms are recorded as things happen. What is merely true at a moment (sizes,
//! lags, who leads) is published by its source at the scrape, so that nothing keeps it up to date
//! in between, and a source that is gone leaves no stale value being refreshed.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use parking_lot::Mutex;

use super::catalogue::{BYTES, CATALOGUE, Kind, SECONDS};

/// How often queued observations are folded into their buckets.
const UPKEEP: Duration = Duration::from_secs(5);

/// Something whose state is shown as metrics.
pub trait MetricSource: Send + Sync {
    /// Sets its gauges (and counters, by `absolute`). Called at each scrape: must be quick.
    fn publish(&self);
}

impl<F: Fn() + Send + Sync> MetricSource for F {
    fn publish(&self) {
        self();
    }
}

/// Why there is no registry.
#[derive(Debug, thiserror::Error)]
#[error("the metric recorder cannot be installed")]
pub struct MetricsError(#[from] BuildError);

/// The registry of this process.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
    sources: Arc<Mutex<Vec<Arc<dyn MetricSource>>>>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics")
            .field("sources", &self.sources.lock().len())
            .finish_non_exhaustive()
    }
}

impl Metrics {
    /// Installs the process's recorder; every value bears the number of the node. Works once.
    pub fn install(node: u32) -> Result<Self, MetricsError> {
        let handle = PrometheusBuilder::new()
            .add_global_label("node", node.to_string())
            .set_buckets(&SECONDS)?
            .set_buckets_for_metric(Matcher::Suffix("_bytes".to_owned()), &BYTES)?
            .with_recommended_naming(true)
            .install_recorder()?;
        describe();
        Ok(Self {
            handle,
            sources: Arc::default(),
        })
    }

    /// Adds a source, for as long as the process lives.
    pub fn register(&self, source: impl MetricSource + 'static) {
        self.sources.lock().push(Arc::new(source));
    }

    /// Everything, in the text format of Prometheus.
    pub fn render(&self) -> String {
        // The sources are copied out: one of them may register another.
        let sources = self.sources.lock().clone();
        for source in sources {
            source.publish();
        }
        self.handle.render()
    }

    /// Folds what was observed, for ever; without it, observations pile up between scrapes.
    pub(super) async fn upkeep(&self) {
        let mut ticks = tokio::time::interval(UPKEEP);
        loop {
            ticks.tick().await;
            self.handle.run_upkeep();
        }
    }
}

fn describe() {
    for metric in CATALOGUE {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
    let commit = option_env!("TRILOG_COMMIT").unwrap_or("unknown");
    let version = env!("CARGO_PKG_VERSION");
    metrics::gauge!("trilog_build_info", "version" => version, "commit" => commit).set(1.0);
}
