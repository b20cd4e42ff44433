//! Taking records out of a batch that is in a log already, as compaction does.

use bytes::Bytes;

use super::builder::seal;
use super::compression::DecompressError;
use super::header::{BatchHeader, HEADER_LEN, LENGTH_END};
use super::record::{Record, RecordError};

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Retained {
    All,
    Nothing,
    /// The batch without the others: same base offset, last offset, producer and times of those
    /// that are left.
    Some(Bytes),
}

/// Why a batch cannot be gone through; it is to be left as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RetainError {
    #[error(transparent)]
    Decompress(#[from] DecompressError),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error("the records could not be compressed again")]
    Compress,
}

/// Keeps the records of a whole batch that `keep` says yes to, each byte for byte as it was.
/// Decompresses into at most `max_bytes`.
pub fn retain(
    header: &BatchHeader,
    batch: &Bytes,
    max_bytes: usize,
    mut keep: impl FnMut(&Record<'_>) -> bool,
) -> Result<Retained, RetainError> {
    let records = header.records(batch, max_bytes)?;
    let mut kept = Vec::new();
    let (mut count, mut latest) = (0_i32, i64::MIN);
    let mut iter = records.iter();
    let mut place = 0;
    while let Some(record) = iter.next() {
        let record = record?;
        let end = records.payload().len() - iter.remaining();
        if keep(&record) {
            kept.push(place..end);
            count += 1;
            latest = latest.max(record.timestamp);
        }
        place = end;
    }
    match count {
        0 => return Ok(Retained::Nothing),
        count if count == header.record_count => return Ok(Retained::All),
        _ => {}
    }
    let mut plain = Vec::with_capacity(kept.iter().map(ExactSizeIterator::len).sum());
    for range in kept {
        plain.extend_from_slice(&records.payload()[range]);
    }
    let codec = header.attributes.compression();
    let codec = codec.map_err(|_| RetainError::Compress)?;
    let mut out = batch[..HEADER_LEN].to_vec();
    codec
        .compress(&plain, &mut out)
        .map_err(|_| RetainError::Compress)?;
    let length = i32::try_from(out.len() - LENGTH_END).map_err(|_| RetainError::Compress)?;
    put(&mut out, 8, &length.to_be_bytes());
    put(&mut out, 35, &latest.to_be_bytes());
    put(&mut out, 57, &count.to_be_bytes());
    seal(&mut out);
    Ok(Retained::Some(Bytes::from(out)))
}

fn put(batch: &mut [u8], at: usize, bytes: &[u8]) {
    batch[at..at + bytes.len()].copy_from_slice(bytes);
}
