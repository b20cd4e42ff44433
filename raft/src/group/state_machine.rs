//! openraft's state machine: drives the group's [`View`] and says how far it came.
//!
//! Runs in a task of its own per group. Two positions matter. `applied` is Raft's: what this
//! replica knows to be committed and has gone through since it started. `folded` is the view's:
//! what its state includes. After a restart, or after installing a descriptor, the view may be
//! ahead; entries in between pass by without being folded again.

use std::io;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use openraft::OptionalSend;
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::type_config::alias::{SnapshotMetaOf, SnapshotOf};
use parking_lot::Mutex;
use trilog_model::{EntryId, GroupId, LogIndex, Offset, Timestamp};
use trilog_storage::frame::{Frame, FrameHeader, FrameKind};
use trilog_storage::kv::{Kv, WriteBatch};
use trilog_storage::log::{GroupLog, LogStart, ReadError};

use super::checkpoint::{Checkpoints, put_memberships};
use super::descriptor::{Base, Descriptor, ViewState};
use super::log_store::PlannedStart;
use super::memberships::Memberships;
use super::status::Status;
use crate::types::{
    Applied, Entry, LogId, Outcome, Payload, StoredMembership, TypeConfig, entry_id, log_id,
};
use crate::view::{Committed, Home, View};

/// Entries folded under one lock of the view and answered together.
const CHUNK: usize = 512;

/// The place behind the last applied entry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tail {
    pub(crate) id: Option<EntryId>,
    pub(crate) next_offset: Offset,
    pub(crate) next_time: Timestamp,
}

impl Tail {
    pub(crate) fn after(header: &FrameHeader) -> Self {
        let places = u64::from(header.record_count.max(1));
        Self {
            id: Some(header.id()),
            next_offset: header.next_offset(),
            next_time: Timestamp(header.append_time.nanos().saturating_add(places)),
        }
    }

    pub(crate) fn at(start: &LogStart) -> Self {
        Self {
            id: Some(start.purged),
            next_offset: start.next_offset,
            next_time: start.next_time,
        }
    }
}

/// Where the log shall begin, as the owner of the group asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TrimTarget {
    pub(crate) purged: LogIndex,
    pub(crate) data_start: Offset,
}

/// What the state machine shares with the group's handle and its log store.
#[derive(Clone, Debug, Default)]
pub(crate) struct Starts {
    /// Where the log shall begin, as it was last asked for.
    pub(crate) wanted: Arc<Mutex<Option<TrimTarget>>>,
    /// The next purge, fully described.
    pub(crate) planned: PlannedStart,
}

/// The state machine of one group.
pub(crate) struct StateMachine {
    pub(super) log: GroupLog,
    pub(super) kv: Kv,
    pub(super) status: Arc<Status>,
    pub(super) view: Arc<Mutex<dyn View>>,
    pub(super) home: Home,
    pub(super) starts: Starts,
    pub(super) applied: Tail,
    /// The last entry the view's state includes; at or after `applied` when that moves.
    pub(super) folded: Option<EntryId>,
    pub(super) memberships: Memberships,
    pub(super) checkpoints: Checkpoints,
    /// The descriptor's place: the log start, or the one it is about to become.
    pub(super) base: Arc<Mutex<Option<Base>>>,
}

impl StateMachine {
    /// Folds a chunk of consecutive entries, then answers whoever proposed them.
    fn apply_chunk(&mut self, chunk: Vec<EntryResponder<TypeConfig>>) -> io::Result<()> {
        let mut batch = WriteBatch::default();
        let mut answers = Vec::with_capacity(chunk.len());
        let folded_before = self.folded;
        let memberships_before = self.memberships.len();
        {
            let view = Arc::clone(&self.view);
            let mut view = view.lock();
            for (entry, responder) in chunk {
                let outcome = self.step(&mut *view, &entry, &mut batch);
                answers.extend(responder.map(|responder| (responder, outcome)));
            }
        }
        let Some(last) = self.applied.id else {
            return Ok(());
        };
        if self.folded != folded_before || self.memberships.len() != memberships_before {
            self.persist(batch, self.memberships.len() != memberships_before)?;
        }
        self.status.applied(last, self.applied.next_offset);
        for (responder, outcome) in answers {
            responder.send(outcome);
        }
        Ok(())
    }

    /// Goes through one entry.
    fn step(&mut self, view: &mut dyn View, entry: &Entry, batch: &mut WriteBatch) -> Outcome {
        let id = entry.entry_id();
        let news = self.folded.is_none_or(|folded| folded.index < id.index);
        let outcome = match &entry.payload {
            Payload::Stored { frame, membership } => {
                if let Some(membership) = membership {
                    self.remember(id, membership.as_ref().clone());
                }
                self.applied = Tail::after(&frame.header);
                self.fold(view, frame, news, batch)
            }
            Payload::Membership(membership) => {
                self.remember(id, membership.as_ref().clone());
                self.applied.id = Some(id);
                Outcome::Fenced
            }
            Payload::Blank | Payload::Draft(_) => {
                self.applied.id = Some(id);
                Outcome::Fenced
            }
        };
        if news {
            self.folded = Some(id);
        }
        outcome
    }

    fn fold(
        &mut self,
        view: &mut dyn View,
        frame: &Frame,
        news: bool,
        batch: &mut WriteBatch,
    ) -> Outcome {
        let header = &frame.header;
        if header.kind == FrameKind::Blank {
            return Outcome::Fenced;
        }
        let reply = if news && header.kind == FrameKind::Data {
            self.checkpoints.folded(frame.command.len());
            let committed = Committed {
                header,
                records: &frame.records,
                command: &frame.command,
            };
            view.apply(&committed, batch)
        } else {
            bytes::Bytes::new()
        };
        Outcome::Applied(Applied {
            id: header.id(),
            base_offset: header.base_offset,
            append_time: header.append_time,
            reply,
        })
    }

    fn remember(&mut self, id: EntryId, membership: crate::types::Membership) {
        self.memberships
            .push(StoredMembership::new(Some(log_id(id)), membership));
    }

    /// Writes what the fold left behind, as far as the view's home asks for it now.
    fn persist(&mut self, mut batch: WriteBatch, membership_changed: bool) -> io::Result<()> {
        let Some(folded) = self.folded else {
            return Ok(());
        };
        match self.home {
            Home::Kv => {
                if membership_changed {
                    put_memberships(&mut batch, &self.memberships);
                }
                self.kv
                    .write(self.status.group, folded, batch)
                    .map_err(io::Error::other)
            }
            Home::Checkpoint if self.checkpoints.is_due() => self.checkpoint(),
            Home::Checkpoint => Ok(()),
        }
    }

    /// Writes all of the view's state; a view that lives in the store has done so already.
    pub(crate) fn checkpoint(&mut self) -> io::Result<()> {
        let Some(folded) = self.folded.filter(|_| self.home == Home::Checkpoint) else {
            return Ok(());
        };
        let mut batch = WriteBatch::default();
        let state = self.view.lock().snapshot();
        self.checkpoints.put_state(&mut batch, &state);
        put_memberships(&mut batch, &self.memberships);
        self.kv
            .write(self.status.group, folded, batch)
            .map_err(io::Error::other)
    }

    /// The log start that a trim asks for, as far as it may go now.
    async fn plan(&mut self) -> io::Result<Option<Base>> {
        let Some(applied) = self.applied.id else {
            return Ok(None);
        };
        let old = self.base.lock().clone();
        // Nobody but a trim moves X.
        let Some(wanted) = *self.starts.wanted.lock() else {
            return Ok(old);
        };
        let target = wanted.purged.min(applied.index);
        // What is wanted stays so: two trims in a row ask twice, and one plan serves both.
        if let Some(old) = old.filter(|old| old.start.purged.index >= target) {
            return Ok(Some(old));
        }
        let tail = if target == applied.index {
            self.applied
        } else {
            let frames = match self.log.read(target, target.next(), 1).await {
                // The log start moves when that is repaired; an error would end the group.
                Err(ReadError::Damaged { .. }) => return Ok(self.base.lock().clone()),
                read => read.map_err(io::Error::other)?,
            };
            let frame = frames.first().ok_or(io::ErrorKind::NotFound)?;
            Tail::after(&frame.header)
        };
        let Some(purged) = tail.id else {
            return Ok(None);
        };
        let data_start = wanted.data_start.min(tail.next_offset);
        let start = LogStart {
            purged,
            next_offset: tail.next_offset,
            next_time: tail.next_time,
            data_start,
            meta: bytes::Bytes::new(),
        };
        Ok(Some(Base::new(
            start,
            self.memberships.at(Some(purged.index)),
        )))
    }
}

impl RaftStateMachine<TypeConfig> for StateMachine {
    type SnapshotData = Box<Descriptor>;
    type SnapshotBuilder = DescriptorBuilder;

    async fn applied_state(&mut self) -> io::Result<(Option<LogId>, StoredMembership)> {
        let index = self.applied.id.map(|id| id.index);
        Ok((self.applied.id.map(log_id), self.memberships.at(index)))
    }

    async fn apply<S>(&mut self, entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<TypeConfig>>> + Unpin + OptionalSend,
    {
        let mut chunks = entries.ready_chunks(CHUNK);
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.into_iter().collect::<io::Result<Vec<_>>>()?;
            self.apply_chunk(chunk)?;
        }
        Ok(())
    }

    async fn try_create_snapshot_builder(&mut self, _force: bool) -> Option<DescriptorBuilder> {
        Some(self.get_snapshot_builder().await)
    }

    async fn get_snapshot_builder(&mut self) -> DescriptorBuilder {
        let base = match self.plan().await {
            Ok(base) => self.checkpoint().map(|()| base),
            Err(error) => Err(error),
        };
        DescriptorBuilder {
            group: self.status.group,
            kv: self.kv.clone(),
            base,
            current: Arc::clone(&self.base),
            planned: Arc::clone(&self.starts.planned),
        }
    }

    async fn install_snapshot(
        &mut self,
        meta: &SnapshotMetaOf<TypeConfig>,
        descriptor: Box<Descriptor>,
    ) -> io::Result<()> {
        super::install::install(self, meta, *descriptor).await
    }

    async fn get_current_snapshot(
        &mut self,
    ) -> io::Result<Option<SnapshotOf<TypeConfig, Box<Descriptor>>>> {
        let base = self.base.lock().clone();
        let (Some(mut base), Some(folded)) = (base, self.folded) else {
            return Ok(None);
        };
        // The data start may have moved since, without X.
        if let Some(start) = self.log.state().log_start {
            base.start.data_start = base.start.data_start.max(start.data_start);
        }
        let view = ViewState {
            at: folded,
            memberships: self.memberships.clone(),
            state: self.view.lock().snapshot(),
        };
        Ok(Some(SnapshotOf::<TypeConfig, Box<Descriptor>> {
            meta: meta_of(&base),
            snapshot: Box::new(Descriptor {
                base: Some(base),
                view: Some(view),
            }),
        }))
    }
}

fn meta_of(base: &Base) -> SnapshotMetaOf<TypeConfig> {
    SnapshotMetaOf::<TypeConfig> {
        last_log_id: Some(log_id(base.start.purged)),
        last_membership: base.membership.clone(),
    }
}

/// Makes a new log start safe to take: the view's state beyond it is durable, then it is the
/// current descriptor, then openraft purges.
pub(crate) struct DescriptorBuilder {
    group: GroupId,
    kv: Kv,
    base: io::Result<Option<Base>>,
    current: Arc<Mutex<Option<Base>>>,
    planned: PlannedStart,
}

impl RaftSnapshotBuilder<TypeConfig> for DescriptorBuilder {
    type SnapshotData = Box<Descriptor>;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<TypeConfig, Box<Descriptor>>> {
        let Some(base) = std::mem::replace(&mut self.base, Ok(None))? else {
            // Nothing is applied that a log could start after.
            return Ok(SnapshotOf::<TypeConfig, Box<Descriptor>> {
                meta: SnapshotMetaOf::<TypeConfig>::default(),
                snapshot: Box::default(),
            });
        };
        self.kv.flush().await.map_err(io::Error::other)?;
        let flushed = self.kv.flushed(self.group);
        if flushed.is_none_or(|id| id.index < base.start.purged.index) {
            return Err(io::Error::other(
                "the view's state is not durable up to the log start",
            ));
        }
        self.planned.lock().add(base.start.clone());
        *self.current.lock() = Some(base.clone());
        Ok(SnapshotOf::<TypeConfig, Box<Descriptor>> {
            meta: meta_of(&base),
            snapshot: Box::new(Descriptor {
                base: Some(base),
                view: None,
            }),
        })
    }
}

/// The identity of the last entry of a descriptor's meta.
pub(super) fn last_of(meta: &SnapshotMetaOf<TypeConfig>) -> Option<EntryId> {
    meta.last_log_id.as_ref().map(entry_id)
}
