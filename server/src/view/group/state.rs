//! The state of an internal partition of groups: judged on the leader, replayed everywhere.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use prost::Message;
use trilog_model::{LogIndex, Timestamp};

use super::command::{
    CommitOffsets, Consumers, DeleteOffsets, EndTransaction, ExpireOffsets, MemberRecord,
    ProducerRef, StoredGroup, StoredGroups, StoredOffset, StoredPending, StoredProducer,
};
use super::producers::Epochs;
use super::{
    At, GroupAction, GroupCommand, MAX_COMMAND_BYTES, MAX_GROUP_BYTES, MAX_GROUPS, MAX_NAME,
    MAX_OFFSETS, MAX_STATE_BYTES, Membership, OffsetEntry, Offsets, Refusal,
};

/// What a group, a member and an offset cost beside their texts and bytes.
const OVERHEAD: usize = 64;
/// What offsets of open transactions may take past the bound of the partition.
const RESERVE: usize = 4 << 20;

/// One committed offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GroupOffset {
    pub offset: i64,
    /// -1 if the client named none.
    pub leader_epoch: i32,
    pub metadata: String,
    /// Which topic of the name was meant; empty if unknown.
    pub topic_id: Bytes,
    /// When it was committed.
    pub time: Timestamp,
    /// The entry that holds it: of two the later one counts, however their transactions end.
    index: LogIndex,
}

impl GroupOffset {
    fn new(entry: &OffsetEntry, at: At) -> Self {
        Self {
            offset: entry.offset,
            leader_epoch: entry.leader_epoch,
            metadata: entry.metadata.clone(),
            topic_id: entry.topic_id.clone(),
            time: at.time,
            index: at.index,
        }
    }
}

/// The offsets of a transaction that is open, as far as this partition knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Pending {
    epoch: i32,
    /// Its number among the producer's; zero if it is not known.
    transaction: u64,
    offsets: Offsets,
}

/// One group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    membership: Membership,
    /// In place of the membership, where the coordinator assigns.
    consumers: Option<Consumers>,
    /// When the members were last put in place: since when it is empty, if it is.
    since: Timestamp,
    offsets: Offsets,
    pending: BTreeMap<i64, Pending>,
    count: usize,
    bytes: usize,
}

impl Group {
    #[must_use]
    pub fn membership(&self) -> &Membership {
        &self.membership
    }

    #[must_use]
    pub fn consumers(&self) -> Option<&Consumers> {
        self.consumers.as_ref()
    }

    /// Whether nobody is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let consumers = self.consumers.as_ref();
        self.membership.members.is_empty()
            && consumers.is_none_or(|consumers| consumers.members.is_empty())
    }

    #[must_use]
    pub fn offsets(&self) -> &Offsets {
        &self.offsets
    }

    #[must_use]
    pub fn offset(&self, topic: &str, partition: u32) -> Option<&GroupOffset> {
        self.offsets.get(topic)?.get(&partition)
    }

    /// Whether a transaction that is open may still change the offset.
    #[must_use]
    pub fn is_pending(&self, topic: &str, partition: u32) -> bool {
        self.pending.values().any(|pending| {
            let offsets = pending.offsets.get(topic);
            offsets.is_some_and(|offsets| offsets.contains_key(&partition))
        })
    }

    /// When the members were last put in place.
    #[must_use]
    pub fn since(&self) -> Timestamp {
        self.since
    }

    fn member_bytes(&self) -> usize {
        let consumers = self.consumers.as_ref().map_or(0, Message::encoded_len);
        self.membership.encoded_len() + consumers
    }

    /// Whether nothing but its name would be kept.
    #[must_use]
    pub fn is_void(&self) -> bool {
        self.is_empty() && self.offsets.is_empty() && self.pending.is_empty()
    }

    /// Whether something of it is past its time.
    #[must_use]
    pub fn has_expired(&self, before: Timestamp) -> bool {
        let over = |offset: &GroupOffset| self.last_use(offset) <= before;
        self.is_empty()
            && ((self.is_void() && self.since <= before)
                || self.offsets.values().flat_map(BTreeMap::values).any(over))
    }

    /// From when an offset's time runs while nobody is in the group: of a group that had members
    /// not before the last one left.
    fn last_use(&self, offset: &GroupOffset) -> Timestamp {
        if self.membership.protocol_type.is_empty() && self.consumers.is_none() {
            offset.time
        } else {
            offset.time.max(self.since)
        }
    }

    fn put(&mut self, name: &str, membership: &Membership, at: At) {
        self.membership = membership.clone();
        self.consumers = None;
        self.since = at.time;
        self.measure(name);
    }

    fn put_consumers(&mut self, name: &str, consumers: &Consumers, at: At) {
        self.membership = Membership::default();
        self.consumers = Some(consumers.clone());
        self.since = at.time;
        self.measure(name);
    }

    fn measure(&mut self, name: &str) {
        let all = self.pending.values().map(|pending| &pending.offsets);
        let all = all.chain([&self.offsets]);
        let (mut count, mut bytes) = (0, OVERHEAD + name.len() + self.member_bytes());
        for (topic, offsets) in all.flatten() {
            count += offsets.len();
            bytes += topic.len() + OVERHEAD;
            bytes += offsets.values().map(cost).sum::<usize>();
        }
        (self.count, self.bytes) = (count, bytes);
    }

    fn set(&mut self, entry: &OffsetEntry, value: GroupOffset) {
        let added = cost(&value);
        if !self.offsets.contains_key(&entry.topic) {
            self.offsets.insert(entry.topic.clone(), BTreeMap::new());
            self.bytes += entry.topic.len() + OVERHEAD;
        }
        let Some(offsets) = self.offsets.get_mut(&entry.topic) else {
            return;
        };
        match offsets.insert(entry.partition, value) {
            Some(old) => self.bytes -= cost(&old),
            None => self.count += 1,
        }
        self.bytes += added;
    }

    /// The offsets of a transaction take effect, but for those that were overtaken.
    fn settle(&mut self, pending: Pending) {
        for (topic, offsets) in pending.offsets {
            for (partition, value) in offsets {
                let present = self.offset(&topic, partition);
                if present.is_none_or(|present| present.index < value.index) {
                    let offsets = self.offsets.entry(topic.clone()).or_default();
                    offsets.insert(partition, value);
                }
            }
        }
    }

    fn remove(&mut self, topic: &str, partition: u32) {
        if let Some(offsets) = self.offsets.get_mut(topic) {
            offsets.remove(&partition);
            if offsets.is_empty() {
                self.offsets.remove(topic);
            }
        }
    }
}

fn cost(offset: &GroupOffset) -> usize {
    OVERHEAD + offset.metadata.len() + offset.topic_id.len()
}

/// All groups of one internal partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    by_name: BTreeMap<String, Group>,
    epochs: Epochs,
    /// The groups with offsets of a producer's open transaction.
    open: BTreeMap<i64, BTreeSet<String>>,
    bytes: usize,
}

/// The bytes are no state of groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stored groups are unreadable")]
pub struct Unreadable;

impl Groups {
    #[must_use]
    pub fn get(&self, group: &str) -> Option<&Group> {
        self.by_name.get(group)
    }

    /// By name.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Group)> {
        self.by_name.iter()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    /// What they take, about.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Judges a command by what is applied: the entries it comes to, or why it may not be
    /// appended. What is on its way meanwhile is bounded by whoever sends it.
    pub fn handle(&self, command: GroupCommand) -> Result<Vec<GroupCommand>, Refusal> {
        let length = command.encoded_len();
        if length > MAX_COMMAND_BYTES {
            return Err(Refusal::TooLarge);
        }
        match &command.action {
            Some(GroupAction::PutMembers(put)) => {
                // A group that loses its last members always may.
                if !put.membership.members.is_empty() {
                    self.check_members(&put.group, length)?;
                }
            }
            Some(GroupAction::PutConsumers(put)) => {
                if !put.consumers.members.is_empty() {
                    self.check_members(&put.group, length)?;
                }
            }
            Some(GroupAction::CommitOffsets(commit)) => {
                if let Some(producer) = &commit.transaction {
                    self.check_epoch(producer)?;
                }
                let present = self.get(&commit.group).map_or(0, |group| group.count);
                if present + commit.offsets.len() > MAX_OFFSETS && self.adds(commit) {
                    return Err(Refusal::TooManyOffsets);
                }
                self.check_commit(commit)?;
            }
            // One that comes again changes nothing.
            Some(
                GroupAction::EndTransaction(_)
                | GroupAction::DeleteOffsets(_)
                | GroupAction::DeleteGroup(_)
                | GroupAction::ExpireOffsets(_),
            ) => {}
            None => return Ok(Vec::new()),
        }
        Ok(vec![command])
    }

    fn check_epoch(&self, producer: &ProducerRef) -> Result<(), Refusal> {
        if self.epochs.is_over(producer) {
            Err(Refusal::Fenced)
        } else {
            Ok(())
        }
    }

    /// Members in place of those before.
    fn check_members(&self, group: &str, length: usize) -> Result<(), Refusal> {
        let before = self.get(group).map_or(0, Group::member_bytes);
        self.check_room(group, length.saturating_sub(before), 0)
    }

    /// What goes over offsets that are there grows by no more than its notes. In a transaction it
    /// stands beside them until that ends: for so long it may go past the bound.
    fn check_commit(&self, commit: &CommitOffsets) -> Result<(), Refusal> {
        let group = self.get(&commit.group);
        let (mut before, mut after) = (0, 0);
        for entry in &commit.offsets {
            after += OVERHEAD + entry.metadata.len() + entry.topic_id.len();
            match group.and_then(|group| group.offset(&entry.topic, entry.partition)) {
                Some(old) => before += cost(old),
                None => after += OVERHEAD + entry.topic.len(),
            }
        }
        let growth = after.saturating_sub(before);
        let own = group.map_or(0, |group| group.bytes);
        if growth > 0 && own + growth > MAX_GROUP_BYTES {
            return Err(Refusal::TooManyOffsets);
        }
        let beside = commit.transaction.map_or(0, |_| after - growth);
        self.check_room(&commit.group, growth, beside)
    }

    /// Who does not grow always may.
    fn check_room(&self, group: &str, growth: usize, beside: usize) -> Result<(), Refusal> {
        let room = MAX_STATE_BYTES.saturating_sub(self.bytes);
        if group.len() > MAX_NAME {
            Err(Refusal::NameTooLong)
        } else if self.by_name.len() >= MAX_GROUPS && !self.by_name.contains_key(group) {
            Err(Refusal::TooManyGroups)
        } else if growth > room || (beside > 0 && growth + beside > room + RESERVE) {
            Err(Refusal::NoRoom)
        } else {
            Ok(())
        }
    }

    fn adds(&self, commit: &CommitOffsets) -> bool {
        let group = self.get(&commit.group);
        let present = |entry: &OffsetEntry| {
            group.is_some_and(|group| group.offset(&entry.topic, entry.partition).is_some())
        };
        commit.transaction.is_some() || !commit.offsets.iter().all(present)
    }

    /// Folds one committed command. False if this build does not know it.
    #[must_use]
    pub fn replay(&mut self, command: &GroupCommand, at: At) -> bool {
        match &command.action {
            Some(GroupAction::PutMembers(put)) => {
                self.change(&put.group, |group| {
                    group.put(&put.group, &put.membership, at);
                });
            }
            Some(GroupAction::PutConsumers(put)) => {
                self.change(&put.group, |group| {
                    group.put_consumers(&put.group, &put.consumers, at);
                });
            }
            Some(GroupAction::CommitOffsets(commit)) => self.replay_commit(commit, at),
            Some(GroupAction::DeleteOffsets(delete)) => self.replay_delete(delete),
            Some(GroupAction::DeleteGroup(delete)) => {
                if let Some(group) = self.by_name.remove(&delete.group) {
                    self.bytes -= group.bytes;
                    for producer in group.pending.keys() {
                        close(&mut self.open, *producer, &delete.group);
                    }
                }
            }
            Some(GroupAction::ExpireOffsets(expire)) => self.replay_expire(expire),
            Some(GroupAction::EndTransaction(end)) => self.replay_end(end, at),
            None => return false,
        }
        true
    }

    /// Changes a group, which is made if it is not there, and counts what it takes.
    fn change(&mut self, name: &str, change: impl FnOnce(&mut Group)) {
        let group = self.by_name.entry(name.to_owned()).or_insert_with(|| {
            let mut group = Group::default();
            group.measure(name);
            self.bytes += group.bytes;
            group
        });
        let before = group.bytes;
        change(group);
        self.bytes = self.bytes - before + group.bytes;
    }

    fn replay_commit(&mut self, commit: &CommitOffsets, at: At) {
        let Some(producer) = &commit.transaction else {
            self.change(&commit.group, |group| {
                for entry in &commit.offsets {
                    group.set(entry, GroupOffset::new(entry, at));
                }
            });
            return;
        };
        let ProducerRef {
            producer_id, epoch, ..
        } = *producer;
        if self.epochs.is_over(producer) {
            return;
        }
        self.epochs.see(producer_id, epoch, at.time);
        let groups = self.open.entry(producer_id).or_default();
        groups.insert(commit.group.clone());
        self.change(&commit.group, |group| {
            let pending = group.pending.entry(producer_id).or_default();
            if pending.epoch != epoch {
                *pending = Pending {
                    epoch,
                    ..Pending::default()
                };
            }
            pending.transaction = pending.transaction.max(producer.transaction);
            for entry in &commit.offsets {
                let offsets = pending.offsets.entry(entry.topic.clone()).or_default();
                offsets.insert(entry.partition, GroupOffset::new(entry, at));
            }
            group.measure(&commit.group);
        });
    }

    fn replay_delete(&mut self, delete: &DeleteOffsets) {
        if !self.by_name.contains_key(&delete.group) {
            return;
        }
        self.change(&delete.group, |group| {
            for name in &delete.partitions {
                let offset = group.offset(&name.topic, name.partition);
                let meant = |offset: &GroupOffset| {
                    name.topic_id.is_empty() || name.topic_id == offset.topic_id
                };
                if offset.is_some_and(meant) {
                    group.remove(&name.topic, name.partition);
                }
            }
            group.measure(&delete.group);
        });
    }

    fn replay_expire(&mut self, expire: &ExpireOffsets) {
        let before = Timestamp(expire.before);
        let Some(group) = self.by_name.get(&expire.group) else {
            return;
        };
        if !group.has_expired(before) {
            return;
        }
        self.change(&expire.group, |group| {
            let mut offsets = std::mem::take(&mut group.offsets);
            for offsets in offsets.values_mut() {
                offsets.retain(|_, offset| group.last_use(offset) > before);
            }
            offsets.retain(|_, offsets| !offsets.is_empty());
            group.offsets = offsets;
            group.measure(&expire.group);
        });
        let void = |group: &Group| group.is_void() && group.since <= before;
        if self.get(&expire.group).is_some_and(void)
            && let Some(group) = self.by_name.remove(&expire.group)
        {
            self.bytes -= group.bytes;
        }
    }

    fn replay_end(&mut self, end: &EndTransaction, at: At) {
        let ProducerRef {
            producer_id, epoch, ..
        } = end.producer;
        if self.epochs.is_over(&end.producer) && !self.ends(&end.producer) {
            self.epochs.end(&end.producer);
            return;
        }
        self.epochs.see(producer_id, epoch, at.time);
        self.epochs.end(&end.producer);
        for name in self.open.remove(&producer_id).unwrap_or_default() {
            self.change(&name, |group| {
                if let Some(pending) = group.pending.remove(&producer_id)
                    && end.commit
                {
                    group.settle(pending);
                }
                group.measure(&name);
            });
        }
    }

    /// Whether offsets of the producer wait for the end of this transaction, or of one before it: of a
    /// coordinator that lost its newest entries for good they are all that says so.
    fn ends(&self, producer: &ProducerRef) -> bool {
        let pending = self.pending_of(producer.producer_id);
        pending.is_some_and(|pending| (1..=producer.transaction).contains(&pending))
    }

    /// The number of the transaction whose end offsets of the producer wait for; zero if it is not
    /// known.
    #[must_use]
    pub fn pending_of(&self, producer_id: i64) -> Option<u64> {
        let groups = self.open.get(&producer_id).into_iter().flatten();
        let pending = groups.filter_map(|name| {
            let group = self.by_name.get(name)?;
            Some(group.pending.get(&producer_id)?.transaction)
        });
        pending.max()
    }

    /// The newest epoch of a producer that is remembered.
    #[must_use]
    pub fn epoch_of(&self, producer_id: i64) -> Option<i32> {
        self.epochs.newest(producer_id)
    }

    /// Whether a transaction of the producer is over here.
    #[must_use]
    pub fn is_over(&self, producer: &ProducerRef) -> bool {
        self.epochs.is_over(producer)
    }

    /// The whole state; what comes of it is equal where states are.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let groups = self.by_name.iter().map(|(name, group)| StoredGroup {
            name: name.clone(),
            membership: group.membership.clone(),
            consumers: group.consumers.clone(),
            since: group.since.nanos(),
            offsets: stored(&group.offsets),
            pending: group
                .pending
                .iter()
                .map(|(producer_id, pending)| StoredPending {
                    producer: ProducerRef {
                        producer_id: *producer_id,
                        epoch: pending.epoch,
                        transaction: pending.transaction,
                    },
                    offsets: stored(&pending.offsets),
                })
                .collect(),
        });
        let producers = self.epochs.iter();
        let producers = producers.map(|(producer, time)| StoredProducer {
            producer,
            time: time.nanos(),
        });
        StoredGroups {
            groups: groups.collect(),
            producers: producers.collect(),
        }
        .encode_to_vec()
    }

    /// Reads what [`Groups::snapshot`] wrote.
    pub fn restore(bytes: &[u8]) -> Result<Self, Unreadable> {
        let all = StoredGroups::decode(bytes).map_err(|_| Unreadable)?;
        let mut groups = Self::default();
        for stored in all.groups {
            let mut group = Group {
                membership: stored.membership,
                consumers: stored.consumers,
                since: Timestamp(stored.since),
                offsets: restored(&stored.offsets),
                ..Group::default()
            };
            for pending in stored.pending {
                let ProducerRef {
                    producer_id,
                    epoch,
                    transaction,
                } = pending.producer;
                let names = groups.open.entry(producer_id).or_default();
                names.insert(stored.name.clone());
                let pending = Pending {
                    epoch,
                    transaction,
                    offsets: restored(&pending.offsets),
                };
                group.pending.insert(producer_id, pending);
            }
            group.measure(&stored.name);
            groups.bytes += group.bytes;
            groups.by_name.insert(stored.name, group);
        }
        for StoredProducer { producer, time } in all.producers {
            let (id, epoch) = (producer.producer_id, producer.epoch);
            groups.epochs.see(id, epoch, Timestamp(time));
            groups.epochs.end(&producer);
        }
        Ok(groups)
    }
}

fn close(open: &mut BTreeMap<i64, BTreeSet<String>>, producer: i64, group: &str) {
    if let Some(groups) = open.get_mut(&producer) {
        groups.remove(group);
        if groups.is_empty() {
            open.remove(&producer);
        }
    }
}

fn stored(offsets: &Offsets) -> Vec<StoredOffset> {
    let each = offsets.iter().flat_map(|(topic, partitions)| {
        partitions.iter().map(|(partition, value)| StoredOffset {
            entry: OffsetEntry {
                topic: topic.clone(),
                partition: *partition,
                offset: value.offset,
                leader_epoch: value.leader_epoch,
                metadata: value.metadata.clone(),
                topic_id: value.topic_id.clone(),
            },
            time: value.time.nanos(),
            index: value.index.get(),
        })
    });
    each.collect()
}

fn restored(stored: &[StoredOffset]) -> Offsets {
    let mut offsets = Offsets::new();
    for StoredOffset { entry, time, index } in stored {
        let at = At {
            index: LogIndex(*index),
            time: Timestamp(*time),
        };
        let partitions = offsets.entry(entry.topic.clone()).or_default();
        partitions.insert(entry.partition, GroupOffset::new(entry, at));
    }
    offsets
}

impl MemberRecord {
    /// The name that outlives its restarts, if it has one.
    #[must_use]
    pub fn instance_name(&self) -> Option<&str> {
        Some(self.instance.as_str()).filter(|name| !name.is_empty())
    }
}
