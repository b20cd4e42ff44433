//! One group under a seed: consumers, named or not, that join, read, give up in their own time, are
//! late, die, leave, come back and lose answers, while topics grow and commits are refused. No
//! partition is ever read by two, no epoch goes back, and in the end everybody reads what it is to
//! read. As clients do, they say what they read only when that has changed.

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

/// A consumer as a client's library has it.
struct Consumer {
    name: String,
    instance: Option<String>,
    given: Option<Given>,
    /// What it reads, and may commit.
    owned: BTreeSet<Part>,
    /// What it is to read, once it is done with giving up what is not in it.
    doing: Option<BTreeSet<Part>>,
    /// What it last said that it reads: said again only when it changes.
    said: Option<BTreeSet<Part>>,
    topics: Vec<String>,
    /// It said that it will be back.
    away: bool,
}

impl Consumer {
    fn new(number: u64, rng: &mut SmallRng) -> Self {
        let topics = [vec!["t1"], vec!["t2"], vec!["t1", "t2"]];
        let topics = topics[rng.random_range(0..3)].iter();
        Self {
            name: format!("c{number}"),
            instance: rng.random_bool(0.4).then(|| format!("i{number}")),
            given: None,
            owned: BTreeSet::new(),
            doing: None,
            said: None,
            topics: topics.map(ToString::to_string).collect(),
            away: false,
        }
    }

    fn says(&mut self) -> ConsumerBeat {
        let Some(given) = &self.given else {
            self.said = Some(BTreeSet::new());
            let topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
            return ConsumerBeat {
                instance: self.instance.clone(),
                ..join(&self.name, &topics)
            };
        };
        let mut beat = next(given, &self.owned);
        match self.said.replace(self.owned.clone()) {
            Some(said) if said == self.owned => beat.owned = None,
            Some(_) => {}
            // It says everything again.
            None => {
                beat.topics = Some(self.topics.clone());
                beat.rebalance_timeout = Some(Duration::from_mins(1));
            }
        }
        beat
    }

    /// It gives up what it is not to read any more, at once or later.
    fn hears(&mut self, told: Result<Given, GroupError>, at_once: bool) {
        match told {
            Ok(given) => {
                assert!(given.epoch > 0, "{given:?}");
                if given.assigned.is_some() {
                    self.doing = Some(parts(&given));
                }
                self.given = Some(given);
                if at_once {
                    self.finishes();
                }
            }
            Err(GroupError::FencedEpoch | GroupError::UnknownMember) => self.forgets(),
            // It tries again until the session of who bears its name is over.
            Err(GroupError::UnreleasedInstance) => {}
            Err(error) => panic!("{error}"),
        }
    }

    fn finishes(&mut self) {
        if let Some(done) = self.doing.take() {
            self.owned = done;
        }
    }

    fn forgets(&mut self) {
        self.owned.clear();
        self.doing = None;
        self.given = None;
        self.said = None;
    }

    /// It stops, and says so; nobody may hear it.
    fn leaves(&mut self, epoch: i32) -> Option<ConsumerBeat> {
        let given = self.given.clone()?;
        self.forgets();
        Some(ConsumerBeat {
            epoch,
            instance: self.instance.clone(),
            owned: None,
            ..next(&given, &BTreeSet::new())
        })
    }
}

/// Consumers under a seed.
struct Crowd {
    seed: u64,
    rng: SmallRng,
    desk: Desk,
    consumers: BTreeMap<u64, Consumer>,
    born: u64,
    epoch: i32,
    /// What happened: the same for the same seed.
    trace: Vec<String>,
}

impl Crowd {
    fn new(seed: u64) -> Self {
        Self {
            seed,
            rng: SmallRng::seed_from_u64(seed),
            desk: Desk::new(&[3, 5]),
            consumers: BTreeMap::new(),
            born: 0,
            epoch: 0,
            trace: Vec::new(),
        }
    }

    fn anybody(&mut self) -> Option<u64> {
        let nth = self.rng.random_range(0..self.consumers.len().max(1));
        self.consumers.keys().nth(nth).copied()
    }

    /// Something goes wrong, or somebody comes or goes.
    fn disturb(&mut self, step: u64) {
        if self.rng.random_bool(0.06) && self.consumers.len() < 6 {
            let consumer = Consumer::new(self.born, &mut self.rng);
            self.consumers.insert(self.born, consumer);
            self.born += 1;
        }
        if self.rng.random_bool(0.03) {
            // It dies without a word: with it goes what it reads.
            let dead = self.anybody();
            dead.map(|dead| self.consumers.remove(&dead));
        }
        if self.rng.random_bool(0.03)
            && let Some(who) = self.anybody()
            && let Some(last) = self.consumers.get_mut(&who).and_then(|c| c.leaves(LEAVES))
        {
            self.consumers.remove(&who);
            self.say(&last);
        }
        if self.rng.random_bool(0.06) {
            self.restart();
        }
        if self.rng.random_bool(0.02) {
            let counts = [self.rng.random_range(1..6), self.rng.random_range(1..6)];
            self.desk.catalogue = catalogue(self.born * 1_000 + step, &counts);
        }
        match self.rng.random_range(0..100) {
            0..2 => self.desk.move_on(),
            2..4 => {
                self.desk.crash();
                self.epoch = self.desk.group.epoch;
            }
            _ => {}
        }
    }

    /// One that has a name stops, and another time it is back, under its id or a new one.
    fn restart(&mut self) {
        let Some(who) = self.anybody() else { return };
        let Some(consumer) = self.consumers.get_mut(&who) else {
            return;
        };
        if consumer.instance.is_none() {
            return;
        }
        if consumer.away {
            consumer.away = false;
            if self.rng.random_bool(0.5) {
                consumer.name.push('x');
            }
        } else if let Some(last) = consumer.leaves(LEAVES_TO_RETURN) {
            consumer.away = true;
            self.say(&last);
        }
    }

    /// Something is said that nobody waits for an answer to.
    fn say(&mut self, beat: &ConsumerBeat) {
        if self.rng.random_bool(0.8) {
            let told = self.desk.beat_and_commit(beat);
            self.trace.push(format!("{} {told:?}", beat.member));
        }
    }

    fn step(&mut self, step: u64, disturbed: bool) {
        if disturbed {
            self.disturb(step);
        }
        if self.rng.random_bool(0.1) {
            let slow = disturbed && self.rng.random_bool(0.1);
            self.desk.pass(if slow { SESSION } else { BEAT });
            // Who was silent for so long takes itself for dead.
            if slow {
                self.consumers.values_mut().for_each(Consumer::forgets);
            }
        }
        if let Some(done) = self.anybody()
            && let Some(consumer) = self.consumers.get_mut(&done)
        {
            consumer.finishes();
        }
        let Some(who) = self.anybody() else { return };
        let Some(consumer) = self.consumers.get_mut(&who) else {
            return;
        };
        if consumer.away {
            return;
        }
        let (lost, refused) = match self.rng.random_range(0..20) {
            _ if !disturbed => (false, false),
            0..2 => (true, false),
            2 => (false, true),
            _ => (false, false),
        };
        let said = consumer.says();
        let told = if refused {
            self.desk.beat(&said)
        } else {
            self.desk.beat_and_commit(&said)
        };
        let trace = format!("{} {lost} {refused} {told:?}", consumer.name);
        self.trace.push(trace);
        if lost || refused {
            consumer.said = None;
        } else {
            consumer.hears(told, self.rng.random_bool(0.5));
        }
    }

    fn check(&mut self, step: u64) {
        let (seed, epoch) = (self.seed, self.desk.group.epoch);
        assert!(epoch >= self.epoch, "seed {seed}: an epoch went back");
        self.epoch = epoch;
        let read: Vec<Part> = self
            .consumers
            .values()
            .flat_map(|c| c.owned.clone())
            .collect();
        let each: BTreeSet<Part> = read.iter().copied().collect();
        assert_eq!(
            read.len(),
            each.len(),
            "seed {seed} step {step}: two read one"
        );
    }

    /// The dead are let go, and the rest come to read all there is.
    fn settle(&mut self) {
        let seed = self.seed;
        for _ in 0..40 {
            self.desk.pass(BEAT);
            for consumer in self.consumers.values_mut() {
                consumer.away = false;
                consumer.finishes();
                let said = consumer.says();
                let told = self.desk.beat_and_commit(&said);
                consumer.hears(told, true);
            }
        }
        let members = &self.desk.group.members;
        assert_eq!(members.len(), self.consumers.len(), "seed {seed}");
        for consumer in self.consumers.values() {
            let member = &members[&consumer.name];
            assert_eq!(member.target, consumer.owned, "seed {seed}");
            assert!(member.is_settled(self.desk.group.epoch), "seed {seed}");
        }
        let read = self.consumers.values().map(|c| c.owned.len());
        let wanted = self.desk.group.sizes.values().sum::<u32>();
        assert_eq!(
            read.sum::<usize>(),
            usize::try_from(wanted).unwrap(),
            "seed {seed}"
        );
    }
}

fn simulate(seed: u64) -> Vec<String> {
    let mut crowd = Crowd::new(seed);
    for step in 0..400 {
        crowd.step(step, step < 300);
        crowd.check(step);
    }
    crowd.settle();
    crowd.trace
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
