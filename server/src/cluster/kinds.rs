//! The server's own calls between nodes, by the kind that marks them on the peer links.

use std::sync::Arc;

use trilog_raft::transport::{Kind, PeerHandler};

use super::ControllerHandle;
use super::leaders::LeadershipService;
use super::locate::LocateService;
use super::proxy::AppendService;
use crate::partition::Partitions;

/// A command for the controller's leader.
pub(super) const PROPOSE: Kind = Kind(64);
/// Asks a node which groups it leads.
pub(super) const LEADERSHIPS: Kind = Kind(65);
/// One record batch for a partition that the called node leads.
pub(super) const APPEND: Kind = Kind(66);
/// Asks the controller's leader for the version of the map that is current.
pub(super) const CONFIRM: Kind = Kind(67);
/// Asks the controller's leader how far the replicas of its log are.
pub(super) const QUORUM: Kind = Kind(68);
/// Where starting points lie in partitions that the called node leads.
pub(super) const LOCATE: Kind = Kind(72);
/// The end of a transaction, for a partition that the called node leads.
pub const MARK: Kind = Kind(80);
/// Asks a coordinator whether partitions are in a transaction.
pub const VERIFY: Kind = Kind(81);

/// Serves them on this node.
pub fn serve(controller: &ControllerHandle, partitions: &Partitions) {
    let all: [(Kind, Arc<dyn PeerHandler>); 6] = [
        (PROPOSE, Arc::new(controller.clone())),
        (CONFIRM, Arc::new(controller.clone())),
        (QUORUM, Arc::new(controller.clone())),
        (
            LEADERSHIPS,
            Arc::new(LeadershipService::new(partitions.clone())),
        ),
        (APPEND, Arc::new(AppendService::new(partitions.clone()))),
        (LOCATE, Arc::new(LocateService::new(partitions.clone()))),
    ];
    for (kind, handler) in all {
        controller.transport().register(kind.0..kind.0 + 1, handler);
    }
}
