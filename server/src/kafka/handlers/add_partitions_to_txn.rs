//! AddPartitionsToTxn: partitions come into a producer's transaction, all or none.

use trilog_model::GroupId;
use trilog_raft::controller::Operation;
use trilog_raft::controller::commands::TopicKind;
use trilog_wire::kafka::messages::add_partitions_to_txn_response::{
    AddPartitionsToTxnPartitionResult, AddPartitionsToTxnTopicResult,
};
use trilog_wire::kafka::messages::{AddPartitionsToTxnRequest, AddPartitionsToTxnResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;
use crate::transaction::{AddRequest, Identity};

/// From here on a producer that was shut out is told so in words of its own.
const FENCED_SINCE: i16 = 2;

/// A topic's name, and what became of each of its partitions.
type Found = Vec<(i32, Result<GroupId, ErrorCode>)>;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: AddPartitionsToTxnRequest = decode(request)?;
    let id = &asked.v3_and_below_transactional_id;
    let forbidden = session.check_transaction(Operation::Write, id).err();
    let mut topics = Vec::with_capacity(asked.v3_and_below_topics.len());
    for topic in &asked.v3_and_below_topics {
        let found = match forbidden {
            Some(code) => topic
                .partitions
                .iter()
                .map(|index| (*index, Err(code)))
                .collect(),
            None => find(session, &topic.name, &topic.partitions).await,
        };
        topics.push((topic.name.clone(), found));
    }
    let all = topics.iter().flat_map(|(_, found)| found);
    let groups: Result<Vec<GroupId>, ErrorCode> = all.map(|(_, group)| *group).collect();
    let code = match groups {
        // Those that could have been added are told that they were not.
        Err(_) => Some(ErrorCode::OperationNotAttempted),
        Ok(partitions) => {
            let request_ = AddRequest {
                id: asked.v3_and_below_transactional_id.to_string(),
                producer: Identity {
                    producer_id: asked.v3_and_below_producer_id.0,
                    epoch: asked.v3_and_below_producer_epoch,
                },
                partitions,
            };
            let added = session.kafka.inner.transactions.add(request_).await;
            let refused = added.err();
            refused.map(|error| errors::transaction_since(&error, request.version, FENCED_SINCE))
        }
    };
    let mut response = AddPartitionsToTxnResponse::default();
    for (name, found) in topics {
        let each = found.into_iter().map(|(index, group)| {
            let code = group.err().or(code).map_or(0, |code| code.code());
            session.count_error(request, code);
            AddPartitionsToTxnPartitionResult::default()
                .with_partition_index(index)
                .with_partition_error_code(code)
        });
        let result = AddPartitionsToTxnTopicResult::default()
            .with_name(name)
            .with_results_by_partition(each.collect());
        response.results_by_topic_v3_and_below.push(result);
    }
    Ok(Writer::message(request, &response)?)
}

async fn find(session: &Session, topic: &str, indexes: &[i32]) -> Found {
    let found = match session.check_topic(Operation::Write, topic) {
        Ok(()) => session.topic(topic).await.map_err(|(code, _)| code),
        Err(code) => Err(code),
    };
    let found = found.and_then(|topic| match topic.kind {
        TopicKind::Internal => Err(ErrorCode::InvalidTopicException),
        TopicKind::User | TopicKind::BuiltIn => Ok(topic),
    });
    let each = indexes.iter().map(|index| {
        let group = found.as_ref().map_err(|code| *code).and_then(|topic| {
            let place = usize::try_from(*index).ok();
            let place = place.and_then(|index| topic.partitions.get(index));
            let place = place.ok_or(ErrorCode::UnknownTopicOrPartition)?;
            Ok(place.group)
        });
        (*index, group)
    });
    each.collect()
}
