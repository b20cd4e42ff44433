//! The configuration keys of a topic: Kafka's names, our meaning.
//!
//! Clients and tools set Kafka's keys whether or not a broker needs them, so every key of a
//! current Kafka is accepted. One that means nothing here is marked void and says why: an
//! operator who reads it must not believe in a protection that is not there.

use std::collections::BTreeMap;

use super::config_key::{ConfigKey, ConfigSource, ConfigType, ConfigValue, Effect, find};
use super::level::BASE_LEVEL;
use super::reply::ControllerError;

/// The largest `max.message.bytes`: a batch and its frame fit one peer message of 8 MiB.
pub const MAX_BATCH_BYTES: i64 = (8 << 20) - (64 << 10);

const LONG: i64 = i64::MAX;
const INT: i64 = i32::MAX as i64;

const fn key(
    name: &'static str,
    kind: ConfigType,
    default: &'static str,
    doc: &'static str,
) -> ConfigKey {
    ConfigKey {
        name,
        kind,
        default,
        effect: Effect::Honoured,
        doc,
        cluster_name: None,
        since: BASE_LEVEL,
    }
}

const fn void(
    name: &'static str,
    kind: ConfigType,
    default: &'static str,
    doc: &'static str,
) -> ConfigKey {
    ConfigKey {
        effect: Effect::Void,
        ..key(name, kind, default, doc)
    }
}

impl ConfigKey {
    const fn or_cluster(self, name: &'static str) -> Self {
        Self {
            cluster_name: Some(name),
            ..self
        }
    }
}

const fn int(min: i64, max: i64) -> ConfigType {
    ConfigType::Int { min, max }
}

/// Every key of a topic, by name.
pub static TOPIC_KEYS: &[ConfigKey] = &[
    key(
        "cleanup.policy",
        ConfigType::List(&["delete", "compact"]),
        "delete",
        "What becomes of old records: 'delete' drops them by age and size, 'compact' keeps the last one of each key.",
    )
    .or_cluster("log.cleanup.policy"),
    void(
        "compression.gzip.level",
        int(-1, 9),
        "-1",
        "Without effect: batches are stored as the producer compressed them.",
    ),
    void(
        "compression.lz4.level",
        int(1, 17),
        "9",
        "Without effect: batches are stored as the producer compressed them.",
    ),
    void(
        "compression.type",
        ConfigType::Choice(&["producer", "uncompressed", "gzip", "snappy", "lz4", "zstd"]),
        "producer",
        "Without effect: batches are stored as the producer compressed them, byte for byte.",
    )
    .or_cluster("compression.type"),
    void(
        "compression.zstd.level",
        int(-131_072, 22),
        "3",
        "Without effect: batches are stored as the producer compressed them.",
    ),
    key(
        "delete.retention.ms",
        int(0, LONG),
        "86400000",
        "How long a compacted topic keeps the deletion marker of a key, in milliseconds.",
    )
    .or_cluster("log.cleaner.delete.retention.ms"),
    void(
        "file.delete.delay.ms",
        int(0, LONG),
        "60000",
        "Without effect: files are unlinked when no reader needs them.",
    ),
    void(
        "flush.messages",
        int(1, LONG),
        "9223372036854775807",
        "Without effect: every acknowledged record is synced on a majority of replicas.",
    ),
    void(
        "flush.ms",
        int(0, LONG),
        "9223372036854775807",
        "Without effect: every acknowledged record is synced on a majority of replicas.",
    ),
    void(
        "follower.replication.throttled.replicas",
        ConfigType::Text,
        "",
        "Without effect: catch-up is throttled per node.",
    ),
    void(
        "index.interval.bytes",
        int(0, INT),
        "4096",
        "Without effect: the index takes one entry per 32 KiB.",
    ),
    void(
        "leader.replication.throttled.replicas",
        ConfigType::Text,
        "",
        "Without effect: catch-up is throttled per node.",
    ),
    key(
        "local.retention.bytes",
        int(-2, LONG),
        "-2",
        "Bytes of a tiered partition that stay on local disk; -2: as retention.bytes.",
    ),
    key(
        "local.retention.ms",
        int(-2, LONG),
        "-2",
        "How long records of a tiered partition stay on local disk, in milliseconds; -2: as retention.ms.",
    ),
    key(
        "max.compaction.lag.ms",
        int(1, LONG),
        "9223372036854775807",
        "After how long at most a record becomes eligible for compaction, in milliseconds.",
    ),
    key(
        "max.message.bytes",
        int(0, MAX_BATCH_BYTES),
        "1048588",
        "The largest record batch, compressed and with its header, in bytes.",
    )
    .or_cluster("message.max.bytes"),
    key(
        "message.timestamp.after.max.ms",
        int(0, LONG),
        "3600000",
        "How far a record's CreateTime may lie in the future, in milliseconds.",
    ),
    key(
        "message.timestamp.before.max.ms",
        int(0, LONG),
        "9223372036854775807",
        "How far a record's CreateTime may lie in the past, in milliseconds.",
    ),
    key(
        "message.timestamp.type",
        ConfigType::Choice(&["CreateTime", "LogAppendTime"]),
        "CreateTime",
        "Whether a record's timestamp is the producer's or that of its append.",
    )
    .or_cluster("log.message.timestamp.type"),
    key(
        "min.cleanable.dirty.ratio",
        ConfigType::Float { min: 0.0, max: 1.0 },
        "0.5",
        "The share of a compacted log that must be new before it is compacted again.",
    ),
    key(
        "min.compaction.lag.ms",
        int(0, LONG),
        "0",
        "For how long at least a record is spared from compaction, in milliseconds.",
    ),
    void(
        "min.insync.replicas",
        int(1, INT),
        "1",
        "Without effect: every acknowledgement means a synced majority of replicas, whatever this says.",
    )
    .or_cluster("min.insync.replicas"),
    void(
        "preallocate",
        ConfigType::Bool,
        "false",
        "Without effect: segments are preallocated as the number of partitions allows.",
    ),
    void(
        "remote.log.copy.disable",
        ConfigType::Bool,
        "false",
        "Without effect: a tiered topic uploads its sealed segments.",
    ),
    void(
        "remote.log.delete.on.disable",
        ConfigType::Bool,
        "false",
        "Without effect: tiering of a topic is not switched off with its data.",
    ),
    key(
        "remote.storage.enable",
        ConfigType::Bool,
        "false",
        "Whether sealed segments go to object storage.",
    ),
    key(
        "retention.bytes",
        int(-1, LONG),
        "-1",
        "Bytes a partition keeps; -1: no limit.",
    )
    .or_cluster("log.retention.bytes"),
    key(
        "retention.ms",
        int(-1, LONG),
        "604800000",
        "How long a record is kept after its append, in milliseconds; -1: for ever.",
    )
    .or_cluster("log.retention.ms"),
    key(
        "segment.bytes",
        int(1 << 20, INT),
        "134217728",
        "Bytes of a segment file; what retention drops, it drops by segments.",
    )
    .or_cluster("log.segment.bytes"),
    void(
        "segment.index.bytes",
        int(4, INT),
        "10485760",
        "Without effect: an index is as long as its segment needs.",
    ),
    void(
        "segment.jitter.ms",
        int(0, LONG),
        "0",
        "Without effect: segments roll by size and age.",
    ),
    key(
        "segment.ms",
        int(1, LONG),
        "604800000",
        "After how long a segment is closed though it is not full, in milliseconds.",
    )
    .or_cluster("log.roll.ms"),
    key(
        "trilog.dedup.window.ms",
        int(0, 86_400_000),
        "120000",
        "For how long a message id counts as seen, in milliseconds.",
    ),
    key(
        "trilog.discard",
        ConfigType::Choice(&["old", "new"]),
        "old",
        "At a limit on messages: drop the oldest records, or refuse new ones.",
    ),
    key(
        "trilog.max.messages",
        int(-1, LONG),
        "-1",
        "Records a stream keeps; -1: no limit.",
    ),
    key(
        "trilog.max.messages.per.subject",
        int(-1, LONG),
        "-1",
        "Records a stream keeps for each subject; -1: no limit.",
    ),
    void(
        "unclean.leader.election.enable",
        ConfigType::Bool,
        "false",
        "Without effect: only a replica with every committed record can lead.",
    ),
];

/// The key of this name, or a refusal that names the nearest one.
pub fn topic_key(name: &str, level: u32) -> Result<&'static ConfigKey, ControllerError> {
    find(TOPIC_KEYS, name, level)
}

/// Whether a limit is set: Kafka writes "no limit" as a negative number.
fn limit(value: i64) -> Option<u64> {
    u64::try_from(value).ok()
}

/// When a record's timestamp is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimestampType {
    CreateTime,
    LogAppendTime,
}

/// What happens at a limit on messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Discard {
    Old,
    New,
}

/// The honoured settings of one topic, typed; limits are `None` where there is none.
#[derive(Clone, Debug, PartialEq)]
pub struct TopicConfig {
    pub cleanup_delete: bool,
    pub cleanup_compact: bool,
    pub retention_ms: Option<u64>,
    pub retention_bytes: Option<u64>,
    pub local_retention_ms: Option<u64>,
    pub local_retention_bytes: Option<u64>,
    pub segment_bytes: u64,
    pub segment_ms: u64,
    pub max_message_bytes: u64,
    pub timestamp_type: TimestampType,
    pub timestamp_before_max_ms: u64,
    pub timestamp_after_max_ms: u64,
    pub delete_retention_ms: u64,
    pub min_compaction_lag_ms: u64,
    pub max_compaction_lag_ms: u64,
    pub min_cleanable_dirty_ratio: f64,
    pub tiered: bool,
    pub dedup_window_ms: u64,
    pub max_messages: Option<u64>,
    pub max_messages_per_subject: Option<u64>,
    pub discard: Discard,
}

/// What a topic's keys come to, out of its own values and the cluster's.
#[derive(Clone, Copy, Debug)]
pub struct TopicConfigView<'a> {
    pub topic: &'a BTreeMap<String, String>,
    pub cluster: &'a BTreeMap<String, String>,
}

impl<'a> TopicConfigView<'a> {
    /// One key's value and source.
    #[must_use]
    pub fn value(&self, key: &'static ConfigKey) -> ConfigValue<'a> {
        let set = |value: &'a String, source| ConfigValue {
            key,
            value: value.as_str(),
            source,
        };
        if let Some(value) = self.topic.get(key.name) {
            return set(value, ConfigSource::Topic);
        }
        let inherited = key.cluster_name.and_then(|name| self.cluster.get(name));
        if let Some(value) = inherited {
            return set(value, ConfigSource::Cluster);
        }
        ConfigValue {
            key,
            value: key.default,
            source: ConfigSource::Default,
        }
    }

    /// Every key with its value and source, by name.
    pub fn all(self) -> impl Iterator<Item = ConfigValue<'a>> {
        TOPIC_KEYS.iter().map(move |key| self.value(key))
    }

    fn text(&self, name: &str) -> &'a str {
        TOPIC_KEYS
            .iter()
            .find(|key| key.name == name)
            .map_or("", |key| self.value(key).value)
    }

    /// A number; values were checked when they were set, and the default stands in for one that
    /// nevertheless does not parse.
    fn number(&self, name: &str) -> i64 {
        let default = || {
            TOPIC_KEYS
                .iter()
                .find(|key| key.name == name)
                .and_then(|key| key.default.parse().ok())
        };
        self.text(name).parse().ok().or_else(default).unwrap_or(0)
    }

    fn unsigned(&self, name: &str) -> u64 {
        limit(self.number(name)).unwrap_or(0)
    }

    /// All honoured settings, typed.
    #[must_use]
    pub fn resolve(&self) -> TopicConfig {
        let policy = self.text("cleanup.policy");
        let has = |word| policy.split(',').any(|item| item == word);
        let retention_ms = limit(self.number("retention.ms"));
        let retention_bytes = limit(self.number("retention.bytes"));
        let local = |name, whole| match self.number(name) {
            -2 => whole,
            value => limit(value),
        };
        TopicConfig {
            cleanup_delete: has("delete"),
            cleanup_compact: has("compact"),
            retention_ms,
            retention_bytes,
            local_retention_ms: local("local.retention.ms", retention_ms),
            local_retention_bytes: local("local.retention.bytes", retention_bytes),
            segment_bytes: self.unsigned("segment.bytes"),
            segment_ms: self.unsigned("segment.ms"),
            max_message_bytes: self.unsigned("max.message.bytes"),
            timestamp_type: match self.text("message.timestamp.type") {
                "LogAppendTime" => TimestampType::LogAppendTime,
                _ => TimestampType::CreateTime,
            },
            timestamp_before_max_ms: self.unsigned("message.timestamp.before.max.ms"),
            timestamp_after_max_ms: self.unsigned("message.timestamp.after.max.ms"),
            delete_retention_ms: self.unsigned("delete.retention.ms"),
            min_compaction_lag_ms: self.unsigned("min.compaction.lag.ms"),
            max_compaction_lag_ms: self.unsigned("max.compaction.lag.ms"),
            min_cleanable_dirty_ratio: self
                .text("min.cleanable.dirty.ratio")
                .parse()
                .unwrap_or(0.5),
            tiered: self.text("remote.storage.enable") == "true",
            dedup_window_ms: self.unsigned("trilog.dedup.window.ms"),
            max_messages: limit(self.number("trilog.max.messages")),
            max_messages_per_subject: limit(self.number("trilog.max.messages.per.subject")),
            discard: match self.text("trilog.discard") {
                "new" => Discard::New,
                _ => Discard::Old,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_is_a_valid_value_in_its_stored_form() {
        for key in TOPIC_KEYS {
            assert_eq!(key.parse(key.default).unwrap(), key.default, "{}", key.name);
            assert!(!key.doc.is_empty());
            assert_eq!(
                key.effect == Effect::Void,
                key.doc.starts_with("Without effect"),
                "{}",
                key.name
            );
        }
    }

    #[test]
    fn keys_are_sorted_and_unique() {
        assert!(
            TOPIC_KEYS
                .windows(2)
                .all(|pair| pair[0].name < pair[1].name)
        );
    }

    #[test]
    fn a_mistyped_key_is_refused_with_the_one_that_was_meant() {
        let refusal = topic_key("retention.m", BASE_LEVEL).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "unknown configuration key 'retention.m'; did you mean 'retention.ms'?"
        );
        assert!(
            topic_key("retention.ms", 0).is_err(),
            "no key before level 1"
        );
    }

    #[test]
    fn the_topic_wins_over_the_cluster_and_the_cluster_over_the_default() {
        let mut topic = BTreeMap::new();
        let mut cluster = BTreeMap::new();
        let retention = topic_key("retention.ms", BASE_LEVEL).unwrap();
        let check = |topic: &_, cluster: &_, value, source| {
            let view = TopicConfigView { topic, cluster };
            let found = view.value(retention);
            assert_eq!((found.value, found.source), (value, source));
        };
        check(&topic, &cluster, "604800000", ConfigSource::Default);
        cluster.insert("log.retention.ms".into(), "5000".into());
        check(&topic, &cluster, "5000", ConfigSource::Cluster);
        topic.insert("retention.ms".into(), "-1".into());
        check(&topic, &cluster, "-1", ConfigSource::Topic);
        let view = TopicConfigView {
            topic: &topic,
            cluster: &cluster,
        };
        assert_eq!(view.resolve().retention_ms, None);
        assert_eq!(view.resolve().local_retention_ms, None);
        assert_eq!(view.all().count(), TOPIC_KEYS.len());
    }

    #[test]
    fn defaults_resolve_to_what_the_docs_say() {
        let none = BTreeMap::new();
        let config = TopicConfigView {
            topic: &none,
            cluster: &none,
        }
        .resolve();
        assert!(config.cleanup_delete && !config.cleanup_compact && !config.tiered);
        assert_eq!(config.retention_ms, Some(604_800_000));
        assert_eq!(config.retention_bytes, None);
        assert_eq!(config.segment_bytes, 128 << 20);
        assert_eq!(config.max_message_bytes, 1_048_588);
        assert_eq!(config.timestamp_type, TimestampType::CreateTime);
    }
}
