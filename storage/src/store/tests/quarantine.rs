//! Segments that go bad: found, set aside, never served, and replaced.

use std::path::Path;

use super::copies::{copy, twin};
use super::*;
use crate::io::sim::{PowerLoss, SimConfig, block_on};
use crate::log::{ReadError, Vote};

const ENTRIES: u64 = 120;

fn disk(seed: u64) -> SimDisk {
    SimDisk::with_config(seed, SimConfig::instant())
}

/// As [`small`], with a scrub that goes round and round.
fn scrubbed() -> StoreConfig {
    StoreConfig {
        scrub_bytes_per_second: 10 << 20,
        scrub_interval: Duration::from_millis(50),
        ..small()
    }
}

/// A log of [`ENTRIES`] committed entries, all in segments and in a checkpoint.
async fn filled(disk: &SimDisk, config: StoreConfig) -> (Store, GroupLog) {
    let (store, _) = open(disk, config).await;
    let log = store.create_group(GROUP, REPLICA).await.unwrap();
    for n in 0..ENTRIES / 10 {
        append(&log, entries(1, n * 10..n * 10 + 10, 700)).await;
        log.commit(LogIndex(n * 10 + 9));
    }
    store.checkpoint().await.unwrap();
    (store, log)
}

/// The segment files of the group, oldest first.
fn segment_files(disk: &SimDisk) -> Vec<PathBuf> {
    let files = disk.files().into_iter();
    let segments = files.filter(|(path, _)| path.extension().is_some_and(|kind| kind == "seg"));
    segments.map(|(path, _)| path).collect()
}

fn asides(disk: &SimDisk) -> usize {
    let files = disk.files().into_iter();
    let asides = files.filter(|(path, _)| path.to_string_lossy().contains(".damaged-"));
    asides.count()
}

async fn images(log: &GroupLog, from: u64) -> Vec<Vec<u8>> {
    let all = read_all(log, from, 1 << 20).await;
    all.iter().map(image).collect()
}

/// Reads entry by entry: what is refused as damaged is `None`.
async fn readable(log: &GroupLog) -> Vec<Option<Vec<u8>>> {
    let mut found = Vec::new();
    for index in 0..ENTRIES {
        let read = log.read(LogIndex(index), LogIndex(index + 1), 1).await;
        found.push(match read {
            Ok(frames) => Some(image(&frames[0])),
            Err(ReadError::Damaged { .. }) => None,
            Err(other) => panic!("entry {index}: {other}"),
        });
    }
    found
}

#[test]
fn the_scrub_finds_any_flipped_bit_and_the_segment_is_never_served_again() {
    for at in [3, 24, 63, 64, 70, 64 + 85, 64 + 120, 64 + 700, 5_001, 9_999] {
        block_on(async {
            let disk = disk(at);
            let (store, log) = filled(&disk, scrubbed()).await;
            let before = images(&log, 0).await;
            let vote = Vote {
                term: trilog_model::Term(9),
                node: REPLICA,
                committed: true,
            };
            log.save_vote(vote).await.unwrap();
            let damaged = segment_files(&disk).remove(1);
            disk.flip_bit(&damaged, at, u8::try_from(at % 8).unwrap());
            eventually("the scrub finds it", || store.stats().quarantined == 1).await;
            assert!(store.stats().scrubbed_bytes > 0);
            let gap = log.gaps()[0];
            assert!(!log.is_whole());
            eventually("it is set aside", || asides(&disk) == 1).await;
            assert!(!disk.files().iter().any(|(path, _)| *path == damaged));

            disk.crash(PowerLoss::Lose);
            let disk = disk.reopen();
            let (store, report) = open(&disk, small()).await;
            assert!(!report.step_aside);
            let log = store.group(GROUP).unwrap();
            assert_eq!(log.state().vote, Some(vote), "the vote is kept");
            eventually("it is known after a restart", || {
                store.stats().quarantined == 1
            })
            .await;
            assert_eq!(log.gaps(), [gap]);
            let after = readable(&log).await;
            for (index, (before, after)) in before.iter().zip(&after).enumerate() {
                let index = index as u64;
                let within = gap.first.unwrap().get() <= index && index < gap.end.get();
                assert_eq!(after.is_none(), within, "entry {index}");
                assert!(after.as_ref().is_none_or(|after| after == before));
            }
        });
    }
}

#[test]
fn a_reader_finds_damage_too_and_others_go_on() {
    block_on(async {
        let disk = disk(1);
        let (store, log) = filled(&disk, small()).await;
        let path = segment_files(&disk).remove(2);
        disk.fail_reads(&path, 0..1 << 20);
        let whole = readable(&log).await;
        assert!(whole.iter().any(Option::is_none) && whole.iter().any(Option::is_some));
        assert_eq!(store.stats().quarantined, 1);
        append(&log, entries(1, ENTRIES..ENTRIES + 5, 300)).await;
        log.commit(LogIndex(ENTRIES + 4));
        store.checkpoint().await.unwrap();
        assert_eq!(log.state().filled, Some(LogIndex(ENTRIES + 4)));
    });
}

#[test]
fn frames_of_a_newer_version_are_refused_and_not_set_aside() {
    block_on(async {
        let disk = disk(7);
        let (store, log) = filled(&disk, scrubbed()).await;
        let path = segment_files(&disk).remove(1);
        let mut bytes = disk.read(&path).unwrap();
        let header = &mut bytes[64..144];
        header[4] = crate::frame::VERSION + 1;
        let crc = crc32c::crc32c(&header[..76]);
        header[76..].copy_from_slice(&crc.to_le_bytes());
        disk.write(&path, &bytes);
        let scrubbed = store.stats().scrubbed_bytes;
        let whole: u64 = disk.files().iter().map(|(_, len)| *len).sum();
        eventually("the scrub goes over all of it", || {
            store.stats().scrubbed_bytes > scrubbed + 2 * whole
        })
        .await;
        let mut refused = 0;
        for index in 0..ENTRIES {
            let read = log.read(LogIndex(index), LogIndex(index + 1), 1).await;
            refused += u32::from(matches!(read, Err(ReadError::Io { .. })));
        }
        assert!(refused > 0);
        assert_eq!(store.stats().quarantined, 0);
        assert_eq!(asides(&disk), 0);
    });
}

#[test]
fn damage_in_the_growing_segment_ends_it_and_holds_nothing_up() {
    block_on(async {
        let disk = disk(2);
        let (store, log) = filled(&disk, small()).await;
        let last = segment_files(&disk).pop().unwrap();
        disk.flip_bit(&last, 64 + 10, 1);
        drop(store);
        disk.kill();
        let disk = disk.reopen();
        let (store, _) = open(&disk, small()).await;
        let log = {
            drop(log);
            store.group(GROUP).unwrap()
        };
        assert!(readable(&log).await.iter().any(Option::is_none));
        for n in 0..30 {
            let from = ENTRIES + n * 10;
            append(&log, entries(1, from..from + 10, 700)).await;
            log.commit(LogIndex(from + 9));
        }
        eventually("all is filled", || {
            log.state().filled == Some(LogIndex(ENTRIES + 299))
        })
        .await;
        store.checkpoint().await.unwrap();
        eventually("the write-ahead log is let go", || {
            store.stats().wal.unwrap().oldest_file > 1
        })
        .await;
        assert_eq!(store.stats().quarantined, 1);
    });
}

#[test]
fn another_replicas_copy_takes_the_place_of_a_damaged_segment_byte_for_byte() {
    block_on(async {
        let disk = disk(3);
        let (store, log) = filled(&disk, scrubbed()).await;
        let (_peer_store, peer) = twin(&log, 4, small()).await;
        let before = images(&log, 0).await;
        let path = segment_files(&disk).remove(1);
        let bytes = disk.read(&path).unwrap();
        disk.flip_bit(&path, 700, 3);
        eventually("the scrub finds it", || store.stats().quarantined == 1).await;
        eventually("it is set aside", || asides(&disk) == 1).await;
        copy(&peer, &log, log.gaps()[0]).await.unwrap();
        assert_eq!(log.gaps(), []);
        assert_eq!(store.stats().quarantined, 0);
        assert_eq!(images(&log, 0).await, before);
        assert_eq!(disk.read(&path).unwrap(), bytes);
        assert_eq!(asides(&disk), 1, "what was damaged is kept");

        // Once more: a second name among those set aside.
        disk.flip_bit(&path, 900, 1);
        eventually("the scrub finds it", || store.stats().quarantined == 1).await;
        eventually("it is set aside", || asides(&disk) == 2).await;
        copy(&peer, &log, log.gaps()[0]).await.unwrap();

        disk.crash(PowerLoss::Lose);
        let (store, _) = open(&disk.reopen(), scrubbed()).await;
        let log = store.group(GROUP).unwrap();
        assert_eq!(images(&log, 0).await, before);
        assert_eq!(store.stats().quarantined, 0);
        assert_eq!(log.gaps(), []);
    });
}

#[test]
fn an_index_that_leads_astray_is_made_anew() {
    block_on(async {
        let disk = disk(5);
        let (store, log) = filled(&disk, small()).await;
        let before = images(&log, 0).await;
        drop((store, log));
        disk.kill();
        let disk = disk.reopen();
        let path = segment_files(&disk).remove(0).with_extension("idx");
        let bytes = disk.read(&path).unwrap();
        disk.flip_bit(&path, 50, 2);
        let (store, _) = open(&disk, scrubbed()).await;
        let healed = |disk: &SimDisk, path: &Path| disk.read(path).as_ref() == Some(&bytes);
        eventually("the index is written again", || healed(&disk, &path)).await;
        let log = store.group(GROUP).unwrap();
        assert_eq!(images(&log, 0).await, before);
        assert_eq!(store.stats().quarantined, 0);
    });
}

#[test]
fn a_trim_takes_a_damaged_segment_out_of_sight_and_a_restart_deletes_its_file() {
    block_on(async {
        let disk = disk(6);
        let (store, log) = filled(&disk, scrubbed()).await;
        let path = segment_files(&disk).remove(0);
        disk.flip_bit(&path, 300, 0);
        eventually("the scrub finds it", || asides(&disk) == 1).await;
        let gap = log.gaps()[0];
        let frame = log
            .read(gap.end, gap.end.next(), 1)
            .await
            .unwrap()
            .remove(0);
        let start = crate::log::LogStart {
            purged: EntryId::new(1, gap.end.get() - 1),
            next_offset: frame.header.base_offset,
            next_time: frame.header.append_time,
            data_start: frame.header.base_offset,
            meta: Bytes::new(),
        };
        log.set_log_start(start).await.unwrap();
        assert_eq!(log.gaps(), []);
        store.close().await.unwrap();
        let disk = disk.reopen();
        let (_store, _) = open(&disk, small()).await;
        eventually("the file is deleted", || asides(&disk) == 0).await;
    });
}
