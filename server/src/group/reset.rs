//! Putting a group without members somewhere else, and taking its offsets away.

use std::collections::BTreeMap;

use trilog_model::{GroupId, Offset};
use trilog_raft::controller::ClusterMap;

use super::places::{Named, group_of};
use super::types::{
    CommitRequest, Committed, MemberRef, OffsetCommit, Reset, ResetError, ResetRequest, ResetTo,
};
use super::{Coordinator, GroupError, GroupState};
use crate::partition::Start;

impl Coordinator {
    /// Sets a group's offsets, all of them or none; or only says to what they would be set. The
    /// group need not have been there, but may have no members.
    pub async fn reset(&self, request: ResetRequest) -> Result<Vec<Reset>, ResetError> {
        super::check_id(&request.group)?;
        let before = if self.is_unused().await {
            BTreeMap::new()
        } else {
            self.check_inactive(&request.group)?;
            self.committed_offsets(&request.group).await?
        };
        for (topic, _) in &request.topics {
            // Made a moment ago, through another node.
            drop(self.inner.cluster.current_topic(topic).await);
        }
        let map = self.inner.cluster.map();
        let meant = meant(&map, &request.topics, &before)?;
        let resets = self.resolve(&map, meant, request.to, &before).await?;
        if request.execute {
            self.set(&request.group, &resets).await?;
        }
        Ok(resets)
    }

    fn check_inactive(&self, group: &str) -> Result<(), ResetError> {
        let described = self.readers(group).map(|(described, _)| described);
        match described {
            Ok(described) if described.state == GroupState::Empty => Ok(()),
            Ok(described) => Err(ResetError::Active(described.members)),
            Err(GroupError::UnknownGroup) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn resolve(
        &self,
        map: &ClusterMap,
        meant: Vec<Named>,
        to: ResetTo,
        before: &BTreeMap<Named, Committed>,
    ) -> Result<Vec<Reset>, ResetError> {
        let start = match to {
            ResetTo::Start(start) => start,
            ResetTo::Last(_) | ResetTo::Shift(_) | ResetTo::Current => Start::Latest,
        };
        let groups = meant.iter().map(|named| group_of(map, named));
        let questions: Option<Vec<(GroupId, Start)>> =
            groups.map(|group| Some((group?, start))).collect();
        let answers = self
            .inner
            .cluster
            .locate(&questions.unwrap_or_default())
            .await;
        let mut answers = answers.into_iter();
        let mut resets = Vec::with_capacity(meant.len());
        for (topic, partition) in meant {
            let Some(located) = answers.next().flatten() else {
                return Err(ResetError::Unlocated { topic, partition });
            };
            let (log_start, end) = (located.log_start, located.end);
            let named = (topic, partition);
            let before = before.get(&named).map(|committed| committed.offset);
            let (topic, partition) = named;
            let wanted = match (to, before) {
                (ResetTo::Start(_), _) => located.offset.get(),
                (ResetTo::Last(count), _) => end.get().saturating_sub(count),
                (ResetTo::Shift(_) | ResetTo::Current, None) => {
                    return Err(ResetError::NoOffset { topic, partition });
                }
                (ResetTo::Shift(by), Some(before)) => shifted(before, by),
                (ResetTo::Current, Some(before)) => shifted(before, 0),
            };
            resets.push(Reset {
                topic,
                partition,
                before,
                after: Offset(wanted.min(end.get()).max(log_start.get())),
                bounds: (log_start, end),
            });
        }
        Ok(resets)
    }

    async fn set(&self, group: &str, resets: &[Reset]) -> Result<(), ResetError> {
        // At the first use of a group in the cluster there is no coordinator yet.
        let node = self.locate(group).await?;
        if node != self.inner.cluster.node() {
            return Err(GroupError::NotCoordinator { node: Some(node) }.into());
        }
        let mut offsets = Vec::with_capacity(resets.len());
        for reset in resets {
            let offset = i64::try_from(reset.after.get());
            offsets.push(OffsetCommit {
                topic: reset.topic.clone(),
                partition: reset.partition,
                offset: offset.map_err(|_| GroupError::InvalidRequest("the offset is too far"))?,
                leader_epoch: -1,
                metadata: String::new(),
            });
        }
        let commit = CommitRequest {
            member: MemberRef {
                group: group.to_owned(),
                generation: -1,
                member: String::new(),
                instance: None,
            },
            offsets,
        };
        let before = resets.iter().map(|reset| reset.before).collect();
        let outcomes = match self.commit_in_place_of(commit, before).await {
            // Somebody has joined since it was looked at.
            Err(GroupError::UnknownMember) => {
                self.check_inactive(group)?;
                return Err(GroupError::NotEmpty.into());
            }
            outcomes => outcomes?,
        };
        let all: Result<Vec<()>, GroupError> = outcomes.into_iter().collect();
        Ok(all.map(drop)?)
    }
}

fn shifted(offset: i64, by: i64) -> u64 {
    u64::try_from(offset.saturating_add(by)).unwrap_or(0)
}

/// The partitions that are meant, each once, in order.
fn meant(
    map: &ClusterMap,
    topics: &[(String, Vec<u32>)],
    before: &BTreeMap<Named, Committed>,
) -> Result<Vec<Named>, ResetError> {
    if topics.is_empty() {
        let known = before.keys().filter(|named| group_of(map, named).is_some());
        let known: Vec<Named> = known.cloned().collect();
        return if known.is_empty() {
            Err(ResetError::NoOffsets)
        } else {
            Ok(known)
        };
    }
    let mut all = std::collections::BTreeSet::new();
    for (name, partitions) in topics {
        let topic = map.topic_named(name);
        let topic = topic.ok_or_else(|| ResetError::UnknownTopic(name.clone()))?;
        let count = topic.partitions.len();
        let known = u32::try_from(count).unwrap_or(u32::MAX);
        if let Some(unknown) = partitions.iter().find(|partition| **partition >= known) {
            return Err(ResetError::UnknownPartition {
                topic: name.clone(),
                partition: *unknown,
                count,
            });
        }
        if partitions.is_empty() {
            all.extend((0..known).map(|partition| (name.clone(), partition)));
        } else {
            all.extend(
                partitions
                    .iter()
                    .map(|partition| (name.clone(), *partition)),
            );
        }
    }
    Ok(all.into_iter().collect())
}
