//! One step of one member towards its target.

use std::collections::BTreeSet;

use super::super::types::{ConsumerBeat, Given};
use super::assign::Part;
use super::members::Member;
use super::{Around, ConsumerGroup};

impl ConsumerGroup {
    /// Brings the member of a heartbeat a step on; what it is told.
    pub(super) fn reconcile(
        &mut self,
        beat: &ConsumerBeat,
        joined: bool,
        around: Around<'_>,
    ) -> Given {
        // Of a member that joins it is not known whether it speaks now or did so long ago, before
        // it was given what it has: only later words of it release anything.
        let owned = beat.owned.as_ref().filter(|_| !joined);
        let held = self.held_by_others(&beat.member);
        let epoch = self.epoch;
        let mut given = Given {
            member: beat.member.clone(),
            epoch,
            heartbeat: around.settings.consumer_heartbeat,
            assigned: None,
        };
        let Some(member) = self.members.get_mut(&beat.member) else {
            return given;
        };
        let before = (
            member.epoch,
            member.assigned.clone(),
            member.revoking.clone(),
        );
        step(member, epoch, owned, &held, around);
        let now = (member.epoch, &member.assigned, &member.revoking);
        let moved = before.1 != member.assigned;
        let changed = now != (before.0, &before.1, &before.2);
        given.epoch = member.epoch;
        if joined || moved || beat.is_full() {
            given.assigned = Some(member.assigned.iter().copied().collect());
        }
        if changed {
            self.changed();
        }
        given
    }

    /// Partitions that others have, or have yet to give up.
    fn held_by_others(&self, id: &str) -> BTreeSet<Part> {
        let others = self.members.iter().filter(|(other, _)| *other != id);
        let held = others.flat_map(|(_, member)| member.assigned.iter().chain(&member.revoking));
        held.copied().collect()
    }
}

fn step(
    member: &mut Member,
    epoch: i32,
    owned: Option<&BTreeSet<Part>>,
    held: &BTreeSet<Part>,
    around: Around<'_>,
) {
    let keeps = |parts: &BTreeSet<Part>| owned.is_none_or(|owned| !owned.is_disjoint(parts));
    if !member.revoking.is_empty() && keeps(&member.revoking) {
        return;
    }
    member.revoking.clear();
    member.revoke_by = None;
    if member.is_settled(epoch) {
        return;
    }
    let surplus: BTreeSet<Part> = member
        .assigned
        .difference(&member.target)
        .copied()
        .collect();
    member.assigned.retain(|part| !surplus.contains(part));
    if !surplus.is_empty() && keeps(&surplus) {
        member.revoking = surplus;
        member.revoke_by = Some(around.now + member.rebalance_timeout);
        return;
    }
    if member.epoch != epoch {
        member.previous_epoch = member.epoch;
        member.epoch = epoch;
    }
    let free = member.target.iter().filter(|part| !held.contains(part));
    let free: Vec<Part> = free.copied().collect();
    member.assigned.extend(free);
}
