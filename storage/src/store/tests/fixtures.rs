//! A data directory as the first release left it, kept for ever: every build must read it, and
//! must refuse what a newer one wrote without touching it.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use trilog_model::{Offset, Term};

use super::*;
use crate::inspect::inspect;
use crate::io::sim::{SimConfig, block_on};
use crate::log::checkpoint::tests::sample;
use crate::log::{Checkpoint, LogStart, SegmentHeader, Vote};

/// Folders below the data directory, and all that is in it, by path.
type Files = BTreeMap<PathBuf, Vec<u8>>;

const ACTIVE: &str = "/data/p/7@0.70/00000000000000000005.seg";
const SEALED: &str = "/data/p/7@0.70/00000000000000000000.seg";
const INDEX: &str = "/data/p/7@0.70/00000000000000000000.idx";
const CHECKPOINT: &str = "/data/checkpoint";
const SPARE: &str = "/data/checkpoint.new";
const VOTE: Vote = Vote {
    term: Term(3),
    node: REPLICA,
    committed: true,
};

fn folder(version: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/store")
        .join(version)
}

/// What the fixtures were made with.
fn config() -> StoreConfig {
    StoreConfig {
        wal_file_bytes: 20 << 10,
        wal_files: 4,
        wal_round_bytes: 8 << 10,
        segment_bytes: 2_900,
        ..small()
    }
}

fn log_start() -> LogStart {
    LogStart {
        purged: EntryId::new(1, 2),
        next_offset: Offset(6),
        next_time: Timestamp(0),
        data_start: Offset(1),
        meta: Bytes::from_static(b"members"),
    }
}

/// The entries in it: eight in segments, two in the write-ahead log alone.
fn sent() -> Vec<Frame> {
    [entries(1, 0..8, 500), entries(2, 8..10, 500)].concat()
}

/// Writes such a directory as this build would.
async fn written_today() -> Files {
    let disk = SimDisk::with_config(1, SimConfig::instant());
    let (store, _) = open(&disk, config()).await;
    let log = store.create_group(GROUP, REPLICA).await.unwrap();
    let (committed, rest) = (entries(1, 0..8, 500), entries(2, 8..10, 500));
    for frame in committed {
        append(&log, vec![frame]).await;
    }
    log.commit(LogIndex(7));
    log.save_vote(VOTE).await.unwrap();
    log.set_log_start(log_start()).await.unwrap();
    store.checkpoint().await.unwrap();
    append(&log, rest).await;
    tokio::time::sleep(Duration::from_millis(60)).await;
    disk.kill();
    contents(&disk)
}

fn contents(disk: &SimDisk) -> Files {
    let files = disk.files().into_iter();
    let contents = files.map(|(path, _)| (path.clone(), disk.read(&path).unwrap()));
    contents.collect()
}

/// The fixture of one format, as if it lay in `/data`.
fn kept(version: &str) -> Files {
    let mut files = Files::new();
    collect(&folder(version), Path::new("/data"), &mut files);
    assert!(files.len() > 5, "{files:?}");
    files
}

fn collect(from: &Path, to: &Path, files: &mut Files) {
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let name = to.join(path.file_name().unwrap());
        if path.is_dir() {
            collect(&path, &name, files);
        } else {
            files.insert(name, fs::read(&path).unwrap());
        }
    }
}

fn planted(files: &Files) -> SimDisk {
    let disk = SimDisk::with_config(1, SimConfig::instant());
    for (path, bytes) in files {
        disk.write(path, bytes);
    }
    disk
}

#[test]
fn a_directory_of_format_1_is_read_and_written_on() {
    block_on(async {
        let disk = planted(&kept("v1"));
        let found = inspect(&disk.backend(), Path::new("/data"), Box::new(|_, _| {})).await;
        assert_eq!(found.unwrap().damage, []);
        let (store, report) = open(&disk, config()).await;
        assert!(
            !report.step_aside && report.orphans.is_empty(),
            "{report:?}"
        );
        assert_eq!(report.groups, [(GROUP, REPLICA)]);
        let log = store.group(GROUP).unwrap();
        let state = log.state();
        assert_eq!(
            (state.vote, &state.log_start),
            (Some(VOTE), &Some(log_start()))
        );
        assert_eq!(state.filled, Some(LogIndex(7)));
        assert_eq!(state.next_offset, Offset(20));
        same_entries(&log, 10).await;
        append(&log, entries(3, 10..12, 500)).await;
        log.commit(LogIndex(11));
        store.close().await.unwrap();
        let (store, _) = open(&disk.reopen(), config()).await;
        let log = store.group(GROUP).unwrap();
        same_entries(&log, 12).await;
        assert_eq!(log.state().filled, Some(LogIndex(11)));
    });
}

async fn same_entries(log: &GroupLog, count: usize) {
    let found = read_all(log, 0, 1_500).await;
    assert_eq!(found.len(), count);
    for (found, sent) in found.iter().zip(sent()) {
        assert_eq!(found.header.id(), sent.header.id());
        assert_eq!(found.records[21..], sent.records[21..]);
    }
}

/// What holds no signature and no place in the write-ahead log is the same to the byte.
/// `TRILOG_BLESS=1` writes the fixtures of the present formats anew.
#[test]
fn segments_and_indexes_are_still_written_as_format_1() {
    let mut today = block_on(written_today());
    // Its content is that of the checkpoint before last, or nothing yet.
    assert!(today.remove(Path::new(SPARE)).is_some());
    if std::env::var_os("TRILOG_BLESS").is_some() {
        for (path, bytes) in &today {
            let path = folder("v1").join(path.strip_prefix("/data").unwrap());
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        return;
    }
    let kept = kept("v1");
    assert!(kept.keys().eq(today.keys()), "{:?}", today.keys());
    for path in [SEALED, ACTIVE, INDEX] {
        assert_eq!(kept[Path::new(path)], today[Path::new(path)], "{path}");
    }
}

#[test]
fn checkpoints_are_written_as_format_2_and_those_of_format_1_still_read() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let present = folder.join("checkpoint.v2");
    if std::env::var_os("TRILOG_BLESS").is_some() {
        fs::write(&present, sample().encode()).unwrap();
        return;
    }
    assert_eq!(sample().encode(), fs::read(&present).unwrap());
    for (name, may_be_longer) in [("checkpoint.v1", false), ("checkpoint.v2", true)] {
        let mut bytes = fs::read(folder.join(name)).unwrap();
        assert_eq!(Checkpoint::decode(&bytes.clone().into()), Ok(sample()));
        bytes.push(7);
        let longer = Checkpoint::decode(&bytes.into());
        assert_eq!(longer.is_ok(), may_be_longer, "{name}");
    }
}

/// Sets a version of days to come in the header at `at`, whose checksum covers `covered` bytes from there on
/// and follows them.
fn newer(bytes: &mut [u8], at: usize, covered: usize) {
    bytes[at + 4] = 9;
    let end = at + covered;
    let crc = crc32c::crc32c(&bytes[at..end]);
    bytes[end..end + 4].copy_from_slice(&crc.to_le_bytes());
}

/// The file of the write-ahead log that was begun last.
fn newest_wal_file(files: &Files) -> PathBuf {
    let begun = files.iter().filter(|(_, bytes)| bytes.starts_with(b"TLW1"));
    let newest =
        begun.max_by_key(|(_, bytes)| u64::from_le_bytes(bytes[8..16].try_into().unwrap()));
    newest.unwrap().0.clone()
}

/// Bytes before the first block of rounds, and of a round's header.
const BLOCK: usize = 4096;
const ROUND_HEADER: usize = 64;

#[test]
fn a_directory_of_a_newer_format_is_refused_and_left_as_it_is() {
    let v1 = kept("v1");
    let checkpoint = Path::new(CHECKPOINT);
    let wal = newest_wal_file(&v1);
    for (path, at, covered) in [
        (checkpoint, 0, v1[checkpoint].len() - 4),
        // A file's header, a round's, and a frame's in it.
        (&wal, 0, 60),
        (&wal, BLOCK, 60),
        (&wal, BLOCK + ROUND_HEADER, 76),
    ] {
        let mut files = v1.clone();
        newer(files.get_mut(path).unwrap(), at, covered);
        block_on(async {
            let disk = planted(&files);
            let refused = try_open(disk.backend(), config()).await;
            let refused = refused.map(drop).expect_err("opened").to_string();
            assert!(refused.contains("newer than this build reads"), "{refused}");
            let found = inspect(&disk.backend(), Path::new("/data"), Box::new(|_, _| {})).await;
            let refused = found.unwrap_err().to_string();
            assert!(refused.contains("newer than this build reads"), "{refused}");
            assert_eq!(contents(&disk), files, "{} at {at}", path.display());
        });
    }
}

/// A segment that is not understood takes no more entries, is named as what it is, and stays.
#[test]
fn a_segment_of_a_newer_format_is_not_written_to() {
    let mut files = kept("v1");
    newer(files.get_mut(Path::new(ACTIVE)).unwrap(), 0, 60);
    block_on(async {
        let disk = planted(&files);
        let found = inspect(&disk.backend(), Path::new("/data"), Box::new(|_, _| {})).await;
        let damage = &found.unwrap().damage;
        assert_eq!(damage.len(), 1, "{damage:?}");
        assert!(
            damage[0].what.contains("newer than this build reads"),
            "{}",
            damage[0].what
        );
        let (store, report) = open(&disk, config()).await;
        assert!(!report.step_aside, "{report:?}");
        let log = store.group(GROUP).unwrap();
        log.commit(LogIndex(9));
        store.close().await.unwrap();
        let disk = disk.reopen();
        let (store, _) = open(&disk, config()).await;
        let log = store.group(GROUP).unwrap();
        assert_eq!(log.state().filled, Some(LogIndex(9)));
        assert_eq!(log.segments().last().unwrap().base_index, LogIndex(8));
        store.close().await.unwrap();
        // Under its own name, or set aside beside it.
        let after = contents(&disk);
        let stem = Path::new(ACTIVE).with_extension("");
        let beside = |path: &Path| path.to_string_lossy().starts_with(&*stem.to_string_lossy());
        let mut kept = after.iter().filter(|(path, _)| beside(path));
        assert!(kept.any(|(_, bytes)| *bytes == files[Path::new(ACTIVE)]));
    });
    let header = &files[Path::new(ACTIVE)];
    let refused = SegmentHeader::decode(header).unwrap_err().to_string();
    assert_eq!(
        refused,
        "segment format version 9 is newer than this build reads (up to 1)"
    );
}

/// An index that is not understood is built again from its segment.
#[test]
fn an_index_of_a_newer_format_is_not_used() {
    let mut files = kept("v1");
    let len = files[Path::new(INDEX)].len();
    newer(files.get_mut(Path::new(INDEX)).unwrap(), 0, len - 4);
    block_on(async {
        let disk = planted(&files);
        let (store, _) = open(&disk, config()).await;
        let log = store.group(GROUP).unwrap();
        same_entries(&log, 10).await;
        store.close().await.unwrap();
        assert_eq!(contents(&disk)[Path::new(INDEX)], files[Path::new(INDEX)]);
    });
}
