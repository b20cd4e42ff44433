//! The cluster's nodes: how they are, and moving replicas and leaderships between them.

use std::collections::{BTreeMap, BTreeSet};

use tonic::{Request, Response, Status};
use trilog_model::{GroupId, NodeId};
use trilog_raft::controller::Operation;
use trilog_raft::controller::balance::plan_moves;
use trilog_raft::controller::commands::{
    ActivateLevel, AssignReplicas, Command, ConfigChange, NodeRef, PreferLeader, Purpose,
    SetClusterConfig,
};
use trilog_raft::controller::{
    ClusterMap, ConfigSource, GroupPlace, NodeState as State, Partition as Place, Replica, Standing,
};
use trilog_wire::v1::cluster_server::Cluster as ClusterService;
use trilog_wire::v1::{
    AcceptedLoss, BalanceRequest, BalanceResponse, ConfigureRequest, ConfigureResponse,
    DrainRequest, DrainResponse, Error, ErrorCode, MoveRequest, MoveResponse, NodeAddresses,
    NodeState, NodeStatus, PlannedMove, RemoveRequest, RemoveResponse, ReplaceRequest,
    ReplaceResponse, Setting, StatusRequest, StatusResponse, TransferRequest, TransferResponse,
    UpgradeRequest, UpgradeResponse,
};

use super::door::Caller;
use super::{Api, errors};

#[tonic::async_trait]
impl ClusterService for Api {
    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let map = self.cluster.map();
        let mut counts = Counts::default();
        for place in places(&map) {
            counts.add(self, place);
        }
        let members = map.nodes().filter(|node| node.is_member());
        let nodes = members
            .map(|node| self.node_status(node, &counts))
            .collect();
        let controller = self.cluster.controller().group().leadership();
        let controller = controller
            .borrow()
            .leader
            .map_or(0, |replica| replica.node().get());
        Ok(Response::new(StatusResponse {
            cluster_id: map.cluster().map(|id| id.to_string()).unwrap_or_default(),
            controller,
            nodes,
            topics: to_u32(map.topic_count()),
            partitions: to_u32(places(&map).count()),
            leaderless_partitions: counts.leaderless,
            under_replicated_partitions: counts.under_replicated,
            moving_replicas: counts.moving,
            answered_by: self.cluster.node().get(),
            losses: map.losses().iter().map(loss).collect(),
            feature_level: map.level(),
            feature_level_possible: possible_level(&map),
        }))
    }

    async fn drain(
        &self,
        request: Request<DrainRequest>,
    ) -> Result<Response<DrainResponse>, Status> {
        self.check_cluster(&Caller::of(&request), Operation::Alter)?;
        let request = request.into_inner();
        let node = NodeRef { node: request.node };
        let command = if request.undo {
            Command::ResumeNode(node)
        } else {
            Command::DrainNode(node)
        };
        self.change(&command).await?;
        let replicas_left = replicas_on(&self.cluster.map(), NodeId(request.node));
        Ok(Response::new(DrainResponse { replicas_left }))
    }

    async fn remove(
        &self,
        request: Request<RemoveRequest>,
    ) -> Result<Response<RemoveResponse>, Status> {
        self.check_cluster(&Caller::of(&request), Operation::Alter)?;
        let request = request.into_inner();
        let node = NodeRef { node: request.node };
        let held = replicas_on(&self.cluster.map(), NodeId(request.node));
        if request.force && held > 0 {
            self.change(&Command::DrainNode(node)).await?;
            let left = replicas_on(&self.cluster.map(), NodeId(request.node));
            if left > 0 {
                let text = format!("{left} replicas are still being placed anew");
                return Err(Error::new(ErrorCode::Conflict, text)
                    .with_hint("ask again once `trilog cluster status` shows none moving")
                    .into());
            }
        }
        self.change(&Command::RemoveNode(node)).await?;
        Ok(Response::new(RemoveResponse {
            replicas_replaced: held,
        }))
    }

    async fn replace(
        &self,
        request: Request<ReplaceRequest>,
    ) -> Result<Response<ReplaceResponse>, Status> {
        self.check_cluster(&Caller::of(&request), Operation::Alter)?;
        let request = request.into_inner();
        let (old, new) = (NodeId(request.node), NodeId(request.replacement));
        self.check_replacement(old, new)?;
        // Before anything moves, so that nothing is placed on it meanwhile; what the new node
        // cannot take, because it holds a replica already, goes to others.
        self.change(&Command::DrainNode(NodeRef { node: request.node }))
            .await?;
        let map = self.cluster.map();
        let mut replicas_replaced = 0;
        let all = places(&map).filter(|place| place.voter_nodes().any(|node| node == old));
        for place in all {
            replicas_replaced += 1;
            if place.voter_nodes().any(|node| node == new) {
                continue;
            }
            match self.change(&substitution(place, old, new)).await {
                // The balancer was faster, and has found it another place.
                Err(error) if error.code() == ErrorCode::Conflict => {}
                changed => changed?,
            }
        }
        Ok(Response::new(ReplaceResponse { replicas_replaced }))
    }

    async fn transfer(
        &self,
        request: Request<TransferRequest>,
    ) -> Result<Response<TransferResponse>, Status> {
        self.check_cluster(&Caller::of(&request), Operation::Alter)?;
        let request = request.into_inner();
        let place = self.place(&request.topic, request.partition)?;
        let leader = self.cluster.leader(place.group);
        let to = match request.to {
            0 => place.voter_nodes().find(|node| Some(*node) != leader),
            node => Some(NodeId(node)).filter(|node| place.voter_nodes().any(|at| at == *node)),
        };
        let to = to.ok_or_else(|| {
            Error::new(
                ErrorCode::InvalidRequest,
                "the partition has no such other replica",
            )
        })?;
        let command = Command::PreferByHand(PreferLeader {
            group: place.group.get(),
            node: to.get(),
        });
        self.change(&command).await?;
        Ok(Response::new(TransferResponse { leader: to.get() }))
    }

    async fn r#move(
        &self,
        request: Request<MoveRequest>,
    ) -> Result<Response<MoveResponse>, Status> {
        self.check_cluster(&Caller::of(&request), Operation::Alter)?;
        let request = request.into_inner();
        let place = self.place(&request.topic, request.partition)?;
        let command = substitute(&place, NodeId(request.from), NodeId(request.to))?;
        self.change(&command).await?;
        Ok(Response::new(MoveResponse {}))
    }

    async fn balance(
        &self,
        request: Request<BalanceRequest>,
    ) -> Result<Response<BalanceResponse>, Status> {
        self.check_cluster(&Caller::of(&request), Operation::Alter)?;
        let request = request.into_inner();
        let map = self.cluster.map();
        let mut counts = Counts::default();
        for place in places(&map) {
            counts.add(self, place);
        }
        let mut plan = Vec::new();
        if request.replicas {
            plan = self.plan_replicas(&map);
        }
        let moving: BTreeSet<GroupId> = plan.iter().map(|step| step.group).collect();
        let leaders = self.plan_leaders(&map).into_iter();
        plan.extend(leaders.filter(|step| !moving.contains(&step.group)));
        let mut moves = Vec::with_capacity(plan.len());
        for step in plan {
            if !request.dry_run {
                match self.change(&step.command).await {
                    // The map has moved on, and so has what is even.
                    Err(error) if error.code() == ErrorCode::Conflict => continue,
                    changed => changed?,
                }
            }
            moves.push(step.planned);
        }
        Ok(Response::new(BalanceResponse {
            moves,
            moving_replicas: counts.moving,
        }))
    }

    async fn configure(
        &self,
        request: Request<ConfigureRequest>,
    ) -> Result<Response<ConfigureResponse>, Status> {
        self.check_cluster(&Caller::of(&request), Operation::AlterConfigs)?;
        let request = request.into_inner();
        let set = request.set.iter();
        let set = set.map(|(key, value)| ConfigChange::set(key, value));
        let reset = request.reset.iter().map(|key| ConfigChange::delete(key));
        let configs: Vec<ConfigChange> = set.chain(reset).collect();
        if !configs.is_empty() {
            let command = Command::SetClusterConfig(SetClusterConfig { configs });
            self.change(&command).await?;
        }
        let map = self.cluster.map();
        let settings = map.config().all().map(|entry| Setting {
            name: entry.key.name.to_owned(),
            value: entry.value.to_owned(),
            is_default: entry.source == ConfigSource::Default,
            documentation: entry.key.doc.to_owned(),
        });
        Ok(Response::new(ConfigureResponse {
            settings: settings.collect(),
        }))
    }

    async fn upgrade(
        &self,
        request: Request<UpgradeRequest>,
    ) -> Result<Response<UpgradeResponse>, Status> {
        self.check_cluster(&Caller::of(&request), Operation::Alter)?;
        let map = self.cluster.map();
        let (before, possible) = (map.level(), possible_level(&map));
        let best = map.nodes().map(|node| node.levels.max).max();
        let held_back = map
            .nodes()
            .filter(|node| Some(node.levels.max) < best)
            .map(|node| node.id.get());
        if possible > before && !request.into_inner().dry_run {
            self.change(&Command::ActivateLevel(ActivateLevel { level: possible }))
                .await?;
        }
        Ok(Response::new(UpgradeResponse {
            level_before: before,
            level: possible.max(before),
            held_back_by: held_back.collect(),
        }))
    }
}

/// What status adds up over all partitions.
#[derive(Default)]
struct Counts {
    leaderless: u32,
    under_replicated: u32,
    moving: u32,
    replicas: BTreeMap<NodeId, u32>,
    leaders: BTreeMap<NodeId, u32>,
}

impl Counts {
    fn add(&mut self, api: &Api, place: &Place) {
        match api.cluster.leader(place.group) {
            Some(leader) => *self.leaders.entry(leader).or_default() += 1,
            None => self.leaderless += 1,
        }
        let voters: Vec<NodeId> = place.voter_nodes().collect();
        self.under_replicated += u32::from(!voters.iter().all(|n| api.cluster.is_alive(*n)));
        let moving = place
            .replicas
            .iter()
            .filter(|replica| replica.settled != replica.target);
        self.moving += to_u32(moving.count());
        for node in voters {
            *self.replicas.entry(node).or_default() += 1;
        }
    }
}

/// Every partition of every topic.
fn places(map: &ClusterMap) -> impl Iterator<Item = &Place> {
    map.topics()
        .flat_map(|topic| topic.partitions.iter().map(AsRef::as_ref))
}

/// What keeps a node from leaving: its replicas, and its vote in the controller group.
fn replicas_on(map: &ClusterMap, node: NodeId) -> u32 {
    let held = |replica: &Replica, least: Standing| {
        replica.id.node() == node && replica.settled.max(replica.target) >= least
    };
    let holding = places(map).filter(|place| {
        let mut replicas = place.replicas.iter();
        replicas.any(|replica| held(replica, Standing::Learner))
    });
    let mut controller = map.controller().replicas.iter();
    let votes = controller.any(|replica| held(replica, Standing::Voter));
    to_u32(holding.count() + usize::from(votes))
}

/// The assignment with one node in the place of another, as an operator asks for it.
fn substitute(place: &Place, old: NodeId, new: NodeId) -> Result<Command, Error> {
    let voters: Vec<NodeId> = place.voter_nodes().collect();
    if !voters.contains(&old) || voters.contains(&new) {
        let text = format!("node {old} holds no replica to give, or node {new} has one already");
        return Err(Error::new(ErrorCode::InvalidRequest, text));
    }
    Ok(Command::AssignByHand(swapped(place, old, new)))
}

/// The same, decided once and left to balancing afterwards.
fn substitution(place: &Place, old: NodeId, new: NodeId) -> Command {
    Command::AssignReplicas(swapped(place, old, new))
}

fn swapped(place: &Place, old: NodeId, new: NodeId) -> AssignReplicas {
    let other = |node: NodeId| if node == old { new } else { node };
    AssignReplicas {
        group: place.group.get(),
        generation: place.generation,
        voters: place.voter_nodes().map(|node| other(node).get()).collect(),
        learners: Vec::new(),
        preferred: other(place.preferred).get(),
        back: false,
    }
}

fn loss(loss: &trilog_raft::controller::AcceptedLoss) -> AcceptedLoss {
    AcceptedLoss {
        at_ns: loss.at.nanos(),
        nodes: loss.nodes.iter().map(|node| node.get()).collect(),
        cluster_id: loss.cluster.to_string(),
    }
}

/// The highest feature level that every node can follow.
fn possible_level(map: &ClusterMap) -> u32 {
    let levels = map.nodes().map(|node| node.levels.max);
    levels.min().unwrap_or(map.level())
}

/// One step towards an even spread.
struct Step {
    group: GroupId,
    command: Command,
    planned: PlannedMove,
}

fn to_u32(count: usize) -> u32 {
    u32::try_from(count).unwrap_or(u32::MAX)
}

impl Api {
    async fn change(&self, command: &Command) -> Result<(), Error> {
        let changed = self.cluster.propose(command).await;
        changed.map(drop).map_err(|error| errors::propose(&error))
    }

    /// A replacement is a member that answers and stays; what it replaces is another.
    fn check_replacement(&self, old: NodeId, new: NodeId) -> Result<(), Error> {
        let map = self.cluster.map();
        let usable = map.node(new).is_some_and(|node| node.is_active());
        if old != new && usable && self.cluster.is_alive(new) {
            return Ok(());
        }
        let text = format!(
            "node {new} cannot take the place of node {old}: it is no other node that runs"
        );
        Err(Error::new(ErrorCode::InvalidRequest, text).with_hint(
            "`trilog cluster status` lists the nodes; start one more, or name one that is up",
        ))
    }

    fn place(&self, topic: &str, index: u32) -> Result<std::sync::Arc<Place>, Error> {
        let place = self.cluster.place(topic, index);
        place.map_err(|error| errors::lookup(&self.cluster, &error))
    }

    fn node_status(&self, node: &trilog_raft::controller::Node, counts: &Counts) -> NodeStatus {
        let replicas = counts.replicas.get(&node.id).copied().unwrap_or(0);
        let state = match node.state {
            State::Active => NodeState::Active,
            State::Draining if replicas_on(&self.cluster.map(), node.id) == 0 => NodeState::Drained,
            State::Draining => NodeState::Draining,
            State::Removed => NodeState::Unspecified,
        };
        let address = |purpose| self.cluster.address(node.id, purpose).unwrap_or_default();
        NodeStatus {
            node: node.id.get(),
            state: state.into(),
            alive: self.cluster.is_alive(node.id),
            rack: node.rack.clone().unwrap_or_default(),
            version: node.version.clone(),
            addresses: Some(NodeAddresses {
                grpc: address(Purpose::Grpc),
                peer: address(Purpose::Peer),
                kafka: address(Purpose::Kafka),
                nats: address(Purpose::Nats),
                mqtt: address(Purpose::Mqtt),
                http: address(Purpose::Http),
            }),
            replicas,
            leaders: counts.leaders.get(&node.id).copied().unwrap_or(0),
            feature_level_min: node.levels.min,
            feature_level_max: node.levels.max,
        }
    }

    /// Moves of replicas, as many as may begin now.
    fn plan_replicas(&self, map: &ClusterMap) -> Vec<Step> {
        let active = map.active_nodes().map(|node| node.id);
        let reachable = active.filter(|node| self.cluster.is_alive(*node)).collect();
        let moves = plan_moves(map, &reachable).into_iter();
        let steps = moves.filter_map(|planned| {
            let Some(GroupPlace::Partition { topic, index }) = map.place(planned.group) else {
                return None;
            };
            Some(Step {
                group: planned.group,
                command: planned.command,
                planned: PlannedMove {
                    topic: map.topic(topic)?.name.to_string(),
                    partition: index,
                    from: planned.from.get(),
                    to: planned.to.get(),
                    leadership: false,
                },
            })
        });
        steps.collect()
    }

    /// Moves of leadership, from nodes with many to nodes with few, until they differ by one.
    fn plan_leaders(&self, map: &ClusterMap) -> Vec<Step> {
        let mut led: BTreeMap<NodeId, usize> =
            map.active_nodes().map(|node| (node.id, 0)).collect();
        for place in places(map) {
            *led.entry(place.preferred).or_default() += 1;
        }
        let mut steps = Vec::new();
        for topic in map.topics_by_name() {
            for (place, partition) in topic.partitions.iter().zip(0..) {
                let from = place.preferred;
                let fewest = place
                    .voter_nodes()
                    .filter(|node| led.contains_key(node) && self.cluster.is_alive(*node))
                    .min_by_key(|node| led.get(node).copied().unwrap_or(0));
                let Some(to) = fewest else { continue };
                let count = |node| led.get(&node).copied().unwrap_or(0);
                if count(to) + 1 >= count(from) {
                    continue;
                }
                *led.entry(from).or_default() -= 1;
                *led.entry(to).or_default() += 1;
                steps.push(Step {
                    group: place.group,
                    command: Command::PreferLeader(PreferLeader {
                        group: place.group.get(),
                        node: to.get(),
                    }),
                    planned: PlannedMove {
                        topic: topic.name.to_string(),
                        partition,
                        from: from.get(),
                        to: to.get(),
                        leadership: true,
                    },
                });
            }
        }
        steps
    }
}
