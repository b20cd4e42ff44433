//! What real clients sent is answered: each fixture, on a connection of its own, with a response
//! that the codec reads to its end and in which nothing went wrong inside the node.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod kafka_conn;
mod nodes;

use std::fmt::Debug;
use std::path::Path;

use bytes::{BufMut, Bytes, BytesMut};
use kafka_conn::KafkaConn;
use kafka_protocol::messages::{self, ApiKey, ApiVersionsResponse, ProduceRequest};
use kafka_protocol::protocol::Decodable;
use nodes::Nodes;
use tokio::task::JoinSet;
use trilog_wire::kafka::{Opened, Request};

const FIXTURES: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../tests/fuzz/corpus/kafka_requests"
);
/// Of the node, whatever the request was: a fault of ours.
const SERVER_FAULT: &str = "error_code: -1";
const UNSUPPORTED_VERSION: i16 = 35;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_real_clients_sent_is_answered() {
    let mut nodes = Nodes::start(1).await;
    let port = nodes.kafka_port(0);
    let mut answers = JoinSet::new();
    for file in std::fs::read_dir(FIXTURES).unwrap() {
        let path = file.unwrap().path();
        answers.spawn(async move { answer(port, &path).await });
    }
    assert!(answers.len() > 190, "the fixtures are gone");
    while let Some(answered) = answers.join_next().await {
        answered.unwrap();
    }
    nodes.stop();
    nodes.verify_logs();
}

async fn answer(port: u16, fixture: &Path) {
    let name = fixture.file_name().unwrap().to_string_lossy();
    let message = Bytes::from(std::fs::read(fixture).unwrap());
    let mut framed = BytesMut::new();
    framed.put_u32(u32::try_from(message.len()).unwrap());
    framed.extend_from_slice(&message);
    let mut conn = KafkaConn::open(port).await;
    conn.say(&framed).await;
    match Request::open(&message).unwrap() {
        Opened::Request(request) if is_unanswered(&request) => {}
        Opened::Request(request) => receive(&mut conn, &request, &name).await,
        // Told in the oldest version, which every client reads.
        Opened::VersionsUnsupported { .. } => {
            let answer: ApiVersionsResponse = conn.receive(ApiKey::ApiVersions, 0).await;
            assert_eq!(answer.error_code, UNSUPPORTED_VERSION, "{name}");
            assert!(!answer.api_keys.is_empty(), "{name}");
        }
    }
}

/// A produce that asks for no acknowledgement.
fn is_unanswered(request: &Request) -> bool {
    let mut body = request.body.clone();
    if request.api.key != ApiKey::Produce {
        return false;
    }
    let produce = ProduceRequest::decode(&mut body, request.version).unwrap();
    produce.acks == 0
}

async fn one<R: Decodable + Debug>(conn: &mut KafkaConn, request: &Request, name: &str) {
    let answer: R = conn.receive(request.api.key, request.version).await;
    let said = format!("{answer:?}");
    assert!(!said.contains(SERVER_FAULT), "{name}: {said}");
}

async fn receive(conn: &mut KafkaConn, request: &Request, name: &str) {
    macro_rules! one_of {
        ($( $key:ident => $message:ident, )+) => {
            match request.api.key {
                $( ApiKey::$key => one::<messages::$message>(conn, request, name).await, )+
                other => panic!("{other:?} has a fixture and is not answered here"),
            }
        };
    }
    one_of! {
        Produce => ProduceResponse,
        Fetch => FetchResponse,
        ListOffsets => ListOffsetsResponse,
        Metadata => MetadataResponse,
        OffsetCommit => OffsetCommitResponse,
        OffsetFetch => OffsetFetchResponse,
        FindCoordinator => FindCoordinatorResponse,
        JoinGroup => JoinGroupResponse,
        Heartbeat => HeartbeatResponse,
        LeaveGroup => LeaveGroupResponse,
        SyncGroup => SyncGroupResponse,
        DescribeGroups => DescribeGroupsResponse,
        ListGroups => ListGroupsResponse,
        ApiVersions => ApiVersionsResponse,
        CreateTopics => CreateTopicsResponse,
        DeleteTopics => DeleteTopicsResponse,
        DeleteRecords => DeleteRecordsResponse,
        InitProducerId => InitProducerIdResponse,
        OffsetForLeaderEpoch => OffsetForLeaderEpochResponse,
        AddPartitionsToTxn => AddPartitionsToTxnResponse,
        AddOffsetsToTxn => AddOffsetsToTxnResponse,
        EndTxn => EndTxnResponse,
        TxnOffsetCommit => TxnOffsetCommitResponse,
        DescribeConfigs => DescribeConfigsResponse,
        AlterConfigs => AlterConfigsResponse,
        CreatePartitions => CreatePartitionsResponse,
        DeleteGroups => DeleteGroupsResponse,
        IncrementalAlterConfigs => IncrementalAlterConfigsResponse,
        OffsetDelete => OffsetDeleteResponse,
        DescribeCluster => DescribeClusterResponse,
        DescribeProducers => DescribeProducersResponse,
        DescribeTransactions => DescribeTransactionsResponse,
        ListTransactions => ListTransactionsResponse,
        ConsumerGroupHeartbeat => ConsumerGroupHeartbeatResponse,
        ConsumerGroupDescribe => ConsumerGroupDescribeResponse,
        WriteTxnMarkers => WriteTxnMarkersResponse,
        DescribeAcls => DescribeAclsResponse,
        CreateAcls => CreateAclsResponse,
        DeleteAcls => DeleteAclsResponse,
        DescribeLogDirs => DescribeLogDirsResponse,
        SaslHandshake => SaslHandshakeResponse,
        SaslAuthenticate => SaslAuthenticateResponse,
        ElectLeaders => ElectLeadersResponse,
        AlterPartitionReassignments => AlterPartitionReassignmentsResponse,
        ListPartitionReassignments => ListPartitionReassignmentsResponse,
        DescribeClientQuotas => DescribeClientQuotasResponse,
        AlterClientQuotas => AlterClientQuotasResponse,
        DescribeUserScramCredentials => DescribeUserScramCredentialsResponse,
        AlterUserScramCredentials => AlterUserScramCredentialsResponse,
        DescribeQuorum => DescribeQuorumResponse,
        UpdateFeatures => UpdateFeaturesResponse,
        ListConfigResources => ListConfigResourcesResponse,
        DescribeTopicPartitions => DescribeTopicPartitionsResponse,
    }
}
