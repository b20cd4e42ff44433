//! InitProducerId: an id that nobody else was or will be given, for an idempotent producer.

use trilog_wire::kafka::messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerId};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: InitProducerIdRequest = decode(request)?;
    let given = if asked.transactional_id.is_some() {
        // There are no transactions, so nobody coordinates this one.
        Err(ErrorCode::CoordinatorNotAvailable)
    } else {
        let id = session.kafka.inner.cluster.producer_id().await;
        id.map_err(|error| match errors::propose(&error).0 {
            // Clients try again after these two only.
            ErrorCode::RequestTimedOut => ErrorCode::RequestTimedOut,
            _ => ErrorCode::CoordinatorNotAvailable,
        })
    };
    let response = match given {
        Ok(id) => InitProducerIdResponse::default()
            .with_producer_id(ProducerId(id))
            .with_producer_epoch(0),
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
