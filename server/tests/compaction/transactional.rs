//! A compacted topic that is written by transactions: two producers take turns in it, and either
//! may be aborted. What readers of committed records make of it is what the writer was told.

use std::collections::BTreeSet;

use trilog_server::partition::Settled;
use trilog_storage::frame::Frame;

use super::*;

const IDS: [&str; 2] = ["alpha", "beta"];

/// What one of two producers writes, whose transactions are open at the same time.
#[derive(Clone, Debug)]
struct Turn {
    records: Vec<(usize, u8, Option<u64>)>,
    commit: [bool; 2],
}

impl Turn {
    fn random(rng: &mut SmallRng) -> Self {
        let record = |rng: &mut SmallRng| {
            let value = rng.random_bool(0.8).then(|| rng.random());
            (rng.random_range(0..2), rng.random_range(0..KEYS), value)
        };
        let count = rng.random_range(2..6);
        let records = (0..count).map(|_| record(rng)).collect();
        Self {
            records,
            commit: [rng.random_bool(0.7), rng.random_bool(0.4)],
        }
    }

    fn told(&self, told: &mut View) {
        for (producer, key, value) in &self.records {
            if self.commit[*producer] {
                told.insert(*key, *value);
            }
        }
    }
}

/// The node that coordinates an id.
async fn coordinator(all: &Machines, id: &str) -> Option<Coordinator> {
    for number in 1..=NODES {
        let asked = all.with(number, |server| server.transactions().clone());
        if let Some(asked) = asked
            && let Ok(Ok(node)) = timeout(Duration::from_secs(3), asked.locate(id)).await
        {
            return all.with(node.get(), |server| server.transactions().clone());
        }
    }
    None
}

/// Both transactions; none if anything of it had no outcome.
async fn attempt(all: &Machines, turn: &Turn) -> Option<()> {
    let (_, leader) = all.leader(TOPIC)?;
    let mut producers = Vec::new();
    for id in IDS {
        let coordinator = coordinator(all, id).await?;
        let begin = BeginRequest {
            id: id.to_owned(),
            timeout: Duration::from_mins(1),
            expected: None,
        };
        let producer = coordinator.begin(begin).await.ok()?;
        let add = AddRequest {
            id: id.to_owned(),
            producer,
            partitions: vec![leader.group().id()],
        };
        coordinator.add(add).await.ok()?;
        producers.push((coordinator, producer));
    }
    let mut sequences = [0, 0];
    for (nth, key, value) in &turn.records {
        let (coordinator, producer) = &producers[*nth];
        let shown = coordinator.show(IDS[*nth], *producer, &[&leader]).await;
        let shown = shown.into_iter().next()?.ok()?;
        let state = ProducerState {
            id: producer.producer_id,
            epoch: producer.epoch,
            sequence: sequences[*nth],
        };
        sequences[*nth] += 1;
        let mut batch = BatchBuilder::new(Compression::None);
        batch.set_transactional().set_producer(state);
        let text = value.map(|value| format!("{value:0>2000}"));
        let value = text.as_ref().map(String::as_bytes);
        batch.push(5, Some(&[*key]), value, &[]).unwrap();
        let ticket = leader.enqueue_in_transaction(batch.build().unwrap(), shown);
        ticket.await.ok()?.committed().await.ok()?;
    }
    for (nth, (coordinator, producer)) in producers.into_iter().enumerate() {
        let end = EndRequest {
            id: IDS[nth].to_owned(),
            producer,
            commit: turn.commit[nth],
        };
        coordinator.end(end).await.ok()?;
    }
    Some(())
}

/// Random transactions; two without an outcome are written again until they have one.
async fn transact(all: &Machines, rng: &mut SmallRng, count: u32, told: &mut View) {
    for _ in 0..count {
        write_turn(all, &Turn::random(rng), told).await;
    }
}

async fn write_turn(all: &Machines, turn: &Turn, told: &mut View) {
    let deadline = Instant::now() + Duration::from_mins(5);
    while timeout(Duration::from_secs(20), attempt(all, turn)).await != Ok(Some(())) {
        assert!(Instant::now() < deadline, "nobody takes the transactions");
        all.run(Duration::from_millis(200)).await;
    }
    turn.told(told);
    all.run(Duration::from_millis(20)).await;
}

/// What Kafka's clients deliver of one answer: a producer is skipped from where its aborted
/// transaction begins, up to a marker that says so.
fn delivered(settled: &Settled) -> Vec<Frame> {
    let mut aborted = settled.aborted.clone();
    aborted.sort_by_key(|one| one.first_offset);
    let (mut begun, mut skipped) = (0, BTreeSet::new());
    let mut left = Vec::new();
    for frame in &settled.fetched.frames {
        let batch = BatchHeader::parse(&frame.records).unwrap();
        let last = Offset(frame.header.next_offset().get() - 1);
        while aborted
            .get(begun)
            .is_some_and(|one| one.first_offset <= last)
        {
            skipped.insert(aborted[begun].producer_id);
            begun += 1;
        }
        if batch.attributes.is_control() {
            skipped.remove(&batch.producer_id);
        } else if !batch.attributes.is_transactional() || !skipped.contains(&batch.producer_id) {
            left.push(frame.clone());
        }
    }
    left
}

/// What readers of committed records get of a replica, and how many records it holds below
/// `before`.
async fn read_committed(partition: &Partition, before: Offset) -> (View, usize) {
    let (mut view, mut held) = (View::new(), 0);
    let mut next = partition.log_start();
    let end = partition.stable_offset();
    while next < end {
        let settled = partition.read_stable(next, 20_000).await.unwrap();
        let frames = delivered(&settled);
        let header = |frame: &Frame| frame.header;
        let native = settled.clone().committed().fetched.frames;
        let native: Vec<_> = native.iter().map(header).collect();
        assert_eq!(frames.iter().map(header).collect::<Vec<_>>(), native);
        assert!(settled.next > next, "a reader does not get on from {next}");
        next = settled.next;
        let old = |frame: &&Frame| frame.header.base_offset < before;
        held += settled.fetched.frames.iter().filter(old).count();
        for frame in &frames {
            let batch = BatchHeader::parse(&frame.records).unwrap();
            for record in &batch.records(&frame.records, 1 << 20).unwrap() {
                let record = record.unwrap();
                let text = record.value.map(|text| std::str::from_utf8(text).unwrap());
                let value = text.map(|text| text.parse().unwrap());
                view.insert(record.key.unwrap()[0], value);
            }
        }
    }
    view.retain(|_, value| value.is_some());
    (view, held)
}

/// Every replica gives the same, and holds less than `most` records.
async fn check(all: &Machines, told: &View, (before, most): (Offset, usize), place: &str) {
    let mut live = told.clone();
    live.retain(|_, value| value.is_some());
    for number in 1..=NODES {
        let partition = all.partition(number, TOPIC).unwrap();
        assert!(
            partition.stable_offset() >= before,
            "{place}, node {number}"
        );
        let (view, held) = read_committed(&partition, before).await;
        assert_eq!(view, live, "{place}, node {number}");
        assert!(held < most, "{place}, node {number}: {held} of {before}");
    }
}

/// Time goes on with new records until what was written before is past all times to be kept.
async fn age(all: &Machines, told: &mut View) {
    for round in 0..8_u64 {
        for _ in 0..60 {
            let (_, leader) = all.leader(TOPIC).unwrap();
            leader.append(batch(0, Some(round))).await.unwrap();
        }
        told.insert(0, Some(round));
        all.run(Duration::from_secs(25)).await;
    }
    settle(all).await;
}

fn simulate(seed: u64) {
    block_on(async move {
        let mut all = Machines::start(seed, NODES).await;
        create(&all, seed, NODES).await;
        let rng = &mut SmallRng::seed_from_u64(seed);
        let mut told = View::new();
        transact(&all, rng, 40, &mut told).await;
        settle(&all).await;
        let end = all.leader(TOPIC).unwrap().1.stable_offset();
        check(&all, &told, (end, usize::MAX), "undisturbed").await;

        // A replica is down for a while, and one begins again with nothing.
        let down = rng.random_range(1..=NODES);
        all.kill(down);
        transact(&all, rng, 15, &mut told).await;
        all.boot(down).await;
        settle(&all).await;
        check(&all, &told, (end, usize::MAX), "after a crash").await;
        let lost = rng.random_range(1..=NODES);
        all.kill(lost);
        all.lose_views(lost);
        all.boot(lost).await;
        transact(&all, rng, 25, &mut told).await;
        settle(&all).await;
        check(&all, &told, (end, usize::MAX), "after a loss").await;

        // Every node anew, from what its disk holds.
        for number in 1..=NODES {
            all.kill(number);
        }
        for number in 1..=NODES {
            all.boot(number).await;
        }
        settle(&all).await;
        check(&all, &told, (end, usize::MAX), "after a restart of all").await;

        let end = all.leader(TOPIC).unwrap().1.stable_offset();
        age(&all, &mut told).await;
        let most = usize::from(KEYS) + 1;
        check(&all, &told, (end, most), "at the end").await;
        for number in 1..=NODES {
            let partition = all.partition(number, TOPIC).unwrap();
            let count = partition.unsettled().1;
            assert_eq!(
                count, 0,
                "seed {seed}, node {number}: aborted ones are kept"
            );
        }
    });
}

#[test]
fn every_replica_gives_what_was_committed_and_lets_go_of_the_rest() {
    for seed in seeds(1) {
        simulate(seed);
    }
}
