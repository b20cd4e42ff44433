//! LeaveGroup: a member leaves, or several are made to by whoever administers the group.

use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::leave_group_response::MemberResponse;
use trilog_wire::kafka::messages::{LeaveGroupRequest, LeaveGroupResponse};
use trilog_wire::kafka::{Answer, Request, Writer, decode};

use crate::group::Leaving;
use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;

/// From here on a request has many members, and each its outcome.
const MANY_SINCE: i16 = 3;

pub(super) fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: LeaveGroupRequest = decode(request)?;
    let leaving: Vec<Leaving> = if request.version < MANY_SINCE {
        vec![Leaving {
            member: asked.member_id.to_string(),
            instance: None,
        }]
    } else {
        let members = asked.members.iter();
        let leaving = members.map(|member| Leaving {
            member: member.member_id.to_string(),
            instance: member.group_instance_id.as_ref().map(ToString::to_string),
        });
        leaving.collect()
    };
    let allowed = session.check_group(Operation::Read, &asked.group_id);
    let left = allowed.and_then(|()| {
        let left = session.kafka.inner.groups.leave(&asked.group_id, &leaving);
        left.map_err(|error| errors::group(&error))
    });
    let mut response = LeaveGroupResponse::default();
    match left {
        Err(code) => response.error_code = code.code(),
        Ok(outcomes) => {
            let codes = outcomes.into_iter().map(|outcome| match outcome {
                Ok(()) => 0,
                Err(error) => errors::group(&error).code(),
            });
            if request.version < MANY_SINCE {
                response.error_code = codes.into_iter().next().unwrap_or(0);
            } else {
                let members = asked.members.into_iter().zip(codes);
                response.members.extend(members.map(|(member, code)| {
                    MemberResponse::default()
                        .with_member_id(member.member_id)
                        .with_group_instance_id(member.group_instance_id)
                        .with_error_code(code)
                }));
            }
        }
    }
    session.count_error(request, response.error_code);
    for member in &response.members {
        session.count_error(request, member.error_code);
    }
    Ok(Writer::message(request, &response)?)
}
