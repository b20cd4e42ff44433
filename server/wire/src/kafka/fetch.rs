//! Fetch, by hand: stored batches go out as slices of their own, with a fresh prefix each.

use bytes::{BufMut, Bytes};
use kafka_protocol::protocol::StrBytes;

use super::answer::{Answer, Writer};
use super::cursor::{Cursor, Malformed};
use super::frame::Request;

/// Bytes of a batch that its checksum does not cover, and that are made for each reader.
pub const PREFIX_BYTES: usize = 21;
/// Elements that room is made for before they are read.
const ROOM: usize = 64;

/// What is to be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchRequest {
    /// -1 for a consumer.
    pub replica_id: i32,
    pub max_wait_ms: i32,
    pub min_bytes: i32,
    pub max_bytes: i32,
    pub isolation_level: i8,
    pub session_id: i32,
    pub session_epoch: i32,
    pub topics: Vec<FetchTopic>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchTopic {
    pub name: StrBytes,
    pub partitions: Vec<FetchPartition>,
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
    /// Reads a body of version 4 to 12.
    pub fn decode(request: &Request) -> Result<Self, Malformed> {
        let (body, version) = (&request.body, request.version);
        let mut cursor = Cursor::new(body, request.is_flexible());
        let replica_id = cursor.i32()?;
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
        if version >= 7 {
            pass_forgotten(&mut cursor)?;
        }
        if version >= 11 {
            let _rack = cursor.raw_text()?;
        }
        cursor.tags()?;
        cursor.end()?;
        Ok(Self {
            replica_id,
            max_wait_ms,
            min_bytes,
            max_bytes,
            isolation_level,
            session_id,
            session_epoch,
            topics,
        })
    }
}

impl FetchTopic {
    fn decode(cursor: &mut Cursor<'_>, body: &Bytes, version: i16) -> Result<Self, Malformed> {
        let name = cursor.text(body)?.ok_or(Malformed::Null)?;
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
        Ok(Self { name, partitions })
    }
}

/// Partitions to leave out of a session: there are no sessions, so every request names all.
fn pass_forgotten(cursor: &mut Cursor<'_>) -> Result<(), Malformed> {
    for _ in 0..cursor.count()?.ok_or(Malformed::Null)? {
        let _name = cursor.raw_text()?;
        let count = cursor.count()?.ok_or(Malformed::Null)?;
        cursor.take(count.checked_mul(4).ok_or(Malformed::Length)?)?;
        cursor.tags()?;
    }
    Ok(())
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

/// What was read of one topic.
#[derive(Clone, Debug)]
pub struct FetchedTopic {
    pub name: StrBytes,
    pub partitions: Vec<FetchedPartition>,
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

/// What was read of one partition.
#[derive(Clone, Debug)]
pub struct FetchedPartition {
    pub index: i32,
    pub error_code: i16,
    pub high_watermark: i64,
    pub last_stable_offset: i64,
    pub log_start: i64,
    pub diverging: Option<EpochEnd>,
    /// For readers of what is committed: whose records among these do not count.
    pub aborted: Option<Vec<AbortedTransaction>>,
    pub batches: Vec<FetchedBatch>,
}

impl FetchedPartition {
    /// Nothing but an error.
    #[must_use]
    pub fn refused(index: i32, error_code: i16) -> Self {
        Self {
            index,
            error_code,
            high_watermark: -1,
            last_stable_offset: -1,
            log_start: -1,
            diverging: None,
            aborted: None,
            batches: Vec::new(),
        }
    }

    /// Bytes of records.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.batches.iter().map(FetchedBatch::len).sum()
    }
}

/// The answer to a fetch request. An error of the whole request has no topics.
#[must_use]
pub fn fetch_answer(request: &Request, error_code: i16, topics: Vec<FetchedTopic>) -> Answer {
    let version = request.version;
    let mut out = Writer::new(request.api, version, request.correlation_id);
    // Nobody is throttled.
    out.fresh.put_i32(0);
    if version >= 7 {
        out.fresh.put_i16(error_code);
        // No session was made: the next fetch is a full one, too.
        out.fresh.put_i32(0);
    }
    out.count(topics.len());
    for topic in topics {
        out.text(&topic.name);
        out.count(topic.partitions.len());
        for partition in topic.partitions {
            write_partition(&mut out, version, partition);
        }
        out.no_tags();
    }
    out.no_tags();
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
        // The leader is the one to read from.
        out.fresh.put_i32(-1);
    }
    out.count(partition.bytes());
    for batch in partition.batches {
        out.fresh.put_slice(&batch.prefix);
        out.share(batch.body);
    }
    match partition.diverging {
        Some(diverging) if version >= 12 => write_diverging(out, diverging),
        _ => out.no_tags(),
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

/// One tagged field, number 0: a struct of 13 bytes.
fn write_diverging(out: &mut Writer, diverging: EpochEnd) {
    out.fresh.put_slice(&[1, 0, 13]);
    out.fresh.put_i32(diverging.epoch);
    out.fresh.put_i64(diverging.end_offset);
    out.fresh.put_u8(0);
}
