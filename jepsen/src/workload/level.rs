//! Where replicas are, and whether they are level: that all nodes live says nothing of what each of
//! their replicas holds, so each is asked itself.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use trilog_client::{Client as Native, ClientConfig};

use super::{Stage, TOPIC};
use crate::history::Key;
use crate::kafka::{Client, UNCOMMITTED};

const LOOK: Duration = Duration::from_millis(100);

/// A key's group, and the nodes that have a voting replica of it.
#[derive(Debug, Clone)]
pub struct Held {
    pub group: u64,
    pub nodes: Vec<u32>,
}

pub async fn placement(stage: &Stage) -> Result<BTreeMap<Key, Held>, trilog_client::Error> {
    let client = Native::connect_with(ClientConfig {
        seeds: stage.seeds.clone(),
        ..ClientConfig::default()
    })
    .await?;
    let topic = client.admin().describe_topic(TOPIC).await?;
    let partitions = topic.partitions.into_iter();
    let held = partitions.map(|place| {
        let (group, nodes) = (place.group, place.replicas);
        (Key(place.partition), Held { group, nodes })
    });
    Ok(held.collect())
}

/// Waits until every replica serves, and knows all to be committed that was when this began; why it
/// does not, if it does not in time.
pub async fn await_level(stage: &Stage, patience: Duration) -> Result<(), String> {
    let deadline = Instant::now() + patience;
    let mut client = stage.kafka_client(0);
    let mut ends = BTreeMap::new();
    for key in stage.all_keys() {
        let end = client.end(key, UNCOMMITTED, deadline).await;
        let end = end.map_err(|fault| format!("where key {} ends: {}", key.0, fault.text()))?;
        ends.insert(key, end);
    }
    loop {
        let held = placement(stage).await;
        let behind = match &held {
            Ok(held) => behind(&mut client, held, &ends).await,
            Err(error) => Some(format!("nobody says where replicas are: {error}")),
        };
        let Some(behind) = behind else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(behind);
        }
        sleep(LOOK).await;
    }
}

/// The first replica that is not as far as its key.
async fn behind(
    client: &mut Client,
    held: &BTreeMap<Key, Held>,
    ends: &BTreeMap<Key, u64>,
) -> Option<String> {
    for (key, end) in ends {
        let nodes = held.get(key).map_or(&[][..], |held| &held.nodes);
        if nodes.is_empty() {
            return Some(format!("nobody has a replica of key {}", key.0));
        }
        for node in nodes {
            let why = match client.replica_end(*node, *key, *end).await {
                Ok(at) if at >= *end => continue,
                Ok(at) => format!("is at {at}"),
                Err(fault) => format!("does not serve: {}", fault.text()),
            };
            return Some(format!(
                "the key {} ends at {end}, and its replica on node {node} {why}",
                key.0
            ));
        }
    }
    None
}
