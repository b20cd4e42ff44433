//! Records as messages of their own, for callers that know no record batches.

use bytes::Bytes;
use trilog_model::Offset;
use trilog_model::batch::{BatchHeader, Record};
use trilog_storage::frame::Frame;
use trilog_wire::v1::{Error, ErrorCode, FetchedRecord, Header};

/// What one batch may decompress to: a small one can claim to be a very large one.
const MAX_DECOMPRESSED: usize = 64 << 20;

/// The records of a frame from `from` on.
pub(super) fn records(frame: &Frame, from: Offset) -> Result<Vec<FetchedRecord>, Error> {
    let unreadable = |reason: String| {
        let at = frame.header.base_offset;
        let text = format!("the batch at offset {at} cannot be taken apart: {reason}");
        Error::new(ErrorCode::InvalidRecord, text)
            .with_hint("fetch it without plain_records, or begin behind it")
    };
    if frame.records.is_empty() {
        return Ok(Vec::new());
    }
    let header =
        BatchHeader::parse(&frame.records).map_err(|error| unreadable(error.to_string()))?;
    if header.attributes.is_control() {
        return Ok(Vec::new());
    }
    let all = header
        .records(&frame.records, MAX_DECOMPRESSED)
        .map_err(|error| unreadable(error.to_string()))?;
    let mut records = Vec::new();
    for record in &all {
        let record = record.map_err(|error| unreadable(error.to_string()))?;
        let delta = u64::from(record.offset_delta.unsigned_abs());
        let offset = frame.header.base_offset.plus(delta);
        if offset >= from {
            records.push(plain(frame, all.payload(), &record, offset));
        }
    }
    Ok(records)
}

/// One record, its parts shared with the batch.
fn plain(frame: &Frame, payload: &Bytes, record: &Record<'_>, offset: Offset) -> FetchedRecord {
    let share = |part: &[u8]| payload.slice_ref(part);
    let headers = record.headers().map(|header| Header {
        key: share(header.key),
        value: header.value.map(share),
    });
    FetchedRecord {
        offset: offset.get(),
        timestamp_ms: record.timestamp,
        append_time_ns: frame.header.append_time.nanos(),
        key: record.key.map(share),
        value: record.value.map(share),
        headers: headers.collect(),
    }
}

#[cfg(test)]
mod tests {
    use trilog_model::batch::{BatchBuilder, Compression, Header as RecordHeader};
    use trilog_model::{EntryId, GroupId};
    use trilog_storage::frame::FrameKind;

    use super::*;

    fn frame(compression: Compression) -> Frame {
        let mut batch = BatchBuilder::new(compression);
        for number in 0..3 {
            let header = RecordHeader {
                key: b"h",
                value: Some(b"v"),
            };
            let value = vec![b'x'; number];
            batch.push(7, Some(b"k"), Some(&value), &[header]).unwrap();
        }
        let id = EntryId::new(1, 4);
        let mut frame = Frame::bare(FrameKind::Data, GroupId(2), id, Bytes::new());
        frame.records = batch.build().unwrap();
        frame.header.base_offset = Offset(10);
        frame.header.record_count = 3;
        frame
    }

    #[test]
    fn records_come_apart_whatever_they_were_packed_with() {
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let found = records(&frame(compression), Offset(11)).unwrap();
            let offsets: Vec<u64> = found.iter().map(|record| record.offset).collect();
            assert_eq!(offsets, [11, 12]);
            assert_eq!(found[1].value.as_deref(), Some(&b"xx"[..]));
            assert_eq!(found[1].headers[0].key, &b"h"[..]);
            assert_eq!(found[1].timestamp_ms, 7);
        }
    }

    #[test]
    fn what_cannot_be_taken_apart_is_an_error_that_says_where() {
        let mut frame = frame(Compression::None);
        frame.records = frame.records.slice(..frame.records.len() - 5);
        let error = records(&frame, Offset(0)).unwrap_err();
        assert!(error.message.contains("offset 10"), "{error:?}");
    }
}
