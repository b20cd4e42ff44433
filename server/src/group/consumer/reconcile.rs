//! One step of one member towards its target.

use std::collections::BTreeSet;

use super::super::types::{ConsumerBeat, Given};
use super::assign::Part;
use super::members::Member;
use super::{Around, ConsumerGroup, JOINS};

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
        let mut given = Given {
            member: beat.member.clone(),
            epoch: self.epoch,
            heartbeat: around.settings.consumer_heartbeat,
            assigned: None,
        };
        let held = self.held_by_others(&beat.member);
        let epoch = self.epoch;
        let Some(member) = self.members.get_mut(&beat.member) else {
            return given;
        };
        // Who has yet to hear of its last step takes no other: it would be two behind.
        let behind = !joined && beat.epoch != member.epoch;
        let step = if behind {
            Step::default()
        } else {
            step(member, epoch, owned, &held, around)
        };
        given.epoch = member.epoch;
        // Zero would tell it to join, and less that it has left.
        debug_assert!(given.epoch > JOINS, "{given:?}");
        if joined || step.moved || beat.is_full() {
            given.assigned = Some(member.assigned.iter().copied().collect());
        }
        if step.changed {
            self.changed();
        }
        given
    }

    /// Partitions that the member is to have and others have, or have yet to give up.
    fn held_by_others(&self, id: &str) -> BTreeSet<Part> {
        let Some(member) = self.members.get(id) else {
            return BTreeSet::new();
        };
        let missing = member.target.difference(&member.assigned);
        let missing: BTreeSet<Part> = missing.copied().collect();
        if missing.is_empty() {
            return missing;
        }
        let others = self.members.iter().filter(|(other, _)| *other != id);
        let held = others.flat_map(|(_, member)| member.assigned.iter().chain(&member.revoking));
        held.filter(|part| missing.contains(part))
            .copied()
            .collect()
    }
}

/// What a step did.
#[derive(Default)]
struct Step {
    changed: bool,
    /// What it may read is something else now.
    moved: bool,
}

fn step(
    member: &mut Member,
    epoch: i32,
    owned: Option<&BTreeSet<Part>>,
    held: &BTreeSet<Part>,
    around: Around<'_>,
) -> Step {
    let keeps = |parts: &BTreeSet<Part>| owned.is_none_or(|owned| !owned.is_disjoint(parts));
    let mut step = Step::default();
    if member.epoch == JOINS {
        // It has just come, or come back, and reads nothing yet: of what was kept for it, it need not
        // give up first what its target has lost, and it begins in the group's epoch at once.
        let target = &member.target;
        member.assigned.retain(|part| target.contains(part));
    }
    if !member.revoking.is_empty() {
        if keeps(&member.revoking) {
            return step;
        }
        member.revoking.clear();
        member.revoke_by = None;
        step.changed = true;
    }
    if member.is_settled(epoch) {
        return step;
    }
    let surplus: BTreeSet<Part> = member
        .assigned
        .difference(&member.target)
        .copied()
        .collect();
    if !surplus.is_empty() {
        step = Step {
            changed: true,
            moved: true,
        };
        member.assigned.retain(|part| !surplus.contains(part));
        if keeps(&surplus) {
            member.revoking = surplus;
            member.revoke_by = Some(around.now + member.rebalance_timeout);
            return step;
        }
    }
    if member.epoch != epoch {
        member.previous_epoch = member.epoch;
        member.epoch = epoch;
        step.changed = true;
    }
    let before = member.assigned.len();
    let free = member.target.iter().filter(|part| !held.contains(part));
    member.assigned.extend(free.copied());
    if member.assigned.len() != before {
        step = Step {
            changed: true,
            moved: true,
        };
    }
    step
}
