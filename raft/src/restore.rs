//! Gives the logs of a node what they lack: segments found damaged, and what lies below a
//! descriptor that was installed. One task per node, which rests while nothing is missing.
//!
//! Asks the group's leader first, then its other replicas; what no replica has stays missing, is
//! shown, and is asked for again. A group that is not open is served too: it may not open before
//! it is whole again.

use std::sync::Weak;
use std::time::Duration;

use futures::StreamExt;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use trilog_model::{GroupId, ReplicaId};
use trilog_storage::log::{CopyError, Gap, GroupLog};

use crate::group::{Copies, FetchError, remembered_members};
use crate::node::Inner;

/// Groups that copy at the same time.
const AT_ONCE: usize = 2;
/// How long to wait before asking again for what nobody gave; doubled up to the second.
const PAUSE_MIN: Duration = Duration::from_millis(200);
const PAUSE_MAX: Duration = Duration::from_secs(10);

/// Runs until `stop`, or until the node is gone.
pub(crate) async fn run(node: Weak<Inner>, stop: CancellationToken) {
    let Some(mut wants) = node.upgrade().map(|node| node.store.wants()) else {
        return;
    };
    let mut pause = PAUSE_MIN;
    loop {
        wants.borrow_and_update();
        let Some(Some(round)) = stop.run_until_cancelled(round(&node)).await else {
            return;
        };
        let more = async {
            match round {
                Round::Whole => std::future::pending().await,
                Round::Progress => {}
                Round::Stuck => sleep(pause).await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = wants.changed() => {
                if changed.is_err() {
                    return;
                }
                pause = PAUSE_MIN;
            }
            () = more => {
                pause = match round {
                    Round::Stuck => (pause * 2).min(PAUSE_MAX),
                    Round::Whole | Round::Progress => PAUSE_MIN,
                };
            }
        }
    }
}

/// What a look at all groups came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Round {
    /// Nothing is missing.
    Whole,
    Progress,
    /// Something is missing that nobody gave.
    Stuck,
}

/// One log that lacks something, and who may have it.
struct Work {
    log: GroupLog,
    peers: Vec<ReplicaId>,
    copies: Copies,
}

async fn round(node: &Weak<Inner>) -> Option<Round> {
    let work = work(node)?;
    if work.is_empty() {
        return Some(Round::Whole);
    }
    let rounds = futures::stream::iter(work).map(Work::restore);
    let rounds: Vec<Round> = rounds.buffered(AT_ONCE).collect().await;
    let stuck = rounds.iter().all(|round| *round == Round::Stuck);
    Some(if stuck { Round::Stuck } else { Round::Progress })
}

/// What there is to do now; `None` once the node is gone.
fn work(node: &Weak<Inner>) -> Option<Vec<Work>> {
    let node = node.upgrade()?;
    let groups = node.store.groups().into_iter();
    let logs = groups.filter_map(|group| node.store.group(group));
    let short = logs.filter(|log| !log.gaps().is_empty());
    let work = short.map(|log| Work {
        peers: peers(&node, log.group(), log.replica()),
        copies: node.parts.copies.clone(),
        log,
    });
    Some(work.collect())
}

/// The other replicas of a group, its leader first.
fn peers(node: &Inner, group: GroupId, own: ReplicaId) -> Vec<ReplicaId> {
    let replica = node
        .groups
        .lock()
        .get(&group)
        .map(|open| open.replica.clone());
    let remembered = || {
        let mut members = remembered_members(&node.parts.kv, group);
        let named = node.named.lock();
        members.extend(named.get(&group).into_iter().flatten());
        (members, None)
    };
    let (mut members, leader) =
        replica.map_or_else(remembered, |replica| replica.members_and_leader());
    members.remove(&own);
    let first = leader.filter(|leader| members.remove(leader));
    first.into_iter().chain(members).collect()
}

impl Work {
    /// Takes in a segment's worth for everything that is missing now. No more at a time, so that
    /// a damaged segment does not wait for a whole log to be copied.
    async fn restore(self) -> Round {
        let mut round = Round::Stuck;
        for gap in self.log.gaps() {
            if self.fill(gap).await {
                round = Round::Progress;
            }
        }
        round
    }

    async fn fill(&self, gap: Gap) -> bool {
        let fetch = |peer| self.copies.fetch(&self.log, peer, gap);
        ask(&self.log, &self.peers, gap, fetch).await
    }
}

/// Asks one replica after another for what a log lacks; whether one of them had it.
async fn ask<F>(
    log: &GroupLog,
    peers: &[ReplicaId],
    gap: Gap,
    fetch: impl Fn(ReplicaId) -> F,
) -> bool
where
    F: Future<Output = Result<(), FetchError>>,
{
    let group = log.group();
    for peer in peers {
        match fetch(*peer).await {
            Ok(()) => return true,
            // The log has moved on: what it lacks now is looked at anew.
            Err(FetchError::Copy(CopyError::Superseded)) if !log.gaps().contains(&gap) => {
                return true;
            }
            Err(error @ FetchError::Copy(CopyError::Damaged(_))) => {
                tracing::warn!(%group, %peer, %error, "a copy is refused");
            }
            Err(error) => {
                tracing::debug!(%group, %peer, %error, "a copy did not come");
            }
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::Arc;

    use bytes::Bytes;
    use parking_lot::Mutex;
    use trilog_model::{EntryId, Offset, Timestamp};
    use trilog_storage::env::Entropy;
    use trilog_storage::io::sim::SimDisk;
    use trilog_storage::log::LogStart;
    use trilog_storage::store::Store;

    use super::*;
    use crate::testkit::{SimClock, block_on, small_store};

    const GROUP: GroupId = GroupId(7);
    const PEERS: [ReplicaId; 3] = [ReplicaId(21), ReplicaId(22), ReplicaId(23)];

    /// A log starts behind this entry, and has nothing of what lies before it.
    async fn start_behind(log: &GroupLog, index: u64) {
        let start = LogStart {
            purged: EntryId::new(1, index),
            next_offset: Offset(2 * index),
            next_time: Timestamp(9_000),
            data_start: Offset(0),
            meta: Bytes::new(),
        };
        log.set_log_start(start).await.unwrap();
    }

    /// Who is asked if the first peer's copy is said to be superseded, and what comes of it.
    async fn asked(moves_on: bool) -> (Vec<ReplicaId>, bool) {
        let disk = SimDisk::new(1).backend();
        let config = small_store(PathBuf::from("/data"));
        let (clock, entropy) = (Arc::<SimClock>::default(), Entropy::from_seed(1));
        let opened = Store::open(config, disk, clock, entropy).await;
        let (store, _) = opened.unwrap();
        let log = store.create_group(GROUP, ReplicaId(20)).await.unwrap();
        start_behind(&log, 99).await;
        let gap = log.gaps()[0];
        let all: Mutex<Vec<ReplicaId>> = Mutex::default();
        let (log, all) = (&log, &all);
        let fetch = |peer| async move {
            all.lock().push(peer);
            if peer != PEERS[0] {
                return Ok(());
            }
            if moves_on {
                start_behind(log, 199).await;
            }
            Err(FetchError::from(CopyError::Superseded))
        };
        let had = ask(log, &PEERS, gap, fetch).await;
        assert_eq!(log.gaps().contains(&gap), !moves_on);
        let asked = all.lock().clone();
        (asked, had)
    }

    /// Taken for progress, it would be asked again at once and without end, and nobody else.
    #[test]
    fn who_gave_nothing_that_fits_is_passed_over_unless_the_log_moved_on() {
        block_on(async {
            let (still_lacking, had) = asked(false).await;
            assert_eq!(still_lacking, PEERS[..2], "the next one is asked");
            assert!(had);
            let (moved_on, had) = asked(true).await;
            assert_eq!(moved_on, PEERS[..1], "what it lacks now is another gap");
            assert!(had);
        });
    }
}
