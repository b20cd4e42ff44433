use std::collections::BTreeSet;
use std::future::Future;
use std::io;

use bytes::Bytes;
use futures::FutureExt;
use tokio::sync::mpsc;

use super::ops::{SimFile, SimIo};
use super::*;
use crate::io::{Io, IoFile, OpenMode};

const LOSSES: [PowerLoss; 4] = [
    PowerLoss::Lose,
    PowerLoss::Keep,
    PowerLoss::InOrder,
    PowerLoss::Scatter,
];

fn path(name: &str) -> PathBuf {
    Path::new("/").join(name)
}

fn fill(byte: u8, len: usize) -> Vec<Bytes> {
    vec![Bytes::from(vec![byte; len])]
}

/// Runs `body` on an instant disk.
fn simulate<F: Future>(seed: u64, body: impl FnOnce(SimDisk, SimIo) -> F) -> F::Output {
    block_on(async {
        let disk = SimDisk::with_config(seed, SimConfig::instant());
        let io = SimIo::new(disk.clone());
        body(disk, io).await
    })
}

/// A new file with a durable name.
async fn create(io: &SimIo, name: &str) -> SimFile {
    let file = io.open(&path(name), OpenMode::Create).await.unwrap();
    io.sync_dir(Path::new("/")).await.unwrap();
    file
}

#[test]
fn synced_data_survives_every_power_loss() {
    for (seed, loss) in (0..40).zip(LOSSES.iter().cycle()) {
        simulate(seed, |disk, io| async move {
            let file = create(&io, "a").await;
            file.write_all_at(fill(1, 3_000), 0).await.unwrap();
            file.sync_data().await.unwrap();
            file.write_durable_at(fill(2, 700), 2_900).await.unwrap();
            disk.crash(*loss);
            let found = disk.read(&path("a")).unwrap();
            assert_eq!(found.len(), 3_600);
            assert!(found[..2_900].iter().all(|byte| *byte == 1));
            assert!(found[2_900..].iter().all(|byte| *byte == 2));
        });
    }
}

#[test]
fn unsynced_data_is_lost_kept_cut_or_scattered() {
    let outcome = |loss, seed| {
        simulate(seed, |disk, io| async move {
            let file = create(&io, "a").await;
            file.write_durable_at(fill(1, 2_048), 0).await.unwrap();
            file.write_all_at(fill(2, 2_048), 0).await.unwrap();
            file.write_all_at(fill(3, 1_024), 1_024).await.unwrap();
            disk.crash(loss);
            disk.read(&path("a")).unwrap()
        })
    };
    let [old, mut new] = [vec![1; 2_048], vec![2; 2_048]];
    new[1_024..].fill(3);
    assert_eq!(outcome(PowerLoss::Lose, 1), old);
    assert_eq!(outcome(PowerLoss::Keep, 1), new);
    // In order: the third write never shows unless the second is whole below it.
    for seed in 0..50 {
        let found = outcome(PowerLoss::InOrder, seed);
        if found[1_024..].contains(&3) {
            assert!(found[..1_024].iter().all(|byte| *byte == 2), "seed {seed}");
        }
    }
    let scattered: BTreeSet<Vec<u8>> = (0..50).map(|s| outcome(PowerLoss::Scatter, s)).collect();
    assert!(scattered.len() > 20, "{} outcomes", scattered.len());
    let reordered = |found: &Vec<u8>| found[512] == 1 && found[1_536] == 3;
    assert!(scattered.iter().any(reordered));
    let torn = |found: &Vec<u8>| {
        found
            .chunks(512)
            .any(|s| s.iter().any(|byte| *byte != s[0]))
    };
    assert!(scattered.iter().any(torn));
}

#[test]
fn a_lost_length_cuts_the_file() {
    let lens: BTreeSet<u64> = (0..50)
        .map(|seed| {
            simulate(seed, |disk, io| async move {
                let file = create(&io, "a").await;
                file.write_durable_at(fill(1, 100), 0).await.unwrap();
                file.write_all_at(fill(2, 100), 100).await.unwrap();
                file.set_len(50).await.unwrap();
                disk.crash(PowerLoss::Scatter);
                let found = disk.read(&path("a")).unwrap();
                found.len() as u64
            })
        })
        .collect();
    assert_eq!(lens, BTreeSet::from([50, 100, 200]));
}

#[test]
fn a_killed_process_loses_nothing_that_was_written() {
    simulate(1, |disk, io| async move {
        let file = io.open(&path("a"), OpenMode::Create).await.unwrap();
        file.write_all_at(fill(7, 900), 0).await.unwrap();
        let next = disk.reopen();
        assert_eq!(next.read(&path("a")).unwrap(), vec![7; 900]);
        next.crash(PowerLoss::Lose);
        assert_eq!(next.read(&path("a")), None, "it was never made durable");
    });
}

#[test]
fn names_are_durable_only_after_their_folder_is_synced() {
    let outcome = |synced: bool, loss, seed| {
        simulate(seed, |disk, io| async move {
            let dir = path("d");
            io.create_dir_all(&dir).await.unwrap();
            let old = io.open(&dir.join("x"), OpenMode::Create).await.unwrap();
            old.write_durable_at(fill(1, 10), 0).await.unwrap();
            io.sync_dir(&dir).await.unwrap();
            let new = io.open(&dir.join("y"), OpenMode::Create).await.unwrap();
            new.write_durable_at(fill(2, 20), 0).await.unwrap();
            io.rename(&dir.join("y"), &dir.join("x")).await.unwrap();
            let third = io.open(&dir.join("z"), OpenMode::Create).await.unwrap();
            third.sync_data().await.unwrap();
            if synced {
                io.sync_dir(&dir).await.unwrap();
            }
            disk.crash(loss);
            let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
            let files = disk.files();
            let found: Vec<_> = files
                .iter()
                .map(|(p, len)| format!("{}{len}", name(p)))
                .collect();
            found.join(" ")
        })
    };
    for loss in LOSSES {
        assert_eq!(outcome(true, loss, 3), "x20 z0");
    }
    assert_eq!(outcome(false, PowerLoss::Lose, 3), "x10");
    let lost: BTreeSet<_> = (0..60)
        .map(|s| outcome(false, PowerLoss::Scatter, s))
        .collect();
    let expected = ["x10", "x10 y20", "x10 y20 z0", "x10 z0", "x20", "x20 z0"];
    assert_eq!(lost, expected.map(str::to_owned).into());
    let cut: BTreeSet<_> = (0..60)
        .map(|s| outcome(false, PowerLoss::InOrder, s))
        .collect();
    let expected = ["x10", "x10 y20", "x20", "x20 z0"];
    assert_eq!(cut, expected.map(str::to_owned).into());
}

#[test]
fn a_removed_folder_may_come_back_until_its_parent_is_synced() {
    let outcome = |synced: bool, seed| {
        simulate(seed, |disk, io| async move {
            let dir = path("d").join("e");
            io.create_dir_all(&dir).await.unwrap();
            for name in ["a", "b"] {
                io.open(&dir.join(name), OpenMode::Create).await.unwrap();
            }
            io.sync_dir(&dir).await.unwrap();
            io.remove_dir_all(&path("d")).await.unwrap();
            if synced {
                io.sync_dir(Path::new("/")).await.unwrap();
            }
            disk.crash(PowerLoss::Scatter);
            let io = SimIo::new(disk.reopen());
            (disk.files().len(), io.list(&path("d")).await.is_ok())
        })
    };
    assert!((0..20).all(|seed| outcome(true, seed) == (0, false)));
    let left: BTreeSet<_> = (0..60).map(|seed| outcome(false, seed)).collect();
    assert!(left.contains(&(0, false)) && left.contains(&(2, true)) && left.contains(&(1, true)));
}

#[test]
fn a_sync_covers_only_what_had_completed_when_it_was_issued() {
    simulate(1, |disk, io| async move {
        let file = create(&io, "a").await;
        file.write_all_at(fill(1, 512), 0).await.unwrap();
        let (late, sync) = (file.write_all_at(fill(2, 512), 512), file.sync_data());
        let (written, synced) = futures::join!(late, sync);
        written.unwrap();
        synced.unwrap();
        disk.crash(PowerLoss::Lose);
        assert_eq!(disk.read(&path("a")).unwrap(), vec![1; 512]);
    });
}

#[test]
fn a_failed_sync_drops_what_it_should_have_saved() {
    for failure in [SyncFailure::Drop, SyncFailure::Ghost] {
        simulate(5, |disk, io| async move {
            let file = create(&io, "a").await;
            file.write_durable_at(fill(1, 64 * 512), 0).await.unwrap();
            file.write_all_at(fill(2, 64 * 512), 0).await.unwrap();
            disk.fail_sync(None, failure);
            file.sync_data().await.unwrap_err();
            file.sync_data().await.unwrap();
            let shown = disk.read(&path("a")).unwrap();
            disk.crash(PowerLoss::Keep);
            let kept = disk.read(&path("a")).unwrap();
            assert!(
                kept.contains(&1) && kept.contains(&2),
                "some reached the platter"
            );
            match failure {
                SyncFailure::Drop => assert_eq!(shown, kept),
                SyncFailure::Ghost => assert_eq!(shown, vec![2; 64 * 512]),
            }
        });
    }
}

/// What the page cache shows without having it on the platter is gone once something else is
/// written there.
#[test]
fn what_is_written_over_what_a_sync_lost_is_what_is_read() {
    for ends_by_power in [false, true] {
        simulate(5, |disk, io| async move {
            let file = create(&io, "a").await;
            file.write_durable_at(fill(1, 64 * 512), 0).await.unwrap();
            file.write_all_at(fill(2, 64 * 512), 0).await.unwrap();
            disk.fail_sync(None, SyncFailure::Ghost);
            file.sync_data().await.unwrap_err();
            file.write_durable_at(fill(3, 64 * 512), 0).await.unwrap();
            assert_eq!(disk.read(&path("a")).unwrap(), vec![3; 64 * 512]);
            if ends_by_power {
                disk.crash(PowerLoss::Lose);
            } else {
                disk.kill();
            }
            assert_eq!(disk.read(&path("a")).unwrap(), vec![3; 64 * 512]);
        });
    }
}

#[test]
fn a_full_disk_cuts_writes_short_until_there_is_room() {
    simulate(1, |disk, io| async move {
        let (a, b) = (create(&io, "a").await, create(&io, "b").await);
        a.write_all_at(fill(1, 600), 0).await.unwrap();
        disk.configure(|config| config.quota_bytes = Some(1_000));
        let full = b.write_all_at(fill(2, 500), 0).await.unwrap_err();
        assert_eq!(full.kind(), io::ErrorKind::StorageFull);
        assert_eq!(b.len().await.unwrap(), 400);
        a.write_all_at(fill(3, 600), 0).await.unwrap();
        assert!(a.set_len(601).await.is_err());
        a.set_len(500).await.unwrap();
        b.write_all_at(fill(2, 500), 0).await.unwrap();
    });
}

#[test]
fn writes_and_reads_fail_and_lie_on_demand() {
    simulate(9, |disk, io| async move {
        let name = path("a");
        let file = create(&io, "a").await;
        let other = create(&io, "b").await;
        other.write_durable_at(fill(9, 4_096), 0).await.unwrap();
        disk.fail_write(Some(&name));
        assert!(file.write_all_at(fill(1, 4_096), 0).await.is_err());
        file.write_durable_at(fill(1, 4_096), 0).await.unwrap();

        disk.fail_reads(&name, 1_000..1_001);
        assert!(file.read_at(0, 4_096).await.is_err());
        assert!(file.read_at(0, 1_000).await.is_ok());
        file.write_all_at(fill(1, 10), 995).await.unwrap();
        let whole = file.read_at(0, 4_096).await.unwrap();
        assert_eq!(whole, vec![1; 4_096]);

        disk.misdirect_read(&name);
        assert_ne!(file.read_at(3_584, 512).await.unwrap(), whole[3_584..]);
        assert_eq!(file.read_at(3_584, 512).await.unwrap(), whole[3_584..]);

        disk.flip_bit(&name, 100, 3);
        let flipped = file.read_at(99, 3).await.unwrap();
        assert_eq!(flipped, [1, 1 ^ 8, 1][..]);
        disk.configure(|config| config.read_flip_chance = 1_000_000);
        assert_ne!(
            file.read_at(0, 4_096).await.unwrap(),
            disk.read(&name).unwrap()
        );
    });
}

struct Counter {
    file: &'static str,
    done: mpsc::UnboundedSender<u8>,
}

impl IoJob for Counter {
    /// Writes 100 numbers, each from a task of its own.
    async fn run<I: Io>(self, io: I) {
        let file = io.open(&path(self.file), OpenMode::Create).await.unwrap();
        let file = std::rc::Rc::new(file);
        for i in 0..100_u8 {
            let (file, done) = (std::rc::Rc::clone(&file), self.done.clone());
            let task = tokio::task::spawn_local(async move {
                // Some days the disk fails.
                let _ = file.write_durable_at(fill(i, 1), u64::from(i)).await;
                let _ = done.send(i);
            });
            if i % 8 == 0 {
                task.await.unwrap();
            }
        }
    }
}

#[test]
fn jobs_and_their_tasks_end_with_the_power() {
    block_on(async {
        let disk = SimDisk::new(4);
        let (done, mut finished) = mpsc::unbounded_channel();
        let backend = disk.backend();
        // A task on the runtime proper, not on the local set.
        let starter = tokio::spawn(async move {
            let job = Counter { file: "a", done };
            backend.spawn("counter", job).join().await;
        });
        for _ in 0..20 {
            finished.recv().await.unwrap();
        }
        disk.crash(PowerLoss::Keep);
        let before = disk.operations();
        starter.await.unwrap();
        while finished.recv().await.is_some() {}
        assert_eq!(disk.operations(), before, "nothing runs on");
        let late = disk.backend().spawn(
            "late",
            Counter {
                file: "b",
                done: mpsc::unbounded_channel().0,
            },
        );
        late.join().await;
        assert_eq!(disk.operations(), before, "nor begins");
    });
}

struct Panics;

impl IoJob for Panics {
    async fn run<I: Io>(self, io: I) {
        io.sync_dir(Path::new("/")).await.unwrap();
        panic!("as planned");
    }
}

#[test]
fn a_job_that_panics_takes_its_waiter_along() {
    block_on(async {
        let job = SimDisk::new(4).backend().spawn("panics", Panics);
        let joined = std::panic::AssertUnwindSafe(job.join())
            .catch_unwind()
            .await;
        assert_eq!(
            *joined.unwrap_err().downcast_ref::<&str>().unwrap(),
            "as planned"
        );
    });
}

#[test]
fn a_halted_disk_begins_the_operation_and_never_ends_it() {
    simulate(1, |disk, io| async move {
        let file = create(&io, "a").await;
        disk.halt_at(disk.operations() + 2);
        file.write_all_at(fill(1, 10), 0).await.unwrap();
        let stuck = file.write_durable_at(fill(2, 10), 0);
        futures::select_biased! {
            _ = stuck.fuse() => panic!("the disk has halted"),
            () = disk.halted().fuse() => {}
        }
        assert!(disk.halted().now_or_never().is_some());
        assert!(io.list(Path::new("/")).now_or_never().is_none());
        assert_eq!(disk.read(&path("a")).unwrap(), vec![2; 10], "begun");
        disk.crash(PowerLoss::Lose);
        assert!(disk.read(&path("a")).unwrap().is_empty(), "and not durable");
        let io = SimIo::new(disk.reopen());
        assert_eq!(io.list(Path::new("/")).await.unwrap(), [Path::new("a")]);
    });
}

#[test]
fn an_observer_sees_every_operation_and_forks_go_their_own_way() {
    simulate(1, |disk, io| async move {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let images = Arc::clone(&seen);
        disk.observe(move |disk| images.lock().push(disk.fork()));
        let file = create(&io, "a").await;
        for i in 0..10_u8 {
            file.write_all_at(fill(i, 1), u64::from(i)).await.unwrap();
        }
        let images = std::mem::take(&mut *seen.lock());
        assert_eq!(images.len(), 12);
        for (written, image) in images[2..].iter().enumerate() {
            assert_eq!(image.read(&path("a")).unwrap().len(), written + 1);
            let other = image.kill(1);
            let again = SimIo::new(other.clone())
                .open(&path("a"), OpenMode::Write)
                .await
                .unwrap();
            again.write_durable_at(fill(99, 50), 0).await.unwrap();
            assert_eq!(other.read(&path("a")).unwrap(), vec![99; 50]);
            let lost = image.power_loss(PowerLoss::Lose, 1);
            assert!(lost.read(&path("a")).unwrap().is_empty());
        }
        assert_eq!(file.len().await.unwrap(), 10);
    });
}

#[test]
fn a_stalled_disk_answers_late() {
    block_on(async {
        let disk = SimDisk::new(1);
        disk.stall(Duration::from_secs(9));
        let begun = Instant::now();
        SimIo::new(disk).sync_dir(Path::new("/")).await.unwrap();
        assert!(begun.elapsed() >= Duration::from_secs(9));
    });
}

#[test]
fn removed_files_are_forgotten() {
    simulate(1, |disk, io| async move {
        for round in 0..20 {
            let name = path(&round.to_string());
            let file = io.open(&name, OpenMode::Create).await.unwrap();
            io.remove_file(&name).await.unwrap();
            drop(file);
        }
        io.sync_dir(Path::new("/")).await.unwrap();
        assert!(disk.files().is_empty());
        assert_eq!(disk.platter.state.lock().inode_count(), 0);
    });
}

/// A busy, faulty day of a disk; the hash of its trace.
fn faulty_day(seed: u64) -> u64 {
    block_on(async {
        let config = SimConfig {
            write_error_chance: 20_000,
            sync_error_chance: 20_000,
            stall_chance: 100_000,
            ..SimConfig::default()
        };
        let disk = SimDisk::with_config(seed, config);
        let (done, mut finished) = mpsc::unbounded_channel();
        let jobs = ["a", "b", "c"].map(|file| {
            let job = Counter {
                file,
                done: done.clone(),
            };
            disk.backend().spawn(file, job)
        });
        for _ in 0..100 {
            finished.recv().await.unwrap();
        }
        disk.crash(PowerLoss::Any);
        for job in jobs {
            job.join().await;
        }
        let io = SimIo::new(disk.reopen());
        for name in io.list(Path::new("/")).await.unwrap() {
            let file = io
                .open(&Path::new("/").join(name), OpenMode::Read)
                .await
                .unwrap();
            file.read_at(0, 1_000).await.unwrap();
        }
        disk.trace_hash()
    })
}

#[test]
fn one_seed_gives_one_trace() {
    let hashes: BTreeSet<u64> = (0..10)
        .map(|seed| {
            let hash = faulty_day(seed);
            assert_eq!(hash, faulty_day(seed), "seed {seed}");
            hash
        })
        .collect();
    assert_eq!(hashes.len(), 10);
}
