//! A disk that fails for good: the store ends, nothing is acknowledged any more, and what was is
//! found by the next process, and by the one after a power loss.

use std::path::Path;

use trilog_model::Term;

use super::*;
use crate::io::sim::{PowerLoss, SimConfig, SyncFailure, block_on};
use crate::log::Vote;

/// What a process promised before it ended.
#[derive(Clone, Debug, Default)]
struct Promised {
    /// Entries before this index are durable.
    entries: u64,
    vote: Option<Vote>,
}

/// Appends, votes and makes checkpoints until the store fails or the script ends.
async fn live(store: &Store, promised: &Mutex<Promised>) -> Result<(), StoreError> {
    let log = store.create_group(GROUP, REPLICA).await?;
    for n in 0..30 {
        let from = n * 3;
        let (done, wait) = oneshot::channel();
        let done = Box::new(move |result| drop(done.send(result)));
        let frames = entries(1, from..from + 3, 600);
        if let Err(error) = log.append(frames, Appending::Assign, done) {
            panic!("an append is refused for another reason than the failure: {error}");
        }
        wait.await.unwrap_or(Err(StoreError::Closed))?;
        promised.lock().entries = from + 3;
        log.commit(LogIndex(from + 2));
        if n % 7 == 3 {
            let vote = Vote {
                term: Term(n),
                node: REPLICA,
                committed: false,
            };
            log.save_vote(vote).await?;
            promised.lock().vote = Some(vote);
            store.checkpoint().await?;
        }
        // Filling has its turn.
        tokio::time::sleep(Duration::from_millis(20)).await;
        if let Some(fatal) = store.fatal().borrow().clone() {
            return Err(StoreError::Fatal(fatal));
        }
    }
    Ok(())
}

/// Nothing is taken any more, and nothing is written.
async fn is_over(store: &Store, disk: &SimDisk) {
    let ended = store.fatal().borrow().is_some();
    assert!(ended, "the failure is not reported");
    if let Some(log) = store.group(GROUP) {
        let next = log.state().last.map_or(0, |last| last.index.get() + 1);
        let refused = log.append(
            entries(1, next..next + 1, 100),
            Appending::Assign,
            Box::new(|result| assert!(result.is_err(), "acknowledged after a failure")),
        );
        assert!(refused.is_err());
        let vote = Vote {
            term: Term(99),
            node: REPLICA,
            committed: false,
        };
        assert!(log.save_vote(vote).await.is_err());
    }
    assert!(store.checkpoint().await.is_err());
    // Filling may have been under way; then all is still.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let operations = disk.operations();
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(disk.operations(), operations, "something is tried again");
}

async fn keeps(disk: &SimDisk, promised: &Promised) -> Store {
    let (store, report) = open(disk, small()).await;
    assert!(!report.step_aside, "{report:?}");
    if promised.entries > 0 {
        let log = store.group(GROUP).unwrap();
        let found = read_all(&log, 0, 4_000).await;
        assert!(found.len() as u64 >= promised.entries, "{promised:?}");
        for (index, frame) in (0..).zip(&found) {
            let sent = entry(EntryId::new(1, index), 2, 600);
            assert_eq!(frame.header.id(), sent.header.id());
            assert_eq!(frame.records[21..], sent.records[21..]);
        }
        let vote = log.state().vote;
        assert!(vote.map(|vote| vote.term) >= promised.vote.map(|vote| vote.term));
    }
    store
}

/// Has the first sync after the operation numbered `at` fail; whether the store came to it.
async fn fail_at(at: u64, failure: SyncFailure, seed: u64) -> bool {
    let disk = SimDisk::with_config(seed, SimConfig::instant());
    let (store, _) = open(&disk, small()).await;
    let mut planned = false;
    disk.observe(move |disk| {
        if disk.operations() >= at && !planned {
            planned = true;
            disk.fail_sync(None, failure);
        }
    });
    let promised = Mutex::new(Promised::default());
    let lived = live(&store, &promised).await;
    let promised = promised.into_inner();
    if lived.is_ok() {
        disk.kill();
        return false;
    }
    is_over(&store, &disk).await;
    drop(store);
    // The next process sees what the kernel kept and may rely on none of it.
    let disk = disk.reopen();
    let store = keeps(&disk, &promised).await;
    store.checkpoint().await.unwrap();
    drop(store);
    disk.crash(PowerLoss::Lose);
    let store = keeps(&disk.reopen(), &promised).await;
    store.close().await.unwrap();
    true
}

#[test]
fn a_failed_sync_ends_the_store_and_loses_nothing_that_was_acknowledged() {
    for failure in [SyncFailure::Drop, SyncFailure::Ghost] {
        let mut failed = 0;
        // Past the opening; each third operation, as most are followed by the same sync.
        for at in (20..).step_by(3) {
            if !block_on(fail_at(at, failure, at)) {
                break;
            }
            failed += 1;
        }
        assert!(failed > 30, "{failed}");
    }
}

#[test]
fn a_failed_write_ends_the_store_and_loses_nothing_that_was_acknowledged() {
    for (at, path) in [
        "wal/00.wal",
        "wal/01.wal",
        "p/7@0.70/00000000000000000000.seg",
    ]
    .iter()
    .enumerate()
    {
        block_on(async {
            let disk = SimDisk::with_config(at as u64, SimConfig::instant());
            let (store, _) = open(&disk, small()).await;
            tokio::time::sleep(Duration::from_secs(1)).await;
            disk.fail_write(Some(&Path::new("/data").join(path)));
            let promised = Mutex::new(Promised::default());
            let lived = live(&store, &promised).await;
            assert!(lived.is_err(), "{path}");
            is_over(&store, &disk).await;
            drop(store);
            let promised = promised.into_inner();
            let disk = disk.reopen();
            drop(keeps(&disk, &promised).await);
            disk.crash(PowerLoss::Lose);
            keeps(&disk.reopen(), &promised).await;
        });
    }
}
