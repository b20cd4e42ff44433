//! ConsumerGroupDescribe: groups in which the coordinator assigns (KIP-848). Of others, and of one
//! that has no members, clients ask with DescribeGroups.

use std::collections::BTreeSet;

use trilog_raft::controller::{Operation, TopicId};
use trilog_wire::kafka::messages::consumer_group_describe_response::{
    Assignment, DescribedGroup, Member, TopicPartitions,
};
use trilog_wire::kafka::messages::{
    ConsumerGroupDescribeRequest, ConsumerGroupDescribeResponse, TopicName,
};
use trilog_wire::kafka::{Answer, ErrorCode, Request, StrBytes, Writer, decode};

use super::consumer_group_heartbeat::by_topic;
use super::describe_groups::group_operations;
use super::{AnswerRoom, text};
use crate::group::{ConsumerDescription, DescribedConsumer, GroupError};
use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;

const TYPE_SINCE: i16 = 1;
/// A member that speaks this protocol.
const CONSUMER: i8 = 1;
/// Where the type is not told.
const UNKNOWN: i8 = -1;

pub(super) fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: ConsumerGroupDescribeRequest = decode(request)?;
    let mut response = ConsumerGroupDescribeResponse::default();
    // Each once: a short request would have a very long answer otherwise.
    let (mut seen, mut room) = (BTreeSet::new(), AnswerRoom::default());
    for id in asked.group_ids {
        if !seen.insert(id.clone()) {
            continue;
        }
        let described = if room.is_used_up() {
            Ok(Err(GroupError::Loading))
        } else {
            described(session, &id)
        };
        let mut group = match described {
            Ok(Ok(description)) => describe(session, description, request.version),
            Err(code) => DescribedGroup::default().with_error_code(code.code()),
            Ok(Err(error)) => DescribedGroup::default()
                .with_error_code(errors::group(&error).code())
                .with_error_message(Some(text(error.to_string()))),
        };
        room.take(&group, request.version);
        session.count_error(request, group.error_code);
        if asked.include_authorized_operations && group.error_code == 0 {
            group.authorized_operations = group_operations(session, &id);
        }
        response.groups.push(group.with_group_id(id));
    }
    Ok(Writer::message(request, &response)?)
}

/// The group, if the client may see it and whatever its members read.
fn described(
    session: &Session,
    id: &str,
) -> Result<Result<ConsumerDescription, GroupError>, ErrorCode> {
    session.check_group(Operation::Describe, id)?;
    let described = session.kafka.inner.groups.describe_consumers(id);
    if let Ok(group) = &described {
        let mut topics = group.members.iter().flat_map(|member| &member.topics);
        topics.try_for_each(|topic| session.check_topic(Operation::Describe, topic))?;
    }
    Ok(described)
}

fn describe(session: &Session, group: ConsumerDescription, version: i16) -> DescribedGroup {
    let members = group.members.into_iter();
    let members = members.map(|member| describe_member(session, member, version));
    DescribedGroup::default()
        .with_group_state(StrBytes::from_static_str(group.state.as_str()))
        .with_group_epoch(group.epoch)
        .with_assignment_epoch(group.epoch)
        .with_assignor_name(StrBytes::from_static_str(group.assignor))
        .with_members(members.collect())
}

fn describe_member(session: &Session, member: DescribedConsumer, version: i16) -> Member {
    let topics = member
        .topics
        .into_iter()
        .map(|topic| TopicName(text(topic)));
    Member::default()
        .with_member_id(text(member.member))
        .with_instance_id(member.instance.map(text))
        .with_rack_id(member.rack.map(text))
        .with_member_epoch(member.epoch)
        .with_client_id(text(member.client_id))
        .with_client_host(text(member.client_host))
        .with_subscribed_topic_names(topics.collect())
        .with_subscribed_topic_regex(member.regex.map(text))
        .with_assignment(assignment(session, member.assigned))
        .with_target_assignment(assignment(session, member.target))
        .with_member_type(if version >= TYPE_SINCE {
            CONSUMER
        } else {
            UNKNOWN
        })
}

fn assignment(session: &Session, parts: Vec<(TopicId, u32)>) -> Assignment {
    let map = session.kafka.inner.cluster.map();
    let topics = by_topic(parts).into_iter().filter_map(|(id, partitions)| {
        // One that was deleted a moment ago has no name any more.
        let topic = map.topic(TopicId::from_wire(id.as_bytes()).ok()?)?;
        let topic = TopicPartitions::default()
            .with_topic_id(id)
            .with_topic_name(TopicName(text(topic.name.to_string())))
            .with_partitions(partitions);
        Some(topic)
    });
    Assignment::default().with_topic_partitions(topics.collect())
}
