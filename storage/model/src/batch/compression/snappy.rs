//! Snappy in both shapes that clients write: one raw block, or the blocks of Java's
//! `SnappyOutputStream` behind its header.
//!
//! ```text
//! 0 magic 0x82 "SNAPPY" 0    8 version i32    12 lowest compatible version i32
//! then, as often as it takes: length i32, one raw block
//! ```

use bytes::{Buf, BufMut};

use super::{DecompressError, take};

const MAGIC: [u8; 8] = [0x82, b'S', b'N', b'A', b'P', b'P', b'Y', 0];
const HEADER_LEN: usize = 16;
const VERSION: i32 = 1;
/// Bytes of one block before it is compressed, as Java's client chooses them.
const BLOCK: usize = 32 * 1024;
/// No element of a block yields more: three bytes that stand for sixty-four.
const MAX_RATIO: usize = 22;

pub(super) fn decompress(mut input: &[u8], max_bytes: usize) -> Result<Vec<u8>, DecompressError> {
    let mut out = Vec::new();
    if !input.starts_with(&MAGIC) {
        block(input, &mut out, max_bytes)?;
        return Ok(out);
    }
    take(&mut input, HEADER_LEN)?;
    loop {
        let len = take(&mut input, 4)?.get_i32();
        let len = usize::try_from(len).map_err(|_| DecompressError::Corrupt)?;
        block(take(&mut input, len)?, &mut out, max_bytes)?;
        if input.is_empty() {
            return Ok(out);
        }
    }
}

/// Appends what one raw block holds.
fn block(input: &[u8], out: &mut Vec<u8>, max_bytes: usize) -> Result<(), DecompressError> {
    let corrupt = |_| DecompressError::Corrupt;
    if input.is_empty() {
        return Err(DecompressError::Corrupt);
    }
    let claimed = snap::raw::decompress_len(input).map_err(corrupt)?;
    if claimed > input.len().saturating_mul(MAX_RATIO) {
        return Err(DecompressError::Corrupt);
    }
    let filled = out.len();
    if claimed > max_bytes.saturating_sub(filled) {
        return Err(DecompressError::TooLarge(max_bytes));
    }
    out.resize(filled + claimed, 0);
    let written = snap::raw::Decoder::new()
        .decompress(input, &mut out[filled..])
        .map_err(corrupt)?;
    out.truncate(filled + written);
    Ok(())
}

/// In Java's shape, which every client reads.
pub(super) fn compress(input: &[u8], out: &mut Vec<u8>) -> std::io::Result<()> {
    out.extend_from_slice(&MAGIC);
    out.put_i32(VERSION);
    out.put_i32(VERSION);
    let mut encoder = snap::raw::Encoder::new();
    for part in input.chunks(BLOCK) {
        let block = encoder.compress_vec(part).map_err(std::io::Error::other)?;
        let len = i32::try_from(block.len()).map_err(std::io::Error::other)?;
        out.put_i32(len);
        out.extend_from_slice(&block);
    }
    Ok(())
}
