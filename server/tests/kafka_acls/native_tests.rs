//! The same rights, asked of callers of the native API: each method, and each refusal's words.

use base64::Engine as _;
use bytes::Buf as _;

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
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("alice:{PASSWORD}"));
    for path in trilog_wire::descriptors::paths() {
        for known in [false, true] {
            let mut client = tonic::client::Grpc::new(channel.clone());
            client.ready().await.unwrap();
            let mut request = tonic::Request::new(());
            if known {
                let value = format!("Basic {basic}").parse().unwrap();
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
        (
            output.status.success(),
            String::from_utf8(output.stderr).unwrap(),
        )
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
}
