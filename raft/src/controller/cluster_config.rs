//! The configuration keys of the whole cluster, kept by the controller: defaults for topics under
//! Kafka's broker names, and what the controller itself does unasked.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use super::config_key::{ConfigKey, ConfigSource, ConfigType, ConfigValue, Effect, find};
use super::level::BASE_LEVEL;
use super::reply::ControllerError;
use super::topic_config::TOPIC_KEYS;

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

const OWN_KEYS: &[ConfigKey] = &[
    key(
        "auto.create.topics.enable",
        ConfigType::Bool,
        "true",
        "Whether a topic that a Kafka client asks for comes into being.",
    ),
    key(
        "default.replication.factor",
        ConfigType::Int { min: 1, max: 9 },
        "3",
        "Replicas of a topic that names no number, as far as there are nodes: topics made while there were fewer grow with the cluster.",
    ),
    key(
        "num.partitions",
        ConfigType::Int {
            min: 1,
            max: 10_000,
        },
        "1",
        "Partitions of a topic that names no number.",
    ),
    key(
        "trilog.balance.leaders",
        ConfigType::Bool,
        "true",
        "Whether leadership is spread evenly over the nodes unasked.",
    ),
    key(
        "trilog.balance.replicas",
        ConfigType::Bool,
        "true",
        "Whether replicas move unasked to nodes that hold fewer.",
    ),
    key(
        "trilog.controller.voters",
        ConfigType::Choice(&["1", "3", "5"]),
        "5",
        "Voters of the controller group at most; further nodes follow it without a vote.",
    ),
    key(
        "trilog.moves.max",
        ConfigType::Int {
            min: 1,
            max: 10_000,
        },
        "16",
        "Partitions whose replicas move at the same time at most, unless moved by hand.",
    ),
];

/// Every key of the cluster, by name: its own, and one per topic key that has a cluster default.
static CLUSTER_KEYS: LazyLock<Vec<ConfigKey>> = LazyLock::new(|| {
    let defaults = TOPIC_KEYS.iter().filter_map(|key| {
        key.cluster_name.map(|name| ConfigKey {
            name,
            cluster_name: None,
            ..*key
        })
    });
    let mut keys: Vec<ConfigKey> = OWN_KEYS.iter().copied().chain(defaults).collect();
    keys.sort_by_key(|key| key.name);
    keys
});

/// Every key of the cluster, by name.
#[must_use]
pub fn cluster_keys() -> &'static [ConfigKey] {
    &CLUSTER_KEYS
}

/// The key of this name, or a refusal that names the nearest one.
pub fn cluster_key(name: &str, level: u32) -> Result<&'static ConfigKey, ControllerError> {
    find(cluster_keys(), name, level)
}

/// The cluster's settings, out of the values that were set.
#[derive(Clone, Copy, Debug)]
pub struct ClusterConfigView<'a>(pub &'a BTreeMap<String, String>);

impl<'a> ClusterConfigView<'a> {
    /// One key's value and source.
    #[must_use]
    pub fn value(self, key: &'static ConfigKey) -> ConfigValue<'a> {
        let set = self.0.get(key.name);
        ConfigValue {
            key,
            value: set.map_or(key.default, String::as_str),
            source: if set.is_some() {
                ConfigSource::Cluster
            } else {
                ConfigSource::Default
            },
        }
    }

    /// Every key with its value and source, by name.
    pub fn all(self) -> impl Iterator<Item = ConfigValue<'a>> {
        cluster_keys().iter().map(move |key| self.value(key))
    }

    fn number(self, name: &str) -> u32 {
        let key = OWN_KEYS.iter().find(|key| key.name == name);
        let parse = |text: &str| text.parse().ok();
        self.0
            .get(name)
            .and_then(|text| parse(text))
            .or_else(|| key.and_then(|key| parse(key.default)))
            .unwrap_or(1)
    }

    fn flag(self, name: &str) -> bool {
        self.0.get(name).is_none_or(|value| value != "false")
    }

    #[must_use]
    pub fn auto_create_topics(self) -> bool {
        self.flag("auto.create.topics.enable")
    }

    #[must_use]
    pub fn default_replication(self) -> u32 {
        self.number("default.replication.factor")
    }

    #[must_use]
    pub fn default_partitions(self) -> u32 {
        self.number("num.partitions")
    }

    #[must_use]
    pub fn balance_leaders(self) -> bool {
        self.flag("trilog.balance.leaders")
    }

    #[must_use]
    pub fn balance_replicas(self) -> bool {
        self.flag("trilog.balance.replicas")
    }

    #[must_use]
    pub fn controller_voters(self) -> u32 {
        self.number("trilog.controller.voters")
    }

    #[must_use]
    pub fn max_moves(self) -> u32 {
        self.number("trilog.moves.max")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_unique_and_their_defaults_valid() {
        assert!(
            cluster_keys()
                .windows(2)
                .all(|pair| pair[0].name < pair[1].name)
        );
        for key in cluster_keys() {
            assert_eq!(key.parse(key.default).unwrap(), key.default, "{}", key.name);
        }
    }

    #[test]
    fn settings_fall_back_to_their_defaults() {
        let mut set = BTreeMap::new();
        let view = ClusterConfigView(&set);
        assert_eq!(
            (view.default_partitions(), view.default_replication()),
            (1, 3)
        );
        assert!(view.auto_create_topics() && view.balance_leaders() && view.balance_replicas());
        assert_eq!((view.controller_voters(), view.max_moves()), (5, 16));
        set.insert("num.partitions".into(), "12".into());
        set.insert("auto.create.topics.enable".into(), "false".into());
        let view = ClusterConfigView(&set);
        assert_eq!(view.default_partitions(), 12);
        assert!(!view.auto_create_topics());
        assert_eq!(view.all().count(), cluster_keys().len());
    }

    #[test]
    fn a_topics_key_is_not_the_clusters() {
        let refusal = cluster_key("retention.ms", BASE_LEVEL).unwrap_err();
        assert_eq!(
            refusal.to_string(),
            "unknown configuration key 'retention.ms'; did you mean 'log.retention.ms'?"
        );
        assert!(cluster_key("log.retention.ms", BASE_LEVEL).is_ok());
    }
}
