//! A node that stops in order leaves groups that can go on without it.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::Rng;
use trilog_model::{GroupId, NodeId, ReplicaId};

use crate::testkit::{Cluster, ClusterConfig, block_on, seeds};

const GROUP: GroupId = GroupId(40);

/// The founder alone is the old set of voters: stopped between the two steps of the change, it
/// would leave the others unable to elect anybody.
#[test]
fn a_founder_that_stops_while_others_become_voters_leaves_them_a_majority() {
    for seed in seeds(30) {
        block_on(async {
            let mut cluster = Cluster::start(ClusterConfig::three(seed)).await;
            let founder = NodeId(1);
            cluster.create_group_with(GROUP, &[founder]).await;
            assert_eq!(cluster.await_leader(GROUP).await, founder);
            let Some(group) = cluster.group(founder, GROUP).cloned() else {
                panic!("seed {seed}: the founder is gone");
            };
            let everybody: BTreeSet<ReplicaId> = cluster
                .nodes()
                .into_iter()
                .map(|node| ReplicaId::new(node, 1))
                .collect();
            for learner in everybody.iter().filter(|id| id.node() != founder) {
                group.add_learner(*learner).await.unwrap();
            }
            let voters = everybody.clone();
            let change =
                tokio::spawn(async move { group.change_voters(&voters, &BTreeSet::new()).await });
            let pause = cluster.entropy.fork().random_range(0..4_000);
            tokio::time::sleep(Duration::from_micros(pause)).await;
            cluster.stop(founder).await;
            // Refused or done: either way it is over.
            drop(change.await);
            let changed = cluster
                .replicas(GROUP)
                .iter()
                .any(|replica| replica.voters().len() > 1);
            if changed {
                assert_ne!(cluster.await_leader(GROUP).await, founder);
            }
        });
    }
}
