//! What a node takes from its surroundings besides disk and network: wall-clock time and chance.
//!
//! Both are injected, so that a whole cluster can run in one process under a seed. Timers are
//! tokio's, which a simulation pauses and advances itself.

use std::fmt;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use trilog_model::Timestamp;

/// A source of wall-clock time.
pub trait Clock: Send + Sync + fmt::Debug + 'static {
    /// The time now. May jump in either direction: callers that need order keep a maximum.
    fn now(&self) -> Timestamp;
}

/// The operating system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "the one place that reads the system clock"
    )]
    fn now(&self) -> Timestamp {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
    }
}

/// A shared source of random numbers: from the operating system, or from a seed.
#[derive(Clone, Debug)]
pub struct Entropy(Arc<Mutex<SmallRng>>);

impl Entropy {
    #[must_use]
    pub fn from_os() -> Self {
        Self(Arc::new(Mutex::new(SmallRng::from_os_rng())))
    }

    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self(Arc::new(Mutex::new(SmallRng::seed_from_u64(seed))))
    }

    #[must_use]
    pub fn next_u64(&self) -> u64 {
        self.0.lock().next_u64()
    }

    /// A generator of its own for one concern, so that drawing here does not shift others.
    #[must_use]
    pub fn fork(&self) -> SmallRng {
        SmallRng::seed_from_u64(self.next_u64())
    }
}
