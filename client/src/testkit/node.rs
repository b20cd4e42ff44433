//! One node: the data services.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{FutureExt, Stream};
use rand::Rng;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};
use trilog_model::batch::{BatchBuilder, Compression};
use trilog_wire::v1::fetch_server::Fetch;
use trilog_wire::v1::offsets_server::Offsets;
use trilog_wire::v1::producer_server::Producer;
use trilog_wire::v1::{self, Error, ErrorCode, start};

use super::Shared;

/// What this cluster says is the largest batch it takes.
const MAX_BATCH_BYTES: u32 = 1 << 20;

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) id: u32,
    pub(super) shared: Arc<Shared>,
}

/// What becomes of a produce stream after a request.
enum Next {
    Answer(v1::ProduceResponse),
    Break,
}

impl Node {
    fn produce_one(&self, request: &v1::ProduceRequest) -> Next {
        let mut state = self.shared.lock();
        let faults = state.faults;
        let (topic, partition) = (request.topic.as_str(), request.partition);
        if state.strikes(faults.move_leader) {
            state.move_leader(topic, partition);
        }
        if state.strikes(faults.break_stream) {
            return Next::Break;
        }
        let fail = |error: Error| {
            Next::Answer(v1::ProduceResponse {
                request_id: request.request_id,
                error: Some(error),
                ..v1::ProduceResponse::default()
            })
        };
        if state.strikes(faults.refuse) {
            return fail(Error::new(ErrorCode::Overloaded, "not now"));
        }
        if state.strikes(faults.disk_full) {
            return fail(Error::new(ErrorCode::DiskFull, "the disk is full"));
        }
        let known = state.topics.get(topic);
        if known.is_some_and(|known| request.topic_id.as_ref() != Some(&known.id)) {
            return fail(Error::new(ErrorCode::TopicReplaced, "created anew"));
        }
        if let Err(error) = state.led_by(self.id, topic, partition) {
            return fail(error);
        }
        if state.strikes(faults.unsure) {
            if state.rng.random() {
                let _ = state.append(topic, partition, request.batch.clone());
            }
            return fail(Error::new(ErrorCode::UnknownOutcome, "who knows"));
        }
        match state.append(topic, partition, request.batch.clone()) {
            Err(error) => fail(error),
            Ok(_) if state.strikes(faults.lose_answer) => Next::Break,
            Ok((base_offset, append_time_ns)) => Next::Answer(v1::ProduceResponse {
                request_id: request.request_id,
                base_offset,
                append_time_ns,
                error: None,
            }),
        }
    }

    /// What had been received on a broken stream is appended all the same.
    fn produce_ghosts(&self, inbound: &mut Streaming<v1::ProduceRequest>) {
        while let Some(Ok(Some(request))) = inbound.message().now_or_never() {
            let mut state = self.shared.lock();
            let known = state.topics.get(&request.topic);
            let meant = known.is_some_and(|known| request.topic_id.as_ref() == Some(&known.id));
            if meant
                && state
                    .led_by(self.id, &request.topic, request.partition)
                    .is_ok()
            {
                let _ = state.append(&request.topic, request.partition, request.batch);
            }
        }
    }

    /// The next response of a fetch; `None` at the end, when not following.
    fn fetch_one(
        &self,
        request: &v1::FetchRequest,
        position: &mut Option<u64>,
        stop_at: &mut Option<u64>,
    ) -> Result<Option<v1::FetchResponse>, Error> {
        let mut state = self.shared.lock();
        let known = state.topics.get(&request.topic);
        if known.is_some_and(|topic| request.topic_id.as_ref() != Some(&topic.id)) {
            return Err(Error::new(ErrorCode::TopicReplaced, "another topic"));
        }
        let partition = state.led_by(self.id, &request.topic, request.partition)?;
        let high_watermark = partition.high_watermark();
        let first = position.is_none();
        let from = if let Some(position) = *position {
            position
        } else {
            let at = request.start.and_then(|start| start.at);
            partition.resolve(&at.unwrap_or(start::At::Earliest(v1::Unit {})))?
        };
        let stop_at = *stop_at.get_or_insert(high_watermark);
        let mut next = from;
        let mut batches = Vec::new();
        let mut bytes = 0;
        for batch in &partition.batches {
            let ended = !request.follow && batch.base_offset >= stop_at;
            if batch.next_offset <= from || ended {
                continue;
            }
            if !batches.is_empty() && bytes + batch.bytes.len() > request.max_bytes as usize {
                break;
            }
            bytes += batch.bytes.len();
            next = batch.next_offset;
            batches.push(v1::FetchedBatch {
                batch: batch.bytes.clone(),
                base_offset: batch.base_offset,
                append_time_ns: batch.append_time,
                term: partition.term,
            });
        }
        *position = Some(next);
        if batches.is_empty() && !first && !request.follow {
            return Ok(None);
        }
        Ok(Some(v1::FetchResponse {
            batches,
            high_watermark,
            log_start: partition.log_start,
            from_offset: from,
            next_offset: next,
            error: None,
            records: Vec::new(),
        }))
    }

    async fn fetch_all(
        self,
        request: v1::FetchRequest,
        responses: mpsc::Sender<Result<v1::FetchResponse, Status>>,
    ) {
        let (mut position, mut stop_at) = (None, None);
        let max_wait = Duration::from_millis(u64::from(request.max_wait_ms));
        loop {
            let appended = self.shared.appended.notified();
            let mut appended = std::pin::pin!(appended);
            appended.as_mut().enable();
            let was = position;
            let response = match self.fetch_one(&request, &mut position, &mut stop_at) {
                Ok(Some(response)) => response,
                Ok(None) => return,
                Err(error) => v1::FetchResponse {
                    error: Some(error),
                    ..v1::FetchResponse::default()
                },
            };
            let over = response.error.is_some();
            let idle = was.is_some() && was == position && !over;
            if idle {
                // Nothing new: waits, and if it waits in vain says so.
                let waited = tokio::time::timeout(max_wait, appended).await;
                if waited.is_ok() {
                    continue;
                }
            }
            if responses.send(Ok(response)).await.is_err() || over {
                return;
            }
            let broken = {
                let mut state = self.shared.lock();
                let rate = state.faults.break_fetch;
                state.strikes(rate)
            };
            if broken {
                let _ = responses.send(Err(Status::unavailable("broken"))).await;
                return;
            }
        }
    }
}

#[tonic::async_trait]
impl Producer for Node {
    type ProduceStream = Responses<v1::ProduceResponse>;

    async fn init_producer(
        &self,
        _: Request<v1::InitProducerRequest>,
    ) -> Result<Response<v1::InitProducerResponse>, Status> {
        let mut state = self.shared.lock();
        state.next_producer_id += 1;
        Ok(Response::new(v1::InitProducerResponse {
            producer_id: state.next_producer_id,
            producer_epoch: 0,
            max_batch_bytes: MAX_BATCH_BYTES,
        }))
    }

    async fn produce(
        &self,
        request: Request<Streaming<v1::ProduceRequest>>,
    ) -> Result<Response<Self::ProduceStream>, Status> {
        let mut inbound = request.into_inner();
        let (responses, stream) = mpsc::channel(64);
        let node = self.clone();
        tokio::spawn(async move {
            while let Ok(Some(request)) = inbound.message().await {
                let next = node.produce_one(&request);
                node.shared.appended.notify_waiters();
                let response = match next {
                    Next::Answer(answer) => Ok(answer),
                    Next::Break => Err(Status::unavailable("the connection broke")),
                };
                let breaks = response.is_err();
                if responses.send(response).await.is_err() || breaks {
                    break;
                }
            }
            node.produce_ghosts(&mut inbound);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn publish(
        &self,
        request: Request<v1::PublishRequest>,
    ) -> Result<Response<v1::PublishResponse>, Status> {
        let request = request.into_inner();
        let mut builder = BatchBuilder::new(Compression::None);
        let (key, value) = (request.key.as_deref(), request.value.as_deref());
        let timestamp = request.timestamp_ms.unwrap_or(0);
        builder.push(timestamp, key, value, &[]).expect("small");
        let batch = builder.build().expect("small");
        let partition = request.partition.unwrap_or(0);
        let mut state = self.shared.lock();
        let (offset, append_time_ns) = state.append(&request.topic, partition, batch)?;
        drop(state);
        self.shared.appended.notify_waiters();
        Ok(Response::new(v1::PublishResponse {
            partition,
            offset,
            append_time_ns,
        }))
    }
}

#[tonic::async_trait]
impl Fetch for Node {
    type FetchStream = Responses<v1::FetchResponse>;

    async fn fetch(
        &self,
        request: Request<v1::FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let (responses, stream) = mpsc::channel(1);
        tokio::spawn(self.clone().fetch_all(request.into_inner(), responses));
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

#[tonic::async_trait]
impl Offsets for Node {
    async fn resolve(
        &self,
        request: Request<v1::ResolveRequest>,
    ) -> Result<Response<v1::ResolveResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.shared.lock();
        let partition = state.partition(&request.topic, request.partition)?;
        let at = request.start.and_then(|start| start.at);
        let at = at.unwrap_or(start::At::Earliest(v1::Unit {}));
        Ok(Response::new(v1::ResolveResponse {
            offset: partition.resolve(&at)?,
            log_start: partition.log_start,
            high_watermark: partition.high_watermark(),
            record_time_ms: None,
        }))
    }
}
