//! DescribeConfigs: every key of a topic, or of the cluster as brokers show it, with its value,
//! its default and where the value comes from.

use trilog_raft::controller::{ConfigKey, ConfigSource, ConfigType, ConfigValue, Operation};
use trilog_wire::kafka::messages::describe_configs_request::DescribeConfigsResource;
use trilog_wire::kafka::messages::describe_configs_response::{
    DescribeConfigsResourceResult, DescribeConfigsResult, DescribeConfigsSynonym,
};
use trilog_wire::kafka::messages::{DescribeConfigsRequest, DescribeConfigsResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::errors::{self, Refusal};
use crate::kafka::session::Session;

/// Kinds of resources.
pub(super) const TOPIC: i8 = 2;
pub(super) const BROKER: i8 = 4;

pub(super) fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: DescribeConfigsRequest = decode(request)?;
    let with = Detail {
        synonyms: asked.include_synonyms,
        documentation: asked.include_documentation,
        types: request.version >= 3,
    };
    let mut response = DescribeConfigsResponse::default();
    for resource in &asked.resources {
        let mut result = DescribeConfigsResult::default()
            .with_resource_type(resource.resource_type)
            .with_resource_name(resource.resource_name.clone());
        match describe(session, resource, with) {
            Ok(configs) => result.configs = configs,
            Err((code, message)) => {
                session.count_error(request, code.code());
                result.error_code = code.code();
                result.error_message = message.map(text);
            }
        }
        response.results.push(result);
    }
    Ok(Writer::message(request, &response)?)
}

/// What is told of each key beyond its value.
#[derive(Clone, Copy)]
struct Detail {
    synonyms: bool,
    documentation: bool,
    types: bool,
}

fn describe(
    session: &Session,
    resource: &DescribeConfigsResource,
    with: Detail,
) -> Result<Vec<DescribeConfigsResourceResult>, Refusal> {
    let map = session.kafka.inner.cluster.map();
    let wanted = |name: &str| {
        let keys = resource.configuration_keys.as_ref();
        keys.is_none_or(|keys| keys.is_empty() || keys.iter().any(|key| &**key == name))
    };
    match resource.resource_type {
        TOPIC => {
            let checked = session.check_topic(Operation::DescribeConfigs, &resource.resource_name);
            checked.map_err(|code| (code, None))?;
            let topic = session.kafka.inner.cluster.topic(&resource.resource_name);
            let topic = topic.map_err(|error| (errors::lookup(&error), None))?;
            let view = map.topic_config_view(&topic);
            let entries = view.all().filter(|entry| wanted(entry.key.name));
            Ok(entries.map(|entry| result(&entry, with)).collect())
        }
        BROKER => {
            let checked = session.check_cluster(Operation::DescribeConfigs);
            checked.map_err(|code| (code, None))?;
            check_broker(session, &resource.resource_name)?;
            let view = map.config();
            let entries = view.all().filter(|entry| wanted(entry.key.name));
            Ok(entries.map(|entry| result(&entry, with)).collect())
        }
        other => Err(unknown_kind(other)),
    }
}

pub(super) fn unknown_kind(kind: i8) -> Refusal {
    let text = format!("resources of type {kind} have no configuration here");
    (ErrorCode::InvalidRequest, Some(text))
}

/// A node by its number, or the default of all by an empty name: every node shows the same.
pub(super) fn check_broker(session: &Session, name: &str) -> Result<(), Refusal> {
    let known = match name.parse::<u32>() {
        Ok(node) => {
            let node = trilog_model::NodeId(node);
            session.kafka.inner.cluster.map().node(node).is_some()
        }
        Err(_) => name.is_empty(),
    };
    if known {
        return Ok(());
    }
    let text = format!("there is no node {name:?}");
    Err((ErrorCode::InvalidRequest, Some(text)))
}

fn result(entry: &ConfigValue<'_>, with: Detail) -> DescribeConfigsResourceResult {
    let mut result = DescribeConfigsResourceResult::default()
        .with_name(text(entry.key.name))
        .with_value(Some(text(entry.value)))
        .with_config_source(source_code(entry.source));
    if with.synonyms {
        result.synonyms = synonyms(entry);
    }
    if with.types {
        result.config_type = type_code(entry.key);
        if with.documentation {
            result.documentation = Some(text(entry.key.doc));
        }
    }
    result
}

/// The value in force first, then the default behind it.
fn synonyms(entry: &ConfigValue<'_>) -> Vec<DescribeConfigsSynonym> {
    let cluster_name = entry.key.cluster_name.unwrap_or(entry.key.name);
    let mut synonyms = Vec::new();
    if entry.source != ConfigSource::Default {
        let name = match entry.source {
            ConfigSource::Cluster => cluster_name,
            ConfigSource::Topic | ConfigSource::Default => entry.key.name,
        };
        synonyms.push(
            DescribeConfigsSynonym::default()
                .with_name(text(name))
                .with_value(Some(text(entry.value)))
                .with_source(source_code(entry.source)),
        );
    }
    synonyms.push(
        DescribeConfigsSynonym::default()
            .with_name(text(cluster_name))
            .with_value(Some(text(entry.key.default)))
            .with_source(source_code(ConfigSource::Default)),
    );
    synonyms
}

/// Kafka's number of a source: set on the topic 1, for all brokers 3, nowhere 5.
pub(super) fn source_code(source: ConfigSource) -> i8 {
    match source {
        ConfigSource::Topic => 1,
        ConfigSource::Cluster => 3,
        ConfigSource::Default => 5,
    }
}

/// Kafka's number of a type.
fn type_code(key: &ConfigKey) -> i8 {
    match key.kind {
        ConfigType::Bool => 1,
        ConfigType::Choice(_) | ConfigType::Text => 2,
        ConfigType::Int { max, .. } if max <= i64::from(i32::MAX) => 3,
        ConfigType::Int { .. } => 5,
        ConfigType::Float { .. } => 6,
        ConfigType::List(_) => 7,
    }
}
