//! The vocabulary every Trilog crate shares: identities, positions, time and the record batch.
//!
//! Plain data: no I/O, no async, no knowledge of consensus, files or dialects.

mod aborted;
pub mod batch;
mod ids;
pub mod partitioner;
mod time;

pub use aborted::{Aborted, AbortedSet};
pub use ids::{EntryId, GroupId, LogIndex, NodeId, Offset, ReplicaId, Term};
pub use time::Timestamp;
