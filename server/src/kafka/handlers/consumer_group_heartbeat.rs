//! ConsumerGroupHeartbeat: a consumer says what it wants and has, and is told what to read
//! (KIP-848).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use trilog_raft::controller::{Operation, TopicId};
use trilog_wire::kafka::messages::consumer_group_heartbeat_response::{
    Assignment, TopicPartitions,
};
use trilog_wire::kafka::messages::{ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, StrBytes, Writer, decode};
use uuid::Uuid;

use super::text;
use crate::group::{ConsumerBeat, Given, GroupError};
use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: ConsumerGroupHeartbeatRequest = decode(request)?;
    let (member, epoch) = (asked.member_id.clone(), asked.member_epoch);
    if let Err(code) = check(session, &asked) {
        session.count_error(request, code.code());
        let response = ConsumerGroupHeartbeatResponse::default().with_error_code(code.code());
        return Ok(Writer::message(request, &response)?);
    }
    let told = match translate(session, request, asked) {
        Ok(beat) => session.kafka.inner.groups.consumer_heartbeat(beat).await,
        Err(error) => Err(error),
    };
    let response = match told {
        Ok(given) => describe(given),
        Err(error) => ConsumerGroupHeartbeatResponse::default()
            .with_error_code(code(&error).code())
            .with_error_message(Some(text(error.to_string())))
            .with_member_id(Some(member))
            .with_member_epoch(epoch),
    };
    session.count_error(request, response.error_code);
    Ok(Writer::message(request, &response)?)
}

/// Whether the client may be a member, and know of what it subscribes to.
fn check(session: &Session, asked: &ConsumerGroupHeartbeatRequest) -> Result<(), ErrorCode> {
    session.check_group(Operation::Read, &asked.group_id)?;
    let mut topics = asked.subscribed_topic_names.iter().flatten();
    topics.try_for_each(|topic| session.check_topic(Operation::Describe, topic))
}

/// A group whose members assign themselves is none of these.
fn code(error: &GroupError) -> ErrorCode {
    match error {
        GroupError::InconsistentProtocol => ErrorCode::GroupIdNotFound,
        error => errors::membership(error),
    }
}

fn translate(
    session: &Session,
    request: &Request,
    asked: ConsumerGroupHeartbeatRequest,
) -> Result<ConsumerBeat, GroupError> {
    let owned_text = |text: StrBytes| text.to_string();
    let mut owned = None;
    if let Some(topics) = asked.topic_partitions {
        let mut parts = BTreeSet::new();
        for topic in topics {
            let id = TopicId::from_wire(topic.topic_id.as_bytes());
            let id = id.map_err(|_| GroupError::InvalidRequest("a topic id is zero"))?;
            let indexes = topic.partitions.into_iter();
            let indexes = indexes.filter_map(|index| u32::try_from(index).ok());
            parts.extend(indexes.map(|index| (id, index)));
        }
        owned = Some(parts);
    }
    let topics = asked.subscribed_topic_names;
    let client_id = request.client_id.as_ref().map(ToString::to_string);
    let host = session.peer.map(|peer| format!("/{}", peer.ip()));
    Ok(ConsumerBeat {
        group: asked.group_id.to_string(),
        member: asked.member_id.to_string(),
        epoch: asked.member_epoch,
        instance: asked.instance_id.map(owned_text),
        rack: asked.rack_id.map(owned_text),
        client_id: client_id.unwrap_or_default(),
        client_host: host.unwrap_or_default(),
        viewer: session.login.identity().cloned(),
        rebalance_timeout: u64::try_from(asked.rebalance_timeout_ms)
            .ok()
            .map(Duration::from_millis),
        topics: topics.map(|topics| topics.iter().map(|name| name.0.to_string()).collect()),
        regex: asked.subscribed_topic_regex.map(owned_text),
        assignor: asked.server_assignor.map(owned_text),
        owned,
    })
}

fn describe(given: Given) -> ConsumerGroupHeartbeatResponse {
    let heartbeat = i32::try_from(given.heartbeat.as_millis()).unwrap_or(i32::MAX);
    let assignment = given.assigned.map(|parts| {
        let topics = by_topic(parts).into_iter().map(|(topic, partitions)| {
            TopicPartitions::default()
                .with_topic_id(topic)
                .with_partitions(partitions)
        });
        Assignment::default().with_topic_partitions(topics.collect())
    });
    ConsumerGroupHeartbeatResponse::default()
        .with_member_id(Some(text(given.member)))
        .with_member_epoch(given.epoch)
        .with_heartbeat_interval_ms(heartbeat)
        .with_assignment(assignment)
}

/// Partitions, each topic once.
pub(super) fn by_topic(parts: Vec<(TopicId, u32)>) -> BTreeMap<Uuid, Vec<i32>> {
    let mut topics: BTreeMap<Uuid, Vec<i32>> = BTreeMap::new();
    for (topic, index) in parts {
        let index = i32::try_from(index).unwrap_or(i32::MAX);
        topics
            .entry(Uuid::from_bytes(*topic.as_bytes()))
            .or_default()
            .push(index);
    }
    topics
}
