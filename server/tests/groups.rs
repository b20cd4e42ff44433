//! Consumer groups on whole simulated nodes: members that join, work and die while coordinators
//! crash, are cut off and hand over, and requests and replies are lost. No generation gives a
//! partition to two, no acknowledged offset goes back, and after the faults all members work.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod group_stage;
#[expect(dead_code, reason = "each test file uses a part of it")]
mod machines;

use std::time::Duration;

use group_stage::{GROUPS, HEARTBEAT, PARTITIONS, SESSION, Stage, TOPIC};
use machines::Machines;
use tokio::time::Instant;
use trilog_model::batch::{BatchBuilder, Compression};
use trilog_raft::testkit::{block_on, seeds};
use trilog_server::group::{
    CommitRequest, FetchRequest, GroupError, GroupState, Leaving, MemberRef, OffsetCommit, Place,
    ResetError, ResetRequest, ResetTo,
};
use trilog_server::partition::{AppendError, Start};

fn simulate(seed: u64) {
    block_on(async move {
        let mut stage = Stage::start(seed).await;
        for number in 0..3 {
            for group in GROUPS {
                stage.enter(group, number, 0.04);
            }
        }
        stage.until_whole(Duration::from_mins(1)).await;
        for round in 0..6 {
            stage.disturb().await;
            if round == 2 {
                stage.lives[&(GROUPS[0], 1)].set(false);
                stage.enter(GROUPS[1], 3, 0.04);
            }
        }
        stage.all.net.heal_all();
        for number in 1..=3 {
            if !stage.all.serves(number) {
                stage.all.until("a restart", |all| all.serves(number)).await;
            }
        }
        stage.refresh();
        // Sessions end, everybody joins again, and some of it is lost on the way.
        stage.until_whole(Duration::from_secs(90)).await;
        stage.run(Duration::from_secs(3)).await;
        stage.stop();
        stage.run(Duration::from_secs(25)).await;
        stage.check().await;
        let ledger = stage.ledger.borrow();
        let acked: i64 = ledger.acked.values().sum();
        assert!(acked > 50, "seed {seed}: only {acked} commits");
    });
}

#[test]
fn groups_keep_their_word_whatever_becomes_of_coordinators_and_replies() {
    for seed in seeds(3) {
        simulate(seed);
    }
}

#[test]
fn a_dead_members_partitions_are_handed_over_within_its_session_and_a_heartbeat() {
    for seed in seeds(2) {
        block_on(async move {
            let mut stage = Stage::start(seed).await;
            for number in 0..4 {
                stage.enter(GROUPS[0], number, 0.0);
            }
            stage.until_whole(Duration::from_mins(1)).await;
            stage.run(Duration::from_secs(5)).await;
            stage.lives[&(GROUPS[0], 2)].set(false);
            stage.ledger.borrow_mut().holds.remove(&(GROUPS[0], 2));
            let took = stage.until_whole(Duration::from_secs(30)).await;
            // Its last heartbeat may just have been; then all learn of it with their next.
            let most = SESSION + HEARTBEAT * 2 + Duration::from_secs(1);
            assert!(took <= most, "seed {seed}: {took:?}");
            stage.stop();
        });
    }
}

#[test]
fn groups_are_listed_described_and_deleted_and_their_log_is_nobodys() {
    block_on(async {
        let mut stage = Stage::start(7).await;
        stage.enter(GROUPS[0], 0, 0.0);
        stage.until_whole(Duration::from_mins(1)).await;
        stage.run(Duration::from_secs(3)).await;
        let group = GROUPS[0];
        let nodes = stage.nodes.borrow().clone();
        let place = nodes[&1].locate(group).await.unwrap();
        let coordinator = &nodes[&place.get()];
        let other = nodes.iter().find(|(node, _)| **node != place.get());
        let elsewhere = other.unwrap().1.describe(group);
        assert_eq!(
            elsewhere,
            Err(GroupError::NotCoordinator { node: Some(place) })
        );
        let described = coordinator.describe(group).unwrap();
        assert_eq!(described.state, GroupState::Stable);
        assert_eq!(described.members.len(), 1);
        assert_eq!(coordinator.delete(group).await, Err(GroupError::NotEmpty));
        let asked = vec![(TOPIC.to_owned(), 0)];
        let deleted = coordinator.delete_offsets(group, asked.clone()).await;
        assert_eq!(deleted, Ok(vec![Err(GroupError::SubscribedToTopic)]));

        stage.stop();
        stage.run(Duration::from_secs(1)).await;
        let leaving = Leaving {
            member: described.members[0].member.clone(),
            instance: None,
        };
        assert_eq!(coordinator.leave(group, &[leaving]), Ok(vec![Ok(())]));
        let states: Vec<_> = coordinator.list().unwrap();
        let states: Vec<_> = states.iter().map(|l| (&*l.group, l.state)).collect();
        assert_eq!(states, [(group, GroupState::Empty)]);
        let deleted = coordinator.delete_offsets(group, asked.clone()).await;
        assert_eq!(deleted, Ok(vec![Ok(())]));
        let request = FetchRequest {
            group: group.to_owned(),
            partitions: None,
            require_stable: false,
        };
        let left = coordinator.fetch(request.clone()).await.unwrap();
        assert_eq!(left.len(), usize::try_from(PARTITIONS).unwrap() - 1);
        assert_eq!(coordinator.delete(group).await, Ok(()));
        assert_eq!(coordinator.fetch(request).await, Ok(Vec::new()));
        assert_eq!(coordinator.describe(group), Err(GroupError::UnknownGroup));
        assert_eq!(coordinator.list(), Ok(Vec::new()));

        let partition = stage.internal(place.get()).into_iter().next().unwrap();
        let mut batch = BatchBuilder::new(Compression::None);
        batch.push(5, None, Some(b"mine"), &[]).unwrap();
        let appended = partition.append(batch.build().unwrap()).await;
        assert_eq!(appended, Err(AppendError::Internal));
    });
}

/// Who has members is not put anywhere else; who has none goes where it is told, whoever leads
/// the partitions, and is seen to be behind by as much.
#[test]
fn a_group_is_reset_only_without_members_and_its_lag_is_known_wherever_partitions_are_led() {
    block_on(async {
        let mut stage = Stage::start(11).await;
        let group = GROUPS[0];
        stage.enter(group, 0, 0.0);
        stage.until_whole(Duration::from_mins(1)).await;
        for partition in 0..PARTITIONS {
            append(&stage, partition, 3).await;
        }
        let nodes = stage.nodes.borrow().clone();
        let place = nodes[&1].locate(group).await.unwrap();
        let coordinator = &nodes[&place.get()];
        let request = |to, execute| ResetRequest {
            group: group.to_owned(),
            topics: vec![(TOPIC.to_owned(), Vec::new())],
            to,
            execute,
        };
        let latest = ResetTo::Start(Start::Latest);
        for execute in [false, true] {
            let refused = coordinator.reset(request(latest, execute)).await;
            let Err(ResetError::Active(members)) = refused else {
                panic!("{refused:?}");
            };
            assert_eq!(members.len(), 1);
            assert_eq!(members[0].client_id, "client-0");
        }

        stage.stop();
        // What it had on its way, and then its session.
        stage.run(SESSION + Duration::from_secs(25)).await;
        let planned = coordinator.reset(request(latest, false)).await.unwrap();
        let after: Vec<u64> = planned.iter().map(|reset| reset.after.get()).collect();
        assert_eq!(after, [3; 6]);
        let before: Vec<_> = planned.iter().map(|reset| reset.before).collect();
        assert_ne!(before, [Some(3); 6], "nothing was done yet");
        coordinator.reset(request(latest, true)).await.unwrap();
        assert_eq!(coordinator.lags().await[group].topics[TOPIC], 0);
        coordinator
            .reset(request(ResetTo::Shift(-2), true))
            .await
            .unwrap();
        assert_eq!(coordinator.lags().await[group].topics[TOPIC], 12);
        let (described, places) = coordinator.survey(group).await.unwrap();
        assert_eq!(described.state, GroupState::Empty);
        let lags: Vec<_> = places.iter().map(Place::lag).collect();
        assert_eq!(lags, [Some(2); 6]);

        let elsewhere = nodes.iter().find(|(node, _)| **node != place.get());
        let refused = elsewhere.unwrap().1.reset(request(latest, true)).await;
        let not_here = GroupError::NotCoordinator { node: Some(place) };
        assert_eq!(refused, Err(ResetError::Group(not_here)));
    });
}

/// Appends records to a partition wherever it is led.
async fn append(stage: &Stage, index: u32, records: usize) {
    let mut batch = BatchBuilder::new(Compression::None);
    for _ in 0..records {
        batch.push(5, None, Some(b"one"), &[]).unwrap();
    }
    let batch = batch.build().unwrap();
    let cluster = stage
        .all
        .with(1, |server| server.cluster().clone())
        .unwrap();
    cluster.append(TOPIC, index, batch).await.unwrap();
}

/// A commit of one offset from outside the group, with a long note beside it.
fn one_offset(group: &str, partition: u32, offset: i64) -> CommitRequest {
    CommitRequest {
        member: MemberRef {
            group: group.to_owned(),
            generation: -1,
            member: String::new(),
            instance: None,
        },
        offsets: vec![OffsetCommit {
            topic: TOPIC.to_owned(),
            partition,
            offset,
            leader_epoch: -1,
            metadata: "x".repeat(3 << 10),
        }],
    }
}

#[test]
fn a_log_of_groups_lets_go_of_what_its_state_includes_and_a_replica_left_behind_catches_up() {
    block_on(async {
        let mut stage = Stage::start(3).await;
        let group = GROUPS[0];
        let nodes = stage.nodes.borrow().clone();
        let settled = |all: &Machines| {
            let map = all.with(1, |server| server.cluster().map()).unwrap();
            map.groups().all(|group| group.voter_nodes().count() == 3)
        };
        stage.all.until("three voters everywhere", settled).await;
        let mut leader = stage.coordinator_of(group, 1, None).await;
        let behind = leader % 3 + 1;
        stage.all.kill(behind);
        stage.refresh();
        let index = nodes[&leader].partition_of(group).unwrap();
        let mut offset = 0;
        while offset < 300 {
            offset += 1;
            let part = u32::try_from(offset).unwrap() % PARTITIONS;
            let mut tries = 0..50;
            // Leadership may still move: what was new to lead is evened out.
            let outcomes = loop {
                match nodes[&leader].commit(one_offset(group, part, offset)).await {
                    Ok(outcomes) => break outcomes,
                    Err(error) => assert!(tries.next().is_some(), "commit {offset}: {error}"),
                }
                stage.run(Duration::from_millis(100)).await;
                leader = stage.coordinator_of(group, leader, Some(behind)).await;
            };
            assert_eq!(outcomes, [Ok(())]);
            let mut ledger = stage.ledger.borrow_mut();
            ledger.acked.insert((group, part), offset);
        }
        let purged = |stage: &Stage| {
            let partition = stage.internal(leader)[usize::try_from(index).unwrap()].clone();
            let log = partition.group().log();
            let first = log
                .segments()
                .first()
                .map(|segment| segment.base_index.get());
            log.state().log_start.is_some() && first.is_some_and(|first| first > 1)
        };
        let deadline = Instant::now() + Duration::from_mins(1);
        while !purged(&stage) {
            assert!(Instant::now() < deadline, "nothing is let go");
            stage.run(Duration::from_secs(1)).await;
        }
        stage.all.boot(behind).await;
        stage.all.until("a restart", |all| all.serves(behind)).await;
        stage.refresh();
        stage.check().await;
    });
}
