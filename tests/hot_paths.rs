//! What each record passes on its way in and out, one step at a time: `cargo bench -p trilog-tests`.

#![expect(clippy::unwrap_used, reason = "a benchmark ends at the first surprise")]

use std::hint::black_box;

use bytes::{Bytes, BytesMut};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use kafka_protocol::messages::fetch_request::{
    FetchPartition as WireFetchPartition, FetchTopic as WireFetchTopic,
};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiKey, FetchRequest as WireFetch, ProduceRequest as WireProduce, RequestHeader, TopicName,
};
use kafka_protocol::protocol::{Encodable, StrBytes};
use trilog_model::batch::{BatchBuilder, BatchHeader, Compression};
use trilog_model::{EntryId, GroupId};
use trilog_storage::frame::{Frame, FrameKind};
use trilog_wire::kafka::{
    FetchRequest, Fetched, FetchedBatch, FetchedPartition, Opened, ProduceRequest, Request,
    TopicRef, fetch_answer,
};

const TOPIC: &str = "orders";
const PARTITIONS: i32 = 10;
/// Sizes of batches: of a few small records, and as large as producers make them.
const SIZES: [usize; 2] = [1 << 10, 64 << 10];
const RECORD_BYTES: usize = 100;

fn batch(bytes: usize) -> Bytes {
    let mut builder = BatchBuilder::new(Compression::None);
    while builder.uncompressed_len() < bytes {
        builder
            .push(1, Some(b"key"), Some(&[b'x'; RECORD_BYTES]), &[])
            .unwrap();
    }
    builder.build().unwrap()
}

/// A request as a node takes it off the wire, its length read already.
fn message<M: Encodable>(key: ApiKey, version: i16, message: &M) -> Bytes {
    let header = RequestHeader::default()
        .with_request_api_key(key as i16)
        .with_request_api_version(version)
        .with_client_id(Some(StrBytes::from_static_str("bench")));
    let mut out = BytesMut::new();
    header
        .encode(&mut out, key.request_header_version(version))
        .unwrap();
    message.encode(&mut out, version).unwrap();
    out.freeze()
}

fn opened(message: &Bytes) -> Request {
    match Request::open(message).unwrap() {
        Opened::Request(request) => request,
        Opened::VersionsUnsupported { .. } => panic!("no such version"),
    }
}

fn name() -> TopicName {
    TopicName(StrBytes::from_static_str(TOPIC))
}

fn produce(records: &Bytes) -> Bytes {
    let partition = |index| {
        let data = PartitionProduceData::default().with_index(index);
        data.with_records(Some(records.clone()))
    };
    let topic = TopicProduceData::default()
        .with_name(name())
        .with_partition_data((0..PARTITIONS).map(partition).collect());
    let request = WireProduce::default()
        .with_acks(-1)
        .with_topic_data(vec![topic]);
    message(ApiKey::Produce, 9, &request)
}

fn fetch() -> Bytes {
    let partition = |index| WireFetchPartition::default().with_partition(index);
    let topic = WireFetchTopic::default()
        .with_topic(name())
        .with_partitions((0..PARTITIONS).map(partition).collect());
    message(
        ApiKey::Fetch,
        12,
        &WireFetch::default().with_topics(vec![topic]),
    )
}

/// An entry as a leader writes it to its log.
fn frame(records: &Bytes) -> Frame {
    let header = BatchHeader::parse(records).unwrap();
    let mut frame = Frame::bare(
        FrameKind::Data,
        GroupId(2),
        EntryId::new(1, 1),
        Bytes::new(),
    );
    frame.header.records_crc = header.crc;
    frame.header.records_len = u32::try_from(records.len()).unwrap();
    frame.header.record_count = u32::try_from(header.record_count).unwrap();
    frame.records = records.clone();
    frame
}

/// One batch of each partition.
fn fetched(frame: &Frame) -> Fetched {
    let partition = |index| {
        let (prefix, body) = frame.batch_slices().unwrap();
        FetchedPartition {
            batches: vec![FetchedBatch { prefix, body }],
            ..FetchedPartition::refused(TopicRef::Name(StrBytes::from_static_str(TOPIC)), index, 0)
        }
    };
    Fetched {
        partitions: (0..PARTITIONS).map(partition).collect(),
        ..Fetched::default()
    }
}

fn hot_paths(criterion: &mut Criterion) {
    for size in SIZES {
        let records = batch(size);
        let bytes = u64::try_from(records.len()).unwrap();
        let mut group = criterion.benchmark_group(format!("{} KiB", size >> 10));
        let request = produce(&records);
        group.throughput(Throughput::Elements(u64::try_from(PARTITIONS).unwrap()));
        group.bench_function("produce decode, 10 partitions", |bencher| {
            bencher.iter(|| ProduceRequest::decode(&opened(black_box(&request))).unwrap());
        });
        let request = fetch();
        group.bench_function("fetch decode, 10 partitions", |bencher| {
            bencher.iter(|| FetchRequest::decode(&opened(black_box(&request))).unwrap());
        });
        let (request, frame) = (opened(&request), frame(&records));
        group.bench_function("fetch encode, 10 partitions", |bencher| {
            bencher.iter(|| fetch_answer(black_box(&request), fetched(black_box(&frame))));
        });
        group.throughput(Throughput::Elements(1));
        group.bench_function("frame encode", |bencher| {
            let mut out = Vec::with_capacity(2);
            bencher.iter(|| {
                out.clear();
                black_box(&frame).push_slices(&mut out);
            });
        });
        group.throughput(Throughput::Bytes(bytes));
        group.bench_function("batch validate", |bencher| {
            bencher.iter(|| BatchHeader::validate(black_box(&records)).unwrap());
        });
        group.bench_function("records of a batch", |bencher| {
            let header = BatchHeader::parse(&records).unwrap();
            bencher.iter(|| {
                let all = header.records(black_box(&records), 1 << 20).unwrap();
                all.iter()
                    .map(|record| record.unwrap().value.map_or(0, <[u8]>::len))
                    .sum::<usize>()
            });
        });
        group.bench_function("crc32c", |bencher| {
            bencher.iter(|| crc32c::crc32c(black_box(&records)));
        });
        group.finish();
    }
}

criterion_group!(benches, hot_paths);
criterion_main!(benches);
