//! Logs with transactions, held against a model that knows how each of them ended: what a reader
//! of committed records makes of a log is what the model says, whatever was cleaned, copied from
//! one replica to another, or cut short by a crash.

use trilog_model::Aborted;
use trilog_model::batch::marker;

use super::*;

/// Producers of transactions; each raises its epoch now and then.
const PRODUCERS: i64 = 3;

#[derive(Clone, Debug)]
enum What {
    /// Of nobody, or of a producer's transaction.
    Records(Option<i64>, Vec<(u8, Option<u64>)>),
    End {
        producer: i64,
        commit: bool,
    },
    Nothing,
}

/// All that was written, in order.
#[derive(Clone, Debug, Default)]
struct Story {
    entries: Vec<(Offset, What)>,
    next: Offset,
}

/// What became of transactions as of some offset.
#[derive(Clone, Debug, Default)]
struct Fates {
    open: BTreeMap<i64, Offset>,
    aborted: Vec<Aborted>,
    next: Offset,
}

impl Fates {
    fn stable(&self) -> Offset {
        self.open.values().min().copied().unwrap_or(self.next)
    }

    /// Without those that are forgotten.
    fn known(&self, forgotten: Offset) -> AbortedSet {
        let known = |one: &&Aborted| one.last_offset >= forgotten;
        self.aborted.iter().filter(known).copied().collect()
    }
}

impl Story {
    fn add(&mut self, what: What) {
        let base = self.next;
        let records = match &what {
            What::Records(_, records) => records.len() as u64,
            What::End { .. } => 1,
            What::Nothing => 0,
        };
        self.next = self.next.plus(records);
        self.entries.push((base, what));
    }

    /// As of the records below `end`.
    fn fates(&self, end: Offset) -> Fates {
        let mut fates = Fates {
            next: end,
            ..Fates::default()
        };
        for (base, what) in self.entries.iter().filter(|(base, _)| *base < end) {
            match what {
                What::Records(Some(producer), _) => {
                    fates.open.entry(*producer).or_insert(*base);
                }
                What::End { producer, commit } => {
                    let first = fates.open.remove(producer);
                    if let Some(first_offset) = first.filter(|_| !commit) {
                        fates.aborted.push(Aborted {
                            producer_id: *producer,
                            first_offset,
                            last_offset: *base,
                        });
                    }
                }
                What::Records(None, _) | What::Nothing => {}
            }
        }
        fates
    }

    /// The last committed value of each key, as of the records below `end`.
    fn view(&self, end: Offset) -> View {
        let fates = self.fates(end);
        let aborted = fates.known(Offset(0));
        let mut view = View::new();
        for (base, what) in &self.entries {
            let What::Records(producer, records) = what else {
                continue;
            };
            let undone = producer.is_some_and(|id| aborted.holds(id, *base));
            if undone || *base >= fates.stable() {
                continue;
            }
            for (key, value) in records {
                match value {
                    Some(value) => view.insert(*key, *value),
                    None => view.remove(key),
                };
            }
        }
        view
    }

    /// Something random that may follow.
    fn go_on(&self, rng: &mut SmallRng) -> What {
        let open = self.fates(self.next).open;
        let producer = rng.random_range(0..PRODUCERS);
        let record = |rng: &mut SmallRng| {
            let value = rng.random_bool(0.8).then(|| rng.random());
            (rng.random_range(0..KEYS), value)
        };
        let count = rng.random_range(1..4);
        let records = (0..count).map(|_| record(rng)).collect();
        match rng.random_range(0..20) {
            0 => What::Nothing,
            // One without a record of its own, too.
            1..5 if open.contains_key(&producer) || rng.random_bool(0.1) => What::End {
                producer,
                commit: rng.random_bool(0.5),
            },
            1..14 => What::Records(Some(producer), records),
            _ => What::Records(None, records),
        }
    }
}

fn frame_of(id: EntryId, what: &What) -> Frame {
    let by = |id: i64, sequence| ProducerState {
        id,
        epoch: 3,
        sequence,
    };
    match what {
        What::Nothing => Frame::bare(FrameKind::Data, GROUP, id, Bytes::from_static(b"command")),
        What::Records(None, records) => keyed(id, Compression::None, records, Flags::Plain),
        What::Records(Some(producer), records) => {
            let codecs = [Compression::None, Compression::Lz4];
            let codec = codecs[usize::try_from(id.index.get() % 2).unwrap()];
            let sequence = i32::try_from(id.index.get()).unwrap();
            keyed(id, codec, records, Flags::Of(by(*producer, sequence)))
        }
        What::End { producer, commit } => {
            let batch = marker(by(*producer, -1), *commit, 1, 5).unwrap();
            let mut frame = Frame::bare(FrameKind::Data, GROUP, id, Bytes::from_static(b"end"));
            frame.header.record_count = 1;
            frame.header.records_len = u32::try_from(batch.len()).unwrap();
            frame.header.records_crc = crc32c::crc32c(&batch[21..]);
            frame.records = batch;
            frame
        }
    }
}

/// What stands in a log.
#[derive(Debug, Default)]
struct Left {
    view: View,
    /// Counting records by offset.
    records: Records,
    /// Batches of transactions that were aborted, forgotten ones as well.
    aborted: Vec<(i64, Offset)>,
    ends: Vec<(i64, Offset)>,
}

/// Reads a log as a reader of committed records does who is told of the transactions `told`.
async fn read_committed(log: &GroupLog, story: &Story, told: &AbortedSet) -> Left {
    let end = log.state().next_offset;
    let fates = story.fates(end);
    let all = fates.known(Offset(0));
    let mut left = Left::default();
    for frame in read_frames(log).await {
        let batch = BatchHeader::parse(&frame.records).unwrap();
        assert_eq!(batch.check_crc(&frame.records), Ok(()));
        let (id, base) = (batch.producer_id, frame.header.base_offset);
        if batch.attributes.is_control() {
            left.ends.push((id, base));
            continue;
        }
        if batch.attributes.is_transactional() && all.holds(id, base) {
            left.aborted.push((id, base));
        }
        let undone = batch.attributes.is_transactional() && told.holds(id, base);
        if undone || base >= fates.stable() {
            continue;
        }
        for record in &batch.records(&frame.records, 1 << 20).unwrap() {
            let record = record.unwrap();
            let offset = base.plus(u64::from(record.offset_delta.unsigned_abs()));
            let text = record
                .value
                .map(|value| std::str::from_utf8(value).unwrap());
            let value = text.map(|value| value.parse().unwrap());
            let key = record.key.unwrap()[0];
            left.records.insert(offset, (key, value));
        }
    }
    left.view = view(&left.records);
    left
}

/// Every frame with records.
async fn read_frames(log: &GroupLog) -> Vec<Frame> {
    let (mut all, mut next) = (Vec::new(), Offset(0));
    loop {
        let frames = log.read_offsets(next, LogIndex(1 << 40), 3_000).await;
        let frames = frames.unwrap();
        let Some(last) = frames.last() else {
            return all;
        };
        next = last.header.next_offset();
        all.extend(
            frames
                .into_iter()
                .filter(|frame| frame.header.has_records()),
        );
    }
}

/// Three replicas, and what they agree on.
struct World {
    story: Story,
    nodes: Vec<(SimDisk, Store, GroupLog)>,
    /// All were clean below it, so markers below it may go and transactions are forgotten.
    agreed: Offset,
    /// The first replica's disk at random moments.
    crashes: Arc<Mutex<Crashes>>,
}

#[derive(Debug, Default)]
struct Crashes {
    /// As of now.
    story: Story,
    agreed: Offset,
    seen: Vec<Crash>,
}

/// The disk at one moment, what had been written by then, and what was agreed.
type Crash = (SimImage, Story, Offset);

impl World {
    async fn begin(seed: u64) -> Self {
        let mut nodes = Vec::new();
        for (n, segment_bytes) in (0..3).zip([16_000, 9_000, 23_000]) {
            let config = StoreConfig {
                segment_bytes,
                // One of them needs several passes.
                compaction_memory: if n == 1 { 7 * 48 } else { 1 << 20 },
                ..small()
            };
            let disk = disk(seed * 10 + n);
            let (store, _) = open(&disk, config).await;
            let log = store.create_group(GROUP, ReplicaId(70 + n)).await.unwrap();
            nodes.push((disk, store, log));
        }
        let crashes: Arc<Mutex<Crashes>> = Arc::default();
        let (seen, mut sample) = (Arc::clone(&crashes), SmallRng::seed_from_u64(seed));
        nodes[0].0.observe(move |disk| {
            if sample.random_bool(0.02) {
                let mut crashes = seen.lock();
                let (story, agreed) = (crashes.story.clone(), crashes.agreed);
                crashes.seen.push((disk.fork(), story, agreed));
            }
        });
        Self {
            story: Story::default(),
            nodes,
            agreed: Offset(0),
            crashes,
        }
    }

    async fn put(&mut self, what: What) {
        let leader = &self.nodes[0].2;
        let index = leader.state().last.map_or(0, |last| last.index.get() + 1);
        let frame = frame_of(EntryId::new(1 + index / 150, index), &what);
        self.story.add(what);
        self.crashes.lock().story = self.story.clone();
        append(leader, vec![frame]).await;
        leader.commit(LogIndex(index));
    }

    /// The others get what the first one has beyond them.
    async fn replicate(&self) {
        let leader = &self.nodes[0].2;
        for (_, _, log) in &self.nodes[1..] {
            let from = log.state().last.map_or(0, |last| last.index.get() + 1);
            let news = read_all(leader, from, 1 << 20).await;
            for frames in news.chunks(7) {
                follow(log, frames.to_vec()).await;
                log.commit(frames[frames.len() - 1].header.index);
            }
        }
        for (_, store, _) in &self.nodes {
            store.checkpoint().await.unwrap();
        }
    }

    async fn pass(&self, node: usize) -> CleanReport {
        let fates = self.story.fates(self.story.next);
        let plan = plan(fates.stable(), self.agreed.get());
        let log = &self.nodes[node].2;
        log.clean(plan, fates.known(self.agreed)).await.unwrap()
    }

    async fn agree(&mut self) {
        for (_, store, _) in &self.nodes {
            store.checkpoint().await.unwrap();
        }
        let clean = self.nodes.iter().map(|(_, _, log)| log.cleanness().clean);
        self.agreed = self.agreed.max(clean.min().unwrap());
        self.crashes.lock().agreed = self.agreed;
    }

    /// One begins again with nothing, and takes everything from any of the others.
    async fn replace(&mut self, node: usize, seed: u64, rng: &mut SmallRng) {
        let leader = &self.nodes[0].2;
        let Some(start) = leader.state().log_start else {
            return;
        };
        let x = start.purged.index.get();
        let disk = disk(seed);
        let (store, log) = beginner(&disk).await;
        log.set_log_start(start).await.unwrap();
        follow(&log, read_all(leader, x + 1, 1 << 20).await).await;
        log.commit(leader.state().last.unwrap().index);
        while let Some(gap) = log.gaps().first().copied() {
            let from = &self.nodes[rng.random_range(0..3)].2;
            copy(from, &log, gap).await.unwrap();
        }
        self.nodes[node] = (disk, store, log);
    }

    async fn repair(&self, node: usize, rng: &mut SmallRng) {
        let (disk, _, log) = &self.nodes[node];
        let links = log.0.state.lock().segments.links.clone();
        let sealed: Vec<_> = links.iter().filter(|link| link.sealed).collect();
        if sealed.is_empty() {
            return;
        }
        let path = &sealed[rng.random_range(0..sealed.len())].segment.path;
        damage(disk, log, path).await;
        eventually("it is set aside", || !log.gaps().is_empty()).await;
        let others = [(node + 1) % 3, (node + 2) % 3];
        copy_all(&self.nodes[others[rng.random_range(0..2)]].2, log).await;
    }

    async fn check(&self, place: &str) {
        for (n, (_, _, log)) in self.nodes.iter().enumerate() {
            check(
                log,
                &self.story,
                self.agreed,
                &format!("{place}, replica {n}"),
            )
            .await;
        }
    }
}

async fn check(log: &GroupLog, story: &Story, agreed: Offset, place: &str) {
    let end = log.state().next_offset;
    let fates = story.fates(end);
    let left = read_committed(log, story, &fates.known(agreed)).await;
    assert_eq!(left.view, story.view(end), "{place}");
    let clean = clean_end(log);
    for (offset, (key, _)) in left.records.range(..clean) {
        let mut later = left.records.range(offset.next()..clean);
        assert!(
            !later.any(|(_, other)| other.0 == *key),
            "{place}: {offset}"
        );
    }
    for (producer, base) in &left.aborted {
        assert!(*base >= clean, "{place}: {base} was aborted");
        let of = fates.aborted.iter().find(|one| {
            one.producer_id == *producer && one.first_offset <= *base && *base <= one.last_offset
        });
        let end = (*producer, of.unwrap().last_offset);
        assert!(left.ends.contains(&end), "{place}: nothing ends {base}");
    }
}

async fn tell(mut world: World, seed: u64) {
    let rng = &mut SmallRng::seed_from_u64(seed);
    for round in 0..8 {
        for _ in 0..60 {
            let what = world.story.go_on(rng);
            world.put(what).await;
        }
        world.replicate().await;
        for node in 0..3 {
            if rng.random_bool(0.7) {
                raise_x(&world.nodes[node].2).await;
            }
        }
        for _ in 0..rng.random_range(1..7) {
            world.pass(rng.random_range(0..3)).await;
        }
        world.check(&format!("seed {seed}, round {round}")).await;
        match rng.random_range(0..4) {
            0 => {
                let node = rng.random_range(1..3);
                world.replace(node, seed * 1_000 + round, rng).await;
            }
            1 => world.repair(rng.random_range(0..3), rng).await,
            _ => {}
        }
        world
            .check(&format!("seed {seed}, round {round}, copied"))
            .await;
        world.agree().await;
        world
            .check(&format!("seed {seed}, round {round}, agreed"))
            .await;
    }
    finish(&mut world, seed).await;
}

/// Everything is over, cleaned and agreed on: of each key there is one record, and of transactions
/// nothing.
async fn finish(world: &mut World, seed: u64) {
    for producer in 0..PRODUCERS {
        let commit = producer == 0;
        world.put(What::End { producer, commit }).await;
    }
    let end = world.story.next;
    for value in 0..300 {
        let records = vec![(0, Some(value))];
        world.put(What::Records(None, records)).await;
    }
    world.replicate().await;
    for (_, _, log) in &world.nodes {
        raise_x(log).await;
    }
    for _ in 0..3 {
        for node in 0..3 {
            while world.pass(node).await.partial {}
        }
        world.agree().await;
    }
    assert!(world.agreed >= end, "seed {seed}");
    world.check(&format!("seed {seed}, at the end")).await;
    for (_, _, log) in &world.nodes {
        let left = read_committed(log, &world.story, &AbortedSet::default()).await;
        assert_eq!((left.aborted.len(), left.ends.len()), (0, 0), "seed {seed}");
        let old = left.records.range(..end);
        assert!(
            old.clone().all(|(_, (_, value))| value.is_some()),
            "seed {seed}"
        );
        assert!(old.count() < usize::from(KEYS), "seed {seed}");
    }
}

#[test]
fn readers_of_committed_records_see_what_was_committed_whatever_is_cleaned_and_copied() {
    for seed in 0..12 {
        let seen: Arc<Mutex<Vec<Crash>>> = Arc::default();
        let crashes = Arc::clone(&seen);
        block_on(async move {
            let world = World::begin(seed).await;
            let log = Arc::clone(&world.crashes);
            tell(world, seed).await;
            *crashes.lock() = std::mem::take(&mut log.lock().seen);
        });
        let crashes = std::mem::take(&mut *seen.lock());
        let mut checked = 0;
        let losses = [PowerLoss::Lose, PowerLoss::Keep, PowerLoss::Scatter];
        for (n, (image, story, agreed)) in (0..).zip(crashes) {
            let loss = losses[usize::try_from(n % 3).unwrap()];
            let place = format!("seed {seed}, crash {n}, {loss:?}");
            let checked = &mut checked;
            block_on(async {
                let disk = image.power_loss(loss, n);
                let (store, report) = open(&disk, small()).await;
                assert!(!report.step_aside, "{place}: {report:?}");
                let log = store.group(GROUP).unwrap();
                // One that was struck by damage a moment before is repaired from another.
                if log.is_whole() && read_through(&log).await.is_ok() {
                    check(&log, &story, agreed, &place).await;
                    *checked += 1;
                }
                store.close().await.unwrap();
                let disk = disk.reopen().backend();
                let found = inspect(&disk, Path::new("/data"), Box::new(|_, _| {})).await;
                let damage = found.unwrap().damage;
                let unknown = damage
                    .iter()
                    .find(|damage| !damage.what.contains("set aside"));
                assert!(unknown.is_none(), "{place}: {unknown:?}");
            });
        }
        assert!(checked > 10, "seed {seed}: {checked} crashes");
    }
}
