//! Whether replicas of a group are one: the same state, the same bytes.

use std::time::Duration;

use trilog_model::LogIndex;
use trilog_storage::frame::Frame;
use trilog_storage::log::ReadError;

use super::Witness;
use crate::group::Group;
use crate::view::View;

/// Bytes of log compared at a time.
const READ_BYTES: usize = 1 << 20;
/// How long until damaged entries are looked at again.
const PAUSE: Duration = Duration::from_millis(20);

/// Panics unless all replicas have folded the same and hold the same frames wherever more than
/// one of them holds any.
pub async fn replicas(replicas: &[Group<Witness>]) {
    let Some((first, others)) = replicas.split_first() else {
        return;
    };
    let expected = first.with_view(|view| (view.hash(), view.tally.entries));
    for other in others {
        let found = other.with_view(|view| (view.hash(), view.tally.entries));
        assert_eq!(expected, found, "{first:?} and {other:?} differ in state");
    }
    for other in others {
        logs(first, other).await;
    }
}

async fn logs(a: &Group<Witness>, b: &Group<Witness>) {
    // What lies below the purge point stays readable down to the data start.
    let start = |group: &Group<Witness>| {
        let start = group.log().state().log_start;
        let end = start.map_or(0, |start| start.purged.index.get() + 1);
        let segments = group.log().segments();
        segments
            .first()
            .map_or(end, |first| first.base_index.get().min(end))
    };
    let end = a.log().state().last.map_or(0, |last| last.index.get() + 1);
    let mut from = start(a).max(start(b));
    while from < end {
        let (left, right) = match (read(a, from, end).await, read(b, from, end).await) {
            (Ok(left), Ok(right)) => (left, right),
            // One of them let go of it just now.
            (Err(start), _) | (_, Err(start)) => {
                assert!(start.get() > from, "{a:?}, {b:?}: entry {from} is lost");
                from = start.get();
                continue;
            }
        };
        let both = left.len().min(right.len());
        assert!(both > 0, "{a:?} and {b:?} do not both hold entry {from}");
        for (left, right) in left.iter().zip(&right) {
            assert_eq!(
                bytes(left),
                bytes(right),
                "{a:?} and {b:?} differ in an entry"
            );
        }
        from += both as u64;
    }
}

/// Frames from `from` on, or where the log begins if that is later.
async fn read(group: &Group<Witness>, from: u64, end: u64) -> Result<Vec<Frame>, LogIndex> {
    loop {
        let read = group.log().read(LogIndex(from), LogIndex(end), READ_BYTES);
        match read.await {
            Ok(frames) => return Ok(frames),
            Err(ReadError::BelowStart { index, .. }) => return Err(index),
            // It is on its way from another replica, or the comparison does not end.
            Err(ReadError::Damaged { .. }) => tokio::time::sleep(PAUSE).await,
            Err(error) => panic!("{group:?} cannot read entry {from}: {error}"),
        }
    }
}

/// A frame as it stands on disk.
pub fn bytes(frame: &Frame) -> Vec<u8> {
    let mut slices = Vec::new();
    frame.push_slices(&mut slices);
    slices.concat()
}
