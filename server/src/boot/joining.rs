//! From a data directory to a member of a cluster: founding it, joining it, or coming back.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};
use tracing::{error, info, warn};
use trilog_model::{GroupId, NodeId, ReplicaId};
use trilog_raft::controller::commands::{Bootstrap, Command, Endpoint, Purpose, RegisterNode};
use trilog_raft::controller::{BASE_LEVEL, BUILD_LEVEL, ControllerError, NodeIdentity};
use trilog_raft::transport::{ClusterId, Transport};
use trilog_raft::{MembershipError, Node, OpenError};
use uuid::Uuid;

use crate::cluster::{
    Applicant, Cluster, ControllerHandle, ControllerView, Identity, Membership, ProposeError,
};
use crate::config::{Authentication, Config};

/// The founder's replica of the controller group.
const FOUNDING_INCARNATION: u32 = 1;
/// How long a node waits before it says again what was not understood.
const AGAIN: Duration = Duration::from_secs(10);

/// The identity as a member: as it was, or after asking the seeds.
pub(super) async fn join(
    config: &Config,
    transport: &Transport,
    identity: Identity,
) -> anyhow::Result<Identity> {
    if identity.controller_replica().is_some() {
        return Ok(identity);
    }
    let node = NodeId(config.node.id);
    let membership = apply(config, transport, &identity, None).await?;
    let joined = match membership {
        Membership::Founder => {
            info!(%node, "no seed belongs to a cluster: this node founds one");
            let replica = ReplicaId::new(node, FOUNDING_INCARNATION);
            identity.founding(Uuid::new_v4(), replica)
        }
        Membership::Joined {
            cluster,
            controller_replica,
        } => {
            info!(%node, %cluster, "joined the cluster");
            identity.joined(Uuid::from_bytes(*cluster.as_bytes()), controller_replica)
        }
    };
    joined.save(&config.node.data_dir)?;
    let cluster = joined.cluster.context("a member has a cluster")?;
    transport.join_cluster(ClusterId(*cluster.as_bytes()));
    Ok(joined)
}

/// Asks to be taken in, or taken in again; `gives_up` is a replica whose state is lost.
async fn apply(
    config: &Config,
    transport: &Transport,
    identity: &Identity,
    gives_up: Option<ReplicaId>,
) -> anyhow::Result<Membership> {
    let book = transport.book();
    // The nodes it knew count as seeds for one that comes back.
    let known = book.nodes().into_iter().filter_map(|node| book.get(node));
    let seeds = config.cluster.seeds.iter().cloned();
    let seeds: Vec<String> = match identity.cluster {
        Some(_) => seeds.chain(known).collect(),
        None => seeds.collect(),
    };
    let applicant = Applicant {
        transport,
        node: NodeId(config.node.id),
        identity: node_identity(identity)?,
        seeds: &seeds,
        own_addresses: &[config.advertised_peer(), config.listen.peer.to_string()],
        registration: registration(config, identity),
        replace: config.cluster.replace,
        replaces: identity.replaces().map(identity_of).transpose()?,
        gives_up,
    };
    let Some(cluster) = identity.cluster else {
        return Ok(applicant.settle().await?);
    };
    let cluster = trilog_raft::controller::ClusterId::from_bytes(*cluster.as_bytes())?;
    Ok(applicant.rejoin(cluster).await?)
}

/// Opens this node's replica of the controller group; the founder forms it, again if a crash
/// came in between. A replica that has lost its state is given up for another one, which the
/// identity then names.
pub(super) async fn open_controller(
    config: &Config,
    node: &Node,
    transport: &Transport,
    identity: Identity,
) -> anyhow::Result<(ControllerHandle, Identity)> {
    let replica = identity
        .controller_replica()
        .context("a member has a controller replica")?;
    let (view, map, changes) = ControllerView::new();
    let opened = node.open_group(GroupId::CONTROLLER, replica, view).await;
    let group = match opened {
        Ok(group) => group,
        // A group that runs has damaged entries fetched; this one a node cannot run without.
        Err(error) if error.is_loss() || error.is_damage() => {
            error!(%replica, %error, "the controller's replica here is given up for another one");
            let identity = give_up(config, transport, identity, replica).await?;
            return Box::pin(open_controller(config, node, transport, identity)).await;
        }
        // Given up before, and not deleted yet.
        Err(OpenError::OtherReplica { held, .. }) if held < replica => {
            node.delete_group(GroupId::CONTROLLER)
                .await
                .context("deleting the controller's former log")?;
            return Box::pin(open_controller(config, node, transport, identity)).await;
        }
        Err(error) => return Err(error).context("opening the controller's log"),
    };
    if identity.is_founder() {
        match group.found(&BTreeSet::from([replica])).await {
            Ok(()) | Err(MembershipError::Founded) => {}
            Err(error) => return Err(error).context("forming the controller group"),
        }
    }
    let handle = ControllerHandle::new(group, transport.clone(), map, changes);
    Ok((handle, identity))
}

/// Has the cluster put another replica in the place of this node's one of the controller group.
/// The former stays on disk until the identity, durably, names the new one: an empty log under
/// the old name would be a voter without its votes.
async fn give_up(
    config: &Config,
    transport: &Transport,
    identity: Identity,
    replica: ReplicaId,
) -> anyhow::Result<Identity> {
    match apply(config, transport, &identity, Some(replica)).await? {
        Membership::Joined {
            controller_replica, ..
        } => {
            let identity = identity.with_controller_replica(controller_replica);
            identity.save(&config.node.data_dir)?;
            Ok(identity)
        }
        Membership::Founder => bail!("a member was told to found its cluster"),
    }
}

/// Tells the controller where this node is now; the founder initializes the cluster first. What the
/// cluster does not understand yet is left out, and is to be said later.
pub(super) async fn register(
    config: &Config,
    cluster: &Cluster,
    identity: &Identity,
) -> anyhow::Result<Option<Unsaid>> {
    let node = registration(config, identity);
    if identity.is_founder() && cluster.map().cluster().is_none() {
        let id = identity.cluster.context("a member has a cluster")?;
        let bootstrap = Command::Bootstrap(Bootstrap {
            cluster: bytes::Bytes::copy_from_slice(id.as_bytes()),
            node: node.clone(),
            level: BUILD_LEVEL,
        });
        match cluster.propose_when_led(&bootstrap).await {
            // Done by an earlier start, which this node has yet to replay.
            Ok(()) | Err(ProposeError::Refused(ControllerError::AlreadyBootstrapped {})) => {}
            Err(error) => return Err(error).context("initializing the cluster"),
        }
    }
    let whole = Command::RegisterNode(RegisterNode {
        asks: Some(config.access.authentication == Authentication::Required),
        ..node.clone()
    });
    let unsaid = match cluster.propose_when_led(&whole).await {
        Ok(()) => return Ok(None),
        Err(ProposeError::Refused(refusal)) if is_not_understood(&refusal) => Unsaid(whole),
        Err(error) => return Err(error).context("registering this node with the cluster"),
    };
    cluster
        .propose_when_led(&Command::RegisterNode(node))
        .await
        .context("registering this node with the cluster")?;
    Ok(Some(unsaid))
}

/// Whether a cluster that is yet to be upgraded refuses what it does not know. Of the builds of one
/// level before its release the older ones may not know all of it.
fn is_not_understood(refusal: &ControllerError) -> bool {
    matches!(
        refusal,
        ControllerError::LevelNotActive { .. } | ControllerError::Malformed { .. }
    )
}

/// The registration of a node, with what its cluster does not understand before an upgrade.
#[derive(Debug)]
pub(super) struct Unsaid(Command);

impl Unsaid {
    /// Says it as soon as it is understood, for as long as that may take.
    pub(super) async fn say(self, cluster: Cluster) {
        let mut changes = cluster.changes();
        let is_raised = |_: &u64| cluster.map().level() >= self.0.level();
        while changes.wait_for(is_raised).await.is_ok() {
            match cluster.propose_when_led(&self.0).await {
                Ok(()) => return,
                Err(ProposeError::Refused(refusal)) if is_not_understood(&refusal) => {
                    tokio::time::sleep(AGAIN).await;
                }
                Err(error) => {
                    warn!(%error, "the cluster does not hear whether this node asks for users");
                    return;
                }
            }
        }
    }
}

fn node_identity(identity: &Identity) -> anyhow::Result<NodeIdentity> {
    identity_of(identity.uuid)
}

fn identity_of(uuid: Uuid) -> anyhow::Result<NodeIdentity> {
    Ok(NodeIdentity::from_bytes(*uuid.as_bytes())?)
}

/// What every build understands of a node.
fn registration(config: &Config, identity: &Identity) -> RegisterNode {
    let cluster = identity
        .cluster
        .map(|id| bytes::Bytes::copy_from_slice(id.as_bytes()));
    RegisterNode {
        node: config.node.id,
        identity: bytes::Bytes::copy_from_slice(identity.uuid.as_bytes()),
        rack: config.node.rack.clone().unwrap_or_default(),
        endpoints: endpoints(config),
        min_level: BASE_LEVEL,
        max_level: BUILD_LEVEL,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster: cluster.unwrap_or_default(),
        asks: None,
    }
}

fn endpoints(config: &Config) -> Vec<Endpoint> {
    let http = config.listen.http.to_string();
    let all = [
        (Purpose::Peer, config.advertised_peer()),
        (Purpose::Grpc, config.advertised_grpc()),
        (Purpose::Http, http),
        (Purpose::Kafka, config.advertised_kafka()),
    ];
    let endpoints = all.iter().filter_map(|(purpose, address)| {
        let (host, port) = address.rsplit_once(':')?;
        Some(Endpoint::new(*purpose, host, port.parse().ok()?))
    });
    endpoints.collect()
}

#[cfg(test)]
mod tests;
