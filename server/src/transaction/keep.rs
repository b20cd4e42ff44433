//! What happens to transactions without anybody asking: time-outs, ids that nobody uses any more,
//! and what the last coordinator left undone.

use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trilog_model::Timestamp;

use super::lead::Step;
use super::meter::{AbortReason, count_abort, show_counts};
use super::{Census, Coordinator, Handle, TransactionError};
use crate::view::transaction::command::Forget;
use crate::view::transaction::{Phase, TransactionAction, Transactions, machine};

/// How long a leadership, or a time that is over, may go unnoticed.
const INTERVAL: Duration = Duration::from_millis(500);
/// How often ids are looked through for some that nobody uses.
const EXPIRY_INTERVAL: Duration = Duration::from_mins(5);
/// Of one partition in one look at most; the next one goes on.
const BATCH: usize = 500;
/// Time-outs on their way at once.
const AT_ONCE: usize = 64;

impl Coordinator {
    /// Runs until `stop`.
    pub async fn keep(self, stop: CancellationToken) {
        show_counts();
        let mut swept = Instant::now();
        while !stop.is_cancelled() {
            let now = Instant::now();
            self.pass();
            if now - swept >= EXPIRY_INTERVAL {
                swept = now;
                self.sweep();
            }
            tokio::select! {
                biased;
                () = stop.cancelled() => {}
                () = self.inner.sooner.notified() => {}
                () = tokio::time::sleep(INTERVAL) => {}
            }
        }
        self.inner.leads.lock().clear();
    }

    /// Looks after every partition that is led here, and lets go of those that are not.
    fn pass(&self) {
        let Ok(topic) = self.topic() else {
            return;
        };
        let mut overdue = Vec::new();
        for (index, _) in (0..).zip(&topic.partitions) {
            let Ok(handle) = self.enter_at(&topic, index) else {
                self.inner.leads.lock().remove(&index);
                continue;
            };
            let (term, ending, late) = self.due(&handle);
            overdue.extend(late);
            for id in ending {
                self.finish(index, term, &handle, id);
            }
        }
        if overdue.is_empty() {
            return;
        }
        let this = self.clone();
        // Apart, for a partition that cannot commit must not hold up the others; what is on its
        // way is left out of the next look.
        tokio::spawn(async move {
            let this = &this;
            let aborting = overdue
                .into_iter()
                .map(|(id, number)| async move { this.time_out(&id, number).await });
            let aborting = stream::iter(aborting).buffer_unordered(AT_ONCE);
            aborting.for_each(|()| async {}).await;
        });
    }

    /// What is to be ended, and what is to be aborted for its time.
    fn due(&self, handle: &Handle) -> (trilog_model::Term, Vec<String>, Vec<(String, u64)>) {
        let now = self.inner.clock.now();
        let lead = handle.lock();
        let due = lead.look(|all| {
            let ending = unattended(all, |id| lead.is_finishing(id));
            let overdue = all.overdue(now).filter_map(|id| {
                lead.check(id).ok()?;
                let known = all.get(id)?;
                Some((id.clone(), known.transaction.number))
            });
            (ending, overdue.take(BATCH).collect())
        });
        let (ending, overdue) = due.unwrap_or_default();
        (lead.term, ending, overdue)
    }

    /// Aborts a transaction whose time is over, and shuts out its producer.
    async fn time_out(&self, id: &str, number: u64) {
        let aborted = self.change(id, |known, _| {
            Ok(match known {
                Some(known) if known.phase() == Phase::Ongoing && known.number == number => {
                    Step::Put(machine::fence(known), true)
                }
                Some(_) | None => Step::Is(false),
            })
        });
        match aborted.await {
            Ok(true) => {
                count_abort(AbortReason::Timeout);
                tracing::info!(id, "a transaction took too long and is aborted");
            }
            // What is on its way ends it, or the next look does.
            Ok(false) | Err(TransactionError::Concurrent) => {}
            Err(error) => tracing::debug!(id, %error, "a transaction is to be aborted later"),
        }
    }

    /// What this node coordinates, counted.
    #[must_use]
    pub fn census(&self) -> Census {
        let mut census = Census::default();
        let Ok(topic) = self.topic() else {
            return census;
        };
        for (index, _) in (0..).zip(&topic.partitions) {
            let Ok(handle) = self.enter_at(&topic, index) else {
                continue;
            };
            handle.lock().look(|all| {
                for (phase, count) in all.counts() {
                    *census.phases.entry(*phase).or_default() += count;
                }
                let oldest = [census.oldest_open, all.oldest_open()];
                census.oldest_open = oldest.into_iter().flatten().min();
            });
        }
        census
    }

    /// Has ids forgotten that nobody uses.
    fn sweep(&self) {
        let Ok(topic) = self.topic() else {
            return;
        };
        let kept = u64::try_from(self.inner.settings.id_expiration.as_nanos());
        let now = self.inner.clock.now().nanos();
        let before = Timestamp(now.saturating_sub(kept.unwrap_or(u64::MAX)));
        for (index, _) in (0..).zip(&topic.partitions) {
            let Ok(handle) = self.enter_at(&topic, index) else {
                continue;
            };
            let lead = handle.lock();
            let expired = lead.look(|all| {
                let expired = all.expired(before).take(BATCH);
                expired.cloned().collect::<Vec<String>>()
            });
            for id in expired.unwrap_or_default() {
                if lead.check(&id).is_ok() {
                    let before = before.nanos();
                    // What is not taken now is found again by the next sweep.
                    drop(lead.propose(TransactionAction::Forget(Forget { id, before })));
                }
            }
        }
    }
}

/// Decided transactions whose markers nobody writes yet. What hangs must not keep the others from
/// their turn.
fn unattended(all: &Transactions, is_finishing: impl Fn(&str) -> bool) -> Vec<String> {
    let ending = all.ending().filter(|id| !is_finishing(id));
    ending.take(BATCH).cloned().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::view::transaction::command::Put;
    use crate::view::transaction::{At, Transaction};

    #[test]
    fn endings_that_hang_do_not_keep_others_from_their_turn() {
        let mut all = Transactions::default();
        let at = At { time: Timestamp(1) };
        for n in 0..BATCH + 3 {
            let put = TransactionAction::Put(Put {
                id: format!("{n:05}"),
                transaction: Transaction {
                    phase: Phase::PrepareCommit.into(),
                    ..Transaction::default()
                },
            });
            assert!(all.replay(&put.into(), at));
        }
        let first = unattended(&all, |_| false);
        assert_eq!(first.len(), BATCH);
        let next = unattended(&all, |id| first.iter().any(|one| one == id));
        assert_eq!(next, ["00500", "00501", "00502"]);
    }
}
