//! AddOffsetsToTxn: the offsets of a group come into a producer's transaction.

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
    let transactions = &session.kafka.inner.transactions;
    let added = transactions.add_group(id, producer, &asked.group_id).await;
    let code = added.err().map_or(0, |error| {
        errors::transaction_since(&error, request.version, FENCED_SINCE).code()
    });
    session.count_error(request, code);
    let response = AddOffsetsToTxnResponse::default().with_error_code(code);
    Ok(Writer::message(request, &response)?)
}
