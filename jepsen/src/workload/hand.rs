//! What a worker has in its hand: a client of one kind or another, with a place in each key.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::Stage;
use super::kafka_hand::KafkaHand;
use super::kcat_hand::KcatHand;
use super::native_hand::NativeHand;
use super::stock_hand::StockHand;
use crate::history::{Key, Mop, Record};
use crate::kafka::Fault;

/// Kinds of clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Kafka's protocol, all that is sent in transactions.
    Transactional,
    /// Kafka's protocol, an idempotent producer; reads from leaders.
    Idempotent,
    /// The same, reading from the replica in its rack.
    Near,
    /// This project's own client.
    Native,
    /// librdkafka by its Python binding, an idempotent producer; only where there is one.
    Stock,
    /// kcat, a process for each thing that it does; only where there is one.
    Kcat,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::Transactional,
        Self::Idempotent,
        Self::Near,
        Self::Native,
        Self::Stock,
        Self::Kcat,
    ];

    /// Its place among all.
    pub(super) fn place(self) -> usize {
        match self {
            Self::Transactional => 0,
            Self::Idempotent => 1,
            Self::Near => 2,
            Self::Native => 3,
            Self::Stock => 4,
            Self::Kcat => 5,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Transactional => "kafka-transactional",
            Self::Idempotent => "kafka-idempotent",
            Self::Near => "kafka-near",
            Self::Native => "native",
            Self::Stock => "kafka-stock",
            Self::Kcat => "kcat",
        }
    }

    pub fn can_subscribe(self) -> bool {
        !matches!(self, Self::Native | Self::Stock | Self::Kcat)
    }
}

/// What a poll came to.
#[derive(Debug, Clone, Default)]
pub(super) struct Polled {
    pub runs: Vec<(Key, Vec<Record>)>,
    /// What was committed with it: the group, and offsets.
    pub offsets: BTreeMap<Key, u64>,
    /// Keys that came or went.
    pub rebalanced: Vec<Key>,
    /// Why it came to nothing although something was read, or may have: what was read is wrong, or
    /// nobody knows whether it was committed.
    pub fault: Option<Fault>,
}

/// What became of a transaction.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub mops: Vec<Mop>,
    pub offsets: BTreeMap<Key, u64>,
    pub rebalanced: Vec<Key>,
    pub fault: Option<Fault>,
}

/// Where a client is in the keys that it reads: the next offset of each.
pub(super) type Positions = BTreeMap<Key, u64>;

/// Has these keys read from now on; those that were go on where they were, unless it seeks.
pub(super) fn place(positions: &mut Positions, keys: &[Key], seek_to_beginning: bool) {
    let before = std::mem::take(positions);
    let at = |key: &Key| match before.get(key) {
        Some(offset) if !seek_to_beginning => *offset,
        _ => 0,
    };
    *positions = keys.iter().map(|key| (*key, at(key))).collect();
}

/// Whether there is something yet to be read before these ends.
fn is_behind(positions: &Positions, ends: &BTreeMap<Key, u64>) -> bool {
    let at = |key: &Key| positions.get(key).copied().unwrap_or(0);
    ends.iter().any(|(key, end)| at(key) < *end)
}

#[derive(Debug)]
pub(super) enum Hand {
    Kafka(Box<KafkaHand>),
    Native(Box<NativeHand>),
    Stock(Box<StockHand>),
    Kcat(Box<KcatHand>),
}

impl Hand {
    pub(super) fn new(kind: Kind, name: &str, nth: u32, stage: &Arc<Stage>) -> Self {
        match kind {
            Kind::Native => Self::Native(Box::new(NativeHand::new(stage))),
            Kind::Stock => Self::Stock(Box::new(StockHand::new(stage))),
            Kind::Kcat => Self::Kcat(Box::new(KcatHand::new(stage))),
            _ => Self::Kafka(Box::new(KafkaHand::new(kind, name, nth, stage))),
        }
    }

    pub(super) async fn send(&mut self, key: Key, value: u64) -> Result<u64, Fault> {
        match self {
            Self::Kafka(hand) => hand.send(key, value).await,
            Self::Native(hand) => hand.send(key, value).await,
            Self::Stock(hand) => hand.send(key, value).await,
            Self::Kcat(hand) => hand.send(key, value).await,
        }
    }

    /// Does all of it, or nothing; with `abort` nothing, on purpose. Only for kinds that have
    /// transactions.
    pub(super) async fn transact(&mut self, mops: &[Mop], abort: bool) -> Outcome {
        match self {
            Self::Kafka(hand) => hand.transact(mops, abort).await,
            Self::Native(_) | Self::Stock(_) | Self::Kcat(_) => Outcome {
                mops: mops.to_vec(),
                fault: Some(Fault::Not("this client has no transactions".to_owned())),
                ..Outcome::default()
            },
        }
    }

    pub(super) async fn poll(&mut self) -> Result<Polled, Fault> {
        match self {
            Self::Kafka(hand) => hand.poll().await,
            Self::Native(hand) => hand.poll().await,
            Self::Stock(hand) => hand.poll().await,
            Self::Kcat(hand) => hand.poll().await,
        }
    }

    /// Reads these keys from now on; those it read go on where they were, unless it seeks.
    pub(super) async fn assign(&mut self, keys: &[Key], seek_to_beginning: bool) {
        match self {
            Self::Kafka(hand) => hand.assign(keys, seek_to_beginning).await,
            Self::Native(hand) => hand.assign(keys, seek_to_beginning),
            Self::Stock(hand) => hand.assign(keys, seek_to_beginning),
            Self::Kcat(hand) => hand.assign(keys, seek_to_beginning),
        }
    }

    pub(super) fn subscribe(&mut self) {
        if let Self::Kafka(hand) = self {
            hand.subscribe();
        }
    }

    /// Reads everything that there is now; each lot is given to `take`. An error if the end was
    /// not reached in time.
    pub(super) async fn read_all(
        &mut self,
        ends: &BTreeMap<Key, u64>,
        deadline: Instant,
    ) -> Result<Option<Polled>, Fault> {
        let behind = match self {
            Self::Native(hand) => return hand.next_of_all(deadline).await,
            Self::Kafka(hand) => is_behind(&hand.positions, ends),
            Self::Stock(hand) => is_behind(&hand.positions, ends),
            Self::Kcat(hand) => is_behind(&hand.positions, ends),
        };
        if behind {
            return self.poll().await.map(Some);
        }
        Ok(None)
    }

    /// What nodes said of high watermarks meanwhile.
    pub(super) fn take_seen(&mut self) -> Vec<crate::kafka::Seen> {
        match self {
            Self::Kafka(hand) => std::mem::take(&mut hand.client.seen),
            Self::Native(_) | Self::Stock(_) | Self::Kcat(_) => Vec::new(),
        }
    }
}
