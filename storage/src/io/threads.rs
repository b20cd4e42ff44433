//! The back-end of plain blocking system calls: one thread per job, every operation ready at
//! once. As much first class as io_uring, which many containers forbid.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use rustix::buffer::spare_capacity;
use rustix::io::{Errno, ReadWriteFlags};
use tokio::task::LocalSet;

use super::backend::{self, JobHandle};
use super::uncached::Uncached;
use super::{Io, IoFile, IoJob, OpenMode, names, streamed};

/// Slices that one gathered write takes (Linux: `UIO_MAXIOV`).
pub(super) const SLICES_MAX: usize = 1024;

pub(super) fn spawn<J: IoJob>(name: &str, job: J) -> JobHandle {
    let (running, handle) = JobHandle::new();
    backend::spawn_thread(name, move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        let runtime = backend::require("start an I/O runtime", runtime);
        let tasks = LocalSet::new();
        runtime.block_on(tasks.run_until(Box::pin(job.run(ThreadIo))));
        drop((tasks, runtime));
        drop(running);
    });
    handle
}

#[derive(Clone, Copy, Debug)]
struct ThreadIo;

impl Io for ThreadIo {
    type File = ThreadFile;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<ThreadFile> {
        let file = names::open(path, mode)?;
        // What another handle left unsynced is unknown: the first durable write syncs the file.
        let unsynced = Cell::new(true);
        let uncached = Uncached::default();
        Ok(ThreadFile {
            file,
            unsynced,
            uncached,
        })
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        names::list(dir)
    }

    async fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        names::create_dir_all(dir)
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    async fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        names::remove_dir_all(dir)
    }

    async fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        names::free_bytes(dir)
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        names::sync_dir(dir)
    }
}

#[derive(Debug)]
struct ThreadFile {
    file: File,
    /// Whether something may be in the page cache only: `RWF_DSYNC` covers its own write alone.
    unsynced: Cell<bool>,
    uncached: Uncached,
}

impl ThreadFile {
    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()?;
        self.unsynced.set(false);
        self.uncached.synced(self.file.as_fd());
        Ok(())
    }
}

impl IoFile for ThreadFile {
    async fn read_at(&self, pos: u64, len: usize) -> io::Result<Bytes> {
        let len = names::readable(&self.file, pos, len)?;
        let mut buf = Vec::with_capacity(len);
        while buf.len() < len {
            let from = pos + buf.len() as u64;
            match rustix::io::pread(&self.file, spare_capacity(&mut buf), from) {
                Ok(0) => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        buf.truncate(len);
        Ok(Bytes::from(buf))
    }

    async fn write_all_at(&self, bufs: Vec<Bytes>, pos: u64) -> io::Result<()> {
        self.unsynced.set(true);
        write_all(&self.file, &mut slices(&bufs), pos, ReadWriteFlags::empty())?;
        Ok(())
    }

    async fn write_uncached_at(&self, bufs: Vec<Bytes>, pos: u64) -> io::Result<()> {
        self.unsynced.set(true);
        self.uncached.write(self.file.as_fd(), &bufs, pos)
    }

    async fn write_durable_at(&self, bufs: Vec<Bytes>, pos: u64) -> io::Result<()> {
        if streamed::is_large(&bufs) {
            self.unsynced.set(true);
            streamed::write(self.file.as_fd(), &bufs, pos)?;
            return self.sync();
        }
        if !self.unsynced.replace(true) {
            match write_all(&self.file, &mut slices(&bufs), pos, ReadWriteFlags::DSYNC) {
                Ok(Calls::One) => {
                    self.unsynced.set(false);
                    return Ok(());
                }
                Ok(Calls::Several) => return self.sync(),
                // A kernel or file system without the flag, before anything was written.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                Err(error) => return Err(error.into()),
            }
        }
        write_all(&self.file, &mut slices(&bufs), pos, ReadWriteFlags::empty())?;
        self.sync()
    }

    async fn sync_data(&self) -> io::Result<()> {
        self.sync()
    }

    async fn len(&self) -> io::Result<u64> {
        names::len(&self.file)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.unsynced.set(true);
        self.file.set_len(len)
    }
}

/// Whether one system call took a whole gathered write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Calls {
    One,
    Several,
}

/// What there is to write of `bufs`.
pub(super) fn slices(bufs: &[Bytes]) -> Vec<IoSlice<'_>> {
    let filled = bufs.iter().filter(|buf| !buf.is_empty());
    filled.map(|buf| IoSlice::new(buf)).collect()
}

/// Writes all of `slices`, none of them empty. A kernel or file system that does not know `flags`
/// says so (`OPNOTSUPP`, `NOSYS`) before anything is written.
pub(super) fn write_all(
    file: impl AsFd,
    slices: &mut [IoSlice<'_>],
    mut pos: u64,
    flags: ReadWriteFlags,
) -> Result<Calls, Errno> {
    let (mut left, mut calls) = (slices, 0);
    while !left.is_empty() {
        let batch = &left[..left.len().min(SLICES_MAX)];
        match write_once(file.as_fd(), batch, pos, flags) {
            // What the kernel never says of a write that is not empty.
            Ok(0) => return Err(Errno::IO),
            Ok(written) => {
                calls += 1;
                pos += written as u64;
                IoSlice::advance_slices(&mut left, written);
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(if calls == 1 {
        Calls::One
    } else {
        Calls::Several
    })
}

fn write_once(
    file: BorrowedFd<'_>,
    slices: &[IoSlice<'_>],
    pos: u64,
    flags: ReadWriteFlags,
) -> rustix::io::Result<usize> {
    if flags.is_empty() {
        rustix::io::pwritev(file, slices, pos)
    } else {
        rustix::io::pwritev2(file, slices, pos, flags)
    }
}
