//! How a simulated disk behaves besides keeping bytes: speed, room and chance faults.

use std::time::Duration;

/// Chances are per million operations of the kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SimConfig {
    /// Every operation takes a time drawn evenly from this range. Tokio's timers count in whole
    /// milliseconds; zero means that the operation only gives way once to other tasks.
    pub latency_min: Duration,
    pub latency_max: Duration,
    /// How often an operation takes [`Self::stall`] on top.
    pub stall_chance: u32,
    pub stall: Duration,
    /// The sum of all files' lengths that fits; a write beyond it is cut short and fails.
    pub quota_bytes: Option<u64>,
    /// A write fails, partly done.
    pub write_error_chance: u32,
    /// A sync fails and drops unsynced data.
    pub sync_error_chance: u32,
    pub read_error_chance: u32,
    /// No file can be opened for reading: the process has no descriptor left.
    pub no_descriptors: bool,
    /// A read returns one wrong bit; the next read of the same bytes may be right.
    pub read_flip_chance: u32,
    /// A read returns another place's bytes.
    pub read_misdirect_chance: u32,
}

impl Default for SimConfig {
    /// A sound disk of a millisecond or so.
    fn default() -> Self {
        Self {
            latency_min: Duration::from_micros(50),
            latency_max: Duration::from_micros(1_500),
            stall_chance: 0,
            stall: Duration::from_millis(500),
            quota_bytes: None,
            write_error_chance: 0,
            sync_error_chance: 0,
            read_error_chance: 0,
            no_descriptors: false,
            read_flip_chance: 0,
            read_misdirect_chance: 0,
        }
    }
}

impl SimConfig {
    /// A sound disk on which every operation gives way once and takes no time: for exploring
    /// many crash points fast.
    #[must_use]
    pub fn instant() -> Self {
        Self {
            latency_min: Duration::ZERO,
            latency_max: Duration::ZERO,
            ..Self::default()
        }
    }
}

/// What a failed sync does with the data it was asked to save.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncFailure {
    /// Each unsynced sector was written or is gone, visibly, at once.
    Drop,
    /// As `Drop`, but the page cache shows the lost sectors as if nothing had happened, to the
    /// next process too, until the power goes; a second sync reports success.
    Ghost,
}
