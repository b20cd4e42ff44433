//! DeleteTopics, by name or, from version 6 on, by id.

use trilog_raft::controller::commands::{Command, DeleteTopic};
use trilog_raft::controller::{Operation, Topic, TopicId};
use trilog_wire::kafka::messages::delete_topics_request::DeleteTopicState;
use trilog_wire::kafka::messages::delete_topics_response::DeletableTopicResult;
use trilog_wire::kafka::messages::{DeleteTopicsRequest, DeleteTopicsResponse, TopicName};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Uuid, Writer, decode};

use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::errors::Refusal;
use crate::kafka::session::Session;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: DeleteTopicsRequest = decode(request)?;
    let named = asked.topic_names.into_iter();
    let named = named.map(|name| DeleteTopicState::default().with_name(Some(name)));
    let mut response = DeleteTopicsResponse::default();
    for wanted in asked.topics.into_iter().chain(named) {
        let mut result = DeletableTopicResult::default()
            .with_name(wanted.name.clone())
            .with_topic_id(wanted.topic_id);
        match delete(session, &wanted).await {
            Ok(topic) => {
                result.name = Some(TopicName(text(&*topic.name)));
                if request.version >= 6 {
                    result.topic_id = Uuid::from_bytes(*topic.id.as_bytes());
                }
            }
            Err((code, message)) => {
                session.count_error(request, code.code());
                result.error_code = code.code();
                if request.version >= 5 {
                    result.error_message = message.map(text);
                }
            }
        }
        response.responses.push(result);
    }
    Ok(Writer::message(request, &response)?)
}

/// Whoever may delete topics may delete this one; so may whoever may delete just this one.
fn may_delete(session: &Session, topic: &str) -> Result<(), Refusal> {
    let allowed = session
        .check_cluster(Operation::Delete)
        .or_else(|_| session.check_topic(Operation::Delete, topic));
    allowed.map_err(|code| (code, None))
}

async fn delete(
    session: &Session,
    wanted: &DeleteTopicState,
) -> Result<std::sync::Arc<Topic>, Refusal> {
    let topic = match (&wanted.name, wanted.topic_id.is_nil()) {
        (Some(name), true) => {
            may_delete(session, name)?;
            session.topic(name).await?
        }
        (None, false) => {
            let map = session.kafka.inner.cluster.map();
            let id = TopicId::from_bytes(wanted.topic_id.into_bytes()).ok();
            let topic = id.and_then(|id| map.topic(id).cloned());
            let topic = topic.ok_or((ErrorCode::UnknownTopicId, None))?;
            may_delete(session, &topic.name)?;
            topic
        }
        (Some(_), false) | (None, true) => {
            let text = "a topic is named by its name or its id".to_owned();
            return Err((ErrorCode::InvalidRequest, Some(text)));
        }
    };
    let command = Command::DeleteTopic(DeleteTopic {
        id: topic.id.to_wire(),
    });
    session.change(&command, false).await?;
    Ok(topic)
}
