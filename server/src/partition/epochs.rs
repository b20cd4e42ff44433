//! What a reader may ask about the order of things beyond an offset: where an epoch ended, which
//! record has a time, where the data begins from now on.

use trilog_model::batch::BatchHeader;
use trilog_model::{Offset, Term};
use trilog_storage::frame::Frame;

use super::{AppendError, MAX_DECODED, Partition, ReadError};
use crate::view::{PartitionCommand, ViewKind};

/// A record, by its place and its own time in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dated {
    pub offset: Offset,
    pub timestamp: i64,
}

impl Partition {
    /// Where the records of `term` and those before it end: the newest term up to it that has
    /// any, and the offset after its last one. `None` if the log knows no such term.
    #[must_use]
    pub fn epoch_end(&self, term: Term) -> Option<(Term, Offset)> {
        let end = self.watch().borrow().offset;
        let starts = self.inner.group.log().term_starts();
        let later = starts.partition_point(|start| start.term <= term);
        let found = starts.get(later.checked_sub(1)?)?;
        let next = starts.get(later).map_or(end, |start| start.offset);
        Some((found.term, next.min(end)))
    }

    /// The first record whose own time is `millis` or later, if there is one.
    pub async fn first_since(&self, millis: i64) -> Result<Option<Dated>, ReadError> {
        let Some(applied) = self.watch().borrow().applied else {
            return Ok(None);
        };
        let log = self.inner.group.log();
        let found = log.find_record_time(millis, applied).await;
        let Some((base, _)) = found.map_err(|error| self.read_error(&error))? else {
            return Ok(None);
        };
        let frames = log.read_offsets(base, applied, 1).await;
        let Some(frame) = frames
            .map_err(|error| self.read_error(&error))?
            .into_iter()
            .next()
        else {
            return Ok(None);
        };
        let log_start = self.log_start();
        let dated = tokio::task::spawn_blocking(move || first_in(&frame, millis, log_start)).await;
        dated.map_err(|error| ReadError::Unavailable(error.to_string()))?
    }

    /// The first record that has the latest time of all. The index knows the running maximum, so
    /// the times that some record reaches are all those up to it: it is found by halving.
    pub async fn latest(&self) -> Result<Option<Dated>, ReadError> {
        let Some(applied) = self.watch().borrow().applied else {
            return Ok(None);
        };
        let log = self.inner.group.log();
        let (mut reached, mut beyond) = (-1_i64, i64::MAX);
        while reached < beyond - 1 {
            let between = reached + (beyond - reached) / 2;
            match log.find_record_time(between, applied).await {
                Ok(Some(_)) => reached = between,
                Ok(None) => beyond = between,
                Err(error) => return Err(self.read_error(&error)),
            }
        }
        self.first_since(reached).await
    }

    /// Serves no record before `offset` any more, on any replica; answers where the data begins
    /// then.
    pub async fn delete_before(&self, offset: Offset) -> Result<Offset, AppendError> {
        if self.inner.kind != ViewKind::Records {
            return Err(AppendError::Internal);
        }
        self.propose(PartitionCommand::trim(offset)).await?;
        Ok(self.log_start())
    }
}

/// The first record of a batch at `millis` or later that is still served. A batch that cannot be
/// decoded here is itself the answer.
fn first_in(frame: &Frame, millis: i64, log_start: Offset) -> Result<Option<Dated>, ReadError> {
    let first = frame.header.base_offset;
    let damaged = |error: &dyn std::fmt::Display| ReadError::Damaged(error.to_string());
    let header = BatchHeader::parse(&frame.records).map_err(|error| damaged(&error))?;
    let Ok(records) = header.records(&frame.records, MAX_DECODED) else {
        let timestamp = header.max_timestamp;
        return Ok(Some(Dated {
            offset: first,
            timestamp,
        }));
    };
    for record in &records {
        let record = record.map_err(|error| damaged(&error))?;
        let offset = first.plus(u64::from(record.offset_delta.unsigned_abs()));
        if record.timestamp >= millis && offset >= log_start {
            let timestamp = record.timestamp;
            return Ok(Some(Dated { offset, timestamp }));
        }
    }
    Ok(None)
}
