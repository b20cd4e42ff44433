//! Which segments are past their time: a plan, made on the leader, that says where the data should
//! begin. Moving the log start is replicated; this module only looks and counts.

use std::time::Duration;

use trilog_model::{LogIndex, Offset, Timestamp};

use super::group::GroupLog;

/// One segment of a log, as retention and metrics see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    pub base_index: LogIndex,
    pub base_offset: Offset,
    /// The offset behind its last record.
    pub next_offset: Offset,
    /// Bytes of its file.
    pub bytes: u64,
    /// The append time of its last entry.
    pub last_time: Timestamp,
    /// Nothing is added to it any more.
    pub sealed: bool,
}

/// How much of a log is kept. Whole sealed segments go, oldest first, never the active one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// What was appended longer ago than this goes.
    pub age: Option<Duration>,
    /// What is older than the newest so many bytes goes.
    pub bytes: Option<u64>,
}

impl Retention {
    /// The offset at which the data should begin, if segments before it are to go. `now` is
    /// partition time, so that a clock that jumps deletes nothing.
    #[must_use]
    pub fn plan(&self, segments: &[SegmentInfo], now: Timestamp) -> Option<Offset> {
        let mut excess: u64 = match self.bytes {
            None => 0,
            Some(kept) => segments
                .iter()
                .map(|s| s.bytes)
                .sum::<u64>()
                .saturating_sub(kept),
        };
        let mut start = None;
        for segment in segments.iter().take_while(|segment| segment.sealed) {
            let aged = self.age.is_some_and(|age| {
                let age = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
                segment.last_time.nanos().saturating_add(age) < now.nanos()
            });
            // A segment goes for its size only if what remains is still enough.
            let large = segment.bytes <= excess;
            if !aged && !large {
                break;
            }
            excess = excess.saturating_sub(segment.bytes);
            start = Some(segment.next_offset);
        }
        start
    }
}

impl GroupLog {
    /// The segments there are, oldest first.
    #[must_use]
    pub fn segments(&self) -> Vec<SegmentInfo> {
        let state = self.0.state.lock();
        let links = state.segments.links.iter();
        links
            .map(|link| SegmentInfo {
                base_index: link.segment.header.base_index,
                base_offset: link.segment.header.base_offset,
                next_offset: link.extent.tip.next_offset,
                bytes: link.extent.bytes,
                last_time: link.extent.last_time,
                sealed: link.sealed,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Segments of ten records and 100 bytes, appended at 10, 20, 30 ...; the last one is active.
    fn segments(count: u64) -> Vec<SegmentInfo> {
        (0..count)
            .map(|n| SegmentInfo {
                base_index: LogIndex(n * 10),
                base_offset: Offset(n * 10),
                next_offset: Offset((n + 1) * 10),
                bytes: 100,
                last_time: Timestamp((n + 1) * 10),
                sealed: n + 1 < count,
            })
            .collect()
    }

    fn plan(age: Option<u64>, bytes: Option<u64>, now: u64) -> Option<u64> {
        let retention = Retention {
            age: age.map(Duration::from_nanos),
            bytes,
        };
        retention
            .plan(&segments(4), Timestamp(now))
            .map(Offset::get)
    }

    #[test]
    fn whole_segments_go_by_age_and_by_size_and_never_the_active_one() {
        let table = [
            (None, None, 1_000, None),
            (Some(50), None, 60, None),
            (Some(50), None, 61, Some(10)),
            (Some(50), None, 80, Some(20)),
            (Some(0), None, 1_000, Some(30)),
            (None, Some(400), 0, None),
            (None, Some(301), 0, None),
            (None, Some(300), 0, Some(10)),
            (None, Some(0), 0, Some(30)),
            (Some(50), Some(200), 61, Some(20)),
        ];
        for (age, bytes, now, start) in table {
            assert_eq!(
                plan(age, bytes, now),
                start,
                "age {age:?}, bytes {bytes:?}, at {now}"
            );
        }
    }
}
