//! The cluster as every node sees it: one immutable value per state of the controller.
//!
//! A [`ClusterMap`] is a handle of a few shared tables; cloning it costs one counter. Whoever
//! serves requests keeps the newest behind an atomic pointer and answers from it alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use trilog_model::{GroupId, NodeId, ReplicaId, Term, Timestamp};

use super::access::{AclTable, User};
use super::cluster_config::ClusterConfigView;
use super::command::{Endpoint, Purpose, TopicKind};
use super::ids::{ClusterId, NodeIdentity, TopicId};
use super::level::LevelRange;
use super::quota::Quotas;
use super::topic_config::{TopicConfig, TopicConfigView};

/// Where a node is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeState {
    Active,
    /// Gets nothing new; what it holds moves away.
    Draining,
    /// Gone. Its identity can never come back.
    Removed,
}

/// A registered node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    pub id: NodeId,
    pub identity: NodeIdentity,
    pub rack: Option<String>,
    pub endpoints: Vec<Endpoint>,
    pub levels: LevelRange,
    pub version: String,
    pub state: NodeState,
    pub registered: Timestamp,
    /// Whether it asks clients who they are, if it has said.
    pub asks: Option<bool>,
}

impl Node {
    /// Where the node is reached for `purpose`.
    #[must_use]
    pub fn endpoint(&self, purpose: Purpose) -> Option<&Endpoint> {
        self.endpoints
            .iter()
            .find(|endpoint| endpoint.purpose == i32::from(purpose))
    }

    #[must_use]
    pub fn is_active(&self) -> bool {
        self.state == NodeState::Active
    }

    /// Whether the node still counts as a member.
    #[must_use]
    pub fn is_member(&self) -> bool {
        self.state != NodeState::Removed
    }
}

/// What a replica is to its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// Nothing.
    Absent,
    /// Follows without a vote.
    Learner,
    Voter,
}

/// One replica of a group: what it last was, and what it is to be.
///
/// The two differ while replicas move. The group's leader closes the gap and reports it; only
/// then does `settled` follow, and only then do replicas that are to be absent vanish from here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Replica {
    pub id: ReplicaId,
    pub settled: Standing,
    pub target: Standing,
    /// Its data is gone or given up: it counts in no quorum and is never wanted again.
    pub lost: bool,
}

impl Replica {
    /// A replica that is to stay, or to come.
    #[must_use]
    pub fn is_wanted(&self) -> bool {
        self.target != Standing::Absent
    }
}

/// One Raft group and where its replicas are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Partition {
    pub group: GroupId,
    /// Grows with every change of the target.
    pub generation: u64,
    /// The voters the group was formed with.
    pub founding: Vec<ReplicaId>,
    /// In order of preference.
    pub replicas: Vec<Replica>,
    /// The node that should lead, when it can.
    pub preferred: NodeId,
    /// An operator placed it: balancing leaves it alone.
    pub pinned: bool,
    /// How many replicas it is to have, where an operator said otherwise than for its topic.
    pub replication: Option<u32>,
    /// How many an operator gives it with what is on its way: its own number once that is settled,
    /// forgotten if it is taken back before.
    pub asked: Option<u32>,
    /// The highest term whose leader has reported.
    pub term: Term,
}

impl Partition {
    /// Whether the group is as it is to be, and nobody is left to be told that it is not.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.replicas
            .iter()
            .all(|replica| replica.is_wanted() && replica.settled == replica.target)
    }

    /// How many replicas it is to have by an operator's newest word, where there is one.
    #[must_use]
    pub fn own_replication(&self) -> Option<u32> {
        self.asked.or(self.replication)
    }

    /// The replicas that are to be of `standing`, in order of preference.
    pub fn targets(&self, standing: Standing) -> impl Iterator<Item = &Replica> {
        self.replicas
            .iter()
            .filter(move |replica| replica.target == standing)
    }

    /// The replicas that are to be of `standing`, as a set.
    #[must_use]
    pub fn target_set(&self, standing: Standing) -> BTreeSet<ReplicaId> {
        self.targets(standing).map(|replica| replica.id).collect()
    }

    /// The nodes that are to hold voters, in order of preference.
    pub fn voter_nodes(&self) -> impl Iterator<Item = NodeId> {
        self.targets(Standing::Voter)
            .map(|replica| replica.id.node())
    }

    /// The wanted replica on `node`.
    #[must_use]
    pub fn wanted_on(&self, node: NodeId) -> Option<&Replica> {
        self.replicas
            .iter()
            .find(|replica| replica.id.node() == node && replica.is_wanted())
    }

    #[must_use]
    pub fn replica(&self, id: ReplicaId) -> Option<&Replica> {
        self.replicas.iter().find(|replica| replica.id == id)
    }

    /// Whether no voter with data is left: nothing can mend such a group.
    #[must_use]
    pub fn is_dead(&self) -> bool {
        let intact = |replica: &Replica| replica.settled == Standing::Voter && !replica.lost;
        !self.replicas.iter().any(intact)
    }

    /// The replicas on `nodes` that hold something of the group's log; whoever voted comes first.
    #[must_use]
    pub fn left_on(&self, nodes: &BTreeSet<NodeId>) -> Vec<ReplicaId> {
        let left = |replica: &&Replica| {
            nodes.contains(&replica.id.node())
                && !replica.lost
                && replica.settled != Standing::Absent
        };
        let mut left: Vec<&Replica> = self.replicas.iter().filter(left).collect();
        left.sort_by_key(|replica| std::cmp::Reverse(replica.settled));
        left.into_iter().map(|replica| replica.id).collect()
    }
}

/// A majority that was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AcceptedLoss {
    pub at: Timestamp,
    /// The nodes that were not there any more.
    pub nodes: Vec<NodeId>,
    /// The cluster until then.
    pub cluster: ClusterId,
}

/// How many replicas a topic's partitions are to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Replication {
    /// As many as were asked for.
    Fixed(u32),
    /// The cluster's default, as far as there are nodes.
    Default,
}

/// One topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Topic {
    pub id: TopicId,
    pub name: Arc<str>,
    pub kind: TopicKind,
    pub partitions: Vec<Arc<Partition>>,
    pub replication: Replication,
    /// What was set on the topic itself, in stored form.
    pub configs: BTreeMap<String, String>,
    pub created: Timestamp,
}

/// The place of a group in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GroupPlace {
    Controller,
    Partition { topic: TopicId, index: u32 },
}

/// Replicas that were taken from a node and that it has not yet said it closed.
pub type Retired = BTreeSet<(GroupId, ReplicaId)>;

/// The tables behind a map; shared with the controller's state, which copies what it changes.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Tables {
    pub(super) version: u64,
    pub(super) cluster: Option<ClusterId>,
    pub(super) level: u32,
    pub(super) nodes: Arc<BTreeMap<NodeId, Arc<Node>>>,
    pub(super) topics: Arc<BTreeMap<TopicId, Arc<Topic>>>,
    pub(super) names: Arc<BTreeMap<Arc<str>, TopicId>>,
    pub(super) controller: Arc<Partition>,
    pub(super) retired: Arc<BTreeMap<NodeId, Arc<Retired>>>,
    pub(super) configs: Arc<BTreeMap<String, String>>,
    pub(super) silent: Arc<BTreeSet<NodeId>>,
    pub(super) losses: Arc<Vec<AcceptedLoss>>,
    pub(super) users: Arc<BTreeMap<Arc<str>, Arc<User>>>,
    pub(super) acls: Arc<AclTable>,
    pub(super) secret: Bytes,
    pub(super) quotas: Arc<Quotas>,
}

/// Without what is secret, and without tables that fill pages.
impl fmt::Debug for Tables {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tables")
            .field("version", &self.version)
            .field("cluster", &self.cluster)
            .field("level", &self.level)
            .field("nodes", &self.nodes)
            .field("topics", &self.topics)
            .field("controller", &self.controller)
            .field("retired", &self.retired)
            .field("configs", &self.configs)
            .field("users", &self.users)
            .field("acls", &self.acls)
            .field("quotas", &self.quotas)
            .finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Inner {
    tables: Tables,
    /// Built when first asked for: most maps are never asked.
    groups: OnceLock<BTreeMap<GroupId, GroupPlace>>,
}

/// The cluster at one state of the controller.
#[derive(Clone, Debug)]
pub struct ClusterMap(Arc<Inner>);

impl PartialEq for ClusterMap {
    fn eq(&self, other: &Self) -> bool {
        self.0.tables == other.0.tables
    }
}

impl ClusterMap {
    pub(super) fn new(tables: Tables) -> Self {
        Self(Arc::new(Inner {
            tables,
            groups: OnceLock::new(),
        }))
    }

    fn tables(&self) -> &Tables {
        &self.0.tables
    }

    /// Grows with every change; of two maps of a cluster the one with the higher version is newer.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.tables().version
    }

    /// The cluster; `None` before it has been initialized.
    #[must_use]
    pub fn cluster(&self) -> Option<ClusterId> {
        self.tables().cluster
    }

    /// The active feature level.
    #[must_use]
    pub fn level(&self) -> u32 {
        self.tables().level
    }

    #[must_use]
    pub fn node(&self, id: NodeId) -> Option<&Arc<Node>> {
        self.tables().nodes.get(&id)
    }

    /// Every node that is a member, by id.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.tables().nodes.values().filter(|node| node.is_member())
    }

    /// Nodes that get replicas, by id.
    pub fn active_nodes(&self) -> impl Iterator<Item = &Arc<Node>> {
        self.nodes().filter(|node| node.is_active())
    }

    /// Whether the controller's leader has not heard from the node for some time.
    #[must_use]
    pub fn is_silent(&self, node: NodeId) -> bool {
        self.tables().silent.contains(&node)
    }

    /// The majorities that were given up in this cluster's life, in order.
    #[must_use]
    pub fn losses(&self) -> &[AcceptedLoss] {
        &self.tables().losses
    }

    #[must_use]
    pub fn topic(&self, id: TopicId) -> Option<&Arc<Topic>> {
        self.tables().topics.get(&id)
    }

    #[must_use]
    pub fn topic_named(&self, name: &str) -> Option<&Arc<Topic>> {
        let id = self.tables().names.get(name)?;
        self.topic(*id)
    }

    /// Every topic, by id.
    pub fn topics(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.tables().topics.values()
    }

    /// Every topic, by name.
    pub fn topics_by_name(&self) -> impl Iterator<Item = &Arc<Topic>> {
        self.tables()
            .names
            .values()
            .filter_map(|id| self.topic(*id))
    }

    #[must_use]
    pub fn topic_count(&self) -> usize {
        self.tables().topics.len()
    }

    #[must_use]
    pub fn partition(&self, topic: TopicId, index: u32) -> Option<&Arc<Partition>> {
        let index = usize::try_from(index).ok()?;
        self.topic(topic)?.partitions.get(index)
    }

    /// The controller group itself.
    #[must_use]
    pub fn controller(&self) -> &Arc<Partition> {
        &self.tables().controller
    }

    /// What a group is.
    #[must_use]
    pub fn place(&self, group: GroupId) -> Option<GroupPlace> {
        if group == GroupId::CONTROLLER {
            return Some(GroupPlace::Controller);
        }
        let index = self.0.groups.get_or_init(|| index_groups(self.tables()));
        index.get(&group).copied()
    }

    /// The replicas of a group.
    #[must_use]
    pub fn group(&self, group: GroupId) -> Option<&Arc<Partition>> {
        match self.place(group)? {
            GroupPlace::Controller => Some(self.controller()),
            GroupPlace::Partition { topic, index } => self.partition(topic, index),
        }
    }

    /// Every group: the controller's, then those of the topics.
    pub fn groups(&self) -> impl Iterator<Item = &Arc<Partition>> {
        let partitions = self.topics().flat_map(|topic| topic.partitions.iter());
        std::iter::once(self.controller()).chain(partitions)
    }

    /// What was taken from `node` and is not yet known to be closed there.
    #[must_use]
    pub fn retired(&self, node: NodeId) -> Option<&Retired> {
        self.tables().retired.get(&node).map(Arc::as_ref)
    }

    #[must_use]
    pub fn user(&self, name: &str) -> Option<&Arc<User>> {
        self.tables().users.get(name)
    }

    /// Every user, by name.
    pub fn users(&self) -> impl Iterator<Item = &Arc<User>> {
        self.tables().users.values()
    }

    /// Who may do what.
    #[must_use]
    pub fn acls(&self) -> &Arc<AclTable> {
        &self.tables().acls
    }

    /// How much clients may move.
    #[must_use]
    pub fn quotas(&self) -> &Quotas {
        &self.tables().quotas
    }

    /// Known to the nodes and nobody else; empty until there has been a user.
    #[must_use]
    pub fn secret(&self) -> &Bytes {
        &self.tables().secret
    }

    /// The cluster's settings.
    #[must_use]
    pub fn config(&self) -> ClusterConfigView<'_> {
        ClusterConfigView(&self.tables().configs)
    }

    /// A topic's settings with their sources.
    #[must_use]
    pub fn topic_config_view<'a>(&'a self, topic: &'a Topic) -> TopicConfigView<'a> {
        TopicConfigView {
            topic: &topic.configs,
            cluster: &self.tables().configs,
        }
    }

    /// A topic's settings, typed. Keep the result: each call parses.
    #[must_use]
    pub fn topic_config(&self, topic: &Topic) -> TopicConfig {
        self.topic_config_view(topic).resolve()
    }

    /// How many replicas each partition of `topic` is to have now, unless it has a number of its
    /// own.
    #[must_use]
    pub fn wanted_replication(&self, topic: &Topic) -> u32 {
        match topic.replication {
            Replication::Fixed(replication) => replication,
            Replication::Default => {
                let active = u32::try_from(self.active_nodes().count()).unwrap_or(u32::MAX);
                grown_replication(active, self.config().default_replication())
            }
        }
    }
}

/// What default replication comes to with so many nodes: all of it, or the largest odd number
/// that fits, because an even number of voters tolerates no more failures than one fewer.
pub(super) fn grown_replication(nodes: u32, default: u32) -> u32 {
    if nodes >= default {
        default
    } else {
        nodes.saturating_sub(1) / 2 * 2 + 1
    }
}

fn index_groups(tables: &Tables) -> BTreeMap<GroupId, GroupPlace> {
    let mut groups = BTreeMap::new();
    for topic in tables.topics.values() {
        for (index, partition) in (0..).zip(&topic.partitions) {
            groups.insert(
                partition.group,
                GroupPlace::Partition {
                    topic: topic.id,
                    index,
                },
            );
        }
    }
    groups
}
