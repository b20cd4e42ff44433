//! Consumer groups as Kafka's wire has them: every version of every request of groups that is
//! advertised, said to a node and answered by it.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod kafka_conn;
mod nodes;

use std::time::Duration;

use bytes::Bytes;
use kafka_conn::{KafkaConn, text};
use kafka_protocol::messages::delete_groups_request::DeleteGroupsRequest;
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_delete_request::{
    OffsetDeleteRequestPartition, OffsetDeleteRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::offset_fetch_response::OffsetFetchResponseGroup;
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::{
    ApiKey, DeleteGroupsResponse, DescribeGroupsRequest, DescribeGroupsResponse,
    FindCoordinatorRequest, FindCoordinatorResponse, GroupId, HeartbeatRequest, HeartbeatResponse,
    JoinGroupRequest, JoinGroupResponse, LeaveGroupRequest, LeaveGroupResponse, ListGroupsRequest,
    ListGroupsResponse, MetadataRequest, MetadataResponse, OffsetCommitRequest,
    OffsetCommitResponse, OffsetDeleteRequest, OffsetDeleteResponse, OffsetFetchRequest,
    OffsetFetchResponse, SyncGroupRequest, SyncGroupResponse, TopicName,
};
use nodes::Nodes;
use tokio::time::{Instant, sleep};

const TOPIC: &str = "orders";
/// What a consumer says that reads the topic.
const SUBSCRIPTION: &[u8] = b"\0\x01\0\0\0\x01\0\x06orders\0\0\0\0";
/// What a consumer is given.
const ASSIGNMENT: &[u8] = b"the first two";
const PATIENCE: Duration = Duration::from_secs(30);

async fn start() -> Nodes {
    let at_once = "[groups]\ninitial_rebalance_delay = \"0s\"\n";
    let nodes = Nodes::start_with(1, at_once).await;
    nodes.run(&["topic", "create", TOPIC, "--partitions", "2"]);
    nodes
}

fn group(name: &str) -> GroupId {
    GroupId(text(name))
}

fn topic() -> TopicName {
    TopicName(text(TOPIC))
}

/// The version of one request that goes with another's, of which there are more.
fn paired(version: i16, min: i16, max: i16) -> i16 {
    version.clamp(min, max)
}

fn join(name: &str, member: &str, version: i16) -> JoinGroupRequest {
    let protocol = JoinGroupRequestProtocol::default()
        .with_name(text("range"))
        .with_metadata(Bytes::from_static(SUBSCRIPTION));
    let mut request = JoinGroupRequest::default()
        .with_group_id(group(name))
        .with_session_timeout_ms(10_000)
        .with_member_id(text(member))
        .with_protocol_type(text("consumer"))
        .with_protocols(vec![protocol]);
    if version >= 1 {
        request.rebalance_timeout_ms = 60_000;
    }
    if version >= 8 {
        request.reason = Some(text("a test"));
    }
    request
}

/// Asks who coordinates a group until somebody does.
async fn locate(conn: &mut KafkaConn, name: &str, version: i16) -> (i32, String, i32) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let request = match version {
            4.. => FindCoordinatorRequest::default().with_coordinator_keys(vec![text(name)]),
            _ => FindCoordinatorRequest::default().with_key(text(name)),
        };
        let answer: FindCoordinatorResponse =
            conn.ask(ApiKey::FindCoordinator, version, &request).await;
        let (code, node, host, port) = match answer.coordinators.first() {
            Some(one) => {
                assert_eq!(&*one.key, name);
                (one.error_code, one.node_id, one.host.clone(), one.port)
            }
            None => (answer.error_code, answer.node_id, answer.host, answer.port),
        };
        match code {
            0 => return (node.0, host.to_string(), port),
            15 => assert!(Instant::now() < deadline, "nobody coordinates {name}"),
            other => panic!("{name}: {other}"),
        }
        sleep(Duration::from_millis(20)).await;
    }
}

/// Joins as the only member; its id and generation.
async fn join_alone(conn: &mut KafkaConn, name: &str, version: i16) -> (String, i32) {
    let deadline = Instant::now() + PATIENCE;
    let mut member = String::new();
    loop {
        let request = join(name, &member, version);
        let answer: JoinGroupResponse = conn.ask(ApiKey::JoinGroup, version, &request).await;
        match answer.error_code {
            0 => {
                assert_eq!(answer.leader, answer.member_id, "{version}");
                assert_eq!(answer.protocol_name, Some(text("range")));
                let said = &answer.members[0];
                assert_eq!(&said.metadata[..], SUBSCRIPTION);
                assert_eq!(said.member_id, answer.member_id);
                if version >= 7 {
                    assert_eq!(answer.protocol_type, Some(text("consumer")));
                }
                return (answer.member_id.to_string(), answer.generation_id);
            }
            79 => {
                assert!(version >= 4 && member.is_empty(), "{version}");
                member = answer.member_id.to_string();
                assert!(!member.is_empty());
            }
            // The coordinator is taking over.
            14..=16 => assert!(Instant::now() < deadline, "{name}: {answer:?}"),
            other => panic!("{name}: {other}"),
        }
    }
}

async fn sync(conn: &mut KafkaConn, name: &str, member: &str, generation: i32, version: i16) {
    let assignment = SyncGroupRequestAssignment::default()
        .with_member_id(text(member))
        .with_assignment(Bytes::from_static(ASSIGNMENT));
    let mut request = SyncGroupRequest::default()
        .with_group_id(group(name))
        .with_generation_id(generation)
        .with_member_id(text(member))
        .with_assignments(vec![assignment]);
    if version >= 5 {
        // Who does not say what it takes the protocol to be is not let in.
        let answer: SyncGroupResponse = conn.ask(ApiKey::SyncGroup, version, &request).await;
        assert_eq!(answer.error_code, 23);
        request.protocol_type = Some(text("consumer"));
        request.protocol_name = Some(text("range"));
    }
    let answer: SyncGroupResponse = conn.ask(ApiKey::SyncGroup, version, &request).await;
    assert_eq!(answer.error_code, 0, "{version}");
    assert_eq!(&answer.assignment[..], ASSIGNMENT);
    if version >= 5 {
        assert_eq!(answer.protocol_name, Some(text("range")));
    }
}

async fn heartbeat(conn: &mut KafkaConn, name: &str, member: &str, generation: i32, v: i16) -> i16 {
    let request = HeartbeatRequest::default()
        .with_group_id(group(name))
        .with_generation_id(generation)
        .with_member_id(text(member));
    let answer: HeartbeatResponse = conn.ask(ApiKey::Heartbeat, v, &request).await;
    answer.error_code
}

async fn commit(conn: &mut KafkaConn, name: &str, member: &str, generation: i32, version: i16) {
    let partition = |index: i32| {
        let mut partition = OffsetCommitRequestPartition::default()
            .with_partition_index(index)
            .with_committed_offset(5)
            .with_committed_metadata(Some(text("a note")));
        if version >= 6 {
            partition.committed_leader_epoch = 3;
        }
        partition
    };
    let topics = vec![
        OffsetCommitRequestTopic::default()
            .with_name(topic())
            .with_partitions(vec![partition(0), partition(99), partition(-1)]),
        OffsetCommitRequestTopic::default()
            .with_name(TopicName(text("no-such")))
            .with_partitions(vec![partition(0)]),
    ];
    let mut request = OffsetCommitRequest::default()
        .with_group_id(group(name))
        .with_generation_id_or_member_epoch(generation)
        .with_member_id(text(member))
        .with_topics(topics);
    if version <= 4 {
        request.retention_time_ms = -1;
    }
    let answer: OffsetCommitResponse = conn.ask(ApiKey::OffsetCommit, version, &request).await;
    let codes = |topic: usize| -> Vec<i16> {
        let partitions = answer.topics[topic].partitions.iter();
        partitions.map(|partition| partition.error_code).collect()
    };
    assert_eq!((codes(0), codes(1)), (vec![0, 3, 3], vec![3]), "{version}");
    request.generation_id_or_member_epoch = generation + 1;
    let answer: OffsetCommitResponse = conn.ask(ApiKey::OffsetCommit, version, &request).await;
    let partitions = answer.topics[0].partitions.iter();
    let codes: Vec<i16> = partitions.map(|partition| partition.error_code).collect();
    // Of a partition that cannot be, the coordinator is not asked.
    assert_eq!((codes[0], codes[2]), (22, 3), "{version}");
    request.topics.truncate(1);
    request.topics[0].partitions.drain(..2);
    request.group_id = group("of-nobody");
    let answer: OffsetCommitResponse = conn.ask(ApiKey::OffsetCommit, version, &request).await;
    let row = &answer.topics[0].partitions[0];
    assert_eq!((row.partition_index, row.error_code), (-1, 3), "{version}");
}

/// Offsets by partition, with epoch and note; of the partitions asked for, or all.
async fn fetch(
    conn: &mut KafkaConn,
    name: &str,
    partitions: Option<Vec<i32>>,
    version: i16,
) -> Vec<(i32, i64, i32, String)> {
    if version >= 8 {
        let topics = partitions.map(|indexes| {
            let topic = OffsetFetchRequestTopics::default().with_name(topic());
            vec![topic.with_partition_indexes(indexes)]
        });
        let asked = OffsetFetchRequestGroup::default().with_group_id(group(name));
        let other = OffsetFetchRequestGroup::default().with_group_id(group("nobody"));
        let request = OffsetFetchRequest::default()
            .with_require_stable(true)
            .with_groups(vec![asked.with_topics(topics), other.with_topics(None)]);
        let answer: OffsetFetchResponse = conn.ask(ApiKey::OffsetFetch, version, &request).await;
        assert_eq!(answer.groups.len(), 2);
        assert_eq!(answer.groups[1].topics, []);
        assert_eq!(answer.groups[0].error_code, 0);
        let topics = answer.groups[0].topics.iter();
        let found = topics.flat_map(|topic| &topic.partitions).map(|found| {
            assert_eq!(found.error_code, 0);
            let note = found.metadata.as_ref().unwrap().to_string();
            let epoch = found.committed_leader_epoch;
            (found.partition_index, found.committed_offset, epoch, note)
        });
        return found.collect();
    }
    let topics = partitions.map(|indexes| {
        let topic = OffsetFetchRequestTopic::default().with_name(topic());
        vec![topic.with_partition_indexes(indexes)]
    });
    let request = OffsetFetchRequest::default()
        .with_group_id(group(name))
        .with_topics(topics);
    let answer: OffsetFetchResponse = conn.ask(ApiKey::OffsetFetch, version, &request).await;
    assert_eq!(answer.error_code, 0);
    let topics = answer.topics.iter();
    let found = topics.flat_map(|topic| &topic.partitions).map(|found| {
        assert_eq!(found.error_code, 0);
        let note = found.metadata.as_ref().unwrap().to_string();
        let epoch = found.committed_leader_epoch;
        (found.partition_index, found.committed_offset, epoch, note)
    });
    found.collect()
}

async fn check_offsets(conn: &mut KafkaConn, name: &str, committed: i16, version: i16) {
    // The epoch is there if it was committed and can be told.
    let epoch = if committed >= 6 && version >= 5 {
        3
    } else {
        -1
    };
    let here = (0, 5, epoch, "a note".to_owned());
    let found = fetch(conn, name, Some(vec![0, 1]), version).await;
    assert_eq!(found, [here.clone(), (1, -1, -1, String::new())]);
    if version >= 2 {
        assert_eq!(fetch(conn, name, None, version).await, [here]);
    }
}

async fn check_description(conn: &mut KafkaConn, name: &str, member: &str, version: i16) {
    let request = DescribeGroupsRequest::default().with_groups(vec![group(name), group(name)]);
    let answer: DescribeGroupsResponse = conn.ask(ApiKey::DescribeGroups, version, &request).await;
    // Once, however often it was asked for.
    assert_eq!(answer.groups.len(), 1);
    let described = &answer.groups[0];
    assert_eq!(described.error_code, 0);
    assert_eq!(&*described.group_state, "Stable");
    assert_eq!(&*described.protocol_data, "range");
    let only = &described.members[0];
    assert_eq!(&*only.member_id, member);
    assert_eq!(
        (&*only.client_id, &*only.client_host),
        ("raw", "/127.0.0.1")
    );
    assert_eq!(&only.member_assignment[..], ASSIGNMENT);
    assert_eq!(&only.member_metadata[..], SUBSCRIPTION);
}

async fn listed(conn: &mut KafkaConn, state: Option<&str>, version: i16) -> Vec<String> {
    let mut request = ListGroupsRequest::default();
    request.states_filter.extend(state.map(text));
    let answer: ListGroupsResponse = conn.ask(ApiKey::ListGroups, version, &request).await;
    assert_eq!(answer.error_code, 0);
    let groups = answer.groups.iter();
    let groups = groups.inspect(|group| {
        assert_eq!(group.group_state.is_empty(), version < 4);
        assert_eq!(&*group.group_type, if version < 5 { "" } else { "classic" });
    });
    groups.map(|group| group.group_id.to_string()).collect()
}

async fn delete(conn: &mut KafkaConn, name: &str, version: i16) -> i16 {
    let request = DeleteGroupsRequest::default().with_groups_names(vec![group(name)]);
    let answer: DeleteGroupsResponse = conn.ask(ApiKey::DeleteGroups, version, &request).await;
    answer.results[0].error_code
}

/// The error of the whole, or of each partition: one that is there, and one that is not.
async fn delete_offsets(conn: &mut KafkaConn, name: &str) -> Result<Vec<i16>, i16> {
    let partitions =
        [0, 99].map(|index| OffsetDeleteRequestPartition::default().with_partition_index(index));
    let topics = OffsetDeleteRequestTopic::default()
        .with_name(topic())
        .with_partitions(partitions.to_vec());
    let request = OffsetDeleteRequest::default()
        .with_group_id(group(name))
        .with_topics(vec![topics]);
    let answer: OffsetDeleteResponse = conn.ask(ApiKey::OffsetDelete, 0, &request).await;
    if answer.error_code != 0 {
        return Err(answer.error_code);
    }
    let partitions = answer.topics[0].partitions.iter();
    Ok(partitions.map(|partition| partition.error_code).collect())
}

async fn leave(conn: &mut KafkaConn, name: &str, member: &str, version: i16) -> i16 {
    let request = LeaveGroupRequest::default().with_group_id(group(name));
    let request = match version {
        3.. => request.with_members(vec![MemberIdentity::default().with_member_id(text(member))]),
        _ => request.with_member_id(text(member)),
    };
    let answer: LeaveGroupResponse = conn.ask(ApiKey::LeaveGroup, version, &request).await;
    match answer.members.first() {
        Some(left) => {
            assert_eq!(&*left.member_id, member);
            assert_eq!(answer.error_code, 0);
            left.error_code
        }
        None => answer.error_code,
    }
}

/// A group from its first member to its end, in one version of each request.
async fn live(conn: &mut KafkaConn, port: u16, version: i16) {
    let name = format!("group-{version}");
    let found = locate(conn, &name, paired(version, 0, 4)).await;
    assert_eq!(found, (1, "127.0.0.1".to_owned(), i32::from(port)));
    let (member, generation) = join_alone(conn, &name, version).await;
    sync(conn, &name, &member, generation, paired(version, 0, 5)).await;
    let beat = paired(version, 0, 4);
    assert_eq!(heartbeat(conn, &name, &member, generation, beat).await, 0);
    assert_eq!(
        heartbeat(conn, &name, &member, generation + 1, beat).await,
        22
    );
    assert_eq!(
        heartbeat(conn, &name, "somebody", generation, beat).await,
        25
    );
    let committing = paired(version, 2, 8);
    commit(conn, &name, &member, generation, committing).await;
    check_offsets(conn, &name, committing, paired(version, 1, 8)).await;
    check_description(conn, &name, &member, paired(version, 0, 6)).await;
    let listing = paired(version, 0, 5);
    assert_eq!(listed(conn, None, listing).await, [name.as_str()]);
    if listing >= 4 {
        assert_eq!(listed(conn, Some("stable"), listing).await, [name.as_str()]);
        assert_eq!(listed(conn, Some("Empty"), listing).await, [""; 0]);
    }
    let deleting = paired(version, 0, 2);
    assert_eq!(delete_offsets(conn, &name).await, Ok(vec![86, 3]));
    assert_eq!(delete(conn, &name, deleting).await, 68);
    let leaving = paired(version, 0, 5);
    assert_eq!(leave(conn, &name, "somebody", leaving).await, 25);
    assert_eq!(leave(conn, &name, &member, leaving).await, 0);
    assert_eq!(delete_offsets(conn, &name).await, Ok(vec![0, 3]));
    assert_eq!(delete(conn, &name, deleting).await, 0);
    assert_eq!(delete(conn, &name, deleting).await, 69);
    assert_eq!(delete_offsets(conn, &name).await, Err(69));
    let request = DescribeGroupsRequest::default().with_groups(vec![group(&name)]);
    let describing = paired(version, 0, 6);
    let gone: DescribeGroupsResponse = conn.ask(ApiKey::DescribeGroups, describing, &request).await;
    let expected = if describing < 6 {
        (0, "Dead")
    } else {
        (69, "")
    };
    let gone = &gone.groups[0];
    assert_eq!((gone.error_code, &*gone.group_state), expected);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn groups_are_served_in_every_version_of_their_requests() {
    let mut nodes = start().await;
    let port = nodes.kafka_port(0);
    let mut conn = KafkaConn::open(port).await;
    for version in 0..=9 {
        live(&mut conn, port, version).await;
    }
    // Nobody coordinates transactions, nor what nobody has heard of.
    for (kind, code) in [(1, 15), (9, 42)] {
        let request = FindCoordinatorRequest::default()
            .with_key(text("t"))
            .with_key_type(kind);
        let answer: FindCoordinatorResponse = conn.ask(ApiKey::FindCoordinator, 3, &request).await;
        assert_eq!((answer.error_code, answer.node_id.0), (code, -1));
    }
    // One group of a request is refused, the others are served.
    let keys = vec![text("group"), text("")];
    let request = FindCoordinatorRequest::default().with_coordinator_keys(keys);
    let answer: FindCoordinatorResponse = conn.ask(ApiKey::FindCoordinator, 4, &request).await;
    let codes: Vec<i16> = answer
        .coordinators
        .iter()
        .map(|one| one.error_code)
        .collect();
    assert_eq!(codes, [0, 24]);
    nodes.stop();
}

/// Connections of Kafka clients that are open.
fn open_connections(nodes: &Nodes) -> f64 {
    let metrics = nodes.page(0, "/metrics");
    let mut lines = metrics.lines();
    let line = lines
        .find(|line| line.starts_with("trilog_connections{") && line.contains("dialect=\"kafka\""));
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_group_holds_up_nobody_else() {
    let mut nodes = start().await;
    let port = nodes.kafka_port(0);
    let mut first = KafkaConn::open(port).await;
    locate(&mut first, "g", 4).await;
    let (member, generation) = join_alone(&mut first, "g", 3).await;
    sync(&mut first, "g", &member, generation, 3).await;

    // The second one waits for the first to join again, and what it says next waits with it.
    let mut second = KafkaConn::open(port).await;
    second.send(ApiKey::JoinGroup, 3, &join("g", "", 3)).await;
    let metadata = MetadataRequest::default().with_topics(None);
    second.send(ApiKey::Metadata, 4, &metadata).await;
    let deadline = Instant::now() + PATIENCE;
    while heartbeat(&mut first, "g", &member, generation, 3).await != 27 {
        assert!(Instant::now() < deadline, "the group does not rebalance");
    }
    assert!(second.is_silent(Duration::from_millis(100)).await);

    // A third gives up waiting: nothing is kept open for it.
    let before = open_connections(&nodes);
    let mut third = KafkaConn::open(port).await;
    third
        .send(ApiKey::JoinGroup, 3, &join("other", "", 3))
        .await;
    let _: JoinGroupResponse = third.receive(ApiKey::JoinGroup, 3).await;
    third.send(ApiKey::JoinGroup, 3, &join("g", "", 3)).await;
    assert!(third.is_silent(Duration::from_millis(100)).await);
    assert!(open_connections(&nodes) > before);
    drop(third);
    while open_connections(&nodes) > before {
        assert!(Instant::now() < deadline, "it is waited for still");
        sleep(Duration::from_millis(20)).await;
    }
    assert!(second.is_silent(Duration::from_millis(10)).await);

    let again = join("g", &member, 3);
    let rejoined: JoinGroupResponse = first.ask(ApiKey::JoinGroup, 3, &again).await;
    assert_eq!(
        (rejoined.error_code, rejoined.generation_id),
        (0, generation + 1)
    );
    let joined: JoinGroupResponse = second.receive(ApiKey::JoinGroup, 3).await;
    assert_eq!(
        (joined.error_code, joined.generation_id),
        (0, generation + 1)
    );
    let named: MetadataResponse = second.receive(ApiKey::Metadata, 4).await;
    assert!(!named.topics.is_empty());
    nodes.stop();
}

/// What a group is asked about twice is answered once: a short request has no very long answer.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_short_request_has_no_very_long_answer() {
    let mut nodes = start().await;
    nodes.run(&["topic", "create", "wide", "--partitions", "500"]);
    let mut conn = KafkaConn::open(nodes.kafka_port(0)).await;
    let note = "x".repeat(4_000);
    let names: Vec<String> = (0..12).map(|n| format!("group-{n}")).collect();
    for name in &names {
        locate(&mut conn, name, 4).await;
        let partitions = (0..500).map(|index| {
            OffsetCommitRequestPartition::default()
                .with_partition_index(index)
                .with_committed_offset(5)
                .with_committed_metadata(Some(text(&note)))
        });
        let topic = OffsetCommitRequestTopic::default()
            .with_name(TopicName(text("wide")))
            .with_partitions(partitions.collect());
        let request = OffsetCommitRequest::default()
            .with_group_id(group(name))
            .with_generation_id_or_member_epoch(-1)
            .with_topics(vec![topic]);
        // A coordinator whose map may not be the newest has its clients come again.
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let answer: OffsetCommitResponse = conn.ask(ApiKey::OffsetCommit, 8, &request).await;
            let codes = answer.topics[0].partitions.iter().map(|p| p.error_code);
            match codes.max() {
                Some(0) => break,
                Some(14) => assert!(Instant::now() < deadline, "{name} is loading for ever"),
                code => panic!("{name}: {code:?}"),
            }
        }
    }
    let all = |name: &String| {
        OffsetFetchRequestGroup::default()
            .with_group_id(group(name))
            .with_topics(None)
    };
    let asked = std::iter::repeat_n(&names[0], 2_000).chain(&names[1..]);
    let request = OffsetFetchRequest::default().with_groups(asked.map(all).collect());
    let answer: OffsetFetchResponse = conn.ask(ApiKey::OffsetFetch, 8, &request).await;
    let told = |group: &&OffsetFetchResponseGroup| group.error_code == 0;
    let told: Vec<usize> = answer
        .groups
        .iter()
        .filter(told)
        .map(|group| group.topics[0].partitions.len())
        .collect();
    assert!(told.iter().all(|count| *count == 500), "{told:?}");
    // Two megabytes each.
    assert!((5..=9).contains(&told.len()), "{}", told.len());
    let codes: Vec<i16> = answer.groups.iter().map(|group| group.error_code).collect();
    assert!(codes[1..2_000].iter().all(|code| *code == 42));
    assert_eq!(codes.last(), Some(&14), "it may be asked for again");
    nodes.stop();
}

/// What members are about to read is in use before they have agreed on anything.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offsets_are_in_use_while_a_group_forms() {
    let mut nodes = Nodes::start_with(1, "[groups]\ninitial_rebalance_delay = \"30s\"\n").await;
    nodes.run(&["topic", "create", TOPIC, "--partitions", "2"]);
    let port = nodes.kafka_port(0);
    let mut member = KafkaConn::open(port).await;
    locate(&mut member, "g", 4).await;
    member.send(ApiKey::JoinGroup, 3, &join("g", "", 3)).await;
    let mut other = KafkaConn::open(port).await;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match delete_offsets(&mut other, "g").await {
            // It has yet to be heard, or its coordinator is loading.
            Err(14 | 69) => assert!(Instant::now() < deadline, "nobody joins"),
            told => {
                assert_eq!(told, Ok(vec![86, 3]));
                break;
            }
        }
    }
    nodes.stop();
}

/// Where a node cannot answer for now, it says so once for all, and of each partition that its offset
/// is to be asked for again: a consumer of librdkafka would otherwise never do so, and read nothing.
#[tokio::test(flavor = "multi_thread")]
async fn offsets_that_cannot_be_told_now_are_asked_for_again() {
    const NOT_COORDINATOR: i16 = 16;
    const UNSTABLE: i16 = 88;
    let nodes = Nodes::start(3).await;
    for version in 6..=8 {
        let deadline = Instant::now() + PATIENCE;
        let parts = loop {
            let mut conn = KafkaConn::open(nodes.kafka_port(0)).await;
            let (node, ..) = locate(&mut conn, "readers", 3).await;
            let elsewhere = usize::from(node == 1);
            let mut conn = KafkaConn::open(nodes.kafka_port(elsewhere)).await;
            let (told, parts) = offsets_refused(&mut conn, version).await;
            if told == NOT_COORDINATOR {
                break parts;
            }
            // The group has moved there meanwhile.
            assert!(Instant::now() < deadline, "version {version}: {told}");
            sleep(Duration::from_millis(20)).await;
        };
        // Before version 7 clients do not know that an offset can be unstable.
        let expected = [vec![], vec![(0, UNSTABLE), (1, UNSTABLE)]];
        assert_eq!(parts, expected[usize::from(version >= 7)], "{version}");
    }
}

/// The error of an answer as a whole, and those of its partitions.
async fn offsets_refused(conn: &mut KafkaConn, version: i16) -> (i16, Vec<(i32, i16)>) {
    let indexes = vec![0, 1];
    if version >= 8 {
        let topic = OffsetFetchRequestTopics::default().with_name(topic());
        let asked = OffsetFetchRequestGroup::default()
            .with_group_id(group("readers"))
            .with_topics(Some(vec![topic.with_partition_indexes(indexes)]));
        let request = OffsetFetchRequest::default().with_groups(vec![asked]);
        let answer: OffsetFetchResponse = conn.ask(ApiKey::OffsetFetch, version, &request).await;
        let told = &answer.groups[0];
        let parts = told.topics.iter().flat_map(|topic| &topic.partitions);
        let parts = parts.map(|part| (part.partition_index, part.error_code));
        return (told.error_code, parts.collect());
    }
    let topic = OffsetFetchRequestTopic::default().with_name(topic());
    let request = OffsetFetchRequest::default()
        .with_group_id(group("readers"))
        .with_topics(Some(vec![topic.with_partition_indexes(indexes)]));
    let answer: OffsetFetchResponse = conn.ask(ApiKey::OffsetFetch, version, &request).await;
    let parts = answer.topics.iter().flat_map(|topic| &topic.partitions);
    let parts = parts.map(|part| (part.partition_index, part.error_code));
    (answer.error_code, parts.collect())
}
