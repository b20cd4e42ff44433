//! The messages between replicas of one group.
//!
//! ```text
//! vote, pre-vote   vote, last log id?, transfer u8      -> vote, last log id?, granted u8
//! append           vote, previous id?, commit?,
//!                  count u32, frames ...                -> 0 matched id? | 1 conflict id | 2 vote
//! snapshot         vote, X id, membership id?,
//!                  membership part, descriptor part     -> vote
//! transfer         vote, to u64, last log id?           -> 0 | 1 vote | 2 last id?
//!
//! vote = term u64, node u64, committed u8;  id = term u64, index u64;  ? = presence u8 before it
//! part = length u32, bytes
//! ```

use bytes::{BufMut, Bytes, BytesMut};
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderError,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use trilog_storage::frame::{BATCH_PREFIX_LEN, Frame, HEADER_LEN};

use super::{CodecError, Reader, VERSION, decode_membership, encode_membership};
use crate::types::{Entry, LogId, Payload, RaftVote, StoredMembership, TypeConfig};

/// Bytes of a message without variable parts; a first capacity, not a limit.
const HEAD_LEN: usize = 80;
const PRESENT: u8 = 1;
const ABSENT: u8 = 0;

/// The answer to an append.
pub(crate) type AppendReply = StreamAppendResult<TypeConfig>;
/// The answer to a request to take over leadership.
pub(crate) type TransferReply = TransferLeaderResponse<TypeConfig>;

/// A log-start descriptor under way to a replica behind the log start.
#[derive(Clone, Debug)]
pub(crate) struct SnapshotMessage {
    pub(crate) vote: RaftVote,
    pub(crate) last: LogId,
    pub(crate) membership: StoredMembership,
    pub(crate) descriptor: Bytes,
}

fn head() -> BytesMut {
    let mut out = BytesMut::with_capacity(HEAD_LEN);
    out.put_u8(VERSION);
    out
}

fn put_vote(out: &mut BytesMut, vote: &RaftVote) {
    out.put_u64_le(vote.leader_id.term);
    out.put_u64_le(vote.leader_id.voted_for);
    out.put_u8(u8::from(vote.committed));
}

fn put_log_id(out: &mut BytesMut, id: &LogId) {
    out.put_u64_le(id.committed_leader_id().term);
    out.put_u64_le(id.index());
}

fn put_optional(out: &mut BytesMut, id: Option<&LogId>) {
    match id {
        None => out.put_u8(ABSENT),
        Some(id) => {
            out.put_u8(PRESENT);
            put_log_id(out, id);
        }
    }
}

fn put_part(out: &mut BytesMut, part: &[u8]) {
    out.put_u32_le(u32::try_from(part.len()).unwrap_or(u32::MAX));
    out.put_slice(part);
}

pub(crate) fn encode_vote(request: &VoteRequest<TypeConfig>) -> Bytes {
    let mut out = head();
    put_vote(&mut out, &request.vote);
    put_optional(&mut out, request.last_log_id.as_ref());
    out.put_u8(u8::from(request.leadership_transfer));
    out.freeze()
}

pub(crate) fn decode_vote(bytes: Bytes) -> Result<VoteRequest<TypeConfig>, CodecError> {
    let mut reader = Reader::versioned(bytes)?;
    let mut request = VoteRequest::new(reader.vote()?, reader.optional_log_id()?);
    request.leadership_transfer = reader.flag("leadership transfer")?;
    reader.finish()?;
    Ok(request)
}

pub(crate) fn encode_vote_reply(reply: &VoteResponse<TypeConfig>) -> Bytes {
    let mut out = head();
    put_vote(&mut out, &reply.vote);
    put_optional(&mut out, reply.last_log_id.as_ref());
    out.put_u8(u8::from(reply.vote_granted));
    out.freeze()
}

pub(crate) fn decode_vote_reply(bytes: Bytes) -> Result<VoteResponse<TypeConfig>, CodecError> {
    let mut reader = Reader::versioned(bytes)?;
    let vote = reader.vote()?;
    let last_log_id = reader.optional_log_id()?;
    let granted = reader.flag("grant of a vote")?;
    reader.finish()?;
    Ok(VoteResponse::new(vote, last_log_id, granted))
}

/// An append as slices for a vectored write: fresh heads, shared payload. Entries that are not
/// stored frames never get here, for a leader replicates only what its own log returned.
pub(crate) fn encode_append(
    request: AppendEntriesRequest<TypeConfig>,
) -> Result<Vec<Bytes>, CodecError> {
    let count = request.entries.len();
    // One allocation for the message's head and the heads of all its frames.
    let mut heads = BytesMut::with_capacity(HEAD_LEN + count * (HEADER_LEN + BATCH_PREFIX_LEN));
    heads.put_u8(VERSION);
    put_vote(&mut heads, &request.vote);
    put_optional(&mut heads, request.prev_log_id.as_ref());
    put_optional(&mut heads, request.leader_commit.as_ref());
    heads.put_u32_le(u32::try_from(count).unwrap_or(u32::MAX));
    let mut out = Vec::with_capacity(1 + 2 * count);
    for entry in request.entries {
        let Payload::Stored { frame, .. } = entry.payload else {
            return Err(CodecError::Value {
                what: "an entry that is not stored yet",
                value: entry.entry_id().index.get(),
            });
        };
        push_frame(*frame, &mut heads, &mut out);
    }
    if !heads.is_empty() {
        out.push(heads.freeze());
    }
    Ok(out)
}

/// Appends a frame to `out`, its head joined to the bytes already waiting in `heads`.
fn push_frame(frame: Frame, heads: &mut BytesMut, out: &mut Vec<Bytes>) {
    heads.put_slice(&frame.header.encode());
    if let Some((prefix, body)) = frame.batch_slices() {
        heads.put_slice(&prefix);
        out.push(heads.split().freeze());
        out.push(body);
    }
    if !frame.command.is_empty() {
        if !heads.is_empty() {
            out.push(heads.split().freeze());
        }
        out.push(frame.command);
    }
}

/// Cuts an append into its frames, each verified, the payload left where it is.
pub(crate) fn decode_append(bytes: Bytes) -> Result<AppendEntriesRequest<TypeConfig>, CodecError> {
    let mut reader = Reader::versioned(bytes)?;
    let vote = reader.vote()?;
    let prev_log_id = reader.optional_log_id()?;
    let leader_commit = reader.optional_log_id()?;
    let count = reader.u32()? as usize;
    if count > reader.rest().len() / HEADER_LEN {
        return Err(CodecError::Truncated);
    }
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push(Entry::stored(Frame::decode(reader.rest())?)?);
    }
    reader.finish()?;
    check_chain(prev_log_id.as_ref(), &entries)?;
    Ok(AppendEntriesRequest {
        vote,
        prev_log_id,
        entries,
        leader_commit,
    })
}

/// openraft takes consecutive entries for granted, so a message that breaks the chain stops here.
fn check_chain(previous: Option<&LogId>, entries: &[Entry]) -> Result<(), CodecError> {
    let mut term = previous.map_or(0, |id| id.committed_leader_id().term);
    let mut next = previous.map_or(0, |id| id.index().wrapping_add(1));
    for entry in entries {
        let id = entry.entry_id();
        if id.index.get() != next || id.term.get() < term {
            return Err(CodecError::Value {
                what: "the index of an entry in an append",
                value: id.index.get(),
            });
        }
        term = id.term.get();
        next = next.wrapping_add(1);
    }
    Ok(())
}

pub(crate) fn encode_append_reply(reply: &AppendReply) -> Bytes {
    let mut out = head();
    match reply {
        Ok(matched) => {
            out.put_u8(0);
            put_optional(&mut out, matched.as_ref());
        }
        Err(StreamAppendError::Conflict(id)) => {
            out.put_u8(1);
            put_log_id(&mut out, id);
        }
        Err(StreamAppendError::HigherVote(vote)) => {
            out.put_u8(2);
            put_vote(&mut out, vote);
        }
    }
    out.freeze()
}

pub(crate) fn decode_append_reply(bytes: Bytes) -> Result<AppendReply, CodecError> {
    let mut reader = Reader::versioned(bytes)?;
    let reply = match reader.u8()? {
        0 => Ok(reader.optional_log_id()?),
        1 => Err(StreamAppendError::Conflict(reader.log_id()?)),
        2 => Err(StreamAppendError::HigherVote(reader.vote()?)),
        value => {
            return Err(CodecError::Value {
                what: "the kind of an append reply",
                value: value.into(),
            });
        }
    };
    reader.finish()?;
    Ok(reply)
}

pub(crate) fn encode_snapshot(message: &SnapshotMessage) -> Vec<Bytes> {
    let mut out = head();
    put_vote(&mut out, &message.vote);
    put_log_id(&mut out, &message.last);
    put_optional(&mut out, message.membership.log_id().as_ref());
    put_part(
        &mut out,
        &encode_membership(message.membership.membership()),
    );
    out.put_u32_le(u32::try_from(message.descriptor.len()).unwrap_or(u32::MAX));
    vec![out.freeze(), message.descriptor.clone()]
}

pub(crate) fn decode_snapshot(bytes: Bytes) -> Result<SnapshotMessage, CodecError> {
    let mut reader = Reader::versioned(bytes)?;
    let vote = reader.vote()?;
    let last = reader.log_id()?;
    let membership_at = reader.optional_log_id()?;
    let membership = decode_membership(&reader.part()?)?;
    let descriptor = reader.part()?;
    reader.finish()?;
    // openraft stops a replica for good on a snapshot beyond its leader's vote.
    if last.committed_leader_id().term > vote.leader_id.term {
        return Err(CodecError::Value {
            what: "the term of a log-start descriptor",
            value: last.committed_leader_id().term,
        });
    }
    Ok(SnapshotMessage {
        vote,
        last,
        membership: StoredMembership::new(membership_at, membership),
        descriptor,
    })
}

pub(crate) fn encode_snapshot_reply(vote: &RaftVote) -> Bytes {
    let mut out = head();
    put_vote(&mut out, vote);
    out.freeze()
}

pub(crate) fn decode_snapshot_reply(bytes: Bytes) -> Result<RaftVote, CodecError> {
    let mut reader = Reader::versioned(bytes)?;
    let vote = reader.vote()?;
    reader.finish()?;
    Ok(vote)
}

pub(crate) fn encode_transfer(request: &TransferLeaderRequest<TypeConfig>) -> Bytes {
    let mut out = head();
    put_vote(&mut out, request.from_leader());
    out.put_u64_le(*request.to_node_id());
    put_optional(&mut out, request.last_log_id());
    out.freeze()
}

pub(crate) fn decode_transfer(
    bytes: Bytes,
) -> Result<TransferLeaderRequest<TypeConfig>, CodecError> {
    let mut reader = Reader::versioned(bytes)?;
    let from = reader.vote()?;
    let to = reader.u64()?;
    let last_log_id = reader.optional_log_id()?;
    reader.finish()?;
    Ok(TransferLeaderRequest::new(from, to, last_log_id))
}

pub(crate) fn encode_transfer_reply(reply: &TransferReply) -> Bytes {
    let mut out = head();
    match reply {
        Ok(()) => out.put_u8(0),
        Err(TransferLeaderError::VoteChanged { actual, .. }) => {
            out.put_u8(1);
            put_vote(&mut out, actual);
        }
        Err(TransferLeaderError::LogNotFlushed { actual, .. }) => {
            out.put_u8(2);
            put_optional(&mut out, actual.as_ref());
        }
    }
    out.freeze()
}

/// Reads the answer to `request`, which knows what was expected.
pub(crate) fn decode_transfer_reply(
    request: &TransferLeaderRequest<TypeConfig>,
    bytes: Bytes,
) -> Result<TransferReply, CodecError> {
    let mut reader = Reader::versioned(bytes)?;
    let reply = match reader.u8()? {
        0 => Ok(()),
        1 => Err(TransferLeaderError::VoteChanged {
            expected: *request.from_leader(),
            actual: reader.vote()?,
        }),
        2 => Err(TransferLeaderError::LogNotFlushed {
            expected: request.last_log_id().copied(),
            actual: reader.optional_log_id()?,
        }),
        value => {
            return Err(CodecError::Value {
                what: "the kind of a transfer reply",
                value: value.into(),
            });
        }
    };
    reader.finish()?;
    Ok(reply)
}

#[cfg(test)]
mod tests;
