//! A disk without room, and one that takes no segments: produce is told to hold back, everything
//! stays readable, votes and cuts go on, memory is bounded, and it ends when there is room again.

use std::path::Path;

use trilog_model::{Offset, Term};

use super::*;
use crate::io::sim::{PowerLoss, SimConfig, block_on};
use crate::log::{LogStart, Vote};

const OTHER: GroupId = GroupId(8);
/// Bytes of one append of the tests below: five entries.
const APPEND_BYTES: u64 = 5 * (80 + 704);

/// Two groups, of which one has `appended` entries, all committed.
struct Scene {
    disk: SimDisk,
    store: Store,
    log: GroupLog,
    other: GroupLog,
    appended: u64,
}

impl Scene {
    async fn new() -> Self {
        let disk = SimDisk::with_config(5, SimConfig::instant());
        let (store, _) = open(&disk, small()).await;
        let log = store.create_group(GROUP, REPLICA).await.unwrap();
        let other = store.create_group(OTHER, REPLICA).await.unwrap();
        let mut scene = Self {
            disk,
            store,
            log,
            other,
            appended: 0,
        };
        for _ in 0..20 {
            scene.append().await;
        }
        let all = LogIndex(scene.appended - 1);
        eventually("all is filled", || scene.log.state().filled == Some(all)).await;
        scene
    }

    /// Appends some entries and commits them.
    async fn append(&mut self) {
        let from = self.appended;
        append(&self.log, entries(1, from..from + 5, 700)).await;
        self.appended = from + 5;
        self.log.commit(LogIndex(self.appended - 1));
    }

    fn is_pressed(&self) -> bool {
        self.store.pressure().borrow().any()
    }

    /// Produces as one who holds back when told to, until told to.
    async fn produce_until_pressed(&mut self) {
        while !self.is_pressed() {
            self.append().await;
            // The fill workers and the keeper have their turn.
            tokio::time::sleep(Duration::from_millis(50)).await;
            assert!(self.appended < 2_000, "nobody is told to hold back");
        }
    }

    /// Takes room away until no byte more than is used now fits.
    fn fill_the_disk(&self) {
        let used = self.disk.files().iter().map(|(_, len)| len).sum();
        self.disk
            .configure(|config| config.quota_bytes = Some(used));
    }

    fn end_of_pressure(&self) -> impl Fn() -> bool {
        let pressure = self.store.pressure();
        move || !pressure.borrow().any()
    }

    /// Votes, and cuts what is not committed, in both groups.
    async fn votes_and_cuts_go_on(&self, terms: std::ops::Range<u64>) {
        for term in terms {
            for log in [&self.log, &self.other] {
                let vote = Vote {
                    term: Term(term),
                    node: REPLICA,
                    committed: false,
                };
                let saved = timeout(Duration::from_mins(1), log.save_vote(vote)).await;
                saved.expect("a vote waits for room").unwrap();
                let state = log.state();
                let cut = log.truncate_after(state.committed);
                let cut = timeout(Duration::from_mins(1), cut).await;
                cut.expect("a cut waits for room").unwrap();
                assert_eq!(log.state().last.map(|last| last.index), state.committed);
            }
        }
    }

    async fn everything_is_read(&self) {
        check_all(&self.log, self.appended).await;
    }

    /// What a restart finds after a power loss now.
    async fn survives_a_power_loss(self) {
        let appended = self.appended;
        let vote = self.log.state().vote;
        let Self {
            disk,
            store,
            log,
            other,
            ..
        } = self;
        disk.crash(PowerLoss::Lose);
        drop((store, log, other));
        let disk = disk.reopen();
        disk.configure(|config| config.quota_bytes = None);
        let (store, report) = open(&disk, small()).await;
        assert!(!report.step_aside, "{report:?}");
        let log = store.group(GROUP).unwrap();
        log.truncate_after(Some(LogIndex(appended - 1)))
            .await
            .unwrap();
        check_all(&log, appended).await;
        assert_eq!(log.state().vote, vote);
        store.close().await.unwrap();
    }
}

async fn check_all(log: &GroupLog, appended: u64) {
    let found = read_all(log, 0, 10_000).await;
    let indexes = found.iter().map(|frame| frame.header.index.get());
    assert!(indexes.eq(0..appended), "an entry is missing");
    for frame in &found {
        let sent = entry(frame.header.id(), 2, 700);
        assert_eq!(frame.records[21..], sent.records[21..]);
    }
}

#[test]
fn a_full_disk_refuses_produce_stays_readable_votes_and_recovers() {
    block_on(async {
        let mut scene = Scene::new().await;
        scene.fill_the_disk();
        scene.produce_until_pressed().await;
        scene.votes_and_cuts_go_on(2..8).await;
        scene.everything_is_read().await;
        assert!(scene.store.fatal().borrow().is_none());

        scene.disk.configure(|config| config.quota_bytes = None);
        eventually("the pressure ends", scene.end_of_pressure()).await;
        for _ in 0..20 {
            scene.append().await;
        }
        let all = LogIndex(scene.appended - 1);
        eventually("all is filled", || scene.log.state().filled == Some(all)).await;
        assert_eq!(scene.store.stats().pinned_bytes, 0);
        scene.everything_is_read().await;
        scene.survives_a_power_loss().await;
    });
}

#[test]
fn nothing_is_lost_when_the_power_goes_while_the_disk_is_full() {
    block_on(async {
        let mut scene = Scene::new().await;
        scene.fill_the_disk();
        scene.produce_until_pressed().await;
        scene.votes_and_cuts_go_on(2..3).await;
        scene.survives_a_power_loss().await;
    });
}

#[test]
fn a_full_disk_recovers_by_what_retention_deletes() {
    block_on(async {
        let mut scene = Scene::new().await;
        scene.fill_the_disk();
        scene.produce_until_pressed().await;
        // The quota stands: only what is deleted makes room.
        let segments = scene.log.segments();
        let gone = segments.iter().rev().find(|segment| segment.sealed);
        let gone = *gone.expect("some segment is sealed");
        let last = LogIndex(gone.base_index.get().max(1) - 1);
        let frames = scene.log.read(last, last.next(), 1).await.unwrap();
        let header = frames[0].header;
        let start = LogStart {
            purged: header.id(),
            next_offset: header.next_offset(),
            next_time: header.append_time,
            data_start: header.next_offset(),
            meta: Bytes::new(),
        };
        scene.log.set_log_start(start).await.unwrap();
        eventually("the pressure ends", scene.end_of_pressure()).await;
        scene.append().await;
        let kept = read_all(&scene.log, last.next().get(), 10_000).await;
        assert_eq!(
            kept.len() as u64,
            scene.appended - last.next().get(),
            "only what was trimmed is gone"
        );
        assert_eq!(
            scene.log.state().data_start,
            Offset(header.next_offset().get())
        );
    });
}

/// Who does not hold back fills the write-ahead log. Others still vote.
#[test]
fn a_group_that_fills_the_write_ahead_log_keeps_no_other_from_voting() {
    block_on(async {
        let mut scene = Scene::new().await;
        scene.fill_the_disk();
        scene.produce_until_pressed().await;
        for index in 0..400 {
            let frames = entries(1, index..index + 1, 1_000);
            let sent = scene
                .other
                .append(frames, Appending::Assign, Box::new(drop));
            sent.unwrap();
        }
        let store = &scene.store;
        eventually("the write-ahead log is full", || {
            store.pressure().borrow().wal_low
        })
        .await;
        for term in 2..6 {
            let vote = Vote {
                term: Term(term),
                node: REPLICA,
                committed: true,
            };
            let saved = timeout(Duration::from_mins(1), scene.log.save_vote(vote)).await;
            saved.expect("a vote waits for room").unwrap();
        }
        scene.everything_is_read().await;
        scene.disk.configure(|config| config.quota_bytes = None);
        scene.other.commit(LogIndex(399));
        eventually("all is durable", || {
            scene.other.state().durable == Some(LogIndex(399))
        })
        .await;
        eventually("the pressure ends", scene.end_of_pressure()).await;
        scene.append().await;
        scene.survives_a_power_loss().await;
    });
}

/// Segment files take no write, and give no error either; the write-ahead log is as fast as ever.
#[test]
fn stuck_filling_pins_a_bounded_number_of_bytes_and_ends_well() {
    block_on(async {
        let mut scene = Scene::new().await;
        scene.disk.hold(Path::new("/data/p"));
        scene.produce_until_pressed().await;
        assert!(scene.store.pressure().borrow().pinned);
        let pinned = scene.store.stats().pinned_bytes;
        // An eighth is kept for what lets a full node recover.
        let common = small().pinned_budget() / 8 * 7;
        assert!(
            (common..common + APPEND_BYTES).contains(&pinned),
            "{pinned} of {common}"
        );
        scene.votes_and_cuts_go_on(2..8).await;
        scene.everything_is_read().await;
        assert_eq!(scene.store.stats().pinned_bytes, pinned);

        scene.disk.let_go();
        eventually("the pressure ends", scene.end_of_pressure()).await;
        scene.append().await;
        let all = LogIndex(scene.appended - 1);
        eventually("all is filled", || scene.log.state().filled == Some(all)).await;
        assert_eq!(scene.store.stats().pinned_bytes, 0);
        scene.everything_is_read().await;
        scene.survives_a_power_loss().await;
    });
}

#[test]
fn nothing_is_lost_when_the_power_goes_while_filling_is_stuck() {
    block_on(async {
        let mut scene = Scene::new().await;
        scene.disk.hold(Path::new("/data/p"));
        scene.produce_until_pressed().await;
        scene.votes_and_cuts_go_on(2..3).await;
        scene.survives_a_power_loss().await;
    });
}

/// Entries that were cut are gone from the checkpoint only when they are gone from the write-ahead
/// log: else recovery would find some of them, without what they follow.
#[test]
fn no_checkpoint_passes_a_cut_that_is_not_durable() {
    block_on(async {
        let scene = Scene::new().await;
        let committed = scene.appended;
        for index in committed..committed + 5 {
            append(&scene.log, entries(1, index..index + 1, 700)).await;
        }
        scene.disk.hold(Path::new("/data/wal"));
        let last = Some(LogIndex(committed - 1));
        let cut = scene.log.truncate_after(last);
        let waiting = timeout(Duration::from_secs(1), cut).await;
        assert!(waiting.is_err(), "the cut is durable");
        scene.store.checkpoint().await.unwrap();
        scene.survives_a_power_loss().await;
    });
}
