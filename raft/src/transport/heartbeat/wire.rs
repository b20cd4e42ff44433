//! What heartbeat hubs say to each other, as bytes.
//!
//! ```text
//! pulse    sequence u64   wall clock ns u64   boot u64   flags u8
//!          vouched u64    digest u64
//!          reserved u32   zero
//!          vouches u32    of { term u64, route 3 x u64 }
//!          withdrawn u32  of { group u64 }
//! answer   sequence u64   wall clock ns u64
//!          reserved u32   zero
//!          refused u32    of { group u64 }
//! ```
//!
//! Integers are little-endian. Decoding never allocates more than the bytes that are there call
//! for: every count is checked against what is left.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use trilog_model::{GroupId, ReplicaId, Term, Timestamp};

use super::Vouch;
use crate::transport::peer::Route;

const FLAG_FIRST: u8 = 1;
const FLAG_SYNCED: u8 = 2;
const ROUTE_LEN: usize = 24;

/// What a node says every interval, and sooner when groups have something to say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pulse {
    pub(super) sequence: u64,
    pub(super) clock: Timestamp,
    pub(super) boot: u64,
    /// The first of its stream: what was vouched on an earlier one counts no more.
    pub(super) first: bool,
    /// Everything the sender vouches for has been said on this stream.
    pub(super) synced: bool,
    /// How many groups the sender has vouched for on this stream, this pulse included, and the
    /// digest over them.
    pub(super) vouched: u64,
    pub(super) digest: u64,
    pub(super) vouches: Vec<Vouch>,
    pub(super) withdrawn: Vec<GroupId>,
}

/// What the receiver says back.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    /// The latest pulse whose vouches this answers.
    pub(super) sequence: u64,
    pub(super) clock: Timestamp,
    pub(super) refused: Vec<GroupId>,
}

impl Pulse {
    pub(super) fn encode(&self) -> Bytes {
        let vouches = self.vouches.len() * (8 + ROUTE_LEN);
        let len = 53 + vouches + self.withdrawn.len() * 8;
        let mut out = BytesMut::with_capacity(len);
        out.put_u64_le(self.sequence);
        out.put_u64_le(self.clock.nanos());
        out.put_u64_le(self.boot);
        let first = if self.first { FLAG_FIRST } else { 0 };
        let synced = if self.synced { FLAG_SYNCED } else { 0 };
        out.put_u8(first | synced);
        out.put_u64_le(self.vouched);
        out.put_u64_le(self.digest);
        put_count(&mut out, 0);
        put_count(&mut out, self.vouches.len());
        for vouch in &self.vouches {
            out.put_u64_le(vouch.term.get());
            put_route(&mut out, &vouch.route);
        }
        put_groups(&mut out, &self.withdrawn);
        out.freeze()
    }

    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        let from = &mut bytes;
        let sequence = from.try_get_u64_le().ok()?;
        let clock = Timestamp(from.try_get_u64_le().ok()?);
        let boot = from.try_get_u64_le().ok()?;
        let flags = from.try_get_u8().ok()?;
        let vouched = from.try_get_u64_le().ok()?;
        let digest = from.try_get_u64_le().ok()?;
        reserved(from)?;
        let mut vouches = Vec::with_capacity(count(from, 8 + ROUTE_LEN)?);
        for _ in 0..vouches.capacity() {
            vouches.push(Vouch {
                term: Term(from.try_get_u64_le().ok()?),
                route: get_route(from)?,
            });
        }
        let withdrawn = get_groups(from)?;
        bytes.is_empty().then_some(Self {
            sequence,
            clock,
            boot,
            first: flags & FLAG_FIRST != 0,
            synced: flags & FLAG_SYNCED != 0,
            vouched,
            digest,
            vouches,
            withdrawn,
        })
    }
}

impl Answer {
    pub(super) fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(24 + self.refused.len() * 8);
        out.put_u64_le(self.sequence);
        out.put_u64_le(self.clock.nanos());
        put_count(&mut out, 0);
        put_groups(&mut out, &self.refused);
        out.freeze()
    }

    pub(super) fn decode(mut bytes: Bytes) -> Option<Self> {
        let from = &mut bytes;
        let sequence = from.try_get_u64_le().ok()?;
        let clock = Timestamp(from.try_get_u64_le().ok()?);
        reserved(from)?;
        let refused = get_groups(from)?;
        bytes.is_empty().then_some(Self {
            sequence,
            clock,
            refused,
        })
    }
}

fn put_count(out: &mut BytesMut, count: usize) {
    // Messages are cut far below this.
    out.put_u32_le(u32::try_from(count).unwrap_or(u32::MAX));
}

fn put_route(out: &mut BytesMut, route: &Route) {
    out.put_u64_le(route.group.get());
    out.put_u64_le(route.from.0);
    out.put_u64_le(route.to.0);
}

fn put_groups(out: &mut BytesMut, groups: &[GroupId]) {
    put_count(out, groups.len());
    for group in groups {
        out.put_u64_le(group.get());
    }
}

/// A list that this version knows nothing of, and that has to be empty.
fn reserved(from: &mut Bytes) -> Option<()> {
    (from.try_get_u32_le().ok()? == 0).then_some(())
}

/// A count of things that take at least `each` bytes.
fn count(from: &mut Bytes, each: usize) -> Option<usize> {
    let count = from.try_get_u32_le().ok()? as usize;
    (count <= from.len() / each).then_some(count)
}

fn get_route(from: &mut Bytes) -> Option<Route> {
    Some(Route {
        group: GroupId(from.try_get_u64_le().ok()?),
        from: ReplicaId(from.try_get_u64_le().ok()?),
        to: ReplicaId(from.try_get_u64_le().ok()?),
    })
}

fn get_groups(from: &mut Bytes) -> Option<Vec<GroupId>> {
    (0..count(from, 8)?)
        .map(|_| from.try_get_u64_le().ok().map(GroupId))
        .collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn route() -> impl Strategy<Value = Route> {
        any::<(u64, u64, u64)>().prop_map(|(group, from, to)| Route {
            group: GroupId(group),
            from: ReplicaId(from),
            to: ReplicaId(to),
        })
    }

    prop_compose! {
        fn pulse()(
            head in any::<(u64, u64, u64, u64, u64)>(),
            flags in any::<(bool, bool)>(),
            vouches in prop::collection::vec((any::<u64>(), route()), 0..5),
            withdrawn in prop::collection::vec(any::<u64>(), 0..5),
        ) -> Pulse {
            Pulse {
                sequence: head.0,
                clock: Timestamp(head.1),
                boot: head.2,
                first: flags.0,
                synced: flags.1,
                vouched: head.3,
                digest: head.4,
                vouches: vouches
                    .into_iter()
                    .map(|(term, route)| Vouch { term: Term(term), route })
                    .collect(),
                withdrawn: withdrawn.into_iter().map(GroupId).collect(),
            }
        }
    }

    proptest! {
        #[test]
        fn pulses_survive_the_round_trip_and_no_truncation_does(pulse in pulse()) {
            let bytes = pulse.encode();
            for len in 0..bytes.len() {
                prop_assert_eq!(Pulse::decode(bytes.slice(..len)), None);
            }
            prop_assert_eq!(Pulse::decode(bytes), Some(pulse));
        }

        #[test]
        fn answers_survive_the_round_trip_and_no_truncation_does(
            head in any::<(u64, u64)>(),
            refused in prop::collection::vec(any::<u64>(), 0..5),
        ) {
            let answer = Answer {
                sequence: head.0,
                clock: Timestamp(head.1),
                refused: refused.into_iter().map(GroupId).collect(),
            };
            let bytes = answer.encode();
            for len in 0..bytes.len() {
                prop_assert_eq!(Answer::decode(bytes.slice(..len)), None);
            }
            prop_assert_eq!(Answer::decode(bytes), Some(answer));
        }

        #[test]
        fn random_bytes_never_panic(noise in prop::collection::vec(any::<u8>(), 0..200)) {
            let noise = Bytes::from(noise);
            let _ = Pulse::decode(noise.clone());
            let _ = Answer::decode(noise);
        }
    }

    #[test]
    fn a_count_beyond_the_bytes_left_allocates_nothing() {
        let bytes = Pulse::default().encode().to_vec();
        let reserved_at = 8 + 8 + 8 + 1 + 8 + 8;
        for at in [reserved_at, reserved_at + 4] {
            let mut bytes = bytes.clone();
            bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
            assert_eq!(Pulse::decode(bytes.into()), None);
        }
    }
}
