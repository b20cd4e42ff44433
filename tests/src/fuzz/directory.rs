//! A data directory of which one file was damaged, in any way that its checksums do not tell: a
//! restart must end in an error, a directory set aside, or a log that can be read, whatever stands
//! there.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use trilog_model::{EntryId, LogIndex, Offset, Timestamp};
use trilog_storage::env::{Entropy, SystemClock};
use trilog_storage::frame::{Frame, FrameKind};
use trilog_storage::inspect::inspect;
use trilog_storage::io::sim::{SimConfig, SimDisk, block_on};
use trilog_storage::log::{Appending, GroupLog, StoreConfig};
use trilog_storage::store::Store;

/// The files of a sound directory, as the tests of storage keep them.
const FILES: [(&str, &[u8]); 8] = [
    (
        "/data/checkpoint",
        include_bytes!("../../../storage/tests/fixtures/store/v1/checkpoint"),
    ),
    (
        "/data/p/7@0.70/00000000000000000000.seg",
        include_bytes!(
            "../../../storage/tests/fixtures/store/v1/p/7@0.70/00000000000000000000.seg"
        ),
    ),
    (
        "/data/p/7@0.70/00000000000000000000.idx",
        include_bytes!(
            "../../../storage/tests/fixtures/store/v1/p/7@0.70/00000000000000000000.idx"
        ),
    ),
    (
        "/data/p/7@0.70/00000000000000000005.seg",
        include_bytes!(
            "../../../storage/tests/fixtures/store/v1/p/7@0.70/00000000000000000005.seg"
        ),
    ),
    (
        "/data/wal/00.wal",
        include_bytes!("../../../storage/tests/fixtures/store/v1/wal/00.wal"),
    ),
    (
        "/data/wal/01.wal",
        include_bytes!("../../../storage/tests/fixtures/store/v1/wal/01.wal"),
    ),
    (
        "/data/wal/02.wal",
        include_bytes!("../../../storage/tests/fixtures/store/v1/wal/02.wal"),
    ),
    (
        "/data/wal/03.wal",
        include_bytes!("../../../storage/tests/fixtures/store/v1/wal/03.wal"),
    ),
];
/// Frame headers, and those of log files and segments, with their checksums behind them.
const COVERED: [usize; 2] = [76, 60];
/// Where headers stand in a file of the write-ahead log.
const BLOCK: usize = 4096;

/// Damages a directory as `bytes` say, then does all that a restart and its readers do.
pub fn directory(bytes: &[u8]) {
    let Some((choice, rest)) = bytes.split_first() else {
        return;
    };
    let chosen = usize::from(*choice) % FILES.len();
    let disk_of = |damaged: &[u8]| {
        let disk = SimDisk::with_config(1, SimConfig::instant());
        for (nth, (path, sound)) in FILES.iter().enumerate() {
            let content = if nth == chosen { damaged } else { sound };
            disk.write(Path::new(path), content);
        }
        disk
    };
    let damaged = if choice & 0x80 == 0 {
        patched(FILES[chosen].1, rest)
    } else {
        rest.to_vec()
    };
    block_on(async {
        restart(&disk_of(&damaged)).await;
        // Behind a checksum that was made right.
        restart(&disk_of(&repaired(chosen, damaged))).await;
    });
}

/// `sound` with pieces written over it: each a place in two bytes, a length in one, and bytes.
fn patched(sound: &[u8], mut patches: &[u8]) -> Vec<u8> {
    let mut content = sound.to_vec();
    while let [low, high, len, rest @ ..] = patches {
        let at = usize::from(u16::from_le_bytes([*low, *high])) % content.len().max(1);
        let (patch, after) = rest.split_at(usize::from(*len).min(rest.len()));
        for (place, byte) in content.iter_mut().skip(at).zip(patch) {
            *place = *byte;
        }
        patches = after;
    }
    content
}

/// The content with every checksum of a header that is in its usual place made right.
fn repaired(chosen: usize, mut content: Vec<u8>) -> Vec<u8> {
    match chosen {
        // Over all that comes before it.
        0 | 2 => {
            let end = content.len().saturating_sub(4);
            repair(&mut content, 0, end);
        }
        1 | 3 => {
            repair(&mut content, 0, COVERED[1]);
            repair(&mut content, 64, COVERED[0]);
        }
        _ => {
            for at in (0..content.len()).step_by(BLOCK) {
                // The frame's first: the round's covers it.
                repair(&mut content, at + 64, COVERED[0]);
                repair(&mut content, at, COVERED[1]);
            }
        }
    }
    content
}

fn repair(content: &mut [u8], at: usize, covered: usize) {
    let end = at.saturating_add(covered);
    let Some(crc) = content.get(at..end).map(crc32c::crc32c) else {
        return;
    };
    if let Some(field) = content.get_mut(end..end.saturating_add(4)) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
}

/// What the fixtures were made with.
fn config() -> StoreConfig {
    StoreConfig {
        wal_file_bytes: 20 << 10,
        wal_files: 4,
        wal_round_bytes: 8 << 10,
        segment_bytes: 2_900,
        fill_bytes: 2_048,
        fill_age: Duration::from_millis(200),
        fill_workers: 1,
        read_workers: 1,
        ..StoreConfig::new("/data".into())
    }
}

async fn restart(disk: &SimDisk) {
    // Whether it finds anything is not the question.
    let _ = inspect(&disk.backend(), Path::new("/data"), Box::new(|_, _| {})).await;
    let clock = Arc::new(SystemClock);
    let opened = Store::open(config(), disk.backend(), clock, Entropy::from_seed(1));
    let Ok((store, report)) = Box::pin(opened).await else {
        disk.kill();
        return;
    };
    assert!(!report.step_aside || store.groups().is_empty());
    for group in store.groups() {
        let Some(log) = store.group(group) else {
            continue;
        };
        read(&log).await;
        write(&log);
    }
    // Moves what was written into segments.
    let _ = store.checkpoint().await;
    drop(store);
    disk.kill();
}

/// Reads all there is in each way, as far as it can be read.
async fn read(log: &GroupLog) {
    let state = log.state();
    let end = LogIndex(
        state
            .last
            .map_or(0, |last| last.index.get().saturating_add(1)),
    );
    for index in 0..12 {
        let index = LogIndex(index);
        if let Ok(frames) = log.read(index, end, 1_000).await {
            let mut expected = index;
            for frame in &frames {
                assert_eq!(frame.header.index, expected, "a gap");
                assert!(frame.verify().is_ok());
                expected = expected.next();
            }
        }
    }
    for offset in 0..24 {
        let _ = log.read_offsets(Offset(offset), end, 1_000).await;
    }
    for time in [0, 1_000_005_000, u64::MAX] {
        let _ = log.find_append_time(Timestamp(time), end).await;
    }
    for time in [i64::MIN, 35, i64::MAX] {
        let _ = log.find_record_time(time, end).await;
    }
}

/// Appends an entry if the log takes one, and commits it.
fn write(log: &GroupLog) {
    let last = log.state().last.unwrap_or(EntryId::new(0, 0));
    let (Some(index), Some(term)) = (
        last.index.get().checked_add(1),
        last.term.get().checked_add(1),
    ) else {
        return;
    };
    let id = EntryId::new(term, index);
    let frame = Frame::bare(FrameKind::Blank, log.group(), id, Bytes::new());
    if log
        .append(vec![frame], Appending::Assign, Box::new(drop))
        .is_ok()
    {
        log.commit(LogIndex(index));
    }
}
