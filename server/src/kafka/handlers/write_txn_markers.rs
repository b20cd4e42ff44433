//! WriteTxnMarkers: the ends of transactions, as tools write them that have found one which nobody
//! ends. The coordinators of the cluster have a way of their own.

use futures::StreamExt;
use futures::stream;
use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::write_txn_markers_response::{
    WritableTxnMarkerPartitionResult, WritableTxnMarkerResult, WritableTxnMarkerTopicResult,
};
use trilog_wire::kafka::messages::{WriteTxnMarkersRequest, WriteTxnMarkersResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;
use crate::partition::Partition;
use crate::transaction::{Coordinator, EndOpen, Identity};

/// Markers on their way at once.
const AT_ONCE: usize = 32;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: WriteTxnMarkersRequest = decode(request)?;
    let allowed = session
        .check_cluster(Operation::Alter)
        .or_else(|_| session.check_cluster(Operation::ClusterAction));
    let mut wanted = Vec::new();
    for marker in &asked.markers {
        let end = EndOpen {
            producer: Identity {
                producer_id: marker.producer_id.0,
                epoch: marker.producer_epoch,
            },
            coordinator_epoch: marker.coordinator_epoch,
            commit: marker.transaction_result,
            begins: None,
        };
        for topic in &marker.topics {
            for index in &topic.partition_indexes {
                let led = allowed.and_then(|()| session.led(&topic.name, *index));
                wanted.push((led.map(|target| target.partition), end));
            }
        }
    }
    let transactions = &session.kafka.inner.transactions;
    let writing = wanted
        .into_iter()
        .map(|(led, end)| write(transactions, led, end));
    let codes: Vec<i16> = stream::iter(writing).buffered(AT_ONCE).collect().await;
    let mut codes = codes.into_iter();
    let mut response = WriteTxnMarkersResponse::default();
    for marker in asked.markers {
        let mut written = WritableTxnMarkerResult::default().with_producer_id(marker.producer_id);
        for topic in marker.topics {
            let each = topic.partition_indexes.into_iter().zip(codes.by_ref());
            let each = each.map(|(index, code)| {
                session.count_error(request, code);
                WritableTxnMarkerPartitionResult::default()
                    .with_partition_index(index)
                    .with_error_code(code)
            });
            let result = WritableTxnMarkerTopicResult::default()
                .with_partitions(each.collect())
                .with_name(topic.name);
            written.topics.push(result);
        }
        response.markers.push(written);
    }
    Ok(Writer::message(request, &response)?)
}

async fn write(transactions: &Coordinator, led: Result<Partition, ErrorCode>, end: EndOpen) -> i16 {
    match led {
        Ok(partition) => {
            let ended = transactions.end_open(&partition, end).await;
            ended.map_or_else(|error| errors::append(&error).0.code(), |_| 0)
        }
        Err(code) => code.code(),
    }
}
