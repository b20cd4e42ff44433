//! Does what the map asks of this node: opens and closes replicas, changes the membership of
//! groups it leads, hands leadership over, and reports. Plans by `controller::reconcile`, which
//! remembers nothing; what fails is planned again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, info, warn};
use trilog_model::{GroupId, NodeId, ReplicaId, Term};

use trilog_raft::controller::balance::plan_balance;
use trilog_raft::controller::commands::TopicKind;
use trilog_raft::controller::commands::{Command, Purpose, ReplicaRef, StepAside};
use trilog_raft::controller::reconcile::{
    Action, LeaderView, Limits, LocalGroup, LocalRole, Myself, OpenKind, Progress, plan_node,
};
use trilog_raft::controller::silence::Silence;
use trilog_raft::controller::{
    ABORTED_LEVEL, COMPACTION_LEVEL, ClusterMap, GroupPlace, InternalTopic, TimestampType,
    TopicConfig,
};
use trilog_raft::{Group, Leadership, MembershipError, Node, OpenError, View};

use super::{Cluster, PeerFile, ProposeError};
use crate::partition::{
    Compaction, Intake, Limits as PartitionLimits, Partition, RecordRules, Times,
};
use crate::view::{PartitionView, ViewKind};
use trilog_storage::log::{Retention, Rolling};

/// How often a round is planned when nothing asks for one.
const INTERVAL: Duration = Duration::from_millis(200);
/// Rounds between two of the controller's own plans.
const BALANCE_EVERY: u32 = 5;
/// How long one membership change may take before the group is planned anew.
const CHANGE_PATIENCE: Duration = Duration::from_secs(15);
/// How long a replica that did not take leadership over is not asked again: while it is asked its
/// group takes no records, and a node that is stopping would be asked in every round.
const DECLINED_FOR: Duration = Duration::from_secs(5);
/// How long a replica that came to nothing is left alone: each time twice as long, up to the
/// longest, until it has been well for a while.
const FIRST_PAUSE: Duration = INTERVAL;
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
const WELL_AFTER: Duration = Duration::from_mins(1);

/// The agent of one node.
#[derive(Clone, Debug)]
pub struct Agent {
    pub cluster: Cluster,
    pub node: Node,
    pub me: Myself,
    pub intake: Intake,
    /// The node's own bound on record batches; topics may set a lower one.
    pub max_batch_bytes: usize,
    /// How far clocks may be apart.
    pub clock_skew: Duration,
    pub progress: Arc<Mutex<Confirmations>>,
    pub peers: Arc<Mutex<PeerFile>>,
    /// What the agent starts besides, which ends with `stop`.
    pub tasks: TaskTracker,
    pub stop: CancellationToken,
}

/// What the agent knows between rounds; losing it costs a round.
#[derive(Debug, Default)]
pub struct Confirmations {
    /// For groups led here: the term, and the map version proven current in it.
    confirmed: BTreeMap<GroupId, (Term, u64)>,
    /// The map version last proven current by this process.
    current: Option<u64>,
    /// Groups with a membership change on its way from here.
    busy: BTreeSet<GroupId>,
    /// Where the map last said that a node is.
    said: BTreeMap<NodeId, String>,
    /// Replicas that did not take leadership over, and when that was.
    declined: BTreeMap<(GroupId, ReplicaId), Instant>,
    /// Replicas that did not open.
    setbacks: BTreeMap<GroupId, Setback>,
    /// Said once, not in every round.
    unexplained: Vec<GroupId>,
    estranged: bool,
    /// Which nodes have been silent for how long, while this node leads the controller.
    silence: Silence,
}

/// A replica that came to nothing.
#[derive(Debug)]
struct Setback {
    again_at: Instant,
    pause: Duration,
    why: String,
}

impl Confirmations {
    /// Leaves a replica alone for a while. True if the reason is another one than last time.
    fn put_off(&mut self, group: GroupId, why: String) -> bool {
        let now = Instant::now();
        self.setbacks
            .retain(|_, setback| now < setback.again_at + WELL_AFTER);
        let last = self.setbacks.get(&group);
        let pause = last.map_or(FIRST_PAUSE, |last| (last.pause * 2).min(LONGEST_PAUSE));
        let news = last.is_none_or(|last| last.why != why);
        let again_at = now + pause;
        let setback = Setback {
            again_at,
            pause,
            why,
        };
        self.setbacks.insert(group, setback);
        news
    }

    fn is_put_off(&self, group: GroupId) -> bool {
        let setback = self.setbacks.get(&group);
        setback.is_some_and(|setback| Instant::now() < setback.again_at)
    }

    /// Whether a change of a group may begin now; `heir` is who would lead after it.
    fn begin(&mut self, group: GroupId, heir: Option<(GroupId, ReplicaId)>) -> bool {
        self.declined
            .retain(|_, since| since.elapsed() < DECLINED_FOR);
        let declined = heir.is_some_and(|heir| self.declined.contains_key(&heir));
        !declined && self.busy.insert(group)
    }
}

/// A group with a change on its way; over when dropped.
struct Busy(Arc<Mutex<Confirmations>>, GroupId);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.lock().busy.remove(&self.1);
    }
}

impl Agent {
    /// Runs until `stop`.
    pub async fn run(self) {
        let stop = self.stop.clone();
        let mut changes = self.cluster.changes();
        let mut round = 0_u32;
        while !stop.is_cancelled() {
            self.follow_map();
            self.round().await;
            if round.is_multiple_of(BALANCE_EVERY) {
                self.balance().await;
            }
            round = round.wrapping_add(1);
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                _ = changes.changed() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
    }

    /// Brings the address book and the partitions' limits to where the map has them.
    fn follow_map(&self) {
        let map = self.cluster.map();
        if map.cluster().is_none() {
            return;
        }
        let book = self.cluster.controller().transport().book();
        let mut progress = self.progress.lock();
        for node in map.nodes().filter(|node| node.id != self.me.node) {
            let address = self.cluster.address(node.id, Purpose::Peer);
            match address.filter(|_| node.is_member()) {
                // Once: after a restart a node may be found elsewhere before the map says so.
                Some(address) if progress.said.get(&node.id) != Some(&address) => {
                    book.set(node.id, address.clone());
                    progress.said.insert(node.id, address);
                }
                Some(_) => {}
                None => {
                    book.remove(node.id);
                    progress.said.remove(&node.id);
                }
            }
        }
        drop(progress);
        // Nobody calls on a node that has left. One that this map does not know yet stays.
        let left = |node: &NodeId| map.node(*node).is_some_and(|node| !node.is_member());
        for node in book.nodes().into_iter().filter(left) {
            book.remove(node);
        }
        self.peers.lock().update(book);
        for topic in map.topics() {
            let limits = self.limits(&map.topic_config(topic), map.level());
            for place in &topic.partitions {
                if let Some(partition) = self.cluster.partitions().get(place.group) {
                    partition.set_limits(limits);
                }
            }
        }
    }

    fn limits(&self, config: &TopicConfig, level: u32) -> PartitionLimits {
        limits(config, level, self.max_batch_bytes)
    }

    async fn round(&self) {
        let map = self.cluster.map();
        if map.cluster().is_none() {
            return;
        }
        self.close_failed().await;
        let me = Myself {
            confirmed: self.progress.lock().current,
            ..self.me
        };
        let plan = match plan_node(&map, me, &self.local_groups(), &Limits::default()) {
            Ok(plan) => plan,
            Err(estranged) => {
                // Before registration this is how every node starts.
                if !std::mem::replace(&mut self.progress.lock().estranged, true) {
                    info!(reason = %estranged, "this node takes no part in the cluster for now");
                }
                return;
            }
        };
        self.progress.lock().estranged = false;
        self.mention(plan.unexplained);
        let (opens, rest): (Vec<_>, Vec<_>) = plan
            .actions
            .into_iter()
            .partition(|action| matches!(action, Action::OpenGroup { .. }));
        join_all(opens.into_iter().map(|action| self.carry_out(action))).await;
        for action in rest {
            self.carry_out(action).await;
        }
    }

    /// Closes replicas whose consensus ended by itself, so that they are opened anew. Where the
    /// store failed the whole node ends, and nothing is tried again.
    async fn close_failed(&self) {
        if self.node.store().fatal().borrow().is_some() {
            return;
        }
        for (id, partition) in self.cluster.partitions().all() {
            let Some(why) = partition.group().failure() else {
                continue;
            };
            warn!(group = %id, why, "a replica that failed is opened anew");
            self.progress.lock().put_off(id, why);
            self.cluster.partitions().remove(id);
            partition.close();
            self.node.close_group(id).await;
        }
        self.reopen_controller().await;
    }

    /// The same of this node's replica of the controller, which others hold on to meanwhile.
    async fn reopen_controller(&self) {
        let controller = self.cluster.controller();
        let Some(why) = controller.group().failure() else {
            return;
        };
        let id = GroupId::CONTROLLER;
        if self.progress.lock().is_put_off(id) {
            return;
        }
        warn!(why, "the controller's replica failed and is opened anew");
        self.progress.lock().put_off(id, why);
        if let Err(error) = controller.reopen(&self.node).await {
            warn!(%error, "the controller's replica cannot be opened");
        }
    }

    fn mention(&self, unexplained: Vec<GroupId>) {
        let mut progress = self.progress.lock();
        if !unexplained.is_empty() && progress.unexplained != unexplained {
            warn!(groups = ?unexplained, "replicas are held that the cluster map does not explain; \
                   they are kept");
        }
        progress.unexplained = unexplained;
    }

    fn local_groups(&self) -> Vec<LocalGroup> {
        let mut local = vec![self.local(&*self.cluster.controller().group())];
        let partitions = self.cluster.partitions();
        for id in self.node.store().groups() {
            if id == GroupId::CONTROLLER {
                continue;
            }
            match (partitions.get(id), self.node.store().group(id)) {
                (Some(partition), _) => local.push(self.local(partition.group())),
                (None, Some(log)) => local.push(LocalGroup {
                    group: id,
                    replica: log.replica(),
                    role: if self.progress.lock().is_put_off(id) {
                        LocalRole::PutOff
                    } else {
                        LocalRole::Stopped
                    },
                }),
                (None, None) => {}
            }
        }
        local
    }

    fn local<V: View>(&self, group: &Group<V>) -> LocalGroup {
        let leadership = *group.leadership().borrow();
        let role = if leadership.ready && leadership.leader == Some(group.replica()) {
            LocalRole::Leader(self.leader_view(group, leadership))
        } else {
            LocalRole::Follower
        };
        LocalGroup {
            group: group.id(),
            replica: group.replica(),
            role,
        }
    }

    fn leader_view<V: View>(&self, group: &Group<V>, leadership: Leadership) -> LeaderView {
        let members = group.members();
        let last = group.log().state().last.map_or(0, |last| last.index.get());
        let progress = group.matched().into_iter().map(|(replica, matched)| {
            let lag = matched.map_or(last + 1, |matched| last.saturating_sub(matched.get()));
            (
                replica,
                Progress {
                    lag,
                    reachable: self.cluster.is_alive(replica.node()),
                },
            )
        });
        let state = self.progress.lock();
        let confirmed = state.confirmed.get(&group.id());
        let busy = state.busy.contains(&group.id());
        LeaderView {
            term: leadership.term,
            confirmed: confirmed
                .filter(|(term, _)| *term == leadership.term)
                .map(|(_, v)| *v),
            changing: members.changing || busy,
            half_done: members.half_done && !busy,
            voters: members.voters,
            learners: members.learners,
            progress: progress.collect(),
            unfit: self.unfit(),
        }
    }

    /// Nodes whose clocks are further from this one's than allowed: if theirs are the wrong ones
    /// they would not take leadership.
    fn unfit(&self) -> BTreeSet<NodeId> {
        let map = self.cluster.map();
        let astray = |node: &NodeId| {
            let offset = self.cluster.liveness().clock_offset(*node);
            offset.is_some_and(|offset| {
                Duration::from_nanos(offset.ahead_nanos.unsigned_abs())
                    > self.clock_skew + offset.uncertainty
            })
        };
        map.nodes().map(|node| node.id).filter(astray).collect()
    }

    async fn carry_out(&self, action: Action) {
        match action {
            Action::OpenGroup {
                group,
                replica,
                kind,
            } => self.open(group, replica, kind).await,
            Action::CloseGroup { group, replica } => self.close(group, replica).await,
            Action::ConfirmMap => self.confirm().await,
            Action::Report(command) => {
                // A refused report is about an older state; the next round sees the newer one.
                drop(self.cluster.propose(&command).await);
            }
            change => self.change_members(change),
        }
    }

    async fn open(&self, id: GroupId, replica: ReplicaId, kind: OpenKind) {
        // The plan does not see one that is not in the store yet.
        if self.progress.lock().is_put_off(id) {
            return;
        }
        let Some(meaning) = view_kind(&self.cluster.map(), id) else {
            debug!(group = %id, "this build has no view for the replica");
            return;
        };
        let (view, state) = PartitionView::of(meaning);
        let group = match self.node.open_group(id, replica, view).await {
            Ok(group) => group,
            Err(OpenError::IsOpen(_) | OpenError::Stopping) => return,
            Err(error) => return self.not_opened(id, replica, &error).await,
        };
        if let OpenKind::Found(voters) = kind {
            match group.found(&voters).await {
                Ok(()) | Err(MembershipError::Founded) => {}
                Err(error) => warn!(group = %id, %error, "a group was not formed"),
            }
        }
        // The topic's own limits follow with the next look at the map.
        let limits = PartitionLimits {
            max_batch_bytes: self.max_batch_bytes,
            retention: Retention::default(),
            rules: RecordRules::default(),
            compaction: None,
            rolling: None,
        };
        let partition = Partition::new(group, state, self.intake.clone(), limits);
        self.cluster.partitions().insert(id, partition);
    }

    async fn not_opened(&self, id: GroupId, replica: ReplicaId, error: &OpenError) {
        let mut why = error.to_string();
        if error.is_loss() {
            let Err(refused) = self.give_up(id, replica).await else {
                warn!(group = %id, %replica, why, "a replica is given up and will come back anew");
                return;
            };
            why = format!("{why}; it is not given up: {refused}");
        }
        if error.is_damage()
            && let Some(partition) = self.cluster.map().group(id)
        {
            let members = partition.replicas.iter().filter(|other| !other.lost);
            self.node
                .name_members(id, members.map(|other| other.id).collect());
        }
        if self.progress.lock().put_off(id, why.clone()) {
            warn!(group = %id, %replica, why, "a replica does not open, and is tried again");
        }
    }

    /// Has the cluster replace a replica whose state is lost: its log alone cannot give it back.
    /// Where that log is needed, because the others are gone too, it is kept for a recovery.
    async fn give_up(&self, group: GroupId, replica: ReplicaId) -> Result<(), ProposeError> {
        let aside = Command::StepAside(StepAside {
            node: self.me.node.get(),
            identity: self.me.identity.to_wire(),
            replicas: vec![ReplicaRef {
                group: group.get(),
                replica: replica.0,
            }],
        });
        self.cluster.propose(&aside).await.map(drop)
    }

    async fn close(&self, id: GroupId, replica: ReplicaId) {
        if id == GroupId::CONTROLLER {
            return;
        }
        if let Some(partition) = self.cluster.partitions().remove(id) {
            partition.close();
        }
        self.node.close_group(id).await;
        if let Err(error) = self.node.delete_group(id).await {
            warn!(group = %id, %replica, %error, "a replica that was taken away is not deleted");
            return;
        }
        info!(group = %id, %replica, "a replica was closed, as the cluster map asks");
    }

    /// Proves the map current for every group led since before the proof began.
    async fn confirm(&self) {
        let led: Vec<(GroupId, Term)> = self
            .local_groups()
            .into_iter()
            .filter_map(|local| match local.role {
                LocalRole::Leader(view) => Some((local.group, view.term)),
                LocalRole::Follower | LocalRole::Stopped | LocalRole::PutOff => None,
            })
            .collect();
        let controller = self.cluster.controller();
        let Some(version) = controller.current_version().await else {
            return;
        };
        if !controller.await_version(version).await {
            return;
        }
        let confirmed = led
            .into_iter()
            .map(|(group, term)| (group, (term, version)));
        let mut progress = self.progress.lock();
        progress.confirmed = confirmed.collect();
        progress.current = Some(version);
    }

    /// Membership changes wait for other nodes: each runs apart, one per group at a time.
    fn change_members(&self, action: Action) {
        let group = match &action {
            Action::AddLearner { group, .. }
            | Action::RemoveLearner { group, .. }
            | Action::ChangeVoters { group, .. }
            | Action::FinishChange { group }
            | Action::TransferLeader { group, .. } => *group,
            _ => return,
        };
        let heir = match action {
            Action::TransferLeader { to, .. } => Some((group, to)),
            _ => None,
        };
        if !self.progress.lock().begin(group, heir) {
            return;
        }
        let (this, stop) = (self.clone(), self.stop.clone());
        let busy = Busy(Arc::clone(&self.progress), group);
        let changing = async move {
            let _busy = busy;
            let changed = if group == GroupId::CONTROLLER {
                let group = this.cluster.controller().group();
                tokio::time::timeout(CHANGE_PATIENCE, change(&group, action)).await
            } else if let Some(partition) = this.cluster.partitions().get(group) {
                let change = change(partition.group(), action);
                tokio::time::timeout(CHANGE_PATIENCE, change).await
            } else {
                Ok(Ok(()))
            };
            let done = matches!(changed, Ok(Ok(())));
            match changed {
                Ok(Ok(())) => {}
                // It comes right by itself; until then it is asked in every round.
                Ok(Err(error @ MembershipError::NotWhole(_))) => debug!(%group, %error, "not yet"),
                Ok(Err(error)) => info!(%group, %error, "a membership change is tried again"),
                Err(_) => info!(%group, "a membership change takes long and is looked at anew"),
            }
            if let (Some(heir), false) = (heir, done) {
                let mut progress = this.progress.lock();
                progress.declined.insert(heir, Instant::now());
            }
        };
        self.tasks.spawn(async move {
            stop.run_until_cancelled(changing).await;
        });
    }

    /// What only the controller's leader decides: growth, drains, and an even spread.
    async fn balance(&self) {
        let controller = self.cluster.controller();
        if !controller.group().leadership().borrow().ready {
            self.progress.lock().silence = Silence::default();
            return;
        }
        let map = self.cluster.map();
        let active = map.active_nodes().map(|node| node.id);
        let reachable = active.filter(|node| self.cluster.is_alive(*node)).collect();
        let silence = self.progress.lock().silence.observe(&map, &reachable);
        for command in silence
            .into_iter()
            .chain(plan_balance(&map, &reachable).commands)
        {
            if let Err(error) = self.cluster.propose(&command).await {
                info!(%error, "a planned move was refused and is planned anew");
                return;
            }
        }
    }
}

/// What the entries of a group mean, by the topic it belongs to; nothing if this build does not
/// know.
fn view_kind(map: &ClusterMap, group: GroupId) -> Option<ViewKind> {
    let Some(GroupPlace::Partition { topic, .. }) = map.place(group) else {
        return None;
    };
    let topic = map.topic(topic)?;
    if topic.kind != TopicKind::Internal {
        return Some(ViewKind::Records);
    }
    match InternalTopic::named(&topic.name)? {
        InternalTopic::Groups => Some(ViewKind::Groups),
        InternalTopic::Transactions => Some(ViewKind::Transactions),
    }
}

async fn change<V: View>(group: &Group<V>, action: Action) -> Result<(), MembershipError> {
    match action {
        Action::AddLearner { replica, .. } => group.add_learner(replica).await,
        Action::RemoveLearner { replica, .. } => {
            group.remove_learners(&BTreeSet::from([replica])).await
        }
        Action::ChangeVoters {
            voters, demoted, ..
        } => group.change_voters(&voters, &demoted).await,
        Action::FinishChange { .. } => group.finish_change().await,
        Action::TransferLeader { to, .. } => group.transfer_leader(to).await,
        _ => Ok(()),
    }
}

/// What the settings of a topic mean for its partitions in a cluster of a feature level.
fn limits(config: &TopicConfig, level: u32, max_batch_bytes: usize) -> PartitionLimits {
    let asked = usize::try_from(config.max_message_bytes).unwrap_or(usize::MAX);
    let deletes = config.cleanup_delete;
    // An older build cannot read what compaction leaves.
    let compacts = config.cleanup_compact && level >= COMPACTION_LEVEL;
    let max_lag = Duration::from_millis(config.max_compaction_lag_ms);
    let segment_age = Duration::from_millis(config.segment_ms);
    PartitionLimits {
        max_batch_bytes: asked.min(max_batch_bytes),
        retention: Retention {
            age: config
                .retention_ms
                .filter(|_| deletes)
                .map(Duration::from_millis),
            bytes: config.retention_bytes.filter(|_| deletes),
        },
        rules: RecordRules {
            // An older build, which may lead as well, does not ask for keys.
            keyed: compacts,
            times: match config.timestamp_type {
                TimestampType::LogAppendTime => Times::Appended,
                TimestampType::CreateTime => Times::Created {
                    before_ms: config.timestamp_before_max_ms,
                    after_ms: config.timestamp_after_max_ms,
                },
            },
        },
        compaction: compacts.then(|| Compaction {
            min_lag: Duration::from_millis(config.min_compaction_lag_ms),
            max_lag,
            keep_markers: Duration::from_millis(config.delete_retention_ms),
            dirty_ratio: config.min_cleanable_dirty_ratio,
            agrees: level >= ABORTED_LEVEL,
        }),
        rolling: Some(Rolling {
            bytes: config.segment_bytes,
            // Only closed segments are compacted.
            age: if compacts {
                segment_age.min(max_lag)
            } else {
                segment_age
            },
        }),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use trilog_raft::controller::TopicConfigView;

    use super::*;

    #[test]
    fn nothing_is_compacted_nor_asked_for_keys_before_every_node_understands_it() {
        let policy = ("cleanup.policy".to_owned(), "compact".to_owned());
        let (topic, cluster) = (BTreeMap::from([policy]), BTreeMap::new());
        let (topic, cluster) = (&topic, &cluster);
        let config = TopicConfigView { topic, cluster }.resolve();
        let before = limits(&config, COMPACTION_LEVEL - 1, 1);
        assert_eq!((before.compaction, before.rules.keyed), (None, false));
        let after = limits(&config, COMPACTION_LEVEL, 1);
        let agrees =
            |limits: PartitionLimits| limits.compaction.map(|compaction| compaction.agrees);
        assert_eq!(
            agrees(after),
            Some(false),
            "the builds before left transactions alone"
        );
        assert_eq!(agrees(limits(&config, ABORTED_LEVEL, 1)), Some(true));
        assert!(after.rules.keyed);
    }

    #[tokio::test(start_paused = true)]
    async fn a_replica_that_comes_to_nothing_is_tried_later_and_later() {
        let (group, mut progress) = (GroupId(7), Confirmations::default());
        let mut pauses = Vec::new();
        for round in 0..8 {
            let news = progress.put_off(group, "damaged".to_owned());
            assert_eq!(news, round == 0, "said once");
            let start = Instant::now();
            while progress.is_put_off(group) {
                tokio::time::advance(Duration::from_millis(100)).await;
            }
            pauses.push(start.elapsed());
        }
        assert_eq!(pauses[..3], [200, 400, 800].map(Duration::from_millis));
        assert_eq!(pauses.last(), Some(&LONGEST_PAUSE));
        assert!(progress.put_off(group, "lost".to_owned()));
        // It was well for long, which makes up for what was before.
        tokio::time::advance(WELL_AFTER + LONGEST_PAUSE).await;
        assert!(progress.put_off(group, "lost".to_owned()));
        tokio::time::advance(FIRST_PAUSE).await;
        assert!(!progress.is_put_off(group));
    }
}
