//! Replicas that leave and come back, with and without their disk: nothing meant for a former one
//! is taken by its successor, and no vote counts twice.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use openraft::raft::{AppendEntriesRequest, VoteRequest};
use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use tokio::time::timeout;
use trilog_model::{EntryId, GroupId, NodeId, ReplicaId, Term};
use trilog_storage::log::Vote;

use super::super::network::{BEAT, VOTE};
use super::cluster::Load;
use crate::codec;
use crate::group::Group;
use crate::testkit::nemesis::{self, Fault};
use crate::testkit::{Cluster, ClusterConfig, Witness, block_on, seeds};
use crate::transport::{Kind, Lane, PeerError, Refusal, Route, Target};
use crate::types::{log_id, raft_vote};

const GROUP: GroupId = GroupId(40);
const THREE: NodeId = NodeId(3);
const FOUR: NodeId = NodeId(4);
/// What may happen while replicas move; every node stays up, so that each move can end.
const FAULTS: [Fault; 8] = [
    Fault::IsolateLeader,
    Fault::IsolateAny,
    Fault::CutOneWay,
    Fault::ResetLinks,
    Fault::SlowDisk,
    Fault::SlowLinks,
    Fault::TransferLeader,
    Fault::HealLinks,
];

/// Four nodes, and the group on the first three.
async fn placed(seed: u64) -> Cluster {
    let config = ClusterConfig {
        nodes: 4,
        ..ClusterConfig::three(seed)
    };
    let mut cluster = Cluster::start(config).await;
    let first_three = [NodeId(1), NodeId(2), THREE];
    cluster.place_group(GROUP, &first_three).await;
    cluster.await_leader(GROUP).await;
    cluster
}

/// Sends `to` what a replica once sent, or would have, as a network may at any later time.
async fn replay(
    cluster: &Cluster,
    from: ReplicaId,
    to: ReplicaId,
    kind: Kind,
    payload: Bytes,
) -> Result<Bytes, PeerError> {
    let target = Target {
        node: to.node(),
        lane: Lane::Control,
        kind,
        route: Route {
            group: GROUP,
            from,
            to,
        },
    };
    let links = cluster.transport(from.node()).unwrap();
    let mut tries = 0;
    loop {
        let call = links.call(target, vec![payload.clone()], Duration::from_secs(1));
        match call.await {
            // A link that found nobody there pauses before it looks again.
            Err(PeerError::Unreachable { .. }) if tries < 20 => tries += 1,
            answer => return answer,
        }
        cluster.run(Duration::from_millis(50)).await;
    }
}

/// A candidacy of `candidate` in `term`, with a log that no one can object to.
fn candidacy(candidate: ReplicaId, term: Term) -> Bytes {
    let vote = Vote {
        term,
        node: candidate,
        committed: false,
    };
    codec::encode_vote(&VoteRequest {
        vote: raft_vote(&vote),
        last_log_id: Some(log_id(EntryId::new(term.get(), 1_000_000))),
        leadership_transfer: false,
    })
}

/// A heartbeat of a leader of `term` that claims entries nobody has.
fn heartbeat(leader: ReplicaId, term: Term) -> Bytes {
    let vote = Vote {
        term,
        node: leader,
        committed: true,
    };
    let encoded = codec::encode_append(AppendEntriesRequest {
        vote: raft_vote(&vote),
        prev_log_id: None,
        leader_commit: None,
        entries: Vec::new(),
    });
    encoded.unwrap().into_iter().next().unwrap()
}

#[test]
fn a_wiped_voter_does_not_vote_again_in_a_term_in_which_its_predecessor_did() {
    block_on(async {
        let mut cluster = placed(3).await;
        let (leader, now) = cluster.leader(GROUP).unwrap();
        let rival = cluster.nodes().into_iter().find(|node| *node != leader);
        let rival = ReplicaId::new(rival.unwrap(), 1);
        let former = ReplicaId::new(THREE, 1);
        if leader == THREE {
            // Then it voted for itself, which is as good.
            assert_eq!(now.leader, Some(former));
        }
        cluster.wipe(THREE);
        cluster.boot(THREE).await;
        for other in [NodeId(1), NodeId(2)] {
            cluster.net.cut(other, THREE);
        }
        let successor = ReplicaId::new(THREE, 2);
        cluster.open_replica(GROUP, successor).await;
        let through = ReplicaId::new(FOUR, 1);
        let before = cluster.node(THREE).unwrap().stats().misdirected;
        for payload in [candidacy(rival, now.term), candidacy(rival, Term(90))] {
            let answer = replay(&cluster, through, former, VOTE, payload).await;
            assert_eq!(answer, Err(PeerError::Refused(Refusal::WrongReplica)));
        }
        let late = heartbeat(rival, now.term);
        let answer = replay(&cluster, through, former, BEAT, late).await;
        assert_eq!(answer, Err(PeerError::Refused(Refusal::WrongReplica)));
        assert_eq!(cluster.node(THREE).unwrap().stats().misdirected, before + 3);
        let held = cluster.group(THREE, GROUP).unwrap().log().state();
        assert_eq!(held.vote, None, "the successor has taken nothing");

        // What all this is for: without the name on it, the same message gets a second vote.
        let payload = candidacy(rival, now.term);
        let answer = replay(&cluster, through, successor, VOTE, payload).await;
        let reply = codec::decode_vote_reply(answer.unwrap()).unwrap();
        assert!(reply.vote_granted, "an empty replica grants any candidacy");
    });
}

#[test]
fn a_sender_that_pretends_to_be_on_another_node_is_refused() {
    block_on(async {
        let cluster = placed(4).await;
        let (from, to) = (ReplicaId::new(NodeId(2), 1), ReplicaId::new(THREE, 1));
        let links = cluster.transport(FOUR).unwrap();
        let target = Target {
            node: THREE,
            lane: Lane::Control,
            kind: VOTE,
            route: Route {
                group: GROUP,
                from,
                to,
            },
        };
        let payload = vec![candidacy(from, Term(90))];
        let answer = links.call(target, payload, Duration::from_secs(1)).await;
        assert_eq!(answer, Err(PeerError::Refused(Refusal::WrongReplica)));
        let vote = cluster.group(THREE, GROUP).unwrap().log().state().vote;
        assert!(vote.is_none_or(|vote| vote.term < Term(90)));
    });
}

/// Puts `joins` in the place of `leaves`, by whoever leads, whatever happens meanwhile.
async fn swap(cluster: &mut Cluster, leaves: ReplicaId, joins: ReplicaId, rng: &mut SmallRng) {
    cluster.open_replica(GROUP, joins).await;
    for round in 0..500 {
        if let Some((leader, _)) = cluster.leader(GROUP) {
            let group = cluster.group(leader, GROUP).cloned().unwrap();
            let members = group.members();
            if is_done(&members.voters, leaves, joins) && !members.changing {
                return;
            }
            let stepping = tokio::spawn(step(group, leaves, joins));
            cluster.run(Duration::from_millis(50)).await;
            // One that waits for a majority is planned anew.
            let _ = timeout(Duration::from_secs(1), stepping).await;
        }
        if round % 4 == 0 && round < 40 {
            let fault = FAULTS.choose(rng).copied().unwrap_or(Fault::HealLinks);
            nemesis::strike(cluster, GROUP, fault, rng).await;
        } else if round >= 40 {
            cluster.net.heal_all();
        }
        cluster.run(Duration::from_millis(50)).await;
    }
    panic!("replica {joins} never took the place of {leaves}");
}

fn is_done(voters: &BTreeSet<ReplicaId>, leaves: ReplicaId, joins: ReplicaId) -> bool {
    voters.contains(&joins) && !voters.contains(&leaves) && voters.len() == 3
}

/// One step towards the change. Fails as it may: what it came to shows in the membership.
async fn step(group: Group<Witness>, leaves: ReplicaId, joins: ReplicaId) {
    let members = group.members();
    if members.voters.contains(&joins) || members.learners.contains(&joins) {
        let mut voters = members.voters;
        voters.remove(&leaves);
        voters.insert(joins);
        let _ = group.change_voters(&voters, &BTreeSet::new()).await;
    } else {
        let _ = group.add_learner(joins).await;
    }
}

/// Moves a replica from node 3 to node 4 and back, over and over, each time as another one,
/// while links are cut, slow and reset, so that messages of former ones arrive late.
fn wander(seed: u64) -> u64 {
    block_on(async {
        let mut cluster = placed(seed).await;
        let load = Load::start(&cluster, GROUP, 3);
        let mut rng = cluster.entropy.fork();
        let mut here = ReplicaId::new(THREE, 1);
        let mut misdirected = 0;
        for incarnation in 2..6 {
            let to = if here.node() == THREE { FOUR } else { THREE };
            let next = ReplicaId::new(to, incarnation);
            swap(&mut cluster, here, next, &mut rng).await;
            load.refresh(&cluster);
            if rng.random() {
                // As it lets go it still wants to lead.
                let former = cluster.group(here.node(), GROUP).cloned().unwrap();
                let _ = former.campaign().await;
                cluster.run(Duration::from_millis(30)).await;
            }
            cluster.delete_replica(GROUP, here.node()).await;
            load.refresh(&cluster);
            for from in [NodeId(1), NodeId(2)] {
                let from = ReplicaId::new(from, 1);
                let late = candidacy(from, Term(1));
                let answer = replay(&cluster, from, here, VOTE, late).await;
                assert!(answer.is_err(), "seed {seed}: a former replica answered");
            }
            here = next;
            let nodes = cluster.nodes().into_iter();
            misdirected = nodes
                .filter_map(|node| cluster.node(node))
                .map(|node| node.stats().misdirected)
                .sum();
        }
        cluster.heal().await;
        let acked = cluster.checks.acked();
        cluster
            .until("progress after the moves", |cluster| {
                cluster.checks.acked() > acked + 10
            })
            .await;
        load.stop();
        cluster.converge(GROUP).await;
        misdirected
    })
}

#[test]
fn a_replica_moved_to_and_fro_is_another_one_each_time() {
    let misdirected: u64 = seeds(6).map(wander).sum();
    assert!(misdirected > 0, "no message was late in any seed");
}
