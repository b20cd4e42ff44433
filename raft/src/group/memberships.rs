//! The memberships a group went through since its log start, so that the one in force at any
//! retained entry is known.

use bytes::{BufMut, Bytes, BytesMut};
use trilog_model::LogIndex;

use crate::codec::{CodecError, Reader, decode_membership, encode_membership};
use crate::types::{LogId, StoredMembership};

const VERSION: u8 = 1;

/// Memberships in log order, each in force from its entry on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Memberships(Vec<StoredMembership>);

impl Memberships {
    #[cfg(test)]
    pub(crate) fn starting_with(first: StoredMembership) -> Self {
        Self(vec![first])
    }

    /// A membership was applied; one that is known already changes nothing.
    pub(crate) fn push(&mut self, membership: StoredMembership) {
        let newest = self.0.last().and_then(|last| last.log_id().as_ref());
        if newest < membership.log_id().as_ref() {
            self.0.push(membership);
        }
    }

    /// The one in force once everything up to `index` is applied.
    pub(crate) fn at(&self, index: Option<LogIndex>) -> StoredMembership {
        let within = |membership: &&StoredMembership| {
            let at = membership.log_id().as_ref().map(LogId::index);
            at <= index.map(LogIndex::get)
        };
        self.0
            .iter()
            .rev()
            .find(within)
            .cloned()
            .unwrap_or_default()
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Forgets those that ended before `index`.
    pub(crate) fn forget_below(&mut self, index: LogIndex) {
        let in_force = self.at(Some(index));
        self.0
            .retain(|membership| membership.log_id() >= in_force.log_id());
    }

    pub(crate) fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        out.put_u16_le(u16::try_from(self.0.len()).unwrap_or(u16::MAX));
        for membership in &self.0 {
            put_stored(&mut out, membership);
        }
        out.freeze()
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::versioned(bytes)?;
        let count = reader.u16()?;
        let list = (0..count)
            .map(|_| read_stored(&mut reader))
            .collect::<Result<Vec<_>, _>>()?;
        reader.finish()?;
        Ok(Self(list))
    }
}

/// A membership with the identity of its entry.
pub(crate) fn put_stored(out: &mut BytesMut, membership: &StoredMembership) {
    match membership.log_id() {
        None => out.put_u8(0),
        Some(id) => {
            out.put_u8(1);
            out.put_u64_le(id.committed_leader_id().term);
            out.put_u64_le(id.index());
        }
    }
    let encoded = encode_membership(membership.membership());
    out.put_u32_le(u32::try_from(encoded.len()).unwrap_or(u32::MAX));
    out.put_slice(&encoded);
}

pub(crate) fn read_stored(reader: &mut Reader) -> Result<StoredMembership, CodecError> {
    let id = reader.optional_log_id()?;
    Ok(StoredMembership::new(
        id,
        decode_membership(&reader.part()?)?,
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use trilog_model::EntryId;

    use super::*;
    use crate::types::{Membership, log_id};

    fn at(index: u64, voters: &[u64]) -> StoredMembership {
        let voters: BTreeSet<u64> = voters.iter().copied().collect();
        StoredMembership::new(
            Some(log_id(EntryId::new(1, index))),
            Membership::new_with_defaults(vec![voters], []),
        )
    }

    fn history() -> Memberships {
        let mut memberships = Memberships::default();
        memberships.push(at(0, &[1]));
        memberships.push(at(10, &[1, 2]));
        memberships.push(at(20, &[1, 2, 3]));
        memberships.push(at(10, &[9]));
        memberships
    }

    #[test]
    fn the_membership_in_force_is_the_newest_at_or_before_an_entry() {
        let memberships = history();
        assert_eq!(memberships.at(None), StoredMembership::default());
        assert_eq!(memberships.at(Some(LogIndex(9))), at(0, &[1]));
        assert_eq!(memberships.at(Some(LogIndex(10))), at(10, &[1, 2]));
        assert_eq!(memberships.at(Some(LogIndex(99))), at(20, &[1, 2, 3]));
    }

    #[test]
    fn forgetting_keeps_the_one_in_force_at_the_new_start() {
        let mut memberships = history();
        memberships.forget_below(LogIndex(15));
        assert_eq!(memberships.at(Some(LogIndex(15))), at(10, &[1, 2]));
        assert_eq!(
            memberships.at(Some(LogIndex(5))),
            StoredMembership::default()
        );
    }

    #[test]
    fn they_survive_the_round_trip() {
        let memberships = history();
        assert_eq!(
            Memberships::decode(memberships.encode()).unwrap(),
            memberships
        );
        let bytes = memberships.encode();
        for len in 0..bytes.len() {
            assert!(Memberships::decode(bytes.slice(..len)).is_err());
        }
    }
}
