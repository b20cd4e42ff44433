//! Settings, each with a default that suits most.

use std::time::Duration;

use trilog_model::batch::Compression;

use crate::credentials::Credentials;

/// How a client finds its cluster and how patient it is.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `host:port` of the gRPC listeners of a few nodes; one that answers is enough.
    pub seeds: Vec<String>,
    /// How long one connection may take to come up.
    pub connect_timeout: Duration,
    /// How long an administrative call may take, all its attempts together.
    pub call_timeout: Duration,
    /// How long one node may take to answer a question that another could answer as well.
    pub attempt_timeout: Duration,
    /// After how long the partitions of a topic are asked for anew without a reason.
    pub metadata_max_age: Duration,
    pub backoff: BackoffConfig,
    /// Who the client is, where that is asked.
    pub credentials: Option<Credentials>,
    /// Makes jitter and the choice of partitions repeatable.
    pub seed: Option<u64>,
}

impl Default for ClientConfig {
    fn default() -> Self {
        Self {
            seeds: Vec::new(),
            connect_timeout: Duration::from_secs(3),
            call_timeout: Duration::from_secs(30),
            attempt_timeout: Duration::from_secs(5),
            metadata_max_age: Duration::from_mins(5),
            backoff: BackoffConfig::default(),
            credentials: None,
            seed: None,
        }
    }
}

/// Pauses between attempts: they double from the least to the most, each with jitter.
#[derive(Clone, Copy, Debug)]
pub struct BackoffConfig {
    pub min: Duration,
    pub max: Duration,
}

impl Default for BackoffConfig {
    fn default() -> Self {
        Self {
            min: Duration::from_millis(20),
            max: Duration::from_secs(1),
        }
    }
}

/// How a producer gathers records, and how long it tries.
#[derive(Clone, Copy, Debug)]
pub struct ProducerConfig {
    /// How long a batch that is not full waits for more records.
    pub linger: Duration,
    /// A batch is full at this size, before compression.
    pub batch_bytes: usize,
    /// The largest record, which then has a batch of its own.
    pub max_record_bytes: usize,
    /// Records accepted and not yet answered may fill this much; then `send` waits.
    pub memory_bytes: usize,
    pub compression: Compression,
    /// How long a node may take to answer one batch before it is asked again.
    pub request_timeout: Duration,
    /// How long a record may take in all, from `send` to its answer.
    pub delivery_timeout: Duration,
}

impl Default for ProducerConfig {
    fn default() -> Self {
        Self {
            linger: Duration::from_millis(5),
            batch_bytes: 128 * 1024,
            max_record_bytes: 1_000_000,
            memory_bytes: 32 * 1024 * 1024,
            compression: Compression::None,
            request_timeout: Duration::from_secs(15),
            delivery_timeout: Duration::from_mins(2),
        }
    }
}

/// How a consumer reads.
#[derive(Clone, Copy, Debug)]
pub struct ConsumerConfig {
    /// About how much one response holds.
    pub max_bytes: u32,
    /// How often a node with nothing new says that it is there; twice this and a bit of silence
    /// is a lost connection.
    pub max_wait: Duration,
    /// Whether to go on at the end with what comes later.
    pub follow: bool,
    /// What to do when the next record is gone.
    pub out_of_range: OutOfRange,
    /// The most that the records of one batch may fill when decompressed.
    pub max_batch_bytes: usize,
}

impl Default for ConsumerConfig {
    fn default() -> Self {
        Self {
            max_bytes: 1024 * 1024,
            max_wait: Duration::from_secs(5),
            follow: true,
            out_of_range: OutOfRange::Fail,
            max_batch_bytes: 64 * 1024 * 1024,
        }
    }
}

/// What a consumer does when the offset it needs is no longer, or not yet, in the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OutOfRange {
    /// Says so: records are missing.
    #[default]
    Fail,
    /// Goes on with the first record that is there.
    Earliest,
    /// Goes on with the next record to come.
    Latest,
}
