//! EndTxn: a producer commits or aborts its transaction.

use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::{EndTxnRequest, EndTxnResponse};
use trilog_wire::kafka::{Answer, Request, Writer, decode};

use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;
use crate::transaction::{EndRequest, Identity};

/// From here on a producer that was shut out is told so in words of its own.
const FENCED_SINCE: i16 = 2;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: EndTxnRequest = decode(request)?;
    let ending = EndRequest {
        id: asked.transactional_id.to_string(),
        producer: Identity {
            producer_id: asked.producer_id.0,
            epoch: asked.producer_epoch,
        },
        commit: asked.committed,
    };
    let ended = match session.check_transaction(Operation::Write, &ending.id) {
        Ok(()) => {
            let ended = session.kafka.inner.transactions.end(ending).await;
            ended.map_err(|error| errors::transaction_since(&error, request.version, FENCED_SINCE))
        }
        Err(code) => Err(code),
    };
    let code = ended.err().map_or(0, |code| code.code());
    session.count_error(request, code);
    let response = EndTxnResponse::default().with_error_code(code);
    Ok(Writer::message(request, &response)?)
}
