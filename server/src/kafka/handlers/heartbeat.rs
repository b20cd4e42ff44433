//! Heartbeat: a member is still there, and learns whether it has to join again.

use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::{HeartbeatRequest, HeartbeatResponse};
use trilog_wire::kafka::{Answer, Request, Writer, decode};

use crate::group::MemberRef;
use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;

pub(super) fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: HeartbeatRequest = decode(request)?;
    let allowed = session.check_group(Operation::Read, &asked.group_id);
    let member = MemberRef {
        group: asked.group_id.to_string(),
        generation: asked.generation_id,
        member: asked.member_id.to_string(),
        instance: asked.group_instance_id.map(|id| id.to_string()),
    };
    let heard = allowed.and_then(|()| {
        let heard = session.kafka.inner.groups.heartbeat(&member);
        heard.map_err(|error| errors::group(&error))
    });
    let code = heard.map_or_else(|code| code.code(), |()| 0);
    session.count_error(request, code);
    let response = HeartbeatResponse::default().with_error_code(code);
    Ok(Writer::message(request, &response)?)
}
