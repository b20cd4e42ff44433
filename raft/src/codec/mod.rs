//! Raft messages and memberships as bytes, between versions of this project.
//!
//! Every message starts with [`VERSION`]; integers are little-endian; every length is checked
//! against the bytes at hand before anything is made of it. Entries travel as the very frames
//! storage keeps, their payload as shared slices: nothing here copies a record.

mod membership;
mod reader;
mod rpc;

pub(crate) use membership::{decode_membership, encode_membership};
pub(crate) use reader::Reader;
pub(crate) use rpc::{
    SnapshotMessage, decode_append, decode_append_reply, decode_snapshot, decode_snapshot_reply,
    decode_transfer, decode_transfer_reply, decode_vote, decode_vote_reply, encode_append,
    encode_append_reply, encode_snapshot, encode_snapshot_reply, encode_transfer,
    encode_transfer_reply, encode_vote, encode_vote_reply,
};

use trilog_storage::frame::{FrameError, FrameKind};

/// The version of the message formats that this build writes and the newest it reads.
pub(crate) const VERSION: u8 = 1;

/// Why bytes are not the message they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    #[error("the message ends before its content does")]
    Truncated,
    #[error("{0} bytes follow the end of the message")]
    Trailing(usize),
    #[error("message version {0} is unknown to this build (it reads up to {VERSION})")]
    Version(u8),
    #[error("{what} cannot be {value}")]
    Value { what: &'static str, value: u64 },
    #[error("a membership that no group can have")]
    Membership,
    #[error("a {0:?} frame is no log entry")]
    NotAnEntry(FrameKind),
    #[error("a frame of a message is damaged")]
    Frame(#[from] FrameError),
}

impl CodecError {
    /// Whether a newer build may know what this one does not.
    pub(crate) fn is_newer(&self) -> bool {
        match self {
            Self::Version(version) => *version > VERSION,
            Self::Frame(error) => matches!(error, FrameError::Version(_) | FrameError::Kind(_)),
            _ => false,
        }
    }
}

impl From<CodecError> for std::io::Error {
    fn from(error: CodecError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}
