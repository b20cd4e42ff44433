//! What a group does when its node runs out of something: votes still work, memory stays within
//! its budget, and once there is enough again everything goes on, with nothing lost.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use trilog_model::{GroupId, LogIndex, NodeId, ReplicaId};

use super::cluster::Load;
use crate::config::RaftConfig;
use crate::group::ProposeError;
use crate::testkit::client::batch;
use crate::testkit::{Cluster, ClusterConfig, block_on, seeds};
use crate::types::Proposal;

const GROUP: GroupId = GroupId(40);
/// Entries in one message to a follower, in bytes: what memory may exceed its budget by.
const APPEND_BYTES: usize = 32 << 10;

fn config(seed: u64, nodes: u32) -> ClusterConfig {
    let three = ClusterConfig::three(seed);
    ClusterConfig {
        nodes,
        raft: RaftConfig {
            append_bytes: APPEND_BYTES,
            ..three.raft.clone()
        },
        ..three
    }
}

async fn founded(seed: u64) -> Cluster {
    let mut cluster = Cluster::start(config(seed, 3)).await;
    cluster.create_group(GROUP).await;
    cluster.await_leader(GROUP).await;
    cluster
}

/// Panics if a node holds more outside segments than its budget and one message.
fn check_memory(cluster: &Cluster) {
    for node in cluster.up() {
        let stats = cluster.store_stats(node);
        let most = stats.pinned_limit + APPEND_BYTES as u64;
        assert!(
            stats.pinned_bytes <= most,
            "node {node} pins {} of {most} bytes",
            stats.pinned_bytes
        );
    }
}

/// Lets time pass, looking at the memory as it does.
async fn run(cluster: &Cluster, time: Duration) {
    let step = Duration::from_millis(10);
    for _ in 0..time.as_millis() / step.as_millis() {
        cluster.run(step).await;
        check_memory(cluster);
    }
}

/// As [`run`], until something holds.
async fn until(cluster: &Cluster, what: &str, holds: impl Fn(&Cluster) -> bool) {
    cluster
        .until(what, |cluster| {
            check_memory(cluster);
            holds(cluster)
        })
        .await;
}

fn fill_disk(cluster: &Cluster, node: NodeId) {
    let disk = cluster.disk(node);
    let used = disk.files().iter().map(|(_, len)| len).sum();
    disk.configure(|config| config.quota_bytes = Some(used));
}

fn is_full(cluster: &Cluster, node: NodeId) -> bool {
    let up = cluster.node(node);
    up.is_some_and(|up| up.store().pressure().borrow().disk_full)
}

/// Whether a node holds as much outside segments as records may take.
fn is_exhausted(cluster: &Cluster, node: NodeId) -> bool {
    let stats = cluster.store_stats(node);
    stats.pinned_bytes + 2 * APPEND_BYTES as u64 >= stats.pinned_limit / 8 * 7
}

fn records(len: usize) -> Proposal {
    Proposal {
        records: batch(&vec![7; len]),
        record_count: 1,
        command: Bytes::copy_from_slice(&0_u64.to_le_bytes()),
    }
}

async fn progress(cluster: &Cluster, what: &str) {
    let acked = cluster.checks.acked();
    until(cluster, what, |cluster| cluster.checks.acked() > acked + 20).await;
}

/// Has the leader of now replaced by another one, in a newer term.
async fn elect_another(cluster: &Cluster) {
    let (node, before) = cluster.leader(GROUP).unwrap();
    cluster.net.isolate(node);
    until(cluster, "another leader", |cluster| {
        let now = cluster.leader(GROUP);
        now.is_some_and(|(_, now)| now.term > before.term)
    })
    .await;
    cluster.net.heal_all();
}

#[test]
fn full_disks_refuse_records_elect_leaders_and_recover() {
    for seed in seeds(3) {
        block_on(async {
            let mut cluster = founded(seed).await;
            let load = Load::start(&cluster, GROUP, 4);
            progress(&cluster, "a start").await;
            for node in cluster.nodes() {
                fill_disk(&cluster, node);
            }
            until(&cluster, "full disks", |cluster| {
                cluster.nodes().iter().all(|node| is_full(cluster, *node))
            })
            .await;
            refuses_records_and_takes_a_trim(&cluster, seed).await;
            // However long it lasts.
            for _ in 0..4 {
                run(&cluster, Duration::from_secs(5)).await;
                elect_another(&cluster).await;
            }
            refuses_records_and_takes_a_trim(&cluster, seed).await;
            // Nobody has room, so leadership stays where it is now.
            let elected = term(&cluster);
            run(&cluster, Duration::from_secs(4)).await;
            assert_eq!(term(&cluster), elected, "seed {seed}");

            cluster.heal().await;
            progress(&cluster, "progress with room again").await;
            load.stop();
            cluster.converge(GROUP).await;
        });
    }
}

/// What would fill a full disk is refused; what frees it gets through.
async fn refuses_records_and_takes_a_trim(cluster: &Cluster, seed: u64) {
    cluster.await_leader(GROUP).await;
    for _ in 0..100 {
        let (leader, now) = cluster.leader(GROUP).unwrap();
        let group = cluster.group(leader, GROUP).cloned().unwrap();
        let refused = group.propose(vec![records(1_000)], now.term).await;
        let trim = Proposal::command(u64::MAX.to_le_bytes().to_vec());
        let trimmed = group.propose(vec![trim], now.term).await;
        // It may have begun to hand over before the others were full.
        if !matches!(trimmed, Err(ProposeError::NotLeader { .. })) {
            assert_eq!(refused, Err(ProposeError::DiskFull), "seed {seed}");
            assert!(trimmed.is_ok(), "seed {seed}: {trimmed:?}");
            return;
        }
        run(cluster, Duration::from_millis(100)).await;
        cluster.await_leader(GROUP).await;
    }
    panic!("seed {seed}: nobody stays leader");
}

/// The term of the present leader, whoever it is.
fn term(cluster: &Cluster) -> Option<u64> {
    let leader = cluster.leader(GROUP);
    leader.map(|(_, now)| now.term.get())
}

#[test]
fn a_leader_whose_disk_is_full_hands_over_once_and_the_group_goes_on() {
    for seed in seeds(2) {
        block_on(async {
            let mut cluster = founded(seed).await;
            let load = Load::start(&cluster, GROUP, 4);
            progress(&cluster, "a start").await;
            let full = cluster.await_leader(GROUP).await;
            fill_disk(&cluster, full);
            until(&cluster, "a leader with room", |cluster| {
                let leader = cluster.leader(GROUP);
                is_full(cluster, full) && leader.is_some_and(|(node, _)| node != full)
            })
            .await;
            let handed = term(&cluster);
            for _ in 0..4 {
                progress(&cluster, "progress under a leader with room").await;
                run(&cluster, Duration::from_secs(1)).await;
            }
            assert_eq!(term(&cluster), handed, "seed {seed}: it moved again");
            // Asked for it, the full one would refuse, and the group takes records meanwhile.
            let (leader, now) = cluster.leader(GROUP).unwrap();
            let group = cluster.group(leader, GROUP).cloned().unwrap();
            let asked = group.transfer_leader(ReplicaId::new(full, 1)).await;
            assert!(asked.is_err(), "seed {seed}");
            let accepted = group.propose(vec![records(100)], now.term).await;
            assert!(accepted.is_ok(), "seed {seed}: {accepted:?}");

            // With room again it takes leadership like any other.
            load.stop();
            cluster.heal().await;
            run(&cluster, Duration::from_secs(20)).await;
            cluster
                .group(leader, GROUP)
                .unwrap()
                .transfer_leader(ReplicaId::new(full, 1))
                .await
                .unwrap();
            assert_eq!(cluster.await_leader(GROUP).await, full, "seed {seed}");
            cluster.converge(GROUP).await;
        });
    }
}

#[test]
fn a_follower_whose_segments_hang_holds_back_its_leader_and_no_one_else() {
    for seed in seeds(3) {
        block_on(async {
            let mut cluster = founded(seed).await;
            let load = Load::start(&cluster, GROUP, 4);
            let leader = cluster.await_leader(GROUP).await;
            let stuck = *cluster
                .nodes()
                .iter()
                .find(|node| **node != leader)
                .unwrap();
            cluster.disk(stuck).hold(Path::new("/data/p"));
            until(&cluster, "a follower without memory", |cluster| {
                is_exhausted(cluster, stuck)
            })
            .await;
            // The other follower acknowledges; the stuck one still knows its leader.
            progress(&cluster, "progress past the stuck follower").await;
            let term = cluster.leader(GROUP).unwrap().1.term;
            run(&cluster, Duration::from_secs(3)).await;
            assert_eq!(cluster.leader(GROUP).unwrap().1.term, term, "seed {seed}");
            // It votes: without it there is no majority now.
            cluster.kill(leader);
            load.refresh(&cluster);
            until(&cluster, "an election with the stuck voter", |cluster| {
                cluster.replicas(GROUP).iter().any(|replica| {
                    let now = *replica.leadership().borrow();
                    now.term > term && now.leader == Some(replica.replica())
                })
            })
            .await;
            run(&cluster, Duration::from_secs(1)).await;

            cluster.disk(stuck).let_go();
            cluster.heal().await;
            load.refresh(&cluster);
            progress(&cluster, "progress with segments again").await;
            load.stop();
            cluster.converge(GROUP).await;
        });
    }
}

#[test]
fn a_leader_whose_segments_hang_refuses_what_it_cannot_hold() {
    for seed in seeds(3) {
        block_on(async {
            let mut cluster = founded(seed).await;
            let load = Load::start(&cluster, GROUP, 4);
            let leader = cluster.await_leader(GROUP).await;
            cluster.disk(leader).hold(Path::new("/data/p"));
            until(&cluster, "a leader without memory", |cluster| {
                is_exhausted(cluster, leader)
            })
            .await;
            run(&cluster, Duration::from_secs(5)).await;
            elect_another(&cluster).await;
            progress(&cluster, "progress under another leader").await;

            cluster.disk(leader).let_go();
            cluster.heal().await;
            load.stop();
            cluster.converge(GROUP).await;
        });
    }
}

#[test]
fn a_stuck_follower_below_the_purge_point_keeps_no_log_and_comes_back_by_a_descriptor() {
    for seed in seeds(3) {
        block_on(async {
            let mut cluster = founded(seed).await;
            let load = Load::start(&cluster, GROUP, 4);
            let leader = cluster.await_leader(GROUP).await;
            let stuck = *cluster
                .nodes()
                .iter()
                .find(|node| **node != leader)
                .unwrap();
            cluster.disk(stuck).hold(Path::new("/data/p"));
            until(&cluster, "a follower without memory", |cluster| {
                is_exhausted(cluster, stuck)
            })
            .await;
            let group = cluster.group(leader, GROUP).cloned().unwrap();
            let applied = || group.high_watermark().borrow().applied.unwrap();
            until(&cluster, "progress past the stuck follower", |cluster| {
                let behind = cluster.group(stuck, GROUP).unwrap().log().state();
                Some(applied().get()) > behind.last.map(|id| id.index.get() + 20)
            })
            .await;
            let purged = applied();
            for replica in cluster.replicas(GROUP) {
                let data_start = replica.log().state().data_start;
                // The stuck one cannot go as far.
                let _ = replica.trim_unasked(purged, data_start).await;
            }
            until(&cluster, "a purge past the stuck stream", |_| {
                let start = group.log().state().log_start;
                start.is_some_and(|start| start.purged.index >= purged)
            })
            .await;

            cluster.disk(stuck).let_go();
            cluster.heal().await;
            progress(&cluster, "progress with segments again").await;
            load.stop();
            cluster.converge(GROUP).await;
            let start = cluster.group(stuck, GROUP).unwrap().log().state().log_start;
            assert!(start.is_some_and(|start| start.purged.index >= purged));
        });
    }
}

/// Proposes one record after another until so many bytes are applied.
async fn write(cluster: &Cluster, group: GroupId, bytes: usize) {
    const RECORD: usize = 8_000;
    let (leader, now) = cluster.leader(group).unwrap();
    let replica = cluster.group(leader, group).cloned().unwrap();
    for _ in 0..bytes.div_ceil(RECORD) {
        replica
            .propose(vec![records(RECORD)], now.term)
            .await
            .unwrap();
        check_memory(cluster);
    }
}

fn last(cluster: &Cluster, node: NodeId, group: GroupId) -> Option<LogIndex> {
    let replica = cluster.group(node, group)?;
    replica.log().state().last.map(|last| last.index)
}

#[test]
fn a_follower_far_behind_catches_up_apart_from_those_that_keep_up() {
    const RATE: u64 = 200_000;
    const MISSED: usize = 1_600_000;
    for seed in seeds(2) {
        block_on(async {
            let mut config = config(seed, 3);
            config.raft.catch_up_bytes_per_second = RATE;
            let mut cluster = Cluster::start(config).await;
            let other = GroupId(41);
            cluster.create_group(GROUP).await;
            cluster.create_group(other).await;
            let late = NodeId(3);
            for group in [GROUP, other] {
                lead_from(&cluster, group, NodeId(1)).await;
            }
            cluster.kill(late);
            write(&cluster, GROUP, MISSED).await;
            cluster.boot(late).await;
            let start = tokio::time::Instant::now();
            let end = last(&cluster, NodeId(1), GROUP);
            for _ in 0..20 {
                write(&cluster, other, 1).await;
                let wanted = last(&cluster, NodeId(1), other);
                let sent = tokio::time::Instant::now();
                until(&cluster, "the other group's entry", |cluster| {
                    last(cluster, late, other) >= wanted
                })
                .await;
                let waited = sent.elapsed();
                assert!(waited < Duration::from_secs(2), "seed {seed}: {waited:?}");
            }
            assert!(last(&cluster, late, GROUP) < end, "seed {seed}: too fast");
            until(&cluster, "the late one's catching up", |cluster| {
                last(cluster, late, GROUP) >= end
            })
            .await;
            // The tail comes from memory, and at once.
            let least = (MISSED as u64 - 600_000) / RATE;
            assert!(start.elapsed() >= Duration::from_secs(least), "seed {seed}");
            for group in [GROUP, other] {
                cluster.converge(group).await;
            }
        });
    }
}

/// Proposes more than a group may have waiting; what becomes of it does not matter.
fn flood(cluster: &Cluster, group: GroupId) {
    // Without its majority it may have lost its leader by now, and takes nothing in.
    let Some((leader, now)) = cluster.leader(group) else {
        return;
    };
    let replica = cluster.group(leader, group).cloned().unwrap();
    for _ in 0..200 {
        let replica = replica.clone();
        tokio::spawn(async move {
            let _ = replica.propose(vec![records(8_000)], now.term).await;
        });
    }
}

#[test]
fn groups_without_a_majority_leave_memory_to_those_that_have_one() {
    for seed in seeds(3) {
        block_on(async {
            // A group that rests asks its majority before it takes anything in.
            let mut config = config(seed, 5);
            config.raft.quiesce_after = None;
            let mut cluster = Cluster::start(config).await;
            let shared = NodeId(1);
            let dead: Vec<GroupId> = (50..62).map(GroupId).collect();
            for group in &dead {
                let nodes = [shared, NodeId(2), NodeId(3)];
                cluster.place_group(*group, &nodes).await;
                lead_from(&cluster, *group, shared).await;
            }
            let alive = GroupId(70);
            let nodes = [shared, NodeId(4), NodeId(5)];
            cluster.place_group(alive, &nodes).await;
            lead_from(&cluster, alive, shared).await;
            cluster.net.cut(NodeId(2), shared);
            cluster.net.cut(NodeId(3), shared);
            for group in &dead {
                flood(&cluster, *group);
            }
            run(&cluster, Duration::from_secs(1)).await;
            assert!(is_exhausted(&cluster, shared), "seed {seed}");

            let replica = cluster.group(shared, alive).cloned().unwrap();
            let term = replica.leadership().borrow().term;
            for round in 0..50 {
                let done = replica.propose(vec![records(2_000)], term).await;
                assert!(done.is_ok(), "seed {seed}, round {round}: {done:?}");
                check_memory(&cluster);
            }
            cluster.heal().await;
            for group in dead.into_iter().chain([alive]) {
                cluster.converge(group).await;
            }
        });
    }
}

async fn lead_from(cluster: &Cluster, group: GroupId, node: NodeId) {
    let leader = cluster.await_leader(group).await;
    if leader != node {
        let replica = cluster.group(leader, group).cloned().unwrap();
        // Whether it was this call that moved it does not matter.
        let _ = replica.transfer_leader(ReplicaId::new(node, 1)).await;
    }
    let led = |cluster: &Cluster| cluster.leader(group).map(|(node, _)| node) == Some(node);
    cluster.until("a transfer", led).await;
    assert!(
        cluster
            .group(node, group)
            .unwrap()
            .high_watermark()
            .borrow()
            .applied
            > Some(LogIndex(0))
    );
}
