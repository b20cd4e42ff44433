//! JoinGroup: a member joins, and waits until the others have.

use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::join_group_response::JoinGroupResponseMember;
use trilog_wire::kafka::messages::{JoinGroupRequest, JoinGroupResponse};
use trilog_wire::kafka::{ErrorCode, Request, StrBytes, Writer, decode};

use super::{Begun, text};
use crate::group::{GroupError, JoinRequest, Joined, Protocol};
use crate::kafka::conn::{Ended, Outcome};
use crate::kafka::errors;
use crate::kafka::session::Session;

/// From here on a member without id is given one before it joins.
const ID_REQUIRED_SINCE: i16 = 4;
/// From here on an answer says what it does not know with null.
const NULLS_SINCE: i16 = 7;
/// From here on a leader may be told not to assign.
const SKIPS_SINCE: i16 = 9;

pub(super) fn begin(session: &mut Session, request: Request) -> Begun {
    let asked: JoinGroupRequest = match decode(&request) {
        Ok(asked) => asked,
        Err(error) => return Begun::Done(Outcome::Close(error.into())),
    };
    if let Err(code) = session.check_group(Operation::Read, &asked.group_id) {
        let response = refused(code, asked.member_id.to_string(), request.version);
        session.count_error(&request, response.error_code);
        let answer = Writer::message(&request, &response);
        return Begun::Done(answer.map_err(Ended::from).into());
    }
    let join = translate(session, &request, asked);
    let groups = session.kafka.inner.groups.clone();
    let meter = session.meter(&request);
    let request = request.without_body();
    let waiting = async move {
        let member = join.member.clone();
        let joined = groups.join(join).await;
        let response = match joined {
            Ok(joined) => describe(joined, request.version),
            Err(error) => refuse(&error, member, request.version),
        };
        super::count_refusal(meter.as_ref(), response.error_code);
        Writer::message(&request, &response)
            .map_err(Ended::from)
            .into()
    };
    Begun::Alone(waiting.boxed())
}

/// The request in memory of its own: the message is not kept while the member waits.
fn translate(session: &Session, request: &Request, asked: JoinGroupRequest) -> JoinRequest {
    let instance = asked.group_instance_id.map(|id| id.to_string());
    let session_timeout = millis(asked.session_timeout_ms);
    let protocols = asked.protocols.into_iter().map(|protocol| Protocol {
        name: protocol.name.to_string(),
        metadata: Bytes::copy_from_slice(&protocol.metadata),
    });
    let client_id = request.client_id.as_ref().map(ToString::to_string);
    let host = session.peer.map(|peer| format!("/{}", peer.ip()));
    JoinRequest {
        group: asked.group_id.to_string(),
        member: asked.member_id.to_string(),
        require_known_member: request.version >= ID_REQUIRED_SINCE && instance.is_none(),
        instance,
        client_id: client_id.unwrap_or_default(),
        client_host: host.unwrap_or_default(),
        session_timeout,
        rebalance_timeout: match request.version {
            0 => session_timeout,
            _ => millis(asked.rebalance_timeout_ms),
        },
        protocol_type: asked.protocol_type.to_string(),
        protocols: protocols.collect(),
        can_skip_assignment: request.version >= SKIPS_SINCE,
    }
}

fn millis(millis: i32) -> Duration {
    Duration::from_millis(u64::try_from(millis).unwrap_or(0))
}

fn describe(joined: Joined, version: i16) -> JoinGroupResponse {
    let members = joined.members.into_iter().map(|member| {
        let instance = member.instance.filter(|_| version >= 5);
        JoinGroupResponseMember::default()
            .with_member_id(text(member.member))
            .with_group_instance_id(instance.map(text))
            .with_metadata(member.metadata)
    });
    JoinGroupResponse::default()
        .with_generation_id(joined.generation)
        .with_protocol_type((version >= NULLS_SINCE).then(|| text(joined.protocol_type)))
        .with_protocol_name(Some(text(joined.protocol)))
        .with_leader(text(joined.leader))
        .with_skip_assignment(joined.skip_assignment && version >= SKIPS_SINCE)
        .with_member_id(text(joined.member))
        .with_members(members.collect())
}

fn refuse(error: &GroupError, asked: String, version: i16) -> JoinGroupResponse {
    let member = match error {
        GroupError::MemberIdRequired { member } => member.clone(),
        _ => asked,
    };
    refused(errors::membership(error), member, version)
}

fn refused(code: ErrorCode, member: String, version: i16) -> JoinGroupResponse {
    let protocol = (version < NULLS_SINCE).then(StrBytes::default);
    JoinGroupResponse::default()
        .with_error_code(code.code())
        .with_generation_id(-1)
        .with_protocol_name(protocol)
        .with_member_id(text(member))
}
