//! After the faults: everything is read back by everybody, the nodes stop, and their files are
//! verified and compared.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use trilog_client::{Client, ClientConfig};

use super::{Options, replicas};
use crate::cluster::Cluster;
use crate::history::{Key, Note};
use crate::kafka::{self, Fault};
use crate::nemesis::{Done, Nemesis};
use crate::workload::{Stage, TOPIC, Worker};

/// How long transactions that nobody ends may stay open beyond their own time.
const SETTLING: Duration = Duration::from_mins(1);
/// How long reading everything back may take.
const READING: Duration = Duration::from_mins(3);
/// How long a node may take to stop in order.
const STOP: Duration = Duration::from_secs(40);
/// How long a node may take to find and repair what was done to its files.
const REPAIR: Duration = Duration::from_mins(1);

#[derive(Debug, Default)]
pub(super) struct Finish {
    pub(super) failures: Vec<String>,
    pub(super) gaps: Vec<String>,
    pub(super) done: Vec<Done>,
}

/// A key's group, and the nodes that have a voting replica of it.
#[derive(Debug, Clone)]
pub(super) struct Held {
    pub(super) group: u64,
    pub(super) nodes: Vec<u32>,
}

pub(super) async fn finish(
    nemesis: Nemesis,
    stage: &Arc<Stage>,
    workers: Vec<Worker>,
    options: &Options,
) -> anyhow::Result<Finish> {
    let mut finish = Finish {
        done: nemesis.done().to_vec(),
        failures: nemesis.troubles.clone(),
        ..Finish::default()
    };
    let mut cluster = nemesis.cluster;
    let ends = match settled_ends(stage).await {
        Ok(ends) => ends,
        Err(fault) => {
            finish.gaps.push(fault.text().to_owned());
            return Ok(finish);
        }
    };
    stage.recorder.note(Note::Final);
    let missing = read_back(workers, &ends).await;
    if missing.is_empty() {
        stage.recorder.note(Note::Done);
    }
    finish.gaps.extend(missing);
    let held = match placement(&cluster).await {
        Ok(held) => held,
        Err(error) => {
            finish
                .gaps
                .push(format!("nobody says where replicas are: {error}"));
            return Ok(finish);
        }
    };
    let damaged = finish.done.iter().any(|one| {
        use crate::nemesis::Fault as Struck;
        [Struck::FlipBits, Struck::Truncate, Struck::StaleChunks].contains(&one.fault)
    });
    stop(&mut cluster, &mut finish).await?;
    let mut wrong = verify_all(&cluster, options)?;
    if damaged && !wrong.is_empty() {
        // What was damaged and not read since is found by the background check only.
        cluster.boot_all()?;
        if let Err(late) = cluster.await_settled(REPAIR).await {
            finish.failures.push(late.to_string());
        }
        sleep(REPAIR / 2).await;
        stop(&mut cluster, &mut finish).await?;
        wrong = verify_all(&cluster, options)?;
    }
    finish.failures.extend(wrong);
    let dirs = cluster.data_dirs();
    let compared = replicas::compare(&options.trilog, &dirs, &held, &ends).await?;
    finish.failures.extend(compared.short);
    for note in compared.notes {
        stage.recorder.note(note);
    }
    Ok(finish)
}

/// Where each key ends, once no transaction is open in it.
async fn settled_ends(stage: &Arc<Stage>) -> Result<BTreeMap<Key, u64>, Fault> {
    let lives = Arc::clone(&stage.lives);
    let mut client = kafka::Client::new(TOPIC, stage.nodes.clone(), lives, 0);
    let deadline = Instant::now() + stage.txn_timeout + SETTLING;
    loop {
        let ends = client.ends(&stage.all_keys(), deadline).await?;
        let open: Vec<String> = ends
            .iter()
            .filter(|(_, (stable, end))| stable < end)
            .map(|(key, (stable, end))| format!("{}: {stable} of {end}", key.0))
            .collect();
        if open.is_empty() {
            return Ok(ends.into_iter().map(|(key, (_, end))| (key, end)).collect());
        }
        if Instant::now() >= deadline {
            let open = open.join(", ");
            return Err(Fault::Not(format!("transactions stay open in keys {open}")));
        }
        sleep(Duration::from_millis(200)).await;
    }
}

/// Who did not get to the end, and why.
async fn read_back(workers: Vec<Worker>, ends: &BTreeMap<Key, u64>) -> Vec<String> {
    let deadline = Instant::now() + READING;
    let mut reading = JoinSet::new();
    for worker in workers {
        reading.spawn(worker.read_everything(ends.clone(), deadline));
    }
    let mut missing = Vec::new();
    while let Some(read) = reading.join_next().await {
        match read {
            Ok(Ok(())) => {}
            Ok(Err(why)) => missing.push(why),
            Err(error) => missing.push(error.to_string()),
        }
    }
    missing
}

async fn placement(cluster: &Cluster) -> anyhow::Result<BTreeMap<Key, Held>> {
    let client = Client::connect_with(ClientConfig {
        seeds: cluster.addresses(),
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

/// Stops all nodes in order; those that do not are killed, and that is a failure.
async fn stop(cluster: &mut Cluster, finish: &mut Finish) -> anyhow::Result<()> {
    for node in &mut cluster.nodes {
        node.close();
    }
    for node in &mut cluster.nodes {
        let number = node.place.number;
        match node.await_end(STOP).await? {
            Some(status) if status.success() => {}
            Some(status) => {
                let words = node.last_words(6);
                let failure = format!("node {number} did not stop in order ({status}):\n{words}");
                finish.failures.push(failure);
            }
            None => {
                finish
                    .failures
                    .push(format!("node {number} did not stop in time"));
                node.kill()?;
                node.bury()?;
            }
        }
    }
    Ok(())
}

fn verify_all(cluster: &Cluster, options: &Options) -> anyhow::Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (number, dir) in cluster.data_dirs() {
        if let Some(what) = verify(&options.trilog, &dir)? {
            wrong.push(format!("the log of node {number} does not verify: {what}"));
        }
    }
    Ok(wrong)
}

/// What `trilog log verify` finds wrong in a stopped node's directory.
fn verify(trilog: &Path, dir: &Path) -> anyhow::Result<Option<String>> {
    let verified = Command::new(trilog)
        .args(["log", "verify"])
        .arg(dir)
        .output()
        .with_context(|| format!("cannot run {}", trilog.display()))?;
    if verified.status.success() {
        return Ok(None);
    }
    let text = String::from_utf8_lossy(&verified.stdout);
    let damaged: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("damaged"))
        .collect();
    let errors = String::from_utf8_lossy(&verified.stderr);
    Ok(Some(format!("{} {}", errors.trim(), damaged.join("; "))))
}
