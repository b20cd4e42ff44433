//! Records by schedule, and how late they come: the open loop.
//!
//! Each record is due at a moment that follows from the rate alone. Latency counts from that moment,
//! to the acknowledgement and to the consumer. So a cluster that stands still for a second shows it
//! in all the records that were due in that second, and not in one that happened to wait
//! (no "coordinated omission"). What was due in the same millisecond is sent together.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use rdkafka::{Offset, TopicPartitionList};
use serde_json::{Value, json};

use crate::Outcome;
use crate::args::Args;
use crate::times::{Times, since};

const TICK_MICROS: f64 = 1_000.0;
/// How long the last records may take to come.
const PATIENCE: Duration = Duration::from_secs(60);
const SIZE_OF_TIME: usize = 8;

/// What is measured, from the moment at which warming up is over.
struct Seen {
    began: Instant,
    warm: u64,
    acknowledged: Times,
    delivered: Times,
    /// How far the generator itself was behind its schedule.
    late: Times,
    failed: AtomicU64,
    received: AtomicU64,
}

impl Seen {
    fn note(&self, times: &Times, due: u64) {
        if due >= self.warm {
            times.note(since(self.began).saturating_sub(due));
        }
    }
}

struct Acknowledged(Arc<Seen>);

impl ClientContext for Acknowledged {}

impl ProducerContext for Acknowledged {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, due: usize) {
        match result {
            Ok(_) => self.0.note(&self.0.acknowledged, due as u64),
            Err(_) => _ = self.0.failed.fetch_add(1, Ordering::Relaxed),
        }
    }
}

/// `topic`, `rate` of records a second, `size` of each, `warm` and `seconds`.
pub(crate) fn run(args: &Args) -> Outcome<Value> {
    let (topic, rate) = (args.text("topic")?, args.get::<f64>("rate")?);
    let (size, warm) = (args.get::<usize>("size")?, args.seconds("warm")?);
    let length = warm + args.seconds("seconds")?;
    let consumer = at_the_end(args, topic)?;
    let seen = Arc::new(Seen {
        began: Instant::now(),
        warm: u64::try_from(warm.as_micros())?,
        acknowledged: Times::new()?,
        delivered: Times::new()?,
        late: Times::new()?,
        failed: AtomicU64::new(0),
        received: AtomicU64::new(0),
    });
    let context = Acknowledged(Arc::clone(&seen));
    let producer: ThreadedProducer<Acknowledged> = args.producer()?.create_with_context(context)?;
    let over = AtomicBool::new(false);
    let (sent, stayed) = thread::scope(|scope| -> Outcome<_> {
        let reader = scope.spawn(|| listen(&consumer, &seen, &over));
        let sent = send(&producer, topic, rate, size, length, &seen);
        let flushed = producer.flush(PATIENCE);
        let until = Instant::now() + PATIENCE;
        while sent
            .as_ref()
            .is_ok_and(|sent| seen.received.load(Ordering::Relaxed) < *sent)
            && Instant::now() < until
            && !reader.is_finished()
        {
            thread::sleep(Duration::from_millis(10));
        }
        over.store(true, Ordering::Relaxed);
        let read = reader.join().map_err(|_| "the consumer panicked")?;
        read?;
        flushed?;
        let sent = sent?;
        Ok((
            sent,
            sent.saturating_sub(seen.received.load(Ordering::Relaxed)),
        ))
    })?;
    let failed = seen.failed.load(Ordering::Relaxed);
    if failed > 0 || stayed > 0 {
        return Err(format!("of {sent} records {failed} failed, {stayed} did not come").into());
    }
    Ok(json!({
        "rate": rate,
        "sent": sent,
        "measured": seen.delivered.count(),
        "acknowledged": seen.acknowledged.shown(),
        "delivered": seen.delivered.shown(),
        "late": seen.late.shown(),
    }))
}

/// One that reads all partitions, from what comes next.
fn at_the_end(args: &Args, topic: &str) -> Outcome<BaseConsumer> {
    let mut config = args.client()?;
    config
        .set("group.id", "none")
        .set("enable.auto.commit", "false");
    for (name, value) in args.under("consumer") {
        config.set(name, value);
    }
    let consumer: BaseConsumer = config.create()?;
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let found = metadata.topics().first().ok_or("no such topic")?;
    let mut places = TopicPartitionList::new();
    for partition in found.partitions() {
        let (_, end) = consumer.fetch_watermarks(topic, partition.id(), PATIENCE)?;
        places.add_partition_offset(topic, partition.id(), Offset::Offset(end))?;
    }
    consumer.assign(&places)?;
    Ok(consumer)
}

fn listen(consumer: &BaseConsumer, seen: &Seen, over: &AtomicBool) -> Result<(), String> {
    while !over.load(Ordering::Relaxed) {
        let Some(message) = consumer.poll(Duration::from_millis(100)) else {
            continue;
        };
        let message = message.map_err(|error| error.to_string())?;
        let stamp = message
            .payload()
            .and_then(|value| value.first_chunk::<SIZE_OF_TIME>());
        let due = stamp.ok_or("a record that is not of this run")?;
        seen.note(&seen.delivered, u64::from_le_bytes(*due));
        seen.received.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

/// How many records were sent until it was time to stop.
fn send(
    producer: &ThreadedProducer<Acknowledged>,
    topic: &str,
    rate: f64,
    size: usize,
    length: Duration,
    seen: &Seen,
) -> Outcome<u64> {
    let mut value = vec![b'x'; size.max(SIZE_OF_TIME)];
    let tick = TICK_MICROS.max(1e6 / rate);
    let end = u64::try_from(length.as_micros())?;
    let mut sent = 0_u64;
    for turn in 1_u64.. {
        let due = (turn as f64 * tick) as u64;
        if due > end {
            break;
        }
        if let Some(ahead) = due.checked_sub(since(seen.began)) {
            thread::sleep(Duration::from_micros(ahead));
        }
        seen.note(&seen.late, due);
        let of_schedule = (due as f64 * rate / 1e6) as u64;
        value[..SIZE_OF_TIME].copy_from_slice(&due.to_le_bytes());
        while sent < of_schedule {
            enqueue(producer, topic, &value, due)?;
            sent += 1;
        }
    }
    Ok(sent)
}

/// Waits where librdkafka's queue is full; that, too, is counted from when the record was due.
fn enqueue(
    producer: &ThreadedProducer<Acknowledged>,
    topic: &str,
    value: &[u8],
    due: u64,
) -> Outcome {
    let mut record = BaseRecord::<(), [u8], usize>::with_opaque_to(topic, usize::try_from(due)?);
    record = record.payload(value);
    while let Err((error, back)) = producer.send(record) {
        if error != KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) {
            return Err(error.into());
        }
        record = back;
        thread::sleep(Duration::from_micros(200));
    }
    Ok(())
}
