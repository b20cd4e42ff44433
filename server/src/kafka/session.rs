//! What one connection remembers between its requests: the partitions it wrote to and read from,
//! as of one version of the map.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use trilog_raft::controller::Topic;
use trilog_wire::kafka::ErrorCode;

use super::{Kafka, errors};
use crate::meter::TopicMeter;
use crate::partition::Partition;

/// Topics remembered at most; beyond them all are forgotten and looked up anew.
const MAX_TOPICS: usize = 1024;

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) kafka: Kafka,
    /// Where the client came in.
    pub(super) local: Option<SocketAddr>,
    /// Where the client is.
    pub(super) peer: Option<SocketAddr>,
    version: u64,
    topics: HashMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    topic: Arc<Topic>,
    meter: TopicMeter,
    partitions: BTreeMap<u32, Partition>,
}

/// A partition and what its topic counts.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) partition: Partition,
    pub(super) meter: TopicMeter,
}

impl Session {
    pub(super) fn new(kafka: Kafka, local: Option<SocketAddr>, peer: Option<SocketAddr>) -> Self {
        Self {
            kafka,
            local,
            peer,
            version: 0,
            topics: HashMap::new(),
        }
    }

    /// The replica of a partition here, whether it leads or not.
    pub(super) fn replica(&mut self, topic: &str, index: i32) -> Result<Target, ErrorCode> {
        let index = u32::try_from(index).map_err(|_| ErrorCode::UnknownTopicOrPartition)?;
        let cluster = &self.kafka.inner.cluster;
        let version = *cluster.changes().borrow();
        if version != self.version || self.topics.len() > MAX_TOPICS {
            self.topics.clear();
            self.version = version;
        }
        if !self.topics.contains_key(topic) {
            let found = cluster
                .topic(topic)
                .map_err(|error| errors::lookup(&error))?;
            let known = Known {
                topic: found,
                meter: self.kafka.inner.meters.topic(topic),
                partitions: BTreeMap::new(),
            };
            self.topics.insert(topic.to_owned(), known);
        }
        let known = self
            .topics
            .get_mut(topic)
            .ok_or(ErrorCode::UnknownTopicOrPartition)?;
        let remembered = known.partitions.get(&index);
        let remembered = remembered.filter(|partition| !partition.is_closed());
        let partition = if let Some(partition) = remembered {
            partition.clone()
        } else {
            let found = cluster.partition_of(&known.topic, index);
            let found = found.map_err(|error| errors::lookup(&error))?;
            known.partitions.insert(index, found.clone());
            found
        };
        Ok(Target {
            partition,
            meter: known.meter.clone(),
        })
    }

    /// The partition, if this node leads it.
    pub(super) fn led(&mut self, topic: &str, index: i32) -> Result<Target, ErrorCode> {
        let target = self.replica(topic, index)?;
        if target.partition.leader().1 {
            Ok(target)
        } else {
            Err(ErrorCode::NotLeaderOrFollower)
        }
    }
}

/// Whether a client's idea of the leader epoch lets it be served; -1 is none.
pub(super) fn check_epoch(partition: &Partition, epoch: i32) -> Result<(), ErrorCode> {
    if epoch < 0 {
        return Ok(());
    }
    match epoch.cmp(&leader_epoch(partition)) {
        std::cmp::Ordering::Less => Err(ErrorCode::FencedLeaderEpoch),
        std::cmp::Ordering::Equal => Ok(()),
        std::cmp::Ordering::Greater => Err(ErrorCode::UnknownLeaderEpoch),
    }
}

/// The term, as Kafka counts epochs.
pub(super) fn leader_epoch(partition: &Partition) -> i32 {
    i32::try_from(partition.term().get()).unwrap_or(i32::MAX)
}
