//! The storage engine: one write-ahead log per data directory shared by every group, committed
//! segments, a tail cache, and the key-value store of view state.
//!
//! Storage keeps terms, votes and indexes and never interprets consensus; it knows no dialect.

pub mod bench;
pub mod env;
pub mod fatal;
pub mod frame;
pub mod histogram;
pub mod inspect;
pub mod io;
pub mod kv;
pub mod log;
pub mod planted;
pub mod store;
pub mod wal;
