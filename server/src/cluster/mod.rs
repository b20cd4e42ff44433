//! The cluster as this node takes part in it: the map, the controller, the partitions held here.
//!
//! Below the dialects and above the Raft layer. Owns finding a partition or its leader, changing
//! metadata through whichever node leads the controller, and (in `agent`) doing what the map asks
//! of this node.

mod agent;
mod controller;
mod identity;
mod internal;
pub mod kinds;
mod leaders;
mod liveness;
mod locate;
mod membership;
mod peers;
mod producer_ids;
mod proxy;
mod quorum;
mod reassign;
mod recovery;
mod timekeeper;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use trilog_model::{GroupId, NodeId, Term};
use trilog_raft::controller::commands::{Command, Purpose};
use trilog_raft::controller::{ClusterMap, Partition as Place, Reply, Topic, TopicId};

pub use agent::Agent;
pub use controller::{ControllerHandle, ControllerView, ProposeError};
pub use identity::{Identity, IdentityError};
pub use internal::InternalError;
pub use leaders::Leaders;
pub use liveness::Liveness;
pub use locate::Located;
pub use membership::{Applicant, Membership, MembershipError, Receptionist, find_peers};
pub use peers::PeerFile;
pub use proxy::ProxyError;
pub use quorum::{Held, Quorum};
pub use reassign::{Destination, ReassignError};
pub use recovery::{RecoveryFile, check_recovered, date_of, dated_cluster_id};
pub use timekeeper::{ClockState, Timekeeper};

use crate::partition::{Partition, Partitions};
use producer_ids::ProducerIds;

/// Shared by everything that serves requests; cheap to clone.
#[derive(Clone, Debug)]
pub struct Cluster {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    parts: Parts,
    producer_ids: ProducerIds,
}

/// What a cluster handle is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// This node.
    pub node: NodeId,
    pub partitions: Partitions,
    pub controller: ControllerHandle,
    pub leaders: Leaders,
    pub liveness: Liveness,
}

/// Why a partition cannot be used here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LookupError {
    #[error("there is no topic '{0}'")]
    UnknownTopic(String),
    #[error("topic '{topic}' has {partitions} partitions; there is no partition {asked}")]
    UnknownPartition {
        topic: String,
        asked: u32,
        partitions: usize,
    },
    /// This node holds no replica of it.
    #[error("the partition is on other nodes")]
    Elsewhere { leader: Option<NodeId> },
    /// The topic of this name is another one than was meant.
    #[error("topic '{0}' was deleted and created anew")]
    Replaced(String),
    /// This node knows a topic of this name, another than was meant, and not whether it is the
    /// older or the newer one.
    #[error("topic '{0}' was deleted and created anew, or is about to be known here")]
    Doubtful(String),
}

/// Why a partition is not led here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotLed {
    /// Another node leads it, if any does.
    Here { leader: Option<NodeId> },
    /// This one is about to.
    Yet,
}

impl Cluster {
    #[must_use]
    pub fn new(parts: Parts) -> Self {
        let producer_ids = ProducerIds::default();
        Self {
            inner: Arc::new(Inner {
                parts,
                producer_ids,
            }),
        }
    }

    #[must_use]
    pub fn node(&self) -> NodeId {
        self.inner.parts.node
    }

    /// The newest map this node has.
    #[must_use]
    pub fn map(&self) -> Arc<ClusterMap> {
        self.inner.parts.controller.map()
    }

    /// Moves with each change of the map, to its version.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.inner.parts.controller.changes()
    }

    #[must_use]
    pub fn partitions(&self) -> &Partitions {
        &self.inner.parts.partitions
    }

    #[must_use]
    pub fn leaders(&self) -> &Leaders {
        &self.inner.parts.leaders
    }

    #[must_use]
    pub fn liveness(&self) -> &Liveness {
        &self.inner.parts.liveness
    }

    #[must_use]
    pub fn controller(&self) -> &ControllerHandle {
        &self.inner.parts.controller
    }

    pub fn topic(&self, name: &str) -> Result<Arc<Topic>, LookupError> {
        let map = self.map();
        map.topic_named(name)
            .cloned()
            .ok_or_else(|| LookupError::UnknownTopic(name.to_owned()))
    }

    /// As [`Cluster::topic`], but before a topic is called unknown, this node's map is brought up
    /// to date: a topic that was just created through another node is found.
    pub async fn current_topic(&self, name: &str) -> Result<Arc<Topic>, LookupError> {
        if let Ok(topic) = self.topic(name) {
            return Ok(topic);
        }
        let controller = self.controller();
        if let Some(version) = controller.current_version().await {
            controller.await_version(version).await;
        }
        self.topic(name)
    }

    /// The topic of this name, and if one is meant, no other. A node that knows another one brings
    /// its map up to date before it says so: the one meant may be the newer.
    pub async fn topic_meant(
        &self,
        name: &str,
        meant: Option<TopicId>,
    ) -> Result<Arc<Topic>, LookupError> {
        let topic = self.topic(name)?;
        let Some(meant) = meant.filter(|meant| *meant != topic.id) else {
            return Ok(topic);
        };
        let controller = self.controller();
        let current = match controller.current_version().await {
            Some(version) => controller.await_version(version).await,
            None => false,
        };
        let topic = self.topic(name)?;
        match topic.id == meant {
            true => Ok(topic),
            false if current => Err(LookupError::Replaced(name.to_owned())),
            false => Err(LookupError::Doubtful(name.to_owned())),
        }
    }

    /// Brings this node's map up to date; false if it cannot be known to be.
    pub async fn is_current(&self) -> bool {
        let controller = self.controller();
        match controller.current_version().await {
            Some(version) => controller.await_version(version).await,
            None => false,
        }
    }

    /// Where a partition is placed.
    pub fn place(&self, topic: &str, index: u32) -> Result<Arc<Place>, LookupError> {
        place_in(&*self.topic(topic)?, index)
    }

    /// The replica of a partition on this node.
    pub fn partition(&self, topic: &str, index: u32) -> Result<Partition, LookupError> {
        self.partition_of(&*self.topic(topic)?, index)
    }

    /// As [`Cluster::partition`], of a topic that was looked up already.
    pub fn partition_of(&self, topic: &Topic, index: u32) -> Result<Partition, LookupError> {
        let group = place_in(topic, index)?.group;
        let held = self.inner.parts.partitions.get(group);
        held.ok_or_else(|| LookupError::Elsewhere {
            leader: self.leader(group),
        })
    }

    /// A partition that this node leads, and may admit to, in the term named.
    pub fn led_here(&self, topic: &Topic, index: u32) -> Result<(Partition, Term), NotLed> {
        let partition = match self.partition_of(topic, index) {
            Ok(partition) => partition,
            Err(LookupError::Elsewhere { leader }) => return Err(NotLed::Here { leader }),
            Err(_) => return Err(NotLed::Here { leader: None }),
        };
        let leadership = *partition.leadership().borrow();
        let leader = partition.leader().0;
        if leadership.ready {
            return Ok((partition, leadership.term));
        }
        Err(if leader == Some(self.node()) {
            NotLed::Yet
        } else {
            NotLed::Here { leader }
        })
    }

    /// Whether a node is heard from; always true of this one.
    #[must_use]
    pub fn is_alive(&self, node: NodeId) -> bool {
        node == self.inner.parts.node || self.inner.parts.liveness.is_alive(node)
    }

    /// Whether a node was alive in so much of the time that this one has run; always true of this one.
    #[must_use]
    pub fn was_alive_within(&self, node: NodeId, time: Duration) -> bool {
        self.is_alive(node) || self.inner.parts.liveness.heard_within(node, time)
    }

    /// Who leads a group, as far as this node knows.
    #[must_use]
    pub fn leader(&self, group: GroupId) -> Option<NodeId> {
        match self.inner.parts.partitions.get(group) {
            Some(partition) => partition.leader().0,
            None => self.inner.parts.leaders.get(group),
        }
    }

    /// The term of a group's leader, as far as this node knows; zero where it holds no replica.
    #[must_use]
    pub fn term(&self, group: GroupId) -> Term {
        self.inner
            .parts
            .partitions
            .get(group)
            .map_or(Term(0), |partition| partition.term())
    }

    /// A producer id that nobody else was or will be given.
    pub async fn producer_id(&self) -> Result<i64, ProposeError> {
        self.inner.producer_ids.next(self).await
    }

    /// Where clients of the native API reach a node.
    #[must_use]
    pub fn grpc_address(&self, node: NodeId) -> Option<String> {
        self.address(node, Purpose::Grpc)
    }

    /// Where a node is reached for one purpose, as `host:port`.
    #[must_use]
    pub fn address(&self, node: NodeId, purpose: Purpose) -> Option<String> {
        let map = self.map();
        let endpoint = map.node(node)?.endpoint(purpose)?;
        Some(format!("{}:{}", endpoint.host, endpoint.port))
    }

    /// Changes the cluster's metadata, wherever its leader is, and waits until this node's own
    /// map shows it.
    pub async fn propose(&self, command: &Command) -> Result<Reply, ProposeError> {
        let (reply, version) = self.inner.parts.controller.propose(command).await?;
        // A map that lags is no failure of the change.
        self.inner.parts.controller.await_version(version).await;
        Ok(reply)
    }

    /// As [`Cluster::propose`], for a node that is starting and may find no leader for a while.
    pub async fn propose_when_led(&self, command: &Command) -> Result<(), ProposeError> {
        loop {
            match self.propose(command).await {
                Err(ProposeError::NoLeader | ProposeError::Unknown) => {}
                outcome => return outcome.map(drop),
            }
        }
    }
}

fn place_in(topic: &Topic, index: u32) -> Result<Arc<Place>, LookupError> {
    let place = usize::try_from(index)
        .ok()
        .and_then(|index| topic.partitions.get(index));
    place.cloned().ok_or_else(|| LookupError::UnknownPartition {
        topic: topic.name.to_string(),
        asked: index,
        partitions: topic.partitions.len(),
    })
}
