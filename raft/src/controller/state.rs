//! The controller's state machine: commands in, replies out, the same on every node.
//!
//! Pure: no I/O, no clock, no chance. Random identities arrive inside commands, time arrives
//! with the entry. A refused command changes nothing.

mod access;
mod assignment;
mod loss;
mod nodes;
mod quotas;
mod settings;
mod snapshot;
mod topics;

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use trilog_model::{GroupId, NodeId, ReplicaId, Term, Timestamp};

use super::cluster_map::{ClusterMap, GroupPlace, Node, Partition, Replica, Tables};
use super::command::{Command, CommandError};
use super::ids::TopicId;
use super::level::{BASE_LEVEL, BUILD_LEVEL};
use super::placement::{Candidate, Load};
use super::reply::{ControllerError, Outcome, Reply, encode_outcome};
use assignment::Origin;

pub use loss::remaining_voters;
pub use snapshot::RestoreError;

/// Producer ids handed out at a time.
pub const PRODUCER_ID_BLOCK: u64 = 1_000;
/// Nodes a cluster has at most.
pub const MAX_NODES: usize = 1_000;
/// Groups a cluster has at most.
pub const MAX_GROUPS: usize = 200_000;
/// Partitions of one topic at most.
pub const MAX_PARTITIONS: u32 = 10_000;
/// Voters of one group at most.
pub const MAX_VOTERS: u32 = 9;

/// The metadata of the cluster, as the controller group's log tells it.
#[derive(Clone, Debug)]
pub struct ControllerState {
    tables: Tables,
    next_group: u64,
    next_incarnation: u32,
    next_producer_id: u64,
    /// The newest level this build can follow.
    build_level: u32,
    // What follows is derived from the above and kept for speed.
    groups: BTreeMap<GroupId, GroupPlace>,
    collisions: BTreeMap<String, TopicId>,
    loads: BTreeMap<NodeId, Load>,
}

impl Default for ControllerState {
    fn default() -> Self {
        Self::new()
    }
}

impl ControllerState {
    /// The state before the first command.
    #[must_use]
    pub fn new() -> Self {
        let controller = Partition {
            group: GroupId::CONTROLLER,
            generation: 0,
            founding: Vec::new(),
            replicas: Vec::new(),
            preferred: NodeId(0),
            pinned: false,
            replication: None,
            asked: None,
            term: Term(0),
        };
        Self {
            tables: Tables {
                version: 0,
                cluster: None,
                level: BASE_LEVEL,
                nodes: Arc::default(),
                topics: Arc::default(),
                names: Arc::default(),
                controller: Arc::new(controller),
                retired: Arc::default(),
                configs: Arc::default(),
                silent: Arc::default(),
                losses: Arc::default(),
                users: Arc::default(),
                acls: Arc::default(),
                secret: Bytes::new(),
                quotas: Arc::default(),
            },
            next_group: GroupId::CONTROLLER.next().get(),
            next_incarnation: 1,
            next_producer_id: 0,
            build_level: BUILD_LEVEL,
            groups: BTreeMap::new(),
            collisions: BTreeMap::new(),
            loads: BTreeMap::new(),
        }
    }

    /// Carries out one proposed command at the time of its entry; answers an encoded [`Outcome`].
    pub fn apply(&mut self, command: &[u8], time: Timestamp) -> Bytes {
        let outcome = match Command::from_bytes(command, self.tables.level) {
            Ok(command) => self.carry_out(&command, time),
            Err(CommandError::Level { needs, active }) => {
                Err(ControllerError::LevelNotActive { needs, active })
            }
            Err(CommandError::Malformed(reason)) => Err(malformed(reason)),
        };
        encode_outcome(&outcome)
    }

    /// Carries out one command; a refusal changes nothing.
    pub fn carry_out(&mut self, command: &Command, time: Timestamp) -> Outcome {
        if let Command::Bootstrap(command) = command {
            return self.bootstrap(command, time);
        }
        if self.tables.cluster.is_none() {
            return Err(ControllerError::NotBootstrapped {});
        }
        match command {
            Command::Bootstrap(_) => Err(ControllerError::AlreadyBootstrapped {}),
            Command::RegisterNode(command) => self.register_node(command, time),
            Command::ReplaceNode(command) => self.replace_node(command, time),
            Command::StepAside(command) => self.step_aside(command),
            Command::DrainNode(command) => self.drain_node(NodeId(command.node)),
            Command::ResumeNode(command) => self.resume_node(NodeId(command.node)),
            Command::RemoveNode(command) => self.remove_node(NodeId(command.node)),
            Command::CreateTopic(command) => self.create_topic(command, time),
            Command::AlterTopic(command) => self.alter_topic(command),
            Command::DeleteTopic(command) => self.delete_topic(command),
            Command::AssignReplicas(command) => self.assign_replicas(command, Origin::Plan),
            Command::AssignByHand(command) => self.assign_replicas(command, Origin::Operator),
            Command::ReportSettled(command) => self.report_settled(command),
            Command::ReportClosed(command) => self.report_closed(command),
            Command::ReportSilent(command) => {
                self.report_silent(command);
                Ok(Reply::Done)
            }
            Command::AcceptLoss(command) => self.accept_loss(command),
            Command::PreferLeader(command) => self.prefer_leader(*command, Origin::Plan),
            Command::PreferByHand(command) => self.prefer_leader(*command, Origin::Operator),
            Command::SetClusterConfig(command) => self.set_cluster_config(command),
            Command::ActivateLevel(command) => self.activate_level(command.level),
            Command::AlterQuota(command) => self.alter_quota(command),
            Command::AlterUser(command) => self.alter_user(command),
            Command::AlterAcls(command) => self.alter_acls(command),
            Command::AllocateProducerIds(command) => {
                self.allocate_producer_ids(NodeId(command.node))
            }
        }
    }

    /// The cluster as of now; cheap.
    #[must_use]
    pub fn map(&self) -> ClusterMap {
        ClusterMap::new(self.tables.clone())
    }

    /// The active level, if this build cannot follow it: the node must then stop, since it would
    /// read what comes differently from the others.
    #[must_use]
    pub fn unsupported_level(&self) -> Option<u32> {
        (self.tables.level > self.build_level).then_some(self.tables.level)
    }

    /// A number that differs when the state differs: FNV-1a of the snapshot.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.snapshot()
            .iter()
            .fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
                (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
            })
    }

    fn touch(&mut self) {
        self.tables.version += 1;
    }

    fn node(&self, id: NodeId) -> Result<&Arc<Node>, ControllerError> {
        self.tables
            .nodes
            .get(&id)
            .filter(|node| node.is_member())
            .ok_or(ControllerError::UnknownNode { node: id })
    }

    fn active_count(&self) -> u32 {
        let active = self.tables.nodes.values().filter(|node| node.is_active());
        u32::try_from(active.count()).unwrap_or(u32::MAX)
    }

    /// Active nodes with what they hold, of all topics and of these partitions.
    fn candidates(&self, topic: &[Arc<Partition>]) -> Vec<Candidate> {
        let of_topic = loads_of(topic.iter().map(Arc::as_ref));
        let load = |loads: &BTreeMap<NodeId, Load>, id| loads.get(&id).copied().unwrap_or_default();
        self.tables
            .nodes
            .values()
            .filter(|node| node.is_active())
            .map(|node| Candidate {
                node: node.id,
                rack: node.rack.clone(),
                silent: self.tables.silent.contains(&node.id),
                total: load(&self.loads, node.id),
                topic: load(&of_topic, node.id),
            })
            .collect()
    }

    /// Refuses what would run out of group ids or incarnations half-way.
    fn reserve(&self, groups: u64, incarnations: u64) -> Result<(), ControllerError> {
        let exhausted = |what: &str| {
            Err(ControllerError::Exhausted {
                what: what.to_owned(),
            })
        };
        if self.next_group.checked_add(groups).is_none() {
            return exhausted("group ids");
        }
        if u64::from(self.next_incarnation) + incarnations > u64::from(u32::MAX) {
            return exhausted("replica incarnations");
        }
        Ok(())
    }

    /// A replica id that has never been before. Room was reserved.
    fn new_replica(&mut self, node: NodeId) -> ReplicaId {
        let replica = ReplicaId::new(node, self.next_incarnation);
        self.next_incarnation += 1;
        replica
    }

    /// A group id that has never been before. Room was reserved.
    fn new_group(&mut self) -> GroupId {
        let group = GroupId(self.next_group);
        self.next_group += 1;
        group
    }

    fn partition(&self, group: GroupId) -> Result<&Arc<Partition>, ControllerError> {
        let unknown = ControllerError::UnknownGroup { group: group.get() };
        if group == GroupId::CONTROLLER {
            return Ok(&self.tables.controller);
        }
        let Some(GroupPlace::Partition { topic, index }) = self.groups.get(&group) else {
            return Err(unknown);
        };
        let topic = self.tables.topics.get(topic).ok_or(unknown.clone())?;
        usize::try_from(*index)
            .ok()
            .and_then(|index| topic.partitions.get(index))
            .ok_or(unknown)
    }

    /// Puts a partition in the place of its former self.
    fn put_partition(&mut self, partition: Partition) {
        if partition.group == GroupId::CONTROLLER {
            self.tables.controller = Arc::new(partition);
            return;
        }
        let Some(GroupPlace::Partition { topic, index }) = self.groups.get(&partition.group) else {
            return;
        };
        let Some(topic) = Arc::make_mut(&mut self.tables.topics).get_mut(topic) else {
            return;
        };
        let slot = usize::try_from(*index)
            .ok()
            .and_then(|index| Arc::make_mut(topic).partitions.get_mut(index));
        if let Some(slot) = slot {
            subtract_load(&mut self.loads, slot);
            add_load(&mut self.loads, &partition);
            *slot = Arc::new(partition);
        }
    }

    /// Tells a node to close a replica, until it says it has.
    fn retire(&mut self, group: GroupId, replica: ReplicaId) {
        if self.node(replica.node()).is_err() {
            return;
        }
        let retired = Arc::make_mut(&mut self.tables.retired);
        let of_node = retired.entry(replica.node()).or_default();
        Arc::make_mut(of_node).insert((group, replica));
    }

    fn allocate_producer_ids(&mut self, node: NodeId) -> Outcome {
        self.node(node)?;
        let first = self.next_producer_id;
        let next = first + PRODUCER_ID_BLOCK;
        if i64::try_from(next).is_err() {
            return Err(ControllerError::Exhausted {
                what: "producer ids".to_owned(),
            });
        }
        self.next_producer_id = next;
        Ok(Reply::ProducerIds {
            first,
            count: PRODUCER_ID_BLOCK,
        })
    }
}

fn malformed(reason: &str) -> ControllerError {
    ControllerError::Malformed {
        reason: reason.to_owned(),
    }
}

/// What nodes hold of these partitions.
pub(super) fn loads_of<'a>(
    partitions: impl Iterator<Item = &'a Partition>,
) -> BTreeMap<NodeId, Load> {
    let mut loads = BTreeMap::new();
    for partition in partitions {
        add_load(&mut loads, partition);
    }
    loads
}

fn add_load(loads: &mut BTreeMap<NodeId, Load>, partition: &Partition) {
    for replica in partition.replicas.iter().filter(|r| r.is_wanted()) {
        loads.entry(replica.id.node()).or_default().replicas += 1;
    }
    loads.entry(partition.preferred).or_default().leaders += 1;
}

fn subtract_load(loads: &mut BTreeMap<NodeId, Load>, partition: &Partition) {
    let mut change = |node: NodeId, replicas: u64, leaders: u64| {
        if let Some(load) = loads.get_mut(&node) {
            load.replicas = load.replicas.saturating_sub(replicas);
            load.leaders = load.leaders.saturating_sub(leaders);
            if *load == Load::default() {
                loads.remove(&node);
            }
        }
    };
    for replica in partition.replicas.iter().filter(|r| r.is_wanted()) {
        change(replica.id.node(), 1, 0);
    }
    change(partition.preferred, 0, 1);
}

/// Replicas as a set, to be compared with a reported one.
fn sorted(mut replicas: Vec<u64>) -> Vec<u64> {
    replicas.sort_unstable();
    replicas
}

/// Whether these settled voters can still form a majority without the lost ones.
fn is_stranded(replicas: &[Replica]) -> bool {
    use super::cluster_map::Standing;
    let voters = || {
        replicas
            .iter()
            .filter(|replica| replica.settled == Standing::Voter)
    };
    let intact = voters().filter(|replica| !replica.lost).count();
    intact * 2 <= voters().count()
}

#[cfg(test)]
mod tests;
