//! The fixed part of a batch: reading it, and what a leader demands of it before it appends.

use bytes::{Buf, Bytes};

use super::compression::{Compression, DecompressError};
use super::record::Records;

/// Bytes before the records.
pub const HEADER_LEN: usize = 61;
/// Bytes before the length field counts.
pub(super) const LENGTH_END: usize = 12;
pub(super) const CRC_AT: usize = 17;
/// Where the checksum's cover begins.
pub(super) const CRC_END: usize = 21;
const MAGIC_AT: usize = 16;
const MAGIC: i8 = 2;

/// Why bytes are not a batch that may be appended; one variant per check, so that each dialect
/// can map it to a code of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    #[error("the bytes end before the record batch does")]
    Incomplete,
    #[error("record batch format {0} is not supported, only 2 is")]
    Magic(i8),
    #[error("a record batch cannot have a length of {0}")]
    Length(i32),
    #[error("{0} bytes follow the record batch where exactly one batch is expected")]
    Trailing(usize),
    #[error("the record batch's checksum does not match its bytes")]
    Crc,
    #[error("the base offset must be zero before the append, not {0}")]
    BaseOffset(i64),
    #[error("a record batch must hold records; its count is {0}")]
    Empty(i32),
    #[error("{count} records cannot span {last_offset_delta} as the last offset delta")]
    Count { count: i32, last_offset_delta: i32 },
    #[error("only the server may write control batches")]
    Control,
    #[error("only the server may set the log append time")]
    AppendTime,
    #[error("a batch with a producer id cannot have base sequence {0}")]
    Sequence(i32),
    #[error("compression codec {0} does not exist")]
    Codec(i16),
    #[error("the records of the batch cannot be read")]
    Records,
}

/// The attribute bits of a batch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes(pub i16);

impl Attributes {
    pub(super) const CODEC: i16 = 0b111;
    /// The batch's one time is the server's, in the max timestamp.
    pub const APPEND_TIME: i16 = 1 << 3;
    pub const TRANSACTIONAL: i16 = 1 << 4;
    pub const CONTROL: i16 = 1 << 5;

    pub fn compression(self) -> Result<Compression, BatchError> {
        let codec = self.0 & Self::CODEC;
        Compression::from_code(codec).ok_or(BatchError::Codec(codec))
    }

    #[must_use]
    pub const fn is_append_time(self) -> bool {
        self.0 & Self::APPEND_TIME != 0
    }

    #[must_use]
    pub const fn is_transactional(self) -> bool {
        self.0 & Self::TRANSACTIONAL != 0
    }

    #[must_use]
    pub const fn is_control(self) -> bool {
        self.0 & Self::CONTROL != 0
    }
}

/// The header of a batch, as numbers. Times are milliseconds since the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    pub base_offset: i64,
    /// Bytes after the length field.
    pub length: i32,
    pub leader_epoch: i32,
    pub crc: u32,
    pub attributes: Attributes,
    pub last_offset_delta: i32,
    pub base_timestamp: i64,
    pub max_timestamp: i64,
    /// -1 when the producer is not idempotent.
    pub producer_id: i64,
    pub producer_epoch: i16,
    pub base_sequence: i32,
    pub record_count: i32,
}

impl BatchHeader {
    /// Reads the header at the start of `bytes`, which may go on beyond the batch. Checks the
    /// format and that the batch's length can be true, nothing else.
    pub fn parse(bytes: &[u8]) -> Result<Self, BatchError> {
        let magic = *bytes.get(MAGIC_AT).ok_or(BatchError::Incomplete)?;
        if magic.cast_signed() != MAGIC {
            return Err(BatchError::Magic(magic.cast_signed()));
        }
        let mut buf = bytes.get(..HEADER_LEN).ok_or(BatchError::Incomplete)?;
        let base_offset = buf.get_i64();
        let length = buf.get_i32();
        let leader_epoch = buf.get_i32();
        buf.advance(1);
        let header = Self {
            base_offset,
            length,
            leader_epoch,
            crc: buf.get_u32(),
            attributes: Attributes(buf.get_i16()),
            last_offset_delta: buf.get_i32(),
            base_timestamp: buf.get_i64(),
            max_timestamp: buf.get_i64(),
            producer_id: buf.get_i64(),
            producer_epoch: buf.get_i16(),
            base_sequence: buf.get_i32(),
            record_count: buf.get_i32(),
        };
        if header.batch_len() < HEADER_LEN {
            return Err(BatchError::Length(length));
        }
        Ok(header)
    }

    /// Everything a leader demands of a produced batch: `bytes` are exactly one batch, intact,
    /// not yet placed, with believable counts and sequences. Reads the payload once, for the
    /// checksum; the records themselves stay unread.
    pub fn validate(bytes: &[u8]) -> Result<Self, BatchError> {
        let header = Self::parse(bytes)?;
        header.check_extent(bytes)?;
        header.check_crc(bytes)?;
        header.check_fields()?;
        Ok(header)
    }

    /// Bytes of the whole batch; zero when the length field is nonsense.
    #[must_use]
    pub fn batch_len(&self) -> usize {
        usize::try_from(self.length).map_or(0, |length| length.saturating_add(LENGTH_END))
    }

    /// Whether `bytes` are this batch, no more and no less.
    pub fn check_extent(&self, bytes: &[u8]) -> Result<(), BatchError> {
        match bytes.len().checked_sub(self.batch_len()) {
            None => Err(BatchError::Incomplete),
            Some(0) => Ok(()),
            Some(trailing) => Err(BatchError::Trailing(trailing)),
        }
    }

    /// Compares the checksum with the bytes it covers.
    pub fn check_crc(&self, bytes: &[u8]) -> Result<(), BatchError> {
        let covered = bytes
            .get(CRC_END..self.batch_len())
            .ok_or(BatchError::Incomplete)?;
        if crc32c::crc32c(covered) == self.crc {
            Ok(())
        } else {
            Err(BatchError::Crc)
        }
    }

    /// The rules for a producer's batch that the header alone decides.
    pub fn check_fields(&self) -> Result<(), BatchError> {
        if self.base_offset != 0 {
            return Err(BatchError::BaseOffset(self.base_offset));
        }
        if self.record_count <= 0 {
            return Err(BatchError::Empty(self.record_count));
        }
        if self.last_offset_delta != self.record_count - 1 {
            return Err(BatchError::Count {
                count: self.record_count,
                last_offset_delta: self.last_offset_delta,
            });
        }
        if self.attributes.is_control() {
            return Err(BatchError::Control);
        }
        if self.attributes.is_append_time() {
            return Err(BatchError::AppendTime);
        }
        if self.is_idempotent() && self.base_sequence < 0 {
            return Err(BatchError::Sequence(self.base_sequence));
        }
        self.attributes.compression().map(|_| ())
    }

    #[must_use]
    pub const fn is_idempotent(&self) -> bool {
        self.producer_id >= 0
    }

    /// The sequence of the last record; meaningful for an idempotent producer only.
    #[must_use]
    pub const fn last_sequence(&self) -> i32 {
        sequence_after(self.base_sequence, self.last_offset_delta)
    }

    /// The offset of the last record.
    #[must_use]
    pub fn last_offset(&self) -> i64 {
        self.base_offset
            .saturating_add(i64::from(self.last_offset_delta))
    }

    /// The records of this batch, whose whole bytes are `bytes`, decompressed into at most
    /// `max_bytes`. Uncompressed records are a slice of `bytes`, without a copy.
    pub fn records(&self, bytes: &Bytes, max_bytes: usize) -> Result<Records, DecompressError> {
        let end = self.batch_len();
        if end < HEADER_LEN || bytes.len() < end {
            return Err(DecompressError::Corrupt);
        }
        let codec = self
            .attributes
            .compression()
            .map_err(|_| DecompressError::Corrupt)?;
        let payload = codec.decompress(&bytes.slice(HEADER_LEN..end), max_bytes)?;
        Ok(Records::new(*self, payload))
    }
}

/// The sequence `records` further on than `sequence`: past 2^31 - 1 they begin again at zero.
#[must_use]
pub const fn sequence_after(sequence: i32, records: i32) -> i32 {
    // Two's complement addition, then the sign bit dropped, is addition modulo 2^31.
    sequence.wrapping_add(records) & i32::MAX
}
