//! Administration, and finding a cluster of which parts are missing.

use std::time::Duration;

use trilog_client::proto::{CreateTopicRequest, ErrorCode, PublishRequest};
use trilog_client::testkit::FakeCluster;
use trilog_client::{Client, ClientConfig, Error};

fn request(name: &str, partitions: u32) -> CreateTopicRequest {
    CreateTopicRequest {
        name: name.to_owned(),
        partitions,
        ..CreateTopicRequest::default()
    }
}

#[tokio::test]
async fn topics_are_made_described_listed_and_deleted() {
    let cluster = FakeCluster::start(2, &[]).await;
    let client = Client::connect(cluster.addresses()).await.unwrap();
    let admin = client.admin();
    assert!(admin.create_topic(request("t", 3)).await.unwrap().created);
    let error = admin.create_topic(request("t", 3)).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::TopicExists));
    let again = CreateTopicRequest {
        if_not_exists: true,
        ..request("t", 3)
    };
    assert!(!admin.create_topic(again).await.unwrap().created);
    assert_eq!(admin.await_leaders("t").await.unwrap().partitions.len(), 3);
    assert_eq!(admin.list_topics(false).await.unwrap().len(), 1);
    admin.delete_topic("t").await.unwrap();
    let error = admin.describe_topic("t").await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::UnknownTopic));
}

#[tokio::test]
async fn one_living_seed_is_enough() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let mut seeds = vec!["127.0.0.1:1".to_owned(), "127.0.0.1:2".to_owned()];
    seeds.extend(cluster.addresses());
    let client = Client::connect(seeds).await.unwrap();
    assert_eq!(client.admin().status().await.unwrap().cluster_id, "fake");
}

#[tokio::test]
async fn a_node_that_never_answers_is_passed_over() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut seeds = cluster.addresses();
    seeds.push(silent.local_addr().unwrap().to_string());
    for seed in 0..4 {
        let config = ClientConfig {
            seeds: seeds.clone(),
            attempt_timeout: Duration::from_millis(20),
            seed: Some(seed),
            ..ClientConfig::default()
        };
        let client = Client::connect_with(config).await.unwrap();
        client.admin().describe_topic("t").await.unwrap();
    }
}

#[tokio::test]
async fn no_living_seed_is_an_error_that_names_one() {
    let config = ClientConfig {
        seeds: vec!["127.0.0.1:1".to_owned()],
        call_timeout: Duration::from_secs(10),
        ..ClientConfig::default()
    };
    let error = Client::connect_with(config).await.unwrap_err();
    assert!(matches!(error, Error::Unreachable(_)), "{error:?}");
    assert!(error.to_string().contains("127.0.0.1:1"), "{error}");
    let none: [&str; 0] = [];
    let error = Client::connect(none).await.unwrap_err();
    assert!(error.to_string().contains("no seed"), "{error}");
}

#[tokio::test]
async fn one_record_can_be_published_without_a_producer() {
    let cluster = FakeCluster::start(1, &[("t", 1)]).await;
    let client = Client::connect(cluster.addresses()).await.unwrap();
    let admin = client.admin();
    for expected in 0..3 {
        let request = PublishRequest {
            topic: "t".to_owned(),
            value: Some("v".into()),
            ..PublishRequest::default()
        };
        assert_eq!(admin.publish(request).await.unwrap().offset, expected);
    }
    let bounds = admin.resolve("t", 0, None).await.unwrap();
    assert_eq!((bounds.log_start, bounds.high_watermark), (0, 3));
}
