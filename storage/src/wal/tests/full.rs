//! A log without room: what is submitted waits, what the reserve is for goes on, order stands.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::support::{data, open, submit, tiny_config, vote};
use crate::frame::{Frame, FrameKind};
use crate::io::sim::{SimConfig, SimDisk, block_on};
use crate::wal::{Room, Wal, WalPosition, WalPressure, WalStart};

/// What was told durable, in order.
#[derive(Clone, Default)]
struct Told {
    units: Arc<Mutex<Vec<(&'static str, WalPosition)>>>,
    bell: Arc<Notify>,
}

impl Told {
    fn submit(&self, wal: &Wal, name: &'static str, frames: Vec<Frame>, room: Room) {
        let told = self.clone();
        let done = Box::new(move |result: Result<WalPosition, _>| {
            if let Ok(position) = result {
                told.units.lock().push((name, position));
                told.bell.notify_one();
            }
        });
        wal.submit(frames, room, done);
    }

    fn names(&self) -> Vec<&'static str> {
        self.units.lock().iter().map(|(name, _)| *name).collect()
    }

    async fn wait(&self, name: &str) {
        while !self.names().contains(&name) {
            self.bell.notified().await;
        }
    }
}

/// Fills the log with units of one group until it has no room for more.
async fn fill(wal: &Wal) -> Told {
    let told = Told::default();
    for index in 0..24 {
        told.submit(wal, "filling", vec![data(1, index, 11_000)], Room::Common);
    }
    let mut pressure = wal.watch_pressure();
    let full = pressure.wait_for(|pressure| *pressure == WalPressure::Full);
    full.await.unwrap();
    told
}

async fn fresh(quota: Option<u64>) -> (SimDisk, Wal) {
    let mut config = SimConfig::instant();
    config.quota_bytes = quota;
    let disk = SimDisk::with_config(3, config);
    let opened = open(&disk.backend(), &tiny_config(), WalStart::Beginning, 3).await;
    (disk, opened.unwrap().0)
}

#[test]
fn pressure_rises_with_use_and_falls_with_release() {
    block_on(async {
        let (_, wal) = fresh(None).await;
        assert_eq!(*wal.watch_pressure().borrow(), WalPressure::None);
        let told = fill(&wal).await;
        let status = wal.status();
        assert_eq!((status.used_files, status.free_files), (6, 2));
        assert!(status.queued_bytes > 0);
        wal.release(status.current_file);
        told.submit(&wal, "last", vec![data(1, 99, 100)], Room::Common);
        told.wait("last").await;
        assert_eq!(*wal.watch_pressure().borrow(), WalPressure::None);
        while wal.status().used_files < 5 {
            submit(&wal, vec![data(1, 100, 11_000)])
                .await
                .unwrap()
                .unwrap();
        }
        assert_eq!(*wal.watch_pressure().borrow(), WalPressure::Low);
        wal.release(u64::MAX);
        assert_eq!(*wal.watch_pressure().borrow(), WalPressure::None);
        assert_eq!(wal.status().used_files, 1, "the newest file stays");
        wal.close().await;
    });
}

#[test]
fn a_vote_is_durable_in_a_full_log() {
    block_on(async {
        let (disk, wal) = fresh(None).await;
        let told = fill(&wal).await;
        let before = told.names().len();
        told.submit(&wal, "vote", vec![vote(2, 7)], Room::Reserved);
        told.wait("vote").await;
        assert_eq!(told.names().len(), before + 1, "only the vote went on");
        disk.kill();
        let disk = disk.reopen();
        let opened = open(&disk.backend(), &tiny_config(), WalStart::Beginning, 4).await;
        let (_, scan) = opened.unwrap();
        let last = scan.frames.last().unwrap();
        assert_eq!(last.1, vote(2, 7));
    });
}

/// However much a note takes along of its group, what is logged again finds its file.
#[test]
fn what_is_logged_again_has_a_file_that_notes_leave_alone() {
    block_on(async {
        let (_, wal) = fresh(None).await;
        let told = fill(&wal).await;
        for index in 0..9 {
            told.submit(&wal, "waiting", vec![data(2, index, 11_000)], Room::Common);
        }
        told.submit(&wal, "vote", vec![vote(2, 7)], Room::Reserved);
        let again = (0..3).map(|index| data(1, index, 11_000)).collect();
        told.submit(&wal, "again", again, Room::Relog);
        told.wait("again").await;
        assert!(!told.names().contains(&"vote"));
        // The files whose entries were logged again are free, and so are notes.
        wal.release(6);
        told.wait("vote").await;
        let units = told.units.lock().clone();
        assert!(units.is_sorted_by_key(|(_, position)| *position));
        wal.close().await;
    });
}

#[test]
fn what_overtakes_takes_its_own_group_along_in_order() {
    block_on(async {
        let (_, wal) = fresh(None).await;
        let told = fill(&wal).await;
        let before = told.names().len();
        told.submit(&wal, "a1", vec![data(5, 1, 200)], Room::Common);
        told.submit(&wal, "b1", vec![data(6, 1, 200)], Room::Common);
        told.submit(
            &wal,
            "a2+c",
            vec![data(5, 2, 200), data(8, 1, 50)],
            Room::Common,
        );
        told.submit(&wal, "c2", vec![data(8, 2, 50)], Room::Common);
        told.submit(&wal, "vote a", vec![vote(5, 3)], Room::Reserved);
        told.wait("vote a").await;
        assert_eq!(told.names()[before..], ["a1", "a2+c", "vote a"]);
        wal.release(wal.status().current_file);
        told.wait("c2").await;
        let names = told.names();
        let rest = names.iter().rev().take(2).rev();
        assert_eq!(rest.copied().collect::<Vec<_>>(), ["b1", "c2"]);
        let units = told.units.lock().clone();
        assert!(units.is_sorted_by_key(|(_, position)| *position));
        wal.close().await;
    });
}

#[test]
fn a_unit_written_in_part_when_the_log_fills_up_is_found_whole_where_it_is_told_to_be() {
    block_on(async {
        let (disk, wal) = fresh(None).await;
        let told = Told::default();
        for index in 0..6 {
            told.submit(&wal, "first", vec![data(1, index, 9_000)], Room::Common);
        }
        // Three such frames to a file: two files are used, four are left, five would be needed.
        let unit: Vec<Frame> = (6..21).map(|index| data(1, index, 9_000)).collect();
        told.submit(&wal, "large", unit.clone(), Room::Common);
        let mut pressure = wal.watch_pressure();
        let full = pressure.wait_for(|pressure| *pressure == WalPressure::Full);
        full.await.unwrap();
        told.submit(&wal, "vote", vec![vote(2, 7)], Room::Reserved);
        told.wait("vote").await;
        let vote_at = told.units.lock()[6].1;
        // A checkpoint behind the vote knows nothing of the large unit.
        wal.release(vote_at.file);
        told.wait("large").await;
        let (_, large_at) = told.units.lock()[7];
        assert!(large_at > vote_at);
        disk.kill();
        let disk = disk.reopen();
        let start = WalStart::At(vote_at);
        let opened = open(&disk.backend(), &tiny_config(), start, 4).await;
        let frames = opened.unwrap().1.frames;
        let found = frames.into_iter().map(|(_, frame)| frame);
        let found: Vec<_> = found.filter(|f| f.header.kind == FrameKind::Data).collect();
        assert_eq!(found, unit);
    });
}

#[test]
fn a_full_disk_is_pressure_and_ends_when_there_is_room_again() {
    block_on(async {
        let files = 3 * tiny_config().file_bytes;
        let (disk, wal) = fresh(Some(files + 5_000)).await;
        let told = fill(&wal).await;
        let status = wal.status();
        assert!(status.growth_blocked);
        assert_eq!((status.used_files, status.free_files), (1, 2));
        assert_eq!(disk.files().len(), 3, "an unfinished file is not kept");
        told.submit(&wal, "vote", vec![vote(2, 7)], Room::Reserved);
        told.wait("vote").await;
        // Another user of the disk frees some.
        disk.configure(|config| config.quota_bytes = Some(files * 2));
        let before = told.names().len();
        while told.names().len() < before + 3 {
            told.bell.notified().await;
        }
        let mut pressure = wal.watch_pressure();
        let full = pressure.wait_for(|pressure| *pressure == WalPressure::Full);
        full.await.unwrap();
        disk.configure(|config| config.quota_bytes = None);
        wal.release(wal.status().current_file);
        told.submit(&wal, "last", vec![data(1, 99, 100)], Room::Common);
        told.wait("last").await;
        wal.close().await;
    });
}

#[test]
fn a_log_opens_on_a_disk_without_any_room() {
    block_on(async {
        let (disk, wal) = fresh(Some(0)).await;
        let told = Told::default();
        told.submit(&wal, "waits", vec![data(1, 1, 100)], Room::Common);
        let mut pressure = wal.watch_pressure();
        let full = pressure.wait_for(|pressure| *pressure == WalPressure::Full);
        full.await.unwrap();
        assert!(told.names().is_empty());
        disk.configure(|config| config.quota_bytes = None);
        told.wait("waits").await;
        wal.close().await;
    });
}

#[test]
fn closing_a_full_log_answers_what_finds_no_room() {
    block_on(async {
        let (_, wal) = fresh(None).await;
        let _told = fill(&wal).await;
        let answer = submit(&wal, vec![data(1, 99, 100)]);
        let closing = tokio::time::timeout(Duration::from_secs(5), wal.close());
        closing.await.expect("the log closes");
        assert!(answer.await.unwrap().is_err());
    });
}
