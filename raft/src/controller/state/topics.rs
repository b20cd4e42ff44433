//! Topics: created, altered, deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use trilog_model::{NodeId, Term, Timestamp};

use super::super::cluster_config::ClusterConfigView;
use super::super::cluster_map::{
    GroupPlace, Partition, Replica, Replication, Standing, Topic, grown_replication,
};
use super::super::command::{
    AlterTopic, Assignment, ConfigEntry, CreateTopic, DeleteTopic, TopicKind,
};
use super::super::ids::TopicId;
use super::super::internal::is_reserved;
use super::super::level::{INTERNAL_LEVEL, PLACEMENT_LEVEL};
use super::super::names::{check_topic_name, collision_key};
use super::super::placement::place;
use super::super::reply::{ControllerError, Outcome, Reply};
use super::super::topic_config::topic_key;
use super::settings::change_configs;
use super::{
    ControllerState, MAX_GROUPS, MAX_PARTITIONS, MAX_VOTERS, add_load, malformed, subtract_load,
};

impl ControllerState {
    pub(super) fn create_topic(&mut self, command: &CreateTopic, time: Timestamp) -> Outcome {
        let id = read_topic_id(&command.id)?;
        let kind =
            TopicKind::try_from(command.kind).map_err(|_| malformed("unknown kind of topic"))?;
        check_topic_name(&command.name)?;
        self.check_owner(kind, &command.name)?;
        if let Some(done) = self.already_created(id, &command.name)? {
            return Ok(done);
        }
        let configs = self.read_configs(&command.configs)?;
        let replication = match (command.assignments.first(), command.replication) {
            (Some(first), _) => Replication::Fixed(set_len(first)),
            (None, 0) => Replication::Default,
            (None, replication) => Replication::Fixed(replication),
        };
        let sets = self.initial_sets(command, replication)?;
        let partitions = self.new_partitions(&sets, !command.assignments.is_empty())?;
        let answer = Reply::TopicCreated {
            id,
            partitions: len(&partitions),
            replication: sets.first().map_or(0, |set| len(set)),
        };
        let name: Arc<str> = command.name.as_str().into();
        self.collisions.insert(collision_key(&name), id);
        Arc::make_mut(&mut self.tables.names).insert(Arc::clone(&name), id);
        self.index_partitions(id, 0, &partitions);
        let topic = Topic {
            id,
            name,
            kind,
            partitions,
            replication,
            configs,
            created: time,
        };
        Arc::make_mut(&mut self.tables.topics).insert(id, Arc::new(topic));
        self.touch();
        Ok(answer)
    }

    pub(super) fn alter_topic(&mut self, command: &AlterTopic) -> Outcome {
        let topic = Arc::clone(self.topic(&command.id)?);
        let level = self.tables.level;
        let configs = change_configs(&topic.configs, &command.configs, |key| {
            topic_key(key, level)
        })?;
        if command.replication > 0 {
            self.check_replication(command.replication)?;
        }
        let level = self.tables.level;
        if command.partitions > 0 && topic.kind == TopicKind::Internal && level >= INTERNAL_LEVEL {
            return Err(ControllerError::InvalidPartitions {
                reason: "a topic of the system keeps what it was created with".to_owned(),
            });
        }
        let added = self.added_sets(&topic, command)?;
        let partitions = self.new_partitions(&added, !command.assignments.is_empty())?;
        let old = len(&topic.partitions);
        self.index_partitions(topic.id, old, &partitions);
        let mut altered = Topic::clone(&topic);
        altered.configs = configs;
        altered.partitions.extend(partitions);
        if command.replication > 0 {
            altered.replication = Replication::Fixed(command.replication);
            // The newest word counts, of the topic as of a partition.
            for partition in &mut altered.partitions {
                if partition.own_replication().is_some() {
                    let partition = Arc::make_mut(partition);
                    (partition.replication, partition.asked) = (None, None);
                }
            }
        }
        if altered != *topic {
            Arc::make_mut(&mut self.tables.topics).insert(topic.id, Arc::new(altered));
            self.touch();
        }
        Ok(Reply::Done)
    }

    /// The system's names are for the system's topics, and the other way round.
    fn check_owner(&self, kind: TopicKind, name: &str) -> Result<(), ControllerError> {
        if self.tables.level < INTERNAL_LEVEL || (kind == TopicKind::Internal) == is_reserved(name)
        {
            return Ok(());
        }
        Err(ControllerError::InvalidTopicName {
            name: name.to_owned(),
            reason: match kind {
                TopicKind::Internal => "it is not one of the system's".to_owned(),
                TopicKind::User | TopicKind::BuiltIn => "it is kept for the system".to_owned(),
            },
        })
    }

    pub(super) fn delete_topic(&mut self, command: &DeleteTopic) -> Outcome {
        let topic = Arc::clone(self.topic(&command.id)?);
        if topic.kind != TopicKind::User {
            return Err(ControllerError::TopicProtected {
                name: topic.name.to_string(),
            });
        }
        Arc::make_mut(&mut self.tables.topics).remove(&topic.id);
        Arc::make_mut(&mut self.tables.names).remove(&topic.name);
        self.collisions.remove(&collision_key(&topic.name));
        for partition in &topic.partitions {
            self.groups.remove(&partition.group);
            subtract_load(&mut self.loads, partition);
            for replica in &partition.replicas {
                self.retire(partition.group, replica.id);
            }
        }
        self.touch();
        Ok(Reply::Done)
    }

    fn topic(&self, id: &[u8]) -> Result<&Arc<Topic>, ControllerError> {
        let id = read_topic_id(id)?;
        self.tables
            .topics
            .get(&id)
            .ok_or_else(|| ControllerError::UnknownTopic {
                topic: id.to_string(),
            })
    }

    /// The answer to a command that was carried out before, or a refusal of a taken name.
    fn already_created(&self, id: TopicId, name: &str) -> Result<Option<Reply>, ControllerError> {
        if let Some(topic) = self.tables.topics.get(&id) {
            if &*topic.name != name {
                return Err(malformed("the topic id is another topic's"));
            }
            let first = topic.partitions.first();
            return Ok(Some(Reply::TopicCreated {
                id,
                partitions: len(&topic.partitions),
                replication: first.map_or(0, |partition| {
                    u32::try_from(partition.voter_nodes().count()).unwrap_or(0)
                }),
            }));
        }
        let Some(other) = self.collisions.get(&collision_key(name)) else {
            return Ok(None);
        };
        let other = self.tables.topics.get(other).map(|topic| &*topic.name);
        if other == Some(name) {
            return Err(ControllerError::TopicExists {
                name: name.to_owned(),
            });
        }
        Err(ControllerError::TopicCollides {
            name: name.to_owned(),
            other: other.unwrap_or_default().to_owned(),
        })
    }

    fn read_configs(
        &self,
        entries: &[ConfigEntry],
    ) -> Result<BTreeMap<String, String>, ControllerError> {
        let mut configs = BTreeMap::new();
        for entry in entries {
            let key = topic_key(&entry.key, self.tables.level)?;
            let value = key.parse(&entry.value)?;
            if configs.insert(entry.key.clone(), value).is_some() {
                return Err(ControllerError::InvalidConfig {
                    key: entry.key.clone(),
                    value: entry.value.clone(),
                    reason: "the key is named twice".to_owned(),
                });
            }
        }
        Ok(configs)
    }

    /// The nodes of each partition of a topic to be created, the leader first.
    fn initial_sets(
        &self,
        command: &CreateTopic,
        replication: Replication,
    ) -> Result<Vec<Vec<NodeId>>, ControllerError> {
        let settings = ClusterConfigView(&self.tables.configs);
        if !command.assignments.is_empty() {
            if command.partitions != 0 || command.replication != 0 {
                return Err(invalid_assignment(
                    "with an assignment, neither partitions nor replication may be given",
                ));
            }
            self.check_partition_count(len(&command.assignments))?;
            return self.read_assignments(&command.assignments);
        }
        let partitions = match command.partitions {
            0 => settings.default_partitions(),
            partitions => partitions,
        };
        self.check_partition_count(partitions)?;
        let replication = self.replication_now(replication);
        self.check_replication(replication)?;
        self.place_partitions(&[], partitions, replication)
    }

    /// The nodes of each partition that is to be added.
    fn added_sets(
        &self,
        topic: &Topic,
        command: &AlterTopic,
    ) -> Result<Vec<Vec<NodeId>>, ControllerError> {
        let old = len(&topic.partitions);
        if command.partitions == 0 {
            if command.assignments.is_empty() {
                return Ok(Vec::new());
            }
            return Err(invalid_assignment(
                "the new number of partitions is missing",
            ));
        }
        if command.partitions <= old {
            return Err(ControllerError::InvalidPartitions {
                reason: format!("the topic has {old} and can only get more"),
            });
        }
        self.check_partition_count(command.partitions)?;
        let added = command.partitions - old;
        if command.assignments.is_empty() {
            let replication = match command.replication {
                0 => topic.replication,
                replication => Replication::Fixed(replication),
            };
            let replication = self.replication_now(replication);
            return self.place_partitions(&topic.partitions, added, replication);
        }
        if len(&command.assignments) != added {
            return Err(invalid_assignment(
                "one set of nodes is wanted per added partition",
            ));
        }
        self.read_assignments(&command.assignments)
    }

    pub(super) fn replication_now(&self, replication: Replication) -> u32 {
        match replication {
            Replication::Fixed(replication) => replication,
            Replication::Default => grown_replication(
                self.active_count(),
                ClusterConfigView(&self.tables.configs).default_replication(),
            ),
        }
    }

    fn place_partitions(
        &self,
        present: &[Arc<Partition>],
        partitions: u32,
        replication: u32,
    ) -> Result<Vec<Vec<NodeId>>, ControllerError> {
        place(&self.candidates(present), partitions, replication).map_err(|few| {
            ControllerError::NotEnoughNodes {
                wanted: few.wanted,
                available: few.available,
            }
        })
    }

    fn check_partition_count(&self, partitions: u32) -> Result<(), ControllerError> {
        let reason = if partitions > MAX_PARTITIONS {
            format!("{partitions}; a topic has at most {MAX_PARTITIONS}")
        } else if self.groups.len() + usize::try_from(partitions).unwrap_or(usize::MAX) > MAX_GROUPS
        {
            format!("{partitions} more would exceed the cluster's limit of {MAX_GROUPS}")
        } else {
            return Ok(());
        };
        Err(ControllerError::InvalidPartitions { reason })
    }

    fn check_replication(&self, replication: u32) -> Result<(), ControllerError> {
        if replication > MAX_VOTERS {
            return Err(ControllerError::InvalidReplication {
                reason: format!("{replication}; at most {MAX_VOTERS} replicas are allowed"),
            });
        }
        let available = self.active_count();
        if replication > available {
            return Err(ControllerError::NotEnoughNodes {
                wanted: replication,
                available,
            });
        }
        Ok(())
    }

    fn read_assignments(
        &self,
        assignments: &[Assignment],
    ) -> Result<Vec<Vec<NodeId>>, ControllerError> {
        let replication = assignments.first().map_or(0, set_len);
        let mut sets = Vec::with_capacity(assignments.len());
        for assignment in assignments {
            if set_len(assignment) != replication {
                return Err(invalid_assignment(
                    "all partitions must have the same number of replicas",
                ));
            }
            let set: Vec<NodeId> = assignment.nodes.iter().copied().map(NodeId).collect();
            self.check_voter_set(&set)?;
            for node in &set {
                if !self.node(*node)?.is_active() {
                    return Err(invalid_assignment(&format!("node {node} is draining")));
                }
            }
            sets.push(set);
        }
        Ok(sets)
    }

    /// Refuses an empty or too large set and one that names a node twice or an unknown one.
    pub(super) fn check_voter_set(&self, set: &[NodeId]) -> Result<(), ControllerError> {
        if set.is_empty() || len(set) > MAX_VOTERS {
            return Err(invalid_assignment(&format!(
                "a partition has 1 to {MAX_VOTERS} replicas"
            )));
        }
        let distinct: BTreeSet<&NodeId> = set.iter().collect();
        if distinct.len() != set.len() {
            return Err(invalid_assignment("a node is named twice"));
        }
        for node in set {
            self.node(*node)?;
        }
        Ok(())
    }

    fn new_partitions(
        &mut self,
        sets: &[Vec<NodeId>],
        by_hand: bool,
    ) -> Result<Vec<Arc<Partition>>, ControllerError> {
        let pinned = by_hand && self.tables.level >= PLACEMENT_LEVEL;
        let replicas: usize = sets.iter().map(Vec::len).sum();
        self.reserve(
            u64::from(len(sets)),
            u64::try_from(replicas).unwrap_or(u64::MAX),
        )?;
        Ok(sets
            .iter()
            .map(|set| Arc::new(self.new_partition(set, pinned)))
            .collect())
    }

    fn new_partition(&mut self, set: &[NodeId], pinned: bool) -> Partition {
        let founding: Vec<_> = set.iter().map(|node| self.new_replica(*node)).collect();
        Partition {
            group: self.new_group(),
            generation: 1,
            replicas: founding
                .iter()
                .map(|id| Replica {
                    id: *id,
                    settled: Standing::Voter,
                    target: Standing::Voter,
                    lost: false,
                })
                .collect(),
            founding,
            preferred: set.first().copied().unwrap_or_default(),
            pinned,
            replication: None,
            asked: None,
            term: Term(0),
        }
    }

    fn index_partitions(&mut self, topic: TopicId, first: u32, partitions: &[Arc<Partition>]) {
        for (index, partition) in (first..).zip(partitions) {
            add_load(&mut self.loads, partition);
            self.groups
                .insert(partition.group, GroupPlace::Partition { topic, index });
        }
    }
}

fn read_topic_id(bytes: &[u8]) -> Result<TopicId, ControllerError> {
    TopicId::from_wire(bytes).map_err(|_| malformed("the topic id is invalid"))
}

pub(super) fn invalid_assignment(reason: &str) -> ControllerError {
    ControllerError::InvalidAssignment {
        reason: reason.to_owned(),
    }
}

fn set_len(assignment: &Assignment) -> u32 {
    len(&assignment.nodes)
}

fn len<T>(items: &[T]) -> u32 {
    u32::try_from(items.len()).unwrap_or(u32::MAX)
}
