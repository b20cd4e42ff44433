//! One worker: what it does next, and what it says became of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::hand::{Hand, Kind, Polled};
use super::{GROUP, Stage};
use crate::history::{Function, Key, Mop, Op, Rebalance, Record, Stage as Half};
use crate::kafka::Fault;

/// Of so many high watermarks that are what they were one is written down.
const SAMPLED: u32 = 4;
/// Of so many transactions one is aborted on purpose.
const ABORTED: u32 = 10;
/// Between attempts to have something acknowledged in the end.
const AGAIN: Duration = Duration::from_millis(100);
/// How long a reader of everything may find nothing new before a new client takes its place.
const STUCK: Duration = Duration::from_secs(15);

#[derive(Debug)]
pub struct Worker {
    stage: Arc<Stage>,
    kind: Kind,
    name: String,
    nth: u32,
    rng: SmallRng,
    process: u32,
    hand: Hand,
    has_keys: bool,
    /// The last high watermark that was written down of each key, node, and life of that.
    told: BTreeMap<(Key, u32, u32), u64>,
}

impl Worker {
    /// The `nth` worker of a run with this seed.
    pub fn new(stage: &Arc<Stage>, kind: Kind, nth: u32, seed: u64) -> Self {
        let name = format!("{}-{nth}", kind.name());
        Self {
            rng: SmallRng::seed_from_u64(seed ^ u64::from(nth + 1) << 32),
            process: stage.process(),
            hand: Hand::new(kind, &name, nth, stage),
            stage: Arc::clone(stage),
            kind,
            name,
            nth,
            has_keys: false,
            told: BTreeMap::new(),
        }
    }

    /// Does one thing after the other until it is told to stop, or has done enough.
    pub async fn work(mut self, stop: watch::Receiver<bool>) -> Self {
        while !*stop.borrow() && self.stage.may_begin() {
            self.step().await;
            let rest = self.stage.pace.mul_f64(self.rng.random());
            sleep(rest).await;
        }
        self
    }

    async fn step(&mut self) {
        if !self.has_keys {
            return self.choose_keys().await;
        }
        match self.rng.random_range(0..1000) {
            0..16 => self.choose_keys().await,
            16..20 => self.crash(),
            20..430 => self.poll().await,
            430..720 if self.kind == Kind::Transactional => self.transact().await,
            _ => self.send().await,
        }
        self.note_high_watermarks();
    }

    fn key(&mut self) -> Key {
        Key(self.rng.random_range(0..self.stage.keys))
    }

    fn op(&self, half: Half, f: Function) -> Op {
        Op::new(half, self.process, f)
    }

    /// Another client goes on, as another process.
    fn renew(&mut self) {
        self.process = self.stage.process();
        self.hand = Hand::new(self.kind, &self.name, self.nth, &self.stage);
        self.has_keys = false;
    }

    fn crash(&mut self) {
        self.stage
            .recorder
            .op(self.op(Half::Invoke, Function::Crash));
        self.stage.recorder.op(self.op(Half::Info, Function::Crash));
        self.renew();
    }

    /// Writes down how an operation ended.
    fn complete(&mut self, mut op: Op, fault: Option<&Fault>) {
        op.stage = match fault {
            None => Half::Ok,
            Some(Fault::Not(_)) => Half::Fail,
            Some(Fault::Unknown(_)) => Half::Info,
        };
        op.error = fault.map(|fault| fault.text().to_owned());
        let retired = op.stage == Half::Info;
        if op.stage == Half::Ok {
            self.stage.achieved(self.kind, &op);
        }
        self.stage.recorder.op(op);
        if retired {
            self.renew();
        }
    }

    async fn choose_keys(&mut self) {
        if self.kind.can_subscribe() && self.rng.random_bool(0.4) {
            let mut op = self.op(Half::Invoke, Function::Subscribe);
            op.keys = self.stage.all_keys();
            self.stage.recorder.op(op.clone());
            self.hand.subscribe();
            self.complete(op, None);
        } else {
            let all = self.stage.all_keys();
            let count = self.rng.random_range(1..=all.len().max(1));
            let mut keys: Vec<Key> = all.choose_multiple(&mut self.rng, count).copied().collect();
            keys.sort();
            let seek = self.rng.random_bool(0.15);
            self.assign(keys, seek).await;
        }
        self.has_keys = true;
    }

    async fn assign(&mut self, keys: Vec<Key>, seek_to_beginning: bool) {
        let mut op = self.op(Half::Invoke, Function::Assign);
        op.keys.clone_from(&keys);
        op.seek_to_beginning = seek_to_beginning;
        self.stage.recorder.op(op.clone());
        self.hand.assign(&keys, seek_to_beginning).await;
        self.complete(op, None);
    }

    async fn send(&mut self) {
        if self.kind == Kind::Transactional {
            let sends = self.rng.random_range(1..=4);
            let mops = (0..sends).map(|_| self.new_send()).collect();
            let abort = self.rng.random_ratio(1, ABORTED);
            let _recorded = self.transaction(Function::Send, mops, abort).await;
            return;
        }
        let key = self.key();
        let _recorded = self.send_one(key).await;
    }

    /// Sends one value to a key; why it was not acknowledged, if it was not.
    async fn send_one(&mut self, key: Key) -> Result<(), Fault> {
        let value = self.stage.value(key);
        let mop = Mop::Send {
            key,
            value,
            offset: None,
            term: None,
        };
        if self.kind == Kind::Transactional {
            return self.transaction(Function::Send, vec![mop], false).await;
        }
        let mut op = self.op(Half::Invoke, Function::Send);
        op.mops = vec![mop];
        self.stage.recorder.op(op.clone());
        let sent = self.hand.send(key, value).await;
        let offset = sent.as_ref().ok().copied();
        op.mops = vec![Mop::Send {
            key,
            value,
            offset,
            term: None,
        }];
        self.complete(op, sent.as_ref().err());
        sent.map(drop)
    }

    /// When everything is healed, has something of each key acknowledged. Why it could not, if so.
    pub async fn prove_alive(mut self, deadline: Instant) -> (Self, Result<(), String>) {
        for key in self.stage.all_keys() {
            while let Err(fault) = self.send_one(key).await {
                if Instant::now() >= deadline {
                    let (name, why) = (&self.name, fault.text());
                    let why = format!("{name} cannot write to key {}: {why}", key.0);
                    return (self, Err(why));
                }
                sleep(AGAIN).await;
            }
        }
        (self, Ok(()))
    }

    fn new_send(&mut self) -> Mop {
        let key = self.key();
        Mop::Send {
            key,
            value: self.stage.value(key),
            offset: None,
            term: None,
        }
    }

    async fn transact(&mut self) {
        let count = self.rng.random_range(1..=4);
        let mut mops = Vec::new();
        for _ in 0..count {
            // A second poll of one transaction would only find what came meanwhile.
            let polls = mops.iter().any(|mop| matches!(mop, Mop::Poll(_)));
            if !polls && self.rng.random_bool(0.5) {
                mops.push(Mop::Poll(Vec::new()));
            } else {
                mops.push(self.new_send());
            }
        }
        let abort = self.rng.random_ratio(1, ABORTED);
        let _recorded = self.transaction(Function::Txn, mops, abort).await;
    }

    async fn transaction(&mut self, f: Function, mops: Vec<Mop>, abort: bool) -> Result<(), Fault> {
        let mut op = self.op(Half::Invoke, f);
        op.mops = mops;
        self.stage.recorder.op(op.clone());
        let outcome = self.hand.transact(&op.mops, abort).await;
        op.mops = outcome.mops;
        told(&mut op, &outcome.offsets, &outcome.rebalanced);
        self.complete(op, outcome.fault.as_ref());
        outcome.fault.map_or(Ok(()), Err)
    }

    async fn poll(&mut self) {
        let op = self.begin_poll();
        let polled = self.hand.poll().await;
        self.end_poll(op, polled);
    }

    fn begin_poll(&self) -> Op {
        let mut op = self.op(Half::Invoke, Function::Poll);
        op.mops = vec![Mop::Poll(Vec::new())];
        self.stage.recorder.op(op.clone());
        op
    }

    fn end_poll(&mut self, mut op: Op, polled: Result<Polled, Fault>) {
        match polled {
            Ok(polled) => {
                told(&mut op, &polled.offsets, &polled.rebalanced);
                op.mops = vec![Mop::Poll(polled.runs)];
                self.complete(op, polled.fault.as_ref());
            }
            Err(fault) => self.complete(op, Some(&fault)),
        }
    }

    fn note_high_watermarks(&mut self) {
        for seen in self.hand.take_seen() {
            let of = (seen.key, seen.node, seen.boot);
            let changed = self.told.get(&of) != Some(&seen.high_watermark);
            if changed || self.rng.random_ratio(1, SAMPLED) {
                self.told.insert(of, seen.high_watermark);
                self.stage.note_high_watermark(&seen, false);
            }
        }
    }

    /// With new clients, reads everything from the start of each key to these ends. What that was,
    /// or why it did not get there.
    pub async fn read_everything(
        mut self,
        ends: BTreeMap<Key, u64>,
        deadline: Instant,
    ) -> Result<(String, BTreeMap<Key, Scan>), String> {
        let mut why = String::new();
        while Instant::now() < deadline {
            self.crash();
            self.assign(self.stage.all_keys(), true).await;
            match self.read_once(&ends, deadline).await {
                Ok(scans) => return Ok((self.name, scans)),
                Err(fault) => fault.text().clone_into(&mut why),
            }
            sleep(AGAIN).await;
        }
        Err(format!("{} did not read everything: {why}", self.name))
    }

    async fn read_once(
        &mut self,
        ends: &BTreeMap<Key, u64>,
        deadline: Instant,
    ) -> Result<BTreeMap<Key, Scan>, Fault> {
        let mut moved = Instant::now();
        let mut scans: BTreeMap<Key, Scan> = BTreeMap::new();
        loop {
            let until = deadline.min(moved + STUCK);
            let op = self.begin_poll();
            match self.hand.read_all(ends, until).await {
                Ok(Some(polled)) => {
                    for (key, records) in polled.runs.iter().filter(|(_, run)| !run.is_empty()) {
                        moved = Instant::now();
                        scans.entry(*key).or_default().see(records);
                    }
                    let fault = polled.fault.clone();
                    self.end_poll(op, Ok(polled));
                    self.note_high_watermarks();
                    if let Some(fault) = fault {
                        return Err(fault);
                    }
                    if Instant::now() >= until {
                        return Err(Fault::Not("nothing new comes".to_owned()));
                    }
                }
                Ok(None) => {
                    self.end_poll(op, Ok(Polled::default()));
                    return Ok(scans);
                }
                Err(fault) => {
                    self.end_poll(op, Err(fault.clone()));
                    return Err(fault);
                }
            }
        }
    }
}

/// All that a reader found in a key, in short.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scan {
    pub records: u64,
    /// The offset of the last one.
    pub last: u64,
    /// Of offsets and values, in their order.
    pub sum: u64,
}

impl Scan {
    fn see(&mut self, records: &[Record]) {
        for record in records {
            self.records += 1;
            self.last = record.offset;
            for word in [record.offset, record.value] {
                self.sum = (self.sum ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15);
                self.sum ^= self.sum >> 29;
            }
        }
    }
}

/// Writes into an operation what a group has to do with it.
fn told(op: &mut Op, offsets: &BTreeMap<Key, u64>, rebalanced: &[Key]) {
    if !offsets.is_empty() {
        op.group = Some(GROUP.to_owned());
        op.offsets = offsets
            .iter()
            .map(|(key, offset)| (*key, *offset))
            .collect();
    }
    if !rebalanced.is_empty() {
        op.rebalance_log = vec![Rebalance {
            keys: rebalanced.to_vec(),
        }];
    }
}

#[cfg(test)]
mod tests;
