//! ListGroups: the groups that this node coordinates; a client asks every node.

use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::list_groups_response::ListedGroup;
use trilog_wire::kafka::messages::{GroupId, ListGroupsRequest, ListGroupsResponse};
use trilog_wire::kafka::{Answer, Request, StrBytes, Writer, decode};

use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;

const STATE_SINCE: i16 = 4;
const TYPE_SINCE: i16 = 5;

pub(super) fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: ListGroupsRequest = decode(request)?;
    let mut response = ListGroupsResponse::default();
    match session.kafka.inner.groups.list() {
        Err(error) => response.error_code = errors::group(&error).code(),
        Ok(groups) => {
            let all = session.check_cluster(Operation::Describe).is_ok();
            let may = |group: &str| session.check_group(Operation::Describe, group).is_ok();
            let listed = groups.into_iter().filter(|group| {
                (all || may(&group.group))
                    && is_wanted(&asked.states_filter, group.state.as_str())
                    && is_wanted(&asked.types_filter, group.kind.as_str())
            });
            response.groups.extend(listed.map(|group| {
                let mut listed = ListedGroup::default()
                    .with_group_id(GroupId(text(group.group)))
                    .with_protocol_type(text(group.protocol_type));
                if request.version >= STATE_SINCE {
                    listed.group_state = StrBytes::from_static_str(group.state.as_str());
                }
                if request.version >= TYPE_SINCE {
                    listed.group_type = StrBytes::from_static_str(group.kind.as_str());
                }
                listed
            }));
        }
    }
    session.count_error(request, response.error_code);
    Ok(Writer::message(request, &response)?)
}

/// Whether a filter lets a word pass; an empty one lets all.
fn is_wanted(filter: &[StrBytes], word: &str) -> bool {
    filter.is_empty()
        || filter
            .iter()
            .any(|wanted| wanted.eq_ignore_ascii_case(word))
}
