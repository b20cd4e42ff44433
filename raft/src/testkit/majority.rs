//! Faults of several steps that ask of each member of a majority what it acknowledged for: the
//! others that did are gone just then.
//!
//! ```text
//!                     1       2       3
//! lag, and propose    leads   follows cut off     acknowledged: 1 and 2 have it
//! pass on             power   cut off back        who is left of those is 1, after a power loss
//! go on               leads?          leads?      with whatever 1 still has
//! heal                                            2 finds its entries where it had them, or not
//! ```

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::SliceRandom;
use trilog_model::{GroupId, NodeId};

use super::{Cluster, nemesis};

/// The leader, and the others that run in any order; `None` if nobody leads.
fn leader_and_others(
    cluster: &Cluster,
    group: GroupId,
    rng: &mut SmallRng,
) -> Option<(NodeId, Vec<NodeId>)> {
    let (leader, _) = cluster.leader(group)?;
    let mut others = cluster.up();
    others.retain(|node| *node != leader);
    others.shuffle(rng);
    Some((leader, others))
}

/// Makes a node's syncs take up to `most` milliseconds.
fn slow_down(cluster: &Cluster, node: NodeId, most: u64) {
    let slow = Duration::from_millis(most);
    cluster.disk(node).configure(|disk| disk.latency_max = slow);
}

async fn run(cluster: &Cluster, millis: std::ops::Range<u64>, rng: &mut SmallRng) {
    let time = Duration::from_millis(rng.random_range(millis));
    cluster.run(time).await;
}

/// Leaves the leader, after a power loss, alone of those that made up the majority, with those that
/// lagged.
pub(super) async fn pass(cluster: &mut Cluster, group: GroupId, rng: &mut SmallRng) -> String {
    cluster.net.heal_all();
    let Some((leader, mut others)) = leader_and_others(cluster, group, rng) else {
        nemesis::boot_all(cluster).await;
        return "PassMajority: boot all".to_owned();
    };
    let most = cluster.nodes().len() / 2;
    let lag = others.split_off(others.len().saturating_sub(most));
    for node in &lag {
        cluster.net.isolate(*node);
    }
    // The leader's own disk is the last to have what is acknowledged.
    slow_down(cluster, leader, rng.random_range(20..400));
    run(cluster, 150..900, rng).await;
    cluster.power_loss(leader);
    cluster.net.heal_all();
    for node in &others {
        cluster.net.isolate(*node);
    }
    cluster.restore_speed(leader);
    cluster.boot(leader).await;
    run(cluster, 500..2_500, rng).await;
    cluster.net.heal_all();
    format!("PassMajority from {others:?} to {lag:?}, with {leader}")
}

/// A majority loses its power at once, the leader among it, in the middle of slow syncs.
pub(super) async fn lose_power(
    cluster: &mut Cluster,
    group: GroupId,
    rng: &mut SmallRng,
) -> String {
    let Some((leader, mut others)) = leader_and_others(cluster, group, rng) else {
        nemesis::boot_all(cluster).await;
        return "PowerLossMost: boot all".to_owned();
    };
    others.truncate(cluster.nodes().len() / 2);
    let struck = [vec![leader], others].concat();
    for node in &struck {
        slow_down(cluster, *node, rng.random_range(5..200));
    }
    run(cluster, 50..500, rng).await;
    for node in &struck {
        cluster.power_loss(*node);
    }
    for node in &struck {
        cluster.restore_speed(*node);
        cluster.boot(*node).await;
    }
    format!("PowerLossMost {struck:?}")
}
