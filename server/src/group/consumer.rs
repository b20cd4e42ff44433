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
mod patterns;
mod reconcile;
mod sight;
mod size;
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
use members::Member;
pub(super) use members::viewer_len;
use patterns::{Patterns, Wanted};
pub(super) use sight::Sight;
use size::{MAX_ASKED, MAX_STORED, Size};

/// The epoch a member joins with.
const JOINS: i32 = 0;
/// It leaves.
const LEAVES: i32 = -1;
/// A named member leaves, to come back.
const LEAVES_TO_RETURN: i32 = -2;

/// The topics of the cluster that consumers may subscribe to, and who may know of which.
#[derive(Debug, Default)]
pub(super) struct Catalogue {
    pub(super) version: u64,
    pub(super) topics: BTreeMap<String, (TopicId, u32)>,
    pub(super) sight: Sight,
}

/// What a call on a group may use.
#[derive(Clone, Copy)]
pub(super) struct Around<'a> {
    pub(super) now: Instant,
    pub(super) settings: &'a Settings,
    pub(super) catalogue: &'a Arc<Catalogue>,
    /// Bytes by which the group may grow in memory, because of all the others.
    pub(super) room: usize,
}

/// A wish that a member may leave as it was.
enum Wish<T> {
    AsBefore,
    Now(Option<T>),
}

impl<T: PartialEq> Wish<T> {
    fn differs(&self, from: Option<&T>) -> bool {
        match self {
            Self::AsBefore => false,
            Self::Now(wish) => wish.as_ref() != from,
        }
    }
}

/// What a member says that it wants.
struct Wishes {
    topics: Option<BTreeSet<String>>,
    regex: Wish<String>,
    assignor: Wish<Assignor>,
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
            Some(text) => Wish::Now(Some(text.to_owned())),
        };
        let topics = beat.topics.as_ref();
        Ok(Self {
            topics: topics.map(|topics| topics.iter().cloned().collect()),
            regex,
            assignor,
        })
    }

    /// Whether other topics are wanted than before. Another user may know of others.
    fn moves(&self, member: &Member, beat: &ConsumerBeat) -> bool {
        let topics = self.topics.as_ref();
        topics.is_some_and(|topics| *topics != member.topics)
            || self.regex.differs(member.regex.as_ref())
            || member.regex.is_some() && member.viewer != beat.viewer
    }

    /// The pattern that is wanted from now on.
    fn regex<'a>(&'a self, before: Option<&'a Member>) -> Option<&'a str> {
        match &self.regex {
            Wish::AsBefore => before.and_then(|member| member.regex.as_deref()),
            Wish::Now(regex) => regex.as_deref(),
        }
    }
}

/// Who it is that speaks.
enum Seat {
    New,
    Present,
    /// A named member that was away.
    Returns,
    /// One that bears the name of this member, which is away.
    Inherits(String),
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
    patterns: Patterns,
    /// What it takes, or will have come to when all have their targets.
    size: Size,
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
            patterns: Patterns::default(),
            size: Size::of(0, 0, &Sizes::new()),
            seen: None,
            version: 0,
            committed: 0,
        }
    }

    /// Its versions come after this one, which another group of its name may have come to.
    pub(super) fn counting_from(self, version: u64) -> Self {
        Self {
            version,
            committed: version,
            ..self
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
        group.measure();
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

    /// What it takes in memory, about.
    pub(super) fn bytes(&self) -> usize {
        self.size.memory
    }

    pub(super) fn version(&self) -> u64 {
        self.version
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
                let seat = self.seat(beat, &wishes)?;
                let used = self.members.values().filter_map(Member::pattern);
                self.patterns.refresh(used.clone(), around.catalogue);
                let before = match &seat {
                    Seat::Inherits(holder) => self.members.get(holder),
                    Seat::New | Seat::Present | Seat::Returns => self.members.get(&beat.member),
                };
                if let Some(text) = wishes.regex(before) {
                    let wanted = (text, beat.viewer.as_deref());
                    self.patterns.learn(wanted, used, around.catalogue)?;
                }
                let differs = self.check_room(&seat, beat, &wishes, around)?;
                self.take_seat(seat, beat, around);
                self.take_wishes(beat, wishes, around);
                self.retarget(differs, around.catalogue);
                Ok(self.reconcile(beat, beat.epoch == JOINS, around))
            }
            _ => Err(GroupError::InvalidRequest("there is no such member epoch")),
        }
    }

    /// Who it is that speaks, if it may.
    fn seat(&self, beat: &ConsumerBeat, wishes: &Wishes) -> Result<Seat, GroupError> {
        let joins = beat.epoch == JOINS;
        let present = self.members.get(&beat.member);
        // A name is said once; later it may be left out.
        if beat.instance.is_some() && present.is_some_and(|member| member.instance != beat.instance)
        {
            return Err(GroupError::FencedInstance);
        }
        let holder = beat.instance.as_ref().map(|name| self.instances.get(name));
        match holder {
            Some(Some(holder)) if *holder != beat.member => {
                if !joins {
                    return Err(GroupError::FencedInstance);
                }
                if !self.members.get(holder).is_some_and(Member::is_away) {
                    return Err(GroupError::UnreleasedInstance);
                }
                return Ok(Seat::Inherits(holder.clone()));
            }
            Some(None) if !joins => return Err(GroupError::UnknownMember),
            Some(_) | None => {}
        }
        let Some(member) = present else {
            if !joins {
                return Err(GroupError::UnknownMember);
            }
            if beat.topics.is_none() && !matches!(wishes.regex, Wish::Now(Some(_))) {
                return Err(GroupError::InvalidRequest("it subscribes to nothing"));
            }
            return Ok(Seat::New);
        };
        if !joins {
            member.check_epoch(beat)?;
        }
        Ok(if joins && member.is_away() {
            Seat::Returns
        } else {
            Seat::Present
        })
    }

    /// Whether something else is wanted than before; an error if that would be too much. Who asks
    /// for no more than it has is always let in.
    fn check_room(
        &self,
        seat: &Seat,
        beat: &ConsumerBeat,
        wishes: &Wishes,
        around: Around<'_>,
    ) -> Result<bool, GroupError> {
        let (before, others) = match seat {
            Seat::New => (None, beat.member.as_str()),
            Seat::Present | Seat::Returns => (self.members.get(&beat.member), &*beat.member),
            Seat::Inherits(holder) => (self.members.get(holder), holder.as_str()),
        };
        if before.is_none() && self.members.len() >= around.settings.members_max {
            return Err(GroupError::GroupFull);
        }
        let moves = before.is_none_or(|member| wishes.moves(member, beat));
        if moves || matches!(seat, Seat::Inherits(_)) {
            let size = self.size_with(beat, wishes, before, others, around.catalogue);
            if size.stored > MAX_ASKED.max(self.size.stored) {
                return Err(GroupError::GroupFull);
            }
            if size.memory > self.size.memory.saturating_add(around.room) {
                return Err(GroupError::Unavailable(
                    "the partition has no room for more",
                ));
            }
        }
        let votes = before.and_then(|member| member.assignor);
        Ok(moves || wishes.assignor.differs(votes.as_ref()))
    }

    /// What it would take with these wishes of a member, in place of `left_out`.
    fn size_with(
        &self,
        beat: &ConsumerBeat,
        wishes: &Wishes,
        before: Option<&Member>,
        left_out: &str,
        catalogue: &Catalogue,
    ) -> Size {
        let none = BTreeSet::new();
        let topics = wishes.topics.as_ref();
        let topics = topics
            .or(before.map(|member| &member.topics))
            .unwrap_or(&none);
        let regex = wishes.regex(before);
        let others = self.members.iter().filter(|(id, _)| *id != left_out);
        let texts = others.clone().map(|(id, member)| member.texts(id));
        let texts = texts.sum::<usize>() + beat.names() + members::wishes(topics, regex);
        let names = others.clone().flat_map(|(_, member)| &member.topics);
        let regexes = others
            .clone()
            .filter_map(|(_, member)| Member::pattern(member));
        let own = regex.map(|text| (text, beat.viewer.as_deref()));
        let regexes: BTreeSet<Wanted<'_>> = regexes.chain(own).collect();
        let named = names
            .chain(topics)
            .filter_map(|name| catalogue.topics.get(name));
        let matched = regexes
            .iter()
            .flat_map(|wanted| self.patterns.matching(*wanted, catalogue));
        let wanted: BTreeSet<TopicId> = named.map(|(id, _)| *id).chain(matched.copied()).collect();
        let sizes = sizes_of(&wanted, catalogue);
        let size = Size::of(texts, others.count() + 1, &sizes);
        size.beside(&sizes, self.members.values())
    }

    fn take_seat(&mut self, seat: Seat, beat: &ConsumerBeat, around: Around<'_>) {
        let until = around.now + around.settings.consumer_session;
        let member = match seat {
            Seat::Present => return,
            Seat::Returns => {
                if let Some(member) = self.members.get_mut(&beat.member) {
                    member.returned();
                }
                self.changed();
                return;
            }
            Seat::New => Member::new(beat, until),
            Seat::Inherits(holder) => {
                let mut member = Member::new(beat, until);
                if let Some(old) = self.members.remove(&holder) {
                    member.inherit(old);
                }
                member
            }
        };
        self.members.insert(beat.member.clone(), member);
        if let Some(instance) = &beat.instance {
            self.instances.insert(instance.clone(), beat.member.clone());
        }
        self.measure();
        self.changed();
    }

    fn take_wishes(&mut self, beat: &ConsumerBeat, wishes: Wishes, around: Around<'_>) {
        let Some(member) = self.members.get_mut(&beat.member) else {
            return;
        };
        member.heard(around.now + around.settings.consumer_session);
        if let Some(topics) = wishes.topics {
            member.topics = topics;
        }
        if let Wish::Now(regex) = wishes.regex {
            member.regex = regex;
        }
        // Who names its topics has been held against the rules.
        let viewer = member.regex.is_some().then(|| beat.viewer.clone());
        let viewer = viewer.flatten();
        if member.viewer != viewer {
            member.viewer = viewer;
            self.version += 1;
        }
        if let Wish::Now(assignor) = wishes.assignor {
            member.assignor = assignor;
        }
        if let Some(timeout) = beat.rebalance_timeout
            && timeout != member.rebalance_timeout
        {
            member.rebalance_timeout = timeout;
            self.changed();
        }
    }

    /// Keeps what it takes, and may come to take, up to date.
    fn measure(&mut self) {
        let texts = self.members.iter().map(|(id, member)| member.texts(id));
        let size = Size::of(texts.sum(), self.members.len(), &self.sizes);
        self.size = size.beside(&self.sizes, self.members.values());
        self.size.memory += self.patterns.bytes();
    }

    /// A new group epoch with new targets, if members, wishes or topics have changed.
    fn retarget(&mut self, wants_changed: bool, catalogue: &Catalogue) {
        let seen = self.seen.replace(catalogue.version);
        if !wants_changed && seen == self.seen {
            return;
        }
        let used = self.members.values().filter_map(Member::pattern);
        self.patterns.refresh(used, catalogue);
        let moved = self.patterns.take_moved();
        let members = self.members.values();
        let wishes = members.map(|member| member.wanted(&self.patterns, catalogue));
        let wishes: Vec<BTreeSet<TopicId>> = wishes.collect();
        let wanted: BTreeSet<TopicId> = wishes.iter().flatten().copied().collect();
        let sizes = self.bounded(sizes_of(&wanted, catalogue));
        if !wants_changed && !moved && sizes == self.sizes {
            return;
        }
        let assignor = self.preferred();
        let targets = {
            let members = self.members.values().zip(&wishes);
            let members = members.map(|(member, topics)| Taker {
                topics,
                before: &member.target,
            });
            let members: Vec<Taker<'_>> = members.collect();
            assignor.assign(&sizes, &members)
        };
        let before = self.members.values().map(|member| &member.target);
        if !wants_changed && sizes == self.sizes && before.eq(&targets) {
            return;
        }
        self.assignor = assignor;
        for (member, target) in self.members.values_mut().zip(targets) {
            member.target = target;
        }
        self.sizes = sizes;
        self.epoch += 1;
        let used = self.members.values().filter_map(Member::pattern);
        self.patterns.keep(used, catalogue);
        self.measure();
        self.changed();
    }

    /// What of these topics can be assigned and still be stored: if they have grown too large,
    /// what there was of them before.
    fn bounded(&self, sizes: Sizes) -> Sizes {
        let texts = self.members.iter().map(|(id, member)| member.texts(id));
        let size = Size::of(texts.sum(), self.members.len(), &sizes);
        if size.beside(&sizes, self.members.values()).stored <= MAX_STORED {
            return sizes;
        }
        let both = sizes.into_iter().filter_map(|(topic, count)| {
            let before = self.sizes.get(&topic)?;
            Some((topic, count.min(*before)))
        });
        both.collect()
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
            if let Some(member) = self.members.get_mut(&beat.member)
                && !member.is_away()
            {
                member.away();
                self.changed();
            }
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

    /// Whether the asker may commit or fetch these offsets as of its epoch. It may be behind what
    /// it has been told by one step, or what it was to be told got lost: that is no harm as long as
    /// it still has the partitions.
    pub(super) fn check_epoch(
        &self,
        member: &str,
        epoch: i32,
        mut parts: impl Iterator<Item = Option<Part>>,
    ) -> Result<(), GroupError> {
        let member = self.members.get(member).ok_or(GroupError::UnknownMember)?;
        let has = |part: Option<Part>| part.is_some_and(|part| member.assigned.contains(&part));
        let behind = epoch > JOINS && epoch == member.previous_epoch;
        if epoch == member.epoch || (behind && parts.all(has)) {
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
        let known = catalogue.topics.contains_key(topic);
        let mut members = self.members.values();
        if members.any(|member| member.topics.contains(topic)) {
            return true;
        }
        let regexes = self.members.values().filter_map(Member::pattern);
        let regexes: BTreeSet<Wanted<'_>> = regexes.collect();
        let sight = &catalogue.sight;
        let sees = |member| sight.sees(&sight.viewer(member), topic);
        let mut regexes = regexes.into_iter();
        known && regexes.any(|(text, member)| sees(member) && patterns::matches(text, topic))
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
            regex: member.regex.clone(),
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

/// How many partitions each of these topics has.
fn sizes_of(wanted: &BTreeSet<TopicId>, catalogue: &Catalogue) -> Sizes {
    let all = catalogue.topics.values();
    all.filter(|(id, _)| wanted.contains(id)).copied().collect()
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
