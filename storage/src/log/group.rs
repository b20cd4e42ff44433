//! One group's log: its end in memory, its notes in the write-ahead log, its body in segments.
//!
//! All state sits under one mutex per group, held for memory work only. What goes to the
//! write-ahead log is submitted under that mutex, so that the order on disk is the order of
//! changes. Ends are exclusive inside (`durable`, `committed`): every entry below them.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use trilog_model::{EntryId, GroupId, LogIndex, ReplicaId, Term};

use super::budget::{Claim, Pressure, Share};
use super::config::StoreConfig;
use super::fill::FillTask;
use super::filling::Rolling;
use super::memory::Resident;
use super::note::Note;
use super::rewrites::Rewrites;
use super::segments::Segments;
use super::shared::{Shared, WalGuard};
use super::tip::{Break, Tip};
use super::types::{
    AppendDone, AppendError, Appending, EndOf, LogStart, LogState, StoreError, TermStart, Vote,
};
use super::wal_runs::WalRuns;
use crate::frame::{Frame, FrameHeader};
use crate::wal::{Room, WalPosition};

/// A handle to one group's log; clones share it.
#[derive(Clone, Debug)]
pub struct GroupLog(pub(crate) Arc<Group>);

/// The log of one group.
#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) id: GroupId,
    pub(crate) replica: ReplicaId,
    pub(crate) dir: PathBuf,
    pub(crate) shared: Arc<Shared>,
    pub(crate) state: Mutex<GroupState>,
}

/// Everything about a group that changes.
#[derive(Debug)]
pub(crate) struct GroupState {
    pub(crate) vote: Option<Vote>,
    pub(crate) log_start: Option<LogStart>,
    /// Vote and log start as far as they are durable: what a checkpoint may say.
    pub(crate) settled: Settled,
    pub(crate) tip: Tip,
    pub(crate) resident: Resident,
    pub(crate) terms: Vec<TermStart>,
    pub(crate) durable: LogIndex,
    pub(crate) committed: LogIndex,
    /// The committed end the write-ahead log last heard of.
    pub(crate) hinted: LogIndex,
    pub(crate) segments: Segments,
    pub(crate) runs: WalRuns,
    pub(crate) cuts: Cuts,
    /// Where the write-ahead log says that the group was created, once that is durable.
    pub(crate) created: Option<WalPosition>,
    pub(crate) life: Life,
    /// The group waits in the fill queue, or is being filled.
    pub(crate) fill_queued: bool,
    /// What is committed is filled next, however little it is.
    pub(crate) fill_forced: bool,
    /// Segments of a log that was emptied, to be deleted once that is durable.
    pub(crate) emptied_files: Vec<PathBuf>,
    /// The filled end as the last tick saw it: what it still sees is old.
    pub(crate) seen_filled: LogIndex,
    /// A copy from another replica is on its way.
    pub(crate) receiving: bool,
    pub(crate) rewrites: Rewrites,
    /// When segments end, where the owner of the log asks for less than the store's own limits.
    pub(crate) rolling: Option<Rolling>,
}

/// The notes of a group that are durable.
#[derive(Clone, Debug, Default)]
pub(crate) struct Settled {
    pub(crate) vote: Option<Vote>,
    pub(crate) log_start: Option<LogStart>,
}

/// Whether a group may still be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Life {
    Here,
    /// Its removal is submitted.
    Removing,
    /// Its removal is durable.
    Gone,
}

/// Truncations whose write-ahead log frame is not durable yet: entries submitted before one
/// become durable only below it.
#[derive(Debug, Default)]
pub(crate) struct Cuts {
    generation: u64,
    open: Vec<(u64, LogIndex)>,
}

impl Cuts {
    fn cut(&mut self, end: LogIndex) -> u64 {
        self.generation += 1;
        self.open.push((self.generation, end));
        self.generation
    }

    /// What remains of entries up to `end`, submitted in `generation`.
    fn clip(&self, generation: u64, end: LogIndex) -> LogIndex {
        let later = self.open.iter().filter(|(cut, _)| *cut > generation);
        later.map(|&(_, at)| at).fold(end, LogIndex::min)
    }

    fn close(&mut self, generation: u64) {
        self.open.retain(|(cut, _)| *cut > generation);
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether something was cut and that is not durable yet. The entries count as gone, and must
    /// not be gone from disk before the word of it is there.
    pub(crate) fn is_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Whether everything was cut and that is not durable yet.
    pub(crate) fn is_emptying(&self) -> bool {
        self.open.iter().any(|(_, at)| *at == LogIndex(0))
    }
}

impl GroupState {
    pub(crate) fn new(tip: Tip) -> Self {
        Self {
            vote: None,
            log_start: None,
            settled: Settled::default(),
            tip,
            resident: Resident::starting_at(tip.next_index),
            terms: Vec::new(),
            durable: tip.next_index,
            committed: tip.next_index,
            hinted: tip.next_index,
            segments: Segments::starting_at(tip),
            runs: WalRuns::default(),
            cuts: Cuts::default(),
            created: None,
            life: Life::Here,
            fill_queued: false,
            fill_forced: false,
            emptied_files: Vec::new(),
            seen_filled: tip.next_index,
            receiving: false,
            rewrites: Rewrites::default(),
            rolling: None,
        }
    }

    /// Takes in an entry that continues the chain.
    pub(crate) fn push(&mut self, frame: Frame) {
        let header = &frame.header;
        if self.terms.last().is_none_or(|last| last.term < header.term) {
            self.terms.push(TermStart {
                term: header.term,
                index: header.index,
                offset: header.base_offset,
            });
        }
        self.tip = Tip::after(header);
        self.resident.push(frame);
    }

    /// Drops entries from `end` on, which must not lie below what is filled. Returns their bytes.
    pub(crate) fn cut(&mut self, end: LogIndex) -> u64 {
        let bytes = self.resident.bytes(end, self.resident.end());
        self.resident.cut(end);
        let before = end.get().checked_sub(1).map(LogIndex);
        self.tip = match before.and_then(|index| self.resident.get(index)) {
            Some(frame) => Tip::after(&frame.header),
            None => self.segments.filled(),
        };
        self.terms.retain(|start| start.index < end);
        self.durable = self.durable.min(end);
        self.committed = self.committed.min(end);
        self.hinted = self.hinted.min(end);
        self.runs.cut(end);
        bytes
    }

    /// The term of an entry, where it is still known.
    pub(crate) fn term_of(&self, index: LogIndex) -> Option<Term> {
        if index >= self.tip.next_index {
            return None;
        }
        let after = self.terms.partition_point(|start| start.index <= index);
        Some(self.terms.get(after.checked_sub(1)?)?.term)
    }

    /// Bytes of entries that are in no segment yet.
    fn pinned_bytes(&self) -> u64 {
        let filled = self.segments.filled().next_index;
        self.resident.bytes(filled, self.resident.end())
    }

    fn log_state(&self) -> LogState {
        let last_below = |end: LogIndex| end.get().checked_sub(1).map(LogIndex);
        LogState {
            log_start: self.log_start.clone(),
            last: self.tip.last,
            next_offset: self.tip.next_offset,
            data_start: self.segments.data_start(self.log_start.as_ref()),
            vote: self.vote,
            durable: last_below(self.durable),
            committed: last_below(self.committed),
            filled: last_below(self.segments.filled().next_index),
        }
    }
}

impl GroupLog {
    pub fn group(&self) -> GroupId {
        self.0.id
    }

    pub fn replica(&self) -> ReplicaId {
        self.0.replica
    }

    /// The log as it stands now.
    pub fn state(&self) -> LogState {
        self.0.state.lock().log_state()
    }

    /// The first entry of each term, as far as entries are retained.
    pub fn term_starts(&self) -> Vec<TermStart> {
        self.0.state.lock().terms.clone()
    }

    /// The term of an entry, if the log still knows it.
    pub fn term_of(&self, index: LogIndex) -> Option<Term> {
        self.0.state.lock().term_of(index)
    }

    /// The place behind an entry that ends the log or one of its segments. Known without reading
    /// the entry, so of one that is damaged, too.
    pub fn end_of(&self, index: LogIndex) -> Option<EndOf> {
        let state = self.0.state.lock();
        let of_segment = state.segments.find(index).map(|link| link.extent.tip);
        let tips = of_segment.into_iter().chain([state.tip]);
        let mut ends = tips.filter_map(|tip| {
            let entry = tip.last.filter(|last| last.index == index)?;
            Some(EndOf {
                entry,
                next_offset: tip.next_offset,
                next_time: tip.next_time,
            })
        });
        ends.next()
    }

    /// The headers of `from..to`, from memory alone; `None` unless all of them are there.
    pub fn headers(&self, from: LogIndex, to: LogIndex) -> Option<Vec<FrameHeader>> {
        self.0.state.lock().resident.headers(from, to)
    }

    /// Promises memory to entries of `bytes` that are about to be appended, if there is any now.
    /// A group that has nothing outside segments may take from the reserved share, so that others
    /// which cannot commit, and so hold on to theirs, do not starve it.
    #[must_use]
    pub fn try_claim(&self, bytes: u64, share: Share) -> Option<Claim> {
        let share = if self.0.state.lock().pinned_bytes() == 0 {
            Share::Reserved
        } else {
            share
        };
        self.0.shared.budget.try_claim(bytes, share)
    }

    /// As [`GroupLog::try_claim`], but waits for it.
    ///
    /// # Cancel safety
    /// Safe: what was not returned was not taken.
    pub async fn claim(&self, bytes: u64, share: Share) -> Claim {
        let budget = &self.0.shared.budget;
        budget.when_room(|| self.try_claim(bytes, share)).await
    }

    /// Bytes of entries that stand in no segment yet, but in the write-ahead log and in memory.
    #[must_use]
    pub fn unfilled_bytes(&self) -> u64 {
        self.0.state.lock().pinned_bytes()
    }

    /// The most bytes that all groups of the store may have outside segments.
    #[must_use]
    pub fn pinned_limit(&self) -> u64 {
        self.0.shared.budget.pinned_limit()
    }

    /// Why records should be refused, if they should.
    #[must_use]
    pub fn pressure(&self) -> watch::Receiver<Pressure> {
        self.0.shared.budget.watch()
    }

    /// Appends entries, all or none. They are readable on return; `done` runs when they are
    /// durable, after the `done` of every earlier append.
    pub fn append(
        &self,
        mut frames: Vec<Frame>,
        mode: Appending,
        done: AppendDone,
    ) -> Result<(), AppendError> {
        let group = &self.0;
        let shared = &group.shared;
        let wal = shared.wal()?;
        frames.iter().try_for_each(|frame| wal.admits(frame))?;
        let now = shared.clock.now();
        let mut bytes = 0;
        {
            let mut state = group.alive()?;
            let mut tip = state.tip;
            for frame in &mut frames {
                if mode == Appending::Assign {
                    frame.header.group = group.id;
                    frame.header.base_offset = tip.next_offset;
                    frame.header.append_time = now.max(tip.next_time);
                }
                admit(group.id, &tip, &frame.header)?;
                tip = Tip::after(&frame.header);
                bytes += frame.header.frame_len() as u64;
            }
            let from = state.tip.next_index;
            for frame in &frames {
                state.push(frame.clone());
            }
            if state.wants_hint(&shared.config) {
                state.hinted = state.committed;
                frames.push(Note::Committed(state.hinted).to_frame(group.id));
            }
            let (group, generation) = (Arc::clone(group), state.cuts.generation);
            shared.budget.pin(bytes);
            let began = Instant::now();
            wal.submit(shared, frames, Room::Common, move |result| {
                if result.is_ok() {
                    group.shared.appends.observe(began.elapsed());
                }
                done(result.map(|at| group.appended(generation, from, tip.next_index, at)));
            });
        }
        Ok(())
    }

    /// Keeps the vote; durable on return, as is all that was submitted before. One that ranks
    /// below what is kept changes nothing: whoever brings it read it before that one came.
    pub async fn save_vote(&self, vote: Vote) -> Result<(), StoreError> {
        let durable = {
            let wal = self.0.shared.wal()?;
            let mut state = self.0.alive()?;
            let kept = state.vote.filter(|kept| kept.rank() > vote.rank());
            let vote = kept.unwrap_or(vote);
            state.vote = Some(vote);
            let settle = move |state: &mut GroupState, _: &_| state.settled.vote = Some(vote);
            self.0.submit_note(&wal, &Note::Vote(vote), settle)
        };
        written(durable).await
    }

    /// Drops every entry after `last` (all of them for `None`); gone from memory at once, and
    /// from disk on return. Committed entries are never dropped.
    pub async fn truncate_after(&self, last: Option<LogIndex>) -> Result<(), StoreError> {
        let end = last.map_or(LogIndex(0), LogIndex::next);
        let durable = {
            let wal = self.0.shared.wal()?;
            let mut state = self.0.alive()?;
            if end >= state.tip.next_index {
                return Ok(());
            }
            if end < state.committed.max(state.segments.filled().next_index) {
                return Err(StoreError::BelowCommitted {
                    group: self.0.id,
                    last,
                });
            }
            let bytes = state.cut(end);
            self.0.shared.budget.unpin(bytes);
            let generation = state.cuts.cut(end);
            self.0.submit_note(&wal, &Note::Cut(end), move |state, _| {
                state.cuts.close(generation);
            })
        };
        written(durable).await
    }

    /// Moves the log start. X may lie beyond the last entry (or name another entry than the log
    /// has there): then the log is emptied and continues after X. Durable on return; segments
    /// below the data start are deleted later. A start that lies lower changes nothing.
    pub async fn set_log_start(&self, start: LogStart) -> Result<(), StoreError> {
        let durable = {
            let wal = self.0.shared.wal()?;
            let mut state = self.0.alive()?;
            let Some(start) = state.raised(start) else {
                return Ok(());
            };
            let emptied = state.is_foreign(start.purged);
            let note = Note::LogStart {
                start: start.clone(),
                emptied,
            };
            wal.admits(&note.to_frame(self.0.id))?;
            let mut generation = 0;
            if emptied {
                self.0.empty(&mut state, &start);
                generation = state.cuts.cut(LogIndex(0));
            } else {
                state.committed = state.committed.max(start.purged.index.next());
            }
            let floor = start.purged.index.next();
            state.log_start = Some(start.clone());
            self.0.submit_note(&wal, &note, move |state, group| {
                state.cuts.close(generation);
                state.durable = state.durable.max(floor);
                state.settled.log_start = Some(start);
                group.purge(state);
                if state.is_short() {
                    group.shared.want();
                }
            })
        };
        written(durable).await
    }

    /// Entries up to `index` are committed: segments may take them, nothing may cut them.
    pub fn commit(&self, index: LogIndex) {
        let mut state = self.0.state.lock();
        let end = index.next().min(state.tip.next_index);
        if end > state.committed {
            state.committed = end;
            self.0.queue_fill(&mut state);
        }
    }
}

impl GroupState {
    /// `start` merged with the present one; `None` if it raises nothing.
    fn raised(&self, start: LogStart) -> Option<LogStart> {
        let Some(old) = &self.log_start else {
            return Some(start);
        };
        let data_start = start.data_start.max(old.data_start);
        let newer = if start.purged.index > old.purged.index {
            start
        } else if data_start > old.data_start {
            old.clone()
        } else {
            return None;
        };
        Some(LogStart {
            data_start,
            ..newer
        })
    }

    /// Whether the log does not hold X: it ends before, or has another entry there.
    fn is_foreign(&self, purged: EntryId) -> bool {
        purged.index >= self.tip.next_index
            || self
                .term_of(purged.index)
                .is_some_and(|term| term != purged.term)
    }

    fn wants_hint(&self, config: &StoreConfig) -> bool {
        self.committed > self.hinted
            && self.resident.bytes(self.hinted, self.committed) >= config.fill_bytes
    }
}

impl Group {
    /// The state of a group that is not being removed.
    fn alive(&self) -> Result<MutexGuard<'_, GroupState>, StoreError> {
        let state = self.state.lock();
        match state.life {
            Life::Here => Ok(state),
            Life::Removing | Life::Gone => Err(StoreError::NoSuchGroup(self.id)),
        }
    }

    /// Entries `from..to`, submitted in `generation`, are durable in the write-ahead log.
    pub(crate) fn appended(
        self: &Arc<Self>,
        generation: u64,
        from: LogIndex,
        to: LogIndex,
        at: WalPosition,
    ) {
        let mut state = self.state.lock();
        let to = state.cuts.clip(generation, to);
        if from < to {
            state.durable = state.durable.max(to);
            state.runs.record(from, to, at.file);
            let synced = state.segments.synced().next_index;
            state.runs.release(synced);
            self.queue_fill(&mut state);
        }
    }

    /// Submits a note; the caller holds the state. `settle` changes the state once the note is
    /// durable, whether or not anyone still waits for it.
    fn submit_note(
        self: &Arc<Self>,
        wal: &WalGuard<'_>,
        note: &Note,
        settle: impl FnOnce(&mut GroupState, &Arc<Self>) + Send + 'static,
    ) -> oneshot::Receiver<Result<(), StoreError>> {
        let (sender, receiver) = oneshot::channel();
        let group = Arc::clone(self);
        let frame = note.to_frame(self.id);
        wal.submit(&self.shared, vec![frame], Room::Reserved, move |result| {
            let result = result.map(|_| settle(&mut group.state.lock(), &group));
            // The waiter may be gone; the note stands all the same.
            let _ = sender.send(result);
        });
        receiver
    }

    /// Makes the group's existence durable.
    pub(crate) async fn create(self: &Arc<Self>) -> Result<(), StoreError> {
        let (sender, receiver) = oneshot::channel();
        {
            let wal = self.shared.wal()?;
            let _state = self.alive()?;
            let group = Arc::clone(self);
            let frame = Note::Created(self.replica).to_frame(self.id);
            wal.submit(&self.shared, vec![frame], Room::Reserved, move |result| {
                let result = result.map(|at| {
                    group.state.lock().created.get_or_insert(at);
                });
                let _ = sender.send(result);
            });
        }
        written(receiver).await
    }

    /// Makes the group's end durable; its files are deleted afterwards.
    pub(crate) async fn remove(self: &Arc<Self>) -> Result<(), StoreError> {
        let durable = {
            let wal = self.shared.wal()?;
            let mut state = self.alive()?;
            state.life = Life::Removing;
            let note = Note::Removed(self.replica);
            self.submit_note(&wal, &note, |state, group| {
                state.life = Life::Gone;
                group.forget(state);
                state.segments.restart(state.tip);
                group.shared.doomed.lock().insert((group.id, group.replica));
            })
        };
        written(durable).await?;
        self.shared
            .send_fill(self.id, FillTask::Remove(self.id, self.replica));
        Ok(())
    }

    /// Empties the log and continues it after `start`.
    fn empty(&self, state: &mut GroupState, start: &LogStart) {
        self.forget(state);
        let tip = Tip::at_start(start);
        state.tip = tip;
        state.resident = Resident::starting_at(tip.next_index);
        state.terms.clear();
        state.durable = tip.next_index;
        state.committed = tip.next_index;
        state.hinted = tip.next_index;
        state.runs.cut(LogIndex(0));
        let mut gone = state.segments.restart(tip);
        gone.extend(state.rewrites.reset());
        if !gone.is_empty() {
            state.emptied_files.extend(gone);
        }
    }

    /// Gives back the memory of every entry.
    fn forget(&self, state: &mut GroupState) {
        let filled = state.segments.filled().next_index;
        let (first, end) = (state.resident.first(), state.resident.end());
        let budget = &self.shared.budget;
        budget.unpin(state.resident.bytes(filled, end));
        budget.uncache(state.resident.bytes(first, filled));
        state.resident = Resident::starting_at(state.tip.next_index);
    }

    /// Drops cached frames below `end`.
    pub(crate) fn evict(&self, end: LogIndex) {
        let mut state = self.state.lock();
        let end = end.min(state.segments.filled().next_index);
        let first = state.resident.first();
        self.shared.budget.uncache(state.resident.bytes(first, end));
        state.resident.evict(end);
    }
}

/// Waits for a submitted note.
pub(crate) async fn written(
    durable: oneshot::Receiver<Result<(), StoreError>>,
) -> Result<(), StoreError> {
    durable.await.unwrap_or(Err(StoreError::Closed))
}

/// Whether an entry may follow `tip`.
fn admit(group: GroupId, tip: &Tip, header: &FrameHeader) -> Result<(), AppendError> {
    let id = header.id();
    if header.group != group || !header.kind.is_entry() {
        return Err(AppendError::Foreign { id, group });
    }
    tip.check(header).map_err(|broken| match broken {
        Break::Index => AppendError::Gap {
            expected: tip.next_index,
            found: header.index,
        },
        Break::Term => AppendError::TermRegressed {
            previous: tip.last.map(|last| last.term).unwrap_or_default(),
            found: id,
        },
        Break::Offset => AppendError::Diverged {
            id,
            expected: tip.next_offset,
            found: header.base_offset,
        },
        Break::Time => AppendError::TimeDiverged {
            id,
            earliest: tip.next_time,
            found: header.append_time,
        },
    })
}
