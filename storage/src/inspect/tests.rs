use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use tempfile::TempDir;
use trilog_model::{NodeId, Term};

use super::*;
use crate::env::{Entropy, SystemClock};
use crate::frame::FrameKind;
use crate::log::{Appending, GroupLog, StoreConfig};
use crate::store::Store;

const GROUP: GroupId = GroupId(7);

/// A store with `entries` committed entries of 10 kB in one group, closed in good order.
async fn filled(entries: u64) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    let config = StoreConfig {
        wal_file_bytes: 4 << 20,
        wal_round_bytes: 1 << 20,
        wal_files: 4,
        segment_bytes: 200_000,
        ..StoreConfig::dev(dir.path().to_owned())
    };
    let clock = Arc::new(SystemClock);
    let opened = Store::open(config, Backend::Threads, clock, Entropy::from_seed(1)).await;
    let (store, _) = opened.unwrap();
    let replica = ReplicaId::new(NodeId(1), 1);
    let log = store.create_group(GROUP, replica).await.unwrap();
    for index in 0..entries {
        append(&log, index).await;
    }
    let vote = Vote {
        term: Term(3),
        node: replica,
        committed: true,
    };
    log.save_vote(vote).await.unwrap();
    drop(log);
    store.close().await.unwrap();
    dir
}

async fn append(log: &GroupLog, index: u64) {
    let command = Bytes::from(vec![b'x'; 10_000]);
    let frame = Frame::bare(FrameKind::Data, GROUP, EntryId::new(2, index), command);
    let (done, durable) = oneshot::channel();
    let done = Box::new(move |outcome| drop(done.send(outcome)));
    log.append(vec![frame], Appending::Assign, done).unwrap();
    durable.await.unwrap().unwrap();
    log.commit(LogIndex(index));
}

async fn look(dir: &Path) -> Inspection {
    inspect(&Backend::Threads, dir, Box::new(|_, _| {}))
        .await
        .unwrap()
}

/// Every file of a directory with its bytes.
fn contents(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

#[tokio::test]
async fn a_sound_directory_is_described_and_left_as_it_is() {
    let dir = filled(100).await;
    let before = contents(dir.path());
    let found = look(dir.path()).await;
    assert_eq!(found.damage, []);
    let [group] = &found.groups[..] else {
        panic!("one group was made: {found:?}");
    };
    assert_eq!(
        (group.group, group.replica),
        (GROUP, ReplicaId::new(NodeId(1), 1))
    );
    assert_eq!(group.last, Some(EntryId::new(2, 99)));
    assert_eq!(group.vote.unwrap().term, Term(3));
    assert_eq!(group.first_index, LogIndex(0));
    assert!(
        group.segments >= 4 && group.segment_bytes >= 1_000_000,
        "{group:?}"
    );
    assert!(found.frames >= 100);
    assert_eq!(
        contents(dir.path()),
        before,
        "an inspection changes nothing"
    );
}

#[tokio::test]
async fn every_frame_is_shown_with_its_place() {
    let dir = filled(30).await;
    let seen = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&seen);
    let visit: Visitor = Box::new(move |place, frame| {
        if frame.header.kind.is_entry() && matches!(place, Place::Segment { .. }) {
            sink.lock().push((frame.header.index, place.to_string()));
        }
    });
    inspect(&Backend::Threads, dir.path(), visit).await.unwrap();
    let seen = seen.lock();
    let indexes: Vec<u64> = seen.iter().map(|(index, _)| index.get()).collect();
    assert_eq!(indexes, (0..30).collect::<Vec<_>>());
    assert_eq!(seen[0].1, "seg 0:64");
}

#[tokio::test]
async fn a_flipped_bit_in_a_segment_is_found_and_is_not_grave() {
    let dir = filled(50).await;
    let files = contents(dir.path());
    let (segment, bytes) = files
        .iter()
        .find(|(path, _)| path.extension().is_some_and(|ending| ending == "seg"))
        .unwrap();
    for at in [10, 80, 5_000, 150_000] {
        let mut damaged = bytes.clone();
        damaged[at] ^= 1;
        fs::write(segment, damaged).unwrap();
        let found = look(dir.path()).await;
        assert_eq!(found.damage.len(), 1, "{at}: {:?}", found.damage);
        assert_eq!(found.damage[0].path, *segment);
        assert!(!found.damage[0].grave);
    }
    fs::write(segment, &bytes[..1_000]).unwrap();
    assert!(look(dir.path()).await.damage[0].what.contains("1000 bytes"));
    fs::remove_file(segment).unwrap();
    assert_eq!(look(dir.path()).await.damage.len(), 1);
}

#[tokio::test]
async fn damage_to_the_checkpoint_or_the_write_ahead_log_is_grave() {
    let dir = filled(50).await;
    let path = dir.path().join("checkpoint");
    let bytes = fs::read(&path).unwrap();
    let mut damaged = bytes.clone();
    damaged[20] ^= 1;
    fs::write(&path, damaged).unwrap();
    let found = look(dir.path()).await;
    assert!(found.damage[0].grave, "{found:?}");
    fs::write(&path, bytes).unwrap();

    for entry in fs::read_dir(dir.path().join("wal")).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let found = look(dir.path()).await;
    assert!(found.damage[0].grave, "{found:?}");
}

#[tokio::test]
async fn a_directory_without_a_log_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let error = inspect(&Backend::Threads, dir.path(), Box::new(|_, _| {})).await;
    assert!(matches!(error, Err(InspectError::NoLog(_))), "{error:?}");
}

#[tokio::test]
async fn segments_set_aside_and_unfinished_copies_are_told_apart_from_damage() {
    let dir = filled(100).await;
    let before = contents(dir.path());
    let mut segments = before
        .keys()
        .filter(|path| path.extension().is_some_and(|s| s == "seg"));
    let (first, second) = (segments.next().unwrap(), segments.next().unwrap());
    // One that was set aside and replaced, and one whose copy was cut short.
    fs::write(first.with_extension("damaged-1"), "what was left of it").unwrap();
    fs::write(second.with_extension("copy"), "what had come").unwrap();
    let found = look(dir.path()).await;
    assert_eq!(found.damage, []);
    assert_eq!(found.set_aside, [first.with_extension("damaged-1")]);
    assert_eq!(found.copies, [second.with_extension("copy")]);
    // One that was set aside and waits.
    fs::rename(second, second.with_extension("damaged-1")).unwrap();
    let found = look(dir.path()).await;
    let [damage] = &found.damage[..] else {
        panic!("one segment is missing: {:?}", found.damage);
    };
    assert_eq!(&damage.path, second);
    assert!(damage.what.contains("set aside") && !damage.grave);
    assert_eq!(found.set_aside.len(), 2);
}
