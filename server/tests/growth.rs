//! Real processes: a cluster of one grows to three and to five while it is written to, gives nodes
//! up in order and for good, and takes one back that lost its disk. What was acknowledged is
//! there afterwards, once, in order, at its offset.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod load;
mod nodes;

use load::{Writer, await_writes, check, create};
use nodes::Nodes;
use trilog_client::Client;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_come_and_go_under_load_and_nothing_is_lost() {
    let mut nodes = Nodes::start_first_of(5).await;
    let client = Client::connect(nodes.addresses()).await.unwrap();
    let admin = client.admin();
    create(&client, "orders", 0).await;
    create(&client, "probe", 0).await;
    let writer = Writer::start(&client, "orders");

    nodes.restart(1);
    nodes.restart(2);
    nodes.await_placed(&admin, "orders", 3).await;
    nodes.run(&["cluster", "config", "trilog.balance.replicas=false"]);
    nodes.restart(3);
    nodes.restart(4);
    nodes
        .run_until_done(&["topic", "alter", "orders", "--replication", "5"])
        .await;
    nodes.await_placed(&admin, "orders", 5).await;
    nodes.run(&["topic", "alter", "orders", "--replication", "3"]);
    nodes.await_placed(&admin, "orders", 3).await;
    nodes.run(&["cluster", "balance", "--replicas"]);
    let status = admin.status().await.unwrap();
    let held = status.nodes.iter().map(|node| node.replicas);
    let (fewest, most) = (held.clone().min().unwrap(), held.max().unwrap());
    assert!(fewest + 1 >= most && fewest > 0, "not even: {status:?}");

    // The founder leaves, in order.
    nodes.run(&["cluster", "drain", "1", "--wait"]);
    nodes.run(&["cluster", "remove", "1"]);
    nodes.stop_one(0);
    nodes.await_placed(&admin, "orders", 3).await;
    nodes.restart(0);
    nodes.await_end(0).await;
    assert!(nodes.log(0).contains("it was removed"), "{}", nodes.log(0));

    // A disk is lost. Its node is nobody until an operator says so.
    nodes.kill(2);
    nodes.wipe(2);
    nodes.restart(2);
    nodes.await_end(2).await;
    assert!(nodes.log(2).contains("--replace"), "{}", nodes.log(2));
    nodes.restart_as_replacement(2);
    // Until it serves, the map and the other nodes may still speak of its former self.
    nodes.await_ready().await;
    nodes.await_placed(&admin, "orders", 3).await;

    // A node is lost for ever, and another takes its replicas.
    nodes.kill(3);
    nodes
        .run_until_done(&["cluster", "replace", "4", "--with", "5"])
        .await;
    nodes.run_until_done(&["cluster", "remove", "4"]).await;
    nodes.await_placed(&admin, "orders", 3).await;

    await_writes(&client, "probe").await;
    let acknowledged = writer.stop().await;
    check(&client, "orders", &acknowledged).await;
    nodes.stop();
    nodes.verify_logs();
}
