//! The native gRPC API `trilog.v1`, an edge like the dialects: it translates messages into calls
//! of the partition and cluster layers and knows neither Raft nor files.

mod acls;
mod cluster;
mod door;
mod errors;
mod fetch;
mod gate;
mod groups;
mod incoming;
mod plain;
mod producer;
mod topics;
mod transactions;
mod users;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tonic::transport::Server;
use trilog_storage::env::{Clock, Entropy};
use trilog_wire::DESCRIPTORS;
use trilog_wire::v1::acls_server::AclsServer;
use trilog_wire::v1::cluster_server::ClusterServer;
use trilog_wire::v1::fetch_server::FetchServer;
use trilog_wire::v1::groups_server::GroupsServer;
use trilog_wire::v1::offsets_server::OffsetsServer;
use trilog_wire::v1::producer_server::ProducerServer;
use trilog_wire::v1::topics_server::TopicsServer;
use trilog_wire::v1::transactions_server::TransactionsServer;
use trilog_wire::v1::users_server::UsersServer;

use crate::access::Access;
use crate::cluster::Cluster;
use crate::group::Coordinator;
use crate::listen::RequestMemory;
use crate::meter::Meters;
use crate::transaction;
use door::Door;
use gate::Gate;

/// The value of the label `dialect`.
const DIALECT: &str = "native";
/// What a message may hold beyond its record batch.
const MESSAGE_OVERHEAD: usize = 64 << 10;
/// Bytes of an HTTP/2 frame: a batch of the usual 64 KiB comes in one instead of five.
const FRAME: u32 = 256 << 10;
/// HTTP/2 flow control: bytes in flight per stream, and per connection. These are what a call
/// holds that waits for memory, or whose handler does not read on.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 2 << 20;
/// Calls one connection may have open at once.
const MAX_STREAMS: u32 = 1024;

/// Bytes of the headers of one call.
const MAX_HEADERS: u32 = 16 << 10;
/// Bytes of a request that holds no records.
const MAX_REQUEST: usize = 256 << 10;
/// Calls that were given up before they were looked at.
const MAX_RESETS: usize = 64;
/// How often a silent client is asked whether it is still there.
const KEEPALIVE: Duration = Duration::from_secs(30);

/// Bounds of the API.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// The largest record batch, in bytes.
    pub batch_bytes: usize,
    /// Bytes of unanswered appends per produce stream.
    pub inflight_bytes: usize,
    /// Connections at once.
    pub connections: usize,
}

/// The API of one node.
#[derive(Clone, Debug)]
pub struct Api {
    cluster: Cluster,
    coordinator: Coordinator,
    transactions: transaction::Coordinator,
    access: Access,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    limits: Limits,
    memory: RequestMemory,
    meters: Meters,
}

/// What the dialect stands on.
#[derive(Debug)]
pub struct Parts {
    pub cluster: Cluster,
    pub groups: Coordinator,
    pub transactions: transaction::Coordinator,
    pub access: Access,
    pub clock: Arc<dyn Clock>,
    pub entropy: Entropy,
    pub requests: RequestMemory,
}

impl Api {
    #[must_use]
    pub fn new(parts: Parts, limits: Limits) -> Self {
        let Parts {
            cluster,
            groups,
            transactions,
            access,
            clock,
            entropy,
            requests,
        } = parts;
        Self {
            cluster,
            coordinator: groups,
            transactions,
            access,
            clock,
            entropy,
            limits,
            memory: requests,
            meters: Meters::new(DIALECT),
        }
    }

    /// Serves until `stop`, then lets open calls finish.
    pub async fn serve(
        self,
        listener: TcpListener,
        stop: impl Future<Output = ()>,
    ) -> Result<(), ServeError> {
        let message = self.limits.batch_bytes + MESSAGE_OVERHEAD;
        let incoming = incoming::accept(listener, self.limits.connections);
        let describe = tonic_reflection::server::Builder::configure;
        let described = || describe().register_encoded_file_descriptor_set(DESCRIPTORS);
        // Both are in use: older tools ask for the first version only.
        let (reflection, older) = (described().build_v1(), described().build_v1alpha());
        let reflection = reflection.map_err(|error| ServeError::Descriptors(error.to_string()))?;
        let older = older.map_err(|error| ServeError::Descriptors(error.to_string()))?;
        let memory = self.memory.clone();
        let door = Door::new(&self.access, &self.cluster);
        let small = Small(memory.clone(), door.clone());
        let topics = TopicsServer::new(self.clone()).max_decoding_message_size(MAX_REQUEST);
        let producer = ProducerServer::new(self.clone()).max_decoding_message_size(message);
        let fetch = FetchServer::new(self.clone()).max_decoding_message_size(MAX_REQUEST);
        let offsets = OffsetsServer::new(self.clone()).max_decoding_message_size(MAX_REQUEST);
        let groups = GroupsServer::new(self.clone()).max_decoding_message_size(MAX_REQUEST);
        let transactions = TransactionsServer::new(self.clone());
        let transactions = transactions.max_decoding_message_size(MAX_REQUEST);
        let users = UsersServer::new(self.clone()).max_decoding_message_size(MAX_REQUEST);
        let acls = AclsServer::new(self.clone()).max_decoding_message_size(MAX_REQUEST);
        let cluster = ClusterServer::new(self).max_decoding_message_size(MAX_REQUEST);
        Server::builder()
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_frame_size(FRAME)
            .max_concurrent_streams(MAX_STREAMS)
            .http2_max_header_list_size(MAX_HEADERS)
            .http2_max_pending_accept_reset_streams(Some(MAX_RESETS))
            .http2_keepalive_interval(Some(KEEPALIVE))
            .add_service(small.gate(topics))
            .add_service(Gate::new(producer, memory.clone(), message, door))
            .add_service(small.gate(fetch))
            .add_service(small.gate(offsets))
            .add_service(small.gate(groups))
            .add_service(small.gate(transactions))
            .add_service(small.gate(users))
            .add_service(small.gate(acls))
            .add_service(small.gate(cluster))
            .add_service(small.gate(reflection))
            .add_service(small.gate(older))
            .serve_with_incoming_shutdown(incoming, stop)
            .await?;
        Ok(())
    }
}

/// What services that take no records are given.
struct Small(RequestMemory, Door);

impl Small {
    fn gate<S>(&self, service: S) -> Gate<S> {
        Gate::new(service, self.0.clone(), MAX_REQUEST, self.1.clone())
    }
}

/// Why the API is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("the definitions of the API are unreadable: {0}")]
    Descriptors(String),
    #[error(transparent)]
    Transport(#[from] tonic::transport::Error),
}
