//! Where an answer says for how long its client is held back, and saying it in one that is ready.

use bytes::BytesMut;
use kafka_protocol::messages::ApiKey;

use super::answer::Answer;
use super::api::Api;
use super::frame::LENGTH_BYTES;

const CORRELATION_BYTES: usize = 4;
const CODE_BYTES: usize = 2;
const FIELD_BYTES: usize = 4;
/// A key and its two versions.
const RANGE_BYTES: usize = 6;

/// Where the time stands in a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    First,
    /// Behind a code.
    Second,
    /// Behind a code and what can be asked.
    BehindApis,
    /// Last but for tagged fields: there are none, or they are in a slice of their own.
    Last,
}

/// The first version of an answer that has a time, and where; none where none has.
fn field(key: ApiKey) -> Option<(i16, Place)> {
    let (since, place) = match key {
        ApiKey::SaslHandshake
        | ApiKey::SaslAuthenticate
        | ApiKey::WriteTxnMarkers
        | ApiKey::DescribeQuorum => return None,
        ApiKey::Produce => (1, Place::Last),
        ApiKey::ApiVersions => (1, Place::BehindApis),
        ApiKey::OffsetDelete => (0, Place::Second),
        ApiKey::Metadata | ApiKey::OffsetCommit | ApiKey::OffsetFetch => (3, Place::First),
        ApiKey::ListOffsets
        | ApiKey::JoinGroup
        | ApiKey::CreateTopics
        | ApiKey::OffsetForLeaderEpoch => (2, Place::First),
        ApiKey::Fetch
        | ApiKey::FindCoordinator
        | ApiKey::Heartbeat
        | ApiKey::LeaveGroup
        | ApiKey::SyncGroup
        | ApiKey::DescribeGroups
        | ApiKey::ListGroups
        | ApiKey::DeleteTopics => (1, Place::First),
        // All that came later.
        _ => (0, Place::First),
    };
    Some((since, place))
}

impl Answer {
    /// The answer with a time for which its client is held back, where its version has one.
    #[must_use]
    pub fn throttled(mut self, api: &Api, version: i16, millis: i32) -> Self {
        let Some((_, place)) = field(api.key).filter(|(since, _)| version >= *since) else {
            return self;
        };
        let tags_apart = place == Place::Last && self.0.len() > 1;
        let Some(slice) = self.0.first_mut() else {
            return self;
        };
        let whole = std::mem::take(slice);
        let mut whole = whole
            .try_into_mut()
            .unwrap_or_else(|shared| BytesMut::from(&*shared));
        if let Some(start) = start(&whole, place, api.is_flexible(version) && !tags_apart)
            && let Some(field) = whole.get_mut(start..start + FIELD_BYTES)
        {
            field.copy_from_slice(&millis.to_be_bytes());
        }
        *slice = whole.freeze();
        self
    }
}

/// Where the field begins in its slice.
fn start(slice: &[u8], place: Place, flexible: bool) -> Option<usize> {
    let tags = usize::from(flexible);
    let header = LENGTH_BYTES + CORRELATION_BYTES;
    match place {
        Place::First => Some(header + tags),
        Place::Second => Some(header + tags + CODE_BYTES),
        Place::Last => slice.len().checked_sub(FIELD_BYTES + tags),
        // Its header has no tagged fields, in no version.
        Place::BehindApis => {
            let (count, width) = count(slice.get(header + CODE_BYTES..)?, flexible)?;
            Some(header + CODE_BYTES + width + count * (RANGE_BYTES + tags))
        }
    }
}

/// The number of elements of an array, and how many bytes say so. There are less than 2^14.
fn count(bytes: &[u8], flexible: bool) -> Option<(usize, usize)> {
    if !flexible {
        let count = u32::from_be_bytes(*bytes.first_chunk()?);
        return Some((usize::try_from(count).ok()?, FIELD_BYTES));
    }
    let low = usize::from(*bytes.first()?);
    if low < 0x80 {
        return Some((low.checked_sub(1)?, 1));
    }
    let high = usize::from(*bytes.get(1)?);
    Some(((low & 0x7f) + (high << 7) - 1, 2))
}

#[cfg(test)]
mod tests {
    use kafka_protocol::messages::{self, api_versions_response::ApiVersion};
    use kafka_protocol::protocol::Encodable;

    use super::super::{APIS, Writer};
    use super::*;

    const MILLIS: i32 = 0x0102_0304;

    fn written<M: Encodable>(api: &Api, version: i16, message: &M) -> Vec<u8> {
        let answer = Writer::of(api, version, 9, message).unwrap();
        answer.0.concat()
    }

    /// An answer that is throttled afterwards is the one that the codec writes.
    fn check<M: Encodable>(api: &Api, version: i16, free: &M, held: &M) {
        let answer = Writer::of(api, version, 9, free).unwrap();
        let answer = answer.throttled(api, version, MILLIS);
        let name = api.name;
        assert_eq!(
            answer.0.concat(),
            written(api, version, held),
            "{name} {version}"
        );
    }

    macro_rules! checked {
        ($api:ident, $version:ident; $( $key:ident => $message:ident, )+; $( $without:ident => $other:ident, )+) => {
            match $api.key {
                $( ApiKey::$key => {
                    let free = messages::$message::default();
                    let held = messages::$message::default().with_throttle_time_ms(MILLIS);
                    check($api, $version, &free, &held);
                } )+
                $( ApiKey::$without => {
                    let free = messages::$other::default();
                    check($api, $version, &free, &free);
                } )+
                other => panic!("{other:?} is not checked"),
            }
        };
    }

    #[test]
    fn every_answer_says_the_time_where_the_codec_does() {
        for api in APIS {
            for version in api.served..=api.max {
                check_one(api, version);
            }
        }
    }

    fn check_one(api: &Api, version: i16) {
        checked! { api, version;
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
            DescribeAcls => DescribeAclsResponse,
            CreateAcls => CreateAclsResponse,
            DeleteAcls => DeleteAclsResponse,
            DescribeConfigs => DescribeConfigsResponse,
            AlterConfigs => AlterConfigsResponse,
            DescribeLogDirs => DescribeLogDirsResponse,
            CreatePartitions => CreatePartitionsResponse,
            DeleteGroups => DeleteGroupsResponse,
            ElectLeaders => ElectLeadersResponse,
            IncrementalAlterConfigs => IncrementalAlterConfigsResponse,
            AlterPartitionReassignments => AlterPartitionReassignmentsResponse,
            ListPartitionReassignments => ListPartitionReassignmentsResponse,
            OffsetDelete => OffsetDeleteResponse,
            DescribeClientQuotas => DescribeClientQuotasResponse,
            AlterClientQuotas => AlterClientQuotasResponse,
            DescribeUserScramCredentials => DescribeUserScramCredentialsResponse,
            AlterUserScramCredentials => AlterUserScramCredentialsResponse,
            DescribeCluster => DescribeClusterResponse,
            DescribeProducers => DescribeProducersResponse,
            DescribeTransactions => DescribeTransactionsResponse,
            ListTransactions => ListTransactionsResponse,
            ConsumerGroupHeartbeat => ConsumerGroupHeartbeatResponse,
            ConsumerGroupDescribe => ConsumerGroupDescribeResponse,
            DescribeTopicPartitions => DescribeTopicPartitionsResponse,
            UpdateFeatures => UpdateFeaturesResponse,
            ListConfigResources => ListConfigResourcesResponse,
            ;
            SaslHandshake => SaslHandshakeResponse,
            SaslAuthenticate => SaslAuthenticateResponse,
            WriteTxnMarkers => WriteTxnMarkersResponse,
            DescribeQuorum => DescribeQuorumResponse,
        }
    }

    #[test]
    fn it_is_found_before_the_leaders_of_a_produce() {
        use super::super::{NodeEndpoint, Opened, Request, produce_answer};

        let api = super::super::api_of(ApiKey::Produce as i16).unwrap();
        let end = NodeEndpoint {
            node: 2,
            host: "n2".to_owned(),
            port: 9092,
            rack: None,
        };
        for version in api.served..=api.max {
            let mut message = vec![
                0,
                0,
                0,
                u8::try_from(version).unwrap(),
                0,
                0,
                0,
                9,
                0xff,
                0xff,
            ];
            message.resize(message.len() + usize::from(api.is_flexible(version)), 0);
            let opened = Request::open(&message.into()).unwrap();
            let Opened::Request(request) = opened else {
                panic!("{version}");
            };
            let answer = produce_answer(&request, &[], std::slice::from_ref(&end));
            let answer = answer.throttled(api, version, MILLIS).0.concat();
            let theirs = messages::produce_response::NodeEndpoint::default()
                .with_node_id(messages::BrokerId(2))
                .with_host(host_two())
                .with_port(9092);
            let ends = if version >= 10 { vec![theirs] } else { vec![] };
            let held = messages::ProduceResponse::default()
                .with_throttle_time_ms(MILLIS)
                .with_node_endpoints(ends);
            assert_eq!(answer, written(api, version, &held), "{version}");
        }
    }

    fn host_two() -> super::super::StrBytes {
        super::super::StrBytes::from_static_str("n2")
    }

    #[test]
    fn it_is_found_behind_any_number_of_apis() {
        let api = super::super::api_of(ApiKey::ApiVersions as i16).unwrap();
        for version in 0..=api.max {
            for count in [0, 1, 60, 126, 127, 128, 300] {
                let keys = vec![ApiVersion::default().with_max_version(7); count];
                let free = messages::ApiVersionsResponse::default().with_api_keys(keys);
                let held = free.clone().with_throttle_time_ms(MILLIS);
                check(api, version, &free, &held);
            }
        }
    }
}
