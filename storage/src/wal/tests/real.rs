//! The log on real files, with each back-end that this machine has.

use super::support::{data, small_config, submit};
use crate::env::Entropy;
use crate::fatal::FatalSink;
use crate::io::{Backend, Choice};
use crate::wal::{Wal, WalConfig, WalPosition, WalScan, WalStart};

async fn open(backend: &Backend, config: &WalConfig, start: WalStart) -> (Wal, WalScan) {
    let opened = Wal::open(
        backend,
        config.clone(),
        Entropy::from_os(),
        start,
        FatalSink::new(),
    );
    opened.await.unwrap()
}

async fn frames_survive_reopening_and_recycling(backend: Backend) {
    let dir = tempfile::tempdir().unwrap();
    let config = small_config(&dir.path().join("wal"));
    let (wal, scan) = open(&backend, &config, WalStart::Beginning).await;
    assert!(scan.frames.is_empty());
    let mut sent = Vec::new();
    for index in 0..300_u64 {
        let len = [0, 100, 5_000, 20_000][usize::try_from(index % 4).unwrap()];
        let frame = data(index % 3, index, len);
        let position = submit(&wal, vec![frame.clone()]).await.unwrap().unwrap();
        wal.release(position.file.saturating_sub(1));
        sent.push((position, frame));
    }
    let status = wal.status();
    assert!(status.oldest_file > 8, "every file was used more than once");
    let writing = status.writing;
    assert_eq!(writing.payload_bytes_large_copied, 0);
    assert!(writing.payload_bytes_shared > writing.payload_bytes_gathered);
    wal.close().await;

    let start = sent.iter().find(|(p, _)| p.file == status.oldest_file);
    let start: WalPosition = start.unwrap().0;
    let expected = sent.iter().filter(|(p, _)| *p >= start);
    let expected: Vec<_> = expected.cloned().collect();
    for _ in 0..2 {
        let (wal, scan) = open(&backend, &config, WalStart::At(start)).await;
        assert_eq!(scan.frames, expected);
        assert_eq!(scan.summary.torn_tail, None);
        wal.close().await;
    }
}

#[tokio::test]
async fn frames_survive_reopening_and_recycling_on_threads() {
    frames_survive_reopening_and_recycling(Backend::Threads).await;
}

#[tokio::test]
async fn frames_survive_reopening_and_recycling_on_uring() {
    let dir = tempfile::tempdir().unwrap();
    match Backend::probe(Choice::Uring, dir.path()) {
        Ok(probe) => frames_survive_reopening_and_recycling(probe.backend).await,
        Err(error) => eprintln!("SKIPPED: {error}"),
    }
}
