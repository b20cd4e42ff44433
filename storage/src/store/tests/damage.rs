//! Damage to a directory at rest: what was never acknowledged is cut, what was durable and
//! decides elections makes everyone on it step aside, and what can be fetched again is refused
//! alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use trilog_model::{Offset, Term};

use super::*;
use crate::io::sim::{PowerLoss, SimConfig, SimImage, block_on};
use crate::log::{ReadError, Vote};

const BLOCK: usize = 4096;
const NEW_REPLICA: ReplicaId = ReplicaId(71);
const VOTE: Vote = Vote {
    term: Term(4),
    node: REPLICA,
    committed: true,
};

/// A directory whose process was killed: sealed segments, an active one, and a write-ahead log
/// with entries in no segment.
struct AtRest {
    image: SimImage,
    /// Every entry, as [`body`] has it.
    entries: Vec<Vec<u8>>,
}

impl AtRest {
    /// Whether the log `rests` long enough to be sealed: else nothing proves its last round.
    async fn new(rests: bool) -> Self {
        let disk = SimDisk::with_config(8, SimConfig::instant());
        let (store, _) = open(&disk, small()).await;
        let log = store.create_group(GROUP, REPLICA).await.unwrap();
        for n in 0..14 {
            append(&log, entries(1, n * 5..n * 5 + 5, 700)).await;
            log.commit(LogIndex(n * 5 + 4));
        }
        log.save_vote(VOTE).await.unwrap();
        store.checkpoint().await.unwrap();
        append(&log, entries(1, 70..80, 700)).await;
        if rests {
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
        disk.kill();
        Self {
            image: disk.fork(),
            entries: written(),
        }
    }

    fn path_of(&self, chosen: impl Fn(&Path) -> bool) -> Vec<PathBuf> {
        let files = self.image.files().into_iter().map(|(path, _)| path);
        files.filter(|path| chosen(path)).collect()
    }

    /// Segments and indexes, the active one last.
    fn of_kind(&self, kind: &str) -> Vec<PathBuf> {
        self.path_of(|path| path.extension().is_some_and(|ending| ending == kind))
    }

    /// Where rounds begin in the write-ahead log file written to last.
    fn last_rounds(&self) -> (PathBuf, Vec<usize>) {
        let newest = |path: &PathBuf| {
            let bytes = self.image.read(path).unwrap();
            let begun = bytes.starts_with(b"TLW1");
            begun.then(|| u64::from_le_bytes(bytes[8..16].try_into().unwrap()))
        };
        let path = self.of_kind("wal").into_iter().max_by_key(newest).unwrap();
        let bytes = self.image.read(&path).unwrap();
        let blocks = bytes.chunks(BLOCK).enumerate();
        let number = &bytes[8..16];
        let rounds =
            blocks.filter(|(_, block)| block.starts_with(b"TLR1") && &block[8..16] == number);
        let rounds = rounds.map(|(nth, _)| nth * BLOCK).collect();
        (path, rounds)
    }
}

/// The entries of the log, in order: of each what its producer made, and its offset.
fn written() -> Vec<Vec<u8>> {
    (0..80)
        .map(|index| {
            let mut sent = entry(EntryId::new(1, index), 2, 700);
            sent.header.base_offset = Offset(index * 2);
            body(&sent)
        })
        .collect()
}

/// An entry's offset, and what its producer made of it.
fn body(frame: &Frame) -> Vec<u8> {
    let mut body = frame.header.base_offset.get().to_le_bytes().to_vec();
    body.extend_from_slice(&frame.records[21..]);
    body
}

/// Reads the log entry by entry: the wrong bytes are never served. Returns how many were refused.
async fn never_serves_damage(log: &GroupLog, entries: &[Vec<u8>]) -> usize {
    let mut refused = 0;
    for (index, expected) in (0..).zip(entries) {
        let index = LogIndex(index);
        match log.read(index, index.next(), 1).await {
            Ok(frames) => {
                assert_eq!(frames.len(), 1);
                assert_eq!(frames[0].header.index, index);
                assert_eq!(body(&frames[0]), *expected, "entry {index}");
            }
            Err(ReadError::Damaged { first, last }) => {
                assert!((first..=last).contains(&index));
                refused += 1;
            }
            Err(error) => panic!("entry {index}: {error}"),
        }
    }
    refused
}

#[test]
fn a_torn_tail_is_cut_and_the_log_goes_on() {
    block_on(async {
        let scene = AtRest::new(false).await;
        let (path, rounds) = scene.last_rounds();
        let last = *rounds.last().unwrap();
        for torn in [last, last + 512, last + BLOCK] {
            let disk = scene.image.kill(1);
            let mut bytes = disk.read(&path).unwrap();
            bytes[torn..].fill(0);
            disk.write(&path, &bytes);
            let (store, report) = open(&disk, small()).await;
            assert!(!report.step_aside, "{report:?}");
            assert_eq!(report.torn_tail, torn > last, "a trace of it is left");
            let log = store.group(GROUP).unwrap();
            let state = log.state();
            assert_eq!(state.vote, Some(VOTE));
            let left = usize::try_from(state.last.unwrap().index.get()).unwrap() + 1;
            assert_eq!(left, 70, "that round and no other is gone");
            assert_eq!(never_serves_damage(&log, &scene.entries[..left]).await, 0);
            append(&log, entries(5, 70..75, 300)).await;
            disk.crash(PowerLoss::Lose);
            let (store, report) = open(&disk.reopen(), small()).await;
            assert!(!report.step_aside && !report.torn_tail, "{report:?}");
            let state = store.group(GROUP).unwrap().state();
            assert_eq!(state.last, Some(EntryId::new(5, 74)));
        }
    });
}

/// The replica that was there votes no more, nothing of it is deleted, and another may join.
async fn steps_aside(scene: &AtRest, damage: impl Fn(&SimDisk)) {
    let disk = scene.image.kill(2);
    damage(&disk);
    let mut before = contents(&disk);
    // What it holds was replaced long ago, and it is there to be written over.
    before.remove(Path::new("/data/checkpoint.new"));
    let (store, report) = open(&disk, small()).await;
    assert!(report.step_aside, "{report:?}");
    assert_eq!(report.stepped_aside, [(GROUP, REPLICA)]);
    assert!(report.damage.is_some());
    assert_eq!((report.groups, store.groups()), (vec![], vec![]));
    let after = contents(&disk);
    for bytes in before.values() {
        let kept = after.values().any(|kept| kept == bytes);
        assert!(kept, "something was deleted or changed");
    }
    barred(&store).await;
    // Not by the next process either.
    drop(store);
    disk.crash(PowerLoss::Lose);
    let disk = disk.reopen();
    let (store, report) = open(&disk, small()).await;
    assert!(!report.step_aside);
    assert_eq!(report.stepped_aside, [(GROUP, REPLICA)]);
    barred(&store).await;
    let log = store.create_group(GROUP, NEW_REPLICA).await.unwrap();
    assert_eq!(log.state().vote, None);
    append(&log, entries(6, 0..5, 300)).await;
    store.close().await.unwrap();
    let (store, report) = open(&disk.reopen(), small()).await;
    assert_eq!(report.groups, [(GROUP, NEW_REPLICA)]);
    let last = store.group(GROUP).unwrap().state().last;
    assert_eq!(last, Some(EntryId::new(6, 4)));
}

async fn barred(store: &Store) {
    let again = store.create_group(GROUP, REPLICA).await;
    assert!(matches!(again, Err(StoreError::Barred { .. })), "{again:?}");
}

fn contents(disk: &SimDisk) -> BTreeMap<PathBuf, Vec<u8>> {
    let files = disk.files().into_iter();
    let contents = files.map(|(path, _)| (path.clone(), disk.read(&path).unwrap()));
    contents.collect()
}

#[test]
fn a_flip_below_the_durable_mark_makes_the_replicas_step_aside() {
    block_on(async {
        let scene = AtRest::new(true).await;
        let (path, rounds) = scene.last_rounds();
        // The last is the seal, which says that those before it were durable.
        let [.., round, _seal] = rounds[..] else {
            panic!("{rounds:?}");
        };
        for at in [round, round + 63, round + 64 + 3, round + 64 + 80 + 500] {
            steps_aside(&scene, |disk| disk.flip_bit(&path, at as u64, 5)).await;
        }
    });
}

#[test]
fn a_lost_write_ahead_log_makes_the_replicas_step_aside() {
    block_on(async {
        let scene = AtRest::new(true).await;
        steps_aside(&scene, |disk| {
            for path in scene.of_kind("wal") {
                disk.remove(&path);
            }
        })
        .await;
    });
}

#[test]
fn a_damaged_or_lost_checkpoint_makes_the_replicas_step_aside() {
    block_on(async {
        let scene = AtRest::new(true).await;
        let path = Path::new("/data/checkpoint");
        let bytes = scene.image.read(path).unwrap();
        // Head, body and checksum; what comes behind them means nothing.
        let len = 20 + u64::from_le_bytes(bytes[8..16].try_into().unwrap());
        for at in [0, 9, 40, len / 2, len - 1] {
            steps_aside(&scene, |disk| disk.flip_bit(path, at, 2)).await;
        }
        steps_aside(&scene, |disk| disk.remove(path)).await;
    });
}

#[test]
fn a_flip_in_a_sealed_segment_is_never_served_and_costs_no_vote() {
    block_on(async {
        let scene = AtRest::new(true).await;
        let segments = scene.of_kind("seg");
        assert!(segments.len() >= 3, "{segments:?}");
        let len = scene.image.read(&segments[0]).unwrap().len();
        let mut refused = 0;
        for at in (0..len).step_by(211) {
            let disk = scene.image.kill(3);
            disk.flip_bit(&segments[0], at as u64, 1);
            let (store, report) = open(&disk, small()).await;
            assert!(!report.step_aside, "{report:?}");
            let log = store.group(GROUP).unwrap();
            assert_eq!(log.state().vote, Some(VOTE));
            refused += never_serves_damage(&log, &scene.entries).await;
            let next = Vote {
                term: Term(5),
                ..VOTE
            };
            log.save_vote(next).await.unwrap();
            append(&log, entries(5, 80..82, 300)).await;
            // Nor does a restart take it for good.
            drop((store, log));
            disk.crash(PowerLoss::Lose);
            let (store, report) = open(&disk.reopen(), small()).await;
            assert!(!report.step_aside, "{report:?}");
            let log = store.group(GROUP).unwrap();
            assert_eq!(log.state().vote, Some(next));
            never_serves_damage(&log, &scene.entries).await;
        }
        assert!(refused > 100, "{refused}");
    });
}

#[test]
fn a_damaged_or_lost_index_costs_nothing() {
    block_on(async {
        let scene = AtRest::new(true).await;
        let indexes = scene.of_kind("idx");
        assert!(!indexes.is_empty());
        for path in &indexes {
            let len = scene.image.read(path).unwrap().len();
            for at in (0..len).step_by(13) {
                let disk = scene.image.kill(4);
                disk.flip_bit(path, at as u64, 6);
                let (store, _) = open(&disk, small()).await;
                let log = store.group(GROUP).unwrap();
                assert_eq!(never_serves_damage(&log, &scene.entries).await, 0);
                disk.kill();
            }
            let disk = scene.image.kill(4);
            disk.remove(path);
            let (store, _) = open(&disk, small()).await;
            let log = store.group(GROUP).unwrap();
            assert_eq!(never_serves_damage(&log, &scene.entries).await, 0);
        }
    });
}

/// A frame of 512 bytes, so that a read which goes astray by sectors finds whole frames.
fn sector(index: u64) -> Frame {
    let mut frame = entry(EntryId::new(1, index), 2, 432);
    frame.records.truncate(432);
    frame.header.records_len = 432;
    frame.header.records_crc = crc32c::crc32c(&frame.records[21..]);
    assert_eq!(frame.header.frame_len(), 512);
    frame
}

/// A read of a segment comes back with the bytes of another place, whole frames at times.
#[test]
fn a_segment_read_astray_is_never_served() {
    const COUNT: u64 = 300;
    // So long that a read of it ends before it does, wherever it begins.
    let config = StoreConfig {
        segment_bytes: 100 * 1024,
        ..small()
    };
    block_on(async {
        let disk = SimDisk::with_config(8, SimConfig::instant());
        let (store, _) = open(&disk, config.clone()).await;
        let log = store.create_group(GROUP, REPLICA).await.unwrap();
        for from in (0..COUNT).step_by(30) {
            append(&log, (from..from + 30).map(sector).collect()).await;
            log.commit(LogIndex(from + 29));
            eventually("it is filled", || {
                log.state().filled == Some(LogIndex(from + 29))
            })
            .await;
        }
        store.close().await.unwrap();
        let image = disk.fork();
        let mut refused = 0;
        for (path, _) in image.files() {
            let segment = path
                .extension()
                .is_some_and(|kind| kind == "seg" || kind == "idx");
            for seed in (0..100).filter(|_| segment) {
                let disk = image.kill(seed);
                let (store, _) = open(&disk, config.clone()).await;
                let log = store.group(GROUP).unwrap();
                disk.misdirect_read_after(&path, seed % 3);
                for probe in 0..6 {
                    let index = (probe * 7 + seed * 3) % COUNT;
                    refused += astray(&log, index).await;
                }
                disk.kill();
            }
        }
        assert!(refused > 100, "{refused}");
    });
}

/// Reads one entry by its index and by its offset; how often that was refused.
async fn astray(log: &GroupLog, index: u64) -> u32 {
    let by_index = log.read(LogIndex(index), LogIndex(index + 3), 1_000).await;
    let by_offset = log.read_offsets(Offset(index * 2 + 1), LogIndex(index + 3), 1_000);
    let mut refused = 0;
    for found in [by_index, by_offset.await] {
        match found {
            Ok(frames) => {
                assert!(!frames.is_empty());
                for (expected, frame) in (index..).zip(&frames) {
                    let sent = sector(expected);
                    assert_eq!(frame.header.id(), sent.header.id());
                    assert_eq!(frame.records[21..], sent.records[21..]);
                }
            }
            Err(ReadError::Damaged { .. }) => refused += 1,
            Err(error) => panic!("entry {index}: {error}"),
        }
    }
    refused
}
