//! Reading a log: memory first, then segments.

use trilog_model::{LogIndex, Offset, Timestamp};

use super::group::{GroupLog, GroupState};
use super::types::ReadError;
use crate::frame::Frame;

impl GroupState {
    fn below_start(&self) -> ReadError {
        ReadError::BelowStart {
            index: self.segments.first_index(),
            offset: self.segments.data_start(self.log_start.as_ref()),
        }
    }
}

impl GroupLog {
    /// Entries `from..to` up to `max_bytes`, at least one if there is any; they follow one
    /// another without gaps.
    #[expect(clippy::unused_async, reason = "segments are read asynchronously")]
    pub async fn read(
        &self,
        from: LogIndex,
        to: LogIndex,
        max_bytes: usize,
    ) -> Result<Vec<Frame>, ReadError> {
        let state = self.0.state.lock();
        state
            .resident
            .frames(from, to, max_bytes)
            .ok_or_else(|| state.below_start())
    }

    /// The entries with records that hold or follow offset `from`, up to entry `up_to` and
    /// `max_bytes`; the first one even if it is larger.
    #[expect(clippy::unused_async, reason = "segments are read asynchronously")]
    pub async fn read_offsets(
        &self,
        from: Offset,
        up_to: LogIndex,
        max_bytes: usize,
    ) -> Result<Vec<Frame>, ReadError> {
        let state = self.0.state.lock();
        if from >= state.tip.next_offset {
            return Ok(Vec::new());
        }
        let found = state.resident.find_offset(from);
        let start = found.ok_or_else(|| state.below_start())?;
        let mut frames = state
            .resident
            .frames(start, up_to.next(), max_bytes)
            .unwrap_or_default();
        frames.retain(|frame| frame.header.record_count > 0);
        Ok(frames)
    }

    /// The first record of the first entry up to `up_to` appended at or after `time`.
    #[expect(clippy::unused_async, reason = "segments are read asynchronously")]
    pub async fn find_append_time(
        &self,
        time: Timestamp,
        up_to: LogIndex,
    ) -> Result<Option<Offset>, ReadError> {
        let state = self.0.state.lock();
        let first = state.resident.first();
        let found = state.resident.find_append_time(first, time);
        Ok((found <= up_to)
            .then(|| state.resident.get(found))
            .flatten()
            .map(|frame| frame.header.base_offset))
    }

    /// The first entry up to `up_to` whose records reach the time `millis`: the offset its batch
    /// begins at and its append time.
    #[expect(clippy::unused_async, reason = "segments are read asynchronously")]
    pub async fn find_record_time(
        &self,
        millis: i64,
        up_to: LogIndex,
    ) -> Result<Option<(Offset, Timestamp)>, ReadError> {
        let state = self.0.state.lock();
        let first = state.resident.first();
        let found = state.resident.find_record_time(first, millis);
        Ok((found <= up_to)
            .then(|| state.resident.get(found))
            .flatten()
            .map(|frame| (frame.header.base_offset, frame.header.append_time)))
    }
}
