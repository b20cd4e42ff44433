//! The state of a simulated network: hosts, cuts, and the bytes under way on each connection.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io::IoSlice;
use std::task::Waker;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use tokio::time::Instant;
use trilog_model::NodeId;

use super::{Crash, Owner, Path, Trace};

/// What one direction of a connection may hold: the socket buffers of both ends.
const PIPE_CAPACITY: usize = 1 << 20;

/// The two ends of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Initiator,
    Acceptor,
}

impl Side {
    const fn other(self) -> Self {
        match self {
            Self::Initiator => Self::Acceptor,
            Self::Acceptor => Self::Initiator,
        }
    }

    const fn index(self) -> usize {
        self as usize
    }
}

/// What the trace records.
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    Start = 1,
    Connect,
    Refuse,
    Write,
    Deliver,
    Close,
    Reset,
    Cut,
    Heal,
    Crash,
    Reject,
}

#[derive(Debug)]
struct Chunk {
    due: Instant,
    bytes: Bytes,
}

/// The bytes that one end has written and the other has not read.
#[derive(Debug)]
struct Pipe {
    chunks: VecDeque<Chunk>,
    queued: usize,
    last_due: Instant,
    finished: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

impl Pipe {
    fn new(now: Instant) -> Self {
        Self {
            chunks: VecDeque::new(),
            queued: 0,
            last_due: now,
            finished: false,
            reader: None,
            writer: None,
        }
    }

    fn wake(&mut self) {
        for waker in [self.reader.take(), self.writer.take()]
            .into_iter()
            .flatten()
        {
            waker.wake();
        }
    }
}

/// How an end of a connection fares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Fine,
    /// The other end is gone without a word: what is written disappears.
    Deserted,
    /// Delivers what still arrives, then fails.
    Reset,
}

#[derive(Debug)]
struct Wire {
    nodes: [NodeId; 2],
    /// By the side that writes.
    pipes: [Pipe; 2],
    /// By the side that suffers.
    health: [Health; 2],
    open: [bool; 2],
}

impl Wire {
    fn joins(&self, a: NodeId, b: NodeId) -> bool {
        self.nodes == [a, b] || self.nodes == [b, a]
    }
}

#[derive(Debug, Default)]
struct Host {
    /// Part of its address.
    place: u32,
    incarnation: u64,
    up: bool,
    backlog: VecDeque<(u64, NodeId)>,
    owner: Option<Owner>,
    /// Went down without telling anyone.
    vanished: bool,
}

/// What an attempt to read finds.
#[derive(Debug)]
pub(super) enum Incoming {
    Bytes(Bytes),
    End,
    Reset,
    /// Nothing yet; at that time there will be.
    Until(Instant),
    Nothing,
}

#[derive(Debug)]
pub(super) struct World {
    random: SmallRng,
    hosts: BTreeMap<NodeId, Host>,
    wires: BTreeMap<u64, Wire>,
    next_wire: u64,
    pub(super) default_path: Path,
    paths: BTreeMap<(NodeId, NodeId), Path>,
    cuts: BTreeSet<(NodeId, NodeId)>,
    /// Whose packets to whom are answered with a refusal.
    rejected: BTreeSet<(NodeId, NodeId)>,
    start: Instant,
    trace: Trace,
}

impl World {
    pub(super) fn new(seed: u64) -> Self {
        Self {
            random: SmallRng::seed_from_u64(seed),
            hosts: BTreeMap::new(),
            wires: BTreeMap::new(),
            next_wire: 1,
            default_path: Path::default(),
            paths: BTreeMap::new(),
            cuts: BTreeSet::new(),
            rejected: BTreeSet::new(),
            start: Instant::now(),
            trace: Trace::default(),
        }
    }

    pub(super) const fn trace(&self) -> Trace {
        self.trace
    }

    fn record(&mut self, event: Event, from: NodeId, to: NodeId, detail: u64) {
        let micros = self.start.elapsed().as_micros();
        let place = (u64::from(from.get()) << 32) | u64::from(to.get());
        for word in [
            u64::try_from(micros).unwrap_or(u64::MAX),
            event as u64,
            place,
            detail,
        ] {
            self.trace.hash = mix(self.trace.hash ^ word);
        }
        self.trace.events += 1;
    }

    /// A host comes up; returns its incarnation and a seed of its own.
    pub(super) fn start_host(&mut self, node: NodeId) -> (u64, u64) {
        self.record(Event::Start, node, node, 0);
        let host = self.hosts.entry(node).or_default();
        host.incarnation += 1;
        host.up = true;
        let incarnation = host.incarnation;
        if std::mem::take(&mut host.vanished) {
            // Back again, its machine knows nothing of the old connections and says so.
            self.for_wires_of(node, |world, id, side| world.break_end(id, side.other()));
        }
        (incarnation, self.random.next_u64())
    }

    /// Gives a node's machine another address.
    pub(super) fn relocate(&mut self, node: NodeId, place: u32) {
        self.hosts.entry(node).or_default().place = place;
    }

    /// Where a node's machine stands; zero unless it was moved.
    pub(super) fn place(&self, node: NodeId) -> u32 {
        self.hosts.get(&node).map_or(0, |host| host.place)
    }

    pub(super) fn own(&mut self, node: NodeId, owner: Owner) {
        if let Some(host) = self.hosts.get_mut(&node) {
            host.owner = Some(owner);
        }
    }

    pub(super) fn nodes(&self) -> Vec<NodeId> {
        self.hosts.keys().copied().collect()
    }

    pub(super) fn cuts(&self) -> Vec<(NodeId, NodeId)> {
        self.cuts.iter().copied().collect()
    }

    pub(super) fn cut(&mut self, from: NodeId, to: NodeId) {
        if self.cuts.insert((from, to)) {
            self.record(Event::Cut, from, to, 0);
        }
    }

    pub(super) fn heal(&mut self, from: NodeId, to: NodeId) {
        if !self.cuts.remove(&(from, to)) {
            return;
        }
        self.record(Event::Heal, from, to, 0);
        // What was held back is sent again, and takes its time.
        let due = Instant::now() + self.travel(from, to);
        self.retime(from, to, |old| old.max(due));
    }

    /// From now on everything between two nodes is refused on its way, as by a firewall that says
    /// so: their connections break, and none is made.
    pub(super) fn reject(&mut self, a: NodeId, b: NodeId) {
        if self.rejected.insert((a, b)) {
            self.rejected.insert((b, a));
            self.record(Event::Reject, a, b, 0);
            self.reset_between(a, b);
        }
    }

    pub(super) fn admit_all(&mut self) {
        self.rejected.clear();
    }

    /// Sets a path; what is under way arrives no later than if it were sent along it now.
    pub(super) fn set_path(&mut self, from: NodeId, to: NodeId, path: Path) {
        self.paths.insert((from, to), path);
        let slowest = Instant::now() + path.latency + path.jitter;
        self.retime(from, to, |old| old.min(slowest));
    }

    /// Changes when the bytes under way in one direction arrive, keeping their order.
    fn retime(&mut self, from: NodeId, to: NodeId, change: impl Fn(Instant) -> Instant) {
        for wire in self.wires.values_mut() {
            for side in 0..2 {
                if wire.nodes[side] == from && wire.nodes[1 - side] == to {
                    let pipe = &mut wire.pipes[side];
                    for chunk in &mut pipe.chunks {
                        chunk.due = change(chunk.due);
                    }
                    pipe.last_due = change(pipe.last_due);
                    pipe.wake();
                }
            }
        }
    }

    fn path(&self, from: NodeId, to: NodeId) -> Path {
        self.paths
            .get(&(from, to))
            .copied()
            .unwrap_or(self.default_path)
    }

    /// How long the next packet takes.
    pub(super) fn travel(&mut self, from: NodeId, to: NodeId) -> Duration {
        let path = self.path(from, to);
        let share: f64 = self.random.random();
        path.latency + path.jitter.mul_f64(share)
    }

    /// Whether packets pass both ways, to a machine that answers at all.
    pub(super) fn reaches_both_ways(&self, from: NodeId, to: NodeId) -> bool {
        let silent = self.hosts.get(&to).is_some_and(|host| host.vanished);
        !silent && !self.cuts.contains(&(from, to)) && !self.cuts.contains(&(to, from))
    }

    /// Opens a connection to whoever is at the address of `to` at `place`; `None` if it is refused.
    pub(super) fn connect(&mut self, from: NodeId, to: NodeId, place: u32) -> Option<u64> {
        let host = self.hosts.get(&to);
        let listens = host.is_some_and(|host| host.up && host.place == place);
        if !listens || self.rejected.contains(&(from, to)) {
            self.record(Event::Refuse, from, to, 0);
            return None;
        }
        let id = self.next_wire;
        self.next_wire += 1;
        self.record(Event::Connect, from, to, id);
        let now = Instant::now();
        self.wires.insert(
            id,
            Wire {
                nodes: [from, to],
                pipes: [Pipe::new(now), Pipe::new(now)],
                health: [Health::Fine; 2],
                open: [true; 2],
            },
        );
        if let Some(host) = self.hosts.get_mut(&to) {
            host.backlog.push_back((id, from));
        }
        Some(id)
    }

    pub(super) fn accept(&mut self, node: NodeId, incarnation: u64) -> Option<(u64, NodeId)> {
        let host = self.hosts.get_mut(&node)?;
        if host.incarnation != incarnation || !host.up {
            return None;
        }
        host.backlog.pop_front()
    }

    /// Takes bytes to carry; `None` while the pipe is full.
    pub(super) fn write(
        &mut self,
        id: u64,
        side: Side,
        slices: &[IoSlice<'_>],
        waker: &Waker,
    ) -> Result<Option<usize>, ()> {
        let wire = self.wires.get_mut(&id).ok_or(())?;
        match wire.health[side.index()] {
            Health::Reset => return Err(()),
            Health::Deserted => return Ok(Some(slices.iter().map(|slice| slice.len()).sum())),
            Health::Fine => {}
        }
        let [from, to] = [wire.nodes[side.index()], wire.nodes[side.other().index()]];
        let pipe = &mut wire.pipes[side.index()];
        let room = PIPE_CAPACITY.saturating_sub(pipe.queued);
        if room == 0 {
            pipe.writer = Some(waker.clone());
            return Ok(None);
        }
        let mut taken = BytesMut::new();
        for slice in slices {
            let part = &slice[..slice.len().min(room - taken.len())];
            taken.extend_from_slice(part);
        }
        let taken = taken.freeze();
        let crc = crc32c::crc32c(&taken);
        self.record(Event::Write, from, to, (id << 32) | u64::from(crc));
        let len = taken.len();
        let travel = self.travel(from, to);
        let on_wire = self
            .path(from, to)
            .bandwidth
            .map_or(Duration::ZERO, |rate| {
                Duration::from_nanos(1_000_000_000 * len as u64 / rate.max(1))
            });
        let wire = self.wires.get_mut(&id).ok_or(())?;
        let pipe = &mut wire.pipes[side.index()];
        let due = (Instant::now() + travel).max(pipe.last_due) + on_wire;
        pipe.last_due = due;
        pipe.queued += len;
        pipe.chunks.push_back(Chunk { due, bytes: taken });
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
        Ok(Some(len))
    }

    /// What the end at `side` can read now, at most `max` bytes.
    pub(super) fn read(&mut self, id: u64, side: Side, max: usize, waker: &Waker) -> Incoming {
        let now = Instant::now();
        let Some(wire) = self.wires.get_mut(&id) else {
            return Incoming::Reset;
        };
        let writer = side.other().index();
        let [from, to] = [wire.nodes[writer], wire.nodes[side.index()]];
        let health = wire.health[side.index()];
        let pipe = &mut wire.pipes[writer];
        let held = self.cuts.contains(&(from, to));
        let Some(chunk) = pipe.chunks.front_mut() else {
            if health == Health::Reset {
                return Incoming::Reset;
            }
            if pipe.finished && !held && health == Health::Fine {
                return Incoming::End;
            }
            pipe.reader = Some(waker.clone());
            return Incoming::Nothing;
        };
        if held {
            pipe.reader = Some(waker.clone());
            return Incoming::Nothing;
        }
        if chunk.due > now {
            pipe.reader = Some(waker.clone());
            return Incoming::Until(chunk.due);
        }
        let taken = chunk.bytes.split_to(max.min(chunk.bytes.len()));
        if chunk.bytes.is_empty() {
            pipe.chunks.pop_front();
        }
        pipe.queued -= taken.len();
        if let Some(writer) = pipe.writer.take() {
            writer.wake();
        }
        self.record(Event::Deliver, from, to, (id << 32) | taken.len() as u64);
        Incoming::Bytes(taken)
    }

    /// The end at `side` writes no more.
    pub(super) fn finish(&mut self, id: u64, side: Side) {
        let Some(wire) = self.wires.get_mut(&id) else {
            return;
        };
        if wire.health[side.index()] == Health::Reset {
            return;
        }
        let pipe = &mut wire.pipes[side.index()];
        if std::mem::replace(&mut pipe.finished, true) {
            return;
        }
        pipe.wake();
        let [from, to] = [wire.nodes[side.index()], wire.nodes[side.other().index()]];
        self.record(Event::Close, from, to, id);
    }

    /// The end at `side` reads no more: the other end's writes fail, what it wrote is lost.
    pub(super) fn shut(&mut self, id: u64, side: Side) {
        self.finish(id, side);
        let Some(wire) = self.wires.get_mut(&id) else {
            return;
        };
        wire.open[side.index()] = false;
        if wire.open == [false; 2] {
            self.wires.remove(&id);
            return;
        }
        // What this end never read is lost, and the other's writing fails.
        let pipe = &mut wire.pipes[side.other().index()];
        pipe.chunks.clear();
        pipe.queued = 0;
        let other = side.other().index();
        if wire.health[other] == Health::Fine {
            wire.health[other] = Health::Reset;
        }
        wire.pipes.iter_mut().for_each(Pipe::wake);
    }

    /// Breaks a connection for one end: of what is under way to it, a random part still arrives.
    fn break_end(&mut self, id: u64, side: Side) {
        let Some(wire) = self.wires.get_mut(&id) else {
            return;
        };
        wire.health[side.index()] = Health::Reset;
        let [from, to] = [wire.nodes[side.other().index()], wire.nodes[side.index()]];
        let pipe = &mut wire.pipes[side.other().index()];
        let keep = self.random.random_range(0..=pipe.chunks.len());
        pipe.chunks.truncate(keep);
        if let Some(last) = pipe.chunks.back_mut() {
            let len = self.random.random_range(0..=last.bytes.len());
            last.bytes.truncate(len);
            if len == 0 {
                pipe.chunks.pop_back();
            }
        }
        pipe.queued = pipe.chunks.iter().map(|chunk| chunk.bytes.len()).sum();
        wire.pipes.iter_mut().for_each(Pipe::wake);
        self.record(Event::Reset, from, to, id);
    }

    pub(super) fn reset_between(&mut self, a: NodeId, b: NodeId) {
        let ids: Vec<u64> = self
            .wires
            .iter()
            .filter_map(|(&id, wire)| wire.joins(a, b).then_some(id))
            .collect();
        for id in ids {
            self.break_end(id, Side::Initiator);
            self.break_end(id, Side::Acceptor);
        }
    }

    fn for_wires_of(&mut self, node: NodeId, mut act: impl FnMut(&mut Self, u64, Side)) {
        let ends: Vec<(u64, Side)> = self
            .wires
            .iter()
            .flat_map(|(&id, wire)| {
                [Side::Initiator, Side::Acceptor]
                    .into_iter()
                    .filter(move |side| wire.nodes[side.index()] == node)
                    .map(move |side| (id, side))
            })
            .collect();
        for (id, side) in ends {
            act(self, id, side);
        }
    }

    /// Takes a node down; returns who owned it.
    pub(super) fn crash(&mut self, node: NodeId, how: Crash) -> Option<Owner> {
        self.record(Event::Crash, node, node, how as u64);
        let host = self.hosts.get_mut(&node)?;
        host.up = false;
        host.backlog.clear();
        host.vanished = how == Crash::Machine;
        let owner = host.owner.take();
        self.for_wires_of(node, |world, id, side| {
            if let Some(wire) = world.wires.get_mut(&id) {
                wire.open[side.index()] = false;
                wire.health[side.index()] = Health::Reset;
                wire.pipes[side.other().index()].chunks.clear();
                wire.pipes[side.other().index()].queued = 0;
            }
            match how {
                Crash::Process => world.break_end(id, side.other()),
                Crash::Machine => world.desert(id, side.other()),
            }
        });
        owner
    }

    /// The other end of a connection vanished: what it had sent may still arrive, no more comes.
    fn desert(&mut self, id: u64, side: Side) {
        if let Some(wire) = self.wires.get_mut(&id) {
            if wire.health[side.index()] == Health::Fine {
                wire.health[side.index()] = Health::Deserted;
            }
            wire.pipes.iter_mut().for_each(Pipe::wake);
        }
    }
}

/// One step of a mixing function (the finalizer of splitmix64).
const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9E37_79B9_7F4A_7C15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    word ^ (word >> 31)
}
