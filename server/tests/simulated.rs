//! Whole nodes under a seed: who they are when disks are lost, damaged or foreign, and what they
//! do when their clock goes astray.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

#[expect(dead_code, reason = "each test file uses a part of it")]
mod machines;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use machines::Machines;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, timeout};
use trilog_model::{NodeId, Offset, ReplicaId};
use trilog_raft::controller::commands::RegisterNode;
use trilog_raft::controller::{ClusterId, NodeIdentity, Standing};
use trilog_raft::testkit::{block_on, seeds};
use trilog_raft::transport::TransportConfig;
use trilog_raft::transport::sim::SimNet;
use trilog_server::cluster::{Applicant, Membership, Receptionist};
use trilog_storage::env::Clock;

const TOPIC: &str = "orders";

/// The nodes of the cluster as a node's map has them.
fn members(all: &Machines, number: u32) -> BTreeSet<NodeId> {
    let map = all.with(number, |server| server.cluster().map()).unwrap();
    map.nodes().map(|node| node.id).collect()
}

fn cluster_of(all: &Machines, number: u32) -> Option<ClusterId> {
    all.with(number, |server| server.cluster().map().cluster())
        .flatten()
}

fn replica(all: &Machines, number: u32) -> Option<ReplicaId> {
    let partition = all.partition(number, TOPIC)?;
    Some(partition.group().replica())
}

/// Every replica that votes somewhere, as the leaders' maps have them, has one node each, and
/// three of them.
fn settled_on_three(all: &Machines) -> bool {
    let map = all.with(1, |server| server.cluster().map());
    map.is_some_and(|map| {
        map.groups()
            .all(|group| group.is_settled() && group.voter_nodes().count() == 3)
    })
}

async fn three(seed: u64) -> Machines {
    let all = Machines::start(seed, 3).await;
    all.create(TOPIC, 3).await;
    all.until("three voters everywhere", settled_on_three).await;
    all
}

#[test]
fn one_wiped_seed_founds_nothing_and_takes_its_place_only_when_told() {
    for seed in seeds(2) {
        block_on(async {
            let mut all = three(seed).await;
            let cluster = cluster_of(&all, 1);
            let places = all.produce(TOPIC, 0, 20).await;
            let before = replica(&all, 1).unwrap();
            for number in 1..=3 {
                all.kill(number);
            }
            all.wipe(1);
            all.boot(1).await;
            all.run(Duration::from_secs(20)).await;
            assert!(!all.serves(1), "seed {seed}: it founded a cluster alone");
            assert_eq!(all.identity(1).unwrap().cluster, None);

            all.boot(2).await;
            all.boot(3).await;
            // Its number is another directory's, and nobody said that one is lost.
            all.until("a refusal", |all| all.refusal(1).is_some()).await;
            all.kill(1);
            let mut config = all.config(1);
            config.cluster.replace = true;
            all.boot_with(1, config).await;
            all.until("a replacement", |all| all.serves(1)).await;
            assert_eq!(cluster_of(&all, 2), cluster);
            let more = all.produce(TOPIC, 20, 30).await;
            all.check(1, TOPIC, &[places, more].concat()).await;
            assert_ne!(replica(&all, 1).unwrap(), before);
        });
    }
}

/// How many nodes a node's map has, and how many of them have a vote in the controller.
fn members_and_voters(all: &Machines, number: u32) -> (usize, usize) {
    let map = all.with(number, |server| server.cluster().map());
    map.map_or((0, 0), |map| {
        let replicas = map.controller().replicas.iter();
        let voters = replicas.filter(|replica| replica.settled == Standing::Voter);
        (map.active_nodes().count(), voters.count())
    })
}

/// Whether a node leads the controller.
fn leads_controller(all: &Machines, number: u32) -> bool {
    let leads = all.with(number, |server| {
        let group = server.cluster().controller().group();
        group.leadership().borrow().ready
    });
    leads.unwrap_or(false)
}

/// Stopped before the others have votes, a founder would leave them without anybody who could
/// ever lead the controller, and so without a cluster.
#[test]
fn a_founder_that_is_stopped_while_its_cluster_forms_leaves_one_that_works() {
    let mut early = 0;
    for seed in seeds(4) {
        block_on(async {
            let mut all = Machines::begin(seed, 3).await;
            all.until("three members", |all| members_and_voters(all, 1).0 == 3)
                .await;
            if members_and_voters(&all, 1).1 == 1 {
                early += 1;
            }
            all.stop(1).await;
            all.until("a leader among the rest", |all| {
                leads_controller(all, 2) || leads_controller(all, 3)
            })
            .await;
            all.until("a cluster without its founder", |all| {
                all.serves(2) && all.serves(3)
            })
            .await;
        });
    }
    assert!(
        early > 0,
        "no founder was stopped while it alone had a vote"
    );
}

/// The controller's leader cannot reach a node that moved after the others, and so cannot tell it
/// who leads before it has registered, which takes the leader.
#[test]
fn nodes_that_come_back_at_other_addresses_one_after_another_register_there() {
    for seed in seeds(3) {
        block_on(async {
            let mut all = three(seed).await;
            let mut places = all.produce(TOPIC, 0, 20).await;
            for number in 1..=3 {
                all.relocate(number);
            }
            all.boot(1).await;
            all.boot(2).await;
            all.until("two nodes at their new addresses", |all| {
                all.serves(1) && all.serves(2)
            })
            .await;
            all.boot(3).await;
            all.until("the third at its new address", |all| all.serves(3))
                .await;
            // The others find it there: with it they can do without one of them.
            all.kill(1);
            places.extend(all.produce(TOPIC, 20, 40).await);
            all.check(3, TOPIC, &places).await;
        });
    }
}

#[test]
fn two_wiped_seeds_found_nothing_beside_the_third() {
    for seed in seeds(2) {
        block_on(async {
            let mut all = three(seed).await;
            let cluster = cluster_of(&all, 1);
            let places = all.produce(TOPIC, 0, 20).await;
            all.check(3, TOPIC, &places).await;
            for number in 1..=3 {
                all.kill(number);
            }
            for number in [1, 2] {
                all.wipe(number);
                all.boot(number).await;
            }
            all.run(Duration::from_secs(20)).await;
            assert!(!all.serves(1) && !all.serves(2), "seed {seed}");
            all.boot(3).await;
            all.run(Duration::from_secs(20)).await;
            // The survivor has no majority: it can take nobody in, and adopts nothing.
            for number in [1, 2] {
                assert!(!all.serves(number), "seed {seed}: node {number} serves");
                assert_eq!(all.identity(number).unwrap().cluster, None);
            }
            let survivor = all.identity(3).unwrap();
            assert_eq!(
                survivor.cluster.map(|id| *id.as_bytes()),
                cluster.map(|id| *id.as_bytes())
            );
            assert_eq!(all.stored_records(3).await, 20, "seed {seed}: deleted");
        });
    }
}

#[test]
fn a_node_of_another_cluster_is_neither_adopted_nor_changed() {
    block_on(async {
        let mut all = three(5).await;
        let seeds = std::mem::take(&mut all.seeds);
        all.add(9);
        all.boot(9).await;
        all.until("a cluster of one", |all| all.serves(9)).await;
        let foreign = cluster_of(&all, 9);
        assert_ne!(foreign, cluster_of(&all, 1));
        all.kill(9);
        all.seeds = seeds;
        all.boot(9).await;
        all.until("its own cluster again", |all| all.serves(9))
            .await;
        all.run(Duration::from_secs(5)).await;
        assert_eq!(cluster_of(&all, 9), foreign);
        assert_eq!(members(&all, 9), BTreeSet::from([NodeId(9)]));
        assert_eq!(members(&all, 1), (1..=3).map(NodeId).collect());
    });
}

/// A node with an empty directory and one other seed that is a member, but still starting.
async fn founds_beside(starting: Option<ClusterId>) -> bool {
    let net = SimNet::new(1);
    let identity = |byte| NodeIdentity::from_bytes([byte; 16]).unwrap();
    let links = |node| net.transport(TransportConfig::new(node, None));
    let (empty, other) = (links(NodeId(1)), links(NodeId(2)));
    Receptionist::new(NodeId(2), identity(2), starting).attend(&other);
    Receptionist::new(NodeId(1), identity(1), None).attend(&empty);
    let addresses = [SimNet::address(NodeId(1)), SimNet::address(NodeId(2))];
    let applicant = Applicant {
        transport: &empty,
        node: NodeId(1),
        identity: identity(1),
        seeds: &addresses,
        own_addresses: &addresses[..1],
        registration: RegisterNode::default(),
        replace: false,
        replaces: None,
        gives_up: None,
    };
    let settled = timeout(Duration::from_secs(10), applicant.settle()).await;
    matches!(settled, Ok(Ok(Membership::Founder)))
}

#[test]
fn a_member_that_is_still_starting_keeps_wiped_seeds_from_founding() {
    block_on(async {
        let cluster = ClusterId::from_bytes([7; 16]).unwrap();
        assert!(!founds_beside(Some(cluster)).await);
        assert!(founds_beside(None).await, "the test can tell");
    });
}

/// Flips a bit in the first round of every write-ahead log file that has one.
fn damage_log(all: &Machines, number: u32) {
    const ROUND: usize = 4096;
    let disk = &all.machine(number).disk;
    let wal = all.data_dir(number).join("wal");
    for (path, _) in disk.files() {
        let used = path.starts_with(&wal)
            && disk
                .read(&path)
                .is_some_and(|bytes| bytes[ROUND..].iter().take(64).any(|byte| *byte != 0));
        if used {
            disk.flip_bit(&path, ROUND as u64 + 40, 3);
        }
    }
}

#[test]
fn a_node_whose_log_is_damaged_steps_aside_and_comes_back_as_another() {
    for seed in seeds(3) {
        block_on(async {
            let mut all = three(seed).await;
            let places = all.produce(TOPIC, 0, 40).await;
            let number = u32::try_from(seed % 3).unwrap() + 1;
            let (identity, before) = (all.identity(number).unwrap(), replica(&all, number));
            all.kill(number);
            damage_log(&all, number);
            let during = all.produce(TOPIC, 40, 60).await;
            all.boot(number).await;
            let meanwhile = all.produce(TOPIC, 60, 80).await;
            all.until("the node is back", |all| all.serves(number))
                .await;
            let now = all.identity(number).unwrap();
            assert_ne!(
                now.uuid, identity.uuid,
                "seed {seed}: nothing was found damaged"
            );
            assert_eq!(now.cluster, identity.cluster);
            assert_ne!(now.controller_replica(), identity.controller_replica());
            all.until("three voters everywhere", settled_on_three).await;
            let places = [places, during, meanwhile].concat();
            for number in 1..=3 {
                all.check(number, TOPIC, &places).await;
            }
            assert_ne!(replica(&all, number), before, "seed {seed}");
            let files = all.machine(number).disk.files();
            let aside = all.data_dir(number).join("wal.damaged-0");
            assert!(files.iter().any(|(path, _)| path.starts_with(&aside)));

            // It is a full member: with it, the others can do without any one of them.
            let other = number % 3 + 1;
            all.kill(other);
            all.produce(TOPIC, 80, 90).await;
        });
    }
}

#[test]
fn a_replica_that_lost_its_views_is_given_up_alone() {
    for seed in seeds(2) {
        block_on(async {
            let mut all = three(seed).await;
            all.produce(TOPIC, 0, 30).await;
            for number in 1..=3 {
                trim(&all, number).await;
            }
            let places = all.produce(TOPIC, 30, 40).await;
            let (identity, before) = (all.identity(2).unwrap(), replica(&all, 2));
            all.kill(2);
            all.lose_views(2);
            all.boot(2).await;
            all.until("another replica", |all| {
                replica(all, 2).is_some_and(|now| Some(now) != before)
            })
            .await;
            all.until("three voters everywhere", settled_on_three).await;
            let more = all.produce(TOPIC, 40, 50).await;
            all.check(2, TOPIC, &[places, more].concat()).await;
            // The controller's log still starts at zero, so its view was folded again.
            assert_eq!(all.identity(2).unwrap(), identity);
        });
    }
}

/// Has a node's controller keep nothing for consensus of what it has applied.
async fn trim_controller(all: &Machines, number: u32) {
    let group = all.with(number, |server| {
        server.cluster().controller().group().clone()
    });
    let group = group.unwrap();
    let applied = group.high_watermark().borrow().applied.unwrap();
    group.trim(applied, Offset(0)).await.unwrap();
    all.until("a log start", |_| {
        let start = group.log().state().log_start;
        start.is_some_and(|start| start.purged.index >= applied)
    })
    .await;
}

/// Loses what a node keeps beside its logs, the controller's beginning behind its first entry.
async fn forget(all: &mut Machines, number: u32) {
    all.kill(number);
    all.lose_views(number);
    all.boot(number).await;
}

#[test]
fn a_node_whose_controller_lost_its_state_gives_up_that_replica_and_keeps_the_rest() {
    for seed in seeds(3) {
        block_on(async {
            let mut all = three(seed).await;
            let places = all.produce(TOPIC, 0, 20).await;
            for number in 1..=3 {
                trim_controller(&all, number).await;
            }
            // The founder, too.
            let number = u32::try_from(seed % 3).unwrap() + 1;
            let (identity, before) = (all.identity(number).unwrap(), replica(&all, number));
            forget(&mut all, number).await;
            all.until("the node is back", |all| all.serves(number))
                .await;
            let now = all.identity(number).unwrap();
            assert_eq!((now.uuid, now.cluster), (identity.uuid, identity.cluster));
            assert!(now.controller_replica() > identity.controller_replica());
            all.until("three voters everywhere", settled_on_three).await;
            assert_eq!(replica(&all, number), before, "seed {seed}: given up");

            // It votes again: with it the others can do without any one of them.
            let other = number % 3 + 1;
            all.kill(other);
            let more = all.produce(TOPIC, 20, 30).await;
            all.check(number, TOPIC, &[places, more].concat()).await;
            // And it comes back as what it is now.
            all.kill(number);
            all.boot(other).await;
            all.boot(number).await;
            all.until("a restart", |all| all.serves(number)).await;
            assert_eq!(all.identity(number).unwrap(), now, "seed {seed}");
        });
    }
}

#[test]
fn a_node_alone_whose_controller_lost_its_state_says_what_to_do() {
    block_on(async {
        let mut all = Machines::start(2, 1).await;
        trim_controller(&all, 1).await;
        let identity = all.identity(1).unwrap();
        forget(&mut all, 1).await;
        all.until("a refusal", |all| all.refusal(1).is_some()).await;
        let refusal = all.refusal(1).unwrap();
        assert!(refusal.contains("restore kv from a backup"), "{refusal}");
        assert_eq!(all.identity(1).unwrap(), identity, "nothing was changed");
    });
}

#[test]
fn a_replica_whose_consensus_ended_is_opened_anew() {
    for seed in seeds(2) {
        block_on(async {
            let mut all = three(seed).await;
            let mut places = all.produce(TOPIC, 0, 20).await;
            let (victim, partition) = all.leader(TOPIC).unwrap();
            partition.group().end_consensus().await;
            places.extend(all.produce(TOPIC, 20, 40).await);
            all.until("it is open again", |all| {
                let now = all.partition(victim, TOPIC);
                now.is_some_and(|now| now.group().failure().is_none())
            })
            .await;
            // It counts: with it, the others can do without one of them.
            all.kill(victim % 3 + 1);
            places.extend(all.produce(TOPIC, 40, 50).await);
            all.check(victim, TOPIC, &places).await;
        });
    }
}

/// Two of three lost what their logs alone cannot give back. One of them may be given up; without
/// the other there would be no majority to fetch from, so what it holds stays where it is.
#[test]
fn a_controller_whose_consensus_ended_is_opened_anew() {
    for seed in seeds(2) {
        block_on(async {
            let all = three(seed).await;
            all.until("three voters", |all| {
                (1..=3).all(|number| members_and_voters(all, number) == (3, 3))
            })
            .await;
            // One after the other, whoever leads among them: each is needed for the next.
            for number in 1..=3 {
                let cluster = all.with(number, |server| server.cluster().clone()).unwrap();
                let version = cluster.map().version();
                let ended = cluster.controller().group();
                ended.end_consensus().await;
                let again = |_: &Machines| {
                    let now = cluster.controller().group();
                    let led = now.leadership().borrow().leader.is_some();
                    assert!(cluster.map().version() >= version, "the map went back");
                    !Arc::ptr_eq(&now, &ended) && led
                };
                all.until("the replica is open again", again).await;
                // What is decided from now on arrives here, too.
                let topic = format!("after-{number}");
                all.create(&topic, 3).await;
                let known = |all: &Machines| {
                    (1..=3).all(|number| {
                        let map = all.with(number, |server| server.cluster().map());
                        map.is_some_and(|map| map.topic_named(&topic).is_some())
                    })
                };
                all.until("everybody knows the topic", known).await;
            }
        });
    }
}

#[test]
fn a_replica_that_lost_its_views_is_kept_where_no_majority_is_intact_without_it() {
    for seed in seeds(2) {
        block_on(async {
            let mut all = three(seed).await;
            all.produce(TOPIC, 0, 30).await;
            for number in 1..=3 {
                trim(&all, number).await;
            }
            all.produce(TOPIC, 30, 40).await;
            for number in 1..=3 {
                all.kill(number);
            }
            all.lose_views(2);
            all.lose_views(3);
            for number in 1..=3 {
                all.boot(number).await;
            }
            all.until("every node is back", |all| (1..=3).all(|n| all.serves(n)))
                .await;
            all.run(Duration::from_secs(20)).await;
            let kept = [all.stored_records(2).await, all.stored_records(3).await];
            assert!(
                kept.iter().any(|records| *records >= 40),
                "seed {seed}: {kept:?}"
            );
        });
    }
}

/// Has a node's replica keep nothing for consensus of what it has applied.
async fn trim(all: &Machines, number: u32) {
    let partition = all.partition(number, TOPIC).unwrap();
    let group = partition.group().clone();
    let applied = group.high_watermark().borrow().applied.unwrap();
    let data_start = group.log().state().data_start;
    // Granted once every voter is known to hold all of that.
    let end = Instant::now() + Duration::from_mins(1);
    while let Err(error) = group.trim(applied, data_start).await {
        assert!(Instant::now() < end, "node {number}: {error}");
        all.run(Duration::from_millis(50)).await;
    }
    all.until("a log start", |_| {
        let start = group.log().state().log_start;
        start.is_some_and(|start| start.purged.index >= applied)
    })
    .await;
}

#[test]
fn a_node_alone_with_a_damaged_log_says_so_and_founds_nothing() {
    block_on(async {
        let mut all = Machines::start(1, 1).await;
        let cluster = all.identity(1).unwrap().cluster;
        all.kill(1);
        damage_log(&all, 1);
        all.boot(1).await;
        all.until("a refusal", |all| all.refusal(1).is_some()).await;
        let refusal = all.refusal(1).unwrap();
        assert!(refusal.contains("was set aside"), "{refusal}");
        assert_eq!(all.identity(1).unwrap().cluster, cluster);
    });
}

#[test]
fn a_leader_whose_clock_jumps_gives_up_and_moves_no_partitions_time() {
    for seed in seeds(2) {
        for jump in [3_600_000_000_000, -3_600_000_000_000] {
            block_on(jumped(seed, jump));
        }
    }
}

fn is_astray(all: &Machines, number: u32) -> bool {
    let state = all.with(number, |server| *server.timekeeper().state().borrow());
    state.is_some_and(|state| state.astray)
}

/// Whether a node leads anything.
fn leads(all: &Machines, number: u32) -> bool {
    let held = all.with(number, |server| {
        let controller = server.cluster().controller().group().leadership();
        let partitions = server.cluster().partitions().all();
        let led = partitions.iter().any(|(_, held)| held.leader().1);
        led || controller.borrow().ready
    });
    held.unwrap_or(true)
}

async fn jumped(seed: u64, jump: i64) {
    let all = three(seed).await;
    all.produce(TOPIC, 0, 10).await;
    let (astray, _) = all.leader(TOPIC).unwrap();
    let right = astray % 3 + 1;
    let clock = Arc::clone(&all.machine(astray).clock);
    clock.set_offset_nanos(jump);
    let places = all.produce(TOPIC, 10, 40).await;
    all.until("another leader", |all| {
        is_astray(all, astray) && !leads(all, astray) && all.leader(TOPIC).is_some()
    })
    .await;
    let others = (1..=3).filter(|number| *number != astray);
    for number in others {
        assert!(!is_astray(&all, number), "seed {seed}: node {number}");
    }
    let more = all.produce(TOPIC, 40, 60).await;
    let now = all.machine(right).clock.now().nanos();
    for (record, place) in places.iter().chain(&more) {
        let apart = now.abs_diff(place.append_time.nanos());
        assert!(
            apart < 600_000_000_000,
            "seed {seed}: record {record} is {apart} ns from the right time"
        );
    }

    all.run(Duration::from_secs(5)).await;
    assert!(!leads(&all, astray), "seed {seed}: it leads again");
    clock.set_offset_nanos(0);
    all.until("a clock that is right again", |all| !is_astray(all, astray))
        .await;
    let places = [places, more].concat();
    all.check(astray, TOPIC, &places).await;
}

/// Reads a random stretch of every replica there is, as a follower serves it, and holds it against
/// all that anybody has read before. Never must two readers find different records at an offset.
async fn read_everywhere(
    all: &Machines,
    rng: &mut SmallRng,
    seen: &mut BTreeMap<Offset, Bytes>,
    seed: u64,
) -> usize {
    let mut followed = 0;
    for number in 1..=3 {
        let Some(partition) = all.partition(number, TOPIC) else {
            continue;
        };
        let end = partition.watch().borrow().offset;
        assert!(
            partition.log_end() >= end,
            "seed {seed}: it serves what it lacks"
        );
        assert!(partition.stable_offset() <= end, "seed {seed}");
        let from = Offset(rng.random_range(0..=end.get()));
        // It may be copied from elsewhere, or be closed, meanwhile.
        let Ok(fetched) = partition.read(from, 1 << 20).await else {
            continue;
        };
        followed += usize::from(!partition.leader().1 && !fetched.frames.is_empty());
        for frame in fetched.frames {
            let place = frame.header.base_offset;
            let first = seen.entry(place).or_insert_with(|| frame.records.clone());
            // The leader epoch and the base offset of a batch are made for its reader.
            assert_eq!(
                first.get(21..),
                frame.records.get(21..),
                "seed {seed}: at {place}"
            );
        }
    }
    followed
}

/// What the leader knows of the others is true: who is said to hold records has them.
fn holders_hold(all: &Machines, seed: u64) {
    let Some((_, led)) = all.leader(TOPIC) else {
        return;
    };
    let end = led.watch().borrow().offset;
    for number in 1..=3 {
        let node = NodeId(number);
        let Some(partition) = all.partition(number, TOPIC) else {
            continue;
        };
        if led.is_held_by(node, end) && partition.term() == led.term() {
            let held = partition.log_end();
            assert!(
                held >= end,
                "seed {seed}: node {number} holds {held}, not {end}"
            );
        }
    }
}

#[test]
fn what_a_follower_serves_is_committed_whoever_crashes_and_leads() {
    for seed in seeds(3) {
        block_on(async {
            let mut all = three(seed).await;
            let mut rng = SmallRng::seed_from_u64(seed);
            let (mut seen, mut places, mut followed) = (BTreeMap::new(), Vec::new(), 0);
            for round in 0..12 {
                let from = round * 8;
                for number in from..from + 8 {
                    places.extend(all.produce(TOPIC, number, number + 1).await);
                    followed += read_everywhere(&all, &mut rng, &mut seen, seed).await;
                    holders_hold(&all, seed);
                }
                // Every other time it is the leader that goes.
                let victim = match all.leader(TOPIC) {
                    Some((number, _)) if round % 2 == 0 => number,
                    Some(_) | None => rng.random_range(1..=3),
                };
                all.kill(victim);
                for _ in 0..rng.random_range(1..20) {
                    all.run(Duration::from_millis(50)).await;
                    followed += read_everywhere(&all, &mut rng, &mut seen, seed).await;
                }
                all.boot(victim).await;
                all.until("a leader again", |all| all.leader(TOPIC).is_some())
                    .await;
            }
            assert!(
                followed > 20,
                "seed {seed}: followers served {followed} times"
            );
            for number in 1..=3 {
                all.check(number, TOPIC, &places).await;
                let partition = all.partition(number, TOPIC).unwrap();
                for (place, records) in &seen {
                    let found = partition.read(*place, 1).await.unwrap().frames;
                    let found = found[0].records.get(21..);
                    assert_eq!(found, records.get(21..), "seed {seed}: lost at {place}");
                }
            }
        });
    }
}
