//! Finding a place in a log by time: by when entries were appended, or by the times their records
//! claim, which need not be in order.

use trilog_model::{LogIndex, Offset, Timestamp};

use super::group::{GroupLog, GroupState};
use super::index::SparseIndex;
use super::read::Scan;
use super::segment::Extent;
use super::types::ReadError;
use crate::frame::FrameHeader;

/// What is looked for: the first entry at or after a time.
#[derive(Clone, Copy, Debug)]
enum Wanted {
    Appended(Timestamp),
    /// The greatest record time of its batch, in milliseconds.
    Recorded(i64),
}

impl Wanted {
    fn may_be_within(self, extent: &Extent) -> bool {
        match self {
            Self::Appended(time) => extent.last_time >= time,
            Self::Recorded(millis) => extent.record_time >= millis,
        }
    }

    /// Whether it may stand below the first entry there is.
    fn may_be_below(self, state: &GroupState) -> bool {
        match self {
            Self::Appended(time) => {
                let front = state.segments.links.front();
                let front = front.map(|link| link.segment.header.base_time);
                let first = state.resident.get(state.segments.first_index());
                let first = first.map(|frame| frame.header.append_time);
                front.or(first).is_none_or(|first| time < first)
            }
            Self::Recorded(_) => true,
        }
    }

    fn seek(self, index: &SparseIndex) -> Option<u64> {
        match self {
            Self::Appended(time) => index.seek_append_time(time),
            Self::Recorded(millis) => index.seek_record_time(millis),
        }
    }

    fn is(self, header: &FrameHeader, record_time: Option<i64>) -> bool {
        match self {
            Self::Appended(time) => header.append_time >= time,
            Self::Recorded(millis) => record_time.is_some_and(|time| time >= millis),
        }
    }
}

impl GroupLog {
    /// The first record of the first entry up to `up_to` appended at or after `time`.
    pub async fn find_append_time(
        &self,
        time: Timestamp,
        up_to: LogIndex,
    ) -> Result<Option<Offset>, ReadError> {
        let found = self.find(Wanted::Appended(time), up_to).await?;
        Ok(found.map(|(header, floor)| header.base_offset.max(floor)))
    }

    /// The first entry up to `up_to` whose records reach the time `millis`: the offset its batch
    /// begins at and its append time.
    pub async fn find_record_time(
        &self,
        millis: i64,
        up_to: LogIndex,
    ) -> Result<Option<(Offset, Timestamp)>, ReadError> {
        let found = self.find(Wanted::Recorded(millis), up_to).await?;
        Ok(found.map(|(header, _)| (header.base_offset, header.append_time)))
    }

    /// The first entry with records at or beyond the data start that is wanted, and the data
    /// start.
    async fn find(
        &self,
        wanted: Wanted,
        up_to: LogIndex,
    ) -> Result<Option<(FrameHeader, Offset)>, ReadError> {
        let mut next = LogIndex(0);
        loop {
            let (link, floor) = {
                let state = self.0.state.lock();
                if state.is_short() && wanted.may_be_below(&state) {
                    return Err(state.below_start());
                }
                let floor = state.segments.data_start(state.log_start.as_ref());
                let link = state.segments.links.iter().find(|link| {
                    link.extent.tip.next_index > next
                        && link.extent.tip.next_offset > floor
                        && wanted.may_be_within(&link.extent)
                });
                match link {
                    Some(link) => (link.clone(), floor),
                    None => return Ok(state.find_unfilled(wanted, floor, up_to)),
                }
            };
            if link.segment.header.base_index > up_to {
                return Ok(None);
            }
            let pos = self.0.seek(&link, |index| wanted.seek(index)).await?;
            let found = Scan::new(&self.0, &link, pos)
                .find(up_to, |header, time| {
                    header.has_records() && header.next_offset() > floor && wanted.is(header, time)
                })
                .await?;
            if let Some(header) = found {
                return Ok(Some((header, floor)));
            }
            next = link.extent.tip.next_index;
        }
    }
}

impl GroupState {
    /// The first wanted entry among those that stand in no segment yet.
    fn find_unfilled(
        &self,
        wanted: Wanted,
        floor: Offset,
        up_to: LogIndex,
    ) -> Option<(FrameHeader, Offset)> {
        let mut at = self.segments.filled().next_index;
        if let Some(first) = self.resident.find_offset(floor) {
            at = at.max(first);
        }
        loop {
            at = match wanted {
                Wanted::Appended(time) => self.resident.find_append_time(at, time),
                Wanted::Recorded(millis) => self.resident.find_record_time(at, millis),
            };
            let header = self.resident.get(at).filter(|_| at <= up_to)?.header;
            if header.has_records() {
                return Some((header, floor));
            }
            at = at.next();
        }
    }
}
