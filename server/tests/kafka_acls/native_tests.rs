//! The same rights, asked of callers of the native API: each method, and each refusal's words.

use std::time::Duration;

use base64::Engine as _;
use bytes::Buf as _;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use trilog_wire::v1::fetch_client::FetchClient;
use trilog_wire::v1::producer_client::ProducerClient;
use trilog_wire::v1::{
    ErrorCode, FetchRequest as NativeFetch, ProduceRequest as NativeProduce, Start, start::At,
};

use super::*;

/// Sends nothing and does not look at what comes.
struct Empty;

impl tonic::codec::Codec for Empty {
    type Encode = ();
    type Decode = ();
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl tonic::codec::Encoder for Empty {
    type Item = ();
    type Error = tonic::Status;

    fn encode(&mut self, (): (), _: &mut tonic::codec::EncodeBuf<'_>) -> Result<(), tonic::Status> {
        Ok(())
    }
}

impl tonic::codec::Decoder for Empty {
    type Item = ();
    type Error = tonic::Status;

    fn decode(
        &mut self,
        from: &mut tonic::codec::DecodeBuf<'_>,
    ) -> Result<Option<()>, tonic::Status> {
        from.advance(from.remaining());
        Ok(Some(()))
    }
}

/// A name and a password, as they go with a call.
fn basic(user: &str, password: &str) -> String {
    let pair = format!("{user}:{password}");
    let pair = base64::engine::general_purpose::STANDARD.encode(pair);
    format!("Basic {pair}")
}

/// Methods that tell everybody the same, show less to those who may see less, or refuse each
/// message of a stream.
const OPEN: [&str; 7] = [
    "/trilog.v1.Cluster/Status",
    "/trilog.v1.Groups/List",
    "/trilog.v1.Producer/Produce",
    "/trilog.v1.Topics/Describe",
    "/trilog.v1.Topics/List",
    "/trilog.v1.Transactions/List",
    "/trilog.v1.Transactions/ListOpen",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_native_call_is_refused_to_whom_nothing_is_allowed() {
    let (nodes, _dir) = start("").await;
    let address = format!("http://{}", nodes.address(0));
    let channel = tonic::transport::Endpoint::from_shared(address).unwrap();
    let channel = channel.connect().await.unwrap();
    for path in trilog_wire::descriptors::paths() {
        for known in [false, true] {
            let mut client = tonic::client::Grpc::new(channel.clone());
            client.ready().await.unwrap();
            let mut request = tonic::Request::new(());
            if known {
                let value = basic("alice", PASSWORD).parse().unwrap();
                request.metadata_mut().insert("authorization", value);
            }
            let called = path.parse().unwrap();
            // One message or many: what matters is how the call begins.
            let answer = client.server_streaming(request, called, Empty).await;
            let code = match answer {
                Ok(answer) => match answer.into_inner().message().await {
                    Ok(_) => tonic::Code::Ok,
                    Err(status) => status.code(),
                },
                Err(status) => status.code(),
            };
            let wanted = match known {
                false => tonic::Code::Unauthenticated,
                true if OPEN.contains(&&*path) => tonic::Code::Ok,
                true => tonic::Code::PermissionDenied,
            };
            assert_eq!(code, wanted, "{path}, known: {known}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn native_callers_are_asked_and_held_to_the_same_rules() {
    let (nodes, _dir) = start("").await;
    let mut admin = KafkaConn::open_as(nodes.kafka_port(0), "admin", PASSWORD).await;
    let as_user = |user: Option<&str>, password: &str, arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_trilog"));
        command
            .args(arguments)
            .env("TRILOG_SERVER", nodes.addresses().join(","));
        command
            .env_remove("TRILOG_USER")
            .env("TRILOG_PASSWORD", password);
        if let Some(user) = user {
            command.env("TRILOG_USER", user);
        }
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    let produce = ["produce", TOPIC, "x"];
    let (done, said) = as_user(None, "", &["topic", "ls"]);
    assert!(!done && said.contains("asks who you are"), "{said}");
    let (done, said) = as_user(Some("alice"), "wrong", &["topic", "ls"]);
    assert!(
        !done && said.contains("the user or the password is wrong"),
        "{said}"
    );
    let tries: [(&[&str], Right); 5] = [
        (&["topic", "describe", TOPIC], (TOPICS, DESCRIBE)),
        (&["consume", TOPIC, "-o", "start", "-e"], (TOPICS, READ)),
        (&["user", "ls"], (CLUSTER, DESCRIBE)),
        (&["cluster", "balance"], (CLUSTER, ALTER)),
        (&produce, (TOPICS, WRITE)),
    ];
    for (arguments, right) in tries {
        let (done, said) = as_user(Some("alice"), PASSWORD, arguments);
        assert!(
            !done && said.contains("you may not"),
            "{arguments:?}: {said}"
        );
        grant(&mut admin, &[right]).await;
        let (done, said) = as_user(Some("alice"), PASSWORD, arguments);
        assert!(done, "{arguments:?}: {said}");
        clear(&mut admin).await;
    }
    // All topics are those that the group has, and each is asked for.
    let partition = offset_commit_request::OffsetCommitRequestPartition::default()
        .with_committed_offset(1)
        .with_committed_metadata(Some(text("")));
    let topic = offset_commit_request::OffsetCommitRequestTopic::default()
        .with_name(name())
        .with_partitions(vec![partition]);
    let commit = OffsetCommitRequest::default()
        .with_group_id(group())
        .with_generation_id_or_member_epoch(-1)
        .with_topics(vec![topic]);
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(30);
    let find = FindCoordinatorRequest::default().with_key(text(GROUP));
    loop {
        // The groups' own topic is made when somebody asks.
        let _: FindCoordinatorResponse = admin.ask(ApiKey::FindCoordinator, 2, &find).await;
        let answer: OffsetCommitResponse = admin.ask(ApiKey::OffsetCommit, 7, &commit).await;
        match answer.topics[0].partitions[0].error_code {
            0 => break,
            14..=16 => assert!(tokio::time::Instant::now() < deadline, "{answer:?}"),
            _ => panic!("{answer:?}"),
        }
    }
    let reset = ["group", "reset", GROUP, "--all-topics", "--to-earliest"];
    grant(&mut admin, &[(GROUPS, READ)]).await;
    let (done, said) = as_user(Some("alice"), PASSWORD, &reset);
    assert!(!done && said.contains("you may not"), "{said}");
    grant(&mut admin, &[(GROUPS, READ), (TOPICS, READ)]).await;
    let (done, said) = as_user(Some("alice"), PASSWORD, &reset);
    assert!(done, "{said}");
    // Who may know of a group is shown of what it reads what they may know of.
    let describe = ["group", "describe", GROUP];
    clear(&mut admin).await;
    grant(&mut admin, &[(GROUPS, DESCRIBE)]).await;
    let (done, said) = as_user(Some("alice"), PASSWORD, &describe);
    assert!(done && !said.contains(TOPIC), "{said}");
    grant(&mut admin, &[(TOPICS, DESCRIBE)]).await;
    let (done, said) = as_user(Some("alice"), PASSWORD, &describe);
    assert!(done && said.contains(TOPIC), "{said}");
    let delete = ["group", "delete", GROUP, "--topic", TOPIC];
    grant(&mut admin, &[(GROUPS, DELETE)]).await;
    let (done, said) = as_user(Some("alice"), PASSWORD, &delete);
    assert!(!done && said.contains("you may not"), "{said}");
    grant(&mut admin, &[(TOPICS, READ)]).await;
    let (done, said) = as_user(Some("alice"), PASSWORD, &delete);
    assert!(done, "{said}");
}

/// Streams of a caller that wait: one that reads and one that writes.
struct Streams {
    fetch: tonic::Streaming<trilog_wire::v1::FetchResponse>,
    produce: tonic::Streaming<trilog_wire::v1::ProduceResponse>,
    /// Says no more, and has not ended.
    _requests: tokio::sync::mpsc::Sender<NativeProduce>,
}

impl Streams {
    async fn open(channel: &Channel, user: &str, password: &str) -> Self {
        let named = |request: &mut tonic::metadata::MetadataMap| {
            request.insert("authorization", basic(user, password).parse().unwrap());
        };
        let mut fetch = tonic::Request::new(NativeFetch {
            topic: TOPIC.to_owned(),
            start: Some(Start {
                at: Some(At::Offset(0)),
            }),
            follow: true,
            max_wait_ms: 60_000,
            ..NativeFetch::default()
        });
        named(fetch.metadata_mut());
        let fetch = FetchClient::new(channel.clone()).fetch(fetch).await;
        let mut fetch = fetch.unwrap().into_inner();
        // The first answer comes at once; the stream waits now.
        let first = timeout(PATIENCE, fetch.message()).await.unwrap();
        assert_eq!(first.unwrap().unwrap().error, None);
        let (requests, stream) = tokio::sync::mpsc::channel(1);
        let mut produce = tonic::Request::new(ReceiverStream::new(stream));
        named(produce.metadata_mut());
        let produce = ProducerClient::new(channel.clone()).produce(produce).await;
        Self {
            fetch,
            produce: produce.unwrap().into_inner(),
            _requests: requests,
        }
    }

    /// Both are ended from the other side, for this reason.
    async fn await_end(mut self, reason: ErrorCode) {
        let last = timeout(PATIENCE, self.fetch.message()).await.unwrap();
        let last = last.unwrap().unwrap();
        assert_eq!(last.error.unwrap().code(), reason);
        assert_eq!(self.fetch.message().await.unwrap(), None);
        let last = timeout(PATIENCE, self.produce.message()).await.unwrap();
        let error = trilog_wire::v1::Error::from_status(&last.unwrap_err());
        assert_eq!(error.unwrap().code(), reason);
    }
}

/// Less than a stream waits for records by itself.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_and_connections_end_with_their_user() {
    let (nodes, dir) = start("").await;
    let mut admin = KafkaConn::open_as(nodes.kafka_port(0), "admin", PASSWORD).await;
    grant(&mut admin, &[(TOPICS, READ), (TOPICS, WRITE)]).await;
    let address = format!("http://{}", nodes.address(0));
    let channel = tonic::transport::Endpoint::from_shared(address).unwrap();
    let channel = channel.connect().await.unwrap();
    let password = |text: &str| {
        let file = dir.path().join(text);
        std::fs::write(&file, text).unwrap();
        file.to_str().unwrap().to_owned()
    };

    let streams = Streams::open(&channel, "alice", PASSWORD).await;
    let set = password("another-good-password");
    nodes.run(&["user", "set-password", "alice", "--password-file", &set]);
    streams.await_end(ErrorCode::Unauthenticated).await;

    let streams = Streams::open(&channel, "alice", "another-good-password").await;
    let port = nodes.kafka_port(0);
    let mut conn = KafkaConn::open_as(port, "alice", "another-good-password").await;
    let ask = MetadataRequest::default().with_topics(Some(Vec::new()));
    let _: MetadataResponse = conn.ask(ApiKey::Metadata, 9, &ask).await;
    nodes.run(&["user", "rm", "alice"]);
    streams.await_end(ErrorCode::Unauthenticated).await;
    conn.send(ApiKey::Metadata, 9, &ask).await;
    conn.await_end("its user is gone").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_end_with_their_time_and_can_be_begun_anew() {
    let (nodes, _dir) = start("session_lifetime = \"2s\"\n").await;
    let mut admin = KafkaConn::open_as(nodes.kafka_port(0), "admin", PASSWORD).await;
    grant(&mut admin, &[(TOPICS, READ), (TOPICS, WRITE)]).await;
    let address = format!("http://{}", nodes.address(0));
    let channel = tonic::transport::Endpoint::from_shared(address).unwrap();
    let channel = channel.connect().await.unwrap();
    for _ in 0..2 {
        let streams = Streams::open(&channel, "alice", PASSWORD).await;
        streams.await_end(ErrorCode::SessionOver).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_of_rules_are_addresses_however_they_are_written() {
    let (nodes, _dir) = start("").await;
    let port = nodes.kafka_port(0);
    let mut admin = KafkaConn::open_as(port, "admin", PASSWORD).await;
    let mut alice = KafkaConn::open_as(port, "alice", PASSWORD).await;
    let write = &reading()[0];
    grant(&mut admin, &[(TOPICS, WRITE)]).await;
    assert_eq!((write.ask)(&mut alice).await, [0]);
    let from = |host: &str| rule((TOPICS, WRITE), TOPIC, DENY).with_host(text(host));
    for never in ["localhost", "127.0.0.0/8", "127.0.0.*", ""] {
        let request = CreateAclsRequest::default().with_creations(vec![from(never)]);
        let answer: CreateAclsResponse = admin.ask(ApiKey::CreateAcls, 2, &request).await;
        assert_eq!(answer.results[0].error_code, 42, "{never}: {answer:?}");
    }
    add(&mut admin, vec![from("0:0:0:0:0:0:0:1")]).await;
    assert_eq!((write.ask)(&mut alice).await, [0], "from another address");
    add(&mut admin, vec![from("::ffff:127.0.0.1")]).await;
    assert_eq!((write.ask)(&mut alice).await, [NO_TOPIC]);
    // It is found by any way to write it.
    let filter = delete_acls_request::DeleteAclsFilter::default()
        .with_resource_type_filter(TOPICS)
        .with_resource_name_filter(None)
        .with_principal_filter(None)
        .with_host_filter(Some(text("::ffff:7f00:1")))
        .with_pattern_type_filter(1)
        .with_operation(1)
        .with_permission_type(1);
    let request = DeleteAclsRequest::default().with_filters(vec![filter]);
    let answer: DeleteAclsResponse = admin.ask(ApiKey::DeleteAcls, 2, &request).await;
    let gone = &answer.filter_results[0].matching_acls;
    assert_eq!(gone.len(), 1, "{answer:?}");
    assert_eq!(&*gone[0].host, "127.0.0.1");
    assert_eq!((write.ask)(&mut alice).await, [0]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_are_listed_added_and_removed_by_command() {
    let (nodes, _dir) = start("").await;
    let acl = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_trilog"));
        command
            .arg("acl")
            .args(arguments)
            .env("TRILOG_SERVER", nodes.addresses().join(","))
            .env("TRILOG_USER", "admin")
            .env("TRILOG_PASSWORD", PASSWORD);
        let output = command.output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8(said).unwrap())
    };
    let rules = |arguments: &[&str]| -> Vec<String> {
        let (code, said) = acl(&[arguments, &["-o", "json"]].concat());
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
        let rules: serde_json::Value = serde_json::from_str(&said).unwrap();
        let rows = rules.as_array().unwrap().iter().map(|rule| {
            let words = [
                "principal",
                "permission",
                "operation",
                "resource",
                "pattern",
                "name",
                "host",
            ];
            let words = words.map(|word| rule[word].as_str().unwrap());
            words.join(" ")
        });
        rows.collect()
    };
    assert_eq!(rules(&["ls"]), [""; 0]);
    let add = ["add", "--allow", "alice", "--to", "read,describe"];
    let some = [
        "User:alice allow read topic literal orders *",
        "User:alice allow describe topic literal orders *",
        "User:alice allow read group literal billing *",
        "User:alice allow describe group literal billing *",
    ];
    let what = ["--topic", "orders", "--group", "billing"];
    assert_eq!(rules(&[&add[..], &what].concat()), some);
    // Once more changes nothing.
    assert_eq!(rules(&[&add[..], &what].concat()), some);
    let denied = "User:* deny all topic prefixed secret- ::1";
    let deny = [
        "add",
        "--deny",
        "User:*",
        "--to",
        "all",
        "--topic",
        "secret-",
        "--prefixed",
        "--host",
        "0:0:0:0:0:0:0:1",
    ];
    acl(&deny);
    let cluster = "User:bob allow describe cluster literal kafka-cluster *";
    acl(&["add", "--allow", "bob", "--to", "describe", "--cluster"]);
    let of = |arguments: &[&str]| {
        let mut rules = rules(&[&["ls"], arguments].concat());
        rules.sort_unstable();
        rules
    };
    assert_eq!(of(&[]).len(), 6);
    assert_eq!(of(&["--of", "*"]), [denied]);
    assert_eq!(of(&["--host", "::1", "--pattern", "prefixed"]), [denied]);
    assert_eq!(of(&["--permission", "deny", "--name", "secret-"]), [denied]);
    assert_eq!(
        of(&["--resource", "cluster", "--to", "describe"]),
        [cluster]
    );
    let (code, said) = acl(&["ls", "--of", "bob"]);
    assert_eq!(code, Some(0));
    assert!(
        said.starts_with("PRINCIPAL") && said.contains("User:bob"),
        "{said}"
    );
    check_rules_have_effect(&nodes, &acl).await;

    let removed = rules(&["rm", "--of", "alice", "--resource", "group"]);
    assert_eq!(removed.len(), 2, "{removed:?}");
    assert_eq!(of(&["--of", "alice"]).len(), 2);
    assert_eq!(rules(&["rm", "--of", "nobody"]), [""; 0]);

    let wrong: [(&[&str], i32, &str); 7] = [
        (&["rm"], 1, "say which rules are meant"),
        (&["ls", "--to", "fly"], 2, "possible values"),
        (&["add", "--allow", "bob", "--to", "read"], 2, "--topic"),
        (&["add", "--to", "read", "--topic", "orders"], 2, "--allow"),
        (
            &["add", "--allow", "bob", "--to", "read", "--cluster"],
            1,
            "no such operation on this kind of resource",
        ),
        (
            &[
                "add", "--allow", "b", "--to", "all", "--topic", "t", "--host", "here",
            ],
            1,
            "neither a name nor a network",
        ),
        (
            &[
                "add",
                "--allow",
                "b",
                "--to",
                "all",
                "--cluster",
                "--prefixed",
            ],
            2,
            "--prefixed",
        ),
    ];
    for (arguments, code, complaint) in wrong {
        let (exit, said) = acl(arguments);
        assert_eq!(exit, Some(code), "{arguments:?}: {said}");
        assert!(said.contains(complaint), "{arguments:?}: {said}");
    }
    assert_eq!(of(&[]).len(), 4);
}

/// What Kafka's clients are told is what was added.
async fn check_rules_have_effect(nodes: &Nodes, acl: &impl Fn(&[&str]) -> (Option<i32>, String)) {
    let mut admin = KafkaConn::open_as(nodes.kafka_port(0), "admin", PASSWORD).await;
    let request = DescribeAclsRequest::default()
        .with_resource_type_filter(1)
        .with_resource_name_filter(None)
        .with_pattern_type_filter(1)
        .with_principal_filter(None)
        .with_host_filter(None)
        .with_operation(1)
        .with_permission_type(1);
    let answer: DescribeAclsResponse = admin.ask(ApiKey::DescribeAcls, 2, &request).await;
    let told: usize = answer.resources.iter().map(|one| one.acls.len()).sum();
    let (_, listed) = acl(&["ls"]);
    assert_eq!(told, listed.lines().count() - 1, "{listed}");
}
