//! ListTransactions: the transactional ids that this node coordinates.

use std::collections::BTreeSet;

use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::list_transactions_response::TransactionState;
use trilog_wire::kafka::messages::{
    ListTransactionsRequest, ListTransactionsResponse, ProducerId, TransactionalId,
};
use trilog_wire::kafka::{Answer, Request, StrBytes, Writer, decode};

use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;
use crate::transaction::{Listing, Phase};

/// What one answer may take: a request of a few bytes asks for all there are.
const MAX_BYTES: usize = 16 << 20;

pub(super) fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: ListTransactionsRequest = decode(request)?;
    let mut response = ListTransactionsResponse::default();
    let unknown = asked.state_filters.iter().filter(|state| !is_state(state));
    response.unknown_state_filters = unknown.cloned().collect();
    let wanted = Wanted::new(&asked);
    let now = session.kafka.inner.clock.now().as_millis();
    let may = |id: &str| session.check_transaction(Operation::Describe, id).is_ok();
    let wants = |one: &Listing| wanted.takes(one, now) && may(&one.id);
    match session.kafka.inner.transactions.list(wants, MAX_BYTES) {
        Ok(all) => {
            let states = all.into_iter().map(|one| {
                TransactionState::default()
                    .with_transactional_id(TransactionalId(text(one.id)))
                    .with_producer_id(ProducerId(one.producer.producer_id))
                    .with_transaction_state(StrBytes::from_static_str(one.phase.as_kafka()))
            });
            response.transaction_states = states.collect();
        }
        Err(error) => response.error_code = errors::transaction(&error).code(),
    }
    session.count_error(request, response.error_code);
    Ok(Writer::message(request, &response)?)
}

/// Which ones are asked for; nothing asked for in particular means all.
struct Wanted {
    states: Option<BTreeSet<String>>,
    producers: Option<BTreeSet<i64>>,
    /// Only those that began longer ago, in milliseconds.
    longer_than: Option<i64>,
}

impl Wanted {
    fn new(asked: &ListTransactionsRequest) -> Self {
        let states = asked.state_filters.iter().map(ToString::to_string);
        let producers = asked.producer_id_filters.iter().map(|id| id.0);
        Self {
            states: (!asked.state_filters.is_empty()).then(|| states.collect()),
            producers: (!asked.producer_id_filters.is_empty()).then(|| producers.collect()),
            longer_than: (asked.duration_filter >= 0).then_some(asked.duration_filter),
        }
    }

    fn takes(&self, one: &Listing, now: i64) -> bool {
        let state = self.states.as_ref();
        let producer = self.producers.as_ref();
        state.is_none_or(|states| states.contains(one.phase.as_kafka()))
            && producer.is_none_or(|producers| producers.contains(&one.producer.producer_id))
            && self
                .longer_than
                .is_none_or(|time| now.saturating_sub(one.started.as_millis()) > time)
    }
}

/// Whether a transaction can be in such a state.
fn is_state(text: &str) -> bool {
    Phase::ALL.iter().any(|phase| phase.as_kafka() == text)
}
