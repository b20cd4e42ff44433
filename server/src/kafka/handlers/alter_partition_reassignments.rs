//! AlterPartitionReassignments: other replicas for partitions, or back to those from before. One
//! row for each partition asked for, whether or not the others are moved.

use std::collections::BTreeSet;

use futures::{StreamExt, stream};
use trilog_model::NodeId;
use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::alter_partition_reassignments_request::ReassignablePartition;
use trilog_wire::kafka::messages::alter_partition_reassignments_response::{
    ReassignablePartitionResponse, ReassignableTopicResponse,
};
use trilog_wire::kafka::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse,
};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use super::{are_few, text};
use crate::cluster::{Cluster, Destination};
use crate::kafka::conn::Ended;
use crate::kafka::errors::{self, Refusal};
use crate::kafka::session::Session;

/// Partitions decided on at once.
const AT_ONCE: usize = 16;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: AlterPartitionReassignmentsRequest = decode(request)?;
    let cluster = session.kafka.inner.cluster.clone();
    let any_replication = request.version == 0 || asked.allow_replication_factor_change;
    let mut response = AlterPartitionReassignmentsResponse::default()
        .with_error_message(None)
        .with_allow_replication_factor_change(any_replication);
    let topics = asked.topics.iter();
    let few = are_few(topics.map(|topic| (topic.name.len(), topic.partitions.len())));
    let allowed = session.check_cluster(Operation::Alter);
    let refused = match few {
        _ if allowed.is_err() => allowed.err(),
        false => Some(ErrorCode::InvalidRequest),
        // What is decided on an old map may be called unknown, or not in progress.
        true if !cluster.is_current().await => Some(ErrorCode::NotController),
        true => None,
    };
    if let Some(code) = refused {
        session.count_error(request, code.code());
        response.error_code = code.code();
        return Ok(Writer::message(request, &response)?);
    }
    for topic in asked.topics {
        let moves = topic.partitions.iter();
        let moves = moves.map(|one| reassign(&cluster, &topic.name, one, any_replication));
        let moves: Vec<_> = moves.collect();
        let at_once = at_once(&topic.partitions);
        let outcomes: Vec<_> = stream::iter(moves).buffered(at_once).collect().await;
        let rows = topic.partitions.iter().zip(outcomes);
        let rows = rows.map(|(partition, outcome)| {
            let row = ReassignablePartitionResponse::default()
                .with_partition_index(partition.partition_index)
                .with_error_message(None);
            let Err((code, message)) = outcome else {
                return row;
            };
            session.count_error(request, code.code());
            row.with_error_code(code.code())
                .with_error_message(message.map(text))
        });
        let rows = rows.collect();
        let moved = ReassignableTopicResponse::default().with_partitions(rows);
        response.responses.push(moved.with_name(topic.name));
    }
    Ok(Writer::message(request, &response)?)
}

/// How many may be decided on at once: what is said of one partition twice counts in its order.
fn at_once(partitions: &[ReassignablePartition]) -> usize {
    let mut named = BTreeSet::new();
    let once = partitions
        .iter()
        .all(|one| named.insert(one.partition_index));
    if once { AT_ONCE } else { 1 }
}

async fn reassign(
    cluster: &Cluster,
    topic: &str,
    partition: &ReassignablePartition,
    any_replication: bool,
) -> Result<(), Refusal> {
    let index = u32::try_from(partition.partition_index);
    let index = index.map_err(|_| (ErrorCode::UnknownTopicOrPartition, None))?;
    let to = match &partition.replicas {
        None => Destination::Back,
        Some(nodes) => {
            let nodes = nodes.iter().map(|node| u32::try_from(node.0).map(NodeId));
            let nodes = nodes.collect::<Result<_, _>>();
            let text = "a node's number is negative".to_owned();
            let nodes = nodes.map_err(|_| (ErrorCode::InvalidReplicaAssignment, Some(text)))?;
            Destination::Nodes(nodes)
        }
    };
    let moved = cluster.reassign(topic, index, &to, any_replication).await;
    moved.map_err(|error| errors::reassign(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_of_one_partition_twice_is_decided_in_turn() {
        let named = |indexes: &[i32]| {
            let each = indexes.iter();
            let each =
                each.map(|index| ReassignablePartition::default().with_partition_index(*index));
            at_once(&each.collect::<Vec<_>>())
        };
        assert_eq!(named(&[0, 1, 2]), AT_ONCE);
        assert_eq!(named(&[0, 1, 0]), 1);
        assert_eq!(named(&[]), AT_ONCE);
    }
}
