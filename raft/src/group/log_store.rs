//! openraft's log on top of a group's log in storage.
//!
//! Calls run in the group's core task and only touch memory, but for votes and truncations, which
//! are durable on return. Storage runs the callbacks of appends in order, so they are the
//! watermark openraft asks for: the completion of an entry says that all before it are durable.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds, RangeInclusive};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures::Stream;
use openraft::OptionalSend;
use openraft::entry::RaftEntry;
use openraft::storage::{IOFlushed, LogState, RaftLogReader, RaftLogStorage};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use trilog_model::{EntryId, GroupId, LogIndex};
use trilog_storage::frame::{Frame, FrameKind};
use trilog_storage::log::{AppendDone, Appending, GroupLog, LogStart, ReadError};
use trilog_storage::planted::{self, Bug};

use super::status::Status;
use crate::codec::encode_membership;
use crate::types::{
    Entry, LogId, Payload, RaftVote, TypeConfig, entry_id, log_id, raft_vote, stored_vote,
};

/// The most bytes one read takes from storage when all of a range is wanted.
const READ_BYTES: usize = 4 << 20;
/// How long until damaged entries are looked at again.
const DAMAGE_PAUSE: Duration = Duration::from_millis(100);
/// How long a read that fails for another reason is tried: an error ends the group.
const READ_PATIENCE: Duration = Duration::from_secs(10);

/// The log starts that the state machine has prepared and a purge makes real.
pub(crate) type PlannedStart = Arc<Mutex<PlannedStarts>>;

/// Log starts that rise. A purge may be put off for as long as a learner still reads what it would
/// take, and be done when others have been prepared since.
#[derive(Debug, Default)]
pub(crate) struct PlannedStarts {
    starts: Vec<LogStart>,
    /// The last of those that were forgotten.
    forgotten: Option<LogIndex>,
}

/// A purge up to what nothing has prepared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unprepared;

impl PlannedStarts {
    /// Prepared starts that are remembered. Of more, one in between is forgotten: a purge up to it
    /// then takes less.
    const MOST: usize = 8;

    pub(crate) fn add(&mut self, start: LogStart) {
        let later = |known: &LogStart| known.purged.index >= start.purged.index;
        self.starts.retain(|known| !later(known));
        self.starts.push(start);
        if self.starts.len() > Self::MOST {
            let forgotten = self.starts.remove(Self::MOST - 1).purged.index;
            self.forgotten = self.forgotten.max(Some(forgotten));
        }
    }

    /// What a purge up to `id` makes real: all those up to it have had their time. None where it
    /// was for one that is forgotten, and what came before has had its time already.
    fn take(&mut self, id: EntryId) -> Result<Option<LogStart>, Unprepared> {
        let end = self
            .starts
            .partition_point(|start| start.purged.index <= id.index);
        match self.starts.drain(..end).last() {
            Some(start) => Ok(Some(start)),
            None if self.forgotten >= Some(id.index) => Ok(None),
            None => Err(Unprepared),
        }
    }
}

/// The log of one group, as openraft sees it; readers are clones.
#[derive(Clone, Debug)]
pub(crate) struct LogStore {
    log: GroupLog,
    status: Arc<Status>,
    planned: PlannedStart,
    append_bytes: usize,
    patience: RepairPatience,
}

/// What reading damaged entries does. Before the group runs it fails, and the group does not
/// open; an error later would end the group, so a read waits until another replica's copy has
/// taken their place, or the group is closed.
#[derive(Clone, Debug)]
pub(crate) struct RepairPatience {
    runs: Arc<AtomicBool>,
    loaded: Arc<AtomicBool>,
    closing: CancellationToken,
}

impl RepairPatience {
    pub(crate) fn new(closing: CancellationToken) -> Self {
        Self {
            runs: Arc::default(),
            loaded: Arc::default(),
            closing,
        }
    }

    /// The group runs.
    pub(crate) fn begin(&self) {
        self.runs.store(true, Ordering::Relaxed);
    }

    /// openraft has taken in what the log holds; its tasks start after that.
    fn taken_in(&self) {
        self.loaded.store(true, Ordering::Release);
    }

    /// Waits before another attempt; false if there shall be none.
    async fn wait(&self) -> bool {
        if !self.runs.load(Ordering::Relaxed) {
            return false;
        }
        let pause = tokio::time::sleep(DAMAGE_PAUSE);
        self.closing.run_until_cancelled(pause).await.is_some()
    }
}

impl LogStore {
    pub(crate) fn new(
        log: GroupLog,
        status: Arc<Status>,
        planned: PlannedStart,
        append_bytes: usize,
        patience: RepairPatience,
    ) -> Self {
        Self {
            log,
            status,
            planned,
            append_bytes,
            patience,
        }
    }

    /// The part of a range that the log holds, half open.
    fn held(&self, range: &impl RangeBounds<u64>) -> (LogIndex, LogIndex) {
        let state = self.log.state();
        let first = state
            .log_start
            .map_or(0, |start| start.purged.index.get() + 1);
        let end = state.last.map_or(0, |last| last.index.get() + 1);
        let from = match range.start_bound() {
            Bound::Included(&from) => from,
            Bound::Excluded(&before) => before.saturating_add(1),
            Bound::Unbounded => 0,
        };
        let to = match range.end_bound() {
            Bound::Included(&last) => last.saturating_add(1),
            Bound::Excluded(&to) => to,
            Bound::Unbounded => u64::MAX,
        };
        (LogIndex(from.max(first)), LogIndex(to.min(end)))
    }

    /// Stands for an entry that is applied already, while openraft takes in what the log holds. It
    /// asks for no more than the identity of such an entry then, and that is known however damaged
    /// the rest may be. Its tasks, which would send the entry to others, do not run yet.
    fn identity(&self, from: LogIndex, to: LogIndex) -> Option<Entry> {
        let loading = !self.patience.loaded.load(Ordering::Acquire);
        let applied = self.status.applied_now() >= Some(from);
        if !loading || !applied || to != from.next() {
            return None;
        }
        let term = self.log.term_of(from)?;
        let id = log_id(EntryId { term, index: from });
        Some(Entry::new(id, Payload::Blank))
    }

    async fn read(&self, from: LogIndex, to: LogIndex, max: usize) -> io::Result<Vec<Entry>> {
        let mut failing = None;
        let frames = loop {
            let read = self.log.read(from, to, max).await;
            if matches!(read, Err(ReadError::Damaged { .. }))
                && let Some(entry) = self.identity(from, to)
            {
                return Ok(vec![entry]);
            }
            match read {
                Err(ReadError::Damaged { .. }) if self.patience.wait().await => {}
                // Such as no free descriptor, or no memory: that passes, or the group is opened
                // anew by whoever supervises it.
                Err(error @ ReadError::Io { .. }) => {
                    let since = *failing.get_or_insert_with(Instant::now);
                    if since.elapsed() >= READ_PATIENCE || !self.patience.wait().await {
                        return Err(read_error(error));
                    }
                }
                read => break read.map_err(read_error)?,
            }
        };
        let entries = frames.into_iter().map(Entry::stored);
        Ok(entries.collect::<Result<Vec<_>, _>>()?)
    }

    /// The frame an entry is or becomes, and who decides its place.
    fn frame(&self, entry: Entry) -> (Frame, Appending) {
        let id = entry.entry_id();
        let group = self.status.group;
        match entry.payload {
            Payload::Stored { frame, .. } => (*frame, Appending::Assert),
            Payload::Blank => (blank(group, id), Appending::Assign),
            // Judged in another term than it arrives in: its index is taken, so an entry there
            // must be, but an empty one.
            Payload::Draft(draft) if draft.expected_term != id.term => {
                (blank(group, id), Appending::Assign)
            }
            Payload::Draft(draft) => (draft.into_frame(group, id), Appending::Assign),
            Payload::Membership(membership) => {
                let command = encode_membership(&membership);
                let frame = Frame::bare(FrameKind::Membership, group, id, command);
                // The very first membership is written by each replica on its own, before any
                // leader, and must be the same bytes everywhere.
                let first = id.term.get() == 0;
                (
                    frame,
                    if first {
                        Appending::Assert
                    } else {
                        Appending::Assign
                    },
                )
            }
        }
    }
}

fn blank(group: GroupId, id: EntryId) -> Frame {
    Frame::bare(FrameKind::Blank, group, id, bytes::Bytes::new())
}

fn read_error(error: ReadError) -> io::Error {
    io::Error::other(error)
}

impl RaftLogReader<TypeConfig> for LogStore {
    async fn try_get_log_entries<RB>(&mut self, range: RB) -> io::Result<Vec<Entry>>
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (mut from, to) = self.held(&range);
        let mut entries = Vec::new();
        while from < to {
            let read = self.read(from, to, READ_BYTES).await?;
            from = LogIndex(from.get() + read.len() as u64);
            if read.is_empty() {
                break;
            }
            entries.extend(read);
        }
        Ok(entries)
    }

    async fn read_vote(&mut self) -> io::Result<Option<RaftVote>> {
        Ok(self.log.state().vote.as_ref().map(raft_vote))
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        if start >= end {
            return Ok(Vec::new());
        }
        self.read(LogIndex(start), LogIndex(end), self.append_bytes)
            .await
    }

    async fn entries_stream<RB>(
        &mut self,
        range: RB,
    ) -> impl Stream<Item = io::Result<Entry>> + OptionalSend
    where
        RB: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (from, to) = self.held(&range);
        let reader = self.clone();
        let buffer = Vec::new().into_iter();
        futures::stream::try_unfold(
            (reader, from, buffer),
            move |(reader, mut from, mut buffer)| async move {
                loop {
                    if let Some(entry) = buffer.next() {
                        return Ok(Some((entry, (reader, from, buffer))));
                    }
                    if from >= to {
                        return Ok(None);
                    }
                    let read = reader.read(from, to, reader.append_bytes).await?;
                    if read.is_empty() {
                        return Ok(None);
                    }
                    from = LogIndex(from.get() + read.len() as u64);
                    buffer = read.into_iter();
                }
            },
        )
    }

    /// The last entry of each term in the range.
    async fn get_key_log_ids(&mut self, range: RangeInclusive<LogId>) -> io::Result<Vec<LogId>> {
        // The last that openraft asks for before its tasks start.
        self.patience.taken_in();
        let (first, last) = (entry_id(range.start()), entry_id(range.end()));
        let starts = self.log.term_starts();
        let ends = starts.iter().skip(1).map(|next| next.index.get() - 1);
        let lasts = starts.iter().zip(ends.chain([last.index.get()]));
        let ids = lasts.map(|(start, end)| EntryId {
            term: start.term,
            index: LogIndex(end.min(last.index.get())),
        });
        let within = ids.filter(|id| id.index >= first.index && id.term <= last.term);
        Ok(within.map(log_id).collect())
    }
}

impl RaftLogStorage<TypeConfig> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<TypeConfig>> {
        let state = self.log.state();
        Ok(LogState {
            last_purged_log_id: state.log_start.map(|start| log_id(start.purged)),
            last_log_id: state.last.map(log_id),
        })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &RaftVote) -> io::Result<()> {
        let vote = stored_vote(vote);
        self.status.voting(&vote);
        debug_assert!(
            self.log.state().vote.is_none_or(|kept| {
                (kept.term, kept.committed) != (vote.term, vote.committed) || kept == vote
            }),
            "two votes in one term"
        );
        self.log.save_vote(vote).await.map_err(io::Error::other)?;
        self.status.voted(&vote);
        Ok(())
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        if let Some(id) = committed {
            self.log.commit(LogIndex(id.index()));
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let state = self.log.state();
        // What the log starts after is committed anyway, and more than that this does not know.
        let start = state.log_start.map(|start| start.purged.index);
        let committed = state
            .committed
            .filter(|index| start.is_none_or(|start| start < *index));
        Ok(committed.and_then(|index| {
            let term = self.log.term_of(index)?;
            Some(log_id(EntryId { term, index }))
        }))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<TypeConfig>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries = entries.into_iter();
        let mut run = Vec::with_capacity(entries.size_hint().0);
        let mut mode = Appending::Assign;
        let mut claims = Vec::new();
        for entry in entries {
            claims.extend(entry.claim());
            let (frame, wants) = self.frame(entry);
            // One call carries what one leader proposed or one leader sent, never both; should
            // that change, each run still goes to storage in order.
            if wants != mode && !run.is_empty() {
                let frames = std::mem::take(&mut run);
                let done = Box::new(|_| {});
                self.log
                    .append(frames, mode, done)
                    .map_err(io::Error::other)?;
            }
            mode = wants;
            run.push(frame);
        }
        let done: AppendDone =
            if planted::has(Bug::CommitCountsUnsynced) && mode == Appending::Assign {
                callback.io_completed(Ok(()));
                Box::new(|_| {})
            } else {
                Box::new(move |result| callback.io_completed(result.map_err(io::Error::other)))
            };
        let appended = self.log.append(run, mode, done).map_err(io::Error::other);
        // They count as pinned from here on.
        for claim in claims {
            claim.settle();
        }
        appended
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        if planted::has(Bug::TruncationSkipped) {
            return Ok(());
        }
        let last = last.map(|id| LogIndex(id.index()));
        self.log
            .truncate_after(last)
            .await
            .map_err(io::Error::other)
    }

    async fn purge(&mut self, id: LogId) -> io::Result<()> {
        let id = entry_id(&id);
        let start = self.log.state().log_start;
        if start.is_some_and(|start| start.purged.index >= id.index) {
            return Ok(());
        }
        let planned = self.planned.lock().take(id);
        let Some(start) = planned.map_err(|Unprepared| {
            io::Error::other(format!("a purge up to {id} that nothing prepared"))
        })?
        else {
            return Ok(());
        };
        self.log
            .set_log_start(start)
            .await
            .map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use trilog_model::{Offset, Timestamp};

    use super::*;

    fn start(index: u64) -> LogStart {
        LogStart {
            purged: EntryId::new(1, index),
            next_offset: Offset(index),
            next_time: Timestamp(index),
            data_start: Offset(0),
            meta: Bytes::new(),
        }
    }

    #[test]
    fn a_purge_that_was_put_off_finds_its_start_though_others_were_prepared_since() {
        let mut planned = PlannedStarts::default();
        planned.add(start(10));
        planned.add(start(20));
        assert_eq!(planned.take(EntryId::new(1, 10)), Ok(Some(start(10))));
        assert_eq!(planned.take(EntryId::new(1, 10)), Err(Unprepared));
        planned.add(start(20));
        planned.add(start(30));
        assert_eq!(planned.take(EntryId::new(1, 30)), Ok(Some(start(30))));
        assert!(planned.starts.is_empty());
        for index in 1..=100 {
            planned.add(start(index));
        }
        assert!(planned.starts.len() <= PlannedStarts::MOST);
        assert_eq!(planned.take(EntryId::new(1, 1)), Ok(Some(start(1))));
        let taken = planned.take(EntryId::new(1, 50)).unwrap().unwrap();
        assert!(taken.purged.index > LogIndex(1), "it takes less");
        // Two purges in a row up to what is forgotten: the second finds nothing left to take.
        assert_eq!(planned.take(EntryId::new(1, 60)), Ok(None));
        assert_eq!(planned.take(EntryId::new(1, 100)), Ok(Some(start(100))));
        assert_eq!(planned.take(EntryId::new(1, 101)), Err(Unprepared));
    }
}
