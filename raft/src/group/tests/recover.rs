//! Three of five nodes are lost for ever; the two that are left are recovered apart from each
//! other, and go on together with everything that was acknowledged and that one of them holds.

use std::collections::BTreeSet;
use std::time::Duration;

use trilog_model::{EntryId, GroupId, LogIndex, NodeId, Offset, ReplicaId};
use trilog_storage::env::Entropy;
use trilog_storage::io::sim::SimConfig;
use trilog_storage::kv::{Kv, WriteBatch};

use super::super::recover::{self, RecoverError};
use crate::testkit::{Checks, Cluster, ClusterConfig, Witness, block_on, checks, seeds};
use crate::types::Proposal;

const GROUP: GroupId = GroupId(40);
const LEFT: [NodeId; 2] = [NodeId(4), NodeId(5)];

fn voters() -> BTreeSet<ReplicaId> {
    LEFT.map(|node| ReplicaId::new(node, 1)).into()
}

/// Proposes one command through whoever leads; an outcome that is not known is one, too.
async fn propose(cluster: &Cluster, command: u64) {
    let Some((leader, leadership)) = cluster.leader(GROUP) else {
        return cluster.run(Duration::from_millis(200)).await;
    };
    let Some(group) = cluster.group(leader, GROUP).cloned() else {
        return;
    };
    let proposal = Proposal::command(command.to_le_bytes().to_vec());
    let proposing = group.propose(vec![proposal], leadership.term);
    let outcome = match tokio::time::timeout(Duration::from_secs(2), proposing).await {
        Ok(Ok(applied)) => checks::Outcome::Acked {
            index: applied[0].id.index,
            offset: applied[0].base_offset,
        },
        Ok(Err(_)) | Err(_) => checks::Outcome::Unknown,
    };
    cluster.checks.outcome(command, outcome);
}

fn slow(cluster: &Cluster, node: NodeId, latency: Duration) {
    cluster.disk(node).configure(|disk| {
        disk.latency_min = latency;
        disk.latency_max = latency;
    });
}

/// Commands while the survivors-to-be lag by turns: every majority of the four that run has one
/// of the two in it, so that everything acknowledged is on one of them at least.
async fn load(cluster: &Cluster, entropy: &Entropy) {
    for command in 1..60 {
        if command % 12 == 0 {
            let slowed = LEFT[usize::try_from(entropy.next_u64() % 2).unwrap_or(0)];
            for node in LEFT {
                let latency = if node == slowed { 400 } else { 0 };
                slow(cluster, node, Duration::from_millis(latency));
            }
        }
        propose(cluster, command).await;
    }
}

async fn recover_both(seed: u64) -> usize {
    let mut cluster = Cluster::start(ClusterConfig {
        nodes: 5,
        ..ClusterConfig::three(seed)
    })
    .await;
    cluster.create_group(GROUP).await;
    cluster.await_leader(GROUP).await;
    cluster.kill(NodeId(1));
    let entropy = Entropy::from_seed(seed);
    load(&cluster, &entropy).await;
    for node in [2, 3, 4, 5].map(NodeId) {
        if entropy.next_u64().is_multiple_of(2) {
            cluster.power_loss(node);
        } else {
            cluster.kill(node);
        }
    }
    for node in [1, 2, 3].map(NodeId) {
        cluster.lose(node);
    }
    for node in LEFT {
        let usual = SimConfig::default();
        cluster.disk(node).configure(|disk| *disk = usual);
        // Cut short once, and done again.
        for _ in 0..2 {
            cluster
                .offline(node, async |store, kv| {
                    let log = store.group(GROUP).unwrap();
                    recover::reduce(&log, kv, &voters(), None).await.unwrap();
                    let held = recover::held(&log, kv).await.unwrap();
                    assert_eq!(held.voters, voters());
                    let again = recover::reduce(&log, kv, &voters(), None).await.unwrap();
                    assert!(!again, "there is nothing left to do");
                    let view = Witness::new(node, Checks::default());
                    recover::fold(&log, kv, view).await.unwrap();
                })
                .await;
        }
    }
    for node in LEFT {
        cluster.boot(node).await;
    }
    cluster.await_leader(GROUP).await;
    for command in 60..70 {
        propose(&cluster, command).await;
    }
    cluster.converge(GROUP).await;
    for replica in cluster.replicas(GROUP) {
        assert_eq!(replica.voters(), voters());
    }
    cluster.checks.acked()
}

#[test]
fn two_survivors_recovered_apart_go_on_together_and_seed_by_seed_lose_nothing_they_held() {
    for seed in seeds(6) {
        let acked = block_on(recover_both(seed));
        assert!(acked > 20, "seed {seed}: only {acked} were acknowledged");
    }
}

/// The last of three nodes, stopped, its log cut if `cut`, and an entry that its log never had.
async fn survivor(seed: u64, cut: bool) -> (Cluster, EntryId) {
    let mut cluster = Cluster::start(ClusterConfig::three(seed)).await;
    cluster.create_group(GROUP).await;
    cluster.await_leader(GROUP).await;
    for command in 1..20 {
        propose(&cluster, command).await;
    }
    cluster.converge(GROUP).await;
    if cut {
        for replica in cluster.replicas(GROUP) {
            replica.trim(LogIndex(10), Offset(0)).await.unwrap();
            cluster
                .until("a log start", |_| replica.log().state().log_start.is_some())
                .await;
        }
    }
    let last = cluster.replicas(GROUP)[2].log().state().last.unwrap();
    for node in cluster.nodes() {
        cluster.stop(node).await;
    }
    for node in [1, 2].map(NodeId) {
        cluster.lose(node);
    }
    (cluster, EntryId::new(last.term.get(), last.index.get() + 3))
}

/// Makes the view's state know of an entry that is not in the log: others had committed it, it was
/// folded, and a power loss took it from this disk before it was synced.
fn outrun(kv: &Kv, entry: EntryId) {
    kv.write(GROUP, entry, WriteBatch::new()).unwrap();
}

#[test]
fn a_survivor_whose_view_is_ahead_of_its_log_goes_on_with_what_its_log_holds() {
    let left: BTreeSet<ReplicaId> = [ReplicaId::new(NodeId(3), 1)].into();
    for seed in seeds(3) {
        block_on(async {
            let (mut cluster, ahead) = survivor(seed, false).await;
            // The first attempt dies before the store has written what it did.
            for attempt in 0..2 {
                cluster
                    .offline(NodeId(3), async |store, kv| {
                        outrun(kv, ahead);
                        let log = store.group(GROUP).unwrap();
                        let held = recover::held(&log, kv).await.unwrap();
                        assert_eq!(held.voters.len(), if attempt == 0 { 3 } else { 1 });
                        let done = recover::reduce(&log, kv, &left, None).await.unwrap();
                        assert_eq!(done, attempt == 0, "seed {seed}");
                        assert_eq!(kv.applied(GROUP), None, "seed {seed}: it is ahead still");
                        let view = Witness::new(NodeId(3), Checks::default());
                        recover::fold(&log, kv, view).await.unwrap();
                    })
                    .await;
            }
            cluster.boot(NodeId(3)).await;
            cluster.await_leader(GROUP).await;
            for command in 20..30 {
                propose(&cluster, command).await;
            }
            cluster.converge(GROUP).await;
            let replica = cluster.group(NodeId(3), GROUP).unwrap();
            assert_eq!(replica.voters(), left);
            assert_eq!(cluster.checks.acked(), 29, "seed {seed}");
        });
    }
}

#[test]
fn a_survivor_whose_view_is_ahead_of_a_log_without_its_beginning_is_left_as_it_is() {
    let left: BTreeSet<ReplicaId> = [ReplicaId::new(NodeId(3), 1)].into();
    for seed in seeds(2) {
        block_on(async {
            let (mut cluster, ahead) = survivor(seed, true).await;
            cluster
                .offline(NodeId(3), async |store, kv| {
                    outrun(kv, ahead);
                    let log = store.group(GROUP).unwrap();
                    let before = log.state();
                    let is_refusal =
                        |error| matches!(error, RecoverError::ViewAhead { view, .. } if view == ahead);
                    assert!(is_refusal(recover::held(&log, kv).await.unwrap_err()));
                    let refused = recover::reduce(&log, kv, &left, None).await;
                    assert!(is_refusal(refused.unwrap_err()), "seed {seed}");
                    assert_eq!(log.state(), before, "seed {seed}");
                    assert_eq!(kv.applied(GROUP), Some(ahead), "seed {seed}");
                })
                .await;
        });
    }
}
