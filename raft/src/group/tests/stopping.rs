//! A node that stops in order leaves groups that can go on without it.

use std::collections::BTreeSet;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use futures::poll;
use rand::Rng;
use tokio::time::Instant;
use trilog_model::{GroupId, NodeId, ReplicaId};

use crate::group::{Group, OpenError};
use crate::node::DeleteError;
use crate::testkit::{Cluster, ClusterConfig, Witness, block_on, seeds};

const GROUP: GroupId = GroupId(40);

fn replica(cluster: &Cluster, node: NodeId) -> Group<Witness> {
    let group = cluster.group(node, GROUP).cloned();
    group.unwrap_or_else(|| panic!("node {node} has no replica"))
}

fn everybody(cluster: &Cluster) -> BTreeSet<ReplicaId> {
    let nodes = cluster.nodes().into_iter();
    nodes.map(|node| ReplicaId::new(node, 1)).collect()
}

/// Has everybody follow who does not vote.
async fn add_learners(cluster: &Cluster, group: &Group<Witness>) {
    let voters = group.voters();
    for learner in everybody(cluster).difference(&voters) {
        group.add_learner(*learner).await.unwrap();
    }
}

async fn widen(group: Group<Witness>, voters: BTreeSet<ReplicaId>) {
    // Who asks here is stopped or killed meanwhile, or does not wait for it.
    drop(group.change_voters(&voters, &BTreeSet::new()).await);
}

/// Does what a node's agent does with changes that nobody finishes, until there are none.
/// Returns whether there were any.
async fn tend(cluster: &Cluster, seed: u64) -> bool {
    let mut found = false;
    for _ in 0..100 {
        let leader = cluster.await_leader(GROUP).await;
        let group = replica(cluster, leader);
        let members = group.members();
        if !members.changing {
            return found;
        }
        if members.half_done {
            found = true;
            // Refused by whoever lost the lead meanwhile; then the next leader is asked.
            drop(group.finish_change().await);
        }
        cluster.run(Duration::from_millis(100)).await;
    }
    panic!("seed {seed}: a change of voters is never finished");
}

/// The founder alone is the old set of voters: stopped between the two steps of the change, it
/// would leave the others unable to elect anybody.
#[test]
fn a_founder_that_stops_while_others_become_voters_leaves_them_a_majority() {
    for seed in seeds(30) {
        block_on(async {
            let mut cluster = Cluster::start(ClusterConfig::three(seed)).await;
            let founder = NodeId(1);
            cluster.create_group_with(GROUP, &[founder]).await;
            assert_eq!(cluster.await_leader(GROUP).await, founder);
            let group = replica(&cluster, founder);
            add_learners(&cluster, &group).await;
            let change = tokio::spawn(widen(group, everybody(&cluster)));
            let pause = cluster.entropy.fork().random_range(0..30_000);
            tokio::time::sleep(Duration::from_micros(pause)).await;
            cluster.stop(founder).await;
            // Refused or done: either way it is over.
            drop(change.await);
            let changed = cluster
                .replicas(GROUP)
                .iter()
                .any(|replica| replica.voters().len() > 1);
            if changed {
                assert_ne!(cluster.await_leader(GROUP).await, founder);
            }
        });
    }
}

/// The change is left between its two steps by a leader that dies, and by a caller that gives up.
#[test]
fn a_change_of_voters_that_was_left_half_done_is_finished() {
    let mut found = 0;
    for seed in seeds(30) {
        block_on(async {
            let mut cluster = Cluster::start(ClusterConfig::three(seed)).await;
            let founder = NodeId(1);
            cluster.create_group_with(GROUP, &[founder]).await;
            assert_eq!(cluster.await_leader(GROUP).await, founder);
            let group = replica(&cluster, founder);
            add_learners(&cluster, &group).await;
            let change = tokio::spawn(widen(group, everybody(&cluster)));
            let pause = cluster.entropy.fork().random_range(0..30_000);
            tokio::time::sleep(Duration::from_micros(pause)).await;
            cluster.kill(founder);
            drop(change.await);
            cluster.run(Duration::from_millis(50)).await;
            cluster.boot(founder).await;
            found += usize::from(tend(&cluster, seed).await);
            cluster.converge(GROUP).await;
        });
    }
    assert!(found > 0, "no seed was left between the steps");
}

#[test]
fn a_change_of_voters_whose_caller_gave_up_is_finished() {
    for seed in seeds(5) {
        block_on(async {
            let mut cluster = Cluster::start(ClusterConfig::three(seed)).await;
            let founders = [NodeId(1), NodeId(2)];
            cluster.create_group_with(GROUP, &founders).await;
            let leader = cluster.await_leader(GROUP).await;
            let group = replica(&cluster, leader);
            add_learners(&cluster, &group).await;
            let other = founders.into_iter().find(|node| *node != leader);
            // The lease lasts long enough to begin the change, but no majority gets to see it.
            cluster.net.isolate(other.unwrap());
            let change = tokio::spawn(widen(group.clone(), everybody(&cluster)));
            let begun = |_: &Cluster| group.members().changing;
            cluster.until("the joint step", begun).await;
            change.abort();
            drop(change.await);
            cluster.net.heal_all();
            assert!(tend(&cluster, seed).await, "seed {seed}: it was finished");
            assert_eq!(replica(&cluster, leader).voters(), everybody(&cluster));
            cluster.converge(GROUP).await;
        });
    }
}

/// Both followers hold the whole log, so that nothing but life tells them apart.
#[test]
fn leadership_is_not_handed_to_a_node_that_is_not_heard() {
    for seed in seeds(6) {
        block_on(async {
            let mut cluster = Cluster::start(ClusterConfig::three(seed)).await;
            cluster.create_group(GROUP).await;
            let leader = cluster.await_leader(GROUP).await;
            cluster.converge(GROUP).await;
            let others = cluster.nodes().into_iter().filter(|node| *node != leader);
            cluster.kill(others.max().unwrap());
            cluster.run(Duration::from_millis(600)).await;
            assert_eq!(cluster.await_leader(GROUP).await, leader);
            let resigned = Instant::now();
            replica(&cluster, leader).replica_handle().resign().await;
            let over = |cluster: &Cluster| {
                let now = cluster.leader(GROUP);
                now.is_some_and(|(node, _)| node != leader)
            };
            cluster.until("a succession", over).await;
            let took = resigned.elapsed();
            assert!(took < Duration::from_millis(300), "seed {seed}: {took:?}");
        });
    }
}

#[test]
fn a_group_that_opens_while_its_node_stops_is_not_left_running() {
    block_on(async {
        let cluster = Cluster::start(ClusterConfig::three(1)).await;
        let one = NodeId(1);
        let node = cluster.node(one).unwrap().clone();
        cluster.disk(one).hold(Path::new("/data"));
        let view = Witness::new(one, cluster.checks.clone());
        let opener = node.clone();
        let opening = tokio::spawn(async move {
            let replica = ReplicaId::new(one, 1);
            opener.open_group(GROUP, replica, view).await.map(drop)
        });
        cluster.run(Duration::from_millis(100)).await;
        let stopper = node.clone();
        let stopping = tokio::spawn(async move { stopper.shutdown().await });
        cluster.run(Duration::from_millis(100)).await;
        cluster.disk(one).let_go();
        stopping.await.unwrap();
        assert_eq!(node.groups(), []);
        let opened = opening.await.unwrap();
        assert!(matches!(opened, Err(OpenError::Stopping)), "{opened:?}");
    });
}

/// Its log is in use until it is closed: neither may another replica open on it, nor may it go.
#[test]
fn a_group_that_is_being_closed_is_neither_opened_nor_deleted() {
    block_on(async {
        let mut cluster = Cluster::start(ClusterConfig::three(1)).await;
        cluster.create_group(GROUP).await;
        cluster.await_leader(GROUP).await;
        let one = NodeId(1);
        let node = cluster.node(one).unwrap().clone();
        let mut closing = pin!(node.close_group(GROUP));
        assert!(poll!(closing.as_mut()).is_pending());
        assert_eq!(node.groups(), [], "it is not reached any more");

        let deleted = node.delete_group(GROUP).await;
        assert!(
            matches!(deleted, Err(DeleteError::Open(GROUP))),
            "{deleted:?}"
        );
        let view = Witness::new(one, cluster.checks.clone());
        let opened = node.open_group(GROUP, ReplicaId::new(one, 1), view).await;
        let opened = opened.map(drop);
        assert!(
            matches!(opened, Err(OpenError::IsOpen(GROUP))),
            "{opened:?}"
        );
        assert!(closing.await);
        node.delete_group(GROUP).await.unwrap();
    });
}
