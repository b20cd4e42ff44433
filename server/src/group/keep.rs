//! What happens to groups without anybody asking: deadlines, offsets past their time, and
//! leaderships that come and go.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trilog_model::Timestamp;
use trilog_raft::controller::{ClusterMap, Topic};

use super::lead::{Lead, Sent};
use super::offsets::is_of;
use super::{Coordinator, GroupError, GroupState};
use crate::view::group::command::{DeleteOffsets, ExpireOffsets, PartitionName};
use crate::view::group::{Group, GroupAction, Groups};

/// How long a leadership may go unnoticed, if nothing else is due.
const INTERVAL: Duration = Duration::from_millis(500);
/// How often offsets are looked through for some that are past their time.
const EXPIRY_INTERVAL: Duration = Duration::from_mins(5);
/// Commands of one look at most; the next one goes on.
const EXPIRY_BATCH: usize = 500;
/// Offsets of topics that are gone, in one command.
const ORPHANS: usize = 1_000;

impl Coordinator {
    /// Runs until `stop`.
    pub async fn keep(self, stop: CancellationToken) {
        let mut swept = Instant::now();
        while !stop.is_cancelled() {
            let now = Instant::now();
            let next = self.pass(now);
            if now - swept >= EXPIRY_INTERVAL {
                swept = now;
                self.sweep().await;
            }
            let latest = now + INTERVAL;
            let next = next.map_or(latest, |next| next.min(latest));
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = self.inner.sooner.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
        // Whoever still waits is told to look for the next coordinator.
        self.inner.leads.lock().clear();
    }

    /// Does what is due, takes over what is led since, and lets go of what is not; when next.
    fn pass(&self, now: Instant) -> Option<Instant> {
        let topic = self.topic().ok()?;
        let mut next = None;
        for (index, _) in (0..).zip(&topic.partitions) {
            let Ok(handle) = self.enter_at(&topic, index) else {
                self.let_go(&topic, index);
                continue;
            };
            handle.lock().forget_ended();
            let due = handle.lock().due(now);
            for name in due {
                // Its time is up, and every change looks at that.
                self.change(handle.lock(), &name, |_, _| ());
                self.expire_consumers(&handle, &name);
            }
            let due = handle.lock().next_due();
            next = [next, due].into_iter().flatten().min();
        }
        next
    }

    /// Forgets a partition that this node does not lead any more.
    fn let_go(&self, topic: &Topic, index: u32) {
        // One whose last outcome is unknown is kept, so that it is known as such for its term.
        if self.inner.cluster.led_here(topic, index).is_err() {
            self.inner.leads.lock().remove(&index);
        }
    }

    /// Has what is past its time, or of topics that are gone, removed.
    async fn sweep(&self) {
        let Ok(topic) = self.topic() else {
            return;
        };
        // By an old map a topic that is new would seem to be gone.
        if !self.inner.cluster.is_current().await {
            return;
        }
        let map = self.inner.cluster.map();
        let retention = self.inner.settings.offset_retention.as_nanos();
        let retention = u64::try_from(retention).unwrap_or(u64::MAX);
        let before = Timestamp(self.inner.clock.now().nanos().saturating_sub(retention));
        for (index, _) in (0..).zip(&topic.partitions) {
            let Ok(handle) = self.enter_at(&topic, index) else {
                continue;
            };
            let sent = sweep_one(&handle.lock(), before, &map);
            for sent in sent {
                // What is not taken now is found again by the next sweep.
                drop(sent.committed().await);
            }
        }
    }

    /// How many groups this node coordinates, by their state.
    pub fn census(&self) -> Result<Vec<(GroupState, usize)>, GroupError> {
        let mut counts = std::collections::BTreeMap::new();
        for listing in self.list()? {
            *counts.entry(listing.state).or_insert(0) += 1;
        }
        Ok(counts.into_iter().collect())
    }
}

/// What of a partition is over, on its way out.
fn sweep_one(lead: &Lead, before: Timestamp, map: &ClusterMap) -> Vec<Sent> {
    let actions: Vec<GroupAction> = lead.partition.with_state(|state| {
        let groups = state.groups().into_iter().flat_map(Groups::iter);
        let actions = groups.flat_map(|(name, group)| {
            // Somebody is about to join, or has.
            let unused = lead.group(name).is_none() && !lead.assigns(name);
            // Of a group that has neither members nor offsets nothing is worth keeping.
            let before = if group.is_void() {
                before.max(group.since())
            } else {
                before
            };
            let expired = group.has_expired(before) && unused;
            let expire = expired.then(|| {
                GroupAction::ExpireOffsets(ExpireOffsets {
                    group: name.clone(),
                    before: before.nanos(),
                })
            });
            expire.into_iter().chain(orphans(name, group, map))
        });
        actions.take(EXPIRY_BATCH).collect()
    });
    actions
        .into_iter()
        .map(|action| lead.send(action))
        .collect()
}

/// Deletes the offsets of topics that are gone, so many at once that they fit a command.
fn orphans(name: &str, group: &Group, map: &ClusterMap) -> Vec<GroupAction> {
    let offsets = group.offsets().iter();
    let each = offsets.flat_map(|(topic, partitions)| {
        let gone = partitions
            .iter()
            .filter(|(_, offset)| map.topic_named(topic).is_none() || !is_of(map, topic, offset));
        gone.map(|(partition, offset)| PartitionName {
            topic: topic.clone(),
            partition: *partition,
            topic_id: offset.topic_id.clone(),
        })
    });
    let partitions: Vec<PartitionName> = each.collect();
    let delete = |partitions: &[PartitionName]| {
        GroupAction::DeleteOffsets(DeleteOffsets {
            group: name.to_owned(),
            partitions: partitions.to_vec(),
        })
    };
    partitions.chunks(ORPHANS).map(delete).collect()
}
