//! Who leads the groups that this node holds no replica of: asked of the nodes that do, so that
//! a client can be sent to the right one whatever node it asks.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use futures::FutureExt;
use futures::future::{BoxFuture, join_all};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;
use trilog_model::{GroupId, NodeId};
use trilog_raft::controller::ClusterMap;
use trilog_raft::transport::{
    Lane, PeerCall, PeerHandler, PeerStream, Refusal, Route, Target, Transport,
};

use super::Cluster;
use super::kinds::LEADERSHIPS;
use crate::partition::Partitions;

const INTERVAL: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(1);
/// Groups one answer names at most; a node leads fewer.
const MAX_LED: usize = 200_000;

/// A shared table; cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Leaders {
    by_group: Arc<RwLock<BTreeMap<GroupId, NodeId>>>,
}

impl Leaders {
    #[must_use]
    pub fn get(&self, group: GroupId) -> Option<NodeId> {
        self.by_group.read().get(&group).copied()
    }

    /// Keeps the table up to date until `stop`. Costs nothing while every group is held here.
    pub async fn keep(self, cluster: Cluster, transport: Transport, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(INTERVAL);
        while stop.run_until_cancelled(ticks.tick()).await.is_some() {
            let holders = holders_elsewhere(&cluster.map(), cluster.partitions());
            if holders.is_empty() {
                self.by_group.write().clear();
                continue;
            }
            let answers = join_all(holders.into_iter().map(|node| ask(&transport, node))).await;
            let table = answers.into_iter().flatten().collect();
            *self.by_group.write() = table;
        }
    }
}

/// The nodes with a replica of some group that this node has none of.
fn holders_elsewhere(map: &ClusterMap, here: &Partitions) -> BTreeSet<NodeId> {
    let topics = map.topics();
    let partitions = topics.flat_map(|topic| topic.partitions.iter());
    let elsewhere = partitions.filter(|partition| here.get(partition.group).is_none());
    elsewhere
        .flat_map(|partition| partition.voter_nodes())
        .collect()
}

async fn ask(transport: &Transport, node: NodeId) -> Vec<(GroupId, NodeId)> {
    let target = Target {
        node,
        lane: Lane::Control,
        kind: LEADERSHIPS,
        route: Route::default(),
    };
    let Ok(mut answer) = transport.call(target, Vec::new(), PATIENCE).await else {
        return Vec::new();
    };
    let mut led = Vec::new();
    while answer.len() >= 8 && led.len() < MAX_LED {
        led.push((GroupId(answer.get_u64()), node));
    }
    led
}

/// Answers which groups this node leads.
#[derive(Clone, Debug)]
pub(super) struct LeadershipService {
    partitions: Partitions,
}

impl LeadershipService {
    pub(super) fn new(partitions: Partitions) -> Self {
        Self { partitions }
    }
}

impl PeerHandler for LeadershipService {
    fn on_call(&self, _: PeerCall) -> BoxFuture<'static, Result<Vec<Bytes>, Refusal>> {
        let mut led = BytesMut::new();
        for (group, partition) in self.partitions.all() {
            if partition.leader().1 {
                led.put_u64(group.get());
            }
        }
        async move { Ok(vec![led.freeze()]) }.boxed()
    }

    fn on_stream(&self, stream: PeerStream) {
        stream.refuse(&Refusal::Unserved);
    }
}
