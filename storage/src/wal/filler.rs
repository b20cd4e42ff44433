//! Makes slot files: writes them full of zeros, so that later rounds change no metadata and a
//! sync costs half of what it does in a growing file.

use std::io::{self, ErrorKind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::{Instant, timeout_at};

use super::format::BLOCK_BYTES;
use super::planted::{Flaw, planted};
use super::pool::{Errand, Slot};
use super::{Shared, WalConfig};
use crate::fatal::{Fatal, FatalSink};
use crate::io::{Io, IoFile, IoJob, OpenMode};

/// How much is written at once.
const CHUNK: u64 = 1 << 20;
/// How often a full disk is tried again.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// The job that makes slot files until the pool has enough.
#[derive(Debug)]
pub(super) struct Filler {
    pub(super) config: WalConfig,
    pub(super) shared: Arc<Shared>,
    pub(super) fatal: FatalSink,
}

impl IoJob for Filler {
    async fn run<I: Io>(self, io: I) {
        let pool = &self.shared.pool;
        // Whatever else happens meanwhile, a full disk is tried again in time.
        let mut again = Instant::now();
        loop {
            let (slot, mode) = match pool.next_errand(Instant::now() >= again) {
                Errand::Create(slot) => (slot, OpenMode::Create),
                Errand::Lengthen(slot) => (slot, OpenMode::Write),
                Errand::Rest => {
                    pool.errand_changed().await;
                    continue;
                }
                Errand::Retry => {
                    // Neither outcome tells more than a new look.
                    let _ = timeout_at(again, pool.errand_changed()).await;
                    continue;
                }
                Errand::End => return,
            };
            match self.make(&io, slot, mode).await {
                Ok(true) => {
                    pool.filled();
                    self.shared.queue.ring();
                }
                Ok(false) => return,
                Err(error) if is_full(&error) => {
                    self.give_up(&io, slot).await;
                    again = Instant::now() + RETRY_AFTER;
                }
                Err(error) => {
                    let source = Arc::new(error);
                    let what = "make a file of the write-ahead log";
                    let fatal = Fatal { what, source };
                    self.fatal.fire(fatal.clone());
                    pool.fail(fatal);
                    self.shared.queue.ring();
                    return;
                }
            }
        }
    }
}

impl Filler {
    /// Fills the slot's file up; false if the log was closed meanwhile.
    async fn make<I: Io>(&self, io: &I, slot: Slot, mode: OpenMode) -> io::Result<bool> {
        let file = io.open(&slot.path(&self.config.dir), mode).await?;
        let target = self.config.file_bytes;
        // What stands in a short file already stays: its old header must not come apart.
        let mut pos = file.len().await? / BLOCK_BYTES * BLOCK_BYTES;
        let chunk = usize::try_from(CHUNK.min(target)).unwrap_or(usize::MAX);
        let zeros = Bytes::from(vec![0; chunk]);
        while pos < target {
            if self.shared.pool.ended() {
                return Ok(false);
            }
            let len = usize::try_from(target - pos).map_or(chunk, |left| left.min(chunk));
            file.write_all_at(vec![zeros.slice(..len)], pos).await?;
            pos += len as u64;
        }
        file.sync_data().await?;
        if !planted(Flaw::LeavesNewNamesUnsynced) {
            io.sync_dir(&self.config.dir).await?;
        }
        Ok(true)
    }

    /// Gives the disk back what a file took that did not fit.
    async fn give_up<I: Io>(&self, io: &I, slot: Slot) {
        let path: PathBuf = slot.path(&self.config.dir);
        tracing::warn!(path = %path.display(), "the disk is full: the write-ahead log cannot grow");
        if let Err(error) = io.remove_file(&path).await
            && error.kind() != ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "cannot remove an unfinished file");
        }
        self.shared.pool.not_filled();
        self.shared.queue.ring();
    }
}

fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded
    )
}
