//! Histories that are valid by construction: clients that run against a log in memory which keeps
//! its promises, while outcomes get lost, clients crash, groups rebalance and leaders change.
//!
//! Checkers are proven with them. The same seed gives the same history.

mod client;
mod world;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use crate::history::{Event, Function, Header, Key, Note, Op, Rebalance, Stage, What};
use client::{Client, Mode};
use world::World;

/// What kind of history is wanted.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    /// Operations before everything is read back.
    pub operations: usize,
    pub clients: usize,
    pub keys: usize,
    /// How often operations are transactions, of 100.
    pub transactions: u32,
    /// How often a change of keys is a subscription rather than an assignment, of 100.
    pub subscriptions: u32,
    /// How often keys change, clients crash, outcomes are failures, or unknown, of 1,000.
    pub reassignments: u32,
    pub crashes: u32,
    pub failures: u32,
    pub unknowns: u32,
    /// How often something happens in the cluster rather than in a client, of 1,000.
    pub background: u32,
    pub idempotence: bool,
    /// Records that a poll returns of a key.
    pub records_max: usize,
}

impl Plan {
    /// Draws the whole plan from its seed.
    pub fn drawn(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        Self {
            seed,
            operations: rng.random_range(20..200),
            clients: rng.random_range(2..7),
            keys: rng.random_range(1..5),
            transactions: [0, 30, 60, 90][rng.random_range(0..4)],
            subscriptions: [0, 50, 100][rng.random_range(0..3)],
            reassignments: [16, 60, 150][rng.random_range(0..3)],
            crashes: [0, 10, 60][rng.random_range(0..3)],
            failures: [0, 30, 150][rng.random_range(0..3)],
            unknowns: [0, 30, 150][rng.random_range(0..3)],
            background: [20, 150, 400][rng.random_range(0..3)],
            idempotence: rng.random_ratio(7, 8),
            records_max: [1, 4, 30][rng.random_range(0..3)],
        }
    }

    /// A long run of many clients, as a harness would leave it.
    pub fn long(seed: u64, operations: usize) -> Self {
        Self {
            seed,
            operations,
            clients: 12,
            keys: 24,
            transactions: 40,
            subscriptions: 50,
            reassignments: 16,
            crashes: 1,
            failures: 10,
            unknowns: 5,
            background: 100,
            idempotence: true,
            records_max: 20,
        }
    }

    pub fn header(&self) -> Header {
        Header {
            idempotence: self.idempotence,
            keys: (0..self.keys).map(|key| format!("log/{key}")).collect(),
            seed: Some(self.seed),
            about: "generated".to_owned(),
            ..Header::default()
        }
    }
}

/// Makes the history of a plan.
pub fn generate(plan: &Plan, sink: &mut dyn FnMut(Event)) {
    let mut run = Run::new(plan, sink);
    run.workload();
    run.heal();
    run.read_back();
    run.inspect();
}

/// The history of a plan, in memory.
pub fn history(plan: &Plan) -> Vec<Event> {
    let mut events = Vec::new();
    generate(plan, &mut |event| events.push(event));
    events
}

/// A record that is on its way to its leader, and nobody waits for any more.
#[derive(Debug, Clone, Copy)]
struct Late {
    key: usize,
    value: u64,
}

/// What clients run against.
struct Run<'a> {
    plan: &'a Plan,
    rng: SmallRng,
    sink: &'a mut dyn FnMut(Event),
    index: u64,
    time: u64,
    world: World,
    clients: Vec<Client>,
    processes: u32,
    begun: usize,
    /// The next value of each key.
    values: Vec<u64>,
    late: Vec<Late>,
    /// Offsets of the group that may yet be committed, by key.
    late_commits: Vec<(usize, u64)>,
    /// Transactions whose client is gone, and whether they may be committed.
    orphans: Vec<(usize, bool)>,
    /// What a lagging replica said last, by key.
    followers: Vec<u64>,
    draining: bool,
}

impl<'a> Run<'a> {
    fn new(plan: &'a Plan, sink: &'a mut dyn FnMut(Event)) -> Self {
        let mut run = Self {
            plan,
            rng: SmallRng::seed_from_u64(plan.seed ^ 0x5eed),
            sink,
            index: 0,
            time: 0,
            world: World::new(plan.keys),
            clients: Vec::new(),
            processes: 0,
            begun: 0,
            values: vec![0; plan.keys],
            late: Vec::new(),
            late_commits: Vec::new(),
            orphans: Vec::new(),
            followers: vec![0; plan.keys],
            draining: false,
        };
        for _ in 0..plan.clients {
            let (process, asking) = (run.process(), run.process());
            run.clients.push(Client::new(process, asking));
        }
        run
    }

    fn process(&mut self) -> u32 {
        self.processes += 1;
        self.processes - 1
    }

    fn chance(&mut self, of_1000: u32) -> bool {
        self.rng.random_ratio(of_1000.min(1000), 1000)
    }

    fn any_key(&mut self) -> usize {
        self.rng.random_range(0..self.plan.keys)
    }

    fn emit(&mut self, what: What) {
        self.time += self.rng.random_range(1_000..200_000);
        let event = Event {
            index: self.index,
            time: self.time,
            what,
        };
        self.index += 1;
        (self.sink)(event);
    }

    fn op(&mut self, op: Op) {
        self.emit(What::Op(op));
    }

    fn note(&mut self, note: Note) {
        self.emit(What::Note(note));
    }

    fn workload(&mut self) {
        while self.begun < self.plan.operations {
            if self.chance(self.plan.background) {
                self.background();
            } else {
                let nth = self.rng.random_range(0..self.clients.len());
                self.step(nth);
            }
        }
        self.draining = true;
        for nth in 0..self.clients.len() {
            while !self.clients[nth].is_idle() {
                self.step(nth);
            }
        }
    }

    /// Something happens that no client asked for.
    fn background(&mut self) {
        if !self.late_commits.is_empty() && self.chance(150) {
            let nth = self.rng.random_range(0..self.late_commits.len());
            let (key, offset) = self.late_commits.swap_remove(nth);
            self.world.committed[key] = Some(offset);
            return;
        }
        match self.rng.random_range(0..7) {
            0 | 1 if self.world.unmarked() > 0 => {
                let nth = self.rng.random_range(0..self.world.unmarked());
                self.world.mark(nth);
            }
            2 if !self.late.is_empty() => {
                let nth = self.rng.random_range(0..self.late.len());
                let late = self.late.swap_remove(nth);
                self.world.append(late.key, late.value, None);
            }
            3 if !self.orphans.is_empty() => {
                let nth = self.rng.random_range(0..self.orphans.len());
                let orphan = self.orphans.swap_remove(nth);
                self.settle(orphan);
            }
            4 => self.rebalance(),
            5 if self.chance(200) => {
                let key = self.any_key();
                let term = self.world.elect(key);
                let (key, node) = (key_of(key), self.rng.random_range(1..4));
                self.note(Note::Leader { key, node, term });
            }
            6 => self.observe(),
            _ => {}
        }
    }

    /// Somebody finds the group at these offsets.
    fn look(&mut self, process: u32, offsets: Vec<(Key, u64)>) {
        let mut op = Op::new(Stage::Invoke, process, Function::Committed);
        op.group = Some("readers".to_owned());
        self.op(op.clone());
        op.stage = Stage::Ok;
        op.offsets = offsets;
        self.op(op);
    }

    fn settle(&mut self, (txn, may_commit): (usize, bool)) {
        let commit = may_commit && self.rng.random();
        self.world.decide(txn, commit);
    }

    /// Some keys of the group get an owner among those who subscribe to them.
    fn rebalance(&mut self) {
        let mut moved: Vec<Vec<Key>> = vec![Vec::new(); self.clients.len()];
        for key in 0..self.plan.keys {
            if self.rng.random() {
                continue;
            }
            let owns = |client: &Client| {
                client.mode == Mode::Subscribed && client.positions.contains_key(&key)
            };
            let before = self.clients.iter().position(owns);
            let wants = |client: &Client| {
                client.mode == Mode::Subscribed && client.subscribed.contains(&key)
            };
            let candidates: Vec<usize> = (0..self.clients.len())
                .filter(|nth| wants(&self.clients[*nth]))
                .collect();
            if let Some(nth) = before {
                self.clients[nth].positions.remove(&key);
                moved[nth].push(key_of(key));
            }
            if !candidates.is_empty() {
                let nth = candidates[self.rng.random_range(0..candidates.len())];
                let position = self.world.committed[key].unwrap_or(0);
                self.look(self.clients[nth].asking, vec![(key_of(key), position)]);
                self.clients[nth].positions.insert(key, position);
                moved[nth].push(key_of(key));
            }
        }
        for (client, keys) in self.clients.iter_mut().zip(moved) {
            if !keys.is_empty() {
                client.rebalanced(Rebalance { keys });
            }
        }
    }

    /// A leader, or a follower that lags, says how far a key is committed.
    fn observe(&mut self) {
        let key = self.any_key();
        let end = self.world.end(key);
        let linearizable = self.rng.random();
        let (node, high_watermark) = if linearizable {
            (1, end)
        } else {
            self.followers[key] = self.rng.random_range(self.followers[key]..=end);
            (2, self.followers[key])
        };
        self.note(Note::HighWatermark {
            key: key_of(key),
            node,
            boot: 0,
            high_watermark,
            began: self.time,
            linearizable,
        });
    }

    fn heal(&mut self) {
        while let Some(late) = self.late.pop() {
            if self.rng.random() {
                self.world.append(late.key, late.value, None);
            }
        }
        while let Some(orphan) = self.orphans.pop() {
            self.settle(orphan);
        }
        while self.world.unmarked() > 0 {
            self.world.mark(0);
        }
        let (process, offsets) = (self.process(), self.committed());
        self.look(process, offsets);
        self.note(Note::Final);
    }

    /// What the replicas look like in the end.
    fn inspect(&mut self) {
        for key in 0..self.plan.keys {
            let end = self.world.end(key);
            for node in 1..4 {
                let mut position = 0;
                let records = self.world.read(key, &mut position, usize::MAX);
                let sum = records.iter().fold(17_u64, |sum, record| {
                    sum.wrapping_mul(31).wrapping_add(record.value)
                });
                self.note(Note::Replica {
                    key: key_of(key),
                    node,
                    from: 0,
                    upto: end,
                    checksum: format!("{sum:016x}"),
                });
            }
            self.note(Note::Boundary {
                key: key_of(key),
                node: 1,
                tiered_end: (end / 2).checked_sub(1),
                local_start: end / 2,
            });
        }
    }
}

fn key_of(key: usize) -> Key {
    Key(u32::try_from(key).expect("a plan has few keys"))
}

fn place_of(key: Key) -> usize {
    key.0 as usize
}
