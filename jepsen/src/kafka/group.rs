//! Being a member of a consumer group whose coordinator assigns (KIP-848): what it is given, where
//! to begin, and what it has read.

use std::collections::BTreeMap;
use std::time::Duration;

use kafka_protocol::messages::consumer_group_heartbeat_request::TopicPartitions;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::{
    ApiKey, ConsumerGroupHeartbeatRequest, ConsumerGroupHeartbeatResponse, GroupId,
    OffsetCommitRequest, OffsetCommitResponse, OffsetFetchRequest, OffsetFetchResponse,
};
use tokio::time::{Instant, sleep};
use trilog_wire::kafka::Uuid;

use super::client::{Client, PAUSE};
use super::code;
use super::conn::{Fault, text};
use super::produce::REQUEST;
use crate::history::Key;

/// How long a member may take to give partitions up.
const REBALANCE: Duration = Duration::from_secs(10);

/// A member of a group.
#[derive(Debug, Clone)]
pub struct Member {
    pub group: String,
    pub id: String,
    /// Zero until it has joined.
    pub epoch: i32,
    /// The topic's id, told with the first assignment.
    topic: Option<Uuid>,
    /// What it reads.
    pub assigned: Vec<Key>,
    /// Whether the coordinator does not know yet what it reads.
    news: bool,
}

impl Member {
    pub fn new(group: &str, id: String) -> Self {
        Self {
            group: group.to_owned(),
            id,
            epoch: 0,
            topic: None,
            assigned: Vec::new(),
            news: true,
        }
    }

    /// Not a member any more: it is to join anew, and reads nothing.
    fn forget(&mut self) {
        self.epoch = 0;
        self.assigned.clear();
        self.news = true;
    }

    fn beat(&self, topic: &kafka_protocol::messages::TopicName) -> ConsumerGroupHeartbeatRequest {
        let request = ConsumerGroupHeartbeatRequest::default()
            .with_group_id(GroupId(text(&self.group)))
            .with_member_id(text(&self.id))
            .with_member_epoch(self.epoch)
            .with_rebalance_timeout_ms(-1);
        if self.epoch > 0 && !self.news {
            return request
                .with_subscribed_topic_names(None)
                .with_topic_partitions(None);
        }
        let owned = self.topic.filter(|_| !self.assigned.is_empty()).map(|id| {
            TopicPartitions::default()
                .with_topic_id(id)
                .with_partitions(
                    self.assigned
                        .iter()
                        .map(|key| key.0.cast_signed())
                        .collect(),
                )
        });
        request
            .with_rebalance_timeout_ms(i32::try_from(REBALANCE.as_millis()).unwrap_or(i32::MAX))
            .with_subscribed_topic_names(Some(vec![topic.clone()]))
            .with_topic_partitions(Some(owned.into_iter().collect()))
    }
}

impl Client {
    /// Speaks to the coordinator once; the keys that came or went. What is read of keys that went
    /// has to be committed before.
    pub async fn heartbeat(
        &mut self,
        member: &mut Member,
        deadline: Instant,
    ) -> Result<Vec<Key>, Fault> {
        let node = self.coordinator(&member.group, 0, deadline).await?;
        let request = member.beat(&self.topic);
        let answer: Result<ConsumerGroupHeartbeatResponse, Fault> = self
            .ask(node, ApiKey::ConsumerGroupHeartbeat, 1, &request, REQUEST)
            .await;
        let answer = match answer {
            Ok(answer) if answer.error_code == 0 => answer,
            Ok(answer) => {
                let before = std::mem::take(&mut member.assigned);
                let passing = [
                    code::COORDINATOR_LOAD_IN_PROGRESS,
                    code::COORDINATOR_NOT_AVAILABLE,
                    code::NOT_COORDINATOR,
                    code::REQUEST_TIMED_OUT,
                ];
                if passing.contains(&answer.error_code) {
                    member.assigned = before;
                    return Err(Fault::Not(format!("heartbeat: {}", answer.error_code)));
                }
                member.forget();
                return Ok(before);
            }
            Err(fault) => {
                // What was said may not have been heard.
                member.news = true;
                return Err(fault.certain());
            }
        };
        member.news = false;
        member.epoch = answer.member_epoch;
        let Some(assignment) = answer.assignment else {
            return Ok(Vec::new());
        };
        let mut assigned = Vec::new();
        for topic in &assignment.topic_partitions {
            member.topic = Some(topic.topic_id);
            let keys = topic
                .partitions
                .iter()
                .filter_map(|index| u32::try_from(*index).ok());
            assigned.extend(keys.map(Key));
        }
        assigned.sort();
        let differs = |a: &[Key], b: &[Key]| -> Vec<Key> {
            a.iter().filter(|key| !b.contains(key)).copied().collect()
        };
        let mut changed = differs(&assigned, &member.assigned);
        changed.extend(differs(&member.assigned, &assigned));
        // What was given up or taken is said with the next one.
        member.news = !changed.is_empty();
        member.assigned = assigned;
        Ok(changed)
    }

    /// Leaves the group; whether that was heard is of no matter.
    pub async fn leave(&mut self, member: &Member, deadline: Instant) {
        if member.epoch <= 0 {
            return;
        }
        if let Ok(node) = self.coordinator(&member.group, 0, deadline).await {
            let request = ConsumerGroupHeartbeatRequest::default()
                .with_group_id(GroupId(text(&member.group)))
                .with_member_id(text(&member.id))
                .with_member_epoch(-1)
                .with_rebalance_timeout_ms(-1)
                .with_subscribed_topic_names(None)
                .with_topic_partitions(None);
            let key = ApiKey::ConsumerGroupHeartbeat;
            let _: Result<ConsumerGroupHeartbeatResponse, Fault> =
                self.ask(node, key, 1, &request, REQUEST).await;
        }
    }

    /// What a group has committed of each of these keys, zero where it has committed nothing; of
    /// what is in a transaction that is open it is waited for.
    pub async fn committed(
        &mut self,
        group: &str,
        member: Option<&Member>,
        keys: &[Key],
        deadline: Instant,
    ) -> Result<BTreeMap<Key, u64>, Fault> {
        let topic = OffsetFetchRequestTopics::default()
            .with_name(self.topic.clone())
            .with_partition_indexes(keys.iter().map(|key| key.0.cast_signed()).collect());
        let mut asked = OffsetFetchRequestGroup::default()
            .with_group_id(GroupId(text(group)))
            .with_topics(Some(vec![topic]))
            .with_member_epoch(-1);
        if let Some(member) = member {
            asked = asked
                .with_member_id(Some(text(&member.id)))
                .with_member_epoch(member.epoch);
        }
        let request = OffsetFetchRequest::default()
            .with_groups(vec![asked])
            .with_require_stable(true);
        loop {
            let why = match self.coordinator(group, 0, deadline).await {
                Ok(node) => match self
                    .ask(node, ApiKey::OffsetFetch, 9, &request, REQUEST)
                    .await
                {
                    Ok(answer) => match offsets(&answer, keys) {
                        Ok(offsets) => return Ok(offsets),
                        Err(why) => format!("OffsetFetch: {why}"),
                    },
                    Err(fault) => fault.text().to_owned(),
                },
                Err(fault) => fault.text().to_owned(),
            };
            if Instant::now() >= deadline {
                return Err(Fault::Not(why));
            }
            sleep(PAUSE).await;
        }
    }

    /// Commits what a member has read.
    pub async fn commit(
        &mut self,
        member: &Member,
        offsets: &BTreeMap<Key, u64>,
        deadline: Instant,
    ) -> Result<(), Fault> {
        let partitions = offsets.iter().map(|(key, offset)| {
            OffsetCommitRequestPartition::default()
                .with_partition_index(key.0.cast_signed())
                .with_committed_offset(offset.cast_signed())
                .with_committed_leader_epoch(-1)
                .with_committed_metadata(Some(text("")))
        });
        let topic = OffsetCommitRequestTopic::default()
            .with_name(self.topic.clone())
            .with_partitions(partitions.collect());
        let request = OffsetCommitRequest::default()
            .with_group_id(GroupId(text(&member.group)))
            .with_generation_id_or_member_epoch(member.epoch)
            .with_member_id(text(&member.id))
            .with_topics(vec![topic]);
        let node = self.coordinator(&member.group, 0, deadline).await?;
        let answer: OffsetCommitResponse = self
            .ask(node, ApiKey::OffsetCommit, 9, &request, REQUEST)
            .await?;
        let each = answer.topics.iter().flat_map(|topic| &topic.partitions);
        let mut codes = each.map(|one| one.error_code);
        match codes.find(|code| *code != 0) {
            None => Ok(()),
            Some(code @ code::REQUEST_TIMED_OUT) => {
                Err(Fault::Unknown(format!("OffsetCommit: {code}")))
            }
            Some(code) => Err(Fault::Not(format!("OffsetCommit: {code}"))),
        }
    }
}

/// Where a group is in each of these keys; why nobody knows, if anything of it is an error or left
/// out. That nothing is committed has to be said, for it may be that all of it was lost.
fn offsets(answer: &OffsetFetchResponse, keys: &[Key]) -> Result<BTreeMap<Key, u64>, String> {
    let mut found = BTreeMap::new();
    for group in &answer.groups {
        if group.error_code != 0 {
            return Err(group.error_code.to_string());
        }
        for part in group.topics.iter().flat_map(|topic| &topic.partitions) {
            if part.error_code != 0 {
                return Err(part.error_code.to_string());
            }
            if let Ok(key) = u32::try_from(part.partition_index) {
                // Nothing is committed where it is negative.
                let offset = u64::try_from(part.committed_offset).unwrap_or(0);
                found.insert(Key(key), offset);
            }
        }
    }
    match keys.iter().find(|key| !found.contains_key(key)) {
        Some(key) => Err(format!("key {} is left out", key.0)),
        None => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kafka_protocol::messages::offset_fetch_response::{
        OffsetFetchResponseGroup, OffsetFetchResponsePartitions, OffsetFetchResponseTopics,
    };

    #[test]
    fn nothing_committed_is_zero_and_nothing_said_is_not() {
        let answer = |group: i16, parts: &[(i32, i64, i16)]| {
            let parts = parts.iter().map(|(index, offset, code)| {
                OffsetFetchResponsePartitions::default()
                    .with_partition_index(*index)
                    .with_committed_offset(*offset)
                    .with_error_code(*code)
            });
            let topic = OffsetFetchResponseTopics::default().with_partitions(parts.collect());
            let group = OffsetFetchResponseGroup::default()
                .with_error_code(group)
                .with_topics(vec![topic]);
            OffsetFetchResponse::default().with_groups(vec![group])
        };
        let keys = [Key(0), Key(1)];
        let found = offsets(&answer(0, &[(0, 7, 0), (1, -1, 0)]), &keys);
        assert_eq!(found, Ok([(Key(0), 7), (Key(1), 0)].into()));
        let unstable = code::UNSTABLE_OFFSET_COMMIT;
        for (what, answer) in [
            ("unstable", answer(0, &[(0, 7, 0), (1, -1, unstable)])),
            ("elsewhere", answer(code::NOT_COORDINATOR, &[])),
            ("left out", answer(0, &[(0, 7, 0)])),
            ("empty", OffsetFetchResponse::default()),
        ] {
            assert!(offsets(&answer, &keys).is_err(), "{what}");
        }
    }
}
