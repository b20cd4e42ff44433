//! What groups keep of topics that come and go: nothing is said that a node cannot know, and what is
//! over is swept away.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod group_stage;
#[expect(dead_code, reason = "each test file uses a part of it")]
mod machines;

use std::time::Duration;

use group_stage::{GROUPS, Stage, TOPIC};
use machines::Machines;
use tokio::time::Instant;
use trilog_model::NodeId;
use trilog_raft::controller::TopicId;
use trilog_raft::controller::commands::{Command, CreateTopic, DeleteTopic, TopicKind};
use trilog_raft::testkit::block_on;
use trilog_server::cluster::Cluster;
use trilog_server::group::{
    CommitRequest, ConsumerBeat, Coordinator, FetchRequest, GroupError, MemberRef, OffsetCommit,
};
use trilog_storage::env::Entropy;

/// An offset that somebody commits who is in no group.
fn bare_commit(group: &str, topic: &str, offset: i64) -> CommitRequest {
    CommitRequest {
        member: MemberRef {
            group: group.to_owned(),
            generation: -1,
            member: String::new(),
            instance: None,
        },
        offsets: vec![OffsetCommit {
            topic: topic.to_owned(),
            partition: 0,
            offset,
            leader_epoch: -1,
            metadata: String::new(),
        }],
    }
}

/// Deletes the topic, makes it anew, and makes another one beside it.
async fn make_anew(cluster: &Cluster) {
    let old = cluster.topic(TOPIC).unwrap().id.to_wire();
    let delete = Command::DeleteTopic(DeleteTopic { id: old });
    cluster.propose(&delete).await.unwrap();
    for (number, name) in [(1, TOPIC), (2, "fresh")] {
        let id = TopicId::random(&Entropy::from_seed(1_000 + number));
        let create = CreateTopic {
            id: id.to_wire(),
            name: name.to_owned(),
            partitions: 1,
            replication: 3,
            configs: Vec::new(),
            assignments: Vec::new(),
            kind: TopicKind::User.into(),
        };
        cluster
            .propose(&Command::CreateTopic(create))
            .await
            .unwrap();
    }
}

/// Asks a node, which is made the coordinator as often as it has to be: leaders go back to where they
/// belong by themselves.
async fn insist<T>(
    stage: &Stage,
    (group, node): (&str, u32),
    ask: impl AsyncFn(&Coordinator) -> Result<T, GroupError>,
) -> Result<T, GroupError> {
    let coordinator = stage.nodes.borrow()[&node].clone();
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let led = match coordinator.describe(group) {
            Err(GroupError::NotCoordinator { .. } | GroupError::Loading) => false,
            Ok(_) | Err(_) => true,
        };
        if led {
            match ask(&coordinator).await {
                Err(GroupError::NotCoordinator { .. }) => {}
                told => return told,
            }
        }
        assert!(Instant::now() < deadline, "node {node} never coordinates");
        stage.hand_over(NodeId(node)).await;
        stage.run(Duration::from_millis(300)).await;
    }
}

/// A topic is made anew, and its old offset is left. A coordinator that cannot ask whether its map is
/// the newest says nothing: that there is no offset means to a client that it begins anew, and what
/// is committed to a topic that is gone is lost.
#[test]
fn a_coordinator_says_nothing_of_topics_that_its_map_may_not_know() {
    block_on(async {
        let stage = Stage::start(13).await;
        let cluster = |node: u32| stage.all.with(node, |server| server.cluster().clone());
        let nodes = stage.nodes.borrow().clone();
        let deadline = Instant::now() + Duration::from_mins(2);
        while nodes[&1].locate(GROUPS[0]).await.is_err() {
            assert!(Instant::now() < deadline, "nobody coordinates");
            stage.run(Duration::from_millis(200)).await;
        }
        let settled = |all: &Machines| {
            let map = all.with(1, |server| server.cluster().map()).unwrap();
            map.groups().all(|group| group.voter_nodes().count() == 3)
        };
        stage.all.until("three voters everywhere", settled).await;
        // Leaders come to rest where they belong.
        stage.run(Duration::from_secs(20)).await;
        let leadership = cluster(1).unwrap().controller().group().leadership();
        let leader = leadership.borrow().leader.unwrap().node().get();
        // A group that is coordinated where the controller is not led.
        let names: Vec<String> = (0..50).map(|nth| format!("group-{nth}")).collect();
        let mut place = None;
        for name in &names {
            let located = nodes[&1].locate(name).await.ok();
            place = place.or(located.filter(|at| at.get() != leader).map(|at| (name, at)));
        }
        let (group, first) = place.map(|(name, at)| (name.as_str(), at.get())).unwrap();
        let commit = async |topic: &str, offset| {
            let told = insist(&stage, (group, first), async |at| {
                at.commit(bare_commit(group, topic, offset)).await
            });
            told.await
        };
        let fetch = async || {
            let request = || FetchRequest {
                group: group.to_owned(),
                partitions: Some(vec![(TOPIC.to_owned(), 0)]),
                require_stable: false,
            };
            let told = insist(&stage, (group, first), async |at| at.fetch(request()).await);
            let committed = told.await?[0].committed.clone()?;
            Ok::<_, GroupError>(committed.map(|found| found.offset))
        };
        assert_eq!(commit(TOPIC, 7).await, Ok(vec![Ok(())]));
        make_anew(&cluster(leader).unwrap()).await;
        let known = |all: &Machines| {
            let map = all.with(first, |server| server.cluster().map());
            map.is_some_and(|map| map.topic_named("fresh").is_some())
        };
        stage.all.until("a map that is up to date", known).await;
        let (here, there) = (NodeId(first), NodeId(leader));
        stage.all.net.cut(here, there);
        stage.all.net.cut(there, here);
        assert_eq!(fetch().await, Err(GroupError::Loading));
        for topic in ["unheard-of", "fresh", TOPIC] {
            let told = commit(topic, 9).await;
            assert_eq!(told, Err(GroupError::Loading), "{topic}");
        }
        stage.all.net.heal_all();
        let healed = Instant::now() + Duration::from_mins(1);
        while fetch().await != Ok(None) {
            assert!(Instant::now() < healed, "it is not said that it is gone");
            stage.run(Duration::from_millis(300)).await;
        }
        assert_eq!(
            commit("unheard-of", 9).await,
            Ok(vec![Err(GroupError::UnknownTopic)])
        );
        assert_eq!(commit(TOPIC, 9).await, Ok(vec![Ok(())]));
        assert_eq!(fetch().await, Ok(Some(9)));
    });
}

/// Offsets of topics that are gone are let go of, and groups of which nothing is left; what is in use,
/// or not past its time, stays.
#[test]
fn what_is_over_is_swept_away_and_nothing_else() {
    block_on(async {
        let mut stage = Stage::start(17).await;
        stage.all.create("gone", 3).await;
        stage.enter(GROUPS[1], 0, 0.0);
        stage.until_whole(Duration::from_mins(1)).await;
        let nodes = stage.nodes.borrow().clone();
        let at = async |group: &str| {
            let place = nodes[&1].locate(group).await.unwrap();
            nodes[&place.get()].clone()
        };
        let coordinator = at(GROUPS[0]).await;
        for topic in [TOPIC, "gone"] {
            let outcomes = coordinator.commit(bare_commit(GROUPS[0], topic, 7)).await;
            assert_eq!(outcomes, Ok(vec![Ok(())]), "{topic}");
        }
        let void = "void";
        let mut beat = ConsumerBeat {
            group: void.to_owned(),
            member: "m".to_owned(),
            topics: Some(vec![TOPIC.to_owned()]),
            ..ConsumerBeat::default()
        };
        let empty = at(void).await;
        empty.consumer_heartbeat(beat.clone()).await.unwrap();
        beat.epoch = -1;
        empty.consumer_heartbeat(beat).await.unwrap();
        let cluster = stage.all.with(1, |server| server.cluster().clone());
        let cluster = cluster.unwrap();
        let id = cluster.topic("gone").unwrap().id.to_wire();
        let delete = Command::DeleteTopic(DeleteTopic { id });
        cluster.propose(&delete).await.unwrap();

        let held = |stage: &Stage, group: &str| {
            let partitions = stage.internal(1).into_iter();
            let mut found = partitions.filter_map(|partition| {
                partition.with_state(|state| {
                    let group = state.groups()?.get(group)?;
                    Some(group.offsets().keys().cloned().collect::<Vec<_>>())
                })
            });
            found.next()
        };
        stage.run(Duration::from_mins(2)).await;
        let before = held(&stage, GROUPS[0]).unwrap();
        assert_eq!(before, ["gone", TOPIC], "it is not looked at all the time");
        assert!(held(&stage, void).is_some());
        let deadline = Instant::now() + Duration::from_mins(5);
        while held(&stage, GROUPS[0]).unwrap().len() > 1 || held(&stage, void).is_some() {
            assert!(Instant::now() < deadline, "nothing is swept away");
            stage.run(Duration::from_secs(5)).await;
        }
        assert_eq!(held(&stage, GROUPS[0]).unwrap(), [TOPIC]);
        assert_eq!(held(&stage, GROUPS[1]).unwrap(), [TOPIC], "it is in use");
        stage.stop();
    });
}
