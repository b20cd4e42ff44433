//! The checkpoint: what recovery starts from, and what allows write-ahead log files to be used
//! again.
//!
//! ```text
//! magic "TLCK"  version u8  zero [3]  body length u64
//! body: wal file u64, round u64 (0, 0: from the beginning)
//!       groups u32, then per group
//!         group u64, replica u64, created at: file u64, round u64
//!         vote u8: term u64, node u64, committed u8
//!         committed end u64
//!         log start u8: term u64, index u64, next offset u64, next time u64, data start u64,
//!                       meta u32 + bytes
//!         tip
//!         terms u32: term u64, index u64, offset u64
//!         segments u32: base index u64, base offset u64, base time u64, bytes u64, tip,
//!                       last time u64, record time i64, sealed u8
//!       removed replicas u32: group u64, replica u64
//!       barred replicas u32: group u64, replica u64
//!       version 3: rewritten logs u32: group u64, replica u64,
//!                  cleaning rules u32, clean up to offset u64,
//!                  segments u32: base index u64, generation u32
//! CRC-32C of all before it
//! from version 2 on: whatever stands behind it, to the end of the file
//! tip = last u8: term u64, index u64; next index u64, next offset u64, next time u64
//! ```
//!
//! A `u8` before a colon says whether what follows is there. Integers are little-endian. Version 2
//! is written as long as no log was rewritten, so that an older build can still read it. What was
//! cleaned by other rules than this build's counts as not cleaned.

use bytes::{Buf, BufMut, Bytes, BytesMut, TryGetError};
use trilog_model::{EntryId, GroupId, LogIndex, Offset, ReplicaId, Term, Timestamp};

use super::compaction::RULES;
use super::segment;
use super::tip::Tip;
use super::types::{LogStart, TermStart, Vote};
use crate::frame::NUMBER_MAX;
use crate::wal::{WalPosition, WalStart};

/// The newest version this build writes and reads.
pub(crate) const VERSION: u8 = 3;
/// The version without rewritten logs.
const PLAIN_VERSION: u8 = 2;
/// The last version whose file ends with the checksum.
const VERSION_EXACT: u8 = 1;
const MAGIC: u32 = u32::from_le_bytes(*b"TLCK");
const HEAD_LEN: usize = 16;
const CRC_LEN: usize = 4;
/// Larger than any segment, and so small that their sum does not overflow.
const SEGMENT_BYTES_MAX: u64 = 1 << 40;

/// Everything a checkpoint holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Checkpoint {
    pub(crate) start: WalStart,
    pub(crate) groups: Vec<GroupRecord>,
    /// Removed groups whose files may still be there.
    pub(crate) doomed: Vec<(GroupId, ReplicaId)>,
    /// Replicas whose data was set aside as damaged: they must never come back, for what they
    /// voted and acknowledged is forgotten.
    pub(crate) barred: Vec<(GroupId, ReplicaId)>,
}

/// One group in a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct GroupRecord {
    pub(crate) group: GroupId,
    pub(crate) replica: ReplicaId,
    /// Where the write-ahead log says that the group was created.
    pub(crate) created: WalPosition,
    pub(crate) vote: Option<Vote>,
    pub(crate) committed: LogIndex,
    pub(crate) log_start: Option<LogStart>,
    /// Behind the last durable entry of the segments.
    pub(crate) tip: Tip,
    pub(crate) terms: Vec<TermStart>,
    pub(crate) segments: Vec<SegmentRecord>,
    /// Below it no record is left that a later one below it supersedes.
    pub(crate) clean: Offset,
}

/// One segment in a checkpoint, as far as it is durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SegmentRecord {
    pub(crate) base_index: LogIndex,
    pub(crate) base_offset: Offset,
    pub(crate) base_time: Timestamp,
    pub(crate) bytes: u64,
    pub(crate) tip: Tip,
    pub(crate) last_time: Timestamp,
    pub(crate) record_time: i64,
    pub(crate) sealed: bool,
    /// Part of the name of its file.
    pub(crate) generation: u32,
}

/// Why bytes are not a checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CheckpointError {
    #[error("the checkpoint is damaged")]
    Damaged,
    #[error("checkpoint format version {0} is newer than this build reads (up to {VERSION})")]
    Version(u8),
}

impl From<TryGetError> for CheckpointError {
    fn from(_: TryGetError) -> Self {
        Self::Damaged
    }
}

impl Checkpoint {
    /// The checkpoint of an empty directory.
    pub(crate) fn empty() -> Self {
        Self {
            start: WalStart::Beginning,
            groups: Vec::new(),
            doomed: Vec::new(),
            barred: Vec::new(),
        }
    }

    pub(crate) fn encode(&self) -> Bytes {
        self.encode_by(RULES)
    }

    /// As a build would whose cleaning rules have that number.
    fn encode_by(&self, rules: u32) -> Bytes {
        let mut body = BytesMut::new();
        let start = match self.start {
            WalStart::Beginning => WalPosition::default(),
            WalStart::At(position) => position,
        };
        put_position(&mut body, start);
        put_count(&mut body, self.groups.len());
        for group in &self.groups {
            group.put(&mut body);
        }
        for replicas in [&self.doomed, &self.barred] {
            put_count(&mut body, replicas.len());
            for (group, replica) in replicas {
                body.put_u64_le(group.get());
                body.put_u64_le(replica.0);
            }
        }
        let rewritten: Vec<_> = self
            .groups
            .iter()
            .filter(|group| group.is_rewritten())
            .collect();
        let version = if rewritten.is_empty() {
            PLAIN_VERSION
        } else {
            put_count(&mut body, rewritten.len());
            VERSION
        };
        for group in rewritten {
            group.put_rewritten(rules, &mut body);
        }
        let mut out = BytesMut::with_capacity(HEAD_LEN + body.len() + CRC_LEN);
        out.put_u32_le(MAGIC);
        out.put_u8(version);
        out.put_bytes(0, 3);
        out.put_u64_le(body.len() as u64);
        out.put_slice(&body);
        let crc = crc32c::crc32c(&out);
        out.put_u32_le(crc);
        out.freeze()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Result<Self, CheckpointError> {
        let mut head = bytes.clone();
        let magic = head.try_get_u32_le()?;
        let version = head.try_get_u8()?;
        if magic != MAGIC || bytes.len() < HEAD_LEN + CRC_LEN {
            return Err(CheckpointError::Damaged);
        }
        head.advance(3);
        let crc_at = usize::try_from(head.get_u64_le())
            .ok()
            .and_then(|body| body.checked_add(HEAD_LEN))
            .filter(|crc_at| *crc_at <= bytes.len() - CRC_LEN)
            .ok_or(CheckpointError::Damaged)?;
        let end = crc_at + CRC_LEN;
        if crc32c::crc32c(&bytes[..crc_at]) != (&bytes[crc_at..end]).get_u32_le() {
            return Err(CheckpointError::Damaged);
        }
        if version > VERSION {
            return Err(CheckpointError::Version(version));
        }
        if version <= VERSION_EXACT && end != bytes.len() {
            return Err(CheckpointError::Damaged);
        }
        let mut body = bytes.slice(HEAD_LEN..crc_at);
        let start = match get_position(&mut body)? {
            position if position == WalPosition::default() => WalStart::Beginning,
            position => WalStart::At(position),
        };
        let mut groups = get_list(&mut body, GroupRecord::get)?;
        let doomed = get_list(&mut body, get_replica)?;
        let barred = get_list(&mut body, get_replica)?;
        if version > PLAIN_VERSION {
            for rewritten in get_list(&mut body, Rewritten::get)? {
                rewritten.note(&mut groups)?;
            }
        }
        if body.has_remaining() || !groups.iter().all(GroupRecord::is_plausible) {
            return Err(CheckpointError::Damaged);
        }
        Ok(Self {
            start,
            groups,
            doomed,
            barred,
        })
    }
}

impl GroupRecord {
    /// The segments that the log start has not given up: the others may be deleted already.
    pub(crate) fn held(&self) -> impl Iterator<Item = &SegmentRecord> {
        let start = self.log_start.as_ref();
        self.segments.iter().filter(move |segment| {
            start.is_none_or(|start| {
                segment.tip.next_offset > start.data_start
                    || segment.tip.next_index > start.purged.index.next()
            })
        })
    }

    /// Whether nothing in it would overflow or run backwards. What bears the right checksum was
    /// written here, but a node must not fall over a file, whoever made it.
    fn is_plausible(&self) -> bool {
        let within = |number: u64| number <= NUMBER_MAX;
        let entry = |id: EntryId| within(id.term.get()) && within(id.index.get());
        let start = self.log_start.as_ref().is_none_or(|start| {
            let offsets = within(start.next_offset.get()) && within(start.data_start.get());
            entry(start.purged) && offsets && within(start.next_time.nanos())
        });
        let terms = self.terms.iter().all(|start| {
            within(start.term.get()) && within(start.index.get()) && within(start.offset.get())
        });
        let mut end = (LogIndex(0), Offset(0));
        let segments = self.segments.iter().all(|segment| {
            let begins = (segment.base_index, segment.base_offset);
            let ends = (segment.tip.next_index, segment.tip.next_offset);
            let follows = end.0 <= begins.0 && end.1 <= begins.1;
            let grows = begins.0 <= ends.0 && begins.1 <= ends.1;
            end = ends;
            let bytes = (segment::HEADER_LEN..=SEGMENT_BYTES_MAX).contains(&segment.bytes);
            let times = within(segment.base_time.nanos()) && within(segment.last_time.nanos());
            follows && grows && bytes && times && segment.tip.is_within(NUMBER_MAX)
        });
        let clean = within(self.clean.get());
        let vote = self.vote.is_none_or(|vote| within(vote.term.get()));
        let created = within(self.created.file) && within(self.created.round);
        let tip = self.tip.is_within(NUMBER_MAX) && end.0 <= self.tip.next_index;
        created
            && clean
            && vote
            && within(self.committed.get())
            && start
            && tip
            && terms
            && segments
    }

    /// Whether compaction was here.
    fn is_rewritten(&self) -> bool {
        self.clean > Offset(0) || self.segments.iter().any(|segment| segment.generation > 0)
    }

    fn put_rewritten(&self, rules: u32, out: &mut BytesMut) {
        out.put_u64_le(self.group.get());
        out.put_u64_le(self.replica.0);
        out.put_u32_le(rules);
        out.put_u64_le(self.clean.get());
        let replaced = self
            .segments
            .iter()
            .filter(|segment| segment.generation > 0);
        put_count(out, replaced.clone().count());
        for segment in replaced {
            out.put_u64_le(segment.base_index.get());
            out.put_u32_le(segment.generation);
        }
    }

    fn put(&self, out: &mut BytesMut) {
        out.put_u64_le(self.group.get());
        out.put_u64_le(self.replica.0);
        put_position(out, self.created);
        out.put_u8(u8::from(self.vote.is_some()));
        if let Some(vote) = self.vote {
            out.put_u64_le(vote.term.get());
            out.put_u64_le(vote.node.0);
            out.put_u8(u8::from(vote.committed));
        }
        out.put_u64_le(self.committed.get());
        out.put_u8(u8::from(self.log_start.is_some()));
        if let Some(start) = &self.log_start {
            put_entry(out, start.purged);
            out.put_u64_le(start.next_offset.get());
            out.put_u64_le(start.next_time.nanos());
            out.put_u64_le(start.data_start.get());
            put_count(out, start.meta.len());
            out.put_slice(&start.meta);
        }
        put_tip(out, &self.tip);
        put_count(out, self.terms.len());
        for start in &self.terms {
            out.put_u64_le(start.term.get());
            out.put_u64_le(start.index.get());
            out.put_u64_le(start.offset.get());
        }
        put_count(out, self.segments.len());
        for segment in &self.segments {
            segment.put(out);
        }
    }

    fn get(body: &mut Bytes) -> Result<Self, CheckpointError> {
        Ok(Self {
            group: GroupId(body.try_get_u64_le()?),
            replica: ReplicaId(body.try_get_u64_le()?),
            created: get_position(body)?,
            vote: get_option(body, |body| {
                Ok(Vote {
                    term: Term(body.try_get_u64_le()?),
                    node: ReplicaId(body.try_get_u64_le()?),
                    committed: body.try_get_u8()? != 0,
                })
            })?,
            committed: LogIndex(body.try_get_u64_le()?),
            log_start: get_option(body, |body| {
                Ok(LogStart {
                    purged: get_entry(body)?,
                    next_offset: Offset(body.try_get_u64_le()?),
                    next_time: Timestamp(body.try_get_u64_le()?),
                    data_start: Offset(body.try_get_u64_le()?),
                    meta: get_bytes(body)?,
                })
            })?,
            tip: get_tip(body)?,
            terms: get_list(body, |body| {
                Ok(TermStart {
                    term: Term(body.try_get_u64_le()?),
                    index: LogIndex(body.try_get_u64_le()?),
                    offset: Offset(body.try_get_u64_le()?),
                })
            })?,
            segments: get_list(body, SegmentRecord::get)?,
            clean: Offset(0),
        })
    }
}

/// What compaction did to a log.
#[derive(Debug)]
struct Rewritten {
    id: (GroupId, ReplicaId),
    rules: u32,
    clean: Offset,
    generations: Vec<(LogIndex, u32)>,
}

impl Rewritten {
    fn get(body: &mut Bytes) -> Result<Self, CheckpointError> {
        Ok(Self {
            id: get_replica(body)?,
            rules: body.try_get_u32_le()?,
            clean: Offset(body.try_get_u64_le()?),
            generations: get_list(body, |body| {
                Ok((LogIndex(body.try_get_u64_le()?), body.try_get_u32_le()?))
            })?,
        })
    }

    /// Adds it to the record of its log.
    fn note(self, groups: &mut [GroupRecord]) -> Result<(), CheckpointError> {
        let group = groups
            .iter_mut()
            .find(|group| (group.group, group.replica) == self.id)
            .ok_or(CheckpointError::Damaged)?;
        if self.rules == RULES {
            group.clean = self.clean;
        }
        for (base, generation) in self.generations {
            let at = group
                .segments
                .binary_search_by_key(&base, |segment| segment.base_index)
                .map_err(|_| CheckpointError::Damaged)?;
            group.segments[at].generation = generation;
        }
        Ok(())
    }
}

impl SegmentRecord {
    fn put(&self, out: &mut BytesMut) {
        out.put_u64_le(self.base_index.get());
        out.put_u64_le(self.base_offset.get());
        out.put_u64_le(self.base_time.nanos());
        out.put_u64_le(self.bytes);
        put_tip(out, &self.tip);
        out.put_u64_le(self.last_time.nanos());
        out.put_i64_le(self.record_time);
        out.put_u8(u8::from(self.sealed));
    }

    fn get(body: &mut Bytes) -> Result<Self, CheckpointError> {
        Ok(Self {
            base_index: LogIndex(body.try_get_u64_le()?),
            base_offset: Offset(body.try_get_u64_le()?),
            base_time: Timestamp(body.try_get_u64_le()?),
            bytes: body.try_get_u64_le()?,
            tip: get_tip(body)?,
            last_time: Timestamp(body.try_get_u64_le()?),
            record_time: body.try_get_i64_le()?,
            sealed: body.try_get_u8()? != 0,
            generation: 0,
        })
    }
}

fn put_count(out: &mut BytesMut, count: usize) {
    // More than four thousand million of anything do not fit a machine.
    out.put_u32_le(u32::try_from(count).unwrap_or(u32::MAX));
}

fn put_position(out: &mut BytesMut, position: WalPosition) {
    out.put_u64_le(position.file);
    out.put_u64_le(position.round);
}

fn get_position(body: &mut Bytes) -> Result<WalPosition, CheckpointError> {
    Ok(WalPosition {
        file: body.try_get_u64_le()?,
        round: body.try_get_u64_le()?,
    })
}

fn get_replica(body: &mut Bytes) -> Result<(GroupId, ReplicaId), CheckpointError> {
    Ok((
        GroupId(body.try_get_u64_le()?),
        ReplicaId(body.try_get_u64_le()?),
    ))
}

fn put_entry(out: &mut BytesMut, id: EntryId) {
    out.put_u64_le(id.term.get());
    out.put_u64_le(id.index.get());
}

fn get_entry(body: &mut Bytes) -> Result<EntryId, CheckpointError> {
    Ok(EntryId {
        term: Term(body.try_get_u64_le()?),
        index: LogIndex(body.try_get_u64_le()?),
    })
}

fn put_tip(out: &mut BytesMut, tip: &Tip) {
    out.put_u8(u8::from(tip.last.is_some()));
    if let Some(last) = tip.last {
        put_entry(out, last);
    }
    out.put_u64_le(tip.next_index.get());
    out.put_u64_le(tip.next_offset.get());
    out.put_u64_le(tip.next_time.nanos());
}

fn get_tip(body: &mut Bytes) -> Result<Tip, CheckpointError> {
    Ok(Tip {
        last: get_option(body, get_entry)?,
        next_index: LogIndex(body.try_get_u64_le()?),
        next_offset: Offset(body.try_get_u64_le()?),
        next_time: Timestamp(body.try_get_u64_le()?),
    })
}

fn get_option<T>(
    body: &mut Bytes,
    get: impl FnOnce(&mut Bytes) -> Result<T, CheckpointError>,
) -> Result<Option<T>, CheckpointError> {
    (body.try_get_u8()? != 0).then(|| get(body)).transpose()
}

/// A counted list; the count is never trusted for memory.
fn get_list<T>(
    body: &mut Bytes,
    get: impl Fn(&mut Bytes) -> Result<T, CheckpointError>,
) -> Result<Vec<T>, CheckpointError> {
    let count = body.try_get_u32_le()?;
    (0..count).map(|_| get(body)).collect()
}

fn get_bytes(body: &mut Bytes) -> Result<Bytes, CheckpointError> {
    let len = usize::try_from(body.try_get_u32_le()?).map_err(|_| CheckpointError::Damaged)?;
    if body.len() < len {
        return Err(CheckpointError::Damaged);
    }
    Ok(body.split_to(len))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A checkpoint with something in every field.
    pub(crate) fn sample() -> Checkpoint {
        let tip = |index: u64| Tip {
            last: Some(EntryId::new(3, index)),
            next_index: LogIndex(index + 1),
            next_offset: Offset(index * 10),
            next_time: Timestamp(index * 1_000),
        };
        let segment = |base: u64, sealed| SegmentRecord {
            base_index: LogIndex(base),
            base_offset: Offset(base * 10),
            base_time: Timestamp(base * 1_000),
            bytes: 4_096,
            tip: tip(base + 9),
            last_time: Timestamp(base * 1_000 + 900),
            record_time: -5,
            sealed,
            generation: 0,
        };
        let full = GroupRecord {
            group: GroupId(7),
            replica: ReplicaId(70),
            created: WalPosition { file: 2, round: 9 },
            vote: Some(Vote {
                term: Term(4),
                node: ReplicaId(71),
                committed: true,
            }),
            committed: LogIndex(30),
            log_start: Some(LogStart {
                purged: EntryId::new(2, 9),
                next_offset: Offset(100),
                next_time: Timestamp(10_000),
                data_start: Offset(50),
                meta: Bytes::from_static(b"members"),
            }),
            tip: tip(29),
            terms: vec![TermStart {
                term: Term(3),
                index: LogIndex(10),
                offset: Offset(100),
            }],
            segments: vec![segment(10, true), segment(20, false)],
            clean: Offset(0),
        };
        let bare = GroupRecord {
            group: GroupId(8),
            replica: ReplicaId(80),
            created: WalPosition { file: 3, round: 11 },
            vote: None,
            committed: LogIndex(0),
            log_start: None,
            tip: Tip::default(),
            terms: Vec::new(),
            segments: Vec::new(),
            clean: Offset(0),
        };
        Checkpoint {
            start: WalStart::At(WalPosition { file: 3, round: 10 }),
            groups: vec![full, bare],
            doomed: vec![(GroupId(5), ReplicaId(50))],
            barred: vec![(GroupId(7), ReplicaId(69))],
        }
    }

    #[test]
    fn a_checkpoint_survives_the_round_trip() {
        for checkpoint in [sample(), rewritten(), Checkpoint::empty()] {
            assert_eq!(Checkpoint::decode(&checkpoint.encode()), Ok(checkpoint));
        }
    }

    fn rewritten() -> Checkpoint {
        let mut checkpoint = sample();
        checkpoint.groups[0].clean = Offset(150);
        checkpoint.groups[0].segments[0].generation = 3;
        checkpoint
    }

    #[test]
    fn an_older_build_reads_a_checkpoint_without_rewritten_logs() {
        assert_eq!(sample().encode()[4], PLAIN_VERSION);
        assert_eq!(rewritten().encode()[4], VERSION);
    }

    #[test]
    fn what_was_cleaned_by_other_rules_counts_as_not_cleaned() {
        let mut expected = rewritten();
        let encoded = expected.encode_by(RULES + 1);
        expected.groups[0].clean = Offset(0);
        assert_eq!(Checkpoint::decode(&encoded), Ok(expected));
    }

    #[test]
    fn every_truncation_and_every_flip_is_found() {
        let whole = rewritten().encode();
        for len in 0..whole.len() {
            assert_eq!(
                Checkpoint::decode(&whole.slice(..len)),
                Err(CheckpointError::Damaged)
            );
        }
        for bit in 0..whole.len() * 8 {
            let mut damaged = whole.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(
                Checkpoint::decode(&damaged.into()),
                Err(CheckpointError::Damaged),
                "bit {bit}"
            );
        }
    }

    #[test]
    fn numbers_that_would_overflow_or_run_backwards_are_damage() {
        let changes: [fn(&mut GroupRecord); 10] = [
            |group| group.clean = Offset(u64::MAX),
            |group| group.segments[0].bytes = u64::MAX,
            |group| group.segments[0].bytes = 10,
            |group| group.segments[0].tip.next_index = LogIndex(u64::MAX),
            |group| group.segments[1].base_index = LogIndex(5),
            |group| group.segments[1].last_time = Timestamp(u64::MAX),
            |group| group.tip.next_offset = Offset(u64::MAX),
            |group| group.tip.next_index = LogIndex(25),
            |group| group.committed = LogIndex(u64::MAX),
            |group| group.created.file = u64::MAX,
        ];
        for (nth, change) in changes.iter().enumerate() {
            let mut changed = sample();
            change(&mut changed.groups[0]);
            let decoded = Checkpoint::decode(&changed.encode());
            assert_eq!(decoded, Err(CheckpointError::Damaged), "{nth}");
        }
    }

    #[test]
    fn a_newer_version_is_refused_by_name() {
        let mut bytes = sample().encode().to_vec();
        bytes[4] = VERSION + 1;
        let crc_at = bytes.len() - CRC_LEN;
        let crc = crc32c::crc32c(&bytes[..crc_at]);
        bytes[crc_at..].copy_from_slice(&crc.to_le_bytes());
        assert_eq!(
            Checkpoint::decode(&bytes.into()),
            Err(CheckpointError::Version(VERSION + 1))
        );
    }
}
