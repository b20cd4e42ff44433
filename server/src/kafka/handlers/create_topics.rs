//! CreateTopics: one result for each topic asked for, whether or not the others came into being.

use std::collections::BTreeMap;

use trilog_raft::controller::commands::{Assignment, Command, ConfigEntry, CreateTopic, TopicKind};
use trilog_raft::controller::{Operation, Topic, TopicId};
use trilog_wire::kafka::messages::create_topics_request::CreatableTopic;
use trilog_wire::kafka::messages::create_topics_response::{
    CreatableTopicConfigs, CreatableTopicResult,
};
use trilog_wire::kafka::messages::{CreateTopicsRequest, CreateTopicsResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Uuid, Writer, decode};

use super::describe_configs::source_code;
use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::errors::{self, Refusal};
use crate::kafka::session::Session;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: CreateTopicsRequest = decode(request)?;
    let mut names = BTreeMap::new();
    for topic in &asked.topics {
        *names.entry(topic.name.clone()).or_insert(0) += 1;
    }
    let mut response = CreateTopicsResponse::default();
    for topic in &asked.topics {
        let outcome = match (names.get(&topic.name), forbidden(session, &topic.name)) {
            (_, Some(code)) => Err((code, Some("Authorization failed.".to_owned()))),
            (Some(1), None) => create(session, topic, asked.validate_only).await,
            (_, None) => Err((
                ErrorCode::InvalidRequest,
                Some("the topic is asked for more than once".to_owned()),
            )),
        };
        let result = match outcome {
            Ok(()) => created(session, topic, request.version),
            Err((code, message)) => {
                session.count_error(request, code.code());
                CreatableTopicResult::default()
                    .with_error_code(code.code())
                    .with_error_message(message.map(text))
                    .with_num_partitions(-1)
                    .with_replication_factor(-1)
            }
        };
        response.topics.push(result.with_name(topic.name.clone()));
    }
    Ok(Writer::message(request, &response)?)
}

/// Whoever may create topics may create this one; so may whoever may create just this one.
fn forbidden(session: &Session, topic: &str) -> Option<ErrorCode> {
    let allowed = session
        .check_cluster(Operation::Create)
        .or_else(|_| session.check_topic(Operation::Create, topic));
    allowed.err()
}

async fn create(
    session: &Session,
    topic: &CreatableTopic,
    only_validate: bool,
) -> Result<(), Refusal> {
    let assignments = assignments(topic)?;
    if !assignments.is_empty() && (topic.num_partitions, topic.replication_factor) != (-1, -1) {
        let text = "beside an assignment, partitions and replication factor must be -1";
        return Err((ErrorCode::InvalidRequest, Some(text.to_owned())));
    }
    // -1 is the cluster's default, as zero is here; with an assignment neither is given.
    let number = |number: i32, code| match number {
        -1 => Ok(0),
        number => u32::try_from(number)
            .ok()
            .filter(|number| *number > 0)
            .ok_or((code, None)),
    };
    let command = Command::CreateTopic(CreateTopic {
        id: TopicId::random(&session.kafka.inner.entropy).to_wire(),
        name: topic.name.to_string(),
        partitions: number(topic.num_partitions, ErrorCode::InvalidPartitions)?,
        replication: number(
            i32::from(topic.replication_factor),
            ErrorCode::InvalidReplicationFactor,
        )?,
        configs: configs(topic)?,
        assignments,
        kind: TopicKind::User.into(),
    });
    let made = session.change(&command, only_validate).await;
    made.map_err(errors::assignment)
}

fn configs(topic: &CreatableTopic) -> Result<Vec<ConfigEntry>, Refusal> {
    let configs = topic.configs.iter().map(|config| {
        let value = config.value.as_ref().ok_or_else(|| {
            let text = format!("{} has no value", &*config.name);
            (ErrorCode::InvalidConfig, Some(text))
        })?;
        Ok(ConfigEntry {
            key: config.name.to_string(),
            value: value.to_string(),
        })
    });
    configs.collect()
}

/// By partition, which must be numbered from zero without gaps.
fn assignments(topic: &CreatableTopic) -> Result<Vec<Assignment>, Refusal> {
    let wrong = |text: &str| (ErrorCode::InvalidReplicaAssignment, Some(text.to_owned()));
    let mut by_index = BTreeMap::new();
    for assignment in &topic.assignments {
        let nodes = assignment.broker_ids.iter();
        let nodes: Result<Vec<u32>, _> = nodes.map(|node| u32::try_from(node.0)).collect();
        let nodes = nodes.map_err(|_| wrong("a node's number is negative"))?;
        by_index.insert(assignment.partition_index, Assignment { nodes });
    }
    let gapless = by_index.keys().copied().eq((0..).take(by_index.len()));
    if !gapless || by_index.len() != topic.assignments.len() {
        return Err(wrong("partitions must be numbered from zero, each once"));
    }
    Ok(by_index.into_values().collect())
}

fn created(session: &Session, topic: &CreatableTopic, version: i16) -> CreatableTopicResult {
    let result = CreatableTopicResult::default();
    let map = session.kafka.inner.cluster.map();
    let Some(made) = map.topic_named(&topic.name).filter(|_| version >= 5) else {
        return result;
    };
    if let Err(code) = session.check_topic(Operation::DescribeConfigs, &topic.name) {
        let result = result
            .with_topic_config_error_code(code.code())
            .with_num_partitions(-1)
            .with_replication_factor(-1)
            .with_configs(None);
        return with_id(result, made, version);
    }
    let view = map.topic_config_view(made);
    let configs = view.all().map(|entry| {
        CreatableTopicConfigs::default()
            .with_name(text(entry.key.name))
            .with_value(Some(text(entry.value)))
            .with_config_source(source_code(entry.source))
    });
    let result = result
        .with_num_partitions(i32::try_from(made.partitions.len()).unwrap_or(i32::MAX))
        .with_replication_factor(i16::try_from(map.wanted_replication(made)).unwrap_or(i16::MAX))
        .with_configs(Some(configs.collect()));
    with_id(result, made, version)
}

fn with_id(result: CreatableTopicResult, made: &Topic, version: i16) -> CreatableTopicResult {
    if version >= 7 {
        return result.with_topic_id(Uuid::from_bytes(*made.id.as_bytes()));
    }
    result
}
