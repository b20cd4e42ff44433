//! Who Kafka clients are: SASL as a broker speaks it, and what somebody gets who is nobody yet.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod kafka_conn;
mod nodes;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use hmac::Hmac;
use kafka_conn::sasl::salted;
use kafka_conn::{KafkaConn, framed, text};
use kafka_protocol::messages::alter_user_scram_credentials_request::{
    ScramCredentialDeletion, ScramCredentialUpsertion,
};
use kafka_protocol::messages::describe_user_scram_credentials_request::UserName;
use kafka_protocol::messages::{
    AlterUserScramCredentialsRequest, AlterUserScramCredentialsResponse, ApiKey,
    ApiVersionsRequest, ApiVersionsResponse, DescribeAclsRequest, DescribeAclsResponse,
    DescribeUserScramCredentialsRequest, DescribeUserScramCredentialsResponse, MetadataRequest,
    MetadataResponse, SaslAuthenticateRequest, SaslHandshakeRequest, SaslHandshakeResponse,
};
use nodes::Nodes;
use sha2::Sha256;
use tokio::time::{Instant, sleep};

const PASSWORD: &str = "correct-horse-battery";
const FAILED: i16 = 58;
const UNSUPPORTED: i16 = 33;
const ILLEGAL: i16 = 34;
const MECHANISMS: [&str; 3] = ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"];

/// A node that asks everybody, with an administrator of this password.
async fn start(more: &str) -> (Nodes, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("admin");
    std::fs::write(&file, format!("admin:{PASSWORD}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let access = format!(
        "[access]\nauthentication = \"required\"\nsuper_users = [\"admin\"]\nadmin_file = \"{}\"\n{more}",
        file.display()
    );
    (Nodes::start_as(1, &access, "admin", PASSWORD).await, dir)
}

async fn versions(conn: &mut KafkaConn) -> i16 {
    let request = ApiVersionsRequest::default();
    let answer: ApiVersionsResponse = conn.ask(ApiKey::ApiVersions, 0, &request).await;
    answer.error_code
}

/// Whether the connection is served.
async fn serves(conn: &mut KafkaConn) {
    let request = MetadataRequest::default().with_topics(Some(Vec::new()));
    let answer: MetadataResponse = conn.ask(ApiKey::Metadata, 9, &request).await;
    assert_eq!(answer.brokers.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_is_served_once_it_is_known_who_it_is() {
    let (mut nodes, dir) = start("").await;
    let port = nodes.kafka_port(0);
    let file = dir.path().join("alice");
    std::fs::write(&file, format!("{PASSWORD}\n")).unwrap();
    let file = file.to_str().unwrap();
    nodes.run(&["user", "add", "alice", "--password-file", file]);
    let listed = nodes.run(&["user", "ls"]);
    assert!(
        listed.contains("alice  SCRAM-SHA-256 SCRAM-SHA-512"),
        "{listed}"
    );
    for mechanism in MECHANISMS {
        for user in ["alice", "admin"] {
            let mut conn = KafkaConn::open(port).await;
            assert_eq!(versions(&mut conn).await, 0);
            let told = conn.log_in(mechanism, user, PASSWORD).await;
            assert_eq!(told.0, 0, "{mechanism} {told:?}");
            serves(&mut conn).await;
        }
        refuse(port, mechanism).await;
    }
    ask_too_early(port).await;
    speak_without_requests(port).await;
    stay_known(port).await;

    nodes.run(&["user", "rm", "alice"]);
    let mut conn = KafkaConn::open(port).await;
    assert_eq!(conn.log_in("PLAIN", "alice", PASSWORD).await.0, FAILED);
    let metrics = nodes.page(0, "/metrics");
    let counted = metrics.lines().any(|line| {
        line.starts_with("trilog_authentications_total{")
            && line.contains("op=\"PLAIN\"")
            && line.contains("state=\"failure\"")
    });
    assert!(counted, "{metrics}");
    assert!(!metrics.contains("alice"), "{metrics}");
    nodes.stop();
    let mode = std::fs::metadata(nodes.data(0))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700, "others may not look at what is kept");
    assert!(!nodes.log(0).contains("others than its owner"));
    assert!(!nodes.log(0).contains(PASSWORD));
    refute_password(nodes.data(0));
}

/// Neither wrong passwords nor unknown names get in, and both are told the same.
async fn refuse(port: u16, mechanism: &str) {
    let mut said = Vec::new();
    for (user, password) in [("alice", "wrong"), ("nobody", PASSWORD)] {
        let mut conn = KafkaConn::open(port).await;
        let since = Instant::now();
        let told = conn.log_in(mechanism, user, password).await;
        assert_eq!(told.0, FAILED, "{told:?}");
        assert!(since.elapsed() >= Duration::from_millis(100), "at once");
        said.push(told.1);
        conn.await_end("it failed").await;
    }
    assert_eq!(said[0], said[1]);
    let expected = if mechanism == "PLAIN" {
        "Authentication failed: Invalid username or password".to_owned()
    } else {
        format!(
            "Authentication failed during authentication due to invalid credentials with SASL \
             mechanism {mechanism}"
        )
    };
    assert_eq!(said[0], expected);
}

/// What comes before its time ends the connection.
async fn ask_too_early(port: u16) {
    let metadata = framed(ApiKey::Metadata, 9, 1, &MetadataRequest::default());
    let mut conn = KafkaConn::open(port).await;
    conn.say(&metadata).await;
    conn.await_end("nobody knows it").await;

    let mut conn = KafkaConn::open(port).await;
    assert_eq!(conn.handshake("PLAIN").await.error_code, 0);
    conn.say(&metadata).await;
    conn.await_end("it is about to say who it is").await;

    let mut conn = KafkaConn::open(port).await;
    let answer = conn.authenticate(b"\0alice\0whatever").await;
    assert_eq!(answer.error_code, ILLEGAL);
    conn.await_end("there was no handshake").await;

    let mut conn = KafkaConn::open(port).await;
    let answer = conn.handshake("GSSAPI").await;
    let offered: Vec<&str> = answer.mechanisms.iter().map(|name| &**name).collect();
    assert_eq!(
        (answer.error_code, &offered[..]),
        (UNSUPPORTED, &MECHANISMS[..])
    );
    conn.await_end("there is no such mechanism").await;

    // Neither a long request nor one of many parts is taken from somebody unknown.
    let mut conn = KafkaConn::open(port).await;
    conn.say(&(17_u32 << 10).to_be_bytes()).await;
    conn.await_end("it states too much").await;
    let mut tags = BytesMut::new();
    tags.put_slice(&framed(
        ApiKey::ApiVersions,
        3,
        1,
        &ApiVersionsRequest::default(),
    ));
    tags.truncate(tags.len() - 1);
    tags.put_slice(&[0x80, 0x20]);
    for tag in 0..4_096_u16 {
        tags.put_slice(&[
            0x80 | tag.to_le_bytes()[0] & 0x7f,
            u8::try_from(tag >> 7).unwrap(),
            0,
        ]);
    }
    let len = u32::try_from(tags.len() - 4).unwrap();
    tags[..4].copy_from_slice(&len.to_be_bytes());
    let mut conn = KafkaConn::open(port).await;
    conn.say(&tags).await;
    conn.await_end("it has thousands of parts").await;
}

/// The handshake of version zero: tokens come and go as they are.
async fn speak_without_requests(port: u16) {
    for (password, good) in [(PASSWORD, true), ("wrong", false)] {
        let mut conn = KafkaConn::open(port).await;
        let request = SaslHandshakeRequest::default().with_mechanism(text("PLAIN"));
        let answer: SaslHandshakeResponse = conn.ask(ApiKey::SaslHandshake, 0, &request).await;
        assert_eq!(answer.error_code, 0);
        let token = format!("\0alice\0{password}");
        let len = u32::try_from(token.len()).unwrap();
        conn.say(&[&len.to_be_bytes(), token.as_bytes()].concat())
            .await;
        if good {
            assert_eq!(conn.receive_raw().await, b"");
            serves(&mut conn).await;
        } else {
            conn.await_end("it failed").await;
        }
    }
}

/// Nobody is asked twice where nothing ends.
async fn stay_known(port: u16) {
    let mut conn = KafkaConn::open_as(port, "alice", PASSWORD).await;
    assert_eq!(conn.handshake("PLAIN").await.error_code, ILLEGAL);
    let answer = conn.authenticate(b"\0alice\0whatever").await;
    assert_eq!(answer.error_code, ILLEGAL);
    serves(&mut conn).await;
}

/// No file holds the password.
fn refute_password(dir: &Path) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            refute_password(&path);
        } else {
            let bytes = std::fs::read(&path).unwrap();
            let mut windows = bytes.windows(PASSWORD.len());
            assert!(
                !windows.any(|part| part == PASSWORD.as_bytes()),
                "{}",
                path.display()
            );
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_ends_unless_its_client_proves_again_who_it_is() {
    let (nodes, _dir) = start("session_lifetime = \"5s\"\n").await;
    let port = nodes.kafka_port(0);
    let mut conn = KafkaConn::open(port).await;
    assert_eq!(conn.handshake("SCRAM-SHA-256").await.error_code, 0);
    let answer = conn.prove("SCRAM-SHA-256", "admin", PASSWORD).await;
    assert_eq!((answer.error_code, answer.session_lifetime_ms), (0, 5_000));
    // Too soon is no reason, and no harm.
    assert_eq!(conn.handshake("SCRAM-SHA-256").await.error_code, ILLEGAL);
    serves(&mut conn).await;
    // Longer than a session lasts.
    for _ in 0..4 {
        sleep(Duration::from_millis(1_500)).await;
        assert_eq!(conn.log_in("SCRAM-SHA-256", "admin", PASSWORD).await.0, 0);
        serves(&mut conn).await;
    }
    sleep(Duration::from_secs(6)).await;
    conn.say(&framed(ApiKey::Metadata, 9, 1, &MetadataRequest::default()))
        .await;
    conn.await_end("its session is over").await;

    // Who comes back is who was there, by the same way.
    nodes_user(&nodes, "bob");
    let rows = [
        (
            "SCRAM-SHA-256",
            "bob",
            "Cannot change principals during re-authentication from User.admin: User.bob",
        ),
        (
            "SCRAM-SHA-512",
            "admin",
            "SASL mechanism 'SCRAM-SHA-512' requested by client is not supported for re-authentication of mechanism 'SCRAM-SHA-256'",
        ),
    ];
    for (mechanism, user, said) in rows {
        let mut conn = KafkaConn::open_as(port, "admin", PASSWORD).await;
        sleep(Duration::from_millis(1_100)).await;
        let told = conn.log_in(mechanism, user, PASSWORD).await;
        assert_eq!((told.0, &*told.1), (FAILED, said));
        conn.await_end("it is somebody else").await;
    }
}

fn nodes_user(nodes: &Nodes, name: &str) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, PASSWORD).unwrap();
    nodes.run(&[
        "user",
        "add",
        name,
        "--password-file",
        file.to_str().unwrap(),
    ]);
}

#[expect(
    clippy::too_many_lines,
    reason = "one request after the other, by one administrator"
)]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_are_made_and_removed_as_by_kafkas_tools() {
    let (nodes, _dir) = start("").await;
    let mut conn = KafkaConn::open_as(nodes.kafka_port(0), "admin", PASSWORD).await;
    let upsert = |name: &str, mechanism: i8, iterations: i32| {
        let password = salted::<Hmac<Sha256>>(PASSWORD, b"salty", 8_192);
        ScramCredentialUpsertion::default()
            .with_name(text(name))
            .with_mechanism(mechanism)
            .with_iterations(iterations)
            .with_salt(Bytes::from_static(b"salty"))
            .with_salted_password(password.into())
    };
    let delete = |name: &str, mechanism: i8| {
        ScramCredentialDeletion::default()
            .with_name(text(name))
            .with_mechanism(mechanism)
    };
    let key = ApiKey::AlterUserScramCredentials;
    let request = AlterUserScramCredentialsRequest::default()
        .with_upsertions(vec![
            upsert("carol", 1, 8_192),
            upsert("few", 1, 4_095),
            upsert("many", 1, 16_385),
            upsert("none", 0, 8_192),
            upsert("", 1, 8_192),
            upsert("twice", 1, 8_192),
            upsert("twice", 1, 8_192),
        ])
        .with_deletions(vec![delete("absent", 1)]);
    let answer: AlterUserScramCredentialsResponse = conn.ask(key, 0, &request).await;
    let codes: Vec<(&str, i16)> = answer
        .results
        .iter()
        .map(|one| (&*one.user, one.error_code))
        .collect();
    let expected = [
        ("", 93),
        ("absent", 91),
        ("carol", 0),
        ("few", 93),
        ("many", 93),
        ("none", 33),
        ("twice", 92),
    ];
    assert_eq!(codes, expected);
    drop(KafkaConn::open_as(nodes.kafka_port(0), "carol", PASSWORD).await);

    // As librdkafka sends it: with a byte behind its end.
    let request =
        AlterUserScramCredentialsRequest::default().with_upsertions(vec![upsert("dave", 1, 8_192)]);
    let mut twice = BytesMut::from(&framed(key, 0, 7, &request)[..]);
    twice.put_u8(0);
    let len = u32::try_from(twice.len() - 4).unwrap();
    twice[..4].copy_from_slice(&len.to_be_bytes());
    conn.say(&twice).await;
    let answer: AlterUserScramCredentialsResponse = conn.receive(key, 0).await;
    assert_eq!(answer.results[0].error_code, 0);

    let key = ApiKey::DescribeUserScramCredentials;
    let user = |name: &str| UserName::default().with_name(text(name));
    let request = DescribeUserScramCredentialsRequest::default();
    let answer: DescribeUserScramCredentialsResponse = conn.ask(key, 0, &request).await;
    let names: Vec<&str> = answer.results.iter().map(|one| &*one.user).collect();
    assert_eq!(names, ["admin", "carol", "dave"]);
    let info = &answer.results[1].credential_infos;
    assert_eq!(
        (info[0].mechanism, info[0].iterations, info.len()),
        (1, 8_192, 1)
    );
    let request = request.with_users(Some(vec![user("carol"), user("x"), user("a"), user("a")]));
    let answer: DescribeUserScramCredentialsResponse = conn.ask(key, 0, &request).await;
    let codes: Vec<i16> = answer.results.iter().map(|one| one.error_code).collect();
    assert_eq!(codes, [92, 0, 91], "a, carol, x");

    let request =
        AlterUserScramCredentialsRequest::default().with_deletions(vec![delete("carol", 1)]);
    let key = ApiKey::AlterUserScramCredentials;
    let answer: AlterUserScramCredentialsResponse = conn.ask(key, 0, &request).await;
    assert_eq!(answer.results[0].error_code, 0);
    let mut gone = KafkaConn::open(nodes.kafka_port(0)).await;
    assert_eq!(
        gone.log_in("SCRAM-SHA-256", "carol", PASSWORD).await.0,
        FAILED
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_is_asked_there_is_nothing_to_prove_and_no_rule() {
    let nodes = Nodes::start(1).await;
    let mut conn = KafkaConn::open(nodes.kafka_port(0)).await;
    assert_eq!(conn.handshake("PLAIN").await.error_code, ILLEGAL);
    let request = SaslAuthenticateRequest::default();
    conn.send(ApiKey::SaslAuthenticate, 0, &request).await;
    let answer: kafka_protocol::messages::SaslAuthenticateResponse =
        conn.receive(ApiKey::SaslAuthenticate, 0).await;
    assert_eq!(answer.error_code, ILLEGAL);
    let request = DescribeAclsRequest::default()
        .with_resource_type_filter(1)
        .with_pattern_type_filter(1)
        .with_operation(1)
        .with_permission_type(1);
    let answer: DescribeAclsResponse = conn.ask(ApiKey::DescribeAcls, 2, &request).await;
    assert_eq!(answer.error_code, 54);
    serves(&mut conn).await;
}

/// Connections of nobody in particular.
const STRANGERS: u32 = 500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_get_little_memory_and_little_time() {
    let (nodes, _dir) = start("").await;
    let port = nodes.kafka_port(0);
    let resident = || {
        let page = nodes.page(0, "/metrics");
        let mut lines = page.lines();
        let value = lines.find_map(|line| {
            let rest = line.strip_prefix("process_resident_memory_bytes")?;
            rest.rsplit(' ').next()?.parse::<f64>().ok()
        });
        value.unwrap()
    };
    let before = resident();
    let since = Instant::now();
    let token = Bytes::from(vec![b'x'; (16 << 10) - 64]);
    let request = SaslAuthenticateRequest::default().with_auth_bytes(token);
    let request = framed(ApiKey::SaslAuthenticate, 1, 1, &request);
    let mut strangers = Vec::new();
    for _ in 0..STRANGERS {
        let mut conn = KafkaConn::open(port).await;
        assert_eq!(conn.handshake("SCRAM-SHA-256").await.error_code, 0);
        // All of the longest request there is, but for its last byte.
        conn.say(&request[..request.len() - 1]).await;
        strangers.push(conn);
    }
    let each = (resident() - before) / f64::from(STRANGERS);
    assert!(each < 65_536.0, "a stranger costs {each} bytes");
    for conn in strangers {
        conn.await_end("its time is up").await;
    }
    let patience = Duration::from_secs(30);
    assert!(since.elapsed() < patience, "{:?}", since.elapsed());
    drop(KafkaConn::open_as(port, "admin", PASSWORD).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_not_known_yet_makes_room_for_others_and_who_is_does_not() {
    let (nodes, _dir) = start("[kafka]\nconnections = 8\n").await;
    let port = nodes.kafka_port(0);
    let mut known = KafkaConn::open_as(port, "admin", PASSWORD).await;
    let since = Instant::now();
    let mut strangers = Vec::new();
    for nth in 0..20 {
        let mut stranger = KafkaConn::open(port).await;
        assert_eq!(versions(&mut stranger).await, 0, "{nth}");
        strangers.push(stranger);
    }
    let last = strangers.split_off(18);
    for stranger in strangers {
        stranger.await_end("it makes room").await;
    }
    // As long as one of them may take: seven at a time would have taken that twice.
    assert!(since.elapsed() < Duration::from_secs(10), "{since:?}");
    for mut stranger in last {
        assert_eq!(versions(&mut stranger).await, 0);
    }
    serves(&mut known).await;
    drop(KafkaConn::open_as(port, "admin", PASSWORD).await);
}
