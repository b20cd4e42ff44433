//! DescribeTransactions: how far the transactions of ids have come, and which partitions are in
//! them.

use std::collections::{BTreeMap, BTreeSet};

use trilog_model::Timestamp;
use trilog_raft::controller::{GroupPlace, Operation};
use trilog_wire::kafka::messages::describe_transactions_response::{TopicData, TransactionState};
use trilog_wire::kafka::messages::{
    DescribeTransactionsRequest, DescribeTransactionsResponse, ProducerId, TopicName,
};
use trilog_wire::kafka::{Answer, Request, StrBytes, Writer, decode};

use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;
use crate::transaction::Description;

pub(super) fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: DescribeTransactionsRequest = decode(request)?;
    let mut response = DescribeTransactionsResponse::default();
    // Each once: a short request would have a very long answer otherwise.
    let mut seen = BTreeSet::new();
    for id in asked.transactional_ids {
        if !seen.insert(id.clone()) {
            continue;
        }
        let checked = session.check_transaction(Operation::Describe, &id);
        let found = checked.and_then(|()| {
            let found = session.kafka.inner.transactions.describe(&id);
            found.map_err(|error| errors::transaction(&error))
        });
        let state = match found {
            Ok(description) => described(session, &description),
            Err(code) => {
                let code = code.code();
                session.count_error(request, code);
                TransactionState::default()
                    .with_error_code(code)
                    .with_producer_id(ProducerId(-1))
                    .with_producer_epoch(-1)
                    .with_transaction_start_time_ms(-1)
            }
        };
        response
            .transaction_states
            .push(state.with_transactional_id(id));
    }
    Ok(Writer::message(request, &response)?)
}

fn described(session: &Session, description: &Description) -> TransactionState {
    let map = session.kafka.inner.cluster.map();
    let mut topics: BTreeMap<String, Vec<i32>> = BTreeMap::new();
    for group in &description.partitions {
        // One that was deleted meanwhile has no name any more.
        if let Some(GroupPlace::Partition { topic, index }) = map.place(*group)
            && let Some(topic) = map.topic(topic)
            && session
                .check_topic(Operation::Describe, &topic.name)
                .is_ok()
        {
            let indexes = topics.entry(topic.name.to_string()).or_default();
            indexes.push(i32::try_from(index).unwrap_or(i32::MAX));
        }
    }
    let topics = topics.into_iter().map(|(name, partitions)| {
        TopicData::default()
            .with_topic(TopicName(text(name)))
            .with_partitions(partitions)
    });
    let started = description.started.map_or(-1, Timestamp::as_millis);
    let timeout = description.timeout.as_millis();
    TransactionState::default()
        .with_transaction_state(StrBytes::from_static_str(
            description.listing.phase.as_kafka(),
        ))
        .with_transaction_timeout_ms(i32::try_from(timeout).unwrap_or(i32::MAX))
        .with_transaction_start_time_ms(started)
        .with_producer_id(ProducerId(description.listing.producer.producer_id))
        .with_producer_epoch(description.listing.producer.epoch)
        .with_topics(topics.collect())
}
