//! One thing at a time.

use trilog_model::Offset;

use super::*;
use crate::io::sim::{PowerLoss, SimConfig, block_on};
use crate::log::{Checkpoint, LogStart, ReadError, Vote};

fn disk() -> SimDisk {
    SimDisk::with_config(3, SimConfig::instant())
}

#[test]
fn what_was_appended_is_there_after_a_power_loss() {
    block_on(async {
        let disk = disk();
        let (store, _) = open(&disk, small()).await;
        let log = store.create_group(GROUP, REPLICA).await.unwrap();
        append(&log, entries(1, 0..20, 300)).await;
        let before = read_all(&log, 0, 1 << 20).await;
        disk.crash(PowerLoss::Lose);
        let (store, report) = open(&disk.reopen(), small()).await;
        assert_eq!(report.groups, [(GROUP, REPLICA)]);
        let log = store.group(GROUP).unwrap();
        assert_eq!(log.replica(), REPLICA);
        let after = read_all(&log, 0, 1 << 20).await;
        assert_eq!(after.len(), 20);
        for (before, after) in before.iter().zip(&after) {
            assert_eq!(image(before), image(after));
        }
        let state = log.state();
        assert_eq!(state.last, Some(EntryId::new(1, 19)));
        assert_eq!(state.next_offset, Offset(40));
        assert_eq!(state.durable, Some(LogIndex(19)));
    });
}

#[test]
fn committed_entries_move_to_segments_and_read_back_alike() {
    block_on(async {
        let disk = disk();
        let (store, _) = open(&disk, small()).await;
        let log = store.create_group(GROUP, REPLICA).await.unwrap();
        let mut written = Vec::new();
        for n in 0..40 {
            append(&log, entries(1, n * 5..n * 5 + 5, 700)).await;
            written.extend(read_all(&log, n * 5, 1 << 20).await);
            log.commit(LogIndex(n * 5 + 4));
        }
        eventually("all is filled", || {
            log.state().filled == Some(LogIndex(199))
        })
        .await;
        assert!(store.stats().cached_bytes <= small().cache_bytes);
        assert_eq!(store.stats().pinned_bytes, 0);
        assert!(
            store.stats().wal.unwrap().oldest_file > 1,
            "files were recycled"
        );
        for max_bytes in [0, 3_000, 1 << 20] {
            let back = read_all(&log, 0, max_bytes).await;
            let images: Vec<_> = back.iter().map(image).collect();
            assert_eq!(images, written.iter().map(image).collect::<Vec<_>>());
        }
        store.close().await.unwrap();
        let (store, _) = open(&disk.reopen(), small()).await;
        let log = store.group(GROUP).unwrap();
        let back = read_all(&log, 0, 1 << 20).await;
        let images: Vec<_> = back.iter().map(image).collect();
        assert_eq!(images, written.iter().map(image).collect::<Vec<_>>());
        assert_eq!(log.state().committed, Some(LogIndex(199)));
    });
}

#[test]
fn votes_cuts_and_log_starts_survive() {
    block_on(async {
        let disk = disk();
        let (store, _) = open(&disk, small()).await;
        let log = store.create_group(GROUP, REPLICA).await.unwrap();
        let vote = Vote {
            term: trilog_model::Term(3),
            node: REPLICA,
            committed: false,
        };
        append(&log, entries(1, 0..10, 100)).await;
        log.save_vote(vote).await.unwrap();
        log.truncate_after(Some(LogIndex(6))).await.unwrap();
        append(&log, entries(3, 7..9, 100)).await;
        disk.crash(PowerLoss::Lose);
        let (store, _) = open(&disk.reopen(), small()).await;
        let log = store.group(GROUP).unwrap();
        assert_eq!(log.state().vote, Some(vote));
        assert_eq!(log.state().last, Some(EntryId::new(3, 8)));
        let starts = log.term_starts();
        assert_eq!(starts.len(), 2);
        assert_eq!(starts[1].index, LogIndex(7));
        assert_eq!(starts[1].offset, Offset(14));

        let start = LogStart {
            purged: EntryId::new(9, 99),
            next_offset: Offset(1_000),
            next_time: Timestamp(5_000_000_000),
            data_start: Offset(900),
            meta: Bytes::from_static(b"who is in"),
        };
        log.set_log_start(start.clone()).await.unwrap();
        append(&log, entries(9, 100..105, 100)).await;
        drop(store);
        disk.crash(PowerLoss::Lose);
        let (store, _) = open(&disk.reopen(), small()).await;
        let log = store.group(GROUP).unwrap();
        let state = log.state();
        assert_eq!(state.log_start, Some(start));
        assert_eq!(state.last, Some(EntryId::new(9, 104)));
        assert_eq!(state.next_offset, Offset(1_010));
        assert_eq!(state.data_start, Offset(1_000));
        let below = log.read(LogIndex(99), LogIndex(105), 100).await;
        assert!(matches!(below, Err(ReadError::BelowStart { .. })));
    });
}

#[test]
fn an_older_vote_does_not_take_the_place_of_a_newer_one() {
    block_on(async {
        let disk = disk();
        let (store, _) = open(&disk, small()).await;
        let log = store.create_group(GROUP, REPLICA).await.unwrap();
        let vote = |term, committed| Vote {
            term: trilog_model::Term(term),
            node: REPLICA,
            committed,
        };
        log.save_vote(vote(5, true)).await.unwrap();
        for older in [vote(4, true), vote(5, false)] {
            log.save_vote(older).await.unwrap();
            assert_eq!(log.state().vote, Some(vote(5, true)));
        }
        // What a restart knows when the file of the write-ahead log is recycled.
        store.checkpoint().await.unwrap();
        let saved = disk.read(std::path::Path::new("/data/checkpoint")).unwrap();
        let saved = Checkpoint::decode(&saved.into()).unwrap();
        assert_eq!(saved.groups[0].vote, Some(vote(5, true)));
        store.close().await.unwrap();
        let (store, _) = open(&disk.reopen(), small()).await;
        let log = store.group(GROUP).unwrap();
        assert_eq!(log.state().vote, Some(vote(5, true)));
    });
}

#[test]
fn a_removed_group_is_gone_for_good() {
    block_on(async {
        let disk = disk();
        let (store, _) = open(&disk, small()).await;
        let log = store.create_group(GROUP, REPLICA).await.unwrap();
        append(&log, entries(1, 0..10, 800)).await;
        log.commit(LogIndex(9));
        eventually("filled", || log.state().filled.is_some()).await;
        store.remove_group(GROUP).await.unwrap();
        assert!(store.group(GROUP).is_none());
        assert!(
            log.save_vote(log.state().vote.unwrap_or(Vote {
                term: trilog_model::Term(1),
                node: REPLICA,
                committed: false
            }))
            .await
            .is_err()
        );
        disk.crash(PowerLoss::Keep);
        let disk = disk.reopen();
        let (store, report) = open(&disk, small()).await;
        assert_eq!(report.groups, []);
        eventually("files are deleted", || {
            !disk
                .files()
                .iter()
                .any(|(path, _)| path.starts_with("/data/p"))
        })
        .await;
        let again = store.create_group(GROUP, ReplicaId(71)).await.unwrap();
        append(&again, entries(5, 0..3, 100)).await;
        disk.crash(PowerLoss::Lose);
        let (store, _) = open(&disk.reopen(), small()).await;
        let log = store.group(GROUP).unwrap();
        assert_eq!(log.replica(), ReplicaId(71));
        assert_eq!(log.state().last, Some(EntryId::new(5, 2)));
    });
}
