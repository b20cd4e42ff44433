//! The threads that read segments: positioned reads on request, with the files kept open.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::{mpsc, oneshot};

use crate::io::{Backend, Io, IoFile, IoJob, JobHandle, OpenMode};

/// Requests that wait for one thread; callers beyond wait themselves.
const QUEUE: usize = 256;
/// Reads one thread has in flight, where its back-end can.
const IN_FLIGHT: usize = 16;
/// Files one thread keeps open.
const OPEN_FILES: usize = 128;

#[derive(Debug)]
enum Request {
    Read {
        path: PathBuf,
        pos: u64,
        len: usize,
        reply: oneshot::Sender<io::Result<Bytes>>,
    },
    Whole {
        path: PathBuf,
        reply: oneshot::Sender<io::Result<Bytes>>,
    },
    /// The file was deleted or replaced: let go of it.
    Forget(PathBuf),
    Stop,
}

/// The read threads of a store.
#[derive(Debug)]
pub(crate) struct ReadPool {
    threads: Vec<mpsc::Sender<Request>>,
    next: AtomicUsize,
}

impl ReadPool {
    pub(crate) fn start(backend: &Backend, threads: u32) -> (Self, Vec<JobHandle>) {
        let mut pool = Self {
            threads: Vec::new(),
            next: AtomicUsize::new(0),
        };
        let mut handles = Vec::new();
        for n in 0..threads.max(1) {
            let (sender, inbox) = mpsc::channel(QUEUE);
            pool.threads.push(sender);
            handles.push(backend.spawn(&format!("read-{n}"), ReadJob { inbox }));
        }
        (pool, handles)
    }

    /// Up to `len` bytes of a file from `pos`; fewer only where it ends.
    pub(crate) async fn read(&self, path: &Path, pos: u64, len: usize) -> io::Result<Bytes> {
        let path = path.to_path_buf();
        self.ask(|reply| Request::Read {
            path,
            pos,
            len,
            reply,
        })
        .await
    }

    /// All of a small file.
    pub(crate) async fn read_whole(&self, path: &Path) -> io::Result<Bytes> {
        let path = path.to_path_buf();
        self.ask(|reply| Request::Whole { path, reply }).await
    }

    pub(crate) async fn forget(&self, path: &Path) {
        for thread in &self.threads {
            let _ = thread.send(Request::Forget(path.to_path_buf())).await;
        }
    }

    pub(crate) async fn stop(&self) {
        for thread in &self.threads {
            let _ = thread.send(Request::Stop).await;
        }
    }

    /// As [`ReadPool::stop`], for a store nobody closes.
    pub(crate) fn stop_unattended(&self) {
        for thread in &self.threads {
            // A full queue drains: the thread ends when the pool is dropped.
            let _ = thread.try_send(Request::Stop);
        }
    }

    async fn ask(
        &self,
        request: impl FnOnce(oneshot::Sender<io::Result<Bytes>>) -> Request,
    ) -> io::Result<Bytes> {
        let gone = || io::Error::new(io::ErrorKind::BrokenPipe, "the store is closed");
        let (reply, answer) = oneshot::channel();
        let at = self.next.fetch_add(1, Ordering::Relaxed) % self.threads.len();
        let sent = self.threads[at].send(request(reply)).await;
        sent.map_err(|_| gone())?;
        answer.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// Whether an error of the pool only says that the store is closed.
pub(crate) fn is_closed(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::BrokenPipe
}

struct ReadJob {
    inbox: mpsc::Receiver<Request>,
}

impl IoJob for ReadJob {
    async fn run<I: Io>(mut self, io: I) {
        let files = Rc::new(Files::new(io));
        let mut running = FuturesUnordered::new();
        loop {
            tokio::select! {
                biased;
                Some(()) = running.next() => {}
                request = self.inbox.recv(), if running.len() < IN_FLIGHT => match request {
                    None | Some(Request::Stop) => break,
                    Some(Request::Forget(path)) => files.forget(&path),
                    Some(request) => running.push(answer(Rc::clone(&files), request)),
                },
            }
        }
        while running.next().await.is_some() {}
    }
}

async fn answer<I: Io>(files: Rc<Files<I>>, request: Request) {
    let (reply, result) = match request {
        Request::Read {
            path,
            pos,
            len,
            reply,
        } => (reply, files.read(path, pos, len).await),
        Request::Whole { path, reply } => (reply, files.read_whole(&path).await),
        Request::Forget(_) | Request::Stop => return,
    };
    // The asker may have lost interest.
    let _ = reply.send(result);
}

/// The files one thread has open, the least recently used given up first.
struct Files<I: Io> {
    io: I,
    open: RefCell<Open<I::File>>,
}

struct Open<F> {
    files: BTreeMap<PathBuf, (u64, Rc<F>)>,
    clock: u64,
}

impl<I: Io> Files<I> {
    fn new(io: I) -> Self {
        let open = Open {
            files: BTreeMap::new(),
            clock: 0,
        };
        Self {
            io,
            open: RefCell::new(open),
        }
    }

    async fn read(&self, path: PathBuf, pos: u64, len: usize) -> io::Result<Bytes> {
        let found = self.open.borrow_mut().find(&path);
        let file = if let Some(file) = found {
            file
        } else {
            let file = Rc::new(self.io.open(&path, OpenMode::Read).await?);
            self.open.borrow_mut().keep(path, Rc::clone(&file));
            file
        };
        file.read_at(pos, len).await
    }

    async fn read_whole(&self, path: &Path) -> io::Result<Bytes> {
        let file = self.io.open(path, OpenMode::Read).await?;
        let len = usize::try_from(file.len().await?);
        let len = len.map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        file.read_at(0, len).await
    }

    fn forget(&self, path: &Path) {
        self.open.borrow_mut().files.remove(path);
    }
}

impl<F> Open<F> {
    fn find(&mut self, path: &Path) -> Option<Rc<F>> {
        self.clock += 1;
        let (used, file) = self.files.get_mut(path)?;
        *used = self.clock;
        Some(Rc::clone(file))
    }

    fn keep(&mut self, path: PathBuf, file: Rc<F>) {
        if self.files.len() >= OPEN_FILES {
            let oldest = self.files.iter().min_by_key(|(_, (used, _))| *used);
            let oldest = oldest.map(|(path, _)| path.clone());
            oldest.map(|path| self.files.remove(&path));
        }
        self.files.insert(path, (self.clock, file));
    }
}
