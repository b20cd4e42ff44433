//! What the tests of the log have in common.

use bytes::Bytes;
use tokio::sync::oneshot;
use trilog_model::{EntryId, GroupId, Offset};

use crate::frame::{BATCH_PREFIX_LEN, Frame, FrameKind};
use crate::wal::{Wal, WalConfig, WalError, WalPosition};

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

pub(super) fn small_config(dir: &std::path::Path) -> WalConfig {
    WalConfig {
        dir: dir.to_path_buf(),
        file_bytes: 128 << 10,
        files: 8,
        max_round_bytes: 32 << 10,
    }
}

/// Submits frames; the receiver hears when they are durable.
pub(super) fn submit(
    wal: &Wal,
    frames: Vec<Frame>,
) -> oneshot::Receiver<Result<WalPosition, WalError>> {
    let (told, answer) = oneshot::channel();
    wal.submit(frames, Box::new(move |result| drop(told.send(result))));
    answer
}
