//! The groups of one internal partition while this node leads it: one term of memory.
//!
//! Everything is judged under one lock, in which what follows from it is also queued, so that
//! entries stand in the log in the order they were judged in. With the term all of this is
//! forgotten, and whoever waits for an answer is told to look for the next coordinator.

mod consumers;

pub(super) use consumers::{Commit, Store as ConsumerStore};

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use trilog_model::Term;
use trilog_storage::env::Entropy;

use super::GroupError;
use super::classic::{Ctx, Group, Store, Then};
use super::consumer::ConsumerGroup;
use super::types::Settings;
use crate::partition::{AppendError, Partition, Ticket};
use crate::view::PartitionCommand;
use crate::view::group::command::{EndTransaction, ProducerRef, PutMembers};
use crate::view::group::{
    Consumers, Group as Stored, GroupAction, GroupCommand, Groups, MAX_GROUPS, MAX_STATE_BYTES,
    Membership, Refusal,
};

/// Bytes of commands of one partition that may be on their way.
const IN_FLIGHT_BYTES: usize = 16 << 20;
/// Producers whose transactions are ending at most; far more than there is room for on the way.
const MAX_ENDING: usize = 200_000;
/// What a command takes beside its bytes, so that many small ones count too.
const COMMAND_COST: usize = 256;

/// A command on its way.
pub(super) struct Sent {
    ticket: Result<Ticket, GroupError>,
    _room: Option<OwnedSemaphorePermit>,
}

impl Sent {
    /// Whether it may come to be committed.
    pub(super) fn is_queued(&self) -> bool {
        self.ticket.is_ok()
    }

    /// Waits for the commit.
    pub(super) async fn committed(self) -> Result<(), GroupError> {
        let outcome = self.ticket?.committed().await;
        outcome.map(drop).map_err(|error| append_error(&error))
    }
}

/// A group in memory.
struct Slot {
    group: Group,
    due: Option<Instant>,
    bytes: usize,
    /// Commands of it that are on their way.
    stores: u32,
}

/// See the module's text.
pub(super) struct Lead {
    pub(super) partition: Partition,
    pub(super) term: Term,
    slots: BTreeMap<String, Slot>,
    consumers: BTreeMap<String, consumers::Consumers>,
    /// Groups whose deletion is on its way, and how often: what the state says of them is over.
    deleting: BTreeMap<String, u32>,
    /// Versions of groups of consumers that are not in memory any more.
    versions: u64,
    due: BTreeSet<(Instant, String)>,
    bytes: usize,
    room: Arc<Semaphore>,
    /// Ends of transactions that are on their way: the highest number, by producer. What follows
    /// one would not count, and must not be acknowledged.
    ending: BTreeMap<i64, u64>,
}

/// What all groups of a node use.
#[derive(Clone, Copy)]
pub(super) struct Tools<'a> {
    pub(super) settings: &'a Settings,
    pub(super) entropy: &'a Entropy,
    pub(super) now: Instant,
}

impl Lead {
    /// Takes over: members are as they were last committed, and have to be heard from again.
    pub(super) fn begin(
        partition: Partition,
        term: Term,
        now: Instant,
        settings: &Settings,
    ) -> Self {
        let with_members = |groups: &Groups| -> Vec<(String, Membership)> {
            let groups = groups.iter();
            let groups = groups.filter(|(_, group)| !group.membership().members.is_empty());
            groups
                .map(|(name, group)| (name.clone(), group.membership().clone()))
                .collect()
        };
        let loaded = partition.with_state(|state| state.groups().map(with_members));
        let mut lead = Self {
            partition,
            term,
            slots: BTreeMap::new(),
            consumers: BTreeMap::new(),
            deleting: BTreeMap::new(),
            versions: 0,
            due: BTreeSet::new(),
            bytes: 0,
            room: Arc::new(Semaphore::new(IN_FLIGHT_BYTES)),
            ending: BTreeMap::new(),
        };
        for (name, membership) in loaded.unwrap_or_default() {
            lead.insert(&name, Group::load(&name, &membership, now));
        }
        let with_consumers = |groups: &Groups| -> Vec<(String, Consumers)> {
            let groups = groups.iter();
            let stored = groups.filter_map(|(name, group)| Some((name, group.consumers()?)));
            let stored = stored.filter(|(_, consumers)| !consumers.members.is_empty());
            stored
                .map(|(name, consumers)| (name.clone(), consumers.clone()))
                .collect()
        };
        let state = &lead.partition;
        let loaded = state.with_state(|state| state.groups().map(with_consumers));
        for (name, stored) in loaded.unwrap_or_default() {
            lead.insert_consumers(&name, ConsumerGroup::load(&stored, now, settings));
        }
        lead
    }

    fn insert(&mut self, name: &str, group: Group) {
        let slot = Slot {
            group,
            due: None,
            bytes: 0,
            stores: 0,
        };
        self.slots.insert(name.to_owned(), slot);
        self.measure(name);
    }

    /// Keeps the sums and the order of deadlines true after a change of a group.
    fn measure(&mut self, name: &str) {
        let Some(slot) = self.slots.get_mut(name) else {
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
        if slot.group.is_idle() && slot.stores == 0 {
            self.bytes -= slot.bytes;
            self.slots.remove(name);
        }
    }

    /// What an answer has to be waited for with.
    pub(super) fn led(&self) -> (Partition, Term) {
        (self.partition.clone(), self.term)
    }

    /// When something happens by itself next.
    pub(super) fn next_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Groups that time has caught up with.
    pub(super) fn due(&self, now: Instant) -> Vec<String> {
        let due = self.due.iter().take_while(|(due, _)| *due <= now);
        due.map(|(_, name)| name.clone()).collect()
    }

    /// The group in memory, brought there if it is known.
    pub(super) fn find(&mut self, name: &str, now: Instant) -> Option<&mut Group> {
        if !self.slots.contains_key(name) {
            let stored = self.stored(name, |group| Some(group.membership().clone()))?;
            let slot = Slot {
                group: Group::load(name, &stored, now),
                due: None,
                bytes: 0,
                stores: 0,
            };
            self.slots.insert(name.to_owned(), slot);
        }
        self.slots.get_mut(name).map(|slot| &mut slot.group)
    }

    /// What is committed of a group, for one that is not in memory.
    fn stored<T>(&self, name: &str, look: impl FnOnce(&Stored) -> Option<T>) -> Option<T> {
        if self.deleting.contains_key(name) {
            return None;
        }
        let partition = &self.partition;
        partition.with_state(|state| look(state.groups()?.get(name)?))
    }

    /// As [`Lead::find`], making the group if there is none.
    pub(super) fn find_or_make(&mut self, name: &str, now: Instant) -> Result<(), GroupError> {
        if self.find(name, now).is_some() {
            return Ok(());
        }
        if self.slots.len() >= MAX_GROUPS || self.room_left() == 0 {
            return Err(GroupError::Unavailable(
                "the partition has no room for more groups",
            ));
        }
        self.insert_bare(name);
        Ok(())
    }

    fn insert_bare(&mut self, name: &str) {
        let slot = Slot {
            group: Group::new(name),
            due: None,
            bytes: 0,
            stores: 0,
        };
        self.slots.insert(name.to_owned(), slot);
    }

    /// Bytes by which what members of the partition's groups have said may grow.
    fn room_left(&self) -> usize {
        MAX_STATE_BYTES.saturating_sub(self.bytes)
    }

    /// Changes a group that was found; what comes of it is queued in order.
    pub(super) fn change<T>(
        &mut self,
        name: &str,
        tools: Tools<'_>,
        change: impl FnOnce(&mut Group, &mut Ctx<'_>) -> T,
    ) -> Option<(T, Vec<(Then, Sent)>)> {
        let room = self.room_left();
        let slot = self.slots.get_mut(name)?;
        let mut stores = Vec::new();
        let mut ctx = Ctx {
            now: tools.now,
            settings: tools.settings,
            entropy: tools.entropy,
            room,
            stores: &mut stores,
        };
        let outcome = change(&mut slot.group, &mut ctx);
        slot.group.tick(&mut ctx);
        slot.stores += u32::try_from(stores.len()).unwrap_or(u32::MAX);
        let sent = stores.into_iter().map(|Store { membership, then }| {
            let put = GroupAction::PutMembers(PutMembers {
                group: name.to_owned(),
                membership,
            });
            (then, self.send(put))
        });
        let sent = sent.collect();
        self.measure(name);
        Some((outcome, sent))
    }

    /// A heartbeat or the like, which only puts deadlines off: they are looked at when they come.
    pub(super) fn touch<T>(&mut self, name: &str, look: impl FnOnce(&mut Group) -> T) -> Option<T> {
        let slot = self.slots.get_mut(name)?;
        let outcome = look(&mut slot.group);
        if slot.due.is_none() && slot.bytes == 0 {
            self.measure(name);
        }
        Some(outcome)
    }

    /// A command of the group came back, whatever its outcome.
    pub(super) fn arrived(&mut self, name: &str) {
        if let Some(slot) = self.slots.get_mut(name) {
            slot.stores = slot.stores.saturating_sub(1);
        }
    }

    /// The group's deletion is queued: whoever joins now begins anew.
    pub(super) fn delete(&mut self, name: &str) {
        self.forget(name);
        self.forget_consumers(name);
        *self.deleting.entry(name.to_owned()).or_default() += 1;
    }

    /// A deletion came back, whatever its outcome.
    pub(super) fn deleted(&mut self, name: &str) {
        if let Some(count) = self.deleting.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                self.deleting.remove(name);
            }
        }
    }

    /// The group was deleted, or is one of the other kind now.
    fn forget(&mut self, name: &str) {
        if let Some(slot) = self.slots.remove(name) {
            self.bytes -= slot.bytes;
            if let Some(due) = slot.due {
                self.due.remove(&(due, name.to_owned()));
            }
        }
    }

    /// Groups in memory, by name.
    pub(super) fn groups(&self) -> impl Iterator<Item = (&String, &Group)> {
        self.slots.iter().map(|(name, slot)| (name, &slot.group))
    }

    pub(super) fn group(&self, name: &str) -> Option<&Group> {
        self.slots.get(name).map(|slot| &slot.group)
    }

    /// Queues the end of a transaction.
    pub(super) fn end_transaction(&mut self, end: EndTransaction) -> Sent {
        let sent = self.send(GroupAction::EndTransaction(end));
        let ProducerRef {
            producer_id,
            transaction,
            ..
        } = end.producer;
        if sent.ticket.is_ok() && transaction > 0 {
            let last = self.ending.entry(producer_id).or_default();
            *last = transaction.max(*last);
            if self.ending.len() > MAX_ENDING {
                self.ending.pop_first();
            }
        }
        sent
    }

    /// Whether the end of the producer's transaction, or of a later one, stands before whatever is
    /// queued now.
    pub(super) fn is_ending(&self, producer: &ProducerRef) -> bool {
        let last = self.ending.get(&producer.producer_id);
        last.is_some_and(|last| producer.transaction <= *last)
    }

    /// Lets go of ends that are applied: commands are judged by them from then on.
    pub(super) fn forget_ended(&mut self) {
        let Self {
            partition, ending, ..
        } = self;
        partition.with_state(|state| {
            let Some(groups) = state.groups() else { return };
            ending.retain(|producer_id, transaction| {
                !groups.is_over(&ProducerRef {
                    producer_id: *producer_id,
                    epoch: i32::MAX,
                    transaction: *transaction,
                })
            });
        });
    }

    /// Queues a command, judged now.
    pub(super) fn send(&self, action: GroupAction) -> Sent {
        let (ticket, room) = match self.judge(action) {
            Ok((command, room)) => {
                let ticket = self
                    .partition
                    .try_propose(&PartitionCommand::group(command), self.term);
                (ticket.map_err(|error| append_error(&error)), Some(room))
            }
            Err(error) => (Err(error), None),
        };
        Sent {
            ticket,
            _room: room,
        }
    }

    fn judge(
        &self,
        action: GroupAction,
    ) -> Result<(GroupCommand, OwnedSemaphorePermit), GroupError> {
        let command = GroupCommand::from(action);
        let bytes = prost::Message::encoded_len(&command) + COMMAND_COST;
        let judged = self.partition.with_state(|state| {
            let groups = state.groups()?;
            Some(groups.handle(command))
        });
        let judged = judged.ok_or(GroupError::Unavailable("it is being opened"))?;
        let mut entries = judged.map_err(refusal)?;
        let command = entries
            .pop()
            .ok_or(GroupError::InvalidRequest("it changes nothing"))?;
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(bytes);
        let room = room.map_err(|_| GroupError::Unavailable("too much is on its way"))?;
        Ok((command, room))
    }
}

fn refusal(refusal: Refusal) -> GroupError {
    match refusal {
        Refusal::TooManyGroups | Refusal::NoRoom => {
            GroupError::Unavailable("the partition has no room for more groups")
        }
        Refusal::TooManyOffsets => GroupError::CommitTooLarge,
        Refusal::TooLarge => GroupError::AssignmentTooLarge,
        Refusal::Fenced => GroupError::ProducerFenced,
        Refusal::NameTooLong => GroupError::InvalidGroupId,
    }
}

fn append_error(error: &AppendError) -> GroupError {
    match error {
        AppendError::NotLeader { leader } => GroupError::NotCoordinator { node: *leader },
        AppendError::Unknown => GroupError::Unknown,
        AppendError::Busy(reason) => GroupError::Unavailable(reason),
        AppendError::DiskFull => GroupError::Unavailable("the disk is full"),
        AppendError::Closed => GroupError::NotCoordinator { node: None },
        AppendError::TooLarge { .. } | AppendError::TooMany { .. } => GroupError::CommitTooLarge,
        AppendError::Invalid(_)
        | AppendError::Records(_)
        | AppendError::OutOfOrder { .. }
        | AppendError::Fenced { .. }
        | AppendError::OffsetMismatch { .. }
        | AppendError::NotInTransaction
        | AppendError::InTransaction
        | AppendError::StaleCoordinator
        | AppendError::Internal => GroupError::InvalidRequest("it is no command of groups"),
    }
}
