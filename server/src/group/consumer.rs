//! One group of consumers in its coordinator's memory, where the coordinator assigns (KIP-848).
//!
//! ```text
//! members, what they want, topics ──changed──> group epoch ──> targets of all (assign)
//! each heartbeat brings its member one step on towards its target (reconcile):
//!
//!   revoking   give up what is not in the target        epoch stays
//!      │ the member says that it has
//!   waiting    take over what others have given up       epoch = group epoch
//!      │ nothing left that others hold
//!   stable     assigned = target
//! ```
//!
//! Nobody stops who is not affected: a member only ever hears of partitions to give up or to take.
//! A partition has one member at any time, counting those that are asked to give it up. Pure:
//! time and the cluster's topics come with each call; what must survive is the whole of it, which
//! is committed before anybody is answered.

mod assign;
mod members;
mod reconcile;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use trilog_raft::controller::TopicId;

use super::GroupError;
use super::types::{
    ConsumerBeat, ConsumerDescription, DescribedConsumer, Given, GroupState, Settings,
};
use crate::view::group::Consumers;
use crate::view::group::command::{ConsumerRecord, TopicParts, TopicSize};
pub(super) use assign::Assignor;
use assign::{Part, Sizes, Taker};
use members::{Member, Pattern};

/// The epoch a member joins with.
const JOINS: i32 = 0;
/// It leaves.
const LEAVES: i32 = -1;
/// A named member leaves, to come back.
const LEAVES_TO_RETURN: i32 = -2;
/// What a group may take as stored, in bytes: it has to fit an entry.
const MAX_BYTES: usize = 2 << 20;

/// The topics of the cluster that consumers may subscribe to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Catalogue {
    pub(super) version: u64,
    pub(super) topics: BTreeMap<String, (TopicId, u32)>,
}

/// What a call on a group may use.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) now: Instant,
    pub(super) settings: &'a Settings,
    pub(super) catalogue: &'a Arc<Catalogue>,
}

/// A wish that a member may leave as it was.
enum Wish<T> {
    AsBefore,
    Now(Option<T>),
}

/// What a member says that it wants, as far as that can be wrong.
struct Wishes {
    assignor: Wish<Assignor>,
    regex: Wish<Pattern>,
}

impl Wishes {
    fn read(beat: &ConsumerBeat) -> Result<Self, GroupError> {
        let assignor = match beat.assignor.as_deref() {
            None => Wish::AsBefore,
            Some("") => Wish::Now(None),
            Some(name) => {
                let assignor = Assignor::named(name).ok_or(GroupError::UnsupportedAssignor)?;
                Wish::Now(Some(assignor))
            }
        };
        let regex = match beat.regex.as_deref() {
            None => Wish::AsBefore,
            Some("") => Wish::Now(None),
            Some(text) => Wish::Now(Some(Pattern::compile(text)?)),
        };
        Ok(Self { assignor, regex })
    }
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct ConsumerGroup {
    epoch: i32,
    assignor: Assignor,
    /// What the targets are of.
    sizes: Sizes,
    members: BTreeMap<String, Member>,
    /// Members by their instance ids.
    instances: BTreeMap<String, String>,
    /// The version of the cluster's topics that was looked at last.
    seen: Option<u64>,
    /// Rises with each change; what is committed lags behind it.
    version: u64,
    committed: u64,
}

impl ConsumerGroup {
    pub(super) fn new() -> Self {
        Self {
            epoch: 0,
            assignor: Assignor::default(),
            sizes: Sizes::new(),
            members: BTreeMap::new(),
            instances: BTreeMap::new(),
            seen: None,
            version: 0,
            committed: 0,
        }
    }

    /// A group as it was last committed; its members' sessions begin now.
    pub(super) fn load(stored: &Consumers, now: Instant, settings: &Settings) -> Self {
        let mut group = Self::new();
        group.epoch = stored.epoch;
        group.assignor = Assignor::named(&stored.assignor).unwrap_or_default();
        group.sizes = stored
            .topics
            .iter()
            .filter_map(|size| Some((TopicId::from_wire(&size.topic_id).ok()?, size.partitions)))
            .collect();
        for record in &stored.members {
            if !record.instance.is_empty() {
                let instance = record.instance.clone();
                group.instances.insert(instance, record.id.clone());
            }
            let member = Member::load(record, now, settings);
            group.members.insert(record.id.clone(), member);
        }
        group
    }

    /// The whole of it.
    pub(super) fn stored(&self) -> Consumers {
        let topics = self.sizes.iter().map(|(topic, partitions)| TopicSize {
            topic_id: topic.to_wire(),
            partitions: *partitions,
        });
        let members = self.members.iter();
        Consumers {
            epoch: self.epoch,
            assignor: self.assignor.name().to_owned(),
            topics: topics.collect(),
            members: members.map(|(id, member)| member.record(id)).collect(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub(super) fn member_count(&self) -> usize {
        self.members.len()
    }

    /// What its members have said, about.
    pub(super) fn bytes(&self) -> usize {
        self.members.values().map(Member::bytes).sum()
    }

    /// The version that has to be committed before what was just learnt may be told, if it is not.
    pub(super) fn uncommitted(&self) -> Option<u64> {
        (self.version > self.committed).then_some(self.version)
    }

    pub(super) fn was_committed(&mut self, version: u64) {
        self.committed = self.committed.max(version);
    }

    fn changed(&mut self) {
        self.version += 1;
    }

    /// When something happens by itself next.
    pub(super) fn due(&self) -> Option<Instant> {
        self.members.values().map(Member::due).min()
    }

    /// A member joins, leaves, or says what it wants and has; it learns what it is to read.
    pub(super) fn heartbeat(
        &mut self,
        beat: &ConsumerBeat,
        around: Around<'_>,
    ) -> Result<Given, GroupError> {
        match beat.epoch {
            LEAVES | LEAVES_TO_RETURN => self.leave(beat, around),
            JOINS.. => {
                // What is wrong with it shows before anything has changed.
                let wishes = Wishes::read(beat)?;
                if !self.members.contains_key(&beat.member) {
                    self.check_room(beat, around.settings)?;
                }
                let joined = self.admit(beat, &wishes, around)?;
                let wants_changed = self.take_wishes(beat, wishes, around)?;
                self.retarget(wants_changed, around.catalogue);
                Ok(self.reconcile(beat, joined, around))
            }
            _ => Err(GroupError::InvalidRequest("there is no such member epoch")),
        }
    }

    fn check_room(&self, beat: &ConsumerBeat, settings: &Settings) -> Result<(), GroupError> {
        if self.members.len() >= settings.members_max || self.bytes() + beat.bytes() > MAX_BYTES {
            return Err(GroupError::GroupFull);
        }
        Ok(())
    }

    /// Finds the member, or makes it; whether it is one that joins.
    fn admit(
        &mut self,
        beat: &ConsumerBeat,
        wishes: &Wishes,
        around: Around<'_>,
    ) -> Result<bool, GroupError> {
        let joins = beat.epoch == JOINS;
        let present = beat.instance.as_ref().map(|name| self.instances.get(name));
        match present {
            Some(Some(holder)) if *holder != beat.member => {
                let holder = holder.clone();
                if !joins {
                    return Err(GroupError::FencedInstance);
                }
                self.succeed(&holder, beat, around)?;
                return Ok(true);
            }
            Some(None) if !joins => return Err(GroupError::UnknownMember),
            Some(_) | None => {}
        }
        let Some(member) = self.members.get(&beat.member) else {
            if !joins {
                return Err(GroupError::UnknownMember);
            }
            if beat.topics.is_none() && !matches!(wishes.regex, Wish::Now(Some(_))) {
                return Err(GroupError::InvalidRequest("it subscribes to nothing"));
            }
            let member = Member::new(beat, around.now + around.settings.consumer_session);
            self.members.insert(beat.member.clone(), member);
            if let Some(instance) = &beat.instance {
                self.instances.insert(instance.clone(), beat.member.clone());
            }
            return Ok(true);
        };
        // A name is said once; later it may be left out.
        if beat.instance.is_some() && member.instance != beat.instance {
            return Err(GroupError::FencedInstance);
        }
        if !joins {
            member.check_epoch(beat)?;
        }
        Ok(joins)
    }

    /// A named member comes back under another id, and goes on with what it had.
    fn succeed(
        &mut self,
        holder: &str,
        beat: &ConsumerBeat,
        around: Around<'_>,
    ) -> Result<(), GroupError> {
        let left = self.members.get(holder);
        if left.is_none_or(|left| left.epoch != LEAVES_TO_RETURN) {
            return Err(GroupError::UnreleasedInstance);
        }
        let Some(old) = self.members.remove(holder) else {
            return Err(GroupError::UnknownMember);
        };
        let mut member = Member::new(beat, around.now + around.settings.consumer_session);
        member.inherit(old);
        self.members.insert(beat.member.clone(), member);
        if let Some(instance) = &beat.instance {
            self.instances.insert(instance.clone(), beat.member.clone());
        }
        self.changed();
        Ok(())
    }

    /// What a member wants now; whether that is something else than before.
    fn take_wishes(
        &mut self,
        beat: &ConsumerBeat,
        wishes: Wishes,
        around: Around<'_>,
    ) -> Result<bool, GroupError> {
        let Some(member) = self.members.get_mut(&beat.member) else {
            return Err(GroupError::UnknownMember);
        };
        member.heard(around.now + around.settings.consumer_session);
        let mut differs = member.is_new();
        if let Some(topics) = &beat.topics {
            let topics: BTreeSet<String> = topics.iter().cloned().collect();
            differs |= topics != member.topics;
            member.topics = topics;
        }
        if let Wish::Now(regex) = wishes.regex {
            differs |= regex != member.regex;
            member.regex = regex;
        }
        if let Wish::Now(assignor) = wishes.assignor {
            differs |= assignor != member.assignor;
            member.assignor = assignor;
        }
        if let Some(timeout) = beat.rebalance_timeout {
            member.rebalance_timeout = timeout;
        }
        Ok(differs)
    }

    /// A new group epoch with new targets, if members, wishes or topics have changed.
    fn retarget(&mut self, wants_changed: bool, catalogue: &Catalogue) {
        let seen = self.seen.replace(catalogue.version);
        if !wants_changed && seen == self.seen {
            return;
        }
        let wishes = self.members.values();
        let wishes: Vec<BTreeSet<TopicId>> = wishes.map(|m| m.wanted(catalogue)).collect();
        let wanted: BTreeSet<TopicId> = wishes.iter().flatten().copied().collect();
        let sizes = catalogue.topics.values();
        let sizes: Sizes = sizes
            .filter(|(id, _)| wanted.contains(id))
            .copied()
            .collect();
        if !wants_changed && sizes == self.sizes {
            return;
        }
        self.assignor = self.preferred();
        let targets = {
            let members = self.members.values().zip(&wishes);
            let members = members.map(|(member, topics)| Taker {
                topics,
                before: &member.target,
            });
            let members: Vec<Taker<'_>> = members.collect();
            self.assignor.assign(&sizes, &members)
        };
        for (member, target) in self.members.values_mut().zip(targets) {
            member.target = target;
        }
        self.sizes = sizes;
        self.epoch += 1;
        self.changed();
    }

    /// The assignor that most members ask for.
    fn preferred(&self) -> Assignor {
        let votes = |assignor| {
            let members = self.members.values();
            members.filter(|m| m.assignor == Some(assignor)).count()
        };
        let (uniform, range) = (votes(Assignor::Uniform), votes(Assignor::Range));
        if range > uniform {
            Assignor::Range
        } else {
            Assignor::Uniform
        }
    }

    fn leave(&mut self, beat: &ConsumerBeat, around: Around<'_>) -> Result<Given, GroupError> {
        let member = self.members.get(&beat.member);
        let Some(member) = member else {
            let named = beat.instance.as_ref();
            let fenced = named.is_some_and(|name| self.instances.contains_key(name));
            return Err(if fenced {
                GroupError::FencedInstance
            } else {
                GroupError::UnknownMember
            });
        };
        let stays = beat.epoch == LEAVES_TO_RETURN;
        let same = beat.instance.is_none() || member.instance == beat.instance;
        if stays && (member.instance.is_none() || !same) {
            return Err(GroupError::InvalidRequest("only a named member can return"));
        }
        if stays {
            if let Some(member) = self.members.get_mut(&beat.member) {
                member.away();
            }
            self.changed();
        } else {
            self.forget(&beat.member);
            self.retarget(true, around.catalogue);
        }
        Ok(Given {
            member: beat.member.clone(),
            epoch: beat.epoch,
            heartbeat: around.settings.consumer_heartbeat,
            assigned: None,
        })
    }

    fn forget(&mut self, id: &str) {
        let Some(member) = self.members.remove(id) else {
            return;
        };
        if let Some(instance) = member.instance
            && self.instances.get(&instance).is_some_and(|of| of == id)
        {
            self.instances.remove(&instance);
        }
    }

    /// Lets go of who was not heard from, or did not give up in time what it was told to.
    pub(super) fn expire(&mut self, around: Around<'_>) {
        let over = self.members.iter().filter(|(_, m)| m.due() <= around.now);
        let over: Vec<String> = over.map(|(id, _)| id.clone()).collect();
        if over.is_empty() {
            return;
        }
        for id in &over {
            self.forget(id);
        }
        self.retarget(true, around.catalogue);
    }

    /// Whether the asker may commit or fetch offsets as of its epoch.
    pub(super) fn check_epoch(&self, member: &str, epoch: i32) -> Result<(), GroupError> {
        let member = self.members.get(member).ok_or(GroupError::UnknownMember)?;
        if member.epoch == epoch {
            Ok(())
        } else {
            Err(GroupError::StaleEpoch)
        }
    }

    pub(super) fn state(&self) -> GroupState {
        if self.members.is_empty() {
            GroupState::Empty
        } else if self.members.values().all(|m| m.is_settled(self.epoch)) {
            GroupState::Stable
        } else {
            GroupState::Reconciling
        }
    }

    /// Topics that some member wants, by name.
    pub(super) fn subscribes(&self, topic: &str, catalogue: &Catalogue) -> bool {
        let known = catalogue.topics.get(topic);
        let mut members = self.members.values();
        members.any(|member| {
            member.topics.contains(topic)
                || known.is_some_and(|(id, _)| member.wanted(catalogue).contains(id))
        })
    }

    pub(super) fn describe(&self, group: &str) -> ConsumerDescription {
        let members = self.members.iter().map(|(id, member)| DescribedConsumer {
            member: id.clone(),
            instance: member.instance.clone(),
            rack: member.rack.clone(),
            epoch: member.epoch,
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            topics: member.topics.iter().cloned().collect(),
            regex: member.regex.as_ref().map(|regex| regex.text().to_owned()),
            assigned: member.assigned.iter().copied().collect(),
            target: member.target.iter().copied().collect(),
        });
        ConsumerDescription {
            group: group.to_owned(),
            state: self.state(),
            epoch: self.epoch,
            assignor: self.assignor.name(),
            members: members.collect(),
        }
    }
}

fn parts_of(stored: &[TopicParts]) -> BTreeSet<Part> {
    let each = stored.iter().flat_map(|parts| {
        let topic = TopicId::from_wire(&parts.topic_id).ok();
        topic
            .into_iter()
            .flat_map(|topic| parts.partitions.iter().map(move |index| (topic, *index)))
    });
    each.collect()
}

fn stored_parts(parts: &BTreeSet<Part>) -> Vec<TopicParts> {
    let mut by_topic: BTreeMap<TopicId, Vec<u32>> = BTreeMap::new();
    for (topic, index) in parts {
        by_topic.entry(*topic).or_default().push(*index);
    }
    let each = by_topic.into_iter().map(|(topic, partitions)| TopicParts {
        topic_id: topic.to_wire(),
        partitions,
    });
    each.collect()
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
