//! Feeding the cluster, and noting what it acknowledged.

use std::sync::Arc;

use anyhow::Context;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use trilog_client::{Delivery, Producer, Record};
use trilog_storage::env::{Clock, SystemClock};

use super::ledger::{Files, Hash, Places, record_hash};
use super::source::{SourceFile, lines};
use crate::cli::progress::Progress;

/// Records sent and not yet acknowledged; the producer bounds their bytes.
const PENDING: usize = 64 << 10;

/// The account of one run, shared by who feeds and who directs.
#[derive(Debug, Default)]
pub(super) struct Account {
    pub(super) places: Places,
    /// When the leader of this partition was killed, until its successor acknowledges.
    outage: Option<Outage>,
    pub(super) failover: Option<std::time::Duration>,
}

#[derive(Clone, Copy, Debug)]
struct Outage {
    partition: u32,
    since: Instant,
    /// The same moment on the clock that append times are read from.
    wall_nanos: u64,
}

impl Account {
    /// From now on the partition has no leader.
    pub(super) fn outage(&mut self, partition: u32) {
        self.outage = Some(Outage {
            partition,
            since: Instant::now(),
            wall_nanos: SystemClock.now().nanos(),
        });
    }

    /// The partition with the most records.
    pub(super) fn busiest(&self) -> Option<u32> {
        let ends = self.places.ends();
        let busiest = ends.into_iter().max_by_key(|(_, end)| *end);
        busiest.map(|(partition, _)| partition)
    }

    /// What the dead leader appended may still be acknowledged; what was appended after its death
    /// is its successor's.
    fn note(&mut self, partition: u32, append_time: u64) {
        if let Some(outage) = self.outage
            && outage.partition == partition
            && append_time > outage.wall_nanos
        {
            self.failover = Some(outage.since.elapsed());
            self.outage = None;
        }
    }
}

/// What a feed needs, and where it tells how far it is.
#[derive(Debug)]
pub(super) struct Feed {
    pub(super) topic: String,
    pub(super) producer: Producer,
    pub(super) files: Vec<SourceFile>,
    /// Stops behind the file in which this many are reached.
    pub(super) records: u64,
    pub(super) account: Arc<Mutex<Account>>,
    pub(super) acknowledged: watch::Sender<u64>,
    pub(super) progress: Arc<Progress>,
}

impl Feed {
    /// Sends every line and waits for its acknowledgement; returns what was sent.
    pub(super) async fn run(self) -> anyhow::Result<Files> {
        let (sent, sending) = mpsc::channel(PENDING);
        let collect = collect(
            sending,
            Arc::clone(&self.account),
            self.acknowledged.clone(),
            Arc::clone(&self.progress),
        );
        let (files, ()) = tokio::try_join!(self.send(sent), collect)?;
        Ok(files)
    }

    async fn send(&self, sent: mpsc::Sender<(Hash, Delivery)>) -> anyhow::Result<Files> {
        let mut files = Files::default();
        for file in &self.files {
            if files.records >= self.records {
                break;
            }
            let read = file.clone();
            let bytes = tokio::task::spawn_blocking(move || read.read()).await?;
            let Some(bytes) = bytes.with_context(|| format!("reading {}", file.name))? else {
                continue;
            };
            let key = file.name.as_bytes();
            for line in lines(&bytes) {
                files.add(key, line);
                let record = Record::new(line.to_vec()).with_key(key.to_vec());
                let delivery = self.producer.send(&self.topic, record).await?;
                // The collector ends early only with an error, which is then the outcome.
                if sent.send((record_hash(key, line), delivery)).await.is_err() {
                    return Ok(files);
                }
            }
        }
        Ok(files)
    }
}

/// Waits for each record in turn. Those of one partition come in the order of their offsets.
async fn collect(
    mut sending: mpsc::Receiver<(Hash, Delivery)>,
    account: Arc<Mutex<Account>>,
    acknowledged: watch::Sender<u64>,
    progress: Arc<Progress>,
) -> anyhow::Result<()> {
    let mut count = 0;
    while let Some((hash, delivery)) = sending.recv().await {
        let place = delivery.await.context("a record was not acknowledged")?;
        let (partition, nanos) = (place.partition, place.append_time.nanos());
        {
            let mut account = account.lock();
            account.places.add(partition, place.offset, nanos, hash)?;
            account.note(partition, nanos);
        }
        count += 1;
        progress.add(1);
        acknowledged.send_replace(count);
    }
    Ok(())
}
