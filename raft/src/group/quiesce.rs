//! Putting a replica to rest and waking it: what a [`Rest`] decides, done to openraft's timers and
//! said to the other nodes through the heartbeat hub.
//!
//! ```text
//!   a call of this node ─> rouse ──────────────────────┐
//!   a message of a peer ─> take_note, shields_leader ──┤
//!   the hub ─────────────> on_vouch, on_wake ──────────┼─> Rest ─> timers, withdraw, refuse
//!   the node's watch ────> look, attend ───────────────┘     └───> alarm => the node's watch
//! ```
//!
//! Decided and done under one lock, so that timers and words never contradict the state.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use openraft::ReadPolicy;
use openraft::rt::WatchReceiver;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use trilog_model::{GroupId, LogIndex, NodeId, ReplicaId, Term};

use super::Replica;
use super::rest::{Look, Mark, Rest, State};
use crate::transport::Route;
use crate::transport::heartbeat::{HeartbeatHub, NodeLife, Vouch, WakeReason};
use crate::types::LogId;

/// How long followers may take to agree to an offer.
const OFFER_PATIENCE: Duration = Duration::from_secs(1);

/// How long replicas wait for others before they act, the same on every node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// What a leader that is doubted has to be heard within.
    pub(crate) leader: Duration,
    /// What the followers of a lost leader leave between their candidacies.
    pub(crate) stagger: Duration,
}

/// Groups of a node that its watch has to see to.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    rung: Mutex<BTreeSet<GroupId>>,
    bell: Notify,
}

impl Alarm {
    fn ring(&self, group: GroupId) {
        self.rung.lock().insert(group);
        self.bell.notify_one();
    }

    /// Waits until it rings; it may have rung for nothing new.
    pub(crate) async fn heard(&self) {
        self.bell.notified().await;
    }

    pub(crate) fn take(&self) -> BTreeSet<GroupId> {
        std::mem::take(&mut *self.rung.lock())
    }
}

/// What a replica's rest hangs on.
#[derive(Debug)]
pub(crate) struct Resting {
    rest: Mutex<Rest>,
    /// The timers are off; for those who need to know only that.
    asleep: AtomicBool,
    /// The followers have to hear from this leader.
    renewal_due: AtomicBool,
    /// Nodes of followers that were dead when all others agreed.
    absent: Mutex<Vec<NodeId>>,
    hub: HeartbeatHub,
    alarm: Arc<Alarm>,
    patience: Patience,
}

impl Resting {
    pub(crate) fn new(
        me: ReplicaId,
        hub: HeartbeatHub,
        alarm: Arc<Alarm>,
        patience: Patience,
    ) -> Self {
        Self {
            rest: Mutex::new(Rest::new(me, Instant::now())),
            asleep: AtomicBool::new(false),
            renewal_due: AtomicBool::new(false),
            absent: Mutex::default(),
            hub,
            alarm,
            patience,
        }
    }

    /// Whether the timers are off.
    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Acquire)
    }
}

/// A call for which the leader stays awake; over when dropped.
pub(crate) struct Busy(Arc<Resting>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.rest.lock().done(Instant::now());
    }
}

/// What the node's watch has to do for a group.
#[derive(Default)]
pub(crate) struct Errand {
    /// Look again then.
    pub(crate) again_at: Option<Instant>,
    pub(crate) works: Vec<BoxFuture<'static, ()>>,
}

/// Followers to be asked whether they agree to rest.
struct Offer {
    number: u64,
    term: Term,
    followers: Vec<ReplicaId>,
}

impl Replica {
    /// Lets the rest of this replica change, and does what follows from it.
    fn change<R>(&self, change: impl FnOnce(&mut Rest) -> R) -> R {
        let resting = &self.resting;
        let group = self.status.group;
        let mut rest = resting.rest.lock();
        let deadline = rest.deadline();
        let result = change(&mut rest);
        let asleep = !rest.ticks();
        if resting.asleep.swap(asleep, Ordering::AcqRel) != asleep {
            self.raft.runtime_config().tick(!asleep);
        }
        let duties = rest.take_duties();
        if duties.withdraw {
            resting.hub.withdraw(group);
        }
        if duties.refuse {
            resting.hub.refuse(group);
        }
        if duties.renew {
            resting.renewal_due.store(true, Ordering::Release);
        }
        let waits_anew = rest.deadline().is_some() && rest.deadline() != deadline;
        if duties.renew || waits_anew {
            resting.alarm.ring(group);
        }
        result
    }

    /// Whether the timers are off.
    pub(crate) fn rests(&self) -> bool {
        self.resting.is_asleep()
    }

    fn look_now(&self) -> Look {
        let leadership = self.status.leadership_now();
        let log = self.log.state();
        let last = log.last.map(|id| id.index);
        let applied = self.status.applied_now();
        Look {
            leadership,
            mark: Mark {
                term: leadership.term,
                last,
                applied,
            },
            level: last.is_some()
                && [applied, log.committed, log.durable]
                    .iter()
                    .all(|position| *position == last),
        }
    }

    /// Keeps a leader awake for a call, and wakes it first if it rests: its lease is over then,
    /// and is renewed before this returns, if it can be.
    pub(super) async fn rouse(&self) -> Busy {
        let rested = self.change(|rest| rest.used(Instant::now()));
        let busy = Busy(Arc::clone(&self.resting));
        if rested {
            self.renew_lease().await;
        }
        busy
    }

    /// Has a majority confirm this leader's lease. False if it did not, within the lease's time.
    pub(super) async fn renew_lease(&self) -> bool {
        let confirmed = self.raft.get_read_linearizer(ReadPolicy::ReadIndex);
        confirmed.await.is_ok()
    }

    /// A message of a peer was taken; `heard` if it was a leader's and accepted.
    pub(super) fn take_note(&self, heard: bool) {
        if heard {
            self.heard.note();
        }
        if self.resting.is_asleep() {
            self.change(|rest| rest.look(&self.look_now(), heard, Instant::now()));
        }
    }

    /// Whether a replica that stands for election has to be refused because this one rests.
    pub(super) fn shields_leader(&self, candidate: ReplicaId) -> bool {
        if !self.resting.is_asleep() {
            return false;
        }
        let member = self.raft.voter_ids().any(|voter| voter == candidate.0);
        let leader = self.status.leadership_now().leader;
        let alive = leader.is_some_and(|leader| self.resting.hub.hears(leader.node()));
        let until = self.patience_for(!alive);
        self.change(|rest| rest.solicited(member, alive, until))
    }

    /// Until when a leader that may be lost has to be heard. The followers of one that surely is
    /// only keep out of one another's way.
    fn patience_for(&self, lost: bool) -> Instant {
        let patience = self.resting.patience;
        let leader = if lost {
            Duration::ZERO
        } else {
            patience.leader
        };
        Instant::now() + leader + patience.stagger * self.rank()
    }

    /// When this replica may stand to succeed a leader that is gone for sure.
    pub(super) fn turn(&self) -> Instant {
        self.patience_for(true)
    }

    /// Has the node's watch see to this group.
    pub(super) fn ring(&self) {
        self.resting.alarm.ring(self.status.group);
    }

    /// This replica's place among the voters that may succeed the leader; which of them is first
    /// differs between groups.
    fn rank(&self) -> u32 {
        let leader = self.status.leadership_now().leader;
        let voters = self.raft.voter_ids().map(ReplicaId);
        let heirs: BTreeSet<_> = voters.filter(|voter| Some(*voter) != leader).collect();
        let count = heirs.len().max(1) as u64;
        let place = heirs.range(..self.status.replica).count() as u64;
        u32::try_from((place + self.status.group.get()) % count).unwrap_or(0)
    }

    /// Another node vouches for this group's leader. True if this replica agrees and rests.
    pub(crate) fn on_vouch(&self, vouch: &Vouch) -> bool {
        self.change(|rest| rest.vouched(vouch, &self.look_now()))
    }

    /// The hub has a reason to wake this group.
    pub(crate) fn on_wake(&self, reason: WakeReason) {
        let leader = self.status.leadership_now().leader.map(ReplicaId::node);
        let lost = match reason {
            WakeReason::NodeDead(node) | WakeReason::NodeRestarted(node) => leader == Some(node),
            WakeReason::Withdrawn | WakeReason::Refused(_) | WakeReason::Mismatch => false,
        };
        let until = self.patience_for(lost);
        self.change(|rest| rest.doubted(until));
    }

    /// This replica is about to stand for election because its leader asks for that. It must not
    /// come to lead with its timers off, should the leader's withdrawal arrive later.
    pub(super) fn rise(&self) {
        let now = Instant::now();
        self.change(|rest| {
            rest.doubted(now);
            rest.passed(now);
        });
    }

    /// Whether a node was heard lately.
    pub(super) fn hears(&self, node: NodeId) -> bool {
        self.resting.hub.hears(node)
    }

    /// Nobody may rest on this replica any more.
    pub(super) fn close_rest(&self) {
        self.change(Rest::close);
    }

    /// What is due for this group now.
    pub(crate) fn attend(&self) -> Errand {
        let rest_at = self.change(|rest| {
            rest.passed(Instant::now());
            rest.deadline()
        });
        let (election, turn) = self.succession_due();
        let renewal_due = self.resting.renewal_due.swap(false, Ordering::AcqRel);
        let renewal = renewal_due.then(|| {
            let raft = self.raft.clone();
            // Its outcome shows in what the followers answer.
            async move { drop(raft.trigger().heartbeat().await) }.boxed()
        });
        Errand {
            again_at: rest_at.into_iter().chain(turn).min(),
            works: renewal.into_iter().chain(election).collect(),
        }
    }

    /// Looks after a group now and then: whether its rest is still justified, and whether it may
    /// begin.
    pub(crate) fn look(&self, quiesce_after: Duration) -> Option<BoxFuture<'static, ()>> {
        if let Some(why) = self.ended() {
            // One that is being closed ends as it should.
            if !self.closing.is_cancelled() {
                self.status.failed(why);
            }
            self.status.stopped();
        }
        let seen = self.look_now();
        let now = Instant::now();
        let idle = self.change(|rest| {
            rest.look(&seen, false, now);
            rest.is_idle(quiesce_after, now)
        });
        if self.misses_one_that_is_back() {
            self.change(|rest| rest.doubted(now));
        }
        let leads = seen.leadership.leader == Some(self.status.replica) && seen.leadership.ready;
        if !idle || !leads || !seen.level {
            return None;
        }
        let (followers, absent) = self.level_followers(seen.mark.last)?;
        *self.resting.absent.lock() = absent;
        let offer = Offer {
            number: self.change(Rest::offer),
            term: seen.leadership.term,
            followers,
        };
        let replica = self.clone();
        Some(async move { replica.make(offer).await }.boxed())
    }

    /// Why openraft's task has ended, which it says nobody; none while it runs.
    fn ended(&self) -> Option<String> {
        let mut metrics = self.raft.metrics();
        let running = metrics.borrow_and_update().running_state.clone();
        if let Err(fatal) = running {
            return Some(fatal.to_string());
        }
        let gone = matches!(metrics.changed().now_or_never(), Some(Err(_)));
        gone.then(|| "its task is gone".to_owned())
    }

    /// Whether this leader rests without a follower whose node is heard again.
    fn misses_one_that_is_back(&self) -> bool {
        let resting = &self.resting;
        if !resting.is_asleep() {
            return false;
        }
        let leading = resting.rest.lock().state() == State::Leading;
        leading
            && resting
                .absent
                .lock()
                .iter()
                .any(|node| !self.is_dead(*node))
    }

    fn is_dead(&self, node: NodeId) -> bool {
        *self.resting.hub.node_alive(node).borrow() == NodeLife::Dead
    }

    /// The followers that hold all of this leader's log, and the nodes of those that are dead, if
    /// that is all of them, a majority is level, and no change of members is under way.
    fn level_followers(&self, last: Option<LogIndex>) -> Option<(Vec<ReplicaId>, Vec<NodeId>)> {
        let me = self.status.replica;
        let stored = self
            .raft
            .metrics()
            .borrow_watched()
            .membership_config
            .clone();
        let membership = stored.membership();
        let settled = stored.log_id().as_ref().map(LogId::index) <= last.map(LogIndex::get)
            && membership.get_joint_config().len() == 1;
        let voters: BTreeSet<ReplicaId> = membership.voter_ids().map(ReplicaId).collect();
        if !settled || !voters.contains(&me) {
            return None;
        }
        let members = voters
            .iter()
            .copied()
            .chain(membership.learner_ids().map(ReplicaId));
        let (absent, followers): (Vec<_>, Vec<_>) = members
            .filter(|member| *member != me)
            .partition(|member| self.is_dead(member.node()));
        let matched = self.matched();
        let level = |follower: &ReplicaId| matched.contains(&(*follower, last));
        let standing = voters.iter().filter(|voter| !absent.contains(voter));
        if !followers.iter().all(level) || standing.count() * 2 <= voters.len() {
            return None;
        }
        Some((followers, absent.into_iter().map(ReplicaId::node).collect()))
    }

    /// Asks every follower to rest; rests if all of them agree.
    async fn make(&self, offer: Offer) {
        let vouching = offer.followers.iter().map(|follower| {
            let vouch = Vouch {
                term: offer.term,
                route: Route {
                    group: self.status.group,
                    from: self.status.replica,
                    to: *follower,
                },
            };
            self.resting.hub.vouch(vouch, OFFER_PATIENCE)
        });
        let answers = join_all(vouching).await;
        let agreed = answers.iter().all(Result::is_ok);
        self.change(|rest| rest.answered(offer.number, agreed, Instant::now()));
    }
}
