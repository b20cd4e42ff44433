//! The log-start descriptor: what openraft calls a snapshot.
//!
//! It holds no log data. It says where the log begins (X, the offset after it, the membership in
//! force there) and carries the view's state, taken at an entry A at or after X. A replica that
//! installs it replays the entries after X into its log, without folding those up to A again.
//!
//! ```text
//! version u8, X term u64, X index u64, next offset u64, next time u64, data start u64,
//! membership at X, A term u64, A index u64, memberships part, view state part
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use trilog_model::{EntryId, LogIndex, Offset, Term, Timestamp};
use trilog_storage::log::LogStart;

use super::memberships::{Memberships, put_stored, read_stored};
use crate::codec::{CodecError, Reader};
use crate::types::StoredMembership;

const VERSION: u8 = 1;

/// Where a log begins, with the membership in force there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) start: LogStart,
    pub(crate) membership: StoredMembership,
}

impl Base {
    /// The base that a stored log start describes.
    pub(crate) fn of(start: LogStart) -> Result<Self, CodecError> {
        let mut reader = Reader::versioned(start.meta.clone())?;
        let membership = read_stored(&mut reader)?;
        reader.finish()?;
        Ok(Self { start, membership })
    }

    /// A base made of a place in the log; its membership goes into the start's opaque part.
    pub(crate) fn new(mut start: LogStart, membership: StoredMembership) -> Self {
        let mut meta = BytesMut::new();
        meta.put_u8(VERSION);
        put_stored(&mut meta, &membership);
        start.meta = meta.freeze();
        Self { start, membership }
    }
}

/// The view's state, and the entry it was taken at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ViewState {
    pub(crate) at: EntryId,
    pub(crate) memberships: Memberships,
    pub(crate) state: Bytes,
}

/// The descriptor. What travels has both parts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    /// Absent while the log starts at its very beginning.
    pub(crate) base: Option<Base>,
    /// Absent where only the place matters: on the replica that cuts its own log.
    pub(crate) view: Option<ViewState>,
}

impl Descriptor {
    pub(crate) fn encode(&self) -> Result<Bytes, CodecError> {
        let (Some(base), Some(view)) = (&self.base, &self.view) else {
            return Err(CodecError::Truncated);
        };
        let start = &base.start;
        let memberships = view.memberships.encode();
        let mut out = BytesMut::with_capacity(256 + view.state.len());
        out.put_u8(VERSION);
        put_id(&mut out, start.purged);
        out.put_u64_le(start.next_offset.get());
        out.put_u64_le(start.next_time.nanos());
        out.put_u64_le(start.data_start.get());
        put_stored(&mut out, &base.membership);
        put_id(&mut out, view.at);
        out.put_u32_le(u32::try_from(memberships.len()).unwrap_or(u32::MAX));
        out.put_slice(&memberships);
        out.put_u32_le(u32::try_from(view.state.len()).unwrap_or(u32::MAX));
        out.put_slice(&view.state);
        Ok(out.freeze())
    }

    pub(crate) fn decode(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Reader::versioned(bytes)?;
        let start = LogStart {
            purged: read_id(&mut reader)?,
            next_offset: Offset(reader.u64()?),
            next_time: Timestamp(reader.u64()?),
            data_start: Offset(reader.u64()?),
            meta: Bytes::new(),
        };
        let base = Base::new(start, read_stored(&mut reader)?);
        let at = read_id(&mut reader)?;
        let memberships = Memberships::decode(reader.part()?)?;
        let state = reader.part()?;
        reader.finish()?;
        if at.index < base.start.purged.index {
            return Err(CodecError::Value {
                what: "the entry a view state was taken at",
                value: at.index.get(),
            });
        }
        Ok(Self {
            base: Some(base),
            view: Some(ViewState {
                at,
                memberships,
                state,
            }),
        })
    }
}

fn put_id(out: &mut BytesMut, id: EntryId) {
    out.put_u64_le(id.term.get());
    out.put_u64_le(id.index.get());
}

fn read_id(reader: &mut Reader) -> Result<EntryId, CodecError> {
    Ok(EntryId {
        term: Term(reader.u64()?),
        index: LogIndex(reader.u64()?),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::types::{Membership, log_id};

    fn descriptor() -> Descriptor {
        let voters = Membership::new_with_defaults(vec![BTreeSet::from([1, 2, 3])], []);
        let membership = StoredMembership::new(Some(log_id(EntryId::new(1, 5))), voters);
        let start = LogStart {
            purged: EntryId::new(2, 40),
            next_offset: Offset(900),
            next_time: Timestamp(77),
            data_start: Offset(300),
            meta: Bytes::new(),
        };
        Descriptor {
            base: Some(Base::new(start, membership.clone())),
            view: Some(ViewState {
                at: EntryId::new(3, 55),
                memberships: Memberships::starting_with(membership),
                state: Bytes::from_static(b"state"),
            }),
        }
    }

    #[test]
    fn it_survives_the_round_trip_and_no_truncation_does() {
        let bytes = descriptor().encode().unwrap();
        assert_eq!(Descriptor::decode(bytes.clone()).unwrap(), descriptor());
        for len in 0..bytes.len() {
            assert!(Descriptor::decode(bytes.slice(..len)).is_err());
        }
    }

    #[test]
    fn a_stored_log_start_gives_its_base_back() {
        let base = descriptor().base.unwrap();
        assert_eq!(Base::of(base.start.clone()).unwrap(), base);
    }

    #[test]
    fn a_view_state_from_before_the_log_start_is_refused() {
        let mut early = descriptor();
        if let Some(view) = &mut early.view {
            view.at = EntryId::new(1, 39);
        }
        assert!(Descriptor::decode(early.encode().unwrap()).is_err());
    }
}
