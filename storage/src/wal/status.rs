//! What the write-ahead log tells about itself.

use std::time::Duration;

use crate::histogram::Durations;

/// Where a round stands: the file's number in the order of writing, and the round's.
///
/// Both only grow, over restarts too, so positions order by age.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WalPosition {
    pub file: u64,
    pub round: u64,
}

/// How much room is left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum WalPressure {
    #[default]
    None,
    /// Half the files are in use: make a checkpoint and release the oldest.
    Low,
    /// No file is free but the reserve: what is submitted waits, unless it has more
    /// [`Room`](super::Room).
    Full,
}

/// A snapshot of counters and state.
#[derive(Clone, Debug, Default)]
pub struct WalStatus {
    /// The oldest file that is not released.
    pub oldest_file: u64,
    /// The newest file with a durable header; zero in a log never written to.
    pub current_file: u64,
    /// The newest durable round; zero in a log never written to.
    pub durable_round: u64,
    /// Files that hold frames not yet released.
    pub used_files: u32,
    /// Files ready for use, without those that could still be made.
    pub free_files: u32,
    /// Whether the disk is too full to make more files.
    pub growth_blocked: bool,
    /// Bytes of frames submitted and not yet answered.
    pub queued_bytes: u64,
    /// How long each durable write of the present process took.
    pub syncs: Durations,
    pub writing: WalWriting,
}

/// Totals since the log was opened.
#[derive(Clone, Copy, Debug, Default)]
pub struct WalWriting {
    /// Rounds that carry frames; each is one durable write.
    pub rounds: u64,
    /// Empty rounds, written when idle to carry the durable mark.
    pub seals: u64,
    /// Syncs of the device, one per round or seal.
    pub syncs: u64,
    pub units: u64,
    pub frames: u64,
    /// The most frames in one round.
    pub frames_per_round_max: u64,
    /// Bytes written, padding and headers included.
    pub bytes: u64,
    /// Payload bytes of small parts, copied into the round's own buffer.
    pub payload_bytes_gathered: u64,
    /// Payload bytes written from the very buffers that were submitted.
    pub payload_bytes_shared: u64,
    /// Payload bytes of large parts that were copied nonetheless: zero.
    pub payload_bytes_large_copied: u64,
    pub stages: WalStages,
}

impl WalWriting {
    /// What was added since `earlier`; the greatest round is that of all times.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            rounds: self.rounds - earlier.rounds,
            seals: self.seals - earlier.seals,
            syncs: self.syncs - earlier.syncs,
            units: self.units - earlier.units,
            frames: self.frames - earlier.frames,
            frames_per_round_max: self.frames_per_round_max,
            bytes: self.bytes - earlier.bytes,
            payload_bytes_gathered: self.payload_bytes_gathered - earlier.payload_bytes_gathered,
            payload_bytes_shared: self.payload_bytes_shared - earlier.payload_bytes_shared,
            payload_bytes_large_copied: self.payload_bytes_large_copied
                - earlier.payload_bytes_large_copied,
            stages: WalStages {
                queued: self.stages.queued.saturating_sub(earlier.stages.queued),
                gather: self.stages.gather.saturating_sub(earlier.stages.gather),
                write: self.stages.write.saturating_sub(earlier.stages.write),
                complete: self.stages.complete.saturating_sub(earlier.stages.complete),
            },
        }
    }
}

/// Where time goes, summed over rounds.
#[derive(Clone, Copy, Debug, Default)]
pub struct WalStages {
    /// From the submission of the oldest unit of a gathering to its taking.
    pub queued: Duration,
    /// Laying frames out as a round.
    pub gather: Duration,
    /// The write and its sync.
    pub write: Duration,
    /// Telling the waiters.
    pub complete: Duration,
}
