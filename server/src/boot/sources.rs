//! What a running node shows of itself: metrics published at the scrape, and readiness.

use std::collections::BTreeMap;
use std::time::Duration;

use metrics::{counter, gauge};
use trilog_model::Timestamp;
use trilog_raft::NodeStats;
use trilog_raft::controller::ClusterMap;
use trilog_raft::controller::commands::TopicKind;
use trilog_storage::histogram::{BOUNDS, Durations};

use super::Server;
use crate::cluster::Cluster;
use crate::group::{Coordinator, GroupLag, GroupState};
use crate::http::{Health, Metrics, Observed, Sample};
use crate::transaction::{self, Phase};
use crate::view::isolation::MANY_TRANSACTIONS;

/// Topics that get a label of their own; the rest add up as `_other`.
const MAX_TOPICS: usize = 1_000;
const OTHER: &str = "_other";
/// Groups that get labels of their own, and topics of groups.
const MAX_GROUPS: usize = 1_000;
const MAX_GROUP_TOPICS: usize = 2_000;

impl Server {
    /// Registers this node's sources and checks.
    pub(super) fn observe(&self, metrics: &Metrics, health: &Health) {
        gauge!("trilog_uring_fallback").set(f64::from(u8::from(self.uring_fallback)));
        let store = self.store.clone();
        metrics.register(move || publish_store(&store.stats()));
        let cluster = self.cluster.clone();
        metrics.register(move || publish_partitions(&cluster));
        let cluster = self.cluster.clone();
        metrics.register(move || publish_cluster(&cluster));
        let transport = self.transport.clone();
        metrics.register(move || publish_transport(&transport.stats()));
        let node = self.node.clone();
        metrics.register(move || publish_groups(&node.stats()));
        let requests = self.requests.clone();
        metrics.register(move || {
            gauge!("trilog_request_memory_bytes").set(as_f64(requests.taken() as u64));
        });
        let store = self.store.clone();
        metrics.register_histogram("trilog_append_duration_seconds", move || {
            observed(&store.stats().appends)
        });
        let store = self.store.clone();
        metrics.register_histogram("trilog_fsync_duration_seconds", move || {
            observed(&store.stats().wal.unwrap_or_default().syncs)
        });
        let (coordinator, lag) = (self.coordinator().clone(), self.lag.clone());
        metrics.register(move || publish_census(&coordinator));
        metrics.register_samples(move || group_samples(lag.read()));
        let (transactions, clock) = (self.transactions().clone(), self.clock());
        metrics.register(move || publish_transactions(&transactions, clock.now()));
        let cluster = self.cluster.clone();
        metrics.register_samples(move || unsettled_samples(unsettled(&cluster)));
        self.check(health);
    }

    fn check(&self, health: &Health) {
        let fatal = self.store.fatal();
        health.must_live("storage", move || match &*fatal.borrow() {
            None => Ok(()),
            Some(fatal) => Err(fatal.to_string()),
        });
        let controller = self.cluster.controller().group().leadership();
        health.must_be_ready("controller", move || match controller.borrow().leader {
            Some(_) => Ok(()),
            None => Err("the controller has no leader that this node knows of".to_owned()),
        });
        let pressure = self.store.pressure();
        health.must_be_ready("disk", move || {
            if pressure.borrow().disk_full {
                return Err("the disk is full: reads are served, writes are refused".to_owned());
            }
            Ok(())
        });
        let (store, cluster) = (self.store.clone(), self.cluster.clone());
        health.note("segments", move || match store.stats().quarantined {
            0 => Ok(()),
            count => Err(damage(count, &cluster)),
        });
        let clock = self.timekeeper.state();
        health.must_be_ready("clock", move || {
            let clock = *clock.borrow();
            if clock.astray {
                let ahead = clock.ahead_seconds();
                return Err(format!(
                    "the clock is {ahead:+.3} s from the other nodes': this node leads nothing"
                ));
            }
            Ok(())
        });
        let cluster = self.cluster.clone();
        health.must_be_ready("partitions", move || leaders_known(&cluster));
        let cluster = self.cluster.clone();
        health.note("transactions", move || few_to_remember(unsettled(&cluster)));
        let cluster = self.cluster.clone();
        health.note("authentication", move || {
            same_authentication(&cluster.map())
        });
        let cluster = self.cluster.clone();
        health.note("recovery", move || losses_accepted(&cluster));
    }
}

/// Groups by state; while a partition is being taken over, as they were last counted.
fn publish_census(coordinator: &Coordinator) {
    let Ok(census) = coordinator.census() else {
        return;
    };
    let census: BTreeMap<GroupState, usize> = census.into_iter().collect();
    for state in GroupState::ALL {
        let count = census.get(&state).copied().unwrap_or(0);
        gauge!("trilog_groups", "state" => state.as_str()).set(as_f64(count as u64));
    }
}

/// Transactional ids by state, and how long the oldest transaction has been open.
fn publish_transactions(transactions: &transaction::Coordinator, now: Timestamp) {
    let census = transactions.census();
    for phase in Phase::ALL {
        let count = census.phases.get(&phase).copied().unwrap_or(0);
        gauge!("trilog_transactions", "state" => phase.as_kafka()).set(as_f64(count as u64));
    }
    let since = census.oldest_open.map_or(now, |since| since.min(now));
    let age = Duration::from_nanos(now.nanos() - since.nanos());
    gauge!("trilog_transaction_open_seconds_max").set(age.as_secs_f64());
}

/// Of the partitions of a topic led here: records that wait for the end of a transaction, and the
/// most transactions that one of them has to remember.
type Unsettled = (u64, u64);

/// Of every topic, in order.
fn unsettled(cluster: &Cluster) -> Vec<(String, Unsettled)> {
    let map = cluster.map();
    let topics = map.topics_by_name();
    let topics = topics.filter(|topic| topic.kind != TopicKind::Internal);
    let topics = topics.map(|topic| {
        let mut all = (0, 0);
        for place in &topic.partitions {
            let held = cluster.partitions().get(place.group);
            if let Some(partition) = held.filter(|held| held.leader().1) {
                let (behind, count) = partition.unsettled();
                all = (all.0 + behind, all.1.max(count as u64));
            }
        }
        (topic.name.to_string(), all)
    });
    topics.collect()
}

fn unsettled_samples(topics: Vec<(String, Unsettled)>) -> Vec<(&'static str, Vec<Sample>)> {
    let (mut behind, mut counts) = (Vec::new(), Vec::new());
    let mut rest: Option<Unsettled> = None;
    for (nth, (topic, (records, count))) in topics.into_iter().enumerate() {
        if nth < MAX_TOPICS {
            behind.push(sample(vec![("topic", topic.clone())], records));
            counts.push(sample(vec![("topic", topic)], count));
        } else {
            let (all, most) = rest.unwrap_or_default();
            rest = Some((all + records, most.max(count)));
        }
    }
    if let Some((records, count)) = rest {
        let other = || vec![("topic", OTHER.to_owned())];
        behind.push(sample(other(), records));
        counts.push(sample(other(), count));
    }
    vec![
        ("trilog_unsettled_messages", behind),
        ("trilog_aborted_transactions_max", counts),
    ]
}

/// What groups show: the first so many by name apart, the rest together.
fn group_samples(groups: BTreeMap<String, GroupLag>) -> Vec<(&'static str, Vec<Sample>)> {
    let (mut lags, mut members, mut rebalances) = (Vec::new(), Vec::new(), Vec::new());
    let (mut hidden, mut rest_lag, mut rest_members, mut rest_rebalances) = (0, 0, 0, 0);
    for (nth, (group, lag)) in groups.into_iter().enumerate() {
        let (count, generation) = (lag.members as u64, lag.generation.max(0).unsigned_abs());
        if nth < MAX_GROUPS {
            members.push(sample(vec![("group", group.clone())], count));
            rebalances.push(sample(vec![("group", group.clone())], generation.into()));
        } else {
            hidden += 1;
            rest_members += count;
            rest_rebalances += u64::from(generation);
        }
        for (topic, behind) in lag.topics {
            if nth < MAX_GROUPS && lags.len() < MAX_GROUP_TOPICS {
                let labels = vec![("group", group.clone()), ("topic", topic)];
                lags.push(sample(labels, behind));
            } else {
                hidden += 1;
                rest_lag += behind;
            }
        }
    }
    if hidden > 0 {
        let other = || OTHER.to_owned();
        lags.push(sample(
            vec![("group", other()), ("topic", other())],
            rest_lag,
        ));
        members.push(sample(vec![("group", other())], rest_members));
        rebalances.push(sample(vec![("group", other())], rest_rebalances));
    }
    vec![
        ("trilog_group_lag_messages", lags),
        ("trilog_group_members", members),
        ("trilog_group_rebalances_total", rebalances),
        (
            "trilog_group_series_hidden",
            vec![sample(Vec::new(), hidden)],
        ),
    ]
}

fn sample(labels: Vec<(&'static str, String)>, value: u64) -> Sample {
    Sample { labels, value }
}

/// What passes of compaction count as they end.
const COMPACTION: [&str; 4] = [
    "trilog_compaction_passes_total",
    "trilog_compaction_failures_total",
    "trilog_compaction_freed_bytes_total",
    "trilog_compaction_removed_records_total",
];

/// Names of partitions with damage that are told; the rest are counted.
const NAMED: usize = 8;

/// What is damaged here, and where.
fn damage(count: usize, cluster: &Cluster) -> String {
    let map = cluster.map();
    let places = map.topics_by_name().flat_map(|topic| {
        let places = topic.partitions.iter().enumerate();
        places.map(|(index, place)| (format!("{}/{index}", topic.name), place))
    });
    let mut named = places.flat_map(|(name, place)| {
        let held = cluster.partitions().get(place.group);
        let ranges = held.map(|held| held.damaged()).unwrap_or_default();
        let others = match place.replicas.len() {
            1 => "no other replica has them",
            _ => "to be replaced by another replica's copy",
        };
        ranges.into_iter().map(move |(start, end)| {
            format!("{name} from offset {start} to before {end} ({others})")
        })
    });
    let told: Vec<String> = named.by_ref().take(NAMED).collect();
    format!(
        "{count} segments are damaged and not served: {}",
        told.join(", ")
    )
}

/// A partition that has to remember too many aborted transactions takes no more of them.
fn few_to_remember(topics: Vec<(String, Unsettled)>) -> Result<(), String> {
    let many = topics.into_iter().filter(|(_, (_, count))| {
        usize::try_from(*count).is_ok_and(|count| count >= MANY_TRANSACTIONS)
    });
    let many: Vec<String> = many
        .take(NAMED)
        .map(|(topic, (_, count))| format!("{topic} ({count})"))
        .collect();
    if many.is_empty() {
        return Ok(());
    }
    Err(format!(
        "partitions have to remember many aborted transactions, and take no more at 200000: {}; \
         delete records, or give the topic a retention",
        many.join(", ")
    ))
}

/// What was given up stays told, for whoever looks into it later.
fn losses_accepted(cluster: &Cluster) -> Result<(), String> {
    let map = cluster.map();
    let Some(last) = map.losses().last() else {
        return Ok(());
    };
    let nodes: Vec<String> = last.nodes.iter().map(ToString::to_string).collect();
    Err(format!(
        "what only node {} had was given up for lost by `trilog recover`",
        nodes.join(", ")
    ))
}

fn publish_cluster(cluster: &Cluster) {
    let map = cluster.map();
    gauge!("trilog_losses_accepted").set(as_f64(map.losses().len() as u64));
    gauge!("trilog_feature_level").set(f64::from(map.level()));
    let differs = same_authentication(&map).is_err();
    gauge!("trilog_authentication_differs").set(f64::from(u8::from(differs)));
}

/// A node that asks nobody is a way round those that do.
fn same_authentication(map: &ClusterMap) -> Result<(), String> {
    let members = map.nodes().filter(|node| node.is_member());
    let (asking, open): (Vec<_>, Vec<_>) = members
        .filter_map(|node| Some((node.id.to_string(), node.asks?)))
        .partition(|(_, asks)| *asks);
    if asking.is_empty() || open.is_empty() {
        return Ok(());
    }
    let open: Vec<String> = open.into_iter().map(|(node, _)| node).collect();
    Err(format!(
        "node {} asks nobody who they are, though others do: give all the same \
         access.authentication",
        open.join(", ")
    ))
}

fn leaders_known(cluster: &Cluster) -> Result<(), String> {
    let all = cluster.partitions().all();
    let leaderless = all
        .iter()
        .filter(|(_, partition)| partition.leader().0.is_none())
        .count();
    if leaderless == 0 {
        return Ok(());
    }
    Err(format!(
        "{leaderless} of {} partitions held here know no leader",
        all.len()
    ))
}

fn publish_partitions(cluster: &Cluster) {
    let map = cluster.map();
    let (mut held, mut led, mut leaderless, mut under_replicated) = (0_u32, 0_u32, 0_u32, 0_u32);
    let mut resting = 0_u32;
    let mut sizes: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
    let places = map.topics_by_name().enumerate().flat_map(|(nth, topic)| {
        let label = if nth < MAX_TOPICS {
            &*topic.name
        } else {
            OTHER
        };
        topic.partitions.iter().map(move |place| (label, place))
    });
    for (label, place) in places {
        let Some(partition) = cluster.partitions().get(place.group) else {
            continue;
        };
        let (bytes, files) = partition.files();
        let size = sizes.entry(label).or_default();
        *size = (size.0 + bytes, size.1 + files);
        held += 1;
        let (leader, leads) = partition.leader();
        leaderless += u32::from(leader.is_none());
        led += u32::from(leads);
        resting += u32::from(partition.group().rests());
        let lagging = leads && place.voter_nodes().any(|node| !cluster.is_alive(node));
        under_replicated += u32::from(lagging);
    }
    gauge!("trilog_partitions").set(f64::from(held));
    gauge!("trilog_partitions_led").set(f64::from(led));
    gauge!("trilog_partitions_resting").set(f64::from(resting));
    gauge!("trilog_partitions_leaderless").set(f64::from(leaderless));
    gauge!("trilog_partitions_under_replicated").set(f64::from(under_replicated));
    publish_sizes(sizes);
}

/// By topic, with a bounded number of labels.
fn publish_sizes(sizes: BTreeMap<&str, (u64, usize)>) {
    for (topic, (bytes, files)) in sizes {
        gauge!("trilog_log_size_bytes", "topic" => topic.to_owned()).set(as_f64(bytes));
        gauge!("trilog_log_segments", "topic" => topic.to_owned()).set(as_f64(files as u64));
    }
}

fn publish_store(stats: &trilog_storage::store::StoreStats) {
    gauge!("trilog_storage_pinned_bytes").set(as_f64(stats.pinned_bytes));
    gauge!("trilog_storage_cache_bytes").set(as_f64(stats.cached_bytes));
    counter!("trilog_cache_hits_total").absolute(stats.cache_hits);
    counter!("trilog_cache_misses_total").absolute(stats.cache_misses);
    gauge!("trilog_segments_quarantined").set(as_f64(stats.quarantined as u64));
    gauge!("trilog_partitions_incomplete").set(as_f64(stats.short_groups as u64));
    counter!("trilog_scrub_bytes_total").absolute(stats.scrubbed_bytes);
    counter!("trilog_compaction_bytes_total").absolute(stats.compacted_bytes);
    for passes in COMPACTION {
        // Shown from the start, not only from the first pass on.
        counter!(passes).increment(0);
    }
    let Some(wal) = &stats.wal else { return };
    counter!("trilog_wal_bytes_total").absolute(wal.writing.bytes);
    counter!("trilog_wal_rounds_total").absolute(wal.writing.rounds);
    gauge!("trilog_wal_files_free").set(f64::from(wal.free_files));
}

fn publish_groups(stats: &NodeStats) {
    counter!("trilog_raft_elections_total").absolute(stats.elections);
    gauge!("trilog_raft_follower_lag_entries_max").set(as_f64(stats.follower_lag_max));
}

/// What storage counted, as the registry shows it.
fn observed(durations: &Durations) -> Observed {
    let bounds = BOUNDS.iter().map(Duration::as_secs_f64);
    let [counts @ .., beyond] = &durations.buckets;
    Observed {
        buckets: bounds.zip(counts.iter().copied()).collect(),
        beyond: *beyond,
        sum: durations.sum.as_secs_f64(),
    }
}

fn publish_transport(stats: &trilog_raft::transport::TransportStats) {
    counter!("trilog_peer_bytes_total", "op" => "out").absolute(stats.bytes_out);
    counter!("trilog_peer_bytes_total", "op" => "in").absolute(stats.bytes_in);
}

#[expect(
    clippy::cast_precision_loss,
    reason = "a gauge is a float; 2^53 bytes are enough"
)]
fn as_f64(count: u64) -> f64 {
    count as f64
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use trilog_raft::controller::commands::{Bootstrap, Command, RegisterNode};
    use trilog_raft::controller::{BUILD_LEVEL, ControllerState};

    use super::*;

    #[test]
    fn topics_beyond_the_bound_are_added_up() {
        let topics = (0..MAX_TOPICS as u64 + 3).map(|n| (format!("t{n:05}"), (10, n)));
        let all = unsettled_samples(topics.collect());
        let values = |nth: usize| all[nth].1.iter().map(|sample| sample.value);
        assert_eq!(values(0).count(), MAX_TOPICS + 1);
        assert_eq!(values(0).sum::<u64>(), (MAX_TOPICS as u64 + 3) * 10);
        assert_eq!(values(1).max(), Some(MAX_TOPICS as u64 + 2));
        assert_eq!(few_to_remember(vec![("a".to_owned(), (0, 99_999))]), Ok(()));
        let told = few_to_remember(vec![("a".to_owned(), (0, 100_000))]).unwrap_err();
        assert!(told.contains("a (100000)"), "{told}");
    }

    #[test]
    fn groups_beyond_the_bounds_are_added_up_and_counted() {
        let lag = |topics: usize| GroupLag {
            members: 1,
            generation: 2,
            topics: (0..topics).map(|n| (format!("t{n}"), 10)).collect(),
        };
        let total = |samples: &[Sample]| samples.iter().map(|sample| sample.value).sum::<u64>();
        let by_name = |groups: BTreeMap<String, GroupLag>| {
            let samples = group_samples(groups);
            samples.into_iter().collect::<BTreeMap<_, _>>()
        };

        let few = by_name([("a".to_owned(), lag(2))].into());
        assert_eq!(few["trilog_group_lag_messages"].len(), 2);
        assert_eq!(total(&few["trilog_group_series_hidden"]), 0);

        let groups = (0..MAX_GROUPS + 5).map(|n| (format!("g{n:05}"), lag(3)));
        let many = by_name(groups.collect());
        let all = (MAX_GROUPS + 5) as u64;
        let lags = &many["trilog_group_lag_messages"];
        assert_eq!(lags.len(), MAX_GROUP_TOPICS + 1);
        assert_eq!(total(lags), all * 30, "nothing is lost in the sum");
        assert_eq!(many["trilog_group_members"].len(), MAX_GROUPS + 1);
        assert_eq!(total(&many["trilog_group_members"]), all);
        assert_eq!(total(&many["trilog_group_rebalances_total"]), all * 2);
        let hidden = 5 + all * 3 - MAX_GROUP_TOPICS as u64;
        assert_eq!(total(&many["trilog_group_series_hidden"]), hidden);
    }

    #[test]
    fn nodes_that_ask_nobody_beside_others_that_do_are_named() {
        let node = |number: u8, asks: Option<bool>| RegisterNode {
            node: number.into(),
            identity: Bytes::from(vec![number; 16]),
            min_level: 1,
            max_level: BUILD_LEVEL,
            asks,
            ..RegisterNode::default()
        };
        let check = |asks: [Option<bool>; 3], named: Option<&str>| {
            let mut state = ControllerState::new();
            let bootstrap = Command::Bootstrap(Bootstrap {
                cluster: Bytes::from_static(&[9; 16]),
                node: node(1, asks[0]),
                level: BUILD_LEVEL,
            });
            state.carry_out(&bootstrap, Timestamp(1)).unwrap();
            for (number, asks) in [(2, asks[1]), (3, asks[2])] {
                let register = Command::RegisterNode(node(number, asks));
                state.carry_out(&register, Timestamp(1)).unwrap();
            }
            // What nodes have said outlives a snapshot.
            let state = ControllerState::from_snapshot(&state.snapshot()).unwrap();
            let found = same_authentication(&state.map());
            match named {
                None => assert_eq!(found, Ok(())),
                Some(node) => {
                    let (said, begins) = (found.unwrap_err(), format!("node {node} asks nobody"));
                    assert!(said.starts_with(&begins), "{said}");
                }
            }
        };
        check([Some(true); 3], None);
        check([Some(false); 3], None);
        check([Some(true), None, Some(true)], None);
        check([Some(true), Some(false), None], Some("2"));
        check([Some(false), Some(true), Some(false)], Some("1, 3"));
    }
}
