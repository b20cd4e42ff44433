//! Transactions step by step, where the order of things is known.

use bytes::Buf;
use kafka_protocol::messages::produce_request::{PartitionProduceData, TopicProduceData};
use kafka_protocol::messages::{
    ApiKey, ProduceRequest, ProduceResponse, ResponseHeader, TopicName, TransactionalId,
};
use kafka_protocol::protocol::Decodable;
use trilog_server::access::{Access, Settings as AccessSettings};
use trilog_server::group::GroupError;
use trilog_server::kafka::{Kafka, Limits, Parts};
use trilog_server::listen::RequestMemory;
use trilog_server::transaction::{EndOpen, Inclusion, Phase};
use trilog_server::view::group::command::ProducerRef;

use super::kafka_conn::{framed, text as wire_text};
use super::*;

/// Asks until it is done.
async fn until_done<T, E, F>(stage: &Stage, request: impl Fn() -> F) -> T
where
    E: std::fmt::Debug,
    F: Future<Output = Result<T, E>>,
{
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        match request().await {
            Ok(answer) => return answer,
            Err(error) => assert!(Instant::now() < deadline, "{error:?}"),
        }
        stage.run(Duration::from_millis(50)).await;
    }
}

impl Stage {
    fn node(&self, number: u32) -> Node {
        self.nodes.borrow()[&number].clone()
    }

    /// The node that coordinates an id, once there is one.
    async fn coordinator(&self, id: &str) -> Node {
        let asked = self.node(1);
        let number = until_done(self, || asked.transactions.locate(id)).await;
        self.node(number.get())
    }

    /// Asks the coordinator of an id, whoever that is by then, until it is done.
    async fn ask<T, F>(&self, id: &str, request: impl Fn(Coordinator) -> F) -> T
    where
        F: Future<Output = Result<T, TransactionError>>,
    {
        until_done(self, || async {
            let number = self.node(1).transactions.locate(id).await?;
            request(self.node(number.get()).transactions).await
        })
        .await
    }

    /// A producer begins, and leaders are where they are to stay.
    async fn begin(&self, id: &str) -> Identity {
        let request = BeginRequest {
            id: id.to_owned(),
            timeout: Duration::from_mins(5),
            expected: None,
        };
        let begin = |coordinator: Coordinator| {
            let request = request.clone();
            async move { coordinator.begin(request).await }
        };
        let producer = self.ask(id, begin).await;
        self.run(Duration::from_secs(30)).await;
        producer
    }

    async fn add(&self, id: &str, producer: Identity, indexes: &[usize]) {
        let topic = self.node(1).cluster.topic(TOPIC).unwrap();
        let groups = indexes.iter().map(|index| topic.partitions[*index].group);
        let request = AddRequest {
            id: id.to_owned(),
            producer,
            partitions: groups.collect(),
        };
        let add = |coordinator: Coordinator| {
            let request = request.clone();
            async move { coordinator.add(request).await }
        };
        self.ask(id, add).await;
    }

    /// Has a node lead a partition of the topic.
    async fn lead(&self, index: u32, to: u32) {
        let deadline = Instant::now() + Duration::from_mins(1);
        loop {
            let led = (1..=3).filter_map(|number| self.partition(number, index));
            let led = led.filter(|partition| partition.leader().1);
            if let Some(leader) = led.max_by_key(Partition::term) {
                let group = leader.group();
                if group.replica().node() == NodeId(to) {
                    return;
                }
                let voters = group.voters().into_iter();
                if let Some(heir) = voters.into_iter().find(|one| one.node() == NodeId(to)) {
                    drop(group.transfer_leader(heir).await);
                }
            }
            assert!(Instant::now() < deadline, "node {to} never leads {index}");
            self.run(Duration::from_millis(50)).await;
        }
    }

    /// The Kafka dialect of a node, without its port.
    fn kafka(&self, number: u32) -> Kafka {
        let node = self.node(number);
        let limits = Limits {
            connections: 1,
            request_bytes: 1 << 20,
            inflight_bytes: 1 << 20,
            memory: 16 << 20,
            fetch_sessions: 1,
            fetch_session_memory: 1 << 20,
        };
        let parts = Parts {
            cluster: node.cluster,
            groups: node.groups,
            transactions: node.transactions,
            access: Access::new(AccessSettings {
                required: false,
                super_users: Vec::new(),
                allow_unruled: false,
                session_lifetime: Duration::ZERO,
            }),
            clock: self.all.machine(number).clock.clone(),
            entropy: Entropy::from_seed(1),
            requests: RequestMemory::new(16 << 20),
            data_dir: "/node".into(),
        };
        Kafka::new(parts, limits)
    }
}

/// A commit that was shown to be in its transaction, and queued behind that one's end, would be
/// dropped: it must not be acknowledged.
#[test]
fn a_commit_behind_the_end_of_its_transaction_is_refused() {
    block_on(async {
        let stage = Stage::start(1).await;
        let producer = stage.begin("alpha").await;
        let add = |coordinator: Coordinator| async move {
            let id = "alpha".to_owned();
            coordinator.add_group(id, producer, GROUP).await
        };
        stage.ask("alpha", add).await;
        stage.run(Duration::from_secs(30)).await;
        let asked = stage.node(1);
        let place = until_done(&stage, || asked.groups.locate(GROUP)).await;
        let node = stage.node(place.get());
        let show = || {
            let id = "alpha".to_owned();
            node.transactions.verify_group(id, producer, GROUP)
        };
        let transaction = until_done(&stage, show).await;
        let commit = |transaction| {
            node.groups.commit_in_transaction(TransactionCommit {
                member: MemberRef {
                    group: GROUP.to_owned(),
                    generation: -1,
                    member: String::new(),
                    instance: None,
                },
                producer_id: producer.producer_id,
                epoch: producer.epoch,
                transaction,
                offsets: vec![OffsetCommit {
                    topic: TOPIC.to_owned(),
                    partition: 0,
                    offset: 7,
                    leader_epoch: -1,
                    metadata: String::new(),
                }],
            })
        };
        let ended = ProducerRef {
            producer_id: producer.producer_id,
            epoch: i32::from(producer.epoch),
            transaction,
        };
        let index = node.groups.partition_of(GROUP).unwrap();
        let ending = node.groups.end_transaction(index, ended, true);
        // Each is queued when it is first polled, in this order.
        let (ended, late) = futures::future::join(ending, commit(transaction)).await;
        ended.unwrap();
        assert_eq!(late, Err(GroupError::ProducerFenced));
        assert_eq!(commit(transaction).await, Err(GroupError::ProducerFenced));
        assert_eq!(commit(transaction + 1).await, Ok(vec![Ok(())]));
    });
}

/// The codes of a produce of two partitions.
async fn produce_to_two(kafka: Kafka, producer: Identity) -> Vec<i16> {
    let batch = |index: i32| {
        let mut batch = BatchBuilder::new(Compression::None);
        batch.set_transactional().set_producer(ProducerState {
            id: producer.producer_id,
            epoch: producer.epoch,
            sequence: 0,
        });
        batch.push(5, None, Some(b"value"), &[]).unwrap();
        PartitionProduceData::default()
            .with_index(index)
            .with_records(Some(batch.build().unwrap()))
    };
    let topic = TopicProduceData::default()
        .with_name(TopicName(wire_text(TOPIC)))
        .with_partition_data(vec![batch(0), batch(1)]);
    let request = ProduceRequest::default()
        .with_transactional_id(Some(TransactionalId(wire_text("alpha"))))
        .with_acks(-1)
        .with_timeout_ms(30_000)
        .with_topic_data(vec![topic]);
    let message = framed(ApiKey::Produce, 9, 1, &request).slice(4..);
    let mut answer = kafka.answer(&message).await.unwrap();
    let header = ApiKey::Produce.response_header_version(9);
    ResponseHeader::decode(&mut answer, header).unwrap();
    let response = ProduceResponse::decode(&mut answer, 9).unwrap();
    assert!(!answer.has_remaining());
    let topics = response.responses.into_iter();
    let each = topics.flat_map(|topic| topic.partition_responses);
    each.map(|partition| partition.error_code).collect()
}

/// A partition that is led elsewhere when a request comes in was not asked about. That this node
/// comes to lead it while the coordinator is asked about the others ends no transaction.
#[test]
fn a_partition_that_comes_to_be_led_while_others_are_asked_about_is_another_nodes() {
    const NOT_LEADER: i16 = 6;
    block_on(async {
        let stage = Stage::start(1).await;
        let producer = stage.begin("alpha").await;
        stage.add("alpha", producer, &[0, 1]).await;
        let coordinator = stage.coordinator("alpha").await.cluster.node().get();
        let others: Vec<u32> = (1..=3).filter(|number| *number != coordinator).collect();
        stage.lead(0, others[0]).await;
        stage.lead(1, others[1]).await;
        let now = stage.coordinator("alpha").await.cluster.node().get();
        assert_eq!(now, coordinator);

        // One that is cut off is given its lease: nobody takes its place too soon.
        stage.all.net.isolate(NodeId(coordinator));
        let answering = spawn_local(produce_to_two(stage.kafka(others[0]), producer));
        stage.run(Duration::from_millis(100)).await;
        stage.lead(1, others[0]).await;
        assert!(
            !answering.is_finished(),
            "the coordinator is yet to be asked"
        );
        assert_eq!(answering.await.unwrap(), [0, NOT_LEADER]);
    });
}

/// A transaction that was ended, and one that the next coordinator has opened since, look alike to
/// a coordinator that has not heard of the second: asked to end it, it would say that it has.
#[test]
fn who_was_replaced_answers_nothing_from_what_it_knows() {
    block_on(async {
        let stage = Stage::start(1).await;
        let producer = stage.begin("alpha").await;
        stage.add("alpha", producer, &[0]).await;
        let request = EndRequest {
            id: "alpha".to_owned(),
            producer,
            commit: true,
        };
        let end = |coordinator: Coordinator| {
            let request = request.clone();
            async move { coordinator.end(request).await }
        };
        stage.ask("alpha", end).await;
        stage.run(Duration::from_secs(5)).await;
        let old = stage.coordinator("alpha").await;
        assert_eq!(
            old.transactions.end(request.clone()).await,
            Ok(()),
            "ended before"
        );

        stage.all.net.isolate(old.cluster.node());
        let numbers = [1, 2, 3].map(NodeId);
        let other = numbers.iter().find(|node| **node != old.cluster.node());
        let other = stage.node(other.unwrap().get());
        let group = other.cluster.topic(TOPIC).unwrap().partitions[0].group;
        until_done(&stage, || async {
            let number = other.transactions.locate("alpha").await?;
            if number == old.cluster.node() {
                return Err(TransactionError::Loading);
            }
            let add = AddRequest {
                id: "alpha".to_owned(),
                producer,
                partitions: vec![group],
            };
            stage.node(number.get()).transactions.add(add).await
        })
        .await;
        let answer = old.transactions.end(request).await;
        assert!(answer.is_err(), "the next transaction is open: {answer:?}");
    });
}

impl Stage {
    async fn leader(&self, index: u32) -> (Node, Partition) {
        let led = |all: &Machines| {
            (1..=3).find(|number| {
                let held = all.with(*number, |server| server.cluster().partition(TOPIC, index));
                held.is_some_and(|held| held.is_ok_and(|partition| partition.leader().1))
            })
        };
        self.all
            .until("a led partition", |all| led(all).is_some())
            .await;
        let number = led(&self.all).unwrap();
        (self.node(number), self.partition(number, index).unwrap())
    }
}

/// A batch that came to be admitted for a transaction which no coordinator knows.
async fn hang(partition: &Partition, producer: Identity, sequence: i32) -> Offset {
    let mut batch = BatchBuilder::new(Compression::None);
    batch.set_transactional().set_producer(ProducerState {
        id: producer.producer_id,
        epoch: producer.epoch,
        sequence,
    });
    batch.push(5, None, Some(b"hangs"), &[]).unwrap();
    let shown = Inclusion {
        since: partition.watch().borrow().offset,
        transaction: 1,
    };
    let batch = batch.build().unwrap();
    let ticket = partition.enqueue_in_transaction(batch, Some(shown)).await;
    ticket.unwrap().committed().await.unwrap().base_offset
}

#[test]
fn what_no_coordinator_ends_an_operator_can() {
    block_on(async {
        let stage = Stage::start(1).await;
        let producer = Identity {
            producer_id: 70,
            epoch: 3,
        };
        // Leaders are where they are to stay.
        stage.run(Duration::from_secs(30)).await;
        let (node, partition) = stage.leader(0).await;
        let begins = hang(&partition, producer, 0).await;
        assert_eq!(partition.stable_offset(), begins);
        let end = EndOpen {
            producer,
            coordinator_epoch: 5,
            commit: false,
            begins: Some(begins),
        };
        let other = EndOpen {
            begins: Some(begins.plus(1)),
            ..end
        };
        let refused = node.transactions.end_open(&partition, other).await;
        assert_eq!(refused, Err(AppendError::NotInTransaction));
        let marker = node.transactions.end_open(&partition, end).await.unwrap();
        assert_eq!(partition.stable_offset(), marker.plus(1));

        // By Kafka's rules: an older coordinator, an older epoch, and what is not open.
        let again = hang(&partition, producer, 1).await;
        let refused = [
            EndOpen {
                coordinator_epoch: 4,
                begins: None,
                ..end
            },
            EndOpen {
                producer: Identity {
                    epoch: 2,
                    ..producer
                },
                begins: None,
                ..end
            },
        ];
        let mut errors = Vec::new();
        for end in refused {
            errors.push(
                node.transactions
                    .end_open(&partition, end)
                    .await
                    .unwrap_err(),
            );
        }
        let fenced = AppendError::Fenced { current_epoch: 3 };
        assert_eq!(errors, [AppendError::StaleCoordinator, fenced]);
        assert_eq!(partition.stable_offset(), again);
        let any = EndOpen {
            commit: true,
            begins: None,
            ..end
        };
        node.transactions.end_open(&partition, any).await.unwrap();
        let settled = partition.read_stable(Offset(0), 1 << 20).await.unwrap();
        let counts: Vec<Offset> = settled
            .committed()
            .fetched
            .frames
            .iter()
            .map(|frame| frame.header.base_offset)
            .collect();
        assert_eq!(counts, [again], "one was aborted, one committed");
        stage.until_settled().await;
    });
}

#[test]
fn an_operator_aborts_by_id_and_shuts_the_producer_out() {
    block_on(async {
        let stage = Stage::start(1).await;
        let producer = stage.begin("alpha").await;
        let node = stage.coordinator("alpha").await;
        let abort = node.transactions.abort("alpha").await;
        assert_eq!(
            abort,
            Err(TransactionError::InvalidState),
            "nothing is open"
        );
        let unknown = node.transactions.abort("nobody").await;
        assert!(unknown.is_err(), "{unknown:?}");
        stage.add("alpha", producer, &[0]).await;
        let census = node.transactions.census();
        assert_eq!(census.phases.get(&Phase::Ongoing), Some(&1));
        assert!(census.oldest_open.is_some());
        node.transactions.abort("alpha").await.unwrap();
        until_done(&stage, || async {
            let phase = node.transactions.describe("alpha")?.listing.phase;
            match phase {
                Phase::CompleteAbort => Ok(()),
                _ => Err(TransactionError::Concurrent),
            }
        })
        .await;
        let topic = node.cluster.topic(TOPIC).unwrap();
        let request = AddRequest {
            id: "alpha".to_owned(),
            producer,
            partitions: vec![topic.partitions[0].group],
        };
        let late = node.transactions.add(request).await;
        assert_eq!(late, Err(TransactionError::Fenced));
        let census = node.transactions.census();
        assert_eq!(census.phases.get(&Phase::CompleteAbort), Some(&1));
        assert_eq!((census.phases.len(), census.oldest_open), (1, None));
        let listed = |states: fn(Phase) -> bool| {
            let all = node.transactions.list(|one| states(one.phase), 1 << 10);
            all.map(|all| all.len())
        };
        assert_eq!(listed(|_| true), Ok(1));
        assert_eq!(listed(|phase| phase == Phase::Ongoing), Ok(0));
        let too_many = node.transactions.list(|_| true, 10);
        assert_eq!(too_many, Err(TransactionError::TooManyIds));
    });
}
