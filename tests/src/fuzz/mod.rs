//! What is fuzzed: everything that reads bytes which somebody else wrote. Each target is a plain
//! function over bytes that panics if something is wrong, so that cargo-fuzz can drive it
//! (`tests/fuzz`) and any toolchain can replay a corpus through it.
//!
//! Checksums keep random bytes from what lies behind them, so a target also takes its input with
//! the checksum made right.

mod controller;
mod directory;
mod frames;
mod kafka_requests;
mod record_batch;

pub use controller::controller_commands;
pub use directory::directory;
pub use frames::{log_frames, peer_frames};
pub use kafka_requests::kafka_requests;
pub use record_batch::record_batch;

/// One thing to fuzz.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Also the name of its corpus.
    pub name: &'static str,
    pub run: fn(&[u8]),
    /// How many times as long as the others it takes: so many times less it is replayed.
    pub cost: usize,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "controller_commands",
        run: controller_commands,
        cost: 1,
    },
    Target {
        name: "directory",
        run: directory,
        cost: 60,
    },
    Target {
        name: "kafka_requests",
        run: kafka_requests,
        cost: 1,
    },
    Target {
        name: "log_frames",
        run: log_frames,
        cost: 1,
    },
    Target {
        name: "peer_frames",
        run: peer_frames,
        cost: 1,
    },
    Target {
        name: "record_batch",
        run: record_batch,
        cost: 1,
    },
];
