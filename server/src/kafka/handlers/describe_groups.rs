//! DescribeGroups: the state of groups, and who their members are.

use std::collections::BTreeSet;

use trilog_raft::controller::{Operation, ResourceKind};
use trilog_wire::kafka::messages::describe_groups_response::{
    DescribedGroup, DescribedGroupMember,
};
use trilog_wire::kafka::messages::{DescribeGroupsRequest, DescribeGroupsResponse, GroupId};
use trilog_wire::kafka::{Answer, Request, StrBytes, Writer, decode};

use super::{AnswerRoom, text};
use crate::group::{DescribedMember, Description, GroupError};
use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;

/// From here on a group that is not there is an error; before, it is dead.
const UNKNOWN_SINCE: i16 = 6;
const INSTANCE_SINCE: i16 = 4;

/// What the client may do to a group.
pub(super) fn group_operations(session: &Session, id: &str) -> i32 {
    let map = session.kafka.inner.cluster.map();
    session.rights(&map).operations(ResourceKind::Group, id)
}

pub(super) fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: DescribeGroupsRequest = decode(request)?;
    let mut response = DescribeGroupsResponse::default();
    // Each once: a short request would have a very long answer otherwise.
    let (mut seen, mut room) = (BTreeSet::new(), AnswerRoom::default());
    for id in asked.groups {
        if !seen.insert(id.clone()) {
            continue;
        }
        let mut group = if room.is_used_up() {
            refuse(&GroupError::Loading, request.version)
        } else {
            describe(session, &id, request.version)
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

fn describe(session: &Session, id: &GroupId, version: i16) -> DescribedGroup {
    if let Err(code) = session.check_group(Operation::Describe, id) {
        return DescribedGroup::default().with_error_code(code.code());
    }
    match session.kafka.inner.groups.describe(id) {
        Ok(description) => described(description, version),
        Err(GroupError::UnknownGroup) if version < UNKNOWN_SINCE => {
            DescribedGroup::default().with_group_state(StrBytes::from_static_str("Dead"))
        }
        Err(error) => refuse(&error, version),
    }
}

fn refuse(error: &GroupError, version: i16) -> DescribedGroup {
    let message = (version >= UNKNOWN_SINCE).then(|| text(error.to_string()));
    DescribedGroup::default()
        .with_error_code(errors::group(error).code())
        .with_error_message(message)
}

fn described(group: Description, version: i16) -> DescribedGroup {
    let members = group.members.into_iter();
    let members = members.map(|member| described_member(member, version));
    DescribedGroup::default()
        .with_group_state(StrBytes::from_static_str(group.state.as_str()))
        .with_protocol_type(text(group.protocol_type))
        .with_protocol_data(text(group.protocol))
        .with_members(members.collect())
}

fn described_member(member: DescribedMember, version: i16) -> DescribedGroupMember {
    let instance = member.instance.filter(|_| version >= INSTANCE_SINCE);
    DescribedGroupMember::default()
        .with_member_id(text(member.member))
        .with_group_instance_id(instance.map(text))
        .with_client_id(text(member.client_id))
        .with_client_host(text(member.client_host))
        .with_member_metadata(member.metadata)
        .with_member_assignment(member.assignment)
}
