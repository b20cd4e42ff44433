//! Logs that lack what lies below a descriptor, and take it from another replica.

use std::path::Path;

use trilog_model::{GroupId, Offset};

use super::*;
use crate::io::sim::{PowerLoss, SimConfig, SimImage, block_on};
use crate::log::{Checkpoint, CopyError, CopySum, Gap, LogStart, ReadError};

/// The last entry of the log that is copied, and X.
const LAST: u64 = 149;
const X: u64 = 99;

fn disk(seed: u64) -> SimDisk {
    SimDisk::with_config(seed, SimConfig::instant())
}

/// Another replica of the same log, on a disk of its own, with segments of its own.
pub(super) async fn twin(log: &GroupLog, seed: u64, config: StoreConfig) -> (Store, GroupLog) {
    let (store, _) = open(&disk(seed), config).await;
    let twin = store.create_group(GROUP, ReplicaId(71)).await.unwrap();
    let frames = read_all(log, 0, 1 << 20).await;
    for frames in frames.chunks(7) {
        follow(&twin, frames.to_vec()).await;
        twin.commit(frames[frames.len() - 1].header.index);
    }
    store.checkpoint().await.unwrap();
    (store, twin)
}

/// Appends as a follower and waits until it is durable.
pub(super) async fn follow(log: &GroupLog, frames: Vec<Frame>) {
    let (done, wait) = oneshot::channel();
    let done = Box::new(move |result| {
        let _ = done.send(result);
    });
    log.append(frames, Appending::Assert, done).unwrap();
    wait.await.unwrap().unwrap();
}

/// The pieces that make up what `from` holds of a gap, and their sum.
async fn pieces(from: &GroupLog, gap: Gap) -> (Vec<Bytes>, CopySum) {
    let mut next = match gap.first {
        Some(first) => first,
        None => from.stretch_before(gap.end).expect("the peer holds it"),
    };
    let (mut pieces, mut sum) = (Vec::new(), CopySum::default());
    while next < gap.end {
        let frames = from.read(next, gap.end, 4_000).await.unwrap();
        next = frames[frames.len() - 1].header.next_index();
        let piece = Bytes::from(frames.iter().flat_map(image).collect::<Vec<u8>>());
        sum.add(&piece);
        pieces.push(piece);
    }
    (pieces, sum)
}

/// Copies what `to` lacks there from another replica.
pub(super) async fn copy(from: &GroupLog, to: &GroupLog, gap: Gap) -> Result<(), CopyError> {
    send(to, gap, pieces(from, gap).await).await
}

/// Copies until nothing is missing.
pub(super) async fn copy_all(from: &GroupLog, to: &GroupLog) {
    while let Some(gap) = to.gaps().first().copied() {
        copy(from, to, gap).await.unwrap();
    }
}

/// A log of three terms, whole, in segments up to near its end.
async fn leader(seed: u64) -> (Store, GroupLog) {
    let (store, _) = open(&disk(seed), small()).await;
    let log = store.create_group(GROUP, REPLICA).await.unwrap();
    for n in 0..=LAST / 10 {
        append(&log, entries(1 + n / 4, n * 10..n * 10 + 10, 500)).await;
        log.commit(LogIndex(n * 10 + 9));
    }
    (store, log)
}

/// The descriptor of a log: X is the entry of that index, S an offset.
pub(super) async fn descriptor(log: &GroupLog, x: u64, data_start: u64) -> LogStart {
    let read = log.read(LogIndex(x), LogIndex(x + 1), 1).await.unwrap();
    let header = &read[0].header;
    LogStart {
        purged: header.id(),
        next_offset: header.next_offset(),
        next_time: Timestamp(header.append_time.nanos() + u64::from(header.record_count.max(1))),
        data_start: Offset(data_start),
        meta: Bytes::new(),
    }
}

/// A replica that installed the descriptor and has the entries behind X.
async fn laggard(disk: &SimDisk, leader: &GroupLog, data_start: u64) -> (Store, GroupLog) {
    let (store, log) = beginner(disk, leader).await;
    install(&log, leader, data_start).await;
    (store, log)
}

/// A replica with the first entries in a segment.
async fn beginner(disk: &SimDisk, leader: &GroupLog) -> (Store, GroupLog) {
    let (store, _) = open(disk, small()).await;
    let log = store.create_group(GROUP, ReplicaId(72)).await.unwrap();
    follow(&log, read_all(leader, 0, 1 << 20).await[..20].to_vec()).await;
    log.commit(LogIndex(19));
    store.checkpoint().await.unwrap();
    (store, log)
}

/// Installs the descriptor, for which what the replica had goes, and takes what is behind X.
async fn install(log: &GroupLog, leader: &GroupLog, data_start: u64) {
    let start = descriptor(leader, X, data_start).await;
    log.set_log_start(start).await.unwrap();
    let tail = read_all(leader, X + 1, 1 << 20).await;
    follow(log, tail).await;
    log.commit(LogIndex(LAST));
}

async fn images(log: &GroupLog, from: LogIndex) -> Vec<Vec<u8>> {
    let all = read_all(log, from.get(), 1 << 20).await;
    all.iter().map(image).collect()
}

/// Everything the log serves equals what the other has there.
async fn assert_same(log: &GroupLog, other: &GroupLog) -> LogIndex {
    let from = log.state().data_start;
    let read = log.read_offsets(from, LogIndex(LAST), 1).await.unwrap();
    let from = read[0].header.index;
    assert_eq!(images(log, from).await, images(other, from).await);
    from
}

#[test]
fn a_replica_behind_a_descriptor_serves_from_x_on_and_then_from_the_data_start() {
    for data_start in [0, 1, 77] {
        block_on(async {
            let (_leader_store, leader) = leader(1).await;
            let disk = disk(2);
            let (store, log) = laggard(&disk, &leader, data_start).await;
            assert!(!log.is_whole());
            assert_eq!(store.stats().short_groups, 1);
            assert_eq!(log.state().data_start, Offset(2 * (X + 1)));
            let early = log
                .read_offsets(Offset(data_start), LogIndex(LAST), 1)
                .await;
            assert!(matches!(early, Err(ReadError::BelowStart { .. })));
            let by_time = log.find_append_time(Timestamp(0), LogIndex(LAST)).await;
            assert!(
                matches!(by_time, Err(ReadError::BelowStart { .. })),
                "a search must not skip what is not here yet"
            );
            assert_eq!(assert_same(&log, &leader).await, LogIndex(X + 1));

            copy_all(&leader, &log).await;
            assert!(log.is_whole());
            assert_eq!(store.stats().short_groups, 0);
            assert_eq!(log.state().data_start, Offset(data_start));
            let from = assert_same(&log, &leader).await;
            assert_eq!(from, LogIndex(data_start / 2));
            let known = leader.term_starts();
            assert!(
                log.term_starts()
                    .iter()
                    .skip(1)
                    .all(|start| known.contains(start))
            );
            assert_eq!(log.term_of(from), leader.term_of(from));
            let time = read_all(&leader, 70, 1).await[0].header.append_time;
            let found = log.find_append_time(time, LogIndex(LAST)).await.unwrap();
            assert_eq!(found, Some(Offset(140)));

            store.close().await.unwrap();
            let (store, report) = open(&disk.reopen(), small()).await;
            assert!(!report.step_aside);
            let log = store.group(GROUP).unwrap();
            assert!(log.is_whole());
            assert_same(&log, &leader).await;
        });
    }
}

#[test]
fn a_copy_goes_on_after_a_restart_where_it_was() {
    block_on(async {
        let (_leader_store, leader) = leader(3).await;
        let disk = disk(4);
        let (_store, log) = laggard(&disk, &leader, 0).await;
        copy(&leader, &log, log.gaps()[0]).await.unwrap();
        copy(&leader, &log, log.gaps()[0]).await.unwrap();
        let gap = log.gaps()[0];
        let saved = || {
            let bytes = disk.read(Path::new("/data/checkpoint")).unwrap();
            let checkpoint = Checkpoint::decode(&bytes.into()).unwrap();
            checkpoint.groups[0].segments[0].base_index
        };
        eventually("a checkpoint knows of it", || saved() == gap.end).await;
        let mut incoming = log.receive(gap).await.unwrap();
        let (pieces, _) = pieces(&leader, gap).await;
        incoming.push(pieces[0].clone()).await.unwrap();
        disk.crash(PowerLoss::Keep);
        let disk = disk.reopen();
        let (store, _) = open(&disk, small()).await;
        let log = store.group(GROUP).unwrap();
        assert_eq!(log.gaps(), [gap], "what is complete is not copied again");
        eventually("what is not is deleted", || {
            let mut files = disk.files().into_iter();
            !files.any(|(path, _)| path.extension().is_some_and(|kind| kind == "copy"))
        })
        .await;
        copy_all(&leader, &log).await;
        assert_eq!(assert_same(&log, &leader).await, LogIndex(0));
        drop(store);
    });
}

#[test]
fn a_reader_from_before_a_descriptor_sets_nothing_aside_that_came_after() {
    block_on(async {
        let (_leader_store, leader) = leader(10).await;
        let disk = disk(11);
        let (store, log) = beginner(&disk, &leader).await;
        let first = |log: &GroupLog| {
            let state = log.0.state.lock();
            Arc::clone(&state.segments.links[0].segment)
        };
        let old = first(&log);
        install(&log, &leader, 0).await;
        copy_all(&leader, &log).await;
        let new = first(&log);
        assert_eq!(old.path, new.path, "the name must be used again");

        // It finds another file than it began to read.
        log.0.quarantine(&old, &"another frame stands there");
        store.checkpoint().await.unwrap();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(disk.read(&new.path).is_some(), "the file has its name");
        assert_eq!(log.gaps(), []);
        assert_eq!(assert_same(&log, &leader).await, LogIndex(0));

        // One that went bad before the descriptor is not dealt with after it either.
        let task = crate::log::FillTask::SetAside(Arc::clone(&log.0), old);
        log.0.shared.send_fill(GROUP, task);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(disk.read(&new.path).is_some(), "the file has its name");
    });
}

type Sent = (Vec<Bytes>, CopySum);

fn sum_of(pieces: &[Bytes]) -> CopySum {
    let mut sum = CopySum::default();
    for piece in pieces {
        sum.add(piece);
    }
    sum
}

/// What a sender may send that is wrong in one way each. `all` are the frames of the whole log.
fn wrong(gap: Gap, (good, sum): &Sent, all: &[Frame]) -> Vec<Sent> {
    let (last, sum) = (good.len() - 1, *sum);
    let mut cases = vec![
        (good[1..].to_vec(), sum),
        (good[..last].to_vec(), sum),
        (
            good.clone(),
            CopySum {
                crc: sum.crc ^ 1,
                ..sum
            },
        ),
        (vec![good[0].slice(..good[0].len() - 1)], sum),
        (vec![good[0].clone(), good[0].clone()], sum),
        (Vec::new(), CopySum::default()),
        (vec![Bytes::from_static(b"no frame at all")], sum),
    ];
    for (piece, at) in [0, 10, 40, 76, 79, 200, 500]
        .into_iter()
        .flat_map(|at| [(0, at), (last, at)])
    {
        let mut pieces = good.clone();
        let mut bytes = pieces[piece].to_vec();
        bytes[at] ^= 4;
        pieces[piece] = bytes.into();
        let sum = sum_of(&pieces);
        cases.push((pieces, sum));
    }
    // Of another group; of a place that does not join; of another term, never committed there.
    let end = usize::try_from(gap.end.get()).unwrap();
    let mut foreign = all[end - 1].clone();
    foreign.header.group = GroupId(8);
    let mut divergent = all[end - 1].clone();
    divergent.header.term = trilog_model::Term(7);
    for frame in [foreign, all[end - 2].clone(), divergent] {
        let pieces = vec![Bytes::from(image(&frame))];
        let sum = sum_of(&pieces);
        cases.push((pieces, sum));
    }
    cases
}

async fn send(log: &GroupLog, gap: Gap, (pieces, sum): Sent) -> Result<(), CopyError> {
    let mut incoming = log.receive(gap).await?;
    for piece in pieces {
        incoming.push(piece).await?;
    }
    incoming.finish(sum).await
}

#[test]
fn damaged_foreign_and_incomplete_copies_are_refused_and_leave_nothing() {
    block_on(async {
        let (_leader_store, leader) = leader(5).await;
        let disk = disk(6);
        let (_store, log) = laggard(&disk, &leader, 0).await;
        let gap = log.gaps()[0];
        let good = pieces(&leader, gap).await;
        let all = read_all(&leader, 0, 1 << 20).await;
        for (n, sent) in wrong(gap, &good, &all).into_iter().enumerate() {
            let outcome = send(&log, gap, sent).await;
            assert!(
                matches!(outcome, Err(CopyError::Damaged(_))),
                "case {n}: {outcome:?}"
            );
            assert_eq!(log.gaps(), [gap], "case {n}");
        }
        eventually("nothing is left", || {
            let mut files = disk.files().into_iter();
            !files.any(|(path, _)| path.extension().is_some_and(|kind| kind == "copy"))
        })
        .await;
        copy_all(&leader, &log).await;
        assert_eq!(assert_same(&log, &leader).await, LogIndex(0));
    });
}

#[test]
fn a_trim_or_a_newer_descriptor_ends_a_copy_that_is_under_way() {
    block_on(async {
        let (_leader_store, leader) = leader(7).await;
        let disk = disk(8);
        let (_store, log) = laggard(&disk, &leader, 0).await;
        let gap = log.gaps()[0];
        let (good, sum) = pieces(&leader, gap).await;
        let mut incoming = log.receive(gap).await.unwrap();
        assert!(matches!(log.receive(gap).await, Err(CopyError::Busy)));
        for piece in &good {
            incoming.push(piece.clone()).await.unwrap();
        }
        // The data starts behind what is coming in.
        let trimmed = descriptor(&leader, X, 2 * gap.end.get()).await;
        log.set_log_start(trimmed).await.unwrap();
        let late = incoming.finish(sum).await;
        assert!(matches!(late, Err(CopyError::Superseded)), "{late:?}");
        assert_eq!(log.gaps(), []);
        assert_same(&log, &leader).await;

        let disk = self::disk(9);
        let (_store, log) = laggard(&disk, &leader, 0).await;
        let mut incoming = log.receive(gap).await.unwrap();
        for piece in good {
            incoming.push(piece).await.unwrap();
        }
        let newer = LogStart {
            purged: EntryId::new(9, 500),
            next_offset: Offset(1_000),
            next_time: Timestamp(9_000_000_000),
            data_start: Offset(0),
            meta: Bytes::new(),
        };
        log.set_log_start(newer).await.unwrap();
        let late = incoming.finish(sum).await;
        assert!(matches!(late, Err(CopyError::Superseded)), "{late:?}");
        assert_eq!(
            log.gaps(),
            [Gap {
                first: None,
                end: LogIndex(501)
            }]
        );
    });
}

#[test]
fn a_full_disk_refuses_a_copy_and_nothing_else_suffers() {
    block_on(async {
        let (_leader_store, leader) = leader(10).await;
        let disk = disk(11);
        let (store, log) = laggard(&disk, &leader, 0).await;
        eventually("all is filled", || {
            log.state().filled == Some(LogIndex(LAST))
        })
        .await;
        let used: u64 = disk.files().iter().map(|(_, len)| *len).sum();
        disk.configure(|config| config.quota_bytes = Some(used + 2_000));
        let full = copy(&leader, &log, log.gaps()[0]).await;
        assert!(matches!(full, Err(CopyError::Full)), "{full:?}");
        assert!(store.fatal().borrow().is_none());
        disk.configure(|config| config.quota_bytes = None);
        copy_all(&leader, &log).await;
        assert_eq!(assert_same(&log, &leader).await, LogIndex(0));
    });
}

#[test]
fn a_crash_at_any_operation_of_a_copy_leaves_a_log_that_goes_on_with_it() {
    let moments: Arc<Mutex<Vec<SimImage>>> = Arc::default();
    let seen = Arc::clone(&moments);
    let all = Arc::new(Mutex::new(Vec::new()));
    let expected = Arc::clone(&all);
    block_on(async {
        let (_leader_store, leader) = leader(12).await;
        *expected.lock() = read_all(&leader, 0, 1 << 20).await;
        let disk = disk(13);
        let (store, log) = laggard(&disk, &leader, 0).await;
        store.checkpoint().await.unwrap();
        disk.observe(move |disk| seen.lock().push(disk.fork()));
        copy(&leader, &log, log.gaps()[0]).await.unwrap();
        copy(&leader, &log, log.gaps()[0]).await.unwrap();
        // The last segment of what was copied goes bad and is replaced.
        let path = disk.files().into_iter().map(|(path, _)| path);
        let path = path.filter(|path| path.extension().is_some_and(|kind| kind == "seg"));
        let path = path.min().unwrap();
        disk.flip_bit(&path, 2_000, 1);
        let first = log.state().data_start;
        let read = log.read_offsets(first, LogIndex(LAST), 1 << 20).await;
        assert!(matches!(read, Err(ReadError::Damaged { .. })));
        let damaged = log.gaps()[0];
        assert!(damaged.first.is_some());
        copy(&leader, &log, damaged).await.unwrap();
        store.checkpoint().await.unwrap();
    });
    let expected = std::mem::take(&mut *all.lock());
    let moments = std::mem::take(&mut *moments.lock());
    assert!(moments.len() > 20, "{} moments", moments.len());
    for (n, image) in moments.into_iter().enumerate() {
        for loss in [
            PowerLoss::Lose,
            PowerLoss::Keep,
            PowerLoss::InOrder,
            PowerLoss::Scatter,
        ] {
            block_on(async {
                let disk = image.power_loss(loss, n as u64);
                let (store, report) = open(&disk, small()).await;
                assert!(!report.step_aside, "moment {n}, {loss:?}: {report:?}");
                let log = store.group(GROUP).unwrap();
                let peer = self::disk(14);
                let (peers, _) = open(&peer, small()).await;
                let peer = peers.create_group(GROUP, REPLICA).await.unwrap();
                follow(&peer, expected.clone()).await;
                peer.commit(LogIndex(LAST));
                // What is damaged is found by reading; then all that is missing is copied.
                for index in 0..=LAST {
                    let read = log.read(LogIndex(index), LogIndex(index + 1), 1).await;
                    match read {
                        Ok(frames) => assert_eq!(
                            super::image(&frames[0]),
                            super::image(&expected[usize::try_from(index).unwrap()])
                        ),
                        Err(ReadError::Damaged { .. } | ReadError::BelowStart { .. }) => {}
                        Err(other) => panic!("moment {n}, {loss:?}, entry {index}: {other}"),
                    }
                }
                copy_all(&peer, &log).await;
                assert_eq!(
                    log.state().last,
                    Some(expected[expected.len() - 1].header.id())
                );
                assert_eq!(assert_same(&log, &peer).await, LogIndex(0));
                store.close().await.unwrap();
            });
        }
    }
}
