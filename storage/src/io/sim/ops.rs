//! [`Io`] on a simulated disk: each operation is issued, takes its time and completes.

use std::future::pending;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use parking_lot::MutexGuard;
use rustix::io::Errno;

use super::SimDisk;
use super::names::FileId;
use super::state::State;
use super::trace::Asked;
use crate::io::{Io, IoFile, OpenMode};

#[derive(Clone, Debug)]
pub(super) struct SimIo {
    disk: SimDisk,
}

impl SimDisk {
    /// The disk's state, or `None` once this opening has ended or the disk halted.
    fn live(&self) -> Option<MutexGuard<'_, State>> {
        let state = self.platter.state.lock();
        (state.incarnation == self.incarnation).then_some(state)
    }

    /// Does what an operation does at once, then lets its time pass. Never returns once the
    /// opening has ended.
    async fn issue<T>(
        &self,
        asked: Asked,
        path: &Path,
        at: u64,
        begin: impl FnOnce(&mut State, u64) -> T,
    ) -> (u64, T) {
        let begun = self.live().and_then(|mut state| {
            let halted = state.halt_at.is_some_and(|last| state.stamp >= last);
            (!halted).then(|| {
                let stamp = state.issue(asked, path, at);
                (stamp, begin(&mut state, stamp))
            })
        });
        match begun {
            Some(begun) => begun,
            None => pending().await,
        }
    }

    /// Lets the time of an issued operation pass.
    async fn pass(&self, stamp: u64) {
        self.tell_observer();
        let (delay, halts) = match self.live() {
            Some(mut state) => (state.delay(), state.halt_at == Some(stamp)),
            None => pending().await,
        };
        if halts {
            self.platter.halted.send_replace(true);
            pending::<()>().await;
        }
        if delay.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(delay).await;
        }
    }

    /// Waits while the file at `path` is held.
    async fn unheld(&self, path: &Path) {
        let free = |dir: &Option<PathBuf>| !dir.as_ref().is_some_and(|dir| path.starts_with(dir));
        if free(&self.platter.held.borrow()) {
            return;
        }
        let mut held = self.platter.held.subscribe();
        // The sender lives as long as `self`.
        let _ = held.wait_for(free).await;
    }

    /// Finishes an operation.
    async fn complete<T>(
        &self,
        stamp: u64,
        finish: impl FnOnce(&mut State) -> io::Result<T>,
    ) -> io::Result<T> {
        let finished = self.live().map(|mut state| {
            let result = finish(&mut state);
            state.trace.answered(stamp, &result);
            result
        });
        match finished {
            Some(result) => result,
            None => pending().await,
        }
    }

    fn tell_observer(&self) {
        let observer = self.platter.observer.lock().take();
        if let Some(mut observer) = observer {
            observer(self);
            let mut place = self.platter.observer.lock();
            if place.is_none() && self.live().is_some() {
                *place = Some(observer);
            }
        }
    }
}

impl SimIo {
    pub(super) const fn new(disk: SimDisk) -> Self {
        Self { disk }
    }

    /// An operation on names: all of it happens when it is issued.
    async fn at_once<T>(
        &self,
        asked: Asked,
        path: &Path,
        begin: impl FnOnce(&mut State, u64) -> io::Result<T>,
    ) -> io::Result<T> {
        let (stamp, result) = self.disk.issue(asked, path, 0, begin).await;
        self.disk.pass(stamp).await;
        self.disk.complete(stamp, |_| result).await
    }
}

impl Io for SimIo {
    type File = SimFile;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<SimFile> {
        let open = |state: &mut State, stamp: u64| {
            let file = state.open(stamp, path, mode)?;
            Ok(SimFile {
                disk: self.disk.clone(),
                path: path.to_owned(),
                file,
                writable: mode != OpenMode::Read,
            })
        };
        let (stamp, opened) = self.disk.issue(Asked::Open, path, mode as u64, open).await;
        self.disk.pass(stamp).await;
        self.disk.complete(stamp, |_| opened).await
    }

    async fn list(&self, dir: &Path) -> io::Result<Vec<PathBuf>> {
        let list = |state: &mut State, _| state.list(dir);
        self.at_once(Asked::List, dir, list).await
    }

    async fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let (stamp, parents) = {
            let make = |state: &mut State, stamp| {
                if state.list(dir).is_ok() {
                    return Ok(Vec::new());
                }
                state.make_dirs(stamp, dir)
            };
            self.disk.issue(Asked::MakeDirs, dir, 0, make).await
        };
        self.disk.pass(stamp).await;
        let sync = |state: &mut State| {
            let sync_parent = |parent: &PathBuf| state.sync_dir(stamp + 1, parent);
            parents?.iter().try_for_each(sync_parent)
        };
        self.disk.complete(stamp, sync).await
    }

    async fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let rename = |state: &mut State, stamp| {
            state.trace.bytes(to.as_os_str().as_encoded_bytes());
            state.rename(stamp, from, to)
        };
        self.at_once(Asked::Rename, from, rename).await
    }

    async fn remove_file(&self, path: &Path) -> io::Result<()> {
        let remove = |state: &mut State, stamp| state.remove_file(stamp, path);
        self.at_once(Asked::RemoveFile, path, remove).await
    }

    async fn remove_dir_all(&self, dir: &Path) -> io::Result<()> {
        let remove = |state: &mut State, stamp| state.remove_dir(stamp, dir);
        self.at_once(Asked::RemoveDir, dir, remove).await
    }

    async fn free_bytes(&self, dir: &Path) -> io::Result<u64> {
        let free = |state: &mut State, _| state.list(dir).map(|_| state.free());
        self.at_once(Asked::List, dir, free).await
    }

    async fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let (stamp, ()) = self.disk.issue(Asked::SyncDir, dir, 0, |_, _| ()).await;
        self.disk.pass(stamp).await;
        let sync = |state: &mut State| state.sync_dir(stamp, dir);
        self.disk.complete(stamp, sync).await
    }
}

#[derive(Debug)]
pub(super) struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    file: FileId,
    writable: bool,
}

impl SimFile {
    async fn write(&self, asked: Asked, bufs: Vec<Bytes>, pos: u64) -> io::Result<()> {
        let (stamp, (written, covered)) = {
            let write = |state: &mut State, stamp| {
                state.begin_write(stamp);
                let written = if self.writable {
                    state.write(stamp, self.file, &self.path, &bufs, pos)
                } else {
                    Err(Errno::BADF.into())
                };
                (written, state.covered(stamp))
            };
            self.disk.issue(asked, &self.path, pos, write).await
        };
        let in_flight = InFlight {
            disk: &self.disk,
            stamp,
        };
        self.disk.pass(stamp).await;
        self.disk.unheld(&self.path).await;
        drop(in_flight);
        let finish = |state: &mut State| match asked {
            Asked::WriteDurable => {
                written.and_then(|()| state.sync(self.file, &self.path, &covered))
            }
            _ => written,
        };
        self.disk.complete(stamp, finish).await
    }
}

impl IoFile for SimFile {
    async fn read_at(&self, pos: u64, len: usize) -> io::Result<Bytes> {
        let (stamp, ()) = self
            .disk
            .issue(Asked::Read, &self.path, pos, |_, _| ())
            .await;
        self.disk.pass(stamp).await;
        let read = |state: &mut State| state.read(self.file, &self.path, pos, len);
        self.disk.complete(stamp, read).await
    }

    async fn write_all_at(&self, bufs: Vec<Bytes>, pos: u64) -> io::Result<()> {
        self.write(Asked::Write, bufs, pos).await
    }

    async fn write_durable_at(&self, bufs: Vec<Bytes>, pos: u64) -> io::Result<()> {
        self.write(Asked::WriteDurable, bufs, pos).await
    }

    async fn sync_data(&self) -> io::Result<()> {
        let covered = |state: &mut State, stamp| state.covered(stamp);
        let (stamp, covered) = self.disk.issue(Asked::Sync, &self.path, 0, covered).await;
        self.disk.pass(stamp).await;
        self.disk.unheld(&self.path).await;
        let sync = |state: &mut State| state.sync(self.file, &self.path, &covered);
        self.disk.complete(stamp, sync).await
    }

    async fn len(&self) -> io::Result<u64> {
        let (stamp, ()) = self.disk.issue(Asked::Len, &self.path, 0, |_, _| ()).await;
        self.disk.pass(stamp).await;
        self.disk
            .complete(stamp, |state| state.len(self.file))
            .await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let set = |state: &mut State, stamp| {
            if self.writable {
                state.set_len(stamp, self.file, len)
            } else {
                Err(Errno::INVAL.into())
            }
        };
        let (stamp, result) = self.disk.issue(Asked::SetLen, &self.path, len, set).await;
        self.disk.pass(stamp).await;
        self.disk.complete(stamp, |_| result).await
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        if let Some(mut state) = self.disk.live() {
            state.close(self.file);
        }
    }
}

/// A write between its issue and its completion, or the caller's loss of interest.
struct InFlight<'a> {
    disk: &'a SimDisk,
    stamp: u64,
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        if let Some(mut state) = self.disk.live() {
            state.end_write(self.stamp);
        }
    }
}
