//! What a node takes from its surroundings besides disk and network: wall-clock time and chance.
//!
//! Both are injected, so that a whole cluster can run in one process under a seed. Timers are
//! tokio's, which a simulation pauses and advances itself.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use tokio::time::Instant;
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

/// A wall clock that is not led astray by a jump of the one below it: where that differs suddenly
/// from the time that has passed, this one goes on by the time that has passed, until it is told
/// which of the two is right.
#[derive(Debug)]
pub struct SteadyClock {
    inner: Arc<dyn Clock>,
    allowed_nanos: u64,
    state: Mutex<Steady>,
}

#[derive(Debug)]
struct Steady {
    /// What it said last, and when.
    wall: Timestamp,
    at: Instant,
    jumped: bool,
}

impl SteadyClock {
    /// Follows `inner` as long as each step is within `allowed` of the time that has passed.
    #[must_use]
    pub fn new(inner: Arc<dyn Clock>, allowed: Duration) -> Self {
        let state = Mutex::new(Steady {
            wall: inner.now(),
            at: Instant::now(),
            jumped: false,
        });
        Self {
            inner,
            allowed_nanos: nanos(allowed),
            state,
        }
    }

    /// Whether the clock below has jumped, and this one does not follow it.
    #[must_use]
    pub fn has_jumped(&self) -> bool {
        // Asked by those who would notice nothing unless somebody looks.
        self.now();
        self.state.lock().jumped
    }

    /// The clock below is right, however it came to be: follows it from here on.
    pub fn adopt(&self) {
        let wall = self.inner.now();
        *self.state.lock() = Steady {
            wall,
            at: Instant::now(),
            jumped: false,
        };
    }
}

impl Clock for SteadyClock {
    fn now(&self) -> Timestamp {
        let told = self.inner.now();
        let mut state = self.state.lock();
        let at = Instant::now();
        let passed = nanos(at.saturating_duration_since(state.at));
        let expected = Timestamp(state.wall.nanos().saturating_add(passed));
        state.jumped = told.nanos().abs_diff(expected.nanos()) > self.allowed_nanos;
        state.wall = if state.jumped { expected } else { told };
        state.at = at;
        state.wall
    }
}

fn nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    #[derive(Debug, Default)]
    struct Told(AtomicU64);

    impl Clock for Told {
        fn now(&self) -> Timestamp {
            Timestamp(self.0.load(Ordering::Relaxed))
        }
    }

    const SECOND: u64 = 1_000_000_000;

    #[tokio::test(start_paused = true)]
    async fn a_jump_is_not_followed_until_it_is_adopted() {
        let told = Arc::new(Told::default());
        let set = |seconds: u64| told.0.store(seconds * SECOND, Ordering::Relaxed);
        set(100);
        let steady = SteadyClock::new(told.clone(), Duration::from_secs(1));
        tokio::time::advance(Duration::from_secs(10)).await;
        set(110);
        assert_eq!(steady.now(), Timestamp(110 * SECOND));
        for jumped in [5_000, 3] {
            set(jumped);
            assert_eq!(steady.now(), Timestamp(110 * SECOND));
            assert!(steady.has_jumped());
        }
        tokio::time::advance(Duration::from_secs(2)).await;
        assert_eq!(steady.now(), Timestamp(112 * SECOND));
        set(112);
        assert_eq!(steady.now(), Timestamp(112 * SECOND));
        assert!(!steady.has_jumped());
        set(7_000);
        steady.adopt();
        assert_eq!(steady.now(), Timestamp(7_000 * SECOND));
        assert!(!steady.has_jumped());
    }
}
