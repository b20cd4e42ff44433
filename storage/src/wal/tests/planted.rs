//! Mistakes that take a particular accident to show: each accident, what the log must give back
//! after it, and the proof that a log which makes the mistake does not.

use std::path::PathBuf;
use std::sync::Arc;

use parking_lot::Mutex;

use super::model::Model;
use super::support::{data, open, submit, tiny_config, vote};
use crate::frame::Frame;
use crate::io::sim::{PowerLoss, SimConfig, SimDisk, SimImage, block_on};
use crate::wal::planted::{Flaw, notices};
use crate::wal::{Room, Wal, WalPosition, WalScan, WalStart};

const SEED: u64 = 9;
const BLOCK: usize = 4096;

fn slot(number: u32) -> PathBuf {
    tiny_config().dir.join(format!("{number:02}.wal"))
}

fn fresh_disk() -> SimDisk {
    SimDisk::with_config(SEED, SimConfig::instant())
}

async fn opened(disk: &SimDisk, start: WalStart, seed: u64) -> (Wal, WalScan) {
    let opened = open(&disk.backend(), &tiny_config(), start, seed).await;
    opened.unwrap()
}

fn frames(scan: &WalScan) -> Vec<Frame> {
    scan.frames.iter().map(|(_, frame)| frame.clone()).collect()
}

/// A log that went through its files several times, killed at rest before it was sealed: nothing
/// proves the last round but the round itself.
struct Recycled {
    image: SimImage,
    start: WalPosition,
    /// What is not released.
    sent: Vec<(WalPosition, Frame)>,
}

impl Recycled {
    /// Three rounds make up a file; the last file holds one.
    async fn new() -> Self {
        let disk = fresh_disk();
        let (wal, _) = opened(&disk, WalStart::Beginning, SEED).await;
        let mut sent = Vec::new();
        for index in 0..28 {
            let frame = data(index % 3, index, 9_000);
            let position = submit(&wal, vec![frame.clone()]).await.unwrap().unwrap();
            sent.push((position, frame));
            wal.release(position.file.saturating_sub(1));
        }
        let status = wal.status();
        assert_eq!((status.oldest_file, status.current_file), (9, 10));
        disk.kill();
        sent.retain(|(position, _)| position.file >= 9);
        Self {
            image: disk.fork(),
            start: sent[0].0,
            sent,
        }
    }

    async fn recover(&self, seed: u64, accident: impl FnOnce(&SimDisk)) -> (SimDisk, WalScan) {
        let disk = self.image.kill(seed);
        accident(&disk);
        let (_, scan) = opened(&disk, WalStart::At(self.start), seed).await;
        (disk, scan)
    }

    /// The files of all slots.
    fn slots(&self) -> Vec<PathBuf> {
        let files = self.image.files().into_iter();
        files.map(|(path, _)| path).collect()
    }
}

/// Behind the last round of a recycled file stand whole rounds of its earlier use.
fn stale_rounds_stay_out() {
    block_on(async {
        let log = Recycled::new().await;
        let (_, scan) = log.recover(SEED, |_| {}).await;
        assert_eq!(scan.frames, log.sent);
        let behind = |path: &PathBuf| {
            let bytes = log.image.read(path).unwrap();
            let mut files = bytes.chunks(BLOCK).skip(1).filter_map(file_of);
            let first = files.next();
            first == Some(10) && files.any(|file| file < 10)
        };
        assert!(log.slots().iter().any(behind), "nothing stale is there");
    });
}

/// The number of the file to which a block says that it belongs, if a round begins there.
fn file_of(block: &[u8]) -> Option<u64> {
    block
        .starts_with(b"TLR1")
        .then(|| u64::from_le_bytes(block[8..16].try_into().unwrap()))
}

/// Two crashes in the same place: the first left the round and not the file's header, the second
/// the header of the next use, under the same number, and not its round.
fn a_round_of_another_use_stays_out() {
    block_on(async {
        let disk = fresh_disk();
        let (wal, _) = opened(&disk, WalStart::Beginning, 1).await;
        submit(&wal, vec![data(1, 1, 9_000)])
            .await
            .unwrap()
            .unwrap();
        disk.kill();
        let mut first = disk.read(&slot(0)).unwrap();
        first[..BLOCK].fill(0);
        disk.write(&slot(0), &first);

        let disk = disk.reopen();
        let (wal, scan) = opened(&disk, WalStart::Beginning, 2).await;
        assert_eq!(scan.frames, [], "its file was never begun");
        submit(&wal, vec![data(1, 2, 100)]).await.unwrap().unwrap();
        disk.kill();
        let mut second = disk.read(&slot(0)).unwrap();
        assert!(second.starts_with(b"TLW1"), "the same slot was taken");
        second[BLOCK..].copy_from_slice(&first[BLOCK..]);
        disk.write(&slot(0), &second);

        let (_, scan) = opened(&disk.reopen(), WalStart::Beginning, 3).await;
        assert_eq!(scan.frames, [], "a cut frame is back");
    });
}

/// A tail that one recovery could not read, and cut, reads well later on.
fn a_cut_tail_stays_cut() {
    block_on(async {
        let disk = fresh_disk();
        let (wal, _) = opened(&disk, WalStart::Beginning, 1).await;
        let (kept, cut, next) = (data(1, 1, 300), data(1, 2, 300), data(1, 2, 400));
        for frame in [&kept, &cut] {
            let unit = vec![frame.clone()];
            submit(&wal, unit).await.unwrap().unwrap();
        }
        disk.kill();
        let bytes = disk.read(&slot(0)).unwrap();
        let rounds = bytes.chunks(BLOCK).enumerate();
        let mut rounds = rounds.filter(|(_, block)| file_of(block).is_some());
        let last = rounds.next_back();
        let tail = (last.unwrap().0 * BLOCK + 200) as u64;

        disk.flip_bit(&slot(0), tail, 3);
        let disk = disk.reopen();
        let (wal, scan) = opened(&disk, WalStart::Beginning, 2).await;
        assert_eq!(frames(&scan), std::slice::from_ref(&kept));
        submit(&wal, vec![next.clone()]).await.unwrap().unwrap();
        disk.kill();

        disk.flip_bit(&slot(0), tail, 3);
        let (_, scan) = opened(&disk.reopen(), WalStart::Beginning, 3).await;
        assert_eq!(frames(&scan), [kept, next]);
    });
}

/// What a log acknowledged before a power loss at any moment, after it had been killed at any
/// moment before that: the kernel knows names that the disk does not.
fn names_are_durable_before_what_is_in_the_files() {
    block_on(async {
        let mut ends = 0;
        for (killed, model) in moments(&fresh_disk(), Model::new(), 1).await {
            let second = killed.kill(SEED);
            for (lost, mut model) in moments(&second, model, 2).await {
                let third = lost.power_loss(PowerLoss::Lose, SEED);
                let (_, scan) = opened(&third, model.start(), 3).await;
                let safe = model.safe();
                model.recovered(&scan.frames, safe);
                third.kill();
                ends += 1;
            }
        }
        assert!(ends > 300, "{ends}");
    });
}

/// Opens the log and writes a unit or two; every moment of that, and what must be safe then.
async fn moments(disk: &SimDisk, model: Model, life: u64) -> Vec<(SimImage, Model)> {
    let model = Arc::new(Mutex::new(model));
    let moments = Arc::new(Mutex::new(Vec::new()));
    let (watched, seen) = (Arc::clone(&model), Arc::clone(&moments));
    disk.observe(move |disk| {
        // Not while the test itself is at the model: the next operation does as well.
        if let Some(model) = watched.try_lock() {
            seen.lock().push((disk.fork(), model.as_of_now()));
        }
    });
    let start = model.lock().start();
    let (wal, scan) = opened(disk, start, life).await;
    {
        let mut model = model.lock();
        let safe = model.safe();
        model.recovered(&scan.frames, safe);
    }
    for index in 0..2 {
        let unit = vec![
            data(1, life * 10 + index, 9_000),
            vote(2, life * 10 + index),
        ];
        model.lock().submit(&wal, unit, Room::Common);
        let bell = model.lock().bell();
        while model.lock().open_units() > 0 {
            bell.notified().await;
        }
    }
    disk.kill();
    std::mem::take(&mut *moments.lock())
}

/// Any one read of a recovery comes back with the bytes of another place: of another slot, or of
/// another block.
fn one_read_astray_costs_nothing() {
    block_on(async {
        let log = Recycled::new().await;
        let mut astray = 0;
        for path in log.slots() {
            for reads in 0.. {
                let mut met = false;
                // Where to is drawn by the seed.
                for seed in 0..12 {
                    let (disk, scan) = log
                        .recover(seed, |disk| disk.misdirect_read_after(&path, reads))
                        .await;
                    met |= !disk.is_to_misdirect();
                    assert_eq!(scan.frames, log.sent, "{} {reads} {seed}", path.display());
                    disk.kill();
                }
                if !met {
                    break;
                }
                astray += 1;
            }
        }
        assert!(astray > 10, "{astray}");
    });
}

/// Each flaw and the accident in which it shows.
const ACCIDENTS: [(Flaw, fn()); 6] = [
    (Flaw::AdoptsStaleRounds, stale_rounds_stay_out),
    (Flaw::ForgetsSignatures, a_round_of_another_use_stays_out),
    (Flaw::ReadsPastTheCut, a_cut_tail_stays_cut),
    (
        Flaw::LeavesNewNamesUnsynced,
        names_are_durable_before_what_is_in_the_files,
    ),
    (
        Flaw::TrustsFoundNames,
        names_are_durable_before_what_is_in_the_files,
    ),
    (Flaw::BelievesTheFirstRead, one_read_astray_costs_nothing),
];

#[test]
fn the_right_log_comes_through_every_accident() {
    for (_, accident) in ACCIDENTS {
        accident();
    }
}

#[test]
fn no_planted_flaw_comes_through_its_accident() {
    for (flaw, accident) in ACCIDENTS {
        assert!(notices(flaw, accident), "{flaw:?} goes unnoticed");
    }
}
