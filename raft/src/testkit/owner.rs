//! The tasks of one simulated process, so that all of them can end at once, as in a crash.

use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::task::{AbortHandle, JoinHandle};

tokio::task_local! {
    static OWNER: Owner;
}

/// Owns what is spawned by tasks inside its scope, and by their tasks in turn.
#[derive(Clone, Debug, Default)]
pub(crate) struct Owner(Arc<Mutex<Vec<AbortHandle>>>);

impl Owner {
    /// The owner of the task that runs now.
    pub(crate) fn current() -> Option<Self> {
        OWNER.try_with(Self::clone).ok()
    }

    /// Runs a future whose tasks shall belong to this owner.
    pub(crate) async fn scope<F: Future>(&self, future: F) -> F::Output {
        OWNER.scope(self.clone(), future).await
    }

    pub(crate) fn spawn<F>(&self, future: F) -> JoinHandle<F::Output>
    where
        F: Future + Send + 'static,
        F::Output: Send + 'static,
    {
        let task = tokio::spawn(OWNER.scope(self.clone(), future));
        let mut tasks = self.0.lock();
        tasks.retain(|task| !task.is_finished());
        tasks.push(task.abort_handle());
        task
    }

    /// Ends every task where it stands.
    pub(crate) fn abort_all(&self) {
        for task in self.0.lock().drain(..) {
            task.abort();
        }
    }
}
