//! DescribeCluster: the nodes, and which of them takes changes.

use trilog_wire::kafka::messages::describe_cluster_response::DescribeClusterBroker;
use trilog_wire::kafka::messages::{DescribeClusterRequest, DescribeClusterResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use super::metadata::{broker_id, cluster_operations, controller, live_brokers};
use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::session::Session;

/// The endpoints asked for are those of nodes that serve clients.
const BROKERS: i8 = 1;

pub(super) fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: DescribeClusterRequest = decode(request)?;
    let mut response = DescribeClusterResponse::default();
    if asked.endpoint_type != BROKERS {
        // Clients of the controllers' own listeners: there is none.
        let code = match asked.endpoint_type {
            2 => ErrorCode::MismatchedEndpointType,
            _ => ErrorCode::UnsupportedEndpointType,
        };
        session.count_error(request, code.code());
        response.error_code = code.code();
        return Ok(Writer::message(request, &response)?);
    }
    let map = session.kafka.inner.cluster.map();
    let brokers = live_brokers(session).into_iter().map(|broker| {
        DescribeClusterBroker::default()
            .with_broker_id(broker_id(broker.node))
            .with_host(text(broker.host))
            .with_port(broker.port)
            .with_rack(broker.rack.map(text))
    });
    response.brokers = brokers.collect();
    response.cluster_id = map
        .cluster()
        .map(|id| text(id.to_string()))
        .unwrap_or_default();
    response.controller_id = controller(session);
    if asked.include_cluster_authorized_operations {
        response.cluster_authorized_operations = cluster_operations(session);
    }
    Ok(Writer::message(request, &response)?)
}
