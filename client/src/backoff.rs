//! Pauses between attempts, spread by chance so that many clients do not return as one.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::config::BackoffConfig;

/// The client's source of chance, shared by its parts.
#[derive(Clone, Debug)]
pub(crate) struct Chance(Arc<Mutex<SmallRng>>);

impl Chance {
    pub(crate) fn new(seed: Option<u64>) -> Self {
        let rng = seed.map_or_else(SmallRng::from_os_rng, SmallRng::seed_from_u64);
        Self(Arc::new(Mutex::new(rng)))
    }

    /// A number below `end`, which must not be zero.
    pub(crate) fn below(&self, end: usize) -> usize {
        self.with(|rng| rng.random_range(0..end))
    }

    fn with<R>(&self, draw: impl FnOnce(&mut SmallRng) -> R) -> R {
        draw(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The pauses of one series of attempts.
#[derive(Debug)]
pub(crate) struct Backoff {
    config: BackoffConfig,
    chance: Chance,
    next: Duration,
    /// A hint has been followed without a pause since the last success.
    hinted: bool,
}

impl Backoff {
    pub(crate) fn new(config: BackoffConfig, chance: Chance) -> Self {
        Self {
            config,
            chance,
            next: config.min,
            hinted: false,
        }
    }

    /// Starts over after a success.
    pub(crate) fn reset(&mut self) {
        self.next = self.config.min;
        self.hinted = false;
    }

    /// The next pause: between half and the whole of a doubling interval.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let whole = self.next.min(self.config.max);
        self.next = whole.saturating_mul(2);
        let half = whole / 2;
        half + self
            .chance
            .with(|rng| rng.random_range(Duration::ZERO..=half))
    }

    pub(crate) async fn pause(&mut self) {
        tokio::time::sleep(self.next_delay()).await;
    }

    /// Pauses, unless somebody has just said where to go. Only one such word is believed on the
    /// spot: two nodes that point at each other would keep the client running in between.
    pub(crate) async fn pause_unless(&mut self, hinted: bool) {
        if hinted && !self.hinted {
            self.hinted = true;
        } else {
            self.pause().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: BackoffConfig = BackoffConfig {
        min: Duration::from_millis(10),
        max: Duration::from_millis(100),
    };

    #[test]
    fn pauses_double_up_to_the_most_and_start_over() {
        let mut backoff = Backoff::new(CONFIG, Chance::new(Some(1)));
        for whole in [10, 20, 40, 80, 100, 100] {
            let delay = backoff.next_delay();
            let whole = Duration::from_millis(whole);
            assert!(delay >= whole / 2 && delay <= whole, "{delay:?} {whole:?}");
        }
        backoff.reset();
        assert!(backoff.next_delay() <= CONFIG.min);
    }

    #[test]
    fn the_same_seed_gives_the_same_pauses() {
        let series = |seed| {
            let mut backoff = Backoff::new(CONFIG, Chance::new(Some(seed)));
            (0..8).map(|_| backoff.next_delay()).collect::<Vec<_>>()
        };
        assert_eq!(series(7), series(7));
        assert_ne!(series(7), series(8));
    }
}
