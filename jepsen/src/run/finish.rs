//! After the faults: everybody has something acknowledged in every key and reads everything back,
//! and the nodes stop.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::inspect::Kept;
use super::{Options, Phases};
use crate::cluster::Cluster;
use crate::history::{Key, Note};
use crate::kafka::{Fault, Seen};
use crate::nemesis::{Done, Nemesis, Skipped};
use crate::workload::{Auditor, Scan, Stage, Worker, await_level, placement};

/// How long a cluster that is whole may take to acknowledge something in every key.
const ALIVE: Duration = Duration::from_secs(45);
/// How long transactions that nobody ends may stay open beyond their own time.
const SETTLING: Duration = Duration::from_mins(1);
/// How long it may take until somebody says where the group is.
const ASKING: Duration = Duration::from_secs(30);
/// How long reading everything back may take.
const READING: Duration = Duration::from_mins(3);
/// How long a node may take to stop in order.
const STOP: Duration = Duration::from_secs(40);
/// How long nodes may take to be whole again after everything was read.
const SETTLE: Duration = Duration::from_mins(1);

/// What a run comes to besides its history, as far as it came.
#[derive(Debug, Default)]
pub(super) struct Finish {
    pub(super) failures: Vec<String>,
    /// What was not done in time.
    pub(super) late: Vec<String>,
    pub(super) gaps: Vec<String>,
    pub(super) done: Vec<Done>,
    /// Faults that were begun and that nothing came of.
    pub(super) in_vain: Vec<Skipped>,
    /// What was looked at, for people.
    pub(super) notes: Vec<String>,
}

impl Finish {
    /// What the nemesis has seen until now.
    pub(super) fn hear(&mut self, nemesis: &mut Nemesis) {
        self.done = nemesis.done().to_vec();
        self.in_vain = nemesis.in_vain().to_vec();
        self.failures.append(&mut nemesis.troubles);
        self.late.append(&mut nemesis.overdue);
    }

    /// A cluster that is late has failed, unless the harness itself stood still: then nobody knows.
    pub(super) fn judge_lateness(&mut self, standstill: Option<Duration>) {
        let late = std::mem::take(&mut self.late);
        let Some(standstill) = standstill else {
            self.failures.extend(late);
            return;
        };
        let millis = standstill.as_millis();
        self.gaps.push(format!(
            "the harness itself stood still for {millis} ms: this machine is too busy"
        ));
        self.gaps.extend(late);
    }
}

/// Everything from the end of the faults on; what is found is kept even if it is broken off.
pub(super) async fn finish(
    mut cluster: Cluster,
    stage: &Arc<Stage>,
    workers: Vec<Worker>,
    options: &Options,
    phases: &mut Phases,
    finish: &mut Finish,
) -> anyhow::Result<()> {
    let (workers, dead) = prove_alive(workers).await;
    finish.late.extend(dead);
    phases.over("writing");
    let ends = match settled_ends(stage).await {
        Ok(ends) => ends,
        // A cluster that is whole and does not say where keys end, or does not end what nobody
        // goes on with, does not serve.
        Err(fault) => {
            finish.late.push(fault.text().to_owned());
            return Ok(());
        }
    };
    // What happened between two looks of the auditor, or after its last, shows here.
    if let Err(fault) = Auditor::new(stage).look_at_group(ASKING).await {
        let why = fault.text();
        finish
            .late
            .push(format!("nobody says where the group is: {why}"));
    }
    phases.over("settling");
    stage.recorder.note(Note::Final);
    let read = read_back(workers, &ends).await;
    if read.missing.is_empty() {
        stage.recorder.note(Note::Done);
    }
    finish.gaps.extend(read.missing);
    finish.failures.extend(at_odds(&read.scans));
    phases.over("reading");
    let whole = await_whole(&cluster, stage, finish).await;
    let held = match placement(stage).await {
        Ok(held) => held,
        Err(error) => {
            finish
                .gaps
                .push(format!("nobody says where replicas are: {error}"));
            return Ok(());
        }
    };
    stop(&mut cluster, finish).await?;
    phases.over("stopping");
    let kept = Kept {
        stage,
        held,
        ends,
        options,
    };
    kept.inspect(&mut cluster, whole, finish).await?;
    phases.over("inspecting");
    Ok(())
}

/// Waits until all nodes are there and all replicas as far as their keys.
pub(super) async fn await_whole(cluster: &Cluster, stage: &Stage, finish: &mut Finish) -> bool {
    if let Err(late) = cluster.await_settled(SETTLE).await {
        finish.late.push(late.to_string());
        return false;
    }
    if let Err(behind) = await_level(stage, SETTLE).await {
        let seconds = SETTLE.as_secs();
        let late = format!("replicas are not level after {seconds} s: {behind}");
        finish.late.push(late);
        return false;
    }
    true
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
    let mut client = stage.kafka_client(0);
    let deadline = Instant::now() + stage.txn_timeout + SETTLING;
    loop {
        let ends = client.ends(&stage.all_keys(), deadline).await?;
        let open: Vec<String> = ends
            .iter()
            .filter(|(_, (stable, end))| stable < end)
            .map(|(key, (stable, end))| format!("{}: {stable} of {end}", key.0))
            .collect();
        // Everybody has had something acknowledged since all nodes hear one another, so a leader
        // that was one before is none that says it is.
        let seen: Vec<Seen> = std::mem::take(&mut client.seen);
        if open.is_empty() {
            for seen in &seen {
                stage.note_high_watermark(seen, true);
            }
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

/// Stops all nodes in order; those that do not are killed, and that is a failure.
pub(super) async fn stop(cluster: &mut Cluster, finish: &mut Finish) -> anyhow::Result<()> {
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
                    .late
                    .push(format!("node {number} did not stop in time"));
                node.kill()?;
                node.bury()?;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_late_is_a_failure_unless_the_harness_stood_still() {
        let finish = || Finish {
            failures: vec!["a node ended by itself".to_owned()],
            late: vec!["a node did not stop in time".to_owned()],
            ..Finish::default()
        };
        let mut on_time = finish();
        on_time.judge_lateness(None);
        assert_eq!((on_time.failures.len(), on_time.gaps.len()), (2, 0));
        let mut held_up = finish();
        held_up.judge_lateness(Some(Duration::from_secs(4)));
        assert_eq!((held_up.failures.len(), held_up.gaps.len()), (1, 2));
        assert!(held_up.late.is_empty());
    }

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
