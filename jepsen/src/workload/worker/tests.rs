//! What a worker writes down of what a node serves that nobody wrote.

use std::io::BufReader;
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::fetch_response::{FetchableTopicResponse, PartitionData};
use kafka_protocol::messages::metadata_response::{
    MetadataResponsePartition, MetadataResponseTopic,
};
use kafka_protocol::messages::{
    ApiKey, BrokerId, FetchResponse, MetadataResponse, ResponseHeader, TopicName,
};
use kafka_protocol::protocol::Encodable;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use trilog_model::batch::{BatchBuilder, Compression};

use super::Worker;
use crate::check::{Kind as Anomaly, Tally, check};
use crate::history::json::{Reader, VERSION};
use crate::history::{Event, Header, Key, Op, Stage as Half, What};
use crate::kafka::{Node, payload, text};
use crate::workload::{Kind, Load, Recorder, Stage, TOPIC};

/// A node that leads the only key, in which these bytes are.
async fn serve(listener: TcpListener, records: Bytes) {
    while let Ok((stream, _)) = listener.accept().await {
        // A client has one connection, and gives it up before it makes another.
        let _gone = converse(stream, &records).await;
    }
}

async fn converse(mut stream: TcpStream, records: &Bytes) -> std::io::Result<()> {
    loop {
        let len = stream.read_u32().await?;
        let mut asked = vec![0; usize::try_from(len).unwrap()];
        stream.read_exact(&mut asked).await?;
        let word = |at: usize| i16::from_be_bytes([asked[at], asked[at + 1]]);
        let (key, version) = (ApiKey::try_from(word(0)).unwrap(), word(2));
        let id = i32::from_be_bytes([asked[4], asked[5], asked[6], asked[7]]);
        let mut out = BytesMut::new();
        out.put_u32(0);
        let header = ResponseHeader::default().with_correlation_id(id);
        let header_version = key.response_header_version(version);
        header.encode(&mut out, header_version).unwrap();
        match key {
            ApiKey::Metadata => metadata().encode(&mut out, version).unwrap(),
            ApiKey::Fetch => fetched(records).encode(&mut out, version).unwrap(),
            other => panic!("nobody asks for {other:?} here"),
        }
        let len = u32::try_from(out.len() - 4).unwrap();
        out[..4].copy_from_slice(&len.to_be_bytes());
        stream.write_all(&out).await?;
    }
}

fn metadata() -> MetadataResponse {
    let partition = MetadataResponsePartition::default().with_leader_id(BrokerId(1));
    let topic = MetadataResponseTopic::default()
        .with_name(Some(TopicName(text(TOPIC))))
        .with_partitions(vec![partition]);
    MetadataResponse::default().with_topics(vec![topic])
}

fn fetched(records: &Bytes) -> FetchResponse {
    let partition = PartitionData::default()
        .with_high_watermark(1)
        .with_last_stable_offset(1)
        .with_preferred_read_replica(BrokerId(-1))
        .with_records(Some(records.clone()));
    let topic = FetchableTopicResponse::default()
        .with_topic(TopicName(text(TOPIC)))
        .with_partitions(vec![partition]);
    FetchResponse::default().with_responses(vec![topic])
}

/// What a worker writes down of one poll of a key that holds these bytes.
async fn polled(records: Bytes) -> Vec<Event> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(serve(listener, records));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("history.jsonl");
    let load = Load {
        keys: 1,
        world: None,
        python: None,
        kcat: None,
        operations: 1,
        pace: Duration::ZERO,
        patience: Duration::from_mins(1),
        txn_timeout: Duration::from_mins(1),
    };
    let header = Header::default();
    assert_eq!(header.version, VERSION);
    let recorder = Recorder::create(&path, &header).unwrap();
    let nodes = vec![Node { number: 1, address }];
    let stage = Stage::new(recorder, &load, nodes, Vec::new(), Arc::new([]));
    let mut worker = Worker::new(&stage, Kind::Idempotent, 0, 1);
    worker.assign(vec![Key(0)], true).await;
    worker.poll().await;
    serving.abort();
    stage.recorder.close().unwrap();
    assert!(stage.complaints.take().is_empty());
    let file = std::fs::File::open(&path).unwrap();
    let events = Reader::new(BufReader::new(file)).unwrap();
    events.map(Result::unwrap).collect()
}

fn last(events: &[Event]) -> &Op {
    match &events.last().unwrap().what {
        What::Op(op) => op,
        What::Note(note) => panic!("{note:?}"),
    }
}

#[tokio::test]
async fn bytes_that_nobody_wrote_show_although_the_poll_fails_for_them() {
    let mut batch = BatchBuilder::new(Compression::None);
    batch.push(1, None, Some(&payload(7)), &[]).unwrap();
    let good = batch.build().unwrap();
    let errors = |events: &[Event]| {
        let verdict = check(&Header::default(), events).unwrap();
        let tally = verdict.tally.get(&Anomaly::UnwrittenRead).copied();
        tally.map_or(0, |Tally { errors, .. }| errors)
    };
    let events = polled(good.clone()).await;
    // Nobody sent that value here, but it is one that is sent.
    assert_eq!((last(&events).stage, errors(&events)), (Half::Ok, 1));
    let events = polled(good.slice(..good.len() - 1)).await;
    assert_eq!((last(&events).stage, errors(&events)), (Half::Ok, 0));

    let mut bad = good.to_vec();
    *bad.last_mut().unwrap() ^= 1;
    let events = polled(bad.into()).await;
    let op = last(&events);
    assert_eq!((op.stage, errors(&events)), (Half::Fail, 1));
    assert!(op.error.as_ref().unwrap().contains("damaged"), "{op:?}");
}
