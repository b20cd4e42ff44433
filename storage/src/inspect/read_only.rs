//! A file system that cannot be changed: files open for reading, syncs and writes do nothing.
//!
//! Recovery makes what it found durable again; run over this, it finds the same and leaves
//! everything as it is.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use crate::io::{Io, IoFile, OpenMode};

/// Another file system, for reading.
#[derive(Clone, Debug)]
pub(super) struct ReadOnly<I>(pub(super) I);

/// A file of it.
#[derive(Debug)]
pub(super) struct ReadOnlyFile<F>(F);

fn refused() -> io::Error {
    io::Error::new(io::ErrorKind::ReadOnlyFilesystem, "this is an inspection")
}

impl<I: Io> Io for ReadOnly<I> {
    type File = ReadOnlyFile<I::File>;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Self::File> {
        match mode {
            OpenMode::Read | OpenMode::Write => {
                self.0.open(path, OpenMode::Read).await.map(ReadOnlyFile)
            }
            OpenMode::Create => Err(refused()),
        }
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        self.0.list(dir).await
    }

    async fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Err(refused())
    }

    async fn rename(&self, _from: &Path, _to: &Path) -> io::Result<()> {
        Err(refused())
    }

    async fn remove_file(&self, _path: &Path) -> io::Result<()> {
        Err(refused())
    }

    async fn remove_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Err(refused())
    }

    async fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        self.0.free_bytes(dir).await
    }

    async fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl<F: IoFile> IoFile for ReadOnlyFile<F> {
    async fn read_at(&self, pos: u64, len: usize) -> io::Result<Bytes> {
        self.0.read_at(pos, len).await
    }

    async fn write_all_at(&self, _bufs: Vec<Bytes>, _pos: u64) -> io::Result<()> {
        Ok(())
    }

    async fn write_durable_at(&self, _bufs: Vec<Bytes>, _pos: u64) -> io::Result<()> {
        Ok(())
    }

    async fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    async fn len(&self) -> io::Result<u64> {
        self.0.len().await
    }

    async fn set_len(&self, _len: u64) -> io::Result<()> {
        Err(refused())
    }
}
