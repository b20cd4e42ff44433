//! Transactions of Kafka producers: who has one, what stands open where, and how to end it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use trilog_wire::v1::transactions_client::TransactionsClient;
use trilog_wire::v1::{
    AbortTransactionRequest, DescribeTransactionRequest, DescribeTransactionResponse,
    EndOpenRequest, ListOpenRequest, ListOpenResponse, ListTransactionsRequest, OpenTransaction,
    TransactionSummary,
};

use super::Admin;
use crate::client::Repeat;
use crate::error::Error;

/// The states of transactions that are not over.
const LIVE: [&str; 3] = ["Ongoing", "PrepareCommit", "PrepareAbort"];

impl Admin {
    /// The transactional ids in one of these states (in Kafka's words; none named are all) whose
    /// transaction began longer ago, by id.
    pub async fn list_transactions(
        &self,
        states: Vec<String>,
        longer_than: Duration,
    ) -> Result<Vec<TransactionSummary>, Error> {
        let mut all = Vec::new();
        let mut request = ListTransactionsRequest {
            partition: 0,
            after: String::new(),
            states,
            longer_than_ms: millis(longer_than),
        };
        loop {
            let page = call!(self, Safe, TransactionsClient::list, request.clone())?;
            all.extend(page.transactions);
            request.after = match page.next {
                Some(next) => next,
                None if request.partition + 1 < page.partition_count => {
                    request.partition += 1;
                    String::new()
                }
                None => break,
            };
        }
        all.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(all)
    }

    /// How far the transaction of an id has come, and which partitions are in it.
    pub async fn describe_transaction(
        &self,
        id: impl Into<String>,
    ) -> Result<DescribeTransactionResponse, Error> {
        let request = DescribeTransactionRequest { id: id.into() };
        call!(self, Safe, TransactionsClient::describe, request)
    }

    /// Aborts the transaction of an id and shuts out its producer.
    pub async fn abort_transaction(&self, id: impl Into<String>) -> Result<(), Error> {
        let request = AbortTransactionRequest { id: id.into() };
        call!(self, Unsafe, TransactionsClient::abort, request).map(drop)
    }

    /// What stands open in partitions, by topic and partition; of partitions that have no leader
    /// nothing is known.
    pub async fn open_transactions(
        &self,
        topic: impl Into<String>,
        longer_than: Duration,
    ) -> Result<ListOpenResponse, Error> {
        let request = ListOpenRequest {
            topic: topic.into(),
            longer_than_ms: millis(longer_than),
        };
        let mut all = ListOpenResponse::default();
        for address in self.node_addresses().await? {
            let asked = self.client.on_node(&address, |channel| {
                let request = request.clone();
                async move { TransactionsClient::new(channel).list_open(request).await }
            });
            // A node that is down leads nothing, or soon will not.
            if let Ok(listed) = asked.await {
                all.open.extend(listed.open);
                all.cut_off |= listed.cut_off;
            }
        }
        let place = |one: &OpenTransaction| (one.topic.clone(), one.partition, one.first_offset);
        all.open.sort_by_key(place);
        Ok(all)
    }

    /// What stands open in partitions and no coordinator is going to end.
    pub async fn hanging_transactions(
        &self,
        topic: &str,
        longer_than: Duration,
    ) -> Result<ListOpenResponse, Error> {
        let mut found = self.open_transactions(topic, longer_than).await?;
        if found.open.is_empty() {
            return Ok(found);
        }
        let within = self.partitions_of_live(&found.open).await?;
        let again = self.open_transactions(topic, longer_than).await?;
        retain_hanging(&mut found.open, &within, &again.open);
        Ok(found)
    }

    /// The partitions, by producer, that are in transactions which coordinators look after.
    async fn partitions_of_live(&self, open: &[OpenTransaction]) -> Result<BTreeSet<Place>, Error> {
        let live = LIVE.map(str::to_owned).to_vec();
        let live = self.list_transactions(live, Duration::ZERO).await?;
        let ids: BTreeMap<i64, String> = live
            .into_iter()
            .map(|one| (one.producer_id, one.id))
            .collect();
        let producers: BTreeSet<i64> = open.iter().map(|one| one.producer_id).collect();
        let mut within = BTreeSet::new();
        for producer_id in producers {
            let Some(id) = ids.get(&producer_id) else {
                continue;
            };
            let described = self.describe_transaction(id).await?;
            let places = described.places.into_iter();
            within.extend(places.map(|place| (producer_id, place.topic, place.partition)));
        }
        Ok(within)
    }

    /// Ends what a producer has open in one partition, whatever its coordinator says; the offset
    /// of the marker.
    pub async fn end_open_transaction(&self, request: EndOpenRequest) -> Result<u64, Error> {
        let ended = call!(self, Unsafe, TransactionsClient::end_open, request)?;
        Ok(ended.offset)
    }
}

/// A producer and a partition.
type Place = (i64, String, u32);

fn place_of(one: &OpenTransaction) -> Place {
    (one.producer_id, one.topic.clone(), one.partition)
}

/// Leaves what no coordinator looks after, and is still open after that was found out: markers come
/// before the note that a transaction is over, so one that was about to end is not open any more.
fn retain_hanging(
    open: &mut Vec<OpenTransaction>,
    within: &BTreeSet<Place>,
    again: &[OpenTransaction],
) {
    let key = |one: &OpenTransaction| (place_of(one), one.first_offset);
    let again: BTreeSet<(Place, u64)> = again.iter().map(key).collect();
    open.retain(|one| !within.contains(&place_of(one)) && again.contains(&key(one)));
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_is_open_before_and_after_and_nobodys() {
        let open = |producer_id, partition, first_offset| OpenTransaction {
            topic: "orders".to_owned(),
            partition,
            producer_id,
            first_offset,
            ..OpenTransaction::default()
        };
        let mut found = vec![open(1, 0, 5), open(1, 1, 5), open(2, 0, 7), open(3, 0, 9)];
        // Of producer 1 one partition is in its transaction; that of 3 ended, and another began.
        let within = BTreeSet::from([(1, "orders".to_owned(), 0)]);
        let again = [open(1, 0, 5), open(1, 1, 5), open(2, 0, 7), open(3, 0, 11)];
        retain_hanging(&mut found, &within, &again);
        assert_eq!(found, [open(1, 1, 5), open(2, 0, 7)]);
    }
}
