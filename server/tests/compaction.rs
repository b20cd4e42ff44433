//! A compacted topic on whole simulated nodes: written while nodes die, leadership moves and a
//! replica comes back with nothing. At the end every replica gives the same view of the keys as
//! the writer was told, holds little else, and has lost the markers that are past their time.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each test file uses a part of it")]
mod machines;

#[path = "compaction/by_hand.rs"]
mod by_hand;
#[path = "compaction/transactional.rs"]
mod transactional;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use machines::Machines;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, timeout};
use trilog_model::batch::{BatchBuilder, BatchHeader, Compression, ProducerState};
use trilog_model::{AbortedSet, NodeId, Offset, ReplicaId, Timestamp};
use trilog_raft::controller::TopicId;
use trilog_raft::controller::commands::{Command, ConfigEntry, CreateTopic, TopicKind};
use trilog_raft::testkit::{block_on, seeds};
use trilog_server::partition::Partition;
use trilog_server::transaction::{AddRequest, BeginRequest, Coordinator, EndRequest, Identity};
use trilog_storage::env::Entropy;
use trilog_storage::log::{CLEAN_RULES, CleanPlan};

const TOPIC: &str = "state";
const KEYS: u8 = 12;
const NODES: u32 = 3;
/// How long deletion markers are kept.
const MARKERS: Duration = Duration::from_secs(20);

/// The last value of each key, none for a deleted one.
type View = BTreeMap<u8, Option<u64>>;

async fn create(all: &Machines, seed: u64, nodes: u32) {
    let configs = [
        ("cleanup.policy", "compact".to_owned()),
        ("min.cleanable.dirty.ratio", "0.2".to_owned()),
        ("delete.retention.ms", MARKERS.as_millis().to_string()),
        ("segment.ms", "20000".to_owned()),
    ];
    create_named(all, seed, (TOPIC, nodes), &configs).await;
}

async fn create_named(
    all: &Machines,
    seed: u64,
    (name, replication): (&str, u32),
    configs: &[(&str, String)],
) {
    let config = |(key, value): &(&str, String)| ConfigEntry {
        key: (*key).to_owned(),
        value: value.clone(),
    };
    let command = Command::CreateTopic(CreateTopic {
        id: TopicId::random(&Entropy::from_seed(seed)).to_wire(),
        name: name.to_owned(),
        partitions: 1,
        replication,
        configs: configs.iter().map(config).collect(),
        assignments: Vec::new(),
        kind: TopicKind::User.into(),
    });
    let cluster = all.with(1, |server| server.cluster().clone()).unwrap();
    cluster.propose(&command).await.unwrap();
    all.until("a led topic", |all| all.leader(name).is_some())
        .await;
}

/// One record; values are so long that segments fill.
fn batch(key: u8, value: Option<u64>) -> Bytes {
    let mut batch = BatchBuilder::new(Compression::None);
    let text = value.map(|value| format!("{value:0>2000}"));
    let value = text.as_ref().map(String::as_bytes);
    batch.push(5, Some(&[key]), value, &[]).unwrap();
    batch.build().unwrap()
}

/// Writes random records; one without an outcome is written again until it has one.
async fn write(all: &Machines, rng: &mut SmallRng, count: u32, told: &mut View) {
    for _ in 0..count {
        let key = rng.random_range(0..KEYS);
        let value = rng.random_bool(0.8).then(|| rng.random());
        let deadline = Instant::now() + Duration::from_mins(3);
        loop {
            assert!(Instant::now() < deadline, "nobody takes the record");
            if let Some((_, leader)) = all.leader(TOPIC) {
                let appending = leader.append(batch(key, value));
                let appended = timeout(Duration::from_secs(2), appending).await;
                if matches!(appended, Ok(Ok(_))) {
                    break;
                }
            }
            all.run(Duration::from_millis(50)).await;
        }
        told.insert(key, value);
        all.run(Duration::from_millis(rng.random_range(20..120)))
            .await;
    }
}

/// Every record a replica serves.
async fn records(partition: &Partition) -> Vec<(Offset, u8, Option<u64>)> {
    let mut found = Vec::new();
    let mut next = partition.log_start();
    loop {
        let fetched = partition.read(next, 1 << 20).await.unwrap();
        let Some(last) = fetched.frames.last() else {
            return found;
        };
        next = last.header.next_offset();
        for frame in &fetched.frames {
            let batch = BatchHeader::parse(&frame.records).unwrap();
            for record in &batch.records(&frame.records, 1 << 20).unwrap() {
                let record = record.unwrap();
                let delta = u64::from(record.offset_delta.unsigned_abs());
                let value = record
                    .value
                    .map(|value| std::str::from_utf8(value).unwrap());
                let value = value.map(|value| value.parse().unwrap());
                let key = record.key.unwrap()[0];
                found.push((frame.header.base_offset.plus(delta), key, value));
            }
        }
    }
}

async fn check(all: &Machines, told: &View, written: u64, place: &str) {
    let live = |view: &View| -> View {
        let live = view.iter().filter(|(_, value)| value.is_some());
        live.map(|(key, value)| (*key, *value)).collect()
    };
    for number in 1..=NODES {
        let partition = all.partition(number, TOPIC).unwrap();
        let mut left = records(&partition).await;
        let mut view = View::new();
        for (_, key, value) in &left {
            view.insert(*key, *value);
        }
        assert_eq!(live(&view), live(told), "{place}, node {number}");
        let clean = partition.with_state(|state| state.clean(CLEAN_RULES));
        assert!(clean > Offset(0), "{place}, node {number}: {clean}");
        let count = left.len() as u64;
        assert!(
            count < written / 2,
            "{place}, node {number}: {count} of {written}"
        );
        left.retain(|(offset, _, _)| *offset < clean);
        for (at, (offset, key, _)) in left.iter().enumerate() {
            let superseded = left[at + 1..].iter().any(|(_, later, _)| later == key);
            assert!(
                !superseded,
                "{place}, node {number}: {offset} is superseded"
            );
        }
    }
}

/// Until every replica is level, and has done what there is to do.
async fn settle(all: &Machines) {
    all.until("level replicas", |all| {
        let ends = (1..=NODES).map(|n| all.partition(n, TOPIC).map(|p| *p.watch().borrow()));
        let ends: Vec<_> = ends.collect();
        ends.iter().all(|end| end.is_some() && *end == ends[0])
            && (1..=NODES).all(|n| {
                let partition = all.partition(n, TOPIC);
                partition.is_some_and(|partition| partition.group().log().is_whole())
            })
    })
    .await;
    all.run(Duration::from_secs(30)).await;
}

/// Half of the keys are deleted and the others written on, so that time and cleaning go on: in
/// the end the markers are gone.
async fn markers_go(all: &Machines, told: &mut View, seed: u64) {
    for key in 0..KEYS / 2 {
        told.insert(key, None);
        let (_, leader) = all.leader(TOPIC).unwrap();
        leader.append(batch(key, None)).await.unwrap();
    }
    let end = all.leader(TOPIC).unwrap().1.watch().borrow().offset;
    let others = KEYS / 2..KEYS;
    for round in 0..6_u64 {
        for key in others.clone() {
            let value = Some(round * 100 + u64::from(key));
            let (_, leader) = all.leader(TOPIC).unwrap();
            for _ in 0..15 {
                leader.append(batch(key, value)).await.unwrap();
            }
            told.insert(key, value);
        }
        all.run(Duration::from_secs(25)).await;
    }
    settle(all).await;
    check(all, told, 1_000, "at the end").await;
    for number in 1..=NODES {
        let left = records(&all.partition(number, TOPIC).unwrap()).await;
        let deleted = left
            .iter()
            .filter(|(offset, _, value)| *offset < end && value.is_none());
        assert_eq!(
            deleted.count(),
            0,
            "seed {seed}, node {number}: markers stay"
        );
    }
}

fn simulate(seed: u64) {
    block_on(async move {
        let mut all = Machines::start(seed, NODES).await;
        create(&all, seed, NODES).await;
        let rng = &mut SmallRng::seed_from_u64(seed);
        let mut told = View::new();
        write(&all, rng, 250, &mut told).await;
        settle(&all).await;
        check(&all, &told, 250, "undisturbed").await;

        // A replica is down for a while, another leads, and one begins again with nothing.
        let down = rng.random_range(1..=NODES);
        all.kill(down);
        write(&all, rng, 80, &mut told).await;
        all.boot(down).await;
        settle(&all).await;
        if let Some((_, leader)) = all.leader(TOPIC) {
            let next = leader.group().replica().node().get() % NODES + 1;
            let voters = leader.group().voters();
            let to = voters
                .into_iter()
                .find(|voter| voter.node() == NodeId(next));
            drop(
                leader
                    .group()
                    .transfer_leader(to.unwrap_or(ReplicaId::new(NodeId(next), 1)))
                    .await,
            );
        }
        write(&all, rng, 80, &mut told).await;
        let lost = rng.random_range(1..=NODES);
        all.kill(lost);
        all.lose_views(lost);
        all.boot(lost).await;
        write(&all, rng, 150, &mut told).await;
        settle(&all).await;
        check(&all, &told, 560, "after the faults").await;

        // Every node anew, from what its disk holds.
        for number in 1..=NODES {
            all.kill(number);
        }
        for number in 1..=NODES {
            all.boot(number).await;
        }
        settle(&all).await;
        check(&all, &told, 560, "after a restart of all").await;

        markers_go(&all, &mut told, seed).await;
    });
}

/// Records in front of an open transaction that later ones have superseded are gone where that
/// transaction is known to be over: a reader goes on from where it begins here, and does not ask for
/// the same again and again.
#[test]
fn a_reader_passes_over_what_compaction_took_away_before_an_open_transaction() {
    block_on(async {
        let all = Machines::start(1, 1).await;
        create(&all, 1, 1).await;
        let (_, leader) = all.leader(TOPIC).unwrap();
        for value in 0..30 {
            leader.append(batch(1, Some(value))).await.unwrap();
        }
        let transactions = all.with(1, |server| server.transactions().clone()).unwrap();
        let producer = open_transaction(&all, &transactions, &leader).await;
        let begins = leader.stable_offset();
        assert_eq!(begins, Offset(30));
        for _ in 0..8 {
            leader.append(batch(1, Some(31))).await.unwrap();
            all.run(Duration::from_secs(10)).await;
        }
        let left = records(&leader).await;
        let before = left.iter().filter(|(offset, _, _)| *offset < begins);
        assert!(
            before.count() > 0,
            "nothing before it has to make way for what comes behind"
        );
        assert!(left.len() > 8, "nothing behind it is touched: {left:?}");
        clean_beyond(&leader).await;
        let fetched = leader.read(Offset(0), 1).await.unwrap();
        assert!(fetched.frames[0].header.base_offset >= begins);
        assert_eq!(leader.stable_offset(), begins, "it is open yet");
        for from in [0, 17, 30].map(Offset) {
            let settled = leader.read_stable(from, 1 << 20).await.unwrap();
            assert_eq!(settled.fetched.frames.len(), 0);
            assert_eq!((settled.next, settled.stable), (begins, begins), "{from}");
        }
        let end = EndRequest {
            id: "alpha".to_owned(),
            producer,
            commit: true,
        };
        transactions.end(end).await.unwrap();
        all.until("the end of the transaction", |_| {
            leader.stable_offset() == leader.watch().borrow().offset
        })
        .await;
        let settled = leader.read_stable(Offset(0), 1).await.unwrap();
        let first = settled.committed().fetched.frames[0].header;
        assert_eq!(first.base_offset, begins);
    });
}

/// What another replica does that knows already how the transaction ends, and gives this one a
/// copy.
async fn clean_beyond(partition: &Partition) {
    let log = partition.group().log();
    let plan = CleanPlan {
        end: partition.watch().borrow().offset,
        appended_by: Timestamp(u64::MAX),
        markers_before: Offset(0),
    };
    let deadline = Instant::now() + Duration::from_mins(1);
    while log.cleanable(&plan).clean <= partition.stable_offset() {
        assert!(Instant::now() < deadline, "X does not move");
        let last = log.cleanable(&plan).last.unwrap();
        partition.group().trim(last, Offset(0)).await.unwrap();
        log.clean(plan, AbortedSet::default()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Appends the first record of a transaction.
async fn open_transaction(
    all: &Machines,
    transactions: &Coordinator,
    leader: &Partition,
) -> Identity {
    let begin = BeginRequest {
        id: "alpha".to_owned(),
        timeout: Duration::from_mins(15),
        expected: None,
    };
    let deadline = Instant::now() + Duration::from_mins(1);
    let producer = loop {
        if transactions.locate("alpha").await.is_ok()
            && let Ok(producer) = transactions.begin(begin.clone()).await
        {
            break producer;
        }
        assert!(Instant::now() < deadline, "there is no coordinator");
        all.run(Duration::from_millis(100)).await;
    };
    let add = AddRequest {
        id: "alpha".to_owned(),
        producer,
        partitions: vec![leader.group().id()],
    };
    transactions.add(add).await.unwrap();
    let shown = transactions.show("alpha", producer, &[leader]).await;
    let shown = shown.into_iter().next().unwrap().unwrap();
    let mut batch = BatchBuilder::new(Compression::None);
    batch.set_transactional().set_producer(ProducerState {
        id: producer.producer_id,
        epoch: producer.epoch,
        sequence: 0,
    });
    batch.push(5, Some(&[2]), Some(b"2"), &[]).unwrap();
    let ticket = leader.enqueue_in_transaction(batch.build().unwrap(), shown);
    ticket.await.unwrap().committed().await.unwrap();
    producer
}

#[test]
fn every_replica_keeps_the_newest_of_each_key_whatever_becomes_of_nodes_and_leaders() {
    for seed in seeds(1) {
        simulate(seed);
    }
}

/// A partition that cannot commit, and has an entry waiting to, is asked for a tick; nobody waits
/// for that long.
#[test]
fn a_partition_without_a_quorum_does_not_keep_others_from_being_compacted() {
    block_on(async {
        let mut all = Machines::start(21, NODES).await;
        let configs = [
            ("cleanup.policy", "compact".to_owned()),
            ("max.compaction.lag.ms", "60000".to_owned()),
            ("segment.ms", "20000".to_owned()),
        ];
        create_named(&all, 1, ("stuck", 2), &configs).await;
        let (node, stuck) = all.leader("stuck").unwrap();
        let mut frees = (2..).map(|n| (n, format!("free-{n}")));
        let free = loop {
            let (seed, name) = frees.next().unwrap();
            assert!(seed < 12, "no topic has its place on node {node}");
            create_named(&all, seed, (&name, 1), &configs).await;
            let (place, free) = all.leader(&name).unwrap();
            if place == node {
                break free;
            }
        };
        let put = async |partition: &Partition, count: u64| {
            for value in 0..count {
                let appended = partition.append(batch(1, Some(value))).await;
                appended.unwrap();
            }
        };
        put(&stuck, 250).await;
        all.until("a clean log", |_| {
            stuck.with_state(|state| state.clean(CLEAN_RULES)) > Offset(0)
        })
        .await;
        put(&stuck, 80).await;
        let voters = stuck.group().voters().into_iter();
        let mut others = voters.filter(|voter| voter.node() != NodeId(node));
        all.kill(others.next().unwrap().node().get());
        let waiting = stuck.clone();
        let pending = tokio::spawn(async move { waiting.append(batch(1, Some(0))).await });
        all.run(Duration::from_secs(90)).await;
        assert!(
            !pending.is_finished() && stuck.leader().1,
            "it is not stuck"
        );
        put(&free, 250).await;
        all.until("the other is compacted", |_| {
            free.with_state(|state| state.clean(CLEAN_RULES)) > Offset(0)
        })
        .await;
        assert!(records(&free).await.len() < 200);
    });
}
