//! Logs that are compacted: held against a map of what was written, with a crash at every
//! operation, and copied from one replica to another.

mod limits;
mod transactions;

use std::collections::BTreeMap;
use std::path::Path;

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use trilog_model::batch::{BatchBuilder, BatchHeader, Compression, ProducerState};
use trilog_model::{AbortedSet, Offset};

use super::copies::{copy, copy_all, descriptor, follow};
use super::*;
use crate::inspect::inspect;
use crate::io::sim::{PowerLoss, SimConfig, SimImage, block_on};
use crate::log::{CleanError, CleanPlan, CleanReport, ReadError};

/// A record, by its offset: key and value, none for a deletion marker.
type Records = BTreeMap<Offset, (u8, Option<u64>)>;
/// The last value of each key.
type View = BTreeMap<u8, u64>;

const KEYS: u8 = 9;
const BATCHES: u64 = 120;

fn disk(seed: u64) -> SimDisk {
    SimDisk::with_config(seed, SimConfig::instant())
}

fn plan(end: Offset, markers_before: u64) -> CleanPlan {
    CleanPlan {
        end,
        appended_by: Timestamp(u64::MAX),
        markers_before: Offset(markers_before),
    }
}

/// The entry that holds such records.
fn keyed(id: EntryId, codec: Compression, records: &[(u8, Option<u64>)], flags: Flags) -> Frame {
    let mut batch = BatchBuilder::new(codec);
    match flags {
        Flags::Plain => {}
        Flags::Transactional => {
            batch.set_transactional();
        }
        Flags::Of(producer) => {
            batch.set_transactional().set_producer(producer);
        }
    }
    for (key, value) in records {
        let millis = i64::try_from(id.index.get() * 10).unwrap();
        // Long enough that segments fill.
        let value = value.map(|value| format!("{value:0>150}"));
        let value = value.as_ref().map(String::as_bytes);
        batch.push(millis, Some(&[*key]), value, &[]).unwrap();
    }
    let batch = batch.build().unwrap();
    let mut frame = Frame::bare(FrameKind::Data, GROUP, id, Bytes::new());
    frame.header.record_count = u32::try_from(records.len()).unwrap();
    frame.header.records_len = u32::try_from(batch.len()).unwrap();
    frame.header.records_crc = crc32c::crc32c(&batch[21..]);
    frame.records = batch;
    frame
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Flags {
    Plain,
    Transactional,
    /// Of a transaction of this producer.
    Of(ProducerState),
}

/// What a log was given.
#[derive(Clone, Debug, Default)]
struct Given {
    records: Records,
    next: Offset,
}

impl Given {
    fn note(&mut self, records: &[(u8, Option<u64>)]) {
        for record in records {
            self.records.insert(self.next, *record);
            self.next = self.next.next();
        }
    }

    /// Every record that has to be there once all below `clean` was cleaned, but for markers.
    fn newest(&self, clean: Offset) -> Records {
        let superseded = |(offset, (key, _)): &(&Offset, &(u8, Option<u64>))| {
            let later = self.records.range(offset.next()..clean);
            later.clone().any(|(_, (other, _))| other == key)
        };
        let all = self.records.iter();
        let newest = all.filter(|record| *record.0 >= clean || !superseded(record));
        newest.map(|(offset, record)| (*offset, *record)).collect()
    }
}

fn view(records: &Records) -> View {
    let mut view = View::new();
    for (key, value) in records.values() {
        match value {
            Some(value) => view.insert(*key, *value),
            None => view.remove(key),
        };
    }
    view
}

/// Everything the log serves from `from` on.
async fn records(log: &GroupLog, from: Offset) -> Records {
    let mut records = Records::new();
    let mut next = from;
    loop {
        let frames = log.read_offsets(next, LogIndex(1 << 40), 3_000).await;
        let frames = frames.unwrap();
        let Some(last) = frames.last() else {
            return records;
        };
        next = last.header.next_offset();
        for frame in &frames {
            let batch = BatchHeader::parse(&frame.records).unwrap();
            assert_eq!(batch.check_crc(&frame.records), Ok(()));
            for record in &batch.records(&frame.records, 1 << 20).unwrap() {
                let record = record.unwrap();
                let delta = u64::from(record.offset_delta.unsigned_abs());
                let value = record
                    .value
                    .map(|value| std::str::from_utf8(value).unwrap());
                let value = value.map(|value| value.parse().unwrap());
                let key = record.key.unwrap()[0];
                records.insert(frame.header.base_offset.plus(delta), (key, value));
            }
        }
    }
}

/// Appends random records in batches of all codecs, among them some entries without any.
async fn fill(log: &GroupLog, rng: &mut SmallRng, given: &mut Given, markers: bool) {
    let codecs = [Compression::None, Compression::Lz4, Compression::Snappy];
    let from = log.state().last.map_or(0, |last| last.index.get() + 1);
    for index in from..from + BATCHES {
        let id = EntryId::new(1 + index / 50, index);
        let frame = if rng.random_bool(0.1) {
            Frame::bare(FrameKind::Data, GROUP, id, Bytes::from_static(b"command"))
        } else {
            let count = rng.random_range(1..5);
            let record = |rng: &mut SmallRng| {
                let key = rng.random_range(0..KEYS);
                let value = (!markers || rng.random_bool(0.8)).then(|| rng.random());
                (key, value)
            };
            let records: Vec<_> = (0..count).map(|_| record(rng)).collect();
            given.note(&records);
            keyed(id, codecs[rng.random_range(0..3)], &records, Flags::Plain)
        };
        append(log, vec![frame]).await;
        log.commit(LogIndex(index));
    }
}

/// A log of random records in many segments, whose X is its end.
async fn written(
    disk: &SimDisk,
    config: StoreConfig,
    rng: &mut SmallRng,
) -> (Store, GroupLog, Given) {
    let (store, _) = open(disk, config).await;
    let log = store.create_group(GROUP, REPLICA).await.unwrap();
    let mut given = Given::default();
    fill(&log, rng, &mut given, true).await;
    store.checkpoint().await.unwrap();
    raise_x(&log).await;
    (store, log, given)
}

/// Moves X to the last entry.
async fn raise_x(log: &GroupLog) {
    let last = log.state().last.unwrap().index.get();
    log.set_log_start(descriptor(log, last, 0).await)
        .await
        .unwrap();
}

async fn clean(log: &GroupLog, markers_before: u64) -> CleanReport {
    let end = log.state().next_offset;
    log.clean(plan(end, markers_before), AbortedSet::default())
        .await
        .unwrap()
}

/// The end of what a pass may have cleaned.
fn clean_end(log: &GroupLog) -> Offset {
    log.0.state.lock().rewrites.clean
}

async fn assert_sound(disk: &SimDisk) {
    let found = inspect(&disk.backend(), Path::new("/data"), Box::new(|_, _| {})).await;
    let found = found.unwrap();
    assert_eq!(found.damage, []);
    assert!(found.copies.is_empty());
}

#[test]
fn of_each_key_the_newest_record_is_left_in_its_place() {
    for seed in 0..10 {
        block_on(async {
            let rng = &mut SmallRng::seed_from_u64(seed);
            let disk = disk(seed);
            let (store, log, mut given) = written(&disk, small(), rng).await;
            for round in 0..3 {
                let report = clean(&log, 0).await;
                let end = clean_end(&log);
                assert!(end > Offset(0) && !report.partial, "{report:?}");
                let left = records(&log, Offset(0)).await;
                assert_eq!(left, given.newest(end), "seed {seed}, round {round}");
                by_time(&log, &left).await;
                let again = clean(&log, 0).await;
                assert_eq!(again.removed, 0, "a second pass finds nothing");
                fill(&log, rng, &mut given, true).await;
                store.checkpoint().await.unwrap();
                raise_x(&log).await;
            }
            let segments = log.segments();
            let joined = segments
                .windows(2)
                .all(|two| two[0].next_offset == two[1].base_offset);
            assert!(joined, "{segments:?}");
            clean(&log, 0).await;
            let left = records(&log, Offset(0)).await;
            let end = clean_end(&log);
            let files = |store: &StoreConfig| store.group_dir(GROUP, REPLICA);
            let folder = files(&small());
            let listed = || {
                disk.files()
                    .into_iter()
                    .filter(|(path, _)| path.starts_with(&folder))
            };
            let segments = log.segments().len();
            eventually("replaced files are deleted", || {
                listed()
                    .filter(|(path, _)| path.extension().is_some_and(|kind| kind == "seg"))
                    .count()
                    == segments
            })
            .await;
            store.close().await.unwrap();
            let disk = disk.reopen();
            assert_sound(&disk).await;
            let (store, report) = open(&disk, small()).await;
            assert!(!report.step_aside, "{report:?}");
            let log = store.group(GROUP).unwrap();
            assert_eq!(records(&log, Offset(0)).await, left);
            assert_eq!(clean_end(&log), end);
            assert_eq!(log.cleanness().clean, end);
        });
    }
}

/// Whatever is left is found by its times, and any offset leads to what is left behind it.
async fn by_time(log: &GroupLog, left: &Records) {
    let all = LogIndex(1 << 40);
    let offsets: Vec<Offset> = left.keys().copied().collect();
    for offset in offsets.iter().step_by(7) {
        let frame = log.read_offsets(*offset, all, 1).await.unwrap().remove(0);
        let (base, time) = (frame.header.base_offset, frame.header.append_time);
        assert!(base <= *offset && *offset < frame.header.next_offset());
        let found = log.find_append_time(time, all).await.unwrap();
        assert_eq!(found, Some(base));
        let millis = BatchHeader::parse(&frame.records).unwrap().max_timestamp;
        let found = log.find_record_time(millis, all).await.unwrap();
        assert_eq!(found.map(|(offset, _)| offset), Some(base));
    }
    for offset in 0..offsets.last().unwrap().get() {
        let frames = log.read_offsets(Offset(offset), all, 1).await.unwrap();
        let next = left.range(Offset(offset)..).next().unwrap().0;
        assert!(frames[0].header.base_offset <= *next, "nothing is skipped");
        assert!(
            frames[0].header.next_offset() > Offset(offset),
            "it begins too early"
        );
    }
}

#[test]
fn keys_that_do_not_fit_memory_take_several_passes() {
    block_on(async {
        let rng = &mut SmallRng::seed_from_u64(5);
        let config = StoreConfig {
            compaction_memory: 4 * 48,
            ..small()
        };
        let (_store, log, given) = written(&disk(5), config, rng).await;
        let mut passes = 0;
        let mut before = Offset(0);
        while clean(&log, 0).await.partial {
            let end = clean_end(&log);
            assert!(end > before, "each pass comes further");
            before = end;
            passes += 1;
            let left = records(&log, Offset(0)).await;
            assert_eq!(left, given.newest(end));
        }
        assert!(passes > 3, "{passes}");
        let left = records(&log, Offset(0)).await;
        assert_eq!(left, given.newest(clean_end(&log)));
    });
}

#[test]
fn markers_go_when_they_may_behind_what_a_transaction_wrote_too() {
    block_on(async {
        let (store, _) = open(&disk(6), small()).await;
        let log = store.create_group(GROUP, REPLICA).await.unwrap();
        let mut given = Given::default();
        let mut index = 0;
        let mut put = async |records: &[(u8, Option<u64>)], flags| {
            given.note(records);
            let frame = keyed(EntryId::new(1, index), Compression::None, records, flags);
            append(&log, vec![frame]).await;
            log.commit(LogIndex(index));
            index += 1;
        };
        // Key 1 is deleted before a transaction wrote it, key 2 afterwards.
        put(&[(1, Some(1)), (2, Some(2))], Flags::Plain).await;
        put(&[(1, None)], Flags::Plain).await;
        for filler in 0..120 {
            put(&[(3, Some(filler))], Flags::Plain).await;
        }
        put(&[(2, Some(3))], Flags::Transactional).await;
        put(&[(2, None)], Flags::Plain).await;
        for filler in 0..250 {
            put(&[(3, Some(filler))], Flags::Plain).await;
        }
        store.checkpoint().await.unwrap();
        raise_x(&log).await;
        let of = |records: &Records, key| {
            let all = records.values().filter(|record| record.0 == key);
            all.map(|record| record.1).collect::<Vec<_>>()
        };
        let first = clean(&log, 1_000).await;
        let left = records(&log, Offset(0)).await;
        assert_eq!(
            of(&left, 1),
            [None],
            "what was just cleaned keeps its markers"
        );
        assert_eq!(of(&left, 2), [None], "what was committed is superseded");
        assert_eq!(first.markers, 2);
        let kept = clean(&log, 2).await;
        assert_eq!(kept.markers, 2, "the marker stands at offset 2");
        let second = clean(&log, 1_000).await;
        let left = records(&log, Offset(0)).await;
        assert_eq!(of(&left, 1), []);
        assert_eq!(of(&left, 2), []);
        assert_eq!(second.markers, 0);
    });
}

/// The disk at one moment, and how far the log was said to be clean by then.
type Moment = (SimImage, Offset);

#[test]
fn a_crash_at_any_operation_of_a_pass_loses_nothing() {
    let moments: Arc<Mutex<Vec<Moment>>> = Arc::default();
    let seen = Arc::clone(&moments);
    let given = Arc::new(Mutex::new(Given::default()));
    let written_down = Arc::clone(&given);
    block_on(async move {
        let rng = &mut SmallRng::seed_from_u64(7);
        let disk = disk(7);
        let (store, log, mut given) = written(&disk, small(), rng).await;
        let watched = log.clone();
        disk.observe(move |disk| {
            // Locked means that it is just changing.
            let state = watched.0.state.try_lock();
            let said = state.map_or(Offset(0), |state| state.cleanness().clean);
            seen.lock().push((disk.fork(), said));
        });
        clean(&log, 0).await;
        store.checkpoint().await.unwrap();
        fill(&log, rng, &mut given, true).await;
        store.checkpoint().await.unwrap();
        raise_x(&log).await;
        let first = log.cleanness().clean;
        clean(&log, first.get()).await;
        eventually("a checkpoint has it", || log.cleanness().clean > first).await;
        *written_down.lock() = given;
        disk.kill();
    });
    let moments = std::mem::take(&mut *moments.lock());
    let given = given.lock().clone();
    assert!(moments.len() > 60, "{} moments", moments.len());
    let losses = [
        PowerLoss::Lose,
        PowerLoss::Keep,
        PowerLoss::InOrder,
        PowerLoss::Scatter,
    ];
    for (n, (image, said)) in (0..).zip(moments) {
        for loss in losses {
            let place = format!("moment {n}, {loss:?}");
            block_on(async {
                let disk = image.power_loss(loss, n);
                restarted(&disk, said, &given, &place).await;
            });
        }
    }
}

/// What a restart finds: whole, as clean as was said, and nothing lost.
async fn restarted(disk: &SimDisk, said: Offset, given: &Given, place: &str) {
    let (store, report) = open(disk, small()).await;
    assert!(!report.step_aside, "{place}: {report:?}");
    let log = store.group(GROUP).unwrap();
    let mut held = Given {
        next: log.state().next_offset,
        ..given.clone()
    };
    held.records.retain(|offset, _| *offset < held.next);
    assert!(log.is_whole(), "{place}: {:?}", log.gaps());
    let left = records(&log, Offset(0)).await;
    assert_eq!(view(&left), view(&held.records), "{place}");
    let clean = log.cleanness().clean;
    assert!(
        clean >= said,
        "{place}: clean up to {clean}, {said} was said"
    );
    assert_clean(&left, &held, clean, place);
    store.close().await.unwrap();
    let disk = disk.reopen();
    assert_sound(&disk).await;
}

/// What is left was written so, and below `clean` nothing is superseded by anything below it.
fn assert_clean(left: &Records, given: &Given, clean: Offset, place: &str) {
    for (offset, record) in left {
        assert_eq!(given.records.get(offset), Some(record), "{place}");
        let mut later = left.range(offset.next()..clean.max(offset.next()));
        let superseded = later.any(|(_, other)| other.0 == record.0);
        assert!(!superseded, "{place}: {offset}");
    }
}

#[test]
fn a_replaced_segment_keeps_its_file_while_somebody_reads_it() {
    block_on(async {
        let rng = &mut SmallRng::seed_from_u64(8);
        let disk = disk(8);
        let (store, log, _) = written(&disk, small(), rng).await;
        let reader = Arc::clone(&log.0.state.lock().segments.links[0].segment);
        let there = |path: &Path| disk.files().iter().any(|(other, _)| other == path);
        clean(&log, 0).await;
        let replaced = !Arc::ptr_eq(&reader, &log.0.state.lock().segments.links[0].segment);
        assert!(replaced);
        store.checkpoint().await.unwrap();
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(there(&reader.path));
        let path = reader.path.clone();
        drop(reader);
        eventually("it is deleted afterwards", || !there(&path)).await;
    });
}

/// Another replica of the log, which was cleaned or not, with segments of its own.
async fn twin_of(log: &GroupLog, seed: u64, segment_bytes: u64) -> (Store, GroupLog) {
    let config = StoreConfig {
        segment_bytes,
        ..small()
    };
    super::copies::twin(log, seed, config).await
}

#[test]
fn a_replica_copies_from_cleaned_ones_whatever_they_have_left() {
    for seed in 0..10 {
        block_on(async {
            let rng = &mut SmallRng::seed_from_u64(seed);
            let (_store, log, given) = written(&disk(seed), small(), rng).await;
            let (_a, a) = twin_of(&log, seed + 100, 9_000).await;
            let (_b, b) = twin_of(&log, seed + 200, 23_000).await;
            for twin in [&a, &b] {
                raise_x(twin).await;
                clean(twin, 0).await;
            }
            // One whose X lies within what the others rewrote.
            let x = rng.random_range(40..BATCHES - 10);
            let start = descriptor(&log, x, 0).await;
            let (_late, late) = beginner(&disk(seed + 300)).await;
            late.set_log_start(start).await.unwrap();
            follow(&late, read_all(&log, x + 1, 1 << 20).await).await;
            late.commit(log.state().last.unwrap().index);
            while let Some(gap) = late.gaps().first().copied() {
                let from = [&a, &b, &log][rng.random_range(0..3)];
                copy(from, &late, gap).await.unwrap();
            }
            assert!(late.is_whole());
            let left = records(&late, Offset(0)).await;
            assert_eq!(view(&left), view(&given.records), "seed {seed}");
            clean(&late, 0).await;
            let again = records(&late, Offset(0)).await;
            assert_eq!(view(&again), view(&given.records), "seed {seed}");
            assert!(clean_end(&late) > Offset(0));
            assert_clean(&again, &given, clean_end(&late), "cleaned");
        });
    }
}

#[test]
fn what_was_copied_from_a_cleaned_log_is_repaired_from_any_other() {
    for seed in 0..10 {
        block_on(async {
            let rng = &mut SmallRng::seed_from_u64(seed);
            let (_store, log, given) = written(&disk(seed), small(), rng).await;
            let (_a, a) = twin_of(&log, seed + 100, 9_000).await;
            let (_b, b) = twin_of(&log, seed + 200, 23_000).await;
            for twin in [&a, &b] {
                raise_x(twin).await;
                clean(twin, 0).await;
            }
            let disk = disk(seed + 300);
            let (store, late) = beginner(&disk).await;
            let x = BATCHES - 10;
            late.set_log_start(descriptor(&log, x, 0).await)
                .await
                .unwrap();
            follow(&late, read_all(&log, x + 1, 1 << 20).await).await;
            late.commit(log.state().last.unwrap().index);
            copy_all(&a, &late).await;
            let left = records(&late, Offset(0)).await;
            let copied = late.state().log_start.unwrap().next_offset;
            assert_clean(&left, &given, clean_end(&a).min(copied), "copied");
            store.checkpoint().await.unwrap();
            for from in [&b, &log, &a] {
                let links = late.0.state.lock().segments.links.clone();
                for link in links.iter().filter(|link| link.sealed) {
                    damage(&disk, &late, &link.segment.path).await;
                    eventually("it is set aside", || !late.gaps().is_empty()).await;
                    copy_all(from, &late).await;
                    assert!(late.is_whole());
                }
                let left = records(&late, Offset(0)).await;
                assert_eq!(view(&left), view(&given.records), "seed {seed}");
            }
            clean(&late, 0).await;
            let left = records(&late, Offset(0)).await;
            assert_eq!(view(&left), view(&given.records), "seed {seed}");
            assert_clean(&left, &given, clean_end(&late), "cleaned");
            store.close().await.unwrap();
            let disk = disk.reopen();
            assert_sound(&disk).await;
            let (store, _) = open(&disk, small()).await;
            let late = store.group(GROUP).unwrap();
            assert!(late.is_whole());
            assert_eq!(records(&late, Offset(0)).await, left);
        });
    }
}

async fn beginner(disk: &SimDisk) -> (Store, GroupLog) {
    let (store, _) = open(disk, small()).await;
    let log = store.create_group(GROUP, ReplicaId(72)).await.unwrap();
    (store, log)
}

#[test]
fn a_damaged_segment_is_repaired_from_one_that_was_cleaned_otherwise() {
    for seed in 0..10 {
        block_on(async {
            let rng = &mut SmallRng::seed_from_u64(seed);
            let disk = disk(seed);
            let (store, log, given) = written(&disk, small(), rng).await;
            let (_twin, twin) = twin_of(&log, seed + 100, 9_000).await;
            raise_x(&twin).await;
            clean(&twin, 0).await;
            if seed % 2 == 0 {
                clean(&log, 0).await;
                store.checkpoint().await.unwrap();
            }
            let before = log.cleanness();
            let links = log.0.state.lock().segments.links.clone();
            let damaged = links[rng.random_range(0..links.len() - 1)].segment.clone();
            damage(&disk, &log, &damaged.path).await;
            assert_eq!(log.cleanness().clean, Offset(0), "it lacks something");
            eventually("it is set aside", || !log.gaps().is_empty()).await;
            copy_all(&twin, &log).await;
            assert!(log.is_whole());
            let after = log.cleanness();
            assert_ne!(before.arrivals, after.arrivals);
            assert!(after.clean <= damaged.header.base_offset);
            let left = records(&log, Offset(0)).await;
            assert_eq!(view(&left), view(&given.records), "seed {seed}");
            store.close().await.unwrap();
            let disk = disk.reopen();
            assert_sound(&disk).await;
            let (store, _) = open(&disk, small()).await;
            assert!(store.group(GROUP).unwrap().is_whole());
        });
    }
}

/// Flips a byte of a segment and has a reader come across it.
async fn damage(disk: &SimDisk, log: &GroupLog, path: &Path) {
    let len = disk.read(path).unwrap().len() as u64;
    disk.flip_bit(path, len - 20, 0);
    log.0.evict(LogIndex(1 << 40));
    let mut next = LogIndex(0);
    loop {
        match log.read(next, LogIndex(1 << 40), 3_000).await {
            Err(ReadError::Damaged { .. }) => return,
            Ok(frames) => next = frames.last().expect("damage is found").header.next_index(),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_replica_that_lacks_something_is_not_clean() {
    block_on(async {
        let rng = &mut SmallRng::seed_from_u64(18);
        let (store, log, _) = written(&disk(18), small(), rng).await;
        clean(&log, 0).await;
        store.checkpoint().await.unwrap();
        let before = log.cleanness().clean;
        assert!(before > Offset(0));
        log.0.state.lock().receiving = true;
        assert_eq!(log.cleanness().clean, Offset(0), "something is coming in");
        log.0.state.lock().receiving = false;
        assert_eq!(log.cleanness().clean, before);

        let (store, late) = beginner(&disk(318)).await;
        let start = descriptor(&log, BATCHES - 10, 0).await;
        late.set_log_start(start).await.unwrap();
        // As if somebody had said so.
        late.0.state.lock().rewrites.cleaned(Offset(9));
        store.checkpoint().await.unwrap();
        assert_eq!(late.cleanness().clean, Offset(0), "it is short");
        copy_all(&log, &late).await;
        assert_eq!(clean_end(&late), Offset(0), "nothing is known of a copy");
    });
}

#[test]
fn a_crash_at_any_operation_of_a_repair_leaves_a_log_that_can_be_repaired() {
    let images: Arc<Mutex<Vec<SimImage>>> = Arc::default();
    let seen = Arc::clone(&images);
    let before: Arc<Mutex<Option<(SimImage, Given)>>> = Arc::default();
    let kept = Arc::clone(&before);
    block_on(async move {
        let rng = &mut SmallRng::seed_from_u64(19);
        let disk = disk(19);
        let (store, log, given) = written(&disk, small(), rng).await;
        *kept.lock() = Some((disk.fork(), given));
        let (_twin, twin) = twin_of(&log, 119, 9_000).await;
        clean(&log, 0).await;
        store.checkpoint().await.unwrap();
        let damaged = Arc::clone(&log.0.state.lock().segments.links[0].segment);
        damage(&disk, &log, &damaged.path).await;
        let aside = |(path, _): &(std::path::PathBuf, u64)| {
            let kind = path.extension().and_then(|kind| kind.to_str());
            kind.is_some_and(|kind| kind.starts_with("damaged-"))
        };
        eventually("it is set aside", || disk.files().iter().any(aside)).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        disk.observe(move |disk| seen.lock().push(disk.fork()));
        copy_all(&twin, &log).await;
        store.checkpoint().await.unwrap();
        disk.kill();
    });
    let images = std::mem::take(&mut *images.lock());
    let (source, given) = before.lock().take().unwrap();
    assert!(images.len() > 5, "{} moments", images.len());
    for (n, image) in (0..).zip(images) {
        for loss in [PowerLoss::Lose, PowerLoss::Keep, PowerLoss::Scatter] {
            let place = format!("moment {n}, {loss:?}");
            block_on(async {
                let disk = image.power_loss(loss, n);
                let found = inspect(&disk.backend(), Path::new("/data"), Box::new(|_, _| {})).await;
                let mut damage = found.unwrap().damage.into_iter();
                let unknown = damage.find(|damage| !damage.what.contains("set aside"));
                assert!(unknown.is_none(), "{place}: {unknown:?}");
                let (_source, source) = reopened(&source.kill(n)).await;
                let (store, log) = reopened(&disk).await;
                while let Err(error) = read_through(&log).await {
                    assert!(
                        matches!(error, ReadError::Damaged { .. }),
                        "{place}: {error}"
                    );
                    eventually("its gap is known", || !log.gaps().is_empty()).await;
                    copy_all(&source, &log).await;
                }
                let left = records(&log, Offset(0)).await;
                assert_eq!(view(&left), view(&given.records), "{place}");
                store.close().await.unwrap();
                assert_sound(&disk.reopen()).await;
            });
        }
    }
}

async fn reopened(disk: &SimDisk) -> (Store, GroupLog) {
    let (store, report) = open(disk, small()).await;
    assert!(!report.step_aside, "{report:?}");
    let log = store.group(GROUP).unwrap();
    (store, log)
}

async fn read_through(log: &GroupLog) -> Result<(), ReadError> {
    let mut next = LogIndex(0);
    loop {
        let frames = log.read(next, LogIndex(1 << 40), 3_000).await?;
        let Some(last) = frames.last() else {
            return Ok(());
        };
        next = last.header.next_index();
    }
}

/// A batch of two records of which the second one cannot be read, whatever its checksum says.
fn half_readable(id: EntryId, records: &[(u8, Option<u64>); 2]) -> Frame {
    let mut frame = keyed(id, Compression::None, records, Flags::Plain);
    let mut batch = frame.records.to_vec();
    let second = 61 + (batch.len() - 61) / 2;
    batch[second..second + 5].copy_from_slice(&[0xff, 0xff, 0xff, 0xff, 0x0f]);
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    frame.header.records_crc = crc;
    frame.records = batch.into();
    frame
}

#[test]
fn what_cannot_be_read_supersedes_nothing_and_keeps_the_markers_behind_it() {
    block_on(async {
        let (store, _) = open(&disk(20), small()).await;
        let log = store.create_group(GROUP, REPLICA).await.unwrap();
        let mut index = 0;
        let mut put = async |make: &dyn Fn(EntryId) -> Frame| {
            append(&log, vec![make(EntryId::new(1, index))]).await;
            log.commit(LogIndex(index));
            index += 1;
        };
        let plain = |records: &[(u8, Option<u64>)]| {
            let records = records.to_vec();
            move |id| keyed(id, Compression::None, &records, Flags::Plain)
        };
        put(&plain(&[(1, Some(1)), (2, Some(2)), (4, Some(4))])).await;
        put(&plain(&[(4, None)])).await;
        put(&|id| half_readable(id, &[(2, Some(5)), (1, Some(6))])).await;
        put(&plain(&[(1, None)])).await;
        for filler in 0..250 {
            put(&plain(&[(3, Some(filler))])).await;
        }
        store.checkpoint().await.unwrap();
        raise_x(&log).await;
        clean(&log, 1_000).await;
        clean(&log, 1_000).await;
        let mut left = Vec::new();
        for index in 0..4 {
            let at = LogIndex(index);
            let frame = log.read(at, at.next(), 1).await.unwrap().remove(0);
            let header = frame.header;
            if !header.has_records() {
                continue;
            }
            let batch = BatchHeader::parse(&frame.records).unwrap();
            for record in &batch.records(&frame.records, 1 << 20).unwrap() {
                let Ok(record) = record else { break };
                left.push((
                    header.index.get(),
                    record.key.unwrap()[0],
                    record.value.is_none(),
                ));
            }
        }
        assert_eq!(left, [(0, 2, false), (2, 2, false), (3, 1, true)]);
    });
}
