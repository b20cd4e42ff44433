//! ListConfigResources (KIP-1142): what can be configured, by name. There are no settings of loggers,
//! of client metrics nor of groups, so none of those is listed.

use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::list_config_resources_response::ConfigResource;
use trilog_wire::kafka::messages::{ListConfigResourcesRequest, ListConfigResourcesResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use super::describe_configs::{BROKER, TOPIC};
use super::metadata::live_brokers;
use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::session::Session;

/// Kinds of resources that there are besides, as Kafka numbers them.
const BROKER_LOGGER: i8 = 8;
const CLIENT_METRICS: i8 = 16;
const GROUP: i8 = 32;
const ALL: [i8; 5] = [TOPIC, BROKER, BROKER_LOGGER, CLIENT_METRICS, GROUP];
/// The first version that is about more than client metrics.
const KINDS_SINCE: i16 = 1;

pub(super) fn answer(session: &Session, request: &Request) -> Result<Answer, Ended> {
    let asked: ListConfigResourcesRequest = decode(request)?;
    let kinds = match request.version {
        KINDS_SINCE.. if asked.resource_types.is_empty() => ALL.to_vec(),
        KINDS_SINCE.. => asked.resource_types,
        _ => vec![CLIENT_METRICS],
    };
    let outcome = session
        .check_cluster(Operation::DescribeConfigs)
        .and_then(|()| listed(session, &kinds));
    let mut response = ListConfigResourcesResponse::default();
    match outcome {
        Ok(resources) => response.config_resources = resources,
        Err(code) => {
            session.count_error(request, code.code());
            response.error_code = code.code();
        }
    }
    Ok(Writer::message(request, &response)?)
}

fn listed(session: &Session, kinds: &[i8]) -> Result<Vec<ConfigResource>, ErrorCode> {
    if kinds.iter().any(|kind| !ALL.contains(kind)) {
        return Err(ErrorCode::UnsupportedVersion);
    }
    let resource = |kind, name: String| {
        ConfigResource::default()
            .with_resource_type(kind)
            .with_resource_name(text(name))
    };
    let map = session.kafka.inner.cluster.map();
    let mut resources = Vec::new();
    if kinds.contains(&TOPIC) {
        let topics = map.topics_by_name();
        resources.extend(topics.map(|topic| resource(TOPIC, topic.name.to_string())));
    }
    if kinds.contains(&BROKER) {
        let nodes = live_brokers(session).into_iter();
        resources.extend(nodes.map(|broker| resource(BROKER, broker.node.get().to_string())));
    }
    Ok(resources)
}
