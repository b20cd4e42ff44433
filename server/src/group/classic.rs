//! One group in its coordinator's memory: the classic protocol, in which the members' leader
//! assigns (Kafka's `GroupCoordinator`).
//!
//! ```text
//!            join                all joined, or time over            leader's sync, committed
//!   Empty ─────────> Preparing ────────────────────────> Completing ─────────────────> Stable
//!     ^                 │  ^                                 │                           │
//!     └── nobody left ──┘  └───── join, leave, expiry ───────┴───────────────────────────┘
//! ```
//!
//! Pure but for the answers it sends: time comes with each call, what must survive goes out as
//! [`Store`]s. While a member waits for an answer its session does not run, except for one that
//! was never answered.

mod members;
mod rebalance;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::oneshot;
use tokio::time::Instant;
use trilog_storage::env::Entropy;

use super::GroupError;
use super::types::{
    DescribedMember, Description, GroupKind, GroupState, JoinRequest, Joined, JoinedMember,
    Leaving, MemberRef, Protocol, Settings, SyncRequest, Synced,
};
use crate::view::group::Membership;
use members::Member;
pub(super) use members::{ID_SUFFIX, new_id};

pub(super) type JoinReply = oneshot::Sender<Result<Joined, GroupError>>;
pub(super) type SyncReply = oneshot::Sender<Result<Synced, GroupError>>;

/// What members of one group may say all together, in bytes: it has to fit an entry.
const MAX_METADATA_BYTES: usize = 2 << 20;

/// What a call on a group may use.
pub(super) struct Ctx<'a> {
    pub(super) now: Instant,
    pub(super) settings: &'a Settings,
    pub(super) entropy: &'a Entropy,
    /// Bytes by which the group may grow, because of all the others.
    pub(super) room: usize,
    /// Filled with what is to be committed, in order.
    pub(super) stores: &'a mut Vec<Store>,
}

/// Members that are to be committed.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) membership: Membership,
    pub(super) then: Then,
}

/// What is done once they are.
#[derive(Debug)]
pub(super) enum Then {
    Nothing,
    /// The members of the generation are given these.
    Assign {
        generation: i32,
        assignments: BTreeMap<String, Bytes>,
    },
    /// A member that came back under its instance id is answered.
    Answer {
        member: String,
        /// Whom it is told to be the leader, if it cannot be told not to assign.
        leader: Option<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Empty,
    Preparing {
        deadline: Instant,
        /// Of a group that was empty: how much longer newcomers may be waited for.
        initial: Option<Duration>,
    },
    Completing {
        /// Who has not synced by then is out.
        deadline: Instant,
    },
    Stable {
        deadline: Option<Instant>,
    },
}

/// See the module's text.
#[derive(Debug)]
pub(super) struct Group {
    id: String,
    phase: Phase,
    protocol_type: String,
    generation: i32,
    protocol: String,
    leader: Option<String>,
    members: BTreeMap<String, Member>,
    /// Members by their instance ids.
    instances: BTreeMap<String, String>,
    /// Ids that were given out and have not joined yet, and until when they are kept.
    pending: BTreeMap<String, Instant>,
    /// Members that have not synced in this generation.
    unsynced: BTreeSet<String>,
    newcomers: bool,
    /// That it is empty could not be committed: when that is tried again. Until then the log has
    /// members that are gone.
    again: Option<Instant>,
}

impl Group {
    pub(super) fn new(id: &str) -> Self {
        Self {
            id: id.to_owned(),
            phase: Phase::Empty,
            protocol_type: String::new(),
            generation: 0,
            protocol: String::new(),
            leader: None,
            members: BTreeMap::new(),
            instances: BTreeMap::new(),
            pending: BTreeMap::new(),
            unsynced: BTreeSet::new(),
            newcomers: false,
            again: None,
        }
    }

    /// A group as it was last committed; its members' sessions begin now.
    pub(super) fn load(id: &str, stored: &Membership, now: Instant) -> Self {
        let mut group = Self::new(id);
        group.protocol_type.clone_from(&stored.protocol_type);
        group.generation = stored.generation;
        group.protocol.clone_from(&stored.protocol);
        if !stored.members.is_empty() {
            group.phase = Phase::Stable { deadline: None };
            group.leader = Some(stored.leader.clone());
        }
        for record in &stored.members {
            let member = Member::load(record, &stored.protocol, now);
            if let Some(instance) = &member.instance {
                group.instances.insert(instance.clone(), record.id.clone());
            }
            group.members.insert(record.id.clone(), member);
        }
        group
    }

    /// As it would be committed now, with these assignments.
    fn membership(&self, assignments: &BTreeMap<String, Bytes>) -> Membership {
        let members = self.members.iter().map(|(id, member)| {
            let assignment = assignments.get(id).cloned().unwrap_or_default();
            member.record(id, &self.protocol, assignment)
        });
        Membership {
            protocol_type: self.protocol_type.clone(),
            generation: self.generation,
            protocol: self.protocol.clone(),
            leader: self.leader.clone().unwrap_or_default(),
            members: members.collect(),
        }
    }

    pub(super) fn state(&self) -> GroupState {
        match self.phase {
            Phase::Empty => GroupState::Empty,
            Phase::Preparing { .. } => GroupState::PreparingRebalance,
            Phase::Completing { .. } => GroupState::CompletingRebalance,
            Phase::Stable { .. } => GroupState::Stable,
        }
    }

    pub(super) fn protocol_type(&self) -> &str {
        &self.protocol_type
    }

    pub(super) fn member_count(&self) -> usize {
        self.members.len()
    }

    /// Whether it need not be in memory: all there is of it is committed.
    pub(super) fn is_idle(&self) -> bool {
        self.phase == Phase::Empty && self.pending.is_empty() && self.again.is_none()
    }

    /// Bytes that its members have said.
    pub(super) fn bytes(&self) -> usize {
        let pending: usize = self.pending.keys().map(|id| id.len() + 64).sum();
        let members = self.members.iter();
        pending + members.map(|(id, member)| member.bytes(id)).sum::<usize>()
    }

    /// When something happens by itself next.
    pub(super) fn due(&self) -> Option<Instant> {
        let phase = match self.phase {
            Phase::Empty => self.again,
            Phase::Preparing { deadline, .. } | Phase::Completing { deadline } => Some(deadline),
            Phase::Stable { deadline } => deadline,
        };
        let members = self.members.values().filter_map(Member::due);
        let pending = self.pending.values().copied();
        members.chain(pending).chain(phase).min()
    }

    /// What members subscribe to, each in its own words; of a group that is about to agree on a
    /// protocol, under every one.
    pub(super) fn subscriptions(&self) -> impl Iterator<Item = Bytes> {
        let agreed = !matches!(self.phase, Phase::Preparing { .. });
        let members = self.members.values();
        let said = members.flat_map(|member| &member.protocols);
        let said = said.filter(move |protocol| !agreed || protocol.name == self.protocol);
        said.map(|protocol| protocol.metadata.clone())
    }

    pub(super) fn describe(&self) -> Description {
        let stable = self.state() == GroupState::Stable;
        let members = self.members.iter().map(|(id, member)| DescribedMember {
            member: id.clone(),
            instance: member.instance.clone(),
            client_id: member.client_id.clone(),
            client_host: member.client_host.clone(),
            metadata: if stable {
                member.metadata(&self.protocol)
            } else {
                Bytes::new()
            },
            assignment: if stable {
                member.assignment.clone()
            } else {
                Bytes::new()
            },
        });
        Description {
            group: self.id.clone(),
            kind: GroupKind::Classic,
            state: self.state(),
            protocol_type: self.protocol_type.clone(),
            protocol: if stable {
                self.protocol.clone()
            } else {
                String::new()
            },
            generation: self.generation,
            members: members.collect(),
        }
    }

    /// A member joins, or joins again; answered when the rebalance completes.
    pub(super) fn join(&mut self, request: JoinRequest, reply: JoinReply, ctx: &mut Ctx<'_>) {
        match self.admit(&request, ctx) {
            Err(error) => drop(reply.send(Err(error))),
            Ok(()) if request.member.is_empty() => self.join_new(request, reply, ctx),
            Ok(()) => self.join_known(request, reply, ctx),
        }
        self.try_complete(ctx);
    }

    fn admit(&mut self, request: &JoinRequest, ctx: &Ctx<'_>) -> Result<(), GroupError> {
        let most = ctx.settings.members_max;
        let present = self.members.get(&request.member);
        let accepted = match self.phase {
            Phase::Empty => true,
            Phase::Preparing { .. } => {
                let waiting = self.members.values().filter(|m| m.joining.is_some());
                present.is_some_and(|member| member.joining.is_some()) || waiting.count() < most
            }
            Phase::Completing { .. } | Phase::Stable { .. } => {
                present.is_some() || self.members.len() < most
            }
        };
        // Ids that were given out count, so that they are bounded too.
        let unknown = request.member.is_empty() && self.pending.len() >= most;
        if !accepted || unknown {
            self.pending.remove(&request.member);
            return Err(GroupError::GroupFull);
        }
        self.check_size(request, ctx.room)?;
        if !self.supports(&request.protocol_type, &request.protocols) {
            return Err(GroupError::InconsistentProtocol);
        }
        Ok(())
    }

    /// Who says no more than before is let in, however much there is by now.
    fn check_size(&self, request: &JoinRequest, room: usize) -> Result<(), GroupError> {
        let instance = request.instance.as_ref();
        let replaced = instance.and_then(|instance| self.instances.get(instance));
        let id = match request.member.as_str() {
            "" => replaced.map_or("", String::as_str),
            member => member,
        };
        let own = self.members.get(id).map_or(0, |member| member.bytes(id));
        let asked = members::asked(request);
        if asked <= own {
            return Ok(());
        }
        if self.bytes() - own + asked > MAX_METADATA_BYTES {
            return Err(GroupError::GroupFull);
        }
        if asked - own > room {
            return Err(GroupError::Unavailable(
                "the partition has no room for more",
            ));
        }
        Ok(())
    }

    fn supports(&self, protocol_type: &str, protocols: &[Protocol]) -> bool {
        if self.members.is_empty() {
            return !protocol_type.is_empty() && !protocols.is_empty();
        }
        let by_all = |protocol: &Protocol| {
            let mut members = self.members.values();
            members.all(|member| member.supports(&protocol.name))
        };
        self.protocol_type == protocol_type && protocols.iter().any(by_all)
    }

    fn join_new(&mut self, request: JoinRequest, reply: JoinReply, ctx: &mut Ctx<'_>) {
        let whose = request.instance.as_ref().unwrap_or(&request.client_id);
        let id = new_id(whose, ctx.entropy);
        match &request.instance {
            Some(instance) => match self.instances.get(instance).cloned() {
                Some(old) => self.replace(&old, id, request, reply, ctx),
                None => self.add(id, request, reply, ctx),
            },
            None if request.require_known_member => {
                let until = ctx.now + request.session_timeout;
                self.pending.insert(id.clone(), until);
                drop(reply.send(Err(GroupError::MemberIdRequired { member: id })));
            }
            None => self.add(id, request, reply, ctx),
        }
    }

    fn join_known(&mut self, request: JoinRequest, reply: JoinReply, ctx: &mut Ctx<'_>) {
        let id = request.member.clone();
        if request.instance.is_none() && self.pending.contains_key(&id) {
            self.add(id, request, reply, ctx);
            return;
        }
        if let Err(error) = self.check_member(&id, request.instance.as_deref()) {
            drop(reply.send(Err(error)));
            return;
        }
        let same = self
            .members
            .get(&id)
            .is_some_and(|member| member.protocols == request.protocols);
        let leads = self.leader.as_deref() == Some(id.as_str());
        let answer = match self.phase {
            Phase::Empty => Some(Err(GroupError::UnknownMember)),
            // Its answer was lost, it seems: the generation is the one it has a part in.
            Phase::Completing { .. } if same => Some(Ok(self.joined(&id, false))),
            // A leader that joins again wants to assign anew.
            Phase::Stable { .. } if same && !leads => Some(Ok(self.joined(&id, false))),
            Phase::Preparing { .. } | Phase::Completing { .. } | Phase::Stable { .. } => None,
        };
        if let Some(answer) = answer {
            drop(reply.send(answer));
            return;
        }
        if let Some(member) = self.members.get_mut(&id) {
            member.update(request, reply);
        }
        self.rebalance(ctx);
    }

    /// What a member is told of the generation.
    fn joined(&self, id: &str, skip_assignment: bool) -> Joined {
        let leads = self.leader.as_deref() == Some(id);
        let all = self.members.iter().map(|(id, member)| JoinedMember {
            member: id.clone(),
            instance: member.instance.clone(),
            metadata: member.metadata(&self.protocol),
        });
        Joined {
            generation: self.generation,
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            leader: self.leader.clone().unwrap_or_default(),
            member: id.to_owned(),
            skip_assignment,
            members: if leads { all.collect() } else { Vec::new() },
        }
    }

    /// Who asks must be a member, and the newest of its instance.
    fn check_member(&self, id: &str, instance: Option<&str>) -> Result<(), GroupError> {
        if let Some(instance) = instance {
            match self.instances.get(instance) {
                None => return Err(GroupError::UnknownMember),
                Some(present) if present != id => return Err(GroupError::FencedInstance),
                Some(_) => {}
            }
        }
        if self.members.contains_key(id) {
            Ok(())
        } else {
            Err(GroupError::UnknownMember)
        }
    }

    fn check_generation(&self, asks: &MemberRef) -> Result<(), GroupError> {
        self.check_member(&asks.member, asks.instance.as_deref())?;
        if asks.generation == self.generation {
            Ok(())
        } else {
            Err(GroupError::IllegalGeneration)
        }
    }

    /// A member asks for its assignment, and the leader brings all of them; answered when they
    /// are committed.
    pub(super) fn sync(&mut self, request: SyncRequest, reply: SyncReply, ctx: &mut Ctx<'_>) {
        if let Err(error) = self.check_sync(&request) {
            drop(reply.send(Err(error)));
            return;
        }
        let id = request.member.member;
        self.unsynced.remove(&id);
        let synced = self.synced(&id);
        let Some(member) = self.members.get_mut(&id) else {
            return;
        };
        if let Phase::Stable { deadline } = &mut self.phase {
            if self.unsynced.is_empty() {
                *deadline = None;
            }
            member.heard(ctx.now);
            drop(reply.send(Ok(synced)));
            return;
        }
        if let Some(earlier) = member.syncing.replace(reply) {
            drop(earlier.send(Err(GroupError::RebalanceInProgress)));
        }
        if self.leader.as_deref() == Some(id.as_str()) {
            let given: BTreeMap<String, Bytes> = request.assignments.into_iter().collect();
            let membership = self.membership(&given);
            ctx.stores.push(Store {
                membership,
                then: Then::Assign {
                    generation: self.generation,
                    assignments: given,
                },
            });
        }
    }

    fn check_sync(&self, request: &SyncRequest) -> Result<(), GroupError> {
        self.check_generation(&request.member)?;
        let differs = |asked: &Option<String>, ours: &str| {
            asked.as_deref().is_some_and(|asked| asked != ours)
        };
        if differs(&request.protocol_type, &self.protocol_type)
            || differs(&request.protocol, &self.protocol)
        {
            return Err(GroupError::InconsistentProtocol);
        }
        match self.phase {
            Phase::Empty => Err(GroupError::UnknownMember),
            Phase::Preparing { .. } => Err(GroupError::RebalanceInProgress),
            Phase::Completing { .. } | Phase::Stable { .. } => Ok(()),
        }
    }

    fn synced(&self, id: &str) -> Synced {
        let member = self.members.get(id);
        Synced {
            protocol_type: self.protocol_type.clone(),
            protocol: self.protocol.clone(),
            assignment: member.map(|m| m.assignment.clone()).unwrap_or_default(),
        }
    }

    pub(super) fn heartbeat(&mut self, asks: &MemberRef, now: Instant) -> Result<(), GroupError> {
        self.check_generation(asks)?;
        if self.phase == Phase::Empty {
            return Err(GroupError::UnknownMember);
        }
        self.hear(&asks.member, now);
        match self.phase {
            Phase::Preparing { .. } => Err(GroupError::RebalanceInProgress),
            Phase::Empty | Phase::Completing { .. } | Phase::Stable { .. } => Ok(()),
        }
    }

    fn hear(&mut self, id: &str, now: Instant) {
        if let Some(member) = self.members.get_mut(id) {
            member.heard(now);
        }
    }

    /// Whether the asker may commit offsets now.
    pub(super) fn check_commit(
        &mut self,
        asks: &MemberRef,
        transactional: bool,
        now: Instant,
    ) -> Result<(), GroupError> {
        let empty = self.phase == Phase::Empty;
        if asks.generation < 0 && empty {
            return Ok(());
        }
        if asks.generation < 0 && asks.member.is_empty() && asks.instance.is_none() {
            return if transactional {
                Ok(())
            } else {
                Err(GroupError::UnknownMember)
            };
        }
        self.check_generation(asks)?;
        // A producer could not go on after this answer; its offsets are those of the generation.
        if !transactional && matches!(self.phase, Phase::Completing { .. }) {
            return Err(GroupError::RebalanceInProgress);
        }
        self.hear(&asks.member, now);
        Ok(())
    }

    /// A member leaves, or is made to.
    pub(super) fn leave(&mut self, leaving: &Leaving, ctx: &mut Ctx<'_>) -> Result<(), GroupError> {
        let instance = leaving.instance.as_deref();
        if leaving.member.is_empty() {
            let known = instance.and_then(|instance| self.instances.get(instance));
            let id = known.cloned().ok_or(GroupError::UnknownMember)?;
            self.remove(&id, ctx);
        } else if instance.is_none() && self.pending.remove(&leaving.member).is_some() {
            self.try_complete(ctx);
        } else {
            self.check_member(&leaving.member, instance)?;
            self.remove(&leaving.member, ctx);
        }
        Ok(())
    }
}
