//! Retention: the leader proposes where the data begins, every replica lets go of what lies before
//! it, each at its own leisure and only whole segments.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio_util::sync::CancellationToken;
use trilog_model::{LogIndex, Offset, Timestamp};
use trilog_storage::env::Clock;
use trilog_storage::log::SegmentInfo;

use super::{Partition, Partitions};
use crate::view::{PartitionCommand, ViewKind};

/// How often a partition is looked at.
const INTERVAL: Duration = Duration::from_secs(10);
/// Partitions that are looked at at the same time: one that waits for somebody holds up few.
const AT_ONCE: usize = 8;
/// Segments of a view's own log that are kept for replicas that are a little behind; older ones
/// stand in the view's state.
const VIEW_SEGMENTS: usize = 2;

/// Looks after all partitions of a node until `stop`.
pub async fn keep(partitions: Partitions, clock: Arc<dyn Clock>, stop: CancellationToken) {
    let mut ticks = tokio::time::interval(INTERVAL);
    while stop.run_until_cancelled(ticks.tick()).await.is_some() {
        let looks = partitions.all().into_iter().map(|(_, partition)| {
            let clock = Arc::clone(&clock);
            async move { partition.retain(clock.now()).await }
        });
        let looks = futures::stream::iter(looks).buffer_unordered(AT_ONCE);
        looks.for_each(|()| std::future::ready(())).await;
    }
}

impl Partition {
    /// One look: proposes a later log start if this replica leads and segments are past their
    /// time, and purges what the replicated log start has left behind here. `wall` decides only
    /// whether an idle partition is due for an entry that moves its own time on.
    pub async fn retain(&self, wall: Timestamp) {
        match self.kind() {
            ViewKind::Records => {
                self.warn_of_transactions();
                self.propose_trim(wall).await;
                self.purge().await;
            }
            ViewKind::Groups | ViewKind::Transactions => self.purge_commands().await,
        }
    }

    /// A view's own log has no records, so nothing of it is data that others would have to copy:
    /// each replica lets go of what its view's state includes.
    async fn purge_commands(&self) {
        let log = self.inner.group.log();
        let segments = log.segments();
        let kept = segments.len().checked_sub(VIEW_SEGMENTS);
        let kept = kept.and_then(|first| segments.get(first));
        let Some(purged) = kept.and_then(|kept| kept.base_index.get().checked_sub(1)) else {
            return;
        };
        let known = log.state().log_start.map(|start| start.purged.index);
        if known < Some(LogIndex(purged))
            && let Err(error) = self.inner.group.trim(LogIndex(purged), Offset(0)).await
        {
            tracing::info!(group = %log.group(), %error, "a log start is moved later");
        }
    }

    async fn propose_trim(&self, wall: Timestamp) {
        let leadership = *self.leadership().borrow();
        if !leadership.ready {
            return;
        }
        let retention = self.inner.limits.borrow().retention;
        let now = self.inner.state.lock().time();
        let segments = self.inner.group.log().segments();
        let start = retention.plan(&segments, now);
        if retention.plan(&segments, wall) > start {
            self.keep_up(&PartitionCommand::tick(), leadership.term)
                .await;
        }
        let Some(start) = start else { return };
        let start = start.min(self.watch().borrow().offset);
        if start > self.log_start() {
            let command = PartitionCommand::trim(start);
            self.keep_up(&command, leadership.term).await;
        }
    }

    async fn purge(&self) {
        let log = self.inner.group.log();
        let start = self.log_start();
        let known = log.state().log_start;
        if start <= known.as_ref().map_or(Offset(0), |known| known.data_start) {
            return;
        }
        // What lies below X, here already or still being copied, needs no other X.
        let below_x = known.filter(|known| start <= known.next_offset);
        let below_x = below_x.map(|known| known.purged.index);
        let Some(purged) = below_x.or_else(|| last_before(&log.segments(), start)) else {
            return;
        };
        if let Err(error) = self.inner.group.trim(purged, start).await {
            tracing::info!(group = %log.group(), %error, "a log start is moved later");
        }
    }
}

/// The last entry of the segments that end at or before `start`.
fn last_before(segments: &[SegmentInfo], start: Offset) -> Option<LogIndex> {
    let kept = segments
        .iter()
        .find(|segment| segment.next_offset > start)?;
    kept.base_index.get().checked_sub(1).map(LogIndex)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_segments_before_the_start_are_let_go() {
        let segment = |base: u64| SegmentInfo {
            base_index: LogIndex(base / 10),
            base_offset: Offset(base),
            next_offset: Offset(base + 100),
            bytes: 1,
            last_time: Timestamp(0),
            sealed: true,
        };
        let segments = [segment(0), segment(100), segment(200)];
        let table = [
            (0, None),
            (99, None),
            (100, Some(9)),
            (150, Some(9)),
            (200, Some(19)),
        ];
        for (start, purged) in table {
            assert_eq!(
                last_before(&segments, Offset(start)),
                purged.map(LogIndex),
                "{start}"
            );
        }
        assert_eq!(last_before(&segments, Offset(300)), None);
    }
}
