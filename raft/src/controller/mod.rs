//! The controller: the one Raft group that decides what the cluster is made of.
//!
//! Everything here is pure: no I/O, no clock, no chance, and nothing of consensus. Commands and
//! identities come in, states, maps and plans come out.
//!
//! ```text
//! bootstrap   what an empty node does with what its seeds say
//! command --> state --> cluster_map --+--> reconcile   one node's steps towards the map
//!               ^                     +--> balance     the controller's unasked decisions
//!               +--- reports, decisions (commands) ----+
//! ```

mod access;
pub mod balance;
pub mod bootstrap;
mod cluster_config;
mod cluster_map;
mod command;
mod config_key;
#[cfg(test)]
mod fixtures;
mod ids;
mod internal;
mod level;
mod names;
mod nearest;
mod placement;
mod quota;
mod reassignment;
pub mod reconcile;
mod reply;
pub mod silence;
mod state;
mod topic_config;

pub use access::{
    ANY, Acl, AclEntry, AclTable, CLUSTER_RESOURCE, Credential, MAX_ACLS, MAX_ITERATIONS, MAX_SALT,
    MAX_USER_NAME, MAX_USERS, MIN_ITERATIONS, Mechanism, Operation, PatternKind, Permission,
    ResourceKind, USER_PREFIX, User, Verdict, Who, check_user_name,
};
pub use cluster_config::{ClusterConfigView, cluster_key, cluster_keys};
pub use cluster_map::{
    AcceptedLoss, ClusterMap, GroupPlace, Node, NodeState, Partition, Replica, Replication,
    Retired, Standing, Topic,
};
pub use config_key::{ConfigKey, ConfigSource, ConfigType, ConfigValue, Effect};
pub use ids::{ClusterId, InvalidIdentity, NodeIdentity, TopicId};
pub use internal::InternalTopic;
pub use level::{
    ABORTED_LEVEL, ACCESS_LEVEL, BASE_LEVEL, BUILD_LEVEL, COMPACTION_LEVEL, CONSUMERS_LEVEL,
    INTERNAL_LEVEL, LevelRange, PLACEMENT_LEVEL, QUOTA_LEVEL, TRANSACTION_LEVEL,
};
pub use names::{MAX_NAME_LEN, check_topic_name, collision_key};
pub use quota::{
    QuotaEntity, QuotaKey, QuotaLimit, QuotaLimits, QuotaName, QuotaShare, Quotas, quota_of,
};
pub use reassignment::Reassignment;
pub use reply::{ControllerError, Outcome, Reply, decode_outcome, encode_outcome};
pub use state::{
    ControllerState, MAX_GROUPS, MAX_NODES, MAX_PARTITIONS, MAX_VOTERS, PRODUCER_ID_BLOCK,
    RestoreError, remaining_voters,
};
pub use topic_config::{
    Discard, MAX_BATCH_BYTES, TOPIC_KEYS, TimestampType, TopicConfig, TopicConfigView, topic_key,
};
pub mod commands {
    //! The commands, as messages.
    pub use super::command::*;
}
