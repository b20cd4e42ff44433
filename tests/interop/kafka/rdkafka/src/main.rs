//! What rdkafka (librdkafka in Rust) sees of a cluster: records, codecs, groups, exactly once.
//! Usage: trilog-interop-rdkafka BOOTSTRAP PREFIX

use std::collections::BTreeMap;
use std::error::Error;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::message::{Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

const COUNT: usize = 120;
const CODECS: [&str; 5] = ["none", "gzip", "snappy", "lz4", "zstd"];
const PATIENCE: Duration = Duration::from_secs(60);

type Outcome<T = ()> = Result<T, Box<dyn Error>>;
/// How often each value was seen.
type Seen = BTreeMap<String, usize>;

fn main() -> Outcome {
    let mut args = std::env::args().skip(1);
    let (Some(bootstrap), Some(prefix)) = (args.next(), args.next()) else {
        return Err("usage: trilog-interop-rdkafka BOOTSTRAP PREFIX".into());
    };
    let cluster = Cluster { bootstrap };
    let topic = format!("{prefix}-rd");
    cluster.produce(&topic)?;
    cluster.transact(&topic)?;
    let wanted = COUNT + 1;
    for protocol in ["classic", "consumer"] {
        let group = format!("{topic}-{protocol}");
        cluster.in_two_parts(&group, protocol, &topic, wanted)?;
    }
    let sink = format!("{topic}-out");
    cluster.transform(&format!("{topic}-eos"), &topic, &sink, wanted)?;
    let reader = cluster.consumer(&format!("{sink}-group"), "classic", &sink)?;
    each_once(&cluster.read(&reader, wanted)?)
}

struct Cluster {
    bootstrap: String,
}

impl Cluster {
    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.bootstrap);
        config
    }

    /// Records with headers, and one with no value, in each codec.
    fn produce(&self, topic: &str) -> Outcome {
        for (turn, codec) in CODECS.iter().enumerate() {
            let mut config = self.config();
            config
                .set("compression.type", *codec)
                .set("enable.idempotence", "true");
            let producer: BaseProducer = config.create()?;
            for n in (0..COUNT).filter(|n| n % CODECS.len() == turn) {
                let value = format!("v{n}");
                let header = Header {
                    key: "n",
                    value: Some(&value),
                };
                let record = BaseRecord::to(topic).key("k").payload(&value);
                let record = record.headers(OwnedHeaders::new().insert(header));
                producer.send(record).map_err(|(error, _)| error)?;
            }
            producer.flush(PATIENCE)?;
        }
        Ok(())
    }

    fn transactional(&self, id: &str) -> Outcome<BaseProducer> {
        let producer: BaseProducer = self.config().set("transactional.id", id).create()?;
        producer.init_transactions(PATIENCE)?;
        Ok(producer)
    }

    /// One transaction that is aborted, one that is committed.
    fn transact(&self, topic: &str) -> Outcome {
        let producer = self.transactional(&format!("{topic}-id"))?;
        for value in ["aborted", "committed"] {
            producer.begin_transaction()?;
            let record = BaseRecord::<str, str>::to(topic).payload(value);
            producer.send(record).map_err(|(error, _)| error)?;
            producer.flush(PATIENCE)?;
            match value {
                "aborted" => producer.abort_transaction(PATIENCE)?,
                _ => producer.commit_transaction(PATIENCE)?,
            }
        }
        Ok(())
    }

    fn consumer(&self, group: &str, protocol: &str, topic: &str) -> Outcome<BaseConsumer> {
        let mut config = self.config();
        config
            .set("group.id", group)
            .set("group.protocol", protocol)
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "earliest")
            .set("enable.auto.commit", "false")
            // So that no record beyond those asked for counts as read.
            .set("enable.auto.offset.store", "false");
        let consumer: BaseConsumer = config.create()?;
        consumer.subscribe(&[topic])?;
        Ok(consumer)
    }

    /// So many records, stored as read.
    fn read(&self, consumer: &BaseConsumer, wanted: usize) -> Outcome<Seen> {
        let (mut seen, mut total) = (Seen::new(), 0);
        let deadline = Instant::now() + PATIENCE;
        while total < wanted {
            if Instant::now() > deadline {
                return Err(format!("only {total} of {wanted} records").into());
            }
            let Some(message) = consumer.poll(Duration::from_millis(200)) else {
                continue;
            };
            let message = message?;
            let value = String::from_utf8(message.payload().unwrap_or_default().to_vec())?;
            if let Some(headers) = message.headers() {
                expect(headers.get(0).value, Some(value.as_bytes()))?;
            }
            *seen.entry(value).or_default() += 1;
            total += 1;
            consumer.store_offset_from_message(&message)?;
        }
        Ok(seen)
    }

    /// One member reads and commits a part, its successor the rest.
    fn in_two_parts(&self, group: &str, protocol: &str, topic: &str, wanted: usize) -> Outcome {
        let mut seen = Seen::new();
        for part in [wanted / 3, wanted - wanted / 3] {
            let member = self.consumer(group, protocol, topic)?;
            for (value, times) in self.read(&member, part)? {
                *seen.entry(value).or_default() += times;
            }
            member.commit_consumer_state(CommitMode::Sync)?;
        }
        each_once(&seen)
    }

    /// Copies in transactions, of which every second is aborted and done again.
    fn transform(&self, group: &str, source: &str, sink: &str, wanted: usize) -> Outcome {
        let producer = self.transactional(group)?;
        let consumer = self.consumer(group, "classic", source)?;
        let (mut done, mut turn) = (0, 0);
        while done < wanted {
            let taken = self.read(&consumer, 10.min(wanted - done))?;
            turn += 1;
            producer.begin_transaction()?;
            for value in taken.keys() {
                let record = BaseRecord::<str, str>::to(sink).payload(value);
                producer.send(record).map_err(|(error, _)| error)?;
            }
            // Its reports are polled here only.
            producer.flush(PATIENCE)?;
            let metadata = consumer.group_metadata().ok_or("no member of a group")?;
            let read = stored(&consumer)?;
            producer.send_offsets_to_transaction(&read, &metadata, PATIENCE)?;
            if turn % 2 == 0 {
                producer.abort_transaction(PATIENCE)?;
                let back = consumer.committed_offsets(consumer.assignment()?, PATIENCE)?;
                consumer.seek_partitions(back, PATIENCE)?;
            } else {
                producer.commit_transaction(PATIENCE)?;
                done += taken.values().sum::<usize>();
            }
        }
        Ok(())
    }
}

/// The places behind what was read; a partition of which nothing was has none.
fn stored(consumer: &BaseConsumer) -> Outcome<TopicPartitionList> {
    let mut found = TopicPartitionList::new();
    for place in consumer.position()?.elements() {
        if let Offset::Offset(_) = place.offset() {
            found.add_partition_offset(place.topic(), place.partition(), place.offset())?;
        }
    }
    Ok(found)
}

fn each_once(seen: &Seen) -> Outcome {
    let mut wanted: Seen = (0..COUNT).map(|n| (format!("v{n}"), 1)).collect();
    wanted.insert("committed".to_owned(), 1);
    expect(seen, &wanted)
}

fn expect<T: PartialEq + std::fmt::Debug>(found: T, wanted: T) -> Outcome {
    if found == wanted {
        return Ok(());
    }
    Err(format!("{found:?} is not {wanted:?}").into())
}
