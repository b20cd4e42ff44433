//! After the faults: everybody has something acknowledged in every key and reads everything back,
//! the nodes stop, and their files are verified and compared.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};
use trilog_client::{Client, ClientConfig};

use super::{Options, Phases, replicas};
use crate::cluster::Cluster;
use crate::history::{Key, Note};
use crate::kafka::{self, Fault};
use crate::nemesis::{Done, Nemesis};
use crate::workload::{Scan, Stage, TOPIC, Worker};

/// How long a cluster that is whole may take to acknowledge something in every key.
const ALIVE: Duration = Duration::from_secs(45);
/// How long transactions that nobody ends may stay open beyond their own time.
const SETTLING: Duration = Duration::from_mins(1);
/// How long reading everything back may take.
const READING: Duration = Duration::from_mins(3);
/// How long a node may take to stop in order.
const STOP: Duration = Duration::from_secs(40);
/// How long nodes may take to be whole again after everything was read.
const SETTLE: Duration = Duration::from_mins(1);
/// How long nodes look through their files each time they are started once more to find what was
/// done to them. They read some 16 MB a second.
const LOOKS: [Duration; 6] = [
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(32),
    Duration::from_secs(32),
];
/// How long looking through a stopped node's files may take.
const VERIFY: Duration = Duration::from_mins(3);

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
    phases: &mut Phases,
) -> anyhow::Result<Finish> {
    let mut finish = Finish {
        done: nemesis.done().to_vec(),
        failures: nemesis.troubles.clone(),
        ..Finish::default()
    };
    let mut cluster = nemesis.cluster;
    let (workers, dead) = prove_alive(workers).await;
    finish.failures.extend(dead);
    phases.over("writing");
    let ends = match settled_ends(stage).await {
        Ok(ends) => ends,
        // A cluster that is whole and does not say where keys end, or does not end what nobody
        // goes on with, does not serve.
        Err(fault) => {
            finish.failures.push(fault.text().to_owned());
            return Ok(finish);
        }
    };
    phases.over("settling");
    stage.recorder.note(Note::Final);
    let read = read_back(workers, &ends).await;
    if read.missing.is_empty() {
        stage.recorder.note(Note::Done);
    }
    finish.gaps.extend(read.missing);
    finish.failures.extend(at_odds(&read.scans));
    if let Err(late) = cluster.await_settled(SETTLE).await {
        finish.failures.push(late.to_string());
    }
    phases.over("reading");
    let held = match placement(&cluster).await {
        Ok(held) => held,
        Err(error) => {
            finish
                .gaps
                .push(format!("nobody says where replicas are: {error}"));
            return Ok(finish);
        }
    };
    let damaged = finish.done.iter().any(|one| one.fault.damages());
    stop(&mut cluster, &mut finish).await?;
    phases.over("stopping");
    verify_mended(&mut cluster, &mut finish, damaged, options).await?;
    phases.over("verifying");
    let dirs = cluster.data_dirs();
    match replicas::compare(&options.trilog, &dirs, &held, &ends).await {
        Ok(compared) => {
            finish.failures.extend(compared.short);
            for note in compared.notes {
                stage.recorder.note(note);
            }
        }
        // What cannot be read is no reason to keep what else was found to oneself.
        Err(error) => finish
            .failures
            .push(format!("replicas cannot be compared: {error:#}")),
    }
    phases.over("comparing");
    Ok(finish)
}

/// Has each worker write to each key; who could not, and why.
async fn prove_alive(workers: Vec<Worker>) -> (Vec<Worker>, Vec<String>) {
    let deadline = Instant::now() + ALIVE;
    let mut proving = JoinSet::new();
    for worker in workers {
        proving.spawn(worker.prove_alive(deadline));
    }
    let (mut workers, mut dead) = (Vec::new(), Vec::new());
    while let Some(proven) = proving.join_next().await {
        match proven {
            Ok((worker, alive)) => {
                workers.push(worker);
                dead.extend(alive.err());
            }
            Err(error) => dead.push(error.to_string()),
        }
    }
    (workers, dead)
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

/// What each reader found in each key.
type Scans = Vec<(String, BTreeMap<Key, Scan>)>;

/// What came of reading everything back.
struct ReadBack {
    scans: Scans,
    /// Who did not get to the end, and why.
    missing: Vec<String>,
}

async fn read_back(workers: Vec<Worker>, ends: &BTreeMap<Key, u64>) -> ReadBack {
    let deadline = Instant::now() + READING;
    let mut reading = JoinSet::new();
    for worker in workers {
        reading.spawn(worker.read_everything(ends.clone(), deadline));
    }
    let mut back = ReadBack {
        scans: Vec::new(),
        missing: Vec::new(),
    };
    while let Some(read) = reading.join_next().await {
        match read {
            Ok(Ok(scans)) => back.scans.push(scans),
            Ok(Err(why)) => back.missing.push(why),
            Err(error) => back.missing.push(error.to_string()),
        }
    }
    back
}

/// Whoever read to the end of a key has read the same: checkers go by what anybody read, and a
/// client that ends early, or leaves something out at the end, would hide behind the others.
fn at_odds(scans: &Scans) -> Vec<String> {
    let Some((first, others)) = scans.split_first() else {
        return Vec::new();
    };
    let mut odds = Vec::new();
    for (name, found) in others {
        let keys = first.1.keys().chain(found.keys());
        let keys: std::collections::BTreeSet<&Key> = keys.collect();
        for key in keys
            .into_iter()
            .filter(|key| found.get(key) != first.1.get(key))
        {
            odds.push(format!(
                "in key {} {} read {}, and {name} {}",
                key.0,
                first.0,
                found_text(first.1.get(key)),
                found_text(found.get(key))
            ));
        }
    }
    odds
}

fn found_text(scan: Option<&Scan>) -> String {
    scan.map_or("nothing".to_owned(), |scan| {
        let Scan { records, last, sum } = scan;
        format!("{records} records up to {last} (sum {sum:016x})")
    })
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
    for (number, how) in cluster.ended()? {
        finish
            .failures
            .push(format!("node {number} ended by itself ({how})"));
    }
    for node in &mut cluster.nodes {
        node.close();
    }
    for node in cluster.nodes.iter_mut().filter(|node| node.is_started()) {
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

/// Verifies what stopped nodes have written. Where it was damaged, and that was not found yet, they
/// are started again to find it.
async fn verify_mended(
    cluster: &mut Cluster,
    finish: &mut Finish,
    damaged: bool,
    options: &Options,
) -> anyhow::Result<()> {
    let mut wrong = verify_all(cluster, options).await?;
    for look in LOOKS {
        if !damaged || wrong.is_empty() {
            break;
        }
        // What was damaged and not read since is found by the background check only.
        cluster.boot_all()?;
        if let Err(late) = cluster.await_settled(SETTLE).await {
            finish.failures.push(late.to_string());
            break;
        }
        sleep(look).await;
        stop(cluster, finish).await?;
        wrong = verify_all(cluster, options).await?;
    }
    finish.failures.extend(wrong);
    Ok(())
}

async fn verify_all(cluster: &Cluster, options: &Options) -> anyhow::Result<Vec<String>> {
    let mut wrong = Vec::new();
    for (number, dir) in cluster.data_dirs() {
        if let Some(what) = verify(&options.trilog, &dir).await? {
            wrong.push(format!("the log of node {number} does not verify: {what}"));
        }
    }
    Ok(wrong)
}

/// What `trilog log verify` finds wrong in a stopped node's directory.
async fn verify(trilog: &Path, dir: &Path) -> anyhow::Result<Option<String>> {
    let verifying = Command::new(trilog)
        .args(["log", "verify"])
        .arg(dir)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let Ok(verified) = timeout(VERIFY, verifying).await else {
        return Ok(Some("it takes too long".to_owned()));
    };
    let verified = verified.with_context(|| format!("cannot run {}", trilog.display()))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_that_found_something_else_than_others_are_told() {
        let scan = |records, sum| Scan {
            records,
            last: records + 10,
            sum,
        };
        let reader = |name: &str, scans: &[(u32, Scan)]| {
            let scans = scans.iter().map(|(key, scan)| (Key(*key), *scan));
            (name.to_owned(), scans.collect::<BTreeMap<_, _>>())
        };
        let whole = [(0, scan(5, 1)), (1, scan(6, 2))];
        let agreeing = vec![reader("a", &whole), reader("b", &whole)];
        assert_eq!(at_odds(&agreeing), Vec::<String>::new());
        assert_eq!(at_odds(&Vec::new()), Vec::<String>::new());
        for other in [
            vec![(0, scan(5, 1))],
            vec![(0, scan(5, 1)), (1, scan(5, 9))],
            vec![(0, scan(5, 3)), (1, scan(6, 2))],
            vec![(0, scan(5, 1)), (1, scan(6, 2)), (2, scan(1, 1))],
        ] {
            for scans in [
                vec![reader("a", &whole), reader("b", &other)],
                vec![reader("a", &other), reader("b", &whole)],
            ] {
                assert_eq!(at_odds(&scans).len(), 1, "{scans:?}");
            }
        }
    }
}
