//! One group under a seed: consumers that join, read, give up, are late, die, come back and lose
//! answers, while topics grow. No partition is ever read by two, no epoch goes back, and in the
//! end everybody reads what it is to read.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::Instant;
use trilog_raft::controller::TopicId;

use super::*;

const SESSION: Duration = Duration::from_secs(45);
const BEAT: Duration = Duration::from_secs(5);

fn settings() -> Settings {
    Settings {
        partitions: 1,
        initial_rebalance_delay: Duration::ZERO,
        session_timeout_min: Duration::from_secs(1),
        session_timeout_max: Duration::from_mins(1),
        members_max: 20,
        consumer_session: SESSION,
        consumer_heartbeat: BEAT,
        offset_retention: Duration::from_mins(1),
        offset_metadata_max: 100,
    }
}

fn topic(number: u8) -> TopicId {
    TopicId::from_wire(&[number; 16]).unwrap()
}

fn catalogue(version: u64, counts: &[u32]) -> Arc<Catalogue> {
    let topics = (1..).zip(counts);
    let topics = topics.map(|(number, count)| (format!("t{number}"), (topic(number), *count)));
    Arc::new(Catalogue {
        version,
        topics: topics.collect(),
    })
}

/// A coordinator with its clock and topics.
struct Desk {
    group: ConsumerGroup,
    now: Instant,
    settings: Settings,
    catalogue: Arc<Catalogue>,
}

impl Desk {
    fn new(counts: &[u32]) -> Self {
        Self {
            group: ConsumerGroup::new(),
            now: Instant::now(),
            settings: settings(),
            catalogue: catalogue(1, counts),
        }
    }

    fn beat(&mut self, beat: &ConsumerBeat) -> Result<Given, GroupError> {
        let around = Around {
            now: self.now,
            settings: &self.settings,
            catalogue: &self.catalogue,
        };
        let told = self.group.heartbeat(beat, around);
        self.check();
        told
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let around = Around {
            now: self.now,
            settings: &self.settings,
            catalogue: &self.catalogue,
        };
        self.group.expire(around);
        self.check();
    }

    /// Another node takes over from what is committed.
    fn move_on(&mut self) {
        let stored = self.group.stored();
        self.group = ConsumerGroup::load(&stored, self.now, &self.settings);
        assert_eq!(self.group.stored(), stored);
        self.check();
    }

    /// Nothing is held twice, counting what is about to be given up.
    fn check(&self) {
        let held = self.group.members.values();
        let held: Vec<Part> = held
            .flat_map(|member| member.assigned.union(&member.revoking).copied())
            .collect();
        let each: BTreeSet<Part> = held.iter().copied().collect();
        assert_eq!(held.len(), each.len(), "{:#?}", self.group);
        let ahead = |member: &Member| member.epoch <= self.group.epoch;
        assert!(self.group.members.values().all(ahead));
    }
}

fn join(member: &str, topics: &[&str]) -> ConsumerBeat {
    ConsumerBeat {
        group: "g".to_owned(),
        member: member.to_owned(),
        client_id: member.to_owned(),
        rebalance_timeout: Some(Duration::from_mins(1)),
        topics: Some(topics.iter().map(|topic| (*topic).to_owned()).collect()),
        owned: Some(BTreeSet::new()),
        ..ConsumerBeat::default()
    }
}

/// What a consumer says that reads what it was given last.
fn next(given: &Given, owned: &BTreeSet<Part>) -> ConsumerBeat {
    ConsumerBeat {
        group: "g".to_owned(),
        member: given.member.clone(),
        epoch: given.epoch,
        owned: Some(owned.clone()),
        ..ConsumerBeat::default()
    }
}

fn parts(given: &Given) -> BTreeSet<Part> {
    given.assigned.iter().flatten().copied().collect()
}

fn numbers(topic_number: u8, partitions: impl IntoIterator<Item = u32>) -> BTreeSet<Part> {
    let all = partitions.into_iter();
    all.map(|index| (topic(topic_number), index)).collect()
}

#[test]
fn a_second_member_gets_its_share_once_the_first_has_given_it_up() {
    let mut desk = Desk::new(&[4]);
    let a = desk.beat(&join("a", &["t1"])).unwrap();
    assert_eq!((a.epoch, parts(&a)), (1, numbers(1, 0..4)));
    let b = desk.beat(&join("b", &["t1"])).unwrap();
    assert_eq!((b.epoch, parts(&b).len()), (2, 0), "it waits");

    let before = parts(&a);
    let told = desk.beat(&next(&a, &before)).unwrap();
    assert_eq!((told.epoch, parts(&told).len()), (1, 2), "its epoch stays");
    assert!(parts(&told).is_subset(&before));
    let waits = desk.beat(&next(&b, &BTreeSet::new())).unwrap();
    assert_eq!(waits.assigned, None, "nothing is new");

    let kept = parts(&told);
    let done = desk.beat(&next(&told, &kept)).unwrap();
    assert_eq!(done.epoch, 2);
    let b = desk.beat(&next(&waits, &BTreeSet::new())).unwrap();
    assert_eq!(parts(&b).len(), 2);
    assert!(parts(&b).is_disjoint(&kept));
    assert_eq!(desk.group.state(), GroupState::Stable);
}

#[test]
fn who_is_not_affected_hears_of_nothing_but_a_new_epoch() {
    let mut desk = Desk::new(&[2, 2]);
    let a = desk.beat(&join("a", &["t1"])).unwrap();
    let b = desk.beat(&join("b", &["t2"])).unwrap();
    assert_eq!((parts(&a).len(), parts(&b).len()), (2, 2));
    desk.pass(Duration::from_secs(44));
    desk.beat(&next(&a, &parts(&a))).unwrap();
    desk.pass(Duration::from_secs(2));
    assert_eq!(desk.group.member_count(), 1, "the other has died");
    let told = desk.beat(&ConsumerBeat {
        owned: None,
        ..next(&a, &parts(&a))
    });
    // Its epoch moved with its last words, and now again.
    let told = match told {
        Err(GroupError::FencedEpoch) => desk.beat(&next(&a, &parts(&a))),
        told => told,
    };
    let told = told.unwrap();
    assert_eq!(told.assigned, None);
    assert_eq!(told.epoch, 3);
}

#[test]
fn a_lost_answer_may_be_asked_for_again_and_any_other_epoch_is_fenced() {
    let mut desk = Desk::new(&[4]);
    let a = desk.beat(&join("a", &["t1"])).unwrap();
    let again = desk.beat(&join("a", &["t1"])).unwrap();
    assert_eq!(again, a, "a join that is repeated changes nothing");
    desk.beat(&join("b", &["t1"])).unwrap();
    desk.beat(&next(&a, &parts(&a))).unwrap();
    let kept = desk.group.members["a"].assigned.clone();
    desk.beat(&next(&a, &kept)).unwrap();
    // The answer with epoch 2 was lost.
    let again = desk.beat(&next(&a, &kept)).unwrap();
    assert_eq!(again.epoch, 2);
    let more = ConsumerBeat {
        epoch: 1,
        ..next(&a, &numbers(1, 0..4))
    };
    assert_eq!(desk.beat(&more), Err(GroupError::FencedEpoch));
    let silent = ConsumerBeat {
        epoch: 1,
        owned: None,
        ..next(&a, &kept)
    };
    assert_eq!(desk.beat(&silent), Err(GroupError::FencedEpoch));
    let ahead = ConsumerBeat {
        epoch: 9,
        ..next(&a, &kept)
    };
    assert_eq!(desk.beat(&ahead), Err(GroupError::FencedEpoch));
    let stranger = ConsumerBeat {
        member: "c".to_owned(),
        ..next(&a, &kept)
    };
    assert_eq!(desk.beat(&stranger), Err(GroupError::UnknownMember));
    assert_eq!(desk.group.check_epoch("a", 1), Err(GroupError::StaleEpoch));
    assert_eq!(desk.group.check_epoch("a", 2), Ok(()));
}

#[test]
fn who_does_not_give_up_in_time_is_let_go() {
    let mut desk = Desk::new(&[2]);
    let a = desk.beat(&join("a", &["t1"])).unwrap();
    let mut b = desk.beat(&join("b", &["t1"])).unwrap();
    for _ in 0..11 {
        let held = next(&a, &parts(&a));
        desk.beat(&held).unwrap();
        b = desk.beat(&next(&b, &BTreeSet::new())).unwrap();
        desk.pass(BEAT);
    }
    desk.pass(BEAT);
    assert_eq!(
        desk.beat(&next(&a, &parts(&a))),
        Err(GroupError::UnknownMember)
    );
    let b = desk.beat(&next(&b, &BTreeSet::new())).unwrap();
    assert_eq!(parts(&b), numbers(1, 0..2));
}

#[test]
fn a_named_member_that_returns_goes_on_where_it_was_and_nobody_else_notices() {
    let named = |member: &str| ConsumerBeat {
        instance: Some("i".to_owned()),
        ..join(member, &["t1"])
    };
    let mut desk = Desk::new(&[4]);
    let a = desk.beat(&named("a")).unwrap();
    // Clients say their name when they join, and no more.
    assert_eq!(desk.beat(&next(&a, &parts(&a))).unwrap().epoch, a.epoch);
    desk.beat(&join("b", &["t1"])).unwrap();
    assert_eq!(desk.beat(&named("c")), Err(GroupError::UnreleasedInstance));
    let leaving = ConsumerBeat {
        epoch: LEAVES_TO_RETURN,
        instance: Some("i".to_owned()),
        ..next(&a, &parts(&a))
    };
    let unnamed = ConsumerBeat {
        member: "b".to_owned(),
        instance: None,
        ..leaving.clone()
    };
    assert!(desk.beat(&unnamed).is_err(), "only a named one can return");
    assert_eq!(desk.beat(&leaving).unwrap().epoch, LEAVES_TO_RETURN);
    let epoch = desk.group.epoch;
    assert_eq!(
        desk.beat(&next(&a, &parts(&a))),
        Err(GroupError::FencedEpoch)
    );
    let c = desk.beat(&named("c")).unwrap();
    assert_eq!(desk.group.epoch, epoch, "nothing is assigned anew");
    assert!(parts(&c).is_subset(&parts(&a)) && !parts(&c).is_empty());
    let old = ConsumerBeat {
        instance: Some("i".to_owned()),
        ..next(&a, &parts(&a))
    };
    assert_eq!(desk.beat(&old), Err(GroupError::FencedInstance));
    // One that stays away is let go with its session.
    let leaving = ConsumerBeat {
        member: "c".to_owned(),
        ..leaving
    };
    desk.beat(&leaving).unwrap();
    desk.pass(SESSION);
    assert!(desk.group.instances.is_empty());
}

#[test]
fn topics_are_found_by_pattern_and_grow() {
    let mut desk = Desk::new(&[1, 2]);
    let pattern = |text: &str| ConsumerBeat {
        topics: None,
        regex: Some(text.to_owned()),
        ..join("a", &[])
    };
    for wrong in ["(", "a)|(b", "[z-a]", "(a{1000}){1000}"] {
        assert_eq!(
            desk.beat(&pattern(wrong)),
            Err(GroupError::InvalidRegex),
            "{wrong}"
        );
    }
    assert!(desk.group.is_empty(), "what was wrong left nothing behind");
    let a = desk.beat(&pattern("t[0-9]")).unwrap();
    assert_eq!(parts(&a).len(), 3);
    desk.catalogue = catalogue(2, &[1, 2, 3]);
    let grown = desk.beat(&next(&a, &parts(&a))).unwrap();
    assert_eq!((grown.epoch, parts(&grown).len()), (2, 6));
    desk.catalogue = catalogue(3, &[4]);
    let shrunk = desk.beat(&next(&grown, &parts(&grown))).unwrap();
    assert_eq!(parts(&shrunk), numbers(1, 0..1));
    let shrunk = desk.beat(&next(&shrunk, &parts(&shrunk))).unwrap();
    assert_eq!(parts(&shrunk), numbers(1, 0..4));
    let whole = desk.beat(&pattern("t")).unwrap();
    assert_eq!(whole.assigned, Some(vec![]), "the whole name must match");
    let unknown = ConsumerBeat {
        assignor: Some("best".to_owned()),
        ..join("b", &["t1"])
    };
    assert_eq!(desk.beat(&unknown), Err(GroupError::UnsupportedAssignor));
    assert_eq!(desk.group.member_count(), 1);
}

/// A consumer as a client's library has it.
struct Consumer {
    name: String,
    given: Option<Given>,
    /// What it reads, and may commit.
    owned: BTreeSet<Part>,
    topics: Vec<String>,
    /// It says everything again.
    full: bool,
}

impl Consumer {
    fn said(&self) -> ConsumerBeat {
        let Some(given) = &self.given else {
            let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
            return join(&self.name, &topics);
        };
        let beat = next(given, &self.owned);
        if !self.full {
            return beat;
        }
        ConsumerBeat {
            topics: Some(self.topics.clone()),
            rebalance_timeout: Some(Duration::from_mins(1)),
            ..beat
        }
    }

    /// It gives up at once what it is not to read any more.
    fn hear(&mut self, told: Result<Given, GroupError>) {
        match told {
            Ok(given) => {
                if given.assigned.is_some() {
                    self.owned = parts(&given);
                }
                self.given = Some(given);
                self.full = false;
            }
            Err(GroupError::FencedEpoch | GroupError::UnknownMember) => {
                self.owned.clear();
                self.given = None;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// A trace of what happened: the same for the same seed.
fn simulate(seed: u64) -> Vec<String> {
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut desk = Desk::new(&[3, 5]);
    let mut consumers: BTreeMap<u32, Consumer> = BTreeMap::new();
    let (mut born, mut trace, mut epochs) = (0, Vec::new(), 0);
    for step in 0..400 {
        let disturbed = step < 300;
        if disturbed && rng.random_bool(0.06) && consumers.len() < 6 {
            let topics = [vec!["t1"], vec!["t2"], vec!["t1", "t2"]];
            let topics = topics[rng.random_range(0..3)]
                .iter()
                .map(ToString::to_string);
            let consumer = Consumer {
                name: format!("c{born}"),
                given: None,
                owned: BTreeSet::new(),
                topics: topics.collect(),
                full: false,
            };
            consumers.insert(born, consumer);
            born += 1;
        }
        if disturbed && rng.random_bool(0.03) {
            // It dies without a word: with it goes what it reads.
            let nth = rng.random_range(0..consumers.len().max(1));
            let dead = consumers.keys().nth(nth).copied();
            dead.map(|dead| consumers.remove(&dead));
        }
        if disturbed && rng.random_bool(0.02) {
            let counts = [rng.random_range(1..6), rng.random_range(1..6)];
            desk.catalogue = catalogue(u64::from(born) * 1_000 + step, &counts);
        }
        if disturbed && rng.random_bool(0.03) {
            desk.move_on();
        }
        if rng.random_bool(0.1) {
            let slow = disturbed && rng.random_bool(0.1);
            desk.pass(if slow { SESSION } else { BEAT });
            // Who was silent for so long takes itself for dead.
            if slow {
                for consumer in consumers.values_mut() {
                    consumer.owned.clear();
                    consumer.given = None;
                }
            }
        }
        let nth = rng.random_range(0..consumers.len().max(1));
        let Some(consumer) = consumers.values_mut().nth(nth) else {
            continue;
        };
        let told = desk.beat(&consumer.said());
        let lost = disturbed && rng.random_bool(0.1);
        trace.push(format!("{} {lost} {told:?}", consumer.name));
        if lost {
            consumer.full = true;
        } else {
            consumer.hear(told);
        }
        assert!(
            desk.group.epoch >= epochs,
            "seed {seed}: an epoch went back"
        );
        epochs = desk.group.epoch;
        let read: Vec<Part> = consumers.values().flat_map(|c| c.owned.clone()).collect();
        let each: BTreeSet<Part> = read.iter().copied().collect();
        assert_eq!(
            read.len(),
            each.len(),
            "seed {seed} step {step}: two read one"
        );
    }
    settle(seed, &mut desk, &mut consumers);
    trace
}

/// The dead are let go, and the rest come to read all there is.
fn settle(seed: u64, desk: &mut Desk, consumers: &mut BTreeMap<u32, Consumer>) {
    for _ in 0..30 {
        desk.pass(BEAT);
        for consumer in consumers.values_mut() {
            let told = desk.beat(&consumer.said());
            consumer.hear(told);
        }
    }
    assert_eq!(desk.group.member_count(), consumers.len(), "seed {seed}");
    for consumer in consumers.values() {
        let member = &desk.group.members[&consumer.name];
        assert_eq!(member.target, consumer.owned, "seed {seed}");
        assert!(member.is_settled(desk.group.epoch), "seed {seed}");
    }
    let read = consumers.values().map(|c| c.owned.len()).sum::<usize>();
    let wanted = desk.group.sizes.values().sum::<u32>();
    assert_eq!(read, usize::try_from(wanted).unwrap(), "seed {seed}");
}

#[test]
fn no_partition_is_read_by_two_and_the_same_seed_tells_the_same_story() {
    for seed in 0..300 {
        let trace = simulate(seed);
        if seed % 30 == 0 {
            assert_eq!(trace, simulate(seed), "seed {seed}");
        }
    }
}
