//! What a topic asks of its records beyond a sound batch: a key where it is compacted, and times
//! within bounds. Kafka's rules (`LogValidator`); what a header can tell is judged by it, the rest
//! by reading the records, within the cap on what a batch may decompress to.

use std::fmt;

use bytes::Bytes;
use trilog_model::Timestamp;
use trilog_model::batch::{BatchError, BatchHeader, Compression, Record};
use trilog_storage::log::CLEAN_RECORDS_MAX;

use super::{AppendError, MAX_DECODED};

/// The most records of one batch that are named in a refusal.
const NAMED: usize = 100;
/// The most records of a batch that compaction goes through. One that holds more would stay for
/// ever, and keep all deletion markers behind it, so a compacted topic does not take it.
const KEYED_RECORDS_MAX: i32 = CLEAN_RECORDS_MAX;
/// What a producer that has no time writes: no bound applies to it.
const NO_TIME: i64 = -1;

/// What records of a topic must be like.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordRules {
    /// Each has a key, as in a compacted topic.
    pub keyed: bool,
    pub times: Times,
}

/// Whose time a record bears.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Times {
    /// The producer's, so far from the present at most, in milliseconds.
    Created { before_ms: u64, after_ms: u64 },
    /// That of its append.
    Appended,
}

impl Default for Times {
    fn default() -> Self {
        Self::Created {
            before_ms: u64::MAX,
            after_ms: u64::MAX,
        }
    }
}

/// Why a record is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecordFault {
    /// It has no key.
    NoKey,
    /// Its time is further from the present than the topic allows.
    Time,
}

/// A record that is refused, by its place in the batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    pub place: i32,
    pub why: String,
}

/// The records a batch is refused for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecords {
    /// A missing key, if any record lacks one.
    pub fault: RecordFault,
    /// The first of them.
    pub named: Vec<BadRecord>,
    pub count: usize,
}

impl fmt::Display for BadRecords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} records of the batch are refused", self.count)?;
        match self.named.first() {
            Some(first) => write!(f, ", first number {}: {}", first.place, first.why),
            None => Ok(()),
        }
    }
}

/// The times that are allowed now, in milliseconds.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    earliest: i64,
    latest: i64,
}

impl Bounds {
    fn allow(self, millis: i64) -> bool {
        millis == NO_TIME || (self.earliest..=self.latest).contains(&millis)
    }
}

impl Times {
    fn bounds(self, now: Timestamp) -> Option<Bounds> {
        let Self::Created {
            before_ms,
            after_ms,
        } = self
        else {
            return None;
        };
        let now = now.as_millis();
        let bounds = Bounds {
            earliest: now.saturating_sub_unsigned(before_ms),
            latest: now.saturating_add_unsigned(after_ms),
        };
        (bounds.earliest > i64::MIN || bounds.latest < i64::MAX).then_some(bounds)
    }
}

impl RecordRules {
    /// Refuses a sound batch if its records break the rules. A compressed one is read on a thread
    /// where it holds up nobody.
    pub(super) async fn check(
        self,
        header: &BatchHeader,
        bytes: &Bytes,
        now: Timestamp,
    ) -> Result<(), AppendError> {
        if self.keyed && header.record_count > KEYED_RECORDS_MAX {
            return Err(AppendError::TooMany {
                records: header.record_count.unsigned_abs(),
                limit: KEYED_RECORDS_MAX.unsigned_abs(),
            });
        }
        let bounds = self.times.bounds(now);
        if !self.needs_records(header, bounds) {
            return Ok(());
        }
        if header.attributes.compression() == Ok(Compression::None) {
            return self.judge(header, bytes, bounds);
        }
        let (header, bytes) = (*header, bytes.clone());
        let judged = tokio::task::spawn_blocking(move || self.judge(&header, &bytes, bounds));
        judged.await.unwrap_or(Err(AppendError::Closed))
    }

    /// Whether the header leaves open what the records are like. Its greatest time is taken at
    /// its word: the index of the log goes by it, too.
    fn needs_records(self, header: &BatchHeader, bounds: Option<Bounds>) -> bool {
        let doubtful = |bounds: Bounds| {
            // The least time stands nowhere, and before the epoch lies nothing but "no time".
            bounds.earliest > 0 || !bounds.allow(header.max_timestamp)
        };
        self.keyed || bounds.is_some_and(doubtful)
    }

    fn judge(
        self,
        header: &BatchHeader,
        bytes: &Bytes,
        bounds: Option<Bounds>,
    ) -> Result<(), AppendError> {
        let unreadable = AppendError::Invalid(BatchError::Records);
        let records = header.records(bytes, MAX_DECODED);
        let records = records.map_err(|_| unreadable.clone())?;
        records.check().map_err(|_| unreadable.clone())?;
        let mut bad = BadRecords {
            fault: RecordFault::Time,
            named: Vec::new(),
            count: 0,
        };
        for record in &records {
            let record = record.map_err(|_| unreadable.clone())?;
            if let Some((fault, why)) = self.fault(&record, bounds) {
                bad.take(record.offset_delta, fault, why);
            }
        }
        if bad.count == 0 {
            Ok(())
        } else {
            Err(AppendError::Records(bad))
        }
    }

    fn fault(self, record: &Record<'_>, bounds: Option<Bounds>) -> Option<(RecordFault, String)> {
        if self.keyed && record.key.is_none() {
            let why = "a compacted topic takes no record without a key";
            return Some((RecordFault::NoKey, why.to_owned()));
        }
        let bounds = bounds.filter(|bounds| !bounds.allow(record.timestamp))?;
        let (time, earliest, latest) = (record.timestamp, bounds.earliest, bounds.latest);
        let why = format!("its time {time} is not within {earliest} to {latest}");
        Some((RecordFault::Time, why))
    }
}

impl BadRecords {
    fn take(&mut self, place: i32, fault: RecordFault, why: String) {
        self.count += 1;
        if fault == RecordFault::NoKey {
            self.fault = fault;
        }
        if self.named.len() < NAMED {
            self.named.push(BadRecord { place, why });
        }
    }
}

#[cfg(test)]
mod tests {
    use trilog_model::batch::BatchBuilder;

    use super::*;

    const NOW: i64 = 1_000_000;

    fn batch(codec: Compression, records: &[(i64, Option<&[u8]>)]) -> Bytes {
        let mut batch = BatchBuilder::new(codec);
        for (time, key) in records {
            batch.push(*time, *key, Some(b"value"), &[]).unwrap();
        }
        batch.build().unwrap()
    }

    async fn check(rules: RecordRules, batch: &Bytes) -> Result<(), AppendError> {
        let header = BatchHeader::validate(batch).unwrap();
        rules
            .check(&header, batch, Timestamp::from_millis(NOW))
            .await
    }

    fn bad(outcome: Result<(), AppendError>) -> (RecordFault, Vec<i32>) {
        match outcome {
            Err(AppendError::Records(bad)) => {
                let places = bad.named.iter().map(|bad| bad.place);
                (bad.fault, places.collect())
            }
            other => panic!("not refused for its records: {other:?}"),
        }
    }

    #[tokio::test]
    async fn a_compacted_topic_takes_no_batch_that_compaction_would_not_go_through() {
        let batch = batch(Compression::None, &[(NOW, Some(b"key"))]);
        let mut header = BatchHeader::validate(&batch).unwrap();
        header.record_count = KEYED_RECORDS_MAX + 1;
        let check = async |keyed| {
            let times = Times::Appended;
            let rules = RecordRules { keyed, times };
            rules.check(&header, &batch, Timestamp(0)).await
        };
        assert!(matches!(
            check(true).await,
            Err(AppendError::TooMany { .. })
        ));
        assert_eq!(check(false).await, Ok(()));
    }

    #[tokio::test]
    async fn a_compacted_topic_names_every_record_without_a_key() {
        let rules = RecordRules {
            keyed: true,
            times: Times::default(),
        };
        for codec in [Compression::None, Compression::Zstd] {
            let keyed = batch(codec, &[(5, Some(b"a")), (6, Some(b""))]);
            assert_eq!(check(rules, &keyed).await, Ok(()));
            let mixed = batch(codec, &[(5, None), (6, Some(b"b")), (7, None)]);
            let refused = bad(check(rules, &mixed).await);
            assert_eq!(refused, (RecordFault::NoKey, vec![0, 2]));
            assert_eq!(check(RecordRules::default(), &mixed).await, Ok(()));
        }
    }

    #[tokio::test]
    async fn times_outside_the_bounds_are_refused_and_none_is_no_time() {
        let rules = |before_ms, after_ms| RecordRules {
            keyed: false,
            times: Times::Created {
                before_ms,
                after_ms,
            },
        };
        let times: Vec<_> = [NOW - 11, NOW - 10, -1, NOW + 20, NOW + 21]
            .map(|time| (time, None))
            .into();
        let all = batch(Compression::None, &times);
        let table = [
            (u64::MAX, 1_000, vec![]),
            (u64::MAX, 20, vec![4]),
            (10, u64::MAX, vec![0]),
            (10, 20, vec![0, 4]),
            (0, 0, vec![0, 1, 3, 4]),
        ];
        for (before, after, places) in table {
            let judged = check(rules(before, after), &all).await;
            if places.is_empty() {
                assert_eq!(judged, Ok(()));
            } else {
                assert_eq!(bad(judged), (RecordFault::Time, places));
            }
        }
        let appended = RecordRules {
            keyed: false,
            times: Times::Appended,
        };
        assert_eq!(check(appended, &all).await, Ok(()));
    }

    #[tokio::test]
    async fn a_refusal_names_no_more_records_than_its_bound() {
        let many = vec![(5, None); NAMED + 50];
        let rules = RecordRules {
            keyed: true,
            times: Times::default(),
        };
        let Err(AppendError::Records(bad)) = check(rules, &batch(Compression::None, &many)).await
        else {
            panic!("taken");
        };
        assert_eq!((bad.named.len(), bad.count), (NAMED, NAMED + 50));
    }
}
