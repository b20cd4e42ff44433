//! Logs as older builds left them, kept for ever: every build must read them.

use crate::frame::{Frame, FrameKind};
use crate::io::sim::{SimConfig, SimDisk, block_on};
use crate::wal::{WalConfig, WalPosition, WalStart};

use super::support::{data, open, submit, vote};

/// Two files of format 1: the first full, the second with two rounds and a seal.
const V1: [&[u8]; 2] = [
    include_bytes!("../../../tests/fixtures/wal/v1/00.wal"),
    include_bytes!("../../../tests/fixtures/wal/v1/01.wal"),
];

fn config() -> WalConfig {
    WalConfig {
        dir: "/wal".into(),
        file_bytes: 20 << 10,
        files: 4,
        max_round_bytes: 8 << 10,
    }
}

/// The units in the fixture, one round each.
fn units() -> Vec<Vec<Frame>> {
    vec![
        vec![Frame {
            command: b"replica".as_slice().into(),
            ..data(2, 0, 0)
        }]
        .into_iter()
        .map(|mut frame| {
            frame.header.kind = FrameKind::GroupCreated;
            frame.header.command_len = 7;
            frame.header.command_crc = crc32c::crc32c(&frame.command);
            frame
        })
        .collect(),
        vec![data(2, 1, 300), data(3, 1, 21), vote(2, 4)],
        vec![data(2, 2, 5_000)],
        vec![data(3, 2, 0)],
    ]
}

/// What the fixture was made with; the signatures in it are of no account.
async fn written_today() -> Vec<Vec<u8>> {
    let disk = SimDisk::with_config(1, SimConfig::instant());
    let opened = open(&disk.backend(), &config(), WalStart::Beginning, 1).await;
    let (wal, _) = opened.unwrap();
    for unit in units() {
        submit(&wal, unit).await.unwrap().unwrap();
    }
    wal.close().await;
    let paths = disk.files().into_iter().map(|(path, _)| path);
    paths.map(|path| disk.read(&path).unwrap()).collect()
}

#[test]
fn a_log_of_format_1_is_read() {
    block_on(async {
        let disk = SimDisk::with_config(1, SimConfig::instant());
        for (slot, bytes) in V1.iter().enumerate() {
            disk.write(&config().dir.join(format!("{slot:02}.wal")), bytes);
        }
        let opened = open(&disk.backend(), &config(), WalStart::Beginning, 1).await;
        let (wal, scan) = opened.unwrap();
        let frames = scan.frames.iter().map(|(_, frame)| frame.clone());
        assert_eq!(frames.collect::<Vec<_>>(), units().concat());
        let places = scan.frames.iter().map(|(p, _)| (p.file, p.round));
        let expected = [(1, 1), (1, 2), (1, 2), (1, 2), (2, 3), (2, 4)];
        assert_eq!(places.collect::<Vec<_>>(), expected);
        assert_eq!((scan.summary.torn_tail, scan.summary.rounds), (None, 5));
        // And written on.
        let position = submit(&wal, vec![vote(2, 5)]).await.unwrap().unwrap();
        assert_eq!(position, WalPosition { file: 3, round: 6 });
        wal.close().await;
    });
}

/// `TRILOG_BLESS=1` writes the fixture of the present format anew.
#[test]
fn the_fixture_of_the_present_format_has_the_length_that_is_written_today() {
    let today = block_on(written_today());
    if std::env::var_os("TRILOG_BLESS").is_some() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/wal/v1");
        std::fs::create_dir_all(folder).unwrap();
        for (slot, bytes) in today.iter().take(2).enumerate() {
            std::fs::write(format!("{folder}/{slot:02}.wal"), bytes).unwrap();
        }
        return;
    }
    for (today, kept) in today.iter().zip(V1) {
        assert_eq!(today.len(), kept.len());
        // All but the signatures, and the checksums over them, is a function of the frames.
        for (at, (now, then)) in today.iter().zip(kept).enumerate() {
            let in_block = at % 4096;
            let free = (16..24).contains(&in_block)
                || (40..44).contains(&in_block)
                || (60..64).contains(&in_block);
            assert!(now == then || free, "byte {at}");
        }
    }
}
