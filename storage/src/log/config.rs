//! The sizes a store works with.

use std::path::{Path, PathBuf};
use std::time::Duration;

use trilog_model::{GroupId, NodeId, ReplicaId};

use super::budget;
use crate::wal::WalConfig;

/// The folder of the write-ahead log.
pub(crate) const WAL: &str = "wal";
/// The folder of all groups' segments.
pub(crate) const SEGMENTS: &str = "p";
const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// The configuration of one data directory's store.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The data directory; created if it is not there.
    pub dir: PathBuf,
    /// Replicas that are known to be here, whatever the directory says: if it turns out to be
    /// damaged beyond saying who is in it, they are set aside all the same.
    pub residents: Vec<(GroupId, ReplicaId)>,
    /// Bytes of one write-ahead log file. A restart may change it only for an empty directory.
    pub wal_file_bytes: u64,
    /// Write-ahead log files.
    pub wal_files: u32,
    /// Bytes one round of the write-ahead log gathers at most.
    pub wal_round_bytes: usize,
    /// Bytes of entries that stand in no segment yet, over all groups, beyond which callers are
    /// told to hold back. Never more than three eighths of the write-ahead log.
    pub pinned_bytes: u64,
    /// Bytes of entries kept in memory, over all groups, after they reached a segment.
    pub cache_bytes: u64,
    /// A segment is sealed when it has grown to this.
    pub segment_bytes: u64,
    /// A segment is sealed when it spans this much append time.
    pub segment_age: Duration,
    /// Committed bytes of one group that make a run worth writing to its segment.
    pub fill_bytes: u64,
    /// Committed entries reach their segment after this long, however few they are.
    pub fill_age: Duration,
    /// Threads that fill segments.
    pub fill_workers: u32,
    /// Threads that read segments.
    pub read_workers: u32,
    /// Bytes per second the background scrub reads; zero turns it off.
    pub scrub_bytes_per_second: u64,
    /// Bytes per second that compaction reads and writes; zero sets no limit.
    pub compaction_bytes_per_second: u64,
    /// Bytes that compaction may take for the keys it remembers in one pass.
    pub compaction_memory: usize,
    /// A scrub of everything begins no sooner than this after the one before began.
    pub scrub_interval: Duration,
}

impl StoreConfig {
    /// The defaults of a server.
    #[must_use]
    pub fn new(dir: PathBuf) -> Self {
        Self {
            dir,
            residents: Vec::new(),
            wal_file_bytes: 64 * MIB,
            wal_files: 16,
            wal_round_bytes: 4 << 20,
            pinned_bytes: 256 * MIB,
            cache_bytes: 256 * MIB,
            segment_bytes: 128 * MIB,
            segment_age: Duration::from_hours(24),
            fill_bytes: 256 * KIB,
            fill_age: Duration::from_secs(2),
            fill_workers: 2,
            read_workers: 2,
            scrub_bytes_per_second: 4 * MIB,
            compaction_bytes_per_second: 32 * MIB,
            compaction_memory: 64 << 20,
            scrub_interval: Duration::from_hours(1),
        }
    }

    /// The defaults of `trilog dev`: three nodes share one machine.
    #[must_use]
    pub fn dev(dir: PathBuf) -> Self {
        Self {
            wal_file_bytes: 16 * MIB,
            wal_files: 8,
            pinned_bytes: 48 * MIB,
            cache_bytes: 64 * MIB,
            fill_workers: 1,
            read_workers: 1,
            ..Self::new(dir)
        }
    }

    /// The folder of a group's segments.
    pub(crate) fn group_dir(&self, group: GroupId, replica: ReplicaId) -> PathBuf {
        self.dir.join(SEGMENTS).join(format!("{group}@{replica}"))
    }

    /// The group and replica that a folder of segments is named for.
    pub(crate) fn parse_group_dir(name: &Path) -> Option<(GroupId, ReplicaId)> {
        let (group, replica) = name.to_str()?.split_once('@')?;
        let (node, incarnation) = replica.split_once('.')?;
        let replica = ReplicaId::new(NodeId(node.parse().ok()?), incarnation.parse().ok()?);
        Some((GroupId(group.parse().ok()?), replica))
    }

    /// Write-ahead log files that recovery may have to read before a checkpoint is made.
    pub(crate) fn checkpoint_files(&self) -> u64 {
        (u64::from(self.wal_files) * 3 / 8).max(1)
    }

    /// Write-ahead log files that an uncommitted entry may age before it is logged again.
    pub(crate) fn relog_files(&self) -> u64 {
        let files = u64::from(self.wal_files);
        (files / 2).min(files.saturating_sub(3)).max(1)
    }

    pub(crate) fn wal(&self) -> WalConfig {
        WalConfig {
            dir: self.dir.join(WAL),
            file_bytes: self.wal_file_bytes,
            files: self.wal_files,
            max_round_bytes: self.wal_round_bytes,
        }
    }

    /// The pinned budget that the write-ahead log can carry.
    pub(crate) fn pinned_budget(&self) -> u64 {
        let wal = budget::carried(self.wal_file_bytes, u64::from(self.wal_files));
        self.pinned_bytes.min(wal)
    }
}
