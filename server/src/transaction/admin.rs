//! Transactions as their owners and operators see them.

use std::time::Duration;

use trilog_model::{GroupId, Offset};
use trilog_raft::controller::GroupPlace;

use super::lead::Step;
use super::meter::{AbortReason, count_abort};
use super::{Coordinator, Description, EndOpen, Handle, Listing, Page, TransactionError};
use crate::group::GroupError;
use crate::partition::{AppendError, Partition};
use crate::view::group::command::ProducerRef;
use crate::view::isolation::Ender;
use crate::view::transaction::{Known, Phase, machine};
use crate::view::{Marker, ViewKind};

/// How long the end of a transaction in one partition is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Ids looked at under one lock.
const PAGE: usize = 1_000;

impl Coordinator {
    /// The ids this node coordinates that are wanted, in order, unless they take more than `most`
    /// bytes. A partition about to be taken over makes the answer one that is to be asked for again.
    pub fn list(
        &self,
        wanted: impl Fn(&Listing) -> bool,
        most: usize,
    ) -> Result<Vec<Listing>, TransactionError> {
        // Before anybody has begun a transaction there is none.
        let Ok(topic) = self.topic() else {
            return Ok(Vec::new());
        };
        let (mut listed, mut bytes) = (Vec::new(), 0);
        for (index, _) in (0..).zip(&topic.partitions) {
            let handle = match self.enter_at(&topic, index) {
                Ok(handle) => handle,
                Err(TransactionError::Loading) => return Err(TransactionError::Loading),
                Err(_) => continue,
            };
            let mut next = Some(String::new());
            while let Some(after) = next {
                let page = page(&handle, &after, &wanted);
                bytes += page.listed.iter().map(Listing::bytes).sum::<usize>();
                if bytes > most {
                    return Err(TransactionError::TooManyIds);
                }
                listed.extend(page.listed);
                next = page.last;
            }
        }
        listed.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(listed)
    }

    /// Some of the ids of one internal partition behind one of them, if this node coordinates them;
    /// and how many such partitions there are.
    pub fn list_page(
        &self,
        index: u32,
        after: &str,
        wanted: impl Fn(&Listing) -> bool,
    ) -> Result<(Page, u32), TransactionError> {
        let Ok(topic) = self.topic() else {
            return Ok((Page::default(), 0));
        };
        let count = u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX);
        if index >= count {
            return Ok((Page::default(), count));
        }
        let handle = self.enter_at(&topic, index)?;
        Ok((page(&handle, after, wanted), count))
    }

    pub fn describe(&self, id: &str) -> Result<Description, TransactionError> {
        let (_, handle) = self.enter(id)?;
        let known = handle.lock().known(id);
        let known = known.ok_or(TransactionError::UnknownId)?;
        let transaction = &known.transaction;
        let idle = match transaction.phase() {
            Phase::Empty | Phase::CompleteCommit | Phase::CompleteAbort => true,
            Phase::Ongoing | Phase::PrepareCommit | Phase::PrepareAbort => false,
        };
        Ok(Description {
            timeout: Duration::from_millis(transaction.timeout_ms),
            started: (!idle).then_some(known.started),
            partitions: transaction
                .partitions
                .iter()
                .copied()
                .map(GroupId)
                .collect(),
            listing: listing(id, &known),
        })
    }

    /// Aborts the id's transaction, if one is open, and shuts out its producer.
    pub async fn abort(&self, id: &str) -> Result<(), TransactionError> {
        let aborted = self.change(id, |known, _| match known {
            None => Ok(Step::Is(Err(TransactionError::UnknownId))),
            Some(known) if known.phase() == Phase::Ongoing => {
                Ok(Step::Put(machine::fence(known), Ok(())))
            }
            Some(known) if known.phase().is_ending() => Err(machine::Refused::Concurrent),
            Some(_) => Err(machine::Refused::InvalidState),
        });
        aborted.await??;
        count_abort(AbortReason::Operator);
        tracing::info!(id, "a transaction is aborted as an operator wants it");
        Ok(())
    }

    /// Ends what a producer has open in a partition that this node leads, by Kafka's rules; where
    /// the marker is.
    pub async fn end_open(
        &self,
        partition: &Partition,
        end: EndOpen,
    ) -> Result<Offset, AppendError> {
        let marker = Marker {
            producer_id: end.producer.producer_id,
            epoch: i32::from(end.producer.epoch),
            coordinator_epoch: end.coordinator_epoch,
            transaction: 0,
            commit: end.commit,
        };
        let ended = async {
            match partition.kind() {
                ViewKind::Records => {
                    let millis = self.inner.clock.now().as_millis();
                    let ender = Ender::Operator { begins: end.begins };
                    let ended = partition.end_transaction(marker, ender, millis).await;
                    ended.map(|appended| appended.base_offset)
                }
                ViewKind::Groups => self.end_offsets(partition, marker).await,
                ViewKind::Transactions => Err(AppendError::Internal),
            }
        };
        let ended = tokio::time::timeout(PATIENCE, ended).await;
        let offset = ended.unwrap_or(Err(AppendError::Unknown))?;
        tracing::info!(
            group = %partition.group().id(),
            producer_id = marker.producer_id,
            commit = marker.commit,
            "an operator ends what a producer has open in a partition"
        );
        Ok(offset)
    }

    /// As [`Coordinator::end_open`], of offsets that a producer has committed in a transaction.
    async fn end_offsets(
        &self,
        partition: &Partition,
        marker: Marker,
    ) -> Result<Offset, AppendError> {
        let place = self.inner.cluster.map().place(partition.group().id());
        let Some(GroupPlace::Partition { index, .. }) = place else {
            return Err(AppendError::Closed);
        };
        let id = marker.producer_id;
        let known = partition.with_state(|state| {
            let groups = state.groups()?;
            Some((groups.epoch_of(id), groups.pending_of(id)))
        });
        let (epoch, pending) = known.unwrap_or_default();
        if let Some(newest) = epoch.filter(|newest| marker.epoch < *newest) {
            let current_epoch = i16::try_from(newest).unwrap_or(i16::MAX);
            return Err(AppendError::Fenced { current_epoch });
        }
        let producer = ProducerRef {
            producer_id: id,
            epoch: marker.epoch,
            transaction: pending.unwrap_or(0),
        };
        let groups = &self.inner.groups;
        let ended = groups.end_transaction(index, producer, marker.commit).await;
        ended.map(|()| Offset(0)).map_err(|error| match error {
            GroupError::NotCoordinator { node } => AppendError::NotLeader { leader: node },
            GroupError::Loading => AppendError::NotLeader { leader: None },
            GroupError::Unavailable(reason) => AppendError::Busy(reason),
            _ => AppendError::Unknown,
        })
    }
}

fn listing(id: &str, known: &Known) -> Listing {
    Listing {
        id: id.to_owned(),
        producer: known.transaction.identity(),
        phase: known.transaction.phase(),
        partitions: known.transaction.partitions.len(),
        started: known.started,
    }
}

/// Looks at ids behind one of them: a few at a time, for nothing is judged or applied meanwhile.
fn page(handle: &Handle, after: &str, wanted: impl Fn(&Listing) -> bool) -> Page {
    let lead = handle.lock();
    let page = lead.look(|all| {
        let mut each = all.iter_after(after);
        let mut page = Page::default();
        for (id, known) in each.by_ref().take(PAGE) {
            let listing = listing(id, known);
            if wanted(&listing) {
                page.listed.push(listing);
            }
            page.last = Some(id.clone());
        }
        if each.next().is_none() {
            page.last = None;
        }
        page
    });
    page.unwrap_or_default()
}
