//! `/metrics` of real nodes under real work: every metric of the catalogue carries data somewhere.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use support::Cluster;
use tokio::time::{Instant, sleep};
use trilog_client::Client;
use trilog_client::proto::PublishRequest;
use trilog_server::http::{CATALOGUE, Kind};

/// The page of one node.
fn scrape(port: u16) -> String {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let patience = Some(Duration::from_secs(20));
    stream.set_read_timeout(patience).unwrap();
    let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer
}

/// The sum of each series over all labels, by its name; of histograms, `_count` is what counts.
fn sums(pages: &[String]) -> BTreeMap<&str, f64> {
    let mut sums = BTreeMap::new();
    let lines = pages.iter().flat_map(|page| page.lines());
    for line in lines.filter(|line| line.starts_with(|c: char| c.is_ascii_lowercase())) {
        let Some((series, value)) = line.rsplit_once(' ') else {
            continue;
        };
        let name = series.split('{').next().unwrap();
        if let Ok(value) = value.parse::<f64>() {
            *sums.entry(name).or_default() += value;
        }
    }
    sums
}

/// What may well be zero on a healthy cluster; that it is shown is enough.
const MAY_BE_ZERO: [&str; 33] = [
    "trilog_payload_bytes_out_total",
    "trilog_throttle_duration_seconds",
    "trilog_authentications_total",
    "trilog_tls_handshakes_total",
    "trilog_transactions",
    "trilog_transactions_committed_total",
    "trilog_transactions_aborted_total",
    "trilog_transaction_open_seconds_max",
    "trilog_unsettled_messages",
    "trilog_aborted_transactions_max",
    "trilog_compaction_bytes_total",
    "trilog_compaction_passes_total",
    "trilog_compaction_failures_total",
    "trilog_compaction_freed_bytes_total",
    "trilog_compaction_removed_records_total",
    "trilog_group_members",
    "trilog_group_rebalances_total",
    "trilog_group_series_hidden",
    "trilog_clock_offset_seconds",
    "trilog_request_memory_bytes",
    "trilog_partitions_resting",
    "trilog_segments_quarantined",
    "trilog_partitions_incomplete",
    "trilog_scrub_bytes_total",
    "trilog_authentication_differs",
    "trilog_losses_accepted",
    "trilog_connections",
    "trilog_uring_fallback",
    "trilog_partitions_under_replicated",
    "trilog_partitions_leaderless",
    "trilog_raft_follower_lag_entries_max",
    "trilog_storage_pinned_bytes",
    "trilog_storage_cache_bytes",
];

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap()
}

/// A request that is answered with an error.
fn publish_to_nowhere(cluster: &Cluster) {
    let published = runtime().block_on(async {
        let client = Client::connect(cluster.addresses()).await.unwrap();
        let request = PublishRequest {
            topic: "nothing".to_owned(),
            value: Some("lost".into()),
            ..PublishRequest::default()
        };
        client.admin().publish(request).await
    });
    assert!(published.is_err(), "{published:?}");
}

/// The pages of all nodes, once lags were worked out: from the first scrape on, every few seconds.
async fn pages_with_lag(cluster: &Cluster) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_mins(1);
    loop {
        let pages: Vec<String> = cluster.http_ports().map(scrape).collect();
        let lags = pages.iter().flat_map(|page| page.lines());
        let lags: Vec<&str> = lags
            .filter(|line| line.starts_with("trilog_group_lag_messages{"))
            .collect();
        // A coordinator that is about to take a partition over does not count its groups.
        let mut counted = pages.iter().flat_map(|page| page.lines());
        let counted =
            counted.any(|line| line.starts_with("trilog_groups{") && !line.ends_with(" 0"));
        if let [lag] = lags[..]
            && counted
        {
            let labels = "group=\"readers\",topic=\"orders\"} 10";
            assert!(lag.ends_with(labels), "{lag}");
            return pages;
        }
        assert!(lags.len() <= 1, "one node shows a group: {lags:?}");
        assert!(Instant::now() < deadline, "no lag is shown: {}", pages[0]);
        sleep(Duration::from_millis(200)).await;
    }
}

#[test]
fn every_metric_of_the_catalogue_carries_data_after_some_work() {
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(dir.path());
    cluster.run(&["topic", "create", "orders", "-p", "3"]);
    for partition in ["0", "1", "2"] {
        cluster.run(&["produce", "orders", "-p", partition, "one", "two", "three"]);
    }
    // Stopping writes everything into segments; what is read afterwards comes from files.
    let cluster = cluster.start_again();
    let read = cluster.run(&["consume", "orders", "-e", "-o", "start"]);
    assert_eq!(read.lines().count(), 9);
    cluster.run(&["produce", "orders", "-p", "0", "four"]);
    publish_to_nowhere(&cluster);
    let read = cluster.run(&["consume", "orders", "-e", "-o", "-1"]);
    assert!(read.contains("four"), "{read}");

    let reset = ["group", "reset", "readers", "-t", "orders", "--to", "start"];
    cluster.run(&[&reset[..], &["--execute"]].concat());
    let pages = runtime().block_on(pages_with_lag(&cluster));
    let sums = sums(&pages);
    for metric in CATALOGUE {
        let name = match metric.kind {
            Kind::Counter | Kind::Gauge => metric.name.to_owned(),
            Kind::Histogram => format!("{}_count", metric.name),
        };
        let Some(sum) = sums.get(name.as_str()) else {
            panic!("{} carries no data:\n{}", metric.name, pages[0]);
        };
        assert!(
            *sum > 0.0 || MAY_BE_ZERO.contains(&metric.name),
            "{} stays at zero",
            metric.name
        );
        if metric.kind == Kind::Histogram {
            let buckets = format!("{}_bucket", metric.name);
            assert!(sums.contains_key(buckets.as_str()), "{buckets}");
        }
    }
    for page in &pages {
        let types = page.lines().filter(|line| line.starts_with("# TYPE "));
        let mut names: Vec<&str> = types.map(|line| line.split(' ').nth(2).unwrap()).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all, "a metric is shown twice");
    }
    cluster.stop();
}
