//! Writes the history while it happens: one line after the other, numbered and timed under one
//! lock, so that their order is one that things really had.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::history::json;
use crate::history::{Event, Header, Note, Op, What};

#[derive(Debug)]
pub struct Recorder {
    began: Instant,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    out: BufWriter<File>,
    index: u64,
    time: u64,
    failed: Option<io::Error>,
    /// Nothing is written any more.
    closed: bool,
}

impl Recorder {
    pub fn create(path: &Path, header: &Header) -> io::Result<Self> {
        let mut out = BufWriter::with_capacity(1 << 20, File::create(path)?);
        json::write_header(&mut out, header)?;
        Ok(Self {
            began: Instant::now(),
            inner: Mutex::new(Inner {
                out,
                index: 0,
                time: 0,
                failed: None,
                closed: false,
            }),
        })
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Nanoseconds from the beginning of the run to a moment of it.
    pub fn nanos(&self, at: Instant) -> u64 {
        let since = at.saturating_duration_since(self.began);
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }

    pub fn op(&self, op: Op) {
        self.write(What::Op(op));
    }

    pub fn note(&self, note: Note) {
        self.write(What::Note(note));
    }

    fn write(&self, what: What) {
        let mut inner = self.inner();
        if inner.closed {
            return;
        }
        let time = self.nanos(Instant::now()).max(inner.time);
        let index = inner.index;
        inner.index += 1;
        inner.time = time;
        let event = Event { index, time, what };
        if inner.failed.is_none()
            && let Err(error) = json::write_event(&mut inner.out, &event)
        {
            inner.failed = Some(error);
        }
    }

    /// Everything is in the file, or why not. What clients that were given up still want to say is
    /// not written.
    pub fn close(&self) -> io::Result<()> {
        let mut inner = self.inner();
        inner.closed = true;
        match inner.failed.take() {
            Some(error) => Err(error),
            None => inner.out.flush(),
        }
    }
}
