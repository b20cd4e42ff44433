//! Every metric a node may show: its name, kind and meaning.
//!
//! Names are `trilog_<area>_<noun>_<unit>[_total]` in base units. Label values come only from the
//! bounded sets dialect, api, topic, group, reason, op and state; never a client, subject,
//! session or address.

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    Histogram,
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

const fn metric(
    name: &'static str,
    kind: Kind,
    labels: &'static [&'static str],
    help: &'static str,
) -> Metric {
    Metric {
        name,
        kind,
        labels,
        help,
    }
}

use Kind::{Counter, Gauge, Histogram};

/// All of them.
#[rustfmt::skip]
pub const CATALOGUE: &[Metric] = &[
    metric("trilog_build_info", Gauge, &["version", "commit"], "What was built; always 1."),
    metric("trilog_connections", Gauge, &["dialect"], "Client connections open now."),
    metric("trilog_tls_handshakes_total", Counter, &["dialect", "state"], "Handshakes of TLS, by how they ended."),
    metric("trilog_connections_closed_total", Counter, &["dialect", "reason"], "Connections closed, by why."),
    metric("trilog_authentications_total", Counter, &["dialect", "op", "state"], "Attempts of clients to prove who they are, by mechanism and outcome."),
    metric("trilog_requests_total", Counter, &["dialect", "api"], "Requests answered."),
    metric("trilog_request_errors_total", Counter, &["dialect", "api", "reason"], "Requests answered with an error."),
    metric("trilog_request_duration_seconds", Histogram, &["dialect", "api"], "From a request's last byte to its answer."),
    metric("trilog_throttle_duration_seconds", Histogram, &["dialect", "reason"], "For how long clients were held back: over a quota, by what it is on; or faster (pace) than their application."),
    metric("trilog_request_memory_bytes", Gauge, &[], "Memory that requests coming in have claimed, of limits.request_memory."),
    metric("trilog_messages_in_total", Counter, &["dialect", "topic"], "Records acknowledged to their producers."),
    metric("trilog_messages_out_total", Counter, &["dialect", "topic"], "Records sent to consumers."),
    metric("trilog_payload_bytes_out_total", Counter, &["dialect", "state"], "Bytes of stored batches handed to consumers' connections as they are in memory, or as copies."),
    metric("trilog_bytes_in_total", Counter, &["dialect", "topic"], "Bytes of record batches acknowledged."),
    metric("trilog_bytes_out_total", Counter, &["dialect", "topic"], "Bytes of record batches sent."),
    metric("trilog_append_duration_seconds", Histogram, &[], "From an append to its durability on this node."),
    metric("trilog_fsync_duration_seconds", Histogram, &[], "One sync of the write-ahead log."),
    metric("trilog_commit_duration_seconds", Histogram, &[], "From a proposal to its commit."),
    metric("trilog_peer_bytes_total", Counter, &["op"], "Bytes on the links between nodes, in and out."),
    metric("trilog_clock_offset_seconds", Gauge, &[], "How far this node's clock is ahead of the others'."),
    metric("trilog_uring_fallback", Gauge, &[], "1 where io_uring was wanted and threads do its work."),
    metric("trilog_partitions", Gauge, &[], "Partition replicas on this node."),
    metric("trilog_partitions_led", Gauge, &[], "Partitions this node leads."),
    metric("trilog_partitions_resting", Gauge, &[], "Partition replicas here whose timers are off, since nothing is written."),
    metric("trilog_partitions_under_replicated", Gauge, &[], "Partitions led here of which a replica lags."),
    metric("trilog_partitions_leaderless", Gauge, &[], "Partitions held here that know no leader."),
    metric("trilog_raft_follower_lag_entries_max", Gauge, &[], "Entries the furthest follower is behind."),
    metric("trilog_raft_elections_total", Counter, &[], "Elections this node stood in."),
    metric("trilog_groups", Gauge, &["state"], "Consumer groups this node coordinates, by their state."),
    metric("trilog_group_lag_messages", Gauge, &["group", "topic"], "Records a group has yet to read, shown by the node that coordinates it; as of a few seconds ago."),
    metric("trilog_group_members", Gauge, &["group"], "Members of a group."),
    metric("trilog_group_rebalances_total", Counter, &["group"], "Rebalances in a group's life."),
    metric("trilog_group_series_hidden", Gauge, &[], "Groups and topics of groups that are added up as _other, for there are too many."),
    metric("trilog_transactions", Gauge, &["state"], "Transactional ids this node coordinates, by the state of their transaction."),
    metric("trilog_transactions_committed_total", Counter, &[], "Transactions that this node decided to commit."),
    metric("trilog_transactions_aborted_total", Counter, &["reason"], "Transactions that this node decided to abort, by why."),
    metric("trilog_transaction_open_seconds_max", Gauge, &[], "For how long the oldest open transaction that this node coordinates has been open."),
    metric("trilog_unsettled_messages", Gauge, &["topic"], "Records in partitions led here that readers of committed records do not see, for a transaction is open."),
    metric("trilog_aborted_transactions_max", Gauge, &["topic"], "Transactions, open or aborted, that a partition led here has to remember, of the fullest one; at 200,000 it takes no more."),
    metric("trilog_log_size_bytes", Gauge, &["topic"], "Bytes of segment files."),
    metric("trilog_log_segments", Gauge, &["topic"], "Segment files."),
    metric("trilog_wal_files_free", Gauge, &[], "Write-ahead log files that can be written again."),
    metric("trilog_wal_bytes_total", Counter, &[], "Bytes written to the write-ahead log."),
    metric("trilog_wal_rounds_total", Counter, &[], "Rounds of the write-ahead log, each one sync."),
    metric("trilog_storage_pinned_bytes", Gauge, &[], "Records in memory that no segment file holds yet."),
    metric("trilog_storage_cache_bytes", Gauge, &[], "Recent records kept in memory for readers."),
    metric("trilog_segments_quarantined", Gauge, &[], "Segments found damaged that no other replica's copy has replaced yet."),
    metric("trilog_partitions_incomplete", Gauge, &[], "Partition replicas that are still copying older records from others."),
    metric("trilog_scrub_bytes_total", Counter, &[], "Bytes read in the background to find damage."),
    metric("trilog_compaction_bytes_total", Counter, &[], "Bytes that compaction read and wrote."),
    metric("trilog_compaction_passes_total", Counter, &[], "Passes of compaction over a partition."),
    metric("trilog_compaction_failures_total", Counter, &[], "Passes that ended early; they are made again."),
    metric("trilog_compaction_freed_bytes_total", Counter, &[], "Bytes that compaction took out of segments."),
    metric("trilog_compaction_removed_records_total", Counter, &[], "Records that compaction removed."),
    metric("trilog_cache_hits_total", Counter, &[], "Reads served from memory."),
    metric("trilog_cache_misses_total", Counter, &[], "Reads served from files."),
    metric("trilog_losses_accepted", Gauge, &[], "Majorities that an operator gave up for lost."),
    metric("trilog_feature_level", Gauge, &[], "The feature level in force."),
    metric("trilog_authentication_differs", Gauge, &[], "1 while some nodes ask clients who they are and others do not."),
    metric("trilog_disk_free_bytes", Gauge, &[], "Free space under the data directory."),
    metric("process_cpu_seconds_total", Gauge, &[], "Processor time spent, user and system."),
    metric("process_resident_memory_bytes", Gauge, &[], "Memory in use."),
    metric("process_open_fds", Gauge, &[], "Open file descriptors."),
];

/// Bounds of every histogram of durations: from below one sync of a fast device to far beyond
/// what anybody waits.
pub(super) const SECONDS: [f64; 18] = [
    0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,
    1.0, 2.5, 5.0, 10.0, 30.0,
];

/// Bounds of every histogram of sizes: from a small record to the largest batch.
pub(super) const BYTES: [f64; 9] = [
    64.0,
    256.0,
    1_024.0,
    4_096.0,
    16_384.0,
    65_536.0,
    262_144.0,
    1_048_576.0,
    4_194_304.0,
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_end_as_their_kind_does() {
        let mut seen = BTreeSet::new();
        for metric in CATALOGUE {
            assert!(seen.insert(metric.name), "{} is there twice", metric.name);
            let total = metric.name.ends_with("_total");
            match metric.kind {
                Kind::Counter => assert!(total, "{}", metric.name),
                Kind::Histogram => assert!(
                    metric.name.ends_with("_seconds") || metric.name.ends_with("_bytes"),
                    "{} has no unit with buckets",
                    metric.name
                ),
                // The processor time is a counter of fractions, which the recorder has not.
                Kind::Gauge => assert!(!total || metric.name.starts_with("process_")),
            }
        }
    }

    #[test]
    fn labels_come_from_the_bounded_sets() {
        let allowed = [
            "version", "commit", "dialect", "api", "topic", "group", "reason", "op", "state",
        ];
        for metric in CATALOGUE {
            for label in metric.labels {
                assert!(allowed.contains(label), "{} of {}", label, metric.name);
            }
        }
    }
}
