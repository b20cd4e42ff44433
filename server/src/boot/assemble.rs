//! The parts of a running node, in the order they depend on one another.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};
use trilog_model::NodeId;

use trilog_raft::controller::reconcile::Myself;
use trilog_raft::controller::{ClusterId, NodeIdentity};
use trilog_raft::transport::{Transport, TransportConfig};
use trilog_raft::{Node, RaftConfig};
use trilog_storage::env::{Clock, Entropy, SystemClock};
use trilog_storage::io::{Backend, Choice};
use trilog_storage::kv::{Kv, KvConfig};
use trilog_storage::log::StoreConfig;
use trilog_storage::store::Store;

use super::joining;
use crate::admin::{Api, Limits as ApiLimits};
use crate::cluster::{
    Agent, Cluster, ControllerHandle, ControllerView, Identity, Leaders, Liveness,
    Parts as ClusterParts, PeerFile, Receptionist, find_peers, kinds,
};
use crate::config::{Config, IoChoice};
use crate::partition::{Intake, Partitions, keep_retention};

/// Bytes of appends that may wait or be on their way on one node.
const IN_FLIGHT_BYTES: usize = 256 << 20;

/// The sockets of a node, bound before anything is read or written.
#[derive(Debug)]
pub struct Listeners {
    grpc: TcpListener,
    peer: std::net::SocketAddr,
}

impl Listeners {
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        let address = config.listen.grpc;
        let grpc = TcpListener::bind(address)
            .await
            .with_context(|| format!("listening for gRPC on {address}"))?;
        Ok(Self {
            grpc,
            peer: config.listen.peer,
        })
    }
}

/// A running node.
#[derive(Debug)]
pub struct Server {
    pub(super) store: Store,
    pub(super) node: Node,
    pub(super) transport: Transport,
    pub(super) cluster: Cluster,
    pub(super) uring_fallback: bool,
    kv: Kv,
    entropy: Entropy,
    peers: Arc<Mutex<PeerFile>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// What is open before the node knows its cluster.
struct Ground {
    store: Store,
    kv: Kv,
    transport: Transport,
    entropy: Entropy,
    identity: Identity,
    uring_fallback: bool,
}

impl Server {
    /// Opens the data directory, joins or forms the cluster, and serves. Waits for the seeds for
    /// as long as it takes.
    pub async fn start(config: &Config, listeners: Listeners) -> anyhow::Result<Self> {
        let ground = Ground::open(config, &listeners).await?;
        let number = NodeId(config.node.id);
        let node_identity = NodeIdentity::from_bytes(*ground.identity.uuid.as_bytes())?;
        let receptionist = Receptionist::new(number, node_identity);
        receptionist.attend(&ground.transport);
        let identity = joining::join(config, &ground.transport, ground.identity.clone()).await?;
        let cluster_id = identity.cluster.context("a member has a cluster")?;
        let cluster_id = ClusterId::from_bytes(*cluster_id.as_bytes())?;

        let server = Self::take_part(config, ground, &identity).await?;
        receptionist.admit(cluster_id, server.cluster.controller().clone());
        server.run_search(config, cluster_id);
        server.run_agent(
            config,
            Myself {
                node: number,
                identity: node_identity,
            },
        );
        joining::register(config, &server.cluster, &identity).await?;
        server.run_api(config, listeners.grpc);
        info!(node = %number, cluster = %cluster_id, "the node serves");
        Ok(server)
    }

    /// Opens the controller's replica and everything that stands on it.
    async fn take_part(
        config: &Config,
        ground: Ground,
        identity: &Identity,
    ) -> anyhow::Result<Self> {
        let Ground {
            store,
            kv,
            transport,
            entropy,
            uring_fallback,
            ..
        } = ground;
        let peers = PeerFile::load(&config.node.data_dir, transport.book());
        let raft = raft_config(config);
        let node = Node::start(&raft, store.clone(), kv.clone(), transport.clone())?;
        let (view, map, changes) = ControllerView::new();
        let group = joining::open_controller(&node, identity, view).await?;
        let controller = ControllerHandle::new(group, transport.clone(), map, changes);
        let partitions = Partitions::default();
        kinds::serve(&controller, &partitions);
        let cluster = Cluster::new(ClusterParts {
            node: NodeId(config.node.id),
            partitions,
            controller,
            leaders: Leaders::default(),
            liveness: Liveness::start(&transport, Arc::new(SystemClock), &entropy),
        });
        Ok(Self {
            store,
            node,
            transport,
            cluster,
            uring_fallback,
            kv,
            entropy,
            peers: Arc::new(Mutex::new(peers)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Looks for the other nodes until the map says where they are.
    fn run_search(&self, config: &Config, cluster_id: ClusterId) {
        let (transport, cluster) = (self.transport.clone(), self.cluster.clone());
        let own = [config.advertised_peer(), config.listen.peer.to_string()];
        let seeds = config
            .cluster
            .seeds
            .iter()
            .filter(|seed| !own.contains(seed));
        let seeds: Vec<String> = seeds.cloned().collect();
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            let known = || cluster.map().cluster().is_some();
            let search = find_peers(&transport, &seeds, cluster_id, known);
            stop.run_until_cancelled(search).await;
        });
    }

    fn run_agent(&self, config: &Config, me: Myself) {
        let agent = Agent {
            cluster: self.cluster.clone(),
            node: self.node.clone(),
            me,
            progress: Arc::default(),
            peers: Arc::clone(&self.peers),
            intake: Intake {
                in_flight: Arc::new(Semaphore::new(IN_FLIGHT_BYTES)),
                pressure: self.store.pressure(),
            },
            max_batch_bytes: config.limits.batch_size.as_usize(),
        };
        self.tasks.spawn(agent.run(self.stop.clone()));
        let partitions = self.cluster.partitions().clone();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let retention = keep_retention(partitions, clock, self.stop.clone());
        self.tasks.spawn(retention);
        let leaders = self.cluster.leaders().clone();
        let keeping = leaders.keep(
            self.cluster.clone(),
            self.transport.clone(),
            self.stop.clone(),
        );
        self.tasks.spawn(keeping);
    }

    fn run_api(&self, config: &Config, listener: TcpListener) {
        let limits = ApiLimits {
            batch_bytes: config.limits.batch_size.as_usize(),
            inflight_bytes: config.limits.inflight_size.as_usize(),
            connections: usize::try_from(config.limits.connections).unwrap_or(usize::MAX),
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let api = Api::new(self.cluster.clone(), clock, self.entropy.clone(), limits);
        let stopped = self.stop.clone().cancelled_owned();
        self.tasks.spawn(async move {
            if let Err(error) = api.serve(listener, stopped).await {
                warn!(%error, "the gRPC port stopped");
            }
        });
    }

    /// Fires once storage can no longer be trusted.
    pub fn fatal(&self) -> watch::Receiver<Option<trilog_storage::fatal::Fatal>> {
        self.store.fatal()
    }

    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Hands leaderships over, ends serving, writes out what is in memory. What does not end
    /// within `patience` is left behind: the log needs no orderly end.
    pub async fn stop(self, patience: Duration) {
        let ending = async {
            self.node.shutdown().await;
            self.stop.cancel();
            self.tasks.close();
            // Clients with open streams are not waited for longer than this.
            drop(tokio::time::timeout(Duration::from_secs(1), self.tasks.wait()).await);
            self.cluster.liveness().stop().await;
            self.transport.close().await;
            if let Err(error) = self.kv.flush().await {
                warn!(%error, "the view state was not written out; it is replayed at the next start");
            }
            if let Err(error) = self.store.close().await {
                warn!(%error, "the log was not closed in order; it is recovered at the next start");
            }
        };
        if tokio::time::timeout(patience, ending).await.is_err() {
            warn!("the stop took too long and was cut short");
        }
    }
}

impl Ground {
    async fn open(config: &Config, listeners: &Listeners) -> anyhow::Result<Self> {
        let dir = &config.node.data_dir;
        std::fs::create_dir_all(dir)
            .with_context(|| format!("creating the data directory {}", dir.display()))?;
        let entropy = Entropy::from_os();
        let number = NodeId(config.node.id);
        let identity = match Identity::load(dir, number)? {
            Some(identity) => identity,
            None => fresh_identity(dir, number)?,
        };
        let probe = Backend::probe(choice(config.storage.io), dir)
            .context("storage.io = \"uring\" was asked for")?;
        if let Some(reason) = &probe.refusal {
            warn!(%reason, "io_uring is not used; plain system calls do its work");
        }
        info!(io = probe.backend.name(), "file back-end");
        let uring_fallback = probe.refusal.is_some();
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let opened = Store::open(store_config(config), probe.backend, clock, entropy.clone()).await;
        let (store, report) =
            opened.with_context(|| format!("opening the log in {}", dir.display()))?;
        info!(
            groups = report.groups.len(),
            bytes_read = report.bytes_read,
            "log recovered"
        );
        let kv = Kv::open_rocks(
            &dir.join("kv"),
            &[trilog_raft::KV_FAMILY],
            KvConfig::default(),
        )
        .await
        .with_context(|| format!("opening the view state in {}", dir.join("kv").display()))?;
        let cluster = identity
            .cluster
            .map(|id| trilog_raft::transport::ClusterId(*id.as_bytes()));
        let transport = Transport::tcp(
            TransportConfig::new(number, cluster),
            &listeners.peer.to_string(),
            entropy.clone(),
        )
        .await
        .with_context(|| format!("listening for peers on {}", listeners.peer))?;
        Ok(Self {
            store,
            kv,
            transport,
            entropy,
            identity,
            uring_fallback,
        })
    }
}

fn fresh_identity(dir: &Path, node: NodeId) -> anyhow::Result<Identity> {
    let identity = Identity::new(node, uuid::Uuid::new_v4());
    identity.save(dir)?;
    Ok(identity)
}

fn choice(io: IoChoice) -> Choice {
    match io {
        IoChoice::Auto => Choice::Auto,
        IoChoice::Uring => Choice::Uring,
        IoChoice::Threads => Choice::Threads,
    }
}

fn store_config(config: &Config) -> StoreConfig {
    let storage = &config.storage;
    let defaults = StoreConfig::new(config.node.data_dir.clone());
    StoreConfig {
        wal_file_bytes: storage.wal_file_size.get(),
        // A round never spans files; small ones still hold several.
        wal_round_bytes: defaults
            .wal_round_bytes
            .min(storage.wal_file_size.as_usize() / 4),
        wal_files: storage.wal_files,
        pinned_bytes: storage.pinned_size.get(),
        cache_bytes: storage.cache_size.get(),
        segment_bytes: storage.segment_size.get(),
        fill_bytes: storage.fill_size.get(),
        scrub_bytes_per_second: storage.scrub_rate.get(),
        ..defaults
    }
}

fn raft_config(config: &Config) -> RaftConfig {
    let raft = &config.raft;
    RaftConfig {
        heartbeat: raft.heartbeat_interval.get(),
        election_min: raft.election_timeout_min.get(),
        election_max: raft.election_timeout_max.get(),
        quiesce_after: Some(raft.quiesce_after.get()),
        ..RaftConfig::default()
    }
}
