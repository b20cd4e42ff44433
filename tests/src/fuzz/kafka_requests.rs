//! Requests of Kafka clients, before anybody is asked who they are: the header, the walk that
//! checks lengths, and whichever decoder comes behind it.

use bytes::Bytes;
use trilog_wire::kafka::messages::{self, ApiKey};
use trilog_wire::kafka::{
    FetchRequest, MAX_ELEMENTS, Malformed, Opened, ProduceRequest, Request, check, decode,
};

/// Opens and decodes one message, its length left off.
pub fn kafka_requests(bytes: &[u8]) {
    let message = Bytes::copy_from_slice(bytes);
    let Ok(Opened::Request(request)) = Request::open(&message) else {
        return;
    };
    match request.api.key {
        ApiKey::Produce => drop(ProduceRequest::decode(&request)),
        ApiKey::Fetch => drop(FetchRequest::decode(&request)),
        _ => guarded(&request),
    }
}

/// What the walk passes, the codec reads to the same end, or refuses for what it says; the walk
/// announces no more than may be made room for.
fn guarded(request: &Request) {
    let Ok(elements) = check(request) else {
        return;
    };
    assert!(elements <= MAX_ELEMENTS && elements <= request.body.len());
    let read = cold(request);
    assert_ne!(read, Err(Malformed::Trailing), "the codec read less");
}

fn cold(request: &Request) -> Result<(), Malformed> {
    macro_rules! decode_one {
        ($( $key:ident => $message:ident, )+) => {
            match request.api.key {
                $( ApiKey::$key => decode::<messages::$message>(request).map(drop), )+
                other => panic!("{other:?} is served and not fuzzed"),
            }
        };
    }
    decode_one! {
        SaslHandshake => SaslHandshakeRequest,
        SaslAuthenticate => SaslAuthenticateRequest,
        DescribeAcls => DescribeAclsRequest,
        CreateAcls => CreateAclsRequest,
        DeleteAcls => DeleteAclsRequest,
        DescribeUserScramCredentials => DescribeUserScramCredentialsRequest,
        AlterUserScramCredentials => AlterUserScramCredentialsRequest,
        ListOffsets => ListOffsetsRequest,
        Metadata => MetadataRequest,
        ApiVersions => ApiVersionsRequest,
        CreateTopics => CreateTopicsRequest,
        DeleteTopics => DeleteTopicsRequest,
        DeleteRecords => DeleteRecordsRequest,
        InitProducerId => InitProducerIdRequest,
        OffsetForLeaderEpoch => OffsetForLeaderEpochRequest,
        DescribeConfigs => DescribeConfigsRequest,
        AlterConfigs => AlterConfigsRequest,
        CreatePartitions => CreatePartitionsRequest,
        IncrementalAlterConfigs => IncrementalAlterConfigsRequest,
        DescribeCluster => DescribeClusterRequest,
        DescribeLogDirs => DescribeLogDirsRequest,
        OffsetCommit => OffsetCommitRequest,
        OffsetFetch => OffsetFetchRequest,
        FindCoordinator => FindCoordinatorRequest,
        JoinGroup => JoinGroupRequest,
        Heartbeat => HeartbeatRequest,
        LeaveGroup => LeaveGroupRequest,
        SyncGroup => SyncGroupRequest,
        DescribeGroups => DescribeGroupsRequest,
        ListGroups => ListGroupsRequest,
        DeleteGroups => DeleteGroupsRequest,
        OffsetDelete => OffsetDeleteRequest,
        AddPartitionsToTxn => AddPartitionsToTxnRequest,
        AddOffsetsToTxn => AddOffsetsToTxnRequest,
        EndTxn => EndTxnRequest,
        TxnOffsetCommit => TxnOffsetCommitRequest,
        WriteTxnMarkers => WriteTxnMarkersRequest,
        DescribeProducers => DescribeProducersRequest,
        DescribeTransactions => DescribeTransactionsRequest,
        ListTransactions => ListTransactionsRequest,
        DescribeQuorum => DescribeQuorumRequest,
        UpdateFeatures => UpdateFeaturesRequest,
        ListConfigResources => ListConfigResourcesRequest,
        DescribeTopicPartitions => DescribeTopicPartitionsRequest,
        DescribeClientQuotas => DescribeClientQuotasRequest,
        AlterClientQuotas => AlterClientQuotasRequest,
        ElectLeaders => ElectLeadersRequest,
        AlterPartitionReassignments => AlterPartitionReassignmentsRequest,
        ListPartitionReassignments => ListPartitionReassignmentsRequest,
        ConsumerGroupHeartbeat => ConsumerGroupHeartbeatRequest,
        ConsumerGroupDescribe => ConsumerGroupDescribeRequest,
    }
}
