//! The task that carries one partition's batches to whichever node leads it.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use futures::{FutureExt, StreamExt};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, oneshot};
use tokio::time::{Instant, timeout};
use tracing::{debug, warn};
use trilog_model::Timestamp;
use trilog_model::batch::{BatchHeader, BuildError, ProducerState, restamp};
use trilog_wire::v1::producer_client::ProducerClient;
use trilog_wire::v1::{ErrorCode, InitProducerRequest, Leader, ProduceRequest};

use super::buffer::{BatchPlace, Buffer, Sealed};
use super::flights::{Doubt, Flights, Step, Ticket};
use super::link::{Answer, Links};
use crate::backoff::Backoff;
use crate::client::{Client, Repeat};
use crate::config::ProducerConfig;
use crate::error::{Error, Failure};

/// What a lane works with.
#[derive(Clone, Debug)]
pub(super) struct LaneContext {
    pub(super) client: Client,
    pub(super) links: Arc<Links>,
    pub(super) config: ProducerConfig,
    pub(super) topic: String,
    /// The topic that the records were accepted for, whatever has its name later; empty if the
    /// cluster gives topics no identities.
    pub(super) topic_id: Bytes,
    pub(super) partition: u32,
    /// The producer's first identity, which all its lanes begin with.
    pub(super) identity: Arc<OnceCell<Identity>>,
}

/// A batch under way.
#[derive(Debug)]
struct Batch {
    bytes: Bytes,
    deadline: Instant,
    done: oneshot::Sender<Result<BatchPlace, Error>>,
    number: u64,
    _memory: OwnedSemaphorePermit,
}

struct Lane {
    ctx: LaneContext,
    buffer: Arc<Buffer>,
    flights: Flights<Batch>,
    answers: FuturesUnordered<BoxFuture<'static, (Ticket, Answer)>>,
    backoff: Backoff,
    /// The largest batch that nodes take: beyond it they would end the stream for everybody.
    max_batch_bytes: usize,
    /// The leader as believed is not to be trusted: ask the cluster.
    leader_doubted: bool,
    /// The latest reason for trying again, for the error of whoever runs out of time.
    reason: String,
}

/// Carries batches until the buffer is closed and empty.
pub(super) async fn run(ctx: LaneContext, buffer: Arc<Buffer>) {
    let Some((identity, waiting)) = first_identity(&ctx, &buffer).await else {
        return;
    };
    let backoff = ctx.client.backoff();
    let mut lane = Lane {
        ctx,
        buffer,
        flights: Flights::new(identity.producer_id, identity.epoch),
        max_batch_bytes: identity.max_batch_bytes,
        answers: FuturesUnordered::new(),
        backoff,
        leader_doubted: false,
        reason: String::new(),
    };
    if let Some(sealed) = waiting {
        lane.take(sealed).await;
    }
    lane.run().await;
}

/// An identity for the lane, and the batch that waited for it. While there is none to be had,
/// batches fail as their time runs out.
async fn first_identity(ctx: &LaneContext, buffer: &Buffer) -> Option<(Identity, Option<Sealed>)> {
    let mut waiting: Option<Sealed> = None;
    let mut backoff = ctx.client.backoff();
    loop {
        let identity = ctx.identity.get_or_try_init(|| identity(&ctx.client));
        let error = match identity.await {
            Ok(identity) => return Some((*identity, waiting)),
            Err(error) => error,
        };
        warn!(topic = ctx.topic, partition = ctx.partition, %error, "no producer id");
        let sealed = match waiting.take() {
            Some(sealed) => sealed,
            None => buffer.next().await?,
        };
        if sealed.deadline > Instant::now() {
            waiting = Some(sealed);
        } else {
            buffer.resolved(sealed.number);
            let _ = sealed.done.send(Err(Error::Timeout(error.to_string())));
        }
        backoff.pause().await;
    }
}

/// What the cluster gives a producer to begin with. Epochs and sequences count per partition, so
/// lanes can share an id and still go on to epochs of their own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    producer_id: i64,
    epoch: i16,
    max_batch_bytes: usize,
}

async fn identity(client: &Client) -> Result<Identity, Error> {
    let given = client
        .on_any_node(Repeat::Safe, |channel| async move {
            let mut producers = ProducerClient::new(channel);
            producers.init_producer(InitProducerRequest {}).await
        })
        .await?;
    let epoch = i16::try_from(given.producer_epoch)
        .map_err(|_| Error::Unreachable("the cluster gave a producer epoch out of range".into()))?;
    let max_batch_bytes = match given.max_batch_bytes {
        0 => usize::MAX,
        bytes => usize::try_from(bytes).unwrap_or(usize::MAX),
    };
    Ok(Identity {
        producer_id: given.producer_id,
        epoch,
        max_batch_bytes,
    })
}

impl Lane {
    async fn run(&mut self) {
        loop {
            tokio::select! { biased;
                Some((ticket, answer)) = self.answers.next() => self.on_answer(ticket, answer),
                sealed = self.buffer.next(), if self.flights.has_room() => match sealed {
                    Some(sealed) => self.take(sealed).await,
                    None if self.flights.is_empty() => return,
                    // Closed: nothing new will come, the rest is seen through.
                    None => self.finish().await,
                },
                () = std::future::ready(()), if self.flights.is_settled() => self.recover().await,
            }
        }
    }

    /// Sees the batches under way through, after the last one was taken.
    async fn finish(&mut self) {
        while !self.flights.is_empty() {
            if self.flights.is_settled() {
                self.recover().await;
            } else if let Some((ticket, answer)) = self.answers.next().await {
                self.on_answer(ticket, answer);
            }
        }
    }

    /// Sends a fresh batch.
    async fn take(&mut self, sealed: Sealed) {
        let mut builder = sealed.builder;
        builder.set_producer(self.flights.next_stamp());
        let count = builder.record_count();
        match self.checked(builder.build()) {
            Ok(bytes) => {
                let batch = Batch {
                    bytes: bytes.clone(),
                    deadline: sealed.deadline,
                    done: sealed.done,
                    number: sealed.number,
                    _memory: sealed.memory,
                };
                let ticket = self.flights.push(batch, count);
                let ctx = &self.ctx;
                let leader = ctx.client.leader_address(&ctx.topic, ctx.partition, false);
                match leader.await {
                    Ok(Some(address)) => self.send(ticket, bytes, &address).await,
                    Ok(None) => self.not_sent(ticket, "the partition has no leader"),
                    Err(error) => self.not_sent(ticket, &error.to_string()),
                }
            }
            Err(error) => {
                self.buffer.resolved(sealed.number);
                let _ = sealed.done.send(Err(error));
            }
        }
    }

    fn checked(&self, built: Result<Bytes, BuildError>) -> Result<Bytes, Error> {
        let bytes = built?;
        let (size, limit) = (bytes.len(), self.max_batch_bytes);
        if size > limit {
            return Err(Error::TooLarge { size, limit });
        }
        Ok(bytes)
    }

    fn not_sent(&mut self, ticket: Ticket, reason: &str) {
        self.on_answer(ticket, Err(Failure::retry(reason)));
    }

    async fn send(&mut self, ticket: Ticket, batch: Bytes, address: &str) {
        let request = ProduceRequest {
            request_id: 0,
            topic: self.ctx.topic.clone(),
            partition: self.ctx.partition,
            batch,
            topic_id: Some(self.ctx.topic_id.clone()).filter(|id| !id.is_empty()),
        };
        let limit = self.ctx.config.request_timeout;
        let submit = self.ctx.links.submit(address, request);
        let Ok(waiting) = timeout(limit, submit).await else {
            return self.not_sent(ticket, "the leader takes no requests");
        };
        let answer = async move {
            let answer = match timeout(limit, waiting).await {
                Ok(Ok(answer)) => answer,
                Ok(Err(_)) => Err(Failure::retry("the leader cannot be reached")),
                Err(_) => Err(Failure::Unknown("the leader did not answer in time".into())),
            };
            (ticket, answer)
        };
        self.answers.push(answer.boxed());
    }

    fn on_answer(&mut self, ticket: Ticket, answer: Answer) {
        match answer {
            Ok(response) => {
                self.backoff.reset();
                self.leader_doubted = false;
                if let Some(batch) = self.flights.acknowledged(ticket) {
                    let place = BatchPlace {
                        partition: self.ctx.partition,
                        base_offset: response.base_offset,
                        append_time: Timestamp(response.append_time_ns),
                    };
                    self.resolve(batch, Ok(place));
                }
            }
            Err(Failure::Retry { reason, leader }) => {
                self.lost_leader(&reason, leader.as_ref());
                self.flights.attempt_failed(ticket, Doubt::None);
            }
            Err(Failure::Unknown(reason)) => {
                self.lost_leader(&reason, None);
                self.flights.attempt_failed(ticket, Doubt::MayBeAppended);
            }
            Err(Failure::Refused(error)) => {
                let failed = match error.code {
                    ErrorCode::OutOfOrderSequence => self.flights.out_of_order(ticket),
                    ErrorCode::ProducerFenced => self.flights.fenced(ticket),
                    // A leader may lead before it knows what the describing node knew already.
                    ErrorCode::UnknownTopic | ErrorCode::UnknownPartition => {
                        self.lost_leader(&error.message, None);
                        self.flights.attempt_failed(ticket, Doubt::None);
                        None
                    }
                    ErrorCode::TopicReplaced => {
                        let ctx = &self.ctx;
                        ctx.client.forget_topic(&ctx.topic, &ctx.topic_id);
                        self.flights.failed(ticket)
                    }
                    _ => self.flights.failed(ticket),
                };
                if let Some((batch, doubt)) = failed {
                    self.fail(batch, doubt, Error::Refused(error));
                }
            }
        }
    }

    fn lost_leader(&mut self, reason: &str, leader: Option<&Leader>) {
        let ctx = &self.ctx;
        debug!(
            topic = ctx.topic,
            partition = ctx.partition,
            reason,
            "a batch will be sent again"
        );
        let told =
            leader.is_some_and(|leader| ctx.client.learn_leader(&ctx.topic, ctx.partition, leader));
        self.leader_doubted |= !told;
        reason.clone_into(&mut self.reason);
    }

    /// Every answer is in and something has to be sent again: finds the leader and does so.
    async fn recover(&mut self) {
        self.expire();
        if self.flights.is_empty() {
            return self.reopen().await;
        }
        self.backoff.pause_unless(!self.leader_doubted).await;
        let ctx = &self.ctx;
        let leader = ctx
            .client
            .leader_address(&ctx.topic, ctx.partition, self.leader_doubted)
            .await;
        let address = match leader {
            Ok(Some(address)) => address,
            Ok(None) => {
                self.leader_doubted = true;
                "the partition has no leader".clone_into(&mut self.reason);
                return;
            }
            Err(error @ (Error::Refused(_) | Error::NoSuchPartition { .. })) => {
                return self.fail_all(&error);
            }
            Err(error) => {
                self.leader_doubted = true;
                self.reason = error.to_string();
                return;
            }
        };
        let tickets = match self.flights.step() {
            Step::None => return,
            Step::Resend(tickets) => tickets,
            Step::Renew => return self.renew().await,
        };
        self.leader_doubted = false;
        for ticket in tickets {
            if let Some(batch) = self.flights.batch(ticket) {
                let bytes = batch.bytes.clone();
                self.send(ticket, bytes, &address).await;
            }
        }
    }

    /// Nothing is left to be sent again: makes way for what comes.
    async fn reopen(&mut self) {
        if self.flights.step() == Step::Renew {
            self.renew().await;
        }
    }

    async fn renew(&mut self) {
        let new_id = if self.flights.needs_producer_id() {
            match identity(&self.ctx.client).await {
                Ok(identity) => Some((identity.producer_id, identity.epoch)),
                Err(error) => {
                    self.reason = error.to_string();
                    return self.backoff.pause().await;
                }
            }
        } else {
            None
        };
        self.flights.renew(new_id, |batch: &mut Batch, stamp| {
            batch.bytes = stamped(&batch.bytes, stamp);
        });
    }

    /// Gives up what has run out of time.
    fn expire(&mut self) {
        let now = Instant::now();
        for ticket in self.flights.expired(|batch| batch.deadline <= now) {
            if let Some((batch, doubt)) = self.flights.failed(ticket) {
                let error = Error::Timeout(self.reason.clone());
                self.fail(batch, doubt, error);
            }
        }
    }

    fn fail_all(&mut self, error: &Error) {
        for ticket in self.flights.expired(|_| true) {
            if let Some((batch, doubt)) = self.flights.failed(ticket) {
                self.fail(batch, doubt, error.clone());
            }
        }
    }

    fn fail(&self, batch: Batch, doubt: Doubt, error: Error) {
        let error = match doubt {
            Doubt::None => error,
            Doubt::MayBeAppended => Error::UnknownOutcome(error.to_string()),
        };
        self.resolve(batch, Err(error));
    }

    fn resolve(&self, batch: Batch, fate: Result<BatchPlace, Error>) {
        self.buffer.resolved(batch.number);
        // Nobody has to wait for it.
        let _ = batch.done.send(fate);
    }
}

/// The batch under another identity.
fn stamped(bytes: &Bytes, stamp: ProducerState) -> Bytes {
    debug_assert!(BatchHeader::parse(bytes).is_ok());
    restamp(bytes, stamp)
}
