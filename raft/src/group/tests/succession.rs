//! How soon a leader whose process ended has a successor.

use std::time::Duration;

use tokio::time::Instant;
use trilog_model::{GroupId, NodeId};

use crate::testkit::{Cluster, ClusterConfig, block_on};

const GROUP: GroupId = GroupId(41);
/// Less than a lease, and far less than a lease and an election time-out.
const AT_ONCE: Duration = Duration::from_millis(350);

async fn awake(seed: u64) -> (Cluster, NodeId) {
    let mut config = ClusterConfig::three(seed);
    config.raft.quiesce_after = None;
    let mut cluster = Cluster::start(config).await;
    cluster.create_group(GROUP).await;
    let leader = cluster.await_leader(GROUP).await;
    cluster.converge(GROUP).await;
    (cluster, leader)
}

/// How long it takes until another node than `old` leads.
async fn vacancy(cluster: &Cluster, old: NodeId) -> Duration {
    let start = Instant::now();
    let succeeded = |cluster: &Cluster| {
        let leader = cluster.leader(GROUP);
        leader.is_some_and(|(node, _)| node != old)
    };
    cluster.until("a succession", succeeded).await;
    start.elapsed()
}

#[test]
fn a_leader_whose_process_ended_has_a_successor_at_once() {
    let mut slow = Vec::new();
    for seed in 0..30 {
        let took = block_on(async {
            let (mut cluster, leader) = awake(seed).await;
            cluster.kill(leader);
            vacancy(&cluster, leader).await
        });
        slow.extend((took > AT_ONCE).then_some((seed, took)));
    }
    // Two that stand at the same moment may need a time-out to part.
    assert!(slow.len() <= 3, "{slow:?}");
}

#[test]
fn a_leader_whose_machine_vanished_is_given_its_lease() {
    for seed in 0..5 {
        let took = block_on(async {
            let (mut cluster, leader) = awake(seed).await;
            cluster.power_loss(leader);
            vacancy(&cluster, leader).await
        });
        assert!(took > AT_ONCE, "seed {seed}: {took:?}");
    }
}
