//! The writer of a link: gathers every frame that is ready into one vectored write.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::sync::OwnedSemaphorePermit;

use super::link::Link;
use super::net::WriteHalf;
use super::outbox::OutFrame;
use super::stats::{Counters, count};

/// Slices given to one system call.
const MAX_SLICES: usize = 64;
/// Slices up to this long are copied beside the headers, which costs less than a slice of
/// their own; longer ones are written from where they are.
const COPY_UP_TO: usize = 512;
/// Room for headers and short payload made at once.
const SCRATCH: usize = 16 * 1024;

/// Frames on their way into the socket, as slices.
#[derive(Debug, Default)]
struct Gathered {
    slices: VecDeque<Bytes>,
    /// Headers and short payload not yet turned into a slice.
    scratch: BytesMut,
    /// Free again once everything here is written.
    slots: Vec<OwnedSemaphorePermit>,
}

impl Gathered {
    fn add(&mut self, frame: OutFrame) {
        self.copy(&frame.header);
        for slice in frame.payload {
            if slice.len() <= COPY_UP_TO {
                self.copy(&slice);
            } else {
                self.cut();
                self.slices.push_back(slice);
            }
        }
        self.slots.extend(frame.slot);
    }

    fn copy(&mut self, bytes: &[u8]) {
        if self.scratch.capacity() - self.scratch.len() < bytes.len() {
            self.cut();
            self.scratch.reserve(SCRATCH);
        }
        self.scratch.extend_from_slice(bytes);
    }

    fn cut(&mut self) {
        if !self.scratch.is_empty() {
            self.slices.push_back(self.scratch.split().freeze());
        }
    }

    /// The next slices to write, at most [`MAX_SLICES`].
    fn next_slices<'a>(&'a self, out: &mut [IoSlice<'a>; MAX_SLICES]) -> usize {
        let count = self.slices.len().min(MAX_SLICES);
        for (place, slice) in out.iter_mut().zip(&self.slices) {
            *place = IoSlice::new(slice);
        }
        count
    }

    fn advance(&mut self, mut written: usize) {
        while let Some(first) = self.slices.front_mut() {
            if written < first.len() {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.slices.pop_front();
        }
    }
}

/// Writes until the link's outbox ends, then closes the sending direction.
pub(super) async fn write_frames(
    link: Arc<Link>,
    mut write: WriteHalf,
    counters: Arc<Counters>,
) -> io::Result<()> {
    let mut frames = VecDeque::new();
    let mut gathered = Gathered::default();
    while link.outbox().take(&mut frames).await {
        count(&counters.frames_out, frames.len() as u64);
        for frame in frames.drain(..) {
            gathered.add(frame);
        }
        gathered.cut();
        while !gathered.slices.is_empty() {
            let mut slices = [IoSlice::new(&[]); MAX_SLICES];
            let ready = gathered.next_slices(&mut slices);
            let written = write.write_vectored(&slices[..ready]).await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            link.wrote.store(true, Ordering::Relaxed);
            count(&counters.writes, 1);
            count(&counters.bytes_out, written as u64);
            gathered.advance(written);
        }
        gathered.slots.clear();
    }
    write.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transport::frame::{FrameHeader, HEADER_LEN, Op};

    #[test]
    fn long_payload_is_written_from_where_it_is_and_short_payload_beside_the_header() {
        let long = Bytes::from(vec![1; COPY_UP_TO + 1]);
        let short = Bytes::from(vec![2; 10]);
        let mut gathered = Gathered::default();
        let header = FrameHeader::bare(Op::Data, 1);
        gathered.add(OutFrame::new(&header, vec![short.clone(), long.clone()]));
        gathered.add(OutFrame::new(&header, vec![short]));
        gathered.cut();
        assert_eq!(gathered.slices.len(), 3);
        assert_eq!(gathered.slices[0].len(), HEADER_LEN + 10);
        assert_eq!(gathered.slices[1].as_ptr(), long.as_ptr());
        assert_eq!(gathered.slices[2].len(), HEADER_LEN + 10);
    }

    #[test]
    fn partial_writes_resume_inside_a_slice() {
        let mut gathered = Gathered::default();
        gathered.slices.push_back(Bytes::from_static(b"abc"));
        gathered.slices.push_back(Bytes::from_static(b"defg"));
        gathered.advance(4);
        assert_eq!(gathered.slices, [Bytes::from_static(b"efg")]);
        gathered.advance(3);
        assert!(gathered.slices.is_empty());
    }
}
