//! From one generation to the next, and what time does.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::{GroupError, STORE_AGAIN};
use super::members::Member;
use super::{Ctx, Group, Phase, Store, Then};

/// The shortest time that a group waits for its members: one that is always over would have the
/// coordinator look at it without a pause.
const MIN_REBALANCE: Duration = Duration::from_secs(1);

impl Group {
    /// Begins a rebalance, unless one is already waiting for members.
    pub(super) fn rebalance(&mut self, ctx: &mut Ctx<'_>) {
        if matches!(self.phase, Phase::Preparing { .. }) {
            return;
        }
        if matches!(self.phase, Phase::Completing { .. }) {
            self.give_up_syncs(&GroupError::RebalanceInProgress, ctx.now);
        }
        self.unsynced.clear();
        let timeout = self.rebalance_timeout();
        self.phase = if self.phase == Phase::Empty {
            let delay = ctx.settings.initial_rebalance_delay;
            self.newcomers = false;
            Phase::Preparing {
                deadline: ctx.now + delay,
                initial: Some(timeout.saturating_sub(delay)),
            }
        } else {
            Phase::Preparing {
                deadline: ctx.now + timeout,
                initial: None,
            }
        };
        self.try_complete(ctx);
    }

    /// The longest that any member may take to join again.
    fn rebalance_timeout(&self) -> Duration {
        let timeouts = self.members.values().map(|member| member.rebalance_timeout);
        timeouts.max().unwrap_or_default().max(MIN_REBALANCE)
    }

    fn give_up_syncs(&mut self, error: &GroupError, now: Instant) {
        for member in self.members.values_mut() {
            member.assignment = Bytes::new();
            if let Some(reply) = member.syncing.take() {
                drop(reply.send(Err(error.clone())));
                member.heard(now);
            }
        }
    }

    /// Goes on once all have joined. A group that was empty waits for its time, for more to come.
    pub(super) fn try_complete(&mut self, ctx: &mut Ctx<'_>) {
        let Phase::Preparing { initial: None, .. } = self.phase else {
            return;
        };
        let all = self.members.values().all(|member| member.joining.is_some());
        if all && self.pending.is_empty() {
            self.complete(ctx);
        }
    }

    fn complete(&mut self, ctx: &mut Ctx<'_>) {
        // One with an instance id may come back within its session.
        let absent = |member: &Member| member.joining.is_none() && member.instance.is_none();
        let gone = self.members.iter().filter(|(_, member)| absent(member));
        let gone: Vec<String> = gone.map(|(id, _)| id.clone()).collect();
        for id in gone {
            self.take_out(&id);
        }
        if !self.members.is_empty() && !self.elect() {
            // Nobody is there who could assign. Sessions end, or somebody joins.
            self.phase = Phase::Preparing {
                deadline: ctx.now + self.rebalance_timeout(),
                initial: None,
            };
            return;
        }
        self.generation = self.generation.checked_add(1).unwrap_or(1);
        if self.members.is_empty() {
            self.phase = Phase::Empty;
            self.protocol.clear();
            self.leader = None;
            self.store_empty(ctx);
            return;
        }
        self.protocol = self.select_protocol();
        self.phase = Phase::Completing {
            deadline: ctx.now + self.rebalance_timeout(),
        };
        self.unsynced = self.members.keys().cloned().collect();
        for id in self.unsynced.clone() {
            let joined = self.joined(&id, false);
            if let Some(member) = self.members.get_mut(&id) {
                if let Some(reply) = member.joining.take() {
                    drop(reply.send(Ok(joined)));
                }
                member.fresh = false;
                member.heard(ctx.now);
            }
        }
    }

    fn store_empty(&mut self, ctx: &mut Ctx<'_>) {
        self.again = None;
        ctx.stores.push(Store {
            membership: self.membership(&BTreeMap::new()),
            then: Then::Nothing,
        });
    }

    /// Makes sure that the leader is one that has joined; false if nobody has.
    fn elect(&mut self) -> bool {
        let joined = |id: &String| {
            let member = self.members.get(id);
            member.is_some_and(|member| member.joining.is_some())
        };
        if self.leader.as_ref().is_some_and(joined) {
            return true;
        }
        let Some(heir) = self.members.keys().find(|id| joined(id)).cloned() else {
            return false;
        };
        self.leader = Some(heir);
        true
    }

    /// Of the protocols that all support, the one that most prefer; of several the first by name.
    pub(super) fn select_protocol(&self) -> String {
        let mut votes: BTreeMap<&str, usize> = BTreeMap::new();
        for member in self.members.values() {
            let mut liked = member.protocols.iter().map(|protocol| &*protocol.name);
            let by_all = |name: &&str| self.members.values().all(|m| m.supports(name));
            if let Some(first) = liked.find(by_all) {
                *votes.entry(first).or_default() += 1;
            }
        }
        let most = votes.values().max().copied();
        let mut names = votes.iter();
        let chosen = names.find(|(_, count)| Some(**count) == most);
        chosen
            .map(|(name, _)| (*name).to_owned())
            .unwrap_or_default()
    }

    /// What was to be committed is, or is not.
    pub(in crate::group) fn stored(
        &mut self,
        then: Then,
        outcome: Result<(), GroupError>,
        ctx: &mut Ctx<'_>,
    ) {
        match then {
            Then::Nothing => {
                self.again = outcome.err().map(|_| ctx.now + STORE_AGAIN);
            }
            Then::Assign {
                generation,
                assignments,
            } => {
                // Somebody may have joined meanwhile: then these are no longer anybody's.
                let Phase::Completing { deadline } = self.phase else {
                    return;
                };
                if generation != self.generation {
                    return;
                }
                match outcome {
                    Ok(()) => self.assign(assignments, deadline, ctx.now),
                    Err(error) => {
                        self.give_up_syncs(&error, ctx.now);
                        self.rebalance(ctx);
                    }
                }
            }
            Then::Answer { member, leader } => self.answer(&member, leader, outcome, ctx),
        }
    }

    fn assign(
        &mut self,
        mut assignments: BTreeMap<String, Bytes>,
        deadline: Instant,
        now: Instant,
    ) {
        for (id, member) in &mut self.members {
            member.assignment = assignments.remove(id).unwrap_or_default();
        }
        let ids: Vec<String> = self.members.keys().cloned().collect();
        for id in ids {
            let synced = self.synced(&id);
            if let Some(member) = self.members.get_mut(&id)
                && let Some(reply) = member.syncing.take()
            {
                drop(reply.send(Ok(synced)));
                member.heard(now);
            }
        }
        self.phase = Phase::Stable {
            deadline: (!self.unsynced.is_empty()).then_some(deadline),
        };
    }

    /// Answers a member that came back under its instance id, unless the group has begun to
    /// rebalance: then it has joined like the others.
    fn answer(
        &mut self,
        id: &str,
        leader: Option<String>,
        outcome: Result<(), GroupError>,
        ctx: &mut Ctx<'_>,
    ) {
        if !matches!(self.phase, Phase::Stable { .. }) {
            return;
        }
        let leads = self.leader.as_deref() == Some(id);
        let mut joined = self.joined(id, leads && leader.is_none());
        if let Some(leader) = leader {
            // A client that cannot be told not to assign is told that another leads: a stable
            // group does not hand out what it would bring.
            joined.leader = leader;
            joined.members.clear();
        }
        let failed = outcome.is_err();
        if let Some(member) = self.members.get_mut(id)
            && let Some(reply) = member.joining.take()
        {
            drop(reply.send(outcome.map(|()| joined)));
            member.fresh = false;
            member.heard(ctx.now);
        }
        if failed {
            self.rebalance(ctx);
        }
    }

    /// Does what is due.
    pub(in crate::group) fn tick(&mut self, ctx: &mut Ctx<'_>) {
        let now = ctx.now;
        self.pending.retain(|_, until| *until > now);
        self.try_complete(ctx);
        let silent = self.members.iter();
        let silent = silent.filter(|(_, member)| member.due().is_some_and(|due| due <= now));
        let silent: Vec<String> = silent.map(|(id, _)| id.clone()).collect();
        for id in silent {
            // Others' leaving may have answered it meanwhile.
            let due = self.members.get(&id).and_then(Member::due);
            if due.is_some_and(|due| due <= now) {
                self.remove(&id, ctx);
            }
        }
        match self.phase {
            Phase::Preparing { deadline, initial } if deadline <= now => {
                self.waited(initial, ctx);
            }
            Phase::Completing { deadline }
            | Phase::Stable {
                deadline: Some(deadline),
            } if deadline <= now => self.expire_syncs(ctx),
            Phase::Empty if self.again.is_some_and(|again| again <= now) => self.store_empty(ctx),
            Phase::Empty
            | Phase::Preparing { .. }
            | Phase::Completing { .. }
            | Phase::Stable { .. } => {}
        }
    }

    /// The time for joining is over; for a group that was empty it is extended while others
    /// keep coming.
    fn waited(&mut self, initial: Option<Duration>, ctx: &mut Ctx<'_>) {
        let left = initial.unwrap_or_default();
        if self.newcomers && !left.is_zero() {
            self.newcomers = false;
            let delay = ctx.settings.initial_rebalance_delay.min(left);
            self.phase = Phase::Preparing {
                deadline: ctx.now + delay,
                initial: Some(left.saturating_sub(delay)),
            };
        } else {
            self.complete(ctx);
        }
    }

    /// Who joined and never synced is out.
    fn expire_syncs(&mut self, ctx: &mut Ctx<'_>) {
        for id in std::mem::take(&mut self.unsynced) {
            self.take_out(&id);
        }
        self.rebalance(ctx);
    }
}
