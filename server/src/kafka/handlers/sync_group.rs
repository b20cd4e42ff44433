//! SyncGroup: the leader of a group brings everybody's assignment, and each member gets its own.

use bytes::Bytes;
use futures::FutureExt;
use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::{SyncGroupRequest, SyncGroupResponse};
use trilog_wire::kafka::{Request, Writer, decode};

use super::{Begun, text};
use crate::group::{GroupError, MemberRef, SyncRequest};
use crate::kafka::conn::{Ended, Outcome};
use crate::kafka::errors;
use crate::kafka::session::Session;

/// From here on a member says what it takes its group's protocol to be.
const PROTOCOL_SINCE: i16 = 5;

pub(super) fn begin(session: &mut Session, request: Request) -> Begun {
    let asked: SyncGroupRequest = match decode(&request) {
        Ok(asked) => asked,
        Err(error) => return Begun::Done(Outcome::Close(error.into())),
    };
    if let Err(code) = session.check_group(Operation::Read, &asked.group_id) {
        session.count_error(&request, code.code());
        let response = SyncGroupResponse::default().with_error_code(code.code());
        let answer = Writer::message(&request, &response);
        return Begun::Done(answer.map_err(Ended::from).into());
    }
    let unsaid = asked.protocol_type.is_none() || asked.protocol_name.is_none();
    let unsaid = unsaid && request.version >= PROTOCOL_SINCE;
    let sync = translate(asked);
    let groups = session.kafka.inner.groups.clone();
    let meter = session.meter(&request);
    let request = request.without_body();
    let waiting = async move {
        let synced = if unsaid {
            Err(GroupError::InconsistentProtocol)
        } else {
            groups.sync(sync).await
        };
        let named = request.version >= PROTOCOL_SINCE;
        let response = match synced {
            Ok(synced) => SyncGroupResponse::default()
                .with_protocol_type(named.then(|| text(synced.protocol_type)))
                .with_protocol_name(named.then(|| text(synced.protocol)))
                .with_assignment(synced.assignment),
            Err(error) => {
                SyncGroupResponse::default().with_error_code(errors::membership(&error).code())
            }
        };
        super::count_refusal(meter.as_ref(), response.error_code);
        Writer::message(&request, &response)
            .map_err(Ended::from)
            .into()
    };
    Begun::Alone(waiting.boxed())
}

/// The request in memory of its own: the message is not kept while the member waits.
fn translate(asked: SyncGroupRequest) -> SyncRequest {
    let assignments = asked.assignments.into_iter().map(|assignment| {
        let bytes = Bytes::copy_from_slice(&assignment.assignment);
        (assignment.member_id.to_string(), bytes)
    });
    SyncRequest {
        member: MemberRef {
            group: asked.group_id.to_string(),
            generation: asked.generation_id,
            member: asked.member_id.to_string(),
            instance: asked.group_instance_id.map(|id| id.to_string()),
        },
        protocol_type: asked.protocol_type.map(|name| name.to_string()),
        protocol: asked.protocol_name.map(|name| name.to_string()),
        assignments: assignments.collect(),
    }
}
