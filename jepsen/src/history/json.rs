//! Histories as lines of JSON: a header, then an event on each line. `docs/history.md` describes
//! the format; a field that it does not name is refused, for a mistyped one that is ignored would
//! be a check that cannot fail.

use std::fmt;
use std::io::{self, BufRead, Read, Write};

use serde::de::{self, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq, Serializer};
use serde::{Deserialize, Serialize};

use super::{Event, Function, Header, Key, Mop, Note, Op, Rebalance, Record, Stage, What};

/// The format that is written, and the only one that is read.
pub const VERSION: u32 = 1;

/// The longest line that is read.
const LINE_BYTES: u64 = 64 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("cannot read line {line}")]
    Io { line: u64, source: io::Error },
    #[error("line {line} is not an event of a history")]
    Json {
        line: u64,
        source: serde_json::Error,
    },
    #[error("line {line}: a `{what}` line needs `{field}`")]
    Lacks {
        line: u64,
        what: &'static str,
        field: &'static str,
    },
    #[error("line {line} is longer than {LINE_BYTES} bytes")]
    Long { line: u64 },
    #[error("the history is of format {0}, this build reads {VERSION}")]
    Version(u32),
    #[error("the history is empty")]
    Empty,
}

/// Reads a history, an event at a time.
#[derive(Debug)]
pub struct Reader<R> {
    input: R,
    line: u64,
    buffer: Vec<u8>,
    header: Header,
}

impl<R: BufRead> Reader<R> {
    pub fn new(input: R) -> Result<Self, ReadError> {
        let mut reader = Self {
            input,
            line: 0,
            buffer: Vec::new(),
            header: Header::default(),
        };
        if !reader.fill()? {
            return Err(ReadError::Empty);
        }
        reader.header = serde_json::from_slice(&reader.buffer)
            .map_err(|source| ReadError::Json { line: 1, source })?;
        if reader.header.version != VERSION {
            return Err(ReadError::Version(reader.header.version));
        }
        Ok(reader)
    }

    pub fn header(&self) -> &Header {
        &self.header
    }

    /// The next line that is not blank, if there is one.
    fn fill(&mut self) -> Result<bool, ReadError> {
        loop {
            self.buffer.clear();
            self.line += 1;
            let line = self.line;
            let read = (&mut self.input)
                .take(LINE_BYTES)
                .read_until(b'\n', &mut self.buffer)
                .map_err(|source| ReadError::Io { line, source })?;
            if read == 0 {
                return Ok(false);
            }
            if read as u64 == LINE_BYTES && !self.buffer.ends_with(b"\n") {
                return Err(ReadError::Long { line });
            }
            if !self.buffer.trim_ascii().is_empty() {
                return Ok(true);
            }
        }
    }

    fn event(&mut self) -> Result<Option<Event>, ReadError> {
        if !self.fill()? {
            return Ok(None);
        }
        let line = self.line;
        let flat: Flat = serde_json::from_slice(&self.buffer)
            .map_err(|source| ReadError::Json { line, source })?;
        let what = flat.r#type.name();
        flat.event()
            .map(Some)
            .map_err(|field| ReadError::Lacks { line, what, field })
    }
}

impl<R: BufRead> Iterator for Reader<R> {
    type Item = Result<Event, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.event().transpose()
    }
}

/// Writes the first line of a history.
pub fn write_header(out: &mut impl Write, header: &Header) -> io::Result<()> {
    serde_json::to_writer(&mut *out, header)?;
    out.write_all(b"\n")
}

/// Writes one more line.
pub fn write_event(out: &mut impl Write, event: &Event) -> io::Result<()> {
    serde_json::to_writer(&mut *out, &Flat::of(event))?;
    out.write_all(b"\n")
}

/// An event as it stands on its line.
pub fn line(event: &Event) -> serde_json::Result<String> {
    serde_json::to_string(&Flat::of(event))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Type {
    Invoke,
    Ok,
    Fail,
    Info,
    HighWatermark,
    Replica,
    Boundary,
    Leader,
    FaultBegin,
    FaultEnd,
    Final,
    Done,
}

impl Type {
    fn name(self) -> &'static str {
        match self {
            Self::Invoke => "invoke",
            Self::Ok => "ok",
            Self::Fail => "fail",
            Self::Info => "info",
            Self::HighWatermark => "high-watermark",
            Self::Replica => "replica",
            Self::Boundary => "boundary",
            Self::Leader => "leader",
            Self::FaultBegin => "fault-begin",
            Self::FaultEnd => "fault-end",
            Self::Final => "final",
            Self::Done => "done",
        }
    }
}

/// All fields of all lines. Enums with a tag inside are read by way of a copy, three times slower.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Flat {
    index: u64,
    time: u64,
    r#type: Type,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    process: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    f: Option<Function>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    mops: Vec<Mop>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    keys: Vec<Key>,
    #[serde(default, skip_serializing_if = "is_false")]
    seek_to_beginning: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    group: Option<String>,
    #[serde(default, skip_serializing_if = "Offsets::is_empty")]
    offsets: Offsets,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    rebalance_log: Vec<Rebalance>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key: Option<Key>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    boot: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    high_watermark: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    began: Option<u64>,
    #[serde(default, skip_serializing_if = "is_false")]
    linearizable: bool,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    from: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    upto: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tiered_end: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    local_start: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    term: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fault: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    nodes: Vec<u32>,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde asks for a reference"
)]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl Flat {
    fn blank(event: &Event, r#type: Type) -> Self {
        Self {
            index: event.index,
            time: event.time,
            r#type,
            process: None,
            f: None,
            mops: Vec::new(),
            keys: Vec::new(),
            seek_to_beginning: false,
            group: None,
            offsets: Offsets(Vec::new()),
            rebalance_log: Vec::new(),
            error: None,
            key: None,
            node: None,
            boot: None,
            high_watermark: None,
            began: None,
            linearizable: false,
            from: None,
            upto: None,
            checksum: None,
            tiered_end: None,
            local_start: None,
            term: None,
            fault: None,
            nodes: Vec::new(),
        }
    }

    fn of(event: &Event) -> Self {
        match &event.what {
            What::Op(op) => Self::of_op(event, op),
            What::Note(note) => Self::of_note(event, note),
        }
    }

    fn of_op(event: &Event, op: &Op) -> Self {
        let r#type = match op.stage {
            Stage::Invoke => Type::Invoke,
            Stage::Ok => Type::Ok,
            Stage::Fail => Type::Fail,
            Stage::Info => Type::Info,
        };
        Self {
            process: Some(op.process),
            f: Some(op.f),
            mops: op.mops.clone(),
            keys: op.keys.clone(),
            seek_to_beginning: op.seek_to_beginning,
            group: op.group.clone(),
            offsets: Offsets(op.offsets.clone()),
            rebalance_log: op.rebalance_log.clone(),
            error: op.error.clone(),
            ..Self::blank(event, r#type)
        }
    }

    fn of_note(event: &Event, note: &Note) -> Self {
        match note.clone() {
            Note::HighWatermark {
                key,
                node,
                boot,
                high_watermark,
                began,
                linearizable,
            } => Self {
                key: Some(key),
                node: Some(node),
                boot: Some(boot),
                high_watermark: Some(high_watermark),
                began: Some(began),
                linearizable,
                ..Self::blank(event, Type::HighWatermark)
            },
            Note::Replica {
                key,
                node,
                from,
                upto,
                checksum,
            } => Self {
                key: Some(key),
                node: Some(node),
                from: Some(from),
                upto: Some(upto),
                checksum: Some(checksum),
                ..Self::blank(event, Type::Replica)
            },
            Note::Boundary {
                key,
                node,
                tiered_end,
                local_start,
            } => Self {
                key: Some(key),
                node: Some(node),
                tiered_end,
                local_start: Some(local_start),
                ..Self::blank(event, Type::Boundary)
            },
            Note::Leader { key, node, term } => Self {
                key: Some(key),
                node: Some(node),
                term: Some(term),
                ..Self::blank(event, Type::Leader)
            },
            Note::FaultBegin { fault, nodes } => Self {
                fault: Some(fault),
                nodes,
                ..Self::blank(event, Type::FaultBegin)
            },
            Note::FaultEnd { fault, nodes } => Self {
                fault: Some(fault),
                nodes,
                ..Self::blank(event, Type::FaultEnd)
            },
            Note::Final => Self::blank(event, Type::Final),
            Note::Done => Self::blank(event, Type::Done),
        }
    }

    /// The event, or the name of the field that it lacks.
    fn event(self) -> Result<Event, &'static str> {
        let (index, time) = (self.index, self.time);
        let what = match self.r#type {
            Type::Invoke => self.op(Stage::Invoke)?,
            Type::Ok => self.op(Stage::Ok)?,
            Type::Fail => self.op(Stage::Fail)?,
            Type::Info => self.op(Stage::Info)?,
            _ => What::Note(self.note()?),
        };
        Ok(Event { index, time, what })
    }

    fn op(self, stage: Stage) -> Result<What, &'static str> {
        Ok(What::Op(Op {
            stage,
            process: self.process.ok_or("process")?,
            f: self.f.ok_or("f")?,
            mops: self.mops,
            keys: self.keys,
            seek_to_beginning: self.seek_to_beginning,
            group: self.group,
            offsets: self.offsets.0,
            rebalance_log: self.rebalance_log,
            error: self.error,
        }))
    }

    fn note(self) -> Result<Note, &'static str> {
        let key = self.key.ok_or("key");
        let node = self.node.ok_or("node");
        Ok(match self.r#type {
            Type::HighWatermark => Note::HighWatermark {
                key: key?,
                node: node?,
                boot: self.boot.ok_or("boot")?,
                high_watermark: self.high_watermark.ok_or("high_watermark")?,
                began: self.began.ok_or("began")?,
                linearizable: self.linearizable,
            },
            Type::Replica => Note::Replica {
                key: key?,
                node: node?,
                from: self.from.ok_or("from")?,
                upto: self.upto.ok_or("upto")?,
                checksum: self.checksum.ok_or("checksum")?,
            },
            Type::Boundary => Note::Boundary {
                key: key?,
                node: node?,
                tiered_end: self.tiered_end,
                local_start: self.local_start.ok_or("local_start")?,
            },
            Type::Leader => Note::Leader {
                key: key?,
                node: node?,
                term: self.term.ok_or("term")?,
            },
            Type::FaultBegin => Note::FaultBegin {
                fault: self.fault.ok_or("fault")?,
                nodes: self.nodes,
            },
            Type::FaultEnd => Note::FaultEnd {
                fault: self.fault.ok_or("fault")?,
                nodes: self.nodes,
            },
            Type::Final => Note::Final,
            Type::Done => Note::Done,
            Type::Invoke | Type::Ok | Type::Fail | Type::Info => return Err("no note"),
        })
    }
}

/// `{"3": 17}`: offsets by key.
#[derive(Debug, Default)]
struct Offsets(Vec<(Key, u64)>);

impl Offsets {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Serialize for Offsets {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

impl<'de> Deserialize<'de> for Offsets {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer
            .deserialize_map(Pairs::<u64>::new("offsets by key"))
            .map(Self)
    }
}

/// Reads a map as the pairs it is written as.
struct Pairs<T> {
    expected: &'static str,
    of: std::marker::PhantomData<T>,
}

impl<T> Pairs<T> {
    fn new(expected: &'static str) -> Self {
        Self {
            expected,
            of: std::marker::PhantomData,
        }
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Pairs<T> {
    type Value = Vec<(Key, T)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.expected)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut pairs = Vec::new();
        while let Some(pair) = map.next_entry()? {
            pairs.push(pair);
        }
        Ok(pairs)
    }
}

/// What a poll returned: records by key.
struct Polled(Vec<(Key, Vec<Record>)>);

impl<'de> Deserialize<'de> for Polled {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let visitor = Pairs::<Vec<Record>>::new("records by key");
        deserializer.deserialize_map(visitor).map(Self)
    }
}

impl Serialize for Record {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        (self.offset, self.value).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Record {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let (offset, value) = Deserialize::deserialize(deserializer)?;
        Ok(Self { offset, value })
    }
}

impl Serialize for Mop {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Send {
                key,
                value,
                offset,
                term,
            } => {
                let mut parts = serializer.serialize_seq(Some(3))?;
                parts.serialize_element("send")?;
                parts.serialize_element(key)?;
                match (offset, term) {
                    (None, None) => parts.serialize_element(value)?,
                    (_, None) => parts.serialize_element(&(offset, value))?,
                    (_, Some(term)) => parts.serialize_element(&(offset, value, term))?,
                }
                parts.end()
            }
            Self::Poll(runs) => {
                let mut parts = serializer.serialize_seq(None)?;
                parts.serialize_element("poll")?;
                if !runs.is_empty() {
                    parts.serialize_element(&Runs(runs))?;
                }
                parts.end()
            }
        }
    }
}

struct Runs<'a>(&'a [(Key, Vec<Record>)]);

impl Serialize for Runs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, records) in self.0 {
            map.serialize_entry(key, records)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Mop {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_seq(MopVisitor)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
enum MopName {
    Send,
    Poll,
}

struct MopVisitor;

impl<'de> Visitor<'de> for MopVisitor {
    type Value = Mop;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(r#"["send", key, value], ["send", key, [offset, value]] or ["poll", {…}]"#)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Mop, A::Error> {
        let lacks = |nth| de::Error::invalid_length(nth, &self);
        let mop = match parts.next_element::<MopName>()?.ok_or_else(|| lacks(0))? {
            MopName::Send => {
                let key = parts.next_element()?.ok_or_else(|| lacks(1))?;
                let sent: Sent = parts.next_element()?.ok_or_else(|| lacks(2))?;
                Mop::Send {
                    key,
                    value: sent.value,
                    offset: sent.offset,
                    term: sent.term,
                }
            }
            MopName::Poll => Mop::Poll(parts.next_element::<Polled>()?.map_or(Vec::new(), |p| p.0)),
        };
        if parts.next_element::<de::IgnoredAny>()?.is_some() {
            return Err(de::Error::custom("a micro-operation has too many parts"));
        }
        Ok(mop)
    }
}

/// `value`, `[offset, value]` or `[offset, value, term]`.
struct Sent {
    value: u64,
    offset: Option<u64>,
    term: Option<u64>,
}

impl<'de> Deserialize<'de> for Sent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(SentVisitor)
    }
}

struct SentVisitor;

impl<'de> Visitor<'de> for SentVisitor {
    type Value = Sent;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value, [offset, value] or [offset, value, term]")
    }

    fn visit_u64<E: de::Error>(self, value: u64) -> Result<Sent, E> {
        Ok(Sent {
            value,
            offset: None,
            term: None,
        })
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut parts: A) -> Result<Sent, A::Error> {
        let lacks = |nth| de::Error::invalid_length(nth, &self);
        let offset = parts.next_element()?.ok_or_else(|| lacks(0))?;
        let value = parts.next_element()?.ok_or_else(|| lacks(1))?;
        let term = parts.next_element()?;
        Ok(Sent {
            value,
            offset,
            term,
        })
    }
}
