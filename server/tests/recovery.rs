//! Real processes: two of three nodes lose their disks for ever. They found no second cluster, the
//! third is recovered with all it held, what is left of a lost node is refused, and the cluster
//! grows to three again.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod load;
mod nodes;

use std::path::Path;
use std::process::Output;
use std::time::Duration;

use load::{Writer, await_writes, check, create};
use nodes::Nodes;
use tokio::time::Instant;
use trilog_client::Client;
use trilog_client::proto::StatusResponse;

/// How long nothing must happen, where nothing may.
const WATCH: Duration = Duration::from_secs(3);

/// Writes, such that the third node holds everything that is acknowledged; then loses the first
/// node's disk and the second node. What the second had is moved away and returned.
async fn lose_two(nodes: &mut Nodes) -> (load::Acknowledged, std::path::PathBuf, String) {
    let client = Client::connect(nodes.addresses()).await.unwrap();
    create(&client, "orders", 0).await;
    create(&client, "probe", 0).await;
    let cluster = nodes.status_of(2).await.unwrap().cluster_id;
    nodes.kill(0);
    await_writes(&client, "probe").await;
    let writer = Writer::start(&client, "orders");
    await_writes(&client, "probe").await;
    let acknowledged = writer.stop().await;
    nodes.kill(1);
    nodes.kill(2);
    nodes.wipe(0);
    let late = nodes.data(1).with_extension("late");
    std::fs::rename(nodes.data(1), &late).unwrap();
    (acknowledged, late, cluster)
}

/// Recovers the third node.
fn recover(nodes: &Nodes, more: &[&str]) -> Output {
    let config = nodes.config(2).to_str().unwrap();
    let mut arguments = vec!["recover", "-c", config];
    arguments.extend(more);
    nodes.trilog(&arguments)
}

/// Watches for a while that nodes belong to no cluster.
async fn watch_unclustered(nodes: &Nodes, which: &[usize]) {
    let until = Instant::now() + WATCH;
    while Instant::now() < until {
        for node in which {
            let status = nodes.status_of(*node).await;
            assert!(status.is_err(), "node {node} serves: {status:?}");
            let identity = std::fs::read_to_string(nodes.data(*node).join("node.json"));
            let identity = identity.unwrap_or_default();
            assert!(!identity.contains("\"cluster\": \""), "{identity}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_node_of_three_is_recovered_with_all_it_held() {
    let mut nodes = Nodes::start(3).await;
    let (acknowledged, late, before) = lose_two(&mut nodes).await;

    // Two wiped seeds out of three, alone and beside a third that has no majority.
    nodes.restart(0);
    nodes.restart(1);
    watch_unclustered(&nodes, &[0, 1]).await;
    nodes.restart(2);
    watch_unclustered(&nodes, &[0, 1]).await;

    let running = recover(&nodes, &["--accept-loss"]);
    assert!(!running.status.success());
    let said = String::from_utf8_lossy(&running.stderr);
    assert!(said.contains("in use by a running node"), "{said}");
    nodes.kill(2);
    let asked = recover(&nodes, &[]);
    assert!(!asked.status.success(), "without a word nothing is done");
    let plan = String::from_utf8_lossy(&asked.stdout);
    assert!(
        plan.contains("orders/3") && plan.contains("1 of 3"),
        "{plan}"
    );
    let done = recover(&nodes, &["--accept-loss"]);
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
    let again = recover(&nodes, &["--accept-loss"]);
    assert!(!again.status.success(), "there is nothing left to recover");

    // What the second node still has, should it turn up after all, belongs to another cluster.
    nodes.kill(0);
    nodes.kill(1);
    nodes.wipe(1);
    std::fs::rename(&late, nodes.data(1)).unwrap();
    nodes.restart(2);
    nodes.restart(1);
    nodes.await_alone(2).await;
    let client = Client::connect([nodes.address(2)]).await.unwrap();
    check(&client, "orders", &acknowledged).await;
    await_writes(&client, "probe").await;
    let until = Instant::now() + WATCH;
    while Instant::now() < until {
        let status = nodes.status_of(2).await.unwrap();
        assert_ne!(status.cluster_id, before);
        assert_eq!(status.nodes.len(), 1, "{status:?}");
        assert_eq!(status.losses.len(), 1);
        assert_eq!(status.losses[0].nodes, [1, 2]);
        if let Ok(theirs) = nodes.status_of(1).await {
            assert_eq!(theirs.controller, 0, "an old node leads: {theirs:?}");
        }
    }
    assert!(
        nodes
            .page(2, "/metrics")
            .contains("trilog_losses_accepted{node=\"3\"} 1")
    );
    assert!(nodes.page(2, "/health/ready").contains("given up for lost"));
    nodes.kill(1);
    nodes.wipe(1);

    // New nodes under the old numbers.
    nodes.restart(0);
    nodes.restart(1);
    nodes.await_placed(&client.admin(), "orders", 3).await;
    let client = Client::connect(nodes.addresses()).await.unwrap();
    nodes.kill(2);
    await_writes(&client, "probe").await;
    nodes.restart(2);
    nodes.await_ready().await;
    check(&client, "orders", &acknowledged).await;
    nodes.stop();
    nodes.verify_logs();
}

/// Flips a bit near the end of the last segment of each group that was created last.
fn damage_partitions(data: &Path) {
    let folders = std::fs::read_dir(data.join("p")).unwrap();
    let mut folders: Vec<_> = folders.map(|folder| folder.unwrap().path()).collect();
    folders.sort_by_key(|path| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.split('@').next().unwrap().parse::<u64>().unwrap()
    });
    for folder in folders.iter().rev().take(load::PARTITIONS as usize) {
        let files = std::fs::read_dir(folder).unwrap();
        let files = files.map(|file| file.unwrap().path());
        let segments = files.filter(|path| path.extension().is_some_and(|kind| kind == "seg"));
        let last = segments.max().unwrap();
        let mut bytes = std::fs::read(&last).unwrap();
        let at = bytes.len() - 20;
        bytes[at] ^= 8;
        std::fs::write(&last, bytes).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_damaged_of_one_topic_does_not_keep_the_rest_from_being_recovered() {
    let mut nodes = Nodes::start(3).await;
    let client = Client::connect(nodes.addresses()).await.unwrap();
    create(&client, "orders", 0).await;
    create(&client, "spoilt", 0).await;
    // So that the third node holds everything that is acknowledged.
    nodes.kill(0);
    await_writes(&client, "spoilt").await;
    let writer = Writer::start(&client, "orders");
    await_writes(&client, "spoilt").await;
    let acknowledged = writer.stop().await;
    drop(client);
    // In order, so that the log is in segments to its end.
    nodes.stop_one(1);
    nodes.stop_one(2);
    nodes.wipe(0);
    nodes.wipe(1);
    damage_partitions(nodes.data(2));

    let asked = recover(&nodes, &[]);
    let plan = String::from_utf8_lossy(&asked.stdout);
    assert!(plan.contains("cannot be used"), "{plan}");
    let done = recover(&nodes, &["--accept-loss"]);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{said}");
    nodes.restart(2);
    let deadline = Instant::now() + load::PATIENCE;
    loop {
        let status = nodes.status_of(2).await;
        // A damaged one opens, too, where its view stands at the end of its log.
        let led = |status: &StatusResponse| status.leaderless_partitions <= load::PARTITIONS;
        if status.as_ref().is_ok_and(led) {
            break;
        }
        assert!(Instant::now() < deadline, "{status:?} {}", nodes.log(2));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let client = Client::connect([nodes.address(2)]).await.unwrap();
    check(&client, "orders", &acknowledged).await;
    await_writes(&client, "orders").await;
}
