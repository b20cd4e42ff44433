//! What a group's tasks tell the rest of the process: who leads, and what is applied.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::sync::watch;
use trilog_model::{EntryId, GroupId, LogIndex, Offset, ReplicaId, Term};
use trilog_storage::log::Vote;

/// Who leads a group, as this replica knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leadership {
    pub term: Term,
    pub leader: Option<ReplicaId>,
    /// This replica leads and has applied an entry of its own term: what it has applied holds
    /// everything that was ever acknowledged, so it may judge and admit.
    pub ready: bool,
}

/// What is applied on this replica; nothing beyond it may be read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HighWatermark {
    pub applied: Option<LogIndex>,
    /// The offset of the next record to come.
    pub offset: Offset,
}

/// The watches of one replica.
#[derive(Debug)]
pub(crate) struct Status {
    pub(crate) group: GroupId,
    pub(crate) replica: ReplicaId,
    leadership: watch::Sender<Leadership>,
    high_watermark: watch::Sender<HighWatermark>,
    /// Elections that replicas of this node stood in, all groups together.
    elections: Arc<AtomicU64>,
    /// Why consensus ended here, if it did though nobody asked for it.
    failure: OnceLock<String>,
}

impl Status {
    /// A replica that starts with a vote on disk. It does not lead, whatever that vote says: a
    /// restarted leader has to be elected again.
    pub(crate) fn new(
        group: GroupId,
        replica: ReplicaId,
        vote: Option<Vote>,
        elections: Arc<AtomicU64>,
    ) -> Arc<Self> {
        let leadership = vote.map_or_else(Leadership::default, |vote| Leadership {
            term: vote.term,
            leader: (vote.committed && vote.node != replica).then_some(vote.node),
            ready: false,
        });
        Arc::new(Self {
            group,
            replica,
            leadership: watch::Sender::new(leadership),
            high_watermark: watch::Sender::default(),
            elections,
            failure: OnceLock::new(),
        })
    }

    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Consensus ended by itself: this replica takes part in nothing until it is opened anew.
    pub(crate) fn failed(&self, why: String) {
        self.failure.get_or_init(|| {
            tracing::error!(group = %self.group, replica = %self.replica, why, "a replica failed");
            why
        });
    }

    pub(crate) fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.subscribe()
    }

    pub(crate) fn leadership_now(&self) -> Leadership {
        *self.leadership.borrow()
    }

    pub(crate) fn high_watermark(&self) -> watch::Receiver<HighWatermark> {
        self.high_watermark.subscribe()
    }

    pub(crate) fn applied_now(&self) -> Option<LogIndex> {
        self.high_watermark.borrow().applied
    }

    /// A vote is about to be stored: from here on this replica leads no older term.
    pub(crate) fn voting(&self, vote: &Vote) {
        // A vote for itself that no quorum has granted yet.
        if vote.node == self.replica && !vote.committed {
            self.elections.fetch_add(1, Ordering::Relaxed);
        }
        self.leadership.send_if_modified(|now| {
            let over = vote.term > now.term && now.leader.is_some();
            if over {
                now.leader = None;
                now.ready = false;
            }
            over
        });
    }

    /// A vote is stored. A committed one names the leader of its term.
    pub(crate) fn voted(&self, vote: &Vote) {
        self.leadership.send_if_modified(|now| {
            let leader = vote.committed.then_some(vote.node);
            if now.term == vote.term && now.leader == leader {
                return false;
            }
            *now = Leadership {
                term: vote.term,
                leader,
                ready: false,
            };
            true
        });
    }

    /// This replica no longer leads or takes part, though no vote says so.
    pub(crate) fn stopped(&self) {
        self.leadership.send_if_modified(|now| {
            let changed = now.leader.is_some() || now.ready;
            now.leader = None;
            now.ready = false;
            changed
        });
    }

    /// Everything up to `id` is applied.
    pub(crate) fn applied(&self, id: EntryId, next_offset: Offset) {
        self.high_watermark.send_replace(HighWatermark {
            applied: Some(id.index),
            offset: next_offset,
        });
        self.leadership.send_if_modified(|now| {
            let ready = now.leader == Some(self.replica) && now.term == id.term && !now.ready;
            now.ready |= ready;
            ready
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ME: ReplicaId = ReplicaId(7);

    fn vote(term: u64, node: ReplicaId, committed: bool) -> Vote {
        Vote {
            term: Term(term),
            node,
            committed,
        }
    }

    #[test]
    fn a_leader_is_ready_only_after_an_entry_of_its_own_term() {
        let status = Status::new(GroupId(1), ME, None, Arc::default());
        status.voted(&vote(3, ME, true));
        assert_eq!(status.leadership_now().leader, Some(ME));
        status.applied(EntryId::new(2, 9), Offset(4));
        assert!(!status.leadership_now().ready);
        status.applied(EntryId::new(3, 10), Offset(4));
        assert!(status.leadership_now().ready);
        status.voting(&vote(4, ReplicaId(8), false));
        assert_eq!(status.leadership_now().leader, None);
        assert!(!status.leadership_now().ready);
    }

    #[test]
    fn a_restarted_leader_does_not_lead() {
        let status = Status::new(GroupId(1), ME, Some(vote(3, ME, true)), Arc::default());
        assert_eq!(status.leadership_now().leader, None);
        status.applied(EntryId::new(3, 10), Offset(4));
        assert!(!status.leadership_now().ready);
    }
}
