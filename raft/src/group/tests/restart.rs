//! What a replica may claim after a power loss, and what installing a descriptor may leave behind.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use trilog_model::{EntryId, GroupId, LogIndex, NodeId, Offset, ReplicaId, Term, Timestamp};
use trilog_storage::env::Entropy;
use trilog_storage::frame::{Frame, FrameKind};
use trilog_storage::io::sim::{SimConfig, SimDisk};
use trilog_storage::kv::{Kv, WriteBatch};
use trilog_storage::log::{Appending, GroupLog, LogStart};
use trilog_storage::store::Store;

use super::super::checkpoint::Checkpoints;
use super::super::descriptor::Base;
use super::super::open::{self, OpenError};
use super::super::state_machine::{Starts, StateMachine};
use super::super::{ProposeError, Status};
use crate::testkit::{Checks, Cluster, ClusterConfig, SimClock, Tally, Witness, block_on};
use crate::testkit::{checks, small_store};
use crate::types::{Draft, Outcome, Proposal, StoredMembership};
use crate::view::View;
use crate::{Group, KV_FAMILY};

const GROUP: GroupId = GroupId(40);

async fn founded(seed: u64) -> (Cluster, NodeId) {
    let mut cluster = Cluster::start(ClusterConfig::three(seed)).await;
    cluster.create_group(GROUP).await;
    let leader = cluster.await_leader(GROUP).await;
    (cluster, leader)
}

/// Proposes commands `from..to`, one drain each, and reports them as acknowledged.
async fn propose(cluster: &Cluster, from: u64, to: u64) {
    for command in from..to {
        let leader = cluster.await_leader(GROUP).await;
        let group = cluster.group(leader, GROUP).cloned().unwrap();
        let term = group.leadership().borrow().term;
        let proposal = Proposal::command(command.to_le_bytes().to_vec());
        let applied = group.propose(vec![proposal], term).await.unwrap();
        let acked = checks::Outcome::Acked {
            index: applied[0].id.index,
            offset: applied[0].base_offset,
        };
        cluster.checks.outcome(command, acked);
    }
}

fn freeze(cluster: &Cluster, node: NodeId) {
    cluster.disk(node).configure(|disk| {
        disk.latency_min = Duration::from_hours(1);
        disk.latency_max = Duration::from_hours(1);
    });
}

fn thaw(cluster: &Cluster, node: NodeId) {
    let config = SimConfig::default();
    cluster.disk(node).configure(|disk| *disk = config);
}

/// openraft's default, `enable_leader_restore`, fails this: the restarted leader resumes its term
/// with a log that lacks what the followers committed, and acknowledges other entries there.
#[test]
fn a_leader_restarted_before_any_election_loses_nothing_the_followers_committed() {
    block_on(async {
        let (mut cluster, leader) = founded(11).await;
        propose(&cluster, 1, 5).await;
        freeze(&cluster, leader);
        propose(&cluster, 5, 8).await;
        assert_eq!(cluster.leader(GROUP).map(|(node, _)| node), Some(leader));
        cluster.power_loss(leader);
        thaw(&cluster, leader);
        cluster.boot(leader).await;
        propose(&cluster, 8, 12).await;
        cluster.converge(GROUP).await;
        assert_eq!(cluster.checks.acked(), 11);
    });
}

/// A leader counts itself once its own write is durable, as it counts others: what it has sent to
/// one follower and not yet synced is on one disk of three.
#[test]
fn what_one_disk_of_three_has_is_not_acknowledged_and_may_be_lost() {
    block_on(async {
        let (mut cluster, leader) = founded(15).await;
        propose(&cluster, 1, 5).await;
        let nodes = cluster.nodes();
        let follower = nodes.iter().copied().find(|node| *node != leader).unwrap();
        for node in [leader, follower] {
            freeze(&cluster, node);
        }
        let group = cluster.group(leader, GROUP).cloned().unwrap();
        let term = group.leadership().borrow().term;
        let proposal = Proposal::command(5_u64.to_le_bytes().to_vec());
        let proposing = group.propose(vec![proposal], term);
        let proposed = tokio::time::timeout(Duration::from_millis(400), proposing).await;
        assert!(proposed.is_err(), "one disk of three has it: {proposed:?}");
        cluster.checks.outcome(5, checks::Outcome::Unknown);
        for node in &nodes {
            cluster.power_loss(*node);
            thaw(&cluster, *node);
        }
        for node in nodes {
            cluster.boot(node).await;
        }
        propose(&cluster, 6, 9).await;
        cluster.converge(GROUP).await;
        assert_eq!(cluster.checks.acked(), 7);
    });
}

#[test]
fn a_view_that_outlives_the_tail_of_its_log_neither_cuts_the_log_nor_folds_twice() {
    block_on(async {
        let (mut cluster, leader) = founded(12).await;
        propose(&cluster, 1, 9).await;
        let follower = cluster
            .nodes()
            .into_iter()
            .find(|node| *node != leader)
            .unwrap();
        cluster.converge(GROUP).await;
        freeze(&cluster, follower);
        propose(&cluster, 9, 20).await;
        let group = cluster.group(follower, GROUP).cloned().unwrap();
        let watermark = cluster.group(leader, GROUP).unwrap().high_watermark();
        let end = watermark.borrow().applied;
        cluster
            .until("the follower applies what its disk does not have", |_| {
                group.high_watermark().borrow().applied == end
            })
            .await;
        let replica = group.replica_handle().clone();
        let machine = replica
            .raft
            .with_state_machine(|machine: &mut StateMachine| {
                Box::pin(async move { machine.checkpoint() })
            });
        machine.await.unwrap().unwrap();
        cluster.node(follower).unwrap().kv().flush().await.unwrap();
        let durable = group.log().state().durable;
        assert!(durable < end, "{durable:?} {end:?}");

        cluster.power_loss(follower);
        thaw(&cluster, follower);
        cluster.boot(follower).await;
        let group = cluster.group(follower, GROUP).cloned().unwrap();
        assert_eq!(group.log().state().log_start, None);
        assert!(group.high_watermark().borrow().applied < end);
        group.with_view(|view| assert_eq!(view.tally.entries, 19));
        propose(&cluster, 20, 22).await;
        cluster.converge(GROUP).await;
    });
}

/// Entries 0 to `last` of term 2 in a log of its own.
async fn log_of(last: u64) -> (Store, GroupLog) {
    let disk = SimDisk::with_config(5, SimConfig::instant());
    let clock = Arc::new(SimClock::default());
    let config = small_store(PathBuf::from("/data"));
    let opened = Store::open(config, disk.backend(), clock, Entropy::from_seed(5)).await;
    let (store, _) = opened.unwrap();
    let replica = ReplicaId::new(NodeId(1), 1);
    let log = store.create_group(GROUP, replica).await.unwrap();
    let blank = |index| {
        let id = EntryId::new(2, index);
        Frame::bare(FrameKind::Blank, GROUP, id, Bytes::new())
    };
    let frames = (0..=last).map(blank).collect();
    log.append(frames, Appending::Assign, Box::new(|_| {}))
        .unwrap();
    (store, log)
}

async fn open_with(log: &GroupLog, view_at: Option<EntryId>) -> Result<StateMachine, OpenError> {
    let kv = Kv::memory(&[KV_FAMILY]);
    if let Some(at) = view_at {
        let mut batch = WriteBatch::new();
        Checkpoints::new(GROUP).put_state(&mut batch, &Tally::default().snapshot());
        kv.write(GROUP, at, batch).unwrap();
    }
    let status = Status::new(GROUP, log.replica(), None, Arc::default());
    let view = Arc::new(Mutex::new(Tally::default()));
    open::open(log.clone(), kv, status, view, Starts::default()).await
}

#[test]
fn applied_is_what_the_log_can_vouch_for_and_not_merely_its_tail() {
    block_on(async {
        let (_store, log) = log_of(9).await;
        log.commit(LogIndex(4));
        let cases = [
            // The view stands at an entry the log holds.
            (EntryId::new(2, 7), Some(EntryId::new(2, 7))),
            // The log holds another entry there, which therefore never committed.
            (EntryId::new(3, 7), Some(EntryId::new(2, 4))),
            // The log ends before it; nobody knows whether its tail committed.
            (EntryId::new(3, 12), Some(EntryId::new(2, 4))),
            // The view stands before what the log knows as committed.
            (EntryId::new(2, 3), Some(EntryId::new(2, 3))),
        ];
        for (view_at, expected) in cases {
            let machine = open_with(&log, Some(view_at)).await.unwrap();
            assert_eq!(machine.applied.id, expected, "view at {view_at}");
            assert_eq!(machine.folded, Some(view_at));
        }
        let fresh = open_with(&log, None).await.unwrap();
        assert_eq!(fresh.applied.id, None);
    });
}

#[test]
fn a_view_older_than_the_log_start_is_refused() {
    block_on(async {
        let (_store, log) = log_of(9).await;
        let start = LogStart {
            purged: EntryId::new(2, 5),
            next_offset: Offset(0),
            next_time: Timestamp(0),
            data_start: Offset(0),
            meta: Bytes::new(),
        };
        let start = Base::new(start, StoredMembership::default()).start;
        log.set_log_start(start).await.unwrap();
        for view_at in [None, Some(EntryId::new(2, 4))] {
            let opened = open_with(&log, view_at).await;
            assert!(
                matches!(opened, Err(OpenError::ViewLost { .. })),
                "{view_at:?}"
            );
        }
        let machine = open_with(&log, Some(EntryId::new(2, 5))).await.unwrap();
        assert_eq!(machine.applied.id, Some(EntryId::new(2, 5)));
    });
}

/// A follower that missed everything up to a trim is sent the descriptor; its power fails at the
/// `nth` disk operation from then on. Returns how many operations the installation took.
async fn install_with_power_loss(nth: Option<u64>) -> u64 {
    let (mut cluster, leader) = founded(13).await;
    let follower = cluster
        .nodes()
        .into_iter()
        .find(|node| *node != leader)
        .unwrap();
    propose(&cluster, 1, 6).await;
    cluster.kill(follower);
    propose(&cluster, 6, 40).await;
    for node in cluster.up() {
        let group = cluster.group(node, GROUP).cloned().unwrap();
        group.trim_unasked(LogIndex(30), Offset(0)).await.unwrap();
        cluster
            .until("the trim", |_| group.log().state().log_start.is_some())
            .await;
    }
    cluster.boot(follower).await;
    let before = cluster.disk(follower).operations();
    let installed = |cluster: &Cluster| {
        let group = cluster.group(follower, GROUP);
        group.is_some_and(|group| group.log().state().log_start.is_some())
    };
    if let Some(nth) = nth {
        cluster
            .until("the disk operation", |cluster| {
                cluster.disk(follower).operations() >= before + nth || installed(cluster)
            })
            .await;
        cluster.power_loss(follower);
        cluster.boot(follower).await;
    }
    cluster.until("the descriptor", installed).await;
    let operations = cluster.disk(follower).operations() - before;
    propose(&cluster, 40, 43).await;
    cluster.converge(GROUP).await;
    let group = cluster.group(follower, GROUP).unwrap();
    assert_eq!(
        group
            .log()
            .state()
            .log_start
            .map(|start| start.purged.index),
        Some(LogIndex(30))
    );
    operations
}

#[test]
fn a_power_loss_at_any_operation_of_installing_a_descriptor_is_harmless() {
    let operations = block_on(install_with_power_loss(None));
    for nth in 1..=operations.min(12) {
        block_on(install_with_power_loss(Some(nth)));
    }
}

#[test]
fn proposals_of_another_term_or_another_replica_append_nothing() {
    block_on(async {
        let (cluster, leader) = founded(14).await;
        let group: Group<Witness> = cluster.group(leader, GROUP).cloned().unwrap();
        let term = group.leadership().borrow().term;
        let proposal = || vec![Proposal::command(&b"x"[..])];
        let last = group.log().state().last;
        let fenced = group.propose(proposal(), Term(term.get() + 1)).await;
        assert_eq!(fenced, Err(ProposeError::Fenced));
        assert_eq!(group.log().state().last, last);

        let follower = cluster
            .nodes()
            .into_iter()
            .find(|node| *node != leader)
            .unwrap();
        let other = cluster.group(follower, GROUP).cloned().unwrap();
        let refused = other.propose(proposal(), term).await;
        let leader = Some(group.replica());
        assert_eq!(refused, Err(ProposeError::NotLeader { leader }));

        let oversized = vec![Proposal::command(vec![0; 7 << 20])];
        let refused = group.propose(oversized, term).await;
        assert!(matches!(refused, Err(ProposeError::Invalid { .. })));
    });
}

#[test]
fn a_draft_that_meets_a_newer_term_becomes_an_empty_entry_and_is_answered_fenced() {
    block_on(async {
        let (cluster, leader) = founded(15).await;
        let group = cluster.group(leader, GROUP).cloned().unwrap();
        let stale = Draft {
            proposal: Proposal::command(&b"stale"[..]),
            expected_term: Term(0),
            claim: None,
        };
        let raft = &group.replica_handle().raft;
        let written = raft.client_write(stale).await.unwrap();
        assert!(matches!(written.data, Outcome::Fenced));
        let index = LogIndex(written.log_id.index());
        let frames = group.log().read(index, index.next(), 1).await.unwrap();
        assert_eq!(frames[0].header.kind, FrameKind::Blank);
        assert!(frames[0].command.is_empty());
        cluster.converge(GROUP).await;
    });
}

#[test]
fn a_witness_sees_what_the_checks_are_for() {
    let checks = Checks::default();
    checks.outcome(1, checks::Outcome::Refused);
    let judge = std::panic::AssertUnwindSafe(|| checks.judge(GROUP, &[(5, 1)]));
    let judged = std::panic::catch_unwind(judge);
    assert!(
        judged.is_err(),
        "a refused command that is there must be found"
    );
}
