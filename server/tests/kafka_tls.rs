//! Kafka clients over TLS: nobody is served without, and certificates change while it serves.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod kafka_conn;
mod nodes;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use kafka_conn::{KafkaConn, framed, text};
use kafka_protocol::messages::{
    ApiKey, ApiVersionsRequest, ApiVersionsResponse, BrokerId, FetchRequest, FetchResponse,
    MetadataRequest, ProduceRequest, ProduceResponse, TopicName, fetch_request, produce_request,
};
use nodes::Nodes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto::ring};
use trilog_model::batch::{BatchBuilder, Compression};

const PASSWORD: &str = "correct-horse-battery";
const PATIENCE: Duration = Duration::from_mins(1);
const TOPIC: &str = "orders";

fn fixture(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    dir.join("tests/fixtures/tls").join(name)
}

/// Puts a certificate and its key where the node looks for them.
fn put(dir: &Path, name: &str) {
    for (from, to) in [("pem", "node.pem"), ("key", "node.key")] {
        let new = dir.join("new");
        std::fs::copy(fixture(&format!("{name}.{from}")), &new).unwrap();
        std::fs::rename(&new, dir.join(to)).unwrap();
    }
}

async fn start() -> (Nodes, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "first");
    let admin = dir.path().join("admin");
    let mut file = std::fs::File::create(&admin).unwrap();
    file.set_permissions(std::fs::Permissions::from_mode(0o600))
        .unwrap();
    writeln!(file, "admin:{PASSWORD}").unwrap();
    let more = format!(
        "[access]\nauthentication = \"required\"\nsuper_users = [\"admin\"]\nadmin_file = \"{0}/admin\"\n\
         [tls]\ncertificate = \"{0}/node.pem\"\nkey = \"{0}/node.key\"\n",
        dir.path().display()
    );
    let nodes = Nodes::start_as(1, &more, "admin", PASSWORD).await;
    (nodes, dir)
}

/// As [`start`], a node that asks nobody.
async fn start_open() -> (Nodes, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path(), "first");
    let more = format!(
        "[tls]\ncertificate = \"{0}/node.pem\"\nkey = \"{0}/node.key\"\n",
        dir.path().display()
    );
    (Nodes::start_with(1, &more).await, dir)
}

/// A connection that has shaken hands, with whoever the authority vouches for.
async fn connect(port: u16) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    let authority = CertificateDer::from_pem_file(fixture("authority.pem")).unwrap();
    roots.add(authority).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, stream)
        .await
}

/// Which certificate a new connection is shown.
async fn shown(port: u16) -> CertificateDer<'static> {
    let stream = connect(port).await.unwrap();
    let shown = stream.get_ref().1.peer_certificates().unwrap();
    shown[0].clone().into_owned()
}

/// A port on which a client may speak without TLS to one that wants it.
async fn tunnel(to: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut near, _)) = listener.accept().await {
            let mut far = connect(to).await.unwrap();
            tokio::spawn(async move {
                drop(tokio::io::copy_bidirectional(&mut near, &mut far).await);
            });
        }
    });
    port
}

async fn await_shown(port: u16, name: &str) {
    let wanted = CertificateDer::from_pem_file(fixture(name)).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while shown(port).await != wanted {
        assert!(Instant::now() < deadline, "{name} is not shown");
        sleep(Duration::from_millis(100)).await;
    }
}

/// Writes a record of this size, and reads it again.
async fn write_and_read(conn: &mut KafkaConn, offset: i64, bytes: usize) {
    let value: Vec<u8> = (0..bytes)
        .map(|at| u8::try_from(at % 251).unwrap())
        .collect();
    let mut batch = BatchBuilder::new(Compression::None);
    batch.push(1, None, Some(&value), &[]).unwrap();
    let batch = batch.build().unwrap();
    let partition = produce_request::PartitionProduceData::default().with_records(Some(batch));
    let topic = produce_request::TopicProduceData::default()
        .with_name(TopicName(text(TOPIC)))
        .with_partition_data(vec![partition]);
    let request = ProduceRequest::default()
        .with_acks(-1)
        .with_timeout_ms(10_000)
        .with_topic_data(vec![topic]);
    let answer: ProduceResponse = conn.ask(ApiKey::Produce, 7, &request).await;
    let produced = &answer.responses[0].partition_responses[0];
    assert_eq!((produced.error_code, produced.base_offset), (0, offset));

    let partition = fetch_request::FetchPartition::default()
        .with_fetch_offset(offset)
        .with_partition_max_bytes(8 << 20);
    let topic = fetch_request::FetchTopic::default()
        .with_topic(TopicName(text(TOPIC)))
        .with_partitions(vec![partition]);
    let request = FetchRequest::default()
        .with_replica_id(BrokerId(-1))
        .with_max_bytes(8 << 20)
        .with_max_wait_ms(10_000)
        .with_min_bytes(1)
        .with_topics(vec![topic]);
    let answer: FetchResponse = conn.ask(ApiKey::Fetch, 11, &request).await;
    let fetched = &answer.responses[0].partitions[0];
    assert_eq!(fetched.error_code, 0);
    let records = fetched.records.as_ref().unwrap();
    assert!(records.windows(value.len()).any(|window| window == value));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_go_and_come_over_tls_and_certificates_change_meanwhile() {
    let (nodes, dir) = start().await;
    nodes.run(&["topic", "create", TOPIC]);
    let port = nodes.kafka_port(0);
    let told = "everybody on this machine may use the private key: chmod 600 it";
    assert!(nodes.log(0).contains(told), "{}", nodes.log(0));
    let near = tunnel(port).await;
    let mut conn = KafkaConn::open_as(near, "admin", PASSWORD).await;
    for (offset, bytes) in (0..).zip([1, 1_000, 17_000, 300_000, 900_000]) {
        write_and_read(&mut conn, offset, bytes).await;
    }
    // A key without its certificate is of no use; what was read before is.
    await_shown(port, "first.pem").await;
    std::fs::copy(fixture("second.key"), dir.path().join("node.key")).unwrap();
    let deadline = Instant::now() + PATIENCE;
    while !nodes.log(0).contains("the certificate stays") {
        assert!(Instant::now() < deadline, "{}", nodes.log(0));
        sleep(Duration::from_millis(100)).await;
    }
    await_shown(port, "first.pem").await;
    put(dir.path(), "second");
    await_shown(port, "second.pem").await;
    write_and_read(&mut conn, 5, 1_000).await;
    let mut newer = KafkaConn::open_as(near, "admin", PASSWORD).await;
    write_and_read(&mut newer, 6, 1_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_does_not_speak_tls_is_told_nothing() {
    let (mut nodes, _dir) = start().await;
    let port = nodes.kafka_port(0);
    let plain = framed(ApiKey::ApiVersions, 0, 1, &ApiVersionsRequest::default());
    // A TLS record of a handshake that is no hello, and one that is far too long.
    let no_hello = [0x16, 3, 1, 0, 4, 2, 0, 0, 0];
    let too_long = [0x16, 3, 1, 0xff, 0xff, 1, 0xff, 0xff, 0xff];
    for said in [&plain[..], &no_hello, &too_long] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        stream.write_all(said).await.unwrap();
        let mut told = Vec::new();
        let end = timeout(PATIENCE, stream.read_to_end(&mut told)).await;
        drop(end.expect("the connection goes on"));
        // An alert at most: two bytes in a record of TLS.
        assert!(told.len() <= 7, "{told:?}");
        assert!(told.first().is_none_or(|kind| *kind == 0x15), "{told:?}");
    }
    // A good-bye of TLS comes with the end: nobody can cut a connection off unnoticed.
    let mut stream = connect(port).await.unwrap();
    stream
        .write_all(&framed(ApiKey::Metadata, 9, 1, &MetadataRequest::default()))
        .await
        .unwrap();
    let mut told = Vec::new();
    let end = timeout(PATIENCE, stream.read_to_end(&mut told)).await;
    end.unwrap().unwrap();
    assert!(
        told.is_empty(),
        "it asked before it said who it is: {told:?}"
    );
    // Also where the node stops.
    let mut stream = connect(port).await.unwrap();
    stream.write_all(&plain).await.unwrap();
    let len = stream.read_u32().await.unwrap();
    let mut answer = vec![0; usize::try_from(len).unwrap()];
    stream.read_exact(&mut answer).await.unwrap();
    nodes.stop_one(0);
    let end = timeout(PATIENCE, stream.read_to_end(&mut told)).await;
    end.unwrap().unwrap();
    assert!(told.is_empty(), "{told:?}");
}

fn resident(nodes: &Nodes) -> f64 {
    let metrics = nodes.page(0, "/metrics");
    let mut lines = metrics.lines();
    let value = lines.find_map(|line| line.strip_prefix("process_resident_memory_bytes"));
    value.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_has_said_nothing_yet_takes_little_memory_over_tls_too() {
    const MANY: u32 = 300;
    let (nodes, _dir) = start_open().await;
    let port = nodes.kafka_port(0);
    let near = tunnel(port).await;
    let mut conn = KafkaConn::open(near).await;
    let _: ApiVersionsResponse = conn
        .ask(ApiKey::ApiVersions, 0, &ApiVersionsRequest::default())
        .await;
    // Nearly all of what a large request gets before it is there, and nearly a record behind it.
    let mut request = (8_u32 << 20).to_be_bytes().to_vec();
    request.resize(32_000, 0);
    let before = resident(&nodes);
    let mut strangers = Vec::new();
    for _ in 0..MANY {
        let (mut stream, mut tls) = connect(port).await.unwrap().into_inner();
        let mut said = Vec::new();
        tls.writer().write_all(&request).unwrap();
        while tls.wants_write() {
            tls.write_tls(&mut said).unwrap();
        }
        stream.write_all(&said[..said.len() - 1]).await.unwrap();
        strangers.push(stream);
    }
    let _: ApiVersionsResponse = conn
        .ask(ApiKey::ApiVersions, 0, &ApiVersionsRequest::default())
        .await;
    let each = (resident(&nodes) - before) / f64::from(MANY);
    assert!(each < 64e3, "each takes {each} bytes");
    drop(strangers);
}
