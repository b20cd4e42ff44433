//! Whether records go out as the very memory they were read into, or as a copy of it: looked at in
//! each answer that is sent, and counted.

use metrics::{Counter, counter};
use trilog_wire::kafka::{Answer, FetchedPartition};

use crate::kafka::DIALECT;

/// What is counted: bytes of stored batches but for their prefixes, which are made for each answer.
#[derive(Debug)]
pub(in crate::kafka) struct Payload {
    shared: Counter,
    copied: Counter,
}

impl Default for Payload {
    fn default() -> Self {
        let of = |state| counter!("trilog_payload_bytes_out_total", "dialect" => DIALECT, "state" => state);
        Self {
            shared: of("shared"),
            copied: of("copied"),
        }
    }
}

/// Where something is, and how long.
type Place = (usize, usize);

/// Where what was read is in memory.
pub(super) fn places(partitions: &[FetchedPartition]) -> Vec<Place> {
    let batches = partitions.iter().flat_map(|partition| &partition.batches);
    batches
        .map(|batch| (batch.body.as_ptr().addr(), batch.body.len()))
        .collect()
}

/// How much of what was read is in the answer as it is, and how much is not.
fn compare(read: &[Place], answer: &Answer) -> (usize, usize) {
    let mut slices = answer.0.iter();
    let (mut shared, mut copied) = (0, 0);
    for (start, len) in read {
        // They are told in the order in which they were read.
        let mut ahead = slices.clone();
        if ahead.any(|slice| (slice.as_ptr().addr(), slice.len()) == (*start, *len)) {
            slices = ahead;
            shared += len;
        } else {
            copied += len;
        }
    }
    (shared, copied)
}

impl Payload {
    pub(super) fn count(&self, read: &[Place], answer: &Answer) {
        let (shared, copied) = compare(read, answer);
        self.shared.increment(shared as u64);
        self.copied.increment(copied as u64);
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    #[test]
    fn what_is_not_the_very_memory_is_a_copy() {
        let stored: Vec<Bytes> = (1..=4).map(|len| Bytes::from(vec![7; len])).collect();
        let places: Vec<Place> = stored
            .iter()
            .map(|one| (one.as_ptr().addr(), one.len()))
            .collect();
        let fresh = Bytes::from_static(b"prefix");
        let copy = Bytes::copy_from_slice(&stored[2]);
        let sent = [
            &fresh, &stored[0], &fresh, &stored[1], &copy, &fresh, &stored[3],
        ];
        let answer = Answer(sent.into_iter().cloned().collect());
        assert_eq!(compare(&places, &answer), (1 + 2 + 4, 3));
        assert_eq!(compare(&places, &Answer::default()), (0, 10));
        assert_eq!(compare(&[], &answer), (0, 0));
    }
}
