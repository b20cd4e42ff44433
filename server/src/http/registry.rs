//! The metric registry: one recorder for the process, rendered when it is scraped.
//!
//! Counters and histograms are recorded as things happen. What is merely true at a moment (sizes,
//! lags, who leads) is published by its source at the scrape, so that nothing keeps it up to date
//! in between, and a source that is gone leaves no stale value being refreshed.

use std::fmt::{self, Write};
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

/// A histogram that is counted elsewhere, too often for the recorder: what it shows now.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// The upper bound of each bucket in seconds, ascending, and how many observations fell into
    /// it and into no earlier one.
    pub buckets: Vec<(f64, u64)>,
    /// Observations beyond the last bound.
    pub beyond: u64,
    /// All observations together, in seconds.
    pub sum: f64,
}

/// One value of a metric whose labels come and go.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub labels: Vec<(&'static str, String)>,
    pub value: u64,
}

type Observe = Arc<dyn Fn() -> Observed + Send + Sync>;
type Sampled = Arc<dyn Fn() -> Vec<(&'static str, Vec<Sample>)> + Send + Sync>;

/// Why there is no registry.
#[derive(Debug, thiserror::Error)]
#[error("the metric recorder cannot be installed")]
pub struct MetricsError(#[from] BuildError);

/// The registry of this process.
#[derive(Clone)]
pub struct Metrics {
    handle: PrometheusHandle,
    sources: Arc<Mutex<Vec<Arc<dyn MetricSource>>>>,
    histograms: Arc<Mutex<Vec<(&'static str, Observe)>>>,
    samples: Arc<Mutex<Vec<Sampled>>>,
    node: u32,
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
            histograms: Arc::default(),
            samples: Arc::default(),
            node,
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
        let mut text = self.handle.render();
        let histograms = self.histograms.lock().clone();
        for (name, observe) in histograms {
            // A string takes whatever is written.
            let _ = self.write(&mut text, name, &observe());
        }
        let sampled = self.samples.lock().clone();
        for (name, samples) in sampled.iter().flat_map(|sampled| sampled()) {
            let _ = self.write_samples(&mut text, name, &samples);
        }
        text
    }

    /// Adds metrics of the catalogue whose series come and go: only those that the source names
    /// at a scrape are shown, where the recorder would show the others for ever.
    pub fn register_samples(
        &self,
        source: impl Fn() -> Vec<(&'static str, Vec<Sample>)> + Send + Sync + 'static,
    ) {
        self.samples.lock().push(Arc::new(source));
    }

    /// Adds a histogram of the catalogue that is counted elsewhere.
    pub fn register_histogram(
        &self,
        name: &'static str,
        observe: impl Fn() -> Observed + Send + Sync + 'static,
    ) {
        self.histograms.lock().push((name, Arc::new(observe)));
    }

    fn write_samples(&self, text: &mut String, name: &str, samples: &[Sample]) -> fmt::Result {
        if samples.is_empty() {
            return Ok(());
        }
        write_heading(text, name)?;
        for Sample { labels, value } in samples {
            write!(text, "{name}{{node=\"{}\"", self.node)?;
            for (label, value) in labels {
                write!(text, ",{label}=\"{}\"", escaped(value))?;
            }
            writeln!(text, "}} {value}")?;
        }
        writeln!(text)
    }

    fn write(&self, text: &mut String, name: &str, observed: &Observed) -> fmt::Result {
        let node = self.node;
        write_heading(text, name)?;
        let mut total = 0;
        for (bound, count) in &observed.buckets {
            total += count;
            writeln!(
                text,
                "{name}_bucket{{node=\"{node}\",le=\"{bound}\"}} {total}"
            )?;
        }
        total += observed.beyond;
        writeln!(text, "{name}_bucket{{node=\"{node}\",le=\"+Inf\"}} {total}")?;
        writeln!(text, "{name}_sum{{node=\"{node}\"}} {}", observed.sum)?;
        writeln!(text, "{name}_count{{node=\"{node}\"}} {total}\n")
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

fn write_heading(text: &mut String, name: &str) -> fmt::Result {
    let known = CATALOGUE.iter().find(|metric| metric.name == name);
    let (help, kind) = known.map_or(("", "untyped"), |metric| {
        let kind = match metric.kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        (metric.help, kind)
    });
    writeln!(text, "# HELP {name} {help}")?;
    writeln!(text, "# TYPE {name} {kind}")
}

/// A label's value, which may be any text that a client chose.
fn escaped(value: &str) -> String {
    let mut escaped = String::with_capacity(value.len());
    for c in value.chars() {
        match c {
            '\\' => escaped.push_str("\\\\"),
            '"' => escaped.push_str("\\\""),
            '\n' => escaped.push_str("\\n"),
            c => escaped.push(c),
        }
    }
    escaped
}

fn describe() {
    for metric in CATALOGUE {
        match metric.kind {
            Kind::Counter => metrics::describe_counter!(metric.name, metric.help),
            Kind::Gauge => metrics::describe_gauge!(metric.name, metric.help),
            Kind::Histogram => metrics::describe_histogram!(metric.name, metric.help),
        }
    }
    let commit = env!("TRILOG_COMMIT");
    let version = env!("CARGO_PKG_VERSION");
    metrics::gauge!("trilog_build_info", "version" => version, "commit" => commit).set(1.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_a_client_calls_its_group_stays_within_its_quotes() {
        assert_eq!(escaped("orders-eu"), "orders-eu");
        assert_eq!(escaped("a\"} 1\nb\\"), "a\\\"} 1\\nb\\\\");
    }
}
