//! Three nodes, one group, and what can happen to them.

use std::time::Duration;

use trilog_model::GroupId;

use crate::testkit::client::{self, Directory, Numbers};
use crate::testkit::{Cluster, ClusterConfig, block_on};

const GROUP: GroupId = GroupId(40);

#[test]
fn three_nodes_elect_a_leader_and_apply_what_is_proposed() {
    block_on(async {
        let mut cluster = Cluster::start(ClusterConfig::three(1)).await;
        cluster.create_group(GROUP).await;
        cluster.await_leader(GROUP).await;
        let directory = Directory::default();
        directory.set(cluster.replicas(GROUP));
        let numbers = Numbers::default();
        let clients: Vec<_> = (0..4)
            .map(|_| {
                client::spawn(
                    directory.clone(),
                    numbers.clone(),
                    cluster.checks.clone(),
                    cluster.entropy.fork(),
                )
            })
            .collect();
        cluster.run(Duration::from_secs(2)).await;
        for client in clients {
            client.abort();
        }
        cluster.converge(GROUP).await;
        assert!(cluster.checks.acked() > 100, "{}", cluster.checks.acked());
    });
}
