//! A histogram of durations that is cheap enough for the hot path: an observation is two additions
//! to memory that hardly anybody else writes to. Whoever shows it takes a snapshot.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The upper bounds of all buckets but the last, which has none: from below one sync of a fast
/// device to far beyond what anybody waits.
pub const BOUNDS: [Duration; 18] = [
    Duration::from_micros(50),
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2_500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2_500),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
];
const BUCKETS: usize = BOUNDS.len() + 1;

/// Counts durations. Stands on cache lines of its own, away from what other threads write.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    nanos: AtomicU64,
}

/// What a histogram has counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// By [`BOUNDS`]; the last holds what is beyond all of them.
    pub buckets: [u64; BUCKETS],
    /// All of them together.
    pub sum: Duration,
}

impl Histogram {
    pub fn observe(&self, duration: Duration) {
        let bucket = BOUNDS.partition_point(|bound| *bound < duration);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.fetch_add(1, Ordering::Relaxed);
        }
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanos.fetch_add(nanos, Ordering::Relaxed);
    }

    pub fn snapshot(&self) -> Durations {
        let buckets = self.buckets.each_ref();
        Durations {
            buckets: buckets.map(|bucket| bucket.load(Ordering::Relaxed)),
            sum: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
        }
    }
}

impl Durations {
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// A counter on cache lines of its own.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn add_one(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_first_bucket_that_reaches_it() {
        let table = [
            (Duration::ZERO, 0),
            (Duration::from_micros(50), 0),
            (Duration::from_nanos(50_001), 1),
            (Duration::from_millis(1), 4),
            (Duration::from_secs(30), 17),
            (Duration::from_secs(31), 18),
        ];
        let histogram = Histogram::default();
        for (nth, (duration, bucket)) in (1..).zip(table) {
            let before = histogram.snapshot().buckets[bucket];
            histogram.observe(duration);
            let after = histogram.snapshot();
            assert_eq!(after.buckets[bucket], before + 1, "{duration:?}");
            assert_eq!(after.count(), nth);
        }
        let sum: Duration = table.iter().map(|(duration, _)| *duration).sum();
        assert_eq!(histogram.snapshot().sum, sum);
    }

    #[test]
    fn the_bounds_grow() {
        assert!(BOUNDS.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
