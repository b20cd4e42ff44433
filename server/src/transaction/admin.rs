//! Transactions as their owners see them.

use std::time::Duration;

use super::{Coordinator, Description, Listing, TransactionError};
use crate::view::transaction::Phase;
use trilog_model::GroupId;

impl Coordinator {
    /// The ids this node coordinates, in order. A partition about to be taken over makes the
    /// answer one that is to be asked for again.
    pub fn list(&self) -> Result<Vec<Listing>, TransactionError> {
        // Before anybody has begun a transaction there is none.
        let Ok(topic) = self.topic() else {
            return Ok(Vec::new());
        };
        let mut listed = Vec::new();
        for (index, _) in (0..).zip(&topic.partitions) {
            let handle = match self.enter_at(&topic, index) {
                Ok(handle) => handle,
                Err(TransactionError::Loading) => return Err(TransactionError::Loading),
                Err(_) => continue,
            };
            let each = handle.lock().look(|all| {
                let each = all.iter().map(|(id, known)| Listing {
                    id: id.clone(),
                    producer_id: known.transaction.producer_id,
                    phase: known.transaction.phase(),
                    started: known.started,
                });
                each.collect::<Vec<_>>()
            });
            listed.extend(each.unwrap_or_default());
        }
        listed.sort_by(|one, other| one.id.cmp(&other.id));
        Ok(listed)
    }

    pub fn describe(&self, id: &str) -> Result<Description, TransactionError> {
        let (_, handle) = self.enter(id)?;
        let known = handle.lock().known(id);
        let known = known.ok_or(TransactionError::UnknownId)?;
        let transaction = known.transaction;
        let idle = match transaction.phase() {
            Phase::Empty | Phase::CompleteCommit | Phase::CompleteAbort => true,
            Phase::Ongoing | Phase::PrepareCommit | Phase::PrepareAbort => false,
        };
        Ok(Description {
            id: id.to_owned(),
            producer: transaction.identity(),
            phase: transaction.phase(),
            timeout: Duration::from_millis(transaction.timeout_ms),
            started: (!idle).then_some(known.started),
            partitions: transaction
                .partitions
                .iter()
                .copied()
                .map(GroupId)
                .collect(),
        })
    }
}
