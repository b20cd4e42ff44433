//! Reading the records of a batch, as slices of its bytes.

use bytes::Bytes;

use super::header::BatchHeader;
use super::varint::{take_i32, take_i64};

/// Why the records of a batch cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    #[error("the batch ends inside a record")]
    Incomplete,
    #[error("a length or count inside a record is impossible")]
    Length,
    #[error("a record does not fill the length it states")]
    Unfilled,
    #[error("the record's offset delta {0} is out of place")]
    OffsetDelta(i32),
    #[error("bytes follow the last record of the batch")]
    Trailing,
}

/// A record's header. Keys may repeat, and their order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header<'a> {
    pub key: &'a [u8],
    pub value: Option<&'a [u8]>,
}

/// One record, borrowed from its batch; `Bytes::slice_ref` on [`Records::payload`] shares a part
/// of it for longer.
#[derive(Clone, Copy, Debug)]
pub struct Record<'a> {
    /// The record's offset is this beyond the batch's base offset.
    pub offset_delta: i32,
    /// Milliseconds since the epoch.
    pub timestamp: i64,
    pub key: Option<&'a [u8]>,
    pub value: Option<&'a [u8]>,
    headers: &'a [u8],
    header_count: usize,
}

impl<'a> Record<'a> {
    /// The headers, in order, repeated keys included.
    #[must_use]
    pub fn headers(&self) -> Headers<'a> {
        Headers {
            rest: self.headers,
            left: self.header_count,
        }
    }

    /// Cuts the next record from the front of `rest`.
    fn take(rest: &mut &'a [u8], batch: &BatchHeader) -> Result<Self, RecordError> {
        let len = take_i32(rest).ok_or(RecordError::Incomplete)?;
        let len = usize::try_from(len).map_err(|_| RecordError::Length)?;
        let (mut body, after) = rest.split_at_checked(len).ok_or(RecordError::Incomplete)?;
        *rest = after;
        // The record's own attributes: none are in use, so none are refused.
        body = body.get(1..).ok_or(RecordError::Length)?;
        let timestamp_delta = take_i64(&mut body).ok_or(RecordError::Length)?;
        let offset_delta = take_i32(&mut body).ok_or(RecordError::Length)?;
        let key = take_nullable(&mut body)?;
        let value = take_nullable(&mut body)?;
        let header_count = take_i32(&mut body).ok_or(RecordError::Length)?;
        let header_count = usize::try_from(header_count).map_err(|_| RecordError::Length)?;
        let headers = body;
        for _ in 0..header_count {
            take_header(&mut body)?;
        }
        if !body.is_empty() {
            return Err(RecordError::Unfilled);
        }
        let timestamp = if batch.attributes.is_append_time() {
            batch.max_timestamp
        } else {
            batch.base_timestamp.wrapping_add(timestamp_delta)
        };
        Ok(Self {
            offset_delta,
            timestamp,
            key,
            value,
            headers,
            header_count,
        })
    }
}

/// Equal in what they say; the same headers may be spelled with longer varints.
impl PartialEq for Record<'_> {
    fn eq(&self, other: &Self) -> bool {
        (self.offset_delta, self.timestamp) == (other.offset_delta, other.timestamp)
            && (self.key, self.value) == (other.key, other.value)
            && self.headers().eq(other.headers())
    }
}

impl Eq for Record<'_> {}

/// The headers of a record, already checked when the record was read.
#[derive(Clone, Debug)]
pub struct Headers<'a> {
    rest: &'a [u8],
    left: usize,
}

impl<'a> Iterator for Headers<'a> {
    type Item = Header<'a>;

    fn next(&mut self) -> Option<Header<'a>> {
        self.left = self.left.checked_sub(1)?;
        take_header(&mut self.rest).ok()
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl ExactSizeIterator for Headers<'_> {}

fn take_header<'a>(body: &mut &'a [u8]) -> Result<Header<'a>, RecordError> {
    let key = take_nullable(body)?.ok_or(RecordError::Length)?;
    let value = take_nullable(body)?;
    Ok(Header { key, value })
}

/// A length and that many bytes; -1 is null.
fn take_nullable<'a>(body: &mut &'a [u8]) -> Result<Option<&'a [u8]>, RecordError> {
    let len = take_i32(body).ok_or(RecordError::Length)?;
    if len == -1 {
        return Ok(None);
    }
    let len = usize::try_from(len).map_err(|_| RecordError::Length)?;
    let (head, rest) = body.split_at_checked(len).ok_or(RecordError::Length)?;
    *body = rest;
    Ok(Some(head))
}

/// The decompressed records of one batch.
#[derive(Clone, Debug)]
pub struct Records {
    header: BatchHeader,
    payload: Bytes,
}

impl Records {
    pub(super) fn new(header: BatchHeader, payload: Bytes) -> Self {
        Self { header, payload }
    }

    /// The bytes that records borrow from.
    #[must_use]
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    #[must_use]
    pub fn iter(&self) -> RecordIter<'_> {
        RecordIter::new(self.header, &self.payload)
    }

    /// Reads every record of a freshly produced batch: each must be well-formed and have its
    /// place in the count as offset delta.
    pub fn check(&self) -> Result<(), RecordError> {
        for (place, record) in self.iter().enumerate() {
            let delta = record?.offset_delta;
            if usize::try_from(delta) != Ok(place) {
                return Err(RecordError::OffsetDelta(delta));
            }
        }
        Ok(())
    }
}

impl<'a> IntoIterator for &'a Records {
    type Item = Result<Record<'a>, RecordError>;
    type IntoIter = RecordIter<'a>;

    fn into_iter(self) -> RecordIter<'a> {
        self.iter()
    }
}

/// Walks the records of a batch. Ends after the first error; yields one at the end if bytes are
/// left over. Offset deltas must rise but may skip, as in a compacted batch.
#[derive(Clone, Debug)]
pub struct RecordIter<'a> {
    batch: BatchHeader,
    rest: &'a [u8],
    left: i32,
    min_delta: i32,
}

impl<'a> RecordIter<'a> {
    /// Over `payload`, the decompressed records of the batch that `batch` heads.
    #[must_use]
    pub fn new(batch: BatchHeader, payload: &'a [u8]) -> Self {
        Self {
            batch,
            rest: payload,
            left: batch.record_count.max(0),
            min_delta: 0,
        }
    }

    /// Bytes that are not gone through yet.
    pub(super) fn remaining(&self) -> usize {
        self.rest.len()
    }

    fn take(&mut self) -> Result<Record<'a>, RecordError> {
        let record = Record::take(&mut self.rest, &self.batch)?;
        let delta = record.offset_delta;
        if delta < self.min_delta || delta > self.batch.last_offset_delta {
            return Err(RecordError::OffsetDelta(delta));
        }
        self.min_delta = delta.saturating_add(1);
        Ok(record)
    }

    fn stop(&mut self) {
        self.left = 0;
        self.rest = &[];
    }
}

impl<'a> Iterator for RecordIter<'a> {
    type Item = Result<Record<'a>, RecordError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            let trailing = !self.rest.is_empty();
            self.stop();
            return trailing.then_some(Err(RecordError::Trailing));
        }
        self.left -= 1;
        let taken = self.take();
        if taken.is_err() {
            self.stop();
        }
        Some(taken)
    }
}
