//! Segments read whole: header, every frame, and the chain through all of them.

use std::io;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};

use super::{Collecting, Damage, Place, Suspect};
use crate::frame::{Frame, FrameError};
use crate::io::{Io, IoFile, OpenMode};
use crate::log::{
    GroupRecord, SEGMENT_HEADER_LEN, SEGMENTS, SegmentHeader, SegmentRecord, Tip, is_copy,
    parse_aside_name, segment_file_name,
};

/// Bytes read at once.
const STEP: usize = 4 << 20;

/// Reads the segments of one group that the checkpoint lists.
pub(super) async fn read<I: Io>(
    io: &I,
    dir: &Path,
    record: &GroupRecord,
    collecting: &mut Collecting,
) {
    let folder = dir
        .join(SEGMENTS)
        .join(format!("{}@{}", record.group, record.replica));
    let names = io.list(&folder).await.unwrap_or_default();
    let kept = |of: &dyn Fn(&Path) -> bool| -> Vec<PathBuf> {
        let names = names.iter().filter(|name| of(name));
        names.map(|name| folder.join(name)).collect()
    };
    let copies = kept(&is_copy);
    let aside = kept(&|name| parse_aside_name(name).is_some());
    for segment in &record.segments {
        let name = PathBuf::from(segment_file_name(segment.base_index, segment.generation));
        let path = folder.join(&name);
        let is_aside = |aside: &PathBuf| parse_aside_name(aside) == Some(segment.base_index);
        if !names.contains(&name) && aside.iter().any(is_aside) {
            let what = "it was found damaged and set aside, and waits for another replica's";
            collecting.damaged(&path, what, false);
            continue;
        }
        if let Err(what) = one(io, &path, record, segment, collecting).await {
            collecting.suspects.push(Suspect {
                group: record.group,
                replica: record.replica,
                segment: *segment,
                damage: Damage {
                    path,
                    what,
                    grave: false,
                },
            });
        }
    }
    collecting.found.copies.extend(copies);
    collecting.found.set_aside.extend(aside);
}

async fn one<I: Io>(
    io: &I,
    path: &Path,
    record: &GroupRecord,
    segment: &SegmentRecord,
    collecting: &mut Collecting,
) -> Result<(), String> {
    let file = io.open(path, OpenMode::Read).await.map_err(text)?;
    let length = file.len().await.map_err(text)?;
    if length < segment.bytes {
        return Err(format!(
            "it has {length} bytes, the checkpoint says {}",
            segment.bytes
        ));
    }
    let mut frames = Frames {
        file,
        pos: 0,
        end: segment.bytes,
        window: Bytes::new(),
    };
    let head = frames.take(SEGMENT_HEADER_LEN).await?;
    collecting.found.bytes_read += segment.bytes;
    let expected = SegmentHeader {
        group: record.group,
        replica: record.replica,
        base_index: segment.base_index,
        base_offset: segment.base_offset,
        base_time: segment.base_time,
    };
    let header = SegmentHeader::decode(&head).map_err(|error| error.to_string())?;
    if header != expected {
        return Err("its header is of another segment".to_owned());
    }
    let mut tip = Tip {
        last: None,
        next_index: segment.base_index,
        next_offset: segment.base_offset,
        next_time: segment.base_time,
    };
    while let Some((pos, frame)) = frames.next().await? {
        if frame.header.group != record.group || tip.check(&frame.header).is_err() {
            return Err(format!(
                "at byte {pos}: the chain breaks at entry {}",
                frame.header.id()
            ));
        }
        tip = tip.past(&frame.header);
        let place = Place::Segment {
            path: PathBuf::from(path),
            pos,
        };
        collecting.frame(&place, &frame);
    }
    if tip.next_index != segment.tip.next_index || tip.next_offset != segment.tip.next_offset {
        return Err(format!(
            "it ends before entry {}, the checkpoint says {}",
            tip.next_index, segment.tip.next_index
        ));
    }
    Ok(())
}

/// The frames of a file, read in large steps.
struct Frames<F> {
    file: F,
    /// Where the window begins.
    pos: u64,
    end: u64,
    window: Bytes,
}

impl<F: IoFile> Frames<F> {
    async fn next(&mut self) -> Result<Option<(u64, Frame)>, String> {
        if self.pos >= self.end {
            return Ok(None);
        }
        loop {
            let before = self.window.len();
            match Frame::decode(&mut self.window) {
                Ok(frame) => {
                    let at = self.pos;
                    self.pos += (before - self.window.len()) as u64;
                    return Ok(Some((at, frame)));
                }
                Err(FrameError::Incomplete) if self.more().await? => {}
                Err(error) => return Err(format!("at byte {}: {error}", self.pos)),
            }
        }
    }

    async fn take(&mut self, length: u64) -> Result<Bytes, String> {
        let length = usize::try_from(length).map_err(|error| error.to_string())?;
        while self.window.len() < length {
            if !self.more().await? {
                return Err("it ends before its header does".to_owned());
            }
        }
        self.pos += length as u64;
        Ok(self.window.split_to(length))
    }

    /// Reads on; whether there was more.
    async fn more(&mut self) -> Result<bool, String> {
        let from = self.pos + self.window.len() as u64;
        let left = usize::try_from(self.end.saturating_sub(from)).unwrap_or(usize::MAX);
        if left == 0 {
            return Ok(false);
        }
        let read = self
            .file
            .read_at(from, left.min(STEP))
            .await
            .map_err(text)?;
        if read.is_empty() {
            return Ok(false);
        }
        if self.window.is_empty() {
            self.window = read;
        } else {
            let mut joined = BytesMut::with_capacity(self.window.len() + read.len());
            joined.extend_from_slice(&self.window);
            joined.extend_from_slice(&read);
            self.window = joined.freeze();
        }
        Ok(true)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "made for map_err")]
fn text(error: io::Error) -> String {
    error.to_string()
}
