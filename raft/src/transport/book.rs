//! The address book: where each node listens. May change while links are up.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::watch;
use trilog_model::NodeId;

/// Node addresses as `host:port`, shared and changeable at run time.
///
/// A changed address closes the links to the old one; a removed node's links close and calls to
/// it fail at once.
#[derive(Clone, Debug)]
pub struct AddressBook {
    entries: Arc<RwLock<BTreeMap<NodeId, String>>>,
    changed: watch::Sender<u64>,
}

impl Default for AddressBook {
    fn default() -> Self {
        Self::new()
    }
}

impl AddressBook {
    #[must_use]
    pub fn new() -> Self {
        Self {
            entries: Arc::default(),
            changed: watch::Sender::new(0),
        }
    }

    /// Enters or replaces a node's address.
    pub fn set(&self, node: NodeId, address: impl Into<String>) {
        let address = address.into();
        let old = self.entries.write().insert(node, address.clone());
        if old.as_deref() != Some(address.as_str()) {
            self.announce();
        }
    }

    /// Forgets a node.
    pub fn remove(&self, node: NodeId) {
        if self.entries.write().remove(&node).is_some() {
            self.announce();
        }
    }

    #[must_use]
    pub fn get(&self, node: NodeId) -> Option<String> {
        self.entries.read().get(&node).cloned()
    }

    /// Every known node, in order.
    #[must_use]
    pub fn nodes(&self) -> Vec<NodeId> {
        self.entries.read().keys().copied().collect()
    }

    /// Changes with every edit.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    fn announce(&self) {
        self.changed.send_modify(|edits| *edits += 1);
    }
}
