//! What goes wrong with the write-ahead log.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::fatal::Fatal;
use crate::frame::FrameError;

/// Why the log cannot be opened, or why a unit was not written. Cheap to clone: one failed write
/// is told to every waiter.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WalError {
    /// Something that was durable is damaged: every replica of this directory must step aside.
    #[error("the write-ahead log is damaged in file {file} at byte {pos}: {damage}")]
    Corrupt { file: u64, pos: u64, damage: Damage },
    #[error("the write-ahead log has format version {0}, newer than this build reads")]
    Version(u8),
    #[error("the write-ahead log holds a frame that this build does not know: {0}")]
    UnknownFrame(FrameError),
    #[error("cannot {what} {}: {source}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: Arc<io::Error>,
    },
    /// The log failed, for this unit and for all after it. The process must exit.
    #[error(transparent)]
    Fatal(#[from] Fatal),
    #[error("a frame of {bytes} bytes is larger than a file of the log takes ({limit})")]
    TooLarge { bytes: usize, limit: usize },
    #[error("a frame's header does not describe its payload")]
    Malformed,
    #[error("the write-ahead log is closed")]
    Closed,
    #[error("the write-ahead log is misconfigured: {0}")]
    Config(&'static str),
}

impl WalError {
    /// Names what was being done, and to which file, when an operation failed.
    pub(super) fn io<'a>(
        what: &'static str,
        path: &'a Path,
    ) -> impl FnOnce(io::Error) -> Self + 'a {
        move |source| Self::Io {
            what,
            path: path.to_path_buf(),
            source: Arc::new(source),
        }
    }
}

/// What is wrong with a durable part of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    #[error("the file is missing or its header is unreadable")]
    FileMissing,
    #[error("two files bear this number")]
    FileTwice,
    #[error("the file is shorter than it was made")]
    FileShort,
    #[error("round {found} is the last readable one, but round {durable} was durable")]
    RoundsMissing { found: u64, durable: u64 },
    #[error("round {round} does not follow from what comes before it")]
    ChainBroken { round: u64 },
}
