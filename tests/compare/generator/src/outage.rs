//! What the death of a leader costs: from the signal to the first record, sent after it, that is
//! acknowledged. The generator itself sends the signal, so that one clock measures both ends.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::ClientContext;
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{BaseRecord, ProducerContext, ThreadedProducer};
use serde_json::{Value, json};

use crate::Outcome;
use crate::args::Args;
use crate::times::since;

const EVERY: Duration = Duration::from_millis(10);
/// How long one may have to wait for a new leader.
const PATIENCE: Duration = Duration::from_secs(120);
const NEVER: u64 = u64::MAX;

struct Seen {
    began: Instant,
    acknowledged: AtomicU64,
    /// Records sent from here on are those that count.
    killed: AtomicU64,
    /// When the first of them was acknowledged.
    back: AtomicU64,
    failed: AtomicU64,
}

struct Answers(Arc<Seen>);

impl ClientContext for Answers {}

impl ProducerContext for Answers {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, sent: usize) {
        if result.is_err() {
            self.0.failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.0.acknowledged.fetch_add(1, Ordering::Relaxed);
        if sent as u64 >= self.0.killed.load(Ordering::Acquire) {
            self.0
                .back
                .fetch_min(since(self.0.began), Ordering::Release);
        }
    }
}

/// `topic` of one partition, `pid` of the process that leads it, `warm` before it is killed.
pub(crate) fn run(args: &Args) -> Outcome<Value> {
    let (topic, pid) = (args.text("topic")?, args.get::<u32>("pid")?);
    let warm = args.seconds("warm")?;
    let seen = Arc::new(Seen {
        began: Instant::now(),
        acknowledged: AtomicU64::new(0),
        killed: AtomicU64::new(NEVER),
        back: AtomicU64::new(NEVER),
        failed: AtomicU64::new(0),
    });
    let context = Answers(Arc::clone(&seen));
    let producer: ThreadedProducer<Answers> = args.producer()?.create_with_context(context)?;
    let mut killed = None;
    while seen.back.load(Ordering::Acquire) == NEVER {
        if since(seen.began) > u64::try_from((warm + PATIENCE).as_micros())? {
            return Err("nobody took over".into());
        }
        let answered = seen.acknowledged.load(Ordering::Relaxed) > 0;
        if killed.is_none() && answered && seen.began.elapsed() > warm {
            killed = Some(kill(pid, &seen)?);
        }
        let now = usize::try_from(since(seen.began))?;
        let record = BaseRecord::<(), str, usize>::with_opaque_to(topic, now);
        // A full queue is one more sign of nobody answering.
        let _ = producer.send(record.payload("x"));
        thread::sleep(EVERY);
    }
    let killed = killed.ok_or("nobody was killed")?;
    let took = seen.back.load(Ordering::Acquire).saturating_sub(killed);
    let failed = seen.failed.load(Ordering::Relaxed);
    Ok(json!({ "milliseconds": took as f64 / 1e3, "failed": failed }))
}

/// When the process was killed.
fn kill(pid: u32, seen: &Seen) -> Outcome<u64> {
    let now = since(seen.began);
    let status = Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()?;
    if !status.success() {
        return Err(format!("process {pid} cannot be killed: {status}").into());
    }
    // What was sent while it died does not count.
    seen.killed.store(since(seen.began) + 1, Ordering::Release);
    Ok(now)
}
