//! The log on real files, with each back-end that this machine has.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::support::{data, small_config, submit};
use crate::env::Entropy;
use crate::fatal::FatalSink;
use crate::io::{Backend, Choice};
use crate::wal::{Room, Wal, WalConfig, WalError, WalPosition, WalScan, WalStart};

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

/// Rounds of many units are told by another thread than rounds of few, and telling takes its time.
#[tokio::test]
async fn units_are_told_in_the_order_they_were_submitted_in_whoever_tells_them() {
    let dir = tempfile::tempdir().unwrap();
    let config = small_config(&dir.path().join("wal"));
    let (wal, _) = open(&Backend::Threads, &config, WalStart::Beginning).await;
    let told = Arc::<Mutex<Vec<u64>>>::default();
    let mut next = 0;
    for burst in [100, 1, 3, 40, 1, 200, 2, 1].repeat(20) {
        let mut last = None;
        for _ in 0..burst {
            let (told, number) = (Arc::clone(&told), next);
            let (done, durable) = oneshot::channel();
            let tell = move |result: Result<WalPosition, WalError>| {
                for _ in 0..2_000 {
                    std::hint::spin_loop();
                }
                told.lock().push(number);
                drop(done.send(result));
            };
            wal.submit(vec![data(1, number, 100)], Room::Common, Box::new(tell));
            next += 1;
            last = Some(durable);
        }
        if burst > 100 {
            let position = last.unwrap().await.unwrap().unwrap();
            wal.release(position.file);
        } else {
            // A round of its own for the next burst, while this one is still being told.
            tokio::task::yield_now().await;
        }
    }
    wal.close().await;
    assert_eq!(*told.lock(), (0..next).collect::<Vec<_>>());
}
