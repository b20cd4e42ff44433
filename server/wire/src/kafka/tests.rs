//! Shapes held against the codec, our own messages against the codec's, and what is malformed.

use bytes::{BufMut, Bytes, BytesMut};
use kafka_protocol::messages::fetch_request::{
    FetchPartition as TheirPartition, FetchTopic as TheirTopic, ForgottenTopic as TheirForgotten,
};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{self, ApiKey, BrokerId, RequestHeader, TopicName};
use kafka_protocol::protocol::{Decodable, Encodable, StrBytes};

use super::guard::{Field, Shape};
use super::*;

/// Writes a message of a shape, and where its counts stand.
struct Generator {
    out: BytesMut,
    counts: Vec<usize>,
    flexible: bool,
    version: i16,
    seed: u64,
}

impl Generator {
    fn body(api: &Api, version: i16) -> (Bytes, Vec<usize>) {
        let mut generator = Self {
            out: BytesMut::new(),
            counts: Vec::new(),
            flexible: api.is_flexible(version),
            version,
            seed: 7,
        };
        generator.structure(api.fields);
        (generator.out.freeze(), generator.counts)
    }

    fn random(&mut self) -> u8 {
        self.seed = self
            .seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        self.seed.to_le_bytes()[7]
    }

    fn structure(&mut self, fields: &[Field]) {
        for field in fields {
            if (field.since..=field.until).contains(&self.version) {
                self.value(field.shape);
            }
        }
        if self.flexible {
            // One unknown tagged field, number 100.
            self.counts.push(self.out.len());
            self.out.put_slice(&[1, 100, 2, 0xab, 0xcd]);
        }
    }

    fn count(&mut self, count: u8) {
        self.counts.push(self.out.len());
        if self.flexible {
            self.out.put_u8(count + 1);
        } else {
            self.out.put_i32(i32::from(count));
        }
    }

    fn value(&mut self, shape: Shape) {
        match shape {
            Shape::Fixed(bytes) => {
                for _ in 0..bytes {
                    let byte = self.random();
                    self.out.put_u8(byte);
                }
            }
            Shape::Text => {
                if self.flexible {
                    self.out.put_u8(4);
                } else {
                    self.out.put_i16(3);
                }
                self.out.put_slice(b"abc");
            }
            Shape::Blob => {
                self.count(3);
                self.out.put_slice(b"\0\xffz");
            }
            Shape::List(element) => {
                self.count(2);
                self.value(*element);
                self.value(*element);
            }
            Shape::Maybe(fields) => {
                self.out.put_u8(1);
                self.structure(fields);
            }
            Shape::Structs(fields) => {
                self.count(2);
                self.structure(fields);
                self.structure(fields);
            }
        }
    }
}

fn request(api: &'static Api, version: i16, body: Bytes) -> Request {
    Request {
        api,
        version,
        correlation_id: 7,
        client_id: None,
        body,
    }
}

/// Decodes with whichever codec reads the api; whether it took the bytes.
#[expect(clippy::too_many_lines, reason = "a table is as long as what it lists")]
pub(super) fn decodes(request: &Request) -> Result<(), Malformed> {
    match request.api.key {
        ApiKey::Produce => ProduceRequest::decode(request).map(drop),
        ApiKey::Fetch => FetchRequest::decode(request).map(drop),
        ApiKey::ListOffsets => decode::<messages::ListOffsetsRequest>(request).map(drop),
        ApiKey::Metadata => decode::<messages::MetadataRequest>(request).map(drop),
        ApiKey::ApiVersions => decode::<messages::ApiVersionsRequest>(request).map(drop),
        ApiKey::CreateTopics => decode::<messages::CreateTopicsRequest>(request).map(drop),
        ApiKey::DeleteTopics => decode::<messages::DeleteTopicsRequest>(request).map(drop),
        ApiKey::DeleteRecords => decode::<messages::DeleteRecordsRequest>(request).map(drop),
        ApiKey::InitProducerId => decode::<messages::InitProducerIdRequest>(request).map(drop),
        ApiKey::OffsetForLeaderEpoch => {
            decode::<messages::OffsetForLeaderEpochRequest>(request).map(drop)
        }
        ApiKey::DescribeConfigs => decode::<messages::DescribeConfigsRequest>(request).map(drop),
        ApiKey::AlterConfigs => decode::<messages::AlterConfigsRequest>(request).map(drop),
        ApiKey::DescribeLogDirs => decode::<messages::DescribeLogDirsRequest>(request).map(drop),
        ApiKey::CreatePartitions => decode::<messages::CreatePartitionsRequest>(request).map(drop),
        ApiKey::IncrementalAlterConfigs => {
            decode::<messages::IncrementalAlterConfigsRequest>(request).map(drop)
        }
        ApiKey::DescribeCluster => decode::<messages::DescribeClusterRequest>(request).map(drop),
        ApiKey::OffsetCommit => decode::<messages::OffsetCommitRequest>(request).map(drop),
        ApiKey::OffsetFetch => decode::<messages::OffsetFetchRequest>(request).map(drop),
        ApiKey::FindCoordinator => decode::<messages::FindCoordinatorRequest>(request).map(drop),
        ApiKey::JoinGroup => decode::<messages::JoinGroupRequest>(request).map(drop),
        ApiKey::Heartbeat => decode::<messages::HeartbeatRequest>(request).map(drop),
        ApiKey::LeaveGroup => decode::<messages::LeaveGroupRequest>(request).map(drop),
        ApiKey::SyncGroup => decode::<messages::SyncGroupRequest>(request).map(drop),
        ApiKey::DescribeGroups => decode::<messages::DescribeGroupsRequest>(request).map(drop),
        ApiKey::ListGroups => decode::<messages::ListGroupsRequest>(request).map(drop),
        ApiKey::DeleteGroups => decode::<messages::DeleteGroupsRequest>(request).map(drop),
        ApiKey::OffsetDelete => decode::<messages::OffsetDeleteRequest>(request).map(drop),
        ApiKey::AddPartitionsToTxn => {
            decode::<messages::AddPartitionsToTxnRequest>(request).map(drop)
        }
        ApiKey::AddOffsetsToTxn => decode::<messages::AddOffsetsToTxnRequest>(request).map(drop),
        ApiKey::EndTxn => decode::<messages::EndTxnRequest>(request).map(drop),
        ApiKey::TxnOffsetCommit => decode::<messages::TxnOffsetCommitRequest>(request).map(drop),
        ApiKey::WriteTxnMarkers => decode::<messages::WriteTxnMarkersRequest>(request).map(drop),
        ApiKey::DescribeProducers => {
            decode::<messages::DescribeProducersRequest>(request).map(drop)
        }
        ApiKey::DescribeTransactions => {
            decode::<messages::DescribeTransactionsRequest>(request).map(drop)
        }
        ApiKey::ListTransactions => decode::<messages::ListTransactionsRequest>(request).map(drop),
        ApiKey::DescribeQuorum => decode::<messages::DescribeQuorumRequest>(request).map(drop),
        ApiKey::UpdateFeatures => decode::<messages::UpdateFeaturesRequest>(request).map(drop),
        ApiKey::ListConfigResources => {
            decode::<messages::ListConfigResourcesRequest>(request).map(drop)
        }
        ApiKey::DescribeTopicPartitions => {
            decode::<messages::DescribeTopicPartitionsRequest>(request).map(drop)
        }
        ApiKey::DescribeClientQuotas => {
            decode::<messages::DescribeClientQuotasRequest>(request).map(drop)
        }
        ApiKey::AlterClientQuotas => {
            decode::<messages::AlterClientQuotasRequest>(request).map(drop)
        }
        ApiKey::ElectLeaders => decode::<messages::ElectLeadersRequest>(request).map(drop),
        ApiKey::AlterPartitionReassignments => {
            decode::<messages::AlterPartitionReassignmentsRequest>(request).map(drop)
        }
        ApiKey::ListPartitionReassignments => {
            decode::<messages::ListPartitionReassignmentsRequest>(request).map(drop)
        }
        ApiKey::ConsumerGroupHeartbeat => {
            decode::<messages::ConsumerGroupHeartbeatRequest>(request).map(drop)
        }
        ApiKey::ConsumerGroupDescribe => {
            decode::<messages::ConsumerGroupDescribeRequest>(request).map(drop)
        }
        ApiKey::SaslHandshake => decode::<messages::SaslHandshakeRequest>(request).map(drop),
        ApiKey::SaslAuthenticate => decode::<messages::SaslAuthenticateRequest>(request).map(drop),
        ApiKey::DescribeAcls => decode::<messages::DescribeAclsRequest>(request).map(drop),
        ApiKey::CreateAcls => decode::<messages::CreateAclsRequest>(request).map(drop),
        ApiKey::DeleteAcls => decode::<messages::DeleteAclsRequest>(request).map(drop),
        ApiKey::DescribeUserScramCredentials => {
            decode::<messages::DescribeUserScramCredentialsRequest>(request).map(drop)
        }
        ApiKey::AlterUserScramCredentials => {
            decode::<messages::AlterUserScramCredentialsRequest>(request).map(drop)
        }
        other => panic!("{other:?} is served and not tested"),
    }
}

fn guarded() -> impl Iterator<Item = (&'static Api, i16)> {
    let guarded = APIS
        .iter()
        .filter(|api| !matches!(api.key, ApiKey::Produce | ApiKey::Fetch));
    guarded.flat_map(|api| (api.served..=api.max).map(move |version| (api, version)))
}

#[test]
fn what_has_the_shape_is_what_the_codec_reads_to_its_last_byte() {
    for (api, version) in guarded() {
        let (body, _) = Generator::body(api, version);
        let outcome = decodes(&request(api, version, body));
        assert_eq!(outcome, Ok(()), "{} version {version}", api.name);
    }
}

#[test]
fn every_truncation_and_every_trailing_byte_is_refused() {
    for (api, version) in guarded() {
        let (body, _) = Generator::body(api, version);
        for len in 0..body.len() {
            let cut = request(api, version, body.slice(..len));
            assert!(check(&cut).is_err(), "{} {version} at {len}", api.name);
        }
        let longer = [&body[..], &[0]].concat();
        let longer = request(api, version, longer.into());
        assert_eq!(check(&longer), Err(Malformed::Trailing), "{}", api.name);
    }
}

#[test]
fn no_count_beyond_the_bytes_reaches_the_codec() {
    for (api, version) in guarded() {
        let (body, counts) = Generator::body(api, version);
        for at in counts {
            let huge: &[u8] = if api.is_flexible(version) {
                &[0xff, 0xff, 0xff, 0xff, 0x0f]
            } else {
                &[0x7f, 0xff, 0xff, 0xff]
            };
            let plain = if api.is_flexible(version) { 1 } else { 4 };
            let mutant = [&body[..at], huge, &body[at + plain..]].concat();
            let outcome = check(&request(api, version, mutant.into()));
            assert_eq!(
                outcome,
                Err(Malformed::Incomplete),
                "{} {version}",
                api.name
            );
        }
    }
}

#[test]
fn flipped_bytes_are_read_alike_or_refused_and_never_panic() {
    for (api, version) in guarded() {
        let (body, _) = Generator::body(api, version);
        for at in 0..body.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut mutant = body.to_vec();
                mutant[at] ^= flip;
                // `Trailing` would mean that the codec read less than the walk.
                let mutant = request(api, version, mutant.into());
                if check(&mutant).is_ok() {
                    assert_ne!(decodes(&mutant), Err(Malformed::Trailing), "{}", api.name);
                }
            }
        }
    }
}

#[test]
fn elements_are_bounded_however_short_they_are() {
    let api = api_of(ApiKey::Metadata as i16).unwrap();
    let mut body = BytesMut::new();
    let topics = u32::try_from(MAX_ELEMENTS).unwrap() + 1;
    body.put_u32(topics);
    for _ in 0..topics {
        body.put_i16(0);
    }
    body.put_u8(1);
    let outcome = check(&request(api, 4, body.freeze()));
    assert_eq!(outcome, Err(Malformed::Elements));
}

fn text(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

pub(super) fn encoded<M: Encodable>(message: &M, version: i16) -> Bytes {
    let mut out = BytesMut::new();
    message.encode(&mut out, version).unwrap();
    out.freeze()
}

fn their_produce() -> messages::ProduceRequest {
    let partition = |index: i32, records: Option<&'static [u8]>| {
        PartitionProduceData::default()
            .with_index(index)
            .with_records(records.map(Bytes::from_static))
    };
    messages::ProduceRequest::default()
        .with_acks(-1)
        .with_timeout_ms(30_000)
        .with_topic_data(vec![
            TopicProduceData::default()
                .with_name(TopicName(text("one")))
                .with_partition_data(vec![partition(0, Some(b"batch")), partition(7, None)]),
            TopicProduceData::default().with_name(TopicName(text("none"))),
        ])
}

#[test]
fn a_produce_is_read_as_its_client_wrote_it_without_a_copy() {
    let api = api_of(0).unwrap();
    for version in api.served..=api.max {
        let body = encoded(&their_produce(), version);
        let ours = ProduceRequest::decode(&request(api, version, body.clone())).unwrap();
        assert_eq!((ours.acks, ours.timeout_ms), (-1, 30_000));
        assert_eq!(ours.topics.len(), 2);
        let one = &ours.topics[0];
        assert_eq!((&*one.name, one.partitions.len()), ("one", 2));
        let records = one.partitions[0].records.as_ref().unwrap();
        assert_eq!(&records[..], b"batch");
        assert!(body.as_ptr_range().contains(&records.as_ptr()), "copied");
        assert_eq!(
            (one.partitions[1].index, &one.partitions[1].records),
            (7, &None)
        );
        for len in 0..body.len() {
            let cut = request(api, version, body.slice(..len));
            assert!(ProduceRequest::decode(&cut).is_err(), "{version} at {len}");
        }
    }
}

fn their_fetch(version: i16) -> messages::FetchRequest {
    let mut partition = TheirPartition::default()
        .with_partition(3)
        .with_fetch_offset(1 << 40)
        .with_partition_max_bytes(1 << 20);
    let mut fetch = messages::FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_wait_ms(500)
        .with_min_bytes(1)
        .with_max_bytes(50 << 20)
        .with_isolation_level(1);
    if version >= 7 {
        fetch.session_id = 0;
        fetch.session_epoch = 0;
        fetch.forgotten_topics_data = vec![
            TheirForgotten::default()
                .with_topic(TopicName(text(if version < 13 { "gone" } else { "" })))
                .with_topic_id(uuid(version, "gone"))
                .with_partitions(vec![1, 2]),
        ];
    }
    if version >= 9 {
        partition.current_leader_epoch = 5;
    }
    if version >= 11 {
        fetch.rack_id = text("rack");
    }
    if version >= 12 {
        partition.last_fetched_epoch = 4;
        fetch.cluster_id = Some(text("cluster"));
    }
    fetch.with_topics(vec![
        TheirTopic::default()
            .with_topic(TopicName(text(if version < 13 { "one" } else { "" })))
            .with_topic_id(uuid(version, "one"))
            .with_partitions(vec![partition.clone(), partition]),
    ])
}

/// The id of a topic, in versions that name them so.
fn uuid(version: i16, name: &str) -> Uuid {
    match version {
        13.. => Uuid::from_u128(name.len() as u128),
        _ => Uuid::nil(),
    }
}

fn fetched_topic(version: i16, name: &str) -> TopicRef {
    match version {
        13.. => TopicRef::Id(uuid(version, name)),
        _ => TopicRef::Name(text(name)),
    }
}

#[test]
fn a_fetch_is_read_as_its_client_wrote_it() {
    let api = api_of(1).unwrap();
    for version in api.served..=api.max {
        let body = encoded(&their_fetch(version), version);
        let ours = FetchRequest::decode(&request(api, version, body.clone())).unwrap();
        assert_eq!((ours.max_wait_ms, ours.min_bytes), (500, 1));
        assert_eq!((ours.max_bytes, ours.isolation_level), (50 << 20, 1));
        let expected = FetchPartition {
            index: 3,
            leader_epoch: if version >= 9 { 5 } else { -1 },
            offset: 1 << 40,
            last_epoch: if version >= 12 { 4 } else { -1 },
            max_bytes: 1 << 20,
        };
        assert_eq!(ours.topics[0].partitions, [expected, expected]);
        assert_eq!(ours.topics[0].topic, fetched_topic(version, "one"));
        let gone = ForgottenTopic {
            topic: fetched_topic(version, "gone"),
            partitions: vec![1, 2],
        };
        let forgotten = if version >= 7 { vec![gone] } else { vec![] };
        assert_eq!(ours.forgotten, forgotten, "{version}");
        let rack = (version >= 11).then(|| text("rack"));
        assert_eq!(ours.rack, rack, "{version}");
        for len in 0..body.len() {
            let cut = request(api, version, body.slice(..len));
            assert!(FetchRequest::decode(&cut).is_err(), "{version} at {len}");
        }
    }
}

/// The answer's body as a client of the codec reads it; it must be read to its end.
fn read_answer<M: Decodable>(answer: &Answer, api: &Api, version: i16) -> M {
    let whole: Vec<u8> = answer.0.iter().flat_map(|slice| slice.to_vec()).collect();
    let (length, rest) = whole.split_first_chunk::<4>().unwrap();
    assert_eq!(u32::from_be_bytes(*length) as usize, rest.len());
    assert_eq!(answer.len(), whole.len());
    let header = if api.is_flexible(version) { 5 } else { 4 };
    let mut body = Bytes::copy_from_slice(&rest[header..]);
    let message = M::decode(&mut body, version).unwrap();
    assert!(body.is_empty(), "{} version {version}", api.name);
    message
}

#[test]
fn a_produce_answer_is_what_its_client_reads() {
    let api = api_of(0).unwrap();
    let produced = Produced {
        index: 3,
        error_code: 10,
        base_offset: -1,
        append_time_ms: -1,
        log_start: 5,
        error_message: Some("too large".to_owned()),
        record_errors: vec![(4, "no key".to_owned())],
        current_leader: None,
    };
    let moved = Produced {
        index: 4,
        error_code: 6,
        current_leader: Some(CurrentLeader { node: 8, epoch: 9 }),
        ..Produced::default()
    };
    let topics = [ProducedTopic {
        name: text("one"),
        partitions: vec![produced, moved],
    }];
    let end = NodeEndpoint {
        node: 8,
        host: "node-8".to_owned(),
        port: 9092,
        rack: Some("r".to_owned()),
    };
    for version in api.served..=api.max {
        let request = request(api, version, Bytes::new());
        let answer = produce_answer(&request, &topics, std::slice::from_ref(&end));
        let read: messages::ProduceResponse = read_answer(&answer, api, version);
        let partition = &read.responses[0].partition_responses[0];
        assert_eq!((partition.index, partition.error_code), (3, 10));
        assert_eq!(partition.base_offset, -1);
        if version >= 5 {
            assert_eq!(partition.log_start_offset, 5);
        }
        if version >= 8 {
            assert_eq!(partition.error_message.as_deref(), Some("too large"));
            let blamed = &partition.record_errors[0];
            let why = blamed.batch_index_error_message.as_deref();
            assert_eq!((blamed.batch_index, why), (4, Some("no key")));
        }
        let told = |at: usize| {
            let leader = &read.responses[0].partition_responses[at].current_leader;
            (leader.leader_id.0, leader.leader_epoch)
        };
        let hints = version >= 10;
        assert_eq!(told(0), (-1, -1), "{version}");
        assert_eq!(told(1), if hints { (8, 9) } else { (-1, -1) }, "{version}");
        assert_eq!(read.node_endpoints.len(), usize::from(hints), "{version}");
        for told in &read.node_endpoints {
            assert_eq!((told.node_id.0, told.port), (8, 9092));
            assert_eq!((&*told.host, told.rack.as_deref()), ("node-8", Some("r")));
        }
    }
}

/// An answer with everything an answer can have.
fn all_of_a_fetch(version: i16, batch: &FetchedBatch) -> Fetched {
    let partition = FetchedPartition {
        topic: fetched_topic(version, "one"),
        index: 3,
        error_code: 0,
        high_watermark: 100,
        last_stable_offset: 90,
        log_start: 10,
        diverging: Some(EpochEnd {
            epoch: 2,
            end_offset: 50,
        }),
        current_leader: None,
        aborted: Some(vec![AbortedTransaction {
            producer_id: 7,
            first_offset: 60,
        }]),
        preferred_replica: None,
        batches: vec![batch.clone(), batch.clone()],
    };
    let mut refused = FetchedPartition::refused(fetched_topic(version, "one"), 4, 6);
    refused.current_leader = (version >= 12).then_some(CurrentLeader { node: 8, epoch: 9 });
    let mut elsewhere = FetchedPartition::refused(fetched_topic(version, "two-2"), 5, 0);
    elsewhere.preferred_replica = Some(3);
    let once_more = FetchedPartition::refused(fetched_topic(version, "one"), 6, 6);
    Fetched {
        error_code: 0,
        session_id: 77,
        partitions: vec![partition, refused, elsewhere, once_more],
        endpoints: vec![
            NodeEndpoint {
                node: 8,
                host: "h".repeat(200),
                port: 9092,
                rack: Some("r".to_owned()),
            },
            NodeEndpoint {
                node: 9,
                host: "i".to_owned(),
                port: 1,
                rack: None,
            },
        ],
    }
}

#[test]
fn a_fetch_answer_is_what_its_client_reads_and_shares_the_records() {
    let api = api_of(1).unwrap();
    let body = Bytes::from_static(b"the rest of a stored batch");
    let batch = FetchedBatch {
        prefix: [9; PREFIX_BYTES],
        body: body.clone(),
    };
    for version in api.served..=api.max {
        let fetched = all_of_a_fetch(version, &batch);
        let answer = fetch_answer(&request(api, version, Bytes::new()), fetched);
        let shared = |slice: &&Bytes| slice.as_ptr() == body.as_ptr();
        assert_eq!(answer.0.iter().filter(shared).count(), 2, "copied");
        let read: messages::FetchResponse = read_answer(&answer, api, version);
        let [first, refused] = &read.responses[0].partitions[..] else {
            panic!("{version}: {read:?}");
        };
        assert_eq!((first.high_watermark, first.last_stable_offset), (100, 90));
        let [aborted] = &first.aborted_transactions.as_ref().unwrap()[..] else {
            panic!("{version}: {first:?}");
        };
        assert_eq!((aborted.producer_id.0, aborted.first_offset), (7, 60));
        assert_eq!(refused.aborted_transactions, None);
        let records = first.records.as_ref().unwrap();
        assert_eq!(records.len(), 2 * (PREFIX_BYTES + body.len()));
        assert_eq!(&records[PREFIX_BYTES..PREFIX_BYTES + body.len()], &body[..]);
        assert_eq!(refused.error_code, 6);
        if version >= 12 {
            assert_eq!(first.diverging_epoch.end_offset, 50);
            let leader = &refused.current_leader;
            assert_eq!((leader.leader_id.0, leader.leader_epoch), (8, 9));
        }
        read_the_rest(version, &read);
    }
}

/// What is told around the records.
fn read_the_rest(version: i16, read: &messages::FetchResponse) {
    let topics: Vec<_> = read
        .responses
        .iter()
        .map(|topic| topic.partitions.len())
        .collect();
    assert_eq!(
        topics,
        [2, 1, 1],
        "neighbours of one topic are told together"
    );
    if version >= 7 {
        assert_eq!(read.session_id, 77);
    }
    if version >= 11 {
        let elsewhere = &read.responses[1].partitions[0];
        assert_eq!(elsewhere.preferred_read_replica.0, 3);
        let first = &read.responses[0].partitions[0];
        assert_eq!(first.preferred_read_replica.0, -1);
    }
    if version >= 16 {
        let [one, two] = &read.node_endpoints[..] else {
            panic!("{version}: {read:?}");
        };
        assert_eq!((one.node_id.0, one.host.len(), one.port), (8, 200, 9092));
        assert_eq!(one.rack.as_deref(), Some("r"));
        assert_eq!((two.node_id.0, two.rack.as_deref()), (9, None));
    }
}

fn framed(key: i16, version: i16, header_version: i16) -> Bytes {
    let header = RequestHeader::default()
        .with_request_api_key(key)
        .with_request_api_version(version)
        .with_correlation_id(9)
        .with_client_id(Some(text("a client")));
    encoded(&header, header_version)
}

#[test]
fn a_header_is_read_as_its_client_wrote_it() {
    for api in APIS {
        for version in api.served..=api.max {
            let header = api.key.request_header_version(version);
            assert_eq!(header == 2, api.is_flexible(version), "{}", api.name);
            let response = api.key.response_header_version(version);
            let tagged = api.is_flexible(version) && api.key != ApiKey::ApiVersions;
            assert_eq!(response == 1, tagged, "{}", api.name);
            let message = framed(api.key as i16, version, header);
            let Opened::Request(request) = Request::open(&message).unwrap() else {
                panic!("{} {version}", api.name);
            };
            assert_eq!(request.correlation_id, 9);
            assert_eq!(request.client_id.as_deref(), Some("a client"));
            assert!(request.body.is_empty());
            for len in 0..message.len() {
                assert!(Request::open(&message.slice(..len)).is_err());
            }
        }
    }
}

#[test]
fn what_is_not_served_closes_the_connection_except_for_api_versions() {
    for (key, version) in [(0, 2), (0, 12), (1, 3), (4, 0), (999, 0), (-1, 0)] {
        let unserved = FrameError::Unserved { key, version };
        assert_eq!(
            Request::open(&framed(key, version, 1)).unwrap_err(),
            unserved
        );
    }
    let opened = Request::open(&framed(18, 99, 2)).unwrap();
    assert!(matches!(
        opened,
        Opened::VersionsUnsupported { correlation_id: 9 }
    ));
}

#[test]
fn lengths_of_frames_are_held_against_the_limit() {
    let length = |length: i32| frame_length(length.to_be_bytes(), 100);
    assert_eq!(length(100), Ok(100));
    assert_eq!(length(8), Ok(8));
    assert_eq!(length(7), Err(FrameError::Short(7)));
    assert_eq!(length(-1), Err(FrameError::Short(-1)));
    let (length_sent, limit) = (i32::MAX, 100);
    assert_eq!(
        length(i32::MAX),
        Err(FrameError::Long {
            length: length_sent,
            limit
        })
    );
}

#[test]
fn versions_advertised_are_within_what_the_codec_knows() {
    for api in APIS {
        let codec = api.key.valid_versions();
        assert!(
            api.served >= codec.min && api.max <= codec.max,
            "{}",
            api.name
        );
        assert!(api.min <= api.served);
    }
    assert!(
        APIS.windows(2)
            .all(|pair| (pair[0].key as i16) < pair[1].key as i16)
    );
}

#[test]
fn the_document_lists_what_is_served() {
    let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/kafka.md");
    let text = std::fs::read_to_string(document).unwrap();
    let documented: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("| ") && line.ends_with(" |"))
        .filter(|line| line[2..].starts_with(|c: char| c.is_ascii_digit()))
        .collect();
    let served: Vec<String> = APIS
        .iter()
        .map(|api| {
            let (key, name) = (api.key as i16, api.name);
            let (min, max, served) = (api.min, api.max, api.served);
            format!("| {key} | {name} | {min}-{max} | {served}-{max} |")
        })
        .collect();
    assert_eq!(documented, served);
}
