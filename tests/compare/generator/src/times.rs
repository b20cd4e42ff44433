//! Latencies: counted from when something was due, shown as quantiles.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use crate::Outcome;

/// Up to ten minutes, in microseconds, to three digits.
const LONGEST: u64 = 600_000_000;
/// What is shown of a distribution; the chart is drawn from these.
const QUANTILES: [f64; 15] = [
    0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9999, 1.0,
];

pub(crate) struct Times(Mutex<Histogram<u64>>);

impl Times {
    pub(crate) fn new() -> Outcome<Self> {
        Ok(Self(Mutex::new(Histogram::new_with_bounds(1, LONGEST, 3)?)))
    }

    fn inner(&self) -> MutexGuard<'_, Histogram<u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn note(&self, micros: u64) {
        self.inner().saturating_record(micros);
    }

    pub(crate) fn count(&self) -> u64 {
        self.inner().len()
    }

    /// Pairs of quantile and milliseconds.
    pub(crate) fn shown(&self) -> Value {
        let times = self.inner();
        let pair = |q: f64| json!([q, times.value_at_quantile(q) as f64 / 1e3]);
        QUANTILES.into_iter().map(pair).collect()
    }
}

/// Microseconds since a run began.
pub(crate) fn since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}
