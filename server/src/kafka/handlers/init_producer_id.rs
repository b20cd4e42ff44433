//! InitProducerId: an id that nobody else was or will be given, for an idempotent producer; for a
//! transactional one, who it is from now on.

use std::time::Duration;

use trilog_raft::controller::{Operation, ResourceKind};
use trilog_wire::kafka::messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerId};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;
use crate::transaction::{BeginRequest, Identity};

/// From here on a producer that was shut out is told so in words of its own.
const FENCED_SINCE: i16 = 4;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: InitProducerIdRequest = decode(request)?;
    let given = if asked.transactional_id.is_some() {
        begin(session, &asked, request.version).await
    } else {
        idempotent(session).await
    };
    let response = match given {
        Ok(identity) => InitProducerIdResponse::default()
            .with_producer_id(ProducerId(identity.producer_id))
            .with_producer_epoch(identity.epoch),
        Err(code) => {
            session.count_error(request, code.code());
            InitProducerIdResponse::default()
                .with_error_code(code.code())
                .with_producer_id(ProducerId(-1))
                .with_producer_epoch(-1)
        }
    };
    Ok(Writer::message(request, &response)?)
}

async fn idempotent(session: &Session) -> Result<Identity, ErrorCode> {
    session
        .check_cluster(Operation::IdempotentWrite)
        .or_else(|code| {
            let map = session.kafka.inner.cluster.map();
            let any = session
                .rights(&map)
                .may_any(Operation::Write, ResourceKind::Topic);
            any.then_some(()).ok_or(code)
        })?;
    let id = session.kafka.inner.cluster.producer_id().await;
    let producer_id = id.map_err(|error| match errors::propose(&error).0 {
        // Clients try again after these two only.
        ErrorCode::RequestTimedOut => ErrorCode::RequestTimedOut,
        _ => ErrorCode::CoordinatorNotAvailable,
    })?;
    Ok(Identity {
        producer_id,
        epoch: 0,
    })
}

async fn begin(
    session: &Session,
    asked: &InitProducerIdRequest,
    version: i16,
) -> Result<Identity, ErrorCode> {
    let id = asked.transactional_id.as_ref().map_or("", |id| id);
    session.check_transaction(Operation::Write, id)?;
    let expected = match (asked.producer_id.0, asked.producer_epoch) {
        (-1, -1) => None,
        (producer_id, epoch) if producer_id >= 0 && epoch >= 0 => {
            Some(Identity { producer_id, epoch })
        }
        // One without the other says nothing.
        _ => return Err(ErrorCode::InvalidRequest),
    };
    let id = asked.transactional_id.as_ref().map(|id| id.to_string());
    let millis = u64::try_from(asked.transaction_timeout_ms).unwrap_or(0);
    let request = BeginRequest {
        id: id.unwrap_or_default(),
        timeout: Duration::from_millis(millis),
        expected,
    };
    let begun = session.kafka.inner.transactions.begin(request).await;
    begun.map_err(|error| errors::transaction_since(&error, version, FENCED_SINCE))
}
