//! Which back-end runs the I/O jobs of a process, and how a job is started and awaited.

use std::any::Any;
use std::io;

use tokio::sync::oneshot;
use tracing::error;

use super::sim::SimDisk;
use super::{IoJob, threads};

/// A way to run [`IoJob`]s. Cheap to clone; every clone is the same disk.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Backend {
    /// Blocking system calls, a thread per job.
    Threads,
    /// A simulated disk, in which jobs are local tasks.
    Sim(SimDisk),
}

impl Backend {
    /// The name as it stands in configuration, logs and metrics.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Threads => "threads",
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
