//! A partition of a topic that is not compacted, which a test has cleaned when it wants to.

use std::pin::pin;

use futures::poll;
use trilog_server::partition::{Compaction, Limits, RecordRules};
use trilog_server::view::PartitionState;
use trilog_storage::log::Retention;

use super::*;

/// A node with one partition.
async fn alone(seed: u64) -> (Machines, Partition) {
    let all = Machines::start(seed, 1).await;
    all.create(TOPIC, 1).await;
    let (_, partition) = all.leader(TOPIC).unwrap();
    (all, partition)
}

/// More records, and one look as at a partition that is compacted. The node goes by the topic's
/// settings again with its next look at the map.
async fn clean(all: &Machines, partition: &Partition, agrees: bool) {
    for value in 0..150 {
        partition.append(batch(1, Some(value))).await.unwrap();
    }
    all.run(Duration::from_secs(1)).await;
    let compaction = Compaction {
        min_lag: Duration::ZERO,
        max_lag: Duration::MAX,
        keep_markers: Duration::ZERO,
        dirty_ratio: 0.0,
        agrees,
    };
    partition.set_limits(Limits {
        max_batch_bytes: 1 << 16,
        retention: Retention::default(),
        rules: RecordRules::default(),
        compaction: Some(compaction),
        rolling: None,
    });
    partition.compact(Timestamp(0)).await;
}

/// Cleans again and again until something holds.
async fn clean_until(
    all: &Machines,
    partition: &Partition,
    agrees: bool,
    holds: impl Fn() -> bool,
) {
    let deadline = Instant::now() + Duration::from_mins(3);
    while !holds() {
        assert!(Instant::now() < deadline, "cleaning comes to nothing");
        clean(all, partition, agrees).await;
    }
}

#[test]
fn nothing_is_agreed_on_before_every_build_knows_what_it_means() {
    block_on(async {
        let (all, partition) = alone(1).await;
        let agreed = || partition.with_state(|state| state.clean(CLEAN_RULES));
        let own = || partition.group().log().cleanness().clean;
        clean_until(&all, &partition, false, || own() > Offset(0)).await;
        clean(&all, &partition, false).await;
        assert_eq!(agreed(), Offset(0), "{} would have been", own());
        clean(&all, &partition, true).await;
        assert!(agreed() > Offset(0));
    });
}

/// A reader has found its segment, and has yet to read it, when what stands there is cleaned away
/// and the transaction it belongs to is forgotten.
#[test]
fn a_record_of_a_transaction_that_is_forgotten_while_it_is_read_does_not_count() {
    block_on(async {
        let (all, partition) = alone(2).await;
        let transactions = all.with(1, |server| server.transactions().clone()).unwrap();
        let producer = open_transaction(&all, &transactions, &partition).await;
        let aborted = partition.stable_offset();
        let abort = EndRequest {
            id: "alpha".to_owned(),
            producer,
            commit: false,
        };
        transactions.end(abort).await.unwrap();
        all.until("the marker", |_| partition.stable_offset() > aborted)
            .await;
        // So much that it has to be read from disk.
        for value in 0..300 {
            partition.append(batch(1, Some(value))).await.unwrap();
        }
        all.run(Duration::from_secs(1)).await;
        let known = partition.read_stable(aborted, 1).await.unwrap();
        assert_eq!(known.aborted.len(), 1);

        let mut reading = pin!(partition.read_stable(aborted, 1));
        assert!(poll!(reading.as_mut()).is_pending(), "it is in memory");
        let forgotten = || partition.with_state(PartitionState::forgotten) > aborted;
        clean_until(&all, &partition, true, forgotten).await;
        assert_eq!(partition.unsettled().1, 0);
        let read = reading.await.unwrap();
        let left = read.committed().fetched.frames;
        let offsets: Vec<Offset> = left.iter().map(|frame| frame.header.base_offset).collect();
        assert!(!offsets.contains(&aborted), "{offsets:?}");
    });
}
