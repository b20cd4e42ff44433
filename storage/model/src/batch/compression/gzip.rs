//! Gzip, as every client writes it: one member or several, one after the other.

use std::io::{Read, Write};

use super::DecompressError;

/// Zlib's own default, which Kafka's clients use.
const LEVEL: u32 = 6;

/// Reads in a stream, so that memory follows what the input really yields.
pub(super) fn decompress(input: &[u8], max_bytes: usize) -> Result<Vec<u8>, DecompressError> {
    if input.is_empty() {
        return Err(DecompressError::Corrupt);
    }
    let mut out = Vec::with_capacity(input.len().min(max_bytes));
    let most = (max_bytes as u64).saturating_add(1);
    flate2::bufread::MultiGzDecoder::new(input)
        .take(most)
        .read_to_end(&mut out)
        .map_err(|_| DecompressError::Corrupt)?;
    if out.len() > max_bytes {
        Err(DecompressError::TooLarge(max_bytes))
    } else {
        Ok(out)
    }
}

pub(super) fn compress(input: &[u8], out: &mut Vec<u8>) -> std::io::Result<()> {
    let level = flate2::Compression::new(LEVEL);
    let mut encoder = flate2::write::GzEncoder::new(out, level);
    encoder.write_all(input)?;
    encoder.finish().map(drop)
}
