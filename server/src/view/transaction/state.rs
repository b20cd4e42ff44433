//! The fold: what is known of each transactional id, and which of them somebody has to look after.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use prost::Message;
use trilog_model::Timestamp;

use super::command::{Put, StoredTransaction, StoredTransactions};
use super::{
    At, MAX_IDS, MAX_NAME, MAX_STATE_BYTES, Phase, Transaction, TransactionAction,
    TransactionCommand,
};

/// What an id costs beside its bytes.
const OVERHEAD: usize = 128;

/// A transactional id and when things happened to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    pub transaction: Transaction,
    /// When its present transaction, or the last one, began.
    pub started: Timestamp,
    pub updated: Timestamp,
}

impl Known {
    /// When its time is over, if it has one open.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        let nanos = self.transaction.timeout_ms.saturating_mul(1_000_000);
        let deadline = self.started.nanos().saturating_add(nanos);
        (self.transaction.phase() == Phase::Ongoing).then_some(Timestamp(deadline))
    }
}

/// The transactions of one partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Transactions {
    by_id: BTreeMap<String, Known>,
    deadlines: BTreeSet<(Timestamp, String)>,
    ending: BTreeSet<String>,
    /// By phase.
    counts: BTreeMap<Phase, usize>,
    /// How many of those that are open began when.
    open_since: BTreeMap<Timestamp, usize>,
    bytes: usize,
}

/// The bytes are no state of transactions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("stored transactions are unreadable")]
pub struct Unreadable;

impl Transactions {
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Known> {
        self.by_id.get(id)
    }

    /// By id.
    pub fn iter(&self) -> impl Iterator<Item = (&String, &Known)> {
        self.by_id.iter()
    }

    /// By id, those behind one.
    pub fn iter_after(&self, id: &str) -> impl Iterator<Item = (&String, &Known)> {
        let behind = (Bound::Excluded(id), Bound::Unbounded);
        self.by_id.range::<str, _>(behind)
    }

    /// Those whose time is over.
    pub fn overdue(&self, now: Timestamp) -> impl Iterator<Item = &String> {
        let over = self.deadlines.iter();
        let over = over.take_while(move |(deadline, _)| *deadline <= now);
        over.map(|(_, id)| id)
    }

    /// How many there are in each phase that has any.
    #[must_use]
    pub fn counts(&self) -> &BTreeMap<Phase, usize> {
        &self.counts
    }

    /// When the oldest of those that are open began.
    #[must_use]
    pub fn oldest_open(&self) -> Option<Timestamp> {
        self.open_since.keys().next().copied()
    }

    /// Those that are decided, and not yet written everywhere.
    pub fn ending(&self) -> impl Iterator<Item = &String> {
        self.ending.iter()
    }

    /// Whether there is room for what an id is to be. What ends a transaction always has, though it
    /// may be a few bytes longer: nothing would ever become smaller otherwise.
    #[must_use]
    pub fn has_room(&self, id: &str, transaction: &Transaction) -> bool {
        let before = self.get(id).map_or(0, |known| cost(id, &known.transaction));
        let after = cost(id, transaction);
        let ends = match transaction.phase() {
            Phase::Empty | Phase::Ongoing => false,
            Phase::PrepareCommit
            | Phase::PrepareAbort
            | Phase::CompleteCommit
            | Phase::CompleteAbort => true,
        };
        let known = before > 0;
        if known && (ends || after <= before) {
            return true;
        }
        id.len() <= MAX_NAME
            && (known || self.by_id.len() < MAX_IDS)
            && self.bytes - before + after <= MAX_STATE_BYTES
    }

    /// Folds one committed command. False if this build does not know it.
    #[must_use]
    pub fn replay(&mut self, command: &TransactionCommand, at: At) -> bool {
        match &command.action {
            Some(TransactionAction::Put(put)) => {
                if Phase::try_from(put.transaction.phase).is_err() {
                    return false;
                }
                self.put(put, at);
            }
            Some(TransactionAction::Forget(forget)) => {
                let over = |known: &Known| {
                    known.updated <= Timestamp(forget.before) && is_idle(&known.transaction)
                };
                if self.get(&forget.id).is_some_and(over) {
                    self.take(&forget.id);
                }
            }
            None => return false,
        }
        true
    }

    /// Those that could be forgotten: nothing has happened to them since `before`.
    pub fn expired(&self, before: Timestamp) -> impl Iterator<Item = &String> {
        let all = self.by_id.iter();
        let over =
            all.filter(move |(_, known)| known.updated <= before && is_idle(&known.transaction));
        over.map(|(id, _)| id)
    }

    fn put(&mut self, put: &Put, at: At) {
        let before = self.take(&put.id);
        let ongoing = |known: &Known| known.transaction.phase() != Phase::Ongoing;
        let begins =
            put.transaction.phase() == Phase::Ongoing && before.as_ref().is_none_or(ongoing);
        let started = match before {
            Some(before) if !begins => before.started,
            Some(_) | None => at.time,
        };
        let known = Known {
            transaction: put.transaction.clone(),
            started,
            updated: at.time,
        };
        self.insert(put.id.clone(), known);
    }

    fn take(&mut self, id: &str) -> Option<Known> {
        let known = self.by_id.remove(id)?;
        if let Some(deadline) = known.deadline() {
            self.deadlines.remove(&(deadline, id.to_owned()));
        }
        self.ending.remove(id);
        uncount(&mut self.counts, &known.transaction.phase());
        if known.transaction.phase() == Phase::Ongoing {
            uncount(&mut self.open_since, &known.started);
        }
        self.bytes -= cost(id, &known.transaction);
        Some(known)
    }

    fn insert(&mut self, id: String, known: Known) {
        if let Some(deadline) = known.deadline() {
            self.deadlines.insert((deadline, id.clone()));
        }
        if known.transaction.phase().is_ending() {
            self.ending.insert(id.clone());
        }
        *self.counts.entry(known.transaction.phase()).or_default() += 1;
        if known.transaction.phase() == Phase::Ongoing {
            *self.open_since.entry(known.started).or_default() += 1;
        }
        self.bytes += cost(&id, &known.transaction);
        self.by_id.insert(id, known);
    }

    /// The whole state; what comes of it is equal where states are.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let all = self.by_id.iter().map(|(id, known)| StoredTransaction {
            id: id.clone(),
            transaction: known.transaction.clone(),
            started: known.started.nanos(),
            updated: known.updated.nanos(),
        });
        StoredTransactions { all: all.collect() }.encode_to_vec()
    }

    /// Reads what [`Transactions::snapshot`] wrote.
    pub fn restore(bytes: &[u8]) -> Result<Self, Unreadable> {
        let stored = StoredTransactions::decode(bytes).map_err(|_| Unreadable)?;
        let mut restored = Self::default();
        for one in stored.all {
            let known = Known {
                transaction: one.transaction,
                started: Timestamp(one.started),
                updated: Timestamp(one.updated),
            };
            restored.insert(one.id, known);
        }
        Ok(restored)
    }
}

fn uncount<K: Ord>(counts: &mut BTreeMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

/// Whether nothing is open or to be ended.
fn is_idle(transaction: &Transaction) -> bool {
    match transaction.phase() {
        Phase::Empty | Phase::CompleteCommit | Phase::CompleteAbort => true,
        Phase::Ongoing | Phase::PrepareCommit | Phase::PrepareAbort => false,
    }
}

fn cost(id: &str, transaction: &Transaction) -> usize {
    OVERHEAD + id.len() + transaction.encoded_len()
}
