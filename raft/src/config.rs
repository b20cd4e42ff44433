//! The timings and bounds of every group on a node.

use std::time::Duration;

use openraft::{Config, SnapshotPolicy};
use trilog_storage::planted::{self, Bug};

use crate::group::Patience;

/// Raft's timings, the same for every group of a cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RaftConfig {
    /// How often a leader that has nothing else to send shows that it is alive.
    pub heartbeat: Duration,
    /// The shortest and longest wait of a follower without a leader, on top of its lease.
    pub election_min: Duration,
    pub election_max: Duration,
    /// The most bytes of entries in one message; one entry may be larger.
    pub append_bytes: usize,
    /// The most entries in one message.
    pub append_entries: u64,
    /// The most bytes a second that a node sends to followers which lack more than it has in
    /// memory, all groups together; zero sets no limit.
    pub catch_up_bytes_per_second: u64,
    /// How long a group must be idle before its timers stop.
    pub quiesce_after: Option<Duration>,
}

impl Default for RaftConfig {
    fn default() -> Self {
        Self {
            heartbeat: Duration::from_millis(100),
            election_min: Duration::from_millis(300),
            election_max: Duration::from_millis(400),
            append_bytes: 1 << 20,
            append_entries: 1_024,
            catch_up_bytes_per_second: 100 << 20,
            quiesce_after: Some(Duration::from_secs(10)),
        }
    }
}

/// A configuration no group can run with.
#[derive(Debug, thiserror::Error)]
#[error("raft timings: {0}")]
pub struct RaftConfigError(String);

impl RaftConfig {
    /// openraft's view of it.
    pub(crate) fn to_openraft(&self) -> Result<Config, RaftConfigError> {
        let heartbeat = millis(self.heartbeat);
        // Room for the handover in the queues between a group's tasks; openraft counts messages
        // there, and bytes are bounded by credits before they get that far.
        let queue = Some(4_096);
        Config {
            cluster_name: "trilog".to_owned(),
            heartbeat_interval: heartbeat,
            heartbeat_min_interval: Some(heartbeat),
            election_timeout_min: millis(self.election_min),
            election_timeout_max: millis(self.election_max),
            max_payload_entries: self.append_entries,
            snapshot_policy: SnapshotPolicy::Never,
            max_in_snapshot_log_to_keep: 0,
            purge_batch_size: 1,
            api_channel_size: queue,
            notification_channel_size: queue,
            state_machine_channel_size: Some(1_024),
            // Statistics that nobody reads: 24 bytes for each of six stages of so many entries.
            log_stage_capacity: Some(1),
            // A restarted leader that resumes its term can hold a log whose unflushed tail the
            // followers have committed; it then commits other entries at the same indexes.
            enable_leader_restore: Some(planted::has(Bug::LeaderRestore)),
            enable_pre_vote: Some(true),
            install_snapshot_timeout: 10_000,
            backoff: "50ms 100ms 200ms ...500ms".to_owned(),
            ..Config::default()
        }
        .validate()
        .map_err(|error| RaftConfigError(error.to_string()))
    }

    /// How long replicas of a group that is woken wait for one another.
    pub(crate) fn patience(&self) -> Patience {
        Patience {
            leader: self.election_max,
            stagger: self.election_min / 2,
        }
    }

    /// The longest a follower may go without hearing of its leader before it stands itself.
    pub fn failover(&self) -> Duration {
        self.election_max + self.election_max
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_and_keep_the_rules_that_prevent_loss() {
        let config = RaftConfig::default().to_openraft().unwrap();
        assert_eq!(config.enable_leader_restore, Some(false));
        assert_eq!(config.enable_pre_vote, Some(true));
        assert_eq!(config.snapshot_policy, SnapshotPolicy::Never);
        assert_eq!(config.max_in_snapshot_log_to_keep, 0);
    }

    #[test]
    fn an_election_faster_than_the_heartbeat_is_refused() {
        let config = RaftConfig {
            election_min: Duration::from_millis(50),
            election_max: Duration::from_millis(60),
            ..RaftConfig::default()
        };
        assert!(config.to_openraft().is_err());
    }
}
