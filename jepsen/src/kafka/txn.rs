//! The steps of a transaction as producers of Kafka's first protocol for them take them. Each says
//! whether it was done; what to make of that is up to who runs the transaction.

use std::collections::BTreeMap;

use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddOffsetsToTxnResponse, AddPartitionsToTxnRequest,
    AddPartitionsToTxnResponse, ApiKey, EndTxnRequest, EndTxnResponse, GroupId, ProducerId,
    TransactionalId, TxnOffsetCommitRequest, TxnOffsetCommitResponse,
};
use kafka_protocol::protocol::{Decodable, Encodable};
use tokio::time::{Instant, sleep};

use super::client::{Client, PAUSE};
use super::code;
use super::conn::{Fault, text};
use super::group::Member;
use super::produce::{Identity, REQUEST};
use crate::history::Key;

/// Whether a coordinator's code asks for another attempt.
fn passes(code: i16) -> bool {
    [
        code::UNKNOWN_TOPIC_OR_PARTITION,
        code::COORDINATOR_LOAD_IN_PROGRESS,
        code::COORDINATOR_NOT_AVAILABLE,
        code::NOT_COORDINATOR,
        code::CONCURRENT_TRANSACTIONS,
        code::REQUEST_TIMED_OUT,
        code::NOT_LEADER_OR_FOLLOWER,
    ]
    .contains(&code)
}

/// Who is asked: the coordinator of a transactional id (1) or of a group (0).
struct Coordinated<'a> {
    name: &'a str,
    kind: i8,
    deadline: Instant,
}

impl Client {
    /// Asks a coordinator until it says something that another attempt would not change. All of
    /// these requests can be repeated. Besides the answer: whether one before may have been lost.
    async fn ask_coordinator<M: Encodable, R: Decodable>(
        &mut self,
        whom: &Coordinated<'_>,
        (key, version): (ApiKey, i16),
        message: &M,
        code_of: impl Fn(&R) -> i16,
    ) -> Result<(R, bool), Fault> {
        let mut unknown = false;
        loop {
            let node = self.coordinator(whom.name, whom.kind, whom.deadline).await;
            let answer = match node {
                Ok(node) => self.ask(node, key, version, message, REQUEST).await,
                Err(fault) => Err(fault),
            };
            let why = match answer {
                Ok(answer) => match code_of(&answer) {
                    0 => return Ok((answer, unknown)),
                    code if passes(code) => {
                        unknown |= code == code::REQUEST_TIMED_OUT;
                        format!("{key:?}: {code}")
                    }
                    code => {
                        let why = format!("{key:?}: {code}");
                        return Err(if unknown {
                            Fault::Unknown(why)
                        } else {
                            Fault::Not(why)
                        });
                    }
                },
                Err(Fault::Not(why)) => why,
                Err(Fault::Unknown(why)) => {
                    unknown = true;
                    why
                }
            };
            if Instant::now() >= whom.deadline {
                return Err(if unknown {
                    Fault::Unknown(why)
                } else {
                    Fault::Not(why)
                });
            }
            sleep(PAUSE).await;
        }
    }

    /// Takes keys into the transaction.
    pub async fn add_keys(
        &mut self,
        id: &str,
        identity: &Identity,
        keys: &[Key],
        deadline: Instant,
    ) -> Result<(), Fault> {
        let added = AddPartitionsToTxnTopic::default()
            .with_name(self.topic.clone())
            .with_partitions(keys.iter().map(|key| key.0.cast_signed()).collect());
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(TransactionalId(text(id)))
            .with_v3_and_below_producer_id(ProducerId(identity.id))
            .with_v3_and_below_producer_epoch(identity.epoch)
            .with_v3_and_below_topics(vec![added]);
        let whom = Coordinated {
            name: id,
            kind: 1,
            deadline,
        };
        let worst = |answer: &AddPartitionsToTxnResponse| {
            let topics = answer.results_by_topic_v3_and_below.iter();
            let each = topics.flat_map(|topic| &topic.results_by_partition);
            let mut codes = each.map(|one| one.partition_error_code);
            codes.find(|code| *code != 0).unwrap_or(0)
        };
        self.ask_coordinator(&whom, (ApiKey::AddPartitionsToTxn, 3), &request, worst)
            .await
            .map(drop)
    }

    /// Commits a member's offsets with the transaction.
    pub async fn add_offsets(
        &mut self,
        id: &str,
        identity: &Identity,
        member: &Member,
        offsets: &BTreeMap<Key, u64>,
        deadline: Instant,
    ) -> Result<(), Fault> {
        let group = GroupId(text(&member.group));
        let request = AddOffsetsToTxnRequest::default()
            .with_transactional_id(TransactionalId(text(id)))
            .with_producer_id(ProducerId(identity.id))
            .with_producer_epoch(identity.epoch)
            .with_group_id(group.clone());
        let whom = Coordinated {
            name: id,
            kind: 1,
            deadline,
        };
        let code = |answer: &AddOffsetsToTxnResponse| answer.error_code;
        self.ask_coordinator(&whom, (ApiKey::AddOffsetsToTxn, 3), &request, code)
            .await?;

        let partitions = offsets.iter().map(|(key, offset)| {
            TxnOffsetCommitRequestPartition::default()
                .with_partition_index(key.0.cast_signed())
                .with_committed_offset(offset.cast_signed())
                .with_committed_leader_epoch(-1)
                .with_committed_metadata(Some(text("")))
        });
        let topic = TxnOffsetCommitRequestTopic::default()
            .with_name(self.topic.clone())
            .with_partitions(partitions.collect());
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(TransactionalId(text(id)))
            .with_group_id(group)
            .with_producer_id(ProducerId(identity.id))
            .with_producer_epoch(identity.epoch)
            .with_generation_id(member.epoch)
            .with_member_id(text(&member.id))
            .with_topics(vec![topic]);
        let whom = Coordinated {
            name: &member.group,
            kind: 0,
            deadline,
        };
        let worst = |answer: &TxnOffsetCommitResponse| {
            let each = answer.topics.iter().flat_map(|topic| &topic.partitions);
            let mut codes = each.map(|one| one.error_code);
            codes.find(|code| *code != 0).unwrap_or(0)
        };
        self.ask_coordinator(&whom, (ApiKey::TxnOffsetCommit, 3), &request, worst)
            .await
            .map(drop)
    }

    /// Commits or aborts the transaction. True if an attempt before the one that was answered may
    /// still be on its way: in this protocol it could end a later transaction of the same epoch.
    pub async fn end_txn(
        &mut self,
        id: &str,
        identity: &Identity,
        commit: bool,
        deadline: Instant,
    ) -> Result<bool, Fault> {
        let request = EndTxnRequest::default()
            .with_transactional_id(TransactionalId(text(id)))
            .with_producer_id(ProducerId(identity.id))
            .with_producer_epoch(identity.epoch)
            .with_committed(commit);
        let whom = Coordinated {
            name: id,
            kind: 1,
            deadline,
        };
        let code = |answer: &EndTxnResponse| answer.error_code;
        self.ask_coordinator(&whom, (ApiKey::EndTxn, 3), &request, code)
            .await
            .map(|(_, unknown)| unknown)
    }
}
