//! A partition in memory: it judges producers and finds starting points as a leader does.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use trilog_model::batch::{BatchHeader, Record, RecordError, sequence_after};
use trilog_wire::v1::{Error, ErrorCode, start};

#[derive(Debug)]
pub(super) struct StoredBatch {
    pub(super) bytes: Bytes,
    pub(super) base_offset: u64,
    pub(super) next_offset: u64,
    pub(super) append_time: u64,
    pub(super) max_timestamp: i64,
}

#[derive(Debug, Default)]
pub(super) struct KnownProducer {
    epoch: i16,
    /// First and last sequence and base offset of the latest five batches.
    window: VecDeque<(i32, i32, u64)>,
}

#[derive(Debug)]
pub(super) struct Partition {
    pub(super) leader: u32,
    pub(super) term: u64,
    pub(super) log_start: u64,
    pub(super) batches: Vec<StoredBatch>,
    pub(super) producers: BTreeMap<i64, KnownProducer>,
}

impl Partition {
    pub(super) fn high_watermark(&self) -> u64 {
        self.batches.last().map_or(0, |batch| batch.next_offset)
    }

    /// Whether a batch is a duplicate, and of what; or why it is refused.
    pub(super) fn judge(&mut self, header: &BatchHeader, base: u64) -> Result<Option<u64>, Error> {
        let (first, last) = (header.base_sequence, header.last_sequence());
        let out_of_order = || Error::new(ErrorCode::OutOfOrderSequence, "out of order");
        let known = self.producers.entry(header.producer_id).or_default();
        if header.producer_epoch < known.epoch {
            return Err(Error::new(ErrorCode::ProducerFenced, "an old epoch"));
        }
        if header.producer_epoch > known.epoch {
            if first != 0 {
                return Err(out_of_order());
            }
            known.epoch = header.producer_epoch;
            known.window.clear();
        }
        let same = |known: &&(i32, i32, u64)| (known.0, known.1) == (first, last);
        if let Some(known) = known.window.iter().find(same) {
            return Ok(Some(known.2));
        }
        if let Some(newest) = known.window.back()
            && first != sequence_after(newest.1, 1)
        {
            return Err(out_of_order());
        }
        known.window.push_back((first, last, base));
        if known.window.len() > 5 {
            known.window.pop_front();
        }
        Ok(None)
    }

    pub(super) fn resolve(&self, at: &start::At) -> Result<u64, Error> {
        let end = self.high_watermark();
        let found = match at {
            start::At::Offset(offset) => {
                if (self.log_start..=end).contains(offset) {
                    return Ok(*offset);
                }
                let message = format!("{offset} is not within {}..={end}", self.log_start);
                return Err(Error::new(ErrorCode::OffsetOutOfRange, message));
            }
            start::At::Earliest(_) => Some(self.log_start),
            start::At::Latest(_) => None,
            start::At::RecordTimeMs(millis) => {
                let batch = self
                    .batches
                    .iter()
                    .find(|batch| batch.max_timestamp >= *millis);
                batch.map(|batch| {
                    let header = BatchHeader::parse(&batch.bytes).expect("validated");
                    let records = header.records(&batch.bytes, 1 << 30).expect("validated");
                    let late = |record: &Result<Record<'_>, RecordError>| {
                        record
                            .as_ref()
                            .is_ok_and(|record| record.timestamp >= *millis)
                    };
                    let place = records.iter().position(|record| late(&record));
                    batch.base_offset + u64::try_from(place.unwrap_or(0)).expect("64 bits")
                })
            }
            start::At::AppendTimeNs(time) => {
                let batch = self.batches.iter().find(|batch| batch.append_time >= *time);
                batch.map(|batch| batch.base_offset)
            }
        };
        Ok(found.unwrap_or(end).max(self.log_start))
    }
}
