//! Which write-ahead log files still hold entries of one group that no durable segment has.

use trilog_model::LogIndex;

/// Entries `from..to` stand in WAL file `file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Run {
    from: LogIndex,
    to: LogIndex,
    file: u64,
}

/// A map from entries to WAL files, in order and without overlap; at most a few runs per file.
#[derive(Debug, Default)]
pub(crate) struct WalRuns(Vec<Run>);

impl WalRuns {
    /// Entries `from..to` are (now) in `file`; where they were before counts no more.
    pub(crate) fn record(&mut self, from: LogIndex, to: LogIndex, file: u64) {
        if from >= to {
            return;
        }
        let run = Run { from, to, file };
        if let Some(last) = self.0.last_mut()
            && last.to == from
        {
            if last.file == file {
                last.to = to;
            } else {
                self.0.push(run);
            }
            return;
        }
        let mut next = Vec::with_capacity(self.0.len() + 2);
        for &old in &self.0 {
            let before = Run {
                to: old.to.min(from),
                ..old
            };
            let after = Run {
                from: old.from.max(to),
                ..old
            };
            next.extend([before, after].into_iter().filter(|run| run.from < run.to));
        }
        let at = next.partition_point(|old| old.from < from);
        next.insert(at, run);
        self.0 = next;
    }

    /// Entries from `end` on are gone.
    pub(crate) fn cut(&mut self, end: LogIndex) {
        self.0.retain_mut(|run| {
            run.to = run.to.min(end);
            run.from < run.to
        });
    }

    /// Entries below `end` are durable in segments.
    pub(crate) fn release(&mut self, end: LogIndex) {
        self.0.retain_mut(|run| {
            run.from = run.from.max(end);
            run.from < run.to
        });
    }

    /// The oldest file still needed.
    pub(crate) fn oldest(&self) -> Option<u64> {
        self.0.iter().map(|run| run.file).min()
    }

    /// The end of the entries that stand in files older than `file`, and where they begin.
    pub(crate) fn older_than(&self, file: u64) -> Option<(LogIndex, LogIndex)> {
        let mut old = self.0.iter().filter(|run| run.file < file);
        let first = old.next()?;
        let last = old.next_back().unwrap_or(first);
        Some((first.from, last.to))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(runs: &mut WalRuns, from: u64, to: u64, file: u64) {
        runs.record(LogIndex(from), LogIndex(to), file);
    }

    #[test]
    fn entries_logged_again_leave_their_old_file() {
        let mut runs = WalRuns::default();
        record(&mut runs, 0, 10, 1);
        record(&mut runs, 10, 20, 1);
        record(&mut runs, 20, 30, 2);
        assert_eq!(runs.oldest(), Some(1));
        assert_eq!(runs.older_than(2), Some((LogIndex(0), LogIndex(20))));
        record(&mut runs, 5, 20, 3);
        runs.release(LogIndex(5));
        assert_eq!(runs.oldest(), Some(2));
        assert_eq!(runs.older_than(3), Some((LogIndex(20), LogIndex(30))));
        assert_eq!(runs.older_than(2), None);
    }

    #[test]
    fn cuts_and_releases_forget_files() {
        let mut runs = WalRuns::default();
        record(&mut runs, 0, 10, 1);
        record(&mut runs, 10, 20, 2);
        runs.cut(LogIndex(15));
        runs.release(LogIndex(10));
        assert_eq!(runs.older_than(9), Some((LogIndex(10), LogIndex(15))));
        runs.cut(LogIndex(0));
        assert_eq!(runs.oldest(), None);
    }
}
