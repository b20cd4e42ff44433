//! The groups of the partition in which the coordinator assigns.
//!
//! A group is of one kind at a time: whose members have all left may become one of the other kind.

use tokio::sync::watch;
use tokio::time::Instant;

use super::super::consumer::{Around, Catalogue, ConsumerGroup};
use super::super::types::{ConsumerBeat, ConsumerDescription, Given, GroupState};
use super::{Lead, Sent};
use crate::group::{GroupError, STORE_AGAIN};
use crate::view::group::command::PutConsumers;
use crate::view::group::{GroupAction, MAX_GROUPS};

/// A group in memory.
pub(super) struct Consumers {
    group: ConsumerGroup,
    /// Versions up to this are of another group of the name.
    since: u64,
    due: Option<Instant>,
    bytes: usize,
    /// Commands of it that are on their way.
    stores: u32,
    /// The newest of them: the version it brings, and what will have become of it.
    newest: Option<(u64, Outcome)>,
    /// A command failed: when what it brought is tried again, if nobody comes before.
    again: Option<Instant>,
}

/// What becomes of a command; none as long as nobody knows.
type Outcome = watch::Receiver<Option<Result<(), GroupError>>>;

/// What has to be committed before anybody is told what was just learnt.
pub(in crate::group) enum Commit {
    /// A command that was queued now, and the version it brings.
    Sent(Store),
    /// One that is on its way already brings it.
    Awaited(Outcome),
}

/// A command of a group on its way.
pub(in crate::group) struct Store {
    pub(in crate::group) version: u64,
    pub(in crate::group) sent: Sent,
    /// Those who wait for it, too, are told here.
    pub(in crate::group) tell: watch::Sender<Option<Result<(), GroupError>>>,
}

/// What was told, and what has to be committed first.
pub(in crate::group) type Told = (Given, Option<Commit>);

impl Lead {
    pub(super) fn insert_consumers(&mut self, name: &str, group: ConsumerGroup) {
        self.insert_bare_consumers(name, group);
        self.measure_consumers(name);
    }

    /// As [`Lead::measure`].
    fn measure_consumers(&mut self, name: &str) {
        let Some(slot) = self.consumers.get_mut(name) else {
            return;
        };
        let bytes = name.len() + slot.group.bytes();
        self.bytes = self.bytes - slot.bytes + bytes;
        slot.bytes = bytes;
        let due = slot.group.due().into_iter().chain(slot.again).min();
        if due != slot.due {
            if let Some(old) = slot.due {
                self.due.remove(&(old, name.to_owned()));
            }
            if let Some(new) = due {
                self.due.insert((new, name.to_owned()));
            }
            slot.due = due;
        }
        let idle = slot.group.is_empty() && slot.group.uncommitted().is_none();
        if idle && slot.stores == 0 {
            self.forget_consumers(name);
        }
    }

    /// Whether the coordinator assigns in the group, which has members.
    pub(in crate::group) fn assigns(&self, name: &str) -> bool {
        let slot = self.consumers.get(name);
        slot.is_some_and(|slot| !slot.group.is_empty())
    }

    /// The group, if the coordinator assigns in it and it has members.
    pub(in crate::group) fn consumers(&self, name: &str) -> Option<&ConsumerGroup> {
        let slot = self.consumers.get(name)?;
        Some(&slot.group).filter(|group| !group.is_empty())
    }

    pub(in crate::group) fn all_consumers(
        &self,
    ) -> impl Iterator<Item = (&String, &ConsumerGroup)> {
        let all = self.consumers.iter();
        all.filter(|(_, slot)| !slot.group.is_empty())
            .map(|(name, slot)| (name, &slot.group))
    }

    /// A consumer speaks.
    pub(in crate::group) fn beat(
        &mut self,
        beat: &ConsumerBeat,
        around: Around<'_>,
    ) -> Result<Told, GroupError> {
        let name = &beat.group;
        let classic = self.find(name, around.now).map(|group| group.state());
        // Looked at, it need not stay in memory.
        self.touch(name, |_| ());
        if classic.is_some_and(|state| state != GroupState::Empty) {
            return Err(GroupError::InconsistentProtocol);
        }
        if !self.consumers.contains_key(name) {
            if beat.epoch != 0 {
                return Err(GroupError::UnknownMember);
            }
            if self.consumers.len() + self.slots.len() >= MAX_GROUPS || self.room_left() == 0 {
                return Err(GroupError::Unavailable(
                    "the partition has no room for more groups",
                ));
            }
            let group = self.stored_consumers(name, around);
            self.insert_bare_consumers(name, group);
        }
        let room = self.room_left();
        let Some(slot) = self.consumers.get_mut(name) else {
            return Err(GroupError::UnknownMember);
        };
        let told = slot.group.heartbeat(beat, Around { room, ..around });
        let told = told.map(|given| (given, self.store_consumers(name)));
        self.measure_consumers(name);
        if told.is_ok() && self.assigns(name) {
            // Of the other kind there is nothing left.
            self.forget(name);
        }
        told
    }

    /// One whose members have left goes on counting where it was.
    fn stored_consumers(&self, name: &str, around: Around<'_>) -> ConsumerGroup {
        let stored = self.stored(name, |group| group.consumers().cloned());
        stored.map_or_else(ConsumerGroup::new, |stored| {
            ConsumerGroup::load(&stored, around.now, around.settings)
        })
    }

    fn insert_bare_consumers(&mut self, name: &str, group: ConsumerGroup) {
        let consumers = Consumers {
            group: group.counting_from(self.versions),
            since: self.versions,
            due: None,
            bytes: 0,
            stores: 0,
            newest: None,
            again: None,
        };
        self.consumers.insert(name.to_owned(), consumers);
    }

    /// Queues what is not committed yet, unless a command that brings it is on its way.
    fn store_consumers(&mut self, name: &str) -> Option<Commit> {
        let slot = self.consumers.get_mut(name)?;
        let version = slot.group.uncommitted()?;
        if let Some((newest, outcome)) = &slot.newest
            && *newest >= version
        {
            return Some(Commit::Awaited(outcome.clone()));
        }
        let put = PutConsumers {
            group: name.to_owned(),
            consumers: slot.group.stored(),
        };
        let (tell, outcome) = watch::channel(None);
        slot.newest = Some((version, outcome));
        slot.again = None;
        slot.stores += 1;
        let sent = self.send(GroupAction::PutConsumers(put));
        Some(Commit::Sent(Store {
            version,
            sent,
            tell,
        }))
    }

    /// A command of the group came back.
    pub(in crate::group) fn consumers_stored(
        &mut self,
        name: &str,
        version: u64,
        committed: bool,
        now: Instant,
    ) {
        let slot = self.consumers.get_mut(name);
        let Some(slot) = slot.filter(|slot| version > slot.since) else {
            return;
        };
        slot.stores = slot.stores.saturating_sub(1);
        if committed {
            slot.group.was_committed(version);
        }
        if slot
            .newest
            .as_ref()
            .is_some_and(|newest| newest.0 == version)
        {
            slot.newest = None;
            slot.again = (!committed).then(|| now + STORE_AGAIN);
        }
        self.measure_consumers(name);
    }

    /// Time has caught up with somebody, it may be.
    pub(in crate::group) fn expire_consumers(
        &mut self,
        name: &str,
        around: Around<'_>,
    ) -> Option<Store> {
        let slot = self.consumers.get_mut(name)?;
        slot.group.expire(around);
        slot.again = None;
        let commit = self.store_consumers(name);
        self.measure_consumers(name);
        match commit? {
            Commit::Sent(store) => Some(store),
            Commit::Awaited(_) => None,
        }
    }

    /// The group was deleted, or is one of the other kind now.
    pub(in crate::group) fn forget_consumers(&mut self, name: &str) {
        if let Some(slot) = self.consumers.remove(name) {
            self.versions = self.versions.max(slot.group.version());
            self.bytes -= slot.bytes;
            if let Some(due) = slot.due {
                self.due.remove(&(due, name.to_owned()));
            }
        }
    }

    pub(in crate::group) fn describe_consumers(&self, name: &str) -> Option<ConsumerDescription> {
        Some(self.consumers(name)?.describe(name))
    }

    /// Whether a member wants a topic.
    pub(in crate::group) fn wants(&self, name: &str, topic: &str, catalogue: &Catalogue) -> bool {
        let group = self.consumers(name);
        group.is_some_and(|group| group.subscribes(topic, catalogue))
    }
}
