//! Reading: streams of committed batches from any starting point, and what a point means now.

use std::time::Duration;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};
use trilog_model::{Offset, Timestamp};
use trilog_raft::controller::Operation;
use trilog_raft::controller::Topic;
use trilog_storage::frame::Frame;
use trilog_wire::v1::fetch_server::Fetch;
use trilog_wire::v1::offsets_server::Offsets;
use trilog_wire::v1::start::At;
use trilog_wire::v1::{
    Error, ErrorCode, FetchRequest, FetchResponse, FetchedBatch, ResolveRequest, ResolveResponse,
};

use super::door::Caller;
use super::{Api, DIALECT, errors, plain};
use crate::meter::{ApiMeter, TopicMeter};
use crate::partition::{Partition, ReadError, Settled, Start};

/// Responses read ahead of a caller, beyond its flow-control window.
const READ_AHEAD: usize = 1;
const DEFAULT_BYTES: usize = 1 << 20;
/// The most one response holds, unless a single batch is larger.
const MAX_BYTES: usize = 8 << 20;
const DEFAULT_WAIT: Duration = Duration::from_secs(10);
const MAX_WAIT: Duration = Duration::from_mins(1);

#[tonic::async_trait]
impl Fetch for Api {
    type FetchStream = ReceiverStream<Result<FetchResponse, Status>>;

    async fn fetch(
        &self,
        request: Request<FetchRequest>,
    ) -> Result<Response<Self::FetchStream>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        // Rules that come while the rest is looked up are looked at before the first record.
        let version = *self.cluster.changes().borrow();
        self.check_topic(&caller, Operation::Read, &request.topic)?;
        let meant = errors::topic_id(request.topic_id.as_deref())?;
        let topic = self.cluster.topic_meant(&request.topic, meant).await;
        let topic = topic.map_err(|error| errors::lookup(&self.cluster, &error))?;
        let partition = self.led_partition(&topic, request.partition)?;
        let start = start_of(request.start.as_ref().and_then(|start| start.at.as_ref()))?;
        let next = partition.locate(start).await;
        let next =
            next.map_err(|error| errors::read(&self.cluster, partition.group().id(), &error))?;
        let (responses, stream) = mpsc::channel(READ_AHEAD);
        let reader = Reader {
            end: (!request.follow).then(|| partition.stable_offset()),
            max_bytes: bounded_bytes(request.max_bytes),
            max_wait: bounded_wait(request.max_wait_ms),
            plain: request.plain_records,
            topic: self.meters.topic(&request.topic),
            granted: Granted {
                caller,
                topic: request.topic,
                version,
            },
            meter: ApiMeter::new(DIALECT, "fetch"),
            api: self.clone(),
            partition,
            next,
            responses,
        };
        tokio::spawn(reader.run());
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

#[tonic::async_trait]
impl Offsets for Api {
    async fn resolve(
        &self,
        request: Request<ResolveRequest>,
    ) -> Result<Response<ResolveResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        self.check_topic(&caller, Operation::Describe, &request.topic)?;
        let topic = self.cluster.topic(&request.topic);
        let topic = topic.map_err(|error| errors::lookup(&self.cluster, &error))?;
        let partition = self.led_partition(&topic, request.partition)?;
        let start = match request.start.as_ref().and_then(|start| start.at.as_ref()) {
            None => Start::Earliest,
            at => start_of(at)?,
        };
        let offset = partition.locate(start).await;
        let offset =
            offset.map_err(|error| errors::read(&self.cluster, partition.group().id(), &error))?;
        let high_watermark = partition.stable_offset();
        Ok(Response::new(ResolveResponse {
            offset: offset.get(),
            log_start: partition.log_start().get(),
            high_watermark: high_watermark.get(),
            record_time_ms: None,
        }))
    }
}

impl Api {
    /// The partition, if this node leads it: others may lag behind what was acknowledged.
    pub(super) fn led_partition(&self, topic: &Topic, index: u32) -> Result<Partition, Error> {
        let cluster = &self.cluster;
        let found = cluster.partition_of(topic, index);
        let partition = found.map_err(|error| errors::lookup(cluster, &error))?;
        match partition.leader() {
            (_, true) => Ok(partition),
            (leader, false) => {
                let leader = leader.filter(|leader| *leader != cluster.node());
                Err(errors::not_leader(cluster, leader))
            }
        }
    }
}

fn start_of(at: Option<&At>) -> Result<Start, Error> {
    Ok(match at {
        Some(At::Offset(offset)) => Start::Offset(Offset(*offset)),
        Some(At::Earliest(_)) => Start::Earliest,
        Some(At::Latest(_)) => Start::Latest,
        Some(At::RecordTimeMs(millis)) => Start::RecordTime(*millis),
        Some(At::AppendTimeNs(nanos)) => Start::AppendTime(Timestamp(*nanos)),
        None => {
            return Err(Error::new(
                ErrorCode::InvalidRequest,
                "the start is missing",
            ));
        }
    })
}

fn bounded_bytes(asked: u32) -> usize {
    match usize::try_from(asked) {
        Ok(0) => DEFAULT_BYTES,
        Ok(bytes) => bytes.min(MAX_BYTES),
        Err(_) => MAX_BYTES,
    }
}

fn bounded_wait(asked_ms: u32) -> Duration {
    match asked_ms {
        0 => DEFAULT_WAIT,
        millis => Duration::from_millis(millis.into()).min(MAX_WAIT),
    }
}

/// To whom what may be read, as of a version of the map.
struct Granted {
    caller: Caller,
    topic: String,
    version: u64,
}

/// One fetch stream.
struct Reader {
    api: Api,
    topic: TopicMeter,
    granted: Granted,
    meter: ApiMeter,
    partition: Partition,
    next: Offset,
    /// Where the stream ends; none when it follows.
    end: Option<Offset>,
    max_bytes: usize,
    max_wait: Duration,
    /// The caller wants records, not batches.
    plain: bool,
    responses: mpsc::Sender<Result<FetchResponse, Status>>,
}

impl Reader {
    async fn run(mut self) {
        loop {
            // A caller that has gone, or stopped reading, stops the reader here.
            let Ok(slot) = self.responses.clone().reserve_owned().await else {
                return;
            };
            let since = Instant::now();
            let read = match self.still_granted() {
                Ok(()) => self.read().await,
                Err(error) => Err(error),
            };
            match read.and_then(|settled| self.response(settled)) {
                Ok(response) => {
                    self.meter.answered(since);
                    slot.send(Ok(response))
                }
                Err(error) => {
                    self.meter.refused(errors::reason(&error));
                    let next_offset = self.next.get();
                    let response = FetchResponse {
                        next_offset,
                        error: Some(error),
                        ..Default::default()
                    };
                    slot.send(Ok(response));
                    return;
                }
            };
            if self.end.is_some_and(|end| self.next >= end) {
                return;
            }
            self.wait().await;
        }
    }

    /// Rights may be taken away while a stream goes on, and whoever has them.
    fn still_granted(&mut self) -> Result<(), Error> {
        let granted = &mut self.granted;
        if !granted.caller.is_known() {
            return Ok(());
        }
        self.api.check_admission(&granted.caller)?;
        let version = *self.api.cluster.changes().borrow();
        if version != granted.version {
            granted.version = version;
            let (caller, topic) = (&granted.caller, &granted.topic);
            self.api.check_topic(caller, Operation::Read, topic)?;
        }
        Ok(())
    }

    async fn read(&self) -> Result<Settled, Error> {
        let cluster = &self.api.cluster;
        let (leader, leads) = self.partition.leader();
        if !leads {
            let leader = leader.filter(|leader| *leader != cluster.node());
            return Err(errors::not_leader(cluster, leader));
        }
        let fetched = self.partition.read_stable(self.next, self.max_bytes).await;
        let group = self.partition.group().id();
        fetched.map_err(|error: ReadError| errors::read(cluster, group, &error))
    }

    /// Waits for records beyond those read, until it is time for a sign of life, or until this
    /// node leads the partition no more or the caller may not go on.
    async fn wait(&self) {
        let mut leadership = self.partition.leadership();
        tokio::select! {
            biased;
            () = self.partition.wait_stable_past(self.next, self.max_wait) => {}
            _ = leadership.wait_for(|now| !now.ready) => {}
            _ = self.api.until_over(&self.granted.caller) => {}
        }
    }

    /// What counts of it: a caller of this api never sees a transaction that was aborted, or is
    /// not over.
    fn response(&mut self, settled: Settled) -> Result<FetchResponse, Error> {
        let from_offset = self.next.get();
        let settled = settled.committed();
        let (fetched, next) = (settled.fetched, settled.next);
        let mut records = Vec::new();
        let mut batches = Vec::new();
        if self.plain {
            for frame in &fetched.frames {
                records.extend(plain::records(frame, self.next)?);
            }
        }
        self.next = next.max(self.next);
        if !fetched.frames.is_empty() {
            let headers = fetched.frames.iter().map(|frame| &frame.header);
            let records = headers
                .clone()
                .map(|header| u64::from(header.record_count))
                .sum();
            let bytes = headers.map(|header| u64::from(header.records_len)).sum();
            self.topic.left(records, bytes);
        }
        if !self.plain {
            batches.extend(fetched.frames.into_iter().map(batch));
        }
        Ok(FetchResponse {
            batches,
            high_watermark: settled.stable.get(),
            log_start: fetched.log_start.get(),
            from_offset,
            next_offset: self.next.get(),
            error: None,
            records,
        })
    }
}

/// The stored bytes as they are: what differs from them (base offset, term) stands beside them.
fn batch(frame: Frame) -> FetchedBatch {
    FetchedBatch {
        batch: frame.records,
        base_offset: frame.header.base_offset.get(),
        append_time_ns: frame.header.append_time.nanos(),
        term: frame.header.term.get(),
    }
}
