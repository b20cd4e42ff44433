//! The io_uring back-end, on tokio-uring: one ring and one thread per job, several operations in
//! flight at once.
//!
//! An operation, once begun, is never dropped or cancelled: a caller that loses interest leaves
//! it to run on by itself, and a job that ends waits for all of them. Whoever breaks that rule
//! frees memory the kernel still writes to. Rare operations on names are plain system calls.

use std::cell::{Cell, OnceCell, RefCell};
use std::fs;
use std::future::{Future, pending, poll_fn};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::mpsc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf, Bytes};
use rustix::io::{Errno, ReadWriteFlags};
use tokio_uring::Runtime;
use tokio_uring::buf::BoundedBuf;
use tokio_uring::fs::File;

use super::backend::{self, JobHandle};
use super::threads::{self, Calls, SLICES_MAX};
use super::uncached::Uncached;
use super::{Io, IoFile, IoJob, OpenMode, names, streamed};

/// How long the probe waits for a ring that takes operations and never answers.
const PROBE_PATIENCE: Duration = Duration::from_secs(5);
/// A durable write up to this length, with nothing else under way on the ring, is a plain system
/// call: the ring hands every such write to a kernel worker, and two wake-ups cost more than a
/// small write does.
const LONE_MAX: usize = 64 << 10;

pub(super) fn spawn<J: IoJob>(name: &str, job: J) -> JobHandle {
    let (running, handle) = JobHandle::new();
    backend::spawn_thread(name, move || {
        let ring = Runtime::new(&tokio_uring::builder());
        let ring = backend::require("set up an io_uring", ring);
        let io = UringIo::default();
        ring.block_on(async {
            Box::pin(job.run(io.clone())).await;
            io.drain().await;
        });
        drop(ring);
        drop(running);
    });
    handle
}

/// Writes and syncs a file in `dir` through a ring; says why if that cannot be done.
pub(super) fn probe(dir: &Path) -> Result<(), String> {
    let path = dir.join(".io-probe");
    let (answer, answered) = mpsc::channel();
    let file = path.clone();
    let body = move || {
        let result = Runtime::new(&tokio_uring::builder()).and_then(|ring| {
            let io = UringIo::default();
            ring.block_on(async {
                let result = write_and_sync(&io, &file).await;
                io.drain().await;
                result
            })
        });
        let _ = answer.send(result);
    };
    // A panic inside drops the sender, and is the answer too.
    let thread = std::thread::Builder::new().name("io-probe".to_owned());
    thread.spawn(body).map_err(|error| error.to_string())?;
    let answer = answered.recv_timeout(PROBE_PATIENCE);
    let _ = fs::remove_file(&path);
    match answer {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Err("the ring does not answer".to_owned()),
    }
}

async fn write_and_sync(io: &UringIo, path: &Path) -> io::Result<()> {
    let _ = fs::remove_file(path);
    let file = io.open(path, OpenMode::Create).await?;
    let data = Bytes::from_static(b"trilog");
    file.write_all_at(vec![data.clone()], 0).await?;
    file.sync_data().await?;
    if file.read_at(0, data.len()).await? != data {
        return Err(ErrorKind::InvalidData.into());
    }
    Ok(())
}

#[derive(Clone, Debug, Default)]
struct UringIo(Rc<Ring>);

/// What is under way on one ring.
#[derive(Debug, Default)]
struct Ring {
    in_flight: Cell<usize>,
    /// Set at the end of the job: nothing begins any more.
    closed: Cell<bool>,
    drained: RefCell<Option<Waker>>,
}

impl UringIo {
    /// Lets nothing begin any more and waits for what has begun.
    async fn drain(&self) {
        self.0.closed.set(true);
        poll_fn(|cx| {
            if self.0.in_flight.get() == 0 {
                return Poll::Ready(());
            }
            *self.0.drained.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }

    /// Whether nothing is under way, so that nobody waits while the thread blocks.
    fn is_idle(&self) -> bool {
        self.0.in_flight.get() == 0 && !self.0.closed.get()
    }

    /// Runs an operation that owns its buffers and its file to its end, awaited or not.
    async fn whole<T: 'static>(&self, op: impl Future<Output = T> + 'static) -> T {
        if self.0.closed.get() {
            return pending().await;
        }
        let ring = Rc::clone(&self.0);
        ring.in_flight.set(ring.in_flight.get() + 1);
        let counted = async move {
            let _ends = Ends(ring);
            op.await
        };
        Whole(Some(Box::pin(counted))).await
    }
}

/// Counts an operation out.
struct Ends(Rc<Ring>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        if self.0.in_flight.get() == 0
            && let Some(waker) = self.0.drained.take()
        {
            waker.wake();
        }
    }
}

/// An operation that goes on in a task of its own when it is dropped before its end.
struct Whole<F: Future + 'static>(Option<Pin<Box<F>>>);

impl<F: Future + 'static> Future for Whole<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let Some(op) = self.0.as_mut() else {
            return Poll::Pending;
        };
        let polled = op.as_mut().poll(cx);
        if polled.is_ready() {
            self.0 = None;
        }
        polled
    }
}

impl<F: Future + 'static> Drop for Whole<F> {
    fn drop(&mut self) {
        if let Some(op) = self.0.take() {
            tokio::task::spawn_local(async move {
                op.await;
            });
        }
    }
}

impl Io for UringIo {
    type File = UringFile;

    async fn open(&self, path: &Path, mode: OpenMode) -> io::Result<UringFile> {
        let file = Shared::new(names::open(path, mode)?, mode != OpenMode::Read);
        Ok(UringFile {
            io: self.clone(),
            file: Rc::new(file),
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

struct UringFile {
    io: UringIo,
    file: Rc<Shared>,
}

/// A file, shared with the operations that are under way on it.
struct Shared {
    cached: File,
    /// The same file opened so that each write is durable when it completes: one operation in
    /// place of two. Opened at the first durable write; `None` inside where that is refused.
    through: OnceCell<Option<File>>,
    writable: bool,
    /// Counts writes that need a sync, as they begin and once more as they end.
    writes: Cell<u64>,
    /// The count up to which a sync has covered them.
    synced: Cell<u64>,
    uncached: Uncached,
}

impl UringFile {
    fn fd(&self) -> BorrowedFd<'_> {
        self.file.fd()
    }
}

impl Shared {
    fn new(file: fs::File, writable: bool) -> Self {
        Self {
            writable,
            cached: File::from_std(file),
            through: OnceCell::new(),
            // What another handle left unsynced is unknown.
            writes: Cell::new(1),
            synced: Cell::new(0),
            uncached: Uncached::default(),
        }
    }

    #[expect(
        unsafe_code,
        reason = "tokio-uring's file shows its descriptor only raw"
    )]
    fn fd(&self) -> BorrowedFd<'_> {
        let fd = self.cached.as_raw_fd();
        // SAFETY: `self.cached` owns the descriptor and keeps it open while `self` is borrowed.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    fn through(&self) -> Option<&File> {
        let open = || names::reopen_durable(self.fd()).ok().map(File::from_std);
        self.through.get_or_init(open).as_ref()
    }

    fn note_write(&self) {
        self.writes.set(self.writes.get() + 1);
    }

    fn all_synced(&self) -> bool {
        self.synced.get() == self.writes.get()
    }

    async fn write(&self, bufs: Vec<Bytes>, pos: u64) -> io::Result<()> {
        self.note_write();
        let result = write_all(&self.cached, bufs, pos).await;
        // A sync that began meanwhile does not cover it.
        self.note_write();
        result
    }

    /// Writes durably, blocking the thread.
    fn write_through(&self, bufs: &[Bytes], pos: u64) -> rustix::io::Result<()> {
        let mut slices = threads::slices(bufs);
        let written = threads::write_all(self.fd(), &mut slices, pos, ReadWriteFlags::DSYNC);
        // On failure something may be left in the page cache.
        match written.inspect_err(|_| self.note_write())? {
            Calls::One => Ok(()),
            // As on threads: only a write that is one call is trusted to be durable by itself.
            Calls::Several => rustix::fs::fdatasync(self.fd()).inspect_err(|_| self.note_write()),
        }
    }

    async fn sync(&self) -> io::Result<()> {
        let covered = self.writes.get();
        self.cached.sync_data().await?;
        self.synced.set(covered.max(self.synced.get()));
        self.uncached.synced(self.fd());
        Ok(())
    }
}

impl IoFile for UringFile {
    async fn read_at(&self, pos: u64, len: usize) -> io::Result<Bytes> {
        let len = names::readable(self.fd(), pos, len)?;
        let file = Rc::clone(&self.file);
        self.io
            .whole(async move { read(&file.cached, pos, len).await })
            .await
    }

    async fn write_all_at(&self, bufs: Vec<Bytes>, pos: u64) -> io::Result<()> {
        let file = Rc::clone(&self.file);
        self.io
            .whole(async move { file.write(bufs, pos).await })
            .await
    }

    /// A plain system call: tokio-uring has no flags for a write, and one that goes into the page
    /// cache would be carried out where it is submitted all the same.
    async fn write_uncached_at(&self, bufs: Vec<Bytes>, pos: u64) -> io::Result<()> {
        self.file.note_write();
        self.file.uncached.write(self.fd(), &bufs, pos)
    }

    async fn write_durable_at(&self, bufs: Vec<Bytes>, pos: u64) -> io::Result<()> {
        let shared = Rc::clone(&self.file);
        if streamed::is_large(&bufs) {
            // The copying is done where it is submitted all the same; what waits for the device
            // goes through the ring.
            shared.note_write();
            streamed::write(self.fd(), &bufs, pos)?;
            return self.io.whole(async move { shared.sync().await }).await;
        }
        let len: usize = bufs.iter().map(Bytes::len).sum();
        if len <= LONE_MAX && self.io.is_idle() && shared.writable && shared.all_synced() {
            match shared.write_through(&bufs, pos) {
                // A kernel or file system without the flag, before anything was written.
                Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
                written => return Ok(written?),
            }
        }
        let write = async move {
            if shared.writable
                && shared.all_synced()
                && let Some(through) = shared.through()
            {
                // On failure something may be left in the page cache.
                let result = write_all(through, bufs, pos).await;
                return result.inspect_err(|_| shared.note_write());
            }
            shared.write(bufs, pos).await?;
            shared.sync().await
        };
        self.io.whole(write).await
    }

    async fn sync_data(&self) -> io::Result<()> {
        let file = Rc::clone(&self.file);
        self.io.whole(async move { file.sync().await }).await
    }

    async fn len(&self) -> io::Result<u64> {
        names::len(self.fd())
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.note_write();
        Ok(rustix::fs::ftruncate(self.fd(), len)?)
    }
}

async fn read(file: &File, pos: u64, len: usize) -> io::Result<Bytes> {
    let mut buf = Vec::with_capacity(len);
    while buf.len() < len {
        let done = buf.len();
        let (result, slice) = file.read_at(buf.slice(done..len), pos + done as u64).await;
        buf = slice.into_inner();
        match result {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if again(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Bytes::from(buf))
}

async fn write_all(file: &File, mut bufs: Vec<Bytes>, mut pos: u64) -> io::Result<()> {
    bufs.retain(|buf| !buf.is_empty());
    while !bufs.is_empty() {
        let rest = bufs.split_off(bufs.len().min(SLICES_MAX));
        let (result, written) = file.writev_at(bufs, pos).await;
        bufs = written;
        match result {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(len) => {
                advance(&mut bufs, len);
                pos += len as u64;
            }
            Err(error) if again(&error) => {}
            Err(error) => return Err(error),
        }
        bufs.extend(rest);
    }
    Ok(())
}

/// Drops the first `len` bytes.
fn advance(bufs: &mut Vec<Bytes>, mut len: usize) {
    let whole = bufs.iter().take_while(|buf| {
        let written = buf.len() <= len;
        if written {
            len -= buf.len();
        }
        written
    });
    let whole = whole.count();
    bufs.drain(..whole);
    if let Some(first) = bufs.first_mut() {
        first.advance(len);
    }
}

fn again(error: &io::Error) -> bool {
    let code = Errno::from_io_error(error);
    matches!(code, Some(Errno::INTR | Errno::AGAIN))
}
