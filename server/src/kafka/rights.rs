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
            | ApiKey::DescribeUserScramCredentials
            | ApiKey::AlterUserScramCredentials
            | ApiKey::DescribeCluster
            | ApiKey::DescribeProducers
            | ApiKey::DescribeTransactions
            | ApiKey::ListTransactions
            | ApiKey::ConsumerGroupHeartbeat
            | ApiKey::ConsumerGroupDescribe
    )
}

impl Session {
    /// What the client may do, as of this map.
    pub(super) fn rights<'a>(&'a self, map: &'a ClusterMap) -> Rights<'a> {
        match self.login.identity() {
            Some(identity) => self.kafka.inner.access.rights(identity, map),
            // Nobody gets here unknown where everybody is asked.
            None => Rights::ALL,
        }
    }

    fn check(
        &self,
        operation: Operation,
        kind: ResourceKind,
        name: &str,
        code: ErrorCode,
    ) -> Result<(), ErrorCode> {
        if self.login.identity().is_none() {
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
        if self.login.identity().is_none() {
            return Ok(());
        }
        // No topic has such a name, and it shall not be kept.
        if topic.len() > MAX_NAME_LEN {
            return self.check_topic(operation, topic);
        }
        let version = *self.kafka.inner.cluster.changes().borrow();
        if version != self.remembered.version || self.remembered.topics.len() > MAX_TOPICS {
            self.remembered = Remembered {
                version,
                topics: HashMap::new(),
            };
        }
        let bit = operation.bit();
        let found = self.remembered.topics.get(topic).copied();
        let (mut looked, mut allowed) = found.unwrap_or_default();
        if looked & bit == 0 {
            looked |= bit;
            if self.check_topic(operation, topic).is_ok() {
                allowed |= bit;
            }
            let sets = (looked, allowed);
            self.remembered.topics.insert(topic.to_owned(), sets);
        }
        if allowed & bit == 0 {
            return Err(ErrorCode::TopicAuthorizationFailed);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use trilog_wire::kafka::APIS;

    use super::*;

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
