//! How far the groups that this node coordinates are behind: worked out every few seconds while
//! somebody looks, and never for nobody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trilog_model::GroupId;

use super::Coordinator;
use super::offsets::is_of;
use super::places::{Named, group_of};
use crate::partition::Start;
use crate::view::group::Groups;

/// How often lags are worked out.
const INTERVAL: Duration = Duration::from_secs(5);
/// For how long after somebody looked.
const INTEREST: Duration = Duration::from_mins(2);
/// Offsets of groups looked at in one pass at most.
const MAX_OFFSETS: usize = 200_000;

/// One group as of the last pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GroupLag {
    pub members: usize,
    pub generation: i32,
    /// Records between what is committed and the end, by topic; partitions whose leader did not
    /// say where they end are left out.
    pub topics: BTreeMap<String, u64>,
}

/// What the last pass found; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LagMeter {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    wanted: Mutex<Option<Instant>>,
    woken: Notify,
    groups: Mutex<BTreeMap<String, GroupLag>>,
}

/// A group while it is looked at.
type Found = (String, GroupLag, Vec<(Named, u64)>);

impl LagMeter {
    /// By group; empty if nobody has asked for a while, until the next pass. From now on there are
    /// passes again.
    #[must_use]
    pub fn read(&self) -> BTreeMap<String, GroupLag> {
        *self.shared.wanted.lock() = Some(Instant::now());
        self.shared.woken.notify_one();
        self.shared.groups.lock().clone()
    }

    /// Keeps it up to date until `stop`.
    pub async fn keep(self, coordinator: Coordinator, stop: CancellationToken) {
        let shared = &self.shared;
        while !stop.is_cancelled() {
            let wanted = *shared.wanted.lock();
            if wanted.is_some_and(|since| since.elapsed() < INTEREST) {
                let groups = coordinator.lags().await;
                *shared.groups.lock() = groups;
                stop.run_until_cancelled(tokio::time::sleep(INTERVAL)).await;
            } else {
                // What is old is worse than nothing.
                shared.groups.lock().clear();
                stop.run_until_cancelled(shared.woken.notified()).await;
            }
        }
    }
}

impl Coordinator {
    /// All groups that this node coordinates, and how far each is behind.
    pub async fn lags(&self) -> BTreeMap<String, GroupLag> {
        let found = self.look();
        let map = self.inner.cluster.map();
        let mut questions: BTreeMap<GroupId, usize> = BTreeMap::new();
        for (named, _) in found.iter().flat_map(|(_, _, offsets)| offsets) {
            if let Some(group) = group_of(&map, named) {
                questions.insert(group, 0);
            }
        }
        for (place, number) in questions.values_mut().enumerate() {
            *number = place;
        }
        let asked: Vec<_> = questions.keys().map(|g| (*g, Start::Earliest)).collect();
        let answers = self.inner.cluster.locate(&asked).await;
        let end_of = |named: &Named| {
            let place = questions.get(&group_of(&map, named)?)?;
            Some(answers.get(*place)?.as_ref()?.end.get())
        };
        let groups = found.into_iter().map(|(name, mut lag, offsets)| {
            for (named, offset) in offsets {
                if let Some(end) = end_of(&named) {
                    *lag.topics.entry(named.0).or_default() += end.saturating_sub(offset);
                }
            }
            (name, lag)
        });
        groups.collect()
    }

    /// What is committed, without asking anybody.
    fn look(&self) -> Vec<Found> {
        let mut all = Vec::new();
        let Ok(topic) = self.topic() else {
            return all;
        };
        let map = self.inner.cluster.map();
        let mut room = MAX_OFFSETS;
        for (index, _) in (0..).zip(&topic.partitions) {
            let Ok(handle) = self.enter_at(&topic, index) else {
                continue;
            };
            let lead = handle.lock();
            lead.partition.with_state(|state| {
                for (name, group) in state.groups().into_iter().flat_map(Groups::iter) {
                    let mut lag = GroupLag {
                        members: lead.group(name).map_or(0, super::Group::member_count),
                        generation: group.membership().generation,
                        topics: BTreeMap::new(),
                    };
                    if let Some(consumers) = group.consumers() {
                        lag.members = consumers.members.len();
                        lag.generation = consumers.epoch;
                    }
                    let offsets = group.offsets().iter().flat_map(|(topic, partitions)| {
                        let known = partitions.iter();
                        let known = known.filter(|(_, offset)| is_of(&map, topic, offset));
                        known.map(|(partition, offset)| {
                            let at = u64::try_from(offset.offset).unwrap_or(0);
                            ((topic.clone(), *partition), at)
                        })
                    });
                    let offsets: Vec<_> = offsets.take(room).collect();
                    room -= offsets.len();
                    all.push((name.clone(), lag, offsets));
                }
            });
        }
        all
    }
}
