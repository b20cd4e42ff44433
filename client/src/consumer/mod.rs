//! The consumer: committed records of a topic as a stream.
//!
//! Each partition is read by a `PartitionReader`, which knows the exact next offset and picks up
//! there whatever happens to nodes and connections. The consumer merges them: in order within a
//! partition, as they come across partitions. What is read ahead is bounded by the connection's
//! flow control; a consumer that is not polled reads nothing.

mod reader;

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures::stream::{BoxStream, SelectAll};
use futures::{Stream, StreamExt, stream};
use trilog_model::Timestamp;
use trilog_wire::v1::{Unit, start};

use self::reader::{PartitionReader, Plan};
use crate::client::Client;
use crate::config::ConsumerConfig;
use crate::error::Error;
use crate::metadata::check_partition;

/// A record as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConsumedRecord {
    pub topic: Arc<str>,
    pub partition: u32,
    pub offset: u64,
    /// The producer's time, in milliseconds since the epoch.
    pub timestamp_ms: i64,
    /// When the leader appended the record's batch.
    pub append_time: Timestamp,
    pub key: Option<Bytes>,
    pub value: Option<Bytes>,
    /// In the producer's order; keys may repeat.
    pub headers: Vec<(Bytes, Option<Bytes>)>,
}

/// Where a consumer begins in each of its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// With the first record that is still there.
    Earliest,
    /// With the first record committed after the consumer was opened.
    Latest,
    Offset(u64),
    /// So many records before the end.
    Last(u64),
    /// With the first record whose own time, in milliseconds since the epoch, is this or later.
    RecordTime(i64),
    /// With the first record appended at this time or later.
    AppendTime(Timestamp),
}

/// Says what to consume; [`ConsumerBuilder::open`] begins.
#[derive(Clone, Debug)]
pub struct ConsumerBuilder {
    client: Client,
    topic: String,
    partitions: Option<Vec<u32>>,
    start: StartAt,
    config: ConsumerConfig,
}

impl ConsumerBuilder {
    pub(crate) fn new(client: Client, topic: String) -> Self {
        Self {
            client,
            topic,
            partitions: None,
            start: StartAt::Latest,
            config: ConsumerConfig::default(),
        }
    }

    /// Only these partitions.
    #[must_use]
    pub fn partitions(mut self, partitions: impl IntoIterator<Item = u32>) -> Self {
        self.partitions = Some(partitions.into_iter().collect());
        self
    }

    /// Where to begin; without this, [`StartAt::Latest`].
    #[must_use]
    pub fn start(mut self, start: StartAt) -> Self {
        self.start = start;
        self
    }

    #[must_use]
    pub fn config(mut self, config: ConsumerConfig) -> Self {
        self.config = config;
        self
    }

    /// Whether to go on at the end with what comes later; if not, the stream ends there.
    #[must_use]
    pub fn follow(mut self, follow: bool) -> Self {
        self.config.follow = follow;
        self
    }

    /// Finds the partitions and the places to begin, so that what is committed after this returns
    /// is behind [`StartAt::Latest`].
    pub async fn open(self) -> Result<Consumer, Error> {
        let view = self.client.topic(&self.topic).await?;
        let partitions = match self.partitions.clone() {
            Some(partitions) => partitions,
            None => (0..view.partition_count()).collect(),
        };
        let mut readers = SelectAll::new();
        let name: Arc<str> = self.topic.as_str().into();
        // Of its own: unread records must not hold up anybody else's answers.
        let connections = self.client.connections().fresh();
        for partition in partitions {
            check_partition(&self.topic, partition, &view)?;
            let at = self.starting_point(partition).await?;
            readers.push(records(PartitionReader::new(Plan {
                client: self.client.clone(),
                connections: connections.clone(),
                topic: Arc::clone(&name),
                topic_id: view.id.clone(),
                partition,
                start: at,
                config: self.config,
            })));
        }
        Ok(Consumer {
            readers,
            current: VecDeque::new(),
        })
    }

    /// The start as the wire has it. What is relative to the end is made absolute here and now.
    async fn starting_point(&self, partition: u32) -> Result<start::At, Error> {
        let back = match self.start {
            StartAt::Earliest => return Ok(start::At::Earliest(Unit {})),
            StartAt::Offset(offset) => return Ok(start::At::Offset(offset)),
            StartAt::RecordTime(millis) => return Ok(start::At::RecordTimeMs(millis)),
            StartAt::AppendTime(time) => return Ok(start::At::AppendTimeNs(time.nanos())),
            StartAt::Latest => 0,
            StartAt::Last(records) => records,
        };
        let admin = self.client.admin();
        let bounds = admin.resolve(&self.topic, partition, None).await?;
        let offset = bounds.high_watermark.saturating_sub(back);
        Ok(start::At::Offset(offset.max(bounds.log_start)))
    }
}

/// A stream of records. An error ends its partition, the others go on.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() -> Result<(), trilog_client::Error> {
/// # let cluster = trilog_client::testkit::FakeCluster::start(1, &[("orders", 3)]).await;
/// # let client = trilog_client::Client::connect(cluster.addresses()).await?;
/// # let producer = client.producer();
/// # producer.send("orders", trilog_client::Record::new("1")).await?.await?;
/// use futures::TryStreamExt;
/// use trilog_client::StartAt;
///
/// // Everything that is there now, from all partitions.
/// let orders = client.consumer("orders").start(StartAt::Earliest).follow(false);
/// let orders: Vec<_> = orders.open().await?.try_collect().await?;
/// assert_eq!(orders.len(), 1);
/// # Ok(())
/// # }
/// ```
pub struct Consumer {
    readers: SelectAll<BoxStream<'static, Result<VecDeque<ConsumedRecord>, Error>>>,
    /// Records of the batch read last.
    current: VecDeque<ConsumedRecord>,
}

impl fmt::Debug for Consumer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Consumer")
            .field("partitions_open", &self.readers.len())
            .field("records_at_hand", &self.current.len())
            .finish_non_exhaustive()
    }
}

impl Stream for Consumer {
    type Item = Result<ConsumedRecord, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(record) = self.current.pop_front() {
                return Poll::Ready(Some(Ok(record)));
            }
            match ready!(self.readers.poll_next_unpin(cx)) {
                Some(Ok(records)) => self.current = records,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}

/// A reader as a stream of batches' records, which ends with its first error.
fn records(reader: PartitionReader) -> BoxStream<'static, Result<VecDeque<ConsumedRecord>, Error>> {
    stream::unfold(Some(reader), |reader| async move {
        let mut reader = reader?;
        match reader.next().await {
            Ok(Some(records)) => Some((Ok(records), Some(reader))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
    .boxed()
}
