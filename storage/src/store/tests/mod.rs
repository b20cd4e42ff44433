//! A store on a simulated disk, from outside.

mod basics;
mod compaction;
mod copies;
mod crashes;
mod damage;
mod driver;
mod faults;
mod fixtures;
mod model;
mod quarantine;
mod room;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::timeout;
use trilog_model::{EntryId, GroupId, LogIndex, ReplicaId, Timestamp};

use super::{OpenReport, Store};
use crate::env::{Clock, Entropy};
use crate::frame::{Frame, FrameKind};
use crate::io::Backend;
use crate::io::sim::SimDisk;
use crate::log::{Appending, GroupLog, StoreConfig, StoreError};

pub(super) const GROUP: GroupId = GroupId(7);
pub(super) const REPLICA: ReplicaId = ReplicaId(70);

/// A clock that moves by a microsecond each time it is asked.
#[derive(Debug, Default)]
pub(super) struct StepClock(Mutex<u64>);

impl Clock for StepClock {
    fn now(&self) -> Timestamp {
        let mut now = self.0.lock();
        *now += 1_000;
        Timestamp(1_000_000_000 + *now)
    }
}

/// Sizes so small that everything happens soon.
pub(super) fn small() -> StoreConfig {
    StoreConfig {
        wal_file_bytes: 64 * 1024,
        wal_files: 6,
        wal_round_bytes: 16 * 1024,
        scrub_bytes_per_second: 0,
        pinned_bytes: 1 << 20,
        cache_bytes: 8 * 1024,
        segment_bytes: 16 * 1024,
        fill_bytes: 2 * 1024,
        fill_age: Duration::from_millis(200),
        fill_workers: 2,
        read_workers: 2,
        ..StoreConfig::new(PathBuf::from("/data"))
    }
}

pub(super) async fn open(disk: &SimDisk, config: StoreConfig) -> (Store, OpenReport) {
    try_open(disk.backend(), config).await.unwrap()
}

pub(super) async fn try_open(
    backend: Backend,
    config: StoreConfig,
) -> Result<(Store, OpenReport), StoreError> {
    let clock = Arc::new(StepClock::default());
    Box::pin(Store::open(config, backend, clock, Entropy::from_seed(1))).await
}

/// A v2 batch of `count` records that nobody decodes: the fields that storage looks at, then
/// filling derived from `tag`. Its greatest time is `millis`.
pub(super) fn batch(tag: u64, millis: i64, len: usize) -> Bytes {
    let mut batch = BytesMut::with_capacity(len);
    batch.put_bytes(0, 35);
    batch.put_i64(millis);
    while batch.len() < len.max(61) {
        batch.put_u64(tag.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ batch.len() as u64);
    }
    batch.freeze()
}

/// A data entry with `count` records of `len` bytes in all.
pub(super) fn entry(id: EntryId, count: u32, len: usize) -> Frame {
    let millis = i64::try_from(id.index.get() * 10).unwrap();
    let records = batch(id.index.get() ^ (id.term.get() << 32), millis, len);
    let mut frame = Frame::bare(FrameKind::Data, GROUP, id, Bytes::new());
    frame.header.record_count = count;
    frame.header.records_len = u32::try_from(records.len()).unwrap();
    frame.header.records_crc = crc32c::crc32c(&records[21..]);
    frame.records = records;
    frame
}

/// Entries `from..to` of term `term`, two records of `len` bytes each.
pub(super) fn entries(term: u64, indexes: std::ops::Range<u64>, len: usize) -> Vec<Frame> {
    indexes
        .map(|index| entry(EntryId::new(term, index), 2, len))
        .collect()
}

/// Appends as a leader and waits until it is durable.
pub(super) async fn append(log: &GroupLog, frames: Vec<Frame>) {
    let (done, wait) = oneshot::channel();
    let done = Box::new(move |result| {
        let _ = done.send(result);
    });
    log.append(frames, Appending::Assign, done).unwrap();
    wait.await.unwrap().unwrap();
}

/// Every entry of the log from `from` on, read in pieces of `max_bytes`.
pub(super) async fn read_all(log: &GroupLog, from: u64, max_bytes: usize) -> Vec<Frame> {
    let mut all: Vec<Frame> = Vec::new();
    let mut next = LogIndex(from);
    loop {
        let frames = log.read(next, LogIndex(u64::MAX), max_bytes).await.unwrap();
        let Some(last) = frames.last() else {
            return all;
        };
        next = last.header.next_index();
        all.extend(frames);
    }
}

/// Waits for a condition, with a deadline.
pub(super) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let poll = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let met = timeout(Duration::from_mins(1), poll).await;
    assert!(met.is_ok(), "{what}");
}

/// The frame's payload as readers see it.
pub(super) fn image(frame: &Frame) -> Vec<u8> {
    let mut slices = Vec::new();
    frame.push_slices(&mut slices);
    slices.concat()
}
