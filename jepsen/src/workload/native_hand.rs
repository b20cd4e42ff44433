//! A worker's client of the native API: its batching producer, and its stream of records.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{SelectAll, StreamExt};
use tokio::time::{Instant, timeout_at};
use trilog_client::{
    BackoffConfig, Client, ClientConfig, Consumer, ConsumerConfig, Error, Producer, ProducerConfig,
    Record as Outgoing, StartAt,
};

use super::hand::{self, Polled, Positions};
use super::{Stage, TOPIC};
use crate::history::{Key, Record};
use crate::kafka::{Fault, payload, value_of};

/// How long a poll waits for something to come.
const WAIT: Duration = Duration::from_millis(50);
/// How many records a poll returns at most.
const RECORDS: usize = 400;
/// What a client may take beyond its own time-out before it is given up.
const GRACE: Duration = Duration::from_secs(20);

pub(super) struct NativeHand {
    stage: Arc<Stage>,
    client: Option<(Client, Producer)>,
    positions: Positions,
    /// The stream that is open, and whether it ends where the log does.
    stream: Option<(SelectAll<Consumer>, bool)>,
}

impl fmt::Debug for NativeHand {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NativeHand")
            .field("positions", &self.positions)
            .finish_non_exhaustive()
    }
}

fn fault(error: &Error) -> Fault {
    if error.may_have_happened() {
        Fault::Unknown(error.to_string())
    } else {
        Fault::Not(error.to_string())
    }
}

/// What was read, up to what is not what was written: in its place stands a value that nobody sends.
/// The error itself if it is about something else.
fn damaged(error: &Error, mut runs: BTreeMap<Key, Vec<Record>>) -> Result<Polled, Fault> {
    let fault = fault(error).certain();
    let Error::Damaged {
        partition, offset, ..
    } = error
    else {
        return Err(fault);
    };
    let run = runs.entry(Key(*partition)).or_default();
    // A batch may begin before what is read of it.
    let after = run.last().map_or(0, |last| last.offset + 1);
    run.push(Record {
        offset: after.max(*offset),
        value: value_of(None),
    });
    Ok(Polled {
        runs: runs.into_iter().collect(),
        fault: Some(fault),
        ..Polled::default()
    })
}

impl NativeHand {
    pub(super) fn new(stage: &Arc<Stage>) -> Self {
        Self {
            stage: Arc::clone(stage),
            client: None,
            positions: Positions::new(),
            stream: None,
        }
    }

    async fn client(&mut self) -> Result<(Client, Producer), Fault> {
        if let Some((client, producer)) = &self.client {
            return Ok((client.clone(), producer.clone()));
        }
        let patience = self.stage.patience;
        let config = ClientConfig {
            seeds: self.stage.seeds.clone(),
            connect_timeout: Duration::from_secs(1),
            call_timeout: patience,
            attempt_timeout: Duration::from_secs(2),
            backoff: BackoffConfig {
                min: Duration::from_millis(10),
                max: Duration::from_millis(250),
            },
            ..ClientConfig::default()
        };
        let client = Client::connect_with(config).await;
        let client = client.map_err(|error| fault(&error).certain())?;
        let producer = client.producer_with(ProducerConfig {
            linger: Duration::ZERO,
            request_timeout: Duration::from_secs(3),
            delivery_timeout: patience,
            ..ProducerConfig::default()
        });
        self.client = Some((client.clone(), producer.clone()));
        Ok((client, producer))
    }

    pub(super) async fn send(&mut self, key: Key, value: u64) -> Result<u64, Fault> {
        let (_, producer) = self.client().await?;
        let record = Outgoing::new(payload(value)).at_partition(key.0);
        let sending = async { producer.send(TOPIC, record).await?.await };
        let deadline = Instant::now() + self.stage.patience + GRACE;
        match timeout_at(deadline, sending).await {
            Ok(Ok(place)) => Ok(place.offset),
            Ok(Err(error)) => Err(fault(&error)),
            Err(_) => Err(Fault::Unknown("the producer says nothing".to_owned())),
        }
    }

    pub(super) fn assign(&mut self, keys: &[Key], seek_to_beginning: bool) {
        hand::place(&mut self.positions, keys, seek_to_beginning);
        self.stream = None;
    }

    async fn open(&mut self, follow: bool) -> Result<SelectAll<Consumer>, Fault> {
        let (client, _) = self.client().await?;
        let mut all = SelectAll::new();
        for (key, offset) in &self.positions {
            let start = match offset {
                0 => StartAt::Earliest,
                offset => StartAt::Offset(*offset),
            };
            let consumer = client
                .consumer(TOPIC)
                .partitions([key.0])
                .start(start)
                .config(ConsumerConfig {
                    max_bytes: 128 << 10,
                    max_wait: Duration::from_secs(1),
                    follow,
                    ..ConsumerConfig::default()
                });
            all.push(
                consumer
                    .open()
                    .await
                    .map_err(|error| fault(&error).certain())?,
            );
        }
        Ok(all)
    }

    pub(super) async fn poll(&mut self) -> Result<Polled, Fault> {
        let until = Instant::now() + WAIT;
        Ok(self.take(true, until).await?.unwrap_or_default())
    }

    /// Some more of what there is, from where it was to the end; nothing at the end.
    pub(super) async fn next_of_all(&mut self, deadline: Instant) -> Result<Option<Polled>, Fault> {
        let polled = self.take(false, deadline).await?;
        match polled {
            Some(polled) if polled.runs.is_empty() && Instant::now() >= deadline => {
                Err(Fault::Not("the end is not reached in time".to_owned()))
            }
            polled => Ok(polled),
        }
    }

    /// What comes until then; nothing if the stream is at its end.
    async fn take(&mut self, follow: bool, until: Instant) -> Result<Option<Polled>, Fault> {
        let mut stream = match self.stream.take() {
            Some((stream, follows)) if follows == follow => stream,
            _ => self.open(follow).await?,
        };
        let mut runs: BTreeMap<Key, Vec<Record>> = BTreeMap::new();
        let mut count = 0;
        let mut ended = false;
        while count < RECORDS {
            let next = match timeout_at(until, stream.next()).await {
                Ok(Some(next)) => next,
                Ok(None) => {
                    ended = true;
                    break;
                }
                Err(_) => break,
            };
            // Opened anew the next time, from where it was.
            let record = match next {
                Ok(record) => record,
                Err(error) => return damaged(&error, runs).map(Some),
            };
            let value = value_of(record.value.as_deref());
            let record_of = Record {
                offset: record.offset,
                value,
            };
            runs.entry(Key(record.partition))
                .or_default()
                .push(record_of);
            count += 1;
        }
        for (key, records) in &runs {
            if let Some(last) = records.last() {
                self.positions.insert(*key, last.offset + 1);
            }
        }
        if ended && runs.is_empty() && !follow {
            return Ok(None);
        }
        if !ended {
            self.stream = Some((stream, follow));
        }
        Ok(Some(Polled {
            runs: runs.into_iter().collect(),
            ..Polled::default()
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_served_and_nobody_wrote_is_read_and_all_other_errors_are_not() {
        let read = |offset, value| Record { offset, value };
        let runs = BTreeMap::from([(Key(1), vec![read(4, 7)]), (Key(2), vec![read(9, 8)])]);
        let error = |offset| Error::Damaged {
            topic: TOPIC.to_owned(),
            partition: 1,
            offset,
            reason: "the record batch's checksum does not match its bytes".to_owned(),
        };
        for (offset, at) in [(5, 5), (8, 8), (3, 5)] {
            let polled = damaged(&error(offset), runs.clone()).unwrap();
            let nobodys = read(at, value_of(None));
            assert_eq!(polled.runs[0], (Key(1), vec![read(4, 7), nobodys]));
            assert_eq!(polled.runs[1], (Key(2), vec![read(9, 8)]));
            assert!(matches!(polled.fault, Some(Fault::Not(_))), "{polled:?}");
        }
        let other = Error::Unreachable("nobody there".to_owned());
        assert!(matches!(damaged(&other, runs), Err(Fault::Not(_))));
    }
}
