//! What a worker has in its hand: a client of one kind or another, with a place in each key.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::Stage;
use super::kafka_hand::KafkaHand;
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
}

impl Kind {
    pub const ALL: [Self; 5] = [
        Self::Transactional,
        Self::Idempotent,
        Self::Near,
        Self::Native,
        Self::Stock,
    ];

    /// Its place among all.
    pub(super) fn place(self) -> usize {
        match self {
            Self::Transactional => 0,
            Self::Idempotent => 1,
            Self::Near => 2,
            Self::Native => 3,
            Self::Stock => 4,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Transactional => "kafka-transactional",
            Self::Idempotent => "kafka-idempotent",
            Self::Near => "kafka-near",
            Self::Native => "native",
            Self::Stock => "kafka-stock",
        }
    }

    pub fn can_subscribe(self) -> bool {
        !matches!(self, Self::Native | Self::Stock)
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
}

/// What became of a transaction.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub mops: Vec<Mop>,
    pub offsets: BTreeMap<Key, u64>,
    pub rebalanced: Vec<Key>,
    pub fault: Option<Fault>,
}

#[derive(Debug)]
pub(super) enum Hand {
    Kafka(Box<KafkaHand>),
    Native(Box<NativeHand>),
    Stock(Box<StockHand>),
}

impl Hand {
    pub(super) fn new(kind: Kind, name: &str, nth: u32, stage: &Arc<Stage>) -> Self {
        match kind {
            Kind::Native => Self::Native(Box::new(NativeHand::new(stage))),
            Kind::Stock => Self::Stock(Box::new(StockHand::new(stage))),
            _ => Self::Kafka(Box::new(KafkaHand::new(kind, name, nth, stage))),
        }
    }

    pub(super) async fn send(&mut self, key: Key, value: u64) -> Result<u64, Fault> {
        match self {
            Self::Kafka(hand) => hand.send(key, value).await,
            Self::Native(hand) => hand.send(key, value).await,
            Self::Stock(hand) => hand.send(key, value).await,
        }
    }

    /// Does all of it, or nothing; with `abort` nothing, on purpose. Only for kinds that have
    /// transactions.
    pub(super) async fn transact(&mut self, mops: &[Mop], abort: bool) -> Outcome {
        match self {
            Self::Kafka(hand) => hand.transact(mops, abort).await,
            Self::Native(_) | Self::Stock(_) => Outcome {
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
        }
    }

    /// Reads these keys from now on; those it read go on where they were, unless it seeks.
    pub(super) async fn assign(&mut self, keys: &[Key], seek_to_beginning: bool) {
        match self {
            Self::Kafka(hand) => hand.assign(keys, seek_to_beginning).await,
            Self::Native(hand) => hand.assign(keys, seek_to_beginning),
            Self::Stock(hand) => hand.assign(keys, seek_to_beginning),
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
        match self {
            Self::Kafka(hand) => {
                if hand.is_behind(ends) {
                    return hand.poll().await.map(Some);
                }
                Ok(None)
            }
            Self::Native(hand) => hand.next_of_all(deadline).await,
            Self::Stock(hand) => {
                if hand.is_behind(ends) {
                    return hand.poll().await.map(Some);
                }
                Ok(None)
            }
        }
    }

    /// What nodes said of high watermarks meanwhile.
    pub(super) fn take_seen(&mut self) -> Vec<crate::kafka::Seen> {
        match self {
            Self::Kafka(hand) => std::mem::take(&mut hand.client.seen),
            Self::Native(_) | Self::Stock(_) => Vec::new(),
        }
    }
}
