//! The shapes of the requests that the codec decodes: their fields in the order of the wire, each
//! with the first and the last version that has it.

use super::guard::Field;
use super::guard::Shape::{Blob, Fixed, List, Maybe, Structs, Text};
use super::guard::field;

pub(super) const LIST_OFFSETS: &[Field] = &[
    field(1, 10, Fixed(4)), // replica_id
    field(2, 10, Fixed(1)), // isolation_level
    field(
        1,
        10,
        Structs(&[
            field(1, 10, Text), // name
            field(
                1,
                10,
                Structs(&[
                    field(1, 10, Fixed(4)), // partition_index
                    field(4, 10, Fixed(4)), // current_leader_epoch
                    field(1, 10, Fixed(8)), // timestamp
                ]),
            ), // partitions
        ]),
    ), // topics
    field(10, 10, Fixed(4)), // timeout_ms
];

pub(super) const METADATA: &[Field] = &[
    field(
        0,
        13,
        Structs(&[
            field(10, 13, Fixed(16)), // topic_id
            field(0, 13, Text),       // name
        ]),
    ), // topics
    field(4, 13, Fixed(1)), // allow_auto_topic_creation
    field(8, 10, Fixed(1)), // include_cluster_authorized_operations
    field(8, 13, Fixed(1)), // include_topic_authorized_operations
];

pub(super) const API_VERSIONS: &[Field] = &[
    field(3, 4, Text), // client_software_name
    field(3, 4, Text), // client_software_version
];

pub(super) const CREATE_TOPICS: &[Field] = &[
    field(
        2,
        7,
        Structs(&[
            field(2, 7, Text),     // name
            field(2, 7, Fixed(4)), // num_partitions
            field(2, 7, Fixed(2)), // replication_factor
            field(
                2,
                7,
                Structs(&[
                    field(2, 7, Fixed(4)),        // partition_index
                    field(2, 7, List(&Fixed(4))), // broker_ids
                ]),
            ), // assignments
            field(
                2,
                7,
                Structs(&[
                    field(2, 7, Text), // name
                    field(2, 7, Text), // value
                ]),
            ), // configs
        ]),
    ), // topics
    field(2, 7, Fixed(4)), // timeout_ms
    field(2, 7, Fixed(1)), // validate_only
];

pub(super) const DELETE_TOPICS: &[Field] = &[
    field(
        6,
        6,
        Structs(&[
            field(6, 6, Text),      // name
            field(6, 6, Fixed(16)), // topic_id
        ]),
    ), // topics
    field(1, 5, List(&Text)), // topic_names
    field(1, 6, Fixed(4)),    // timeout_ms
];

pub(super) const DELETE_RECORDS: &[Field] = &[
    field(
        0,
        2,
        Structs(&[
            field(0, 2, Text), // name
            field(
                0,
                2,
                Structs(&[
                    field(0, 2, Fixed(4)), // partition_index
                    field(0, 2, Fixed(8)), // offset
                ]),
            ), // partitions
        ]),
    ), // topics
    field(0, 2, Fixed(4)), // timeout_ms
];

pub(super) const INIT_PRODUCER_ID: &[Field] = &[
    field(0, 5, Text),     // transactional_id
    field(0, 5, Fixed(4)), // transaction_timeout_ms
    field(3, 5, Fixed(8)), // producer_id
    field(3, 5, Fixed(2)), // producer_epoch
];

pub(super) const OFFSET_FOR_LEADER_EPOCH: &[Field] = &[
    field(3, 4, Fixed(4)), // replica_id
    field(
        2,
        4,
        Structs(&[
            field(2, 4, Text), // topic
            field(
                2,
                4,
                Structs(&[
                    field(2, 4, Fixed(4)), // partition
                    field(2, 4, Fixed(4)), // current_leader_epoch
                    field(2, 4, Fixed(4)), // leader_epoch
                ]),
            ), // partitions
        ]),
    ), // topics
];

pub(super) const DESCRIBE_CONFIGS: &[Field] = &[
    field(
        1,
        4,
        Structs(&[
            field(1, 4, Fixed(1)),    // resource_type
            field(1, 4, Text),        // resource_name
            field(1, 4, List(&Text)), // configuration_keys
        ]),
    ), // resources
    field(1, 4, Fixed(1)), // include_synonyms
    field(3, 4, Fixed(1)), // include_documentation
];

pub(super) const ALTER_CONFIGS: &[Field] = &[
    field(
        0,
        2,
        Structs(&[
            field(0, 2, Fixed(1)), // resource_type
            field(0, 2, Text),     // resource_name
            field(
                0,
                2,
                Structs(&[
                    field(0, 2, Text), // name
                    field(0, 2, Text), // value
                ]),
            ), // configs
        ]),
    ), // resources
    field(0, 2, Fixed(1)), // validate_only
];

pub(super) const CREATE_PARTITIONS: &[Field] = &[
    field(
        0,
        3,
        Structs(&[
            field(0, 3, Text),     // name
            field(0, 3, Fixed(4)), // count
            field(
                0,
                3,
                Structs(&[
                    field(0, 3, List(&Fixed(4))), // broker_ids
                ]),
            ), // assignments
        ]),
    ), // topics
    field(0, 3, Fixed(4)), // timeout_ms
    field(0, 3, Fixed(1)), // validate_only
];

pub(super) const INCREMENTAL_ALTER_CONFIGS: &[Field] = &[
    field(
        0,
        1,
        Structs(&[
            field(0, 1, Fixed(1)), // resource_type
            field(0, 1, Text),     // resource_name
            field(
                0,
                1,
                Structs(&[
                    field(0, 1, Text),     // name
                    field(0, 1, Fixed(1)), // config_operation
                    field(0, 1, Text),     // value
                ]),
            ), // configs
        ]),
    ), // resources
    field(0, 1, Fixed(1)), // validate_only
];

pub(super) const DESCRIBE_CLUSTER: &[Field] = &[
    field(0, 2, Fixed(1)), // include_cluster_authorized_operations
    field(1, 2, Fixed(1)), // endpoint_type
    field(2, 2, Fixed(1)), // include_fenced_brokers
];

pub(super) const OFFSET_COMMIT: &[Field] = &[
    field(2, 9, Text),     // group_id
    field(2, 9, Fixed(4)), // generation_id_or_member_epoch
    field(2, 9, Text),     // member_id
    field(7, 9, Text),     // group_instance_id
    field(2, 4, Fixed(8)), // retention_time_ms
    field(
        2,
        9,
        Structs(&[
            field(2, 9, Text), // name
            field(
                2,
                9,
                Structs(&[
                    field(2, 9, Fixed(4)), // partition_index
                    field(2, 9, Fixed(8)), // committed_offset
                    field(6, 9, Fixed(4)), // committed_leader_epoch
                    field(2, 9, Text),     // committed_metadata
                ]),
            ), // partitions
        ]),
    ), // topics
];

pub(super) const OFFSET_FETCH: &[Field] = &[
    field(1, 7, Text), // group_id
    field(
        1,
        7,
        Structs(&[
            field(1, 7, Text),            // name
            field(1, 7, List(&Fixed(4))), // partition_indexes
        ]),
    ), // topics
    field(
        8,
        9,
        Structs(&[
            field(8, 9, Text),     // group_id
            field(9, 9, Text),     // member_id
            field(9, 9, Fixed(4)), // member_epoch
            field(
                8,
                9,
                Structs(&[
                    field(8, 9, Text),            // name
                    field(8, 9, List(&Fixed(4))), // partition_indexes
                ]),
            ), // topics
        ]),
    ), // groups
    field(7, 9, Fixed(1)), // require_stable
];

pub(super) const FIND_COORDINATOR: &[Field] = &[
    field(0, 3, Text),        // key
    field(1, 6, Fixed(1)),    // key_type
    field(4, 6, List(&Text)), // coordinator_keys
];

pub(super) const JOIN_GROUP: &[Field] = &[
    field(0, 9, Text),     // group_id
    field(0, 9, Fixed(4)), // session_timeout_ms
    field(1, 9, Fixed(4)), // rebalance_timeout_ms
    field(0, 9, Text),     // member_id
    field(5, 9, Text),     // group_instance_id
    field(0, 9, Text),     // protocol_type
    field(
        0,
        9,
        Structs(&[
            field(0, 9, Text), // name
            field(0, 9, Blob), // metadata
        ]),
    ), // protocols
    field(8, 9, Text),     // reason
];

pub(super) const HEARTBEAT: &[Field] = &[
    field(0, 4, Text),     // group_id
    field(0, 4, Fixed(4)), // generation_id
    field(0, 4, Text),     // member_id
    field(3, 4, Text),     // group_instance_id
];

pub(super) const LEAVE_GROUP: &[Field] = &[
    field(0, 5, Text), // group_id
    field(0, 2, Text), // member_id
    field(
        3,
        5,
        Structs(&[
            field(3, 5, Text), // member_id
            field(3, 5, Text), // group_instance_id
            field(5, 5, Text), // reason
        ]),
    ), // members
];

pub(super) const SYNC_GROUP: &[Field] = &[
    field(0, 5, Text),     // group_id
    field(0, 5, Fixed(4)), // generation_id
    field(0, 5, Text),     // member_id
    field(3, 5, Text),     // group_instance_id
    field(5, 5, Text),     // protocol_type
    field(5, 5, Text),     // protocol_name
    field(
        0,
        5,
        Structs(&[
            field(0, 5, Text), // member_id
            field(0, 5, Blob), // assignment
        ]),
    ), // assignments
];

pub(super) const DESCRIBE_GROUPS: &[Field] = &[
    field(0, 6, List(&Text)), // groups
    field(3, 6, Fixed(1)),    // include_authorized_operations
];

pub(super) const LIST_GROUPS: &[Field] = &[
    field(4, 5, List(&Text)), // states_filter
    field(5, 5, List(&Text)), // types_filter
];

pub(super) const DELETE_GROUPS: &[Field] = &[
    field(0, 2, List(&Text)), // groups_names
];

pub(super) const OFFSET_DELETE: &[Field] = &[
    field(0, 0, Text), // group_id
    field(
        0,
        0,
        Structs(&[
            field(0, 0, Text), // name
            field(
                0,
                0,
                Structs(&[
                    field(0, 0, Fixed(4)), // partition_index
                ]),
            ), // partitions
        ]),
    ), // topics
];

pub(super) const CONSUMER_GROUP_HEARTBEAT: &[Field] = &[
    field(0, 1, Text),        // group_id
    field(0, 1, Text),        // member_id
    field(0, 1, Fixed(4)),    // member_epoch
    field(0, 1, Text),        // instance_id
    field(0, 1, Text),        // rack_id
    field(0, 1, Fixed(4)),    // rebalance_timeout_ms
    field(0, 1, List(&Text)), // subscribed_topic_names
    field(1, 1, Text),        // subscribed_topic_regex
    field(0, 1, Text),        // server_assignor
    field(
        0,
        1,
        Structs(&[
            field(0, 1, Fixed(16)),       // topic_id
            field(0, 1, List(&Fixed(4))), // partitions
        ]),
    ), // topic_partitions
];

pub(super) const CONSUMER_GROUP_DESCRIBE: &[Field] = &[
    field(0, 1, List(&Text)), // group_ids
    field(0, 1, Fixed(1)),    // include_authorized_operations
];

pub(super) const ADD_PARTITIONS_TO_TXN: &[Field] = &[
    field(0, 3, Text),     // transactional_id
    field(0, 3, Fixed(8)), // producer_id
    field(0, 3, Fixed(2)), // producer_epoch
    field(
        0,
        3,
        Structs(&[
            field(0, 3, Text),            // name
            field(0, 3, List(&Fixed(4))), // partitions
        ]),
    ), // topics
];

pub(super) const ADD_OFFSETS_TO_TXN: &[Field] = &[
    field(0, 4, Text),     // transactional_id
    field(0, 4, Fixed(8)), // producer_id
    field(0, 4, Fixed(2)), // producer_epoch
    field(0, 4, Text),     // group_id
];

pub(super) const END_TXN: &[Field] = &[
    field(0, 5, Text),     // transactional_id
    field(0, 5, Fixed(8)), // producer_id
    field(0, 5, Fixed(2)), // producer_epoch
    field(0, 5, Fixed(1)), // committed
];

pub(super) const TXN_OFFSET_COMMIT: &[Field] = &[
    field(0, 5, Text),     // transactional_id
    field(0, 5, Text),     // group_id
    field(0, 5, Fixed(8)), // producer_id
    field(0, 5, Fixed(2)), // producer_epoch
    field(3, 5, Fixed(4)), // generation_id
    field(3, 5, Text),     // member_id
    field(3, 5, Text),     // group_instance_id
    field(
        0,
        5,
        Structs(&[
            field(0, 5, Text), // name
            field(
                0,
                5,
                Structs(&[
                    field(0, 5, Fixed(4)), // partition_index
                    field(0, 5, Fixed(8)), // committed_offset
                    field(2, 5, Fixed(4)), // committed_leader_epoch
                    field(0, 5, Text),     // committed_metadata
                ]),
            ), // partitions
        ]),
    ), // topics
];

pub(super) const WRITE_TXN_MARKERS: &[Field] = &[
    field(
        1,
        1,
        Structs(&[
            field(1, 1, Fixed(8)), // producer_id
            field(1, 1, Fixed(2)), // producer_epoch
            field(1, 1, Fixed(1)), // transaction_result
            field(
                1,
                1,
                Structs(&[
                    field(1, 1, Text),            // name
                    field(1, 1, List(&Fixed(4))), // partition_indexes
                ]),
            ), // topics
            field(1, 1, Fixed(4)), // coordinator_epoch
        ]),
    ), // markers
];

pub(super) const DESCRIBE_LOG_DIRS: &[Field] = &[
    field(
        1,
        4,
        Structs(&[
            field(1, 4, Text),            // topic
            field(1, 4, List(&Fixed(4))), // partitions
        ]),
    ), // topics
];

pub(super) const DESCRIBE_PRODUCERS: &[Field] = &[
    field(
        0,
        0,
        Structs(&[
            field(0, 0, Text),            // name
            field(0, 0, List(&Fixed(4))), // partition_indexes
        ]),
    ), // topics
];

pub(super) const DESCRIBE_TRANSACTIONS: &[Field] = &[
    field(0, 0, List(&Text)), // transactional_ids
];

pub(super) const LIST_TRANSACTIONS: &[Field] = &[
    field(0, 2, List(&Text)),     // state_filters
    field(0, 2, List(&Fixed(8))), // producer_id_filters
    field(1, 2, Fixed(8)),        // duration_filter
    field(2, 2, Text),            // transactional_id_pattern
];

pub(super) const ELECT_LEADERS: &[Field] = &[
    field(1, 2, Fixed(1)), // election_type
    field(
        0,
        2,
        Structs(&[
            field(0, 2, Text),            // topic
            field(0, 2, List(&Fixed(4))), // partitions
        ]),
    ), // topic_partitions
    field(0, 2, Fixed(4)), // timeout_ms
];

pub(super) const ALTER_PARTITION_REASSIGNMENTS: &[Field] = &[
    field(0, 1, Fixed(4)), // timeout_ms
    field(1, 1, Fixed(1)), // allow_replication_factor_change
    field(
        0,
        1,
        Structs(&[
            field(0, 1, Text), // name
            field(
                0,
                1,
                Structs(&[
                    field(0, 1, Fixed(4)),        // partition_index
                    field(0, 1, List(&Fixed(4))), // replicas
                ]),
            ), // partitions
        ]),
    ), // topics
];

pub(super) const LIST_PARTITION_REASSIGNMENTS: &[Field] = &[
    field(0, 0, Fixed(4)), // timeout_ms
    field(
        0,
        0,
        Structs(&[
            field(0, 0, Text),            // name
            field(0, 0, List(&Fixed(4))), // partition_indexes
        ]),
    ), // topics
];

pub(super) const SASL_HANDSHAKE: &[Field] = &[
    field(0, 1, Text), // mechanism
];

pub(super) const SASL_AUTHENTICATE: &[Field] = &[
    field(0, 2, Blob), // auth_bytes
];

pub(super) const DESCRIBE_ACLS: &[Field] = &[
    field(1, 3, Fixed(1)), // resource_type_filter
    field(1, 3, Text),     // resource_name_filter
    field(1, 3, Fixed(1)), // pattern_type_filter
    field(1, 3, Text),     // principal_filter
    field(1, 3, Text),     // host_filter
    field(1, 3, Fixed(1)), // operation
    field(1, 3, Fixed(1)), // permission_type
];

pub(super) const CREATE_ACLS: &[Field] = &[
    field(
        1,
        3,
        Structs(&[
            field(1, 3, Fixed(1)), // resource_type
            field(1, 3, Text),     // resource_name
            field(1, 3, Fixed(1)), // resource_pattern_type
            field(1, 3, Text),     // principal
            field(1, 3, Text),     // host
            field(1, 3, Fixed(1)), // operation
            field(1, 3, Fixed(1)), // permission_type
        ]),
    ), // creations
];

pub(super) const DELETE_ACLS: &[Field] = &[
    field(1, 3, Structs(DESCRIBE_ACLS)), // filters
];

pub(super) const DESCRIBE_USER_SCRAM_CREDENTIALS: &[Field] = &[
    field(
        0,
        0,
        Structs(&[
            field(0, 0, Text), // name
        ]),
    ), // users
];

pub(super) const ALTER_USER_SCRAM_CREDENTIALS: &[Field] = &[
    field(
        0,
        0,
        Structs(&[
            field(0, 0, Text),     // name
            field(0, 0, Fixed(1)), // mechanism
        ]),
    ), // deletions
    field(
        0,
        0,
        Structs(&[
            field(0, 0, Text),     // name
            field(0, 0, Fixed(1)), // mechanism
            field(0, 0, Fixed(4)), // iterations
            field(0, 0, Blob),     // salt
            field(0, 0, Blob),     // salted_password
        ]),
    ), // upsertions
];

pub(super) const DESCRIBE_CLIENT_QUOTAS: &[Field] = &[
    field(
        0,
        1,
        Structs(&[
            field(0, 1, Text),     // entity_type
            field(0, 1, Fixed(1)), // match_type
            field(0, 1, Text),     // match
        ]),
    ), // components
    field(0, 1, Fixed(1)), // strict
];

pub(super) const ALTER_CLIENT_QUOTAS: &[Field] = &[
    field(
        0,
        1,
        Structs(&[
            field(
                0,
                1,
                Structs(&[
                    field(0, 1, Text), // entity_type
                    field(0, 1, Text), // entity_name
                ]),
            ), // entity
            field(
                0,
                1,
                Structs(&[
                    field(0, 1, Text),     // key
                    field(0, 1, Fixed(8)), // value
                    field(0, 1, Fixed(1)), // remove
                ]),
            ), // ops
        ]),
    ), // entries
    field(0, 1, Fixed(1)), // validate_only
];

pub(super) const DESCRIBE_TOPIC_PARTITIONS: &[Field] = &[
    field(
        0,
        0,
        Structs(&[
            field(0, 0, Text), // name
        ]),
    ), // topics
    field(0, 0, Fixed(4)), // response_partition_limit
    field(
        0,
        0,
        Maybe(&[
            field(0, 0, Text),     // topic_name
            field(0, 0, Fixed(4)), // partition_index
        ]),
    ), // cursor
];

pub(super) const DESCRIBE_QUORUM: &[Field] = &[
    field(
        0,
        2,
        Structs(&[
            field(0, 2, Text), // topic_name
            field(
                0,
                2,
                Structs(&[
                    field(0, 2, Fixed(4)), // partition_index
                ]),
            ), // partitions
        ]),
    ), // topics
];

pub(super) const UPDATE_FEATURES: &[Field] = &[
    field(0, 2, Fixed(4)), // timeout_ms
    field(
        0,
        2,
        Structs(&[
            field(0, 2, Text),     // feature
            field(0, 2, Fixed(2)), // max_version_level
            field(0, 0, Fixed(1)), // allow_downgrade
            field(1, 2, Fixed(1)), // upgrade_type
        ]),
    ), // feature_updates
    field(1, 2, Fixed(1)), // validate_only
];

pub(super) const LIST_CONFIG_RESOURCES: &[Field] = &[
    field(1, 1, List(&Fixed(1))), // resource_types
];
