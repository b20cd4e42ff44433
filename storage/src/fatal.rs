//! The one way a disk ends a node: what failed is told once, and the process must exit.
//!
//! A failed sync is never retried (the kernel may have marked the lost pages clean), so nothing
//! here can be undone or cleared.

use std::fmt;
use std::io;
use std::sync::Arc;

use tokio::sync::watch;

/// Why the node cannot go on. Cheap to clone, so that every waiter can be told.
#[derive(Clone, Debug)]
pub struct Fatal {
    /// What was being done, such as "write to the write-ahead log".
    pub what: &'static str,
    pub source: Arc<io::Error>,
}

impl fmt::Display for Fatal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "cannot {}: {}", self.what, self.source)
    }
}

impl std::error::Error for Fatal {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        Some(&*self.source)
    }
}

/// Where the jobs of one data directory report what ends the node. The first report stays.
#[derive(Clone, Debug)]
pub struct FatalSink(watch::Sender<Option<Fatal>>);

impl FatalSink {
    #[must_use]
    pub fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Reports `fatal`; later reports are only its consequences and are dropped.
    pub fn fire(&self, fatal: Fatal) {
        self.0.send_if_modified(|slot| {
            let first = slot.is_none();
            if first {
                tracing::error!(error = %fatal, "the disk failed, this node must stop");
                *slot = Some(fatal);
            }
            first
        });
    }

    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Option<Fatal>> {
        self.0.subscribe()
    }
}

impl Default for FatalSink {
    fn default() -> Self {
        Self::new()
    }
}
