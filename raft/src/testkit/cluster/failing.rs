//! What becomes of a node whose disk fails: the process ends, as a real one does, and may be
//! started again.

use std::path::PathBuf;
use std::sync::atomic::Ordering;

use trilog_model::NodeId;
use trilog_storage::env::Entropy;
use trilog_storage::log::StoreError;
use trilog_storage::store::Store;
use trilog_storage::wal::WalError;

use super::{Cluster, Host, Process};
use crate::testkit::Owner;
use crate::transport::sim::Crash;

impl Cluster {
    /// Ends a process where it stands, because its disk failed. What it leaves is cleared away
    /// when the node starts again.
    pub(super) fn end_failed(&self, node: NodeId, host: &Host, process: &Process) {
        if process.ended.swap(true, Ordering::Relaxed) {
            return;
        }
        process.owner.abort_all();
        process.node.abort();
        self.net.crash(node, Crash::Process);
        host.disk.kill();
    }

    /// Clears away a process that failed.
    pub(super) fn bury(&mut self, node: NodeId) {
        let up = self.hosts.get(&node).and_then(|host| host.up.as_ref());
        if let Some(process) = up {
            assert!(process.has_failed(), "node {node} runs already");
            self.kill(node);
        }
    }

    /// Opens a node's store; `None` if its disk fails meanwhile. What was damaged too badly to be
    /// repaired is set aside, and another replica is owed for each that was there.
    pub(super) async fn open_store(&mut self, node: NodeId, owner: &Owner) -> Option<Store> {
        let entropy = Entropy::from_seed(self.entropy.next_u64());
        let host = self.hosts.get_mut(&node)?;
        host.lives += 1;
        if host.lives > 1 {
            host.disk = host.disk.reopen();
        }
        let sound = host.disk.is_sound();
        let opening = Store::open(
            (self.config.store)(PathBuf::from("/data")),
            host.disk.backend(),
            host.clock.clone(),
            entropy,
        );
        let (store, report) = match owner.scope(opening).await {
            Ok(opened) => opened,
            Err(error) if !sound && is_of_the_disk(&error) => {
                owner.abort_all();
                host.disk.kill();
                return None;
            }
            Err(error) => panic!(
                "seed {}: node {node} cannot open its store: {error:?}",
                self.config.seed
            ),
        };
        self.step_aside(node, &report);
        Some(store)
    }
}

impl Process {
    /// Hands over, drains and closes everything.
    pub(super) async fn stop(&self) {
        self.node.shutdown().await;
        self.node.heartbeats().stop().await;
        self.transport.close().await;
        if let Err(error) = self.node.store().clone().close().await {
            // The log holds what the last checkpoint could not.
            let excused = self.has_failed() || is_of_the_disk(&error);
            assert!(excused, "{error:?}");
        }
    }
}

/// Whether it was the disk that said no.
fn is_of_the_disk(error: &StoreError) -> bool {
    matches!(
        error,
        StoreError::Fatal(_) | StoreError::Io { .. } | StoreError::Wal(WalError::Io { .. })
    )
}
