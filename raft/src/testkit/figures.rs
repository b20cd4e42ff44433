//! How many seeds were simulated, and how fast: what `make sim` prints and `docs/proof.tsv` keeps.
//!
//! A test that goes through its seeds leaves a line in the file that `TRILOG_FIGURES` names, if it
//! names one; tabs between:
//!
//! ```text
//! test    first seed    seeds done    ms simulated    ms it took    "valid", or what came between
//! ```

use std::cell::Cell;
use std::fs::OpenOptions;
use std::future::Future;
use std::io::{self, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;

thread_local! {
    /// Simulated time of the simulations that this thread has run to their end.
    static SIMULATED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Runs a simulation to its end on one thread, with time that jumps ahead when all wait.
pub fn block_on<F: Future>(simulation: F) -> F::Output {
    trilog_storage::io::sim::block_on(async {
        let begun = tokio::time::Instant::now();
        let output = simulation.await;
        SIMULATED.set(SIMULATED.get() + begun.elapsed());
        output
    })
}

/// The seeds of a test, one after the other. What they took is told when all are done, or the
/// test ends.
#[derive(Debug)]
pub struct Seeds {
    range: Range<u64>,
    next: u64,
    over: bool,
    /// Where to tell it.
    file: Option<PathBuf>,
    simulated_before: Duration,
    begun: std::time::Instant,
}

impl Seeds {
    pub(super) fn new(range: Range<u64>) -> Self {
        let mut seeds = Self::untold(range);
        seeds.file = std::env::var_os("TRILOG_FIGURES").map(PathBuf::from);
        seeds
    }

    fn untold(range: Range<u64>) -> Self {
        Self {
            next: range.start,
            range,
            over: false,
            file: None,
            simulated_before: SIMULATED.get(),
            begun: real_now(),
        }
    }

    fn tell(&self, file: &Path) -> io::Result<()> {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("a test");
        // The seed it ended in is not done.
        let begun = self.next - self.range.start;
        let done = begun.saturating_sub(u64::from(!self.over));
        let verdict = if self.over {
            "valid".to_owned()
        } else if std::thread::panicking() {
            format!("FAILED at seed {}", self.next.saturating_sub(1))
        } else {
            format!("ended at seed {}", self.next.saturating_sub(1))
        };
        let simulated = SIMULATED
            .get()
            .saturating_sub(self.simulated_before)
            .as_millis();
        let took = (real_now() - self.begun).as_millis();
        let first = self.range.start;
        let line = format!("{name}\t{first}\t{done}\t{simulated}\t{took}\t{verdict}\n");
        // Tests of one program write at the same time: a line goes in one piece.
        let mut out = OpenOptions::new().append(true).create(true).open(file)?;
        out.write_all(line.as_bytes())
    }
}

impl Iterator for Seeds {
    type Item = u64;

    fn next(&mut self) -> Option<u64> {
        if self.next == self.range.end.max(self.range.start) {
            self.over = true;
            return None;
        }
        self.next += 1;
        Some(self.next - 1)
    }
}

impl Drop for Seeds {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // Not every check that fails knows which simulation it is in.
            eprintln!("it was seed {}", self.next.saturating_sub(1));
        }
        let Some(file) = self.file.take() else {
            return;
        };
        if let Err(error) = self.tell(&file) {
            // A test that fails says so itself, and must not fail twice.
            assert!(std::thread::panicking(), "no figures: {error}");
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "how long a simulation really takes is what is measured"
)]
fn real_now() -> std::time::Instant {
    std::time::Instant::now()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_that_was_simulated_is_counted_for_the_thread_that_ran_it() {
        let before = SIMULATED.get();
        for seed in Seeds::untold(3..5) {
            block_on(async { tokio::time::sleep(Duration::from_secs(seed)).await });
        }
        assert_eq!(SIMULATED.get(), before + Duration::from_secs(7));
    }

    /// The line of a run through `range` that ends, or breaks off at `last`.
    fn line(range: Range<u64>, last: Option<u64>) -> String {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("figures.tsv");
        let mut seeds = Seeds::untold(range);
        for seed in seeds.by_ref() {
            if Some(seed) == last {
                break;
            }
        }
        seeds.tell(&file).unwrap();
        std::fs::read_to_string(file).unwrap()
    }

    #[test]
    fn a_line_says_how_many_seeds_were_done_and_what_came_between() {
        let fields = |line: String| {
            let fields = line.trim_end().split('\t').map(str::to_owned);
            fields.collect::<Vec<_>>()
        };
        let whole = fields(line(5..9, None));
        assert_eq!(whole.len(), 6, "{whole:?}");
        assert_eq!(whole[1..3], ["5", "4"]);
        assert_eq!(whole[5], "valid");
        let broken = fields(line(0..9, Some(2)));
        assert_eq!(broken[1..3], ["0", "2"]);
        assert_eq!(broken[5], "ended at seed 2");
        assert_eq!(fields(line(0..0, None))[2], "0");
    }
}
