//! What must hold in every simulation, checked as it runs and once more when it has healed.
//!
//! ```text
//! election safety      one leader per term and group
//! state machine safety one entry per index, the same on every replica that applies it
//! leader completeness  a leader that is ready has applied all that any older leader's replicas had
//! monotony             terms and applied indexes of a running replica never fall
//! outcome              acknowledged: applied exactly once; refused: never; unknown: at most once
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use trilog_model::{EntryId, GroupId, LogIndex, NodeId, Offset, ReplicaId, Term};

use crate::group::{HighWatermark, Leadership};
use crate::view::Committed;

/// How a proposal ended, as its client saw it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Acked { index: LogIndex, offset: Offset },
    Refused,
    Unknown,
}

/// An entry as first applied anywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    id: EntryId,
    base_offset: Offset,
    append_time: u64,
    checksums: (u32, u32),
    command: u64,
}

#[derive(Debug, Default)]
struct State {
    leaders: BTreeMap<(GroupId, Term), ReplicaId>,
    entries: BTreeMap<(GroupId, LogIndex), Seen>,
    /// The newest entry of each term.
    newest: BTreeMap<(GroupId, Term), LogIndex>,
    progress: BTreeMap<(NodeId, GroupId), (Term, Option<LogIndex>)>,
    outcomes: BTreeMap<u64, Outcome>,
}

/// The record of one simulation; clones share it. Every violation panics at once, with what
/// was seen, for then the trace ends where it happened.
#[derive(Clone, Debug, Default)]
pub struct Checks(Arc<Mutex<State>>);

impl Checks {
    /// A replica's view folds an entry.
    pub fn applied(&self, node: NodeId, entry: &Committed<'_>, command: u64) {
        let header = entry.header;
        let seen = Seen {
            id: header.id(),
            base_offset: header.base_offset,
            append_time: header.append_time.nanos(),
            checksums: (header.records_crc, header.command_crc),
            command,
        };
        let mut state = self.0.lock();
        let place = (header.group, header.index);
        let newest = state.newest.entry((header.group, header.term));
        let newest = newest.or_insert(header.index);
        *newest = (*newest).max(header.index);
        let first = *state.entries.entry(place).or_insert(seen);
        assert_eq!(
            first, seen,
            "node {node} applied another entry at {place:?} than was applied before"
        );
    }

    /// A look at a running replica.
    pub fn observe(
        &self,
        node: NodeId,
        group: GroupId,
        leadership: Leadership,
        high_watermark: HighWatermark,
    ) {
        let mut state = self.0.lock();
        if let Some(leader) = leadership.leader {
            let term = (group, leadership.term);
            let first = *state.leaders.entry(term).or_insert(leader);
            assert_eq!(first, leader, "two leaders in {term:?}");
        }
        let now = (leadership.term, high_watermark.applied);
        let before = state.progress.insert((node, group), now);
        if let Some(before) = before {
            assert!(
                before.0 <= now.0 && before.1 <= now.1,
                "node {node} went back in group {group}: {before:?} to {now:?}"
            );
        }
        if leadership.ready {
            let older = (group, Term(0))..(group, leadership.term);
            let newest_older = state.newest.range(older).map(|(_, index)| *index).max();
            assert!(
                high_watermark.applied >= newest_older,
                "the leader of term {} is ready at {high_watermark:?} without entry {newest_older:?}",
                leadership.term
            );
        }
    }

    /// A node stopped; what its replicas knew is judged anew when it is back.
    pub fn stopped(&self, node: NodeId) {
        self.0.lock().progress.retain(|(who, _), _| *who != node);
    }

    /// As [`Checks::stopped`], of one replica.
    pub fn closed(&self, node: NodeId, group: GroupId) {
        self.0.lock().progress.remove(&(node, group));
    }

    /// A client knows, or gave up.
    pub fn outcome(&self, command: u64, outcome: Outcome) {
        let before = self.0.lock().outcomes.insert(command, outcome);
        assert_eq!(before, None, "command {command} ended twice");
    }

    /// How many proposals were acknowledged.
    #[must_use]
    pub fn acked(&self) -> usize {
        let state = self.0.lock();
        let acked = |outcome: &&Outcome| matches!(outcome, Outcome::Acked { .. });
        state.outcomes.values().filter(acked).count()
    }

    /// Judges every outcome by what a healed replica has folded: index and command in order.
    pub fn judge(&self, group: GroupId, folded: &[(u64, u64)]) {
        let mut places: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for (index, command) in folded {
            places.entry(*command).or_default().push(*index);
        }
        let state = self.0.lock();
        for (command, outcome) in &state.outcomes {
            let at = places.get(command).map_or(&[][..], Vec::as_slice);
            match outcome {
                Outcome::Acked { index, .. } => assert_eq!(
                    at,
                    [index.get()],
                    "command {command} was acknowledged at {index}"
                ),
                Outcome::Refused => {
                    assert!(
                        at.is_empty(),
                        "command {command} was refused, but is at {at:?}"
                    );
                }
                Outcome::Unknown => {
                    assert!(at.len() <= 1, "command {command} is there twice: {at:?}");
                }
            }
        }
        let highest = state
            .entries
            .range((group, LogIndex(0))..=(group, LogIndex(u64::MAX)))
            .next_back()
            .map(|((_, index), _)| index.get());
        assert!(
            folded.last().map(|(index, _)| *index) >= highest,
            "what was applied somewhere up to {highest:?} is not there any more"
        );
    }
}
