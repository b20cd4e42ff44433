//! The unit of a peer link after the handshake: a fixed header and a payload.
//!
//! ```text
//!   0 payload length u32     4 op u8     5 reserved u8     6 code u16
//!   8 call or stream id u64
//!  16 group u64             24 from replica u64           32 to replica u64
//!  40 argument u32          44 CRC-32C of the covered payload u32
//!  48 CRC-32C of bytes 0..48
//!  52 payload
//! ```
//!
//! Integers are little-endian. `code` is the kind of a call or stream, or the code of a refusal;
//! `argument` is a call's time-out in milliseconds, or the bytes of a credit. The payload checksum
//! covers calls and replies wholly, of stream messages the first [`COVERED`] bytes: what is longer
//! holds log frames or file pieces, which carry checksums of their own that the receiver verifies.
//!
//! Decoding is a pure function of bytes: no I/O, no allocation, no panic.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use trilog_model::{GroupId, ReplicaId};

use super::peer::Route;

/// Bytes of an encoded header.
pub const HEADER_LEN: usize = 52;
/// How much of a stream message's payload the transport's own checksum covers.
pub const COVERED: usize = 4096;

const CRC_AT: usize = 48;

/// What a frame does. The numbers are on the wire: never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Op {
    /// Nothing but a sign of life.
    Ping = 1,
    Call = 2,
    Reply = 3,
    /// A call's negative answer: `code` says why, the payload may say more.
    Refused = 4,
    Open = 5,
    Data = 6,
    /// The sender of this half of the stream has finished.
    End = 7,
    /// The receiver of this half wants no more: `code` says why.
    Reset = 8,
    /// The receiver consumed this many bytes of a stream and of the link.
    Credit = 9,
    /// The sender starts nothing new on this link and will close it.
    Goodbye = 10,
}

impl Op {
    fn from_u8(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Ping,
            2 => Self::Call,
            3 => Self::Reply,
            4 => Self::Refused,
            5 => Self::Open,
            6 => Self::Data,
            7 => Self::End,
            8 => Self::Reset,
            9 => Self::Credit,
            10 => Self::Goodbye,
            _ => return None,
        })
    }

    /// How much of a payload of this length the checksum covers.
    fn covered(self, len: usize) -> usize {
        match self {
            Self::Data => len.min(COVERED),
            _ => len,
        }
    }
}

/// Everything about a frame but its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    pub op: Op,
    pub code: u16,
    pub id: u64,
    pub route: Route,
    pub argument: u32,
    pub payload_len: u32,
    pub payload_crc: u32,
}

impl FrameHeader {
    /// A header for a frame without payload.
    #[must_use]
    pub fn bare(op: Op, id: u64) -> Self {
        Self {
            op,
            code: 0,
            id,
            route: Route::default(),
            argument: 0,
            payload_len: 0,
            payload_crc: 0,
        }
    }

    /// Fills in length and checksum for a payload, whose length the caller has bounded.
    #[must_use]
    pub fn over(mut self, payload: &[Bytes]) -> Self {
        let len: usize = payload.iter().map(Bytes::len).sum();
        self.payload_len = u32::try_from(len).unwrap_or(u32::MAX);
        let mut left = self.op.covered(len);
        let mut crc = 0;
        for slice in payload {
            let part = slice.get(..left.min(slice.len())).unwrap_or_default();
            crc = crc32c::crc32c_append(crc, part);
            left -= part.len();
            if left == 0 {
                break;
            }
        }
        self.payload_crc = crc;
        self
    }

    #[must_use]
    pub fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let mut buf = &mut out[..];
        buf.put_u32_le(self.payload_len);
        buf.put_u8(self.op as u8);
        buf.put_u8(0);
        buf.put_u16_le(self.code);
        buf.put_u64_le(self.id);
        buf.put_u64_le(self.route.group.get());
        buf.put_u64_le(self.route.from.0);
        buf.put_u64_le(self.route.to.0);
        buf.put_u32_le(self.argument);
        buf.put_u32_le(self.payload_crc);
        let crc = crc32c::crc32c(&out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// Reads and verifies the header at the start of `bytes`; `None` while it is incomplete.
    pub fn decode(bytes: &[u8], max_payload: usize) -> Result<Option<Self>, FrameError> {
        let Some(header) = bytes.get(..HEADER_LEN) else {
            return Ok(None);
        };
        if crc32c::crc32c(&header[..CRC_AT]) != (&header[CRC_AT..]).get_u32_le() {
            return Err(FrameError::HeaderCrc);
        }
        let mut buf = header;
        let payload_len = buf.get_u32_le();
        let op = buf.get_u8();
        buf.advance(1);
        let decoded = Self {
            op: Op::from_u8(op).ok_or(FrameError::Op(op))?,
            code: buf.get_u16_le(),
            id: buf.get_u64_le(),
            route: Route {
                group: GroupId(buf.get_u64_le()),
                from: ReplicaId(buf.get_u64_le()),
                to: ReplicaId(buf.get_u64_le()),
            },
            argument: buf.get_u32_le(),
            payload_len,
            payload_crc: buf.get_u32_le(),
        };
        let len = payload_len as usize;
        if len > max_payload {
            return Err(FrameError::TooLong {
                len,
                max: max_payload,
            });
        }
        Ok(Some(decoded))
    }

    fn verify(&self, payload: &[u8]) -> Result<(), FrameError> {
        let covered = self.op.covered(payload.len());
        let part = payload.get(..covered).unwrap_or_default();
        if crc32c::crc32c(part) == self.payload_crc {
            Ok(())
        } else {
            Err(FrameError::PayloadCrc)
        }
    }
}

/// Cuts frames from the bytes a socket delivered.
#[derive(Debug)]
pub struct FrameDecoder {
    max_payload: usize,
    /// The header whose payload has not wholly arrived.
    pending: Option<FrameHeader>,
}

impl FrameDecoder {
    #[must_use]
    pub const fn new(max_payload: usize) -> Self {
        Self {
            max_payload,
            pending: None,
        }
    }

    /// The next whole frame, its payload a slice of `bytes`; `None` while more is needed. After an
    /// error the link is beyond repair.
    pub fn next(
        &mut self,
        bytes: &mut BytesMut,
    ) -> Result<Option<(FrameHeader, Bytes)>, FrameError> {
        let header = if let Some(header) = self.pending {
            header
        } else {
            let Some(header) = FrameHeader::decode(bytes, self.max_payload)? else {
                return Ok(None);
            };
            bytes.advance(HEADER_LEN);
            header
        };
        let len = header.payload_len as usize;
        if bytes.len() < len {
            self.pending = Some(header);
            return Ok(None);
        }
        self.pending = None;
        if len == 0 {
            header.verify(&[])?;
            return Ok(Some((header, Bytes::new())));
        }
        let payload = bytes.split_to(len).freeze();
        header.verify(&payload)?;
        Ok(Some((header, payload)))
    }

    /// How many bytes are known to be needed in all, counted from the start of what remains.
    #[must_use]
    pub fn wanted(&self) -> usize {
        self.pending
            .map_or(HEADER_LEN, |header| header.payload_len as usize)
    }
}

/// Why bytes are not a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("the frame header's checksum does not match")]
    HeaderCrc,
    #[error("the frame payload's checksum does not match")]
    PayloadCrc,
    #[error("frame op {0} is unknown to this build")]
    Op(u8),
    #[error("a frame of {len} bytes exceeds the limit of {max}")]
    TooLong { len: usize, max: usize },
}

#[cfg(test)]
mod tests;
