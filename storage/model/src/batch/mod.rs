//! The Kafka v2 record batch: the one shape in which records are produced, stored and fetched.
//!
//! ```text
//!   0 base offset i64        8 batch length i32 (bytes after it)   12 leader epoch i32
//!  16 magic i8 = 2          17 CRC-32C u32 of bytes 21..
//!  21 attributes i16        23 last offset delta i32
//!  27 base timestamp ms i64 35 max timestamp ms i64
//!  43 producer id i64       51 producer epoch i16                  53 base sequence i32
//!  57 record count i32      61 records, compressed as one block if the attributes say so
//! ```
//!
//! Integers are big-endian. Bytes 0..21 lie outside the checksum, so that a leader can patch base
//! offset and epoch in and otherwise store a producer's bytes as they came. Everything here works
//! on borrowed slices; whatever comes from a producer is checked before it is believed, and
//! memory use follows the bytes at hand, never a length field.

mod builder;
mod compression;
mod header;
mod record;
mod retain;
mod varint;

#[cfg(test)]
mod tests;

pub use builder::{BatchBuilder, BuildError, ProducerState, marker, restamp, stamp_append_time};
pub use compression::{Compression, DecompressError};
pub use header::{Attributes, BatchError, BatchHeader, HEADER_LEN, sequence_after};
pub use record::{Header, Headers, Record, RecordError, RecordIter, Records};
pub use retain::{RetainError, Retained, retain};
