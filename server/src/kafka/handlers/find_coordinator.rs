//! FindCoordinator: which node answers for a group, or for a producer's transactions.

use trilog_model::NodeId;
use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::find_coordinator_response::Coordinator;
use trilog_wire::kafka::messages::{BrokerId, FindCoordinatorRequest, FindCoordinatorResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, StrBytes, Writer, decode};

use super::metadata::{address, broker_id};
use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::errors::{self, Refusal};
use crate::kafka::session::Session;

/// What a key names.
const GROUP: i8 = 0;
const TRANSACTION: i8 = 1;
/// From here on a request has many keys.
const BATCHED_SINCE: i16 = 4;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: FindCoordinatorRequest = decode(request)?;
    let mut response = FindCoordinatorResponse::default();
    if request.version >= BATCHED_SINCE {
        for key in asked.coordinator_keys {
            let found = find(session, request, asked.key_type, &key).await;
            response.coordinators.push(found.with_key(key));
        }
    } else {
        let found = find(session, request, asked.key_type, &asked.key).await;
        response.error_code = found.error_code;
        if request.version >= 1 {
            response.error_message = found.error_message;
        }
        response.node_id = found.node_id;
        response.host = found.host;
        response.port = found.port;
    }
    Ok(Writer::message(request, &response)?)
}

async fn find(session: &Session, request: &Request, kind: i8, key: &StrBytes) -> Coordinator {
    let located = match kind {
        GROUP => group_coordinator(session, key).await,
        TRANSACTION => transaction_coordinator(session, key).await,
        _ => Err((ErrorCode::InvalidRequest, None)),
    };
    let located = located.and_then(|node| {
        let map = session.kafka.inner.cluster.map();
        let alive = session.kafka.inner.cluster.is_alive(node);
        let place = address(session, &map, node).filter(|_| alive);
        let (host, port) = place.ok_or((ErrorCode::CoordinatorNotAvailable, None))?;
        Ok((node, host, port))
    });
    match located {
        Ok((node, host, port)) => Coordinator::default()
            .with_node_id(broker_id(node))
            .with_host(text(host))
            .with_port(port),
        Err((code, message)) => {
            session.count_error(request, code.code());
            Coordinator::default()
                .with_error_code(code.code())
                .with_error_message(message.map(text))
                .with_node_id(BrokerId(-1))
                .with_port(-1)
        }
    }
}

async fn group_coordinator(session: &Session, group: &str) -> Result<NodeId, Refusal> {
    let checked = session.check_group(Operation::Describe, group);
    checked.map_err(|code| (code, None))?;
    let located = session.kafka.inner.groups.locate(group).await;
    located.map_err(|error| (errors::group(&error), Some(error.to_string())))
}

async fn transaction_coordinator(session: &Session, id: &str) -> Result<NodeId, Refusal> {
    let checked = session.check_transaction(Operation::Describe, id);
    checked.map_err(|code| (code, None))?;
    let located = session.kafka.inner.transactions.locate(id).await;
    located.map_err(|error| (errors::transaction(&error), Some(error.to_string())))
}
