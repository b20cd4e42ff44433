//! The requests a node answers, and in which versions: the one table that ApiVersions, the header,
//! the guard and the dispatch all read.

use kafka_protocol::messages::ApiKey;

use super::guard::Field;
use super::shapes;

/// One kind of request.
#[derive(Clone, Copy, Debug)]
pub struct Api {
    pub key: ApiKey,
    /// As metrics and documents call it.
    pub name: &'static str,
    /// What ApiVersions says.
    pub min: i16,
    pub max: i16,
    /// The lowest version that is answered; below it the connection is closed. It differs from
    /// `min` for Produce only: clients of librdkafka before 2.11.1 send compressed batches
    /// uncompressed unless version zero seems to be there (KAFKA-18659).
    pub served: i16,
    /// The first version with varint lengths and tagged fields.
    pub flexible: i16,
    /// What the guard walks; empty where the decoder is our own.
    pub(super) fields: &'static [Field],
}

impl Api {
    #[must_use]
    pub fn serves(&self, version: i16) -> bool {
        (self.served..=self.max).contains(&version)
    }

    /// Its place in [`APIS`].
    #[must_use]
    pub fn place(&self) -> usize {
        let others = APIS.iter().take_while(|api| api.key != self.key);
        others.count()
    }

    #[must_use]
    pub fn is_flexible(&self, version: i16) -> bool {
        version >= self.flexible
    }
}

const fn api(
    key: ApiKey,
    name: &'static str,
    (min, max): (i16, i16),
    flexible: i16,
    fields: &'static [Field],
) -> Api {
    Api {
        key,
        name,
        min,
        max,
        served: min,
        flexible,
        fields,
    }
}

/// For an api without a flexible version.
const NEVER: i16 = i16::MAX;

/// All of them, by key. A version above the ones here may decode, too, and is not promised before
/// it is tested.
pub const APIS: &[Api] = &[
    Api {
        served: 3,
        // Whoever writes in a transaction as of version 12 names no partition of it beforehand.
        ..api(ApiKey::Produce, "produce", (0, 11), 9, &[])
    },
    api(ApiKey::Fetch, "fetch", (4, 17), 12, &[]),
    api(
        ApiKey::ListOffsets,
        "list_offsets",
        (1, 10),
        6,
        shapes::LIST_OFFSETS,
    ),
    api(ApiKey::Metadata, "metadata", (0, 13), 9, shapes::METADATA),
    api(
        ApiKey::OffsetCommit,
        "offset_commit",
        (2, 9),
        8,
        shapes::OFFSET_COMMIT,
    ),
    api(
        ApiKey::OffsetFetch,
        "offset_fetch",
        (1, 9),
        6,
        shapes::OFFSET_FETCH,
    ),
    api(
        ApiKey::FindCoordinator,
        "find_coordinator",
        (0, 6),
        3,
        shapes::FIND_COORDINATOR,
    ),
    api(
        ApiKey::JoinGroup,
        "join_group",
        (0, 9),
        6,
        shapes::JOIN_GROUP,
    ),
    api(ApiKey::Heartbeat, "heartbeat", (0, 4), 4, shapes::HEARTBEAT),
    api(
        ApiKey::LeaveGroup,
        "leave_group",
        (0, 5),
        4,
        shapes::LEAVE_GROUP,
    ),
    api(
        ApiKey::SyncGroup,
        "sync_group",
        (0, 5),
        4,
        shapes::SYNC_GROUP,
    ),
    api(
        ApiKey::DescribeGroups,
        "describe_groups",
        (0, 6),
        5,
        shapes::DESCRIBE_GROUPS,
    ),
    api(
        ApiKey::ListGroups,
        "list_groups",
        (0, 5),
        3,
        shapes::LIST_GROUPS,
    ),
    api(
        ApiKey::SaslHandshake,
        "sasl_handshake",
        (0, 1),
        NEVER,
        shapes::SASL_HANDSHAKE,
    ),
    api(
        ApiKey::ApiVersions,
        "api_versions",
        (0, 4),
        3,
        shapes::API_VERSIONS,
    ),
    api(
        ApiKey::CreateTopics,
        "create_topics",
        (2, 7),
        5,
        shapes::CREATE_TOPICS,
    ),
    api(
        ApiKey::DeleteTopics,
        "delete_topics",
        (1, 6),
        4,
        shapes::DELETE_TOPICS,
    ),
    api(
        ApiKey::DeleteRecords,
        "delete_records",
        (0, 2),
        2,
        shapes::DELETE_RECORDS,
    ),
    api(
        ApiKey::InitProducerId,
        "init_producer_id",
        (0, 4),
        2,
        shapes::INIT_PRODUCER_ID,
    ),
    api(
        ApiKey::OffsetForLeaderEpoch,
        "offset_for_leader_epoch",
        (2, 4),
        4,
        shapes::OFFSET_FOR_LEADER_EPOCH,
    ),
    api(
        ApiKey::AddPartitionsToTxn,
        "add_partitions_to_txn",
        (0, 3),
        3,
        shapes::ADD_PARTITIONS_TO_TXN,
    ),
    api(
        ApiKey::AddOffsetsToTxn,
        "add_offsets_to_txn",
        (0, 3),
        3,
        shapes::ADD_OFFSETS_TO_TXN,
    ),
    api(ApiKey::EndTxn, "end_txn", (0, 4), 3, shapes::END_TXN),
    api(
        ApiKey::WriteTxnMarkers,
        "write_txn_markers",
        (1, 1),
        1,
        shapes::WRITE_TXN_MARKERS,
    ),
    api(
        ApiKey::TxnOffsetCommit,
        "txn_offset_commit",
        (0, 4),
        3,
        shapes::TXN_OFFSET_COMMIT,
    ),
    api(
        ApiKey::DescribeAcls,
        "describe_acls",
        (1, 3),
        2,
        shapes::DESCRIBE_ACLS,
    ),
    api(
        ApiKey::CreateAcls,
        "create_acls",
        (1, 3),
        2,
        shapes::CREATE_ACLS,
    ),
    api(
        ApiKey::DeleteAcls,
        "delete_acls",
        (1, 3),
        2,
        shapes::DELETE_ACLS,
    ),
    api(
        ApiKey::DescribeConfigs,
        "describe_configs",
        (1, 4),
        4,
        shapes::DESCRIBE_CONFIGS,
    ),
    api(
        ApiKey::AlterConfigs,
        "alter_configs",
        (0, 2),
        2,
        shapes::ALTER_CONFIGS,
    ),
    api(
        ApiKey::DescribeLogDirs,
        "describe_log_dirs",
        (1, 4),
        2,
        shapes::DESCRIBE_LOG_DIRS,
    ),
    api(
        ApiKey::SaslAuthenticate,
        "sasl_authenticate",
        (0, 2),
        2,
        shapes::SASL_AUTHENTICATE,
    ),
    api(
        ApiKey::CreatePartitions,
        "create_partitions",
        (0, 3),
        2,
        shapes::CREATE_PARTITIONS,
    ),
    api(
        ApiKey::DeleteGroups,
        "delete_groups",
        (0, 2),
        2,
        shapes::DELETE_GROUPS,
    ),
    api(
        ApiKey::ElectLeaders,
        "elect_leaders",
        (0, 2),
        2,
        shapes::ELECT_LEADERS,
    ),
    api(
        ApiKey::IncrementalAlterConfigs,
        "incremental_alter_configs",
        (0, 1),
        1,
        shapes::INCREMENTAL_ALTER_CONFIGS,
    ),
    api(
        ApiKey::AlterPartitionReassignments,
        "alter_partition_reassignments",
        (0, 1),
        0,
        shapes::ALTER_PARTITION_REASSIGNMENTS,
    ),
    api(
        ApiKey::ListPartitionReassignments,
        "list_partition_reassignments",
        (0, 0),
        0,
        shapes::LIST_PARTITION_REASSIGNMENTS,
    ),
    api(
        ApiKey::OffsetDelete,
        "offset_delete",
        (0, 0),
        NEVER,
        shapes::OFFSET_DELETE,
    ),
    api(
        ApiKey::DescribeClientQuotas,
        "describe_client_quotas",
        (0, 1),
        1,
        shapes::DESCRIBE_CLIENT_QUOTAS,
    ),
    api(
        ApiKey::AlterClientQuotas,
        "alter_client_quotas",
        (0, 1),
        1,
        shapes::ALTER_CLIENT_QUOTAS,
    ),
    api(
        ApiKey::DescribeUserScramCredentials,
        "describe_user_scram_credentials",
        (0, 0),
        0,
        shapes::DESCRIBE_USER_SCRAM_CREDENTIALS,
    ),
    api(
        ApiKey::AlterUserScramCredentials,
        "alter_user_scram_credentials",
        (0, 0),
        0,
        shapes::ALTER_USER_SCRAM_CREDENTIALS,
    ),
    api(
        ApiKey::DescribeQuorum,
        "describe_quorum",
        (0, 2),
        0,
        shapes::DESCRIBE_QUORUM,
    ),
    api(
        ApiKey::UpdateFeatures,
        "update_features",
        (0, 2),
        0,
        shapes::UPDATE_FEATURES,
    ),
    api(
        ApiKey::DescribeCluster,
        "describe_cluster",
        (0, 2),
        0,
        shapes::DESCRIBE_CLUSTER,
    ),
    api(
        ApiKey::DescribeProducers,
        "describe_producers",
        (0, 0),
        0,
        shapes::DESCRIBE_PRODUCERS,
    ),
    api(
        ApiKey::DescribeTransactions,
        "describe_transactions",
        (0, 0),
        0,
        shapes::DESCRIBE_TRANSACTIONS,
    ),
    api(
        ApiKey::ListTransactions,
        "list_transactions",
        (0, 1),
        0,
        shapes::LIST_TRANSACTIONS,
    ),
    api(
        ApiKey::ConsumerGroupHeartbeat,
        "consumer_group_heartbeat",
        (0, 1),
        0,
        shapes::CONSUMER_GROUP_HEARTBEAT,
    ),
    api(
        ApiKey::ConsumerGroupDescribe,
        "consumer_group_describe",
        (0, 1),
        0,
        shapes::CONSUMER_GROUP_DESCRIBE,
    ),
    api(
        ApiKey::ListConfigResources,
        "list_config_resources",
        (0, 1),
        0,
        shapes::LIST_CONFIG_RESOURCES,
    ),
    api(
        ApiKey::DescribeTopicPartitions,
        "describe_topic_partitions",
        (0, 0),
        0,
        shapes::DESCRIBE_TOPIC_PARTITIONS,
    ),
];

/// The api of this key, if it is served.
#[must_use]
pub fn api_of(key: i16) -> Option<&'static Api> {
    APIS.iter().find(|api| api.key as i16 == key)
}
