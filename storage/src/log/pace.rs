//! How background work keeps to a rate of bytes.

use std::time::Duration;

use tokio::time::Instant;

/// What is owed before it is worth a wait, and what may be saved up: timers are good to a
/// millisecond, and a small piece of work is over in much less.
const LUMP: Duration = Duration::from_millis(5);

/// Bytes that are worked through at a rate, by waits that are longer than a timer's grain.
#[derive(Debug)]
pub(crate) struct Pace {
    bytes_per_second: u64,
    /// When all that was done so far should have been done.
    free_from: Instant,
}

impl Pace {
    /// Zero sets no limit.
    pub(crate) fn new(bytes_per_second: u64) -> Self {
        Self {
            bytes_per_second,
            free_from: Instant::now(),
        }
    }

    /// So many more bytes are worked through; until when to wait before going on, if at all.
    pub(crate) fn spend(&mut self, bytes: u64) -> Option<Instant> {
        let nanos = u128::from(bytes) * 1_000_000_000;
        let nanos = nanos.checked_div(u128::from(self.bytes_per_second))?;
        let now = Instant::now();
        // What a wait took too long is made good by the next; a rest is not.
        let earliest = now.checked_sub(LUMP).unwrap_or(now);
        let took = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        self.free_from = self.free_from.max(earliest) + took;
        (self.free_from >= now + LUMP).then_some(self.free_from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn small_pieces_take_the_time_of_one_large_one() {
        let mut pace = Pace::new(1 << 20);
        tokio::time::advance(Duration::from_mins(1)).await;
        let (start, mut waits) = (Instant::now(), 0);
        for _ in 0..(1 << 20) / 64 {
            if let Some(until) = pace.spend(64) {
                tokio::time::sleep_until(until).await;
                waits += 1;
            }
        }
        let took = start.elapsed();
        let rest = Duration::from_secs(1).abs_diff(took);
        assert!(rest <= 3 * LUMP, "a second's work took {took:?}");
        assert!(waits <= 200, "{waits} waits");
    }

    #[tokio::test(start_paused = true)]
    async fn no_rate_is_no_limit() {
        assert_eq!(Pace::new(0).spend(1 << 40), None);
    }
}
