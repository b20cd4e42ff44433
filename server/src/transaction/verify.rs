//! Whether a partition is in a producer's transaction, asked by whoever is about to take the first
//! batch of it there (KIP-890 part 1): a batch that comes late would otherwise open a transaction
//! that nobody ends.

use std::time::Duration;

use tokio::time::Instant;
use trilog_model::GroupId;

use super::{Coordinator, Identity, Shown, TransactionError, VerifyRequest, check_id, peers};
use crate::partition::{Partition, Standing};
use crate::view::isolation::Inclusion;
use crate::view::transaction::machine;

/// How long somebody who knows is looked for. The producer tries again after that.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

impl Coordinator {
    /// Asks whoever coordinates the id.
    pub async fn verify(&self, request: VerifyRequest) -> Result<Shown, TransactionError> {
        check_id(&request.id)?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let asked = tokio::time::timeout_at(deadline, self.ask(&request)).await;
            let error = match asked.unwrap_or(Err(TransactionError::Unknown)) {
                Ok(shown) => return Ok(shown),
                Err(error) => error,
            };
            if !may_pass(&error) || Instant::now() + PAUSE >= deadline {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// What a producer's batches need to be taken into these partitions, which this node leads:
    /// for each what [`Partition::enqueue_in_transaction`] is to be told. The coordinator is asked
    /// once for all of them, and not at all where the transaction is open already.
    pub async fn show(
        &self,
        id: &str,
        producer: Identity,
        partitions: &[&Partition],
    ) -> Vec<Result<Option<Inclusion>, TransactionError>> {
        let Identity { producer_id, epoch } = producer;
        let each = partitions.iter();
        let standings: Vec<Standing> = each
            .map(|partition| partition.standing(producer_id, epoch))
            .collect();
        let unknown = partitions
            .iter()
            .zip(&standings)
            .filter(|(_, standing)| **standing != Standing::Open);
        let asked: Vec<GroupId> = unknown
            .map(|(partition, _)| partition.group().id())
            .collect();
        let mut shown = if asked.is_empty() {
            Ok((0, Vec::new().into_iter()))
        } else {
            let request = VerifyRequest {
                id: id.to_owned(),
                producer,
                partitions: asked,
            };
            let shown = self.verify(request).await;
            shown.map(|shown| (shown.transaction, shown.within.into_iter()))
        };
        let each = standings.into_iter().map(|standing| match standing {
            Standing::Open => Ok(None),
            Standing::Unknown(since) => match &mut shown {
                Ok((transaction, within)) => match within.next() {
                    Some(true) => Ok(Some(Inclusion {
                        since,
                        transaction: *transaction,
                    })),
                    Some(false) | None => Err(TransactionError::InvalidState),
                },
                Err(error) => Err(error.clone()),
            },
        });
        each.collect()
    }

    /// Whether a group's offsets are in a producer's transaction: its number if they are.
    pub async fn verify_group(
        &self,
        id: String,
        producer: Identity,
        group: &str,
    ) -> Result<u64, TransactionError> {
        let partition: GroupId = self.partition_of_group(group).await?;
        let request = VerifyRequest {
            id,
            producer,
            partitions: vec![partition],
        };
        let shown = self.verify(request).await?;
        if shown.within == [true] {
            Ok(shown.transaction)
        } else {
            Err(TransactionError::InvalidState)
        }
    }

    async fn ask(&self, request: &VerifyRequest) -> Result<Shown, TransactionError> {
        let here = self.verify_here(request).await;
        let cluster = &self.inner.cluster;
        match here {
            Err(TransactionError::NotCoordinator { node: Some(node) })
                if node != cluster.node() =>
            {
                peers::verify(cluster, node, request).await
            }
            answer => answer,
        }
    }

    /// Answers for the ids that this node coordinates. Proven to lead first: one that was cut off
    /// would still call open what the next coordinator has ended.
    pub(super) async fn verify_here(
        &self,
        request: &VerifyRequest,
    ) -> Result<Shown, TransactionError> {
        let (_, handle) = self.enter(&request.id)?;
        let partition = handle.lock().partition.clone();
        partition.confirm().await?;
        let known = handle.lock().known(&request.id);
        let known = known.map(|known| known.transaction);
        let partitions: Vec<u64> = request.partitions.iter().map(|one| one.get()).collect();
        let (transaction, within) = machine::shows(known.as_ref(), request.producer, &partitions)?;
        Ok(Shown {
            transaction,
            within,
        })
    }
}

/// Whether the next answer may be another one.
fn may_pass(error: &TransactionError) -> bool {
    match error {
        TransactionError::NotCoordinator { .. }
        | TransactionError::Loading
        | TransactionError::Unavailable(_)
        | TransactionError::Unknown
        | TransactionError::Concurrent => true,
        TransactionError::InvalidId
        | TransactionError::InvalidTimeout
        | TransactionError::UnknownProducer
        | TransactionError::Fenced
        | TransactionError::InvalidState
        | TransactionError::TooManyPartitions
        | TransactionError::UnknownId
        | TransactionError::TooManyIds => false,
    }
}
