mod absent;

use std::fmt::Write;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

use super::*;

/// A group, and the log it is committed to.
struct Table {
    group: Group,
    now: Instant,
    settings: Settings,
    entropy: Entropy,
    room: usize,
    stores: Vec<Store>,
}

type Answer<T> = oneshot::Receiver<Result<T, GroupError>>;

fn table(delay: u64) -> Table {
    Table {
        group: Group::new("g"),
        now: Instant::now(),
        settings: Settings {
            partitions: 1,
            initial_rebalance_delay: Duration::from_secs(delay),
            session_timeout_min: Duration::from_secs(1),
            session_timeout_max: Duration::from_mins(1),
            members_max: 4,
            consumer_session: Duration::from_secs(45),
            consumer_heartbeat: Duration::from_secs(5),
            offset_retention: Duration::from_mins(1),
            offset_metadata_max: 100,
        },
        entropy: Entropy::from_seed(1),
        room: usize::MAX,
        stores: Vec::new(),
    }
}

fn request(member: &str, instance: Option<&str>, protocols: &[&str]) -> JoinRequest {
    JoinRequest {
        group: "g".to_owned(),
        member: member.to_owned(),
        instance: instance.map(str::to_owned),
        client_id: "client".to_owned(),
        client_host: "/127.0.0.1".to_owned(),
        session_timeout: Duration::from_secs(10),
        rebalance_timeout: Duration::from_secs(30),
        protocol_type: "consumer".to_owned(),
        protocols: protocols
            .iter()
            .map(|name| Protocol {
                name: (*name).to_owned(),
                metadata: Bytes::from_static(b"topics"),
            })
            .collect(),
        require_known_member: false,
        can_skip_assignment: false,
    }
}

fn member(member: &str, generation: i32) -> MemberRef {
    MemberRef {
        group: "g".to_owned(),
        generation,
        member: member.to_owned(),
        instance: None,
    }
}

impl Table {
    fn act<T>(&mut self, act: impl FnOnce(&mut Group, &mut Ctx<'_>) -> T) -> T {
        let mut ctx = Ctx {
            now: self.now,
            settings: &self.settings,
            entropy: &self.entropy,
            room: self.room,
            stores: &mut self.stores,
        };
        let outcome = act(&mut self.group, &mut ctx);
        self.group.tick(&mut ctx);
        outcome
    }

    fn join(&mut self, request: JoinRequest) -> Answer<Joined> {
        let (reply, answer) = oneshot::channel();
        self.act(|group, ctx| group.join(request, reply, ctx));
        answer
    }

    fn sync(&mut self, member: MemberRef, given: &[(&str, &'static str)]) -> Answer<Synced> {
        let (reply, answer) = oneshot::channel();
        let assignments = given.iter();
        let request = SyncRequest {
            member,
            protocol_type: None,
            protocol: None,
            assignments: assignments
                .map(|(id, given)| ((*id).to_owned(), Bytes::from_static(given.as_bytes())))
                .collect(),
        };
        self.act(|group, ctx| group.sync(request, reply, ctx));
        answer
    }

    fn heartbeat(&mut self, id: &str, generation: i32) -> Result<(), GroupError> {
        let member = member(id, generation);
        let now = self.now;
        self.group.heartbeat(&member, now)
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.act(|_, _| ());
    }

    /// The oldest command on its way comes back.
    fn committed(&mut self, outcome: Result<(), GroupError>) -> Membership {
        let store = self.stores.remove(0);
        self.act(|group, ctx| group.stored(store.then, outcome, ctx));
        store.membership
    }

    /// A stable group of as many members, the leader first.
    fn stable(count: usize) -> (Self, Vec<String>) {
        let mut table = table(3);
        let mut answers: Vec<_> = (0..count)
            .map(|_| table.join(request("", None, &["range"])))
            .collect();
        table.pass(3);
        table.pass(3);
        let joined: Vec<Joined> = answers.iter_mut().map(told).collect();
        let leader = joined[0].leader.clone();
        let mut ids: Vec<String> = joined.into_iter().map(|joined| joined.member).collect();
        ids.sort_by_key(|id| *id != leader);
        table.settle(&ids, 1);
        (table, ids)
    }

    /// All members sync in a generation, the first one leading.
    fn settle(&mut self, ids: &[String], generation: i32) {
        let given: Vec<(&str, &str)> = ids.iter().map(|id| (id.as_str(), "part")).collect();
        let mut answers = Vec::new();
        for (n, id) in ids.iter().enumerate() {
            let given = if n == 0 { &given[..] } else { &[] };
            answers.push(self.sync(member(id, generation), given));
        }
        self.committed(Ok(()));
        for answer in &mut answers {
            assert_eq!(told(answer).assignment, "part");
        }
        assert_eq!(self.group.state(), GroupState::Stable);
    }
}

/// The answer, which must be there and good.
#[track_caller]
fn told<T>(answer: &mut Answer<T>) -> T {
    match answer.try_recv() {
        Ok(Ok(told)) => told,
        Ok(Err(error)) => panic!("refused: {error}"),
        Err(error) => panic!("no answer: {error}"),
    }
}

#[track_caller]
fn refused<T: std::fmt::Debug>(answer: &mut Answer<T>) -> GroupError {
    answer
        .try_recv()
        .expect("an answer")
        .expect_err("a refusal")
}

#[track_caller]
fn waits<T: std::fmt::Debug>(answer: &mut Answer<T>) {
    let answer = answer.try_recv();
    assert!(
        matches!(answer, Err(oneshot::error::TryRecvError::Empty)),
        "{answer:?}"
    );
}

#[test]
fn the_first_members_are_waited_for_together() {
    let mut table = table(3);
    let mut one = table.join(request("", None, &["range", "sticky"]));
    table.pass(2);
    let mut two = table.join(request("", None, &["sticky"]));
    table.pass(1);
    // Another came: once more the delay.
    waits(&mut one);
    table.pass(3);
    let (one, two) = (told(&mut one), told(&mut two));
    assert_eq!((one.generation, two.generation), (1, 1));
    assert_eq!((&*one.protocol, &*two.protocol), ("sticky", "sticky"));
    assert_eq!(one.leader, one.member);
    assert_eq!(two.leader, one.member);
    assert_eq!(one.members.len(), 2);
    assert!(two.members.is_empty(), "only the leader is told of all");
    assert_eq!(table.group.state(), GroupState::CompletingRebalance);
}

#[test]
fn without_delay_the_first_member_is_answered_at_once() {
    let mut table = table(0);
    let mut one = table.join(request("", None, &["range"]));
    assert_eq!(told(&mut one).generation, 1);
}

#[test]
fn a_member_without_id_is_given_one_and_the_id_is_kept_for_its_session() {
    let mut table = table(0);
    let ask = JoinRequest {
        require_known_member: true,
        ..request("", None, &["range"])
    };
    let mut answer = table.join(ask.clone());
    let GroupError::MemberIdRequired { member } = refused(&mut answer) else {
        panic!("no id");
    };
    assert!(member.starts_with("client-"));
    let mut answer = table.join(request(&member, None, &["range"]));
    assert_eq!(told(&mut answer).member, member);

    let mut answer = table.join(ask);
    let GroupError::MemberIdRequired { member } = refused(&mut answer) else {
        panic!("no id");
    };
    table.pass(10);
    let mut answer = table.join(request(&member, None, &["range"]));
    assert_eq!(refused(&mut answer), GroupError::UnknownMember);
}

#[test]
fn assignments_are_handed_out_once_they_are_committed() {
    let mut table = table(0);
    let id = told(&mut table.join(request("", None, &["range"]))).member;
    let mut answer = table.sync(member(&id, 1), &[(&id, "mine")]);
    waits(&mut answer);
    let stored = table.committed(Ok(()));
    assert_eq!(told(&mut answer).assignment, "mine");
    assert_eq!(stored.generation, 1);
    assert_eq!(stored.members[0].assignment, "mine");
    // Asked again, as after a lost answer, it is the same.
    let mut again = table.sync(member(&id, 1), &[]);
    assert_eq!(told(&mut again).assignment, "mine");
}

#[test]
fn an_assignment_that_is_not_committed_is_not_handed_out() {
    let mut table = table(0);
    let id = told(&mut table.join(request("", None, &["range"]))).member;
    let mut answer = table.sync(member(&id, 1), &[(&id, "mine")]);
    let error = GroupError::NotCoordinator { node: None };
    table.committed(Err(error.clone()));
    assert_eq!(refused(&mut answer), error);
    assert_eq!(table.group.state(), GroupState::PreparingRebalance);
    let mut answer = table.join(request(&id, None, &["range"]));
    assert_eq!(told(&mut answer).generation, 2);
}

#[test]
fn heartbeats_say_where_the_group_is() {
    let (mut table, ids) = Table::stable(2);
    assert_eq!(table.heartbeat(&ids[0], 1), Ok(()));
    assert_eq!(
        table.heartbeat(&ids[0], 2),
        Err(GroupError::IllegalGeneration)
    );
    assert_eq!(table.heartbeat("x", 1), Err(GroupError::UnknownMember));
    let mut third = table.join(request("", None, &["range"]));
    assert_eq!(
        table.heartbeat(&ids[0], 1),
        Err(GroupError::RebalanceInProgress)
    );
    waits(&mut third);
}

#[test]
fn joins_one_upon_another_lose_nobody() {
    let (mut table, ids) = Table::stable(2);
    // Two more come one after the other, each in the middle of what the last one began.
    let mut third = table.join(request("", None, &["range"]));
    let mut one = table.join(request(&ids[0], None, &["range"]));
    let mut two = table.join(request(&ids[1], None, &["range"]));
    let third = told(&mut third).member;
    assert_eq!(told(&mut one).members.len(), 3);
    assert_eq!(told(&mut two).generation, 2);

    let mut waiting = table.sync(member(&ids[1], 2), &[]);
    let mut fourth = table.join(request("", None, &["range"]));
    assert_eq!(refused(&mut waiting), GroupError::RebalanceInProgress);
    // The leader's assignments of the generation before are nobody's any more.
    let mut late = table.sync(member(&ids[0], 2), &[]);
    assert_eq!(refused(&mut late), GroupError::RebalanceInProgress);
    let mut answers: Vec<_> = [&ids[0], &ids[1], &third]
        .map(|id| table.join(request(id, None, &["range"])))
        .into();
    let fourth = told(&mut fourth).member;
    let joined: Vec<Joined> = answers.iter_mut().map(told).collect();
    assert!(joined.iter().all(|joined| joined.generation == 3));
    assert_eq!(joined[0].members.len(), 4);
    table.settle(&[ids[0].clone(), ids[1].clone(), third, fourth], 3);
}

#[test]
fn a_commit_of_assignments_that_was_overtaken_changes_nothing() {
    let (mut table, ids) = Table::stable(1);
    let mut one = table.join(request(&ids[0], None, &["range"]));
    assert_eq!(told(&mut one).generation, 2);
    let mut synced = table.sync(member(&ids[0], 2), &[(&ids[0], "old")]);
    let mut two = table.join(request("", None, &["range"]));
    assert_eq!(refused(&mut synced), GroupError::RebalanceInProgress);
    table.committed(Ok(()));
    assert_eq!(table.group.state(), GroupState::PreparingRebalance);
    let mut one = table.join(request(&ids[0], None, &["range"]));
    let second = told(&mut two).member;
    assert_eq!(told(&mut one).generation, 3);
    table.settle(&[ids[0].clone(), second], 3);
}

#[test]
fn a_silent_member_is_out_after_its_session_and_the_others_go_on() {
    let (mut table, ids) = Table::stable(2);
    table.pass(6);
    assert_eq!(table.heartbeat(&ids[0], 1), Ok(()));
    table.pass(4);
    assert_eq!(
        table.heartbeat(&ids[0], 1),
        Err(GroupError::RebalanceInProgress)
    );
    let mut one = table.join(request(&ids[0], None, &["range"]));
    let one = told(&mut one);
    assert_eq!((one.generation, one.members.len()), (2, 1));
    assert_eq!(table.heartbeat(&ids[1], 1), Err(GroupError::UnknownMember));
}

#[test]
fn a_member_that_does_not_join_again_in_time_is_out() {
    let (mut table, ids) = Table::stable(2);
    let mut one = table.join(request(&ids[0], None, &["range"]));
    for _ in 0..6 {
        table.pass(5);
        // It is alive, but does not come.
        drop(table.heartbeat(&ids[1], 1));
    }
    assert_eq!(told(&mut one).members.len(), 1);
}

#[test]
fn who_joins_and_never_syncs_is_out() {
    let (mut table, ids) = Table::stable(2);
    let mut one = table.join(request(&ids[0], None, &["range"]));
    let mut two = table.join(request(&ids[1], None, &["range"]));
    assert_eq!(
        (told(&mut one).generation, told(&mut two).generation),
        (2, 2)
    );
    let mut synced = table.sync(member(&ids[0], 2), &[(&ids[0], "all")]);
    table.committed(Ok(()));
    told(&mut synced);
    for _ in 0..6 {
        table.pass(5);
        drop(table.heartbeat(&ids[0], 2));
        drop(table.heartbeat(&ids[1], 2));
    }
    assert_eq!(table.heartbeat(&ids[1], 2), Err(GroupError::UnknownMember));
    assert_eq!(
        table.heartbeat(&ids[0], 2),
        Err(GroupError::RebalanceInProgress)
    );
}

#[test]
fn a_group_that_all_leave_is_empty_and_committed_as_such() {
    let (mut table, ids) = Table::stable(2);
    for id in &ids {
        let leaving = Leaving {
            member: id.clone(),
            instance: None,
        };
        assert_eq!(table.act(|group, ctx| group.leave(&leaving, ctx)), Ok(()));
    }
    assert_eq!(table.group.state(), GroupState::Empty);
    let stored = table.committed(Ok(()));
    assert_eq!((stored.generation, stored.members.len()), (2, 0));
    assert!(table.group.is_idle());
}

#[test]
fn a_follower_that_asks_again_is_told_the_same_and_the_leader_begins_anew() {
    let (mut table, ids) = Table::stable(2);
    let mut follower = table.join(request(&ids[1], None, &["range"]));
    assert_eq!(told(&mut follower).generation, 1);
    assert_eq!(table.group.state(), GroupState::Stable);
    let mut changed = table.join(request(&ids[1], None, &["range", "sticky"]));
    waits(&mut changed);
    let mut leader = table.join(request(&ids[0], None, &["range"]));
    assert_eq!(told(&mut leader).generation, 2);
    assert_eq!(told(&mut changed).generation, 2);
}

#[test]
fn a_member_that_comes_back_under_its_instance_id_keeps_its_part_and_fences_its_former_self() {
    for can_skip in [false, true] {
        let mut table = table(0);
        let first = told(&mut table.join(request("", Some("a"), &["range"])));
        table.settle(std::slice::from_ref(&first.member), 1);
        let again = JoinRequest {
            can_skip_assignment: can_skip,
            ..request("", Some("a"), &["range"])
        };
        let mut answer = table.join(again);
        waits(&mut answer);
        table.committed(Ok(()));
        let second = told(&mut answer);
        assert_eq!(second.generation, 1);
        assert_ne!(second.member, first.member);
        assert_eq!(second.skip_assignment, can_skip);
        let leader = if can_skip { &second } else { &first };
        assert_eq!(second.leader, leader.member);
        assert_eq!(table.group.state(), GroupState::Stable);
        let mut synced = table.sync(member(&second.member, 1), &[]);
        assert_eq!(told(&mut synced).assignment, "part");
        let former = MemberRef {
            instance: Some("a".to_owned()),
            ..member(&first.member, 1)
        };
        let now = table.now;
        let fenced = table.group.heartbeat(&former, now);
        assert_eq!(fenced, Err(GroupError::FencedInstance));
        let leaving = Leaving {
            member: String::new(),
            instance: Some("a".to_owned()),
        };
        assert_eq!(table.act(|group, ctx| group.leave(&leaving, ctx)), Ok(()));
        assert_eq!(table.group.state(), GroupState::Empty);
    }
}

#[test]
fn protocols_must_be_shared_and_groups_have_a_size() {
    let (mut table, _) = Table::stable(2);
    let mut other = table.join(request("", None, &["sticky"]));
    assert_eq!(refused(&mut other), GroupError::InconsistentProtocol);
    let connect = JoinRequest {
        protocol_type: "connect".to_owned(),
        ..request("", None, &["range"])
    };
    let mut other = table.join(connect);
    assert_eq!(refused(&mut other), GroupError::InconsistentProtocol);
    let (mut table, _) = Table::stable(4);
    let mut fifth = table.join(request("", None, &["range"]));
    assert_eq!(refused(&mut fifth), GroupError::GroupFull);
}

#[test]
fn offsets_are_committed_by_members_and_into_empty_groups() {
    let (mut table, ids) = Table::stable(1);
    let nobody = member("", -1);
    let cases = [
        (member(&ids[0], 1), false, Ok(())),
        (
            member(&ids[0], 0),
            false,
            Err(GroupError::IllegalGeneration),
        ),
        (member("x", 1), false, Err(GroupError::UnknownMember)),
        (nobody.clone(), false, Err(GroupError::UnknownMember)),
        (nobody.clone(), true, Ok(())),
    ];
    let now = table.now;
    for (asks, transactional, expected) in cases {
        let checked = table.group.check_commit(&asks, transactional, now);
        assert_eq!(checked, expected, "{asks:?}");
    }
    let mut one = table.join(request(&ids[0], None, &["range"]));
    told(&mut one);
    let asks = member(&ids[0], 2);
    let checked = table.group.check_commit(&asks, false, now);
    assert_eq!(checked, Err(GroupError::RebalanceInProgress));
    // A producer could not go on after that.
    let checked = table.group.check_commit(&asks, true, now);
    assert_eq!(checked, Ok(()));
    let mut empty = Group::new("g");
    assert_eq!(empty.check_commit(&nobody, false, now), Ok(()));
}

#[test]
fn a_loaded_group_is_as_committed_and_its_sessions_begin_anew() {
    let (mut table, ids) = Table::stable(2);
    let mut one = table.join(request(&ids[0], None, &["range"]));
    waits(&mut one);
    let mut two = table.join(request(&ids[1], None, &["range"]));
    told(&mut two);
    table.sync(member(&ids[0], 2), &[(&ids[0], "a"), (&ids[1], "b")]);
    let stored = table.committed(Ok(()));
    table.now += Duration::from_secs(100);
    table.group = Group::load("g", &stored, table.now);
    assert_eq!(table.group.state(), GroupState::Stable);
    let mut synced = table.sync(member(&ids[1], 2), &[]);
    assert_eq!(told(&mut synced).assignment, "b");
    table.pass(9);
    assert_eq!(table.heartbeat(&ids[1], 2), Ok(()));
    table.pass(1);
    assert_eq!(
        table.heartbeat(&ids[1], 2),
        Err(GroupError::RebalanceInProgress)
    );
    assert_eq!(table.heartbeat(&ids[0], 2), Err(GroupError::UnknownMember));
}

/// A client as the group knows it, and what it waits for.
struct Client {
    id: String,
    generation: i32,
    joining: Option<Answer<Joined>>,
    syncing: Option<Answer<Synced>>,
}

/// Random clients, commits that fail and time that passes.
struct Play {
    seed: u64,
    rng: SmallRng,
    table: Table,
    clients: Vec<Client>,
    given: BTreeMap<(i32, String), Bytes>,
    /// What was answered, in order.
    trace: String,
}

impl Play {
    fn new(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let client = |_| Client {
            id: String::new(),
            generation: 0,
            joining: None,
            syncing: None,
        };
        Self {
            seed,
            table: table(rng.random_range(0..4)),
            rng,
            clients: (0..4).map(client).collect(),
            given: BTreeMap::new(),
            trace: String::new(),
        }
    }

    fn step(&mut self) {
        let (rng, table) = (&mut self.rng, &mut self.table);
        let which = rng.random_range(0..self.clients.len());
        let client = &mut self.clients[which];
        match rng.random_range(0..10) {
            0..3 if client.joining.is_none() => {
                client.joining = Some(table.join(request(&client.id, None, &["range"])));
            }
            3..5 if client.joining.is_none() && client.syncing.is_none() => {
                let asks = member(&client.id, client.generation);
                let parts: Vec<_> = table.group.members.keys().cloned().collect();
                let parts: Vec<(&str, &str)> = parts.iter().map(|id| (&**id, "part")).collect();
                client.syncing = Some(table.sync(asks, &parts));
            }
            5 => drop(table.heartbeat(&client.id, client.generation)),
            6 => {
                let leaving = Leaving {
                    member: client.id.clone(),
                    instance: None,
                };
                drop(table.act(|group, ctx| group.leave(&leaving, ctx)));
            }
            7 if !table.stores.is_empty() => {
                let lost = rng.random_bool(0.2);
                let error = GroupError::NotCoordinator { node: None };
                table.committed(if lost { Err(error) } else { Ok(()) });
            }
            _ => table.pass(rng.random_range(0..4)),
        }
    }

    fn listen(&mut self) {
        for client in &mut self.clients {
            if let Some(answer) = client.joining.as_mut().and_then(|a| a.try_recv().ok()) {
                client.joining = None;
                let _ = writeln!(self.trace, "{answer:?}");
                match answer {
                    Ok(joined) => {
                        client.id = joined.member;
                        client.generation = joined.generation;
                    }
                    Err(GroupError::UnknownMember) => client.id.clear(),
                    Err(_) => {}
                }
            }
            if let Some(answer) = client.syncing.as_mut().and_then(|a| a.try_recv().ok()) {
                client.syncing = None;
                let _ = writeln!(self.trace, "{answer:?}");
                if let Ok(synced) = answer {
                    let place = (client.generation, client.id.clone());
                    let first = self.given.entry(place);
                    let first = first.or_insert_with(|| synced.assignment.clone());
                    assert_eq!(*first, synced.assignment, "seed {}", self.seed);
                }
            }
        }
    }

    /// Nobody is heard of any more: all are answered, and none is left.
    fn end(mut self) -> String {
        let seed = self.seed;
        for _ in 0..200 {
            while !self.table.stores.is_empty() {
                self.table.committed(Ok(()));
            }
            self.table.pass(5);
        }
        let group = &self.table.group;
        assert!(group.is_idle(), "seed {seed}: {group:?}");
        self.listen();
        for client in &self.clients {
            assert!(client.joining.is_none(), "seed {seed}: a join is lost");
            assert!(client.syncing.is_none(), "seed {seed}: a sync is lost");
        }
        self.trace
    }
}

fn play(seed: u64) -> String {
    let mut play = Play::new(seed);
    let mut newest = 0;
    for step in 0..200 {
        play.step();
        play.listen();
        let generation = play.table.group.generation;
        assert!(generation >= newest, "seed {seed} at {step}");
        newest = generation;
    }
    play.end()
}

#[test]
fn whatever_members_do_all_are_answered_and_a_seed_gives_one_trace() {
    for seed in 0..300 {
        let trace = play(seed);
        assert!(!trace.is_empty(), "seed {seed}: nothing was answered");
        assert_eq!(trace, play(seed), "seed {seed}");
    }
}

/// What other groups of the partition have said leaves no room: newcomers are to try again, and who
/// is counted already stays.
#[test]
fn a_full_partition_lets_in_whoever_is_counted_and_tells_others_to_try_again() {
    let mut table = table(0);
    let mut first = table.join(request("", None, &["range"]));
    let joined = first.try_recv().unwrap().unwrap();
    table.room = 0;
    let mut again = table.join(request(&joined.member, None, &["range"]));
    assert_eq!(
        again.try_recv().unwrap().map(|joined| joined.generation),
        Ok(1)
    );
    let mut newcomer = table.join(request("", None, &["range"]));
    let refused = newcomer.try_recv().unwrap();
    assert!(
        matches!(refused, Err(GroupError::Unavailable(_))),
        "{refused:?}"
    );
}

#[test]
fn that_a_group_is_empty_is_committed_again_until_it_is() {
    let mut table = table(0);
    let mut joined = table.join(request("", None, &["range"]));
    let joined = joined.try_recv().unwrap().unwrap();
    let mut synced = table.sync(member(&joined.member, 1), &[]);
    table.committed(Ok(()));
    synced.try_recv().unwrap().unwrap();
    let leaving = Leaving {
        member: joined.member,
        instance: None,
    };
    table.act(|group, ctx| group.leave(&leaving, ctx)).unwrap();
    for _ in 0..3 {
        let failed = table.committed(Err(GroupError::Unavailable("full")));
        assert!(failed.members.is_empty());
        assert!(!table.group.is_idle(), "the log has a member still");
        assert_eq!(table.group.state(), GroupState::Empty);
        table.pass(0);
        assert!(table.stores.is_empty(), "not at once");
        table.pass(1);
    }
    table.committed(Ok(()));
    assert!(table.group.is_idle());
    assert_eq!(table.group.due(), None);
}

#[test]
fn what_members_want_is_known_before_they_have_agreed() {
    let mut table = table(3);
    let _first = table.join(request("", None, &["range", "sticky"]));
    assert_eq!(table.group.state(), GroupState::PreparingRebalance);
    assert_eq!(table.group.subscriptions().count(), 2);
    table.pass(3);
    assert_eq!(table.group.state(), GroupState::CompletingRebalance);
    assert_eq!(table.group.subscriptions().count(), 1);
}

/// A named member that stays away and allows no time would have the group looked at for ever.
#[test]
fn a_rebalance_takes_its_time_though_members_allow_none() {
    let mut table = table(0);
    let hasty = |instance| JoinRequest {
        rebalance_timeout: Duration::ZERO,
        ..request("", Some(instance), &["range"])
    };
    let _first = table.join(hasty("i"));
    let _second = table.join(hasty("j"));
    let due = table.group.due().unwrap();
    assert!(
        due >= table.now + Duration::from_secs(1),
        "{:?}",
        due - table.now
    );
}
