//! How far the replicas of the controller's log are, as its leader knows; any node can ask.
//!
//! ```text
//! answer   u64 term | u64 leader | u64 entries committed | replicas ...
//! replica  u64 id | u8 votes | u64 entries it holds; the largest number: not known
//! ```

use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use trilog_model::{LogIndex, NodeId, ReplicaId, Term};
use trilog_raft::transport::{Lane, Route, Target};

use super::ControllerHandle;
use super::kinds::QUORUM;

const PATIENCE: Duration = Duration::from_secs(3);
const HEADER_BYTES: usize = 24;
const REPLICA_BYTES: usize = 17;
/// It is not known how much a replica holds.
const UNKNOWN: u64 = u64::MAX;

/// The controller's replicas at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quorum {
    pub term: Term,
    pub leader: NodeId,
    /// Entries that are committed.
    pub committed: u64,
    pub replicas: Vec<Held>,
}

/// What one of them holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub node: NodeId,
    pub votes: bool,
    /// Entries, unless that is not known.
    pub entries: Option<u64>,
}

impl ControllerHandle {
    /// What the leader knows of the controller's replicas; none where it cannot be asked now.
    pub async fn quorum(&self) -> Option<Quorum> {
        let leader = self.leader()?;
        if leader == self.transport().node() {
            return Quorum::read(self.quorum_here()?);
        }
        let target = Target {
            node: leader,
            lane: Lane::Control,
            kind: QUORUM,
            route: Route::default(),
        };
        let answer = self.transport().call(target, Vec::new(), PATIENCE).await;
        Quorum::read(answer.ok()?)
    }

    /// As it goes over the wire; none where this node does not lead.
    pub(super) fn quorum_here(&self) -> Option<Bytes> {
        let group = self.group();
        let leadership = *group.leadership().borrow();
        let leader = leadership.leader.filter(|_| leadership.ready)?;
        let count = |index: Option<LogIndex>| index.map_or(0, |index| index.get() + 1);
        let applied = group.high_watermark().borrow().applied;
        let last = group.log().state().last.map(|last| last.index);
        let matched = group.matched();
        let held = |replica: ReplicaId| {
            if replica == leader {
                return count(last);
            }
            let mut found = matched.iter().filter(|(id, _)| *id == replica);
            found.next().map_or(UNKNOWN, |(_, index)| count(*index))
        };
        let members = group.members();
        let voters = members.voters.iter().map(|replica| (*replica, true));
        let learners = members.learners.iter().map(|replica| (*replica, false));
        let mut answer = BytesMut::new();
        answer.put_u64(leadership.term.get());
        answer.put_u64(leader.0);
        answer.put_u64(count(applied));
        for (replica, votes) in voters.chain(learners) {
            answer.put_u64(replica.0);
            answer.put_u8(u8::from(votes));
            answer.put_u64(held(replica));
        }
        Some(answer.freeze())
    }
}

impl Quorum {
    fn read(mut answer: Bytes) -> Option<Self> {
        if answer.len() < HEADER_BYTES {
            return None;
        }
        let (term, leader) = (Term(answer.get_u64()), ReplicaId(answer.get_u64()));
        let committed = answer.get_u64();
        let mut replicas = Vec::new();
        while answer.len() >= REPLICA_BYTES {
            let node = ReplicaId(answer.get_u64()).node();
            let votes = answer.get_u8() != 0;
            let entries = Some(answer.get_u64()).filter(|entries| *entries != UNKNOWN);
            replicas.push(Held {
                node,
                votes,
                entries,
            });
        }
        let leader = leader.node();
        answer.is_empty().then_some(Self {
            term,
            leader,
            committed,
            replicas,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_cut_short_is_no_answer() {
        let replica = |node: u64| ReplicaId(node << 32 | 1);
        let mut answer = BytesMut::new();
        for number in [7, replica(2).0, 40] {
            answer.put_u64(number);
        }
        for (node, votes, entries) in [(1, 1, 40), (2, 1, 41), (3, 0, UNKNOWN)] {
            answer.put_u64(replica(node).0);
            answer.put_u8(votes);
            answer.put_u64(entries);
        }
        let whole = answer.freeze();
        let held = |node, votes, entries| Held {
            node: NodeId(node),
            votes,
            entries,
        };
        let expected = Quorum {
            term: Term(7),
            leader: NodeId(2),
            committed: 40,
            replicas: vec![
                held(1, true, Some(40)),
                held(2, true, Some(41)),
                held(3, false, None),
            ],
        };
        assert_eq!(Quorum::read(whole.clone()), Some(expected));
        for len in 0..whole.len() {
            let replicas = len.checked_sub(HEADER_BYTES);
            let read = Quorum::read(whole.slice(..len));
            let is_whole = replicas.is_some_and(|bytes| bytes % REPLICA_BYTES == 0);
            assert_eq!(read.is_some(), is_whole, "{len} bytes");
        }
    }
}
