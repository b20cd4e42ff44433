//! Large writes that are to be durable at once: the device begins on the first part while the rest
//! is still being copied into the page cache.
//!
//! One call that writes and syncs leaves the device idle while it copies and the processor idle
//! while the device works. With a round of 2 MiB that costs a quarter of the speed, with one of
//! 4 MiB a third (ARCHITECTURE, decision 41).

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, BorrowedFd};

use bytes::Bytes;
use rustix::io::ReadWriteFlags;

use super::threads::write_all;

/// Bytes that are handed to the device together. A device is slower with smaller ones.
const PART: usize = 1 << 20;

/// Whether a write of `bufs` is worth parting.
pub(super) fn is_large(bufs: &[Bytes]) -> bool {
    bufs.iter().map(Bytes::len).sum::<usize>() > PART
}

/// Writes all of `bufs` from `pos` and has the device begin on it. Durable after the next sync,
/// which also is what tells of a failure of the device.
pub(super) fn write(file: BorrowedFd<'_>, bufs: &[Bytes], mut pos: u64) -> io::Result<()> {
    for mut part in parts(bufs, PART) {
        let len: usize = part.iter().map(|slice| slice.len()).sum();
        write_all(file, &mut part, pos, ReadWriteFlags::empty())?;
        begin_writing(file, pos, len);
        pos += len as u64;
    }
    Ok(())
}

/// `bufs` in parts of `len` bytes, the last one of what is left. No slice is empty.
fn parts(bufs: &[Bytes], len: usize) -> Vec<Vec<IoSlice<'_>>> {
    let mut parts = Vec::new();
    let (mut part, mut room) = (Vec::new(), len);
    for buf in bufs {
        let mut rest = &buf[..];
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(rest.len().min(room));
            part.push(IoSlice::new(head));
            rest = tail;
            room -= head.len();
            if room == 0 {
                parts.push(std::mem::take(&mut part));
                room = len;
            }
        }
    }
    if !part.is_empty() {
        parts.push(part);
    }
    parts
}

/// Starts the write-back of dirty pages and does not wait for it.
#[expect(unsafe_code, reason = "a system call that rustix does not have")]
fn begin_writing(file: BorrowedFd<'_>, pos: u64, len: usize) {
    let (Ok(pos), Ok(len)) = (i64::try_from(pos), i64::try_from(len)) else {
        return;
    };
    // SAFETY: the call takes numbers only, and `file` is open. Where it fails or is not known, the
    // sync that follows does all of the work and reports what went wrong with it.
    unsafe {
        libc::sync_file_range(file.as_raw_fd(), pos, len, libc::SYNC_FILE_RANGE_WRITE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_hold_all_bytes_in_order_and_are_full_but_the_last() {
        let bufs = [&b"abc"[..], b"", b"defg", b"hijklmnop"].map(Bytes::from_static);
        for len in 1..=20 {
            let parts = parts(&bufs, len);
            let texts: Vec<Vec<u8>> = parts
                .iter()
                .map(|part| part.iter().flat_map(|slice| slice.to_vec()).collect())
                .collect();
            assert_eq!(texts.concat(), b"abcdefghijklmnop");
            let (last, full) = texts.split_last().unwrap();
            assert!(full.iter().all(|text| text.len() == len) && (1..=len).contains(&last.len()));
        }
        assert!(parts(&[Bytes::new()], 3).is_empty());
    }
}
