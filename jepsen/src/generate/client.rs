//! What the clients of a generated history do, a step at a time, so that their operations overlap
//! in every way.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use rand::Rng;

use super::{Late, Run, key_of, place_of};
use crate::history::{Function, Key, Mop, Note, Op, Rebalance, Stage};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Assigned,
    Subscribed,
}

/// One client after the other, on the same thread.
#[derive(Debug)]
pub(super) struct Client {
    process: u32,
    pub(super) mode: Mode,
    /// The next offset of each key that it reads.
    pub(super) positions: BTreeMap<usize, u64>,
    pub(super) subscribed: Vec<usize>,
    running: Option<Running>,
    /// The last transaction of its producer.
    last_txn: Option<usize>,
    /// The process that asks for it where its group is, while it is busy.
    pub(super) asking: u32,
}

#[derive(Debug)]
struct Running {
    op: Op,
    left: VecDeque<Mop>,
    stage: Stage,
    txn: Option<usize>,
    /// Where it was when the operation began.
    before: BTreeMap<usize, u64>,
    /// Whether something between invocation and completion is still to be done.
    acted: bool,
    /// Not all of its steps were done.
    cut: bool,
}

impl Client {
    pub(super) fn new(process: u32, asking: u32) -> Self {
        Self {
            process,
            mode: Mode::Assigned,
            positions: BTreeMap::new(),
            subscribed: Vec::new(),
            running: None,
            last_txn: None,
            asking,
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.running.is_none()
    }

    pub(super) fn rebalanced(&mut self, rebalance: Rebalance) {
        if let Some(running) = &mut self.running {
            running.op.rebalance_log.push(rebalance);
        }
    }
}

impl Run<'_> {
    pub(super) fn step(&mut self, nth: usize) {
        let Some(mut running) = self.clients[nth].running.take() else {
            self.begin(nth);
            return;
        };
        if let Some(mop) = running.left.pop_front() {
            // A client may be gone in the middle of a transaction.
            if running.stage != Stage::Ok && running.txn.is_some() && self.chance(200) {
                running.cut = true;
                running.op.mops.push(mop);
                running.op.mops.extend(running.left.drain(..));
            } else {
                let done = self.mop(nth, &running, &mop);
                running.op.mops.push(done);
            }
            self.clients[nth].running = Some(running);
        } else if running.acted {
            self.complete(nth, running);
        } else {
            running.acted = true;
            self.act(nth, &mut running);
            self.clients[nth].running = Some(running);
        }
    }

    fn begin(&mut self, nth: usize) {
        let process = self.clients[nth].process;
        let f = self.function(nth);
        let mut op = Op::new(Stage::Invoke, process, f);
        match f {
            Function::Send | Function::Poll | Function::Txn => op.mops = self.mops(f),
            Function::Assign | Function::Subscribe => {
                op.keys = self.some_keys();
                op.seek_to_beginning = f == Function::Assign && self.chance(300);
            }
            Function::Committed | Function::Reset => {
                op.group = Some("readers".to_owned());
                if f == Function::Reset {
                    let key = self.any_key();
                    let offset = self.rng.random_range(0..=self.world.end(key));
                    op.offsets = vec![(key_of(key), offset)];
                }
            }
            Function::Crash | Function::Commit => {}
        }
        let stage = self.fate(f);
        self.start(nth, op, stage);
    }

    fn start(&mut self, nth: usize, op: Op, stage: Stage) {
        self.begun += 1;
        self.op(op.clone());
        let sends = op.mops.iter().filter(|mop| matches!(mop, Mop::Send { .. }));
        let txn = op.f == Function::Txn || sends.count() > 1;
        if let Some(last) = self.clients[nth].last_txn.filter(|_| txn) {
            self.world.mark_all(last);
        }
        let txn = txn.then(|| self.world.begin());
        if txn.is_some() {
            self.clients[nth].last_txn = txn;
        }
        let left = op.mops.iter().cloned().collect();
        self.clients[nth].running = Some(Running {
            op: Op {
                mops: Vec::new(),
                ..op
            },
            left,
            stage,
            txn,
            before: self.clients[nth].positions.clone(),
            acted: false,
            cut: false,
        });
    }

    fn function(&mut self, nth: usize) -> Function {
        if self.chance(self.plan.crashes) {
            return Function::Crash;
        }
        let idle = self.clients[nth].positions.is_empty();
        if self.chance(self.plan.reassignments) || (idle && self.chance(300)) {
            let subscribe = self.rng.random_ratio(self.plan.subscriptions, 100);
            return if subscribe {
                Function::Subscribe
            } else {
                Function::Assign
            };
        }
        if self.plan.subscriptions > 0 && self.chance(60) {
            return if self.chance(200) {
                Function::Reset
            } else {
                Function::Committed
            };
        }
        if self.rng.random_ratio(self.plan.transactions, 100) {
            return Function::Txn;
        }
        if self.rng.random() {
            Function::Send
        } else {
            Function::Poll
        }
    }

    fn fate(&mut self, f: Function) -> Stage {
        match f {
            Function::Crash => Stage::Info,
            _ if self.chance(self.plan.failures) => Stage::Fail,
            _ if self.chance(self.plan.unknowns) => Stage::Info,
            _ => Stage::Ok,
        }
    }

    fn mops(&mut self, f: Function) -> Vec<Mop> {
        let several = f == Function::Txn || self.rng.random_ratio(self.plan.transactions, 100);
        let count = if several {
            self.rng.random_range(1..5)
        } else {
            1
        };
        let mut mops = Vec::new();
        for _ in 0..count {
            let send = match f {
                Function::Send => true,
                Function::Poll => false,
                _ => self.rng.random(),
            };
            mops.push(if send {
                self.send()
            } else {
                Mop::Poll(Vec::new())
            });
        }
        mops
    }

    fn send(&mut self) -> Mop {
        let key = self.any_key();
        self.values[key] += 1;
        Mop::Send {
            key: key_of(key),
            value: self.values[key],
            offset: None,
            term: None,
        }
    }

    fn some_keys(&mut self) -> Vec<Key> {
        let keys = 0..self.plan.keys;
        let mut keys: Vec<Key> = keys.filter(|_| self.rng.random()).map(key_of).collect();
        if keys.is_empty() {
            keys.push(key_of(self.any_key()));
        }
        keys
    }

    fn mop(&mut self, nth: usize, running: &Running, mop: &Mop) -> Mop {
        match mop {
            Mop::Send { key, value, .. } => self.do_send(running, *key, *value),
            Mop::Poll(_) => Mop::Poll(self.do_poll(nth)),
        }
    }

    fn do_send(&mut self, running: &Running, key: Key, value: u64) -> Mop {
        let place = place_of(key);
        let late = Late { key: place, value };
        let alone = running.txn.is_none();
        let unknown = Mop::Send {
            key,
            value,
            offset: None,
            term: None,
        };
        match running.stage {
            Stage::Fail if alone => return unknown,
            Stage::Info if alone => {
                match self.rng.random_range(0..3) {
                    0 => {}
                    1 => self.late.push(late),
                    _ => _ = self.world.append(place, value, None),
                }
                return unknown;
            }
            _ => {}
        }
        let offset = self.world.append(place, value, running.txn);
        // What is sent again without idempotence may stand in the log again.
        if alone && !self.plan.idempotence && self.chance(100) {
            if self.rng.random() {
                self.world.append(place, value, None);
            } else {
                self.late.push(late);
            }
        }
        Mop::Send {
            key,
            value,
            offset: Some(offset),
            term: Some(self.world.term(place)),
        }
    }

    fn do_poll(&mut self, nth: usize) -> Vec<(Key, Vec<crate::history::Record>)> {
        let mut runs = Vec::new();
        let keys: Vec<usize> = self.clients[nth].positions.keys().copied().collect();
        for key in keys {
            if !self.draining && self.chance(300) {
                continue;
            }
            let limit = self.rng.random_range(0..=self.plan.records_max);
            let Some(position) = self.clients[nth].positions.get_mut(&key) else {
                continue;
            };
            let records = self.world.read(key, position, limit);
            if !records.is_empty() {
                runs.push((key_of(key), records));
            }
        }
        runs
    }

    /// What an operation does besides its sends and polls.
    fn act(&mut self, nth: usize, running: &mut Running) {
        if running.stage == Stage::Fail {
            return;
        }
        match running.op.f {
            Function::Assign => self.assign(nth, &running.op),
            Function::Subscribe => {
                if self.clients[nth].mode == Mode::Assigned {
                    self.clients[nth].positions.clear();
                }
                let keys: Vec<usize> = running.op.keys.iter().copied().map(place_of).collect();
                self.clients[nth]
                    .positions
                    .retain(|key, _| keys.contains(key));
                self.clients[nth].mode = Mode::Subscribed;
                self.clients[nth].subscribed = keys;
                self.rebalance();
            }
            Function::Committed => {
                running.op.offsets = self.committed();
            }
            Function::Reset => {
                for (key, offset) in &running.op.offsets {
                    self.world.committed[place_of(*key)] = Some(*offset);
                }
            }
            Function::Poll | Function::Txn => {
                let offsets = self.offsets(nth);
                self.commit(running.stage, &offsets);
                if !offsets.is_empty() {
                    running.op.group = Some("readers".to_owned());
                    running.op.offsets = offsets;
                }
            }
            _ => {}
        }
    }

    fn assign(&mut self, nth: usize, op: &Op) {
        let client = &mut self.clients[nth];
        let before = std::mem::take(&mut client.positions);
        let goes_on = client.mode == Mode::Assigned && !op.seek_to_beginning;
        for key in op.keys.iter().copied().map(place_of) {
            let position = before.get(&key).copied().filter(|_| goes_on);
            client.positions.insert(key, position.unwrap_or(0));
        }
        client.mode = Mode::Assigned;
    }

    /// Where the group is in every key; at the start where it has committed nothing.
    pub(super) fn committed(&self) -> Vec<(Key, u64)> {
        let committed = self.world.committed.iter().enumerate();
        committed
            .map(|(key, offset)| (key_of(key), offset.unwrap_or(0)))
            .collect()
    }

    /// Under a subscription, what was read is committed before the operation is over.
    fn offsets(&self, nth: usize) -> Vec<(Key, u64)> {
        let client = &self.clients[nth];
        let positions = client.positions.iter();
        let committed = positions.filter(|_| client.mode == Mode::Subscribed);
        committed
            .map(|(key, position)| (key_of(*key), *position))
            .collect()
    }

    /// What is unknown may never happen, may have, or may yet.
    fn commit(&mut self, stage: Stage, offsets: &[(Key, u64)]) {
        let fate = match stage {
            Stage::Info => self.rng.random_range(0..3),
            _ => 1,
        };
        for (key, offset) in offsets {
            match fate {
                0 => {}
                1 => self.world.committed[place_of(*key)] = Some(*offset),
                _ => self.late_commits.push((place_of(*key), *offset)),
            }
        }
    }

    fn complete(&mut self, nth: usize, running: Running) {
        let Running {
            mut op,
            stage,
            txn,
            before,
            cut,
            ..
        } = running;
        op.stage = stage;
        match (txn, stage) {
            (Some(txn), Stage::Ok) => self.world.decide(txn, true),
            (Some(txn), Stage::Info) => self.orphans.push((txn, !cut)),
            (Some(txn), _) => self.world.decide(txn, false),
            (None, _) => {}
        }
        if stage == Stage::Fail {
            op.keys.clear();
            op.offsets.clear();
            self.rewind(nth, before);
        }
        if stage == Stage::Info && self.rng.random() {
            op.mops.clear();
        }
        if stage != Stage::Ok && op.f == Function::Committed {
            op.offsets.clear();
        }
        self.op(op);
        if stage == Stage::Info {
            let process = self.process();
            let asking = self.process();
            self.clients[nth] = Client::new(process, asking);
        }
    }

    /// What a failed operation read is read again.
    fn rewind(&mut self, nth: usize, before: BTreeMap<usize, u64>) {
        let client = &mut self.clients[nth];
        match client.mode {
            Mode::Assigned => client.positions = before,
            Mode::Subscribed => {
                for (key, position) in &mut client.positions {
                    *position = self.world.committed[*key].unwrap_or(0);
                }
            }
        }
    }

    /// Every client makes way for a new one, which reads everything from the start.
    pub(super) fn read_back(&mut self) {
        for nth in 0..self.clients.len() {
            let crash = Op::new(Stage::Invoke, self.clients[nth].process, Function::Crash);
            self.start(nth, crash, Stage::Info);
            self.finish(nth);
            let process = self.clients[nth].process;
            let mut assign = Op::new(Stage::Invoke, process, Function::Assign);
            assign.keys = (0..self.plan.keys).map(key_of).collect();
            assign.seek_to_beginning = true;
            self.start(nth, assign, Stage::Ok);
            self.finish(nth);
        }
        let mut behind: Vec<usize> = (0..self.clients.len()).collect();
        while !behind.is_empty() {
            let nth = behind[self.rng.random_range(0..behind.len())];
            if !self.clients[nth].is_idle() {
                self.step(nth);
            } else if self.is_level(nth) {
                behind.retain(|other| *other != nth);
            } else {
                let process = self.clients[nth].process;
                let mut poll = Op::new(Stage::Invoke, process, Function::Poll);
                poll.mops = vec![Mop::Poll(Vec::new())];
                self.start(nth, poll, Stage::Ok);
            }
        }
        self.note(Note::Done);
    }

    fn finish(&mut self, nth: usize) {
        while !self.clients[nth].is_idle() {
            self.step(nth);
        }
    }

    fn is_level(&self, nth: usize) -> bool {
        let positions = &self.clients[nth].positions;
        (0..self.world.keys()).all(|key| positions.get(&key) == Some(&self.world.end(key)))
    }
}
