//! Record batches, as a producer or a peer might send them.

use bytes::Bytes;
use trilog_model::batch::{
    BatchBuilder, BatchHeader, Compression, HEADER_LEN, Header, ProducerState, RecordIter, Records,
    restamp,
};

/// Reads `bytes` as a batch, as records and as compressed records.
pub fn record_batch(bytes: &[u8]) {
    let bytes = Bytes::copy_from_slice(bytes);
    // In proportion to the input, whatever that claims.
    let cap = 8 * bytes.len() + 64 * 1024;
    read(&bytes, cap);
    if bytes.len() >= HEADER_LEN {
        let producer = ProducerState {
            id: 7,
            epoch: 0,
            sequence: 0,
        };
        // Which makes the checksum right.
        read(&restamp(&bytes, producer), cap);
    }
    for codec in [Compression::Lz4, Compression::Zstd] {
        if let Ok(out) = codec.decompress(&bytes, cap) {
            assert!(out.len() <= cap, "{codec:?} exceeded its cap");
        }
    }
}

fn read(bytes: &Bytes, cap: usize) {
    let Ok(header) = BatchHeader::parse(bytes) else {
        assert!(BatchHeader::validate(bytes).is_err());
        return;
    };
    if BatchHeader::validate(bytes).is_ok() {
        assert_eq!(header.batch_len(), bytes.len());
        assert!(header.record_count > 0 && header.base_offset == 0);
    }
    RecordIter::new(header, bytes).for_each(drop);
    let Ok(records) = header.records(bytes, cap) else {
        return;
    };
    assert!(records.payload().len() <= cap.max(bytes.len()));
    if records.check().is_ok() {
        rebuild(&header, &records);
    }
}

/// Well-formed records survive being written again.
fn rebuild(header: &BatchHeader, records: &Records) {
    let mut builder = BatchBuilder::new(Compression::None);
    for record in records.iter().flatten() {
        let headers: Vec<Header<'_>> = record.headers().collect();
        assert_eq!(headers.len(), record.headers().len());
        let (key, value) = (record.key, record.value);
        let pushed = builder.push(record.timestamp, key, value, &headers);
        assert!(pushed.is_ok(), "{pushed:?}");
    }
    if builder.is_empty() {
        return;
    }
    assert_eq!(builder.record_count(), header.record_count);
    let Ok(batch) = builder.build() else {
        panic!("what was read cannot be written");
    };
    let again = BatchHeader::validate(&batch).map(|header| header.records(&batch, batch.len()));
    let Ok(Ok(again)) = again else {
        panic!("what was written cannot be read");
    };
    assert!(again.iter().eq(records.iter()), "the records changed");
}
