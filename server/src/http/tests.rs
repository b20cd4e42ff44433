use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;

/// The recorder of this test process: there can be only one.
fn metrics() -> Metrics {
    static METRICS: OnceLock<Metrics> = OnceLock::new();
    METRICS.get_or_init(|| Metrics::install(7).unwrap()).clone()
}

struct Server {
    address: SocketAddr,
    health: Health,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<io::Result<()>>,
}

impl Server {
    async fn start() -> Self {
        let http = Http::bind("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let (health, stop) = (Health::default(), CancellationToken::new());
        let address = http.local_addr().unwrap();
        let task = tokio::spawn(http.serve(metrics(), health.clone(), stop.clone()));
        Self {
            address,
            health,
            stop,
            task,
        }
    }

    async fn get(&self, path: &str) -> String {
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        self.send(request.as_bytes()).await
    }

    async fn send(&self, request: &[u8]) -> String {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = Vec::new();
        // A refused request may be answered by a reset as well.
        let _ = stream.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn stop(self) {
        self.stop.cancel();
        self.task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn metrics_are_rendered_with_buckets_sources_and_the_node() {
    let server = Server::start().await;
    metrics().register(|| metrics::gauge!("trilog_partitions").set(3.0));
    metrics().register(ProcessSource::new("/"));
    metrics::histogram!("trilog_commit_duration_seconds").record(0.002);
    metrics().register_histogram("trilog_fsync_duration_seconds", || Observed {
        buckets: vec![(0.001, 4), (0.0025, 3)],
        beyond: 2,
        sum: 0.75,
    });
    metrics::counter!("trilog_raft_elections_total").increment(2);
    let answer = server.get("/metrics").await;
    for expected in [
        "HTTP/1.1 200 OK",
        "content-type: text/plain; version=0.0.4",
        "trilog_partitions{node=\"7\"} 3",
        "trilog_raft_elections_total{node=\"7\"} 2",
        "# TYPE trilog_commit_duration_seconds histogram",
        "trilog_commit_duration_seconds_bucket{node=\"7\",le=\"0.0025\"} 1",
        "# HELP trilog_fsync_duration_seconds One sync of the write-ahead log.\n\
         # TYPE trilog_fsync_duration_seconds histogram\n\
         trilog_fsync_duration_seconds_bucket{node=\"7\",le=\"0.001\"} 4\n\
         trilog_fsync_duration_seconds_bucket{node=\"7\",le=\"0.0025\"} 7\n\
         trilog_fsync_duration_seconds_bucket{node=\"7\",le=\"+Inf\"} 9\n\
         trilog_fsync_duration_seconds_sum{node=\"7\"} 0.75\n\
         trilog_fsync_duration_seconds_count{node=\"7\"} 9\n",
        "version=\"0.1.0\"",
        "trilog_disk_free_bytes{",
    ] {
        assert!(answer.contains(expected), "no {expected:?} in\n{answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_node_is_ready_when_every_check_passes_and_says_why_when_not() {
    let server = Server::start().await;
    let answer = server.get("/health/ready").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("the node is starting"), "{answer}");
    assert!(server.get("/health/live").await.starts_with("HTTP/1.1 200"));

    let leader = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&leader);
    server.health.must_be_ready("log", || Ok(()));
    server.health.must_be_ready("controller", move || {
        let led = seen.load(Ordering::Relaxed);
        led.then_some(())
            .ok_or_else(|| "no leader is known".to_owned())
    });
    let answer = server.get("/health/ready").await;
    assert!(
        answer.ends_with(
            r#"{"ok":false,"reasons":[{"check":"controller","reason":"no leader is known"}]}"#
        ),
        "{answer}"
    );
    leader.store(true, Ordering::Relaxed);
    let answer = server.get("/health/ready").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(answer.ends_with(r#"{"ok":true,"reasons":[]}"#), "{answer}");
    server.stop().await;
}

#[tokio::test]
async fn what_is_no_request_is_refused_and_the_port_goes_on() {
    let server = Server::start().await;
    let endless = vec![b'a'; 1 << 20];
    for request in [
        &b"\x00\x01\x02\r\n\r\n"[..],
        b"POST /metrics HTTP/1.1\r\nConnection: close\r\n\r\n",
        &endless,
    ] {
        let answer = server.send(request).await;
        assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert!(server.get("/nothing").await.starts_with("HTTP/1.1 404"));
    assert!(server.get("/").await.contains("/health/ready"));
    server.stop().await;
}

#[tokio::test]
async fn an_idle_connection_does_not_hold_up_a_stop() {
    let server = Server::start().await;
    let _idle = TcpStream::connect(server.address).await.unwrap();
    assert!(server.get("/").await.starts_with("HTTP/1.1 200"));
    tokio::time::timeout(Duration::from_secs(10), server.stop())
        .await
        .unwrap();
}
