//! As many records as go through, from producers each of which has a few unanswered: small batches.
//!
//! Keys are random, so what a producer sends at once is spread over all partitions, and a batch holds
//! a record or two: what a service with many instances does to a cluster.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext};
use serde_json::{Value, json};

use crate::Outcome;
use crate::args::Args;
use crate::times::{Times, since};

const PATIENCE: Duration = Duration::from_secs(60);
/// How often all producers together look for answers: a look costs the machine that is measured.
/// The client's own way to wait does not end with an answer but with its time, the last millisecond
/// of which it spins: with fifty of them a third of the machine.
const LOOKS_PER_SECOND: u64 = 10_000;

/// What all producers share.
struct Shared {
    began: Instant,
    /// Microseconds between which records count: the moment of their acknowledgement.
    counted: (u64, u64),
    times: Times,
    failed: AtomicU64,
}

/// One producer's, whose thread alone serves its answers.
struct Answers {
    shared: Arc<Shared>,
    unanswered: AtomicU64,
}

impl ClientContext for Answers {}

impl ProducerContext for Answers {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: usize) {
        self.unanswered.fetch_sub(1, Ordering::Relaxed);
        if result.is_err() {
            self.shared.failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let now = since(self.shared.began);
        let (from, until) = self.shared.counted;
        if (from..until).contains(&now) {
            self.shared.times.note(now.saturating_sub(sent as u64));
        }
    }
}

/// `topic`, `producers`, `window` of each, `size` of a record, `keys`, `warm` and `seconds`.
pub(crate) fn run(args: &Args) -> Outcome<Value> {
    let (topic, producers) = (args.text("topic")?, args.get::<u64>("producers")?);
    let (warm, length) = (args.seconds("warm")?, args.seconds("seconds")?);
    let plan = Plan {
        topic: topic.to_owned(),
        window: args.get("window")?,
        size: args.get("size")?,
        keys: args.get("keys")?,
        rest: Duration::from_secs(producers) / u32::try_from(LOOKS_PER_SECOND)?,
    };
    let config = args.producer()?;
    let from = u64::try_from(warm.as_micros())?;
    let shared = Arc::new(Shared {
        began: Instant::now(),
        counted: (from, from + u64::try_from(length.as_micros())?),
        times: Times::new()?,
        failed: AtomicU64::new(0),
    });
    let sent = thread::scope(|scope| -> Outcome<u64> {
        let start = |seed| {
            let (plan, config, shared) = (&plan, &config, Arc::clone(&shared));
            scope.spawn(move || {
                plan.produce(config, seed, shared)
                    .map_err(|e| e.to_string())
            })
        };
        let running: Vec<_> = (1..=producers).map(start).collect();
        let mut sent = 0;
        for one in running {
            sent += one.join().map_err(|_| "a producer panicked")??;
        }
        Ok(sent)
    })?;
    let failed = shared.failed.load(Ordering::Relaxed);
    if failed > 0 {
        return Err(format!("{failed} of {sent} records failed").into());
    }
    Ok(json!({
        "sent": sent,
        "records_per_second": shared.times.count() as f64 / length.as_secs_f64(),
        "acknowledged": shared.times.shown(),
    }))
}

/// What each producer does.
struct Plan {
    topic: String,
    window: u64,
    size: usize,
    keys: u64,
    /// Between two looks for answers.
    rest: Duration,
}

impl Plan {
    /// How many records one producer sent.
    fn produce(&self, config: &ClientConfig, seed: u64, shared: Arc<Shared>) -> Outcome<u64> {
        let (_, until) = shared.counted;
        let began = shared.began;
        let unanswered = AtomicU64::new(0);
        let producer: BaseProducer<Answers> =
            config.create_with_context(Answers { shared, unanswered })?;
        let value = vec![b'x'; self.size];
        let (mut sent, mut random) = (0, seed);
        while since(began) < until {
            let open = producer.context().unanswered.load(Ordering::Relaxed);
            for _ in open..self.window {
                random = next(random);
                let key = format!("{:08}", random % self.keys);
                let now = usize::try_from(since(began))?;
                let record = BaseRecord::with_opaque_to(&self.topic, now);
                let record = record.key(&key).payload(&value);
                producer.send(record).map_err(|(error, _)| error)?;
                producer
                    .context()
                    .unanswered
                    .fetch_add(1, Ordering::Relaxed);
                sent += 1;
            }
            self.look(&producer);
        }
        let deadline = Instant::now() + PATIENCE;
        while producer.context().unanswered.load(Ordering::Relaxed) > 0 {
            if Instant::now() > deadline {
                return Err("not all records were answered".into());
            }
            self.look(&producer);
        }
        Ok(sent)
    }

    /// Rests, and takes all answers that came meanwhile.
    fn look(&self, producer: &BaseProducer<Answers>) {
        thread::sleep(self.rest.max(Duration::from_millis(1)));
        let unanswered = || producer.context().unanswered.load(Ordering::Relaxed);
        loop {
            let before = unanswered();
            producer.poll(Duration::ZERO);
            if unanswered() == before {
                return;
            }
        }
    }
}

/// Random enough for keys (xorshift); `state` is not zero.
fn next(mut state: u64) -> u64 {
    state ^= state << 13;
    state ^= state >> 7;
    state ^ (state << 17)
}
