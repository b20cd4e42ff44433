//! Transactions: by transactional id, and as they stand open in partitions.

use std::collections::BTreeMap;
use std::time::Duration;

use tonic::{Request, Response, Status};
use trilog_model::{Offset, Timestamp};
use trilog_raft::controller::{GroupPlace, Operation, ResourceKind};
use trilog_wire::v1::transactions_server::Transactions;
use trilog_wire::v1::{
    AbortTransactionRequest, AbortTransactionResponse, DescribeTransactionRequest,
    DescribeTransactionResponse, EndOpenRequest, EndOpenResponse, Error, ErrorCode,
    ListOpenRequest, ListOpenResponse, ListTransactionsRequest, ListTransactionsResponse,
    OpenTransaction, TransactionPlace, TransactionSummary,
};

use super::door::Caller;
use super::{Api, errors};
use crate::partition::AppendError;
use crate::transaction::{Description, EndOpen, Identity, Listing, TransactionError};

/// Open transactions of one answer at most.
const MAX_OPEN: usize = 10_000;

#[tonic::async_trait]
impl Transactions for Api {
    async fn list(
        &self,
        request: Request<ListTransactionsRequest>,
    ) -> Result<Response<ListTransactionsResponse>, Status> {
        let caller = Caller::of(&request);
        let may = |id: &str| {
            self.may(
                &caller,
                Operation::Describe,
                ResourceKind::TransactionalId,
                id,
            )
        };
        let request = request.into_inner();
        let longer_than = Duration::from_millis(request.longer_than_ms);
        let now = self.clock.now();
        let wanted = |one: &Listing| {
            let states = &request.states;
            let state = states.iter().any(|state| state == one.phase.as_kafka());
            (states.is_empty() || state) && age(now, one.started) >= longer_than && may(&one.id)
        };
        let mut after = request.after;
        let (page, partition_count) = loop {
            let coordinator = &self.transactions;
            let listed = coordinator.list_page(request.partition, &after, wanted);
            let (page, count) = listed.map_err(|error| {
                let place = format!("partition {} of transactions", request.partition);
                errors::transaction(&self.cluster, &place, &error)
            })?;
            match &page.last {
                // A page ends at an id that the caller may see, or it would tell of another.
                Some(last) if page.listed.is_empty() && !may(last) => after.clone_from(last),
                _ => break (page, count),
            }
        };
        let next = page.last.map(|last| match page.listed.last() {
            Some(listed) if !may(&last) => listed.id.clone(),
            _ => last,
        });
        Ok(Response::new(ListTransactionsResponse {
            transactions: page.listed.into_iter().map(summary).collect(),
            next,
            partition_count,
        }))
    }

    async fn describe(
        &self,
        request: Request<DescribeTransactionRequest>,
    ) -> Result<Response<DescribeTransactionResponse>, Status> {
        let caller = Caller::of(&request);
        let id = request.into_inner().id;
        self.check_transaction(&caller, Operation::Describe, &id)?;
        let described = self.transactions.describe(&id);
        let described = described.map_err(|error| self.transaction_error(&id, &error))?;
        let places = self.places(&caller, &described);
        Ok(Response::new(DescribeTransactionResponse {
            timeout_ms: u64::try_from(described.timeout.as_millis()).unwrap_or(u64::MAX),
            coordinator: self.cluster.node().get(),
            places,
            transaction: Some(summary(described.listing)),
        }))
    }

    async fn abort(
        &self,
        request: Request<AbortTransactionRequest>,
    ) -> Result<Response<AbortTransactionResponse>, Status> {
        let caller = Caller::of(&request);
        let id = request.into_inner().id;
        // As for a producer that shuts out the one before it, which aborts as well.
        self.check_transaction(&caller, Operation::Write, &id)?;
        let aborted = self.transactions.abort(&id).await;
        aborted.map_err(|error| self.transaction_error(&id, &error))?;
        Ok(Response::new(AbortTransactionResponse {}))
    }

    async fn list_open(
        &self,
        request: Request<ListOpenRequest>,
    ) -> Result<Response<ListOpenResponse>, Status> {
        let caller = Caller::of(&request);
        let may = |topic: &str| self.may(&caller, Operation::Read, ResourceKind::Topic, topic);
        let request = request.into_inner();
        if !request.topic.is_empty() {
            self.check_topic(&caller, Operation::Read, &request.topic)?;
        }
        let longer_than = Duration::from_millis(request.longer_than_ms);
        let now = self.clock.now();
        let map = self.cluster.map();
        let topics = map.topics_by_name();
        let topics =
            topics.filter(|topic| request.topic.is_empty() || *topic.name == request.topic);
        let topics = topics.filter(|topic| may(&topic.name));
        let places = topics.flat_map(|topic| (0..).zip(&topic.partitions).map(move |p| (topic, p)));
        let mut open = Vec::new();
        for (topic, (index, place)) in places {
            let Some(partition) = self.cluster.partitions().get(place.group) else {
                continue;
            };
            if partition.leader().1 {
                let left = (MAX_OPEN + 1).saturating_sub(open.len());
                let idle = |last: Timestamp| age(now, last) >= longer_than;
                let found = partition.open_transactions(left, idle).into_iter();
                open.extend(found.map(|one| OpenTransaction {
                    topic: topic.name.to_string(),
                    partition: index,
                    producer_id: one.producer_id,
                    producer_epoch: i32::from(one.epoch),
                    first_offset: one.first_offset.get(),
                    last_write_ms: one.last_time.as_millis(),
                }));
            }
        }
        let cut_off = open.len() > MAX_OPEN;
        open.truncate(MAX_OPEN);
        Ok(Response::new(ListOpenResponse { open, cut_off }))
    }

    async fn end_open(
        &self,
        request: Request<EndOpenRequest>,
    ) -> Result<Response<EndOpenResponse>, Status> {
        let caller = Caller::of(&request);
        // As for Kafka's WriteTxnMarkers.
        self.check_cluster(&caller, Operation::Alter)
            .or_else(|_| self.check_cluster(&caller, Operation::ClusterAction))?;
        let request = request.into_inner();
        let topic = self.cluster.topic(&request.topic);
        let topic = topic.map_err(|error| errors::lookup(&self.cluster, &error))?;
        let partition = self.led_partition(&topic, request.partition)?;
        let begins = Offset(request.first_offset);
        let open = partition.open_transaction(request.producer_id);
        let open = open.filter(|open| open.first_offset == begins);
        let open = open.ok_or_else(|| not_open(&request))?;
        let end = EndOpen {
            producer: Identity {
                producer_id: request.producer_id,
                epoch: open.epoch,
            },
            coordinator_epoch: open.coordinator_epoch.unwrap_or(0),
            commit: request.commit,
            begins: Some(begins),
        };
        let ended = self.transactions.end_open(&partition, end).await;
        let offset = ended.map_err(|error| match error {
            AppendError::NotInTransaction => not_open(&request),
            error => errors::append(&self.cluster, &error),
        })?;
        let offset = offset.get();
        Ok(Response::new(EndOpenResponse { offset }))
    }
}

impl Api {
    fn transaction_error(&self, id: &str, error: &TransactionError) -> Error {
        errors::transaction(&self.cluster, &format!("transactional id '{id}'"), error)
    }

    /// Those of topics that the caller may see.
    fn places(&self, caller: &Caller, described: &Description) -> Vec<TransactionPlace> {
        let map = self.cluster.map();
        let mut topics: BTreeMap<String, Vec<u32>> = BTreeMap::new();
        for group in &described.partitions {
            // One that was deleted meanwhile has no name any more.
            if let Some(GroupPlace::Partition { topic, index }) = map.place(*group)
                && let Some(topic) = map.topic(topic)
                && self.may(
                    caller,
                    Operation::Describe,
                    ResourceKind::Topic,
                    &topic.name,
                )
            {
                topics
                    .entry(topic.name.to_string())
                    .or_default()
                    .push(index);
            }
        }
        let each = topics.into_iter().flat_map(|(topic, mut indexes)| {
            indexes.sort_unstable();
            indexes.into_iter().map(move |partition| TransactionPlace {
                topic: topic.clone(),
                partition,
            })
        });
        each.collect()
    }
}

fn age(now: Timestamp, then: Timestamp) -> Duration {
    Duration::from_nanos(now.nanos().saturating_sub(then.nanos()))
}

fn not_open(request: &EndOpenRequest) -> Error {
    let text = format!(
        "producer {} has no transaction open in {}/{} that begins at {}",
        request.producer_id, request.topic, request.partition, request.first_offset
    );
    Error::new(ErrorCode::InvalidRequest, text)
        .with_hint("trilog txn hanging shows what hangs; it may have ended meanwhile")
}

fn summary(listing: Listing) -> TransactionSummary {
    TransactionSummary {
        state: listing.phase.as_kafka().to_owned(),
        producer_id: listing.producer.producer_id,
        producer_epoch: i32::from(listing.producer.epoch),
        started_ms: listing.started.as_millis(),
        partitions: u32::try_from(listing.partitions).unwrap_or(u32::MAX),
        id: listing.id,
    }
}
