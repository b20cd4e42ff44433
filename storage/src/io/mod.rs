//! Disk access behind one small trait with owned buffers and three back-ends: plain threads,
//! tokio-uring, and a simulated disk under a seed. The only module with `unsafe` in it.
//!
//! Code that touches files is an [`IoJob`]: a generic async body that a [`Backend`] runs to its
//! end on an I/O thread of its own (or, simulated, as a local task), and that talks to the rest
//! of the process through channels. No operation is ever dropped or cancelled half way: a job
//! stops by draining (tokio-uring keeps the buffers of an abandoned operation only while its
//! runtime lives).
//!
//! On the threads back-end every operation blocks its thread and is ready at once; a job that
//! wants several operations in flight is therefore run several times, on several threads.

mod backend;
#[cfg(test)]
mod conformance;
mod names;
pub mod sim;
mod streamed;
mod threads;
mod uncached;
mod uring;

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

pub use backend::{Backend, Choice, JobHandle, Probe, ProbeError, UnknownChoice};

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading only.
    Read,
    /// An existing file, for reading and writing.
    Write,
    /// A new file, for reading and writing; fails if the name exists. The name is durable only
    /// after [`Io::sync_dir`] on its folder.
    Create,
}

/// A file system as seen from one I/O thread.
pub trait Io: Clone + 'static {
    type File: IoFile;

    fn open(&self, path: &Path, mode: OpenMode) -> impl Future<Output = io::Result<Self::File>>;
    /// The names (not paths) in a folder, sorted.
    fn list(&self, dir: &Path) -> impl Future<Output = io::Result<Vec<PathBuf>>>;
    /// Durable on return, each new folder's name included; one that is there already is no error.
    fn create_dir_all(&self, dir: &Path) -> impl Future<Output = io::Result<()>>;
    /// Replaces `to` if it exists. Durable only after [`Io::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> impl Future<Output = io::Result<()>>;
    fn remove_file(&self, path: &Path) -> impl Future<Output = io::Result<()>>;
    /// Removes a folder and all in it; a folder that is not there is no error.
    fn remove_dir_all(&self, dir: &Path) -> impl Future<Output = io::Result<()>>;
    /// Bytes that can still be written on the file system of a folder, as far as it can say.
    fn free_bytes(&self, dir: &Path) -> impl Future<Output = io::Result<u64>>;
    /// Makes the names in a folder durable.
    fn sync_dir(&self, dir: &Path) -> impl Future<Output = io::Result<()>>;
}

/// An open file. Positions and lengths are bytes.
#[expect(
    clippy::len_without_is_empty,
    reason = "the length is asked of the disk, and emptiness never matters"
)]
pub trait IoFile: 'static {
    /// Up to `len` bytes from `pos`; fewer only where the file ends.
    fn read_at(&self, pos: u64, len: usize) -> impl Future<Output = io::Result<Bytes>>;
    /// Writes all of `bufs`, in order, from `pos`. Not durable by itself.
    fn write_all_at(&self, bufs: Vec<Bytes>, pos: u64) -> impl Future<Output = io::Result<()>>;
    /// As [`IoFile::write_all_at`], of bytes that nobody is expected to read soon: they are not
    /// kept in the page cache, where the back-end has a way to say so.
    fn write_uncached_at(
        &self,
        bufs: Vec<Bytes>,
        pos: u64,
    ) -> impl Future<Output = io::Result<()>> {
        self.write_all_at(bufs, pos)
    }
    /// As [`IoFile::write_all_at`], and durable on return: the write and every one that had
    /// completed through this handle before it began.
    fn write_durable_at(&self, bufs: Vec<Bytes>, pos: u64) -> impl Future<Output = io::Result<()>>;
    /// Makes everything written so far durable. A failure is final: the caller must never retry,
    /// for the kernel may have marked the lost pages clean.
    fn sync_data(&self) -> impl Future<Output = io::Result<()>>;
    /// The length in bytes.
    fn len(&self) -> impl Future<Output = io::Result<u64>>;
    /// Cuts or extends (with zeros, sparsely) to `len` bytes.
    fn set_len(&self, len: u64) -> impl Future<Output = io::Result<()>>;
}

/// A body of work that owns its files and runs to its end on one I/O thread.
pub trait IoJob: Send + 'static {
    fn run<I: Io>(self, io: I) -> impl Future<Output = ()>;
}
