//! Elections are held when a leader is gone, and only then: not because its messages are late, or
//! because time has passed in which nobody here ran.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::time::Instant;
use trilog_model::{GroupId, NodeId, Term};

use super::super::network::{APPEND, BEAT};
use crate::testkit::{Cluster, ClusterConfig, block_on, seeds};
use crate::transport::{PeerCall, PeerHandler, PeerStream, Refusal};

const GROUP: GroupId = GroupId(70);
/// The longest that an election takes whose candidates do not get in one another's way, and then
/// some: once more if they do.
const ELECTED: Duration = Duration::from_millis(1_700);

/// Takes nothing that a leader says.
struct Deaf;

impl PeerHandler for Deaf {
    fn on_call(&self, _: PeerCall) -> BoxFuture<'static, Result<Vec<Bytes>, Refusal>> {
        async { Err(Refusal::Busy) }.boxed()
    }

    fn on_stream(&self, stream: PeerStream) {
        stream.refuse(&Refusal::Busy);
    }
}

/// What a leader sends to its followers.
const LEADERS: Range<u16> = APPEND.0..BEAT.0 + 1;

async fn start(seed: u64) -> (Cluster, NodeId, Term) {
    let mut config = ClusterConfig::three(seed);
    config.raft.quiesce_after = None;
    let mut cluster = Cluster::start(config).await;
    cluster.create_group(GROUP).await;
    let leader = cluster.await_leader(GROUP).await;
    // Everybody hears everybody by now.
    cluster.run(Duration::from_secs(1)).await;
    let term = newest(&cluster);
    (cluster, leader, term)
}

/// The newest term that any replica knows.
fn newest(cluster: &Cluster) -> Term {
    let replicas = cluster.replicas(GROUP).into_iter();
    let terms = replicas.map(|replica| replica.leadership().borrow().term);
    terms.max().unwrap_or_default()
}

#[test]
fn a_leader_whose_messages_are_late_leads_on_while_its_node_is_heard_within_bounds() {
    for seed in seeds(10) {
        block_on(async {
            let (cluster, leader, term) = start(seed).await;
            for node in cluster.nodes() {
                let transport = cluster.transport(node).unwrap();
                transport.register(LEADERS, Arc::new(Deaf));
            }
            cluster.run(Duration::from_millis(1_800)).await;
            assert_eq!(newest(&cluster), term, "seed {seed}: an election");
            assert_eq!(cluster.leader(GROUP).map(|(node, _)| node), Some(leader));
            // A replica may be dead in a node that lives.
            let elected = |cluster: &Cluster| newest(cluster) > term;
            cluster.until("an election after all", elected).await;
        });
    }
}

#[test]
fn nobody_is_voted_out_for_a_time_in_which_no_process_ran() {
    for seed in seeds(10) {
        block_on(async {
            let (cluster, leader, term) = start(seed).await;
            for pause in [300, 700, 1_000, 3_000, 20_000] {
                tokio::time::advance(Duration::from_millis(pause)).await;
                cluster.run(Duration::from_millis(900)).await;
                assert_eq!(newest(&cluster), term, "seed {seed}: {pause} ms");
            }
            assert_eq!(cluster.leader(GROUP).map(|(node, _)| node), Some(leader));
        });
    }
}

#[test]
fn a_leader_that_is_gone_is_replaced_as_soon_as_ever() {
    for seed in seeds(20) {
        for comes_back in [false, true] {
            block_on(async {
                let (mut cluster, leader, term) = start(seed).await;
                let gone = Instant::now();
                cluster.kill(leader);
                if comes_back {
                    // Its node is heard again before anybody has missed it, as another process.
                    cluster.boot(leader).await;
                    cluster.open_all().await;
                }
                let elected = |cluster: &Cluster| {
                    let led = cluster.leader(GROUP);
                    led.is_some_and(|(_, now)| now.term > term)
                };
                cluster.until("an election", elected).await;
                let took = gone.elapsed();
                assert!(took <= ELECTED, "seed {seed}: it took {took:?}");
            });
        }
    }
}
