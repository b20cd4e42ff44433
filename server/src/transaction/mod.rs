//! The coordinator of transactions.
//!
//! A transactional id belongs to one partition of the internal topic, by its hash; the node that
//! leads that partition coordinates it. Every step is committed there before anybody is told
//! (`view::transaction`). What a leader remembers beside that is which ids have a step on its way,
//! and dies with its term.
//!
//! ```text
//! edge -> Coordinator -> Lead (lock: judge, queue) -> partition => committed -> answer
//!             ^ keep: time-outs, expiry                    |
//!             +---- finish: markers to the partitions <----+ Prepare committed, or taken over
//!
//! leader of a partition --verify--> Coordinator: is it in the producer's transaction?
//! ```

mod admin;
mod error;
mod finish;
mod keep;
mod lead;
mod meter;
mod peers;
mod types;
mod verify;

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use trilog_model::{GroupId, NodeId, Term};
use trilog_raft::controller::{InternalTopic, TRANSACTION_LEVEL, Topic};
use trilog_storage::env::{Clock, Entropy};

pub use error::TransactionError;
pub use peers::serve;
pub use types::{
    AddRequest, BeginRequest, Census, Description, EndOpen, EndRequest, Listing, Page, Settings,
    Shown, VerifyRequest,
};

use crate::cluster::{Cluster, ProposeError};
use crate::group::{Coordinator as Groups, positive_hash};
pub use crate::view::isolation::Inclusion;
pub use crate::view::transaction::Phase;
pub use crate::view::transaction::machine::Identity;
use crate::view::transaction::machine::{self, Begin, Next};
use crate::view::transaction::{MAX_NAME, Transaction};
use lead::{Lead, Sent, Step};
use meter::{AbortReason, count_abort, count_commit};

/// Coordinates the transactions of the ids whose partitions this node leads; cheap to clone.
#[derive(Clone)]
pub struct Coordinator {
    inner: Arc<Inner>,
}

struct Inner {
    cluster: Cluster,
    groups: Groups,
    settings: Settings,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    /// By partition of the internal topic.
    leads: Mutex<BTreeMap<u32, Handle>>,
    /// There is something to do earlier than was known.
    sooner: Notify,
}

type Handle = Arc<Mutex<Lead>>;

impl std::fmt::Debug for Coordinator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("transaction::Coordinator")
            .field("settings", &self.inner.settings)
            .finish_non_exhaustive()
    }
}

impl Coordinator {
    #[must_use]
    pub fn new(
        cluster: Cluster,
        groups: Groups,
        settings: Settings,
        clock: Arc<dyn Clock>,
        entropy: Entropy,
    ) -> Self {
        let inner = Inner {
            cluster,
            groups,
            settings,
            clock,
            entropy,
            leads: Mutex::default(),
            sooner: Notify::new(),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// The node that coordinates a transactional id. At the first question in a cluster's life
    /// the internal topic is created.
    pub async fn locate(&self, id: &str) -> Result<NodeId, TransactionError> {
        check_id(id)?;
        let Inner {
            cluster,
            settings,
            entropy,
            ..
        } = &*self.inner;
        if cluster.map().level() < TRANSACTION_LEVEL {
            return Err(TransactionError::Unavailable(
                "the cluster's feature level has no transactions: run `trilog cluster upgrade`",
            ));
        }
        let topic = cluster
            .use_internal_topic(InternalTopic::Transactions, settings.partitions, entropy)
            .await
            .map_err(|error| {
                tracing::info!(%error, "there is no topic of transactions");
                TransactionError::Unavailable("the topic of transactions is not there yet")
            })?;
        let place = usize::try_from(partition_of(id, &topic))
            .ok()
            .and_then(|index| topic.partitions.get(index))
            .ok_or(TransactionError::Unavailable("the topic has no partitions"))?;
        let leader = cluster.leader(place.group);
        leader.ok_or(TransactionError::Unavailable("its partition has no leader"))
    }

    /// A producer begins, or begins anew: whoever was the id's producer before is shut out, and
    /// what it left open is aborted first.
    pub async fn begin(&self, request: BeginRequest) -> Result<Identity, TransactionError> {
        check_id(&request.id)?;
        let timeout = request.timeout;
        if timeout.is_zero() || timeout > self.inner.settings.timeout_max {
            return Err(TransactionError::InvalidTimeout);
        }
        let timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
        let mut fresh = None;
        loop {
            let begun = self.change(&request.id, |known, _| {
                let begun = machine::begin(known, request.expected, timeout_ms, fresh)?;
                Ok(match begun {
                    Begin::Is(identity) => Step::Is(Begun::Is(identity)),
                    Begin::NeedsId => Step::Is(Begun::NeedsId),
                    Begin::Put(next) => {
                        let identity = next.identity();
                        Step::Put(next, Begun::Is(identity))
                    }
                    Begin::Abort(next) => Step::Put(next, Begun::Aborts),
                })
            });
            match begun.await? {
                Begun::Is(identity) => return Ok(identity),
                // It asks again until that is over.
                Begun::Aborts => {
                    count_abort(AbortReason::Fenced);
                    return Err(TransactionError::Concurrent);
                }
                Begun::NeedsId => {
                    let id = self.inner.cluster.producer_id().await;
                    fresh = Some(id.map_err(|error| no_producer_id(&error))?);
                }
            }
        }
    }

    /// Partitions come into a producer's transaction, all or none.
    pub async fn add(&self, request: AddRequest) -> Result<(), TransactionError> {
        check_id(&request.id)?;
        let partitions: Vec<u64> = request.partitions.iter().map(|one| one.get()).collect();
        let added = self.change(&request.id, |known, term| {
            let least = least_number(term);
            let next = machine::add(known, request.producer, &partitions, least)?;
            Ok(step(next))
        });
        added.await
    }

    /// The offsets of a group come into a producer's transaction.
    pub async fn add_group(
        &self,
        id: String,
        producer: Identity,
        group: &str,
    ) -> Result<(), TransactionError> {
        let partition = self.partition_of_group(group).await?;
        self.add(AddRequest {
            id,
            producer,
            partitions: vec![partition],
        })
        .await
    }

    /// A producer commits or aborts. Once this is answered it is decided; readers see it as soon
    /// as the markers are written, which goes on by itself.
    pub async fn end(&self, request: EndRequest) -> Result<(), TransactionError> {
        check_id(&request.id)?;
        let ended = self.change(&request.id, |known, _| {
            let next = machine::end(known, request.producer, request.commit)?;
            Ok(match next {
                Next::Is => Step::Is(false),
                Next::Put(next) => Step::Put(next, true),
            })
        });
        match (ended.await?, request.commit) {
            (true, true) => count_commit(),
            (true, false) => count_abort(AbortReason::Producer),
            // It was counted before.
            (false, _) => {}
        }
        Ok(())
    }

    /// The partition that holds a group's offsets.
    async fn partition_of_group(&self, group: &str) -> Result<GroupId, TransactionError> {
        let unavailable = TransactionError::Unavailable("the topic of groups is not there yet");
        if self.inner.groups.partition_of(group).is_err() {
            // At its first use in the cluster's life it is created by this.
            drop(self.inner.groups.locate(group).await);
        }
        let index = self.inner.groups.partition_of(group);
        let index = index.map_err(|_| unavailable.clone())?;
        let topic = self.inner.cluster.internal_topic(InternalTopic::Groups);
        let topic = topic.ok_or(unavailable.clone())?;
        let place = usize::try_from(index).ok();
        let place = place.and_then(|index| topic.partitions.get(index));
        place.map(|place| place.group).ok_or(unavailable)
    }

    /// Takes one step with an id, judged by what is known of it, and waits for its commit. What takes
    /// none is told only by who is proven to lead, of what is known then: who was replaced and has not
    /// heard of it would call ended what the next coordinator has opened.
    async fn change<T: Send + 'static>(
        &self,
        id: &str,
        judge: impl Fn(Option<&Transaction>, Term) -> Result<Step<T>, machine::Refused>,
    ) -> Result<T, TransactionError> {
        let mut confirmed = false;
        loop {
            let (index, handle) = self.enter(id)?;
            let (term, taken) = {
                let mut lead = handle.lock();
                let term = lead.term;
                let taken = match lead.judge(id, |known| judge(known, term)) {
                    Ok(Step::Put(next, answer)) => {
                        let ends = next.phase().is_ending();
                        Ok((lead.send(id, next)?, ends, answer))
                    }
                    Ok(Step::Is(answer)) if confirmed => return Ok(answer),
                    Err(refused) if confirmed => return Err(refused),
                    Ok(Step::Is(_)) | Err(_) => Err(lead.partition.clone()),
                };
                (term, taken)
            };
            let partition = match taken {
                Ok((sent, ends, answer)) => {
                    self.follow(id, (index, term), handle, sent, ends).await?;
                    return Ok(answer);
                }
                Err(partition) => partition,
            };
            partition.confirm().await?;
            confirmed = true;
        }
    }

    /// Waits for the commit of a step, and goes on with what ends by it.
    fn follow(
        &self,
        id: &str,
        (index, term): (u32, Term),
        handle: Handle,
        sent: Sent,
        ends: bool,
    ) -> impl Future<Output = Result<(), TransactionError>> + use<> {
        let (this, id) = (self.clone(), id.to_owned());
        // A task of its own: whoever asked may be gone before it is committed.
        let following = tokio::spawn(async move {
            let outcome = sent.committed().await;
            handle.lock().arrived(&id, &outcome);
            if ends && outcome.is_ok() {
                this.finish(index, term, &handle, id);
            }
            outcome
        });
        async move {
            following
                .await
                .unwrap_or(Err(TransactionError::Unknown))
                .map(drop)
        }
    }

    /// The partition of an id, if this node leads it.
    fn enter(&self, id: &str) -> Result<(u32, Handle), TransactionError> {
        let topic = self.topic()?;
        let index = partition_of(id, &topic);
        Ok((index, self.enter_at(&topic, index)?))
    }

    fn topic(&self) -> Result<Arc<Topic>, TransactionError> {
        let topic = self
            .inner
            .cluster
            .internal_topic(InternalTopic::Transactions);
        topic.ok_or(TransactionError::NotCoordinator { node: None })
    }

    fn enter_at(&self, topic: &Topic, index: u32) -> Result<Handle, TransactionError> {
        let (partition, term) = self.inner.cluster.led_here(topic, index)?;
        let mut leads = self.inner.leads.lock();
        if let Some(handle) = leads.get(&index)
            && handle.lock().term == term
        {
            return Ok(Arc::clone(handle));
        }
        let handle = Arc::new(Mutex::new(Lead::begin(partition, term)));
        leads.insert(index, Arc::clone(&handle));
        self.inner.sooner.notify_one();
        Ok(handle)
    }
}

/// What a producer that wants to begin is told.
enum Begun {
    Is(Identity),
    NeedsId,
    Aborts,
}

/// The least number of a transaction that begins in a term: a coordinator that lost its newest
/// entries for good, and goes on in a far later term, gives none of theirs again.
fn least_number(term: Term) -> u64 {
    u64::from(u32::try_from(term.get()).unwrap_or(u32::MAX)) << 32
}

fn step(next: Next) -> Step<()> {
    match next {
        Next::Is => Step::Is(()),
        Next::Put(next) => Step::Put(next, ()),
    }
}

fn no_producer_id(error: &ProposeError) -> TransactionError {
    tracing::info!(%error, "there is no producer id for a transactional producer");
    TransactionError::Unavailable("there is no producer id to be had")
}

fn partition_of(id: &str, topic: &Topic) -> u32 {
    let partitions = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
    positive_hash(id) % partitions.max(1)
}

fn check_id(id: &str) -> Result<(), TransactionError> {
    if id.is_empty() || id.len() > MAX_NAME {
        Err(TransactionError::InvalidId)
    } else {
        Ok(())
    }
}
