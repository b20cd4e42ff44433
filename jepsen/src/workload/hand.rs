//! What a worker has in its hand: a client of one kind or another, with a place in each key.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::Stage;
use super::kafka_hand::KafkaHand;
use super::native_hand::NativeHand;
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
}

impl Kind {
    pub const ALL: [Self; 4] = [
        Self::Transactional,
        Self::Idempotent,
        Self::Near,
        Self::Native,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Transactional => "kafka-transactional",
            Self::Idempotent => "kafka-idempotent",
            Self::Near => "kafka-near",
            Self::Native => "native",
        }
    }

    pub fn can_subscribe(self) -> bool {
        self != Self::Native
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
}

impl Hand {
    pub(super) fn new(kind: Kind, name: &str, nth: u32, stage: &Arc<Stage>) -> Self {
        match kind {
            Kind::Native => Self::Native(Box::new(NativeHand::new(stage))),
            _ => Self::Kafka(Box::new(KafkaHand::new(kind, name, nth, stage))),
        }
    }

    pub(super) async fn send(&mut self, key: Key, value: u64) -> Result<u64, Fault> {
        match self {
            Self::Kafka(hand) => hand.send(key, value).await,
            Self::Native(hand) => hand.send(key, value).await,
        }
    }

    /// Does all of it, or nothing. Only for kinds that have transactions.
    pub(super) async fn transact(&mut self, mops: &[Mop]) -> Outcome {
        match self {
            Self::Kafka(hand) => hand.transact(mops).await,
            Self::Native(_) => Outcome {
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
        }
    }

    /// Reads these keys from now on; those it read go on where they were, unless it seeks.
    pub(super) async fn assign(&mut self, keys: &[Key], seek_to_beginning: bool) {
        match self {
            Self::Kafka(hand) => hand.assign(keys, seek_to_beginning).await,
            Self::Native(hand) => hand.assign(keys, seek_to_beginning),
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
        }
    }

    /// What nodes said of high watermarks meanwhile.
    pub(super) fn take_seen(&mut self) -> Vec<crate::kafka::Seen> {
        match self {
            Self::Kafka(hand) => std::mem::take(&mut hand.client.seen),
            Self::Native(_) => Vec::new(),
        }
    }
}
