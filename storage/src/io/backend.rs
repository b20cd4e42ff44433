//! Which back-end runs the I/O jobs of a process, and how a job is started and awaited.

use std::any::Any;
use std::fmt;
use std::io;
use std::path::Path;
use std::str::FromStr;

use thiserror::Error;
use tokio::sync::oneshot;
use tracing::error;

use super::sim::SimDisk;
use super::{IoJob, threads, uring};

/// What the configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// io_uring where the kernel grants it, else threads.
    #[default]
    Auto,
    Uring,
    Threads,
}

impl FromStr for Choice {
    type Err = UnknownChoice;

    fn from_str(text: &str) -> Result<Self, UnknownChoice> {
        match text {
            "auto" => Ok(Self::Auto),
            "uring" => Ok(Self::Uring),
            "threads" => Ok(Self::Threads),
            _ => Err(UnknownChoice),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Uring => "uring",
            Self::Threads => "threads",
        })
    }
}

/// A text that names no [`Choice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not one of auto, uring, threads")]
pub struct UnknownChoice;

/// The back-end that was chosen.
#[derive(Clone, Debug)]
pub struct Probe {
    pub backend: Backend,
    /// Why it is not io_uring, where that was wanted.
    pub refusal: Option<String>,
}

/// io_uring was demanded and does not work here.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("io_uring was asked for and does not work here: {refusal}")]
pub struct ProbeError {
    pub refusal: String,
}

/// A way to run [`IoJob`]s. Cheap to clone; every clone is the same disk.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Backend {
    /// Blocking system calls, a thread per job.
    Threads,
    /// tokio-uring, a ring and a thread per job.
    Uring,
    /// A simulated disk, in which jobs are local tasks.
    Sim(SimDisk),
}

impl Backend {
    /// Chooses by a real write and sync through a ring, of a small file in `dir`. Blocks for a
    /// few milliseconds.
    pub fn probe(choice: Choice, dir: &Path) -> Result<Probe, ProbeError> {
        if choice == Choice::Threads {
            return Ok(Probe {
                backend: Self::Threads,
                refusal: None,
            });
        }
        match (uring::probe(dir), choice) {
            (Ok(()), _) => Ok(Probe {
                backend: Self::Uring,
                refusal: None,
            }),
            (Err(refusal), Choice::Uring) => Err(ProbeError { refusal }),
            (Err(refusal), _) => Ok(Probe {
                backend: Self::Threads,
                refusal: Some(refusal),
            }),
        }
    }

    /// The name as it stands in configuration, logs and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Threads => "threads",
            Self::Uring => "uring",
            Self::Sim(_) => "sim",
        }
    }

    /// Runs `job` to its end on an I/O thread called `name` (simulated: as a local task).
    ///
    /// The job may use tokio's channels and timers and `tokio::task::spawn_local`; what it
    /// spawned ends with it. A job runs to its end even when the handle is dropped. A panic in a
    /// job on a real disk aborts the process, and so does a thread that cannot be started: no one
    /// is left to answer for the files it owned.
    pub fn spawn<J: IoJob>(&self, name: &str, job: J) -> JobHandle {
        match self {
            Self::Threads => threads::spawn(name, job),
            Self::Uring => uring::spawn(name, job),
            Self::Sim(disk) => disk.spawn(job),
        }
    }
}

/// A running [`IoJob`].
#[derive(Debug)]
#[must_use = "a job that nobody joins is not drained at shutdown"]
pub struct JobHandle {
    /// The job's end drops the sender; only a simulated job's panic is ever sent.
    over: oneshot::Receiver<Box<dyn Any + Send>>,
}

impl JobHandle {
    /// The handle, and the token that the job holds until it is over.
    pub(super) fn new() -> (oneshot::Sender<Box<dyn Any + Send>>, Self) {
        let (running, over) = oneshot::channel();
        (running, Self { over })
    }

    /// Waits for the job to end, whether by itself or, simulated, with its disk's power. A
    /// simulated job's panic goes on here.
    pub async fn join(self) {
        if let Ok(panic) = self.over.await {
            std::panic::resume_unwind(panic);
        }
    }
}

/// Runs `body` on a thread of its own; its panic aborts the process.
pub(super) fn spawn_thread(name: &str, body: impl FnOnce() + Send + 'static) {
    let label = name.to_owned();
    let guarded = move || {
        // The state the panic left behind is never looked at again.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(body)).is_err() {
            error!(job = label, "an I/O job panicked");
            std::process::abort();
        }
    };
    let thread = std::thread::Builder::new().name(name.to_owned());
    require("start an I/O thread", thread.spawn(guarded));
}

/// The value, or the end of the process: for what an I/O thread cannot begin without.
pub(super) fn require<T>(what: &str, result: io::Result<T>) -> T {
    result.unwrap_or_else(|error| {
        error!(%error, "cannot {what}");
        std::process::abort()
    })
}
