//! The thread that writes copies from other replicas to disk before they are part of any log.
//!
//! Apart from the fill workers, so that a slow copy holds up nobody's segments. Everything here
//! has a name of its own: what a crash leaves is deleted at the next start.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::io::{Backend, Io, IoFile, IoJob, JobHandle, OpenMode};

/// Requests that wait; callers beyond wait themselves.
const QUEUE: usize = 16;

type Reply = oneshot::Sender<io::Result<()>>;

#[derive(Debug)]
enum Request {
    /// Write at a place of the file; at its beginning, make it anew.
    Write {
        path: PathBuf,
        pos: u64,
        bufs: Vec<Bytes>,
        reply: Reply,
    },
    /// Make what the file holds durable and let go of it.
    Finish {
        path: PathBuf,
        reply: Reply,
    },
    /// Delete the file.
    Discard(PathBuf),
    Stop,
}

/// The way to that thread.
#[derive(Debug)]
pub(crate) struct Stage(mpsc::Sender<Request>);

impl Stage {
    pub(crate) fn start(backend: &Backend) -> (Self, JobHandle) {
        let (sender, inbox) = mpsc::channel(QUEUE);
        (Self(sender), backend.spawn("stage", StageJob { inbox }))
    }

    pub(crate) async fn write(&self, path: &Path, pos: u64, bufs: Vec<Bytes>) -> io::Result<()> {
        let path = path.to_path_buf();
        self.ask(|reply| Request::Write {
            path,
            pos,
            bufs,
            reply,
        })
        .await
    }

    pub(crate) async fn finish(&self, path: &Path) -> io::Result<()> {
        let path = path.to_path_buf();
        self.ask(|reply| Request::Finish { path, reply }).await
    }

    /// Deletes a copy that came to nothing. If the thread is busy or gone the file stays: the
    /// next attempt begins it anew, and the next start deletes it.
    pub(crate) fn discard(&self, path: &Path) {
        let _ = self.0.try_send(Request::Discard(path.to_path_buf()));
    }

    pub(crate) async fn stop(&self) {
        let _ = self.0.send(Request::Stop).await;
    }

    /// As [`Stage::stop`], for a store nobody closes.
    pub(crate) fn stop_unattended(&self) {
        // A full queue drains: the thread ends when its senders are gone.
        let _ = self.0.try_send(Request::Stop);
    }

    async fn ask(&self, request: impl FnOnce(Reply) -> Request) -> io::Result<()> {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the store is closed");
        let (reply, answer) = oneshot::channel();
        let sent = self.0.send(request(reply)).await;
        sent.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

struct StageJob {
    inbox: mpsc::Receiver<Request>,
}

impl IoJob for StageJob {
    async fn run<I: Io>(mut self, io: I) {
        let mut files = Files {
            io,
            open: BTreeMap::new(),
        };
        while let Some(request) = self.inbox.recv().await {
            // Whoever asked may have lost interest.
            match request {
                Request::Write {
                    path,
                    pos,
                    bufs,
                    reply,
                } => drop(reply.send(files.write(path, pos, bufs).await)),
                Request::Finish { path, reply } => drop(reply.send(files.finish(&path).await)),
                Request::Discard(path) => files.discard(&path).await,
                Request::Stop => return,
            }
        }
    }
}

/// The copies under way, one for each group at most.
struct Files<I: Io> {
    io: I,
    open: BTreeMap<PathBuf, I::File>,
}

impl<I: Io> Files<I> {
    async fn write(&mut self, path: PathBuf, pos: u64, bufs: Vec<Bytes>) -> io::Result<()> {
        if pos == 0 {
            self.open.remove(&path);
            match self.io.remove_file(&path).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let file = self.io.open(&path, OpenMode::Create).await?;
            self.open.insert(path.clone(), file);
        }
        let file = self.open.get(&path).ok_or(io::ErrorKind::NotFound)?;
        file.write_uncached_at(bufs, pos).await
    }

    async fn finish(&mut self, path: &Path) -> io::Result<()> {
        let file = self.open.remove(path).ok_or(io::ErrorKind::NotFound)?;
        file.sync_data().await
    }

    async fn discard(&mut self, path: &Path) {
        self.open.remove(path);
        // What cannot be deleted now is deleted at the next start.
        let _ = self.io.remove_file(path).await;
    }
}
