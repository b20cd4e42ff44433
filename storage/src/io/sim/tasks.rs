//! Runs the jobs of one opening of a simulated disk as local tasks, and ends them with it.

use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use futures::future::LocalBoxFuture;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, LocalSet};

use crate::io::backend::JobHandle;

type Start = Box<dyn FnOnce() -> LocalBoxFuture<'static, ()> + Send>;

/// Handles so that a plain `tokio::spawn`ed task may start a job: a local task does it for it.
#[derive(Clone)]
pub(super) struct Tasks {
    /// Jobs are few, and started at once.
    starts: mpsc::UnboundedSender<Start>,
    running: Arc<Mutex<Vec<AbortHandle>>>,
}

impl Tasks {
    pub(super) fn start() -> Self {
        let (starts, mut started) = mpsc::unbounded_channel::<Start>();
        let running = Arc::new(Mutex::new(Vec::new()));
        let jobs = Arc::clone(&running);
        let starter = tokio::task::spawn_local(async move {
            while let Some(start) = started.recv().await {
                let job = tokio::task::spawn_local(start()).abort_handle();
                let mut jobs = jobs.lock();
                jobs.retain(|job: &AbortHandle| !job.is_finished());
                jobs.push(job);
            }
        });
        running.lock().push(starter.abort_handle());
        Self { starts, running }
    }

    /// Starts a job in a task set of its own, so that what it spawns ends with it. Its panic
    /// comes out at [`JobHandle::join`].
    pub(super) fn spawn<F>(&self, start: F) -> JobHandle
    where
        F: FnOnce() -> LocalBoxFuture<'static, ()> + Send + 'static,
    {
        let (running, handle) = JobHandle::new();
        let start = move || {
            let job = async move {
                let tasks = LocalSet::new();
                let body = AssertUnwindSafe(tasks.run_until(start()));
                if let Err(panic) = body.catch_unwind().await {
                    let _ = running.send(panic);
                }
            };
            job.boxed_local()
        };
        // Refused once the opening has ended: the handle then reports the job as over.
        let _ = self.starts.send(Box::new(start));
        handle
    }

    pub(super) fn abort_all(&self) {
        for job in self.running.lock().drain(..) {
            job.abort();
        }
    }
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").finish_non_exhaustive()
    }
}
