//! Transactions as Kafka's wire and the command line have them: what tools find out about them, and
//! how they end one, said to a node and answered by it.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod kafka_conn;
mod nodes;

use std::time::Duration;

use bytes::Bytes;
use kafka_conn::{KafkaConn, text};
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::describe_producers_request::TopicRequest;
use kafka_protocol::messages::describe_producers_response::ProducerState as Described;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::write_txn_markers_request::{
    WritableTxnMarker, WritableTxnMarkerTopic,
};
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, AddPartitionsToTxnResponse, ApiKey, BrokerId,
    DescribeProducersRequest, DescribeProducersResponse, EndTxnRequest, EndTxnResponse,
    FindCoordinatorRequest, FindCoordinatorResponse, InitProducerIdRequest, InitProducerIdResponse,
    ListOffsetsRequest, ListOffsetsResponse, ListTransactionsRequest, ListTransactionsResponse,
    ProduceRequest, ProduceResponse, ProducerId, TopicName, TransactionalId,
    WriteTxnMarkersRequest, WriteTxnMarkersResponse,
};
use nodes::Nodes;
use serde_json::Value;
use tokio::time::{Instant, sleep};
use trilog_model::batch::{BatchBuilder, Compression, ProducerState};

const TOPIC: &str = "orders";
const ID: &str = "payments";
const PATIENCE: Duration = Duration::from_secs(30);

fn id() -> TransactionalId {
    TransactionalId(text(ID))
}

fn topic() -> TopicName {
    TopicName(text(TOPIC))
}

/// A producer with a transactional id.
struct Producer {
    conn: KafkaConn,
    id: i64,
    epoch: i16,
    sequence: i32,
}

impl Producer {
    async fn begin(port: u16) -> Self {
        let mut conn = KafkaConn::open(port).await;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let find = FindCoordinatorRequest::default()
                .with_key(text(ID))
                .with_key_type(1);
            let key = ApiKey::FindCoordinator;
            let found: FindCoordinatorResponse = conn.ask(key, 3, &find).await;
            let begin = InitProducerIdRequest::default()
                .with_transactional_id(Some(id()))
                .with_transaction_timeout_ms(60_000)
                .with_producer_id(ProducerId(-1))
                .with_producer_epoch(-1);
            if found.error_code == 0 {
                let key = ApiKey::InitProducerId;
                let begun: InitProducerIdResponse = conn.ask(key, 4, &begin).await;
                if begun.error_code == 0 {
                    return Self {
                        conn,
                        id: begun.producer_id.0,
                        epoch: begun.producer_epoch,
                        sequence: 0,
                    };
                }
            }
            assert!(Instant::now() < deadline, "there is no coordinator");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// Partition 0 comes into the transaction; while the last one is ending it is asked again.
    async fn add(&mut self) -> i16 {
        const CONCURRENT: i16 = 51;
        let added = AddPartitionsToTxnTopic::default()
            .with_name(topic())
            .with_partitions(vec![0]);
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(id())
            .with_v3_and_below_producer_id(ProducerId(self.id))
            .with_v3_and_below_producer_epoch(self.epoch)
            .with_v3_and_below_topics(vec![added]);
        let deadline = Instant::now() + PATIENCE;
        loop {
            let key = ApiKey::AddPartitionsToTxn;
            let answer: AddPartitionsToTxnResponse = self.conn.ask(key, 3, &request).await;
            let topic = &answer.results_by_topic_v3_and_below[0];
            let code = topic.results_by_partition[0].partition_error_code;
            if code != CONCURRENT || Instant::now() > deadline {
                return code;
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    async fn produce(&mut self) -> i16 {
        let mut batch = BatchBuilder::new(Compression::None);
        batch.set_transactional().set_producer(ProducerState {
            id: self.id,
            epoch: self.epoch,
            sequence: self.sequence,
        });
        batch.push(1, None, Some(b"value"), &[]).unwrap();
        let records: Bytes = batch.build().unwrap();
        let partition = PartitionProduceData::default().with_records(Some(records));
        let topic = TopicProduceData::default()
            .with_name(topic())
            .with_partition_data(vec![partition]);
        let request = ProduceRequest::default()
            .with_transactional_id(Some(id()))
            .with_acks(-1)
            .with_timeout_ms(10_000)
            .with_topic_data(vec![topic]);
        let answer: ProduceResponse = self.conn.ask(ApiKey::Produce, 7, &request).await;
        let code = answer.responses[0].partition_responses[0].error_code;
        self.sequence += i32::from(code == 0);
        code
    }

    async fn end(&mut self, commit: bool) -> i16 {
        let request = EndTxnRequest::default()
            .with_transactional_id(id())
            .with_producer_id(ProducerId(self.id))
            .with_producer_epoch(self.epoch)
            .with_committed(commit);
        let answer: EndTxnResponse = self.conn.ask(ApiKey::EndTxn, 3, &request).await;
        answer.error_code
    }

    /// What DescribeProducers says of it.
    async fn described(&mut self) -> Option<Described> {
        let asked = TopicRequest::default()
            .with_name(topic())
            .with_partition_indexes(vec![0]);
        let request = DescribeProducersRequest::default().with_topics(vec![asked]);
        let key = ApiKey::DescribeProducers;
        let answer: DescribeProducersResponse = self.conn.ask(key, 0, &request).await;
        let partition = &answer.topics[0].partitions[0];
        assert_eq!(partition.error_code, 0);
        let mut producers = partition.active_producers.iter();
        producers.find(|one| one.producer_id.0 == self.id).cloned()
    }

    /// Where readers of committed records stop, and where all others do.
    async fn ends(&mut self) -> [i64; 2] {
        let mut ends = [0; 2];
        for (isolation, end) in [1, 0].into_iter().zip(&mut ends) {
            let partition = ListOffsetsPartition::default().with_timestamp(-1);
            let asked = ListOffsetsTopic::default()
                .with_name(topic())
                .with_partitions(vec![partition]);
            let request = ListOffsetsRequest::default()
                .with_replica_id(BrokerId(-1))
                .with_isolation_level(isolation)
                .with_topics(vec![asked]);
            let key = ApiKey::ListOffsets;
            let answer: ListOffsetsResponse = self.conn.ask(key, 5, &request).await;
            *end = answer.topics[0].partitions[0].offset;
        }
        ends
    }

    /// Ends whatever it has open, as an administrator would, in these partitions.
    async fn write_marker(&mut self, epoch: i16, coordinator: i32, partitions: &[i32]) -> Vec<i16> {
        let written = WritableTxnMarkerTopic::default()
            .with_name(topic())
            .with_partition_indexes(partitions.to_vec());
        let marker = WritableTxnMarker::default()
            .with_producer_id(ProducerId(self.id))
            .with_producer_epoch(epoch)
            .with_coordinator_epoch(coordinator)
            .with_transaction_result(false)
            .with_topics(vec![written]);
        let request = WriteTxnMarkersRequest::default().with_markers(vec![marker]);
        let key = ApiKey::WriteTxnMarkers;
        let answer: WriteTxnMarkersResponse = self.conn.ask(key, 1, &request).await;
        assert_eq!(answer.markers[0].producer_id.0, self.id);
        let topics = answer.markers[0].topics.iter();
        let each = topics.flat_map(|topic| &topic.partitions);
        each.map(|partition| partition.error_code).collect()
    }

    async fn listed(&mut self, state: &str) -> Vec<String> {
        let request = ListTransactionsRequest::default().with_state_filters(vec![text(state)]);
        let key = ApiKey::ListTransactions;
        let answer: ListTransactionsResponse = self.conn.ask(key, 0, &request).await;
        assert_eq!(answer.error_code, 0);
        let states = answer.transaction_states.into_iter();
        states.map(|one| one.transactional_id.to_string()).collect()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tools_find_transactions_and_end_them_by_the_rules_of_a_broker() {
    const FENCED: i16 = 47;
    const COORDINATOR_FENCED: i16 = 52;
    const UNKNOWN: i16 = 3;
    let nodes = Nodes::start(1).await;
    nodes.run(&["topic", "create", TOPIC]);
    let mut producer = Producer::begin(nodes.kafka_port(0)).await;
    assert_eq!(producer.add().await, 0);
    assert_eq!(producer.produce().await, 0);
    assert_eq!(producer.end(true).await, 0);
    assert_eq!(producer.add().await, 0);
    let [begins, _] = producer.ends().await;
    assert_eq!(producer.produce().await, 0);
    assert_eq!(producer.ends().await, [begins, begins + 1]);
    assert_eq!(producer.listed("Ongoing").await, [ID]);

    let described = producer.described().await.unwrap();
    assert_eq!(described.current_txn_start_offset, begins);
    let (epoch, coordinator) = (producer.epoch, described.coordinator_epoch);
    assert!(coordinator > 0, "it has committed before");
    let old = producer.write_marker(epoch, coordinator - 1, &[0]).await;
    assert_eq!(old, [COORDINATOR_FENCED]);
    assert_eq!(producer.ends().await, [begins, begins + 1]);
    let written = producer.write_marker(epoch, coordinator, &[0, 9]).await;
    assert_eq!(written, [0, UNKNOWN]);
    assert_eq!(producer.ends().await, [begins + 2, begins + 2]);
    let described = producer.described().await.unwrap();
    assert_eq!(described.current_txn_start_offset, -1);

    // Its coordinator knows nothing of that: the transaction goes on, and ends as it is told.
    assert_eq!(producer.produce().await, 0);
    assert_eq!(producer.ends().await, [begins + 2, begins + 3]);
    assert_eq!(producer.end(true).await, 0);
    let deadline = Instant::now() + PATIENCE;
    while producer.ends().await != [begins + 4, begins + 4] {
        assert!(Instant::now() < deadline, "it does not end");
        sleep(Duration::from_millis(20)).await;
    }
    // A marker of a later epoch shuts out the earlier one, as a broker has it.
    assert_eq!(
        producer.write_marker(epoch + 1, coordinator, &[0]).await,
        [0]
    );
    let old = producer.write_marker(epoch, coordinator, &[0]).await;
    assert_eq!(old, [FENCED]);
}

fn json(nodes: &Nodes, arguments: &[&str]) -> Value {
    let said = nodes.run(&[arguments, &["-o", "json"]].concat());
    serde_json::from_str(&said).unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_command_line_shows_transactions_and_ends_them() {
    let nodes = Nodes::start(1).await;
    nodes.run(&["topic", "create", TOPIC]);
    let none = json(&nodes, &["txn", "ls"]);
    assert_eq!(none["transactions"], serde_json::json!([]));
    let mut producer = Producer::begin(nodes.kafka_port(0)).await;
    assert_eq!(producer.add().await, 0);
    assert_eq!(producer.produce().await, 0);

    let listed = json(&nodes, &["txn", "ls", "--state", "Ongoing"]);
    assert_eq!(listed["transactions"][0]["id"], ID);
    assert_eq!(listed["transactions"][0]["producer_id"], producer.id);
    let old = json(&nodes, &["txn", "ls", "--longer-than", "1h"]);
    assert_eq!(old["transactions"], serde_json::json!([]));
    let described = json(&nodes, &["txn", "describe", ID]);
    assert_eq!(described["state"], "Ongoing");
    assert_eq!(described["places"], serde_json::json!(["orders/0"]));
    let hanging = nodes.run(&["txn", "hanging", "--longer-than", "0s"]);
    assert_eq!(
        hanging, "no transaction hangs\n",
        "its coordinator knows it"
    );

    let abort = ["txn", "abort", "--topic", TOPIC, "--partition", "0"];
    let wrong = nodes.trilog(&[&abort[..], &["--start-offset", "7"]].concat());
    let said = String::from_utf8_lossy(&wrong.stderr);
    assert!(said.contains("no transaction that is open"), "{said}");
    let done = nodes.run(&[&abort[..], &["--start-offset", "0"]].concat());
    assert!(done.contains("the marker is at 1"), "{done}");
    assert_eq!(producer.ends().await, [2, 2]);

    nodes.run(&["txn", "abort", ID]);
    let deadline = Instant::now() + PATIENCE;
    while json(&nodes, &["txn", "describe", ID])["state"] != "CompleteAbort" {
        assert!(Instant::now() < deadline, "it is not aborted");
        sleep(Duration::from_millis(50)).await;
    }
    assert_ne!(producer.add().await, 0, "its producer is shut out");
    let nobody = nodes.trilog(&["txn", "describe", "nobody"]);
    let said = String::from_utf8_lossy(&nobody.stderr);
    assert!(
        said.contains("there is no transactional id 'nobody'"),
        "{said}"
    );
    shows_counts(&nodes);
}

fn shows_counts(nodes: &Nodes) {
    let page = nodes.page(0, "/metrics");
    let value = |name: &str, label: &str| {
        let mut lines = page.lines().filter(|line| line.starts_with(name));
        let line = lines.find(|line| line.contains(label));
        let line = line.unwrap_or_else(|| panic!("{name} {label} is not shown:\n{page}"));
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let exactly = [
        ("trilog_transactions{", "CompleteAbort", 1.0),
        ("trilog_transactions{", "Ongoing", 0.0),
        ("trilog_transactions_committed_total", "", 0.0),
        ("trilog_transactions_aborted_total", "operator", 1.0),
        ("trilog_transactions_aborted_total", "timeout", 0.0),
        ("trilog_transaction_open_seconds_max", "", 0.0),
        ("trilog_unsettled_messages", TOPIC, 0.0),
        ("trilog_aborted_transactions_max", TOPIC, 1.0),
    ];
    for (name, label, expected) in exactly {
        let shown = value(name, label);
        assert!((shown - expected).abs() < 0.5, "{name} {label}: {shown}");
    }
}
