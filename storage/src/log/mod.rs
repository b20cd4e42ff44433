//! The logs of a data directory's groups, over the write-ahead log they share.
//!
//! ```text
//! append ──> memory (readable) ──> WAL (durable, done) ──> commit ──> segment (WAL may recycle)
//!               │ pinned until it stands in a segment, then cached while the budget lasts
//!               └──> readers: memory first, then segments
//! ```
//!
//! A log is a chain of frames: indexes without gaps, terms that never fall, base offsets that
//! continue, append times that grow. This module keeps the chain and checks it wherever bytes
//! come back from disk. It stores votes, terms and log starts and decides nothing by them.

#![allow(dead_code, reason = "segments are not wired yet")]

mod budget;
mod config;
mod group;
mod index;
mod memory;
mod note;
mod read;
mod segment;
mod segments;
mod shared;
mod tip;
mod types;
mod wal_runs;

pub use budget::Pressure;
pub use config::StoreConfig;
pub use group::GroupLog;
pub use types::{
    AppendDone, AppendError, Appending, Fatal, LogStart, LogState, ReadError, StoreError,
    TermStart, Vote,
};

pub(crate) use budget::Budget;
pub(crate) use group::{Group, GroupState};
pub(crate) use shared::Shared;
pub(crate) use tip::Tip;
