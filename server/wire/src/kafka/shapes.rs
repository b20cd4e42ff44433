//! The shapes of the requests that the codec decodes: their fields in the order of the wire, each
//! with the first and the last version that has it.

use super::guard::Field;
use super::guard::Shape::{Fixed, Structs, Text};
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
