//! Appending: streams of batches, and single records for callers that have no batch.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use trilog_model::batch::{BatchBuilder, BatchHeader, Compression, Header as RecordHeader};
use trilog_model::partitioner::partition_of_key;
use trilog_raft::controller::TopicId;
use trilog_raft::controller::{Operation, ResourceKind};
use trilog_wire::v1::producer_server::Producer;
use trilog_wire::v1::{
    Error, ErrorCode, InitProducerRequest, InitProducerResponse, ProduceRequest, ProduceResponse,
    PublishRequest, PublishResponse,
};

use super::door::Caller;
use super::{Api, DIALECT, errors};
use crate::cluster::LookupError;
use crate::meter::{ApiMeter, TopicMeter};
use crate::partition::{AppendError, Appended, Partition, Ticket};

/// Answers a produce stream may have waiting for its reader.
const RESPONSES: usize = 1024;
/// How long an append may take before its outcome is called unknown.
const APPEND_PATIENCE: Duration = Duration::from_secs(30);

#[tonic::async_trait]
impl Producer for Api {
    type ProduceStream = ReceiverStream<Result<ProduceResponse, Status>>;

    async fn init_producer(
        &self,
        request: Request<InitProducerRequest>,
    ) -> Result<Response<InitProducerResponse>, Status> {
        let caller = Caller::of(&request);
        self.check_cluster(&caller, Operation::IdempotentWrite)
            .or_else(|error| self.may_write_any(&caller).then_some(()).ok_or(error))?;
        let id = self.cluster.producer_id().await;
        let producer_id = id.map_err(|error| errors::propose(&error))?;
        Ok(Response::new(InitProducerResponse {
            producer_id,
            producer_epoch: 0,
            max_batch_bytes: u32::try_from(self.limits.batch_bytes).unwrap_or(u32::MAX),
        }))
    }

    async fn produce(
        &self,
        request: Request<Streaming<ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        let (answers, responses) = mpsc::channel(RESPONSES);
        let stream = ProduceStream::new(self.clone(), Caller::of(&request), answers);
        tokio::spawn(stream.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(responses)))
    }

    async fn publish(
        &self,
        request: Request<PublishRequest>,
    ) -> Result<Response<PublishResponse>, Status> {
        let (meter, since) = (ApiMeter::new(DIALECT, "publish"), Instant::now());
        let caller = Caller::of(&request);
        let published = self.publish_one(&caller, request.into_inner()).await;
        let published = published.inspect_err(|error| meter.refused(errors::reason(error)))?;
        meter.answered(since);
        Ok(Response::new(published))
    }
}

impl Api {
    /// Whether there may be a topic that the caller may write to.
    fn may_write_any(&self, caller: &Caller) -> bool {
        self.may_any(caller, Operation::Write, ResourceKind::Topic)
    }

    async fn publish_one(
        &self,
        caller: &Caller,
        request: PublishRequest,
    ) -> Result<PublishResponse, Error> {
        self.check_topic(caller, Operation::Write, &request.topic)?;
        let index = self.choose_partition(&request).await?;
        let batch = self.single_record(&request)?;
        let bytes = batch.len() as u64;
        let append = self.cluster.append(&request.topic, index, batch);
        let appended = within_patience(append)
            .await
            .map_err(|error| errors::append_anywhere(&self.cluster, &error))?;
        self.meters.topic(&request.topic).came(1, bytes);
        Ok(PublishResponse {
            partition: index,
            offset: appended.base_offset.get(),
            append_time_ns: appended.append_time.nanos(),
        })
    }

    /// The partition asked for, or the one Kafka's clients would choose for the key.
    async fn choose_partition(&self, request: &PublishRequest) -> Result<u32, Error> {
        if let Some(partition) = request.partition {
            return Ok(partition);
        }
        let topic = self.cluster.current_topic(&request.topic).await;
        let topic = topic.map_err(|error| errors::lookup(&self.cluster, &error))?;
        let partitions = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
        Ok(request
            .key
            .as_ref()
            .map_or(0, |key| partition_of_key(key, partitions)))
    }

    fn single_record(&self, request: &PublishRequest) -> Result<Bytes, Error> {
        let time = request
            .timestamp_ms
            .unwrap_or_else(|| self.clock.now().as_millis());
        let headers: Vec<RecordHeader<'_>> = request
            .headers
            .iter()
            .map(|header| RecordHeader {
                key: &header.key,
                value: header.value.as_deref(),
            })
            .collect();
        let mut batch = BatchBuilder::new(Compression::None);
        batch
            .push(
                time,
                request.key.as_deref(),
                request.value.as_deref(),
                &headers,
            )
            .and_then(|()| batch.build())
            .map_err(|error| Error::new(ErrorCode::InvalidRecord, error.to_string()))
    }
}

async fn within_patience<T, E>(append: impl Future<Output = Result<T, E>>) -> Result<T, E>
where
    E: From<AppendError>,
{
    match tokio::time::timeout(APPEND_PATIENCE, append).await {
        Ok(outcome) => outcome,
        Err(_) => Err(AppendError::Unknown.into()),
    }
}

/// One produce stream: batches are queued in the order they come and answered as they commit.
struct ProduceStream {
    api: Api,
    caller: Caller,
    /// The version of the map that rights were looked up in.
    version: u64,
    answers: mpsc::Sender<Result<ProduceResponse, Status>>,
    /// Partitions met so far, so that a batch costs no look-up by name. A topic that was deleted
    /// and created anew has other groups: its closed partition is looked up again.
    partitions: BTreeMap<(String, u32), Known>,
    meter: ApiMeter,
    inflight_bytes: usize,
}

/// A partition that was looked up, as one of which topic.
#[derive(Clone)]
struct Known {
    partition: Partition,
    topic: TopicId,
    meter: TopicMeter,
}

/// An append that was queued, and what to answer it as.
struct Pending {
    receipt: Receipt,
    ticket: Ticket,
}

/// A batch on its way, for the answer and for the meters.
struct Receipt {
    request_id: u64,
    bytes: usize,
    records: u64,
    since: Instant,
    topic: TopicMeter,
}

type Done = (Receipt, Result<Appended, AppendError>);

impl ProduceStream {
    fn new(
        api: Api,
        caller: Caller,
        answers: mpsc::Sender<Result<ProduceResponse, Status>>,
    ) -> Self {
        Self {
            api,
            caller,
            version: 0,
            answers,
            partitions: BTreeMap::new(),
            meter: ApiMeter::new(DIALECT, "produce"),
            inflight_bytes: 0,
        }
    }

    async fn run(mut self, mut requests: Streaming<ProduceRequest>) {
        let mut pending = FuturesUnordered::new();
        let mut open = true;
        let (api, caller) = (self.api.clone(), self.caller.clone());
        let mut over = std::pin::pin!(api.until_over(&caller));
        let mut last_word = None;
        while open || !pending.is_empty() {
            // A sender that outruns the log is not read from: its bytes stay in its own buffers.
            let reading = open && self.inflight_bytes < self.api.limits.inflight_bytes;
            let answered = tokio::select! {
                biased;
                Some(done) = pending.next(), if !pending.is_empty() => self.answer(done).await,
                why = &mut over, if open => {
                    // What is on its way is answered yet.
                    (open, last_word) = (false, Some(why));
                    true
                }
                request = requests.next(), if reading => {
                    let request = match request {
                        Some(Ok(request)) => request,
                        ended => {
                            open = false;
                            self.say_why(ended).await;
                            continue;
                        }
                    };
                    match self.enqueue(request).await {
                        Ok(append) => {
                            pending.push(settle(append));
                            true
                        }
                        Err(refusal) => {
                            if let Some(error) = &refusal.error {
                                self.meter.refused(errors::reason(error));
                            }
                            self.send(refusal).await
                        }
                    }
                }
            };
            if !answered {
                return;
            }
        }
        if let Some(error) = last_word {
            self.meter.refused(errors::reason(&error));
            drop(self.answers.send(Err(error.into())).await);
        }
    }

    async fn enqueue(&mut self, request: ProduceRequest) -> Result<Pending, ProduceResponse> {
        let (request_id, bytes) = (request.request_id, request.batch.len());
        let since = Instant::now();
        let records = BatchHeader::parse(&request.batch).map_or(0, |header| header.record_count);
        let refused = |error| ProduceResponse {
            request_id,
            error: Some(error),
            ..ProduceResponse::default()
        };
        let meant = errors::topic_id(request.topic_id.as_deref()).map_err(&refused)?;
        let place = (request.topic, request.partition);
        let known = self.partition(place, meant).await.map_err(&refused)?;
        let ticket = known
            .partition
            .enqueue(request.batch, None)
            .await
            .map_err(|error| refused(errors::append(&self.api.cluster, &error)))?;
        self.inflight_bytes += bytes;
        let receipt = Receipt {
            request_id,
            bytes,
            records: u64::try_from(records).unwrap_or(0),
            since,
            topic: known.meter,
        };
        Ok(Pending { receipt, ticket })
    }

    /// The partition, of the topic that is meant if one is.
    async fn partition(
        &mut self,
        place: (String, u32),
        meant: Option<TopicId>,
    ) -> Result<Known, Error> {
        if self.caller.is_known() {
            let version = *self.api.cluster.changes().borrow();
            if version != self.version {
                self.version = version;
                self.partitions.clear();
            }
        }
        if let Some(known) = self.partitions.get(&place)
            && !known.partition.is_closed()
            && meant.is_none_or(|meant| meant == known.topic)
        {
            return Ok(known.clone());
        }
        let (caller, topic) = (&self.caller, &place.0);
        self.api.check_topic(caller, Operation::Write, topic)?;
        let cluster = &self.api.cluster;
        let wrong = |error: LookupError| errors::lookup(cluster, &error);
        let topic = cluster.topic_meant(&place.0, meant).await.map_err(wrong)?;
        let known = Known {
            partition: cluster.partition_of(&topic, place.1).map_err(wrong)?,
            topic: topic.id,
            meter: self.api.meters.topic(&place.0),
        };
        self.partitions.insert(place, known.clone());
        Ok(known)
    }

    async fn answer(&mut self, (receipt, outcome): Done) -> bool {
        let request_id = receipt.request_id;
        self.inflight_bytes -= receipt.bytes;
        self.meter.answered(receipt.since);
        let response = match outcome {
            Ok(appended) => {
                receipt.topic.came(receipt.records, receipt.bytes as u64);
                ProduceResponse {
                    request_id,
                    base_offset: appended.base_offset.get(),
                    append_time_ns: appended.append_time.nanos(),
                    error: None,
                }
            }
            Err(error) => {
                let error = errors::append(&self.api.cluster, &error);
                self.meter.refused(errors::reason(&error));
                ProduceResponse {
                    request_id,
                    error: Some(error),
                    ..ProduceResponse::default()
                }
            }
        };
        self.send(response).await
    }

    /// A request that cannot be read ends the stream with the reason; a caller that is done, or
    /// gone, gets none.
    async fn say_why(&self, ended: Option<Result<ProduceRequest, Status>>) {
        if let Some(Err(status)) = ended {
            drop(self.answers.send(Err(status)).await);
        }
    }

    /// Whether anybody still listens.
    async fn send(&self, response: ProduceResponse) -> bool {
        self.answers.send(Ok(response)).await.is_ok()
    }
}

async fn settle(pending: Pending) -> Done {
    let outcome = within_patience(pending.ticket.committed()).await;
    (pending.receipt, outcome)
}
