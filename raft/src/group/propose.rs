//! Proposing: from a drain of judged proposals to their applied entries.
//!
//! A drain goes to the core as one message and is appended whole or not at all. Its term travels
//! with each draft, and the log makes drafts of another term empty entries, so a drain judged
//! before a change of leadership can never take effect after it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use openraft::errors::{ClientWriteError, Fatal, ForwardReason};
use openraft::raft::WriteResult;
use tokio::time::Instant;
use trilog_model::Term;
use trilog_storage::frame::BATCH_PREFIX_LEN;

use super::error::leader_of;
use super::{Group, ProposeError, Replica};
use crate::types::{Applied, Draft, Outcome, Proposal, TypeConfig};
use crate::view::View;

/// The most bytes one entry may have: with its header it has to fit one message to a peer.
const ENTRY_BYTES_MAX: usize = 6 << 20;
/// The most bytes of one group that may wait to be committed; one drain is always let in.
const IN_FLIGHT_MAX: usize = 32 << 20;
/// Kafka's leader epoch has 31 bits.
const TERM_MAX: u64 = 0x7fff_ffff;
/// How long to wait before asking again a leader that has not heard of its followers yet.
const LEASE_PAUSE: Duration = Duration::from_millis(10);

/// Bytes proposed and not yet answered.
#[derive(Debug, Default)]
pub(super) struct InFlight(AtomicUsize);

/// A share of them, given back when dropped.
struct Share {
    of: Arc<InFlight>,
    bytes: usize,
}

impl InFlight {
    fn take(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        let share = Share {
            of: Arc::clone(self),
            bytes,
        };
        (before == 0 || before + bytes <= IN_FLIGHT_MAX).then_some(share)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.0.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl<V: View> Group<V> {
    /// Appends proposals in order, as one, in `expected_term`; returns when this replica has
    /// applied them all. A leader cut off from its followers keeps them waiting: time out.
    ///
    /// # Cancel safety
    /// Once polled the proposals may be appended, whether or not the future is kept.
    pub async fn propose(
        &self,
        proposals: Vec<Proposal>,
        expected_term: Term,
    ) -> Result<Vec<Applied>, ProposeError> {
        self.replica_handle()
            .propose(proposals, expected_term)
            .await
    }
}

impl Replica {
    async fn propose(
        &self,
        proposals: Vec<Proposal>,
        expected_term: Term,
    ) -> Result<Vec<Applied>, ProposeError> {
        let bytes = check(&proposals)?;
        let _share = self.in_flight.take(bytes).ok_or(ProposeError::Full)?;
        if expected_term.get() > TERM_MAX {
            return Err(ProposeError::Stopped);
        }
        let drafts: Vec<Draft> = proposals
            .into_iter()
            .map(|proposal| Draft {
                proposal,
                expected_term,
            })
            .collect();
        let deadline = Instant::now() + self.failover;
        let _busy = self.rouse().await;
        loop {
            self.check_leads(expected_term)?;
            match self.write(drafts.clone()).await {
                // A leader that was just elected, or is just being woken, gets its lease with its
                // followers' next answer.
                Err(ProposeError::NoQuorum) if Instant::now() < deadline => {
                    if !self.renew_lease().await {
                        tokio::time::sleep(LEASE_PAUSE).await;
                    }
                }
                outcome => return outcome,
            }
        }
    }

    fn check_leads(&self, expected_term: Term) -> Result<(), ProposeError> {
        let now = self.status.leadership_now();
        if now.leader != Some(self.status.replica) {
            return Err(ProposeError::NotLeader { leader: now.leader });
        }
        if now.term != expected_term {
            return Err(ProposeError::Fenced);
        }
        Ok(())
    }

    async fn write(&self, drafts: Vec<Draft>) -> Result<Vec<Applied>, ProposeError> {
        let mut applied = Vec::with_capacity(drafts.len());
        let written = self.raft.client_write_many(drafts).await;
        let mut results = written.map_err(|_| ProposeError::Stopped)?;
        while let Some(result) = results.next().await {
            applied.push(outcome(result)?);
        }
        Ok(applied)
    }
}

/// The total of bytes, if every proposal is one that a log can hold.
fn check(proposals: &[Proposal]) -> Result<usize, ProposeError> {
    let mut total = 0;
    for proposal in proposals {
        let len = proposal.payload_len();
        let has_batch = proposal.records.len() >= BATCH_PREFIX_LEN;
        let sound = if proposal.record_count == 0 {
            proposal.records.is_empty()
        } else {
            has_batch
        };
        if !sound || len > ENTRY_BYTES_MAX {
            return Err(ProposeError::Invalid {
                len,
                max: ENTRY_BYTES_MAX,
            });
        }
        total += len;
    }
    Ok(total)
}

fn outcome(
    result: Result<WriteResult<TypeConfig>, Fatal<TypeConfig>>,
) -> Result<Applied, ProposeError> {
    match result {
        Ok(Ok(written)) => match written.response {
            Outcome::Applied(applied) => Ok(applied),
            Outcome::Fenced => Err(ProposeError::Fenced),
        },
        Ok(Err(ClientWriteError::ForwardToLeader(forward))) => match forward.reason {
            ForwardReason::LeaseExpired => Err(ProposeError::NoQuorum),
            ForwardReason::NotLeader | ForwardReason::LeadershipTransfer => {
                Err(ProposeError::NotLeader {
                    leader: leader_of(&forward),
                })
            }
        },
        // What was appended may survive in another replica's log.
        Ok(Err(
            ClientWriteError::LogEntryDiscarded(_)
            | ClientWriteError::ChangeMembershipError(_)
            | ClientWriteError::PreconditionFailed(_),
        ))
        | Err(_) => Err(ProposeError::Unknown),
    }
}
