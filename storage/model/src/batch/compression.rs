//! The codecs of a batch's records. Output is capped by the caller and grows with what the input
//! really yields, so a few hostile bytes cannot claim memory.

mod gzip;
mod snappy;

use std::io::Write;

use bytes::{Buf, Bytes};
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};

/// How the records of a batch are compressed. The numbers are Kafka's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Compression {
    #[default]
    None = 0,
    Gzip = 1,
    Snappy = 2,
    Lz4 = 3,
    Zstd = 4,
}

/// Why records could not be decompressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecompressError {
    #[error("the compressed records are damaged")]
    Corrupt,
    #[error("the records would decompress to more than {0} bytes")]
    TooLarge(usize),
}

impl Compression {
    pub(super) fn from_code(code: i16) -> Option<Self> {
        Some(match code {
            0 => Self::None,
            1 => Self::Gzip,
            2 => Self::Snappy,
            3 => Self::Lz4,
            4 => Self::Zstd,
            _ => return None,
        })
    }

    /// Decompresses `input` into at most `max_bytes`; uncompressed input is shared, not copied.
    pub fn decompress(self, input: &Bytes, max_bytes: usize) -> Result<Bytes, DecompressError> {
        match self {
            Self::None if input.len() > max_bytes => Err(DecompressError::TooLarge(max_bytes)),
            Self::None => Ok(input.clone()),
            Self::Lz4 => lz4_decompress(input, max_bytes).map(Bytes::from),
            Self::Zstd => zstd_decompress(input, max_bytes).map(Bytes::from),
            Self::Gzip => gzip::decompress(input, max_bytes).map(Bytes::from),
            Self::Snappy => snappy::decompress(input, max_bytes).map(Bytes::from),
        }
    }

    /// Appends the compressed `input` to `out`.
    pub(super) fn compress(self, input: &[u8], out: &mut Vec<u8>) -> std::io::Result<()> {
        match self {
            Self::None => out.extend_from_slice(input),
            Self::Lz4 => {
                // What Java's client writes, and what every reader accepts.
                let info = FrameInfo::new()
                    .block_size(BlockSize::Max64KB)
                    .block_mode(BlockMode::Independent);
                let mut encoder = FrameEncoder::with_frame_info(info, out);
                encoder.write_all(input)?;
                encoder.finish().map_err(std::io::Error::other)?;
            }
            Self::Zstd => {
                out.extend_from_slice(&zstd::bulk::compress(input, 3)?);
            }
            Self::Gzip => gzip::compress(input, out)?,
            Self::Snappy => snappy::compress(input, out)?,
        }
        Ok(())
    }
}

const LZ4_MAGIC: u32 = 0x184D_2204;
/// How far back a linked block may refer.
const LZ4_WINDOW: usize = 64 * 1024;
/// No block can grow by more: each length byte of the input stands for at most 255 of output.
const LZ4_MAX_RATIO: usize = 255;
const LZ4_STORED: u32 = 1 << 31;

/// The parts of an LZ4 frame descriptor that reading needs. Its checksums are skipped: the
/// batch's own CRC covers these bytes and was compared before.
struct Lz4Frame {
    linked: bool,
    block_checksums: bool,
    content_checksum: bool,
    max_block: usize,
}

impl Lz4Frame {
    fn take(input: &mut &[u8]) -> Option<Self> {
        if input.try_get_u32_le().ok()? != LZ4_MAGIC {
            return None;
        }
        let flags = input.try_get_u8().ok()?;
        let block = input.try_get_u8().ok()?;
        // Version 01, no reserved bit, no dictionary: nobody could supply one.
        if flags & 0b1100_0011 != 0b0100_0000 {
            return None;
        }
        let max_block = match block {
            0x40 => 64 * 1024,
            0x50 => 256 * 1024,
            0x60 => 1024 * 1024,
            0x70 => 4 * 1024 * 1024,
            _ => return None,
        };
        let content_size = if flags & 0b1000 == 0 { 0 } else { 8 };
        *input = input.get(content_size + 1..)?;
        Some(Self {
            linked: flags & 0b10_0000 == 0,
            block_checksums: flags & 0b1_0000 != 0,
            content_checksum: flags & 0b100 != 0,
            max_block,
        })
    }
}

fn lz4_decompress(mut input: &[u8], max_bytes: usize) -> Result<Vec<u8>, DecompressError> {
    let mut out = Vec::new();
    let frame = Lz4Frame::take(&mut input).ok_or(DecompressError::Corrupt)?;
    loop {
        let word = take(&mut input, 4)?.get_u32_le();
        if word == 0 {
            break;
        }
        let stored = word & LZ4_STORED != 0;
        let len = usize::try_from(word & !LZ4_STORED).map_err(|_| DecompressError::Corrupt)?;
        let block = take(&mut input, len)?;
        if len > frame.max_block {
            return Err(DecompressError::Corrupt);
        }
        if stored {
            if out.len() + len > max_bytes {
                return Err(DecompressError::TooLarge(max_bytes));
            }
            out.extend_from_slice(block);
        } else {
            lz4_block(&frame, block, &mut out, max_bytes)?;
        }
        if frame.block_checksums {
            take(&mut input, 4)?;
        }
    }
    if frame.content_checksum {
        take(&mut input, 4)?;
    }
    if input.is_empty() {
        Ok(out)
    } else {
        Err(DecompressError::Corrupt)
    }
}

fn lz4_block(
    frame: &Lz4Frame,
    block: &[u8],
    out: &mut Vec<u8>,
    max_bytes: usize,
) -> Result<(), DecompressError> {
    let filled = out.len();
    let possible = block.len().saturating_mul(LZ4_MAX_RATIO);
    let wanted = possible.min(frame.max_block);
    let room = wanted.min(max_bytes - filled);
    out.resize(filled + room, 0);
    let (before, fresh) = out.split_at_mut(filled);
    let result = if frame.linked {
        let window = &before[filled.saturating_sub(LZ4_WINDOW)..];
        lz4_flex::block::decompress_into_with_dict(block, fresh, window)
    } else {
        lz4_flex::block::decompress_into(block, fresh)
    };
    match result {
        Ok(written) => {
            out.truncate(filled + written);
            Ok(())
        }
        Err(lz4_flex::block::DecompressError::OutputTooSmall { .. }) if room < wanted => {
            Err(DecompressError::TooLarge(max_bytes))
        }
        Err(_) => Err(DecompressError::Corrupt),
    }
}

fn take<'a>(input: &mut &'a [u8], len: usize) -> Result<&'a [u8], DecompressError> {
    let (head, rest) = input
        .split_at_checked(len)
        .ok_or(DecompressError::Corrupt)?;
    *input = rest;
    Ok(head)
}

/// `ZSTD_error_dstSize_tooSmall`, one of the codes that zstd promises not to renumber.
const ZSTD_OUTPUT_TOO_SMALL: usize = 70_usize.wrapping_neg();
/// The first guess at the output when the frame does not tell it: this times the input.
const ZSTD_FIRST_RATIO: usize = 8;

/// In one shot into a buffer that grows on demand, since streaming would first allocate the
/// window that the frame claims, which may be 128 MiB. Growing by four keeps the work lost on
/// too small a guess below half of the whole.
fn zstd_decompress(input: &[u8], max_bytes: usize) -> Result<Vec<u8>, DecompressError> {
    let claimed = match zstd::zstd_safe::get_frame_content_size(input) {
        Ok(Some(size)) => usize::try_from(size).unwrap_or(usize::MAX),
        Ok(None) => 0,
        Err(_) => return Err(DecompressError::Corrupt),
    };
    if claimed > max_bytes {
        return Err(DecompressError::TooLarge(max_bytes));
    }
    let guess = input.len().saturating_mul(ZSTD_FIRST_RATIO).max(1024);
    let mut capacity = if claimed == 0 {
        guess
    } else {
        guess.min(claimed)
    }
    .min(max_bytes);
    let mut context = zstd::zstd_safe::DCtx::try_create().ok_or(DecompressError::Corrupt)?;
    loop {
        let mut out = Vec::with_capacity(capacity);
        match context.decompress(&mut out, input) {
            Ok(_) if out.len() > max_bytes => return Err(DecompressError::TooLarge(max_bytes)),
            Ok(_) => return Ok(out),
            Err(ZSTD_OUTPUT_TOO_SMALL) if capacity >= max_bytes => {
                return Err(DecompressError::TooLarge(max_bytes));
            }
            Err(ZSTD_OUTPUT_TOO_SMALL) => capacity = capacity.saturating_mul(4).min(max_bytes),
            Err(_) => return Err(DecompressError::Corrupt),
        }
    }
}
