//! How a node comes to belong to a cluster: who its seeds say they are, what it does about it,
//! and how it is taken in. Decides nothing by itself: `controller::bootstrap` does.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use parking_lot::RwLock;
use prost::Message;
use tokio::time::Instant;
use trilog_model::{GroupId, NodeId, ReplicaId};
use trilog_raft::controller::bootstrap::{Answer, Decision, Seed, decide};
use trilog_raft::controller::commands::{
    Command, RegisterNode, ReplaceNode, ReplicaRef, StepAside,
};
use trilog_raft::controller::{ClusterId, ControllerError, NodeIdentity, Outcome, Reply};
use trilog_raft::controller::{decode_outcome, encode_outcome};
use trilog_raft::transport::{Kind, PeerCall, PeerHandler, PeerStream, Refusal, Transport};

use super::ControllerHandle;

/// Asks a node who it is.
const IDENTIFY: Kind = Kind(1);
/// Asks a node of a cluster to take the caller in.
const JOIN: Kind = Kind(2);
const PATIENCE: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(100);
/// How often a node that waits to be taken in again says so.
const SAID_EVERY: Duration = Duration::from_secs(10);

/// What a node says of itself to one that introduces itself.
#[derive(Clone, PartialEq, Message)]
struct Introduction {
    #[prost(uint32, tag = "1")]
    node: u32,
    /// Empty while the node belongs to no cluster.
    #[prost(bytes = "bytes", tag = "2")]
    cluster: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    identity: Bytes,
}

/// A node's wish to be taken in.
#[derive(Clone, PartialEq, Message)]
struct JoinRequest {
    #[prost(message, required, tag = "1")]
    node: RegisterNode,
    /// Take the place of a node of the same number whose disk is lost.
    #[prost(bool, tag = "2")]
    replace: bool,
    /// The identity it had before its directory turned out to be damaged; else empty.
    #[prost(bytes = "bytes", tag = "3")]
    replaces: Bytes,
    /// Its replica of the controller group, whose state it has lost; else zero.
    #[prost(uint64, tag = "4")]
    gives_up: u64,
}

/// Taken in, and where the controller's other nodes are.
#[derive(Clone, PartialEq, Message)]
struct JoinAnswer {
    /// An outcome of the controller.
    #[prost(bytes = "bytes", tag = "1")]
    outcome: Bytes,
    #[prost(message, repeated, tag = "2")]
    peers: Vec<PeerAddress>,
}

#[derive(Clone, PartialEq, Eq, Hash, Message)]
struct PeerAddress {
    #[prost(uint32, tag = "1")]
    node: u32,
    #[prost(string, tag = "2")]
    address: String,
}

/// Why a node belongs to no cluster.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    #[error("{0}")]
    Refused(String),
    #[error(
        "what this node's controller knew is lost (the folder kv), its log alone cannot give it \
             back, and no other node is known that could: restore kv from a backup, or name a \
             node of the cluster in cluster.seeds"
    )]
    Forgotten,
    #[error(
        "the data directory is damaged and was set aside, and no other node is known that could \
             give this one its replicas back: name one in cluster.seeds"
    )]
    Alone,
    #[error(transparent)]
    Controller(#[from] ControllerError),
}

/// How a node with an empty directory goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Membership {
    /// It founds the cluster.
    Founder,
    Joined {
        cluster: ClusterId,
        controller_replica: ReplicaId,
    },
}

/// A node that belongs to no cluster yet.
#[derive(Debug)]
pub struct Applicant<'a> {
    pub transport: &'a Transport,
    pub node: NodeId,
    pub identity: NodeIdentity,
    pub seeds: &'a [String],
    /// By which of the seeds this node itself is meant.
    pub own_addresses: &'a [String],
    pub registration: RegisterNode,
    pub replace: bool,
    /// The identity it had before its directory turned out to be damaged.
    pub replaces: Option<NodeIdentity>,
    /// Its replica of the controller group, if what that knew is lost.
    pub gives_up: Option<ReplicaId>,
}

impl Applicant<'_> {
    /// Asks the seeds until they say something that settles it.
    pub async fn settle(&self) -> Result<Membership, MembershipError> {
        let mut said = None;
        loop {
            let answers = join_all(self.seeds.iter().map(|seed| self.identify(seed))).await;
            match decide(self.node, self.identity, &answers) {
                Decision::Initialize => return Ok(Membership::Founder),
                Decision::Join { address, .. } => {
                    if let Some(membership) = self.join(&address).await? {
                        return Ok(membership);
                    }
                }
                Decision::Refuse(reason) => {
                    return Err(MembershipError::Refused(reason.to_string()));
                }
                Decision::Wait(reason) => {
                    let reason = reason.to_string();
                    if said.as_ref() != Some(&reason) {
                        tracing::info!(node = %self.node, %reason, "waiting to form a cluster");
                        said = Some(reason);
                    }
                }
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Asks the seeds to take this node in again, under its new identity, until one does. Founds
    /// nothing: the cluster is there, and this node has been in it.
    pub async fn rejoin(&self, cluster: ClusterId) -> Result<Membership, MembershipError> {
        let others = |seed: &&String| !self.own_addresses.contains(seed);
        let seeds: Vec<&String> = self.seeds.iter().filter(others).collect();
        if seeds.is_empty() {
            return Err(match self.gives_up {
                Some(_) => MembershipError::Forgotten,
                None => MembershipError::Alone,
            });
        }
        let mut said = Instant::now();
        loop {
            for address in &seeds {
                let theirs = match self.identify(address).await.answer {
                    Answer::Clustered { cluster, .. } => cluster,
                    Answer::Silent(_) | Answer::Empty { .. } => continue,
                };
                if theirs != cluster {
                    tracing::warn!(%address, %theirs, "a seed of another cluster is passed over");
                } else if let Some(membership) = self.join(address).await? {
                    return Ok(membership);
                }
            }
            if said.elapsed() > SAID_EVERY {
                said = Instant::now();
                tracing::warn!(
                    node = %self.node,
                    "no node of the cluster takes this one in again; that takes a majority of the \
                     controller's voters without it: should there be none for ever, see `trilog \
                     recover` on one that is left"
                );
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn identify(&self, address: &str) -> Seed {
        if self.own_addresses.iter().any(|own| own == address) {
            let answer = Answer::Empty {
                node: self.node,
                identity: self.identity,
            };
            return Seed {
                address: address.to_owned(),
                answer,
            };
        }
        let asked = self
            .transport
            .introduce(address, IDENTIFY, Vec::new(), PATIENCE)
            .await;
        let answer = match asked {
            Err(error) => Answer::Silent(error.to_string()),
            Ok((node, said)) => read_introduction(node, &said),
        };
        Seed {
            address: address.to_owned(),
            answer,
        }
    }

    /// `None` if it is worth trying again.
    async fn join(&self, address: &str) -> Result<Option<Membership>, MembershipError> {
        let request = JoinRequest {
            node: self.registration.clone(),
            replace: self.replace,
            replaces: self.replaces.map(NodeIdentity::to_wire).unwrap_or_default(),
            gives_up: self.gives_up.map_or(0, |replica| replica.0),
        };
        let payload = vec![request.encode_to_vec().into()];
        let asked = self
            .transport
            .introduce(address, JOIN, payload, PATIENCE)
            .await;
        let Ok((_, answer)) = asked else {
            return Ok(None);
        };
        let Ok(answer) = JoinAnswer::decode(answer) else {
            return Ok(None);
        };
        for peer in answer
            .peers
            .into_iter()
            .filter(|peer| peer.node != self.node.get())
        {
            self.transport.book().set(NodeId(peer.node), peer.address);
        }
        let reply = match decode_outcome(&answer.outcome) {
            // The seed's cluster is still being formed.
            Err(ControllerError::NotBootstrapped {}) => return Ok(None),
            outcome => outcome?,
        };
        match reply {
            Reply::Registered {
                cluster,
                controller_replica,
                ..
            } if self.gives_up != Some(controller_replica) => Ok(Some(Membership::Joined {
                cluster,
                controller_replica,
            })),
            // One of a version that does not know of giving up took this for a restart.
            _ => Ok(None),
        }
    }
}

/// Asks the seeds again and again where the nodes of this cluster are: for a node that restarts
/// when all others do, perhaps at other addresses than the map of any of them knows.
pub async fn find_peers(transport: &Transport, seeds: &[String], cluster: ClusterId) {
    loop {
        for seed in seeds {
            let asked = transport
                .introduce(seed.as_str(), IDENTIFY, Vec::new(), PATIENCE)
                .await;
            let Ok((node, said)) = asked else { continue };
            let theirs = match read_introduction(node, &said) {
                Answer::Clustered { cluster, .. } => cluster,
                Answer::Silent(_) | Answer::Empty { .. } => continue,
            };
            if theirs == cluster && node != transport.node() {
                transport.book().set(node, seed.clone());
            }
        }
        tokio::time::sleep(PAUSE * 5).await;
    }
}

fn read_introduction(node: NodeId, said: &Bytes) -> Answer {
    let Ok(said) = Introduction::decode(said.clone()) else {
        return Answer::Silent("its introduction cannot be read".to_owned());
    };
    let Ok(identity) = NodeIdentity::from_wire(&said.identity) else {
        return Answer::Silent("its identity cannot be read".to_owned());
    };
    match ClusterId::from_wire(&said.cluster) {
        Ok(cluster) => Answer::Clustered {
            node,
            identity,
            cluster,
        },
        Err(_) => Answer::Empty { node, identity },
    }
}

/// Answers nodes that introduce themselves.
#[derive(Clone, Debug)]
pub struct Receptionist {
    node: NodeId,
    identity: NodeIdentity,
    /// The cluster it belongs to, though it may not take part yet.
    cluster: Arc<RwLock<Option<ClusterId>>>,
    member: Arc<RwLock<Option<Member>>>,
}

#[derive(Clone, Debug)]
struct Member {
    controller: ControllerHandle,
}

impl Receptionist {
    #[must_use]
    pub fn new(node: NodeId, identity: NodeIdentity, cluster: Option<ClusterId>) -> Self {
        Self {
            node,
            identity,
            cluster: Arc::new(RwLock::new(cluster)),
            member: Arc::default(),
        }
    }

    /// Starts serving on a transport.
    pub fn attend(&self, transport: &Transport) {
        transport.register(0..Kind::FIRST_CLUSTERED, Arc::new(self.clone()));
    }

    /// From now on this node belongs to a cluster and takes others in.
    pub fn admit(&self, cluster: ClusterId, controller: ControllerHandle) {
        *self.cluster.write() = Some(cluster);
        *self.member.write() = Some(Member { controller });
    }

    /// A member that is still starting says so: were it to seem empty, seeds that are might
    /// found a second cluster.
    fn introduction(&self) -> Introduction {
        let cluster = self.cluster.read().map(ClusterId::to_wire);
        Introduction {
            node: self.node.get(),
            cluster: cluster.unwrap_or_default(),
            identity: self.identity.to_wire(),
        }
    }

    async fn take_in(&self, payload: Bytes) -> Result<Vec<Bytes>, Refusal> {
        let request = JoinRequest::decode(payload)
            .map_err(|error| Refusal::Failed(format!("unreadable join request: {error}")))?;
        let member = self.member.read().clone().ok_or(Refusal::Unclustered)?;
        let command = joining(&member.controller, request);
        let outcome: Outcome = match member.controller.propose(&command).await {
            Ok((reply, _)) => Ok(reply),
            Err(super::ProposeError::Refused(refusal)) => Err(refusal),
            Err(_) => return Err(Refusal::Busy),
        };
        let map = member.controller.map();
        let members = map
            .nodes()
            .filter(|node| node.is_member())
            .filter_map(|node| {
                let address = member.controller.peer_address(node.id)?;
                Some(PeerAddress {
                    node: node.id.get(),
                    address,
                })
            });
        let peers = members.collect();
        let answer = JoinAnswer {
            outcome: encode_outcome(&outcome),
            peers,
        };
        Ok(vec![answer.encode_to_vec().into()])
    }
}

/// A replacement names the identity it replaces, so that it cannot replace a later one.
fn joining(controller: &ControllerHandle, request: JoinRequest) -> Command {
    let number = NodeId(request.node.node);
    let known = controller
        .map()
        .node(number)
        .map(|node| node.identity.to_wire());
    match known {
        _ if !request.replaces.is_empty() => Command::ReplaceNode(ReplaceNode {
            node: request.node,
            old_identity: request.replaces,
        }),
        Some(old_identity) if request.replace && old_identity != request.node.identity => {
            Command::ReplaceNode(ReplaceNode {
                node: request.node,
                old_identity,
            })
        }
        // Repeated, it finds nothing to give up and tells the replica given since.
        _ if request.gives_up != 0 => Command::StepAside(StepAside {
            node: request.node.node,
            identity: request.node.identity,
            replicas: vec![ReplicaRef {
                group: GroupId::CONTROLLER.get(),
                replica: request.gives_up,
            }],
        }),
        _ => Command::RegisterNode(request.node),
    }
}

impl PeerHandler for Receptionist {
    fn on_call(&self, call: PeerCall) -> BoxFuture<'static, Result<Vec<Bytes>, Refusal>> {
        let this = self.clone();
        async move {
            match call.kind {
                IDENTIFY => Ok(vec![this.introduction().encode_to_vec().into()]),
                JOIN => this.take_in(call.payload).await,
                _ => Err(Refusal::Unserved),
            }
        }
        .boxed()
    }

    fn on_stream(&self, stream: PeerStream) {
        stream.refuse(&Refusal::Unserved);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_says_so_before_it_takes_part() {
        let identity = NodeIdentity::from_bytes([1; 16]).unwrap();
        let cluster = ClusterId::from_bytes([2; 16]).unwrap();
        let answers = |receptionist: &Receptionist| {
            let said = receptionist.introduction().encode_to_vec().into();
            read_introduction(NodeId(3), &said)
        };
        let empty = Receptionist::new(NodeId(3), identity, None);
        assert!(matches!(answers(&empty), Answer::Empty { .. }));
        let starting = Receptionist::new(NodeId(3), identity, Some(cluster));
        let expected = Answer::Clustered {
            node: NodeId(3),
            identity,
            cluster,
        };
        assert_eq!(answers(&starting), expected);
    }
}
