//! Real processes: three nodes under load, killed without warning one after another and all at
//! once. What was acknowledged is there afterwards, once, in order.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod load;
mod nodes;

use load::{Writer, await_writes, check, create};
use nodes::Nodes;
use trilog_client::Client;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_nodes_are_killed() {
    let mut nodes = Nodes::start(3).await;
    let client = Client::connect(nodes.addresses()).await.unwrap();
    create(&client, "orders", 3).await;
    create(&client, "probe", 3).await;
    let writer = Writer::start(&client, "orders");
    for node in 0..3 {
        await_writes(&client, "probe").await;
        nodes.kill(node);
        await_writes(&client, "probe").await;
        nodes.restart(node);
        nodes.await_ready().await;
    }
    nodes.kill_all();
    nodes.restart_all();
    nodes.await_ready().await;
    await_writes(&client, "probe").await;
    let acknowledged = writer.stop().await;
    check(&client, "orders", &acknowledged).await;
    nodes.stop();
    nodes.verify_logs();
}
