//! The log that generated histories are about: keys with records, transactions, a group.

use std::collections::BTreeMap;

use crate::history::Record;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Open,
    Committed,
    Aborted,
}

#[derive(Debug, Clone, Copy)]
enum Slot {
    Record { value: u64, txn: Option<usize> },
    Marker,
}

#[derive(Debug, Default)]
struct Partition {
    slots: Vec<Slot>,
    term: u64,
    /// Transactions without a marker here yet, and where they begin.
    open: BTreeMap<usize, usize>,
}

#[derive(Debug)]
struct Txn {
    fate: Fate,
    keys: Vec<usize>,
}

/// What a cluster that keeps its promises would hold.
#[derive(Debug)]
pub(super) struct World {
    partitions: Vec<Partition>,
    txns: Vec<Txn>,
    /// Decided, with the keys whose markers are still to be written.
    unmarked: Vec<(usize, usize)>,
    /// Where the group goes on, by key.
    pub(super) committed: Vec<Option<u64>>,
}

impl World {
    pub(super) fn new(keys: usize) -> Self {
        let mut partitions = Vec::new();
        partitions.resize_with(keys, Partition::default);
        Self {
            partitions,
            txns: Vec::new(),
            unmarked: Vec::new(),
            committed: vec![None; keys],
        }
    }

    pub(super) fn keys(&self) -> usize {
        self.partitions.len()
    }

    pub(super) fn end(&self, key: usize) -> u64 {
        self.partitions[key].slots.len() as u64
    }

    pub(super) fn term(&self, key: usize) -> u64 {
        self.partitions[key].term
    }

    pub(super) fn elect(&mut self, key: usize) -> u64 {
        self.partitions[key].term += 1;
        self.partitions[key].term
    }

    pub(super) fn append(&mut self, key: usize, value: u64, txn: Option<usize>) -> u64 {
        let partition = &mut self.partitions[key];
        let offset = partition.slots.len();
        partition.slots.push(Slot::Record { value, txn });
        if let Some(txn) = txn {
            partition.open.entry(txn).or_insert(offset);
            let keys = &mut self.txns[txn].keys;
            if !keys.contains(&key) {
                keys.push(key);
            }
        }
        offset as u64
    }

    pub(super) fn begin(&mut self) -> usize {
        self.txns.push(Txn {
            fate: Fate::Open,
            keys: Vec::new(),
        });
        self.txns.len() - 1
    }

    pub(super) fn decide(&mut self, txn: usize, commit: bool) {
        self.txns[txn].fate = if commit {
            Fate::Committed
        } else {
            Fate::Aborted
        };
        let keys = std::mem::take(&mut self.txns[txn].keys);
        self.unmarked.extend(keys.into_iter().map(|key| (txn, key)));
    }

    /// How many markers are still to be written.
    pub(super) fn unmarked(&self) -> usize {
        self.unmarked.len()
    }

    pub(super) fn mark(&mut self, nth: usize) {
        let (txn, key) = self.unmarked.swap_remove(nth);
        let partition = &mut self.partitions[key];
        partition.slots.push(Slot::Marker);
        partition.open.remove(&txn);
    }

    /// A producer's next transaction begins when its last one is marked everywhere.
    pub(super) fn mark_all(&mut self, txn: usize) {
        while let Some(nth) = self.unmarked.iter().position(|(of, _)| *of == txn) {
            self.mark(nth);
        }
    }

    /// Up to `limit` committed records from a position, which moves on.
    pub(super) fn read(&self, key: usize, position: &mut u64, limit: usize) -> Vec<Record> {
        let partition = &self.partitions[key];
        let stable = partition.open.values().min().copied();
        let stable = stable.unwrap_or(partition.slots.len());
        let mut records = Vec::new();
        let from = usize::try_from(*position).unwrap_or(usize::MAX).min(stable);
        for (nth, slot) in partition.slots[from..stable].iter().enumerate() {
            if records.len() == limit {
                break;
            }
            let offset = (from + nth) as u64;
            *position = offset + 1;
            if let Slot::Record { value, txn } = *slot
                && txn.is_none_or(|txn| self.txns[txn].fate == Fate::Committed)
            {
                records.push(Record { offset, value });
            }
        }
        records
    }
}
