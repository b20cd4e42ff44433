// A cluster of in-process nodes which keep their records in memory, judge producers as real
// leaders do, and misbehave when told to: they refuse, forget to answer, break streams, move
// leaders, and append what they received on a broken stream after all.
//
// Plain comments, since documentation examples include this file as it stands.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, Stream};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};
use trilog_model::batch::{BatchBuilder, BatchHeader, Compression, sequence_after};
use trilog_wire::v1::cluster_server::{Cluster, ClusterServer};
use trilog_wire::v1::fetch_server::{Fetch, FetchServer};
use trilog_wire::v1::offsets_server::{Offsets, OffsetsServer};
use trilog_wire::v1::producer_server::{Producer, ProducerServer};
use trilog_wire::v1::topics_server::{Topics, TopicsServer};
use trilog_wire::v1::{self, Error, ErrorCode, start};

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// How often, in a thousand, each thing goes wrong.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// A produce request is refused although the node leads.
    pub(super) refuse: u32,
    /// A batch is appended, and then its stream breaks before the answer.
    pub(super) lose_answer: u32,
    /// A stream breaks before a batch is appended.
    pub(super) break_stream: u32,
    /// A batch is answered as of unknown outcome: appended or not.
    pub(super) unsure: u32,
    /// The leader moves to another node.
    pub(super) move_leader: u32,
    /// A fetch stream breaks after a response.
    pub(super) break_fetch: u32,
}

impl Faults {
    pub(super) fn all(rate: u32) -> Self {
        Self {
            refuse: rate,
            lose_answer: rate,
            break_stream: rate,
            unsure: rate,
            move_leader: rate,
            break_fetch: rate,
        }
    }
}

struct StoredBatch {
    bytes: Bytes,
    base_offset: u64,
    next_offset: u64,
    append_time: u64,
    max_timestamp: i64,
}

#[derive(Default)]
struct KnownProducer {
    epoch: i16,
    /// First and last sequence and base offset of the latest five batches.
    window: VecDeque<(i32, i32, u64)>,
}

struct Partition {
    leader: u32,
    term: u64,
    log_start: u64,
    batches: Vec<StoredBatch>,
    producers: BTreeMap<i64, KnownProducer>,
}

struct Topic {
    id: Bytes,
    partitions: Vec<Partition>,
}

struct State {
    addresses: Vec<String>,
    topics: BTreeMap<String, Topic>,
    faults: Faults,
    rng: SmallRng,
    next_producer_id: i64,
    time: u64,
    /// Batches refused, lost or broken so far.
    pub(super) injected: u64,
}

pub(super) struct FakeCluster {
    shared: Arc<Shared>,
    tasks: Vec<JoinHandle<()>>,
}

struct Shared {
    state: Mutex<State>,
    appended: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl FakeCluster {
    /// As many nodes, and topics with so many partitions, led in turn.
    pub(super) async fn start(nodes: u32, topics: &[(&str, u32)]) -> Self {
        let mut listeners = Vec::new();
        for _ in 0..nodes {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.expect("a free port"));
        }
        let address = |listener: &TcpListener| listener.local_addr().expect("bound").to_string();
        let state = State {
            addresses: listeners.iter().map(address).collect(),
            topics: BTreeMap::new(),
            faults: Faults::default(),
            rng: SmallRng::seed_from_u64(1),
            next_producer_id: 1,
            time: 1_700_000_000_000_000_000,
            injected: 0,
        };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            appended: Notify::new(),
        });
        for (name, partitions) in topics {
            shared.lock().create(name, *partitions);
        }
        let serve = |(node, listener): (u32, TcpListener)| {
            let node = Node {
                id: node,
                shared: Arc::clone(&shared),
            };
            tokio::spawn(async move {
                let server = Server::builder()
                    .add_service(TopicsServer::new(node.clone()))
                    .add_service(ProducerServer::new(node.clone()))
                    .add_service(FetchServer::new(node.clone()))
                    .add_service(OffsetsServer::new(node.clone()))
                    .add_service(ClusterServer::new(node))
                    .serve_with_incoming(TcpIncoming::from(listener));
                server.await.expect("serves until it is dropped");
            })
        };
        let tasks = (1..).zip(listeners).map(serve).collect();
        Self { shared, tasks }
    }

    pub(super) fn addresses(&self) -> Vec<String> {
        self.shared.lock().addresses.clone()
    }

    pub(super) fn set_faults(&self, faults: Faults, seed: u64) {
        let mut state = self.shared.lock();
        state.faults = faults;
        state.rng = SmallRng::seed_from_u64(seed);
    }

    pub(super) fn injected(&self) -> u64 {
        self.shared.lock().injected
    }

    pub(super) fn set_leader(&self, topic: &str, partition: usize, node: u32) {
        let mut state = self.shared.lock();
        let partition = &mut state.topics.get_mut(topic).expect("known").partitions[partition];
        partition.leader = node;
        partition.term += 1;
        drop(state);
        self.shared.appended.notify_waiters();
    }

    pub(super) fn leader(&self, topic: &str, partition: usize) -> u32 {
        self.shared.lock().topics[topic].partitions[partition].leader
    }

    /// Replaces a topic by another of the same name.
    pub(super) fn create_anew(&self, topic: &str, partitions: u32) {
        self.shared.lock().create(topic, partitions);
        self.shared.appended.notify_waiters();
    }

    /// Trims a partition's log.
    pub(super) fn set_log_start(&self, topic: &str, partition: usize, offset: u64) {
        let mut state = self.shared.lock();
        state.topics.get_mut(topic).expect("known").partitions[partition].log_start = offset;
    }

    /// Makes a hole of so many offsets at a partition's end, as removals do.
    pub(super) fn skip_offsets(&self, topic: &str, partition: usize, offsets: u64) {
        let mut state = self.shared.lock();
        let partition = &mut state.topics.get_mut(topic).expect("known").partitions[partition];
        let last = partition.batches.last_mut().expect("not empty");
        last.next_offset += offsets;
    }

    /// Flips a bit of a stored batch.
    pub(super) fn damage(&self, topic: &str, partition: usize, batch: usize) {
        let mut state = self.shared.lock();
        let partition = &mut state.topics.get_mut(topic).expect("known").partitions[partition];
        let stored = &mut partition.batches[batch];
        let mut bytes = stored.bytes.to_vec();
        *bytes.last_mut().expect("not empty") ^= 1;
        stored.bytes = bytes.into();
    }

    /// The values of a partition, in order, with their offsets.
    pub(super) fn values(&self, topic: &str, partition: usize) -> Vec<(u64, Bytes)> {
        let state = self.shared.lock();
        let mut values = Vec::new();
        for batch in &state.topics[topic].partitions[partition].batches {
            let header = BatchHeader::parse(&batch.bytes).expect("validated");
            let records = header.records(&batch.bytes, 1 << 30).expect("validated");
            for (offset, record) in (batch.base_offset..).zip(records.iter()) {
                let value = record.expect("validated").value.unwrap_or_default();
                values.push((offset, Bytes::copy_from_slice(value)));
            }
        }
        values
    }

    /// Batches of a partition.
    pub(super) fn batch_count(&self, topic: &str, partition: usize) -> usize {
        self.shared.lock().topics[topic].partitions[partition]
            .batches
            .len()
    }

    /// Ends a node: its connections break and nobody answers there any more.
    pub(super) fn stop_node(&self, node: usize) {
        self.tasks[node - 1].abort();
    }
}

impl Drop for FakeCluster {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl State {
    fn create(&mut self, name: &str, partitions: u32) {
        self.time += 1;
        let nodes = u32::try_from(self.addresses.len()).expect("few");
        let partition = |place: u32| Partition {
            leader: place % nodes + 1,
            term: 1,
            log_start: 0,
            batches: Vec::new(),
            producers: BTreeMap::new(),
        };
        let topic = Topic {
            id: Bytes::from(self.time.to_be_bytes().repeat(2)),
            partitions: (0..partitions).map(partition).collect(),
        };
        self.topics.insert(name.to_owned(), topic);
    }

    fn strikes(&mut self, rate: u32) -> bool {
        let strikes = self.rng.random_range(0..1_000) < rate;
        self.injected += u64::from(strikes);
        strikes
    }

    fn partition(&mut self, topic: &str, partition: u32) -> Result<&mut Partition, Error> {
        let known = self.topics.get_mut(topic);
        let topic = known.ok_or_else(|| Error::new(ErrorCode::UnknownTopic, "no such topic"))?;
        let place = usize::try_from(partition).expect("64 bits");
        let known = topic.partitions.get_mut(place);
        known.ok_or_else(|| Error::new(ErrorCode::UnknownPartition, "no such partition"))
    }

    fn led_by(&mut self, node: u32, topic: &str, number: u32) -> Result<&mut Partition, Error> {
        let addresses = self.addresses.clone();
        let partition = self.partition(topic, number)?;
        if partition.leader == node {
            return Ok(partition);
        }
        let mut error = Error::new(ErrorCode::NotLeader, "another node leads");
        // Some nodes know who, some do not.
        if partition.term % 2 == 0 && partition.leader != 0 {
            let place = usize::try_from(partition.leader).expect("64 bits") - 1;
            error = error.with_leader(v1::Leader {
                node: partition.leader,
                address: addresses[place].clone(),
                term: partition.term,
            });
        }
        Err(error)
    }

    fn append(&mut self, topic: &str, partition: u32, batch: Bytes) -> Result<(u64, u64), Error> {
        let header = BatchHeader::validate(&batch)
            .map_err(|error| Error::new(ErrorCode::CorruptBatch, error.to_string()))?;
        self.time += 1_000_000;
        let append_time = self.time;
        let partition = self.partition(topic, partition)?;
        let next = partition.high_watermark();
        if header.is_idempotent()
            && let Some(first_place) = partition.judge(&header, next)?
        {
            return Ok((first_place, append_time));
        }
        let count = u64::try_from(header.record_count).expect("validated");
        partition.batches.push(StoredBatch {
            bytes: batch,
            base_offset: next,
            next_offset: next + count,
            append_time,
            max_timestamp: header.max_timestamp,
        });
        Ok((next, append_time))
    }

    fn move_leader(&mut self, topic: &str, partition: u32) {
        let nodes = u32::try_from(self.addresses.len()).expect("few");
        let node = self.rng.random_range(1..=nodes);
        if let Ok(partition) = self.partition(topic, partition) {
            partition.leader = node;
            partition.term += 1;
        }
    }
}

impl Partition {
    fn high_watermark(&self) -> u64 {
        self.batches.last().map_or(0, |batch| batch.next_offset)
    }

    /// Whether a batch is a duplicate, and of what; or why it is refused.
    fn judge(&mut self, header: &BatchHeader, base: u64) -> Result<Option<u64>, Error> {
        let (first, last) = (header.base_sequence, header.last_sequence());
        let out_of_order = || Error::new(ErrorCode::OutOfOrderSequence, "out of order");
        let known = self.producers.entry(header.producer_id).or_default();
        if header.producer_epoch < known.epoch {
            return Err(Error::new(ErrorCode::ProducerFenced, "an old epoch"));
        }
        if header.producer_epoch > known.epoch {
            if first != 0 {
                return Err(out_of_order());
            }
            known.epoch = header.producer_epoch;
            known.window.clear();
        }
        let same = |known: &&(i32, i32, u64)| (known.0, known.1) == (first, last);
        if let Some(known) = known.window.iter().find(same) {
            return Ok(Some(known.2));
        }
        if let Some(newest) = known.window.back()
            && first != sequence_after(newest.1, 1)
        {
            return Err(out_of_order());
        }
        known.window.push_back((first, last, base));
        if known.window.len() > 5 {
            known.window.pop_front();
        }
        Ok(None)
    }

    fn resolve(&self, at: &start::At) -> Result<u64, Error> {
        let end = self.high_watermark();
        let found = match at {
            start::At::Offset(offset) => {
                if (self.log_start..=end).contains(offset) {
                    return Ok(*offset);
                }
                let message = format!("{offset} is not within {}..={end}", self.log_start);
                return Err(Error::new(ErrorCode::OffsetOutOfRange, message));
            }
            start::At::Earliest(_) => Some(self.log_start),
            start::At::Latest(_) => None,
            start::At::RecordTimeMs(millis) => {
                let batch = self
                    .batches
                    .iter()
                    .find(|batch| batch.max_timestamp >= *millis);
                batch.map(|batch| {
                    let header = BatchHeader::parse(&batch.bytes).expect("validated");
                    let records = header.records(&batch.bytes, 1 << 30).expect("validated");
                    let late = |record: &Result<trilog_model::batch::Record<'_>, _>| {
                        record
                            .as_ref()
                            .is_ok_and(|record| record.timestamp >= *millis)
                    };
                    let place = records.iter().position(|record| late(&record));
                    batch.base_offset + u64::try_from(place.unwrap_or(0)).expect("64 bits")
                })
            }
            start::At::AppendTimeNs(time) => {
                let batch = self.batches.iter().find(|batch| batch.append_time >= *time);
                batch.map(|batch| batch.base_offset)
            }
        };
        Ok(found.unwrap_or(end).max(self.log_start))
    }
}

#[derive(Clone)]
struct Node {
    id: u32,
    shared: Arc<Shared>,
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
            if state
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
            return Err(Error::new(ErrorCode::UnknownTopic, "another topic"));
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

impl State {
    fn describe(&self, name: &str) -> v1::DescribedTopic {
        let result = match self.topics.get(name) {
            None => v1::described_topic::Result::Error(
                Error::new(ErrorCode::UnknownTopic, format!("no topic '{name}'"))
                    .with_hint("create it first"),
            ),
            Some(topic) => {
                let partition = |(number, partition): (u32, &Partition)| v1::PartitionDescription {
                    partition: number,
                    leader: partition.leader,
                    term: partition.term,
                    ..v1::PartitionDescription::default()
                };
                v1::described_topic::Result::Topic(v1::TopicDescription {
                    name: name.to_owned(),
                    id: topic.id.clone(),
                    partitions: (0..).zip(&topic.partitions).map(partition).collect(),
                    ..v1::TopicDescription::default()
                })
            }
        };
        v1::DescribedTopic {
            name: name.to_owned(),
            result: Some(result),
        }
    }
}

#[tonic::async_trait]
impl Topics for Node {
    async fn create(
        &self,
        request: Request<v1::CreateTopicRequest>,
    ) -> Result<Response<v1::CreateTopicResponse>, Status> {
        let request = request.into_inner();
        let mut state = self.shared.lock();
        let created = !state.topics.contains_key(&request.name);
        if created {
            state.create(&request.name, request.partitions.max(1));
        } else if !request.if_not_exists {
            return Err(Error::new(ErrorCode::TopicExists, "it exists").into());
        }
        let mut response = v1::CreateTopicResponse {
            topic: None,
            created,
        };
        let described = state.describe(&request.name).result;
        if let Some(v1::described_topic::Result::Topic(topic)) = described {
            response.topic = Some(topic);
        }
        Ok(Response::new(response))
    }

    async fn alter(
        &self,
        _: Request<v1::AlterTopicRequest>,
    ) -> Result<Response<v1::AlterTopicResponse>, Status> {
        Err(Error::new(ErrorCode::Unsupported, "not here").into())
    }

    async fn delete(
        &self,
        request: Request<v1::DeleteTopicRequest>,
    ) -> Result<Response<v1::DeleteTopicResponse>, Status> {
        let name = request.into_inner().name;
        match self.shared.lock().topics.remove(&name) {
            Some(_) => Ok(Response::new(v1::DeleteTopicResponse {})),
            None => Err(Error::new(ErrorCode::UnknownTopic, "no such topic").into()),
        }
    }

    async fn describe(
        &self,
        request: Request<v1::DescribeTopicsRequest>,
    ) -> Result<Response<v1::DescribeTopicsResponse>, Status> {
        let state = self.shared.lock();
        let mut names = request.into_inner().names;
        if names.is_empty() {
            names = state.topics.keys().cloned().collect();
        }
        let node = |(node, address): (u32, &String)| v1::NodeAddress {
            node,
            address: address.clone(),
        };
        Ok(Response::new(v1::DescribeTopicsResponse {
            topics: names.iter().map(|name| state.describe(name)).collect(),
            nodes: (1..).zip(&state.addresses).map(node).collect(),
        }))
    }

    async fn list(
        &self,
        _: Request<v1::ListTopicsRequest>,
    ) -> Result<Response<v1::ListTopicsResponse>, Status> {
        let state = self.shared.lock();
        let summary = |(name, topic): (&String, &Topic)| v1::TopicSummary {
            name: name.clone(),
            partitions: u32::try_from(topic.partitions.len()).expect("few"),
            ..v1::TopicSummary::default()
        };
        Ok(Response::new(v1::ListTopicsResponse {
            topics: state.topics.iter().map(summary).collect(),
        }))
    }
}

// Calls that no test of the client makes.
macro_rules! unsupported {
    ($($method:ident: $request:ident => $response:ident),* $(,)?) => {
        #[tonic::async_trait]
        impl Cluster for Node {
            async fn status(
                &self,
                _: Request<v1::StatusRequest>,
            ) -> Result<Response<v1::StatusResponse>, Status> {
                Ok(Response::new(v1::StatusResponse {
                    cluster_id: "fake".to_owned(),
                    answered_by: self.id,
                    ..v1::StatusResponse::default()
                }))
            }
            $(
                async fn $method(
                    &self,
                    _: Request<v1::$request>,
                ) -> Result<Response<v1::$response>, Status> {
                    Err(Error::new(ErrorCode::Unsupported, "not here").into())
                }
            )*
        }
    };
}

unsupported! {
    drain: DrainRequest => DrainResponse,
    remove: RemoveRequest => RemoveResponse,
    replace: ReplaceRequest => ReplaceResponse,
    transfer: TransferRequest => TransferResponse,
    r#move: MoveRequest => MoveResponse,
    balance: BalanceRequest => BalanceResponse,
}
