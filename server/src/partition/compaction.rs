//! Compaction by key: when a replica cleans its log, and what all of them agree on.
//!
//! Each replica cleans its own log by itself; what is left may differ for a while, and copies
//! between replicas may mix it. That is harmless for records, for each copy has the newest of
//! every key, but not for markers, of deletions and of transactions: gone in one copy, while
//! another still has what they deleted or aborted. So the leader asks all replicas how far they are
//! clean, and what all of them are is a command in the log. A marker goes only where that was said,
//! and `delete.retention.ms` of partition time ago.
//!
//! What became of a transaction is known where none is open any more: nothing at or behind the last
//! stable offset is touched.
//!
//! X has to come first: only entries at or below it are rewritten. It moves to the end of what
//! could be cleaned, wherever every voter holds all that.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use metrics::counter;
use tokio_util::sync::CancellationToken;
use trilog_model::{AbortedSet, LogIndex, Offset, Timestamp};
use trilog_raft::TrimError;
use trilog_storage::env::Clock;
use trilog_storage::log::{CLEAN_RULES, CleanError, CleanPlan, CleanReport, Cleanable};

use super::{Partition, Partitions};
use crate::view::{PartitionCommand, PartitionState, ViewKind};

/// How often a partition is looked at.
const INTERVAL: Duration = Duration::from_secs(5);
/// Partitions that are looked at at the same time: one that waits for somebody, or for its turn to
/// be cleaned, holds up few.
const AT_ONCE: usize = 8;

/// What a compacted topic asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Compaction {
    /// For how long at least a record is spared.
    pub min_lag: Duration,
    /// After how long at most one is looked at, however little else is new.
    pub max_lag: Duration,
    /// For how long deletion markers stay once they deleted everything.
    pub keep_markers: Duration,
    /// The part of the log that has to be new.
    pub dirty_ratio: f64,
    /// Whether every build knows what it means that all replicas are clean by these rules.
    pub agrees: bool,
}

/// What the last pass here left of markers.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Swept {
    /// Those below it were removed.
    before: Offset,
    /// Some are left; before the first pass nobody knows.
    none_left: bool,
}

/// Looks after all partitions of a node until `stop`.
pub async fn keep(partitions: Partitions, clock: Arc<dyn Clock>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(INTERVAL);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let looks = partitions.all().into_iter().map(|(_, partition)| {
            let clock = Arc::clone(&clock);
            async move { partition.compact(clock.now()).await }
        });
        let looks = futures::stream::iter(looks).buffer_unordered(AT_ONCE);
        let looks = looks.for_each(|()| std::future::ready(()));
        if stop.run_until_cancelled(looks).await.is_none() {
            return;
        }
    }
}

impl Swept {
    fn by(report: &CleanReport) -> Self {
        Self {
            before: report.markers_before,
            none_left: report.markers == 0 && !report.partial,
        }
    }

    /// Whether a pass would find markers that may go below `before`.
    fn leaves_some(self, before: Offset) -> bool {
        before > self.before && !self.none_left
    }
}

impl Compaction {
    /// Whether what is there is worth a pass, where all replicas are clean up to `agreed`: one that
    /// is not any more, for something came in from elsewhere, makes up for it.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a ratio of sizes: 2^53 bytes are more than a disk has"
    )]
    fn is_due(&self, found: &Cleanable, agreed: Offset, now: Timestamp) -> bool {
        let Some(since) = found.dirty_since else {
            return false;
        };
        let all = found.clean_bytes + found.dirty_bytes;
        found.clean < agreed
            || found.dirty_bytes as f64 >= all as f64 * self.dirty_ratio
            || past(since, self.max_lag) <= now
    }

    /// What may be cleaned at `now` of a partition in this state, of what is committed.
    fn plan_of(&self, state: &PartitionState, committed: Offset, now: Timestamp) -> CleanPlan {
        let markers = state.markers_before(CLEAN_RULES, self.keep_markers, now);
        self.plan(state.stable_offset().min(committed), now, markers)
    }

    /// What may be cleaned at `now`, below `end`.
    fn plan(&self, end: Offset, now: Timestamp, markers_before: Offset) -> CleanPlan {
        let spared = u64::try_from(self.min_lag.as_nanos()).unwrap_or(u64::MAX);
        CleanPlan {
            end,
            appended_by: Timestamp(now.nanos().saturating_sub(spared)),
            markers_before,
        }
    }
}

fn past(time: Timestamp, by: Duration) -> Timestamp {
    let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
    Timestamp(time.nanos().saturating_add(by))
}

impl Partition {
    /// One look: moves X, cleans what is due, and, as the leader, puts down how far all are clean.
    /// `wall` decides only whether an idle partition is due for an entry that moves its time on.
    pub async fn compact(&self, wall: Timestamp) {
        let compaction = self.inner.limits.borrow().compaction;
        let Some(compaction) = compaction.filter(|_| self.kind() == ViewKind::Records) else {
            return;
        };
        let now = self.with_state(PartitionState::time);
        let leadership = *self.leadership().borrow();
        if leadership.ready && self.is_due(compaction, wall) && !self.is_due(compaction, now) {
            self.keep_up(&PartitionCommand::tick(), leadership.term)
                .await;
            return;
        }
        let plan = self.plan(compaction, now);
        let log = self.inner.group.log();
        self.move_x(log.cleanable(&plan).last).await;
        if self.is_due(compaction, now) {
            // As of one moment: no transaction is open below the end, and what was aborted is known.
            let committed = self.watch().borrow().offset;
            let (plan, aborted) = self.with_state(|state| {
                let plan = compaction.plan_of(state, committed, now);
                let aborted: AbortedSet = state.isolation().all_aborted().collect();
                (plan, aborted)
            });
            let outcome = log.clean(plan, aborted).await;
            self.note_pass(outcome);
        }
        if compaction.agrees {
            self.agree_on_clean().await;
        }
    }

    fn plan(&self, compaction: Compaction, now: Timestamp) -> CleanPlan {
        let committed = self.watch().borrow().offset;
        self.with_state(|state| compaction.plan_of(state, committed, now))
    }

    fn is_due(&self, compaction: Compaction, now: Timestamp) -> bool {
        let plan = self.plan(compaction, now);
        let found = self.inner.group.log().cleanable(&plan);
        let markers = self.inner.swept.lock().leaves_some(plan.markers_before);
        let agreed = self.with_state(|state| state.clean(CLEAN_RULES));
        compaction.is_due(&found, agreed, now) || (markers && found.clean_bytes > 0)
    }

    async fn move_x(&self, last: Option<LogIndex>) {
        let log = self.inner.group.log();
        let known = log.state().log_start.map(|start| start.purged.index);
        let Some(last) = last.filter(|last| known < Some(*last)) else {
            return;
        };
        match self.inner.group.trim(last, self.log_start()).await {
            Ok(()) => {}
            // As soon as every voter is level and whole.
            Err(error @ TrimError::NotHeld { .. }) => {
                tracing::debug!(group = %log.group(), %error, "a log is compacted later");
            }
            Err(error) => tracing::info!(group = %log.group(), %error, "a log is compacted later"),
        }
    }

    fn note_pass(&self, outcome: Result<CleanReport, CleanError>) {
        let group = self.inner.group.id();
        match outcome {
            Ok(report) => {
                *self.inner.swept.lock() = Swept::by(&report);
                let freed = report.bytes_before.saturating_sub(report.bytes_after);
                counter!("trilog_compaction_passes_total").increment(1);
                counter!("trilog_compaction_freed_bytes_total").increment(freed);
                counter!("trilog_compaction_removed_records_total").increment(report.removed);
                tracing::debug!(%group, ?report, "a log was compacted");
            }
            // All of these are tried again at the next look.
            Err(error @ CleanError::Short) => {
                tracing::debug!(%group, %error, "a log is compacted later");
            }
            Err(error) => {
                counter!("trilog_compaction_failures_total").increment(1);
                tracing::info!(%group, %error, "a log was not compacted to its end");
            }
        }
    }

    /// As the leader: puts down how far every replica is clean, if that is further than known.
    async fn agree_on_clean(&self) {
        let leadership = *self.leadership().borrow();
        let known = self.with_state(|state| state.clean(CLEAN_RULES));
        let group = &self.inner.group;
        if !leadership.ready || group.log().cleanness().clean <= known {
            return;
        }
        let Some(clean) = group.clean_everywhere().await else {
            return;
        };
        if clean > known {
            let command = PartitionCommand::clean(clean, CLEAN_RULES);
            self.keep_up(&command, leadership.term).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_due_by_what_is_new_or_by_how_long_it_is_there() {
        let compaction = Compaction {
            min_lag: Duration::ZERO,
            max_lag: Duration::from_nanos(100),
            keep_markers: Duration::ZERO,
            dirty_ratio: 0.5,
            agrees: true,
        };
        let found = |clean_bytes, dirty_bytes| Cleanable {
            clean: Offset(clean_bytes),
            clean_bytes,
            dirty_bytes,
            dirty_since: (dirty_bytes > 0).then_some(Timestamp(1_000)),
            last: None,
        };
        for (clean, dirty, now, due) in [
            (0, 0, 5_000, false),
            (100, 0, 5_000, false),
            (100, 99, 1_000, false),
            (100, 100, 1_000, true),
            (100, 1, 1_099, false),
            (100, 1, 1_100, true),
            (0, 1, 1_000, true),
        ] {
            let judged = compaction.is_due(&found(clean, dirty), Offset(0), Timestamp(now));
            assert_eq!(judged, due, "{clean} clean, {dirty} dirty at {now}");
        }
    }

    #[test]
    fn a_log_that_is_less_clean_than_all_were_is_due_until_it_has_lost_its_markers() {
        let compaction = Compaction {
            min_lag: Duration::ZERO,
            max_lag: Duration::MAX,
            keep_markers: Duration::ZERO,
            dirty_ratio: 0.5,
            agrees: true,
        };
        let agreed = Offset(1_000);
        let mut found = Cleanable {
            clean: Offset(0),
            clean_bytes: 100,
            dirty_bytes: 1,
            dirty_since: Some(Timestamp(1)),
            last: None,
        };
        assert!(compaction.is_due(&found, agreed, Timestamp(2)));
        // A pass over what came in from elsewhere leaves the markers alone: it knew nothing of it.
        let mut report = CleanReport {
            markers: 3,
            markers_before: Offset(0),
            ..CleanReport::default()
        };
        found.clean = agreed;
        assert!(!compaction.is_due(&found, agreed, Timestamp(2)));
        assert!(
            Swept::by(&report).leaves_some(agreed),
            "the next takes them"
        );
        report.markers_before = agreed;
        assert!(
            !Swept::by(&report).leaves_some(agreed),
            "they were too young"
        );
        assert!(Swept::by(&report).leaves_some(Offset(1_001)));
        report.markers = 0;
        assert!(!Swept::by(&report).leaves_some(Offset(1_001)));
        report.partial = true;
        assert!(Swept::by(&report).leaves_some(Offset(1_001)));
    }
}
