//! The whole state as bytes and back: format 1.
//!
//! Every list is in the order of its table, so equal states have equal bytes.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use trilog_model::{GroupId, NodeId, ReplicaId, Term, Timestamp};

use super::super::access::{Acl, AclTable, Credential, User};
use super::super::cluster_map::{
    AcceptedLoss, GroupPlace, Node, NodeState, Partition, Replica, Replication, Standing, Tables,
    Topic,
};
use super::super::command::{
    AlterQuota, ConfigEntry, Endpoint, QuotaChange, QuotaClient, ReplicaRef, TopicKind,
};
use super::super::ids::{ClusterId, InvalidIdentity, NodeIdentity, TopicId};
use super::super::level::LevelRange;
use super::super::names::collision_key;
use super::super::quota::{QuotaEntity, QuotaKey, QuotaLimit, QuotaLimits, QuotaName, Quotas};
use super::{ControllerState, loads_of};

/// The format this build writes and the newest it reads.
const FORMAT: u32 = 1;

/// Why bytes are not a state of the controller.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RestoreError {
    #[error("the controller's snapshot is damaged: {0}")]
    Damaged(&'static str),
    #[error("the controller's snapshot has format {0}, this build reads up to {FORMAT}")]
    Format(u32),
    #[error("the cluster's feature level is {active}, this build follows up to {build}")]
    Level { active: u32, build: u32 },
}

impl From<InvalidIdentity> for RestoreError {
    fn from(_: InvalidIdentity) -> Self {
        Self::Damaged("an identity is invalid")
    }
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct SnapshotMessage {
    #[prost(uint32, tag = "1")]
    format: u32,
    #[prost(uint32, tag = "2")]
    level: u32,
    #[prost(uint64, tag = "3")]
    version: u64,
    #[prost(bytes = "bytes", tag = "4")]
    cluster: Bytes,
    #[prost(uint64, tag = "5")]
    next_group: u64,
    #[prost(uint32, tag = "6")]
    next_incarnation: u32,
    #[prost(uint64, tag = "7")]
    next_producer_id: u64,
    #[prost(message, repeated, tag = "8")]
    nodes: Vec<NodeMessage>,
    #[prost(message, repeated, tag = "9")]
    topics: Vec<TopicMessage>,
    #[prost(message, required, tag = "10")]
    controller: PartitionMessage,
    #[prost(message, repeated, tag = "11")]
    retired: Vec<ReplicaRef>,
    #[prost(message, repeated, tag = "12")]
    configs: Vec<ConfigEntry>,
    #[prost(uint32, repeated, tag = "13")]
    silent: Vec<u32>,
    #[prost(message, repeated, tag = "14")]
    losses: Vec<LossMessage>,
    #[prost(message, repeated, tag = "15")]
    quotas: Vec<AlterQuota>,
    #[prost(message, repeated, tag = "20")]
    users: Vec<UserMessage>,
    #[prost(message, repeated, tag = "21")]
    acls: Vec<Acl>,
    #[prost(bytes = "bytes", tag = "22")]
    secret: Bytes,
}

/// The cluster's secret is for nobody's eyes.
impl std::fmt::Debug for SnapshotMessage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SnapshotMessage")
            .field("format", &self.format)
            .field("version", &self.version)
            .finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, Message)]
struct UserMessage {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(message, repeated, tag = "2")]
    credentials: Vec<Credential>,
}

#[derive(Clone, PartialEq, Message)]
struct LossMessage {
    #[prost(uint64, tag = "1")]
    at: u64,
    #[prost(uint32, repeated, tag = "2")]
    nodes: Vec<u32>,
    #[prost(bytes = "bytes", tag = "3")]
    cluster: Bytes,
}

#[derive(Clone, PartialEq, Message)]
struct NodeMessage {
    #[prost(uint32, tag = "1")]
    id: u32,
    #[prost(bytes = "bytes", tag = "2")]
    identity: Bytes,
    #[prost(string, optional, tag = "3")]
    rack: Option<String>,
    #[prost(message, repeated, tag = "4")]
    endpoints: Vec<Endpoint>,
    #[prost(uint32, tag = "5")]
    min_level: u32,
    #[prost(uint32, tag = "6")]
    max_level: u32,
    #[prost(string, tag = "7")]
    version: String,
    /// 0 active, 1 draining, 2 removed.
    #[prost(uint32, tag = "8")]
    state: u32,
    #[prost(uint64, tag = "9")]
    registered: u64,
    #[prost(bool, optional, tag = "10")]
    asks: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
struct TopicMessage {
    #[prost(bytes = "bytes", tag = "1")]
    id: Bytes,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(enumeration = "TopicKind", tag = "3")]
    kind: i32,
    #[prost(message, repeated, tag = "4")]
    partitions: Vec<PartitionMessage>,
    /// Zero: the cluster's default.
    #[prost(uint32, tag = "5")]
    replication: u32,
    #[prost(message, repeated, tag = "6")]
    configs: Vec<ConfigEntry>,
    #[prost(uint64, tag = "7")]
    created: u64,
}

#[derive(Clone, PartialEq, Message)]
struct PartitionMessage {
    #[prost(uint64, tag = "1")]
    group: u64,
    #[prost(uint64, tag = "2")]
    generation: u64,
    #[prost(uint64, repeated, tag = "3")]
    founding: Vec<u64>,
    #[prost(message, repeated, tag = "4")]
    replicas: Vec<ReplicaMessage>,
    #[prost(uint32, tag = "5")]
    preferred: u32,
    #[prost(uint64, tag = "6")]
    term: u64,
    #[prost(bool, tag = "7")]
    pinned: bool,
    /// Zero: as its topic says.
    #[prost(uint32, tag = "8")]
    replication: u32,
    /// Zero: nothing that is on its way says so.
    #[prost(uint32, tag = "9")]
    asked: u32,
}

#[derive(Clone, Copy, PartialEq, Message)]
struct ReplicaMessage {
    #[prost(uint64, tag = "1")]
    id: u64,
    /// 0 absent, 1 learner, 2 voter.
    #[prost(uint32, tag = "2")]
    settled: u32,
    #[prost(uint32, tag = "3")]
    target: u32,
    #[prost(bool, tag = "4")]
    lost: bool,
}

impl ControllerState {
    /// The whole state as bytes.
    #[must_use]
    pub fn snapshot(&self) -> Bytes {
        let tables = &self.tables;
        let retired = tables.retired.values().flat_map(|of_node| of_node.iter());
        SnapshotMessage {
            format: FORMAT,
            level: tables.level,
            version: tables.version,
            cluster: tables.cluster.map(ClusterId::to_wire).unwrap_or_default(),
            next_group: self.next_group,
            next_incarnation: self.next_incarnation,
            next_producer_id: self.next_producer_id,
            nodes: tables.nodes.values().map(|n| write_node(n)).collect(),
            topics: tables.topics.values().map(|t| write_topic(t)).collect(),
            controller: write_partition(&tables.controller),
            retired: retired
                .map(|(group, replica)| ReplicaRef {
                    group: group.get(),
                    replica: replica.0,
                })
                .collect(),
            configs: write_configs(&tables.configs),
            silent: tables.silent.iter().map(|node| node.get()).collect(),
            losses: tables.losses.iter().map(write_loss).collect(),
            quotas: write_quotas(&tables.quotas),
            users: tables.users.values().map(|user| write_user(user)).collect(),
            acls: tables.acls.all().collect(),
            secret: tables.secret.clone(),
        }
        .encode_to_vec()
        .into()
    }

    /// The state that [`Self::snapshot`] wrote.
    pub fn from_snapshot(bytes: &[u8]) -> Result<Self, RestoreError> {
        Self::new().restored(bytes)
    }

    /// Takes the place of this state; on error it stays as it was.
    pub fn restore(&mut self, bytes: &[u8]) -> Result<(), RestoreError> {
        *self = self.restored(bytes)?;
        Ok(())
    }

    pub(super) fn restored(&self, bytes: &[u8]) -> Result<Self, RestoreError> {
        let message =
            SnapshotMessage::decode(bytes).map_err(|_| RestoreError::Damaged("not a snapshot"))?;
        if message.format > FORMAT {
            return Err(RestoreError::Format(message.format));
        }
        if message.level > self.build_level {
            return Err(RestoreError::Level {
                active: message.level,
                build: self.build_level,
            });
        }
        if message.format == 0 || message.encode_to_vec() != bytes {
            return Err(RestoreError::Damaged("it has unknown parts"));
        }
        let tables = read_tables(&message)?;
        let mut state = Self {
            groups: BTreeMap::new(),
            collisions: BTreeMap::new(),
            loads: BTreeMap::new(),
            next_group: message.next_group,
            next_incarnation: message.next_incarnation,
            next_producer_id: message.next_producer_id,
            build_level: self.build_level,
            tables,
        };
        state.derive();
        Ok(state)
    }

    /// Rebuilds what is kept for speed.
    fn derive(&mut self) {
        for topic in self.tables.topics.values() {
            self.collisions.insert(collision_key(&topic.name), topic.id);
            for (index, partition) in (0..).zip(&topic.partitions) {
                let topic = topic.id;
                self.groups
                    .insert(partition.group, GroupPlace::Partition { topic, index });
            }
        }
        let partitions = self.tables.topics.values().flat_map(|t| &t.partitions);
        self.loads = loads_of(partitions.map(Arc::as_ref));
    }
}

fn write_loss(loss: &AcceptedLoss) -> LossMessage {
    LossMessage {
        at: loss.at.nanos(),
        nodes: loss.nodes.iter().map(|node| node.get()).collect(),
        cluster: loss.cluster.to_wire(),
    }
}

fn read_loss(message: &LossMessage) -> Result<AcceptedLoss, RestoreError> {
    Ok(AcceptedLoss {
        at: Timestamp(message.at),
        nodes: message.nodes.iter().copied().map(NodeId).collect(),
        cluster: ClusterId::from_wire(&message.cluster)?,
    })
}

fn write_quotas(quotas: &Quotas) -> Vec<AlterQuota> {
    let name = |name: &QuotaName| QuotaClient {
        name: match name {
            QuotaName::Default => None,
            QuotaName::Named(name) => Some(name.clone()),
        },
    };
    let quotas = quotas.iter().map(|(entity, limits)| {
        let changes = limits.iter().map(|(key, limit)| QuotaChange {
            key: (*key).into(),
            limit: limit.get(),
        });
        AlterQuota {
            user: entity.user.as_ref().map(name),
            client: entity.client.as_ref().map(name),
            changes: changes.collect(),
        }
    });
    quotas.collect()
}

fn read_quotas(messages: &[AlterQuota]) -> Result<Quotas, RestoreError> {
    let name = |client: &QuotaClient| match &client.name {
        None => QuotaName::Default,
        Some(name) => QuotaName::Named(name.clone()),
    };
    let mut quotas = Quotas::new();
    for message in messages {
        let entity = QuotaEntity {
            user: message.user.as_ref().map(name),
            client: message.client.as_ref().map(name),
        };
        let mut limits = QuotaLimits::new();
        for change in &message.changes {
            let key = QuotaKey::try_from(change.key);
            let key = key.map_err(|_| RestoreError::Damaged("a quota's kind is unknown"))?;
            let limit = QuotaLimit::new(change.limit);
            let limit = limit.ok_or(RestoreError::Damaged("a quota is not above zero"))?;
            limits.insert(key, limit);
        }
        quotas.insert(entity, limits);
    }
    Ok(quotas)
}

fn write_user(user: &User) -> UserMessage {
    UserMessage {
        name: user.name.to_string(),
        credentials: user.credentials.values().cloned().collect(),
    }
}

fn read_user(message: &UserMessage) -> Result<User, RestoreError> {
    let mut user = User {
        name: message.name.as_str().into(),
        credentials: BTreeMap::new(),
    };
    let learnt = user.learn(&message.credentials);
    learnt.map_err(|_| RestoreError::Damaged("a user's credential is invalid"))?;
    Ok(user)
}

fn write_configs(configs: &BTreeMap<String, String>) -> Vec<ConfigEntry> {
    configs
        .iter()
        .map(|(key, value)| ConfigEntry {
            key: key.clone(),
            value: value.clone(),
        })
        .collect()
}

fn write_node(node: &Node) -> NodeMessage {
    NodeMessage {
        id: node.id.get(),
        identity: node.identity.to_wire(),
        rack: node.rack.clone(),
        endpoints: node.endpoints.clone(),
        min_level: node.levels.min,
        max_level: node.levels.max,
        version: node.version.clone(),
        state: match node.state {
            NodeState::Active => 0,
            NodeState::Draining => 1,
            NodeState::Removed => 2,
        },
        registered: node.registered.nanos(),
        asks: node.asks,
    }
}

fn write_topic(topic: &Topic) -> TopicMessage {
    TopicMessage {
        id: topic.id.to_wire(),
        name: topic.name.to_string(),
        kind: topic.kind.into(),
        partitions: topic
            .partitions
            .iter()
            .map(|partition| write_partition(partition))
            .collect(),
        replication: match topic.replication {
            Replication::Default => 0,
            Replication::Fixed(replication) => replication,
        },
        configs: write_configs(&topic.configs),
        created: topic.created.nanos(),
    }
}

fn write_partition(partition: &Partition) -> PartitionMessage {
    PartitionMessage {
        group: partition.group.get(),
        generation: partition.generation,
        founding: partition.founding.iter().map(|id| id.0).collect(),
        replicas: partition.replicas.iter().map(write_replica).collect(),
        preferred: partition.preferred.get(),
        term: partition.term.get(),
        pinned: partition.pinned,
        replication: partition.replication.unwrap_or(0),
        asked: partition.asked.unwrap_or(0),
    }
}

fn write_replica(replica: &Replica) -> ReplicaMessage {
    let number = |standing| match standing {
        Standing::Absent => 0,
        Standing::Learner => 1,
        Standing::Voter => 2,
    };
    ReplicaMessage {
        id: replica.id.0,
        settled: number(replica.settled),
        target: number(replica.target),
        lost: replica.lost,
    }
}

fn read_tables(message: &SnapshotMessage) -> Result<Tables, RestoreError> {
    let cluster = if message.cluster.is_empty() {
        None
    } else {
        Some(ClusterId::from_wire(&message.cluster)?)
    };
    let mut nodes = BTreeMap::new();
    for node in &message.nodes {
        nodes.insert(NodeId(node.id), Arc::new(read_node(node)?));
    }
    let mut topics = BTreeMap::new();
    let mut names = BTreeMap::new();
    for topic in &message.topics {
        let topic = read_topic(topic)?;
        names.insert(Arc::clone(&topic.name), topic.id);
        topics.insert(topic.id, Arc::new(topic));
    }
    let mut retired: BTreeMap<NodeId, BTreeSet<(GroupId, ReplicaId)>> = BTreeMap::new();
    for replica in &message.retired {
        let id = ReplicaId(replica.replica);
        let of_node = retired.entry(id.node()).or_default();
        of_node.insert((GroupId(replica.group), id));
    }
    let mut users = BTreeMap::new();
    for user in &message.users {
        let user = read_user(user)?;
        users.insert(Arc::clone(&user.name), Arc::new(user));
    }
    let mut acls = AclTable::default();
    for acl in &message.acls {
        acl.check()
            .map_err(|_| RestoreError::Damaged("a rule is invalid"))?;
        acls.insert(acl);
    }
    let quotas = read_quotas(&message.quotas)?;
    if names.len() != message.topics.len()
        || topics.len() != message.topics.len()
        || nodes.len() != message.nodes.len()
        || users.len() != message.users.len()
        || acls.len() != message.acls.len()
        || quotas.len() != message.quotas.len()
    {
        return Err(RestoreError::Damaged("something is in it twice"));
    }
    let losses: Vec<AcceptedLoss> = message
        .losses
        .iter()
        .map(read_loss)
        .collect::<Result<_, _>>()?;
    Ok(Tables {
        losses: Arc::new(losses),
        quotas: Arc::new(quotas),
        version: message.version,
        cluster,
        level: message.level,
        nodes: Arc::new(nodes),
        topics: Arc::new(topics),
        names: Arc::new(names),
        controller: Arc::new(read_partition(&message.controller)?),
        retired: Arc::new(
            retired
                .into_iter()
                .map(|(node, of_node)| (node, Arc::new(of_node)))
                .collect(),
        ),
        configs: Arc::new(read_configs(&message.configs)),
        users: Arc::new(users),
        acls: Arc::new(acls),
        secret: message.secret.clone(),
        silent: Arc::new(message.silent.iter().copied().map(NodeId).collect()),
    })
}

fn read_configs(entries: &[ConfigEntry]) -> BTreeMap<String, String> {
    entries
        .iter()
        .map(|entry| (entry.key.clone(), entry.value.clone()))
        .collect()
}

fn read_node(message: &NodeMessage) -> Result<Node, RestoreError> {
    Ok(Node {
        id: NodeId(message.id),
        identity: NodeIdentity::from_wire(&message.identity)?,
        rack: message.rack.clone(),
        endpoints: message.endpoints.clone(),
        levels: LevelRange {
            min: message.min_level,
            max: message.max_level,
        },
        version: message.version.clone(),
        state: match message.state {
            0 => NodeState::Active,
            1 => NodeState::Draining,
            2 => NodeState::Removed,
            _ => return Err(RestoreError::Damaged("a node's state is unknown")),
        },
        registered: Timestamp(message.registered),
        asks: message.asks,
    })
}

fn read_topic(message: &TopicMessage) -> Result<Topic, RestoreError> {
    Ok(Topic {
        id: TopicId::from_wire(&message.id)?,
        name: message.name.as_str().into(),
        kind: TopicKind::try_from(message.kind)
            .map_err(|_| RestoreError::Damaged("a topic's kind is unknown"))?,
        partitions: message
            .partitions
            .iter()
            .map(|partition| read_partition(partition).map(Arc::new))
            .collect::<Result<_, _>>()?,
        replication: match message.replication {
            0 => Replication::Default,
            replication => Replication::Fixed(replication),
        },
        configs: read_configs(&message.configs),
        created: Timestamp(message.created),
    })
}

fn read_partition(message: &PartitionMessage) -> Result<Partition, RestoreError> {
    Ok(Partition {
        group: GroupId(message.group),
        generation: message.generation,
        founding: message.founding.iter().copied().map(ReplicaId).collect(),
        replicas: message
            .replicas
            .iter()
            .map(read_replica)
            .collect::<Result<_, _>>()?,
        preferred: NodeId(message.preferred),
        term: Term(message.term),
        pinned: message.pinned,
        replication: Some(message.replication).filter(|count| *count > 0),
        asked: Some(message.asked).filter(|count| *count > 0),
    })
}

fn read_replica(message: &ReplicaMessage) -> Result<Replica, RestoreError> {
    let standing = |number| match number {
        0 => Ok(Standing::Absent),
        1 => Ok(Standing::Learner),
        2 => Ok(Standing::Voter),
        _ => Err(RestoreError::Damaged("a replica's standing is unknown")),
    };
    Ok(Replica {
        id: ReplicaId(message.id),
        settled: standing(message.settled)?,
        target: standing(message.target)?,
        lost: message.lost,
    })
}
