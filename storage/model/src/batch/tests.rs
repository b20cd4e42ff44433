//! The batch against bytes that another implementation wrote, against itself, and against noise.

use bytes::{BufMut, Bytes, BytesMut};
use proptest::prelude::*;

use super::*;

/// Fixtures were written by kafka-python 3.0.12 and the reference lz4 and zstd libraries.
macro_rules! fixture {
    ($name:literal) => {
        Bytes::from_static(include_bytes!(concat!("../../tests/fixtures/", $name)))
    };
}

const CAP: usize = 1 << 20;

/// One record as the tests write it down.
type Plain = (
    i64,
    Option<Vec<u8>>,
    Option<Vec<u8>>,
    Vec<(Vec<u8>, Option<Vec<u8>>)>,
);

fn headers_of(record: &Plain) -> Vec<Header<'_>> {
    record
        .3
        .iter()
        .map(|(key, value)| Header {
            key,
            value: value.as_deref(),
        })
        .collect()
}

fn build(compression: Compression, records: &[Plain]) -> Bytes {
    let mut builder = BatchBuilder::new(compression);
    for record in records {
        let before = builder.uncompressed_len();
        let headers = headers_of(record);
        let (key, value) = (record.1.as_deref(), record.2.as_deref());
        builder.push(record.0, key, value, &headers).unwrap();
        let bound = BatchBuilder::record_len_bound(key, value, &headers);
        assert!(builder.uncompressed_len() - before <= bound);
    }
    builder.build().unwrap()
}

fn read(batch: &Bytes) -> Vec<Plain> {
    let header = BatchHeader::validate(batch).unwrap();
    let records = header.records(batch, CAP).unwrap();
    records.check().unwrap();
    records
        .iter()
        .map(|record| plain(&record.unwrap()))
        .collect()
}

fn plain(record: &Record<'_>) -> Plain {
    let headers = record.headers();
    (
        record.timestamp,
        record.key.map(<[u8]>::to_vec),
        record.value.map(<[u8]>::to_vec),
        headers
            .map(|header| (header.key.to_vec(), header.value.map(<[u8]>::to_vec)))
            .collect(),
    )
}

/// The records of `batch_plain.bin` and `batch_transactional.bin`.
fn golden_records() -> Vec<Plain> {
    let some = |bytes: &[u8]| Some(bytes.to_vec());
    vec![
        (
            1_700_000_000_123,
            some(b"key"),
            some(b"value"),
            vec![
                (b"h".to_vec(), some(b"1")),
                (b"h".to_vec(), None),
                (vec![], some(b"")),
            ],
        ),
        (1_700_000_000_120, None, some(b"\x00\xff"), vec![]),
        (
            1_700_000_009_999,
            some(b""),
            None,
            vec![(b"trace".to_vec(), some(b"abc"))],
        ),
    ]
}

fn golden_compressed() -> Vec<Plain> {
    (0..20)
        .map(|i| {
            let value = b"the same value over and over ".repeat(3);
            let key = format!("k{}", i % 3).into_bytes();
            (1_700_000_000_000 + i, Some(key), Some(value), vec![])
        })
        .collect()
}

#[test]
fn a_batch_of_another_client_reads_as_it_was_written() {
    assert_eq!(read(&fixture!("batch_plain.bin")), golden_records());
    assert_eq!(read(&fixture!("batch_transactional.bin")), golden_records());
    assert_eq!(read(&fixture!("batch_lz4.bin")), golden_compressed());
    assert_eq!(read(&fixture!("batch_zstd.bin")), golden_compressed());
}

#[test]
fn a_built_batch_equals_another_clients_byte_for_byte() {
    // That client leaves the leader epoch at 0; ours, like Java's, at -1. Neither is checked.
    let ours = |batch: Bytes| {
        let mut bytes = BytesMut::from(&batch[..]);
        (&mut bytes[12..16]).put_i32(0);
        bytes.freeze()
    };
    let built = build(Compression::None, &golden_records());
    assert_eq!(ours(built), fixture!("batch_plain.bin"));

    let mut builder = BatchBuilder::new(Compression::None);
    builder.set_transactional().set_producer(ProducerState {
        id: 4711,
        epoch: 3,
        sequence: i32::MAX,
    });
    for record in &golden_records() {
        let (key, value) = (record.1.as_deref(), record.2.as_deref());
        builder
            .push(record.0, key, value, &headers_of(record))
            .unwrap();
    }
    let built = builder.build().unwrap();
    assert_eq!(ours(built), fixture!("batch_transactional.bin"));
}

#[test]
fn the_header_gives_every_field() {
    let header = BatchHeader::validate(&fixture!("batch_transactional.bin")).unwrap();
    assert_eq!(header.base_timestamp, 1_700_000_000_123);
    assert_eq!(header.max_timestamp, 1_700_000_009_999);
    assert_eq!((header.producer_id, header.producer_epoch), (4711, 3));
    assert_eq!(header.record_count, 3);
    assert!(header.attributes.is_transactional());
    assert_eq!(header.base_sequence, i32::MAX);
    assert_eq!(header.last_sequence(), 1, "sequences wrap to zero");
}

#[test]
fn gzip_and_both_shapes_of_snappy_are_read() {
    assert_eq!(read(&fixture!("batch_gzip.bin")), golden_compressed());
    assert_eq!(read(&fixture!("batch_snappy_java.bin")), golden_records());
    assert_eq!(read(&fixture!("batch_snappy_raw.bin")), golden_records());
}

/// Changes header bytes of a good batch and repairs the checksum, so that one check alone fails.
fn altered(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut batch = build(Compression::None, &golden_records()).to_vec();
    batch[at..at + bytes.len()].copy_from_slice(bytes);
    let crc = crc32c::crc32c(&batch[21..]);
    batch[17..21].copy_from_slice(&crc.to_be_bytes());
    batch
}

#[test]
fn each_rule_for_a_produced_batch_has_its_own_error() {
    let empty_count = [&2_i32.to_be_bytes()[..]].concat();
    let table: Vec<(Vec<u8>, BatchError)> = vec![
        (altered(16, &[1]), BatchError::Magic(1)),
        (altered(8, &48_i32.to_be_bytes()), BatchError::Length(48)),
        (altered(8, &(-1_i32).to_be_bytes()), BatchError::Length(-1)),
        (altered(8, &i32::MAX.to_be_bytes()), BatchError::Incomplete),
        (altered(7, &[1]), BatchError::BaseOffset(1)),
        (altered(57, &0_i32.to_be_bytes()), BatchError::Empty(0)),
        (altered(57, &[0xff; 4]), BatchError::Empty(-1)),
        (
            altered(57, &empty_count),
            BatchError::Count {
                count: 2,
                last_offset_delta: 2,
            },
        ),
        (altered(22, &[0b10_0000]), BatchError::Control),
        (altered(22, &[0b1000]), BatchError::AppendTime),
        (altered(22, &[5]), BatchError::Codec(5)),
        (altered(43, &[0; 8]), BatchError::Sequence(-1)),
        (
            [&altered(0, &[])[..], &[0]].concat(),
            BatchError::Trailing(1),
        ),
    ];
    for (batch, error) in table {
        assert_eq!(BatchHeader::validate(&batch), Err(error));
    }
    let mut flipped = altered(0, &[]);
    *flipped.last_mut().unwrap() ^= 1;
    assert_eq!(BatchHeader::validate(&flipped), Err(BatchError::Crc));
}

#[test]
fn a_patched_offset_and_epoch_leave_the_checksum_right() {
    let mut batch = build(Compression::None, &golden_records()).to_vec();
    batch[..8].copy_from_slice(&9_000_i64.to_be_bytes());
    batch[12..16].copy_from_slice(&7_i32.to_be_bytes());
    let header = BatchHeader::parse(&batch).unwrap();
    header.check_crc(&batch).unwrap();
    assert_eq!((header.base_offset, header.leader_epoch), (9_000, 7));
    assert_eq!(header.last_offset(), 9_002);
}

#[test]
fn append_time_is_the_time_of_every_record() {
    let batch = Bytes::from(altered(22, &[0b1000]));
    let header = BatchHeader::parse(&batch).unwrap();
    let records = header.records(&batch, CAP).unwrap();
    for record in &records {
        assert_eq!(record.unwrap().timestamp, header.max_timestamp);
    }
}

#[test]
fn a_marker_is_a_control_batch_of_one_record() {
    let producer = ProducerState {
        id: 5,
        epoch: 2,
        sequence: -1,
    };
    let batch = marker(producer, true, 9, 1_000).unwrap();
    let header = BatchHeader::parse(&batch).unwrap();
    header.check_crc(&batch).unwrap();
    assert!(header.attributes.is_control() && header.attributes.is_transactional());
    assert_eq!(header.check_fields(), Err(BatchError::Control));
    let records = header.records(&batch, CAP).unwrap();
    let record = records.iter().next().unwrap().unwrap();
    assert_eq!(record.key, Some(&[0, 0, 0, 1][..]));
    assert_eq!(record.value, Some(&[0, 0, 0, 0, 0, 9][..]));
}

#[test]
fn a_restamped_batch_is_the_same_under_another_identity() {
    let producer = ProducerState {
        id: 4711,
        epoch: 3,
        sequence: i32::MAX,
    };
    let plain = build(Compression::Lz4, &golden_records());
    let stamped = restamp(&plain, producer);
    let header = BatchHeader::validate(&stamped).unwrap();
    assert_eq!((header.producer_id, header.producer_epoch), (4711, 3));
    assert_eq!(header.base_sequence, i32::MAX);
    assert_eq!(read(&stamped), golden_records());
    assert_eq!(restamp(&plain.slice(..9), producer), plain.slice(..9));
}

#[test]
fn a_batch_with_its_append_time_has_it_in_every_record_and_a_sound_checksum() {
    for codec in [Compression::None, Compression::Gzip] {
        let plain = build(codec, &golden_records());
        let stamped = stamp_append_time(&plain, 1_234_567);
        let header = BatchHeader::parse(&stamped).unwrap();
        assert_eq!(header.check_crc(&stamped), Ok(()));
        assert!(header.attributes.is_append_time());
        assert_eq!(header.attributes.compression(), Ok(codec));
        let records = header.records(&stamped, CAP).unwrap();
        for (record, (_, key, value, _)) in records.iter().zip(golden_records()) {
            let record = record.unwrap();
            assert_eq!(record.timestamp, 1_234_567);
            assert_eq!(
                (record.key, record.value),
                (key.as_deref(), value.as_deref())
            );
        }
        for short in [9, 30, 40] {
            let short = plain.slice(..short);
            assert_eq!(stamp_append_time(&short, 5), short);
        }
    }
}

#[test]
fn an_empty_batch_cannot_be_built() {
    let builder = BatchBuilder::new(Compression::None);
    assert!(builder.is_empty());
    assert!(matches!(builder.build(), Err(BuildError::Empty)));
}

/// What the two foreign frames hold.
fn text() -> Vec<u8> {
    (0..10_000)
        .flat_map(|i| format!("line {} of the text\n", i % 997).into_bytes())
        .collect()
}

#[test]
fn frames_with_linked_blocks_and_without_a_size_decompress() {
    let lz4 = fixture!("linked_blocks.lz4");
    assert_eq!(Compression::Lz4.decompress(&lz4, CAP).unwrap(), text());
    let zstd = fixture!("unsized_frame.zst");
    assert_eq!(Compression::Zstd.decompress(&zstd, CAP).unwrap(), text());
}

#[test]
fn output_beyond_the_cap_is_refused_and_exactly_the_cap_is_not() {
    let len = text().len();
    let ours = |codec: Compression| {
        let mut frame = Vec::new();
        codec.compress(&text(), &mut frame).unwrap();
        (codec, Bytes::from(frame))
    };
    for (codec, frame) in [
        ours(Compression::Gzip),
        ours(Compression::Snappy),
        (Compression::Lz4, fixture!("linked_blocks.lz4")),
        (Compression::Zstd, fixture!("unsized_frame.zst")),
        (Compression::None, Bytes::from(text())),
    ] {
        assert_eq!(codec.decompress(&frame, len).unwrap().len(), len);
        for cap in [0, 1, 65_535, 65_536, 65_537, len - 1] {
            let error = codec.decompress(&frame, cap).unwrap_err();
            assert_eq!(error, DecompressError::TooLarge(cap), "{codec:?} {cap}");
        }
    }
}

#[test]
fn a_bomb_stops_at_the_cap() {
    for codec in [
        Compression::Gzip,
        Compression::Snappy,
        Compression::Lz4,
        Compression::Zstd,
    ] {
        let mut bomb = Vec::new();
        codec.compress(&vec![0; 64 << 20], &mut bomb).unwrap();
        let error = codec.decompress(&bomb.into(), CAP).unwrap_err();
        assert_eq!(error, DecompressError::TooLarge(CAP));
    }
}

#[test]
fn a_small_frame_that_claims_much_gets_little_memory() {
    // A frame of one 4 MiB block class that holds three bytes.
    let lz4 = [
        &0x184D_2204_u32.to_le_bytes()[..],
        &[0x60, 0x70, 0, 4, 0, 0, 0, 0x30, 1, 2, 3, 0, 0, 0, 0],
    ]
    .concat();
    let out = Compression::Lz4.decompress(&lz4.into(), CAP).unwrap();
    assert_eq!(out, &[1, 2, 3][..]);
    let capacity = Vec::from(out).capacity();
    assert!(capacity <= 4 * 255, "{capacity}");
}

#[test]
fn a_record_count_beyond_the_bytes_ends_in_an_error_not_in_memory() {
    let batch = Bytes::from(altered(57, &i32::MAX.to_be_bytes()));
    let header = BatchHeader::parse(&batch).unwrap();
    let records = header.records(&batch, CAP).unwrap();
    let last = records.iter().last().unwrap();
    assert_eq!(last, Err(RecordError::Incomplete));
    let table: [(&[u8], RecordError); 6] = [
        (&[0x01], RecordError::Length),
        (&[0x00], RecordError::Length),
        (&[0x02, 0], RecordError::Length),
        (&[0x7e, 0], RecordError::Incomplete),
        (&[0x0e, 0, 0, 0, 1, 1, 0, 9], RecordError::Unfilled),
        (&[0x0c, 0, 0, 2, 1, 1, 2], RecordError::Length),
    ];
    for (payload, error) in table {
        let all: Vec<_> = RecordIter::new(header, payload).collect();
        assert_eq!(all, [Err(error)], "{payload:?}");
    }
}

#[test]
fn offset_deltas_may_skip_but_not_fall() {
    let header = BatchHeader::validate(&fixture!("batch_plain.bin")).unwrap();
    let record = |delta: u8| vec![0x0c, 0, 0, delta << 1, 1, 1, 0];
    let deltas = |list: [u8; 3]| {
        let payload: Vec<u8> = list.into_iter().flat_map(record).collect();
        RecordIter::new(header, &payload)
            .map(|record| record.map(|record| record.offset_delta))
            .collect::<Result<Vec<_>, _>>()
    };
    assert_eq!(deltas([0, 1, 2]), Ok(vec![0, 1, 2]));
    assert_eq!(deltas([0, 0, 1]), Err(RecordError::OffsetDelta(0)));
    assert_eq!(deltas([1, 2, 3]), Err(RecordError::OffsetDelta(3)));
    let short = [record(1), record(2)].concat();
    let fewer = BatchHeader {
        record_count: 2,
        ..header
    };
    assert_eq!(RecordIter::new(fewer, &short).flatten().count(), 2);
}

fn nullable() -> impl Strategy<Value = Option<Vec<u8>>> {
    proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40))
}

fn records() -> impl Strategy<Value = Vec<Plain>> {
    let key = proptest::collection::vec(any::<u8>(), 0..9);
    let headers = proptest::collection::vec((key, nullable()), 0..4);
    proptest::collection::vec((any::<i64>(), nullable(), nullable(), headers), 1..20)
}

fn codec() -> impl Strategy<Value = Compression> {
    prop_oneof![
        Just(Compression::None),
        Just(Compression::Gzip),
        Just(Compression::Snappy),
        Just(Compression::Lz4),
        Just(Compression::Zstd)
    ]
}

/// Reads everything that can be read, whatever it holds; the point is that it returns.
fn read_all(bytes: &Bytes) {
    let _ = BatchHeader::validate(bytes);
    if let Ok(header) = BatchHeader::parse(bytes)
        && let Ok(records) = header.records(bytes, 1 << 16)
    {
        let _ = records.check();
        for record in records.iter().flatten() {
            assert_eq!(record.headers().count(), record.headers().len());
        }
    }
}

proptest! {
    #[test]
    fn any_records_survive_the_round_trip(records in records(), codec in codec()) {
        prop_assert_eq!(read(&build(codec, &records)), records);
    }

    #[test]
    fn every_truncation_is_an_error(records in records(), codec in codec()) {
        let batch = build(codec, &records);
        for cut in 0..batch.len() {
            prop_assert_eq!(
                BatchHeader::validate(&batch[..cut]),
                Err(BatchError::Incomplete)
            );
        }
        let header = BatchHeader::parse(&batch).unwrap();
        let payload = header.records(&batch, CAP).unwrap();
        for cut in 0..payload.payload().len() {
            let read = RecordIter::new(header, &payload.payload()[..cut]);
            prop_assert!(read.last().unwrap().is_err());
        }
        if codec != Compression::None {
            let packed = batch.slice(HEADER_LEN..);
            for cut in 0..packed.len() {
                let cut = packed.slice(..cut);
                prop_assert!(codec.decompress(&cut, CAP).is_err());
            }
        }
    }

    #[test]
    fn one_flipped_bit_under_the_checksum_is_found(
        records in records(), codec in codec(), at: prop::sample::Index, bit in 0..8_u8
    ) {
        let mut batch = build(codec, &records).to_vec();
        let at = 17 + at.index(batch.len() - 17);
        batch[at] ^= 1 << bit;
        prop_assert_eq!(BatchHeader::validate(&batch), Err(BatchError::Crc));
    }

    #[test]
    fn noise_behind_a_good_header_never_panics(
        records in records(), codec in codec(), noise: Vec<(prop::sample::Index, u8)>
    ) {
        let mut batch = build(codec, &records).to_vec();
        for (at, byte) in noise {
            let at = at.index(batch.len());
            batch[at] = byte;
        }
        read_all(&batch.into());
    }

    #[test]
    fn random_bytes_never_panic(bytes: Vec<u8>, codec in codec()) {
        let bytes = Bytes::from(bytes);
        read_all(&bytes);
        let _ = codec.decompress(&bytes, 1 << 16);
        let header = BatchHeader::parse(&fixture!("batch_plain.bin")).unwrap();
        RecordIter::new(header, &bytes).for_each(drop);
    }
}
