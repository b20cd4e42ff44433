//! The Rust client of a Trilog cluster: administration, an idempotent batching producer, and a
//! consumer that is a stream.
//!
//! A [`Client`] finds the cluster from a few seed addresses, keeps track of which node leads
//! which partition, and follows leaders as they move.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), trilog_client::Error> {
//! # let cluster = trilog_client::testkit::FakeCluster::start(1, &[("orders", 2)]).await;
//! # let seeds = cluster.addresses();
//! use futures::StreamExt;
//! use trilog_client::{Client, Record, StartAt};
//!
//! let client = Client::connect(seeds).await?;
//!
//! let producer = client.producer();
//! let delivery = producer.send("orders", Record::new("one coffee").with_key("table 5")).await?;
//! let place = delivery.await?; // committed: on disk on a majority
//!
//! let mut orders = client.consumer("orders").start(StartAt::Earliest).open().await?;
//! let order = orders.next().await.expect("a following consumer has no end")?;
//! assert_eq!(order.value.as_deref(), Some(&b"one coffee"[..]));
//! assert_eq!(order.offset, place.offset);
//! # Ok(())
//! # }
//! ```
//!
//! Nothing here knows how the cluster stores or agrees; the crate stands on the record batch of
//! `trilog-model` and the messages of `trilog-wire`.

mod admin;
mod backoff;
mod client;
mod config;
mod connections;
mod consumer;
mod credentials;
mod error;
mod metadata;
mod producer;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use trilog_model::batch::Compression;
pub use trilog_model::{Offset, Timestamp};
pub use trilog_wire::v1 as proto;

pub use admin::Admin;
pub use client::Client;
pub use config::{BackoffConfig, ClientConfig, ConsumerConfig, OutOfRange, ProducerConfig};
pub use consumer::{ConsumedRecord, Consumer, ConsumerBuilder, StartAt};
pub use credentials::Credentials;
pub use error::{Error, ServerError};
pub use producer::{Delivery, Producer, Record, RecordPlace};
pub use trilog_model::partitioner::{murmur2, partition_of_key};
