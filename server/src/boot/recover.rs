//! Going on with what is left of a cluster whose majority is gone for ever: on the directory of a
//! stopped node that survived.
//!
//! ```text
//! recovery.json   the decision, before anything else: a run that is cut short is repeated
//! partitions      each held here gets the survivors as its only members, in its own log
//! controller      likewise, and the command that removes the other nodes, behind its last entry
//! node.json       the new cluster id: now the node may start
//! ```
//!
//! The new cluster id is what keeps nodes out that should come back after all: links and
//! directories are checked for it.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, bail, ensure};
use tracing::warn;
use trilog_model::{GroupId, LogIndex, NodeId, Offset, ReplicaId};
use trilog_raft::controller::commands::{AcceptLoss, Command};
use trilog_raft::controller::{ClusterId, ClusterMap, Partition, Standing, remaining_voters};
use trilog_raft::recover;
use trilog_storage::env::{Clock, Entropy, SystemClock};
use trilog_storage::io::Backend;
use trilog_storage::kv::{Kv, KvConfig};
use trilog_storage::store::Store;
use uuid::Uuid;

use super::ground::{choice, store_config};
use crate::cluster::{ControllerView, Identity, RecoveryFile, date_of, dated_cluster_id};
use crate::config::Config;

/// What an operator says.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The nodes that are left; none named: this one alone.
    pub survivors: BTreeSet<u32>,
    /// The new cluster id, where another survivor was recovered first.
    pub cluster: Option<Uuid>,
}

/// A recovery that is ready to be carried out. Nothing has been changed yet, but that opening a
/// log sets damaged segments aside.
#[derive(Debug)]
pub struct Recovery {
    store: Store,
    kv: Kv,
    config: Config,
    identity: Identity,
    file: RecoveryFile,
    map: Arc<ClusterMap>,
    left: BTreeSet<NodeId>,
    /// Of what is held here. The report says so, and they are left as they are.
    unusable: BTreeSet<GroupId>,
    pub report: Report,
}

/// What a recovery comes to.
#[derive(Clone, Debug)]
pub struct Report {
    pub before: Uuid,
    pub cluster: Uuid,
    pub survivors: Vec<NodeId>,
    pub lost: Vec<NodeId>,
    /// By topic and index.
    pub partitions: Vec<PartitionReport>,
}

/// What becomes of one partition.
#[derive(Clone, Debug)]
pub struct PartitionReport {
    pub topic: String,
    pub partition: u32,
    /// Replicas that voted, before and now.
    pub voters: usize,
    pub left: usize,
    pub fate: Fate,
}

/// What is known here of what is left of a partition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes on from here.
    Kept {
        /// Where its records end here; what the lost replicas alone had behind that is lost.
        end: Offset,
        /// Entries whose outcome is not known here: they count as committed from now on.
        undecided: u64,
        /// The replica here never had a vote, and may lack more than the last records.
        learner: bool,
    },
    /// Only other survivors hold it.
    Elsewhere,
    /// No survivor holds it: it stays without a leader until its topic is deleted.
    Gone,
    /// What is here cannot be used.
    Unusable,
}

/// Looks at a stopped node's directory and says what a recovery would come to.
pub async fn prepare(config: &Config, request: Request) -> anyhow::Result<Recovery> {
    let dir = &config.node.data_dir;
    let number = NodeId(config.node.id);
    let Some(identity) = Identity::load(dir, number)? else {
        bail!("{} holds no node", dir.display());
    };
    let before = identity.cluster.with_context(|| {
        let dir = dir.display();
        format!("the node in {dir} belongs to no cluster; an empty node can simply join one")
    })?;
    let file = decide(config, &identity, request)?;
    let (store, kv) = open(config, &identity).await?;
    let map = controller_map(&store, &kv).await?;
    let left: BTreeSet<NodeId> = file.survivors.iter().copied().map(NodeId).collect();
    let mut recovery = Recovery {
        report: Report {
            before,
            cluster: file.cluster,
            survivors: left.iter().copied().collect(),
            lost: lost(&map, &left),
            partitions: Vec::new(),
        },
        store,
        kv,
        config: config.clone(),
        identity,
        file,
        map,
        left,
        unusable: BTreeSet::new(),
    };
    recovery.check()?;
    recovery.look().await;
    Ok(recovery)
}

/// A decision that was begun is carried on; else a new one.
fn decide(config: &Config, identity: &Identity, request: Request) -> anyhow::Result<RecoveryFile> {
    let mut survivors = request.survivors;
    survivors.insert(config.node.id);
    if let Some(begun) = RecoveryFile::load(&config.node.data_dir)?
        && !begun.is_done(identity)
    {
        let cluster = request.cluster.unwrap_or(begun.cluster);
        ensure!(
            cluster == begun.cluster && (survivors == begun.survivors || survivors.len() == 1),
            "a recovery to cluster {} with nodes {:?} was begun here; finish that one",
            begun.cluster,
            begun.survivors
        );
        return Ok(begun);
    }
    let drawn = || dated_cluster_id(SystemClock.now());
    let cluster = request.cluster.unwrap_or_else(drawn);
    ensure!(
        date_of(cluster).is_some(),
        "{cluster} is no cluster id that `trilog recover` has drawn on another survivor"
    );
    Ok(RecoveryFile::new(cluster, survivors))
}

async fn open(config: &Config, identity: &Identity) -> anyhow::Result<(Store, Kv)> {
    let dir = &config.node.data_dir;
    let probe = Backend::probe(choice(config.storage.io), dir)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let opened = Store::open(
        store_config(config, identity),
        probe.backend,
        clock,
        Entropy::from_os(),
    )
    .await;
    let (store, report) =
        opened.with_context(|| format!("opening the log in {}", dir.display()))?;
    if let Some(damage) = report.damage {
        bail!(
            "the log in {} is damaged ({damage}): nothing can be recovered from it; it was set \
             aside beside it, as *.damaged-N",
            dir.display()
        );
    }
    let path = dir.join("kv");
    let families = [trilog_raft::KV_FAMILY];
    let kv = Kv::open_rocks(&path, &families, KvConfig::default()).await;
    let kv = kv.with_context(|| format!("opening the view state in {}", path.display()))?;
    Ok((store, kv))
}

/// The cluster as the last entry of the controller's log leaves it.
async fn controller_map(store: &Store, kv: &Kv) -> anyhow::Result<Arc<ClusterMap>> {
    let log = store.group(GroupId::CONTROLLER);
    let log = log.context("the directory holds no replica of the controller")?;
    let (view, map, _changes) = ControllerView::new();
    recover::fold(&log, kv, view)
        .await
        .context("reading the controller's log")?;
    Ok(map.load_full())
}

fn lost(map: &ClusterMap, left: &BTreeSet<NodeId>) -> Vec<NodeId> {
    let members = map.nodes().map(|node| node.id);
    members.filter(|node| !left.contains(node)).collect()
}

impl Recovery {
    /// Refuses what makes no sense, or is not needed.
    fn check(&self) -> anyhow::Result<()> {
        let known = self
            .map
            .cluster()
            .map(|id| Uuid::from_bytes(*id.as_bytes()));
        if known == Some(self.file.cluster) {
            return Ok(());
        }
        ensure!(
            known == Some(self.report.before),
            "the controller's log is of another cluster than the directory"
        );
        for node in &self.left {
            ensure!(
                self.map.node(*node).is_some_and(|node| node.is_member()),
                "node {node} is no member of the cluster"
            );
        }
        ensure!(
            !self.report.lost.is_empty(),
            "every node of the cluster is a survivor: nothing is lost"
        );
        let stranded = |partition: &&Arc<Partition>| {
            let voters = settled_voters(partition);
            let left = voters.iter().filter(|id| self.left.contains(&id.node()));
            left.count() * 2 <= voters.len()
        };
        ensure!(
            self.map
                .groups()
                .any(|group| !group.is_dead() && stranded(&group)),
            "nothing has lost its majority: start the nodes that are left, then drain and remove, \
             or replace, those that are not"
        );
        Ok(())
    }

    /// Looks at what each partition would go on with.
    async fn look(&mut self) {
        let map = Arc::clone(&self.map);
        for topic in map.topics_by_name() {
            for (place, partition) in topic.partitions.iter().zip(0..) {
                let fate = self.fate(place).await;
                if fate == Fate::Unusable {
                    self.unusable.insert(place.group);
                }
                let report = PartitionReport {
                    topic: topic.name.to_string(),
                    partition,
                    voters: settled_voters(place).len(),
                    left: remaining_voters(place, &self.left).len(),
                    fate,
                };
                self.report.partitions.push(report);
            }
        }
    }

    async fn fate(&self, place: &Partition) -> Fate {
        let voters = remaining_voters(place, &self.left);
        if voters.is_empty() {
            return Fate::Gone;
        }
        let Some(log) = self.store.group(place.group) else {
            return Fate::Elsewhere;
        };
        let Some(replica) = place
            .replica(log.replica())
            .filter(|r| voters.contains(&r.id))
        else {
            return Fate::Elsewhere;
        };
        let held = match recover::held(&log, &self.kv).await {
            Ok(held) => held,
            Err(error) => {
                warn!(group = %place.group, %error, "a partition cannot be recovered here");
                return Fate::Unusable;
            }
        };
        let end = |index: Option<LogIndex>| index.map_or(0, |index| index.get() + 1);
        let last = end(held.last.map(|last| last.index));
        Fate::Kept {
            end: held.next_offset,
            undecided: last.saturating_sub(end(held.committed)),
            learner: replica.settled != Standing::Voter,
        }
    }

    /// Closes the directory as it was found.
    pub async fn give_up(self) -> anyhow::Result<()> {
        Ok(self.store.close().await?)
    }

    /// Does it; durable on return. Each step may be repeated.
    pub async fn carry_out(mut self) -> anyhow::Result<()> {
        let dir = self.config.node.data_dir.clone();
        self.file.partitions = self
            .report
            .partitions
            .iter()
            .map(ToString::to_string)
            .collect();
        self.file.save(&dir)?;
        for group in self.store.groups() {
            if group == GroupId::CONTROLLER || self.unusable.contains(&group) {
                continue;
            }
            self.reduce(group)
                .await
                .with_context(|| format!("recovering group {group}"))?;
        }
        self.reduce_controller()
            .await
            .context("recovering the controller")?;
        self.kv.flush().await?;
        self.store.close().await?;
        self.identity.recovered(self.file.cluster).save(&dir)?;
        Ok(())
    }

    async fn reduce(&self, group: GroupId) -> anyhow::Result<()> {
        let (Some(log), Some(place)) = (self.store.group(group), self.map.group(group)) else {
            return Ok(());
        };
        let voters: BTreeSet<ReplicaId> = remaining_voters(place, &self.left).into_iter().collect();
        // A replica that the map has given up is left as it is.
        if !voters.contains(&log.replica()) {
            return Ok(());
        }
        recover::reduce(&log, &self.kv, &voters, None).await?;
        Ok(())
    }

    async fn reduce_controller(&self) -> anyhow::Result<()> {
        let cluster = ClusterId::from_bytes(*self.file.cluster.as_bytes())?;
        if self.map.cluster() == Some(cluster) {
            return Ok(());
        }
        let log = self.store.group(GroupId::CONTROLLER);
        let log = log.context("the controller's log is gone")?;
        let voters = remaining_voters(self.map.controller(), &self.left);
        let at = date_of(self.file.cluster).context("the cluster id bears no date")?;
        let command = Command::AcceptLoss(AcceptLoss {
            cluster: cluster.to_wire(),
            survivors: self.file.survivors.iter().copied().collect(),
            at: at.nanos(),
        });
        let voters = voters.into_iter().collect();
        recover::reduce(&log, &self.kv, &voters, Some(command.to_bytes())).await?;
        Ok(())
    }
}

fn settled_voters(partition: &Partition) -> Vec<ReplicaId> {
    let voters = partition.replicas.iter();
    let voters = voters.filter(|replica| replica.settled == Standing::Voter);
    voters.map(|replica| replica.id).collect()
}

impl std::fmt::Display for PartitionReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            topic,
            partition,
            voters,
            left,
            fate,
        } = self;
        write!(
            f,
            "{topic}/{partition}: {left} of {voters} replicas left; {fate}"
        )
    }
}

impl std::fmt::Display for Fate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Gone => f.write_str("all of its records are lost; delete the topic"),
            Self::Elsewhere => f.write_str("what is left is on other survivors"),
            Self::Unusable => f.write_str("what is left here cannot be used; delete the topic"),
            Self::Kept {
                end,
                undecided,
                learner,
            } => {
                write!(
                    f,
                    "records from offset {end} on are lost, if there were any"
                )?;
                if *undecided > 0 {
                    write!(
                        f,
                        "; the last {undecided} entries may not have been acknowledged"
                    )?;
                }
                if *learner {
                    f.write_str("; the replica here was still catching up")?;
                }
                Ok(())
            }
        }
    }
}
