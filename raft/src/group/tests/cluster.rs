//! Three nodes, one group, and everything that can happen to them.

use std::time::Duration;

use rand::Rng;
use rand::seq::IndexedRandom;
use tokio::task::JoinHandle;
use trilog_model::GroupId;

use crate::testkit::client::{self, Directory, Numbers};
use crate::testkit::nemesis::{self, Fault};
use crate::testkit::{Cluster, ClusterConfig, block_on, seeds};

const GROUP: GroupId = GroupId(40);

/// Clients of one group.
pub(super) struct Load {
    group: GroupId,
    directory: Directory,
    clients: Vec<JoinHandle<()>>,
}

impl Load {
    pub(super) fn start(cluster: &Cluster, group: GroupId, clients: usize) -> Self {
        let directory = Directory::default();
        let numbers = Numbers::default();
        let spawn = |_| {
            client::spawn(
                directory.clone(),
                numbers.clone(),
                cluster.checks.clone(),
                cluster.entropy.fork(),
            )
        };
        let clients = (0..clients).map(spawn).collect();
        let load = Self {
            group,
            directory,
            clients,
        };
        load.refresh(cluster);
        load
    }

    /// Shows the clients the replicas that run now.
    pub(super) fn refresh(&self, cluster: &Cluster) {
        self.directory.set(cluster.replicas(self.group));
    }

    /// The clients know of no replica until the next refresh.
    fn pause(&self) {
        self.directory.set([]);
    }

    pub(super) fn stop(self) {
        for client in self.clients {
            client.abort();
        }
    }
}

async fn founded(config: ClusterConfig) -> Cluster {
    let mut cluster = Cluster::start(config).await;
    cluster.create_group(GROUP).await;
    cluster.await_leader(GROUP).await;
    cluster
}

/// What a simulation came to.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Findings {
    pub(super) trace: u64,
    /// Replicas that damage took, and others took the place of.
    pub(super) replaced: usize,
    /// Segments that were set aside as damaged, on the disks that there are at the end.
    pub(super) set_aside: usize,
}

/// Runs `steps` faults drawn from `faults` under load, heals, and checks everything. Returns the
/// trace.
fn simulate(seed: u64, steps: usize, faults: &[Fault]) -> u64 {
    simulate_on(ClusterConfig::three(seed), steps, faults).trace
}

/// As [`simulate`], on a cluster of a certain make.
pub(super) fn simulate_on(config: ClusterConfig, steps: usize, faults: &[Fault]) -> Findings {
    let seed = config.seed;
    block_on(async {
        let may_rest = config.raft.quiesce_after.is_some();
        let mut cluster = founded(config).await;
        let load = Load::start(&cluster, GROUP, 3);
        let mut rng = cluster.entropy.fork();
        for _ in 0..steps {
            let fault = faults.choose(&mut rng).copied().unwrap_or(Fault::BootAll);
            if fault.lasts() {
                load.refresh(&cluster);
            }
            let done = nemesis::strike(&mut cluster, GROUP, fault, &mut rng).await;
            if std::env::var_os("TRILOG_TRACE").is_some() {
                eprintln!("seed {seed}: {done}");
            }
            let idle = may_rest && rng.random_bool(0.5);
            let millis = if idle {
                load.pause();
                rng.random_range(200..2_000)
            } else {
                load.refresh(&cluster);
                rng.random_range(20..500)
            };
            cluster.run(Duration::from_millis(millis)).await;
        }
        cluster.heal().await;
        load.refresh(&cluster);
        cluster.await_leader(GROUP).await;
        let acked = cluster.checks.acked();
        cluster
            .until("progress after healing", |cluster| {
                cluster.checks.acked() > acked + 10
            })
            .await;
        load.stop();
        cluster.await_whole(GROUP).await;
        cluster.converge(GROUP).await;
        if may_rest {
            cluster.await_rest(GROUP).await;
            cluster.run(Duration::from_secs(2)).await;
            assert!(cluster.rests(GROUP), "seed {seed}: woken for nothing");
        }
        Findings {
            trace: cluster.trace(),
            replaced: cluster.replaced(),
            set_aside: cluster.set_aside(),
        }
    })
}

#[test]
fn three_nodes_elect_a_leader_and_apply_what_is_proposed() {
    block_on(async {
        let cluster = founded(ClusterConfig::three(1)).await;
        let load = Load::start(&cluster, GROUP, 4);
        cluster.run(Duration::from_secs(1)).await;
        load.stop();
        cluster.converge(GROUP).await;
        assert!(cluster.checks.acked() > 100, "{}", cluster.checks.acked());
    });
}

#[test]
fn nothing_acknowledged_is_lost_whatever_happens_to_three_nodes() {
    for seed in seeds(10) {
        simulate(seed, 10, &Fault::ALL);
    }
}

#[test]
fn nothing_acknowledged_is_lost_whatever_happens_to_five_nodes() {
    for seed in seeds(3) {
        let config = ClusterConfig {
            nodes: 5,
            ..ClusterConfig::three(seed)
        };
        simulate_on(config, 10, &Fault::ALL);
    }
}

#[test]
fn one_seed_gives_one_trace() {
    let first = simulate(7, 6, &Fault::ALL);
    assert_eq!(first, simulate(7, 6, &Fault::ALL));
    assert_ne!(first, simulate(8, 6, &Fault::ALL));
}
