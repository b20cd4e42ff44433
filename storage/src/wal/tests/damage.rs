//! Damage to a log at rest: what was durable and marked is found missing, what was not is cut.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::support::{data, open, submit, tiny_config, vote};
use crate::frame::Frame;
use crate::io::sim::{SimConfig, SimDisk, SimImage, block_on};
use crate::wal::{Damage, WalError, WalPosition, WalScan, WalStart, places};

const SEED: u64 = 5;
const BLOCK: usize = 4096;

/// A log of three files at rest, and what is in it.
struct AtRest {
    image: SimImage,
    sent: Vec<(WalPosition, Frame)>,
}

impl AtRest {
    /// Each unit is a round of its own. A log that rests `sealed` has its last frames below a
    /// durable mark.
    async fn new(sealed: bool) -> Self {
        let disk = SimDisk::with_config(SEED, SimConfig::instant());
        let opened = open(&disk.backend(), &tiny_config(), WalStart::Beginning, SEED).await;
        let (wal, _) = opened.unwrap();
        let mut sent = Vec::new();
        for index in 0..12 {
            let len = [200, 9_000, 4_500][usize::try_from(index % 3).unwrap()];
            let unit = vec![data(index % 2, index, len), vote(3, index)];
            let position = submit(&wal, unit.clone()).await.unwrap().unwrap();
            sent.extend(unit.into_iter().map(|frame| (position, frame)));
        }
        if sealed {
            tokio::time::sleep(Duration::from_millis(60)).await;
            assert_eq!(wal.status().writing.seals, 1);
        }
        assert_eq!(wal.status().current_file, 3);
        disk.kill();
        let image = disk.fork();
        Self { image, sent }
    }

    async fn recover(&self, damage: impl FnOnce(&SimDisk)) -> Result<WalScan, WalError> {
        let disk = self.image.kill(SEED);
        damage(&disk);
        let opened = open(&disk.backend(), &tiny_config(), WalStart::Beginning, SEED).await;
        disk.kill();
        opened.map(|(_, scan)| scan)
    }

    fn file(&self, slot: u32) -> (PathBuf, Vec<u8>) {
        let path = tiny_config().dir.join(format!("{slot:02}.wal"));
        let bytes = self.image.read(&path).unwrap();
        (path, bytes)
    }

    /// Where the rounds of a slot file begin.
    fn rounds(&self, slot: u32) -> Vec<u64> {
        let (_, bytes) = self.file(slot);
        let blocks = bytes.chunks(BLOCK).enumerate();
        let rounds = blocks.filter(|(_, block)| block.starts_with(b"TLR1"));
        rounds.map(|(n, _)| (n * BLOCK) as u64).collect()
    }
}

fn damage_of(result: Result<WalScan, WalError>) -> Damage {
    match result {
        Err(WalError::Corrupt { damage, .. }) => damage,
        other => panic!("not found corrupt: {other:?}"),
    }
}

/// The frames as they leave: the prefix of a batch is made anew and not taken from the disk.
fn written(frames: &[(WalPosition, Frame)]) -> Vec<u8> {
    let mut slices = Vec::new();
    for (_, frame) in frames {
        frame.push_slices(&mut slices);
    }
    slices.concat()
}

#[test]
fn a_flip_anywhere_below_a_durable_mark_is_corruption_or_harmless() {
    block_on(async {
        let log = AtRest::new(true).await;
        let (mut corrupt, mut harmless) = (0, 0);
        for slot in 0..3 {
            let (path, bytes) = log.file(slot);
            // Every third byte of a block's first 160, where headers are, and some of the rest.
            let telling = |at: &usize| match at % BLOCK {
                place if place < 160 => at.is_multiple_of(3),
                _ => at.is_multiple_of(503),
            };
            for at in (0..bytes.len()).filter(telling) {
                let bit = u8::try_from(at % 8).unwrap();
                let recovered = log.recover(|disk| disk.flip_bit(&path, at as u64, bit));
                match recovered.await {
                    Err(WalError::Corrupt { .. }) => corrupt += 1,
                    Ok(scan) => {
                        assert_eq!(written(&scan.frames), written(&log.sent), "{slot} {at}");
                        harmless += 1;
                    }
                    Err(other) => panic!("{slot} {at}: {other}"),
                }
            }
        }
        // Harmless: padding, unused room, the seal itself.
        assert!(corrupt > 500 && harmless > 100, "{corrupt} {harmless}");
    });
}

#[test]
fn a_flip_in_the_last_round_beyond_every_mark_is_cut() {
    block_on(async {
        let log = AtRest::new(false).await;
        let (path, _) = log.file(2);
        let last = *log.rounds(2).last().unwrap();
        for at in [0, 33, 63, 64 + 5, 64 + 80 + 50, 64 + 80 + 4_000] {
            let scan = log.recover(|disk| disk.flip_bit(&path, last + at, 3)).await;
            let scan = scan.unwrap();
            let kept = log.sent.len() - 2;
            assert_eq!(scan.frames, log.sent[..kept], "{at}");
            // A round whose header is gone leaves no trace.
            let torn = scan.summary.torn_tail.map(|torn| torn.pos);
            assert!(torn == Some(last) || (at < 64 && torn.is_none()), "{at}");
        }
    });
}

#[test]
fn rounds_have_their_places_and_say_what_was_durable_before_them() {
    block_on(async {
        let log = AtRest::new(false).await;
        let mut round = 1;
        for slot in 0..3 {
            let found = places(&log.file(slot).1).unwrap();
            assert_eq!(
                (found.file, found.first_round),
                (u64::from(slot) + 1, round)
            );
            let starts = found.rounds.iter().map(|place| place.bytes.start as u64);
            assert_eq!(starts.collect::<Vec<_>>(), log.rounds(slot));
            for place in &found.rounds {
                assert_eq!((place.round, place.durable), (round, round - 1));
                round += 1;
            }
        }
        assert_eq!(places(&[0; 2 * BLOCK]), None, "no file of the log yet");
    });
}

#[test]
fn a_missing_file_is_corruption() {
    block_on(async {
        let log = AtRest::new(true).await;
        for slot in 0..2 {
            let (path, _) = log.file(slot);
            let damage = damage_of(log.recover(|disk| disk.remove(&path)).await);
            assert_eq!(damage, Damage::FileMissing);
        }
    });
}

#[test]
fn an_unreadable_header_over_durable_rounds_is_corruption() {
    block_on(async {
        let log = AtRest::new(true).await;
        for slot in 0..3 {
            let (path, _) = log.file(slot);
            let damage = damage_of(log.recover(|disk| disk.flip_bit(&path, 20, 0)).await);
            assert_eq!(damage, Damage::FileMissing, "{slot}");
        }
        // A header that a broken disk never wrote, over zeros or over an older one.
        let (path, mut bytes) = log.file(2);
        bytes[..BLOCK].fill(0);
        let damage = damage_of(log.recover(|disk| disk.write(&path, &bytes)).await);
        assert_eq!(damage, Damage::FileMissing);
    });
}

#[test]
fn a_cut_file_is_corruption() {
    block_on(async {
        let log = AtRest::new(true).await;
        let (path, bytes) = log.file(2);
        let half = &bytes[..bytes.len() / 2];
        let damage = damage_of(log.recover(|disk| disk.write(&path, half)).await);
        assert_eq!(damage, Damage::FileShort);
    });
}

#[test]
fn two_files_of_one_number_are_corruption() {
    block_on(async {
        let log = AtRest::new(true).await;
        let (_, bytes) = log.file(1);
        let (copy, _) = log.file(3);
        let damage = damage_of(log.recover(|disk| disk.write(&copy, &bytes)).await);
        assert_eq!(damage, Damage::FileTwice);
    });
}

#[test]
fn a_round_taken_out_of_the_middle_is_corruption() {
    block_on(async {
        let log = AtRest::new(true).await;
        let (path, mut bytes) = log.file(2);
        let rounds = log.rounds(2);
        let [first, second] = [rounds[0], rounds[1]].map(|at| usize::try_from(at).unwrap());
        bytes[first..second].fill(0);
        let damage = damage_of(log.recover(|disk| disk.write(&path, &bytes)).await);
        assert!(matches!(damage, Damage::RoundsMissing { .. }));
    });
}

#[test]
fn a_log_without_its_checkpoint_is_refused_and_not_begun_anew() {
    block_on(async {
        let log = AtRest::new(true).await;
        let (path, _) = log.file(0);
        let damage = damage_of(log.recover(|disk| disk.remove(&path)).await);
        assert_eq!(damage, Damage::FileMissing);
        // And a checkpoint that knows more than the log does.
        let disk = log.image.kill(SEED);
        let start = WalStart::At(WalPosition { file: 3, round: 90 });
        let opened = open(&disk.backend(), &tiny_config(), start, SEED).await;
        let damage = damage_of(opened.map(|(_, scan)| scan));
        assert!(matches!(damage, Damage::RoundsMissing { durable: 89, .. }));
    });
}

#[test]
fn a_newer_format_is_refused_by_its_number() {
    block_on(async {
        let log = AtRest::new(true).await;
        let (path, mut bytes) = log.file(2);
        bytes[4] = 2;
        let crc = crc32c::crc32c(&bytes[..60]);
        bytes[60..64].copy_from_slice(&crc.to_le_bytes());
        let refused = log.recover(|disk| disk.write(&path, &bytes)).await;
        assert!(matches!(refused, Err(WalError::Version(2))));
    });
}

#[test]
fn a_disk_that_errs_once_costs_nothing() {
    block_on(async {
        let log = AtRest::new(true).await;
        for slot in 0..3 {
            let (path, _) = log.file(slot);
            let scan = log.recover(|disk| disk.misdirect_read(&path)).await;
            assert_eq!(scan.unwrap().frames, log.sent, "{slot}");
        }
    });
}

#[test]
fn an_unreadable_sector_is_an_error_and_neither_a_tail_nor_corruption() {
    block_on(async {
        let log = AtRest::new(true).await;
        let (path, _) = log.file(1);
        let refused = log
            .recover(|disk| disk.fail_reads(&path, 9_000..9_100))
            .await;
        let Err(WalError::Io { path: named, .. }) = refused else {
            panic!("not an I/O error: {refused:?}");
        };
        assert_eq!(named, path);
    });
}

#[test]
fn other_files_in_the_folder_are_left_alone() {
    block_on(async {
        let log = AtRest::new(true).await;
        let names = ["7.wal", "007.wal", "x.wal", "00.wal.damaged", "notes"];
        let disk = log.image.kill(SEED);
        let paths = names.map(|name| tiny_config().dir.join(name));
        for path in &paths {
            disk.write(path, b"mine");
        }
        let opened = open(&disk.backend(), &tiny_config(), WalStart::Beginning, SEED).await;
        let (wal, scan) = opened.unwrap();
        assert_eq!(scan.frames, log.sent);
        wal.close().await;
        for path in &paths {
            assert_eq!(disk.read(path).as_deref(), Some(&b"mine"[..]));
        }
        assert!(disk.read(Path::new("/node/wal/08.wal")).is_none());
    });
}
