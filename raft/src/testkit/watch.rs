//! A watch channel that wakes its waiters in the order they came.
//!
//! Tokio's own spreads waiters over several queues by a random number that no seed reaches, which
//! makes two runs of one seed differ as soon as two tasks watch the same value.

use std::sync::Arc;

use futures::FutureExt;
use openraft::rt::watch::SendError;
use openraft::rt::{OptionalSend, OptionalSync, RecvError, Watch, WatchReceiver, WatchSender};
use tokio::sync::{Notify, watch};

/// The family of such channels, for [`crate::runtime::Runtime`].
#[derive(Debug)]
pub(crate) struct OrderedWatch;

/// A sending end.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    /// Taken only when this end is dropped.
    value: Option<watch::Sender<T>>,
    wake: Arc<Notify>,
}

/// A receiving end.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    value: watch::Receiver<T>,
    wake: Arc<Notify>,
}

impl<T> Sender<T> {
    fn value(&self) -> &watch::Sender<T> {
        self.value.as_ref().expect("an end in use has its value")
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self {
            value: self.value.clone(),
            wake: Arc::clone(&self.wake),
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        drop(self.value.take());
        self.wake.notify_waiters();
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self {
            value: self.value.clone(),
            wake: Arc::clone(&self.wake),
        }
    }
}

impl Watch for OrderedWatch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = watch::Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = watch::channel(init);
        let wake = Arc::new(Notify::new());
        let sender = Sender {
            value: Some(sender),
            wake: Arc::clone(&wake),
        };
        let receiver = Receiver {
            value: receiver,
            wake,
        };
        (sender, receiver)
    }
}

impl<T: OptionalSend + OptionalSync> WatchSender<OrderedWatch, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        let sent = self.value().send(value);
        self.wake.notify_waiters();
        sent.map_err(|unsent| SendError(unsent.0))
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        let modified = self.value().send_if_modified(modify);
        if modified {
            self.wake.notify_waiters();
        }
        modified
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.value().borrow()
    }

    fn subscribe(&self) -> Receiver<T> {
        Receiver {
            value: self.value().subscribe(),
            wake: Arc::clone(&self.wake),
        }
    }
}

impl<T: OptionalSend + OptionalSync> WatchReceiver<OrderedWatch, T> for Receiver<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        let wake = Arc::clone(&self.wake);
        loop {
            let mut woken = std::pin::pin!(wake.notified());
            woken.as_mut().enable();
            if let Some(changed) = self.value.changed().now_or_never() {
                return changed.map_err(|_| RecvError(()));
            }
            woken.await;
        }
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.value.borrow()
    }

    fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        self.value.borrow_and_update()
    }
}
