//! Produce, by hand: the record batches of a request are slices of the bytes it came in.

use bytes::{BufMut, Bytes};
use kafka_protocol::protocol::StrBytes;

use super::answer::{Answer, Writer};
use super::cursor::{Cursor, Malformed};
use super::fetch::{CurrentLeader, NodeEndpoint, write_endpoints};
use super::frame::Request;

/// Elements that room is made for before they are read.
const ROOM: usize = 64;
/// The first version that says who leads (KIP-951).
pub const PRODUCE_HINTS_SINCE: i16 = 10;

/// What is to be appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProduceRequest {
    pub transactional_id: Option<StrBytes>,
    /// 0: no answer; 1 and -1: after the commit.
    pub acks: i16,
    pub timeout_ms: i32,
    pub topics: Vec<ProduceTopic>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProduceTopic {
    pub name: StrBytes,
    pub partitions: Vec<ProducePartition>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducePartition {
    pub index: i32,
    pub records: Option<Bytes>,
}

impl ProduceRequest {
    /// Reads a body of version 3 to 11.
    pub fn decode(request: &Request) -> Result<Self, Malformed> {
        let body = &request.body;
        let mut cursor = Cursor::new(body, request.is_flexible());
        let transactional_id = cursor.text(body)?;
        let acks = cursor.i16()?;
        let timeout_ms = cursor.i32()?;
        let count = cursor.count()?.ok_or(Malformed::Null)?;
        let mut topics = Vec::with_capacity(count.min(ROOM));
        for _ in 0..count {
            topics.push(ProduceTopic::decode(&mut cursor, body)?);
        }
        cursor.tags()?;
        cursor.end()?;
        Ok(Self {
            transactional_id,
            acks,
            timeout_ms,
            topics,
        })
    }
}

impl ProduceTopic {
    fn decode(cursor: &mut Cursor<'_>, body: &Bytes) -> Result<Self, Malformed> {
        let name = cursor.text(body)?.ok_or(Malformed::Null)?;
        let count = cursor.count()?.ok_or(Malformed::Null)?;
        let mut partitions = Vec::with_capacity(count.min(ROOM));
        for _ in 0..count {
            let index = cursor.i32()?;
            let records = cursor.blob()?.map(|records| body.slice_ref(records));
            cursor.tags()?;
            partitions.push(ProducePartition { index, records });
        }
        cursor.tags()?;
        Ok(Self { name, partitions })
    }
}

/// What became of one topic's batches.
#[derive(Clone, Debug)]
pub struct ProducedTopic {
    pub name: StrBytes,
    pub partitions: Vec<Produced>,
}

/// What became of one batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Produced {
    pub index: i32,
    pub error_code: i16,
    /// -1 where nothing was appended.
    pub base_offset: i64,
    /// -1 unless the records have the time of their append.
    pub append_time_ms: i64,
    /// -1 where it is not known.
    pub log_start: i64,
    pub error_message: Option<String>,
    /// The records that the batch was refused for: the place of each in it, and why.
    pub record_errors: Vec<(i32, String)>,
    /// Who leads the partition, where the batch was refused because this node does not.
    pub current_leader: Option<CurrentLeader>,
}

/// The answer to a produce request, with where the leaders are that it names.
#[must_use]
pub fn produce_answer(
    request: &Request,
    topics: &[ProducedTopic],
    endpoints: &[NodeEndpoint],
) -> Answer {
    let version = request.version;
    let mut out = Writer::new(request.api, version, request.correlation_id);
    out.count(topics.len());
    for topic in topics {
        out.text(&topic.name);
        out.count(topic.partitions.len());
        for produced in &topic.partitions {
            write_produced(&mut out, version, produced);
        }
        out.no_tags();
    }
    // Who is throttled is told once the answer is ready: see `Answer::throttled`.
    out.fresh.put_i32(0);
    if version >= PRODUCE_HINTS_SINCE && !endpoints.is_empty() {
        // In a slice of their own, so that the time stays the last of the one before.
        let mut tags = Writer::of_field();
        tags.fresh.put_u8(1);
        write_endpoints(&mut tags, endpoints);
        out.share(tags.fresh.freeze());
    } else {
        out.no_tags();
    }
    out.finish()
}

fn write_produced(out: &mut Writer, version: i16, produced: &Produced) {
    out.fresh.put_i32(produced.index);
    out.fresh.put_i16(produced.error_code);
    out.fresh.put_i64(produced.base_offset);
    out.fresh.put_i64(produced.append_time_ms);
    if version >= 5 {
        out.fresh.put_i64(produced.log_start);
    }
    if version >= 8 {
        out.count(produced.record_errors.len());
        for (place, message) in &produced.record_errors {
            out.fresh.put_i32(*place);
            out.text(message);
            out.no_tags();
        }
        match &produced.error_message {
            Some(message) => out.text(message),
            None => out.null_text(),
        }
    }
    match produced.current_leader {
        Some(leader) if version >= PRODUCE_HINTS_SINCE => {
            // One field, number 0, 9 bytes.
            out.fresh.put_slice(&[1, 0, 9]);
            out.fresh.put_i32(leader.node);
            out.fresh.put_i32(leader.epoch);
            out.fresh.put_u8(0);
        }
        _ => out.no_tags(),
    }
}
