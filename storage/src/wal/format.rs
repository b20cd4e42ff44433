//! The bytes of the log's files.
//!
//! A file is a header block, then rounds; everything begins on a 4 KiB block. Integers are
//! little-endian.
//!
//! ```text
//! file header                              round header
//!   0 magic "TLW1"                           0 magic "TLR1"
//!   4 version u8, 3 zero bytes               4 version u8, 3 zero bytes
//!   8 file number u64                        8 file number u64
//!  16 signature u64                         16 signature u64, the file's
//!  24 first round u64                       24 round u64
//!  32 file bytes u64                        32 round durable when this was written u64
//!  40 predecessor CRC u32                   40 predecessor CRC u32
//!  44 zero u32                              44 frame bytes u32
//!  48 zero u64                              48 frame count u32
//!  56 zero u32                              52 CRC-32C of the frames' headers u32
//!  60 CRC-32C of bytes 0..60                56 zero u32
//!                                           60 CRC-32C of bytes 0..60
//!                                           64 frames, then zeros to the end of the block
//! ```
//!
//! A predecessor CRC is that of the round before (its bytes 60..64), zero before the first, so
//! rounds form a chain through all files. A file is begun only when every earlier round is
//! durable: its header is a durable mark too. The signature is random for each use of a file, so
//! that what an earlier use left behind is never taken for a round.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::frame::NUMBER_MAX;

/// The unit of writing: no block is ever rewritten but a recycled file's first.
pub(super) const BLOCK: usize = 4096;
pub(super) const BLOCK_BYTES: u64 = BLOCK as u64;
/// Bytes of an encoded file or round header.
pub(super) const HEADER_LEN: usize = 64;
/// The version this build writes and the newest it reads.
pub(super) const VERSION: u8 = 1;

const FILE_MAGIC: u32 = u32::from_le_bytes(*b"TLW1");
const ROUND_MAGIC: u32 = u32::from_le_bytes(*b"TLR1");
const CRC_AT: usize = HEADER_LEN - 4;

/// The bytes that `len` bytes take when padded to whole blocks.
pub(super) const fn padded(len: usize) -> usize {
    len.div_ceil(BLOCK) * BLOCK
}

/// Why bytes are not a header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotAHeader {
    /// Something else, or a damaged one.
    Unreadable,
    /// A header in a format that this build does not know.
    Version(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub(super) file: u64,
    pub(super) signature: u64,
    /// The round that comes first in this file; all before it are durable elsewhere.
    pub(super) first_round: u64,
    /// What the file's length was when it was begun, so that a cut file is noticed.
    pub(super) file_bytes: u64,
    pub(super) predecessor_crc: u32,
}

impl FileHeader {
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let mut buf = &mut out[..];
        buf.put_u32_le(FILE_MAGIC);
        buf.put_u8(VERSION);
        buf.put_bytes(0, 3);
        buf.put_u64_le(self.file);
        buf.put_u64_le(self.signature);
        buf.put_u64_le(self.first_round);
        buf.put_u64_le(self.file_bytes);
        buf.put_u32_le(self.predecessor_crc);
        seal(&mut out);
        out
    }

    /// The file's first block.
    pub(super) fn block(&self) -> Bytes {
        let mut block = BytesMut::zeroed(BLOCK);
        block[..HEADER_LEN].copy_from_slice(&self.encode());
        block.freeze()
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, NotAHeader> {
        let mut buf = open(bytes, FILE_MAGIC)?;
        let header = Self {
            file: buf.get_u64_le(),
            signature: buf.get_u64_le(),
            first_round: buf.get_u64_le(),
            file_bytes: buf.get_u64_le(),
            predecessor_crc: buf.get_u32_le(),
        };
        plausible([header.file, header.first_round, header.file_bytes])?;
        Ok(header)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RoundHeader {
    pub(super) file: u64,
    pub(super) signature: u64,
    pub(super) round: u64,
    /// The newest round that was durable when this one was written.
    pub(super) durable: u64,
    pub(super) predecessor_crc: u32,
    pub(super) frame_bytes: u32,
    pub(super) frame_count: u32,
    /// Over the encoded headers of the frames, one after the other.
    pub(super) frames_crc: u32,
}

impl RoundHeader {
    pub(super) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        let mut buf = &mut out[..];
        buf.put_u32_le(ROUND_MAGIC);
        buf.put_u8(VERSION);
        buf.put_bytes(0, 3);
        buf.put_u64_le(self.file);
        buf.put_u64_le(self.signature);
        buf.put_u64_le(self.round);
        buf.put_u64_le(self.durable);
        buf.put_u32_le(self.predecessor_crc);
        buf.put_u32_le(self.frame_bytes);
        buf.put_u32_le(self.frame_count);
        buf.put_u32_le(self.frames_crc);
        seal(&mut out);
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, NotAHeader> {
        let mut buf = open(bytes, ROUND_MAGIC)?;
        let header = Self {
            file: buf.get_u64_le(),
            signature: buf.get_u64_le(),
            round: buf.get_u64_le(),
            durable: buf.get_u64_le(),
            predecessor_crc: buf.get_u32_le(),
            frame_bytes: buf.get_u32_le(),
            frame_count: buf.get_u32_le(),
            frames_crc: buf.get_u32_le(),
        };
        plausible([header.file, header.round, header.durable])?;
        Ok(header)
    }

    /// Bytes of the whole round without its padding.
    pub(super) const fn len(&self) -> usize {
        HEADER_LEN + self.frame_bytes as usize
    }
}

/// The checksum that stands at the end of an encoded header.
pub(super) fn crc_of(header: &[u8]) -> u32 {
    header
        .get(CRC_AT..HEADER_LEN)
        .map_or(0, |mut crc| crc.get_u32_le())
}

fn seal(header: &mut [u8; HEADER_LEN]) {
    let crc = crc32c::crc32c(&header[..CRC_AT]);
    header[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
}

/// Whatever its checksum says, a header with numbers that would overflow was not written here.
fn plausible(numbers: [u64; 3]) -> Result<(), NotAHeader> {
    let beyond = numbers.iter().any(|number| *number > NUMBER_MAX);
    if beyond {
        Err(NotAHeader::Unreadable)
    } else {
        Ok(())
    }
}

/// The fields of a header that bears `magic` and whose checksum and version are right.
fn open(bytes: &[u8], magic: u32) -> Result<&[u8], NotAHeader> {
    let header = bytes.get(..HEADER_LEN).ok_or(NotAHeader::Unreadable)?;
    let mut buf = header;
    if buf.get_u32_le() != magic
        || crc32c::crc32c(&header[..CRC_AT]) != (&header[CRC_AT..]).get_u32_le()
    {
        return Err(NotAHeader::Unreadable);
    }
    match buf.get_u8() {
        VERSION => {
            buf.advance(3);
            Ok(buf)
        }
        other => Err(NotAHeader::Version(other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FILE: FileHeader = FileHeader {
        file: 7,
        signature: 0x0123_4567_89ab_cdef,
        first_round: 40,
        file_bytes: 1 << 26,
        predecessor_crc: 0xdead_beef,
    };
    const ROUND: RoundHeader = RoundHeader {
        file: 7,
        signature: 0x0123_4567_89ab_cdef,
        round: 41,
        durable: 40,
        predecessor_crc: 0xfeed_f00d,
        frame_bytes: 1_000,
        frame_count: 3,
        frames_crc: 0x5eed_5eed,
    };

    #[test]
    fn headers_survive_the_round_trip() {
        assert_eq!(FileHeader::decode(&FILE.encode()), Ok(FILE));
        assert_eq!(RoundHeader::decode(&ROUND.encode()), Ok(ROUND));
    }

    #[test]
    fn every_truncation_and_every_flip_of_a_header_is_found() {
        let (file, round) = (FILE.encode(), ROUND.encode());
        for len in 0..HEADER_LEN {
            assert_eq!(
                FileHeader::decode(&file[..len]),
                Err(NotAHeader::Unreadable)
            );
            assert_eq!(
                RoundHeader::decode(&round[..len]),
                Err(NotAHeader::Unreadable)
            );
        }
        for bit in 0..HEADER_LEN * 8 {
            let (mut file, mut round) = (file, round);
            file[bit / 8] ^= 1 << (bit % 8);
            round[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(FileHeader::decode(&file), Err(NotAHeader::Unreadable));
            assert_eq!(RoundHeader::decode(&round), Err(NotAHeader::Unreadable));
        }
    }

    #[test]
    fn one_kind_of_header_is_not_taken_for_the_other() {
        assert!(FileHeader::decode(&ROUND.encode()).is_err());
        assert!(RoundHeader::decode(&FILE.encode()).is_err());
    }

    #[test]
    fn numbers_that_would_overflow_are_not_a_headers() {
        let file = FileHeader {
            first_round: u64::MAX,
            ..FILE
        };
        let unreadable = Err(NotAHeader::Unreadable);
        assert_eq!(FileHeader::decode(&file.encode()), unreadable);
        let round = RoundHeader {
            round: u64::MAX,
            ..ROUND
        };
        let unreadable = Err(NotAHeader::Unreadable);
        assert_eq!(RoundHeader::decode(&round.encode()), unreadable);
    }

    #[test]
    fn another_version_is_refused_by_name() {
        let mut header = ROUND.encode();
        header[4] = VERSION + 1;
        seal(&mut header);
        assert_eq!(RoundHeader::decode(&header), Err(NotAHeader::Version(2)));
    }

    #[test]
    fn padding_reaches_the_next_block_and_no_further() {
        assert_eq!(padded(0), 0);
        assert_eq!(padded(1), BLOCK);
        assert_eq!(padded(BLOCK), BLOCK);
        assert_eq!(padded(BLOCK + 1), 2 * BLOCK);
    }
}
