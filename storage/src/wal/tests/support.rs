//! What the tests of the log have in common.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use rand::Rng;
use rand::rngs::SmallRng;
use tokio::sync::oneshot;
use trilog_model::{EntryId, GroupId, Offset};

use crate::env::Entropy;
use crate::fatal::FatalSink;
use crate::frame::{BATCH_PREFIX_LEN, Frame, FrameKind};
use crate::io::Backend;
use crate::wal::{Room, Wal, WalConfig, WalError, WalPosition, WalScan, WalStart};

/// A data frame whose record batch has `len` bytes that depend on group and index.
pub(super) fn data(group: u64, index: u64, len: usize) -> Frame {
    let mut frame = Frame::bare(
        FrameKind::Data,
        GroupId(group),
        EntryId::new(1, index),
        Bytes::new(),
    );
    if len >= BATCH_PREFIX_LEN {
        let byte = u8::try_from((group * 31 + index) % 251).unwrap();
        let mut records = vec![byte; len];
        frame.header.base_offset = Offset(index);
        frame.header.record_count = 1;
        frame.header.records_len = u32::try_from(len).unwrap();
        frame.header.records_crc = crc32c::crc32c(&records[BATCH_PREFIX_LEN..]);
        records[..BATCH_PREFIX_LEN].copy_from_slice(&frame.header.batch_prefix());
        frame.records = records.into();
    }
    frame
}

/// A vote of a group in a term.
pub(super) fn vote(group: u64, term: u64) -> Frame {
    let command = Bytes::copy_from_slice(&term.to_le_bytes());
    Frame::bare(
        FrameKind::Vote,
        GroupId(group),
        EntryId::new(term, 0),
        command,
    )
}

/// A length with small, middling and large ones among them.
pub(super) fn any_len(rng: &mut SmallRng) -> usize {
    match rng.random_range(0..8) {
        0 => 0,
        1..5 => rng.random_range(21..400),
        5 | 6 => rng.random_range(400..5_000),
        _ => rng.random_range(5_000..14_000),
    }
}

pub(super) fn small_config(dir: &Path) -> WalConfig {
    WalConfig {
        dir: dir.to_path_buf(),
        file_bytes: 128 << 10,
        files: 8,
        max_round_bytes: 32 << 10,
    }
}

/// A log so small that a few dozen units go through all its files.
pub(super) fn tiny_config() -> WalConfig {
    WalConfig {
        dir: PathBuf::from("/node/wal"),
        file_bytes: 48 << 10,
        files: 8,
        max_round_bytes: 12 << 10,
    }
}

pub(super) async fn open(
    backend: &Backend,
    config: &WalConfig,
    start: WalStart,
    seed: u64,
) -> Result<(Wal, WalScan), WalError> {
    let entropy = Entropy::from_seed(seed);
    Wal::open(backend, config.clone(), entropy, start, FatalSink::new()).await
}

/// Submits frames; the receiver hears when they are durable.
pub(super) fn submit(
    wal: &Wal,
    frames: Vec<Frame>,
) -> oneshot::Receiver<Result<WalPosition, WalError>> {
    let (told, answer) = oneshot::channel();
    wal.submit(
        frames,
        Room::Common,
        Box::new(move |result| drop(told.send(result))),
    );
    answer
}

/// How many seeds to try: `ordinary`, or what `TRILOG_SEEDS` says.
pub(super) fn seeds(ordinary: u64) -> u64 {
    let wanted = std::env::var("TRILOG_SEEDS").ok();
    wanted.map_or(ordinary, |seeds| seeds.parse().unwrap())
}
