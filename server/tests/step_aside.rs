//! Real processes: a node whose log is damaged on disk comes back by itself as another one, while
//! the others serve, and nothing acknowledged is missing anywhere.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod load;
mod nodes;

use std::fs;
use std::path::{Path, PathBuf};

use load::{Writer, await_writes, check, create};
use nodes::Nodes;
use trilog_client::Client;

/// Where the first round of a write-ahead log file begins.
const ROUND: usize = 4096;

/// Flips a bit in the first round of every write-ahead log file of a stopped node that has one.
fn damage_log(data: &Path) {
    let mut damaged = 0;
    for file in fs::read_dir(data.join("wal")).unwrap() {
        let path = file.unwrap().path();
        let mut bytes = fs::read(&path).unwrap();
        if bytes.len() > ROUND + 64 && bytes[ROUND..ROUND + 64].iter().any(|byte| *byte != 0) {
            bytes[ROUND + 40] ^= 8;
            fs::write(&path, bytes).unwrap();
            damaged += 1;
        }
    }
    assert!(damaged > 0, "no file of the log was in use");
}

/// What the file that names a node says of it.
fn identity(data: &Path) -> serde_json::Value {
    serde_json::from_slice(&fs::read(data.join("node.json")).unwrap()).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_a_damaged_log_comes_back_as_another_and_has_everything() {
    let mut nodes = Nodes::start(3).await;
    let client = Client::connect(nodes.addresses()).await.unwrap();
    create(&client, "orders", 3).await;
    create(&client, "probe", 3).await;
    let writer = Writer::start(&client, "orders");
    await_writes(&client, "probe").await;

    // The founder: what it founded must not be founded again.
    let damaged = 0;
    let before = identity(nodes.data(damaged));
    nodes.kill(damaged);
    damage_log(nodes.data(damaged));
    await_writes(&client, "probe").await;
    nodes.restart(damaged);
    nodes.await_ready().await;
    let after = identity(nodes.data(damaged));
    assert_eq!(after["cluster"], before["cluster"]);
    assert_ne!(after["uuid"], before["uuid"]);
    assert_ne!(after["controller_replica"], before["controller_replica"]);
    assert!(nodes.data(damaged).join("wal.damaged-0").exists());
    nodes.await_placed(&client.admin(), "orders", 3).await;
    await_writes(&client, "probe").await;

    // It counts again: the others can do without either one of them.
    nodes.kill(1);
    await_writes(&client, "probe").await;
    let acknowledged = writer.stop().await;
    check(&client, "orders", &acknowledged).await;
    nodes.restart(1);
    nodes.await_ready().await;
    nodes.stop();
    nodes.verify_logs();
}

/// Flips a bit of the first entry in every segment of the controller's log of a stopped node.
fn damage_controller(data: &Path) {
    let groups = fs::read_dir(data.join("p")).unwrap();
    let groups = groups.map(|group| group.unwrap().path());
    let is_controller = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("1@")
    };
    let mut damaged = 0;
    for group in groups.filter(is_controller) {
        for file in fs::read_dir(group).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|kind| kind == "seg") {
                let mut bytes = fs::read(&path).unwrap();
                let Some(byte) = bytes.get_mut(100) else {
                    continue;
                };
                *byte ^= 8;
                fs::write(&path, bytes).unwrap();
                damaged += 1;
            }
        }
    }
    assert!(damaged > 0, "the controller's log has no segment");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_copy_of_the_controllers_log_is_damaged_gets_another() {
    let mut nodes = Nodes::start(3).await;
    let client = Client::connect(nodes.addresses()).await.unwrap();
    create(&client, "probe", 3).await;
    await_writes(&client, "probe").await;
    nodes.stop_one(2);
    let data = nodes.data(2).to_owned();
    let before = identity(&data);
    damage_controller(&data);
    // What it had folded of the log is gone, so it needs what is damaged.
    fs::remove_dir_all(data.join("kv")).unwrap();
    nodes.restart(2);
    nodes.await_ready().await;
    let after = identity(&data);
    assert_eq!(after["cluster"], before["cluster"]);
    assert_ne!(after["controller_replica"], before["controller_replica"]);
    nodes.await_placed(&client.admin(), "probe", 3).await;
    await_writes(&client, "probe").await;
    nodes.stop();
    nodes.verify_logs();
}
