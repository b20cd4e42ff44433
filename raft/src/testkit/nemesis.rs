//! What goes wrong in a simulation: one fault after another, drawn from the seed.

use std::time::Duration;

use rand::Rng;
use rand::rngs::SmallRng;
use rand::seq::IndexedRandom;
use trilog_model::{GroupId, LogIndex, NodeId};
use trilog_storage::io::sim::{SimDisk, SyncFailure};

use super::{Cluster, atlas, majority};

/// A kind of fault, or of relief.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    KillLeader,
    KillAny,
    PowerLossAny,
    PowerLossAll,
    /// Of the leader and as many others as make a majority with it, while syncs are slow.
    PowerLossMost,
    StopInOrder,
    CloseReplica,
    IsolateLeader,
    IsolateAny,
    /// The leader is cut off by something that refuses, so that others take its process for ended.
    RejectLeader,
    CutOneWay,
    ResetLinks,
    SlowDisk,
    StallDisk,
    /// One sync fails after its write succeeded, and the process ends of it.
    FailSync,
    /// Now and then, from now on.
    FlakySyncs,
    FillDisk,
    /// A disk is fast, sound and has room again.
    MendDisk,
    SlowLinks,
    JumpClock,
    TransferLeader,
    /// The majority passes to those that lagged, with nobody else of the former one but its leader
    /// after a power loss.
    PassMajority,
    Trim,
    HealLinks,
    BootAll,
    /// Files of a node that is down, or a disk of it: see [`atlas`]. Not among [`Fault::ALL`], for
    /// a cluster has to be configured to look for it.
    Damage,
    /// A bit of one sealed segment, where all replicas are whole: never on a majority. Nor
    /// this.
    FlipBit,
}

impl Fault {
    pub const ALL: [Self; 25] = [
        Self::KillLeader,
        Self::KillAny,
        Self::PowerLossAny,
        Self::PowerLossAll,
        Self::PowerLossMost,
        Self::StopInOrder,
        Self::CloseReplica,
        Self::IsolateLeader,
        Self::IsolateAny,
        Self::RejectLeader,
        Self::CutOneWay,
        Self::ResetLinks,
        Self::SlowDisk,
        Self::StallDisk,
        Self::FailSync,
        Self::FlakySyncs,
        Self::FillDisk,
        Self::MendDisk,
        Self::SlowLinks,
        Self::JumpClock,
        Self::TransferLeader,
        Self::PassMajority,
        Self::Trim,
        Self::HealLinks,
        Self::BootAll,
    ];

    /// Whether it takes a while, in which something should be proposed.
    #[must_use]
    pub const fn lasts(self) -> bool {
        matches!(self, Self::PassMajority | Self::PowerLossMost)
    }
}

/// Does one thing to the cluster. Says what it did, for the trace of a failing seed.
pub async fn strike(
    cluster: &mut Cluster,
    group: GroupId,
    fault: Fault,
    rng: &mut SmallRng,
) -> String {
    cluster.open_all().await;
    let up = cluster.up();
    let any = up.choose(rng).copied();
    let leader = cluster.leader(group).map(|(node, _)| node);
    let victim = match fault {
        Fault::KillLeader | Fault::IsolateLeader | Fault::RejectLeader | Fault::TransferLeader => {
            leader.or(any)
        }
        _ => any,
    };
    let Some(node) = victim else {
        boot_all(cluster).await;
        return "boot all".to_owned();
    };
    match fault {
        Fault::KillLeader | Fault::KillAny => cluster.kill(node),
        Fault::PowerLossAny => cluster.power_loss(node),
        Fault::PowerLossAll => {
            for node in up {
                cluster.power_loss(node);
            }
        }
        Fault::PowerLossMost => return majority::lose_power(cluster, group, rng).await,
        Fault::PassMajority => return majority::pass(cluster, group, rng).await,
        Fault::Damage => return atlas::damage(cluster, group, rng).await,
        Fault::StopInOrder => cluster.stop(node).await,
        Fault::CloseReplica => cluster.close(node, group).await,
        Fault::IsolateLeader | Fault::IsolateAny => cluster.net.isolate(node),
        Fault::RejectLeader => cluster.net.reject(node),
        Fault::CutOneWay | Fault::ResetLinks | Fault::SlowLinks => {
            let others: Vec<NodeId> = cluster.nodes();
            let other = others.choose(rng).copied().unwrap_or(node);
            links(cluster, fault, node, other, rng);
        }
        Fault::SlowDisk
        | Fault::StallDisk
        | Fault::FailSync
        | Fault::FlakySyncs
        | Fault::FillDisk
        | Fault::MendDisk => disk(cluster, fault, node, rng),
        Fault::JumpClock => {
            let nanos = rng.random_range(-2_000_000_000..2_000_000_000);
            cluster.clock(node).set_offset_nanos(nanos);
        }
        Fault::TransferLeader => transfer(cluster, group, node, rng).await,
        Fault::Trim => trim(cluster, group, rng).await,
        Fault::HealLinks => cluster.net.heal_all(),
        Fault::BootAll => boot_all(cluster).await,
        Fault::FlipBit => flip_bit(cluster, group, node, rng),
    }
    format!("{fault:?} node {node}")
}

fn links(cluster: &Cluster, fault: Fault, a: NodeId, b: NodeId, rng: &mut SmallRng) {
    match fault {
        _ if a == b => {}
        Fault::CutOneWay => cluster.net.cut(a, b),
        Fault::ResetLinks => cluster.net.reset_links(a, b),
        _ => {
            let path = crate::transport::sim::Path {
                latency: Duration::from_millis(rng.random_range(1..120)),
                jitter: Duration::from_millis(rng.random_range(0..120)),
                bandwidth: None,
            };
            cluster.net.set_path(a, b, path);
        }
    }
}

fn disk(cluster: &Cluster, fault: Fault, node: NodeId, rng: &mut SmallRng) {
    let disk = cluster.disk(node);
    match fault {
        Fault::SlowDisk => {
            let slow = Duration::from_millis(rng.random_range(5..80));
            disk.configure(|disk| disk.latency_max = slow);
        }
        Fault::StallDisk => disk.stall(Duration::from_millis(rng.random_range(100..1_500))),
        Fault::FailSync => fail_sync(disk, rng),
        Fault::FlakySyncs => {
            let chance = rng.random_range(200..20_000);
            disk.configure(|disk| disk.sync_error_chance = chance);
        }
        Fault::FillDisk => {
            let used: u64 = disk.files().iter().map(|(_, len)| len).sum();
            let quota = used + rng.random_range(0..128 << 10);
            disk.configure(|disk| disk.quota_bytes = Some(quota));
        }
        _ => {
            disk.mend();
            cluster.restore_speed(node);
        }
    }
}

/// Mostly of whatever is synced next, which is the write-ahead log; else of some file or folder.
fn fail_sync(disk: &SimDisk, rng: &mut SmallRng) {
    let failure = if rng.random() {
        SyncFailure::Drop
    } else {
        SyncFailure::Ghost
    };
    let files = disk.files();
    let other = files.choose(rng).filter(|_| rng.random_bool(0.4));
    let place = other.map(|(path, _)| match path.parent() {
        Some(folder) if rng.random_bool(0.3) => folder,
        _ => path.as_path(),
    });
    disk.fail_sync(place, failure);
}

fn flip_bit(cluster: &mut Cluster, group: GroupId, node: NodeId, rng: &mut SmallRng) {
    let replicas = cluster.replicas(group);
    let whole = replicas.iter().all(|replica| replica.log().is_whole());
    if !whole || replicas.len() < cluster.nodes().len() {
        return;
    }
    let disk = cluster.disk(node);
    let files = disk.files().into_iter();
    let segments = files.filter(|(path, _)| path.extension().is_some_and(|kind| kind == "seg"));
    let segments: Vec<_> = segments.collect();
    // The last one still grows.
    let sealed = segments.split_last().map_or(&[][..], |(_, sealed)| sealed);
    if let Some((path, len)) = sealed.choose(rng) {
        disk.flip_bit(path, rng.random_range(0..*len), rng.random_range(0..8));
        cluster.mark_damaged(node);
    }
}

pub(super) async fn boot_all(cluster: &mut Cluster) {
    for node in cluster.nodes() {
        if cluster.node(node).is_none() {
            cluster.boot(node).await;
        }
    }
    // What is damaged opens later, when it is mended.
    cluster.open_all().await;
}

/// Asks for a transfer and does not wait: the clock of this scenario has to go on.
async fn transfer(cluster: &Cluster, group: GroupId, from: NodeId, rng: &mut SmallRng) {
    let Some(replica) = cluster.group(from, group).cloned() else {
        return;
    };
    let voters: Vec<_> = replica.voters().into_iter().collect();
    let Some(to) = voters.choose(rng).copied() else {
        return;
    };
    tokio::spawn(async move {
        // Whether it succeeds is up to the other faults.
        let _ = replica.transfer_leader(to).await;
    });
    cluster.run(Duration::from_millis(20)).await;
}

/// Cuts every replica's log at one committed entry, as an entry that says so would.
async fn trim(cluster: &Cluster, group: GroupId, rng: &mut SmallRng) {
    let applied = |replica: &crate::Group<super::Witness>| {
        let applied = replica.high_watermark().borrow().applied;
        applied.map_or(0, LogIndex::get)
    };
    let replicas = cluster.replicas(group);
    let Some(most) = replicas.iter().map(applied).max() else {
        return;
    };
    let purged = LogIndex(most.saturating_sub(rng.random_range(0..40)));
    for replica in replicas {
        let data_start = replica.log().state().data_start;
        // A replica that has applied nothing has nothing to cut.
        let _ = replica.trim_unasked(purged, data_start).await;
    }
}
