//! One file per request: what it means here. Versions live in the codec; a handler sees one form.

mod acls;
mod add_offsets_to_txn;
mod add_partitions_to_txn;
mod alter_client_quotas;
mod alter_configs;
mod alter_partition_reassignments;
mod alter_user_scram_credentials;
mod api_versions;
mod consumer_group_describe;
mod consumer_group_heartbeat;
mod create_partitions;
mod create_topics;
mod delete_groups;
mod delete_records;
mod delete_topics;
mod describe_client_quotas;
mod describe_cluster;
mod describe_configs;
mod describe_groups;
mod describe_log_dirs;
mod describe_producers;
mod describe_quorum;
mod describe_topic_partitions;
mod describe_transactions;
mod describe_user_scram_credentials;
mod elect_leaders;
mod end_txn;
mod fetch;
mod find_coordinator;
mod heartbeat;
mod init_producer_id;
mod join_group;
mod leave_group;
mod list_config_resources;
mod list_groups;
mod list_offsets;
mod list_partition_reassignments;
mod list_transactions;
mod metadata;
mod offset_commit;
mod offset_delete;
mod offset_fetch;
mod offset_for_leader_epoch;
mod produce;
mod sync_group;
mod txn_offset_commit;
mod update_features;
mod write_txn_markers;

use std::sync::Arc;

use futures::future::BoxFuture;
use trilog_raft::controller::commands::Command;
use trilog_raft::controller::{Operation, Topic};
use trilog_wire::kafka::messages::ApiKey;
use trilog_wire::kafka::{Encodable, ErrorCode, Request, StrBytes};

use super::conn::{Ended, Outcome};
use super::errors::{self, Refusal};
use super::quota::{self, Bound};
use super::rights::has_checks;
use super::sasl;
use super::session::Session;
use crate::cluster::ProposeError;
use crate::group::OffsetCommit;
use crate::meter::ApiMeter;

pub(super) use fetch::Payload;

pub(super) use api_versions::{answer as api_versions, versions_unsupported};

/// What partitions that a request of groups names may take, each with its topic's name.
const MAX_PARTITIONS_COST: usize = 16 << 20;
const PARTITION_COST: usize = 64;
/// What an answer about several groups may take; one group may take more.
const MAX_ANSWER: usize = 16 << 20;

/// How far a request has come once its turn among its connection's requests is over.
pub(super) enum Begun {
    Done(Outcome),
    /// Nothing that comes later on the connection needs to wait for the rest. What that holds is
    /// counted where it is, so the request's memory is given back.
    Later(BoxFuture<'static, Outcome>),
    /// A wait for the other members of a group, which may be long: the request's memory is given
    /// back, too, and what comes later on the connection waits for it, as at a broker.
    Alone(BoxFuture<'static, Outcome>),
}

/// Begins on a request, in the order of the connection.
pub(super) async fn begin(session: &mut Session, request: Request) -> Begun {
    if let Some(outcome) = sasl::admit(session, &request).await {
        return Begun::Done(outcome);
    }
    if !has_checks(request.api.key) && session.check_cluster(Operation::All).is_err() {
        return Begun::Done(Outcome::Close(Ended::Forbidden));
    }
    let Some(bound) = quota::of(session, &request) else {
        return begin_admitted(session, request, None).await;
    };
    let begun = begin_admitted(session, request, Some(Arc::clone(&bound)));
    let begun = Box::pin(bound.timed(begun)).await;
    bound.hold(begun)
}

async fn begin_admitted(
    session: &mut Session,
    request: Request,
    bound: Option<Arc<Bound>>,
) -> Begun {
    let begun = match request.api.key {
        ApiKey::Produce => return produce::begin(session, request).await,
        ApiKey::Fetch => return fetch::begin(session, request, bound),
        ApiKey::JoinGroup => return join_group::begin(session, request),
        ApiKey::SyncGroup => return sync_group::begin(session, request),
        ApiKey::ApiVersions => api_versions::answer(session, &request),
        ApiKey::Metadata => metadata::answer(session, &request).await,
        ApiKey::ListOffsets => list_offsets::answer(session, &request).await,
        ApiKey::CreateTopics => create_topics::answer(session, &request).await,
        ApiKey::DeleteTopics => delete_topics::answer(session, &request).await,
        ApiKey::CreatePartitions => create_partitions::answer(session, &request).await,
        ApiKey::DeleteRecords => delete_records::answer(session, &request).await,
        ApiKey::InitProducerId => init_producer_id::answer(session, &request).await,
        ApiKey::OffsetForLeaderEpoch => offset_for_leader_epoch::answer(session, &request),
        ApiKey::DescribeConfigs => describe_configs::answer(session, &request),
        ApiKey::AlterConfigs => alter_configs::answer(session, &request).await,
        ApiKey::IncrementalAlterConfigs => alter_configs::answer_steps(session, &request).await,
        ApiKey::DescribeCluster => describe_cluster::answer(session, &request),
        ApiKey::FindCoordinator => find_coordinator::answer(session, &request).await,
        ApiKey::Heartbeat => heartbeat::answer(session, &request),
        ApiKey::LeaveGroup => leave_group::answer(session, &request),
        ApiKey::OffsetCommit => offset_commit::answer(session, &request).await,
        ApiKey::OffsetFetch => offset_fetch::answer(session, &request).await,
        ApiKey::OffsetDelete => offset_delete::answer(session, &request).await,
        ApiKey::DescribeGroups => describe_groups::answer(session, &request),
        ApiKey::ListGroups => list_groups::answer(session, &request),
        ApiKey::DeleteGroups => delete_groups::answer(session, &request).await,
        ApiKey::AddPartitionsToTxn => add_partitions_to_txn::answer(session, &request).await,
        ApiKey::AddOffsetsToTxn => add_offsets_to_txn::answer(session, &request).await,
        ApiKey::EndTxn => end_txn::answer(session, &request).await,
        ApiKey::TxnOffsetCommit => txn_offset_commit::answer(session, &request).await,
        ApiKey::DescribeLogDirs => describe_log_dirs::answer(session, &request).await,
        ApiKey::DescribeProducers => describe_producers::answer(session, &request),
        ApiKey::DescribeTransactions => describe_transactions::answer(session, &request),
        ApiKey::WriteTxnMarkers => write_txn_markers::answer(session, &request).await,
        ApiKey::ListTransactions => list_transactions::answer(session, &request),
        ApiKey::ConsumerGroupHeartbeat => consumer_group_heartbeat::answer(session, &request).await,
        ApiKey::ConsumerGroupDescribe => consumer_group_describe::answer(session, &request),
        ApiKey::SaslHandshake | ApiKey::SaslAuthenticate => sasl::illegal(&request),
        ApiKey::DescribeAcls => acls::describe(session, &request),
        ApiKey::CreateAcls => acls::create(session, &request).await,
        ApiKey::DeleteAcls => acls::delete(session, &request).await,
        ApiKey::DescribeUserScramCredentials => {
            describe_user_scram_credentials::answer(session, &request)
        }
        ApiKey::AlterUserScramCredentials => {
            alter_user_scram_credentials::answer(session, &request).await
        }
        ApiKey::ElectLeaders => elect_leaders::answer(session, &request).await,
        ApiKey::AlterPartitionReassignments => {
            alter_partition_reassignments::answer(session, &request).await
        }
        ApiKey::ListPartitionReassignments => {
            list_partition_reassignments::answer(session, &request).await
        }
        ApiKey::DescribeClientQuotas => describe_client_quotas::answer(session, &request).await,
        ApiKey::AlterClientQuotas => alter_client_quotas::answer(session, &request).await,
        ApiKey::DescribeTopicPartitions => {
            describe_topic_partitions::answer(session, &request).await
        }
        ApiKey::DescribeQuorum => describe_quorum::answer(session, &request).await,
        ApiKey::UpdateFeatures => update_features::answer(session, &request),
        ApiKey::ListConfigResources => list_config_resources::answer(session, &request),
        // The table of apis names no other.
        _ => Err(Ended::Stopped),
    };
    Begun::Done(begun.into())
}

fn text(text: impl Into<String>) -> StrBytes {
    StrBytes::from_string(text.into())
}

/// The error of a code; success has none.
fn named(code: i16) -> Option<ErrorCode> {
    ErrorCode::try_from_code(code)
}

/// Counts a refusal; success is no error.
fn count_refusal(meter: Option<&ApiMeter>, code: i16) {
    if let (Some(meter), Some(code)) = (meter, named(code)) {
        meter.refused(reason(code));
    }
}

/// Whether partitions may each be told with the name of their topic, which the request says once
/// for all of them: given are the lengths of the names, and how many partitions each stands for.
fn are_few(topics: impl Iterator<Item = (usize, usize)>) -> bool {
    let each = topics.map(|(name, partitions)| (name + PARTITION_COST).saturating_mul(partitions));
    each.fold(0, usize::saturating_add) <= MAX_PARTITIONS_COST
}

/// Whether there may be a partition of this number. Of one that no topic can have the coordinator is
/// not asked, as at a broker.
fn may_be(index: i32) -> bool {
    index >= 0
}

/// An offset of a group, as both ways to commit one state it.
fn offset_commit(
    topic: &str,
    index: i32,
    (offset, leader_epoch): (i64, i32),
    metadata: Option<&StrBytes>,
) -> OffsetCommit {
    OffsetCommit {
        topic: topic.to_owned(),
        // No topic has so many that this would be one of them.
        partition: u32::try_from(index).unwrap_or(u32::MAX),
        offset,
        leader_epoch,
        metadata: metadata.map(ToString::to_string).unwrap_or_default(),
    }
}

/// How much has gone into an answer about groups, of which a short request may name many.
#[derive(Default)]
struct AnswerRoom(usize);

impl AnswerRoom {
    /// Whether there is no room for another group: who asked may ask again for the rest.
    fn is_used_up(&self) -> bool {
        self.0 >= MAX_ANSWER
    }

    fn take(&mut self, group: &impl Encodable, version: i16) {
        self.0 += group.compute_size(version).unwrap_or(MAX_ANSWER);
    }
}

/// What a metric calls the error.
fn reason(code: ErrorCode) -> String {
    format!("{code:?}").to_lowercase()
}

impl Session {
    /// Makes a change of the cluster's metadata, or only says whether it would be made.
    async fn change(&self, command: &Command, only_validate: bool) -> Result<(), Refusal> {
        let cluster = &self.kafka.inner.cluster;
        let outcome = if only_validate {
            let now = self.kafka.inner.clock.now();
            let rehearsed = cluster.controller().rehearse(command, now);
            rehearsed.map_err(ProposeError::Refused)
        } else {
            cluster.propose(command).await
        };
        outcome.map(drop).map_err(|error| errors::propose(&error))
    }

    /// The topic of this name, looked for on the controller before it is called unknown.
    async fn topic(&self, name: &str) -> Result<Arc<Topic>, Refusal> {
        let found = self.kafka.inner.cluster.current_topic(name).await;
        found.map_err(|error| (errors::lookup(&error), None))
    }

    /// What counts requests of this kind.
    fn meter(&self, request: &Request) -> Option<ApiMeter> {
        let meters = &self.kafka.inner.api_meters;
        meters.get(request.api.place()).cloned()
    }

    /// Counts a refusal; success is no error.
    pub(super) fn count_error(&self, request: &Request, code: i16) {
        if code != 0 {
            count_refusal(self.meter(request).as_ref(), code);
        }
    }
}
