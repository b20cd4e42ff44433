//! Whether replicas of a group are one: the same state, the same bytes.

use trilog_model::LogIndex;
use trilog_storage::frame::Frame;

use super::Witness;
use crate::group::Group;
use crate::view::View;

/// Bytes of log compared at a time.
const READ_BYTES: usize = 1 << 20;

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
    let start = |group: &Group<Witness>| {
        let start = group.log().state().log_start;
        start.map_or(0, |start| start.purged.index.get() + 1)
    };
    let end = a.log().state().last.map_or(0, |last| last.index.get() + 1);
    let mut from = start(a).max(start(b));
    while from < end {
        let left = read(a, from, end).await;
        let right = read(b, from, end).await;
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

async fn read(group: &Group<Witness>, from: u64, end: u64) -> Vec<Frame> {
    let read = group.log().read(LogIndex(from), LogIndex(end), READ_BYTES);
    read.await
        .unwrap_or_else(|error| panic!("{group:?} cannot read entry {from}: {error}"))
}

fn bytes(frame: &Frame) -> Vec<u8> {
    let mut slices = Vec::new();
    frame.push_slices(&mut slices);
    slices.concat()
}
