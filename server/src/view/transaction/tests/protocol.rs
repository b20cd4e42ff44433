//! The whole protocol over the pure parts, under a seed: producers and rivals of the same ids, a
//! coordinator that is replaced at any time, partitions, and a network that loses replies and
//! delivers batches and markers late and again. Each seed runs twice and gives one trace.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use trilog_model::Offset;

use super::*;
use crate::view::isolation::{self, Ender, Inclusion, Isolation, MarkerVerdict, Open};
use crate::view::producers::{self, Producers, Publisher, Verdict};
use crate::view::{Aborted, Marker};

const PARTITIONS: usize = 3;
const STEPS: usize = 600;

/// What a transaction wrote: by its number among all.
type Tag = usize;

#[derive(Clone, Copy, Debug)]
enum Entry {
    Data(i64, Tag),
    End,
}

#[derive(Default)]
struct Partition {
    producers: Producers,
    isolation: Isolation,
    log: Vec<Entry>,
}

#[derive(Clone, Copy, Debug)]
struct Batch {
    id: usize,
    producer: Identity,
    sequence: i32,
    tag: Tag,
}

impl Partition {
    fn end(&self) -> Offset {
        Offset(self.log.len() as u64)
    }

    /// True if the batch is in the log.
    fn admit(&mut self, batch: &Batch, shown: Option<Inclusion>, time: Timestamp) -> bool {
        let publisher = Publisher {
            producer_id: batch.producer.producer_id,
            epoch: batch.producer.epoch,
            first_sequence: batch.sequence,
            records: 1,
        };
        match producers::Drain::over(&self.producers).judge(&publisher) {
            Verdict::Accept => {}
            Verdict::Duplicate(_) => return true,
            Verdict::OutOfOrder { .. } | Verdict::Fenced { .. } => return false,
        }
        let mut drain = isolation::Drain::over(&self.isolation);
        if drain.judge(&publisher, true, shown).is_err() {
            return false;
        }
        let offset = self.end();
        if let Some(transaction) = drain.accept(&publisher, shown) {
            let open = Open {
                epoch: publisher.epoch,
                transaction,
                first_offset: offset,
            };
            self.isolation.opened(publisher.producer_id, open);
        }
        self.producers.replay(&publisher, offset, time);
        self.log.push(Entry::Data(publisher.producer_id, batch.tag));
        true
    }

    /// True if the marker, or a later one, is in the log.
    fn mark(&mut self, mut marker: Marker, ender: Ender, time: Timestamp) -> bool {
        let drain = isolation::Drain::over(&self.isolation);
        let verdict = match ender {
            Ender::Coordinator => drain.judge_marker(&marker),
            Ender::Operator { begins } => drain.judge_operators(&mut marker, begins),
        };
        match verdict {
            MarkerVerdict::Append => {}
            MarkerVerdict::Done(_) | MarkerVerdict::Pending(_) => return true,
            MarkerVerdict::Stale | MarkerVerdict::NotOpen => return false,
        }
        let decided = ender == Ender::Coordinator && drain.ends(&marker);
        let (id, epoch) = (marker.producer_id, i16::try_from(marker.epoch).unwrap());
        let fenced = producers::Drain::over(&self.producers).judge_epoch(id, epoch);
        if fenced != Verdict::Accept && !decided {
            return true;
        }
        self.isolation.ended(&marker, self.end());
        self.producers.mark(id, epoch, time);
        self.log.push(Entry::End);
        true
    }

    /// The transactions whose records count, each as often as it has records here.
    fn counts(&self) -> Vec<Tag> {
        let aborted: Vec<Aborted> = self.isolation.aborted(Offset(0), self.end()).collect();
        let each = self.log.iter().zip(0..).filter_map(|(entry, at)| {
            let Entry::Data(producer, tag) = *entry else {
                return None;
            };
            let undone = aborted.iter().any(|one| {
                one.producer_id == producer
                    && (one.first_offset.get()..=one.last_offset.get()).contains(&at)
            });
            (!undone).then_some(tag)
        });
        each.collect()
    }
}

/// What is on its way and may come at any time, or never.
#[derive(Clone, Copy, Debug)]
enum Late {
    Batch(usize, Batch),
    /// The coordinator has said yes; the batch is yet to be admitted.
    Shown(usize, Batch, Inclusion),
    Marker(usize, Marker),
}

#[derive(Default)]
struct Client {
    id: usize,
    producer: Option<Identity>,
    sequences: BTreeMap<usize, i32>,
    tag: Tag,
    wrote: BTreeSet<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Told {
    Committed,
    Aborted,
    Nothing,
}

struct World {
    rng: SmallRng,
    second: u64,
    coordinator: i32,
    transactions: Transactions,
    partitions: Vec<Partition>,
    late: Vec<Late>,
    fresh: i64,
    told: BTreeMap<Tag, (Told, usize)>,
    /// What is left of the coordinator if it loses its newest entries; and whether it does.
    old: Vec<u8>,
    loses: bool,
    trace: DefaultHasher,
    tags: Tag,
}

fn name(id: usize) -> String {
    format!("id-{id}")
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            rng: SmallRng::seed_from_u64(seed),
            second: 1,
            coordinator: 1,
            transactions: Transactions::default(),
            partitions: (0..PARTITIONS).map(|_| Partition::default()).collect(),
            late: Vec::new(),
            fresh: 0,
            told: BTreeMap::new(),
            old: Vec::new(),
            loses: false,
            trace: DefaultHasher::new(),
            tags: 0,
        }
    }

    fn now(&self) -> Timestamp {
        at(self.second).time
    }

    fn least(&self) -> u64 {
        u64::from(self.coordinator.unsigned_abs()) << 32
    }

    fn known(&self, id: usize) -> Option<Transaction> {
        let known = self.transactions.get(&name(id));
        known.map(|known| known.transaction.clone())
    }

    fn put(&mut self, id: usize, next: Transaction) {
        next.hash(&mut self.trace);
        replay(&mut self.transactions, &name(id), next, self.second);
    }

    /// A marker to each partition of what is decided; some are lost, some come again later.
    fn finish(&mut self, id: usize) {
        let Some(decided) = self.known(id).filter(|known| known.phase().is_ending()) else {
            return;
        };
        let marker = Marker {
            producer_id: decided.producer_id,
            epoch: decided.epoch,
            coordinator_epoch: self.coordinator,
            transaction: decided.number,
            commit: decided.phase() == Phase::PrepareCommit,
        };
        let mut all = true;
        for partition in &decided.partitions {
            let index = usize::try_from(*partition).unwrap();
            if self.rng.random_bool(0.3) {
                self.late.push(Late::Marker(index, marker));
            }
            let written = self.rng.random_bool(0.8);
            let now = self.now();
            let partition = &mut self.partitions[index];
            all &= written && partition.mark(marker, Ender::Coordinator, now);
        }
        if all {
            self.put(id, machine::complete(&decided));
        }
    }

    fn deliver(&mut self, late: Late) {
        let now = self.now();
        match late {
            Late::Marker(index, marker) => {
                self.partitions[index].mark(marker, Ender::Coordinator, now);
            }
            Late::Shown(index, batch, shown) => {
                self.partitions[index].admit(&batch, Some(shown), now);
            }
            Late::Batch(index, batch) => {
                self.append(index, &batch);
            }
        }
    }

    /// As the leader of a partition takes a batch. `None`: nobody was told anything.
    fn append(&mut self, index: usize, batch: &Batch) -> Option<bool> {
        let partition = &self.partitions[index];
        let open = partition.isolation.open(batch.producer.producer_id);
        let is_open = open.is_some_and(|open| open.epoch == batch.producer.epoch);
        let shown = if is_open {
            None
        } else {
            let since = partition.end();
            let known = self.known(batch.id);
            let asked = machine::shows(known.as_ref(), batch.producer, &[index as u64]);
            match asked {
                Ok((transaction, within)) if within == [true] => {
                    Some(Inclusion { since, transaction })
                }
                Err(Refused::Concurrent) => return None,
                Ok(_) | Err(_) => return Some(false),
            }
        };
        if let Some(shown) = shown
            && self.rng.random_bool(0.2)
        {
            self.late.push(Late::Shown(index, *batch, shown));
            return None;
        }
        let now = self.now();
        Some(self.partitions[index].admit(batch, shown, now))
    }

    fn begin(&mut self, client: &mut Client) {
        let known = self.known(client.id);
        let begun = machine::begin(known.as_ref(), None, 20_000, Some(self.fresh));
        self.fresh += 1;
        match begun {
            Ok(Begin::Put(next)) => {
                client.producer = Some(next.identity());
                client.sequences.clear();
                client.wrote.clear();
                self.put(client.id, next);
            }
            Ok(Begin::Abort(next)) => self.put(client.id, next),
            Ok(Begin::Is(_) | Begin::NeedsId) | Err(_) => {}
        }
    }

    /// The client's next step; replies may be lost, and then it does the same again.
    fn step(&mut self, client: &mut Client) {
        let Some(producer) = client.producer else {
            self.begin(client);
            return;
        };
        if client.wrote.is_empty() {
            self.tags += 1;
            client.tag = self.tags;
        }
        if client.wrote.len() < PARTITIONS && self.rng.random_bool(0.7) {
            self.write(client, producer);
        } else if !client.wrote.is_empty() {
            self.end(client, producer);
        }
    }

    fn write(&mut self, client: &mut Client, producer: Identity) {
        let index = self.rng.random_range(0..PARTITIONS);
        let known = self.known(client.id);
        match machine::add(known.as_ref(), producer, &[index as u64], self.least()) {
            Ok(Next::Is) => {}
            Ok(Next::Put(next)) => self.put(client.id, next),
            Err(Refused::Concurrent) => return,
            Err(_) => return self.give_up(client, Told::Aborted),
        }
        let sequence = client.sequences.get(&index).copied().unwrap_or(0);
        let batch = Batch {
            id: client.id,
            producer,
            sequence,
            tag: client.tag,
        };
        for _ in 0..4 {
            if self.rng.random_bool(0.2) {
                self.late.push(Late::Batch(index, batch));
            }
            let told = self
                .append(index, &batch)
                .filter(|_| self.rng.random_bool(0.8));
            match told {
                Some(true) => {
                    client.sequences.insert(index, sequence + 1);
                    client.wrote.insert(index);
                    return;
                }
                Some(false) => return self.give_up(client, Told::Aborted),
                None => {}
            }
        }
        // It does not know whether that was written: it aborts, and begins anew. The abort bears
        // the epoch that the batch has, which may still be on its way.
        let known = self.known(client.id);
        if let Ok(Next::Put(next)) = machine::end(known.as_ref(), producer, false) {
            self.put(client.id, next);
        }
        self.give_up(client, Told::Aborted);
    }

    fn end(&mut self, client: &mut Client, producer: Identity) {
        let commit = self.rng.random_bool(0.7);
        let mut asked = 0;
        loop {
            asked += 1;
            let known = self.known(client.id);
            match machine::end(known.as_ref(), producer, commit) {
                Ok(next) => {
                    if let Some(next) = put(next) {
                        self.put(client.id, next);
                    }
                    if self.rng.random_bool(0.7) {
                        let told = if commit {
                            Told::Committed
                        } else {
                            Told::Aborted
                        };
                        self.told.insert(client.tag, (told, client.wrote.len()));
                        client.wrote.clear();
                        return;
                    }
                }
                // Its own decision, which is being written.
                Err(Refused::Concurrent) => {}
                Err(_) => {
                    let told = if commit { Told::Nothing } else { Told::Aborted };
                    return self.give_up(client, told);
                }
            }
            if asked > 1 {
                self.finish(client.id);
            }
            if self.rng.random_bool(0.05) {
                let told = if commit { Told::Nothing } else { Told::Aborted };
                return self.give_up(client, told);
            }
        }
    }

    fn give_up(&mut self, client: &mut Client, told: Told) {
        self.told.insert(client.tag, (told, client.wrote.len()));
        client.producer = None;
        client.wrote.clear();
    }

    fn time_out(&mut self) {
        let overdue: Vec<String> = self.transactions.overdue(self.now()).cloned().collect();
        for id in 0..2 {
            if overdue.contains(&name(id))
                && let Some(known) = self.known(id)
            {
                self.put(id, machine::fence(&known));
            }
        }
    }

    fn run(&mut self) {
        let client = |id| Client {
            id,
            ..Client::default()
        };
        let mut clients = [client(0), client(0), client(1)];
        for _ in 0..STEPS {
            match self.rng.random_range(0..100) {
                0..60 => {
                    let which = self.rng.random_range(0..clients.len());
                    self.step(&mut clients[which]);
                }
                60..80 => {
                    let id = self.rng.random_range(0..2);
                    self.finish(id);
                }
                80..92 if !self.late.is_empty() => {
                    let which = self.rng.random_range(0..self.late.len());
                    let late = self.late[which];
                    if self.rng.random_bool(0.7) {
                        self.late.swap_remove(which);
                    }
                    self.deliver(late);
                }
                92..94 => {
                    self.coordinator += 1;
                    let restored = Transactions::restore(&self.transactions.snapshot());
                    self.transactions = restored.unwrap();
                }
                94 if self.loses => self.lose(),
                94..97 => self.second += self.rng.random_range(1..15),
                _ => self.time_out(),
            }
        }
        for client in &mut clients {
            if !client.wrote.is_empty() {
                self.give_up(client, Told::Aborted);
            }
        }
        // Whatever was left open is aborted for its time; then what is late still comes.
        for _ in 0..60 {
            self.second += 30;
            self.time_out();
            self.finish(0);
            self.finish(1);
        }
        for late in std::mem::take(&mut self.late) {
            self.deliver(late);
        }
        for late in std::mem::take(&mut self.late) {
            self.deliver(late);
        }
    }

    /// A recovery that accepts a loss: the coordinator is as it was some time ago, in a far later
    /// term. The next one begins from what there is now.
    fn lose(&mut self) {
        self.transactions = Transactions::restore(&self.old).unwrap();
        self.coordinator += 1 << 16;
        self.old = self.transactions.snapshot();
    }

    /// Every id has a transaction with all partitions, and operators end the rest.
    fn clear(&mut self) {
        for id in 0..2 {
            for _ in 0..3 {
                let mut client = Client {
                    id,
                    ..Client::default()
                };
                self.begin(&mut client);
                self.finish(id);
                let Some(producer) = client.producer else {
                    continue;
                };
                let all: Vec<u64> = (0..PARTITIONS as u64).collect();
                let known = self.known(id);
                let next = machine::add(known.as_ref(), producer, &all, self.least());
                self.put(id, put(next.unwrap()).unwrap());
                let known = self.known(id);
                let next = machine::end(known.as_ref(), producer, false);
                self.put(id, put(next.unwrap()).unwrap());
                while self.known(id).unwrap().phase().is_ending() {
                    self.finish(id);
                }
            }
        }
    }

    /// Ends what is left open of producers that no coordinator knows, as an operator would.
    fn end_orphans(&mut self) -> usize {
        let mut ended = 0;
        let known: Vec<i64> = (0..2)
            .filter_map(|id| Some(self.known(id)?.producer_id))
            .collect();
        let now = self.now();
        for partition in &mut self.partitions {
            let open: Vec<(i64, Open)> = partition.isolation.all_open().collect();
            for (producer_id, open) in open {
                assert!(!known.contains(&producer_id), "it is in no transaction");
                let mark = partition.isolation.mark(producer_id);
                let marker = Marker {
                    producer_id,
                    epoch: i32::from(open.epoch),
                    coordinator_epoch: mark.map_or(0, |mark| mark.coordinator_epoch),
                    transaction: 0,
                    commit: false,
                };
                let begins = Some(open.first_offset);
                assert!(partition.mark(marker, Ender::Operator { begins }, now));
                ended += 1;
            }
        }
        ended
    }

    fn check(&mut self, seed: u64) -> u64 {
        let mut records: BTreeMap<Tag, BTreeSet<usize>> = BTreeMap::new();
        for (index, partition) in self.partitions.iter().enumerate() {
            assert_eq!(
                partition.isolation.first_open(),
                None,
                "seed {seed}: a transaction hangs in {index}"
            );
            for tag in partition.counts() {
                records.entry(tag).or_default().insert(index);
            }
            partition.log.len().hash(&mut self.trace);
        }
        let mut committed = 0;
        for (tag, (told, wrote)) in &self.told {
            let there = records.get(tag).map_or(0, BTreeSet::len);
            match told {
                Told::Committed => assert_eq!(there, *wrote, "seed {seed}: {tag} is torn"),
                Told::Aborted => assert_eq!(there, 0, "seed {seed}: {tag} was aborted"),
                Told::Nothing => {
                    assert!(there == 0 || there == *wrote, "seed {seed}: {tag} is torn");
                }
            }
            committed += u64::from(*told == Told::Committed);
            (*tag, *told, there).hash(&mut self.trace);
        }
        committed
    }
}

fn simulate(seed: u64) -> (u64, u64) {
    let mut world = World::new(seed);
    world.run();
    let committed = world.check(seed);
    (committed, world.trace.finish())
}

#[test]
fn transactions_are_whole_and_none_hangs_whatever_comes_late_or_again() {
    let mut committed = 0;
    for seed in 0..300 {
        let (commits, trace) = simulate(seed);
        assert_eq!(simulate(seed), (commits, trace), "seed {seed}");
        committed += commits;
    }
    assert!(committed > 3_000, "only {committed}");
}

/// What the coordinator lost may be lost; but nothing stays open that it knows the producer of, and
/// what it does not can be ended.
#[test]
fn nothing_hangs_though_the_coordinator_loses_its_newest_entries() {
    let mut orphans = 0;
    for seed in 0..200 {
        let mut world = World::new(seed);
        world.loses = true;
        world.old = world.transactions.snapshot();
        world.run();
        world.clear();
        orphans += world.end_orphans();
        for (index, partition) in world.partitions.iter().enumerate() {
            let open = partition.isolation.first_open();
            assert_eq!(open, None, "seed {seed}: a transaction hangs in {index}");
        }
    }
    assert!(orphans > 0, "no producer was lost");
}
