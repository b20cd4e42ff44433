//! A run from its seed to its verdict: a cluster is started, clients work on it, faults strike it;
//! then everything is healed and read back, the nodes are stopped, their files compared, and the
//! history is judged.

mod finish;
mod inspect;
mod replicas;

use std::collections::BTreeMap;
use std::fmt;
use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, sleep, sleep_until, timeout, timeout_at};
use trilog_client::proto::CreateTopicRequest;
use trilog_client::{Client, ClientConfig};

use crate::check::{Checker, Validity, Verdict};
use crate::cluster::{Cluster, Medium, disk};
use crate::history::json::Reader;
use crate::history::{Header, json};
use crate::nemesis::{Done, Fault, Means, Nemesis, Plan, Scheduled, Skipped, schedule};
use crate::workload::{Auditor, Kind, Load, Recorder, Stage, TOPIC, Worker};
use finish::Finish;

/// How long a cluster may take to come up.
const START: Duration = Duration::from_mins(1);
/// What workers may take beyond the patience of their clients once they are told to stop.
const GRACE: Duration = Duration::from_mins(1);
/// How often it is felt whether this program goes on, and what is no going on any more.
const PULSE: Duration = Duration::from_millis(50);
const STANDSTILL: Duration = Duration::from_secs(3);
/// What a run may take beyond twice the time that clients work. Every wait in it has an end, but
/// there are many.
const LIMIT: Duration = Duration::from_mins(20);

/// What a run is to be.
#[derive(Debug, Clone)]
pub struct Options {
    /// The binary whose nodes are run.
    pub trilog: PathBuf,
    /// The build that nodes begin with, to be replaced by that one, if that is to happen.
    pub older: Option<PathBuf>,
    /// Where the history and the nodes' files go.
    pub dir: PathBuf,
    pub seed: u64,
    pub nodes: u32,
    /// How nodes reach one another.
    pub medium: Medium,
    /// How long clients work.
    pub length: Duration,
    pub operations: u64,
    pub workers: u32,
    /// A Python that has `confluent_kafka`, for stock clients among the workers.
    pub python: Option<PathBuf>,
    /// A kcat, for another kind of stock clients.
    pub kcat: Option<PathBuf>,
    pub keys: u32,
    /// What a worker rests after an operation at most.
    pub pace: Duration,
    /// The kinds of faults to draw from.
    pub faults: Vec<Fault>,
    /// Whether each of them was asked for by its name: then a run without one of them is not the one
    /// that was asked for. Otherwise they are as many of them as can be had.
    pub by_name: bool,
    /// Whether every fault comes alone and strikes one node if it can, when everything is whole.
    pub calm: bool,
}

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    pub verdict: Verdict,
    /// What is wrong that no history shows: a node that died, a log that does not verify.
    pub failures: Vec<String>,
    /// Why not everything could be looked at.
    pub gaps: Vec<String>,
    /// What was looked at, for people.
    pub notes: Vec<String>,
    /// For how long this program itself stood still, if it was long.
    pub standstill: Option<Duration>,
    pub done: Vec<Done>,
    /// Faults that did not come, and why not.
    pub skipped: Vec<Skipped>,
    pub schedule: Vec<Scheduled>,
    pub history: PathBuf,
    pub phases: Phases,
}

/// How long the parts of a run took, in their order.
#[derive(Debug, Clone)]
pub struct Phases {
    since: Instant,
    took: Vec<(&'static str, Duration)>,
}

impl Phases {
    fn begin() -> Self {
        Self {
            since: Instant::now(),
            took: Vec::new(),
        }
    }

    /// What was done since the one before was over.
    fn over(&mut self, what: &'static str) {
        let now = Instant::now();
        self.took.push((what, now - self.since));
        self.since = now;
    }

    pub fn total(&self) -> Duration {
        self.took.iter().map(|(_, took)| *took).sum()
    }
}

impl fmt::Display for Phases {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} s", self.total().as_secs_f64())?;
        for (nth, (what, took)) in self.took.iter().enumerate() {
            let before = if nth == 0 { ":" } else { "," };
            write!(f, "{before} {what} {:.1}", took.as_secs_f64())?;
        }
        Ok(())
    }
}

impl Outcome {
    /// What it proves, everything taken together.
    pub fn validity(&self) -> Validity {
        match self.verdict.validity {
            _ if !self.failures.is_empty() => Validity::Invalid,
            Validity::Valid if !self.gaps.is_empty() => Validity::Unknown,
            validity => validity,
        }
    }
}

/// Runs it. Each line that `say` is given is for people. Whoever gives it up has no nodes left. An
/// error if it could not begin: what clients saw of a run that broke off is judged all the same.
pub async fn run(options: &Options, say: &mut dyn FnMut(&str)) -> anyhow::Result<Outcome> {
    let deadline = Instant::now() + options.length * 2 + LIMIT;
    let running = Box::pin(run_for(options, deadline, say));
    let ran = timeout_at(deadline + GRACE, running).await;
    ran.unwrap_or_else(|_| bail!("the run does not begin, nor end"))
}

async fn run_for(
    options: &Options,
    deadline: Instant,
    say: &mut dyn FnMut(&str),
) -> anyhow::Result<Outcome> {
    let mut phases = Phases::begin();
    let nodes = empty_dir(options.dir.join("nodes"))?;
    let count = usize::try_from(options.nodes).unwrap_or(0);
    let means = Means::probe(
        &options.dir,
        count,
        options.older.is_some(),
        &options.medium,
        &options.faults,
    )
    .await;
    let (faults, mut skipped) = means.sort(&options.faults);
    let own_disks = faults.iter().any(|fault| fault.needs_disks());
    let scheduled = schedule(&Plan {
        seed: options.seed,
        nodes: (1..=options.nodes).collect(),
        length: options.length,
        faults: faults.clone(),
        calm: options.calm,
    });
    skipped.extend(without_time(&faults, &scheduled));
    announce(options, &scheduled, &skipped, say);

    // Nodes would run the older build to the end otherwise.
    let upgrades = scheduled.iter().any(|one| one.fault == Fault::Upgrade);
    let older = options.older.as_deref().filter(|_| upgrades);
    let cluster = begin(options, older, &nodes, own_disks).await?;
    phases.over("start");
    let history = options.dir.join("history.jsonl");
    let recorder = Recorder::create(&history, &header(options))
        .with_context(|| format!("cannot write {}", history.display()))?;
    let (kafka, seeds) = (cluster.kafka_nodes(), cluster.addresses());
    let stage = Stage::new(recorder, &load(options), kafka, seeds, cluster.lives());
    let worst = Arc::new(AtomicU64::new(0));
    let mut pulse = JoinSet::new();
    pulse.spawn(feel_pulse(Arc::clone(&worst)));
    let mut finish = Finish::default();
    let under_way = Running {
        stage: &stage,
        scheduled: &scheduled,
        options,
        phases: &mut phases,
        finish: &mut finish,
    };
    let over = timeout_at(deadline, Box::pin(under_way.carry_out(cluster, say))).await;
    drop(pulse);
    finish.failures.extend(stage.complaints.take());
    finish.gaps.extend(broken_off(over));
    stage.recorder.close().context("cannot write the history")?;
    let verdict = judge(&history)?;
    phases.over("judge");
    if options.by_name {
        finish.gaps.extend(not_as_asked(&skipped));
    }
    let never = never_done(&scheduled, &finish.done, &finish.in_vain);
    finish.gaps.extend(never);
    let standstill = stood_still(&worst);
    finish.judge_lateness(standstill);
    Ok(Outcome {
        verdict,
        failures: finish.failures,
        gaps: finish.gaps,
        notes: finish.notes,
        standstill,
        done: finish.done,
        skipped,
        schedule: scheduled,
        history,
        phases,
    })
}

/// A cluster that is whole, with the topic.
async fn begin(
    options: &Options,
    older: Option<&Path>,
    nodes: &Path,
    own_disks: bool,
) -> anyhow::Result<Cluster> {
    let first = older.unwrap_or(&options.trilog);
    let (count, seed, medium) = (options.nodes, options.seed, &options.medium);
    let mut cluster = Cluster::prepare(first, nodes, count, seed, medium, own_disks).await?;
    cluster.newer = older.is_some().then(|| options.trilog.clone());
    cluster.boot_all()?;
    if let Err(error) = cluster.await_start(START).await {
        bail!("{error}\n{}", cluster.last_words());
    }
    create_topic(&cluster, options).await?;
    cluster.await_settled(START).await?;
    Ok(cluster)
}

/// Why a run has not come to its end, if it has not.
fn broken_off(over: Result<anyhow::Result<()>, Elapsed>) -> Option<String> {
    let why = match over {
        Ok(Ok(())) => return None,
        Ok(Err(error)) => format!("{error:#}"),
        Err(_) => "it takes too long".to_owned(),
    };
    Some(format!("the run was broken off: {why}"))
}

/// A run from the first operation on. What it has found is kept when it breaks off.
struct Running<'a> {
    stage: &'a Arc<Stage>,
    scheduled: &'a [Scheduled],
    options: &'a Options,
    phases: &'a mut Phases,
    finish: &'a mut Finish,
}

impl Running<'_> {
    async fn carry_out(self, cluster: Cluster, say: &mut dyn FnMut(&str)) -> anyhow::Result<()> {
        let Self {
            stage,
            scheduled,
            options,
            phases,
            finish,
        } = self;
        let mut nemesis = Nemesis::new(cluster, stage);
        let struck = trouble(&mut nemesis, stage, scheduled, options).await;
        finish.hear(&mut nemesis);
        let workers = struck?;
        phases.over("work");
        // Before everybody has to write and to read everything, by which nobody would be idle.
        finish.gaps.extend(stage.idle(&kinds(options)));
        say("healed; everything is read back");
        finish::finish(nemesis.cluster, stage, workers, options, phases, finish).await
    }
}

/// A directory for nodes, without what an earlier run has left in it.
fn empty_dir(nodes: PathBuf) -> anyhow::Result<PathBuf> {
    if nodes.is_dir() {
        disk::clear(&nodes).context("unmounting what an earlier run left")?;
        std::fs::remove_dir_all(&nodes).context("removing what an earlier run left")?;
    }
    std::fs::create_dir_all(&nodes).with_context(|| format!("cannot make {}", nodes.display()))?;
    Ok(nodes)
}

/// The kind of client that each worker is.
fn kinds(options: &Options) -> Vec<Kind> {
    let workers = usize::try_from(options.workers).unwrap_or(0);
    let there = |kind: &Kind| match kind {
        Kind::Stock => options.python.is_some(),
        Kind::Kcat => options.kcat.is_some(),
        Kind::Transactional | Kind::Idempotent | Kind::Near | Kind::Native => true,
    };
    let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(there).collect();
    kinds.into_iter().cycle().take(workers).collect()
}

/// Faults that there is no time for in this schedule.
fn without_time(faults: &[Fault], scheduled: &[Scheduled]) -> Vec<Skipped> {
    let comes = |fault: Fault| scheduled.iter().any(|one| one.fault == fault);
    let missing = faults.iter().copied().filter(|fault| !comes(*fault));
    let skipped = missing.map(|fault| Skipped {
        fault,
        why: "there is no time for it".to_owned(),
    });
    skipped.collect()
}

/// What was asked for by name and was not tried. Nobody who reads that a run is valid would think
/// that it did something else.
fn not_as_asked(skipped: &[Skipped]) -> Vec<String> {
    let missing = skipped.iter();
    missing
        .map(|Skipped { fault, why }| format!("{fault} was asked for and did not happen: {why}"))
        .collect()
}

/// Faults that were to happen, and that not once came about: nobody knows what they would have
/// done.
fn never_done(scheduled: &[Scheduled], done: &[Done], in_vain: &[Skipped]) -> Vec<String> {
    let mut due: Vec<Fault> = scheduled.iter().map(|one| one.fault).collect();
    due.sort_unstable();
    due.dedup();
    due.retain(|fault| !done.iter().any(|one| one.fault == *fault));
    let why = |fault: Fault| {
        let last = in_vain.iter().rev().find(|one| one.fault == fault);
        last.map_or("the run did not come that far", |one| one.why.as_str())
    };
    let never = due.iter();
    never
        .map(|fault| format!("{fault} was to happen and did not: {}", why(*fault)))
        .collect()
}

fn announce(
    options: &Options,
    scheduled: &[Scheduled],
    skipped: &[Skipped],
    say: &mut dyn FnMut(&str),
) {
    say(&format!(
        "seed {}: {} nodes, {} workers, {} keys, {} s",
        options.seed,
        options.nodes,
        options.workers,
        options.keys,
        options.length.as_secs()
    ));
    say(&format!("network: {}", options.medium.about()));
    for one in skipped {
        say(&format!("SKIPPED {}: {}", one.fault, one.why));
    }
    for one in scheduled {
        say(&one.to_string());
    }
}

fn header(options: &Options) -> Header {
    let faults: Vec<&str> = options.faults.iter().map(|fault| fault.name()).collect();
    Header {
        version: json::VERSION,
        keys: (0..options.keys)
            .map(|key| format!("{TOPIC}/{key}"))
            .collect(),
        seed: Some(options.seed),
        about: format!("{} nodes; {}", options.nodes, faults.join(" ")),
        ..Header::default()
    }
}

fn load(options: &Options) -> Load {
    Load {
        keys: options.keys,
        world: None,
        python: options.python.clone(),
        kcat: options.kcat.clone(),
        operations: options.operations,
        pace: options.pace,
        patience: Duration::from_secs(6),
        txn_timeout: Duration::from_secs(12),
    }
}

async fn create_topic(cluster: &Cluster, options: &Options) -> anyhow::Result<()> {
    let client = Client::connect_with(ClientConfig {
        seeds: cluster.addresses(),
        ..ClientConfig::default()
    })
    .await?;
    let request = CreateTopicRequest {
        name: TOPIC.to_owned(),
        partitions: options.keys,
        replication: 3.min(options.nodes),
        if_not_exists: true,
        ..CreateTopicRequest::default()
    };
    let admin = client.admin();
    admin
        .create_topic(request)
        .await
        .context("creating the topic")?;
    admin
        .await_leaders(TOPIC)
        .await
        .context("creating the topic")?;
    Ok(())
}

/// Has workers work and faults strike until time is up, and heals everything.
async fn trouble(
    nemesis: &mut Nemesis,
    stage: &Arc<Stage>,
    scheduled: &[Scheduled],
    options: &Options,
) -> anyhow::Result<Vec<Worker>> {
    let (stop, stopped) = watch::channel(false);
    let mut working = JoinSet::new();
    for (nth, kind) in (0..).zip(kinds(options)) {
        let worker = Worker::new(stage, kind, nth, options.seed);
        working.spawn(worker.work(stopped.clone()));
    }
    // Whoever gives this up gives all of them up.
    let mut auditing = JoinSet::new();
    auditing.spawn(Auditor::new(stage).look_on(stopped));
    let until = Instant::now() + options.length;
    let struck = nemesis.run(scheduled, options.length * 2).await;
    if struck.is_ok() {
        sleep_until(until).await;
    }
    // It has to get well under load, too.
    let healed = nemesis.heal().await;
    stop.send_replace(true);
    struck
        .and(healed)
        .with_context(|| nemesis.cluster.last_words())?;
    let mut workers = Vec::new();
    let patience = load(options).patience * 4 + GRACE;
    let ending = async {
        while let Some(ended) = working.join_next().await {
            workers.push(ended.context("a worker failed")?);
        }
        let audited = auditing.join_next().await;
        audited.unwrap_or(Ok(())).context("the auditor failed")
    };
    if let Ok(ended) = timeout(patience, ending).await {
        ended?;
    } else {
        let (ended, of) = (workers.len(), options.workers);
        let trouble = format!("of {of} clients {ended} came to an end");
        nemesis.overdue.push(trouble);
    }
    Ok(workers)
}

/// Keeps how long this program stood still at most.
async fn feel_pulse(worst: Arc<AtomicU64>) {
    let mut last = Instant::now();
    loop {
        sleep(PULSE).await;
        let late = last.elapsed().saturating_sub(PULSE).as_millis();
        worst.fetch_max(u64::try_from(late).unwrap_or(u64::MAX), Ordering::Relaxed);
        last = Instant::now();
    }
}

/// A harness that stands still takes what it does to the cluster, and what clients wait for, for
/// something that the cluster does.
fn stood_still(worst: &AtomicU64) -> Option<Duration> {
    let worst = Duration::from_millis(worst.load(Ordering::Relaxed));
    (worst > STANDSTILL).then_some(worst)
}

/// Judges a history that was written.
pub fn judge(history: &Path) -> anyhow::Result<Verdict> {
    let file = std::fs::File::open(history)
        .with_context(|| format!("cannot open {}", history.display()))?;
    let reader = Reader::new(BufReader::with_capacity(1 << 20, file))?;
    let mut checker = Checker::new(reader.header().clone());
    for event in reader {
        checker.push(event?)?;
    }
    Ok(checker.finish()?)
}

/// How often each kind of fault was carried out.
pub fn tally(done: &[Done]) -> BTreeMap<Fault, usize> {
    let mut tally = BTreeMap::new();
    for one in done {
        *tally.entry(one.fault).or_default() += 1;
    }
    tally
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_never_came_about_is_told() {
        let scheduled = |fault| Scheduled {
            at: Duration::ZERO,
            lasts: Duration::ZERO,
            fault,
            nodes: vec![1],
            alone: false,
            seed: 0,
        };
        let done = |fault| Done {
            fault,
            nodes: vec![1],
            what: String::new(),
        };
        let due = [Fault::Kill, Fault::Transfer, Fault::Kill].map(scheduled);
        let told = never_done(&due, &[done(Fault::Kill)], &[]);
        assert_eq!(
            told,
            ["transfer was to happen and did not: the run did not come that far"]
        );
        let in_vain = ["first", "last"].map(|why| Skipped {
            fault: Fault::Transfer,
            why: why.to_owned(),
        });
        let told = never_done(&due, &[done(Fault::Kill)], &in_vain);
        assert_eq!(told, ["transfer was to happen and did not: last"]);
        let all = [Fault::Transfer, Fault::Kill].map(done);
        assert_eq!(never_done(&due, &all, &in_vain), Vec::<String>::new());
    }

    #[test]
    fn what_was_asked_for_and_there_is_no_time_for_is_told() {
        let scheduled = [Fault::Kill].map(|fault| Scheduled {
            at: Duration::ZERO,
            lasts: Duration::ZERO,
            fault,
            nodes: vec![1],
            alone: false,
            seed: 0,
        });
        let skipped = without_time(&[Fault::Kill, Fault::Pause], &scheduled);
        assert_eq!(
            not_as_asked(&skipped),
            ["pause was asked for and did not happen: there is no time for it"]
        );
    }
}
