//! Who leads a partition, told along with the refusal of a client that asked somebody else
//! (KIP-951): it goes there at once instead of asking for all metadata first.

use trilog_model::NodeId;
use trilog_raft::controller::commands::Purpose;
use trilog_wire::kafka::{CurrentLeader, NodeEndpoint};

use super::session::epoch_of;
use crate::cluster::Cluster;
use crate::partition::Partition;

/// Who leads, as the replica here knows, if it is a node that clients can be sent to.
pub(super) fn leader(cluster: &Cluster, partition: &Partition) -> Option<CurrentLeader> {
    // Both from one look: with the epoch of the next leader, the one before would be believed.
    let (node, term) = partition.leader_and_term();
    let node = node?;
    let reached = cluster.is_alive(node) && endpoint(cluster, node).is_some();
    let leader = CurrentLeader {
        node: i32::try_from(node.get()).ok()?,
        epoch: epoch_of(term),
    };
    reached.then_some(leader)
}

/// Where those leaders are, each once.
pub(super) fn endpoints(
    cluster: &Cluster,
    leaders: impl Iterator<Item = CurrentLeader>,
) -> Vec<NodeEndpoint> {
    let mut nodes: Vec<NodeId> = leaders
        .filter_map(|leader| u32::try_from(leader.node).ok())
        .map(NodeId)
        .collect();
    nodes.sort_unstable();
    nodes.dedup();
    let each = nodes.into_iter();
    each.filter_map(|node| endpoint(cluster, node)).collect()
}

fn endpoint(cluster: &Cluster, node: NodeId) -> Option<NodeEndpoint> {
    let map = cluster.map();
    let member = map.node(node)?;
    let endpoint = member.endpoint(Purpose::Kafka)?;
    Some(NodeEndpoint {
        node: i32::try_from(node.get()).ok()?,
        host: endpoint.host.trim_matches(['[', ']']).to_owned(),
        port: i32::try_from(endpoint.port).ok()?,
        rack: member.rack.clone(),
    })
}
