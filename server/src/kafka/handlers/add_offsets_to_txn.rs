//! AddOffsetsToTxn: the offsets of a group come into a producer's transaction.

use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::{AddOffsetsToTxnRequest, AddOffsetsToTxnResponse};
use trilog_wire::kafka::{Answer, Request, Writer, decode};

use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;
use crate::transaction::Identity;

/// From here on a producer that was shut out is told so in words of its own.
const FENCED_SINCE: i16 = 2;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: AddOffsetsToTxnRequest = decode(request)?;
    let producer = Identity {
        producer_id: asked.producer_id.0,
        epoch: asked.producer_epoch,
    };
    let id = asked.transactional_id.to_string();
    let allowed = session
        .check_transaction(Operation::Write, &id)
        .and_then(|()| session.check_group(Operation::Read, &asked.group_id));
    let transactions = &session.kafka.inner.transactions;
    let added = match allowed {
        Ok(()) => {
            let added = transactions.add_group(id, producer, &asked.group_id).await;
            added.map_err(|error| errors::transaction_since(&error, request.version, FENCED_SINCE))
        }
        Err(code) => Err(code),
    };
    let code = added.map_or_else(|code| code.code(), |()| 0);
    session.count_error(request, code);
    let response = AddOffsetsToTxnResponse::default().with_error_code(code);
    Ok(Writer::message(request, &response)?)
}
