//! What operators ask for in Kafka's words: which replicas partitions have, and who leads them.
//! Every version of each request, said to real nodes.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod kafka_conn;
mod nodes;

use std::time::Duration;

use kafka_conn::{KafkaConn, text};
use kafka_protocol::messages::alter_partition_reassignments_request::{
    ReassignablePartition, ReassignableTopic,
};
use kafka_protocol::messages::create_partitions_request::{
    CreatePartitionsAssignment, CreatePartitionsTopic,
};
use kafka_protocol::messages::create_topics_request::{CreatableReplicaAssignment, CreatableTopic};
use kafka_protocol::messages::elect_leaders_request::TopicPartitions;
use kafka_protocol::messages::elect_leaders_response::ReplicaElectionResult;
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::list_partition_reassignments_request::ListPartitionReassignmentsTopics;
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::metadata_response::MetadataResponsePartition;
use kafka_protocol::messages::{
    AlterPartitionReassignmentsRequest, AlterPartitionReassignmentsResponse, ApiKey, BrokerId,
    CreatePartitionsRequest, CreatePartitionsResponse, CreateTopicsRequest, CreateTopicsResponse,
    ElectLeadersRequest, ElectLeadersResponse, IncrementalAlterConfigsRequest,
    IncrementalAlterConfigsResponse, ListPartitionReassignmentsRequest,
    ListPartitionReassignmentsResponse, MetadataRequest, MetadataResponse, TopicName,
};
use nodes::Nodes;
use tokio::time::{Instant, sleep};

const TOPIC: &str = "orders";
const PATIENCE: Duration = Duration::from_mins(1);
const POLL: Duration = Duration::from_millis(20);
const PREFERRED: i8 = 0;
const UNCLEAN: i8 = 1;

fn name(topic: &str) -> TopicName {
    TopicName(text(topic))
}

fn brokers(ids: &[i32]) -> Vec<BrokerId> {
    ids.iter().copied().map(BrokerId).collect()
}

/// Waits until something that is asked for again and again holds.
macro_rules! until {
    ($what:expr, $holds:expr) => {
        let deadline = Instant::now() + PATIENCE;
        while !$holds {
            assert!(Instant::now() < deadline, "{} did not happen", $what);
            sleep(POLL).await;
        }
    };
}

/// Asks for a topic with these replicas; the code of the answer.
async fn create(conn: &mut KafkaConn, topic: &str, sets: &[&[i32]], partitions: i32) -> i16 {
    let sets = sets.iter().zip(0..).map(|(set, index)| {
        CreatableReplicaAssignment::default()
            .with_partition_index(index)
            .with_broker_ids(brokers(set))
    });
    let topic = CreatableTopic::default()
        .with_name(name(topic))
        .with_num_partitions(partitions)
        .with_replication_factor(-1)
        .with_assignments(sets.collect());
    let request = CreateTopicsRequest::default().with_topics(vec![topic]);
    let answer: CreateTopicsResponse = conn.ask(ApiKey::CreateTopics, 7, &request).await;
    answer.topics[0].error_code
}

async fn widen(conn: &mut KafkaConn, count: i32, sets: &[&[i32]]) -> i16 {
    let sets = sets
        .iter()
        .map(|set| CreatePartitionsAssignment::default().with_broker_ids(brokers(set)));
    let topic = CreatePartitionsTopic::default()
        .with_name(name(TOPIC))
        .with_count(count)
        .with_assignments(Some(sets.collect()));
    let request = CreatePartitionsRequest::default().with_topics(vec![topic]);
    let answer: CreatePartitionsResponse = conn.ask(ApiKey::CreatePartitions, 3, &request).await;
    answer.results[0].error_code
}

async fn describe(conn: &mut KafkaConn, index: i32) -> MetadataResponsePartition {
    let topic = MetadataRequestTopic::default().with_name(Some(name(TOPIC)));
    let request = MetadataRequest::default()
        .with_topics(Some(vec![topic]))
        .with_allow_auto_topic_creation(false);
    let answer: MetadataResponse = conn.ask(ApiKey::Metadata, 12, &request).await;
    let mut partitions = answer.topics[0].partitions.iter();
    let found = partitions.find(|partition| partition.partition_index == index);
    found.unwrap().clone()
}

/// Asks for other replicas, or for none: the code of the answer.
async fn reassign(
    conn: &mut KafkaConn,
    version: i16,
    (topic, index): (&str, i32),
    to: Option<&[i32]>,
    any_replication: bool,
) -> i16 {
    let partition = ReassignablePartition::default()
        .with_partition_index(index)
        .with_replicas(to.map(brokers));
    let topic = ReassignableTopic::default()
        .with_name(name(topic))
        .with_partitions(vec![partition]);
    let mut request = AlterPartitionReassignmentsRequest::default().with_topics(vec![topic]);
    if version >= 1 {
        request.allow_replication_factor_change = any_replication;
    }
    let key = ApiKey::AlterPartitionReassignments;
    let answer: AlterPartitionReassignmentsResponse = conn.ask(key, version, &request).await;
    assert_eq!((answer.error_code, answer.error_message), (0, None));
    assert_eq!(answer.allow_replication_factor_change, any_replication);
    let row = &answer.responses[0].partitions[0];
    assert_eq!(row.partition_index, index);
    assert_eq!(
        row.error_message.is_some(),
        row.error_code != 0 && index >= 0
    );
    row.error_code
}

/// Partitions on their way: index, all replicas, those that come, those that go.
type Moving = Vec<(i32, Vec<BrokerId>, Vec<BrokerId>, Vec<BrokerId>)>;

async fn moving(conn: &mut KafkaConn, of: Option<&[i32]>) -> Moving {
    let topics = of.map(|indexes| {
        let topic = ListPartitionReassignmentsTopics::default()
            .with_name(name(TOPIC))
            .with_partition_indexes(indexes.to_vec());
        let unknown = ListPartitionReassignmentsTopics::default()
            .with_name(name("nothing"))
            .with_partition_indexes(vec![0]);
        vec![topic, unknown]
    });
    let request = ListPartitionReassignmentsRequest::default().with_topics(topics);
    let key = ApiKey::ListPartitionReassignments;
    let answer: ListPartitionReassignmentsResponse = conn.ask(key, 0, &request).await;
    assert_eq!((answer.error_code, answer.error_message), (0, None));
    let topics = answer.topics.into_iter();
    let topic = topics.filter(|topic| topic.name == name(TOPIC));
    let rows = topic.flat_map(|topic| topic.partitions).map(|row| {
        (
            row.partition_index,
            row.replicas,
            row.adding_replicas,
            row.removing_replicas,
        )
    });
    rows.collect()
}

/// Asks for elections: the code of the whole, and those of the rows for this file's topic.
async fn elect(
    conn: &mut KafkaConn,
    version: i16,
    kind: i8,
    of: Option<(&str, &[i32])>,
) -> (i16, Vec<(i32, i16)>) {
    let topics = of.map(|(topic, indexes)| {
        let topic = TopicPartitions::default()
            .with_topic(name(topic))
            .with_partitions(indexes.to_vec());
        vec![topic]
    });
    let mut request = ElectLeadersRequest::default()
        .with_topic_partitions(topics)
        .with_timeout_ms(30_000);
    if version >= 1 {
        request.election_type = kind;
    }
    let answer: ElectLeadersResponse = conn.ask(ApiKey::ElectLeaders, version, &request).await;
    let told = |topic: &ReplicaElectionResult| !topic.partition_result.is_empty();
    assert!(answer.replica_election_results.iter().all(told));
    let rows = answer.replica_election_results.into_iter();
    let rows = rows.flat_map(|topic| topic.partition_result);
    let rows = rows.map(|row| (row.partition_id, row.error_code)).collect();
    (answer.error_code, rows)
}

/// Waits until a partition has these replicas in this order, all in sync, led by the first.
async fn await_there(conn: &mut KafkaConn, index: i32, replicas: &[i32]) {
    let expected = brokers(replicas);
    until!(format!("partition {index} on {replicas:?}"), {
        let now = describe(conn, index).await;
        let mut in_sync = now.isr_nodes.clone();
        in_sync.sort_unstable();
        let mut all = expected.clone();
        all.sort_unstable();
        now.replica_nodes == expected && in_sync == all && now.leader_id == expected[0]
    });
}

async fn check_refusals(conn: &mut KafkaConn) {
    let here = (TOPIC, 0);
    let rows: [(_, Option<&[i32]>, i16); 9] = [
        (("nothing", 0), Some(&[1, 2]), 3),
        ((TOPIC, 7), Some(&[1, 2]), 3),
        ((TOPIC, -1), Some(&[1, 2]), 3),
        (here, Some(&[]), 39),
        (here, Some(&[1, 1]), 39),
        (here, Some(&[1, 9]), 39),
        (here, Some(&[1, -1]), 39),
        (here, None, 85),
        ((TOPIC, 7), None, 3),
    ];
    for version in 0..=1 {
        for (place, to, code) in rows {
            let told = reassign(conn, version, place, to, true).await;
            assert_eq!(told, code, "version {version}: {place:?} to {to:?}");
        }
    }
    assert_eq!(reassign(conn, 1, here, Some(&[1]), false).await, 38);
    // A topic is made with an assignment or with numbers, and partitions are alike.
    assert_eq!(create(conn, "other", &[&[1]], 1).await, 42);
    assert_eq!(create(conn, "other", &[&[1], &[1, 2]], -1).await, 39);
    assert_eq!(create(conn, "other", &[&[1, 9]], -1).await, 39);
    for sets in [&[&[1][..]][..], &[&[1, 2], &[1, 2]], &[&[1, 9]], &[&[1, 1]]] {
        assert_eq!(widen(conn, 3, sets).await, 39, "{sets:?}");
    }
}

async fn check_elections(conn: &mut KafkaConn) {
    for version in 0..=2 {
        // All are led by the first of their replicas.
        assert_eq!(elect(conn, version, PREFERRED, None).await, (0, vec![]));
        let told = elect(conn, version, PREFERRED, Some((TOPIC, &[0, 1, 7, -1]))).await;
        assert_eq!(told, (0, vec![(0, 84), (1, 84), (7, 3), (-1, 3)]));
        let told = elect(conn, version, PREFERRED, Some(("nothing", &[0]))).await;
        assert_eq!(told, (0, vec![(0, 3)]));
    }
    for version in 1..=2 {
        let told = elect(conn, version, UNCLEAN, Some((TOPIC, &[0]))).await;
        assert_eq!(told, (0, vec![(0, 84)]));
        assert_eq!(elect(conn, version, 9, None).await, (42, vec![]));
    }
}

/// Kafka's tools take back the rates of a move when it is done, and are refused none of Kafka's.
async fn check_throttles(conn: &mut KafkaConn) {
    let rate = |op: i8, key: &str| {
        let config = AlterableConfig::default()
            .with_name(text(key))
            .with_config_operation(op)
            .with_value((op == 0).then(|| text("1000")));
        vec![config]
    };
    let resource = |kind: i8, name: &str, configs| {
        AlterConfigsResource::default()
            .with_resource_type(kind)
            .with_resource_name(text(name))
            .with_configs(configs)
    };
    let request = IncrementalAlterConfigsRequest::default().with_resources(vec![
        resource(4, "1", rate(1, "leader.replication.throttled.rate")),
        resource(2, TOPIC, rate(1, "follower.replication.throttled.replicas")),
        resource(4, "1", rate(0, "leader.replication.throttled.rate")),
        resource(2, TOPIC, rate(1, "no.such.key")),
        resource(
            2,
            "nothing",
            rate(1, "follower.replication.throttled.replicas"),
        ),
    ]);
    let key = ApiKey::IncrementalAlterConfigs;
    let answer: IncrementalAlterConfigsResponse = conn.ask(key, 1, &request).await;
    let codes: Vec<i16> = answer.responses.iter().map(|row| row.error_code).collect();
    assert_eq!(codes, [0, 0, 40, 40, 3]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_and_leaders_are_where_an_operator_says() {
    let mut nodes = Nodes::start(3).await;
    let mut conn = KafkaConn::open(nodes.kafka_port(0)).await;
    assert_eq!(create(&mut conn, TOPIC, &[&[1, 2], &[2, 3]], -1).await, 0);
    await_there(&mut conn, 0, &[1, 2]).await;
    await_there(&mut conn, 1, &[2, 3]).await;
    check_refusals(&mut conn).await;
    check_elections(&mut conn).await;
    check_throttles(&mut conn).await;

    for version in 0..=1 {
        for to in [&[3, 1][..], &[1, 3], &[2, 1], &[1, 2]] {
            let told = reassign(&mut conn, version, (TOPIC, 0), Some(to), version == 0).await;
            assert_eq!(told, 0, "version {version}: to {to:?}");
            await_there(&mut conn, 0, to).await;
            until!(
                "an end of the move",
                moving(&mut conn, None).await.is_empty()
            );
        }
    }
    // More replicas, and fewer.
    for to in [&[2, 3, 1][..], &[3], &[1, 2]] {
        assert_eq!(reassign(&mut conn, 1, (TOPIC, 0), Some(to), true).await, 0);
        await_there(&mut conn, 0, to).await;
    }
    assert_eq!(widen(&mut conn, 3, &[&[3, 1]]).await, 0);
    await_there(&mut conn, 2, &[3, 1]).await;
    nodes.stop();
}

/// The node that is to get a replica is down, so a move is under way for as long as a test likes.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reassignment_under_way_is_told_of_and_can_be_cancelled() {
    let mut nodes = Nodes::start(3).await;
    let mut conn = KafkaConn::open(nodes.kafka_port(0)).await;
    assert_eq!(
        create(&mut conn, TOPIC, &[&[1, 2], &[3, 1, 2], &[3]], -1).await,
        39
    );
    assert_eq!(create(&mut conn, TOPIC, &[&[1, 2], &[3, 1]], -1).await, 0);
    await_there(&mut conn, 0, &[1, 2]).await;
    await_there(&mut conn, 1, &[3, 1]).await;
    // Alone on a node: without it there is nobody to lead.
    assert_eq!(create(&mut conn, "lone", &[&[3]], -1).await, 0);
    // With a vote of its own elsewhere, so that the partition is led without its first replica.
    assert_eq!(
        reassign(&mut conn, 1, (TOPIC, 1), Some(&[3, 1, 2]), true).await,
        0
    );
    await_there(&mut conn, 1, &[3, 1, 2]).await;
    nodes.kill(2);
    until!("another leader", {
        let now = describe(&mut conn, 1).await;
        now.leader_id.0 > 0 && now.leader_id != BrokerId(3)
    });
    let told = elect(&mut conn, 2, PREFERRED, Some((TOPIC, &[1]))).await;
    assert_eq!(told, (0, vec![(1, 80)]), "it is down");
    let told = elect(&mut conn, 2, UNCLEAN, Some((TOPIC, &[1]))).await;
    assert_eq!(told, (0, vec![(1, 84)]), "somebody leads");
    until!("a partition without a leader", {
        let told = elect(&mut conn, 2, UNCLEAN, Some(("lone", &[0]))).await;
        told == (0, vec![(0, 83)])
    });

    let to = Some(&[3, 1][..]);
    assert_eq!(reassign(&mut conn, 1, (TOPIC, 0), to, false).await, 0);
    let on_its_way = (0, brokers(&[3, 1, 2]), brokers(&[3]), brokers(&[2]));
    assert_eq!(
        moving(&mut conn, None).await[..],
        *std::slice::from_ref(&on_its_way)
    );
    assert_eq!(moving(&mut conn, Some(&[0, 1, 9, -1])).await, [on_its_way]);
    assert_eq!(moving(&mut conn, Some(&[1])).await, []);
    let now = describe(&mut conn, 0).await;
    assert_eq!(now.replica_nodes, brokers(&[3, 1, 2]));
    assert_eq!(now.isr_nodes, brokers(&[1, 2]));
    assert_eq!(now.offline_replicas, brokers(&[3]));
    // Who comes cannot lead yet, and the number of replicas is that of the end.
    let told = elect(&mut conn, 2, PREFERRED, Some((TOPIC, &[0]))).await;
    assert_eq!(told, (0, vec![(0, 80)]));
    assert_eq!(
        reassign(&mut conn, 1, (TOPIC, 0), Some(&[1, 2, 3]), false).await,
        38
    );
    for (version, code) in [(1, 0), (1, 85), (0, 85)] {
        assert_eq!(
            reassign(&mut conn, version, (TOPIC, 0), None, version == 0).await,
            code
        );
    }
    await_there(&mut conn, 0, &[1, 2]).await;
    until!(
        "an end of the move",
        moving(&mut conn, None).await.is_empty()
    );

    nodes.restart(2);
    nodes.await_ready().await;
    until!("leadership for the first replica", {
        let (code, rows) = elect(&mut conn, 2, PREFERRED, Some((TOPIC, &[1]))).await;
        assert_eq!(code, 0);
        matches!(rows[..], [(1, 0 | 84)])
    });
    assert_eq!(describe(&mut conn, 1).await.leader_id, BrokerId(3));
    nodes.stop();
}
