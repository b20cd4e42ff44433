//! Writes that leave nothing in the page cache.
//!
//! Log data is written once and, by the time anybody reads it from disk, mostly cold; what is hot
//! stands in the tail cache. Kept pages would only push out others, and cost more than the write
//! itself wherever the kernel has to find fresh memory for each of them (ARCHITECTURE, decision
//! 40). Kernels from 6.14 on take `RWF_DONTCACHE`; on older ones, and on file systems without it,
//! the pages are given back after the next sync.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::num::NonZeroU64;
use std::os::fd::BorrowedFd;

use bytes::Bytes;
use rustix::fs::{Advice, fadvise};
use rustix::io::{Errno, ReadWriteFlags};

use super::threads::{slices, write_all};

/// `RWF_DONTCACHE` (Linux, `include/uapi/linux/fs.h`).
const DONTCACHE: ReadWriteFlags = ReadWriteFlags::from_bits_retain(0x80);
/// The page size to go by where the true one may be larger: at worst a page is read back.
const PAGE: u64 = 4096;

/// What is to be known of a file between its uncached writes.
#[derive(Debug, Default)]
pub(super) struct Uncached {
    /// The kernel does not know the flag for this file.
    refused: Cell<bool>,
    /// Where pages begin that are to be given back after the next sync, and where they end.
    kept: Cell<Option<(u64, u64)>>,
}

impl Uncached {
    /// Writes all of `bufs` from `pos`, with plain system calls. Not durable by itself.
    ///
    /// The last page, if it is written in part, stays in the cache: the next write goes on in it,
    /// and would otherwise wait for it to be read from disk.
    pub(super) fn write(&self, file: BorrowedFd<'_>, bufs: &[Bytes], pos: u64) -> io::Result<()> {
        let len: usize = bufs.iter().map(Bytes::len).sum();
        let end = pos + len as u64;
        let whole = usize::try_from((end - end % PAGE).saturating_sub(pos)).unwrap_or(len);
        if self.refused.get() || whole == 0 {
            return self.write_kept(file, bufs, pos, end);
        }
        let (mut pages, mut rest) = split(bufs, whole);
        match write_all(file, &mut pages, pos, DONTCACHE) {
            Ok(_) => {}
            // Before anything was written.
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                self.refused.set(true);
                return self.write_kept(file, bufs, pos, end);
            }
            Err(error) => return Err(error.into()),
        }
        write_all(file, &mut rest, pos + whole as u64, ReadWriteFlags::empty())?;
        Ok(())
    }

    fn write_kept(
        &self,
        file: BorrowedFd<'_>,
        bufs: &[Bytes],
        pos: u64,
        end: u64,
    ) -> io::Result<()> {
        if self.refused.get() {
            let (from, to) = self.kept.get().unwrap_or((pos, end));
            self.kept.set(Some((from.min(pos), to.max(end))));
        }
        let mut slices = slices(bufs);
        write_all(file, &mut slices, pos, ReadWriteFlags::empty())?;
        Ok(())
    }

    /// To be called after a sync: what it made clean is given back.
    pub(super) fn synced(&self, file: BorrowedFd<'_>) {
        if let Some((from, to)) = self.kept.take() {
            let len = (to - to % PAGE).saturating_sub(from);
            // Advice: whoever cannot take it goes on as before.
            if let Some(len) = NonZeroU64::new(len) {
                let _ = fadvise(file, from, Some(len), Advice::DontNeed);
            }
        }
    }
}

/// What lies before and what after the first `len` bytes.
fn split(bufs: &[Bytes], mut len: usize) -> (Vec<IoSlice<'_>>, Vec<IoSlice<'_>>) {
    let (mut before, mut after) = (Vec::with_capacity(bufs.len()), Vec::new());
    for buf in bufs {
        let (head, tail) = buf.split_at(buf.len().min(len));
        len -= head.len();
        if !head.is_empty() {
            before.push(IoSlice::new(head));
        }
        if !tail.is_empty() {
            after.push(IoSlice::new(tail));
        }
    }
    (before, after)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_cut_in_the_middle_of_a_slice_and_between_two() {
        let bufs = [&b"abc"[..], b"", b"defg"].map(Bytes::from_static);
        for len in 0..=7 {
            let (before, after) = split(&bufs, len);
            let text = |slices: &[IoSlice<'_>]| -> Vec<u8> {
                slices.iter().flat_map(|slice| slice.to_vec()).collect()
            };
            assert_eq!(text(&before), b"abcdefg"[..len]);
            assert_eq!(text(&after), b"abcdefg"[len..]);
        }
    }
}
