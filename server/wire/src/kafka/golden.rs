//! Requests as real clients sent them, one file each: that they are read in full.

use bytes::Bytes;
use kafka_protocol::messages::{self, ApiKey};
use kafka_protocol::protocol::{Decodable, Encodable};

use super::tests::{decodes, encoded};
use super::*;

/// By key, version and client; the fuzz target starts from them, too.
fn golden() -> Vec<(String, Bytes)> {
    let folder = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../tests/fuzz/corpus/kafka_requests"
    );
    let files = std::fs::read_dir(folder).unwrap();
    let files = files.map(|file| {
        let path = file.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        (name, std::fs::read(path).unwrap().into())
    });
    files.collect()
}

/// librdkafka ends this message twice; whoever answers it overlooks that.
const ENDED_TWICE: &str = "51-00-confluent-kafka.bin";

fn comes_back<M: Decodable + Encodable>(request: &Request, name: &str) {
    let message: M = decode(request).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert_eq!(encoded(&message, request.version), request.body, "{name}");
}

#[test]
fn what_real_clients_sent_is_read_in_full() {
    let golden = golden();
    assert!(golden.len() > 190, "the fixtures are gone");
    for (name, message) in golden {
        let request = match Request::open(&message).unwrap() {
            Opened::Request(request) => request,
            // Newer than what is served: its client is told so, and asks again.
            Opened::VersionsUnsupported { .. } => {
                assert!(name.starts_with("18-"), "{name}");
                continue;
            }
        };
        let labelled = format!("{:02}-{:02}-", request.api.key as i16, request.version);
        assert!(name.starts_with(&labelled), "{name} is {labelled}");
        match request.api.key {
            ApiKey::Produce => produce_is_as_the_codec_reads_it(&request, &name),
            ApiKey::Fetch => fetch_is_as_the_codec_reads_it(&request, &name),
            _ => cold_comes_back(&request, &name),
        }
    }
}

fn produce_is_as_the_codec_reads_it(request: &Request, name: &str) {
    let ours = ProduceRequest::decode(request).unwrap();
    let mut body = request.body.clone();
    let theirs = messages::ProduceRequest::decode(&mut body, request.version).unwrap();
    assert_eq!(ours.acks, theirs.acks, "{name}");
    assert_eq!(ours.topics.len(), theirs.topic_data.len(), "{name}");
    for (ours, theirs) in ours.topics.iter().zip(&theirs.topic_data) {
        assert_eq!(ours.name, theirs.name.0, "{name}");
        assert_eq!(ours.partitions.len(), theirs.partition_data.len(), "{name}");
        for (ours, theirs) in ours.partitions.iter().zip(&theirs.partition_data) {
            assert_eq!((ours.index, &ours.records), (theirs.index, &theirs.records));
        }
    }
}

fn fetch_is_as_the_codec_reads_it(request: &Request, name: &str) {
    let ours = FetchRequest::decode(request).unwrap();
    let mut body = request.body.clone();
    let theirs = messages::FetchRequest::decode(&mut body, request.version).unwrap();
    assert_eq!(ours.max_wait_ms, theirs.max_wait_ms, "{name}");
    assert_eq!(ours.topics.len(), theirs.topics.len(), "{name}");
    for (ours, theirs) in ours.topics.iter().zip(&theirs.topics) {
        let expected = match request.version {
            13.. => TopicRef::Id(theirs.topic_id),
            _ => TopicRef::Name(theirs.topic.0.clone()),
        };
        assert_eq!(ours.topic, expected, "{name}");
        assert_eq!(ours.partitions.len(), theirs.partitions.len(), "{name}");
        for (ours, theirs) in ours.partitions.iter().zip(&theirs.partitions) {
            let found = (ours.index, ours.offset, ours.max_bytes);
            let (index, offset) = (theirs.partition, theirs.fetch_offset);
            assert_eq!(found, (index, offset, theirs.partition_max_bytes), "{name}");
        }
    }
}

fn cold_comes_back(request: &Request, name: &str) {
    let mut request = request.clone();
    if name == ENDED_TWICE {
        assert_eq!(decodes(&request), Err(Malformed::Trailing), "{name}");
        request.body.truncate(request.body.len() - 1);
    }
    let request = &request;
    macro_rules! one_of {
        ($( $key:ident => $message:ident, )+) => {
            match request.api.key {
                $( ApiKey::$key => comes_back::<messages::$message>(request, name), )+
                _ => decodes(request).unwrap(),
            }
        };
    }
    one_of! {
        ListOffsets => ListOffsetsRequest,
        Metadata => MetadataRequest,
        ApiVersions => ApiVersionsRequest,
        CreateTopics => CreateTopicsRequest,
        DeleteTopics => DeleteTopicsRequest,
        DeleteRecords => DeleteRecordsRequest,
        InitProducerId => InitProducerIdRequest,
        DescribeConfigs => DescribeConfigsRequest,
        CreatePartitions => CreatePartitionsRequest,
        IncrementalAlterConfigs => IncrementalAlterConfigsRequest,
        DescribeCluster => DescribeClusterRequest,
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
        DescribeProducers => DescribeProducersRequest,
        DescribeTransactions => DescribeTransactionsRequest,
        ListTransactions => ListTransactionsRequest,
        ConsumerGroupHeartbeat => ConsumerGroupHeartbeatRequest,
        ConsumerGroupDescribe => ConsumerGroupDescribeRequest,
        WriteTxnMarkers => WriteTxnMarkersRequest,
        DescribeAcls => DescribeAclsRequest,
        CreateAcls => CreateAclsRequest,
        DeleteAcls => DeleteAclsRequest,
        AlterConfigs => AlterConfigsRequest,
        DescribeLogDirs => DescribeLogDirsRequest,
        SaslHandshake => SaslHandshakeRequest,
        SaslAuthenticate => SaslAuthenticateRequest,
        ElectLeaders => ElectLeadersRequest,
        AlterPartitionReassignments => AlterPartitionReassignmentsRequest,
        ListPartitionReassignments => ListPartitionReassignmentsRequest,
        DescribeClientQuotas => DescribeClientQuotasRequest,
        AlterClientQuotas => AlterClientQuotasRequest,
        DescribeUserScramCredentials => DescribeUserScramCredentialsRequest,
        AlterUserScramCredentials => AlterUserScramCredentialsRequest,
        DescribeQuorum => DescribeQuorumRequest,
        UpdateFeatures => UpdateFeaturesRequest,
        ListConfigResources => ListConfigResourcesRequest,
        DescribeTopicPartitions => DescribeTopicPartitionsRequest,
    }
}
