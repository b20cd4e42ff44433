//! Nodes: joining, coming back, losing a disk, leaving.

use std::collections::BTreeSet;
use std::sync::Arc;

use trilog_model::{GroupId, NodeId, ReplicaId, Term, Timestamp};

use super::super::cluster_map::{GroupPlace, Node, NodeState, Partition, Replica, Standing};
use super::super::command::{
    Bootstrap, Endpoint, Purpose, RegisterNode, ReplaceNode, ReplicaRef, ReportClosed,
    ReportSilent, StepAside,
};
use super::super::ids::{ClusterId, NodeIdentity};
use super::super::level::LevelRange;
use super::super::reply::{ControllerError, Outcome, Reply};
use super::{ControllerState, MAX_NODES, is_stranded, malformed};

/// Longest rack and host name, in bytes.
const MAX_TEXT: usize = 255;

impl ControllerState {
    pub(super) fn bootstrap(&mut self, command: &Bootstrap, time: Timestamp) -> Outcome {
        if self.tables.cluster.is_some() {
            return Err(ControllerError::AlreadyBootstrapped {});
        }
        let cluster = ClusterId::from_wire(&command.cluster)
            .map_err(|_| malformed("the cluster id is invalid"))?;
        let node = read_node(&command.node, command.level, time)?;
        let replica = self.new_replica(node.id);
        self.tables.cluster = Some(cluster);
        self.tables.level = command.level;
        self.tables.controller = Arc::new(Partition {
            group: GroupId::CONTROLLER,
            generation: 1,
            founding: vec![replica],
            replicas: vec![Replica {
                id: replica,
                settled: Standing::Voter,
                target: Standing::Voter,
                lost: false,
            }],
            preferred: node.id,
            pinned: false,
            replication: None,
            asked: None,
            term: Term(0),
        });
        let id = node.id;
        self.put_node(node);
        self.registered(id, Vec::new())
    }

    pub(super) fn register_node(&mut self, command: &RegisterNode, time: Timestamp) -> Outcome {
        self.check_cluster(command)?;
        let mut node = read_node(command, self.tables.level, time)?;
        let known = self.tables.nodes.get(&node.id).cloned();
        self.check_identity(&node)?;
        match known.as_deref() {
            Some(known) if known.is_member() => {
                if known.identity != node.identity {
                    return Err(ControllerError::NodeIdTaken {
                        node: known.id,
                        identity: known.identity.to_string(),
                    });
                }
                node.state = known.state;
                node.registered = known.registered;
                if node != *known {
                    self.put_node(node);
                }
            }
            Some(known) if known.identity == node.identity => {
                return Err(ControllerError::InvalidNode {
                    node: known.id,
                    reason: "it was removed; it can come back only with an empty data directory"
                        .to_owned(),
                });
            }
            _ => {
                if self.tables.nodes.len() >= MAX_NODES {
                    return Err(ControllerError::Exhausted {
                        what: "room for nodes".to_owned(),
                    });
                }
                self.reserve(0, 1)?;
                let id = node.id;
                self.put_node(node);
                self.add_controller_learner(id);
            }
        }
        self.unsilence(NodeId(command.node));
        self.registered(NodeId(command.node), Vec::new())
    }

    pub(super) fn replace_node(&mut self, command: &ReplaceNode, time: Timestamp) -> Outcome {
        self.check_cluster(&command.node)?;
        let mut node = read_node(&command.node, self.tables.level, time)?;
        let known = Arc::clone(self.node(node.id)?);
        if known.identity == node.identity {
            // A repeated command: done already.
            return self.registered(node.id, Vec::new());
        }
        if known.identity.to_wire() != command.old_identity {
            return Err(ControllerError::NodeIdTaken {
                node: known.id,
                identity: known.identity.to_string(),
            });
        }
        self.check_identity(&node)?;
        let replicas = self.live_replicas(node.id);
        self.reserve(0, count(&replicas))?;
        node.state = known.state;
        node.registered = known.registered;
        let id = node.id;
        self.put_node(node);
        // The disk is gone, and with it all that was to be closed on it.
        Arc::make_mut(&mut self.tables.retired).remove(&id);
        self.unsilence(id);
        let stranded = self.renew(&replicas);
        self.registered(id, stranded)
    }

    pub(super) fn step_aside(&mut self, command: &StepAside) -> Outcome {
        let id = NodeId(command.node);
        let node = self.node(id)?;
        if node.identity.to_wire() != command.identity {
            return Err(ControllerError::NodeIdTaken {
                node: id,
                identity: node.identity.to_string(),
            });
        }
        let damaged = replica_set(&command.replicas);
        let mut replicas = self.live_replicas(id);
        replicas.retain(|replica| damaged.contains(replica));
        for (group, replica) in &replicas {
            self.check_spare(*group, *replica)?;
        }
        self.reserve(0, count(&replicas))?;
        let stranded = self.renew(&replicas);
        self.registered(id, stranded)
    }

    pub(super) fn drain_node(&mut self, id: NodeId) -> Outcome {
        let state = self.node(id)?.state;
        if state == NodeState::Active {
            if self.active_count() == 1 {
                return Err(ControllerError::LastNode { node: id });
            }
            self.set_state(id, NodeState::Draining);
        }
        Ok(Reply::Done)
    }

    pub(super) fn resume_node(&mut self, id: NodeId) -> Outcome {
        if self.node(id)?.state == NodeState::Draining {
            self.set_state(id, NodeState::Active);
        }
        Ok(Reply::Done)
    }

    pub(super) fn remove_node(&mut self, id: NodeId) -> Outcome {
        if self
            .tables
            .nodes
            .get(&id)
            .is_some_and(|node| node.state == NodeState::Removed)
        {
            return Ok(Reply::Done);
        }
        if self.node(id)?.state != NodeState::Draining {
            return Err(ControllerError::InvalidNode {
                node: id,
                reason: format!("it is in use; drain it first: trilog cluster drain {id}"),
            });
        }
        let holds = |partition: &Partition| {
            partition
                .replicas
                .iter()
                .any(|replica| replica.id.node() == id)
        };
        let controller = &self.tables.controller;
        let votes = |replica: &&Replica| {
            replica.id.node() == id
                && (replica.settled == Standing::Voter || replica.target == Standing::Voter)
        };
        let held = self
            .tables
            .topics
            .values()
            .flat_map(|topic| &topic.partitions)
            .filter(|partition| holds(partition))
            .count()
            + controller.replicas.iter().filter(votes).count();
        if held > 0 {
            return Err(ControllerError::NodeHoldsReplicas {
                node: id,
                replicas: u64::try_from(held).unwrap_or(u64::MAX),
            });
        }
        let mut controller = Partition::clone(controller);
        for replica in &mut controller.replicas {
            if replica.id.node() == id {
                replica.target = Standing::Absent;
            }
        }
        controller.generation += 1;
        self.put_partition(controller);
        Arc::make_mut(&mut self.tables.retired).remove(&id);
        self.unsilence(id);
        self.set_state(id, NodeState::Removed);
        Ok(Reply::Done)
    }

    pub(super) fn report_closed(&mut self, command: &ReportClosed) -> Outcome {
        let id = NodeId(command.node);
        let node = self.node(id)?;
        if node.identity.to_wire() != command.identity {
            return Err(ControllerError::NodeIdTaken {
                node: id,
                identity: node.identity.to_string(),
            });
        }
        let closed = replica_set(&command.replicas);
        let Some(retired) = self.tables.retired.get(&id) else {
            return Ok(Reply::Done);
        };
        let left: BTreeSet<_> = retired
            .iter()
            .filter(|replica| !closed.contains(replica))
            .copied()
            .collect();
        if left.len() != retired.len() {
            let all = Arc::make_mut(&mut self.tables.retired);
            if left.is_empty() {
                all.remove(&id);
            } else {
                all.insert(id, Arc::new(left));
            }
            self.touch();
        }
        Ok(Reply::Done)
    }

    pub(super) fn report_silent(&mut self, command: &ReportSilent) {
        let named = command.nodes.iter().copied().map(NodeId);
        let silent: BTreeSet<NodeId> = named.filter(|id| self.node(*id).is_ok()).collect();
        if silent != *self.tables.silent {
            self.tables.silent = Arc::new(silent);
            self.touch();
        }
    }

    /// A node has spoken for itself, or is no more.
    fn unsilence(&mut self, id: NodeId) {
        if self.tables.silent.contains(&id) {
            Arc::make_mut(&mut self.tables.silent).remove(&id);
            self.touch();
        }
    }

    /// The answer to a node that is a member.
    fn registered(&self, id: NodeId, stranded: Vec<GroupId>) -> Outcome {
        let controller = &self.tables.controller;
        let replica = controller.wanted_on(id);
        let (Some(cluster), Some(replica)) = (self.tables.cluster, replica) else {
            return Err(ControllerError::UnknownNode { node: id });
        };
        let mut nodes: Vec<NodeId> = controller
            .replicas
            .iter()
            .filter(|replica| replica.settled != Standing::Absent && !replica.lost)
            .map(|replica| replica.id.node())
            .collect();
        nodes.sort_unstable();
        nodes.dedup();
        Ok(Reply::Registered {
            cluster,
            controller_replica: replica.id,
            controller_nodes: nodes,
            level: self.tables.level,
            stranded,
        })
    }

    fn put_node(&mut self, node: Node) {
        Arc::make_mut(&mut self.tables.nodes).insert(node.id, Arc::new(node));
        self.touch();
    }

    fn set_state(&mut self, id: NodeId, state: NodeState) {
        if let Some(node) = Arc::make_mut(&mut self.tables.nodes).get_mut(&id) {
            Arc::make_mut(node).state = state;
            self.touch();
        }
    }

    /// Every node follows the controller group, at first without a vote.
    fn add_controller_learner(&mut self, id: NodeId) {
        let replica = Replica {
            id: self.new_replica(id),
            settled: Standing::Absent,
            target: Standing::Learner,
            lost: false,
        };
        let mut controller = Partition::clone(&self.tables.controller);
        controller.replicas.push(replica);
        controller.generation += 1;
        self.put_partition(controller);
    }

    fn check_cluster(&self, command: &RegisterNode) -> Result<(), ControllerError> {
        if command.cluster.is_empty() {
            return Ok(());
        }
        let theirs = ClusterId::from_wire(&command.cluster)
            .map_err(|_| malformed("the cluster id is invalid"))?;
        match self.tables.cluster {
            Some(ours) if ours != theirs => Err(ControllerError::ForeignCluster {
                theirs: theirs.to_string(),
                ours: ours.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// Refuses an identity that another node has or had: a copied data directory.
    fn check_identity(&self, node: &Node) -> Result<(), ControllerError> {
        let twin = self
            .tables
            .nodes
            .values()
            .find(|other| other.identity == node.identity && other.id != node.id);
        match twin {
            None => Ok(()),
            Some(twin) => Err(ControllerError::InvalidNode {
                node: node.id,
                reason: format!(
                    "its data directory is that of node {}, copied or renumbered",
                    twin.id
                ),
            }),
        }
    }

    /// Refuses to give up a replica without which its group has no intact majority: there is
    /// nobody to fetch from what it holds, and once given up it is deleted.
    fn check_spare(&self, group: GroupId, replica: ReplicaId) -> Result<(), ControllerError> {
        let mut replicas = self.partition(group)?.replicas.clone();
        for lost in replicas.iter_mut().filter(|held| held.id == replica) {
            lost.lost = true;
        }
        if is_stranded(&replicas) {
            return Err(ControllerError::LastCopies {
                group: group.get(),
                replica: replica.0,
            });
        }
        Ok(())
    }

    /// Every replica on a node that is not given up.
    pub(super) fn live_replicas(&self, node: NodeId) -> Vec<(GroupId, ReplicaId)> {
        let of_topics = self
            .groups
            .keys()
            .filter_map(|group| self.partition(*group).ok());
        std::iter::once(&self.tables.controller)
            .chain(of_topics)
            .flat_map(|partition| {
                partition
                    .replicas
                    .iter()
                    .filter(|replica| replica.id.node() == node && !replica.lost)
                    .map(|replica| (partition.group, replica.id))
            })
            .collect()
    }

    /// Gives these replicas up and puts fresh ones in their places; answers the groups that are
    /// left without a majority of intact voters. Room for the incarnations was reserved.
    fn renew(&mut self, replicas: &[(GroupId, ReplicaId)]) -> Vec<GroupId> {
        let mut stranded = Vec::new();
        for (group, replica) in replicas {
            let Ok(partition) = self.partition(*group) else {
                continue;
            };
            let mut partition = Partition::clone(partition);
            let Some(place) = partition.replicas.iter().position(|r| r.id == *replica) else {
                continue;
            };
            let target = partition.replicas[place].target;
            if target != Standing::Absent {
                let successor = Replica {
                    id: self.new_replica(replica.node()),
                    settled: Standing::Absent,
                    target,
                    lost: false,
                };
                partition.replicas.insert(place + 1, successor);
            }
            let old = &mut partition.replicas[place];
            old.target = Standing::Absent;
            old.lost = true;
            partition.generation += 1;
            if is_stranded(&partition.replicas) {
                stranded.push(*group);
            }
            self.put_partition(partition);
            self.retire(*group, *replica);
            self.touch();
        }
        stranded
    }

    /// The place of a group, for tests and refusals.
    #[must_use]
    pub fn place(&self, group: GroupId) -> Option<GroupPlace> {
        self.groups.get(&group).copied()
    }
}

fn replica_set(replicas: &[ReplicaRef]) -> BTreeSet<(GroupId, ReplicaId)> {
    replicas
        .iter()
        .map(|replica| (GroupId(replica.group), ReplicaId(replica.replica)))
        .collect()
}

fn count(replicas: &[(GroupId, ReplicaId)]) -> u64 {
    u64::try_from(replicas.len()).unwrap_or(u64::MAX)
}

/// Reads and checks what a node says of itself.
fn read_node(command: &RegisterNode, level: u32, time: Timestamp) -> Result<Node, ControllerError> {
    let id = NodeId(command.node);
    let invalid = |reason: &str| ControllerError::InvalidNode {
        node: id,
        reason: reason.to_owned(),
    };
    if command.node == 0 {
        return Err(invalid("node ids begin at 1"));
    }
    let identity = NodeIdentity::from_wire(&command.identity)
        .map_err(|_| malformed("the node's identity is invalid"))?;
    if command.rack.len() > MAX_TEXT || command.version.len() > MAX_TEXT {
        return Err(invalid("its rack or version is too long"));
    }
    check_endpoints(&command.endpoints).map_err(invalid)?;
    let levels = LevelRange {
        min: command.min_level,
        max: command.max_level,
    };
    if level == 0 || !levels.contains(level) {
        return Err(ControllerError::LevelNotSupported {
            node: id,
            min: levels.min,
            max: levels.max,
            level,
        });
    }
    Ok(Node {
        id,
        identity,
        rack: Some(command.rack.clone()).filter(|rack| !rack.is_empty()),
        endpoints: command.endpoints.clone(),
        levels,
        version: command.version.clone(),
        state: NodeState::Active,
        registered: time,
        asks: command.asks,
    })
}

fn check_endpoints(endpoints: &[Endpoint]) -> Result<(), &'static str> {
    let mut seen = BTreeSet::new();
    for endpoint in endpoints {
        let purpose = Purpose::try_from(endpoint.purpose)
            .ok()
            .filter(|purpose| *purpose != Purpose::Unset)
            .ok_or("one of its addresses has no known purpose")?;
        if !seen.insert(purpose) {
            return Err("it names two addresses for one purpose");
        }
        if endpoint.host.is_empty() || endpoint.host.len() > MAX_TEXT {
            return Err("one of its addresses has no host, or a far too long one");
        }
        if u16::try_from(endpoint.port).map_or(true, |port| port == 0) {
            return Err("one of its addresses has no valid port");
        }
    }
    Ok(())
}
