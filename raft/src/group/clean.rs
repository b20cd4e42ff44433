//! How far all replicas of a group have cleaned their logs, as one of them can know it.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::join_all;
use trilog_model::{Offset, ReplicaId};
use trilog_storage::log::Cleanness;

use super::{Group, Replica};
use crate::view::View;

impl<V: View> Group<V> {
    /// How far the logs of all members are clean, for good: below it none of them holds a record
    /// that a later one below it supersedes, nor one of an aborted transaction, and none will copy
    /// one from another. Only the leader
    /// can tell, for it knows who the members are; `None` if some member cannot say.
    ///
    /// Everyone is asked twice. Whatever less clean was on its way to one member while the others
    /// were still being asked has come in by the second time, which that member then says, or it
    /// still lacks what it waits for. What is copied after the first round comes from members that
    /// were clean by then.
    pub async fn clean_everywhere(&self) -> Option<Offset> {
        let replica = self.replica_handle();
        let members = replica.members_and_leader().0;
        let first = replica.cleanness_of(&members).await?;
        let second = replica.cleanness_of(&members).await?;
        if replica.members_and_leader().0 != members {
            return None;
        }
        agreed(&first, &second)
    }
}

/// What all of them say, asked twice; `None` if something came in to one of them in between.
fn agreed(
    first: &BTreeMap<ReplicaId, Cleanness>,
    second: &BTreeMap<ReplicaId, Cleanness>,
) -> Option<Offset> {
    let still = |(member, early): (&ReplicaId, &Cleanness)| {
        let late = second.get(member)?;
        let undisturbed = late.arrivals == early.arrivals;
        undisturbed.then_some(early.clean.min(late.clean))
    };
    let clean: Option<Vec<Offset>> = first.iter().map(still).collect();
    clean?.into_iter().min()
}

impl Replica {
    async fn cleanness_of(
        &self,
        members: &BTreeSet<ReplicaId>,
    ) -> Option<BTreeMap<ReplicaId, Cleanness>> {
        let of = async |member: &ReplicaId| {
            if *member == self.status.replica {
                return Some((*member, self.log.cleanness()));
            }
            let held = self.copies.holding_if_heard(&self.log, *member).await;
            Some((*member, held.ok()??.cleanness?))
        };
        let all = join_all(members.iter().map(of)).await;
        all.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Said = [(u64, u64, u64)];

    fn said(all: &Said) -> BTreeMap<ReplicaId, Cleanness> {
        let all = all.iter();
        all.map(|&(member, clean, arrivals)| {
            let clean = Offset(clean);
            (ReplicaId(member), Cleanness { clean, arrivals })
        })
        .collect()
    }

    #[test]
    fn the_least_of_both_rounds_counts_and_nothing_if_anything_came_in_between() {
        let first = [(1, 50, 7), (2, 40, 8), (3, 60, 9)];
        let cases: [(&str, &Said, Option<u64>); 6] = [
            ("nothing changed", &first, Some(40)),
            (
                "more is clean by now",
                &[(1, 90, 7), (2, 90, 8), (3, 90, 9)],
                Some(40),
            ),
            (
                "less is clean by now",
                &[(1, 50, 7), (2, 40, 8), (3, 10, 9)],
                Some(10),
            ),
            (
                "something came in",
                &[(1, 50, 7), (2, 40, 8), (3, 60, 10)],
                None,
            ),
            (
                "one lacks something",
                &[(1, 50, 7), (2, 0, 8), (3, 60, 9)],
                Some(0),
            ),
            ("one says nothing", &[(1, 50, 7), (2, 40, 8)], None),
        ];
        for (case, second, clean) in cases {
            let found = agreed(&said(&first), &said(second));
            assert_eq!(found, clean.map(Offset), "{case}");
        }
        assert_eq!(agreed(&said(&[]), &said(&[])), None);
    }
}
