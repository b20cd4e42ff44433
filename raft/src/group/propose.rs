//! Proposing: from a drain of judged proposals to their applied entries.
//!
//! A drain goes to the core as one message and is appended whole or not at all. Its term travels
//! with each draft, and the log makes drafts of another term empty entries, so a drain judged
//! before a change of leadership can never take effect after it.
//!
//! A drain first claims the memory its entries will take until they stand in a segment, so that
//! what is proposed faster than segments are written waits here, in its clients' time, and not
//! in the log. Records give way to commands: a full node recovers by the commands that trim it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use futures::StreamExt;
use openraft::errors::{ClientWriteError, Fatal, ForwardReason};
use openraft::raft::WriteResult;
use tokio::time::Instant;
use trilog_model::Term;
use trilog_storage::frame::{BATCH_PREFIX_LEN, HEADER_LEN};
use trilog_storage::log::{Claim, Share};

use super::error::leader_of;
use super::{Group, ProposeError, Replica};
use crate::types::{Applied, Draft, Outcome, Proposal, TypeConfig};
use crate::view::View;

/// The most bytes one entry may have: with its header it has to fit one message to a peer.
const ENTRY_BYTES_MAX: usize = 6 << 20;
/// The most bytes of one group that may wait to be committed; one drain is always let in.
const IN_FLIGHT_MAX: usize = 32 << 20;
/// The part of the memory for entries outside segments that one group's waiting ones may take.
const IN_FLIGHT_PARTS: u64 = 8;
/// How long a drain waits for memory before it is refused.
const ROOM_PATIENCE: Duration = Duration::from_secs(2);
/// Kafka's leader epoch has 31 bits.
const TERM_MAX: u64 = 0x7fff_ffff;
/// How long to wait before asking again a leader that has not heard of its followers yet.
const LEASE_PAUSE: Duration = Duration::from_millis(10);

/// Bytes proposed and not yet answered.
#[derive(Debug, Default)]
pub(super) struct InFlight(AtomicUsize);

/// Some of them, given back when dropped.
struct Waiting {
    of: Arc<InFlight>,
    bytes: usize,
}

impl InFlight {
    fn take(self: &Arc<Self>, bytes: usize, max: usize) -> Option<Waiting> {
        let before = self.0.fetch_add(bytes, Ordering::Relaxed);
        let waiting = Waiting {
            of: Arc::clone(self),
            bytes,
        };
        (before == 0 || before + bytes <= max).then_some(waiting)
    }
}

impl Drop for Waiting {
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
        let waiting = self.in_flight.take(bytes, self.in_flight_max());
        let _waiting = waiting.ok_or(ProposeError::Full)?;
        if expected_term.get() > TERM_MAX {
            return Err(ProposeError::Stopped);
        }
        self.check_leads(expected_term)?;
        let claim = Arc::new(self.room(&proposals, bytes).await?);
        let drafts: Vec<Draft> = proposals
            .into_iter()
            .map(|proposal| Draft {
                proposal,
                expected_term,
                claim: Some(Arc::clone(&claim)),
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

    fn in_flight_max(&self) -> usize {
        let share = self.log.pinned_limit() / IN_FLIGHT_PARTS;
        usize::try_from(share).map_or(IN_FLIGHT_MAX, |share| share.min(IN_FLIGHT_MAX))
    }

    /// Memory for the entries these proposals become, waiting for it within bounds. A full disk
    /// refuses records at once.
    async fn room(&self, proposals: &[Proposal], bytes: usize) -> Result<Claim, ProposeError> {
        let bytes = (bytes + proposals.len() * HEADER_LEN) as u64;
        let room = async {
            if proposals.iter().all(|proposal| proposal.record_count == 0) {
                return Ok(self.log.claim(bytes, Share::Reserved).await);
            }
            let mut pressure = self.log.pressure();
            let settled = pressure.wait_for(|now| now.disk_full || !now.wal_low);
            let now = settled.await.map(|now| *now);
            let now = now.map_err(|_| ProposeError::Stopped)?;
            if now.disk_full {
                return Err(ProposeError::DiskFull);
            }
            Ok(self.log.claim(bytes, Share::Common).await)
        };
        let room = tokio::time::timeout(ROOM_PATIENCE, room).await;
        room.unwrap_or(Err(ProposeError::Full))
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
