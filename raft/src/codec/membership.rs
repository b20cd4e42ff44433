//! The membership of a group as bytes: the command part of a membership entry, and part of a
//! log-start descriptor.
//!
//! ```text
//! version u8, configs u8, each: voters u16, voter u64 ...; members u16, member u64 ...
//! ```

use std::collections::BTreeSet;

use bytes::{BufMut, Bytes, BytesMut};

use super::{CodecError, Reader, VERSION};
use crate::types::Membership;

/// Configurations that may hold at once: the old and the new one of a joint change.
const CONFIGS_MAX: u8 = 2;
/// Members of one group; far above any sensible replication factor.
const MEMBERS_MAX: u16 = 256;

pub(crate) fn encode_membership(membership: &Membership) -> Bytes {
    let mut out = BytesMut::with_capacity(64);
    out.put_u8(VERSION);
    let configs = membership.get_joint_config();
    out.put_u8(u8::try_from(configs.len()).unwrap_or(u8::MAX));
    for voters in configs {
        put_ids(&mut out, voters.iter().copied());
    }
    let members: Vec<u64> = membership.nodes().map(|(id, ())| *id).collect();
    put_ids(&mut out, members.into_iter());
    out.freeze()
}

fn put_ids(out: &mut BytesMut, ids: impl ExactSizeIterator<Item = u64>) {
    out.put_u16_le(u16::try_from(ids.len()).unwrap_or(u16::MAX));
    for id in ids {
        out.put_u64_le(id);
    }
}

pub(crate) fn decode_membership(bytes: &Bytes) -> Result<Membership, CodecError> {
    let mut reader = Reader::versioned(bytes.clone())?;
    let configs = reader.u8()?;
    if configs > CONFIGS_MAX {
        return Err(CodecError::Membership);
    }
    let voters = (0..configs)
        .map(|_| ids(&mut reader))
        .collect::<Result<Vec<_>, _>>()?;
    let members = ids(&mut reader)?;
    reader.finish()?;
    if voters.is_empty() && members.is_empty() {
        return Ok(Membership::default());
    }
    Membership::new(voters, members).map_err(|_| CodecError::Membership)
}

fn ids(reader: &mut Reader) -> Result<BTreeSet<u64>, CodecError> {
    let count = reader.u16()?;
    if count > MEMBERS_MAX {
        return Err(CodecError::Membership);
    }
    let ids = (0..count)
        .map(|_| reader.u64())
        .collect::<Result<BTreeSet<_>, _>>()?;
    if ids.len() != usize::from(count) {
        return Err(CodecError::Membership);
    }
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn joint() -> Membership {
        Membership::new_with_defaults(
            vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([3, 4, 5])],
            [9],
        )
    }

    #[test]
    fn a_joint_membership_with_a_learner_survives_the_round_trip() {
        let bytes = encode_membership(&joint());
        assert_eq!(decode_membership(&bytes).unwrap(), joint());
        let empty = encode_membership(&Membership::default());
        assert_eq!(decode_membership(&empty).unwrap(), Membership::default());
    }

    #[test]
    fn every_truncation_and_any_surplus_is_refused() {
        let bytes = encode_membership(&joint());
        for len in 0..bytes.len() {
            assert!(decode_membership(&bytes.slice(..len)).is_err(), "at {len}");
        }
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(
            decode_membership(&longer.into()),
            Err(CodecError::Trailing(1))
        );
    }

    #[test]
    fn a_voter_that_is_no_member_is_refused() {
        let mut bytes = encode_membership(&joint()).to_vec();
        let last_voter_at = 2 + 2 + 16;
        bytes[last_voter_at] = 77;
        assert!(decode_membership(&bytes.into()).is_err());
    }
}
