//! One partition, read batch by batch from wherever its leader is.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::timeout;
use tonic::Streaming;
use tracing::debug;
use trilog_model::Timestamp;
use trilog_model::batch::{BatchHeader, Record};
use trilog_wire::v1::fetch_client::FetchClient;
use trilog_wire::v1::{
    ErrorCode, FetchRequest, FetchResponse, FetchedBatch, Leader, Start, Unit, start,
};

use super::ConsumedRecord;
use crate::backoff::Backoff;
use crate::client::Client;
use crate::config::{ConsumerConfig, OutOfRange};
use crate::connections::Connections;
use crate::error::{DamageError, Error, Failure, ServerError};

/// The largest response taken, far beyond what a node's limits let it send.
const MAX_RESPONSE: usize = 128 * 1024 * 1024;
/// What silence is allowed beyond twice the node's own interval.
const GRACE: Duration = Duration::from_secs(2);

/// What a reader is to read, and through what.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) client: Client,
    pub(super) connections: Connections,
    pub(super) topic: Arc<str>,
    pub(super) topic_id: Bytes,
    pub(super) partition: u32,
    pub(super) start: start::At,
    pub(super) config: ConsumerConfig,
}

#[derive(Debug)]
pub(super) struct PartitionReader {
    plan: Plan,
    /// The offset after the last record given out, once the start is known as one.
    next_offset: Option<u64>,
    /// Without following: the end as it was at first.
    stop_at: Option<u64>,
    stream: Option<Streaming<FetchResponse>>,
    address: String,
    /// Batches received and not yet given out.
    received: VecDeque<FetchedBatch>,
    /// Where what they came with ends, once they are given out.
    received_to: Option<u64>,
    backoff: Backoff,
    leader_doubted: bool,
}

impl Plan {
    /// A topic deleted and created anew has other records at the same offsets.
    fn check_identity(&self) -> Result<(), Failure> {
        let known = self.client.known_topic(&self.topic);
        if known.is_none_or(|view| view.id == self.topic_id) {
            return Ok(());
        }
        Err(Failure::Refused(ServerError {
            code: ErrorCode::TopicReplaced,
            message: format!("topic '{}' was deleted and created anew", self.topic),
            hint: "open another consumer".to_owned(),
        }))
    }
}

/// What a leader says about a topic that another node described: it may lead before it knows
/// what that node knew already.
fn of_leader(failure: Failure) -> Failure {
    match failure {
        Failure::Refused(error)
            if matches!(
                error.code,
                ErrorCode::UnknownTopic | ErrorCode::UnknownPartition
            ) =>
        {
            Failure::retry(error.message)
        }
        other => other,
    }
}

impl PartitionReader {
    pub(super) fn new(plan: Plan) -> Self {
        Self {
            next_offset: match plan.start {
                start::At::Offset(offset) => Some(offset),
                _ => None,
            },
            stop_at: None,
            stream: None,
            address: String::new(),
            received: VecDeque::new(),
            received_to: None,
            backoff: plan.client.backoff(),
            leader_doubted: false,
            plan,
        }
    }

    /// The records of the next batch that has any; `None` at the end, when not following.
    pub(super) async fn next(&mut self) -> Result<Option<VecDeque<ConsumedRecord>>, Error> {
        loop {
            while let Some(batch) = self.received.pop_front() {
                let records = self.records(&batch)?;
                if !records.is_empty() {
                    return Ok(Some(records));
                }
            }
            // What lies between the last batch and this is nothing that counts.
            self.next_offset = self.next_offset.max(self.received_to.take());
            if self.is_at_the_end() {
                return Ok(None);
            }
            match self.receive().await {
                Ok(Some(response)) => self.accept(response).await?,
                Ok(None) => self.disconnect("the stream ended", None).await,
                Err(failure) => self.handle(failure).await?,
            }
        }
    }

    fn is_at_the_end(&self) -> bool {
        !self.plan.config.follow
            && self
                .stop_at
                .zip(self.next_offset)
                .is_some_and(|(stop_at, next)| next >= stop_at)
    }

    /// The next response, from a new stream if there is none.
    async fn receive(&mut self) -> Result<Option<FetchResponse>, Failure> {
        if self.stream.is_none() {
            self.connect().await?;
        }
        let Some(stream) = self.stream.as_mut() else {
            return Ok(None);
        };
        let patience = self.plan.config.max_wait * 2 + GRACE;
        match timeout(patience, stream.message()).await {
            Ok(message) => Ok(message?),
            Err(_) => Err(Failure::retry("the node fell silent")),
        }
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        let plan = &self.plan;
        let leader = plan
            .client
            .leader_address(&plan.topic, plan.partition, self.leader_doubted)
            .await;
        let address = match leader {
            Ok(Some(address)) => address,
            Ok(None) => return Err(Failure::retry("the partition has no leader")),
            Err(Error::Refused(error)) => return Err(Failure::Refused(error)),
            Err(error) => return Err(Failure::retry(error.to_string())),
        };
        plan.check_identity()?;
        self.leader_doubted = false;
        self.address.clone_from(&address);
        let channel = plan.connections.get(&address).await;
        let channel = channel.map_err(Failure::retry)?;
        let at = self.next_offset.map_or(plan.start, start::At::Offset);
        let request = FetchRequest {
            topic: plan.topic.to_string(),
            partition: plan.partition,
            start: Some(Start { at: Some(at) }),
            max_bytes: plan.config.max_bytes,
            max_wait_ms: u32::try_from(plan.config.max_wait.as_millis()).unwrap_or(u32::MAX),
            follow: plan.config.follow,
            plain_records: false,
            topic_id: (!plan.topic_id.is_empty()).then(|| plan.topic_id.clone()),
        };
        let mut client = FetchClient::new(channel).max_decoding_message_size(MAX_RESPONSE);
        let patience = plan.config.max_wait * 2 + GRACE;
        let response = timeout(patience, client.fetch(request))
            .await
            .map_err(|_| Failure::retry("the node does not answer"))?
            .map_err(|status| of_leader(status.into()))?;
        self.stream = Some(response.into_inner());
        Ok(())
    }

    async fn accept(&mut self, response: FetchResponse) -> Result<(), Error> {
        if let Some(error) = response.error {
            self.stream = None;
            return self.handle(of_leader(error.into())).await;
        }
        self.backoff.reset();
        self.stop_at.get_or_insert(response.high_watermark);
        self.next_offset.get_or_insert(response.from_offset);
        self.received_to = Some(response.next_offset);
        self.received.extend(response.batches);
        Ok(())
    }

    async fn handle(&mut self, failure: Failure) -> Result<(), Error> {
        let leader = match &failure {
            Failure::Retry { leader, .. } => leader.clone(),
            Failure::Unknown(_) | Failure::Refused(_) => None,
        };
        match failure.of_read() {
            Failure::Refused(error) if error.code == ErrorCode::OffsetOutOfRange => {
                let at = match self.plan.config.out_of_range {
                    OutOfRange::Fail => return Err(Error::Refused(error)),
                    OutOfRange::Earliest => start::At::Earliest(Unit {}),
                    OutOfRange::Latest => start::At::Latest(Unit {}),
                };
                self.stream = None;
                self.next_offset = None;
                self.plan.start = at;
                Ok(())
            }
            Failure::Refused(error) => Err(Error::Refused(error)),
            Failure::Retry { reason, .. } | Failure::Unknown(reason) => {
                self.disconnect(&reason, leader).await;
                Ok(())
            }
        }
    }

    /// Gives a stream up, to be followed by another, perhaps elsewhere.
    async fn disconnect(&mut self, reason: &str, leader: Option<Leader>) {
        let plan = &self.plan;
        debug!(
            topic = %plan.topic,
            partition = plan.partition,
            next_offset = self.next_offset,
            reason,
            "a fetch will go on from here"
        );
        self.stream = None;
        plan.connections.forget(&self.address);
        let told = leader.is_some_and(|leader| {
            plan.client
                .learn_leader(&plan.topic, plan.partition, &leader)
        });
        self.leader_doubted = !told;
        self.backoff.pause_unless(told).await;
    }

    /// The batch's records from the next offset on; moves that behind the batch.
    fn records(&mut self, fetched: &FetchedBatch) -> Result<VecDeque<ConsumedRecord>, Error> {
        let next = self.next_offset.unwrap_or(0);
        let decoded = self.decode(fetched, next);
        let (records, end) = decoded.map_err(|error| Error::Damaged {
            topic: self.plan.topic.to_string(),
            partition: self.plan.partition,
            offset: fetched.base_offset,
            reason: error.to_string(),
        })?;
        self.next_offset = Some(end.max(next));
        Ok(records)
    }

    fn decode(
        &self,
        fetched: &FetchedBatch,
        next: u64,
    ) -> Result<(VecDeque<ConsumedRecord>, u64), DamageError> {
        let header = BatchHeader::parse(&fetched.batch)?;
        header.check_extent(&fetched.batch)?;
        header.check_crc(&fetched.batch)?;
        let last = u64::from(header.last_offset_delta.unsigned_abs());
        let end = fetched.base_offset.saturating_add(last).saturating_add(1);
        if header.attributes.is_control() || end <= next {
            return Ok((VecDeque::new(), end));
        }
        let records = header.records(&fetched.batch, self.plan.config.max_batch_bytes)?;
        let mut out = VecDeque::new();
        for record in &records {
            let record = record?;
            let delta = u64::from(record.offset_delta.unsigned_abs());
            let offset = fetched.base_offset.saturating_add(delta);
            if offset >= next && !self.is_past_the_stop(offset) {
                let append_time = Timestamp(fetched.append_time_ns);
                out.push_back(self.consumed(records.payload(), &record, offset, append_time));
            }
        }
        Ok((out, end))
    }

    fn is_past_the_stop(&self, offset: u64) -> bool {
        !self.plan.config.follow && self.stop_at.is_some_and(|stop_at| offset >= stop_at)
    }

    /// The record with its parts as shares of the batch's bytes.
    fn consumed(
        &self,
        payload: &Bytes,
        record: &Record<'_>,
        offset: u64,
        append_time: Timestamp,
    ) -> ConsumedRecord {
        let share = |part: &[u8]| payload.slice_ref(part);
        let header =
            |header: trilog_model::batch::Header<'_>| (share(header.key), header.value.map(share));
        ConsumedRecord {
            topic: Arc::clone(&self.plan.topic),
            partition: self.plan.partition,
            offset,
            timestamp_ms: record.timestamp,
            append_time,
            key: record.key.map(share),
            value: record.value.map(share),
            headers: record.headers().map(header).collect(),
        }
    }
}
