//! The logs of a data directory's groups, over the write-ahead log they share.
//!
//! ```text
//! append ──> memory (readable) ──> WAL (durable, done) ──> commit ──> segment (WAL may recycle)
//!               │ pinned until it stands in a segment, then cached while the budget lasts
//!               └──> readers: memory first, then segments
//! ```
//!
//! A log is a chain of frames: indexes without gaps, terms that never fall, base offsets that
//! continue, append times that grow. This module keeps the chain and checks it wherever bytes
//! come back from disk. It stores votes, terms and log starts and decides nothing by them.

mod adopt;
mod budget;
pub(crate) mod checkpoint;
pub(crate) mod checkpoint_file;
mod compaction;
mod config;
mod copy;
mod fill;
mod filling;
mod group;
mod index;
mod index_cache;
mod keeper;
mod key_map;
mod memory;
mod note;
mod pace;
mod read;
mod reader;
mod recovery;
mod retention;
mod rewriter;
mod rewrites;
mod scrub;
mod search;
mod segment;
mod segments;
mod shared;
mod stage;
mod tip;
mod types;
mod wal_runs;

pub use budget::{Claim, Pressure, Share};
pub use compaction::{
    CleanError, CleanPlan, CleanReport, Cleanable, MAX_RECORDS as CLEAN_RECORDS_MAX,
    RULES as CLEAN_RULES,
};
pub use config::StoreConfig;
pub use copy::{CopyError, CopySum, Gap, Incoming};
pub use filling::Rolling;
pub use group::GroupLog;
pub use retention::{Retention, SegmentInfo};
pub use rewrites::Cleanness;
pub use types::{
    AppendDone, AppendError, Appending, EndOf, LogStart, LogState, ReadError, StoreError,
    TermStart, Vote,
};

pub(crate) use checkpoint::{Checkpoint, CheckpointError, GroupRecord, SegmentRecord};
pub(crate) use checkpoint_file::SaveError;
pub(crate) use compaction::{CleanJob, QUEUE as CLEAN_QUEUE};
pub(crate) use config::{SEGMENTS, WAL};
pub(crate) use fill::{FillJob, FillTask};
pub(crate) use group::{Group, GroupState};
pub(crate) use keeper::{KeeperJob, KeeperTask};
pub(crate) use reader::ReadPool;
pub(crate) use recovery::{Recovered, RecoveredGroup, Recovery};
pub(crate) use scrub::ScrubJob;
pub(crate) use segment::{
    HEADER_LEN as SEGMENT_HEADER_LEN, SegmentHeader, file_name as segment_file_name, is_copy,
    parse_aside_name,
};
pub(crate) use shared::{Progress, Shared};
pub(crate) use stage::Stage;
pub(crate) use tip::Tip;
