//! What one connection remembers between its requests: the partitions it wrote to and read from,
//! as of one version of the map.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use trilog_model::Term;
use trilog_raft::controller::{Operation, Topic, TopicId};
use trilog_wire::kafka::{ErrorCode, TopicRef, Uuid};

use super::fetch_sessions::Owner;
use super::quota::Known as Quotas;
use super::rights::Remembered;
use super::sasl::Login;
use super::{Kafka, errors};
use crate::access::Identity;
use crate::meter::TopicMeter;
use crate::partition::Partition;

/// Topics remembered at most; beyond them all are forgotten and looked up anew.
const MAX_TOPICS: usize = 1024;

/// A client that says nothing of the leader epoch.
const NO_EPOCH: i32 = -1;

/// The state of one connection.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) kafka: Kafka,
    /// Where the client came in.
    pub(super) local: Option<SocketAddr>,
    /// Where the client is.
    pub(super) peer: Option<SocketAddr>,
    /// The fetch sessions it has.
    pub(super) fetches: Owner<Place>,
    /// Whether nobody on the way can read what is said.
    pub(super) secure: bool,
    pub(super) login: Login,
    pub(super) remembered: Remembered,
    /// What bounds its client.
    pub(super) quotas: Quotas,
    /// Whether its client's software rests when it was given too much.
    pub(super) rests: bool,
    /// For how long nothing more is to be read, from when a request was begun on.
    pub(super) pause: Option<Duration>,
    version: u64,
    topics: HashMap<String, Known>,
}

#[derive(Debug)]
struct Known {
    topic: Arc<Topic>,
    meter: Arc<TopicMeter>,
    partitions: BTreeMap<u32, Partition>,
}

/// A partition and what its topic counts.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) partition: Partition,
    pub(super) meter: Arc<TopicMeter>,
}

/// Where a fetch reads, as of one version of the map.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) target: Result<Target, ErrorCode>,
    version: u64,
    /// Who reads, where that is asked.
    reader: Option<Arc<Identity>>,
}

impl Place {
    /// Looks again, if anything may have changed.
    pub(super) fn refresh(&mut self, kafka: &Kafka, topic: &TopicRef, index: i32, version: u64) {
        let holds = |target: &Target| !target.partition.is_closed();
        if self.version == version && self.target.as_ref().is_ok_and(holds) {
            return;
        }
        self.version = version;
        let allowed = kafka.may_read(self.reader.as_deref(), topic);
        let found = allowed.and_then(|()| kafka.find(topic, index, self.target.as_ref().ok()));
        self.target = found;
    }
}

impl Kafka {
    /// Whether somebody may read a topic; everybody may where nobody is asked.
    fn may_read(&self, reader: Option<&Identity>, topic: &TopicRef) -> Result<(), ErrorCode> {
        if !self.inner.access.is_required() {
            return Ok(());
        }
        let map = self.inner.cluster.map();
        let rights = self.inner.access.rights(reader, &map);
        let may = match topic {
            TopicRef::Name(name) => rights.may_topic(Operation::Read, name),
            TopicRef::Id(id) => {
                let topic = self.topic_of_id(*id)?;
                rights.may_topic(Operation::Read, &topic.name)
            }
        };
        may.then_some(()).ok_or(ErrorCode::TopicAuthorizationFailed)
    }

    /// A replica here, with the meter of one that was found before, if it is of the same topic.
    fn find(
        &self,
        topic: &TopicRef,
        index: i32,
        before: Option<&Target>,
    ) -> Result<Target, ErrorCode> {
        let cluster = &self.inner.cluster;
        let topic = match topic {
            TopicRef::Name(name) => cluster.topic(name),
            TopicRef::Id(id) => Ok(self.topic_of_id(*id)?),
        };
        let topic = topic.map_err(|error| errors::lookup(&error))?;
        let partition = cluster.partition_of(&topic, partition_index(index)?);
        let meter = before.map(|target| Arc::clone(&target.meter));
        Ok(Target {
            partition: partition.map_err(|error| errors::lookup(&error))?,
            meter: meter.unwrap_or_else(|| Arc::new(self.inner.meters.topic(&topic.name))),
        })
    }

    fn topic_of_id(&self, id: Uuid) -> Result<Arc<Topic>, ErrorCode> {
        let id = TopicId::from_bytes(id.into_bytes()).map_err(|_| ErrorCode::UnknownTopicId)?;
        let map = self.inner.cluster.map();
        map.topic(id).cloned().ok_or(ErrorCode::UnknownTopicId)
    }
}

fn partition_index(index: i32) -> Result<u32, ErrorCode> {
    u32::try_from(index).map_err(|_| ErrorCode::UnknownTopicOrPartition)
}

impl Session {
    pub(super) fn new(kafka: Kafka, local: Option<SocketAddr>, peer: Option<SocketAddr>) -> Self {
        let login = Login::new(kafka.inner.access.is_required());
        Self {
            fetches: kafka.inner.sessions.owner(),
            kafka,
            local,
            peer,
            secure: is_secure(peer, false),
            login,
            remembered: Remembered::default(),
            quotas: Quotas::default(),
            rests: false,
            pause: None,
            version: 0,
            topics: HashMap::new(),
        }
    }

    /// The replica of a partition here, whether it leads or not.
    pub(super) fn replica(&mut self, topic: &str, index: i32) -> Result<Target, ErrorCode> {
        self.renew();
        if !self.topics.contains_key(topic) {
            let found = self.kafka.inner.cluster.topic(topic);
            self.remember(&found.map_err(|error| errors::lookup(&error))?);
        }
        let known = self
            .topics
            .get_mut(topic)
            .ok_or(ErrorCode::UnknownTopicOrPartition)?;
        known.target(&self.kafka, index)
    }

    /// As [`Session::replica`], for a fetch.
    pub(super) fn place(&mut self, topic: &TopicRef, index: i32) -> Place {
        // Before rights are looked up: what is found is as of this version, or of a newer one.
        let mut before = None;
        if !self.is_open() {
            self.renew();
            before = Some(self.version);
        }
        let target = match topic {
            TopicRef::Name(name) => self
                .check_often(Operation::Read, name)
                .and_then(|()| self.replica(name, index)),
            TopicRef::Id(id) => self.replica_of_id(*id, index),
        };
        Place {
            target,
            version: before.unwrap_or(self.version),
            reader: self.login.identity().cloned(),
        }
    }

    fn replica_of_id(&mut self, id: Uuid, index: i32) -> Result<Target, ErrorCode> {
        self.renew();
        let topic = self.kafka.topic_of_id(id)?;
        self.check_often(Operation::Read, &topic.name)?;
        let known = self.topics.get(&*topic.name);
        if known.is_none_or(|known| known.topic.id != topic.id) {
            self.remember(&topic);
        }
        let known = self.topics.get_mut(&*topic.name);
        known
            .ok_or(ErrorCode::UnknownTopicId)?
            .target(&self.kafka, index)
    }

    /// Forgets all once the map has changed, or where it is too much.
    fn renew(&mut self) {
        let version = *self.kafka.inner.cluster.changes().borrow();
        if version != self.version || self.topics.len() > MAX_TOPICS {
            self.topics.clear();
            self.version = version;
        }
    }

    fn remember(&mut self, topic: &Arc<Topic>) {
        let known = Known {
            meter: Arc::new(self.kafka.inner.meters.topic(&topic.name)),
            topic: Arc::clone(topic),
            partitions: BTreeMap::new(),
        };
        self.topics.insert(topic.name.to_string(), known);
    }

    /// The partition, if this node leads it.
    pub(super) fn led(&mut self, topic: &str, index: i32) -> Result<Target, ErrorCode> {
        self.led_at(topic, index, NO_EPOCH)
    }

    /// As [`Session::led`], in the epoch that a client believes in. A wrong epoch says more than
    /// that this is not the leader, so that is said first, as by a broker.
    pub(super) fn led_at(
        &mut self,
        topic: &str,
        index: i32,
        epoch: i32,
    ) -> Result<Target, ErrorCode> {
        let target = self.replica(topic, index)?;
        check_epoch(&target.partition, epoch)?;
        if target.partition.leader().1 {
            Ok(target)
        } else {
            Err(ErrorCode::NotLeaderOrFollower)
        }
    }
}

impl Known {
    fn target(&mut self, kafka: &Kafka, index: i32) -> Result<Target, ErrorCode> {
        let index = partition_index(index)?;
        let remembered = self.partitions.get(&index);
        let remembered = remembered.filter(|partition| !partition.is_closed());
        let partition = if let Some(partition) = remembered {
            partition.clone()
        } else {
            let found = kafka.inner.cluster.partition_of(&self.topic, index);
            let found = found.map_err(|error| errors::lookup(&error))?;
            self.partitions.insert(index, found.clone());
            found
        };
        Ok(Target {
            partition,
            meter: Arc::clone(&self.meter),
        })
    }
}

/// Whether nobody on the way can read what is said.
pub(super) fn is_secure(peer: Option<SocketAddr>, encrypted: bool) -> bool {
    encrypted || peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback())
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
    epoch_of(partition.term())
}

pub(super) fn epoch_of(term: Term) -> i32 {
    i32::try_from(term.get()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_secure_on_this_machine_or_over_tls() {
        for (peer, encrypted, secure) in [
            (Some("127.0.0.1:1"), false, true),
            (Some("[::1]:1"), false, true),
            (Some("[::ffff:127.0.0.1]:1"), false, true),
            (Some("10.0.0.1:1"), false, false),
            (Some("10.0.0.1:1"), true, true),
            (None, false, false),
        ] {
            let peer = peer.map(|peer| peer.parse().unwrap());
            assert_eq!(is_secure(peer, encrypted), secure, "{peer:?} {encrypted}");
        }
    }
}
