//! What a connection's client may do, in the codes of Kafka. Where nobody is asked everything is
//! allowed before anything is looked at.
//!
//! Handlers check their own rows, for each row has its own code. An api that is new and has no
//! checks yet is served to whoever may do everything to the cluster, so that a check that was
//! forgotten opens nothing.

use std::collections::HashMap;

use trilog_raft::controller::{ClusterMap, MAX_NAME_LEN, Operation, ResourceKind};
use trilog_wire::kafka::ErrorCode;
use trilog_wire::kafka::messages::ApiKey;

use super::session::Session;
use crate::access::Rights;

/// Topics whose rights are remembered at most; beyond them all are forgotten.
const MAX_TOPICS: usize = 1024;

/// What was found of topics, as of one version of the map.
#[derive(Debug, Default)]
pub(super) struct Remembered {
    version: u64,
    /// The operations looked up, and those that are allowed, as sets.
    topics: HashMap<String, (i32, i32)>,
}

/// Whether a handler looks itself whether each thing asked for is allowed.
pub(super) fn has_checks(key: ApiKey) -> bool {
    matches!(
        key,
        ApiKey::Produce
            | ApiKey::Fetch
            | ApiKey::ListOffsets
            | ApiKey::Metadata
            | ApiKey::OffsetCommit
            | ApiKey::OffsetFetch
            | ApiKey::FindCoordinator
            | ApiKey::JoinGroup
            | ApiKey::Heartbeat
            | ApiKey::LeaveGroup
            | ApiKey::SyncGroup
            | ApiKey::DescribeGroups
            | ApiKey::ListGroups
            | ApiKey::SaslHandshake
            | ApiKey::ApiVersions
            | ApiKey::CreateTopics
            | ApiKey::DeleteTopics
            | ApiKey::DeleteRecords
            | ApiKey::InitProducerId
            | ApiKey::OffsetForLeaderEpoch
            | ApiKey::AddPartitionsToTxn
            | ApiKey::AddOffsetsToTxn
            | ApiKey::EndTxn
            | ApiKey::WriteTxnMarkers
            | ApiKey::TxnOffsetCommit
            | ApiKey::DescribeAcls
            | ApiKey::CreateAcls
            | ApiKey::DeleteAcls
            | ApiKey::DescribeConfigs
            | ApiKey::AlterConfigs
            | ApiKey::DescribeLogDirs
            | ApiKey::SaslAuthenticate
            | ApiKey::CreatePartitions
            | ApiKey::DeleteGroups
            | ApiKey::ElectLeaders
            | ApiKey::IncrementalAlterConfigs
            | ApiKey::AlterPartitionReassignments
            | ApiKey::ListPartitionReassignments
            | ApiKey::OffsetDelete
            | ApiKey::DescribeClientQuotas
            | ApiKey::AlterClientQuotas
            | ApiKey::DescribeUserScramCredentials
            | ApiKey::AlterUserScramCredentials
            | ApiKey::DescribeCluster
            | ApiKey::DescribeProducers
            | ApiKey::DescribeTransactions
            | ApiKey::ListTransactions
            | ApiKey::ConsumerGroupHeartbeat
            | ApiKey::ConsumerGroupDescribe
            | ApiKey::DescribeTopicPartitions
            | ApiKey::DescribeQuorum
            | ApiKey::UpdateFeatures
            | ApiKey::ListConfigResources
    )
}

impl Session {
    /// What the client may do, as of this map.
    pub(super) fn rights<'a>(&'a self, map: &'a ClusterMap) -> Rights<'a> {
        let identity = self.login.identity().map(|identity| &**identity);
        self.kafka.inner.access.rights(identity, map)
    }

    /// Whether nobody is asked, and nothing need be looked up.
    pub(super) fn is_open(&self) -> bool {
        !self.kafka.inner.access.is_required()
    }

    fn check(
        &self,
        operation: Operation,
        kind: ResourceKind,
        name: &str,
        code: ErrorCode,
    ) -> Result<(), ErrorCode> {
        if self.is_open() {
            return Ok(());
        }
        let map = self.kafka.inner.cluster.map();
        let may = self.rights(&map).may(operation, kind, name);
        may.then_some(()).ok_or(code)
    }

    pub(super) fn check_topic(&self, operation: Operation, name: &str) -> Result<(), ErrorCode> {
        let code = ErrorCode::TopicAuthorizationFailed;
        self.check(operation, ResourceKind::Topic, name, code)
    }

    pub(super) fn check_group(&self, operation: Operation, name: &str) -> Result<(), ErrorCode> {
        let code = ErrorCode::GroupAuthorizationFailed;
        self.check(operation, ResourceKind::Group, name, code)
    }

    pub(super) fn check_transaction(
        &self,
        operation: Operation,
        id: &str,
    ) -> Result<(), ErrorCode> {
        let code = ErrorCode::TransactionalIdAuthorizationFailed;
        self.check(operation, ResourceKind::TransactionalId, id, code)
    }

    pub(super) fn check_cluster(&self, operation: Operation) -> Result<(), ErrorCode> {
        let code = ErrorCode::ClusterAuthorizationFailed;
        let name = trilog_raft::controller::CLUSTER_RESOURCE;
        self.check(operation, ResourceKind::Cluster, name, code)
    }

    /// As [`Session::check_topic`], for what is asked again and again: looked up once for each
    /// version of the map.
    pub(super) fn check_often(
        &mut self,
        operation: Operation,
        topic: &str,
    ) -> Result<(), ErrorCode> {
        if self.is_open() {
            return Ok(());
        }
        let version = *self.kafka.inner.cluster.changes().borrow();
        let mut remembered = std::mem::take(&mut self.remembered);
        let look_up = || self.check_topic(operation, topic).is_ok();
        let allowed = remembered.allows(version, operation, topic, look_up);
        self.remembered = remembered;
        allowed
            .then_some(())
            .ok_or(ErrorCode::TopicAuthorizationFailed)
    }
}

impl Remembered {
    /// Whether an operation on a topic is allowed: what was found before, or is now.
    fn allows(
        &mut self,
        version: u64,
        operation: Operation,
        topic: &str,
        look_up: impl FnOnce() -> bool,
    ) -> bool {
        // No topic has such a name, and it shall not be kept.
        if topic.len() > MAX_NAME_LEN {
            return look_up();
        }
        if version != self.version || self.topics.len() > MAX_TOPICS {
            *self = Self {
                version,
                topics: HashMap::new(),
            };
        }
        let bit = operation.bit();
        let found = self.topics.get(topic).copied();
        let (looked, allowed) = found.unwrap_or_default();
        if looked & bit != 0 {
            return allowed & bit != 0;
        }
        let allowed = if look_up() { allowed | bit } else { allowed };
        self.topics
            .insert(topic.to_owned(), (looked | bit, allowed));
        allowed & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use trilog_wire::kafka::APIS;

    use super::*;

    #[test]
    fn names_are_remembered_for_a_version_and_long_ones_never() {
        let mut remembered = Remembered::default();
        let mut ask = |version: u64, topic: &str, operation: Operation, may: Option<bool>| {
            let look_up = || may.unwrap_or_else(|| panic!("{topic} is looked up again"));
            let allowed = remembered.allows(version, operation, topic, look_up);
            (allowed, remembered.topics.len())
        };
        let (read, write) = (Operation::Read, Operation::Write);
        assert_eq!(ask(1, "t", read, Some(true)), (true, 1));
        assert_eq!(ask(1, "t", write, Some(false)), (false, 1));
        assert_eq!(ask(1, "t", read, None), (true, 1));
        assert_eq!(ask(1, "t", write, None), (false, 1));
        assert_eq!(ask(2, "t", read, Some(false)), (false, 1));
        let long = "x".repeat(MAX_NAME_LEN + 1);
        for _ in 0..2 {
            assert_eq!(ask(2, &long, read, Some(true)), (true, 1));
        }
        for nth in 0..3 * MAX_TOPICS {
            let (_, kept) = ask(2, &format!("{nth}"), read, Some(true));
            assert!(kept <= MAX_TOPICS + 1, "{kept}");
        }
    }

    #[test]
    fn every_api_has_checks_of_its_own() {
        // Add the checks to the handler and a row to the table in tests/kafka_acls.rs, then the
        // name above.
        let without: Vec<&str> = APIS
            .iter()
            .filter(|api| !has_checks(api.key))
            .map(|api| api.name)
            .collect();
        assert!(without.is_empty(), "{without:?}");
    }
}
