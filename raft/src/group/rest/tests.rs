use proptest::prelude::*;
use trilog_model::{GroupId, NodeId};

use super::*;
use crate::transport::Route;

const QUIET: Duration = Duration::from_secs(10);

fn replica(node: u32) -> ReplicaId {
    ReplicaId::new(NodeId(node), 1)
}

fn vouch(term: u64) -> Vouch {
    Vouch {
        term: Term(term),
        route: Route {
            group: GroupId(9),
            from: replica(1),
            to: replica(2),
        },
    }
}

/// What a level replica sees while `leader` leads in `term`.
fn look(leader: Option<u32>, term: u64) -> Look {
    Look {
        leadership: Leadership {
            term: Term(term),
            leader: leader.map(replica),
            ready: true,
        },
        mark: Mark {
            term: Term(term),
            last: Some(LogIndex(7)),
            applied: Some(LogIndex(7)),
        },
        level: true,
    }
}

fn leader(now: Instant) -> Rest {
    let mut rest = Rest::new(replica(1), now);
    rest.look(&look(Some(1), 3), false, now);
    rest
}

fn resting_leader(now: Instant) -> Rest {
    let mut rest = leader(now);
    let offer = rest.offer();
    rest.answered(offer, true, now);
    assert_eq!(rest.state(), State::Leading);
    assert_eq!(rest.take_duties(), Duties::default());
    rest
}

fn resting_follower(now: Instant) -> Rest {
    let mut rest = Rest::new(replica(2), now);
    rest.look(&look(Some(1), 3), false, now);
    assert!(rest.vouched(&vouch(3), &look(Some(1), 3)));
    assert_eq!(rest.take_duties(), Duties::default());
    rest
}

#[test]
fn a_leader_is_idle_only_when_nothing_happened_for_long_enough() {
    let start = Instant::now();
    let mut rest = leader(start);
    assert!(!rest.is_idle(QUIET, start + QUIET / 2));
    assert!(rest.is_idle(QUIET, start + QUIET));
    // A call is under way, however long.
    assert!(!rest.used(start));
    assert!(!rest.is_idle(QUIET, start + QUIET * 5));
    rest.done(start + QUIET * 5);
    assert!(!rest.is_idle(QUIET, start + QUIET * 5));
    assert!(rest.is_idle(QUIET, start + QUIET * 6));
    // The log grew though nobody called.
    let mut moved = look(Some(1), 3);
    moved.mark.last = Some(LogIndex(8));
    rest.look(&moved, false, start + QUIET * 6);
    assert!(!rest.is_idle(QUIET, start + QUIET * 6));
}

#[test]
fn a_call_on_a_resting_leader_wakes_it_takes_back_its_word_and_renews_the_lease_itself() {
    let now = Instant::now();
    let mut rest = resting_leader(now);
    assert!(!rest.ticks());
    assert!(rest.used(now));
    assert!(rest.ticks());
    let withdraw = Duties {
        withdraw: true,
        ..Duties::default()
    };
    assert_eq!(rest.take_duties(), withdraw);
    assert!(!rest.used(now), "it is awake by now");
}

#[test]
fn a_call_while_the_followers_are_asked_ends_the_offer_and_a_late_answer_changes_nothing() {
    let now = Instant::now();
    let mut rest = leader(now);
    let offer = rest.offer();
    assert!(!rest.used(now), "its lease holds");
    assert!(rest.take_duties().withdraw);
    rest.done(now);
    // Followers may have agreed after the word was taken back: it is taken back again.
    rest.answered(offer, true, now);
    assert_eq!(rest.state(), State::Awake);
    assert!(rest.take_duties().withdraw);
}

#[test]
fn a_late_answer_to_an_older_offer_ends_the_rest_it_would_spoil() {
    let now = Instant::now();
    let mut rest = leader(now);
    let older = rest.offer();
    rest.used(now);
    rest.done(now);
    let newer = rest.offer();
    rest.answered(newer, true, now);
    assert_eq!(rest.state(), State::Leading);
    rest.answered(older, false, now);
    assert_eq!(rest.state(), State::Awake);
    assert!(rest.take_duties().renew);
}

#[test]
fn a_refused_offer_is_not_made_again_at_once() {
    let now = Instant::now();
    let mut rest = leader(now);
    let later = now + QUIET;
    assert!(rest.is_idle(QUIET, later));
    let offer = rest.offer();
    rest.answered(offer, false, later);
    assert!(rest.take_duties().withdraw);
    assert!(!rest.is_idle(QUIET, later));
    assert!(rest.is_idle(QUIET, later + QUIET));
}

#[test]
fn a_follower_rests_only_on_the_leader_it_knows_and_only_when_level() {
    let now = Instant::now();
    let mut behind = look(Some(1), 3);
    behind.level = false;
    let cases = [
        (look(Some(1), 3), true),
        (look(Some(1), 4), false),
        (look(Some(3), 3), false),
        (look(None, 3), false),
        (behind, false),
    ];
    for (look, agrees) in cases {
        let mut rest = Rest::new(replica(2), now);
        assert_eq!(rest.vouched(&vouch(3), &look), agrees, "{look:?}");
        assert_eq!(rest.ticks(), !agrees);
    }
    assert!(!resting_leader(now).vouched(&vouch(3), &look(Some(1), 3)));
    let mut closed = resting_follower(now);
    closed.close();
    assert!(!closed.vouched(&vouch(3), &look(Some(1), 3)));
}

#[test]
fn a_resting_follower_does_not_mind_a_heartbeat_that_says_nothing_new() {
    let now = Instant::now();
    let mut rest = resting_follower(now);
    rest.look(&look(Some(1), 3), true, now);
    assert!(!rest.ticks());
    let mut news = look(Some(1), 3);
    news.level = false;
    rest.look(&news, true, now);
    assert!(rest.ticks());
    assert!(rest.take_duties().refuse);
}

#[test]
fn a_doubting_follower_ticks_when_its_leader_is_heard_or_its_patience_is_over() {
    let now = Instant::now();
    let until = now + Duration::from_millis(400);
    let doubting = || {
        let mut rest = resting_follower(now);
        rest.doubted(until);
        assert!(rest.take_duties().refuse);
        assert!(!rest.ticks());
        rest
    };
    let mut rest = doubting();
    rest.look(&look(Some(1), 3), true, now);
    assert!(rest.ticks());

    let mut rest = doubting();
    rest.look(&look(Some(1), 3), false, now);
    rest.passed(until - Duration::from_millis(1));
    assert!(!rest.ticks());
    rest.passed(until);
    assert!(rest.ticks());

    // A second doubt never makes it wait longer.
    let mut rest = doubting();
    rest.doubted(until + QUIET);
    assert_eq!(rest.deadline(), Some(until));
    rest.doubted(now);
    rest.passed(now);
    assert!(rest.ticks());

    // The leader may vouch once more.
    let mut rest = doubting();
    assert!(rest.vouched(&vouch(3), &look(Some(1), 3)));
    assert_eq!(rest.deadline(), None);
}

#[test]
fn another_vote_wakes_whoever_rests() {
    let now = Instant::now();
    for seen in [look(None, 3), look(Some(3), 4)] {
        let mut rest = resting_follower(now);
        rest.look(&seen, false, now);
        assert!(rest.ticks());
        assert!(rest.take_duties().refuse);
        let mut rest = resting_leader(now);
        rest.look(&seen, false, now);
        assert!(rest.ticks());
        assert!(rest.take_duties().withdraw);
    }
}

#[test]
fn who_rests_refuses_votes_and_begins_to_doubt_if_a_member_asks() {
    let now = Instant::now();
    let mut rest = resting_leader(now);
    assert!(rest.solicited(false, true, now));
    assert_eq!(rest.state(), State::Leading);
    assert!(rest.solicited(true, true, now));
    assert_eq!(rest.state(), State::Awake);
    assert!(rest.take_duties().renew);

    let mut rest = resting_follower(now);
    assert!(rest.solicited(true, true, now + QUIET));
    assert!(!rest.solicited(true, true, now + QUIET), "it doubts by now");
    let mut rest = resting_follower(now);
    assert!(!rest.solicited(true, false, now), "the leader is not heard");
    rest.passed(now);
    assert!(rest.ticks());
}

#[derive(Clone, Debug)]
enum Event {
    Used,
    Done,
    Look(Option<u32>, u64, bool, bool),
    Offer,
    Answered(u64, bool),
    Vouched(u64),
    Doubted(u64),
    Solicited(bool, bool),
    Passed,
    Close,
}

fn event() -> impl Strategy<Value = Event> {
    let leader = || prop::option::of(1u32..4);
    prop_oneof![
        6 => Just(Event::Used),
        6 => Just(Event::Done),
        10 => (leader(), 2u64..5, any::<bool>(), any::<bool>())
            .prop_map(|(leader, term, level, heard)| Event::Look(leader, term, level, heard)),
        10 => Just(Event::Offer),
        10 => (1u64..6, any::<bool>()).prop_map(|(offer, agreed)| Event::Answered(offer, agreed)),
        10 => (2u64..5).prop_map(Event::Vouched),
        6 => (0u64..900).prop_map(Event::Doubted),
        6 => (any::<bool>(), any::<bool>())
            .prop_map(|(member, alive)| Event::Solicited(member, alive)),
        10 => Just(Event::Passed),
        1 => Just(Event::Close),
    ]
}

/// Who rests on whom, as the other side and the hub would see it.
#[derive(Debug, Default)]
struct Words {
    /// Followers may rest on this replica.
    given: bool,
    /// The hub has this replica on record as agreeing to a leader's word.
    taken: bool,
}

impl Words {
    fn check(&mut self, rest: &mut Rest) {
        let duties = rest.take_duties();
        if duties.withdraw {
            self.given = false;
        }
        if duties.refuse {
            self.taken = false;
        }
        assert!(!(duties.renew && rest.state() == State::Leading));
        match rest.state() {
            State::Leading => assert!(self.given && rest.users == 0),
            State::Offering(_) => assert!(rest.users == 0),
            State::Following(_) => assert!(self.taken),
            // Nobody is left resting on a leader that does not know of it.
            State::Awake | State::Closed => assert!(!self.given && !self.taken, "{self:?}"),
            State::Doubting { .. } => assert!(!self.taken),
        }
        assert_eq!(
            rest.ticks(),
            matches!(
                rest.state(),
                State::Awake | State::Offering(_) | State::Closed
            )
        );
    }
}

proptest! {
    #[test]
    fn no_word_outlives_the_rest_it_stands_for(events in prop::collection::vec(event(), 0..60)) {
        let mut now = Instant::now();
        let mut rest = Rest::new(replica(2), now);
        let mut words = Words::default();
        let mut seen = look(None, 2);
        for event in events {
            now += Duration::from_millis(100);
            match event {
                Event::Used => {
                    rest.used(now);
                }
                Event::Done => rest.done(now),
                Event::Look(leader, term, level, heard) => {
                    seen = look(leader, term);
                    seen.level = level;
                    rest.look(&seen, heard, now);
                }
                Event::Offer if rest.is_idle(Duration::ZERO, now) => {
                    rest.offer();
                    words.given = true;
                }
                Event::Answered(offer, agreed) if offer <= rest.offers => {
                    // Followers that agreed late may rest on a word that was taken back.
                    words.given |= agreed;
                    rest.answered(offer, agreed, now);
                }
                Event::Vouched(term) => {
                    let agreed = rest.vouched(&vouch(term), &seen);
                    words.taken |= agreed;
                }
                Event::Doubted(patience) => rest.doubted(now + Duration::from_millis(patience)),
                Event::Solicited(member, alive) => {
                    rest.solicited(member, alive, now);
                }
                Event::Passed => rest.passed(now),
                Event::Close => rest.close(),
                Event::Offer | Event::Answered(..) => {}
            }
            words.check(&mut rest);
        }
    }
}
