//! The second half of a transaction: markers to all its partitions, wherever they are led, and
//! then the note that it is over.
//!
//! Nothing here decides anything: what was decided is committed, so whoever coordinates goes on
//! with it, as often as it takes, and a partition takes a marker once.

use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use trilog_model::{GroupId, Term};
use trilog_raft::controller::GroupPlace;

use super::lead::Sent;
use super::{Coordinator, Handle, TransactionError, peers};
use crate::partition::AppendError;
use crate::view::group::command::ProducerRef;
use crate::view::isolation::Ender;
use crate::view::transaction::Phase;
use crate::view::transaction::{Transaction, machine};
use crate::view::{Marker, ViewKind};

/// Markers of one transaction that are on their way at once.
const AT_ONCE: usize = 32;
/// Between two tries.
const PAUSE: Duration = Duration::from_millis(50);
/// How long one marker is waited for before it is tried anew.
const PATIENCE: Duration = Duration::from_secs(10);

/// What became of a marker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Marked {
    /// It is there, or there is nothing that it could be for.
    Done,
    /// Nobody knows, or not yet.
    Again,
    /// A later coordinator has been there: it has taken over.
    Stale,
}

impl Coordinator {
    /// Writes what an id's transaction was decided to be, unless somebody is at it.
    pub(super) fn finish(&self, index: u32, term: Term, handle: &Handle, id: String) {
        if !handle.lock().begin_finish(&id) {
            return;
        }
        let (this, handle) = (self.clone(), Handle::clone(handle));
        tokio::spawn(async move {
            let ended = match this.write_markers(term, &handle, &id).await {
                Some(decided) => note_complete(term, &handle, &id, &decided).await,
                None => false,
            };
            if !ended {
                handle.lock().end_finish(&id);
            }
            tracing::trace!(
                partition = index,
                id,
                ended,
                "the end of a transaction was followed"
            );
        });
    }

    /// Returns what was written everywhere; nothing if that is somebody else's to do by now.
    async fn write_markers(&self, term: Term, handle: &Handle, id: &str) -> Option<Transaction> {
        let decided = handle.lock().known(id)?.transaction;
        if !decided.phase().is_ending() {
            return None;
        }
        let marker = Marker {
            producer_id: decided.producer_id,
            epoch: decided.epoch,
            coordinator_epoch: i32::try_from(term.get()).unwrap_or(i32::MAX),
            transaction: decided.number,
            commit: decided.phase() == Phase::PrepareCommit,
        };
        let mut left: Vec<GroupId> = decided.partitions.iter().copied().map(GroupId).collect();
        loop {
            if !leads(handle, term) {
                return None;
            }
            let each = stream::iter(left).map(|group| async move {
                let marking = tokio::time::timeout(PATIENCE, self.mark(group, marker));
                (group, marking.await.unwrap_or(Marked::Again))
            });
            let marked: Vec<(GroupId, Marked)> = each.buffer_unordered(AT_ONCE).collect().await;
            if marked.iter().any(|(_, marked)| *marked == Marked::Stale) {
                return None;
            }
            let again = marked.into_iter();
            let again = again.filter(|(_, marked)| *marked == Marked::Again);
            left = again.map(|(group, _)| group).collect();
            if left.is_empty() {
                return Some(decided);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Brings a marker to the leader of a partition.
    async fn mark(&self, group: GroupId, marker: Marker) -> Marked {
        let cluster = &self.inner.cluster;
        if cluster.map().place(group).is_none() {
            // It was deleted, or this node has yet to hear of it.
            let gone = cluster.is_current().await && cluster.map().place(group).is_none();
            return if gone { Marked::Done } else { Marked::Again };
        }
        match cluster.leader(group) {
            Some(node) if node == cluster.node() => self.mark_here(group, marker).await,
            Some(node) => peers::mark(cluster, node, group, marker).await,
            None => Marked::Again,
        }
    }

    /// Writes a marker to a partition that this node leads.
    pub(super) async fn mark_here(&self, group: GroupId, marker: Marker) -> Marked {
        let cluster = &self.inner.cluster;
        let Some(partition) = cluster.partitions().get(group) else {
            return Marked::Again;
        };
        match partition.kind() {
            ViewKind::Records => {
                let millis = self.inner.clock.now().as_millis();
                match partition
                    .end_transaction(marker, Ender::Coordinator, millis)
                    .await
                {
                    // A later epoch has written here, which it could not do before this one's
                    // transaction was over.
                    Ok(_) | Err(AppendError::Fenced { .. }) => Marked::Done,
                    Err(AppendError::StaleCoordinator) => Marked::Stale,
                    Err(_) => Marked::Again,
                }
            }
            ViewKind::Groups => {
                let Some(GroupPlace::Partition { index, .. }) = cluster.map().place(group) else {
                    return Marked::Again;
                };
                let producer = ProducerRef {
                    producer_id: marker.producer_id,
                    epoch: marker.epoch,
                    transaction: marker.transaction,
                };
                let ended = self
                    .inner
                    .groups
                    .end_transaction(index, producer, marker.commit);
                match ended.await {
                    Ok(()) => Marked::Done,
                    Err(_) => Marked::Again,
                }
            }
            // Nobody adds one of these to a transaction.
            ViewKind::Transactions => Marked::Done,
        }
    }
}

/// True once it is noted, and the id is free for its next transaction.
async fn note_complete(term: Term, handle: &Handle, id: &str, decided: &Transaction) -> bool {
    while leads(handle, term) {
        let outcome = match note(handle, id, decided) {
            Ok(Some(sent)) => {
                let outcome = sent.committed().await;
                let mut lead = handle.lock();
                lead.arrived(id, &outcome);
                if outcome.is_ok() {
                    lead.end_finish(id);
                    return true;
                }
                outcome
            }
            // Somebody has noted it.
            Ok(None) => return false,
            Err(error) => Err(error),
        };
        match outcome {
            Err(TransactionError::Unavailable(_) | TransactionError::Concurrent) => {
                tokio::time::sleep(PAUSE).await;
            }
            Ok(()) | Err(_) => return false,
        }
    }
    false
}

/// Queues the note that a transaction is over, if it is still the one that was decided.
fn note(
    handle: &Handle,
    id: &str,
    decided: &Transaction,
) -> Result<Option<Sent>, TransactionError> {
    let mut lead = handle.lock();
    lead.check(id)?;
    let known = lead.known(id).map(|known| known.transaction);
    match known {
        Some(known) if known == *decided => lead.send(id, machine::complete(decided)).map(Some),
        Some(_) | None => Ok(None),
    }
}

/// Whether this node still leads the partition in the term.
fn leads(handle: &Handle, term: Term) -> bool {
    let leadership = *handle.lock().partition.leadership().borrow();
    leadership.ready && leadership.term == term
}
