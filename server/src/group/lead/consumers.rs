//! The groups of the partition in which the coordinator assigns.
//!
//! A group is of one kind at a time: whose members have all left may become one of the other kind.

use tokio::time::Instant;

use super::super::consumer::{Around, Catalogue, ConsumerGroup};
use super::super::types::{ConsumerBeat, ConsumerDescription, Given, GroupState};
use super::{Lead, Sent};
use crate::group::GroupError;
use crate::view::group::command::PutConsumers;
use crate::view::group::{GroupAction, MAX_GROUPS, MAX_STATE_BYTES};

/// A group in memory.
pub(super) struct Consumers {
    group: ConsumerGroup,
    due: Option<Instant>,
    bytes: usize,
    /// Commands of it that are on their way.
    stores: u32,
}

/// What was told, and the command that has to be committed first, with the version it brings.
pub(in crate::group) type Told = (Given, Option<(u64, Sent)>);

impl Lead {
    pub(super) fn insert_consumers(&mut self, name: &str, group: ConsumerGroup) {
        let consumers = Consumers {
            group,
            due: None,
            bytes: 0,
            stores: 0,
        };
        self.consumers.insert(name.to_owned(), consumers);
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
        let due = slot.group.due();
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
            self.bytes -= slot.bytes;
            self.consumers.remove(name);
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
            if self.consumers.len() + self.slots.len() >= MAX_GROUPS
                || self.bytes >= MAX_STATE_BYTES
            {
                return Err(GroupError::Unavailable(
                    "the partition has no room for more groups",
                ));
            }
            let group = self.stored_consumers(name, around);
            self.insert_bare_consumers(name, group);
        }
        let Some(slot) = self.consumers.get_mut(name) else {
            return Err(GroupError::UnknownMember);
        };
        let told = slot.group.heartbeat(beat, around);
        let told = told.map(|given| (given, self.store_consumers(name)));
        self.measure_consumers(name);
        told
    }

    /// One whose members have left goes on counting where it was.
    fn stored_consumers(&self, name: &str, around: Around<'_>) -> ConsumerGroup {
        let stored = self.partition.with_state(|state| {
            let group = state.groups()?.get(name)?;
            group.consumers().cloned()
        });
        stored.map_or_else(ConsumerGroup::new, |stored| {
            ConsumerGroup::load(&stored, around.now, around.settings)
        })
    }

    fn insert_bare_consumers(&mut self, name: &str, group: ConsumerGroup) {
        let consumers = Consumers {
            group,
            due: None,
            bytes: 0,
            stores: 0,
        };
        self.consumers.insert(name.to_owned(), consumers);
    }

    /// Queues what is not committed yet, and of that which is on its way too: it may yet fail.
    fn store_consumers(&mut self, name: &str) -> Option<(u64, Sent)> {
        let slot = self.consumers.get_mut(name)?;
        let version = slot.group.uncommitted()?;
        let put = PutConsumers {
            group: name.to_owned(),
            consumers: slot.group.stored(),
        };
        slot.stores += 1;
        Some((version, self.send(GroupAction::PutConsumers(put))))
    }

    /// A command of the group came back.
    pub(in crate::group) fn consumers_stored(&mut self, name: &str, version: u64, committed: bool) {
        if let Some(slot) = self.consumers.get_mut(name) {
            slot.stores = slot.stores.saturating_sub(1);
            if committed {
                slot.group.was_committed(version);
            }
        }
        self.measure_consumers(name);
    }

    /// Time has caught up with somebody, it may be.
    pub(in crate::group) fn expire_consumers(
        &mut self,
        name: &str,
        around: Around<'_>,
    ) -> Option<(u64, Sent)> {
        let slot = self.consumers.get_mut(name)?;
        slot.group.expire(around);
        let sent = self.store_consumers(name);
        self.measure_consumers(name);
        sent
    }

    /// The group was deleted.
    pub(in crate::group) fn forget_consumers(&mut self, name: &str) {
        if let Some(slot) = self.consumers.remove(name) {
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
