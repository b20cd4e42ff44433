//! Which groups a node vouches for, and the digest over them that both sides must agree on.

use std::collections::BTreeMap;

use trilog_model::GroupId;

use super::Vouch;

/// Vouched groups with a running digest: a sum of one hash per entry, so that order is no matter
/// and every edit is a step.
#[derive(Clone, Debug, Default)]
pub(super) struct Ledger {
    vouches: BTreeMap<GroupId, Vouch>,
    digest: u64,
}

impl Ledger {
    pub(super) fn insert(&mut self, vouch: Vouch) {
        let old = self.vouches.insert(vouch.route.group, vouch);
        self.digest = self
            .digest
            .wrapping_sub(old.as_ref().map_or(0, hash))
            .wrapping_add(hash(&vouch));
    }

    pub(super) fn remove(&mut self, group: GroupId) -> Option<Vouch> {
        let old = self.vouches.remove(&group)?;
        self.digest = self.digest.wrapping_sub(hash(&old));
        Some(old)
    }

    pub(super) fn get(&self, group: GroupId) -> Option<&Vouch> {
        self.vouches.get(&group)
    }

    /// How many there are, and the digest over them.
    pub(super) fn summary(&self) -> (u64, u64) {
        (self.vouches.len() as u64, self.digest)
    }

    pub(super) fn groups(&self) -> Vec<GroupId> {
        self.vouches.keys().copied().collect()
    }
}

fn hash(vouch: &Vouch) -> u64 {
    let route = &vouch.route;
    [
        route.group.get(),
        vouch.term.get(),
        route.from.0,
        route.to.0,
    ]
    .into_iter()
    .fold(0, |hash: u64, word| {
        let word = (hash ^ word).wrapping_add(0x9E37_79B9_7F4A_7C15);
        let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        word ^ (word >> 31)
    })
}

#[cfg(test)]
mod tests {
    use trilog_model::{ReplicaId, Term};

    use super::*;
    use crate::transport::Route;

    fn vouch(group: u64, term: u64) -> Vouch {
        Vouch {
            term: Term(term),
            route: Route {
                group: GroupId(group),
                from: ReplicaId(1),
                to: ReplicaId(2),
            },
        }
    }

    #[test]
    fn the_digest_tells_contents_and_not_their_history() {
        let mut straight = Ledger::default();
        straight.insert(vouch(1, 5));
        straight.insert(vouch(2, 5));
        let mut detour = Ledger::default();
        detour.insert(vouch(2, 4));
        detour.insert(vouch(3, 1));
        detour.insert(vouch(1, 5));
        assert_ne!(detour.summary(), straight.summary());
        detour.insert(vouch(2, 5));
        detour.remove(GroupId(3));
        assert_eq!(detour.summary(), straight.summary());
        detour.insert(vouch(2, 6));
        assert_ne!(detour.summary(), straight.summary());
    }
}
