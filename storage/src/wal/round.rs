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
