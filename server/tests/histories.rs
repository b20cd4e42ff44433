//! Histories of whole simulated nodes. The harness's own clients, of which some run transactions,
//! subscribe, or read from followers, work on three nodes over lines that lose and delay; nodes
//! crash, lose power, are cut off, hand over, have slow and failing disks. Then everything is
//! healed and read back, and the same checkers as for real processes judge what was seen.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[path = "histories/faults.rs"]
mod faults;
#[path = "histories/links.rs"]
mod links;
#[expect(dead_code, reason = "each test file uses a part of it")]
mod machines;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::BufReader;
use std::net::{Ipv4Addr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use faults::Trouble;
use links::{Links, Reach};
use machines::Machines;
use parking_lot::Mutex;
use sha2::{Digest, Sha256};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep};
use trilog_jepsen::check::{Checker, Validity, Verdict};
use trilog_jepsen::history::json::Reader;
use trilog_jepsen::history::{Header, Key, Note};
use trilog_jepsen::kafka::{Node, World};
use trilog_jepsen::workload::{Auditor, Kind, Load, Recorder, Scan, Stage, TOPIC, Worker};
use trilog_model::Offset;
use trilog_raft::controller::TopicId;
use trilog_raft::controller::commands::{Command, CreateTopic, TopicKind};
use trilog_raft::testkit::{block_on, seeds};
use trilog_storage::env::Entropy;

const NODES: u32 = 3;
const KEYS: u32 = 3;
const FAULTS: u32 = 6;
/// What can be had without ports. Those that read near read from followers.
const KINDS: [Kind; 6] = [
    Kind::Transactional,
    Kind::Idempotent,
    Kind::Near,
    Kind::Transactional,
    Kind::Idempotent,
    Kind::Near,
];
const TXN_TIMEOUT: Duration = Duration::from_secs(6);
/// How long, in simulated time, anything may take that must come when all is healed.
const SETTLING: Duration = Duration::from_mins(1);

/// A cluster with the topic, each node in a rack of its own.
async fn cluster(seed: u64) -> Machines {
    let all = Machines::start(seed, NODES).await;
    let command = Command::CreateTopic(CreateTopic {
        id: TopicId::random(&Entropy::from_seed(seed)).to_wire(),
        name: TOPIC.to_owned(),
        partitions: KEYS,
        replication: NODES,
        configs: Vec::new(),
        assignments: Vec::new(),
        kind: TopicKind::User.into(),
    });
    let cluster = all.with(1, |server| server.cluster().clone()).unwrap();
    cluster.propose(&command).await.unwrap();
    all
}

/// What clients have in common.
fn stage(links: &Arc<Links>, history: &Path, seed: u64) -> Arc<Stage> {
    let header = Header {
        keys: (0..KEYS).map(|key| format!("{TOPIC}/{key}")).collect(),
        seed: Some(seed),
        about: "simulated".to_owned(),
        ..Header::default()
    };
    let load = Load {
        keys: KEYS,
        world: Some(Arc::new(Reach(Arc::clone(links))) as Arc<dyn World>),
        python: None,
        kcat: None,
        operations: u64::MAX,
        pace: Duration::from_millis(150),
        patience: Duration::from_secs(4),
        txn_timeout: TXN_TIMEOUT,
    };
    // Nobody goes by the address.
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 1));
    let nodes = (1..=NODES).map(|number| Node { number, address });
    let lives = (0..NODES).map(|_| AtomicU32::new(1)).collect();
    let recorder = Recorder::create(history, &header).unwrap();
    Stage::new(recorder, &load, nodes.collect(), Vec::new(), lives)
}

/// Lets time pass until these are done.
async fn all_of<T>(trouble: &mut Trouble, what: &str, tasks: Vec<JoinHandle<T>>) -> Vec<T> {
    trouble
        .until(what, |_| tasks.iter().all(JoinHandle::is_finished))
        .await;
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await.unwrap());
    }
    done
}

/// Has clients work while the cluster is in trouble, and for a while after it.
async fn work(trouble: &mut Trouble, stage: &Arc<Stage>, seed: u64) -> Vec<Worker> {
    let (stop, stopped) = watch::channel(false);
    let spawn = |(nth, kind)| {
        let worker = Worker::new(stage, kind, nth, seed);
        tokio::spawn(worker.work(stopped.clone()))
    };
    let working = (0..).zip(KINDS).map(spawn).collect();
    let auditing = tokio::spawn(audit(Arc::clone(stage), stopped.clone()));
    trouble.strike(FAULTS).await;
    trouble.heal().await;
    trouble.run(Duration::from_secs(2)).await;
    stop.send_replace(true);
    let workers = all_of(trouble, "the clients' end", working).await;
    all_of(trouble, "the auditor's end", vec![auditing]).await;
    workers
}

/// Asks time and again where the group is. Whether it was told stands in the history.
async fn audit(stage: Arc<Stage>, stop: watch::Receiver<bool>) {
    let mut auditor = Auditor::new(&stage);
    while !*stop.borrow() {
        let _where = auditor.look_at_group(Duration::from_secs(2)).await;
        sleep(Duration::from_millis(250)).await;
    }
}

/// Where each key ends, once no transaction is open in it.
async fn settled_ends(stage: Arc<Stage>) -> BTreeMap<Key, u64> {
    let mut client = stage.kafka_client(0);
    let deadline = Instant::now() + TXN_TIMEOUT + SETTLING;
    loop {
        let ends = client.ends(&stage.all_keys(), deadline).await.unwrap();
        let seen = std::mem::take(&mut client.seen);
        if ends.values().all(|(stable, end)| stable == end) {
            // Everybody has had something acknowledged since: whoever says that it leads, leads.
            for seen in &seen {
                stage.note_high_watermark(seen, true);
            }
            return ends.into_iter().map(|(key, (_, end))| (key, end)).collect();
        }
        assert!(
            Instant::now() < deadline,
            "transactions stay open: {ends:?}"
        );
        sleep(Duration::from_millis(200)).await;
    }
}

/// After the faults: everybody has something acknowledged in every key, and reads everything.
async fn finish(trouble: &mut Trouble, stage: &Arc<Stage>, workers: Vec<Worker>) {
    let deadline = Instant::now() + SETTLING;
    let proving = workers
        .into_iter()
        .map(|worker| worker.prove_alive(deadline));
    let proving = proving.map(tokio::spawn).collect();
    let mut workers = Vec::new();
    for (worker, alive) in all_of(trouble, "an acknowledgement", proving).await {
        alive.unwrap();
        workers.push(worker);
    }
    let settling = vec![tokio::spawn(settled_ends(Arc::clone(stage)))];
    let ends = all_of(trouble, "the end of transactions", settling).await;
    let ends = ends.into_iter().next().unwrap();
    Auditor::new(stage).look_at_group(SETTLING).await.unwrap();

    stage.recorder.note(Note::Final);
    let deadline = Instant::now() + SETTLING;
    let read = |worker: Worker| tokio::spawn(worker.read_everything(ends.clone(), deadline));
    let reading = workers.into_iter().map(read).collect();
    let scans = all_of(trouble, "a look at everything", reading).await;
    let scans: Vec<BTreeMap<Key, Scan>> = scans.into_iter().map(|read| read.unwrap().1).collect();
    for scan in &scans {
        assert_eq!(*scan, scans[0], "readers do not find the same");
    }
    note_replicas(trouble, stage, &ends).await;
    stage.recorder.note(Note::Done);
}

/// Writes down what each replica holds of each key, when it holds all.
async fn note_replicas(trouble: &mut Trouble, stage: &Stage, ends: &BTreeMap<Key, u64>) {
    for (key, end) in ends {
        for node in 1..=NODES {
            let whole = |trouble: &Trouble| {
                let held = trouble.partition(node, *key);
                held.is_some_and(|held| held.watch().borrow().offset >= Offset(*end))
            };
            trouble.until("a replica that is level", whole).await;
            let held = trouble.partition(node, *key).unwrap();
            let (mut sum, mut next) = (Sha256::new(), Offset(0));
            while next < Offset(*end) {
                for frame in held.read(next, 1 << 20).await.unwrap().frames {
                    // The leader epoch and the base offset of a batch are made for its reader.
                    sum.update(frame.header.base_offset.get().to_be_bytes());
                    sum.update(&frame.records[21..]);
                    next = frame.header.next_offset();
                }
            }
            stage.recorder.note(Note::Replica {
                key: *key,
                node,
                from: 0,
                upto: *end,
                checksum: format!("{:x}", sum.finalize()),
            });
        }
    }
}

/// Where the history of a seed is while it is made, and stays if it is not valid.
fn history_of(seed: u64) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("histories");
    std::fs::create_dir_all(&dir).unwrap();
    dir.join(format!("{seed}-{}.jsonl", std::process::id()))
}

fn judge(history: &Path) -> Verdict {
    let mut events = Reader::new(BufReader::new(File::open(history).unwrap())).unwrap();
    let mut checker = Checker::new(events.header().clone());
    for event in &mut events {
        checker.push(event.unwrap()).unwrap();
    }
    checker.finish().unwrap()
}

/// A run from its start to the last thing read. The stage is kept where the caller finds it.
async fn run(seed: u64, history: &Path, kept: &Mutex<Option<Arc<Stage>>>) {
    let links = Arc::new(Links::new(seed));
    let stage = stage(&links, history, seed);
    *kept.lock() = Some(Arc::clone(&stage));
    let mut trouble = Trouble::new(cluster(seed).await, links, &stage, seed);
    trouble.heal().await;
    let workers = work(&mut trouble, &stage, seed).await;
    assert_eq!(stage.idle(&KINDS), Vec::<String>::new(), "seed {seed}");
    finish(&mut trouble, &stage, workers).await;
    let complaints = stage.complaints.take();
    assert!(complaints.is_empty(), "seed {seed}: {complaints:?}");
}

/// What a run comes to. One that breaks off is judged as far as it came, and fails all the same.
fn simulate(seed: u64, history: &Path) -> Verdict {
    let kept = Mutex::default();
    let running = AssertUnwindSafe(|| block_on(run(seed, history, &kept)));
    let ran = catch_unwind(running);
    let stage = kept.lock().take().unwrap();
    stage.recorder.close().unwrap();
    let verdict = judge(history);
    if let Err(broken) = ran {
        let (complaints, tally) = (stage.complaints.take(), &verdict.tally);
        eprintln!("seed {seed}, as far as it came: {complaints:?} {tally:?}");
        eprintln!("see {}", history.display());
        resume_unwind(broken);
    }
    verdict
}

#[test]
fn histories_of_simulated_nodes_are_valid() {
    for seed in seeds(3) {
        let history = history_of(seed);
        let verdict = simulate(seed, &history);
        let (tally, first) = (&verdict.tally, verdict.anomalies.first());
        assert_eq!(
            verdict.validity,
            Validity::Valid,
            "seed {seed}: {tally:?}, such as {first:?}; see {}",
            history.display()
        );
        std::fs::remove_file(history).unwrap();
    }
}
