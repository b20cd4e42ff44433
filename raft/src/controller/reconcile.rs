//! What one node does to bring its groups to where the map wants them.
//!
//! Pure planning: the map and what the node holds and leads go in, ordered actions come out.
//! Nothing is remembered between rounds, so a round may be repeated, cut short or retried.
//!
//! ```text
//!            map: new target                    leader: all that join have caught up
//!  settled ------------------> joining (learner) ----------------------------------+
//!     ^                                                                            |
//!     +------ controller: report accepted <-- leader: reports <-- joint change <---+
//!             replicas without a place are retired; their nodes close them and say so
//! ```
//!
//! Three rules keep data safe under any delay:
//!
//! - A replica is closed only when the map lists it as retired, never because the map does not
//!   mention it: the map may be older than the replica.
//! - A leader begins a change of its membership, or reports one, only by a map proven current since
//!   it began to lead ([`Action::ConfirmMap`]). Otherwise a new leader with an old map could make
//!   voters of replicas that a late report of its predecessor is about to retire. What was begun is
//!   finished by any map ([`Action::FinishChange`]).
//! - A replica comes to life on an empty log only by a map proven current since the node's process
//!   began. A node that starts folds the controller's log anew, and sees maps from before it closed
//!   replicas; one of those, opened again, would have forgotten its votes and its entries.

use std::collections::{BTreeMap, BTreeSet};

use trilog_model::{GroupId, NodeId, ReplicaId, Term};

use super::cluster_map::{ClusterMap, NodeState, Partition, Replica, Standing};
use super::command::{Command, ReplicaRef, ReportClosed, ReportSettled};
use super::ids::NodeIdentity;

/// Replicas named in one report at most.
const MAX_REPORTED: usize = 1_000;

/// A replica this node holds on its disk, running or not. Leaving one out makes the node report
/// it closed once it is retired, and its files then stay for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LocalGroup {
    pub group: GroupId,
    pub replica: ReplicaId,
    pub role: LocalRole,
}

/// What a replica is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LocalRole {
    /// On disk only, as every replica is after a start.
    Stopped,
    /// On disk only, and not to be opened now: that failed a moment ago.
    PutOff,
    Follower,
    /// Leads, and has applied the first entry of its own term.
    Leader(LeaderView),
}

/// What a leader knows of its group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaderView {
    pub term: Term,
    /// The version of the map that a linearizable read of the controller showed, begun after
    /// this leadership did.
    pub confirmed: Option<u64>,
    /// Of the committed membership.
    pub voters: BTreeSet<ReplicaId>,
    pub learners: BTreeSet<ReplicaId>,
    /// A membership change is on its way.
    pub changing: bool,
    /// Its joint step is committed, and whoever was to make the final one is gone.
    pub half_done: bool,
    /// Of every other member.
    pub progress: BTreeMap<ReplicaId, Progress>,
    /// Nodes that could not lead if leadership were handed to them.
    pub unfit: BTreeSet<NodeId>,
}

/// How far a member is behind its leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Entries it lacks.
    pub lag: u64,
    /// It has answered lately.
    pub reachable: bool,
}

/// The node that plans.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Myself {
    pub node: NodeId,
    pub identity: NodeIdentity,
    /// The version of the map that a linearizable read of the controller showed since the node's
    /// process began.
    pub confirmed: Option<u64>,
}

/// How much one round may set in motion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub opens: usize,
    pub closes: usize,
    pub transfers: usize,
    /// Learners that catch up from this node at the same time.
    pub catch_ups: usize,
    /// Entries a member may lack and yet count as caught up.
    pub caught_up_lag: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            opens: 64,
            closes: 64,
            transfers: 32,
            catch_ups: 16,
            caught_up_lag: 64,
        }
    }
}

/// One step, to be carried out in the order given, those of one group one after another and
/// before the next round is planned. Each may fail, and is then planned again.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Stop and delete a replica that the map says was taken away.
    CloseGroup {
        group: GroupId,
        replica: ReplicaId,
    },
    /// Start a replica that the map lists here, on the log it has or else on an empty one.
    OpenGroup {
        group: GroupId,
        replica: ReplicaId,
        kind: OpenKind,
    },
    /// Read the controller linearizably, wait until the map is as new, and note its version as
    /// confirmed for every group led since before the read.
    ConfirmMap,
    AddLearner {
        group: GroupId,
        replica: ReplicaId,
    },
    RemoveLearner {
        group: GroupId,
        replica: ReplicaId,
    },
    /// A joint change to exactly these voters. Former voters in `demoted` stay as learners.
    ChangeVoters {
        group: GroupId,
        voters: BTreeSet<ReplicaId>,
        demoted: BTreeSet<ReplicaId>,
    },
    /// Make the final step of a change that nobody else makes.
    FinishChange {
        group: GroupId,
    },
    TransferLeader {
        group: GroupId,
        to: ReplicaId,
    },
    /// Propose this to the controller.
    Report(Command),
}

/// How a group comes to life on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OpenKind {
    /// As one of the voters that form the group: initialize with exactly these.
    Found(BTreeSet<ReplicaId>),
    /// Empty, to be filled by the group's leader.
    Join,
}

/// One round's plan.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct NodePlan {
    pub actions: Vec<Action>,
    /// Groups this node holds and the map does not explain. They are kept; a human should look
    /// if they stay.
    pub unexplained: Vec<GroupId>,
}

/// The node is not a member, and must not serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Estranged {
    #[error("the node is not registered with the cluster")]
    Unregistered,
    #[error("the node was removed from the cluster")]
    Removed,
    #[error("another data directory has taken the node's place")]
    Replaced,
}

/// Plans one round for the node `me`, which holds `local`.
pub fn plan_node(
    map: &ClusterMap,
    me: Myself,
    local: &[LocalGroup],
    limits: &Limits,
) -> Result<NodePlan, Estranged> {
    let node = map.node(me.node).ok_or(Estranged::Unregistered)?;
    if node.identity != me.identity {
        return Err(Estranged::Replaced);
    }
    if node.state == NodeState::Removed {
        return Err(Estranged::Removed);
    }
    let held = local.iter().map(|local| (local.group, local)).collect();
    let mut round = Round {
        map,
        me,
        held,
        limits,
        catching_up: 0,
        transfers: 0,
        confirm: false,
        plan: NodePlan::default(),
    };
    round.close();
    round.open();
    round.count_catch_ups();
    for local in local {
        round.look_after(local);
    }
    if round.confirm {
        round.plan.actions.push(Action::ConfirmMap);
    }
    Ok(round.plan)
}

struct Round<'a> {
    map: &'a ClusterMap,
    me: Myself,
    held: BTreeMap<GroupId, &'a LocalGroup>,
    limits: &'a Limits,
    catching_up: usize,
    transfers: usize,
    confirm: bool,
    plan: NodePlan,
}

impl Round<'_> {
    fn holds(&self, group: GroupId, replica: ReplicaId) -> bool {
        self.held
            .get(&group)
            .is_some_and(|local| local.replica == replica)
    }

    /// Closes what is retired, and reports what of it is no longer here.
    fn close(&mut self) {
        let mut gone = Vec::new();
        let mut closes = 0;
        for (group, replica) in self.map.retired(self.me.node).into_iter().flatten() {
            if self.holds(*group, *replica) {
                if closes < self.limits.closes {
                    closes += 1;
                    self.plan.actions.push(Action::CloseGroup {
                        group: *group,
                        replica: *replica,
                    });
                }
            } else if gone.len() < MAX_REPORTED {
                gone.push(ReplicaRef {
                    group: group.get(),
                    replica: replica.0,
                });
            }
        }
        if !gone.is_empty() {
            let report = Command::ReportClosed(ReportClosed {
                node: self.me.node.get(),
                identity: self.me.identity.to_wire(),
                replicas: gone,
            });
            self.plan.actions.push(Action::Report(report));
        }
    }

    /// Opens what belongs here, unless a former replica of the group is still in its place.
    fn open(&mut self) {
        let mut opens = 0;
        let confirmed = self.me.confirmed;
        let confirmed = confirmed.is_some_and(|version| version <= self.map.version());
        for partition in self.map.groups() {
            let Some(replica) = self.due_here(partition) else {
                continue;
            };
            let startable = self
                .held
                .get(&partition.group)
                .is_none_or(|local| local.role == LocalRole::Stopped && local.replica == replica);
            if opens == self.limits.opens || !startable {
                continue;
            }
            if !confirmed && !self.held.contains_key(&partition.group) {
                self.confirm = true;
                continue;
            }
            opens += 1;
            let founding = &partition.founding;
            self.plan.actions.push(Action::OpenGroup {
                group: partition.group,
                replica,
                kind: if founding.contains(&replica) {
                    OpenKind::Found(founding.iter().copied().collect())
                } else {
                    OpenKind::Join
                },
            });
        }
    }

    /// The replica of a group that should run here: the one that is wanted, else one that is on
    /// its way out. Even one that never was to stay may have become a voter meanwhile, and the
    /// group may need its vote to let it go.
    fn due_here(&self, partition: &Partition) -> Option<ReplicaId> {
        let here = |replica: &&Replica| replica.id.node() == self.me.node && !replica.lost;
        partition
            .replicas
            .iter()
            .filter(here)
            .max_by_key(|replica| (replica.is_wanted(), replica.id))
            .map(|replica| replica.id)
    }

    fn is_caught_up(&self, view: &LeaderView, me: ReplicaId, replica: ReplicaId) -> bool {
        replica == me
            || view.progress.get(&replica).is_some_and(|progress| {
                progress.reachable && progress.lag <= self.limits.caught_up_lag
            })
    }

    /// Learners that are filling up from this node already.
    fn count_catch_ups(&mut self) {
        let mut count = 0;
        for local in self.held.values() {
            if let LocalRole::Leader(view) = &local.role {
                let behind = |id: &&ReplicaId| !self.is_caught_up(view, local.replica, **id);
                count += view.learners.iter().filter(behind).count();
            }
        }
        self.catching_up = count;
    }

    fn look_after(&mut self, local: &LocalGroup) {
        let retired = self
            .map
            .retired(self.me.node)
            .is_some_and(|retired| retired.contains(&(local.group, local.replica)));
        if retired {
            return;
        }
        let partition = self.map.group(local.group);
        let known = partition.filter(|partition| partition.replica(local.replica).is_some());
        let Some(partition) = known else {
            self.plan.unexplained.push(local.group);
            return;
        };
        if let LocalRole::Leader(view) = &local.role {
            self.lead(partition, local.replica, view);
        }
    }

    /// The next steps of a group this node leads.
    fn lead(&mut self, partition: &Partition, me: ReplicaId, view: &LeaderView) {
        if view.half_done {
            // Any map will do: what the change leads to is decided, and needs both sets until then.
            let group = partition.group;
            return self.plan.actions.push(Action::FinishChange { group });
        }
        let voters = partition.target_set(Standing::Voter);
        let learners = partition.target_set(Standing::Learner);
        let reached = view.voters == voters && view.learners == learners;
        if reached && partition.is_settled() {
            self.hand_over(partition, me, view);
            return;
        }
        if view.changing {
            return;
        }
        let confirmed = view
            .confirmed
            .is_some_and(|version| version <= self.map.version());
        if !confirmed {
            self.confirm = true;
            return;
        }
        if reached {
            self.plan
                .actions
                .push(Action::Report(settled(partition, view)));
            return;
        }
        self.fill_learners(partition, me, view, &voters, &learners);
        if view.voters != voters {
            self.change_voters(partition, me, view, &voters, &learners);
        }
    }

    fn fill_learners(
        &mut self,
        partition: &Partition,
        me: ReplicaId,
        view: &LeaderView,
        voters: &BTreeSet<ReplicaId>,
        learners: &BTreeSet<ReplicaId>,
    ) {
        let group = partition.group;
        for replica in view.learners.difference(learners) {
            if !voters.contains(replica) {
                self.plan.actions.push(Action::RemoveLearner {
                    group,
                    replica: *replica,
                });
            }
        }
        for replica in voters.union(learners) {
            let member = view.voters.contains(replica) || view.learners.contains(replica);
            if member || *replica == me || self.catching_up >= self.limits.catch_ups {
                continue;
            }
            self.catching_up += 1;
            self.plan.actions.push(Action::AddLearner {
                group,
                replica: *replica,
            });
        }
    }

    /// Changes the voters once all that join have caught up, and only if both the old and the new
    /// set then have a caught-up majority. A leader that is to go first makes the change with
    /// itself still in it, then hands over, so that the group is never without a leader.
    fn change_voters(
        &mut self,
        partition: &Partition,
        me: ReplicaId,
        view: &LeaderView,
        voters: &BTreeSet<ReplicaId>,
        learners: &BTreeSet<ReplicaId>,
    ) {
        let mut next = voters.clone();
        next.insert(me);
        if next == view.voters {
            if let Some(to) = self.successor(partition, me, view) {
                self.transfer(partition.group, to);
            }
            return;
        }
        let caught_up = |id: &&ReplicaId| self.is_caught_up(view, me, **id);
        let majority = |set: &BTreeSet<ReplicaId>| {
            let caught_up = set.iter().filter(caught_up).count();
            caught_up * 2 > set.len()
        };
        let joined = next
            .difference(&view.voters)
            .all(|id| view.learners.contains(id) && self.is_caught_up(view, me, *id));
        if joined && majority(&next) && majority(&view.voters) {
            let left: BTreeSet<ReplicaId> = view.voters.difference(&next).copied().collect();
            self.plan.actions.push(Action::ChangeVoters {
                group: partition.group,
                demoted: left.intersection(learners).copied().collect(),
                voters: next,
            });
        }
    }

    /// Hands leadership to the preferred voter, if that is another one and can take it.
    fn hand_over(&mut self, partition: &Partition, me: ReplicaId, view: &LeaderView) {
        let staying = self.is_active(me.node());
        if partition.preferred == me.node() && staying {
            return;
        }
        let better = |to: &ReplicaId| {
            self.is_active(to.node()) && (to.node() == partition.preferred || !staying)
        };
        let successor = self.successor(partition, me, view);
        if let Some(to) = successor.filter(better) {
            self.transfer(partition.group, to);
        }
    }

    /// The voter that can take over and is to stay: on a node that stays, then the preferred one,
    /// then the first.
    fn successor(
        &self,
        partition: &Partition,
        me: ReplicaId,
        view: &LeaderView,
    ) -> Option<ReplicaId> {
        partition
            .targets(Standing::Voter)
            .map(|replica| replica.id)
            .filter(|id| *id != me && self.can_lead(view, me, *id))
            .min_by_key(|id| (!self.is_active(id.node()), id.node() != partition.preferred))
    }

    fn can_lead(&self, view: &LeaderView, me: ReplicaId, replica: ReplicaId) -> bool {
        view.voters.contains(&replica)
            && !view.unfit.contains(&replica.node())
            && self.is_caught_up(view, me, replica)
    }

    fn is_active(&self, node: NodeId) -> bool {
        self.map.node(node).is_some_and(|node| node.is_active())
    }

    fn transfer(&mut self, group: GroupId, to: ReplicaId) {
        if self.transfers < self.limits.transfers {
            self.transfers += 1;
            self.plan.actions.push(Action::TransferLeader { group, to });
        }
    }
}

fn settled(partition: &Partition, view: &LeaderView) -> Command {
    Command::ReportSettled(ReportSettled {
        group: partition.group.get(),
        generation: partition.generation,
        term: view.term.get(),
        voters: view.voters.iter().map(|id| id.0).collect(),
        learners: view.learners.iter().map(|id| id.0).collect(),
    })
}

#[cfg(test)]
mod tests;
