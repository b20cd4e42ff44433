//! openraft's type configuration and the log entry it handles.
//!
//! A Raft node id is a [`ReplicaId`] as a number; addresses are never part of a membership. An
//! entry is made twice over: proposed by this node as a leader, with its place in the partition
//! still open, or stored, as the frame that every replica holds byte for byte.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use openraft::entry::{RaftEntry, RaftPayload};
use openraft::impls::leader_id_std;
use openraft::type_config::alias::{CommittedLeaderIdOf, LogIdOf, VoteOf};
use trilog_model::{EntryId, GroupId, LogIndex, Offset, ReplicaId, Term, Timestamp};
use trilog_storage::frame::{BATCH_PREFIX_LEN, Frame, FrameKind};
use trilog_storage::log::{Claim, Vote};

use crate::codec::{CodecError, decode_membership};
use crate::runtime::Runtime;

openraft::declare_raft_types!(
    /// The types every group is made of.
    pub(crate) TypeConfig:
        D = Draft,
        R = Outcome,
        NodeId = u64,
        Node = (),
        Term = u64,
        LeaderId = leader_id_std::LeaderId<u64, u64>,
        Payload = Payload,
        Entry = Entry,
        AsyncRuntime = Runtime,
);

/// Where a v2 record batch has its own checksum, at the end of the prefix it does not cover.
const BATCH_CRC_AT: usize = BATCH_PREFIX_LEN - 4;

pub(crate) type LogId = LogIdOf<TypeConfig>;
pub(crate) type RaftVote = VoteOf<TypeConfig>;
pub(crate) type LeaderTerm = CommittedLeaderIdOf<TypeConfig>;
pub(crate) type Membership = openraft::Membership<u64, ()>;
pub(crate) type StoredMembership = openraft::StoredMembership<LeaderTerm, u64, ()>;

/// What a caller asks a leader to append: records, a view's command, or both.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Proposal {
    /// Exactly one verified Kafka v2 record batch, or empty.
    pub records: Bytes,
    /// How many offsets the records take.
    pub record_count: u32,
    /// A view's command, or empty.
    pub command: Bytes,
}

impl Proposal {
    /// A command without records.
    #[must_use]
    pub fn command(command: impl Into<Bytes>) -> Self {
        Self {
            command: command.into(),
            ..Self::default()
        }
    }

    /// Bytes of payload.
    #[must_use]
    pub fn payload_len(&self) -> usize {
        self.records.len() + self.command.len()
    }
}

/// A proposal that became an entry, was committed and applied on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    pub id: EntryId,
    /// The offset of the first record.
    pub base_offset: Offset,
    pub append_time: Timestamp,
    /// What the view answered.
    pub reply: Bytes,
}

/// How an entry of this leader ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Applied(Applied),
    /// It was appended in another term than its proposer judged it in, and therefore empty.
    Fenced,
}

/// A proposal under way, valid in one term only.
#[derive(Clone, Debug)]
pub(crate) struct Draft {
    pub(crate) proposal: Proposal,
    pub(crate) expected_term: Term,
    /// The memory promised to all drafts proposed together, until they stand in the log.
    pub(crate) claim: Option<Arc<Claim>>,
}

impl fmt::Display for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "draft of {} records, {} B",
            self.proposal.record_count,
            self.proposal.payload_len()
        )
    }
}

impl Draft {
    /// The frame this becomes in a log that fills in the rest of its place.
    pub(crate) fn into_frame(self, group: GroupId, id: EntryId) -> Frame {
        let Proposal {
            records,
            record_count,
            command,
        } = self.proposal;
        let mut frame = Frame::bare(FrameKind::Data, group, id, command);
        if let Some(crc) = records.get(BATCH_CRC_AT..BATCH_PREFIX_LEN) {
            let crc = crc.try_into().unwrap_or_default();
            frame.header.records_crc = u32::from_be_bytes(crc);
            frame.header.records_len = u32::try_from(records.len()).unwrap_or(u32::MAX);
            frame.header.record_count = record_count;
            frame.records = records;
        }
        frame
    }
}

/// The body of an entry. All of it is boxed, for openraft keeps room for thousands of entries and
/// messages in every group, each as large as the largest.
#[derive(Clone, Debug)]
pub(crate) enum Payload {
    /// What a new leader opens its term with, before it is stored.
    Blank,
    /// A membership before it is stored.
    Membership(Box<Membership>),
    /// A proposal before it is stored.
    Draft(Box<Draft>),
    /// The entry as stored; a membership comes decoded beside its frame.
    Stored {
        frame: Box<Frame>,
        membership: Option<Box<Membership>>,
    },
}

impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => f.write_str("blank"),
            Self::Membership(membership) => membership.fmt(f),
            Self::Draft(draft) => draft.fmt(f),
            Self::Stored { frame, .. } => {
                write!(f, "{:?} at {}", frame.header.kind, frame.header.base_offset)
            }
        }
    }
}

impl RaftPayload for Payload {
    type D = Draft;
    type NodeId = u64;
    type Node = ();

    fn blank() -> Self {
        Self::Blank
    }

    fn with_normal(self, data: Draft) -> Self {
        Self::Draft(Box::new(data))
    }

    fn with_membership(self, membership: Membership) -> Self {
        Self::Membership(Box::new(membership))
    }

    fn get_membership(&self) -> Option<Membership> {
        match self {
            Self::Membership(membership) => Some(membership.as_ref().clone()),
            Self::Stored { membership, .. } => membership.as_deref().cloned(),
            Self::Blank | Self::Draft(_) => None,
        }
    }
}

/// A log entry: its identity and its body.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    id: LogId,
    pub(crate) payload: Payload,
}

impl Entry {
    /// The entry that a stored frame is.
    pub(crate) fn stored(frame: Frame) -> Result<Self, CodecError> {
        let membership = match frame.header.kind {
            FrameKind::Membership => Some(Box::new(decode_membership(&frame.command)?)),
            FrameKind::Blank | FrameKind::Data => None,
            kind => return Err(CodecError::NotAnEntry(kind)),
        };
        Ok(Self {
            id: log_id(frame.header.id()),
            payload: Payload::Stored {
                frame: Box::new(frame),
                membership,
            },
        })
    }

    pub(crate) fn entry_id(&self) -> EntryId {
        entry_id(&self.id)
    }

    /// The memory promised to it before it was stored, if any was.
    pub(crate) fn claim(&self) -> Option<Arc<Claim>> {
        match &self.payload {
            Payload::Draft(draft) => draft.claim.clone(),
            Payload::Blank | Payload::Membership(_) | Payload::Stored { .. } => None,
        }
    }

    /// Bytes it takes in the log, if it comes from one, and whether it has records.
    pub(crate) fn stored_bytes(&self) -> (u64, bool) {
        match &self.payload {
            Payload::Stored { frame, .. } => {
                let header = &frame.header;
                (header.frame_len() as u64, header.record_count > 0)
            }
            Payload::Blank | Payload::Membership(_) | Payload::Draft(_) => (0, false),
        }
    }

    #[cfg(test)]
    pub(crate) fn header(&self) -> Option<&trilog_storage::frame::FrameHeader> {
        match &self.payload {
            Payload::Stored { frame, .. } => Some(&frame.header),
            Payload::Blank | Payload::Membership(_) | Payload::Draft(_) => None,
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.id, self.payload)
    }
}

impl RaftEntry for Entry {
    type CommittedLeaderId = LeaderTerm;
    type Payload = Payload;

    fn new(id: LogId, payload: Payload) -> Self {
        Self { id, payload }
    }

    fn log_id_parts(&self) -> (&LeaderTerm, u64) {
        (self.id.committed_leader_id(), self.id.index())
    }

    fn set_log_id(&mut self, id: LogId) {
        self.id = id;
    }

    fn get_membership(&self) -> Option<Membership> {
        self.payload.get_membership()
    }
}

pub(crate) fn log_id(id: EntryId) -> LogId {
    LogId::new_term_index(id.term.get(), id.index.get())
}

pub(crate) fn entry_id(id: &LogId) -> EntryId {
    EntryId {
        term: Term(id.committed_leader_id().term),
        index: LogIndex(id.index()),
    }
}
/// A vote as storage keeps it.
pub(crate) fn stored_vote(vote: &RaftVote) -> Vote {
    Vote {
        term: Term(vote.leader_id.term),
        node: ReplicaId(vote.leader_id.voted_for),
        committed: vote.committed,
    }
}

pub(crate) fn raft_vote(vote: &Vote) -> RaftVote {
    RaftVote {
        leader_id: leader_id_std::LeaderId {
            term: vote.term.get(),
            voted_for: vote.node.0,
        },
        committed: vote.committed,
    }
}
