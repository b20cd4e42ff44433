//! One group of consumers at its desk: what each heartbeat is told.

mod crowd;
mod sight;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

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
        sight: Sight::default(),
    })
}

/// A coordinator with its clock and topics, and what is committed of its group.
struct Desk {
    group: ConsumerGroup,
    committed: Consumers,
    now: Instant,
    settings: Settings,
    catalogue: Arc<Catalogue>,
    room: usize,
}

impl Desk {
    fn new(counts: &[u32]) -> Self {
        Self {
            group: ConsumerGroup::new(),
            committed: Consumers::default(),
            now: Instant::now(),
            settings: settings(),
            catalogue: catalogue(1, counts),
            room: usize::MAX,
        }
    }

    fn beat(&mut self, beat: &ConsumerBeat) -> Result<Given, GroupError> {
        let around = Around {
            now: self.now,
            settings: &self.settings,
            catalogue: &self.catalogue,
            room: self.room,
        };
        let (before, version) = (self.group.stored(), self.group.version);
        let told = self.group.heartbeat(beat, around);
        let differs = self.group.stored() != before;
        let writes = self.group.version != version;
        assert_eq!(writes, differs, "what changes is written, and nothing else");
        self.check();
        told
    }

    /// As [`Desk::beat`]; what is told is committed before.
    fn beat_and_commit(&mut self, beat: &ConsumerBeat) -> Result<Given, GroupError> {
        let told = self.beat(beat)?;
        if let Some(version) = self.group.uncommitted() {
            self.committed = self.group.stored();
            self.group.was_committed(version);
        }
        Ok(told)
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        let around = Around {
            now: self.now,
            settings: &self.settings,
            catalogue: &self.catalogue,
            room: self.room,
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

    /// As [`Desk::move_on`], without what was on its way.
    fn crash(&mut self) {
        self.group = ConsumerGroup::load(&self.committed, self.now, &self.settings);
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
        let stored = prost::Message::encoded_len(&self.group.stored());
        assert!(stored <= self.group.size.stored, "{:?}", self.group.size);
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
    let heard = desk.beat(&next(&a, &parts(&a))).unwrap();
    assert_eq!((heard.epoch, heard.assigned), (2, None));
    desk.pass(Duration::from_secs(2));
    assert_eq!(desk.group.member_count(), 1, "the other has died");
    let told = desk.beat(&ConsumerBeat {
        epoch: heard.epoch,
        owned: None,
        ..next(&a, &parts(&a))
    });
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
    let may = |epoch, parts: BTreeSet<Part>| {
        let parts = parts.into_iter().map(Some);
        desk.group.check_epoch("a", epoch, parts)
    };
    assert_eq!(may(2, numbers(1, 0..4)), Ok(()));
    // It may not have heard of its last epoch; what it has it still has.
    assert_eq!(may(1, kept), Ok(()));
    assert_eq!(may(1, numbers(1, 0..4)), Err(GroupError::StaleEpoch));
    assert_eq!(may(0, BTreeSet::new()), Err(GroupError::StaleEpoch));
    let unknown = desk.group.check_epoch("a", 1, [None].into_iter());
    assert_eq!(unknown, Err(GroupError::StaleEpoch));
}

#[test]
fn a_join_that_comes_late_gives_up_nothing() {
    let mut desk = Desk::new(&[2]);
    let nothing = BTreeSet::new();
    let a = desk.beat(&join("a", &["t1"])).unwrap();
    let all = parts(&a);
    assert_eq!(all.len(), 2);
    let b = desk.beat(&join("b", &["t1"])).unwrap();
    assert!(parts(&b).is_empty());
    let told = desk.beat(&next(&a, &all)).unwrap();
    let kept = parts(&told);
    assert_eq!(kept.len(), 1);
    // It reads both yet. What it said when it joined, and had nothing, was on its way for long.
    desk.beat(&join("a", &["t1"])).unwrap();
    let b = desk.beat(&next(&b, &nothing)).unwrap();
    assert!(parts(&b).is_empty(), "it is read by another: {b:?}");
    desk.beat(&next(&told, &kept)).unwrap();
    let b = desk.beat(&next(&b, &nothing)).unwrap();
    assert_eq!(parts(&b).union(&kept).count(), 2);
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
    assert_eq!(
        c.epoch, epoch,
        "it was away, so it has given up what it had"
    );
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

/// While a named member is away its target shrinks; it returns, under whichever id, and what it no
/// longer has goes to the other at once.
#[test]
fn what_a_member_lost_while_it_was_away_is_free_when_it_returns() {
    let named = |member: &str| ConsumerBeat {
        instance: Some("i".to_owned()),
        ..join(member, &["t1"])
    };
    for returns_as in ["a", "c"] {
        let mut desk = Desk::new(&[4]);
        let a = desk.beat(&named("a")).unwrap();
        let leaving = ConsumerBeat {
            epoch: LEAVES_TO_RETURN,
            instance: Some("i".to_owned()),
            owned: None,
            ..next(&a, &BTreeSet::new())
        };
        desk.beat(&leaving).unwrap();
        let b = desk.beat(&join("b", &["t1"])).unwrap();
        assert_eq!(parts(&b).len(), 0, "it may come back");
        desk.move_on();
        // With its return the group hears of one more partition that is gone.
        desk.catalogue = catalogue(2, &[2]);
        let back = desk.beat(&named(returns_as)).unwrap();
        assert_eq!((back.epoch, parts(&back).len()), (3, 1), "{returns_as}");
        let b = desk.beat(&next(&b, &BTreeSet::new())).unwrap();
        assert_eq!((b.epoch, parts(&b).len()), (3, 1), "{returns_as}");
        let kept = parts(&back);
        let told = desk.beat(&next(&back, &kept)).unwrap();
        assert_eq!(told.assigned, None);
        assert_eq!(desk.group.state(), GroupState::Stable);
    }
}

/// Commits fail, and the group moves on: who asks again with what it knows is never thrown out.
#[test]
fn who_was_not_told_of_its_step_takes_no_other() {
    let mut desk = Desk::new(&[4]);
    let a = desk.beat(&join("a", &["t1"])).unwrap();
    let b = desk.beat(&join("b", &["t1"])).unwrap();
    let kept = parts(&desk.beat(&next(&a, &parts(&a))).unwrap());
    for topics in [["t1"], ["t2"], ["t1"]] {
        // What comes of this is not told.
        desk.beat(&next(&a, &kept)).unwrap();
        let other = ConsumerBeat {
            epoch: desk.group.members["b"].epoch,
            topics: Some(topics.map(str::to_owned).to_vec()),
            ..next(&b, &BTreeSet::new())
        };
        desk.beat(&other).unwrap();
    }
    let told = desk.beat(&next(&a, &kept)).unwrap();
    assert_eq!(told.epoch, 2);
    let told = desk.beat(&next(&told, &kept)).unwrap();
    assert_eq!(told.epoch, desk.group.epoch);
}

/// A member that asks for too much is refused, and so is only that one: whatever the group is told
/// it can be committed, and who asks for no more is let in.
#[test]
fn who_asks_for_too_much_is_refused_and_nobody_else() {
    let mut desk = Desk::new(&[4]);
    let a = desk.beat(&join("a", &["t1"])).unwrap();
    let b = desk.beat(&join("b", &["t1"])).unwrap();
    let before = (desk.group.stored(), desk.group.version);
    let long = |n: usize| format!("{n:0>1000}");
    let greedy = ConsumerBeat {
        topics: Some((0..9_000).map(long).collect()),
        ..next(&b, &BTreeSet::new())
    };
    assert_eq!(desk.beat(&greedy), Err(GroupError::GroupFull));
    let named = ConsumerBeat {
        rack: Some("x".repeat(3 << 20)),
        ..join("c", &["t1"])
    };
    assert_eq!(desk.beat(&named), Err(GroupError::GroupFull));
    assert_eq!((desk.group.stored(), desk.group.version), before);
    let told = desk.beat(&next(&a, &parts(&a))).unwrap();
    assert_eq!(parts(&told).len(), 2);

    // The partition's other groups leave no room: nobody may grow, and everybody may stay.
    desk.room = 0;
    let more = ConsumerBeat {
        topics: Some(vec!["t1".to_owned(), "t2".to_owned()]),
        ..next(&b, &BTreeSet::new())
    };
    for beat in [more, join("c", &["t1"])] {
        let told = desk.beat(&beat);
        assert!(matches!(told, Err(GroupError::Unavailable(_))), "{told:?}");
    }
    let kept = parts(&told);
    desk.beat(&next(&told, &kept)).unwrap();
    let stays = ConsumerBeat {
        topics: Some(vec!["t1".to_owned()]),
        ..next(&b, &BTreeSet::new())
    };
    assert_eq!(parts(&desk.beat(&stays).unwrap()).len(), 2);
}

#[test]
fn partitions_that_no_command_could_hold_are_not_assigned() {
    let mut desk = Desk::new(&[1_000]);
    let mut a = desk.beat(&join("a", &["t1"])).unwrap();
    desk.catalogue = catalogue(2, &[800_000]);
    a = desk.beat(&next(&a, &parts(&a))).unwrap();
    assert_eq!(a.assigned, None, "it goes on with what it has");
    let b = desk.beat(&join("b", &["t1"]));
    assert_eq!(b, Err(GroupError::GroupFull));
    desk.catalogue = catalogue(3, &[100_000]);
    a = desk.beat(&next(&a, &numbers(1, 0..1_000))).unwrap();
    assert_eq!(parts(&a).len(), 100_000);
}

#[test]
fn a_group_has_so_many_patterns_and_forgets_those_that_nobody_names() {
    let mut desk = Desk::new(&[1]);
    desk.settings.members_max = 1_000;
    let pattern = |member: usize, text: usize| ConsumerBeat {
        topics: None,
        regex: Some(format!("t1|x{text}")),
        ..join(&format!("m{member}"), &[])
    };
    for member in 0..64 {
        desk.beat(&pattern(member, member)).unwrap();
    }
    assert_eq!(desk.beat(&pattern(64, 64)), Err(GroupError::GroupFull));
    // The same pattern for another member is nothing new.
    desk.beat(&pattern(65, 3)).unwrap();
    let again = ConsumerBeat {
        epoch: desk.group.members["m0"].epoch,
        ..pattern(0, 1)
    };
    desk.beat(&again).unwrap();
    desk.beat(&pattern(64, 64)).unwrap();
    desk.move_on();
    desk.catalogue = catalogue(2, &[70]);
    let beat = ConsumerBeat {
        topics: None,
        rebalance_timeout: None,
        regex: None,
        epoch: desk.group.members["m3"].epoch,
        owned: None,
        ..join("m3", &[])
    };
    desk.beat(&beat).unwrap();
    let targets = desk
        .group
        .members
        .values()
        .map(|member| member.target.len());
    assert_eq!(targets.sum::<usize>(), 70, "they match what there is now");
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
