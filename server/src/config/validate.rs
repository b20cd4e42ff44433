//! What a readable configuration may still get wrong: values out of bounds, or at odds with one
//! another.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::error::Problem;
use super::{Authentication, ByteSize, Config, Duration, Loaded};

/// Rounds of the write-ahead log are padded to this, and so must its files be.
const WAL_BLOCK: u64 = 4096;
/// One file is being written, one is reserved for votes, one is being released, one is free.
const WAL_FILES_MIN: u32 = 4;
const WAL_FILES_MAX: u32 = 1024;
/// A replica gives a copy up that it hears nothing of for twenty seconds, and before each piece of
/// it there may be a megabyte for every other replica that catches up.
const CATCH_UP_RATE_MIN: ByteSize = ByteSize::mib(1);

/// Everything wrong with a configuration, or nothing.
pub(super) fn problems(loaded: &Loaded) -> Vec<Problem> {
    let mut check = Check {
        loaded,
        problems: Vec::new(),
    };
    let config = &loaded.config;
    check.node(config);
    check.listeners(config);
    check.addresses(config);
    check.access(config);
    check.tls(config);
    check.storage(config);
    check.raft(config);
    check.groups(config);
    check.transactions(config);
    check.limits(config);
    check.kafka(config);
    check.problems
}

struct Check<'a> {
    loaded: &'a Loaded,
    problems: Vec<Problem>,
}

impl Check<'_> {
    fn refuse(&mut self, key: &str, message: impl std::fmt::Display) {
        let problem = Problem::value(self.loaded.origin(key), key, message);
        self.problems.push(problem);
    }

    fn refuse_with_hint(&mut self, key: &str, message: impl std::fmt::Display, hint: String) {
        let problem = Problem::value(self.loaded.origin(key), key, message).with_hint(hint);
        self.problems.push(problem);
    }

    fn size(&mut self, key: &str, value: ByteSize, least: ByteSize, most: ByteSize) {
        if value < least || value > most {
            self.refuse(key, format_args!("is {value}; it can be {least} to {most}"));
        }
    }

    fn span(&mut self, key: &str, value: Duration, least: Duration, most: Duration) {
        if value < least || value > most {
            self.refuse(key, format_args!("is {value}; it can be {least} to {most}"));
        }
    }

    fn node(&mut self, config: &Config) {
        if config.node.id == 0 {
            self.refuse("node.id", "is 0; nodes are numbered from 1");
        }
        if config.node.data_dir.as_os_str().is_empty() {
            self.refuse("node.data_dir", "is empty");
        }
        if config
            .node
            .rack
            .as_ref()
            .is_some_and(|rack| rack.len() > 64)
        {
            self.refuse("node.rack", "is longer than 64 bytes");
        }
        let (least, most) = (Duration::from_secs(1), Duration::from_secs(3600));
        let timeout = config.node.shutdown_timeout;
        self.span("node.shutdown_timeout", timeout, least, most);
    }

    fn listeners(&mut self, config: &Config) {
        let listen = &config.listen;
        let mut taken: BTreeMap<SocketAddr, &str> = BTreeMap::new();
        for (key, address) in [
            ("listen.grpc", listen.grpc),
            ("listen.peer", listen.peer),
            ("listen.http", listen.http),
            ("listen.kafka", listen.kafka),
            ("listen.nats", listen.nats),
            ("listen.mqtt", listen.mqtt),
        ] {
            // Kafka's clients prove who they are without showing a password; elsewhere passwords
            // would cross the network in the open, or nobody is asked at all.
            let asked = config.access.authentication == Authentication::Required;
            let may_be_reached = asked && key == "listen.kafka";
            if !address.ip().is_loopback() && !may_be_reached {
                let why = if asked && key == "listen.grpc" {
                    "passwords would be sent there in the open"
                } else {
                    "nobody is asked who they are"
                };
                self.refuse_with_hint(
                    key,
                    format_args!("is {address}, which others can reach, and {why}"),
                    format!(
                        "use 127.0.0.1:{port}; from elsewhere, tunnel to it: \
                         ssh -L {port}:127.0.0.1:{port} HOST",
                        port = address.port()
                    ),
                );
            }
            if address.port() == 0 {
                continue;
            }
            if let Some(other) = taken.insert(address, key) {
                self.refuse(key, format_args!("is {address}, as is {other}"));
            }
        }
    }

    fn access(&mut self, config: &Config) {
        let access = &config.access;
        if access.authentication == Authentication::Required && access.super_users.is_empty() {
            self.refuse_with_hint(
                "access.super_users",
                "names nobody: who would allow anything to anybody?",
                "name one, and have access.admin_file make it, or make it with `trilog user add` \
                 before access.authentication is required"
                    .to_owned(),
            );
        }
        let bad = |name: &String| name.is_empty() || name.len() > 255;
        if access.super_users.iter().any(bad) {
            self.refuse("access.super_users", "names have 1 to 255 bytes");
        }
        let year = Duration::from_secs(86_400 * 365);
        let lifetime = access.session_lifetime;
        self.span(
            "access.session_lifetime",
            lifetime,
            Duration::from_secs(0),
            year,
        );
    }

    fn tls(&mut self, config: &Config) {
        let (certificate, key) = (&config.tls.certificate, &config.tls.key);
        match (certificate, key) {
            (Some(_), None) => self.refuse("tls.certificate", "has no tls.key to it"),
            (None, Some(_)) => self.refuse("tls.key", "has no tls.certificate to it"),
            (None, None) | (Some(_), Some(_)) => {}
        }
    }

    fn transactions(&mut self, config: &Config) {
        let transactions = &config.transactions;
        if transactions.partitions == 0 || transactions.partitions > 1_000 {
            let partitions = transactions.partitions;
            self.refuse(
                "transactions.partitions",
                format_args!("is {partitions}; it can be 1 to 1000"),
            );
        }
        let (second, day) = (Duration::from_secs(1), Duration::from_secs(86_400));
        let longest = transactions.timeout_max;
        self.span("transactions.timeout_max", longest, second, day);
        let kept = transactions.id_expiration;
        let (minute, year) = (Duration::from_secs(60), Duration::from_secs(86_400 * 365));
        self.span("transactions.id_expiration", kept, minute, year);
    }

    fn groups(&mut self, config: &Config) {
        let groups = &config.groups;
        if groups.partitions == 0 || groups.partitions > 1_000 {
            let partitions = groups.partitions;
            self.refuse(
                "groups.partitions",
                format_args!("is {partitions}; it can be 1 to 1000"),
            );
        }
        if groups.members_max == 0 || groups.members_max > 100_000 {
            let members = groups.members_max;
            self.refuse(
                "groups.members_max",
                format_args!("is {members}; it can be 1 to 100000"),
            );
        }
        let (second, minute, day) = (
            Duration::from_secs(1),
            Duration::from_secs(60),
            Duration::from_secs(86_400),
        );
        let delay = groups.initial_rebalance_delay;
        self.span(
            "groups.initial_rebalance_delay",
            delay,
            Duration::default(),
            minute,
        );
        let (least, most) = (groups.session_timeout_min, groups.session_timeout_max);
        let shortest = Duration::from_millis(100);
        self.span("groups.session_timeout_min", least, shortest, most);
        self.span("groups.session_timeout_max", most, least, day);
        let (session, beat) = (
            groups.consumer_session_timeout,
            groups.consumer_heartbeat_interval,
        );
        self.span("groups.consumer_session_timeout", session, shortest, day);
        self.span(
            "groups.consumer_heartbeat_interval",
            beat,
            shortest,
            session,
        );
        self.span(
            "groups.offset_retention",
            groups.offset_retention,
            second,
            Duration::from_secs(3_650 * 86_400),
        );
        self.size(
            "groups.offset_metadata_max",
            groups.offset_metadata_max,
            ByteSize::default(),
            ByteSize::kib(64),
        );
    }

    fn addresses(&mut self, config: &Config) {
        let advertised = [
            ("advertise.grpc", &config.advertise.grpc),
            ("advertise.peer", &config.advertise.peer),
            ("advertise.kafka", &config.advertise.kafka),
        ];
        for (key, address) in advertised {
            if let Some(address) = address
                && let Err(message) = host_and_port(address)
            {
                self.refuse(key, format_args!("is {address:?}: {message}"));
            }
        }
        for seed in &config.cluster.seeds {
            if let Err(message) = host_and_port(seed) {
                self.refuse("cluster.seeds", format_args!("names {seed:?}: {message}"));
            }
        }
        if config.cluster.seeds.len() > 64 {
            self.refuse("cluster.seeds", "are more than 64; a few are enough");
        }
    }

    fn storage(&mut self, config: &Config) {
        let storage = &config.storage;
        let gib = |count: u64| ByteSize::mib(count << 10);
        let sizes = [
            (
                "storage.wal_file_size",
                storage.wal_file_size,
                ByteSize::mib(4),
                gib(4),
            ),
            (
                "storage.pinned_size",
                storage.pinned_size,
                ByteSize::mib(8),
                gib(1024),
            ),
            (
                "storage.cache_size",
                storage.cache_size,
                ByteSize::bytes(0),
                gib(1024),
            ),
            (
                "storage.segment_size",
                storage.segment_size,
                ByteSize::mib(1),
                gib(4),
            ),
            (
                "storage.fill_size",
                storage.fill_size,
                ByteSize::kib(4),
                ByteSize::mib(16),
            ),
            (
                "storage.scrub_rate",
                storage.scrub_rate,
                ByteSize::bytes(0),
                gib(4),
            ),
            (
                "storage.compaction_rate",
                storage.compaction_rate,
                ByteSize::bytes(0),
                gib(4),
            ),
            (
                "storage.compaction_memory",
                storage.compaction_memory,
                ByteSize::mib(1),
                gib(4),
            ),
        ];
        for (key, value, least, most) in sizes {
            self.size(key, value, least, most);
        }
        if !storage.wal_file_size.get().is_multiple_of(WAL_BLOCK) {
            self.refuse("storage.wal_file_size", "is not a multiple of 4KiB");
        }
        if !(WAL_FILES_MIN..=WAL_FILES_MAX).contains(&storage.wal_files) {
            let files = storage.wal_files;
            self.refuse(
                "storage.wal_files",
                format_args!("is {files}; it can be {WAL_FILES_MIN} to {WAL_FILES_MAX}"),
            );
        }
        if storage.fill_size > storage.segment_size {
            self.refuse("storage.fill_size", "is larger than storage.segment_size");
        }
    }

    fn raft(&mut self, config: &Config) {
        let raft = &config.raft;
        let minute = Duration::from_secs(60);
        let spans = [
            (
                "raft.heartbeat_interval",
                raft.heartbeat_interval,
                Duration::from_millis(10),
                minute,
            ),
            (
                "raft.quiesce_after",
                raft.quiesce_after,
                Duration::from_secs(1),
                Duration::from_secs(86_400),
            ),
            (
                "raft.clock_skew_max",
                raft.clock_skew_max,
                Duration::from_millis(10),
                minute,
            ),
        ];
        for (key, value, least, most) in spans {
            self.span(key, value, least, most);
        }
        if raft.catch_up_rate != ByteSize::kib(0) && raft.catch_up_rate < CATCH_UP_RATE_MIN {
            let rate = raft.catch_up_rate;
            self.refuse(
                "raft.catch_up_rate",
                format_args!(
                    "is {rate}; below {CATCH_UP_RATE_MIN} replicas wait so long for one another \
                     that copies begin anew again and again"
                ),
            );
        }
        if raft.election_timeout_min.get() < raft.heartbeat_interval.get() * 2 {
            let (shortest, beat) = (raft.election_timeout_min, raft.heartbeat_interval);
            self.refuse_with_hint(
                "raft.election_timeout_min",
                format_args!("is {shortest}, and heartbeats come every {beat}"),
                "make it at least twice raft.heartbeat_interval, or a single late heartbeat \
                 starts an election"
                    .to_owned(),
            );
        }
        if raft.election_timeout_max <= raft.election_timeout_min {
            self.refuse(
                "raft.election_timeout_max",
                "is not above raft.election_timeout_min",
            );
        }
        if raft.election_timeout_max > minute {
            self.refuse("raft.election_timeout_max", "is above 60s");
        }
    }

    fn kafka(&mut self, config: &Config) {
        let (kafka, batch) = (&config.kafka, config.limits.batch_size);
        let most = ByteSize::mib(1024);
        self.size(
            "kafka.request_size",
            kafka.request_size,
            ByteSize::kib(64),
            most,
        );
        if kafka.request_size < batch {
            self.refuse("kafka.request_size", "is smaller than limits.batch_size");
        }
        let most = ByteSize::mib(1 << 20);
        self.size("kafka.memory", kafka.memory, kafka.request_size, most);
        let (key, memory) = ("kafka.fetch_session_memory", kafka.fetch_session_memory);
        self.size(key, memory, ByteSize::mib(0), most);
        if kafka.connections == 0 {
            self.refuse("kafka.connections", "is 0: nobody could connect");
        }
    }

    fn limits(&mut self, config: &Config) {
        let limits = &config.limits;
        let (least, most) = (ByteSize::kib(1), ByteSize::mib(6));
        self.size("limits.batch_size", limits.batch_size, least, most);
        if limits.connections == 0 {
            self.refuse("limits.connections", "is 0: nobody could connect");
        }
        if limits.inflight_size < limits.batch_size {
            self.refuse("limits.inflight_size", "is smaller than limits.batch_size");
        }
        if limits.request_memory.get() < limits.batch_size.get().saturating_mul(2) {
            self.refuse(
                "limits.request_memory",
                "is smaller than two batches (limits.batch_size)",
            );
        }
    }
}

fn host_and_port(text: &str) -> Result<(), &'static str> {
    let (host, port) = text.rsplit_once(':').ok_or("expected host:port")?;
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err("the host is missing");
    }
    if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
        return Err("write an IPv6 address in brackets, as in [::1]:7401");
    }
    match port.parse::<u16>() {
        Ok(0) | Err(_) => Err("the port must be a number from 1 to 65535"),
        Ok(_) => Ok(()),
    }
}
