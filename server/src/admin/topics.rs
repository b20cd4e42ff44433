//! Topics: creating, altering, deleting, and where their partitions are.

use std::collections::BTreeMap;
use std::sync::Arc;

use tonic::{Request, Response, Status};
use trilog_model::NodeId;
use trilog_raft::controller::commands::{
    AlterTopic, Command, ConfigChange, ConfigEntry as Setting, CreateTopic, DeleteTopic, TopicKind,
};
use trilog_raft::controller::{ClusterMap, ConfigSource, Standing, Topic, TopicId};
use trilog_raft::controller::{Operation, ResourceKind};
use trilog_wire::v1::described_topic::Result as Described;
use trilog_wire::v1::topics_server::Topics;
use trilog_wire::v1::{
    AlterTopicRequest, AlterTopicResponse, ConfigEntry, CreateTopicRequest, CreateTopicResponse,
    DeleteTopicRequest, DeleteTopicResponse, DescribeTopicsRequest, DescribeTopicsResponse,
    DescribedTopic, Error, ErrorCode, ListTopicsRequest, ListTopicsResponse, NodeAddress,
    PartitionDescription, TopicDescription, TopicSummary,
};

use super::door::Caller;
use super::{Api, errors};

#[tonic::async_trait]
impl Topics for Api {
    async fn create(
        &self,
        request: Request<CreateTopicRequest>,
    ) -> Result<Response<CreateTopicResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        self.check_cluster(&caller, Operation::Create)
            .or_else(|_| self.check_topic(&caller, Operation::Create, &request.name))?;
        refuse_subjects(&request.subjects)?;
        if request.if_not_exists
            && let Ok(topic) = self.cluster.topic(&request.name)
        {
            let topic = Some(self.describe_topic(&topic, true));
            return Ok(Response::new(CreateTopicResponse {
                topic,
                created: false,
            }));
        }
        let command = Command::CreateTopic(CreateTopic {
            id: TopicId::random(&self.entropy).to_wire(),
            name: request.name.clone(),
            partitions: request.partitions,
            replication: request.replication,
            configs: settings(request.config),
            assignments: Vec::new(),
            kind: TopicKind::User.into(),
        });
        if request.validate_only {
            self.rehearse(&command)?;
            return Ok(Response::new(CreateTopicResponse {
                topic: None,
                created: false,
            }));
        }
        self.cluster
            .propose(&command)
            .await
            .map_err(|error| errors::propose(&error))?;
        let topic = self.topic(&request.name)?;
        let topic = Some(self.describe_topic(&topic, true));
        Ok(Response::new(CreateTopicResponse {
            topic,
            created: true,
        }))
    }

    async fn alter(
        &self,
        request: Request<AlterTopicRequest>,
    ) -> Result<Response<AlterTopicResponse>, Status> {
        let caller = Caller::of(&request);
        let request = request.into_inner();
        if request.partitions.is_some() || request.replication.is_some() {
            self.check_topic(&caller, Operation::Alter, &request.name)?;
        }
        self.check_topic(&caller, Operation::AlterConfigs, &request.name)?;
        if let Some(subjects) = &request.subjects {
            refuse_subjects(&subjects.filters)?;
        }
        let topic = self.topic(&request.name)?;
        let set: BTreeMap<_, _> = request.set_config.into_iter().collect();
        let set = set.iter().map(|(key, value)| ConfigChange::set(key, value));
        let reset = request
            .reset_config
            .iter()
            .map(|key| ConfigChange::delete(key));
        let command = Command::AlterTopic(AlterTopic {
            id: topic.id.to_wire(),
            configs: set.chain(reset).collect(),
            partitions: request.partitions.unwrap_or(0),
            assignments: Vec::new(),
            replication: request.replication.unwrap_or(0),
        });
        if request.validate_only {
            self.rehearse(&command)?;
        } else {
            self.cluster
                .propose(&command)
                .await
                .map_err(|error| errors::propose(&error))?;
        }
        let topic = self.topic(&request.name)?;
        let topic = Some(self.describe_topic(&topic, true));
        Ok(Response::new(AlterTopicResponse { topic }))
    }

    async fn delete(
        &self,
        request: Request<DeleteTopicRequest>,
    ) -> Result<Response<DeleteTopicResponse>, Status> {
        let caller = Caller::of(&request);
        let name = request.into_inner().name;
        self.check_cluster(&caller, Operation::Delete)
            .or_else(|_| self.check_topic(&caller, Operation::Delete, &name))?;
        let topic = self.topic(&name)?;
        let command = Command::DeleteTopic(DeleteTopic {
            id: topic.id.to_wire(),
        });
        self.cluster
            .propose(&command)
            .await
            .map_err(|error| errors::propose(&error))?;
        Ok(Response::new(DeleteTopicResponse {}))
    }

    async fn describe(
        &self,
        request: Request<DescribeTopicsRequest>,
    ) -> Result<Response<DescribeTopicsResponse>, Status> {
        let caller = Caller::of(&request);
        let may = |name: &str| self.may(&caller, Operation::Describe, ResourceKind::Topic, name);
        let request = request.into_inner();
        let map = self.cluster.map();
        let names = if request.names.is_empty() {
            let shown = map
                .topics_by_name()
                .filter(|t| request.include_internal || !internal(t))
                .filter(|topic| may(&topic.name));
            shown.map(|topic| topic.name.to_string()).collect()
        } else {
            request.names
        };
        let mut topics = Vec::with_capacity(names.len());
        for name in names {
            if let Err(error) = self.check_topic(&caller, Operation::Describe, &name) {
                let result = Some(Described::Error(error));
                topics.push(DescribedTopic { name, result });
                continue;
            }
            let result = match self.cluster.current_topic(&name).await {
                Ok(topic) => Described::Topic(self.describe_topic(&topic, request.with_config)),
                Err(error) => Described::Error(errors::lookup(&self.cluster, &error)),
            };
            topics.push(DescribedTopic {
                name,
                result: Some(result),
            });
        }
        let nodes = map
            .nodes()
            .filter(|node| node.is_member())
            .map(|node| NodeAddress {
                node: node.id.get(),
                address: self.cluster.grpc_address(node.id).unwrap_or_default(),
            });
        Ok(Response::new(DescribeTopicsResponse {
            topics,
            nodes: nodes.collect(),
        }))
    }

    async fn list(
        &self,
        request: Request<ListTopicsRequest>,
    ) -> Result<Response<ListTopicsResponse>, Status> {
        let caller = Caller::of(&request);
        let may = |name: &str| self.may(&caller, Operation::Describe, ResourceKind::Topic, name);
        let with_internal = request.into_inner().include_internal;
        let map = self.cluster.map();
        let shown = map
            .topics_by_name()
            .filter(|topic| with_internal || !internal(topic))
            .filter(|topic| may(&topic.name));
        let topics = shown.map(|topic| TopicSummary {
            name: topic.name.to_string(),
            id: topic.id.to_wire(),
            partitions: u32::try_from(topic.partitions.len()).unwrap_or(u32::MAX),
            replication: map.wanted_replication(topic),
            subjects: Vec::new(),
            internal: internal(topic),
        });
        Ok(Response::new(ListTopicsResponse {
            topics: topics.collect(),
        }))
    }
}

fn internal(topic: &Topic) -> bool {
    topic.kind == TopicKind::Internal
}

fn refuse_subjects(subjects: &[String]) -> Result<(), Error> {
    if subjects.is_empty() {
        return Ok(());
    }
    Err(Error::new(
        ErrorCode::Unsupported,
        "this version binds no subjects to topics yet",
    ))
}

fn settings(config: impl IntoIterator<Item = (String, String)>) -> Vec<Setting> {
    // In order of their keys, whatever order the message's map had.
    let config: BTreeMap<_, _> = config.into_iter().collect();
    config
        .into_iter()
        .map(|(key, value)| Setting { key, value })
        .collect()
}

impl Api {
    /// Whether the controller would carry the command out, as far as this node can tell.
    fn rehearse(&self, command: &Command) -> Result<(), Error> {
        let outcome = self
            .cluster
            .controller()
            .rehearse(command, self.clock.now());
        outcome
            .map(drop)
            .map_err(|error| errors::propose(&error.into()))
    }

    fn topic(&self, name: &str) -> Result<Arc<Topic>, Error> {
        self.cluster
            .topic(name)
            .map_err(|error| errors::lookup(&self.cluster, &error))
    }

    fn describe_topic(&self, topic: &Topic, with_config: bool) -> TopicDescription {
        let map = self.cluster.map();
        let partitions = topic.partitions.iter().zip(0..).map(|(partition, index)| {
            let nodes = |standing| -> Vec<u32> {
                partition
                    .targets(standing)
                    .map(|replica| replica.id.node().get())
                    .collect()
            };
            let replicas = nodes(Standing::Voter);
            let alive = |node: &&u32| self.cluster.is_alive(NodeId(**node));
            PartitionDescription {
                partition: index,
                leader: self.cluster.leader(partition.group).map_or(0, NodeId::get),
                term: self.cluster.term(partition.group).get(),
                live: replicas.iter().filter(alive).copied().collect(),
                replicas,
                learners: nodes(Standing::Learner),
                group: partition.group.get(),
            }
        });
        TopicDescription {
            name: topic.name.to_string(),
            id: topic.id.to_wire(),
            partitions: partitions.collect(),
            config: if with_config {
                config_of(&map, topic)
            } else {
                Vec::new()
            },
            subjects: Vec::new(),
            stream: topic.name.replace('.', "_"),
            internal: internal(topic),
            replication: map.wanted_replication(topic),
        }
    }
}

fn config_of(map: &ClusterMap, topic: &Topic) -> Vec<ConfigEntry> {
    let view = map.topic_config_view(topic);
    let entries = view.all().map(|entry| ConfigEntry {
        is_default: entry.source != ConfigSource::Topic,
        name: entry.key.name.to_owned(),
        value: entry.value.to_owned(),
        documentation: entry.key.doc.to_owned(),
    });
    entries.collect()
}
