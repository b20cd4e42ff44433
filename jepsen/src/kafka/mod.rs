//! A Kafka client as harsh as a test needs it: it hides no error and tries nothing again by itself
//! but what a stock client would, and says of everything whether it was done, was not, or may have
//! been.
//!
//! ```text
//! conn ──> client ──> produce, fetch, txn, group       one connection │ who leads │ what is asked
//! ```
//!
//! A connection is a socket, or leads into the world of a simulation.

mod client;
mod conn;
mod fetch;
mod group;
mod produce;
mod txn;
mod world;

pub use client::{Client, Lives, Node, Seen};
pub use conn::{Complaints, Conn, Fault, framed, text};
pub use fetch::{Fetched, UNCOMMITTED};
pub use group::Member;
pub use produce::{Identity, payload, value_of};
pub use world::{Line, World};

/// Codes that are acted on, by their names in Kafka's protocol.
pub mod code {
    pub const OFFSET_OUT_OF_RANGE: i16 = 1;
    pub const UNKNOWN_TOPIC_OR_PARTITION: i16 = 3;
    pub const LEADER_NOT_AVAILABLE: i16 = 5;
    pub const NOT_LEADER_OR_FOLLOWER: i16 = 6;
    pub const REQUEST_TIMED_OUT: i16 = 7;
    pub const COORDINATOR_LOAD_IN_PROGRESS: i16 = 14;
    pub const COORDINATOR_NOT_AVAILABLE: i16 = 15;
    pub const NOT_COORDINATOR: i16 = 16;
    pub const NOT_ENOUGH_REPLICAS_AFTER_APPEND: i16 = 20;
    pub const OUT_OF_ORDER_SEQUENCE_NUMBER: i16 = 45;
    pub const CONCURRENT_TRANSACTIONS: i16 = 51;
    pub const KAFKA_STORAGE_ERROR: i16 = 56;
    pub const UNKNOWN_PRODUCER_ID: i16 = 59;
    pub const FENCED_LEADER_EPOCH: i16 = 74;
    pub const UNKNOWN_LEADER_EPOCH: i16 = 75;
    pub const OFFSET_NOT_AVAILABLE: i16 = 78;
    pub const UNSTABLE_OFFSET_COMMIT: i16 = 88;
}
