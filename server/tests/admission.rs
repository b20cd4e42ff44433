//! Admission on a simulated cluster: pipelined idempotent producers and compare-and-set writers,
//! lost replies, leaders cut off and back, leadership handed around. Each batch is in the log once,
//! in its producer's order, and every answer names the place of the original.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};
use trilog_model::batch::{BatchBuilder, BatchHeader, Compression, ProducerState};
use trilog_model::{GroupId, NodeId, Offset, ReplicaId};
use trilog_raft::testkit::{SimClock, block_on, seed_thread, seeds, small_store};
use trilog_raft::transport::sim::SimNet;
use trilog_raft::transport::{ClusterId, TransportConfig};
use trilog_raft::{KV_FAMILY, Node, RaftConfig};
use trilog_server::partition::{
    AppendError, Appended, Intake, Limits, Partition, ReadError, RecordRules, Standing, Times,
};
use trilog_server::view::isolation::{Ender, Inclusion};
use trilog_server::view::{Marker, PartitionView};
use trilog_storage::env::Entropy;
use trilog_storage::frame::Frame;
use trilog_storage::io::sim::SimDisk;
use trilog_storage::kv::Kv;
use trilog_storage::log::Retention;
use trilog_storage::store::Store;

const GROUP: GroupId = GroupId(7);
const NODES: u32 = 3;
const BATCHES: i32 = 60;
const RECORDS: i32 = 3;
/// Batches a producer has on their way at once, as Kafka's clients do.
const PIPELINE: i32 = 5;

const LIMITS: Limits = Limits {
    max_batch_bytes: 1 << 16,
    retention: Retention {
        age: None,
        bytes: None,
    },
    rules: RecordRules {
        keyed: false,
        times: Times::Created {
            before_ms: u64::MAX,
            after_ms: u64::MAX,
        },
    },
    compaction: None,
    rolling: None,
};

struct Cluster {
    net: SimNet,
    partitions: Vec<Partition>,
}

impl Cluster {
    async fn start(seed: u64) -> Self {
        seed_thread(seed);
        let entropy = Entropy::from_seed(seed);
        let net = SimNet::new(entropy.next_u64());
        let mut partitions = Vec::new();
        for number in 1..=NODES {
            partitions.push(node(NodeId(number), &net, &entropy).await);
        }
        let voters: BTreeSet<ReplicaId> = (1..=NODES)
            .map(|node| ReplicaId::new(NodeId(node), 1))
            .collect();
        for partition in &partitions {
            // Whoever heard of another's candidacy first is founded by it.
            let _ = partition.group().found(&voters).await;
        }
        Self { net, partitions }
    }

    fn leader(&self) -> Option<&Partition> {
        self.partitions
            .iter()
            .find(|partition| partition.leader().1)
    }

    /// Cuts the leader off for a while, or hands leadership on, until the writers are done.
    async fn disturb(&self, mut rng: SmallRng) {
        loop {
            sleep(Duration::from_millis(rng.random_range(100..900))).await;
            let Some(leader) = self.leader() else {
                continue;
            };
            let node = leader.group().replica().node();
            if rng.random_bool(0.5) {
                self.net.isolate(node);
                sleep(Duration::from_millis(rng.random_range(200..2_500))).await;
                self.net.heal_all();
            } else {
                let to = NodeId(node.get() % NODES + 1);
                drop(leader.group().transfer_leader(ReplicaId::new(to, 1)).await);
            }
        }
    }
}

async fn node(number: NodeId, net: &SimNet, entropy: &Entropy) -> Partition {
    let disk = SimDisk::new(entropy.next_u64());
    let clock = Arc::<SimClock>::default();
    let config = small_store(PathBuf::from("/data"));
    let fork = Entropy::from_seed(entropy.next_u64());
    let (store, _) = Store::open(config, disk.backend(), clock.clone(), fork)
        .await
        .unwrap();
    let transport = net.transport(TransportConfig::new(number, Some(ClusterId([7; 16]))));
    for peer in (1..=NODES).map(NodeId).filter(|peer| *peer != number) {
        transport.book().set(peer, SimNet::address(peer));
    }
    let raft = RaftConfig {
        quiesce_after: Some(Duration::from_millis(400)),
        ..RaftConfig::default()
    };
    let intake = Intake {
        in_flight: Arc::new(Semaphore::new(1 << 20)),
        pressure: store.pressure(),
        clock: clock.clone(),
    };
    let kv = Kv::memory(&[KV_FAMILY]);
    let node = Node::start(&raft, store, kv, transport, clock, entropy).unwrap();
    let (view, state) = PartitionView::new();
    let group = node
        .open_group(GROUP, ReplicaId::new(number, 1), view)
        .await
        .unwrap();
    // The node lives as long as its partition's task does: as long as the test.
    tokio::spawn(async move {
        let _node = node;
        std::future::pending::<()>().await;
    });
    Partition::new(group, state, intake, LIMITS)
}

fn batch(producer: i64, number: i32) -> Bytes {
    let mut batch = BatchBuilder::new(Compression::None);
    let sequence = number * RECORDS;
    batch.set_producer(ProducerState {
        id: producer,
        epoch: 0,
        sequence,
    });
    for record in 0..RECORDS {
        let value = format!("{producer}/{number}/{record}");
        batch.push(5, None, Some(value.as_bytes()), &[]).unwrap();
    }
    batch.build().unwrap()
}

/// Where each batch is, as its producer was told: every answer, not only the first.
type Answers = Arc<Mutex<BTreeMap<(i64, i32), Vec<Offset>>>>;

/// Sends batches in order, several on their way; after any failure starts again with the first
/// unanswered one, as an idempotent client does. One reply in five is lost on the way.
async fn produce(cluster: Arc<Cluster>, producer: i64, mut rng: SmallRng, answers: Answers) {
    let mut next = 0;
    while next < BATCHES {
        // As a client backs off; a leader that hands over refuses at once, and time must pass.
        sleep(Duration::from_millis(5)).await;
        let Some(leader) = cluster.leader().cloned() else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        let mut tickets = Vec::new();
        for number in next..(next + PIPELINE).min(BATCHES) {
            let Ok(ticket) = leader.enqueue(batch(producer, number), None).await else {
                break;
            };
            tickets.push((number, ticket));
        }
        for (number, ticket) in tickets {
            let answer = timeout(Duration::from_secs(3), ticket.committed()).await;
            let lost = rng.random_bool(0.2);
            match answer {
                Ok(Ok(appended)) => {
                    let mut answers = answers.lock();
                    answers
                        .entry((producer, number))
                        .or_default()
                        .push(appended.base_offset);
                    if lost || number != next {
                        break;
                    }
                    next += 1;
                }
                _ => break,
            }
        }
    }
}

/// Writes at exactly the offset it saw last; a mismatch or an unknown outcome means to look anew.
/// Returns the offsets at which it was told it succeeded.
async fn compare_and_set(cluster: Arc<Cluster>, rounds: usize) -> Vec<Offset> {
    let mut won = Vec::new();
    let mut tried = 0;
    while tried < rounds {
        let Some(leader) = cluster.leader().cloned() else {
            sleep(Duration::from_millis(20)).await;
            continue;
        };
        tried += 1;
        let seen = leader.watch().borrow().offset;
        let mut plain = BatchBuilder::new(Compression::None);
        plain.push(5, None, Some(b"cas"), &[]).unwrap();
        let Ok(ticket) = leader.enqueue(plain.build().unwrap(), Some(seen)).await else {
            continue;
        };
        match timeout(Duration::from_secs(3), ticket.committed()).await {
            Ok(Ok(appended)) => {
                assert_eq!(appended.base_offset, seen, "accepted elsewhere than asked");
                won.push(seen);
            }
            Ok(Err(AppendError::OffsetMismatch { .. })) | Err(_) => {}
            Ok(Err(_)) => sleep(Duration::from_millis(20)).await,
        }
    }
    won
}

/// Reads a replica's log: for each producer's batch, where it stands; and where plain ones do.
async fn scan(partition: &Partition) -> (BTreeMap<(i64, i32), Vec<Offset>>, BTreeSet<Offset>) {
    let (mut batches, mut plain) = (BTreeMap::new(), BTreeSet::new());
    let mut next = Offset(0);
    loop {
        let fetched = partition.read(next, 1 << 20).await.unwrap();
        let Some(last) = fetched.frames.last() else {
            return (batches, plain);
        };
        next = last.header.next_offset();
        for frame in fetched.frames {
            let header = BatchHeader::parse(&frame.records).unwrap();
            let offset = frame.header.base_offset;
            if header.is_idempotent() {
                let number = header.base_sequence / RECORDS;
                let places: &mut Vec<Offset> =
                    batches.entry((header.producer_id, number)).or_default();
                places.push(offset);
            } else {
                plain.insert(offset);
            }
        }
    }
}

async fn await_equal(cluster: &Cluster) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let ends: BTreeSet<_> = cluster
            .partitions
            .iter()
            .map(|partition| partition.watch().borrow().applied)
            .collect();
        if ends.len() == 1 && cluster.leader().is_some() {
            return;
        }
        assert!(
            Instant::now() < deadline,
            "replicas do not come together: {ends:?}"
        );
        sleep(Duration::from_millis(50)).await;
    }
}

fn judge(answers: &BTreeMap<(i64, i32), Vec<Offset>>, stored: &BTreeMap<(i64, i32), Vec<Offset>>) {
    for (place, offsets) in stored {
        assert_eq!(offsets.len(), 1, "batch {place:?} stands at {offsets:?}");
    }
    for (place, told) in answers {
        let at = stored
            .get(place)
            .unwrap_or_else(|| panic!("acknowledged {place:?} is lost"));
        assert!(
            told.iter().all(|offset| *offset == at[0]),
            "{place:?}: {told:?}, not {at:?}"
        );
    }
    for producer in [1, 2] {
        let offsets: Vec<Offset> = (0..BATCHES).map(|n| stored[&(producer, n)][0]).collect();
        assert!(
            offsets.is_sorted(),
            "producer {producer} is out of order: {offsets:?}"
        );
    }
}

/// One batch of a transaction: its producer's next, whose value is its number.
fn part(number: i32) -> Bytes {
    let mut batch = BatchBuilder::new(Compression::None);
    batch.set_transactional().set_producer(ProducerState {
        id: 5,
        epoch: 0,
        sequence: number,
    });
    let value = number.to_string();
    batch.push(5, None, Some(value.as_bytes()), &[]).unwrap();
    batch.build().unwrap()
}

fn ended(transaction: u64) -> Marker {
    Marker {
        producer_id: 5,
        epoch: 0,
        coordinator_epoch: 1,
        transaction,
        commit: transaction.is_multiple_of(2),
    }
}

/// Runs transactions of one to four batches, every second of which is aborted; a reply in five is
/// lost, and markers of earlier ones come again at any time. Returns the batches that count.
async fn transact(cluster: Arc<Cluster>, mut rng: SmallRng) -> Vec<i32> {
    let (mut number, mut counts) = (0, Vec::new());
    for transaction in 1..=40 {
        let end = number + rng.random_range(1..=4);
        while number < end {
            sleep(Duration::from_millis(5)).await;
            let Some(leader) = cluster.leader().cloned() else {
                continue;
            };
            if transaction > 1 && rng.random_bool(0.2) {
                let late = ended(rng.random_range(1..transaction));
                let late = leader.end_transaction(late, Ender::Coordinator, 5);
                drop(timeout(Duration::from_secs(3), late).await);
            }
            let native = leader.enqueue(part(number), None).await;
            assert_eq!(native.err(), Some(AppendError::NotInTransaction));
            // Only the batch's own transaction is open, so the coordinator would say yes.
            let shown = match leader.standing(5, 0) {
                Standing::Open => None,
                Standing::Unknown(since) => Some(Inclusion { since, transaction }),
            };
            let appending = async {
                let batch = part(number);
                leader
                    .enqueue_in_transaction(batch, shown)
                    .await?
                    .committed()
                    .await
            };
            let answer = timeout(Duration::from_secs(3), appending).await;
            let told = matches!(answer, Ok(Ok(_))) && !rng.random_bool(0.2);
            number += i32::from(told);
        }
        loop {
            sleep(Duration::from_millis(5)).await;
            let Some(leader) = cluster.leader().cloned() else {
                continue;
            };
            let ending = leader.end_transaction(ended(transaction), Ender::Coordinator, 5);
            let answer = timeout(Duration::from_secs(3), ending).await;
            if matches!(answer, Ok(Ok(_))) && !rng.random_bool(0.2) {
                break;
            }
        }
        if ended(transaction).commit {
            let first = counts.last().map_or(0, |last: &(i32, i32)| last.1);
            counts.push((first, end));
        } else {
            counts.push((end, end));
        }
    }
    counts.into_iter().flat_map(|(from, to)| from..to).collect()
}

/// What a reader of committed records gets, by the batches' numbers.
async fn committed(partition: &Partition) -> Vec<i32> {
    let (mut numbers, mut next) = (Vec::new(), Offset(0));
    loop {
        let settled = partition.read_stable(next, 1 << 20).await.unwrap();
        if settled.next == next {
            assert_eq!(settled.stable, partition.watch().borrow().offset);
            return numbers;
        }
        next = settled.next;
        for frame in settled.committed().fetched.frames {
            let header = BatchHeader::parse(&frame.records).unwrap();
            numbers.push(header.base_sequence);
        }
    }
}

fn simulate_transactions(seed: u64) {
    block_on(async move {
        let cluster = Arc::new(Cluster::start(seed).await);
        let mut rng = SmallRng::seed_from_u64(seed);
        let disturber = {
            let (cluster, rng) = (Arc::clone(&cluster), SmallRng::seed_from_u64(rng.random()));
            tokio::spawn(async move { cluster.disturb(rng).await })
        };
        let transacting = transact(Arc::clone(&cluster), rng);
        let counts = timeout(Duration::from_mins(10), transacting)
            .await
            .expect("progress");
        disturber.abort();
        cluster.net.heal_all();
        await_equal(&cluster).await;
        let mut hashes = BTreeSet::new();
        for partition in &cluster.partitions {
            assert_eq!(committed(partition).await, counts, "seed {seed}");
            hashes.insert(partition.group().with_view(trilog_raft::View::hash));
        }
        assert_eq!(
            hashes.len(),
            1,
            "seed {seed}: the views of the replicas differ"
        );
    });
}

#[test]
fn transactions_count_as_a_whole_or_not_at_all_whatever_becomes_of_leaders_and_markers() {
    for seed in seeds(5) {
        simulate_transactions(seed);
    }
}

fn simulate(seed: u64) {
    block_on(async move {
        let cluster = Arc::new(Cluster::start(seed).await);
        let mut rng = SmallRng::seed_from_u64(seed);
        let answers = Answers::default();
        let disturber = {
            let (cluster, rng) = (Arc::clone(&cluster), SmallRng::seed_from_u64(rng.random()));
            tokio::spawn(async move { cluster.disturb(rng).await })
        };
        let producers = [1, 2].map(|producer| {
            let rng = SmallRng::seed_from_u64(rng.random());
            tokio::spawn(produce(
                Arc::clone(&cluster),
                producer,
                rng,
                Arc::clone(&answers),
            ))
        });
        let writer = tokio::spawn(compare_and_set(Arc::clone(&cluster), 60));
        for producer in producers {
            timeout(Duration::from_mins(10), producer)
                .await
                .expect("progress")
                .unwrap();
        }
        let won = timeout(Duration::from_mins(10), writer)
            .await
            .expect("progress")
            .unwrap();
        disturber.abort();
        cluster.net.heal_all();
        await_equal(&cluster).await;

        let mut hashes = BTreeSet::new();
        for partition in &cluster.partitions {
            let (stored, plain) = scan(partition).await;
            judge(&answers.lock(), &stored);
            assert!(
                won.iter().all(|offset| plain.contains(offset)),
                "a won write is gone"
            );
            hashes.insert(partition.group().with_view(trilog_raft::View::hash));
        }
        assert_eq!(hashes.len(), 1, "the views of the replicas differ");
    });
}

#[test]
fn every_batch_is_appended_once_whatever_becomes_of_leaders_and_replies() {
    for seed in seeds(5) {
        simulate(seed);
    }
}

/// Sends one batch, again until a leader takes it.
async fn append(cluster: &Cluster, bytes: &Bytes) -> Appended {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        assert!(Instant::now() < deadline, "no leader takes the batch");
        sleep(Duration::from_millis(20)).await;
        let Some(leader) = cluster.leader().cloned() else {
            continue;
        };
        if let Ok(appended) = leader.append(bytes.clone()).await {
            return appended;
        }
    }
}

/// The times that all batches of a replica bear, each of which must be whole.
async fn stamps(partition: &Partition) -> Vec<i64> {
    let fetched = partition.read(Offset(0), 1 << 20).await.unwrap();
    let stamp = |frame: &Frame| {
        let header = BatchHeader::parse(&frame.records).unwrap();
        assert_eq!(header.check_crc(&frame.records), Ok(()));
        assert!(header.attributes.is_append_time());
        assert!(header.max_timestamp <= frame.header.append_time.as_millis());
        header.max_timestamp
    };
    fetched.frames.iter().map(stamp).collect()
}

#[test]
fn records_with_the_time_of_their_append_have_it_everywhere_and_a_repeat_is_told_the_same() {
    for seed in seeds(3) {
        block_on(async move {
            let cluster = Cluster::start(seed).await;
            for partition in &cluster.partitions {
                partition.set_limits(Limits {
                    rules: RecordRules {
                        keyed: false,
                        times: Times::Appended,
                    },
                    ..LIMITS
                });
            }
            let mut told = Vec::new();
            for number in 0..4 {
                let first = append(&cluster, &batch(1, number)).await;
                let again = append(&cluster, &batch(1, number)).await;
                assert!(again.duplicate && !first.duplicate);
                assert_eq!(again.stamped, first.stamped);
                told.push(first.stamped.unwrap());
                let Some(leader) = cluster.leader() else {
                    continue;
                };
                // The next leader's clock need not be the same; its times go on all the same.
                let next = leader.group().replica().node().get() % NODES + 1;
                let to = ReplicaId::new(NodeId(next), 1);
                drop(leader.group().transfer_leader(to).await);
            }
            await_equal(&cluster).await;
            assert!(told.is_sorted(), "{told:?}");
            for partition in &cluster.partitions {
                assert_eq!(stamps(partition).await, told);
                let found = partition.first_since(told[2]).await.unwrap().unwrap();
                let stamped = told.iter().position(|time| *time == told[2]).unwrap();
                assert_eq!(found.timestamp, told[2]);
                assert_eq!(
                    found.offset,
                    Offset(stamped as u64 * u64::from(RECORDS.unsigned_abs()))
                );
            }
        });
    }
}

/// What is between nodes when a leader is replaced that does not hear of it.
#[derive(Clone, Copy, Debug)]
enum Between {
    Silence,
    /// Others take its process for ended, and do not wait for its lease.
    Refusal,
}

/// A leader that another has taken the place of, and that has not heard of it, has not seen what its
/// producers have sent since: what it would refuse for that is the other's to judge.
fn replaced_leader_refuses_nothing_it_has_not_seen(between: Between, seed: u64) {
    block_on(async {
        let mut cluster = Cluster::start(seed).await;
        append(&cluster, &batch(1, 0)).await;
        let old = cluster.leader().unwrap().clone();
        let node = old.group().replica().node();
        match between {
            Between::Silence => cluster.net.isolate(node),
            Between::Refusal => cluster.net.reject(node),
        }
        cluster
            .partitions
            .retain(|one| one.group().replica() != old.group().replica());
        let next = append(&cluster, &batch(1, 1)).await.base_offset;

        let out_of_order = old.append(batch(1, 2)).await;
        let not_leader = matches!(out_of_order, Err(AppendError::NotLeader { .. }));
        assert!(not_leader, "{out_of_order:?}");
        let expect = Some(Offset(next.get() + 3));
        let ticket = old.enqueue(batch(2, 0), expect).await.unwrap();
        let mismatch = ticket.committed().await;
        let not_leader = matches!(mismatch, Err(AppendError::NotLeader { .. }));
        assert!(not_leader, "{mismatch:?}");
        // A reader that has been at the other already would go back to where this one ends.
        let beyond = next.plus(3);
        let read = old.read(beyond, 1 << 20).await;
        assert!(matches!(read, Err(ReadError::NotLeader { .. })), "{read:?}");

        let leader = cluster.leader().unwrap();
        let read = leader.read(beyond.plus(1), 1 << 20).await;
        assert!(
            matches!(read, Err(ReadError::OutOfRange { .. })),
            "{read:?}"
        );
        let refused = leader.append(batch(1, 3)).await;
        assert_eq!(refused, Err(AppendError::OutOfOrder { expected: 6 }));
        assert!(leader.append(batch(1, 2)).await.is_ok());
    });
}

#[test]
fn who_was_replaced_refuses_nothing_for_what_it_has_not_seen() {
    replaced_leader_refuses_nothing_it_has_not_seen(Between::Silence, 5);
}

#[test]
fn who_was_taken_for_dead_refuses_nothing_for_what_it_has_not_seen() {
    // Who stands first, and how soon, is drawn: some are elected within the lease.
    for seed in 0..20 {
        replaced_leader_refuses_nothing_it_has_not_seen(Between::Refusal, seed);
    }
}
