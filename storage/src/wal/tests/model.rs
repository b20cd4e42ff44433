//! What a log must give back after any crash: a prefix of what was submitted, with everything
//! that was acknowledged or recovered before in it, and nothing that was ever cut.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;
use trilog_model::GroupId;

use crate::frame::{Frame, FrameKind};
use crate::wal::{Room, Wal, WalPosition, WalStart};

/// The frames of a log, in the order of submission, over all its openings.
#[derive(Debug)]
pub(super) struct Model {
    frames: Vec<Frame>,
    /// How many of `frames` must survive.
    safe: usize,
    /// Where the next recovery begins, and the frame that stands there.
    start: (WalStart, usize),
    /// Acknowledgements of this opening.
    acks: Arc<Mutex<Acks>>,
    /// Rung at each of them.
    acknowledged: Arc<Notify>,
}

#[derive(Debug, Default)]
struct Acks {
    /// Units submitted and not acknowledged.
    open: usize,
    /// The end of the last acknowledged unit in `frames`.
    end: usize,
    last: Option<(WalPosition, usize)>,
}

impl Model {
    pub(super) fn new() -> Self {
        Self {
            frames: Vec::new(),
            safe: 0,
            start: (WalStart::Beginning, 0),
            acks: Arc::default(),
            acknowledged: Arc::default(),
        }
    }

    /// A log into which these frames were submitted, none of them known to be safe.
    pub(super) fn with_frames(frames: Vec<Frame>) -> Self {
        Self {
            frames,
            ..Self::new()
        }
    }

    /// What must be there if the log were to end now.
    pub(super) fn as_of_now(&self) -> Self {
        Self {
            frames: self.frames.clone(),
            safe: self.safe(),
            start: self.start,
            acks: Arc::default(),
            acknowledged: Arc::default(),
        }
    }

    pub(super) fn start(&self) -> WalStart {
        self.start.0
    }

    /// Submits a unit and notes its acknowledgement, whenever that comes.
    pub(super) fn submit(&mut self, wal: &Wal, frames: Vec<Frame>, room: Room) {
        let first = self.frames.len();
        self.frames.extend_from_slice(&frames);
        let end = self.frames.len();
        self.acks.lock().open += 1;
        let acks = Arc::clone(&self.acks);
        let bell = Arc::clone(&self.acknowledged);
        let done = Box::new(move |result: Result<WalPosition, _>| {
            let position = result.unwrap();
            let mut acks = acks.lock();
            assert!(acks.end <= first, "acknowledged in order");
            assert!(acks.last.is_none_or(|(last, _)| last <= position));
            acks.open -= 1;
            acks.end = end;
            acks.last = Some((position, first));
            bell.notify_one();
        });
        wal.submit(frames, room, done);
    }

    /// Submits a unit that fails: it may or may not be found again.
    pub(super) async fn submit_failing(&mut self, wal: &Wal, frames: Vec<Frame>) {
        self.frames.extend_from_slice(&frames);
        let told = super::support::submit(wal, frames).await;
        assert!(told.unwrap().is_err());
    }

    /// Units in flight.
    pub(super) fn open_units(&self) -> usize {
        self.acks.lock().open
    }

    /// How many of the frames are acknowledged or were recovered.
    pub(super) fn safe(&self) -> usize {
        self.safe.max(self.acks.lock().end)
    }

    /// A bell that rings at each acknowledgement.
    pub(super) fn bell(&self) -> Arc<Notify> {
        Arc::clone(&self.acknowledged)
    }

    pub(super) async fn all_acknowledged(&self) {
        while self.open_units() > 0 {
            self.acknowledged.notified().await;
        }
    }

    /// Lets the next recovery begin at the last acknowledged unit, and frees what is older.
    pub(super) fn checkpoint(&mut self, wal: &Wal) {
        let last = self.acks.lock().last;
        if let Some((position, first)) = last {
            self.start = (WalStart::At(position), first);
            wal.release(position.file);
        }
    }

    /// The files between the start and the last acknowledgement.
    pub(super) fn files_spanned(&self) -> u64 {
        let last = self.acks.lock().last;
        match (self.start.0, last) {
            (_, None) => 0,
            (WalStart::Beginning, Some((last, _))) => last.file,
            (WalStart::At(start), Some((last, _))) => last.file - start.file,
        }
    }

    /// Holds a recovery against what must be there; what it returned is safe from now on.
    pub(super) fn recovered(&mut self, found: &[(WalPosition, Frame)], safe: usize) {
        assert!(found.is_sorted_by_key(|(position, _)| *position));
        let begin = match found.first() {
            // A unit may begin in an earlier round than another of the same start.
            Some((_, frame)) => self.frames.iter().position(|f| same(f, frame)),
            None => Some(self.frames.len().min(self.start.1)),
        };
        let begin = begin.expect("a recovered frame was submitted once and not cut");
        assert!(begin <= self.start.1, "frames at the start are missing");
        let end = begin + found.len();
        assert!(
            end >= safe,
            "{end} of {} frames are left, {safe} were safe",
            self.frames.len()
        );
        for ((_, found), sent) in found.iter().zip(&self.frames[begin..]) {
            assert!(
                same(found, sent),
                "{:?} in the place of {:?}",
                found.header,
                sent.header
            );
        }
        assert!(end <= self.frames.len());
        self.frames.truncate(end);
        self.safe = end;
        self.acks = Arc::default();
        self.acks.lock().end = end;
        self.acks.lock().last = found.last().map(|(p, _)| (*p, end - 1));
    }

    /// The last vote of each group among the first `safe` frames.
    pub(super) fn votes(&self, safe: usize) -> BTreeMap<GroupId, u64> {
        let votes = self.frames[..safe].iter();
        let votes = votes.filter(|frame| frame.header.kind == FrameKind::Vote);
        votes
            .map(|v| (v.header.group, v.header.term.get()))
            .collect()
    }

    pub(super) fn frames(&self) -> &[Frame] {
        &self.frames
    }
}

/// Whether two frames are the same entry with the same payload.
fn same(a: &Frame, b: &Frame) -> bool {
    a.header == b.header && a.command == b.command && a.records == b.records
}
