//! Rights of those who read on and on: what they are told follows the rules as these change.

use super::*;

/// A fetch of the topic, by its id or by its name: the first of a session, or one that has nothing
/// new to say.
fn fetch(topic: Option<fetch_request::FetchTopic>, session: (i32, i32)) -> FetchRequest {
    FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_bytes(1 << 20)
        .with_session_id(session.0)
        .with_session_epoch(session.1)
        .with_topics(topic.into_iter().collect())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fetch_session_is_held_to_rights_as_they_change() {
    let (nodes, _dir) = start("").await;
    let port = nodes.kafka_port(0);
    let mut admin = KafkaConn::open_as(port, "admin", PASSWORD).await;
    let mut alice = KafkaConn::open_as(port, "alice", PASSWORD).await;
    let request = produce(batch(None), None);
    let answer: ProduceResponse = admin.ask(ApiKey::Produce, 7, &request).await;
    assert_eq!(produced(&answer), [0]);
    let topic = metadata_request::MetadataRequestTopic::default().with_name(Some(name()));
    let request = MetadataRequest::default().with_topics(Some(vec![topic]));
    let answer: MetadataResponse = admin.ask(ApiKey::Metadata, 13, &request).await;
    let id = answer.topics[0].topic_id;
    // Its id tells nobody the name.
    let topic = metadata_request::MetadataRequestTopic::default()
        .with_name(None)
        .with_topic_id(id);
    let request = MetadataRequest::default().with_topics(Some(vec![topic]));
    let answer: MetadataResponse = alice.ask(ApiKey::Metadata, 13, &request).await;
    let topic = &answer.topics[0];
    assert_eq!((topic.error_code, &topic.name), (NO_TOPIC, &None));
    assert!(topic.partitions.is_empty());
    for version in [11, 12, 13, 17] {
        let partition = fetch_request::FetchPartition::default()
            .with_partition_max_bytes(1 << 20)
            .with_current_leader_epoch(-1);
        let mut topic = fetch_request::FetchTopic::default().with_partitions(vec![partition]);
        if version >= 13 {
            topic.topic_id = id;
        } else {
            topic.topic = name();
        }
        let mut request = fetch(Some(topic), (0, 0));
        let mut session = 0;
        // Nothing, granted, the same, taken away, the same, granted anew.
        for (epoch, (granted, change)) in (0..).zip([
            (false, false),
            (true, true),
            (true, false),
            (false, true),
            (false, false),
            (true, true),
        ]) {
            if change && granted {
                grant(&mut admin, &[(TOPICS, READ)]).await;
            } else if change {
                clear(&mut admin).await;
            }
            if epoch > 0 {
                request = fetch(None, (session, epoch));
            }
            let answer: FetchResponse = alice.ask(ApiKey::Fetch, version, &request).await;
            assert_eq!(answer.error_code, 0, "version {version}, epoch {epoch}");
            session = answer.session_id;
            let partition = &answer.responses[0].partitions[0];
            let read = partition
                .records
                .as_ref()
                .is_some_and(|records| !records.is_empty());
            let wanted = if granted { 0 } else { NO_TOPIC };
            assert_eq!(
                (partition.error_code, read),
                (wanted, granted),
                "version {version}, epoch {epoch}"
            );
            if !granted {
                assert!(answer.node_endpoints.is_empty());
                assert_eq!(
                    (partition.high_watermark, partition.preferred_read_replica.0),
                    (-1, -1)
                );
            }
        }
        clear(&mut admin).await;
    }
}
