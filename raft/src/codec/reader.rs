//! A bounds-checked reader of little-endian fields.

use bytes::{Buf, Bytes};
use openraft::impls::leader_id_std::LeaderId;
use trilog_model::{EntryId, LogIndex, Term};

use super::{CodecError, VERSION};
use crate::types::{LogId, RaftVote, log_id};

/// Reads a message from front to back; every step fails cleanly at the end of the bytes.
#[derive(Debug)]
pub(crate) struct Reader {
    bytes: Bytes,
}

impl Reader {
    pub(crate) fn new(bytes: Bytes) -> Self {
        Self { bytes }
    }

    /// Starts a message: its version must be one this build knows.
    pub(crate) fn versioned(bytes: Bytes) -> Result<Self, CodecError> {
        let mut reader = Self::new(bytes);
        match reader.u8()? {
            0 => Err(CodecError::Version(0)),
            version if version > VERSION => Err(CodecError::Version(version)),
            _ => Ok(reader),
        }
    }

    pub(crate) fn u8(&mut self) -> Result<u8, CodecError> {
        self.bytes.try_get_u8().map_err(|_| CodecError::Truncated)
    }

    pub(crate) fn u16(&mut self) -> Result<u16, CodecError> {
        self.bytes
            .try_get_u16_le()
            .map_err(|_| CodecError::Truncated)
    }

    pub(crate) fn u32(&mut self) -> Result<u32, CodecError> {
        self.bytes
            .try_get_u32_le()
            .map_err(|_| CodecError::Truncated)
    }

    pub(crate) fn u64(&mut self) -> Result<u64, CodecError> {
        self.bytes
            .try_get_u64_le()
            .map_err(|_| CodecError::Truncated)
    }

    pub(crate) fn flag(&mut self, what: &'static str) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            value => Err(CodecError::Value {
                what,
                value: value.into(),
            }),
        }
    }

    /// A length-prefixed part, as a slice of the message.
    pub(crate) fn part(&mut self) -> Result<Bytes, CodecError> {
        let len = self.u32()? as usize;
        if self.bytes.len() < len {
            return Err(CodecError::Truncated);
        }
        Ok(self.bytes.split_to(len))
    }

    pub(crate) fn log_id(&mut self) -> Result<LogId, CodecError> {
        let term = Term(self.u64()?);
        let index = LogIndex(self.u64()?);
        Ok(log_id(EntryId { term, index }))
    }

    pub(crate) fn optional_log_id(&mut self) -> Result<Option<LogId>, CodecError> {
        self.flag("presence of a log id")?
            .then(|| self.log_id())
            .transpose()
    }

    pub(crate) fn vote(&mut self) -> Result<RaftVote, CodecError> {
        let term = self.u64()?;
        let voted_for = self.u64()?;
        let committed = self.flag("commitment of a vote")?;
        Ok(RaftVote {
            leader_id: LeaderId { term, voted_for },
            committed,
        })
    }

    /// The bytes not read yet; reading them advances the reader.
    pub(crate) fn rest(&mut self) -> &mut Bytes {
        &mut self.bytes
    }

    /// Ends the message: nothing may follow.
    pub(crate) fn finish(self) -> Result<(), CodecError> {
        match self.bytes.len() {
            0 => Ok(()),
            left => Err(CodecError::Trailing(left)),
        }
    }
}
