//! The background scrub: reads sealed segments again, slowly, and finds what has gone bad in them
//! before somebody needs it.
//!
//! One segment after another, in the order of groups and entries, at a bounded rate, on a thread
//! of its own. Every byte of a segment is compared with something: the header with the log's own
//! record of it, frames with their checksums and with the chain, the end with where it must be,
//! and the index beside it with one made anew. A segment that fails is quarantined like one that
//! a reader finds; an index that fails is written again.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::sync::oneshot;
use tokio::time::{self, Instant};
use trilog_model::{GroupId, LogIndex};

use super::group::Group;
use super::index::SparseIndex;
use super::segment::{self, HEADER_BYTES, SegmentHeader};
use super::segments::Link;
use super::shared::Shared;
use crate::frame::{
    BATCH_PREFIX_LEN, Frame, FrameError, FrameHeader, HEADER_LEN as FRAME_HEADER_LEN,
};
use crate::io::{Io, IoFile, IoJob, OpenMode};

/// Bytes read at once; a frame that is larger is read whole.
const CHUNK: usize = 256 * 1024;

#[derive(Debug)]
pub(crate) struct ScrubJob {
    shared: Arc<Shared>,
    stop: oneshot::Receiver<()>,
}

impl ScrubJob {
    /// Ends when the other end of `stop` is dropped.
    pub(crate) fn new(shared: Arc<Shared>, stop: oneshot::Receiver<()>) -> Self {
        Self { shared, stop }
    }
}

impl IoJob for ScrubJob {
    async fn run<I: Io>(self, io: I) {
        let mut scrub = Scrub {
            io,
            shared: self.shared,
            stop: self.stop,
        };
        loop {
            let begun = Instant::now();
            if scrub.pass().await.is_err() {
                return;
            }
            let next = begun + scrub.shared.config.scrub_interval;
            if scrub.wait_until(next).await.is_err() {
                return;
            }
        }
    }
}

/// The store is closing.
struct Stopped;

/// Why a segment was not found whole.
enum Bad {
    Damaged(String),
    /// It cannot be judged by this build, or not now.
    Unknown(String),
    Stopped,
}

impl From<Stopped> for Bad {
    fn from(_: Stopped) -> Self {
        Self::Stopped
    }
}

struct Scrub<I: Io> {
    io: I,
    shared: Arc<Shared>,
    stop: oneshot::Receiver<()>,
}

impl<I: Io> Scrub<I> {
    /// Goes through everything that is sealed once.
    async fn pass(&mut self) -> Result<(), Stopped> {
        let mut at = (GroupId(0), LogIndex(0));
        while let Some((group, link)) = self.next(at) {
            at = (group.id, link.segment.header.base_index.next());
            match self.segment(&group, &link).await {
                Ok(()) => {}
                Err(Bad::Stopped) => return Err(Stopped),
                Err(Bad::Damaged(why)) => {
                    if group.holds(&link) {
                        group.quarantine(&link.segment, &why);
                    }
                }
                Err(Bad::Unknown(why)) => {
                    let path = link.segment.path.display();
                    tracing::warn!(%path, why, "a segment is not scrubbed");
                }
            }
        }
        Ok(())
    }

    /// The first segment at or after a place that can be scrubbed.
    fn next(&self, (mut from, mut index): (GroupId, LogIndex)) -> Option<(Arc<Group>, Link)> {
        loop {
            let (id, group) = {
                let groups = self.shared.groups.lock();
                let (id, group) = groups.range(from..).next()?;
                (*id, Arc::clone(group))
            };
            if id != from {
                index = LogIndex(0);
            }
            if let Some(link) = group.cold(index) {
                return Some((group, link));
            }
            from = GroupId(id.get().checked_add(1)?);
            index = LogIndex(0);
        }
    }

    async fn segment(&mut self, group: &Group, link: &Link) -> Result<(), Bad> {
        let opened = self.io.open(&link.segment.path, OpenMode::Read).await;
        let mut reader = Reader {
            file: opened.map_err(|error| unreadable(&error))?,
            chunk: Bytes::new(),
            pos: 0,
            end: link.extent.bytes,
        };
        self.more(&mut reader, HEADER_BYTES).await?;
        if SegmentHeader::decode(&reader.chunk) != Ok(link.segment.header) {
            return Err(Bad::Damaged("its header is not its own".to_owned()));
        }
        reader.advance(HEADER_BYTES);
        let index = self.frames(group, link, &mut reader).await?;
        drop(reader);
        self.index(group, link, &index).await;
        Ok(())
    }

    /// Goes through all frames and makes their index.
    async fn frames(
        &mut self,
        group: &Group,
        link: &Link,
        reader: &mut Reader<I::File>,
    ) -> Result<SparseIndex, Bad> {
        let mut tip = link.segment.header.tip_before();
        let mut index = SparseIndex::new(i64::MIN);
        while reader.pos < reader.end {
            let pos = reader.pos;
            let bad = |why: &dyn std::fmt::Display| Bad::Damaged(format!("at {pos}: {why}"));
            let judge = |error: FrameError| match error {
                FrameError::Version(_) | FrameError::Kind(_) => Bad::Unknown(error.to_string()),
                error => bad(&error),
            };
            self.more(reader, FRAME_HEADER_LEN).await?;
            let header = FrameHeader::decode(&reader.chunk).map_err(judge)?;
            self.more(reader, header.frame_len()).await?;
            let frame = Frame::decode(&mut reader.chunk).map_err(judge)?;
            reader.pos += header.frame_len() as u64;
            let ours = header.group == group.id && header.kind.is_stored();
            if !ours || tip.check(&header).is_err() {
                return Err(bad(&"the chain breaks"));
            }
            // Readers get this part made anew; as bytes on disk it is covered by nothing else.
            let prefix = frame.records.get(..BATCH_PREFIX_LEN);
            if prefix.is_some_and(|prefix| prefix != header.batch_prefix()) {
                return Err(bad(&"a batch begins as no batch of its frame does"));
            }
            tip = tip.past(&header);
            index.add(&frame, pos);
        }
        if tip.is_at(&link.extent.tip) {
            Ok(index)
        } else {
            Err(Bad::Damaged("it ends elsewhere".to_owned()))
        }
    }

    /// Has `len` bytes from the present place at hand.
    async fn more(&mut self, reader: &mut Reader<I::File>, len: usize) -> Result<(), Bad> {
        if reader.chunk.len() >= len {
            return Ok(());
        }
        let left = usize::try_from(reader.end - reader.pos).unwrap_or(usize::MAX);
        if left < len {
            return Err(Bad::Damaged(format!("at {}: it is cut short", reader.pos)));
        }
        let want = len.max(CHUNK).min(left);
        let read = reader.file.read_at(reader.pos, want).await;
        reader.chunk = read.map_err(|error| unreadable(&error))?;
        let got = reader.chunk.len();
        self.shared
            .scrubbed
            .fetch_add(got as u64, Ordering::Relaxed);
        if got < want {
            return Err(Bad::Damaged("it is too short".to_owned()));
        }
        Ok(self.pause(got).await?)
    }

    /// Compares the index beside a segment with the one just made, and writes that if they
    /// differ: nothing else would notice an index that leads astray.
    async fn index(&self, group: &Group, link: &Link, made: &SparseIndex) {
        let header = &link.segment.header;
        let path = segment::index_path(&link.segment.path);
        let stored = self.shared.reads.read_whole(&path).await;
        let same = stored.is_ok_and(|bytes| {
            SparseIndex::decode(&bytes, header.group, header.base_index, link.extent.bytes)
                .is_ok_and(|stored| stored.is_like(made))
        });
        if same || !group.holds(link) {
            return;
        }
        let bytes = made.encode(header.group, header.base_index, link.extent.bytes);
        let written = async {
            match self.io.remove_file(&path).await {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
            let file = self.io.open(&path, OpenMode::Create).await?;
            file.write_all_at(vec![bytes], 0).await
        };
        match written.await {
            Ok(()) => tracing::info!(path = %path.display(), "an index was made anew"),
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "an index is not written");
            }
        }
    }

    /// Takes the time that so many bytes take at the configured rate.
    async fn pause(&mut self, bytes: usize) -> Result<(), Stopped> {
        let rate = self.shared.config.scrub_bytes_per_second.max(1);
        let nanos = bytes as u64 * 1_000_000_000 / rate;
        let until = Instant::now() + Duration::from_nanos(nanos);
        self.wait_until(until).await
    }

    async fn wait_until(&mut self, until: Instant) -> Result<(), Stopped> {
        tokio::select! {
            biased;
            _ = &mut self.stop => Err(Stopped),
            () = time::sleep_until(until) => Ok(()),
        }
    }
}

/// A place in a segment's file.
struct Reader<F> {
    file: F,
    /// What stands from `pos` on, as far as it was read.
    chunk: Bytes,
    pos: u64,
    end: u64,
}

impl<F> Reader<F> {
    fn advance(&mut self, len: usize) {
        self.chunk.advance(len);
        self.pos += len as u64;
    }
}

/// What it means that a file cannot be read.
fn unreadable(error: &io::Error) -> Bad {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::UnexpectedEof => Bad::Damaged(error.to_string()),
        _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
            Bad::Damaged(error.to_string())
        }
        _ => Bad::Unknown(error.to_string()),
    }
}

impl Group {
    /// The first segment that begins at or after `from`, is sealed and durable, and was not found
    /// damaged yet.
    fn cold(&self, from: LogIndex) -> Option<Link> {
        let state = self.state.lock();
        let mut links = state.segments.links.iter();
        let cold = links.find(|link| {
            link.segment.header.base_index >= from
                && link.sealed
                && link.synced == Some(link.extent)
                && !link.segment.is_damaged()
        });
        cold.cloned()
    }

    /// Whether a segment is still part of the log.
    fn holds(&self, link: &Link) -> bool {
        self.state.lock().segments.position(&link.segment).is_some()
    }
}
