//! OffsetFetch: how far groups have read; of one group, or from version 8 on of many.

use std::collections::{BTreeMap, BTreeSet};

use trilog_raft::controller::Operation;
use trilog_wire::kafka::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use trilog_wire::kafka::messages::offset_fetch_response::{
    OffsetFetchResponseGroup, OffsetFetchResponsePartition, OffsetFetchResponsePartitions,
    OffsetFetchResponseTopic, OffsetFetchResponseTopics,
};
use trilog_wire::kafka::messages::{OffsetFetchRequest, OffsetFetchResponse, TopicName};
use trilog_wire::kafka::{Answer, ErrorCode, Request, StrBytes, Writer, decode};

use super::{AnswerRoom, are_few, text};
use crate::group::{Committed, FetchRequest, FetchedOffset, GroupError};
use crate::kafka::conn::Ended;
use crate::kafka::errors;
use crate::kafka::session::Session;

/// From here on a request has many groups.
const GROUPS_SINCE: i16 = 8;
/// From here on an answer has an error of its own, beside those of partitions.
const ERROR_SINCE: i16 = 2;
const EPOCH_SINCE: i16 = 5;
/// From here on clients know that an offset may have to be asked for again.
const UNSTABLE_SINCE: i16 = 7;

/// What was found of a partition; each is answered once.
type Found = BTreeMap<(String, u32), Result<Option<Committed>, GroupError>>;

pub(super) async fn answer(session: &mut Session, request: &Request) -> Result<Answer, Ended> {
    let asked: OffsetFetchRequest = decode(request)?;
    let stable = asked.require_stable;
    let mut response = OffsetFetchResponse::default();
    if request.version >= GROUPS_SINCE {
        let all = asked.groups.iter().flat_map(|group| &group.topics);
        let few = are_few(all.flatten().map(size));
        let (mut seen, mut room) = (BTreeSet::new(), AnswerRoom::default());
        for group in asked.groups {
            let answered = if !seen.insert(group.group_id.clone()) {
                refuse_group(group, &GroupError::InvalidRequest("it names a group twice"))
            } else if room.is_used_up() {
                refuse_group(group, &GroupError::Loading)
            } else {
                answer_group(session, request, group, stable, few).await
            };
            room.take(&answered, request.version);
            session.count_error(request, answered.error_code);
            response.groups.push(answered);
        }
    } else {
        // One group in the older form.
        let topics = asked.topics.map(|topics| {
            let topics = topics.into_iter().map(|topic| {
                OffsetFetchRequestTopics::default()
                    .with_name(topic.name)
                    .with_partition_indexes(topic.partition_indexes)
            });
            topics.collect::<Vec<_>>()
        });
        let few = are_few(topics.iter().flatten().map(size));
        let group = OffsetFetchRequestGroup::default()
            .with_group_id(asked.group_id)
            .with_topics(topics.clone());
        let mut answered = answer_group(session, request, group, stable, few).await;
        session.count_error(request, answered.error_code);
        if request.version >= ERROR_SINCE {
            response.error_code = answered.error_code;
        } else if answered.error_code != 0 {
            let code = answered.error_code;
            let topics = topics.unwrap_or_default();
            answered.topics = topics.iter().map(|topic| refuse(topic, code)).collect();
        }
        let older = answered.topics.into_iter();
        response.topics = older
            .map(|topic| older_form(topic, request.version))
            .collect();
    }
    Ok(Writer::message(request, &response)?)
}

/// What the topic's name and partitions would take.
fn size(topic: &OffsetFetchRequestTopics) -> (usize, usize) {
    (topic.name.len(), topic.partition_indexes.len())
}

fn refuse_group(asked: OffsetFetchRequestGroup, error: &GroupError) -> OffsetFetchResponseGroup {
    OffsetFetchResponseGroup::default()
        .with_group_id(asked.group_id)
        .with_error_code(errors::group(error).code())
}

async fn answer_group(
    session: &Session,
    as_of: &Request,
    mut asked: OffsetFetchRequestGroup,
    require_stable: bool,
    few: bool,
) -> OffsetFetchResponseGroup {
    let answer = OffsetFetchResponseGroup::default().with_group_id(asked.group_id.clone());
    if let Err(code) = session.check_group(Operation::Describe, &asked.group_id) {
        return answer.with_error_code(code.code());
    }
    let may = |name: &str| session.check_topic(Operation::Describe, name);
    let mut hidden = Vec::new();
    if let Some(topics) = &mut asked.topics {
        topics.retain(|topic| match may(&topic.name) {
            Ok(()) => true,
            Err(code) => {
                hidden.push(refuse(topic, code.code()));
                false
            }
        });
    }
    let partitions = asked.topics.as_ref().map(|topics| partitions(topics));
    let request = FetchRequest {
        group: asked.group_id.to_string(),
        partitions: partitions.filter(|_| few),
        require_stable,
    };
    let fetched = if few {
        match check_member(session, &asked, request.partitions.as_deref()) {
            Ok(()) => session.kafka.inner.groups.fetch(request).await,
            Err(error) => Err(error),
        }
    } else {
        Err(GroupError::InvalidRequest("it names too many partitions"))
    };
    match (fetched, asked.topics) {
        (Err(error), topics) => {
            let answer = answer.with_error_code(errors::group(&error).code());
            match topics.filter(|_| as_of.version >= UNSTABLE_SINCE && passes(&error)) {
                Some(topics) => answer.with_topics(to_be_asked_again(&topics, hidden)),
                None => answer,
            }
        }
        (Ok(mut fetched), None) => {
            fetched.retain(|offset| may(&offset.topic).is_ok());
            answer.with_topics(all(fetched))
        }
        (Ok(fetched), Some(topics)) => {
            let fetched = fetched.into_iter();
            let mut found = fetched
                .map(|offset| ((offset.topic, offset.partition), offset.committed))
                .collect();
            let topics = topics.into_iter().map(|topic| pick(topic, &mut found));
            answer.with_topics(topics.chain(hidden).collect())
        }
    }
}

/// Whether the same question may find an answer soon, here or at another node.
fn passes(error: &GroupError) -> bool {
    matches!(
        error,
        GroupError::NotCoordinator { .. }
            | GroupError::Loading
            | GroupError::Unavailable(_)
            | GroupError::Unknown
    )
}

/// The partitions beside an error of the whole answer, which says all there is to say: most clients
/// look no further. librdkafka looks for the coordinator then, but never asks for these offsets
/// again, and its consumer reads nothing from then on (its issue 5586), unless a partition says that
/// its offset is not stable yet.
fn to_be_asked_again(
    topics: &[OffsetFetchRequestTopics],
    hidden: Vec<OffsetFetchResponseTopics>,
) -> Vec<OffsetFetchResponseTopics> {
    let code = ErrorCode::UnstableOffsetCommit.code();
    let unstable = topics.iter().map(|topic| refuse(topic, code));
    unstable.chain(hidden).collect()
}

/// A consumer that says who it is gets offsets only as of its present epoch: it may have lost its
/// partitions to others who have moved on.
fn check_member(
    session: &Session,
    asked: &OffsetFetchRequestGroup,
    partitions: Option<&[(String, u32)]>,
) -> Result<(), GroupError> {
    let groups = &session.kafka.inner.groups;
    match &asked.member_id {
        Some(member) if asked.member_epoch >= 0 => {
            groups.check_member(&asked.group_id, member, asked.member_epoch, partitions)
        }
        Some(_) | None => Ok(()),
    }
}

/// What is asked for, each partition once.
fn partitions(topics: &[OffsetFetchRequestTopics]) -> Vec<(String, u32)> {
    let each = topics.iter().flat_map(|topic| {
        let indexes = topic.partition_indexes.iter();
        let indexes = indexes.filter_map(|index| u32::try_from(*index).ok());
        indexes.map(|index| (topic.name.to_string(), index))
    });
    let mut each: Vec<(String, u32)> = each.collect();
    each.sort_unstable();
    each.dedup();
    each
}

/// The answer to one topic of the request. What is asked for twice is answered once: a short
/// request would have a very long answer otherwise.
fn pick(asked: OffsetFetchRequestTopics, found: &mut Found) -> OffsetFetchResponseTopics {
    let mut key = (asked.name.to_string(), 0);
    let partitions = asked.partition_indexes.into_iter().map(|index| {
        let committed = match u32::try_from(index) {
            // There is none.
            Err(_) => Ok(None),
            Ok(number) => {
                key.1 = number;
                let twice = Err(GroupError::InvalidRequest("it names a partition twice"));
                found.remove(&key).unwrap_or(twice)
            }
        };
        describe(index, committed)
    });
    OffsetFetchResponseTopics::default()
        .with_partitions(partitions.collect())
        .with_name(asked.name)
}

fn all(fetched: Vec<FetchedOffset>) -> Vec<OffsetFetchResponseTopics> {
    let mut topics: Vec<OffsetFetchResponseTopics> = Vec::new();
    for offset in fetched {
        let index = i32::try_from(offset.partition).unwrap_or(i32::MAX);
        let partition = describe(index, offset.committed);
        match topics.last_mut() {
            Some(topic) if **topic.name == *offset.topic => topic.partitions.push(partition),
            Some(_) | None => {
                let name = TopicName(text(offset.topic));
                let topic = OffsetFetchResponseTopics::default().with_name(name);
                topics.push(topic.with_partitions(vec![partition]));
            }
        }
    }
    topics
}

fn describe(
    index: i32,
    committed: Result<Option<Committed>, GroupError>,
) -> OffsetFetchResponsePartitions {
    let answer = OffsetFetchResponsePartitions::default()
        .with_partition_index(index)
        .with_metadata(Some(StrBytes::default()))
        .with_committed_offset(-1)
        .with_committed_leader_epoch(-1);
    match committed {
        Ok(None) => answer,
        Ok(Some(committed)) => answer
            .with_committed_offset(committed.offset)
            .with_committed_leader_epoch(committed.leader_epoch)
            .with_metadata(Some(text(committed.metadata))),
        Err(error) => answer.with_error_code(errors::group(&error).code()),
    }
}

fn refuse(asked: &OffsetFetchRequestTopics, code: i16) -> OffsetFetchResponseTopics {
    let indexes = asked.partition_indexes.iter();
    let refused = indexes.map(|index| describe(*index, Ok(None)).with_error_code(code));
    OffsetFetchResponseTopics::default()
        .with_name(asked.name.clone())
        .with_partitions(refused.collect())
}

fn older_form(topic: OffsetFetchResponseTopics, version: i16) -> OffsetFetchResponseTopic {
    let partitions = topic.partitions.into_iter().map(|partition| {
        let epoch = match version {
            EPOCH_SINCE.. => partition.committed_leader_epoch,
            _ => -1,
        };
        OffsetFetchResponsePartition::default()
            .with_partition_index(partition.partition_index)
            .with_committed_offset(partition.committed_offset)
            .with_committed_leader_epoch(epoch)
            .with_metadata(partition.metadata)
            .with_error_code(partition.error_code)
    });
    OffsetFetchResponseTopic::default()
        .with_name(topic.name)
        .with_partitions(partitions.collect())
}
