//! The Kafka dialect: its port, its connections and what its requests mean here.
//!
//! An edge: it translates between Kafka's messages (`trilog_wire::kafka`) and calls of the
//! partition, cluster, group and transaction layers. Knows neither Raft nor files nor any other dialect.

mod conn;
mod errors;
mod fetch_sessions;
mod handlers;
mod hints;
mod input;
mod pace;
mod quota;
mod rights;
mod sasl;
mod session;
mod strangers;

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use metrics::gauge;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::debug;
use trilog_storage::env::{Clock, Entropy};
use trilog_wire::kafka::APIS;

use crate::access::Access;
use crate::cluster::Cluster;
use crate::group::Coordinator;
use crate::listen::{Bounds, Listener, RequestMemory, Tls, show_handshakes};
use crate::meter::{ApiMeter, Meters};
use crate::transaction;
use conn::Ended;
use fetch_sessions::FetchSessions;
use session::Place;
use strangers::{Stranger, Strangers};

/// As much of the dialect's memory, again, is for fetches that wait.
const WAITING_SHARE: usize = 8;
/// The value of the label `dialect`.
const DIALECT: &str = "kafka";

/// Bounds of the dialect on one node.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Connections at once.
    pub connections: usize,
    /// The largest request, in bytes.
    pub request_bytes: usize,
    /// Bytes of requests one connection may have unanswered; it is not read from beyond them.
    pub inflight_bytes: usize,
    /// Bytes of records on their way to consumers, of all connections together.
    pub memory: usize,
    /// Fetch sessions of all connections together.
    pub fetch_sessions: usize,
    /// Bytes of fetch sessions, of all connections together.
    pub fetch_session_memory: usize,
}

/// The dialect on one node; cheap to clone.
#[derive(Clone, Debug)]
pub struct Kafka {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    cluster: Cluster,
    groups: Coordinator,
    transactions: transaction::Coordinator,
    access: Access,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    data_dir: PathBuf,
    limits: Limits,
    /// What requests may hold, shared with the other dialects.
    requests: RequestMemory,
    /// What fetched records may hold until they are sent, in bytes.
    fetched: Arc<Semaphore>,
    /// What fetches may hold that wait for records.
    fetches: Arc<Semaphore>,
    sessions: FetchSessions<Place>,
    /// Who is not known yet.
    strangers: Strangers,
    /// What clients with quotas have moved of late.
    rates: quota::Rates,
    /// What went out to consumers, and whether it was copied.
    payload: handlers::Payload,
    throttled: quota::Counts,
    meters: Meters,
    /// One per entry of the table of apis.
    api_meters: Vec<ApiMeter>,
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
    /// Where the node's data is.
    pub data_dir: PathBuf,
}

impl Kafka {
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
            data_dir,
        } = parts;
        let (slots, memory) = (limits.fetch_sessions, limits.fetch_session_memory);
        let sessions = FetchSessions::new(slots, memory, entropy.clone());
        sasl::show_counts();
        show_handshakes(DIALECT);
        let api_meters = APIS
            .iter()
            .map(|api| ApiMeter::new(DIALECT, api.name))
            .collect();
        Self {
            inner: Arc::new(Inner {
                cluster,
                groups,
                transactions,
                access,
                clock,
                entropy,
                data_dir,
                limits,
                requests,
                fetched: Arc::new(Semaphore::new(limits.memory.max(limits.request_bytes))),
                fetches: Arc::new(Semaphore::new(limits.memory / WAITING_SHARE)),
                sessions,
                strangers: Strangers::among(limits.connections),
                rates: quota::Rates::default(),
                payload: handlers::Payload::default(),
                throttled: quota::Counts::default(),
                meters: Meters::new(DIALECT),
                api_meters,
            }),
        }
    }

    /// Answers one request as if it had come over a connection of its own: both without the length
    /// that stands before them on the wire. None where nothing would be said. For whole nodes that
    /// run in one process, on simulated links.
    pub async fn answer(&self, message: &Bytes) -> Option<Bytes> {
        let answered = conn::answer(self.clone(), message).await;
        answered
            .inspect_err(|ended| debug!(%ended, "a request ends its connection"))
            .ok()?
    }

    /// Serves until `stop`, over TLS where there is any; connections end with it, wherever they are.
    pub async fn serve(self, socket: TcpListener, tls: Option<Tls>, stop: CancellationToken) {
        let bounds = Bounds {
            gauge: gauge!("trilog_connections", "dialect" => DIALECT),
            dialect: Some(DIALECT),
            ..Bounds::new(self.inner.limits.connections)
        };
        let listener = Listener::new(socket, bounds);
        let tasks = TaskTracker::new();
        while let Some((connection, from)) = stop.run_until_cancelled(listener.next()).await {
            let (kafka, tls, stop) = (self.clone(), tls.clone(), stop.clone());
            let inner = &self.inner;
            let stranger = inner.access.is_required().then(|| inner.strangers.enter());
            tasks.spawn(async move {
                let displaced = stranger.as_ref().map(Stranger::displaced);
                let displaced = displaced.unwrap_or_default();
                let serving = Box::pin(async {
                    let connection = match tls {
                        None => connection,
                        Some(tls) => {
                            let securing = Box::pin(connection.secured(&tls));
                            let secured = stop.run_until_cancelled(securing).await;
                            secured.ok_or(Ended::Stopped)??
                        }
                    };
                    conn::serve(kafka, connection, stranger, &stop).await
                });
                let served = displaced.run_until_cancelled(serving).await;
                if let Err(ended) = served.unwrap_or(Err(Ended::Displaced)) {
                    debug!(%from, %ended, "a Kafka client's connection ends");
                }
            });
        }
        tasks.close();
        tasks.wait().await;
    }
}
