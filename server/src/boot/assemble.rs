//! The parts of a running node, in the order they depend on one another.

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
use trilog_raft::controller::{BUILD_LEVEL, ClusterId, NodeIdentity, Standing};
use trilog_raft::transport::Transport;
use trilog_raft::{Node, RaftConfig};
use trilog_storage::env::{Clock, Entropy};
use trilog_storage::kv::Kv;
use trilog_storage::store::Store;

use super::first_admin::FirstAdmin;
use super::ground::Ground;
use super::joining;
use crate::access::{Access, Settings as AccessSettings};
use crate::admin::{Api, Limits as ApiLimits, Parts as ApiParts};
use crate::cluster::{
    Agent, Cluster, Identity, Leaders, Liveness, Parts as ClusterParts, PeerFile, Receptionist,
    Timekeeper, find_peers, kinds,
};
use crate::config::{Authentication, Config};
use crate::group::{Coordinator, LagMeter, Settings as GroupSettings};
use crate::kafka::{Kafka, Limits as KafkaLimits, Parts as KafkaParts};
use crate::listen::{RequestMemory, Tls, TlsFiles};
use crate::partition::{Intake, Partitions, keep_compaction, keep_retention};
use crate::transaction::{self, Settings as TransactionSettings};

/// How long a stop waits for others to get their votes in the controller.
const GROWTH_PATIENCE: Duration = Duration::from_secs(5);
/// Bytes of appends that may wait or be on their way on one node.
const IN_FLIGHT_BYTES: usize = 256 << 20;

/// The sockets of a node, bound before anything is read or written.
#[derive(Debug)]
pub struct Listeners {
    grpc: TcpListener,
    kafka: TcpListener,
    /// For Kafka clients.
    tls: Option<Tls>,
    peer: std::net::SocketAddr,
}

impl Listeners {
    pub async fn bind(config: &Config) -> anyhow::Result<Self> {
        let address = config.listen.grpc;
        let grpc = TcpListener::bind(address)
            .await
            .with_context(|| format!("listening for gRPC on {address}"))?;
        let address = config.listen.kafka;
        let kafka = TcpListener::bind(address)
            .await
            .with_context(|| format!("listening for Kafka clients on {address}"))?;
        let tls = match (&config.tls.certificate, &config.tls.key) {
            (Some(certificate), Some(key)) => {
                let (certificate, key) = (certificate.clone(), key.clone());
                Some(Tls::load(TlsFiles { certificate, key }).context("TLS for Kafka clients")?)
            }
            _ => None,
        };
        Ok(Self {
            grpc,
            kafka,
            tls,
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
    coordinator: Coordinator,
    pub(super) lag: LagMeter,
    transactions: transaction::Coordinator,
    access: Access,
    pub(super) uring_fallback: bool,
    pub(super) timekeeper: Timekeeper,
    /// What the requests of all dialects share.
    pub(super) requests: RequestMemory,
    kv: Kv,
    clock: Arc<dyn Clock>,
    entropy: Entropy,
    peers: Arc<Mutex<PeerFile>>,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Server {
    /// Opens the data directory, joins or forms the cluster, and serves. Waits for the seeds for
    /// as long as it takes.
    pub async fn start(config: &Config, listeners: Listeners) -> anyhow::Result<Self> {
        let mut config = config.clone();
        // The port that was bound is the one to tell others of, where any was asked for.
        config.listen.kafka = listeners.kafka.local_addr()?;
        let first_admin = FirstAdmin::read(&config)?;
        let ground = Ground::open(&config, listeners.peer).await?;
        let server = Box::pin(Self::start_on(&config, ground)).await?;
        if let Some(admin) = first_admin {
            let making = admin.make(server.cluster.clone(), server.access.clone());
            let stop = server.stop.clone();
            server.tasks.spawn(async move {
                stop.run_until_cancelled(making).await;
            });
        }
        server.run_api(&config, listeners.grpc);
        server.run_kafka(&config, listeners.kafka, listeners.tls);
        Ok(server)
    }

    /// As [`Server::start`], on ground that was prepared, without the native API.
    pub async fn start_on(config: &Config, ground: Ground) -> anyhow::Result<Self> {
        let number = NodeId(config.node.id);
        let node_identity = NodeIdentity::from_bytes(*ground.identity.uuid.as_bytes())?;
        let member_of = ground.identity.cluster;
        let member_of = member_of.map(|id| ClusterId::from_bytes(*id.as_bytes()));
        let receptionist = Receptionist::new(number, node_identity, member_of.transpose()?);
        receptionist.attend(&ground.transport);
        let identity = joining::join(config, &ground.transport, ground.identity.clone()).await?;
        let cluster_id = identity.cluster.context("a member has a cluster")?;
        let cluster_id = ClusterId::from_bytes(*cluster_id.as_bytes())?;

        let (server, identity) = Self::take_part(config, ground, identity).await?;
        receptionist.admit(cluster_id, server.cluster.controller().clone());
        let found = server.run_search(config, cluster_id);
        server.run_agent(
            config,
            Myself {
                node: number,
                identity: node_identity,
                confirmed: None,
            },
        );
        server.run_timekeeper();
        let coordinator = server.coordinator.clone();
        let lag = server.lag.clone();
        let measuring = lag.keep(coordinator.clone(), server.stop.clone());
        server.tasks.spawn(measuring);
        server.tasks.spawn(coordinator.keep(server.stop.clone()));
        let transactions = server.transactions.clone();
        server.tasks.spawn(transactions.keep(server.stop.clone()));
        if let Some(unsaid) = joining::register(config, &server.cluster, &identity).await? {
            let (saying, stop) = (unsaid.say(server.cluster.clone()), server.stop.clone());
            server.tasks.spawn(async move {
                stop.run_until_cancelled(saying).await;
            });
        }
        // From here on the map knows this node, and tells it of the others.
        found.cancel();
        info!(node = %number, cluster = %cluster_id, "the node serves");
        Ok(server)
    }

    /// Opens the controller's replica and everything that stands on it.
    pub(super) async fn take_part(
        config: &Config,
        ground: Ground,
        identity: Identity,
    ) -> anyhow::Result<(Self, Identity)> {
        let Ground {
            store,
            kv,
            transport,
            clock,
            steady,
            entropy,
            peers,
            uring_fallback,
            ..
        } = ground;
        let raft = raft_config(config);
        let (log, views, links) = (store.clone(), kv.clone(), transport.clone());
        let node = Node::start(&raft, log, views, links, Arc::clone(&clock), &entropy)?;
        let opening = joining::open_controller(config, &node, &transport, identity);
        let (controller, identity) = opening.await?;
        let partitions = Partitions::default();
        kinds::serve(&controller, &partitions);
        let cluster = Cluster::new(ClusterParts {
            node: NodeId(config.node.id),
            partitions,
            controller,
            leaders: Leaders::default(),
            liveness: Liveness::new(node.heartbeats().clone()),
        });
        let access = access(config);
        let coordinator = Coordinator::new(
            cluster.clone(),
            access.clone(),
            group_settings(config),
            Arc::clone(&clock),
            Entropy::from_seed(entropy.next_u64()),
        );
        let transactions = transaction::Coordinator::new(
            cluster.clone(),
            coordinator.clone(),
            transaction_settings(config),
            Arc::clone(&clock),
            Entropy::from_seed(entropy.next_u64()),
        );
        transaction::serve(&transactions);
        let server = Self {
            store,
            node,
            transport,
            cluster,
            coordinator,
            lag: LagMeter::default(),
            transactions,
            access,
            uring_fallback,
            timekeeper: Timekeeper::new(steady, config.raft.clock_skew_max.get()),
            requests: RequestMemory::new(config.limits.request_memory.as_usize()),
            kv,
            clock,
            entropy,
            peers: Arc::new(Mutex::new(peers)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        };
        Ok((server, identity))
    }

    /// Looks for the other nodes among the seeds until the token is cancelled.
    fn run_search(&self, config: &Config, cluster_id: ClusterId) -> CancellationToken {
        let transport = self.transport.clone();
        let own = [config.advertised_peer(), config.listen.peer.to_string()];
        let seeds = config
            .cluster
            .seeds
            .iter()
            .filter(|seed| !own.contains(seed));
        let seeds: Vec<String> = seeds.cloned().collect();
        let found = self.stop.child_token();
        let stop = found.clone();
        self.tasks.spawn(async move {
            let search = find_peers(&transport, &seeds, cluster_id);
            stop.run_until_cancelled(search).await;
        });
        found
    }

    fn run_agent(&self, config: &Config, me: Myself) {
        let agent = Agent {
            cluster: self.cluster.clone(),
            node: self.node.clone(),
            me,
            clock_skew: config.raft.clock_skew_max.get(),
            progress: Arc::default(),
            peers: Arc::clone(&self.peers),
            intake: Intake {
                in_flight: Arc::new(Semaphore::new(IN_FLIGHT_BYTES)),
                pressure: self.store.pressure(),
                clock: Arc::clone(&self.clock),
            },
            max_batch_bytes: config.limits.batch_size.as_usize(),
            tasks: self.tasks.clone(),
            stop: self.stop.clone(),
        };
        self.tasks.spawn(agent.run());
        let partitions = self.cluster.partitions().clone();
        let clock = Arc::clone(&self.clock);
        let retention = keep_retention(partitions.clone(), Arc::clone(&clock), self.stop.clone());
        self.tasks.spawn(retention);
        let compaction = keep_compaction(partitions, clock, self.stop.clone());
        self.tasks.spawn(compaction);
        let leaders = self.cluster.leaders().clone();
        let keeping = leaders.keep(
            self.cluster.clone(),
            self.transport.clone(),
            self.stop.clone(),
        );
        self.tasks.spawn(keeping);
    }

    fn run_timekeeper(&self) {
        let keeping = self.timekeeper.clone().keep(
            self.cluster.clone(),
            self.node.clone(),
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
        let parts = ApiParts {
            cluster: self.cluster.clone(),
            groups: self.coordinator.clone(),
            transactions: self.transactions.clone(),
            access: self.access.clone(),
            clock: Arc::clone(&self.clock),
            entropy: self.entropy.clone(),
            requests: self.requests.clone(),
        };
        let api = Api::new(parts, limits);
        let stopped = self.stop.clone().cancelled_owned();
        self.tasks.spawn(async move {
            if let Err(error) = api.serve(listener, stopped).await {
                warn!(%error, "the gRPC port stopped");
            }
        });
    }

    fn run_kafka(&self, config: &Config, socket: TcpListener, tls: Option<Tls>) {
        let limits = KafkaLimits {
            connections: usize::try_from(config.kafka.connections).unwrap_or(usize::MAX),
            request_bytes: config.kafka.request_size.as_usize(),
            inflight_bytes: config.limits.inflight_size.as_usize(),
            memory: config.kafka.memory.as_usize(),
            fetch_sessions: usize::try_from(config.kafka.fetch_sessions).unwrap_or(usize::MAX),
            fetch_session_memory: config.kafka.fetch_session_memory.as_usize(),
        };
        let data_dir = &config.node.data_dir;
        let parts = KafkaParts {
            cluster: self.cluster.clone(),
            groups: self.coordinator.clone(),
            transactions: self.transactions.clone(),
            access: self.access.clone(),
            clock: Arc::clone(&self.clock),
            entropy: self.entropy.clone(),
            requests: self.requests.clone(),
            data_dir: std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.clone()),
        };
        let kafka = Kafka::new(parts, limits);
        if let Some(tls) = tls.clone() {
            let stop = self.stop.clone();
            self.tasks.spawn(async move {
                stop.run_until_cancelled(tls.keep()).await;
            });
        }
        self.tasks
            .spawn(kafka.serve(socket, tls, self.stop.clone()));
    }

    /// Fires once storage can no longer be trusted.
    pub fn fatal(&self) -> watch::Receiver<Option<trilog_storage::fatal::Fatal>> {
        self.store.fatal()
    }

    /// Waits until the cluster has a feature level that this build cannot follow, for instance
    /// because it is older than the one that ran here before; answers that level.
    pub async fn outgrown(&self) -> u32 {
        let mut changes = self.cluster.changes();
        loop {
            let level = self.cluster.map().level();
            if level > BUILD_LEVEL {
                return level;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    #[must_use]
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// The coordinator of the groups whose partitions this node leads.
    #[must_use]
    pub fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    /// The coordinator of the transactions whose partitions this node leads.
    #[must_use]
    pub fn transactions(&self) -> &transaction::Coordinator {
        &self.transactions
    }

    pub(super) fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    /// Whether this node's clock can be relied on.
    #[must_use]
    pub fn timekeeper(&self) -> &Timekeeper {
        &self.timekeeper
    }

    /// Waits, within bounds, while the others could not elect a leader of the controller without
    /// this node, though they are about to get the votes for it.
    async fn await_other_voters(&self) {
        let mut changes = self.cluster.changes();
        let alone = || {
            let map = self.cluster.map();
            let replicas = map.controller().replicas.iter();
            let voters = replicas.filter(|replica| replica.settled == Standing::Voter);
            let (own, others): (Vec<NodeId>, Vec<NodeId>) = voters
                .map(|replica| replica.id.node())
                .partition(|node| *node == self.node.id());
            let active = map.active_nodes().count();
            let voters = own.len() + others.len();
            // Of two voters none can do without the other: more are to come, or there is no use.
            let may_wait = if others.is_empty() {
                active > 1
            } else {
                active > 2
            };
            !own.is_empty() && others.len() <= voters / 2 && may_wait
        };
        let others_vote = async { while alone() && changes.changed().await.is_ok() {} };
        if tokio::time::timeout(GROWTH_PATIENCE, others_vote)
            .await
            .is_err()
        {
            warn!("no other node has a vote in the controller: the cluster waits for this one");
        }
    }

    /// Hands leaderships over, ends serving, writes out what is in memory. What does not end
    /// within `patience` is left behind: the log needs no orderly end.
    pub async fn stop(self, patience: Duration) {
        let ending = async {
            self.await_other_voters().await;
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

fn group_settings(config: &Config) -> GroupSettings {
    let groups = &config.groups;
    GroupSettings {
        partitions: groups.partitions,
        initial_rebalance_delay: groups.initial_rebalance_delay.get(),
        session_timeout_min: groups.session_timeout_min.get(),
        session_timeout_max: groups.session_timeout_max.get(),
        members_max: usize::try_from(groups.members_max).unwrap_or(usize::MAX),
        consumer_session: groups.consumer_session_timeout.get(),
        consumer_heartbeat: groups.consumer_heartbeat_interval.get(),
        offset_retention: groups.offset_retention.get(),
        offset_metadata_max: groups.offset_metadata_max.as_usize(),
    }
}

fn access(config: &Config) -> Access {
    let access = &config.access;
    Access::new(AccessSettings {
        required: access.authentication == Authentication::Required,
        super_users: access.super_users.clone(),
        allow_unruled: access.allow_unruled,
        session_lifetime: access.session_lifetime.get(),
    })
}

fn transaction_settings(config: &Config) -> TransactionSettings {
    let transactions = &config.transactions;
    TransactionSettings {
        partitions: transactions.partitions,
        timeout_max: transactions.timeout_max.get(),
        id_expiration: transactions.id_expiration.get(),
    }
}

fn raft_config(config: &Config) -> RaftConfig {
    let raft = &config.raft;
    RaftConfig {
        heartbeat: raft.heartbeat_interval.get(),
        election_min: raft.election_timeout_min.get(),
        election_max: raft.election_timeout_max.get(),
        catch_up_bytes_per_second: raft.catch_up_rate.get(),
        quiesce_after: Some(raft.quiesce_after.get()),
        ..RaftConfig::default()
    }
}
