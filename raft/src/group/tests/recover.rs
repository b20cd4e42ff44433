//! Three of five nodes are lost for ever; the two that are left are recovered apart from each
//! other, and go on together with everything that was acknowledged and that one of them holds.

use std::collections::BTreeSet;
use std::time::Duration;

use trilog_model::{GroupId, NodeId, ReplicaId};
use trilog_storage::env::Entropy;
use trilog_storage::io::sim::SimConfig;

use super::super::recover;
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
