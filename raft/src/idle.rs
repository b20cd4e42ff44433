//! The watch over a node's idle groups: asks those that lead and saw nothing for a while to rest,
//! and sees to those that have to wake.
//!
//! One task per node. It goes through all groups now and then, which costs a microsecond each,
//! and at once to those whose alarm rings.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use tokio::time::Instant;
use trilog_model::{GroupId, NodeId};

use crate::group::{Alarm, Replica};
use crate::transport::heartbeat::{Vouch, VouchHandler, WakeReason};

/// The groups of a node, as this watch needs them.
pub(crate) trait Groups: Send + Sync + 'static {
    fn replica(&self, group: GroupId) -> Option<Replica>;

    fn replicas(&self) -> Vec<Replica>;

    /// The replica a vouch is for, if it is the one held here.
    fn vouched(&self, vouch: &Vouch) -> Option<Replica>;
}

/// How often all groups are looked at: often enough that none rests much later than it may.
fn period(quiesce_after: Option<Duration>) -> Duration {
    const LONGEST: Duration = Duration::from_secs(1);
    let quarter = quiesce_after.map_or(LONGEST, |quiesce_after| quiesce_after / 4);
    quarter.clamp(Duration::from_millis(10), LONGEST)
}

/// Watches until the node is gone.
pub(crate) async fn watch<G: Groups>(
    groups: Weak<G>,
    alarm: Arc<Alarm>,
    quiesce_after: Option<Duration>,
) {
    let period = period(quiesce_after);
    let mut works: FuturesUnordered<BoxFuture<'static, ()>> = FuturesUnordered::new();
    let mut deadlines: BTreeSet<(Instant, GroupId)> = BTreeSet::new();
    let mut round_at = Instant::now() + period;
    loop {
        let next = deadlines
            .first()
            .map_or(round_at, |(at, _)| round_at.min(*at));
        tokio::select! {
            biased;
            () = alarm.heard() => {}
            Some(()) = works.next(), if !works.is_empty() => {}
            () = tokio::time::sleep_until(next) => {}
        }
        let Some(groups) = groups.upgrade() else {
            return;
        };
        let mut due = alarm.take();
        while let Some((at, group)) = deadlines.first().copied()
            && at <= Instant::now()
        {
            deadlines.pop_first();
            due.insert(group);
        }
        for group in due {
            let Some(replica) = groups.replica(group) else {
                continue;
            };
            let errand = replica.attend();
            deadlines.extend(errand.again_at.map(|at| (at, group)));
            works.extend(errand.works);
        }
        if round_at <= Instant::now() {
            round_at = Instant::now() + period;
            let quiesce_after = quiesce_after.unwrap_or(Duration::MAX);
            let replicas = groups.replicas();
            works.extend(
                replicas
                    .iter()
                    .filter_map(|replica| replica.look(quiesce_after)),
            );
        }
    }
}

/// A node's groups as the heartbeat hub asks and tells them.
pub(crate) struct Sleepers<G>(pub(crate) Weak<G>);

impl<G: Groups> VouchHandler for Sleepers<G> {
    fn on_vouch(&self, vouch: &Vouch) -> bool {
        let replica = self.0.upgrade().and_then(|groups| groups.vouched(vouch));
        replica.is_some_and(|replica| replica.on_vouch(vouch))
    }

    fn on_lost(&self, node: NodeId) {
        let replicas = self.0.upgrade().map(|groups| groups.replicas());
        for replica in replicas.into_iter().flatten() {
            replica.on_lost(node);
        }
    }

    fn on_wake(&self, group: GroupId, reason: WakeReason) {
        let replica = self.0.upgrade().and_then(|groups| groups.replica(group));
        if let Some(replica) = replica {
            replica.on_wake(reason);
        }
    }
}
