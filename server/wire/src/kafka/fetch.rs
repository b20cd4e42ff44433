//! Fetch, by hand: stored batches go out as slices of their own, with a fresh prefix each.

use bytes::{BufMut, Bytes};
use kafka_protocol::protocol::StrBytes;
use uuid::Uuid;

use super::answer::{Answer, Writer};
use super::cursor::{Cursor, Malformed};
use super::frame::Request;

/// Bytes of a batch that its checksum does not cover, and that are made for each reader.
pub const PREFIX_BYTES: usize = 21;
/// Elements that room is made for before they are read.
const ROOM: usize = 64;
/// The first version that names topics by their ids.
const IDS_SINCE: i16 = 13;

/// How a request names a topic, and so does its answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum TopicRef {
    Name(StrBytes),
    Id(Uuid),
}

impl TopicRef {
    /// The same, keeping no more than itself in memory: names are slices of their request.
    #[must_use]
    pub fn detached(&self) -> Self {
        match self {
            Self::Name(name) => Self::Name(StrBytes::from_string(name.to_string())),
            Self::Id(id) => Self::Id(*id),
        }
    }

    /// Bytes of its text.
    #[must_use]
    pub fn text_len(&self) -> usize {
        match self {
            Self::Name(name) => name.len(),
            Self::Id(_) => 0,
        }
    }

    fn decode(cursor: &mut Cursor<'_>, body: &Bytes, version: i16) -> Result<Self, Malformed> {
        if version >= IDS_SINCE {
            return cursor.uuid().map(Self::Id);
        }
        let name = cursor.text(body)?.ok_or(Malformed::Null)?;
        Ok(Self::Name(name))
    }

    fn write(&self, out: &mut Writer) {
        match self {
            Self::Name(name) => out.text(name),
            Self::Id(id) => out.fresh.put_slice(id.as_bytes()),
        }
    }
}

/// What is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    pub max_wait_ms: i32,
    pub min_bytes: i32,
    pub max_bytes: i32,
    pub isolation_level: i8,
    pub session_id: i32,
    pub session_epoch: i32,
    pub topics: Vec<FetchTopic>,
    /// What is to be left out of the session from now on.
    pub forgotten: Vec<ForgottenTopic>,
    /// Where the reader is.
    pub rack: Option<StrBytes>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchTopic {
    pub topic: TopicRef,
    pub partitions: Vec<FetchPartition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForgottenTopic {
    pub topic: TopicRef,
    pub partitions: Vec<i32>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchPartition {
    pub index: i32,
    /// The epoch the reader believes in; -1: none.
    pub leader_epoch: i32,
    pub offset: i64,
    /// The epoch of the last record the reader has; -1: none.
    pub last_epoch: i32,
    pub max_bytes: i32,
}

impl FetchRequest {
    /// Reads a body of version 4 to 17. Which replica asks is passed over: here, none does.
    pub fn decode(request: &Request) -> Result<Self, Malformed> {
        let (body, version) = (&request.body, request.version);
        let mut cursor = Cursor::new(body, request.is_flexible());
        if version < 15 {
            let _replica_id = cursor.i32()?;
        }
        let max_wait_ms = cursor.i32()?;
        let min_bytes = cursor.i32()?;
        let max_bytes = cursor.i32()?;
        let isolation_level = cursor.i8()?;
        let (session_id, session_epoch) = match version {
            7.. => (cursor.i32()?, cursor.i32()?),
            _ => (0, -1),
        };
        let count = cursor.count()?.ok_or(Malformed::Null)?;
        let mut topics = Vec::with_capacity(count.min(ROOM));
        for _ in 0..count {
            topics.push(FetchTopic::decode(&mut cursor, body, version)?);
        }
        let mut forgotten = Vec::new();
        if version >= 7 {
            for _ in 0..cursor.count()?.ok_or(Malformed::Null)? {
                forgotten.push(ForgottenTopic::decode(&mut cursor, body, version)?);
            }
        }
        let rack = match version {
            11.. => cursor.text(body)?.filter(|rack| !rack.is_empty()),
            _ => None,
        };
        cursor.tags()?;
        cursor.end()?;
        Ok(Self {
            max_wait_ms,
            min_bytes,
            max_bytes,
            isolation_level,
            session_id,
            session_epoch,
            topics,
            forgotten,
            rack,
        })
    }
}

impl FetchTopic {
    fn decode(cursor: &mut Cursor<'_>, body: &Bytes, version: i16) -> Result<Self, Malformed> {
        let topic = TopicRef::decode(cursor, body, version)?;
        let count = cursor.count()?.ok_or(Malformed::Null)?;
        let mut partitions = Vec::with_capacity(count.min(ROOM));
        for _ in 0..count {
            let index = cursor.i32()?;
            let leader_epoch = if version >= 9 { cursor.i32()? } else { -1 };
            let offset = cursor.i64()?;
            let last_epoch = if version >= 12 { cursor.i32()? } else { -1 };
            if version >= 5 {
                // A follower's log start; consumers have none.
                let _log_start = cursor.i64()?;
            }
            let max_bytes = cursor.i32()?;
            cursor.tags()?;
            partitions.push(FetchPartition {
                index,
                leader_epoch,
                offset,
                last_epoch,
                max_bytes,
            });
        }
        cursor.tags()?;
        Ok(Self { topic, partitions })
    }
}

impl ForgottenTopic {
    fn decode(cursor: &mut Cursor<'_>, body: &Bytes, version: i16) -> Result<Self, Malformed> {
        let topic = TopicRef::decode(cursor, body, version)?;
        let count = cursor.count()?.ok_or(Malformed::Null)?;
        let mut partitions = Vec::with_capacity(count.min(ROOM));
        for _ in 0..count {
            partitions.push(cursor.i32()?);
        }
        cursor.tags()?;
        Ok(Self { topic, partitions })
    }
}

/// One stored batch: its fresh prefix and the rest as it is stored.
#[derive(Clone, Debug)]
pub struct FetchedBatch {
    pub prefix: [u8; PREFIX_BYTES],
    pub body: Bytes,
}

impl FetchedBatch {
    #[must_use]
    pub fn len(&self) -> usize {
        PREFIX_BYTES + self.body.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }
}

/// Where a reader's log and this one part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochEnd {
    pub epoch: i32,
    pub end_offset: i64,
}

/// A transaction that was aborted: from its first offset to its marker the producer's records do
/// not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AbortedTransaction {
    pub producer_id: i64,
    pub first_offset: i64,
}

/// Who leads a partition, for a reader who asked somebody else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CurrentLeader {
    pub node: i32,
    pub epoch: i32,
}

/// What was read of one partition.
#[derive(Clone, Debug)]
pub struct FetchedPartition {
    pub topic: TopicRef,
    pub index: i32,
    pub error_code: i16,
    pub high_watermark: i64,
    pub last_stable_offset: i64,
    pub log_start: i64,
    pub diverging: Option<EpochEnd>,
    pub current_leader: Option<CurrentLeader>,
    /// For readers of what is committed: whose records among these do not count.
    pub aborted: Option<Vec<AbortedTransaction>>,
    /// The node to read from instead.
    pub preferred_replica: Option<i32>,
    pub batches: Vec<FetchedBatch>,
}

impl FetchedPartition {
    /// Nothing but an error.
    #[must_use]
    pub fn refused(topic: TopicRef, index: i32, error_code: i16) -> Self {
        Self {
            topic,
            index,
            error_code,
            high_watermark: -1,
            last_stable_offset: -1,
            log_start: -1,
            diverging: None,
            current_leader: None,
            aborted: None,
            preferred_replica: None,
            batches: Vec::new(),
        }
    }

    /// Bytes of records.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.batches.iter().map(FetchedBatch::len).sum()
    }
}

/// Where a node is reached that an answer names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEndpoint {
    pub node: i32,
    pub host: String,
    pub port: i32,
    pub rack: Option<String>,
}

/// All of an answer. An error of the whole request has no partitions.
#[derive(Clone, Debug, Default)]
pub struct Fetched {
    pub error_code: i16,
    /// Zero: the next fetch is a full one.
    pub session_id: i32,
    /// In order; neighbours of one topic are told together.
    pub partitions: Vec<FetchedPartition>,
    /// Of the leaders that partitions name.
    pub endpoints: Vec<NodeEndpoint>,
}

impl Fetched {
    /// An error of the whole request.
    #[must_use]
    pub fn refused(error_code: i16) -> Self {
        Self {
            error_code,
            ..Self::default()
        }
    }
}

/// The answer to a fetch request.
#[must_use]
pub fn fetch_answer(request: &Request, fetched: Fetched) -> Answer {
    let version = request.version;
    let mut out = Writer::new(request.api, version, request.correlation_id);
    // Who is throttled is told once the answer is ready: see `Answer::throttled`.
    out.fresh.put_i32(0);
    if version >= 7 {
        out.fresh.put_i16(fetched.error_code);
        out.fresh.put_i32(fetched.session_id);
    }
    let same_topic = |a: &FetchedPartition, b: &FetchedPartition| a.topic == b.topic;
    out.count(fetched.partitions.chunk_by(same_topic).count());
    let mut left = 0;
    let mut partitions = fetched.partitions.into_iter();
    while let Some(partition) = partitions.next() {
        if left == 0 {
            let rest = partitions.as_slice().iter();
            let more = rest.take_while(|next| next.topic == partition.topic);
            left = 1 + more.count();
            partition.topic.write(&mut out);
            out.count(left);
        }
        write_partition(&mut out, version, partition);
        left -= 1;
        if left == 0 {
            out.no_tags();
        }
    }
    if version >= 16 && !fetched.endpoints.is_empty() {
        out.fresh.put_u8(1);
        write_endpoints(&mut out, &fetched.endpoints);
    } else {
        out.no_tags();
    }
    out.finish()
}

fn write_partition(out: &mut Writer, version: i16, partition: FetchedPartition) {
    out.fresh.put_i32(partition.index);
    out.fresh.put_i16(partition.error_code);
    out.fresh.put_i64(partition.high_watermark);
    out.fresh.put_i64(partition.last_stable_offset);
    if version >= 5 {
        out.fresh.put_i64(partition.log_start);
    }
    match &partition.aborted {
        Some(aborted) => write_aborted(out, aborted),
        None => out.null_array(),
    }
    if version >= 11 {
        out.fresh.put_i32(partition.preferred_replica.unwrap_or(-1));
    }
    out.count(partition.bytes());
    for batch in partition.batches {
        out.fresh.put_slice(&batch.prefix);
        out.share(batch.body);
    }
    if version < 12 {
        return;
    }
    let tags = [
        partition.diverging.is_some(),
        partition.current_leader.is_some(),
    ];
    let tags = tags.into_iter().map(u8::from).sum();
    out.fresh.put_u8(tags);
    if let Some(diverging) = partition.diverging {
        // Number 0, 13 bytes.
        out.fresh.put_slice(&[0, 13]);
        out.fresh.put_i32(diverging.epoch);
        out.fresh.put_i64(diverging.end_offset);
        out.fresh.put_u8(0);
    }
    if let Some(leader) = partition.current_leader {
        // Number 1, 9 bytes.
        out.fresh.put_slice(&[1, 9]);
        out.fresh.put_i32(leader.node);
        out.fresh.put_i32(leader.epoch);
        out.fresh.put_u8(0);
    }
}

fn write_aborted(out: &mut Writer, aborted: &[AbortedTransaction]) {
    out.count(aborted.len());
    for one in aborted {
        out.fresh.put_i64(one.producer_id);
        out.fresh.put_i64(one.first_offset);
        out.no_tags();
    }
}

/// The tagged field 0 of answers that name leaders.
pub(super) fn write_endpoints(out: &mut Writer, endpoints: &[NodeEndpoint]) {
    let mut field = Writer::of_field();
    field.count(endpoints.len());
    for endpoint in endpoints {
        field.fresh.put_i32(endpoint.node);
        field.text(&endpoint.host);
        field.fresh.put_i32(endpoint.port);
        match &endpoint.rack {
            Some(rack) => field.text(rack),
            None => field.null_text(),
        }
        field.no_tags();
    }
    out.fresh.put_u8(0);
    out.varint(field.fresh.len());
    out.fresh.put_slice(&field.fresh);
}
