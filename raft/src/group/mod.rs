//! One replica of one group: its log, its view, its consensus, and the handle callers use.
//!
//! ```text
//!   propose ─> core task ─> LogStore => write-ahead log ──durable──> core task
//!                 │  replication tasks ─> Network => followers ──matched──> core task
//!                 └─ committed => StateMachine: View, kv batch, high watermark, answer
//! ```

mod catch_up;
mod checkpoint;
mod clean;
mod copy;
mod descriptor;
mod error;
mod heard;
mod install;
mod log_store;
mod members;
mod memberships;
mod network;
mod open;
mod propose;
mod quiesce;
pub mod recover;
mod rest;
mod serve;
mod state_machine;
mod status;
mod succession;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use openraft::rt::WatchReceiver;
use openraft::{Config, Raft, ReadPolicy};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use trilog_model::{GroupId, LogIndex, Offset, ReplicaId};
use trilog_storage::kv::Kv;
use trilog_storage::log::GroupLog;

pub use checkpoint::KV_FAMILY;
pub use error::{MembershipError, ProposeError, ReadError, StopError, TrimError};
pub use members::Members;
pub use open::OpenError;
pub use status::{HighWatermark, Leadership};

pub(crate) use catch_up::Throttle;
pub(crate) use checkpoint::remembered_members;
pub(crate) use copy::{Copies, FetchError};
pub(crate) use heard::Heard;
pub(crate) use network::{APPEND, COPY, Network, SNAPSHOT, TRANSFER};
pub(crate) use quiesce::{Alarm, Patience};
pub(crate) use serve::GroupRaft;
pub(crate) use status::Status;

use copy::{Holding, Reluctance};
use log_store::{LogStore, RepairPatience};
use network::WHOLE;
use propose::InFlight;
use quiesce::Resting;
use state_machine::{Starts, TrimTarget};
use succession::Succession;

use crate::room::Room;
use crate::transport::heartbeat::HeartbeatHub;
use crate::transport::{PeerCall, PeerStream, Refusal, Transport};
use crate::types::LogId;
use crate::view::View;

/// For how many times the longest silence that is none a leader is excused whose node is heard.
const EXCUSED: u32 = 3;

/// What opening a group takes, the same for all groups of a node.
#[derive(Clone, Debug)]
pub(crate) struct Parts {
    pub(crate) config: Arc<Config>,
    pub(crate) append_bytes: usize,
    pub(crate) failover: Duration,
    pub(crate) patience: Patience,
    pub(crate) kv: Kv,
    pub(crate) transport: Transport,
    /// Counts the elections that replicas of the node stand in.
    pub(crate) elections: Arc<AtomicU64>,
    pub(crate) throttle: Arc<Throttle>,
    pub(crate) hub: HeartbeatHub,
    pub(crate) alarm: Arc<Alarm>,
    pub(crate) copies: Copies,
    pub(crate) room: Arc<Room>,
}

/// A replica of a group, whatever its view. Clones share it.
#[derive(Clone)]
pub(crate) struct Replica {
    pub(crate) raft: GroupRaft,
    pub(crate) log: GroupLog,
    pub(crate) status: Arc<Status>,
    starts: Starts,
    in_flight: Arc<InFlight>,
    resting: Arc<Resting>,
    succession: Arc<Succession>,
    heard: Arc<Heard>,
    failover: Duration,
    copies: Copies,
    /// Ends waits for repairs when the replica begins to close: none may come any more.
    closing: CancellationToken,
    /// Ends the streams of peers when the replica closes.
    stop: CancellationToken,
    abstains: Arc<AtomicBool>,
    room: Arc<Room>,
}

impl fmt::Debug for Replica {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Replica")
            .field("group", &self.status.group)
            .field("replica", &self.status.replica)
            .finish_non_exhaustive()
    }
}

impl Replica {
    /// Opens the replica that `log` is of and starts its tasks.
    pub(crate) async fn open(
        parts: &Parts,
        log: GroupLog,
        view: Arc<Mutex<dyn View>>,
    ) -> Result<Self, OpenError> {
        let group = log.group();
        let vote = log.state().vote;
        let elections = Arc::clone(&parts.elections);
        let status = Status::new(group, log.replica(), vote, elections);
        let starts = Starts::default();
        let machine = open::open(
            log.clone(),
            parts.kv.clone(),
            Arc::clone(&status),
            view,
            starts.clone(),
        )
        .await?;
        let closing = CancellationToken::new();
        let patience = RepairPatience::new(closing.clone());
        let store = LogStore::new(
            log.clone(),
            Arc::clone(&status),
            Arc::clone(&starts.planned),
            parts.append_bytes,
            patience.clone(),
        );
        let throttle = Arc::clone(&parts.throttle);
        let heard = Heard::new(
            Arc::clone(&status),
            parts.hub.clone(),
            parts.failover * EXCUSED,
        );
        let network = Network::new(
            parts.transport.clone(),
            log.clone(),
            throttle,
            Arc::clone(&heard),
        );
        let config = Arc::clone(&parts.config);
        let started = Raft::new(log.replica().0, config, network, store, machine).await;
        let raft = started.map_err(|error| OpenError::of_start(&log, &error))?;
        let resting = Resting::new(
            log.replica(),
            parts.hub.clone(),
            Arc::clone(&parts.alarm),
            parts.patience,
        );
        patience.begin();
        Ok(Self {
            raft,
            log,
            status,
            starts,
            in_flight: Arc::default(),
            resting: Arc::new(resting),
            succession: Arc::default(),
            heard,
            failover: parts.failover,
            copies: parts.copies.clone(),
            closing,
            stop: CancellationToken::new(),
            abstains: Arc::default(),
            room: Arc::clone(&parts.room),
        })
    }

    /// Answers a call of a peer replica.
    pub(crate) async fn on_call(&self, call: PeerCall) -> Result<Vec<bytes::Bytes>, Refusal> {
        match call.kind {
            WHOLE => Ok(vec![self.holding().encode()]),
            TRANSFER if self.abstains.load(Ordering::Acquire) => Err(Refusal::Busy),
            _ => serve::call(self, call).await,
        }
    }

    /// Serves a stream of a peer replica to its end.
    pub(crate) async fn on_stream(&self, stream: PeerStream) {
        match stream.kind {
            APPEND => serve::appends(self, stream, self.stop.child_token()).await,
            SNAPSHOT => {
                let served = serve::snapshot(self, stream);
                self.stop.run_until_cancelled(served).await;
            }
            _ => stream.refuse(&Refusal::Unserved),
        }
    }

    /// The replicas of the group, as this one knows them, and who leads it.
    pub(crate) fn members_and_leader(&self) -> (BTreeSet<ReplicaId>, Option<ReplicaId>) {
        let voters = self.raft.voter_ids();
        let all = voters.chain(self.raft.learner_ids()).map(ReplicaId);
        (all.collect(), self.status.leadership_now().leader)
    }

    /// Hands leadership, if this replica has it, to the voter that holds most of its log, of those
    /// whose nodes are heard, if any are.
    pub(crate) async fn resign(&self) {
        if self.status.leadership_now().leader != Some(self.status.replica) {
            return;
        }
        self.await_settled_voters().await;
        let own = self.status.replica;
        let voters: BTreeSet<u64> = self.raft.voter_ids().collect();
        let candidates = self.matched().into_iter();
        let candidates =
            candidates.filter(|(replica, _)| *replica != own && voters.contains(&replica.0));
        let fitness = |(replica, matched): &(ReplicaId, Option<LogIndex>)| {
            (self.hears(replica.node()), *matched)
        };
        let Some((best, _)) = candidates.max_by_key(fitness) else {
            return;
        };
        if let Err(error) = self.hand_over(best).await {
            tracing::info!(group = %self.status.group, %error, "leadership was not handed over");
        }
    }

    /// What this replica says of itself.
    fn holding(&self) -> Holding {
        Holding::of(&self.log, self.reluctance())
    }

    fn reluctance(&self) -> Reluctance {
        if self.abstains.load(Ordering::Acquire) {
            Reluctance::Abstains
        } else if self.room.is_short() {
            Reluctance::Full
        } else {
            Reluctance::Willing
        }
    }

    /// Whether this replica does not want to lead.
    fn is_reluctant(&self) -> bool {
        self.reluctance() != Reluctance::Willing
    }

    /// Hands leadership, if this replica has it, to a voter that has all of its log and room for
    /// more. True if it did; else it may be tried again.
    pub(crate) async fn yield_to_room(&self) -> bool {
        if self.status.leadership_now().leader != Some(self.status.replica) {
            return false;
        }
        let own = self.status.replica;
        let voters: BTreeSet<u64> = self.raft.voter_ids().collect();
        let last = self.log.state().last.map(|last| last.index);
        for (replica, matched) in self.matched() {
            if replica == own || !voters.contains(&replica.0) || matched < last {
                continue;
            }
            let held = self.copies.holding(&self.log, replica).await;
            let willing = matches!(
                held,
                Ok(Some(Holding {
                    reluctance: Reluctance::Willing,
                    ..
                }))
            );
            if willing {
                self.await_settled_voters().await;
                return self.hand_over(replica).await.is_ok();
            }
        }
        false
    }

    /// Waits, within bounds, for a change of voters that is half done. Until it ends, no election
    /// is won without a majority of the set that goes, and this replica may be all of that.
    async fn await_settled_voters(&self) {
        let mut metrics = self.raft.metrics();
        let settled = metrics.wait_until(|now| {
            let stored = &now.membership_config;
            let applied = now.last_applied.as_ref().map(LogId::index);
            stored.membership().get_joint_config().len() <= 1
                && stored.log_id().as_ref().map(LogId::index) <= applied
        });
        if tokio::time::timeout(self.failover, settled).await.is_err() {
            tracing::warn!(
                group = %self.status.group,
                "leadership is handed over in the middle of a change of voters"
            );
        }
    }

    /// From now on this replica does not stand for election, nor take leadership; or it does
    /// again.
    pub(crate) fn abstain(&self, yes: bool) {
        self.abstains.store(yes, Ordering::Release);
        self.raft.runtime_config().elect(!yes);
    }

    /// How far each replica is known to hold this leader's log; empty on the others.
    fn matched(&self) -> Vec<(ReplicaId, Option<LogIndex>)> {
        let metrics = self.raft.data_metrics();
        let metrics = metrics.borrow_watched();
        let replication = metrics.replication.iter().flatten();
        let matched = replication.map(|(id, matched)| {
            let index = matched.as_ref().map(|id| LogIndex(id.index()));
            (ReplicaId(*id), index)
        });
        matched.collect()
    }

    /// Entries that the furthest replica is behind this leader.
    pub(crate) fn lag_max(&self) -> u64 {
        let end = |index: LogIndex| index.get() + 1;
        let last = self.log.state().last.map_or(0, |last| end(last.index));
        let held = |(_, matched): (_, Option<LogIndex>)| matched.map_or(0, end);
        let least = self.matched().into_iter().map(held).min();
        least.map_or(0, |least| last.saturating_sub(least))
    }

    /// Whether data that readers may see, from `data_start` on, lies at or before entry `purged`.
    async fn keeps_data_before(&self, purged: LogIndex, data_start: Offset) -> bool {
        if let Some(start) = self.log.state().log_start
            && start.purged.index >= purged
        {
            // X stays where it is.
            return false;
        }
        let frames = self.log.read(purged, purged.next(), 1).await;
        // What cannot be read is there to be kept.
        let last = frames.ok().and_then(|frames| frames.into_iter().next());
        last.is_none_or(|last| last.header.next_offset() > data_start)
    }

    /// Every voter has to hold the log's data up to `purged`, this replica included.
    async fn check_held(&self, purged: LogIndex) -> Result<(), TrimError> {
        let holding = async |voter: ReplicaId| {
            let held = if voter == self.status.replica {
                Some(self.holding())
            } else {
                // One that cannot be asked, or does not know the question, may hold nothing.
                let asked = self.copies.holding_if_heard(&self.log, voter).await;
                asked.unwrap_or_default()
            };
            (voter, held)
        };
        let voters = self.raft.voter_ids().map(ReplicaId);
        for (voter, held) in join_all(voters.map(holding)).await {
            if !held.is_some_and(|held| held.whole && purged < held.end) {
                return Err(TrimError::NotHeld { voter, purged });
            }
        }
        Ok(())
    }

    /// Stops the tasks. What was proposed and is not answered has an unknown outcome.
    pub(crate) async fn close(&self) -> Result<(), StopError> {
        self.close_rest();
        // The checkpoint takes its turn behind what is being applied.
        self.closing.cancel();
        let checkpoint = self
            .raft
            .with_state_machine(|machine| Box::pin(async move { machine.checkpoint() }));
        // A replica that has stopped already keeps its older checkpoint.
        let _ = checkpoint.await;
        self.stop.cancel();
        let stopped = self.raft.shutdown().await;
        self.status.stopped();
        stopped.map_err(|error| StopError(error.to_string()))
    }

    /// Hands leadership to `to`, if that would take it, and waits until it leads, or somebody else
    /// does. It is asked before: a leader that has handed over takes nothing in any more, whether
    /// anybody takes over or not.
    pub(crate) async fn transfer_leader(&self, to: ReplicaId) -> Result<(), MembershipError> {
        if to != self.status.replica {
            let held = self.copies.holding(&self.log, to).await;
            let refused = MembershipError::NotTransferred { to };
            let held = held.map_err(|_| refused.clone())?;
            if held.is_some_and(|held| held.reluctance != Reluctance::Willing) {
                return Err(refused);
            }
        }
        self.hand_over(to).await
    }

    async fn hand_over(&self, to: ReplicaId) -> Result<(), MembershipError> {
        let _busy = self.rouse().await;
        let mut leadership = self.status.leadership();
        let term = leadership.borrow_and_update().term;
        if leadership.borrow().leader != Some(self.status.replica) {
            return Err(MembershipError::NotLeader {
                leader: leadership.borrow().leader,
            });
        }
        self.raft
            .trigger()
            .transfer_leader(to.0)
            .await
            .map_err(MembershipError::stopped)?;
        let over = leadership.wait_for(|now| now.term > term && now.leader.is_some());
        match tokio::time::timeout(self.failover * 2, over).await {
            Ok(Ok(now)) if now.leader == Some(to) => Ok(()),
            Ok(Err(_)) => Err(MembershipError::Stopped),
            Ok(Ok(_)) | Err(_) => Err(MembershipError::NotTransferred { to }),
        }
    }
}

#[cfg(test)]
impl Replica {
    /// The log as consensus reads it.
    fn patient_store(&self) -> LogStore {
        let patience = RepairPatience::new(self.closing.clone());
        patience.begin();
        let (log, status) = (self.log.clone(), Arc::clone(&self.status));
        LogStore::new(
            log,
            status,
            Arc::clone(&self.starts.planned),
            1 << 20,
            patience,
        )
    }
}

#[cfg(any(test, feature = "sim"))]
impl<V: View> Group<V> {
    /// As [`Group::trim`], but without asking the voters: for scenarios in which one of them is
    /// left behind and another is known to have everything.
    pub async fn trim_unasked(
        &self,
        purged: LogIndex,
        data_start: Offset,
    ) -> Result<(), TrimError> {
        self.trim_regardless(purged, data_start).await
    }
}

#[cfg(any(test, feature = "sim"))]
impl Replica {
    /// Ends consensus as an error of the storage would.
    pub(crate) async fn end_consensus(&self) {
        // It tells nobody, whatever comes of it.
        let _ = self.raft.shutdown().await;
    }

    /// Ends what is served to peers where it stands.
    pub(crate) fn abort(&self) {
        self.stop.cancel();
    }

    /// Panics unless purged <= descriptor <= applied <= committed <= last.
    pub(crate) fn check_positions(&self) {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let chain = [
            ("purged", metrics.purged),
            ("descriptor", metrics.snapshot),
            ("applied", metrics.last_applied),
            ("committed", metrics.local_committed),
        ];
        for pair in chain.windows(2) {
            assert!(
                pair[0].1 <= pair[1].1,
                "{self:?}: {:?} lies beyond {:?}",
                pair[0],
                pair[1]
            );
        }
    }
}

/// A handle to a replica of a group and to its view. Clones share both.
pub struct Group<V> {
    replica: Replica,
    view: Arc<Mutex<V>>,
}

impl<V> Clone for Group<V> {
    fn clone(&self) -> Self {
        Self {
            replica: self.replica.clone(),
            view: Arc::clone(&self.view),
        }
    }
}

impl<V> fmt::Debug for Group<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.replica.fmt(f)
    }
}

impl<V: View> Group<V> {
    pub(crate) async fn open(parts: &Parts, log: GroupLog, view: V) -> Result<Self, OpenError> {
        let view = Arc::new(Mutex::new(view));
        let shared: Arc<Mutex<dyn View>> = Arc::clone(&view) as Arc<Mutex<dyn View>>;
        let replica = Replica::open(parts, log, shared).await?;
        Ok(Self { replica, view })
    }

    pub(crate) fn replica_handle(&self) -> &Replica {
        &self.replica
    }

    pub fn id(&self) -> GroupId {
        self.replica.status.group
    }

    /// The identity of this replica.
    pub fn replica(&self) -> ReplicaId {
        self.replica.status.replica
    }

    /// The log, for readers; only what lies below the high watermark may be served.
    pub fn log(&self) -> &GroupLog {
        &self.replica.log
    }

    /// Who leads, and whether this replica may admit.
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.replica.status.leadership()
    }

    /// What is applied here.
    pub fn high_watermark(&self) -> watch::Receiver<HighWatermark> {
        self.replica.status.high_watermark()
    }

    /// Whether this replica rests: its timers are off, because nothing happens in the group and
    /// the leader's node vouches for it.
    pub fn rests(&self) -> bool {
        self.replica.rests()
    }

    /// Why this replica takes part in nothing any more, though nobody closed it. It has to be
    /// closed and opened again; until then it answers as one that is stopped.
    pub fn failure(&self) -> Option<String> {
        self.replica.status.failure().map(str::to_owned)
    }

    /// Looks at the view. The group applies nothing meanwhile, so `f` has to be short.
    pub fn with_view<R>(&self, f: impl FnOnce(&V) -> R) -> R {
        f(&self.view.lock())
    }

    /// Waits until this replica has applied everything that was acknowledged anywhere before the
    /// call; then what it has applied may be read as current. Only the leader can tell, and asks a
    /// majority for it: its lease would not do, for followers that take its process for ended do not
    /// wait for that.
    pub async fn read_index(&self) -> Result<LogIndex, ReadError> {
        let _busy = self.replica.rouse().await;
        let read = self.replica.raft.ensure_linearizable(ReadPolicy::ReadIndex);
        let read = read.await.map_err(ReadError::from_raft)?;
        Ok(LogIndex(read.index()))
    }

    /// Founds the group: its first voters. Every one of them may be told so, with the same set;
    /// a replica that has any log or vote already says [`MembershipError::Founded`].
    pub async fn found(&self, voters: &BTreeSet<ReplicaId>) -> Result<(), MembershipError> {
        let ids: BTreeSet<u64> = voters.iter().map(|voter| voter.0).collect();
        let founded = self.replica.raft.initialize(ids).await;
        founded.map_err(MembershipError::from_initialize)
    }

    /// The replicas that vote; during a change, those of the old and the new set.
    pub fn voters(&self) -> BTreeSet<ReplicaId> {
        self.replica.raft.voter_ids().map(ReplicaId).collect()
    }

    /// The replicas that only follow.
    pub fn learners(&self) -> BTreeSet<ReplicaId> {
        self.replica.raft.learner_ids().map(ReplicaId).collect()
    }

    /// How far each replica is known to hold this leader's log; empty on the others.
    pub fn matched(&self) -> Vec<(ReplicaId, Option<LogIndex>)> {
        self.replica.matched()
    }

    /// Hands leadership over and waits until the other replica leads.
    pub async fn transfer_leader(&self, to: ReplicaId) -> Result<(), MembershipError> {
        self.replica.transfer_leader(to).await
    }

    /// Stands for election at once, unless somebody leads and is heard of.
    pub async fn campaign(&self) -> Result<(), MembershipError> {
        let asked = self.replica.raft.trigger().elect(true).await;
        asked.map_err(MembershipError::stopped)
    }

    /// Moves the log start of this replica: consensus keeps nothing up to `purged`, readers see
    /// nothing below `data_start`. `purged` is cut to what is applied here. Every replica does
    /// this for itself, after an entry that says so; never for more than all of them agreed to.
    ///
    /// Where `purged` lies beyond the data start it is refused unless every voter holds all data
    /// up to there: a replica that is left behind drops its data, to copy it anew, and somebody
    /// must have it.
    pub async fn trim(&self, purged: LogIndex, data_start: Offset) -> Result<(), TrimError> {
        let replica = &self.replica;
        let applied = *replica.status.high_watermark().borrow();
        let purged = purged.min(applied.applied.ok_or(TrimError::NothingApplied)?);
        if replica.keeps_data_before(purged, data_start).await {
            replica.check_held(purged).await?;
        }
        self.trim_regardless(purged, data_start).await
    }

    /// As [`Group::trim`], whoever holds the data.
    async fn trim_regardless(&self, purged: LogIndex, data_start: Offset) -> Result<(), TrimError> {
        let replica = &self.replica;
        let start = replica.log.state().log_start;
        if let Some(start) = start.filter(|start| start.purged.index >= purged) {
            let moved = trilog_storage::log::LogStart {
                data_start: data_start.min(start.next_offset),
                ..start
            };
            return Ok(replica.log.set_log_start(moved).await?);
        }
        let applied = replica.status.high_watermark().borrow().applied;
        let purged = purged.min(applied.ok_or(TrimError::NothingApplied)?);
        let _busy = replica.rouse().await;
        *replica.starts.wanted.lock() = Some(TrimTarget { purged, data_start });
        let asked = replica.raft.trigger().snapshot().await;
        asked.map_err(|_| TrimError::Stopped)
    }
}

#[cfg(any(test, feature = "sim"))]
impl<V: View> Group<V> {
    /// Ends consensus as an error of the storage would.
    pub async fn end_consensus(&self) {
        self.replica.end_consensus().await;
    }
}
