//! Writing batches: records in, the bytes of one batch out.

use bytes::{Buf, BufMut, Bytes};

use super::compression::Compression;
use super::header::{Attributes, CRC_AT, CRC_END, HEADER_LEN, LENGTH_END};
use super::record::Header;
use super::varint;

const ATTRIBUTES_AT: usize = CRC_END;
const MAX_TIMESTAMP_AT: usize = 35;
/// Where a batch holds its producer's id, epoch and sequence.
const PRODUCER_AT: usize = 43;
const PRODUCER_END: usize = 57;

/// Why a batch could not be built.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("a record batch needs at least one record")]
    Empty,
    #[error("the record batch would be larger than the format allows")]
    TooLarge,
    #[error("the records could not be compressed")]
    Compress(#[source] std::io::Error),
}

/// What an idempotent producer stamps on a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProducerState {
    pub id: i64,
    pub epoch: i16,
    /// The sequence of the batch's first record.
    pub sequence: i32,
}

impl ProducerState {
    const NONE: Self = Self {
        id: -1,
        epoch: -1,
        sequence: -1,
    };
}

/// Collects records and makes one batch of them.
///
/// Records are encoded as they come, behind room for the header, so an uncompressed batch is
/// never copied.
///
/// ```
/// use trilog_model::batch::{BatchBuilder, BatchHeader, Compression};
///
/// let mut builder = BatchBuilder::new(Compression::Lz4);
/// builder.push(1_700_000_000_000, Some(b"key"), Some(b"value"), &[])?;
/// let batch = builder.build()?;
/// let header = BatchHeader::validate(&batch)?;
/// let records = header.records(&batch, 1 << 20)?;
/// let record = records.iter().next().unwrap()?;
/// assert_eq!(record.value, Some(&b"value"[..]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug)]
pub struct BatchBuilder {
    /// Room for the header, then the encoded records.
    buf: Vec<u8>,
    compression: Compression,
    flags: i16,
    producer: ProducerState,
    count: i32,
    base_timestamp: i64,
    max_timestamp: i64,
}

impl BatchBuilder {
    #[must_use]
    pub fn new(compression: Compression) -> Self {
        Self::with_capacity(compression, 512)
    }

    /// With room for `bytes` of encoded records.
    #[must_use]
    pub fn with_capacity(compression: Compression, bytes: usize) -> Self {
        let mut buf = Vec::with_capacity(HEADER_LEN.saturating_add(bytes));
        buf.resize(HEADER_LEN, 0);
        Self {
            buf,
            compression,
            flags: 0,
            producer: ProducerState::NONE,
            count: 0,
            base_timestamp: -1,
            max_timestamp: -1,
        }
    }

    /// Stamps the batch with an idempotent producer's id, epoch and sequence.
    pub fn set_producer(&mut self, producer: ProducerState) -> &mut Self {
        self.producer = producer;
        self
    }

    /// Marks the batch as part of its producer's transaction.
    pub fn set_transactional(&mut self) -> &mut Self {
        self.flags |= Attributes::TRANSACTIONAL;
        self
    }

    /// Marks the batch as the server's own: it holds a marker, no data.
    pub fn set_control(&mut self) -> &mut Self {
        self.flags |= Attributes::CONTROL;
        self
    }

    /// Encodes one record; `timestamp` is in milliseconds since the epoch.
    pub fn push(
        &mut self,
        timestamp: i64,
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
    ) -> Result<(), BuildError> {
        if self.count == 0 {
            self.base_timestamp = timestamp;
            self.max_timestamp = timestamp;
        }
        let timestamp_delta = timestamp.wrapping_sub(self.base_timestamp);
        let offset_delta = i64::from(self.count);
        let body_len = 1
            + varint::len(timestamp_delta)
            + varint::len(offset_delta)
            + nullable_len(key)?
            + nullable_len(value)?
            + headers_len(headers)?;
        let body_len = wire_len(body_len)?;
        // The batch's length field counts everything from byte 12, in 31 bits.
        wire_len(
            self.buf
                .len()
                .saturating_add(body_len.unsigned_abs() as usize + 5),
        )?;
        let count = self.count.checked_add(1).ok_or(BuildError::TooLarge)?;

        let out = &mut self.buf;
        varint::put(out, i64::from(body_len));
        out.push(0);
        varint::put(out, timestamp_delta);
        varint::put(out, offset_delta);
        put_nullable(out, key);
        put_nullable(out, value);
        varint::put(out, i64::try_from(headers.len()).unwrap_or(i64::MAX));
        for header in headers {
            put_nullable(out, Some(header.key));
            put_nullable(out, header.value);
        }
        self.count = count;
        self.max_timestamp = self.max_timestamp.max(timestamp);
        Ok(())
    }

    /// Records so far.
    #[must_use]
    pub const fn record_count(&self) -> i32 {
        self.count
    }

    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of the batch if it were built now, uncompressed.
    #[must_use]
    pub fn uncompressed_len(&self) -> usize {
        self.buf.len()
    }

    /// An upper bound of what [`push`](Self::push) would add for such a record.
    #[must_use]
    pub fn record_len_bound(
        key: Option<&[u8]>,
        value: Option<&[u8]>,
        headers: &[Header<'_>],
    ) -> usize {
        // Length, attributes, timestamp and offset deltas, key and value lengths, header count.
        const FIXED: usize = 5 + 1 + 10 + 5 + 5 + 5 + 5;
        headers.iter().fold(
            FIXED + key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len),
            |sum, header| sum + 10 + header.key.len() + header.value.map_or(0, <[u8]>::len),
        )
    }

    /// The finished batch: base offset zero, leader epoch unset, checksum right.
    pub fn build(self) -> Result<Bytes, BuildError> {
        if self.count == 0 {
            return Err(BuildError::Empty);
        }
        let mut batch = if self.compression == Compression::None {
            self.buf
        } else {
            let mut out = Vec::with_capacity(HEADER_LEN + self.buf.len() / 2);
            out.resize(HEADER_LEN, 0);
            self.compression
                .compress(&self.buf[HEADER_LEN..], &mut out)
                .map_err(BuildError::Compress)?;
            out
        };
        let length = wire_len(batch.len() - LENGTH_END)?;
        let mut head = &mut batch[..HEADER_LEN];
        head.put_i64(0);
        head.put_i32(length);
        head.put_i32(-1);
        head.put_i8(2);
        head.put_u32(0);
        head.put_i16(self.flags | i16::from(self.compression as u8));
        head.put_i32(self.count - 1);
        head.put_i64(self.base_timestamp);
        head.put_i64(self.max_timestamp);
        head.put_i64(self.producer.id);
        head.put_i16(self.producer.epoch);
        head.put_i32(self.producer.sequence);
        head.put_i32(self.count);
        seal(&mut batch);
        Ok(Bytes::from(batch))
    }
}

/// The control batch that ends a producer's transaction in a partition.
pub fn marker(
    producer: ProducerState,
    commit: bool,
    coordinator_epoch: i32,
    timestamp: i64,
) -> Result<Bytes, BuildError> {
    let key = [0, 0, 0, u8::from(commit)];
    let mut value = [0; 6];
    value[2..].copy_from_slice(&coordinator_epoch.to_be_bytes());
    let mut builder = BatchBuilder::new(Compression::None);
    builder
        .set_producer(producer)
        .set_transactional()
        .set_control();
    builder.push(timestamp, Some(&key), Some(&value), &[])?;
    builder.build()
}

/// A copy of a whole batch under another producer identity; one too short to be a batch stays as
/// it is.
#[must_use]
pub fn restamp(batch: &Bytes, producer: ProducerState) -> Bytes {
    let mut bytes = batch.to_vec();
    let Some(mut fields) = bytes.get_mut(PRODUCER_AT..PRODUCER_END) else {
        return batch.clone();
    };
    fields.put_i64(producer.id);
    fields.put_i16(producer.epoch);
    fields.put_i32(producer.sequence);
    seal(&mut bytes);
    Bytes::from(bytes)
}

/// A copy of a whole batch whose records all have the time of their append, `millis`, as Kafka
/// marks it: the attribute bit, and the time as the batch's greatest. Both lie under the checksum,
/// which is made anew. One too short to be a batch stays as it is.
#[must_use]
pub fn stamp_append_time(batch: &Bytes, millis: i64) -> Bytes {
    let mut bytes = batch.to_vec();
    let Some(mut attributes) = bytes.get_mut(ATTRIBUTES_AT..ATTRIBUTES_AT + 2) else {
        return batch.clone();
    };
    let marked = (&*attributes).get_i16() | Attributes::APPEND_TIME;
    attributes.put_i16(marked);
    let Some(mut latest) = bytes.get_mut(MAX_TIMESTAMP_AT..PRODUCER_AT) else {
        return batch.clone();
    };
    latest.put_i64(millis);
    seal(&mut bytes);
    Bytes::from(bytes)
}

/// Writes the checksum of a batch whose other bytes are final.
pub(super) fn seal(batch: &mut [u8]) {
    let crc = crc32c::crc32c(&batch[CRC_END..]);
    batch[CRC_AT..CRC_END].copy_from_slice(&crc.to_be_bytes());
}

fn wire_len(len: usize) -> Result<i32, BuildError> {
    i32::try_from(len).map_err(|_| BuildError::TooLarge)
}

fn nullable_len(bytes: Option<&[u8]>) -> Result<usize, BuildError> {
    let Some(bytes) = bytes else {
        return Ok(varint::len(-1));
    };
    let len = wire_len(bytes.len())?;
    Ok(varint::len(i64::from(len)) + bytes.len())
}

fn headers_len(headers: &[Header<'_>]) -> Result<usize, BuildError> {
    let count = wire_len(headers.len())?;
    headers
        .iter()
        .try_fold(varint::len(i64::from(count)), |sum, header| {
            Ok(sum + nullable_len(Some(header.key))? + nullable_len(header.value)?)
        })
}

fn put_nullable(out: &mut Vec<u8>, bytes: Option<&[u8]>) {
    match bytes {
        None => varint::put(out, -1),
        Some(bytes) => {
            varint::put(out, i64::try_from(bytes.len()).unwrap_or(i64::MAX));
            out.extend_from_slice(bytes);
        }
    }
}
