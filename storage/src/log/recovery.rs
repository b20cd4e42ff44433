//! What a restart makes of a checkpoint and of the write-ahead log behind it.
//!
//! Frames are taken in the order of writing and only collected: an entry logged again comes after
//! younger ones, a truncation after what it cuts. When all are in, each group's suffix is walked
//! from the end of its segments, and its index, term, offset and time chains must hold.
//!
//! A checkpoint may know more than the place in the log it starts from. Votes and log starts
//! only ever rise, entries at or below the segments' end are skipped, and a group created in
//! the part that is read again waits for that very creation.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;
use trilog_model::{GroupId, LogIndex, Offset, ReplicaId};

use super::checkpoint::{Checkpoint, GroupRecord, SegmentRecord};
use super::group::{Group, GroupState, Life, Settled};
use super::note::Note;
use super::rewrites::Rewrites;
use super::segment::{Extent, IndexSlot, Segment, SegmentHeader};
use super::segments::{Link, Segments};
use super::shared::Shared;
use super::types::{LogStart, Vote};
use crate::frame::Frame;
use crate::wal::{WalPosition, WalStart};

/// Why the write-ahead log does not fit the checkpoint: damage, whatever its cause.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Inconsistent {
    #[error("a note of kind {kind:?} about group {group} makes no sense")]
    Note {
        group: GroupId,
        kind: crate::frame::FrameKind,
    },
    #[error("frames of group {0}, which was never created")]
    Stray(GroupId),
    #[error("group {0} was created twice")]
    CreatedTwice(GroupId),
    #[error("group {group} breaks off at entry {index}")]
    Chain { group: GroupId, index: LogIndex },
}

/// Recovery under way.
#[derive(Debug)]
pub(crate) struct Recovery {
    start: WalStart,
    groups: BTreeMap<GroupId, Replay>,
    strays: BTreeSet<GroupId>,
    doomed: BTreeSet<(GroupId, ReplicaId)>,
    barred: BTreeSet<(GroupId, ReplicaId)>,
    positions: Vec<WalPosition>,
    wrong: Option<Inconsistent>,
}

/// One group, as far as it is replayed.
#[derive(Debug)]
struct Replay {
    record: GroupRecord,
    /// The group's creation is still to come: what comes before is of a predecessor.
    waiting: bool,
    suffix: BTreeMap<LogIndex, (u64, Frame)>,
}

impl Recovery {
    pub(crate) fn new(checkpoint: Checkpoint) -> Self {
        let start = checkpoint.start;
        let replayed = |position: WalPosition| match start {
            WalStart::Beginning => true,
            WalStart::At(from) => position >= from,
        };
        let replay = |record: GroupRecord| {
            let waiting = replayed(record.created);
            let suffix = BTreeMap::new();
            let group = record.group;
            (
                group,
                Replay {
                    record,
                    waiting,
                    suffix,
                },
            )
        };
        Self {
            start,
            groups: checkpoint.groups.into_iter().map(replay).collect(),
            strays: BTreeSet::new(),
            doomed: checkpoint.doomed.into_iter().collect(),
            barred: checkpoint.barred.into_iter().collect(),
            positions: Vec::new(),
            wrong: None,
        }
    }

    /// Where in the write-ahead log to begin.
    pub(crate) fn start(&self) -> WalStart {
        self.start
    }

    /// What was recovered so far, leaving nothing.
    pub(crate) fn take(&mut self) -> Self {
        std::mem::replace(self, Self::new(Checkpoint::empty()))
    }

    /// Takes the next frame of the write-ahead log.
    pub(crate) fn visit(&mut self, position: WalPosition, frame: Frame) {
        if self.positions.last().is_none_or(|last| *last < position) {
            self.notice(position);
        }
        if self.wrong.is_none()
            && let Err(wrong) = self.apply(position, frame)
        {
            self.wrong = Some(wrong);
        }
    }

    /// Remembers the first and the last position in each file.
    fn notice(&mut self, position: WalPosition) {
        if let [.., before, last] = &mut self.positions[..]
            && before.file == position.file
        {
            *last = position;
        } else {
            self.positions.push(position);
        }
    }

    fn apply(&mut self, position: WalPosition, frame: Frame) -> Result<(), Inconsistent> {
        let group = frame.header.group;
        if frame.header.kind.is_entry() {
            self.with(group, |replay| replay.entry(position, frame));
            return Ok(());
        }
        let kind = frame.header.kind;
        let note = Note::from_frame(&frame).ok_or(Inconsistent::Note { group, kind })?;
        match note {
            Note::Created(replica) => return self.create(group, replica, position),
            Note::Removed(replica) => self.remove(group, replica),
            Note::Vote(vote) => self.with(group, |replay| replay.vote(vote)),
            Note::Cut(end) => self.with(group, |replay| replay.cut(end)),
            Note::LogStart { start, emptied } => {
                self.with(group, |replay| replay.log_start(start, emptied));
            }
            Note::Committed(end) => self.with(group, |replay| replay.committed(end)),
        }
        Ok(())
    }

    fn with(&mut self, group: GroupId, change: impl FnOnce(&mut Replay)) {
        match self.groups.get_mut(&group) {
            Some(replay) if replay.waiting => {}
            Some(replay) => change(replay),
            // Allowed only if the group turns out to be removed.
            None => {
                self.strays.insert(group);
            }
        }
    }

    fn create(
        &mut self,
        group: GroupId,
        replica: ReplicaId,
        position: WalPosition,
    ) -> Result<(), Inconsistent> {
        if let Some(replay) = self.groups.get_mut(&group) {
            if replay.record.replica == replica {
                replay.waiting = false;
            } else if !replay.waiting {
                return Err(Inconsistent::CreatedTwice(group));
            }
            return Ok(());
        }
        if self.strays.contains(&group) {
            return Err(Inconsistent::Stray(group));
        }
        let record = GroupRecord::new(group, replica, position);
        let replay = Replay {
            record,
            waiting: false,
            suffix: BTreeMap::new(),
        };
        self.groups.insert(group, replay);
        Ok(())
    }

    fn remove(&mut self, group: GroupId, replica: ReplicaId) {
        self.strays.remove(&group);
        self.doomed.insert((group, replica));
        if self
            .groups
            .get(&group)
            .is_some_and(|replay| replay.record.replica == replica)
        {
            self.groups.remove(&group);
        }
    }

    /// Everyone who must not come back if this recovery fails.
    pub(crate) fn stepping_aside(&self) -> Vec<(GroupId, ReplicaId)> {
        let mut replicas = self.known();
        replicas.extend(&self.barred);
        replicas
    }

    /// The groups known so far.
    pub(crate) fn known(&self) -> Vec<(GroupId, ReplicaId)> {
        let replicas = self.groups.iter();
        replicas
            .map(|(group, replay)| (*group, replay.record.replica))
            .collect()
    }

    /// Checks every chain. What recovered is complete only if this passes.
    pub(crate) fn finish(self) -> Result<Recovered, Inconsistent> {
        if let Some(wrong) = self.wrong {
            return Err(wrong);
        }
        if let Some(group) = self.strays.first() {
            return Err(Inconsistent::Stray(*group));
        }
        let mut groups = Vec::with_capacity(self.groups.len());
        for replay in self.groups.into_values() {
            if replay.waiting {
                return Err(Inconsistent::Stray(replay.record.group));
            }
            replay.check()?;
            groups.push(RecoveredGroup(replay));
        }
        Ok(Recovered {
            start: self.start,
            groups,
            doomed: self.doomed,
            barred: self.barred,
            positions: self.positions,
        })
    }
}

impl Replay {
    fn entry(&mut self, position: WalPosition, frame: Frame) {
        let index = frame.header.index;
        if index >= self.record.tip.next_index {
            self.suffix.insert(index, (position.file, frame));
        }
    }

    fn vote(&mut self, vote: Vote) {
        if self.record.vote.is_none_or(|old| old.rank() <= vote.rank()) {
            self.record.vote = Some(vote);
        }
    }

    fn cut(&mut self, end: LogIndex) {
        self.suffix.split_off(&end);
        self.record.committed = self
            .record
            .committed
            .min(end)
            .max(self.record.tip.next_index);
    }

    fn log_start(&mut self, start: LogStart, emptied: bool) {
        if emptied {
            self.suffix.clear();
            if start.purged.index >= self.record.tip.next_index {
                self.record.empty(&start);
            }
        } else {
            self.committed(start.purged.index.next());
        }
        let raises = self.record.log_start.as_ref().is_none_or(|old| {
            (old.purged.index, old.data_start) <= (start.purged.index, start.data_start)
        });
        if raises {
            self.record.log_start = Some(start);
        }
    }

    fn committed(&mut self, end: LogIndex) {
        self.record.committed = self.record.committed.max(end);
    }

    /// Whether the suffix continues the segments without a break.
    fn check(&self) -> Result<(), Inconsistent> {
        let group = self.record.group;
        let mut tip = self.record.tip;
        for (index, (_, frame)) in self.suffix.range(tip.next_index..) {
            if tip.check(&frame.header).is_err() {
                return Err(Inconsistent::Chain {
                    group,
                    index: *index,
                });
            }
            tip = super::tip::Tip::after(&frame.header);
        }
        Ok(())
    }
}

impl GroupRecord {
    /// A group that has nothing yet.
    pub(crate) fn new(group: GroupId, replica: ReplicaId, created: WalPosition) -> Self {
        Self {
            group,
            replica,
            created,
            vote: None,
            committed: LogIndex(0),
            log_start: None,
            tip: super::tip::Tip::default(),
            terms: Vec::new(),
            segments: Vec::new(),
            clean: Offset(0),
        }
    }

    fn empty(&mut self, start: &LogStart) {
        self.tip = super::tip::Tip::at_start(start);
        self.committed = self.tip.next_index;
        self.terms.clear();
        self.segments.clear();
        self.clean = Offset(0);
    }
}

/// What a restart found, complete and checked.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) start: WalStart,
    pub(crate) groups: Vec<RecoveredGroup>,
    pub(crate) doomed: BTreeSet<(GroupId, ReplicaId)>,
    pub(crate) barred: BTreeSet<(GroupId, ReplicaId)>,
    /// The first and last position in each file that was read.
    pub(crate) positions: Vec<WalPosition>,
}

#[derive(Debug)]
pub(crate) struct RecoveredGroup(Replay);

impl RecoveredGroup {
    /// What is known of the group: its record, and its entries behind the segments, in order.
    pub(crate) fn parts(&self) -> (&GroupRecord, impl Iterator<Item = &Frame>) {
        let Replay { record, suffix, .. } = &self.0;
        let behind = suffix.range(record.tip.next_index..);
        (record, behind.map(|(_, (_, frame))| frame))
    }

    /// Puts the group together as it was.
    pub(crate) fn restore(self, shared: &Arc<Shared>) -> Arc<Group> {
        let Replay { record, suffix, .. } = self.0;
        let dir = shared.config.group_dir(record.group, record.replica);
        let links = record.segments.iter();
        let links = links.map(|segment| segment.link(&record, &dir)).collect();
        let mut state = GroupState::new(record.tip);
        state.rewrites = Rewrites::recovered(record.clean, shared.clock.now());
        state.segments = Segments::recovered(links, record.tip);
        state.terms = record.terms;
        state.vote = record.vote;
        state.log_start.clone_from(&record.log_start);
        state.settled = Settled {
            vote: record.vote,
            log_start: record.log_start,
        };
        state.created = Some(record.created);
        let mut bytes = 0;
        for (file, frame) in suffix.into_values() {
            let index = frame.header.index;
            // Entries below the segments' end come in when a log is emptied before they do.
            if index >= record.tip.next_index {
                bytes += frame.header.frame_len() as u64;
                state.push(frame);
                state.runs.record(index, index.next(), file);
            }
        }
        let end = state.tip.next_index;
        state.durable = end;
        state.committed = record.committed.clamp(record.tip.next_index, end);
        state.hinted = state.committed;
        state.life = Life::Here;
        shared.budget.pin(bytes);
        let group = Arc::new(Group {
            id: record.group,
            replica: record.replica,
            dir,
            shared: Arc::clone(shared),
            state: Mutex::new(state),
        });
        group.resume_purge();
        group
    }
}

impl Group {
    /// Deletes what lies below the log start. A segment that still grew when the checkpoint was
    /// made may have been sealed and deleted since, so one that lies below is not continued.
    fn resume_purge(&self) {
        let mut state = self.state.lock();
        let Some(start) = &state.log_start else {
            return;
        };
        let filled = state.segments.filled();
        let below = filled.next_offset <= start.data_start
            && filled.next_index <= start.purged.index.next();
        if below {
            state.segments.seal();
        }
        self.purge(&mut state);
    }
}

impl SegmentRecord {
    fn link(&self, record: &GroupRecord, dir: &Path) -> Link {
        let header = SegmentHeader {
            group: record.group,
            replica: record.replica,
            base_index: self.base_index,
            base_offset: self.base_offset,
            base_time: self.base_time,
        };
        let extent = Extent {
            bytes: self.bytes,
            tip: self.tip,
            last_time: self.last_time,
            record_time: self.record_time,
        };
        let index = if self.sealed {
            IndexSlot::Absent
        } else {
            IndexSlot::Here(super::index::SparseIndex::new(self.record_time))
        };
        Link {
            segment: Arc::new(Segment::new(dir, header, self.generation, index)),
            extent,
            synced: Some(extent),
            sealed: self.sealed,
        }
    }
}
