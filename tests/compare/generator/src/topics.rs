//! Topics: made, deleted, looked at. All wait until it is done everywhere.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use serde_json::{Value, json};

use crate::Outcome;
use crate::args::Args;

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(50);

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Waits for what librdkafka's own threads complete.
fn wait<T>(future: impl Future<Output = T>) -> T {
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut future = pin!(future);
    loop {
        match future.as_mut().poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(done) => return done,
            Poll::Pending => thread::park(),
        }
    }
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .operation_timeout(Some(PATIENCE))
        .request_timeout(Some(PATIENCE))
}

/// The leaders of a topic's partitions, unless one has none, or not all replicas are in sync.
fn leaders(client: &BaseConsumer, topic: &str, replicas: usize) -> Outcome<Option<Vec<i32>>> {
    let metadata = client.fetch_metadata(Some(topic), PATIENCE)?;
    let Some(found) = metadata
        .topics()
        .first()
        .filter(|one| one.error().is_none())
    else {
        return Ok(None);
    };
    let mut leaders = Vec::new();
    for partition in found.partitions() {
        if partition.error().is_some() || partition.leader() < 0 || partition.isr().len() < replicas
        {
            return Ok(None);
        }
        leaders.push(partition.leader());
    }
    Ok(Some(leaders))
}

/// `topic`, `partitions`, `replication`; `config.NAME=VALUE` are settings of the topic.
pub(crate) fn create(args: &Args) -> Outcome<Value> {
    let (topic, replication) = (args.text("topic")?, args.or("replication", 3)?);
    let partitions = args.or("partitions", 1)?;
    let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replication));
    for (name, value) in args.under("config") {
        new = new.set(name, value);
    }
    let admin: AdminClient<DefaultClientContext> = args.client()?.create()?;
    let began = Instant::now();
    for outcome in wait(admin.create_topics(&[new], &options()))? {
        outcome.map_err(|(name, code)| format!("{name} is not created: {code}"))?;
    }
    let client: BaseConsumer = args.client()?.create()?;
    let whole = usize::try_from(replication)?;
    loop {
        let leaders = leaders(&client, topic, whole)?;
        if leaders.is_some_and(|leaders| leaders.len() == usize::try_from(partitions).unwrap_or(0))
        {
            return Ok(json!({ "seconds": began.elapsed().as_secs_f64() }));
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("{topic} is not whole after {PATIENCE:?}").into());
        }
        thread::sleep(LOOK_EVERY);
    }
}

/// `topic`.
pub(crate) fn delete(args: &Args) -> Outcome<Value> {
    let admin: AdminClient<DefaultClientContext> = args.client()?.create()?;
    for outcome in wait(admin.delete_topics(&[args.text("topic")?], &options()))? {
        outcome.map_err(|(name, code)| format!("{name} is not deleted: {code}"))?;
    }
    Ok(json!({}))
}

/// `topic`, `replicas` that have to be in sync: who leads partition 0, once all are.
pub(crate) fn leader(args: &Args) -> Outcome<Value> {
    let client: BaseConsumer = args.client()?.create()?;
    let (topic, replicas) = (args.text("topic")?, args.or("replicas", 3)?);
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(leader) =
            leaders(&client, topic, replicas)?.and_then(|all| all.first().copied())
        {
            return Ok(json!({ "leader": leader }));
        }
        thread::sleep(LOOK_EVERY);
    }
    Err(format!("{topic} is not whole after {PATIENCE:?}").into())
}

/// `topic`: the first offset of each partition that can still be read.
pub(crate) fn starts(args: &Args) -> Outcome<Value> {
    let client: BaseConsumer = args.client()?.create()?;
    let topic = args.text("topic")?;
    let metadata = client.fetch_metadata(Some(topic), PATIENCE)?;
    let found = metadata.topics().first().ok_or("no such topic")?;
    let mut starts = Vec::new();
    for partition in found.partitions() {
        starts.push(client.fetch_watermarks(topic, partition.id(), PATIENCE)?.0);
    }
    Ok(json!({ "starts": starts }))
}
