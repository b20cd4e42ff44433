//! Settings of the cluster, its feature level, and how settings change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::super::cluster_config::cluster_key;
use super::super::command::{ConfigChange, ConfigOp, SetClusterConfig};
use super::super::config_key::{ConfigKey, ConfigType};
use super::super::reply::{ControllerError, Outcome, Reply};
use super::{ControllerState, malformed};

impl ControllerState {
    pub(super) fn set_cluster_config(&mut self, command: &SetClusterConfig) -> Outcome {
        let level = self.tables.level;
        let configs = change_configs(&self.tables.configs, &command.configs, |key| {
            cluster_key(key, level)
        })?;
        if configs != *self.tables.configs {
            self.tables.configs = Arc::new(configs);
            self.touch();
        }
        Ok(Reply::Done)
    }

    pub(super) fn activate_level(&mut self, level: u32) -> Outcome {
        if level <= self.tables.level {
            return Ok(Reply::Done);
        }
        let behind = self
            .tables
            .nodes
            .values()
            .find(|node| node.is_member() && !node.levels.contains(level));
        if let Some(node) = behind {
            return Err(ControllerError::LevelNotSupported {
                node: node.id,
                min: node.levels.min,
                max: node.levels.max,
                level,
            });
        }
        self.tables.level = level;
        self.touch();
        Ok(Reply::Done)
    }
}

/// The settings after `changes`, all of them or a refusal.
pub(super) fn change_configs(
    current: &BTreeMap<String, String>,
    changes: &[ConfigChange],
    find: impl Fn(&str) -> Result<&'static ConfigKey, ControllerError>,
) -> Result<BTreeMap<String, String>, ControllerError> {
    let mut configs = current.clone();
    let mut seen = BTreeSet::new();
    for change in changes {
        let op = ConfigOp::try_from(change.op)
            .map_err(|_| malformed("unknown way to change a configuration"))?;
        let key = find(&change.key)?;
        let invalid = |reason: &str| ControllerError::InvalidConfig {
            key: change.key.clone(),
            value: change.value.chars().take(200).collect(),
            reason: reason.to_owned(),
        };
        if !seen.insert(key.name) {
            return Err(invalid("the key is named twice"));
        }
        let value = match op {
            ConfigOp::Delete => {
                configs.remove(key.name);
                continue;
            }
            ConfigOp::Set => key.parse(&change.value)?,
            ConfigOp::Append | ConfigOp::Subtract => {
                if !matches!(key.kind, ConfigType::List(_)) {
                    return Err(invalid("only lists can be added to or taken from"));
                }
                let current = configs.get(key.name).map_or(key.default, String::as_str);
                key.parse(&edit_list(current, &key.parse(&change.value)?, op))?
            }
        };
        configs.insert(key.name.to_owned(), value);
    }
    Ok(configs)
}

fn edit_list(current: &str, items: &str, op: ConfigOp) -> String {
    let mut list: Vec<&str> = current.split(',').collect();
    for item in items.split(',') {
        list.retain(|present| *present != item);
        if op == ConfigOp::Append {
            list.push(item);
        }
    }
    list.join(",")
}

#[cfg(test)]
mod tests {
    use super::super::super::topic_config::topic_key;
    use super::*;

    fn check(current: &str, op: ConfigOp, value: &str, expect: Option<&str>) {
        let current = BTreeMap::from([("cleanup.policy".to_owned(), current.to_owned())]);
        let change = ConfigChange {
            key: "cleanup.policy".into(),
            op: op.into(),
            value: value.into(),
        };
        let changed = change_configs(&current, &[change], |key| topic_key(key, 1)).ok();
        let found = changed.and_then(|configs| configs.get("cleanup.policy").cloned());
        assert_eq!(found.as_deref(), expect, "{op:?} {value}");
    }

    #[test]
    fn lists_are_added_to_and_taken_from() {
        check(
            "delete",
            ConfigOp::Append,
            "compact",
            Some("delete,compact"),
        );
        check("delete", ConfigOp::Append, "delete", Some("delete"));
        check(
            "delete,compact",
            ConfigOp::Subtract,
            "delete",
            Some("compact"),
        );
        check("delete", ConfigOp::Subtract, "delete", None);
        check("delete", ConfigOp::Set, "compact", Some("compact"));
        check("delete", ConfigOp::Delete, "", None);
    }

    #[test]
    fn one_bad_change_refuses_them_all_and_a_key_is_named_once() {
        let current = BTreeMap::new();
        let find = |key: &str| topic_key(key, 1);
        let good = ConfigChange::set("retention.ms", "5");
        let bad = ConfigChange::set("segment.bytes", "5");
        assert!(change_configs(&current, &[good.clone(), bad], find).is_err());
        assert!(change_configs(&current, &[good.clone(), good.clone()], find).is_err());
        let number = ConfigChange {
            op: ConfigOp::Append.into(),
            ..good
        };
        assert!(change_configs(&current, &[number], find).is_err());
    }
}
