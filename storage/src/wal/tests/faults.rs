//! A disk that fails while the log writes: the log ends, everyone is told, nothing is retried.

use std::path::Path;
use std::time::Duration;

use super::model::Model;
use super::support::{data, open, submit, tiny_config};
use crate::env::Entropy;
use crate::fatal::FatalSink;
use crate::io::sim::{PowerLoss, SimConfig, SimDisk, SyncFailure, block_on};
use crate::wal::{Room, Wal, WalError, WalStart};

async fn opened(disk: &SimDisk, fatal: &FatalSink) -> Wal {
    let backend = disk.backend();
    let opened = Wal::open(
        &backend,
        tiny_config(),
        Entropy::from_seed(1),
        WalStart::Beginning,
        fatal.clone(),
    );
    opened.await.unwrap().0
}

/// Lets simulated time pass until the log's own jobs have come to rest.
async fn idle_until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn every_waiter_is_told(fail: impl FnOnce(&SimDisk)) {
    let disk = SimDisk::with_config(1, SimConfig::instant());
    let fatal = FatalSink::new();
    let wal = opened(&disk, &fatal).await;
    submit(&wal, vec![data(1, 1, 100)]).await.unwrap().unwrap();
    let ready = || wal.status().free_files == 3;
    idle_until(ready).await;
    fail(&disk);
    let waiters: Vec<_> = (2..8)
        .map(|index| submit(&wal, vec![data(1, index, 9_000)]))
        .collect();
    for waiter in waiters {
        let told = waiter.await.unwrap();
        assert!(matches!(told, Err(WalError::Fatal(_))), "{told:?}");
    }
    assert!(fatal.watch().borrow().is_some());
    let operations = disk.operations();
    let late = submit(&wal, vec![data(1, 9, 100)]).await.unwrap();
    assert!(matches!(late, Err(WalError::Fatal(_))));
    assert_eq!(disk.operations(), operations, "nothing is retried");
    assert_eq!(wal.queued_bytes(), 0);
    wal.close().await;
}

#[test]
fn a_failed_sync_ends_the_log_and_every_waiter_is_told() {
    for failure in [SyncFailure::Drop, SyncFailure::Ghost] {
        block_on(every_waiter_is_told(|disk| disk.fail_sync(None, failure)));
    }
}

#[test]
fn a_failed_write_ends_the_log_and_every_waiter_is_told() {
    block_on(every_waiter_is_told(|disk| disk.fail_write(None)));
}

/// After a sync that failed the next process may see pages that are on no disk, and its own
/// sync of them succeeds.
#[test]
fn what_is_recovered_after_a_failed_sync_survives_the_next_power_loss() {
    for seed in 0..50 {
        block_on(async {
            let disk = SimDisk::with_config(seed, SimConfig::instant());
            let mut model = Model::new();
            let wal = opened(&disk, &FatalSink::new()).await;
            for index in 0..seed % 9 {
                model.submit(&wal, vec![data(1, index, 3_000)], Room::Common);
                model.all_acknowledged().await;
            }
            idle_until(|| wal.status().free_files == 3).await;
            disk.fail_sync(None, SyncFailure::Ghost);
            let failed = vec![data(1, 100, 9_000), data(2, 100, 300)];
            model.submit_failing(&wal, failed).await;
            let safe = model.safe();
            let disk = disk.reopen();
            let (_, scan) = open(&disk.backend(), &tiny_config(), model.start(), seed)
                .await
                .unwrap();
            model.recovered(&scan.frames, safe);
            disk.crash(PowerLoss::Lose);
            let disk = disk.reopen();
            let (_, scan) = open(&disk.backend(), &tiny_config(), model.start(), seed)
                .await
                .unwrap();
            model.recovered(&scan.frames, model.safe());
        });
    }
}

#[test]
fn a_file_that_cannot_be_made_for_another_reason_than_room_ends_the_node() {
    block_on(async {
        let disk = SimDisk::with_config(1, SimConfig::instant());
        let fatal = FatalSink::new();
        disk.fail_sync(Some(Path::new("/node/wal/00.wal")), SyncFailure::Drop);
        let wal = opened(&disk, &fatal).await;
        let told = submit(&wal, vec![data(1, 1, 100)]).await.unwrap();
        assert!(matches!(told, Err(WalError::Fatal(_))));
        assert!(fatal.watch().borrow().is_some());
        wal.close().await;
    });
}

#[test]
fn frames_that_cannot_be_written_are_refused_alone() {
    block_on(async {
        let disk = SimDisk::with_config(1, SimConfig::instant());
        let wal = opened(&disk, &FatalSink::new()).await;
        let limit = tiny_config().max_frame_bytes();
        let refused = submit(&wal, vec![data(1, 1, limit)]).await.unwrap();
        assert!(matches!(refused, Err(WalError::TooLarge { .. })));
        let mut short = data(1, 1, 100);
        short.records = short.records.slice(..90);
        let refused = submit(&wal, vec![short]).await.unwrap();
        assert!(matches!(refused, Err(WalError::Malformed)));
        // The largest frame is larger than a round is otherwise.
        let largest = data(1, 1, limit - crate::frame::HEADER_LEN);
        submit(&wal, vec![largest.clone()]).await.unwrap().unwrap();
        wal.close().await;
        let (_, scan) = open(&disk.backend(), &tiny_config(), WalStart::Beginning, 2)
            .await
            .unwrap();
        assert_eq!(scan.frames[0].1, largest);
    });
}
