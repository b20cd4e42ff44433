//! Kafka's protocol without any of the doing: frames, headers, the check of what comes in, the two
//! messages that carry records (by hand, without copying them), and the codec for all others.
//!
//! Bytes that come in pass `frame` (length, header), then either `produce` or `fetch`, or `guard`
//! and the generated codec. Nothing is allocated from a length before it was held against the
//! bytes that are there.

mod answer;
mod api;
mod cursor;
mod fetch;
mod frame;
#[cfg(test)]
mod golden;
mod guard;
mod produce;
mod shapes;
#[cfg(test)]
mod tests;
mod throttle;

pub use answer::{Answer, Unanswerable, Writer};
pub use api::{APIS, Api, api_of};
pub use cursor::{MAX_ELEMENTS, Malformed};
pub use fetch::{
    AbortedTransaction, CurrentLeader, EpochEnd, FetchPartition, FetchRequest, FetchTopic, Fetched,
    FetchedBatch, FetchedPartition, ForgottenTopic, NodeEndpoint, PREFIX_BYTES, TopicRef,
    fetch_answer,
};
pub use frame::{FrameError, LENGTH_BYTES, Opened, Request, frame_length, token_length};
pub use guard::{check, decode};
pub use kafka_protocol::error::ResponseError as ErrorCode;
pub use kafka_protocol::messages;
pub use kafka_protocol::protocol::{Encodable, StrBytes};
pub use produce::{
    PRODUCE_HINTS_SINCE, ProducePartition, ProduceRequest, ProduceTopic, Produced, ProducedTopic,
    produce_answer,
};
pub use uuid::Uuid;
