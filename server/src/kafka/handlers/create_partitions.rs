//! CreatePartitions: more of them, never fewer; one result for each topic asked for.

use trilog_raft::controller::Operation;
use trilog_raft::controller::commands::{AlterTopic, Assignment, Command};
use trilog_wire::kafka::messages::create_partitions_request::CreatePartitionsTopic;
use trilog_wire::kafka::messages::create_partitions_response::CreatePartitionsTopicResult;
use trilog_wire::kafka::messages::{CreatePartitionsRequest, CreatePartitionsResponse};
use trilog_wire::kafka::{Answer, ErrorCode, Request, Writer, decode};

use super::text;
use crate::kafka::conn::Ended;
use crate::kafka::errors::{self, Refusal};
use crate::kafka::session::Session;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: CreatePartitionsRequest = decode(request)?;
    let mut response = CreatePartitionsResponse::default();
    for topic in &asked.topics {
        let mut result = CreatePartitionsTopicResult::default().with_name(topic.name.clone());
        if let Err((code, message)) = grow(session, topic, asked.validate_only).await {
            session.count_error(request, code.code());
            result.error_code = code.code();
            result.error_message = message.map(text);
        }
        response.results.push(result);
    }
    Ok(Writer::message(request, &response)?)
}

async fn grow(
    session: &Session,
    wanted: &CreatePartitionsTopic,
    only_validate: bool,
) -> Result<(), Refusal> {
    let checked = session.check_topic(Operation::Alter, &wanted.name);
    checked.map_err(|code| (code, None))?;
    let topic = session.topic(&wanted.name).await?;
    let count = usize::try_from(wanted.count).unwrap_or(0);
    let had = topic.partitions.len();
    if count <= had {
        let text = format!("the topic has {had} partitions already");
        return Err((ErrorCode::InvalidPartitions, Some(text)));
    }
    let first = topic.partitions.first();
    let replicas = first.map_or(0, |place| place.assigned().len());
    let assignments = wanted.assignments.iter().flatten().map(|assignment| {
        let nodes = assignment.broker_ids.iter();
        let nodes: Result<Vec<u32>, _> = nodes.map(|node| u32::try_from(node.0)).collect();
        let nodes = nodes.map_err(|_| (ErrorCode::InvalidReplicaAssignment, None))?;
        if nodes.len() != replicas {
            let text = format!("the topic's partitions have {replicas} replicas each");
            return Err((ErrorCode::InvalidReplicaAssignment, Some(text)));
        }
        Ok(Assignment { nodes })
    });
    let command = Command::AlterTopic(AlterTopic {
        id: topic.id.to_wire(),
        configs: Vec::new(),
        partitions: u32::try_from(count).unwrap_or(u32::MAX),
        assignments: assignments.collect::<Result<_, Refusal>>()?,
        replication: 0,
    });
    let made = session.change(&command, only_validate).await;
    made.map_err(errors::assignment)
}
