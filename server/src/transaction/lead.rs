//! The ids of one internal partition while this node leads it: one term of memory.
//!
//! An id is judged by what is applied and by nothing else, so while a step of it is on its way
//! nobody else may take one. Judging and queueing are one under the lock.

use std::collections::BTreeSet;
use std::sync::Arc;

use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use trilog_model::Term;

use super::TransactionError;
use crate::partition::{Partition, Ticket};
use crate::view::PartitionCommand;
use crate::view::transaction::command::Put;
use crate::view::transaction::machine::Refused;
use crate::view::transaction::{
    Known, Transaction, TransactionAction, TransactionCommand, Transactions,
};

/// Bytes of commands of one partition that may be on their way.
const IN_FLIGHT_BYTES: usize = 16 << 20;
/// What a command takes beside its bytes, so that many small ones count too.
const COMMAND_COST: usize = 256;

/// What a request comes to.
pub(super) enum Step<T> {
    /// Nothing is to change.
    Is(T),
    /// This is to be committed first.
    Put(Transaction, T),
}

/// A command on its way.
pub(super) struct Sent {
    ticket: Ticket,
    _room: OwnedSemaphorePermit,
}

impl Sent {
    pub(super) async fn committed(self) -> Result<(), TransactionError> {
        let outcome = self.ticket.committed().await;
        outcome.map(drop).map_err(TransactionError::from)
    }
}

/// See the module's text.
pub(super) struct Lead {
    pub(super) partition: Partition,
    pub(super) term: Term,
    /// A command's outcome is unknown: nothing is judged in this term any more.
    lost: bool,
    pending: BTreeSet<String>,
    /// Ids whose markers are being written from here.
    finishing: BTreeSet<String>,
    room: Arc<Semaphore>,
}

impl Lead {
    pub(super) fn begin(partition: Partition, term: Term) -> Self {
        Self {
            partition,
            term,
            lost: false,
            pending: BTreeSet::new(),
            finishing: BTreeSet::new(),
            room: Arc::new(Semaphore::new(IN_FLIGHT_BYTES)),
        }
    }

    /// Looks at the transactions as they are applied.
    pub(super) fn look<T>(&self, look: impl FnOnce(&Transactions) -> T) -> Option<T> {
        self.partition
            .with_state(|state| state.transactions().map(look))
    }

    pub(super) fn known(&self, id: &str) -> Option<Known> {
        self.look(|all| all.get(id).cloned()).flatten()
    }

    /// Whether a step of the id may be judged now.
    pub(super) fn check(&self, id: &str) -> Result<(), TransactionError> {
        if self.lost {
            Err(TransactionError::NotCoordinator { node: None })
        } else if self.pending.contains(id) {
            Err(TransactionError::Concurrent)
        } else {
            Ok(())
        }
    }

    pub(super) fn judge<T>(
        &self,
        id: &str,
        judge: impl FnOnce(Option<&Transaction>) -> Result<Step<T>, Refused>,
    ) -> Result<Step<T>, TransactionError> {
        self.check(id)?;
        let known = self.known(id).map(|known| known.transaction);
        Ok(judge(known.as_ref())?)
    }

    /// Queues what an id is to be.
    pub(super) fn send(&mut self, id: &str, next: Transaction) -> Result<Sent, TransactionError> {
        let fits = self.look(|all| all.has_room(id, &next));
        if fits != Some(true) {
            return Err(TransactionError::Unavailable(
                "the partition has no room for more transactional ids",
            ));
        }
        let put = TransactionAction::Put(Put {
            id: id.to_owned(),
            transaction: next,
        });
        let sent = self.propose(put)?;
        self.pending.insert(id.to_owned());
        Ok(sent)
    }

    pub(super) fn propose(&self, action: TransactionAction) -> Result<Sent, TransactionError> {
        let command = TransactionCommand::from(action);
        let bytes = u32::try_from(command.encoded_len() + COMMAND_COST).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.room).try_acquire_many_owned(bytes);
        let room = room.map_err(|_| TransactionError::Unavailable("too much is on its way"))?;
        let command = PartitionCommand::transaction(command);
        let ticket = self.partition.try_propose(&command, self.term)?;
        Ok(Sent {
            ticket,
            _room: room,
        })
    }

    /// A step of the id came back. After an unknown outcome nothing more is judged in the term:
    /// it may yet be applied after whatever would be.
    pub(super) fn arrived(&mut self, id: &str, outcome: &Result<(), TransactionError>) {
        self.pending.remove(id);
        self.lost |= *outcome == Err(TransactionError::Unknown);
    }

    /// True if nobody writes the id's markers yet.
    pub(super) fn begin_finish(&mut self, id: &str) -> bool {
        !self.lost && self.finishing.insert(id.to_owned())
    }

    /// Whether somebody writes the id's markers.
    pub(super) fn is_finishing(&self, id: &str) -> bool {
        self.finishing.contains(id)
    }

    pub(super) fn end_finish(&mut self, id: &str) {
        self.finishing.remove(id);
    }
}
