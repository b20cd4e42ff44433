//! The replicated state of one partition: where it starts and ends, its time, the windows of its
//! producers and their transactions, and, where it is a view's own log, what that view holds.
//!
//! Rebuilt by replaying committed entries in order; kept in the key-value store between flushes,
//! so that a restart replays only what came after. Equal entries give an equal state, and
//! [`PartitionState::hash`], on every replica.

use std::hash::Hasher;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use prost::Message;
use trilog_model::batch::BatchHeader;
use trilog_model::{Offset, Timestamp};
use trilog_storage::frame::FrameHeader;

use super::ViewKind;
use super::cleanness::{Cleanness, Step, StoredCleanness};
use super::command::{Action, Marker, PartitionCommand};
use super::group::{At, Groups};
use super::isolation::{Aborted, Isolation, Open, StoredIsolation};
use super::producers::{Change, Producers, Publisher, Window};
use super::transaction::{self, Transactions};

/// The state as its view and its partition share it.
pub type SharedState = Arc<Mutex<PartitionState>>;

/// See the module's text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PartitionState {
    log_start: Offset,
    next_offset: Offset,
    time: Timestamp,
    producers: Producers,
    /// Only of partitions that are compacted.
    clean: Cleanness,
    isolation: Isolation,
    /// Only of partitions that hold groups.
    groups: Option<Groups>,
    /// Only of partitions that hold transactions.
    transactions: Option<Transactions>,
}

/// What one entry changed beyond the position, for the store.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    pub producers: Option<Change>,
}

/// Why an entry or stored bytes cannot be folded. The replica must stop rather than drift.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StateError {
    #[error("the entry holds no readable record batch: {0}")]
    Batch(String),
    #[error("the entry's command is unknown to this build")]
    Command,
    #[error("stored partition state is unreadable")]
    Stored,
}

impl PartitionState {
    /// An empty one.
    #[must_use]
    pub fn of(kind: ViewKind) -> Self {
        let mut state = Self::default();
        match kind {
            ViewKind::Records => {}
            ViewKind::Groups => state.groups = Some(Groups::default()),
            ViewKind::Transactions => state.transactions = Some(Transactions::default()),
        }
        state
    }

    #[must_use]
    pub fn kind(&self) -> ViewKind {
        match (&self.groups, &self.transactions) {
            (Some(_), _) => ViewKind::Groups,
            (None, Some(_)) => ViewKind::Transactions,
            (None, None) => ViewKind::Records,
        }
    }

    /// The transactions, where it holds such.
    #[must_use]
    pub fn transactions(&self) -> Option<&Transactions> {
        self.transactions.as_ref()
    }

    /// The groups, where it holds such.
    #[must_use]
    pub fn groups(&self) -> Option<&Groups> {
        self.groups.as_ref()
    }

    /// Folds one committed entry.
    pub fn replay(
        &mut self,
        header: &FrameHeader,
        records: &[u8],
        command: &[u8],
    ) -> Result<Replayed, StateError> {
        self.time = self.time.max(header.append_time);
        let mut replayed = Replayed::default();
        if header.record_count > 0 {
            replayed.producers = self.replay_batch(header, records)?;
            self.next_offset = header.next_offset();
        }
        if !command.is_empty() {
            self.replay_command(header, command)?;
        }
        Ok(replayed)
    }

    fn replay_batch(
        &mut self,
        header: &FrameHeader,
        records: &[u8],
    ) -> Result<Option<Change>, StateError> {
        let batch =
            BatchHeader::parse(records).map_err(|error| StateError::Batch(error.to_string()))?;
        // A control batch says to readers what the command beside it says here.
        if !batch.is_idempotent() || batch.attributes.is_control() {
            return Ok(None);
        }
        let publisher = Publisher {
            producer_id: batch.producer_id,
            epoch: batch.producer_epoch,
            first_sequence: batch.base_sequence,
            records: batch.record_count,
        };
        // A repeat is told the time its original's records have.
        let time = if batch.attributes.is_append_time() {
            Timestamp::from_millis(batch.max_timestamp)
        } else {
            header.append_time
        };
        let offset = header.base_offset;
        let change = self.producers.replay(&publisher, offset, time);
        self.isolation.forget(&change.forgotten);
        Ok(Some(change))
    }

    fn replay_marker(&mut self, header: &FrameHeader, marker: &Marker) -> Result<(), StateError> {
        let epoch = i16::try_from(marker.epoch).map_err(|_| StateError::Command)?;
        self.isolation.ended(marker, header.base_offset);
        self.producers.release(marker.producer_id);
        let time = header.append_time;
        let change = self.producers.mark(marker.producer_id, epoch, time);
        self.isolation.forget(&change.forgotten);
        Ok(())
    }

    fn replay_command(&mut self, header: &FrameHeader, command: &[u8]) -> Result<(), StateError> {
        let command = PartitionCommand::decode(command).map_err(|_| StateError::Command)?;
        match command.action.ok_or(StateError::Command)? {
            Action::Trim(trim) => {
                let wanted = Offset(trim.data_start).min(self.next_offset);
                self.log_start = self.log_start.max(wanted);
                self.isolation.trim(self.log_start);
            }
            Action::Tick(_) => {}
            Action::Clean(clean) => {
                let reached = Offset(clean.offset).min(self.next_offset);
                let step = Step {
                    offset: reached,
                    since: header.append_time,
                    place: self.next_offset,
                };
                self.clean.reach(clean.rules, step);
                self.isolation.trim(self.clean.forgotten());
            }
            Action::Marker(marker) => self.replay_marker(header, &marker)?,
            Action::Opened(opened) => {
                let open = Open {
                    epoch: i16::try_from(opened.epoch).map_err(|_| StateError::Command)?,
                    transaction: opened.transaction,
                    first_offset: header.base_offset,
                };
                self.isolation.opened(opened.producer_id, open);
                self.producers.hold(opened.producer_id);
            }
            Action::Transaction(command) => {
                let transactions = self.transactions.as_mut().ok_or(StateError::Command)?;
                let at = transaction::At {
                    time: header.append_time,
                };
                if !transactions.replay(&command, at) {
                    return Err(StateError::Command);
                }
            }
            Action::Group(command) => {
                let groups = self.groups.as_mut().ok_or(StateError::Command)?;
                let at = At {
                    index: header.id().index,
                    time: header.append_time,
                };
                if !groups.replay(&command, at) {
                    return Err(StateError::Command);
                }
            }
        }
        Ok(())
    }

    /// The first offset served.
    #[must_use]
    pub fn log_start(&self) -> Offset {
        self.log_start
    }

    /// The offset of the next record to be committed.
    #[must_use]
    pub fn next_offset(&self) -> Offset {
        self.next_offset
    }

    /// The latest append time seen: the only clock retention and expiry know.
    #[must_use]
    pub fn time(&self) -> Timestamp {
        self.time
    }

    /// Below which offset every replica's log is clean, by the cleaning rules of this number.
    #[must_use]
    pub fn clean(&self, rules: u32) -> Offset {
        self.clean.end(rules)
    }

    /// Below which offset aborted transactions are forgotten, for no replica holds anything of them.
    #[must_use]
    pub fn forgotten(&self) -> Offset {
        self.clean.forgotten()
    }

    /// Below which offset markers may go that stay for `kept`, at partition time `now`, by the
    /// cleaning rules of this number.
    #[must_use]
    pub fn markers_before(&self, rules: u32, kept: Duration, now: Timestamp) -> Offset {
        self.clean.markers_before(rules, kept, now)
    }

    #[must_use]
    pub fn producers(&self) -> &Producers {
        &self.producers
    }

    #[cfg(feature = "planted")]
    pub fn forget_producers(&mut self) {
        self.producers = Producers::default();
    }

    /// What belongs to transactions.
    #[must_use]
    pub fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    /// Where what is settled ends: before it no transaction is open any more.
    #[must_use]
    pub fn stable_offset(&self) -> Offset {
        let first = self.isolation.first_open().unwrap_or(self.next_offset);
        first.max(self.log_start)
    }

    /// The transactions that were aborted and have something from `from` to before `to`.
    #[must_use]
    pub fn aborted(&self, from: Offset, to: Offset) -> Vec<Aborted> {
        self.isolation.aborted(from, to).collect()
    }

    /// The part that changes with every entry, as stored.
    #[must_use]
    pub fn encode_position(&self) -> [u8; 24] {
        let mut out = [0; 24];
        out[..8].copy_from_slice(&self.log_start.get().to_be_bytes());
        out[8..16].copy_from_slice(&self.next_offset.get().to_be_bytes());
        out[16..].copy_from_slice(&self.time.nanos().to_be_bytes());
        out
    }

    /// Puts together what the store held: the position, and each producer's window.
    pub fn from_stored<'a>(
        position: &[u8],
        windows: impl IntoIterator<Item = (i64, &'a [u8])>,
    ) -> Result<Self, StateError> {
        let number = |at: usize| {
            let bytes = position
                .get(at..at + 8)
                .and_then(|bytes| bytes.try_into().ok());
            bytes.map(u64::from_be_bytes).ok_or(StateError::Stored)
        };
        let mut state = Self {
            log_start: Offset(number(0)?),
            next_offset: Offset(number(8)?),
            time: Timestamp(number(16)?),
            producers: Producers::default(),
            clean: Cleanness::default(),
            isolation: Isolation::default(),
            groups: None,
            transactions: None,
        };
        for (id, window) in windows {
            let window = Window::decode(window).ok_or(StateError::Stored)?;
            state.producers.restore(id, window);
        }
        Ok(state)
    }

    /// The whole state, for a replica that starts from a descriptor.
    #[must_use]
    pub fn snapshot(&self) -> Vec<u8> {
        let producers = self.producers.iter().map(|(id, window)| StoredProducer {
            producer_id: id,
            window: window.encode(),
        });
        StoredState {
            position: self.encode_position().to_vec(),
            producers: producers.collect(),
            groups: self.groups.as_ref().map(Groups::snapshot),
            clean: (self.clean != Cleanness::default()).then(|| self.clean.stored()),
            transactions: self.transactions.as_ref().map(Transactions::snapshot),
            isolation: (!self.isolation.is_untouched()).then(|| self.isolation.stored()),
        }
        .encode_to_vec()
    }

    /// Reads what [`PartitionState::snapshot`] wrote.
    pub fn restore(bytes: &[u8]) -> Result<Self, StateError> {
        let stored = StoredState::decode(bytes).map_err(|_| StateError::Stored)?;
        let windows = stored
            .producers
            .iter()
            .map(|p| (p.producer_id, p.window.as_slice()));
        let mut state = Self::from_stored(&stored.position, windows)?;
        state.clean = stored
            .clean
            .as_ref()
            .map(Cleanness::restore)
            .unwrap_or_default();
        if let Some(isolation) = &stored.isolation {
            state.isolation = Isolation::restore(isolation).ok_or(StateError::Stored)?;
            for id in state.isolation.open_producers() {
                state.producers.hold(id);
            }
        }
        if let Some(transactions) = &stored.transactions {
            let restored = Transactions::restore(transactions);
            state.transactions = Some(restored.map_err(|_| StateError::Stored)?);
        }
        if let Some(groups) = &stored.groups {
            let groups = Groups::restore(groups).map_err(|_| StateError::Stored)?;
            state.groups = Some(groups);
        }
        Ok(state)
    }

    /// Equal on every replica at equal applied index.
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut hasher = Fnv(0xcbf2_9ce4_8422_2325);
        hasher.write(&self.snapshot());
        hasher.finish()
    }
}

/// FNV-1a: stable over builds and machines, unlike the standard hasher.
struct Fnv(u64);

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
}

#[derive(Clone, PartialEq, Eq, Message)]
struct StoredState {
    #[prost(bytes = "vec", tag = "1")]
    position: Vec<u8>,
    #[prost(message, repeated, tag = "2")]
    producers: Vec<StoredProducer>,
    #[prost(bytes = "vec", optional, tag = "3")]
    groups: Option<Vec<u8>>,
    #[prost(message, optional, tag = "10")]
    isolation: Option<StoredIsolation>,
    #[prost(bytes = "vec", optional, tag = "11")]
    transactions: Option<Vec<u8>>,
    #[prost(message, optional, tag = "20")]
    clean: Option<StoredCleanness>,
}

#[derive(Clone, PartialEq, Eq, Message)]
struct StoredProducer {
    #[prost(sint64, tag = "1")]
    producer_id: i64,
    #[prost(bytes = "vec", tag = "2")]
    window: Vec<u8>,
}

#[cfg(test)]
mod tests {
    use trilog_model::batch::{BatchBuilder, Compression, ProducerState};
    use trilog_model::{EntryId, GroupId};
    use trilog_storage::frame::{Frame, FrameKind};

    use super::*;

    const RULES: u32 = 1;

    /// The frame of one record by producer 9 with this sequence, at this offset.
    fn entry(sequence: i32, offset: u64, command: Option<PartitionCommand>) -> Frame {
        let command = command.map(|command| command.encoded()).unwrap_or_default();
        let id = EntryId::new(1, offset);
        let mut frame = Frame::bare(FrameKind::Data, GroupId(2), id, command);
        let mut batch = BatchBuilder::new(Compression::None);
        batch.set_producer(ProducerState {
            id: 9,
            epoch: 0,
            sequence,
        });
        batch.push(5, Some(b"key"), Some(b"value"), &[]).unwrap();
        frame.records = batch.build().unwrap();
        frame.header.record_count = 1;
        frame.header.base_offset = Offset(offset);
        frame.header.append_time = Timestamp(1_000 + offset);
        frame
    }

    fn replayed(frames: &[Frame]) -> PartitionState {
        let mut state = PartitionState::default();
        for frame in frames {
            state
                .replay(&frame.header, &frame.records, &frame.command)
                .unwrap();
        }
        state
    }

    #[test]
    fn the_same_entries_give_the_same_state_and_hash() {
        let trim = PartitionCommand::trim(Offset(1));
        let frames = [
            entry(0, 0, None),
            entry(1, 1, None),
            entry(2, 2, Some(trim)),
        ];
        let (one, two) = (replayed(&frames), replayed(&frames));
        assert_eq!(one.hash(), two.hash());
        assert_ne!(one.hash(), replayed(&frames[..2]).hash());
        assert_eq!(one.log_start(), Offset(1));
        assert_eq!(one.next_offset(), Offset(3));
        assert_eq!(one.time(), Timestamp(1_002));
    }

    #[test]
    fn a_restored_snapshot_is_the_state_it_was_taken_of() {
        let state = replayed(&[entry(0, 0, None), entry(1, 1, None)]);
        assert_eq!(PartitionState::restore(&state.snapshot()), Ok(state));
        assert_eq!(PartitionState::restore(b"\xff"), Err(StateError::Stored));
    }

    /// The frame of a marker of producer 9 at this offset.
    fn marker(offset: u64, epoch: i16, commit: bool) -> Frame {
        let ended = Marker {
            producer_id: 9,
            epoch: i32::from(epoch),
            coordinator_epoch: 1,
            transaction: offset,
            commit,
        };
        let mut frame = entry(0, offset, Some(PartitionCommand::marker(ended)));
        let producer = ProducerState {
            id: 9,
            epoch,
            sequence: -1,
        };
        frame.records = trilog_model::batch::marker(producer, commit, 1, 5).unwrap();
        frame
    }

    /// The first of a transaction.
    fn in_transaction(sequence: i32, offset: u64) -> Frame {
        let opened = PartitionCommand::opened(9, 0, 1);
        let mut frame = entry(sequence, offset, Some(opened));
        let mut batch = BatchBuilder::new(Compression::None);
        batch.set_transactional().set_producer(ProducerState {
            id: 9,
            epoch: 0,
            sequence,
        });
        batch.push(5, None, Some(b"value"), &[]).unwrap();
        frame.records = batch.build().unwrap();
        frame
    }

    #[test]
    fn what_is_stable_ends_where_the_first_open_transaction_begins() {
        let mut state = replayed(&[entry(0, 0, None), in_transaction(1, 1)]);
        assert_eq!(state.stable_offset(), Offset(1));
        assert_eq!(
            PartitionState::restore(&state.snapshot()),
            Ok(state.clone())
        );
        let end = marker(2, 1, false);
        state
            .replay(&end.header, &end.records, &end.command)
            .unwrap();
        assert_eq!(state.stable_offset(), Offset(3));
        let aborted = state.aborted(Offset(0), Offset(3));
        assert_eq!(aborted.len(), 1);
        assert_eq!(
            (aborted[0].producer_id, aborted[0].first_offset),
            (9, Offset(1))
        );
        assert_eq!(state.producers().get(9).unwrap().epoch(), 1, "fenced");
        assert_eq!(
            PartitionState::restore(&state.snapshot()),
            Ok(state.clone())
        );
        let trim = PartitionCommand::trim(Offset(3)).encoded();
        let header = FrameHeader {
            record_count: 0,
            ..end.header
        };
        state.replay(&header, &[], &trim).unwrap();
        assert_eq!(state.aborted(Offset(0), Offset(3)), []);
    }

    #[test]
    fn a_producer_whose_transaction_is_open_is_not_forgotten() {
        let mut state = replayed(&[in_transaction(0, 0)]);
        let mut late = entry(0, 1, None);
        late.header.append_time = Timestamp(1 << 62);
        let mut other = BatchBuilder::new(Compression::None);
        other.set_producer(ProducerState {
            id: 10,
            epoch: 0,
            sequence: 0,
        });
        other.push(5, None, Some(b"value"), &[]).unwrap();
        late.records = other.build().unwrap();
        state
            .replay(&late.header, &late.records, &late.command)
            .unwrap();
        assert!(state.producers().get(9).is_some());
        let restored = PartitionState::restore(&state.snapshot());
        assert_eq!(restored, Ok(state));
    }

    #[test]
    fn a_trim_never_passes_the_end_nor_goes_back() {
        let mut state = replayed(&[entry(0, 0, None), entry(1, 1, None)]);
        let header = entry(2, 2, None).header;
        let header = FrameHeader {
            record_count: 0,
            ..header
        };
        for (wanted, start) in [(1, 1), (0, 1), (99, 2)] {
            let command = PartitionCommand::trim(Offset(wanted)).encoded();
            state.replay(&header, &[], &command).unwrap();
            assert_eq!(state.log_start(), Offset(start));
        }
    }

    #[test]
    fn what_is_clean_everywhere_is_folded_and_survives_a_snapshot() {
        let mut state = replayed(&[entry(0, 0, None), entry(1, 1, None)]);
        let header = FrameHeader {
            record_count: 0,
            ..entry(2, 2, None).header
        };
        for (wanted, clean) in [(1, 1), (0, 1), (99, 2)] {
            let command = PartitionCommand::clean(Offset(wanted), RULES).encoded();
            state.replay(&header, &[], &command).unwrap();
            assert_eq!(state.clean(RULES), Offset(clean));
        }
        let kept = Duration::from_nanos(10);
        let later = Timestamp(header.append_time.nanos() + 11);
        assert_eq!(
            state.markers_before(RULES, kept, header.append_time),
            Offset(0)
        );
        assert_eq!(state.markers_before(RULES, kept, later), Offset(2));
        assert_eq!(PartitionState::restore(&state.snapshot()), Ok(state));
    }

    #[test]
    fn an_unknown_command_stops_the_replica() {
        let mut state = PartitionState::default();
        let header = FrameHeader {
            record_count: 0,
            ..entry(0, 0, None).header
        };
        assert_eq!(
            state.replay(&header, &[], &[0x7a, 0]),
            Err(StateError::Command)
        );
    }
}
