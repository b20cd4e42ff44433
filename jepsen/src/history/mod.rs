//! What clients did and saw: the history of a run, as its harness writes it and checkers read it.
//!
//! Owns the vocabulary alone; [`json`] is its form on disk, `docs/history.md` the description for
//! those who write one. Nothing here judges.

pub mod json;

use serde::{Deserialize, Serialize};

/// What a client says of a transaction that failed because it was to: it was tried and answered.
pub const ON_PURPOSE: &str = "aborted on purpose";

/// A partition, under the number that a history gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Key(pub u32);

/// What holds for a whole history; its first line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// Version of the format. [`json::VERSION`] is the only one so far.
    #[serde(rename = "trilog-history")]
    pub version: u32,
    /// Whether producers were idempotent. If not, a value may be in the log more than once.
    #[serde(default = "yes")]
    pub idempotence: bool,
    /// Whether consumers read committed records only.
    #[serde(default = "yes")]
    pub read_committed: bool,
    /// What the keys stand for, such as `orders/0`, by their number.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub keys: Vec<String>,
    /// The seed that the run was made from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// What kind of run it was, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub about: String,
}

fn yes() -> bool {
    true
}

impl Default for Header {
    fn default() -> Self {
        Self {
            version: json::VERSION,
            idempotence: true,
            read_committed: true,
            keys: Vec::new(),
            seed: None,
            about: String::new(),
        }
    }
}

/// One line of a history after the first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its place in the history, from 0 and without a gap.
    pub index: u64,
    /// Nanoseconds since the run began; never less than those of the event before.
    pub time: u64,
    pub what: What,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    Op(Op),
    Note(Note),
}

/// One half of an operation: its invocation, or what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    pub stage: Stage,
    /// Who does it: one thing after the other, and nothing more after an unknown outcome.
    pub process: u32,
    pub f: Function,
    pub mops: Vec<Mop>,
    /// What is assigned or subscribed to; replaces what was.
    pub keys: Vec<Key>,
    /// An assignment that begins at the start of every key.
    pub seek_to_beginning: bool,
    /// Whose offsets `offsets` are.
    pub group: Option<String>,
    /// What is committed, was found committed, or is reset, for each key. What is found is said of
    /// every key that was asked for, and is 0 where nothing is committed.
    pub offsets: Vec<(Key, u64)>,
    /// Changes of the assignment while the operation ran.
    pub rebalance_log: Vec<Rebalance>,
    /// What the client said of a failure, for people.
    pub error: Option<String>,
}

impl Op {
    pub fn new(stage: Stage, process: u32, f: Function) -> Self {
        Self {
            stage,
            process,
            f,
            mops: Vec::new(),
            keys: Vec::new(),
            seek_to_beginning: false,
            group: None,
            offsets: Vec::new(),
            rebalance_log: Vec::new(),
            error: None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Invoke,
    /// It happened.
    Ok,
    /// It surely did not.
    Fail,
    /// Nobody knows; it may even happen later.
    Info,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Function {
    Send,
    Poll,
    /// Sends and polls that take effect together.
    Txn,
    Assign,
    Subscribe,
    /// The client is thrown away.
    Crash,
    /// Commits offsets of a group.
    Commit,
    /// Reads the offsets that a group has committed.
    Committed,
    /// Sets offsets of a group, to wherever.
    Reset,
}

/// One step of an operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mop {
    Send {
        key: Key,
        /// Sent to this key once in the whole history.
        value: u64,
        /// Where it was acknowledged, if it was.
        offset: Option<u64>,
        /// The leader epoch that acknowledged it, if known.
        term: Option<u64>,
    },
    /// What was returned, key by key; nothing yet at an invocation.
    Poll(Vec<(Key, Vec<Record>)>),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    pub offset: u64,
    pub value: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rebalance {
    /// The keys that came or went.
    pub keys: Vec<Key>,
}

/// What the harness saw or did besides the clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// A node said how far a key is committed.
    HighWatermark {
        key: Key,
        node: u32,
        /// Which life of the node, counted up with each start.
        boot: u32,
        high_watermark: u64,
        /// When it was asked; the event's time is when it had answered.
        began: u64,
        /// Said by a leader that had proven to be one.
        linearizable: bool,
    },
    /// A checksum over the records `from..upto` of a replica.
    Replica {
        key: Key,
        node: u32,
        from: u64,
        upto: u64,
        checksum: String,
    },
    /// Where a replica's tiered part ends (its last offset, if it has any) and the local begins.
    Boundary {
        key: Key,
        node: u32,
        tiered_end: Option<u64>,
        local_start: u64,
    },
    /// A node leads a key from now on.
    Leader {
        key: Key,
        node: u32,
        term: u64,
    },
    FaultBegin {
        fault: String,
        nodes: Vec<u32>,
    },
    FaultEnd {
        fault: String,
        nodes: Vec<u32>,
    },
    /// Everything is healed; what follows reads everything back.
    Final,
    /// Everything was read back.
    Done,
}
