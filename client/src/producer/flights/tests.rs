//! The flights against a model of the server, over a network that loses answers, delays copies
//! beyond the life of their connection, and refuses at whim.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

/// A batch: its number in the order of `send`, and the stamp it bears.
#[derive(Clone, Copy, Debug)]
struct Batch {
    number: u32,
    count: i32,
    stamp: ProducerState,
}

/// How a node takes one request.
#[derive(Clone, Copy, Debug)]
enum Mood {
    Works,
    NotLeader,
    Refuses,
    /// Appends, or not, and says that it does not know.
    Unsure(bool),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Appended,
    NotLeader,
    Refused,
    Unknown,
    OutOfOrder,
    Fenced,
}

/// One producer in one partition, as the server judges it.
#[derive(Debug, Default)]
struct Producer {
    epoch: i16,
    /// First and last sequence of the latest batches.
    window: VecDeque<(i32, i32)>,
}

#[derive(Debug, Default)]
struct Server {
    log: Vec<u32>,
    producers: BTreeMap<i64, Producer>,
}

impl Server {
    fn append(&mut self, batch: &Batch) -> Answer {
        let first = batch.stamp.sequence;
        let last = sequence_after(first, batch.count - 1);
        let known = self.producers.entry(batch.stamp.id).or_default();
        if batch.stamp.epoch < known.epoch {
            return Answer::Fenced;
        }
        if batch.stamp.epoch > known.epoch {
            if first != 0 {
                return Answer::OutOfOrder;
            }
            known.window.clear();
            known.epoch = batch.stamp.epoch;
        } else if let Some(&(_, newest)) = known.window.back() {
            if known.window.contains(&(first, last)) {
                return Answer::Appended;
            }
            if first != sequence_after(newest, 1) {
                return Answer::OutOfOrder;
            }
        }
        // An unknown producer may begin with any sequence.
        known.window.push_back((first, last));
        if known.window.len() > 5 {
            known.window.pop_front();
        }
        self.log.push(batch.number);
        Answer::Appended
    }

    fn take(&mut self, batch: &Batch, mood: Mood) -> Answer {
        match mood {
            Mood::Works => self.append(batch),
            Mood::NotLeader => Answer::NotLeader,
            Mood::Refuses => Answer::Refused,
            Mood::Unsure(appends) => {
                if appends {
                    self.append(batch);
                }
                Answer::Unknown
            }
        }
    }
}

/// A lane, its present connection, and what is left of earlier ones in the network.
struct World {
    flights: Flights<Batch>,
    server: Server,
    link: VecDeque<(Ticket, Batch)>,
    ghosts: Vec<VecDeque<(Ticket, Batch)>>,
    pushed: u32,
    acked: Vec<u32>,
    in_doubt: Vec<u32>,
    refused: Vec<u32>,
    next_id: i64,
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Push(i32),
    Deliver(Mood),
    /// The connection breaks; what it carried may arrive later all the same.
    Break,
    Ghost(usize, Mood),
    Step,
    Expire,
}

impl World {
    fn new() -> Self {
        Self {
            flights: Flights::new(1, 0),
            server: Server::default(),
            link: VecDeque::new(),
            ghosts: Vec::new(),
            pushed: 0,
            acked: Vec::new(),
            in_doubt: Vec::new(),
            refused: Vec::new(),
            next_id: 1,
        }
    }

    fn run(&mut self, op: Op) {
        match op {
            Op::Push(count) if self.flights.has_room() => self.push(count),
            Op::Push(_) => {}
            Op::Deliver(mood) => {
                if let Some((ticket, batch)) = self.link.pop_front() {
                    let answer = self.server.take(&batch, mood);
                    self.answer(ticket, answer);
                }
            }
            Op::Break => {
                let carried = std::mem::take(&mut self.link);
                for (ticket, _) in &carried {
                    self.flights.attempt_failed(*ticket, Doubt::MayBeAppended);
                }
                self.ghosts.push(carried);
            }
            Op::Ghost(which, mood) => {
                let ghosts = self.ghosts.len().max(1);
                let ghost = self.ghosts.get_mut(which % ghosts);
                if let Some((_, batch)) = ghost.and_then(VecDeque::pop_front) {
                    self.server.take(&batch, mood);
                }
            }
            Op::Step => self.step(),
            Op::Expire => {
                let oldest = self.flights.expired(|_| true).first().copied();
                let failed = oldest.and_then(|ticket| self.flights.failed(ticket));
                self.note(failed);
            }
        }
    }

    fn push(&mut self, count: i32) {
        let batch = Batch {
            number: self.pushed,
            count,
            stamp: self.flights.next_stamp(),
        };
        self.pushed += 1;
        let ticket = self.flights.push(batch, count);
        self.link.push_back((ticket, batch));
    }

    fn answer(&mut self, ticket: Ticket, answer: Answer) {
        let failed = match answer {
            Answer::Appended => {
                let batch = self.flights.acknowledged(ticket).unwrap();
                self.acked.push(batch.number);
                None
            }
            Answer::NotLeader => {
                self.flights.attempt_failed(ticket, Doubt::None);
                None
            }
            Answer::Unknown => {
                self.flights.attempt_failed(ticket, Doubt::MayBeAppended);
                None
            }
            Answer::Refused => self.flights.failed(ticket),
            Answer::OutOfOrder => self.flights.out_of_order(ticket),
            Answer::Fenced => self.flights.fenced(ticket),
        };
        self.note(failed);
    }

    fn note(&mut self, failed: Option<(Batch, Doubt)>) {
        match failed {
            Some((batch, Doubt::MayBeAppended)) => self.in_doubt.push(batch.number),
            Some((batch, Doubt::None)) => self.refused.push(batch.number),
            None => {}
        }
    }

    fn step(&mut self) {
        if self.flights.step() == Step::Renew {
            let fresh = self.flights.needs_producer_id();
            self.next_id += i64::from(fresh);
            let id = fresh.then_some((self.next_id, 0));
            self.flights.renew(id, |batch, stamp| batch.stamp = stamp);
            return self.step();
        }
        let waiting: Vec<Ticket> = self.link.iter().map(|(ticket, _)| *ticket).collect();
        let sent = self.flights.queue.iter().filter(|flight| flight.sent);
        let again: Vec<(Ticket, Batch)> = sent
            .filter(|flight| !waiting.contains(&flight.ticket))
            .map(|flight| (flight.ticket, flight.batch))
            .collect();
        self.link.extend(again);
    }

    /// Everything arrives and everybody works: every batch gets its answer.
    fn settle(&mut self) {
        for _ in 0..100 {
            while !self.link.is_empty() {
                self.run(Op::Deliver(Mood::Works));
            }
            if self.flights.is_empty() {
                break;
            }
            self.run(Op::Step);
        }
        for ghost in std::mem::take(&mut self.ghosts) {
            for (_, batch) in ghost {
                self.server.append(&batch);
            }
        }
    }

    fn check(&self) {
        assert!(self.flights.is_empty(), "not settled: {:?}", self.flights);
        let mut count = BTreeMap::<u32, u32>::new();
        for number in &self.server.log {
            *count.entry(*number).or_default() += 1;
        }
        assert!(count.values().all(|count| *count == 1), "appended twice");
        for number in &self.acked {
            assert!(count.contains_key(number), "{number} acknowledged and lost");
        }
        for number in &self.refused {
            assert!(!count.contains_key(number), "{number} refused and kept");
        }
        let log = self.server.log.iter();
        let acked: Vec<_> = log.filter(|number| self.acked.contains(number)).collect();
        assert!(acked.is_sorted(), "out of order: {acked:?}");
        let all = self.acked.len() + self.refused.len() + self.in_doubt.len();
        assert_eq!(all, usize::try_from(self.pushed).unwrap());
    }
}

fn mood() -> impl Strategy<Value = Mood> {
    prop_oneof![
        6 => Just(Mood::Works),
        2 => Just(Mood::NotLeader),
        1 => Just(Mood::Refuses),
        1 => any::<bool>().prop_map(Mood::Unsure),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (1..4_i32).prop_map(Op::Push),
        8 => mood().prop_map(Op::Deliver),
        1 => Just(Op::Break),
        2 => (0..4_usize, mood()).prop_map(|(which, mood)| Op::Ghost(which, mood)),
        3 => Just(Op::Step),
        1 => Just(Op::Expire),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_appended_twice_or_out_of_order(ops in prop::collection::vec(op(), 1..80)) {
        let mut world = World::new();
        for op in ops {
            world.run(op);
        }
        world.settle();
        world.check();
    }
}

fn run_all(ops: &[Op]) -> World {
    let mut world = World::new();
    for op in ops {
        world.run(*op);
    }
    world.settle();
    world.check();
    world
}

const WORKS: Op = Op::Deliver(Mood::Works);
const LOST: Op = Op::Deliver(Mood::NotLeader);

#[test]
fn the_first_batch_is_not_overtaken_where_the_server_knows_nothing() {
    // Refused where nobody leads; a second batch under way would be taken as the first.
    run_all(&[Op::Push(1), Op::Push(1), LOST, WORKS, Op::Push(1)]);
}

#[test]
fn a_batch_keeps_its_identity_while_one_before_it_is_in_doubt() {
    // Copies of 1 and 2 outlive their connection. 3 is refused, so the rest needs a new epoch;
    // that 2 is out of order then says nothing about its copy, which follows that of 1.
    run_all(&[
        Op::Push(1),
        WORKS,
        Op::Push(1),
        Op::Push(1),
        Op::Break,
        Op::Step,
        Op::Push(1),
        LOST,
        WORKS,
        Op::Deliver(Mood::Refuses),
        Op::Step,
        LOST,
        WORKS,
        Op::Ghost(0, Mood::Works),
        Op::Ghost(0, Mood::Works),
    ]);
}

#[test]
fn the_oldest_batch_in_doubt_is_never_beyond_the_servers_memory() {
    // 1 was appended, its answer lost; five more behind it would make the server forget it.
    let mut ops = vec![
        Op::Push(1),
        WORKS,
        Op::Push(1),
        Op::Deliver(Mood::Unsure(true)),
    ];
    ops.push(Op::Step);
    for _ in 0..9 {
        ops.extend([Op::Push(1), Op::Deliver(Mood::Unsure(false)), Op::Step]);
    }
    let world = run_all(&ops);
    assert!(world.in_doubt.is_empty());
}

#[test]
fn a_lost_answer_is_fetched_without_a_second_append() {
    let mut world = World::new();
    world.run(Op::Push(2));
    world.run(Op::Deliver(Mood::Unsure(true)));
    world.run(Op::Step);
    world.run(Op::Deliver(Mood::Works));
    assert_eq!(world.server.log, [0]);
    assert_eq!(world.acked, [0]);
}

#[test]
fn a_batch_behind_a_refused_one_follows_under_the_next_epoch() {
    let mut world = World::new();
    world.run(Op::Push(1));
    world.run(Op::Deliver(Mood::Works));
    world.run(Op::Push(1));
    world.run(Op::Push(1));
    world.run(Op::Deliver(Mood::Refuses));
    world.run(Op::Deliver(Mood::Works));
    world.run(Op::Step);
    world.run(Op::Deliver(Mood::Works));
    assert_eq!(world.server.log, [0, 2]);
    assert_eq!(world.refused, [1]);
    assert_eq!(world.flights.next_stamp().epoch, 1);
    assert_eq!(world.flights.next_stamp().sequence, 1);
}

#[test]
fn no_more_than_five_batches_are_unanswered() {
    let mut world = World::new();
    world.run(Op::Push(1));
    world.run(Op::Push(1));
    assert_eq!(world.pushed, 1, "the server has yet to know the producer");
    world.run(Op::Deliver(Mood::Works));
    for _ in 0..9 {
        world.run(Op::Push(1));
    }
    assert_eq!(world.pushed, 6);
}

#[test]
fn the_last_epoch_is_followed_by_a_new_producer_id() {
    let mut flights = Flights::new(1, i16::MAX);
    let ticket = flights.push((), 1);
    flights.failed(ticket);
    assert_eq!(flights.step(), Step::Renew);
    assert!(flights.needs_producer_id());
    flights.renew(Some((2, 0)), |(), _| {});
    assert_eq!(flights.step(), Step::Resend(vec![]));
    assert_eq!(flights.next_stamp().id, 2);
}
