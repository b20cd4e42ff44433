//! Groups that rest: that they do, what wakes them, and that nobody rests on a leader that is
//! gone.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio::time::Instant;
use trilog_model::{GroupId, NodeId, Offset, ReplicaId, Term};

use crate::Group;
use crate::testkit::{Cluster, ClusterConfig, Witness, block_on};
use crate::transport::sim::Path;
use crate::types::Proposal;

const GROUP: GroupId = GroupId(40);
const QUIESCE_AFTER: Duration = Duration::from_millis(500);
/// What a group may be without a leader after its own is lost: the time until its node counts as
/// dead, and an election.
const FAILOVER: Duration = Duration::from_millis(1_500);

/// Three nodes and a group that rests.
async fn resting(seed: u64) -> Resting {
    let mut config = ClusterConfig::three(seed);
    config.raft.quiesce_after = Some(QUIESCE_AFTER);
    let mut cluster = Cluster::start(config).await;
    cluster.create_group(GROUP).await;
    cluster.await_leader(GROUP).await;
    propose(&cluster, GROUP, 1).await;
    cluster.await_rest(GROUP).await;
    let leader = cluster.await_leader(GROUP).await;
    let followers = cluster.nodes().into_iter().filter(|node| *node != leader);
    let followers: Vec<_> = followers.collect();
    Resting {
        term: term(&cluster),
        leader,
        followers: [followers[0], followers[1]],
        cluster,
    }
}

struct Resting {
    cluster: Cluster,
    leader: NodeId,
    followers: [NodeId; 2],
    term: Term,
}

impl Resting {
    fn group(&self, node: NodeId) -> Group<Witness> {
        self.cluster.group(node, GROUP).cloned().unwrap()
    }

    /// Waits until there is another leader; returns how long that took.
    async fn await_succession(&self) -> Duration {
        let start = Instant::now();
        let succeeded = |cluster: &Cluster| {
            let leader = cluster.leader(GROUP);
            leader.is_some_and(|(_, leadership)| leadership.term > self.term)
        };
        self.cluster.until("a succession", succeeded).await;
        start.elapsed()
    }
}

/// Waits until all rest, and the leader's lease is over too.
async fn rest_past_the_lease(cluster: &Cluster) {
    cluster.await_rest(GROUP).await;
    cluster.run(Duration::from_secs(1)).await;
    assert!(cluster.rests(GROUP));
}

fn term(cluster: &Cluster) -> Term {
    cluster.leader(GROUP).unwrap().1.term
}

/// Proposes a command to the group's leader; returns how long it took.
async fn propose(cluster: &Cluster, group: GroupId, command: u64) -> Duration {
    let leader = cluster.await_leader(group).await;
    let leader = cluster.group(leader, group).cloned().unwrap();
    let term = leader.leadership().borrow().term;
    let proposal = Proposal::command(command.to_le_bytes().to_vec());
    let start = Instant::now();
    leader.propose(vec![proposal], term).await.unwrap();
    start.elapsed()
}

#[test]
fn resting_groups_send_nothing_and_one_proposal_wakes_one_of_them_everywhere() {
    block_on(async {
        let mut config = ClusterConfig::three(1);
        config.raft.quiesce_after = Some(QUIESCE_AFTER);
        let mut cluster = Cluster::start(config).await;
        let in_ten_seconds = async |cluster: &Cluster| {
            let before = cluster.frames();
            cluster.run(Duration::from_secs(10)).await;
            cluster.frames() - before
        };
        cluster.run(Duration::from_secs(1)).await;
        let nodes_alone = in_ten_seconds(&cluster).await;
        let groups: Vec<_> = (100..120).map(GroupId).collect();
        for group in &groups {
            cluster.create_group(*group).await;
        }
        for group in &groups {
            cluster.await_rest(*group).await;
        }
        let resting = in_ten_seconds(&cluster).await;
        // Both sides of the two append links from each node to each other say twice a second that
        // they live.
        let signs_of_life = 3 * 2 * 2 * 2 * 20;
        assert!(
            resting <= nodes_alone + signs_of_life,
            "{resting} frames while all rest, {nodes_alone} without any group"
        );
        let [used, others @ ..] = &groups[..] else {
            return;
        };
        let awake_path = propose(&cluster, *used, 1).await;
        let after_wake = propose(&cluster, *used, 2).await;
        // One more round to a majority, at two milliseconds each way.
        let added = awake_path.saturating_sub(after_wake);
        assert!(added < Duration::from_millis(6), "waking took {added:?}");
        cluster
            .until("all its replicas wake", |cluster| {
                cluster
                    .replicas(*used)
                    .iter()
                    .all(|replica| !replica.rests())
            })
            .await;
        assert!(others.iter().all(|group| cluster.rests(*group)));
        cluster.await_rest(*used).await;
    });
}

#[test]
fn waking_over_slow_links_deposes_nobody() {
    for seed in 20..30 {
        block_on(async {
            let rest = resting(seed).await;
            rest.cluster.net.set_default_path(Path {
                latency: Duration::from_millis(5),
                jitter: Duration::from_millis(60),
                bandwidth: None,
            });
            for command in 2..8 {
                rest_past_the_lease(&rest.cluster).await;
                propose(&rest.cluster, GROUP, command).await;
                rest.cluster.run(Duration::from_millis(300)).await;
            }
            assert_eq!(term(&rest.cluster), rest.term, "seed {seed}");
        });
    }
}

#[test]
fn a_single_replica_rests_and_is_used_without_a_round() {
    block_on(async {
        let mut config = ClusterConfig::three(2);
        config.nodes = 1;
        config.raft.quiesce_after = Some(QUIESCE_AFTER);
        let mut cluster = Cluster::start(config).await;
        cluster.create_group(GROUP).await;
        cluster.await_rest(GROUP).await;
        propose(&cluster, GROUP, 1).await;
        cluster.await_rest(GROUP).await;
    });
}

#[test]
fn whatever_needs_an_awake_leader_wakes_it() {
    block_on(async {
        let Resting {
            cluster,
            leader,
            followers,
            ..
        } = resting(3).await;
        let group = cluster.group(leader, GROUP).cloned().unwrap();
        rest_past_the_lease(&cluster).await;
        let applied = group.high_watermark().borrow().applied;
        assert_eq!(Some(group.read_index().await.unwrap()), applied);
        assert!(!group.rests());
        rest_past_the_lease(&cluster).await;

        group.trim(applied.unwrap(), Offset(0)).await.unwrap();
        assert!(!group.rests());
        rest_past_the_lease(&cluster).await;

        let learner = ReplicaId::new(followers[0], 1);
        let rest: BTreeSet<_> = group
            .voters()
            .into_iter()
            .filter(|id| *id != learner)
            .collect();
        group.change_voters(&rest, &[learner].into()).await.unwrap();
        assert!(!group.rests());
        rest_past_the_lease(&cluster).await;

        let other = ReplicaId::new(followers[1], 1);
        group.transfer_leader(other).await.unwrap();
        assert_eq!(cluster.await_leader(GROUP).await, followers[1]);
        cluster.await_rest(GROUP).await;
    });
}

#[test]
fn followers_succeed_a_lost_leader_and_rest_without_it_until_it_is_back() {
    type Lose = fn(&mut Cluster, NodeId);
    let ways: [(&str, Lose); 3] = [
        ("killed", |cluster, leader| cluster.kill(leader)),
        ("power lost", |cluster, leader| cluster.power_loss(leader)),
        ("isolated", |cluster, leader| cluster.net.isolate(leader)),
    ];
    for (seed, (what, lose)) in (4..).zip(ways) {
        block_on(async {
            let mut rest = resting(seed).await;
            lose(&mut rest.cluster, rest.leader);
            let took = rest.await_succession().await;
            assert!(took < FAILOVER, "{what}: {took:?}");
            propose(&rest.cluster, GROUP, 2).await;
            let [a, b] = rest.followers.map(|node| rest.group(node));
            rest.cluster
                .until("rest of those that are left", |_| a.rests() && b.rests())
                .await;
            rest.cluster.heal().await;
            rest.cluster.await_rest(GROUP).await;
            rest.cluster.converge(GROUP).await;
        });
    }
}

#[test]
fn a_group_that_died_in_a_living_node_is_not_vouched_for_for_ever() {
    for core_only in [false, true] {
        block_on(async {
            let mut rest = resting(7).await;
            let others: Vec<_> = (200..210).map(GroupId).collect();
            for group in &others {
                rest.cluster.create_group(*group).await;
            }
            for group in &others {
                rest.cluster.await_rest(*group).await;
            }
            rest.cluster.await_rest(GROUP).await;
            if core_only {
                rest.group(rest.leader).end_consensus().await;
            } else {
                rest.cluster.close(rest.leader, GROUP).await;
            }
            let took = rest.await_succession().await;
            assert!(took < Duration::from_secs(3), "{took:?}");
            let leader = rest.cluster.await_leader(GROUP).await;
            assert_ne!(leader, rest.leader);
            propose(&rest.cluster, GROUP, 2).await;
            for group in &others {
                assert!(rest.cluster.rests(*group), "{group} was woken for nothing");
            }
            if core_only {
                // Whoever supervises it sees that, and opens it anew.
                assert!(rest.group(rest.leader).failure().is_some());
                rest.cluster.close(rest.leader, GROUP).await;
            }
            assert!(rest.cluster.open_all().await);
            rest.cluster.converge(GROUP).await;
            assert_eq!(rest.group(rest.leader).failure(), None);
        });
    }
}

/// The withdrawal of a leader's word travels apart from its call to stand for election.
#[test]
fn a_replica_that_takes_leadership_over_does_not_rest_on_its_predecessor() {
    block_on(async {
        let rest = resting(16).await;
        rest_past_the_lease(&rest.cluster).await;
        let heir = rest.group(rest.followers[0]);
        let node = rest.cluster.node(rest.leader).unwrap();
        node.heartbeats().abort();
        let leader = rest.group(rest.leader);
        leader.transfer_leader(heir.replica()).await.unwrap();
        assert!(!heir.rests(), "a leader without timers");
        propose(&rest.cluster, GROUP, 2).await;
    });
}

#[test]
fn a_follower_that_closes_wakes_its_group() {
    block_on(async {
        let rest = resting(8).await;
        let [gone, stays] = rest.followers;
        rest.cluster.node(gone).unwrap().close_group(GROUP).await;
        let leader = rest.group(rest.leader);
        rest.cluster
            .until("the others wake", |cluster| {
                let stays = cluster.group(stays, GROUP).unwrap();
                !leader.rests() && !stays.rests()
            })
            .await;
        propose(&rest.cluster, GROUP, 2).await;
        assert_eq!(term(&rest.cluster), rest.term);
    });
}

#[test]
fn a_restarted_follower_comes_back_without_an_election() {
    for (seed, down) in [(9, 50), (10, 400), (11, 5_000)] {
        block_on(async {
            let mut rest = resting(seed).await;
            let [back, _] = rest.followers;
            rest.cluster.kill(back);
            rest.cluster.run(Duration::from_millis(down)).await;
            rest.cluster.boot(back).await;
            rest.cluster.run(Duration::from_secs(3)).await;
            assert_eq!(term(&rest.cluster), rest.term, "down for {down} ms");
            rest.cluster.await_rest(GROUP).await;
            rest.cluster.converge(GROUP).await;
        });
    }
}

#[test]
fn a_learner_that_was_away_catches_up_though_nobody_writes() {
    block_on(async {
        let rest = resting(14).await;
        let leader = rest.group(rest.leader);
        let away = rest.followers[0];
        let learner = ReplicaId::new(away, 1);
        let voters: BTreeSet<_> = leader
            .voters()
            .into_iter()
            .filter(|id| *id != learner)
            .collect();
        let demoted = [learner].into();
        leader.change_voters(&voters, &demoted).await.unwrap();
        rest.cluster.await_rest(GROUP).await;
        // Its process lives and is cut off, so that nothing is asked of it but to listen.
        rest.cluster.net.isolate(away);
        rest.cluster.run(Duration::from_secs(1)).await;
        propose(&rest.cluster, GROUP, 2).await;
        rest.cluster
            .until("rest without the learner", |_| leader.rests())
            .await;
        rest.cluster.net.heal_all();
        rest.cluster.converge(GROUP).await;
        rest.cluster.await_rest(GROUP).await;
    });
}

#[test]
fn a_follower_that_alone_cannot_hear_the_leader_deposes_nobody() {
    block_on(async {
        let rest = resting(12).await;
        let [deaf, _] = rest.followers;
        rest.cluster.net.cut(rest.leader, deaf);
        rest.cluster.net.cut(deaf, rest.leader);
        rest.cluster.run(Duration::from_secs(5)).await;
        assert_eq!(term(&rest.cluster), rest.term);
        propose(&rest.cluster, GROUP, 2).await;
        rest.cluster.net.heal_all();
        rest.cluster.await_rest(GROUP).await;
        assert_eq!(term(&rest.cluster), rest.term);
    });
}

#[test]
fn a_leader_deposed_in_its_sleep_follows_when_it_is_heard_again() {
    block_on(async {
        let rest = resting(13).await;
        let [successor, _] = rest.followers;
        rest.cluster.net.isolate(rest.leader);
        rest.await_succession().await;
        rest.cluster.net.heal_all();
        let deposed = rest.group(rest.leader);
        rest.cluster
            .until("the old leader follows", |_| {
                let now = *deposed.leadership().borrow();
                now.term > rest.term && now.leader.is_some_and(|id| id.node() != rest.leader)
            })
            .await;
        rest.cluster.await_rest(GROUP).await;
        // And the successor hands over again, out of its own rest.
        let leader = rest.cluster.await_leader(GROUP).await;
        let to = ReplicaId::new(
            if leader == successor {
                rest.leader
            } else {
                successor
            },
            1,
        );
        rest.group(leader).transfer_leader(to).await.unwrap();
        rest.cluster.converge(GROUP).await;
    });
}
