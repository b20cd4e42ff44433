//! The producer: records in, their offsets out, each record once and in order.
//!
//! ```text
//!  send ─► Buffer (per partition) ─► Lane task ─► Link task (per node) ─► the node
//!             batches fill up          keeps order, tries again     one stream
//! ```
//!
//! A batch is stamped with the producer's id, epoch and sequence when its lane takes it. The
//! server appends what it has not seen and recognises what it has, so a lane may send a batch as
//! often as it takes; `flights` knows what may be sent when.

mod buffer;
mod flights;
mod lane;
mod link;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use trilog_model::batch::{BatchBuilder, Header};

use self::buffer::{Buffer, Encoding};
pub use self::buffer::{Delivery, RecordPlace};
use self::lane::{Identity, LaneContext};
use self::link::Links;
use crate::backoff::Chance;
use crate::client::Client;
use crate::config::ProducerConfig;
use crate::error::Error;
use crate::metadata::{TopicView, check_partition};
use trilog_model::partitioner::partition_of_key;

/// A record to be written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub key: Option<Bytes>,
    /// `None` is a tombstone: compaction forgets the key.
    pub value: Option<Bytes>,
    /// Keys may repeat; the order is kept.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
    /// Milliseconds since the epoch; `None` is now.
    pub timestamp_ms: Option<i64>,
    /// `None` is chosen by the key, or without one such that batches fill up.
    pub partition: Option<u32>,
}

impl Record {
    #[must_use]
    pub fn new(value: impl Into<Bytes>) -> Self {
        Self {
            value: Some(value.into()),
            ..Self::default()
        }
    }

    #[must_use]
    pub fn with_key(mut self, key: impl Into<Bytes>) -> Self {
        self.key = Some(key.into());
        self
    }

    #[must_use]
    pub fn with_header(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.headers.push((key.into(), Some(value.into())));
        self
    }

    #[must_use]
    pub fn at_partition(mut self, partition: u32) -> Self {
        self.partition = Some(partition);
        self
    }

    #[must_use]
    pub fn at_time(mut self, timestamp_ms: i64) -> Self {
        self.timestamp_ms = Some(timestamp_ms);
        self
    }
}

/// Writes records to topics; clones write through the same batches.
///
/// Records to one partition are appended once and in the order of `send`, through lost
/// connections and changes of leader. Records accepted for a topic that is then deleted fail,
/// even if another topic has its name by then; what is sent later goes there. When the last clone is dropped, records not yet under way
/// are given up; [`Producer::close`] waits for them instead.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), trilog_client::Error> {
/// # let cluster = trilog_client::testkit::FakeCluster::start(1, &[("orders", 1)]).await;
/// # let client = trilog_client::Client::connect(cluster.addresses()).await?;
/// use trilog_client::Record;
///
/// let producer = client.producer();
/// let mut deliveries = Vec::new();
/// for number in 0..100 {
///     // Waits only while the producer's memory is full.
///     deliveries.push(producer.send("orders", Record::new(format!("order {number}"))).await?);
/// }
/// producer.flush().await;
/// for (number, delivery) in (0..).zip(deliveries) {
///     assert_eq!(delivery.await?.offset, number);
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Producer {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    client: Client,
    config: ProducerConfig,
    links: Arc<Links>,
    memory: Arc<Semaphore>,
    identity: Arc<OnceCell<Identity>>,
    topics: Mutex<BTreeMap<String, TopicLanes>>,
}

/// The lanes to one topic's partitions.
#[derive(Debug, Default)]
struct TopicLanes {
    /// Which topic: one that was deleted and created anew under its name is another.
    id: Bytes,
    lanes: BTreeMap<u32, LaneHandle>,
    sticky: Sticky,
    /// Lanes to earlier topics of the name, until the last record in them has met its fate.
    former: Vec<LaneHandle>,
}

#[derive(Debug)]
struct LaneHandle {
    buffer: Arc<Buffer>,
    task: JoinHandle<()>,
}

/// Where records without a key go: to one partition until a batch is filled, then to another.
#[derive(Debug, Default)]
struct Sticky {
    partition: Option<u32>,
    bytes: usize,
}

impl Producer {
    pub(crate) fn new(client: Client, config: ProducerConfig) -> Self {
        let permits = config.memory_bytes.min(Semaphore::MAX_PERMITS);
        let inner = Inner {
            links: Arc::new(Links::new(client.connections().clone())),
            memory: Arc::new(Semaphore::new(permits)),
            identity: Arc::default(),
            topics: Mutex::default(),
            client,
            config,
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Accepts a record for a topic. Returns once there is memory for it, which fixes its place
    /// in the order; the delivery then tells where it came to lie.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped before it returns, the record was not accepted.
    pub async fn send(&self, topic: &str, record: Record) -> Result<Delivery, Error> {
        let inner = &*self.inner;
        let view = match inner.client.known_topic(topic) {
            Some(view) => view,
            None => inner.client.topic(topic).await?,
        };
        let headers: Vec<Header<'_>> = record
            .headers
            .iter()
            .map(|(key, value)| Header {
                key,
                value: value.as_deref(),
            })
            .collect();
        let (key, value) = (record.key.as_deref(), record.value.as_deref());
        let bound = BatchBuilder::record_len_bound(key, value, &headers);
        let memory = inner.reserve(bound).await?;
        let encoding = Encoding {
            timestamp: record.timestamp_ms.unwrap_or_else(now_millis),
            key,
            value,
            headers: &headers,
            bound,
        };
        let mut topics = inner.topics.lock().unwrap_or_else(PoisonError::into_inner);
        if !topics.contains_key(topic) {
            topics.insert(topic.to_owned(), TopicLanes::default());
        }
        let Some(lanes) = topics.get_mut(topic) else {
            return Err(Error::Closed);
        };
        lanes.be_of(&view.id);
        let partition = match record.partition {
            Some(partition) => partition,
            None => lanes.choose(&view, key, bound, inner),
        };
        check_partition(topic, partition, &view)?;
        let buffer = lanes.buffer(inner, topic, partition);
        buffer.push(&encoding, memory)
    }

    /// Sends everything accepted so far without waiting for batches to fill, and waits until the
    /// fate of each record is known; the deliveries tell it.
    pub async fn flush(&self) {
        let fates: Vec<_> = {
            let topics = self.inner.lanes();
            let buffers = topics.iter().flat_map(|buffer| buffer.flush());
            buffers.collect()
        };
        for fate in fates {
            let _ = fate.await;
        }
    }

    /// Accepts no more records, from any clone, and waits until the fate of each is known.
    pub async fn close(self) {
        for buffer in self.inner.lanes() {
            buffer.close();
        }
        self.flush().await;
    }
}

impl Inner {
    async fn reserve(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Error> {
        let limit = self.config.max_record_bytes.min(self.config.memory_bytes);
        let too_large = Error::TooLarge { size: bytes, limit };
        let permits = u32::try_from(bytes).map_err(|_| too_large.clone())?;
        if bytes > limit {
            return Err(too_large);
        }
        let memory = Arc::clone(&self.memory).acquire_many_owned(permits).await;
        memory.map_err(|_| Error::Closed)
    }

    fn lanes(&self) -> Vec<Arc<Buffer>> {
        let topics = self.topics.lock().unwrap_or_else(PoisonError::into_inner);
        let lanes = topics.values().flat_map(TopicLanes::all);
        lanes.map(|lane| Arc::clone(&lane.buffer)).collect()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        let topics = self
            .topics
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for lane in topics.values().flat_map(TopicLanes::all) {
            lane.task.abort();
        }
    }
}

impl TopicLanes {
    fn all(&self) -> impl Iterator<Item = &LaneHandle> {
        self.lanes.values().chain(&self.former)
    }

    /// Makes these the lanes of the topic `id`. What an earlier topic's lanes have accepted stays
    /// theirs, and never crosses over.
    fn be_of(&mut self, id: &Bytes) {
        if self.id == *id {
            return;
        }
        self.id.clone_from(id);
        self.former.retain(|lane| !lane.task.is_finished());
        let before = std::mem::take(&mut self.lanes);
        self.former
            .extend(before.into_values().inspect(|lane| lane.buffer.close()));
    }

    fn choose(&mut self, view: &TopicView, key: Option<&[u8]>, bytes: usize, inner: &Inner) -> u32 {
        let partitions = view.partition_count();
        match key {
            _ if partitions == 0 => 0,
            Some(key) => partition_of_key(key, partitions),
            None => self.sticky.choose(
                partitions,
                bytes,
                inner.config.batch_bytes,
                inner.client.chance(),
            ),
        }
    }

    fn buffer(&mut self, inner: &Inner, topic: &str, partition: u32) -> Arc<Buffer> {
        let topic_id = &self.id;
        let lane = self.lanes.entry(partition).or_insert_with(|| {
            let buffer = Arc::new(Buffer::new(inner.config));
            let ctx = LaneContext {
                client: inner.client.clone(),
                links: Arc::clone(&inner.links),
                config: inner.config,
                topic: topic.to_owned(),
                topic_id: topic_id.clone(),
                partition,
                identity: Arc::clone(&inner.identity),
            };
            let task = tokio::spawn(lane::run(ctx, Arc::clone(&buffer)));
            LaneHandle { buffer, task }
        });
        Arc::clone(&lane.buffer)
    }
}

impl Sticky {
    fn choose(
        &mut self,
        partitions: u32,
        bytes: usize,
        batch_bytes: usize,
        chance: &Chance,
    ) -> u32 {
        let stays = self
            .partition
            .filter(|partition| *partition < partitions && self.bytes < batch_bytes);
        let partition = stays.unwrap_or_else(|| {
            self.bytes = 0;
            self.another(partitions, chance)
        });
        self.partition = Some(partition);
        self.bytes += bytes;
        partition
    }

    /// Any partition but the present one, if there is another.
    fn another(&self, partitions: u32, chance: &Chance) -> u32 {
        let present = self.partition.filter(|present| *present < partitions);
        let choices = partitions - u32::from(present.is_some() && partitions > 1);
        let drawn = chance.below(usize::try_from(choices).unwrap_or(1).max(1));
        let drawn = u32::try_from(drawn).unwrap_or(0);
        match present {
            Some(present) if partitions > 1 && drawn >= present => drawn + 1,
            _ => drawn,
        }
    }
}

/// The wall clock, which stamps records that bear no time of their own.
#[expect(
    clippy::disallowed_methods,
    reason = "a client lives outside the simulation; this is the one place it reads the clock"
)]
fn now_millis() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0, |since| {
        i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_without_a_key_move_on_when_a_batch_is_full() {
        let chance = Chance::new(Some(3));
        let mut sticky = Sticky::default();
        let mut seen = [0; 4];
        let mut previous = None;
        for _ in 0..400 {
            let first = sticky.choose(4, 60, 100, &chance);
            assert_ne!(Some(first), previous, "moves on");
            assert_eq!(sticky.choose(4, 60, 100, &chance), first, "stays");
            seen[usize::try_from(first).unwrap()] += 1;
            previous = Some(first);
        }
        assert!(seen.iter().all(|count| *count > 50), "{seen:?}");
    }

    #[test]
    fn one_partition_is_all_there_is() {
        let chance = Chance::new(Some(3));
        let mut sticky = Sticky::default();
        assert!((0..10).all(|_| sticky.choose(1, 60, 100, &chance) == 0));
    }
}
