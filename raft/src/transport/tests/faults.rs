//! Swarms of faults under a seed: whatever happens, what the transport promises holds, and once
//! the faults end everyone reaches everyone.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;

use futures::future::LocalBoxFuture;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;

use super::*;
use crate::transport::PeerError;
use crate::transport::sim::{Crash, Path, Trace};

const NODES: [NodeId; 3] = [A, B, C];
const FAULTS_FOR: Duration = Duration::from_secs(10);
/// How soon after the last fault every pair must be in touch.
const RECOVERY: Duration = Duration::from_secs(4);

/// What is known of the calls and streams of one run.
#[derive(Debug, Default)]
struct Ledger {
    /// How often each call reached a handler.
    executed: Mutex<BTreeMap<u64, u32>>,
    /// How many messages of each stream arrived; each was checked to be the next.
    received: Mutex<BTreeMap<u64, u64>>,
    breaches: Mutex<Vec<String>>,
}

/// Counts calls, and reads streams of numbered messages, answering each with its number.
struct Recording(Arc<Ledger>);

fn number(bytes: &[u8], place: usize) -> u64 {
    let at = place * 8;
    let word = bytes.get(at..at + 8).and_then(|word| word.try_into().ok());
    word.map_or(u64::MAX, u64::from_le_bytes)
}

impl PeerHandler for Recording {
    fn on_call(&self, call: PeerCall) -> BoxFuture<'static, Result<Vec<Bytes>, Refusal>> {
        let id = number(&call.payload, 0);
        *self.0.executed.lock().entry(id).or_default() += 1;
        Box::pin(async move {
            // Some answers take longer than their callers wait.
            tokio::time::sleep(Duration::from_millis(id % 7 * 20)).await;
            Ok(vec![call.payload])
        })
    }

    fn on_stream(&self, mut stream: PeerStream) {
        let ledger = Arc::clone(&self.0);
        tokio::spawn(async move {
            let mut next = 0;
            while let Ok(Some(message)) = stream.receiver.recv().await {
                let (id, place) = (number(&message, 0), number(&message, 1));
                if place != next {
                    let breach = format!("stream {id}: {place} arrived where {next} was due");
                    ledger.breaches.lock().push(breach);
                }
                next += 1;
                ledger.received.lock().insert(id, next);
                if place % 5 == 0 {
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
                let answer = Bytes::copy_from_slice(&message[8..16]);
                if stream.sender.send(vec![answer]).await.is_err() {
                    return;
                }
            }
        });
    }
}

struct Swarm {
    net: SimNet,
    nodes: RefCell<BTreeMap<NodeId, Transport>>,
    ledger: Arc<Ledger>,
    outcomes: RefCell<BTreeMap<u64, Result<(), PeerError>>>,
    next_id: Cell<u64>,
    over: Cell<bool>,
}

impl Swarm {
    fn new(seed: u64) -> Self {
        let swarm = Self {
            net: SimNet::new(seed),
            nodes: RefCell::default(),
            ledger: Arc::default(),
            outcomes: RefCell::default(),
            next_id: Cell::new(0),
            over: Cell::new(false),
        };
        for node in NODES {
            swarm.start(node);
        }
        swarm
    }

    fn start(&self, node: NodeId) {
        let transport = self.net.transport(config(node));
        for peer in NODES {
            transport.book().set(peer, SimNet::address(peer));
        }
        let handler = Arc::new(Recording(Arc::clone(&self.ledger)));
        transport.register(32..64, handler);
        self.nodes.borrow_mut().insert(node, transport);
    }

    fn transport(&self, node: NodeId) -> Transport {
        self.nodes.borrow()[&node].clone()
    }

    fn id(&self) -> u64 {
        self.next_id.set(self.next_id.get() + 1);
        self.next_id.get()
    }

    /// Calls of many sizes in every lane until the swarm is over.
    async fn calls(&self, from: NodeId, to: NodeId, mut random: SmallRng) {
        while !self.over.get() {
            let id = self.id();
            let lane =
                [Lane::Control, Lane::Append, Lane::Bulk, Lane::Live][random.random_range(0..4)];
            let mut payload = vec![Bytes::copy_from_slice(&id.to_le_bytes())];
            payload.push(Bytes::from(vec![1; random.random_range(0..5_000)]));
            let timeout = Duration::from_millis(random.random_range(5..400));
            let transport = self.transport(from);
            let answer = transport
                .call(target(to, lane, ECHO), payload, timeout)
                .await;
            if let Ok(answer) = &answer
                && number(answer, 0) != id
            {
                let breach = format!("call {id} got the answer of {}", number(answer, 0));
                self.ledger.breaches.lock().push(breach);
            }
            self.outcomes.borrow_mut().insert(id, answer.map(|_| ()));
            tokio::time::sleep(Duration::from_millis(random.random_range(0..60))).await;
        }
    }

    /// Streams of numbered messages, one after the other, until the swarm is over.
    async fn streams(&self, from: NodeId, to: NodeId, mut random: SmallRng) {
        while !self.over.get() {
            let lane = [Lane::Append, Lane::Bulk][random.random_range(0..2)];
            let opened = self
                .transport(from)
                .open_stream(target(to, lane, ECHO), Duration::from_millis(300))
                .await;
            match opened {
                Ok((sender, receiver)) => self.stream(sender, receiver, &mut random).await,
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn stream(
        &self,
        mut sender: super::super::StreamSender,
        mut receiver: super::super::StreamReceiver,
        random: &mut SmallRng,
    ) {
        let id = self.id();
        let last = random.random_range(1..400u64);
        let sending = async {
            for place in 0..last {
                let head = [id.to_le_bytes(), place.to_le_bytes()].concat();
                let body = Bytes::from(vec![2; random.random_range(0..20_000)]);
                if sender.send(vec![head.into(), body]).await.is_err() {
                    return false;
                }
            }
            drop(sender);
            true
        };
        let receiving = async {
            let mut next = 0;
            loop {
                match receiver.recv().await {
                    Ok(Some(answer)) if number(&answer, 0) == next => next += 1,
                    Ok(Some(answer)) => {
                        let breach =
                            format!("stream {id}: answer {} for {next}", number(&answer, 0));
                        self.ledger.breaches.lock().push(breach);
                    }
                    Ok(None) => return Some(next),
                    Err(_) => return None,
                }
            }
        };
        let (sent, answered) = tokio::join!(sending, receiving);
        // An end without an error means that nothing was lost.
        if sent && answered.is_some_and(|answered| answered != last) {
            let breach = format!("stream {id} ended well with {answered:?} of {last} answers");
            self.ledger.breaches.lock().push(breach);
        }
    }

    async fn faults(&self, mut random: SmallRng) {
        let end = Instant::now() + FAULTS_FOR;
        while Instant::now() < end {
            self.fault(&mut random).await;
            tokio::time::sleep(Duration::from_millis(random.random_range(20..900))).await;
            if random.random_bool(0.4) {
                self.net.heal_all();
            }
        }
        self.net.heal_all();
        for (from, to) in pairs() {
            self.net.set_path(from, to, Path::default());
        }
    }

    async fn fault(&self, random: &mut SmallRng) {
        let (a, b) = pairs()[random.random_range(0..pairs().len())];
        match random.random_range(0..6) {
            0 => self.net.cut(a, b),
            1 => self.net.isolate(a),
            2 => self.net.partition(&[&[a], &[b]]),
            3 => self.net.reset_links(a, b),
            4 => self.net.set_path(
                a,
                b,
                Path {
                    latency: Duration::from_millis(random.random_range(0..200)),
                    jitter: Duration::from_millis(random.random_range(0..100)),
                    bandwidth: random.random_bool(0.5).then_some(200_000),
                },
            ),
            _ => {
                let machine = random.random_bool(0.5);
                let how = if machine {
                    Crash::Machine
                } else {
                    Crash::Process
                };
                self.net.crash(a, how);
                tokio::time::sleep(Duration::from_millis(random.random_range(0..3_000))).await;
                self.start(a);
            }
        }
    }

    /// Every pair gets a call through.
    async fn recover(&self) {
        let deadline = Instant::now() + RECOVERY;
        for (from, to) in pairs() {
            for lane in [Lane::Control, Lane::Append] {
                loop {
                    let payload = vec![Bytes::from(vec![0; 8])];
                    let timeout = Duration::from_secs(1);
                    let call = self
                        .transport(from)
                        .call(target(to, lane, ECHO), payload, timeout)
                        .await;
                    if call.is_ok() {
                        break;
                    }
                    assert!(
                        Instant::now() < deadline,
                        "{from} to {to}, {lane:?}: {call:?}"
                    );
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }

    /// What the transport promises of every call.
    fn check_calls(&self) {
        let executed = self.ledger.executed.lock();
        for (id, outcome) in &*self.outcomes.borrow() {
            let times = executed.get(id).copied().unwrap_or(0);
            let kept = match outcome {
                Ok(()) => times == 1,
                Err(PeerError::Unreachable { .. } | PeerError::Refused(_)) => times == 0,
                Err(_) => times <= 1,
            };
            assert!(kept, "call {id} ended as {outcome:?} and ran {times} times");
        }
    }
}

fn pairs() -> Vec<(NodeId, NodeId)> {
    let all = NODES.iter().flat_map(|a| NODES.map(|b| (*a, b)));
    all.filter(|(a, b)| a != b).collect()
}

/// How much of what a run saw, to show that the runs test something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Tally {
    answered: usize,
    unreachable: usize,
    unknown: usize,
    messages: u64,
    trace: Trace,
}

async fn swarm(seed: u64) -> Tally {
    let swarm = Swarm::new(seed);
    let random = |stream: usize| SmallRng::seed_from_u64(seed * 1_000 + stream as u64);
    let mut traffic: Vec<LocalBoxFuture<'_, ()>> = Vec::new();
    for (i, (from, to)) in pairs().into_iter().enumerate() {
        traffic.push(Box::pin(swarm.calls(from, to, random(2 * i))));
        traffic.push(Box::pin(swarm.streams(from, to, random(2 * i + 1))));
    }
    let faults = async {
        swarm.faults(random(99)).await;
        swarm.recover().await;
        swarm.over.set(true);
    };
    tokio::join!(futures::future::join_all(traffic), faults);
    assert_eq!(*swarm.ledger.breaches.lock(), Vec::<String>::new());
    swarm.check_calls();
    let nodes: Vec<_> = swarm.nodes.borrow().values().cloned().collect();
    for node in nodes {
        node.close().await;
    }
    let outcomes = swarm.outcomes.borrow();
    let count =
        |test: fn(&Result<(), PeerError>) -> bool| outcomes.values().filter(|o| test(o)).count();
    Tally {
        answered: count(Result::is_ok),
        unreachable: count(|o| matches!(o, Err(PeerError::Unreachable { .. }))),
        unknown: count(|o| matches!(o, Err(PeerError::Timeout | PeerError::Broken { .. }))),
        messages: swarm.ledger.received.lock().values().sum(),
        trace: swarm.net.trace(),
    }
}

fn run(seed: u64) -> Tally {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(swarm(seed))
}

#[test]
fn promises_hold_under_swarms_of_faults_and_everyone_recovers() {
    let seeds = std::env::var("TRILOG_SEEDS")
        .ok()
        .and_then(|seeds| seeds.parse().ok());
    let seeds = seeds.unwrap_or(5);
    let (mut answered, mut failed, mut messages) = (0, 0, 0);
    for seed in 0..seeds {
        let tally = std::panic::catch_unwind(|| run(seed));
        let tally = tally.unwrap_or_else(|_| panic!("seed {seed}"));
        answered += tally.answered;
        failed += tally.unreachable + tally.unknown;
        messages += tally.messages;
    }
    // Runs in which all or nothing works would prove little.
    let seeds = usize::try_from(seeds).unwrap();
    assert!(
        answered > 100 * seeds && failed > 100 * seeds,
        "{answered}, {failed}"
    );
    assert!(messages > 1_000 * seeds as u64, "{messages}");
}

#[test]
fn a_swarm_of_faults_repeats_under_its_seed() {
    assert_eq!(run(77), run(77));
}
