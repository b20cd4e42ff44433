//! Followers that are far behind: their entries come from disk, travel apart from everyone
//! else's, and no faster than a node can spare.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// How fast a node sends what followers catch up with, all groups together.
#[derive(Debug)]
pub(crate) struct Throttle {
    bytes_per_second: u64,
    /// When what was let through so far will have been sent.
    free_from: Mutex<Instant>,
}

impl Throttle {
    /// Zero sets no limit.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            free_from: Mutex::new(Instant::now()),
        }
    }

    /// Waits until so many more bytes may be sent.
    ///
    /// # Cancel safety
    /// Dropped, they count as sent all the same.
    pub(crate) async fn pass(&self, bytes: u64) {
        let turn = {
            let mut free_from = self.free_from.lock();
            let turn = (*free_from).max(Instant::now());
            *free_from = turn + self.time_for(bytes);
            turn
        };
        tokio::time::sleep_until(turn).await;
    }

    fn time_for(&self, bytes: u64) -> Duration {
        let nanos = u128::from(bytes) * 1_000_000_000;
        let nanos = nanos.checked_div(u128::from(self.bytes_per_second));
        Duration::from_nanos(nanos.and_then(|n| u64::try_from(n).ok()).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn bytes_pass_at_the_rate_whoever_sends_them() {
        let throttle = Throttle::new(1_000_000);
        let start = Instant::now();
        let send = |bytes| throttle.pass(bytes);
        tokio::join!(send(500_000), send(500_000), send(1_000_000), send(1));
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        tokio::time::advance(Duration::from_mins(1)).await;
        let idle = Instant::now();
        send(1_000_000).await;
        assert_eq!(idle.elapsed(), Duration::ZERO, "the first need not wait");
    }

    #[tokio::test(start_paused = true)]
    async fn no_rate_is_no_limit() {
        let throttle = Throttle::new(0);
        let start = Instant::now();
        throttle.pass(1 << 40).await;
        throttle.pass(1 << 40).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
