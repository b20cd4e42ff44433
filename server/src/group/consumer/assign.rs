//! Who is to read what: the coordinator's own assignors, which see every member's topics and what
//! it was to read before.
//!
//! Both give each partition to one member that subscribes to its topic. `uniform` evens out the
//! numbers of members that share a topic, and moves as little as it can; `range` gives each member neighbouring partitions of
//! each topic, the same numbers of all topics where those have equally many.

use std::collections::{BTreeMap, BTreeSet};

use trilog_raft::controller::TopicId;

/// One partition.
pub(in crate::group) type Part = (TopicId, u32);

/// Topics and how many partitions each has.
pub(super) type Sizes = BTreeMap<TopicId, u32>;

/// What an assignor knows of a member.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taker<'a> {
    pub(super) topics: &'a BTreeSet<TopicId>,
    pub(super) before: &'a BTreeSet<Part>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Assignor {
    #[default]
    Uniform,
    Range,
}

impl Assignor {
    pub(crate) const ALL: [Self; 2] = [Self::Uniform, Self::Range];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Uniform => "uniform",
            Self::Range => "range",
        }
    }

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|known| known.name() == name)
    }

    /// What each member is to read, in the order of the members.
    pub(super) fn assign(self, sizes: &Sizes, members: &[Taker<'_>]) -> Vec<BTreeSet<Part>> {
        match self {
            Self::Uniform => Uniform::new(members).assign(sizes),
            Self::Range => range(sizes, members),
        }
    }
}

fn range(sizes: &Sizes, members: &[Taker<'_>]) -> Vec<BTreeSet<Part>> {
    let mut given = vec![BTreeSet::new(); members.len()];
    for (topic, count) in sizes {
        let takers = members.iter().zip(&mut given);
        let mut takers: Vec<_> = takers
            .filter(|(member, _)| member.topics.contains(topic))
            .map(|(_, given)| given)
            .collect();
        let Ok(among) = u32::try_from(takers.len()) else {
            continue;
        };
        let mut next = 0;
        for (nth, given) in (0..).zip(&mut takers) {
            let length = count / among + u32::from(nth < count % among);
            given.extend((next..next + length).map(|partition| (*topic, partition)));
            next += length;
        }
    }
    given
}

/// Members in the order of how much they have so far.
struct Uniform<'a> {
    members: &'a [Taker<'a>],
    given: Vec<BTreeSet<Part>>,
    by_load: BTreeSet<(usize, usize)>,
}

impl<'a> Uniform<'a> {
    fn new(members: &'a [Taker<'a>]) -> Self {
        Self {
            members,
            given: vec![BTreeSet::new(); members.len()],
            by_load: (0..members.len()).map(|member| (0, member)).collect(),
        }
    }

    fn assign(mut self, sizes: &Sizes) -> Vec<BTreeSet<Part>> {
        let mut taken = BTreeSet::new();
        for (nth, member) in self.members.iter().enumerate() {
            for part in member.before {
                let exists = sizes.get(&part.0).is_some_and(|count| part.1 < *count);
                if exists && member.topics.contains(&part.0) && taken.insert(*part) {
                    self.give(nth, *part);
                }
            }
        }
        for (topic, count) in sizes {
            for part in (0..*count).map(|partition| (*topic, partition)) {
                if !taken.contains(&part)
                    && let Some((_, member)) = self.least(*topic)
                {
                    self.give(member, part);
                }
            }
        }
        while self.level() {}
        self.given
    }

    fn load(&self, member: usize) -> usize {
        self.given.get(member).map_or(0, BTreeSet::len)
    }

    fn give(&mut self, member: usize, part: Part) {
        let load = self.load(member);
        self.by_load.remove(&(load, member));
        if let Some(given) = self.given.get_mut(member) {
            given.insert(part);
        }
        self.by_load.insert((self.load(member), member));
    }

    fn take(&mut self, member: usize, part: Part) {
        let load = self.load(member);
        self.by_load.remove(&(load, member));
        if let Some(given) = self.given.get_mut(member) {
            given.remove(&part);
        }
        self.by_load.insert((self.load(member), member));
    }

    /// The member with the least that subscribes to the topic.
    fn least(&self, topic: TopicId) -> Option<(usize, usize)> {
        let mut members = self.by_load.iter().copied();
        members.find(|(_, member)| {
            let wish = self.members.get(*member);
            wish.is_some_and(|wish| wish.topics.contains(&topic))
        })
    }

    /// Moves one partition from whoever has the most to somebody with at least two less; false if
    /// nobody can. Each move brings the numbers closer together, so this comes to an end.
    fn level(&mut self) -> bool {
        let least = self.by_load.first().map_or(0, |(load, _)| *load);
        let loaded: Vec<(usize, usize)> = self.by_load.iter().rev().copied().collect();
        for (load, giver) in loaded {
            if load < least + 2 {
                return false;
            }
            let given = self.given.get(giver);
            let topics: BTreeSet<TopicId> =
                given.into_iter().flatten().map(|part| part.0).collect();
            let takers = topics
                .into_iter()
                .filter_map(|topic| Some((self.least(topic)?, topic)));
            let Some(((taker_load, taker), topic)) = takers.min() else {
                continue;
            };
            if taker_load + 2 > load {
                continue;
            }
            let last = given.and_then(|given| given.range(..=(topic, u32::MAX)).next_back());
            if let Some(part) = last.copied() {
                self.take(giver, part);
                self.give(taker, part);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic(number: u8) -> TopicId {
        TopicId::from_wire(&[number; 16]).unwrap()
    }

    fn sizes(counts: &[u32]) -> Sizes {
        (1..).map(topic).zip(counts.iter().copied()).collect()
    }

    fn subscribed(topics: &[u8]) -> BTreeSet<TopicId> {
        topics.iter().map(|number| topic(*number)).collect()
    }

    /// Assigns over and over, each time from what came out last.
    fn assign(
        assignor: Assignor,
        sizes: &Sizes,
        topics: &[BTreeSet<TopicId>],
        before: &[BTreeSet<Part>],
    ) -> Vec<BTreeSet<Part>> {
        let none = BTreeSet::new();
        let members = topics.iter().enumerate().map(|(nth, topics)| Taker {
            topics,
            before: before.get(nth).unwrap_or(&none),
        });
        let members: Vec<Taker<'_>> = members.collect();
        let given = assignor.assign(sizes, &members);
        check(sizes, topics, &given);
        given
    }

    /// Each partition that somebody wants has one reader, who wants it.
    fn check(sizes: &Sizes, topics: &[BTreeSet<TopicId>], given: &[BTreeSet<Part>]) {
        let all: Vec<Part> = given.iter().flatten().copied().collect();
        let each: BTreeSet<Part> = all.iter().copied().collect();
        assert_eq!(all.len(), each.len(), "one has two readers");
        for (topics, given) in topics.iter().zip(given) {
            assert!(given.iter().all(|part| topics.contains(&part.0)));
        }
        for (topic, count) in sizes {
            let wanted = topics.iter().any(|topics| topics.contains(topic));
            let read = each.iter().filter(|part| part.0 == *topic).count();
            let count = usize::try_from(*count).unwrap();
            assert_eq!(read, if wanted { count } else { 0 });
        }
    }

    fn loads(given: &[BTreeSet<Part>]) -> Vec<usize> {
        given.iter().map(BTreeSet::len).collect()
    }

    #[test]
    fn range_gives_neighbours_and_the_same_numbers_of_each_topic() {
        let two = subscribed(&[1, 2]);
        let given = assign(Assignor::Range, &sizes(&[5, 5]), &[two.clone(), two], &[]);
        let first: Vec<Part> = given[0].iter().copied().collect();
        let numbers = [(1, 0), (1, 1), (1, 2), (2, 0), (2, 1), (2, 2)];
        assert_eq!(first, numbers.map(|(t, p)| (topic(t), p)));
    }

    #[test]
    fn uniform_moves_no_more_than_it_must() {
        let all = subscribed(&[1]);
        let sizes = sizes(&[12]);
        let two = assign(Assignor::Uniform, &sizes, &vec![all.clone(); 2], &[]);
        assert_eq!(loads(&two), [6, 6]);
        let three = assign(Assignor::Uniform, &sizes, &vec![all.clone(); 3], &two);
        assert_eq!(loads(&three), [4, 4, 4]);
        for (before, now) in two.iter().zip(&three) {
            assert!(now.is_subset(before), "what stays was there");
        }
        // The second one leaves: the others keep what they have.
        let left = [three[0].clone(), three[2].clone()];
        let again = assign(Assignor::Uniform, &sizes, &vec![all; 2], &left);
        assert_eq!(loads(&again), [6, 6]);
        for (before, now) in left.iter().zip(&again) {
            assert!(now.is_superset(before));
        }
    }

    #[test]
    fn uniform_evens_out_members_that_share_a_topic() {
        let topics = [subscribed(&[1]), subscribed(&[1, 2]), subscribed(&[2])];
        let given = assign(Assignor::Uniform, &sizes(&[4, 8]), &topics, &[]);
        let loads = loads(&given);
        for (one, other) in [(0, 1), (1, 2)] {
            assert!(loads[one].abs_diff(loads[other]) <= 1, "{loads:?}");
        }
    }

    proptest! {
        #[test]
        fn every_partition_has_one_reader_who_wants_it(
            counts in prop::collection::vec(0_u32..20, 1..5),
            topics in prop::collection::vec(prop::collection::btree_set(1_u8..6, 0..5), 1..8),
            later in prop::collection::vec(prop::collection::btree_set(1_u8..6, 0..5), 1..8),
        ) {
            let sizes = sizes(&counts);
            let named = |topics: &[BTreeSet<u8>]| -> Vec<BTreeSet<TopicId>> {
                let each = topics.iter();
                each.map(|topics| topics.iter().map(|number| topic(*number)).collect()).collect()
            };
            for assignor in Assignor::ALL {
                let first = assign(assignor, &sizes, &named(&topics), &[]);
                let second = assign(assignor, &sizes, &named(&later), &first);
                let again = assign(assignor, &sizes, &named(&later), &second);
                prop_assert_eq!(second, again, "nothing changes, nothing moves");
            }
        }

        #[test]
        fn uniform_is_even_where_all_want_the_same(
            counts in prop::collection::vec(0_u32..20, 1..5),
            members in 1_usize..9,
            more in 1_usize..9,
        ) {
            let sizes = sizes(&counts);
            let all = subscribed(&[1, 2, 3, 4]);
            let mut before = Vec::new();
            for members in [members, more] {
                before = assign(Assignor::Uniform, &sizes, &vec![all.clone(); members], &before);
                let loads = loads(&before);
                prop_assert!(loads.iter().max().unwrap() - loads.iter().min().unwrap() <= 1);
            }
        }
    }
}
