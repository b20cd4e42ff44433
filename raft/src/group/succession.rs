//! Standing for election at once when the leader's process is known to have ended.
//!
//! ```text
//!   nobody listens at the node any more ─> on_lost ─> Succession ─ turn comes ─> succeed
//! ```
//!
//! A follower else waits for its lease and an election time-out on top. What is done instead is
//! what a leader asks for that hands over: voters grant a vote that is marked so although they
//! heard their leader a moment ago. Nothing rests on the leader really being gone. One that is not
//! is deposed, as it may be at any time.

use futures::FutureExt;
use futures::future::BoxFuture;
use openraft::raft::TransferLeaderRequest;
use openraft::rt::WatchReceiver;
use parking_lot::Mutex;
use tokio::time::Instant;
use trilog_model::{NodeId, ReplicaId, Term};

use super::Replica;

/// A leader that is gone, and when this replica stands to succeed it.
#[derive(Clone, Copy, Debug)]
struct Vacancy {
    term: Term,
    leader: ReplicaId,
    turn: Instant,
}

/// What a replica knows of a vacancy.
#[derive(Debug, Default)]
pub(super) struct Succession(Mutex<Option<Vacancy>>);

impl Succession {
    fn open(&self, vacancy: Vacancy) {
        *self.0.lock() = Some(vacancy);
    }

    /// The vacancy whose turn has come, which is then forgotten; else when it comes.
    fn due(&self, now: Instant) -> Result<Option<Vacancy>, Instant> {
        let mut vacancy = self.0.lock();
        match *vacancy {
            Some(Vacancy { turn, .. }) if turn > now => Err(turn),
            _ => Ok(vacancy.take()),
        }
    }
}

impl Replica {
    /// A node's process has ended. If it held the leader, this replica stands when it is its turn;
    /// one that does not want to lead leaves that to the others and to time-outs.
    pub(crate) fn on_lost(&self, node: NodeId) {
        let now = self.status.leadership_now();
        let Some(leader) = now.leader.filter(|leader| leader.node() == node) else {
            return;
        };
        // A resting one is woken, and has a turn of its own.
        if self.rests() || self.is_reluctant() || !self.is_voter() {
            return;
        }
        self.succession.open(Vacancy {
            term: now.term,
            leader,
            turn: self.turn(),
        });
        self.ring();
    }

    fn is_voter(&self) -> bool {
        let own = self.status.replica;
        self.raft.voter_ids().any(|voter| voter == own.0)
    }

    /// What there is to do about a vacancy, and when to ask again.
    pub(super) fn succession_due(&self) -> (Option<BoxFuture<'static, ()>>, Option<Instant>) {
        match self.succession.due(Instant::now()) {
            Ok(vacancy) => (vacancy.map(|vacancy| self.succeed(vacancy)), None),
            Err(turn) => (None, Some(turn)),
        }
    }

    /// Stands for election, if the leader is still the one that is gone.
    fn succeed(&self, vacancy: Vacancy) -> BoxFuture<'static, ()> {
        let replica = self.clone();
        async move {
            let vote = replica.raft.metrics().borrow_watched().vote;
            let now = replica.status.leadership_now();
            let vacant = (now.term, now.leader) == (vacancy.term, Some(vacancy.leader));
            if !vacant || !vote.is_committed() || replica.is_reluctant() {
                return;
            }
            tracing::info!(
                group = %replica.status.group,
                term = %now.term,
                leader = %vacancy.leader,
                "the leader's process is gone, standing for election"
            );
            replica.rise();
            let request = TransferLeaderRequest::new(vote, replica.status.replica.0, None);
            // Should it fail, time-outs decide.
            let _ = replica.raft.handle_transfer_leader(request).await;
        }
        .boxed()
    }
}
