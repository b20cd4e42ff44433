//! Group offsets: committed, fetched, deleted; and those of transactions.

use std::collections::BTreeSet;

use tokio::time::Instant;
use trilog_model::NodeId;
use trilog_raft::controller::{ClusterMap, Topic, TopicId};

use super::lead::Lead;
use super::types::{
    CommitRequest, Committed, FetchRequest, FetchedOffset, MemberRef, OffsetCommit,
    TransactionCommit,
};
use super::{Coordinator, GroupError, GroupState, subscription};
use crate::partition::ReadError;
use crate::view::group::command::{
    CommitOffsets, DeleteOffsets, EndTransaction, PartitionName, ProducerRef,
};
use crate::view::group::{Group, GroupAction, GroupOffset, OffsetEntry};

/// One outcome for each that was asked for, in order; or one error for all.
type Each = Result<Vec<Result<(), GroupError>>, GroupError>;

/// Under which conditions offsets are committed.
#[derive(Default)]
struct Terms {
    /// They count once this producer's transaction commits.
    transaction: Option<ProducerRef>,
    /// All of them or none, in place of these.
    before: Option<Vec<Option<i64>>>,
}

impl Coordinator {
    /// Commits offsets of a member, or of somebody outside a group that has none.
    pub async fn commit(&self, request: CommitRequest) -> Each {
        self.commit_for(request.member, request.offsets, Terms::default())
            .await
    }

    /// Commits all of these or none, and only if what is committed is still this, in order.
    pub(super) async fn commit_in_place_of(
        &self,
        request: CommitRequest,
        before: Vec<Option<i64>>,
    ) -> Each {
        let terms = Terms {
            before: Some(before),
            ..Terms::default()
        };
        self.commit_for(request.member, request.offsets, terms)
            .await
    }

    /// Commits offsets that count once the producer's transaction commits.
    pub async fn commit_in_transaction(&self, request: TransactionCommit) -> Each {
        let producer = ProducerRef {
            producer_id: request.producer_id,
            epoch: i32::from(request.epoch),
            transaction: request.transaction,
        };
        let terms = Terms {
            transaction: Some(producer),
            ..Terms::default()
        };
        self.commit_for(request.member, request.offsets, terms)
            .await
    }

    async fn commit_for(
        &self,
        member: MemberRef,
        offsets: Vec<OffsetCommit>,
        terms: Terms,
    ) -> Each {
        let Terms {
            transaction,
            before,
        } = terms;
        let name = member.group.clone();
        self.check_map(&name, &offsets).await?;
        let mut outcomes = Vec::with_capacity(offsets.len());
        let mut entries = Vec::with_capacity(offsets.len());
        {
            let map = self.inner.cluster.map();
            for offset in offsets {
                let entry = self.entry(&map, offset);
                outcomes.push(entry.as_ref().map(drop).map_err(Clone::clone));
                entries.extend(entry);
            }
        }
        let handle = self.enter(&name)?;
        let (sent, term) = {
            let mut lead = handle.lock();
            check_commit(&mut lead, &member, transaction.is_some(), &entries)?;
            if transaction.is_some_and(|producer| lead.is_ending(&producer)) {
                return Err(GroupError::ProducerFenced);
            }
            if let Some(before) = before {
                outcomes.iter().cloned().collect::<Result<(), _>>()?;
                check_unmoved(&lead, &name, &entries, &before)?;
            }
            if entries.is_empty() {
                return Ok(outcomes);
            }
            let sent = lead.send(GroupAction::CommitOffsets(CommitOffsets {
                group: member.group,
                offsets: entries,
                transaction,
            }));
            (sent, lead.term)
        };
        match self.committed(&name, term, sent).await {
            Ok(()) => Ok(outcomes),
            Err(GroupError::AssignmentTooLarge) => Err(GroupError::CommitTooLarge),
            Err(error) => Err(error),
        }
    }

    /// Makes sure that this node's map is not too old for these offsets: one that is of no topic
    /// it knows, or that does not go on from one of the same topic, may be of a newer one.
    async fn check_map(&self, group: &str, offsets: &[OffsetCommit]) -> Result<(), GroupError> {
        let (partition, _) = self.enter(group)?.lock().led();
        let map = self.inner.cluster.map();
        let doubtful = partition.with_state(|state| {
            let group = state.groups().and_then(|groups| groups.get(group));
            let goes_on = |commit: &OffsetCommit, topic: &Topic| {
                let known = group?.offset(&commit.topic, commit.partition)?;
                Some(known.topic_id == topic.id.to_wire())
            };
            // No topic has a partition of such a number.
            let nowhere = |commit: &OffsetCommit| i32::try_from(commit.partition).is_err();
            offsets.iter().any(|commit| match known(&map, commit) {
                Some(topic) => goes_on(commit, topic) != Some(true),
                None => !nowhere(commit),
            })
        });
        if doubtful && !self.inner.cluster.is_current().await {
            return Err(GroupError::Loading);
        }
        Ok(())
    }

    fn entry(&self, map: &ClusterMap, commit: OffsetCommit) -> Result<OffsetEntry, GroupError> {
        if commit.metadata.len() > self.inner.settings.offset_metadata_max {
            return Err(GroupError::MetadataTooLarge);
        }
        let topic = known(map, &commit).ok_or(GroupError::UnknownTopic)?;
        let topic_id = topic.id.to_wire();
        Ok(OffsetEntry {
            topic: commit.topic,
            partition: commit.partition,
            offset: commit.offset,
            leader_epoch: commit.leader_epoch,
            metadata: commit.metadata,
            topic_id,
        })
    }

    /// Offsets as they are committed now: with everything that was acknowledged before the call,
    /// wherever that was.
    pub async fn fetch(&self, request: FetchRequest) -> Result<Vec<FetchedOffset>, GroupError> {
        let (partition, _) = self.enter(&request.group)?.lock().led();
        partition
            .confirm()
            .await
            .map_err(|error| read_error(&error))?;
        let doubtful = partition.with_state(|state| {
            let group = state.groups().and_then(|groups| groups.get(&request.group));
            let map = self.inner.cluster.map();
            group.is_some_and(|group| holds_others(group, &map))
        });
        // Either a topic was created anew, or this node has yet to hear of the newer one. That there
        // is no offset is said only if that is certain: clients would begin anew.
        if doubtful && !self.inner.cluster.is_current().await {
            return Err(GroupError::Loading);
        }
        let map = self.inner.cluster.map();
        let fetched = partition.with_state(|state| {
            let group = state.groups().and_then(|groups| groups.get(&request.group));
            match &request.partitions {
                Some(asked) => asked
                    .iter()
                    .map(|(topic, index)| {
                        let found = group.and_then(|group| group.offset(topic, *index));
                        let found = found.filter(|found| is_of(&map, topic, found));
                        answer(group, topic, *index, found, request.require_stable)
                    })
                    .collect(),
                None => all_offsets(group, &map, request.require_stable),
            }
        });
        Ok(fetched)
    }

    /// Deletes offsets that no member of the group uses.
    pub async fn delete_offsets(&self, group: &str, partitions: Vec<(String, u32)>) -> Each {
        let handle = self.enter(group)?;
        let (sent, term, outcomes) = {
            let mut lead = handle.lock();
            let Some(present) = lead.find(group, Instant::now()) else {
                return Err(GroupError::UnknownGroup);
            };
            // None: what its members say is not understood, and may be any topic.
            let in_use: Option<BTreeSet<String>> = match present.state() {
                GroupState::Empty => Some(BTreeSet::new()),
                _ if present.protocol_type() == subscription::CONSUMER => {
                    let said = present.subscriptions().map(subscription::topics);
                    let said: Option<Vec<_>> = said.collect();
                    said.map(|said| said.into_iter().flatten().collect())
                }
                GroupState::PreparingRebalance
                | GroupState::CompletingRebalance
                | GroupState::Reconciling
                | GroupState::Stable => {
                    lead.touch(group, |_| ());
                    return Err(GroupError::NotEmpty);
                }
            };
            // Looked at, it need not stay in memory.
            lead.touch(group, |_| ());
            let used = |topic: &str| in_use.as_ref().is_none_or(|topics| topics.contains(topic));
            let mut outcomes = Vec::with_capacity(partitions.len());
            let mut deleted = Vec::new();
            let catalogue = self.catalogue();
            for (topic, partition) in partitions {
                if used(&topic) || lead.wants(group, &topic, &catalogue) {
                    outcomes.push(Err(GroupError::SubscribedToTopic));
                } else {
                    outcomes.push(Ok(()));
                    deleted.push(PartitionName {
                        topic,
                        partition,
                        topic_id: bytes::Bytes::new(),
                    });
                }
            }
            if deleted.is_empty() {
                return Ok(outcomes);
            }
            let delete = DeleteOffsets {
                group: group.to_owned(),
                partitions: deleted,
            };
            let sent = lead.send(GroupAction::DeleteOffsets(delete));
            (sent, lead.term, outcomes)
        };
        self.committed(group, term, sent).await.map(|()| outcomes)
    }

    /// A producer's transaction has ended: what it committed to groups of this partition counts,
    /// or never did. For the coordinator of transactions.
    pub async fn end_transaction(
        &self,
        partition: u32,
        producer: ProducerRef,
        commit: bool,
    ) -> Result<(), GroupError> {
        let sent = {
            let topic = self.topic()?;
            let handle = self.enter_at(&topic, partition)?;
            handle
                .lock()
                .end_transaction(EndTransaction { producer, commit })
        };
        sent.committed().await
    }

    /// The partition of the internal topic that a group's offsets are in.
    pub fn partition_of(&self, group: &str) -> Result<u32, GroupError> {
        Ok(super::partition_of(group, &*self.topic()?))
    }
}

/// Whether nobody has committed since somebody looked.
fn check_unmoved(
    lead: &Lead,
    name: &str,
    entries: &[OffsetEntry],
    before: &[Option<i64>],
) -> Result<(), GroupError> {
    let unmoved = lead.partition.with_state(|state| {
        let group = state.groups().and_then(|groups| groups.get(name));
        let mut each = entries.iter().zip(before);
        each.all(|(entry, before)| {
            let found = group.and_then(|group| group.offset(&entry.topic, entry.partition));
            // One of another topic of the name counts for none.
            let found =
                found.filter(|found| found.topic_id.is_empty() || found.topic_id == entry.topic_id);
            found.map(|found| found.offset) == *before
        })
    });
    if unmoved {
        Ok(())
    } else {
        Err(GroupError::Unavailable("its offsets were just committed"))
    }
}

fn check_commit(
    lead: &mut Lead,
    member: &MemberRef,
    transactional: bool,
    entries: &[OffsetEntry],
) -> Result<(), GroupError> {
    let now = Instant::now();
    if let Some(consumers) = lead.consumers(&member.group) {
        // A transaction's commit may leave out who it is for.
        let unnamed = member.member.is_empty() && member.generation < 0;
        return if transactional && unnamed {
            Ok(())
        } else {
            let parts = entries.iter().map(|entry| {
                let topic = TopicId::from_wire(&entry.topic_id).ok()?;
                Some((topic, entry.partition))
            });
            consumers.check_epoch(&member.member, member.generation, parts)
        };
    }
    if lead.find(&member.group, now).is_none() {
        // Whoever is in no group may keep offsets all the same.
        return if member.generation < 0 {
            Ok(())
        } else {
            Err(GroupError::IllegalGeneration)
        };
    }
    lead.touch(&member.group, |group| {
        group.check_commit(member, transactional, now)
    })
    .unwrap_or(Err(GroupError::UnknownMember))
}

/// The topic of an offset, if there is one that has the partition.
fn known<'a>(map: &'a ClusterMap, commit: &OffsetCommit) -> Option<&'a Topic> {
    let topic: &Topic = map.topic_named(&commit.topic)?;
    let index = usize::try_from(commit.partition).ok()?;
    (index < topic.partitions.len()).then_some(topic)
}

/// Whether an offset is not of another topic of that name than there is now.
pub(super) fn is_of(map: &ClusterMap, topic: &str, offset: &GroupOffset) -> bool {
    let now = map.topic_named(topic).map(|topic| topic.id);
    let meant = TopicId::from_wire(&offset.topic_id).ok();
    now.is_none() || meant.is_none() || now == meant
}

fn holds_others(group: &Group, map: &ClusterMap) -> bool {
    let mut offsets = group.offsets().iter();
    offsets.any(|(topic, partitions)| {
        let mut offsets = partitions.values();
        offsets.any(|offset| !is_of(map, topic, offset))
    })
}

fn all_offsets(
    group: Option<&Group>,
    map: &ClusterMap,
    require_stable: bool,
) -> Vec<FetchedOffset> {
    let Some(group) = group else {
        return Vec::new();
    };
    let offsets = group.offsets().iter();
    let each = offsets.flat_map(|(topic, partitions)| {
        let each = partitions.iter();
        each.map(move |(partition, offset)| (topic, *partition, offset))
    });
    each.filter(|(topic, _, offset)| is_of(map, topic, offset))
        .map(|(topic, partition, offset)| {
            answer(Some(group), topic, partition, Some(offset), require_stable)
        })
        .collect()
}

fn answer(
    group: Option<&Group>,
    topic: &str,
    partition: u32,
    offset: Option<&GroupOffset>,
    require_stable: bool,
) -> FetchedOffset {
    let unstable = require_stable && group.is_some_and(|group| group.is_pending(topic, partition));
    let committed = offset.map(|offset| Committed {
        offset: offset.offset,
        leader_epoch: offset.leader_epoch,
        metadata: offset.metadata.clone(),
    });
    FetchedOffset {
        topic: topic.to_owned(),
        partition,
        committed: if unstable {
            Err(GroupError::Unstable)
        } else {
            Ok(committed)
        },
    }
}

fn read_error(error: &ReadError) -> GroupError {
    let node: Option<NodeId> = match error {
        ReadError::NotLeader { leader } => *leader,
        ReadError::OutOfRange { .. } | ReadError::Damaged(_) | ReadError::Unavailable(_) => None,
    };
    GroupError::NotCoordinator { node }
}
