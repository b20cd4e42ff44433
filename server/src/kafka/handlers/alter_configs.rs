//! IncrementalAlterConfigs, and AlterConfigs, which names everything that is to be set and takes
//! back what it does not name.

use std::collections::BTreeSet;

use trilog_raft::controller::Operation;
use trilog_raft::controller::commands::{
    AlterTopic, Command, ConfigChange, ConfigOp, SetClusterConfig,
};
use trilog_wire::kafka::messages::alter_configs_response::AlterConfigsResourceResponse;
use trilog_wire::kafka::messages::incremental_alter_configs_request::AlterableConfig;
use trilog_wire::kafka::messages::incremental_alter_configs_response::AlterConfigsResourceResponse as StepsResponse;
use trilog_wire::kafka::messages::{
    AlterConfigsRequest, AlterConfigsResponse, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse,
};
use trilog_wire::kafka::{Answer, ErrorCode, Request, StrBytes, Writer, decode};

use super::describe_configs::{BROKER, TOPIC, check_broker, unknown_kind};
use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::errors::Refusal;
use crate::kafka::session::Session;

/// What Kafka's tools take back after a move, whether or not they set it. Nothing here is so
/// called (moves are held to the cluster's own rate), so there is nothing to take back.
const THROTTLES: [&str; 5] = [
    "leader.replication.throttled.rate",
    "follower.replication.throttled.rate",
    "replica.alter.log.dirs.io.max.bytes.per.second",
    "leader.replication.throttled.replicas",
    "follower.replication.throttled.replicas",
];

/// Keys and their new values.
type Values = Vec<(String, Option<String>)>;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: AlterConfigsRequest = decode(request)?;
    let mut response = AlterConfigsResponse::default();
    for resource in asked.resources {
        let (kind, name) = (resource.resource_type, resource.resource_name);
        let configs = resource.configs.into_iter();
        let values = configs.map(|config| {
            let value = config.value.map(|value| value.to_string());
            (config.name.to_string(), value)
        });
        let outcome = replace(session, kind, &name, values.collect(), asked.validate_only).await;
        let (code, message) = answered(session, request, outcome);
        response.responses.push(
            AlterConfigsResourceResponse::default()
                .with_error_code(code)
                .with_error_message(message)
                .with_resource_type(kind)
                .with_resource_name(name),
        );
    }
    Ok(Writer::message(request, &response)?)
}

pub(super) async fn answer_steps(
    session: &mut Session,
    request: &Request,
) -> Result<Answer, Ended> {
    let asked: IncrementalAlterConfigsRequest = decode(request)?;
    let mut response = IncrementalAlterConfigsResponse::default();
    for resource in asked.resources {
        let (kind, name) = (resource.resource_type, resource.resource_name);
        let configs = resource.configs.into_iter();
        let steps = configs
            .filter(|config| !is_taken_back(config))
            .map(|config| {
                step(
                    &config.name,
                    config.config_operation,
                    config.value.as_deref(),
                )
            });
        let outcome = match steps.collect::<Result<Vec<_>, Refusal>>() {
            Ok(steps) => change(session, kind, &name, steps, asked.validate_only).await,
            Err(refusal) => Err(refusal),
        };
        let (code, message) = answered(session, request, outcome);
        response.responses.push(
            StepsResponse::default()
                .with_error_code(code)
                .with_error_message(message)
                .with_resource_type(kind)
                .with_resource_name(name),
        );
    }
    Ok(Writer::message(request, &response)?)
}

fn answered(
    session: &Session,
    request: &Request,
    outcome: Result<(), Refusal>,
) -> (i16, Option<StrBytes>) {
    match outcome {
        Ok(()) => (0, None),
        Err((code, message)) => {
            session.count_error(request, code.code());
            (code.code(), message.map(text))
        }
    }
}

fn is_taken_back(config: &AlterableConfig) -> bool {
    i32::from(config.config_operation) == i32::from(ConfigOp::Delete)
        && THROTTLES.contains(&&*config.name)
}

fn step(key: &str, op: i8, value: Option<&str>) -> Result<ConfigChange, Refusal> {
    let op = ConfigOp::try_from(i32::from(op)).map_err(|_| {
        (
            ErrorCode::InvalidRequest,
            Some(format!("{key}: unknown operation {op}")),
        )
    })?;
    let value = match (op, value) {
        (ConfigOp::Delete, _) => "",
        (ConfigOp::Set | ConfigOp::Append | ConfigOp::Subtract, Some(value)) => value,
        (ConfigOp::Set | ConfigOp::Append | ConfigOp::Subtract, None) => {
            let text = format!("{key} has no value");
            return Err((ErrorCode::InvalidConfig, Some(text)));
        }
    };
    Ok(ConfigChange {
        key: key.to_owned(),
        op: op.into(),
        value: value.to_owned(),
    })
}

/// Sets what is named, and resets what was set and is not.
async fn replace(
    session: &Session,
    kind: i8,
    name: &str,
    values: Values,
    only_validate: bool,
) -> Result<(), Refusal> {
    if kind != TOPIC {
        return Err(unknown_kind(kind));
    }
    check(session, kind, name)?;
    let topic = session.topic(name).await?;
    let named: BTreeSet<&str> = values.iter().map(|(key, _)| key.as_str()).collect();
    let set = topic.configs.keys();
    let gone = set.filter(|key| !named.contains(key.as_str()));
    let mut steps: Vec<ConfigChange> = gone.map(|key| ConfigChange::delete(key)).collect();
    for (key, value) in &values {
        steps.push(step(key, 0, value.as_deref())?);
    }
    change(session, kind, name, steps, only_validate).await
}

/// Whether the client may change the configuration.
fn check(session: &Session, kind: i8, name: &str) -> Result<(), Refusal> {
    let checked = match kind {
        TOPIC => session.check_topic(Operation::AlterConfigs, name),
        _ => session.check_cluster(Operation::AlterConfigs),
    };
    checked.map_err(|code| (code, None))
}

async fn change(
    session: &Session,
    kind: i8,
    name: &str,
    steps: Vec<ConfigChange>,
    only_validate: bool,
) -> Result<(), Refusal> {
    check(session, kind, name)?;
    let command = match kind {
        TOPIC => Command::AlterTopic(AlterTopic {
            id: session.topic(name).await?.id.to_wire(),
            configs: steps,
            partitions: 0,
            assignments: Vec::new(),
            replication: 0,
        }),
        BROKER => {
            check_broker(session, name)?;
            Command::SetClusterConfig(SetClusterConfig { configs: steps })
        }
        other => return Err(unknown_kind(other)),
    };
    session.change(&command, only_validate).await
}
