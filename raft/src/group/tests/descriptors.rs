//! Descriptors that come in: each may be large, and is in memory until it is installed, so a node
//! takes in few at the same time, whichever groups they are for.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use trilog_model::{EntryId, GroupId, NodeId, Offset, ReplicaId, Term, Timestamp};
use trilog_storage::log::{LogStart, Vote};

use crate::codec::{SnapshotMessage, encode_snapshot};
use crate::group::SNAPSHOT;
use crate::group::descriptor::{Base, Descriptor, ViewState};
use crate::group::memberships::Memberships;
use crate::testkit::{Cluster, ClusterConfig, block_on};
use crate::transport::{Lane, Route, Target, Transport};
use crate::types::{StoredMembership, log_id, raft_vote};

const CHUNK: usize = 1 << 20;
/// More than a stream has room for, so that it passes only if it is taken in.
const ENDLESS: usize = 6 * CHUNK;
const PATIENCE: Duration = Duration::from_secs(5);
/// As many as are taken in at the same time.
const AT_ONCE: u64 = 2;

/// A cluster of so many groups, one node of it, and another that sends it descriptors.
async fn founded(groups: u64) -> (Cluster, NodeId, NodeId) {
    let mut cluster = Cluster::start(ClusterConfig::three(1)).await;
    for group in 0..groups {
        cluster.create_group(GroupId(40 + group)).await;
    }
    for group in 0..groups {
        cluster.await_leader(GroupId(40 + group)).await;
        cluster.converge(GroupId(40 + group)).await;
    }
    (cluster, NodeId(1), NodeId(2))
}

fn target(group: u64, from: NodeId, to: NodeId) -> Target {
    Target {
        node: to,
        lane: Lane::Bulk,
        kind: SNAPSHOT,
        route: Route {
            group: GroupId(40 + group),
            from: ReplicaId::new(from, 1),
            to: ReplicaId::new(to, 1),
        },
    }
}

/// Sends a message, the end of it only if it is `whole`, and counts it once all of that is taken.
async fn send(
    transport: Transport,
    target: Target,
    (mut message, whole): (Bytes, bool),
    taken: Arc<AtomicU64>,
) {
    let (mut sender, mut receiver) = transport.open_stream(target, PATIENCE).await.unwrap();
    while !message.is_empty() {
        let chunk = message.split_to(message.len().min(CHUNK));
        sender.send(vec![chunk]).await.unwrap();
    }
    taken.fetch_add(1, Ordering::Relaxed);
    let rest = Some(sender).filter(|_| !whole);
    // Until it is answered or refused.
    drop(receiver.recv().await);
    drop(rest);
}

#[test]
fn two_descriptors_are_gathered_at_the_same_time_until_they_fall_silent() {
    block_on(async {
        let groups = 2 * AT_ONCE;
        let (cluster, to, from) = founded(groups).await;
        let transport = cluster.transport(from).unwrap();
        let taken: Arc<AtomicU64> = Arc::default();
        for group in 0..groups {
            let endless = (Bytes::from(vec![0; ENDLESS]), false);
            let target = target(group, from, to);
            tokio::spawn(send(transport.clone(), target, endless, Arc::clone(&taken)));
        }
        let count = || taken.load(Ordering::Relaxed);
        cluster.until("two of them", |_| count() >= AT_ONCE).await;
        cluster.run(Duration::from_secs(5)).await;
        assert_eq!(count(), AT_ONCE, "the others wait for their turn");
        cluster.until("all of them", |_| count() == groups).await;
    });
}

/// A new leader's descriptor of a log that goes on far behind its receiver's, with a view's state
/// of so many bytes.
fn message(cluster: &Cluster, target: Target, bytes: usize) -> Bytes {
    let (from, group) = (target.route.from, target.route.group);
    let log = cluster.group(target.node, group).unwrap().log();
    let term = log.state().vote.unwrap().term.get() + 1_000;
    let vote = Vote {
        term: Term(term),
        node: from,
        committed: true,
    };
    let purged = EntryId::new(term, 1_000);
    let start = LogStart {
        purged,
        next_offset: Offset(2_000),
        next_time: Timestamp(9_000),
        data_start: Offset(0),
        meta: Bytes::new(),
    };
    let membership = StoredMembership::default();
    let descriptor = Descriptor {
        base: Some(Base::new(start, membership.clone())),
        view: Some(ViewState {
            at: purged,
            memberships: Memberships::default(),
            state: vec![0; bytes].into(),
        }),
    };
    let pieces = encode_snapshot(&SnapshotMessage {
        vote: raft_vote(&vote),
        last: log_id(purged),
        membership,
        descriptor: descriptor.encode().unwrap(),
    });
    pieces.concat().into()
}

/// While its disk takes nothing a node installs nothing.
#[test]
fn a_large_descriptor_keeps_its_turn_until_it_is_installed_and_a_small_one_does_not() {
    for (bytes, passes) in [(2 * CHUNK, false), (100, true)] {
        block_on(async {
            let (cluster, to, from) = founded(AT_ONCE + 1).await;
            let transport = cluster.transport(from).unwrap();
            cluster.disk(to).hold(Path::new("/data"));
            let taken: Arc<AtomicU64> = Arc::default();
            let count = || taken.load(Ordering::Relaxed);
            for group in 0..AT_ONCE {
                let target = target(group, from, to);
                let whole = (message(&cluster, target, bytes), true);
                tokio::spawn(send(transport.clone(), target, whole, Arc::clone(&taken)));
            }
            cluster.until("whole ones", |_| count() == AT_ONCE).await;
            cluster.run(Duration::from_secs(1)).await;
            let endless = (Bytes::from(vec![0; ENDLESS]), false);
            let target = target(AT_ONCE, from, to);
            tokio::spawn(send(transport.clone(), target, endless, Arc::clone(&taken)));
            cluster.run(Duration::from_secs(5)).await;
            assert_eq!(count() > AT_ONCE, passes, "beside {bytes} bytes");
        });
    }
}
