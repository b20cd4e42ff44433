//! Who may do what: each request, with each right it takes missing, is refused in the words of a
//! broker, and served once all are there.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]
#![allow(
    clippy::too_many_lines,
    clippy::wildcard_imports,
    reason = "a table is as long as what it lists, and names most of the messages"
)]

#[path = "kafka_acls/fetch_tests.rs"]
mod fetch_tests;
mod kafka_conn;
#[path = "kafka_acls/native_tests.rs"]
mod native_tests;
mod nodes;

use std::os::unix::fs::PermissionsExt as _;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use kafka_conn::{KafkaConn, text};
use kafka_protocol::messages::create_acls_request::AclCreation;
use kafka_protocol::messages::*;
use nodes::Nodes;
use trilog_model::batch::{BatchBuilder, Compression};
use trilog_wire::kafka::APIS;

const PASSWORD: &str = "correct-horse-battery";
const TOPIC: &str = "orders";
const GROUP: &str = "readers";
const ID: &str = "writer-1";

/// Numbers of Kafka's.
const TOPICS: i8 = 2;
const GROUPS: i8 = 3;
const CLUSTER: i8 = 4;
const IDS: i8 = 5;
const READ: i8 = 3;
const WRITE: i8 = 4;
const CREATE: i8 = 5;
const DELETE: i8 = 6;
const ALTER: i8 = 7;
const DESCRIBE: i8 = 8;
const CLUSTER_ACTION: i8 = 9;
const DESCRIBE_CONFIGS: i8 = 10;
const ALTER_CONFIGS: i8 = 11;
const IDEMPOTENT_WRITE: i8 = 12;
const LITERAL: i8 = 3;
const DENY: i8 = 2;
const ALLOW: i8 = 3;
/// What a refusal is called, by the kind of resource.
const NO_TOPIC: i16 = 29;
const NO_GROUP: i16 = 30;
const NO_CLUSTER: i16 = 31;
const NO_ID: i16 = 53;

/// A right: to do this to a resource of this kind.
type Right = (i8, i8);
type Ask = for<'a> fn(&'a mut KafkaConn) -> BoxFuture<'a, Vec<i16>>;

/// One request, and what it takes.
struct Row {
    api: ApiKey,
    /// Each with the code that its lack is answered with.
    takes: &'static [(Right, i16)],
    /// Sends it; every code of the answer.
    ask: Ask,
}

async fn start(more: &str) -> (Nodes, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("admin");
    std::fs::write(&file, format!("admin:{PASSWORD}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let access = format!(
        "[access]\nauthentication = \"required\"\nsuper_users = [\"admin\"]\nadmin_file = \"{}\"\n{more}",
        file.display()
    );
    let nodes = Nodes::start_as(1, &access, "admin", PASSWORD).await;
    let file = dir.path().join("alice");
    std::fs::write(&file, PASSWORD).unwrap();
    nodes.run(&[
        "user",
        "add",
        "alice",
        "--password-file",
        file.to_str().unwrap(),
    ]);
    nodes.run(&["topic", "create", TOPIC]);
    (nodes, dir)
}

fn resource(kind: i8) -> &'static str {
    match kind {
        TOPICS => TOPIC,
        GROUPS => GROUP,
        IDS => ID,
        _ => "kafka-cluster",
    }
}

fn rule((kind, operation): Right, name: &str, permission: i8) -> AclCreation {
    AclCreation::default()
        .with_resource_type(kind)
        .with_resource_name(text(name))
        .with_resource_pattern_type(LITERAL)
        .with_principal(text("User:alice"))
        .with_host(text("*"))
        .with_operation(operation)
        .with_permission_type(permission)
}

async fn add(admin: &mut KafkaConn, rules: Vec<AclCreation>) {
    let request = CreateAclsRequest::default().with_creations(rules);
    let answer: CreateAclsResponse = admin.ask(ApiKey::CreateAcls, 2, &request).await;
    assert!(
        answer.results.iter().all(|result| result.error_code == 0),
        "{answer:?}"
    );
}

async fn grant(admin: &mut KafkaConn, rights: &[Right]) {
    let rules = rights
        .iter()
        .map(|right| rule(*right, resource(right.0), ALLOW));
    add(admin, rules.collect()).await;
}

/// Takes every rule away; how many there were.
async fn clear(admin: &mut KafkaConn) -> usize {
    let all = delete_acls_request::DeleteAclsFilter::default()
        .with_resource_name_filter(None)
        .with_principal_filter(None)
        .with_host_filter(None)
        .with_resource_type_filter(1)
        .with_pattern_type_filter(1)
        .with_operation(1)
        .with_permission_type(1);
    let request = DeleteAclsRequest::default().with_filters(vec![all]);
    let answer: DeleteAclsResponse = admin.ask(ApiKey::DeleteAcls, 2, &request).await;
    assert_eq!(answer.filter_results[0].error_code, 0);
    answer.filter_results[0].matching_acls.len()
}

fn name() -> TopicName {
    TopicName(text(TOPIC))
}

fn group() -> GroupId {
    GroupId(text(GROUP))
}

fn id() -> TransactionalId {
    TransactionalId(text(ID))
}

fn batch(producer: Option<(i64, i16)>) -> Bytes {
    let mut batch = BatchBuilder::new(Compression::None);
    batch.push(1, None, Some(b"value"), &[]).unwrap();
    let mut bytes = batch.build().unwrap().to_vec();
    if let Some((id, epoch)) = producer {
        // Attributes, producer, epoch, sequence; then the checksum of all of it.
        bytes[22] |= 0x10;
        bytes[43..51].copy_from_slice(&id.to_be_bytes());
        bytes[51..53].copy_from_slice(&epoch.to_be_bytes());
        bytes[53..57].copy_from_slice(&0_i32.to_be_bytes());
        let sum = crc(&bytes[21..]);
        bytes[17..21].copy_from_slice(&sum.to_be_bytes());
    }
    bytes.into()
}

/// CRC-32C, a bit at a time.
fn crc(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    };
    !bytes.iter().fold(!0, step)
}

macro_rules! row {
    ($api:ident $version:literal, [$($right:expr => $code:expr),*], $request:expr, |$answer:ident: $response:ty| $codes:expr) => {
        Row {
            api: ApiKey::$api,
            takes: &[$(($right, $code)),*],
            ask: |conn| {
                async move {
                    let $answer: $response = conn.ask(ApiKey::$api, $version, &$request).await;
                    $codes
                }
                .boxed()
            },
        }
    };
}

#[path = "kafka_acls/tools.rs"]
mod tools;

fn produce(records: Bytes, id: Option<TransactionalId>) -> ProduceRequest {
    let partition = produce_request::PartitionProduceData::default().with_records(Some(records));
    let topic = produce_request::TopicProduceData::default()
        .with_name(name())
        .with_partition_data(vec![partition]);
    ProduceRequest::default()
        .with_transactional_id(id)
        .with_acks(-1)
        .with_timeout_ms(10_000)
        .with_topic_data(vec![topic])
}

fn produced(answer: &ProduceResponse) -> Vec<i16> {
    let partitions = answer
        .responses
        .iter()
        .flat_map(|topic| &topic.partition_responses);
    partitions.map(|partition| partition.error_code).collect()
}

fn reading() -> Vec<Row> {
    vec![
        row!(Produce 7, [(TOPICS, WRITE) => NO_TOPIC], produce(batch(None), None), |answer: ProduceResponse| produced(&answer)),
        row!(
            Produce 7,
            [(IDS, WRITE) => NO_ID, (TOPICS, WRITE) => NO_TOPIC],
            produce(batch(Some((1 << 40, 0))), Some(id())),
            |answer: ProduceResponse| produced(&answer)
        ),
        row!(
            Fetch 11,
            [(TOPICS, READ) => NO_TOPIC],
            {
                let partition = fetch_request::FetchPartition::default().with_partition_max_bytes(1 << 20);
                let topic = fetch_request::FetchTopic::default().with_topic(name()).with_partitions(vec![partition]);
                FetchRequest::default().with_replica_id(BrokerId(-1)).with_max_bytes(1 << 20).with_topics(vec![topic])
            },
            |answer: FetchResponse| answer.responses[0].partitions.iter().map(|one| one.error_code).collect()
        ),
        row!(
            ListOffsets 5,
            [(TOPICS, DESCRIBE) => NO_TOPIC],
            {
                let partition = list_offsets_request::ListOffsetsPartition::default().with_timestamp(-1).with_current_leader_epoch(-1);
                let topic = list_offsets_request::ListOffsetsTopic::default().with_name(name()).with_partitions(vec![partition]);
                ListOffsetsRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic])
            },
            |answer: ListOffsetsResponse| vec![answer.topics[0].partitions[0].error_code]
        ),
        row!(
            Metadata 9,
            [(TOPICS, DESCRIBE) => NO_TOPIC],
            {
                let topic = metadata_request::MetadataRequestTopic::default().with_name(Some(name()));
                MetadataRequest::default().with_topics(Some(vec![topic]))
            },
            |answer: MetadataResponse| vec![answer.topics[0].error_code]
        ),
        row!(
            OffsetForLeaderEpoch 3,
            [(TOPICS, DESCRIBE) => NO_TOPIC],
            {
                let partition = offset_for_leader_epoch_request::OffsetForLeaderPartition::default()
                    .with_current_leader_epoch(-1)
                    .with_leader_epoch(1);
                let topic = offset_for_leader_epoch_request::OffsetForLeaderTopic::default().with_topic(name()).with_partitions(vec![partition]);
                OffsetForLeaderEpochRequest::default().with_replica_id(BrokerId(-1)).with_topics(vec![topic])
            },
            |answer: OffsetForLeaderEpochResponse| vec![answer.topics[0].partitions[0].error_code]
        ),
        row!(
            DescribeProducers 0,
            [(TOPICS, READ) => NO_TOPIC],
            {
                let topic = describe_producers_request::TopicRequest::default().with_name(name()).with_partition_indexes(vec![0]);
                DescribeProducersRequest::default().with_topics(vec![topic])
            },
            |answer: DescribeProducersResponse| vec![answer.topics[0].partitions[0].error_code]
        ),
    ]
}

fn groups() -> Vec<Row> {
    vec![
        row!(
            FindCoordinator 2,
            [(GROUPS, DESCRIBE) => NO_GROUP],
            FindCoordinatorRequest::default().with_key(text(GROUP)).with_key_type(0),
            |answer: FindCoordinatorResponse| vec![answer.error_code]
        ),
        row!(
            FindCoordinator 4,
            [(IDS, DESCRIBE) => NO_ID],
            FindCoordinatorRequest::default().with_coordinator_keys(vec![text(ID)]).with_key_type(1),
            |answer: FindCoordinatorResponse| vec![answer.coordinators[0].error_code]
        ),
        row!(
            OffsetCommit 7,
            [(GROUPS, READ) => NO_GROUP, (TOPICS, READ) => NO_TOPIC],
            {
                let partition = offset_commit_request::OffsetCommitRequestPartition::default().with_committed_metadata(Some(text("")));
                let topic = offset_commit_request::OffsetCommitRequestTopic::default().with_name(name()).with_partitions(vec![partition]);
                OffsetCommitRequest::default().with_group_id(group()).with_generation_id_or_member_epoch(-1).with_topics(vec![topic])
            },
            |answer: OffsetCommitResponse| vec![answer.topics[0].partitions[0].error_code]
        ),
        row!(
            OffsetFetch 7,
            [(GROUPS, DESCRIBE) => NO_GROUP, (TOPICS, DESCRIBE) => NO_TOPIC],
            {
                let topic = offset_fetch_request::OffsetFetchRequestTopic::default().with_name(name()).with_partition_indexes(vec![0]);
                OffsetFetchRequest::default().with_group_id(group()).with_topics(Some(vec![topic]))
            },
            |answer: OffsetFetchResponse| {
                let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
                partitions.map(|one| one.error_code).chain([answer.error_code]).collect()
            }
        ),
        row!(
            JoinGroup 5,
            [(GROUPS, READ) => NO_GROUP],
            JoinGroupRequest::default().with_group_id(group()).with_session_timeout_ms(6_000).with_rebalance_timeout_ms(6_000).with_protocol_type(text("consumer")),
            |answer: JoinGroupResponse| vec![answer.error_code]
        ),
        row!(SyncGroup 3, [(GROUPS, READ) => NO_GROUP], SyncGroupRequest::default().with_group_id(group()), |answer: SyncGroupResponse| vec![answer.error_code]),
        row!(Heartbeat 3, [(GROUPS, READ) => NO_GROUP], HeartbeatRequest::default().with_group_id(group()), |answer: HeartbeatResponse| vec![answer.error_code]),
        row!(LeaveGroup 3, [(GROUPS, READ) => NO_GROUP], LeaveGroupRequest::default().with_group_id(group()), |answer: LeaveGroupResponse| vec![answer.error_code]),
        row!(
            DescribeGroups 5,
            [(GROUPS, DESCRIBE) => NO_GROUP],
            DescribeGroupsRequest::default().with_groups(vec![group()]),
            |answer: DescribeGroupsResponse| vec![answer.groups[0].error_code]
        ),
        row!(
            DeleteGroups 2,
            [(GROUPS, DELETE) => NO_GROUP],
            DeleteGroupsRequest::default().with_groups_names(vec![group()]),
            |answer: DeleteGroupsResponse| vec![answer.results[0].error_code]
        ),
        row!(
            OffsetDelete 0,
            [(GROUPS, DELETE) => NO_GROUP, (TOPICS, READ) => NO_TOPIC],
            {
                let partition = offset_delete_request::OffsetDeleteRequestPartition::default();
                let topic = offset_delete_request::OffsetDeleteRequestTopic::default().with_name(name()).with_partitions(vec![partition]);
                OffsetDeleteRequest::default().with_group_id(group()).with_topics(vec![topic])
            },
            |answer: OffsetDeleteResponse| {
                let partitions = answer.topics.iter().flat_map(|topic| &topic.partitions);
                partitions.map(|one| one.error_code).chain([answer.error_code]).collect()
            }
        ),
        row!(
            ConsumerGroupHeartbeat 1,
            [(GROUPS, READ) => NO_GROUP, (TOPICS, DESCRIBE) => NO_TOPIC],
            ConsumerGroupHeartbeatRequest::default()
                .with_group_id(GroupId(text("others")))
                .with_group_id(group())
                .with_member_id(text("member"))
                .with_member_epoch(3)
                .with_subscribed_topic_names(Some(vec![name()])),
            |answer: ConsumerGroupHeartbeatResponse| vec![answer.error_code]
        ),
        row!(
            ConsumerGroupDescribe 0,
            [(GROUPS, DESCRIBE) => NO_GROUP],
            ConsumerGroupDescribeRequest::default().with_group_ids(vec![group()]),
            |answer: ConsumerGroupDescribeResponse| vec![answer.groups[0].error_code]
        ),
    ]
}

fn transactions() -> Vec<Row> {
    vec![
        row!(
            InitProducerId 4,
            [(IDS, WRITE) => NO_ID],
            InitProducerIdRequest::default()
                .with_transactional_id(Some(id()))
                .with_transaction_timeout_ms(60_000)
                .with_producer_id(ProducerId(-1))
                .with_producer_epoch(-1),
            |answer: InitProducerIdResponse| vec![answer.error_code]
        ),
        row!(
            InitProducerId 3,
            [(CLUSTER, IDEMPOTENT_WRITE) => NO_CLUSTER],
            InitProducerIdRequest::default().with_transactional_id(None).with_producer_id(ProducerId(-1)).with_producer_epoch(-1),
            |answer: InitProducerIdResponse| vec![answer.error_code]
        ),
        row!(
            AddPartitionsToTxn 3,
            [(IDS, WRITE) => NO_ID, (TOPICS, WRITE) => NO_TOPIC],
            {
                let topic = add_partitions_to_txn_request::AddPartitionsToTxnTopic::default().with_name(name()).with_partitions(vec![0]);
                AddPartitionsToTxnRequest::default().with_v3_and_below_transactional_id(id()).with_v3_and_below_topics(vec![topic])
            },
            |answer: AddPartitionsToTxnResponse| {
                let topic = &answer.results_by_topic_v3_and_below[0];
                vec![topic.results_by_partition[0].partition_error_code]
            }
        ),
        row!(
            AddOffsetsToTxn 3,
            [(IDS, WRITE) => NO_ID, (GROUPS, READ) => NO_GROUP],
            AddOffsetsToTxnRequest::default().with_transactional_id(id()).with_group_id(group()),
            |answer: AddOffsetsToTxnResponse| vec![answer.error_code]
        ),
        row!(EndTxn 3, [(IDS, WRITE) => NO_ID], EndTxnRequest::default().with_transactional_id(id()), |answer: EndTxnResponse| vec![answer.error_code]),
        row!(
            TxnOffsetCommit 3,
            [(IDS, WRITE) => NO_ID, (GROUPS, READ) => NO_GROUP],
            {
                let partition = txn_offset_commit_request::TxnOffsetCommitRequestPartition::default().with_committed_metadata(Some(text("")));
                let topic = txn_offset_commit_request::TxnOffsetCommitRequestTopic::default().with_name(name()).with_partitions(vec![partition]);
                TxnOffsetCommitRequest::default().with_transactional_id(id()).with_group_id(group()).with_topics(vec![topic])
            },
            |answer: TxnOffsetCommitResponse| vec![answer.topics[0].partitions[0].error_code]
        ),
        row!(
            DescribeTransactions 0,
            [(IDS, DESCRIBE) => NO_ID],
            DescribeTransactionsRequest::default().with_transactional_ids(vec![id()]),
            |answer: DescribeTransactionsResponse| vec![answer.transaction_states[0].error_code]
        ),
    ]
}

fn markers() -> WriteTxnMarkersRequest {
    let topic = write_txn_markers_request::WritableTxnMarkerTopic::default()
        .with_name(name())
        .with_partition_indexes(vec![0]);
    let marker = write_txn_markers_request::WritableTxnMarker::default()
        .with_producer_id(ProducerId(1 << 40))
        .with_topics(vec![topic]);
    WriteTxnMarkersRequest::default().with_markers(vec![marker])
}

fn written(answer: &WriteTxnMarkersResponse) -> Vec<i16> {
    let topics = answer.markers.iter().flat_map(|marker| &marker.topics);
    let partitions = topics.flat_map(|topic| &topic.partitions);
    partitions.map(|partition| partition.error_code).collect()
}

fn election() -> ElectLeadersRequest {
    let topic = elect_leaders_request::TopicPartitions::default()
        .with_topic(name())
        .with_partitions(vec![0]);
    ElectLeadersRequest::default()
        .with_topic_partitions(Some(vec![topic]))
        .with_timeout_ms(1_000)
}

fn elected(answer: &ElectLeadersResponse) -> Vec<i16> {
    let topics = answer.replica_election_results.iter();
    let partitions = topics.flat_map(|topic| &topic.partition_result);
    partitions.map(|one| one.error_code).collect()
}

/// What is moved from node to node, and looked at there.
fn places() -> Vec<Row> {
    vec![
        row!(WriteTxnMarkers 1, [(CLUSTER, ALTER) => NO_CLUSTER], markers(), |answer: WriteTxnMarkersResponse| written(&answer)),
        row!(WriteTxnMarkers 1, [(CLUSTER, CLUSTER_ACTION) => NO_CLUSTER], markers(), |answer: WriteTxnMarkersResponse| written(&answer)),
        row!(ElectLeaders 0, [(CLUSTER, ALTER) => NO_CLUSTER], election(), |answer: ElectLeadersResponse| elected(&answer)),
        row!(ElectLeaders 2, [(CLUSTER, ALTER) => NO_CLUSTER], election(), |answer: ElectLeadersResponse| vec![answer.error_code]),
        row!(
            AlterPartitionReassignments 0,
            [(CLUSTER, ALTER) => NO_CLUSTER],
            {
                let partition = alter_partition_reassignments_request::ReassignablePartition::default().with_replicas(None);
                let topic = alter_partition_reassignments_request::ReassignableTopic::default().with_name(name()).with_partitions(vec![partition]);
                AlterPartitionReassignmentsRequest::default().with_timeout_ms(1_000).with_topics(vec![topic])
            },
            |answer: AlterPartitionReassignmentsResponse| vec![answer.error_code]
        ),
        row!(
            ListPartitionReassignments 0,
            [(CLUSTER, DESCRIBE) => NO_CLUSTER],
            ListPartitionReassignmentsRequest::default().with_timeout_ms(1_000).with_topics(None),
            |answer: ListPartitionReassignmentsResponse| vec![answer.error_code]
        ),
        row!(
            DescribeLogDirs 4,
            [(CLUSTER, DESCRIBE) => NO_CLUSTER],
            DescribeLogDirsRequest::default().with_topics(None),
            |answer: DescribeLogDirsResponse| vec![answer.error_code]
        ),
    ]
}

fn administration() -> Vec<Row> {
    vec![
        row!(
            CreateTopics 7,
            [(TOPICS, CREATE) => NO_TOPIC],
            {
                let topic = create_topics_request::CreatableTopic::default().with_name(name()).with_num_partitions(1).with_replication_factor(1);
                CreateTopicsRequest::default().with_topics(vec![topic])
            },
            |answer: CreateTopicsResponse| vec![answer.topics[0].error_code]
        ),
        row!(
            CreateTopics 5,
            [(CLUSTER, CREATE) => NO_TOPIC],
            {
                let topic = create_topics_request::CreatableTopic::default().with_name(name()).with_num_partitions(1).with_replication_factor(1);
                CreateTopicsRequest::default().with_topics(vec![topic])
            },
            |answer: CreateTopicsResponse| vec![answer.topics[0].error_code]
        ),
        row!(
            CreatePartitions 2,
            [(TOPICS, ALTER) => NO_TOPIC],
            {
                let topic = create_partitions_request::CreatePartitionsTopic::default().with_name(name()).with_count(2);
                CreatePartitionsRequest::default().with_topics(vec![topic]).with_validate_only(true)
            },
            |answer: CreatePartitionsResponse| vec![answer.results[0].error_code]
        ),
        row!(
            DeleteRecords 1,
            [(TOPICS, DELETE) => NO_TOPIC],
            {
                let partition = delete_records_request::DeleteRecordsPartition::default().with_offset(0);
                let topic = delete_records_request::DeleteRecordsTopic::default().with_name(name()).with_partitions(vec![partition]);
                DeleteRecordsRequest::default().with_topics(vec![topic]).with_timeout_ms(1_000)
            },
            |answer: DeleteRecordsResponse| vec![answer.topics[0].partitions[0].error_code]
        ),
        row!(
            DescribeConfigs 2,
            [(TOPICS, DESCRIBE_CONFIGS) => NO_TOPIC],
            {
                let resource = describe_configs_request::DescribeConfigsResource::default().with_resource_type(2).with_resource_name(text(TOPIC));
                DescribeConfigsRequest::default().with_resources(vec![resource])
            },
            |answer: DescribeConfigsResponse| vec![answer.results[0].error_code]
        ),
        row!(
            DescribeConfigs 2,
            [(CLUSTER, DESCRIBE_CONFIGS) => NO_CLUSTER],
            {
                let resource = describe_configs_request::DescribeConfigsResource::default().with_resource_type(4).with_resource_name(text("1"));
                DescribeConfigsRequest::default().with_resources(vec![resource])
            },
            |answer: DescribeConfigsResponse| vec![answer.results[0].error_code]
        ),
        row!(
            AlterConfigs 1,
            [(TOPICS, ALTER_CONFIGS) => NO_TOPIC],
            {
                let resource = alter_configs_request::AlterConfigsResource::default().with_resource_type(2).with_resource_name(text(TOPIC));
                AlterConfigsRequest::default().with_resources(vec![resource])
            },
            |answer: AlterConfigsResponse| vec![answer.responses[0].error_code]
        ),
        row!(
            IncrementalAlterConfigs 1,
            [(CLUSTER, ALTER_CONFIGS) => NO_CLUSTER],
            {
                let resource = incremental_alter_configs_request::AlterConfigsResource::default().with_resource_type(4).with_resource_name(text(""));
                IncrementalAlterConfigsRequest::default().with_resources(vec![resource])
            },
            |answer: IncrementalAlterConfigsResponse| vec![answer.responses[0].error_code]
        ),
        row!(
            DescribeAcls 2,
            [(CLUSTER, DESCRIBE) => NO_CLUSTER],
            DescribeAclsRequest::default().with_resource_type_filter(1).with_pattern_type_filter(1).with_operation(1).with_permission_type(1),
            |answer: DescribeAclsResponse| vec![answer.error_code]
        ),
        row!(
            CreateAcls 2,
            [(CLUSTER, ALTER) => NO_CLUSTER],
            CreateAclsRequest::default().with_creations(vec![rule((TOPICS, READ), "elsewhere", ALLOW)]),
            |answer: CreateAclsResponse| vec![answer.results[0].error_code]
        ),
        row!(
            DeleteAcls 2,
            [(CLUSTER, ALTER) => NO_CLUSTER],
            {
                let filter = delete_acls_request::DeleteAclsFilter::default()
                    .with_resource_type_filter(2)
                    .with_resource_name_filter(Some(text("elsewhere")))
                    .with_principal_filter(None)
                    .with_host_filter(None)
                    .with_pattern_type_filter(1)
                    .with_operation(1)
                    .with_permission_type(1);
                DeleteAclsRequest::default().with_filters(vec![filter])
            },
            |answer: DeleteAclsResponse| vec![answer.filter_results[0].error_code]
        ),
        row!(
            DescribeUserScramCredentials 0,
            [(CLUSTER, DESCRIBE) => NO_CLUSTER],
            DescribeUserScramCredentialsRequest::default(),
            |answer: DescribeUserScramCredentialsResponse| vec![answer.error_code]
        ),
        row!(
            AlterUserScramCredentials 0,
            [(CLUSTER, ALTER) => NO_CLUSTER],
            {
                let deletion = alter_user_scram_credentials_request::ScramCredentialDeletion::default().with_name(text("nobody")).with_mechanism(1);
                AlterUserScramCredentialsRequest::default().with_deletions(vec![deletion])
            },
            |answer: AlterUserScramCredentialsResponse| vec![answer.results[0].error_code]
        ),
        // The last one: afterwards there is no topic any more.
        row!(
            DeleteTopics 5,
            [(TOPICS, DELETE) => NO_TOPIC],
            DeleteTopicsRequest::default().with_topic_names(vec![name()]),
            |answer: DeleteTopicsResponse| vec![answer.responses[0].error_code]
        ),
    ]
}

/// What shows less to those who may see less, instead of refusing, or is for everybody.
const UNREFUSED: [ApiKey; 6] = [
    ApiKey::ApiVersions,
    ApiKey::SaslHandshake,
    ApiKey::SaslAuthenticate,
    ApiKey::DescribeCluster,
    ApiKey::ListGroups,
    ApiKey::ListTransactions,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_request_with_each_of_its_rights_missing_is_refused() {
    let (nodes, _dir) = start("").await;
    let port = nodes.kafka_port(0);
    let mut admin = KafkaConn::open_as(port, "admin", PASSWORD).await;
    let mut alice = KafkaConn::open_as(port, "alice", PASSWORD).await;
    let rows: Vec<Row> = [
        reading(),
        groups(),
        transactions(),
        places(),
        administration(),
        tools::rows(),
    ]
    .into_iter()
    .flatten()
    .collect();
    for api in APIS.iter().filter(|api| !UNREFUSED.contains(&api.key)) {
        let tested = rows.iter().any(|row| row.api as i16 == api.key as i16);
        assert!(tested, "{} has no row", api.name);
    }
    let denials = [NO_TOPIC, NO_GROUP, NO_CLUSTER, NO_ID];
    for row in &rows {
        for (missing, (_, code)) in row.takes.iter().enumerate() {
            let has = row
                .takes
                .iter()
                .enumerate()
                .filter(|(at, _)| *at != missing);
            let has: Vec<Right> = has.map(|(_, (right, _))| *right).collect();
            grant(&mut admin, &has).await;
            let codes = (row.ask)(&mut alice).await;
            assert!(
                codes.contains(code),
                "{:?} without right {missing}: {codes:?}",
                row.api
            );
            clear(&mut admin).await;
        }
        let all: Vec<Right> = row.takes.iter().map(|(right, _)| *right).collect();
        grant(&mut admin, &all).await;
        let codes = (row.ask)(&mut alice).await;
        let denied = codes.iter().any(|code| denials.contains(code));
        assert!(!denied, "{:?} with all rights: {codes:?}", row.api);
        // Whatever else is allowed, a rule that denies wins.
        let last = row.takes.last().unwrap();
        if row.api as i16 != ApiKey::DeleteTopics as i16 {
            add(&mut admin, vec![rule(last.0, resource(last.0.0), DENY)]).await;
            let codes = (row.ask)(&mut alice).await;
            assert!(codes.contains(&last.1), "{:?} denied: {codes:?}", row.api);
        }
        clear(&mut admin).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_show_what_their_reader_may_see() {
    let (nodes, _dir) = start("").await;
    nodes.run(&["topic", "create", "other"]);
    let port = nodes.kafka_port(0);
    let mut admin = KafkaConn::open_as(port, "admin", PASSWORD).await;
    let mut alice = KafkaConn::open_as(port, "alice", PASSWORD).await;
    let request = MetadataRequest::default()
        .with_topics(None)
        .with_include_cluster_authorized_operations(true)
        .with_include_topic_authorized_operations(true);
    let answer: MetadataResponse = alice.ask(ApiKey::Metadata, 9, &request).await;
    assert!(answer.topics.is_empty(), "{answer:?}");
    assert_eq!(
        (answer.brokers.len(), answer.cluster_authorized_operations),
        (1, 0)
    );
    grant(&mut admin, &[(TOPICS, READ), (CLUSTER, DESCRIBE)]).await;
    let answer: MetadataResponse = alice.ask(ApiKey::Metadata, 9, &request).await;
    let names: Vec<&str> = answer
        .topics
        .iter()
        .map(|topic| &*topic.name.as_ref().unwrap().0)
        .collect();
    assert_eq!(names, [TOPIC]);
    let may = |operations: &[i8]| operations.iter().fold(0, |set, bit| set | 1 << bit);
    assert_eq!(
        answer.topics[0].topic_authorized_operations,
        may(&[READ, DESCRIBE])
    );
    assert_eq!(answer.cluster_authorized_operations, may(&[DESCRIBE]));
    // Before there was a code for all of it, who may not see log directories was shown none.
    let request = DescribeLogDirsRequest::default().with_topics(None);
    let answer: DescribeLogDirsResponse = alice.ask(ApiKey::DescribeLogDirs, 2, &request).await;
    assert_eq!(answer.results.len(), 1);
    add(
        &mut admin,
        vec![rule((CLUSTER, DESCRIBE), resource(CLUSTER), DENY)],
    )
    .await;
    let answer: DescribeLogDirsResponse = alice.ask(ApiKey::DescribeLogDirs, 2, &request).await;
    assert_eq!((answer.error_code, answer.results.len()), (0, 0));
    // A topic that may not be created comes into being for nobody.
    let topic =
        metadata_request::MetadataRequestTopic::default().with_name(Some(TopicName(text("new"))));
    let request = MetadataRequest::default()
        .with_topics(Some(vec![topic]))
        .with_allow_auto_topic_creation(true);
    add(&mut admin, vec![rule((TOPICS, DESCRIBE), "new", ALLOW)]).await;
    let answer: MetadataResponse = alice.ask(ApiKey::Metadata, 9, &request).await;
    assert_eq!(answer.topics[0].error_code, NO_TOPIC);
    add(&mut admin, vec![rule((TOPICS, CREATE), "new", ALLOW)]).await;
    let answer: MetadataResponse = alice.ask(ApiKey::Metadata, 9, &request).await;
    assert_eq!(answer.topics[0].error_code, 5);

    // Somebody who may write somewhere may have a producer id.
    let request = InitProducerIdRequest::default().with_transactional_id(None);
    let answer: InitProducerIdResponse = alice.ask(ApiKey::InitProducerId, 1, &request).await;
    assert_eq!(answer.error_code, NO_CLUSTER);
    grant(&mut admin, &[(TOPICS, WRITE)]).await;
    let answer: InitProducerIdResponse = alice.ask(ApiKey::InitProducerId, 1, &request).await;
    assert_eq!(answer.error_code, 0);
    assert!(clear(&mut admin).await > 0);
    assert_eq!(clear(&mut admin).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_no_rule_is_about_may_be_everybodys() {
    let (nodes, _dir) = start("allow_unruled = true\n").await;
    let port = nodes.kafka_port(0);
    let mut admin = KafkaConn::open_as(port, "admin", PASSWORD).await;
    let mut alice = KafkaConn::open_as(port, "alice", PASSWORD).await;
    let rows = reading();
    assert_eq!((rows[0].ask)(&mut alice).await, [0]);
    let mut bobs = rule((TOPICS, WRITE), TOPIC, ALLOW);
    bobs.principal = text("User:bob");
    add(&mut admin, vec![bobs]).await;
    assert_eq!((rows[0].ask)(&mut alice).await, [NO_TOPIC]);
    assert_eq!((rows[0].ask)(&mut admin).await, [0]);
}
