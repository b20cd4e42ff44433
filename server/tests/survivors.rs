//! Real processes: three of five nodes are lost for ever. The two that are left are recovered one
//! after the other and go on together, with everything that either of them held.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod load;
mod nodes;

use std::time::Duration;

use load::{PATIENCE, Writer, await_writes, check, create};
use nodes::Nodes;
use tokio::time::Instant;
use trilog_client::Client;

const LEFT: [usize; 2] = [3, 4];

/// Waits until both survivors know of so many topics, and of each other, and so many partitions
/// have no leader.
async fn await_both(nodes: &Nodes, topics: u32, leaderless: u32) {
    let deadline = Instant::now() + PATIENCE;
    for node in LEFT {
        loop {
            let status = nodes.status_of(node).await;
            let settled = status.as_ref().is_ok_and(|status| {
                let alive = status.nodes.iter().filter(|node| node.alive).count();
                status.topics == topics && status.leaderless_partitions == leaderless && alive >= 2
            });
            if settled {
                break;
            }
            assert!(Instant::now() < deadline, "{status:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// Recovers a survivor; the id of the cluster from then on, and how many partitions are gone.
fn recover(nodes: &Nodes, node: usize, more: &[&str]) -> (String, u32) {
    let config = nodes.config(node).to_str().unwrap();
    let mut arguments = vec!["recover", "-c", config, "-o", "json", "--accept-loss"];
    arguments.extend(["--survivors", "4,5"]);
    arguments.extend(more);
    let said: serde_json::Value = serde_json::from_str(&nodes.run(&arguments)).unwrap();
    let partitions = said["partitions"].as_array().unwrap();
    let gone = partitions.iter().filter(|one| one["state"] == "gone");
    let cluster = said["cluster"].as_str().unwrap().to_owned();
    (cluster, u32::try_from(gone.count()).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_five_go_on_together_with_what_either_of_them_held() {
    let mut nodes = Nodes::start(5).await;
    let client = Client::connect(nodes.addresses()).await.unwrap();
    create(&client, "orders", 5).await;
    create(&client, "probe", 5).await;
    create(&client, "single", 1).await;
    await_both(&nodes, 3, 0).await;
    // Without the first node, every majority has one of the last two in it.
    nodes.kill(0);
    await_writes(&client, "probe").await;
    let writer = Writer::start(&client, "orders");
    await_writes(&client, "probe").await;
    let acknowledged = writer.stop().await;
    for node in 1..5 {
        nodes.kill(node);
    }
    for node in 0..3 {
        nodes.wipe(node);
    }

    let (cluster, gone) = recover(&nodes, LEFT[0], &[]);
    assert!(gone > 0, "some partition of one replica was on a lost node");
    let same = recover(&nodes, LEFT[1], &["--cluster-id", &cluster]);
    assert_eq!(same, (cluster.clone(), gone));
    for node in LEFT {
        nodes.restart(node);
    }
    await_both(&nodes, 3, gone).await;
    let client = Client::connect(LEFT.map(|node| nodes.address(node)))
        .await
        .unwrap();
    let status = nodes.status_of(LEFT[1]).await.unwrap();
    assert_eq!(status.cluster_id, cluster);
    assert_eq!(status.losses.len(), 1, "said once, by both: {status:?}");
    await_writes(&client, "probe").await;
    check(&client, "orders", &acknowledged).await;

    // What is gone can be deleted, and an empty node joins.
    client.admin().delete_topic("single").await.unwrap();
    nodes.restart(0);
    nodes.await_placed(&client.admin(), "orders", 3).await;
    check(&client, "orders", &acknowledged).await;
    nodes.stop();
    nodes.verify_logs();
}
