//! Laying frames out as one round: the slices of one vectored write.
//!
//! Heads and small payloads are copied into the round's own page-aligned buffer, because a slice
//! costs more than copying a few kilobytes does; large payloads stay the `Bytes` that came from
//! the socket. A round of small frames is therefore a single slice.

use bytes::{BufMut, Bytes, BytesMut};

use super::WalWriting;
use super::format::{self, BLOCK, HEADER_LEN, RoundHeader};
use crate::frame::{self, BATCH_PREFIX_LEN, Frame};

/// Payload parts up to this length are copied, longer ones shared.
pub(super) const GATHER_MAX: usize = 4096;
/// The most slices in one write, well below the kernel's 1,024.
const SLICES_MAX: usize = 512;
/// What a part that is shared adds at most: the part itself and the heads behind it.
const SLICES_PER_SHARED: usize = 2;
/// The most that one frame puts into the buffer.
const FRAME_OWN_MAX: usize = frame::HEADER_LEN + BATCH_PREFIX_LEN + 2 * GATHER_MAX;

/// What the header of a round says besides what its frames are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) file: u64,
    pub(super) signature: u64,
    pub(super) round: u64,
    pub(super) durable: u64,
    pub(super) predecessor_crc: u32,
}

/// A round ready to be written.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) slices: Vec<Bytes>,
    /// Bytes on disk, padding included.
    pub(super) len: usize,
    /// The checksum that the next round names.
    pub(super) crc: u32,
    pub(super) frames: u64,
    /// Bytes of large payload parts, and how many of them are slices of their own.
    pub(super) large_bytes: u64,
    pub(super) shared_bytes: u64,
    /// The buffer behind the slices, to be given back to the builder.
    pub(super) buffer: Bytes,
}

/// A shared payload part, and how much of the buffer comes before it.
#[derive(Debug)]
struct Shared {
    after: usize,
    part: Bytes,
}

/// Collects the frames of one round after the other.
#[derive(Debug)]
pub(super) struct RoundBuilder {
    buffer: BytesMut,
    /// The most bytes of frames in a round, but for a single larger frame.
    frame_bytes_max: usize,
    shared: Vec<Shared>,
    shared_bytes: usize,
    /// Bytes of the payload parts that are too large to be copied.
    large_bytes: u64,
    frames: u32,
    frames_crc: u32,
}

impl RoundBuilder {
    pub(super) fn new(round_bytes_max: usize) -> Self {
        let frame_bytes_max = round_bytes_max - HEADER_LEN;
        Self {
            buffer: aligned_buffer(round_bytes_max),
            frame_bytes_max,
            shared: Vec::new(),
            shared_bytes: 0,
            large_bytes: 0,
            frames: 0,
            frames_crc: 0,
        }
    }

    /// Begins a round: room for the header, which is known last.
    pub(super) fn begin(&mut self) {
        self.buffer.clear();
        self.buffer.put_bytes(0, HEADER_LEN);
        self.shared.clear();
        self.shared_bytes = 0;
        self.large_bytes = 0;
        self.frames = 0;
        self.frames_crc = 0;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// Whether `frame` fits the round behind what it holds, in `room` bytes on disk.
    pub(super) fn fits(&self, frame: &Frame, room: usize) -> bool {
        let frame_len = frame.header.frame_len();
        let len = self.len() + frame_len;
        if len > room {
            return false;
        }
        if self.is_empty() {
            return true;
        }
        let shared = self.shared.len() + shared_parts(frame);
        len - HEADER_LEN <= self.frame_bytes_max && shared * SLICES_PER_SHARED < SLICES_MAX
    }

    pub(super) fn push(&mut self, frame: &Frame, writing: &mut WalWriting) {
        let header = frame.header.encode();
        self.frames_crc = crc32c::crc32c_append(self.frames_crc, &header);
        self.frames += 1;
        self.buffer.put_slice(&header);
        if frame.records.len() >= BATCH_PREFIX_LEN {
            self.buffer.put_slice(&frame.header.batch_prefix());
            self.push_part(&frame.records, BATCH_PREFIX_LEN, writing);
        }
        if !frame.command.is_empty() {
            self.push_part(&frame.command, 0, writing);
        }
    }

    /// Adds a payload part from its byte `from` on.
    fn push_part(&mut self, part: &Bytes, from: usize, writing: &mut WalWriting) {
        let len = (part.len() - from) as u64;
        if is_shared(part.len()) {
            self.large_bytes += len;
            self.shared_bytes += part.len() - from;
            self.shared.push(Shared {
                after: self.buffer.len(),
                part: part.slice(from..),
            });
        } else {
            self.buffer.put_slice(&part[from..]);
            writing.payload_bytes_gathered += len;
        }
    }

    /// Bytes of the round so far, without padding.
    fn len(&self) -> usize {
        self.buffer.len() + self.shared_bytes
    }

    /// Pads the round and turns it into slices.
    pub(super) fn finish(&mut self, place: Place) -> Round {
        let frame_bytes = self.len() - HEADER_LEN;
        let header = RoundHeader {
            file: place.file,
            signature: place.signature,
            round: place.round,
            durable: place.durable,
            predecessor_crc: place.predecessor_crc,
            // A frame is refused when it does not fit a file, and files are below 4 GiB.
            frame_bytes: u32::try_from(frame_bytes).unwrap_or(u32::MAX),
            frame_count: self.frames,
            frames_crc: self.frames_crc,
        }
        .encode();
        self.buffer[..HEADER_LEN].copy_from_slice(&header);
        let len = format::padded(self.len());
        self.buffer.put_bytes(0, len - self.len());
        let buffer = std::mem::take(&mut self.buffer).freeze();
        let mut slices = Vec::with_capacity(self.shared.len() * SLICES_PER_SHARED + 1);
        let (mut from, mut shared_bytes) = (0, 0);
        for Shared { after, part } in self.shared.drain(..) {
            if after > from {
                slices.push(buffer.slice(from..after));
                from = after;
            }
            shared_bytes += part.len() as u64;
            slices.push(part);
        }
        if from < buffer.len() {
            slices.push(buffer.slice(from..));
        }
        Round {
            slices,
            len,
            crc: format::crc_of(&header),
            frames: u64::from(self.frames),
            large_bytes: self.large_bytes,
            shared_bytes,
            buffer,
        }
    }

    /// Takes the buffer of a written round back, if no one holds a slice of it any more.
    pub(super) fn reuse(&mut self, buffer: Bytes) {
        self.buffer = buffer
            .try_into_mut()
            .unwrap_or_else(|_| aligned_buffer(self.frame_bytes_max + HEADER_LEN));
    }
}

/// Whether a payload part of `len` bytes is shared and not copied.
pub(super) const fn is_shared(len: usize) -> bool {
    len > GATHER_MAX
}

fn shared_parts(frame: &Frame) -> usize {
    usize::from(is_shared(frame.records.len())) + usize::from(is_shared(frame.command.len()))
}

/// A page-aligned buffer that takes any round of `round_bytes_max` without growing.
fn aligned_buffer(round_bytes_max: usize) -> BytesMut {
    let capacity = format::padded(round_bytes_max.max(HEADER_LEN + FRAME_OWN_MAX));
    let mut buffer = BytesMut::with_capacity(capacity + BLOCK);
    let skip = buffer.as_ptr().align_offset(BLOCK);
    // `align_offset` may decline, in theory; alignment is only an optimisation.
    if skip < BLOCK {
        buffer.put_bytes(0, skip);
        let _ = buffer.split_to(skip);
    }
    buffer
}

#[cfg(test)]
mod tests {
    use trilog_model::{EntryId, GroupId};

    use super::*;
    use crate::frame::FrameKind;

    const ROUND_MAX: usize = 64 << 10;
    const PLACE: Place = Place {
        file: 3,
        signature: 7,
        round: 12,
        durable: 11,
        predecessor_crc: 99,
    };

    /// A frame whose record batch and command have these lengths.
    fn frame(records: usize, command: usize) -> Frame {
        let id = EntryId::new(1, 1);
        let mut frame = Frame::bare(FrameKind::Data, GroupId(1), id, vec![3; command].into());
        if records > 0 {
            frame.header.records_len = u32::try_from(records).unwrap();
            frame.header.records_crc = crc32c::crc32c(&vec![9; records][BATCH_PREFIX_LEN..]);
            frame.records = vec![9; records].into();
        }
        frame
    }

    fn round_of(builder: &mut RoundBuilder, frames: &[Frame]) -> (Round, WalWriting) {
        let mut writing = WalWriting::default();
        builder.begin();
        for frame in frames {
            assert!(builder.fits(frame, usize::MAX));
            builder.push(frame, &mut writing);
        }
        (builder.finish(PLACE), writing)
    }

    #[test]
    fn a_round_is_its_header_its_frames_and_zeros_to_the_block() {
        let frames = [frame(100, 0), frame(5_000, 7), frame(0, 6_000), frame(0, 0)];
        let (round, _) = round_of(&mut RoundBuilder::new(ROUND_MAX), &frames);
        let bytes = round.slices.concat();
        assert_eq!((bytes.len(), bytes.len() % BLOCK), (round.len, 0));
        let header = RoundHeader::decode(&bytes).unwrap();
        assert_eq!((header.round, header.durable), (12, 11));
        assert_eq!(round.crc, format::crc_of(&bytes));
        let mut expected = Vec::new();
        for frame in &frames {
            frame.push_slices(&mut expected);
        }
        let expected = expected.concat();
        let (body, padding) = bytes[HEADER_LEN..].split_at(expected.len());
        assert_eq!(body, expected);
        assert!(padding.iter().all(|byte| *byte == 0));
        assert_eq!(header.len(), HEADER_LEN + expected.len());
    }

    #[test]
    fn small_frames_make_one_aligned_slice() {
        let frames: Vec<Frame> = (21..200).map(|len| frame(len, len % 50)).collect();
        let (round, writing) = round_of(&mut RoundBuilder::new(ROUND_MAX), &frames);
        assert_eq!(round.slices.len(), 1);
        assert_eq!(round.slices[0].as_ptr().align_offset(BLOCK), 0);
        assert_eq!((round.shared_bytes, round.large_bytes), (0, 0));
        assert!(writing.payload_bytes_gathered > 0);
    }

    #[test]
    fn a_large_payload_is_the_very_buffer_that_came() {
        let large = frame(GATHER_MAX + 1, 10_000);
        let frames = [frame(50, 0), large.clone(), frame(60, 0)];
        let (round, writing) = round_of(&mut RoundBuilder::new(ROUND_MAX), &frames);
        let body = large.records.slice(BATCH_PREFIX_LEN..);
        assert_eq!(round.slices.len(), 4, "heads, records, command, the rest");
        assert_eq!(round.slices[1].as_ptr(), body.as_ptr());
        assert_eq!(round.slices[2].as_ptr(), large.command.as_ptr());
        let large_bytes = (body.len() + large.command.len()) as u64;
        assert_eq!(
            (round.large_bytes, round.shared_bytes),
            (large_bytes, large_bytes)
        );
        assert_eq!(writing.payload_bytes_gathered, 29 + 39);
    }

    #[test]
    fn a_round_ends_at_its_bytes_its_slices_or_the_room() {
        let mut builder = RoundBuilder::new(ROUND_MAX);
        builder.begin();
        let huge = frame(ROUND_MAX * 2, 0);
        assert!(builder.fits(&huge, usize::MAX), "alone it may be larger");
        assert!(!builder.fits(&huge, ROUND_MAX));
        builder.push(&frame(100, 0), &mut WalWriting::default());
        assert!(!builder.fits(&huge, usize::MAX));
        let mut builder = RoundBuilder::new(64 << 20);
        builder.begin();
        let large = frame(GATHER_MAX + 1, 0);
        while builder.fits(&large, usize::MAX) {
            builder.push(&large, &mut WalWriting::default());
        }
        let slices = builder.finish(PLACE).slices.len();
        assert!((SLICES_MAX - 4..=SLICES_MAX).contains(&slices), "{slices}");
    }

    #[test]
    fn the_buffer_of_a_written_round_is_used_again() {
        let mut builder = RoundBuilder::new(ROUND_MAX);
        let mut places = Vec::new();
        for _ in 0..3 {
            let (round, _) = round_of(&mut builder, &[frame(300, 0), frame(9_000, 0)]);
            places.push(round.buffer.as_ptr());
            drop(round.slices);
            builder.reuse(round.buffer);
        }
        assert!(places.iter().all(|place| *place == places[0]));
        let (round, _) = round_of(&mut builder, &[frame(300, 0)]);
        let held = round.slices[0].clone();
        builder.reuse(round.buffer);
        let (other, _) = round_of(&mut builder, &[frame(300, 0)]);
        assert_ne!(other.buffer.as_ptr(), held.as_ptr());
    }
}
