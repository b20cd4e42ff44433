//! Wall-clock time that follows the simulation's own.

use std::sync::atomic::{AtomicI64, Ordering};

use tokio::time::Instant;
use trilog_model::Timestamp;
use trilog_storage::env::Clock;

/// Where simulated time starts: an arbitrary day of 2026.
const EPOCH_NANOS: u64 = 1_780_000_000_000_000_000;

/// A node's clock: simulated time plus an offset that may jump.
#[derive(Debug)]
pub struct SimClock {
    start: Instant,
    offset_nanos: AtomicI64,
}

impl Default for SimClock {
    fn default() -> Self {
        Self {
            start: Instant::now(),
            offset_nanos: AtomicI64::new(0),
        }
    }
}

impl SimClock {
    /// Sets how far this clock is from the true time.
    pub fn set_offset_nanos(&self, nanos: i64) {
        self.offset_nanos.store(nanos, Ordering::Relaxed);
    }
}

impl Clock for SimClock {
    fn now(&self) -> Timestamp {
        let elapsed = u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let now = EPOCH_NANOS.saturating_add(elapsed);
        Timestamp(now.saturating_add_signed(self.offset_nanos.load(Ordering::Relaxed)))
    }
}
