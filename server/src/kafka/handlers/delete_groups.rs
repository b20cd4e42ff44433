//! DeleteGroups: groups without members, and their offsets.

use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::delete_groups_response::DeletableGroupResult;
use trilog_wire::kafka::messages::{DeleteGroupsRequest, DeleteGroupsResponse};
use trilog_wire::kafka::{Answer, Request, Writer, decode};

use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: DeleteGroupsRequest = decode(request)?;
    let mut response = DeleteGroupsResponse::default();
    for id in asked.groups_names {
        let code = match session.check_group(Operation::Delete, &id) {
            Ok(()) => {
                let deleted = session.kafka.inner.groups.delete(&id).await;
                deleted.map_or_else(|error| errors::group(&error).code(), |()| 0)
            }
            Err(code) => code.code(),
        };
        session.count_error(request, code);
        let result = DeletableGroupResult::default().with_group_id(id);
        response.results.push(result.with_error_code(code));
    }
    Ok(Writer::message(request, &response)?)
}
